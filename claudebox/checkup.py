"""The checks of `claudebox doctor`: each looks at one thing of this host and says what mends it."""

import errno
import os
import stat
import sys

from claudebox import Failure, distribution, host, policy
from claudebox.distribution import Command
from claudebox.sandbox import diagnosis

OK, WARNING, PROBLEM = "ok", "warning", "problem"

# `--disable-userns` came with 0.8.0; the vulnerability went with 0.12.0.
_GOOD_BWRAP = (0, 8, 0)
_MENDED_BWRAP = (0, 12, 0)
_VULNERABILITY = "CVE-2026-87766"
_ADVISORY = "GHSA-pxhw-h44j-8pfx"

_PROFILE_DIRECTORY = "/etc/apparmor.d"
_SYSCTL_DIRECTORY = "/etc/sysctl.d"
# A number of namespaces for each user; the kernel's own default goes by the memory.
_ALLOWING = {diagnosis.MAXIMUM: "28633", diagnosis.CLONE: "1"}


class Finding:
    """What a check found: its `name`, a verdict (OK, WARNING or PROBLEM) and one line of detail.

    It is mended by `packages`, named as their projects, and then by `commands`; `advice` is for what
    no command mends, or what none should without being thought about. With a PROBLEM a launch fails.
    """

    def __init__(self, name: str, verdict: str, detail: str, packages=(), commands=(), advice=None):
        self.name = name
        self.verdict = verdict
        self.detail = detail
        self.packages = list(packages)
        self.commands = list(commands)
        self.advice = advice


class Host:
    """The host as the checks see it: the user's home, the distribution, where programs come from."""

    def __init__(self):
        self.home = host.user()["home"]
        here = os.path.realpath(".")
        # Programs of the project that one stands in are never run. Nothing is a project that the
        # home directory lies in.
        self.root = "/nonexistent" if policy.is_within(self.home, here) else here
        self.distribution = distribution.this(self.find)
        self.becoming_root = distribution.becoming_root(self.find)
        self._sandbox = None

    def find(self, name: str) -> str | None:
        """Return the path of a program that may be run outside, or None."""
        return host.find_program(name, self.root)

    def mends(self, *findings: Finding) -> list[Command]:
        """Return the commands that mend findings, each once, what installs packages first."""
        packages = dict.fromkeys(name for each in findings for name in each.packages)
        others = [command for each in findings for command in each.commands]
        return list(dict.fromkeys([*self.distribution.install(packages), *others]))

    def advice(self, finding: Finding) -> str | None:
        """Return what to do about a finding beside its commands, if there is anything to say."""
        if finding.packages and self.distribution.manager is None:
            names = " and ".join(finding.packages)
            return f"install {names} with the package manager of {self.distribution.name}"
        return finding.advice

    def line(self, command: Command) -> str:
        """Return a command as this user types it."""
        return command.line(self.becoming_root)

    def sandboxes(self) -> dict[str, Failure | None]:
        """Return for the tiers `full` and `none` why a sandbox cannot be made, None if it can.

        Both are made, in an empty directory, as a session would be. Empty without bwrap.
        """
        if self._sandbox is None:
            self._sandbox = {} if self.find("bwrap") is None else _try_sandboxes()
        return self._sandbox

    def works(self) -> bool:
        """Say whether bwrap makes a sandbox here."""
        return self.sandboxes().get("full", "no bwrap") is None


def _try_sandboxes() -> dict[str, Failure | None]:
    import tempfile

    from claudebox import instance, net, run

    found = {}
    with tempfile.TemporaryDirectory(prefix="claudebox-doctor-") as directory:
        for tier in ("full", "none"):
            found[tier] = None
            try:
                plan = instance.resolve(directory, shell=True, with_claude=False)
                run.attempt(net.apply(plan, tier))
            except Failure as failure:
                found[tier] = failure
    return found


def findings(this: Host):
    """Yield the Finding of every check, in the order in which they are shown."""
    for check in CHECKS:
        try:
            yield from check(this)
        except Failure as failure:
            name = check.__name__.strip("_").replace("_", " ")
            yield Finding(name, PROBLEM, failure.what, advice=failure.todo)
        except OSError as error:
            name = check.__name__.strip("_").replace("_", " ")
            yield Finding(name, WARNING, f"could not be looked at: {error}")


def _output(*words: str) -> str | None:
    """Return what a program prints, or None if it fails or takes more than ten seconds."""
    import subprocess

    try:
        done = subprocess.run(
            words, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _version(text: str | None) -> tuple[int, ...] | None:
    """Return the first version in a text, as numbers: `bubblewrap 0.8.0` is (0, 8, 0)."""
    import re

    match = re.search(r"\d+(\.\d+)+", text or "")
    return tuple(int(part) for part in match[0].split(".")) if match else None


# ---------------------------------------------------------------------------- what runs


def _python(_this: Host):
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("python", OK, f"{version}  {sys.executable}")


def _machine(_this: Host):
    from claudebox.sandbox import seccomp

    seccomp.program()
    kernel = os.uname()
    yield Finding("machine", OK, f"{kernel.machine}, Linux {kernel.release}")


def _bwrap(this: Host):
    path = this.find("bwrap")
    if path is None:
        yield Finding("bwrap", PROBLEM, "not found", ["bubblewrap"])
        return
    version = _version(_output(path, "--version"))
    shown = ".".join(str(part) for part in version) if version else "of an unknown version"
    if version is not None and version < _GOOD_BWRAP:
        yield Finding(
            "bwrap",
            WARNING,
            f"{shown}  {path}: too old to forbid further user namespaces inside (0.8.0 can)",
            advice=_upgrade(this, "a newer release of the distribution has a newer one"),
        )
    else:
        yield Finding("bwrap", OK, f"{shown}  {path}")
    if version is None or version >= _MENDED_BWRAP:
        return
    if _mended_by_distribution(path):
        yield Finding(_VULNERABILITY, OK, f"mended in this distribution's bwrap {shown}")
        return
    yield Finding(
        _VULNERABILITY,
        WARNING,
        f"bwrap before 0.12.0 makes mount points through symbolic links, outside too ({_ADVISORY});"
        " claudebox works around it: it mounts nothing through a link, and compares the mounts before"
        " anything runs",
        advice=_upgrade(this, "nothing has to be done"),
    )


def _upgrade(this: Host, otherwise: str) -> str:
    lines = [this.line(command) for command in this.distribution.upgrade(["bubblewrap"])]
    return f"{otherwise}; to see if there is a newer package: {' && '.join(lines)}"


def _mended_by_distribution(path: str) -> bool:
    """Say whether the change log of the distribution's bwrap names the vulnerability as mended."""
    if os.path.realpath(path) not in ("/usr/bin/bwrap", "/bin/bwrap"):
        return False
    text = ""
    try:
        import gzip

        with gzip.open("/usr/share/doc/bubblewrap/changelog.Debian.gz", "rb") as file:
            text = file.read(1 << 20).decode(errors="replace")
    except (OSError, EOFError):
        if os.path.exists("/usr/bin/rpm"):
            text = _output("/usr/bin/rpm", "-q", "--changelog", "bubblewrap") or ""
    return _VULNERABILITY in text or _ADVISORY in text


# ---------------------------------------------------------------------------- the sandbox


def _sandbox(this: Host):
    tried = this.sandboxes()
    if not tried:
        yield Finding("sandbox", PROBLEM, "not tried: there is no bwrap", ["bubblewrap"])
        return
    for tier, failure in tried.items():
        name = "sandbox" if tier == "full" else f"sandbox, network {tier}"
        if failure is None:
            yield Finding(name, OK, "bwrap made one here")
        elif tier == "full":
            settings = diagnosis.FORBIDDING.items()
            known = any(diagnosis.setting(each) == value for each, value in settings)
            advice = "what is amiss below forbids it" if known else failure.todo
            yield Finding(name, PROBLEM, failure.what, advice=advice)
        elif this.works():
            yield Finding(name, WARNING, failure.what, advice=failure.todo)


def _user_namespaces(this: Host):
    names = {
        diagnosis.APPARMOR: "apparmor",
        diagnosis.MAXIMUM: "user namespaces",
        diagnosis.CLONE: "userns clone",
    }
    for setting, forbidding in diagnosis.FORBIDDING.items():
        name, value, dotted = names[setting], diagnosis.setting(setting), setting.replace("/", ".")
        says = f"{dotted} is {value}"
        if value is None:
            yield Finding(name, OK, f"this kernel has no {dotted}")
        elif value != forbidding:
            yield Finding(name, OK, f"{says}, which forbids nothing")
        elif this.works():
            yield Finding(name, OK, f"{says}, but bwrap can make user namespaces")
        elif not this.sandboxes():
            detail = f"{says}, which may keep bwrap from working, once it is here"
            yield Finding(name, WARNING, detail, advice="install bwrap, then look again")
        elif this.distribution.manager == "nix" and setting != diagnosis.APPARMOR:
            advice = (
                f'put `boot.kernel.sysctl."{dotted}" = {_ALLOWING[setting]};` into the system\'s'
            )
            advice += " configuration"
            yield Finding(name, PROBLEM, f"{says}, which forbids user namespaces", advice=advice)
        elif setting == diagnosis.APPARMOR:
            mend = _profile_for_bwrap(this.find("bwrap"))
            yield Finding(name, PROBLEM, f"{says}, and bwrap has no profile", commands=[mend])
        else:
            mend = _sysctl(setting, _ALLOWING[setting])
            yield Finding(name, PROBLEM, f"{says}, which forbids bwrap to work", commands=[mend])


def _sysctl(setting: str, value: str) -> Command:
    """Return what changes a setting now and for the next start of the machine."""
    name = setting.replace("/", ".")
    kept = f"mkdir -p {_SYSCTL_DIRECTORY} && echo {name}={value} >> {_SYSCTL_DIRECTORY}/60-claudebox.conf"
    script = f"{kept} && echo {value} > /proc/sys/{setting}"
    return Command("sh", "-c", script, as_root=True)


def _profile_for_bwrap(path: str) -> Command:
    return _profile("claudebox-bwrap", os.path.realpath(path))


def _profile_for_launcher() -> Command:
    """Return what lets claudebox itself make user namespaces, as `inet` does before bwrap runs.

    AppArmor attaches a profile to a script by the script's path, and the interpreters keep it.
    """
    own = os.path.dirname(os.path.realpath(sys.argv[0]))
    return _profile("claudebox-launcher", own + "/claudebox", also="{,-*}")


def _profile(name: str, path: str, also: str = "") -> Command:
    """Return what writes and loads an AppArmor profile that allows user namespaces and forbids nothing."""
    # In apparmor.d(5) these have a meaning in a path, in sh within double quotes those after.
    for character in '\\?*[]{}^"':
        path = path.replace(character, "\\" + character)
    path += also
    if " " in path:
        path = f'"{path}"'
    lines = ["abi <abi/4.0>,", f"profile {name} {path} flags=(unconfined) {{ userns, }}"]
    for character in '\\"$`':
        lines = [line.replace(character, "\\" + character) for line in lines]
    words = " ".join(f'"{line}"' for line in lines)
    file = f"{_PROFILE_DIRECTORY}/{name}"
    script = f'printf "%s\\n" {words} > {file} && apparmor_parser -r {file}'
    return Command("sh", "-c", script, as_root=True)


def _container(this: Host):
    if not diagnosis.in_container():
        yield Finding("container", OK, "this is none")
    elif this.works():
        yield Finding("container", OK, "this is one, and it lets bwrap work")
    elif not this.sandboxes():
        yield Finding(
            "container",
            WARNING,
            "this is one, which may keep bwrap from working, once it is here",
            advice="install bwrap, then look again",
        )
    else:
        yield Finding(
            "container",
            WARNING,
            "this is one, which may be what keeps bwrap from working",
            advice="start claudebox outside, or the container with `--security-opt seccomp=unconfined"
            " --security-opt apparmor=unconfined --security-opt systempaths=unconfined`",
        )


def _kernel(_this: Host):
    from claudebox.sandbox import landlock

    version = landlock.version()
    if version >= landlock.VERSION_WITH_SCOPES:
        yield Finding("landlock", OK, f"version {version}")
    else:
        found = f"version {version}" if version else "not in this kernel, or switched off"
        yield Finding(
            "landlock",
            WARNING,
            f"{found}: abstract sockets and signals cannot be kept in by it",
            advice="a kernel from 6.12 on has it",
        )
    actions = diagnosis.setting("kernel/seccomp/actions_avail")
    if actions and {"errno", "kill_process"} <= set(actions.split()):
        yield Finding("seccomp", OK, "this kernel filters system calls")
    else:
        yield Finding(
            "seccomp",
            WARNING,
            "the kernel does not say that it filters system calls",
            advice="a kernel with CONFIG_SECCOMP_FILTER does",
        )


def _limits(_this: Host):
    from claudebox.sandbox import limits

    enforceable = limits.enforceable(os.getuid())
    lacking = [key for key, how in enforceable.items() if how is None]
    if not lacking:
        how = "a control group of each session's own"
        if enforceable["processes"] == "process":
            how = "RLIMIT_NPROC, memory by a control group"
        yield Finding("limits", OK, f"held by {how}")
        return
    yield Finding(
        "limits",
        WARNING,
        f"{' and '.join(lacking)} cannot be limited: no control group can be made here",
        advice="where systemd manages the user's programs, as in a terminal of a desktop, they can;"
        " elsewhere start sessions with `systemd-run --user --scope claudebox`",
    )


# ---------------------------------------------------------------------------- the network


def _inet(this: Host):
    from claudebox import net
    from claudebox.plan import SIDECARS
    from claudebox.sandbox import inet

    programs = net.sidecar_programs(this.root)
    results = {name: (good, detail) for name, good, detail in inet.check(programs)}
    sidecars = {name: results.pop(name) for name in SIDECARS}
    (namespaces, why), (tun, why_not) = results.values()
    if namespaces:
        yield Finding("inet filter", OK, why)
    else:
        yield Finding("inet filter", WARNING, why, commands=_mend_filter(why))
    if tun:
        yield Finding("/dev/net/tun", OK, why_not)
    else:
        yield Finding("/dev/net/tun", WARNING, why_not, commands=[_mend_tun()])
    if not programs:
        detail = "neither slirp4netns nor pasta is here: the network tier inet needs one"
        # Not pasta: Debian 11 and Ubuntu 22.04 do not have it, and the one of Debian 12 stalls.
        yield Finding("inet sidecar", WARNING, detail, ["slirp4netns"])
        return
    found = [f"{name}: {detail}" for name, (good, detail) in sidecars.items() if good]
    if found:
        yield Finding("inet sidecar", OK, "; ".join(found))
        return
    detail = "; ".join(f"{name}: {detail}" for name, (_, detail) in sidecars.items())
    missing = [name for name in SIDECARS if name not in dict(programs)]
    yield Finding("inet sidecar", WARNING, detail, [inet.PACKAGES[name] for name in missing])


def _mend_filter(why: str) -> list[Command]:
    if "nftables" in why:
        return [Command("modprobe", "nf_tables", as_root=True)]
    if diagnosis.setting(diagnosis.APPARMOR) == "1":
        return [_profile_for_launcher()]
    # Whatever forbids them to bwrap, too, has a line of its own.
    return []


def _mend_tun() -> Command:
    if os.path.exists("/dev/net/tun"):
        return Command("chmod", "0666", "/dev/net/tun", as_root=True)
    return Command("modprobe", "tun", as_root=True)


# ---------------------------------------------------------------------------- programs and state


def _claude(this: Host):
    found = host.find_claude(this.root, this.home)
    if found is None:
        yield Finding("claude", PROBLEM, "not found", *_install_claude(this))
        return
    try:
        host.claude(this.root, this.home)
    except Failure as failure:
        yield Finding("claude", PROBLEM, failure.what, *_install_claude(this), failure.todo)
        return
    program = os.path.realpath(found)
    origin = "" if program == found else f" → {program}"
    yield Finding("claude", OK, f"{_claude_version(program)}  {found}{origin}".lstrip())


def _claude_version(program: str) -> str:
    """Return the version of a claude without running it: of its npm package, or in its own name."""
    import json

    directory, _, name = program.rpartition("/")
    if directory.endswith("/versions"):
        return name
    try:
        with open(directory + "/package.json", "rb") as file:
            return str(json.loads(file.read(1 << 20))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _install_claude(this: Host) -> tuple[list[str], list[Command]]:
    """Return the packages and commands that install Claude Code's own program, of npm's registry."""
    if this.distribution.manager == "nix" and host.is_nixos():
        words = ("nix", "--extra-experimental-features", "nix-command flakes", "profile", "install")
        package = ("--impure", "nixpkgs#claude-code")
        return [], [Command("env", "NIXPKGS_ALLOW_UNFREE=1", *words, *package)]
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    libc = "-musl" if os.path.exists(f"/lib/ld-musl-{os.uname().machine}.so.1") else ""
    package = f"@anthropic-ai/claude-code-linux-{machine}{libc}"
    prefix = this.home + "/.local"
    program = f"{prefix}/lib/node_modules/{package}/claude"
    return [] if this.find("npm") else ["npm"], [
        Command(
            *("npm", "install", "--global", "--prefix", prefix, "--no-fund", "--no-audit", package)
        ),
        Command("mkdir", "-p", prefix + "/bin"),
        Command("ln", "-sf", program, prefix + "/bin/claude"),
    ]


def _credentials(this: Host):
    """Look for a login; what is in it stays unread but for the time when it expires."""
    shared = policy.state_home(this.home) + "/credentials/.credentials.json"
    found, commands = [], []
    if os.environ.get(policy.API_KEY):
        found.append(policy.API_KEY)
    verdict = OK
    for path in (policy.host_credentials(this.home), shared):
        try:
            usable, mode = _login(path)
        except OSError as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                verdict = WARNING
                found.append(f"{path}: {error.strerror}")
            continue
        if mode is None:
            verdict = WARNING
            found.append(f"{path} is not a plain file: remove it")
            continue
        if usable:
            found.append(path)
        # The shared one lies in a directory that only the user can enter, and what runs inside could
        # put a link in its place before the command runs.
        if path != shared and stat.S_IMODE(mode) & 0o077:
            verdict = WARNING
            found.append(f"{path} can be opened by others: mode {stat.S_IMODE(mode):04o}")
            commands.append(Command("chmod", "600", path))
    if found:
        yield Finding("credentials", verdict, "; ".join(found), commands=commands)
    else:
        yield Finding(
            "credentials",
            WARNING,
            "no login yet",
            advice=f"log in in the first session, which keeps it, or set {policy.API_KEY}",
        )


def _login(path: str) -> tuple[bool, int | None]:
    """Return whether a credentials file holds a usable login, and its mode: None if it is no file.

    What runs inside can put anything into the shared directory: a link, or a pipe.
    """
    from claudebox.sandbox import credentials

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False, None
        raise
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            return False, None
        return credentials.expiry(file.read(1 << 20)) is not None, mode


def _state(this: Host):
    path = policy.state_home(this.home)
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if above != path:
        if os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK):
            yield Finding("state", OK, f"{path} will be made by the first session")
        else:
            advice = "mend that, or set CLAUDEBOX_HOME"
            yield Finding("state", PROBLEM, f"{path} cannot be made in {above}", advice=advice)
        return
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        advice = "move it away, or set CLAUDEBOX_HOME"
        yield Finding("state", PROBLEM, f"{path} is not a directory", advice=advice)
        return
    if status.st_uid != os.getuid():
        give_back = Command("chown", "-R", f"{os.getuid()}:{os.getgid()}", path, as_root=True)
        yield Finding("state", PROBLEM, f"{path} belongs to another user", commands=[give_back])
        return
    mode = stat.S_IMODE(status.st_mode)
    close = [Command("chmod", "700", path)]
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("state", PROBLEM, f"{path} cannot be written: mode {mode:04o}", [], close)
    elif mode & 0o077:
        yield Finding("state", WARNING, f"{path} is open to others: mode {mode:04o}", [], close)
    else:
        yield Finding("state", OK, path)


def _git(this: Host):
    path = this.find("git")
    if path is None:
        detail = "not found: there is none inside then, and links to repositories are not followed"
        yield Finding("git", WARNING, detail, ["git"])
        return
    version = _version(_output(path, "--version"))
    shown = ".".join(str(part) for part in version) if version else "of an unknown version"
    yield Finding("git", OK, f"{shown}  {path}")


def _nix(this: Host):
    """Look whether a session is given the nix daemon's socket, and if not, why."""
    from claudebox import nix

    found = nix.decision()
    if found is None:
        yield Finding("nix", OK, "no nix daemon here, and none is needed")
        return
    if found["socket"]:
        yield Finding("nix", OK, "the daemon builds in sandboxes of its own: its socket is inside")
        return
    advice = None
    if "sandbox = " in found["reason"]:
        advice = (
            "put `sandbox = true` into /etc/nix/nix.conf and start the daemon again:"
            f" {this.line(Command('systemctl', 'restart', 'nix-daemon', as_root=True))}"
        )
    detail = f"the daemon's socket is not inside: {found['reason']}"
    yield Finding("nix", WARNING, detail, advice=advice)


CHECKS = (
    _python,
    _machine,
    _bwrap,
    _sandbox,
    _user_namespaces,
    _container,
    _kernel,
    _limits,
    _inet,
    _claude,
    _credentials,
    _state,
    _git,
    _nix,
)
