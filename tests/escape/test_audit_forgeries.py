"""Names, values and paths of other people cannot draw on, hide or forge a line of what claudebox says."""

import json
import os
import re
import subprocess
from functools import cache

import canaries
import pytest
from configurations import TIERS

# What draws, moves, hides or reorders: escape sequences, carriage return, backspace, bell, C1 controls,
# bidirectional and zero-width characters, separators, tags, marks, blanks that look like nothing, and
# bytes that are no UTF-8.
HOSTILE = (
    "\x1b[2K\x1b[1A\x1b]0;t\x07\r\x08\x9b\u202e\u2066\u200b\u200f\u2028\u2029\ufeff\U000e0041\u0301\u3164"
    "\u00ad\u061c\u2800\udcff"
)
DRAWS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069]"
)
# Such marks may stand in what is printed with an escape beside them, not raw.
MORE = re.compile("[\ufeff\u0301\u3164\U000e0041\udcff]")
BIN = canaries.CHECKOUT / "bin"
CONFIGURATIONS = {
    f"{tier}-{variant}": ["--network", tier, *options]
    for tier in TIERS
    for variant, options in (("plain", []), ("let-in", ["--env", "STAGING"]))
}


def forged(token: str) -> str:
    """Return a name that, shown as it is, draws and begins a line of its own."""
    return f"x{HOSTILE}\n  ! forged {token}\n{token}"


def lines_that_lie(text: str, token: str) -> list[str]:
    """Return the lines that a forgery with this token begins or draws on; [] if none does."""
    lines = text.split("\n")
    return [
        line
        for line in lines
        if line.startswith((f"  ! forged {token}", token))
        or (token in line and (DRAWS.search(line) or MORE.search(line)))
    ]


# token → what holds the forgery, and whether it is in every launch or in a command of its own.
IN_A_LAUNCH = {
    "tok-home": "the name of the home directory",
    "tok-project": "the name of the project",
    "tok-secret": "the name of a file that looks like a secret",
    "tok-link": "the name of a hard link",
    "tok-argument": "an argument of the command",
    "tok-nested": "the name of a directory with a repository",
    "tok-watched": "the name of a file that is compared, changed inside",
    "tok-made": "the name of a repository that was made inside",
    "TERM": "the value of a variable that is always let in",
    "LC_TOKEN": "the value of a variable that is let in for its beginning",
}
INSIDE = """
import json, os, subprocess
names = json.load(open("names.json"))
os.makedirs(".vscode", exist_ok=True)
open(".vscode/" + names["watched"], "w").close()
subprocess.run(["git", "init", "-q", "--template=", "--", names["made"]])
"""


class Forger:
    """A home and project full of names that lie."""

    def __init__(self, base):
        self.home = base / f"home-{forged('tok-home')}"
        self.project = self.home / forged("tok-project")
        self.project.mkdir(parents=True)
        (self.project / f".env.{forged('tok-secret')}").write_text("")
        (self.home / "other").write_text("")
        os.link(self.home / "other", self.project / forged("tok-link"))
        (self.project / forged("tok-nested") / ".git/objects").mkdir(parents=True)
        (self.project / "inside.py").write_text(INSIDE)
        names = {"watched": forged("tok-watched"), "made": forged("tok-made")}
        (self.project / "names.json").write_text(json.dumps(names))
        tools = base / "tools"
        tools.mkdir()
        (tools / "claude").write_bytes(open("/bin/true", "rb").read())
        (tools / "claude").chmod(0o755)
        value = "\x1b\u202e\x9b\u200b" + "A" * 60 + "\x1b\u202e\r\u2066"
        self.environment = {
            "HOME": str(self.home),
            "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TERM": value,
            "LC_TOKEN": value,
            "STAGING": value,
        }

    def run(self, trusting: bool, name: str, *arguments, stdin: str = "", env=None) -> str:
        """Run a claudebox command, or one that shows text as it is, and return all that it says."""
        command = [str(BIN / name)]
        if trusting:
            command = ["/usr/bin/python3", "-I", "-B", str(canaries.HERE / "trusting.py"), name]
        completed = subprocess.run(
            [*command, *arguments],
            cwd=self.project,
            env={**self.environment, **(env or {})},
            input=stdin.encode("utf-8", "surrogateescape"),
            capture_output=True,
            timeout=60,
        )
        return (completed.stderr + completed.stdout).decode("utf-8", "surrogateescape")

    def launch(self, trusting: bool, options) -> str:
        """Launch a session that leaves more such names, and return what the user gets to see."""
        script = f": '{forged('tok-argument')}'; exec python3 inside.py"
        return self.run(trusting, "claudebox", "-y", *options, "--shell", "--", "-c", script)


@pytest.fixture(scope="module")
def forger(tmp_path_factory):
    return Forger(tmp_path_factory.mktemp("forger"))


@pytest.fixture(scope="module")
def launched(forger, tmp_path_factory):
    # A second launch finds what a first one left: each has names of its own to make.
    return cache(
        lambda configuration: Forger(tmp_path_factory.mktemp("forger")).launch(
            configuration == "trusting",
            CONFIGURATIONS.get(configuration, ["--network", "none"]),
        )
    )


@pytest.mark.parametrize("token", IN_A_LAUNCH)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_nothing_in_a_launch_can_forge_a_line(launched, configuration, token):
    said = launched(configuration)
    assert token in said
    assert lines_that_lie(said, token) == [], IN_A_LAUNCH[token]


@pytest.mark.parametrize("token", IN_A_LAUNCH)
def test_control_shown_as_it_is_it_forges_a_line(launched, token):
    assert lines_that_lie(launched("trusting"), token), IN_A_LAUNCH[token]


def test_the_value_of_a_variable_that_was_asked_for_cannot_draw(launched):
    for configuration in CONFIGURATIONS:
        if configuration.endswith("let-in"):
            assert "STAGING" in launched(configuration)
            assert lines_that_lie(launched(configuration), "STAGING") == []


# What an edited plan can hold: a function that puts the forgery into it.
def _profile(plan, text):
    plan["profile"] = {"name": text, "chain": [text]}


def _note(plan, text):
    plan["notes"].append(text)


def _source(plan, text):
    plan["network"]["source"] = text


def _reason(plan, text):
    mount = next(mount for mount in plan["mounts"] if mount["reason"] == "system")
    mount["reason"] = f"profile:{text}"


def _target(plan, text):
    plan["mounts"].append({"kind": "tmpfs", "target": f"/opt/{text}", "reason": "system"})


def _link(plan, text):
    mount = {"kind": "symlink", "source": text, "target": "/opt/link", "reason": "system"}
    plan["mounts"].append(mount)


def _variable(plan, text):
    plan["env"].append({"name": "X", "source": "claudebox", "value": f"{text} tok-plan"})


def _why(plan, text):
    plan["env"].append({"name": "X", "source": "host", "reason": text})


def _command(plan, text):
    plan["command"] = [text]


def _schema(plan, text):
    plan["schema"] = text


def _key(plan, text):
    plan[text] = 1


EDITS = (
    _profile,
    _note,
    _source,
    _reason,
    _target,
    _link,
    _variable,
    _why,
    _command,
    _schema,
)
EDITS += (_key,)


@pytest.fixture(scope="module")
def plan(forger):
    return json.loads(forger.run(False, "claudebox-plan", "--network", "none"))


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__.strip("_"))
def test_nothing_in_an_edited_plan_can_forge_a_line(forger, plan, edit):
    edited = json.loads(json.dumps(plan))
    edit(edited, forged("tok-plan"))
    text = json.dumps(edited)

    def audit(trusting):
        said = forger.run(trusting, "claudebox-audit", "-y", stdin=text)
        # Without the plan that is passed on.
        return said.replace(json.dumps(edited, indent=2), "")

    assert "tok-plan" in audit(False)
    assert lines_that_lie(audit(False), "tok-plan") == []
    assert lines_that_lie(audit(True), "tok-plan")


COMMANDS = {
    "an unknown tier": ("claudebox", "-y", "--network", "TOKEN"),
    "an unknown profile": ("claudebox", "-y", "--profile", "TOKEN"),
    "an unknown option": ("claudebox", "--TOKEN"),
    "an unknown subcommand": ("claudebox", "TOKEN"),
    "an odd exception": ("claudebox", "-y", "--network", "inet", "--allow", "TOKEN"),
    "an odd variable": ("claudebox", "-y", "--env", "TOKEN"),
    "an unknown directory": ("claudebox-instance", "resolve", "TOKEN"),
    "an unknown instance": ("claudebox-instance", "remove", "-y", "TOKEN"),
    "an odd number of days": ("claudebox-gc", "--older-than", "TOKEN"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_no_message_about_an_argument_can_forge_a_line(forger, what):
    name, *arguments = COMMANDS[what]
    arguments = [argument.replace("TOKEN", forged("tok-message")) for argument in arguments]
    said = forger.run(False, name, *arguments)
    assert "tok-message" in said
    assert lines_that_lie(said, "tok-message") == []
    assert lines_that_lie(forger.run(True, name, *arguments), "tok-message")


@pytest.mark.parametrize("name", ["CLAUDEBOX_NETWORK", "CLAUDEBOX_PROFILE", "CLAUDEBOX_HOME"])
def test_no_message_about_a_variable_can_forge_a_line(forger, name):
    # As a state directory it cannot be made: what lies above it is a file.
    value = ("/dev/null/" if name == "CLAUDEBOX_HOME" else "") + forged("tok-message")
    arguments = ("-y", "--shell", "--", "-c", "true")
    said = forger.run(False, "claudebox", *arguments, env={name: value})
    assert "tok-message" in said
    assert lines_that_lie(said, "tok-message") == []
    assert lines_that_lie(
        forger.run(True, "claudebox", *arguments, env={name: value}), "tok-message"
    )


@pytest.mark.parametrize("command", [("claudebox-instance", "list"), ("claudebox-gc", "--dry-run")])
def test_no_name_of_a_project_can_forge_a_line_of_a_list(forger, command):
    root = forger.home / forged("tok-list")
    identity = "0123456789abcdef"
    instance = forger.home / f".claudebox/instances/{identity}"
    instance.mkdir(parents=True, exist_ok=True)
    metadata = {"root": os.fspath(root), "created": 1, "last_used": 1, "mount": ["/", ""]}
    (instance / "instance.json").write_text(json.dumps(metadata))
    said = forger.run(False, *command)
    assert "tok-list" in said
    assert lines_that_lie(said, "tok-list") == []
    assert lines_that_lie(forger.run(True, *command), "tok-list")


def test_the_script_of_a_dry_run_has_no_comment_that_ends_early(forger):
    said = forger.run(False, "claudebox", "--dry-run", "--network", "none", "--shell")
    comments = [line for line in said.split("\n") if line.startswith("#")]
    assert any("tok-project" in line for line in comments)
    assert not [line for line in comments if DRAWS.search(line) or MORE.search(line)]
    completed = subprocess.run(["bash", "-n"], input=said.encode("utf-8", "surrogateescape"))
    assert completed.returncode == 0
