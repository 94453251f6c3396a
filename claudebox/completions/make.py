#!/usr/bin/env python3
"""Writes the table of commands and options in the three completions, from the argument parsers.

Run it after an option was added or changed; a test fails until then.
"""

import argparse
import os
import re
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from claudebox import command_line, main, plan, policy  # noqa: E402

FILES = ("claudebox.bash", "_claudebox", "claudebox.fish")

# How a value is completed, by the option it belongs to, else by its name in the help. The kinds are
# told apart in the completions themselves; words in parentheses are the values, in angle brackets
# there is nothing to offer.
_KINDS_OF_OPTIONS = {"--env": "variable", "--hide": "file", "--mount": "file"}
_KINDS = {
    "TIER": f"({' '.join(plan.TIERS)})",
    "MODE": f"({' '.join(policy.NIX_MODES)})",
    "NAME": "profile",
    "DIR": "directory",
    "DIR|ID": "instance",
}
_NOTHING = "<>"


class _Captured(Exception):
    """Carries a parser out of the command that made it."""


def parser_of(name: str):
    """Return the argument parser of an executable, `claudebox` or `claudebox-NAME`."""

    def capture(parser, *_):
        raise _Captured(parser.full())

    kept = command_line.Parser.parse_args
    command_line.Parser.parse_args = capture
    try:
        main.entry([name])
    except _Captured as captured:
        return captured.args[0]
    finally:
        command_line.Parser.parse_args = kept
    raise AssertionError(f"{name} parses no arguments")


def rows() -> list[str]:
    """Return the table: `command|spellings|kind of value|description`.

    The command is `claudebox`, with a subcommand and an action where there is one. Without spellings
    it is an operand, with the kind `command` a subcommand or an action.
    """
    found = []
    for name in main.COMMANDS:
        parser = parser_of(f"claudebox-{name}")
        found.append(("claudebox", name, "command", parser.description))
    found.append(("claudebox", "help", "command", "open a manual page"))
    found += _options("claudebox", parser_of("claudebox"))
    found.append(("claudebox help", "", "subcommand", ""))
    for name in main.COMMANDS:
        found += _options(f"claudebox {name}", parser_of(f"claudebox-{name}"))
    return ["|".join(_plain(field) for field in row) for row in found]


def _options(command: str, parser):
    inner = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, actions_parser in action.choices.items():
                yield command, name, "command", helps.get(name) or ""
                inner += _options(f"{command} {name}", actions_parser)
            continue
        kind = "" if action.nargs == 0 else _kind(action)
        yield command, " ".join(action.option_strings), kind, action.help or ""
    yield from inner


def _kind(action) -> str:
    metavar = action.metavar or action.dest.upper()
    for option in action.option_strings:
        if option in _KINDS_OF_OPTIONS:
            return _KINDS_OF_OPTIONS[option]
    if action.choices:
        return f"({' '.join(action.choices)})"
    return _KINDS.get(metavar, _NOTHING)


def _plain(text: str) -> str:
    """Return a field without what would end it or the string that the table is."""
    # What the commands read and write is not for a menu.
    text = re.sub(r"\. [^.]*→.*", "", text).rstrip(".").replace("'", "\u2019")
    if "\\" in text or "|" in text or "\n" in text:
        raise ValueError(f"{text!r} cannot stand in a completion")
    return text


def with_table(text: str) -> str:
    """Return the text of a completion with the table in its place."""
    begin, end = "# Made by make.py", "# End of what make.py made"
    before, _, rest = text.partition(begin)
    line, _, rest = rest.partition("\n")
    opening, _, rest = rest.partition("\n")
    _, _, after = rest.partition(end)
    return f"{before}{begin}{line}\n{opening}\n" + "\n".join(rows()) + f"\n'\n{end}{after}"


if __name__ == "__main__":
    for file in FILES:
        with open(f"{HERE}/{file}", encoding="utf-8") as stream:
            new = with_table(stream.read())
        with open(f"{HERE}/{file}", "w", encoding="utf-8") as stream:
            stream.write(new)
