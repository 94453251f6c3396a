"""What lasts of a session: the instance, Claude's own files in it, the shared credentials."""

import fcntl
import json
import os
import stat
import threading
import time

import pytest

from claudebox import Failure, instance, policy
from claudebox.sandbox import state

KEY = "sk-ant-api03-" + "a" * 60 + "-last-twenty-of-key"


@pytest.fixture
def place(sample):
    """The path of the instance of the sample plan."""
    return sample["instance"]["path"]


@pytest.fixture
def claude(place):
    """The directory of the instance that Claude sees as its own, already there."""
    path = f"{place}/claude"
    os.makedirs(path, 0o700)
    return path


def prepared(plan):
    """Do what a launch does to the state, and return the open instance."""
    opened = state.prepare(plan)
    try:
        state.seed(opened, plan)
    except BaseException:
        opened.close()
        raise
    return opened


def prepare(plan):
    prepared(plan).close()


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def content(path):
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def write(path, text, permissions=0o600):
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.chmod(path, permissions)


# ---------------------------------------------------------------------------- the instance


def test_the_id_of_an_instance_is_the_beginning_of_the_hash_of_its_root(home):
    found = instance.instance_of("/home/u/src/app", str(home))
    assert found == {
        "id": "bb40879b78960cda",
        "path": f"{home}/.claudebox/instances/bb40879b78960cda",
        "root": "/home/u/src/app",
    }


def hashed(root):
    from hashlib import sha256

    return sha256(root).hexdigest()[:16]


def test_the_id_of_an_instance_is_made_from_the_bytes_of_the_path(home):
    root = b"/home/u/caf\xe9 \n"
    assert instance.instance_of(os.fsdecode(root), str(home))["id"] == hashed(root)


def test_claudebox_home_moves_the_instances(home, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAUDEBOX_HOME", str(tmp_path / "state"))
    assert instance.instance_of("/p", str(home))["path"].startswith(f"{tmp_path}/state/instances/")


def test_what_is_made_is_private(sample, home, place):
    prepare(sample)
    state_home = f"{home}/.claudebox"
    for path in (
        state_home,
        f"{state_home}/instances",
        f"{state_home}/credentials",
        place,
        f"{place}/claude",
    ):
        assert mode(path) == 0o700, path
    for directory, _, files in os.walk(state_home):
        for name in files:
            assert mode(f"{directory}/{name}") == 0o600, name


def test_what_is_made_is_private_whatever_the_umask_is(sample, place):
    before = os.umask(0)
    try:
        prepare(sample)
    finally:
        os.umask(before)
    assert mode(place) == mode(f"{place}/claude") == 0o700
    assert mode(f"{place}/claude/.claude.json") == 0o600


def test_a_mode_that_was_widened_is_mended(sample, home, place):
    os.makedirs(place, 0o755)
    for path in (f"{home}/.claudebox", place):
        os.chmod(path, 0o755)
    prepare(sample)
    assert mode(f"{home}/.claudebox") == mode(place) == 0o700


def test_the_metadata_name_the_root_and_the_times(sample, place):
    start = int(time.time())
    prepare(sample)
    metadata = json.loads(content(f"{place}/instance.json"))
    assert list(metadata)[:3] == ["root", "created", "last_used"]
    assert metadata["root"] == sample["instance"]["root"]
    assert start <= metadata["created"] == metadata["last_used"] <= int(time.time())


def test_the_next_launch_keeps_the_time_of_creation(sample, place):
    prepare(sample)
    metadata = json.loads(content(f"{place}/instance.json"))
    write(f"{place}/instance.json", json.dumps({**metadata, "created": 1000, "last_used": 2000}))
    prepare(sample)
    after = json.loads(content(f"{place}/instance.json"))
    assert after["created"] == 1000 and after["last_used"] >= metadata["last_used"]


def test_a_root_that_is_not_utf8_is_kept_in_the_metadata(sample, place):
    sample["instance"]["root"] = "/p/\udce9"
    prepare(sample)
    prepare(sample)
    assert json.loads(content(f"{place}/instance.json"))["root"] == "/p/\udce9"


def test_an_instance_of_another_project_is_refused_with_both_names(sample, place):
    prepare(sample)
    before = content(f"{place}/instance.json")
    sample["instance"]["root"] = "/another/project"
    with pytest.raises(Failure, match="belongs to .*/project, not to /another/project"):
        prepare(sample)
    assert content(f"{place}/instance.json") == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '"x"',
        "[" * 100_000,
        '{"root": "ROOT"}',
        '{"root": "ROOT", "created": "yesterday"}',
        '{"root": "ROOT", "created": null}',
        '{"root": "ROOT", "created": Infinity}',
        '{"root": "ROOT", "created": NaN}',
        "\udcff",
    ],
)
def test_metadata_that_cannot_be_read_are_made_anew(sample, place, text):
    os.makedirs(place, 0o700)
    write(f"{place}/instance.json", text.replace("ROOT", sample["instance"]["root"]))
    prepare(sample)
    assert json.loads(content(f"{place}/instance.json"))["root"] == sample["instance"]["root"]


def test_two_sessions_use_an_instance_at_the_same_time(sample):
    first = prepared(sample)
    second = prepared(sample)
    first.close()
    second.close()


def test_an_instance_in_use_cannot_be_locked_for_removal(sample, place):
    opened = prepared(sample)
    with open(f"{place}/lock") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened.close()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_instance_that_is_removed_while_it_is_waited_for_is_made_anew(sample, place, alarm):
    alarm(10)
    prepare(sample)
    lock = os.open(f"{place}/lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    opened = []
    waiting = threading.Thread(target=lambda: opened.append(prepared(sample)))
    waiting.start()
    time.sleep(0.05)
    os.rename(place, place + ".removed")
    os.close(lock)
    waiting.join(5)
    assert os.path.samestat(os.fstat(opened[0].directory), os.lstat(place))
    opened[0].close()


def test_nothing_stays_open_when_the_instance_is_refused(sample):
    prepare(sample)
    sample["instance"]["root"] = "/another"
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(Failure):
            prepare(sample)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_link_in_the_place_of_an_instance_is_refused(sample, place, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    os.makedirs(os.path.dirname(place))
    os.symlink(tmp_path / "elsewhere", place)
    with pytest.raises(Failure, match="is not a readable directory"):
        prepare(sample)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_file_in_the_place_of_the_state_is_refused(sample, home):
    write(f"{home}/.claudebox", "")
    with pytest.raises(Failure, match=r"\.claudebox"):
        prepare(sample)


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_state_that_cannot_be_made_is_refused_and_claudebox_home_is_named(sample, home):
    home.chmod(0o500)
    try:
        with pytest.raises(Failure, match="cannot be made: Permission denied: .*CLAUDEBOX_HOME"):
            prepare(sample)
    finally:
        home.chmod(0o700)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
@pytest.mark.root
def test_an_instance_of_another_user_is_refused(sample, place):
    os.makedirs(place)
    os.chown(place, 65534, 65534)
    with pytest.raises(Failure, match="belongs to another user"):
        prepare(sample)


# ---------------------------------------------------------------------------- .claude.json


def configuration(claude):
    return json.loads(content(f"{claude}/.claude.json"))


def test_the_questions_of_a_first_start_are_answered(sample, claude):
    prepare(sample)
    assert configuration(claude) == {
        "hasCompletedOnboarding": True,
        "projects": {sample["project"]["cwd"]: {"hasTrustDialogAccepted": True}},
    }


def test_the_directory_where_work_starts_is_the_trusted_one(sample, claude):
    sample["project"]["cwd"] += "/sub"
    prepare(sample)
    assert list(configuration(claude)["projects"]) == [sample["project"]["cwd"]]


def test_the_users_own_keys_and_their_order_are_kept(sample, claude):
    cwd = sample["project"]["cwd"]
    before = {
        "zeta": [1, 2.5, None, {"deep": "größer 😀"}],
        "projects": {
            "/other": {"hasTrustDialogAccepted": False, "history": ["x"]},
            cwd: {"allowedTools": ["Bash"], "lastCost": 1.0},
        },
        "customApiKeyResponses": {"approved": ["one"], "rejected": ["two"]},
        "alpha": {"beta": True},
    }
    write(f"{claude}/.claude.json", json.dumps(before, ensure_ascii=False))
    prepare(sample)
    after = configuration(claude)
    assert list(after)[:4] == list(before)
    before["projects"][cwd]["hasTrustDialogAccepted"] = True
    assert after == {**before, "hasCompletedOnboarding": True}


def test_a_configuration_that_needs_nothing_is_not_written(sample, claude):
    prepare(sample)
    text = content(f"{claude}/.claude.json").replace("\n", "").replace(" ", "")
    write(f"{claude}/.claude.json", text)
    before = os.stat(f"{claude}/.claude.json")
    prepare(sample)
    assert content(f"{claude}/.claude.json") == text
    assert os.path.samestat(before, os.stat(f"{claude}/.claude.json"))


def test_an_api_key_is_approved_by_its_end_and_not_written_down(sample, claude, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    prepare(sample)
    prepare(sample)
    assert configuration(claude)["customApiKeyResponses"] == {"approved": [KEY[-20:]]}
    assert KEY not in content(f"{claude}/.claude.json")


def test_approved_and_rejected_keys_of_before_are_kept(sample, claude, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    answers = {"approved": ["old"], "rejected": ["bad"]}
    write(f"{claude}/.claude.json", json.dumps({"customApiKeyResponses": answers}))
    prepare(sample)
    assert configuration(claude)["customApiKeyResponses"] == {
        "approved": ["old", KEY[-20:]],
        "rejected": ["bad"],
    }


def test_a_key_of_the_host_that_the_plan_does_not_let_in_is_not_approved(
    sample, claude, monkeypatch
):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    sample["env"] = [v for v in sample["env"] if v["name"] != "ANTHROPIC_API_KEY"]
    prepare(sample)
    assert "customApiKeyResponses" not in configuration(claude)


@pytest.mark.parametrize("broken", ["{", "[]", "null", '"text"', "7", "\udcff", "[" * 100_000])
def test_a_configuration_that_cannot_be_read_is_kept_aside(sample, claude, broken):
    write(f"{claude}/.claude.json", broken)
    prepare(sample)
    assert configuration(claude)["hasCompletedOnboarding"] is True
    assert content(f"{claude}/.claude.json.corrupted") == broken


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_configuration_is_filled(sample, claude, empty):
    write(f"{claude}/.claude.json", empty)
    prepare(sample)
    assert configuration(claude)["hasCompletedOnboarding"] is True
    assert not os.path.exists(f"{claude}/.claude.json.corrupted")


@pytest.mark.parametrize("depth", [500, 970])
def test_a_configuration_that_is_nested_deeply_does_not_end_the_launch(sample, claude, depth):
    write(f"{claude}/.claude.json", '{"deep": ' + "[" * depth + "]" * depth + "}")
    prepare(sample)
    assert configuration(claude)["hasCompletedOnboarding"] is True


@pytest.mark.parametrize(
    "odd",
    [
        {"projects": []},
        {"projects": {"CWD": None}},
        {"projects": None, "customApiKeyResponses": "no"},
        {"customApiKeyResponses": {"approved": "all"}},
    ],
)
def test_a_value_of_the_wrong_type_does_not_end_the_launch(sample, claude, odd, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    text = json.dumps(odd).replace("CWD", sample["project"]["cwd"])
    write(f"{claude}/.claude.json", text)
    prepare(sample)
    after = configuration(claude)
    assert after["projects"][sample["project"]["cwd"]]["hasTrustDialogAccepted"] is True
    assert after["customApiKeyResponses"]["approved"] == [KEY[-20:]]


def test_the_configuration_becomes_private_again(sample, claude):
    write(f"{claude}/.claude.json", "{}", 0o644)
    prepare(sample)
    assert mode(f"{claude}/.claude.json") == 0o600


# ---------------------------------------------------------------------------- CLAUDE.md


def test_the_briefing_is_kept_and_imported(sample, claude):
    prepare(sample)
    assert content(f"{claude}/CLAUDE.md") == "@SANDBOX.md\n"
    assert sample["project"]["root"] in content(f"{claude}/SANDBOX.md")


def test_the_briefing_is_of_this_session(sample, claude):
    write(f"{claude}/SANDBOX.md", "of yesterday")
    sample["network"]["tier"] = "none"
    prepare(sample)
    assert "There is no network" in content(f"{claude}/SANDBOX.md")


@pytest.mark.parametrize(
    "own",
    [
        "# Mine\n",
        "# Mine",
        "",
        "one\n\n@OTHER.md\n",
        "see @SANDBOX.md for more\n",
        "@SANDBOX.md.bak\n",
        "windows\r\nlines\r\n",
        "not utf-8: \udce9\udcff\n",
    ],
)
def test_the_users_lines_are_kept_and_the_import_is_added_once(sample, claude, own):
    write(f"{claude}/CLAUDE.md", own)
    prepare(sample)
    with open(f"{claude}/CLAUDE.md", "rb") as file:
        after = file.read()
    kept = own.encode("utf-8", "surrogateescape")
    assert after.startswith(kept)
    assert after[len(kept) :].lstrip(b"\n") == b"@SANDBOX.md\n"
    prepare(sample)
    with open(f"{claude}/CLAUDE.md", "rb") as file:
        assert file.read() == after


@pytest.mark.parametrize(
    "text",
    ["@SANDBOX.md\n", "# Mine\n@SANDBOX.md\nmore\n", "  @SANDBOX.md  ", "x\r\n@SANDBOX.md\r\n"],
)
def test_a_file_that_imports_the_briefing_already_is_not_touched(sample, claude, text):
    with open(f"{claude}/CLAUDE.md", "wb") as file:
        file.write(text.encode())
    before = os.stat(f"{claude}/CLAUDE.md")
    prepare(sample)
    with open(f"{claude}/CLAUDE.md", "rb") as file:
        assert file.read() == text.encode()
    assert os.path.samestat(before, os.stat(f"{claude}/CLAUDE.md"))


# ---------------------------------------------------------------------------- planted things

PLANTED = (".claude.json", "CLAUDE.md", "SANDBOX.md", ".claudebox-temporary")


@pytest.fixture
def victim(tmp_path):
    """A file of the user's outside, which must neither be read nor written."""
    path = tmp_path / "victim"
    path.write_text('{"secret": "of the host"}')
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("name", PLANTED)
def test_a_link_that_was_planted_is_not_followed(sample, claude, victim, name):
    os.symlink(victim, f"{claude}/{name}")
    prepare(sample)
    assert victim.read_text() == '{"secret": "of the host"}'
    assert mode(victim) == 0o644
    for entry in os.scandir(claude):
        if entry.is_file(follow_symlinks=False):
            assert "of the host" not in content(entry.path)


@pytest.mark.parametrize("name", PLANTED)
def test_a_dangling_link_that_was_planted_makes_no_file_elsewhere(sample, claude, tmp_path, name):
    os.symlink(tmp_path / "not there", f"{claude}/{name}")
    prepare(sample)
    assert not os.path.lexists(tmp_path / "not there")


@pytest.mark.parametrize("name", PLANTED)
def test_a_pipe_that_was_planted_is_not_waited_for(sample, claude, name, alarm):
    alarm(5)
    os.mkfifo(f"{claude}/{name}")
    prepare(sample)


@pytest.mark.parametrize("name", PLANTED)
def test_a_directory_that_was_planted_is_moved_or_named_in_the_refusal(sample, claude, name):
    os.mkdir(f"{claude}/{name}")
    write(f"{claude}/{name}/file", "")
    try:
        prepare(sample)
    except Failure as failure:
        assert name in str(failure)


def test_a_directory_is_not_read_as_a_file(tmp_path):
    (tmp_path / "d").mkdir()
    directory = state.open_directory(str(tmp_path))
    try:
        assert state.read_file(directory, "d") is None
    finally:
        os.close(directory)


def test_a_hard_link_that_was_planted_is_replaced_and_not_written_through(sample, claude, victim):
    os.link(victim, f"{claude}/SANDBOX.md")
    prepare(sample)
    assert victim.read_text() == '{"secret": "of the host"}'


def test_a_link_in_the_place_of_claudes_directory_is_refused(sample, place, tmp_path):
    os.makedirs(place, 0o700)
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", f"{place}/claude")
    with pytest.raises(Failure, match="claudebox does not follow links here"):
        prepare(sample)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_planted_file_without_end_is_refused_by_its_name(sample, claude):
    with open(f"{claude}/.claude.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Failure, match=r"\.claude\.json .* is larger than 8 MiB"):
        prepare(sample)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_something_that_stands_where_the_corrupt_file_would_be_kept_is_no_traceback(
    sample, claude, make
):
    write(f"{claude}/.claude.json", "{")
    make(f"{claude}/.claude.json.corrupted")
    try:
        prepare(sample)
    except (Failure, OSError):
        pass


def test_a_file_is_replaced_in_one_step(tmp_path):
    (tmp_path / "f").write_text("old")
    reader = open(tmp_path / "f")
    directory = state.open_directory(str(tmp_path))
    state.replace_file(directory, "f", "new")
    os.close(directory)
    assert reader.read() == "old" and (tmp_path / "f").read_text() == "new"
    assert mode(tmp_path / "f") == 0o600
    reader.close()


# ---------------------------------------------------------------------------- credentials


@pytest.fixture
def host_credentials(home):
    """The host's own credentials of Claude."""
    (home / ".claude").mkdir()
    path = home / ".claude" / ".credentials.json"
    write(path, "{}")
    return path


def test_without_credentials_of_the_host_the_shared_directory_is_empty(sample, home):
    prepare(sample)
    assert os.listdir(home / ".claudebox" / "credentials") == []


def test_the_mount_point_of_the_credentials_can_be_written_by_claude(
    sample, home, host_credentials
):
    prepare(sample)
    point = home / ".claudebox" / "credentials" / ".credentials.json"
    assert mode(point) == 0o600 and point.read_text() == ""


def test_credentials_that_a_session_left_are_not_overwritten(sample, home):
    prepare(sample)
    left = home / ".claudebox" / "credentials" / ".credentials.json"
    write(left, '{"claudeAiOauth": {}}')
    (home / ".claude").mkdir()
    write(home / ".claude" / ".credentials.json", "{}")
    prepare(sample)
    assert left.read_text() == '{"claudeAiOauth": {}}'


def test_the_credentials_of_the_host_are_not_touched(sample, host_credentials):
    before = os.stat(host_credentials)
    prepare(sample)
    after = os.stat(host_credentials)
    assert (before.st_ino, before.st_mtime_ns, before.st_mode) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_mode,
    )


@pytest.mark.parametrize("target", ["/oldroot/etc/x", "../../victim", "/nonexistent"])
def test_a_link_that_was_planted_as_the_mount_point_of_the_credentials_does_not_stay(
    sample, home, host_credentials, target
):
    # bwrap before 0.12 follows it, into the host's own file system.
    os.makedirs(home / ".claudebox" / "credentials", 0o700)
    point = home / ".claudebox" / "credentials" / ".credentials.json"
    point.symlink_to(target)
    try:
        prepare(sample)
    except Failure:
        return
    assert stat.S_ISREG(os.lstat(point).st_mode)


def test_the_plan_mounts_the_hosts_credentials_only_if_there_are_any(project, home):
    def targets():
        return [m["target"] for m in instance.resolve(str(project))["mounts"]]

    point = policy.CREDENTIALS_INSIDE + "/.credentials.json"
    assert policy.CREDENTIALS_INSIDE in targets() and point not in targets()
    (home / ".claude").mkdir()
    write(home / ".claude" / ".credentials.json", "{}")
    assert targets().index(point) > targets().index(policy.CREDENTIALS_INSIDE)


def test_resolving_a_plan_makes_nothing(project, home):
    before = sorted(os.listdir(home)), sorted(os.listdir(project))
    instance.resolve(str(project))
    assert (sorted(os.listdir(home)), sorted(os.listdir(project))) == before


def test_state_that_belongs_to_somebody_else_is_refused(sample, place, monkeypatch):
    os.makedirs(place, 0o700)
    monkeypatch.setattr(state.os, "getuid", lambda: 4242)
    with pytest.raises(Failure, match="belongs to another user"):
        state.open_directory(place)


def test_a_configuration_that_cannot_be_read_is_not_replaced(sample, claude, monkeypatch):
    write(f"{claude}/.claude.json", "{}")
    read = state.read_file
    monkeypatch.setattr(
        state, "read_file", lambda at, name: None if name == ".claude.json" else read(at, name)
    )
    with pytest.raises(Failure, match="cannot be read"):
        prepare(sample)
    assert content(f"{claude}/.claude.json") == "{}"


@pytest.mark.parametrize("name", ["SANDBOX.md", ".claudebox-temporary"])
def test_a_directory_in_the_place_of_a_file_of_claudebox_is_refused(sample, claude, name):
    os.mkdir(f"{claude}/{name}")
    with pytest.raises(Failure, match="is a directory, not a file"):
        prepare(sample)


@pytest.mark.parametrize("name", ["lock", "preparation.lock"])
def test_a_link_in_the_place_of_a_lock_is_not_followed(sample, place, tmp_path, name):
    os.makedirs(place, 0o700)
    os.symlink(tmp_path / "elsewhere", f"{place}/{name}")
    with pytest.raises(OSError, match="symbolic links"):
        prepare(sample)
    assert not os.path.lexists(tmp_path / "elsewhere")
