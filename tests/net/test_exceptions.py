"""Exceptions of the inet tier: what --allow opens, and that it opens nothing else."""

import subprocess

import pytest
from rig import PYTHON

from claudebox import Failure
from claudebox.sandbox import inet

LAN = ["192.168.8.10", "2001:db8:8::10"]


def probe(sandbox, *addresses, port=7007) -> dict:
    listed = [["lan", protocol, each, port] for each in addresses for protocol in ("tcp", "udp")]
    results = sandbox.call("probe", listed)
    return {key.partition(" ")[2]: result == "reached" for key, (result, _) in results.items()}


def test_an_allowed_port_is_open_and_its_neighbours_are_not(world, each_sidecar):
    allow = ["192.168.8.10:7007", "[2001:db8:8::10]:7007"]
    with world.launch(sidecars=[each_sidecar], allow=allow) as sandbox:
        opened = probe(sandbox, *LAN, "192.168.7.1", "192.168.8.2", "2001:db8:7::1")
        other_port = sandbox.call("ask", "who.test", False)
        neighbours = probe(sandbox, *LAN, port=53)
    assert {key for key in opened if opened[key]} == {
        f"{protocol} {address}" for protocol in ("tcp", "udp") for address in LAN
    }
    assert other_port["text"] == "router udp"
    assert not any(neighbours.values())


def test_an_allowed_network_is_open_but_not_the_host_in_it(world, flavour, each_sidecar):
    allow = ["192.168.8.0/24", "2001:db8:8::/64"]
    with world.launch(flavour, sidecars=[each_sidecar], allow=allow) as sandbox:
        opened = probe(sandbox, *LAN, "192.168.8.2", "2001:db8:8::2", "192.168.7.1")
    assert {key for key in opened if opened[key]} == {
        f"{protocol} {address}" for protocol in ("tcp", "udp") for address in LAN
    }


def test_an_address_of_the_host_opens_only_by_its_own_name(world, each_sidecar):
    with world.launch(sidecars=[each_sidecar], allow=["192.168.8.2:7007"]) as sandbox:
        opened = probe(sandbox, "192.168.8.2", "192.168.7.2")
    assert {key for key in opened if opened[key]} == {"tcp 192.168.8.2", "udp 192.168.8.2"}


def test_no_exception_opens_the_networks_of_the_sidecars(world, each_sidecar):
    allow = ["198.16.0.0/13", "fc00::/16", "fd00::/16", "192.0.0.0/8"]
    with world.launch(sidecars=[each_sidecar], allow=allow) as sandbox:
        opened = probe(sandbox, "198.18.0.2", "198.18.0.3", "fd00::2", "fd00::3", "fe80::2%tap0")
    assert not any(opened.values())


@pytest.fixture
def loopback_service(world):
    """An echo server on the loopback of the world's host, port 11434, that likes large amounts."""
    program = (
        "import socket,threading\n"
        "s=socket.socket();s.setsockopt(1,2,1);s.bind(('127.0.0.1',11434));s.listen()\n"
        "print('up',flush=True)\n"
        "def echo(c):\n"
        "  while d:=c.recv(65536): c.sendall(d)\n"
        "  c.close()\n"
        "while True: threading.Thread(target=echo,args=(s.accept()[0],),daemon=True).start()\n"
    )
    command = [*world.entering("root"), PYTHON, "-I", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        server.stdout.readline()
        yield server
        server.kill()


def test_an_allowed_port_of_the_hosts_loopback_is_relayed_and_only_that(
    world, flavour, each_sidecar, loopback_service
):
    with world.launch(flavour, sidecars=[each_sidecar], allow=["host:11434"]) as sandbox:
        big = sandbox.call("exchange", 11434, 8 << 20)
        over6 = sandbox.call("exchange", 11434, 1 << 20, "::1")
        other = sandbox.call("exchange", 7007, 256)
    assert big == {"same": True, "size": 8 << 20}
    assert over6 == {"same": True, "size": 1 << 20}
    assert other == {"error": "ECONNREFUSED"}


def test_without_an_exception_the_hosts_loopback_is_closed(world, each_sidecar, loopback_service):
    with world.launch(sidecars=[each_sidecar]) as sandbox:
        assert sandbox.call("exchange", 11434, 256) == {"error": "ECONNREFUSED"}


def test_an_allowed_port_where_nobody_listens_fails_at_once(world, each_sidecar):
    with world.launch(sidecars=[each_sidecar], allow=["host:11435"]) as sandbox:
        result = sandbox.call("exchange", 11435, 256)
    assert result.get("error", "ECONNRESET") in ("ECONNRESET", "EPIPE")
    assert not result.get("size")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("host:11434", ("host", 11434)),
        ("192.168.1.20", ("net", b"\xc0\xa8\x01\x14", 32, 0)),
        ("192.168.1.20:5432", ("net", b"\xc0\xa8\x01\x14", 32, 5432)),
        ("10.0.0.0/24", ("net", b"\x0a\0\0\0", 24, 0)),
        ("10.0.0.0/24:80", ("net", b"\x0a\0\0\0", 24, 80)),
        ("169.254.169.254", ("net", b"\xa9\xfe\xa9\xfe", 32, 0)),
        ("fd12::1", ("net", b"\xfd\x12" + bytes(13) + b"\1", 128, 0)),
        ("[fd12::1]:443", ("net", b"\xfd\x12" + bytes(13) + b"\1", 128, 443)),
        ("[fd12::/32]:443", ("net", b"\xfd\x12" + bytes(14), 32, 443)),
        ("fd12::/32", ("net", b"\xfd\x12" + bytes(14), 32, 0)),
    ],
)
def test_an_exception_is_understood(text, parsed):
    assert inet.parse_allow(text) == parsed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not names"),
        ("db.local:5432", "not names"),
        ("localhost:5432", "host:PORT"),
        ("127.0.0.1:5432", "host:PORT"),
        ("::1", "host:PORT"),
        ("[::1]:80", "host:PORT"),
        ("host:", "1 to 65535"),
        ("host:0", "1 to 65535"),
        ("host:65536", "1 to 65535"),
        ("host:53", "name service"),
        ("host:\u0661", "1 to 65535"),
        ("192.168.1.20:", "1 to 65535"),
        ("192.168.1.20:http", "1 to 65535"),
        ("192.168.1.20:080", "1 to 65535"),
        ("10.0.0.5/24", "10.0.0.0/24"),
        ("10.0.0.0/33", "1 to 32"),
        ("10.0.0.0/", "1 to 32"),
        ("0.0.0.0/0", "1 to 32"),
        ("0.0.0.0/1", "much more"),
        ("2000::/3", "much more"),
        ("224.0.0.251", "multicast"),
        ("255.255.255.255", "multicast"),
        ("0.0.0.0", "the sandbox itself"),
        ("198.18.0.2", "own network"),
        ("fd00::2", "own network"),
        ("fe80::1", "own network"),
        ("fe80::1%eth0", "one link"),
        ("::ffff:192.168.1.20", "IPv4"),
        ("ff02::1", "multicast"),
        ("[fd12::1", "[ADDRESS]:PORT"),
        ("[fd12::1]80", "[ADDRESS]:PORT"),
        ("192.168.1.20 ", "not names"),
        ("192.168.1.20\n", "not names"),
        ("1.2.3", "not names"),
        ("\0", "not names"),
    ],
)
def test_an_exception_that_cannot_work_is_refused_with_the_reason(text, words):
    with pytest.raises(Failure) as failure:
        inet.parse_allow(text)
    assert words in str(failure.value)
