"""Races the launcher: one session exchanges files for links, again and again, while others start.

Runs in a world of canaries.py, with the number of launches as JSON. Prints JSON: race → verdicts.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

from next_host import PATIENCE, Place, environment, make_template  # noqa: E402

# Inside the first session. RENAME_EXCHANGE, by renameat2(2) of the C library.
EXCHANGE = r"""
import ctypes, os, random, select, sys, time
one, other = (os.fsencode(path) for path in sys.argv[1:])
libc = ctypes.CDLL(None, use_errno=True)
print("up", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end and not select.select([0], [], [], random.uniform(0, 0.04))[0]:
    libc.renameat2(-100, one, -100, other, 2)
"""


class Race:
    """What is exchanged for a link to what, where the exchanging session is, and how it was made."""

    def __init__(self, what, link, start, prepare, sentence, empty_file_may_appear=False):
        self.what = what
        self.link = link
        self.start = start
        self.prepare = prepare
        self.sentence = sentence
        self.empty_file_may_appear = empty_file_may_appear


def _directory(path):
    os.makedirs(path, exist_ok=True)


def _file(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("{}\n")


def _repository(path):
    for name in ("objects", "refs", "hooks", "info"):
        os.makedirs(f"{path}/{name}")
    with open(f"{path}/HEAD", "w") as file:
        file.write("ref: refs/heads/main\n")
    with open(f"{path}/config", "w"):
        pass


def _nested(path):
    _repository(os.path.dirname(path))


def _nothing(path):
    pass


KEYS, KEY = "{home}/.ssh", "{home}/.ssh/id_ed25519"
PROJECT, ABOVE = "{home}/src/app", "{home}/src"
RACES = {
    "project": Race(
        PROJECT, KEYS, ABOVE, _nothing, "The project itself, exchanged for a link to keys."
    ),
    "git": Race(
        f"{PROJECT}/.git", KEYS, ABOVE, _repository, "A .git, exchanged for a link to keys."
    ),
    "claude": Race(
        f"{PROJECT}/.claude", KEYS, ABOVE, _directory, "A .claude, exchanged for a link to keys."
    ),
    "settings": Race(
        f"{PROJECT}/.claude/settings.json",
        KEY,
        ABOVE,
        _file,
        "Settings, exchanged for a link to a key.",
    ),
    "mcp": Race(
        f"{PROJECT}/.mcp.json", KEY, ABOVE, _file, ".mcp.json, exchanged for a link to a key."
    ),
    "nested": Race(
        f"{PROJECT}/sub/.git/hooks",
        KEYS,
        ABOVE,
        _nested,
        "Nested hooks, exchanged for a link to keys.",
    ),
    # Where bwrap has the host's root while it makes mount points (CVE-2026-87766).
    "mcp_oldroot": Race(
        f"{PROJECT}/.mcp.json",
        "/oldroot{home}/.ssh/new",
        ABOVE,
        _file,
        ".mcp.json, exchanged for a link into bwrap's own view of the host.",
        empty_file_may_appear=True,
    ),
    "memory": Race(
        "{claude}/CLAUDE.md",
        "{home}/.ssh/authorized_keys",
        PROJECT,
        _file,
        "CLAUDE.md of the instance, exchanged for a link to keys.",
    ),
    "configuration": Race(
        "{claude}/.claude.json",
        "{home}/.ssh/keys.json",
        PROJECT,
        _file,
        ".claude.json of the instance, exchanged for a link to JSON elsewhere.",
    ),
    "briefing": Race(
        "{claude}/SANDBOX.md",
        "{home}/.ssh/authorized_keys",
        PROJECT,
        _file,
        "SANDBOX.md of the instance, exchanged for a link to keys.",
    ),
}


def run(name: str, program: list[str], launches: int, label: str, patience: float) -> list[str]:
    """Run one race and return [verdict, detail]."""
    race = RACES[name]
    place = Place(f"race-{name}-{label}", repository=False)
    names = {"home": place.home, "claude": place.claude}
    what = race.what.format(**names)
    start = race.start.format(**names)
    trap = what + ".link"
    # The instance is elsewhere inside.
    inside = [path.replace(place.claude, f"{place.home}/.claude") for path in (what, trap)]
    first = subprocess.Popen(
        [
            *("claudebox", "-y", "--network", "none", "--shell", "--", "-c"),
            *('exec /usr/bin/python3 -c "$@"', "sh", EXCHANGE, *inside),
        ],
        cwd=start,
        env=environment(place.home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if first.stdout.readline() != b"up\n":
        return ["broken", first.communicate()[1].decode(errors="replace")[-500:]]
    # Now: what was there before is held by the first session.
    race.prepare(what)
    os.symlink(race.link.format(**names), trap)
    before = place.elsewhere()
    outcomes, found = {}, None
    for number in range(launches):
        try:
            verdict, detail = place.launch(program, ["--network", "none"], patience)
        except FileNotFoundError:
            # The directory to start in was the link.
            verdict, detail = "blocked", "no directory"
        kind = "launched" if detail == "launched" else "refused"
        outcomes[kind] = outcomes.get(kind, 0) + 1
        after = place.elsewhere()
        # The manual says so; in a control it is what there is to find.
        if verdict == "LEAKED" and race.empty_file_may_appear and not label.startswith("careless"):
            made = [path for path in after if path not in before]
            kept = all(after.get(path) == content for path, content in before.items())
            if kept and all(os.path.getsize(path) == 0 for path in made):
                verdict = "blocked"
        if verdict == "LEAKED":
            found = f"launch {number}: {detail}"
            break
    first.communicate()
    return ["LEAKED", found] if found else ["blocked", json.dumps(outcomes)]


def lose(name: str, careless: list[str], launches: int) -> list[str]:
    """Run one race until the careless launcher has lost it, from the start again if need be.

    It loses only when the link is there at the right moment, and a moment that is wrong can take
    the link away.
    """
    for attempt in range(5):
        verdict, detail = run(name, careless, launches, f"careless-{attempt}", PATIENCE)
        if verdict == "LEAKED":
            break
    return [verdict, detail]


def main(launches: int) -> dict:
    """Run every race against claudebox, and against the careless launcher."""
    make_template()
    careless = ["/usr/bin/python3", "-I", "-B", f"{HERE}/careless.py"]
    with ThreadPoolExecutor(2) as pool:
        races = {
            name: pool.submit(run, name, ["claudebox"], launches, "next", PATIENCE)
            for name in RACES
        }
        controls = {name: pool.submit(lose, name, careless, 12 * launches) for name in RACES}
        return {
            "races": {name: future.result() for name, future in races.items()},
            "careless": {name: future.result() for name, future in controls.items()},
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
