"""What `claudebox gc` removes, what it never removes, and what it leaves when it is killed."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from test_lifecycle import Terminal

DAY = 86400


def gc(world, *options, **keywords):
    """Run `claudebox gc` from the home directory and return the completed process."""
    return world.run("claudebox", "gc", *options, cwd=world.home, **keywords)


def project(world, name, content="mine"):
    """Make a project with an instance that has something in it; return (project, instance)."""
    directory = world.home / name
    directory.mkdir(parents=True)
    before = set(instances(world))
    result = world.inside(f"printf %s '{content}' > ~/.claude/mine", cwd=directory)
    assert result.returncode == 0, result.stderr
    (instance,) = set(instances(world)) - before
    return directory, instance


def instances(world):
    """Return the instances, without the trash."""
    return [path for path in world.instances() if path.name != ".trash"]


def trash(world):
    """Return what is in the trash."""
    place = world.state / "instances/.trash"
    return list(place.iterdir()) if place.is_dir() else []


def gone(world, name="gone"):
    """Return the instance of a project that is gone."""
    directory, instance = project(world, name)
    shutil.rmtree(directory)
    return instance


def unused_since(instance, days):
    """Have an instance's metadata say that it was last used so many days ago."""
    metadata = json.loads((instance / "instance.json").read_text())
    metadata["last_used"] = int(time.time() - days * DAY)
    (instance / "instance.json").write_text(json.dumps(metadata))


def answers(world, answer, *options):
    """Run `claudebox gc` at a terminal; return (what was shown before the question, status)."""
    terminal = Terminal(world, "claudebox", "gc", *options)
    shown = terminal.wait_for("[y/N]")
    terminal.type(f"{answer}\n")
    return shown, terminal.status()


def namespace():
    """Return the command that runs a shell script with mounts of its own, where it may mount."""
    user = () if os.geteuid() == 0 else ("-U", "-r")
    return ("unshare", *user, "-m", "--propagation", "private", "sh", "-ec")


# ---------------------------------------------------------------------------- what goes


@pytest.mark.parametrize(
    "spelling", [("claudebox", "gc"), ("claudebox", "--gc"), ("claudebox-gc",)]
)
def test_the_instance_of_a_project_that_is_gone_is_removed_and_no_other(world, spelling):
    _, kept = project(world, "kept")
    instance = gone(world)
    result = world.run(*spelling, cwd=world.home)
    assert result.returncode == 0, result.stderr
    assert instances(world) == [kept]
    assert trash(world) == []
    *lines, total = result.stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("removed ") and instance.name in lines[0]
    assert str(world.home / "gone") in lines[0] and " K " in lines[0] and " now " in lines[0]
    assert total.endswith(" freed") and total[0].isdigit() and not total.startswith("0 ")
    assert gc(world).stdout == "0 B freed\n"


def test_a_dry_run_shows_the_same_and_removes_nothing(world):
    instance = gone(world)
    before = sorted(str(path) for path in world.state.rglob("*"))
    shown = gc(world, "--dry-run")
    assert shown.returncode == 0
    assert sorted(str(path) for path in world.state.rglob("*")) == before
    assert instance.is_dir()
    done = gc(world)
    words = done.stdout.replace("removed     ", "would remove").replace(" freed", " would be freed")
    assert shown.stdout == words
    assert instances(world) == []


def test_json_says_what_is_removed_and_kept_and_how_much_is_freed(world):
    directory, instance = project(world, "new\nline")
    directory.rename(world.home / "elsewhere")
    size = sum(
        path.lstat().st_blocks * 512 for path in instance.rglob("*") if not path.is_symlink()
    )
    shown = json.loads(gc(world, "--dry-run", "--json").stdout)
    done = json.loads(gc(world, "--json").stdout)
    assert (shown.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert shown == done
    (row,) = done["instances"]
    assert row["id"] == instance.name
    assert row["root"] == str(directory)
    assert row["verdict"] == "remove" and "gone" in row["reason"]
    assert row["size"] == done["bytes"] == size
    assert abs(row["last_used"] - time.time()) < 60


def test_without_any_state_nothing_is_done_and_nothing_is_made(world):
    result = gc(world)
    assert (result.stdout, result.stderr, result.returncode) == ("0 B freed\n", "", 0)
    assert not world.state.exists()


def test_a_name_cannot_draw_on_the_terminal(world):
    gone(world, "red\x1b[31m\r")
    result = gc(world)
    assert "\x1b" not in result.stdout and "\r" not in result.stdout
    assert len(result.stdout.splitlines()) == 2


def test_an_instance_thousands_of_directories_deep_is_removed(world):
    instance = gone(world)
    here = os.open(instance / "claude", os.O_RDONLY)
    for _ in range(4000):
        os.mkdir("deeper", dir_fd=here)
        below = os.open("deeper", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here))
    os.close(here)
    result = gc(world)
    assert result.returncode == 0, result.stderr
    assert instances(world) == [] and trash(world) == []


def test_what_an_agent_made_unreadable_or_unwritable_is_removed(world):
    instance = gone(world)
    locked = instance / "claude/locked/inner"
    locked.mkdir(parents=True)
    (locked / "file").write_text("x")
    os.mkfifo(locked / "pipe")
    locked.chmod(0)
    locked.parent.chmod(0o500)
    (instance / "claude").chmod(0o500)
    result = gc(world, timeout=20)
    assert result.returncode == 0, result.stderr
    assert instances(world) == [] and trash(world) == []


# ---------------------------------------------------------------------------- what stays


def test_a_live_instance_is_kept_although_its_project_was_moved_away(world):
    session = world.start(
        "claudebox", "-y", "--shell", "--", "-c", "echo up; read x", stdin=subprocess.PIPE
    )
    assert session.stdout.readline() == "up\n"
    world.project.rename(world.home / "moved")
    for options in ((), ("-y", "--older-than", "0"), ("-y", "--force")):
        result = gc(world, *options)
        assert result.returncode == 0
        assert "kept" in result.stdout and "a session uses it" in result.stdout
    assert len(instances(world)) == 1
    session.communicate("\n", timeout=20)
    assert gc(world).returncode == 0
    assert instances(world) == []


def on_a_disk(world):
    """Make an instance of a project on a file system that is not mounted any more; return it."""
    disk = world.home / "disk"
    disk.mkdir()
    script = (
        'mount -t tmpfs disk "$0"; mkdir "$0/project"; cd "$0/project";'
        ' claudebox -y --shell -- -c "echo mine > ~/.claude/mine" 2>&1'
    )
    result = world.run(*namespace(), script, str(disk))
    assert result.returncode == 0, result.stdout + result.stderr
    (instance,) = instances(world)
    metadata = json.loads((instance / "instance.json").read_text())
    assert metadata["root"] == str(disk / "project")
    return instance


def test_the_instance_of_a_project_on_a_disk_that_is_not_mounted_is_kept_and_named(world):
    instance = on_a_disk(world)
    result = gc(world)
    assert result.returncode == 0
    assert instance.is_dir()
    assert "kept" in result.stdout and "not mounted" in result.stdout
    assert str(world.home / "disk/project") in result.stdout
    # The mount point may vanish with the disk.
    (world.home / "disk").rmdir()
    assert "kept" in gc(world, "--older-than", "0", "-y").stdout
    assert (instance / "claude/mine").read_text() == "mine\n"


def test_force_removes_what_is_not_mounted_after_asking(world):
    instance = on_a_disk(world)
    alone = world.run("setsid", "--wait", "claudebox", "gc", "--force")
    assert alone.returncode == 1 and "no terminal" in alone.stderr
    shown, status = answers(world, "", "--force")
    assert instance.name in shown and status == 1
    assert instance.is_dir()
    shown, status = answers(world, "y", "--force")
    assert status == 0
    assert instances(world) == []


def unreadable(world):
    """Make a project whose root cannot be looked at; return (what to mend, instance)."""
    directory, instance = project(world, "closed/project")
    if os.geteuid() != 0:
        directory.parent.chmod(0)
        return directory.parent, instance
    # Permissions do not hold root back; a loop of links does.
    directory.parent.rename(world.home / "elsewhere")
    directory.parent.symlink_to(directory.parent)
    return None, instance


def test_the_instance_of_a_project_that_cannot_be_read_is_kept_and_named(world):
    closed, instance = unreadable(world)
    try:
        result = gc(world)
        assert result.returncode == 0
        assert "kept" in result.stdout and "unreadable" in result.stdout
        assert str(world.home / "closed/project") in result.stdout
        assert gc(world, "--force", "--dry-run").stdout.startswith("would remove")
        assert instance.is_dir()
        assert gc(world, "--force", "--yes").returncode == 0
        assert instances(world) == []
    finally:
        if closed:
            closed.chmod(0o700)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"root": 5}', '{"root": "/nowhere"}'])
def test_an_instance_without_readable_metadata_is_kept_and_reported(world, content):
    instance = gone(world)
    if content is None:
        (instance / "instance.json").unlink()
    else:
        (instance / "instance.json").write_text(content)
    for options in ((), ("--force", "--older-than", "0", "-y")):
        result = gc(world, *options)
        assert result.returncode == 0, result.stderr
        assert "kept" in result.stdout and instance.name in result.stdout
        assert "metadata" in result.stdout
    assert (instance / "claude/mine").read_text() == "mine"


def test_metadata_that_is_a_pipe_or_endless_does_not_stop_gc(world):
    instance, other = gone(world), gone(world, "other")
    (instance / "instance.json").unlink()
    os.mkfifo(instance / "instance.json")
    result = gc(world, timeout=20)
    assert result.returncode == 0, result.stderr
    assert instance.is_dir() and not other.exists()


def test_an_instance_directory_replaced_by_a_link_to_the_home_is_refused(world):
    instance = gone(world)
    other = gone(world, "other")
    shutil.rmtree(instance)
    instance.symlink_to(world.home)
    (world.home / "precious").write_text("mine")
    # The home has what an instance has, too.
    for name in ("instance.json", "lock"):
        shutil.copy(other / name, world.home / name)
    for options in ((), ("--force", "--older-than", "0", "-y")):
        result = gc(world, *options)
        assert "kept" in result.stdout and instance.name in result.stdout
        assert instance.is_symlink()
    assert (world.home / "precious").read_text() == "mine"
    assert (world.home / "instance.json").exists()
    # It does not keep the others from being removed.
    assert not other.exists()


def outside(world):
    """Make a directory with a file in it that is not to be touched, and return it."""
    precious = world.home / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    precious.chmod(0o755)
    return precious


def test_nothing_outside_is_touched_through_links_in_an_instance(world):
    precious = outside(world)
    instance = gone(world)
    (instance / "claude/link").symlink_to(precious)
    (instance / "claude/file").symlink_to(precious / "file")
    os.link(precious / "file", instance / "claude/hard")
    (instance / "claude/.trash").symlink_to(precious)
    before = precious.stat().st_mode, (precious / "file").stat().st_mode
    assert gc(world).returncode == 0
    assert instances(world) == [] and trash(world) == []
    assert (precious / "file").read_text() == "mine"
    assert (precious.stat().st_mode, (precious / "file").stat().st_mode) == before


@pytest.mark.parametrize("name", [".trash", ""])
def test_a_link_in_place_of_the_trash_or_of_all_instances_is_refused(world, name):
    precious = outside(world)
    instance = gone(world)
    place = world.state / "instances" / name
    if name == "":
        place = world.state / "instances"
        place.rename(precious / "instances")
        instance = precious / "instances" / instance.name
        place.symlink_to(precious / "instances")
    else:
        place.symlink_to(precious)
    result = gc(world)
    assert result.returncode == 1
    assert result.stderr.startswith("claudebox: ") and "Traceback" not in result.stderr
    assert (precious / "file").read_text() == "mine"
    assert instance.is_dir()


def test_files_beside_the_instances_are_not_touched(world):
    instance = gone(world)
    stray = world.state / "instances/notes.txt"
    stray.write_text("mine")
    directory = world.state / "instances/a directory of the user"
    directory.mkdir()
    (world.state / "other").write_text("mine")
    gc(world, "--force", "--older-than", "0", "-y")
    assert not instance.exists()
    assert stray.read_text() == (world.state / "other").read_text() == "mine"
    assert directory.is_dir()


# ---------------------------------------------------------------------------- interrupted


def test_what_an_interrupted_gc_left_in_the_trash_the_next_one_finishes(world):
    _, instance = project(world, "kept")
    left = world.state / "instances/.trash/0123456789abcdef.77"
    shutil.copytree(instance, left)
    result = gc(world)
    assert result.returncode == 0
    assert trash(world) == []
    assert instances(world) == [instance]


def test_killed_at_any_moment_gc_leaves_an_instance_or_trash_that_the_next_one_finishes(world):
    instance = gone(world)
    original = world.home / "original"
    shutil.copytree(instance, original)
    whole = sorted(path.relative_to(original) for path in original.rglob("*"))
    kept, other = project(world, "kept")
    points = [("renameat", 1), ("mkdirat", 1), *(("unlinkat", n) for n in (1, 2, 4, 7, 11))]
    killed = 0
    for call, number in points:
        shutil.rmtree(world.state / "instances/.trash", ignore_errors=True)
        shutil.rmtree(instance, ignore_errors=True)
        shutil.copytree(original, instance)
        # What mkdir(2) is called on some machines.
        calls = "mkdir,mkdirat" if call == "mkdirat" else call
        status = world.run(
            *("strace", "-o", "/dev/null", "-e", f"trace={calls}"),
            *("-e", f"inject={calls}:signal=SIGKILL:when={number}", "claudebox", "gc"),
            cwd=world.home,
        ).returncode
        was_killed = status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        killed += was_killed
        if instance.exists():
            assert sorted(p.relative_to(instance) for p in instance.rglob("*")) == whole
        elif was_killed:
            assert trash(world)
        assert gc(world).returncode == 0
        assert instances(world) == [other] and trash(world) == [], (call, number)
    assert killed >= 5
    assert kept.is_dir()


def test_two_at_once_do_not_disturb_each_other(world):
    instance = gone(world)
    for number in range(20):
        (instance / f"claude/file{number}").touch()
    slow = ("strace", "-o", os.devnull, "-e", "trace=unlinkat")
    slow = (*slow, "-e", "inject=unlinkat:delay_enter=20000")
    both = [world.start(*slow, "claudebox", "gc") for _ in range(2)]
    for one in both:
        _, errors = one.communicate(timeout=30)
        assert (one.returncode, errors) == (0, "")
    assert instances(world) == [] and trash(world) == []


# ---------------------------------------------------------------------------- older than


def test_older_than_takes_what_was_not_used_for_that_long_after_asking(world):
    _, old = project(world, "old")
    _, young = project(world, "young")
    unused_since(old, 40)
    unused_since(young, 20)
    assert gc(world).stdout == "0 B freed\n"
    alone = world.run("setsid", "--wait", "claudebox", "gc", "--older-than", "30")
    assert alone.returncode == 1 and "no terminal" in alone.stderr
    shown, status = answers(world, "n", "--older-than", "30")
    assert "40 days" in shown and old.name in shown and young.name not in shown
    assert status == 1
    assert set(instances(world)) == {old, young}
    assert answers(world, "y", "--older-than", "30")[1] == 0
    assert instances(world) == [young]
    assert gc(world, "--older-than", "10", "--yes").returncode == 0
    assert instances(world) == []


@pytest.mark.parametrize("days", ["-1", "nan", "soon", ""])
def test_older_than_takes_a_number_of_days_only(world, days):
    _, instance = project(world, "kept")
    result = gc(world, f"--older-than={days}", "-y")
    assert result.returncode == 2 and "older-than" in result.stderr
    assert instance.is_dir()


# ---------------------------------------------------------------------------- stand-ins


def test_stand_ins_that_a_killed_session_left_are_removed_and_nothing_else_of_the_project(world):
    session = world.start("claudebox", "-y", "--shell", "--", "-c", "echo up; exec sleep 60")
    assert session.stdout.readline() == "up\n"
    session.kill()
    session.wait()
    left = {path.name for path in world.project.iterdir()}
    assert {".claude", ".mcp.json"} <= left
    (world.project / "mine").write_text("mine")
    (world.project / ".mcp.json").write_text('{"mcpServers": {"mine": {}}}')
    assert gc(world, "--dry-run").returncode == 0
    assert {path.name for path in world.project.iterdir()} == left | {"mine"}
    end = time.monotonic() + 10
    while time.monotonic() < end:
        # The sandbox may need a moment to die with its launcher.
        assert gc(world).returncode == 0
        if {path.name for path in world.project.iterdir()} == {"mine", ".mcp.json"}:
            break
    assert {path.name for path in world.project.iterdir()} == {"mine", ".mcp.json"}
    assert "mine" in (world.project / ".mcp.json").read_text()
    assert len(instances(world)) == 1
    assert not (instances(world)[0] / "standins.json").exists()
