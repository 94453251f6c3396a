"""Probes for files of the host: those of the user, of others, of the system, and what lies about."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import stat

from probes import (
    CANARY,
    FACTS,
    INHERITED,
    NotHere,
    call,
    declare,
    first,
    holds_canary,
    in_child,
    libc,
    named,
)

probe = declare("files")

HOME = os.environ.get("HOME", "/")
ONLY_ROOT_WRITES = "only root may write there, with or without a sandbox"

# Beside the policy's own list, what people keep in a home directory.
FURTHER_SECRETS = (
    ".bashrc",
    ".config/1Password/settings",
    ".config/Code/User/globalStorage/state.vscdb",
    ".config/JetBrains/options/other.xml",
    ".config/autostart/x.desktop",
    ".config/environment.d/10-token.conf",
    ".config/fish/config.fish",
    ".config/github-copilot/hosts.json",
    ".config/gnome-session/x",
    ".config/kdeconnect/privateKey.pem",
    ".config/obsidian/x",
    ".config/systemd/user/x.service",
    ".config/user-dirs.dirs",
    ".config/zed/settings.json",
    ".cache/huggingface/token",
    ".cache/mozilla/x",
    ".cargo/registry/x",
    ".codex/auth.json",
    ".cursor/x",
    ".dbus/session-bus/x",
    ".envrc",
    ".gemini/oauth_creds.json",
    ".huggingface/token",
    ".ivy2/.credentials",
    ".jupyter/jupyter_server_config.json",
    ".kaggle/kaggle.json",
    ".local/bin/own",
    ".local/share/Trash/files/x",
    ".local/share/direnv/allow/x",
    ".local/share/recently-used.xbel",
    ".nuget/NuGet/NuGet.Config",
    ".offlineimaprc",
    ".profile",
    ".sbt/1.0/credentials.sbt",
    ".subversion/auth/x",
    ".tsh/keys/x",
    ".vnc/passwd",
    ".vscode/argv.json",
    ".wakatime.cfg",
    ".zprofile",
    ".zshenv",
    ".zshrc",
    "Documents/passwords.txt",
    "Downloads/recovery-codes.txt",
    "Maildir/new/1",
    "src/other-project/.env",
    "src/other-project/main.c",
)
SYSTEM_DIRECTORIES = ("boot", "home", "lost+found", "media", "mnt", "srv", "sys")
# Of these directories the world of the canaries has its own.
CANARY_DIRECTORIES = (
    "/home",
    "/media",
    "/mnt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/var",
    "/dev/shm",
)


def _each_read(paths):
    return first(holds_canary(path) for path in paths)


@probe()
def secrets_of_the_policy():
    """No path of the policy's list of secrets can be read in the home directory."""
    return _each_read(FACTS["home_secrets"])


@probe()
def secrets_beyond_the_policy():
    """Nothing else that people keep in a home directory can be read."""
    return _each_read(f"{HOME}/{name}" for name in FURTHER_SECRETS)


def _group(name, sentence, *beginnings):
    def read():
        paths = [p for p in FACTS["home_secrets"] if p[len(HOME) + 1 :].startswith(beginnings)]
        if not paths:
            raise NotHere("the policy has no such path any more")
        return _each_read(paths)

    probe()(named(name, sentence, read))


_group("ssh_and_gpg_keys", "Keys of ssh and gpg cannot be read.", ".ssh", ".gnupg")
_group(
    "cloud_logins", "Logins of clouds cannot be read.", ".aws", ".azure", ".config/gcloud", ".kube"
)
_group(
    "forge_logins", "Logins of forges cannot be read.", ".config/gh", ".config/glab", ".git-cred"
)
_group("container_logins", "Logins of registries cannot be read.", ".docker", ".config/containers")
_group("package_tokens", "Tokens of package indexes cannot be read.", ".npmrc", ".pypirc", ".cargo")
_group("database_passwords", "Passwords of databases cannot be read.", ".pgpass", ".my.cnf")
_group("browser_profiles", "Profiles of browsers cannot be read.", ".mozilla", ".config/chromium")
_group(
    "password_stores", "Stores of passwords cannot be read.", ".password-store", ".local/share/k"
)
_group(
    "histories", "Histories of shells cannot be read.", ".bash_history", ".zsh_history", ".python_"
)
_group("own_claude", "The user's own ~/.claude and ~/.claude.json cannot be read.", ".claude")


@probe()
def home_listing():
    """The home directory lists nothing of the host but the way to the project."""
    known = {".claude", "src", ".cache", ".local", ".config"} if FACTS["sandboxed"] else {"src"}
    extra = set(os.listdir(HOME)) - known - set(FACTS["let_in_names"])
    return f"~ holds {sorted(extra)[:5]}" if extra else None


@probe()
def sibling_projects():
    """Directories beside the project do not exist."""
    extra = set(os.listdir(os.path.dirname(FACTS["project"]))) - {
        os.path.basename(FACTS["project"])
    }
    return f"beside the project: {sorted(extra)}" if extra else None


@probe()
def a_path_known_to_exist():
    """A file whose path is known cannot be looked at, not even its size and age."""
    return str(os.stat(f"{HOME}/.ssh/id_ed25519"))


@probe()
def the_state_of_claudebox():
    """The state of other projects in ~/.claudebox cannot be read."""
    return _each_read([f"{HOME}/.claudebox/instances/{'0' * 16}/claude/history.jsonl"])


@probe()
def above_the_instance():
    """`..` of ~/.claude is the home directory, not the instance: its metadata is out of reach."""
    if not FACTS["sandboxed"]:
        return holds_canary(f"{HOME}/.claudebox/instances/{'0' * 16}/instance.json")
    for name in ("instance.json", "lock", "standins.json"):
        if os.path.lexists(f"{HOME}/.claude/../{name}"):
            return name
    directory = os.open(f"{HOME}/.claude", os.O_RDONLY)
    names = os.listdir(os.open("..", os.O_RDONLY, dir_fd=directory))
    return "instance.json" if "instance.json" in names else None


@probe()
def the_root_directory():
    """The root directory holds nothing but what the plan names."""
    known = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "opt", "proc", "run", "sbin"}
    known |= {"tmp", "usr", "var", "nix", HOME.split("/")[1]}
    extra = set(os.listdir("/")) - known
    return f"/ holds {sorted(extra)}" if extra else None


def _system_directory(name):
    def look():
        place = f"/{name}"
        if HOME.startswith(place + "/") and FACTS["sandboxed"]:
            extra = set(os.listdir(place)) - {HOME[len(place) + 1 :].split("/")[0]}
            return f"{place} holds {sorted(extra)}" if extra else None
        if not FACTS["sandboxed"] and not os.path.isdir(place):
            raise NotHere(f"this machine has no {place}")
        return f"{place} is there" if os.path.isdir(place) else None

    return look


for _name in SYSTEM_DIRECTORIES:
    _plain = _name.replace("+", "_")
    probe()(
        named(
            f"directory_{_plain}", f"/{_name} of the host is not there.", _system_directory(_name)
        )
    )


@probe()
def the_home_of_root():
    """Files of /root cannot be read."""
    return _each_read(["/root/canary", "/root/.ssh/id_ed25519", "/root/.bash_history"])


@probe()
def homes_of_others():
    """Files in the home directories of other users cannot be read."""
    return _each_read(["/home/bob/canary", "/home/bob/.ssh/id_ed25519"])


@probe()
def password_hashes():
    """/etc/shadow and /etc/gshadow cannot be read, and do not exist."""
    return first(
        path for path in ("/etc/shadow", "/etc/gshadow", "/etc/shadow-") if os.path.lexists(path)
    )


@probe()
def accounts_of_the_host():
    """/etc/passwd and /etc/group name nobody but the user, root and nobody."""
    with open("/etc/passwd") as file:
        names = {line.split(":")[0] for line in file}
    extra = names - {"root", "nobody", FACTS["user"]}
    return f"accounts {sorted(extra)[:5]}" if extra else None


@probe()
def secret_places_of_the_system():
    """No path of the policy's list for the system can be read."""
    return first(
        f"{path} is there"
        for path in FACTS["system_secrets"]
        if os.path.lexists(path)
        and path not in ("/proc", "/dev", "/run", "/var/run")
        and not HOME.startswith(path)
    )


@probe()
def configuration_of_the_host():
    """/etc holds only what programs need: no unit, cron job, ssh key, nix.conf or fstab."""
    names = ("crontab", "cron.d", "fstab", "hostname", "init.d", "issue", "login.defs", "motd")
    names += (
        "nix",
        "pam.d",
        "profile",
        "security",
        "ssh",
        "sudoers",
        "systemd",
        "apt",
        "environment",
    )
    return first(f"/etc/{name}" for name in names if os.path.lexists(f"/etc/{name}"))


@probe()
def private_keys_of_the_system():
    """/etc/ssl shows certificates, not private keys."""
    return "/etc/ssl/private" if os.path.lexists("/etc/ssl/private") else None


@probe()
def git_configuration_of_the_host():
    """git inside knows the user's name, not credential helpers or headers of the host."""
    import subprocess

    # Without what a control's environment would lead git to.
    keep = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    answer = subprocess.run(["git", "config", "-l"], capture_output=True, cwd="/", env=keep)
    return "git config -l" if CANARY.encode() in answer.stdout else None


def _canary_directory(directory):
    def look():
        found = []
        for name in ("canary", "deeper/canary"):
            if holds_canary(f"{directory}/{name}"):
                found.append(f"{directory}/{name}")
        return first(found)

    return look


for _name in CANARY_DIRECTORIES:
    probe()(
        named(
            f"left_in{_name.replace('/', '_')}",
            f"Files that lie in {_name} of the host cannot be read.",
            _canary_directory(_name),
        )
    )


@probe()
def logs_and_databases():
    """Logs, mail, spools and databases of the host in /var cannot be read."""
    return _each_read(
        f"/var/{name}/canary" for name in ("log", "mail", "spool", "lib", "lib/tailscale", "cache")
    )


@probe()
def every_file_that_can_be_found():
    """No file that a search of the whole tree finds holds a canary."""
    skipped = {"/proc", "/sys", "/usr", FACTS["project"], FACTS["checkout"]}
    seen = 0
    for directory, names, files in os.walk("/"):
        names[:] = [n for n in names if os.path.join(directory, n) not in skipped]
        for name in files:
            seen += 1
            path = os.path.join(directory, name)
            if directory.startswith("/dev") and not directory.startswith("/dev/shm"):
                continue
            if stat.S_ISREG(os.lstat(path).st_mode) and holds_canary(path, 65536):
                return path
            if seen > 50_000:
                return None
    return None


@probe()
def sockets_and_pipes():
    """No socket and no named pipe lies anywhere outside the project."""
    for directory, names, files in os.walk("/"):
        names[:] = [
            name
            for name in names
            if os.path.join(directory, name) not in ("/proc", "/sys", "/usr", FACTS["project"])
        ]
        for name in files:
            with contextlib.suppress(OSError):
                mode = os.lstat(os.path.join(directory, name)).st_mode
                if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                    return os.path.join(directory, name)
    return None


# ------------------------------------------------------------------------------ ways around


@probe()
def root_of_process_one():
    """/proc/1/root leads to the root of the sandbox."""
    # In a control, the parent's: that of the machine's first process has no canary.
    pid = 1 if FACTS["sandboxed"] else os.getppid()
    return _each_read([f"/proc/{pid}/root{path}" for path in FACTS["home_secrets"][:5]])


@probe()
def root_of_the_own_process():
    """/proc/self/root and paths full of `..` lead nowhere else."""
    up = "/proc/self/cwd" + "/.." * 40
    return _each_read(
        f"{root}{path}" for root in ("/proc/self/root/..", up) for path in FACTS["home_secrets"][:5]
    )


@probe()
def root_and_cwd_of_every_process():
    """No process that can be seen has a root or working directory from which the host is in reach."""
    path = FACTS["home_secrets"][0]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for way in (f"root{path}", f"cwd/../../{path[len(HOME) + 1 :]}"):
            if holds_canary(f"/proc/{pid}/{way}"):
                return f"/proc/{pid}/{way}"
    return None


@probe()
def working_directory_of_a_host_process():
    """The working directory of a process of the host cannot be entered."""
    return holds_canary(f"/proc/{FACTS['victim']}/cwd/canary")


@probe()
def deleted_but_open_file():
    """A deleted file that a process of the host has open cannot be read."""
    pid = FACTS["victim"]
    return first(holds_canary(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd"))


@probe()
def descriptors_of_every_process():
    """No process that can be seen has a descriptor of a file of the host open."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                place = f"/proc/{pid}/fd/{name}"
                # The standard streams are handed on.
                if int(name) > 2 and stat.S_ISREG(os.stat(place).st_mode) and holds_canary(place):
                    return place
    return None


@probe()
def symbolic_link_to_a_secret():
    """A symbolic link to a secret that lay in the project before the launch leads nowhere."""
    return _each_read(
        f"{FACTS['project']}/links/{n}" for n in ("absolute", "relative", "directory/x")
    )


@probe()
def symbolic_link_through_proc():
    """A symbolic link to /proc/1/root, /proc/1/cwd or /proc/self/root leads nowhere else."""
    project = FACTS["project"]
    return _each_read(f"{project}/links/{name}" for name in ("proc-root", "proc-self", "proc-cwd"))


@probe()
def hard_link_to_a_secret():
    """A hard link to a secret that lay in the project before the launch cannot be read."""
    return holds_canary(f"{FACTS['project']}/links/hard")


@probe()
def mount_below_the_project():
    """A file system that is mounted below the project is not visible."""
    return holds_canary(f"{FACTS['project']}/mounted/canary")


@probe()
def standard_stream():
    """A file that standard error was sent to cannot be opened anew and read."""
    return holds_canary("/proc/self/fd/2")


@probe(observed=True)
def directory_moved_out_of_the_project():
    """A directory that the host moves out of the project while it is open has no way up from it."""
    import time

    project = FACTS["project"]
    directory = os.open(f"{project}/moving/deep", os.O_RDONLY | os.O_DIRECTORY)
    with open(f"{project}/moving.ready", "w"):
        pass
    end = time.monotonic() + 20
    while not os.path.exists(f"{project}/moving.done") and time.monotonic() < end:
        time.sleep(0.005)
    for ups in range(1, 6):
        try:
            above = os.open("/".join([".."] * ups), os.O_RDONLY, dir_fd=directory)
            os.stat(".ssh/id_ed25519", dir_fd=above)
        except OSError:
            continue
        return "found"
    return None


# ------------------------------------------------------------------------------ descriptors


@probe()
def inherited_descriptors():
    """No descriptor but the three standard ones is inherited."""
    return f"{INHERITED}" if INHERITED else None


def _each_inherited(try_one):
    def attempt():
        for number in INHERITED:
            with contextlib.suppress(OSError):
                found = try_one(number)
                if found:
                    return f"descriptor {number}: {found}"
        return None

    return attempt


def _read_file(number):
    if stat.S_ISREG(os.fstat(number).st_mode):
        return CANARY.encode() in os.pread(number, 4096, 0) and "a file"
    return None


def _read_deleted(number):
    status = os.fstat(number)
    gone = stat.S_ISREG(status.st_mode) and status.st_nlink == 0
    return gone and CANARY.encode() in os.pread(number, 4096, 0) and "a deleted file"


def _read_directory(number):
    if stat.S_ISDIR(os.fstat(number).st_mode):
        file = os.open(".ssh/id_ed25519", os.O_RDONLY, dir_fd=number)
        return CANARY.encode() in os.read(file, 4096) and "a directory"
    return None


def _read_socket(number):
    if stat.S_ISSOCK(os.fstat(number).st_mode):
        other = socket.socket(fileno=os.dup(number))
        return (
            CANARY.encode() in other.recv(4096, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            and "a socket"
        )
    return None


def _read_pipe(number):
    if stat.S_ISFIFO(os.fstat(number).st_mode):
        flags = fcntl.fcntl(number, fcntl.F_GETFL)
        fcntl.fcntl(number, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        return CANARY.encode() in os.read(number, 4096) and "a pipe"
    return None


def _map_memory(number):
    with mmap.mmap(number, 0, prot=mmap.PROT_READ) as memory:
        return memory[:6] == CANARY.encode()[:6] and "mapped"


def _write_file(number):
    if stat.S_ISREG(os.fstat(number).st_mode):
        return os.pwrite(number, b"", 0) == 0 and "writable"
    return None


for _name, _function, _sentence in (
    ("file", _read_file, "A file that the caller had open cannot be read."),
    ("deleted_file", _read_deleted, "A deleted file that the caller had open cannot be read."),
    ("directory", _read_directory, "A directory that the caller had open is no way to the host."),
    ("socket", _read_socket, "A socket that the caller had open cannot be read."),
    ("pipe", _read_pipe, "A pipe that the caller had open cannot be read."),
    ("memory", _map_memory, "Memory of a file that the caller had open cannot be mapped."),
    ("writable_file", _write_file, "A file that the caller had open cannot be written."),
):
    probe()(named(f"inherited_{_name}", _sentence, _each_inherited(_function)))


@probe()
def core_dump():
    """The core of a process that crashes inside holds nothing of the caller's environment."""
    with open("/proc/sys/kernel/core_pattern") as file:
        pattern = file.read().strip()
    if pattern.startswith(("|", "/")):
        raise NotHere(f"cores go to {pattern}")
    place = f"{FACTS['project']}/crash"
    os.makedirs(place, exist_ok=True)

    def crash():
        os.chdir(place)
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        # PR_SET_DUMPABLE
        libc.prctl(4, 1, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSEGV)

    child = in_child(crash)
    os.waitpid(child, 0)
    needle = (CANARY + "-env").encode()
    for name in os.listdir(place):
        with open(f"{place}/{name}", "rb") as file:
            content = file.read()
        os.unlink(f"{place}/{name}")
        if needle in content:
            return "a core dump"
    if not FACTS["sandboxed"]:
        raise NotHere("cores are not written here: the hard limit is 0")
    return None


# ------------------------------------------------------------------------------ writing


@probe(observed=True)
def write_into_the_home():
    """What is written into the home directory, rc files included, does not reach the host's."""
    for name in (".bashrc", ".profile", ".zshrc", ".config/x", ".ssh/authorized_keys", "written"):
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(f"{HOME}/{name}"), exist_ok=True)
            with open(f"{HOME}/{name}", "a") as file:
                file.write("written inside\n")


@probe(observed=True)
def write_into_temporary_directories():
    """What is written into /tmp, /var/tmp, /dev/shm and /run does not reach the host's."""
    for place in ("/tmp", "/var/tmp", "/dev/shm", "/run"):
        with contextlib.suppress(OSError), open(f"{place}/written", "w") as file:
            file.write("written inside\n")


@probe(observed=True)
def write_beside_the_project():
    """Nothing can be made beside the project or above it, on the host."""
    for place in (os.path.dirname(FACTS["project"]), HOME, os.path.dirname(HOME)):
        with contextlib.suppress(OSError), open(f"{place}/written-beside", "w") as file:
            file.write("written inside\n")


@probe(only_root=ONLY_ROOT_WRITES)
def write_into_the_system():
    """/usr is read-only."""
    os.utime(
        "/usr/bin/env",
        ns=(os.stat("/usr/bin/env").st_atime_ns, os.stat("/usr/bin/env").st_mtime_ns),
    )
    return "the times of /usr/bin/env can be set"


@probe(only_root=ONLY_ROOT_WRITES)
def write_into_the_system_through_proc():
    """/usr is read-only through /proc/self/root as well."""
    path = "/proc/self/root/usr/bin/env"
    os.utime(path, ns=(os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns))
    return "the times of /usr/bin/env can be set"


@probe(only_root=ONLY_ROOT_WRITES)
def write_into_etc():
    """The generated /etc cannot be changed: nobody becomes another user by it."""
    with open("/etc/passwd", "a"):
        return "/etc/passwd can be written"


@probe(only_root=ONLY_ROOT_WRITES)
def a_temporary_file_in_the_system():
    """No unnamed file can be made in /usr."""
    os.close(os.open("/usr", os.O_TMPFILE | os.O_WRONLY))
    return "O_TMPFILE in /usr"


@probe(only_root=ONLY_ROOT_WRITES)
def change_the_mode_of_a_system_file():
    """The mode of a file of the system cannot be set."""
    os.chmod("/usr/bin/env", stat.S_IMODE(os.stat("/usr/bin/env").st_mode))
    return "chmod of /usr/bin/env"


@probe(only_root=ONLY_ROOT_WRITES)
def make_something_in_the_root():
    """Nothing can be made in the root directory."""
    os.mkdir("/made-by-a-probe")
    os.rmdir("/made-by-a-probe")
    return "mkdir in /"


@probe()
def change_the_user_database_of_the_instance():
    """SANDBOX.md and the managed settings in /etc/claude-code cannot be written."""
    if not FACTS["sandboxed"]:
        with open(f"{HOME}/.ssh/id_ed25519", "r+"):
            return "a file that claudebox would generate"
    for name in ("CLAUDE.md", "managed-settings.json"):
        with contextlib.suppress(OSError), open(f"/etc/claude-code/{name}", "r+"):
            return name
    return None


@probe(control="namespaces")
def set_a_file_capability():
    """No file can be given a capability."""
    path = f"{FACTS['project']}/capable"
    with open(path, "w"):
        pass
    # VFS_CAP_REVISION_2, cap_net_raw permitted and effective.
    os.setxattr(
        path, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
    )
    return "a file has a capability"


@probe(no_control="bwrap, which makes the world of the canaries as well, always sets it")
def setuid_programs_gain_nothing():
    """A set-user-ID program gains nothing: no_new_privs is set."""
    # PR_GET_NO_NEW_PRIVS
    return "no_new_privs is not set" if libc.prctl(39, 0, 0, 0, 0) == 0 else None


@probe(only_root="only root may open a file by its handle, with or without a sandbox")
def open_by_handle():
    """A file cannot be opened by its handle, past the tree of mounts."""
    handle = (ctypes.c_ubyte * 136)()
    handle[0] = 128
    mount = ctypes.c_int()
    call("name_to_handle_at", -100, HOME.encode(), handle, ctypes.byref(mount), 0)
    place = os.open(HOME, os.O_RDONLY)
    os.close(call("open_by_handle_at", place, handle, os.O_RDONLY))
    return "open_by_handle_at works"
