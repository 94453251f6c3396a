"""Reading and writing JSON text, held against the package json."""

import json
import random
import subprocess
import sys

import pytest

from claudebox import json_text

TEXTS = (
    "{}",
    " [1, 2.5, -3e5, true, false, null]\n",
    '{"a": {"b": [{}, [], "\\u00e9\\ud83d\\ude00\\udc80"]}, "a": 2}',
    "[NaN, Infinity, -Infinity]",
    "123456789012345678901234567890",
    '"a\x7fb"',
    "\ufeff{}",
    "",
    " ",
    "{",
    '{"a" 1}',
    "[1,]",
    "[1] 2",
    '"\x01"',
    "nul",
    "'a'",
    "[" * 100_000,
    '{"a":' * 100_000,
    "\x0b1",
    "1\xa0",
)


def outcome(loads, text):
    try:
        return loads(text)
    except (ValueError, RecursionError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_text_means_what_it_means_to_json(text):
    # NaN is not equal to itself.
    assert repr(outcome(json_text.loads, text)) == repr(outcome(json.loads, text))


def test_the_functions_that_are_handed_over_are_called():
    text = '{"a": 1, "a": NaN}'
    assert json_text.loads(text, tuple, str) == (("a", 1), ("a", "NaN"))
    assert json_text.loads(text, object_pairs_hook=list, parse_constant=len) == [("a", 1), ("a", 3)]


def document(chance, depth=4):
    kind = chance.randrange(8 if depth else 6)
    if kind == 6:
        return [document(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind == 7:
        return {text(chance): document(chance, depth - 1) for _ in range(chance.randrange(4))}
    return (None, True, False, chance.randrange(-(2**70), 2**70), chance.random(), text(chance))[
        kind
    ]


def text(chance):
    return "".join(chance.choice('a"\\\n\x00\x7fé€😀\udc80/') for _ in range(chance.randrange(6)))


def test_a_document_is_written_as_json_writes_it_and_read_back():
    chance = random.Random(1)
    for _ in range(500):
        made = document(chance)
        written = json_text.dumps(made)
        assert written == json.dumps(made, indent=2)
        assert json_text.loads(written) == made


@pytest.mark.parametrize("text", ["{", '{"a" 1}', "[1,]", "", '"\\x01"', "nul"])
def test_a_text_that_is_wrong_is_an_error_also_where_json_was_not_imported(text):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from claudebox import json_text\n"
        "try: json_text.loads(sys.argv[2])\n"
        "except ValueError as error: sys.exit(not error.lineno)\n"
        "sys.exit(2)"
    )
    place = json_text.__file__.rpartition("/claudebox/")[0]
    words = [sys.executable, "-I", "-S", "-c", script, place, text]
    assert subprocess.run(words).returncode == 0


def test_a_text_that_is_right_needs_no_regular_expressions():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from claudebox import json_text;"
        """assert json_text.loads('{"a": [1]}') == {"a": [1]}; json_text.dumps({"a": [1]});"""
        "sys.exit('re' in sys.modules or 'json' in sys.modules)"
    )
    place = json_text.__file__.rpartition("/claudebox/")[0]
    assert subprocess.run([sys.executable, "-I", "-S", "-c", script, place]).returncode == 0
