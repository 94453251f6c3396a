"""claudebox-instance: the base plan of a directory, and the state that belongs to it.

`resolve(directory)` is the head of the pipeline: it looks at the host and changes nothing.
"""

import os
import sys

from claudebox import Failure, git, git_identity, host, net, plan, policy, project, protection


def instance_of(root: str, home: str) -> dict:
    """Return the plan's `instance` for a resolved project root: id, path and root."""
    identity = identity_of(root)
    path = f"{policy.state_home(home)}/instances/{identity}"
    return {"id": identity, "path": path, "root": root}


def sha256():
    """Return a new SHA-256 of the C module: hashlib, which has OpenSSL's too, takes 3 ms to import."""
    for module in ("_sha256", "_sha2"):
        try:
            # Python 3.12 made one module of the two of SHA-2.
            return __import__(module).sha256()
        except ImportError:
            continue
    import hashlib

    return hashlib.sha256()


def identity_of(root: str) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a path's bytes."""
    total = sha256()
    total.update(os.fsencode(root))
    return total.hexdigest()[:16]


def resolve(
    directory: str = ".",
    repo=False,
    shell=False,
    arguments=(),
    nix_mode="auto",
    with_claude=True,
) -> dict:
    """Return the base plan for a session in `directory`.

    With `repo` the project is the repository that holds the directory, otherwise the directory
    alone; with `shell` a shell runs instead of Claude Code; `arguments` go to either; `nix_mode`
    says whether the socket of a nix daemon is inside (policy.NIX_MODES);
    without `with_claude` the sandbox is made although Claude Code is not installed.
    Raises Failure where a session is refused or a program is missing.
    """
    user = host.user()
    home = user["home"]
    if home == "/":
        raise Failure("the home directory is /", "set HOME to a directory of its own")
    cwd = os.path.realpath(directory)
    if not os.path.isdir(cwd):
        raise Failure(f"{directory} is not a directory", "name the directory of a project")
    root = cwd
    if repo:
        root = git.toplevel(cwd)
        if root is None:
            raise Failure(f"{cwd} is not in a git repository", "leave --repo out", status=2)
    secrets = policy.refuse_secret_project(root, home)
    identity = git_identity.GitIdentity(root, home)
    notes = []
    repository = _repository(root, home, secrets, notes)
    instance = instance_of(git.main_root(repository, root), home)
    place = {"cwd": cwd, "root": root, "git": repository}

    found = project.walk(root)
    if not found["complete"]:
        notes.append(
            f"only the first {project.ENTRY_LIMIT} entries of the project were looked at:"
            " nested git repositories beyond them are not protected, secrets not listed"
        )
    protected = protection.mounts(place, found["repositories"])
    protected.extend(excluded(place, protected))

    system, path, default_shell = host.system_mounts()
    tools, tools_on_path = host.claude(root, home) if with_claude else ([], False)
    if tools_on_path:
        path = f"{policy.TOOLS_INSIDE}:{path}"
    nix, nix_tools, path = _nix(nix_mode, root, path, (*system, *tools))
    if shell:
        command = [default_shell, *arguments]
    else:
        command = ["claude", "--dangerously-skip-permissions", *arguments]
    return {
        "schema": plan.SCHEMA,
        "project": place,
        "instance": instance,
        "user": user,
        "profile": None,
        "network": {"tier": net.DEFAULT_TIER, "source": "default"},
        "nix": nix,
        "bwrap": host.bwrap(root),
        "limits": policy.limits(host.memory()),
        "packages": [],
        "env": _environment(home, path, default_shell, nix, notes),
        "mounts": [
            *system,
            *_generated(user, root, identity),
            {"kind": "tmpfs", "target": home, "reason": "system"},
            *_state(instance, home, notes),
            *tools,
            *nix_tools,
            {"kind": "bind", "source": root, "target": root, "reason": "project"},
            *protected,
        ],
        "hide": [],
        "command": command,
        "notes": notes,
    }


def _nix(mode: str, root: str, path: str, others) -> tuple[dict | None, list, str]:
    """Return the plan's `nix`, its mounts beside `others`, and the PATH with `nix` in it."""
    if mode == "auto" and not os.path.lexists(policy.NIX_SOCKET):
        return None, [], path
    from claudebox import nix

    chosen = nix.decision(mode)
    if chosen is None or not chosen["socket"]:
        return chosen, [], path
    targets = {mount["target"] for mount in others}
    mounts = [mount for mount in nix.socket_mounts() if mount["target"] not in targets]
    directory = nix.client_directory(root)
    if directory and directory not in path.split(":") and not host.shows_store():
        path += f":{directory}"
    return chosen, mounts, path


def _repository(root: str, home: str, secrets: dict, notes: list[str]) -> dict | None:
    repository = git.discover(root)
    if repository is None:
        above = git.toplevel(root)
        if above is not None:
            notes.append(
                f"git is not available inside: the repository is {above};"
                " --repo mounts all of it, read-write"
            )
        return None
    common = repository["common_dir"]
    reason = policy.exposed_secret(common, secrets, home)
    if reason:
        raise Failure(
            f"the repository's git directory {common} cannot be mounted: {reason}",
            "move the repository",
        )
    return repository


def excluded(place: dict, protected: list[dict]) -> list[dict]:
    """Return the mount that keeps the stand-ins for absent files out of `git add`."""
    root = place["root"]
    names = [
        mount["target"][len(root) :]
        for mount in protected
        if mount["kind"] in ("file", "empty-dir")
        and mount["target"].startswith(root + "/")
        and "/.git/" not in mount["target"]
    ]
    if place["git"] is None or not names:
        return []
    path = place["git"]["common_dir"] + "/info/exclude"
    if not any(mount["target"] == os.path.dirname(path) for mount in protected):
        return []
    content = git.read_small_file(path, 1 << 20) if os.path.lexists(path) else ""
    if content is None:
        return []
    if content and not content.endswith("\n"):
        content += "\n"
    content += "# read-only stand-ins of claudebox\n" + "".join(name + "\n" for name in names)
    return [{"kind": "file", "content": content, "target": path, "reason": "protected"}]


def _environment(
    home: str, path: str, shell: str, nix: dict | None, notes: list[str]
) -> list[dict]:
    variables = []
    for name in sorted(os.environ):
        if policy.host_variable_allowed(name) and name != policy.API_KEY:
            variables.append({"name": name, "source": "host"})
    if os.environ.get(policy.API_KEY):
        variables.append({"name": policy.API_KEY, "source": "host", "secret": True})
    elif policy.API_KEY in os.environ:
        notes.append(f"{policy.API_KEY} is set but empty: treated as unset")
    own = {
        "HOME": home,
        "PATH": path,
        "SHELL": shell,
        "TMPDIR": "/tmp",
        "CLAUDE_CONFIG_DIR": home + "/.claude",
        "CLAUDE_SECURESTORAGE_CONFIG_DIR": policy.CREDENTIALS_INSIDE,
        **policy.CLAUDE_VARIABLES,
        **(policy.NIX_VARIABLES if nix and nix["socket"] else {}),
    }
    variables.extend(
        {"name": name, "source": "claudebox", "value": value} for name, value in own.items()
    )
    return variables


def _generated(user: dict, root: str, identity: git_identity.GitIdentity) -> list[dict]:
    """Return the mounts of what claudebox makes itself: /proc, /dev, /tmp and a small /etc."""

    def file(target, content):
        return {"kind": "file", "content": content, "target": target, "reason": "system"}

    name, uid, gid, home = user["name"], user["uid"], user["gid"], user["home"]
    accounts = {0: f"root:x:0:0:root:{home if uid == 0 else '/root'}:/bin/sh\n"}
    accounts[65534] = "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    if uid != 0:
        accounts[uid] = f"{name}:x:{uid}:{gid}:{name}:{home}:/bin/sh\n"
    groups = {0: "root:x:0:\n", 65534: "nogroup:x:65534:\n"}
    if gid != 0:
        groups[gid] = f"{name}:x:{gid}:\n"
    return [
        {"kind": "proc", "target": "/proc", "reason": "system"},
        *policy.proc_masks(),
        {"kind": "dev", "target": "/dev", "reason": "system"},
        {"kind": "tmpfs", "target": "/dev/shm", "reason": "system"},
        {"kind": "tmpfs", "target": "/run", "reason": "system"},
        {"kind": "tmpfs", "target": "/tmp", "reason": "system"},
        {"kind": "tmpfs", "target": "/var/tmp", "reason": "system"},
        file("/etc/passwd", "".join(accounts.values())),
        file("/etc/group", "".join(groups.values())),
        file("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        file("/etc/hosts", "127.0.0.1 localhost claudebox\n::1 localhost\n"),
        file("/etc/gitconfig", _git_configuration(identity.settings(), root)),
        net.resolver_mount(net.DEFAULT_TIER),
        {"kind": "briefing", "target": policy.BRIEFING_INSIDE, "reason": "system"},
        file(policy.MANAGED_SETTINGS_INSIDE, policy.MANAGED_SETTINGS),
    ]


def _git_configuration(settings: dict[str, str], root: str) -> str:
    def quoted(value):
        for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
            value = value.replace(plain, escaped)
        return f'"{value}"'

    text = f"[safe]\n\tdirectory = {quoted(root)}\n"
    for section in ("user", "init"):
        lines = [
            f"\t{key.partition('.')[2]} = {quoted(value)}\n"
            for key, value in settings.items()
            if key.startswith(section + ".")
        ]
        if lines:
            text += f"[{section}]\n" + "".join(lines)
    return text


def _state(instance: dict, home: str, notes: list[str]) -> list[dict]:
    """Return the mounts of Claude's state and of the credentials.

    The shared directory holds the lock that keeps two sandboxes from spending the same refresh
    token; the host's own file lies over the one in it, if the host has one.
    """
    mounts = [
        {
            "kind": "bind",
            "source": instance["path"] + "/claude",
            "target": home + "/.claude",
            "reason": "instance",
        },
        {
            "kind": "bind",
            "source": policy.state_home(home) + "/credentials",
            "target": policy.CREDENTIALS_INSIDE,
            "reason": "credentials",
        },
    ]
    credentials = policy.host_credentials(home)
    if os.path.isfile(credentials):
        if "mcpOAuth" in (git.read_small_file(credentials, 1 << 20) or ""):
            notes.append(
                "the credentials file holds tokens of MCP servers too, which are then readable inside"
            )
        mounts.append(
            {
                "kind": "bind",
                "source": credentials,
                "target": policy.CREDENTIALS_INSIDE + "/.credentials.json",
                "reason": "credentials",
            }
        )
    return mounts


def _instance_at(directory: str) -> dict:
    root = os.path.realpath(directory)
    return instance_of(git.main_root(git.discover(root), root), host.user()["home"])


def _list(as_json: bool) -> int:
    from time import time

    from claudebox import instances
    from claudebox.printable import printable

    rows = []
    for found in instances.every(host.user()["home"]):
        row = {"id": found.identity, "root": found.root, "size": 0, "last_used": found.last_used}
        if found.problem:
            row["state"] = found.problem
        else:
            row["size"] = found.size()
            row["state"] = "live" if found.is_live() else found.root_state()
        rows.append(row)
        if not as_json:
            age = instances.human_age(time() - found.last_used) if found.last_used else "?"
            sys.stdout.write(
                f"{printable(row['id']):<16}  {instances.human_size(row['size']):>5}  {age:>10}"
                f"  {printable(row['state']):<11}  {printable(row['root'] or '?')}\n"
            )
    if as_json:
        from claudebox import json_text

        sys.stdout.write(json_text.dumps(rows) + "\n")
    return 0


def _remove(place: str, yes: bool) -> int:
    from claudebox import audit, instances
    from claudebox.printable import printable

    home = host.user()["home"]
    wanted = place if "/" not in place and len(place) == 16 else _instance_at(place)["id"]
    for found in instances.every(home):
        if found.identity != wanted:
            continue
        if found.problem:
            raise Failure(f"{found.path} is not removed: {found.problem}", "look at it yourself")
        if found.is_live():
            raise Failure(f"{found.path} is in use by a session", "end that session first")
        question = f"Remove Claude's history and settings of {printable(found.root)}?"
        if not yes and not audit.ask(question):
            raise Failure("not confirmed, so nothing was removed", "answer y to remove")
        instances.remove(home, found)
        instances.empty_trash(home)
        return 0
    raise Failure(f"there is no instance of {place}", "see `claudebox instance list`")


def main(arguments: list[str]) -> int:
    """Run `claudebox-instance`: exit status 0, 1 for a refusal, 2 for wrong usage."""
    from claudebox import command

    arguments, inside = command.split_arguments(arguments)
    parser = command.parser("claudebox-instance", "The instance of a project.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    resolve_parser = actions.add_parser(
        "resolve",
        help="print the base plan of a directory",
        description="directory → plan; what follows -- goes to Claude Code, or to the shell",
    )
    resolve_parser.add_argument("directory", nargs="?", default=".", metavar="DIR")
    command.add_place_options(resolve_parser)
    list_parser = actions.add_parser("list", help="list the instances")
    list_parser.add_argument("--json", action="store_true", help="print JSON")
    path_parser = actions.add_parser("path", help="print the instance's path of a directory")
    path_parser.add_argument("directory", nargs="?", default=".", metavar="DIR")
    remove_parser = actions.add_parser("remove", help="remove the instance of a directory")
    remove_parser.add_argument(
        "directory", metavar="DIR|ID", help="the project's directory, or the id that list shows"
    )
    remove_parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    options = parser.parse_args(arguments)
    if options.action == "list":
        return _list(options.json)
    if options.action == "path":
        sys.stdout.write(_instance_at(options.directory)["path"] + "\n")
        return 0
    if options.action == "remove":
        return _remove(options.directory, options.yes)
    command.write_plan(resolve(options.directory, options.repo, options.shell, inside, options.nix))
    return 0
