"""The filter as a value, and as the kernel has it."""

import itertools
import random
import subprocess

import pytest
from namespaces import in_namespace
from rig import SYSTEM_PATH

from claudebox.sandbox import netlink, nftables


def addresses_in(ranges) -> set:
    return {each for first, last in ranges for each in range(first, last + 1)}


def test_merged_and_subtracted_ranges_hold_the_same_addresses_as_sets_would():
    chance = random.Random(3)

    def some_ranges():
        starts = [chance.randrange(60) for _ in range(chance.randrange(6))]
        return [(first, first + chance.randrange(12)) for first in starts]

    for _ in range(2000):
        ranges, known = some_ranges(), nftables.merge(some_ranges())
        merged = nftables.merge(ranges)
        assert addresses_in(merged) == addresses_in(ranges)
        assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(merged))
        missing = nftables.subtract(ranges, known)
        assert addresses_in(missing) == addresses_in(ranges) - addresses_in(known)


def test_a_network_covers_its_range_whatever_its_host_bits():
    first, last = nftables.range_of(b"\x0a\x01\x02\x03", 8)
    assert (first, last) == (0x0A000000, 0x0AFFFFFF)
    assert nftables.range_of(b"\xff" * 16, 0) == (0, (1 << 128) - 1)


@pytest.mark.parametrize(
    ("address", "denied"),
    [
        ("9.255.255.255", False),
        ("10.0.0.0", True),
        ("10.255.255.255", True),
        ("11.0.0.0", False),
        ("100.63.255.255", False),
        ("100.64.0.0", True),
        ("100.127.255.255", True),
        ("100.128.0.0", False),
        ("0.0.0.1", True),
        ("1.0.0.0", False),
        ("127.0.0.1", True),
        ("128.0.0.0", False),
        ("169.253.255.255", False),
        ("169.254.169.254", True),
        ("169.255.0.0", False),
        ("192.0.0.192", True),
        ("192.167.255.255", False),
        ("192.168.0.1", True),
        ("192.169.0.0", False),
        ("172.15.255.255", False),
        ("172.31.255.255", True),
        ("192.0.1.0", False),
        ("198.17.255.255", False),
        ("198.19.255.255", True),
        ("198.20.0.0", False),
        ("223.255.255.255", False),
        ("224.0.0.0", True),
        ("255.255.255.255", True),
        ("1fff::", True),
        ("2000::", False),
        ("2001::1", True),
        ("2001:1::", False),
        ("2001:4860::", False),
        ("2002::", True),
        ("2003::", False),
        ("3fff:ffff::", False),
        ("4000::", True),
        ("fd00::1", True),
        ("::ffff:1.1.1.1", True),
        ("64:ff9b::1", True),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True),
    ],
)
def test_the_policy_denies_to_the_last_address_and_no_further(address, denied):
    packed, _ = nftables.network(f"{address}/0")
    name = "near4" if len(packed) == 4 else "near6"
    number = int.from_bytes(packed, "big")
    ranges = nftables.sets()[name]
    assert any(first <= number <= last for first, last in ranges) == denied


def test_the_filter_is_one_batch_for_an_ordinary_host():
    networks = [
        (number.to_bytes(4, "big"), 32) for number in range(0x14000000, 0x14000000 + 2000, 2)
    ]
    assert len(nftables.batches(nftables.rules(), nftables.sets((), networks))) == 1


def test_a_host_with_thousands_of_networks_is_filtered():
    networks = [
        (number.to_bytes(4, "big"), 32) for number in range(0x14000000, 0x14000000 + 20000, 2)
    ]
    networks += [(b"\x20\x03" + bytes(10) + each[0], 128) for each in networks]

    def check():
        connection = netlink.Connection(netlink.NETLINK_NETFILTER)
        nftables.install(connection, nftables.rules(), nftables.sets((), networks))

    in_namespace(check)


def test_the_nft_program_reads_the_filter_as_meant():
    exceptions = [
        (*nftables.network("192.168.1.20/32"), 5432),
        (*nftables.network("10.0.0.0/24"), 0),
    ]

    def check():
        connection = netlink.Connection(netlink.NETLINK_NETFILTER)
        contents = nftables.sets([b"\xcb\x00\x71\x05"], [(b"\xcb\x00\x71\x00", 24)])
        nftables.install(connection, nftables.rules(exceptions), contents)
        listed = subprocess.run(
            ["nft", "list", "ruleset"],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": SYSTEM_PATH},
        ).stdout
        position = -1
        for line in (
            "tcp reject with tcp reset",
            "reject with icmpx admin-prohibited",
            "type filter hook output priority filter; policy drop;",
            'oif "lo" accept',
            "icmpv6 type nd-neighbor-solicit accept",
            "ip daddr 198.18.0.0/24 goto refuse",
            "ip6 daddr fe80::/10 goto refuse",
            "ip daddr 192.168.1.20 tcp dport 5432 accept",
            "ip daddr @own4 goto refuse",
            "ip daddr 10.0.0.0/24 goto permit",
            "ip daddr @near4 goto refuse",
            "ip6 daddr @near6 goto refuse",
            "goto permit",
        ):
            position = listed.find(line, position + 1)
            assert position >= 0, f"{line} is missing or misplaced in {listed}"
        assert "203.0.113.0/24" in listed

    in_namespace(check)


@pytest.mark.parametrize(
    "change",
    [
        "delete chain inet claudebox output",
        "flush chain inet claudebox output",
        "insert rule inet claudebox output accept",
        "add rule inet claudebox refuse accept",
        "add element inet claudebox near4 { 9.9.9.9 }",
        "delete element inet claudebox near4 { 10.0.0.0/8 }",
        "flush set inet claudebox near6",
        "delete table inet claudebox",
        "chain inet claudebox output { policy accept; }",
    ],
)
def test_a_filter_that_is_not_what_was_asked_for_is_noticed(change):
    def check():
        connection = netlink.Connection(netlink.NETLINK_NETFILTER)
        rules, contents = nftables.rules(), nftables.sets()
        nftables.install(connection, rules, contents)
        script = change
        if change.startswith("delete chain"):
            script = "flush chain inet claudebox output; " + change
        subprocess.run(["nft", script], check=True, env={"PATH": SYSTEM_PATH})
        try:
            nftables.verify(connection, rules, contents)
        except OSError:
            return
        raise AssertionError("not noticed")

    in_namespace(check)


def test_a_changed_rule_of_the_same_length_is_noticed():
    def check():
        connection = netlink.Connection(netlink.NETLINK_NETFILTER)
        asked = nftables.rules([(*nftables.network("192.168.1.20/32"), 5432)])
        other = nftables.rules([(*nftables.network("192.168.1.20/32"), 5433)])
        nftables.install(connection, asked, nftables.sets())
        try:
            nftables.verify(connection, other, nftables.sets())
        except OSError as error:
            assert "rule 9" in str(error), error
            return
        raise AssertionError("not noticed")

    in_namespace(check)


def test_networks_added_later_in_any_order_end_as_one_set():
    def check():
        chance = random.Random(11)
        connection = netlink.Connection(netlink.NETLINK_NETFILTER)
        contents = nftables.sets()
        nftables.install(connection, nftables.rules(), contents)
        held = nftables.Filter(connection, contents)
        added = []
        for _ in range(500):
            few = []
            for _ in range(chance.choice([1, 1, 4])):
                few.append(
                    (
                        bytes([20, 44, chance.randrange(4), chance.randrange(256)]),
                        chance.randrange(22, 33),
                    )
                )
                tail = bytes(12) + bytes([chance.randrange(256)])
                few.append(
                    (b"\x20\x03" + bytes([chance.randrange(4)]) + tail, chance.randrange(18, 129))
                )
            held.block([few[0][0]], few)
            added += few
        assert held.block([], added) == 0
        own = [each[0] for each in added]
        wanted = nftables.sets([], added)
        nftables.verify(connection, nftables.rules(), held._contents)
        for name in ("near4", "near6"):
            assert nftables.subtract(wanted[name], held._contents[name]) == []
            extra = nftables.subtract(held._contents[name], wanted[name])
            assert nftables.subtract(extra, nftables.sets(own, [], (), ())[name]) == []

    in_namespace(check)


def test_what_is_neither_tcp_nor_udp_nor_icmp_is_refused_in_the_end():
    last = [expressions for chain, expressions in nftables.rules() if chain == "permit"][-1]
    assert last == [nftables._TO_REFUSE]
    assert nftables.rules()[-1] == ("output", [nftables._TO_PERMIT])
