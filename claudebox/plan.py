"""The launch plan: everything that one sandbox will be, as one JSON document (claudebox/1).

A plan is a plain `dict`. It comes from `loads` or `checked`, which reject whatever the schema does
not name, so the other modules read it without checks of their own. It never holds the value of a
variable of the host.
"""

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


def checked(document) -> dict:
    """Return the plan that `document` (parsed JSON) is, with its keys in the schema's order.

    Raises PlanError with the JSON path for unknown or missing keys, wrong types, relative paths
    and unknown versions, and for a variable or a mount point that is named twice.
    """
    from claudebox import plan_schema, schema

    try:
        if isinstance(document, dict) and "schema" in document:
            # Of another version every other difference is a consequence.
            schema.choice(SCHEMA)(document["schema"], ".schema")
        plan = plan_schema.check(document, "")
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
    from claudebox import schema

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
