"""The namespaces of the tier inet, and the two processes that are first in them: witness and holder.

The launcher's child, the witness, makes a user namespace with a network namespace, and starts the
holder, which is the launcher's child as well and becomes bwrap at once. While bwrap works, the
witness opens in the network namespace what the launcher then fills it through, and stays: the
sidecar finds the namespace by it, because that of bwrap 0.12 cannot be opened in /proc.

The holder is also the first process of a pid namespace, so that its end is the end of everything
that bwrap started: killed in its first moments, bwrap may leave a child that waits for ever (seen in
the sources of 0.8 and 0.12). It gets the /proc of that namespace: bwrap looks its child up in /proc
by the pid that the child has there.
"""

import _signal
import _socket
import errno
import fcntl
import os
import select
from _struct import calcsize, iter_unpack, pack

from claudebox import Failure, baked
from claudebox.sandbox import held_signals, libc

TAP = "tap0"
OTHER_TIERS = "or choose --network none or --network full"
_SWITCHES = (
    # Echo requests without privileges.
    ("ipv4/ping_group_range", b"0 0"),
    # No address or route from router advertisements, which slirp4netns sends when it pleases.
    ("ipv6/conf/default/accept_ra", b"0"),
)
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
# linux/if_tun.h: TUNSETIFF with struct ifreq, TUNSETPERSIST; IFF_TAP | IFF_NO_PI.
_SET_INTERFACE, _SET_PERSISTENT, _TAP_FLAGS = 0x400454CA, 0x400454CB, 0x1002
_OF_THE_GROUP = (_signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGHUP)
# Seconds in which a holder that was made says so.
_PATIENCE = 1
# Its name among the processes.
_WITNESS = "claudebox-witness"
_MAX_MESSAGE = 8192


class Namespaces:
    """The begun namespaces, with `witness` and, after `wait_for_holder`, `holder`: pids to be reaped.

    `exec_payload()` is called in the holder, which is uid and gid 0 of a user namespace that maps
    only the caller, and pid 1; it has to exec (bwrap, without --unshare-net) and never to return.
    It has no network until the launcher gives it one, so what bwrap starts has to wait. `listeners`
    are as many ports as are to be listened on, `timeout` seconds for each step. `scope()` is called
    in the witness: it restricts both. `fork()` makes the witness.
    """

    def __init__(self, exec_payload, listeners=0, timeout=10.0, scope=None, fork=os.fork):
        kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
        self._control, theirs = _socket.socketpair(_socket.AF_UNIX, kind)
        # The kernel adds to a message who sent it: to the holder's own its pid out here.
        self._control.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        self._timeout = timeout
        lifetime, self._lifetime = os.pipe()
        self._descriptors = []
        self.holder = 0
        launcher = os.getpid()
        self.witness = fork()
        if self.witness == 0:
            with _end_of_process(theirs):
                self._control.close()
                os.close(self._lifetime)
                _be_witness(theirs, lifetime, launcher, exec_payload, listeners, scope)
        theirs.close()
        os.close(lifetime)

    def wait_for_holder(self) -> int:
        """Return the pid of the holder.

        Raises Failure, or OSError if the processes ended without a word.
        """
        while not self.holder:
            self._hear()
        return self.holder

    def sockets(self) -> list[int]:
        """Return the descriptors of the network namespace's sockets, now the caller's to close.

        They are rtnetlink, nfnetlink, one for datagrams and one for streams of IPv4, and for each of
        the listeners one of IPv4 and, if the kernel has it, one of IPv6. Raises as `wait_for_holder`.
        """
        while not self._descriptors:
            self._hear()
        descriptors, self._descriptors = self._descriptors, []
        return descriptors

    def wait_for_exec(self) -> None:
        """Return when the holder has become what `exec_payload` executes; Failure if it cannot."""
        while self._receive():
            pass

    def end(self) -> None:
        """Kill and reap both processes and release what is held; more than once is no error."""
        with held_signals.HeldSignals():
            self.end_witness()
            holder, self.holder = self.holder, 0
            kill_and_reap(holder)

    def end_witness(self) -> None:
        """The same, without the holder if that is known: for when it has been reaped already."""
        with held_signals.HeldSignals():
            witness, self.witness = self.witness, 0
            kill_and_reap(witness)
            if self._control is not None:
                self._hear_the_last()
                self._control.close()
                self._control = None
                os.close(self._lifetime)
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors = []

    def _hear_the_last(self) -> None:
        """Hear of the holder, if there is one; without the witness it alone keeps the socket open.

        Until it ends it has the locks of the stand-ins, too. One that says nothing for long cannot
        go on: the socket is shut.
        """
        self._timeout = _PATIENCE
        while not self.holder:
            try:
                self._hear()
            except Failure:
                pass
            except OSError:
                break
        self._control.shutdown(_socket.SHUT_RDWR)

    def _hear(self) -> None:
        if not self._receive():
            raise OSError("the process that holds the network namespace has ended")

    def _receive(self) -> bool:
        """Wait for the next message and keep what it says; False when no process can send one."""
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        if not poll.poll(self._timeout * 1000):
            raise OSError("the process that holds the network namespace does not answer")
        room = _socket.CMSG_SPACE(4 * 253) + _socket.CMSG_SPACE(calcsize("3i"))
        # What was received and not kept would be a process that nobody knows of.
        with held_signals.HeldSignals():
            message, attached, flags, _ = self._control.recvmsg(
                _MAX_MESSAGE, room, _socket.MSG_CMSG_CLOEXEC
            )
            sender = 0
            for _, kind, data in attached:
                numbers = [each[0] for each in iter_unpack("i", data[: len(data) & ~3])]
                if kind == _socket.SCM_RIGHTS:
                    self._descriptors += numbers
                else:
                    # struct ucred: pid, uid, gid.
                    sender = numbers[0]
            if message == b"holder":
                self.holder = sender
        if flags & _socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if message.startswith(b"failed"):
            _, what, todo = message.decode(errors="replace").split("\0")
            raise Failure(what, todo)
        return bool(message)


def kill_and_reap(*pids: int) -> None:
    """Kill and reap children of this process; 0 stands for none."""
    for pid in pids:
        if pid:
            os.kill(pid, _signal.SIGKILL)
            os.waitpid(pid, 0)


def setup_failure(error: OSError) -> Failure:
    """Return what to tell the user of an error while the network was made."""
    return Failure(
        f"the sandbox's network could not be made: {error}",
        f"see what `claudebox net check inet` says, {OTHER_TIERS}",
    )


class _end_of_process:
    """A block of a forked child, which tells the launcher what went wrong and never leaves the block."""

    def __init__(self, control):
        self._control = control

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        try:
            if isinstance(error, OSError):
                error = setup_failure(error)
            elif not isinstance(error, Failure):
                words = f"{type(error).__name__}: {error}"
                error = Failure(words, "report this as a bug of claudebox")
            text = "\0".join(["failed", *[each.replace("\0", " ") for each in error.args]])
            self._control.send(text.encode(errors="replace")[:_MAX_MESSAGE])
        finally:
            os._exit(125)


def _be_witness(control, lifetime, launcher: int, exec_payload, listeners: int, scope) -> None:
    """Make the namespaces and the holder, hand over the sockets, and wait for the end of `lifetime`.

    It is in the process group, the network namespace and the scope of what is inside, and not in its
    pid namespace, whose end it would hold up: the launcher sees it stop. What waits is a shell, which
    needs a tenth of the memory that this process has.
    """
    identity = os.geteuid(), os.getegid()
    # The launcher hears them, too, and has to learn of the holder.
    before = {number: _signal.signal(number, _signal.SIG_IGN) for number in _OF_THE_GROUP}
    _signal.set_wakeup_fd(-1)
    libc.die_with(launcher)
    if scope is not None:
        scope()
    _make_namespaces(*identity)
    # commit_creds() may have forgotten it.
    libc.die_with(launcher)
    if libc.fork_sibling() == 0:
        for number, handler in before.items():
            if handler != _signal.SIG_IGN:
                _signal.signal(number, _signal.SIG_DFL)
        _be_holder(control, exec_payload)
    # Every pipe that was inherited would miss its end.
    end = os.sysconf("SC_OPEN_MAX")
    kept = sorted((control.fileno(), lifetime))
    os.closerange(0, kept[0])
    os.closerange(kept[0] + 1, kept[1])
    os.closerange(kept[1] + 1, end)
    for name, value in _SWITCHES:
        try:
            _write(f"/proc/sys/net/{name}", value)
        except OSError:  # read-only in a container
            pass
    _make_tap()
    handed = _open_sockets(listeners)
    rights = pack(f"{len(handed)}i", *[each.fileno() for each in handed])
    control.sendmsg([b"sockets"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    os.dup2(lifetime, 0)
    os.closerange(1, end)
    os.execve(baked.SH or "/bin/sh", [_WITNESS, "-c", "read -r nothing"], {})


def _be_holder(control, exec_payload) -> None:
    """Execute the payload, unless the launcher is gone or has given up: it cannot be told then."""
    libc.die_with_parent()
    control.send(b"holder")
    _mount_proc()
    exec_payload()
    raise Failure("the sandbox did not start", "report this as a bug of claudebox")


def _mount_proc() -> None:
    try:
        libc.mount_proc()
    except OSError as error:
        raise Failure(
            f"this host does not let you mount a new /proc, which every sandbox needs: {error.strerror}",
            "this may be a container that hides parts of its /proc: start claudebox outside",
        ) from error


def _make_namespaces(uid: int, gid: int) -> None:
    """Become uid and gid 0 of a new user namespace, owner of a network namespace that is new, too.

    The mount namespace and, for its children, the pid namespace are new as well.
    """
    try:
        libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNET | libc.CLONE_NEWPID | libc.CLONE_NEWNS)
        # slirp4netns does setegid(0) in this namespace; setgroups has to be denied before gid_map.
        _write("/proc/self/setgroups", b"deny")
        _write("/proc/self/uid_map", b"0 %d 1" % uid)
        _write("/proc/self/gid_map", b"0 %d 1" % gid)
    except OSError as error:
        raise Failure(
            f"this host does not let you make namespaces: {error}", _namespace_cure()
        ) from error


def _namespace_cure() -> str:
    """What to do about refused user namespaces, from the switches that Linux distributions have."""
    for name, forbids in (
        ("kernel/apparmor_restrict_unprivileged_userns", b"1"),
        ("kernel/unprivileged_userns_clone", b"0"),
        ("user/max_user_namespaces", b"0"),
    ):
        try:
            with open(f"/proc/sys/{name}", "rb") as switch:
                value = switch.read().strip()
        except OSError:
            continue
        if value == forbids:
            return (
                f"/proc/sys/{name} is {value.decode()}, which forbids them: let `claudebox doctor`"
                f" explain how to change that, {OTHER_TIERS}"
            )
    return f"see what `claudebox doctor` says, {OTHER_TIERS}"


def _make_tap() -> None:
    """Make the tap that the sidecar will use, to last as long as the network namespace.

    The end of a sidecar that made it itself takes 25 to 40 ms, because the kernel removes the tap
    then; one that lasts is removed with the namespace, which nobody waits for (Linux 6.18). Where it
    cannot be made the sidecar makes one, or says why not.
    """
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.ioctl(tap, _SET_INTERFACE, pack("16sH22x", TAP.encode(), _TAP_FLAGS))
        fcntl.ioctl(tap, _SET_PERSISTENT, 1)
    except OSError:
        pass
    finally:
        os.close(tap)


def _open_sockets(listeners: int) -> list:
    """Open in the present network namespace what `Namespaces.sockets` names."""
    netlink = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
    stream = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC
    datagram = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC
    made = [
        _socket.socket(_socket.AF_NETLINK, netlink, _NETLINK_ROUTE),
        _socket.socket(_socket.AF_NETLINK, netlink, _NETLINK_NETFILTER),
        _socket.socket(_socket.AF_INET, datagram),
        _socket.socket(_socket.AF_INET, stream),
    ]
    for _ in range(listeners):
        made.append(_socket.socket(_socket.AF_INET, stream))
        try:
            made.append(_socket.socket(_socket.AF_INET6, stream))
        except OSError:  # a kernel without IPv6
            pass
    return made


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
