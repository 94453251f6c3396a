"""The audit: what it shows, what it hides, and how it asks."""

import copy
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest

from claudebox import Failure, audit
from claudebox import plan as launch_plan
from claudebox import project as walker
from claudebox.printable import printable
from claudebox.sandbox import landlock, limits

KEY = "sk-ant-api03-" + "x" * 91 + "3f2a"


def plain(_style, text):
    return text


def shown(plan, environ=None):
    """Return the audit of a plan as a person sees it, without colours."""
    return audit.table(audit.report(plan, environ or {}), plain)


def row(text, start):
    """Return the one line that begins, after its indent, with `start`."""
    lines = [line for line in text.splitlines() if line.strip().startswith(start)]
    assert len(lines) == 1, (start, text)
    return lines[0]


# ---------------------------------------------------------------------------- masking


@pytest.mark.parametrize(
    ("value", "mask"),
    [
        (KEY, "sk-ant-…3f2a (108 chars)"),
        ("sk-ant-" + "a" * 25, "sk-ant-…aaaa (32 chars)"),
        ("sk-ant-" + "a" * 24, "sk-…aaa (31 chars)"),
        ("ghp_" + "b" * 32 + "1234", "ghp_…1234 (40 chars)"),
        ("0123456789abcdef", "01…ef (16 chars)"),
        ("123456789", "1…9 (9 chars)"),
        ("12345678", "•••••••• (8 chars)"),
        ("vim", "••• (3 chars)"),
        ("x", "• (1 char)"),
        ("", "(empty)"),
    ],
)
def test_a_value_is_masked_so_that_it_can_be_recognised_and_not_used(value, mask):
    assert audit.masked(value) == mask


def test_of_eight_characters_or_fewer_none_is_shown():
    for length in range(1, 9):
        value = "abcdefgh"[:length]
        assert not set(value) & set(audit.masked(value).partition(" ")[0])


def test_of_a_longer_value_at_most_a_quarter_is_shown():
    for length in range(9, 200):
        mask = audit.masked("k" * length)
        assert mask.count("k") <= length / 4
        assert mask.endswith(f" ({length} chars)")


def test_the_value_of_a_host_variable_is_masked_and_one_of_claudeboxs_is_shown(sample, home):
    text = shown(sample, {"ANTHROPIC_API_KEY": KEY, "TERM": "xterm-256color", "EXTRA": "short"})
    assert "sk-ant-…3f2a (108 chars)" in row(text, "ANTHROPIC_API_KEY")
    assert "x…r (14 chars)" in row(text, "TERM")
    assert "••••• (5 chars)" in row(text, "EXTRA")
    assert row(text, "HOME").endswith(str(home))
    assert KEY not in text and "xterm-256color" not in text and "short" not in text


def test_a_variable_that_the_host_does_not_have_is_shown_as_not_set(sample):
    assert row(shown(sample), "TERM").endswith("(not set)")


def test_a_variable_that_was_asked_for_is_marked(sample):
    assert "host --env" in row(shown(sample), "EXTRA")
    assert "--env" not in row(shown(sample), "TERM")


def test_a_secret_that_a_plan_carries_itself_is_masked_and_warned_of(sample):
    value = "ghp_" + "0a1B" * 9
    sample["env"].append({"name": "MY_TOKEN", "source": "claudebox", "value": value})
    text = shown(sample)
    assert value not in text
    assert "! MY_TOKEN" in text


# ---------------------------------------------------------------------------- what looks secret


@pytest.mark.parametrize(
    "name",
    (
        "GITHUB_TOKEN MY_SECRET DB_PASSWORD DBPASSWD GOOGLE_CREDENTIALS OPENAI_API_KEY XAPIKEY"
        " SSH_PRIVATE deploy_key GH_PAT NPM_AUTH"
    ).split(),
)
def test_a_name_that_looks_like_a_secret_is_told(name):
    assert audit.secret_reason(name, "x") == "its name looks like a secret"


@pytest.mark.parametrize(
    "value",
    [
        KEY,
        "ghp_abc",
        "github_pat_11AA",
        "glpat-x",
        "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA",
        "xoxb-1",
        "npm_x",
        "eyJhbGciOiJIUzI1NiJ9.e30.x",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "AGE-SECRET-KEY-1",
        "hf_x",
    ],
)
def test_a_value_that_begins_like_a_token_is_told(value):
    assert audit.secret_reason("PLAIN", value) == "its value begins like a token"


@pytest.mark.parametrize(
    "value",
    [
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
        "Zm9vYmFyMTIzNDU2Nzg5MGFiY2Q",
        "x7Kp2mQz9LwR4tYv8NsB",
    ],
)
def test_a_value_that_looks_random_is_told(value):
    assert audit.secret_reason("PLAIN", value) == "its value looks random"


def test_an_address_with_a_password_is_told():
    reason = audit.secret_reason("DATABASE_URL", "postgres://u:p@host/db")
    assert reason == "its value is an address with a password"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TERM", "xterm-256color"),
        ("LANG", "en_US.UTF-8"),
        ("EDITOR", "/usr/bin/nvim --noplugin"),
        ("TZ", "America/Argentina/Buenos_Aires"),
        ("LC_ALL", "C"),
        ("PAGER", "less -FRX --mouse --wheel-lines=3"),
        ("HOMEPAGE", "https://example.org/a@b"),
        ("KEYBOARD", "us"),
        ("MONKEY", "x"),
        ("TERM_PROGRAM_VERSION", "20240203-110809-5046fc22"),
        ("VISUAL", ""),
    ],
)
def test_an_ordinary_variable_is_not_told(name, value):
    assert audit.secret_reason(name, value) is None


def test_a_variable_that_looks_secret_is_marked_and_warned_of(sample):
    text = shown(sample, {"EXTRA": "ghp_" + "a" * 36})
    assert row(text, "EXTRA").endswith("  secret")
    assert "! EXTRA is let in: its value begins like a token" in text


def test_the_api_key_is_marked_but_expected(sample):
    text = shown(sample, {"ANTHROPIC_API_KEY": KEY})
    assert row(text, "ANTHROPIC_API_KEY").endswith("  secret")
    assert "! ANTHROPIC_API_KEY" not in text


def test_secret_looking_files_of_the_project_are_listed_up_to_a_limit(sample, project):
    for number in range(11):
        (project / f"{number}.pem").write_text("")
    line = row(shown(sample), "! 11 file(s) look like secrets")
    assert line.endswith(" and 3 more") and line.count(".pem") == 8


def test_files_with_another_name_elsewhere_are_listed(sample, project, tmp_path):
    (tmp_path / "outside").write_text("")
    os.link(tmp_path / "outside", project / "inside")
    assert "inside" in row(shown(sample), "! 1 file(s) have another name elsewhere")


def test_the_network_full_is_warned_of_and_none_is_not(sample):
    assert "! network full" in shown(sample)
    sample["network"]["tier"] = "none"
    assert "! network" not in shown(sample)


def test_a_bwrap_that_cannot_forbid_user_namespaces_is_warned_of(sample):
    assert "user namespaces inside" not in shown(sample)
    sample["bwrap"]["disable_userns"] = None
    assert "user namespaces inside" in shown(sample)


@pytest.mark.parametrize("tier", ["none", "inet", "full"])
def test_signals_and_sockets_that_are_not_scoped_are_warned_of(sample, monkeypatch, tier):
    sample["network"]["tier"] = tier
    for obstacle in (None, "this kernel is old"):
        monkeypatch.setattr(landlock, "obstacle", lambda _, found=obstacle: found)
        text = shown(sample)
        assert ("! this kernel is old: what runs inside can send signals" in text) is bool(obstacle)
        assert ("its abstract sockets included" in text) is bool(obstacle and tier == "full")


def test_the_limits_are_shown(sample):
    sample["limits"] = {"processes": 4096, "memory": 18 << 30, "tmp": 3 << 29}
    assert "limits    4096 processes, 18 GiB of memory, 1.5 GiB of /tmp\n" in shown(sample)
    sample["limits"] = {"processes": None, "memory": None, "tmp": None}
    text = shown(sample)
    assert "limits    none\n" in text
    assert "! the number of processes is not limited: the plan says so" in text
    assert "! memory is not limited: the plan says so" in text
    assert "! /tmp and the home directory may grow" in text


@pytest.mark.parametrize("processes", ["group", "process", None])
@pytest.mark.parametrize("memory", ["group", None])
def test_a_limit_that_the_host_cannot_enforce_is_warned_of(sample, monkeypatch, processes, memory):
    found = {"processes": processes, "memory": memory}
    monkeypatch.setattr(limits, "enforceable", lambda uid: found)
    text = shown(sample)
    assert ("! the number of processes cannot be limited" in text) is (processes is None)
    assert ("! memory cannot be limited" in text) is (memory is None)


def test_nested_namespaces_are_warned_of(sample):
    assert "nested namespaces" not in shown(sample)
    sample["bwrap"]["disable_userns"] = False
    assert "! nested namespaces" in shown(sample)


def test_the_notes_of_the_plan_are_warnings(sample):
    assert "  ! a note" in shown(sample)


# ---------------------------------------------------------------------------- what is shown


def test_the_audit_names_project_instance_network_profile_and_command(sample, project):
    text = shown(sample)
    assert row(text, "project ").endswith(str(project))
    assert "0123456789abcdef" in row(text, "instance ")
    assert sample["instance"]["path"] in row(text, "instance ")
    assert row(text, "profile ").endswith("none")
    assert row(text, "command ").endswith("claude --dangerously-skip-permissions")


def test_the_audit_says_which_setting_decided_the_network(sample):
    sample["network"] = {"tier": "none", "source": "CLAUDEBOX_NETWORK"}
    assert re.search(r"none +decided by: CLAUDEBOX_NETWORK$", row(shown(sample), "network "))


def test_the_place_where_work_starts_is_shown_if_it_is_not_the_root(sample):
    assert "start in" not in shown(sample)
    sample["project"]["cwd"] += "/sub"
    assert row(shown(sample), "start in").endswith("/project/sub")


def test_a_linked_worktree_is_shown_as_one(sample):
    sample["project"]["git"]["worktree"] = True
    assert "linked worktree of " in row(shown(sample), "git ")
    sample["project"]["git"] = None
    assert row(shown(sample), "git ").endswith("none")


def test_every_mount_stands_under_its_reason_with_its_mode(sample):
    sample["mounts"].append(
        {"kind": "ro-bind", "source": "/srv/data", "target": "/data", "reason": "profile:web"}
    )
    text = shown(sample)
    files = text[text.index("\nfiles\n") :]
    assert re.search(r"\n  project\n    rw  .*/project\n", files)
    assert re.search(r"\n  profile:web\n    ro  /data  from /srv/data\n", files)
    assert re.search(r"\n    ro  /bin  link to usr/bin\n", files)
    assert re.search(r"\n    rw  /scratch  empty, thrown away\n", files)
    assert re.search(r"\n    ro  /etc/passwd  made by claudebox\n", files)
    assert re.search(r"\n    --  /proc/keys  covered\n", files)
    assert re.search(r"would run outside later\n    ro  .*/project/\.git  empty\n", files)


def test_no_mount_is_left_out(sample):
    text = shown(sample)
    for mount in sample["mounts"]:
        assert mount["target"] in text


def test_the_columns_of_the_environment_are_aligned(sample):
    text = shown(sample, {"TERM": "t", "ANTHROPIC_API_KEY": KEY, "EXTRA": "e"})
    block = text[text.index("\nenvironment\n") : text.index("\nfiles\n")].splitlines()[2:]
    assert len(block) == len(sample["env"])
    columns = {
        (len(match[1]), len(match[2]))
        for match in (
            re.match(r"(  \S+ +)((?:host|claudebox)(?: --env)? +)\S", line) for line in block
        )
    }
    assert len(columns) == 1


def test_the_columns_of_the_head_are_aligned(sample):
    head = shown(sample).splitlines()[1:8]
    assert [line.split()[0] for line in head] == [
        "project",
        "git",
        "instance",
        "network",
        "limits",
        "profile",
        "command",
    ]
    assert {len(re.match(r"  \w+ +", line)[0]) for line in head} == {12}


def test_colours_do_not_move_the_columns(sample):
    def ink(_style, text):
        return f"\x1b[1m{text}\x1b[0m"

    coloured = audit.table(audit.report(sample, {}), ink)
    assert re.sub(r"\x1b\[[01]m", "", coloured) == shown(sample)


def test_a_plan_without_variables_can_be_shown(sample):
    sample["env"] = []
    assert "environment\nfiles\n" in shown(sample)


# ---------------------------------------------------------------------------- what cannot be drawn

# Each of these draws something else than itself, or nothing, or over its neighbour.
HOSTILE = {
    "escape": "\x1b[2J",
    "newline": "\n",
    "return": "\r",
    "tab": "\t",
    "backspace": "\b",
    "bell": "\a",
    "delete": "\x7f",
    "c1": "\x9b2J",
    "next line": "\x85",
    "right to left": "\u202e",
    "isolate": "\u2066",
    "left to right mark": "\u200e",
    "zero width space": "\u200b",
    "zero width joiner": "\u200d",
    "byte order mark": "\ufeff",
    "word joiner": "\u2060",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "soft hyphen": "\u00ad",
    "no-break space": "\u00a0",
    "combining": "a\u0336",
    "tag": "\U000e0041",
    "variation selector": "\ufe0f",
    "hangul filler": "\u3164",
    "private": "\ue000",
    "byte": "\udc9b",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_does_not_draw_itself_is_escaped(text):
    safe = printable(f"<{text}>")
    assert safe.startswith("<") and safe.endswith(">")
    assert "\\" in safe
    assert not set(safe) & (set(text) - set("a[2J"))


@pytest.mark.parametrize("text", ["plain", "größer", "日本語", "naïve…•", "a b", "ß→", "😀", "\\n"])
def test_what_draws_itself_is_left_alone(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("\n", "\\n"),
        ("\x1b", "\\x1b"),
        ("\x9b", "\\x9b"),
        ("\u202e", "\\u202e"),
        ("\U000e0041", "\\U000e0041"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
    ],
)
def test_an_escape_says_what_stood_there(text, escaped):
    assert printable(text) == escaped


def places(value, keys=()):
    """Yield the keys that lead to every string of a document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*keys, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*keys, index))
    elif isinstance(value, str):
        yield keys


def hostile_plans(sample):
    """Yield (keys, plan) for every string that the schema lets be anything."""
    sample["profile"] = {"name": "web", "chain": ["web", "base"]}
    for keys in places(sample):
        hostile = copy.deepcopy(sample)
        place = hostile
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] += "<\x1b[2J\r\u202e\u200b\x9b" + "\n" * 9 + ">"
        try:
            launch_plan.checked(hostile)
        except launch_plan.PlanError:
            continue
        yield keys, hostile


def test_no_field_of_a_plan_can_draw_on_the_terminal(sample, monkeypatch):
    monkeypatch.setattr(audit, "_project_warnings", lambda _root: [])
    clean = shown({**sample, "profile": {"name": "web", "chain": ["web", "base"]}})
    found = []
    tried = []
    for keys, hostile in hostile_plans(sample):
        tried.append(keys)
        text = shown(hostile)
        # Another directory or reason is a line or two more, never nine.
        lines = text.count("\n") - clean.count("\n")
        if re.search(r"[^\x20-\x7e\n…•→]", text) or lines >= 9:
            found.append(keys)
    assert len(tried) > 30
    assert found == []


def test_no_value_of_a_host_variable_can_draw_on_the_terminal(sample):
    for value in ("\x1b]0;x\a" + "a" * 40 + "\x1b[2J", "\n" * 40, "\u202e" * 9, "\udcff" * 20):
        text = shown(sample, {"TERM": value})
        assert not re.search(r"[^\x20-\x7e\n…•]", text)
        assert text.count("\n") == shown(sample).count("\n")


def test_no_name_of_a_file_can_draw_on_the_terminal(sample, project):
    before = shown(sample).count("\n")
    (project / "\x1b[2J\n\u202e.pem").write_text("")
    os.rename(project / "\x1b[2J\n\u202e.pem", os.fsencode(project) + b"/\xff\x1b[2J\n.pem")
    from claudebox import project as walker

    walker._walks.clear()
    text = shown(sample)
    assert not re.search(r"[^\x20-\x7e\n…•]", text)
    assert text.count("\n") == before + 1


# ---------------------------------------------------------------------------- colour


class Stream(io.StringIO):
    """A text stream that says whether it is a terminal, and in which encoding."""

    def __init__(self, terminal, encoding="utf-8"):
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    def isatty(self):
        return self._terminal

    @property
    def encoding(self):
        return self._encoding


@pytest.mark.parametrize(
    ("terminal", "environ", "coloured"),
    [
        (True, {}, True),
        (True, {"TERM": "xterm"}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": "0"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_there_is_colour_on_a_terminal_that_wants_it(terminal, environ, coloured):
    assert ("\x1b" in audit.Ink(Stream(terminal), environ)("warning", "x")) is coloured


def test_an_unknown_style_has_no_colour():
    assert audit.Ink(Stream(True), {})("plain", "x") == "x"


def test_the_audit_is_plain_ascii_where_the_terminal_knows_nothing_else(sample, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("TERM", "vt100")
    stream = Stream(False, "ascii")
    audit.show(sample, stream)
    assert stream.getvalue().isascii()
    assert "sk-ant-...3f2a (108 chars)" in stream.getvalue()


# ---------------------------------------------------------------------------- for machines


def test_the_json_of_the_audit_holds_everything_and_no_secret(sample, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    stream = Stream(True)
    audit.show(sample, stream, as_json=True)
    found = json.loads(stream.getvalue())
    assert KEY not in stream.getvalue() and stream.getvalue().isascii()
    assert found.keys() == {
        "project",
        "instance",
        "profile",
        "network",
        "limits",
        "nix",
        "command",
        "env",
        "packages",
        "mounts",
        "hidden",
        "warnings",
    }
    assert [v["name"] for v in found["env"]] == [v["name"] for v in sample["env"]]
    assert [m["target"] for m in found["mounts"]] == [m["target"] for m in sample["mounts"]]
    assert found["env"][1] == {
        "name": "ANTHROPIC_API_KEY",
        "source": "host",
        "value": "sk-ant-…3f2a (108 chars)",
        "secret": True,
    }
    assert {"rw", "ro"} == {m["mode"] for m in found["mounts"]}


def test_the_audit_changes_nothing_of_the_plan(sample):
    before = copy.deepcopy(sample)
    audit.report(sample, {"EXTRA": KEY})
    assert sample == before
    assert audit.gate(sample, True, Stream(False)) is sample


# ---------------------------------------------------------------------------- the question


def answer(typed, before=b""):
    """Run audit.ask on a terminal of its own with this typed in; return (answer, screen).

    `before` is typed before the question is asked.
    """
    wait, go = os.pipe()
    pid, terminal = pty.fork()
    if pid == 0:
        status = 70
        try:
            signal.alarm(10)
            os.read(wait, 1)
            status = 0 if audit.ask("Launch this?") else 1
        except Failure:
            status = 2
        finally:
            os._exit(status)
    screen = b""
    try:
        os.write(terminal, before)
        while before and b"\n" not in screen:
            # What the terminal shows it has taken in.
            screen += os.read(terminal, 1024)
        os.write(go, b".")
        while b"[y/N] " not in screen:
            screen += os.read(terminal, 1024)
        os.write(terminal, typed)
        _, status = os.waitpid(pid, 0)
        while select.select([terminal], [], [], 0)[0]:
            try:
                screen += os.read(terminal, 1024) or (_ for _ in ()).throw(OSError)
            except OSError:
                break
    finally:
        for descriptor in (terminal, wait, go):
            os.close(descriptor)
    return {0: True, 1: False}.get(os.waitstatus_to_exitcode(status)), screen


@pytest.mark.parametrize("typed", [b"y\n", b"Y\n", b"yes\n", b"YES\n", b"  y  \n"])
def test_y_and_yes_are_a_yes(typed):
    assert answer(typed)[0] is True


@pytest.mark.parametrize(
    "typed",
    [
        b"n\n",
        b"N\n",
        b"no\n",
        b"\n",
        b" \n",
        b"\x04",
        b"n\x04",
        b"yy\n",
        b"yess\n",
        b"yes please\n",
        b"ja\n",
        b"1\n",
        b"true\n",
        b"\xff\xfe\n",
        b"\xd0\xa3\n",
        b"q" * 2000 + b"\n",
    ],
)
def test_anything_else_is_a_no(typed):
    assert answer(typed)[0] is False


def test_what_was_typed_before_the_question_is_no_answer_to_it():
    assert answer(b"n\n", before=b"y\n")[0] is False
    assert answer(b"y\n", before=b"n\n")[0] is True


def test_the_question_says_that_no_is_the_default():
    assert b"Launch this? [y/N] " in answer(b"\n")[1]


def test_what_was_typed_is_shown_and_the_next_line_is_free():
    assert answer(b"\x04")[1].endswith(b"\r\n")


@pytest.fixture
def asked(bin_directory, scratch_environment, project, sample, tmp_path):
    """Run claudebox-audit with a plan on stdin and a terminal only to ask on."""

    def run(typed, *arguments):
        source = tmp_path / "plan.json"
        source.write_text(launch_plan.dumps(sample))
        passed = tmp_path / "passed.json"
        pid, terminal = pty.fork()
        if pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.alarm(20)
                os.dup2(os.open(source, os.O_RDONLY), 0)
                os.dup2(os.open(passed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
                os.chdir(project)
                program = str(bin_directory / "claudebox-audit")
                os.execve(program, [program, *arguments], scratch_environment)
            finally:
                os._exit(99)
        screen = b""
        try:
            while b"[y/N] " not in screen:
                screen += os.read(terminal, 4096)
            os.write(terminal, typed)
            try:
                while piece := os.read(terminal, 4096):
                    screen += piece
            except OSError:
                pass
            _, status = os.waitpid(pid, 0)
        finally:
            os.close(terminal)
        return os.waitstatus_to_exitcode(status), passed.read_text(), screen.decode()

    return run


def test_a_yes_passes_the_plan_on(asked, sample):
    status, passed, screen = asked(b"y\n")
    assert (status, passed) == (0, launch_plan.dumps(sample))
    assert "what will be visible inside" in screen and "\x1b[1m" in screen


@pytest.mark.parametrize("typed", [b"\n", b"\x04", b"maybe\n"])
def test_a_no_passes_nothing_on_and_ends_with_status_1(asked, typed):
    status, passed, screen = asked(typed)
    assert (status, passed) == (1, "")
    assert "not confirmed, so nothing was launched" in screen


def test_ctrl_c_at_the_question_ends_without_a_traceback(asked):
    status, passed, screen = asked(b"\x03")
    assert (status, passed) == (130, "")
    assert "claudebox: interrupted" in screen and "Traceback" not in screen


def test_without_a_terminal_the_gate_refuses_and_names_yes(run, sample):
    done = run("claudebox-audit", stdin=launch_plan.dumps(sample))
    assert (done.returncode, done.stdout) == (1, "")
    assert "what will be visible inside" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("claudebox: there is no terminal to ask on") and "--yes" in last


def test_without_a_terminal_and_with_yes_the_plan_is_passed_on(run, sample):
    done = run("claudebox-audit", "--yes", stdin=launch_plan.dumps(sample))
    assert (done.returncode, done.stdout) == (0, launch_plan.dumps(sample))
    assert "\x1b" not in done.stderr


def test_the_json_is_printed_instead_of_the_plan_and_nothing_is_asked(run, sample):
    done = run("claudebox-audit", "--json", stdin=launch_plan.dumps(sample))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["instance"] == sample["instance"]


def test_claudebox_without_a_terminal_launches_nothing_and_names_yes(run, home):
    done = run("claudebox")
    assert done.returncode == 1 and "--yes" in done.stderr.splitlines()[-1]
    assert not (home / ".claudebox").exists()


def test_the_question_is_answered_by_the_terminal_and_not_by_standard_input(run, sample):
    done = run("claudebox", stdin="y\n")
    assert done.returncode == 1 and "--yes" in done.stderr.splitlines()[-1]


def test_a_terminal_that_hangs_up_is_a_no(bin_directory, scratch_environment, project, sample):
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.alarm(20)
            status = 0 if audit.ask("Launch this?") else 1
        except Failure:
            status = 1
        finally:
            os._exit(status)
    while b"[y/N] " not in os.read(terminal, 1024):
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_a_terminal_that_listens_to_another_group_is_a_no_and_not_a_traceback():
    """A background group whose starter is gone gets EIO from the terminal, and no SIGTTOU."""
    reading, writing = os.pipe()
    pid, terminal = pty.fork()
    if pid == 0:
        if os.fork() == 0:
            os.setpgid(0, 0)
            starter = os.getpid()
            if os.fork() == 0:
                signal.alarm(20)
                while os.getppid() == starter:
                    time.sleep(0.01)
                try:
                    audit.ask("Launch this?")
                except BaseException as error:
                    os.write(writing, repr(error).encode())
            os._exit(0)
        os.close(writing)
        signal.alarm(30)
        signal.pause()
    os.close(writing)
    said = os.read(reading, 4096).decode()
    os.close(terminal)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert said.startswith("Failure(") and "could not be asked: Input/output error" in said


def test_the_audit_at_a_terminal_shows_and_passes_nothing_on(
    bin_directory, scratch_environment, project, sample, tmp_path
):
    source = tmp_path / "plan.json"
    source.write_text(launch_plan.dumps(sample))
    terminal, inside = pty.openpty()
    with open(source) as stdin:
        child = subprocess.Popen(
            [bin_directory / "claudebox-audit"],
            stdin=stdin,
            stdout=inside,
            stderr=subprocess.PIPE,
            env=scratch_environment,
            cwd=project,
            start_new_session=True,
        )
    os.close(inside)
    screen = b""
    try:
        while piece := os.read(terminal, 4096):
            screen += piece
    except OSError:
        pass
    os.close(terminal)
    assert child.communicate(timeout=20)[1] == b"" and child.returncode == 0
    assert b"what will be visible inside" in screen and b'"schema"' not in screen


# Written down a second time: one name for each pattern.
LOOK_LIKE_SECRETS = (
    ".env .env.production server.pem server.key a.p12 a.pfx a.jks a.keystore a.kdbx a.ovpn a.tfstate"
    " a.tfvars id_rsa id_dsa id_ecdsa id_ed25519 .netrc .npmrc .pypirc .htpasswd .git-credentials"
    " credentials credentials-x.json client_secret_1.json service-account-a.json secrets.yml"
    " secrets.yaml secrets.json"
).split()


@pytest.mark.parametrize("name", LOOK_LIKE_SECRETS)
def test_a_file_whose_name_looks_like_a_secret_is_found(project, name):
    (project / name).write_text("x")
    assert walker.walk(str(project))["secrets"] == [f"{project}/{name}"]


@pytest.mark.parametrize("name", [".env.example", ".env.sample", "environment", "keys", "pem.txt"])
def test_a_file_whose_name_does_not_is_passed_over(project, name):
    (project / name).write_text("x")
    assert walker.walk(str(project))["secrets"] == []


def test_a_long_name_of_a_file_cannot_fill_lines_of_its_own(home, project, sample):
    (project / ("x" * 200 + ".pem")).write_text("")
    text = audit.table(audit.report(sample), lambda _style, text: text)
    assert "x" * 119 + "…" in text and "x" * 120 not in text


def test_a_blank_of_braille_is_shown_as_an_escape():
    assert printable("a\u2800b") == "a\\u2800b"
