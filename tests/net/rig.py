"""Fixtures of the network tests: the world, and sandboxes started inside its host."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

SYSTEM_PYTHON = "/usr/bin/python3"
PYTHON = SYSTEM_PYTHON if os.access(SYSTEM_PYTHON, os.X_OK) else sys.executable
AS_ROOT = os.geteuid() == 0
SOME_UID = "12345"
PROGRAMS = {
    "bwrap": "bubblewrap",
    "pasta": "passt",
    "slirp4netns": "slirp4netns",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
SYSTEM_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
# Who launches: in a run by root a real root and a real user without any privilege; in anybody
# else's, uid 0 with every capability over the world, and a user without any.
FLAVOURS = ("unprivileged", "root")
SIDECARS = ("pasta", "slirp4netns")


def sidecar(name: str) -> list:
    return [name, shutil.which(name, path=SYSTEM_PATH)]


class Sandbox:
    """A launcher in the world's host namespace with inside.py as its payload."""

    def __init__(self, world, flavour: str, **config):
        self.world = world
        config.setdefault("payload", [PYTHON, "-I", str(HERE / "inside.py")])
        config.setdefault("resolv_conf", str(world.resolv_conf))
        command = [*world.entering(flavour), PYTHON, "-I", "-S", str(HERE / "launch.py")]
        self.process = subprocess.Popen(
            [*command, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env={**os.environ, "PATH": SYSTEM_PATH, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.unread = b""  # select and a buffered reader do not go together
        self.reports = []
        self.other = []

    def line(self, seconds: float = 30) -> str:
        """The next line of the payload; reports are put aside."""
        end = time.monotonic() + seconds
        while True:
            line, newline, rest = self.unread.partition(b"\n")
            if newline:
                self.unread = rest
                text = line.decode()
                if not text.startswith("REPORT "):
                    return text + "\n"
                self.reports.append(json.loads(text[7:]))
                continue
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"the sandbox says nothing: {self.other} {self.reports}")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                raise EOFError(f"the sandbox ended: {self.other} {self.reports}")
            self.unread += more

    def call(self, *what, seconds: float = 30):
        """Have the payload call a function of inside.py."""
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        while True:
            line = self.line(seconds)
            try:
                return json.loads(line)
            except ValueError:
                self.other.append(line)

    def end(self) -> dict:
        """Close the payload's stdin and return the launcher's last report."""
        self.process.stdin.close()
        try:
            while True:
                self.other.append(self.line())
        except EOFError:
            pass
        self.process.wait(10)
        if not self.reports:
            raise AssertionError(f"no report: {self.other}")
        return self.reports[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()


class World:
    """The running world: its log, its resolv.conf, and the way into its host."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.log_path = directory / "log"
        self.resolv_conf = directory / "resolv.conf"
        self.set_resolvers("192.168.7.1")
        self.process = subprocess.Popen(
            [PYTHON, str(HERE / "world.py"), str(self.log_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": SYSTEM_PATH, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        line = self.process.stdout.readline()
        assert line, "the world could not be made; see stderr"
        self.pids = json.loads(line)
        self._mark = 0

    def set_resolvers(self, *addresses: str) -> None:
        new = self.directory / "resolv.conf.new"
        new.write_text("".join(f"nameserver {each}\n" for each in addresses))
        new.chmod(0o644)
        new.rename(self.resolv_conf)

    def entering(self, flavour: str) -> list:
        """The command prefix that runs a program in the host namespace as `flavour`."""
        enter = ["nsenter", "-t", str(self.pids["host"]), "-n"]
        if AS_ROOT:
            enter.append("-m")
            user = ["setpriv", f"--reuid={SOME_UID}", f"--regid={SOME_UID}", "--clear-groups"]
        else:
            enter += ["-U", "--preserve-credentials"]
            user = ["unshare", "-U", f"--map-user={SOME_UID}", f"--map-group={SOME_UID}"]
        return enter + (user if flavour == "unprivileged" else [])

    def batch(self, commands: list) -> None:
        """Run `ip` commands in the host's namespace."""
        self.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")

    def run(self, *command: str, place: str = "host", stdin: str = "") -> str:
        """Run a program with power over one of the world's namespaces."""
        enter = ["nsenter", "-t", str(self.pids[place]), "-n"]
        enter += [] if AS_ROOT else ["-U", "--preserve-credentials"]
        ran = subprocess.run(
            [*enter, *command],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": SYSTEM_PATH},
        )
        assert ran.returncode == 0, f"{command}: {ran.stderr or ran.stdout}"
        return ran.stdout

    def launch(self, flavour: str = "unprivileged", **config) -> Sandbox:
        return Sandbox(self, flavour, **config)

    def forget(self) -> None:
        """Begin a new page of the log."""
        self._mark = self.log_path.stat().st_size if self.log_path.exists() else 0

    def log(self) -> list:
        """What the servers have logged since forget()."""
        time.sleep(0.1)
        with open(self.log_path) as log:
            log.seek(self._mark)
            return [json.loads(line) for line in log]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)


@contextlib.contextmanager
def open_directory():
    """A temporary directory that every user can read, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="claudebox-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture(scope="session")
def world():
    """The test network; a missing program fails with how to get it."""
    missing = sorted(
        {PROGRAMS[each] for each in PROGRAMS if not shutil.which(each, path=SYSTEM_PATH)}
    )
    if missing:
        pytest.fail(f"apt-get install {' '.join(missing)}")
    with open_directory() as directory:
        made = World(directory)
        yield made
        made.close()


@pytest.fixture(params=FLAVOURS)
def flavour(request) -> str:
    return request.param


@pytest.fixture(params=SIDECARS)
def each_sidecar(request) -> list:
    return sidecar(request.param)
