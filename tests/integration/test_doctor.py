"""`claudebox doctor` on this very host, and on one that lacks what it needs, as user and as root."""

import json
import os
import shutil
import subprocess

import pytest

IS_ROOT = os.getuid() == 0

# A host without bwrap, claude and npm, in a mount namespace: a file that cannot be executed lies over
# each, and `apt-get` and `npm` take it away. Root in a user namespace needs no sudo.
BARE = """
set -e
cover() { mount --bind "$HOME/nothing" "$(readlink -f "$1")"; }
cover "$(command -v bwrap)"
cover "$(command -v npm)"
cover "$CLAUDE"
mount --bind "$HOME/apt-get" /usr/bin/apt-get
cd "$PWD"
"""
APT_GET = """#!/bin/sh
echo "apt-get $*" >> "$HOME/log"
[ "$1" = install ] || exit 0
[ ! -e "$HOME/broken" ] || exit 100
umount "$(readlink -f /usr/bin/bwrap)"
umount "$(readlink -f "$NPM")"
mount --bind "$HOME/npm" "$(readlink -f "$NPM")"
"""
NPM = """#!/bin/sh
echo "npm $*" >> "$HOME/log"
for package; do :; done
mkdir -p "$HOME/.local/lib/node_modules/$package"
cp "$HOME/claude" "$HOME/.local/lib/node_modules/$package/claude"
"""


def namespace():
    """Return the start of a command line: a shell script that may mount what others do not see."""
    mapping = () if IS_ROOT else ("--user", "--map-root-user")
    return ("unshare", *mapping, "--mount", "bash", "-c")


def checks(document):
    """Return the checks of a JSON report by name."""
    return {check["name"]: check for check in document["checks"]}


def test_a_host_that_launches_has_no_problem(world):
    result = world.run("claudebox", "doctor")
    assert (result.returncode, result.stderr) == (0, "")
    *lines, nothing, last = result.stdout.splitlines()
    assert (nothing, last) == ("", "A launch would work here.")
    verdicts = {line.split()[0] for line in lines if line[0] != " "}
    assert "problem" not in verdicts and "ok" in verdicts
    assert world.inside("true").returncode == 0


def test_everything_that_a_launch_needs_is_looked_at_and_found(world):
    result = world.run("claudebox", "doctor", "--json")
    document = json.loads(result.stdout)
    found = checks(document)
    assert document["launch"] is True and document["package_manager"] == "apt"
    for name in ("python", "machine", "bwrap", "sandbox", "sandbox, network none", "claude", "git"):
        assert found[name]["verdict"] == "ok", found[name]
    for name in ("inet filter", "/dev/net/tun", "inet sidecar"):
        assert found[name]["verdict"] == "ok", found[name]
    assert shutil.which("bwrap") in found["bwrap"]["detail"]
    assert found["credentials"]["detail"] == "no login yet"


def test_looking_changes_nothing(world):
    world.run("claudebox", "doctor")
    assert [path.name for path in world.home.iterdir()] == ["project"]
    assert list(world.project.iterdir()) == []


def test_the_sandbox_is_really_made(world):
    """Without user namespaces bwrap is there and right, and makes none."""
    script = "echo 0 > /proc/sys/user/max_user_namespaces && exec claudebox doctor --json"
    result = world.run("unshare", "--user", "--map-root-user", "bash", "-c", script)
    document = json.loads(result.stdout)
    found = checks(document)
    assert (result.returncode, document["launch"]) == (1, False)
    assert found["bwrap"]["verdict"] == "ok"
    assert found["sandbox"]["verdict"] == "problem"
    assert "bwrap could not make the sandbox" in found["sandbox"]["detail"]
    (line,) = found["user namespaces"]["commands"]
    assert "echo 28633 > /proc/sys/user/max_user_namespaces" in line


def test_fix_changes_a_setting_for_now_and_for_later(world):
    (world.home / "sysctl.d").mkdir()
    script = (
        'mkdir -p /etc/sysctl.d; mount --bind "$HOME/sysctl.d" /etc/sysctl.d\n'
        "echo 0 > /proc/sys/user/max_user_namespaces\n"
        "claudebox doctor --fix --yes && claudebox -y --shell -- -c 'echo works'"
    )
    # A user namespace of its own for root, too: this is its setting.
    words = ("unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script)
    result = world.run(*words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("works\n")
    kept = (world.home / "sysctl.d/60-claudebox.conf").read_text()
    assert kept == "user.max_user_namespaces=28633\n"


@pytest.fixture
def bare(world):
    """Return a function that runs a script on a host without bwrap, claude and npm."""
    claude = os.path.realpath(shutil.which("claude"))
    (world.home / "nothing").touch(mode=0o644)
    shutil.copy("/bin/true", world.home / "claude")
    for name, text in (("apt-get", APT_GET), ("npm", NPM)):
        (world.home / name).write_text(text)
        (world.home / name).chmod(0o755)
    world.environment |= {"CLAUDE": claude, "NPM": shutil.which("npm")}

    def run(script, **options):
        return world.run(*namespace(), BARE + script, **options)

    return run


def log(world):
    """Return what was run of the stand-ins."""
    path = world.home / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_a_bare_host_is_told_the_commands_and_a_launch_would_fail(world, bare):
    result = bare("exec claudebox doctor")
    assert result.returncode == 1
    assert "problem  bwrap " in result.stdout and "problem  claude " in result.stdout
    assert "apt-get install -y --no-install-recommends bubblewrap\n" in result.stdout
    assert result.stdout.endswith("\nA launch would fail here.\n")
    assert log(world) == []


def test_one_command_leads_from_a_bare_host_to_a_session(world, bare):
    script = "claudebox doctor --fix --yes && claudebox -y --shell -- -c 'command -v claude'"
    result = bare(script)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("/opt/claudebox/bin/claude\n")
    machine = {"x86_64": "x64", "aarch64": "arm64"}[os.uname().machine]
    assert log(world) == [
        "apt-get update",
        "apt-get install -y --no-install-recommends bubblewrap npm ca-certificates",
        f"npm install --global --prefix {world.home}/.local --no-fund --no-audit"
        f" @anthropic-ai/claude-code-linux-{machine}",
    ]
    assert os.access(world.home / ".local/bin/claude", os.X_OK)


def test_without_a_terminal_nothing_is_run(world, bare):
    result = bare("exec claudebox doctor --fix", start_new_session=True)
    assert result.returncode == 1 and "no terminal to ask on" in result.stderr
    assert "apt-get install" in result.stdout
    assert log(world) == []


def test_a_no_at_the_terminal_runs_nothing(world, bare):
    # `script` gives it a terminal, on which the answer is typed once the question is there.
    answer = "until grep -q 'Run these' \"$HOME/typescript\"; do sleep 0.05; done; echo n; sleep 1"
    script = f'( {answer} ) | script -qfec "claudebox doctor --fix" "$HOME/typescript"'
    (world.home / "typescript").touch()
    result = bare(script, stdin=subprocess.PIPE)
    assert "not confirmed, so nothing was changed" in result.stdout, result.stdout
    assert result.returncode == 1 and log(world) == []


def test_a_command_that_fails_ends_it_with_one_line(world, bare):
    (world.home / "broken").touch()
    result = bare("exec claudebox doctor --fix --yes")
    assert result.returncode == 1
    assert result.stderr.startswith("claudebox: `apt-get install ")
    assert "failed with status 100" in result.stderr and result.stderr.count("\n") == 1
    assert [line for line in log(world) if line.startswith("npm")] == []


def test_a_launch_that_fails_names_the_doctor(bare):
    result = bare("exec claudebox --check")
    assert result.returncode == 1 and "claudebox doctor" in result.stderr
