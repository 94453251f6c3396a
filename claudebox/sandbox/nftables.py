"""The filter of the inet tier: nftables over raw netlink, built, installed, read back, added to.

Numbers are those of linux/netfilter/nf_tables.h. A network is a pair (address bytes, prefix
length), a range a pair of integers (first address, last address).
"""

import _socket
import struct

from claudebox.policy import INET_DENIED_V4, INET_DENIED_V6, SIDECAR_NETWORKS
from claudebox.sandbox import netlink
from claudebox.sandbox.netlink import ACKNOWLEDGE, APPEND, CREATE, attribute, attributes

TABLE = "claudebox"
_MAIN, _PERMIT, _REFUSE = "output", "permit", "refuse"

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NFPROTO_INET, _NFPROTO_IPV4, _NFPROTO_IPV6 = 1, 2, 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _NEWCHAIN, _GETCHAIN, _NEWRULE, _GETRULE = 0, 3, 4, 6, 7
_NEWSET, _NEWSETELEM, _GETSETELEM = 9, 12, 13
_HOOK_OUTPUT = 3
_REGISTER = 1
_DROP, _ACCEPT, _GOTO = 0, 1, -4
_META_OIF, _META_NFPROTO, _META_L4PROTO = 5, 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_REJECT_WITH_RESET, _REJECT_WITH_ICMPX, _ADMIN_PROHIBITED = 1, 2, 3
_SET_INTERVAL, _ELEMENT_IS_END = 4, 1
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_NEIGHBOUR_DISCOVERY = (133, 135, 136)  # router solicitation, neighbour solicitation and advert

# The elements of one message are one attribute of at most 64 KiB; a batch is one datagram of at
# most net.core.wmem_max (212992) bytes.
_RANGES_PER_MESSAGE = 400
_RANGES_PER_BATCH = 1600


def network(text: str) -> tuple:
    """Parse "ADDRESS/LENGTH". Raises OSError or ValueError."""
    address, _, length = text.partition("/")
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    return _socket.inet_pton(family, address), int(length)


def range_of(address: bytes, length: int) -> tuple:
    """The range that a network covers; bits of the address beyond the prefix do not matter."""
    rest = (1 << 8 * len(address) - length) - 1
    first = int.from_bytes(address, "big") & ~rest
    return first, first | rest


def merge(ranges) -> list:
    """The same addresses as sorted ranges that neither overlap nor touch."""
    merged = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            if last > merged[-1][1]:
                merged[-1] = merged[-1][0], last
        else:
            merged.append((first, last))
    return merged


def subtract(ranges, known) -> list:
    """The parts of `ranges` that `known` does not cover, merged. `known` is merged already."""
    missing = []
    for first, last in merge(ranges):
        for known_first, known_last in known:
            if known_last < first:
                continue
            if known_first > last:
                break
            if first < known_first:
                missing.append((first, known_first - 1))
            first = known_last + 1
        if first <= last:
            missing.append((first, last))
    return missing


# Expressions are trees of (attribute kind, bytes | int | list of such pairs), so that one value
# serves to send a rule and to compare it with what the kernel says it has.


def _expression(name: str, *parts) -> tuple:
    return (1, [(1, name.encode() + b"\0"), (2, list(parts))])


def _meta(key: int) -> tuple:
    return _expression("meta", (1, _REGISTER), (2, key))


def _equals(value: bytes) -> tuple:
    return _expression("cmp", (1, _REGISTER), (2, 0), (3, [(1, value)]))


def _load(header: int, offset: int, length: int) -> tuple:
    return _expression("payload", (1, _REGISTER), (2, header), (3, offset), (4, length))


def _mask(value: bytes) -> tuple:
    zero = bytes(len(value))
    return _expression(
        "bitwise",
        (1, _REGISTER),
        (2, _REGISTER),
        (3, len(value)),
        (4, [(1, value)]),
        (5, [(1, zero)]),
    )


def _verdict(code: int, chain: str = "") -> tuple:
    parts = [(1, code & 0xFFFFFFFF)]
    if chain:
        parts.append((2, chain.encode() + b"\0"))
    return _expression("immediate", (1, 0), (2, [(2, parts)]))


def _family(size: int) -> list:
    return [_meta(_META_NFPROTO), _equals(bytes([_NFPROTO_IPV4 if size == 4 else _NFPROTO_IPV6]))]


def _destination(size: int) -> list:
    return [*_family(size), _load(_NETWORK_HEADER, 16 if size == 4 else 24, size)]


def _to_network(address: bytes, length: int) -> list:
    size = len(address)
    first, last = range_of(address, length)
    parts = _destination(size)
    if first != last:
        parts.append(_mask((~(first ^ last) & (1 << 8 * size) - 1).to_bytes(size, "big")))
    return [*parts, _equals(first.to_bytes(size, "big"))]


def _in_set(size: int, name: str) -> list:
    return [*_destination(size), _expression("lookup", (1, name.encode() + b"\0"), (2, _REGISTER))]


def _protocol(number: int) -> list:
    return [_meta(_META_L4PROTO), _equals(bytes([number]))]


_TO_REFUSE = _verdict(_GOTO, _REFUSE)
_TO_PERMIT = _verdict(_GOTO, _PERMIT)


def rules(exceptions=()) -> list:
    """The filter as (chain, expressions) pairs, in order.

    `exceptions` are (address, length, port) triples; port 0 opens every port, and echo requests.
    An exception for a single address goes before everything but the sidecars' own networks; one
    for a network does not open the addresses that the host itself has in it.
    """
    single, several = [], []
    for address, length, port in exceptions:
        match = _to_network(address, length)
        chosen = single if length == 8 * len(address) else several
        if port:
            to_port = [_load(_TRANSPORT_HEADER, 2, 2), _equals(port.to_bytes(2, "big"))]
            for protocol in (_TCP, _UDP):
                chosen.append([*match, *_protocol(protocol), *to_port, _verdict(_ACCEPT)])
        else:
            chosen.append([*match, _TO_PERMIT])
    loopback = struct.pack("=I", netlink.LOOPBACK_INDEX)
    output = [[_meta(_META_OIF), _equals(loopback), _verdict(_ACCEPT)]]
    for kind in _NEIGHBOUR_DISCOVERY:
        is_kind = [_load(_TRANSPORT_HEADER, 0, 1), _equals(bytes([kind]))]
        output.append([*_family(16), *_protocol(_ICMPV6), *is_kind, _verdict(_ACCEPT)])
    output += [[*_to_network(*network(each)), _TO_REFUSE] for each in SIDECAR_NETWORKS]
    output += single
    output += [[*_in_set(4, "own4"), _TO_REFUSE], [*_in_set(16, "own6"), _TO_REFUSE]]
    output += several
    output += [[*_in_set(4, "near4"), _TO_REFUSE], [*_in_set(16, "near6"), _TO_REFUSE]]
    output.append([_TO_PERMIT])
    permit = [
        [*_protocol(_TCP), _verdict(_ACCEPT)],
        [*_protocol(_UDP), _verdict(_ACCEPT)],
        [*_family(4), *_protocol(_ICMP), _verdict(_ACCEPT)],
        [*_family(16), *_protocol(_ICMPV6), _verdict(_ACCEPT)],
        [_TO_REFUSE],
    ]
    # ICMP errors are rate-limited: a connect() that is answered with them hangs now and then.
    reset = _expression("reject", (1, _REJECT_WITH_RESET))
    prohibited = _expression("reject", (1, _REJECT_WITH_ICMPX), (2, bytes([_ADMIN_PROHIBITED])))
    refuse = [[*_protocol(_TCP), reset], [prohibited]]
    return [
        (chain, expressions)
        for chain, listed in ((_REFUSE, refuse), (_PERMIT, permit), (_MAIN, output))
        for expressions in listed
    ]


def sets(own=(), near=(), denied_v4=INET_DENIED_V4, denied_v6=INET_DENIED_V6) -> dict:
    """The sets that the rules look into, as {name: merged ranges}.

    `own` are the host's addresses (bytes), `near` the networks that are not the internet for it;
    `denied_v4` and `denied_v6` are what nobody's internet is.
    """
    near = [*near, *map(network, (*denied_v4, *denied_v6))]
    contents = {}
    for size in (4, 16):
        own_ranges = [range_of(each, 8 * size) for each in own if len(each) == size]
        near_ranges = [range_of(*each) for each in near if len(each[0]) == size]
        contents[f"own{size if size == 4 else 6}"] = merge(own_ranges)
        contents[f"near{size if size == 4 else 6}"] = merge(near_ranges + own_ranges)
    return contents


def _kind(number: int) -> int:
    return _SUBSYSTEM | number


def _header(family: int = _NFPROTO_INET, resource: int = 0) -> bytes:
    return struct.pack(">BBH", family, 0, resource)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _packed(*parts) -> bytes:
    return _header() + b"".join([attribute(*each) for each in parts])


def _in_batch(messages: list) -> list:
    edge = _header(0, 10)
    return [(_BATCH_BEGIN, 0, edge), *messages, (_BATCH_END, 0, edge)]


def _size_of(name: str) -> int:
    return 4 if name.endswith("4") else 16


def _boundaries(name: str, ranges) -> list:
    """The elements of an interval set: (key, flags), where an end is the first address after."""
    size = _size_of(name)
    found = []
    for first, last in ranges:
        found.append((first.to_bytes(size, "big"), 0))
        if last + 1 < 1 << 8 * size:
            found.append(((last + 1).to_bytes(size, "big"), _ELEMENT_IS_END))
    return found


def _element_messages(name: str, ranges: list) -> list:
    messages = []
    for start in range(0, len(ranges), _RANGES_PER_MESSAGE):
        elements = []
        for key, flags in _boundaries(name, ranges[start : start + _RANGES_PER_MESSAGE]):
            element = [(1, [(1, key)])]
            if flags:
                element.append((3, flags))
            elements.append((1, element))
        body = _packed((1, _text(TABLE)), (2, _text(name)), (3, elements))
        messages.append((_kind(_NEWSETELEM), ACKNOWLEDGE | CREATE, body))
    return messages


def batches(filter_rules: list, contents: dict) -> list:
    """The netlink messages that make the filter: a list of atomic batches.

    One, unless the host has more than 1600 networks: then more follow that only add to the sets.
    """
    new = ACKNOWLEDGE | CREATE
    messages = [(_kind(_NEWTABLE), new, _packed((1, _text(TABLE))))]
    for number, name in enumerate(contents, 1):
        size = _size_of(name)
        type_for_display = 7 if size == 4 else 8  # ipv4_addr, ipv6_addr of the nft program
        body = _packed(
            (1, _text(TABLE)),
            (2, _text(name)),
            (3, _SET_INTERVAL),
            (4, type_for_display),
            (5, size),
            (10, number),
        )
        messages.append((_kind(_NEWSET), new, body))
    for chain in (_REFUSE, _PERMIT):
        messages.append((_kind(_NEWCHAIN), new, _packed((1, _text(TABLE)), (3, _text(chain)))))
    hook, policy = (4, [(1, _HOOK_OUTPUT), (2, 0)]), (5, _DROP)
    base = ((1, _text(TABLE)), (3, _text(_MAIN)), hook, policy, (7, _text("filter")))
    messages.append((_kind(_NEWCHAIN), new, _packed(*base)))
    for chain, expressions in filter_rules:
        body = _packed((1, _text(TABLE)), (2, _text(chain)), (4, expressions))
        messages.append((_kind(_NEWRULE), new | APPEND, body))
    queue = [
        (name, contents[name][i : i + _RANGES_PER_BATCH])
        for name in contents
        for i in range(0, len(contents[name]), _RANGES_PER_BATCH)
    ]
    result, room = [messages], _RANGES_PER_BATCH
    for name, ranges in queue:
        if len(ranges) > room:
            result.append([])
            room = _RANGES_PER_BATCH
        result[-1] += _element_messages(name, ranges)
        room -= len(ranges)
    return [_in_batch(each) for each in result]


def install(connection: netlink.Connection, filter_rules: list, contents: dict) -> None:
    """Make the filter in the network namespace of `connection`, and check that it is there.

    Raises OSError when the kernel refuses a part of it or says afterwards that it has another.
    """
    for batch in batches(filter_rules, contents):
        connection.request(batch)
    verify(connection, filter_rules, contents)


def verify(connection: netlink.Connection, filter_rules: list, contents: dict) -> None:
    """Read the filter back. Raises OSError when it is not, rule for rule, what was asked for."""
    expected = {_MAIN: [], _PERMIT: [], _REFUSE: []}
    for chain, expressions in filter_rules:
        expected[chain].append(expressions)
    hooked = False
    for payload in connection.dump(_kind(_GETCHAIN), _header()):
        parts = dict(attributes(payload[4:]))
        if parts.get(1) == _text(TABLE) and parts.get(3) == _text(_MAIN):
            hook = dict(attributes(parts.get(4, b"")))
            hooked = hook.get(1) == struct.pack(">I", _HOOK_OUTPUT) and parts.get(5) == struct.pack(
                ">I", _DROP
            )
    if not hooked:
        raise OSError("the filter's chain is not hooked to what the sandbox sends")
    found = {chain: [] for chain in expected}
    for payload in connection.dump(_kind(_GETRULE), _packed((1, _text(TABLE)))):
        parts = dict(attributes(payload[4:]))
        if parts.get(1) == _text(TABLE):
            found.setdefault(parts[2].rstrip(b"\0").decode(), []).append(parts.get(4, b""))
    for chain in found:
        wanted = expected.get(chain, [])
        if len(found[chain]) != len(wanted):
            raise OSError(
                f"the filter's chain {chain} has {len(found[chain])} rules of {len(wanted)}"
            )
        for number, (tree, buffer) in enumerate(zip(wanted, found[chain], strict=True), 1):
            contents_of_rule = [content for _, content in attributes(buffer)]
            agrees = map(_agrees, [value for _, value in tree], contents_of_rule)
            if len(contents_of_rule) != len(tree) or not all(agrees):
                raise OSError(
                    f"rule {number} of the filter's chain {chain} is not what was asked for"
                )
    for name, ranges in contents.items():
        if _elements(connection, name) != set(_boundaries(name, ranges)):
            raise OSError(f"the filter's set {name} does not hold what was asked for")


def _agrees(value, content: bytes) -> bool:
    """Whether what the kernel sent for an attribute has what was asked for; it adds and reorders."""
    if isinstance(value, list):
        parts = dict(attributes(content))
        return all(_agrees(part, parts.get(kind, b"")) for kind, part in value)
    return content == (value.to_bytes(4, "big") if isinstance(value, int) else value)


def _elements(connection: netlink.Connection, name: str) -> set:
    """The boundaries that a set has; where one range ends as the next begins there is none."""
    found = set()
    body = _packed((1, _text(TABLE)), (2, _text(name)))
    for payload in connection.dump(_kind(_GETSETELEM), body):
        for _, element in attributes(dict(attributes(payload[4:])).get(3, b"")):
            parts = dict(attributes(element))
            key = dict(attributes(parts.get(1, b""))).get(1)
            flags = int.from_bytes(parts.get(3, b""), "big")
            found ^= {(key, flags)}
            if (key, flags ^ _ELEMENT_IS_END) in found:
                found -= {(key, 0), (key, _ELEMENT_IS_END)}
    return found


class Filter:
    """The installed filter, as the launcher holds it: for networks that the host gains later."""

    def __init__(self, connection: netlink.Connection, contents: dict):
        self._connection = connection
        self._contents = contents

    def block(self, own, near) -> int:
        """Refuse these host addresses and networks too; returns how many ranges were new.

        Only what the sets lack is sent: the kernel refuses intervals that overlap. Raises OSError.
        """
        added = {}
        for name, ranges in sets(own, near, (), ()).items():
            missing = subtract(ranges, self._contents[name])
            if missing:
                added[name] = missing
        for name, ranges in added.items():
            for start in range(0, len(ranges), _RANGES_PER_BATCH):
                part = ranges[start : start + _RANGES_PER_BATCH]
                self._connection.request(_in_batch(_element_messages(name, part)))
                self._contents[name] = merge([*self._contents[name], *part])
        return sum(map(len, added.values()))

    def close(self) -> None:
        self._connection.close()
