"""Signals and abstract sockets: what runs inside reaches nobody outside, and ^Z still works."""

import contextlib
import os
import signal
import socket
import time

import pytest
from test_lifecycle import Terminal, wait_until

from claudebox import host
from claudebox.sandbox import landlock

TIERS = ("none", "inet", "full")
scoped = pytest.mark.skipif(
    landlock.obstacle(host.find_program("bwrap", "/")) is not None,
    reason="without Landlock the audit warns, which is tested below",
)


@scoped
@pytest.mark.parametrize("tier", TIERS)
def test_a_signal_to_the_process_group_does_not_reach_the_launcher_or_what_started_it(world, tier):
    # The shell shares the process group, as a script does.
    script = (
        f"claudebox -y --network {tier} --shell -- -c 'echo up; kill -KILL 0' 2>errors"
        " || echo status $?"
    )
    result = world.run("setsid", "--wait", "bash", "-c", script)
    assert result.stdout == f"up\nstatus {128 + signal.SIGKILL}\n"
    # The launcher has cleaned up.
    assert sorted(os.listdir(world.project)) == ["errors"]
    assert "Traceback" not in (world.project / "errors").read_text()


@contextlib.contextmanager
def abstract_socket(kind):
    """Listen on an abstract socket of the host; yields the name."""
    name = f"claudebox-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(f"\0{name}")
        if kind != socket.SOCK_DGRAM:
            listener.listen()
        yield name


CONNECT = """
import socket
for name, kind in [("{name}", socket.{kind}), (None, socket.{kind})]:
    with socket.socket(socket.AF_UNIX, kind) as own, socket.socket(socket.AF_UNIX, kind) as other:
        if name is None:
            own.bind("\\0own")
            name = "own"
            if kind != socket.SOCK_DGRAM:
                own.listen()
        try:
            if kind == socket.SOCK_DGRAM:
                other.sendto(b"hello", "\\0" + name)
            else:
                other.connect("\\0" + name)
            print("reached")
        except OSError as error:
            print(error.strerror)
"""


@scoped
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_SEQPACKET", "SOCK_DGRAM"])
def test_abstract_sockets_of_the_host_are_out_of_reach_in_full_and_own_ones_are_not(world, kind):
    with abstract_socket(getattr(socket, kind)) as name:
        script = CONNECT.format(name=name, kind=kind)
        result = world.run(
            "claudebox", "-y", "--shell", "--", "-c", '/usr/bin/python3 -c "$0"', script
        )
    assert result.stdout == "Operation not permitted\nreached\n", result.stderr


@scoped
@pytest.mark.parametrize("tier", TIERS)
def test_a_session_that_stops_itself_stops_claudebox_and_fg_continues_it(world, tier):
    # What Claude Code does on ^Z, which it reads as a key.
    terminal = Terminal(world, "bash", "--norc", "-i")
    terminal.type(
        f"claudebox -y --network {tier} --shell -- -c"
        " 'echo u''p; kill -TSTP 0; echo co''ntinued; exit 4'; echo status'' $?\n"
    )
    terminal.wait_for("up\r\n")
    terminal.wait_for("Stopped")
    terminal.type("echo outer sh''ell; jobs; fg\n")
    terminal.wait_for("outer shell")
    terminal.wait_for("continued")
    terminal.type("exit\n")
    terminal.status()


@scoped
def test_a_session_that_is_not_in_the_foreground_stops_only_itself(world):
    script = 'claudebox -y --shell -- -c "kill -STOP 0; echo continued" & echo $!; wait; echo end'
    session = world.start("setsid", "bash", "-c", script)
    launcher = int(session.stdout.readline())

    def stopped():
        with contextlib.suppress(OSError, IndexError):
            with open(f"/proc/{launcher}/task/{launcher}/children") as file:
                child = file.read().split()[0]
            with open(f"/proc/{child}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] == "T"
        return False

    wait_until(stopped)
    with open(f"/proc/{launcher}/stat") as file:
        assert file.read().rpartition(")")[2].split()[0] != "T"
    os.killpg(session.pid, signal.SIGCONT)
    assert session.communicate(timeout=20)[0] == "continued\nend\n"


def test_what_is_not_scoped_the_audit_warns_of(world):
    shown = world.inside("true").stderr
    unscoped = landlock.obstacle(host.find_program("bwrap", "/")) is not None
    assert ("can send signals to the process group" in shown) is unscoped
    assert ("abstract sockets" in shown) is unscoped
