"""Finding the git directory of a project: real repositories, hostile ones, and what is executed."""

import os
import shutil

import pytest

from claudebox import Failure, git_identity, host, instance
from claudebox import git as discovery

REAL_GIT = shutil.which("git")


def refused(root):
    with pytest.raises(discovery.UnsafeGit) as caught:
        discovery.discover(str(root))
    return caught.value.what


# ---------------------------------------------------------------------------- real repositories


def test_a_directory_without_git_has_no_repository(project):
    assert discovery.discover(str(project)) is None


def test_a_repository_is_its_own_main_worktree(project, repository):
    repository(project)
    found = discovery.discover(str(project))
    assert found == {"dir": f"{project}/.git", "common_dir": f"{project}/.git", "worktree": False}
    assert discovery.main_root(found, str(project)) == str(project)


def test_a_repository_without_a_commit_is_found(project, git):
    git(project, "init", "-q")
    assert discovery.discover(str(project))["common_dir"] == f"{project}/.git"


def test_the_commondir_that_claudebox_itself_leaves_is_not_suspicious(project, repository):
    (repository(project) / ".git" / "commondir").write_text(".\n")
    assert discovery.discover(str(project))["worktree"] is False


def test_a_linked_worktree_is_found_with_its_repository(project, repository, git, tmp_path):
    repository(project)
    git(project, "worktree", "add", "-q", str(tmp_path / "side"))
    found = discovery.discover(str(tmp_path / "side"))
    assert found == {
        "dir": f"{project}/.git/worktrees/side",
        "common_dir": f"{project}/.git",
        "worktree": True,
    }
    assert discovery.main_root(found, str(tmp_path / "side")) == str(project)


def test_a_linked_worktree_with_relative_links_is_found(project, repository, git, tmp_path):
    # What git 2.48 writes with worktree.useRelativePaths.
    repository(project)
    side = tmp_path / "side"
    git(project, "worktree", "add", "-q", str(side))
    (side / ".git").write_text("gitdir: ../project/.git/worktrees/side\n")
    (project / ".git/worktrees/side/gitdir").write_text("../../../../side/.git\n")
    git(side, "status")
    assert discovery.discover(str(side))["dir"] == f"{project}/.git/worktrees/side"


def test_a_linked_worktree_inside_the_main_one_is_found(project, repository, git):
    repository(project)
    git(project, "worktree", "add", "-q", "inner/side")
    found = discovery.discover(f"{project}/inner/side")
    assert found["common_dir"] == f"{project}/.git"
    assert discovery.main_root(found, f"{project}/inner/side") == str(project)


def test_the_worktree_of_a_bare_repository_is_found(repository, git, tmp_path, project):
    repository(project)
    bare = tmp_path / "store.git"
    git(tmp_path, "clone", "-q", "--bare", str(project), str(bare))
    git(bare, "worktree", "add", "-q", str(tmp_path / "side"), "main")
    found = discovery.discover(str(tmp_path / "side"))
    assert found["common_dir"] == str(bare)
    assert discovery.main_root(found, str(tmp_path / "side")) == str(bare)


def test_a_worktree_is_found_with_a_configuration_of_its_own(project, repository, git, tmp_path):
    repository(project)
    git(project, "config", "extensions.worktreeConfig", "true")
    git(project, "worktree", "add", "-q", str(tmp_path / "side"))
    git(tmp_path / "side", "config", "--worktree", "core.sparseCheckout", "true")
    assert (project / ".git/worktrees/side/config.worktree").exists()
    assert discovery.discover(str(tmp_path / "side"))["worktree"] is True
    assert discovery.discover(str(project))["worktree"] is False


def test_a_submodule_is_found_with_its_own_git_directory(submodule, project):
    found = discovery.discover(str(submodule))
    directory = f"{project}/.git/modules/deps/library"
    assert found == {"dir": directory, "common_dir": directory, "worktree": False}
    assert discovery.main_root(found, str(submodule)) == str(submodule)


def test_a_submodule_with_a_configuration_for_each_worktree_is_found(submodule, git):
    # `git sparse-checkout set` does this: core.worktree moves to config.worktree.
    git(submodule, "sparse-checkout", "set", "src")
    git(submodule, "status")
    assert discovery.discover(str(submodule))["dir"].endswith("/modules/deps/library")


def test_the_worktree_of_a_submodule_is_found(submodule, project, git, tmp_path):
    git(submodule, "worktree", "add", "-q", str(tmp_path / "side"))
    found = discovery.discover(str(tmp_path / "side"))
    assert found["worktree"] is True
    assert found["common_dir"] == f"{project}/.git/modules/deps/library"


def test_a_separate_git_directory_needs_a_link_back(project, git, tmp_path):
    git(tmp_path, "init", "-q", "--separate-git-dir", str(tmp_path / "elsewhere"), str(project))
    assert "not a git directory that links back" in refused(project)
    git(project, "config", "core.worktree", str(project))
    assert discovery.discover(str(project))["common_dir"] == f"{tmp_path}/elsewhere"


@pytest.mark.parametrize("name", ["a b", "line\nbreak", "tab\tquote'\"", "bytes\udce9\udcff", "ü"])
def test_a_worktree_with_an_unusual_name_is_found(project, repository, git, tmp_path, name):
    repository(project)
    side = f"{tmp_path}/{name}"
    git(project, "worktree", "add", "-q", "-b", "side", side)
    assert discovery.discover(side)["worktree"] is True


def test_the_top_of_a_repository_is_found_from_below(project, repository):
    repository(project)
    (project / "a" / "b").mkdir(parents=True)
    assert discovery.toplevel(f"{project}/a/b") == str(project)
    assert discovery.toplevel(str(project)) == str(project)
    assert discovery.toplevel("/usr") is None


# ---------------------------------------------------------------------------- hostile ones


def linked(root, target):
    """Make `root` a directory whose .git file leads to `target`."""
    root.mkdir(exist_ok=True)
    (root / ".git").write_text(f"gitdir: {target}\n")
    return root


def test_a_git_file_that_leads_to_the_ssh_keys_is_refused(home, project):
    (home / ".ssh").mkdir()
    assert "which is not a git directory that links back here" in refused(
        linked(project, home / ".ssh")
    )


@pytest.mark.parametrize("target", ["/", "/etc", "../..", ".", "", "/nonexistent/x", ".git"])
def test_a_git_file_that_leads_to_no_git_directory_is_refused(project, target):
    refused(linked(project, target))


def test_a_git_file_that_leads_to_another_repository_is_refused(project, repository, tmp_path):
    other = repository(tmp_path / "other")
    assert f"leads to {other}/.git" in refused(linked(project, other / ".git"))


def test_a_git_file_that_leads_to_the_worktree_of_another_is_refused(
    project, repository, git, tmp_path
):
    other = repository(tmp_path / "other")
    git(other, "worktree", "add", "-q", str(tmp_path / "side"))
    refused(linked(project, other / ".git/worktrees/side"))


def test_a_git_file_that_leads_to_the_submodule_of_another_is_refused(submodule, tmp_path):
    target = discovery.discover(str(submodule))["dir"]
    refused(linked(tmp_path / "thief", target))


def test_a_git_file_that_leads_through_a_link_is_judged_by_where_it_ends(
    project, repository, tmp_path
):
    other = repository(tmp_path / "other")
    (project / "way").symlink_to(other / ".git")
    assert f"leads to {other}/.git" in refused(linked(project, "way"))


def crafted_worktree(project, repository, tmp_path, gitdir, commondir):
    other = repository(tmp_path / "other")
    private = tmp_path / "crafted" / ".git" / "worktrees" / "x"
    private.mkdir(parents=True)
    for name in ("objects", "refs"):
        (private.parent.parent / name).mkdir()
    (private.parent.parent / "HEAD").write_text("ref: refs/heads/main\n")
    (private / "gitdir").write_text(gitdir.format(project=project))
    (private / "commondir").write_text(commondir.format(other=other))
    return linked(project, private)


def test_a_crafted_worktree_is_accepted_only_with_all_its_links(project, repository, tmp_path):
    # The one that is right: the tests below each break one thing of it.
    root = crafted_worktree(project, repository, tmp_path, "{project}/.git\n", "../..\n")
    assert discovery.discover(str(root))["common_dir"] == f"{tmp_path}/crafted/.git"


@pytest.mark.parametrize(
    ("gitdir", "commondir"),
    [
        ("{project}/.git\n", "{other}/.git\n"),
        ("{project}/.git\n", "/\n"),
        ("{project}/.git\n", ""),
        ("{project}/.git\n", "../../..\n"),
        ("{project}\n", "../..\n"),
        ("{project}/.git2\n", "../..\n"),
        ("/nonexistent/.git\n", "../..\n"),
        ("", "../..\n"),
        ("{project}/.git\0\n", "../..\n"),
    ],
)
def test_a_worktree_whose_links_lead_elsewhere_is_refused(
    project, repository, tmp_path, gitdir, commondir
):
    refused(crafted_worktree(project, repository, tmp_path, gitdir, commondir))


@pytest.mark.parametrize("name", ["gitdir", "commondir"])
def test_a_worktree_without_one_of_its_links_is_refused(project, repository, tmp_path, name):
    root = crafted_worktree(project, repository, tmp_path, "{project}/.git\n", "../..\n")
    (tmp_path / "crafted/.git/worktrees/x" / name).unlink()
    refused(root)


@pytest.mark.parametrize("name", ["gitdir", "commondir"])
def test_a_worktree_whose_link_file_is_a_symbolic_link_is_refused(
    project, repository, tmp_path, name
):
    root = crafted_worktree(project, repository, tmp_path, "{project}/.git\n", "../..\n")
    file = tmp_path / "crafted/.git/worktrees/x" / name
    file.rename(file.with_suffix(".moved"))
    file.symlink_to(file.with_suffix(".moved").name)
    refused(root)


def test_a_commondir_in_the_main_git_directory_is_refused(project, repository, tmp_path):
    other = repository(tmp_path / "other")
    repository(project)
    (project / ".git" / "commondir").write_text(f"{other}/.git\n")
    assert "sends git to another repository" in refused(project)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda p: os.symlink("/etc/hosts", p)])
def test_a_commondir_that_is_no_plain_file_is_refused(project, repository, make, alarm):
    alarm(5)
    repository(project)
    make(f"{project}/.git/commondir")
    assert "commondir is not a plain file" in refused(project)


def test_a_git_that_is_a_symbolic_link_is_refused(project, repository, tmp_path):
    other = repository(tmp_path / "other")
    (project / ".git").symlink_to(other / ".git")
    assert "is a symbolic link or a special file" in refused(project)


def test_a_git_that_is_a_dangling_link_is_refused(project):
    (project / ".git").symlink_to("nowhere")
    assert "is a symbolic link or a special file" in refused(project)


def test_a_named_pipe_as_git_is_refused_without_waiting_for_a_writer(project, alarm):
    alarm(5)
    os.mkfifo(project / ".git")
    assert "is a symbolic link or a special file" in refused(project)


def test_a_named_pipe_in_a_crafted_worktree_is_refused_without_waiting(
    project, repository, tmp_path, alarm
):
    alarm(5)
    root = crafted_worktree(project, repository, tmp_path, "{project}/.git\n", "../..\n")
    for name in ("gitdir", "commondir"):
        (tmp_path / "crafted/.git/worktrees/x" / name).unlink()
        os.mkfifo(tmp_path / "crafted/.git/worktrees/x" / name)
    refused(root)


def test_a_huge_git_file_is_refused_unread(project):
    with open(project / ".git", "wb") as file:
        file.write(b"gitdir: /")
        file.truncate(1 << 40)
    assert "is not a file that git wrote" in refused(project)


@pytest.mark.parametrize("content", [b"", b"\0", b"gitdir: /a\0b\n", b"gitdir:/a\n", b"hello\n"])
def test_a_git_file_that_git_did_not_write_is_refused(project, content):
    (project / ".git").write_bytes(content)
    assert "is not a file that git wrote" in refused(project)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every directory")
def test_a_project_that_cannot_be_searched_is_refused(project):
    project.chmod(0o000)
    try:
        assert "cannot be read: Permission denied" in refused(project)
    finally:
        project.chmod(0o700)


def test_a_small_file_is_read_whole_and_a_larger_one_not_at_all(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 4096)
    (tmp_path / "b").write_bytes(b"x" * 4097)
    (tmp_path / "c").write_bytes(b"\xff")
    assert discovery.read_small_file(f"{tmp_path}/a") == "x" * 4096
    assert discovery.read_small_file(f"{tmp_path}/b") is None
    assert os.fsencode(discovery.read_small_file(f"{tmp_path}/c")) == b"\xff"
    assert discovery.read_small_file(f"{tmp_path}/none") is None
    assert discovery.read_small_file(str(tmp_path)) is None


# ---------------------------------------------------------------------------- what is executed


@pytest.fixture
def trap(tmp_path):
    """A command that leaves a mark when it runs, and whether it did."""
    mark = tmp_path / "mark"
    script = tmp_path / "trap"
    script.write_text(f"#!/bin/sh\necho ran >>'{mark}'\n")
    script.chmod(0o755)

    class Trap:
        path = str(script)

        @staticmethod
        def sprung():
            return mark.exists()

    return Trap


def set_traps(config, trap):
    """Write everything into a git configuration file that could make git run a program."""
    with open(config, "a") as file:
        file.write(
            f"[core]\n\tfsmonitor = {trap.path}\n\tpager = {trap.path}\n\teditor = {trap.path}\n"
            f"\tsshCommand = {trap.path}\n\thooksPath = {os.path.dirname(trap.path)}\n"
            f"[pager]\n\tconfig = {trap.path}\n\tstatus = {trap.path}\n"
            f"[alias]\n\tconfig = !{trap.path}\n\trev-parse = !{trap.path}\n\tstatus = !{trap.path}\n"
            f"[credential]\n\thelper = !{trap.path}\n"
            f'[diff "x"]\n\ttextconv = {trap.path}\n'
            f"[gpg]\n\tprogram = {trap.path}\n[uploadpack]\n\tpackObjectsHook = {trap.path}\n"
        )


def test_the_trap_of_these_tests_works(project, repository, git, trap):
    repository(project)
    set_traps(project / ".git/config", trap)
    git(project, "status")
    assert trap.sprung()


def test_finding_a_repository_runs_nothing_that_it_configures(project, repository, trap):
    repository(project)
    set_traps(project / ".git/config", trap)
    assert discovery.discover(str(project))
    assert not trap.sprung()


def test_finding_a_submodule_runs_nothing_that_it_configures(submodule, trap):
    set_traps(discovery.discover(str(submodule))["dir"] + "/config", trap)
    assert discovery.discover(str(submodule))
    assert not trap.sprung()


def test_finding_a_submodule_follows_no_include_of_its_configuration(submodule, tmp_path):
    directory = discovery.discover(str(submodule))["dir"]
    thief = linked(tmp_path / "thief", directory)
    (tmp_path / "included").write_text(f"[core]\n\tworktree = {thief}\n")
    with open(f"{directory}/config", "a") as file:
        file.write(f"[include]\n\tpath = {tmp_path}/included\n")
    refused(thief)


def test_resolving_a_project_runs_nothing_that_its_repository_configures(project, repository, trap):
    repository(project)
    set_traps(project / ".git/config", trap)
    assert instance.resolve(str(project))["project"]["git"]
    assert not trap.sprung()


@pytest.fixture
def plant_git(trap, monkeypatch):
    """Put a `git` that is a trap into a directory, and the directory first on PATH."""

    def plant(directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "git").symlink_to(trap.path)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        # PATH has to be right by itself: not every system has its programs in these.
        monkeypatch.setattr(host, "SYSTEM_DIRECTORIES", (), raising=False)

    return plant


def test_the_trap_called_git_works(tmp_path, home, plant_git, trap):
    plant_git(tmp_path / "elsewhere")
    git_identity.GitIdentity("/nonexistent", str(home)).settings()
    assert trap.sprung()


def test_a_program_called_git_in_the_project_is_not_run(submodule, plant_git, trap):
    plant_git(submodule / "bin")
    try:
        discovery.discover(str(submodule))
    finally:
        assert not trap.sprung()


def test_a_program_called_git_in_the_repository_around_the_project_is_not_run(
    submodule, project, plant_git, trap
):
    plant_git(project / "bin")
    try:
        instance.resolve(f"{project}/deps")
    finally:
        assert not trap.sprung()


def test_resolving_a_project_runs_no_program_of_the_project(project, repository, plant_git, trap):
    repository(project)
    plant_git(project / ".venv" / "bin")
    instance.resolve(str(project))
    assert not trap.sprung()


def test_resolving_a_whole_repository_runs_no_program_of_it(project, repository, plant_git, trap):
    repository(project)
    (project / "below").mkdir()
    plant_git(project / ".venv" / "bin")
    assert instance.resolve(f"{project}/below", repo=True)["project"]["root"] == str(project)
    assert not trap.sprung()


def test_a_program_that_is_run_outside_comes_from_no_directory_of_the_project(
    project, tmp_path, monkeypatch
):
    (project / "bin").mkdir()
    (tmp_path / "link").symlink_to(project / "bin")
    monkeypatch.setenv("PATH", f".::bin:{project}/bin:{tmp_path}/link:/opt/x:{project}:/usr/bin")
    assert host.search_path(str(project)) == ["/opt/x", "/usr/bin"]


# ---------------------------------------------------------------------------- how git is asked


def test_git_is_asked_about_one_file_only(submodule, fp):
    directory = os.path.realpath(submodule / (submodule / ".git").read_text()[8:].strip())
    question = [REAL_GIT, "config", "--no-includes", "--file", f"{directory}/config"]
    fp.register([*question, "--get", "core.worktree"], stdout="../../../../deps/library\n")
    assert discovery.discover(str(submodule))["dir"] == directory
    assert len(fp.calls) == 1


@pytest.mark.parametrize("answer", ["", "\n", "/\n", "../../../../deps/other\n"])
def test_an_answer_that_names_another_worktree_is_a_refusal(submodule, fp, answer):
    fp.register([REAL_GIT, "config", fp.any()], stdout=answer)
    refused(submodule)


def test_a_git_that_fails_is_a_refusal(submodule, fp):
    fp.register([REAL_GIT, "config", fp.any()], returncode=128, stderr="fatal: bad config\n")
    refused(submodule)


def test_without_git_on_the_machine_a_submodule_is_refused(submodule, monkeypatch):
    monkeypatch.setattr(host, "find_program", lambda *_: None)
    refused(submodule)


# ---------------------------------------------------------------------------- the user's identity


def test_the_identity_is_the_users_own_and_nothing_else_of_the_configuration(home, project):
    with open(home / ".gitconfig", "a") as file:
        file.write("[github]\n\ttoken = secret\n[user]\n\tsigningkey = secret\n")
    settings = git_identity.GitIdentity(str(project), str(home)).settings()
    assert settings == {
        "user.name": "Unit Test",
        "user.email": "unit@example.org",
        "init.defaultbranch": "main",
    }


def test_the_identity_is_not_taken_from_the_repository(home, project, repository, git, monkeypatch):
    repository(project)
    git(project, "config", "user.name", "Somebody Else")
    monkeypatch.chdir(project)
    monkeypatch.setenv("GIT_DIR", f"{project}/.git")
    identity = git_identity.GitIdentity(str(project), str(home))
    assert identity.settings()["user.name"] == "Unit Test"


def test_an_identity_with_several_lines_is_read_whole(home, project, git):
    git(project, "config", "--global", "user.name", 'two\nlines "quoted"')
    identity = git_identity.GitIdentity(str(project), str(home))
    assert identity.settings()["user.name"] == 'two\nlines "quoted"'


def test_the_identity_is_empty_without_git(home, project, monkeypatch):
    monkeypatch.setattr(host, "find_program", lambda *_: None)
    assert git_identity.GitIdentity(str(project), str(home)).settings() == {}


@pytest.fixture
def spawned(monkeypatch):
    """The programs that were started."""
    programs = []
    spawn = os.posix_spawn

    def note(program, *arguments, **options):
        programs.append(program)
        return spawn(program, *arguments, **options)

    monkeypatch.setattr(os, "posix_spawn", note)
    return programs


def asked(project, home):
    """Ask for the identity as a launch does, and remember the answer."""
    settings = git_identity.GitIdentity(str(project), str(home)).settings()
    git_identity.remember(str(home))
    return settings


def test_a_second_launch_remembers_the_identity(home, project, spawned):
    first = asked(project, home)
    assert asked(project, home) == first != {}
    assert spawned == ["/usr/bin/git"]


@pytest.mark.parametrize("file", [".gitconfig", ".config/git/config"])
def test_git_is_asked_again_when_its_configuration_has_changed(home, project, spawned, file):
    asked(project, home)
    (home / file).parent.mkdir(parents=True, exist_ok=True)
    (home / file).write_text("[user]\n\tname = New Name\n\temail = n@example.org\n")
    if file != ".gitconfig":
        (home / ".gitconfig").unlink()
    assert asked(project, home)["user.name"] == "New Name"
    assert len(spawned) == 2


def test_an_identity_that_may_come_from_an_included_file_is_never_remembered(
    home, project, spawned
):
    (home / ".gitconfig").write_text("[include]\n\tpath = more\n")
    for name in ("One", "Two"):
        (home / "more").write_text(f"[user]\n\tname = {name}\n")
        assert asked(project, home) == {"user.name": name}
    assert len(spawned) == 2


@pytest.mark.parametrize("content", ["", "nonsense", "\0" * 10, "x" * 300_000])
def test_a_memory_that_is_not_readable_is_made_anew(home, project, spawned, content):
    first = asked(project, home)
    (home / ".claudebox/cache/git-identity").write_text(content)
    assert asked(project, home) == first
    assert asked(project, home) == first
    assert len(spawned) == 2


def test_what_is_remembered_is_for_the_user_alone(home, project):
    asked(project, home)
    cache = home / ".claudebox/cache"
    assert (cache.stat().st_mode & 0o777, (cache / "git-identity").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )


def test_resolving_a_plan_remembers_nothing(home, project):
    git_identity.GitIdentity(str(project), str(home)).settings()
    assert not (home / ".claudebox").exists()
    git_identity._unwritten = ""


def test_more_includes_than_anybody_writes_are_refused(project, repository, git):
    repository(project)
    for number in range(25):
        (project / f"{number}.inc").write_text(f"[include]\n\tpath = {number + 1}.inc\n")
    git(project, "config", "include.path", "../0.inc")
    with pytest.raises(Failure, match="includes more than 20 files"):
        discovery.obeyed_files(f"{project}/.git", [str(project)])
