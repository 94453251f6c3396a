"""JSON text in and out, without the package json where that is not needed.

json compiles regular expressions when it is imported, and `re` with what that needs takes 4 to 7 ms:
more than anything else that a stage of the pipeline does. The C functions below it do the work for
a text that is right; one that is wrong is read again by json, which says where.
"""

try:
    from _json import encode_basestring_ascii as quoted
    from _json import make_scanner
except ImportError:
    from json.encoder import encode_basestring_ascii as quoted

    make_scanner = None

_SPACE = " \t\n\r"


class _Settings:
    """What the C scanner wants of a json.JSONDecoder."""

    strict = True
    object_hook = None
    parse_float = float
    parse_int = int

    def __init__(self, object_pairs_hook, parse_constant):
        self.object_pairs_hook = object_pairs_hook
        self.parse_constant = parse_constant
        self.memo = {}


def loads(text: str, object_pairs_hook=None, parse_constant=float):
    """Return the document in `text`, as json.loads does with the same two functions.

    Raises json.JSONDecodeError, a ValueError, and RecursionError as that does.
    """
    start, end = 0, len(text)
    while start < end and text[start] in _SPACE:
        start += 1
    while end > start and text[end - 1] in _SPACE:
        end -= 1
    if make_scanner is not None and start < end:
        try:
            found, stop = make_scanner(_Settings(object_pairs_hook, parse_constant))(text, start)
            if stop == end:
                return found
        except (ValueError, StopIteration, SystemError):
            # Where json was not imported yet the scanner finds no exception to raise.
            pass
    import json

    return json.loads(text, object_pairs_hook=object_pairs_hook, parse_constant=parse_constant)


def dumps(document) -> str:
    """Return a document of dicts, lists, strings, numbers and constants as json.dumps(…, indent=2)."""
    return _text(document, "\n")


def _text(value, line: str) -> str:
    if isinstance(value, str):
        return quoted(value)
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        import json

        return json.dumps(value)
    inner = line + "  "
    parts = []
    # No comprehensions: each is one more level of Python's stack for a level of the document.
    if isinstance(value, dict):
        for key, each in value.items():
            parts.append(f"{quoted(key)}: {_text(each, inner)}")
        return "{" + inner + f",{inner}".join(parts) + line + "}" if parts else "{}"
    for each in value:
        parts.append(_text(each, inner))
    return "[" + inner + f",{inner}".join(parts) + line + "]" if parts else "[]"
