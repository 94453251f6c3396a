"""The inet tier: a network namespace that reaches the internet and nothing nearer.

The namespace is made by inet_namespaces, where bwrap works already. Beside that the launcher gives
the namespace its filter and relays DNS for it, and a sidecar (pasta, else slirp4netns) joins it to
the world. bwrap's payload waits for all that, and lives in a user namespace below the holder's, so
that it has no power over the network namespace.
"""

import _signal
import _socket
import errno
import os
import select
import sys

from claudebox import Failure, policy
from claudebox.sandbox import events, held_signals, inet_namespaces, libc, netlink, nftables
from claudebox.sandbox.dns_relay import DnsRelay
from claudebox.sandbox.inet_namespaces import OTHER_TIERS, TAP, kill_and_reap, setup_failure
from claudebox.sandbox.port_relay import PortRelay

# Uploads through pasta of 2023-03 stand still now and then, and no switch of the namespace cures that
# (tried: tcp_wmem, tcp_rto_min_us, tcp_limit_output_bytes, MTU, queue length).
SIDECARS = ("pasta", "slirp4netns")
PACKAGES = {"pasta": "passt", "slirp4netns": "slirp4netns"}
DNS_PORT = 53

_ADDRESS, _GATEWAY = "198.18.0.100", "198.18.0.2"
_PASTA_ADDRESS6, _PASTA_GATEWAY6 = "fd6e:6574:626f::100", "fe80::2"
_SLIRP_ADDRESS6, _SLIRP_GATEWAY6 = "fd00::100", "fd00::2"  # libslirp's, not to be chosen
_SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
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
    """A started inet tier: the holder, which is bwrap, its sidecar, relays and filter.

    `pid` is a child of the caller, who reaps it; `witness` is one that stops when what is
    inside stops the process group, which `pid` does not; `sidecar` is the name of what joins it to the
    world, empty before `wait_until_joined`. Everything is on the loop that start() was given. As the
    first process of its pid namespace `pid` does not hear signals that it does not handle, except
    SIGKILL and SIGSTOP.
    """

    def __init__(self, namespaces, loop, on_offline, timeout):
        self.pid = 0
        self.witness = 0
        self.sidecar = ""
        self._namespaces = namespaces
        self._route = None
        self._timeout = timeout
        self._joining = None
        self._loop = loop
        self._on_offline = on_offline
        self._process = None
        self._relays = []
        self._filter = None
        self._host = None

    def stop(self) -> None:
        """Kill the sidecar without waiting for it: for when there is other work to do before close().

        It takes the kernel 25 to 40 ms to put one away that made its tap itself.
        """
        if self._process:
            self._loop.remove(self._process.pidfd)
            self._process.kill()

    def wait_until_joined(self) -> None:
        """Return when a sidecar has brought the tap up. The payload must not run before.

        Raises Failure with what each sidecar said; the holder is then the caller's to end.
        """
        try:
            self._joining.finish(self._timeout)
            with held_signals.HeldSignals():
                self._process = self._joining.hand_over()
        except OSError as error:
            raise setup_failure(error) from error
        finally:
            self._joining.close()
            self._joining = None
        self.sidecar = self._process.name
        self._loop.add(self._process.pidfd, self._sidecar_ended)
        self._loop.add(self._host.fileno(), self._host_changed)

    def end_payload(self) -> None:
        """Kill the holder, and with it all that it started, and reap it."""
        kill_and_reap(self.pid)

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
        if self._route:
            self._route.close()
            self._route = None
        self._namespaces.end_witness()

    def _go_offline(self, why: str) -> None:
        """Nothing reaches the world any more: have name look-ups fail at once, too, and say so."""
        if not self._process:
            return
        self._loop.remove(self._process.pidfd)
        self._process.end()
        self._process = None
        self._relays.pop(0).close()
        try:
            # It can outlast its sidecar: whoever connects is to learn at once that nobody hears.
            netlink.remove_link(self._route, TAP)
        except OSError:
            pass
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
    namespaces,
    loop,
    *,
    sidecars=None,
    allow=(),
    timeout=10.0,
    resolv_conf="/etc/resolv.conf",
    on_offline=None,
) -> InetSession:
    """Make the network of the begun `inet_namespaces.Namespaces`, and begin to join it to the world.

    Their holder's payload runs by then; what that starts has to wait for `wait_until_joined`. The
    filter has been read back and the relays wait before a sidecar is started. `loop` is an
    events.Loop. `sidecars` are (name, path) pairs to try in order, by default find_sidecars();
    `allow` what parse_allow returned, for whose "host" ports the namespaces have listeners;
    `timeout` seconds for each step; `on_offline(message)` is called once if the sidecar ends before
    close().

    Raises Failure, having ended everything that was begun.
    """
    session = InetSession(namespaces, loop, on_offline, timeout)
    try:
        if sidecars is None:
            sidecars = find_sidecars()
        if not sidecars:
            raise Failure(
                "no program to join the sandbox to the internet: neither pasta nor slirp4netns is installed",
                f"install the package passt (or slirp4netns), {OTHER_TIERS}",
            )
        # Subscribed before the dump, so that no change falls between them.
        session._host = netlink.Connection(
            netlink.NETLINK_ROUTE, netlink.GROUPS_ADDRESSES_AND_ROUTES
        )
        host_route = netlink.Connection(netlink.NETLINK_ROUTE)
        contents = nftables.sets(*netlink.host_networks(host_route))
        host_route.close()
        rules = nftables.rules([each[1:] for each in allow if each[0] == "net"])
        session.witness = namespaces.witness
        session.pid = namespaces.wait_for_holder()
        descriptors = namespaces.sockets()
        session._route = netlink.Connection(netlink.NETLINK_ROUTE, descriptor=descriptors.pop(0))
        packets = netlink.Connection(netlink.NETLINK_NETFILTER, descriptor=descriptors.pop(0))
        session._filter = nftables.Filter(packets, contents)
        sockets = [_socket.socket(fileno=each) for each in descriptors]
        netlink.set_link_up(session._route, netlink.LOOPBACK_INDEX)
        _install_filter(packets, rules, contents)
        for socket in sockets[:2]:
            _bind(socket, DNS_PORT)
        session._relays.append(DnsRelay(loop, sockets.pop(0), sockets.pop(0), resolv_conf))
        for port in sorted(listened_on(allow)):
            listeners = [sockets.pop(0)]
            # There is one where the kernel has no IPv6.
            if sockets and sockets[0].family == _socket.AF_INET6:
                listeners.append(sockets.pop(0))
            listeners = [each for each in listeners if _bind(each, port)]
            session._relays.append(PortRelay(loop, listeners, port))
        session._joining = _Joining(session.witness, sidecars, session._route)
        session._joining.begin()
        namespaces.wait_for_exec()
        return session
    except BaseException as error:
        session.close()
        namespaces.end()
        if isinstance(error, OSError):
            raise setup_failure(error) from error
        raise


def listened_on(allow) -> set[int]:
    """Return the ports of the host's loopback among what `parse_allow` returned."""
    return {each[1] for each in allow if each[0] == "host"}


def _install_filter(packets: netlink.Connection, rules: list, contents: dict) -> None:
    try:
        nftables.install(packets, rules, contents)
    except OSError as error:
        raise Failure(
            f"the filter that keeps the sandbox to the internet could not be installed: {error}",
            f"nftables is needed (`modprobe nf_tables` as root), {OTHER_TIERS}",
        ) from error


def _bind(socket, port: int) -> bool:
    """Bind a socket to its loopback, listening if it is a stream; say whether there is one of IPv6."""
    try:
        if socket.family == _socket.AF_INET6:
            socket.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        socket.bind((b"127.0.0.1" if socket.family == _socket.AF_INET else b"::1", port))
    except OSError:
        if socket.family != _socket.AF_INET6:
            raise
        # A kernel that has IPv6 switched off.
        socket.close()
        return False
    if socket.type == _socket.SOCK_STREAM:
        socket.listen(64)
    return True


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
            with held_signals.HeldSignals():
                self._process = _Sidecar(name, path, self._witness)
        except OSError as error:
            self._complaints.append(f"{name}: {error}")

    def hand_over(self):
        """Return the _Sidecar that `finish` has waited for: it is the caller's now."""
        process, self._process = self._process, None
        return process

    def finish(self, timeout: float) -> None:
        """Return when a sidecar has brought the tap up; Failure with what each of them said."""
        while True:
            if self._process:
                process = self._process
                try:
                    self._wait(process, timeout)
                    return
                except OSError as error:
                    words = process.words()
                    words = f": {words}" if words else ""
                    self._complaints.append(f"{process.name}: {error}{words}")
                    self.close()
                    # The next one is to find nothing of what this one gave it.
                    netlink.remove_link(self._route, TAP)
            if not self._remaining:
                raise Failure(
                    f"the sandbox could not be joined to the internet: {'; '.join(self._complaints)}",
                    f"see what `claudebox net check inet` says, {OTHER_TIERS}",
                )
            self.begin()

    def _wait(self, process, timeout: float) -> None:
        process.wait_until_ready(timeout)
        index = netlink.link_index(self._route, TAP)
        if process.name == "slirp4netns":
            _add_ipv6(self._route, index)
        process.check_alive()

    def close(self) -> None:
        """End a sidecar that was begun and not handed over."""
        with held_signals.HeldSignals():
            process, self._process = self._process, None
            if process:
                process.end()


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
    """Make the namespaces and the filter in processes that then end."""
    namespaces = inet_namespaces.Namespaces(_sleep)
    try:
        contents = nftables.sets()
        namespaces.wait_for_holder()
        route, packets, *others = namespaces.sockets()
        for each in (route, *others):
            os.close(each)
        connection = netlink.Connection(netlink.NETLINK_NETFILTER, descriptor=packets)
        try:
            _install_filter(connection, nftables.rules(), contents)
        finally:
            connection.close()
    except (Failure, OSError) as error:
        return False, str(error)
    finally:
        namespaces.end()
    return True, "a namespace was made and its filter installed and read back"


def _sleep() -> None:
    sleep = "import time; time.sleep(60)"
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", sleep])


def _try_sidecar(name: str, path: str) -> tuple:
    loop = events.Loop()
    begin = events.now()
    try:
        session = start(inet_namespaces.Namespaces(_sleep), loop, sidecars=[(name, path)])
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
