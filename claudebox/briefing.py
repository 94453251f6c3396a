"""SANDBOX.md: tells Claude where it is, what it can reach, and what is hidden on purpose."""

# Hidden files that are named.
_NAMED = 30

_NETWORK = {
    "none": "There is no network in this session: every connection and every name lookup fails at"
    " once. Do not retry; work with what is here, or say what you would need.",
    "inet": "The public internet is reachable, DNS works. The user's own machine, its local network,"
    " VPNs and cloud metadata services are not: connections to them are refused at once. Do not"
    " retry those.",
    "full": "The network is the host's own: whatever the user's machine can reach, you can reach."
    " Services that listen on the user's machine are real; leave them alone unless asked.",
}


def text(plan: dict) -> str:
    """Return the briefing of the sandbox that `plan` describes, as Markdown."""
    project = plan["project"]
    targets = {mount["target"] for mount in plan["mounts"]}
    nix = "/nix/store" in targets and "/usr" not in targets
    tools = (
        "The programs are those of a Nix store, read-only."
        if nix
        else "The programs are the user's system's, in `/usr`, read-only: you cannot install packages"
        " with the system's package manager. Language package managers work below the project"
        " (a virtual environment, `node_modules`), as far as the network allows."
    )
    read_only = [
        mount["target"]
        for mount in plan["mounts"]
        if mount["reason"] == "protected" and mount["kind"] != "bind"
    ]
    protected = "".join(f"- `{_inline(path)}`\n" for path in read_only)
    home = _inline(plan["user"]["home"])
    return f"""# You are in a claudebox sandbox

- The project `{_inline(project["root"])}` is yours to read and write, at its real path.
- `{home}` is an empty home directory that is thrown away when the session ends. Only
  `{home}/.claude` (your own state for this project) and the project last.
- `/tmp` is private and is thrown away as well.{_limits(plan["limits"])}
- You have no root rights and cannot get any.
{_mounts(plan)}
## Network: `{plan["network"]["tier"]}`

{_NETWORK[plan["network"]["tier"]]}{_exceptions(plan["network"])}

## Tools

{tools}{_nix(plan)} If something is missing, say so: the user can install it outside.{_nesting(plan)}

## Read-only on purpose

Git hooks and configuration, and Claude's project settings, would run code outside this sandbox
later, so they cannot be changed here. Committing, branching, merging and rebasing work; `git config`,
`git remote add`, upstream tracking and installing hooks do not. Ask the user to do those outside.
{protected}
## Hidden on purpose

Keys, tokens, other projects, the user's home directory, agents and sockets are not here. That is
not a fault to work around: do not search for them and do not try to leave the sandbox. If a task
needs a credential or a file that is missing, ask the user, who can let it in at the next launch
(`claudebox --env NAME`, `claudebox --mount PATH`).
{_hidden(plan)}"""


def _hidden(plan: dict) -> str:
    """Return what there is to say of the files that the user's patterns hide."""
    if not plan["hide"]:
        return ""
    patterns = ", ".join(f"`{_inline(entry['pattern'])}`" for entry in plan["hide"])
    covered = [
        mount["target"]
        for mount in plan["mounts"]
        if mount["reason"] == "hidden" and mount["kind"] != "bind"
    ]
    names = "".join(f"- `{_inline(path)}`\n" for path in covered[:_NAMED])
    if len(covered) > _NAMED:
        names += f"- and {len(covered) - _NAMED} more\n"
    return f"""
The user hides what matches {patterns} in the project. These exist, and look empty and read-only
here. Do not look for their content elsewhere, in git's history neither, and do not commit, move or
replace them; git shows tracked ones as changed: leave them out of commits.
{names}"""


def _mounts(plan: dict) -> str:
    """Return a line for each place that the user mounts for this session."""
    lines = ""
    for mount in plan["mounts"]:
        if mount["reason"] == "--mount" or mount["reason"].startswith("profile:"):
            what = "read-write: changes last" if mount["kind"] == "bind" else "read-only"
            lines += f"- `{_inline(mount['target'])}` is the user's own, {what}.\n"
    return lines


def _limits(limits: dict) -> str:
    if limits["tmp"] is None:
        return ""
    return (
        f"\n- `/tmp` and the home directory lie in memory and hold {limits['tmp'] >> 20} MiB each."
    )


def _nesting(plan: dict) -> str:
    if plan["bwrap"]["disable_userns"] is False:
        return ""
    return (
        "\nNo container, mount or namespace can be made here: programs that make a sandbox of their"
        " own need to be told not to (Chromium: `--no-sandbox`)."
    )


def _nix(plan: dict) -> str:
    if plan["nix"] is None or not plan["nix"]["socket"]:
        return ""
    return (
        "\n\nNix works here, through the user's nix daemon: `nix shell nixpkgs#NAME -c COMMAND` runs"
        " a program that is not installed, `nix build` and `nix develop` build, `, COMMAND` works"
        " where comma is installed. Flakes are enabled. Nothing can be installed for good, and the"
        " sources that an evaluation needs are downloaded with the network of this sandbox.\n\n"
    )


def _exceptions(network: dict) -> str:
    if "allow" not in network:
        return ""
    names = ", ".join(f"`{_inline(exception)}`" for exception in network["allow"])
    return (
        f"\nThe user has opened, beyond that: {names}. `host:PORT` is the port PORT of `127.0.0.1`"
        " here."
    )


def _inline(path: str) -> str:
    from claudebox.printable import printable

    return printable(path).replace("`", "\\x60")
