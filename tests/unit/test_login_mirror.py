"""The mirror of the host's login, with both of its sides in this process."""

import json
import os

import pytest

from claudebox import Failure
from claudebox.sandbox import credentials


def login(expires, access="access", refresh="refresh"):
    return json.dumps(
        {"claudeAiOauth": {"accessToken": access, "refreshToken": refresh, "expiresAt": expires}}
    )


@pytest.fixture
def outside(tmp_path):
    """The host's file, with a login."""
    (tmp_path / "claude").mkdir()
    path = tmp_path / "claude" / ".credentials.json"
    path.write_text(login(1000))
    return path


@pytest.fixture
def mirror(outside):
    """The mirror of the host's file; `inside` is what the sandbox has, whatever the host does."""
    made = credentials.Mirror(str(outside))
    made.inside = os.dup(made._mounted)
    yield made
    made.close()
    os.close(made.inside)


def seen_inside(mirror):
    return os.pread(mirror.inside, 1 << 20, 0).decode()


def write_inside(mirror, text):
    os.ftruncate(mirror.inside, 0)
    os.pwrite(mirror.inside, text.encode(), 0)


def replace(path, text):
    """Replace a file as Claude Code outside does it."""
    other = path.with_name("new")
    other.write_text(text)
    other.rename(path)


def test_a_newer_login_of_the_host_is_seen_inside(mirror, outside):
    replace(outside, login(2000))
    mirror.changed()
    assert seen_inside(mirror) == login(2000)


def test_a_newer_login_of_the_sandbox_reaches_the_host(mirror, outside):
    replace(outside, login(1000, "other"))
    mirror.changed()
    write_inside(mirror, login(3000))
    mirror.changed()
    assert outside.read_text() == login(3000)


@pytest.mark.parametrize("text", [login(9000, access=""), login(9000, refresh=""), "{}", "", "x"])
def test_a_file_without_a_login_of_the_host_is_not_passed_on(mirror, outside, text):
    replace(outside, text)
    mirror.changed()
    assert seen_inside(mirror) == login(1000)


def test_a_login_that_is_just_being_written_inside_is_not_overwritten(mirror, outside):
    replace(outside, login(2000))
    write_inside(mirror, login(3000)[:30])
    mirror.changed()
    assert seen_inside(mirror) == login(3000)[:30]
    write_inside(mirror, login(3000))


def test_a_link_in_the_place_of_the_hosts_file_is_not_followed(mirror, outside, tmp_path):
    (tmp_path / "aim").write_text(login(9000))
    outside.unlink()
    outside.symlink_to(tmp_path / "aim")
    mirror.changed()
    assert seen_inside(mirror) == login(1000)


def test_a_link_is_not_mounted(outside, tmp_path):
    outside.rename(tmp_path / "aim")
    outside.symlink_to(tmp_path / "aim")
    with pytest.raises(Failure, match="cannot be opened"):
        credentials.Mirror(str(outside))


def test_a_pipe_is_not_mounted(outside):
    outside.unlink()
    os.mkfifo(outside)
    with pytest.raises(Failure, match="is not a plain file"):
        credentials.Mirror(str(outside))
