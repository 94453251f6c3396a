"""From the start of the inet tier to its end, and every way in which that can go wrong."""

import json
import os
import resource
import select
import signal
import subprocess
import time

import pytest
from rig import HERE, PYTHON, SIDECARS, SYSTEM_PATH, open_directory, sidecar

from claudebox import Failure
from claudebox.sandbox import inet, inet_namespaces

KILLS = 200


@pytest.fixture
def program():
    """Makes a shell script to stand in for a sidecar."""
    with open_directory() as directory:

        def make(name: str, script: str) -> list:
            path = directory / name
            path.write_text(f"#!/bin/sh\nPATH={SYSTEM_PATH}\n{script}\n")
            path.chmod(0o755)
            return [name, str(path)]

        yield make


def report_of(world, **config) -> dict:
    with world.launch(payload=["/bin/echo", "the payload ran"], **config) as sandbox:
        report = sandbox.end()
        report["said"] = "".join(sandbox.other)
        return report


def test_the_exit_status_is_the_payloads(world, flavour, each_sidecar):
    payload = ["/bin/sh", "-c", "exit 7"]
    with world.launch(flavour, sidecars=[each_sidecar], payload=payload) as sandbox:
        report = sandbox.end()
    assert report["status"] == 7


def test_the_payload_is_the_user_and_has_no_capabilities(world, flavour, each_sidecar):
    payload = ["/bin/sh", "-c", "id -u; grep CapEff /proc/self/status"]
    with world.launch(flavour, sidecars=[each_sidecar], payload=payload) as sandbox:
        sandbox.end()
    uid, capabilities = "".join(sandbox.other).split("\n", 1)
    assert uid == ("0" if flavour == "root" else "12345")
    assert capabilities.split() == ["CapEff:", "0000000000000000"]


def test_no_sidecar_installed_is_refused_with_what_to_install(world):
    report = report_of(world, sidecars=[])
    assert "neither pasta nor slirp4netns is installed" in report["failure"]
    assert "passt" in report["todo"]
    assert report["said"] == ""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'no tap for you' >&2; exit 3", "exit status 3: no tap for you"),
        ("kill -9 $$", "killed by signal 9"),
        ("sleep 100", "not ready after 0.5 s"),
        ("exec >&- ; sleep 100", "not ready after 0.5 s"),
        ("echo 1; sleep 100", "the interface tap0 is down"),
        ("trap '' TERM INT HUP; sleep 100 & sleep 100", "not ready after 0.5 s"),
    ],
    ids=["exits", "dies", "hangs", "closes its stdout", "lies", "clings"],
)
def test_a_pasta_that_fails_is_replaced_by_slirp4netns(world, program, script, words):
    fake = program("pasta", script)
    report = report_of(world, sidecars=[fake, sidecar("slirp4netns")], timeout=0.5)
    assert report["sidecar"] == "slirp4netns"
    assert report["said"] == "the payload ran\n"
    alone = report_of(world, sidecars=[fake], timeout=0.5)
    assert words in alone["failure"]
    assert alone["said"] == ""
    assert alone["left"] is None


@pytest.mark.parametrize("delay", [0.001, 0.004])
def test_a_pasta_that_is_killed_while_starting_is_replaced_by_slirp4netns(world, program, delay):
    killed = program("pasta", f'timeout -s KILL {delay} pasta "$@"')
    report = report_of(world, sidecars=[killed, sidecar("slirp4netns")], timeout=3)
    assert report["sidecar"] == "slirp4netns"
    assert report["said"] == "the payload ran\n"


def test_a_sidecar_that_is_not_there_is_named(world):
    report = report_of(world, sidecars=[["pasta", "/nonexistent/pasta"]])
    assert "pasta: exit status 127: [Errno 2] No such file" in report["failure"]


def test_if_both_fail_both_are_quoted_and_the_payload_never_runs(world, program):
    fakes = [
        program("pasta", "echo one >&2; exit 1"),
        program("slirp4netns", "echo two >&2; exit 1"),
    ]
    report = report_of(world, sidecars=fakes)
    assert "pasta: exit status 1: one; slirp4netns: exit status 1: two" in report["failure"]
    assert "--network none" in report["todo"]
    assert report["said"] == ""
    assert report["left"] is None


def test_a_talkative_sidecar_neither_blocks_nor_floods_the_message(world, program):
    report = report_of(
        world, sidecars=[program("pasta", "yes noise | head -c 1000000 >&2; exit 1")]
    )
    assert 100 < len(report["failure"]) < 1000


@pytest.mark.parametrize("broken", ["filter refused", "filter incomplete"])
def test_without_the_whole_filter_nothing_starts(world, program, broken):
    report = report_of(world, broken=broken, sidecars=[program("pasta", "echo started >&2")])
    assert "could not be installed" in report["failure"]
    assert "started" not in report["failure"]
    assert "nftables" in report["todo"]
    assert report["said"] == ""
    assert report["left"] is None


@pytest.mark.parametrize(
    ("broken", "words"),
    [("exec", "No such file"), ("return", "did not start")],
    ids=["exec", "return"],
)
def test_a_payload_that_cannot_be_executed_is_a_failure(world, broken, words):
    report = report_of(world, broken=broken)
    assert words in report["failure"]
    assert report["left"] is None


def test_a_holder_that_hangs_is_given_up(world):
    report = report_of(world, broken="holder hangs", timeout=0.5)
    assert "does not answer" in report["failure"]
    assert report["left"] is None


def test_a_sidecar_killed_in_the_session_leaves_it_offline_and_says_so_once(
    world, flavour, each_sidecar
):
    with world.launch(flavour, sidecars=[each_sidecar], allow=["host:11434"]) as sandbox:
        internet = [
            ["internet", "tcp", each, 7007] for each in ("203.0.114.10", "2001:db8:ffff::10")
        ]
        before = sandbox.call("probe", internet)
        os.kill(sandbox.reports[0]["sidecar_pid"], signal.SIGKILL)
        time.sleep(0.3)
        after = sandbox.call("probe", internet)
        name, seconds = sandbox.call("resolve", "www.test")
        report = sandbox.end()
    assert [result for result, _ in before.values()] == ["reached"] * 2
    assert [result for result, _ in after.values()] == ["ENETUNREACH"] * 2
    assert isinstance(name, str)
    assert seconds < 0.5
    assert len(report["offline"]) == 1
    assert each_sidecar[0] in report["offline"][0]
    assert report["status"] == 0


def test_neither_descriptors_nor_processes_are_left_after_a_session(world, each_sidecar):
    with world.launch(sidecars=[each_sidecar], allow=["host:11434"]) as sandbox:
        for name in ("a.test", "b.test"):
            sandbox.call("ask", name, True)
        sidecar_pid = sandbox.reports[0]["sidecar_pid"]
        report = sandbox.end()
    # stdin, stdout, stderr, epoll, the abstract socket, a pidfd and the listing's own
    assert report["descriptors"] <= 8
    assert not os.path.exists(f"/proc/{sidecar_pid}")


def test_the_sidecar_does_not_hear_the_terminals_signals(world, each_sidecar):
    with world.launch(sidecars=[each_sidecar]) as sandbox:
        started = sandbox.reports or (sandbox.call("resolve", "a.test") and sandbox.reports)
        pid = started[0]["sidecar_pid"]
        assert os.getsid(pid) == pid != os.getsid(started[0]["launcher"])


@pytest.mark.parametrize(
    ("gone", "reached"),
    [
        (["-6"], ["203.0.114.10"]),
        (["-4"], ["2001:db8:ffff::10"]),
        (["-4", "-6"], []),
    ],
    ids=["no IPv6", "no IPv4", "neither"],
)
def test_a_host_with_one_family_or_without_a_default_route_has_what_it_has(
    world, each_sidecar, gone, reached
):
    gateways = {"-4": "192.168.7.1", "-6": "2001:db8:7::1"}
    for family in gone:
        world.run("ip", family, "route", "del", "default")
    try:
        sidecars = [each_sidecar, sidecar("slirp4netns")]
        with world.launch(sidecars=sidecars) as sandbox:
            both = ("203.0.114.10", "2001:db8:ffff::10")
            results = sandbox.call("probe", [["internet", "tcp", each, 7007] for each in both])
    finally:
        for family in gone:
            world.run("ip", family, "route", "add", "default", "via", gateways[family])
    assert [
        key.split()[-1] for key, (result, _) in results.items() if result == "reached"
    ] == reached


def test_a_launcher_killed_at_any_moment_leaves_nothing(world):
    """Both sidecars at once; see kill_loop.py."""
    loops = []
    for number, name in enumerate(SIDECARS):
        options = {"sidecar": sidecar(name), "resolv_conf": str(world.resolv_conf), "seed": number}
        options.update(kills=KILLS, longest=0.35)
        command = [*world.entering("unprivileged"), PYTHON, "-I", "-S", str(HERE / "kill_loop.py")]
        environment = {**os.environ, "PATH": SYSTEM_PATH}
        loops.append(
            subprocess.Popen(
                [*command, json.dumps(options)], stdout=subprocess.PIPE, text=True, env=environment
            )
        )
    for each in loops:
        outcome = json.loads(each.communicate(timeout=300)[0])
        assert outcome["left"] == []
        # Neither all before the payload ran nor all after: the moments were spread.
        assert KILLS * 0.1 < outcome["complete"] < KILLS * 0.95


def test_the_sidecars_are_started_with_every_option_that_closes_them():
    slirp = inet._slirp_options(5, 6)
    for option in (
        "--disable-host-loopback",
        "--disable-dns",
        "--enable-sandbox",
        "--enable-seccomp",
    ):
        assert option in slirp
    pasta = inet._pasta_options(1)
    for option in ("-t", "-u", "-T", "-U"):
        assert pasta[pasta.index(option) + 1] == "none"
    assert "--no-map-gw" in pasta


def test_a_process_that_ends_before_the_network_is_made_is_noticed(monkeypatch):
    def rang(_number, _frame):
        raise AssertionError("its end was not noticed")

    monkeypatch.setattr(inet_namespaces, "_make_namespaces", lambda *_: os._exit(3))
    signal.signal(signal.SIGALRM, rang)
    signal.alarm(20)
    try:
        with pytest.raises(OSError, match="has ended"):
            inet_namespaces.Namespaces(lambda: None).wait_for_holder()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_holder_that_was_begun_in_the_last_moment_ends_as_well(monkeypatch):
    fork = inet_namespaces.libc.fork_sibling

    def fork_and_hang():
        pid = fork()
        if pid:
            time.sleep(20)
        return pid

    monkeypatch.setattr(inet_namespaces.libc, "fork_sibling", fork_and_hang)
    reader, held = os.pipe()
    os.set_inheritable(held, True)
    namespaces = inet_namespaces.Namespaces(lambda: os.execv("/bin/sleep", ["sleep", "20"]))
    os.close(held)
    time.sleep(0.3)
    namespaces.end()
    assert select.select([reader], [], [], 5)[0]
    os.close(reader)


def test_sockets_that_there_is_no_room_for_are_an_error():
    namespaces = inet_namespaces.Namespaces(lambda: os.execv("/bin/sleep", ["sleep", "20"]))
    free = os.open("/", os.O_RDONLY)
    os.close(free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            namespaces.wait_for_holder()
            namespaces.sockets()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        namespaces.end()


def test_a_join_that_the_kernel_refuses_is_a_failure_and_is_released():
    class Joining:
        closed = False

        def finish(self, _timeout):
            raise OSError(5, "no more")

        def close(self):
            Joining.closed = True

    session = inet.InetSession(None, None, None, 1.0)
    session._joining = Joining()
    with pytest.raises(Failure, match="network could not be made: .*no more"):
        session.wait_until_joined()
    assert Joining.closed


@pytest.mark.parametrize(
    ("call", "what", "words"),
    [
        (
            "unshare",
            lambda: inet_namespaces._make_namespaces(0, 0),
            "does not let you make namespaces",
        ),
        ("mount_proc", lambda: inet_namespaces._mount_proc(), "does not let you mount a new /proc"),
    ],
)
def test_a_host_that_forbids_a_step_is_named(monkeypatch, call, what, words):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(inet_namespaces.libc, call, refuse)
    with pytest.raises(Failure, match=words):
        what()
