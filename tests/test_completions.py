"""The completions, held against the argument parsers and asked by the shells themselves."""

import importlib.util
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPLETIONS = ROOT / "claudebox/completions"
PATH = f"{ROOT}/bin:/usr/bin:/bin"

_specification = importlib.util.spec_from_file_location("make", COMPLETIONS / "make.py")
make = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(make)

COMMANDS = [f"claudebox-{name}" for name in make.main.COMMANDS]


# ---------------------------------------------------------------------------- the table


@pytest.mark.parametrize("file", make.FILES)
def test_the_table_is_what_the_parsers_say(file):
    text = (COMPLETIONS / file).read_text()
    assert text == make.with_table(text), "run claudebox/completions/make.py"


@pytest.mark.parametrize("file", make.FILES)
@pytest.mark.parametrize("name", ["claudebox", *COMMANDS])
def test_every_option_and_action_of_a_command_stands_in_every_completion(file, name):
    # Read from the file alone, not by way of what made it.
    table = [line.split("|") for line in (COMPLETIONS / file).read_text().splitlines()]
    table = [row for row in table if len(row) == 4]
    command = name.replace("-", " ")
    parser = make.parser_of(name)
    inner = [action for action in parser._actions if hasattr(action, "add_parser")]
    parsers = {command: parser}
    for action in inner:
        parsers |= {f"{command} {each}": one for each, one in action.choices.items()}
    for place, one in parsers.items():
        has = {word for row in table if row[0] == place for word in row[1].split()}
        wanted = {word for action in one._actions for word in action.option_strings}
        wanted |= {place_[len(place) + 1 :] for place_ in parsers if place_.startswith(place + " ")}
        assert wanted - has == set()


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_every_command_has_the_file_that_the_shell_looks_for(shell):
    ending = ".fish" if shell == "fish" else ""
    expected = {f"{name}{ending}" for name in ("claudebox", *COMMANDS)}
    assert {path.name for path in (COMPLETIONS / shell).iterdir()} == expected
    for path in (COMPLETIONS / shell).iterdir():
        assert path.resolve() == COMPLETIONS / f"claudebox.{shell}"


# ---------------------------------------------------------------------------- the shells


@pytest.fixture
def place(tmp_path):
    """A directory with two profiles, one instance, a subcommand of the user's own, and a file."""
    state = tmp_path / "home/.claudebox"
    (state / "profiles").mkdir(parents=True)
    for name in ("web", "a $(touch planted)"):
        (state / f"profiles/{name}.json").touch()
    (state / "instances/0123456789abcdef").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/claudebox-foo").touch(mode=0o755)
    (tmp_path / "work/directory").mkdir(parents=True)
    (tmp_path / "work/file").touch()
    return tmp_path


def environment(place):
    """Return the variables of a shell."""
    return {
        "HOME": f"{place}/home",
        "PATH": f"{place}/own:{PATH}",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "EXTRA": "1",
    }


BASH = """
source "$1"; shift
function=$(complete -p "$1"); function=${function#*-F }; function=${function%% *}
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE=$* COMP_POINT=${#COMP_LINE}
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(place, *words):
    """Return what bash's own `complete` machinery is given for the last of the words."""
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", COMPLETIONS / "claudebox.bash", *words],
        cwd=place / "work",
        env=environment(place),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split("\n")) - {""}


def fish(place, *words):
    """Return what fish offers for the last of the words."""
    script = "source $argv[1]; complete -C $argv[2]"
    line = " ".join(words).replace(" = ", "=")
    done = subprocess.run(
        ["fish", "--no-config", "-c", script, COMPLETIONS / "claudebox.fish", line],
        cwd=place / "work",
        env=environment(place),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    offered = {line.split("\t")[0] for line in done.stdout.splitlines()}
    return (
        {word.partition("=")[2] if word.startswith("--") else word for word in offered}
        if ("=" in words)
        else offered
    )


SHELLS = pytest.mark.parametrize("complete", [bash, fish])


@SHELLS
def test_a_subcommand_is_offered_first_also_one_of_the_users_own(place, complete):
    assert complete(place, "claudebox", "") == {*make.main.COMMANDS, "help", "foo"}
    assert complete(place, "claudebox", "do") == {"doctor"}
    assert complete(place, "claudebox", "help", "au") == {"audit"}


@SHELLS
def test_the_options_of_a_command_are_offered(place, complete):
    assert complete(place, "claudebox", "--ne") == {"--network"}
    assert complete(place, "claudebox", "doctor", "--f") == {"--fix"}
    assert complete(place, "claudebox-gc", "--older") == {"--older-than"}
    assert complete(place, "claudebox", "--gc", "--older") == {"--older-than"}
    assert complete(place, "claudebox", "gc", "--network") == set()


@SHELLS
def test_the_actions_of_a_subcommand_and_their_options_are_offered(place, complete):
    assert complete(place, "claudebox", "net", "") == {"apply", "tiers", "check"}
    assert complete(place, "claudebox-instance", "re") == {"resolve", "remove"}
    assert complete(place, "claudebox", "instance", "list", "--j") == {"--json"}
    assert complete(place, "claudebox-net", "apply", "--al") == {"--allow"}


@SHELLS
def test_the_tiers_are_offered(place, complete):
    tiers = set(make.plan.TIERS)
    assert complete(place, "claudebox", "--network", "") == tiers
    assert complete(place, "claudebox", "-y", "--network", "i") == {"inet"}
    assert complete(place, "claudebox", "--network", "=", "f") == {"full"}
    assert complete(place, "claudebox", "net", "apply", "") == tiers
    assert complete(place, "claudebox-net", "check", "n") == {"none"}


@SHELLS
def test_the_profiles_are_offered_and_their_names_not_evaluated(place, complete):
    offered = complete(place, "claudebox", "--profile", "")
    assert {name.replace("\\", "") for name in offered} == {"web", "a $(touch planted)"}
    assert complete(place, "claudebox", "profile", "apply", "w") == {"web"}
    assert not list(place.rglob("planted"))


@SHELLS
def test_instances_and_directories_are_offered_where_one_is_meant(place, complete):
    offered = {name.rstrip("/") for name in complete(place, "claudebox", "instance", "remove", "")}
    assert offered == {"0123456789abcdef", "directory"}
    offered = {name.rstrip("/") for name in complete(place, "claudebox", "instance", "path", "")}
    assert offered == {"directory"}


@SHELLS
def test_the_variables_of_the_host_are_offered(place, complete):
    assert complete(place, "claudebox", "--env", "EXT") == {"EXTRA"}


@SHELLS
def test_what_goes_to_the_program_inside_is_a_file(place, complete):
    offered = {name.rstrip("/") for name in complete(place, "claudebox", "--", "")}
    assert offered == {"directory", "file"}


@SHELLS
def test_a_state_of_another_place_is_looked_at(place, complete, monkeypatch):
    (place / "other/profiles").mkdir(parents=True)
    (place / "other/profiles/elsewhere.json").touch()
    kept = environment

    monkeypatch.setitem(
        globals(), "environment", lambda at: {**kept(at), "CLAUDEBOX_HOME": f"{place}/other"}
    )
    assert complete(place, "claudebox", "--profile", "") == {"elsewhere"}


ZSH = """
PS1='> ' LISTMAX=1000; unsetopt zle_bracketed_paste prompt_sp; fpath=($COMPLETIONS $fpath)
autoload -Uz compinit; compinit -u -D
show() { print -r -- "$BUFFER" > $HOME/shown; BUFFER= }; zle -N show; bindkey '^Xp' show; : > $HOME/up
"""


class Zsh:
    """An interactive zsh on a terminal, with the completion loaded as an installed one is."""

    def __init__(self, place):
        self._home = place / "home"
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(place / "work")
            variables = {**environment(place), "COMPLETIONS": str(COMPLETIONS)}
            os.execve(shutil.which("zsh"), ["zsh", "-f", "-i"], variables)
        self.seen = ""
        self._type(ZSH)
        self._until((self._home / "up").exists)

    def _type(self, text):
        os.write(self._terminal, text.encode())

    def _until(self, condition):
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, self.seen
            if select.select([self._terminal], [], [], 0.02)[0]:
                self.seen += os.read(self._terminal, 65536).decode(errors="replace")

    def complete(self, line):
        """Return what a tab makes of a line."""
        shown = self._home / "shown"
        shown.unlink(missing_ok=True)
        self._type(f"{line}\t\x18p")
        self._until(lambda: shown.exists() and shown.read_text().endswith("\n"))
        return shown.read_text().removesuffix("\n")

    def wait_for(self, words):
        """Wait until words stand on the terminal."""
        self._until(lambda: words in self.seen)

    def close(self):
        self._type("exit\n")
        os.waitpid(self._pid, 0)
        os.close(self._terminal)


def test_zsh_completes_what_is_typed(place):
    zsh = Zsh(place)
    for line, expected in {
        "claudebox --netw": "claudebox --network ",
        "claudebox doc": "claudebox doctor ",
        "claudebox fo": "claudebox foo ",
        "claudebox --network ine": "claudebox --network inet ",
        "claudebox --network=ful": "claudebox --network=full ",
        "claudebox net app": "claudebox net apply ",
        "claudebox net apply non": "claudebox net apply none ",
        "claudebox-net check ine": "claudebox-net check inet ",
        "claudebox-instance list --j": "claudebox-instance list --json ",
        "claudebox gc --net": "claudebox gc --net",
        "claudebox --profile we": "claudebox --profile web ",
        "claudebox --profile a": r"claudebox --profile a\ \$\(touch\ planted\) ",
        "claudebox instance remove 01": "claudebox instance remove 0123456789abcdef ",
        "claudebox instance path d": "claudebox instance path directory/",
        "claudebox --env EXTR": "claudebox --env EXTRA ",
        "claudebox --gc --older": "claudebox --gc --older-than ",
        "claudebox help aud": "claudebox help audit ",
        "claudebox -- fi": "claudebox -- file ",
    }.items():
        assert zsh.complete(line) == expected
    zsh.complete("claudebox net ")
    zsh.wait_for("say what each tier allows")
    zsh.close()
    assert not list(place.rglob("planted"))


@pytest.mark.parametrize(
    ("shell", "file"),
    [("bash", "claudebox.bash"), ("zsh", "_claudebox"), ("fish", "claudebox.fish")],
)
def test_a_completion_is_good_syntax(shell, file):
    done = subprocess.run([shell, "-n", COMPLETIONS / file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
