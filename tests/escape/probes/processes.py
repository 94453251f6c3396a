"""Probes for processes of the host, kernel keyrings, IPC objects and the terminal."""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct

from probes import CANARY, FACTS, ON_X86, NotHere, call, declare, in_child, libc, named

probe = declare("processes and kernel")


def _victim() -> int:
    return FACTS["victim"]


@probe()
def processes_that_can_be_seen():
    """/proc shows the processes of the sandbox alone."""
    return os.path.exists(f"/proc/{_victim()}") and f"/proc/{_victim()}"


@probe()
def signal_to_a_host_process():
    """A process of the host cannot be sent a signal by its pid."""
    os.kill(_victim(), 0)
    return "kill"


@probe()
def queued_signal_to_a_host_process():
    """No other call sends a signal to a process of the host: sigqueue, tgkill, tgsigqueue."""
    pid = _victim()
    info = (ctypes.c_ubyte * 128)()
    # si_code SI_QUEUE
    struct.pack_into("iii", info, 0, 0, 0, -1)
    for name, arguments in (
        ("tgkill", (pid, pid, 0)),
        ("rt_sigqueueinfo", (pid, 0, info)),
        ("rt_tgsigqueueinfo", (pid, pid, 0, info)),
    ):
        with contextlib.suppress(OSError):
            call(name, *arguments)
            return name
    return None


@probe()
def pidfd_of_a_host_process():
    """No pidfd of a process of the host can be had."""
    call("pidfd_open", _victim(), 0)
    return "pidfd_open"


@probe()
def descriptor_of_a_host_process():
    """No descriptor can be taken from a process of the host by pidfd_getfd."""
    handle = call("pidfd_open", _victim(), 0)
    taken = call("pidfd_getfd", handle, FACTS["victim_descriptor"], 0)
    return CANARY.encode() in os.pread(taken, 4096, 0) and "pidfd_getfd"


@probe(observed=True)
def signal_to_the_own_process_group():
    """A signal to the own process group does not reach the launcher's neighbours."""
    # SIGURG: ignored by whoever does not wait for it.
    os.kill(0, signal.SIGURG)


@probe()
def signals_by_a_terminal_owner():
    """No file can be made to signal a process of the host (F_SETOWN)."""
    reader, _ = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, _victim())
    if fcntl.fcntl(reader, fcntl.F_GETOWN) == _victim():
        return "F_SETOWN"
    return None


@probe()
def trace_a_host_process():
    """A process of the host cannot be traced."""
    pid = _victim()
    # PTRACE_SEIZE: it runs on.
    call("ptrace", 0x4206, pid, 0, 0)
    return "ptrace"


def _address_of_the_canary():
    return FACTS["victim_address"]


@probe()
def read_memory_of_a_host_process():
    """The memory of a process of the host cannot be read by process_vm_readv."""
    buffer = ctypes.create_string_buffer(64)
    local = struct.pack("PN", ctypes.addressof(buffer), 64)
    remote = struct.pack("PN", _address_of_the_canary(), 64)
    call("process_vm_readv", _victim(), local, 1, remote, 1, 0)
    return CANARY.encode() in buffer.raw and "process_vm_readv"


@probe()
def write_memory_of_a_host_process():
    """The memory of a process of the host cannot be written by process_vm_writev."""
    buffer = ctypes.create_string_buffer(CANARY.encode())
    local = struct.pack("PN", ctypes.addressof(buffer), 6)
    remote = struct.pack("PN", _address_of_the_canary(), 6)
    return call("process_vm_writev", _victim(), local, 1, remote, 1, 0) and "process_vm_writev"


@probe()
def memory_file_of_a_host_process():
    """/proc/PID/mem of a process of the host cannot be opened."""
    with open(f"/proc/{_victim()}/mem", "rb", buffering=0) as memory:
        memory.seek(_address_of_the_canary())
        return CANARY.encode() in memory.read(64) and "/proc/PID/mem"


@probe()
def maps_of_a_host_process():
    """The maps of a process of the host, and so its addresses, cannot be read."""
    with open(f"/proc/{_victim()}/maps") as file:
        return "stack" in file.read() and "/proc/PID/maps"


@probe()
def name_of_a_host_process():
    """Not even the name and state of a process of the host can be read."""
    with open(f"/proc/{_victim()}/status") as file:
        return file.read(30)


def _of_victim(name, sentence, attempt):
    probe()(named(f"{name}_of_a_host_process", sentence, attempt))


_of_victim(
    "limits",
    "The limits of a process of the host cannot be read.",
    lambda: call("prlimit64", _victim(), 7, 0, (ctypes.c_uint64 * 2)()) == 0 and "prlimit64",
)
_of_victim(
    "futexes",
    "The robust futexes of a process of the host cannot be found.",
    lambda: (
        call(
            "get_robust_list",
            _victim(),
            ctypes.byref(ctypes.c_long()),
            ctypes.byref(ctypes.c_long()),
        )
        == 0
        and "get_robust_list"
    ),
)
_of_victim(
    "affinity",
    "The processors of a process of the host cannot be chosen.",
    lambda: str(os.sched_getaffinity(_victim())),
)
_of_victim(
    "priority",
    "The priority of a process of the host cannot be read.",
    lambda: f"priority {os.getpriority(os.PRIO_PROCESS, _victim())}",
)
_of_victim(
    "session",
    "The session and process group of a process of the host cannot be read.",
    lambda: f"{os.getsid(_victim())} {os.getpgid(_victim())}",
)


@probe()
def pages_of_a_host_process():
    """The memory pages of a process of the host cannot be moved or advised."""
    pid = _victim()
    for name, arguments in (
        ("migrate_pages", (pid, 0, None, None)),
        ("move_pages", (pid, 0, None, None, None, 0)),
    ):
        try:
            call(name, *arguments)
            return name
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ESRCH, errno.ENOSYS, errno.EACCES):
                return f"{name} was refused by the kernel itself"
    return None


# ------------------------------------------------------------------------------ keyrings

_SESSION, _USER, _USER_SESSION = -3, -4, -5
_SEARCH, _READ, _DESCRIBE = 10, 11, 6


def _read_key(serial):
    buffer = ctypes.create_string_buffer(100)
    call("keyctl", _READ, serial, buffer, 100)
    return CANARY.encode() in buffer.raw and "the key"


def _search(keyring, description):
    return _read_key(call("keyctl", _SEARCH, keyring, b"user", description.encode(), 0))


@probe()
def key_of_the_session_keyring():
    """A key in the session keyring that the caller had cannot be found and read."""
    return _search(_SESSION, FACTS["session_key"])


@probe()
def key_of_the_user_keyring():
    """A key in the user's keyring cannot be found and read."""
    return _search(_USER, FACTS["user_key"])


@probe()
def key_by_its_number():
    """A key cannot be read by its serial number."""
    return _read_key(FACTS["session_key_serial"])


@probe()
def user_key_by_its_number():
    """A key of the user's keyring cannot be read by its serial number."""
    return _read_key(FACTS["user_key_serial"])


@probe()
def request_a_key():
    """request_key finds no key of the caller."""
    return _read_key(call("request_key", b"user", FACTS["session_key"].encode(), None, 0))


@probe()
def add_a_key():
    """No key can be left in the caller's session keyring for later."""
    key = call("add_key", b"user", b"claudebox-probe", b"x", 1, _SESSION)
    # KEYCTL_REVOKE
    call("keyctl", 3, key)
    return "add_key"


@probe()
def persistent_keyring():
    """The keyring that outlives sessions cannot be reached."""
    try:
        # KEYCTL_GET_PERSISTENT
        call("keyctl", 22, -1, _SESSION)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise NotHere("this kernel has no persistent keyrings") from None
        raise
    return "keyctl"


@probe()
def list_of_keys():
    """/proc/keys lists no key."""
    with open("/proc/keys") as file:
        return FACTS["session_key"] in file.read() and "/proc/keys"


@probe()
def users_of_keys():
    """/proc/key-users lists nobody."""
    with open("/proc/key-users") as file:
        return file.read(100)


# ------------------------------------------------------------------------------ IPC


@probe()
def shared_memory_by_key():
    """System V shared memory of the host cannot be attached by its key."""
    return _attach(call("shmget", FACTS["ipc_key"], 0, 0))


@probe()
def shared_memory_by_number():
    """System V shared memory of the host cannot be attached by its number."""
    return _attach(FACTS["shm"])


def _attach(number):
    # SHM_RDONLY
    address = call("shmat", number, None, 0o10000)
    return CANARY.encode() in ctypes.string_at(address, 32) and "shmat"


@probe()
def message_queue():
    """A System V message queue of the host cannot be read."""
    queue = call("msgget", FACTS["ipc_key"], 0)
    buffer = ctypes.create_string_buffer(72)
    # IPC_NOWAIT | MSG_COPY would need a special kernel: taken and put back.
    call("msgrcv", queue, buffer, 64, 0, 0o4000)
    call("msgsnd", queue, buffer, 32, 0o4000)
    return CANARY.encode() in buffer.raw and "msgrcv"


@probe()
def semaphore():
    """A System V semaphore of the host cannot be read."""
    # GETVAL
    return f"semctl {call('semctl', call('semget', FACTS['ipc_key'], 0, 0), 0, 12, 0)}"


@probe()
def list_of_ipc_objects():
    """/proc/sysvipc lists no object of the host."""
    for name in ("shm", "msg", "sem"):
        with open(f"/proc/sysvipc/{name}") as file:
            if any(line.split()[0] == str(FACTS["ipc_key"]) for line in file):
                return f"/proc/sysvipc/{name}"
    return None


@probe()
def posix_message_queue():
    """A POSIX message queue of the host cannot be read."""
    queue = call("mq_open", FACTS["mqueue"].encode(), os.O_RDWR | os.O_NONBLOCK, 0, None)
    buffer = ctypes.create_string_buffer(8192)
    call("mq_timedreceive", queue, buffer, 8192, None, None)
    call("mq_timedsend", queue, buffer, 32, 0, None)
    return CANARY.encode() in buffer.raw and "mq_receive"


@probe()
def posix_shared_memory():
    """POSIX shared memory of the host cannot be opened."""
    with open("/dev/shm/canary", "rb") as file:
        return CANARY.encode() in file.read() and "/dev/shm"


# ------------------------------------------------------------------------------ terminal


def _ioctl(number, request, argument=b"x"):
    if libc.ioctl(number, ctypes.c_ulong(request), argument) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _typed(request, path=None):
    def attempt():
        number = 0 if path is None else os.open(path, os.O_RDWR | os.O_NOCTTY)
        if not os.isatty(number):
            raise NotHere("there is no terminal")
        _ioctl(number, request)
        import termios

        termios.tcflush(number, termios.TCIFLUSH)
        return "TIOCSTI"

    return attempt


for _name, _sentence, _attempt in (
    ("type", "Nothing can be typed into the terminal (TIOCSTI).", _typed(0x5412)),
    (
        "type_with_a_high_bit",
        "A high bit in the request does not let TIOCSTI pass.",
        _typed(0x5412 | 1 << 32),
    ),
    (
        "type_by_dev_tty",
        "Nothing can be typed into the terminal by way of /dev/tty.",
        _typed(0x5412, "/dev/tty"),
    ),
    (
        "type_by_proc",
        "Nothing can be typed into the terminal by way of /proc/self/fd/0.",
        _typed(0x5412, "/proc/self/fd/0"),
    ),
):
    probe()(named(f"terminal_{_name}", _sentence, _attempt))


def _reaches(request):
    """Return a probe that is refused with EPERM by the filter, otherwise by a pty with something else."""

    def attempt():
        if not os.isatty(0):
            raise NotHere("there is no terminal")
        try:
            _ioctl(0, request)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise
            return f"the terminal itself answered {errno.errorcode[error.errno]}"
        return "it was done"

    return attempt


probe()(
    named(
        "terminal_selection",
        "Nothing can be pasted into a console by TIOCLINUX.",
        _reaches(0x541C),
    )
)
probe()(
    named(
        "terminal_selection_with_a_high_bit",
        "A high bit in the request does not let TIOCLINUX pass.",
        _reaches(0x541C | 1 << 40),
    )
)


def _changes_the_terminal(request, argument, back):
    """Return a probe that changes the terminal for whoever comes after, and undoes it at once."""

    def attempt():
        if not os.isatty(0):
            raise NotHere("there is no terminal")
        _ioctl(0, request, ctypes.byref(ctypes.c_int(argument)))
        _ioctl(0, *back)
        return "it was done"

    return attempt


# TIOCSETD to N_NULL (27) and back to N_TTY, TIOCEXCL and TIOCNXCL.
probe()(
    named(
        "terminal_line_discipline",
        "The terminal cannot be left deaf by another line discipline.",
        _changes_the_terminal(0x5423, 27, (0x5423, ctypes.byref(ctypes.c_int(0)))),
    )
)
probe()(
    named(
        "terminal_exclusive",
        "The terminal cannot be closed to everybody else.",
        _changes_the_terminal(0x540C, 0, (0x540D, None)),
    )
)


@probe(no_control="success would take the console of the machine")
def terminal_takes_the_console():
    """The output of the console cannot be redirected (TIOCCONS)."""
    if FACTS["sandboxed"]:
        _ioctl(0, 0x541D)
        return "TIOCCONS"
    return None


@probe(observed=True)
def terminal_modes():
    """Terminal modes that are set inside do not last."""
    import termios

    if os.isatty(0):
        # tcsetattr by a background process group would stop it.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        modes = termios.tcgetattr(0)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(0, termios.TCSANOW, modes)


# ------------------------------------------------------------------------------ who one is


def _status() -> dict[str, str]:
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t") for line in file if ":\t" in line)


def _set_of_capabilities(name):
    def look():
        value = _status()[name]
        return f"{name} is {value}" if int(value, 16) else None

    return look


for _name, _what in (
    ("CapInh", "inheritable"),
    ("CapPrm", "permitted"),
    ("CapEff", "effective"),
    ("CapBnd", "bounding"),
    ("CapAmb", "ambient"),
):
    probe(
        control="namespaces",
        no_control="nothing outside has such a capability"
        if _name in ("CapInh", "CapAmb")
        else None,
    )(
        named(
            f"capabilities_{_what}",
            f"The {_what} set of capabilities is empty.",
            _set_of_capabilities(_name),
        )
    )


@probe()
def process_one_is_held_as_well():
    """Process 1 inside has no capability, no way to new privileges, and the filter on it."""
    with open(f"/proc/{1 if FACTS['sandboxed'] else os.getppid()}/status") as file:
        status = dict(line.rstrip("\n").split(":\t") for line in file if ":\t" in line)
    if int(status["CapEff"], 16) or int(status["CapBnd"], 16):
        return "process 1 has capabilities"
    if status["NoNewPrivs"] != "1":
        return "process 1 may gain privileges"
    return "process 1 has no filter" if status["Seccomp"] != "2" else None


@probe()
def filter_is_there():
    """The system call filter is on."""
    return "no filter" if _status()["Seccomp"] != "2" else None


@probe(only_root="only root may become another user, with or without a sandbox")
def become_another_user():
    """Neither uid nor groups can be changed to those of another user."""
    for change in (lambda: os.setgroups([0]), lambda: os.setresuid(1, 1, 1), lambda: os.setgid(2)):
        with contextlib.suppress(OSError):
            change()
            return "another user"
    return None


def _own_namespace(kind):
    def look():
        name = os.readlink(f"/proc/self/ns/{kind}")
        return name if name == FACTS["namespaces"][kind] else None

    return look


for _kind in ("user", "pid", "ipc", "uts", "mnt"):
    probe()(
        named(
            f"namespace_{_kind}",
            f"The {_kind} namespace is not the caller's.",
            _own_namespace(_kind),
        )
    )


@probe()
def name_of_the_host():
    """The host's name does not show."""
    return socket.gethostname() if socket.gethostname() == FACTS["hostname"] else None


@probe()
def path_of_the_control_group():
    """The path of the control group of the host does not show."""
    with open("/proc/self/cgroup") as file:
        paths = {line.rstrip("\n").split(":", 2)[2] for line in file}
    # A group that claudebox made for the session says nothing of those above it.
    paths = {path for path in paths if not path.startswith("/claudebox-") or path.count("/") > 1}
    if paths <= {"/"}:
        if not FACTS["sandboxed"]:
            raise NotHere("the caller itself is in the topmost control group")
        return None
    return f"{sorted(paths)}"


@probe()
def trace_past_the_filter():
    """A traced process cannot be made to make a refused call after the filter looked at another."""
    if not ON_X86:
        raise NotHere("written for x86_64")

    def be_traced():
        call("ptrace", 0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)

    child = in_child(be_traced)
    os.waitpid(child, 0)
    # PTRACE_SYSCALL to the entry of its next call, PTRACE_POKEUSER of orig_rax and rdi, its exit.
    call("ptrace", 24, child, 0, 0)
    os.waitpid(child, 0)
    call("ptrace", 6, child, 120, 250)
    call("ptrace", 6, child, 112, 9999)
    call("ptrace", 24, child, 0, 0)
    os.waitpid(child, 0)
    word = ctypes.c_long()
    call("ptrace", 3, child, 80, ctypes.byref(word))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if -word.value in (errno.EPERM, errno.ENOSYS):
        raise OSError(-word.value, "refused")
    return f"keyctl answered {word.value}"
