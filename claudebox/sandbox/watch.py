"""Compares what could run outside later, before and after a session."""

import os
from itertools import islice

from claudebox import policy

# Files and directories that are looked at in each watched place: a full one must neither hide a
# change in another nor keep the launcher busy.
_ENTRY_LIMIT = 1000


def fingerprint(project: dict) -> dict[str, tuple]:
    """Return path → (inode, size, change time in ns) of the watched files of the plan's `project`.

    The change time is the kernel's own: no program can set it.
    """
    seen = {}
    for directory in dict.fromkeys((project["root"], project["cwd"])):
        for name in policy.WATCHED_PROJECT_PATHS:
            _add(f"{directory}/{name}", seen)
    return seen


def _add(place: str, seen: dict) -> None:
    remaining = [place]
    looked_at = 0
    while remaining and looked_at < _ENTRY_LIMIT:
        path = remaining.pop()
        looked_at += 1
        try:
            status = os.lstat(path)
            if status.st_mode & 0o170000 == 0o040000:
                with os.scandir(path) as entries:
                    remaining.extend(entry.path for entry in islice(entries, _ENTRY_LIMIT))
            else:
                seen[path] = (status.st_ino, status.st_size, status.st_ctime_ns)
        except OSError:
            continue
    if remaining:
        # Too much to compare: never the same, so always told.
        from time import monotonic_ns

        seen[place] = (monotonic_ns(),)


def changes(before: dict, after: dict) -> list[str]:
    """Return the watched paths that were made, changed or removed, sorted."""
    return sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )
