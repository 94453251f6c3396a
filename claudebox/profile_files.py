"""The user's profiles as files: lists, shows, checks and edits them."""

import os
import sys

from claudebox import Failure, audit, host, policy, profile, profiles
from claudebox.printable import printable

# JSON has no comments, so the description says what there is to know.
_TEMPLATE = {
    "description": "Say here what this profile is for. claudebox-profile(5) explains every key. A"
    " profile lets things in, hides things, and holds no secrets: env names variables, and their"
    " values come from the host.",
    "env": [],
    "set": {},
    "mounts": [],
    "hide": [".env", ".env.*"],
}


def list_all(as_json: bool) -> int:
    """Print the profiles: name, what it extends, description, what is wrong with it."""
    directory = _directory()
    rows = []
    for name in directory.names():
        row = {"name": name, "description": None, "extends": None, "problem": None}
        try:
            profiles.refuse_name(name)
            document = directory.profile(name) or {}
            row |= {key: document[key] for key in ("description", "extends") if key in document}
            profiles.resolve(directory, name)
        except Failure as failure:
            row["problem"] = str(failure)
        rows.append(row)
    if as_json:
        sys.stdout.write(_json(rows))
    elif not rows:
        sys.stderr.write(f"claudebox: there are no profiles in {printable(directory.path)}\n")
    else:
        width = max(len(printable(row["name"])) for row in rows)
        for row in rows:
            words = [row["description"] or ""]
            if row["extends"]:
                words.insert(0, f"(extends {row['extends']})")
            if row["problem"]:
                words = [f"cannot be used: {row['problem']}"]
            text = printable(" ".join(words).strip())
            sys.stdout.write(f"{printable(row['name']):<{width}}  {text}".rstrip() + "\n")
    return 0


def show(name: str, resolved: bool, as_json: bool) -> int:
    """Print a profile as its file says it, or with what it inherits."""
    profiles.refuse_name(name)
    directory = _directory()
    if resolved:
        return _show_resolved(profiles.resolve(directory, name), as_json)
    text = directory.text(name)
    if text is None:
        raise directory.missing(name)
    document = profiles.profile_in(name, text)
    if as_json:
        sys.stdout.write(
            _json({"name": name, "path": f"{directory.path}/{name}.json", "profile": document})
        )
    else:
        sys.stdout.write("".join(printable(line) + "\n" for line in text.splitlines()))
    return 0


def _show_resolved(found: profiles.Resolved, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(
            _json(
                {
                    "name": found.name,
                    "chain": found.chain,
                    "profile": found.values,
                    "origins": found.origins,
                }
            )
        )
        return 0
    rows = [("profile", " → ".join(found.chain), "")]
    for key, value in found.values.items():
        origin = found.origins[key]
        if isinstance(value, list):
            inner = [(_words(entry), name) for entry, name in zip(value, origin, strict=True)]
        elif isinstance(value, dict):
            inner = [(f"{name}={_words(each)}", origin[name]) for name, each in value.items()]
        else:
            inner = [(_words(value), origin)]
        rows.extend((key if not index else "", *each) for index, each in enumerate(inner))
    width = max(len(key) for key, _, _ in rows)
    for key, words, origin in rows:
        start = f"{key:<{width}}  {printable(words)}"
        sys.stdout.write(f"{start:<60}  from {origin}\n" if origin else f"{start}\n")
    return 0


def _words(value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        target = value.get("target")
        words = [value.get("mode", "ro"), value["path"], f"at {target}" if target else ""]
        words.append("optional" if value.get("optional") else "")
        return " ".join(word for word in words if word)
    return {True: "true", False: "false", None: "null"}.get(value, str(value))


def check(name: str | None, as_json: bool) -> int:
    """Print whether a profile, or each, can be used on this host; return 1 if one cannot."""
    directory = _directory()
    if name is not None:
        profiles.refuse_name(name)
        if directory.text(name) is None:
            raise directory.missing(name)
    rows = []
    for each in directory.names() if name is None else [name]:
        try:
            profiles.refuse_name(each)
            _refuse_unusable(profiles.resolve(directory, each))
            rows.append({"name": each, "problem": None})
        except Failure as failure:
            rows.append({"name": each, "problem": str(failure)})
    if as_json:
        sys.stdout.write(_json(rows))
    else:
        for row in rows:
            state = "problem" if row["problem"] else "ok"
            text = f"{state:<7}  {printable(row['name'])}  {printable(row['problem'] or '')}"
            sys.stdout.write(text.rstrip() + "\n")
    return 1 if any(row["problem"] for row in rows) else 0


def _refuse_unusable(found: profiles.Resolved) -> None:
    """Raise Failure for what is wrong with a profile in any project of this host: its mounts' sources."""
    home = host.user()["home"]
    secrets = policy.secret_paths(home) if found.values.get("mounts") else {}
    for index, mount in enumerate(found.values.get("mounts", ())):
        path = profiles.expand(mount["path"], home)
        source = os.path.realpath(path)
        if mount.get("optional") and not os.path.lexists(source):
            continue
        problem = profile.source_problem(source, path)
        if problem:
            problem += profile.optional_hint(source)
        exposed = policy.exposed_secret(source, secrets, home)
        if exposed:
            problem = f"it would expose a secret: {exposed}"
        if problem:
            raise found.wrong("mounts", index, f'"{mount["path"]}": {problem}')


def _directory() -> profiles.Directory:
    return profiles.Directory(host.user()["home"])


def _json(document) -> str:
    from claudebox import json_text

    return json_text.dumps(document) + "\n"


# ---------------------------------------------------------------------------- edit


def edit(name: str) -> int:
    """Open a profile in the user's editor, and put what comes of it in its place once it is right.

    The editor gets a draft beside the profile. One that is wrong stays there for the next time, and
    the profile stays as it was.
    """
    profiles.refuse_name(name)
    directory = _directory()
    editor = _editor()
    before = directory.text(name)
    for path in (directory.state, directory.path):
        os.makedirs(path, 0o700, exist_ok=True)
    descriptor = directory.open()
    try:
        return _edit(name, directory, descriptor, editor, before)
    finally:
        os.close(descriptor)


def _edit(name: str, directory, descriptor: int, editor: list[str], before: str | None) -> int:
    draft = f".{name}.draft.json"
    start = _json(_TEMPLATE) if before is None else before
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(draft, flags, 0o600, dir_fd=descriptor)
    except FileExistsError:
        sys.stderr.write(f"claudebox: going on with the draft {directory.path}/{draft}\n")
    else:
        with open(file, "w", encoding="utf-8") as stream:
            stream.write(start)
    while True:
        _run([*editor, f"{directory.path}/{draft}"])
        try:
            # Some editors make a new file, with the user's own umask.
            os.chmod(draft, 0o600, dir_fd=descriptor)
            text = directory.text(name, draft)
        except FileNotFoundError:
            raise Failure(
                f"the editor left no {directory.path}/{draft}", "nothing was changed"
            ) from None
        if text == start:
            os.unlink(draft, dir_fd=descriptor)
            if before is not None:
                return 0
            raise Failure("nothing was changed, so no profile was made", "change something")
        try:
            _refuse_unusable(profiles.resolve(directory, name, profiles.profile_in(name, text)))
        except Failure as failure:
            sys.stderr.write(f"claudebox: {printable(failure.args[0])}\n")
            if _wants_to_go_on():
                continue
            raise Failure(
                f"the profile {name} was left as it was",
                f"`claudebox profile edit {name}` goes on with the draft",
            ) from None
        os.rename(draft, f"{name}.json", src_dir_fd=descriptor, dst_dir_fd=descriptor)
        return 0


def _wants_to_go_on() -> bool:
    try:
        return audit.ask("Edit it again?")
    except Failure:
        return False


def _editor() -> list[str]:
    """Return the words of the user's editor; its program never comes from the current directory."""
    import shlex

    here = os.path.realpath(".")
    for variable in ("VISUAL", "EDITOR"):
        chosen = os.environ.get(variable)
        if not chosen:
            continue
        try:
            words = shlex.split(chosen)
        except ValueError:
            words = []
        program = words[0] if words else ""
        if "/" not in program:
            program = host.find_program(program, here) if program else None
        if program is None or not program.startswith("/") or not os.access(program, os.X_OK):
            raise Failure(f"${variable} is {chosen}, which was not found", "set it to your editor")
        return [program, *words[1:]]
    for program in ("sensible-editor", "nano", "vi"):
        found = host.find_program(program, here)
        if found:
            return [found]
    raise Failure("no editor was found", "set EDITOR")


def _run(words: list[str]) -> None:
    pid = os.posix_spawn(words[0], words, os.environ)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise Failure(f"the editor {words[0]} ended with status {code}", "nothing was changed")
