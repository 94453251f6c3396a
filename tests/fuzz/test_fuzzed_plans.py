"""Plans that somebody edited in every way there is: refused in one line, or within the policy."""

import copy
import json
import os

import pytest
from cases import ODD_VALUES, dump, each_case, mutate_bytes, mutate_document
from mount_checker import complaints

from claudebox import (
    Failure,
    audit,
    dry_run,
    enforcement,
    instance,
    net,
    pipeline,
    plan,
    plan_schema,
    policy,
)
from claudebox.printable import printable
from claudebox.sandbox import bwrap

REASONS = ("system", "project", "git", "protected", "instance", "credentials", "toolchain", "x")
REASONS += ("--mount", "profile:web", "hidden")


def judge(host, text):
    """Read a plan, hold it against the policy and, if it passes, against the checker; say if it did."""
    try:
        read = plan.loads(text)
        enforcement.refuse_unsafe(read)
    except Failure as failure:
        line = printable(str(failure))
        assert "\n" not in line
        return False
    arguments = bwrap.by_path(bwrap.arguments(read))
    assert complaints(arguments, host.facts(read)) == []
    # What shows an accepted plan to a person has to bear it as well.
    shown = audit.table(audit.report(read), lambda _style, words: words)
    assert "\x1b" not in shown and "\u202e" not in shown
    dry_run.script(read)
    return True


def base_plans(host):
    """Return the plans that the mutations start from, made as a launch makes them."""
    made = []
    for directory, repo, tier in (
        (host.project, False, "full"),
        (host.project / "sub" / "deeper", True, "none"),
        (host.worktree, False, "inet"),
        (host.project / "deps" / "library", False, "full"),
        (host.docs, False, "none"),
    ):
        base = instance.resolve(str(directory), repo=repo, shell=True)
        made.append(net.apply(base, tier))
    return made


def interesting_paths(host, base):
    """Return what an edited mount may name: secrets, what is around them, what is protected."""
    home, project = str(host.home), str(host.project)
    root = base["project"]["root"]
    paths = [mount["target"] for mount in base["mounts"]]
    paths += [mount["source"] for mount in base["mounts"] if mount.get("source", "")[:1] == "/"]
    paths += [f"{home}{end}" for end in ("", "/.ssh", "/.config", "/.gnupg", "/src", "/.bashrc")]
    paths += [f"{home}/.claude{end}" for end in ("/x", "/local", "/.credentials.json")]
    paths += [f"{home}/.claudebox{end}" for end in ("", "/instances", "/credentials")]
    ends = ("/sub", "/keys", "/keys/x", "/out", "/out/x", "/new", "/sub/new", "/.env", "/bare")
    ends += ("/.git/hooks/pre-commit", "/.git/objects", "/.git/modules", "/vendor", "/.claude/new")
    paths += [f"{place}{end}" for place in {project, root} for end in ends]
    for place in (host.docs, host.shared, host.worktree, host.base):
        paths += [str(place), f"{place}/page", f"{place}/way/x", f"{place}/old/x"]
    paths += ["/", "/proc", "/proc/keys", "/proc/sys", "/proc/1", "/sys", "/dev", "/dev/null"]
    paths += ["/dev/shm", "/etc", "/etc/shadow", "/etc/passwd", "/run", "/run/claudebox", "/tmp"]
    paths += ["/var", "/usr/bin", "/bin/x", "/opt", "/etc/claude-code", "/root", "/docs", "/docs/x"]
    paths += ["/docs/way/x", "/docs/old/y", "/etc/localtime", f"{host.base}/agent/socket"]
    return paths


def a_mount(chance, host, base):
    """Return a mount of any kind that the schema has."""
    paths = interesting_paths(host, base)
    source, target = chance.choice(paths), chance.choice(paths)
    if chance.random() < 0.4:
        target = source
    kind = chance.choice(list(plan_schema.MOUNTS))
    mount = {"kind": kind}
    if kind in ("bind", "ro-bind", "symlink"):
        mount["source"] = source
    elif kind == "file":
        mount["content"] = chance.choice(("", "x", "{}\n", "\udcff"))
    mount |= {"target": target, "reason": chance.choice(REASONS)}
    return mount


def edit_mounts(chance, host, base):
    """Change the mounts of a plan in one way that the schema allows."""
    mounts = base["mounts"]
    paths = interesting_paths(host, base)
    kind = chance.randrange(11)
    place = chance.randrange(len(mounts)) if mounts else 0
    if kind in (0, 1) or not mounts:
        mounts.insert(chance.randrange(len(mounts) + 1), a_mount(chance, host, base))
    elif kind == 2:
        mounts.append(a_mount(chance, host, base))
    elif kind == 3:
        del mounts[place]
    elif kind == 4:
        mounts.insert(chance.randrange(len(mounts)), mounts.pop(place))
    elif kind == 5:
        other = chance.randrange(len(mounts))
        mounts[place], mounts[other] = mounts[other], mounts[place]
    elif kind == 6:
        mounts[place]["target"] = chance.choice(paths)
    elif kind == 7 and "source" in mounts[place]:
        mounts[place]["source"] = chance.choice(paths)
    elif kind == 8:
        mounts[place]["reason"] = chance.choice(REASONS)
    elif kind == 9 and mounts[place]["kind"] in ("bind", "ro-bind"):
        mounts[place]["kind"] = {"bind": "ro-bind", "ro-bind": "bind"}[mounts[place]["kind"]]
    elif kind == 10 and "content" in mounts[place]:
        mounts[place]["content"] = chance.choice(("", "x", '{"hooks": {}}'))


def edit_the_rest(chance, host, base):
    """Change something else than a mount in a way that the schema allows."""
    paths = interesting_paths(host, base)
    kind = chance.randrange(10)
    if kind == 0:
        name = chance.choice(("LD_PRELOAD", "HOME", "PATH", "BASH_ENV", "MY_TOKEN", "A"))
        value = chance.choice(({"source": "host"}, {"source": "claudebox", "value": "/x\n"}))
        base["env"].append({"name": name, **value})
    elif kind == 1:
        base["project"][chance.choice(("cwd", "root"))] = chance.choice(paths)
    elif kind == 2:
        base["project"]["git"] = chance.choice(
            (
                None,
                {"dir": chance.choice(paths), "common_dir": chance.choice(paths), "worktree": True},
            )
        )
    elif kind == 3:
        base["instance"][chance.choice(("path", "root"))] = chance.choice(paths)
    elif kind == 4:
        base["user"][chance.choice(("uid", "gid"))] = chance.choice((0, 1, 12345))
    elif kind == 5:
        base["user"]["home"] = chance.choice(paths)
    elif kind == 6:
        base["bwrap"]["path"] = chance.choice(paths)
    elif kind == 7:
        key = chance.choice(("disable_userns", "bind_fd"))
        base["bwrap"][key] = not base["bwrap"][key]
    elif kind == 8:
        base["network"] = {
            "tier": chance.choice(plan.TIERS),
            "source": "x",
            **chance.choice(({}, {"sidecars": ["pasta"]}, {"allow": ["10.0.0.0/8", "\n"]})),
        }
    else:
        base["command"] = chance.choice((["sh"], ["\udcff\n\x1b[2J"], ["-x", ""]))


def test_a_plan_with_edited_mounts_is_refused_or_within_the_policy(host, bounds):
    made = base_plans(host)
    passed = []

    def check(chance):
        bounds()
        edited = copy.deepcopy(chance.choice(made))
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            edit_mounts(chance, host, edited)
        passed.append(judge(host, dump(edited)))

    each_case(800, check)
    # Otherwise the checker would have had nothing to look at.
    assert len(passed) < 50 or (any(passed) and not all(passed))


def test_a_plan_that_was_edited_elsewhere_is_refused_or_within_the_policy(host, bounds):
    made = base_plans(host)

    def check(chance):
        bounds()
        edited = copy.deepcopy(chance.choice(made))
        edit_the_rest(chance, host, edited)
        if chance.random() < 0.3:
            edit_mounts(chance, host, edited)
        judge(host, dump(edited))

    each_case(200, check)


def test_a_document_that_is_nearly_a_plan_is_refused_or_within_the_policy(host, bounds):
    made = base_plans(host)

    def check(chance):
        bounds()
        document = chance.choice(made)
        for _ in range(chance.choice((1, 1, 2))):
            document = mutate_document(chance, document)
        text = dump(document)
        if chance.random() < 0.2:
            # A key that is there twice: the last one would win.
            key = chance.choice(('"mounts"', '"source"', '"kind"', '"cwd"', '"tier"'))
            text = text.replace(
                f"{key}: ", f"{key}: {json.dumps(chance.choice(ODD_VALUES))}, {key}: ", 1
            )
        judge(host, text)

    each_case(400, check)


class Bytes:
    """What `plan.read` reads from."""

    def __init__(self, content):
        self._content = content

    def read(self, size):
        return self._content[:size]


def test_bytes_that_are_nearly_a_plan_are_read_without_a_traceback(host, bounds):
    text = plan.dumps(base_plans(host)[0]).encode()

    def check(chance):
        bounds()
        content = mutate_bytes(chance, text) if chance.random() < 0.9 else chance.randbytes(200)
        try:
            plan.read(Bytes(content))
        except Failure as failure:
            assert "\n" not in printable(str(failure))

    each_case(200, check)


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"mounts":[', '[{"env":'])
def test_a_plan_of_any_depth_is_refused(bounds, opening):
    with pytest.raises(Failure):
        plan.loads(opening * 200_000)


def test_a_plan_is_held_against_the_project_that_is_there_now(host, bounds):
    """The project changes after the plan was made: links take the place of what is mounted."""
    made = base_plans(host)[:2]

    def check(chance):
        bounds()
        host.restore()
        base = copy.deepcopy(chance.choice(made))
        targets = [m["target"] for m in base["mounts"] if m["target"].startswith(str(host.project))]
        for _ in range(chance.randrange(1, 3)):
            place = chance.choice([*targets, f"{host.project}/sub", f"{host.project}/vendor"])
            change_on_disk(chance, host, place)
        from claudebox import project

        project._walks.clear()
        judge(host, dump(base))

    try:
        each_case(100, check)
    finally:
        host.restore()


def change_on_disk(chance, host, place):
    """Put something else where `place` is, or make it, or take it away."""
    parent = os.path.dirname(place)
    if place in (str(host.home), str(host.project)) or not os.path.isdir(parent):
        return
    if os.path.realpath(parent) != parent:
        return
    kind = chance.randrange(6)
    host.set_aside(place)
    if kind == 0:
        os.symlink(chance.choice((host.home / ".ssh", host.docs, "/oldroot/etc", "..")), place)
    elif kind == 1:
        os.mkdir(place)
    elif kind == 2:
        os.mkfifo(place)
    elif kind == 3:
        with open(place, "wb") as file:
            file.write(chance.choice((b"", b"{}\n", b"gitdir: ../.ssh\n", b"\0", b"x" * 5000)))
    elif kind == 4:
        os.makedirs(place + "/objects")
        os.makedirs(place + "/refs")
        with open(place + "/HEAD", "w") as file:
            file.write("ref: refs/heads/main\n")


def test_the_options_of_a_launch_make_no_plan_outside_the_policy(host, bounds, monkeypatch):
    """Not an edited plan but one that claudebox itself makes, from words of the command line."""
    words = ("", "A", "LD_PRELOAD", "HOME", "\udcff", "a b", "MY_TOKEN", "10.0.0.1", "host:80")
    words += (
        "[::1]:99999",
        "fe80::1%eth0",
        "0.0.0.0/0",
        "1.1.1.1/33",
        "\0",
        "inet",
        "none",
        "x" * 999,
    )

    def check(chance):
        bounds()
        monkeypatch.chdir(chance.choice((host.project, host.docs, host.worktree)))
        try:
            made = pipeline.compose(
                repo=chance.random() < 0.3,
                shell=chance.random() < 0.5,
                arguments=[chance.choice(words) for _ in range(chance.randrange(3))],
                variables=[chance.choice(words) for _ in range(chance.randrange(3))],
                tier=chance.choice((None, *plan.TIERS, *words)),
                allowed=[chance.choice(words) for _ in range(chance.randrange(3))],
            )
        except Failure as failure:
            assert "\n" not in printable(str(failure))
            return
        assert not any(policy.variable_forbidden(v["name"]) for v in made["env"])
        if not any("\0" in word for word in made["command"]):
            assert judge(host, plan.dumps(made))

    each_case(40, check)
