"""Facts of the host that a plan is made from: the user, the programs, the system's own files."""

import os

from claudebox import Failure, baked, policy

_ELF = b"\x7fELF"


def user() -> dict:
    """Return the plan's `user`: name, uid, gid and the resolved home directory."""
    import pwd

    uid = os.getuid()
    try:
        entry = pwd.getpwuid(uid)
        name, home = entry.pw_name, entry.pw_dir
    except KeyError:
        name, home = f"uid{uid}", ""
    home = os.environ.get("HOME") or home
    if not home.startswith("/") or not os.path.isdir(home):
        raise Failure(
            f"the home directory {home or '(not set)'} is not there",
            "set HOME to an existing directory",
        )
    return {"name": name, "uid": uid, "gid": os.getgid(), "home": os.path.realpath(home)}


SYSTEM_DIRECTORIES = ("/usr/bin", "/usr/local/bin", "/run/current-system/sw/bin")


def search_path(project_root: str) -> list[str]:
    """Return the directories of PATH that a program run outside may come from.

    Relative entries and directories inside the project or its repository are left out: an agent
    can have put a program there in an earlier session.
    """
    from claudebox import git

    project_root = git.toplevel(project_root) or project_root
    found = []
    for directory in os.environ.get("PATH", policy.SYSTEM_PATH).split(":"):
        inside = policy.is_within(os.path.realpath(directory), project_root)
        if directory.startswith("/") and not inside:
            found.append(directory)
    return found


def find_program(name: str, project_root: str, also: tuple[str, ...] = ()) -> str | None:
    """Return the path of the executable `name`, from PATH and then from the directories `also`.

    `git`, `bwrap` and `man` are run outside: the system's own come first. A build for the nix store
    has its own programs, which come before all.
    """
    if name in baked.PROGRAMS:
        return baked.PROGRAMS[name]
    first = () if name in ("claude", "node") else SYSTEM_DIRECTORIES
    for directory in (*first, *search_path(project_root), *also):
        candidate = f"{directory}/{name}"
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    return None


def bwrap(project_root: str) -> dict:
    """Return the plan's `bwrap`: its path, and which of the options that not all have it has.

    `disable_userns` is True or None; False is for a profile that lets namespaces be nested.
    `--disable-userns` came with bubblewrap 0.8.0, `--bind-fd` with 0.10 and Debian's 0.8.0; an
    option is there if the program has its name in it, which is quicker to see than to ask. Raises
    Failure if bwrap is not installed.
    """
    path = find_program("bwrap", project_root)
    if path is None:
        raise Failure(
            "bwrap was not found on PATH",
            "install bubblewrap (`claudebox doctor` says how)",
        )
    with open(path, "rb") as program:
        text = program.read()
    return {
        "path": os.path.realpath(path),
        "disable_userns": True if b"--disable-userns" in text else None,
        "bind_fd": b"--bind-fd" in text,
    }


def memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_nixos() -> bool:
    """Say whether programs live in /nix/store and /usr holds nothing but `env`."""
    return os.path.exists("/run/current-system/sw/bin") and not os.path.exists("/usr/lib")


def shows_store() -> bool:
    """Say whether the programs inside are those of /nix/store, and no /usr is there."""
    return bool(baked.PATH) or is_nixos()


def system_mounts() -> tuple[list[dict], str, str]:
    """Return the mounts that show the system's programs, their PATH, and the shell."""
    if baked.PATH:
        return _store_mounts(), ":".join(baked.PATH), baked.SHELL
    mounts = []
    if is_nixos():
        path = os.path.realpath("/run/current-system/sw/bin")
        mounts.append(_ro_bind("/nix/store", "system"))
        for link in ("/bin/sh", "/usr/bin/env"):
            target = os.path.realpath(link)
            mounts.append({"kind": "symlink", "source": target, "target": link, "reason": "system"})
        shell = os.path.realpath(path + "/bash")
    else:
        path = policy.SYSTEM_PATH
        mounts.append(_ro_bind("/usr", "system"))
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            directory = "/" + name
            if os.path.islink(directory):
                link = os.readlink(directory)
                mounts.append(
                    {"kind": "symlink", "source": link, "target": directory, "reason": "system"}
                )
            elif os.path.isdir(directory):
                mounts.append(_ro_bind(directory, "system"))
        shell = "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
    for file in policy.SYSTEM_FILES:
        if os.path.exists(file):
            mounts.append(_ro_bind(os.path.realpath(file), "system", target=file))
    if os.path.islink("/etc/localtime"):
        zone = os.path.realpath("/etc/localtime")
        mounts.append(
            {"kind": "symlink", "source": zone, "target": "/etc/localtime", "reason": "system"}
        )
    elif os.path.exists("/etc/localtime"):
        mounts.append(_ro_bind("/etc/localtime", "system"))
    return mounts, path, shell


def find_claude(project_root: str, home: str) -> str | None:
    """Return the path of the user's `claude`, also from where its installers put it, or None."""
    also = (f"{home}/.local/bin", f"{home}/.claude/local", "/usr/local/bin")
    return find_program("claude", project_root, also)


def _store_mounts() -> list[dict]:
    """Return the mounts of a system of which only /nix/store, and nothing of /usr, is shown."""
    mounts = [_ro_bind("/nix/store", "system")]
    links = {"/bin/sh": baked.SH, "/usr/bin/env": baked.ENV}
    for file in policy.SYSTEM_FILES_BESIDE_STORE:
        source = os.path.realpath(file)
        if os.path.isfile(source) and not policy.is_within(source, "/usr"):
            mounts.append(_ro_bind(source, "system", target=file))
    bundle = policy.CERTIFICATES_INSIDE
    for file in policy.CERTIFICATE_BUNDLES:
        source = os.path.realpath(file)
        if os.path.isfile(source) and not policy.is_within(source, "/usr"):
            mounts.append(_ro_bind(source, "system", target=bundle))
            break
    else:
        links[bundle] = baked.CERTIFICATES
    zone = os.path.realpath("/etc/localtime").partition("/zoneinfo/")[2]
    if zone:
        links["/etc/localtime"] = f"{baked.ZONEINFO}/{zone}"
    for target, source in links.items():
        mounts.append({"kind": "symlink", "source": source, "target": target, "reason": "system"})
    return mounts


def gate_programs() -> tuple[str, str]:
    """Return the paths, inside, of the shell and of the `env` that start what runs in a sandbox."""
    return baked.SH or "/bin/sh", baked.ENV or "/usr/bin/env"


def claude(project_root: str, home: str) -> tuple[list[dict], bool]:
    """Return the mounts that make `claude` a program inside, and whether PATH needs TOOLS_INSIDE.

    Claude Code is one ELF file (the native installer's ~/.local/share/claude/versions/N, or the
    npm package since 2.x), or a script of an npm package that needs that directory and node.
    Raises Failure if it is not installed.
    """
    found = find_claude(project_root, home)
    if found is None:
        raise Failure(
            "claude was not found on PATH",
            "install Claude Code (`claudebox doctor` says how), or put the directory it is in on PATH",
        )
    program = os.path.realpath(found)
    inside = policy.TOOLS_INSIDE + "/claude"
    if baked.PATH and "claude" in baked.PROGRAMS:
        return [], False
    if _shown_by_the_system(program):
        if os.path.dirname(found) in policy.SYSTEM_PATH.split(":"):
            return [], False
        return [_link(program, inside)], True
    if policy.is_within(program, policy.NIX_STORE):
        return [_ro_bind(policy.NIX_STORE, "toolchain"), _link(program, inside)], True
    try:
        with open(program, "rb") as file:
            first_line = file.readline(256)
    except OSError as error:
        raise Failure(
            f"{program} cannot be read: {error.strerror}", "reinstall Claude Code"
        ) from None
    if first_line.startswith(_ELF):
        return [_ro_bind(program, "toolchain", target=inside)], True
    package = _npm_package(program)
    mounts = [_ro_bind(package or program, "toolchain"), _link(program, inside)]
    if b"node" in first_line:
        node = find_program("node", project_root)
        if node is None:
            raise Failure(
                f"{program} needs node, which was not found on PATH",
                "install node, or Claude Code's own binary",
            )
        node = os.path.realpath(node)
        if not _shown_by_the_system(node):
            mounts.append(_ro_bind(node, "toolchain", target=policy.TOOLS_INSIDE + "/node"))
    return mounts, True


def _npm_package(program: str) -> str | None:
    directory = os.path.dirname(program)
    while directory != "/":
        if os.path.isfile(directory + "/package.json"):
            return directory
        directory = os.path.dirname(directory)
    return None


def _shown_by_the_system(path: str) -> bool:
    return policy.is_within(path, policy.NIX_STORE if shows_store() else "/usr")


def _ro_bind(source: str, reason: str, target: str | None = None) -> dict:
    return {"kind": "ro-bind", "source": source, "target": target or source, "reason": reason}


def _link(source: str, target: str) -> dict:
    return {"kind": "symlink", "source": source, "target": target, "reason": "toolchain"}
