"""Reads which paths git tracks from the index itself (gitformat-index(5)): no git runs for it."""

import os

from claudebox import git

_SIZE_LIMIT = 1 << 28
# PATH_MAX. An index is written inside as well: reading it must not take more memory than it has.
_NAME_LIMIT = 4096
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
        wanted = _Wanted(os.fsencode(path[len(worktree) + 1 :]) for path in inside)
        _read(index, wanted)
        found += [path for path in inside if os.fsencode(path[len(worktree) + 1 :]) in wanted.found]
    return found


class _Wanted:
    """The paths that are looked for, and those among them that an index lists, or files in them."""

    def __init__(self, names):
        self._names = set(names)
        self._directories = {name + b"/": name for name in self._names}
        self._beginnings = tuple(self._directories)
        self.found = set()

    def see(self, name: bytes) -> None:
        """Take note of a path that an index lists."""
        if name in self._names:
            self.found.add(name)
        if name.startswith(self._beginnings):
            for beginning, directory in self._directories.items():
                if name.startswith(beginning):
                    self.found.add(directory)


def _index_of(worktree: str) -> str | None:
    dot_git = worktree + "/.git"
    directory = dot_git if os.path.isdir(dot_git) else git.named_directory(dot_git)
    if directory is None and git.is_git_directory(worktree):
        directory = worktree
    if directory is None or not os.path.lexists(directory + "/index"):
        return None
    return directory + "/index"


def _read(path: str, wanted: _Wanted, shared: bool = False) -> None:
    """Show `wanted` the paths that an index lists, and those of the shared index that it is split from."""
    data = _content(path)
    for size in _HASH_SIZES:
        try:
            end = _entries(data, size, wanted)
            other = _shared_index(data, end, size)
        except (IndexError, ValueError):
            continue
        if other and shared:
            # git makes none that is split from another in turn.
            break
        if other:
            _read(f"{os.path.dirname(path)}/sharedindex.{other}", wanted, shared=True)
        return
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


def _entries(data: bytes, hash_size: int, wanted: _Wanted) -> int:
    """Show `wanted` the paths of an index; return where its entries end.

    Raises ValueError or IndexError.
    """
    version, count, place = _number(data, 4), _number(data, 8), 12
    if version not in (2, 3, 4):
        raise ValueError
    previous = b""
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
        if min(len(name), 0xFFF) != flags & 0xFFF or len(name) > _NAME_LIMIT:
            raise ValueError
        wanted.see(name)
    return place


def _offset(data: bytes, place: int) -> tuple[int, int]:
    """Return the number that pack files encode so (OFS_DELTA), and where it ends."""
    byte = _number(data, place, 1)
    value = byte & 0x7F
    while byte & 0x80:
        place += 1
        byte = _number(data, place, 1)
        value = ((value + 1) << 7) | (byte & 0x7F)
        if value > _NAME_LIMIT:
            raise ValueError
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
