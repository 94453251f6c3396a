"""README.md, held against what is there: files, tests, pages, options and commands."""

import os
import re
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(0, ROOT)

from claudebox import command_line, main  # noqa: E402

with open(f"{ROOT}/README.md", encoding="utf-8") as file:
    TEXT = file.read()


class Captured(Exception):
    """Carries a parser out of the command that made it."""


def blocks(language):
    """Return the blocks of code of a language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:tests|claudebox|bin)/[\w./-]+)`", TEXT))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", TEXT))
    assert len(named) > 20
    assert [path for path in sorted(named) if not os.path.exists(f"{ROOT}/{path}")] == []


def test_everything_at_the_top_is_usual_or_explained():
    usual = {
        "pyproject.toml",
        "bin",
        "claudebox",
        "tests",
        "man",
        "flake.nix",
        "README.md",
        "LICENSE",
    }
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files"], capture_output=True, text=True
    ).stdout.split()
    top = {path.partition("/")[0] for path in tracked} - usual - {".ci", ".gitignore", "flake.lock"}
    assert [name for name in sorted(top) if f"`{name}`" not in TEXT] == []


def test_every_protection_names_a_test():
    table = TEXT.partition("| what | how | held by |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines()[2:]]
    assert len(rows) > 10
    assert [what for what, _, tests in rows if "`tests/" not in tests] == []


def test_the_manual_names_the_same_tests():
    with open(f"{ROOT}/man/claudebox.1", encoding="ascii") as manual:
        section = manual.read().partition(".Ss What shows it\n")[2]
    table = TEXT.partition("| what | how | held by |")[2].partition("\n\n")[0]
    tests = set(re.findall(r"`(tests/[\w./-]+)`", table))
    assert set(re.findall(r"tests/[\w./-]*\w", section)) == tests


def test_known_limits_have_tests():
    names = subprocess.run(
        ["grep", "-rhoE", "def test_known_limit_[a-z0-9_]+", f"{ROOT}/tests"],
        capture_output=True,
        text=True,
    ).stdout.split()
    assert len(set(names)) > 8


@pytest.mark.parametrize("block", blocks("sh"))
def test_every_command_of_claudebox_that_is_shown_can_be_parsed(block, monkeypatch):
    def capture(parser, words):
        raise Captured(parser.plain(words) or vars(parser.full().parse_args(words)))

    monkeypatch.setattr(command_line.Parser, "parse_args", capture)
    found = 0
    for line in block.splitlines():
        for part in re.split(r"\||&&", line.partition("#")[0]):
            words = [word.strip("'") for word in part.split()]
            name = os.path.basename(words[0]) if words else ""
            if name == "claudebox" and words[1:2] and words[1] in main.COMMANDS:
                name, words = f"claudebox-{words[1]}", words[1:]
            if name.startswith("claudebox"):
                found += 1
                with pytest.raises(Captured):
                    main.entry([name, *words[1:]])
    assert found or "claudebox-" not in block or block.startswith("#!")
