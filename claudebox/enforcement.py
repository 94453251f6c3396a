"""Holds a plan against the policy, whoever wrote it: an edited plan gets no more than a made one."""

import os
import stat

from claudebox import Failure, git, host, instance, net, policy, project, protection

_NEEDED_TARGETS = {
    "/proc": "proc",
    "/dev": "dev",
    "/dev/shm": "tmpfs",
    "/tmp": "tmpfs",
    "/run": "tmpfs",
}


class Refused(Failure):
    """A plan that asks for what the policy does not allow."""

    def __init__(self, problem: str):
        super().__init__(
            f"the plan is refused: {problem}", "make a new one with `claudebox plan`, or mend it"
        )
        self.problem = problem


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
    _refuse_other_nix(plan, protections_are_fresh)
    allowed = _exceptions(plan)
    for mount in plan["mounts"]:
        _refuse_mount(mount, plan, secrets, allowed)
    _refuse_hidden(plan)
    masks = {mask["target"]: "mask" for mask in policy.proc_masks()}
    for target, kind in {**_NEEDED_TARGETS, home: "tmpfs", **masks}.items():
        if not any(m["target"] == target and m["kind"] == kind for m in plan["mounts"]):
            raise Refused(f"{target} is not a {kind} mount")
    if not protections_are_fresh:
        _refuse_other_places(plan)
        _refuse_missing_protection(plan)
        _refuse_bad_hiding(plan)
        for package in plan["packages"]:
            if not all(path.startswith("/nix/store/") for path in package["paths"]):
                raise Refused(f"the package {package['reference']} is not in /nix/store")


def refuse_mount(mount: dict, plan: dict, secrets: dict) -> None:
    """Raise Refused if `plan` may not have such a mount, wherever among the others it stands.

    `secrets` are those of `policy.secret_paths`.
    """
    _refuse_mount(mount, plan, secrets, _exceptions(plan))


def refuse_place(mount: dict, plan: dict) -> None:
    """Raise Refused if `mount` could not stand after the mounts of `plan`, which has it not yet."""
    _refuse_mount_made_on_host(mount, {**plan, "mounts": [*plan["mounts"], mount]})
    for other in plan["mounts"]:
        read_only = other["reason"] == "protected" and other["kind"] != "bind"
        if read_only and policy.is_within(mount["target"], other["target"]):
            raise Refused(f"{mount['target']} lies in {other['target']}, which is protected")


def _refuse_mount(mount: dict, plan: dict, secrets: dict, allowed: set) -> None:
    if mount["kind"] in ("bind", "ro-bind"):
        _refuse_source(mount, secrets, plan["user"]["home"], allowed)
        _refuse_second_place(mount, plan)
        _refuse_unasked_writing(mount, plan, allowed)
        if mount["kind"] == "bind" and (mount["source"], mount["target"]) not in allowed:
            _refuse_repository(mount, plan)
    if mount["kind"] in ("proc", "dev") and mount["target"] != "/" + mount["kind"]:
        raise Refused(f"{mount['kind']} belongs on /{mount['kind']}, not on {mount['target']}")
    _refuse_target(mount, plan, allowed)


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
    own = host.bwrap(place["root"])
    if plan["bwrap"] not in (own, {**own, "disable_userns": False}):
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


def _has_nix_socket(plan: dict) -> bool:
    return plan["nix"] is not None and plan["nix"]["socket"]


def _refuse_other_nix(plan: dict, decided_just_now: bool) -> None:
    """Raise Refused unless the nix daemon's socket is inside where the plan says so, and may.

    What builds for the sandbox outside of it has to sandbox that itself, or be trusted with it by
    `nix.trust`, which the audit shows.
    """
    own = policy.nix_socket_mount()
    mounted = False
    for mount in plan["mounts"]:
        places = (mount["target"], mount.get("source", "")) if mount["kind"] != "symlink" else ()
        if not any(policy.is_within(place, "/nix/var") for place in places):
            continue
        if mount != own:
            raise Refused(f"the mount on {mount['target']} is not that of the nix daemon's socket")
        mounted = True
    if mounted != _has_nix_socket(plan):
        raise Refused("it says that the nix daemon's socket is inside, or not, and it is otherwise")
    if mounted and not decided_just_now:
        from claudebox import nix

        mode = "trust" if plan["nix"]["trust"] else "auto"
        now = nix.decision(mode)
        if now is None or not now["socket"]:
            raise Refused(
                f"the nix daemon's socket may not be inside: {now['reason'] if now else 'no daemon'}"
            )


def _refuse_variables(plan: dict) -> None:
    own = {*policy.OWN_VARIABLES, *(policy.NIX_VARIABLES if _has_nix_socket(plan) else ())}
    for variable in plan["env"]:
        name = variable["name"]
        if policy.variable_forbidden(name):
            raise Refused(f"the variable {name} acts on the sandbox's own programs, outside")
        if name in own and variable["source"] != "claudebox":
            raise Refused(f"the variable {name} is claudebox's to set")


def _exceptions(plan: dict) -> set[tuple[str, str]]:
    """Return the (source, target) pairs that are let in although a secret path is touched."""
    home = plan["user"]["home"]
    state = policy.state_home(home)
    nix = (policy.NIX_SOCKET_DIRECTORY, policy.NIX_SOCKET_DIRECTORY)
    return {
        *([nix] if _has_nix_socket(plan) else ()),
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
    """Raise Refused if the project or its git directory would be writable under another name.

    Or readable there, if something in it is hidden.
    """
    root = plan["project"]["root"]
    source, target = mount["source"], mount["target"]
    if mount["kind"] != "bind":
        elsewhere = policy.is_within(source, root) and source != target
        # What holds the project and shows it where it is, is covered by it there.
        if policy.is_within(root, source) and target != source:
            elsewhere = True
        if plan["hide"] and elsewhere:
            raise Refused(f"{source} at {target} would show what is hidden in the project")
        return
    places = [root]
    if plan["project"]["git"] is not None:
        places.append(plan["project"]["git"]["common_dir"])
    if source == target and any(policy.is_within(source, place) for place in places):
        return
    for place in places:
        if policy.is_within(source, place) or policy.is_within(place, source):
            raise Refused(f"{source} would be writable at {target}, past its protection")


def _refuse_repository(mount: dict, plan: dict) -> None:
    """Raise Refused for another git repository that would be writable: its hooks would be, too."""
    source = mount["source"]
    own = [plan["project"]["root"]]
    if plan["project"]["git"] is not None:
        own.append(plan["project"]["git"]["common_dir"])
    if any(policy.is_within(source, place) for place in own):
        return
    if os.path.lexists(source + "/.git"):
        raise Refused(f"{source} is a git repository, whose hooks would be writable and run later")
    while source != "/":
        if os.path.basename(source) == ".git" or git.is_git_directory(source):
            raise Refused(
                f"{mount['source']} belongs to a git directory, whose hooks would be writable"
            )
        source = os.path.dirname(source)


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
    for place in policy.OWN_TARGETS:
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
    hiding = [m for m in plan["mounts"] if m["reason"] == "hidden" and m["kind"] != "bind"]
    hidden = {mount["target"] for mount in hiding}
    for mount in needed:
        covers = [m for m in hiding if policy.is_within(mount["target"], m["target"])]
        if covers:
            # Nothing can be written to what is hidden.
            mount = covers[-1]
        elif mount not in plan["mounts"]:
            raise Refused(f"{mount['target']} is not protected")
        for later in plan["mounts"][plan["mounts"].index(mount) + 1 :]:
            if (
                mount["kind"] != "bind"
                and later["target"] not in hidden
                and policy.is_within(later["target"], mount["target"])
            ):
                raise Refused(
                    f"the mount on {later['target']} would undo the protection of {mount['target']}"
                )


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
            _refuse_mount_made_on_host(mount, plan)


def _refuse_mount_made_on_host(mount: dict, plan: dict) -> None:
    """Raise Refused if the mount point would be made in a directory of the host.

    bwrap makes what is missing, and that stays.
    """
    target = mount["target"]
    if mount.get("source") == _credentials(plan):
        return
    for other in plan["mounts"]:
        if other["kind"] != "bind" or other is mount:
            continue
        if policy.is_within(target, other["target"]):
            place = other["source"] + target[len(other["target"]) :]
            if not _can_be_mounted_on(place, mount):
                raise Refused(f"{target} would be made on the host, in {other['source']}")


def _can_be_mounted_on(place: str, mount: dict) -> bool:
    """Say whether `place` on the host is there, behind no link, and a directory if `mount` is one."""
    try:
        mode = os.lstat(place).st_mode
    except OSError:
        return False
    if mount["kind"] in ("bind", "ro-bind"):
        is_directory = os.path.isdir(mount["source"])
    else:
        is_directory = mount["kind"] in ("tmpfs", "empty-dir")
    return (
        stat.S_ISDIR(mode) == is_directory
        and not stat.S_ISLNK(mode)
        and os.path.realpath(place) == place
    )


def _refuse_bad_hiding(plan: dict) -> None:
    """Raise Refused unless all that is to be hidden is covered, and nothing else is with that reason."""
    root = plan["project"]["root"]
    contents = ("", *policy.PROTECTED_PROJECT_PATHS.values())
    for mount in plan["mounts"]:
        if mount["reason"] != "hidden":
            continue
        target, kind = mount["target"], mount["kind"]
        here = kind != "bind" and policy.is_within(plan["project"]["cwd"], target)
        if not policy.is_within(target, root) or here:
            raise Refused(f"{target} cannot be hidden: only what is in the project can")
        if kind == "bind" or (kind == "file" and mount["content"] in contents):
            continue
        if kind != "empty-dir":
            raise Refused(f"{target} is not hidden by a mount of this kind")
    if not plan["hide"]:
        return
    from claudebox import hiding

    for pattern in plan["hide"]:
        problem = hiding.problem(pattern["pattern"])
        if problem:
            raise Refused(f'"{pattern["pattern"]}" cannot be hidden: {problem}')
    for path, _ in hiding.find(root, [pattern["pattern"] for pattern in plan["hide"]]).paths():
        _refuse_uncovered(path, plan)


def _refuse_uncovered(path: str, plan: dict) -> None:
    root = plan["project"]["root"]

    def seen_at(place):
        return [m for m in plan["mounts"] if policy.is_within(place, m["target"])][-1]

    cover = seen_at(path)
    if cover["kind"] in ("bind", "ro-bind"):
        if not policy.is_within(cover["source"], root):
            # Another directory of the host lies over this one.
            return
        raise Refused(f"{path} is to be hidden and is not: the project may have changed")
    directory = os.path.dirname(cover["target"])
    while directory != root and policy.is_within(directory, root):
        seen = seen_at(directory)
        if seen["kind"] == "ro-bind":
            return
        if seen["target"] != directory:
            raise Refused(f"{path} is hidden, but {directory} could be renamed")
        directory = os.path.dirname(directory)


def _credentials(plan: dict) -> str:
    return policy.host_credentials(plan["user"]["home"])
