"""Instances on disk are looked at and removed without following what stands in them."""

import os

import pytest

from claudebox import instances


def test_a_link_in_the_place_of_the_lock_is_not_followed(made, home, tmp_path):
    os.unlink(f"{made}/lock")
    os.symlink(tmp_path / "elsewhere", f"{made}/lock")
    for found in instances.every(str(home)):
        with pytest.raises(OSError, match="symbolic links"):
            found.is_live()
    assert not os.path.lexists(tmp_path / "elsewhere")


def test_a_link_that_takes_the_place_of_a_directory_is_not_emptied(tmp_path, monkeypatch):
    """As if it had happened after the directory was looked at."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("x")
    (tmp_path / "trash").mkdir()
    (tmp_path / "trash" / "link").symlink_to(victim)
    monkeypatch.setattr(instances.os, "lstat", os.stat)
    trash = os.open(tmp_path / "trash", os.O_RDONLY)
    try:
        with pytest.raises(OSError):
            instances._delete_everything(trash)
        assert instances._size(trash) < 100_000
    finally:
        os.close(trash)
    assert (victim / "file").read_text() == "x"


@pytest.mark.parametrize("time", [-1, 10**400, 1e308, "soon", None])
def test_metadata_with_a_time_that_is_none_is_a_problem_and_no_traceback(made, home, time):
    import json

    with open(f"{made}/instance.json") as file:
        metadata = json.load(file)
    with open(f"{made}/instance.json", "w") as file:
        json.dump({**metadata, "last_used": time}, file)
    assert [found.problem for found in instances.every(str(home))] == [
        "its metadata cannot be read"
    ]
