"""The host's mount table: what is mounted below a directory, and what holds it."""

import os

# proc(5): these four characters are octal escapes in mountinfo.
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


def table() -> list[tuple[str, str]]:
    """Return (mount point, source) of every mount that this process sees, in order."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields, _, rest = os.fsdecode(line).partition(" - ")
            found.append((plain(fields.split(" ")[4]), plain(rest.split(" ")[1])))
    return found


def plain(text: str) -> str:
    """Return a field of mountinfo without its escapes."""
    for escape, character in _ESCAPES:
        text = text.replace(escape, character)
    return text


def below(directory: str) -> list[str]:
    """Return the mount points below `directory`: a bind mount of it brings them along."""
    return [point for point, _ in table() if point.startswith(directory + "/")]


def holding(path: str) -> list[str]:
    """Return the mount point and the source of the mount that `path` lies on, or would lie on."""
    best = ("/", "")
    for point, source in table():
        inside = point == "/" or path == point or path.startswith(point + "/")
        # Of two on the same point the later one is seen.
        if inside and len(point) >= len(best[0]):
            best = (point, source)
    return list(best)
