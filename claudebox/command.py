"""What every claudebox command line has in common: options, plans on pipes, errors, exit status."""

import os
import sys

from claudebox import Failure

INTERRUPTED = 130
CLOSED_PIPE = 141


def run(main, arguments: list[str]) -> int:
    """Return the exit status of `main(arguments)`, with every error as one line on stderr.

    130 after Ctrl-C and 141 after a closed pipe, as a shell would say.
    """
    try:
        status = main(arguments)
        sys.stdout.flush()
        return status
    except Failure as failure:
        complain(str(failure))
        return failure.status
    except KeyboardInterrupt:
        complain("interrupted: nothing was launched")
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it closes the stream at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        complain("standard output was closed: nothing reads what this command writes")
        return CLOSED_PIPE
    except RecursionError:
        complain("a path or document is nested too deeply: choose a shallower one")
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        if isinstance(place, bytes):
            place = os.fsdecode(place)
        complain(f"{place}{error.strerror or error}: check the file system and its permissions")
        return 1


def complain(message: str) -> None:
    """Write one line to stderr; the message cannot draw on the terminal."""
    from claudebox.printable import printable

    try:
        sys.stderr.write(f"claudebox: {printable(message)}\n")
        sys.stderr.flush()
    except (OSError, AttributeError):
        pass


def parser(name: str, description: str, **options):
    """Return an argument parser whose errors are Failures with status 2."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise Failure(message, f"see `{self.prog} --help`", status=2)

    result = Parser(prog=name, description=description, allow_abbrev=False, **options)
    result.add_argument("--version", action="version", version=_version())
    return result


def _version() -> str:
    from claudebox import __version__

    return f"claudebox {__version__}"


def add_place_options(target) -> None:
    """Add the options that say where a session runs and what runs in it."""
    target.add_argument(
        "--repo", action="store_true", help="mount the whole repository that holds the directory"
    )
    target.add_argument("--shell", action="store_true", help="run a shell instead of Claude Code")


def add_launch_options(target) -> None:
    """Add the options that let something in for one launch."""
    target.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="let this variable of the host in (may be given more than once)",
    )


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line at its first `--`: what is ours, what goes to the program inside."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def read_plan() -> dict:
    """Return the plan on standard input, or that of the current directory if it is a terminal."""
    from claudebox import plan

    if sys.stdin is None:
        raise Failure("standard input is closed", "pipe a plan into this command", status=2)
    if sys.stdin.isatty():
        from claudebox import instance

        return instance.resolve()
    return plan.read(sys.stdin.buffer)


def write_plan(plan: dict) -> None:
    """Write `plan` to standard output."""
    from claudebox import plan as launch_plan

    if sys.stdout is None:
        raise Failure("standard output is closed", "pipe this command into another one", status=2)
    sys.stdout.write(launch_plan.dumps(plan))
    sys.stdout.flush()
