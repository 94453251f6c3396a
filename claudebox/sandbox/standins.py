"""Makes and removes the stand-ins: what bwrap mounts a read-only file on where the project has none.

A stand-in is an empty directory or a file with harmless content, on the host, for the time of the
session. Every session holds a shared lock on each; whoever gets the exclusive lock may remove it.
"""

import errno
import fcntl
import os
import stat

from claudebox import Failure, json_text

RECORD = "standins.json"
# Seconds to wait for a lock that an agent in another sandbox may hold on purpose.
_PATIENCE = 1


# Whatever else keeps a stand-in from being looked at, it is still there.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def make(plan: dict, instance: int, locks: list[int]) -> None:
    """Make the stand-ins that `plan` needs and add the descriptors that hold their locks to `locks`.

    They are recorded in the directory `instance` before they are made. Raises Failure where a
    symbolic link stands in the way, or where a file that is to be protected has vanished; the
    caller closes what was added until then, too.
    """
    from claudebox.sandbox import held_signals, sources, state

    signals = held_signals.HeldSignals()
    with state.Preparation(instance), sources.Opener() as opener:
        _make_all(plan, instance, opener)
        for mount in plan["mounts"]:
            if mount["reason"] == "protected" or _stands_for_protection(mount):
                _hold(mount["target"], opener, locks, signals)


def _stands_for_protection(mount: dict) -> bool:
    """Say whether something protected may lie below a hidden directory, or be the hidden file.

    It can be a stand-in of another session: if that session removed it, the mount would go with it.
    """
    if mount["reason"] != "hidden" or mount["kind"] == "bind":
        return False
    try:
        mode = os.lstat(mount["target"]).st_mode
    except FileNotFoundError:
        return True
    # What cannot be opened is no stand-in.
    plain = stat.S_ISDIR(mode) or stat.S_ISREG(mode)
    return plain and os.access(mount["target"], os.R_OK)


def _make_all(plan: dict, instance: int, opener) -> None:
    from claudebox.sandbox import state

    wanted = []
    for mount in plan["mounts"]:
        if mount["reason"] == "protected" and not os.path.lexists(mount["target"]):
            if mount["kind"] == "ro-bind":
                raise Failure(
                    f"{mount['target']} vanished while the session was prepared", "start it again"
                )
            wanted.append([mount["target"], mount.get("content")])
    if wanted:
        record = recorded(instance)
        record.extend(entry for entry in wanted if entry not in record)
        state.replace_file(instance, RECORD, json_text.dumps(record) + "\n")
    for path, content in wanted:
        _make(path, content, opener)


def _hold(path: str, opener, locks: list[int], signals) -> None:
    """Add a descriptor that holds the shared lock of what is at `path` to `locks`.

    A session of an overlapping project can have removed the stand-in before the lock was got.
    """
    # A lock that nobody knows of would keep the stand-in from being removed.
    with signals:
        lock = _open(path, opener)
        locks.append(lock)
    _share(lock, path)
    try:
        if os.path.samestat(os.fstat(lock), os.lstat(path)):
            return
    except FileNotFoundError:
        pass
    raise Failure(f"{path} vanished while the session was prepared", "start it again")


def _share(lock: int, path: str) -> None:
    """Take the shared lock; whoever removes a stand-in holds the exclusive one for an instant only."""
    from time import monotonic, sleep

    end = monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if monotonic() > end:
                raise Failure(
                    f"{path} is locked by another program", "end that program, then try again"
                ) from None
        sleep(0.02)


def remove(instance: int) -> list[str]:
    """Remove the recorded stand-ins that no session uses; return the paths of those that remain."""
    from claudebox.sandbox import state

    with state.Preparation(instance):
        return _remove_all(instance)


def _remove_all(instance: int) -> list[str]:
    from claudebox.sandbox import sources, state

    record = recorded(instance)
    if not record:
        return []
    with sources.Opener() as opener:
        remaining = [entry for entry in reversed(record) if not _remove(*entry, opener)]
    remaining.reverse()
    if remaining:
        state.replace_file(instance, RECORD, json_text.dumps(remaining) + "\n")
    else:
        os.unlink(RECORD, dir_fd=instance)
    return [path for path, _ in remaining]


def recorded(instance: int) -> list[list]:
    """Return the recorded stand-ins: [path, content or None for a directory]."""
    from claudebox.sandbox import state

    text = state.read_file(instance, RECORD)
    if not text:
        return []
    try:
        record = json_text.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(record, list):
        return []
    return [
        entry
        for entry in record
        if isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and entry[0].startswith("/")
        and (entry[1] is None or isinstance(entry[1], str))
        and _can_be_named(entry[0] + (entry[1] or ""))
    ]


def _can_be_named(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _open(path: str, opener) -> int:
    directory, name = path.rsplit("/", 1)
    try:
        return os.open(
            name,
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            dir_fd=opener.step_to(directory),
        )
    except OSError as error:
        raise Failure(
            f"{path} cannot be protected: {error.strerror}", "mend or remove it"
        ) from None


def _make(path: str, content: str | None, opener) -> None:
    directory, name = path.rsplit("/", 1)
    try:
        parent = opener.step_to(directory)
        if content is None:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            file = os.open(
                name,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o644,
                dir_fd=parent,
            )
            os.write(file, content.encode("utf-8", "surrogateescape"))
            os.close(file)
    except FileExistsError:
        pass
    except OSError as error:
        raise Failure(
            f"{path} cannot be protected: {error.strerror}", "make the project directory writable"
        ) from None


def _remove(path: str, content: str | None, opener) -> bool:
    """Remove one stand-in if it is still what was made and no session holds it; say if it is gone."""
    directory, name = path.rsplit("/", 1)
    try:
        parent = opener.step_to(directory)
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent
        )
    except OSError as error:
        return error.errno in _GONE
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        mode = os.fstat(descriptor).st_mode
        if content is None and stat.S_ISDIR(mode):
            # A directory that the user has put something into stays.
            try:
                os.rmdir(name, dir_fd=parent)
            except OSError:
                pass
        elif content is not None and stat.S_ISREG(mode):
            expected = content.encode("utf-8", "surrogateescape")
            # Nothing is what a kill or a full disk left of it.
            if os.read(descriptor, len(expected) + 1) in (b"", expected):
                os.unlink(name, dir_fd=parent)
    finally:
        os.close(descriptor)
    return True
