"""Prints the launch of a plan as a bash script that can be read, and pasted."""

import os

from claudebox.sandbox import bwrap

_FIRST_DESCRIPTOR = 10


def script(plan: dict) -> bytes:
    """Return a bash script that launches the sandbox of `plan`.

    Descriptors are fed by process substitution, a comment names what each carries. Variables of the
    host are let through by name, so no value of theirs is in the script. What the script does not
    do: seed Claude's state, watch what changes, pass signals on.
    """
    from base64 import b64encode
    from shlex import quote

    host = [v["name"] for v in plan["env"] if v["source"] == "host"]
    own = {v["name"]: v["value"] for v in plan["env"] if v["source"] != "host"}
    arguments = bwrap.by_path(bwrap.arguments(plan))
    files = bwrap.descriptors(arguments)
    numbers = list(range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + len(files)))
    words = bwrap.numbered(arguments, numbers)
    made = [
        mount["source"]
        for mount in plan["mounts"]
        if mount["kind"] == "bind"
        and mount["reason"] in ("instance", "credentials")
        and not mount["source"].endswith(".json")
    ]
    standins = [
        mount
        for mount in plan["mounts"]
        if mount["reason"] == "protected" and not os.path.lexists(mount["target"])
    ]
    lines = ["# the directories that must exist, and what read-only files are mounted on"]
    lines += [f"mkdir -p -m 700 -- {quote(path)}" for path in made if not os.path.isdir(path)]
    for mount in standins:
        target = quote(mount["target"])
        if "content" in mount:
            lines.append(f"printf %s {quote(mount['content'])} > {target}")
        else:
            lines.append(f"mkdir -- {target}")
    lines += [
        "(",
        "# the environment: these variables of the host, and what claudebox sets",
        f"for name in $(compgen -e); do case ' {' '.join(host)} ' in"
        ' *" $name "*) ;; *) unset "$name" ;; esac; done',
    ]
    lines += [f"export {name}={quote(value)}" for name, value in own.items()]
    for number, data in zip(numbers, files, strict=True):
        lines.append(f"# descriptor {number}: {_comment(data.name)}")
        if data.content.isascii() and b"\0" not in data.content:
            lines.append(f"exec {number}< <(printf %s {quote(data.content.decode())})")
        else:
            lines.append(f"exec {number}< <(base64 -d <<< {b64encode(data.content).decode()})")
    if plan["network"]["tier"] == "inet":
        lines.append("# claudebox itself makes the network of the tier inet; this script has none")
        words.insert(0, "--unshare-net")
    lines.append(f"exec {quote(plan['bwrap']['path'])} \\")
    for word in words:
        if word.startswith("--"):
            lines.append(f"  {word}")
        else:
            lines[-1] += " " + quote(word)
    lines = [line + " \\" if line.startswith("  --") else line for line in lines]
    lines.append("  -- " + " ".join(quote(word) for word in plan["command"]))
    lines.append(")")
    if standins:
        lines += ["# what was made is removed, and the exit status is that of the sandbox", "("]
        lines.append("status=$?")
        for mount in reversed(standins):
            program = "rm -f" if "content" in mount else "rmdir"
            lines.append(f"{program} -- {quote(mount['target'])}")
        lines += ["exit $status", ")"]
    return os.fsencode("\n".join(lines) + "\n")


def _comment(text: str) -> str:
    from claudebox.printable import printable

    return printable(text)
