"""A launch that is ended before its payload runs."""

import os
import signal

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
