"""A build for the nix store: its own programs, and nothing of the host's /usr."""

import json

import pytest

from claudebox import baked, host, instance, policy, run


@pytest.fixture
def built(monkeypatch):
    """What a build wires in, and a host of another distribution."""
    monkeypatch.setattr(baked, "PATH", ("/nix/store/a-bash/bin", "/nix/store/b-claude/bin"))
    programs = {name: f"/nix/store/c-{name}/bin/{name}" for name in ("bwrap", "claude", "git")}
    monkeypatch.setattr(baked, "PROGRAMS", programs)
    monkeypatch.setattr(baked, "SH", "/nix/store/a-bash/bin/sh")
    monkeypatch.setattr(baked, "ENV", "/nix/store/d-coreutils/bin/env")
    monkeypatch.setattr(baked, "SHELL", "/nix/store/a-bash/bin/bash")
    monkeypatch.setattr(baked, "CERTIFICATES", "/nix/store/e-cacert/bundle.crt")
    monkeypatch.setattr(baked, "ZONEINFO", "/nix/store/f-tzdata/share/zoneinfo")


def test_its_own_programs_come_before_those_of_the_host(built):
    assert host.find_program("git", "/x") == "/nix/store/c-git/bin/git"
    assert host.find_program("claude", "/x") == "/nix/store/c-claude/bin/claude"
    assert host.find_program("nosuchprogram", "/x") is None


def test_what_is_not_built_has_none(home):
    assert (baked.PATH, baked.PROGRAMS, baked.SH, baked.ENV) == ((), {}, "", "")


def test_the_system_that_is_shown_is_the_store(built):
    mounts, path, shell = host.system_mounts()
    assert path == "/nix/store/a-bash/bin:/nix/store/b-claude/bin"
    assert shell == "/nix/store/a-bash/bin/bash"
    links = {m["target"]: m["source"] for m in mounts if m["kind"] == "symlink"}
    assert links["/bin/sh"] == "/nix/store/a-bash/bin/sh"
    assert links["/usr/bin/env"] == "/nix/store/d-coreutils/bin/env"
    assert "/usr/" not in json.dumps([m for m in mounts if m["target"] != "/usr/bin/env"])
    assert host.shows_store()


def test_claude_needs_no_mount_of_its_own(built, home, project):
    assert host.claude(str(project), str(home)) == ([], False)


def test_the_time_zone_of_the_host_is_that_of_the_store(built, monkeypatch):
    real = host.os.path.realpath
    zone = {"/etc/localtime": "/usr/share/zoneinfo/Europe/Berlin"}
    monkeypatch.setattr(host.os.path, "realpath", lambda path: zone.get(path) or real(path))
    links = {m["target"]: m.get("source") for m in host.system_mounts()[0]}
    assert links["/etc/localtime"] == "/nix/store/f-tzdata/share/zoneinfo/Europe/Berlin"


@pytest.mark.parametrize("behind", ["/usr/share/ca.crt", None])
def test_certificates_are_the_hosts_where_they_are_not_in_usr(built, monkeypatch, behind):
    real = host.os.path.realpath
    monkeypatch.setattr(policy, "CERTIFICATE_BUNDLES", (__file__,))
    monkeypatch.setattr(
        host.os.path, "realpath", lambda path: behind if behind and path == __file__ else real(path)
    )
    found = {m["target"]: m for m in host.system_mounts()[0]}[policy.CERTIFICATES_INSIDE]
    expected = "/nix/store/e-cacert/bundle.crt" if behind else real(__file__)
    assert found["source"] == expected


def test_what_starts_the_command_inside_is_of_the_store(built, paper_plan):
    words = run._payload(paper_plan, [run._signal.SIGTERM])
    assert words[0] == "/nix/store/d-coreutils/bin/env"
    assert "/nix/store/a-bash/bin/sh" in words
    assert run._env_restores_signals()


def test_claude_of_a_store_comes_with_that_store(monkeypatch, tmp_path, home, project):
    store = tmp_path / "store"
    program = store / "x-claude/bin/claude"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "profile").symlink_to(program.parent)
    monkeypatch.setenv("PATH", f"{tmp_path}/profile:/usr/bin:/bin")
    monkeypatch.setattr(policy, "NIX_STORE", str(store))
    mounts, on_path = host.claude(str(project), str(home))
    assert on_path
    assert [(m["kind"], m["source"], m["target"]) for m in mounts] == [
        ("ro-bind", str(store), str(store)),
        ("symlink", str(program), policy.TOOLS_INSIDE + "/claude"),
    ]


def test_the_store_is_mounted_once_with_a_daemon(monkeypatch, home, project):
    from claudebox import nix

    said = {"socket": True, "trust": False, "reason": "x"}
    monkeypatch.setattr(nix, "decision", lambda _: said)
    monkeypatch.setattr(policy, "NIX_SOCKET", "/")
    monkeypatch.setattr(nix, "client_directory", lambda _: "/nix/store/n-nix/bin")
    plan = instance.resolve(str(project))
    assert plan["nix"] == said
    targets = [mount["target"] for mount in plan["mounts"]]
    assert targets.count("/nix/store") == 1 and targets.count("/nix/var/nix/daemon-socket") == 1
    variables = {entry["name"]: entry.get("value") for entry in plan["env"]}
    assert variables["PATH"].endswith(":/nix/store/n-nix/bin")
    assert variables["NIX_REMOTE"] == "daemon"
