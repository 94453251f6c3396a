"""The quick reading of plain command lines, held against argparse."""

import random
import sys

import pytest

from claudebox import Failure, command_line, main

NAMES = ("claudebox", *(f"claudebox-{name}" for name in main.COMMANDS))


class Captured(Exception):
    """Carries a parser out of the command that made it."""


@pytest.fixture
def parser_of(monkeypatch):
    """Return the parser of a command."""

    def capture(parser, _words):
        raise Captured(parser)

    def get(name):
        monkeypatch.setattr(command_line.Parser, "parse_args", capture)
        with pytest.raises(Captured) as captured:
            main.entry([name])
        monkeypatch.undo()
        return captured.value.args[0]

    return get


def words_of(parser):
    """Return words that mean something to an argparse parser, and some that do not."""
    words = ["x", "-", "", "--", "--nonsense", "-q", "a b", "1", "--env=A"]
    for action in parser._actions:
        words += action.option_strings
        if action.choices:
            words += list(action.choices)
            if isinstance(action.choices, dict):
                for inner in action.choices.values():
                    words += words_of(inner)
    return words


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_at_once_is_what_argparse_reads(name, parser_of):
    parser = parser_of(name)
    full = parser.full()
    chance = random.Random(name)
    words = words_of(full)
    read = 0
    for _ in range(600):
        line = [chance.choice(words) for _ in range(chance.randrange(6))]
        found = parser.plain(line)
        if found is not None:
            read += 1
            assert found == vars(full.parse_args(line)), line
    assert read


def test_a_plain_command_line_imports_no_argparse(parser_of, monkeypatch):
    parser = parser_of("claudebox")
    monkeypatch.setitem(sys.modules, "argparse", None)
    options = parser.parse_args(["-y", "--shell", "--network", "none", "--env", "A", "--env", "B"])
    assert (options.yes, options.shell, options.network) == (True, True, "none")
    assert (options.env, options.repo) == (["A", "B"], False)


def test_a_list_is_a_new_one_for_every_command_line(parser_of):
    parser = parser_of("claudebox")
    parser.parse_args(["--env", "A"])
    assert parser.parse_args([]).env == []


def test_what_excludes_each_other_is_refused_by_argparse(parser_of):
    parser = parser_of("claudebox")
    assert parser.plain(["--check", "--dry-run"]) is None
    with pytest.raises(Failure, match="not allowed with"):
        parser.parse_args(["--check", "--dry-run"])
