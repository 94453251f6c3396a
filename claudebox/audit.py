"""claudebox-audit: shows what a plan lets in, and asks.

`report(plan)` is the audit as data, `table` shows it to a person, `gate` asks; `main` is the filter
that passes the plan on if the answer was yes.
"""

import os
import sys

from claudebox import Failure, mounts, policy, project
from claudebox.printable import printable

# Beginnings of tokens that their issuers document.
TOKEN_PREFIXES = (
    "sk-",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "AKIA",
    "ASIA",
    "AIza",
    "ya29.",
    "xoxb-",
    "xoxp-",
    "xapp-",
    "npm_",
    "pypi-",
    "dop_v1_",
    "hf_",
    "hvs.",
    "eyJ",
    "-----BEGIN",
    "AGE-SECRET-KEY-",
    "SG.",
    "rk_live_",
    "sk_live_",
    "whsec_",
)
SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "APIKEY", "PRIVATE")
_LIST_LIMIT = 8
_CURES = {
    "processes": "be another user than root",
    "memory": "`systemd-run --user --scope claudebox` may help; when the machine has none left, the"
    " session is killed first",
}
_HIDDEN_LIMIT = 30
# Characters of the name of a file in the project.
_PATH_LIMIT = 120
_REASONS = (
    ("project", "project"),
    ("git", "the repository's git directory"),
    ("instance", "Claude's state for this project"),
    ("credentials", "Claude's credentials"),
    ("protected", "read-only in the project: would run outside later"),
    ("toolchain", "toolchain"),
    ("nix", "the nix daemon: builds for this sandbox, outside of it"),
    ("system", "system"),
)


def masked(value: str) -> str:
    """Return a value so that it can be recognised, not used: whole masks up to 8 characters."""
    count = f"({len(value)} char{'' if len(value) == 1 else 's'})"
    if len(value) <= 8:
        return f"{'•' * len(value)} {count}" if value else "(empty)"
    # Show no more than a quarter of it.
    shown = min(4, len(value) // 8)
    start = value[:7] if value.startswith("sk-ant-") and len(value) >= 32 else value[:shown]
    return f"{start}…{value[-shown:]} {count}"


def secret_reason(name: str, value: str) -> str | None:
    """Return why a variable looks like a secret, or None if it does not."""
    upper = name.upper()
    if any(word in upper for word in SECRET_WORDS) or upper.endswith(("_KEY", "_PAT", "_AUTH")):
        return "its name looks like a secret"
    if value.startswith(TOKEN_PREFIXES):
        return "its value begins like a token"
    if _is_random(value):
        return "its value looks random"
    if "://" in value and "@" in value.partition("://")[2].partition("/")[0]:
        return "its value is an address with a password"
    return None


def _is_random(value: str) -> bool:
    """Say whether a value has 20 or more characters, letters and digits mixed, 3.5 bits in each."""
    if len(value) < 20 or not value.isascii() or " " in value or ":" in value or value[0] in "/~.":
        return False
    if not (any(c.isdigit() for c in value) and any(c.isalpha() for c in value)):
        return False
    if all(word.isdigit() or word.isalpha() for word in _words(value)):
        # Such as the name of a model with its date.
        return False
    from math import log2

    frequencies = [value.count(character) / len(value) for character in set(value)]
    return -sum(share * log2(share) for share in frequencies) > 3.5


def _words(value: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in value).split()


def report(plan: dict, environ=os.environ) -> dict:
    """Return the audit of `plan` as JSON-ready data; values of variables are masked in it."""
    warnings = list(plan["notes"])
    variables = []
    for variable in plan["env"]:
        name = variable["name"]
        entry = {"name": name, "source": variable["source"]}
        if variable["source"] == "host":
            value = environ.get(name)
            entry["value"] = "(not set)" if value is None else masked(value)
            if "reason" in variable:
                entry["reason"] = variable["reason"]
            reason = secret_reason(name, value or "")
            entry["secret"] = bool(variable.get("secret") or reason)
            if reason and name != policy.API_KEY:
                warnings.append(f"{name} is let in: {reason}")
        else:
            entry["value"] = variable["value"]
            if "reason" in variable:
                entry["reason"] = variable["reason"]
            reason = secret_reason(name, variable["value"])
            if reason:
                entry |= {"value": masked(variable["value"]), "secret": True}
                warnings.append(f"{name} has its value in the plan itself: {reason}")
        variables.append(entry)
    places = [
        {
            "target": mount["target"],
            "mode": "rw" if mount["kind"] in ("bind", "tmpfs", "dev", "proc") else "ro",
            "kind": mount["kind"],
            "reason": mount["reason"],
            **({"source": mount["source"]} if "source" in mount else {}),
        }
        for mount in plan["mounts"]
    ]
    hidden = _hidden(plan)
    warnings.extend(_project_warnings(plan))
    warnings.extend(_writable_warnings(plan, environ))
    from claudebox.sandbox import landlock

    obstacle = landlock.obstacle(plan["bwrap"]["path"])
    if plan["network"]["tier"] == "full":
        included = "services and its abstract sockets" if obstacle else "services"
        warnings.append(
            f"network full: everything that this machine can reach, its own {included} included"
        )
    if obstacle:
        warnings.append(
            f"{obstacle}: what runs inside can send signals to the process group of claudebox"
        )
    warnings.extend(_nix_warnings(plan))
    warnings.extend(_limit_warnings(plan))
    if plan["bwrap"]["disable_userns"] is None:
        warnings.append(
            "this bwrap cannot forbid further user namespaces inside (bubblewrap 0.8.0 can): the"
            " system call filter alone does"
        )
    elif not plan["bwrap"]["disable_userns"]:
        warnings.append(
            "nested namespaces: what runs inside can make namespaces and mounts of its own, and so"
            " reach more of the kernel"
        )
    return {
        "project": plan["project"],
        "instance": plan["instance"],
        "profile": plan["profile"],
        "network": plan["network"],
        "limits": plan["limits"],
        "nix": plan["nix"],
        "command": plan["command"],
        "env": variables,
        "packages": plan["packages"],
        "mounts": places,
        "hidden": hidden,
        "warnings": warnings,
    }


def _nix_warnings(plan: dict) -> list[str]:
    if plan["nix"] is None or not plan["nix"]["socket"]:
        return []
    warnings = []
    if plan["nix"]["trust"]:
        warnings.append(
            f"the nix daemon's socket is inside ({plan['nix']['reason']}): what it builds for this"
            " session runs outside the sandbox"
        )
    if plan["network"]["tier"] != "full":
        warnings.append(
            f"network {plan['network']['tier']}: does not hold for the nix daemon: a build whose"
            " result is known beforehand (a download) has the host's own network (--nix=off)"
        )
    return warnings


def _limit_warnings(plan: dict) -> list[str]:
    """Return what of the plan's limits this host cannot enforce, and which there are none of."""
    from claudebox.sandbox import limits

    enforceable = limits.enforceable(plan["user"]["uid"])
    warnings = []
    for key, name in (("processes", "the number of processes"), ("memory", "memory")):
        if plan["limits"][key] is None:
            warnings.append(f"{name} is not limited: the plan says so")
        elif enforceable[key] is None:
            warnings.append(
                f"{name} cannot be limited on this host, which lets no control group be made here:"
                f" {_CURES[key]}"
            )
    if plan["limits"]["tmp"] is None:
        warnings.append("/tmp and the home directory may grow to half of the machine's memory each")
    return warnings


def _covered(plan: dict) -> dict[str, bool]:
    """Return what is hidden: path → whether it is a directory."""
    return {
        mount["target"]: mount["kind"] == "empty-dir"
        for mount in plan["mounts"]
        if mount["reason"] == "hidden" and mount["kind"] != "bind"
    }


def _hidden(plan: dict) -> list[dict]:
    """Return the hide patterns of `plan`, each with the paths that it hides in the project.

    The pattern None has what is hidden because it is another name of something that matches.
    """
    if not plan["hide"]:
        return []
    from claudebox import hiding

    root = plan["project"]["root"]
    paths = {path[len(root) + 1 :]: directory for path, directory in _covered(plan).items()}
    others = dict.fromkeys(paths)
    found = []
    for entry in plan["hide"]:
        pattern = hiding.Pattern(entry["pattern"])
        files = [path for path, directory in paths.items() if pattern.matches(path, directory)]
        found.append({**entry, "files": files})
        for path in files:
            others.pop(path, None)
    if others:
        reason = "other names of what is hidden"
        found.append({"pattern": None, "reason": reason, "files": list(others)})
    return found


def _tracked_warnings(plan: dict, repositories: list[str]) -> list[str]:
    """Warn of what is hidden and tracked: the objects of the repository hold it as well."""
    covered = _covered(plan)
    if not covered:
        return []
    from claudebox import git_index

    root = plan["project"]["root"]
    try:
        tracked = git_index.tracked(root, list(covered), repositories)
    except git_index.UnreadableIndex as error:
        return [f"{error}: not readable, so .git may hold hidden files that this does not name"]
    if not tracked:
        return []
    return [f"hidden, but git tracks it, so .git still holds it: {_list_of(tracked, root)}"]


def _writable_warnings(plan: dict, environ) -> list[str]:
    """Warn of the user's own writable mounts in which something may be run outside later."""
    warnings = []
    for mount in plan["mounts"]:
        if mount["kind"] != "bind" or not _is_users(mount["reason"]):
            continue
        source = mount["source"]
        for directory in environ.get("PATH", "").split(":"):
            real = os.path.realpath(directory) if directory.startswith("/") else ""
            if real and (policy.is_within(real, source) or policy.is_within(source, real)):
                warnings.append(
                    f"{source} is writable inside, and programs in it run outside (PATH)"
                )
                break
        found = project.walk(source)["repositories"] if os.path.isdir(source) else []
        if found:
            names = _list_of(found, source)
            warnings.append(
                f"{source} is writable inside, with the git repositories in it: {names}"
            )
    return warnings


def _is_users(reason: str) -> bool:
    return reason == "--mount" or reason.startswith("profile:")


def _list_of(paths: list[str], root: str) -> str:
    names = ", ".join(_short(path[len(root) + 1 :]) for path in paths[:_LIST_LIMIT])
    return f"{names} and {len(paths) - _LIST_LIMIT} more" if len(paths) > _LIST_LIMIT else names


def _short(path: str) -> str:
    """Return a path of the project, cut: a long one could fill lines that look like others."""
    return path if len(path) <= _PATH_LIMIT else path[: _PATH_LIMIT - 1] + "…"


def _project_warnings(plan: dict) -> list[str]:
    root = plan["project"]["root"]
    found = project.walk(root)
    warnings = _tracked_warnings(plan, found["repositories"])
    covered = _covered(plan)
    for key, says in (
        ("secrets", "look like secrets and are readable inside"),
        ("hard_links", "have another name elsewhere (hard links), which is then readable inside"),
    ):
        files = found[key]
        if covered:
            files = [
                file for file in files if not any(policy.is_within(file, path) for path in covered)
            ]
        if files:
            warnings.append(f"{len(files)} file(s) {says}: {_list_of(files, root)}")
    below = mounts.below(root)
    if below:
        warnings.append(f"mounted below the project, and so inside as well: {', '.join(below)}")
    return warnings


class Ink:
    """Terminal colours, or none where the stream is no terminal or NO_COLOR is set (no-color.org)."""

    def __init__(self, stream, environ=os.environ):
        colour = stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        self._codes = (
            {"heading": "1", "weak": "2", "warning": "33", "write": "35"} if colour else {}
        )

    def __call__(self, style: str, text: str) -> str:
        code = self._codes.get(style)
        return f"\x1b[{code}m{text}\x1b[0m" if code else text


def table(audit: dict, ink) -> str:
    """Return the audit as text in aligned columns. `ink` colours words: a callable (style, text)."""
    lines = [ink("heading", "claudebox: what will be visible inside")]

    def row(label, *words):
        lines.append(f"  {label:<10}{' '.join(word for word in words if word)}")

    place, instance, network = audit["project"], audit["instance"], audit["network"]
    row("project", printable(place["root"]))
    if place["cwd"] != place["root"]:
        row("start in", printable(place["cwd"]))
    row("git", _git_words(place, ink))
    row("instance", printable(instance["id"]), ink("weak", printable(instance["path"])))
    row("network", network["tier"], ink("weak", f"decided by: {printable(network['source'])}"))
    if "sidecars" in network:
        row("", "joined to the internet by", " or else ".join(network["sidecars"]))
    for exception in network.get("allow", ()):
        row("", ink("warning", f"allowed beyond the tier: {printable(exception)}"))
    row("limits", _limit_words(audit["limits"]))
    row("profile", _profile_words(audit["profile"], ink))
    if audit["nix"]:
        inside = "inside:" if audit["nix"]["socket"] else "not inside:"
        row(
            "nix",
            f"the daemon's socket is {inside}",
            ink("weak", printable(audit["nix"]["reason"])),
        )
    row("command", printable(" ".join(audit["command"])))

    lines.append(ink("heading", "environment"))
    rows = []
    for variable in audit["env"]:
        words = [variable["source"], variable.get("reason", "")]
        source = printable(" ".join(words[1:] if words[0] == "profile" else words).strip())
        value = printable(variable["value"])
        if variable.get("secret"):
            value += ink("warning", "  secret")
        rows.append((variable["name"], source, value))
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for name, source, value in rows:
        lines.append(f"  {name:<{widths[0]}}  {ink('weak', f'{source:<{widths[1]}}')}  {value}")

    if audit["packages"]:
        lines.append(ink("heading", "packages"))
        for package in audit["packages"]:
            source = ink("weak", printable(package["reason"]))
            lines.append(f"  {printable(package['reference'])}  {source}")

    known = dict(_REASONS)
    order = [reason for reason, _ in _REASONS]
    order += sorted({m["reason"] for m in audit["mounts"]} - known.keys() - {"hidden"})
    lines.append(ink("heading", "files"))
    for reason in order:
        group = [mount for mount in audit["mounts"] if mount["reason"] == reason]
        if group:
            lines.append("  " + ink("weak", printable(known.get(reason, reason))))
            lines.extend(_mount_lines(reason, group, ink))

    if audit["hidden"]:
        lines.append(ink("heading", "hidden in the project"))
        lines.extend(_hidden_lines(audit["hidden"], ink))

    if audit["warnings"]:
        lines.append(ink("heading", "warnings"))
        lines.extend(ink("warning", f"  ! {printable(text)}") for text in audit["warnings"])
    return "\n".join(lines) + "\n"


def _limit_words(limits: dict) -> str:
    words = []
    if limits["processes"] is not None:
        words.append(f"{limits['processes']} processes")
    for key, name in (("memory", "memory"), ("tmp", "/tmp")):
        if limits[key] is not None:
            words.append(f"{limits[key] / 2**30:.3g} GiB of {name}")
    return ", ".join(words) or "none"


def _profile_words(profile: dict | None, ink) -> str:
    if profile is None:
        return "none"
    name = printable(profile["name"])
    if len(profile["chain"]) < 2:
        return name
    return f"{name} {ink('weak', printable(' → '.join(profile['chain'])))}"


def _hidden_lines(hidden: list[dict], ink) -> list[str]:
    lines = []
    for entry in hidden:
        name = "" if entry["pattern"] is None else f"{printable(entry['pattern'])}  "
        lines.append(f"  {name}{ink('weak', printable(entry['reason']))}")
        if not entry["files"]:
            lines.append(f"    {ink('warning', 'matches nothing')}")
        lines.extend(
            f"    --  {printable(_short(path))}" for path in entry["files"][:_HIDDEN_LIMIT]
        )
        if len(entry["files"]) > _HIDDEN_LIMIT:
            lines.append(f"    and {len(entry['files']) - _HIDDEN_LIMIT} more")
    return lines


def _git_words(place: dict, ink) -> str:
    repository = place["git"]
    if repository is None:
        return "none"
    if repository["worktree"]:
        return f"linked worktree of {printable(repository['common_dir'])}"
    return printable(repository["common_dir"])


def _mount_lines(reason: str, group: list[dict], ink) -> list[str]:
    if reason == "protected":
        # What is bound on itself only so that it cannot be renamed is writable already: not listed.
        group = [m for m in group if m["mode"] == "ro" or m.get("source") != m["target"]]
    covered = [mount["target"] for mount in group if mount["kind"] == "mask"]
    group = [mount for mount in group if mount["kind"] != "mask"]
    lines = []
    if covered:
        lines.append(f"    --  {printable(', '.join(covered))}{ink('weak', '  covered')}")
    for mount in group:
        mode = ink("write", "rw") if mount["mode"] == "rw" else "ro"
        source = mount.get("source", mount["target"])
        target = printable(mount["target"])
        if mount["kind"] in ("bind", "ro-bind"):
            origin = "" if source == mount["target"] else f"  from {printable(source)}"
            if mount["kind"] == "bind" and _is_users(reason):
                origin += "  changes stay"
        elif mount["kind"] == "symlink":
            origin = f"  link to {printable(source)}"
        else:
            kinds = {"file": "made by claudebox", "briefing": "made by claudebox: SANDBOX.md"}
            kinds |= {"mask": "covered", "tmpfs": "empty, thrown away", "empty-dir": "empty"}
            origin = "  " + kinds.get(mount["kind"], "fresh")
        lines.append(f"    {mode}  {target}{ink('weak', origin)}")
    return lines


def ask(question: str) -> bool:
    """Ask on the controlling terminal; anything but y or yes is a no.

    Raises Failure if there is no terminal.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        # `su -l` and the like leave a terminal that controls nothing.
        if not os.isatty(0):
            raise Failure(
                "there is no terminal to ask on, so nothing was done",
                "add --yes if that is what you want",
            ) from None
        terminal = os.dup(0)
    import termios

    try:
        # What was typed before the question was seen is no answer to it.
        termios.tcflush(terminal, termios.TCIFLUSH)
        os.write(terminal, f"{question} [y/N] ".encode())
        answer = os.read(terminal, 1024)
        if not answer.endswith(b"\n"):
            os.write(terminal, b"\n")
    except (OSError, termios.error) as error:
        raise Failure(
            f"the terminal could not be asked: {error.args[-1]}", "add --yes to go on without"
        ) from None
    finally:
        os.close(terminal)
    return answer.strip().lower() in (b"y", b"yes")


def show(plan: dict, stream, as_json: bool = False) -> None:
    """Write the audit of `plan` to the text stream `stream`."""
    audit = report(plan)
    if as_json:
        from claudebox import json_text

        stream.write(json_text.dumps(audit) + "\n")
    else:
        text = table(audit, Ink(stream))
        stream.write(
            text
            if _can_show(stream)
            else text.replace("…", "...").replace("•", "*").replace("→", "->")
        )
    stream.flush()


def _can_show(stream) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def gate(plan: dict, yes: bool, stream) -> dict:
    """Show the audit of `plan` on `stream`, ask unless `yes`, and return the plan.

    Raises Failure if the answer is no, or if there is no terminal to ask on.
    """
    show(plan, stream)
    if not yes and not ask("Launch this?"):
        raise Failure("not confirmed, so nothing was launched", "answer y to launch")
    return plan


def main(arguments: list[str]) -> int:
    """Run `claudebox-audit`: exit status 0, 1 for a no, 2 for wrong usage."""
    from claudebox import command

    parser = command.parser(
        "claudebox-audit",
        "Show what a launch plan lets in, ask, and pass the plan on. plan → plan",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the audit as JSON instead of the plan; ask nothing",
    )
    options = parser.parse_args(arguments)
    # What is shown needs them: imported while the stages before this one are at work.
    from claudebox.sandbox import landlock, limits  # noqa: F401

    plan = command.read_plan(whole=True)
    if options.json:
        show(plan, sys.stdout, as_json=True)
    elif sys.stdout.isatty():
        show(plan, sys.stdout)
    else:
        command.write_plan(gate(plan, options.yes, sys.stderr))
    return 0
