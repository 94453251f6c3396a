"""The launch plan: everything that one sandbox will be, as one JSON document (claudebox/1).

A plan is a plain `dict`. It comes from `loads` or `checked`, which reject whatever the schema does
not name, so the other modules read it without checks of their own. It never holds the value of a
variable of the host.
"""

import os

from claudebox import Failure

SCHEMA = "claudebox/1"
TIERS = ("none", "inet", "full")
SIDECARS = ("pasta", "slirp4netns")
SIZE_LIMIT = 16 * 1024 * 1024


class PlanError(Failure):
    """A document that is not a launch plan; the message names the JSON path."""

    def __init__(self, path: str, problem: str):
        super().__init__(
            f"not a launch plan: {path or '.'}: {problem}",
            "make one with `claudebox plan`; claudebox-plan(5) describes it",
            status=2,
        )


class _NotJSON:
    """A constant that Python's parser takes and JSON does not have: NaN, Infinity, -Infinity."""

    def __init__(self, name: str):
        self.name = name


class _Record(dict):
    """A JSON object; `twice` is a key that it was given twice."""

    twice = None


def _record_of(pairs) -> _Record:
    record = _Record(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        record.twice = next(key for key in keys if keys.count(key) > 1)
    return record


def _kind(value) -> str:
    if isinstance(value, _NotJSON):
        return f"{value.name}, which is not JSON"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _text(value, path):
    if not isinstance(value, str):
        raise PlanError(path, f"a string is needed, this is {_kind(value)}")
    if "\0" in value:
        raise PlanError(path, "a NUL character cannot stand here")
    try:
        same = value.isascii() or value == os.fsdecode(os.fsencode(value))
    except UnicodeEncodeError:
        raise PlanError(path, "a lone surrogate that stands for no byte") from None
    if not same:
        raise PlanError(path, "surrogates that do not stand for bytes outside UTF-8")
    return value


def _line(value, path):
    _text(value, path)
    if not value:
        raise PlanError(path, "an empty string cannot stand here")
    return value


def _absolute_path(value, path):
    _text(value, path)
    if not value.startswith("/"):
        raise PlanError(path, "an absolute path is needed")
    if value != "/" and any(part in ("", ".", "..") for part in value[1:].split("/")):
        raise PlanError(path, "a path without `.`, `..`, `//` or a slash at its end is needed")
    return value


def _variable_name(value, path):
    _text(value, path)
    name = value.replace("_", "a")
    if not (name.isascii() and name.isalnum() and not name[0].isdigit()):
        raise PlanError(path, "not the name of an environment variable")
    return value


def _boolean(value, path):
    if not isinstance(value, bool):
        raise PlanError(path, f"true or false is needed, this is {_kind(value)}")
    return value


def _number(value, path):
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise PlanError(path, f"a whole number from 0 on is needed, this is {_kind(value)}")
    return value


def _size(value, path):
    if _number(value, path) == 0:
        raise PlanError(path, "a size in bytes, at least 1, is needed")
    return value


def _choice(*choices):
    def check(value, path):
        if not isinstance(value, str) or value not in choices:
            found = f'"{value}"' if isinstance(value, str) else _kind(value)
            if len(choices) == 1:
                raise PlanError(path, f'{found}: this must be "{choices[0]}"')
            raise PlanError(path, f"{found}: one of {', '.join(choices)}{nearest(value, choices)}")
        return value

    return check


def _list(check):
    def check_list(value, path):
        if not isinstance(value, list):
            raise PlanError(path, f"a list is needed, this is {_kind(value)}")
        return [check(item, f"{path}[{index}]") for index, item in enumerate(value)]

    return check_list


def _or_null(check):
    return lambda value, path: None if value is None else check(value, path)


def _record(required, optional=None):
    """Check an object with these keys, and give it back with its keys in the schema's order."""
    optional = optional or {}

    def check(value, path):
        if not isinstance(value, dict):
            raise PlanError(path, f"an object is needed, this is {_kind(value)}")
        if isinstance(value, _Record) and value.twice is not None:
            raise PlanError(f"{path}.{value.twice}", f'the key "{value.twice}" is given twice')
        for key in value:
            if key not in required and key not in optional:
                known = (*required, *optional)
                raise PlanError(f"{path}.{key}", f"unknown key{nearest(key, known)}")
        result = {}
        for key, check_value in required.items():
            if key not in value:
                raise PlanError(f"{path}.{key}", "this key is missing")
            result[key] = check_value(value[key], f"{path}.{key}")
        for key, check_value in optional.items():
            if key in value:
                result[key] = check_value(value[key], f"{path}.{key}")
        return result

    return check


def _by_key(key, records):
    """Check an object whose own `key` says which of `records` it is."""
    choose = _choice(*records)

    def check(value, path):
        if not isinstance(value, dict):
            raise PlanError(path, f"an object is needed, this is {_kind(value)}")
        if isinstance(value, _Record) and value.twice == key:
            raise PlanError(f"{path}.{key}", f'the key "{key}" is given twice')
        if key not in value:
            raise PlanError(f"{path}.{key}", "this key is missing")
        return records[choose(value[key], f"{path}.{key}")](value, path)

    return check


def _mount(kind, optional=None, **fields):
    return _record(
        {"kind": _choice(kind), **fields, "target": _absolute_path, "reason": _line}, optional
    )


MOUNTS = {
    "bind": _mount("bind", source=_absolute_path),
    "ro-bind": _mount("ro-bind", source=_absolute_path),
    "symlink": _mount("symlink", source=_line),
    "tmpfs": _mount("tmpfs", {"size": _size}),
    "empty-dir": _mount("empty-dir"),
    "file": _mount("file", content=_text),
    "briefing": _mount("briefing"),
    "mask": _mount("mask"),
    "proc": _mount("proc"),
    "dev": _mount("dev"),
}

_VARIABLE_SOURCES = {
    "host": _record(
        {"name": _variable_name, "source": _choice("host")}, {"secret": _boolean, "reason": _line}
    ),
    "claudebox": _record({"name": _variable_name, "source": _choice("claudebox"), "value": _text}),
}

_check_plan = _record(
    {
        "schema": _choice(SCHEMA),
        "project": _record(
            {
                "cwd": _absolute_path,
                "root": _absolute_path,
                "git": _or_null(
                    _record(
                        {"dir": _absolute_path, "common_dir": _absolute_path, "worktree": _boolean}
                    )
                ),
            }
        ),
        "instance": _record({"id": _line, "path": _absolute_path, "root": _absolute_path}),
        "user": _record({"name": _line, "uid": _number, "gid": _number, "home": _absolute_path}),
        "profile": _or_null(_record({"name": _line})),
        "network": _record(
            {"tier": _choice(*TIERS), "source": _line},
            {"sidecars": _list(_choice(*SIDECARS)), "allow": _list(_line)},
        ),
        "nix": _or_null(_record({"socket": _boolean, "trust": _boolean, "reason": _line})),
        "bwrap": _record({"path": _absolute_path, "disable_userns": _boolean, "bind_fd": _boolean}),
        "env": _list(_by_key("source", _VARIABLE_SOURCES)),
        "mounts": _list(_by_key("kind", MOUNTS)),
        "command": _list(_text),
        "notes": _list(_line),
    }
)


def nearest(word, choices) -> str:
    """Return ` (did you mean "x"?)` for the choice that `word` was meant to be, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, choices, 1) if isinstance(word, str) else []
    return f' (did you mean "{close[0]}"?)' if close else ""


def checked(document) -> dict:
    """Return the plan that `document` (parsed JSON) is, with its keys in the schema's order.

    Raises PlanError with the JSON path for unknown or missing keys, wrong types, relative paths
    and unknown versions, and for a variable or a mount point that is named twice.
    """
    if isinstance(document, dict) and "schema" in document:
        # Of another version every other difference is a consequence.
        _choice(SCHEMA)(document["schema"], ".schema")
    plan = _check_plan(document, "")
    if not plan["command"] or not plan["command"][0]:
        raise PlanError(".command", "there is nothing to run in it")
    for key, field in (("env", "name"), ("mounts", "target")):
        seen = set()
        for index, entry in enumerate(plan[key]):
            if entry[field] in seen:
                raise PlanError(f".{key}[{index}].{field}", f'"{entry[field]}" is there twice')
            seen.add(entry[field])
    return plan


def dumps(plan: dict) -> str:
    """Return the plan as JSON text: ASCII, two spaces of indent, a newline at the end."""
    from claudebox import json_text

    return json_text.dumps(plan) + "\n"


def loads(text: str) -> dict:
    """Return the plan in this JSON text.

    Raises PlanError for what is not JSON (with line and column), for a key that is given twice and
    for everything `checked` rejects.
    """
    from claudebox import json_text

    try:
        document = json_text.loads(text, _record_of, _NotJSON)
    except RecursionError:
        raise PlanError("", "nested too deeply") from None
    except ValueError as error:
        if hasattr(error, "lineno"):
            raise PlanError(f"line {error.lineno}, column {error.colno}", error.msg) from None
        raise PlanError("", str(error)) from None
    return checked(document)


def read(stream) -> dict:
    """Return the plan that the binary `stream` holds; see `loads` for the errors."""
    data = stream.read(SIZE_LIMIT + 1)
    if not data.strip():
        raise Failure(
            "there is no plan on standard input",
            "start the pipe with `claudebox-instance resolve` (and see what it said)",
            status=2,
        )
    if len(data) > SIZE_LIMIT:
        raise PlanError("", f"larger than {SIZE_LIMIT} bytes")
    try:
        return loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PlanError(f"byte {error.start}", "not UTF-8") from None
