"""The instances on disk: what they belong to, how large they are, and how one is removed.

The metadata and the lock of an instance are claudebox's own; all below its `claude` directory was
written inside a sandbox.
"""

import fcntl
import os
import stat

from claudebox import Failure, json_text, mounts, policy
from claudebox.sandbox import standins, state

TRASH = ".trash"

# What became of an instance's project root.
PRESENT, GONE, UNMOUNTED, UNREADABLE = "present", "gone", "not mounted", "unreadable"


class Instance:
    """One directory of `instances`, open.

    `identity` is its name; `root`, `created` and `last_used` (seconds of the epoch) come from its
    metadata; `problem` says why it is none of ours to remove, and is None for a good one.
    """

    def __init__(self, parent: int, name: str, path: str):
        self.identity = name
        self.path = path
        self.root = None
        self.created = self.last_used = 0
        self.problem = None
        self._mount = None
        self._lock = None
        self.directory = None
        try:
            self.directory = state.open_directory(name, parent)
        except Failure as failure:
            self.problem = failure.what
            return
        self._read_metadata()

    def _read_metadata(self) -> None:
        from claudebox import instance

        try:
            metadata = json_text.loads(state.read_file(self.directory, state.METADATA) or "")
            root, mount = metadata["root"], metadata.get("mount")
            self.created = int(metadata["created"])
            self.last_used = int(metadata["last_used"])
            os.fsencode(root)
            if not (0 <= self.created < 2**53 and 0 <= self.last_used < 2**53):
                raise ValueError("no time of the epoch")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, Failure):
            self.problem = "its metadata cannot be read"
            return
        if not root.startswith("/") or instance.identity_of(root) != self.identity:
            self.problem = f"its metadata names {root}, which has another instance"
            return
        self.root = root
        if isinstance(mount, list) and len(mount) == 2 and all(isinstance(m, str) for m in mount):
            self._mount = mount

    def root_state(self) -> str:
        """Return PRESENT, GONE, UNMOUNTED or UNREADABLE."""
        try:
            os.lstat(self.root)
            return PRESENT
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            return UNREADABLE
        if self._mount is not None and mounts.holding(self.root) != self._mount:
            return UNMOUNTED
        return GONE

    def is_live(self) -> bool:
        """Say whether a session uses the instance; if not, hold it against new ones until `close`.

        Raises FileNotFoundError if another process has removed it meanwhile.
        """
        if self._lock is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock = os.open(state.LOCK, flags, 0o600, dir_fd=self.directory)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True

    def size(self) -> int:
        """Return the bytes that the instance takes on disk."""
        return _size(self.directory)

    def has_standins(self) -> bool:
        """Say whether a session left, or has, stand-ins in the project."""
        return bool(standins.recorded(self.directory))

    def release_standins(self) -> None:
        """Remove what a killed session left in its project. Only for one that is not live."""
        standins.remove(self.directory)

    def close(self) -> None:
        """Give the lock back and close the directory."""
        for descriptor in (self._lock, self.directory):
            if descriptor is not None:
                os.close(descriptor)
        self._lock = self.directory = None


def open_parent(home: str) -> int | None:
    """Return a descriptor of the `instances` directory, or None if there is none yet."""
    path = policy.state_home(home) + "/instances"
    if not os.path.lexists(path):
        return None
    return state.open_directory(path)


def every(home: str):
    """Yield each Instance, sorted by identity, open until the next one is asked for."""
    parent = open_parent(home)
    if parent is None:
        return
    try:
        for name in sorted(os.listdir(parent)):
            if name == TRASH:
                continue
            found = Instance(parent, name, f"{policy.state_home(home)}/instances/{name}")
            try:
                yield found
            finally:
                found.close()
    finally:
        os.close(parent)


def remove(home: str, found: Instance) -> None:
    """Remove an instance that `is_live` has said no to; FileNotFoundError if another process did.

    It goes to the trash by rename first: killed in between, the instance is whole or out of use, and
    `empty_trash` finishes.
    """
    found.release_standins()
    parent = open_parent(home)
    try:
        try:
            os.mkdir(TRASH, 0o700, dir_fd=parent)
        except FileExistsError:
            pass
        trash = state.open_directory(TRASH, parent)
        try:
            if not os.path.samestat(
                os.fstat(found.directory),
                os.stat(found.identity, dir_fd=parent, follow_symlinks=False),
            ):
                raise Failure(f"{found.path} was replaced meanwhile", "look at what does that")
            name = f"{found.identity}.{os.getpid()}"
            os.rename(found.identity, name, src_dir_fd=parent, dst_dir_fd=trash)
        finally:
            os.close(trash)
    finally:
        os.close(parent)


def empty_trash(home: str) -> int:
    """Delete everything in the trash and return the bytes that were freed."""
    parent = open_parent(home)
    if parent is None:
        return 0
    try:
        if TRASH not in os.listdir(parent):
            return 0
        trash = state.open_directory(TRASH, parent)
        try:
            try:
                fcntl.flock(trash, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Somebody else is at it.
                return 0
            freed = _size(trash)
            _delete_everything(trash)
            return freed
        finally:
            os.close(trash)
    finally:
        os.close(parent)


def _size(directory: int) -> int:
    """Return the bytes on disk below a directory, links not followed."""
    total = 0
    pending = [os.dup(directory)]
    while pending:
        current = pending.pop()
        try:
            for name in os.listdir(current):
                try:
                    status = os.lstat(name, dir_fd=current)
                    total += status.st_blocks * 512
                    # Far deeper than any real one: a tree that was made to exhaust descriptors.
                    if stat.S_ISDIR(status.st_mode) and len(pending) < 500:
                        pending.append(os.open(name, _DIRECTORY, dir_fd=current))
                except OSError:
                    continue
        except OSError:
            pass
        finally:
            os.close(current)
    return total


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _delete_everything(directory: int) -> None:
    """Delete all that is in a directory, however deep, by descriptor and without following links.

    A directory in a directory is moved up before it is emptied, so depth needs neither recursion
    nor descriptors.
    """
    count = 0
    while names := os.listdir(directory):
        for name in names:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
                os.unlink(name, dir_fd=directory)
                continue
            # An agent may have made it unreadable for its owner.
            os.chmod(name, 0o700, dir_fd=directory)
            inner = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                for entry in os.listdir(inner):
                    if stat.S_ISDIR(os.lstat(entry, dir_fd=inner).st_mode):
                        os.chmod(entry, 0o700, dir_fd=inner)
                        count += 1
                        moved = f"deeper.{os.getpid()}.{count}"
                        os.rename(entry, moved, src_dir_fd=inner, dst_dir_fd=directory)
                    else:
                        os.unlink(entry, dir_fd=inner)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=directory)


def human_size(count: int) -> str:
    """Return a number of bytes in at most five characters: 512 B, 1.5 M."""
    size = float(count)
    for unit in ("B", "K", "M", "G"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.0f} T"


def human_age(seconds: float) -> str:
    """Return a length of time in words: `3 days`; the future, after a clock was set back, is now."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "now"
