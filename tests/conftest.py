"""Fails the suite, with the line that mends it, where a program that the tests drive is missing."""

import shutil

import pytest

PROGRAMS = {
    "bash-static": "apt-get install bash-static",
    "bwrap": "apt-get install bubblewrap",
    "busybox": "apt-get install busybox-static",
    "claude": "npm install --global @anthropic-ai/claude-code (see README.md)",
    "fish": "apt-get install fish",
    "git": "apt-get install git",
    "man": "apt-get install man-db",
    "mandoc": "apt-get install mandoc",
    "nix-daemon": "apt-get install nix-bin",
    "openssl": "apt-get install openssl",
    "patchelf": "apt-get install patchelf",
    "strace": "apt-get install strace",
    "tmux": "apt-get install tmux",
    "zsh": "apt-get install zsh",
}


def pytest_sessionstart(session):
    missing = [f"{name}: {line}" for name, line in PROGRAMS.items() if not shutil.which(name)]
    if missing:
        raise pytest.UsageError("programs that the tests drive are missing: " + "; ".join(missing))
