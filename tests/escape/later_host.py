"""Plants what could run later, inside a session or (the control) outside, then acts as the victim.

Runs in a world of canaries.py, with JSON arguments: what to do. Prints JSON: plant → [verdict, detail].
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
CHECKOUT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)

from plants import PLANTS, PRELUDE, VICTIM  # noqa: E402

BASE = ("/root" if os.getuid() == 0 else "/home/ann") + "/victims"
# What Claude Code outside would obey, in a project and in the home directory.
OBEYED = (".claude/settings.json", ".claude/settings.local.json", ".mcp.json", ".claude.json")


class Victim:
    """A home of its own with a repository in it, and a mark for each plant that ran."""

    def __init__(self, name: str):
        self.home = f"{BASE}/{name}"
        self.project = f"{self.home}/src/app"
        self.marks = f"{self.home}/marks"
        shutil.copytree(f"{BASE}/template", self.home, symlinks=True)
        # git notes the path of the remote in the copy of the template.
        with open(f"{self.project}/.git/config") as file:
            text = file.read().replace(f"{BASE}/template", self.home)
        with open(f"{self.project}/.git/config", "w") as file:
            file.write(text)
        self.environment = environment(self.home)

    def shell(self, script: str, directory: str = ".", name: str = "", timeout=60) -> str:
        """Run a script outside, in the project or another directory, and return what it says."""
        completed = subprocess.run(
            ["sh", "-c", f"RUN='touch {self.marks}/{name}'\n{PRELUDE}\n{script}"],
            cwd=os.path.join(self.project, directory),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
        return completed.stdout.decode(errors="replace")

    def session(self, scripts: list[tuple[str, str]], options: list[str], directory: str = "."):
        """Run (name, script) pairs one after the other inside one session; return its outcome.

        The victim also acts once while the session still runs.
        """
        parts = [
            f"( RUN='touch {self.marks}/{name}'\n{PRELUDE}\n{script}\n) >/dev/null 2>&1\n"
            for name, script in scripts
        ]
        process = subprocess.Popen(
            [
                *("claudebox", "-y", *options, "--shell", "--", "-c"),
                "".join(parts) + "\necho planted; read -r go",
            ],
            cwd=os.path.join(self.project, directory),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        planted = process.stdout.readline()
        self.shell("git status")
        self.start_claude(directory)
        _, errors = process.communicate("\n", timeout=60)
        return planted == "planted\n" and process.returncode == 0, errors

    def start_claude(self, directory: str = ".") -> None:
        """Be Claude Code outside, as far as it matters here: run the hooks and servers of its settings."""
        for place in (self.home, self.project, os.path.join(self.project, directory)):
            for name in OBEYED:
                try:
                    with open(f"{place}/{name}") as file:
                        settings = json.load(file)
                except (OSError, ValueError):
                    continue
                for matcher in settings.get("hooks", {}).get("SessionStart", []):
                    for hook in matcher["hooks"]:
                        subprocess.run(hook["command"], shell=True)
                for server in settings.get("mcpServers", {}).values():
                    subprocess.run([server["command"], *server["args"]])

    def act(self, plant=None, script: str = "") -> None:
        """Do what the victim does after a session, and what it does for one plant, until that ran."""
        lines = VICTIM.strip().splitlines()
        if plant is not None:
            lines = [f"{line}; [ -e {self.marks}/{plant.name} ] && exit" for line in lines]
        self.start_claude(plant.start if plant else ".")
        if plant is None or not self.ran(plant.name):
            self.shell("\n".join(lines))
        if script and not (plant and self.ran(plant.name)):
            self.shell(script)

    def ran(self, name: str) -> bool:
        """Say whether what a plant left ran outside."""
        return os.path.exists(f"{self.marks}/{name}")


def environment(home: str) -> dict[str, str]:
    return {
        "HOME": home,
        "PATH": f"{home}/tools:{CHECKOUT}/bin:/usr/local/bin:/usr/bin:/bin",
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        # A victim that is asked for something does not wait.
        "GIT_MERGE_AUTOEDIT": "no",
        "GIT_TERMINAL_PROMPT": "0",
    }


def make_template() -> None:
    """Make the home that each victim gets a copy of: cheaper than so many `git init`s."""
    home = f"{BASE}/template"
    os.makedirs(f"{home}/src/app")
    os.makedirs(f"{home}/marks")
    os.makedirs(f"{home}/tools")
    shutil.copy("/bin/true", f"{home}/tools/claude")
    script = f"""
    git config --global user.name Ann
    git config --global user.email ann@example.org
    git config --global protocol.file.allow always
    git config --global core.editor true
    git init -q -b main --template=
    mkdir -p .git/hooks .git/info
    echo 'int main() {{}}' >main.c
    git add main.c
    git commit -qm first
    git clone -q --bare . ../near.git
    git remote add near {home}/src/near.git
    git remote add far ssh://127.0.0.1:9/nowhere
    """
    subprocess.run(["sh", "-ec", script], cwd=f"{home}/src/app", env=environment(home), check=True)


def inside(plant, options: list[str]) -> list[str]:
    """Plant in a session of its own and return the verdict."""
    victim = Victim(plant.name)
    setup = victim.shell(plant.setup, name=plant.name)
    if victim.ran(plant.name):
        os.unlink(f"{victim.marks}/{plant.name}")
    well, errors = victim.session(
        [(plant.name, plant.script)], [*options, *plant.options], plant.start
    )
    if not well:
        return ["broken", f"{setup} {errors}"[-1000:]]
    victim.act(plant, plant.victim)
    return ["LEAKED", "it ran outside"] if victim.ran(plant.name) else ["blocked", ""]


def outside(plant) -> list[str]:
    """Plant without a sandbox, act as the victim, and return the verdict: LEAKED if it is any good."""
    victim = Victim(plant.name + "-control")
    victim.shell(plant.setup, name=plant.name)
    said = victim.shell(plant.script, plant.start, plant.name)
    if victim.ran(plant.name):
        # The planting itself set it off.
        os.unlink(f"{victim.marks}/{plant.name}")
    victim.act(plant, plant.control)
    return ["LEAKED", ""] if victim.ran(plant.name) else ["blocked", said[-500:]]


def together(options: list[str]) -> dict[str, list[str]]:
    """Try all plants that need no preparation in one session, one after the other."""
    victim = Victim("together-" + "-".join(options).replace("/", "_"))
    plain = [p for p in PLANTS if not (p.setup or p.options or p.start != "." or p.known_limit)]
    well, errors = victim.session([(plant.name, plant.script) for plant in plain], options)
    if not well:
        return {plant.name: ["broken", errors[-1000:]] for plant in plain}
    # The next launch of claudebox is what the plants that are tried alone have.
    own = [
        f"( {plant.victim} )" for plant in plain if plant.victim and "claudebox" not in plant.victim
    ]
    victim.shell("\n".join(own))
    victim.act()
    return {p.name: ["LEAKED", ""] if victim.ran(p.name) else ["blocked", ""] for p in plain}


def main(configurations: dict[str, list[str]]) -> dict:
    """Try each plant alone, in one of the configurations in turn, all in each, and all outside."""
    make_template()
    names = list(configurations)
    with ThreadPoolExecutor(3) as pool:
        alone = {
            plant.name: pool.submit(inside, plant, configurations[names[number % len(names)]])
            for number, plant in enumerate(PLANTS)
        }
        controls = {plant.name: pool.submit(outside, plant) for plant in PLANTS}
        all_in = {name: pool.submit(together, options) for name, options in configurations.items()}
        return {
            "alone": {name: future.result() for name, future in alone.items()},
            "controls": {name: future.result() for name, future in controls.items()},
            "together": {name: future.result() for name, future in all_in.items()},
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
