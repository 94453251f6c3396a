"""A sandbox that is not what the plan says: each way that it can be another stops the launch."""

import json
import re
import subprocess
import sys

import pytest
from scratch import BIN

# Launches with arguments of bwrap that were changed on the way, as a race or a fault would have it.
DRIVER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from claudebox import Failure, instance, run
from claudebox.sandbox import bwrap

honest = bwrap.arguments

def changed(plan):
    words = honest(plan)
    names = [word if isinstance(word, str) else type(word).__name__ for word in words]
    old, new = json.loads(sys.argv[2])
    places = [i for i in range(len(names)) if names[i : i + len(old)] == old]
    assert len(places) == 1, (old, places)
    kept = iter([word for word in words[places[0] : places[0] + len(old)] if not isinstance(word, str)])
    words[places[0] : places[0] + len(old)] = [
        next(kept) if name in ("Source", "Data") else name for name in new
    ]
    exec(sys.argv[3])
    return words

bwrap.arguments = changed
try:
    status = run.launch(instance.resolve(shell=True, arguments=["-c", "echo payload"]))
except Failure as failure:
    print(failure.what)
    sys.exit(1)
sys.exit(status)
"""


def launch(world, old: list[str], new: list[str], meanwhile="pass"):
    """Launch with the words `old` of bwrap's arguments replaced by `new`, and run code before that."""
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(BIN.parent), json.dumps([old, new]), meanwhile],
        cwd=world.project,
        env=world.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def changes(world):
    project, home = str(world.project), str(world.home)
    hooks = f"{project}/.git/hooks"
    passwd = ["--perms", "0444", "--ro-bind-data", "Data", "/etc/passwd"]
    return {
        "a protection that can be written": (
            ["--ro-bind-fd", "Source", hooks],
            ["--bind-fd", "Source", hooks],
            f"{hooks} can be written",
        ),
        "a protection less": (["--ro-bind-fd", "Source", hooks], [], f"{hooks} is not mounted"),
        "a stand-in that can be written": (
            ["--ro-bind-data", "Data", f"{project}/.mcp.json"],
            ["--bind-data", "Data", f"{project}/.mcp.json"],
            f"{project}/.mcp.json can be written",
        ),
        "a file of the system that can be written": (
            passwd,
            ["--bind-data", "Data", "/etc/passwd"],
            "/etc/passwd can be written",
        ),
        "a root that can be written": (
            ["--remount-ro", "/", "--chdir", project],
            ["--chdir", project],
            "/ can be written",
        ),
        "devices beside which others can be made": (
            ["--dev", "/dev", "--remount-ro", "/dev"],
            ["--dev", "/dev"],
            "/dev can be written",
        ),
        "a /proc/sys that can be written": (
            ["--ro-bind", "/proc/sys", "/proc/sys"],
            ["--bind", "/proc/sys", "/proc/sys"],
            "/proc/sys can be written",
        ),
        "a cover less": (
            ["--ro-bind", "/dev/null", "/proc/keys"],
            [],
            "/proc/keys is not mounted",
        ),
        "a directory of the host for a home": (
            ["--tmpfs", home],
            ["--tmpfs", home, "--bind", str(world.home.parent / "other"), home],
            f"{home} is not what was to be mounted there",
        ),
        "another /proc": (
            ["--proc", "/proc"],
            # Not a directory of the host: bwrap makes mount points in it, as root in /usr, too.
            ["--proc", "/proc", "--tmpfs", "/proc"],
            "/proc",
        ),
        "another directory in a protection's place": (
            ["--ro-bind-fd", "Source", hooks],
            ["--ro-bind-fd", "Source", hooks, "--ro-bind", "/usr/lib", hooks],
            f"{hooks} is not what was to be mounted there",
        ),
        "a mount too many": (
            ["--remount-ro", "/", "--chdir", project],
            ["--ro-bind", "/root", "/mnt", "--remount-ro", "/", "--chdir", project],
            "/mnt is mounted, which the plan does not say",
        ),
    }


WHAT = (
    "a protection that can be written",
    "a protection less",
    "a stand-in that can be written",
    "a file of the system that can be written",
    "a root that can be written",
    "devices beside which others can be made",
    "a /proc/sys that can be written",
    "a cover less",
    "a directory of the host for a home",
    "another /proc",
    "another directory in a protection's place",
    "a mount too many",
)


@pytest.mark.parametrize("what", WHAT)
def test_a_sandbox_is_not_entered_that_has(repository, what):
    (repository.home.parent / "other").mkdir()
    assert changes(repository).keys() == set(WHAT)
    old, new, says = changes(repository)[what]
    result = launch(repository, old, new)
    assert result.returncode == 1, result.stderr
    assert re.search(f"the sandbox is not what the plan says: ({says})", result.stdout)
    assert "payload" not in result.stdout
    assert not (repository.project / ".mcp.json").exists()


def test_a_sandbox_as_the_plan_says_is_entered(repository):
    assert launch(repository, ["--chdir"], ["--chdir"]).stdout == "payload\n"


def test_known_limit_bwrap_before_0_12_makes_an_empty_file_behind_a_link(repository):
    """What a session of a directory above can do, if it exchanges `.claude` at the right moment.

    bwrap has mounted `.claude` on itself, the mount moves away with the directory, and a link takes
    its place. This comes to the same: the directory is not mounted, and is a link.
    """
    elsewhere = repository.home / "elsewhere"
    elsewhere.mkdir()
    (repository.project / ".claude").mkdir()
    result = launch(
        repository,
        ["--bind-fd", "Source", f"{repository.project}/.claude"],
        [],
        f"os.rename('.claude', 'old'); os.symlink('/oldroot{elsewhere}', '.claude')",
    )
    assert result.returncode == 1, result.stderr
    assert "payload" not in result.stdout
    left = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    said = subprocess.check_output(["bwrap", "--version"], text=True)
    if tuple(map(int, re.findall(r"\d+", said))) < (0, 12):
        assert "the sandbox is not what the plan says" in result.stdout
        assert left == {"settings.json": b"", "settings.local.json": b""}
    else:
        assert "bwrap could not make the sandbox" in result.stdout
        assert left == {}
