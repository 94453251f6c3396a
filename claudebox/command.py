"""What every claudebox command line has in common: options, plans on pipes, errors, exit status."""

import _signal
import os
import sys

from claudebox import Failure

INTERRUPTED = 130
CLOSED_PIPE = 141


class _Closed:
    """Stands for a standard output that was closed before this process began."""

    encoding = "utf-8"

    def write(self, _text):
        raise Failure("standard output is closed", "give this command one to write to", status=2)

    def flush(self):
        pass

    def isatty(self):
        return False

    @property
    def buffer(self):
        return self


def run(main, arguments: list[str]) -> int:
    """Return the exit status of `main(arguments)`, with every error as one line on stderr.

    130 after Ctrl-C and 141 after a closed pipe, as a shell would say.
    """
    _open_standard_streams()
    try:
        if _signal.getsignal(_signal.SIGINT) == _signal.SIG_DFL:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        try:
            status = main(arguments)
        except SystemExit as end:
            # argparse leaves this way after --help and --version.
            status = end.code or 0
        sys.stdout.flush()
        return status
    except Failure as failure:
        _flush_output()
        complain(str(failure))
        return failure.status
    except KeyboardInterrupt:
        _flush_output()
        complain("interrupted: nothing was launched")
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        complain("standard output was closed: nothing reads what this command writes")
        return CLOSED_PIPE
    except RecursionError:
        _flush_output()
        complain("a path or document is nested too deeply: choose a shallower one")
        return 1
    except OSError as error:
        _flush_output()
        name = error.filename
        place = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes) else ""
        complain(f"{place}{error.strerror or error}: check the file system and its permissions")
        return 1


def _open_standard_streams() -> None:
    """Put /dev/null where 0, 1 or 2 is closed: the next file opened would take its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)


def _flush_output() -> None:
    """Write what was said before an error; that nobody reads it is not the error to tell."""
    try:
        sys.stdout.flush()
    except (OSError, Failure):
        _forget_output()


def _forget_output() -> None:
    """Send what is still in the buffer nowhere: Python would complain once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)


def complain(message: str) -> None:
    """Write one line to stderr; the message cannot draw on the terminal."""
    from claudebox.printable import printable

    try:
        sys.stderr.write(f"claudebox: {printable(message)}\n")
        sys.stderr.flush()
    except OSError:
        pass


def parser(name: str, description: str):
    """Return a parser of a command's line; its errors are Failures with status 2."""
    from claudebox import command_line

    result = command_line.Parser(name, description)
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
    target.add_argument(
        "--nix",
        default="auto",
        metavar="MODE",
        help="the socket of a nix daemon is inside: auto (if its builds are sandboxed), trust, off",
    )


def add_launch_options(target) -> None:
    """Add the options that let something in for one launch."""
    target.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="let this variable of the host in (may be given more than once)",
    )
    target.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="PATH",
        help="mount PATH[:TARGET] read-only, or writable with :rw at the end",
    )
    target.add_argument(
        "--hide",
        action="append",
        default=[],
        metavar="GLOB",
        help="hide the project's files and directories that match GLOB",
    )
    target.add_argument(
        "--devshell",
        nargs="?",
        const=True,
        metavar="REF",
        help="use the development shell of the project's flake, or of REF",
    )


def add_network_options(target) -> None:
    """Add the option that opens the `inet` tier for one address."""
    target.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="open the inet tier for ADDRESS[:PORT], NETWORK/LENGTH or host:PORT",
    )


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line at its first `--`: what is ours, what goes to the program inside."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def read_plan(whole: bool = False, or_refuse: bool = False) -> dict:
    """Return the plan on standard input.

    If that is a terminal it is the base plan of the current directory, with `whole` the plan that
    `claudebox` would launch there, and with `or_refuse` a Failure.
    """
    from claudebox import plan

    if not sys.stdin.isatty():
        # While the stage before this one is at work.
        from claudebox import json_text, plan_schema  # noqa: F401

        return plan.read(sys.stdin.buffer)
    if or_refuse:
        raise Failure(
            "there is no plan on standard input, which is a terminal",
            "pipe one into this command, or run `claudebox`",
            status=2,
        )
    from claudebox import instance, pipeline

    return pipeline.compose() if whole else instance.resolve()


def write_plan(plan: dict) -> None:
    """Write `plan` to standard output."""
    from claudebox import plan as launch_plan

    sys.stdout.write(launch_plan.dumps(plan))
    sys.stdout.flush()
