"""What the tests have the sandbox do: run as its payload, it calls the functions it is told to.

A line of stdin is [function, arguments…] in JSON, a line of stdout its result.
"""

import errno
import json
import os
import select
import socket
import struct
import sys
import time

ECHO_PORT = 7007


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Probe:
    """One attempt to reach an address by one protocol."""

    def __init__(self, name: str, protocol: str, address: str, port: int):
        self.key = f"{name} {protocol} {address}"
        self.protocol = protocol
        self.token = self.key.encode()
        self.result = ""
        self.begin = time.monotonic()
        self.seconds = 0.0
        family = _family(address)
        kinds = {
            "tcp": (socket.SOCK_STREAM, 0),
            "udp": (socket.SOCK_DGRAM, 0),
            "icmp": (socket.SOCK_DGRAM, 1 if family == socket.AF_INET else 58),
        }
        self.request = self.token
        if protocol == "icmp":
            kind = 8 if family == socket.AF_INET else 128
            self.request = struct.pack(">BBHHH", kind, 0, 0, 0, 1) + self.token
        self.socket = socket.socket(family, *kinds[protocol])
        self.socket.setblocking(False)
        try:
            where = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4]
            self.socket.connect(where)
            self.socket.send(self.request)
        except BlockingIOError:
            pass
        except OSError as error:
            self.end(errno.errorcode.get(error.errno, str(error)))

    def end(self, result: str) -> None:
        self.result = result
        self.seconds = time.monotonic() - self.begin
        self.socket.close()

    def events(self) -> int:
        return select.POLLOUT if self.protocol == "tcp" and self.request else select.POLLIN

    def ready(self) -> None:
        try:
            if self.protocol == "tcp" and self.request:
                self.socket.send(self.request)
                self.request = b""
            elif self.token in self.socket.recv(4096):
                self.end("reached")
        except BlockingIOError:
            pass
        except OSError as error:
            self.end(errno.errorcode.get(error.errno, str(error)))


def probe(targets: list, wait: float = 2.0) -> dict:
    """Try all (name, protocol, address, port) at once: {key: [result, seconds]}."""
    probes = [Probe(*each) for each in targets]
    end = time.monotonic() + wait
    while time.monotonic() < end:
        waiting = {each.socket.fileno(): each for each in probes if not each.result}
        if not waiting:
            break
        poll = select.poll()
        for descriptor, each in waiting.items():
            poll.register(descriptor, each.events())
        for descriptor, _ in poll.poll(100):
            waiting[descriptor].ready()
    for each in probes:
        if not each.result:
            each.end("silent")
    return {each.key: [each.result, each.seconds] for each in probes}


def resolve(name: str) -> list:
    """[addresses or the error, seconds] as any program would get them."""
    begin = time.monotonic()
    try:
        found = sorted({each[4][0] for each in socket.getaddrinfo(name, 80)})
    except OSError as error:
        found = str(error)
    return [found, time.monotonic() - begin]


def dns_query(name: str, kind: int = 16, number: int = 0x1234) -> bytes:
    labels = b"".join(bytes([len(each)]) + each for each in name.encode().split(b"."))
    return (
        struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0)
        + labels
        + b"\0"
        + struct.pack(">HH", kind, 1)
    )


def ask(name: str, stream: bool = False, kind: int = 16, wait: float = 9.0) -> dict:
    """One DNS query to the sandbox's name server: what came back."""
    begin = time.monotonic()
    query = dns_query(name, kind)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as made:
        made.settimeout(wait)
        try:
            made.connect(("127.0.0.1", 53))
            if stream:
                made.sendall(struct.pack(">H", len(query)) + query)
                answer = _exactly(made, struct.unpack(">H", _exactly(made, 2))[0])
            else:
                made.send(query)
                answer = made.recv(65535)
        except OSError as error:
            return {"error": str(error), "seconds": time.monotonic() - begin}
    records = struct.unpack_from(">H", answer, 6)[0]
    text = answer[len(query) + 13 :][: answer[len(query) + 12]].decode() if records else ""
    return {
        "size": len(answer),
        "code": answer[3] & 15,
        "truncated": bool(answer[2] & 2),
        "text": text,
        "seconds": time.monotonic() - begin,
    }


def _exactly(made: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = made.recv(size - len(data))
        if not more:
            raise ConnectionError("ended early")
        data += more
    return data


def pour_garbage(seed: int) -> str:
    """Send the name server what it must survive: noise, liars, half messages, a crowd."""
    import random

    noise = random.Random(seed)
    query = dns_query("noise.test")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.connect(("127.0.0.1", 53))
        for _ in range(500):
            changed = bytearray(query)
            for _ in range(noise.randrange(1, 6)):
                changed[noise.randrange(len(changed))] = noise.randrange(256)
            for data in (noise.randbytes(noise.randrange(0, 600)), bytes(changed)):
                try:
                    made.send(data)
                except OSError:
                    pass
        for data in (b"", b"\0", query[:12], query[:-1], query + bytes(5000), b"\xff" * 65000):
            try:
                made.send(data)
            except OSError:
                pass
    crowd = []
    for number in range(80):
        made = socket.socket()
        made.settimeout(5)
        try:
            made.connect(("127.0.0.1", 53))
            made.send(
                [b"\xff\xff" + bytes(100), b"\0", b"\0\x05abc", noise.randbytes(300)][number % 4]
            )
        except OSError:
            pass
        crowd.append(made)
    for made in crowd:
        made.close()
    return "poured"


def exchange(port: int, size: int, address: str = "127.0.0.1") -> dict:
    """Send `size` bytes to a port, half-close, and read everything that comes back."""
    import threading

    data = bytes(range(256)) * (size // 256)
    try:
        with socket.create_connection((address, port), 10) as made:

            def send():
                try:
                    made.sendall(data)
                    made.shutdown(socket.SHUT_WR)
                except OSError:  # the reader sees it, too
                    pass

            sender = threading.Thread(target=send)
            sender.start()
            received = bytearray()
            while more := made.recv(1 << 16):
                received += more
            sender.join()
            return {"same": bytes(received) == data, "size": len(received)}
    except OSError as error:
        return {"error": errno.errorcode.get(error.errno, str(error))}


_kept = {}


def keep_connection(address: str) -> str:
    """Open a connection for use_connection."""
    _kept[address] = socket.create_connection((address, ECHO_PORT), 2)
    return use_connection(address)


def use_connection(address: str) -> str:
    """Whether a kept connection still carries an answer."""
    made = _kept[address]
    made.settimeout(0.7)
    try:
        made.send(b"kept")
        return "answered" if made.recv(4096) else "ended"
    except OSError as error:
        return f"cut: {error}"


def attack() -> dict:
    """Every known way to undo the filter: {name: how it ended}; see attacks.py."""
    import attacks

    return attacks.run()


def main() -> None:
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(globals()[name](*arguments)), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    main()
