"""The programs of the host: where they are found, and what is said where they are not."""

import pytest

from claudebox import Failure, host


def test_a_missing_bwrap_is_refused(home, project, monkeypatch):
    monkeypatch.setattr(host, "find_program", lambda *_: None)
    with pytest.raises(Failure, match="bwrap was not found"):
        host.bwrap(str(project))


def test_a_missing_claude_is_refused(home, project, monkeypatch):
    monkeypatch.setattr(host, "find_program", lambda *_: None)
    with pytest.raises(Failure, match="claude was not found"):
        host.claude(str(project), str(home))


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A `claude` that is a script for node, first on PATH, and no node anywhere."""
    path = tmp_path / "own" / "claude"
    path.parent.mkdir()
    path.write_text("#!/usr/bin/env node\n")
    path.chmod(0o755)
    found = host.find_program
    here = {"claude": str(path), "node": None}
    monkeypatch.setattr(
        host,
        "find_program",
        lambda name, *rest: here[name] if name in here else found(name, *rest),
    )
    return path


def test_a_claude_that_needs_node_is_refused_without_it(home, project, script):
    with pytest.raises(Failure, match="needs node"):
        host.claude(str(project), str(home))


def test_a_claude_that_cannot_be_read_is_refused(home, project, script, monkeypatch):
    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(host, "open", refuse, raising=False)
    with pytest.raises(Failure, match="cannot be read"):
        host.claude(str(project), str(home))


def test_a_home_directory_that_is_not_there_is_refused(monkeypatch):
    for place in ("/nonexistent", "relative"):
        monkeypatch.setenv("HOME", place)
        with pytest.raises(Failure, match="home directory"):
            host.user()
