"""Probes for services of the host: sockets in the file system, abstract ones, the network, devices."""

import contextlib
import os
import shutil
import socket

from probes import CANARY, FACTS, NotHere, declare, named

probe = declare("host services")

# name → (what it is, path). {runtime}, {home} and {uid} are filled in by the world that makes them.
SOCKETS = {
    "dbus_session": ("the D-Bus session bus", "{runtime}/bus"),
    "dbus_system": ("the D-Bus system bus", "/run/dbus/system_bus_socket"),
    "dbus_system_var": ("the D-Bus system bus below /var", "/var/run/dbus/system_bus_socket"),
    "at_spi": ("the accessibility bus", "{runtime}/at-spi/bus"),
    "systemd_user": ("the user's systemd", "{runtime}/systemd/private"),
    "systemd_system": ("the system's systemd", "/run/systemd/private"),
    "systemd_notify": ("systemd's notifications", "/run/systemd/notify"),
    "journal": ("the journal", "/run/systemd/journal/stdout"),
    "resolved": ("systemd-resolved", "/run/systemd/resolve/io.systemd.Resolve"),
    "userdb": ("the user database", "/run/systemd/userdb/io.systemd.Multiplexer"),
    "x11": ("the X server", "/tmp/.X11-unix/X0"),
    "ice": ("the session manager", "/tmp/.ICE-unix/1"),
    "wayland": ("the Wayland compositor", "{runtime}/wayland-0"),
    "pipewire": ("PipeWire", "{runtime}/pipewire-0"),
    "pulse": ("PulseAudio", "{runtime}/pulse/native"),
    "ssh_agent": ("the ssh agent", "/tmp/ssh-canary/agent.1"),
    "ssh_agent_runtime": ("the ssh agent of the desktop", "{runtime}/gcr/ssh"),
    "ssh_control": ("a shared ssh connection", "{home}/.ssh/control-master"),
    "gpg_agent": ("the gpg agent", "{runtime}/gnupg/S.gpg-agent"),
    "gpg_agent_home": ("the gpg agent in the home directory", "{home}/.gnupg/S.gpg-agent"),
    "keyring": ("the keyring daemon", "{runtime}/keyring/control"),
    "onepassword": ("the agent of 1Password", "{home}/.1password/agent.sock"),
    "keepassxc": ("KeePassXC", "{runtime}/org.keepassxc.KeePassXC.BrowserServer"),
    "docker": ("docker", "/run/docker.sock"),
    "docker_var": ("docker below /var", "/var/run/docker.sock"),
    "docker_rootless": ("rootless docker", "{runtime}/docker.sock"),
    "docker_desktop": ("Docker Desktop", "{home}/.docker/desktop/docker.sock"),
    "podman": ("podman", "/run/podman/podman.sock"),
    "podman_user": ("podman of the user", "{runtime}/podman/podman.sock"),
    "containerd": ("containerd", "/run/containerd/containerd.sock"),
    "crio": ("CRI-O", "/run/crio/crio.sock"),
    "buildkit": ("buildkit", "/run/buildkit/buildkitd.sock"),
    "lxd": ("LXD", "/var/snap/lxd/common/lxd/unix.socket"),
    "incus": ("Incus", "/var/lib/incus/unix.socket"),
    "libvirt": ("libvirt", "/run/libvirt/libvirt-sock"),
    "libvirt_user": ("libvirt of the user", "{runtime}/libvirt/libvirt-sock"),
    "snapd": ("snapd", "/run/snapd.socket"),
    "tailscaled": ("tailscaled", "/run/tailscale/tailscaled.sock"),
    "nscd": ("the name service cache", "/run/nscd/socket"),
    "avahi": ("avahi", "/run/avahi-daemon/socket"),
    "cups": ("the printers", "/run/cups/cups.sock"),
    "pcscd": ("the smart cards", "/run/pcscd/pcscd.comm"),
    "mysql": ("MySQL", "/run/mysqld/mysqld.sock"),
    "postgres": ("PostgreSQL", "/run/postgresql/.s.PGSQL.5432"),
    "redis": ("Redis", "/run/redis/redis.sock"),
    "tmux": ("tmux", "/tmp/tmux-{uid}/default"),
    "screen": ("screen", "/run/screen/S-canary/1.tty"),
    "emacs": ("the Emacs server", "{runtime}/emacs/server"),
    "vscode": ("VS Code", "{runtime}/vscode-ipc.sock"),
    "claude_desktop": ("another Claude Code", "/tmp/cc-socks/1.sock"),
}


def _connect(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(path)
        return f"{path} answers {client.recv(100)!r}"


def _socket_probe(name):
    def attempt():
        path = FACTS["sockets"].get(name)
        if path is None:
            raise NotHere(f"this machine has no directory for {SOCKETS[name][1]}")
        return _connect(path)

    return attempt


for _name, (_what, _path) in SOCKETS.items():
    probe()(
        named(
            f"socket_{_name}",
            f"The socket of {_what} cannot be connected to.",
            _socket_probe(_name),
        )
    )


@probe()
def socket_of_the_nix_daemon():
    """The nix daemon cannot be connected to, unless the plan lets it in."""
    path = FACTS["sockets"].get("nix")
    if FACTS["nix_let_in"]:
        raise NotHere("the plan lets it in")
    if path is None:
        raise NotHere("this machine has no /nix/var")
    return _connect(path)


@probe()
def socket_that_a_variable_names():
    """A socket that a variable of the caller names cannot be connected to by its path."""
    return _connect(FACTS["sockets"]["named"])


@probe()
def socket_in_the_project():
    """A socket that lies in the project cannot be connected to."""
    os.chdir(FACTS["project"])
    return _connect("links/socket")


@probe()
def abstract_socket():
    """An abstract socket of the host cannot be connected to."""
    return _connect("\0" + FACTS["abstract"])


@probe()
def abstract_socket_by_datagram():
    """A datagram to an abstract socket of the host is not delivered."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"from inside", "\0" + FACTS["abstract"] + "-datagram")
        return "a datagram was taken"


@probe()
def abstract_socket_of_the_x_server():
    """The abstract socket of an X server cannot be connected to."""
    return _connect("\0" + FACTS["abstract_x"])


@probe()
def names_of_the_sockets_of_the_host():
    """/proc/net/unix does not list the sockets of the host."""
    with open("/proc/net/unix", "rb") as file:
        return FACTS["abstract"].encode() in file.read() and "/proc/net/unix"


@probe()
def listening_ports_of_the_host():
    """/proc/net/tcp does not list what listens on the host."""
    port = f":{FACTS['tcp_port']:04X} "
    with open("/proc/net/tcp") as file:
        return port in file.read() and "/proc/net/tcp"


def _tcp(family, address):
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect((address, FACTS["tcp_port"]))
        return f"{address} answers {client.recv(100)!r}"


@probe()
def loopback_tcp():
    """A service on the loopback address of the host cannot be connected to."""
    return _tcp(socket.AF_INET, "127.0.0.1")


@probe()
def loopback_tcp_other_address():
    """127.0.0.2 and 0.0.0.0 are no other way to the loopback address of the host."""
    for address in ("127.0.0.2", "0.0.0.0", "127.1.2.3"):
        with contextlib.suppress(OSError):
            return _tcp(socket.AF_INET, address)
    return None


@probe()
def loopback_tcp_ipv6():
    """A service on the IPv6 loopback address of the host cannot be connected to."""
    if not FACTS["ipv6"]:
        raise NotHere("this machine has no IPv6")
    for address in ("::1", "::ffff:127.0.0.1"):
        with contextlib.suppress(OSError):
            return _tcp(socket.AF_INET6, address)
    return None


@probe()
def own_address_tcp():
    """A service of the host cannot be connected to by the host's own address."""
    if FACTS["address"] is None:
        raise NotHere("this machine has no address but loopback")
    return _tcp(socket.AF_INET, FACTS["address"])


@probe()
def loopback_udp():
    """A datagram to the loopback address of the host is not answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect(("127.0.0.1", FACTS["udp_port"]))
        client.send(b"from inside")
        return f"answered: {client.recv(100)!r}"


@probe(control="namespaces")
def change_the_network():
    """The addresses of the network cannot be changed by netlink."""
    # RTM_DELADDR of an interface that cannot be: EPERM comes first.
    body = bytes((socket.AF_INET, 8, 0, 0)) + (0x7FFFFFF0).to_bytes(4, "little")
    _netlink(0, 21, body)
    return "netlink takes changes"


@probe(control="namespaces")
def read_the_filter():
    """The packet filter cannot be read or changed by netlink."""
    # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
    _netlink(12, 10 << 8 | 16, bytes(4))
    return "nftables answers"


def _netlink(protocol, kind, body):
    """Send one message; raise OSError for a refusal, return for any other answer."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as link:
        link.settimeout(5)
        header = (16 + len(body)).to_bytes(4, "little") + kind.to_bytes(2, "little")
        link.send(header + (5).to_bytes(2, "little") + bytes(8) + body)
        answer = link.recv(4096)
    if int.from_bytes(answer[4:6], "little") == 2:
        error = -int.from_bytes(answer[16:20], "little", signed=True)
        if error == 1:
            raise PermissionError(error, "refused")
        if error == 95 or (error == 22 and protocol == 12):
            raise NotHere("this kernel has no nftables")


@probe(control="namespaces")
def raw_socket():
    """A raw socket, which could forge and read packets, cannot be made."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return "a raw socket"


@probe(control="namespaces")
def packet_socket():
    """A packet socket, which reads all traffic, cannot be made."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    return "a packet socket"


# address family → number: what reaches past every namespace, or old code of the kernel.
FAMILIES = {
    "vsock": 40,
    "alg": 38,
    "bluetooth": 31,
    "can": 29,
    "tipc": 30,
    "rds": 21,
    "key": 15,
    "x25": 9,
    "ax25": 3,
    "appletalk": 5,
    "llc": 26,
    "ib": 27,
    "kcm": 41,
    "qipcrtr": 42,
    "smc": 43,
    "xdp": 44,
    "mctp": 45,
    "nfc": 39,
    "ieee802154": 36,
    "phonet": 35,
    "pppox": 24,
}


@probe()
def foreign_socket_families():
    """No socket of a family other than UNIX, INET, INET6 and NETLINK can be made (vsock, alg, …)."""
    for name, number in FAMILIES.items():
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW):
            with contextlib.suppress(OSError):
                socket.socket(number, kind).close()
                return name
    if not FACTS["sandboxed"]:
        raise NotHere("this kernel has none of them for this user")
    return None


@probe()
def hypervisor_socket():
    """AF_VSOCK, which no network namespace holds, cannot be used to talk to the hypervisor."""
    try:
        socket.socket(40, socket.SOCK_STREAM).close()
    except OSError as error:
        if not FACTS["sandboxed"]:
            raise NotHere(f"this kernel has no AF_VSOCK: {error.strerror}") from None
        raise
    return "a vsock socket"


@probe()
def programs_of_the_host():
    """systemd-run, busctl, dbus-send, docker, podman and at find nobody to talk to."""
    import subprocess

    tries = (
        ["systemd-run", "--user", "--wait", "true"],
        ["busctl", "--user", "list"],
        ["docker", "info"],
        ["tmux", "-S", FACTS["sockets"]["tmux"], "ls"],
    )
    if not FACTS["sandboxed"]:
        return _connect(FACTS["sockets"]["dbus_session"])
    for command in tries:
        if shutil.which(command[0]):
            with contextlib.suppress(subprocess.TimeoutExpired):
                if subprocess.run(command, capture_output=True, timeout=10).returncode == 0:
                    return " ".join(command)
    return None


@probe()
def scheduled_jobs():
    """No crontab, at job or user unit of the host can be written."""
    if not FACTS["sandboxed"]:
        return os.path.isdir("/var/spool") and "/var/spool"
    for path in ("/var/spool/cron", "/var/spool/at", "/etc/cron.d", "/etc/systemd/system"):
        if os.path.isdir(path):
            return path
    return None


DEVICES = {
    "tun": "the device that makes network interfaces",
    "kvm": "the hypervisor",
    "fuse": "file systems in user space",
    "mem": "the memory of the machine",
    "kmsg": "the log of the kernel",
    "loop-control": "loop devices",
    "console": "the console",
    "tty0": "the console's terminal",
    "disks": "disks",
}


def _device_probe(name):
    def look():
        names = os.listdir("/dev")
        kinds = {
            "disks": ("vd", "sd", "nvme", "loop", "dm-", "mapper", "disk"),
        }
        if name == "tun":
            there = os.path.exists("/dev/net/tun") and "/dev/net/tun"
        elif name in kinds:
            there = next((f"/dev/{n}" for n in names if n.startswith(kinds[name])), None)
        elif name == "console" and FACTS["sandboxed"]:
            # bwrap puts the terminal of the session there.
            there = None
        else:
            there = name in names and f"/dev/{name}"
        if not there and not FACTS["sandboxed"]:
            raise NotHere(f"this machine has no /dev/{name}")
        return there

    return look


for _name, _what in DEVICES.items():
    probe()(
        named(
            f"device_{_name.replace('-', '_')}",
            f"The device of {_what} is not there.",
            _device_probe(_name),
        )
    )


@probe()
def every_device():
    """/dev holds the standard nodes and nothing else."""
    known = {"console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr"}
    known |= {"stdin", "stdout", "tty", "urandom", "zero"}
    extra = set(os.listdir("/dev")) - known
    return f"{sorted(extra)[:5]}" if extra else None


@probe()
def terminals_of_others():
    """No other terminal of the host can be opened: its pts directory is not the host's."""
    file = os.open(FACTS["other_terminal"], os.O_RDWR | os.O_NOCTTY)
    os.write(file, CANARY.encode())
    return FACTS["other_terminal"]


@probe(only_root="only root may make device nodes, with or without a sandbox")
def make_a_device():
    """No device node can be made, in the project or in /tmp."""
    import stat

    from probes import call

    for place in (FACTS["project"], "/tmp"):
        with contextlib.suppress(OSError):
            path = f"{place}/made-device"
            call("mknodat", -100, path.encode(), stat.S_IFCHR | 0o600, os.makedev(1, 1))
            os.unlink(path)
            return path
    return None
