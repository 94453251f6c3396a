"""Finds the git directory of a project by reading files: nothing that a repository configures runs."""

import os
import stat

from claudebox import Failure

_FILE_LIMIT = 4096
_CONFIGURATION_LIMIT = 1 << 20
_INCLUDE_LIMIT = 20


class UnsafeGit(Failure):
    """A `.git` that does not lead to a git directory of this very project."""


def read_small_file(path: str, limit: int = _FILE_LIMIT, binary: bool = False) -> str | None:
    """Return the text of a regular file of at most `limit` bytes, or None if it is no such thing.

    Nor is it with a NUL character in it, unless `binary`.

    Follows no symbolic link in the last component and does not block on a named pipe.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = os.read(descriptor, limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit or (b"\0" in content and not binary):
        return None
    return os.fsdecode(content)


def discover(root: str) -> dict | None:
    """Return the plan's `project.git` for the resolved directory `root`, or None without a `.git`.

    A `.git` file and a `commondir` are followed only to a git directory that links back: the
    worktree's own `gitdir` file, or the submodule's `core.worktree`. Raises UnsafeGit otherwise.
    """
    dot_git = root + "/.git"
    try:
        mode = os.lstat(dot_git).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnsafeGit(
            f"{dot_git} cannot be read: {error.strerror}", "mend its permissions"
        ) from None
    if stat.S_ISDIR(mode):
        return None if is_empty(dot_git) else _main_worktree(dot_git)
    if stat.S_ISREG(mode):
        return _linked(dot_git)
    raise UnsafeGit(
        f"{dot_git} is a symbolic link or a special file, which cannot be protected",
        "replace it with the directory itself, or with a worktree (git worktree add)",
    )


def is_empty(dot_git: str) -> bool:
    """Say whether a `.git` is an empty directory: what stands in for none while a session runs."""
    try:
        return not os.listdir(dot_git)
    except OSError:
        return False


def is_git_directory(path: str) -> bool:
    """Say whether `path` looks to git like a git directory: HEAD, objects and refs are there."""
    return (os.path.isfile(path + "/HEAD") or os.path.islink(path + "/HEAD")) and all(
        os.path.isdir(f"{path}/{name}") for name in ("objects", "refs")
    )


def _main_worktree(dot_git: str) -> dict:
    common = read_small_file(dot_git + "/commondir")
    if common is None and os.path.lexists(dot_git + "/commondir"):
        raise UnsafeGit(f"{dot_git}/commondir is not a plain file", "remove it")
    # `.` is what claudebox itself leaves there while a session runs.
    if common is not None and common.strip() != ".":
        raise UnsafeGit(
            f"{dot_git}/commondir sends git to another repository",
            "remove that file if it is not yours",
        )
    return {"dir": dot_git, "common_dir": dot_git, "worktree": False}


def named_directory(dot_git: str) -> str | None:
    """Return the resolved path that a `.git` file names, whatever is there."""
    text = read_small_file(dot_git)
    if text is None or not text.startswith("gitdir: "):
        return None
    path = text[len("gitdir: ") :].rstrip("\n")
    return os.path.realpath(os.path.join(os.path.dirname(dot_git), path))


def _linked(dot_git: str) -> dict:
    git_dir = named_directory(dot_git)
    if git_dir is None:
        raise UnsafeGit(f"{dot_git} is not a file that git wrote", "remove or mend it")
    root = os.path.dirname(dot_git)
    common_dir = os.path.dirname(os.path.dirname(git_dir))
    if os.path.basename(os.path.dirname(git_dir)) == "worktrees" and is_git_directory(common_dir):
        back = read_small_file(git_dir + "/gitdir")
        common = read_small_file(git_dir + "/commondir")
        if (
            back is not None
            and common is not None
            # Since git 2.48 both links can be relative, to the directory that they stand in.
            and os.path.realpath(os.path.join(git_dir, back.rstrip("\n"))) == dot_git
            and os.path.realpath(os.path.join(git_dir, common.rstrip("\n"))) == common_dir
        ):
            return {"dir": git_dir, "common_dir": common_dir, "worktree": True}
    elif is_git_directory(git_dir) and root in _core_worktrees(git_dir, root):
        return {"dir": git_dir, "common_dir": git_dir, "worktree": False}
    raise UnsafeGit(
        f"{dot_git} leads to {git_dir}, which is not a git directory that links back here",
        "if it is yours, run `git worktree repair` or set `core.worktree` outside; or remove the file",
    )


def _core_worktrees(git_dir: str, root: str):
    """Yield the resolved `core.worktree`s of a submodule's or separate git directory.

    `git config --file` reads that one file, follows no include and runs nothing.
    `git sparse-checkout` moves the setting to config.worktree.
    """
    import subprocess

    from claudebox import host

    git = host.find_program("git", root)
    for name in ("config", "config.worktree"):
        if git is None or not os.path.isfile(f"{git_dir}/{name}"):
            continue
        file = f"{git_dir}/{name}"
        answer = subprocess.run(
            [git, "config", "--no-includes", "--file", file, "--get", "core.worktree"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        path = os.fsdecode(answer.stdout).rstrip("\n")
        if path:
            yield os.path.realpath(os.path.join(git_dir, path))


def obeyed_files(git_dir: str, worktrees: list[str]) -> list[str]:
    """Return what the configuration of `git_dir` names for git to obey: includes, hooks, attributes.

    A path that is relative to a worktree is resolved in each of `worktrees`. Includes of includes
    are followed. git itself reads the files, one at a time, and is asked only
    if a file has one of the words in it.
    """
    from claudebox import host, policy

    found, pending, seen = [], [f"{git_dir}/config", f"{git_dir}/config.worktree"], set()
    git = host.find_program("git", worktrees[0])
    question = [git, "config", "--no-includes", "--file"]
    while pending and git is not None:
        file = pending.pop()
        content = read_small_file(file, _CONFIGURATION_LIMIT)
        if file in seen or content is None:
            continue
        if len(seen) > _INCLUDE_LIMIT:
            raise Failure(
                f"{git_dir}/config includes more than {_INCLUDE_LIMIT} files",
                "include fewer: each has to be read-only inside",
            )
        seen.add(file)
        if not any(word in os.fsencode(content).lower() for word in policy.GIT_WORDS_WITH_FILES):
            continue
        import subprocess

        answer = subprocess.run(
            [*question, file, "-z", "--get-regexp", policy.GIT_SETTINGS_WITH_FILES],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        for entry in os.fsdecode(answer.stdout).split("\0"):
            key, separator, path = entry.partition("\n")
            if not separator or path.startswith("%("):
                continue
            path = os.path.expanduser(path)
            is_include = key.startswith("include")
            for base in [os.path.dirname(file)] if is_include else worktrees:
                # Not resolved: a link on the way could be replaced by another one.
                named = os.path.normpath(os.path.join(base, path))
                found.append(named)
                if is_include:
                    pending.append(named)
    return found


def main_root(git: dict | None, root: str) -> str:
    """Return the directory that names a project's instance: its repository's main worktree.

    For a worktree of a bare repository it is the repository itself.
    """
    if git is None or not git["worktree"]:
        return root
    common = git["common_dir"]
    parent, _, name = common.rpartition("/")
    if name == ".git":
        return parent
    # A submodule's git directory has its main worktree elsewhere.
    for place in _core_worktrees(common, root):
        if named_directory(place + "/.git") == common:
            return place
    return common


def toplevel(directory: str) -> str | None:
    """Return the nearest directory at or above `directory` that holds a `.git`."""
    while True:
        if os.path.lexists(directory + "/.git") and not is_empty(directory + "/.git"):
            return directory
        if directory == "/":
            return None
        directory = os.path.dirname(directory)
