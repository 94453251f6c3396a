"""Probes for the kernel: calls that the work never needs, namespaces, mounts, settings, old call tables."""

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import stat
import struct

from probes import FACTS, ON_X86, NotHere, call, declare, in_child, named, reached

probe = declare("processes and kernel")

HOME = os.environ.get("HOME", "/")
_AT = -100

# name → (what it would be good for, arguments that do nothing, only_root).
# The arguments are looked at by the kernel before it asks who calls, where that can be had.
_ROOT = "the kernel refuses it to everybody but root"
CALLS = {
    "keyctl": ("kernel keyrings", (9999,), None),
    "add_key": ("kernel keyrings", (None, None, None, 0, 0), None),
    "request_key": ("kernel keyrings", (None, None, None, 0), None),
    "bpf": ("programs in the kernel", (9999, None, 0), None),
    "perf_event_open": ("counters and traces", (None, 0, -1, -1, 0), None),
    "userfaultfd": ("holding the kernel at a page fault", (1,), None),
    "io_uring_setup": ("calls past the filter", (0, None), None),
    "io_uring_enter": ("calls past the filter", (-1, 0, 0, 0, None, 0), None),
    "io_uring_register": ("calls past the filter", (-1, 0, None, 0), None),
    "kexec_load": ("another kernel", (0, 0, None, 0xFFFFFFFF), _ROOT),
    "kexec_file_load": ("another kernel", (-1, -1, 0, None, 0xFFFFFFFF), _ROOT),
    "init_module": ("kernel modules", (None, 0, None), _ROOT),
    "finit_module": ("kernel modules", (-1, None, 0xFFFFFFFF), _ROOT),
    "delete_module": ("kernel modules", (None, 0), _ROOT),
    "open_by_handle_at": ("files past the mounts", (-1, None, 0), None),
    "fanotify_init": ("watching all files", (0x200, 0), None),
    "swapon": ("swap", (None, 0), _ROOT),
    "swapoff": ("swap", (None,), _ROOT),
    # The magic numbers are wrong on purpose.
    "reboot": ("a reboot", (0, 0, 0, None), None),
    "syslog": ("the kernel's log", (3, None, 0), _ROOT),
    "acct": ("accounting of all processes", (b"/nonexistent/claudebox",), _ROOT),
    "quotactl": ("quotas", (-1, None, 0, None), None),
    "quotactl_fd": ("quotas", (-1, -1, 0, None), None),
    # A time that there is not: EINVAL comes first.
    "settimeofday": ("the clock", (struct.pack("qq", 1, -1), None), None),
    "clock_settime": ("the clock", (9999, None), None),
    "iopl": ("ports of the hardware", (9,), None),
    "ioperm": ("ports of the hardware", (0, 0, 0), None),
    "modify_ldt": ("segments of the processor", (0, None, 0), None),
    "uselib": ("old libraries", (None,), None),
    "lookup_dcookie": ("paths of other processes", (0, None, 0), _ROOT),
    "kcmp": ("addresses of the kernel", (0, 0, 0, 0, 0), None),
}


def _call_probe(name, arguments):
    return lambda: reached(name, *arguments)


for _name, (_what, _arguments, _only_root) in CALLS.items():
    probe(
        only_root=_only_root,
        control="namespaces" if _name == "reboot" else "outside",
    )(
        named(
            f"call_{_name}",
            f"The call {_name} ({_what}) does not reach the kernel.",
            _call_probe(_name, _arguments),
        )
    )


@probe(no_control="success would hang up the terminal of the tests")
def call_vhangup():
    """The call vhangup (hanging up the terminal) does not reach the kernel."""
    if FACTS["sandboxed"]:
        call("vhangup")
        return "the terminal was hung up"
    return None


@probe()
def io_uring():
    """No ring can be made that makes calls past the filter."""
    os.close(call("io_uring_setup", 1, (ctypes.c_ubyte * 120)()))
    return "io_uring_setup"


@probe()
def hold_the_kernel():
    """No userfaultfd can be made, by the call or by its device."""
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/userfaultfd", os.O_RDWR))
        return "/dev/userfaultfd"
    os.close(call("userfaultfd", 1))
    return "userfaultfd"


@probe()
def count_events():
    """No counter of the own process can be opened, with which kernels were attacked."""
    # PERF_TYPE_SOFTWARE, its size, PERF_COUNT_SW_TASK_CLOCK; exclude_kernel and exclude_hv.
    attributes = struct.pack("IIQ", 1, 112, 1) + bytes(24) + struct.pack("Q", 0x60) + bytes(64)
    os.close(call("perf_event_open", attributes, 0, -1, -1, 0))
    return "perf_event_open"


# ------------------------------------------------------------------------------ namespaces

NAMESPACES = {
    "user": 0x10000000,
    "mount": 0x20000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x8000000,
    "uts": 0x4000000,
    "cgroup": 0x2000000,
}


def _unshare(flag):
    return lambda: call("unshare", flag) == 0 and "unshare"


for _name, _flag in NAMESPACES.items():
    probe(control="namespaces")(
        named(
            f"unshare_{_name}",
            f"No {_name} namespace can be made by unshare.",
            _unshare(_flag),
        )
    )


@probe()
def clone_a_user_namespace():
    """No user namespace can be made by clone."""
    child = call("clone", 0x10000000 | signal.SIGCHLD, None, None, None, None)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "clone"


def _clone3(flags):
    def attempt():
        arguments = struct.pack("11Q", flags, 0, 0, 0, signal.SIGCHLD, *[0] * 6)
        child = call("clone3", arguments, len(arguments))
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return "clone3"

    return attempt


probe()(
    named(
        "clone3_a_user_namespace",
        "No user namespace can be made by clone3, whose flags no filter can see.",
        _clone3(0x10000000),
    )
)
probe(control="namespaces")(
    named(
        "clone3_other_namespaces",
        "No mount and pid namespace can be made by clone3.",
        _clone3(0x20000 | 0x20000000),
    )
)


def _in_own_namespace(action):
    """Return a probe that does `action` as root of a user and mount namespace of its own, if it can."""

    def attempt():
        uid, gid = os.getuid(), os.getgid()
        call("unshare", NAMESPACES["user"] | NAMESPACES["mount"])
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        return action()

    return attempt


def _mount(source, target, kind, flags, data=None):
    call("mount", source.encode(), target.encode(), kind and kind.encode(), flags, data)


def _mount_tmpfs():
    _mount("tmpfs", FACTS["project"] + "/crash", "tmpfs", 0)
    return "mount"


def _mount_overlay():
    project = FACTS["project"]
    _mount("tmpfs", project + "/crash", "tmpfs", 0)
    for name in ("upper", "work"):
        os.mkdir(f"{project}/crash/{name}")
    options = f"lowerdir=/usr,upperdir={project}/crash/upper,workdir={project}/crash/work"
    _mount("overlay", project + "/links", "overlay", 0, options.encode())
    return "overlay"


def _undo_mount():
    # MNT_DETACH
    call("umount2", HOME.encode(), 2)
    return "umount"


def _bind_root():
    # MS_BIND | MS_REC
    _mount("/", FACTS["project"] + "/crash", None, 4096 | 16384)
    return "bind"


for _name, _sentence, _action in (
    ("mount", "No file system can be mounted in a namespace of one's own.", _mount_tmpfs),
    ("overlay", "No overlay can be mounted in a namespace of one's own.", _mount_overlay),
    ("bind", "Nothing can be bound elsewhere in a namespace of one's own.", _bind_root),
):
    probe()(named(f"own_namespace_{_name}", _sentence, _in_own_namespace(_action)))


@probe()
def own_namespace_proc():
    """No /proc can be mounted in namespaces of one's own."""

    def action():
        call("unshare", NAMESPACES["pid"])
        child = in_child(lambda: _mount("proc", FACTS["project"] + "/crash", "proc", 0))
        return os.waitpid(child, 0)[1] == 0 and "a new /proc"

    return _in_own_namespace(action)()


@probe()
def own_network_namespace():
    """No network namespace can be made in which one is root, where nftables was attacked."""
    call("unshare", NAMESPACES["user"] | NAMESPACES["net"])
    return "unshare"


def _directly(name, sentence, action):
    probe(control="namespaces")(named(name, sentence, action))


_directly("mount_a_tmpfs", "No file system can be mounted.", _mount_tmpfs)
_directly("mount_an_overlay", "No overlay can be mounted.", _mount_overlay)
_directly("bind_the_root", "Nothing can be bound elsewhere.", _bind_root)


@probe(control="namespaces")
def unmount_the_home():
    """The empty home directory cannot be unmounted, to show what is below it."""
    if not FACTS["sandboxed"]:
        _mount("tmpfs", HOME, "tmpfs", 0)
    return _undo_mount()


@probe(control="namespaces")
def unmount_a_protection():
    """What covers a protected file cannot be unmounted."""
    target = f"{FACTS['project']}/.git/hooks"
    if not FACTS["sandboxed"]:
        _mount(target, target, None, 4096)
    call("umount2", target.encode(), 2)
    return "umount"


@probe(control="namespaces")
def unmount_a_mask():
    """What covers /proc/keys and /proc/sys cannot be unmounted."""
    if not FACTS["sandboxed"]:
        _mount("/dev/null", "/proc/keys", None, 4096)
    for path in ("/proc/keys", "/proc/sys", "/proc/kallsyms"):
        with contextlib.suppress(OSError):
            call("umount2", path.encode(), 2)
            return path
    return None


@probe(control="namespaces")
def make_writable_again():
    """A read-only mount cannot be made writable again by mount(2)."""
    target = f"{FACTS['project']}/.git/hooks"
    if not FACTS["sandboxed"]:
        # MS_RDONLY
        _mount("tmpfs", target, "tmpfs", 1)
    # MS_REMOUNT | MS_BIND
    _mount("none", target, None, 32 | 4096)
    return "remount"


@probe(control="namespaces")
def make_writable_again_by_attributes():
    """A read-only mount cannot be made writable again by mount_setattr."""
    target = f"{FACTS['project']}/.git/hooks"
    if not FACTS["sandboxed"]:
        _mount(target, target, None, 4096)
    # attr_clr = MOUNT_ATTR_RDONLY
    call("mount_setattr", _AT, target.encode(), 0, struct.pack("4Q", 0, 1, 0, 0), 32)
    return "mount_setattr"


@probe(control="namespaces")
def move_a_mount():
    """A mount cannot be moved out of the way by mount(2)."""
    project = FACTS["project"]
    if not FACTS["sandboxed"]:
        _mount(f"{project}/.git/hooks", f"{project}/.git/hooks", None, 4096)
    # MS_MOVE
    _mount(f"{project}/.git/hooks", f"{project}/crash", None, 8192)
    return "MS_MOVE"


@probe(control="namespaces")
def move_a_mount_by_descriptor():
    """A mount cannot be moved out of the way by move_mount."""
    project = FACTS["project"]
    if not FACTS["sandboxed"]:
        _mount(f"{project}/.git/hooks", f"{project}/.git/hooks", None, 4096)
    call("move_mount", _AT, f"{project}/.git/hooks".encode(), _AT, f"{project}/crash".encode(), 0)
    return "move_mount"


@probe(control="namespaces")
def clone_a_tree_of_mounts():
    """No detached copy of a tree of mounts can be made by open_tree."""
    # OPEN_TREE_CLONE | AT_RECURSIVE
    os.close(call("open_tree", _AT, b"/", 1 | 0x8000))
    return "open_tree"


@probe(control="namespaces")
def open_a_file_system():
    """No file system can be made by fsopen and fsmount."""
    context = call("fsopen", b"tmpfs", 0)
    # FSCONFIG_CMD_CREATE
    call("fsconfig", context, 6, None, None, 0)
    os.close(call("fsmount", context, 0, 0))
    return "fsopen"


@probe(control="namespaces")
def pick_a_file_system():
    """The settings of a mounted file system cannot be got at by fspick."""
    if not FACTS["sandboxed"]:
        _mount_tmpfs()
    place = HOME if FACTS["sandboxed"] else FACTS["project"] + "/crash"
    os.close(call("fspick", _AT, place.encode(), 0))
    return "fspick"


@probe(control="namespaces")
def exchange_the_root():
    """The root cannot be exchanged by pivot_root."""
    place = FACTS["project"] + "/crash"
    try:
        if not FACTS["sandboxed"]:
            _mount("tmpfs", place, "tmpfs", 0)
        call("pivot_root", place.encode(), place.encode())
    except OSError as error:
        # EINVAL of a root that is shared or not a mount point comes after the question who asks.
        if error.errno in (errno.EINVAL, errno.EBUSY):
            return "pivot_root was refused by the kernel itself"
        raise
    return "pivot_root"


@probe(control="namespaces")
def change_the_root():
    """chroot, with a directory open outside it, is no way up: it is refused."""
    outside = os.open("/", os.O_RDONLY)
    call("chroot", FACTS["project"].encode())
    os.fchdir(outside)
    return "chroot"


@probe(control="namespaces")
def enter_a_namespace():
    """No namespace of another process can be entered by setns."""
    for pid in ("1", "self", str(FACTS["victim"])):
        for name in ("mnt", "net", "uts", "ipc", "cgroup", "pid", "user"):
            with contextlib.suppress(OSError):
                file = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
                call("setns", file, 0)
                return f"/proc/{pid}/ns/{name}"
    return None


@probe(control="namespaces")
def enter_a_process():
    """The namespaces of a process cannot be entered by its pidfd."""
    for pid in (1, os.getppid()):
        with contextlib.suppress(OSError):
            call("setns", call("pidfd_open", pid, 0), 0x4000000)
            return f"setns to {pid}"
    return None


@probe(no_control="the kernel gives nobody the namespace above its own")
def find_the_namespace_above():
    """The user namespace above the own one cannot be had from the kernel (NS_GET_PARENT)."""
    import fcntl

    # NS_GET_USERNS, NS_GET_PARENT of user and pid namespaces.
    for kind, request in (("uts", 0xB701), ("user", 0xB702), ("pid", 0xB702)):
        with contextlib.suppress(OSError):
            file = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
            above = fcntl.ioctl(file, request)
            if os.readlink(f"/proc/self/fd/{above}") == FACTS["namespaces"].get(kind):
                return f"the {kind} namespace above"
            call("setns", above, 0)
            return f"the {kind} namespace above was entered"
    return None


@probe(control="namespaces")
def change_the_name_of_the_host():
    """The names of host and domain cannot be set."""
    for name in ("sethostname", "setdomainname"):
        with contextlib.suppress(OSError):
            call(name, b"probe", 5)
            return name
    return None


@probe(control="namespaces")
def mount_the_control_groups():
    """The tree of control groups cannot be mounted."""
    _mount("cgroup2", FACTS["project"] + "/crash", "cgroup2", 0)
    return "cgroup2"


@probe(no_control="a new hierarchy would be one of the whole machine")
def mount_the_old_control_groups():
    """No old control group hierarchy, with its release_agent, can be mounted."""
    if not FACTS["sandboxed"]:
        return None
    try:
        _mount("cgroup", FACTS["project"] + "/crash", "cgroup", 0, b"none,name=claudebox-probe")
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
        return f"the kernel itself answered {errno.errorcode[error.errno]}"
    return "cgroup"


@probe()
def control_groups_of_the_host():
    """The control groups of the host are not there: none can be left, no release_agent be written."""
    return os.path.isdir("/sys/fs/cgroup") and "/sys/fs/cgroup"


@probe(control="namespaces")
def mount_kernel_file_systems():
    """sysfs, debugfs, tracefs, securityfs, mqueue and binfmt_misc cannot be mounted."""
    names = ("sysfs", "mqueue", "devpts", "debugfs", "tracefs", "securityfs", "binfmt_misc")
    for name in names:
        with contextlib.suppress(OSError):
            _mount(name, FACTS["project"] + "/crash", name, 0)
            return name
    return None


@probe()
def kernel_file_systems():
    """debugfs, tracefs, securityfs, bpf and configfs are not there."""
    return os.path.isdir("/sys/kernel") and "/sys/kernel"


# ------------------------------------------------------------------------------ settings


@probe(only_root="only root may write settings of the kernel, with or without a sandbox")
def settings_of_the_kernel():
    """No file of /proc that is not a process's own can be opened for writing."""
    for directory, names, files in os.walk("/proc"):
        if directory == "/proc":
            names[:] = [n for n in names if not n.isdigit() and n not in ("self", "thread-self")]
        for name in files:
            path = f"{directory}/{name}"
            # Every user of the machine may wait for pressure.
            if directory == "/proc/pressure":
                continue
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                status = os.stat(path)
                if not (stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)):
                    return path
    return None


SETTINGS = (
    "kernel/core_pattern",
    "kernel/modprobe",
    "kernel/poweroff_cmd",
    "fs/binfmt_misc/register",
    "kernel/randomize_va_space",
    "kernel/sysrq",
    "vm/drop_caches",
    "kernel/ns_last_pid",
    "net/ipv4/ip_forward",
)


def _setting(name):
    def attempt():
        path = f"/proc/sys/{name}"
        if not FACTS["sandboxed"] and not os.path.exists(path):
            raise NotHere(f"this kernel has no {path}")
        # Opened, never written.
        os.close(os.open(path, os.O_WRONLY))
        return path

    return attempt


for _name in SETTINGS:
    probe(only_root="only root may write settings of the kernel, with or without a sandbox")(
        named(
            f"setting_{_name.replace('/', '_')}",
            f"The setting {_name.replace('/', '.')} cannot be opened for writing.",
            _setting(_name),
        )
    )

MASKED = {
    "kcore": "the memory of the machine",
    "kallsyms": "addresses of the kernel",
    "kmsg": "the kernel's log",
    "sysrq-trigger": "commands to the kernel",
    "timer_list": "timers",
    "sched_debug": "the scheduler",
    "latency_stats": "waiting times",
}


def _masked(name):
    def attempt():
        path = f"/proc/{name}"
        if not FACTS["sandboxed"] and not os.path.exists(path):
            raise NotHere(f"this kernel has no {path}")
        flags = os.O_WRONLY if name == "sysrq-trigger" else os.O_RDONLY
        file = os.open(path, flags | os.O_NONBLOCK)
        status = os.fstat(file)
        covered = stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)
        return None if covered else path

    return attempt


for _name, _what in MASKED.items():
    probe(
        only_root="only root may open it, with or without a sandbox"
        if _name in ("kcore", "kmsg", "sysrq-trigger", "timer_list")
        else None,
    )(
        named(
            f"masked_{_name.replace('-', '_')}",
            f"/proc/{_name} ({_what}) is covered.",
            _masked(_name),
        )
    )


@probe(only_root="only root may write there, with or without a sandbox")
def interrupts_and_buses():
    """/proc/irq, /proc/bus and /proc/fs take no writing."""
    for place in ("irq", "bus", "fs", "acpi", "scsi", "driver", "tty"):
        for directory, _, files in os.walk(f"/proc/{place}"):
            for name in files:
                with contextlib.suppress(OSError):
                    os.close(os.open(f"{directory}/{name}", os.O_WRONLY | os.O_NONBLOCK))
                    return f"{directory}/{name}"
    return None


# ------------------------------------------------------------------------------ other tables


def _machine_code(code: bytes) -> int:
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()


@probe()
def i386_call():
    """A call of the i386 table (int 0x80), whose numbers the filter does not know, ends the process."""
    if not ON_X86:
        raise NotHere("this is not x86_64")
    # mov eax, 20 (getpid); int 0x80; ret
    result = _machine_code(bytes.fromhex("b814000000cd80c3"))
    if result == -errno.ENOSYS and not FACTS["sandboxed"]:
        raise NotHere("this kernel has no i386 calls")
    return f"getpid returned {result}" if result > 0 else None


@probe()
def i386_keyctl():
    """keyctl cannot be called by its number in the i386 table."""
    if not ON_X86:
        raise NotHere("this is not x86_64")
    # mov eax, 288 (keyctl); mov ebx, 9999; int 0x80; ret; rbx is kept.
    result = _machine_code(bytes.fromhex("53b820010000bb0f270000cd805bc3"))
    if result == -errno.ENOSYS and not FACTS["sandboxed"]:
        raise NotHere("this kernel has no i386 calls")
    return f"keyctl answered {result}" if result != -errno.EPERM else None


@probe()
def x32_call():
    """A call of the x32 table, whose numbers have a bit more, is not made."""
    if not ON_X86:
        raise NotHere("this is not x86_64")
    from probes import libc

    result = libc.syscall(ctypes.c_long(0x40000000 | 39))
    if result == -1:
        if not FACTS["sandboxed"]:
            raise NotHere("this kernel has no x32 calls")
        return None
    return f"getpid returned {result}"


@probe()
def keyctl_with_high_bits():
    """Bits above the 32 of a call's number do not get keyctl past the filter."""
    from probes import libc

    number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    libc.syscall(ctypes.c_long(1 << 32 | number), ctypes.c_long(9999))
    code = ctypes.get_errno()
    if code in (errno.EPERM, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    return f"keyctl answered {errno.errorcode.get(code, code)}"
