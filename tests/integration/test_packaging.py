"""Installed by pip, the commands behave as they do in a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return what pip makes of the checkout."""
    base = tmp_path_factory.mktemp("built")
    shutil.copytree(
        ROOT, base / "checkout", symlinks=True, ignore=shutil.ignore_patterns(".git", "__pycache__")
    )
    words = ("wheel", "--quiet", "--no-deps", "--wheel-dir", base, base / "checkout")
    subprocess.run([PYTHON, "-m", "pip", *words], check=True, capture_output=True)
    (path,) = base.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
    """Return the bin directory of a virtual environment with claudebox in it."""
    base = tmp_path_factory.mktemp("installed")
    subprocess.run([PYTHON, "-m", "venv", base / "venv"], check=True)
    pip = [base / "venv/bin/python", "-m", "pip", "install", "--quiet", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return base / "venv/bin"


def install(wheel, home, *options):
    """Install the wheel with the system's own Python, as a user does who is told to."""
    words = ("install", "--quiet", "--no-index", "--no-warn-script-location", *options, wheel)
    # Debian's pip refuses without the first one; others do not know it.
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PIP_BREAK_SYSTEM_PACKAGES": "1"}
    subprocess.run([PYTHON, "-m", "pip", *words], check=True, capture_output=True, env=environment)


def manual(world, *words, path):
    """Return what man(1) prints with nothing but PATH to go by; claude is on it, too."""
    claude = os.path.dirname(shutil.which("claude"))
    environment = {"PATH": f"{path}:{claude}:/usr/bin:/bin", "MANPAGER": "cat", "MANWIDTH": "80"}
    return world.run(*words, env={**environment, "MANPATH": ""})


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


def test_man_finds_the_pages_right_after_an_installation_in_a_virtual_environment(world, installed):
    for page in sorted((ROOT / "man").iterdir()):
        name, _, section = page.name.rpartition(".")
        result = manual(world, "man", "-w", section, name, path=installed)
        assert result.stdout == f"{installed.parent}/share/man/man{section}/{page.name}\n"
    result = manual(world, "man", "claudebox", path=installed)
    assert (result.returncode, result.stderr) == (0, "")
    assert "run Claude Code in a bubblewrap sandbox" in result.stdout


def test_man_finds_the_pages_right_after_an_installation_for_the_user(world, wheel):
    install(wheel, world.home, "--user")
    local = world.home / ".local"
    result = manual(world, "man", "-w", "claudebox-doctor", path=local / "bin")
    assert result.stdout == f"{local}/share/man/man1/claudebox-doctor.1\n"
    result = manual(world, "claudebox", "plan", "--shell", path=local / "bin")
    assert (result.returncode, result.stderr) == (0, "")


def test_an_installation_for_everybody_puts_each_file_where_it_is_looked_for(world, wheel):
    install(wheel, world.home, "--root", str(world.home / "root"))
    prefix = world.home / "root/usr/local"
    if not prefix.exists():
        # A Python that is not Debian's.
        prefix = world.home / "root/usr"
    assert os.access(prefix / "bin/claudebox", os.X_OK)
    for file in (
        "share/man/man1/claudebox.1",
        "share/man/man5/claudebox-plan.5",
        "share/bash-completion/completions/claudebox",
        "share/bash-completion/completions/claudebox-run",
        "share/zsh/site-functions/_claudebox",
        "share/fish/vendor_completions.d/claudebox.fish",
        "share/fish/vendor_completions.d/claudebox-run.fish",
    ):
        assert (prefix / file).is_file(), file
    result = manual(world, "man", "-w", "claudebox", path=prefix / "bin")
    assert result.stdout == f"{prefix}/share/man/man1/claudebox.1\n"


@pytest.mark.parametrize("words", [(), ("doctor",), ("5", "plan"), ("claudebox-net",)])
def test_help_opens_the_page_of_the_very_installation_also_when_path_does_not_lead_there(
    world, installed, words
):
    for place, program in ((ROOT, ROOT / "bin"), (installed.parent / "share", installed)):
        result = manual(world, str(program / "claudebox"), "help", *words, path="/nowhere")
        assert (result.returncode, result.stderr) == (0, ""), place
        name = words[-1] if words else "claudebox"
        name = name if name.startswith("claudebox") else f"claudebox-{name}"
        assert result.stdout.startswith(f"{name.upper()}({'5' if '5' in words else '1'})")


def test_help_says_what_to_do_for_a_page_that_is_not_there(world, installed):
    result = manual(world, str(installed / "claudebox"), "help", "nothing", path="/nowhere")
    assert result.returncode != 0 and "claudebox-nothing" in result.stderr


def test_the_completions_are_installed_where_the_shells_look(installed):
    share = installed.parent / "share"
    names = {path.name for path in (ROOT / "bin").iterdir()}
    bash = share / "bash-completion/completions"
    assert {path.name for path in bash.iterdir()} == names
    assert {path.name for path in (share / "fish/vendor_completions.d").iterdir()} == {
        f"{name}.fish" for name in names
    }
    source = ROOT / "claudebox/completions"
    assert (bash / "claudebox-run").read_text() == (source / "claudebox.bash").read_text()
    zsh = share / "zsh/site-functions/_claudebox"
    assert zsh.read_text() == (source / "_claudebox").read_text()


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
