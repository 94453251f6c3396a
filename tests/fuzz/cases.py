"""The cases of a fuzz test, by seeds, and seeded mutations of JSON documents and of bytes."""

import copy
import json
import os
import random
import time

import pytest

# Values that have broken a parser somewhere.
ODD_TEXTS = (
    "",
    "\0",
    "/",
    "//",
    "/..",
    ".",
    "~",
    "-y",
    "a\nb",
    "\x1b[2J",
    "\u202e\u200b",
    "\ud800",
    "\udcff",
    "\udcc3\udca9",
    "/\udcff",
    "x" * 5000,
    "/" + "d/" * 3000 + "e",
    "null",
    "0x10",
)
ODD_NUMBERS = (-1, 0, 1, 2**31, 2**63 - 1, 2**63, 10**400, 1.5, -0.0, 1e308, float("nan"))
ODD_VALUES = (None, True, False, [], {}, [[]], {"": None}, *ODD_TEXTS, *ODD_NUMBERS)


def seeds(default: int):
    """Yield the seeds of a test: so many, or others for FUZZ_SECONDS, or the one of FUZZ_SEED."""
    if "FUZZ_SEED" in os.environ:
        yield int(os.environ["FUZZ_SEED"])
    elif "FUZZ_SECONDS" in os.environ:
        end = time.monotonic() + float(os.environ["FUZZ_SECONDS"])
        seed = random.SystemRandom().getrandbits(48)
        while time.monotonic() < end:
            yield seed
            seed += 1
    else:
        yield from range(default)


def each_case(default: int, check) -> None:
    """Call `check(random)` for every seed; on an error say which one it was."""
    for seed in seeds(default):
        try:
            check(random.Random(seed))
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(f"FUZZ_SEED={seed}: {type(error).__name__}: {error}") from error


def places(document, path=()):
    """Return the path of every value in a JSON document, the document itself first."""
    found = [path]
    if isinstance(document, dict):
        for key in document:
            found += places(document[key], (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            found += places(value, (*path, index))
    return found


def at(document, path):
    """Return what is at a path of `places`."""
    for step in path:
        document = document[step]
    return document


def mutate_document(chance: random.Random, document):
    """Return a copy of a JSON document with one thing in it changed."""
    document = copy.deepcopy(document)
    path = chance.choice(places(document))
    if not path:
        return chance.choice(ODD_VALUES) if chance.random() < 0.1 else document
    parent, last = at(document, path[:-1]), path[-1]
    kind = chance.randrange(6)
    if kind == 0:
        del parent[last]
    elif kind == 1:
        parent[last] = copy.deepcopy(at(document, chance.choice(places(document))))
    elif kind == 2 and isinstance(parent, list):
        parent.insert(chance.randrange(len(parent) + 1), copy.deepcopy(parent[last]))
    elif kind == 2:
        parent[chance.choice(("extra", "kind", "", last + " "))] = parent[last]
    elif kind == 3 and isinstance(parent[last], str):
        parent[last] = mutate_text(chance, parent[last])
    elif kind == 4 and isinstance(parent[last], int):
        parent[last] = parent[last] + chance.choice((-1, 1, 2**32))
    else:
        parent[last] = chance.choice(ODD_VALUES)
    return document


def mutate_text(chance: random.Random, text: str) -> str:
    """Return a string that differs in a part of it."""
    start = chance.randrange(len(text) + 1)
    end = min(len(text), start + chance.randrange(4))
    return text[:start] + chance.choice((*ODD_TEXTS, "x", "/x", "/../")) + text[end:]


def mutate_bytes(chance: random.Random, content: bytes) -> bytes:
    """Return bytes that differ in a few places: flipped, cut, doubled, put in."""
    changed = bytearray(content)
    for _ in range(chance.randrange(1, 5)):
        start = chance.randrange(len(changed) + 1)
        end = min(len(changed), start + chance.choice((1, 2, 8, 64)))
        kind = chance.randrange(6)
        if kind == 0:
            changed[start:end] = b""
        elif kind == 1:
            changed[start:start] = changed[start:end]
        elif kind == 2:
            changed[start:end] = chance.randbytes(end - start)
        elif kind == 3:
            inserted = (b"\0", b"\xff", b"{", b"[", b'"', b",", b"\\ud800", b"1e999", b"NaN", b"\n")
            changed[start:start] = chance.choice(inserted)
        elif kind == 4:
            del changed[start:]
        else:
            changed[start:start] = chance.choice((b"[", b'{"a":', b"-", b"9")) * chance.choice(
                (1, 30, 3000, 100_000)
            )
    return bytes(changed)


def dump(document) -> str:
    """Return a document as JSON, with what Python would write and JSON does not have."""
    return json.dumps(document)
