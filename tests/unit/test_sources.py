"""What is mounted is opened without following a link, and what is there inside is looked at."""

import os

import pytest

from claudebox import Failure
from claudebox.sandbox import sources


@pytest.fixture
def opener():
    made = sources.Opener()
    yield made
    made.close()


def test_a_path_is_opened_as_what_it_is(opener, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text("x")
    for path in (tmp_path / "deep" / "file", tmp_path / "deep", tmp_path):
        assert os.path.samestat(os.fstat(opener.open(str(path))), os.stat(path))


def test_a_link_on_the_way_is_not_followed(opener, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("x")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(Failure, match="cannot be mounted"):
        opener.open(f"{tmp_path}/link/file")


def test_a_link_at_the_end_is_not_followed(opener, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(Failure, match="became a symbolic link"):
        opener.open(f"{tmp_path}/link")


def test_what_is_not_there_cannot_be_opened(opener, tmp_path):
    with pytest.raises(Failure, match="cannot be mounted"):
        opener.open(f"{tmp_path}/none")


@pytest.fixture
def look():
    """Hold a plan with these mounts against what this very process sees of its own mounts."""

    def compare(targets, expected):
        mounts = [{"kind": "tmpfs", "target": target, "reason": "x"} for target in targets]
        sources.refuse_other_mounts({"mounts": mounts}, os.getpid(), expected)

    return compare


def own_mount_points():
    with open("/proc/self/mountinfo") as table:
        return {line.split(" ")[4] for line in table} - {"/"}


def test_the_mounts_that_are_expected_are_accepted(look):
    look(own_mount_points(), {"/": os.stat("/"), "/proc": os.stat("/proc")})


def test_a_mount_of_the_plan_that_is_not_there_is_noticed(look):
    with pytest.raises(Failure, match="/nowhere is not mounted"):
        look(own_mount_points() | {"/nowhere"}, {})


def test_a_mount_that_the_plan_does_not_say_is_noticed(look):
    others = [p for p in own_mount_points() if not p.startswith(("/proc/", "/dev/"))]
    assert others
    with pytest.raises(Failure, match="which the plan does not say"):
        look(own_mount_points() - {others[0]}, {})


def test_something_else_in_the_place_of_a_source_is_noticed(look, tmp_path):
    with pytest.raises(Failure, match="is not what was to be mounted there"):
        look(own_mount_points(), {str(tmp_path): os.stat("/")})


def test_a_target_that_cannot_be_looked_at_is_noticed(look, tmp_path):
    with pytest.raises(Failure, match="cannot be looked at"):
        look(own_mount_points(), {f"{tmp_path}/none": os.stat("/")})
