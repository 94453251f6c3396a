"""What this distribution calls a package, and the commands that install it."""

import os

# By ID and ID_LIKE of os-release(5).
_MANAGERS = {
    "debian": "apt",
    "ubuntu": "apt",
    "fedora": "dnf",
    "rhel": "dnf",
    "centos": "dnf",
    "arch": "pacman",
    "suse": "zypper",
    "opensuse": "zypper",
    "alpine": "apk",
    "nixos": "nix",
}
# The program of each, for a distribution that names none of the above.
_PROGRAMS = {
    "apt": "apt-get",
    "dnf": "dnf",
    "pacman": "pacman",
    "zypper": "zypper",
    "apk": "apk",
    "nix": "nix",
}
# Where a package is not called by the name of its project. Debian's Node.js finds certificates only
# with ca-certificates, which npm does not depend on.
_NAMES = {
    "apt": {"npm": ("npm", "ca-certificates")},
    "zypper": {"npm": ("npm-default",)},
    "nix": {"npm": ("nodejs",)},
}
_INSTALL = {
    # Without a list of packages, as in an image, apt-get finds none. The recommendations of npm alone
    # are hundreds of packages.
    "apt": (
        ("apt-get", "update"),
        ("apt-get", "install", "-y", "--no-install-recommends"),
    ),
    "dnf": (("dnf", "install", "-y"),),
    "pacman": (("pacman", "-S", "--needed", "--noconfirm"),),
    "zypper": (("zypper", "--non-interactive", "install"),),
    "apk": (("apk", "add"),),
    "nix": (("nix", "--extra-experimental-features", "nix-command flakes", "profile", "install"),),
}
_UPGRADE = {
    "apt": (("apt-get", "update"), ("apt-get", "install", "-y", "--only-upgrade")),
    "dnf": (("dnf", "upgrade", "-y"),),
    "pacman": (("pacman", "-Syu"),),
    "zypper": (("zypper", "--non-interactive", "update"),),
    "apk": (("apk", "upgrade", "--update-cache"),),
    "nix": (("nix", "--extra-experimental-features", "nix-command flakes", "profile", "upgrade"),),
}


class Command:
    """A command that changes the host: its words, and whether root has to run it."""

    __slots__ = ("as_root", "words")

    def __init__(self, *words: str, as_root: bool = False):
        self.words = words
        self.as_root = as_root

    def __eq__(self, other):
        return isinstance(other, Command) and self.argv(None) == other.argv(None)

    def __hash__(self):
        return hash((self.words, self.as_root))

    def __repr__(self):
        return f"Command({self.line('sudo')!r})"

    def argv(self, becoming_root: str | None) -> list[str]:
        """Return the words to execute; `becoming_root` is a program that does that, None for none."""
        if not self.as_root or becoming_root is None:
            return list(self.words)
        if becoming_root == "su":
            import shlex

            # A login shell: without one, PATH lacks the sbin directories on Debian.
            return ["su", "-l", "-c", shlex.join(self.words)]
        return [becoming_root, *self.words]

    def line(self, becoming_root: str | None) -> str:
        """Return the command as it is typed in a shell."""
        import shlex

        return shlex.join(self.argv(becoming_root))


class Distribution:
    """A Linux distribution: its `name`, and its package `manager`, None for one that is unknown."""

    def __init__(self, name: str, manager: str | None):
        self.name = name
        self.manager = manager

    def install(self, packages) -> list[Command]:
        """Return what installs the packages, named as their projects; empty if nothing is known."""
        return self._commands(_INSTALL, packages)

    def upgrade(self, packages) -> list[Command]:
        """Return what brings packages that are installed up to date."""
        return self._commands(_UPGRADE, packages)

    def _commands(self, table, packages) -> list[Command]:
        if self.manager is None or not packages:
            return []
        names = {}
        for package in packages:
            names.update(dict.fromkeys(_NAMES.get(self.manager, {}).get(package, (package,))))
        prefix = "nixpkgs#" if self.manager == "nix" and table is _INSTALL else ""
        *before, last = table[self.manager]
        as_root = self.manager != "nix"
        return [
            *(Command(*words, as_root=as_root) for words in before),
            Command(*last, *(prefix + name for name in names), as_root=as_root),
        ]


def this(find_program) -> Distribution:
    """Return the distribution of this host; `find_program(name)` says where a program is, or None."""
    import platform

    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    name = release.get("PRETTY_NAME") or release.get("NAME") or "an unknown Linux"
    for identity in (release.get("ID", ""), *release.get("ID_LIKE", "").split()):
        # openSUSE says opensuse-leap, opensuse-tumbleweed, …
        manager = _MANAGERS.get(identity) or _MANAGERS.get(identity.partition("-")[0])
        if manager is not None:
            return Distribution(name, manager)
    for manager, program in _PROGRAMS.items():
        if find_program(program) is not None:
            return Distribution(name, manager)
    return Distribution(name, None)


def becoming_root(find_program) -> str | None:
    """Return the program that runs a command as root: None for root; su where nothing else is there."""
    if os.getuid() == 0:
        return None
    return next((name for name in ("sudo", "doas") if find_program(name) is not None), "su")
