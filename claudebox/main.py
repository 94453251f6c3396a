"""The dispatcher: `claudebox` runs the default pipeline, `claudebox SUB` execs `claudebox-SUB`."""

import gc
import os
import sys

from claudebox import Failure, command

COMMANDS = ("audit", "doctor", "gc", "instance", "net", "plan", "profile", "run")
# Options that stand for a subcommand.
_FLAGS = {
    "--gc": ("gc",),
    "--list-profiles": ("profile", "list"),
    "--show-profile": ("profile", "show"),
}
_EPILOG = f"""subcommands: {", ".join(COMMANDS)}, and every claudebox-NAME on PATH;
`claudebox help NAME` opens the manual page of one"""


def entry(argv: list[str]) -> int:
    """Run the command whose executable is `argv[0]` and return its exit status."""
    # Its full collections take a millisecond of a launch, and no command lives long enough to need
    # them but a session.
    gc.disable()
    name = os.path.basename(argv[0])
    arguments = argv[1:]
    if name.startswith("claudebox-") and name[len("claudebox-") :] in COMMANDS:
        return command.run(_subcommand(name[len("claudebox-") :]), arguments)
    return command.run(lambda words: main(words, argv[0]), arguments)


def _subcommand(name: str):
    if name == "plan":
        return print_plan
    # `import_module` costs more than the module; these names are fixed above.
    module = __import__(f"claudebox.{name}", fromlist=["main"])
    return module.main


def main(arguments: list[str], program: str = "claudebox") -> int:
    """Run `claudebox`: the session's exit status, 1 for a refusal or a no, 2 for wrong usage."""
    if arguments and not arguments[0].startswith("-"):
        return _dispatch(arguments[0], arguments[1:], program)
    if arguments and arguments[0].partition("=")[0] in _FLAGS:
        flag, _, value = arguments[0].partition("=")
        name, *words = _FLAGS[flag]
        return _dispatch(name, [*words, *([value] if value else []), *arguments[1:]], program)
    arguments, inside = command.split_arguments(arguments)
    parser = _parser("claudebox", "Run Claude Code in a sandbox that holds no secrets.")
    parser.usage = "claudebox [OPTIONS] [-- CLAUDE-ARG...]\n       claudebox SUBCOMMAND ..."
    parser.epilog = _EPILOG
    parser.add_argument("-y", "--yes", action="store_true", help="launch without asking")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--check",
        action="store_true",
        help="show the audit and try the sandbox; launch nothing; exit 0 if a launch would work",
    )
    instead.add_argument(
        "--dry-run", action="store_true", help="print the command of the launch; launch nothing"
    )
    for flag, words in _FLAGS.items():
        takes_name = {"metavar": "NAME"} if flag == "--show-profile" else {"action": "store_true"}
        same = " ".join(words)
        parser.add_argument(
            flag, **takes_name, help=f"the same as `claudebox {same}`; stands first"
        )
    options = parser.parse_args(arguments)
    for flag, words in _FLAGS.items():
        if getattr(options, flag[2:].replace("-", "_")):
            same = " ".join(words)
            raise Failure(f"{flag} is not the first option", f"use `claudebox {same}`", status=2)
    plan = _plan(options, inside)
    if options.dry_run:
        from claudebox import dry_run, enforcement

        enforcement.refuse_unsafe(plan, protections_are_fresh=True)
        sys.stdout.flush()
        sys.stdout.buffer.write(dry_run.script(plan))
        return 0
    from claudebox import run

    if options.check:
        from claudebox import audit

        audit.show(plan, sys.stdout)
        run.preflight(plan)
        return 0
    if not options.yes:
        from claudebox import audit

        audit.gate(plan, False, sys.stderr)

    def show_and_check():
        from claudebox import audit, enforcement

        if options.yes:
            audit.gate(plan, True, sys.stderr)
        enforcement.refuse_unsafe(plan, protections_are_fresh=True)

    return run.launch(plan, show_and_check)


def print_plan(arguments: list[str]) -> int:
    """Run `claudebox-plan`: print the plan that a default run with these options would launch."""
    arguments, inside = command.split_arguments(arguments)
    parser = _parser("claudebox-plan", "Print the plan that `claudebox` would launch. → plan")
    command.write_plan(_plan(parser.parse_args(arguments), inside))
    return 0


def _parser(name: str, description: str):
    parser = command.parser(name, description)
    command.add_place_options(parser)
    parser.add_argument("--network", metavar="TIER", help="none, inet or full")
    parser.add_argument("--profile", metavar="NAME", help="apply this profile")
    command.add_launch_options(parser)
    command.add_network_options(parser)
    return parser


def _plan(options, inside: list[str]) -> dict:
    from claudebox import pipeline

    return pipeline.compose(
        options.repo,
        options.shell,
        inside,
        options.profile,
        options.env,
        options.network,
        options.allow,
        options.mount,
        options.hide,
        options.devshell,
        options.nix,
    )


def _dispatch(name: str, arguments: list[str], program: str) -> int:
    if name == "help":
        return _help(arguments, program)
    own = os.path.dirname(os.path.realpath(program))
    wanted = f"claudebox-{name}"
    from claudebox import host

    for directory in (own, *host.search_path(os.path.realpath("."))):
        candidate = f"{directory}/{wanted}"
        if "/" not in name and os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            os.execv(candidate, [candidate, *arguments])
    from claudebox import schema

    hint = schema.nearest(name, _known(own))
    raise Failure(
        f'"{name}" is not a claudebox subcommand{hint}', "see `claudebox --help`", status=2
    )


def _known(own: str) -> list[str]:
    names = {"help", *COMMANDS}
    for directory in (own, *os.environ.get("PATH", "").split(":")):
        if directory.startswith("/"):
            try:
                entries = os.listdir(directory)
            except OSError:
                continue
            names.update(e[len("claudebox-") :] for e in entries if e.startswith("claudebox-"))
    return sorted(names)


def _help(arguments: list[str], program: str) -> int:
    """Open a manual page: `help [SECTION] [NAME]`; that of the checkout or installation that this is.

    man(1) itself goes by PATH, on which this program does not have to be.
    """
    *section, name = arguments or ["claudebox"]
    name = name if name.startswith("claudebox") else f"claudebox-{name}"
    number = section[0] if section else "1"
    own = os.path.dirname(os.path.dirname(os.path.realpath(program)))
    files = (f"{own}/man/{name}.{number}", f"{own}/share/man/man{number}/{name}.{number}")
    found = [file for file in files if os.path.isfile(file)]
    from claudebox import host

    man = host.find_program("man", os.path.realpath("."))
    if man is None:
        raise Failure("man was not found on PATH", f"install it, or use `{name} --help`")
    os.execv(man, ["man", *(found[:1] or [*section, name])])
