"""The inet tier: a network namespace that reaches the internet and nothing nearer.

A process below the launcher, the holder, closes a network namespace of its own with the filter and
waits until the launcher relays DNS for it; then it becomes bwrap, and while bwrap works a sidecar
(pasta, else slirp4netns) joins the namespace to the world. bwrap's payload waits for both, and lives
in a user namespace below the holder's, so that it has no power over the network namespace. The
sidecar finds the namespace by another process in it, the witness: that of bwrap 0.12 cannot be
opened in /proc.

The holder is also the first process of a pid namespace, so that its end is the end of everything
that bwrap started: killed in its first moments, bwrap may leave a child that waits for ever (seen in
the sources of 0.8 and 0.12). It gets the /proc of that namespace: bwrap looks its child up in /proc
by the pid that the child has there.
"""

import _signal
import _socket
import errno
import os
import select
import struct
import sys

from claudebox import Failure, policy
from claudebox.sandbox import events, libc, netlink, nftables
from claudebox.sandbox.dns_relay import DnsRelay
from claudebox.sandbox.port_relay import PortRelay

# Uploads through pasta of 2023-03 stand still now and then, and no switch of the namespace cures that
# (tried: tcp_wmem, tcp_rto_min_us, tcp_limit_output_bytes, MTU, queue length).
SIDECARS = ("pasta", "slirp4netns")
PACKAGES = {"pasta": "passt", "slirp4netns": "slirp4netns"}
TAP = "tap0"
DNS_PORT = 53

_ADDRESS, _GATEWAY = "198.18.0.100", "198.18.0.2"
_PASTA_ADDRESS6, _PASTA_GATEWAY6 = "fd6e:6574:626f::100", "fe80::2"
_SLIRP_ADDRESS6, _SLIRP_GATEWAY6 = "fd00::100", "fd00::2"  # libslirp's, not to be chosen
_OTHER_TIERS = "or choose --network none or --network full"
_SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SWITCHES = (
    # Echo requests without privileges.
    ("ipv4/ping_group_range", b"0 0"),
    # No address or route from router advertisements, which slirp4netns sends when it pleases.
    ("ipv6/conf/default/accept_ra", b"0"),
)
_MAX_MESSAGE = 8192
_MAX_WORDS = 600


# --- exceptions


def parse_allow(text: str) -> tuple:
    """Parse one exception: what `--allow` and a profile's "allow" take.

    "host:PORT" gives ("host", port): one TCP port of the host's loopback. "ADDRESS", "NETWORK/LEN",
    either with ":PORT" (IPv6 then in brackets), gives ("net", address bytes, prefix length, port),
    port 0 for all. Raises Failure.
    """
    if text.startswith("host:"):
        port = _port(text[5:], text)
        if port == DNS_PORT:
            raise _not_allowable(text, "port 53 of the sandbox's loopback is its name service")
        return ("host", port)
    where, port = text, 0
    if text.startswith("["):
        where, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _not_allowable(text, "write [ADDRESS]:PORT")
        if "/" in rest:
            raise _not_allowable(text, "write [NETWORK/LENGTH]:PORT")
        if rest:
            port = _port(rest[1:], text)
    elif text.count(":") == 1:
        where, _, rest = text.partition(":")
        port = _port(rest, text)
    address, slash, length = where.partition("/")
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    try:
        packed = _socket.inet_pton(family, address)
    except (OSError, ValueError):
        if "%" in address:
            why = "addresses of one link cannot be reached from the sandbox's network"
        elif address == "localhost":
            why = "for a service of this host's loopback write host:PORT"
        else:
            why = (
                "only addresses can be allowed, not names: a name can come to mean another address"
            )
        raise _not_allowable(text, why) from None
    bits = 8 * len(packed)
    size = _number(length, bits) if slash else bits
    if size is None:
        raise _not_allowable(text, f"the prefix length has to be 1 to {bits}")
    first, last = nftables.range_of(packed, size)
    if first != int.from_bytes(packed, "big"):
        network = _socket.inet_ntop(family, first.to_bytes(len(packed), "big"))
        raise _not_allowable(text, f"the network is {network}/{size}, or leave out /{size}")
    _refuse_what_cannot_work(text, family, first, last)
    return ("net", packed, size, port)


def _refuse_what_cannot_work(text: str, family: int, first: int, last: int) -> None:
    """Raise Failure for a range that is too large, or that lies where it would mean something else."""
    size = 4 if family == _socket.AF_INET else 16
    if last - first >= 1 << 8 * size - netlink.SHORTEST_NETWORK[size]:
        raise Failure(
            f"--allow {text}: that opens much more than one network",
            "allow smaller networks, or choose --network full",
        )
    loopback = "for a service of this host's loopback write host:PORT"
    multicast = "multicast and broadcast do not reach beyond the sandbox"
    special = [
        ("127.0.0.0/8", loopback),
        ("::1/128", loopback),
        ("0.0.0.0/8", "0.0.0.0 is the sandbox itself"),
        ("::/128", ":: is the sandbox itself"),
        ("::ffff:0:0/96", "write the IPv4 address"),
        ("224.0.0.0/3", multicast),
        ("ff00::/8", multicast),
    ]
    reserved = "the sandbox's own network uses these addresses"
    special += [(each, reserved) for each in policy.SIDECAR_NETWORKS]
    for network, why in special:
        packed, length = nftables.network(network)
        special_first, special_last = nftables.range_of(packed, length)
        if len(packed) == size and special_first <= first and last <= special_last:
            raise _not_allowable(text, why)


def _port(digits: str, text: str) -> int:
    port = _number(digits, 65535)
    if port is None:
        raise _not_allowable(text, "the port has to be a number from 1 to 65535")
    return port


def _number(digits: str, largest: int):
    """A number from 1 to `largest`, written the plain way; else None."""
    if not digits.isascii() or not digits.isdigit() or digits[0] == "0" or len(digits) > 5:
        return None
    return int(digits) if int(digits) <= largest else None


def _not_allowable(text: str, why: str) -> Failure:
    return Failure(
        f"--allow {text!r}: {why}",
        "write an ADDRESS, ADDRESS:PORT, NETWORK/LENGTH or host:PORT, as in 192.168.1.20:5432",
        status=2,
    )


# --- the session


class InetSession:
    """A started inet tier: the holder, which is bwrap by now, its sidecar, relays and filter.

    `pid` is a child of the caller, who reaps it; `witness` is one that stops when what is
    inside stops the process group, which `pid` does not; `sidecar` is the name of what joins it to the
    world, empty before `wait_until_joined`. Everything is on the loop that start() was given. As the
    first process of its pid namespace `pid` does not hear signals that it does not handle, except
    SIGKILL and SIGSTOP.
    """

    def __init__(self, loop, on_offline, timeout):
        self.pid = 0
        self.witness = 0
        self.sidecar = ""
        self._timeout = timeout
        self._joining = None
        self._loop = loop
        self._on_offline = on_offline
        self._process = None
        self._relays = []
        self._filter = None
        self._host = None

    def stop(self) -> None:
        """Kill the sidecar without waiting for it: the kernel takes 25 to 40 ms to remove its tap.

        For when the payload has ended and there is other work to do before close().
        """
        if self._process:
            self._loop.remove(self._process.pidfd)
            self._process.kill()

    def wait_until_joined(self) -> None:
        """Return when a sidecar has brought the tap up. The payload must not run before.

        Raises Failure with what each sidecar said; the holder is then the caller's to end.
        """
        try:
            self._process = self._joining.finish(self._timeout)
        except OSError as error:
            raise _setup_failure(error) from error
        finally:
            self._joining.close()
            self._joining = None
        self.sidecar = self._process.name
        self._loop.add(self._process.pidfd, self._sidecar_ended)
        self._loop.add(self._host.fileno(), self._host_changed)

    def end_payload(self) -> None:
        """Kill the holder, and with it all that it started, and reap it."""
        _kill_and_reap(self.pid)

    def close(self) -> None:
        """End the sidecar and the relays and release every descriptor; more than once is no error."""
        if self._joining:
            self._joining.close()
            self._joining = None
        if self._process:
            self._loop.remove(self._process.pidfd)
            self._process.end()
            self._process = None
        for relay in self._relays:
            relay.close()
        self._relays = []
        if self._host:
            self._loop.remove(self._host.fileno())
            self._host.close()
            self._host = None
        if self._filter:
            self._filter.close()
            self._filter = None
        _kill_and_reap(self.witness)
        self.witness = 0

    def _go_offline(self, why: str) -> None:
        """Nothing reaches the world any more: have name look-ups fail at once, too, and say so."""
        if not self._process:
            return
        self._loop.remove(self._process.pidfd)
        self._process.end()
        self._process = None
        self._relays.pop(0).close()
        if self._on_offline:
            self._on_offline(f"the sandbox is offline: {why}")

    def _sidecar_ended(self, _) -> None:
        words = self._process.words()
        self._go_offline(f"{self.sidecar} ended" + (f" ({words})" if words else ""))

    def _host_changed(self, _) -> None:
        """Block what the host has gained: addresses and networks are announced as they come."""
        try:
            try:
                own, near = [], []
                for kind, payload in self._host.notifications():
                    more_own, more_near = netlink.networks_in(kind, payload)
                    own += more_own
                    near += more_near
            except OSError:  # there were more than the socket holds
                route = netlink.Connection(netlink.NETLINK_ROUTE)
                own, near = netlink.host_networks(route)
                route.close()
            self._filter.block(own, near)
        except OSError as error:
            self._loop.remove(self._host.fileno())
            self._go_offline(f"this host's networks changed and could not be blocked ({error})")


def start(
    exec_payload,
    loop,
    *,
    sidecars=None,
    allow=(),
    timeout=10.0,
    resolv_conf="/etc/resolv.conf",
    on_offline=None,
    scope=None,
    fork=os.fork,
) -> InetSession:
    """Make the network, have the holder call `exec_payload()`, and begin to join it to the world.

    `exec_payload` runs in the holder, which is uid and gid 0 of a user namespace that maps only the
    caller, and pid 1; it has to exec (bwrap, without --unshare-net) and never to return. It runs
    only when the filter has been read back and the relays wait; start() returns when the exec has
    happened. What bwrap starts has to wait for `wait_until_joined`. `loop` is an events.Loop.
    `sidecars` are (name, path) pairs to try in order, by default find_sidecars(); `allow` what
    parse_allow returned; `timeout` seconds for each step; `on_offline(message)` is called once if
    the sidecar ends before close(). `scope()` is called in the process whose children the holder and
    the witness are: it restricts both. `fork()` makes that process.

    Raises Failure, having ended everything that it began.
    """
    if sidecars is None:
        sidecars = find_sidecars()
    if not sidecars:
        raise Failure(
            "no program to join the sandbox to the internet: neither pasta nor slirp4netns is installed",
            f"install the package passt (or slirp4netns), {_OTHER_TIERS}",
        )
    session = InetSession(loop, on_offline, timeout)
    control = None
    try:
        # Subscribed before the dump, so that no change falls between them.
        session._host = netlink.Connection(
            netlink.NETLINK_ROUTE, netlink.GROUPS_ADDRESSES_AND_ROUTES
        )
        host_route = netlink.Connection(netlink.NETLINK_ROUTE)
        contents = nftables.sets(*netlink.host_networks(host_route))
        host_route.close()
        ports = sorted({each[1] for each in allow if each[0] == "host"})
        rules = nftables.rules([each[1:] for each in allow if each[0] == "net"])
        control, session.pid, session.witness, descriptors = _start_holder(
            exec_payload, rules, contents, ports, timeout, scope, fork
        )
        route = netlink.Connection(netlink.NETLINK_ROUTE, descriptor=descriptors.pop(0))
        session._filter = nftables.Filter(
            netlink.Connection(netlink.NETLINK_NETFILTER, descriptor=descriptors.pop(0)), contents
        )
        sockets = [_socket.socket(fileno=each) for each in descriptors]
        session._relays.append(DnsRelay(loop, sockets.pop(0), sockets.pop(0), resolv_conf))
        for port in ports:
            # Told by their ports: there is one listener where the kernel has no IPv6.
            chosen = [each for each in sockets if each.getsockname()[1] == port]
            session._relays.append(PortRelay(loop, chosen, port))
        session._joining = _Joining(session.witness, sidecars, route)
        control.send(b"go")
        session._joining.begin()
        _hear(control)
        return session
    except BaseException as error:
        session.close()
        session.end_payload()
        if isinstance(error, OSError):
            raise _setup_failure(error) from error
        raise
    finally:
        if control:
            control.close()


def _setup_failure(error: OSError) -> Failure:
    return Failure(
        f"the sandbox's network could not be made: {error}",
        f"see what `claudebox net check inet` says, {_OTHER_TIERS}",
    )


def _hear(control) -> tuple:
    """Wait for the holder's next message: (text, descriptors), both empty when it has exec'ed."""
    room = _socket.CMSG_SPACE(4 * 253)
    try:
        message, attached, _, _ = control.recvmsg(_MAX_MESSAGE, room, _socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        raise OSError("the process that holds the network namespace does not answer") from None
    if message.startswith(b"failed"):
        _, what, todo = message.decode(errors="replace").split("\0")
        raise Failure(what, todo)
    descriptors = []
    for _, _, data in attached:
        descriptors += [each[0] for each in struct.iter_unpack("i", data[: len(data) & ~3])]
    return message, descriptors


# --- the holder


def _start_holder(
    exec_payload,
    rules: list,
    contents: dict,
    ports: list,
    timeout: float,
    scope=None,
    fork=os.fork,
) -> tuple:
    """Start the holder: (control socket, its pid, the witness's, descriptors handed over; see _hold).

    Only a child of a process that did unshare(CLONE_NEWPID) is in the new pid namespace. So the
    launcher's child makes the namespaces, forks both and ends, and the launcher adopts them.
    """
    kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind)
    ours.settimeout(timeout)
    launcher = os.getpid()
    identity = os.geteuid(), os.getegid()
    libc.adopt_orphans(True)
    maker = fork()
    if maker == 0:
        with _end_of_process(theirs):
            _signal.set_wakeup_fd(-1)
            libc.die_with(launcher)
            ours.close()
            if scope is not None:
                scope()
            _make_namespaces(*identity)
            witness = _start_witness(launcher)
            # In the pid namespace the witness would hold up the end of the holder.
            libc.unshare(libc.CLONE_NEWPID | libc.CLONE_NEWNS)
            end_of_maker, held_by_maker = os.pipe()
            holder = os.fork()
            if holder:
                theirs.send(b"pid %d %d" % (holder, witness))
                os._exit(0)
            # So that the launcher knows the holder before it hears from it.
            os.close(held_by_maker)
            os.read(end_of_maker, 1)
            _hold(theirs, rules, contents, ports)
            exec_payload()
            raise Failure("the sandbox did not start", "report this as a bug of claudebox")
    theirs.close()
    holder, witness, descriptors = 0, 0, []
    try:
        while not (holder and descriptors):
            message, attached = _hear(ours)
            if message.startswith(b"pid "):
                holder, witness = [int(pid) for pid in message[4:].split()]
            elif attached:
                descriptors = attached
            else:
                raise OSError("the process that holds the network namespace has ended")
        os.waitpid(maker, 0)
        maker = 0
    except BaseException:
        ours.close()
        for each in descriptors:
            os.close(each)
        _kill_and_reap(maker, holder, witness)
        raise
    finally:
        libc.adopt_orphans(False)
    return ours, holder, witness, descriptors


def _start_witness(launcher: int) -> int:
    """Start a process that waits for its end; returns its pid.

    It is in the process group, the network namespace and the scope of what is inside, and in no pid
    namespace of its own: the launcher sees it stop, and adopts it as it does the holder.
    """
    alive = os.pidfd_open(launcher)
    pid = os.fork()
    if pid == 0:
        try:
            for number in (_signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGHUP):
                _signal.signal(number, _signal.SIG_IGN)
            # Every pipe that was inherited would miss its end.
            os.dup2(alive, 0)
            os.closerange(1, os.sysconf("SC_OPEN_MAX"))
            select.select([0], [], [])
        finally:
            os._exit(0)
    os.close(alive)
    return pid


def _kill_and_reap(*pids: int) -> None:
    for pid in pids:
        if pid:
            os.kill(pid, _signal.SIGKILL)
            os.waitpid(pid, 0)


class _end_of_process:
    """A block of a forked child, which tells the launcher what went wrong and never leaves the block."""

    def __init__(self, control):
        self._control = control

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        try:
            if isinstance(error, OSError):
                error = _setup_failure(error)
            elif not isinstance(error, Failure):
                words = f"{type(error).__name__}: {error}"
                error = Failure(words, "report this as a bug of claudebox")
            text = "\0".join(["failed", *[each.replace("\0", " ") for each in error.args]])
            self._control.send(text.encode(errors="replace")[:_MAX_MESSAGE])
        finally:
            os._exit(125)


def _hold(control, rules: list, contents: dict, ports: list) -> None:
    """Make the filter, hand over the sockets, and return when the launcher says go.

    The sockets are, in order: rtnetlink, nfnetlink, DNS over UDP, DNS over TCP, and listeners for
    the ports of the host's loopback. A launcher that is gone is an end of file on `control`.
    """
    route = netlink.Connection(netlink.NETLINK_ROUTE)
    netlink.set_link_up(route, netlink.LOOPBACK_INDEX)
    packets = netlink.Connection(netlink.NETLINK_NETFILTER)
    _install_filter(packets, rules, contents)
    for name, value in _SWITCHES:
        try:
            _write(f"/proc/sys/net/{name}", value)
        except OSError:  # read-only in a container
            pass
    sockets = [
        _bound(_socket.AF_INET, _socket.SOCK_DGRAM, DNS_PORT),
        _bound(_socket.AF_INET, _socket.SOCK_STREAM, DNS_PORT),
    ]
    for port in ports:
        sockets.append(_bound(_socket.AF_INET, _socket.SOCK_STREAM, port))
        try:
            sockets.append(_bound(_socket.AF_INET6, _socket.SOCK_STREAM, port))
        except OSError:  # a kernel without IPv6
            pass
    handed = [route, packets, *sockets]
    rights = struct.pack(f"{len(handed)}i", *[each.fileno() for each in handed])
    control.sendmsg([b"ready"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    for each in handed:
        each.close()
    if not control.recv(_MAX_MESSAGE):
        os._exit(125)
    # By now the launcher is the parent. If it ended before this request, that is seen below.
    libc.die_with_parent()
    try:
        control.recv(_MAX_MESSAGE, _socket.MSG_DONTWAIT)
        os._exit(125)
    except BlockingIOError:
        pass
    _mount_proc()


def _mount_proc() -> None:
    try:
        libc.mount_proc()
    except OSError as error:
        raise Failure(
            f"this host does not let you mount a new /proc, which every sandbox needs: {error.strerror}",
            "this may be a container that hides parts of its /proc: start claudebox outside",
        ) from error


def _make_namespaces(uid: int, gid: int) -> None:
    """Become uid and gid 0 of a new user namespace, owner of a network namespace that is new, too."""
    try:
        libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNET)
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
                f" explain how to change that, {_OTHER_TIERS}"
            )
    return f"see what `claudebox doctor` says, {_OTHER_TIERS}"


def _install_filter(packets: netlink.Connection, rules: list, contents: dict) -> None:
    try:
        nftables.install(packets, rules, contents)
    except OSError as error:
        raise Failure(
            f"the filter that keeps the sandbox to the internet could not be installed: {error}",
            f"nftables is needed (`modprobe nf_tables` as root), {_OTHER_TIERS}",
        ) from error


def _bound(family: int, kind: int, port: int):
    """A socket on the loopback of the present network namespace, listening if it is a stream."""
    socket = _socket.socket(family, kind | _socket.SOCK_CLOEXEC)
    if family == _socket.AF_INET6:
        socket.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
    socket.bind((b"127.0.0.1" if family == _socket.AF_INET else b"::1", port))
    if kind == _socket.SOCK_STREAM:
        socket.listen(64)
    return socket


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


# --- the sidecar


def find_sidecars(names=SIDECARS) -> list:
    """(name, path) of the sidecars that are installed, best first."""
    found = []
    for name in names:
        for directory in f"{os.environ.get('PATH', '')}:{_SYSTEM_DIRECTORIES}".split(":"):
            path = f"{directory}/{name}"
            if directory.startswith("/") and os.access(path, os.X_OK) and os.path.isfile(path):
                found.append((name, path))
                break
    return found


class _Joining:
    """The attempt to have one of the sidecars join the witness's namespace to the world."""

    def __init__(self, witness: int, sidecars, route: netlink.Connection):
        self._witness = witness
        self._remaining = list(sidecars)
        self._route = route
        self._process = None
        self._complaints = []

    def begin(self) -> None:
        """Start the next sidecar."""
        name, path = self._remaining.pop(0)
        try:
            self._process = _Sidecar(name, path, self._witness)
        except OSError as error:
            self._complaints.append(f"{name}: {error}")

    def finish(self, timeout: float):
        """Return the first _Sidecar that brings the tap up; Failure with what each of them said."""
        while True:
            if self._process:
                process, self._process = self._process, None
                try:
                    self._wait(process, timeout)
                    return process
                except OSError as error:
                    words = process.words()
                    words = f": {words}" if words else ""
                    self._complaints.append(f"{process.name}: {error}{words}")
                    process.end()
                except BaseException:
                    process.end()
                    raise
            if not self._remaining:
                raise Failure(
                    f"the sandbox could not be joined to the internet: {'; '.join(self._complaints)}",
                    f"see what `claudebox net check inet` says, {_OTHER_TIERS}",
                )
            self.begin()

    def _wait(self, process, timeout: float) -> None:
        process.wait_until_ready(timeout)
        index = netlink.link_index(self._route, TAP)
        if process.name == "slirp4netns":
            _add_ipv6(self._route, index)
        process.check_alive()

    def close(self) -> None:
        """End a sidecar that was begun and not waited for, and release what is held."""
        if self._process:
            self._process.end()
            self._process = None
        self._route.close()


def _add_ipv6(route: netlink.Connection, index: int) -> None:
    """Give the tap slirp4netns's IPv6 at once: its own way, router advertisements, takes seconds."""
    try:
        address, gateway = [
            _socket.inet_pton(_socket.AF_INET6, each) for each in (_SLIRP_ADDRESS6, _SLIRP_GATEWAY6)
        ]
        netlink.add_address(route, index, address, 64)
        netlink.add_default_route(route, index, gateway)
    except netlink.NetlinkError as error:
        # EACCES: IPv6 is switched off there; the others: the kernel has none.
        if error.errno not in (errno.EACCES, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise


class _Sidecar:
    """A running pasta or slirp4netns that serves the network namespace of a process."""

    def __init__(self, name: str, path: str, process: int):
        self.name = name
        self._ready, ready = os.pipe()
        self._words, words = os.pipe()
        exit_reader, self._exit = os.pipe()
        # Nobody reads this pipe before the end: a sidecar with much to say must not wait for us.
        os.set_blocking(words, False)
        if name == "slirp4netns":
            arguments = [path, *_slirp_options(ready, exit_reader), str(process), TAP]
            handed, output = (ready, exit_reader), -1
        else:
            arguments = [path, *_pasta_options(process)]
            handed, output = (), ready
        self.pid = _spawn(arguments, output, words, handed)
        self.pidfd = os.pidfd_open(self.pid)
        for each in (ready, words, exit_reader):
            os.close(each)

    def wait_until_ready(self, timeout: float) -> None:
        """Raises OSError when it ends or says nothing within `timeout` seconds."""
        poll = select.poll()
        poll.register(self._ready, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        end = events.now() + timeout
        while True:
            ready = dict(poll.poll(max(0, end - events.now()) * 1000))
            if not ready:
                raise OSError(f"not ready after {timeout:g} s")
            if self._ready in ready:
                if os.read(self._ready, 64):
                    return
                poll.unregister(self._ready)  # closed: it is ending, or never says that it is ready
            self.check_alive()

    def check_alive(self) -> None:
        """Raises OSError with the exit status when it has ended."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.pid = 0
            code = os.waitstatus_to_exitcode(status)
            raise OSError(f"exit status {code}" if code >= 0 else f"killed by signal {-code}")

    def words(self) -> str:
        """What it wrote on stderr, on one line, cut to what a message bears."""
        os.set_blocking(self._words, False)
        try:
            text = os.read(self._words, 65536).decode(errors="replace")
        except BlockingIOError:
            return ""
        # pasta 2023 without a syslog complains about that after every line.
        lines = [line for line in text.splitlines() if not line.startswith("Failed to send ")]
        text = "".join([each if each.isprintable() else " " for each in " ".join(lines)])
        text = " ".join(text.split())
        return text if len(text) <= _MAX_WORDS else "…" + text[-_MAX_WORDS:]

    def kill(self) -> None:
        """Kill it with what it started."""
        for kill in (os.killpg, os.kill):
            try:
                kill(self.pid, _signal.SIGKILL)
            except ProcessLookupError:  # not yet the leader of a group
                pass

    def end(self) -> None:
        """Kill it with what it started, reap it, release the descriptors."""
        if self.pid:
            self.kill()
            os.waitpid(self.pid, 0)
            self.pid = 0
        for each in (self._ready, self._words, self._exit, self.pidfd):
            os.close(each)


def _pasta_options(process: int) -> list:
    # Without the four "none" it would forward ports in both directions, past the filter. Its pid
    # file is written when the tap is configured: as a pipe on its stdout it tells that. It is not
    # to end with the process that shows it the namespace. Only options that pasta of 2023-03
    # (Debian 12) knows.
    options = ["-P", "/proc/self/fd/1", "--config-net", "-q", "-f", "-I", TAP, "--no-netns-quit"]
    options += ["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw"]
    options += ["-a", _ADDRESS, "-n", "24", "-g", _GATEWAY]
    options += ["-a", _PASTA_ADDRESS6, "-g", _PASTA_GATEWAY6]
    if os.geteuid() == 0:
        options += ["--runas", "0:0"]  # else it becomes nobody and may not enter the namespaces
    return [*options, "--userns", f"/proc/{process}/ns/user", "--netns", f"/proc/{process}/ns/net"]


def _slirp_options(ready: int, exit_reader: int) -> list:
    options = ["--configure", "--mtu=65520", "--cidr=198.18.0.0/24", "--disable-dns"]
    options += ["--disable-host-loopback", "--enable-sandbox", "--enable-seccomp", "--enable-ipv6"]
    return [*options, f"--ready-fd={ready}", f"--exit-fd={exit_reader}"]


def _spawn(arguments: list, output: int, words: int, handed) -> int:
    """Run a program that dies with this process, out of reach of the terminal; returns its pid.

    `output` becomes its stdout (-1: none), `words` its stderr, `handed` it inherits as they are.
    """
    launcher = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _signal.set_wakeup_fd(-1)
        libc.die_with(launcher)
        os.setsid()
        nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, 0)
        os.dup2(output if output >= 0 else nothing, 1)
        os.dup2(words, 2)
        for each in handed:
            os.set_inheritable(each, True)
        # Python ignores SIGPIPE and SIGXFSZ, a launcher the terminal's signals; exec hands that on,
        # and pasta of 2023 dies of an ignored SIGPIPE.
        for number in ("SIGPIPE", "SIGXFSZ", "SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP", "SIGCHLD"):
            _signal.signal(getattr(_signal, number), _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        os.chdir("/")
        os.execve(arguments[0], arguments, {"PATH": _SYSTEM_DIRECTORIES, "LC_ALL": "C"})
    except BaseException as error:
        os.write(2, str(error).encode())
    finally:
        os._exit(127)


# --- can this host do it


def check(sidecars=None) -> list:
    """What the inet tier needs of this host, each tried for real: (name, ok, detail) triples.

    The tier works when all of them are ok, but one of the two sidecars suffices.
    """
    results = [("user namespaces and nftables", *_try_namespaces()), ("/dev/net/tun", *_try_tun())]
    installed = dict(find_sidecars() if sidecars is None else sidecars)
    for name in SIDECARS:
        if name not in installed:
            result = (False, f"not found; it is in the package {PACKAGES[name]}")
        elif not all(ok for _, ok, _ in results[:2]):
            result = (True, f"{installed[name]}; not tried")
        else:
            result = _try_sidecar(name, installed[name])
        results.append((name, *result))
    return results


def _try_tun() -> tuple:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return False, "you may not open it; as root: chmod 0666 /dev/net/tun"
    except OSError as error:
        return False, f"{error.strerror}; as root: modprobe tun"
    return True, "can be opened"


def _try_namespaces() -> tuple:
    """Make the namespaces and the filter in a process that then ends."""
    try:
        control, holder, witness, descriptors = _start_holder(
            lambda: os._exit(0), nftables.rules(), nftables.sets(), [], 10.0
        )
        control.close()
        _kill_and_reap(holder, witness)
        for each in descriptors:
            os.close(each)
    except (Failure, OSError) as error:
        return False, str(error)
    return True, "a namespace was made and its filter installed and read back"


def _sleep() -> None:
    sleep = "import time; time.sleep(60)"
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", sleep])


def _try_sidecar(name: str, path: str) -> tuple:
    loop = events.Loop()
    begin = events.now()
    try:
        session = start(_sleep, loop, sidecars=[(name, path)])
        try:
            session.wait_until_joined()
        finally:
            session.close()
            session.end_payload()
    except Failure as failure:
        return False, failure.what
    finally:
        loop.close()
    return (
        True,
        f"{path}; joined a namespace to the network in {(events.now() - begin) * 1000:.0f} ms",
    )
