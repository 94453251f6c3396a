"""Keeps the host's credentials file and the one that a sandbox has mounted the same login.

bwrap mounts an inode. Claude Code outside replaces its file by rename, so the sandbox keeps the
inode with the spent token; Claude Code inside cannot rename over a mount point and writes in place,
perhaps into an inode that the host has already replaced. Refresh tokens are good for one use, so
whichever file holds the newer login wins, and a file without one never does.

Nothing here puts a token into a message.
"""

import os
import stat

from claudebox import Failure, json_text

_SIZE_LIMIT = 1 << 20
# inotify(7): the file was closed after writing; its metadata changed, which a rename over it does.
_IN_CLOSE_WRITE, _IN_ATTRIB = 0x8, 0x4
_EVENTS = _IN_CLOSE_WRITE | _IN_ATTRIB
# A file came into the directory.
_IN_CREATE, _IN_MOVED_TO = 0x100, 0x80
_TEMPORARY = ".credentials.json.claudebox."


def expiry(content: bytes) -> int | None:
    """Return when the login in a `.credentials.json` expires, in ms of the epoch.

    None if there is no usable login in it: Claude Code 2.1 blanks the tokens, and keeps the other
    keys, when the server refuses the refresh token.
    """
    try:
        login = json_text.loads(content.decode())["claudeAiOauth"]
        expires = login["expiresAt"]
        usable = bool(login["accessToken"] and login["refreshToken"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not usable or type(expires) not in (int, float) or not 0 < expires < 2**63:
        return None
    return int(expires)


def _is_whole(content: bytes) -> bool:
    try:
        json_text.loads(content.decode())
        return True
    except (ValueError, RecursionError):
        return False


class Mirror:
    """Watches the host's file `path` and the inode that was there when this was made.

    `descriptor` becomes readable when there is something to `compare`. inotify costs nothing while
    nothing happens.
    """

    def __init__(self, path: str):
        from claudebox.sandbox import libc

        self._path = path
        self._libc = libc
        try:
            self._mounted = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise Failure(
                f"{path} cannot be opened: {error.strerror}", "mend its permissions"
            ) from None
        if not stat.S_ISREG(os.fstat(self._mounted).st_mode):
            os.close(self._mounted)
            raise Failure(f"{path} is not a plain file", "replace it with one")
        self._awaiting = None
        # The last login that the sandbox is known to have had.
        self._good = None
        self.descriptor = libc.call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
        self._watch(f"/proc/self/fd/{self._mounted}")

    def mounted(self) -> os.stat_result:
        """Return the status of the inode that the sandbox has to have."""
        return os.fstat(self._mounted)

    def _watch(self, path: str, events: int = _EVENTS) -> int | None:
        try:
            return self._libc.call("inotify_add_watch", self.descriptor, os.fsencode(path), events)
        except OSError:
            # The host's file can vanish at any moment.
            return None

    def _await_host(self) -> None:
        """Watch the directory of the host's file until there is one again.

        Not before: Claude Code outside writes much else there, and each would be a wake-up.
        """
        if self._awaiting is None:
            directory = os.path.dirname(self._path)
            self._awaiting = self._watch(directory, _IN_CREATE | _IN_MOVED_TO)
            if os.path.lexists(self._path):
                self.compare()

    def _stop_awaiting_host(self) -> None:
        if self._awaiting is not None:
            self._libc.call("inotify_rm_watch", self.descriptor, self._awaiting)
            self._awaiting = None

    def changed(self, _events=None) -> None:
        """Take in what inotify has to say, then compare."""
        try:
            while os.read(self.descriptor, 4096):
                pass
        except BlockingIOError:
            pass
        self.compare()

    def compare(self, ended: bool = False) -> None:
        """Give the newer login to the side that does not have it.

        While the session has not `ended`, a file inside that is not whole JSON is being written.

        A login that the sandbox has lost is given back to the host only, and not to the sandbox
        again before the host has another one. A file that the host has removed stays removed.
        """
        inside = self._read_mounted()
        # Watched before it is read, so that no change falls between.
        self._watch(self._path)
        status, outside = self._read_host()
        if status is None:
            self._await_host()
            return
        self._stop_awaiting_host()
        if not ended and not _is_whole(inside):
            return
        inside_expires = expiry(inside)
        if os.path.samestat(status, os.fstat(self._mounted)):
            if inside_expires is not None:
                self._good = inside
            elif self._good is not None:
                self._replace_host(self._good)
            return
        outside_expires = expiry(outside)
        if outside_expires is not None and outside_expires > (inside_expires or 0):
            if inside_expires is not None or outside != self._good:
                os.ftruncate(self._mounted, 0)
                os.pwrite(self._mounted, outside, 0)
                self._good = outside
        elif inside_expires is not None and inside_expires > (outside_expires or 0):
            self._good = inside
            self._replace_host(inside)

    def _read_mounted(self) -> bytes:
        return os.pread(self._mounted, _SIZE_LIMIT, 0)

    def _read_host(self) -> tuple[os.stat_result | None, bytes]:
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None, b""
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return None, b""
            return status, os.pread(file, _SIZE_LIMIT, 0)
        finally:
            os.close(file)

    def _replace_host(self, content: bytes) -> None:
        from claudebox.sandbox import state

        parent, name = self._path.rsplit("/", 1)
        try:
            directory = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self._forget_killed(directory)
            temporary = f"{_TEMPORARY}{os.getpid()}"
            state.replace_file(directory, name, os.fsdecode(content), temporary)
        except (OSError, Failure) as error:
            from claudebox import command

            why = error.what if isinstance(error, Failure) else error.strerror
            command.complain(f"{self._path} could not be renewed: {why}: log in outside again")
        finally:
            os.close(directory)
        self._watch(self._path)

    @staticmethod
    def _forget_killed(directory: int) -> None:
        """Remove what launchers that were killed left in the middle of a replacement."""
        for name in os.listdir(directory):
            pid = name.removeprefix(_TEMPORARY)
            if pid != name and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
                try:
                    os.unlink(name, dir_fd=directory)
                except OSError:
                    continue

    def close(self) -> None:
        """Compare once more and release what is held."""
        self.compare(ended=True)
        os.close(self._mounted)
        os.close(self.descriptor)
