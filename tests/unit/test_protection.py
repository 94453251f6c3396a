"""What is read-only in a project because it would run outside later, and what is watched."""

import inspect
import os
import sys

import pytest

from claudebox import Failure, policy, protection
from claudebox import git as discovery
from claudebox import project as walker
from claudebox.sandbox import watch


@pytest.fixture
def protect(project):
    """Return the mounts that protect a project, as a launch computes them."""

    def mounts(root=project, cwd=None):
        root = str(root)
        place = {"cwd": str(cwd or root), "root": root, "git": discovery.discover(root)}
        return protection.mounts(place, walker.walk(root)["repositories"])

    return mounts


def kinds(mounts, below):
    """Return target relative to `below` → kind, in order."""
    return {os.path.relpath(mount["target"], below): mount["kind"] for mount in mounts}


CLAUDE_FILES = {
    ".claude": "bind",
    ".claude/settings.json": "file",
    ".claude/settings.local.json": "file",
    ".mcp.json": "file",
}


# ---------------------------------------------------------------------------- which mounts


def test_an_empty_project_gets_stand_ins_for_everything(protect, project):
    assert kinds(protect(), project) == {
        **CLAUDE_FILES,
        ".git": "empty-dir",
        "refs": "file",
    }


def test_every_mount_has_the_reason_protected(protect, project, repository):
    repository(project)
    assert {mount["reason"] for mount in protect()} == {"protected"}


def test_no_mount_point_is_named_twice(protect, project, repository):
    repository(project)
    repository(project / "a" / "b")
    (project / "a" / "c").mkdir()
    targets = [mount["target"] for mount in protect(cwd=project / "a")]
    assert len(targets) == len(set(targets))


def test_what_a_mount_hides_is_mounted_before_what_it_would_hide(protect, project, repository):
    repository(project)
    repository(project / "nested")
    targets = [mount["target"] for mount in protect()]
    for index, target in enumerate(targets):
        for earlier in targets[:index]:
            assert not policy.is_within(earlier, target)


def test_what_exists_is_bound_read_only_on_itself(protect, project):
    (project / ".claude").mkdir()
    (project / ".claude/settings.json").write_text('{"hooks": {}}')
    (project / ".mcp.json").write_text('{"mcpServers": {"x": {}}}')
    mounts = {mount["target"]: mount for mount in protect()}
    for name in (".claude/settings.json", ".mcp.json"):
        mount = mounts[f"{project}/{name}"]
        assert mount["kind"] == "ro-bind" and mount["source"] == mount["target"]
    assert mounts[f"{project}/.claude/settings.local.json"]["kind"] == "file"


def test_a_stand_in_says_nothing_to_the_program_that_reads_it(protect, project, repository):
    import json

    repository(project)
    (project / ".git/config").unlink()
    contents = {
        os.path.relpath(mount["target"], project): mount["content"]
        for mount in protect()
        if mount["kind"] == "file"
    }
    assert json.loads(contents[".claude/settings.json"]) == {}
    assert json.loads(contents[".mcp.json"]) == {"mcpServers": {}}
    assert contents[".git/commondir"] == ".\n"
    assert contents[".git/config"] == contents[".git/config.worktree"] == ""


def test_stand_ins_that_a_killed_session_left_behind_do_not_change_the_mounts(
    protect, project, repository
):
    repository(project)
    mounts = protect()
    for mount in mounts:
        if mount["kind"] == "empty-dir":
            os.makedirs(mount["target"], exist_ok=True)
        elif mount["kind"] == "file":
            os.makedirs(os.path.dirname(mount["target"]), exist_ok=True)
            with open(mount["target"], "w") as file:
                file.write(mount["content"])
    assert protect() == mounts


def test_a_stand_in_for_commondir_leaves_git_working(project, repository, git):
    repository(project)
    for name, content in policy.PROTECTED_GIT_PATHS.items():
        path = project / ".git" / name
        if content is not None and not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
    (project / "file").write_text("x")
    git(project, "add", "file")
    git(project, "commit", "-q", "-m", "second")
    git(project, "branch", "side")
    assert git(project, "log", "--format=%s", "side").split() == ["second", "first"]


def test_a_repository_has_its_git_directory_anchored_and_its_code_paths_read_only(
    protect, project, repository
):
    repository(project)
    found = kinds(protect(), project)
    assert found.pop(".git/hooks") in ("ro-bind", "empty-dir")
    assert found.pop(".git/info") == "bind"
    assert found == {
        **CLAUDE_FILES,
        ".git": "bind",
        ".git/config": "ro-bind",
        ".git/config.worktree": "file",
        ".git/commondir": "file",
        ".git/branches": "empty-dir",
        ".git/remotes": "empty-dir",
        ".git/info/attributes": "file",
        "refs": "file",
    }


def test_existing_hooks_and_attributes_are_bound_read_only(protect, project, repository):
    repository(project)
    (project / ".git/hooks").mkdir(exist_ok=True)
    (project / ".git/hooks/pre-commit").write_text("#!/bin/sh\n")
    (project / ".git/info").mkdir(exist_ok=True)
    (project / ".git/info/attributes").write_text("* filter=x\n")
    found = kinds(protect(), project)
    assert found[".git/hooks"] == found[".git/info/attributes"] == "ro-bind"


def test_every_directory_on_the_way_to_a_protected_file_is_a_mount_point(
    protect, project, repository
):
    # Otherwise it could be renamed inside, and another one made in its place.
    repository(project)
    repository(project / "a" / "b" / "nested")
    mounts = protect()
    targets = {mount["target"] for mount in mounts}
    for mount in mounts:
        parent = os.path.dirname(mount["target"])
        assert parent == str(project) or parent in targets


def test_the_place_where_work_starts_is_protected_as_well_as_the_root(protect, project):
    (project / "sub").mkdir()
    found = kinds(protect(cwd=project / "sub"), project)
    assert found["sub"] == "bind"
    for name, kind in CLAUDE_FILES.items():
        assert found[name] == found[f"sub/{name}"] == kind


def test_a_git_directory_that_is_no_repository_is_read_only_whole(protect, project):
    (project / ".git").mkdir()
    (project / ".git" / "left-over").write_text("")
    assert kinds(protect(), project)[".git"] == "ro-bind"


@pytest.fixture
def not_the_owner(monkeypatch):
    """Make every directory another user's, and only the named ones writable."""

    def only_writable(*paths):
        writable = {str(path) for path in paths}
        monkeypatch.setattr(protection.os, "getuid", lambda: 4242)
        monkeypatch.setattr(protection.os, "access", lambda path, mode: str(path) in writable)

    return only_writable


def test_where_nobody_can_write_nothing_needs_to_be_held_shut(protect, not_the_owner):
    not_the_owner()
    assert protect() == []


def test_a_foreign_directory_that_could_be_renamed_away_is_held_shut(
    protect, project, not_the_owner
):
    (project / ".claude").mkdir()
    not_the_owner(project)
    assert kinds(protect(), project)[".claude"] in ("bind", "ro-bind")


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", [".mcp.json", ".claude/settings.json"])
@pytest.mark.parametrize("make", [lambda p: os.symlink("/etc/hosts", p), os.mkfifo])
def test_a_link_or_special_file_in_a_protected_place_is_refused(protect, project, name, make):
    path = f"{project}/{name}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    make(path)
    with pytest.raises(Failure, match="cannot be made read-only inside"):
        protect()


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_on_the_way_to_a_protected_place_is_refused(protect, project, tmp_path, exists):
    if exists:
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared/settings.json").write_text("{}")
    (project / ".claude").symlink_to(tmp_path / "shared")
    with pytest.raises(Failure, match=r"\.claude is a symbolic link"):
        protect()


def test_a_file_on_the_way_to_a_protected_place_is_refused(protect, project):
    (project / ".claude").write_text("")
    with pytest.raises(Failure, match=r"\.claude"):
        protect()


@pytest.mark.parametrize("name", ["hooks", "config.worktree", "info", "info/attributes"])
def test_a_link_in_a_git_directory_is_refused(protect, project, repository, tmp_path, name):
    repository(project)
    path = project / ".git" / name
    if path.exists():
        path.rename(tmp_path / "moved")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(Failure, match="cannot be made read-only inside"):
        protect()


def test_a_link_as_the_git_of_a_nested_directory_is_refused(protect, project, repository, tmp_path):
    other = repository(tmp_path / "other")
    (project / "sub").mkdir()
    (project / "sub" / ".git").symlink_to(other / ".git")
    with pytest.raises(Failure, match=r"sub/\.git is a symbolic link"):
        protect()


def test_more_nested_repositories_than_the_limit_are_refused(project):
    names = [f"{project}/{number}" for number in range(protection._REPOSITORY_LIMIT + 1)]
    place = {"cwd": str(project), "root": str(project), "git": None}
    with pytest.raises(Failure, match="more than 100 git repositories"):
        protection.mounts(place, names)


# ---------------------------------------------------------------------------- more repositories


def test_a_nested_repository_is_protected_like_the_first(protect, project, repository):
    repository(project)
    repository(project / "vendor" / "library")
    found = kinds(protect(), project)
    for name in (".git", "vendor/library/.git"):
        assert found[name] == "bind"
        assert found[f"{name}/config"] == "ro-bind"
        assert found[f"{name}/config.worktree"] == "file"
        assert f"{name}/hooks" in found
    assert found["vendor"] == found["vendor/library"] == "bind"


def test_a_nested_repository_is_protected_without_one_around_it(protect, project, repository):
    repository(project / "library")
    found = kinds(protect(), project)
    assert found[".git"] == "empty-dir"
    assert found["library/.git/config"] == "ro-bind"


def test_a_submodule_has_its_git_file_and_its_git_directory_protected(protect, project, submodule):
    found = kinds(protect(), project)
    assert found["deps/library/.git"] == "ro-bind"
    for anchor in ("deps", "deps/library", ".git/modules", ".git/modules/deps"):
        assert found[anchor] == "bind"
    directory = ".git/modules/deps/library"
    assert found[directory] == "bind"
    assert found[f"{directory}/config"] == "ro-bind"
    assert found[f"{directory}/config.worktree"] == "file"
    assert f"{directory}/hooks" in found


def test_a_submodule_of_a_submodule_is_protected(protect, project, submodule, repository):
    inner = repository(submodule / "inner")
    modules = project / ".git" / "modules" / "deps" / "library" / "modules"
    modules.mkdir()
    (inner / ".git").rename(modules / "inner")
    (inner / ".git").write_text("gitdir: ../../../.git/modules/deps/library/modules/inner\n")
    found = kinds(protect(), project)
    assert found[".git/modules/deps/library/modules/inner/config"] == "ro-bind"
    assert found["deps/library/inner/.git"] == "ro-bind"


def test_a_git_directory_inside_the_project_that_a_git_file_leads_to_is_protected(
    protect, project, repository, git
):
    repository(project)
    separate = project / "separate"
    git(project, "init", "-q", "--separate-git-dir", str(separate), str(project / "nested"))
    found = kinds(protect(), project)
    assert found["nested/.git"] == "ro-bind"
    assert "separate/hooks" in found and "separate/config" in found


def test_a_worktree_has_its_repository_mounted_and_its_git_file_read_only(
    protect, project, repository, git, tmp_path
):
    repository(project)
    side = tmp_path / "side"
    git(project, "worktree", "add", "-q", str(side))
    mounts = protect(side)
    by_target = {mount["target"]: mount for mount in mounts}
    common = f"{project}/.git"
    assert by_target[common] == {
        "kind": "bind",
        "source": common,
        "target": common,
        "reason": "git",
    }
    assert by_target[f"{side}/.git"]["kind"] == "ro-bind"
    private = f"{common}/worktrees/side"
    assert by_target[private]["kind"] == "bind"
    for name, kind in (
        ("commondir", "ro-bind"),
        ("gitdir", "ro-bind"),
        ("config.worktree", "file"),
    ):
        assert by_target[f"{private}/{name}"]["kind"] == kind
    assert by_target[f"{common}/config"]["kind"] == "ro-bind"
    assert f"{common}/hooks" in by_target


def test_other_worktrees_of_the_repository_are_read_only(
    protect, project, repository, git, tmp_path
):
    repository(project)
    git(project, "worktree", "add", "-q", str(tmp_path / "one"))
    git(project, "worktree", "add", "-q", str(tmp_path / "two"))
    for root, foreign in ((project, ("one", "two")), (tmp_path / "one", ("two",))):
        found = kinds(protect(root), f"{project}/.git/worktrees")
        for name in foreign:
            assert found[name] == "ro-bind"
        assert found["."] == "bind"


def test_a_worktree_inside_the_project_can_be_worked_in(protect, project, repository, git):
    repository(project)
    git(project, "worktree", "add", "-q", str(project / "inner"))
    found = kinds(protect(), project)
    assert found["inner/.git"] == "ro-bind"
    assert found[".git/worktrees/inner"] == "bind"
    assert found[".git/worktrees/inner/commondir"] == "ro-bind"


def test_a_project_that_is_a_worktree_inside_the_main_tree_mounts_only_the_git_directory(
    protect, project, repository, git
):
    repository(project)
    git(project, "worktree", "add", "-q", str(project / "inner"))
    targets = [mount["target"] for mount in protect(project / "inner")]
    assert f"{project}/.git" in targets
    assert str(project) not in targets


def test_links_in_the_modules_directory_are_not_followed_round_and_round(
    protect, project, repository, alarm
):
    repository(project)
    modules = project / ".git" / "modules"
    modules.mkdir()
    for name in ("a", "b"):
        (modules / name).symlink_to(".")
    alarm(2)
    try:
        protect()
    except Failure:
        pass


def test_a_linked_module_is_refused_or_left_out(protect, project, repository, tmp_path):
    other = repository(tmp_path / "other")
    repository(project)
    (project / ".git" / "modules").mkdir()
    (project / ".git" / "modules" / "x").symlink_to(other / ".git")
    try:
        mounts = protect()
    except Failure:
        return
    assert not [mount for mount in mounts if "/modules/x" in mount["target"]]


# ---------------------------------------------------------------------------- the walk


def test_the_walk_finds_nested_repositories_shallow_ones_first(project):
    for name in ("z", "a/b/c", "a"):
        (project / name / ".git").mkdir(parents=True)
    found = walker.walk(str(project))
    assert found["complete"]
    assert found["repositories"] in (
        [f"{project}/a", f"{project}/z", f"{project}/a/b/c"],
        [f"{project}/z", f"{project}/a", f"{project}/a/b/c"],
    )


def test_the_walk_finds_files_whose_names_look_like_secrets(project):
    (project / "deep").mkdir()
    secret = [".env", ".env.local", "deep/server.pem", "deep/id_ed25519", "credentials-dev.json"]
    for name in [*secret, ".env.example", "environment", "deep/pem", "README.md"]:
        (project / name).write_text("")
    found = walker.walk(str(project))["secrets"]
    assert sorted(found) == sorted(f"{project}/{name}" for name in secret)


def test_the_walk_finds_files_with_another_name_elsewhere(project, tmp_path):
    (tmp_path / "key").write_text("secret")
    os.link(tmp_path / "key", project / "notes.txt")
    assert walker.walk(str(project))["hard_links"] == [f"{project}/notes.txt"]


def test_the_walk_follows_no_links_and_does_not_wait_for_pipes(project, tmp_path, alarm):
    alarm(5)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / ".env").write_text("")
    (project / "out").symlink_to(tmp_path / "outside")
    (project / "loop").symlink_to(".")
    os.mkfifo(project / "pipe.pem")
    found = walker.walk(str(project))
    assert found["complete"] and not found["repositories"] and not found["hard_links"]
    assert not [path for path in found["secrets"] if "out" in path]


@pytest.mark.parametrize("place", ["lib/objects/aa", "objects/pack", "objects/aa/" + "b" * 38])
def test_a_repository_where_objects_would_be_is_found(project, place):
    (project / place / ".git").mkdir(parents=True)
    (project / place / "bare/objects").mkdir(parents=True)
    (project / place / "bare/refs").mkdir()
    (project / place / "bare/HEAD").write_text("")
    found = walker.walk(str(project))["repositories"]
    assert sorted(found) == [f"{project}/{place}", f"{project}/{place}/bare"]


def test_objects_do_not_count(project, monkeypatch):
    monkeypatch.setattr(walker, "ENTRY_LIMIT", 10)
    for directory, name in (("ab", "c" * 38), ("pack", "pack-1.idx")):
        (project / "objects" / directory).mkdir(parents=True)
        for number in range(10):
            (project / "objects" / directory / (name[:-1] + str(number))).write_text("")
    assert walker.walk(str(project))["complete"] is True


def test_the_walk_stops_at_its_limit_and_says_so(project, monkeypatch):
    monkeypatch.setattr(walker, "ENTRY_LIMIT", 10)
    for number in range(20):
        (project / str(number)).write_text("")
    assert walker.walk(str(project))["complete"] is False


def test_of_a_directory_without_end_only_a_part_is_read_and_that_is_said(project, monkeypatch):
    """What git would call objects does not count, so the number of entries alone is no limit."""
    monkeypatch.setattr(walker, "_DIRECTORY_LIMIT", 10)
    (project / "objects" / "ab").mkdir(parents=True)
    for number in range(20):
        (project / "objects" / "ab" / f"{number:038}").write_text("")
    assert walker.walk(str(project))["complete"] is False


# ---------------------------------------------------------------------------- what is watched


def fingerprint(root, cwd=None):
    return watch.fingerprint({"root": str(root), "cwd": str(cwd or root)})


def changed(root, change, cwd=None):
    """Return the watched names that `change` changed."""
    before = fingerprint(root, cwd)
    change()
    after = fingerprint(root, cwd)
    return [os.path.relpath(path, root) for path in watch.changes(before, after)]


def test_a_watched_file_that_is_made_changed_or_removed_is_noticed(project):
    (project / ".envrc").write_text("a")
    (project / "mise.toml").write_text("a")

    def change():
        (project / ".envrc").write_text("b")
        (project / "mise.toml").unlink()
        (project / ".husky").mkdir()
        (project / ".husky" / "pre-commit").write_text("")
        (project / "ordinary").write_text("")

    assert changed(project, change) == [".envrc", ".husky/pre-commit", "mise.toml"]


@pytest.mark.parametrize("name", policy.WATCHED_PROJECT_PATHS)
def test_every_watched_path_is_noticed_when_it_is_made(project, name):
    def change():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("")

    assert changed(project, change) == [name]


def test_a_change_that_keeps_size_and_modification_time_is_noticed(project):
    (project / ".envrc").write_text("a")
    status = os.stat(project / ".envrc")

    def change():
        (project / ".envrc").write_text("b")
        os.utime(project / ".envrc", ns=(status.st_atime_ns, status.st_mtime_ns))

    assert changed(project, change) == [".envrc"]


def test_nothing_is_reported_when_nothing_changed(project):
    (project / ".vscode").mkdir()
    (project / ".vscode" / "tasks.json").write_text("{}")
    assert changed(project, lambda: (project / ".vscode" / "tasks.json").read_text()) == []


def test_a_watched_link_is_watched_itself_and_not_followed(project, tmp_path):
    (tmp_path / "outside").mkdir()
    (project / ".vscode").symlink_to(tmp_path / "outside")
    assert changed(project, lambda: (tmp_path / "outside" / "x").write_text("")) == []

    def change():
        (project / ".vscode").unlink()
        (project / ".vscode").symlink_to("/tmp")

    assert changed(project, change) == [".vscode"]


def test_the_place_where_work_starts_is_watched_as_well_as_the_root(project):
    (project / "sub").mkdir()
    found = changed(project, lambda: (project / "sub" / ".envrc").write_text(""), project / "sub")
    assert found == ["sub/.envrc"]


def test_many_files_in_one_watched_place_do_not_hide_a_change_in_another(project, monkeypatch):
    monkeypatch.setattr(watch, "_ENTRY_LIMIT", 50)

    def change():
        (project / ".claude" / "agents").mkdir(parents=True)
        for number in range(60):
            (project / ".claude" / "agents" / str(number)).write_text("")
        (project / ".envrc").write_text("")

    assert ".envrc" in changed(project, change)


def test_directories_without_end_in_a_watched_place_are_told_and_not_walked(project, monkeypatch):
    monkeypatch.setattr(watch, "_ENTRY_LIMIT", 50)
    for number in range(60):
        (project / ".claude" / "agents" / str(number)).mkdir(parents=True)
    assert changed(project, lambda: None) == [".claude/agents"]


def test_a_watched_directory_that_is_very_deep_does_not_end_the_launcher(project):
    deepest = project / ".husky" / "/".join("d" * 200)
    deepest.mkdir(parents=True)
    (deepest / "hook").write_text("")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        seen = fingerprint(project)
    finally:
        sys.setrecursionlimit(limit)
    assert list(seen) == [str(deepest / "hook")]


def test_names_that_make_a_directory_look_like_a_repository_hide_none_below_it(
    protect, project, repository
):
    """An agent can make the three names, and the hooks below would be writable in its next session."""
    repository(project / "vendor" / "library")
    for name in ("objects", "refs"):
        (project / "vendor" / name).mkdir()
    (project / "vendor" / "HEAD").write_text("ref: refs/heads/main\n")
    mounts = kinds(protect(), project)
    assert mounts["vendor/config"] == "file"
    assert mounts["vendor/library/.git/hooks"] == "ro-bind"
    assert mounts["vendor/library/.git/config"] == "ro-bind"


def covering(mounts, path):
    """Return the kind of the last mount that `path` lies on."""
    return [m["kind"] for m in mounts if policy.is_within(str(path), m["target"])][-1]


def test_a_git_directory_that_an_agent_broke_stays_read_only_with_the_submodules_in_it(
    protect, project, submodule
):
    """Broken in one session and mended in the next, it would come with hooks of the agent's."""
    (project / ".git/objects").rename(project / ".git/moved")
    mounts = protect()
    for name in (
        ".git",
        ".git/hooks/pre-commit",
        ".git/modules",
        ".git/modules/deps/library/config",
    ):
        assert covering(mounts, project / name) == "ro-bind"
    assert covering(mounts, submodule / ".git") == "ro-bind"


def test_a_directory_of_hooks_stays_read_only_when_it_holds_a_repository(
    protect, project, repository, git
):
    repository(project)
    repository(project / "tools" / "library")
    git(project, "config", "core.hooksPath", "tools")
    mounts = protect()
    for name in ("tools", "tools/pre-commit", "tools/library", "tools/library/.git/config"):
        assert covering(mounts, project / name) == "ro-bind"
    targets = [mount["target"] for mount in mounts]
    assert len(targets) == len(set(targets))


def test_a_directory_of_hooks_that_a_nested_repository_names_hides_no_mount(
    protect, project, repository, git
):
    repository(project / "tools" / "library")
    git(project / "tools" / "library", "config", "core.hooksPath", "..")
    mounts = protect()
    below = [m["target"] for m in mounts if m["target"].startswith(f"{project}/tools")]
    assert below == [f"{project}/tools"]
    assert covering(mounts, project / "tools/library/.git/hooks") == "ro-bind"


def test_a_settings_file_that_is_a_repository_stays_read_only(protect, project, git):
    (project / ".claude/settings.json").mkdir(parents=True)
    git(project / ".claude/settings.json", "init", "-q", "--bare")
    assert covering(protect(), project / ".claude/settings.json") == "ro-bind"
    assert covering(protect(), project / ".claude/settings.json/config") == "ro-bind"


def test_names_that_make_the_beginning_of_a_submodules_name_a_repository_do_not_hide_it(
    protect, project, submodule
):
    for name in ("objects", "refs"):
        (project / ".git/modules/deps" / name).mkdir()
    (project / ".git/modules/deps/HEAD").write_text("ref: refs/heads/main\n")
    # Not checked out, so only its name leads to it.
    (submodule / ".git").unlink()
    mounts = protect()
    for place in (".git/modules/deps", ".git/modules/deps/library"):
        assert covering(mounts, project / place / "hooks/pre-commit") in ("ro-bind", "empty-dir")
        assert covering(mounts, project / place / "config") in ("ro-bind", "file")


@pytest.mark.parametrize("there", ["refs", "objects"])
def test_of_the_two_directories_of_a_repository_the_one_that_is_not_there_is_held_shut(
    protect, project, there
):
    (project / there).mkdir()
    other = {"refs": "objects", "objects": "refs"}[there]
    assert kinds(protect(), project)[other] == "file"


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("include.path", "../tools/more", "ro-bind"),
        ("includeIf.onbranch:x.path", "../tools/more", "ro-bind"),
        ("core.hooksPath", "tools/hooks", "empty-dir"),
        ("core.attributesFile", "tools/more", "ro-bind"),
    ],
)
def test_what_one_setting_of_a_repository_names_is_read_only(
    protect, project, repository, git, key, value, kind
):
    repository(project)
    (project / "tools").mkdir()
    (project / "tools" / "more").write_text("# x\n")
    git(project, "config", key, value)
    assert kinds(protect(), project)[f"tools/{value.rpartition('/')[2]}"] == kind


def test_what_an_include_includes_is_read_only(protect, project, repository, git):
    repository(project)
    (project / "one.inc").write_text("[include]\n\tpath = two.inc\n")
    (project / "two.inc").write_text("# x\n")
    git(project, "config", "include.path", "../one.inc")
    assert kinds(protect(), project)["two.inc"] == "ro-bind"


# Written down a second time, from claudebox(1).
WATCHED = (
    ".aider.conf.yml .bazelrc .claude/CLAUDE.md .claude/agents .claude/commands .claude/hooks"
    " .claude/output-styles .claude/rules .claude/skills .codex .cursor .devcontainer"
    " .devcontainer.json .dir-locals.el .envrc .exrc .gemini .gitattributes .githooks"
    " .github/workflows .gitlab-ci.yml .gitmodules .hg/hgrc .husky .idea .lefthook.yml"
    " .mise.toml .npmrc .nvim.lua .nvimrc .opencode .pre-commit-config.yaml .roo .vimrc"
    " .vscode .windsurf .yarnrc.yml .zed CLAUDE.local.md CLAUDE.md lefthook.yml mise.toml"
    " opencode.json"
).split()


@pytest.mark.parametrize("name", WATCHED)
def test_a_file_that_can_run_code_outside_is_watched(project, name):
    def change():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("x")

    assert changed(project, change) == [name]


def test_the_directories_down_to_where_work_starts_cannot_be_made_repositories(protect, project):
    (project / "sub" / "deeper").mkdir(parents=True)
    mounts = kinds(protect(cwd=project / "sub" / "deeper"), project)
    for name in ("sub", "sub/deeper"):
        assert mounts[f"{name}/.git"] == "empty-dir"
        assert mounts[f"{name}/refs"] == "file"


@pytest.mark.parametrize("there", ["refs", "objects"])
def test_a_project_where_neither_refs_nor_objects_can_be_held_shut_is_refused(
    protect, project, there
):
    other = {"refs": "objects", "objects": "refs"}[there]
    (project / other).mkdir()
    (project / there).write_text("#!/bin/sh\n")
    (project / there).chmod(0o755)
    with pytest.raises(Failure, match="a git repository of its own"):
        protect()


def test_a_link_where_git_looks_for_a_repository_is_refused(protect, project):
    (project / "refs").symlink_to("nowhere")
    with pytest.raises(Failure, match="symbolic link or a special file"):
        protect()


def test_a_configured_file_behind_a_link_is_refused(protect, project, repository, git):
    repository(project)
    (project / "real.inc").write_text("# x\n")
    (project / "link.inc").symlink_to("real.inc")
    git(project, "config", "include.path", "../link.inc")
    with pytest.raises(Failure, match="behind a symbolic link"):
        protect()


def test_more_worktrees_than_anybody_has_are_refused(protect, project, repository):
    repository(project)
    for number in range(101):
        (project / ".git/worktrees" / str(number)).mkdir(parents=True)
    with pytest.raises(Failure, match="more than 100 submodules and worktrees"):
        protect()


def test_more_nested_repositories_than_anybody_has_are_refused(protect, project):
    for number in range(101):
        (project / str(number) / ".git").mkdir(parents=True)
    with pytest.raises(Failure, match="more than 100 git repositories"):
        protect()


def test_a_protected_place_that_cannot_be_looked_at_is_refused(protect, project, monkeypatch):
    look = os.lstat

    def lstat(path, **options):
        if str(path).endswith("settings.json"):
            raise PermissionError(13, "Permission denied")
        return look(path, **options)

    monkeypatch.setattr(protection.os, "lstat", lstat)
    with pytest.raises(Failure, match="cannot be read"):
        protect()


def test_a_checkout_of_claudebox_in_the_project_is_read_only(protect, project, monkeypatch):
    for name in ("bin", "claudebox"):
        (project / "tool" / name).mkdir(parents=True)
        (project / "tool" / name / "x").write_text("")
    monkeypatch.setattr(protection, "__file__", f"{project}/tool/claudebox/protection.py")
    mounts = kinds(protect(), project)
    assert mounts["tool/bin"] == mounts["tool/claudebox"] == "ro-bind"


@pytest.fixture
def named(project):
    """A file and a directory of the project that configurations name."""
    (project / "tools").mkdir()
    (project / "tools" / "more").write_text("# x\n")
    return f"{project}/tools/more"


def test_what_a_submodule_names_is_read_only_also_when_it_is_not_checked_out(
    protect, project, submodule, git, named
):
    git(submodule, "config", "include.path", named)
    (submodule / ".git").unlink()
    assert kinds(protect(), project)["tools/more"] == "ro-bind"


def test_what_the_configuration_of_a_worktree_in_the_project_names_is_read_only(
    protect, project, repository, git, named
):
    repository(project)
    git(project, "worktree", "add", "-q", "inside")
    git(project, "config", "extensions.worktreeConfig", "true")
    git(project / "inside", "config", "--worktree", "core.attributesFile", named)
    assert kinds(protect(), project)["tools/more"] == "ro-bind"


def test_what_a_bare_repository_in_the_project_names_is_read_only(protect, project, git, named):
    git(project, "init", "-q", "--bare", "store.git")
    git(project / "store.git", "config", "include.path", named)
    assert kinds(protect(), project)["tools/more"] == "ro-bind"


def test_what_a_project_that_is_a_bare_repository_itself_names_is_read_only(
    protect, project, git, named
):
    git(project, "init", "-q", "--bare")
    git(project, "config", "--file", "config", "include.path", "tools/more")
    mounts = kinds(protect(), project)
    assert mounts["tools/more"] == mounts["config"] == "ro-bind"


def test_a_git_directory_that_a_git_file_names_elsewhere_in_the_project_is_protected(
    protect, project, repository, git, named
):
    """Neither `.git` nor in `modules`, so only the file of the worktree leads to it."""
    repository(project)
    (project / "apart").mkdir()
    git(project, "init", "-q", "--separate-git-dir", f"{project}/.git/kept", "apart")
    git(project / "apart", "config", "core.hooksPath", "hooks-of-mine")
    git(project / "apart", "config", "core.attributesFile", named)
    mounts = kinds(protect(), project)
    assert mounts[".git/kept/config"] == mounts["tools/more"] == "ro-bind"
    assert mounts["apart/hooks-of-mine"] == "empty-dir"
