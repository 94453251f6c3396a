"""The DNS relay of the inet tier: from sockets in the sandbox's network to the host's resolvers.

It runs on the launcher's event loop, in the host's network namespace. A query (RFC 1035) goes to
port 53 of an address that the host's resolv.conf names at that moment, and nowhere else. Every
number below is a bound on what the sandbox can make the launcher do.
"""

import _socket

from claudebox.sandbox import events

MAX_QUERY = 4096  # bytes; a query with every option that resolvers send stays far below
MAX_LOOKUPS = 64  # under way at once; further datagrams wait in the socket's buffer
MAX_CLIENTS = 32  # TCP connections; further ones wait in the listen queue
MAX_RESOLVERS = 3  # as in the C library

# The C library inside gives its one nameserver 5 s: three resolvers have to fit in that.
RESOLVER_PATIENCE = 1.4
LOOKUP_PATIENCE = 4.5
STREAM_RESOLVER_PATIENCE = 3.0
STREAM_LOOKUP_PATIENCE = 8.0
CLIENT_PATIENCE = 10.0

_SERVFAIL, _NOTIMP, _REFUSED = 2, 4, 5
_ZONE_TRANSFERS = (251, 252)
_LARGEST = 65535


def resolvers(resolv_conf: str) -> list:
    """(family, socket address) of the nameservers in a resolv.conf, in order, at most three.

    Without the file, or without nameservers in it, that is 127.0.0.1, as for the C library.
    """
    found = []
    try:
        with open(resolv_conf, "rb") as lines:
            for line in lines.read(1 << 16).splitlines():
                words = line.split()
                if len(words) > 1 and words[0] == b"nameserver" and len(found) < MAX_RESOLVERS:
                    found += _numeric(words[1])
    except OSError:
        pass
    return found or _numeric(b"127.0.0.1")


def _numeric(host: bytes) -> list:
    """Understands scopes (fe80::1%eth0); nothing but an address, so it never asks anybody."""
    # As bytes: a str would import the idna codec.
    try:
        answers = _socket.getaddrinfo(
            host, 53, _socket.AF_UNSPEC, _socket.SOCK_DGRAM, 0, _socket.AI_NUMERICHOST
        )
    except OSError:
        return []
    return [(family, address) for family, _, _, _, address in answers[:1]]


def question_of(message: bytes) -> bytes:
    """The question section of a message with exactly one question; empty when it is malformed."""
    if len(message) < 17 or message[4:6] != b"\0\1":
        return b""
    offset = 12
    while message[offset]:
        if message[offset] > 63:  # a compression pointer has nothing to point back to yet
            return b""
        offset += message[offset] + 1
        if offset > 12 + 255 or offset + 5 > len(message):
            return b""
    return message[12 : offset + 5]


def is_query(message: bytes) -> bool:
    """Whether this may be forwarded: a standard query for one name, no answer, no zone transfer."""
    question = question_of(message) if len(message) <= MAX_QUERY else b""
    if not question or message[2] & 0xF8:  # QR and the opcode
        return False
    return int.from_bytes(question[-4:-2], "big") not in _ZONE_TRANSFERS


def is_answer(query: bytes, message: bytes) -> bool:
    """Whether `message` answers `query`: same id, a response, the same question (or none)."""
    if len(message) < 12 or message[:2] != query[:2] or not message[2] & 0x80:
        return False
    return message[4:6] == b"\0\0" or question_of(message).lower() == question_of(query).lower()


def _failure(query: bytes, code: int) -> bytes:
    flags = bytes([0x80 | query[2] & 0x79, 0x80 | code])
    return query[:2] + flags + b"\0\1" + bytes(6) + question_of(query)


class DnsRelay:
    """Relays between the sandbox and the host's resolvers until close().

    `datagrams` and `listener` are a bound UDP and a listening TCP `_socket.socket`; they are the
    relay's from now on.
    """

    def __init__(self, loop, datagrams, listener, resolv_conf: str = "/etc/resolv.conf"):
        self.loop = loop
        self.resolv_conf = resolv_conf
        self._datagrams = datagrams
        self._listener = listener
        self._lookups = set()
        self._clients = set()
        self._pause = None
        for socket in (datagrams, listener):
            socket.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        self._pause = None
        self.loop.add(self._datagrams.fileno(), self._receive)
        self.loop.add(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop: whoever asks from now on is refused at once."""
        self.loop.cancel(self._pause)
        for socket in (self._datagrams, self._listener):
            if socket.fileno() >= 0:
                self.loop.remove(socket.fileno())
                socket.close()
        for each in [*self._lookups, *self._clients]:
            each.close()

    def _receive(self, _) -> None:
        # One that floods this socket must not keep the loop from its other work: the filter follows
        # the host's networks there.
        for _ in range(MAX_LOOKUPS):
            if len(self._lookups) == MAX_LOOKUPS:
                self.loop.remove(self._datagrams.fileno())
                return
            try:
                query, client = self._datagrams.recvfrom(MAX_QUERY + 1)
            except BlockingIOError:
                return
            except OSError:  # the error of an answer that its asker no longer waited for
                continue
            if is_query(query):
                self.look_up(query, _Datagram, lambda answer, to=client: self._reply(answer, to))
            elif len(query) >= 12 and not query[2] & 0x80 and question_of(query):
                self._reply(_failure(query, _REFUSED), client)

    def _reply(self, answer: bytes, client) -> None:
        try:
            self._datagrams.sendto(answer, client)
        except OSError:  # its buffer is full or it has gone: it will ask again, or not
            pass

    def look_up(self, query: bytes, attempt, deliver):
        """Ask the resolvers, each by an `attempt`; call `deliver(answer)` exactly once."""
        lookup = _Lookup(self, query, attempt, deliver)
        self._lookups.add(lookup)
        lookup.ask_next()
        return lookup

    def finished(self, lookup) -> None:
        """A lookup has delivered, or was closed."""
        self._lookups.discard(lookup)
        if len(self._lookups) == MAX_LOOKUPS - 1 and self._datagrams.fileno() >= 0:
            self.loop.add(self._datagrams.fileno(), self._receive)

    def _accept(self, _) -> None:
        try:
            descriptor, _ = self._listener._accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptors left: try again when some may have been closed
            self.loop.remove(self._listener.fileno())
            self._pause = self.loop.call_in(1.0, self._listen)
            return
        self._clients.add(_Client(self, _socket.socket(fileno=descriptor)))
        if len(self._clients) == MAX_CLIENTS:
            self.loop.remove(self._listener.fileno())

    def left(self, client) -> None:
        """A TCP client has gone."""
        self._clients.discard(client)
        if len(self._clients) == MAX_CLIENTS - 1 and self._listener.fileno() >= 0:
            self.loop.add(self._listener.fileno(), self._accept)


class _Lookup:
    """One query on its way through the resolvers.

    A resolver that is silent is given a little time and then the next is asked as well, while
    its own answer is still welcome; one that refuses makes place for the next at once.
    """

    def __init__(self, relay: DnsRelay, query: bytes, attempt, deliver):
        self.loop = relay.loop
        self.query = query
        self._relay = relay
        self._attempt = attempt
        self._deliver = deliver
        self._resolvers = resolvers(relay.resolv_conf)
        self._open = set()
        self._worst = _failure(query, _SERVFAIL)
        self._next = None
        self._end = self.loop.call_in(attempt.LOOKUP_PATIENCE, self._give_up)
        self._done = False

    def ask_next(self) -> None:
        self.loop.cancel(self._next)
        self._next = None
        while self._resolvers:
            family, address = self._resolvers.pop(0)
            try:
                self._open.add(self._attempt(self, family, address))
            except OSError:
                continue
            if self._resolvers:
                self._next = self.loop.call_in(self._attempt.RESOLVER_PATIENCE, self.ask_next)
            return
        if not self._open:
            self._give_up()

    def answered(self, attempt, answer: bytes) -> None:
        self._open.discard(attempt)
        attempt.close()
        if answer[3] & 15 not in (_SERVFAIL, _NOTIMP, _REFUSED):
            self._finish(answer)
            return
        self._worst = answer
        self.ask_next()

    def failed(self, attempt) -> None:
        self._open.discard(attempt)
        attempt.close()
        self.ask_next()

    def _give_up(self) -> None:
        self._finish(self._worst)

    def _finish(self, answer: bytes) -> None:
        if not self._done:
            self.close()
            self._deliver(answer)

    def close(self) -> None:
        self._done = True
        self.loop.cancel(self._next)
        self.loop.cancel(self._end)
        while self._open:
            self._open.pop().close()
        self._relay.finished(self)


class _Attempt:
    """One query to one resolver, through a socket of its own that is connected to it."""

    KIND = 0

    def __init__(self, lookup: _Lookup, family: int, address):
        self.lookup = lookup
        self.socket = _socket.socket(family, self.KIND | _socket.SOCK_CLOEXEC)
        try:
            self.socket.setblocking(False)
            self.begin(address)
        except OSError:
            self.close()
            raise

    def watch(self, callback, events_: int = events.READ) -> None:
        self.lookup.loop.add(self.socket.fileno(), callback, events_)

    def close(self) -> None:
        if self.socket.fileno() >= 0:
            self.lookup.loop.remove(self.socket.fileno())
            self.socket.close()


class _Datagram(_Attempt):
    """A query over UDP."""

    KIND = _socket.SOCK_DGRAM
    RESOLVER_PATIENCE = RESOLVER_PATIENCE
    LOOKUP_PATIENCE = LOOKUP_PATIENCE

    def begin(self, address) -> None:
        self.socket.connect(address)
        self.socket.send(self.lookup.query)
        self.watch(self._receive)

    def _receive(self, _) -> None:
        try:
            answer = self.socket.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:  # port unreachable
            self.lookup.failed(self)
            return
        if is_answer(self.lookup.query, answer):
            self.lookup.answered(self, answer)


class _Stream(_Attempt):
    """A query over TCP: two bytes of length before each message."""

    KIND = _socket.SOCK_STREAM
    RESOLVER_PATIENCE = STREAM_RESOLVER_PATIENCE
    LOOKUP_PATIENCE = STREAM_LOOKUP_PATIENCE

    def begin(self, address) -> None:
        self._received = b""
        self._unsent = len(self.lookup.query).to_bytes(2, "big") + self.lookup.query
        try:
            self.socket.connect(address)
        except BlockingIOError:
            pass
        self.watch(self._send, events.WRITE)

    def _send(self, _) -> None:
        try:
            sent = self.socket.send(self._unsent, _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            self.lookup.failed(self)
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self.watch(self._receive)

    def _receive(self, _) -> None:
        try:
            more = self.socket.recv(_LARGEST + 2)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        self._received += more
        message = _first_message(self._received)
        if message is not None and is_answer(self.lookup.query, message):
            self.lookup.answered(self, message)
        elif message is not None or not more:
            self.lookup.failed(self)


def _first_message(stream: bytes):
    """The first whole message of a TCP stream, or None while it is incomplete."""
    size = 2 + int.from_bytes(stream[:2], "big")
    return stream[2:size] if len(stream) >= 2 and len(stream) >= size else None


class _Client:
    """A TCP connection from the sandbox: one query after the other until it closes or idles."""

    def __init__(self, relay: DnsRelay, socket):
        self._relay = relay
        self._loop = relay.loop
        self._socket = socket
        self._received = b""
        self._unsent = b""
        self._is_waiting = self._is_taking = False
        self._deadline = None
        socket.setblocking(False)
        self._wait_for_query()

    def _wait_for_query(self) -> None:
        # The time is for the whole query: a byte now and then does not prolong it.
        self._loop.cancel(self._deadline)
        self._deadline = self._loop.call_in(CLIENT_PATIENCE, self.close)
        self._is_waiting = True
        self._loop.add(self._socket.fileno(), self._receive)

    def _receive(self, _) -> None:
        try:
            more = self._socket.recv(MAX_QUERY + 2)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        self._received += more
        if not more:
            self.close()
        else:
            self._take_queries()

    def _take_queries(self) -> None:
        """Take what was received, one query after the answer to the one before.

        Without a route to any resolver that answer is there before this returns: not by recursion,
        the depth of which the sandbox would choose.
        """
        if self._is_taking:
            return
        self._is_taking = True
        while self._is_waiting and self._socket.fileno() >= 0 and self._take_query():
            pass
        self._is_taking = False

    def _take_query(self) -> bool:
        query = _first_message(self._received)
        if query is None:
            if len(self._received) >= 2 and self._received[:2] > MAX_QUERY.to_bytes(2, "big"):
                self.close()
            return False
        if not is_query(query):
            self.close()
            return False
        self._received = self._received[2 + len(query) :]
        self._is_waiting = False
        self._loop.cancel(self._deadline)
        self._loop.remove(self._socket.fileno())
        self._relay.look_up(query, _Stream, self._answer)
        return True

    def _answer(self, answer: bytes) -> None:
        if self._socket.fileno() < 0:
            return
        self._unsent = len(answer).to_bytes(2, "big") + answer
        self._deadline = self._loop.call_in(CLIENT_PATIENCE, self.close)
        self._send(0)

    def _send(self, _) -> None:
        try:
            sent = self._socket.send(self._unsent, _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._unsent = self._unsent[sent:]
        if self._unsent:
            self._loop.add(self._socket.fileno(), self._send, events.WRITE)
            return
        self._wait_for_query()
        self._take_queries()

    def close(self) -> None:
        self._loop.cancel(self._deadline)
        if self._socket.fileno() >= 0:
            self._loop.remove(self._socket.fileno())
            self._socket.close()
        self._relay.left(self)
