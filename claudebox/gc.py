"""claudebox-gc: removes the instances of projects that are gone."""

import sys

from claudebox import Failure, host, instances
from claudebox.printable import printable


def collect(home: str, older_than: float | None = None, force: bool = False):
    """Yield (Instance, verdict, reason): verdict is "remove" or "keep".

    Removed is what belongs to a root that is gone; with `older_than` (days) also what was not used
    for that long; with `force` also what belongs to a root that is on a filesystem that is not
    mounted now, or that cannot be read. An instance to remove is held against new sessions while it
    is yielded. Instances of roots that are there, and in use or young, are not yielded.
    """
    from time import time

    for found in instances.every(home):
        if found.problem:
            yield found, "keep", found.problem
            continue
        root = found.root_state()
        age = (time() - found.last_used) / 86400
        if root == instances.GONE:
            reason = "its project is gone"
        elif root in (instances.UNMOUNTED, instances.UNREADABLE):
            if not force:
                yield found, "keep", f"its project is {root}"
                continue
            reason = f"its project is {root}, and --force was given"
        elif older_than is not None and age > older_than:
            reason = f"it was not used for {age:.0f} days"
        else:
            continue
        try:
            live = found.is_live()
        except FileNotFoundError:
            # Another gc was quicker.
            continue
        if live:
            yield found, "keep", "a session uses it"
        else:
            yield found, "remove", reason


def main(arguments: list[str]) -> int:
    """Run `claudebox-gc`: exit status 0, 1 for a no or a failure, 2 for wrong usage."""
    from time import time

    from claudebox import audit, command

    parser = command.parser("claudebox-gc", "Remove the instances of projects that are gone.")
    parser.add_argument("--dry-run", action="store_true", help="show what would go; remove nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--older-than",
        metavar="DAYS",
        type=float,
        help="also what was not used for so many days; asks",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="also what belongs to a project that is not mounted or not readable now; asks",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    options = parser.parse_args(arguments)
    if options.older_than is not None and not options.older_than >= 0:
        raise Failure("--older-than takes a number of days", "give one from 0 on", status=2)
    home = host.user()["home"]
    asks = (options.force or options.older_than is not None) and not options.yes
    if asks and not options.dry_run:
        _show_first(home, options)
        if not audit.ask("Remove these?"):
            raise Failure("not confirmed, so nothing was removed", "answer y to remove")
    if not options.dry_run:
        _release_standins(home)
    rows, total = [], 0
    for found, verdict, reason in collect(home, options.older_than, options.force):
        size = found.size() if found.directory is not None else 0
        if verdict == "remove" and not options.dry_run:
            try:
                instances.remove(home, found)
            except FileNotFoundError:
                continue
        rows.append(
            {
                "id": found.identity,
                "root": found.root,
                "size": size,
                "last_used": found.last_used,
                "verdict": verdict,
                "reason": reason,
            }
        )
        if verdict == "remove":
            total += size
        if not options.json:
            _show(rows[-1], options.dry_run, time())
    if not options.dry_run:
        instances.empty_trash(home)
    if options.json:
        from claudebox import json_text

        document = {"instances": rows, "bytes": total, "dry_run": options.dry_run}
        sys.stdout.write(json_text.dumps(document) + "\n")
    else:
        word = "would be freed" if options.dry_run else "freed"
        sys.stdout.write(f"{instances.human_size(total)} {word}\n")
    return 0


def _release_standins(home: str) -> None:
    """Remove what killed sessions left in their projects."""
    for found in instances.every(home):
        try:
            if not found.problem and found.has_standins() and not found.is_live():
                found.release_standins()
        except FileNotFoundError:
            continue


def _show_first(home: str, options) -> None:
    from time import time

    for found, verdict, reason in collect(home, options.older_than, options.force):
        if verdict == "remove":
            row = {"id": found.identity, "root": found.root, "size": found.size()}
            row |= {"last_used": found.last_used, "verdict": verdict, "reason": reason}
            _show(row, True, time(), sys.stderr)


def _show(row: dict, dry_run: bool, now: float, stream=None) -> None:
    verb = {"keep": "kept", "remove": "would remove" if dry_run else "removed"}[row["verdict"]]
    age = instances.human_age(now - row["last_used"]) if row["last_used"] else "?"
    (stream or sys.stdout).write(
        f"{verb:<12}  {printable(row['id']):<16}  {instances.human_size(row['size']):>5}"
        f"  {age:>10}  {printable(row['root'] or '?')}  ({printable(row['reason'])})\n"
    )
