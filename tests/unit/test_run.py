"""A launch that is ended before its payload runs."""

import os
import shlex
import signal
import subprocess

import pytest

from claudebox import enforcement, run
from claudebox.sandbox import standins, state


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in run._FORWARDED}
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
