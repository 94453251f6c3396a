"""A scratch user for the real sandbox: an own home, an own project, an own environment."""

import os
import shutil
import subprocess
from pathlib import Path

BIN = Path(__file__).resolve().parents[2] / "bin"


class World:
    """A scratch home with a project in it, and the claudebox commands to run there."""

    def __init__(self, base: Path):
        self.home = base / "home"
        self.project = self.home / "project"
        self.project.mkdir(parents=True)
        self.state = self.home / ".claudebox"
        claude = os.path.dirname(shutil.which("claude"))
        self.environment = {
            "HOME": str(self.home),
            "PATH": f"{BIN}:{claude}:/usr/local/bin:/usr/bin:/bin",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
        }

    def run(self, *arguments, cwd=None, env=None, timeout=60, **options):
        """Run a claudebox command line and return the completed process, its output as text."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            arguments,
            cwd=cwd or self.project,
            env={**self.environment, **(env or {})},
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            **options,
        )

    def inside(self, script: str, *options, **keywords):
        """Run a shell script in the sandbox."""
        return self.run("claudebox", "-y", *options, "--shell", "--", "-c", script, **keywords)

    def start(self, *arguments, **options):
        """Start a claudebox command line and return the Popen."""
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.Popen(
            arguments, cwd=self.project, env=self.environment, text=True, **options
        )

    def git(self, *arguments, cwd=None):
        """Run git outside, in the project, as the scratch user, and return what it prints."""
        return subprocess.run(
            ["git", *arguments],
            cwd=cwd or self.project,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def instances(self) -> list[Path]:
        """Return the instance directories."""
        return sorted((self.state / "instances").glob("*"))
