"""Starts a host full of canaries in bwrap, and returns what it saw: see canary_host.py."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
CANARY = "canary" + "-3c41d6"
# Of these the world has its own, empty ones.
OWN_DIRECTORIES = ("/home", "/root", "/tmp", "/run", "/mnt", "/media", "/srv", "/var", "/dev/shm")
OWN_FILES = ("/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/machine-id")
AS_ROOT = os.geteuid() == 0
HOME = "/root" if AS_ROOT else "/home/ann"
# For the control: root of namespaces of its own, with all that the kernel grants there.
NAMESPACES = [
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "--pid",
    "--fork",
    "--net",
    "--uts",
]
NAMESPACES += ["--cgroup", "--kill-child"]


def world(script: str, *arguments, timeout=120) -> dict:
    """Run tests/escape/`script` in a world of its own and return the JSON that it prints."""
    with tempfile.TemporaryDirectory() as directory:
        command = ["bwrap", "--dev-bind", "/", "/", "--unshare-ipc", "--die-with-parent"]
        for place in OWN_DIRECTORIES:
            if os.path.isdir(place):
                command += ["--tmpfs", place]
        # A directory that is mounted below the project, and so a mount of the host.
        command += ["--tmpfs", f"{HOME}/src/app/mounted"]
        command += ["--dir", "/var/tmp", "--chmod", "1777", "/var/tmp", "--chmod", "1777", "/tmp"]
        if os.path.isdir("/nix/var"):
            command += ["--tmpfs", "/nix/var"]
        secret = Path(directory, "secret")
        secret.write_text(CANARY + "\n")
        for path in OWN_FILES:
            if os.path.isfile(path):
                command += ["--bind", str(secret), path]
        if os.path.isdir("/etc/ssl/private"):
            command += ["--tmpfs", "/etc/ssl/private"]
        command += ["--ro-bind", str(CHECKOUT), str(CHECKOUT)]
        if AS_ROOT:
            # As root bwrap takes nothing away unless it is told to; this is a host, not a sandbox.
            command += ["--cap-add", "ALL"]
        command += ["--", "/usr/bin/python3", "-I", "-B", str(HERE / script)]
        completed = subprocess.run(
            [*command, *(json.dumps(argument) for argument in arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env={"HOME": HOME, "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
    if completed.returncode or not completed.stdout:
        raise AssertionError(
            f"the world of the canaries ended with {completed.returncode}:\n"
            + completed.stderr.decode(errors="replace")[-4000:]
        )
    return json.loads(completed.stdout)
