"""Takes programs and development shells from the nix store for a session, and remembers them.

nix is started by absolute path in `/`. What a project wrote is evaluated in a sandbox of its own: a
flake can name any directory as an input, and nix copies it into the store, which every user and
every session can read (`fetchTree` does so even where the hash is wrong; measured with nix 2.8).
"""

import os
import sys

from claudebox import Failure, baked, host, nix, policy

_FORMAT = "claudebox nix cache 1"
_HASH_LETTERS = frozenset("0123456789abcdfghijklmnpqrsvwxyz")
_NAME_LETTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-._?=")
_ATTRIBUTE_LETTERS = frozenset(_NAME_LETTERS - set("?=")) | {"'"}
_REFERENCE_LETTERS = _ATTRIBUTE_LETTERS | set("/:@?=&%~,^")
_FLAGS = ("--extra-experimental-features", "nix-command flakes", "--no-accept-flake-config")
# Of a project's flake: more, or larger files, are no description of a shell.
_FILE_LIMIT = 2000
_BYTE_LIMIT = 16 << 20
# Of one line that nix writes.
_LINE_LIMIT = 4096
# Where its files are in the sandbox that evaluates them.
_FLAKE_INSIDE = "/flake"
# Of an input in flake.lock, by its type: what can be fetched before anything is evaluated.
_FORGES = ("github", "gitlab", "sourcehut")
_LOCKED_NUMBERS = ("lastModified", "revCount")
_LOCKED_WORDS = ("narHash", "owner", "ref", "repo", "rev", "type", "url")
_LOCKED_FLAGS = ("allRefs", "shallow", "submodules")


def is_store_path(path: str) -> bool:
    """Say whether `path` is what nix calls a store path: /nix/store/HASH-NAME and nothing below."""
    digest, dash, name = path.removeprefix(policy.NIX_STORE + "/").partition("-")
    return (
        path.startswith(policy.NIX_STORE + "/")
        and bool(dash and name)
        and len(digest) == 32
        and _HASH_LETTERS.issuperset(digest)
        and _NAME_LETTERS.issuperset(name)
    )


def _store_path_of(path: str) -> str | None:
    """Return the store path that `path` is, or lies in, or None where it is nothing of that kind."""
    parts = path.split("/")[1:]
    if not policy.is_within(path, policy.NIX_STORE) or any(p in (".", "..", "") for p in parts):
        return None
    first = path.removeprefix(policy.NIX_STORE + "/").partition("/")[0]
    found = f"{policy.NIX_STORE}/{first}"
    return found if is_store_path(found) else None


# ---------------------------------------------------------------------------- what is remembered


class _Memory:
    """What nix said once, below $CLAUDEBOX_HOME/cache/nix, with roots that keep it in the store.

    An entry counts while its `key` is the same and every store path in it is still there, and is
    still what its root leads to. Nothing of this is in any sandbox.
    """

    def __init__(self, home: str, project_root: str):
        self.project_root = project_root
        self.directory = f"{policy.state_home(home)}/cache/nix"

    def read(self, name: str, key: str) -> list[str] | None:
        """Return the lines that were remembered under `name` with `key`, or None."""
        lines = self._lines(name)
        if lines[:2] != [_FORMAT, key]:
            return None
        roots = [line[len("root ") :] for line in lines[2:] if line.startswith("root ")]
        for index, path in enumerate(roots):
            if not is_store_path(path) or not os.path.lexists(path):
                return None
            try:
                if os.readlink(self._root(name, index)) != path:
                    return None
            except OSError:
                return None
        # Nothing else is in an entry, so nothing else is taken from one.
        return lines[2:] if _roots(lines[2:]) <= set(roots) else None

    def write(self, name: str, key: str, lines: list[str], roots: list[str]) -> list[str]:
        """Remember `lines` under `name`, with a root for each of `roots`; return what `read` does."""
        self.make()
        for old in os.listdir(self.directory):
            if old.startswith(name + ".root"):
                os.unlink(f"{self.directory}/{old}")
        if roots:
            # Also tells whether they are valid, and finds what was collected a moment ago.
            words = [_program("nix-store", self.project_root), "--realise", *roots]
            words += ["--add-root", self._root(name, 0), "--indirect"]
            _run(words, "keep what was built from being collected as garbage", self.project_root)
        lines = [*(f"root {path}" for path in roots), *lines]
        self.write_file(name, [_FORMAT, key, *lines])
        return lines

    def make(self) -> None:
        """Make the directory, private to the user."""
        from claudebox.sandbox import state

        cache = state.make_cache(os.path.dirname(os.path.dirname(self.directory)))
        try:
            os.mkdir("nix", 0o700, dir_fd=cache)
        except FileExistsError:
            pass
        os.close(state.open_directory("nix", at=cache))
        os.close(cache)

    def locked(self, flake: str) -> str | None:
        """Return the reference, with its revision, that `flake` was found to be the first time."""
        for line in self._lines("locks"):
            before, _, after = line.partition(" ")
            if before == flake and after:
                return after
        return None

    def lock(self, flake: str, locked: str) -> None:
        """Remember that."""
        self.make()
        lines = [line for line in self._lines("locks") if line.partition(" ")[0] != flake]
        self.write_file("locks", [*lines, f"{flake} {locked}"])

    def write_file(self, name: str, lines: list[str]) -> None:
        temporary = f"{self.directory}/{name}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write("".join(line + "\n" for line in lines))
        os.rename(temporary, f"{self.directory}/{name}")

    def _lines(self, name: str) -> list[str]:
        from claudebox import git

        return (git.read_small_file(f"{self.directory}/{name}", 1 << 20) or "").split("\n")[:-1]

    def _root(self, name: str, index: int) -> str:
        # As `nix-store --add-root` numbers them.
        return f"{self.directory}/{name}.root" + (f"-{index + 1}" if index else "")


def _digest(*parts: str | bytes) -> str:
    from claudebox import instance

    total = instance.sha256()
    for part in parts:
        data = os.fsencode(part) if isinstance(part, str) else part
        total.update(b"%d:" % len(data) + data)
    return total.hexdigest()


# ---------------------------------------------------------------------------- packages


def packages(references: list[str], home: str, project_root: str) -> dict[str, list[str]]:
    """See claudebox.nix.packages."""
    memory = _Memory(home, project_root)
    found = {}
    for reference in references:
        flake, attribute = _split(reference, project_root)
        locked = _pinned(flake, memory)
        name = "package-" + _digest(reference)[:32]
        lines = locked and memory.read(name, _digest(reference, locked))
        if not lines:
            locked = locked or _lock(flake, memory, _ask_nix)
            lines = _build(reference, locked, attribute, name, memory)
        found[reference] = [line[len("bin ") :] for line in lines if line.startswith("bin ")]
    return found


def _split(reference: str, project_root: str) -> tuple[str, str]:
    """Return flake and attribute of a reference, of nixpkgs where it names no flake.

    Raises Failure for what is no reference, and for one into the project: an agent wrote it.
    """

    def refuse(problem):
        return Failure(
            f'the package "{reference}" {problem}',
            "name an attribute of nixpkgs (jq), or a flake reference (github:owner/name#jq)",
        )

    flake, mark, attribute = reference.partition("#")
    if not mark:
        flake, attribute = "nixpkgs", reference
        if not attribute or not _ATTRIBUTE_LETTERS.issuperset(attribute):
            raise refuse("is no name of one")
    if not _REFERENCE_LETTERS.issuperset(reference.replace("#", "", 1)):
        raise refuse("holds characters that no reference has")
    if reference.startswith("-") or attribute.startswith("-") or not attribute or not flake:
        raise refuse("is no reference")
    scheme, colon, rest = flake.partition(":")
    place = rest if colon else flake
    if scheme in ("path", "git+file", "hg+file", "tarball+file", "file") or not colon:
        place = place.removeprefix("//").partition("?")[0]
        local = colon or place.startswith((".", "/", "~"))
        if local and (not place.startswith("/") or "%" in place):
            raise refuse("is relative, or escapes characters: name an absolute path")
        if local and policy.is_within(os.path.realpath(place), project_root):
            raise refuse(
                "lies in the project: what an agent wrote there would be evaluated outside"
            )
    return flake, attribute


def _pinned(flake: str, memory: _Memory) -> str | None:
    if flake == "nixpkgs" and baked.NIXPKGS:
        return baked.NIXPKGS
    return memory.locked(flake)


def _lock(flake: str, memory: _Memory, ask) -> str:
    words = ["flake", "metadata", "--json", "--no-write-lock-file", flake]
    answer = ask(words, f"find {flake}", memory.project_root)
    locked = answer.get("url") if isinstance(answer, dict) else None
    if not isinstance(locked, str) or not _REFERENCE_LETTERS.issuperset(locked):
        raise Failure(f"nix does not say what {flake} is", "try `nix flake metadata` yourself")
    memory.lock(flake, locked)
    return locked


def _build(reference: str, locked: str, attribute: str, name: str, memory: _Memory) -> list[str]:
    words = ["build", "--no-link", "--json", f"{locked}#{attribute}"]
    answer = _ask_nix(words, f"build {reference}", memory.project_root)
    paths = []
    for built in answer if isinstance(answer, list) else ():
        outputs = built.get("outputs") if isinstance(built, dict) else None
        paths += (outputs or {}).values()
    if not paths or not all(isinstance(path, str) and is_store_path(path) for path in paths):
        raise Failure(f"nix does not say what {reference} became", "try `nix build` yourself")
    directories = [f"{path}/bin" for path in paths if os.path.isdir(f"{path}/bin")]
    if not directories:
        raise Failure(f"{reference} holds no programs: it has no bin", "leave it out")
    lines = [f"bin {directory}" for directory in directories]
    return memory.write(name, _digest(reference, locked), lines, paths)


def _program(name: str, project_root: str) -> str:
    found = host.find_program(name, project_root, ("/nix/var/nix/profiles/default/bin",))
    if found is None:
        raise Failure(
            f"{name} was not found on PATH, and packages and development shells come from nix",
            "install nix, or leave them out",
        )
    return found


def _ask_nix(words: list[str], aim: str, project_root: str):
    """Run nix with the user's own configuration, its progress on stderr; return the JSON it prints."""
    return _json(_run([_program("nix", project_root), *words, *_FLAGS], aim, project_root), aim)


def _run(words: list[str], aim: str, project_root: str, **options) -> bytes:
    """Run a program in `/` and return what it prints; raises Failure unless it succeeds."""
    import subprocess

    if "env" not in options:
        # nix looks for git and ssh on PATH.
        path = ":".join((*baked.PATH, *host.SYSTEM_DIRECTORIES, *host.search_path(project_root)))
        options["env"] = {**os.environ, "PATH": path}
    sys.stderr.flush()
    done = subprocess.run(
        words, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False, **options
    )
    if done.returncode:
        raise Failure(f"nix could not {aim}", "see what it said above")
    return done.stdout


def _run_hostile(words: list[str], aim: str, **options) -> bytes:
    """The same for one that works on what a project wrote.

    Nothing that it says can draw on the terminal: `builtins.trace` writes what it likes just before
    the audit is shown. It gets as much of the machine as a session does by default.
    """
    import subprocess

    from claudebox.printable import printable
    from claudebox.sandbox import limits

    sys.stderr.flush()
    groups = limits.Groups(policy.limits(host.memory()))
    try:
        groups.complete()
        with open(os.memfd_create("answer", os.MFD_CLOEXEC), "w+b", buffering=0) as answer:
            options |= {"stdin": subprocess.DEVNULL, "stdout": answer, "stderr": subprocess.PIPE}
            options["preexec_fn"] = groups.enter
            with subprocess.Popen(words, cwd="/", **options) as running:
                while line := running.stderr.readline(_LINE_LIMIT):
                    said = printable(line.decode(errors="surrogateescape").removesuffix("\n"))
                    sys.stderr.write(f"nix: {said}\n")
            if running.returncode:
                raise Failure(f"nix could not {aim}", "see what it said above")
            answer.seek(0)
            return answer.read()
    except subprocess.SubprocessError:
        raise Failure(
            f"nix, which was to {aim}, cannot be limited", "see what `claudebox doctor` says"
        ) from None
    finally:
        groups.close()


def _json(answer: bytes, aim: str):
    import json

    try:
        return json.loads(answer)
    except ValueError:
        raise Failure(f"nix was to {aim}, and printed no JSON", "try it yourself") from None


# ---------------------------------------------------------------------------- development shells


def devshell(
    reference: str | None, project_root: str, home: str, trust: bool, hidden=()
) -> tuple[list[str], dict[str, str]]:
    """See claudebox.nix.devshell."""
    memory = _Memory(home, project_root)
    name = "devshell-" + _digest(reference or "", project_root)[:32]
    fragment, files, locked = reference or "", {}, None
    if fragment.startswith(("#", ".#")) or not fragment:
        fragment = fragment.removeprefix(".")
        if fragment and not _ATTRIBUTE_LETTERS.issuperset(fragment[1:]):
            raise Failure(f'the development shell "{reference}" is no name', "name an attribute")
        files = _flake_files(project_root, hidden)
        key = _digest(fragment, *(part for item in sorted(files.items()) for part in item))
    else:
        if "#" not in fragment:
            fragment += "#default"
        flake, attribute = _split(fragment, project_root)
        scheme = flake.partition(":")[0]
        if scheme == "path" or "file" in scheme or flake.startswith(("/", ".", "~")):
            raise Failure(
                f"the development shell {reference} is a flake of this machine, other than the"
                " project's, and those are not evaluated",
                "start in that directory, or leave it out",
            )
        locked = _pinned(flake, memory) or _lock(flake, memory, _ask_sandboxed)
        fragment = "#" + attribute
        key = _digest(fragment, locked)
    lines = memory.read(name, key)
    if lines is None:
        _refuse_unsandboxed_builds(trust)
        lines = _evaluated(fragment, files, locked, project_root)
        roots = sorted(_roots(lines))
        lines = memory.write(name, key, lines, roots)
    directories = [line[len("bin ") :] for line in lines if line.startswith("bin ")]
    settings = [line[len("set ") :] for line in lines if line.startswith("set ")]
    return directories, dict(setting.split("=", 1) for setting in settings)


def _refuse_unsandboxed_builds(trust: bool) -> None:
    """Raise Failure unless what the shell has to be built from is built in a sandbox of nix."""
    if not nix.decision("off"):
        raise Failure(
            "development shells need a nix daemon, and there is none",
            "install one, or leave it out",
        )
    problem = None if trust else nix.why_unsandboxed()
    if problem:
        raise Failure(
            f"the project's development shell would be built without a sandbox: {problem}",
            "switch the daemon's sandbox on, or trust it with --nix=trust",
        )


def _flake_files(project_root: str, hidden) -> dict[str, bytes]:
    """Return the files of the project that describe its shell: path below the root → content.

    They are found as the audit finds what looks like a secret; links are not followed. Left out is
    what the patterns `hidden` match: the store, which gets them all, is readable inside.
    """
    from claudebox import hiding, project
    from claudebox.sandbox import sources

    secrets = set(project.walk(project_root)["secrets"])
    covered = (
        [path for path, _ in hiding.find(project_root, list(hidden)).paths()] if hidden else []
    )
    found, total = {}, 0
    opener = sources.Opener()
    for path in _described(project_root):
        if path in secrets or any(policy.is_within(path, each) for each in covered):
            continue
        try:
            with open(f"/proc/self/fd/{opener.open(path)}", "rb") as file:
                content = file.read(_BYTE_LIMIT + 1)
        except Failure:
            continue
        total += len(content)
        if total > _BYTE_LIMIT or len(found) >= _FILE_LIMIT:
            raise Failure(
                f"{project_root} has too many files for a development shell",
                f"it may have {_FILE_LIMIT} files of {', '.join(policy.DEVSHELL_FILE_SUFFIXES)} and"
                f" the like, {_BYTE_LIMIT >> 20} MiB in all",
            )
        found[path[len(project_root) + 1 :]] = content
    opener.close()
    if "flake.nix" not in found:
        raise Failure(
            f"{project_root} has no flake.nix, so it has no development shell",
            "leave --devshell out, or name a flake",
        )
    return found


def _described(root: str):
    """Yield the paths of regular files whose names are those of a flake, on root's filesystem."""
    from claudebox import project

    device = os.lstat(root).st_dev
    directories = [root]
    seen = 0
    for directory in directories:
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            seen += 1
            if seen > project.ENTRY_LIMIT:
                return
            if entry.is_dir(follow_symlinks=False):
                other = entry.name in (".git", "node_modules", ".direnv")
                if not other and entry.stat(follow_symlinks=False).st_dev == device:
                    directories.append(entry.path)
            elif entry.is_file(follow_symlinks=False) and (
                entry.name in policy.DEVSHELL_FILE_NAMES
                or entry.name.endswith(policy.DEVSHELL_FILE_SUFFIXES)
            ):
                yield entry.path


def _evaluated(fragment: str, files: dict, locked: str | None, project_root: str) -> list[str]:
    """Return the lines to remember of a shell: what of its PATH and variables is taken over."""
    words = ["print-dev-env", "--json", "--no-write-lock-file"]
    aim = "evaluate the development shell"
    if locked is not None:
        return _taken_over(_ask_sandboxed([*words, locked + fragment], aim, project_root))
    import shutil
    import tempfile

    copy = tempfile.mkdtemp(prefix="claudebox-flake.")
    try:
        for name, content in files.items():
            path = f"{copy}/{name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        inputs = locked_inputs(files.get("flake.lock", b""))
        if inputs:
            # The only step with a network, and nothing that the project wrote is evaluated in it.
            fetch = ["eval", "--json", "--expr", inputs]
            _ask_sandboxed(fetch, "fetch the inputs that flake.lock names", project_root)
        words += ["--offline", f"path:{_FLAKE_INSIDE}{fragment}"]
        return _taken_over(_ask_sandboxed(words, aim, project_root, copy))
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def locked_inputs(lock: bytes) -> str | None:
    """Return a nix expression that fetches what a flake.lock names, or None if that is nothing.

    It holds data alone. Left out is what is not on the public internet: directories, and addresses
    other than https with a host's name. The evaluation then says what is missing.
    """
    import json

    try:
        nodes = json.loads(lock or b"{}").get("nodes", {})
        inputs = [node["locked"] for node in nodes.values() if "locked" in node]
        trees = [tree for tree in map(_tree, inputs) if tree]
    except (ValueError, AttributeError, TypeError, KeyError):
        raise Failure(
            "flake.lock is no lock file of nix", "make it with `nix flake lock`"
        ) from None
    if not trees:
        return None
    return "map (tree: (builtins.fetchTree tree).narHash) [ " + " ".join(sorted(set(trees))) + " ]"


def _tree(locked: dict) -> str | None:
    letters = _NAME_LETTERS | set("/:@&%~,")
    attributes = {}
    for key, value in locked.items():
        if key in _LOCKED_WORDS and isinstance(value, str) and letters.issuperset(value):
            attributes[key] = f'"{value}"'
        elif key in _LOCKED_NUMBERS and type(value) is int and 0 <= value < 2**62:
            attributes[key] = str(value)
        elif key in _LOCKED_FLAGS and isinstance(value, bool):
            attributes[key] = "true" if value else "false"
        elif key not in ("dir", "original"):
            return None
    if "narHash" not in attributes:
        return None
    kind = locked.get("type")
    if kind in _FORGES:
        if not {"owner", "repo", "rev"} <= attributes.keys():
            return None
    elif kind not in ("tarball", "file", "git") or not _is_public(locked.get("url", "")):
        return None
    return "{ " + " ".join(f"{key} = {value};" for key, value in sorted(attributes.items())) + " }"


def _is_public(url: str) -> bool:
    """Say whether an address is https and names a host with a domain: no number, no local name."""
    if not url.startswith("https://"):
        return False
    name = url[len("https://") :].partition("/")[0].lower()
    last = name.rpartition(".")[2]
    return (
        "." in name
        and _ATTRIBUTE_LETTERS.issuperset(name)
        and last.isalpha()
        and last not in ("local", "localhost", "internal", "lan", "home", "arpa", "onion")
    )


def _ask_sandboxed(words: list[str], aim: str, project_root: str, flake: str | None = None):
    """Run nix, without the user's configuration, where it sees the system, the store and `flake`.

    Returns the JSON that it prints. With `flake`, which the project wrote, it has no network either.
    Builds are the daemon's.
    """
    from claudebox.sandbox import bwrap, seccomp

    program = os.path.realpath(_program("nix", project_root))
    system, path, _ = host.system_mounts()
    mounts = [*system, *nix.store_mounts(system), policy.nix_socket_mount()]
    outer = [host.bwrap(project_root)["path"], *bwrap.NAMESPACES, "--die-with-parent"]
    outer += ["--cap-drop", "ALL", "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    outer += ["--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/home"]
    if flake is not None:
        outer += ["--unshare-net", "--ro-bind", flake, _FLAKE_INSIDE]
    elif os.path.isfile("/etc/resolv.conf"):
        outer += ["--ro-bind", os.path.realpath("/etc/resolv.conf"), "/etc/resolv.conf"]
    for mount in mounts:
        outer += [f"--{mount['kind']}", mount["source"], mount["target"]]
    variables = {"HOME": "/home", "PATH": path, "TMPDIR": "/tmp", **policy.NIX_VARIABLES}
    variables |= {name: os.environ[name] for name in ("TERM", "LANG") if name in os.environ}
    with open(os.memfd_create("seccomp filter", os.MFD_CLOEXEC), "w+b", buffering=0) as rules:
        rules.write(seccomp.program())
        rules.seek(0)
        outer += ["--seccomp", str(rules.fileno()), "--remount-ro", "/", "--chdir", "/", "--"]
        words = [*outer, program, *words, *_FLAGS]
        answer = _run_hostile(words, aim, env=variables, pass_fds=[rules.fileno()])
    return _json(answer, aim)


def _taken_over(answer) -> list[str]:
    variables = answer.get("variables") if isinstance(answer, dict) else None
    if not isinstance(variables, dict):
        raise Failure(
            "nix does not say what the development shell is", "try `nix develop` yourself"
        )
    values = {
        name: entry["value"]
        for name, entry in variables.items()
        if isinstance(entry, dict)
        and entry.get("type") in ("exported", "var")
        and isinstance(entry.get("value"), str)
    }
    directories = [part for part in values.get("PATH", "").split(":") if _store_path_of(part)]
    lines = [f"bin {directory}" for directory in dict.fromkeys(directories)]
    for name in policy.DEVSHELL_VARIABLES:
        if values.get(name) and _leads_nowhere_else(values[name]):
            lines.append(f"set {name}={values[name]}")
    return lines


def _leads_nowhere_else(value: str) -> bool:
    """Say whether every path in a value lies in the store; words without a slash are no paths."""
    if not value.isascii() or not value.isprintable():
        return False
    for word in _words(value):
        path = word
        for option in ("-I", "-L", "-B", "-isystem"):
            if word.startswith(option + "/"):
                path = word[len(option) :]
        if "/" in path and not _store_path_of(path):
            return False
    return True


def _roots(lines: list[str]) -> set[str]:
    """Return the store paths that remembered lines name, and every path that is in none of them."""
    found = set()
    for line in lines:
        for word in _words(line):
            if "/" in word:
                path = word[word.index("/") :]
                found.add(_store_path_of(path) or path)
    return found


def _words(value: str) -> list[str]:
    return value.replace(":", " ").replace("=", " ").replace(",", " ").split(" ")
