"""One bounded walk over a project: nested repositories, files that look like secrets, hard links."""

import os
from itertools import islice

from claudebox import policy

ENTRY_LIMIT = 20_000
# Of one directory, git's objects included, which do not count above.
_DIRECTORY_LIMIT = 200_000

_walks: dict[str, dict] = {}


def walk(root: str, afresh: bool = False) -> dict:
    """Return what lies in the resolved directory `root`, shallow things first.

    Keys: `repositories` (directories other than `root` that hold a `.git` or are bare ones),
    `secrets` (files whose name looks like one), `hard_links` (files with more than one name),
    `complete` (whether the walk ended before ENTRY_LIMIT entries). It stays on root's filesystem,
    follows no symbolic link and does not look into `.git`. The result is kept, so that two stages of
    one process walk once, unless it is wanted `afresh`.
    """
    if root not in _walks or afresh:
        _walks[root] = _walk(root)
    return _walks[root]


def _walk(root: str) -> dict:
    exact, suffixes, patterns = _compiled(policy.SECRET_FILE_NAMES)
    found = {"repositories": [], "secrets": [], "hard_links": [], "complete": True}
    device = os.lstat(root).st_dev
    directories = [root]
    seen = 0
    for directory in directories:
        try:
            with os.scandir(directory) as listing:
                entries = list(islice(listing, _DIRECTORY_LIMIT))
        except OSError:
            continue
        if len(entries) == _DIRECTORY_LIMIT:
            found["complete"] = False
        # Walked on: three names that an agent made must not hide the repositories below.
        if directory != root and {"HEAD", "objects", "refs"} <= {entry.name for entry in entries}:
            found["repositories"].append(directory)
        above, _, name = directory.rpartition("/")
        if above.endswith("/objects") and (len(name) == 2 or name == "pack"):
            # Of objects there are many. What else is there, an agent made.
            entries = [entry for entry in entries if not _is_object(entry)]
        for entry in entries:
            seen += 1
            if seen > ENTRY_LIMIT:
                found["complete"] = False
                return found
            name = entry.name
            if name == ".git":
                if directory != root:
                    found["repositories"].append(directory)
                continue
            try:
                if entry.is_symlink():
                    continue
                status = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    if status.st_dev == device:
                        directories.append(entry.path)
                    continue
            except OSError:
                continue
            if (
                name in exact
                or name.endswith(suffixes)
                or any(name.startswith(a) and name.endswith(b) for a, b in patterns)
            ) and name not in policy.HARMLESS_FILE_NAMES:
                found["secrets"].append(entry.path)
            if status.st_nlink > 1 and entry.is_file(follow_symlinks=False):
                found["hard_links"].append(entry.path)
    return found


def _is_object(entry) -> bool:
    """Say whether an entry is a file that is named as git names loose objects and packs."""
    name = entry.name
    named = name.startswith("pack-") or (len(name) in (38, 62) and name.isalnum())
    return named and entry.is_file(follow_symlinks=False)


def _compiled(names: tuple[str, ...]) -> tuple[frozenset, tuple, list]:
    """Split names with at most one `*` into exact names, suffixes, and (prefix, suffix) pairs."""
    exact, suffixes, pairs = set(), [], []
    for name in names:
        before, star, after = name.partition("*")
        if not star:
            exact.add(name)
        elif not before:
            suffixes.append(after)
        else:
            pairs.append((before, after))
    return frozenset(exact), tuple(suffixes), pairs
