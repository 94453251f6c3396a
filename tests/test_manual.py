"""The manual pages, held against the argument parsers, the plan's schema and the policy."""

import argparse
import html
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
MAN = f"{ROOT}/man"
PAGES = sorted(name for name in os.listdir(MAN) if re.fullmatch(r"[\w-]+\.\d", name))
sys.path.insert(0, ROOT)

from claudebox import command_line, main, plan, plan_schema, policy, profiles  # noqa: E402
from claudebox.sandbox import seccomp  # noqa: E402

COMMANDS = ("claudebox", *(f"claudebox-{name}" for name in main.COMMANDS))


# ---------------------------------------------------------------------------- what a page says


def mandoc(*arguments):
    """Run mandoc and return what it did."""
    program = shutil.which("mandoc")
    if program is None:
        pytest.fail("mandoc is missing; to install it: apt-get install mandoc")
    return subprocess.run([program, *arguments], capture_output=True, text=True, cwd=MAN)


@cache
def rendered(page):
    """Return a page as HTML, in which every mdoc macro is a class of its own."""
    done = mandoc("-T", "html", "-O", "fragment", page)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plain(markup):
    """Return HTML as text, with its line breaks."""
    return html.unescape(re.sub("<[^>]+>", "", markup))


def marked(page, macro):
    """Return the words that `macro` marks up in a page."""
    found = re.findall(rf'<(\w+) class="{macro}"[^>]*>(.*?)</\1>', rendered(page), re.DOTALL)
    return {plain(words) for _, words in found}


def items(page, macro):
    """Return the words that `macro` marks up in the tags of a page's lists: what it explains."""
    tags = re.findall(r"<dt.*?</dt>", rendered(page), re.DOTALL)
    found = re.findall(rf'<(\w+) class="{macro}"[^>]*>(.*?)</\1>', "".join(tags), re.DOTALL)
    return {plain(words) for _, words in found}


def displays(page):
    """Return the examples of a page, those of several lines and those of one."""
    blocks = re.findall(r"<pre>(.*?)</pre>", rendered(page), re.DOTALL)
    # What is not preformatted is wrapped anywhere.
    lines = (" ".join(line.split()) for line in marked(page, "(?:Li|Ql)"))
    return [*map(plain, blocks), *sorted(lines)]


# ---------------------------------------------------------------------------- what a command knows


class Captured(Exception):
    """Carries a parser out of the command that made it."""


@cache
def parsers(name):
    """Return the parser of a command, and those of its actions by name."""

    def capture(parser, *_):
        raise Captured(parser.full())

    patched = pytest.MonkeyPatch()
    patched.setattr(command_line.Parser, "parse_args", capture)
    try:
        main.entry([name])
    except Captured as captured:
        parser = captured.args[0]
    finally:
        patched.undo()
    actions = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions.update(action.choices)
    return parser, actions


def arguments(name):
    """Return the argparse actions of a command and of its own actions, without the latter."""
    parser, actions = parsers(name)
    return [
        argument
        for one in (parser, *actions.values())
        for argument in one._actions
        if not isinstance(argument, argparse._SubParsersAction)
    ]


def options(name):
    """Return every spelling of every option of a command."""
    return {option for argument in arguments(name) for option in argument.option_strings}


def command_lines(page):
    """Return the command lines of this program in the examples of a page: name, arguments."""
    found = []
    for example in displays(page):
        if "claudebox" not in example or example.lstrip().startswith("{"):
            continue
        command = []
        lexer = shlex.shlex(example, posix=True, punctuation_chars="|<>()")
        lexer.whitespace_split = True
        for word in (*lexer, "|"):
            if word != "$" and not set(word) <= set("|<>()"):
                command.append(word)
                continue
            if command[:1] == ["claudebox"] and f"claudebox-{(*command, '')[1]}" in COMMANDS:
                command[:2] = [f"claudebox-{command[1]}"]
            if command and command[0] in COMMANDS:
                found.append((command[0], command[1:]))
            command = []
    return found


# ---------------------------------------------------------------------------- form


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_mistake_that_mandoc_warns_of(page):
    done = mandoc("-T", "lint", "-W", "warning", page)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_named_after_its_file_in_one_line(page):
    name, _, section = page.rpartition(".")
    with open(f"{MAN}/{page}", encoding="ascii") as file:
        source = file.read()
    assert f"\n.Dt {name.upper()} {section}\n" in source
    line = re.search(r'<section class="Sh">\s*<h1[^>]*>.*?NAME.*?</section>', rendered(page), re.S)
    text = " ".join(plain(line[0]).split())
    assert re.fullmatch(rf"NAME {name} — \w[^.]*\w", text), text


@pytest.mark.parametrize("page", PAGES)
def test_every_page_of_this_program_that_a_page_refers_to_exists(page):
    references = re.findall(r"\b(claudebox[\w-]*)\((\d)\)", plain(rendered(page)))
    assert {f"{name}.{section}" for name, section in references} <= set(PAGES)


def test_claudebox_refers_to_every_page():
    text = plain(rendered("claudebox.1"))
    others = {re.sub(r"\.(\d)$", r"(\1)", page) for page in PAGES if page != "claudebox.1"}
    assert {name for name in others if name not in text} == set()


# ---------------------------------------------------------------------------- command lines


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_page(name):
    assert f"{name}.1" in PAGES


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_explained_in_its_page(name):
    assert options(name) - items(f"{name}.1", "Fl") == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_in_the_page_of_a_command_exists(name):
    # `-` is an operand; `--` ends the options of every command.
    operands = {argument.metavar for argument in arguments(name) if not argument.option_strings}
    assert marked(f"{name}.1", "Fl") - options(name) - operands - {"--"} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_operand_and_every_value_of_an_option_stands_in_the_page(name):
    wanted = {
        (argument.metavar or argument.dest).lower()
        for argument in arguments(name)
        if not argument.option_strings or argument.nargs != 0
    }
    assert wanted - marked(f"{name}.1", "Ar") - marked(f"{name}.1", "Fl") == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_action_of_a_command_is_explained_in_its_page(name):
    assert set(parsers(name)[1]) - items(f"{name}.1", "Cm") == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_executable_knows_the_options_that_its_parser_has(name):
    done = subprocess.run(
        [f"{ROOT}/bin/{name}", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    own = {option for argument in parsers(name)[0]._actions for option in argument.option_strings}
    assert own <= set(re.findall(r"(?<![\w-])--?[\w-]+", done.stdout))


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_use_options_and_actions_that_exist(page):
    for name, used in command_lines(page):
        own = used[: used.index("--")] if "--" in used else used
        assert {word for word in own if word.startswith("-")} - options(name) - {"-"} == set()
        actions = parsers(name)[1]
        assert not actions or own[0] in actions, f"{name} {own[0]}"


def test_the_pages_have_examples_of_every_command():
    assert {name for page in PAGES for name, _ in command_lines(page)} == set(COMMANDS)


def test_every_subcommand_is_listed_by_claudebox():
    assert set(COMMANDS) - {"claudebox"} <= {
        reference.removesuffix("(1)") for reference in items("claudebox.1", "Xr")
    }


# ---------------------------------------------------------------------------- the plan


def schema(checker=plan_schema.check):
    """Return what a checker looks at: dotted keys, and the words that a value can be."""
    keys, choices = set(), set()

    def visit(check, path):
        inner = inspect.getclosurevars(check).nonlocals
        for table in ("required", "optional"):
            for key, check_value in inner.get(table, {}).items():
                name = f"{path}.{key}".lstrip(".")
                keys.add(name)
                visit(check_value, name)
        for record in inner.get("records", {}).values():
            visit(record, path)
        choices.update(inner.get("choices", ()))
        if "check" in inner:
            visit(inner["check"], f"{path}[]" if check.__name__ == "check_list" else path)

    visit(checker, "")
    return keys, choices


def example_plan():
    """Return the text of the plan that claudebox-plan(5) shows."""
    return next(block for block in displays("claudebox-plan.5") if block.lstrip().startswith("{"))


def test_the_schema_that_these_tests_read_is_that_of_a_plan():
    keys, choices = schema()
    shown = plan.loads(example_plan())

    def walk(value, path):
        if isinstance(value, dict):
            for key, inner in value.items():
                name = f"{path}.{key}".lstrip(".")
                yield name
                yield from walk(inner, name)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner, f"{path}[]")

    assert set(walk(shown, "")) <= keys
    assert {"mounts[].size", "mounts[].content", "env[].secret", "profile.name"} <= keys
    assert {*plan.TIERS, *plan_schema.MOUNTS, "host", "claudebox"} <= choices


def test_every_key_of_the_schema_is_explained_and_no_other():
    assert items("claudebox-plan.5", "Va") == schema()[0]


def test_every_word_that_a_value_of_the_schema_can_be_stands_in_its_page():
    said = marked("claudebox-plan.5", "Cm") | marked("claudebox-plan.5", "(?:Li|Ql)")
    assert schema()[1] - said == set()


def test_every_kind_of_mount_is_explained():
    assert set(plan_schema.MOUNTS) - items("claudebox-plan.5", "Cm") == set()


def test_the_plan_that_is_shown_is_written_as_claudebox_writes_it():
    assert plan.dumps(plan.loads(example_plan())).strip() == example_plan().strip()


# ---------------------------------------------------------------------------- profiles


def test_every_key_of_a_profile_is_explained_and_no_other():
    keys, choices = schema(profiles._check_profile)
    assert items("claudebox-profile.5", "Va") == keys
    assert choices - marked("claudebox-profile.5", "(?:Li|Ql)") == set()
    assert {"mounts[].optional", "limits.memory", "claude_args"} <= keys


def test_the_profiles_that_are_shown_are_profiles_that_inherit():
    shown = [text for text in displays("claudebox-profile.5") if text.lstrip().startswith("{")]
    base, web = (profiles.profile_in("x", text) for text in shown)
    assert web["extends"] == "base"
    traced = profiles.merged(profiles.trace(base, "base"), profiles.trace(web, "web"))
    assert profiles.settled(traced)[0]["hide"] == [".env", "secrets/"]


def test_the_limits_of_hiding_stand_in_the_page():
    text = " ".join(plain(rendered("claudebox-profile.5")).split())
    assert f"more than {policy.HIDE_ENTRY_LIMIT:,} entries" in text
    assert f"more than {policy.HIDDEN_LIMIT} mounts" in text
    assert f"at most {profiles.SIZE_LIMIT // 1024} KiB" in text


# ---------------------------------------------------------------------------- the policy


def test_every_variable_that_is_let_in_or_set_stands_in_the_page_of_claudebox():
    named = {*policy.HOST_VARIABLES, *policy.HOST_VARIABLE_PREFIXES, policy.API_KEY}
    named |= {*policy.CLAUDE_VARIABLES, *policy.SECRET_PLACE_VARIABLES}
    named |= {*policy.NIX_VARIABLES, *policy.DEVSHELL_VARIABLES}
    assert named - marked("claudebox.1", "Ev") == set()


def test_every_variable_that_is_refused_stands_in_the_page_of_the_profiles():
    refused = {*policy.FORBIDDEN_VARIABLES, *policy.FORBIDDEN_VARIABLE_PREFIXES}
    assert refused - marked("claudebox-profile.1", "Ev") == set()


def test_every_variable_of_claudebox_itself_is_explained():
    used = set()
    for directory, _, files in os.walk(f"{ROOT}/claudebox"):
        for file in files:
            if file.endswith(".py"):
                with open(f"{directory}/{file}", encoding="utf-8") as source:
                    used.update(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", source.read()))
    assert {"CLAUDEBOX_HOME", "CLAUDEBOX_NETWORK", "CLAUDE_CONFIG_DIR"} <= used
    assert used - items("claudebox.1", "Ev") == set()


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("claudebox.1", policy.PROTECTED_GIT_PATHS),
        ("claudebox.1", policy.PROTECTED_PROJECT_PATHS),
        ("claudebox.1", policy.WATCHED_PROJECT_PATHS),
        ("claudebox.1", {*policy.DEVSHELL_FILE_NAMES, *policy.DEVSHELL_FILE_SUFFIXES}),
        ("claudebox-audit.1", policy.SECRET_FILE_NAMES),
        ("claudebox-audit.1", policy.HARMLESS_FILE_NAMES),
    ],
    ids=[
        "protected in git",
        "protected in the project",
        "watched",
        "of a shell",
        "secret",
        "harmless",
    ],
)
def test_every_file_name_of_the_policy_stands_in_the_page_that_describes_it(page, names):
    assert set(names) - marked(page, "Pa") == set()


def test_the_table_of_system_calls_is_that_of_the_filter():
    section = rendered("claudebox-run.1").partition('id="System_calls')[2].partition("</section>")
    table = "".join(re.findall(r"<dt.*?</dt>", section[0], re.DOTALL))
    said = set(re.findall(r'<code class="Cm">(\w+)</code>', table))
    by_argument = {"clone", "unshare", "socket", "socketpair", "ioctl"}
    assert said == {*seccomp.DENIED, *seccomp.DENIED_UNLESS_NESTED, *by_argument}
    text = plain(section[0])
    assert [name for name in seccomp.DENIED_IOCTLS if name not in text] == []


@pytest.mark.parametrize("page", [f"{name}.1" for name in COMMANDS])
def test_a_page_explains_the_exit_statuses_that_every_command_can_have(page):
    section = rendered(page).partition('id="EXIT_STATUS"')[2].partition("</section>")[0]
    said = {plain(tag).strip() for tag in re.findall(r"<dt.*?</dt>", section, re.DOTALL)}
    assert {"0", "1", "2", "130", "141"} <= said
