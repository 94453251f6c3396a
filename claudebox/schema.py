"""Checks parsed JSON against a schema: what a key may hold, and the words for what it may not.

A checker is a function (value, path) that returns the value, or raises Mismatch with the JSON path.
Plans and profiles are made of these.
"""

import os


class Mismatch(Exception):
    """A document that is not what its schema says; `path` is the JSON path, `problem` what is wrong."""

    def __init__(self, path: str, problem: str):
        super().__init__(path, problem)
        self.path = path
        self.problem = problem


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


def kind(value) -> str:
    """Return what a parsed value is, in words."""
    if isinstance(value, _NotJSON):
        return f"{value.name}, which is not JSON"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def parse(text: str):
    """Return what this JSON text holds; objects know of a key that they were given twice.

    Raises Mismatch for what is not JSON; its path is then the line and the column.
    """
    from claudebox import json_text

    try:
        return json_text.loads(text, _record_of, _NotJSON)
    except RecursionError:
        raise Mismatch("", "nested too deeply") from None
    except ValueError as error:
        if hasattr(error, "lineno"):
            raise Mismatch(f"line {error.lineno}, column {error.colno}", error.msg) from None
        raise Mismatch("", str(error)) from None


def text(value, path):
    """Check a string without NUL that names bytes of a path, or is plain text."""
    if not isinstance(value, str):
        raise Mismatch(path, f"a string is needed, this is {kind(value)}")
    if "\0" in value:
        raise Mismatch(path, "a NUL character cannot stand here")
    try:
        same = value.isascii() or value == os.fsdecode(os.fsencode(value))
    except UnicodeEncodeError:
        raise Mismatch(path, "a lone surrogate that stands for no byte") from None
    if not same:
        raise Mismatch(path, "surrogates that do not stand for bytes outside UTF-8")
    return value


def line(value, path):
    """Check a string that is not empty."""
    text(value, path)
    if not value:
        raise Mismatch(path, "an empty string cannot stand here")
    return value


def absolute_path(value, path):
    """Check an absolute, normalised path."""
    text(value, path)
    if not value.startswith("/"):
        raise Mismatch(path, "an absolute path is needed")
    if value != "/" and any(part in ("", ".", "..") for part in value[1:].split("/")):
        raise Mismatch(path, "a path without `.`, `..`, `//` or a slash at its end is needed")
    return value


def variable_name(value, path):
    """Check the name of an environment variable: ASCII letters, digits, underscores."""
    text(value, path)
    name = value.replace("_", "a")
    if not (name.isascii() and name.isalnum() and not name[0].isdigit()):
        raise Mismatch(path, "not the name of an environment variable")
    return value


def boolean(value, path):
    """Check true or false."""
    if not isinstance(value, bool):
        raise Mismatch(path, f"true or false is needed, this is {kind(value)}")
    return value


def number(value, path):
    """Check a whole number from 0 on."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise Mismatch(path, f"a whole number from 0 on is needed, this is {kind(value)}")
    return value


def count(value, path):
    """Check a whole number from 1 on."""
    if number(value, path) == 0:
        raise Mismatch(path, "a whole number from 1 on is needed")
    return value


def size(value, path):
    """Check a number of bytes, at least 1."""
    if number(value, path) == 0:
        raise Mismatch(path, "a size in bytes, at least 1, is needed")
    return value


def choice(*choices):
    """Return a checker for one of these strings."""

    def check(value, path):
        if not isinstance(value, str) or value not in choices:
            found = f'"{value}"' if isinstance(value, str) else kind(value)
            if len(choices) == 1:
                raise Mismatch(path, f'{found}: this must be "{choices[0]}"')
            raise Mismatch(path, f"{found}: one of {', '.join(choices)}{nearest(value, choices)}")
        return value

    return check


def list_of(check):
    """Return a checker for a list of what `check` takes."""

    def check_list(value, path):
        if not isinstance(value, list):
            raise Mismatch(path, f"a list is needed, this is {kind(value)}")
        return [check(item, f"{path}[{index}]") for index, item in enumerate(value)]

    return check_list


def or_null(check):
    """Return a checker for null and what `check` takes."""
    return lambda value, path: None if value is None else check(value, path)


def record(required, optional=None):
    """Return a checker for an object with these keys; it comes back with them in the schema's order."""
    optional = optional or {}

    def check(value, path):
        _object(value, path)
        for key in value:
            if key not in required and key not in optional:
                known = (*required, *optional)
                raise Mismatch(f"{path}.{key}", f"unknown key{nearest(key, known)}")
        result = {}
        for key, check_value in required.items():
            if key not in value:
                raise Mismatch(f"{path}.{key}", "this key is missing")
            result[key] = check_value(value[key], f"{path}.{key}")
        for key, check_value in optional.items():
            if key in value:
                result[key] = check_value(value[key], f"{path}.{key}")
        return result

    return check


def mapping(check_key, check):
    """Return a checker for an object whose keys are of the user's choosing."""

    def check_mapping(value, path):
        _object(value, path)
        for key in value:
            check_key(key, f"{path}.{key}")
        return {key: check(item, f"{path}.{key}") for key, item in value.items()}

    return check_mapping


def _object(value, path, key=None):
    """Check an object that has no key twice; with `key`, not that one."""
    if not isinstance(value, dict):
        raise Mismatch(path, f"an object is needed, this is {kind(value)}")
    twice = value.twice if isinstance(value, _Record) else None
    if twice is not None and key in (None, twice):
        raise Mismatch(f"{path}.{twice}", f'the key "{twice}" is given twice')


def by_key(key, records):
    """Return a checker for an object whose own `key` says which of `records` it is."""
    choose = choice(*records)

    def check(value, path):
        _object(value, path, key)
        if key not in value:
            raise Mismatch(f"{path}.{key}", "this key is missing")
        return records[choose(value[key], f"{path}.{key}")](value, path)

    return check


def nearest(word, choices) -> str:
    """Return ` (did you mean "x"?)` for the choice that `word` was meant to be, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, choices, 1) if isinstance(word, str) else []
    return f' (did you mean "{close[0]}"?)' if close else ""
