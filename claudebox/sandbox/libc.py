"""The C library calls that Python 3.11 does not offer: unshare, mount, prctl and bare system calls.

`_ctypes` alone costs 1 ms to import, `ctypes` on top of it another 3 to 9.
"""

import _ctypes
import os
from _struct import pack

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_SIGKILL = 9

# The same numbers on every architecture that claudebox runs on.
_CLONE3, _CLONE_INTO_CGROUP, _CLONE_PARENT, _SIGCHLD = 435, 0x200000000, 0x8000, 17
# Docker's filter of system calls knows what clone is asked for, and allows no clone3.
_CLONE = {"x86_64": 56, "aarch64": 220}


class _Int(_ctypes._SimpleCData):
    _type_ = "i"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_library = _ctypes.dlopen(None, os.RTLD_NOW)


def call(name: str, *arguments: int | bytes | None) -> int:
    """Call a C function that returns -1 for an error; raises OSError with errno and the name.

    Bytes are handed over as a pointer to them, None is a null pointer.
    """
    result = _Function(_ctypes.dlsym(_library, name))(*arguments)
    if result == -1:
        number = _ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def fork_into(group: int) -> int:
    """As os.fork(), with the child in the control group whose directory the descriptor `group` is.

    For a process of one thread whose child executes a program soon: Python is not told of the fork.
    """
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
    # set_tid, set_tid_size, cgroup.
    arguments = pack("11Q", _CLONE_INTO_CGROUP, 0, 0, 0, _SIGCHLD, 0, 0, 0, 0, 0, group)
    return call("syscall", _CLONE3, arguments, len(arguments))


def fork_sibling() -> int:
    """As fork_into, but without a group, and the child's parent is the caller's own (clone(2))."""
    number = _CLONE[os.uname().machine]
    return call("syscall", number, _CLONE_PARENT | _SIGCHLD, None, None, None, None)


def unshare(flags: int) -> None:
    """Give the calling process namespaces of its own (`flags`: CLONE_NEW*)."""
    call("unshare", flags)


def mount_proc() -> None:
    """Mount, over /proc, the one of this process's pid namespace: in a mount namespace of its own."""
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    call("mount", b"proc", b"/proc", b"proc", flags, None)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however it ends.

    A parent that had ended before sends no signal: the caller has to find that out.
    """
    call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def forbid_new_privileges() -> None:
    """Have no program that this process executes give it more rights than it has."""
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def die_with(parent: int) -> None:
    """As die_with_parent, for `parent` (a pid); exits if that is not the parent any more."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(125)
