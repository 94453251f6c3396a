"""Git projects: linked worktrees, submodules, subdirectories, and those that lie about themselves."""

import os
import shutil

import pytest

KINDS = ["absolute", "relative", "inside", "bare", "worktree configuration"]


def linked(world, kind):
    """Return (worktree, common directory, root that names the instance) of a linked worktree."""
    main, tree = world.project, world.home / "tree"
    common = main / ".git"
    if kind == "bare":
        common = main = world.home / "store.git"
        world.git("clone", "-q", "--bare", str(world.project), str(common), cwd=world.home)
    if kind == "inside":
        tree = main / "trees/tree"
    if kind == "worktree configuration":
        world.git("config", "extensions.worktreeConfig", "true")
    place = os.path.relpath(tree, main) if kind == "relative" else str(tree)
    world.git("worktree", "add", "-q", "-b", "linked", place, cwd=main)
    if kind == "worktree configuration":
        world.git("config", "--worktree", "core.commentChar", ";", cwd=tree)
    if kind == "relative":
        # As git 2.48 writes them with worktree.useRelativePaths.
        own = common / "worktrees/tree"
        (tree / ".git").write_text(f"gitdir: {os.path.relpath(own, tree)}\n")
        (own / "gitdir").write_text(os.path.relpath(tree / ".git", own) + "\n")
    return tree, common, main


def instance_path(world, directory):
    """Return what `claudebox instance path` prints for a directory."""
    result = world.run("claudebox", "instance", "path", str(directory))
    assert result.returncode == 0, result.stderr
    return result.stdout.removesuffix("\n")


@pytest.mark.parametrize("kind", KINDS)
def test_git_works_in_a_linked_worktree_which_has_the_instance_of_the_main_one(repository, kind):
    world = repository
    tree, common, main = linked(world, kind)
    script = (
        "git status --short && echo two >> file && git status --short"
        " && git commit -qam second && git log --format=%s && git checkout -q -b topic"
        " && git branch --format='%(refname:short)' && git worktree list > ~/.claude/mine"
    )
    result = world.inside(script, cwd=tree)
    assert result.stdout.splitlines() == [
        " M file",
        "second",
        "first",
        "linked",
        "main",
        "topic",
    ], result.stderr[-500:]
    assert world.git("log", "--format=%s", "topic", cwd=common) == "second\nfirst\n"
    assert world.git("status", "--short", cwd=tree) == ""
    (instance,) = world.instances()
    assert str(instance) == instance_path(world, main) == instance_path(world, tree)
    if kind != "bare":
        assert "mine" in world.inside("ls ~/.claude", cwd=main).stdout
        assert len(world.instances()) == 1


@pytest.mark.parametrize("kind", ["absolute", "inside", "bare"])
def test_of_the_repository_of_a_linked_worktree_only_the_git_directory_is_inside(repository, kind):
    world = repository
    (world.project / "untracked").write_text("secret of the main tree")
    tree, common, _ = linked(world, kind)
    result = world.inside(f"ls -A '{common.parent}'; cat '{world.project}/untracked'", cwd=tree)
    assert "secret of the main tree" not in result.stdout
    expected = {common.name} | ({".claude", "tree"} if kind == "bare" else set())
    assert set(result.stdout.split()) <= expected | {"trees"}


def test_run_later_files_of_the_common_directory_can_be_neither_written_nor_moved(repository):
    world = repository
    tree, common, _ = linked(world, "absolute")
    world.git("worktree", "add", "-q", "-b", "third", str(world.home / "third"))
    names = {
        "hooks/pre-commit",
        "config",
        "config.worktree",
        "commondir",
        "info/attributes",
        "worktrees/tree/commondir",
        "worktrees/tree/gitdir",
        "worktrees/tree/config.worktree",
        "worktrees/third/commondir",
        "worktrees/third/gitdir",
        "worktrees/third/config.worktree",
        "worktrees/third/HEAD",
    }
    directories = ("hooks", "info", "worktrees", "worktrees/tree", "worktrees/third", ".")

    def state():
        found = {}
        for name in names:
            path = common / name
            found[name] = path.read_text() if path.is_file() else None
        return found

    before = state()
    lines = [f"cd '{common}'"]
    for name in sorted(names):
        lines += [
            f"echo evil > {name} && echo 'wrote {name}'",
            f"rm -f {name} 2>&- && test ! -e {name} && echo evil > {name} && echo 'replaced {name}'",
            f"echo x > /tmp/x; mv -fT /tmp/x {name} && echo 'moved over {name}'",
            f"ln -f /etc/passwd {name} && echo 'linked {name}'",
        ]
    lines += [f"mv {name} {name}.old && echo 'moved {name}'" for name in directories]
    lines += [f"mv '{common}' '{common}.old' && echo 'moved all'", "echo end"]
    lines += [f"rm -f '{tree}/.git'; echo evil > '{tree}/.git' && echo 'wrote .git'"]
    result = world.inside("\n".join(lines), cwd=tree)
    assert result.stdout == "end\n"
    assert state() == before
    # The control: what is no run-later file of the same directory can be written.
    assert world.inside(f"echo x > '{common}/description'; echo $?", cwd=tree).stdout == "0\n"


def other_repository(world):
    """Make another repository with a secret in it, and return its root."""
    other = world.home / "victim"
    other.mkdir()
    world.git("init", "-q", "-b", "main", cwd=other)
    (other / "secret").write_text("canary-73\n")
    world.git("add", "secret", cwd=other)
    world.git("commit", "-q", "-m", "secret", cwd=other)
    return other


def crafted(world, how):
    """Make the project one that tries to have another directory mounted; return that directory."""
    victim = other_repository(world)
    own = world.project / ".git"
    if how == "commondir of the main tree":
        (own / "commondir").write_text(f"{victim}/.git\n")
        return victim / ".git"
    if how == "commondir of a worktree":
        # This worktree's own directory is genuine, but sends git to another repository.
        world.git("worktree", "add", "-q", str(world.home / "tree"))
        (own / "worktrees/tree/commondir").write_text(f"{victim}/.git\n")
        world.project = world.home / "tree"
        return victim / ".git"
    if how == "worktrees of another repository":
        world.git("worktree", "add", "-q", str(world.home / "genuine"), cwd=victim)
        shutil.rmtree(own)
        own.write_text(f"gitdir: {victim}/.git/worktrees/genuine\n")
        return victim / ".git"
    shutil.rmtree(own)
    if how == "keys":
        keys = world.home / ".ssh"
        keys.mkdir()
        (keys / "id_ed25519").write_text("canary-73")
        own.write_text(f"gitdir: {keys}\n")
        return keys
    if how == "keys that look like a worktree":
        keys = world.home / ".ssh"
        for name in ("objects", "refs", "worktrees/x"):
            (keys / name).mkdir(parents=True)
        (keys / "HEAD").write_text("ref: refs/heads/main\n")
        (keys / "worktrees/x/gitdir").write_text(f"{own}\n")
        (keys / "worktrees/x/commondir").write_text("../..\n")
        own.write_text(f"gitdir: {keys}/worktrees/x\n")
        return keys
    if how == "another repository":
        own.write_text(f"gitdir: {victim}/.git\n")
    elif how == "a symbolic link":
        own.symlink_to(victim / ".git")
    elif how == "a link in the project":
        # All of the way is in the project, but for the link.
        (world.project / "fake").symlink_to(victim / ".git")
        own.write_text("gitdir: fake\n")
    elif how == "a fake git directory in the project":
        fake = world.project / "fake/worktrees/x"
        fake.mkdir(parents=True)
        for name in ("objects", "refs"):
            (world.project / "fake" / name).mkdir()
        (world.project / "fake/HEAD").write_text("ref: refs/heads/main\n")
        (fake / "gitdir").write_text(f"{own}\n")
        (fake / "commondir").write_text(f"{victim}/.git\n")
        own.write_text("gitdir: fake/worktrees/x\n")
    return victim / ".git"


@pytest.mark.parametrize(
    "how",
    [
        "keys",
        "keys that look like a worktree",
        "another repository",
        "worktrees of another repository",
        "commondir of the main tree",
        "commondir of a worktree",
        "a symbolic link",
        "a link in the project",
        "a fake git directory in the project",
    ],
)
def test_a_crafted_git_directory_is_not_followed_into_a_mount(repository, how):
    world = repository
    target = crafted(world, how)
    result = world.inside(f"echo launched; ls '{target}'; grep -rs canary-73 '{target}'")
    assert (result.returncode, result.stdout) == (1, ""), how
    words = result.stderr.splitlines()
    assert len(words) == 1 and words[0].startswith("claudebox: "), words
    plan = world.run("claudebox", "plan")
    assert (plan.returncode, plan.stdout) == (1, "")
    assert not world.state.exists()


@pytest.fixture
def superproject(repository):
    """The repository with a submodule at `sub/module`."""
    world = repository
    source = world.home / "source"
    world.git("clone", "-q", str(world.project), str(source), cwd=world.home)
    allow = ("-c", "protocol.file.allow=always")
    world.git(*allow, "submodule", "--quiet", "add", str(source), "sub/module")
    world.git("commit", "-q", "-m", "submodule")
    return world


WORK = "echo two >> file && git commit -qam second && git log --format=%s && git status --short"


def test_a_submodule_works_as_a_project_of_its_own(superproject):
    world = superproject
    module = world.project / "sub/module"
    result = world.inside(WORK, cwd=module)
    assert result.stdout == "second\nfirst\n", result.stderr[-500:]
    assert world.git("log", "--format=%s", cwd=module) == "second\nfirst\n"
    git_dir = world.project / ".git/modules/sub/module"
    result = world.inside(f"echo x > '{git_dir}/hooks/pre-commit'; git config a.b c", cwd=module)
    assert result.returncode != 0
    assert not (git_dir / "hooks/pre-commit").exists()
    assert len(world.instances()) == 1


def test_a_submodule_works_from_the_project_that_holds_it(superproject):
    world = superproject
    result = world.inside(f"cd sub/module && {WORK} && cd ../.. && git status --short")
    assert result.stdout == "second\nfirst\n M sub/module\n", result.stderr[-500:]


def test_a_linked_worktree_of_a_submodule_has_the_instance_of_the_submodule(superproject):
    world = superproject
    module = world.project / "sub/module"
    tree = world.home / "tree"
    world.git("worktree", "add", "-q", "-b", "linked", str(tree), cwd=module)
    assert world.inside(WORK, cwd=tree).stdout == "second\nfirst\n"
    assert instance_path(world, tree) == instance_path(world, module)


def test_of_a_subdirectory_only_that_directory_is_mounted_and_the_audit_says_so(repository):
    world = repository
    directory = world.project / "sub"
    directory.mkdir()
    (directory / "mine").write_text("mine\n")
    result = world.inside("cat mine; ls -A ..; cat ../file; git status", cwd=directory)
    assert result.stdout == "mine\nsub\n"
    assert "not a git repository" in result.stderr
    assert "git is not available inside" in result.stderr
    assert f"{world.project};" in result.stderr and "--repo" in result.stderr


def test_repo_mounts_the_root_of_the_repository_read_write_and_starts_where_it_was_told(repository):
    world = repository
    directory = world.project / "sub/deeper"
    directory.mkdir(parents=True)
    script = "pwd; cat ../../file; echo two > ../../new; git add ../.. && git commit -qm second"
    result = world.inside(f"{script} && git log --format=%s", "--repo", cwd=directory)
    assert result.stdout == f"{directory}\none\nsecond\nfirst\n", result.stderr[-500:]
    assert "git is not available" not in result.stderr
    assert (world.project / "new").read_text() == "two\n"
    assert world.git("status", "--short") == ""
    assert [str(path) for path in world.instances()] == [instance_path(world, world.project)]


def test_repo_works_from_a_subdirectory_of_a_linked_worktree(repository):
    world = repository
    tree, _, main = linked(world, "absolute")
    (tree / "sub").mkdir()
    result = world.inside("git log --format=%s; cat ../file", "--repo", cwd=tree / "sub")
    assert result.stdout == "first\none\n"
    assert [str(path) for path in world.instances()] == [instance_path(world, main)]


@pytest.mark.parametrize("kind", ["main", "linked", "submodule"])
def test_finding_the_repository_executes_nothing_that_it_configures(superproject, kind):
    world = superproject
    marker = world.home / "executed"
    trap = world.home / "trap"
    trap.write_text(f"#!/bin/sh\necho \"$0 $*\" >> '{marker}'\n")
    trap.chmod(0o755)
    settings = {
        "core.fsmonitor": str(trap),
        "core.pager": str(trap),
        "pager.config": str(trap),
        "core.editor": str(trap),
        "core.sshCommand": str(trap),
        "core.askPass": str(trap),
        "core.hooksPath": str(world.home),
        "credential.helper": str(trap),
        "diff.external": str(trap),
        "filter.trap.clean": str(trap),
        **{
            f"alias.{name}": f"!{trap}"
            for name in ("config", "rev-parse", "status", "worktree", "version")
        },
    }
    (world.home / "evil").write_text("")
    for name, value in settings.items():
        world.git("config", "--file", str(world.home / "evil"), name, value)
    directory = world.project
    configurations = [world.project / ".git/config"]
    if kind == "linked":
        directory = linked(world, "worktree configuration")[0]
        configurations.append(world.project / ".git/worktrees/tree/config.worktree")
    elif kind == "submodule":
        directory = world.project / "sub/module"
        configurations.append(world.project / ".git/modules/sub/module/config")
    evil = (world.home / "evil").read_text()
    for path in configurations:
        path.write_text(f"{path.read_text()}\n[include]\n\tpath = {world.home}/evil\n{evil}")
    (directory / ".gitattributes").write_text("* filter=trap\n")
    for name in ("reference-transaction", "post-index-change", "pre-commit"):
        (world.home / name).symlink_to(trap)

    sub = directory / "below"
    sub.mkdir()
    for command, where in (
        (("plan",), directory),
        (("plan", "--repo"), sub),
        (("instance", "path"), directory),
        (("--check",), directory),
        (("--dry-run",), directory),
        (("-y", "--shell", "--", "-c", "echo works"), directory),
    ):
        result = world.run("claudebox", *command, cwd=where)
        assert result.returncode == 0, result.stderr[-500:]
        assert not marker.exists(), (command, marker.read_text())
    # The control: the trap is a good one.
    world.git("status", cwd=directory)
    assert marker.exists()


def test_what_stands_in_for_a_repository_is_not_reported_as_one(repository):
    below = repository.project / "a/b"
    below.mkdir(parents=True)
    result = repository.inside("true", "--repo", cwd=below)
    assert result.returncode == 0
    assert "repositories were made" not in result.stderr
