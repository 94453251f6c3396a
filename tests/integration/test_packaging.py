"""Installed by pip, the commands behave as they do in a checkout."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the bin directory of a virtual environment with claudebox in it."""
    base = tmp_path_factory.mktemp("installed")
    shutil.copytree(
        ROOT, base / "checkout", symlinks=True, ignore=shutil.ignore_patterns(".git", "__pycache__")
    )
    subprocess.run([PYTHON, "-m", "venv", base / "venv"], check=True)
    pip = [base / "venv/bin/python", "-m", "pip", "install", "--quiet", base / "checkout"]
    subprocess.run(pip, check=True, capture_output=True)
    return base / "venv/bin"


def test_every_command_of_the_checkout_is_installed(installed):
    commands = {path.name for path in (ROOT / "bin").iterdir()}
    assert commands == {path.name for path in installed.glob("claudebox*")}


@pytest.mark.parametrize(
    "arguments", [("plan",), ("plan", "--network", "none", "--shell"), ("--dry-run",)]
)
def test_an_installed_command_prints_what_the_checkout_prints(world, installed, arguments):
    ours = world.run("claudebox", *arguments)
    theirs = world.run(str(installed / "claudebox"), *arguments)
    assert ours.returncode == 0
    assert (theirs.stdout, theirs.stderr) == (ours.stdout, ours.stderr)


def test_an_installed_session_runs(world, installed):
    result = world.run(str(installed / "claudebox"), "-y", "--shell", "--", "-c", "echo works")
    assert result.stdout == "works\n"


def test_neither_directory_nor_python_variables_choose_what_is_imported(world, installed):
    for name in ("sitecustomize", "json", "argparse", "os", "re", "claudebox"):
        (world.project / f"{name}.py").write_text("raise SystemExit('planted')")
    planted = {"PYTHONPATH": str(world.project), "PYTHONSTARTUP": str(world.project / "json.py")}
    for command in ("claudebox", str(installed / "claudebox")):
        result = world.run(command, "--version", env=planted)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("claudebox ")


def test_the_manual_pages_are_installed_where_man_looks(installed):
    pages = {path.name for path in (ROOT / "man").iterdir()}
    found = {path.name for path in (installed.parent / "share/man").rglob("claudebox*")}
    assert found == pages


def test_the_manifest_names_the_packages_and_commands_that_there_are():
    import tomllib

    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for path in (ROOT / "claudebox").rglob("__init__.py")
    }
    assert set(tool["packages"]) == packages
    assert set(tool["script-files"]) == {f"bin/{path.name}" for path in (ROOT / "bin").iterdir()}
    assert sysconfig.get_python_version() >= "3.11"
