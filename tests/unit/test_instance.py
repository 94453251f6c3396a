"""Where no plan is made, and which instances are not removed."""

import os

import pytest

from claudebox import Failure, audit, instance
from claudebox.sandbox import state


def test_a_home_directory_that_is_the_root_is_refused(project, monkeypatch):
    monkeypatch.setenv("HOME", "/")
    with pytest.raises(Failure, match="the home directory is /"):
        instance.resolve(str(project))


def test_what_is_no_directory_is_no_project(home, project):
    (project / "file").write_text("")
    for name in ("file", "none"):
        with pytest.raises(Failure, match="is not a directory"):
            instance.resolve(str(project / name))


def test_a_whole_repository_is_refused_where_there_is_none(home, project):
    with pytest.raises(Failure, match="is not in a git repository"):
        instance.resolve(str(project), repo=True)


def test_a_worktree_of_a_repository_among_secrets_is_refused(home, project, repository, git):
    repository(home / ".password-store")
    git(home / ".password-store", "worktree", "add", "-q", str(project / "tree"))
    with pytest.raises(Failure, match="cannot be mounted: it lies in ~/.password-store"):
        instance.resolve(str(project / "tree"))


def test_an_instance_is_removed(made, project):
    assert instance._remove(str(project), yes=True) == 0
    assert not os.path.exists(made)


def test_an_instance_that_there_is_none_of_is_not_removed(made, home):
    with pytest.raises(Failure, match="there is no instance of"):
        instance._remove(str(home / "elsewhere"), yes=True)
    assert os.path.exists(made)


def test_an_instance_in_use_is_not_removed(made, project):
    plan = instance.resolve(str(project), shell=True)
    opened = state.prepare(plan)
    try:
        with pytest.raises(Failure, match="is in use by a session"):
            instance._remove(str(project), yes=True)
    finally:
        opened.close()
    assert os.path.exists(made)


def test_an_instance_whose_metadata_cannot_be_read_is_not_removed(made, project):
    with open(made + "/instance.json", "w") as file:
        file.write("x")
    with pytest.raises(Failure, match="is not removed: its metadata cannot be read"):
        instance._remove(str(project), yes=True)
    assert os.path.exists(made)


def test_an_instance_is_not_removed_without_a_yes(made, project, monkeypatch):
    monkeypatch.setattr(audit, "ask", lambda _question: False)
    with pytest.raises(Failure, match="not confirmed"):
        instance._remove(str(project), yes=False)
    assert os.path.exists(made)
