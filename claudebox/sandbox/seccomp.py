"""The system call filter, as a classic BPF program made with the standard library."""

import os

from claudebox import Failure

# Numbers from the kernel's arch/x86/entry/syscalls/syscall_64.tbl and
# include/uapi/asm-generic/unistd.h; None where an architecture has no such call.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

EPERM, ENOSYS, EOPNOTSUPP, EAFNOSUPPORT = 1, 38, 95, 97

# What an agent's work never needs: system call → (x86_64, aarch64, errno). Kernel keyrings are not
# namespaced, so without the first three the session keyring of the host is readable inside.
DENIED = {
    "add_key": (248, 217, EPERM),
    "request_key": (249, 218, EPERM),
    "keyctl": (250, 219, EPERM),
    "bpf": (321, 280, EPERM),
    "perf_event_open": (298, 241, EPERM),
    "userfaultfd": (323, 282, EPERM),
    # ENOSYS makes libuv and others fall back to epoll.
    "io_uring_setup": (425, 425, ENOSYS),
    "io_uring_enter": (426, 426, ENOSYS),
    "io_uring_register": (427, 427, ENOSYS),
    "kexec_load": (246, 104, EPERM),
    "kexec_file_load": (320, 294, EPERM),
    "init_module": (175, 105, EPERM),
    "finit_module": (313, 273, EPERM),
    "delete_module": (176, 106, EPERM),
    "open_by_handle_at": (304, 265, EPERM),
    # The answer of a file system that has no handles.
    "name_to_handle_at": (303, 264, EOPNOTSUPP),
    "fanotify_init": (300, 262, EPERM),
    "swapon": (167, 224, EPERM),
    "swapoff": (168, 225, EPERM),
    "reboot": (169, 142, EPERM),
    "syslog": (103, 116, EPERM),
    "acct": (163, 89, EPERM),
    "quotactl": (179, 60, EPERM),
    "quotactl_fd": (443, 443, EPERM),
    "settimeofday": (164, 170, EPERM),
    "clock_settime": (227, 112, EPERM),
    "vhangup": (153, 58, EPERM),
    "iopl": (172, None, EPERM),
    "ioperm": (173, None, EPERM),
    "modify_ldt": (154, None, EPERM),
    "uselib": (134, None, EPERM),
    "lookup_dcookie": (212, 18, EPERM),
    "kcmp": (312, 272, EPERM),
}

# What only a program that makes a sandbox of its own needs. Denied as well, unless the plan lets
# namespaces be nested: without them nothing of the sandbox's own mounts can be undone or covered.
DENIED_UNLESS_NESTED = {
    "mount": (165, 40, EPERM),
    "umount2": (166, 39, EPERM),
    "pivot_root": (155, 41, EPERM),
    "chroot": (161, 51, EPERM),
    "move_mount": (429, 429, EPERM),
    "open_tree": (428, 428, EPERM),
    "open_tree_attr": (467, 467, EPERM),
    "fsopen": (430, 430, EPERM),
    "fsconfig": (431, 431, EPERM),
    "fsmount": (432, 432, EPERM),
    "fspick": (433, 433, EPERM),
    "mount_setattr": (442, 442, EPERM),
    "setns": (308, 268, EPERM),
    # Its flags lie in memory, where no filter can look; the C library and Go then use clone.
    "clone3": (435, 435, ENOSYS),
}

# The same for the flags of these two, which are their first argument: CLONE_NEWNS, NEWCGROUP,
# NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET, and for unshare NEWTIME (in clone that bit is part
# of a signal's number).
CLONE, UNSHARE = (56, 220), (272, 97)
NEW_NAMESPACES, NEW_TIME = 0x7E020000, 0x80

# Address families that a socket may have: UNIX, INET, INET6, NETLINK. The others reach drivers that
# no network namespace or filter holds (AF_VSOCK: the hypervisor), or old kernel code.
SOCKET, SOCKETPAIR = (41, 198), (53, 199)
ALLOWED_FAMILIES = (1, 2, 10, 16)

# Requests that type into, or draw on, the terminal that the sandbox shares with the host, or that
# leave it deaf or closed to others (a line discipline, exclusive use) when the session is over.
IOCTL = (16, 29)
DENIED_IOCTLS = {
    "TIOCSTI": 0x5412,
    "TIOCLINUX": 0x541C,
    "TIOCCONS": 0x541D,
    "TIOCSETD": 0x5423,
    "TIOCEXCL": 0x540C,
}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# struct seccomp_data: nr, arch, instruction pointer, six 64-bit arguments. Both architectures are
# little-endian: the low word of the second argument is at 24.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_X32_BIT = 0x40000000


def program(machine: str | None = None, nested_namespaces: bool = False) -> bytes:
    """Return the filter for `machine` (default: this one) as packed `struct sock_filter`s.

    `nested_namespaces` lets through what makes namespaces and mounts.
    A call of a foreign architecture kills the process; x32, which shares x86_64's architecture
    word, gets ENOSYS. Of an ioctl request only the low 32 bits are compared, as the kernel does:
    a 64-bit comparison is passed by setting a higher bit (CVE-2019-10063).
    Raises Failure on an architecture that there are no numbers for.
    """
    machine = machine or os.uname().machine
    if machine not in _ARCHITECTURES:
        raise Failure(
            f"there is no system call filter for {machine}",
            f"claudebox runs on {' and '.join(_ARCHITECTURES)}",
        )
    architecture, column = _ARCHITECTURES[machine]
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        instructions += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _ERRNO | ENOSYS)]
    denied = list(DENIED.values())
    if not nested_namespaces:
        denied += DENIED_UNLESS_NESTED.values()
    for *numbers, errno in denied:
        if numbers[column] is not None:
            instructions += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ERRNO | errno)]
    if not nested_namespaces:
        for call, flags in ((CLONE, NEW_NAMESPACES), (UNSHARE, NEW_NAMESPACES | NEW_TIME)):
            instructions += [
                (_EQUAL, 0, 4, call[column]),
                (_LOAD, 0, 0, _FIRST_ARGUMENT),
                (_ANY_BIT, 0, 1, flags),
                (_RETURN, 0, 0, _ERRNO | EPERM),
                (_RETURN, 0, 0, _ALLOW),
            ]
    count = len(ALLOWED_FAMILIES)
    for call in (SOCKET, SOCKETPAIR):
        instructions += [(_EQUAL, 0, count + 3, call[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
        for index, family in enumerate(ALLOWED_FAMILIES):
            instructions.append((_EQUAL, count - index, 0, family))
        instructions += [(_RETURN, 0, 0, _ERRNO | EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)]
    instructions += [(_EQUAL, 1, 0, IOCTL[column]), (_RETURN, 0, 0, _ALLOW)]
    instructions.append((_LOAD, 0, 0, _SECOND_ARGUMENT))
    for request in DENIED_IOCTLS.values():
        instructions += [(_EQUAL, 0, 1, request), (_RETURN, 0, 0, _ERRNO | EPERM)]
    instructions.append((_RETURN, 0, 0, _ALLOW))
    from _struct import pack

    return b"".join(pack("=HBBI", *instruction) for instruction in instructions)
