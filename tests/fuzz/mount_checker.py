"""Judges a finished list of bwrap arguments by the policy's text, without the code that made it.

It reads what bwrap would be told (`bwrap.by_path(bwrap.arguments(plan))`), lays the mounts over each
other as bwrap would, and looks at the result and at the disk. Nothing of `claudebox` is imported.
"""

import os
import stat
from dataclasses import dataclass, field

# Written down a second time, from claudebox-instance(1): below the home directory, and elsewhere.
SECRETS_OF_HOME = (
    ".ssh .gnupg .aws .azure .kube .docker .config/gcloud .config/gh .config/glab-cli .config/hub"
    " .config/sops .config/age .config/op .config/1Password .config/Bitwarden .config/keepassxc"
    " .config/rclone .config/doctl .config/hcloud .config/helm .config/heroku .config/pulumi"
    " .config/solana .config/containers .config/nix .config/git .config/pip"
    " .config/fish/fish_variables .config/google-chrome .config/chromium .config/BraveSoftware"
    " .config/microsoft-edge .config/vivaldi .config/opera .config/Signal .config/Slack"
    " .config/discord .config/claude .mozilla .thunderbird .librewolf .var/app snap .password-store"
    " .local/share/keyrings .local/share/kwalletd .local/share/fish/fish_history"
    " .local/share/containers .local/share/atuin .local/share/TelegramDesktop .local/state/nix"
    " .netrc .authinfo .authinfo.gpg .git-credentials .gitconfig .npmrc .yarnrc .yarnrc.yml .pypirc"
    " .gem/credentials .cargo/credentials .cargo/credentials.toml .m2/settings.xml"
    " .m2/settings-security.xml .gradle/gradle.properties .composer/auth.json .terraform.d"
    " .terraformrc .pulumi .vault-token .s3cfg .boto .oci .aliyun .bluemix .fly .minikube .step"
    " .pgpass .my.cnf .mylogin.cnf .msmtprc .mbsyncrc .fetchmailrc .pki .Xauthority .ICEauthority"
    " .bash_history .zsh_history .python_history .node_repl_history .psql_history .mysql_history"
    " .sqlite_history .rediscli_history .lesshst .viminfo .wget-hsts .bitcoin .ethereum .electrum"
    " .claude .claude.json"
).split()
SECRETS_OF_THE_SYSTEM = (
    "/boot /dev /etc/NetworkManager /etc/docker /etc/gshadow /etc/ipsec.secrets /etc/krb5.keytab"
    " /etc/kubernetes /etc/letsencrypt /etc/machine-id /etc/nix /etc/openvpn /etc/pki/tls/private"
    " /etc/ppp /etc/shadow /etc/ssh /etc/ssl/private /etc/sudoers /etc/sudoers.d /etc/wireguard"
    " /proc /root /run /sys /tmp/.ICE-unix /tmp/.X11-unix /var/lib/containerd /var/lib/docker"
    " /var/lib/sss /var/lib/systemd /var/lib/tailscale /var/log /var/run /var/spool /nix/var"
).split()

# What shows the whole machine in a fresh /proc.
MACHINE_WIDE_PROC = (
    "/proc/kallsyms /proc/kcore /proc/key-users /proc/keys /proc/kmsg /proc/latency_stats"
    " /proc/sched_debug /proc/sysrq-trigger /proc/timer_list"
).split()

RUN_LATER_IN_GIT = "hooks branches remotes config config.worktree commondir info/attributes".split()
RUN_LATER_IN_PROJECT = (
    ".claude/settings.json",
    ".claude/settings.local.json",
    ".mcp.json",
)
# What may stand where such a file does not exist: nothing that anybody would obey.
HARMLESS = (b"", b"{}\n", b'{"mcpServers": {}}\n', b".\n")

CREDENTIALS = "/run/claudebox/credentials"
OWN_FILES = ("/etc/claude-code/CLAUDE.md", "/etc/claude-code/managed-settings.json")

_FLAGS = {
    "--unshare-user",
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-uts",
    "--unshare-cgroup-try",
    "--die-with-parent",
    "--disable-userns",
    "--unshare-net",
}
_NEEDED_FLAGS = _FLAGS - {"--disable-userns", "--unshare-net"}
_WITH_ONE = {"--hostname", "--cap-drop", "--uid", "--gid", "--seccomp", "--chdir"}
_SYSTEM_LINKS = {"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/localtime"}
_SYSTEM_LINKS |= {"/opt/claudebox/bin/claude", "/usr/bin/env", "/bin/sh"}


@dataclass
class Facts:
    """What is true of the host, found by whoever made the scratch world and not by claudebox.

    `asked_for` are the directories that a plan openly asks to have writable.
    """

    home: str
    root: str
    cwd: str
    state: str
    instance: str
    host_credentials: str
    common_dir: str | None = None
    more_secrets: tuple[str, ...] = ()
    asked_for: tuple[str, ...] = ()
    tier: str = "full"
    can_disable_userns: bool = True
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)

    def secrets(self) -> set[str]:
        """Return every place of secrets, resolved and not."""
        paths = {f"{self.home}/{name}" for name in SECRETS_OF_HOME} | {self.state}
        paths |= {p for p in SECRETS_OF_THE_SYSTEM if not below(self.home, p)}
        paths |= set(self.more_secrets)
        return paths | {os.path.realpath(path) for path in paths}


def below(path: str, top: str) -> bool:
    """Say whether `path` is `top` or lies in it."""
    return path == top or top == "/" or path.startswith(top + "/")


@dataclass
class _Mount:
    what: str
    target: str
    source: str | None = None
    content: bytes | None = None

    @property
    def writable_on_the_host(self) -> bool:
        return self.what == "bind"


class _Arguments:
    """Takes the list apart; an option that is not known is a complaint, not an exception."""

    def __init__(self, words: list):
        self.complaints = []
        self.flags = []
        self.values = {}
        self.mounts = []
        self.links = []
        self.root_is_read_only = False
        words = list(words)
        while words:
            option = words.pop(0)
            if option in _FLAGS:
                self.flags.append(option)
            elif option in _WITH_ONE:
                self.values.setdefault(option, []).append(words.pop(0))
            elif option in ("--bind", "--ro-bind"):
                source, target = words.pop(0), words.pop(0)
                self.mounts.append(_Mount(option[2:], target, source))
            elif option == "--ro-bind-data":
                data, target = words.pop(0), words.pop(0)
                self.mounts.append(_Mount("data", target, content=data.content))
            elif option in ("--tmpfs", "--proc", "--dev"):
                self.mounts.append(_Mount(option[2:], words.pop(0)))
            elif option == "--symlink":
                source, target = words.pop(0), words.pop(0)
                self.links.append((source, target, len(self.mounts)))
            elif option == "--remount-ro":
                target = words.pop(0)
                if target == "/":
                    self.root_is_read_only = True
                elif self.mounts and self.mounts[-1].target == target:
                    # The device files stay what they are in a /dev that is read-only.
                    self.mounts[-1].what = "dev, read-only" if target == "/dev" else "empty"
                else:
                    self.complaints.append(f"--remount-ro {target} out of place")
            elif option in ("--size", "--perms"):
                words.pop(0)
            else:
                self.complaints.append(f"the option {option!r} is not expected")
        for mount in self.mounts:
            path = mount.target
            if not path.startswith("/") or os.path.normpath(path) != path or "\0" in path:
                self.complaints.append(f"the target {path!r} is not a plain absolute path")

    def seen_at(self, path: str) -> _Mount | None:
        """Return the mount that `path` is on when all are made."""
        found = None
        for mount in self.mounts:
            if below(path, mount.target):
                found = mount
        return found


def complaints(words: list, facts: Facts) -> list[str]:
    """Return what is wrong with the arguments `words`; empty if they keep to the policy."""
    given = _Arguments(words)
    found = given.complaints
    found += _wrong_options(given, facts)
    found += _exposed_secrets(given, facts)
    found += _writable_elsewhere(given, facts)
    found += _wrong_targets(given, facts)
    found += _wrong_links(given, facts)
    found += _missing_system(given, facts)
    found += _unprotected(given, facts)
    found += _made_on_the_host(given, facts)
    return found


def _wrong_options(given: _Arguments, facts: Facts):
    missing = _NEEDED_FLAGS - set(given.flags)
    if missing:
        yield f"{sorted(missing)} missing"
    if facts.can_disable_userns and "--disable-userns" not in given.flags:
        yield "further user namespaces are not forbidden"
    if ("--unshare-net" in given.flags) != (facts.tier == "none"):
        yield "the network namespace is not that of the tier"
    expected = {
        "--cap-drop": ["ALL"],
        "--uid": [str(facts.uid)],
        "--gid": [str(facts.gid)],
        "--hostname": ["claudebox"],
        "--chdir": [facts.cwd],
    }
    for option, values in expected.items():
        if given.values.get(option) != values:
            yield f"{option} is {given.values.get(option)} instead of {values}"
    filters = given.values.get("--seccomp", [])
    if len(filters) != 1 or len(filters[0].content) < 80:
        yield "there is no system call filter"
    if not given.root_is_read_only:
        yield "the root is not made read-only"
    if not below(facts.cwd, facts.root):
        yield "the session starts outside the project"


def _exceptions(facts: Facts) -> set[tuple[str, str]]:
    return {
        (facts.instance + "/claude", facts.home + "/.claude"),
        (facts.state + "/credentials", CREDENTIALS),
        (facts.host_credentials, CREDENTIALS + "/.credentials.json"),
        (os.path.realpath("/etc/resolv.conf"), "/etc/resolv.conf"),
        ("/proc/sys", "/proc/sys"),
    }


def _is_mask(mount: _Mount) -> bool:
    return (
        mount.what == "ro-bind"
        and mount.source == "/dev/null"
        and mount.target in MACHINE_WIDE_PROC
    )


def _exposed_secrets(given: _Arguments, facts: Facts):
    excepted, secrets = _exceptions(facts), facts.secrets()
    for mount in given.mounts:
        if mount.source is None or (mount.what, mount.source) == ("ro-bind", "/dev/null"):
            continue
        if (mount.source, mount.target) in excepted:
            continue
        # Claude Code's former local installer puts the program itself there.
        if mount.what == "ro-bind" and below(mount.source, facts.home + "/.claude/local"):
            continue
        real = os.path.realpath(mount.source)
        if real != mount.source:
            yield f"the source {mount.source} is behind a link"
        if below(facts.home, real):
            yield f"{mount.source} contains the home directory"
        for secret in secrets:
            if below(real, secret) or below(secret, real):
                yield f"{mount.source} on {mount.target} exposes {secret}"
        try:
            mode = os.lstat(real).st_mode
        except OSError:
            continue
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            yield f"the source {mount.source} is neither a file nor a directory"


def _writable_elsewhere(given: _Arguments, facts: Facts):
    excepted = _exceptions(facts) - {("/proc/sys", "/proc/sys")}
    places = [facts.root] + ([facts.common_dir] if facts.common_dir else [])
    for mount in given.mounts:
        if mount.what != "bind" or (mount.source, mount.target) in excepted:
            continue
        inside = [place for place in places if below(mount.source, place)]
        if inside and mount.source != mount.target:
            yield f"{mount.source} is writable under another name, {mount.target}"
        if not inside and any(below(place, mount.source) for place in places):
            yield f"{mount.source} is writable and contains the project"
        if not inside and mount.source not in facts.asked_for:
            yield f"{mount.source} is writable, which nobody asked for"


def _wrong_targets(given: _Arguments, facts: Facts):
    seen = set()
    excepted = {target: source for source, target in _exceptions(facts)}
    claude = facts.home + "/.claude"
    for mount in given.mounts:
        target = mount.target
        if target in seen:
            yield f"{target} is mounted on twice"
        seen.add(target)
        if target == "/":
            yield "something is mounted on the root"
        if (target in excepted or target in OWN_FILES) and given.seen_at(target) is not mount:
            yield f"{target} is hidden"
        if target in excepted and mount.source == excepted[target]:
            continue
        if target in (*OWN_FILES, "/etc/resolv.conf") and mount.what == "data":
            continue
        if (target, mount.what) in _FRESH:
            continue
        if _is_mask(mount):
            continue
        if mount.what in ("proc", "dev", "dev, read-only"):
            yield f"{mount.what} is mounted on {target}"
        for place in ("/proc", "/dev", "/run/claudebox", "/etc/claude-code", claude):
            if below(target, place):
                yield f"{target} is claudebox's own place"


# The places that are claudebox's own, each a file system of its own.
_FRESH = (
    ("/proc", "proc"),
    ("/dev", "dev, read-only"),
    ("/dev/shm", "tmpfs"),
    ("/run", "tmpfs"),
)


def _wrong_links(given: _Arguments, facts: Facts):
    for source, target, position in given.links:
        if target not in _SYSTEM_LINKS:
            yield f"the link {target} is none of the system's"
        if source.startswith(("/oldroot", "/newroot", "/proc")) or ".." in source.split("/"):
            yield f"the link {target} leads to {source}"
        for mount in given.mounts[position:]:
            if below(mount.target, target):
                yield f"{mount.target} lies behind the link {target}"


def _missing_system(given: _Arguments, facts: Facts):
    wanted = {**dict(_FRESH), "/tmp": "tmpfs", facts.home: "tmpfs"}
    for path, what in wanted.items():
        mount = given.seen_at(path)
        if mount is None or (mount.what, mount.target) != (what, path):
            yield f"{path} is not a {what}"
    for path in MACHINE_WIDE_PROC:
        if os.path.exists(path) and not _is_mask(given.seen_at(path) or _Mount("nothing", "/")):
            yield f"{path} can be read"
    settings = given.seen_at("/proc/sys")
    if settings is None or (settings.what, settings.source) != ("ro-bind", "/proc/sys"):
        yield "the kernel's settings are not read-only"


def _looks_like_git(path: str) -> bool:
    head = os.path.isfile(path + "/HEAD") or os.path.islink(path + "/HEAD")
    return head and all(os.path.isdir(f"{path}/{name}") for name in ("objects", "refs"))


def _git_directories(facts: Facts):
    """Yield every git directory in the project and in its repository, found on the disk."""
    places = [facts.root]
    if facts.common_dir and not below(facts.common_dir, facts.root):
        places.append(facts.common_dir)
    for place in places:
        for directory, names, _ in os.walk(place):
            if not _looks_like_git(directory):
                continue
            # A submodule's name is never empty.
            if not directory.endswith("/.git/modules"):
                yield directory
            if directory.endswith("/.git"):
                names[:] = [name for name in names if name == "modules"]
            elif "/.git/" in directory:
                names[:] = [name for name in names if name not in ("objects", "refs", "logs")]


def run_later(facts: Facts):
    """Yield each path of the project that may not be written inside, whether or not it is there."""
    for directory in dict.fromkeys((facts.root, facts.cwd)):
        for name in RUN_LATER_IN_PROJECT:
            yield f"{directory}/{name}"
    repository = facts.root + "/.git"
    if not os.path.isdir(repository) or not os.listdir(repository):
        yield repository
    for directory in _git_directories(facts):
        for name in RUN_LATER_IN_GIT:
            yield f"{directory}/{name}"
    for directory, names, files in os.walk(facts.root):
        names[:] = [name for name in names if name != ".git"]
        if ".git" in files:
            yield f"{directory}/.git"


def _unprotected(given: _Arguments, facts: Facts):
    project = given.seen_at(facts.root)
    if project is None or (project.what, project.source, project.target) != (
        "bind",
        facts.root,
        facts.root,
    ):
        yield "the project is not mounted as itself"
        return
    top = {facts.root}
    if facts.common_dir and not below(facts.common_dir, facts.root):
        top.add(facts.common_dir)
    targets = {mount.target for mount in given.mounts}
    for path in run_later(facts):
        mount = given.seen_at(path)
        if mount.writable_on_the_host or mount.what == "tmpfs":
            yield f"{path} can be written"
        elif mount.what == "data" and mount.content not in HARMLESS:
            yield f"{path} holds {mount.content!r}"
        elif mount.what == "ro-bind" and not below(path, mount.source):
            yield f"{path} shows {mount.source}"
        if any(below(m.target, path) and m.writable_on_the_host for m in given.mounts):
            yield f"something in {path} can be written"
        parent = os.path.dirname(path)
        while parent not in top and parent != "/":
            holder = given.seen_at(parent)
            if parent not in targets and (holder is None or holder.writable_on_the_host):
                yield f"{parent} can be renamed, and {path} with it"
            parent = os.path.dirname(parent)


def _made_on_the_host(given: _Arguments, facts: Facts):
    allowed = set(run_later(facts))
    allowed |= {f"{facts.root}/refs", f"{facts.root}/objects"}
    for index, mount in enumerate(given.mounts):
        below_which = None
        for earlier in given.mounts[:index]:
            if below(mount.target, earlier.target):
                below_which = earlier
        if below_which is None or below_which.source is None:
            continue
        if not os.path.isdir(below_which.source):
            continue
        rest = mount.target[len(below_which.target) :]
        on_disk = below_which.source
        for part in rest.split("/")[1:]:
            on_disk = f"{on_disk}/{part}"
            if os.path.islink(on_disk):
                yield f"{on_disk}, on the way to the mount point {mount.target}, is a link"
        if below_which.what != "bind" or os.path.lexists(on_disk):
            continue
        if (mount.source, mount.target) in _exceptions(facts):
            continue
        made_for = any(below(path, mount.target) for path in allowed) or mount.target in allowed
        # What the configuration of the scratch repositories may name.
        named = ("more.inc", "tools", "hooks")
        known = (*RUN_LATER_IN_GIT, "refs", "exclude", ".git", *named)
        of_git = os.path.basename(mount.target) in known
        if not made_for and not of_git:
            yield f"{mount.target} would be made on the host"
