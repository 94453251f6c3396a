"""Fixtures that launch the real sandbox for a scratch user."""

import pytest
from scratch import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def repository(world):
    """The world with its project a git repository with one commit."""
    world.git("config", "--global", "user.name", "Ann Dev")
    world.git("config", "--global", "user.email", "ann@example.org")
    world.git("init", "-q", "-b", "main")
    (world.project / "file").write_text("one\n")
    world.git("add", "file")
    world.git("commit", "-q", "-m", "first")
    return world
