"""A nix daemon from inside: there where its builds are sandboxed, and nowhere else."""

import json
import os
import socket
import subprocess
import threading

import pytest
from nix_world import SANDBOXED, USER, NixHost

TRIVIAL = """
derivation {
  name = "trivial";
  system = builtins.currentSystem;
  builder = "${./bash}";
  args = [ "-c" "for i in /*; do echo $i; done > $out" ];
}
"""
# Not this machine. A /bin may be there, too: newer ones of Debian's nix bring a shell, /bin/sh.
SEEN_BY_A_BUILD = {"/build", "/dev", "/etc", "/nix", "/proc", "/tmp"}
# Its result is known beforehand: such a build has a network.
DOWNLOAD = """
derivation {
  name = "download";
  system = builtins.currentSystem;
  builder = "${./bash}";
  args = [ "-c" "exec 3<>/dev/tcp/127.0.0.1/PORT && printf x > $out" ];
  outputHashMode = "flat";
  outputHashAlgo = "sha256";
  outputHash = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
}
"""


@pytest.fixture(scope="module")
def host():
    """A host whose nix daemon sandboxes its builds, with a derivation in the project."""
    host = NixHost()
    host.start_daemon()
    host.write("trivial.nix", TRIVIAL)
    with open("/bin/bash-static", "rb") as file:
        host.write("bash", file.read()).chmod(0o755)
    yield host
    host.close()


@pytest.fixture(autouse=True)
def sandboxed(host):
    host.write_configuration(SANDBOXED)


def facts(host, *options):
    done = host.run("claudebox", "plan", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["nix"]


def audit(host, *options):
    return host.run("claudebox", "-y", *options, "--shell", "--", "-c", "true").stderr


# Where root runs the daemon the launch is as on a real host; another user's daemon has to be trusted.
ALLOWED = [] if os.getuid() == 0 else ["--nix=trust"]


@pytest.mark.parametrize("tier", ["none", "full"])
def test_a_build_works_inside_through_the_daemon(host, tier):
    result = host.inside(
        "nix-build --no-out-link trivial.nix && cat $(nix-build trivial.nix)",
        "--network",
        tier,
        *ALLOWED,
    )
    assert result.returncode == 0, result.stderr
    path, *content = result.stdout.splitlines()
    assert path.startswith("/nix/store/") and path.endswith("-trivial")
    assert set(content) - {"/bin"} == SEEN_BY_A_BUILD
    assert os.path.exists(f"{host.base}{path}")


def test_commands_of_flakes_work_inside_without_further_options(host):
    result = host.inside("nix eval --expr '1 + 1' && nix store ping", *ALLOWED)
    assert result.stdout == "2\n" and "daemon" in result.stderr


def test_nothing_of_nix_is_inside_but_the_store_and_the_socket(host):
    script = """
    find /nix -maxdepth 4 -not -path '/nix/store/*' | sort; ls -d /etc/nix
    touch /nix/store/x /nix/var/nix/daemon-socket/x 2>&1 | grep -c 'Read-only file system'
    echo "$NIX_REMOTE|$NIX_CONFIG"; env | grep -c ^NIX_
    """
    secret = {"NIX_CONFIG": "access-tokens = github.com=ghp_secret", "NIX_PATH": "x=/home"}
    lines = host.inside(script, *ALLOWED, env=secret).stdout.splitlines()
    assert lines == [
        "/nix",
        "/nix/store",
        "/nix/var",
        "/nix/var/nix",
        "/nix/var/nix/daemon-socket",
        "/nix/var/nix/daemon-socket/socket",
        "2",
        "daemon|experimental-features = nix-command flakes",
        "2",
    ]


def test_the_socket_is_not_inside_where_the_user_says_off(host):
    result = host.inside("ls -A /nix; echo $NIX_REMOTE", "--nix=off")
    assert "No such file" in result.stderr and result.stdout == "\n"
    assert facts(host, "--nix=off") == {"socket": False, "trust": False, "reason": "--nix=off"}


def test_a_daemon_that_does_not_sandbox_is_not_inside_and_the_audit_says_why(host):
    host.write_configuration(SANDBOXED.replace("sandbox = true", "sandbox = false"))
    result = host.inside("ls -A /nix")
    assert result.returncode != 0 and "No such file" in result.stderr
    why = "sandbox = false" if os.getuid() == 0 else "is not root's"
    line = next(line for line in result.stderr.splitlines() if line.startswith("  nix "))
    assert "not inside" in line and why in line and "--nix=trust" in line


def test_a_daemon_that_does_not_sandbox_is_inside_where_the_user_trusts_it(host):
    host.write_configuration(SANDBOXED.replace("sandbox = true", "sandbox = false"))
    result = host.inside("test -S /nix/var/nix/daemon-socket/socket && echo there", "--nix=trust")
    assert result.stdout == "there\n"
    assert "runs outside the sandbox" in result.stderr


@pytest.mark.parametrize("tier", ["none", "full"])
def test_the_audit_says_that_downloads_have_the_hosts_network(host, tier):
    said = "has the host's own network" in audit(host, "--network", tier, *ALLOWED)
    assert said == (tier != "full")


def test_the_briefing_says_how_to_get_a_program(host):
    script = "grep -c 'nix shell' /etc/claude-code/CLAUDE.md"
    assert host.inside(script, *ALLOWED).stdout == "1\n"
    assert host.inside(script, "--nix=off").stdout == "0\n"


def test_known_limit_a_download_of_the_daemon_reaches_the_host_in_the_tier_none(host):
    reached = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)

        def accept():
            reached.append(server.accept()[0].close())

        waiting = threading.Thread(target=accept)
        waiting.start()
        host.write("download.nix", DOWNLOAD.replace("PORT", str(server.getsockname()[1])))
        result = host.inside("nix-build --no-out-link download.nix", "--network", "none", *ALLOWED)
        waiting.join()
    assert result.returncode == 0, result.stderr
    assert len(reached) == 1


# ---------------------------------------------------------------------------- who may, and what


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("sandbox = relaxed", "sandbox = relaxed"),
        (f"trusted-users = root {USER}", "trusted-users"),
        (f"trusted-users = @{USER}", "trusted-users"),
        ("trusted-users = *", "trusted-users"),
        ("allowed-users = root", "allowed-users"),
        ("extra-sandbox-paths = /home", "/home"),
        ("include other.conf", "other.conf"),
    ],
)
@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs a daemon of root's")
def test_the_socket_is_not_inside_with(host, change, why):
    host.write_configuration(SANDBOXED + change + "\n")
    found = facts(host)
    assert found["socket"] is False and why in found["reason"]


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs a daemon of root's")
def test_root_is_not_given_the_socket_unless_root_says_so(host):
    words = [f"{name}={value}" for name, value in host.environment.items() if name != "HOME"]
    command = host.enter(
        "env",
        "-i",
        "-C",
        "/srv",
        "HOME=/root",
        *words,
        "claudebox-instance",
        "resolve",
        as_daemon=True,
    )
    done = subprocess.run(
        command, cwd="/", capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert json.loads(done.stdout)["nix"]["reason"].startswith("root may switch")


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs a daemon of root's")
def test_what_a_build_asks_for_does_not_switch_its_sandbox_off(host):
    host.write(
        "loose.nix",
        TRIVIAL.replace("trivial", "loose").replace("args =", "__noChroot = true; args ="),
    )
    result = host.inside("nix-build --no-out-link loose.nix")
    assert result.returncode != 0 and "__noChroot" in result.stderr
    host.write("other.nix", TRIVIAL.replace("trivial", "other"))
    result = host.inside(
        "cat $(nix-build --option sandbox false --option sandbox-paths /home other.nix)"
    )
    assert set(result.stdout.split()) - {"/bin"} == SEEN_BY_A_BUILD, result.stderr


# ---------------------------------------------------------------------------- edited plans


def launch(host, edit, *options):
    plan = json.loads(
        host.run(
            "claudebox", "plan", *options, "--shell", "--", "-c", "ls /nix/var/nix/daemon-socket"
        ).stdout
    )
    edit(plan)
    return host.run("claudebox-run", "-", input=json.dumps(plan), stdin=None)


SOCKET = {
    "kind": "ro-bind",
    "source": "/nix/var/nix/daemon-socket",
    "target": "/nix/var/nix/daemon-socket",
    "reason": "nix",
}
UNSAFE = {"socket": True, "trust": False, "reason": "x"}
TRUSTED = {"socket": True, "trust": True, "reason": "x"}
EDITS = {
    "the socket, against the host's facts": lambda p: (
        p["mounts"].append(SOCKET) or p.update(nix=UNSAFE)
    ),
    "the socket, unsaid": lambda p: p["mounts"].append(SOCKET),
    "the socket, hidden from the audit": lambda p: p["mounts"].append(SOCKET) or p.update(nix=None),
    "the socket, writable": lambda p: (
        p["mounts"].append({**SOCKET, "kind": "bind"}) or p.update(nix=TRUSTED)
    ),
    "the socket, elsewhere": lambda p: (
        p["mounts"].append({**SOCKET, "target": "/x"}) or p.update(nix=TRUSTED)
    ),
    "more of nix": lambda p: (
        p["mounts"].append({**SOCKET, "source": "/nix/var/nix", "target": "/nix/var/nix"})
        or p.update(nix=TRUSTED)
    ),
    "all of nix": lambda p: (
        p["mounts"].append({**SOCKET, "source": "/nix", "target": "/nix"}) or p.update(nix=TRUSTED)
    ),
    "no socket, although it says so": lambda p: p.update(nix=TRUSTED),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_plan_is_refused_that_asks_for(host, what):
    host.write_configuration(SANDBOXED.replace("sandbox = true", "sandbox = false"))
    result = launch(host, EDITS[what])
    assert result.returncode == 1 and result.stdout == "", result.stdout
    assert "the plan is refused" in result.stderr


def test_an_edited_plan_that_says_that_it_trusts_gets_the_socket(host):
    host.write_configuration(SANDBOXED.replace("sandbox = true", "sandbox = false"))
    result = launch(host, lambda p: p["mounts"].append(SOCKET) or p.update(nix=TRUSTED))
    assert result.stdout == "socket\n", result.stderr


def test_a_plan_that_was_made_is_launched_from_a_pipe(host):
    assert launch(host, lambda plan: None, *ALLOWED).stdout == "socket\n"
