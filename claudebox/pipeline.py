"""The default pipeline up to the audit, composed in one process."""

from claudebox import instance, net, profile


def compose(
    repo=False,
    shell=False,
    arguments=(),
    profile_name=None,
    variables=(),
    tier=None,
    allowed=(),
    mounts=(),
    hidden=(),
    devshell=None,
    nix_mode="auto",
) -> dict:
    """Return the plan that `claudebox` launches in the current directory with these options.

    It is what `claudebox-instance resolve | claudebox-profile apply | claudebox-net apply` prints.
    """
    plan = instance.resolve(".", repo, shell, arguments, nix_mode)
    plan = profile.apply(plan, profile_name, variables, mounts, hidden, devshell)
    return net.apply(plan, tier, allowed)
