"""The checker is evidence only if it finds every kind of hole when there is one."""

import pytest
from mount_checker import complaints

from claudebox import enforcement, instance, net
from claudebox.sandbox import bwrap


def arguments(plan):
    return bwrap.by_path(bwrap.arguments(plan))


PLACES = ("project", "worktree", "project/deps/library", "project/vendor/nested", "docs")


def start_in(host, place):
    first, _, rest = place.partition("/")
    return str(getattr(host, first)) + ("/" + rest if rest else "")


@pytest.mark.parametrize("place", [*PLACES, "project/sub/deeper", "project/bare"])
@pytest.mark.parametrize("tier", ["none", "inet", "full"])
def test_a_plan_that_was_just_made_keeps_to_the_policy(host, place, tier):
    plan = net.apply(instance.resolve(start_in(host, place)), tier)
    enforcement.refuse_unsafe(plan)
    assert complaints(arguments(plan), host.facts(plan)) == []


def test_a_session_below_the_top_of_a_whole_repository_keeps_to_the_policy(host):
    plan = instance.resolve(start_in(host, "project/sub/deeper"), repo=True)
    assert plan["project"]["root"] == str(host.project)
    assert complaints(arguments(plan), host.facts(plan)) == []


def without(*words):
    def change(given, _host):
        for start in range(len(given)):
            if given[start : start + len(words)] == list(words):
                return given[:start] + given[start + len(words) :]
        raise AssertionError(f"{words} is not there")

    return change


def adding(*words, at=-4):
    def change(given, host):
        named = [word.format(h=host) if type(word) is str else word for word in words]
        return given[:at] + named + given[at:]

    return change


def without_mount(target):
    def change(given, host):
        name = target.format(h=host)
        for place, option in enumerate(given):
            if option in ("--bind", "--ro-bind", "--ro-bind-data") and given[place + 2] == name:
                return given[:place] + given[place + 3 :]
            if option in ("--tmpfs", "--proc") and given[place + 1] == name:
                rest = given[place + 2 :]
                return given[:place] + (rest[2:] if rest[:2] == ["--remount-ro", name] else rest)
        raise AssertionError(f"{name} is not there")

    return change


def instead(target, *words):
    def change(given, host):
        return adding(*words)(without_mount(target)(given, host), host)

    return change


HOLES = {
    "a user namespace less": without("--unshare-user"),
    "a process namespace less": without("--unshare-pid"),
    "no end with the parent": without("--die-with-parent"),
    "capabilities": without("--cap-drop", "ALL"),
    "nested namespaces": without("--disable-userns"),
    "a writable root": without("--remount-ro", "/"),
    "an unexpected option": adding("--setenv", "A", "b"),
    "another option": adding("--cap-add", "ALL"),
    "the network of another tier": adding("--unshare-net"),
    "a secret": adding("--ro-bind", "{h.home}/.ssh", "/keys"),
    "a secret below": adding("--ro-bind", "{h.home}/.aws/secret", "/keys"),
    "the parent of a secret": adding("--ro-bind", "{h.home}/.config", "/configuration"),
    "a secret that is a link, where it leads": adding("--ro-bind", "{h.base}/vault", "/v"),
    "a secret of the system": adding("--ro-bind", "/etc", "/host"),
    "the home directory": adding("--ro-bind", "{h.home}", "/host"),
    "what is above it": adding("--ro-bind", "{h.base}", "/host"),
    "the host's root": adding("--ro-bind", "/", "/host"),
    "a source that is a link": adding("--ro-bind", "{h.project}/keys", "/keys"),
    "a socket": adding("--ro-bind", "{h.base}/agent/socket", "/agent"),
    "a device": adding("--bind", "/dev/sda", "/disk"),
    "a writable stranger": adding("--bind", "{h.docs}", "/docs"),
    "the project under another name": adding("--bind", "{h.project}/sub", "/sub"),
    "what contains the project": adding("--bind", "{h.home}/src", "/src"),
    "the same target twice": adding("--tmpfs", "/tmp"),
    "a target that is no plain path": adding("--tmpfs", "/a/../b"),
    "something over proc": adding("--tmpfs", "/proc"),
    "something in proc": adding("--ro-bind", "{h.docs}/page", "/proc/version"),
    "something in the devices": adding("--tmpfs", "/dev/shm"),
    "something over the briefing": adding("--tmpfs", "/etc/claude-code"),
    "something in the instance": adding("--tmpfs", "{h.home}/.claude/x"),
    "a second proc": adding("--proc", "/proc2"),
    "a link of its own": adding("--symlink", "/usr", "/elsewhere"),
    "a link out": adding("--symlink", "/oldroot/etc", "/bin2"),
    "a mount behind a link": adding("--tmpfs", "/lib/x"),
    "no cover in proc": without_mount("/proc/keys"),
    "writable kernel settings": without_mount("/proc/sys"),
    "a cover before proc": adding("--ro-bind", "/dev/null", "/proc/keys", at=0),
    "no private tmp": without_mount("/tmp"),
    "no home of its own": without_mount("{h.home}"),
    "a home that came last": instead("{h.home}", "--tmpfs", "{h.home}"),
    "no project": without_mount("{h.project}"),
    "the project last": instead("{h.project}", "--bind", "{h.project}", "{h.project}"),
    "hooks that can be written": without_mount("{h.project}/.git/hooks"),
    "a hook that can be written": adding(
        "--bind", "{h.project}/.git/hooks/pre-commit", "{h.project}/.git/hooks/pre-commit"
    ),
    "configuration of a nested repository": without_mount("{h.project}/vendor/nested/.git/config"),
    "configuration of a submodule": without_mount("{h.project}/.git/modules/deps/library/config"),
    "configuration of a bare one": without_mount("{h.project}/bare/config"),
    "the file of a submodule": without_mount("{h.project}/deps/library/.git"),
    "settings that can be written": without_mount("{h.project}/.claude/settings.json"),
    "absent settings that can be made": without_mount("{h.project}/.claude/settings.local.json"),
    "a git directory that can be renamed": without_mount("{h.project}/.git"),
    "a parent that can be renamed": without_mount("{h.project}/vendor"),
    "a file made on the host": adding("--tmpfs", "{h.project}/new"),
    "a mount point behind a link of the project": adding("--tmpfs", "{h.project}/out/x"),
    "a stand-in that says something": instead(
        "{h.project}/.mcp.json",
        "--ro-bind-data",
        bwrap.Data("", b'{"mcpServers": {"x": {}}}'),
        "{h.project}/.mcp.json",
    ),
    "settings of another file": instead(
        "{h.project}/.claude/settings.json",
        "--ro-bind",
        "{h.docs}/page",
        "{h.project}/.claude/settings.json",
    ),
}


@pytest.mark.parametrize("hole", HOLES)
def test_a_hole_is_found(host, hole):
    plan = instance.resolve(str(host.project))
    changed = HOLES[hole](arguments(plan), host)
    assert complaints(changed, host.facts(plan)) != []


def test_a_mount_behind_a_link_in_another_directory_is_found(host):
    plan = instance.resolve(str(host.project))
    words = ("--ro-bind", "{h.docs}", "/docs", "--tmpfs", "/docs/way/x")
    found = complaints(adding(*words)(arguments(plan), host), host.facts(plan))
    assert found == [f"{host.docs}/way, on the way to the mount point /docs/way/x, is a link"]
