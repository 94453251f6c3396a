"""The system call filter, run instruction by instruction by a small interpreter of classic BPF."""

import os
import struct
import subprocess
import sys

import pytest

from claudebox import Failure
from claudebox.sandbox import seccomp

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
EOPNOTSUPP = 0x0005005F
X86_64, AARCH64, I386, ARM = 0xC000003E, 0xC00000B7, 0x40000003, 0x40000028
ARCHITECTURES = {"x86_64": X86_64, "aarch64": AARCH64}
TIOCSTI, TIOCLINUX, TIOCCONS, TIOCGWINSZ, TCGETS = 0x5412, 0x541C, 0x541D, 0x5413, 0x5401
TIOCSETD, TIOCEXCL = 0x5423, 0x540C
IOCTL = {"x86_64": 16, "aarch64": 29}
SOCKET = {"x86_64": 41, "aarch64": 198}
SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
CLONE = {"x86_64": 56, "aarch64": 220}
UNSHARE = {"x86_64": 272, "aarch64": 97}
# linux/sched.h, by the namespace that each makes.
NAMESPACE_FLAGS = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
NEWTIME = 0x80
# What fork, pthread_create and posix_spawn of glibc hand to clone.
USUAL_CLONES = [0x01200011, 0x003D0F00, 0x00004111]

# Written down a second time, from the kernel's tables: (x86_64, aarch64, what comes back).
DENIED = {
    "acct": (163, 89, EPERM),
    "add_key": (248, 217, EPERM),
    "bpf": (321, 280, EPERM),
    "clock_settime": (227, 112, EPERM),
    "delete_module": (176, 106, EPERM),
    "fanotify_init": (300, 262, EPERM),
    "finit_module": (313, 273, EPERM),
    "init_module": (175, 105, EPERM),
    "io_uring_enter": (426, 426, ENOSYS),
    "io_uring_register": (427, 427, ENOSYS),
    "io_uring_setup": (425, 425, ENOSYS),
    "ioperm": (173, None, EPERM),
    "iopl": (172, None, EPERM),
    "kcmp": (312, 272, EPERM),
    "kexec_file_load": (320, 294, EPERM),
    "kexec_load": (246, 104, EPERM),
    "keyctl": (250, 219, EPERM),
    "lookup_dcookie": (212, 18, EPERM),
    "modify_ldt": (154, None, EPERM),
    "name_to_handle_at": (303, 264, EOPNOTSUPP),
    "open_by_handle_at": (304, 265, EPERM),
    "perf_event_open": (298, 241, EPERM),
    "quotactl": (179, 60, EPERM),
    "quotactl_fd": (443, 443, EPERM),
    "reboot": (169, 142, EPERM),
    "request_key": (249, 218, EPERM),
    "settimeofday": (164, 170, EPERM),
    "swapoff": (168, 225, EPERM),
    "swapon": (167, 224, EPERM),
    "syslog": (103, 116, EPERM),
    "uselib": (134, None, EPERM),
    "userfaultfd": (323, 282, EPERM),
    "vhangup": (153, 58, EPERM),
}

DENIED_UNLESS_NESTED = {
    "chroot": (161, 51, EPERM),
    "clone3": (435, 435, ENOSYS),
    "fsconfig": (431, 431, EPERM),
    "fsmount": (432, 432, EPERM),
    "fsopen": (430, 430, EPERM),
    "fspick": (433, 433, EPERM),
    "mount": (165, 40, EPERM),
    "mount_setattr": (442, 442, EPERM),
    "move_mount": (429, 429, EPERM),
    "open_tree": (428, 428, EPERM),
    "open_tree_attr": (467, 467, EPERM),
    "pivot_root": (155, 41, EPERM),
    "setns": (308, 268, EPERM),
    "umount2": (166, 39, EPERM),
}

# What Claude, git, node, a shell and a compiler need.
NEEDED = {
    "x86_64": {
        "read": 0,
        "write": 1,
        "open": 2,
        "mmap": 9,
        "clone": 56,
        "execve": 59,
        "kill": 62,
        "ptrace": 101,
        "unshare": 272,
        "openat": 257,
        "clock_gettime": 228,
        "seccomp": 317,
        "memfd_create": 319,
        "statx": 332,
        "epoll_pwait2": 441,
        "landlock_create_ruleset": 444,
    },
    "aarch64": {
        "read": 63,
        "write": 64,
        "openat": 56,
        "mmap": 222,
        "clone": 220,
        "execve": 221,
        "kill": 129,
        "clock_gettime": 113,
        "memfd_create": 279,
        "statx": 291,
    },
}


def run(program, number, architecture, arguments=()):
    """Return what the filter answers to a system call; `struct seccomp_data` is built from it."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, architecture, 0x7F0000000000, *padded)
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator, counter = 0, 0
    while True:
        code, if_true, if_false, constant = instructions[counter]
        counter += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            counter += if_true if accumulator == constant else if_false
        elif code == 0x35:  # BPF_JMP | BPF_JGE | BPF_K
            counter += if_true if accumulator >= constant else if_false
        elif code == 0x45:  # BPF_JMP | BPF_JSET | BPF_K
            counter += if_true if accumulator & constant else if_false
        elif code == 0x06:  # BPF_RET | BPF_K
            return constant
        else:
            raise AssertionError(f"the filter uses instruction {code:#x}")


@pytest.fixture(params=ARCHITECTURES)
def machine(request):
    return request.param


@pytest.fixture
def call(machine):
    """Ask the filter of one machine about a system call of that machine."""
    program = seccomp.program(machine)
    return lambda number, *arguments: run(program, number, ARCHITECTURES[machine], arguments)


@pytest.fixture
def nested_call(machine):
    """The same of the filter that lets namespaces be nested."""
    program = seccomp.program(machine, nested_namespaces=True)
    return lambda number, *arguments: run(program, number, ARCHITECTURES[machine], arguments)


def test_these_tests_know_every_denied_call():
    assert DENIED.keys() == seccomp.DENIED.keys()
    assert DENIED_UNLESS_NESTED.keys() == seccomp.DENIED_UNLESS_NESTED.keys()


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (machine, name)
        for column, machine in enumerate(ARCHITECTURES)
        for name, entry in DENIED.items()
        if entry[column] is not None
    ],
)
def test_a_denied_call_fails_with_its_error(call, machine, name):
    number, answer = DENIED[name][list(ARCHITECTURES).index(machine)], DENIED[name][2]
    assert call(number) == answer
    assert call(number, 2**64 - 1, 2**64 - 1) == answer


@pytest.mark.parametrize("name", DENIED_UNLESS_NESTED)
def test_what_makes_a_sandbox_is_denied_unless_namespaces_may_be_nested(
    machine, call, nested_call, name
):
    number = DENIED_UNLESS_NESTED[name][list(ARCHITECTURES).index(machine)]
    assert call(number) == DENIED_UNLESS_NESTED[name][2]
    assert nested_call(number) == ALLOW


@pytest.mark.parametrize("name", DENIED)
def test_what_nesting_does_not_need_stays_denied_with_it(machine, nested_call, name):
    number = DENIED[name][list(ARCHITECTURES).index(machine)]
    assert number is None or nested_call(number) == DENIED[name][2]


@pytest.mark.parametrize("flag", NAMESPACE_FLAGS.values(), ids=NAMESPACE_FLAGS)
def test_no_namespace_can_be_made_unless_they_may_be_nested(machine, call, nested_call, flag):
    for number in (CLONE[machine], UNSHARE[machine]):
        for others in (0, 17, 0x3D0F00 | 17, 0xFFFFFFFF << 32):
            assert call(number, flag | others) == EPERM
            assert nested_call(number, flag | others) == ALLOW


def test_a_time_namespace_is_a_matter_of_unshare_alone(machine, call, nested_call):
    assert call(UNSHARE[machine], NEWTIME) == EPERM
    assert nested_call(UNSHARE[machine], NEWTIME) == ALLOW
    # To clone the bit is part of the number of the signal at the child's end.
    assert call(CLONE[machine], NEWTIME) == ALLOW


@pytest.mark.parametrize("flags", USUAL_CLONES)
def test_processes_and_threads_can_be_made(machine, call, flags):
    assert call(CLONE[machine], flags, NAMESPACE_FLAGS["user"]) == ALLOW


@pytest.mark.parametrize("flags", [0, 0x200, 0x400, 0x800, 0x600])
def test_what_threads_share_can_be_unshared(machine, call, flags):
    assert call(UNSHARE[machine], flags) == ALLOW


def test_what_work_needs_is_allowed(machine, call):
    assert {name for name, number in NEEDED[machine].items() if call(number) != ALLOW} == set()


def test_every_call_that_is_not_listed_is_allowed(machine, call):
    column = list(ARCHITECTURES).index(machine)
    denied = {entry[column] for entry in (*DENIED.values(), *DENIED_UNLESS_NESTED.values())}
    for number in range(600):
        if number not in denied | {IOCTL[machine], SOCKET[machine], SOCKETPAIR[machine]}:
            assert call(number) == ALLOW


def test_only_sockets_of_the_usual_families_can_be_made(machine, call):
    for family in range(50):
        usual = family in (1, 2, 10, 16)  # UNIX, INET, INET6, NETLINK
        for number in (SOCKET[machine], SOCKETPAIR[machine]):
            assert call(number, family) == (ALLOW if usual else 0x00050000 | 97)


@pytest.mark.parametrize("request_number", [TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD, TIOCEXCL])
def test_a_request_that_types_into_the_terminal_is_denied(machine, call, request_number):
    assert call(IOCTL[machine], 0, request_number) == EPERM


@pytest.mark.parametrize("request_number", [TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD, TIOCEXCL])
def test_a_higher_bit_in_the_request_does_not_pass_the_filter(machine, call, request_number):
    # The kernel reads 32 bits of it.
    for high in (1 << 32, 1 << 63, 0xFFFFFFFF << 32):
        assert call(IOCTL[machine], 0, request_number | high) == EPERM


@pytest.mark.parametrize("request_number", [TIOCGWINSZ, TCGETS, 0x5414, 0x540F, 0x5421, 0])
def test_the_other_requests_are_allowed(machine, call, request_number):
    assert call(IOCTL[machine], 0, request_number) == ALLOW


def test_only_the_second_argument_is_the_request(machine, call):
    assert call(IOCTL[machine], TIOCSTI, TCGETS, TIOCSTI) == ALLOW


@pytest.mark.parametrize("foreign", [I386, ARM, X86_64, AARCH64, 0, 0xFFFFFFFF])
def test_a_call_of_a_foreign_architecture_kills_the_process(machine, foreign):
    if foreign != ARCHITECTURES[machine]:
        for number in (0, 16, 29, 250, 219, 0xFFFFFFFF):
            assert run(seccomp.program(machine), number, foreign, (0, TCGETS)) == KILL


@pytest.mark.parametrize("number", [0, 16, 250, 512, 547])
def test_a_call_of_x32_does_not_exist(number):
    program = seccomp.program("x86_64")
    assert run(program, 0x40000000 | number, X86_64, (0, TIOCSTI)) == ENOSYS


def test_a_number_that_no_call_has_is_left_to_the_kernel():
    program = seccomp.program("x86_64")
    assert run(program, 0x3FFFFFFF, X86_64) == ALLOW
    assert run(program, 0xFFFFFFFF, X86_64) == ENOSYS


@pytest.mark.parametrize("nested", [False, True])
def test_every_path_through_the_filter_ends_in_it(machine, nested):
    program = seccomp.program(machine, nested)
    length = len(program) // 8
    assert len(program) % 8 == 0 and length <= 4096
    for index, (code, if_true, if_false, _) in enumerate(struct.iter_unpack("<HBBI", program)):
        if code in (0x15, 0x35, 0x45):
            assert index + 1 + max(if_true, if_false) < length
    assert struct.unpack("<HBBI", program[-8:]) == (0x06, 0, 0, ALLOW)


def test_the_filter_is_the_same_each_time(machine):
    assert seccomp.program(machine) == seccomp.program(machine)


def test_the_filters_of_two_machines_differ():
    assert seccomp.program("x86_64") != seccomp.program("aarch64")


@pytest.mark.parametrize("unknown", ["i686", "armv7l", "riscv64", "ppc64le", "X86_64", "x86_64 "])
def test_an_unknown_machine_is_refused_and_the_known_ones_are_named(unknown):
    with pytest.raises(Failure, match=f"no system call filter for {unknown}: .*x86_64 and aarch64"):
        seccomp.program(unknown)


def test_the_machine_that_this_runs_on_is_the_default(monkeypatch, machine):
    monkeypatch.setattr(
        seccomp.os, "uname", lambda: os.uname_result(("Linux", "host", "6", "1", machine))
    )
    assert seccomp.program() == seccomp.program(machine)


def test_an_unknown_machine_of_this_host_is_refused(monkeypatch):
    monkeypatch.setattr(
        seccomp.os, "uname", lambda: os.uname_result(("Linux", "host", "6", "1", "s390x"))
    )
    with pytest.raises(Failure, match="s390x"):
        seccomp.program()


INSTALL = """
import ctypes, os, sys
program = bytes.fromhex(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(len(program) // 8, program)), 0, 0) == 0
def call(*arguments):
    ctypes.set_errno(0)
    libc.syscall(*[ctypes.c_ulong(argument) for argument in arguments])
    return ctypes.get_errno()
print(call(int(sys.argv[2]), 0, 0x5412 | 1 << 32, 0), call(int(sys.argv[3]), 0, 0, 0, 0))
"""


@pytest.mark.skipif(os.uname().machine not in ARCHITECTURES, reason="no filter for this machine")
def test_this_kernel_accepts_the_filter_and_obeys_it():
    machine = os.uname().machine
    keyctl = DENIED["keyctl"][list(ARCHITECTURES).index(machine)]
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            INSTALL,
            seccomp.program().hex(),
            *map(str, (IOCTL[machine], keyctl)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.stdout, done.stderr) == ("1 1\n", "")
