"""The commands as they are called: errors in one line, pipes, signals, subcommands, isolation."""

import fcntl
import glob
import io
import json
import os
import pty
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from claudebox import command, instance, main, net, profile
from claudebox import plan as launch_plan

FILTERS = [
    ["claudebox-profile", "apply"],
    ["claudebox-net", "apply"],
    ["claudebox-audit", "--yes"],
    ["claudebox-audit", "--json"],
    ["claudebox-run", "--dry-run"],
    ["claudebox-run", "-"],
]
WRITERS = [
    ["claudebox", "plan"],
    ["claudebox", "--dry-run"],
    ["claudebox", "--check"],
    ["claudebox", "--help"],
    ["claudebox-audit", "--yes"],
    ["claudebox-audit", "--json"],
    ["claudebox-run", "--dry-run"],
]


def planned(directory):
    """Return the plan that a default run in this directory would launch, made in this process."""
    return launch_plan.dumps(net.apply(profile.apply(instance.resolve(os.fsdecode(directory)))))


@pytest.fixture
def whole_plan(project):
    """The plan of the project, as text."""
    return planned(project)


@pytest.fixture
def call(monkeypatch, capsys, project):
    """Run a command in this process; what is told of it does not depend on the process around it."""

    def call_command(function, *words, stdin=b"", cwd=None):
        monkeypatch.chdir(cwd or project)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = command.run(function, list(words))
        output, error = capsys.readouterr()
        return subprocess.CompletedProcess(words, status, output, error)

    return call_command


# ---------------------------------------------------------------------------- one-line errors


MALFORMED = {
    "empty": ("", "there is no plan on standard input"),
    "blank": (" \n\n", "there is no plan on standard input"),
    "no JSON": ("no plan\n", "not a launch plan: line 1, column 1"),
    "half a plan": ('{"schema": "claudebox/1",\n', "not a launch plan: line 2, column 1"),
    "another document": ("[1, 2]", "not a launch plan: .: an object is needed"),
    "unknown key": (
        '{"schema": "claudebox/1", "x\\n": 1}',
        "not a launch plan: .x\\n: unknown key",
    ),
    "missing key": (
        '{"schema": "claudebox/1"}',
        "not a launch plan: .project: this key is missing",
    ),
    "wrong type": ('{"schema": 1}', "not a launch plan: .schema: "),
    "deep": ("[" * 200_000, "not a launch plan: "),
    "constant": ("NaN", "NaN"),
    "not UTF-8": (b"\xff{}", "not a launch plan: byte 0: not UTF-8"),
}


@pytest.mark.parametrize("words", FILTERS, ids=" ".join)
def test_every_filter_refuses_what_is_no_plan(call, is_one_line_error, words):
    function = main._subcommand(words[0].partition("-")[2])
    error = is_one_line_error(call(function, *words[1:], stdin=b"no plan\n"), 2)
    assert "not a launch plan: line 1, column 1" in error


@pytest.mark.parametrize("words", FILTERS, ids=" ".join)
def test_every_filter_refuses_an_empty_stdin(call, is_one_line_error, words):
    done = call(main._subcommand(words[0].partition("-")[2]), *words[1:])
    assert "there is no plan on standard input" in is_one_line_error(done, 2)
    assert done.stdout == ""


@pytest.mark.parametrize(("text", "says"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_plan_is_one_line_on_stderr(call, is_one_line_error, text, says):
    data = text if isinstance(text, bytes) else text.encode()
    done = call(net.main, "apply", stdin=data)
    assert says in is_one_line_error(done, 2)
    assert done.stdout == ""


def test_a_failure_at_the_head_of_a_pipe_is_told_by_every_stage(bin_directory, run):
    script = (
        f"cd / && {bin_directory}/claudebox-instance resolve"
        f" | {bin_directory}/claudebox-profile apply | {bin_directory}/claudebox-run -"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env={**os.environ},
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=20,
    )
    assert done.returncode == 2 and done.stdout == ""
    lines = sorted(done.stderr.splitlines())
    assert len(lines) == 3 and all(line.startswith("claudebox: ") for line in lines)
    assert "/ cannot be a project" in lines[0]


@pytest.mark.parametrize("words", FILTERS[1::2], ids=" ".join)
def test_a_closed_stdin_is_one_line_on_stderr(run, is_one_line_error, words):
    done = run(*words, stdin=None, preexec_fn=lambda: os.close(0))
    is_one_line_error(done)
    assert done.stdout == ""


@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_a_closed_stdout_is_one_line_on_stderr(run, is_one_line_error, whole_plan, words):
    done = run(*words, stdin=whole_plan, stdout=None, preexec_fn=lambda: os.close(1))
    if words[-1] == "--help" and done.returncode == 0:
        # argparse falls back to stderr.
        assert "claudebox" in done.stderr and "Traceback" not in done.stderr
    elif words == ["claudebox-audit", "--yes"]:
        # The audit itself goes to stderr.
        assert done.returncode != 0 and "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("claudebox: ")
    else:
        is_one_line_error(done)


@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_a_closed_pipe_is_one_line_on_stderr(run, is_one_line_error, whole_plan, words):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(*words, stdin=whole_plan, stdout=writer)
    os.close(writer)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("claudebox: standard output was closed: ")


@pytest.mark.parametrize("words", WRITERS[:4], ids=" ".join)
def test_a_full_disk_is_one_line_on_stderr(run, whole_plan, words):
    with open("/dev/full", "w") as full:
        done = run(*words, stdin=whole_plan, stdout=full)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("claudebox: No space left on device: ")


@pytest.mark.parametrize("words", WRITERS[-4:-1], ids=" ".join)
def test_a_closed_stderr_changes_nothing_of_what_is_written(run, whole_plan, words):
    usual = run(*words, stdin=whole_plan)
    done = run(*words, stdin=whole_plan, stderr=None, preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (usual.returncode, usual.stdout)


def test_with_everything_closed_a_command_just_fails(run):
    done = run(
        "claudebox",
        "plan",
        stdin=None,
        stdout=None,
        stderr=None,
        preexec_fn=lambda: os.closerange(0, 3),
    )
    assert done.returncode == 2


def test_a_pipe_that_closes_early_ends_the_whole_pipeline(bin_directory, project):
    commands = f"{bin_directory}/claudebox plan | {bin_directory}/claudebox-net apply | true"
    done = subprocess.run(
        [shutil.which("bash"), "-o", "pipefail", "-c", commands],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("path", ["/nonexistent", "/etc/hostname", "a/b"])
def test_a_directory_that_is_none_is_refused_by_its_name(call, is_one_line_error, path):
    error = is_one_line_error(call(instance.main, "resolve", path), 1)
    assert f"{path} is not a directory" in error


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every directory")
def test_a_project_without_permission_is_one_line(call, is_one_line_error, project):
    project.chmod(0o000)
    try:
        done = call(instance.main, "resolve", str(project), cwd="/")
    finally:
        project.chmod(0o700)
    assert "Permission denied" in is_one_line_error(done, 1)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("/nonexistent", "the home directory /nonexistent is not there"),
        ("/", "home directory is /"),
    ],
)
def test_a_home_directory_that_is_none_is_one_line(
    call, is_one_line_error, monkeypatch, value, says
):
    monkeypatch.setenv("HOME", value)
    assert says in is_one_line_error(call(main.print_plan), 1)


@pytest.mark.parametrize("place", ["/", "/tmp", "/etc", "HOME", "HOME/..", "HOME/.ssh"])
def test_a_place_that_would_expose_secrets_is_refused(call, is_one_line_error, home, place):
    (home / ".ssh").mkdir()
    done = call(main.print_plan, cwd=place.replace("HOME", str(home)))
    assert "cannot be a project: it " in is_one_line_error(done, 1)


def test_an_error_cannot_draw_on_the_terminal(run, is_one_line_error, project):
    hostile = project / "a\x1b[2J\r\n\u202eb"
    hostile.mkdir()
    (hostile / ".git").symlink_to("/nowhere")
    error = is_one_line_error(run("claudebox", "plan", cwd=hostile), 1)
    assert error.rstrip("\n").isprintable()
    assert "a\\x1b[2J\\r\\n\\u202eb" in error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("main --no-such-option", "unrecognized arguments: --no-such-option"),
        ("main --netwrk none", "unrecognized arguments"),
        ("plan surplus", "unrecognized arguments: surplus"),
        ("plan --env", "expected one argument"),
        ("instance", "required"),
        ("instance destroy", "invalid choice"),
        ("net apply none full", "unrecognized arguments: full"),
        ("audit --quiet", "unrecognized arguments: --quiet"),
        ("run plan.json", "invalid choice"),
    ],
)
def test_wrong_usage_is_one_line_with_status_2(call, is_one_line_error, words, says):
    name, *rest = words.split()
    function = main.main if name == "main" else main._subcommand(name)
    error = is_one_line_error(call(function, *rest), 2)
    assert says in error and "--help" in error


@pytest.mark.parametrize(
    ("words", "env", "says", "status"),
    [
        (
            ["--network", "ful"],
            {},
            '"ful" (command line) is not a network tier (did you mean "f',
            2,
        ),
        ([], {"CLAUDEBOX_NETWORK": "of"}, '"of" (CLAUDEBOX_NETWORK) is not a network tier', 2),
        (["--env", "A=B"], {}, '--env "A=..." is not the name of a variable', 2),
        (["--env", ""], {}, "is not the name of a variable", 2),
        (["--env", "LD_PRELOAD"], {"LD_PRELOAD": ""}, "--env LD_PRELOAD is refused", 1),
        (["--env", "BASH_ENV"], {"BASH_ENV": "x"}, "--env BASH_ENV is refused", 1),
        (["--env", "HOME"], {}, "--env HOME is refused: claudebox sets it", 1),
        (["--profile", "nosuch"], {}, '"nosuch"', None),
        ([], {"CLAUDEBOX_PROFILE": "nosuch"}, '"nosuch"', None),
        (["--profile", "../x"], {}, '"../x" is not a profile', 2),
        (["--profile", ""], {}, '"" is not a profile', 2),
        (["--mount", "docs"], {}, '--mount "docs": .path: "docs": an absolute path is needed', 2),
        (["--mount", "~/.ssh"], {}, '--mount "~/.ssh": No such file', 1),
        (["--hide", "../x"], {}, '--hide "../x": a pattern is relative to the project', 2),
        (["--repo"], {}, "is not in a git repository", 2),
    ],
)
def test_an_option_that_cannot_be_obeyed_is_one_line(
    call, is_one_line_error, monkeypatch, words, env, says, status
):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert says in is_one_line_error(call(main.print_plan, *words), status)


EXECUTABLES = sorted(glob.glob(os.path.dirname(__file__) + "/../../bin/claudebox*"))


@pytest.mark.parametrize("file", EXECUTABLES, ids=os.path.basename)
def test_every_command_has_help_and_a_version(capsys, file):
    assert not main.entry([file, "--help"])
    assert capsys.readouterr().out.startswith("usage: ")
    assert not main.entry([file, "--version"])
    assert capsys.readouterr().out.startswith("claudebox ")


def test_the_executables_differ_in_their_names_only():
    assert len(EXECUTABLES) >= 7
    contents = set()
    for file in EXECUTABLES:
        assert os.access(file, os.X_OK)
        with open(file, "rb") as executable:
            contents.add(executable.read())
    assert len(contents) == 1


# ---------------------------------------------------------------------------- signals


def default_sigint():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("words", FILTERS[1::2], ids=" ".join)
def test_ctrl_c_while_waiting_for_a_plan_is_one_line(
    bin_directory, project, is_one_line_error, words
):
    child = subprocess.Popen(
        [bin_directory / words[0], *words[1:]],
        cwd=project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=default_sigint,
    )
    try:
        child.stdin.write(b"{")
        child.stdin.flush()
        deadline = time.monotonic() + 10
        # It has read the beginning and waits for the rest.
        while fcntl.ioctl(child.stdin, termios.FIONREAD, bytes(4)) != struct.pack("i", 0):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGINT)
        child.wait(10)
        done = subprocess.CompletedProcess(words, child.returncode, "", child.stderr.read())
    finally:
        child.kill()
        child.stdin.close()
        child.stdout.close()
        child.wait()
    error = is_one_line_error(done, 130)
    child.stderr.close()
    assert error == "claudebox: interrupted: nothing was launched\n"


def test_ctrl_c_at_the_question_of_claudebox_launches_nothing(
    bin_directory, scratch_environment, project, home
):
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            default_sigint()
            signal.alarm(20)
            os.chdir(project)
            program = str(bin_directory / "claudebox")
            os.execve(program, [program], scratch_environment)
        finally:
            os._exit(99)
    screen = b""
    while b"[y/N] " not in screen:
        screen += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    try:
        while piece := os.read(terminal, 4096):
            screen += piece
    except OSError:
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert b"claudebox: interrupted: nothing was launched" in screen
    assert b"Traceback" not in screen
    assert not (home / ".claudebox").exists()


# ---------------------------------------------------------------------------- subcommands


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def dispatcher(bin_directory):
    """Return `claudebox` as a function of its words."""
    return lambda words: main.main(words, f"{bin_directory}/claudebox")


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("instnace", "instance"),
        ("audti", "audit"),
        ("plna", "plan"),
        ("rnu", "run"),
        ("hlep", "help"),
    ],
)
def test_an_unknown_subcommand_suggests_the_nearest(
    call, is_one_line_error, bin_directory, word, nearest
):
    error = is_one_line_error(call(dispatcher(bin_directory), word), 2)
    assert f'"{word}" is not a claudebox subcommand (did you mean "{nearest}"?)' in error


@pytest.mark.parametrize("word", ["zzzzzz", "", "../../bin/sh", "-"])
def test_an_unknown_subcommand_that_resembles_none_suggests_none(
    call, is_one_line_error, bin_directory, word
):
    error = is_one_line_error(call(dispatcher(bin_directory), word), 2)
    assert "did you mean" not in error


def test_a_program_on_path_is_a_subcommand(run, tools):
    script(tools / "claudebox-foo", 'echo "foo:$#:$1:$2"; exit 7')
    done = run("claudebox", "foo", "a b", "--yes")
    assert (done.returncode, done.stdout, done.stderr) == (7, "foo:2:a b:--yes\n", "")


def test_a_program_on_path_is_suggested_too(run, is_one_line_error, tools):
    script(tools / "claudebox-frobnicate", "")
    error = is_one_line_error(run("claudebox", "frobnicat"), 2)
    assert '"frobnicat" is not a claudebox subcommand (did you mean "frobnicate"?)' in error


def test_the_programs_of_claudebox_itself_come_before_those_on_path(run, tools):
    script(tools / "claudebox-plan", "echo mine")
    assert json.loads(run("claudebox", "plan").stdout)["schema"] == "claudebox/1"


def test_a_directory_or_a_plain_file_on_path_is_no_subcommand(run, is_one_line_error, tools):
    (tools / "claudebox-foo").mkdir()
    (tools / "claudebox-bar").write_text("#!/bin/sh\necho ran\n")
    for word in ("foo", "bar"):
        error = is_one_line_error(run("claudebox", word), 2)
        assert f'"{word}" is not a claudebox subcommand' in error


@pytest.mark.parametrize("path", [".", "", "sub"])
def test_a_relative_directory_on_path_is_not_searched(
    run, is_one_line_error, project, scratch_environment, path
):
    (project / "sub").mkdir()
    for directory in (project, project / "sub"):
        script(directory / "claudebox-foo", "echo ran")
    done = run("claudebox", "foo", env={"PATH": f"{path}:{scratch_environment['PATH']}"})
    is_one_line_error(done, 2)
    assert done.stdout == ""


@pytest.mark.parametrize(("words", "page"), [([], "claudebox"), (["audit"], "claudebox-audit")])
def test_help_opens_the_manual_page(call, bin_directory, monkeypatch, words, page):
    opened = []

    def execute(_program, argv):
        opened.append(os.path.basename(argv[-1]).removesuffix(".1"))
        raise SystemExit(0)

    monkeypatch.setattr(main.os, "execv", execute)
    monkeypatch.setattr("claudebox.host.find_program", lambda *_: "/usr/bin/man")
    assert call(dispatcher(bin_directory), "help", *words).returncode == 0
    assert opened == [page]


# ---------------------------------------------------------------------------- isolation


@pytest.fixture
def traps(project, tmp_path):
    """Modules in the project that leave a mark when they are imported."""
    mark = tmp_path / "mark"
    body = f"open({str(mark)!r}, 'a').write(__name__ + '\\n')\nraise SystemExit(77)\n"
    for name in (
        "argparse json os sys re site sitecustomize usercustomize codecs encodings io posixpath"
        " genericpath _sha256 _sha2 unicodedata difflib base64 struct startup"
    ).split():
        (project / f"{name}.py").write_text(body)
    for package in ("claudebox", "encodings", "json"):
        (project / package).mkdir()
        (project / package / "__init__.py").write_text(body)
    script(project / "python3", f"echo python3 >>'{mark}'")
    script(project / "claudebox-plan", f"echo claudebox-plan >>'{mark}'")
    return mark


def test_the_directory_where_a_command_starts_does_not_choose_its_modules(run, traps, project):
    done = run("claudebox", "plan")
    assert (done.returncode, done.stdout, done.stderr) == (0, planned(project), "")
    assert not traps.exists()


def test_the_python_variables_do_not_matter(run, traps, project):
    variables = {
        "PYTHONPATH": str(project),
        "PYTHONHOME": "/nonexistent",
        "PYTHONSTARTUP": f"{project}/startup.py",
        "PYTHONUSERBASE": str(project),
        "PYTHONINSPECT": "1",
        "PYTHONVERBOSE": "1",
        "PYTHONDEBUG": "1",
        "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": "utf-16",
        "PYTHONUTF8": "0",
        "PYTHONPLATLIBDIR": str(project),
        "PYTHONEXECUTABLE": f"{project}/python3",
        "PYTHONBREAKPOINT": "startup.x",
        "PYTHONPROFILEIMPORTTIME": "1",
        "PYTHONDEVMODE": "1",
        "PYTHONTRACEMALLOC": "9",
        "PYTHONMALLOC": "debug",
        "PYTHONHASHSEED": "nonsense",
        "PYTHONCOERCECLOCALE": "warn",
    }
    done = run("claudebox", "plan", env=variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, planned(project), "")
    assert not traps.exists()


@pytest.mark.skipif(not glob.glob("/usr/bin/python3.1[1-9]"), reason="there is no system Python")
def test_a_python_of_the_project_on_path_is_not_run(run, traps, project, scratch_environment):
    done = run("claudebox", "plan", env={"PATH": f"{project}:{scratch_environment['PATH']}"})
    assert done.returncode == 0
    assert not traps.exists()


def test_a_command_works_from_its_own_directory_and_through_a_link(
    run, bin_directory, project, tmp_path
):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "claudebox").symlink_to(bin_directory / "claudebox")
    expected = planned(project)
    relative = os.path.relpath(bin_directory / "claudebox", project)
    for program in (relative, f"{tmp_path}/linked/claudebox"):
        done = subprocess.run(
            [program, "plan"], cwd=project, capture_output=True, text=True, timeout=20
        )
        assert (done.stdout, done.stderr) == (expected, "")


@pytest.mark.parametrize("locale", ["C", "nonsense", "en_US.ISO-8859-1"])
def test_the_locale_does_not_change_the_plan(run, tmp_path, monkeypatch, locale):
    monkeypatch.setenv("LC_ALL", locale)
    place = os.fsencode(tmp_path) + b"/caf\xc3\xa9 \xff"
    os.mkdir(place)
    done = run("claudebox-plan", cwd=place, env={"LC_ALL": locale})
    assert (done.returncode, done.stdout, done.stderr) == (0, planned(place), "")


# ---------------------------------------------------------------------------- the pipeline


PIPELINES = {
    "plain": ([], [], []),
    "env": (["--env", "MY_TOKEN"], [], []),
    "network": ([], ["none"], []),
    "everything": (["--env", "MY_TOKEN"], ["none"], ["--shell"]),
}


def through_the_shell(bin_directory, cwd, profile, network, place, inside=()):
    """Return what the three filters make in a pipe of the shell."""
    end = ["--", *inside] if inside else []
    stages = [
        ["claudebox-instance", "resolve", *place, *end],
        ["claudebox-profile", "apply", *profile],
        ["claudebox-net", "apply", *network],
    ]
    line = " | ".join(shlex.join([f"{bin_directory}/{name}", *words]) for name, *words in stages)
    return subprocess.run(
        [shutil.which("bash"), "-o", "pipefail", "-c", line],
        cwd=cwd,
        capture_output=True,
        timeout=20,
    )


def in_one_process(bin_directory, cwd, profile, network, place, inside=()):
    """Return what `claudebox plan` makes with the same options."""
    words = [*place, *profile, *(["--network", *network] if network else [])]
    return subprocess.run(
        [bin_directory / "claudebox-plan", *words, *(["--", *inside] if inside else [])],
        cwd=cwd,
        capture_output=True,
        timeout=20,
    )


def assert_equal(bin_directory, cwd, *options, **named):
    pipe = through_the_shell(bin_directory, cwd, *options, **named)
    one = in_one_process(bin_directory, cwd, *options, **named)
    assert (pipe.stderr, pipe.returncode) == (one.stderr, one.returncode) == (b"", 0)
    assert pipe.stdout == one.stdout
    plan = launch_plan.loads(one.stdout.decode())
    assert launch_plan.dumps(plan).encode() == one.stdout
    return plan


@pytest.mark.parametrize("options", PIPELINES.values(), ids=PIPELINES.keys())
def test_the_pipeline_and_the_plan_of_one_process_are_the_same_bytes(
    bin_directory, project, repository, monkeypatch, options
):
    monkeypatch.setenv("MY_TOKEN", "ghp_secret")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret")
    repository(project)
    plan = assert_equal(bin_directory, project, *options)
    assert plan["network"]["tier"] == (options[1] or ["full"])[0]
    assert ("MY_TOKEN" in [v["name"] for v in plan["env"]]) == ("MY_TOKEN" in options[0])
    assert "secret" not in json.dumps([v.get("value") for v in plan["env"]])


@pytest.mark.parametrize("by", ["option", "environment"])
def test_they_are_the_same_with_a_profile(
    bin_directory, project, repository, home, monkeypatch, by
):
    repository(project)
    for name in (".env", "a/.env", "keys/one"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("canary")
    (home / "docs").mkdir()
    profiles = home / ".claudebox/profiles"
    profiles.mkdir(parents=True)
    for path in (profiles, profiles.parent):
        path.chmod(0o700)
    documents = {
        "base": {"network": "none", "hide": ["keys/"], "env": ["MY_*"]},
        "web": {
            "extends": "base",
            "set": {"NODE_ENV": "development"},
            "env": ["NOT_THERE"],
            "hide": [".env"],
            "mounts": [{"path": "~/docs", "mode": "rw", "target": "~/d"}],
            "limits": {"memory": "1G"},
            "claude_args": ["--model", "opus"],
        },
    }
    for name, document in documents.items():
        (profiles / f"{name}.json").write_text(json.dumps(document))
        (profiles / f"{name}.json").chmod(0o600)
    monkeypatch.setenv("MY_TOKEN", "ghp_secret")
    options = ["--mount", "~/docs:/srv/docs", "--hide", "a", "--env", "TZ"]
    words = {"pipe": options, "one": options}
    if by == "environment":
        monkeypatch.setenv("CLAUDEBOX_PROFILE", "web")
    else:
        words = {"pipe": [*options, "web"], "one": [*options, "--profile", "web"]}
    inside = ["--continue"]
    pipe = through_the_shell(bin_directory, project, words["pipe"], [], [], inside)
    one = in_one_process(bin_directory, project, words["one"], [], [], inside)
    assert (pipe.stderr, pipe.returncode) == (one.stderr, one.returncode) == (b"", 0)
    assert pipe.stdout == one.stdout
    plan = launch_plan.loads(one.stdout.decode())
    assert launch_plan.dumps(plan).encode() == one.stdout
    assert plan["network"] == {"tier": "none", "source": "profile web"}
    assert plan["profile"] == {"name": "web", "chain": ["web", "base"]}
    assert plan["command"][2:] == ["--model", "opus", "--continue"]
    assert [p["pattern"] for p in plan["hide"]] == ["keys/", ".env", "a"]


def test_they_are_the_same_for_a_whole_repository_with_arguments_for_the_program_inside(
    bin_directory, project, repository
):
    repository(project)
    (project / "below").mkdir()
    inside = ["-c", "echo 'a b' -- $X", "--", ""]
    plan = assert_equal(
        bin_directory, project / "below", [], [], ["--repo", "--shell"], inside=inside
    )
    assert plan["project"]["root"] == str(project)
    assert plan["project"]["cwd"] == f"{project}/below"
    assert plan["command"][1:] == inside


@pytest.mark.parametrize("name", [b"a b\n'$(x)\"\\", b"-y \xc3\xa9 \xe9"])
def test_they_are_the_same_for_a_linked_worktree_with_an_unusual_name(
    bin_directory, project, repository, git, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("CLAUDEBOX_NETWORK", "none")
    monkeypatch.setenv("CLAUDEBOX_HOME", str(tmp_path / "state"))
    repository(project)
    place = os.fsencode(tmp_path) + b"/" + name
    git(project, "worktree", "add", "-q", "-b", "side", os.fsdecode(place))
    plan = assert_equal(bin_directory, place, [], [], [])
    assert os.fsencode(plan["project"]["root"]) == place
    assert plan["project"]["git"]["worktree"] is True
    assert plan["instance"]["root"] == str(project)
    assert plan["instance"]["path"].startswith(f"{tmp_path}/state/")
    assert plan["network"] == {"tier": "none", "source": "CLAUDEBOX_NETWORK"}


def test_the_plan_is_the_same_every_time(project):
    assert planned(project) == planned(project)


def test_the_command_line_wins_over_the_environment(call, monkeypatch):
    monkeypatch.setenv("CLAUDEBOX_NETWORK", "full")
    done = call(main.print_plan, "--network", "none")
    assert json.loads(done.stdout)["network"] == {"tier": "none", "source": "command line"}


def test_an_empty_setting_of_the_environment_is_none(call, monkeypatch):
    monkeypatch.setenv("CLAUDEBOX_NETWORK", "")
    monkeypatch.setenv("CLAUDEBOX_PROFILE", "")
    done = call(main.print_plan)
    assert json.loads(done.stdout)["network"] == {"tier": "full", "source": "default"}


def test_a_variable_that_the_host_does_not_have_is_noted_and_left_out(call):
    plan = json.loads(call(main.print_plan, "--env", "NOT_THERE").stdout)
    assert "NOT_THERE" not in [v["name"] for v in plan["env"]]
    assert plan["notes"] == ["--env NOT_THERE: the host does not have this variable"]


def test_a_variable_that_is_asked_for_is_marked_in_the_plan(call, monkeypatch):
    monkeypatch.setenv("MINE", "value")
    done = call(main.print_plan, "--env", "MINE", "--env", "MINE")
    plan = json.loads(done.stdout)
    mine = [v for v in plan["env"] if v["name"] == "MINE"]
    assert mine == [{"name": "MINE", "source": "host", "reason": "--env"}]
    assert "value" not in [v.get("value") for v in plan["env"]]


def test_a_plan_passes_through_the_filters_unchanged_the_second_time(call, whole_plan):
    for function in (profile.main, net.main):
        assert call(function, "apply", stdin=whole_plan.encode()).stdout == whole_plan


def test_making_a_plan_changes_nothing_on_the_host(run, home, project):
    run("claudebox", "plan")
    assert not (home / ".claudebox").exists()
    assert os.listdir(project) == []
