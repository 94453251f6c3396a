"""A small internet in network namespaces, with servers that log whoever reaches them.

Run as a program it makes the namespaces, prints one line of JSON when they work, and keeps them
until its stdin closes. Run by root it needs no user namespace; run by anybody else it makes one.

    router --- eth0 --- host --- eth1 --- lan
    (gateway, internet,   |  `-- vpn0 --- vpn     (split routes, one of them public)
     metadata, detours)   `----- tail0 -- tail    (routes in a table of its own)
"""

import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from claudebox.sandbox import libc

ECHO_PORT = 7007
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000

HOST_COMMANDS = """
addr add 192.168.7.2/24 dev eth0
addr add 2001:db8:7::2/64 dev eth0 nodad
addr add 203.0.113.77/32 dev eth0
addr add 2001:db8:77::77/128 dev eth0 nodad
link set eth0 up
addr add 192.168.8.2/24 dev eth1
addr add 2001:db8:8::2/64 dev eth1 nodad
link set eth1 up
addr add 10.8.0.2/24 dev vpn0
addr add fd10:8::2/64 dev vpn0 nodad
link set vpn0 up
addr add 100.100.1.1/32 dev tail0
addr add fd7a:115c:a1e0::1/128 dev tail0 nodad
link set tail0 up
route add 172.20.0.0/16 via 10.8.0.1
route add 198.51.100.0/24 via 10.8.0.1
route add 2001:db8:99::/48 via fd10:8::1
route add 100.64.0.0/10 dev tail0 table 52
-6 route add fd7a:115c:a1e0::/48 dev tail0 table 52
rule add pref 5270 lookup 52
-6 rule add pref 5270 lookup 52
route add default via 192.168.7.1
-6 route add default via 2001:db8:7::1
"""

# What each namespace besides the host answers for: its own addresses, and whole networks.
PLACES = {
    "router": (
        "eth0",
        ["192.168.7.1/24", "2001:db8:7::1/64"],
        [
            "203.0.113.0/26",
            "169.254.0.0/16",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "100.64.0.0/10",
            "192.0.0.0/24",
            "198.18.0.0/15",
            "192.168.99.0/24",
            "1.1.1.0/24",
            "203.0.114.0/24",
            "2001:db8:ffff::/48",
            "2002::/16",
            "2001::/32",
            "64:ff9b::/96",
            "fc00::/7",
            "fec0::/10",
            "100::/64",
            "5f00::/16",
            "2001:db8:9999::/48",
        ],
    ),
    "lan": ("eth1", ["192.168.8.10/24", "2001:db8:8::10/64", "fe80::53/64"], []),
    "vpn": (
        "vpn0",
        ["10.8.0.1/24", "fd10:8::1/64"],
        ["172.20.0.0/16", "198.51.100.0/24", "2001:db8:99::/48"],
    ),
    "tail": (
        "tail0",
        ["100.64.0.1/32", "fd7a:115c:a1e0::53/128"],
        ["100.64.0.0/11", "fd7a:115c:a1e0::/49"],
    ),
}


def ip(commands: str) -> None:
    """Run `ip` commands, one a line; those that begin with -6 come last."""
    lines = commands.splitlines()
    for family in ("-4", "-6"):
        chosen = [
            each.removeprefix("-6 ") for each in lines if each.startswith("-6 ") == (family == "-6")
        ]
        arguments = ["ip", *([family] if family == "-6" else []), "-batch", "-"]
        ran = subprocess.run(
            arguments, input="\n".join(chosen) + "\n", text=True, capture_output=True
        )
        if ran.returncode:
            raise SystemExit(f"{' '.join(arguments)}: {ran.stderr or ran.stdout}")


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def use_addresses_at_once() -> None:
    """No duplicate address detection: it takes a second or two per link."""
    write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")


class Servers:
    """TCP, UDP and DNS servers on every address of a namespace, and an ear for echo requests."""

    def __init__(self, place: str, log: int):
        self.place = place
        self.log_descriptor = log
        for family in (socket.AF_INET, socket.AF_INET6):
            for port in (ECHO_PORT, 53):
                self.start(self.serve_datagrams, self.bound(family, socket.SOCK_DGRAM, port), port)
                self.start(self.serve_streams, self.bound(family, socket.SOCK_STREAM, port), port)
            self.start(self.serve_echo_requests, family)

    def start(self, target, *arguments) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def bound(self, family: int, kind: int, port: int) -> socket.socket:
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_DGRAM:
            self.ask_for_destination(made)
            if family == socket.AF_INET6:
                made.setsockopt(
                    socket.IPPROTO_IPV6, 78, 1
                )  # IPV6_FREEBIND: answer as whoever was asked
        made.bind(("", port))
        if kind == socket.SOCK_STREAM:
            made.listen(256)
        return made

    def ask_for_destination(self, made: socket.socket) -> None:
        if made.family == socket.AF_INET:
            made.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        else:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)

    def log(self, protocol: str, destination: str, token: bytes) -> None:
        entry = {"place": self.place, "protocol": protocol, "to": destination}
        entry["token"] = token.decode(errors="replace")
        os.write(self.log_descriptor, json.dumps(entry).encode() + b"\n")

    def serve_datagrams(self, served: socket.socket, port: int) -> None:
        while True:
            data, controls, _, peer = served.recvmsg(65535, 256)
            _, kind, info = controls[0]
            if served.family == socket.AF_INET:
                destination = socket.inet_ntop(socket.AF_INET, info[8:12])
                answer_from = (socket.IPPROTO_IP, kind, bytes(4) + info[8:12] + bytes(4))
            else:
                destination = socket.inet_ntop(socket.AF_INET6, info[:16])
                answer_from = (socket.IPPROTO_IPV6, kind, info)
            self.log("udp", destination, self.question(data) if port == 53 else data)
            answer = self.dns_answer(data, False) if port == 53 else data
            try:
                served.sendmsg([answer], [answer_from], 0, peer)
            except OSError:
                pass

    def serve_streams(self, served: socket.socket, port: int) -> None:
        while True:
            made, _ = served.accept()
            self.start(self.serve_stream, made, port)

    def serve_stream(self, made: socket.socket, port: int) -> None:
        destination = made.getsockname()[0].partition("%")[0]
        with made:
            made.settimeout(20)
            try:
                data = made.recv(65537)
                if port != 53:
                    self.log("tcp", destination, data)
                while data and port != 53:
                    made.sendall(data)
                    data = made.recv(65536)
                while data:
                    query = data[2:]
                    self.log("tcp", destination, self.question(query))
                    answer = self.dns_answer(query, True)
                    made.sendall(struct.pack(">H", len(answer)) + answer)
                    data = made.recv(65537)
            except OSError:
                self.log("tcp", destination, b"-")

    def serve_echo_requests(self, family: int) -> None:
        # The kernel answers; this only listens.
        if family == socket.AF_INET:
            ear = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        else:
            ear = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            self.ask_for_destination(ear)
        while True:
            data, controls, _, _ = ear.recvmsg(65535, 256)
            if family == socket.AF_INET:
                destination, data = socket.inet_ntop(family, data[16:20]), data[20:]
            else:
                destination = socket.inet_ntop(family, controls[0][2][:16])
            if data[0] in (8, 128):
                self.log("icmp", destination, data[8:])

    @staticmethod
    def question(query: bytes) -> bytes:
        labels, offset = [], 12
        while offset < len(query) and query[offset]:
            labels.append(query[offset + 1 : offset + 1 + query[offset]])
            offset += query[offset] + 1
        return b".".join(labels)

    def dns_answer(self, query: bytes, stream: bool) -> bytes:
        """Answers by name: big- and truncated- are what they say, at-ADDRESS is that address."""
        name = self.question(query)
        end = 12 + len(name) + 2
        kind = struct.unpack_from(">H", query, end)[0]
        flags, records = 0x8180, []
        if name.startswith(b"truncated") and not stream:
            flags |= 0x0200
        elif name.startswith(b"servfail") and not name.endswith(self.place.encode()):
            flags |= 2
        elif kind == 16:
            text = f"{self.place} {'tcp' if stream else 'udp'}".encode()
            if name.startswith(b"big"):
                text = b"x" * 250
            count = {b"big": 150, b"big4": 16}.get(name.split(b".")[0], 1)
            records = [bytes([len(text)]) + text] * count
        elif kind in (1, 28):
            family = socket.AF_INET if kind == 1 else socket.AF_INET6
            address = "203.0.113.10" if kind == 1 else "2001:db8:ffff::10"
            if name.startswith(b"at-"):
                address = name[3:].partition(b".test")[0].decode().replace("-", ":")
            try:
                records = [socket.inet_pton(family, address)]
            except OSError:
                pass
        body = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(each)) + each for each in records
        )
        return (
            query[:2]
            + struct.pack(">HHHHH", flags, 1, len(records), 0, 0)
            + query[12 : end + 4]
            + body
        )


def become_place(name: str, ready: int, begin: int, log: int) -> None:
    """A child: a namespace of its own; configured when the host's end of its link has been made."""
    libc.unshare(libc.CLONE_NEWNET)
    use_addresses_at_once()
    os.write(ready, b"1")
    os.read(begin, 1)
    link, addresses, networks = PLACES[name]
    commands = ["link set lo up", f"link set {link} up"]
    for address in addresses:
        commands.append(f"addr add {address} dev {link}" + (" nodad" if ":" in address else ""))
    for network in networks:
        commands.append(f"{'-6 ' if ':' in network else ''}route add local {network} dev lo")
    if name == "router":
        commands += ["route add 203.0.113.77/32 via 192.168.7.2"]
        commands += ["-6 route add 2001:db8:77::77/128 via 2001:db8:7::2"]
    if name == "tail":
        commands += [
            "route add 100.100.1.1/32 dev tail0",
            "-6 route add fd7a:115c:a1e0::1/128 dev tail0",
        ]
    ip("\n".join(commands) + "\n")
    Servers(name, log)
    os.write(ready, b"2")
    threading.Event().wait()


def make_tun_usable() -> None:
    """Where only root may open /dev/net/tun: one for everybody, in a mount namespace of our own."""
    libc.unshare(CLONE_NEWNS)
    mount = ["mount", "--make-rprivate", "/"]
    subprocess.run(mount, check=True)
    if os.stat("/dev/net/tun").st_mode & 0o006 == 0o006:
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tun", "/mnt"], check=True)
    os.mknod("/mnt/tun", 0o20666, os.makedev(10, 200))
    os.chmod("/mnt/tun", 0o666)
    subprocess.run(["mount", "--bind", "/mnt/tun", "/dev/net/tun"], check=True)
    subprocess.run(["umount", "-l", "/mnt"], check=True)


def main(log_path: str) -> None:
    libc.die_with(os.getppid())
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        make_tun_usable()
        libc.unshare(libc.CLONE_NEWNET)
    else:
        libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNET)
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"0 {uid} 1")
        write("/proc/self/gid_map", f"0 {gid} 1")
    write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647" if uid == 0 else "0 0")
    use_addresses_at_once()
    ip("link set lo up\n")
    for name, (link, _, _) in PLACES.items():
        ready, ready_end = os.pipe()
        begin_end, begin = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            libc.die_with(parent)
            try:
                become_place(name, ready_end, begin_end, log)
            except BaseException as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        if os.read(ready, 1) != b"1":
            raise SystemExit(f"{name} has no namespace")
        ip(f"link add {link} type veth peer name peer\nlink set peer netns {pid} name {link}\n")
        os.write(begin, b"1")
        PLACES[name] = (link, ready, pid)
    ip(HOST_COMMANDS)
    for name, (_, ready, _) in PLACES.items():
        if os.read(ready, 1) != b"2":
            raise SystemExit(f"{name} did not come up")
    Servers("host", log)
    pids = {name: pid for name, (_, _, pid) in PLACES.items()}
    print(json.dumps({"host": os.getpid(), **pids}), flush=True)
    select.select([sys.stdin], [], [])


if __name__ == "__main__":
    main(sys.argv[1])
