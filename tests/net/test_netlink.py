"""Netlink messages, and what the kernel says of a host's addresses and routes."""

import random
import subprocess

import pytest
from namespaces import in_namespace
from rig import SYSTEM_PATH

from claudebox.sandbox import netlink, nftables


def ip(commands: str) -> None:
    for command in commands.strip().splitlines():
        subprocess.run(["ip", *command.split()], check=True, env={"PATH": SYSTEM_PATH})


def networks_of_this_namespace() -> tuple:
    own, near = netlink.host_networks(netlink.Connection(netlink.NETLINK_ROUTE))
    contents = nftables.sets(own, near, (), ())
    return contents["own4"] + contents["own6"], contents["near4"] + contents["near6"]


def covers(ranges, address: str) -> bool:
    number = int.from_bytes(nftables.network(f"{address}/0")[0], "big")
    # Both families in one list: IPv4 numbers are below every IPv6 address that the tests use.
    return any(first <= number <= last for first, last in ranges)


def test_attributes_survive_packing():
    packed = (
        netlink.attribute(1, b"abc") + netlink.attribute(2, 7) + netlink.attribute(3, [(4, b"x")])
    )
    found = netlink.attributes(packed)
    assert found[:2] == [(1, b"abc"), (2, b"\0\0\0\7")]
    assert netlink.attributes(found[2][1]) == [(4, b"x")]


def test_garbage_is_read_without_error():
    chance = random.Random(5)
    for _ in range(3000):
        garbage = chance.randbytes(chance.randrange(60))
        netlink.attributes(garbage)
        if len(garbage) >= 12:
            netlink.networks_in(netlink.RTM_NEWROUTE, bytes([2]) + garbage[1:])


def test_a_refusal_carries_the_kernels_words():
    def check():
        route = netlink.Connection(netlink.NETLINK_ROUTE)
        try:
            netlink.link_index(route, "nosuch0")
        except netlink.NetlinkError as error:
            assert error.errno == 19, error
            assert "No such device" in str(error)
        else:
            raise AssertionError("no error")
        try:
            netlink.add_default_route(route, 1, b"\x0a\0\0\1")
        except netlink.NetlinkError as error:
            assert "(" in str(error), "the kernel's own explanation is missing"
        else:
            raise AssertionError("no error")

    in_namespace(check)


def test_an_interface_that_is_down_is_not_taken_for_ready():
    def check():
        ip("link add d0 type veth peer name d1")
        route = netlink.Connection(netlink.NETLINK_ROUTE)
        try:
            netlink.link_index(route, "d0")
        except OSError:
            return
        raise AssertionError("no error")

    in_namespace(check)


def test_the_networks_of_a_host_are_its_addresses_links_routes_and_gateways():
    def check():
        ip(
            """
            link set lo up
            link add d0 type veth peer name d1
            link set d0 up
            link set d1 up
            addr add 203.0.113.5/32 dev d0
            addr add 198.51.100.7/24 dev d0 noprefixroute
            addr add 20.0.0.1 peer 20.0.0.2/32 dev d1
            addr add 2001:db8:1::5/64 dev d0 nodad
            route add 21.0.0.0/8 dev d0
            route add 22.1.0.0/16 dev d0 table 77
            route add default via 23.0.0.1 dev d0 onlink
            route add 0.0.0.0/1 via 23.0.0.2 dev d0 onlink
            route add 24.0.0.0/24 nexthop via 23.0.1.1 dev d0 onlink nexthop via 23.0.1.2 dev d1 onlink
            route add 25.0.0.0/16 via inet6 2001:db8:1::99 dev d0
            route add prohibit 26.0.0.0/8
            -6 route add 2001:db8:2::/48 dev d1
            -6 route add default via 2001:db8:3::1 dev d0 onlink
            -6 route add 2000::/3 via 2001:db8:1::9 dev d0
            """
        )
        own, near = networks_of_this_namespace()
        for address in ("203.0.113.5", "198.51.100.7", "20.0.0.1", "2001:db8:1::5", "127.0.0.1"):
            assert covers(own, address), address
        assert not covers(own, "20.0.0.2")
        for address in (
            "203.0.113.5",
            "198.51.100.200",
            "20.0.0.2",
            "21.255.0.1",
            "22.1.2.3",
            "23.0.0.1",
            "23.0.0.2",
            "23.0.1.1",
            "23.0.1.2",
            "24.0.0.9",
            "25.0.1.1",
            "2001:db8:1::1234",
            "2001:db8:2:3::4",
            "2001:db8:3::1",
        ):
            assert covers(near, address), address
        for address in (
            "8.8.8.8",
            "130.0.0.1",
            "203.0.113.6",
            "26.0.0.1",
            "23.0.0.3",
            "2001:db8:4::1",
            "3000::1",
        ):
            assert not covers(near, address), address

    in_namespace(check)


def test_changes_of_a_host_are_announced():
    def check():
        changes = netlink.Connection(netlink.NETLINK_ROUTE, netlink.GROUPS_ADDRESSES_AND_ROUTES)
        assert changes.notifications() == []
        ip("link set lo up\naddr add 203.0.113.5/32 dev lo\nroute add 21.0.0.0/24 dev lo")
        own, near = [], []
        for kind, payload in changes.notifications():
            more_own, more_near = netlink.networks_in(kind, payload)
            own += more_own
            near += more_near
        assert b"\xcb\0\x71\5" in own
        assert (b"\x15\0\0\0", 24) in near

    in_namespace(check)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\2",
        bytes([2, 24, 0, 0, 2, 0, 0, 0]) + netlink.attribute(1, b"\1\2\3"),
        bytes([2, 99, 0, 0, 2, 0, 0, 0]) + netlink.attribute(1, b"\1\2\3\4"),
        bytes([2, 24, 0, 0, 2, 0, 0, 0]) + netlink.attribute(2, b"\1\2\3\4\5\6"),
    ],
)
def test_an_address_that_cannot_be_understood_is_an_error_and_not_passed_over(body):
    with pytest.raises(netlink.NetlinkError):
        netlink.networks_in(netlink.RTM_NEWADDR, body)


@pytest.mark.parametrize(("sender", "count"), [(0, 1), (4321, 0)])
def test_only_the_kernel_is_listened_to(sender, count):
    """Another process may send to the socket as well; the kernel's own number is 0."""

    class Socket:
        def recvfrom(self, _size):
            message = netlink._HEADER.pack(16, netlink.RTM_NEWADDR, 0, 0, 0)
            return message, (sender, 0)

    connection = object.__new__(netlink.Connection)
    connection.socket = Socket()
    assert len(connection._receive()) == count
