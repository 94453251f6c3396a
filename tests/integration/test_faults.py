"""What goes wrong around claudebox: full disks, broken files, a wrong clock, a kill at every step.

After each, the next launch works, and nothing of the user's is lost.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scratch import World
from test_gc import namespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fake_anthropic import credentials

MEMORY = "My own line.\n\n- another one, without an end"
CONFIGURATION = {"theme": "light", "mcpServers": {"mine": {"command": "true"}}, "numStartups": 7}
IS_ROOT = os.geteuid() == 0
LAUNCH = ("claudebox", "-y", "--shell", "--", "-c", "echo works")


def furnish(world):
    """Give the world a project, a login and an instance with the user's own files in it."""
    (world.project / "src").mkdir()
    (world.project / "src/code.py").write_text("print()\n")
    (world.project / "CLAUDE.md").write_text("of the project\n")
    login = world.home / ".claude/.credentials.json"
    login.parent.mkdir()
    login.write_text(credentials("sk-ant-oat01-a", "sk-ant-ort01-b"))
    login.chmod(0o600)
    path = Path(world.run("claudebox", "instance", "path").stdout.removesuffix("\n"))
    claude = path / "claude"
    (claude / "projects/p").mkdir(parents=True)
    (claude / "projects/p/one.jsonl").write_text('{"mine": true}\n')
    # Neither has in it yet what claudebox adds.
    (claude / "CLAUDE.md").write_text(MEMORY)
    (claude / ".claude.json").write_text(json.dumps(CONFIGURATION))
    (claude / "settings.json").write_text('{"model": "opus"}')
    (path / "instance.json").write_text(
        json.dumps({"root": str(world.project), "created": 1, "last_used": 1})
    )
    for directory in (world.state, world.state / "instances", path, claude):
        directory.chmod(0o700)
    return path


def assert_nothing_is_lost(world, instance):
    """Hold the user's own files against what `furnish` wrote."""
    claude = instance / "claude"
    assert (claude / "CLAUDE.md").read_text().startswith(MEMORY)
    configuration = json.loads((claude / ".claude.json").read_text())
    assert {name: configuration[name] for name in CONFIGURATION} == CONFIGURATION
    assert (claude / "settings.json").read_text() == '{"model": "opus"}'
    assert (claude / "projects/p/one.jsonl").read_text() == '{"mine": true}\n'
    assert (world.project / "src/code.py").read_text() == "print()\n"
    assert (world.project / "CLAUDE.md").read_text() == "of the project\n"
    login = world.home / ".claude/.credentials.json"
    assert "sk-ant-ort01-b" in login.read_text()
    assert stat.S_IMODE(login.stat().st_mode) == 0o600


def assert_the_next_launch_works(world, instance):
    """Launch, and look whether all is as if nothing had happened."""
    result = world.run(*LAUNCH)
    assert (result.stdout, result.returncode) == ("works\n", 0), result.stderr[-400:]
    assert_nothing_is_lost(world, instance)
    claude = instance / "claude"
    assert (claude / "CLAUDE.md").read_text() == f"{MEMORY}\n@SANDBOX.md\n"
    assert (claude / "SANDBOX.md").read_text().startswith("# You are in a claudebox sandbox")
    configuration = json.loads((claude / ".claude.json").read_text())
    assert configuration["projects"][str(world.project)]["hasTrustDialogAccepted"] is True
    assert json.loads((instance / "instance.json").read_text())["root"] == str(world.project)
    # Nothing half made is left, neither in the project nor in the state.
    assert sorted(os.listdir(world.project)) == ["CLAUDE.md", "src"]
    assert sorted(os.listdir(instance)) == ["claude", "instance.json", "lock", "preparation.lock"]
    assert [str(path) for path in world.home.rglob("*temporary*")] == []


def failed_with_one_line(result):
    """Say whether a launch failed with a sentence, after the audit."""
    last = result.stderr.splitlines()[-1]
    return result.returncode == 1 and last.startswith("claudebox: ") and "Traceback" not in last


# ---------------------------------------------------------------------------- killed

CHANGES = (
    *("mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"),
    *("openat", "write", "link", "linkat", "fchmod", "ftruncate", "pwrite64"),
)


def strace(world, instance, log, *options):
    """Return the start of a command line that traces what a launch does to the disk."""
    claude = instance / "claude"
    places = [
        *(world.state, world.state / "instances", world.state / "credentials", instance, claude),
        *(instance / name for name in ("lock", "preparation.lock", ".claudebox-temporary")),
        *(claude / ".claudebox-temporary", world.project, world.project / ".claude"),
        *(world.project / ".mcp.json", world.home / ".claude/.credentials.json"),
    ]
    paths = [word for place in places for word in ("-P", str(place))]
    return ("strace", "-o", str(log), "-e", f"trace={','.join(CHANGES)}", *options, *paths)


def steps(log):
    """Return (system call, its ordinal) of every step of a launch that changes something."""
    counts, found = {}, []
    for line in log.read_text().splitlines():
        match = re.match(r"(\w+)\(", line)
        if match:
            call = match[1]
            counts[call] = counts.get(call, 0) + 1
            if "EEXIST" not in line and (call != "openat" or "O_CREAT" in line):
                found.append((call, counts[call]))
    return found


def killed_at(base, step):
    """Kill a launch at a step, look at what it left, and launch again; return the kill's status."""
    call, number = step
    base.mkdir()
    world = World(base)
    instance = furnish(world)
    inject = ("-e", f"inject={call}:signal=SIGKILL:when={number}")
    result = world.run(*strace(world, instance, os.devnull, *inject), *LAUNCH)
    try:
        assert_nothing_is_lost(world, instance)
        assert_the_next_launch_works(world, instance)
    except AssertionError as error:
        raise AssertionError(f"killed at {call} {number}: {error}") from error
    return result.returncode


def test_a_kill_at_every_step_of_a_launch_costs_nothing(tmp_path):
    base = tmp_path / "whole"
    base.mkdir()
    world = World(base)
    instance = furnish(world)
    log = tmp_path / "log"
    assert world.run(*strace(world, instance, log), *LAUNCH).stdout == "works\n"
    found = steps(log)
    calls = {call for call, _ in found}
    assert calls & {"mkdir", "mkdirat"} and {"openat", "renameat", "unlinkat"} <= calls
    assert len(found) > 20, found
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(killed_at, tmp_path / f"step{index}", step)
            for index, step in enumerate(found)
        ]
    statuses = [job.result() for job in jobs]
    killed = [status in (-signal.SIGKILL, 128 + signal.SIGKILL) for status in statuses]
    assert sum(killed) >= len(found) - 2, list(zip(found, statuses, strict=True))


def test_a_kill_while_the_very_first_state_is_made_costs_nothing(world):
    path = Path(world.run("claudebox", "instance", "path").stdout.removesuffix("\n"))
    statuses = []
    for number in range(1, 9):
        shutil.rmtree(world.state, ignore_errors=True)
        inject = f"inject=mkdir,mkdirat:signal=SIGKILL:when={number}"
        trace = ("strace", "-o", os.devnull, "-e", "trace=mkdir,mkdirat", "-e", inject)
        status = world.run(*trace, *LAUNCH).returncode
        statuses.append(status)
        assert world.run(*LAUNCH).stdout == "works\n", number
        assert list(world.project.iterdir()) == []
        assert world.instances() == [path]
        if status == 0:
            break
    assert -signal.SIGKILL in statuses or 128 + signal.SIGKILL in statuses


# ---------------------------------------------------------------------------- full disks

FULL = """
state=$HOME/.claudebox
mv "$state" "$HOME/saved"
mkdir "$state"
mount -t tmpfs -o "size=$1,nr_inodes=$2,mode=700" full "$state"
cp -a "$HOME/saved/." "$state"
cd "$PWD"
for free in 0 1 2 3 4 6 9; do
    if [ "$3" = space ]; then
        cat /dev/zero > "$state/filler" 2>&- || :
        size=$(stat -c %s "$state/filler")
        truncate -s $((size - free * 4096)) "$state/filler"
    else
        n=0
        while touch "$state/filler$n" 2>&-; do n=$((n + 1)); done
        while [ "$free" -gt 0 ] && [ "$n" -gt 0 ]; do
            n=$((n - 1)); free=$((free - 1)); rm "$state/filler$n"
        done
    fi
    status=0
    claudebox -y --shell -- -c 'echo launched' 2> "$HOME/errors" || status=$?
    echo "status $status $(tail -n 1 "$HOME/errors")"
    rm -f "$state"/filler*
done
cp -a "$state" "$HOME/after"
"""


@pytest.mark.parametrize("what", ["space", "files"])
def test_a_full_disk_ends_a_launch_with_one_line_and_costs_nothing(world, what):
    instance = furnish(world)
    size, files = ("256k", "1000") if what == "space" else ("4m", "60")
    result = world.run(*namespace(), FULL, "sh", size, files, what)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("status")]
    assert len(lines) == 7
    failures = [line for line in lines if not line.startswith("status 0")]
    assert failures, result.stdout
    for line in failures:
        assert line.startswith("status 1 claudebox: ") and "No space left" in line, line
    assert result.stdout.count("launched") == len(lines) - len(failures)
    world.state.rmdir()
    (world.home / "after").rename(world.state)
    assert_nothing_is_lost(world, instance)
    assert_the_next_launch_works(world, instance)


FULL_PROJECT = """
mount -t tmpfs -o size=64k full "$PWD/small"
mkdir "$PWD/small/project"; cd "$PWD/small/project"
echo mine > mine
cat /dev/zero > filler 2>&- || :
status=0
claudebox -y --shell -- -c 'cat mine' 2> "$HOME/errors" || status=$?
echo "status $status"
ls -A
rm filler
claudebox -y --shell -- -c 'cat mine' 2> "$HOME/errors"
ls -A
"""


def test_a_full_disk_under_the_project_costs_nothing(world):
    (world.project / "small").mkdir()
    result = world.run(*namespace(), FULL_PROJECT)
    assert result.returncode == 0, result.stdout + result.stderr
    before, _, after = result.stdout.partition("status ")
    assert before == "mine\n" or after.startswith("1")
    assert after.splitlines()[1:] == ["filler", "mine", "mine", "mine"]


# ---------------------------------------------------------------------------- read-only, unreadable


READ_ONLY = """
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
cd "$PWD"
shift
exec "$@"
"""


def test_a_launch_with_too_few_descriptors_leaves_no_stand_in(world):
    """The deeper the project lies, the more of them its clean-up needs."""
    project = world.project.joinpath(*"abcdefghijkl")
    project.mkdir(parents=True)
    for limit in range(28, 48, 4):
        script = f"ulimit -n {limit}; exec claudebox -y --shell -- -c true"
        assert failed_with_one_line(world.run("sh", "-c", script, cwd=project)), limit
        assert list(project.iterdir()) == [], limit


@pytest.mark.parametrize("place", [".", ".claudebox"])
def test_a_read_only_home_ends_a_launch_with_one_line(world, place):
    instance = furnish(world)
    path = os.path.normpath(world.home / place)
    result = world.run(*namespace(), READ_ONLY, "sh", path, *LAUNCH)
    assert failed_with_one_line(result), result.stderr[-400:]
    assert str(world.home) in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert_nothing_is_lost(world, instance)
    assert_the_next_launch_works(world, instance)


def test_a_read_only_home_without_any_state_ends_a_launch_with_one_line(world):
    result = world.run(*namespace(), READ_ONLY, "sh", str(world.home), *LAUNCH)
    assert failed_with_one_line(result), result.stderr[-400:]
    assert f"{world.state} cannot be made" in result.stderr
    assert world.run(*LAUNCH).stdout == "works\n"


@pytest.mark.parametrize("place", ["", "claude"])
def test_an_unreadable_instance_ends_a_launch_and_is_named(world, place):
    instance = furnish(world)
    closed = instance / place
    if IS_ROOT:
        os.chown(closed, 12345, 12345)
    else:
        closed.chmod(0)
    try:
        result = world.run(*LAUNCH)
        assert failed_with_one_line(result), result.stderr[-400:]
        assert (place or str(instance)) in result.stderr.splitlines()[-1]
        listing = world.run("claudebox", "instance", "list")
        assert listing.returncode == 0 and instance.name in listing.stdout
        assert world.run("claudebox", "gc").returncode == 0
    finally:
        if IS_ROOT:
            os.chown(closed, 0, 0)
        closed.chmod(0o700)
    assert_nothing_is_lost(world, instance)
    assert_the_next_launch_works(world, instance)


@pytest.mark.skipif(IS_ROOT, reason="permissions do not hold root back")
@pytest.mark.parametrize("name", [".claude.json", "CLAUDE.md", "settings.json"])
def test_an_unreadable_file_of_the_users_is_not_replaced(world, name):
    instance = furnish(world)
    file = instance / "claude" / name
    file.chmod(0)
    world.run(*LAUNCH)
    file.chmod(0o600)
    assert_nothing_is_lost(world, instance)
    assert_the_next_launch_works(world, instance)


@pytest.mark.skipif(IS_ROOT, reason="permissions do not hold root back")
@pytest.mark.parametrize("name", ["instance.json", "lock", "preparation.lock"])
def test_an_unreadable_file_of_claudeboxs_own_costs_nothing(world, name):
    instance = furnish(world)
    (instance / name).touch()
    (instance / name).chmod(0)
    result = world.run(*LAUNCH)
    assert result.returncode == 0 or failed_with_one_line(result), result.stderr[-400:]
    (instance / name).chmod(0o600)
    assert_the_next_launch_works(world, instance)


# ---------------------------------------------------------------------------- broken files


@pytest.mark.parametrize("keep", [0, 1, 20, -2])
def test_truncated_metadata_is_made_anew(world, keep):
    instance = furnish(world)
    file = instance / "instance.json"
    file.write_text(file.read_text()[:keep])
    assert_the_next_launch_works(world, instance)
    assert abs(json.loads(file.read_text())["last_used"] - time.time()) < 60
    (row,) = json.loads(world.run("claudebox", "instance", "list", "--json").stdout)
    assert (row["root"], row["state"]) == (str(world.project), "present")


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '{"mcpServers": {"mine":', "\0" * 5000])
def test_a_broken_configuration_of_claude_is_kept_under_another_name(world, content):
    instance = furnish(world)
    claude = instance / "claude"
    (claude / ".claude.json").write_text(content)
    assert world.run(*LAUNCH).stdout == "works\n"
    assert json.loads((claude / ".claude.json").read_text())["hasCompletedOnboarding"] is True
    assert (claude / ".claude.json.corrupted").read_text() == content
    # The next broken one does not take the place of the first.
    (claude / ".claude.json").write_text("{")
    assert world.run(*LAUNCH).stdout == "works\n"
    kept = [path.read_text() for path in claude.glob(".claude.json.corrupted*")]
    assert sorted(kept) == sorted([content, "{"])


def test_an_empty_configuration_of_claude_is_filled(world):
    instance = furnish(world)
    (instance / "claude/.claude.json").write_text("")
    assert world.run(*LAUNCH).stdout == "works\n"
    configuration = json.loads((instance / "claude/.claude.json").read_text())
    assert configuration["hasCompletedOnboarding"] is True


def test_a_broken_record_of_stand_ins_does_not_stop_a_launch_and_removes_nothing(world):
    instance = furnish(world)
    for content in ("{", '[["/etc/passwd", null], ["relative", ""], [1, 2], "x"]', "[" * 100_000):
        (instance / "standins.json").write_text(content)
        result = world.run(*LAUNCH)
        assert (result.stdout, result.returncode) == ("works\n", 0), result.stderr[-400:]
        assert_nothing_is_lost(world, instance)


# ---------------------------------------------------------------------------- a wrong clock


def test_a_clock_in_the_past_costs_nothing(world):
    """To what was written in the year 2100, this is the past."""
    instance = furnish(world)
    future = 4_102_444_800
    metadata = {"root": str(world.project), "created": future, "last_used": future}
    (instance / "instance.json").write_text(json.dumps(metadata))
    # A lock that a killed claude left; claude goes by its age.
    (instance / "claude/.claude.json.lock").mkdir()
    for path in (*instance.rglob("*"), instance, world.state, world.state / "instances"):
        os.utime(path, (future, future))
    (row,) = world.run("claudebox", "instance", "list").stdout.splitlines()
    assert " now " in row and "present" in row
    result = world.run("claudebox", "gc", "--older-than", "1", "-y")
    assert (result.stdout, result.returncode) == ("0 B freed\n", 0)
    assert_the_next_launch_works(world, instance)
    assert abs(json.loads((instance / "instance.json").read_text())["last_used"] - time.time()) < 60


def test_a_lock_that_a_killed_claude_left_does_not_stop_a_launch(world):
    instance = furnish(world)
    lock = instance / "claude/.claude.json.lock"
    lock.mkdir()
    os.utime(lock, (time.time() - 60, time.time() - 60))
    begin = time.monotonic()
    assert_the_next_launch_works(world, instance)
    assert time.monotonic() - begin < 3
    assert not lock.exists()


def test_a_killed_session_frees_its_locks_at_once(world):
    session = world.start(
        "claudebox", "-y", "--shell", "--", "-c", "echo up; read x", stdin=subprocess.PIPE
    )
    assert session.stdout.readline() == "up\n"
    session.kill()
    session.wait()
    result = world.run("claudebox", "instance", "remove", "-y", ".")
    assert result.returncode == 0, result.stderr
