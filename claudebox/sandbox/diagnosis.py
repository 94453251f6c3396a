"""Says why bwrap could not make a sandbox, from its own words and from the kernel's settings."""

import os


def _setting(name: str) -> str | None:
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
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "kernel.apparmor_restrict_unprivileged_userns is 1: give /usr/bin/bwrap an AppArmor"
            " profile with `userns,`, or set it to 0"
        )
    if _setting("user/max_user_namespaces") == "0":
        return (
            "user.max_user_namespaces is 0: set it higher (sysctl user.max_user_namespaces=10000)"
        )
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "kernel.unprivileged_userns_clone is 0: set it to 1 (sysctl)"
    if "namespace" in words or "Operation not permitted" in words or "mount proc" in words:
        if os.path.exists("/run/.containerenv") or os.path.exists("/.dockerenv"):
            return "this is a container that forbids user namespaces or a new /proc: start claudebox outside"
        if os.getuid() != 0 or _in_user_namespace():
            return "user namespaces are forbidden here, perhaps by a container around this one"
    return None


def _in_user_namespace() -> bool:
    try:
        with open("/proc/self/uid_map") as file:
            return file.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return False
