"""AF_NETLINK without a library: messages, attributes, acknowledgements, and some rtnetlink requests.

Numbers are those of linux/netlink.h, linux/rtnetlink.h and linux/if_addr.h. An address is `bytes`
in network order (4 or 16 of them), a network is a pair (address, prefix length).
"""

import _socket
import os
import struct

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

REQUEST = 0x1
ACKNOWLEDGE = 0x4
DUMP = 0x300
REPLACE = 0x100
CREATE = 0x400
APPEND = 0x800

NESTED = 0x8000
LOOPBACK_INDEX = 1  # in every network namespace

# RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE
GROUPS_ADDRESSES_AND_ROUTES = 0x10 | 0x40 | 0x100 | 0x400

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DUMP_INTERRUPTED = 0x10
_CAPPED, _ACK_ATTRIBUTES = 0x100, 0x200
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_IFLA_IFNAME, _IFF_UP = 3, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 1, 4, 5, 9, 18
_RTM_F_CLONED = 0x200
# unicast, local, broadcast, anycast, multicast; not blackhole, unreachable, prohibit, throw
_ROUTE_TYPES_THAT_DELIVER = (1, 2, 3, 4, 5)
_ENODEV = 19
_RECEIVE = 1 << 17  # a dump's datagram has at most 32 KiB
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

# A shorter prefix is part of "everything": 0.0.0.0/1 with 128.0.0.0/1 and 2000::/3 are how a
# VPN takes the default route without replacing it.
SHORTEST_NETWORK = {4: 8, 16: 16}


class NetlinkError(OSError):
    """The kernel refused a request; its own explanation is in the text when it gave one."""


def attribute(kind: int, value) -> bytes:
    """Pack one attribute.

    `value` is bytes as they are, an int as 32 bits big endian, or a list of nested (kind, value).
    """
    if isinstance(value, list):
        value = b"".join([attribute(*each) for each in value])
        kind |= NESTED
    elif isinstance(value, int):
        value = value.to_bytes(4, "big")
    size = len(value) + 4
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def attributes(buffer: bytes) -> list:
    """Unpack attributes into (kind, bytes) pairs, kinds without their flag bits; stops at garbage."""
    found, offset = [], 0
    while offset + 4 <= len(buffer):
        size, kind = _ATTRIBUTE.unpack_from(buffer, offset)
        if size < 4:
            break
        found.append((kind & 0x3FFF, buffer[offset + 4 : offset + size]))
        offset += size + 3 & ~3
    return found


class Connection:
    """A netlink socket. It belongs to the network namespace in which it was made, for ever.

    `groups` subscribes to multicast (RTMGRP_*). `descriptor` takes over a socket made elsewhere:
    netlink_net_capable() asks for CAP_NET_ADMIN in the owner of the *socket's* namespace, from both
    who opened it and who sends, and the creator of a user namespace has every capability in it. So
    the launcher may use a socket that the witness opened, and nothing inside the sandbox may.
    """

    def __init__(self, protocol: int, groups: int = 0, descriptor: int = -1):
        if descriptor >= 0:
            self.socket = _socket.socket(fileno=descriptor)
        else:
            kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
            self.socket = _socket.socket(_socket.AF_NETLINK, kind, protocol)
        self.socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 1 << 20)
        self.socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self.socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self.socket.bind((0, groups))
        self.socket.settimeout(5)
        self._sequence = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def _receive(self) -> list:
        """Wait for one datagram of the kernel: (kind, flags, sequence, payload) of each message."""
        data, sender = self.socket.recvfrom(_RECEIVE)
        messages, offset = [], 0
        while sender[0] == 0 and offset + 16 <= len(data):
            size, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            messages.append((kind, flags, sequence, data[offset + 16 : offset + size]))
            offset += max(size, 16) + 3 & ~3
        return messages

    def _send(self, messages) -> range:
        first = self._sequence + 1
        packed = []
        for kind, flags, body in messages:
            self._sequence += 1
            packed.append(_HEADER.pack(16 + len(body), kind, flags | REQUEST, self._sequence, 0))
            packed.append(body)
            packed.append(bytes(-len(body) % 4))
        self.socket.send(b"".join(packed))
        return range(first, self._sequence + 1)

    def request(self, messages) -> list:
        """Send (kind, flags, body) messages as one datagram and wait for every ACKNOWLEDGE.

        Returns what the kernel answered besides: (kind, payload) pairs. Raises NetlinkError for
        the first message that was refused, TimeoutError after 5 s without an answer.
        """
        messages = list(messages)
        sent = self._send(messages)
        waiting = sum(1 for _, flags, _ in messages if flags & ACKNOWLEDGE)
        answers = []
        while waiting:
            for kind, flags, sequence, payload in self._receive():
                if sequence not in sent:
                    continue
                if kind == _NLMSG_ERROR:
                    _raise_refusal(payload, flags, messages[sequence - sent.start][0])
                    waiting -= 1
                else:
                    answers.append((kind, payload))
        return answers

    def dump(self, kind: int, body: bytes) -> list:
        """Everything that a dump request lists, as payloads; repeated when it changed meanwhile."""
        for _ in range(8):
            found, interrupted, done = [], False, False
            sent = self._send([(kind, DUMP, body)])
            while not done:
                for answer, flags, sequence, payload in self._receive():
                    if sequence not in sent:
                        continue
                    if answer == _NLMSG_ERROR:
                        _raise_refusal(payload, flags, kind)
                    interrupted |= bool(flags & _DUMP_INTERRUPTED)
                    if answer == _NLMSG_DONE:
                        done = True
                    else:
                        found.append(payload)
            if not interrupted:
                return found
        raise NetlinkError(16, f"netlink dump {kind}: it kept changing while it was read")

    def notifications(self) -> list:
        """What a subscribed socket holds now, without waiting: (kind, payload) pairs.

        Raises OSError (ENOBUFS) when the kernel had to drop some: then dump again.
        """
        found = []
        self.socket.settimeout(0)
        while True:
            try:
                found += [(kind, payload) for kind, _, _, payload in self._receive()]
            except BlockingIOError:
                return found


def _raise_refusal(payload: bytes, flags: int, kind: int) -> None:
    number = -struct.unpack_from("=i", payload)[0]
    if not number:
        return
    text = os.strerror(number)
    if flags & _ACK_ATTRIBUTES:
        offset = 20 if flags & _CAPPED else 4 + struct.unpack_from("=I", payload, 4)[0]
        for name, value in attributes(payload[offset:]):
            if name == 1:
                text += f" ({value.rstrip(bytes(1)).decode(errors='replace')})"
    raise NetlinkError(number, f"netlink message {kind:#x}: {text}")


def link_index(route: Connection, name: str) -> int:
    """The index of an interface that is up. Raises OSError when there is none, or it is down."""
    body = bytes(16) + attribute(_IFLA_IFNAME, name.encode() + b"\0")
    for kind, payload in route.request([(RTM_GETLINK, ACKNOWLEDGE, body)]):
        if kind == RTM_NEWLINK:
            index, flags = struct.unpack_from("=iI", payload, 4)
            if flags & _IFF_UP:
                return index
    raise NetlinkError(100, f"the interface {name} is down")


def set_link_up(route: Connection, index: int) -> None:
    """Bring an interface up."""
    body = struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP)
    route.request([(RTM_NEWLINK, ACKNOWLEDGE, body)])


def remove_link(route: Connection, name: str) -> None:
    """Remove an interface and what it was given; one that is not there is no error."""
    body = bytes(16) + attribute(_IFLA_IFNAME, name.encode() + b"\0")
    try:
        route.request([(RTM_DELLINK, ACKNOWLEDGE, body)])
    except NetlinkError as error:
        if error.errno != _ENODEV:
            raise


def add_address(route: Connection, index: int, address: bytes, length: int) -> None:
    """Give an interface an address, usable at once (no duplicate address detection)."""
    family = _socket.AF_INET if len(address) == 4 else _socket.AF_INET6
    body = struct.pack("=BBBBI", family, length, _IFA_F_NODAD, 0, index)
    body += attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address)
    route.request([(RTM_NEWADDR, ACKNOWLEDGE | CREATE | REPLACE, body)])


def add_default_route(route: Connection, index: int, gateway: bytes) -> None:
    """Add a default route through `gateway` to the main table."""
    family = _socket.AF_INET if len(gateway) == 4 else _socket.AF_INET6
    main_table, static, universe, unicast = 254, 4, 0, 1
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, main_table, static, universe, unicast, 0)
    body += attribute(_RTA_GATEWAY, gateway) + attribute(_RTA_OIF, struct.pack("=i", index))
    route.request([(RTM_NEWROUTE, ACKNOWLEDGE | CREATE | REPLACE, body)])


def host_networks(route: Connection) -> tuple:
    """(own, near) of the network namespace of `route`.

    `own` are the addresses it has; `near` the networks that it reaches otherwise than through a
    default route, its interfaces' networks, and its gateways.
    """
    own, near = [], []
    for family in (_socket.AF_INET, _socket.AF_INET6):
        for kind, dump, size in ((RTM_NEWADDR, RTM_GETADDR, 8), (RTM_NEWROUTE, RTM_GETROUTE, 12)):
            for payload in route.dump(dump, bytes([family]) + bytes(size - 1)):
                more_own, more_near = networks_in(kind, payload)
                own += more_own
                near += more_near
    return own, near


def networks_in(kind: int, payload: bytes) -> tuple:
    """(own, near), as in host_networks, of one address or route message; empty for any other.

    Raises NetlinkError for one that cannot be understood: what it names would not be blocked.
    """
    try:
        own, near = _networks_in(kind, payload)
    except (IndexError, KeyError, struct.error):
        own, near = [], [(b"", -1)]
    if any(len(each) not in (4, 16) for each in own) or any(
        len(each) not in (4, 16) or not 0 <= length <= 8 * len(each) for each, length in near
    ):
        raise NetlinkError(74, f"netlink message {kind:#x} that cannot be understood")
    return own, near


def _networks_in(kind: int, payload: bytes) -> tuple:
    if kind == RTM_NEWADDR:
        length = payload[1]
        parts = dict(attributes(payload[8:]))
        # On a point-to-point interface IFA_ADDRESS is the other end's.
        peer = parts.get(_IFA_ADDRESS)
        local = parts.get(_IFA_LOCAL, peer)
        near = [(peer, max(length, SHORTEST_NETWORK[len(peer)]))] if peer else []
        return [local] if local else [], near
    if kind != RTM_NEWROUTE:
        return [], []
    family, length, kind_of_route, flags = payload[0], payload[1], payload[7], payload[8:12]
    if family not in (_socket.AF_INET, _socket.AF_INET6):
        return [], []
    if kind_of_route not in _ROUTE_TYPES_THAT_DELIVER:
        return [], []
    if struct.unpack("=I", flags)[0] & _RTM_F_CLONED:
        return [], []
    parts = dict(attributes(payload[12:]))
    near = [(each, 8 * len(each)) for each in _gateways(parts)]
    destination = parts.get(_RTA_DST)
    if destination and length >= SHORTEST_NETWORK[len(destination)]:
        near.append((destination, length))
    return [], near


def _gateways(parts: dict) -> list:
    """The next hops in the attributes of a route."""
    found = []
    if len(parts.get(_RTA_GATEWAY, b"")) in (4, 16):
        found.append(parts[_RTA_GATEWAY])
    if len(parts.get(_RTA_VIA, b"")) in (6, 18):  # a gateway of the other family, after 2 bytes
        found.append(parts[_RTA_VIA][2:])
    hops = parts.get(_RTA_MULTIPATH, b"")
    while len(hops) >= 8:
        size = struct.unpack_from("=H", hops)[0]
        if size < 8:
            break
        found += _gateways(dict(attributes(hops[8:size])))
        hops = hops[size + 3 & ~3 :]
    return found
