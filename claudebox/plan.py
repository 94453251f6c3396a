"""The launch plan: everything that one sandbox will be, as one JSON document (claudebox/1).

A plan is a plain `dict`. It comes from `loads` or `checked`, which reject whatever the schema does
not name, so the other modules read it without checks of their own. It never holds the value of a
variable of the host.
"""

from claudebox import Failure, schema

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


def _mount(kind, optional=None, **fields):
    return schema.record(
        {
            "kind": schema.choice(kind),
            **fields,
            "target": schema.absolute_path,
            "reason": schema.line,
        },
        optional,
    )


MOUNTS = {
    "bind": _mount("bind", source=schema.absolute_path),
    "ro-bind": _mount("ro-bind", source=schema.absolute_path),
    "symlink": _mount("symlink", source=schema.line),
    "tmpfs": _mount("tmpfs", {"size": schema.size}),
    "empty-dir": _mount("empty-dir"),
    "file": _mount("file", content=schema.text),
    "briefing": _mount("briefing"),
    "mask": _mount("mask"),
    "proc": _mount("proc"),
    "dev": _mount("dev"),
}

_VARIABLE_SOURCES = {
    "host": schema.record(
        {"name": schema.variable_name, "source": schema.choice("host")},
        {"secret": schema.boolean, "reason": schema.line},
    ),
    "profile": schema.record(
        {
            "name": schema.variable_name,
            "source": schema.choice("profile"),
            "value": schema.text,
            "reason": schema.line,
        }
    ),
    "claudebox": schema.record(
        {"name": schema.variable_name, "source": schema.choice("claudebox"), "value": schema.text}
    ),
}

_check_plan = schema.record(
    {
        "schema": schema.choice(SCHEMA),
        "project": schema.record(
            {
                "cwd": schema.absolute_path,
                "root": schema.absolute_path,
                "git": schema.or_null(
                    schema.record(
                        {
                            "dir": schema.absolute_path,
                            "common_dir": schema.absolute_path,
                            "worktree": schema.boolean,
                        }
                    )
                ),
            }
        ),
        "instance": schema.record(
            {"id": schema.line, "path": schema.absolute_path, "root": schema.absolute_path}
        ),
        "user": schema.record(
            {
                "name": schema.line,
                "uid": schema.number,
                "gid": schema.number,
                "home": schema.absolute_path,
            }
        ),
        "profile": schema.or_null(
            schema.record({"name": schema.line, "chain": schema.list_of(schema.line)})
        ),
        "network": schema.record(
            {"tier": schema.choice(*TIERS), "source": schema.line},
            {
                "sidecars": schema.list_of(schema.choice(*SIDECARS)),
                "allow": schema.list_of(schema.line),
            },
        ),
        "nix": schema.or_null(
            schema.record(
                {"socket": schema.boolean, "trust": schema.boolean, "reason": schema.line}
            )
        ),
        "bwrap": schema.record(
            {
                "path": schema.absolute_path,
                "disable_userns": schema.or_null(schema.boolean),
                "bind_fd": schema.boolean,
            }
        ),
        "limits": schema.record(
            {
                "processes": schema.or_null(schema.count),
                "memory": schema.or_null(schema.size),
                "tmp": schema.or_null(schema.size),
            }
        ),
        "packages": schema.list_of(
            schema.record(
                {
                    "reference": schema.line,
                    "paths": schema.list_of(schema.absolute_path),
                    "reason": schema.line,
                }
            )
        ),
        "env": schema.list_of(schema.by_key("source", _VARIABLE_SOURCES)),
        "mounts": schema.list_of(schema.by_key("kind", MOUNTS)),
        "hide": schema.list_of(schema.record({"pattern": schema.line, "reason": schema.line})),
        "command": schema.list_of(schema.text),
        "notes": schema.list_of(schema.line),
    }
)


def checked(document) -> dict:
    """Return the plan that `document` (parsed JSON) is, with its keys in the schema's order.

    Raises PlanError with the JSON path for unknown or missing keys, wrong types, relative paths
    and unknown versions, and for a variable or a mount point that is named twice.
    """
    try:
        if isinstance(document, dict) and "schema" in document:
            # Of another version every other difference is a consequence.
            schema.choice(SCHEMA)(document["schema"], ".schema")
        plan = _check_plan(document, "")
    except schema.Mismatch as mismatch:
        raise PlanError(mismatch.path, mismatch.problem) from None
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
    try:
        document = schema.parse(text)
    except schema.Mismatch as mismatch:
        raise PlanError(mismatch.path, mismatch.problem) from None
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
