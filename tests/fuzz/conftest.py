"""Fixtures of the fuzz tests: a scratch host to mutate, and bounds of time and memory."""

import os
import resource
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scratch_host import Host  # noqa: E402

from claudebox import project  # noqa: E402

# What one case may take at most, on a loaded machine, and all of a test together.
_SECONDS = 20
_MEBIBYTES = 400


@pytest.fixture(autouse=True)
def bounds():
    """Fail a test that stands still, or that takes more memory than any input is worth."""

    def rang(_number, _frame):
        raise AssertionError(f"one case took more than {_SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, rang)
    signal.alarm(_SECONDS)
    yield lambda: signal.alarm(_SECONDS)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < _MEBIBYTES * 1024, f"{grown // 1024} MiB more than before"


@pytest.fixture(scope="session")
def made_host(tmp_path_factory):
    return Host(tmp_path_factory.mktemp("host"))


@pytest.fixture
def host(made_host, monkeypatch):
    """A scratch home full of secrets with a project in it, and this process's environment for it."""
    for name in os.environ:
        if not name.startswith(("PYTEST_", "FUZZ_")):
            monkeypatch.delenv(name)
    for name, value in made_host.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(project, "_walks", {})
    return made_host
