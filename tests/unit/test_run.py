"""A launch that is ended before its payload runs."""

import os
import shlex
import signal
import subprocess

import pytest

from claudebox import enforcement, run
from claudebox.sandbox import limits, standins, state


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in run._NAMES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_state_is_prepared_ends_the_launch_with_its_status(
    monkeypatch, handlers, number
):
    monkeypatch.setattr(enforcement, "refuse_unsafe", lambda *_: None)
    monkeypatch.setattr(run, "_tidy_descriptors", lambda: None)
    monkeypatch.setattr(state, "prepare", lambda _plan: os.kill(os.getpid(), number))
    assert run.launch({}) == 128 + number


def test_a_second_signal_does_not_end_the_clean_up(monkeypatch, handlers):
    cleaned = []

    class Prepared:
        directory = 0

        def close(self):
            cleaned.append("closed")

    def remove(_directory):
        os.kill(os.getpid(), signal.SIGTERM)
        cleaned.append("removed")

    monkeypatch.setattr(enforcement, "refuse_unsafe", lambda *_: None)
    monkeypatch.setattr(run, "_tidy_descriptors", lambda: None)
    monkeypatch.setattr(state, "prepare", lambda _plan: Prepared())
    monkeypatch.setattr(run, "_mirror", lambda _plan: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(standins, "remove", remove)
    assert run.launch({}) == 128 + signal.SIGTERM
    assert cleaned == ["removed", "closed"]


@pytest.mark.parametrize(("said", "runs"), [("\\n", True), ("", False)])
def test_the_gate_lets_nothing_run_unless_it_is_told_to(tmp_path, said, runs):
    """An end of file, which a launcher leaves that was killed, is no word from it."""
    gate = shlex.join(["/bin/sh", "-c", run._GATE, "sh", "touch", str(tmp_path / "mark")])
    script = f"printf '{said}' | {gate} 7>&2 8>/dev/null 9<&0"
    done = subprocess.run(["/bin/sh", "-c", script], timeout=20)
    assert done.returncode == (0 if runs else 125)
    assert (tmp_path / "mark").exists() is runs


def test_what_the_session_left_is_told_also_when_the_launcher_fails(monkeypatch, handlers):
    told = []

    class Sandbox:
        pid, ended = 0, False

        def __getattr__(self, _name):
            return lambda *_: None

        def processes(self):
            return [0, 0, 0]

        def expect_mounts(self, _plan):
            return Held()

        def abandon(self):
            told.append("ended")

    class Held:
        directory = 0

        def __init__(self, *_):
            pass

        def __getattr__(self, _name):
            return lambda *_: None

    def fail(*_):
        raise RecursionError

    for module, name, value in (
        (enforcement, "refuse_unsafe", lambda *_: None),
        (run, "_tidy_descriptors", lambda: None),
        (state, "prepare", Held),
        (state, "seed", lambda *_: None),
        (standins, "make", lambda *_: []),
        (standins, "remove", lambda _directory: None),
        (limits, "Groups", Held),
        (run, "_mirror", lambda _plan: None),
        (run, "_event_loop", lambda *_: None),
        (run, "_spawn", lambda *_: Sandbox()),
        (run, "_terminal_state", lambda: None),
        (run, "_attend", fail),
        (run, "_report", lambda *_: told.append("changes")),
        (run, "_report_repositories", lambda *_: told.append("repositories")),
        (run.git_identity, "remember", lambda _home: None),
        (run.project, "walk", lambda _root: {"repositories": []}),
    ):
        monkeypatch.setattr(module, name, value)
    place = {"root": "/nowhere", "cwd": "/nowhere"}
    plan = {"project": place, "limits": {"processes": None}, "user": {"home": "/nowhere"}}
    with pytest.raises(RecursionError):
        run.launch(plan)
    assert told == ["ended", "changes", "repositories"]


def test_a_signal_for_a_payload_that_has_just_ended_is_no_error(monkeypatch):
    ended = os.fork()
    if ended == 0:
        os._exit(0)
    os.waitpid(ended, 0)
    monkeypatch.setattr(run, "_children", lambda _parent: [ended])
    run._Sandbox(ended, 0, 0, 0, None, {}).forward(signal.SIGTERM)
