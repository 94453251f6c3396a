"""Command lines: declared once, a plain one read at once, every other by argparse.

argparse takes 4 to 5 ms to import and to set up (regular expressions, enumerations), which is a
fifth of a launch. A plain command line is one of flags, of options with their value as the next
word, and of operands; what is anything else, or wrong, or asks for help, goes to argparse, which
has the last word on what a command line means.
"""

import sys

from claudebox import Failure


class Options:
    """What was given on a command line: an attribute for each option and operand."""

    def __init__(self, values: dict):
        self.__dict__.update(values)


class Parser:
    """Takes the declarations that argparse.ArgumentParser takes, and hands them on if need be."""

    def __init__(self, prog: str, description: str | None = None):
        self.prog = prog
        self.description = description
        self.usage = None
        self.epilog = None
        self._declared = []
        self._actions = None
        self._groups = 0

    def add_argument(self, *names: str, group: int = 0, **options) -> None:
        """Declare an option or an operand, as argparse.ArgumentParser.add_argument does."""
        self._declared.append((names, group, options))

    def add_mutually_exclusive_group(self):
        """Return what `add_argument` is called on for options that exclude each other."""
        self._groups += 1
        return _Group(self, self._groups)

    def add_subparsers(self, **options):
        """Return what `add_parser` is called on for the actions of a command."""
        self._actions = _Actions(self.prog, options)
        return self._actions

    def parse_args(self, words: list[str]):
        """Return the options in `words`; raises Failure with status 2, or exits after --help."""
        values = self.plain(words)
        return self.full().parse_args(words) if values is None else Options(values)

    def plain(self, words: list[str]) -> dict | None:
        """Return the options of a plain command line, and None for one that is not."""
        named, operands, values = {}, [], {}
        for names, group, options in self._declared:
            if options.get("action") in ("version", "help"):
                continue
            name = next((name for name in names if name.startswith("--")), names[0])
            name = options.get("dest") or name.lstrip("-").replace("-", "_")
            default = False if options.get("action") == "store_true" else options.get("default")
            values[name] = list(default) if isinstance(default, list) else default
            if names[0].startswith("-"):
                named.update(dict.fromkeys(names, (name, group, options)))
            else:
                operands.append((name, options))
        used = {}
        rest = iter(words)
        for word in rest:
            if word.startswith("-") and word != "-":
                if word not in named:
                    return None
                name, group, options = named[word]
                if group and used.setdefault(group, name) != name:
                    return None
                action = options.get("action", "store")
                if action == "store_true":
                    values[name] = True
                    continue
                value = next(rest, "-")
                if action not in ("store", "append") or not _is_plain(value, options):
                    return None
                values[name] = [*values[name], value] if action == "append" else value
            elif operands:
                name, options = operands.pop(0)
                if not _is_plain(word, {**options, "nargs": None}):
                    return None
                values[name] = word
            elif self._actions is not None:
                return self._actions.plain(word, list(rest), values)
            else:
                return None
        if self._actions is not None or any(options.get("nargs") != "?" for _, options in operands):
            return None
        return values

    def full(self):
        """Return the argparse.ArgumentParser of these declarations; its errors are Failures."""
        return self.declare(_argparse_class()(prog=self.prog, description=self.description))

    def declare(self, parser):
        """Declare everything to an argparse.ArgumentParser, and return it."""
        parser.usage, parser.epilog = self.usage, self.epilog
        groups = {}
        for names, group, options in self._declared:
            target = parser
            if group:
                target = groups.get(group) or parser.add_mutually_exclusive_group()
                groups[group] = target
            target.add_argument(*names, **options)
        if self._actions is not None:
            self._actions.declare(parser)
        return parser


class _Group:
    def __init__(self, parser: Parser, number: int):
        self._parser = parser
        self._number = number

    def add_argument(self, *names: str, **options) -> None:
        self._parser.add_argument(*names, group=self._number, **options)


class _Actions:
    def __init__(self, prog: str, options: dict):
        self._prog = prog
        self._options = options
        self._parsers = {}

    def add_parser(self, name: str, **options) -> Parser:
        parser = Parser(f"{self._prog} {name}", options.get("description"))
        self._parsers[name] = (parser, options)
        return parser

    def plain(self, name: str, words: list[str], values: dict) -> dict | None:
        if name not in self._parsers:
            return None
        own = self._parsers[name][0].plain(words)
        return None if own is None else {**values, self._options["dest"]: name, **own}

    def declare(self, parser) -> None:
        actions = parser.add_subparsers(**self._options)
        for name, (own, options) in self._parsers.items():
            own.declare(actions.add_parser(name, **options))


def _is_plain(word: str, options: dict) -> bool:
    """Say whether `word` is the value of an option, taken as it is."""
    choices = options.get("choices")
    return not (
        (word.startswith("-") and (choices is None or word not in choices))
        or (choices is not None and word not in choices)
        or options.get("type") is not None
        or options.get("nargs") is not None
    )


def _argparse_class():
    # argparse looks for translations of its few words, which there are none of, with two modules more.
    sys.modules.setdefault("gettext", _NoTranslation)
    import argparse
    import os

    class Formatter(argparse.HelpFormatter):
        def __init__(self, prog):
            # Without a width it imports shutil, and lzma with it, for every parser, helpful or not.
            columns = os.environ.get("COLUMNS", "")
            width = int(columns) if columns.isdecimal() else 80
            super().__init__(prog, width=max(width - 2, 30))

    class ArgumentParser(argparse.ArgumentParser):
        def __init__(self, **options):
            super().__init__(allow_abbrev=False, formatter_class=Formatter, **options)

        def error(self, message):
            raise Failure(message, f"see `{self.prog} --help`", status=2)

    return ArgumentParser


class _NoTranslation:
    """Stands for the module gettext."""

    @staticmethod
    def gettext(message):
        return message

    @staticmethod
    def ngettext(one, many, count):
        return one if count == 1 else many
