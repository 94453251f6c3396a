"""What a default launch does, counted: a guard against slow creep that no timing can give."""

import re

import pytest
from scratch import BIN

PYTHON = ("/usr/bin/python3", "-I", "-S")
LAUNCH = ("-y", "--shell", "--", "-c", "true")
# Each of these costs a launch some ms; all are for errors, for help, or for other commands.
SLOW_MODULES = {
    *("argparse", "re", "enum", "json", "subprocess", "typing", "dataclasses", "pathlib"),
    *("tempfile", "shutil", "signal", "socket", "ctypes", "hashlib", "gettext", "logging"),
    *("functools", "collections", "contextlib", "threading", "selectors", "site"),
}


def traced(world, log, *command):
    """Return (process, line) of every execve and openat of a command line."""
    world.run("strace", "-f", "-o", str(log), "-e", "trace=execve,openat", *command)
    lines = [line.split(maxsplit=1) for line in log.read_text().splitlines()]
    return [(pid, text) for pid, text in lines if text.startswith(("execve(", "openat("))]


def imported(world, command, *arguments, **options):
    """Return the modules that a command line imports, in a process of its own."""
    done = world.run(*PYTHON, "-X", "importtime", str(BIN / command), *arguments, **options)
    return re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)


def test_a_second_launch_starts_bwrap_the_gate_and_nothing_else(repository, tmp_path):
    repository.inside("true")
    calls = traced(repository, tmp_path / "log", "claudebox", *LAUNCH)
    programs = [text.split('"')[1] for _, text in calls if text.startswith("execve(")]
    assert programs == [
        *(programs[0], "/usr/bin/python3", "/usr/bin/bwrap"),
        *("/usr/bin/env", "/bin/sh", "/bin/bash"),
    ]


def test_the_launcher_opens_few_files(repository, tmp_path):
    repository.inside("true")
    calls = traced(repository, tmp_path / "log", "claudebox", *LAUNCH)
    launcher = calls[0][0]
    opened = [text for pid, text in calls if pid == launcher and text.startswith("openat(")]
    # Half of them are the components of what is mounted, opened one by one.
    assert len(opened) < 280, len(opened)


def test_what_can_be_done_while_bwrap_works_is_not_done_before(repository, tmp_path):
    repository.inside("true")
    calls = traced(repository, tmp_path / "log", "claudebox", *LAUNCH)
    launcher = calls[0][0]
    begin = next(number for number, (pid, _) in enumerate(calls) if pid != launcher)
    before = [text for _, text in calls[:begin] if text.startswith("openat(")]
    assert len(before) < 220, len(before)
    for module in ("audit", "enforcement", "watch"):
        name = f"/{module}.cpython-"
        assert not any(name in text for text in before), module
        assert any(name in text for _, text in calls[begin:]), module


def test_a_launch_imports_no_module_that_is_slow_to_import(repository):
    repository.inside("true")
    modules = imported(repository, "claudebox", *LAUNCH)
    assert "claudebox.run" in modules
    assert SLOW_MODULES & set(modules) == set()
    assert len(modules) < 70, len(modules)


@pytest.mark.parametrize(
    "stage",
    [
        ("claudebox-instance", "resolve"),
        ("claudebox-profile", "apply"),
        ("claudebox-net", "apply"),
        ("claudebox-audit", "-y"),
        ("claudebox-run", "--dry-run", "-"),
    ],
    ids=lambda stage: stage[0],
)
def test_a_stage_of_the_pipeline_imports_no_module_that_is_slow_to_import(world, tmp_path, stage):
    (tmp_path / "plan").write_text(world.run("claudebox-instance", "resolve").stdout)
    with open(tmp_path / "plan") as plan:
        modules = imported(world, *stage, stdin=plan)
    assert "claudebox.plan" in modules
    slow = SLOW_MODULES - {"re", "enum", "functools", "collections"}
    # Only --dry-run, for people, quotes with regular expressions.
    assert (slow if "--dry-run" in stage else SLOW_MODULES) & set(modules) == set()
