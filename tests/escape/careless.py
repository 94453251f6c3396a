"""claudebox as somebody careless would have written it: the control of the traps for the next launch.

It follows links, opens by path, reads files whole, and looks at nothing twice.
"""

import os
import stat
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from claudebox import Failure, enforcement, git, instance, main, policy, protection, run
from claudebox.sandbox import bwrap, credentials, sources, standins, state


def at(directory: int, name: str) -> str:
    return f"/proc/self/fd/{directory}/{name}"


def read(path: str, *_, **_options):
    if not os.path.exists(path) or os.path.isdir(path):
        return None
    with open(path, errors="surrogateescape") as file:
        return file.read()


def write(path: str, text: str) -> None:
    with open(path, "w", errors="surrogateescape") as file:
        file.write(text)


def mode(path: str):
    if not os.path.exists(path):
        return None
    return stat.S_IFDIR if os.path.isdir(path) else stat.S_IFREG


def discover(root: str):
    dot_git = root + "/.git"
    if os.path.isfile(dot_git):
        named = os.path.join(root, (read(dot_git) or "").removeprefix("gitdir: ").strip())
        common = (read(named + "/commondir") or named).strip()
        return {"dir": named, "common_dir": common, "worktree": True}
    if os.path.isdir(dot_git) and os.listdir(dot_git):
        common = (read(dot_git + "/commondir") or dot_git).strip()
        return {
            "dir": dot_git,
            "common_dir": dot_git if common == "." else common,
            "worktree": False,
        }
    if os.path.exists(dot_git):
        os.close(os.open(dot_git, os.O_RDONLY))
    return None


def make_standins(plan: dict, opened: int, _opener) -> None:
    replace(opened, standins.RECORD, "[]")
    for mount in plan["mounts"]:
        if mount["reason"] == "protected" and not os.path.exists(mount["target"]):
            try:
                if mount["kind"] == "file":
                    write(mount["target"], mount["content"])
                else:
                    os.makedirs(os.path.realpath(mount["target"]), exist_ok=True)
            except OSError:
                # bwrap will make it.
                pass


_arguments = bwrap.arguments


def arguments(plan: dict) -> list:
    """Return bwrap's arguments for mount points that are where a link on the way leads."""
    mounts = [
        {**mount, "target": os.path.realpath(mount["target"])}
        if mount["reason"] == "protected" and os.path.exists(mount["target"])
        else mount
        for mount in plan["mounts"]
    ]
    return _arguments({**plan, "mounts": mounts})


def is_standin(path: str, found, absent) -> bool:
    return found == stat.S_IFREG and absent is not None and read(path) == absent


def replace(directory: int, name: str, text: str, temporary=state._TEMPORARY) -> None:
    write(at(directory, temporary), text)
    os.unlink(at(directory, temporary))
    write(at(directory, name), text)


_nested = protection._nested


def nested(found, directory: str, root: str, repositories) -> None:
    """Mount whatever a .git file names, wherever it is."""
    _nested(found, directory, root, repositories)
    named = git.named_directory(directory + "/.git")
    if named:
        found.mounts.append({"kind": "bind", "source": named, "target": named, "reason": "git"})


def obeyed(self, directory: str, worktrees: list[str], _places) -> None:
    for path in git.obeyed_files(directory, worktrees):
        self.protect(os.path.dirname(path), os.path.basename(path), "")


def prepare_credentials(directory: str, host_has_credentials: bool) -> None:
    os.makedirs(directory + "/credentials", exist_ok=True)
    if host_has_credentials:
        write(directory + "/credentials/.credentials.json", "")


_refresh_metadata = state._refresh_metadata


def refresh_metadata(directory: int, own: dict) -> None:
    try:
        _refresh_metadata(directory, own)
    except Failure:
        pass


def hold(_path: str, _opener, locks: list, _signals) -> None:
    locks.append(os.open("/", os.O_PATH))


git.read_small_file = instance.git.read_small_file = read
git.discover = discover
git.is_git_directory = lambda path: os.path.isdir(path + "/objects")
git.main_root = lambda _git, root: root
protection._Protection._mode = staticmethod(mode)
protection._is_stand_in = is_standin
protection._nested = nested
protection._names = lambda place: os.listdir(place) if os.path.isdir(place) else []
enforcement.refuse_unsafe = lambda *_, **__: None
policy.exposed_secret = lambda *_: None
sources.Expectation.refuse_other = lambda *_: None
protection._Protection.obeyed = obeyed
bwrap.arguments = arguments
standins._hold = hold
standins._make_all = make_standins
state._prepare_credentials = prepare_credentials
state._refresh_metadata = refresh_metadata
state.read_file = lambda directory, name: read(at(directory, name))
state.replace_file = replace
state.open_directory = lambda path, at=None: os.open(path, os.O_RDONLY, dir_fd=at)
state._is_plain_file = lambda directory, name: os.path.isfile(at(directory, name))
state._exists = lambda directory, name: os.path.exists(at(directory, name))
credentials.Mirror._read_mounted = lambda self: os.pread(
    self._mounted, os.fstat(self._mounted).st_size, 0
)
run._report_repositories = lambda *_: None
# Whatever else opens a lock or a mount point.
os.O_NOFOLLOW = 0
os.O_NONBLOCK = 0

sys.exit(main.entry(["claudebox", *sys.argv[1:]]))
