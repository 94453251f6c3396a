"""Stand-ins: made for the time of a session, recorded first, removed only if they are still ours."""

import fcntl
import json
import os

import pytest

from claudebox import Failure, protection
from claudebox import git as discovery
from claudebox.sandbox import sources, standins, state


@pytest.fixture
def directory(tmp_path):
    """A descriptor of an instance directory."""
    (tmp_path / "instance").mkdir(mode=0o700)
    descriptor = state.open_directory(str(tmp_path / "instance"))
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def record_file(tmp_path):
    return tmp_path / "instance" / standins.RECORD


@pytest.fixture
def plan(sample, project):
    """The sample plan with the protection of an empty project."""

    def fresh():
        place = {"cwd": str(project), "root": str(project)}
        place["git"] = discovery.discover(str(project))
        kept = [mount for mount in sample["mounts"] if mount["reason"] != "protected"]
        return {**sample, "mounts": [*kept, *protection.mounts(place, [])]}

    return fresh


def make(plan, directory):
    """Make the stand-ins of a plan and return their locks; none is left if that fails."""
    locks = []
    try:
        standins.make(plan, directory, locks)
    except BaseException:
        close(locks)
        raise
    return locks


def protected(plan):
    return [mount for mount in plan["mounts"] if mount["reason"] == "protected"]


def close(locks):
    for lock in locks:
        os.close(lock)


def listing(root):
    """Return everything below `root`, with the content of files and None for directories."""
    found = {}
    for directory, directories, files in os.walk(root):
        for name in directories:
            found[os.path.relpath(f"{directory}/{name}", root)] = None
        for name in files:
            with open(f"{directory}/{name}", errors="surrogateescape") as file:
                found[os.path.relpath(f"{directory}/{name}", root)] = file.read()
    return found


STANDINS = {
    ".claude": None,
    ".claude/settings.json": "{}\n",
    ".claude/settings.local.json": "{}\n",
    ".mcp.json": '{"mcpServers": {}}\n',
    ".git": None,
    "refs": "",
}


# ---------------------------------------------------------------------------- made and removed


def test_stand_ins_are_made_for_what_is_missing(plan, directory, project):
    close(make(plan(), directory))
    assert listing(project) == STANDINS


def test_what_is_there_already_is_left_as_it_is(plan, directory, project):
    (project / ".mcp.json").write_text('{"mcpServers": {"mine": {}}}')
    close(make(plan(), directory))
    assert (project / ".mcp.json").read_text() == '{"mcpServers": {"mine": {}}}'
    recorded = [path for path, _ in standins.recorded(directory)]
    assert f"{project}/.mcp.json" not in recorded


def test_stand_ins_are_removed_with_the_directories_that_were_made_for_them(
    plan, directory, project, record_file
):
    close(make(plan(), directory))
    assert standins.remove(directory) == []
    assert listing(project) == {}
    assert not record_file.exists()


def test_what_was_there_before_is_there_afterwards(plan, directory, project):
    (project / ".claude").mkdir()
    (project / ".claude" / "commands").mkdir()
    (project / "src").write_text("x")
    before = listing(project)
    close(make(plan(), directory))
    standins.remove(directory)
    assert listing(project) == before


def test_a_repository_is_as_it_was_afterwards(plan, directory, project, repository, git):
    repository(project)
    before = listing(project)
    close(make(plan(), directory))
    assert listing(project) != before
    standins.remove(directory)
    assert listing(project) == before


def test_stand_ins_are_recorded_before_the_first_one_is_made(plan, directory, project, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(standins, "_make", killed)
    with pytest.raises(KeyboardInterrupt):
        make(plan(), directory)
    recorded = {os.path.relpath(path, project): text for path, text in standins.recorded(directory)}
    assert recorded == STANDINS


@pytest.mark.parametrize("after", range(6))
def test_a_launch_that_is_killed_at_any_moment_leaves_nothing_for_good(
    plan, directory, project, monkeypatch, after
):
    real, calls = standins._make, []

    def killed(path, text, opener):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(path)
        real(path, text, opener)

    monkeypatch.setattr(standins, "_make", killed)
    try:
        close(make(plan(), directory))
    except KeyboardInterrupt:
        pass
    assert standins.remove(directory) == []
    assert listing(project) == {}


def test_a_second_session_records_nothing_twice(plan, directory, project):
    whole = plan()
    first = make(whole, directory)
    second = make(whole, directory)
    paths = [path for path, _ in standins.recorded(directory)]
    assert len(paths) == len(set(paths)) == len(STANDINS)
    close(first + second)
    assert standins.remove(directory) == [] and listing(project) == {}


def test_a_launch_after_a_killed_one_records_nothing_twice(plan, directory, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(standins, "_make", killed)
        make(plan(), directory)
    close(make(plan(), directory))
    assert len(standins.recorded(directory)) == len(STANDINS)


def test_nothing_is_recorded_when_nothing_is_missing(sample, directory, record_file):
    sample["mounts"] = [m for m in sample["mounts"] if m["reason"] != "protected"]
    assert make(sample, directory) == []
    assert not record_file.exists()


def test_the_record_is_private(plan, directory, record_file):
    close(make(plan(), directory))
    assert record_file.stat().st_mode & 0o777 == 0o600


def test_removing_where_nothing_was_made_does_nothing(directory, record_file):
    assert standins.remove(directory) == []
    assert not record_file.exists()


# ---------------------------------------------------------------------------- locks


def test_stand_ins_that_a_session_uses_are_not_removed(plan, directory, project):
    locks = make(plan(), directory)
    remaining = standins.remove(directory)
    assert {os.path.relpath(path, project) for path in remaining} == STANDINS.keys()
    assert listing(project) == STANDINS
    close(locks)
    assert standins.remove(directory) == []
    assert listing(project) == {}


def test_the_last_of_two_sessions_removes_them(plan, directory, project):
    whole = plan()
    first, second = make(whole, directory), make(whole, directory)
    close(first)
    assert standins.remove(directory)
    assert listing(project) == STANDINS
    close(second)
    assert standins.remove(directory) == []
    assert listing(project) == {}


def test_every_protected_path_is_locked_and_the_locks_do_not_go_to_other_programs(
    plan, directory, project, repository
):
    repository(project)
    whole = plan()
    locks = make(whole, directory)
    assert len(locks) == len(protected(whole))
    assert not any(os.get_inheritable(lock) for lock in locks)
    close(locks)


def test_a_lock_that_another_program_holds_does_not_stop_a_launch_for_ever(
    plan, directory, project, alarm
):
    # A session in the directory above can take it from inside, and keep it as long as it lasts.
    (project / ".mcp.json").write_text('{"mcpServers": {"mine": {}}}')
    with open(project / ".mcp.json") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        alarm(3)
        try:
            close(make(plan(), directory))
        except Failure as failure:
            assert taken.name in str(failure)


def test_one_lock_keeps_only_its_own_stand_in(plan, directory, project):
    close(make(plan(), directory))
    with open(project / ".mcp.json") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert standins.remove(directory) == [f"{project}/.mcp.json"]
    assert listing(project) == {".mcp.json": STANDINS[".mcp.json"]}


# ---------------------------------------------------------------------------- not ours any more


def test_a_stand_in_that_was_changed_stays(plan, directory, project, record_file):
    close(make(plan(), directory))
    (project / ".mcp.json").write_text('{"mcpServers": {"mine": {}}}\n')
    assert standins.remove(directory) == []
    assert listing(project) == {".mcp.json": '{"mcpServers": {"mine": {}}}\n'}
    assert not record_file.exists()


def test_a_stand_in_that_something_was_added_to_stays(plan, directory, project):
    close(make(plan(), directory))
    with open(project / ".mcp.json", "a") as file:
        file.write("\n")
    standins.remove(directory)
    assert (project / ".mcp.json").exists()


def test_a_directory_that_something_was_put_into_stays(plan, directory, project):
    close(make(plan(), directory))
    (project / ".claude" / "agents").mkdir()
    (project / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    standins.remove(directory)
    assert listing(project) == {
        ".claude": None,
        ".claude/agents": None,
        ".git": None,
        ".git/HEAD": "ref: refs/heads/main\n",
    }


def test_a_stand_in_that_the_user_removed_is_no_error(plan, directory, project, record_file):
    close(make(plan(), directory))
    (project / ".mcp.json").unlink()
    assert standins.remove(directory) == []
    assert listing(project) == {} and not record_file.exists()


@pytest.mark.parametrize(
    "replace",
    [
        lambda path, elsewhere: path.symlink_to(elsewhere / "file"),
        lambda path, elsewhere: path.mkdir(),
        lambda path, elsewhere: os.mkfifo(path),
    ],
)
def test_something_else_in_the_place_of_a_stand_in_stays(
    plan, directory, project, tmp_path, replace, alarm
):
    alarm(5)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text(STANDINS[".mcp.json"])
    close(make(plan(), directory))
    (project / ".mcp.json").unlink()
    replace(project / ".mcp.json", elsewhere)
    standins.remove(directory)
    assert os.path.lexists(project / ".mcp.json")
    assert (elsewhere / "file").exists()


def test_a_link_in_the_place_of_a_directory_is_not_followed(plan, directory, project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "settings.json").write_text("{}\n")
    close(make(plan(), directory))
    (project / ".claude").rename(tmp_path / "moved")
    (project / ".claude").symlink_to(elsewhere)
    standins.remove(directory)
    assert (elsewhere / "settings.json").read_text() == "{}\n"


def test_a_project_that_is_gone_is_no_error(plan, directory, project, tmp_path, record_file):
    close(make(plan(), directory))
    project.rename(tmp_path / "moved")
    assert standins.remove(directory) == []
    assert not record_file.exists()


# ---------------------------------------------------------------------------- refusals


def test_a_file_that_vanished_since_the_plan_was_made_ends_the_launch(plan, directory, project):
    (project / ".mcp.json").write_text('{"mcpServers": {"mine": {}}}')
    whole = plan()
    (project / ".mcp.json").unlink()
    with pytest.raises(Failure, match="vanished while the session was prepared"):
        make(whole, directory)
    assert not (project / ".mcp.json").exists()


def test_a_link_that_appeared_on_the_way_ends_the_launch(plan, directory, project, tmp_path):
    whole = plan()
    (tmp_path / "elsewhere").mkdir()
    (project / ".claude").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure, match="cannot be protected"):
        make(whole, directory)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_link_that_appeared_in_the_place_itself_ends_the_launch(
    plan, directory, project, tmp_path
):
    whole = plan()
    (project / ".mcp.json").symlink_to(tmp_path / "not there")
    with pytest.raises(Failure, match=r"\.mcp\.json cannot be protected"):
        make(whole, directory)
    assert not os.path.lexists(tmp_path / "not there")


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_project_that_cannot_be_written_ends_the_launch(plan, directory, project):
    whole = plan()
    project.chmod(0o500)
    try:
        with pytest.raises(Failure, match="make the project directory writable"):
            make(whole, directory)
    finally:
        project.chmod(0o700)


# ---------------------------------------------------------------------------- hostile records


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "{}", "7", '"x"', "[" * 100_000, "[1]", "[[]]", '[["a"]]', "\udcff", "NaN"],
)
def test_a_record_that_is_none_is_passed_over(directory, record_file, text):
    record_file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert standins.recorded(directory) == []
    assert standins.remove(directory) == []


@pytest.mark.parametrize(
    "entry",
    [
        [None, None],
        ["relative", None],
        ["", None],
        [1, 2],
        ["/a", 3],
        ["/a", {}],
        ["/a"],
        ["/a", None, None],
        {"/a": None},
        "ab",
    ],
)
def test_an_entry_of_another_shape_is_passed_over(directory, record_file, entry, tmp_path):
    (tmp_path / "empty").mkdir()
    record_file.write_text(json.dumps([entry, [str(tmp_path / "empty"), None]]))
    assert standins.recorded(directory) == [[str(tmp_path / "empty"), None]]
    assert standins.remove(directory) == []
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("path", ["/", "//", "/.", "/..", "/tmp/", "/tmp/..", "/nonexistent/a/b"])
@pytest.mark.parametrize("text", [None, "", "x"])
def test_an_odd_path_in_a_record_does_no_harm(directory, record_file, path, text):
    record_file.write_text(json.dumps([[path, text]]))
    standins.remove(directory)
    assert os.path.isdir("/tmp")


@pytest.mark.parametrize("path", ["/a\0b", "/tmp/\0", "/\ud800", "/tmp/\udfff/x"])
def test_a_path_that_no_file_can_have_is_no_traceback(directory, record_file, path):
    record_file.write_text(json.dumps([[path, None]]))
    standins.remove(directory)


def test_a_content_that_no_file_can_have_is_no_traceback(directory, record_file, tmp_path):
    (tmp_path / "file").write_text("mine")
    record_file.write_text(json.dumps([[str(tmp_path / "file"), "\ud800"]]))
    standins.remove(directory)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_record_cannot_remove_a_file_with_other_content_or_a_full_directory(
    directory, record_file, tmp_path
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    record_file.write_text(
        json.dumps(
            [
                [str(tmp_path / "file"), "min"],
                [str(tmp_path / "file"), "mine too"],
                [str(tmp_path / "file"), ""],
                [str(tmp_path / "file"), None],
                [str(tmp_path / "full"), None],
                [str(tmp_path / "full"), ""],
            ]
        )
    )
    standins.remove(directory)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "full" / "file").exists()


def test_a_path_through_a_link_in_a_record_removes_nothing(directory, record_file, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "empty").mkdir()
    (tmp_path / "link").symlink_to("real")
    record_file.write_text(json.dumps([[f"{tmp_path}/link/empty", None]]))
    standins.remove(directory)
    assert (tmp_path / "real" / "empty").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: os.symlink("/etc/hostname", p), os.mkdir])
def test_a_record_that_is_no_plain_file_is_passed_over(directory, record_file, make, alarm):
    alarm(5)
    make(record_file)
    assert standins.recorded(directory) == []


@pytest.mark.parametrize("again", [True, False])
def test_a_stand_in_that_another_session_removes_meanwhile_ends_the_launch(
    plan, directory, project, monkeypatch, again
):
    share = standins._share

    def removed(lock, path):
        share(lock, path)
        if path.endswith(".mcp.json"):
            os.unlink(path)
            if again:
                with open(path, "w") as file:
                    file.write("{}")

    monkeypatch.setattr(standins, "_share", removed)
    with pytest.raises(Failure, match="vanished while the session was prepared"):
        make(plan(), directory)


def test_what_is_locked_is_opened_without_following_a_link(tmp_path):
    (tmp_path / "real").write_text("")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(Failure, match="cannot be protected"), sources.Opener() as opener:
        standins._open(f"{tmp_path}/link", opener)
