"""A scratch host: a home full of secrets, a project of many parts, and what is true of them."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

from mount_checker import SECRETS_OF_HOME, Facts

CANARY = "canary-91d0"
_CONFIGURATION = """[user]
	name = Fuzz Test
	email = fuzz@example.org
[init]
	defaultBranch = main
[protocol "file"]
	allow = always
"""


class Host:
    """Everything below one temporary directory; `restore` undoes what was done to it."""

    def __init__(self, base: Path):
        self.base = base
        self.home = base / "home"
        self.project = self.home / "src" / "app"
        self.worktree = self.home / "src" / "tree"
        self.docs = base / "docs"
        self.shared = base / "shared"
        self.state = self.home / ".claudebox"
        self._journal = []
        programs = base / "programs"
        for directory in (self.home, self.docs, self.shared, programs, base / "aside"):
            directory.mkdir(parents=True)
        (self.docs / "page").write_text("a page\n")
        (self.docs / "way").symlink_to(self.home / ".ssh")
        (self.docs / "old").symlink_to("/oldroot/etc")
        # What the launcher runs outside: never from a scratch plan, so they only have to look real.
        (programs / "claude").write_bytes(b"\x7fELF" + bytes(60))
        (programs / "bwrap").write_text("#!/bin/sh\n# knows --disable-userns --bind-fd\nexit 99\n")
        for name in ("claude", "bwrap"):
            (programs / name).chmod(0o755)
        self.environment = {
            "HOME": str(self.home),
            "PATH": f"{programs}:/usr/bin:/bin",
            "TERM": "xterm",
            "LANG": "C.UTF-8",
            "SSH_AUTH_SOCK": f"{base}/agent/socket",
            "MY_TOKEN": CANARY,
        }
        self._plant_secrets()
        self._make_project()

    def _plant_secrets(self) -> None:
        vault = self.base / "vault"
        vault.mkdir()
        (vault / "keys").mkdir()
        (vault / "keys" / "secret").write_text(CANARY)
        (self.home / ".gnupg").symlink_to(vault / "keys")
        for name in SECRETS_OF_HOME:
            path = self.home / name
            if os.path.lexists(path):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in (".ssh", ".aws", ".kube", ".claude", ".docker"):
                path.mkdir()
                (path / "secret").write_text(CANARY)
            else:
                path.write_text(CANARY)
        (self.home / ".ssh" / "id_ed25519").write_text(CANARY)
        (self.home / ".claude" / ".credentials.json").write_text('{"claudeAiOauth": {}}')
        (self.home / ".gitconfig").write_text(_CONFIGURATION)
        (self.home / ".bashrc").write_text("true\n")
        agent = self.base / "agent"
        agent.mkdir()
        os.mkfifo(agent / "socket")

    def git(self, directory, *words) -> None:
        """Run the real git there."""
        subprocess.run(
            ["/usr/bin/git", "-C", directory, *words],
            env={"HOME": str(self.home), "PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
        )

    def _make_project(self) -> None:
        source = self.base / "library"
        for directory in (source, self.project):
            directory.mkdir(parents=True)
            self.git(directory, "init", "-q")
            self.git(directory, "commit", "-q", "--allow-empty", "-m", "first")
        self.git(self.project, "submodule", "-q", "add", str(source), "deps/library")
        self.git(self.project, "commit", "-q", "-am", "second")
        self.git(self.project, "worktree", "add", "-q", str(self.worktree))
        nested = self.project / "vendor" / "nested"
        nested.mkdir(parents=True)
        self.git(nested, "init", "-q")
        (self.project / "bare").mkdir()
        self.git(self.project / "bare", "init", "-q", "--bare")
        (self.project / ".git" / "hooks" / "pre-commit").write_text("#!/bin/sh\n")
        (self.project / ".claude").mkdir()
        (self.project / ".claude" / "settings.json").write_text('{"model": "x"}\n')
        (self.project / "sub" / "deeper").mkdir(parents=True)
        (self.project / "tools").mkdir()
        (self.project / "tools" / "more.inc").write_text("[core]\n\tpager = cat\n")
        self.git(self.project, "config", "include.path", "../tools/more.inc")
        (self.project / "keys").symlink_to(self.home / ".ssh")
        (self.project / "out").symlink_to("/oldroot/root")
        (self.project / ".env").write_text("TOKEN=x\n")
        for place in (self.project, nested, self.project / "bare"):
            for sample in place.rglob("hooks/*.sample"):
                sample.unlink()
        shutil.copytree(self.project / "bare", self.base / "bare")

    def set_aside(self, place: str) -> None:
        """Take what is at `place` away until `restore`; what is put there then goes."""
        kept = None
        if os.path.lexists(place):
            kept = f"{self.base}/aside/{len(self._journal)}"
            os.rename(place, kept)
        self._journal.append((place, kept, None))

    def change_mode(self, place: str, mode: int) -> None:
        """Change the permissions of `place` until `restore`."""
        self._journal.append((place, None, stat.S_IMODE(os.lstat(place).st_mode)))
        os.chmod(place, mode)

    def restore(self) -> None:
        """Undo what was done to the disk, the last thing first."""
        while self._journal:
            place, kept, mode = self._journal.pop()
            if mode is not None:
                os.chmod(place, mode)
                continue
            if os.path.isdir(place) and not os.path.islink(place):
                shutil.rmtree(place)
            elif os.path.lexists(place):
                os.unlink(place)
            if kept:
                os.rename(kept, place)

    def facts(self, plan: dict) -> Facts:
        """Return what is true of the host for a session in the directory that `plan` names.

        Where it starts, what it openly asks for, and whether namespaces may nest, is the plan's to
        say; the rest is not.
        """
        root = plan["project"]["root"]
        return Facts(
            home=str(self.home),
            root=root,
            cwd=plan["project"]["cwd"],
            state=str(self.state),
            instance=self._instance(root),
            host_credentials=f"{self.home}/.claude/.credentials.json",
            common_dir=self.common_dir(root),
            more_secrets=(f"{self.base}/agent/socket", f"{self.base}/vault/keys"),
            asked_for=tuple(
                mount["source"]
                for mount in plan["mounts"]
                if mount["kind"] == "bind"
                and (mount["reason"] == "--mount" or mount["reason"].startswith("profile:"))
            ),
            tier=plan["network"]["tier"],
            can_disable_userns=plan["bwrap"]["disable_userns"],
        )

    def common_dir(self, root: str) -> str | None:
        """Return where the git directory of one of this host's own projects is."""
        if root == str(self.worktree):
            return f"{self.project}/.git"
        if root == f"{self.project}/deps/library":
            return f"{self.project}/.git/modules/deps/library"
        git = root + "/.git"
        return git if os.path.isdir(git) and os.listdir(git) else None

    def _instance(self, root: str) -> str:
        from hashlib import sha256

        owner = str(self.project) if root == str(self.worktree) else root
        name = sha256(os.fsencode(owner)).hexdigest()[:16]
        return f"{self.state}/instances/{name}"
