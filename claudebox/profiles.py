"""Reads profiles: their names, their files, their schema, what they inherit.

A profile is a document of the user's own, in `profiles` of claudebox's state. What it does to a plan
is in claudebox.profile.
"""

import os
import stat

from claudebox import Failure, plan, policy, schema

SIZE_LIMIT = 1 << 16
# A file name can have 255 bytes (NAME_MAX), its ending and that of a draft included.
NAME_LIMIT = 200

_LISTS = ("env", "mounts", "hide", "allow", "packages", "claude_args")
_OBJECTS = ("set", "limits")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class ProfileError(Failure):
    """A profile that cannot be used; the message names the file and the place in it."""

    def __init__(self, name: str, path: str, problem: str, todo: str = ""):
        super().__init__(
            f"profiles/{name}.json: {path + ': ' if path else ''}{problem}",
            todo or f"mend it with `claudebox profile edit {name}`",
        )
        self.path = path
        self.problem = problem


# ---------------------------------------------------------------------------- the schema


def _variable(value, path):
    """Check the name of a variable, or the beginning of names and `*`."""
    schema.line(value, path)
    name, sign, _ = value.partition("=")
    if sign:
        # What follows may be the secret itself.
        raise schema.Mismatch(
            path,
            f'"{name}=...": profiles name variables, they never hold secrets: write "{name}" alone,'
            " its value comes from the host",
        )
    stem = value.removesuffix("*")
    try:
        schema.variable_name(stem, path)
    except schema.Mismatch:
        raise schema.Mismatch(
            path, f'"{value}": the name of a variable is needed, or how names begin, then `*`'
        ) from None
    reason = policy.variable_refusal(stem)
    if reason:
        raise schema.Mismatch(path, f'"{value}" is refused: {reason}')
    return value


def _set_variable(value, path):
    schema.variable_name(value, path)
    reason = policy.variable_refusal(value)
    if reason:
        raise schema.Mismatch(path, f"it cannot be set: {reason}")
    return value


_check_set = schema.mapping(_set_variable, schema.or_null(schema.text))


def _settings(value, path):
    """Check variables with their values: none that looks like a secret."""
    checked = _check_set(value, path)
    from claudebox import audit

    for name, text in checked.items():
        reason = audit.secret_reason(name, text) if text else None
        if reason:
            raise schema.Mismatch(
                f"{path}.{name}",
                f'{reason}, and profiles never hold secrets: name it in "env", its value then comes'
                " from the host",
            )
    return checked


def _place(value, path):
    """Check an absolute path, or one below `~` or `$HOME`."""
    schema.line(value, path)
    rest = _below_home(value)
    try:
        schema.absolute_path((value if rest is None else "/home" + rest).rstrip("/") or "/", path)
    except schema.Mismatch as mismatch:
        also = "" if value.startswith("/") or rest is not None else ", or one below ~ or $HOME"
        raise schema.Mismatch(path, f'"{value}": {mismatch.problem}{also}') from None
    return value


def _below_home(value: str) -> str | None:
    """Return what follows `~` or `$HOME`, with its slash, or None if the path does not begin so."""
    for start in ("~", "$HOME"):
        if value == start or value.startswith(start + "/"):
            return value[len(start) :]
    return None


def expand(path: str, home: str) -> str:
    """Return a path of a profile as an absolute one: `~` and `$HOME` at its beginning expand."""
    rest = _below_home(path)
    return (path if rest is None else home + rest).rstrip("/") or "/"


_check_mount = schema.record(
    {"path": _place},
    {"target": _place, "mode": schema.choice("ro", "rw"), "optional": schema.boolean},
)


def mount_of(text: str) -> dict:
    """Return the mount that `PATH[:TARGET][:ro|rw]` means, as a profile would say it.

    A path with a colon in it cannot be written so. Raises schema.Mismatch.
    """
    words = text.split(":")
    mount = {"mode": words.pop()} if len(words) > 1 and words[-1] in ("ro", "rw") else {}
    if len(words) > 2:
        raise schema.Mismatch(
            "", "PATH[:TARGET][:ro|rw] is needed; a path with a colon can stand in a profile alone"
        )
    mount |= dict(zip(("path", "target"), words, strict=False))
    return _check_mount(mount, "")


def _pattern(value, path):
    from claudebox import hiding

    schema.line(value, path)
    problem = hiding.problem(value)
    if problem:
        raise schema.Mismatch(path, f'"{value}": {problem}')
    return value


def _exception(value, path):
    from claudebox.sandbox import inet

    schema.line(value, path)
    try:
        inet.parse_allow(value)
    except Failure as failure:
        raise schema.Mismatch(path, str(failure).removeprefix("--allow ")) from None
    return value


def reference(package: str) -> str:
    """Return the flake reference of a package: a plain name is one of nixpkgs."""
    plain = package.isascii() and all(c.isalnum() or c in "._+-" for c in package)
    return f"nixpkgs#{package}" if plain else package


def _reference(value, path):
    schema.line(value, path)
    if not (value.isascii() and value.isprintable()) or " " in value or value[0] in "-.#?~":
        raise schema.Mismatch(
            path,
            f'"{value}": the name of a package of nixpkgs is needed, or a flake reference such as'
            " nixpkgs#jq that does not depend on the current directory",
        )
    return value


def _devshell(value, path):
    if isinstance(value, str):
        # `#NAME` is one of the project's own flake.
        return _reference(value.removeprefix("#"), path) and value
    if not isinstance(value, bool):
        raise schema.Mismatch(
            path, f"true, false or a flake reference is needed, this is {schema.kind(value)}"
        )
    return value


def _bytes(value, path):
    """Check a number of bytes, or one with K, M, G or T (powers of 1024); return the number."""
    if isinstance(value, str):
        digits, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "")
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 19):
            raise schema.Mismatch(path, f'"{value}": a number is needed, then K, M, G or T')
        value = int(digits) * _UNITS.get(unit, 1)
    return schema.size(value, path)


def _parent(value, path):
    schema.text(value, path)
    problem = name_problem(value)
    if problem:
        raise schema.Mismatch(path, f'"{value}": {problem}')
    return value


def _or_removal(check):
    """Return a checker for what `check` takes, and for `!` with the name of an inherited entry."""

    def check_entry(value, path):
        if isinstance(value, str) and value.startswith("!"):
            return schema.line(value[1:], path) and value
        return check(value, path)

    return check_entry


_KEYS = {
    "description": schema.text,
    "extends": _parent,
    "env": schema.list_of(_or_removal(_variable)),
    "set": _settings,
    "mounts": schema.list_of(_or_removal(_check_mount)),
    "hide": schema.list_of(_or_removal(_pattern)),
    "network": schema.choice(*plan.TIERS),
    "allow": schema.list_of(_or_removal(_exception)),
    "packages": schema.list_of(_or_removal(_reference)),
    "devshell": _devshell,
    "limits": schema.record(
        {},
        {
            "processes": schema.or_null(schema.count),
            "memory": schema.or_null(_bytes),
            "tmp": schema.or_null(_bytes),
        },
    ),
    "nested_namespaces": schema.boolean,
    "claude_args": schema.list_of(schema.text),
}
_check_profile = schema.record({}, _KEYS)


def checked(document) -> dict:
    """Return the profile that `document` (parsed JSON) is, with its keys in the schema's order.

    Raises schema.Mismatch for what the schema does not name, for a variable that is both named and
    set, and for two mounts on the same place.
    """
    profile = _check_profile(document, "")
    for index, name in enumerate(profile.get("env", ())):
        if profile.get("set", {}).get(name) is not None:
            raise schema.Mismatch(f".env[{index}]", f'"{name}" has its value in "set" already')
    seen = {}
    for index, mount in enumerate(profile.get("mounts", ())):
        identity = _identity("mounts", mount)
        if isinstance(mount, dict) and seen.setdefault(identity, index) != index:
            raise schema.Mismatch(
                f".mounts[{index}]", f"{identity} is the place of .mounts[{seen[identity]}] already"
            )
    return profile


# ---------------------------------------------------------------------------- names and files


def name_problem(name: str) -> str | None:
    """Return why this cannot be the name of a profile, or None if it can."""
    if not name:
        return "the name of a profile cannot be empty"
    plain = name.replace(".", "a").replace("_", "a").replace("-", "a")
    if not (plain.isascii() and plain.isalnum() and name[0].isalnum()):
        return (
            "the name of a profile has ASCII letters, digits, `.`, `_` and `-`, and begins with a"
            " letter or digit"
        )
    return "the name of a profile is too long" if len(name) > NAME_LIMIT else None


def refuse_name(name: str) -> None:
    """Raise Failure if this cannot be the name of a profile. The file system is not looked at."""
    problem = name_problem(name)
    if problem:
        raise Failure(f'"{name}" is not a profile', problem, status=2)


class Directory:
    """The directory of the user's profiles.

    It and every file in it must belong to the user and be writable by nobody else. It is reached by
    descriptor, and no symbolic link in it is followed.
    """

    def __init__(self, home: str, environ=os.environ):
        self.state = policy.state_home(home, environ)
        self.path = self.state + "/profiles"

    def open(self) -> int | None:
        """Return a descriptor of the directory, or None if it is not there."""
        state = self._open_directory(self.state, None)
        if state is None:
            return None
        try:
            return self._open_directory("profiles", state)
        finally:
            os.close(state)

    def _open_directory(self, name: str, parent: int | None) -> int | None:
        path = name if parent is None else self.path
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failure(
                f"{path} is not a readable directory: {error.strerror}",
                "claudebox does not follow links here: put the directory itself in its place",
            ) from None
        try:
            _refuse_shared(path, os.fstat(descriptor))
        except Failure:
            os.close(descriptor)
            raise
        return descriptor

    def names(self) -> list[str]:
        """Return the names of all files that end in .json, sorted, also of those that cannot be used."""
        descriptor = self.open()
        if descriptor is None:
            return []
        try:
            found = os.listdir(descriptor)
        finally:
            os.close(descriptor)
        return sorted(
            name.removesuffix(".json")
            for name in found
            if name.endswith(".json") and not name.startswith(".")
        )

    def text(self, name: str, file_name: str | None = None) -> str | None:
        """Return what the file of a profile, or its draft `file_name`, holds; None if there is none.

        Raises ProfileError for a link, a special file, one that others can write, one that is too
        large, and one that is not UTF-8.
        """
        descriptor = self.open()
        if descriptor is None:
            return None
        try:
            return self._text(name, file_name or f"{name}.json", descriptor)
        finally:
            os.close(descriptor)

    def _text(self, name: str, file_name: str, directory: int) -> str | None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(file_name, flags, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            try:
                is_link = stat.S_ISLNK(os.lstat(file_name, dir_fd=directory).st_mode)
            except OSError:
                is_link = False
            if is_link:
                raise ProfileError(
                    name, "", "a symbolic link is not followed", "put the file itself there"
                ) from None
            raise ProfileError(name, "", error.strerror, "mend its permissions") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ProfileError(name, "", "not a plain file", "put a file there")
            _refuse_shared(f"{self.path}/{file_name}", status)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(SIZE_LIMIT + 1)
        finally:
            os.close(descriptor)
        if len(data) > SIZE_LIMIT:
            raise ProfileError(name, "", f"larger than {SIZE_LIMIT} bytes")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ProfileError(name, f"byte {error.start}", "not UTF-8") from None

    def profile(self, name: str) -> dict | None:
        """Return the checked profile of this name as its file says it, or None if there is none."""
        text = self.text(name)
        return None if text is None else profile_in(name, text)

    def missing(self, name: str) -> Failure:
        """Return the Failure that says that there is no such profile."""
        known = [known for known in self.names() if name_problem(known) is None]
        return Failure(
            f'there is no profile "{name}"{schema.nearest(name, known)}: {self.path}/{name}.json'
            " does not exist",
            "see `claudebox profile list`",
        )


def _refuse_shared(path: str, status: os.stat_result) -> None:
    if status.st_uid != os.getuid():
        raise Failure(f"{path} belongs to another user", "profiles are read from your own files")
    if status.st_mode & 0o022:
        raise Failure(f"{path} can be written by others", f"chmod go-w {path}")


def profile_in(name: str, text: str) -> dict:
    """Return the checked profile that this JSON text is; raises ProfileError for what is wrong."""
    try:
        return checked(schema.parse(text))
    except schema.Mismatch as mismatch:
        raise ProfileError(name, mismatch.path, mismatch.problem) from None


# ---------------------------------------------------------------------------- inheritance


class Resolved:
    """A profile with what it inherits: `chain` is its own name and its parents'.

    `values` is a profile without `extends`; `origins` has the name of a profile in the place of
    every value, entry of a list and value of an object.
    """

    def __init__(self, chain: list[str], documents: list[dict], traced: dict):
        self.name = chain[0]
        self.chain = chain
        self._documents = dict(zip(chain, documents, strict=True))
        self.values, self.origins = settled(traced)

    def wrong(self, key: str, index: int, problem: str) -> ProfileError:
        """Return the error of an entry of a list: it names the file that the entry comes from."""
        origin, entry = self.origins[key][index], self.values[key][index]
        place = self._documents[origin][key].index(entry)
        return ProfileError(origin, f".{key}[{place}]", problem)


def resolve(directory: Directory, name: str, draft: dict | None = None) -> Resolved:
    """Return the profile `name` with what it inherits; `draft` stands for its own file.

    Raises Failure if it, or a profile that it extends, is missing or wrong, and for a cycle.
    """
    chain, documents = [], []
    following = name
    while following is not None:
        if following in chain:
            cycle = " → ".join([*chain[chain.index(following) :], following])
            raise ProfileError(chain[-1], ".extends", f"a cycle: {cycle}")
        document = draft if draft is not None and following == name else None
        if document is None:
            document = directory.profile(following)
        if document is None:
            if not chain:
                raise directory.missing(name)
            failure = directory.missing(following)
            way = " → ".join([*chain, following])
            raise ProfileError(chain[-1], ".extends", f"{failure.what} ({way})")
        chain.append(following)
        documents.append(document)
        following = document.get("extends")
    traced = {}
    for profile, document in zip(reversed(chain), reversed(documents), strict=True):
        _refuse_idle_removals(profile, document, traced)
        traced = merged(traced, trace(document, profile))
    return Resolved(chain, documents, traced)


def trace(document: dict, name: str) -> dict:
    """Return a profile with each value, entry and value of an object as (it, `name`)."""
    traced = {}
    for key, value in document.items():
        if key in _LISTS:
            traced[key] = [(entry, name) for entry in value]
        elif key in _OBJECTS:
            traced[key] = {inner: (each, name) for inner, each in value.items()}
        elif key != "extends":
            traced[key] = (value, name)
    return traced


def merged(parent: dict, child: dict) -> dict:
    """Return what two traced profiles are together; removals stay in, so the order of merging is free.

    Lists add up, objects key by key, of the rest the child's wins.
    """
    result = {**parent, **child}
    for key in _LISTS:
        if key in result:
            result[key] = _canonical(key, [*parent.get(key, ()), *child.get(key, ())])
    for key in _OBJECTS:
        if key in result:
            result[key] = {**parent.get(key, {}), **child.get(key, {})}
    return result


def _canonical(key: str, entries: list) -> list:
    """Return a list without what a later entry removes or repeats.

    The last word on a name counts, in its place. An argument can stand there more than once.
    """
    last, removed = {}, {}
    for place, (entry, _) in enumerate(entries):
        last[_identity(key, entry)] = place
        if _is_removal(entry):
            removed[_identity(key, entry)] = place
    if key != "claude_args":
        return [entries[place] for place in sorted(last.values())]
    return [
        entry
        for place, entry in enumerate(entries)
        if _is_removal(entry[0]) or place > removed.get(_identity(key, entry[0]), -1)
    ]


def _identity(key: str, entry) -> str:
    """Return the name that an entry of a list is removed by."""
    if isinstance(entry, dict):
        entry = entry.get("target", entry["path"])
    name = entry.removeprefix("!")
    if key == "mounts":
        rest = _below_home(name)
        return (name if rest is None else "~" + rest).rstrip("/") or "/"
    return reference(name) if key == "packages" else name


def _is_removal(entry) -> bool:
    return isinstance(entry, str) and entry.startswith("!")


def _refuse_idle_removals(profile: str, document: dict, inherited: dict) -> None:
    """Raise ProfileError for a removal of what is not inherited: misspelt, it would let something in."""
    for key in _LISTS:
        known = {
            _identity(key, entry): None
            for entry, _ in inherited.get(key, ())
            if not _is_removal(entry)
        }
        for index, entry in enumerate(document.get(key, ())):
            identity = _identity(key, entry)
            if not _is_removal(entry):
                known[identity] = None
            elif identity in known:
                del known[identity]
            else:
                raise ProfileError(
                    profile,
                    f".{key}[{index}]",
                    f'"{entry}": nothing of that name is inherited{schema.nearest(identity, known)}',
                )
    known = [name for name, (value, _) in inherited.get("set", {}).items() if value is not None]
    for name, value in document.get("set", {}).items():
        if value is None and name not in known:
            raise ProfileError(
                profile,
                f".set.{name}",
                f"null removes what is inherited, and this is not{schema.nearest(name, known)}",
            )


def settled(traced: dict) -> tuple[dict, dict]:
    """Return the profile that a traced one is in the end, and its origins: no removals are left.

    A variable that is set is not taken from the host as well.
    """
    values, origins = {}, {}
    for key in _KEYS:
        if key not in traced:
            continue
        if key in _LISTS:
            kept = [pair for pair in traced[key] if not _is_removal(pair[0])]
            if key == "env":
                kept = [
                    pair for pair in kept if traced.get("set", {}).get(pair[0], [None])[0] is None
                ]
            values[key], origins[key] = [entry for entry, _ in kept], [name for _, name in kept]
        elif key in _OBJECTS:
            pairs = {
                inner: pair
                for inner, pair in traced[key].items()
                if key != "set" or pair[0] is not None
            }
            values[key] = {inner: value for inner, (value, _) in pairs.items()}
            origins[key] = {inner: name for inner, (_, name) in pairs.items()}
        else:
            values[key], origins[key] = traced[key]
    return values, origins
