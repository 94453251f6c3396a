"""claudebox-profile: what the user adds to a plan for one launch.

`apply(plan, …)` is the filter; `main` puts it between standard input and standard output.
"""

import os

from claudebox import Failure, policy


def apply(plan: dict, name: str | None = None, variables=(), environ=os.environ) -> dict:
    """Return `plan` with the profile `name` and the host variables named in `variables` added.

    Raises Failure for a variable that may not be let in, and for a profile.
    """
    name = name or environ.get("CLAUDEBOX_PROFILE")
    if name:
        raise Failure(
            f'the profile "{name}" cannot be applied: this version has no profiles',
            "leave it out, and unset CLAUDEBOX_PROFILE",
        )
    env = list(plan["env"])
    notes = list(plan["notes"])
    for variable in dict.fromkeys(variables):
        entry = _variable(variable, plan)
        if entry is None:
            continue
        if variable not in environ:
            notes.append(f"--env {variable}: the host does not have this variable")
        else:
            env.append(entry)
    return {**plan, "env": env, "notes": notes}


def _variable(name: str, plan: dict) -> dict | None:
    plain = name.replace("_", "a")
    if not (plain.isascii() and plain.isalnum() and not plain[0].isdigit()):
        raise Failure(
            f'--env "{name}" is not the name of a variable',
            "give the name alone; its value comes from the host",
            status=2,
        )
    if policy.variable_forbidden(name):
        raise Failure(
            f"--env {name} is refused: it acts on the sandbox's own programs, outside",
            "leave it out",
        )
    for entry in plan["env"]:
        if entry["name"] == name:
            if entry["source"] == "claudebox":
                raise Failure(f"--env {name} is refused: claudebox sets it", "leave it out")
            return None
    return {"name": name, "source": "host", "reason": "--env"}


def main(arguments: list[str]) -> int:
    """Run `claudebox-profile`: exit status 0, 1 for a refusal, 2 for wrong usage."""
    from claudebox import command

    parser = command.parser("claudebox-profile", "What the user adds to a launch plan.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    apply_parser = actions.add_parser(
        "apply", help="add a profile to the plan on standard input", description="plan → plan"
    )
    apply_parser.add_argument("name", nargs="?", metavar="NAME", help="the profile")
    command.add_launch_options(apply_parser)
    options = parser.parse_args(arguments)
    command.write_plan(apply(command.read_plan(), options.name, options.env))
    return 0
