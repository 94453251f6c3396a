"""What the probes share: how one is declared, how all are run, and how the kernel is called.

A probe is a function that tries to get at something. It returns what it got (LEAKED), or nothing or an
OSError (blocked); it raises NotHere where this machine has nothing to try (n/a). Its docstring is its
sentence: what holds when it is blocked.
"""

import ctypes
import errno
import json
import os
import signal
import sys
import time

# In two pieces: no file of the probes themselves holds it.
CANARY = "canary" + "-3c41d6"
# Seconds for one probe, on a loaded machine.
PATIENCE = 30

BLOCKED, LEAKED, NOT_APPLICABLE, ACTED, BROKEN = "blocked", "LEAKED", "n/a", "acted", "broken"


class NotHere(Exception):
    """This machine has nothing that the probe could try."""


class Probe:
    """A declared probe: its name, class, sentence, and where its control shows that it can find.

    `control` is "outside" (the same user without a sandbox) or "namespaces" (the same, as root of
    namespaces of its own). `only_root` says why a user's control cannot show it; `no_control` why
    none can. What an `observed` probe did is looked at from outside.
    """

    def __init__(self, kind, function, control, only_root, no_control, observed):
        self.kind = kind
        self.name = function.__name__
        self.sentence = function.__doc__.partition("\n")[0]
        self.function = function
        self.control = control
        self.only_root = only_root
        self.no_control = no_control
        self.observed = observed


PROBES: dict[str, Probe] = {}
FACTS: dict = {}
# Descriptors beyond the standard ones that were open when this process began.
INHERITED: list[int] = []


def declare(kind: str):
    """Return the decorator that declares probes of the class `kind`."""

    def decorator(*, control="outside", only_root=None, no_control=None, observed=False):
        def register(function):
            declared = Probe(kind, function, control, only_root, no_control, observed)
            if declared.name in PROBES:
                raise ValueError(f"two probes are called {declared.name}")
            PROBES[declared.name] = declared
            return function

        return register

    return decorator


def named(name: str, sentence: str, function):
    """Return `function` under another name and sentence: for probes that a table makes."""

    def made():
        return function()

    made.__name__ = name
    made.__doc__ = sentence
    return made


def run(probes) -> dict[str, list[str]]:
    """Run each probe in a process of its own and return name → [verdict, detail]."""
    return {probe.name: _run_one(probe) for probe in probes}


def _run_one(probe: Probe) -> list[str]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, json.dumps(_attempt(probe)).encode()[:4000])
        os._exit(0)
    os.close(writer)
    end = time.monotonic() + PATIENCE
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            return [BROKEN, "it did not end"]
        time.sleep(0.0005)
    answer = os.read(reader, 4096)
    os.close(reader)
    try:
        return json.loads(answer) if answer else [BLOCKED, "the probe was killed"]
    except ValueError:
        return [BROKEN, "a child of the probe went on as the probe"]


def _attempt(probe: Probe) -> list[str]:
    try:
        if probe.control == "namespaces" and not FACTS["sandboxed"]:
            # CLONE_NEWNS: what one such control mounts must not be in the way of the next.
            call("unshare", 0x20000)
        found = probe.function()
    except NotHere as reason:
        return [NOT_APPLICABLE, str(reason)]
    except OSError as error:
        return [ACTED if probe.observed else BLOCKED, errno.errorcode.get(error.errno, str(error))]
    except BaseException as error:
        return [BROKEN, f"{type(error).__name__}: {error}"]
    if probe.observed:
        return [ACTED, str(found or "")]
    return [LEAKED, str(found)[:300]] if found else [BLOCKED, ""]


# ------------------------------------------------------------------------------ the kernel

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
_COLUMN = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine, 0)
ON_X86 = os.uname().machine == "x86_64"

# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
NUMBERS = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_robust_list": (274, 100),
    "getpid": (39, 172),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "migrate_pages": (256, 238),
    "mknodat": (259, 33),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "mq_timedreceive": (243, 183),
    "mq_timedsend": (242, 182),
    "mq_unlink": (241, 181),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "semctl": (66, 191),
    "semget": (64, 190),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}


def call(name: str, *arguments) -> int:
    """Make a system call; return its result, raise OSError with its errno."""
    number = NUMBERS[name][_COLUMN]
    if number is None:
        raise NotHere(f"{os.uname().machine} has no {name}")
    # Each as a whole word: a plain int would be passed as 32 bits.
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def reached(
    name: str, *arguments, refusals=(errno.EPERM, errno.EACCES, errno.ENOSYS)
) -> str | None:
    """Say whether a call got past what refuses it: the arguments make it fail in the kernel itself.

    They are such that a success does no harm.
    """
    try:
        return f"{name} returned {call(name, *arguments)}"
    except OSError as error:
        if error.errno in refusals:
            raise
        return f"{name} was refused by the kernel itself: {errno.errorcode[error.errno]}"


def in_child(function) -> int:
    """Run `function` in a child, whose errors are its own, and return the child's pid."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def first(found) -> str | None:
    """Return the first thing that is something, or None."""
    return next((each for each in found if each), None)


def holds_canary(path, limit=1 << 20) -> str | None:
    """Return `path` if its beginning, read without blocking, holds the canary."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        content = os.read(file, limit)
    except OSError:
        return None
    finally:
        os.close(file)
    return os.fspath(path) if CANARY.encode() in content else None


def begin() -> None:
    """Note what this process was started with, and what it was told of the world."""
    listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    INHERITED.extend(
        number for number in map(int, os.listdir(listing)) if number > 2 and number != listing
    )
    # listdir reads through a duplicate of its own.
    INHERITED[:] = [number for number in INHERITED if _is_open(number)]
    os.close(listing)
    with open(os.path.join(os.path.dirname(sys.path[0]), "facts.json")) as file:
        FACTS.update(json.load(file))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
        return True
    except OSError:
        return False
