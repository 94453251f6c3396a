"""Exit status, signals, the terminal, and what is left when something is killed."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest


def wait_until(condition, seconds=10):
    """Wait until `condition()` is true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def processes_with(mark: str) -> list[int]:
    """Return the processes of the machine that have `mark` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return [pid for pid in found if pid != os.getpid()]


class Terminal:
    """A claudebox session on a pseudo-terminal of its own, driven as by a person."""

    def __init__(self, world, *arguments, rows=24, columns=80):
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.chdir(world.project)
            os.execvpe(arguments[0], arguments, world.environment)
        self.shown = ""
        self.resize(rows, columns)

    def resize(self, rows, columns):
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str):
        os.write(self.screen, keys.encode())

    def wait_for(self, words: str, seconds=20) -> str:
        """Read until `words` are shown; return all that was shown before them, and forget it."""
        end = time.monotonic() + seconds
        while words not in self.shown:
            ready, _, _ = select.select([self.screen], [], [], max(0, end - time.monotonic()))
            assert ready, f"not shown: {words!r} in {self.shown!r}"
            try:
                self.shown += os.read(self.screen, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended without showing {words!r}: {self.shown!r}") from None
        before, _, self.shown = self.shown.partition(words)
        return before

    def status(self, seconds=20) -> int:
        """Read to the end and return the exit status, as a shell would say it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if select.select([self.screen], [], [], 0.05)[0]:
                    self.shown += os.read(self.screen, 65536).decode(errors="replace")
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        raise AssertionError(f"still running: {self.shown!r}")


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_the_exit_status_of_the_payload_is_claudeboxs(world, status):
    assert world.inside(f"exit {status}").returncode == status


def test_a_payload_that_a_signal_ends_gives_128_and_the_number(world):
    assert world.inside("kill -SEGV $$").returncode == 128 + signal.SIGSEGV


def test_a_command_that_is_not_there_gives_127(world):
    assert world.inside("exec no-such-command").returncode == 127


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_claudebox_reaches_the_payload(world, number):
    script = f"trap 'echo caught; exit 9' {number.name[3:]}; echo up; while :; do sleep 0.05; done"
    session = world.start("claudebox", "-y", "--shell", "--", "-c", script)
    assert session.stdout.readline() == "up\n"
    session.send_signal(number)
    output, _ = session.communicate(timeout=10)
    assert (output, session.returncode) == ("caught\n", 9)


@pytest.mark.parametrize("tier", ["full", "none", "inet"])
def test_a_signal_to_the_process_group_is_the_payloads_to_answer(world, tier):
    """As timeout(1) sends it: what keeps the sandbox is in that group, too."""
    script = "trap 'trap \"\" TERM; echo caught; sleep 0.3; exit 9' TERM; echo up;"
    script += " while :; do sleep 0.05; done"
    command = ["claudebox", "-y", "--network", tier, "--shell", "--", "-c", script]
    session = world.start(*command, start_new_session=True)
    assert session.stdout.readline() == "up\n"
    os.killpg(session.pid, signal.SIGTERM)
    output, _ = session.communicate(timeout=10)
    # From the sender, and once more from the launcher.
    assert set(output.split()) == {"caught"} and session.returncode == 9


def test_a_payload_without_a_handler_is_ended_by_sigterm(world):
    session = world.start("claudebox", "-y", "--shell", "--", "-c", "echo up; exec sleep 60")
    assert session.stdout.readline() == "up\n"
    session.send_signal(signal.SIGTERM)
    session.communicate(timeout=10)
    assert session.returncode == 128 + signal.SIGTERM


def test_killing_claudebox_kills_everything_inside(world):
    mark = f"4{os.getpid()}.{time.monotonic_ns() % 100000}"
    script = f"(setsid sleep {mark} &) ; echo up; exec sleep {mark}"
    session = world.start("claudebox", "-y", "--shell", "--", "-c", script)
    assert session.stdout.readline() == "up\n"
    wait_until(lambda: len(processes_with(f"sleep\0{mark}")) == 2)
    session.kill()
    session.wait()
    wait_until(lambda: not processes_with(mark))


def test_killing_claudebox_at_any_moment_leaves_no_process(world):
    mark = f"5{os.getpid()}.{time.monotonic_ns() % 100000}"
    command = ["claudebox", "-y", "--shell", "--", "-c", f"exec sleep {mark}"]
    begin = time.monotonic()
    world.inside("true")
    whole = time.monotonic() - begin
    for step in range(40):
        session = world.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * step / 40)
        session.kill()
        session.wait()
    wait_until(lambda: not processes_with(mark))
    assert world.inside("echo works").stdout == "works\n"


@pytest.mark.parametrize("tier", ["full", "inet"])
def test_sigterm_at_any_moment_leaves_no_process_and_no_stand_in(world, tier):
    mark = f"6{os.getpid()}.{time.monotonic_ns() % 100000}"
    command = ["claudebox", "-y", "--network", tier, "--shell", "--", "-c", f"exec sleep {mark}"]
    begin = time.monotonic()
    world.inside("true", "--network", tier)
    whole = time.monotonic() - begin
    for step in range(60):
        session = world.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * step / 50)
        session.terminate()
        try:
            session.wait(timeout=10)
        finally:
            session.kill()
        # Before Python has got to install a handler the kernel ends it: -15.
        assert session.returncode in (128 + signal.SIGTERM, -signal.SIGTERM), step
        assert list(world.project.iterdir()) == [], step
    wait_until(lambda: not processes_with(mark))


@pytest.mark.parametrize("tier", ["full", "inet"])
def test_ctrl_c_at_any_moment_of_a_launch_leaves_no_process_and_no_stand_in(world, tier):
    """As a terminal sends it: to the process group, with what claudebox has started so far."""
    mark = f"7{os.getpid()}.{time.monotonic_ns() % 100000}"
    command = ["claudebox", "-y", "--network", tier, "--shell", "--", "-c", f"exec sleep {mark}"]
    for step in range(60):
        session = world.start(*command, start_new_session=True, stdout=subprocess.DEVNULL)
        # From here on it is Python that hears the signal.
        while "claudebox" not in session.stderr.readline():
            pass
        time.sleep(0.0005 * step)
        os.killpg(session.pid, signal.SIGINT)
        try:
            _, said = session.communicate(timeout=10)
        finally:
            session.kill()
        assert session.returncode == 128 + signal.SIGINT, step
        assert "Traceback" not in said
        assert list(world.project.iterdir()) == [], step
    wait_until(lambda: not processes_with(mark))


def driven(world, script, **values):
    """Run a script that launches with something replaced; `root` in it is the checkout."""
    root = os.path.dirname(world.environment["PATH"].split(":")[0])
    return world.run("/usr/bin/python3", "-I", "-S", "-c", script.format(root=root, **values))


SIGNAL_WHILE_FORKING = """
import os, signal, sys, _thread
sys.path.insert(0, {root!r})
from claudebox import command, main
from claudebox.sandbox import limits
signal.alarm(30)
def and_signal(function, before):
    def instead(*arguments):
        if before:
            os.kill(os.getpid(), signal.{number})
        result = function(*arguments)
        if result and not before:
            os.kill(os.getpid(), signal.{number})
        return result
    return instead
if {where!r} == "fork":
    limits.Groups.fork = and_signal(limits.Groups.fork, False)
else:
    _thread.start_new_thread = and_signal(_thread.start_new_thread, True)
    limits._places = lambda: [limits._Place({groups!r}, ["memory"], 1)]
arguments = ["-y", "--network", {tier!r}, "--shell", "--", "-c", "echo launched"]
status = command.run(main.main, arguments)
try:
    print("left:", os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    pass
print("status", status)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("tier", ["none", "inet"])
@pytest.mark.parametrize("where", ["fork", "thread"])
def test_a_signal_in_the_moment_of_the_fork_leaves_no_process(world, tmp_path, where, tier, number):
    """Neither one that nobody knows of, nor a launcher that waits for ever."""
    groups = tmp_path / "groups"
    groups.mkdir()
    values = {"where": where, "tier": tier, "number": number, "groups": str(groups)}
    result = driven(world, SIGNAL_WHILE_FORKING, **values)
    status = 128 + getattr(signal, number)
    assert result.stdout == f"status {status}\n"
    assert list(world.project.iterdir()) == []


SIGNAL_IN_A_CALLBACK = """
import os, signal, sys, weakref
sys.path.insert(0, {root!r})
from claudebox import command, main, run
class Referent:
    pass
def remember(_home):
    referent = Referent()
    watched = weakref.ref(referent, lambda _: os.kill(os.getpid(), signal.{number}))
    del referent
run.git_identity.remember = remember
arguments = ["-y", "--network", "none", "--shell", "--", "-c", "echo launched"]
print("status", command.run(main.main, arguments))
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_whose_exception_python_loses_ends_the_launch_all_the_same(world, number):
    """As the import system's callbacks lose it."""
    result = driven(world, SIGNAL_IN_A_CALLBACK, number=number)
    assert "Traceback" not in result.stderr
    assert result.stdout == f"status {128 + getattr(signal, number)}\n"
    assert list(world.project.iterdir()) == []


SIGNAL_WHILE_CLEANING_UP = """
import os, signal, sys
sys.path.insert(0, {root!r})
from claudebox import Failure, command, enforcement, main, run
def refuse(*_arguments, **_options):
    raise Failure("no", "never")
def abandon(sandbox):
    os.kill(os.getpid(), signal.{number})
    abandoned(sandbox)
enforcement.refuse_unsafe = refuse
abandoned, run._Sandbox.abandon = run._Sandbox.abandon, abandon
arguments = ["-y", "--network", "none", "--shell", "--", "-c", "echo launched"]
print("status", command.run(main.main, arguments))
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_while_a_launch_that_failed_is_cleaned_up_leaves_no_stand_in(world, number):
    result = driven(world, SIGNAL_WHILE_CLEANING_UP, number=number)
    assert result.stdout == "status 1\n"
    assert list(world.project.iterdir()) == []


def test_ctrl_c_reaches_the_payload_and_does_not_end_the_sandbox(world):
    terminal = Terminal(world, "claudebox", "-y", "--shell")
    terminal.type("echo rea''dy; sleep 60\n")
    terminal.wait_for("ready\r\n")
    time.sleep(0.3)
    terminal.type("\x03")
    terminal.type("echo still he''re; exit 5\n")
    terminal.wait_for("still here")
    assert terminal.status() == 5


def test_ctrl_c_ends_a_payload_that_does_not_catch_it(world):
    terminal = Terminal(world, "claudebox", "-y", "--shell", "--", "-c", "echo up; exec sleep 60")
    terminal.wait_for("up\r\n")
    terminal.type("\x03")
    assert terminal.status() == 130


def test_job_control_works_in_an_interactive_shell(world):
    terminal = Terminal(world, "claudebox", "-y", "--shell")
    terminal.type("sleep 50\n")
    time.sleep(0.7)
    terminal.type("\x1a")
    terminal.wait_for("Stopped")
    terminal.type("kill %1; jobs; exit 0\n")
    assert terminal.status() == 0


def test_ctrl_z_stops_claudebox_and_fg_continues_it(world):
    terminal = Terminal(world, "bash", "--norc", "-i")
    terminal.type("claudebox -y --shell -- -c 'echo u''p; sleep 1; echo co''ntinued'\n")
    terminal.wait_for("up\r\n")
    terminal.type("\x1a")
    terminal.wait_for("Stopped")
    terminal.type("echo outer sh''ell\n")
    terminal.wait_for("outer shell")
    terminal.type("fg\n")
    terminal.wait_for("continued")
    terminal.type("exit\n")
    terminal.status()


def test_a_resize_of_the_terminal_arrives(world):
    terminal = Terminal(
        world, "claudebox", "-y", "--shell", "--", "-c", RESIZE, rows=30, columns=90
    )
    terminal.wait_for("30 90")
    terminal.resize(40, 120)
    terminal.wait_for("40 120")
    terminal.type("\x03")
    terminal.status()


RESIZE = "trap 'stty size' WINCH; trap 'exit 3' INT; stty size; while :; do sleep 0.05; done"


def test_the_terminal_modes_are_put_back_when_the_payload_leaves_its_own(world):
    terminal = Terminal(
        world, "bash", "--norc", "-c", "claudebox -y --shell -- -c 'stty raw -echo'; stty -a"
    )
    terminal.wait_for(" icanon")
    terminal.status()


def test_a_script_has_the_terminal_again_after_an_interactive_shell(world):
    script = (
        "claudebox -y --shell; read -r line; echo read $line; claudebox --shell -- -c 'echo in'"
    )
    terminal = Terminal(world, "bash", "--norc", "-c", script)
    terminal.type("stty -echo; echo up; PS1=; exec 2>&1; exit\n")
    terminal.wait_for("up\r\n")
    terminal.type("words\n")
    terminal.wait_for("read words")
    terminal.wait_for("[y/N]")
    terminal.type("y\n")
    terminal.wait_for("in\r\n")
    assert terminal.status() == 0


def test_a_session_that_ends_in_the_background_takes_no_terminal_from_a_job(world):
    terminal = Terminal(world, "bash", "--norc", "-i")
    inside = "echo u''p; until test -e end; do sleep 0.05; done"
    terminal.type(f"claudebox -y --shell -- -c '{inside}' </dev/tty\n")
    terminal.wait_for("up\r\n")
    terminal.type("\x1a")
    terminal.wait_for("Stopped")
    terminal.type("bg; bash --norc -c 'touch end; wait; sleep 1; read -r x; echo read $x'\n")
    wait_until((world.project / "end").exists)
    time.sleep(0.5)
    terminal.type("words\n")
    terminal.wait_for("read words")
    terminal.type("exit\n")
    terminal.status()


def test_the_question_is_asked_on_the_terminal_and_no_is_the_default(world):
    terminal = Terminal(world, "claudebox", "--shell", "--", "-c", "touch launched")
    terminal.wait_for("[y/N]")
    terminal.type("\n")
    assert terminal.status() == 1
    assert not (world.project / "launched").exists()
    assert not world.state.exists()


def test_yes_launches(world):
    terminal = Terminal(world, "claudebox", "--shell", "--", "-c", "touch launched")
    terminal.wait_for("[y/N]")
    terminal.type("y\n")
    assert terminal.status() == 0
    assert (world.project / "launched").exists()


def test_without_a_terminal_nothing_is_launched_and_yes_is_named(world):
    result = world.run("setsid", "--wait", "claudebox", "--shell", "--", "-c", "touch launched")
    assert result.returncode == 1
    assert "--yes" in result.stderr.splitlines()[-1]
    assert not (world.project / "launched").exists()


def test_the_plan_can_come_through_a_pipe_and_the_terminal_is_taken_back(world):
    pipeline = (
        "claudebox-instance resolve --shell | claudebox-profile apply | claudebox-net apply none"
        " | claudebox-audit | claudebox-run -; echo status $?"
    )
    terminal = Terminal(world, "bash", "--norc", "-c", pipeline)
    terminal.wait_for("[y/N]")
    terminal.type("y\n")
    terminal.type("test -t 0 && echo on a ter''minal; exit 6\n")
    terminal.wait_for("on a terminal")
    terminal.wait_for("status 6")
    assert terminal.status() == 0


def test_a_no_in_a_pipe_launches_nothing(world):
    pipeline = (
        "claudebox-instance resolve --shell | claudebox-audit | claudebox-run -; echo status $?"
    )
    terminal = Terminal(world, "bash", "--norc", "-c", pipeline)
    terminal.wait_for("[y/N]")
    terminal.type("n\n")
    terminal.wait_for("status 2")
    terminal.status()
