"""What the unit tests share: a scratch home, a project, an environment made from nothing."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from claudebox import instance  # noqa: E402
from claudebox import project as project_walk  # noqa: E402
from claudebox.sandbox import state  # noqa: E402

# Where this machine has the programs that the tests run: not every one has a /usr/bin.
PROGRAMS = ("bash", "env", "git", "python3", "sed", "sh")
SYSTEM = ":".join(
    dict.fromkeys(
        (
            *(os.path.dirname(shutil.which(name) or "/usr/bin/x") for name in PROGRAMS),
            "/usr/bin",
            "/bin",
        )
    )
)

GIT_CONFIGURATION = """
[user]
	name = Unit Test
	email = unit@example.org
[init]
	defaultBranch = main
[protocol "file"]
	allow = always
"""


@pytest.fixture(scope="session")
def bin_directory():
    """The directory of the executables of this checkout."""
    return ROOT / "bin"


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """A directory for PATH: a `claude` that looks like a program, and a `bwrap` that never runs."""
    path = tmp_path_factory.mktemp("programs")
    (path / "claude").write_bytes(b"\x7fELF" + bytes(60))
    (path / "bwrap").write_text("#!/bin/sh\n# knows --disable-userns\nexit 99\n")
    for name in ("claude", "bwrap"):
        (path / name).chmod(0o755)
    return path


@pytest.fixture
def home(tmp_path):
    """A home directory with nothing but a git identity in it."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    (path / ".gitconfig").write_text(GIT_CONFIGURATION)
    return path


@pytest.fixture
def project(tmp_path, home):
    """An empty project directory of a user who has a home directory."""
    path = tmp_path / "project"
    path.mkdir()
    return path


@pytest.fixture
def tools(tmp_path):
    """An empty directory that comes first on PATH."""
    path = tmp_path / "tools"
    path.mkdir()
    return path


@pytest.fixture
def scratch_environment(tmp_path, home, programs):
    """The variables that every command of these tests starts with."""
    return {
        "HOME": str(home),
        "PATH": f"{tmp_path}/tools:{programs}:{SYSTEM}",
        "LANG": "C.UTF-8",
        "TERM": "xterm",
    }


@pytest.fixture(autouse=True)
def environment(request, monkeypatch):
    """Replace this process's own environment by the scratch one, and forget earlier walks."""
    for name in os.environ:
        if not name.startswith("PYTEST_"):
            monkeypatch.delenv(name)
    scratch = {"HOME": "/nonexistent", "PATH": SYSTEM}
    if "home" in request.fixturenames:
        scratch = request.getfixturevalue("scratch_environment")
    for name, value in scratch.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(project_walk, "_walks", {})


@pytest.fixture
def run(bin_directory, project, scratch_environment):
    """Run an executable of this checkout in the project, without a terminal."""

    def run_command(name, *arguments, env=None, cwd=None, text=True, stdin=b"", **options):
        if "input" not in options and isinstance(stdin, bytes | str):
            options["input"] = stdin.decode() if text and isinstance(stdin, bytes) else stdin
        else:
            options.setdefault("stdin", stdin)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.run(
            [bin_directory / name, *arguments],
            env={**scratch_environment, **(env or {})},
            cwd=cwd or project,
            text=text,
            start_new_session=True,
            timeout=20,
            **options,
        )

    return run_command


@pytest.fixture
def is_one_line_error():
    """Check that a command ended with one line on stderr and a non-zero status; return the line."""

    def check(done, status=None):
        error = done.stderr if isinstance(done.stderr, str) else done.stderr.decode()
        assert error.startswith("claudebox: "), error
        assert error.endswith("\n") and error.count("\n") == 1, error
        assert done.returncode != 0 if status is None else done.returncode == status
        return error

    return check


def _sample(home, project):
    state = f"{home}/.claudebox"
    return {
        "schema": "claudebox/1",
        "project": {
            "cwd": str(project),
            "root": str(project),
            "git": {
                "dir": f"{project}/.git",
                "common_dir": f"{project}/.git",
                "worktree": False,
            },
        },
        "instance": {
            "id": "0123456789abcdef",
            "path": f"{state}/instances/0123456789abcdef",
            "root": str(project),
        },
        "user": {"name": "unit", "uid": os.getuid(), "gid": os.getgid(), "home": str(home)},
        "profile": None,
        "network": {"tier": "full", "source": "default"},
        "nix": None,
        "bwrap": {"path": "/usr/bin/bwrap", "disable_userns": True, "bind_fd": True},
        "limits": {"processes": 100, "memory": 1 << 30, "tmp": 1 << 28},
        "packages": [],
        "env": [
            {"name": "TERM", "source": "host"},
            {"name": "ANTHROPIC_API_KEY", "source": "host", "secret": True},
            {"name": "EXTRA", "source": "host", "reason": "--env"},
            {"name": "HOME", "source": "claudebox", "value": str(home)},
        ],
        "mounts": [
            {"kind": "ro-bind", "source": "/usr", "target": "/usr", "reason": "system"},
            {"kind": "symlink", "source": "usr/bin", "target": "/bin", "reason": "system"},
            {"kind": "proc", "target": "/proc", "reason": "system"},
            {"kind": "mask", "target": "/proc/keys", "reason": "system"},
            {"kind": "dev", "target": "/dev", "reason": "system"},
            {"kind": "tmpfs", "target": "/tmp", "reason": "system"},
            {"kind": "tmpfs", "target": "/scratch", "reason": "system", "size": 1048576},
            {"kind": "file", "content": "x\n", "target": "/etc/passwd", "reason": "system"},
            {"kind": "briefing", "target": "/etc/claude-code/CLAUDE.md", "reason": "system"},
            {"kind": "tmpfs", "target": str(home), "reason": "system"},
            {
                "kind": "bind",
                "source": f"{state}/instances/0123456789abcdef/claude",
                "target": f"{home}/.claude",
                "reason": "instance",
            },
            {
                "kind": "bind",
                "source": str(project),
                "target": str(project),
                "reason": "project",
            },
            {"kind": "empty-dir", "target": f"{project}/.git", "reason": "protected"},
        ],
        "hide": [],
        "command": ["claude", "--dangerously-skip-permissions"],
        "notes": ["a note"],
    }


@pytest.fixture
def sample(home, project):
    """A small launch plan with one of every kind of mount and every source of variables."""
    return _sample(home, project)


@pytest.fixture
def paper_plan():
    """The same for a home and a project that are nowhere."""
    return _sample("/home/u", "/home/u/src/app")


GIT = shutil.which("git")


def _git(directory, *arguments, **environment):
    done = subprocess.run(
        [GIT, "-C", directory, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def git(home):
    """Run the real git in a directory and return what it printed."""
    return _git


@pytest.fixture(scope="session")
def git_templates(tmp_path_factory):
    """Repositories to copy: `plain` with one commit, `outer` with it as submodule deps/library."""
    base = tmp_path_factory.mktemp("repositories")
    (base / ".gitconfig").write_text(GIT_CONFIGURATION)
    for name in ("plain", "outer"):
        (base / name).mkdir()
        _git(base / name, "init", "-q", HOME=str(base))
        _git(base / name, "commit", "-q", "--allow-empty", "-m", "first", HOME=str(base))
    words = ("submodule", "--quiet", "add", f"{base}/plain", "deps/library")
    _git(base / "outer", *words, HOME=str(base))
    # One sample of a hook is as good as twelve, and quicker to copy.
    for sample_hook in base.rglob("hooks/*.sample"):
        if sample_hook.name != "pre-commit.sample":
            sample_hook.unlink()
    return base


@pytest.fixture
def repository(git_templates):
    """Make a git repository with one commit in a directory, and return the directory."""

    def make(directory):
        shutil.copytree(git_templates / "plain", directory, symlinks=True, dirs_exist_ok=True)
        return directory

    return make


@pytest.fixture
def submodule(git_templates, project):
    """Make the project a repository with the submodule deps/library; return the submodule's path."""
    shutil.copytree(git_templates / "outer", project, symlinks=True, dirs_exist_ok=True)
    return project / "deps" / "library"


@pytest.fixture
def alarm():
    """Fail a test that hangs: SIGALRM interrupts it after some seconds."""

    def rang(_number, _frame):
        raise AssertionError("this took too long")

    def start(seconds):
        signal.signal(signal.SIGALRM, rang)
        signal.alarm(seconds)

    yield start
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.fixture
def made(home, project):
    """An instance of the project, as a session leaves it; returns its path."""
    plan = instance.resolve(str(project), shell=True)
    opened = state.prepare(plan)
    state.seed(opened, plan)
    opened.close()
    return plan["instance"]["path"]
