"""Relays one TCP port of the sandbox's loopback to the same port of the host's loopback.

It runs on the launcher's event loop. The listening sockets were bound inside the sandbox's network
namespace, so that only what runs there can connect; the destination is fixed here.
"""

import _socket
import struct

from claudebox.sandbox import events

MAX_CONNECTIONS = 64  # further ones wait in the listen queue
_CHUNK = 65536
_HOST_LOOPBACK = ((_socket.AF_INET, b"127.0.0.1"), (_socket.AF_INET6, b"::1"))


class PortRelay:
    """Accepts on `listeners` and connects each client to `port` of the host's loopback."""

    def __init__(self, loop, listeners, port: int):
        self.loop = loop
        self.port = port
        self._listeners = list(listeners)
        self._connections = set()
        self._pause = None
        for listener in self._listeners:
            listener.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        self._pause = None
        for listener in self._listeners:
            self.loop.add(listener.fileno(), lambda _, socket=listener: self._accept(socket))

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            self.loop.remove(listener.fileno())

    def _accept(self, listener) -> None:
        try:
            descriptor, _ = listener._accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptors left: try again when some may have been closed
            self._stop_listening()
            self._pause = self.loop.call_in(1.0, self._listen)
            return
        connection = _Connection(self, _socket.socket(fileno=descriptor))
        self._connections.add(connection)
        if len(self._connections) == MAX_CONNECTIONS:
            self._stop_listening()
        connection.connect_next()

    def ended(self, connection) -> None:
        """A connection has closed."""
        if connection in self._connections:
            self._connections.remove(connection)
            if len(self._connections) == MAX_CONNECTIONS - 1 and self._listeners:
                self._listen()

    def close(self) -> None:
        """End every connection and stop listening."""
        self.loop.cancel(self._pause)
        self._stop_listening()
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        for connection in list(self._connections):
            connection.close()


class _Connection:
    """One client in the sandbox and its connection to the host, with one chunk each way."""

    def __init__(self, relay: PortRelay, client):
        self._relay = relay
        self._loop = relay.loop
        self._client = client
        self._host = None
        self._destinations = list(_HOST_LOOPBACK)
        # Per direction: what was read and not yet written; None once the end was passed on.
        self._pending = {}
        self._at_end = set()
        client.setblocking(False)

    def connect_next(self) -> None:
        """Connect to the next address of the host's loopback; reset the client after the last."""
        self._forget(self._host)
        if not self._destinations:
            # Nobody listens on the host: the nearest thing to a refusal is a reset.
            on_with_no_delay = struct.pack("ii", 1, 0)
            self._client.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, on_with_no_delay)
            self.close()
            return
        family, address = self._destinations.pop(0)
        try:
            self._host = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            self._host.setblocking(False)
            self._host.connect((address, self._relay.port))
        except BlockingIOError:
            pass
        except OSError:
            self.connect_next()
            return
        self._loop.add(self._host.fileno(), self._connected, events.WRITE)

    def _connected(self, _) -> None:
        if self._host.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
            self.connect_next()
            return
        self._pending = {self._client: b"", self._host: b""}
        self._watch()

    def _other(self, socket):
        return self._host if socket is self._client else self._client

    def _watch(self) -> None:
        for socket in (self._client, self._host):
            wanted = 0
            if self._pending[socket] == b"" and socket not in self._at_end:
                wanted |= events.READ
            if self._pending[self._other(socket)]:
                wanted |= events.WRITE
            if wanted:
                self._loop.add(socket.fileno(), lambda _, ready=socket: self._move(ready), wanted)
            else:
                self._loop.remove(socket.fileno())

    def _move(self, ready) -> None:
        """`ready` may be readable or writable; a try at both costs less than to tell."""
        try:
            self._read(ready)
            for source in (self._other(ready), ready):
                self._write(source)
        except OSError:
            self.close()
            return
        if self._pending == {self._client: None, self._host: None}:
            self.close()
        else:
            self._watch()

    def _read(self, source) -> None:
        if self._pending[source] != b"" or source in self._at_end:
            return
        try:
            chunk = source.recv(_CHUNK)
        except BlockingIOError:
            return
        self._pending[source] = chunk
        if not chunk:
            self._at_end.add(source)

    def _write(self, source) -> None:
        pending, target = self._pending[source], self._other(source)
        if pending:
            try:
                pending = pending[target.send(pending, _socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                pass
            self._pending[source] = pending
        if pending == b"" and source in self._at_end:
            self._pending[source] = None
            target.shutdown(_socket.SHUT_WR)

    def _forget(self, socket) -> None:
        if socket and socket.fileno() >= 0:
            self._loop.remove(socket.fileno())
            socket.close()

    def close(self) -> None:
        self._forget(self._client)
        self._forget(self._host)
        self._relay.ended(self)
