"""The arguments of bwrap: a pure function of the launch plan."""

from claudebox import briefing, policy
from claudebox.sandbox import seccomp

NAMESPACES = (
    "--unshare-user",
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-uts",
    "--unshare-cgroup-try",
)

# For uid 0, /proc/sys stays writable even in a user namespace without capabilities, core_pattern
# included (measured with bubblewrap 0.8.0, Linux 6.18).
_READ_ONLY_SYSCTL = ("--ro-bind", "/proc/sys", "/proc/sys")


class Data:
    """Bytes that bwrap reads from a file descriptor; stands in the arguments for its number."""

    __slots__ = ("content", "name")

    def __init__(self, name: str, content: bytes):
        self.name = name
        self.content = content

    def __eq__(self, other):
        return isinstance(other, Data) and self.content == other.content


class Source:
    """A directory or file to mount; stands in the arguments for the number of its descriptor."""

    __slots__ = ("path", "target")

    def __init__(self, path: str, target: str):
        self.path = path
        self.target = target

    def __eq__(self, other):
        return isinstance(other, Source) and (self.path, self.target) == (other.path, other.target)


def arguments(plan: dict) -> list:
    """Return bwrap's arguments for `plan`: strings, and Data or Source for a descriptor's number."""
    result = [*NAMESPACES, "--die-with-parent", "--hostname", "claudebox"]
    # bwrap drops the bounding set with ALL; without it uid 0 would keep every capability.
    result += ["--cap-drop", "ALL"]
    result += ["--uid", str(plan["user"]["uid"]), "--gid", str(plan["user"]["gid"])]
    if plan["bwrap"]["disable_userns"]:
        result.append("--disable-userns")
    nested = plan["bwrap"]["disable_userns"] is False
    # The `inet` tier brings a network namespace of its own that bwrap is started in.
    if plan["network"]["tier"] == "none":
        result.append("--unshare-net")
    result += ["--seccomp", Data("seccomp filter", seccomp.program(nested_namespaces=nested))]
    for mount in plan["mounts"]:
        result += _mount(mount, plan)
    result += ["--remount-ro", "/", "--chdir", plan["project"]["cwd"]]
    return result


def _mount(mount: dict, plan: dict) -> list:
    kind, target = mount["kind"], mount["target"]
    if kind in ("bind", "ro-bind"):
        return [f"--{kind}-fd", Source(mount["source"], target), target]
    if kind == "symlink":
        return ["--symlink", mount["source"], target]
    if kind == "tmpfs":
        size = policy.tmpfs_size(mount, plan["limits"]["tmp"])
        sized = [] if size is None else ["--size", str(size)]
        return [*sized, "--perms", _tmpfs_mode(target), "--tmpfs", target]
    if kind == "empty-dir":
        return ["--perms", "0555", "--tmpfs", target, "--remount-ro", target]
    if kind == "proc":
        return ["--proc", target, *_READ_ONLY_SYSCTL]
    if kind == "mask":
        return ["--ro-bind", "/dev/null", target]
    if kind == "dev":
        # What bwrap makes there has no size of its own.
        return ["--dev", target, "--remount-ro", target]
    content = briefing.text(plan) if kind == "briefing" else mount["content"]
    data = Data(target, content.encode("utf-8", "surrogateescape"))
    return ["--perms", "0444", "--ro-bind-data", data, target]


def _tmpfs_mode(target: str) -> str:
    return "1777" if target in ("/tmp", "/var/tmp", "/dev/shm") else "0755"


def by_path(arguments: list) -> list:
    """Return `arguments` with sources named by path: for people, and for a bwrap without --bind-fd."""
    result = []
    for argument in arguments:
        if isinstance(argument, Source):
            result[-1] = result[-1].removesuffix("-fd")
            argument = argument.path
        result.append(argument)
    return result


def descriptors(arguments: list) -> list:
    """Return the Data and Sources among `arguments`, in order."""
    return [argument for argument in arguments if isinstance(argument, Data | Source)]


def numbered(arguments: list, numbers: list[int]) -> list[str]:
    """Return `arguments` with each Data and Source replaced by its number from `numbers`."""
    remaining = iter(numbers)
    return [
        argument if isinstance(argument, str) else str(next(remaining)) for argument in arguments
    ]
