"""Compares what could run outside later, before and after a session."""

import os

from claudebox import policy

# For each watched place: a full one must not hide a change in another.
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
    limit = len(seen) + _ENTRY_LIMIT
    while remaining and len(seen) < limit:
        path = remaining.pop()
        try:
            status = os.lstat(path)
            if status.st_mode & 0o170000 == 0o040000:
                remaining.extend(f"{path}/{name}" for name in os.listdir(path))
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
