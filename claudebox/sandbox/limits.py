"""Keeps a session to its share of the machine: by control groups where it may make some, else by limits
of its processes.

cgroups(7): version 2 has one tree, in which a group that passes controllers on holds no processes;
of version 1 each controller has a tree of its own.
"""

import os
from _struct import pack

from claudebox import Failure, mounts
from claudebox.sandbox import libc

CONTROLLERS = {"processes": "pids", "memory": "memory"}
_NAME = "claudebox-"
_RLIMIT_CORE, _RLIMIT_NPROC = 4, 6
# Half way to what is killed before all others when the machine has no memory left.
_OOM_SCORE = 500


class _Place:
    """A control group in which a session may have one: its directory, controllers, and version."""

    def __init__(self, directory: str, controllers: list[str], version: int):
        self.directory = directory
        self.controllers = controllers
        self.version = version


def enforceable(user: int) -> dict[str, str | None]:
    """Return for "processes" and "memory" what keeps a session of `user` (a uid) to them.

    "group": a control group; "process": RLIMIT_NPROC, which counts the processes of the session's
    own user namespace since Linux 5.14, and which binds everybody but root; None: nothing.
    """
    found = {controller for place in _places() for controller in place.controllers}
    result = {key: "group" if name in found else None for key, name in CONTROLLERS.items()}
    if result["processes"] is None and user != 0:
        result["processes"] = "process"
    return result


def _places(own="/proc/self/cgroup", table="/proc/self/mountinfo") -> list[_Place]:
    groups = {}
    try:
        with open(own, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                for controller in controllers.split(","):
                    groups[controller] = path
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            trees = [line for line in file if " - cgroup" in line]
    except OSError:
        return []
    places = []
    for line in trees:
        fields, _, rest = line.partition(" - ")
        root, point = map(mounts.plain, fields.split(" ")[3:5])
        kind, _, options = rest.split()
        wanted = [each for each in CONTROLLERS.values() if each in options.split(",")]
        for controller in [""] if kind == "cgroup2" else wanted:
            path = groups.get(controller)
            if path is None or not f"{path}/".startswith(root.rstrip("/") + "/"):
                continue
            here = (point + path[len(root.rstrip("/")) :]).rstrip("/")
            if controller:
                if os.access(here, os.W_OK):
                    places.append(_Place(here, [controller], 1))
            else:
                places += _places_of_version_2(here, point)
    return places


def _places_of_version_2(here: str, top: str) -> list[_Place]:
    """Return the nearest group above `here` that passes controllers on and that we may use.

    At the top of the tree that can be `here` itself.
    """
    directory = here
    while True:
        directory = os.path.dirname(directory) if directory != top else top
        try:
            with open(directory + "/cgroup.subtree_control") as file:
                passed_on = file.read().split()
        except OSError:
            passed_on = []
        controllers = [each for each in CONTROLLERS.values() if each in passed_on]
        # Whoever moves a process writes to this file of the two groups' common ancestor.
        may_move = os.access(directory + "/cgroup.procs", os.W_OK)
        if controllers and may_move and os.access(directory, os.W_OK):
            return [_Place(directory, controllers, 2)]
        if directory == top:
            return []


class Groups:
    """The control groups of one session, as far as this host lets it have some; close() removes them.

    Those of version 1, in which a process cannot begin, are made after the fork.
    """

    def __init__(self, limits: dict):
        self._made = []
        self._to_move = []
        self._moving = None
        self._failure = None
        self._descriptor = None
        self._wanted = {
            CONTROLLERS[key]: limits[key] for key in CONTROLLERS if limits[key] is not None
        }
        self._places = [
            place
            for place in _places()
            if any(controller in self._wanted for controller in place.controllers)
        ]
        try:
            self._make_all(2)
        except BaseException:
            self.close()
            raise

    def _make_all(self, version: int) -> None:
        try:
            for place in self._places:
                if place.version == version:
                    self._make(place)
        except OSError as error:
            raise Failure(
                f"the session's control group cannot be made: {error.strerror}",
                "mend that, or launch with no limits",
            ) from None

    def _make(self, place: _Place) -> None:
        _forget_killed(place.directory)
        group = f"{place.directory}/{_beginning()}{os.getpid()}"
        os.mkdir(group, 0o755)
        self._made.append(group)
        for controller in place.controllers:
            if controller in self._wanted:
                for name, value in _settings(controller, self._wanted[controller], place.version):
                    _write(f"{group}/{name}", value)
        if place.version == 2:
            self._descriptor = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            self._to_move.append(group)

    def fork(self) -> int:
        """As os.fork(), with the child in the group of version 2, or soon in those of version 1.

        To move a process the kernel waits for all processors, some 10 ms: one that is made in its
        group need not be moved, and others are moved beside other work. To be called with the
        signals blocked whose handlers raise something: nobody would end the child.
        """
        if self._descriptor is not None:
            try:
                return libc.fork_into(self._descriptor)
            except OSError:
                # A container may have no clone3.
                self._to_move.append(self._made[-1])
        child = os.fork()
        if child != 0:
            self._begin_to_move(child)
        return child

    def _begin_to_move(self, process: int) -> None:
        """Move a process; `move` waits for that, says what failed, and finds it quickly done again."""
        try:
            self._make_all(1)
        except Failure as failure:
            self._failure = failure
        if self._to_move:
            from _thread import allocate_lock, start_new_thread

            # A signal can end this anywhere: what is waited for has to have a thread that ends.
            moving = allocate_lock()
            moving.acquire()
            try:
                start_new_thread(self._move_beside, (process, moving))
            except RuntimeError:
                # The user has no thread left: `move` does it alone.
                return
            self._moving = moving

    def complete(self) -> None:
        """Make the groups of version 1, too, for a child that will `enter` them; raises Failure."""
        self._make_all(1)

    def enter(self) -> None:
        """Move the calling process, a child that executes a program soon; OSError if that cannot be."""
        for group in self._made:
            _write(f"{group}/cgroup.procs", 0)

    def _move_beside(self, process: int, moving) -> None:
        try:
            self._move([process])
        except OSError:
            # `move` tries again, and says so.
            pass
        finally:
            moving.release()

    def _wait(self) -> None:
        if self._moving is not None:
            with self._moving:
                pass

    def _move(self, processes: list[int]) -> None:
        for group in self._to_move:
            for process in processes:
                _write(f"{group}/cgroup.procs", process)

    def move(self, processes: list[int]) -> None:
        """Move `processes` into the groups that they were not made in.

        Raises Failure if there is a group that could not be made, OSError if one takes no process.
        """
        self._wait()
        if self._failure is not None:
            raise self._failure
        self._move(processes)

    def close(self) -> None:
        """Remove the groups; to be called when the session has ended."""
        self._wait()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        while self._made:
            _remove(self._made.pop())


def _settings(controller: str, value: int, version: int) -> list[tuple[str, int]]:
    if controller == "pids":
        return [("pids.max", value)]
    if version == 2:
        return [("memory.max", value), ("memory.swap.max", 0)]
    return [("memory.limit_in_bytes", value), ("memory.memsw.limit_in_bytes", value)]


def _write(path: str, value: int) -> None:
    try:
        with open(path, "w") as file:
            file.write(str(value))
    except FileNotFoundError:
        # A kernel that does not count swap has no file for it.
        if "sw" not in os.path.basename(path):
            raise


def _remove(group: str) -> None:
    from time import sleep

    for _ in range(50):
        try:
            os.rmdir(group)
            return
        except FileNotFoundError:
            return
        except OSError:
            # A process that has ended counts until the kernel has put it away.
            sleep(0.01)


def _beginning() -> str:
    """Return how the names of groups begin; containers with their own pids can share one tree."""
    return f"{_NAME}{os.stat('/proc/self/ns/pid').st_ino}-"


def _forget_killed(directory: str) -> None:
    """Remove the groups of launchers that were killed, in this pid namespace."""
    beginning = _beginning()
    for name in os.listdir(directory):
        pid = name.removeprefix(beginning)
        if pid != name and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            try:
                os.rmdir(f"{directory}/{name}")
            except OSError:
                continue


def hold(sandbox: list[int], processes: int | None) -> None:
    """Limit the processes of a sandbox, and what comes after the last of them, its payload.

    The number of processes counts those of the payload's user namespace, because it is set from
    outside when that namespace is there already. No core dump: with core_pattern's `|` the kernel
    would start a program outside, as root, for what crashes inside; 1 is the value that prevents
    that (core(5)). When memory is short the kernel kills the payload before programs of the host.
    """
    for process in sandbox:
        _limit(process, _RLIMIT_CORE, 1)
    payload = sandbox[-1]
    if processes is not None:
        _limit(payload, _RLIMIT_NPROC, processes)
    with open(f"/proc/{payload}/oom_score_adj", "r+") as file:
        if int(file.read()) < _OOM_SCORE:
            file.seek(0)
            file.write(str(_OOM_SCORE))


def _limit(process: int, resource: int, value: int) -> None:
    try:
        libc.call("prlimit", process, resource, pack("QQ", value, value), None)
    except PermissionError:
        # The host's own hard limit is lower.
        pass
