"""Nix: whether its daemon's socket may be inside, and what profiles take from its store.

`decision` reads files alone. `packages` and `devshell` run nix, outside, and keep what it said.
"""

import os

from claudebox import Failure, host, policy

_FILE_LIMIT = 1 << 20
_INCLUDE_LIMIT = 10
# Former names of settings (`nix show-config --json`, "aliases"); nix 2.8 and later obey both.
_ALIASES = {
    "build-use-chroot": "sandbox",
    "build-use-sandbox": "sandbox",
    "build-chroot-dirs": "sandbox-paths",
    "build-sandbox-paths": "sandbox-paths",
    "build-extra-chroot-dirs": "extra-sandbox-paths",
    "build-extra-sandbox-paths": "extra-sandbox-paths",
}
_DEFAULTS = {
    "sandbox": ["true"],
    "sandbox-paths": [],
    "trusted-users": ["root"],
    "allowed-users": ["*"],
}


class _Unsure(Exception):
    """What is not known, and so counts as unsafe; the message says what."""


# ---------------------------------------------------------------------------- the daemon's socket


def decision(mode: str = "auto") -> dict | None:
    """Return the plan's `nix`: whether the daemon's socket is inside, and why; None without one.

    A build runs outside the sandbox, so with `auto` the socket is inside only where the daemon
    sandboxes its builds itself and this user cannot tell it not to. Raises Failure where `trust`
    asks for a socket that there is none of. Takes one system call on a host without a daemon.
    """
    if mode not in policy.NIX_MODES:
        raise Failure(
            f'--nix "{mode}" is unknown', f"choose one of {', '.join(policy.NIX_MODES)}", status=2
        )
    if not _is_socket(policy.NIX_SOCKET):
        if mode == "trust":
            raise Failure(
                f"--nix=trust: there is no nix daemon: {policy.NIX_SOCKET} is not there",
                "install or start one, or leave the option out",
            )
        return None
    if mode == "off":
        return {"socket": False, "trust": False, "reason": "--nix=off"}
    unsafe = why_unsafe()
    if mode == "trust":
        reason = "--nix=trust" + (f", although {unsafe}" if unsafe else "")
        return {"socket": True, "trust": True, "reason": reason}
    if unsafe:
        return {"socket": False, "trust": False, "reason": f"{unsafe} (--nix=trust lets it in)"}
    return {"socket": True, "trust": False, "reason": "it sandboxes its builds"}


def _is_socket(path: str) -> bool:
    try:
        return os.lstat(path).st_mode & 0o170000 == 0o140000
    except OSError:
        return False


def socket_mounts() -> list[dict]:
    """Return the mounts that make the daemon usable inside: the store, and the socket."""
    return [_store_mount(), policy.nix_socket_mount()]


def store_mounts(mounts=()) -> list[dict]:
    """Return the mounts that make the store visible inside where `mounts`, a plan's, do not yet."""
    if any(mount["target"] == policy.NIX_STORE for mount in mounts) or host.shows_store():
        return []
    return [_store_mount()]


def _store_mount() -> dict:
    place = policy.NIX_STORE
    return {"kind": "ro-bind", "source": place, "target": place, "reason": "toolchain"}


def client_directory(project_root: str) -> str | None:
    """Return the directory in the store that holds `nix`, if the host has one that is there."""
    found = host.find_program("nix", project_root, ("/nix/var/nix/profiles/default/bin",))
    directory = os.path.dirname(os.path.realpath(found)) if found else ""
    return directory if policy.is_within(directory, policy.NIX_STORE) else None


def why_unsafe() -> str | None:
    """Return why builds of the daemon would be a way out of the sandbox, or None if they are not.

    What is not known counts as unsafe: the daemon must be root's, its configuration readable in
    full, its sandboxing on, and this user not one who may switch that off (`trusted-users`).
    """
    try:
        _refuse_other_daemon()
        settings = configuration()
        _refuse_loose_sandbox(settings)
        _refuse_rights(settings)
    except _Unsure as unsure:
        return str(unsure)
    return None


def why_unsandboxed() -> str | None:
    """The same without regard to who asks: for builds that claudebox itself asks for."""
    try:
        _refuse_other_daemon()
        _refuse_loose_sandbox(configuration())
    except _Unsure as unsure:
        return str(unsure)
    return None


def _refuse_other_daemon() -> None:
    directory = policy.NIX_SOCKET_DIRECTORY
    if os.path.realpath(directory) != directory:
        raise _Unsure(f"{directory} is, or lies behind, a symbolic link")
    for path in (directory, policy.NIX_SOCKET):
        try:
            status = os.lstat(path)
        except OSError as error:
            raise _Unsure(f"{path} cannot be looked at: {error.strerror}") from None
        # A daemon of another user obeys that user's own files and variables as well.
        if status.st_uid != 0:
            raise _Unsure(f"{path} is not root's")
        if path == directory and status.st_mode & 0o022:
            raise _Unsure(f"{path} can be written by others than root")


def _refuse_loose_sandbox(settings: dict) -> None:
    sandbox = " ".join(settings["sandbox"])
    if sandbox != "true":
        raise _Unsure(f"the nix daemon builds with sandbox = {sandbox}")
    for word in settings["sandbox-paths"]:
        path = os.path.realpath(word.rpartition("=")[2].removesuffix("?"))
        if not any(policy.is_within(path, place) for place in policy.NIX_HARMLESS_SANDBOX_PATHS):
            raise _Unsure(f"the nix daemon shows its builds {path} (sandbox-paths)")


def _refuse_rights(settings: dict) -> None:
    import grp
    import pwd

    uid = os.getuid()
    if uid == 0:
        raise _Unsure("root may switch the sandboxing of the nix daemon off")
    try:
        name = pwd.getpwuid(uid).pw_name
        numbers = set(os.getgrouplist(name, os.getgid()))
    except KeyError:
        name, numbers = str(uid), set()
    numbers |= {os.getgid(), *os.getgroups()}

    def matches(entries):
        for entry in entries:
            if entry in ("*", name):
                return True
            if entry.startswith("@"):
                try:
                    group = grp.getgrnam(entry[1:])
                except KeyError:
                    continue
                if group.gr_gid in numbers or name in group.gr_mem:
                    return True
        return False

    if matches(settings["trusted-users"]):
        raise _Unsure(
            f"{name} is one of the nix daemon's trusted-users, who may switch its sandboxing off"
        )
    if not matches(settings["allowed-users"]):
        raise _Unsure(f"{name} is none of the nix daemon's allowed-users")


def configuration(files=None) -> dict[str, list[str]]:
    """Return the daemon's settings that the decision needs, each as a list of words.

    Reads `files` (nix.conf(5)), by default those of the system: not the user's own, which count for
    the user's commands and not for the daemon. Raises what `why_unsafe` returns where one cannot be
    read in full.
    """
    settings = dict(_DEFAULTS)
    for file in files or policy.NIX_CONFIGURATION:
        try:
            text = _read(file)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _Unsure(f"{file} cannot be read: {error.strerror}") from None
        _apply(text, file, settings, 0)
    return settings


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        text = file.read(_FILE_LIMIT + 1)
    if len(text) > _FILE_LIMIT:
        raise _Unsure(f"{path} is larger than {_FILE_LIMIT} bytes")
    return text


def _apply(text: bytes, path: str, settings: dict, depth: int) -> None:
    # nix takes other blanks than these for letters.
    if any(character in text for character in (b"\0", b"\v", b"\f")):
        raise _Unsure(f"{path} holds control characters")
    for line in text.split(b"\n"):
        words = [os.fsdecode(word) for word in line.partition(b"#")[0].split()]
        if not words:
            continue
        if words[0] in ("include", "!include") and len(words) == 2:
            _include(words, path, settings, depth)
            continue
        if len(words) < 2 or words[1] != "=":
            raise _Unsure(f"{path} has a line that is not understood: {' '.join(words)}")
        name, value = _ALIASES.get(words[0], words[0]), words[2:]
        if name in settings:
            settings[name] = value
        elif name.startswith("extra-") and name[len("extra-") :] in settings:
            settings[name[len("extra-") :]] = [*settings[name[len("extra-") :]], *value]


def _include(words: list[str], path: str, settings: dict, depth: int) -> None:
    file = os.path.join(os.path.dirname(path), words[1])
    if depth >= _INCLUDE_LIMIT:
        raise _Unsure(f"{path} includes files too deeply")
    try:
        text = _read(file)
    except FileNotFoundError:
        if words[0] == "!include":
            return
        raise _Unsure(f"{path} includes {file}, which is not there") from None
    except OSError as error:
        raise _Unsure(f"{path} includes {file}, which cannot be read: {error.strerror}") from None
    _apply(text, file, settings, depth + 1)


# ---------------------------------------------------------------------------- for profiles


def packages(references: list[str], home: str, project_root: str) -> dict[str, list[str]]:
    """Return for each reference the `bin` directories in the store that hold its programs.

    A reference is an attribute of nixpkgs (`jq`) or a flake reference (`github:owner/name#jq`). What
    was built once is remembered, with a root that keeps it from garbage collection: then no program
    is run. Raises Failure for a reference that is none, without nix, and when a build fails.
    """
    from claudebox import nix_store

    return nix_store.packages(references, home, project_root)


def devshell(
    reference: str | None, project_root: str, home: str, trust: bool = False, hidden=()
) -> tuple[list[str], dict[str, str]]:
    """Return the PATH directories and the variables of a flake's development shell.

    `reference` is None for the default one of the project's flake, `#NAME` for another one of it,
    or a flake reference. Nothing of the shell is executed. Builds that it needs are the daemon's;
    `trust` is for a daemon that does not sandbox them. The evaluation does not see what the patterns
    `hidden` match. Raises Failure.
    """
    from claudebox import nix_store

    return nix_store.devshell(reference, project_root, home, trust, hidden)
