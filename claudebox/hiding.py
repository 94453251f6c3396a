"""Finds what `hide` patterns match in a project, and makes the mounts that cover it."""

import os
import re
import stat

from claudebox import Failure, policy

# The reasons of the mounts that show the project's own files, or cover them.
_PROJECTS_OWN = ("project", "git", "protected", "hidden")


class Pattern:
    """A glob pattern, relative to the project.

    `*`, `?` and `[...]` match within a name, a leading dot included; `**` matches any number of
    directories. Without a slash before its end it matches at any depth, with one at its end
    directories only.
    """

    def __init__(self, text: str):
        self.text = text
        self.names_only = "/" not in text.rstrip("/")
        self._directories_only = text.endswith("/")
        self._fits = re.compile(_expression(text.strip("/")), re.DOTALL).fullmatch

    def matches(self, path: str, is_directory: bool) -> bool:
        """Say whether this matches a path relative to the project."""
        if self._directories_only and not is_directory:
            return False
        return bool(self._fits(path.rpartition("/")[2] if self.names_only else path))


def problem(text: str) -> str | None:
    """Return why this cannot be a pattern, or None if it can."""
    parts = text.removeprefix("/").removesuffix("/").split("/")
    if text.startswith("~") or any(part in ("", ".", "..") for part in parts):
        return "a pattern is relative to the project, without `~`, `.`, `..` and empty parts"
    if ".git" in parts:
        return "what git needs cannot be hidden"
    try:
        Pattern(text)
    except re.error as error:
        return f"not a pattern: {error.msg}"
    return None


def _expression(pattern: str) -> str:
    """Return the regular expression of a pattern without slashes at its ends.

    Between two stars the first place that fits is as good as any, so nothing is tried twice (the
    groups are atomic): the names in a project are not the user's, and must not cost time.
    """
    chunks = [[]]
    for part in pattern.split("/"):
        if part != "**":
            chunks[-1].append(_within_a_name(part))
        elif chunks[-1] or len(chunks) == 1:
            chunks.append([])
    first, *middle = chunks
    if not middle:
        return "/".join(first)
    last = middle.pop()
    result = "".join(part + "/" for part in first)
    for chunk in middle:
        result += "(?>(?:[^/]+/)*?" + "".join(part + "/" for part in chunk) + ")"
    return result + ("(?:[^/]+/)*" + "/".join(last) if last else ".+")


def _within_a_name(part: str) -> str:
    pieces, index = [""], 0
    while index < len(part):
        character = part[index]
        index += 1
        # A `]` that stands first in brackets is one of the characters in them.
        end = part.find("]", index + (2 if part[index : index + 1] in ("!", "^") else 1))
        if character == "*":
            if pieces[-1] or len(pieces) == 1:
                pieces.append("")
        elif character == "?":
            pieces[-1] += "[^/]"
        elif character == "[" and end > 0:
            inner = part[index:end]
            negation = "^" if inner[0] in "!^" else ""
            inner = inner[len(negation) :]
            for special in "\\[&~|^]":
                inner = inner.replace(special, "\\" + special)
            pieces[-1] += f"(?!/)[{negation}{inner}]"
            index = end + 1
        else:
            pieces[-1] += re.escape(character)
    first, *middle = pieces
    if not middle:
        return first
    last = middle.pop()
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle) + "[^/]*" + last


class Found:
    """What patterns match: resolved absolute paths, none of them inside another.

    `elsewhere` are directories that lie on another filesystem: nothing was looked for in them.
    `by_link` are what matches only as the place that a matching symbolic link leads to.
    """

    def __init__(self, files: set, directories: set, elsewhere: list, by_link: set):
        self.directories = sorted(d for d in directories if not _lies_in(d, directories))
        self.files = sorted(f for f in files if not _lies_in(f, directories))
        self.elsewhere = sorted(elsewhere)
        self.by_link = sorted(by_link)

    def paths(self) -> list[tuple[str, bool]]:
        """Return (path, whether it is a directory) of everything that is to be covered."""
        return [(path, False) for path in self.files] + [(path, True) for path in self.directories]


def _lies_in(path: str, directories: set) -> bool:
    while "/" in path:
        path = path.rpartition("/")[0]
        if path in directories:
            return True
    return False


def find(root: str, patterns: list[str]) -> Found:
    """Return what `patterns` match below the resolved directory `root`.

    What has a matched file's inode under another name counts as matched, and what a matched
    symbolic link leads to in the project. The walk stays on root's filesystem, follows no link and
    passes over everything that is named `.git`. Raises Failure if it cannot look everywhere: at more
    than `policy.HIDE_ENTRY_LIMIT` entries, or in a directory that could be made readable inside.
    """
    walk = _Walk(root, [Pattern(text) for text in patterns])
    walk.look_for_matches()
    walk.follow_links()
    walk.look_for_other_names()
    return Found(walk.files, walk.directories, walk.elsewhere, walk.by_link)


class _Walk:
    def __init__(self, root: str, patterns: list[Pattern]):
        self._root = root
        self._device = os.lstat(root).st_dev
        self._patterns = patterns
        self._links = []
        self._inodes = set()
        self._seen = 0
        self.files, self.directories, self.elsewhere = set(), set(), []
        self.by_link = set()

    def look_for_matches(self, start: str | None = None, covered: bool = False) -> None:
        """Collect what matches; with `covered`, only inodes of what lies below `start`."""
        pending = [(start or self._root, covered)]
        while pending:
            directory, covered = pending.pop()
            for entry in self._entries(directory, covered):
                if entry.is_symlink():
                    if not covered and self._matches_link(entry):
                        self._links.append(entry.path)
                    continue
                is_directory = entry.is_dir(follow_symlinks=False)
                matched = not covered and self._matches(entry.path, is_directory)
                if is_directory:
                    if matched:
                        self.directories.add(entry.path)
                    status = _status(entry)
                    if status is not None and status.st_dev == self._device:
                        pending.append((entry.path, covered or matched))
                    elif status is not None and not (covered or matched):
                        self.elsewhere.append(entry.path)
                elif covered or matched:
                    if matched:
                        self.files.add(entry.path)
                    self._remember(_status(entry))

    def follow_links(self) -> None:
        """Add what matched symbolic links lead to, if that lies in the project."""
        for link in self._links:
            target = os.path.realpath(link)
            if not target.startswith(self._root + "/"):
                if policy.is_within(self._root, target):
                    raise Failure(
                        f"{link} is to be hidden and leads to the project itself",
                        "remove the link, or the pattern that matches it",
                    )
                continue
            try:
                status = os.lstat(target)
            except OSError:
                continue
            if "/.git/" in target[len(self._root) :] + "/":
                continue
            if target not in self.files and not _lies_in(target + "/", self.directories):
                self.by_link.add(target)
            if stat.S_ISDIR(status.st_mode):
                self.directories.add(target)
                self.look_for_matches(target, covered=True)
            else:
                self.files.add(target)
                self._remember(status)

    def look_for_other_names(self) -> None:
        """Add the files that are matched ones under another name (hard links)."""
        pending = [self._root] if self._inodes else []
        while pending:
            for entry in self._entries(pending.pop(), False):
                if entry.is_symlink() or entry.path in self.directories:
                    continue
                status = _status(entry)
                if status is None:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if status.st_dev == self._device:
                        pending.append(entry.path)
                elif (status.st_dev, status.st_ino) in self._inodes:
                    self.files.add(entry.path)

    def _remember(self, status: os.stat_result | None) -> None:
        if status is not None and status.st_nlink > 1:
            self._inodes.add((status.st_dev, status.st_ino))

    def _matches(self, path: str, is_directory: bool) -> bool:
        relative = path[len(self._root) + 1 :]
        return any(pattern.matches(relative, is_directory) for pattern in self._patterns)

    def _matches_link(self, entry) -> bool:
        if not self._matches(entry.path, True):
            return False
        try:
            return self._matches(entry.path, entry.is_dir())
        except OSError:
            # It leads nowhere, or round in a circle.
            return False

    def _entries(self, directory: str, covered: bool):
        """Yield the entries of a directory but `.git`.

        Raises Failure if it cannot be read and yet what is in it can be reached inside: by name, or
        after its owner changed its mode.
        """
        try:
            entries = os.scandir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError:
            entries = None
        may_enter = os.access(directory, os.X_OK)
        if entries is None or not may_enter:
            mine = os.lstat(directory).st_uid == os.geteuid()
            if not covered and (mine or may_enter):
                raise Failure(
                    f"{directory} cannot be searched for what is to be hidden",
                    f"make it readable, or hide it as a whole: chmod u+rx {directory}",
                )
            return
        with entries:
            for entry in entries:
                self._seen += 1
                if self._seen > policy.HIDE_ENTRY_LIMIT:
                    raise Failure(
                        f"{self._root} has more than {policy.HIDE_ENTRY_LIMIT} entries, so not all"
                        " of it can be searched for what is to be hidden",
                        "start claudebox in a smaller directory",
                    )
                if entry.name != ".git":
                    yield entry


def _status(entry) -> os.stat_result | None:
    """Return what lstat(2) says of an entry, or None if it vanished meanwhile."""
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None


def cover(plan: dict, patterns: list[dict]) -> dict:
    """Return `plan` with what `patterns` match covered, and the patterns among those it has.

    A file becomes an empty one, a directory an empty one, both read-only; every directory on the
    way from the project's root becomes a mount point, which cannot be renamed inside. What is
    read-only already because it would run outside later is replaced; below a covered directory it
    is left out, because nothing there can be reached. Raises Failure if something cannot be covered.
    """
    place = plan["project"]
    found = find(place["root"], [pattern["pattern"] for pattern in patterns])
    covering = _Covering(plan)
    for directory in found.directories:
        covering.cover_directory(directory)
    for file in found.files:
        covering.cover_file(file)
    notes = [
        f"nothing is hidden in {directory}, which is another filesystem"
        for directory in found.elsewhere
    ]
    notes += [
        f"{path[len(place['root']) + 1 :]} is hidden because a link leads there, which can be removed"
        " inside: the next session would show it; hide it by its own name"
        for path in found.by_link
    ]
    known = plan["hide"] + [pattern for pattern in patterns if pattern not in plan["hide"]]
    notes = plan["notes"] + [note for note in notes if note not in plan["notes"]]
    return {**plan, "mounts": covering.mounts(), "hide": known, "notes": notes}


class _Covering:
    """Puts mounts that hide among those of a plan: after the project's, before the user's own."""

    def __init__(self, plan: dict):
        self._cwd = plan["project"]["cwd"]
        self._root = plan["project"]["root"]
        mounts = plan["mounts"]
        own = [index for index, mount in enumerate(mounts) if mount["reason"] in _PROJECTS_OWN]
        self._before, self._after = mounts[: own[-1] + 1], mounts[own[-1] + 1 :]
        first = next(i for i, mount in enumerate(mounts) if mount["reason"] == "project")
        self._at = {mount["target"]: mount for mount in mounts[first:]}
        self._added = []

    def mounts(self) -> list[dict]:
        """Return all mounts of the plan; raises Failure if too many were added."""
        if len(self._added) > policy.HIDDEN_LIMIT:
            raise Failure(
                f"{len(self._added)} files and directories would have to be mounted to hide what the"
                f" patterns match, more than {policy.HIDDEN_LIMIT}",
                "hide the directory that they are in, or use narrower patterns",
            )
        return [*self._before, *self._added, *self._after]

    def cover_directory(self, directory: str) -> None:
        """Make `directory` an empty one that cannot be written."""
        if policy.is_within(self._cwd, directory):
            raise Failure(
                f"{directory} is to be hidden, and the session starts in it",
                "start it elsewhere, or use a narrower pattern",
            )
        below = [m for m in self._at.values() if policy.is_within(m["target"], directory)]
        for mount in below:
            if mount["reason"] not in ("protected", "hidden"):
                raise Failure(
                    f"{directory} is to be hidden, and {mount['target']} in it is to be mounted",
                    "leave one of the two out",
                )
        if self._holder(directory)["reason"] not in _PROJECTS_OWN:
            return
        self._before = [mount for mount in self._before if mount not in below]
        self._added = [mount for mount in self._added if mount not in below]
        for mount in below:
            del self._at[mount["target"]]
        self._add({"kind": "empty-dir", "target": directory, "reason": "hidden"})

    def cover_file(self, file: str) -> None:
        """Make `file` an empty one that cannot be written."""
        content = next(
            (
                absent
                for name, absent in policy.PROTECTED_PROJECT_PATHS.items()
                if file.endswith("/" + name)
            ),
            "",
        )
        mount = {"kind": "file", "content": content, "target": file, "reason": "hidden"}
        there = self._at.get(file)
        if there is None:
            if self._holder(file)["reason"] in _PROJECTS_OWN:
                self._add(mount)
        elif there["kind"] == "ro-bind" and there["reason"] == "protected":
            self._before[self._before.index(there)] = self._at[file] = mount

    def _holder(self, path: str) -> dict:
        """Return the mount that what lies at `path` belongs to."""
        while path not in self._at:
            path = os.path.dirname(path)
        return self._at[path]

    def _add(self, mount: dict) -> None:
        """Add a mount, and before it those of the directories on the way that are none yet."""
        directory = os.path.dirname(mount["target"])
        holder = self._holder(directory)
        # What is read-only as a whole needs none, and they would make it writable.
        if holder["kind"] == "bind":
            way = []
            while directory != holder["target"]:
                way.append(directory)
                directory = os.path.dirname(directory)
            for directory in reversed(way):
                anchor = {
                    "kind": "bind",
                    "source": directory,
                    "target": directory,
                    "reason": "hidden",
                }
                self._added.append(anchor)
                self._at[directory] = anchor
        self._added.append(mount)
        self._at[mount["target"]] = mount
