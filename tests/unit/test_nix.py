"""Whether the daemon's socket may be inside: what the daemon's configuration says."""

import grp
import os

import pytest

from claudebox import Failure, nix, policy

SAFE = {
    "sandbox": ["true"],
    "sandbox-paths": [],
    "trusted-users": ["root"],
    "allowed-users": ["*"],
}


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """Write the daemon's configuration and return what is read of it."""
    file = tmp_path / "nix.conf"
    monkeypatch.setattr(policy, "NIX_CONFIGURATION", (str(file), str(tmp_path / "xdg.conf")))

    def write(text, name="nix.conf"):
        (tmp_path / name).write_text(text)
        return nix.configuration()

    return write


def test_without_a_configuration_the_defaults_of_nix_hold(tmp_path):
    assert nix.configuration([str(tmp_path / "nix.conf")]) == SAFE


def test_settings_are_read_as_nix_reads_them(conf):
    text = "# a\n\n sandbox=true\n"
    with pytest.raises(nix._Unsure, match="not understood"):
        conf(text)
    assert conf("\tsandbox =  false # why\r\n")["sandbox"] == ["false"]
    assert conf("sandbox = true#x\nallowed-users = a   b\n")["allowed-users"] == ["a", "b"]
    assert conf("other = x\nextra-other = y\n") == SAFE


def test_the_later_line_wins_and_extra_adds(conf):
    found = conf("trusted-users = a\nextra-trusted-users = b @c\nsandbox = false\nsandbox = true\n")
    assert (found["trusted-users"], found["sandbox"]) == (["a", "b", "@c"], ["true"])
    assert conf("extra-trusted-users = b\n")["trusted-users"] == ["root", "b"]


@pytest.mark.parametrize("name", ["build-use-sandbox", "build-use-chroot"])
def test_former_names_count(conf, name):
    assert conf(f"sandbox = true\n{name} = false\n")["sandbox"] == ["false"]


@pytest.mark.parametrize("name", ["build-extra-sandbox-paths", "extra-sandbox-paths"])
def test_paths_are_added_under_every_name(conf, name):
    assert conf(f"sandbox-paths = /a\n{name} = /b=/c\n")["sandbox-paths"] == ["/a", "/b=/c"]


def test_a_second_file_of_the_system_wins(conf):
    conf("sandbox = false\n", name="xdg.conf")
    assert conf("sandbox = true\n")["sandbox"] == ["false"]


def test_included_files_count_where_they_are_included(conf, tmp_path):
    (tmp_path / "more.conf").write_text("sandbox = false\ntrusted-users = x\n")
    assert conf("include more.conf\nsandbox = true\n")["trusted-users"] == ["x"]
    assert conf(f"!include {tmp_path}/more.conf\n")["sandbox"] == ["false"]
    assert conf("!include nothing.conf\n") == SAFE


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("include nothing.conf\n", "is not there"),
        ("include nix.conf\n", "too deeply"),
        ("include .\n", "cannot be read"),
        ("!include .\n", "cannot be read"),
        ("sandbox true\n", "not understood"),
        ("sandbox\n", "not understood"),
        ("sandbox\v = true\n", "control characters"),
        ("x = " + "y" * (1 << 20), "larger than"),
    ],
)
def test_what_cannot_be_read_in_full_is_unsafe(conf, text, why):
    with pytest.raises(nix._Unsure, match=why):
        conf(text)


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """A socket that looks like that of a daemon of root's, to a user who is none of its own."""
    import socket

    directory = tmp_path / "daemon-socket"
    directory.mkdir()
    monkeypatch.chdir(directory)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    monkeypatch.setattr(policy, "NIX_SOCKET_DIRECTORY", str(directory))
    monkeypatch.setattr(policy, "NIX_SOCKET", f"{directory}/socket")
    monkeypatch.setattr(policy, "NIX_CONFIGURATION", ())
    monkeypatch.setattr(nix, "_refuse_other_daemon", lambda: None)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    monkeypatch.setattr(os, "getgid", lambda: 4321)
    monkeypatch.setattr(os, "getgroups", list)
    yield directory
    listener.close()


def test_the_socket_is_inside_where_builds_are_sandboxed(daemon):
    assert nix.decision() == {
        "socket": True,
        "trust": False,
        "reason": "it sandboxes its builds",
    }


def test_a_host_without_a_daemon_has_no_nix(daemon):
    os.unlink(policy.NIX_SOCKET)
    assert nix.decision() is None and nix.decision("off") is None
    with pytest.raises(Failure, match="there is no nix daemon"):
        nix.decision("trust")


def test_a_file_or_a_link_in_the_place_of_the_socket_is_none(daemon):
    os.rename(policy.NIX_SOCKET, f"{daemon}/real")
    os.symlink("real", policy.NIX_SOCKET)
    assert nix.decision() is None


def test_an_unknown_mode_is_wrong_usage(daemon):
    with pytest.raises(Failure, match="auto, trust, off") as failure:
        nix.decision("yes")
    assert failure.value.status == 2


def test_the_reason_of_a_trusted_socket_says_what_is_wrong_with_it(daemon, monkeypatch):
    monkeypatch.setattr(nix, "configuration", lambda: {**SAFE, "sandbox": ["false"]})
    assert nix.decision()["socket"] is False
    found = nix.decision("trust")
    assert found["socket"] and found["trust"] and "although" in found["reason"]


@pytest.mark.parametrize(
    ("paths", "safe"),
    [
        ([], True),
        (["/bin/sh=/nix/store/x-busybox/bin/busybox", "/dev/kvm?"], True),
        (["/usr/bin/env"], True),
        (["/x=/home"], False),
        (["/home?"], False),
        (["/nix/store/../../home"], False),
        (["/nix/store=/nix/var"], False),
        (["/nix"], False),
        (["/"], False),
    ],
)
def test_what_a_daemon_shows_its_builds_is_programs(daemon, monkeypatch, paths, safe):
    monkeypatch.setattr(nix, "configuration", lambda: {**SAFE, "sandbox-paths": paths})
    assert (nix.why_unsafe() is None) == safe


@pytest.mark.parametrize(
    ("name", "entries", "safe"),
    [
        ("trusted-users", [], True),
        ("trusted-users", ["root", "@root", "@nosuchgroup", "@"], True),
        ("trusted-users", ["*"], False),
        ("trusted-users", ["4321"], False),
        ("allowed-users", [], False),
        ("allowed-users", ["4321"], True),
    ],
)
def test_users_are_matched_as_nix_matches_them(daemon, monkeypatch, name, entries, safe):
    monkeypatch.setattr(nix, "configuration", lambda: {**SAFE, name: entries})
    assert (nix.why_unsafe() is None) == safe


def test_a_group_of_the_process_makes_a_trusted_user(daemon, monkeypatch):
    monkeypatch.setattr(nix, "configuration", lambda: {**SAFE, "trusted-users": ["@wheels"]})
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", 77, [])))
    assert nix.why_unsafe() is None
    monkeypatch.setattr(os, "getgroups", lambda: [77])
    assert "trusted-users" in nix.why_unsafe()
    assert nix.why_unsandboxed() is None


def test_the_store_is_mounted_once():
    mounts = nix.store_mounts()
    assert [mount["target"] for mount in mounts] == ["/nix/store"]
    assert nix.store_mounts(mounts) == []


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The directory of a daemon's socket that belongs, so it looks, to root."""
    directory = tmp_path / "daemon-socket"
    directory.mkdir(mode=0o755)
    (directory / "socket").write_text("")
    monkeypatch.setattr(policy, "NIX_SOCKET_DIRECTORY", str(directory))
    monkeypatch.setattr(policy, "NIX_SOCKET", f"{directory}/socket")
    monkeypatch.setattr(nix, "configuration", lambda: SAFE)
    owners = {}
    look = os.lstat

    def lstat(path, **options):
        fields = list(look(path, **options))
        fields[4] = owners.get(str(path), 0)
        return os.stat_result(fields)

    monkeypatch.setattr(os, "lstat", lstat)
    return directory, owners


def test_the_socket_of_roots_daemon_is_accepted(place):
    assert nix.why_unsandboxed() is None


@pytest.mark.parametrize("name", ["", "/socket"])
def test_a_daemon_of_another_user_is_unsafe(place, name):
    directory, owners = place
    owners[f"{directory}{name}"] = 1000
    assert "is not root's" in nix.why_unsandboxed()


def test_a_directory_that_others_can_write_is_unsafe(place):
    place[0].chmod(0o777)
    assert "can be written by others" in nix.why_unsandboxed()


def test_a_socket_that_cannot_be_looked_at_is_unsafe(place):
    (place[0] / "socket").unlink()
    assert "cannot be looked at" in nix.why_unsandboxed()


def test_a_socket_behind_a_link_is_unsafe(place):
    place[0].rename(f"{place[0]}-real")
    place[0].symlink_to(f"{place[0]}-real")
    assert "symbolic link" in nix.why_unsandboxed()


def test_root_may_switch_the_sandboxing_off(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(nix._Unsure, match="root may switch"):
        nix._refuse_rights(SAFE)


def test_a_configuration_that_cannot_be_read_is_unsafe(tmp_path):
    with pytest.raises(nix._Unsure, match="cannot be read"):
        nix.configuration([str(tmp_path)])
