"""Prepares what lasts of a session: the instance directory and the shared credentials directory.

Everything in an instance's `claude` directory was written inside a sandbox and is hostile: it is
reached through directory descriptors, no symbolic link is followed, sizes are bounded.
"""

import fcntl
import os
import stat

from claudebox import Failure, briefing, json_text, mounts, policy

METADATA = "instance.json"
LOCK = "lock"
_PREPARATION_LOCK = "preparation.lock"
_TEMPORARY = ".claudebox-temporary"
_SIZE_LIMIT = 8 * 1024 * 1024
_IMPORT_LINE = "@SANDBOX.md"


class Instance:
    """An open, locked instance directory. Closing the descriptors, or death, frees the locks."""

    def __init__(self, path: str, directory: int, lock: int):
        self.path = path
        self.directory = directory
        self._lock = lock

    def close(self) -> None:
        """Give the locks back."""
        for descriptor in (self._lock, self.directory):
            os.close(descriptor)


class Preparation:
    """The exclusive lock under which claudebox's own files of an instance are changed."""

    def __init__(self, directory: int):
        self._directory = directory

    def __enter__(self):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(_PREPARATION_LOCK, flags, 0o600, dir_fd=self._directory)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except BaseException:
            os.close(self._lock)
            raise

    def __exit__(self, *_):
        os.close(self._lock)


def prepare(plan: dict) -> Instance:
    """Make what `plan` mounts of the state and return its instance, locked as in use.

    `seed` fills it: that may be done while bwrap makes the sandbox already. Raises Failure if the
    state cannot be made.
    """
    home = plan["user"]["home"]
    state = policy.state_home(home)
    _make_private(state)
    _make_private(state + "/instances")
    _prepare_credentials(state, os.path.isfile(policy.host_credentials(home)))
    opened = _open(plan["instance"]["path"])
    try:
        _make_claude(opened.directory)
    except BaseException:
        opened.close()
        raise
    return opened


def seed(opened: Instance, plan: dict, environ=os.environ) -> None:
    """Refresh the metadata and what Claude Code finds in its state, before a payload runs.

    Raises Failure if the instance belongs to another project.
    """
    with Preparation(opened.directory):
        _refresh_metadata(opened.directory, plan["instance"])
        _seed_claude(opened.directory, plan, environ)


def _open(path: str) -> Instance:
    """Make the instance directory if need be, and hold its lock shared.

    `gc` removes a directory under the exclusive lock, so after the lock was got the directory
    must still be the one at `path`.
    """
    while True:
        _make_private(path)
        directory = open_directory(path)
        lock = os.open(
            LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            if os.path.samestat(os.fstat(directory), os.lstat(path)):
                return Instance(path, directory, lock)
        except FileNotFoundError:
            pass
        os.close(lock)
        os.close(directory)


def open_directory(path: str, at: int | None = None) -> int:
    """Return a descriptor of a real directory (not a link to one) that belongs to the user."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at
        )
    except OSError as error:
        raise Failure(
            f"{path} is not a readable directory: {error.strerror}",
            "claudebox does not follow links here: move it away if it is not yours",
        ) from None
    if os.fstat(descriptor).st_uid != os.getuid():
        os.close(descriptor)
        raise Failure(f"{path} belongs to another user", "give it back, or set CLAUDEBOX_HOME")
    return descriptor


def _make_private(path: str) -> None:
    """Make the directory `path` with mode 0700 if it is not there; mend a mode that is wider."""
    try:
        os.makedirs(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise Failure(
            f"{path} cannot be made: {error.strerror}", "mend that, or set CLAUDEBOX_HOME"
        ) from None
    descriptor = open_directory(path)
    if os.fstat(descriptor).st_mode & 0o077:
        os.fchmod(descriptor, 0o700)
    os.close(descriptor)


def make_cache(state: str) -> int:
    """Make the directory of what can be found out again, and return a descriptor of it."""
    _make_private(state)
    _make_private(state + "/cache")
    return open_directory(state + "/cache")


def _prepare_credentials(state: str, host_has_credentials: bool) -> None:
    """Make the shared credentials directory, with a mount point if the host's file goes over it.

    bwrap would leave a mount point with mode 0444 behind otherwise, which Claude cannot write.
    """
    _make_private(state + "/credentials")
    directory = open_directory(state + "/credentials")
    name = ".credentials.json"
    try:
        if _exists(directory, name):
            if not stat.S_ISREG(os.lstat(name, dir_fd=directory).st_mode):
                raise Failure(
                    f"{state}/credentials/{name} is not a plain file",
                    "remove it: something inside a sandbox put it there",
                )
        elif host_has_credentials:
            # Not by rename: that would unmount the file in a sandbox that has it mounted already.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                os.close(os.open(name, flags, 0o600, dir_fd=directory))
            except FileExistsError:
                pass
    finally:
        os.close(directory)


def _refresh_metadata(directory: int, instance: dict) -> None:
    from time import time

    now = int(time())
    created = now
    text = read_file(directory, METADATA)
    if text is not None:
        try:
            known = json_text.loads(text)
            root, created = known["root"], int(known["created"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            root = instance["root"]
        if root != instance["root"]:
            raise Failure(
                f"{instance['path']} belongs to {root}, not to {instance['root']}",
                "move that directory away: its metadata was moved or changed",
            )
    metadata = {
        "root": instance["root"],
        "created": created,
        "last_used": now,
        "mount": mounts.holding(instance["root"]),
    }
    replace_file(directory, METADATA, json_text.dumps(metadata) + "\n")


def _make_claude(directory: int) -> None:
    try:
        os.mkdir("claude", 0o700, dir_fd=directory)
    except FileExistsError:
        pass
    os.close(open_directory("claude", directory))


def _seed_claude(directory: int, plan: dict, environ) -> None:
    claude = open_directory("claude", directory)
    try:
        _seed_configuration(claude, plan, environ)
        text = briefing.text(plan)
        if read_file(claude, "SANDBOX.md") != text:
            replace_file(claude, "SANDBOX.md", text)
        memory = read_file(claude, "CLAUDE.md")
        if memory is None:
            if not _exists(claude, "CLAUDE.md"):
                replace_file(claude, "CLAUDE.md", _IMPORT_LINE + "\n")
        elif _IMPORT_LINE not in (line.strip() for line in memory.splitlines()):
            separator = "" if not memory or memory.endswith("\n") else "\n"
            replace_file(claude, "CLAUDE.md", f"{memory}{separator}{_IMPORT_LINE}\n")
    finally:
        os.close(claude)


def _seed_configuration(claude: int, plan: dict, environ) -> None:
    """Answer Claude's questions of a first start in `.claude.json`; nothing else in it is touched.

    The keys are those that Claude Code 2.1.330 asks for: hasCompletedOnboarding, the trust of the
    directory, and the last 20 characters of an API key. A session that runs already may be writing
    the file: it is changed only if it must be, under the lock that Claude Code itself takes.
    """
    if _with_answers(claude, plan, environ) is None:
        return
    locked = _lock_configuration(claude)
    try:
        text = _with_answers(claude, plan, environ)
        if text is not None:
            replace_file(claude, ".claude.json", text)
    finally:
        if locked:
            _unlock_configuration(claude)


def _with_answers(claude: int, plan: dict, environ) -> str | None:
    """Return `.claude.json` with the questions answered, or None if nothing is missing in it."""
    text = read_file(claude, ".claude.json")
    if text is None and _is_plain_file(claude, ".claude.json"):
        raise Failure(
            f"{plan['instance']['path']}/claude/.claude.json cannot be read", "mend its permissions"
        )
    configuration = {}
    if text is not None and text.strip():
        try:
            configuration = json_text.loads(text)
            # What is nested too deeply to be written again is as good as broken.
            json_text.dumps(configuration)
        except (ValueError, RecursionError):
            configuration = None
    if not isinstance(configuration, dict):
        # Not readable for Claude either; it keeps what it cannot read under another name, too.
        os.rename(".claude.json", _free_name(claude), src_dir_fd=claude, dst_dir_fd=claude)
        configuration = {}
    changed = _set(configuration, "hasCompletedOnboarding", True)
    projects = _object(configuration, "projects")
    changed |= _set(_object(projects, plan["project"]["cwd"]), "hasTrustDialogAccepted", True)
    key = environ.get(policy.API_KEY)
    if key and any(variable["name"] == policy.API_KEY for variable in plan["env"]):
        answers = _object(configuration, "customApiKeyResponses")
        approved = answers.get("approved")
        if not isinstance(approved, list):
            approved = answers["approved"] = []
        if key[-20:] not in approved:
            approved.append(key[-20:])
            changed = True
    return json_text.dumps(configuration) + "\n" if changed else None


def _free_name(claude: int) -> str:
    """Return a name for a configuration that cannot be read; the tenth takes the ninth's place."""
    names = [".claude.json.corrupted", *(f".claude.json.corrupted.{n}" for n in range(2, 10))]
    return next((name for name in names if not _exists(claude, name)), names[-1])


# Claude Code locks the file with a directory (the npm package proper-lockfile), whose holder
# touches it every few seconds; one that is 10 s old was left by a process that was killed.
_CONFIGURATION_LOCK = ".claude.json.lock"
_LOCK_STALE, _LOCK_PATIENCE = 10, 3


def _lock_configuration(claude: int) -> bool:
    """Take Claude's own lock; say whether it was got. An agent that sits on it only loses its own."""
    from time import monotonic, sleep, time

    end = monotonic() + _LOCK_PATIENCE
    while True:
        try:
            os.mkdir(_CONFIGURATION_LOCK, 0o700, dir_fd=claude)
            return True
        except FileExistsError:
            pass
        try:
            made = os.lstat(_CONFIGURATION_LOCK, dir_fd=claude).st_mtime
            if time() - made > _LOCK_STALE and _unlock_configuration(claude):
                continue
        except FileNotFoundError:
            continue
        if monotonic() > end:
            return False
        sleep(0.02)


def _unlock_configuration(claude: int) -> bool:
    try:
        os.rmdir(_CONFIGURATION_LOCK, dir_fd=claude)
        return True
    except OSError:
        return False


def _object(parent: dict, key: str) -> dict:
    if not isinstance(parent.get(key), dict):
        parent[key] = {}
    return parent[key]


def _set(record: dict, key: str, value) -> bool:
    changed = record.get(key) != value
    record[key] = value
    return changed


def _exists(directory: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
        return True
    except OSError:
        return False


def _is_plain_file(directory: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(name, dir_fd=directory).st_mode)
    except OSError:
        return False


def read_file(directory: int, name: str) -> str | None:
    """Return the text of the regular file `name` in `directory`, or None if it is no such thing.

    Raises Failure for a file of more than 8 MiB.
    """
    try:
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(_SIZE_LIMIT + 1)
    finally:
        os.close(descriptor)
    if len(content) > _SIZE_LIMIT:
        raise Failure(f"{name} of the instance is larger than 8 MiB", "move it away")
    return content.decode("utf-8", "surrogateescape")


def replace_file(directory: int, name: str, text: str, temporary: str = _TEMPORARY) -> None:
    """Write `text` to the file `name` in `directory` in one step, with mode 0600.

    The new file takes the name with rename(2): a reader sees the old or the new one, and a
    symbolic link with that name is replaced, not followed. `temporary` is the name until then, of
    its own where no lock keeps others away.
    """
    _discard(temporary, directory)
    descriptor = os.open(
        temporary,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
        dir_fd=directory,
    )
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except IsADirectoryError:
        _discard(temporary, directory)
        raise Failure(f"{name} is a directory, not a file", "move it away") from None
    except BaseException:
        # A signal can end this after the rename, too.
        _discard(temporary, directory)
        raise


def _discard(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        raise Failure(f"{name} is a directory, not a file", "move it away") from None
