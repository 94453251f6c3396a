"""Reads which paths git tracks from the index itself (gitformat-index(5)): no git runs for it."""

import os

from claudebox import git

_SIZE_LIMIT = 1 << 28
_HASH_SIZES = (20, 32)
# ctime, mtime, dev, ino, mode, uid, gid, size: ten numbers of 32 bits.
_STATUS_SIZE = 40
_EXTENDED = 0x4000


class UnreadableIndex(Exception):
    """An index that is not there in a form that is known here."""


def tracked(root: str, paths: list[str], repositories: list[str]) -> list[str]:
    """Return those of the absolute `paths` below `root` that git tracks, or files in them.

    `repositories` are the nested ones: a path belongs to the nearest. Raises UnreadableIndex if an
    index cannot be understood.
    """
    by_worktree = {}
    for path in paths:
        worktree = root
        for nested in repositories:
            if path.startswith(nested + "/") and len(nested) > len(worktree):
                worktree = nested
        by_worktree.setdefault(worktree, []).append(path)
    found = []
    for worktree, inside in by_worktree.items():
        index = _index_of(worktree)
        if index is None:
            continue
        names = _names(index)
        directories = {name[:place] for name in names for place in _slashes(name)}
        for path in inside:
            name = os.fsencode(path[len(worktree) + 1 :])
            if name in names or name in directories:
                found.append(path)
    return found


def _slashes(name: bytes):
    place = name.find(b"/")
    while place >= 0:
        yield place
        place = name.find(b"/", place + 1)


def _index_of(worktree: str) -> str | None:
    dot_git = worktree + "/.git"
    directory = dot_git if os.path.isdir(dot_git) else git.named_directory(dot_git)
    if directory is None and git.is_git_directory(worktree):
        directory = worktree
    if directory is None or not os.path.lexists(directory + "/index"):
        return None
    return directory + "/index"


def _names(path: str) -> set[bytes]:
    """Return the paths that an index lists, those of the shared index that it is split from included."""
    data = _content(path)
    for size in _HASH_SIZES:
        try:
            names, end = _entries(data, size)
            shared = _shared_index(data, end, size)
        except (IndexError, ValueError):
            continue
        if shared:
            names |= _names(f"{os.path.dirname(path)}/sharedindex.{shared}")
        return names
    raise UnreadableIndex(path)


def _content(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise UnreadableIndex(path) from error
    if len(data) > _SIZE_LIMIT or data[:4] != b"DIRC":
        raise UnreadableIndex(path)
    return data


def _number(data: bytes, place: int, size: int = 4) -> int:
    if place + size > len(data):
        raise IndexError
    return int.from_bytes(data[place : place + size], "big")


def _entries(data: bytes, hash_size: int) -> tuple[set[bytes], int]:
    """Return the paths of an index, and where its entries end. Raises ValueError or IndexError."""
    version, count, place = _number(data, 4), _number(data, 8), 12
    if version not in (2, 3, 4):
        raise ValueError
    names, previous = set(), b""
    for _ in range(count):
        start = place
        place += _STATUS_SIZE + hash_size
        flags = _number(data, place, 2)
        place += 4 if flags & _EXTENDED and version > 2 else 2
        if version == 4:
            cut, place = _offset(data, place)
            if cut > len(previous):
                raise ValueError
        end = data.index(b"\0", place)
        name = data[place:end]
        if version == 4:
            name = previous = previous[: len(previous) - cut] + name
            place = end + 1
        else:
            # 1 to 8 zeros: an entry is a multiple of 8 bytes long.
            place = start + (end - start) // 8 * 8 + 8
        if not name and not flags & 0xFFF:
            # Of a split index, an entry that replaces one of the shared index.
            continue
        if min(len(name), 0xFFF) != flags & 0xFFF:
            raise ValueError
        names.add(name)
    return names, place


def _offset(data: bytes, place: int) -> tuple[int, int]:
    """Return the number that pack files encode so (OFS_DELTA), and where it ends."""
    byte = _number(data, place, 1)
    value = byte & 0x7F
    while byte & 0x80:
        place += 1
        byte = _number(data, place, 1)
        value = ((value + 1) << 7) | (byte & 0x7F)
    return value, place + 1


def _shared_index(data: bytes, place: int, hash_size: int) -> str | None:
    """Return the name of the shared index that the extension `link` gives, in hexadecimal digits."""
    while place + 8 <= len(data) - hash_size:
        name, size = data[place : place + 4], _number(data, place + 4)
        if not (name.isalpha() and name.isascii()):
            raise ValueError
        if name == b"link":
            shared = data[place + 8 : place + 8 + hash_size]
            return shared.hex() if any(shared) else None
        place += 8 + size
    if place + hash_size != len(data):
        raise ValueError
    return None
