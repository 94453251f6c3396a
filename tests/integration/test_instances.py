"""Instances from the outside and from inside: what separates them, what names them, who uses them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_lifecycle import Terminal, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fake_anthropic import FakeMessagesAPI, text


def other_project(world, name="other"):
    """Make a second project beside the first and return it."""
    project = world.home / name
    project.mkdir(parents=True)
    return project


def path_of(world, directory=".", **options):
    """Return what `claudebox instance path` prints, without the end of the line."""
    result = world.run("claudebox", "instance", "path", str(directory), **options)
    assert result.returncode == 0, result.stderr
    return result.stdout.removesuffix("\n")


def instances(world):
    """Return the instance directories, without the trash."""
    return [path for path in world.instances() if path.name != ".trash"]


def rows(world):
    """Return the rows of `claudebox instance list --json`."""
    result = world.run("claudebox", "instance", "list", "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def live_session(world):
    """Start a session that lasts until its standard input is closed."""
    session = world.start(
        "claudebox", "-y", "--shell", "--", "-c", "echo up; read x", stdin=subprocess.PIPE
    )
    assert session.stdout.readline() == "up\n"
    return session


def end(session):
    """Let a live session end, and wait for it."""
    session.communicate("\n", timeout=20)
    assert session.returncode == 0


# ---------------------------------------------------------------------------- isolation, identity


def test_history_todos_and_settings_of_a_project_are_invisible_inside_another(world):
    world.inside(
        "cd ~/.claude && mkdir -p todos projects/p && echo mark-of-the-first"
        " | tee history.jsonl todos/1.json settings.json projects/p/1.jsonl"
    )
    other = other_project(world)
    search = "cat ~/.claude/{history.jsonl,todos/*,settings.json}; grep -rl mark-of-the /"
    search += " --exclude-dir=usr --exclude-dir=proc --exclude-dir=sys 2>&-; ls ~/.claudebox"
    there = world.inside(search, cwd=other)
    assert "mark-of" not in there.stdout
    # `ls` of the state fails, too: the instances are not inside at all.
    assert there.returncode != 0
    here = world.inside(search).stdout
    assert here.count("mark-of-the-first") >= 3
    assert len(world.instances()) == 2


def test_a_conversation_of_claude_in_a_project_is_invisible_inside_another(world):
    with FakeMessagesAPI([text("an answer for the first")]) as api:
        world.environment |= api.environment
        options = ("-y", "--env", "ANTHROPIC_BASE_URL")
        first = world.run("claudebox", *options, "--", "-p", "a question of the first")
        assert first.stdout == "an answer for the first\n"
    search = "grep -rl 'question of the first' ~/.claude"
    assert world.inside(search, cwd=other_project(world)).stdout == ""
    assert ".jsonl" in world.inside(search).stdout


def test_a_project_is_the_same_instance_however_its_path_is_written(world):
    link = world.home / "link"
    link.symlink_to(world.project)
    (world.home / "deep").symlink_to(world.home / "project/..")
    name = path_of(world)
    for way in (
        f"{world.project}/",
        f"{world.project}/../project//.",
        link,
        f"{link}/",
        f"{world.home}/deep/project",
        "../project",
        "../link",
    ):
        assert path_of(world, way) == name, way
    world.inside("echo one > ~/.claude/mine")
    # The shell's idea of where it is (PWD) keeps the link.
    result = world.inside("cat ~/.claude/mine; pwd", cwd=link, env={"PWD": str(link)})
    assert result.stdout == f"one\n{world.project}\n"
    result = world.inside("cat ~/.claude/mine", cwd=f"{world.home}/deep/project/")
    assert result.stdout == "one\n"
    assert [str(path) for path in world.instances()] == [name]


def test_an_instance_moved_to_the_place_of_another_project_is_detected_not_merged(world):
    world.inside("echo first > ~/.claude/mine")
    (instance,) = world.instances()
    other = other_project(world)
    moved = instance.with_name(os.path.basename(path_of(world, other)))
    instance.rename(moved)
    before = (moved / "instance.json").read_bytes()
    result = world.inside("cat ~/.claude/mine", cwd=other)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"belongs to {world.project}, not to {other}" in result.stderr
    assert (moved / "instance.json").read_bytes() == before
    (row,) = rows(world)
    assert str(world.project) in row["state"] and row["root"] is None
    moved.rename(instance)
    assert world.inside("cat ~/.claude/mine").stdout == "first\n"


def test_metadata_that_names_another_root_ends_the_launch(world):
    world.inside("true")
    (instance,) = world.instances()
    metadata = json.loads((instance / "instance.json").read_text())
    metadata["root"] = str(other_project(world))
    (instance / "instance.json").write_text(json.dumps(metadata))
    result = world.inside("touch launched")
    assert result.returncode == 1
    assert "its metadata was moved or changed" in result.stderr
    assert not (world.project / "launched").exists()


# ---------------------------------------------------------------------------- list, path, remove


def test_path_prints_the_directory_and_makes_nothing(world):
    assert re.fullmatch(
        f"{re.escape(str(world.state))}/instances/[0-9a-f]{{16}}", path_of(world, world.project)
    )
    assert not world.state.exists()


def test_list_shows_root_size_last_use_and_whether_a_session_is_live(world):
    assert rows(world) == []
    other = other_project(world, "new\nline")
    world.inside("head -c 300000 /dev/urandom > ~/.claude/large", cwd=other)
    session = live_session(world)
    found = {row["root"]: row for row in rows(world)}
    assert set(found) == {str(world.project), str(other)}
    assert found[str(world.project)]["state"] == "live"
    assert found[str(other)]["state"] == "present"
    assert 300_000 < found[str(other)]["size"] < 1_000_000
    assert {row["id"] for row in found.values()} == {path.name for path in world.instances()}
    assert all(abs(row["last_used"] - os.stat(world.home).st_atime) < 1e6 for row in rows(world))
    end(session)
    lines = world.run("claudebox", "instance", "list").stdout.splitlines()
    assert len(lines) == 2
    assert any(str(world.project) in line and "present" in line for line in lines)
    # A name cannot draw on the terminal.
    assert any("new\\nline" in line for line in lines)


def test_list_says_that_a_project_is_gone(world):
    world.inside("true")
    world.project.rename(world.home / "elsewhere")
    listing = world.run("claudebox", "instance", "list", "--json", cwd=world.home)
    assert [row["state"] for row in json.loads(listing.stdout)] == ["gone"]


@pytest.mark.parametrize("by", ["directory", "identity"])
def test_remove_removes_that_instance_and_no_other(world, by):
    other = other_project(world)
    world.inside("true")
    world.inside("true", cwd=other)
    gone, kept = path_of(world), path_of(world, other)
    word = str(world.project) if by == "directory" else os.path.basename(gone)
    result = world.run("claudebox", "instance", "remove", "-y", word)
    assert result.returncode == 0, result.stderr
    assert not os.path.exists(gone) and os.path.isdir(kept)
    assert list((world.state / "instances/.trash").iterdir()) == []
    assert world.project.is_dir()
    again = world.run("claudebox", "instance", "remove", "-y", word)
    assert again.returncode == 1 and "there is no instance" in again.stderr


def test_remove_finds_the_instance_of_a_project_that_is_gone_by_its_path(world):
    world.inside("true")
    shutil.rmtree(world.project)
    result = world.run("claudebox", "instance", "remove", "-y", str(world.project), cwd=world.home)
    assert result.returncode == 0, result.stderr
    assert instances(world) == []


def test_remove_asks_and_no_is_the_default(world):
    world.inside("true")
    alone = world.run("setsid", "--wait", "claudebox", "instance", "remove", ".")
    assert alone.returncode == 1 and "no terminal" in alone.stderr
    assert "launched" not in alone.stderr
    terminal = Terminal(world, "claudebox", "instance", "remove", ".")
    assert str(world.project) in terminal.wait_for("[y/N]")
    terminal.type("\n")
    assert terminal.status() == 1
    assert len(instances(world)) == 1
    terminal = Terminal(world, "claudebox", "instance", "remove", ".")
    terminal.wait_for("[y/N]")
    terminal.type("y\n")
    assert terminal.status() == 0
    assert instances(world) == []


def test_a_live_instance_is_not_removed(world):
    session = live_session(world)
    result = world.run("claudebox", "instance", "remove", "-y", ".")
    assert result.returncode == 1
    assert "in use by a session" in result.stderr
    end(session)
    assert world.run("claudebox", "instance", "remove", "-y", ".").returncode == 0


# ---------------------------------------------------------------------------- many sessions at once


def test_eight_sessions_at_once_on_a_new_instance_lose_nothing(world):
    script = (
        'claude mcp add -s user "name$1" -- true >&2 &&'
        ' claude --dangerously-skip-permissions -p "prompt number $1"'
    )
    with FakeMessagesAPI(lambda _: text("answer")) as api:
        world.environment |= api.environment
        sessions = [
            world.start(
                *("claudebox", "-y", "--env", "ANTHROPIC_BASE_URL", "--shell"),
                *("--", "-c", script, "sh", str(number)),
            )
            for number in range(8)
        ]
        for session in sessions:
            output, errors = session.communicate(timeout=120)
            assert (output, session.returncode) == ("answer\n", 0), errors[-600:]
    (instance,) = world.instances()
    claude = instance / "claude"
    configuration = json.loads((claude / ".claude.json").read_text())
    assert set(configuration["mcpServers"]) == {f"name{number}" for number in range(8)}
    assert configuration["projects"][str(world.project)]["hasTrustDialogAccepted"] is True
    transcripts = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in claude.glob("projects/*/*.jsonl")
    ]
    said = "".join(json.dumps(one) for one in transcripts)
    assert len(transcripts) == 8
    assert all(f"prompt number {number}" in said for number in range(8))
    assert not list(claude.glob(".claude.json.corrupted*"))
    assert json.loads((instance / "instance.json").read_text())["root"] == str(world.project)
    # Locks are the kernel's: there is no pid file, and nothing half made.
    assert sorted(os.listdir(instance)) == ["claude", "instance.json", "lock", "preparation.lock"]
    assert all((instance / name).read_text() == "" for name in ("lock", "preparation.lock"))
    assert sorted(os.listdir(world.state)) == ["cache", "credentials", "instances"]
    assert list(world.project.iterdir()) == []


# The launcher is stopped for a moment before every step that others see, so that sessions which
# start together are certain to be at the same place.
SLOW = ("strace", "-o", "/dev/null", "-e", "trace=renameat", "-e", "inject=renameat:delay_enter=")


@pytest.mark.parametrize("login", [False, True], ids=["no login outside", "a login outside"])
def test_sessions_that_are_prepared_at_the_same_moment_do_not_disturb_each_other(world, login):
    if login:
        (world.home / ".claude").mkdir()
        (world.home / ".claude/.credentials.json").write_text('{"claudeAiOauth": {}}')
    sessions = [
        world.start(
            *SLOW[:-1], f"{SLOW[-1]}{delay}", "claudebox", "-y", "--shell", "--", "-c", "echo works"
        )
        for delay in (250_000, 200_000, 150_000, 0)
    ]
    results = [session.communicate(timeout=60) for session in sessions]
    assert [output for output, _ in results] == ["works\n"] * 4, [e[-200:] for _, e in results]
    assert list(world.project.iterdir()) == []
    (instance,) = world.instances()
    assert sorted(os.listdir(instance)) == ["claude", "instance.json", "lock", "preparation.lock"]


def test_a_session_that_is_killed_is_not_live_any_more(world):
    session = live_session(world)
    assert [row["state"] for row in rows(world)] == ["live"]
    session.send_signal(signal.SIGKILL)
    session.wait()
    wait_until(lambda: [row["state"] for row in rows(world)] == ["present"])
    assert world.inside("echo works").stdout == "works\n"
    assert world.run("claudebox", "instance", "remove", "-y", ".").returncode == 0
