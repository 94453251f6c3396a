"""Says why bwrap could not make a sandbox, from its own words and from the kernel's settings."""

import os

# The settings below /proc/sys that can forbid user namespaces, with the value that does.
APPARMOR = "kernel/apparmor_restrict_unprivileged_userns"
MAXIMUM = "user/max_user_namespaces"
CLONE = "kernel/unprivileged_userns_clone"
FORBIDDING = {APPARMOR: "1", MAXIMUM: "0", CLONE: "0"}


def setting(name: str) -> str | None:
    """Return the value of a setting below /proc/sys, or None on a kernel without it."""
    try:
        with open(f"/proc/sys/{name}") as file:
            return file.read().strip()
    except OSError:
        return None


def explain(words: str) -> tuple[str, str]:
    """Return what is wrong and what to do about it, for what bwrap wrote before it failed."""
    what = f"bwrap could not make the sandbox: {words or 'it said nothing'}"
    return what, _cause(words) or "run `bwrap --ro-bind / / true` to see whether bwrap works here"


def _cause(words: str) -> str | None:
    for name, forbidding in FORBIDDING.items():
        if setting(name) == forbidding:
            return (
                f"{name.replace('/', '.')} is {forbidding}, which forbids user namespaces;"
                " `claudebox doctor` has the command that mends it"
            )
    if "namespace" in words or "Operation not permitted" in words or "mount proc" in words:
        if in_container():
            return "this is a container that forbids user namespaces or a new /proc: start claudebox outside"
        if os.getuid() != 0 or _in_user_namespace():
            return "user namespaces are forbidden here, perhaps by a container around this one"
    return None


def in_container() -> bool:
    """Say whether podman, docker or systemd-nspawn (systemd's container interface) made this place."""
    marks = ("/run/.containerenv", "/.dockerenv", "/run/systemd/container")
    return any(os.path.exists(mark) for mark in marks)


def _in_user_namespace() -> bool:
    try:
        with open("/proc/self/uid_map") as file:
            return file.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return False
