"""A host full of canaries: run inside bwrap, it fills its own /home, /run, /tmp, …, and launches there.

Its one argument is JSON: what to launch. Its standard output is JSON: what the probes and what this
host itself saw. Nothing of the real machine is touched: what it fills are file systems of its own.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import pty
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
CHECKOUT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, CHECKOUT]

from probes import CANARY, call, environment, files, libc, services  # noqa: E402

from claudebox import policy  # noqa: E402

USER_HOME = "/root" if os.getuid() == 0 else "/home/ann"
PYTHON = ["/usr/bin/python3", "-I", "-B"]
SESSION = 60

# A process of the caller: canaries in its memory, environment, command line and descriptors. It says
# where, then marks each SIGURG that reaches it. A debugger may have it, as far as this kernel asks.
VICTIM = """
import ctypes, json, os, signal, sys
canary = ctypes.create_string_buffer(os.environ["CANARY"].encode())
ctypes.CDLL(None).prctl(0x59616d61, -1, 0, 0, 0)
file = os.open("deleted", os.O_RDWR | os.O_CREAT)
os.write(file, os.environ["CANARY"].encode())
os.unlink("deleted")
signal.signal(signal.SIGURG, lambda *_: open(os.environ["MARK"], "w").close())
with open(os.environ["SAY"] + ".partial", "w") as say:
    json.dump([os.getpid(), ctypes.addressof(canary), file], say)
os.rename(os.environ["SAY"] + ".partial", os.environ["SAY"])
while True:
    signal.pause()
"""


def write(path: str, text: str = CANARY + "\n") -> None:
    """Make a file and the directories that it lies in."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def wait_for(condition, seconds=30):
    """Return what `condition()` says once it is true; raise TimeoutError if it never is."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError("the world of the canaries does not come up")
        time.sleep(0.002)


class Services:
    """Sockets that answer whoever connects with the canary, from one thread."""

    def __init__(self):
        self._selector = selectors.DefaultSelector()
        self.paths = {}
        self._all = []

    def add(self, listener) -> None:
        listener.listen()
        listener.setblocking(False)
        self._all.append(listener)
        self._selector.register(listener, selectors.EVENT_READ, self._answer)

    def unix(self, name: str, path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        self.paths[name] = path
        self.add(listener)

    def datagrams(self, receiver) -> None:
        receiver.setblocking(False)
        self._all.append(receiver)
        self._selector.register(receiver, selectors.EVENT_READ, self._answer_datagram)

    @staticmethod
    def _answer(listener) -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            client.send(CANARY.encode())
            client.close()

    @staticmethod
    def _answer_datagram(receiver) -> None:
        with contextlib.suppress(OSError):
            _, sender = receiver.recvfrom(4096)
            if sender:
                receiver.sendto(CANARY.encode(), sender)

    def serve(self) -> None:
        threading.Thread(target=self._loop, daemon=True).start()

    def _loop(self) -> None:
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)


class Host:
    """The world: canaries everywhere, services that listen, and a project in the middle."""

    def __init__(self):
        self.home = USER_HOME
        self.project = f"{self.home}/src/app"
        self.runtime = f"/run/user/{os.getuid()}"
        self.marks = f"{self.home}/marks"
        self.services = Services()
        self.facts = {}
        self.processes = []
        self.descriptors = []

    def fill(self) -> None:
        """Put canaries wherever one could be looked for."""
        self._directories()
        self._home()
        self._services()
        self._objects()
        self._project()

    def _directories(self) -> None:
        for place in files.CANARY_DIRECTORIES:
            write(f"{place}/canary")
            write(f"{place}/deeper/canary")
        for name in ("log", "mail", "spool", "lib", "lib/tailscale", "cache"):
            write(f"/var/{name}/canary")
        if not os.path.lexists("/var/run"):
            os.symlink("/run", "/var/run")
        for home in ("/root", "/home/bob"):
            for name in ("canary", ".ssh/id_ed25519", ".bash_history"):
                write(f"{home}/{name}")

    def _home(self) -> None:
        self.secrets = [
            f"{self.home}/{name}" + ("" if _is_file(name) else "/canary")
            for name in policy.SECRET_HOME_PATHS
        ]
        self.secrets.append(f"{self.home}/.ssh/id_ed25519")
        for path in (*self.secrets, *(f"{self.home}/{name}" for name in files.FURTHER_SECRETS)):
            with contextlib.suppress(FileExistsError):
                write(path)
        write(f"{self.home}/.ssh/authorized_keys")
        write(
            f"{self.home}/.gitconfig",
            "[user]\n\tname = Ann\n\temail = ann@example.org\n"
            f"[credential]\n\thelper = !echo {CANARY}\n[http]\n\textraHeader = {CANARY}\n",
        )
        other = f"{self.home}/.claudebox/instances/{'0' * 16}"
        write(f"{other}/instance.json", json.dumps({"root": "/x", "created": 1, "c": CANARY}))
        write(f"{other}/claude/history.jsonl")
        # All that claudebox wants of it here is that it is there.
        os.makedirs(f"{self.home}/.local/bin", exist_ok=True)
        shutil.copy("/bin/true", f"{self.home}/.local/bin/claude")

    def _services(self) -> None:
        names = {"runtime": self.runtime, "home": self.home, "uid": os.getuid()}
        for name, (_, path) in services.SOCKETS.items():
            self.services.unix(name, path.format(**names)) if not name.endswith("_var") else None
        for name in ("dbus_system", "docker"):
            self.services.paths[name + "_var"] = "/var" + self.services.paths[name]
        self.services.unix("named", f"{self.home}/sockets/named")
        self.services.unix("project", f"{self.project}/links/socket")
        if os.path.isdir("/nix/var"):
            self.services.unix("nix", "/nix/var/nix/daemon-socket/socket")
        unique = f"claudebox-canary-{os.getpid()}-{random.randrange(1 << 30)}"
        for address, key in (
            (unique, "abstract"),
            (f"/tmp/.X11-unix/X9{os.getpid()}", "abstract_x"),
        ):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind("\0" + address)
            self.services.add(listener)
            self.facts[key] = address
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind("\0" + unique + "-datagram")
        self.services.datagrams(receiver)
        self._network()
        self.services.serve()

    def _network(self) -> None:
        listener = socket.socket(socket.AF_INET)
        listener.bind(("0.0.0.0", 0))
        port = self.facts["tcp_port"] = listener.getsockname()[1]
        self.services.add(listener)
        self.facts["ipv6"] = False
        with contextlib.suppress(OSError):
            listener = socket.socket(socket.AF_INET6)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(("::1", port))
            self.services.add(listener)
            self.facts["ipv6"] = True
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("127.0.0.1", 0))
        self.facts["udp_port"] = receiver.getsockname()[1]
        self.services.datagrams(receiver)
        self.facts["address"] = None
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
        ):
            # Nothing is sent: the kernel chooses the address that it would send from.
            asking.connect(("192.0.2.1", 9))
            self.facts["address"] = asking.getsockname()[0]

    def _objects(self) -> None:
        """Kernel keys, IPC objects, terminals: all gone with this process, or soon after."""
        # KEYCTL_JOIN_SESSION_KEYRING
        call("keyctl", 1, None)
        name = f"claudebox-canary-{os.getpid()}"
        for kind in ("session", "user"):
            serial = call("add_key", b"user", f"{name}-{kind}".encode(), CANARY.encode(), 13, -3)
            # KEYCTL_SETPERM: all to possessor and user. KEYCTL_SET_TIMEOUT, in seconds.
            call("keyctl", 5, serial, 0x3F3F0000)
            call("keyctl", 15, serial, 300)
            self.facts[f"{kind}_key"] = f"{name}-{kind}"
            self.facts[f"{kind}_key_serial"] = serial
        # KEYCTL_LINK, KEYCTL_UNLINK: from the session's keyring into the user's.
        call("keyctl", 8, serial, -4)
        call("keyctl", 9, serial, -3)
        # This world has an IPC namespace of its own. IPC_CREAT | IPC_EXCL.
        key = self.facts["ipc_key"] = random.randrange(1 << 20, 1 << 30)
        shm = self.facts["shm"] = call("shmget", key, 4096, 0o3666)
        ctypes.memmove(call("shmat", shm, None, 0), CANARY.encode(), len(CANARY))
        queue = call("msgget", key, 0o3666)
        for _ in range(8):
            call(
                "msgsnd", queue, (1).to_bytes(8, "little") + CANARY.encode().ljust(32, b"\0"), 32, 0
            )
        call("semget", key, 1, 0o3666)
        self.facts["mqueue"] = name
        attributes = (
            (0).to_bytes(8, "little") + (8).to_bytes(8, "little") + (8192).to_bytes(8, "little")
        )
        queue = call(
            "mq_open", name.encode(), os.O_RDWR | os.O_CREAT, 0o666, attributes + bytes(40)
        )
        for _ in range(4):
            call("mq_timedsend", queue, CANARY.encode().ljust(32, b"\0"), 32, 0, None)
        master, slave = pty.openpty()
        self.facts["other_terminal"] = os.ttyname(slave)
        self.descriptors += [master, slave]

    def _project(self) -> None:
        project = self.project
        # What a control's environment says must not lead git elsewhere.
        plain = {"HOME": self.home, "PATH": "/usr/bin:/bin"}
        subprocess.run(["git", "init", "-q", project], check=True, env=plain)
        for name in ("links", "crash", "moving/deep"):
            os.makedirs(f"{project}/{name}", exist_ok=True)
        write(f"{project}/main.c", "int main() {}\n")
        links = {
            "absolute": f"{self.home}/.ssh/id_ed25519",
            "relative": "../../../.ssh/id_ed25519",
            "directory": f"{self.home}/.ssh",
            "proc-root": f"/proc/1/root{self.home}/.ssh/id_ed25519",
            "proc-self": f"/proc/self/root{self.home}/.ssh/id_ed25519",
            "proc-cwd": "/proc/self/cwd/../../.ssh/id_ed25519",
        }
        for name, target in links.items():
            os.symlink(target, f"{project}/links/{name}")
        os.link(f"{self.home}/.ssh/id_ed25519", f"{project}/links/hard")
        write(f"{project}/mounted/canary")
        shutil.copytree(
            f"{HERE}/probes", f"{project}/probes", ignore=shutil.ignore_patterns("__pycache__")
        )

    def tell(self, sandboxed: bool, let_in_names=(), nix_let_in=False) -> None:
        """Write what the probes may know of this host: an attacker may know it as well."""
        facts = {
            **self.facts,
            "sandboxed": sandboxed,
            "let_in_names": list(let_in_names),
            "nix_let_in": nix_let_in,
            "home_secrets": self.secrets,
            "system_secrets": list(policy.SECRET_SYSTEM_PATHS),
            "project": self.project,
            "checkout": CHECKOUT,
            "user": subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip(),
            "sockets": self.services.paths,
            "hostname": socket.gethostname(),
            "namespaces": {
                name: os.readlink(f"/proc/self/ns/{name}")
                for name in ("user", "pid", "ipc", "uts", "mnt", "net", "cgroup")
            },
        }
        write(f"{self.project}/facts.json", json.dumps(facts))

    # ------------------------------------------------------------------------------ launching

    def caller_environment(self) -> dict[str, str]:
        """Return the environment of somebody with a secret in every variable."""
        return {
            **environment.caller(),
            "HOME": self.home,
            "PATH": f"{CHECKOUT}/bin:{self.home}/.local/bin:/usr/local/bin:/usr/bin:/bin",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "LET_IN": "let-in-value",
        }

    def inherited_descriptors(self) -> dict[int, int]:
        """Open a canary of each kind; return number in the launched process → our descriptor."""
        secret = f"{self.home}/.ssh/id_ed25519"
        deleted = os.open("/tmp/deleted", os.O_RDWR | os.O_CREAT)
        os.write(deleted, CANARY.encode())
        os.unlink("/tmp/deleted")
        memory = os.memfd_create("canary")
        os.write(memory, CANARY.encode())
        ours, theirs = socket.socketpair()
        ours.send(CANARY.encode())
        reader, writer = os.pipe()
        os.write(writer, CANARY.encode())
        self.descriptors += [ours.detach(), writer]
        special = [
            deleted,
            memory,
            theirs.detach(),
            reader,
            os.open(self.home, os.O_RDONLY),
            os.open("/", os.O_PATH),
            os.open(secret, os.O_RDWR),
        ]
        plain = [os.open(secret, os.O_RDONLY) for _ in range(18 - len(special))]
        return dict(zip(range(3, 21), plain + special, strict=True))

    def start(self, command: list[str], stderr: int) -> subprocess.Popen:
        """Start `command` in the project: on a terminal of its own, with descriptors 3 to 20 open.

        Another process stands beside it in its process group.
        """
        # Beyond 20, so that placing one never overwrites another.
        inherited = {
            number: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 100)
            for number, ours in self.inherited_descriptors().items()
        }
        self.terminal, slave = pty.openpty()
        self.modes = termios.tcgetattr(slave)
        slave = fcntl.fcntl(slave, fcntl.F_DUPFD_CLOEXEC, 100)
        errors = fcntl.fcntl(stderr, fcntl.F_DUPFD_CLOEXEC, 100)
        self.slave = slave
        neighbour = [*PYTHON, "-c", VICTIM]
        environ = self.caller_environment()
        neighbour_environ = {
            **self.victim_environment("neighbour"),
            "MARK": f"{self.marks}/neighbour",
        }

        def place():
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            os.dup2(slave, 0)
            os.dup2(errors, 1)
            os.dup2(errors, 2)
            if os.fork() == 0:
                os.chdir("/tmp")
                os.execve(neighbour[0], neighbour, neighbour_environ)
            for number, ours in inherited.items():
                os.dup2(ours, number)

        return subprocess.Popen(
            command,
            cwd=self.project,
            env=environ,
            preexec_fn=place,
            close_fds=False,
            start_new_session=True,
        )

    def victim_environment(self, name: str) -> dict[str, str]:
        return {
            "CANARY": f"{CANARY}-env-victim",
            "SAY": f"{self.marks}/{name}.ready",
            "MARK": f"{self.marks}/{name}",
        }

    def start_victim(self) -> None:
        os.makedirs(self.marks, exist_ok=True)
        environ = self.victim_environment("victim")
        command = [*PYTHON, "-c", VICTIM, CANARY]
        # In a process group of its own, as what another program started would be.
        self.processes.append(
            subprocess.Popen(command, cwd=self.home, env=environ, start_new_session=True)
        )
        wait_for(lambda: os.path.exists(environ["SAY"]))
        with open(environ["SAY"]) as file:
            pid, address, descriptor = json.load(file)
        self.facts |= {"victim": pid, "victim_address": address, "victim_descriptor": descriptor}
        write(f"{self.home}/canary")

    def watch_and_act(self, done: threading.Event, seen: dict) -> None:
        """Be the host while the session runs: move a directory away, and look at what `ps` shows."""
        project = self.project
        while not done.is_set():
            if os.path.exists(f"{project}/moving.ready"):
                seen |= self._shown_by_ps()
                os.rename(f"{project}/moving", f"{self.home}/moved")
                write(f"{project}/moving.done", "")
                return
            time.sleep(0.002)

    def _shown_by_ps(self) -> dict:
        shown = {"values_on_command_lines": None, "environment_of_bwrap": None, "bwraps": 0}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.getsid(int(pid)) != self.session.pid:
                    continue
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    line = file.read()
                if b"let-in-value" in line or f"{CANARY}-env".encode() in line:
                    shown["values_on_command_lines"] = line.decode(errors="replace")[:100]
                with open(f"/proc/{pid}/comm") as file:
                    name = file.read().strip()
                # In a control without bwrap its place is taken by the command itself.
                if name == "bwrap" or not self.sandboxed:
                    shown["bwraps"] += 1
                    with open(f"/proc/{pid}/environ", "rb") as file:
                        if CANARY.encode() in file.read():
                            shown["environment_of_bwrap"] = name
        return shown

    def snapshot(self) -> dict[str, tuple]:
        """Return path → (inode, size, time) of what no session may change."""
        seen = {}
        for top in ("/home", "/root", "/tmp", "/var/tmp", "/dev/shm", "/run", "/mnt", "/srv"):
            for directory, names, names_of_files in os.walk(top):
                names[:] = [
                    name
                    for name in names
                    if f"{directory}/{name}"
                    not in (self.project, f"{self.home}/.claudebox", self.marks, CHECKOUT)
                ]
                for name in names_of_files:
                    with contextlib.suppress(OSError):
                        status = os.lstat(f"{directory}/{name}")
                        seen[f"{directory}/{name}"] = (
                            status.st_ino,
                            status.st_size,
                            status.st_mtime_ns,
                        )
        return seen

    def run_probes(self, what: dict) -> dict:
        """Launch the probes as `what` says and return verdicts, and what the launcher wrote.

        With `options` they run in claudebox, with `prefix` behind that command and in no sandbox.
        `files` are made in the home directory before, name → content.
        """
        self.start_victim()
        sandboxed = self.sandboxed = "options" in what
        for name, text in what.get("files", {}).items():
            write(f"{self.home}/{name}", text)
        self.tell(sandboxed, what.get("let_in_names", ()), what.get("nix_let_in", False))
        inside = [*PYTHON, f"{self.project}/probes", *what.get("probes", ())]
        if sandboxed:
            script = 'printf %s "${LET_IN-}" > let-in; exec "$@"'
            command = [
                "claudebox",
                "-y",
                *what["options"],
                "--shell",
                "--",
                "-c",
                script,
                "-",
                *inside,
            ]
        else:
            command = [*what["prefix"], *inside]
        errors = os.open(f"{self.marks}/stderr", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        # For whoever opens standard error anew.
        os.write(errors, f"{CANARY}\n".encode())
        before = self.snapshot()
        seen, done = {}, threading.Event()
        self.session = self.start(command, errors)
        observer = threading.Thread(target=self.watch_and_act, args=(done, seen), daemon=True)
        observer.start()
        status = self.wait(self.session)
        done.set()
        observer.join()
        results = {}
        with contextlib.suppress(FileNotFoundError), open(f"{self.project}/results.json") as file:
            results = json.load(file)
        for name, found in self._observed(before, seen, results).items():
            if results.get(name, [""])[0] == "acted":
                results[name] = ["LEAKED", found] if found else ["blocked", ""]
        text = ""
        with open(f"{self.marks}/stderr", errors="replace") as file:
            text = file.read()
        let_in = None
        with contextlib.suppress(FileNotFoundError), open(f"{self.project}/let-in") as file:
            let_in = file.read()
        return {"status": status, "verdicts": results, "errors": text[-20000:], "let_in": let_in}

    def _observed(self, before: dict, seen: dict, results: dict) -> dict[str, str | None]:
        """Judge the probes whose traces only the host can see."""
        after = self.snapshot()
        changed = [path for path in after if after[path] != before.get(path)]
        changed += [path for path in before if path not in after]

        def below(*places):
            return next((path for path in changed if path.startswith(places)), None)

        moved = results.get("directory_moved_out_of_the_project", ["", ""])[1]
        beside = next((path for path in changed if path.endswith("written-beside")), None)
        home = [p for p in changed if p.startswith(self.home) and not p.endswith("written-beside")]
        signalled = None
        if os.path.exists(f"{self.marks}/neighbour"):
            signalled = "a neighbour in the process group got it"
        modes = termios.tcgetattr(self.slave)
        # The one that writes here is this process itself.
        lasting = modes[3] & termios.ECHO != self.modes[3] & termios.ECHO
        return {
            "directory_moved_out_of_the_project": moved or None,
            "write_into_the_home": next(
                (path for path in home if "/moved" not in path and "/canary" not in path), None
            ),
            "write_into_temporary_directories": below("/tmp/", "/var/tmp/", "/dev/shm/", "/run/"),
            "write_beside_the_project": beside,
            "signal_to_the_own_process_group": signalled,
            "terminal_modes": "echo stayed off" if lasting else None,
            **{
                name: seen.get(name) for name in ("values_on_command_lines", "environment_of_bwrap")
            },
        }

    def wait(self, session: subprocess.Popen) -> int | None:
        """Wait for the session while its terminal is emptied."""
        os.set_blocking(self.terminal, False)
        end = time.monotonic() + SESSION
        while session.poll() is None:
            with contextlib.suppress(OSError):
                os.read(self.terminal, 65536)
            if time.monotonic() > end:
                os.killpg(session.pid, signal.SIGKILL)
                return None
            time.sleep(0.002)
        return session.returncode

    def end(self) -> None:
        """End what was started, and take the keys away."""
        for process in self.processes:
            process.kill()
        if hasattr(self, "session"):
            with contextlib.suppress(OSError):
                os.killpg(self.session.pid, signal.SIGKILL)
        for kind in ("session", "user"):
            with contextlib.suppress(OSError):
                # KEYCTL_INVALIDATE: gone at once, and so is its share of the quota.
                call("keyctl", 21, self.facts[f"{kind}_key_serial"])


def _is_file(name: str) -> bool:
    """Say whether a path of the policy is a file: by its last part, as people would guess."""
    last = name.rpartition("/")[2]
    names = ("authority", "boto", "credentials", "hst", "info", "pass", "rc", "s3cfg", "token")
    return "." in last[1:] or last.lower().endswith((*names, "config", "_history", "_variables"))


def main(what: dict) -> dict:
    """Run one world and return what it showed."""
    # Whoever looks at a path sees what the launched process will.
    os.umask(0o022)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)
    host = Host()
    host.fill()
    try:
        return host.run_probes(what)
    finally:
        host.end()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)
