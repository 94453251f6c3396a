"""The network tiers as a session sees them; what `inet` reaches is tested in tests/net."""

import os
import signal
import socket
import subprocess
import threading
import time

import pytest
from test_lifecycle import Terminal, processes_with, wait_until

SIDECARS = ("pasta", "slirp4netns")


@pytest.fixture
def service():
    """A TCP service on the host's loopback that says hello; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.sendall(b"hello\n")
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def connect(port: int) -> str:
    """Return a shell script that prints what the host's loopback service says."""
    return f"timeout 5 bash -c 'cat < /dev/tcp/127.0.0.1/{port}'"


def test_full_reaches_a_service_of_the_host(world, service):
    assert world.inside(connect(service)).stdout == "hello\n"


@pytest.mark.parametrize("tier", ["none", "inet"])
def test_other_tiers_do_not_reach_a_service_of_the_host(world, service, tier):
    begin = time.monotonic()
    result = world.inside(connect(service), "--network", tier)
    assert result.stdout == ""
    assert "Connection refused" in result.stderr
    assert time.monotonic() - begin < 10


def test_inet_reaches_the_one_port_of_the_host_that_is_allowed(world, service):
    options = ("--network", "inet", "--allow", f"host:{service}")
    result = world.inside(connect(service), *options)
    assert result.stdout == "hello\n"
    assert f"allowed beyond the tier: host:{service}" in result.stderr


@pytest.mark.parametrize("tier", ["none", "inet"])
def test_abstract_sockets_of_the_host_are_out_of_reach(world, tier):
    name = f"claudebox-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        script = (
            "python3 -c 'import socket; s = socket.socket(socket.AF_UNIX);"
            f' s.connect("\\0{name}"); print("connected")\''
        )
        assert "refused" in world.inside(script, "--network", tier).stderr


def test_names_and_connections_fail_at_once_in_none(world):
    begin = time.monotonic()
    result = world.inside(
        "getent hosts example.org; echo $?; cat < /dev/tcp/192.0.2.1/80; echo $?",
        "--network",
        "none",
    )
    assert result.stdout == "2\n1\n"
    assert "Network is unreachable" in result.stderr
    assert time.monotonic() - begin < 5


def test_loopback_works_in_every_tier(world):
    script = (
        'python3 -c \'import socket; s = socket.create_server(("127.0.0.1", 0));'
        ' socket.create_connection(s.getsockname()); print("ok")\''
    )
    for tier in ("none", "inet", "full"):
        assert world.inside(script, "--network", tier).stdout == "ok\n", tier


@pytest.mark.parametrize("sidecar", SIDECARS)
def test_inet_starts_with_either_sidecar(world, sidecar):
    plan = world.run(
        "claudebox", "plan", "--network", "inet", "--shell", "--", "-c", "ls /sys; echo up"
    )
    text = plan.stdout
    other = SIDECARS[1 - SIDECARS.index(sidecar)]
    text = text.replace(f'"{other}",\n      ', "").replace(f',\n      "{other}"', "")
    assert other not in text
    result = subprocess.run(
        ["claudebox-run", "-"],
        input=text,
        cwd=world.project,
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == "up\n", result.stderr


def test_inet_works_where_no_process_has_the_number_2(world):
    # bwrap looks in /proc for its child, which is the second process of its pid namespace. On a host
    # some thread of the kernel has that number; in a container nobody may have it.
    script = "/bin/true; test ! -e /proc/2 && claudebox -y --network inet --shell -- -c 'echo up'"
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
    result = world.run(*unshare, "sh", "-c", script)
    assert result.stdout == "up\n", result.stderr


def test_inet_says_so_where_no_new_proc_can_be_mounted(world):
    script = (
        "mount --bind /dev/null /proc/keys && exec unshare --user --map-root-user"
        " claudebox -y --network inet --shell -- -c 'echo up'"
    )
    unshare = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc")
    result = world.run(*unshare, "sh", "-c", script)
    assert "does not let you mount a new /proc" in result.stderr
    assert result.stdout == ""
    assert result.returncode == 1


@pytest.mark.parametrize("status", [0, 42])
def test_the_exit_status_comes_back_in_inet(world, status):
    assert world.inside(f"exit {status}", "--network", "inet").returncode == status


def test_signals_reach_the_payload_in_inet(world):
    script = "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    session = world.start("claudebox", "-y", "--network", "inet", "--shell", "--", "-c", script)
    assert session.stdout.readline() == "up\n"
    session.send_signal(signal.SIGTERM)
    output, _ = session.communicate(timeout=10)
    assert (output, session.returncode) == ("caught\n", 9)


def test_ctrl_c_and_ctrl_z_work_in_inet(world):
    terminal = Terminal(world, "bash", "--norc", "-i")
    command = "echo u''p; sleep 1; echo co''ntinued; exec sleep 60"
    terminal.type(f"claudebox -y --network inet --shell -- -c '{command}'\n")
    terminal.wait_for("up\r\n")
    terminal.type("\x1a")
    terminal.wait_for("Stopped")
    terminal.type("fg\n")
    terminal.wait_for("continued")
    time.sleep(0.3)
    terminal.type("\x03")
    terminal.type("echo status $?\n")
    terminal.wait_for("status 130")
    terminal.type("exit\n")
    terminal.status()


def test_killing_claudebox_at_any_moment_leaves_nothing_in_inet(world):
    mark = f"7{os.getpid()}.{time.monotonic_ns() % 100000}"
    command = ["claudebox", "-y", "--network", "inet", "--shell", "--", "-c", f"exec sleep {mark}"]
    before = set(processes_with("tap0"))
    begin = time.monotonic()
    world.inside("true", "--network", "inet")
    whole = time.monotonic() - begin
    for step in range(15):
        session = world.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * step / 15)
        session.kill()
        session.wait()
    wait_until(lambda: not processes_with(mark))
    wait_until(lambda: set(processes_with("tap0")) <= before)


def test_a_session_goes_on_offline_when_its_sidecar_dies_and_says_so_once(world):
    command = [
        "claudebox",
        "-y",
        "--network",
        "inet",
        "--shell",
        "--",
        "-c",
        "echo up; read x; exit 3",
    ]
    session = world.start(*command, stdin=subprocess.PIPE)
    assert session.stdout.readline() == "up\n"
    children = f"/proc/{session.pid}/task/{session.pid}/children"
    own = {int(pid) for pid in open(children).read().split()}
    (sidecar,) = own & set(processes_with("tap0"))
    os.kill(sidecar, signal.SIGKILL)
    time.sleep(0.5)
    _, errors = session.communicate("\n", timeout=10)
    assert session.returncode == 3
    assert errors.count("the sandbox is offline") == 1


def test_without_a_sidecar_inet_is_refused_with_what_to_install(world, tmp_path):
    result = world.run(
        "python3",
        "-c",
        WITHOUT_SIDECARS,
        env={"PYTHONPATH": world.environment["PATH"].split(":")[0] + "/.."},
    )
    assert "install passt" in result.stderr
    assert result.returncode == 1


WITHOUT_SIDECARS = """
import sys
from claudebox import command, host, main
found = host.find_program
host.find_program = lambda name, *rest: None if name in ("pasta", "slirp4netns") else found(name, *rest)
sys.exit(command.run(main.main, ["-y", "--network", "inet", "--shell", "--", "-c", "touch launched"]))
"""


def test_the_flag_wins_over_the_variable_and_the_audit_says_which(world):
    env = {"CLAUDEBOX_NETWORK": "none"}
    assert "network   none decided by: CLAUDEBOX_NETWORK" in world.inside("true", env=env).stderr
    result = world.inside("true", "--network", "full", env=env)
    assert "network   full decided by: command line" in result.stderr
    assert "network   full decided by: default" in world.inside("true").stderr


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_bad_tier_names_the_three_and_the_nearest(world, how):
    if how == "flag":
        result = world.inside("true", "--network", "interent")
    else:
        result = world.inside("true", env={"CLAUDEBOX_NETWORK": "interent"})
    assert result.returncode == 2
    assert "none, inet, full" in result.stderr and 'did you mean "inet"?' in result.stderr


def test_net_tiers_explains_and_check_says_whether_this_host_can(world):
    assert [
        line.split()[0] for line in world.run("claudebox", "net", "tiers").stdout.splitlines()
    ] == [
        "none",
        "inet",
        "full",
    ]
    result = world.run("claudebox", "net", "check", "inet")
    assert (result.returncode, result.stdout.count("ok ")) == (0, 4), result.stdout


def test_an_exception_is_refused_where_it_has_no_meaning_or_cannot_be_made(world):
    assert world.inside("true", "--allow", "10.0.0.1").returncode == 2
    result = world.inside("true", "--network", "inet", "--allow", "db.local:5432")
    assert result.returncode != 0 and "not names" in result.stderr


def test_the_briefing_names_tier_and_exceptions(world):
    result = world.inside(
        "cat /etc/claude-code/CLAUDE.md", "--network", "inet", "--allow", "10.1.2.3:5432"
    )
    assert "## Network: `inet`" in result.stdout and "10.1.2.3:5432" in result.stdout
