"""What the inet tier reaches and what it does not: asked inside, and read in the servers' logs."""

import re
import subprocess

from rig import sidecar

INTERNET = {
    "internet": ["203.0.114.10", "2001:db8:ffff::10"],
    "internet beside the host's public address": ["203.0.113.10"],
}
# Reached when the filter is off: the world has a server for each of them.
NEARER = {
    "lan": ["192.168.8.10", "2001:db8:8::10"],
    "gateway": ["192.168.7.1", "2001:db8:7::1"],
    "host": ["192.168.7.2", "192.168.8.2", "2001:db8:7::2", "2001:db8:8::2"],
    "public address of the host": ["203.0.113.77", "2001:db8:77::77"],
    "private": ["10.1.2.3", "172.16.5.5", "192.168.99.9"],
    "vpn": ["10.8.0.1", "172.20.1.1", "fd10:8::1"],
    "public network through the vpn": ["198.51.100.7", "2001:db8:99::7"],
    "tailnet": ["100.64.0.1", "100.100.1.1", "fd7a:115c:a1e0::53", "fd7a:115c:a1e0::1"],
    "magic dns": ["100.64.100.100"],
    "metadata": ["169.254.169.254", "192.0.0.192", "fd12:ec2::254"],
    "unique local": ["fd12:3456::1", "fc00::1"],
    "6to4": ["2002:c0a8:80a::1"],
    "teredo": ["2001:0:c0a8:80a::1"],
    "nat64": ["64:ff9b::c0a8:80a"],
    "mapped": ["::ffff:192.168.8.10"],
    "unassigned": ["5f00::1", "100::1"],
}
ELSEWHERE = {
    "loopback": ["127.0.0.1", "127.0.0.2", "::1", "0.0.0.0"],
    "gateway of the sidecar": ["198.18.0.2", "198.18.0.3", "fd00::2", "fd00::3", "fe80::2%tap0"],
    "benchmark": ["198.18.5.5", "198.19.5.5"],
    "multicast": ["224.0.0.251", "239.255.255.250", "ff02::1%tap0", "ff0e::1"],
    "broadcast": ["255.255.255.255"],
    "reserved": ["240.1.1.1"],
    "site local": ["fec0::1"],
    "compatible": ["::192.168.8.10"],
}
PROTOCOLS = ("tcp", "udp", "icmp")
ECHO_PORT = 7007
OWN_LOOPBACK = ("127.0.0.1", "127.0.0.2", "::1", "0.0.0.0")  # the sandbox's own answers itself


def not_passed_on(name: str) -> set:
    """A known limit of slirp4netns: before 4.8 its libslirp passes no ICMPv6 echo requests on."""
    if name == "pasta":
        return set()
    said = subprocess.check_output([sidecar(name)[1], "--version"], text=True)
    version = re.search(r"libslirp: (\d+)\.(\d+)", said).groups()
    if tuple(map(int, version)) >= (4, 8):
        return set()
    return {"internet icmp 2001:db8:ffff::10"}


def targets(*classes) -> list:
    return [
        [name, protocol, address, ECHO_PORT]
        for group in classes
        for name, addresses in group.items()
        for address in addresses
        for protocol in PROTOCOLS
        if not (protocol == "icmp" and address in OWN_LOOPBACK)
        and not (protocol == "icmp" and address.startswith("::ffff"))
    ]


def reached(results: dict) -> set:
    return {key for key, (result, _) in results.items() if result == "reached"}


def keys(listed: list) -> set:
    return {f"{name} {protocol} {address}" for name, protocol, address, _ in listed}


def test_the_internet_is_reached_and_nothing_nearer(world, flavour, each_sidecar):
    world.forget()
    with world.launch(flavour, sidecars=[each_sidecar]) as sandbox:
        results = sandbox.call("probe", targets(INTERNET, NEARER, ELSEWHERE))
        report = sandbox.end()
    expected = keys(targets(INTERNET)) - not_passed_on(each_sidecar[0])
    assert reached(results) == expected
    assert {entry["token"] for entry in world.log()} == expected
    assert report["sidecar"] == each_sidecar[0]
    assert report["status"] == 0
    assert report["offline"] == []


def test_a_refused_connection_fails_at_once(world, each_sidecar):
    with world.launch(sidecars=[each_sidecar]) as sandbox:
        results = sandbox.call("probe", [each for each in targets(NEARER) if each[1] == "tcp"])
    slow = {key: result for key, result in results.items() if result[1] > 0.5}
    assert slow == {}
    assert {result for result, _ in results.values()} == {"ECONNREFUSED"}


def test_without_the_filter_everything_nearer_is_reached(world, flavour, each_sidecar):
    """The negative control: it is the filter, not the world, that makes the matrix green."""
    world.forget()
    with world.launch(flavour, sidecars=[each_sidecar], broken="filter off") as sandbox:
        found = set()
        for _ in range(4):
            # A loaded machine loses some.
            found |= set(reached(sandbox.call("probe", targets(INTERNET, NEARER))))
            if all(any(each.startswith(f"{name} tcp") for each in found) for name in NEARER):
                break
    logged = {entry["token"] for entry in world.log()}
    for name in NEARER:
        assert any(each.startswith(f"{name} tcp") for each in found), name
        assert any(each.startswith(f"{name} ") for each in logged), name
    assert len(found & keys(targets(NEARER))) > 0.8 * len(
        [each for each in targets(NEARER) if each[1] != "icmp"]
    )


def test_no_attack_from_inside_undoes_the_filter(world, flavour, each_sidecar):
    world.forget()
    with world.launch(flavour, sidecars=[each_sidecar]) as sandbox:
        attacks = sandbox.call("attack", seconds=90)
        after = sandbox.call("probe", targets(INTERNET, NEARER))
    assert len(attacks) >= 40
    done = {each: text for each, text in attacks.items() if not text.startswith("refused")}
    assert done == {}
    assert reached(after) == keys(targets(INTERNET)) - not_passed_on(each_sidecar[0])
    log = [each for each in world.log() if not each["token"].startswith("internet")]
    assert [each for each in log if each["to"] not in ("203.0.114.10", "2001:db8:ffff::10")] == []
