"""Every refusal of an edited plan, without a sandbox: what is asked for and what the refusal says."""

import copy
import os
import socket

import pytest

from claudebox import Failure, enforcement, instance, net, policy


@pytest.fixture
def plan(home, project, repository):
    """The plan of a repository with a hook, of a user with keys and credentials."""
    repository(project)
    (project / ".git" / "hooks" / "pre-commit").write_text("#!/bin/sh\n")
    (project / "sub" / "y").mkdir(parents=True)
    (project / "sub" / "x").write_text("x")
    (home / ".ssh").mkdir()
    (home / ".claude").mkdir()
    (home / ".claude" / ".credentials.json").write_text("{}")
    return instance.resolve(str(project), shell=True)


@pytest.fixture
def refusal(plan, home, project, tmp_path):
    """Let `edit(plan, mounts, place)` change a copy of the plan; return why it is refused, or None."""

    class Place:
        def __init__(self):
            self.home, self.project, self.outside = str(home), str(project), str(tmp_path / "docs")

    os.mkdir(tmp_path / "docs")

    def why(edit):
        edited = copy.deepcopy(plan)
        edit(edited, {mount["target"]: mount for mount in edited["mounts"]}, Place())
        try:
            enforcement.refuse_unsafe(edited)
        except Failure as failure:
            return failure.what
        return None

    return why


def add(**mount):
    def edit(plan, _mounts, place):
        named = {key: value.format(p=place) for key, value in mount.items()}
        plan["mounts"].append({"reason": "x", **named})

    return edit


def remove(target):
    return lambda plan, mounts, place: plan["mounts"].remove(mounts[target.format(p=place)])


def move(target, to):
    def edit(plan, mounts, place):
        mount = mounts[target.format(p=place)]
        plan["mounts"].remove(mount)
        plan["mounts"].insert(len(plan["mounts"]) if to < 0 else to, mount)

    return edit


def change(target, **fields):
    def edit(_plan, mounts, place):
        mounts[target.format(p=place)].update(fields)

    return edit


def setting(key, **fields):
    return lambda plan, _mounts, _place: plan[key].update(fields)


def variable(**fields):
    return lambda plan, _mounts, _place: plan["env"].append(fields)


def test_the_plan_of_these_tests_is_not_refused(refusal):
    assert refusal(lambda *_: None) is None


HARMLESS = {
    "another directory, read-only": add(kind="ro-bind", source="{p.outside}", target="/docs"),
    "one that the user named, writable": add(
        kind="bind", source="{p.outside}", target="{p.outside}", reason="--mount"
    ),
    "one of a profile, writable": add(
        kind="bind", source="{p.outside}", target="{p.outside}", reason="profile:web"
    ),
    "a file of its own": add(kind="file", content="x", target="/etc/motd"),
    "a variable with a value": variable(name="EXTRA", source="claudebox", value="x"),
    "another command": lambda plan, _m, _p: plan.update(command=["/bin/ls", "-l"]),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_an_edited_plan_may_have(refusal, what):
    assert refusal(HARMLESS[what]) is None


REFUSED = {
    "another user": (setting("user", uid=4242), "another user"),
    "another group": (setting("user", gid=4242), "another user"),
    "another home directory": (setting("user", home="/srv"), "is not $HOME"),
    "a loader variable": (
        variable(name="LD_PRELOAD", source="claudebox", value="/x"),
        "acts on the sandbox's own programs",
    ),
    "a loader variable of the host": (
        variable(name="BASH_ENV", source="host"),
        "acts on the sandbox's own programs",
    ),
    "the host's own directory for Claude": (
        lambda plan, _m, _p: plan["env"].__setitem__(
            slice(None),
            [v for v in plan["env"] if v["name"] != "CLAUDE_CONFIG_DIR"]
            + [{"name": "CLAUDE_CONFIG_DIR", "source": "host"}],
        ),
        "is claudebox's to set",
    ),
    "a working directory elsewhere": (setting("project", cwd="/usr"), "not in the project"),
    "a project full of secrets": (
        lambda plan, _m, place: plan["project"].update(
            cwd=place.home + "/.ssh", root=place.home + "/.ssh"
        ),
        "cannot be a project",
    ),
    "another git directory": (setting("project", git=None), "its git directory"),
    "another instance": (setting("instance", id="0" * 16), "its instance is not"),
    "another bwrap": (setting("bwrap", path="/bin/sh"), "its bwrap is not"),
    "exceptions without a filter": (setting("network", allow=["10.0.0.1"]), "has exceptions"),
    "sidecars without a network": (setting("network", sidecars=["pasta"]), "has exceptions"),
    "no sidecar in inet": (setting("network", tier="inet"), "names no program"),
    "the resolver of another tier": (setting("network", tier="none"), "/etc/resolv.conf is not"),
    "a secret": (add(kind="ro-bind", source="{p.home}/.ssh", target="/k"), "would expose a secret"),
    "what contains a secret": (
        add(kind="ro-bind", source="{p.home}", target="/k"),
        "would expose a secret",
    ),
    "a link to a secret": (
        lambda plan, mounts, place: (
            os.symlink(place.home + "/.ssh", place.outside + "/keys"),
            add(kind="ro-bind", source="{p.outside}/keys", target="/k")(plan, mounts, place),
        ),
        "symbolic link",
    ),
    "a way through a link": (
        lambda plan, mounts, place: (
            os.symlink(place.home, place.outside + "/way"),
            add(kind="ro-bind", source="{p.outside}/way/project", target="/k")(plan, mounts, place),
        ),
        "symbolic link",
    ),
    "what is not there": (
        add(kind="ro-bind", source="{p.outside}/none", target="/k"),
        "is not there",
    ),
    "a socket": (
        lambda plan, mounts, place: (
            socket.socket(socket.AF_UNIX).bind(place.outside + "/s"),
            add(kind="ro-bind", source="{p.outside}/s", target="/k")(plan, mounts, place),
        ),
        "a socket, a device or a pipe",
    ),
    "the project under another name": (
        add(kind="bind", source="{p.project}/sub", target="/sub", reason="--mount"),
        "past its protection",
    ),
    "a directory that is writable unasked": (
        add(kind="bind", source="{p.outside}", target="/docs"),
        "neither a profile nor --mount",
    ),
    "a writable system": (change("/usr", kind="bind"), "neither a profile nor --mount"),
    "proc elsewhere": (add(kind="proc", target="/p"), "belongs on /proc"),
    "devices elsewhere": (add(kind="dev", target="/d"), "belongs on /dev"),
    "a mount on the root": (add(kind="tmpfs", target="/"), "a mount on /"),
    "a mount in proc": (add(kind="tmpfs", target="/proc/1"), "claudebox's own"),
    "a mount in the devices": (add(kind="tmpfs", target="/dev/mqueue"), "claudebox's own"),
    "a mount above the briefing": (add(kind="tmpfs", target="/etc"), "claudebox's own"),
    "a mount in the credentials": (
        add(kind="tmpfs", target="/run/claudebox/credentials/x"),
        "claudebox's own",
    ),
    "a cover that hides the briefing": (
        change("/etc/claude-code/CLAUDE.md", kind="mask"),
        "claudebox's own",
    ),
    "a mount in the instance": (
        add(kind="tmpfs", target="{p.home}/.claude/projects"),
        "lies in the instance",
    ),
    "a mount point behind a link of the project": (
        lambda plan, mounts, place: (
            os.symlink(place.outside, place.project + "/out"),
            add(kind="tmpfs", target="{p.project}/out/x")(plan, mounts, place),
        ),
        "on the way to a mount point",
    ),
    "a link in the project": (
        add(kind="symlink", source="x", target="{p.project}/l"),
        "would be made in the project itself",
    ),
    "a link out of the sandbox": (
        add(kind="symlink", source="/oldroot/etc", target="/l"),
        "none of the system's",
    ),
    "no proc": (remove("/proc"), "/proc is not a proc mount"),
    "no tmp of its own": (remove("/tmp"), "/tmp is not a tmpfs mount"),
    "no cover over the keys": (remove("/proc/keys"), "/proc/keys is not a mask mount"),
    "no home of its own": (remove("{p.home}"), "is not a tmpfs mount"),
    "a cover that proc hides": (move("/proc/keys", 0), "would hide an earlier one"),
    "a home directory that hides Claude's state": (move("{p.home}", -1), "would hide an earlier"),
    "no project": (remove("{p.project}"), "not mounted as itself"),
    "the project over its protections": (move("{p.project}", -1), "would hide an earlier one"),
    "a protection less": (remove("{p.project}/.git/hooks"), "is not protected"),
    "a stand-in that says something": (
        change("{p.project}/.mcp.json", content='{"mcpServers": {"x": {}}}'),
        "is no protection",
    ),
    "a file made on the host": (
        add(kind="file", content="x", target="{p.home}/.profile", reason="protected"),
        "is no protection",
    ),
    "a hook that can be written": (
        add(
            kind="bind",
            source="{p.project}/.git/hooks/pre-commit",
            target="{p.project}/.git/hooks/pre-commit",
            reason="git",
        ),
        "is no protection",
    ),
    "a file that git would find in the project": (
        add(kind="file", content="x", target="{p.project}/CLAUDE.md", reason="git"),
        "is no protection",
    ),
    "a file made in the project": (
        add(kind="file", content="x", target="{p.project}/CLAUDE.md"),
        "would be made on the host",
    ),
    "a mount behind a link of the system": (
        add(kind="tmpfs", target="/bin/x"),
        "lies behind a link",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_edited_plan_is_refused_that_has(refusal, what):
    edit, words = REFUSED[what]
    assert words in (refusal(edit) or "it is not refused")


def test_what_contains_the_project_cannot_be_writable(tmp_path, home):
    (tmp_path / "up" / "app").mkdir(parents=True)
    plan = instance.resolve(str(tmp_path / "up" / "app"), shell=True)
    up = {"kind": "bind", "source": f"{tmp_path}/up", "target": "/up", "reason": "--mount"}
    plan["mounts"].append(up)
    with pytest.raises(enforcement.Refused, match="past its protection"):
        enforcement.refuse_unsafe(plan)


def test_a_plan_that_was_just_made_is_not_refused_in_any_tier(plan):
    for tier in ("none", "inet", "full"):
        enforcement.refuse_unsafe(net.apply(plan, tier))


def test_a_mount_of_the_former_local_installer_may_lie_in_claudes_directory(refusal, home):
    (home / ".claude" / "local").mkdir()
    program = home / ".claude" / "local" / "claude"
    program.write_text("")
    edit = add(kind="ro-bind", source=str(program), target="/opt/claudebox/bin/x")
    assert refusal(edit) is None
    edit = add(kind="bind", source=str(program), target="/opt/claudebox/bin/x", reason="--mount")
    assert "would expose a secret" in refusal(edit)


def test_every_cover_of_proc_is_needed(refusal):
    for mask in policy.proc_masks():
        assert f"{mask['target']} is not a mask mount" in refusal(remove(mask["target"]))


OWN_VARIABLES = (
    "HOME PATH SHELL TMPDIR CLAUDE_CONFIG_DIR CLAUDE_SECURESTORAGE_CONFIG_DIR IS_SANDBOX"
    " DISABLE_AUTOUPDATER"
).split()


@pytest.mark.parametrize("name", OWN_VARIABLES)
def test_a_variable_that_claudebox_sets_does_not_come_from_the_host(refusal, name):
    def edit(plan, _mounts, _place):
        plan["env"] = [v for v in plan["env"] if v["name"] != name]
        plan["env"].append({"name": name, "source": "host"})

    assert f"the variable {name} is claudebox's to set" in refusal(edit)


def hiding(*patterns, mount=None):
    """Hide `patterns` in the plan, with this one mount for all of them."""

    def edit(plan, mounts, place):
        plan["hide"] = [{"pattern": each, "reason": "--hide"} for each in patterns]
        if mount:
            add(**{"reason": "hidden", **mount})(plan, mounts, place)

    return edit


HIDDEN = {
    "nothing over what is to be hidden": (hiding("sub"), "is to be hidden and is not"),
    "a pattern that means nothing": (hiding("../x"), "cannot be hidden"),
    "something hidden that is not in the project": (
        hiding("x", mount={"kind": "empty-dir", "target": "{p.home}/x"}),
        "only what is in the project can",
    ),
    "another content in the place of what is hidden": (
        hiding("x", mount={"kind": "file", "content": "y", "target": "{p.project}/sub/x"}),
        "is not hidden by a mount of this kind",
    ),
    "a writable directory in the place of what is hidden": (
        hiding("y", mount={"kind": "tmpfs", "target": "{p.project}/sub/y"}),
        "is not hidden by a mount of this kind",
    ),
    "the project, with what is hidden, in a second place": (
        hiding(
            "x",
            mount={
                "kind": "ro-bind",
                "source": "{p.project}/sub",
                "target": "/again",
                "reason": "--mount",
            },
        ),
        "would show what is hidden",
    ),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_an_edited_plan_that_hides_is_refused_that_has(refusal, what):
    edit, words = HIDDEN[what]
    assert words in (refusal(edit) or "it is not refused")


def test_what_is_hidden_cannot_be_shown_by_renaming_what_holds_it(refusal, project):
    (project / "sub" / "key").write_text("x")
    cover = {"kind": "file", "content": "", "target": "{p.project}/sub/key"}
    assert "could be renamed" in refusal(hiding("key", mount=cover))


def test_a_package_from_elsewhere_than_the_store_is_refused(refusal):
    package = {"reference": "nixpkgs#jq", "paths": ["/usr/bin"], "reason": "--devshell"}
    assert "is not in /nix/store" in refusal(lambda plan, _m, _p: plan["packages"].append(package))


@pytest.mark.parametrize("socket", [True, False])
def test_the_socket_of_the_nix_daemon_is_inside_where_the_plan_says_so_and_not_elsewhere(
    refusal, monkeypatch, socket
):
    monkeypatch.setattr(policy, "secret_paths", lambda *_: policy._Secrets())
    monkeypatch.setattr(enforcement, "_refuse_source", lambda *_: None)

    def edit(plan, _mounts, _place):
        plan["nix"] = {"socket": socket, "trust": False, "reason": "x"}
        if not socket:
            plan["mounts"].append(policy.nix_socket_mount())

    assert "socket is inside, or not" in refusal(edit)


def test_no_other_part_of_a_nix_daemon_is_inside(refusal, monkeypatch):
    monkeypatch.setattr(enforcement, "_refuse_source", lambda *_: None)
    edit = add(kind="ro-bind", source="/nix/var/nix/db", target="/db", reason="nix")
    assert "is not that of the nix daemon's socket" in refusal(edit)


def test_a_socket_of_the_nix_daemon_that_may_not_be_inside_now_is_refused(refusal, monkeypatch):
    from claudebox import nix

    monkeypatch.setattr(enforcement, "_refuse_source", lambda *_: None)
    monkeypatch.setattr(nix, "decision", lambda _mode: None)

    def edit(plan, _mounts, _place):
        plan["nix"] = {"socket": True, "trust": False, "reason": "x"}
        plan["mounts"].append(policy.nix_socket_mount())

    assert "may not be inside" in refusal(edit)


def test_nothing_is_mounted_in_what_is_protected(refusal):
    edit = add(
        kind="bind",
        source="{p.project}/.git/hooks/pre-commit",
        target="{p.project}/.git/hooks/pre-commit",
        reason="--mount",
    )
    assert "would undo the protection" in refusal(edit)


def test_what_a_profile_mounts_may_not_lie_in_what_is_protected(plan, project):
    mount = {
        "kind": "ro-bind",
        "source": "/usr/share",
        "target": f"{project}/.git/hooks/x",
        "reason": "--mount",
    }
    # The mount point is there, so nothing would be made on the host.
    (project / ".git" / "hooks" / "x").mkdir()
    with pytest.raises(enforcement.Refused, match="which is protected"):
        enforcement.refuse_place(mount, plan)


@pytest.mark.parametrize(
    ("place", "words"),
    [("", "is a git repository"), ("/.git/objects", "belongs to a git directory")],
)
def test_another_repository_is_not_writable_however_it_is_asked_for(
    refusal, repository, tmp_path, place, words
):
    repository(tmp_path / "docs" / "other")
    source = f"{tmp_path}/docs/other{place}"
    assert words in refusal(add(kind="bind", source=source, target=source, reason="--mount"))
