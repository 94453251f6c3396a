"""Fails the suite, with the line that mends it, where a program that the tests drive is missing."""

import shutil

import pytest

PROGRAMS = {
    "bwrap": "apt-get install bubblewrap",
    "claude": "npm install --global @anthropic-ai/claude-code (see README.md)",
    "fish": "apt-get install fish",
    "git": "apt-get install git",
    "man": "apt-get install man-db",
    "mandoc": "apt-get install mandoc",
    "openssl": "apt-get install openssl",
    "strace": "apt-get install strace",
    "tmux": "apt-get install tmux",
    "zsh": "apt-get install zsh",
}


def pytest_sessionstart(session):
    missing = [f"{name}: {line}" for name, line in PROGRAMS.items() if not shutil.which(name)]
    if missing:
        raise pytest.UsageError("programs that the tests drive are missing: " + "; ".join(missing))
