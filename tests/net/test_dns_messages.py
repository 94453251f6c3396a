"""Which messages the DNS relay takes for queries and answers, and where it would send them."""

import _socket
import random
import socket
import struct

import pytest
from inside import dns_query

from claudebox.sandbox import dns_relay, events


def test_an_ordinary_query_is_forwarded():
    assert dns_relay.is_query(dns_query("www.example.org", 1))
    assert dns_relay.is_query(dns_query("", 2))
    with_options = bytearray(dns_query("www.example.org", 1) + b"\0\0\x29\x10\0\0\0\0\0\0\0")
    with_options[11] = 1
    assert dns_relay.is_query(bytes(with_options))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        dns_query("a.test")[:12],
        dns_query("a.test")[:-1],
        dns_query("a.test")[:2] + b"\x81\0" + dns_query("a.test")[4:],
        dns_query("a.test")[:2] + b"\x29\0" + dns_query("a.test")[4:],
        dns_query("a.test")[:4] + b"\0\2" + dns_query("a.test")[6:],
        dns_query("a.test")[:4] + b"\0\0" + dns_query("a.test")[6:],
        dns_query("a.test")[:12] + b"\xc0\x0c\0\1\0\1",
        dns_query("a.test")[:12] + b"\x3f" * 300,
        dns_query(".".join(["a" * 63] * 5)),
        dns_query("a.test", 252),
        dns_query("a.test", 251),
        dns_query("a.test") + bytes(5000),
    ],
    ids=["empty", "header", "cut", "answer", "update", "two", "none", "pointer", "endless", "long",
         "axfr", "ixfr", "large"],
)  # fmt: skip
def test_anything_else_is_not(message):
    assert not dns_relay.is_query(message)


def test_noise_is_judged_without_error():
    chance = random.Random(2)
    for _ in range(5000):
        noise = bytearray(chance.randbytes(chance.randrange(80)))
        if len(noise) > 6:
            noise[4:6] = b"\0\1"
        assert dns_relay.is_query(bytes(noise)) in (True, False)
        assert dns_relay.is_answer(dns_query("a.test"), bytes(noise)) in (True, False)


def test_an_answer_has_the_id_and_the_question_of_its_query():
    query = dns_query("www.Example.org", 1)
    answer = query[:2] + b"\x81\x80" + query[4:]
    assert dns_relay.is_answer(query, answer)
    assert dns_relay.is_answer(query, answer.replace(b"Example", b"eXAMPLE"))
    assert dns_relay.is_answer(query, struct.pack(">HHHHHH", 0x1234, 0x8181, 0, 0, 0, 0))
    assert not dns_relay.is_answer(query, b"\xff" + answer[1:])
    assert not dns_relay.is_answer(query, query)
    assert not dns_relay.is_answer(
        query, answer.replace(b"Example", b"example2"[:7]).replace(b"org", b"com")
    )
    assert not dns_relay.is_answer(query, b"")


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("nameserver 192.0.2.1\n", ["192.0.2.1"]),
        (
            "# nameserver 192.0.2.9\nsearch x\n nameserver\t192.0.2.1 # c\nnameserver ::1",
            ["192.0.2.1", "::1"],
        ),
        ("nameserver a.b.c\nnameserver dns.example\n", ["127.0.0.1"]),
        ("", ["127.0.0.1"]),
        ("\xff\x00 nameserver\n", ["127.0.0.1"]),
        (
            "".join(f"nameserver 192.0.2.{n}\n" for n in range(9)),
            ["192.0.2.0", "192.0.2.1", "192.0.2.2"],
        ),
        ("nameserver fe80::1%lo\n", ["fe80::1%lo"]),
    ],
)
def test_the_resolvers_are_those_of_resolv_conf(tmp_path, text, addresses):
    path = tmp_path / "resolv.conf"
    path.write_text(text, encoding="latin-1")
    found = dns_relay.resolvers(str(path))
    assert [address[1] for _, address in found] == [53] * len(addresses)
    assert [address[0] for _, address in found] == [each.partition("%")[0] for each in addresses]
    if "%" in addresses[0]:
        assert found[0][1][3] == 1


def test_without_a_resolv_conf_it_is_the_local_one():
    assert [address[0] for _, address in dns_relay.resolvers("/nonexistent")] == ["127.0.0.1"]


def test_what_does_not_answer_the_query_is_not_passed_on_and_the_next_is_waited_for():
    query = dns_query("a.test")
    right = query[:2] + b"\x81\x80" + query[4:]
    arriving, passed_on = [b"\xff\xff" + right[2:], b"", query, right], []

    class Socket:
        def recv(self, _size):
            return arriving.pop(0)

    class Lookup:
        def __init__(self):
            self.query = query

        def answered(self, _attempt, answer):
            passed_on.append(answer)

    attempt = object.__new__(dns_relay._Datagram)
    attempt.socket, attempt.lookup = Socket(), Lookup()
    while arriving:
        attempt._receive(None)
    assert passed_on == [right]


@pytest.fixture
def relay(tmp_path):
    """A relay on loopback whose only resolver cannot be sent anything; and its loop."""
    configuration = tmp_path / "resolv.conf"
    configuration.write_text("nameserver fe80::1\n")
    loop = events.Loop()
    sockets = []
    for kind in (_socket.SOCK_DGRAM, _socket.SOCK_STREAM):
        sockets.append(_socket.socket(_socket.AF_INET, kind))
        sockets[-1].bind(("127.0.0.1", 0))
    sockets[1].listen(1)
    made = dns_relay.DnsRelay(loop, *sockets, str(configuration))
    made.addresses = [each.getsockname() for each in sockets]
    yield made
    made.close()
    loop.close()


def test_many_queries_in_one_stream_are_answered_one_after_the_other(relay):
    query = dns_query("", 1)
    message = len(query).to_bytes(2, "big") + query
    count = (dns_relay.MAX_QUERY + 2) // len(message)
    with socket.create_connection(relay.addresses[1]) as client:
        client.sendall(message * count)
        relay.loop.call_in(0.5, relay.loop.stop)
        relay.loop.run()
        client.setblocking(False)
        answers = client.recv(1 << 16)
    # Each a SERVFAIL of a header and the question.
    one = 2 + 12 + len(dns_relay.question_of(query))
    codes = [answers[start + 5] & 15 for start in range(0, len(answers), one)]
    assert codes == [2] * count


@pytest.mark.parametrize("query", [b"garbage", dns_query("a.test")], ids=["garbage", "query"])
def test_a_flood_does_not_keep_the_loop_from_other_work(relay, query):
    class Flood:
        count = 0

        def recvfrom(self, _size):
            self.count += 1
            assert self.count < 10_000
            return query, ("127.0.0.1", 9)

        def sendto(self, *_):
            pass

        def fileno(self):
            return -1

    kept, relay._datagrams = relay._datagrams, Flood()
    try:
        relay._receive(events.READ)
    finally:
        relay._datagrams = kept
