"""Opens what is mounted without following a link, and looks whether that is what is there inside.

Another session may change the project while this one starts: between a check and bwrap's mount a
directory can become a symbolic link, and bwrap before 0.12 follows links in mount points, too
(CVE-2026-87766).
"""

import os

from claudebox import Failure, mounts

_EINVAL = 22


class Opener:
    """Opens paths no component of which is a symbolic link; what leads to the last one stays open."""

    def __init__(self):
        self._names = [""]
        self._open = [os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]

    def open(self, path: str) -> int:
        """Return an O_PATH descriptor of the absolute `path`, good until the next one is opened.

        Raises Failure if a component is a symbolic link, or if there is nothing.
        """
        try:
            opened = self.step_to(path)
        except OSError as error:
            raise Failure(f"{path} cannot be mounted: {error.strerror}", "start it again") from None
        if os.fstat(opened).st_mode & 0o170000 == 0o120000:
            raise Failure(f"{path} became a symbolic link", "end what changes it, then start again")
        return opened

    def step_to(self, path: str) -> int:
        """As `open`, but raises OSError, and the last component can be a link, which is not followed.

        Nothing can be reached through the descriptor of a link (ENOTDIR).
        """
        names = path.rstrip("/").split("/")
        if names[0]:
            raise OSError(_EINVAL, "it is not absolute")
        while self._names != names[: len(self._names)]:
            self._names.pop()
            os.close(self._open.pop())
        for name in names[len(self._names) :]:
            # O_PATH with O_NOFOLLOW opens a link itself.
            self._open.append(
                os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._open[-1])
            )
            self._names.append(name)
        return self._open[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Close what is open."""
        for descriptor in self._open:
            os.close(descriptor)
        self._open, self._names = [], []


class Expectation:
    """What a process inside has to see: the mounts of `plan`, and what the host has below their sources.

    `statuses` has for each bind mount's target the status of its source. What the host has is looked
    at here: beside bwrap's work, before the payload's end of the gate.
    """

    def __init__(self, plan: dict, statuses: dict[str, os.stat_result]):
        self._statuses = statuses
        self._wanted = {
            mount["target"]: mount for mount in plan["mounts"] if mount["kind"] != "symlink"
        }
        outside = _table("self")
        self._along = _along(plan, outside)
        self._host_devices = {mount.device for mount in outside.values()}
        self._read_only = {"/", "/proc/sys"}
        self._read_only.update(
            target for target, mount in self._wanted.items() if mount["kind"] in _READ_ONLY
        )
        self._read_only.update(point for point, kind in self._along.items() if kind == "ro-bind")

    def refuse_other(self, process: int) -> None:
        """Raise Failure unless `process`, which is inside, sees exactly this.

        A mount point of the plan that is not in the table, or one too many, is what a followed link
        leaves. What is to be read-only has to be, with all that was mounted below its source.
        """
        inside = _table(process)
        missing = self._wanted.keys() - inside.keys()
        if missing:
            raise _changed(f"{min(missing)} is not mounted")
        for point in inside.keys() - self._wanted.keys() - self._along.keys():
            if point != "/" and not point.startswith(("/proc/", "/dev/")):
                raise _changed(f"{point} is mounted, which the plan does not say")
        for point in sorted(self._read_only & inside.keys()):
            if "ro" not in inside[point].options:
                raise _changed(f"{point} can be written")
        root = os.open(f"/proc/{process}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for target in self._wanted:
                self._refuse_other_there(root, target, inside[target])
        finally:
            os.close(root)

    def _refuse_other_there(self, root: int, target: str, there) -> None:
        try:
            found = os.stat(target[1:], dir_fd=root, follow_symlinks=False)
        except OSError as error:
            raise _changed(f"{target} cannot be looked at: {error.strerror}") from None
        kind = self._wanted[target]["kind"]
        if target in self._statuses:
            same = os.path.samestat(found, self._statuses[target])
        elif kind == "mask":
            same = found.st_rdev == _NULL
        else:
            # New, of its kind, and what is seen there.
            same = (there.device, there.kind) == (found.st_dev, _FILE_SYSTEMS[kind])
            same = same and there.device not in self._host_devices
        if not same:
            raise _changed(f"{target} is not what was to be mounted there")


_READ_ONLY = ("ro-bind", "file", "briefing", "empty-dir", "mask", "dev")
_FILE_SYSTEMS = {
    "proc": "proc",
    **dict.fromkeys(("tmpfs", "empty-dir", "file", "briefing", "dev"), "tmpfs"),
}
# /dev/null, of which a mask is made.
_NULL = os.makedev(1, 3)


class _Mount:
    """What a line of mountinfo says of a mount."""

    __slots__ = ("device", "kind", "options")

    def __init__(self, device: int, kind: str, options: list[str]):
        self.device = device
        self.kind = kind
        self.options = options


def _table(process: int | str) -> dict[str, _Mount]:
    """Return the mounts that `process` sees by mount point: of two on one the later, which lies above."""
    found = {}
    with open(f"/proc/{process}/mountinfo", "rb") as table:
        for line in table:
            words = os.fsdecode(line).split(" ")
            major, _, minor = words[2].partition(":")
            kind = words[words.index("-", 6) + 1]
            found[mounts.plain(words[4])] = _Mount(
                os.makedev(int(major), int(minor)), kind, words[5].split(",")
            )
    return found


def _along(plan: dict, outside: dict[str, _Mount]) -> dict[str, str]:
    """Return what a bind mount brings along, mounts below its source: mount point → the bind's kind."""
    binds = [mount for mount in plan["mounts"] if mount["kind"] in ("bind", "ro-bind")]
    return {
        mount["target"] + point[len(mount["source"]) :]: mount["kind"]
        for point in outside
        for mount in binds
        if point.startswith(mount["source"] + "/")
    }


def _changed(what: str) -> Failure:
    return Failure(
        f"the sandbox is not what the plan says: {what}",
        "something changes these files: end it, then start again",
    )
