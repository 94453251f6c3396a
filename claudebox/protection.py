"""The mounts that keep run-later files read-only: what git and Claude Code would obey outside."""

import os
import stat

from claudebox import Failure, git, policy

_REPOSITORY_LIMIT = 100


class _Protection:
    """Collects mounts. Every directory on the way to a protected file becomes a mount point.

    A mount point cannot be renamed or removed inside (EBUSY), so none of them can be moved away to
    make room for another directory with the same name. bwrap before 0.12 follows a symbolic link
    in a mount point's path (CVE-2026-87766), therefore a link on the way ends the launch.
    """

    def __init__(self):
        self.mounts = []
        self._anchored = set()
        self._protected = set()
        self._read_only = set()

    def start_at(self, directory: str) -> None:
        """Say that `directory` is a mount point already."""
        self._anchored.add(directory)

    def anchor(self, directory: str) -> None:
        """Make `directory` and what lies between it and a mount point mount points of their own."""
        if directory in self._anchored or directory == "/" or self._is_read_only(directory):
            return
        self.anchor(os.path.dirname(directory))
        self._anchored.add(directory)
        if self._mode(directory) not in (None, stat.S_IFDIR):
            raise _not_protectable(directory)
        self.mounts.append(
            {"kind": "bind", "source": directory, "target": directory, "reason": "protected"}
        )

    def protect(self, base: str, name: str, absent: str | None) -> None:
        """Make base/name read-only; `absent` stands there if it does not exist (None: a directory)."""
        path = f"{base}/{name}"
        if path in self._protected or self._is_read_only(path):
            return
        self._protected.add(path)
        mode = self._mode(path)
        if mode is None and not _could_be_created(path):
            if os.path.isdir(os.path.dirname(path)):
                self.anchor(os.path.dirname(path))
            return
        self.anchor(os.path.dirname(path))
        if _is_stand_in(path, mode, absent):
            mode = None
        if mode in (stat.S_IFREG, stat.S_IFDIR):
            mount = {"kind": "ro-bind", "source": path, "target": path, "reason": "protected"}
        elif mode is not None:
            raise _not_protectable(path)
        elif absent is None:
            mount = {"kind": "empty-dir", "target": path, "reason": "protected"}
        else:
            mount = {"kind": "file", "content": absent, "target": path, "reason": "protected"}
        if path in self._anchored:
            # What was mounted on it and below is read-only with it, and would be hidden.
            self.mounts = [m for m in self.mounts if not policy.is_within(m["target"], path)]
        self._read_only.add(path)
        self.mounts.append(mount)

    def _is_read_only(self, path: str) -> bool:
        """Say whether `path` lies in what is read-only already: a mount there would undo that."""
        while path not in self._read_only:
            if path == "/":
                return False
            path = os.path.dirname(path)
        return True

    def git_directory(self, directory: str) -> None:
        """Protect a git directory that is, or can become, the common directory of a repository."""
        self.anchor(directory)
        for name, absent in policy.PROTECTED_GIT_PATHS.items():
            self.protect(directory, name, absent)

    def no_bare_repository(self, directory: str) -> None:
        """Keep git from taking `directory` itself for a repository, or from obeying it as one."""
        if all(os.path.isdir(f"{directory}/{n}") for n in policy.BARE_REPOSITORY_DIRECTORIES):
            self.git_directory(directory)
            self.obeyed(directory, [directory], [directory])
            return
        for name in policy.BARE_REPOSITORY_DIRECTORIES:
            path = f"{directory}/{name}"
            mode = self._mode(path)
            # git asks whether it could be searched, access(X_OK), not whether it is a directory.
            if mode is None or (mode == stat.S_IFREG and not os.lstat(path).st_mode & 0o111):
                self.protect(directory, name, "")
                return
            if mode not in (stat.S_IFDIR, stat.S_IFREG):
                raise _not_protectable(path)
        raise Failure(
            f"{directory} could become a git repository of its own: neither refs nor objects in it"
            " can be held shut",
            "rename the one that is an executable file",
        )

    def obeyed(self, directory: str, worktrees: list[str], places: list[str]) -> None:
        """Protect what the configuration of a git directory names below one of `places`."""
        for path in git.obeyed_files(directory, worktrees):
            writable = any(path != place and policy.is_within(path, place) for place in places)
            if writable and os.path.realpath(path) != path:
                raise Failure(
                    f"{path}, which git's configuration names, is or lies behind a symbolic link",
                    "name the file itself in the configuration",
                )
            if writable and path not in self._protected:
                is_hooks = not path.endswith(("config", ".inc")) and not os.path.isfile(path)
                self.protect(
                    os.path.dirname(path), os.path.basename(path), None if is_hooks else ""
                )

    def worktree_directory(self, directory: str) -> None:
        """Protect the private git directory of a linked worktree (gitrepository-layout(5))."""
        self.anchor(directory)
        for name in ("commondir", "gitdir"):
            if os.path.lexists(f"{directory}/{name}"):
                self.protect(directory, name, "")
        self.protect(directory, "config.worktree", "")

    @staticmethod
    def _mode(path: str) -> int | None:
        try:
            return stat.S_IFMT(os.lstat(path).st_mode)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failure(
                f"{path} cannot be read: {error.strerror}", "mend its permissions"
            ) from None


def _not_protectable(path: str) -> Failure:
    return Failure(
        f"{path} is a symbolic link or a special file, so it cannot be made read-only inside",
        "replace it with a plain file or directory",
    )


def _is_stand_in(path: str, mode: int | None, absent: str | None) -> bool:
    """Say whether what is there is what would stand there anyway: left by a killed session, perhaps."""
    if mode == stat.S_IFDIR and absent is None:
        try:
            return not os.listdir(path)
        except OSError:
            return False
    return mode == stat.S_IFREG and absent is not None and git.read_small_file(path) == absent


def _downward(top: str, bottom: str) -> list[str]:
    """Return the directories from `top` to `bottom`, which lies at or below it."""
    directories = [bottom]
    while directories[-1] != top:
        directories.append(os.path.dirname(directories[-1]))
    return directories[::-1]


def _could_be_created(path: str) -> bool:
    """Say whether the user could make `path`: where nobody can write, nothing needs to be held shut."""
    directory = os.path.dirname(path)
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return False
    return os.lstat(directory).st_uid == os.getuid() or os.access(directory, os.W_OK)


def mounts(project: dict, repositories: list[str]) -> list[dict]:
    """Return the mounts that protect a project, in order, to stand after the project's own.

    `project` is the plan's; `repositories` are the directories below its root that hold a `.git`.
    Raises Failure where a symbolic link or a special file stands in a protected place, or where
    there are more than 100 nested repositories.
    """
    protection = _Protection()
    root = project["root"]
    protection.start_at(root)
    for directory in _downward(root, project["cwd"]):
        if directory in (root, project["cwd"]):
            for name, absent in policy.PROTECTED_PROJECT_PATHS.items():
                protection.protect(directory, name, absent)
        if directory != root and directory not in repositories:
            protection.protect(directory, ".git", None)
        protection.no_bare_repository(directory)
    own = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if policy.is_within(own, root):
        # A session in a checkout of claudebox must not change what starts the next one.
        for name in ("bin", "claudebox"):
            if os.path.isdir(f"{own}/{name}"):
                protection.protect(own, name, None)
    repository = project["git"]
    if repository is not None:
        common = repository["common_dir"]
        if not policy.is_within(common, root):
            protection.start_at(common)
            protection.mounts.append(
                {"kind": "bind", "source": common, "target": common, "reason": "git"}
            )
        _repository(protection, common, root, repositories)
        if not os.path.isdir(root + "/.git"):
            protection.protect(root, ".git", None)
    else:
        protection.protect(root, ".git", None)
    if len(repositories) > _REPOSITORY_LIMIT:
        raise Failure(
            f"{root} holds more than {_REPOSITORY_LIMIT} git repositories",
            "start claudebox in one of them",
        )
    for directory in repositories:
        _nested(protection, directory, root, repositories)
    return protection.mounts


def _repository(protection: _Protection, common: str, root: str, repositories) -> None:
    if not git.is_git_directory(common):
        # Not a repository, but `git init` inside would make it one.
        protection.protect(os.path.dirname(common), os.path.basename(common), None)
        return
    protection.git_directory(common)
    # A relative core.hooksPath starts at the top of whichever worktree git runs in.
    worktrees_here = list(dict.fromkeys((root, os.path.dirname(common), *repositories)))
    protection.obeyed(common, worktrees_here, [root, common])
    modules, worktrees = _modules(common + "/modules"), _names(common + "/worktrees")
    if len(modules) + len(worktrees) > _REPOSITORY_LIMIT:
        raise Failure(
            f"{common} has more than {_REPOSITORY_LIMIT} submodules and worktrees",
            "remove those that are not used (git worktree prune)",
        )
    for module in modules:
        protection.git_directory(module)
        protection.obeyed(module, worktrees_here, [root, common])
    for name in worktrees:
        directory = f"{common}/worktrees/{name}"
        place = (git.read_small_file(directory + "/gitdir") or "").rstrip("\n")
        if policy.is_within(os.path.realpath(os.path.join(directory, place)), root):
            protection.worktree_directory(directory)
            protection.obeyed(directory, worktrees_here, [root, common])
        else:
            protection.anchor(common + "/worktrees")
            protection.protect(common + "/worktrees", name, None)


def _nested(protection: _Protection, directory: str, root: str, repositories) -> None:
    dot_git = directory + "/.git"
    try:
        mode = stat.S_IFMT(os.lstat(dot_git).st_mode)
    except OSError:
        # A bare one.
        if git.is_git_directory(directory):
            protection.git_directory(directory)
            protection.obeyed(directory, [directory], [root])
        return
    if mode == stat.S_IFDIR:
        protection.anchor(directory)
        _repository(protection, dot_git, root, repositories)
    else:
        protection.protect(directory, ".git", None)
        elsewhere = git.named_directory(dot_git)
        if elsewhere and policy.is_within(elsewhere, root) and git.is_git_directory(elsewhere):
            protection.git_directory(elsewhere)
            protection.obeyed(elsewhere, [directory], [root])


def _names(directory: str) -> list[str]:
    try:
        return sorted(
            entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)
        )
    except OSError:
        return []


def _modules(directory: str) -> list[str]:
    """Return the git directories below `modules`: a submodule's name may hold slashes.

    One that an agent has made out of the first part of a name does not hide the others.
    """
    found = []
    for name in _names(directory):
        path = f"{directory}/{name}"
        if git.is_git_directory(path):
            found.append(path)
        if name not in ("objects", "refs", "logs"):
            found.extend(_modules(path))
    return found
