"""Networks that the host gains during a session are blocked too."""

import os
import signal
import time

import pytest


@pytest.fixture
def sandbox(world, each_sidecar):
    with world.launch("unprivileged", sidecars=[each_sidecar]) as made:
        yield made


def reaches(sandbox, address: str) -> bool:
    results = sandbox.call("probe", [["roaming", "tcp", address, 7007]], 1.0)
    return [result for result, _ in results.values()] == ["reached"]


def can_reach(sandbox, address: str) -> bool:
    """Whether one of five attempts arrives: a loaded machine loses some."""
    return any(reaches(sandbox, address) for _ in range(5))


def is_blocked_within_a_second(sandbox, address: str) -> bool:
    end = time.monotonic() + 1
    while reaches(sandbox, address):
        if time.monotonic() > end:
            return False
    return True


@pytest.mark.parametrize(
    ("address", "gain"),
    [
        ("203.0.114.20", ["route", "203.0.114.16/28", "via", "192.168.7.1"]),
        ("203.0.114.33", ["addr", "203.0.114.33/32", "dev", "eth0"]),
        ("2001:db8:ffff::20", ["route", "2001:db8:ffff::20/124", "via", "2001:db8:7::1"]),
        ("2001:db8:ffff::33", ["addr", "2001:db8:ffff::33/128", "dev", "eth0"]),
    ],
    ids=["route", "address", "route6", "address6"],
)
def test_what_the_host_gains_is_blocked_within_a_second(world, sandbox, address, gain):
    kind, *rest = gain
    assert can_reach(sandbox, address)
    family = "-6" if ":" in address else "-4"
    if kind == "route" and family == "-6":
        rest[0] = "2001:db8:ffff::20/128"
    world.run("ip", family, kind, "add", *rest)
    try:
        blocked = is_blocked_within_a_second(sandbox, address)
    finally:
        world.run("ip", family, kind, "del", *rest)
    assert blocked
    assert can_reach(sandbox, "203.0.114.10")


def test_a_connection_that_is_open_already_is_cut_as_well(world, sandbox):
    """The filter looks at packets, not at connections."""
    assert sandbox.call("keep_connection", "203.0.114.50") == "answered"
    world.run("ip", "route", "add", "203.0.114.48/28", "via", "192.168.7.1")
    try:
        assert is_blocked_within_a_second(sandbox, "203.0.114.50")
        assert sandbox.call("use_connection", "203.0.114.50") != "answered"
    finally:
        world.run("ip", "route", "del", "203.0.114.48/28", "via", "192.168.7.1")


def test_more_networks_at_once_than_the_socket_holds_are_all_blocked(world, sandbox):
    """A launcher that was stopped meanwhile: the kernel drops notifications, and it asks again."""
    last = "203.0.114.249"
    routes = [f"5.{n >> 8}.{n & 255}.2/32" for n in range(1500)] + [last]
    commands = [f"route add {each} via 192.168.7.1" for each in routes]
    assert can_reach(sandbox, last)
    launcher = sandbox.reports[0]["launcher"]
    os.kill(launcher, signal.SIGSTOP)
    try:
        world.batch(commands)
        os.kill(launcher, signal.SIGCONT)
        assert is_blocked_within_a_second(sandbox, last)
    finally:
        os.kill(launcher, signal.SIGCONT)
        world.batch([each.replace("add", "del") for each in commands])
    assert can_reach(sandbox, "203.0.114.10")
