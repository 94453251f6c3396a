"""A host with a nix daemon, made by bwrap: its own /nix and /etc, the programs of this machine."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

BIN = Path(__file__).resolve().parents[2] / "bin"
# What Debian's programs need of /etc.
ETC = ("alternatives", "group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd", "ssl")
# What is no file of a distribution.
BARE = ("dev", "proc", "sys", "tmp", "var")
SANDBOXED = "sandbox = true\nsandbox-fallback = false\nbuild-users-group =\nsubstituters =\n"
# Another user than root where root makes the world, so that it is not the daemon's own.
USER = "claudebox-test"


_RUN = 'cd "$0" && exec /tools/env -i "$@"'


class NixHost:
    """A mount namespace with a /nix of its own, where a nix daemon may run; `run` runs in it.

    Root's has a daemon of root's, and commands run as another user, as on a real host. Another
    user's daemon is that user's own, which claudebox does not take for one that sandboxes. With
    `store`, the /nix of another one, it has no programs but those in there, and no /usr at all.
    """

    def __init__(self, configuration: str = SANDBOXED, store: Path | None = None):
        # Not in pytest's own directory, which it closes to other users time and again.
        self.base = base = Path(tempfile.mkdtemp(prefix="claudebox-nix.", dir="/var/tmp"))
        base.chmod(0o755)
        self.is_root = os.getuid() == 0
        self.home = base / "home"
        self.project = self.home / "project"
        self.configuration = base / "nix.conf"
        self.daemon = None
        self.nix_directory = store or base / "nix"
        self.has_usr = store is None
        self.project.mkdir(parents=True)
        for path in ("store", "var/nix"):
            (self.nix_directory / path).mkdir(parents=True, exist_ok=True)
        self.write_configuration(configuration)
        self._own()
        # For a world without programs: a shell and `env` that need nothing.
        (base / "tools").mkdir()
        for name in ("sh", "env"):
            shutil.copy("/bin/busybox", base / "tools" / name)
        claude = os.path.dirname(shutil.which("claude"))
        self.environment = {
            "HOME": str(self.home),
            "PATH": f"{BIN}:{claude}:/usr/local/bin:/usr/bin:/bin",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
        }
        self._world = subprocess.Popen(
            [*self._bwrap(), "/tools/sh", "-c", "echo ready; read -r end"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._world.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{self._world.pid}/task/{self._world.pid}/children").read_text()
        # Root's bwrap has no process between.
        self._inside = (children.split() or [str(self._world.pid)])[0]

    def _bwrap(self):
        words = ["bwrap", "--die-with-parent"]
        if self.is_root:
            words += ["--cap-add", "ALL"]
        for name in sorted(os.listdir("/")):
            path = f"/{name}"
            if name in ("nix", "etc", "tools") or not (self.has_usr or name in BARE):
                continue
            if os.path.islink(path):
                words += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                words += ["--dev-bind", path, path]
        words += [
            "--bind",
            str(self.nix_directory),
            "/nix",
            "--ro-bind",
            str(self.base / "tools"),
            "/tools",
        ]
        words += ["--perms", "0755", "--dir", "/etc", "--perms", "0755", "--dir", "/etc/nix"]
        for name in ETC if self.has_usr else ("group", "passwd"):
            words += ["--ro-bind", f"/etc/{name}", f"/etc/{name}"]
        words += ["--ro-bind", os.path.realpath("/etc/resolv.conf"), "/etc/resolv.conf"]
        return [*words, "--ro-bind", str(self.configuration), "/etc/nix/nix.conf", "--"]

    def _own(self):
        """Give the scratch home to the user that commands run as."""
        if self.is_root:
            subprocess.run(["chown", "-R", f"{USER}:", str(self.home)], check=True)

    def write_configuration(self, text: str):
        """Write /etc/nix/nix.conf in place: it is mounted."""
        with open(self.configuration, "w", encoding="ascii") as file:
            file.write(text)

    def enter(self, *command, as_daemon=False):
        """Return the words that run a command in this world."""
        words = ["nsenter", "-t", self._inside, "-m"]
        if not self.is_root:
            words += ["-U", "--preserve-credentials"]
        elif not as_daemon:
            user = pwd.getpwnam(USER)
            words += ["-S", str(user.pw_uid), "-G", str(user.pw_gid)]
        return [*words, "--", *map(str, command)]

    def start_daemon(self):
        """Start nix-daemon, and wait until one can connect to it."""
        self.daemon = subprocess.Popen(
            self.enter(
                "env", "-i", "PATH=/usr/bin:/bin", "HOME=/nonexistent", "nix-daemon", as_daemon=True
            ),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        socket = self.nix_directory / "var/nix/daemon-socket/socket"
        end = time.monotonic() + 30
        while not socket.is_socket():
            assert self.daemon.poll() is None and time.monotonic() < end, "no nix daemon"
            time.sleep(0.02)

    def run(self, *command, env=None, cwd=None, **options):
        """Run a command in this world as its user, in the project; return the completed process."""
        options.setdefault("stdin", subprocess.DEVNULL)
        words = [f"{name}={value}" for name, value in {**self.environment, **(env or {})}.items()]
        return subprocess.run(
            self.enter("/tools/sh", "-c", _RUN, cwd or self.project, *words, *command),
            cwd="/",
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=120,
            **options,
        )

    def inside(self, script: str, *options, **keywords):
        """Run a shell script in a sandbox that claudebox makes in this world."""
        return self.run("claudebox", "-y", *options, "--shell", "--", "-c", script, **keywords)

    def nix(self, *words, **keywords):
        """Run a nix command in this world, outside of any sandbox, and return what it printed."""
        environment = {
            "NIX_REMOTE": "daemon",
            "NIX_CONFIG": "experimental-features = nix-command flakes",
        }
        done = self.run(*words, env=environment, **keywords)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def store_file(self, path: str) -> Path:
        """Return where something of this world's store is outside of it."""
        return self.nix_directory / path.removeprefix("/nix/")

    def write(self, path: str, content: str | bytes):
        """Write a file of the project, as its user."""
        file = self.project / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        self._own()
        return file

    def close(self):
        """End the daemon and the world, and remove its store, which is read-only."""
        if self.daemon is not None:
            # The daemon's children, one for each connection, end with their clients.
            self.daemon.terminate()
            self.daemon.wait()
        self._world.stdin.close()
        self._world.wait()
        self._world.stdout.close()
        subprocess.run(["chmod", "-R", "u+w", str(self.base)], check=False)
        shutil.rmtree(self.base, ignore_errors=True)
