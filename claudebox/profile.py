"""claudebox-profile: what the user adds to a plan: a named profile, and options for one launch.

`apply(plan, …)` is the filter; `main` puts it between standard input and standard output.
"""

import os
import stat

from claudebox import Failure, policy


def apply(
    plan: dict,
    name: str | None = None,
    variables=(),
    mounts=(),
    hidden=(),
    devshell: bool | str | None = None,
    environ=os.environ,
) -> dict:
    """Return `plan` with the profile `name` added, else the one of $CLAUDEBOX_PROFILE, and the rest.

    `variables` are names of host variables, `mounts` PATH[:TARGET][:ro|rw], `hidden` patterns;
    `devshell` is True for the project's own development shell, or a flake reference. Raises Failure
    for what the policy does not allow, and for a profile that is missing or wrong.
    """
    if name is None and plan["profile"] is None:
        name = environ.get("CLAUDEBOX_PROFILE") or None
    elif name is not None and plan["profile"] is not None:
        raise Failure(
            f"the plan has the profile {plan['profile']['name']} already",
            "apply one profile, that extends the other",
            status=2,
        )
    for text in hidden:
        _option("--hide", text, _pattern_of)
    if name is not None:
        plan = _with_profile(plan, name, environ, devshell, hidden)
    elif devshell:
        plan = _with_packages(plan, [], devshell, "--devshell", hidden)
    if variables:
        for variable in variables:
            _refuse_variable(variable)
        plan = _with_variables(plan, variables, "--env", environ)
    if mounts:
        secrets = policy.secret_paths(plan["user"]["home"])
        for text in mounts:
            mount = _option("--mount", text, _mount_of)
            plan = _with_mount(plan, mount, "--mount", secrets, _wrong_option)
    if hidden:
        from claudebox import hiding

        plan = hiding.cover(plan, [{"pattern": text, "reason": "--hide"} for text in hidden])
    return plan


def _with_profile(plan: dict, name: str, environ, devshell, hidden) -> dict:
    from claudebox import profiles

    profiles.refuse_name(name)
    directory = profiles.Directory(plan["user"]["home"], environ)
    resolved = profiles.resolve(directory, name)
    profile, reason = resolved.values, f"profile:{name}"
    plan = {**plan, "profile": {"name": name, "chain": resolved.chain}}
    plan = _with_settings(plan, profile.get("set", {}), reason)
    plan = _with_variables(plan, profile.get("env", ()), reason, environ)
    if "network" in profile or profile.get("allow"):
        network = dict(plan["network"])
        if "network" in profile:
            network = {"tier": profile["network"], "source": f"profile {name}"}
        if profile.get("allow"):
            network["allow"] = profile["allow"]
        plan = {**plan, "network": network}
    if "limits" in profile:
        plan = {**plan, "limits": {**plan["limits"], **profile["limits"]}}
    if profile.get("nested_namespaces"):
        plan = {**plan, "bwrap": {**plan["bwrap"], "disable_userns": False}}
    plan = _with_arguments(plan, profile.get("claude_args", []))
    if devshell is None:
        devshell = profile.get("devshell", False)
    references = [profiles.reference(package) for package in profile.get("packages", ())]
    if references or devshell:
        hidden = [*profile.get("hide", ()), *hidden]
        plan = _with_packages(plan, list(dict.fromkeys(references)), devshell, reason, hidden)
    if profile.get("mounts"):
        secrets = policy.secret_paths(plan["user"]["home"])
        for index, mount in enumerate(profile["mounts"]):

            def wrong(problem, index=index):
                return resolved.wrong("mounts", index, problem)

            plan = _with_mount(plan, mount, reason, secrets, wrong)
    if profile.get("hide"):
        from claudebox import hiding

        patterns = [{"pattern": text, "reason": reason} for text in profile["hide"]]
        plan = hiding.cover(plan, patterns)
    return plan


# ---------------------------------------------------------------------------- environment


def _with_settings(plan: dict, settings: dict, reason: str) -> dict:
    if not settings:
        return plan
    for variable in plan["env"]:
        if variable["source"] == "claudebox" and variable["name"] in settings:
            raise Failure(
                f"{reason.replace(':', ' ')} sets {variable['name']}, which claudebox sets",
                "leave it out",
            )
    env = [variable for variable in plan["env"] if variable["name"] not in settings]
    for name, value in settings.items():
        env.append({"name": name, "source": "profile", "value": value, "reason": reason})
    return {**plan, "env": env}


def _with_variables(plan: dict, names, reason: str, environ) -> dict:
    env, notes = list(plan["env"]), list(plan["notes"])
    present = {variable["name"] for variable in env}
    for name in dict.fromkeys(names):
        if name.endswith("*"):
            found = sorted(
                variable
                for variable in environ
                if variable.startswith(name[:-1])
                and _is_name(variable)
                and policy.variable_refusal(variable) is None
            )
            missing = "the host has no such variable"
        else:
            found = [name] if name in environ else []
            missing = "the host does not have this variable"
        if not found and name not in present:
            notes.append(f"{_of(reason)} {name}: {missing}")
        for variable in found:
            if variable not in present:
                present.add(variable)
                env.append({"name": variable, "source": "host", "reason": reason})
    return {**plan, "env": env, "notes": notes}


def _of(reason: str) -> str:
    return reason.replace(":", " ") + ": env" if reason.startswith("profile:") else reason


def _is_name(text: str) -> bool:
    plain = text.replace("_", "a")
    return plain.isascii() and plain.isalnum() and not plain[0].isdigit()


def _refuse_variable(name: str) -> None:
    stem = name[:-1] if name.endswith("*") else name
    if not _is_name(stem):
        shown = f"{stem.partition('=')[0]}=..." if "=" in stem else name
        raise Failure(
            f'--env "{shown}" is not the name of a variable',
            "give the name alone; its value comes from the host",
            status=2,
        )
    reason = policy.variable_refusal(stem)
    if reason:
        raise Failure(f"--env {name} is refused: {reason}", "leave it out")


# ---------------------------------------------------------------------------- command, packages


def _with_arguments(plan: dict, arguments: list[str]) -> dict:
    """Put the profile's arguments of Claude Code before those of the command line."""
    own = ["claude", "--dangerously-skip-permissions"]
    if not arguments or plan["command"][:2] != own:
        return plan
    return {**plan, "command": [*own, *arguments, *plan["command"][2:]]}


def _with_packages(plan: dict, references: list[str], devshell, reason: str, hidden) -> dict:
    """Put the programs of packages in front of PATH, those of a development shell before them.

    `hidden` are patterns that are yet to be covered: the store, which is inside, must not get what
    they match.
    """
    from claudebox import nix

    home, root = plan["user"]["home"], plan["project"]["root"]
    packages, variables, directories = list(plan["packages"]), {}, []
    if devshell:
        wanted = devshell if isinstance(devshell, str) else None
        # What the plan says of a daemon that does not sandbox its builds holds here as well.
        trust = plan["nix"] is not None and plan["nix"]["trust"]
        hidden = [*(entry["pattern"] for entry in plan["hide"]), *hidden]
        directories, variables = nix.devshell(wanted, root, home, trust, hidden)
        packages.append({"reference": wanted or root, "paths": directories, "reason": "devshell"})
    if references:
        paths = nix.packages(references, home, root)
        for name in references:
            packages.append({"reference": name, "paths": paths[name], "reason": reason})
            directories = [*directories, *paths[name]]
    store = nix.store_mounts(plan["mounts"])
    own = {variable["name"] for variable in plan["env"] if variable["source"] == "claudebox"}
    refused = {
        name
        for name in variables
        if name in own or not _is_name(name) or policy.variable_refusal(name)
    }
    env = [v for v in plan["env"] if v["name"] not in variables or v["name"] in refused]
    env = [
        {**variable, "value": ":".join((*dict.fromkeys(directories), variable["value"]))}
        if variable["name"] == "PATH" and directories
        else variable
        for variable in env
    ]
    for name, value in variables.items():
        if name not in refused:
            env.append({"name": name, "source": "profile", "value": value, "reason": "devshell"})
    return {**plan, "packages": packages, "env": env, "mounts": [*plan["mounts"], *store]}


# ---------------------------------------------------------------------------- mounts


def _option(option: str, text: str, check):
    """Return what `check` makes of an option's value; what is wrong with that is wrong usage."""
    from claudebox import schema

    try:
        return check(text)
    except schema.Mismatch as mismatch:
        path = f"{mismatch.path}: " if mismatch.path else ""
        raise Failure(
            f'{option} "{text}": {path}{mismatch.problem}', "see claudebox-profile(5)", status=2
        ) from None


def _wrong_option(problem: str) -> Failure:
    return Failure(f"--mount {problem}", "leave it out, or change it")


def _mount_of(text: str) -> dict:
    from claudebox import profiles

    return profiles.mount_of(text)


def _pattern_of(text: str) -> str:
    from claudebox import hiding, schema

    problem = hiding.problem(text)
    if problem:
        raise schema.Mismatch("", problem)
    return text


def _with_mount(plan: dict, mount: dict, reason: str, secrets: dict, wrong) -> dict:
    """Return `plan` with a mount as profiles say it; raises `wrong(problem)` if it may not be."""
    from claudebox import enforcement, profiles

    home = plan["user"]["home"]
    path = profiles.expand(mount["path"], home)
    source, target = os.path.realpath(path), profiles.expand(mount.get("target", path), home)
    problem = source_problem(source, path)
    if problem:
        if mount.get("optional") and not os.path.lexists(source):
            return plan
        if reason != "--mount":
            problem += optional_hint(source)
        raise wrong(f'"{mount["path"]}": {problem}')
    kind = "bind" if mount.get("mode") == "rw" else "ro-bind"
    entry = {"kind": kind, "source": source, "target": target, "reason": reason}
    try:
        enforcement.refuse_mount(entry, plan, secrets)
        problem = _target_problem(entry, plan)
        if problem is None:
            enforcement.refuse_place(entry, plan)
    except enforcement.Refused as refusal:
        problem = refusal.problem
    if problem:
        raise wrong(f'"{mount["path"]}": {problem}')
    return {**plan, "mounts": [*plan["mounts"], entry]}


def source_problem(source: str, path: str) -> str | None:
    """Return why the resolved `source` is nothing that can be mounted, or None if it is."""
    try:
        mode = os.stat(source).st_mode
    except OSError as error:
        leads = "" if source == path else f", where it leads to, {source}"
        return f"{error.strerror}{leads}"
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        return "a directory or a plain file is needed: this is a socket, a device or a pipe"
    return None


def optional_hint(source: str) -> str:
    """Return what a profile can say of a `source` that is missing, to follow its problem."""
    return "" if os.path.lexists(source) else ' (with "optional": true it may be missing)'


def _target_problem(entry: dict, plan: dict) -> str | None:
    """Return why the mount has no place in the plan, or None: what is there already stays visible."""
    target, root = entry["target"], plan["project"]["root"]
    source = entry["source"]
    if policy.is_within(source, root) or policy.is_within(root, source):
        return "it holds the project, or lies in it, which is mounted already"
    for mount in plan["mounts"]:
        if policy.is_within(mount["target"], target):
            what = "is mounted there already" if mount["target"] == target else "lies in it"
            return (
                f"the target {target} would cover what claudebox mounts: {mount['target']} {what}"
            )
        if policy.is_within(target, mount["target"]) and mount["kind"] in ("symlink", "file"):
            return f"the target {target} lies behind {mount['target']}"
    if policy.is_within(target, root + "/.git") or "/.git/" in target[len(root) :] + "/":
        return f"the target {target} lies in a git directory"
    holders = [mount for mount in plan["mounts"] if policy.is_within(target, mount["target"])]
    if holders and holders[-1]["kind"] in ("bind", "ro-bind"):
        holder = holders[-1]
        place = holder["source"] + target[len(holder["target"]) :]
        if os.path.realpath(place) != place:
            return f"the target {target} is, or lies behind, a symbolic link"
        if not os.path.lexists(place):
            return f"the target {target} does not exist, and nothing is made on the host for it"
        if os.path.isdir(place) != os.path.isdir(source):
            return f"the target {target} and the path are not both directories, or both files"
    elif holders and holders[-1]["kind"] == "empty-dir":
        return f"the target {target} lies in {holders[-1]['target']}, which is empty and read-only"
    return None


# ---------------------------------------------------------------------------- the command


def main(arguments: list[str]) -> int:
    """Run `claudebox-profile`: exit status 0, 1 for a refusal, 2 for wrong usage."""
    from claudebox import command

    parser = command.parser(
        "claudebox-profile", "Profiles, and what the user adds to a launch plan."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    apply_parser = actions.add_parser(
        "apply", help="add a profile to the plan on standard input", description="plan → plan"
    )
    apply_parser.add_argument("name", nargs="?", metavar="NAME", help="the profile")
    command.add_launch_options(apply_parser)
    list_parser = actions.add_parser("list", help="list the profiles")
    show_parser = actions.add_parser("show", help="print a profile")
    show_parser.add_argument("name", metavar="NAME", help="the profile")
    show_parser.add_argument(
        "--resolved", action="store_true", help="with what it inherits, and from which profile"
    )
    check_parser = actions.add_parser("check", help="say whether a profile, or each, can be used")
    check_parser.add_argument("name", nargs="?", metavar="NAME", help="the profile")
    edit_parser = actions.add_parser("edit", help="open a profile, or a new one, in an editor")
    edit_parser.add_argument("name", metavar="NAME", help="the profile")
    for each in (list_parser, show_parser, check_parser):
        each.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.action == "apply":
        plan = apply(
            command.read_plan(),
            options.name,
            options.env,
            options.mount,
            options.hide,
            options.devshell,
        )
        command.write_plan(plan)
        return 0
    from claudebox import profile_files

    if options.action == "list":
        return profile_files.list_all(options.json)
    if options.action == "show":
        return profile_files.show(options.name, options.resolved, options.json)
    if options.action == "check":
        return profile_files.check(options.name, options.json)
    return profile_files.edit(options.name)
