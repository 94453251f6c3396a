"""claudebox-net: the network tier of a plan.

`apply(plan, tier)` is the filter; `main` puts it between standard input and standard output.
"""

import os

from claudebox import Failure
from claudebox import plan as launch_plan

DEFAULT_TIER = "full"
RESOLVER_INSIDE = "/etc/resolv.conf"
AVAILABLE_TIERS = ("none", "full")


def resolver_mount(tier: str) -> dict:
    """Return the mount that gives a tier its /etc/resolv.conf.

    bwrap fails on a dangling symbolic link, so it is resolved here, and an empty file stands in
    for one that leads nowhere.
    """
    host_file = os.path.realpath(RESOLVER_INSIDE)
    if tier == "full" and os.path.isfile(host_file):
        return {
            "kind": "ro-bind",
            "source": host_file,
            "target": RESOLVER_INSIDE,
            "reason": "system",
        }
    return {"kind": "file", "content": "", "target": RESOLVER_INSIDE, "reason": "system"}


def apply(plan: dict, tier: str | None = None, environ=os.environ) -> dict:
    """Return `plan` with its tier set.

    The `tier` of the command line wins over $CLAUDEBOX_NETWORK, that over the plan's profile, and
    that over `full`. Raises Failure for a tier that does not exist or is not available.
    """
    source = "command line"
    if tier is None:
        tier, source = environ.get("CLAUDEBOX_NETWORK") or None, "CLAUDEBOX_NETWORK"
    if tier is None:
        tier, source = plan["network"]["tier"], plan["network"]["source"]
    if tier not in launch_plan.TIERS:
        raise Failure(
            f'"{tier}" ({source}) is not a network tier{launch_plan.nearest(tier, launch_plan.TIERS)}',
            f"choose one of {', '.join(launch_plan.TIERS)}",
            status=2,
        )
    if tier not in AVAILABLE_TIERS:
        raise Failure(
            f'the network tier "{tier}" ({source}) is not available in this version',
            f"choose one of {', '.join(AVAILABLE_TIERS)}",
        )
    mounts = [
        resolver_mount(tier) if mount["target"] == RESOLVER_INSIDE else mount
        for mount in plan["mounts"]
    ]
    return {**plan, "network": {"tier": tier, "source": source}, "mounts": mounts}


def main(arguments: list[str]) -> int:
    """Run `claudebox-net`: exit status 0, or 2 for wrong usage."""
    from claudebox import command

    parser = command.parser("claudebox-net", "The network tier of a launch plan.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    apply_parser = actions.add_parser(
        "apply", help="set the tier of the plan on standard input", description="plan → plan"
    )
    apply_parser.add_argument("tier", nargs="?", metavar="TIER", help="none, inet or full")
    options = parser.parse_args(arguments)
    command.write_plan(apply(command.read_plan(), options.tier))
    return 0
