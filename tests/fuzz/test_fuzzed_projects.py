"""Projects whose git files an agent has written: no launch there, or one within the policy."""

import os
import shutil

from cases import each_case
from change_disk import change_anything
from mount_checker import complaints

from claudebox import Failure, enforcement, git, instance, project
from claudebox.printable import printable
from claudebox.sandbox import bwrap


def test_a_project_with_mutated_git_files_is_refused_or_within_the_policy(host, bounds):
    launched = []

    def check(chance):
        bounds()
        host.restore()
        project._walks.clear()
        for _ in range(chance.choice((1, 1, 2, 3))):
            change_anything(chance, host)
        starts = [host.project, host.worktree, host.project / "deps" / "library"]
        starts += [host.project / "vendor" / "nested", host.project / "sub" / "deeper"]
        starts += [host.project / "bare"]
        start = str(chance.choice(starts))
        if not os.path.isdir(start):
            return
        try:
            plan = instance.resolve(start, repo=chance.random() < 0.2, shell=True)
        except Failure as failure:
            assert "\n" not in printable(str(failure))
            launched.append(False)
            return
        # A plan that was just made is never refused as an edited one would be.
        project._walks.clear()
        enforcement.refuse_unsafe(plan)
        facts = host.facts(plan)
        found = plan["project"]["git"]
        facts.common_dir = found and found["common_dir"]
        if found is not None:
            assert facts.common_dir in expected_repositories(host, facts.root), found
        arguments = bwrap.by_path(bwrap.arguments(plan))
        facts.instance = plan["instance"]["path"]
        assert complaints(arguments, facts) == []
        launched.append(True)

    try:
        each_case(150, check)
    finally:
        host.restore()
    assert len(launched) < 50 or (any(launched) and not all(launched))


def expected_repositories(host, root):
    """Return the git directories that a project of this host may be said to belong to."""
    return {f"{root}/.git", f"{host.project}/.git", f"{host.project}/.git/modules/deps/library"}


def test_the_readers_of_git_files_answer_for_whatever_is_there(host, bounds):
    def check(chance):
        bounds()
        host.restore()
        for _ in range(chance.randrange(1, 5)):
            change_anything(chance, host)
        for directory in (host.project, host.worktree, host.project / "deps" / "library"):
            dot_git = f"{directory}/.git"
            for reader in (
                lambda place=directory: git.discover(str(place)),
                lambda place=dot_git: git.named_directory(place),
                lambda place=dot_git: git.is_git_directory(place),
                lambda place=directory: git.toplevel(str(place)),
                lambda place=dot_git: git.obeyed_files(place, [str(host.project)]),
            ):
                try:
                    reader()
                except Failure as failure:
                    assert "\n" not in printable(str(failure))

    try:
        each_case(60, check)
    finally:
        host.restore()


def test_a_deep_project_is_walked_in_bounded_time(host, bounds, tmp_path):
    place = tmp_path / "deep"
    place.mkdir()
    os.chdir(place)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    os.chdir("/")
    try:
        instance.resolve(str(place), shell=True)
    except Failure as failure:
        assert "\n" not in printable(str(failure))
    finally:
        os.system(f"rm -rf {place}")
    shutil.rmtree(place, ignore_errors=True)
