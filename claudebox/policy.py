"""The security policy, all in one place: what is let in, what is never let in, what stays read-only.

Mechanism lives elsewhere: `claudebox.sandbox` does what a plan says, this module says which plans
are allowed.
"""

import os

from claudebox import Failure

# ---------------------------------------------------------------------------- environment

# Let in from the host when set there. Terminal, language and names: nothing that grants anything.
HOST_VARIABLES = (
    "TERM",
    "COLORTERM",
    "TERM_PROGRAM",
    "TERM_PROGRAM_VERSION",
    "LANG",
    "LANGUAGE",
    "TZ",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "NO_COLOR",
    "FORCE_COLOR",
    "USER",
    "LOGNAME",
)
HOST_VARIABLE_PREFIXES = ("LC_",)

# The one secret that Claude Code needs and that no file can carry.
API_KEY = "ANTHROPIC_API_KEY"

# Never let in, whoever asks: the environment of the sandbox is the one that bwrap itself is
# executed with, outside, and these act on the loader, the C library or a shell before anything else.
FORBIDDEN_VARIABLES = (
    "BASH_ENV",
    "BASHOPTS",
    "ENV",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "HOSTALIASES",
    "IFS",
    "LOCALDOMAIN",
    "LOCPATH",
    "NIS_PATH",
    "NLSPATH",
    "PS4",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "SHELLOPTS",
    "TZDIR",
)
FORBIDDEN_VARIABLE_PREFIXES = ("LD_", "MALLOC_")

# Claude Code updates itself in the background otherwise, into a home that is thrown away.
CLAUDE_VARIABLES = {"IS_SANDBOX": "1", "DISABLE_AUTOUPDATER": "1"}

# Set by claudebox and by nobody else.
OWN_VARIABLES = (
    "HOME",
    "PATH",
    "SHELL",
    "TMPDIR",
    "CLAUDE_CONFIG_DIR",
    "CLAUDE_SECURESTORAGE_CONFIG_DIR",
    *CLAUDE_VARIABLES,
)

# ---------------------------------------------------------------------------- places inside

CREDENTIALS_INSIDE = "/run/claudebox/credentials"
BRIEFING_INSIDE = "/etc/claude-code/CLAUDE.md"
MANAGED_SETTINGS_INSIDE = "/etc/claude-code/managed-settings.json"
# `--dangerously-skip-permissions` asks once per configuration directory without this.
MANAGED_SETTINGS = '{"skipDangerousModePermissionPrompt": true}\n'
# Nobody else may mount something on these, in them, or on what holds them.
OWN_TARGETS = ("/proc", "/dev", "/etc/claude-code", "/run/claudebox")
TOOLS_INSIDE = "/opt/claudebox/bin"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"

# Files of the host's /etc that programs need and that hold no secret. Not /etc/ssl: its `private`
# directory holds keys that root can read.
SYSTEM_FILES = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/mime.types",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)

# The same where only /nix/store, and nothing of /usr, is shown: no directory that links into that.
SYSTEM_FILES_BESIDE_STORE = ("/etc/mime.types", "/etc/protocols", "/etc/services")
# Where programs of the nix store look for certificates, and where hosts have them.
CERTIFICATES_INSIDE = "/etc/ssl/certs/ca-certificates.crt"
CERTIFICATE_BUNDLES = (
    CERTIFICATES_INSIDE,
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)

# Of the whole machine although /proc is fresh: kernel keys, kernel addresses, hardware.
MASKED_PROC_FILES = (
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
)

# ---------------------------------------------------------------------------- limits

PROCESSES = 4096
# Parts of the machine's memory.
MEMORY_SHARE, TMP_SHARE = 3 / 4, 1 / 4
# What is in memory, as a part of the limit for /tmp, which the home directory has in full. Together
# they stay below the memory of a session: nothing else bounds them where there is no control group.
TMPFS_DIVISORS = {"/var/tmp": 2, "/dev/shm": 2, "/run": 16}
# ---------------------------------------------------------------------------- nix

# The default places of nix, which a daemon that other users can reach has (nix.conf(5)).
NIX_STORE = "/nix/store"
NIX_SOCKET_DIRECTORY = "/nix/var/nix/daemon-socket"
NIX_SOCKET = NIX_SOCKET_DIRECTORY + "/socket"
# What a daemon reads, in this order: the later one wins.
NIX_CONFIGURATION = ("/etc/nix/nix.conf", "/etc/xdg/nix/nix.conf")
# Whether the daemon's socket is inside: where its builds are sandboxed, always, never.
NIX_MODES = ("auto", "trust", "off")
# Set by claudebox where the socket is inside.
NIX_VARIABLES = {
    "NIX_REMOTE": "daemon",
    "NIX_CONFIG": "experimental-features = nix-command flakes",
}
# What a daemon may show its builds of the host (`sandbox-paths`): programs, and devices for all.
NIX_HARMLESS_SANDBOX_PATHS = (
    NIX_STORE,
    "/bin",
    "/dev/kvm",
    "/lib",
    "/lib64",
    "/run/binfmt",
    "/run/opengl-driver",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
)

# What the evaluation of a project's flake sees of the project. Whatever it sees is copied into the
# store, which every user can read: so no other files, and nothing that looks like a secret.
DEVSHELL_FILE_SUFFIXES = (".nix",)
DEVSHELL_FILE_NAMES = (
    "flake.lock",
    "Cargo.lock",
    "Cargo.toml",
    "go.mod",
    "go.sum",
    "package.json",
    "package-lock.json",
    "poetry.lock",
    "pyproject.toml",
    "requirements.txt",
    "rust-toolchain",
    "rust-toolchain.toml",
    "uv.lock",
)
# What is taken over from a development shell beside its PATH. The sandbox's environment is the one
# that bwrap is executed with, so nothing that the C library obeys.
DEVSHELL_VARIABLES = (
    "ACLOCAL_PATH",
    "AR",
    "AS",
    "CC",
    "CMAKE_INCLUDE_PATH",
    "CMAKE_LIBRARY_PATH",
    "CMAKE_PREFIX_PATH",
    "CPATH",
    "CPLUS_INCLUDE_PATH",
    "CXX",
    "C_INCLUDE_PATH",
    "FONTCONFIG_FILE",
    "GI_TYPELIB_PATH",
    "GOROOT",
    "JAVA_HOME",
    "LD",
    "LIBCLANG_PATH",
    "LIBRARY_PATH",
    "NIX_CC",
    "NIX_CFLAGS_COMPILE",
    "NIX_LDFLAGS",
    "NM",
    "NODE_PATH",
    "OPENSSL_DIR",
    "OPENSSL_INCLUDE_DIR",
    "OPENSSL_LIB_DIR",
    "PERL5LIB",
    "PKG_CONFIG_PATH",
    "PROTOC",
    "PROTOC_INCLUDE",
    "PYTHONPATH",
    "RANLIB",
    "RUST_SRC_PATH",
    "STRIP",
    "XDG_DATA_DIRS",
)

# ---------------------------------------------------------------------------- network

# What the tier `inet` does not reach, beside every address and network of the host itself.
INET_DENIED_V4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
)
# Outside 2000::/3 nothing is global unicast. Inside it, Teredo and 6to4 carry an IPv4 destination.
INET_DENIED_V6 = (
    "::/3",
    "4000::/2",
    "8000::/1",
    "64:ff9b::/96",
    "2001::/32",
    "2002::/16",
)
# What the sidecars use between themselves and the sandbox, and link-local addresses: no exception
# can open them, because at fd00::2 and 198.18.0.2 slirp4netns may answer for the host's loopback.
SIDECAR_NETWORKS = ("198.18.0.0/24", "fd00::/64", "fd6e:6574:626f::/64", "fe80::/10")

# ---------------------------------------------------------------------------- secrets

# Below the home directory. No mount may be one of these, lie inside one, or lie above one.
SECRET_HOME_PATHS = (
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".config/gcloud",
    ".config/gh",
    ".config/glab-cli",
    ".config/hub",
    ".config/sops",
    ".config/age",
    ".config/op",
    ".config/1Password",
    ".config/Bitwarden",
    ".config/keepassxc",
    ".config/rclone",
    ".config/doctl",
    ".config/hcloud",
    ".config/helm",
    ".config/heroku",
    ".config/pulumi",
    ".config/solana",
    ".config/containers",
    ".config/nix",
    ".config/git",
    ".config/pip",
    ".config/fish/fish_variables",
    ".config/google-chrome",
    ".config/chromium",
    ".config/BraveSoftware",
    ".config/microsoft-edge",
    ".config/vivaldi",
    ".config/opera",
    ".config/Signal",
    ".config/Slack",
    ".config/discord",
    ".config/claude",
    ".mozilla",
    ".thunderbird",
    ".librewolf",
    ".var/app",
    "snap",
    ".password-store",
    ".local/share/keyrings",
    ".local/share/kwalletd",
    ".local/share/fish/fish_history",
    ".local/share/containers",
    ".local/share/atuin",
    ".local/share/TelegramDesktop",
    ".local/state/nix",
    ".netrc",
    ".authinfo",
    ".authinfo.gpg",
    ".git-credentials",
    ".gitconfig",
    ".npmrc",
    ".yarnrc",
    ".yarnrc.yml",
    ".pypirc",
    ".gem/credentials",
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".m2/settings.xml",
    ".m2/settings-security.xml",
    ".gradle/gradle.properties",
    ".composer/auth.json",
    ".terraform.d",
    ".terraformrc",
    ".pulumi",
    ".vault-token",
    ".s3cfg",
    ".boto",
    ".oci",
    ".aliyun",
    ".bluemix",
    ".fly",
    ".minikube",
    ".step",
    ".pgpass",
    ".my.cnf",
    ".mylogin.cnf",
    ".msmtprc",
    ".mbsyncrc",
    ".fetchmailrc",
    ".pki",
    ".Xauthority",
    ".ICEauthority",
    ".bash_history",
    ".zsh_history",
    ".python_history",
    ".node_repl_history",
    ".psql_history",
    ".mysql_history",
    ".sqlite_history",
    ".rediscli_history",
    ".lesshst",
    ".viminfo",
    ".wget-hsts",
    ".bitcoin",
    ".ethereum",
    ".electrum",
    ".claude",
    ".claude.json",
)

# No project has these.
HOME_MARKS = (".ssh", ".gnupg", ".aws")

# The same for the rest of the machine.
SECRET_SYSTEM_PATHS = (
    "/boot",
    "/dev",
    "/etc/NetworkManager",
    "/etc/docker",
    "/etc/gshadow",
    "/etc/ipsec.secrets",
    "/etc/krb5.keytab",
    "/etc/kubernetes",
    "/etc/letsencrypt",
    "/etc/machine-id",
    "/etc/nix",
    "/etc/openvpn",
    "/etc/pki/tls/private",
    "/etc/ppp",
    "/etc/shadow",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/wireguard",
    "/proc",
    "/root",
    "/run",
    "/sys",
    "/tmp/.ICE-unix",
    "/tmp/.X11-unix",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/sss",
    "/var/lib/systemd",
    "/var/lib/tailscale",
    "/var/log",
    "/var/run",
    "/var/spool",
    "/nix/var",
)

# Variables of the host that name such a place, or a socket.
SECRET_PLACE_VARIABLES = (
    "CLAUDE_CONFIG_DIR",
    "DOCKER_CONFIG",
    "GNUPGHOME",
    "KUBECONFIG",
    "SSH_AUTH_SOCK",
    "XDG_RUNTIME_DIR",
)

# The same as addresses: `unix:path=/run/…,guid=…`, `unix:///run/…`.
SOCKET_ADDRESS_VARIABLES = ("CONTAINER_HOST", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST")

# ---------------------------------------------------------------------------- run later

# What git runs, or is told to run, from a git directory. Read-only inside, also when it is absent:
# then this content (None: an empty directory) stands in its place for the time of the session.
# An empty `commondir` would stop git; `.` names the directory that it stands in.
PROTECTED_GIT_PATHS = {
    "hooks": None,
    "branches": None,
    "remotes": None,
    "config": "",
    "config.worktree": "",
    "commondir": ".\n",
    "info/attributes": "",
}

# A directory with HEAD, objects and refs is a bare repository to git, with a configuration of its
# own: when `.git` was made invalid, git would fall back to the project itself. One that is a file is
# enough to prevent that. (A file HEAD would make the name ambiguous.)
BARE_REPOSITORY_DIRECTORIES = ("refs", "objects")

# Settings of a repository that name further files to obey: `include.path`, `core.hooksPath`, …
# (git-config(5)); the words to look for before git is asked.
GIT_SETTINGS_WITH_FILES = (
    "^(include\\.path|includeif\\..*\\.path|core\\.hookspath|core\\.attributesfile)$"
)
GIT_WORDS_WITH_FILES = (b"include", b"hookspath", b"attributesfile")

# What Claude Code outside would obey when it is started in this project.
PROTECTED_PROJECT_PATHS = {
    ".claude/settings.json": "{}\n",
    ".claude/settings.local.json": "{}\n",
    ".mcp.json": '{"mcpServers": {}}\n',
}

# Too useful to take away, too dangerous to pass over: compared before and after the session.
WATCHED_PROJECT_PATHS = (
    ".aider.conf.yml",
    ".bazelrc",
    ".claude/CLAUDE.md",
    ".claude/agents",
    ".claude/commands",
    ".claude/hooks",
    ".claude/output-styles",
    ".claude/rules",
    ".claude/skills",
    ".codex",
    ".cursor",
    ".devcontainer",
    ".devcontainer.json",
    ".dir-locals.el",
    ".envrc",
    ".exrc",
    ".gemini",
    ".gitattributes",
    ".githooks",
    ".github/workflows",
    ".gitlab-ci.yml",
    ".gitmodules",
    ".hg/hgrc",
    ".husky",
    ".idea",
    ".lefthook.yml",
    ".mise.toml",
    ".npmrc",
    ".nvim.lua",
    ".nvimrc",
    ".opencode",
    ".pre-commit-config.yaml",
    ".roo",
    ".vimrc",
    ".vscode",
    ".windsurf",
    ".yarnrc.yml",
    ".zed",
    "CLAUDE.local.md",
    "CLAUDE.md",
    "lefthook.yml",
    "mise.toml",
    "opencode.json",
)

# Names of files in a project that look like secrets: listed by the audit, left to the user.
SECRET_FILE_NAMES = (
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "*.ovpn",
    "*.tfstate",
    "*.tfvars",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    ".netrc",
    ".npmrc",
    ".pypirc",
    ".htpasswd",
    ".git-credentials",
    "credentials",
    "credentials*.json",
    "client_secret*.json",
    "service-account*.json",
    "secrets.y*ml",
    "secrets.json",
)
HARMLESS_FILE_NAMES = (".env.example", ".env.sample", ".env.template", ".env.dist")

# What `hide` patterns may cost: entries of a project that are looked at, mounts that are made
# (bwrap's time grows with the square of their number).
HIDE_ENTRY_LIMIT = 1_000_000
HIDDEN_LIMIT = 400


def is_within(path: str, directory: str) -> bool:
    """Say whether `path` is `directory` or lies below it. Both absolute and normalised."""
    return path == directory or directory == "/" or path.startswith(directory + "/")


def host_variable_allowed(name: str) -> bool:
    """Say whether this variable of the host is let in without being asked for."""
    return (
        name in HOST_VARIABLES
        or name == API_KEY
        or (name.startswith(HOST_VARIABLE_PREFIXES) and name.isidentifier() and name.isascii())
    )


def variable_refusal(name: str) -> str | None:
    """Return why the user cannot let in or set this variable, or None if it can be."""
    if variable_forbidden(name):
        return "it acts on the sandbox's own programs, outside"
    return "claudebox sets it" if name in OWN_VARIABLES else None


def variable_forbidden(name: str) -> bool:
    """Say whether no one may let this variable in."""
    return name in FORBIDDEN_VARIABLES or name.startswith(FORBIDDEN_VARIABLE_PREFIXES)


def limits(memory: int) -> dict:
    """Return the plan's default `limits` for a machine with `memory` bytes."""

    def part(share):
        return int(memory * share) >> 20 << 20

    return {"processes": PROCESSES, "memory": part(MEMORY_SHARE), "tmp": part(TMP_SHARE)}


def tmpfs_size(mount: dict, tmp: int | None) -> int | None:
    """Return how many bytes a tmpfs mount holds, None for half of the machine's memory.

    `tmp` is the plan's limit; a mount that says its own size has that.
    """
    if "size" in mount or tmp is None:
        return mount.get("size")
    return max(1, tmp // TMPFS_DIVISORS.get(mount["target"], 1))


def proc_masks() -> list[dict]:
    """Return the mounts that cover what this kernel shows of the whole machine in /proc."""
    return [
        {"kind": "mask", "target": path, "reason": "system"}
        for path in MASKED_PROC_FILES
        if os.path.exists(path)
    ]


def nix_socket_mount() -> dict:
    """Return the only mount of what belongs to a nix daemon.

    It is the directory: a daemon that is started again makes a new socket in it.
    """
    place = NIX_SOCKET_DIRECTORY
    return {"kind": "ro-bind", "source": place, "target": place, "reason": "nix"}


def state_home(home: str, environ=os.environ) -> str:
    """Return the absolute path of claudebox's own state: $CLAUDEBOX_HOME or ~/.claudebox."""
    chosen = environ.get("CLAUDEBOX_HOME") or home + "/.claudebox"
    return os.path.realpath(chosen)


class _Secrets(dict):
    """Path → the name that a secret is known by; `above` has the same for all directories above one."""

    def __init__(self):
        super().__init__()
        self.above = {}

    def __setitem__(self, path: str, name: str):
        super().__setitem__(path, name)
        while (path := path.rpartition("/")[0]) and path not in self.above:
            self.above[path] = name


def secret_paths(home: str, environ=os.environ) -> _Secrets:
    """Return what no mount may touch: resolved absolute path → the name that it is known by.

    A secret that is a symbolic link counts twice, where it lies and where it leads.
    """
    secrets = _Secrets()
    parents = {}

    def add(path, name):
        parent, _, last = path.rpartition("/")
        if parent not in parents:
            # Of a path such as /boot the parent is empty, as it is of /.
            parents[parent] = os.path.realpath(parent or "/").rstrip("/")
        resolved = f"{parents[parent]}/{last}"
        secrets[path] = secrets[resolved] = name
        try:
            os.readlink(resolved)
        except OSError:
            return
        secrets[os.path.realpath(resolved)] = name

    # $HOME can be a directory below the real one.
    homes = ["/root", home] if is_within(home, "/root") and home != "/root" else [home]
    for place in homes:
        for name in SECRET_HOME_PATHS:
            add(f"{place}/{name}", f"~/{name}" if place == home else f"{place}/{name}")
    for path in SECRET_SYSTEM_PATHS:
        # Whose home /root is, its own list above protects it.
        if not is_within(home, path):
            add(path, path)
    add(f"/tmp/tmux-{os.getuid()}", f"/tmp/tmux-{os.getuid()}")
    for variable in SECRET_PLACE_VARIABLES:
        for path in environ.get(variable, "").split(":"):
            if path.startswith("/"):
                add(path.rstrip("/") or path, f"${variable}")
    for variable in SOCKET_ADDRESS_VARIABLES:
        for address in environ.get(variable, "").split(";"):
            for beginning in ("unix:path=", "unix://"):
                path = address.removeprefix(beginning).partition(",")[0]
                if path != address and path.startswith("/"):
                    add(path, f"${variable}")
    secrets[state_home(home, environ)] = "claudebox's own state"
    return secrets


def exposed_secret(path: str, secrets: _Secrets, home: str) -> str | None:
    """Return why mounting the resolved `path` would expose a secret, or None if it would not."""
    if is_within(home, path):
        return "it is the home directory" if home == path else "it contains the home directory"
    if path in secrets:
        return f"it is {secrets[path]}"
    if path in secrets.above:
        return f"it contains {secrets.above[path]}"
    while path := path.rpartition("/")[0]:
        if path in secrets:
            return f"it lies in {secrets[path]}"
    return None


def refuse_secret_project(root: str, home: str) -> _Secrets:
    """Raise Failure if a session in the resolved directory `root` would expose a secret.

    Returns what `secret_paths` does, which takes some hundred system calls.
    """
    secrets = secret_paths(home)
    reason = exposed_secret(root, secrets, home)
    for name in HOME_MARKS:
        if os.path.isdir(f"{root}/{name}"):
            reason = reason or f"it holds {name}, so it is somebody's home directory"
    if reason:
        raise Failure(
            f"{root} cannot be a project: {reason}", "start claudebox in a directory of its own"
        )
    return secrets


def host_credentials(home: str, environ=os.environ) -> str:
    """Return the resolved path of the host's own Claude credentials, whether or not it exists."""
    directory = environ.get("CLAUDE_CONFIG_DIR") or home + "/.claude"
    return os.path.realpath(directory + "/.credentials.json")
