"""claudebox-net: the network tier of a plan.

`apply(plan, tier)` is the filter; `main` puts it between standard input and standard output.
"""

import os
import sys

from claudebox import Failure
from claudebox import plan as launch_plan

DEFAULT_TIER = "full"
RESOLVER_INSIDE = "/etc/resolv.conf"

_WHAT_TIERS_ALLOW = {
    "none": "nothing but loopback inside; mounted sockets work",
    "inet": "the public internet and DNS; not this host, its networks, VPNs, or cloud metadata",
    "full": "the host's own network, its services included",
}


def resolver_mount(tier: str) -> dict:
    """Return the mount that gives a tier its /etc/resolv.conf.

    In `inet` the launcher's relay answers on the sandbox's own loopback. bwrap fails on a dangling
    symbolic link, so the host's is resolved here, and an empty file stands in for one that leads
    nowhere.
    """
    host_file = os.path.realpath(RESOLVER_INSIDE)
    if tier == "full" and os.path.isfile(host_file):
        return {
            "kind": "ro-bind",
            "source": host_file,
            "target": RESOLVER_INSIDE,
            "reason": "system",
        }
    content = f"nameserver 127.0.0.1\n{_search(host_file)}" if tier == "inet" else ""
    return {"kind": "file", "content": content, "target": RESOLVER_INSIDE, "reason": "system"}


def _search(host_file: str) -> str:
    """Return the host's `search` and `domain` lines: they are part of what a short name means."""
    try:
        with open(host_file, encoding="utf-8", errors="replace") as file:
            lines = file.read(65536).splitlines()
    except OSError:
        return ""
    return "".join(line + "\n" for line in lines if line.split()[:1] in (["search"], ["domain"]))


def apply(plan: dict, tier: str | None = None, allowed=(), environ=os.environ) -> dict:
    """Return `plan` with its tier set, and what is allowed beyond it.

    The `tier` of the command line wins over $CLAUDEBOX_NETWORK, that over the plan's profile, and
    that over `full`. Raises Failure for a tier that does not exist, for an exception that cannot be
    made, and for `inet` without a program that can join it to the internet.
    """
    source = "command line"
    if tier is None:
        tier, source = environ.get("CLAUDEBOX_NETWORK") or None, "CLAUDEBOX_NETWORK"
    if tier is None:
        tier, source = plan["network"]["tier"], plan["network"]["source"]
    if tier not in launch_plan.TIERS:
        from claudebox import schema

        raise Failure(
            f'"{tier}" ({source}) is not a network tier{schema.nearest(tier, launch_plan.TIERS)}',
            f"choose one of {', '.join(launch_plan.TIERS)}",
            status=2,
        )
    network = {"tier": tier, "source": source}
    notes = list(plan["notes"])
    asked = plan["network"]
    of_a_profile = asked["source"].startswith("profile ")
    is_weaker = launch_plan.TIERS.index(tier) > launch_plan.TIERS.index(asked["tier"])
    if source == "CLAUDEBOX_NETWORK" and of_a_profile and is_weaker:
        notes.append(
            f"CLAUDEBOX_NETWORK sets the network to {tier}, where {asked['source']} asks for"
            f" {asked['tier']}"
        )
    inherited = asked.get("allow", [])
    if inherited and tier != "inet":
        notes.append(
            f"{', '.join(inherited)}: allowed in the network tier inet only, this is {tier}"
        )
        inherited = []
    allowed = list(dict.fromkeys((*inherited, *allowed)))
    if tier == "inet":
        network["sidecars"] = _sidecars(plan["project"]["root"])
        if allowed:
            from claudebox.sandbox import inet

            for exception in allowed:
                inet.parse_allow(exception)
            network["allow"] = allowed
    elif allowed:
        raise Failure(
            f"--allow {allowed[0]} has no meaning in the network tier {tier}",
            "leave it out, or choose --network inet",
            status=2,
        )
    mounts = [
        resolver_mount(tier) if mount["target"] == RESOLVER_INSIDE else mount
        for mount in plan["mounts"]
    ]
    return {**plan, "network": network, "mounts": mounts, "notes": notes}


def sidecar_programs(project_root: str, names=launch_plan.SIDECARS) -> list[tuple[str, str]]:
    """Return (name, path) of the programs that can join `inet` to the internet, best first."""
    from claudebox import host

    found = [(name, host.find_program(name, project_root)) for name in names]
    found = [(name, path) for name, path in found if path is not None]
    if found and found[0][0] == "pasta" and not _pasta_is_steady(found[0][1]):
        found.reverse()
    return found


def _pasta_is_steady(path: str) -> bool:
    """Say whether a pasta is newer than those whose uploads stand still now and then.

    Measured: pasta of 2023-03 uploads at 0.1 to 0.6 Gbit/s with stalls of half a second and more
    (it drops what its own socket does not take), slirp4netns 1.2.0 at 2 to 3 without a stall, and
    it starts in half the time. Its libslirp 4.7 passes no ICMPv6 echo on. The option came in 2024-08.
    """
    with open(path, "rb") as program:
        return b"map-host-loopback" in program.read()


def _sidecars(project_root: str) -> list[str]:
    names = [name for name, _ in sidecar_programs(project_root)]
    if not names:
        raise Failure(
            "neither pasta nor slirp4netns, which join the tier inet to the internet, is installed",
            "install passt (or slirp4netns), or choose --network none or full",
        )
    return names


def _check(tier: str) -> int:
    """Print whether this host can do `tier`; return 0 if it can and 1 if not."""
    if tier != "inet":
        sys.stdout.write(f"ok       {tier}  needs nothing but bwrap\n")
        return 0
    from claudebox.printable import printable
    from claudebox.sandbox import inet

    results = inet.check(sidecar_programs(os.path.realpath(".")))
    for name, good, detail in results:
        sys.stdout.write(f"{'ok' if good else 'problem':<7}  {name}  {printable(detail)}\n")
    needed = [good for name, good, _ in results if name not in launch_plan.SIDECARS]
    sidecars = [good for name, good, _ in results if name in launch_plan.SIDECARS]
    return 0 if all(needed) and any(sidecars) else 1


def main(arguments: list[str]) -> int:
    """Run `claudebox-net`: exit status 0, or 2 for wrong usage."""
    from claudebox import command

    parser = command.parser("claudebox-net", "The network tier of a launch plan.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    apply_parser = actions.add_parser(
        "apply", help="set the tier of the plan on standard input", description="plan → plan"
    )
    apply_parser.add_argument("tier", nargs="?", metavar="TIER", help="none, inet or full")
    command.add_network_options(apply_parser)
    actions.add_parser("tiers", help="say what each tier allows")
    check_parser = actions.add_parser("check", help="say whether this host can do a tier")
    check_parser.add_argument("tier", choices=launch_plan.TIERS, metavar="TIER")
    options = parser.parse_args(arguments)
    if options.action == "tiers":
        for tier, allows in _WHAT_TIERS_ALLOW.items():
            sys.stdout.write(f"{tier:<6}{allows}\n")
        return 0
    if options.action == "check":
        return _check(options.tier)
    command.write_plan(apply(command.read_plan(), options.tier, options.allow))
    return 0
