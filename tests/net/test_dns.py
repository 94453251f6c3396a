"""Names in the inet tier: whatever the host's resolvers are, and whatever is sent to the relay."""

import time

import pytest
from rig import sidecar

LINK_LOCAL = "fe80::53%eth1"
DEAD = "192.168.8.200"  # nobody has this address


@pytest.fixture
def sandbox(world):
    with world.launch(sidecars=[sidecar("slirp4netns")]) as made:
        yield made
    world.set_resolvers("192.168.7.1")


def test_names_resolve_by_the_c_library(sandbox):
    found, seconds = sandbox.call("resolve", "www.test")
    assert found == ["2001:db8:ffff::10", "203.0.113.10"]
    assert seconds < 1


@pytest.mark.parametrize("stream", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(
    ("resolver", "place"),
    [
        ("127.0.0.53", "host"),
        ("::1", "host"),
        ("192.168.8.10", "lan"),
        ("192.168.7.1", "router"),
        ("100.64.0.1", "tail"),
        ("2001:db8:8::10", "lan"),
        (LINK_LOCAL, "lan"),
        ("172.20.0.53", "vpn"),
    ],
)
def test_the_hosts_resolver_answers(world, sandbox, resolver, place, stream):
    world.set_resolvers(resolver)
    answer = sandbox.call("ask", "who.test", stream)
    assert answer["text"] == f"{place} {'tcp' if stream else 'udp'}"


def test_a_change_of_resolv_conf_is_followed(world, sandbox):
    world.set_resolvers("192.168.8.10")
    assert sandbox.call("ask", "who.test")["text"] == "lan udp"
    world.set_resolvers("172.20.0.53")
    assert sandbox.call("ask", "who.test")["text"] == "vpn udp"


@pytest.mark.parametrize("stream", [False, True], ids=["udp", "tcp"])
def test_a_dead_first_resolver_costs_little(world, sandbox, stream):
    world.set_resolvers(DEAD, "nonsense", "192.168.8.10")
    answer = sandbox.call("ask", "who.test", stream)
    assert answer["text"].startswith("lan")
    assert answer["seconds"] < 4.5


def test_a_resolver_that_refuses_is_passed_at_once(world, sandbox):
    world.set_resolvers("127.9.9.9", "192.168.8.10")
    world.run("ip", "route", "add", "unreachable", "127.9.9.9", "table", "local")
    answer = sandbox.call("ask", "who.test")
    assert answer["text"] == "lan udp"
    assert answer["seconds"] < 1


def test_a_resolver_that_fails_makes_place_for_the_next(world, sandbox):
    world.set_resolvers("192.168.7.1", "192.168.8.10")
    answer = sandbox.call("ask", "servfail.lan")
    assert (answer["text"], answer["code"]) == ("lan udp", 0)


def test_an_answer_that_all_resolvers_refuse_is_a_failure(sandbox):
    assert sandbox.call("ask", "servfail.nowhere")["code"] == 2


def test_silence_of_every_resolver_is_a_failure_before_the_c_library_gives_up(world, sandbox):
    world.set_resolvers(DEAD)
    answer = sandbox.call("ask", "who.test")
    assert answer["code"] == 2
    assert answer["seconds"] < 5


def test_large_answers_arrive_over_both_protocols(sandbox):
    assert sandbox.call("ask", "big4.test")["size"] > 4096
    assert sandbox.call("ask", "big.test", True)["size"] > 35000


def test_a_truncated_answer_is_passed_on_for_the_asker_to_use_tcp(sandbox):
    assert sandbox.call("ask", "truncated.test")["truncated"]
    assert sandbox.call("ask", "truncated.test", True)["text"] == "router tcp"


@pytest.mark.parametrize(
    "address",
    ["192.168.8.10", "100.64.0.1", "169.254.169.254", "203.0.113.77", "2001:db8:8::10", "fd12::1"],
)
def test_a_name_that_means_a_blocked_address_resolves_and_fails_to_connect(world, sandbox, address):
    name = f"at-{address.replace(':', '-')}.test"
    found, _ = sandbox.call("resolve", name)
    assert address in found
    world.forget()
    results = sandbox.call("probe", [["rebinding", "tcp", address, 7007]])
    assert [result for result, _ in results.values()] == ["ECONNREFUSED"]
    assert world.log() == []


def test_the_relay_survives_garbage_and_forwards_none_of_it(world, sandbox):
    world.forget()
    sandbox.call("pour_garbage", 1)
    assert sandbox.call("ask", "who.test")["text"] == "router udp"
    assert sandbox.call("ask", "who.test", True)["text"] == "router tcp"
    assert {entry["place"] for entry in world.log()} == {"router"}


@pytest.mark.parametrize("kind", [251, 252], ids=["ixfr", "axfr"])
def test_a_zone_transfer_is_refused_without_asking_anybody(world, sandbox, kind):
    world.forget()
    assert sandbox.call("ask", "zone.test", False, kind)["code"] == 5
    assert "error" in sandbox.call("ask", "zone.test", True, kind)
    assert world.log() == []


def test_an_idle_session_wakes_nobody(world):
    """The launcher is not scheduled once while nothing happens."""
    with world.launch(sidecars=[sidecar("pasta")]) as sandbox:
        assert sandbox.call("ask", "who.test")["text"] == "router udp"
        time.sleep(0.3)
        launcher = sandbox.reports[0]["launcher"]
        before = switches(launcher)
        time.sleep(2)
        assert switches(launcher) == before


def switches(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
