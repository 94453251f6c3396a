"""The commands that install packages, for each distribution as its own os-release names it."""

import platform

import pytest

from claudebox import distribution
from claudebox.distribution import Command

# What the distributions' own files say.
RELEASES = {
    "Debian": ({"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"}, "apt"),
    "Ubuntu": ({"ID": "ubuntu", "ID_LIKE": "debian"}, "apt"),
    "Mint": ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "apt"),
    "Fedora": ({"ID": "fedora"}, "dnf"),
    "Rocky": ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "dnf"),
    "Arch": ({"ID": "arch"}, "pacman"),
    "Manjaro": ({"ID": "manjaro", "ID_LIKE": "arch"}, "pacman"),
    "Tumbleweed": ({"ID": "opensuse-tumbleweed", "ID_LIKE": "opensuse suse"}, "zypper"),
    "Leap": ({"ID": "opensuse-leap"}, "zypper"),
    "SLES": ({"ID": "sles", "ID_LIKE": "suse"}, "zypper"),
    "Alpine": ({"ID": "alpine"}, "apk"),
    "NixOS": ({"ID": "nixos"}, "nix"),
    "unknown": ({"ID": "hurd", "NAME": "Hurd"}, None),
}
INSTALLS = {
    "apt": [
        "sudo apt-get update",
        "sudo apt-get install -y --no-install-recommends bubblewrap npm ca-certificates",
    ],
    "dnf": ["sudo dnf install -y bubblewrap npm"],
    "pacman": ["sudo pacman -S --needed --noconfirm bubblewrap npm"],
    "zypper": ["sudo zypper --non-interactive install bubblewrap npm-default"],
    "apk": ["sudo apk add bubblewrap npm"],
    "nix": [
        "nix --extra-experimental-features 'nix-command flakes' profile install"
        " 'nixpkgs#bubblewrap' 'nixpkgs#nodejs'"
    ],
    None: [],
}
UPGRADES = {
    "apt": "apt-get install -y --only-upgrade bubblewrap",
    "dnf": "dnf upgrade -y bubblewrap",
    "pacman": "pacman -Syu bubblewrap",
    "zypper": "zypper --non-interactive update bubblewrap",
    "apk": "apk upgrade --update-cache bubblewrap",
    "nix": "nix --extra-experimental-features 'nix-command flakes' profile upgrade bubblewrap",
}


def nothing(_name):
    """Find no program."""


@pytest.fixture
def released(monkeypatch):
    """Give the host another os-release."""

    def set_release(entries):
        monkeypatch.setattr(platform, "freedesktop_os_release", lambda: entries)

    return set_release


@pytest.mark.parametrize(("release", "manager"), RELEASES.values(), ids=RELEASES)
def test_a_distribution_is_known_by_its_own_name_or_by_what_it_is_like(released, release, manager):
    released(release)
    assert distribution.this(nothing).manager == manager


@pytest.mark.parametrize("manager", INSTALLS)
def test_packages_are_installed_by_the_distributions_own_command_and_name(manager):
    commands = distribution.Distribution("", manager).install(["bubblewrap", "npm"])
    assert [command.line("sudo") for command in commands] == INSTALLS[manager]


@pytest.mark.parametrize("manager", UPGRADES)
def test_packages_are_upgraded_by_the_distributions_own_command(manager):
    commands = distribution.Distribution("", manager).upgrade(["bubblewrap"])
    assert commands[-1].line(None) == UPGRADES[manager]


def test_nothing_to_install_is_no_command():
    assert distribution.Distribution("", "apt").install([]) == []


def test_an_unknown_distribution_is_known_by_the_package_manager_that_it_has(released, monkeypatch):
    released({"ID": "own", "NAME": "Own Linux"})
    found = distribution.this(lambda name: "/sbin/apk" if name == "apk" else None)
    assert (found.name, found.manager) == ("Own Linux", "apk")

    def missing():
        raise FileNotFoundError

    monkeypatch.setattr(platform, "freedesktop_os_release", missing)
    assert distribution.this(nothing).manager is None


@pytest.mark.parametrize(
    ("uid", "there", "line"),
    [
        (0, ("sudo",), "apk add git"),
        (1000, ("sudo", "doas"), "sudo apk add git"),
        (1000, ("doas",), "doas apk add git"),
        (1000, (), "su -l -c 'apk add git'"),
    ],
)
def test_root_is_become_by_what_there_is(monkeypatch, uid, there, line):
    monkeypatch.setattr("os.getuid", lambda: uid)
    becoming = distribution.becoming_root(lambda name: name if name in there else None)
    assert Command("apk", "add", "git", as_root=True).line(becoming) == line


def test_what_the_user_can_do_is_not_done_as_root():
    assert Command("mkdir", "-p", "/home/a b/bin").line("sudo") == "mkdir -p '/home/a b/bin'"
