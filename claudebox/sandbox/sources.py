"""Opens what is mounted without following a link, and looks whether that is what is there inside.

Another session may change the project while this one starts: between a check and bwrap's mount a
directory can become a symbolic link, and bwrap before 0.12 follows links in mount points, too
(CVE-2026-87766).
"""

import os

from claudebox import Failure, mounts


class Opener:
    """Opens paths no component of which is a symbolic link; what leads to the last one stays open."""

    def __init__(self):
        self._names = [""]
        self._open = [os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]

    def open(self, path: str) -> int:
        """Return an O_PATH descriptor of the absolute `path`, good until the next one is opened.

        Raises Failure if a component is a symbolic link, or if there is nothing.
        """
        names = path.rstrip("/").split("/")
        while self._names != names[: len(self._names)]:
            self._names.pop()
            os.close(self._open.pop())
        for name in names[len(self._names) :]:
            try:
                opened = os.open(
                    name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._open[-1]
                )
            except OSError as error:
                raise Failure(
                    f"{path} cannot be mounted: {error.strerror}", "start it again"
                ) from None
            self._names.append(name)
            self._open.append(opened)
        # O_PATH with O_NOFOLLOW opens a link itself.
        if os.fstat(self._open[-1]).st_mode & 0o170000 == 0o120000:
            raise Failure(f"{path} became a symbolic link", "end what changes it, then start again")
        return self._open[-1]

    def close(self) -> None:
        """Close what is open."""
        for descriptor in self._open:
            os.close(descriptor)
        self._open, self._names = [], []


def refuse_other_mounts(plan: dict, process: int, expected: dict[str, os.stat_result]) -> None:
    """Raise Failure unless `process`, which is inside, sees exactly the mounts of `plan`.

    `expected` has for each bind mount's target the status of its source. A mount point of the plan
    that is not in the table, or one too many, is what a followed link leaves.
    """
    with open(f"/proc/{process}/mountinfo", "rb") as table:
        inside = {mounts.plain(os.fsdecode(line).split(" ")[4]) for line in table}
    wanted = {mount["target"] for mount in plan["mounts"] if mount["kind"] != "symlink"}
    missing = wanted - inside
    if missing:
        raise _changed(f"{min(missing)} is not mounted")
    sources = [(m["source"], m["target"]) for m in plan["mounts"] if m["kind"].endswith("bind")]
    along = {
        target + point[len(source) :]
        for point, _ in mounts.table()
        for source, target in sources
        if point.startswith(source + "/")
    }
    for point in inside - wanted - along:
        if point != "/" and not point.startswith(("/proc/", "/dev/")):
            raise _changed(f"{point} is mounted, which the plan does not say")
    for target, status in expected.items():
        try:
            found = os.stat(f"/proc/{process}/root{target}", follow_symlinks=False)
        except OSError as error:
            raise _changed(f"{target} cannot be looked at: {error.strerror}") from None
        if not os.path.samestat(found, status):
            raise _changed(f"{target} is not what was to be mounted there")


def _changed(what: str) -> Failure:
    return Failure(
        f"the sandbox is not what the plan says: {what}",
        "something changes these files: end it, then start again",
    )
