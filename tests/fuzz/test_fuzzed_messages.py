"""What comes from the network, from the kernel and from command lines, read bit by bit."""

import json
import os
import socket
import struct

import pytest
from cases import ODD_TEXTS, dump, each_case, mutate_bytes, mutate_document

from claudebox import Failure, audit, json_text
from claudebox.printable import printable
from claudebox.sandbox import dns_relay, inet, netlink, nftables


def query(name, kind=1, number=0x1234):
    """Return a DNS query as the C library sends it."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return (
        struct.pack(">6H", number, 0x0100, 1, 0, 0, 0)
        + labels
        + b"\0"
        + struct.pack(">HH", kind, 1)
    )


def questions(message):
    """Return the questions of a DNS message, read once more in another way; None if it has none."""
    if len(message) < 12:
        return None
    found, rest = [], message[12:]
    for _ in range(int.from_bytes(message[4:6], "big")):
        labels = []
        while True:
            if not rest or rest[0] > 63 or len(rest) < rest[0] + 1:
                return None
            size, rest = rest[0], rest[1:]
            if size == 0:
                break
            labels.append(rest[:size])
            rest = rest[size:]
        if len(rest) < 4 or sum(map(len, labels)) + len(labels) > 255:
            return None
        found.append((labels, int.from_bytes(rest[:2], "big")))
        rest = rest[4:]
    return found


def test_what_is_forwarded_is_one_question_and_nothing_else(bounds):
    messages = [query("www.example.org"), query("a.b", 28), query("x" * 63, 252), query("a", 251)]

    def check(chance):
        message = mutate_bytes(chance, chance.choice(messages))[:70000]
        if chance.random() < 0.1:
            message = chance.randbytes(chance.randrange(60))
        if dns_relay.is_query(message):
            found = questions(message)
            assert found is not None and len(found) == 1
            assert found[0][1] not in (251, 252) and message[2] & 0xF8 == 0
            assert len(message) <= dns_relay.MAX_QUERY
        elif len(message) >= 12 and dns_relay.question_of(message):
            refusal = dns_relay._failure(message, 5)
            assert refusal[2] & 0x80 and len(refusal) <= len(message)
        answer = mutate_bytes(chance, message)
        if dns_relay.is_answer(messages[0], answer):
            assert answer[:2] == messages[0][:2] and answer[2] & 0x80
        dns_relay._first_message(message)

    each_case(6000, check)


def test_a_resolv_conf_names_addresses_or_is_passed_over(bounds, tmp_path):
    text = (
        b"search a.test\nnameserver 192.0.2.1\nnameserver fe80::1%lo\nnameserver ::1\noptions x\n"
    )

    def check(chance):
        (tmp_path / "resolv.conf").write_bytes(mutate_bytes(chance, text))
        found = dns_relay.resolvers(str(tmp_path / "resolv.conf"))
        assert 1 <= len(found) <= dns_relay.MAX_RESOLVERS
        for family, address in found:
            assert family in (socket.AF_INET, socket.AF_INET6) and address[1] == 53

    each_case(400, check)


def an_address_message():
    body = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 2)
    body += netlink.attribute(1, socket.inet_aton("192.0.2.7"))
    return body + netlink.attribute(2, socket.inet_aton("192.0.2.7"))


def a_route_message():
    body = struct.pack("=BBBBBBBBI", socket.AF_INET6, 64, 0, 0, 254, 2, 0, 1, 0)
    body += netlink.attribute(1, socket.inet_pton(socket.AF_INET6, "2001:db8::"))
    body += netlink.attribute(5, socket.inet_pton(socket.AF_INET6, "fe80::1"))
    hop = struct.pack("=HBBI", 16, 0, 0, 3) + netlink.attribute(5, socket.inet_aton("192.0.2.1"))
    return body + netlink.attribute(9, hop)


def test_a_message_of_the_kernel_is_understood_or_an_error_that_ends_the_network(bounds):
    """An error makes the launch fail, or the session go offline; nothing is passed over silently."""
    messages = [
        (netlink.RTM_NEWADDR, an_address_message()),
        (netlink.RTM_NEWROUTE, a_route_message()),
    ]
    for kind, body in messages:
        assert netlink.networks_in(kind, body) != ([], [])

    def check(chance):
        kind, body = chance.choice(messages)
        body = mutate_bytes(chance, body)[: 1 << 17]
        try:
            own, near = netlink.networks_in(kind, body)
        except OSError:
            return
        # What was understood can become a part of the filter.
        nftables.sets(own, near)
        netlink.attributes(body)

    each_case(4000, check)


class Kernel:
    """Answers the dumps of `nftables.verify` with what it was given."""

    def __init__(self, chains, rules, elements):
        self._answers = iter([chains, rules, *elements])

    def dump(self, _kind, _body):
        return next(self._answers)


def test_a_filter_is_read_back_as_what_was_asked_for_or_the_launch_ends(bounds):
    rules, contents = nftables.rules(), nftables.sets()

    def text(word):
        return word.encode() + b"\0"

    def packed(*parts):
        return bytes(4) + b"".join(netlink.attribute(*part) for part in parts)

    hook = (4, [(1, 3), (2, 0)])
    chain = packed((1, text("claudebox")), (3, text("output")), hook, (5, 0))
    listed = [packed((1, text("claudebox")), (2, text(chain)), (4, tree)) for chain, tree in rules]
    elements = []
    for name, ranges in contents.items():
        found = []
        for key, flags in nftables._boundaries(name, ranges):
            element = [(1, [(1, key)])] + ([(3, flags)] if flags else [])
            found.append((1, element))
        elements.append([packed((1, text("claudebox")), (3, found))])
    nftables.verify(Kernel([chain], listed, elements), rules, contents)

    def check(chance):
        what = chance.randrange(4)
        chains, all_rules, sets = [chain], list(listed), list(elements)
        if what == 0:
            chains = [mutate_bytes(chance, chain)]
        elif what == 1:
            del all_rules[chance.randrange(len(all_rules))]
        elif what == 2:
            place = chance.randrange(len(all_rules))
            all_rules[place] = mutate_bytes(chance, all_rules[place])
        else:
            place = chance.randrange(len(sets))
            sets[place] = [mutate_bytes(chance, sets[place][0])]
        changed = (chains, all_rules, sets) != ([chain], listed, elements)
        try:
            nftables.verify(Kernel(chains, all_rules, sets), rules, contents)
        except (OSError, LookupError, ValueError):
            return
        # A byte more at an end, a flag bit, or what the kernel adds may not matter; a rule less does.
        assert what != 1 or not changed

    each_case(400, check)


def test_an_exception_opens_what_it_names_and_never_the_sandboxs_own_networks(bounds):
    words = ["192.168.1.20:5432", "10.0.0.0/8", "host:8080", "[2001:db8::1]:80", "fd12::/64", "::1"]
    reserved = [nftables.range_of(*nftables.network(text)) for text in
                ("198.18.0.0/24", "127.0.0.0/8", "224.0.0.0/3")]  # fmt: skip

    def check(chance):
        text = chance.choice(words)
        for _ in range(chance.randrange(1, 4)):
            start = chance.randrange(len(text) + 1)
            piece = chance.choice((*ODD_TEXTS, *"0123456789:./[]%a", "/0", "/33", ":0", "65536"))
            text = text[:start] + piece + text[start + chance.randrange(3) :]
        try:
            parsed = inet.parse_allow(text)
        except Failure as failure:
            assert "\n" not in printable(str(failure))
            return
        if parsed[0] == "net":
            _, address, length, port = parsed
            assert 0 <= port < 65536
            first, last = nftables.range_of(address, length)
            assert last - first < 1 << (24 if len(address) == 4 else 112)
            if len(address) == 4:
                for low, high in reserved:
                    assert not (low <= first and last <= high)
            nftables.batches(nftables.rules([parsed[1:]]), nftables.sets())

    each_case(3000, check)


DOCUMENTS = [
    {"a": [1, -2.5, 1e300, True, None, "\u00e9\ud800\udcff\n\0"], "": {"b": {}}, "c": []},
    [[[]], {"x": {"y": ["z"]}}],
]


def test_the_reader_of_json_agrees_with_pythons_own(bounds):
    def check(chance):
        bounds()
        document = chance.choice(DOCUMENTS)
        for _ in range(chance.randrange(3)):
            document = mutate_document(chance, document)
        text = dump(document)
        if chance.random() < 0.7:
            text = mutate_bytes(chance, text.encode())[:200_000].decode("utf-8", "surrogateescape")
        outcomes = []
        for reader in (json_text.loads, json.loads):
            try:
                outcomes.append(repr(reader(text)))
            except (ValueError, RecursionError) as error:
                outcomes.append((type(error), str(error)[:30]))
        if RecursionError not in [outcome[0] for outcome in outcomes]:
            assert outcomes[0] == outcomes[1]

    each_case(1500, check)


def test_the_writer_of_json_agrees_with_pythons_own(bounds):
    def check(chance):
        document = chance.choice(DOCUMENTS)
        for _ in range(chance.randrange(4)):
            document = mutate_document(chance, document)
        assert json_text.dumps(document) == json.dumps(document, indent=2)

    each_case(1000, check)


def test_no_text_draws_on_the_terminal(bounds):
    def check(chance):
        text = "".join(chance.choice(ODD_TEXTS)[:9] for _ in range(3))
        text += "".join(chr(chance.randrange(0x110000)) for _ in range(8))
        shown = printable(text)
        assert shown.isprintable() and not set(shown) & set("\x1b\n\r\u202e\u200b\u2066\ufeff")
        shown.encode("utf-8")
        audit.masked(text)
        audit.secret_reason(text[:5], text)

    each_case(2000, check)


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_a_resolv_conf_of_any_size_is_read_in_bounded_time(bounds, tmp_path, size):
    (tmp_path / "resolv.conf").write_bytes(os.urandom(16) * (size // 16))
    assert dns_relay.resolvers(str(tmp_path / "resolv.conf"))
