"""claudebox-doctor: says whether this host can run claudebox, and mends what commands can mend."""

import os
import sys

from claudebox import Failure, checkup, host
from claudebox.printable import printable

# What a command brings can show the next thing that is amiss: bwrap, then what forbids it to work.
_ROUNDS = 4
_SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/bin")


def examine() -> tuple[checkup.Host, list[checkup.Finding]]:
    """Return this host and what every check found."""
    this = checkup.Host()
    return this, list(checkup.findings(this))


def launch_works(found: list[checkup.Finding]) -> bool:
    """Say whether a launch would work, as far as the host is concerned."""
    return all(finding.verdict != checkup.PROBLEM for finding in found)


def report(this: checkup.Host, found: list[checkup.Finding]) -> dict:
    """Return what was found as JSON-ready data."""
    return {
        "distribution": this.distribution.name,
        "package_manager": this.distribution.manager,
        "launch": launch_works(found),
        "checks": [
            {
                "name": finding.name,
                "verdict": finding.verdict,
                "detail": finding.detail,
                "commands": [this.line(command) for command in this.mends(finding)],
                "advice": this.advice(finding),
            }
            for finding in found
        ],
    }


def table(this: checkup.Host, found: list[checkup.Finding], ink) -> str:
    """Return what was found as text; `ink` colours words: a callable (style, text)."""
    width = max(len(finding.name) for finding in found)
    lines = []
    for finding in found:
        good = finding.verdict == checkup.OK
        verdict = f"{finding.verdict:<7}"
        verdict = verdict if good else ink("warning", verdict)
        lines.append(f"{verdict}  {finding.name:<{width}}  {printable(finding.detail)}")
        if good:
            continue
        if this.advice(finding):
            lines.append(ink("weak", f"{'':>9}{printable(this.advice(finding))}"))
        commands = " && ".join(this.line(command) for command in this.mends(finding))
        if commands:
            lines.append(f"{'':>9}{printable(commands)}")
    return "\n".join(lines) + "\n"


def mend(this, found, yes: bool) -> tuple[checkup.Host, list[checkup.Finding]]:
    """Show what mends the findings, ask, run it, and look again; return what is found then.

    Raises Failure after a no, and at the first command that fails.
    """
    from claudebox import audit

    done = []
    for _ in range(_ROUNDS):
        commands = [command for command in this.mends(*found) if command not in done]
        if not commands:
            break
        sys.stdout.write("\nThis mends what a command can mend:\n")
        sys.stdout.writelines(f"  {printable(this.line(command))}\n" for command in commands)
        sys.stdout.flush()
        if not yes and not audit.ask("Run these?"):
            raise Failure("not confirmed, so nothing was changed", "answer y to run them")
        for command in commands:
            _run(this, command)
            done.append(command)
        this, found = examine()
        sys.stdout.write("\n" + table(this, found, audit.Ink(sys.stdout)))
    return this, found


def _run(this: checkup.Host, command) -> None:
    """Run one command where nothing of a project is on PATH; raise Failure unless it succeeds."""
    import subprocess

    line = this.line(command)
    directories = (*host.SYSTEM_DIRECTORIES, *_SYSTEM_DIRECTORIES, *host.search_path(this.root))
    path = ":".join(dict.fromkeys(directories))
    words = command.argv(this.becoming_root)
    sys.stdout.write(f"\n$ {printable(line)}\n")
    sys.stdout.flush()
    try:
        status = subprocess.run(words, cwd="/", env={**os.environ, "PATH": path}).returncode
    except OSError as error:
        raise Failure(f"`{line}` could not be run: {error.strerror}", "mend that first") from None
    if status:
        raise Failure(
            f"`{line}` failed with status {status}, and what was to follow was not run",
            "see what it wrote, then run `claudebox doctor --fix` again",
        )


def main(arguments: list[str]) -> int:
    """Run `claudebox-doctor`: exit status 0, 1 if a launch would fail, 2 for wrong usage."""
    from claudebox import audit, command

    parser = command.parser(
        "claudebox-doctor", "Say whether this host can run claudebox, and what mends it."
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--json", action="store_true", help="print JSON")
    instead.add_argument(
        "--fix", action="store_true", help="show the commands that mend it, ask, and run them"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="with --fix: do not ask")
    options = parser.parse_args(arguments)
    if options.yes and not options.fix:
        raise Failure("--yes has a meaning with --fix alone", "add --fix, or leave it out", 2)
    this, found = examine()
    if options.json:
        import json

        sys.stdout.write(json.dumps(report(this, found), indent=2) + "\n")
        return 0 if launch_works(found) else 1
    sys.stdout.write(table(this, found, audit.Ink(sys.stdout)))
    if options.fix:
        this, found = mend(this, found, options.yes)
    if not launch_works(found):
        sys.stdout.write("\nA launch would fail here.\n")
        return 1
    sys.stdout.write("\nA launch would work here.\n")
    return 0
