"""An edited plan is legitimate, and gets nothing that a made one would not."""

import json
import os
import subprocess

import pytest


def launch(world, edit, script="echo launched"):
    """Make a plan, let `edit(plan, mount)` change it, and pipe it into claudebox-run."""
    plan = json.loads(world.run("claudebox", "plan", "--shell", "--", "-c", script).stdout)
    edit(plan, {mount["target"]: mount for mount in plan["mounts"]})
    return subprocess.run(
        ["claudebox-run", "-"],
        input=json.dumps(plan),
        cwd=world.project,
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def add(**mount):
    return lambda plan, _mounts: plan["mounts"].append({"reason": "x", **mount})


def test_an_edited_plan_that_keeps_to_the_policy_is_launched(repository, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page").write_text("a page\n")
    docs = str(tmp_path / "docs")
    edit = add(kind="ro-bind", source=docs, target="/docs")
    assert launch(repository, edit, "cat /docs/page").stdout == "a page\n"


EDITS = {
    "a file made on the host": lambda w: add(
        kind="file", content="x", target=f"{w.home}/.bash_profile", reason="protected"
    ),
    "a file made in the project": lambda w: add(
        kind="file", content="x", target=f"{w.project}/CLAUDE.local.md"
    ),
    "a link out of the sandbox": lambda w: add(
        kind="symlink", source=f"/oldroot{w.home}", target="/l"
    ),
    "a secret": lambda w: add(kind="ro-bind", source=f"{w.home}/.ssh", target="/keys"),
    "the home directory": lambda w: add(kind="ro-bind", source=str(w.home), target="/host"),
    "the project under another name": lambda w: add(
        kind="bind", source=f"{w.project}/.git", target="/x", reason="protected"
    ),
    "what contains the project": lambda w: add(
        kind="bind", source=str(w.home.parent), target="/up"
    ),
    "proc in another place": lambda w: add(kind="proc", target="/x"),
    "a socket": lambda w: add(kind="bind", source=f"{w.home}/socket", target="/socket"),
    "a loader variable": lambda w: (
        lambda plan, _: plan["env"].append(
            {"name": "LD_PRELOAD", "source": "claudebox", "value": "/x.so"}
        )
    ),
    "another bwrap": lambda w: lambda plan, _: plan["bwrap"].update(path=f"{w.project}/bwrap"),
    "what its bwrap cannot do": lambda w: lambda plan, _: plan["bwrap"].update(disable_userns=None),
    "no shared memory of its own": lambda w: (
        lambda plan, mounts: plan["mounts"].remove(mounts["/dev/shm"])
    ),
    "another instance": lambda w: (
        lambda plan, _: plan["instance"].update(root="/other", id="0" * 16)
    ),
    "a protection less": lambda w: (
        lambda plan, mounts: plan["mounts"].remove(mounts[f"{w.project}/.git/hooks"])
    ),
    "another content of a protection": lambda w: (
        lambda plan, mounts: mounts[f"{w.project}/.claude/settings.json"].update(
            content='{"hooks": {}}'
        )
    ),
    "the project over its protection": lambda w: (
        lambda plan, mounts: plan["mounts"].append(
            plan["mounts"].pop(plan["mounts"].index(mounts[str(w.project)]))
        )
    ),
    "a hook that can be written": lambda w: add(
        kind="bind",
        source=f"{w.project}/.git/hooks/pre-commit",
        target=f"{w.project}/.git/hooks/pre-commit",
        reason="git",
    ),
    "a cover that proc hides": lambda w: (
        lambda plan, mounts: plan["mounts"].insert(
            0, plan["mounts"].pop(plan["mounts"].index(mounts["/proc/keys"]))
        )
    ),
    "a writable system": lambda w: lambda plan, mounts: mounts["/usr"].update(kind="bind"),
    "no project": lambda w: lambda plan, mounts: plan["mounts"].remove(mounts[str(w.project)]),
    "the host's network with the name of another": lambda w: (
        lambda plan, _: plan["network"].update(tier="inet")
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_plan_is_refused_that_asks_for(repository, what):
    import socket

    (repository.home / ".ssh").mkdir()
    (repository.project / "bwrap").write_text("#!/bin/sh\ntouch ran-outside\n")
    (repository.project / "bwrap").chmod(0o755)
    (repository.project / ".git/hooks/pre-commit").write_text("#!/bin/sh\n")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(repository.home)
        listener.bind("socket")
        result = launch(repository, EDITS[what](repository))
    assert result.returncode == 1, result.stdout
    assert "launched" not in result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert "the plan is refused" in result.stderr
    assert not (repository.home / ".bash_profile").exists()
    assert sorted(os.listdir(repository.project)) == [".git", "bwrap", "file"]


@pytest.mark.parametrize("name", ["refs", "objects"])
def test_a_project_that_could_be_made_a_repository_is_refused(world, name):
    other = {"refs": "objects", "objects": "refs"}[name]
    (world.project / other).mkdir()
    (world.project / name).write_text("#!/bin/sh\n")
    (world.project / name).chmod(0o755)
    result = world.inside("true")
    assert result.returncode == 1 and "repository of its own" in result.stderr


def test_a_link_where_git_looks_for_a_repository_is_refused(world):
    (world.project / "refs").symlink_to("nowhere")
    result = world.inside("true")
    assert result.returncode == 1 and "symbolic link" in result.stderr


def test_a_configured_file_behind_a_link_is_refused(repository):
    (repository.project / "real.inc").write_text("")
    (repository.project / "link.inc").symlink_to("real.inc")
    repository.git("config", "include.path", "../link.inc")
    result = repository.inside("true")
    assert result.returncode == 1 and "behind a symbolic link" in result.stderr


def test_known_limit_a_repository_made_below_is_obeyed_by_git_above_until_it_is_looked_at(
    repository,
):
    mark = repository.home / "ran"
    result = repository.inside(
        "git init -q below && cd below && git commit -q --allow-empty -m x"
        f" && git config core.fsmonitor 'touch {mark};false' && cd .. && git add below"
    )
    assert "git repositories were made in this session: below" in result.stderr
    repository.git("status")
    assert mark.exists()


@pytest.mark.parametrize("place", ["lib/objects/aa", "lib/objects/pack"])
def test_a_repository_made_where_objects_would_be_is_named(repository, place):
    result = repository.inside(f"mkdir -p {place} && git init -q {place}")
    assert f"git repositories were made in this session: {place}" in result.stderr


def test_that_not_all_was_searched_for_new_repositories_is_said(world):
    script = "mkdir many deep && cd many && seq 20000 | xargs touch && cd .. && mkdir deep/er"
    result = world.inside(f"{script} && git init -q deep/er")
    assert "there may be others" in result.stderr
    assert "there may be others" not in world.inside("rm -r many").stderr
