"""What an agent can do to the files of a project: links, pipes, other contents, other modes."""

import os
import random
import shutil

from cases import mutate_bytes

_PATHS_IN_GIT = (
    "",
    "/HEAD",
    "/config",
    "/config.worktree",
    "/commondir",
    "/gitdir",
    "/hooks",
    "/hooks/pre-commit",
    "/info",
    "/info/attributes",
    "/info/exclude",
    "/branches",
    "/remotes",
    "/objects",
    "/refs",
    "/modules",
    "/modules/deps",
    "/modules/deps/HEAD",
    "/modules/deps/objects",
    "/modules/deps/refs",
    "/modules/deps/library",
    "/modules/deps/library/config",
    "/modules/deps/library/HEAD",
    "/modules/deps/library/hooks",
    "/worktrees",
    "/worktrees/tree",
    "/worktrees/tree/gitdir",
    "/worktrees/tree/commondir",
    "/worktrees/tree/config.worktree",
)
_PATHS_IN_PROJECT = (
    "/.git",
    "/.claude",
    "/.claude/settings.json",
    "/.claude/settings.local.json",
    "/.mcp.json",
    "/sub",
    "/sub/deeper",
    "/sub/.git",
    "/sub/deeper/.git",
    "/sub/refs",
    "/refs",
    "/objects",
    "/HEAD",
    "/vendor",
    "/vendor/nested",
    "/vendor/nested/.git",
    "/vendor/nested/.git/config",
    "/vendor/nested/.git/hooks",
    "/vendor/HEAD",
    "/bare/config",
    "/bare/hooks",
    "/bare/objects",
    "/deps/library",
    "/deps/library/.git",
    "/tools",
    "/tools/more.inc",
    "/tools/hooks",
)


def _named(chance: random.Random, host) -> bytes:
    """Return the text of a file that names a path, or one of a configuration."""
    home, project = str(host.home), str(host.project)
    places = (f"{home}/.ssh", f"{project}/.git", "..", ".", "/", "", "../..", f"{project}/bare")
    places += (
        f"{host.worktree}/.git",
        f"{project}/vendor/nested/.git",
        "x\0y",
        "a" * 5000,
        "\udcff",
    )
    places += (f"{project}/.git/worktrees/tree", f"{project}/.git/modules/deps/library", "/dev/tty")
    place = os.fsencode(chance.choice(places))
    keys = (b"core.worktree", b"include.path", b"core.hooksPath", b"core.attributesFile")
    keys += (b"includeIf.gitdir:/.path", b"core.fsmonitor", b"core.bare")
    section, _, name = chance.choice(keys).rpartition(b".")
    first, _, second = section.partition(b".")
    heading = b"[%s%s]\n" % (first, b' "%s"' % second if second else b"")
    return chance.choice(
        (
            b"gitdir: " + place + b"\n",
            b"gitdir: " + place,
            place + b"\n",
            place,
            heading + b"\t" + name + b" = " + place + b"\n",
            heading + b"\t" + name + b" = tools/more.inc\n",
            heading + b"\t" + name + b" = ../tools/hooks\n",
            heading * 3000,
            b"ref: refs/heads/main\n",
            b"",
        )
    )


def change_anything(chance: random.Random, host) -> str:
    """Put something else in one place of the project, its git directory or its worktree."""
    tops = [f"{host.project}/.git{end}" for end in _PATHS_IN_GIT]
    tops += [f"{host.project}{end}" for end in _PATHS_IN_PROJECT]
    tops += [f"{host.worktree}/.git"] * 4
    place = chance.choice(tops)
    if not os.path.isdir(os.path.dirname(place)):
        return place
    if os.path.realpath(os.path.dirname(place)) != os.path.dirname(place):
        # An earlier change has made a link of the way there.
        return place
    kind = chance.randrange(12)
    content = None
    if os.path.isfile(place):
        with open(place, "rb") as file:
            content = file.read(1 << 16)
    if kind == 0 and content is not None:
        host.set_aside(place)
        with open(place, "wb") as file:
            file.write(mutate_bytes(chance, content))
        return place
    if kind == 1 and content is not None:
        host.set_aside(place)
        with open(place, "wb") as file:
            file.write(content + _named(chance, host))
        return place
    if kind == 2 and os.path.lexists(place) and not os.path.islink(place):
        host.change_mode(place, chance.choice((0, 0o111, 0o444, 0o755, 0o777)))
        return place
    host.set_aside(place)
    if kind in (3, 4):
        aims = (host.home / ".ssh", host.docs, host.project / ".git", "..", "/nonexistent", "self")
        os.symlink(chance.choice(aims), place)
    elif kind == 5:
        os.mkfifo(place)
    elif kind == 6:
        os.mkdir(place)
    elif kind == 7:
        for name in ("objects", "refs"):
            os.makedirs(f"{place}/{name}")
        with open(place + "/HEAD", "w") as file:
            file.write("ref: refs/heads/main\n")
    elif kind == 8:
        shutil.copytree(host.base / "bare", place, symlinks=True)
    elif kind < 11:
        with open(place, "wb") as file:
            file.write(_named(chance, host))
    return place
