"""Where a launch is refused, and what is said: one line, the cause, the way out."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

WITHOUT = """
import sys
sys.path.insert(0, {root!r})
from claudebox import command, host, main
found = host.find_program
host.find_program = lambda name, *rest: None if name == {name!r} else found(name, *rest)
sys.exit(command.run(main.main, ["--check"]))
"""


def refused(result, *words):
    """Assert that a command was refused with one line that has all of `words`."""
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1, result.stderr
    assert last.startswith("claudebox: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in last, last


@pytest.mark.parametrize("place", ["/", "home", ".ssh", ".ssh/deep", ".config", ".claude", "state"])
def test_a_place_that_holds_secrets_is_no_project(world, place):
    (world.home / ".ssh/deep").mkdir(parents=True)
    for name in (".config", ".claude", ".claudebox"):
        (world.home / name).mkdir()
    named = {"/": Path("/"), "home": world.home, "state": world.home / ".claudebox"}
    directory = named.get(place, world.home / place)
    refused(world.run("claudebox", "--check", cwd=directory), "cannot be a project")


def test_a_symbolic_link_to_a_secret_is_no_project(world):
    (world.home / ".gnupg").mkdir()
    (world.home / "innocent").symlink_to(".gnupg")
    result = world.run("claudebox", "--check", cwd=world.home / "innocent")
    refused(result, "cannot be a project", "~/.gnupg")


def test_somebodys_home_directory_is_no_project(world, tmp_path):
    (tmp_path / "other/.ssh").mkdir(parents=True)
    refused(world.run("claudebox", "--check", cwd=tmp_path / "other"), "somebody's home directory")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bwrap", ("bwrap was not found", "install bubblewrap")),
        ("claude", ("claude was not found",)),
    ],
)
def test_a_missing_program_is_named_with_what_to_install(world, name, words):
    script = WITHOUT.format(root=str(ROOT), name=name)
    refused(world.run(sys.executable, "-I", "-c", script), *words)


def test_forbidden_user_namespaces_are_named_with_the_setting(world):
    script = "echo 0 > /proc/sys/user/max_user_namespaces && exec claudebox --check"
    result = world.run("unshare", "--user", "--map-root-user", "bash", "-c", script)
    refused(result, "user.max_user_namespaces is 0", "claudebox doctor")


def test_a_failed_launch_leaves_nothing_in_the_project(world):
    script = "echo 0 > /proc/sys/user/max_user_namespaces; exec claudebox -y --shell -- -c true"
    result = world.run("unshare", "--user", "--map-root-user", "bash", "-c", script)
    assert result.returncode == 1
    assert list(world.project.iterdir()) == []


def test_state_that_belongs_to_nobody_we_know_is_refused(world, tmp_path):
    world.state.symlink_to(tmp_path)
    world.environment["CLAUDEBOX_HOME"] = str(world.home / "file")
    (world.home / "file").write_text("")
    result = world.inside("true")
    refused(result, "file")


def test_unreadable_state_is_refused_with_its_path(world):
    world.inside("true")
    (world.state / "instances").chmod(0)
    try:
        result = world.inside("true")
        if os.getuid() == 0:
            # Root reads everything.
            assert result.returncode == 0
        else:
            refused(result, str(world.state / "instances"))
    finally:
        (world.state / "instances").chmod(0o700)


def test_a_directory_of_links_is_refused_as_an_instance(world, tmp_path):
    world.inside("true")
    (instance,) = world.instances()
    instance.rename(tmp_path / "elsewhere")
    instance.symlink_to(tmp_path / "elsewhere")
    refused(world.inside("true"), str(instance), "does not follow links")


def test_check_succeeds_where_a_launch_would_work_and_leaves_nothing(world):
    result = world.run("claudebox", "--check")
    assert (result.returncode, result.stderr) == (0, "")
    assert "what will be visible inside" in result.stdout
    assert sorted(os.listdir(world.home)) == ["project"]
    assert list(world.project.iterdir()) == []


def test_the_dry_run_script_ends_as_what_ran_in_it_and_leaves_nothing(repository):
    printed = repository.run("claudebox", "--dry-run", "--shell", "--", "-c", "exit 3")
    before = sorted(repository.project.iterdir())
    assert repository.run("bash", "-c", printed.stdout).returncode == 3
    assert sorted(repository.project.iterdir()) == before


def test_the_dry_run_can_be_pasted_and_launches_the_same_sandbox(repository):
    script = "cat /proc/self/mountinfo | cut -d' ' -f5 | sort; env | sort; cat .mcp.json"
    printed = repository.run("claudebox", "--dry-run", "--shell", "--", "-c", script)
    assert printed.returncode == 0
    assert not repository.state.exists()
    pasted = repository.run("bash", "-c", printed.stdout)
    assert pasted.returncode == 0, pasted.stderr
    launched = repository.inside(script)
    assert pasted.stdout == launched.stdout
    assert sorted(os.listdir(repository.project)) == [".git", "file"]
    assert repository.git("status", "--porcelain") == ""


def test_the_dry_run_shows_no_value_of_the_host(world):
    key = "sk-ant-api03-" + "k" * 40
    result = world.run("claudebox", "--dry-run", env={"ANTHROPIC_API_KEY": key, "EDITOR": "vi-9q"})
    assert key not in result.stdout and "vi-9q" not in result.stdout
    assert "ANTHROPIC_API_KEY" in result.stdout
