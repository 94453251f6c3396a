"""Sets traps for the next launch, launches, and looks what it read, wrote, made and mounted elsewhere.

Runs in a world of canaries.py, with options of claudebox as JSON. Prints JSON: trap → verdicts.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
CHECKOUT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)

from traps import TRAPS  # noqa: E402

CANARY = "canary" + "-3c41d6"
BASE = ("/root" if os.getuid() == 0 else "/home/ann") + "/next"
# Reads whatever is there, then writes wherever something could be mounted.
INSIDE = r"""
grep -rs 'canar[y]-3c41d6' . ~ /run/claudebox --devices=skip
for d in . .git .git/* .claude sub sub/.git refs objects ~/.claude /run/claudebox/credentials; do
    echo written >$d/written; echo written >>$d/id_ed25519; echo written >>$d/authorized_keys
done
for f in .mcp.json .claude/* .git/* .git/info/* sub/.git/* ~/.claude/* ~/.claude/.claude.json; do
    [ -f $f ] && echo written >>$f
done
true
"""
# Seconds for a launch, on a loaded machine; for a careless one that is expected to hang.
PATIENCE, IMPATIENCE = 40, 4


class Place:
    """A home of its own with a project, the instance of an earlier session, and keys."""

    canary = CANARY

    def __init__(self, name: str, repository: bool):
        self.home = f"{BASE}/{name}"
        self.project = f"{self.home}/src/app"
        self.other = f"{self.home}/src/other"
        self.credentials = f"{self.home}/.claudebox/credentials"
        identity = hashlib.sha256(os.fsencode(self.project)).hexdigest()[:16]
        self.instance = f"{self.home}/.claudebox/instances/{identity}"
        self.claude = f"{self.instance}/claude"
        shutil.copytree(f"{BASE}/template", self.home, symlinks=True)
        if not repository:
            shutil.rmtree(f"{self.project}/.git")
        os.rename(f"{self.home}/.claudebox/instances/template", self.instance)
        path = f"{self.instance}/instance.json"
        with open(path) as file:
            metadata = json.load(file)
        with open(path, "w") as file:
            json.dump({**metadata, "root": self.project}, file)

    def elsewhere(self) -> dict[str, str]:
        """Return path → content of all that no launch may touch."""
        seen = {}
        for top in (f"{self.home}/.ssh", self.other, f"{self.home}/Documents"):
            for directory, names, files in os.walk(top):
                for name in (*names, *files):
                    path = f"{directory}/{name}"
                    seen[path] = ""
                    if os.path.isfile(path):
                        with open(path, "rb") as file:
                            seen[path] = hashlib.sha256(file.read()).hexdigest()
        return seen

    def launch(self, program: list[str], options: list[str], patience: float) -> list[str]:
        """Launch in the project and return the verdict."""
        before = self.elsewhere()
        process = subprocess.Popen(
            [*program, "-y", *options, "--shell", "--", "-c", INSIDE],
            cwd=self.project,
            env=environment(self.home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=bounded,
        )
        try:
            output, errors = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return ["LEAKED", "it hung"]
        said = (output + errors).decode(errors="replace")
        if CANARY in said:
            return ["LEAKED", "a canary was seen inside"]
        after = self.elsewhere()
        if after != before:
            changed = {
                path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
            }
            return ["LEAKED", f"touched: {sorted(changed)[:3]}"]
        if "Traceback" in said or process.returncode not in (0, 1):
            return ["LEAKED", f"ended with {process.returncode}: {said[-300:]}"]
        if process.returncode and not said.splitlines()[-1].startswith("claudebox: "):
            return ["LEAKED", f"no reason was given: {said[-300:]}"]
        return ["blocked", said.splitlines()[-1][:200] if process.returncode else "launched"]


def bounded() -> None:
    """Give a launch 1 GiB of memory: one that reads a huge file as a whole has too little."""
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))


def environment(home: str) -> dict[str, str]:
    return {
        "HOME": home,
        "PATH": f"{home}/tools:{CHECKOUT}/bin:/usr/local/bin:/usr/bin:/bin",
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
    }


def make_template() -> None:
    """Make a home after an earlier session: each trap gets a copy of it."""
    home = f"{BASE}/template"
    for name in ("tools", "src/app", ".ssh", "Documents", ".claude"):
        os.makedirs(f"{home}/{name}")
    for name in (".ssh/id_ed25519", ".ssh/authorized_keys", "Documents/canary"):
        with open(f"{home}/{name}", "w") as file:
            file.write(CANARY + "\n")
    with open(f"{home}/.ssh/keys.json", "w") as file:
        json.dump({"keys": CANARY}, file)
    shutil.copy("/bin/true", f"{home}/tools/claude")
    script = f"""
    git init -q --template= src/other
    git config --file src/other/.git/config remote.x.url {CANARY}
    cd src/app
    git init -q -b main --template=
    mkdir -p .git/hooks .git/info
    claudebox -y --network none --shell -- -c true
    """
    subprocess.run(
        ["sh", "-ec", script],
        cwd=home,
        env=environment(home),
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    instances = f"{home}/.claudebox/instances"
    os.rename(f"{instances}/{os.listdir(instances)[0]}", f"{instances}/template")


def spring(trap, label: str, program: list[str], options: list[str], patience: float) -> list[str]:
    """Set a trap in a place of its own and launch into it."""
    place = Place(f"{trap.name}-{label}", trap.repository)
    trap.set(place)
    return place.launch(program, options, patience)


def main(configurations: list[list[str]]) -> dict:
    """Launch into every trap, in one configuration after the other, and carelessly."""
    make_template()
    careless = ["/usr/bin/python3", "-I", "-B", f"{HERE}/careless.py"]
    with ThreadPoolExecutor(3) as pool, ThreadPoolExecutor(8) as waiting:
        launches = {
            name: pool.submit(
                *(spring, trap, "next", ["claudebox"]),
                *(configurations[number % len(configurations)], PATIENCE),
            )
            for number, (name, trap) in enumerate(TRAPS.items())
        }
        # Some of these wait for nothing but the end of their time.
        controls = {
            name: waiting.submit(
                spring, trap, "careless", careless, ["--network", "none"], IMPATIENCE
            )
            for name, trap in TRAPS.items()
            if not trap.no_control
        }
        return {
            "launches": {name: future.result() for name, future in launches.items()},
            "careless": {name: future.result() for name, future in controls.items()},
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
