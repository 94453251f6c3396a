"""Holds a plan against the policy, whoever wrote it: an edited plan gets no more than a made one."""

import os
import stat

from claudebox import Failure, git, host, instance, net, policy, project, protection

_OWN_TARGETS = ("/proc", "/dev", "/etc/claude-code", "/run/claudebox")
_NEEDED_TARGETS = {"/proc": "proc", "/dev": "dev", "/tmp": "tmpfs", "/run": "tmpfs"}


class Refused(Failure):
    """A plan that asks for what the policy does not allow."""

    def __init__(self, problem: str):
        super().__init__(
            f"the plan is refused: {problem}", "make a new one with `claudebox plan`, or mend it"
        )


def refuse_unsafe(plan: dict, protections_are_fresh: bool = False) -> None:
    """Raise Refused if launching `plan` would break the policy.

    `protections_are_fresh` says that the read-only mounts were computed by this process just now
    and need not be computed again to be compared.
    """
    home = plan["user"]["home"]
    _refuse_other_user(plan)
    _refuse_variables(plan)
    secrets = policy.refuse_secret_project(plan["project"]["root"], home)
    if not policy.is_within(plan["project"]["cwd"], plan["project"]["root"]):
        raise Refused("the working directory is not in the project")
    _refuse_other_host(plan)
    allowed = _exceptions(plan)
    for mount in plan["mounts"]:
        if mount["kind"] in ("bind", "ro-bind"):
            _refuse_source(mount, secrets, home, allowed)
            _refuse_second_place(mount, plan)
            _refuse_unasked_writing(mount, plan, allowed)
        if mount["kind"] in ("proc", "dev") and mount["target"] != "/" + mount["kind"]:
            raise Refused(f"{mount['kind']} belongs on /{mount['kind']}, not on {mount['target']}")
        _refuse_target(mount, plan, allowed)
    _refuse_hidden(plan)
    masks = {mask["target"]: "mask" for mask in policy.proc_masks()}
    for target, kind in {**_NEEDED_TARGETS, home: "tmpfs", **masks}.items():
        if not any(m["target"] == target and m["kind"] == kind for m in plan["mounts"]):
            raise Refused(f"{target} is not a {kind} mount")
    if not protections_are_fresh:
        _refuse_other_places(plan)
        _refuse_missing_protection(plan)


def _refuse_other_user(plan: dict) -> None:
    user = plan["user"]
    if (user["uid"], user["gid"]) != (os.getuid(), os.getgid()):
        raise Refused("it was made for another user")
    if os.path.realpath(os.environ.get("HOME") or user["home"]) != user["home"]:
        raise Refused(f"its home directory {user['home']} is not $HOME")


def _refuse_other_host(plan: dict) -> None:
    place = plan["project"]
    if git.discover(place["root"]) != place["git"]:
        raise Refused("its git directory is not the project's")
    owner = git.main_root(place["git"], place["root"])
    if plan["instance"] != instance.instance_of(owner, plan["user"]["home"]):
        raise Refused("its instance is not the project's")
    if plan["bwrap"] != host.bwrap(place["root"]):
        raise Refused("its bwrap is not the one of this host")
    network = plan["network"]
    if network["tier"] != "inet" and ("allow" in network or "sidecars" in network):
        raise Refused("it has exceptions or sidecars in a network tier that has none")
    if network["tier"] == "inet" and not network.get("sidecars"):
        raise Refused("it names no program that joins the tier inet to the internet")
    resolver = net.resolver_mount(network["tier"])
    if all(
        (mount["target"], mount["kind"]) != (resolver["target"], resolver["kind"])
        for mount in plan["mounts"]
    ):
        raise Refused(f"{net.RESOLVER_INSIDE} is not the one of its network tier")


def _refuse_variables(plan: dict) -> None:
    own = {"HOME", "PATH", "SHELL", "TMPDIR", "CLAUDE_CONFIG_DIR"}
    own |= {"CLAUDE_SECURESTORAGE_CONFIG_DIR", *policy.CLAUDE_VARIABLES}
    for variable in plan["env"]:
        name = variable["name"]
        if policy.variable_forbidden(name):
            raise Refused(f"the variable {name} acts on the sandbox's own programs, outside")
        if name in own and variable["source"] == "host":
            raise Refused(f"the variable {name} is claudebox's to set")


def _exceptions(plan: dict) -> set[tuple[str, str]]:
    """Return the (source, target) pairs that are let in although a secret path is touched."""
    home = plan["user"]["home"]
    state = policy.state_home(home)
    return {
        (plan["instance"]["path"] + "/claude", home + "/.claude"),
        (state + "/credentials", policy.CREDENTIALS_INSIDE),
        (policy.host_credentials(home), policy.CREDENTIALS_INSIDE + "/.credentials.json"),
        (os.path.realpath(net.RESOLVER_INSIDE), net.RESOLVER_INSIDE),
    }


def _refuse_source(mount: dict, secrets: dict, home: str, allowed: set) -> None:
    source = mount["source"]
    pair = (source, mount["target"])
    if os.path.realpath(source) != source:
        raise Refused(f"the mount source {source} is, or lies behind, a symbolic link")
    if pair in allowed:
        return
    if mount["kind"] == "ro-bind" and policy.is_within(source, home + "/.claude/local"):
        # Where Claude Code's former local installer puts the program itself.
        return
    reason = policy.exposed_secret(source, secrets, home)
    if reason:
        raise Refused(f"the mount source {source} would expose a secret: {reason}")
    try:
        mode = os.lstat(source).st_mode
    except OSError:
        if mount["reason"] != "protected":
            raise Refused(f"the mount source {source} is not there") from None
        return
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise Refused(f"the mount source {source} is a socket, a device or a pipe")


def _refuse_second_place(mount: dict, plan: dict) -> None:
    """Raise Refused if the project or its git directory would be writable under another name."""
    if mount["kind"] != "bind":
        return
    places = [plan["project"]["root"]]
    if plan["project"]["git"] is not None:
        places.append(plan["project"]["git"]["common_dir"])
    source = mount["source"]
    if source == mount["target"] and any(policy.is_within(source, place) for place in places):
        return
    for place in places:
        if policy.is_within(source, place) or policy.is_within(place, source):
            raise Refused(f"{source} would be writable at {mount['target']}, past its protection")


def _refuse_unasked_writing(mount: dict, plan: dict, allowed: set) -> None:
    """Raise Refused for a writable mount of what is not the project's, Claude's, or asked for."""
    source, target = mount["source"], mount["target"]
    asked_for = mount["reason"] == "--mount" or mount["reason"].startswith("profile:")
    if mount["kind"] != "bind" or asked_for:
        return
    if (source, target) in allowed and target != net.RESOLVER_INSIDE:
        return
    place = plan["project"]
    own = [place["root"]] if place["git"] is None else [place["root"], place["git"]["common_dir"]]
    if not any(policy.is_within(source, each) for each in own):
        raise Refused(f"{source} would be writable, and neither a profile nor --mount asks for it")


def _refuse_hidden(plan: dict) -> None:
    """Raise Refused if a mount hides an earlier one: a cover in /proc, a protection, the home.

    What is hidden in the project on purpose may: nothing can be written there.
    """
    root = plan["project"]["root"]
    ways = set()
    for mount in plan["mounts"]:
        on_purpose = (
            mount["reason"] == "hidden"
            and mount["kind"] in ("file", "empty-dir")
            and policy.is_within(mount["target"], root)
            and mount["target"] != root
        )
        if mount["target"] in ways and not on_purpose:
            raise Refused(f"the mount on {mount['target']} would hide an earlier one")
        way = os.path.dirname(mount["target"])
        while way not in ways:
            ways.add(way)
            way = os.path.dirname(way)


def _refuse_target(mount: dict, plan: dict, allowed: set) -> None:
    kind, target = mount["kind"], mount["target"]
    if target == "/":
        raise Refused("a mount on / would show more than the plan says")
    own = {
        policy.BRIEFING_INSIDE: "briefing",
        policy.MANAGED_SETTINGS_INSIDE: "file",
        **_NEEDED_TARGETS,
    }
    if (mount.get("source"), target) in allowed or own.get(target) == kind:
        return
    if kind == "mask" and target in policy.MASKED_PROC_FILES:
        return
    for place in _OWN_TARGETS:
        if policy.is_within(target, place) or policy.is_within(place, target):
            raise Refused(f"the mount point {target} is claudebox's own")
    if policy.is_within(target, plan["user"]["home"] + "/.claude"):
        raise Refused(f"the mount point {target} lies in the instance")
    if policy.is_within(target, plan["project"]["root"]):
        _refuse_links_on_the_way(target, plan["project"]["root"])
    if kind == "symlink" and policy.is_within(target, plan["project"]["root"]):
        raise Refused(f"the link {target} would be made in the project itself, outside")


def _refuse_links_on_the_way(target: str, root: str) -> None:
    while target != root:
        target = os.path.dirname(target)
        if os.path.islink(target):
            raise Refused(f"{target}, on the way to a mount point, is a symbolic link")


def _refuse_missing_protection(plan: dict) -> None:
    """Raise Refused unless the protections are those that this host would make, in their place.

    What has the reason `protected` or `git` may be made on the host, so nothing else may have it.
    """
    place = plan["project"]
    found = project.walk(place["root"])
    needed = protection.mounts(place, found["repositories"])
    needed += instance.excluded(place, needed)
    given = [mount for mount in plan["mounts"] if mount["reason"] in ("protected", "git")]
    for mount in given:
        if mount not in needed:
            raise Refused(f"{mount['target']} is no protection, or not as it has to be")
    for mount in needed:
        if mount not in plan["mounts"]:
            raise Refused(f"{mount['target']} is not protected")


def _refuse_other_places(plan: dict) -> None:
    """Raise Refused unless the project is mounted as itself, and nothing else is made in it."""
    place = plan["project"]
    root = place["root"]
    own = {"kind": "bind", "source": root, "target": root, "reason": "project"}
    if own not in plan["mounts"]:
        raise Refused("the project is not mounted as itself")
    links = [*host.system_mounts()[0], *host.claude(root, plan["user"]["home"])[0]]
    for mount in plan["mounts"]:
        target = mount["target"]
        if mount["kind"] == "symlink" and mount not in links:
            raise Refused(f"the link {target} is none of the system's")
        if any(
            policy.is_within(target, other["target"]) and mount is not other
            for other in plan["mounts"]
            if other["kind"] == "symlink"
        ):
            raise Refused(f"{target} lies behind a link")
        if mount["reason"] not in ("protected", "git") and target != root:
            writable = [m for m in plan["mounts"] if m["kind"] == "bind" and m is not mount]
            for other in writable:
                inside = policy.is_within(target, other["target"])
                if inside and mount.get("source") != _credentials(plan):
                    raise Refused(f"{target} would be made on the host, in {other['source']}")


def _credentials(plan: dict) -> str:
    return policy.host_credentials(plan["user"]["home"])
