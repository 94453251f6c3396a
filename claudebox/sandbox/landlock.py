"""Scopes signals and abstract sockets: what runs inside reaches none outside (landlock(7))."""

import os
import stat
from _struct import pack

from claudebox.sandbox import libc

# The same numbers on every architecture.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_CREATE_RULESET_VERSION = 1
# LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and LANDLOCK_SCOPE_SIGNAL came with version 6, Linux 6.12.
_SCOPES, VERSION_WITH_SCOPES = 0b11, 6


def version() -> int:
    """Return the version of the kernel's Landlock, 0 if it has none."""
    try:
        return libc.call("syscall", _CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def obstacle(bwrap: str) -> str | None:
    """Return why processes started through the program `bwrap` cannot be scoped, or None if they can.

    Whoever restricts itself gives up what a set-user-ID program, or one with file capabilities,
    would get: such a bwrap could not make a sandbox any more.
    """
    if version() < VERSION_WITH_SCOPES:
        return "this kernel has no Landlock that scopes signals and sockets (Linux 6.12 can have)"
    if _gives_rights(bwrap):
        return f"{bwrap} gets its rights from its file, which Landlock would take away"
    return None


def _gives_rights(program: str) -> bool:
    try:
        return bool(
            os.stat(program).st_mode & stat.S_ISUID or os.getxattr(program, "security.capability")
        )
    except OSError:
        # ENODATA: it has no capabilities.
        return False


def scope() -> None:
    """Restrict this process, and what comes after it; raises OSError if that cannot be.

    From now on it can send signals to its descendants and itself only, and connect only to abstract
    sockets that they made. Nothing about files is restricted, so mounts can still be made.
    """
    libc.forbid_new_privileges()
    # struct landlock_ruleset_attr: handled accesses to files, to the network, and the scopes.
    attributes = pack("QQQ", 0, 0, _SCOPES)
    ruleset = libc.call("syscall", _CREATE_RULESET, attributes, len(attributes), 0)
    libc.call("syscall", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
