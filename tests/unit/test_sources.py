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


def test_a_path_that_is_not_absolute_is_no_path(opener):
    opener.open("/usr")
    with pytest.raises(Failure, match="usr cannot be mounted: it is not absolute"):
        opener.open("usr")
    assert os.path.samestat(os.fstat(opener.open("/usr")), os.stat("/usr"))


@pytest.fixture
def look(monkeypatch):
    """Hold a plan that mounts `targets` as they are against a table with the mount points `inside`."""

    def compare(targets, expected, inside=None, options=("ro",)):
        made = [
            {"kind": "ro-bind", "source": target, "target": target, "reason": "x"}
            for target in map(str, targets)
        ]
        points = map(str, targets if inside is None else inside)
        table = {point: sources._Mount(0, "tmpfs", list(options)) for point in ("/", *points)}
        monkeypatch.setattr(sources, "_table", lambda process: {} if process == "self" else table)
        expected = {str(target): status for target, status in expected.items()}
        sources.Expectation({"mounts": made}, expected).refuse_other(os.getpid())

    return compare


def test_the_mounts_that_are_expected_are_accepted(look, tmp_path):
    look([tmp_path], {tmp_path: os.stat(tmp_path)})


def test_a_mount_of_the_plan_that_is_not_there_is_noticed(look, tmp_path):
    with pytest.raises(Failure, match="is not mounted"):
        look([tmp_path], {tmp_path: os.stat(tmp_path)}, inside=[])


def test_a_mount_that_the_plan_does_not_say_is_noticed(look, tmp_path):
    with pytest.raises(Failure, match="/elsewhere is mounted, which the plan does not say"):
        look([tmp_path], {tmp_path: os.stat(tmp_path)}, inside=[tmp_path, "/elsewhere"])


def test_a_mount_that_can_be_written_and_is_to_be_read_only_is_noticed(look, tmp_path):
    with pytest.raises(Failure, match="can be written"):
        look([tmp_path], {tmp_path: os.stat(tmp_path)}, options=["rw"])


def test_something_else_in_the_place_of_a_source_is_noticed(look, tmp_path):
    with pytest.raises(Failure, match="is not what was to be mounted there"):
        look([tmp_path], {tmp_path: os.stat("/")})


def test_a_target_that_cannot_be_looked_at_is_noticed(look, tmp_path):
    with pytest.raises(Failure, match="cannot be looked at"):
        look([tmp_path / "none"], {tmp_path / "none": os.stat("/")})
