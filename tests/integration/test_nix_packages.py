"""Packages and development shells from real nix, of flakes of raw derivations, offline."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from nix_world import SANDBOXED, NixHost

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = f"{os.uname().machine}-linux"
# As claudebox takes builds of a development shell: from root's daemon, else only when told to.
TRUST = os.getuid() != 0

TOOLS = """
{
  outputs = { self }: {
    packages.SYSTEM.greet = derivation {
      name = "greet";
      system = "SYSTEM";
      builder = "${./tools}/bash";
      args = [ "-c" "${./tools}/busybox mkdir -p $out/bin; echo 'echo hello' > $out/bin/greet" ];
    };
    packages.SYSTEM.data = derivation {
      name = "data";
      system = "SYSTEM";
      builder = "${./tools}/bash";
      args = [ "-c" "echo x > $out" ];
    };
  };
}
""".replace("SYSTEM", SYSTEM)

SHELL = """
{
  inputs.dep = { url = "github:o/r"; flake = false; };
  outputs = { self, dep }: let tools = import ./nix/tools.nix dep; shell = name: derivation {
    inherit name;
    system = "SYSTEM";
    builder = "${dep}/bash";
    outputs = [ "out" ];
    PATH = "${tools}:/usr/bin:/home/x/bin:relative";
    CC = "gcc";
    JAVA_HOME = tools;
    OPENSSL_DIR = "/usr/lib/ssl";
    PKG_CONFIG_PATH = "${tools}/lib/pkgconfig:/usr/lib/pkgconfig";
    LIBRARY_PATH = "${tools}/../../../home";
    LD_PRELOAD = tools;
    UNKNOWN = tools;
    shellHook = "echo hook > /tmp/hook-ran";
  }; in {
    devShells.SYSTEM.default = shell "first";
    devShells.SYSTEM.other = shell "second";
  };
}
""".replace("SYSTEM", SYSTEM)


def add(host, directory, name):
    """Put a directory in the host's store, and return its path there."""
    return host.nix("nix", "store", "add-path", "--name", name, str(directory)).strip()


def lock(narHash):
    """Return a flake.lock in which the input `dep` is a source with this hash."""
    original = {"owner": "o", "repo": "r", "type": "github"}
    locked = {**original, "lastModified": 1, "narHash": narHash, "rev": "0" * 40}
    nodes = {
        "dep": {"flake": False, "locked": locked, "original": original},
        "root": {"inputs": {"dep": "dep"}},
    }
    return {"nodes": nodes, "root": "root", "version": 7}


@pytest.fixture(scope="module")
def host():
    """A host with a nix daemon, and a directory of static programs in its store."""
    host = NixHost()
    host.start_daemon()
    tools = host.home / "flake/tools"
    tools.mkdir(parents=True)
    for name, program in (("bash", "/bin/bash-static"), ("busybox", "/bin/busybox")):
        tools.joinpath(name).write_bytes(Path(program).read_bytes())
        tools.joinpath(name).chmod(0o755)
    (tools.parent / "flake.nix").write_text(TOOLS)
    host._own()
    # The source of a locked input is found in the store by its hash: nothing is downloaded.
    host.tools = add(host, tools, "source")
    answer = json.loads(host.nix("nix", "path-info", "--json", host.tools))
    # A list until nix 2.18, then an object by path.
    host.hash = (answer[host.tools] if isinstance(answer, dict) else answer[0])["narHash"]
    yield host
    host.close()


@pytest.fixture(autouse=True)
def project(host):
    """An empty project and no memory of earlier answers."""
    host.write_configuration(SANDBOXED)
    subprocess.run(["rm", "-rf", host.project, host.home / ".claudebox"], check=True)
    host.write("flake.nix", SHELL)
    host.write("nix/tools.nix", 'dep: "${dep}"')
    host.write("flake.lock", json.dumps(lock(host.hash)))
    return host.project


def call(host, expression, env=None):
    """Evaluate an expression of claudebox.nix in the host's world; return the value or the message."""
    script = (
        f"import sys, json; sys.path.insert(0, {str(ROOT)!r})\n"
        "from claudebox import nix, Failure\n"
        f"home, root = {str(host.home)!r}, {str(host.project)!r}\n"
        f"try: print(json.dumps({expression}))\n"
        "except Failure as failure: print(json.dumps('failure: ' + str(failure)))"
    )
    done = host.run(
        "/usr/bin/python3", "-I", "-c", script, env={"NIX_REMOTE": "daemon", **(env or {})}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def packages(host, *references, **options):
    return call(host, f"nix.packages({list(references)!r}, home, root)", **options)


def devshell(host, reference=None, trust=TRUST, **options):
    return call(host, f"nix.devshell({reference!r}, root, home, trust={trust!r})", **options)


# With this every start of nix fails.
NO_NIX = {"NIX_REMOTE": "unix:///nonexistent/socket"}


# ---------------------------------------------------------------------------- packages


def test_a_package_is_built_and_its_bin_is_a_place_for_path(host):
    reference = f"path:{host.home}/flake#greet"
    found, _ = packages(host, reference)
    [directory] = found[reference]
    assert directory.startswith("/nix/store/") and directory.endswith("-greet/bin")
    assert "hello" in Path(f"{host.base}{directory}/greet").read_text()


def test_the_second_launch_runs_no_nix(host):
    reference = f"path:{host.home}/flake#greet"
    first, _ = packages(host, reference)
    again, said = packages(host, reference, env=NO_NIX)
    assert (again, said) == (first, "")
    # The negative control: what is not remembered cannot be had that way.
    other, _ = packages(host, f"path:{host.home}/flake#data", env=NO_NIX)
    assert other.startswith("failure: nix could not")


def test_what_was_built_is_kept_from_garbage_collection(host):
    reference = f"path:{host.home}/flake#greet"
    found, _ = packages(host, reference)
    host.nix("nix-store", "--gc")
    assert Path(f"{host.base}{found[reference][0]}").is_dir()
    subprocess.run(["rm", "-rf", host.home / ".claudebox"], check=True)
    host.nix("nix-store", "--gc")
    assert not Path(f"{host.base}{found[reference][0]}").is_dir()
    assert add(host, host.home / "flake/tools", "source") == host.tools


def test_what_was_collected_is_built_again(host):
    reference = f"path:{host.home}/flake#greet"
    found, _ = packages(host, reference)
    for root in (host.home / ".claudebox/cache/nix").glob("*.root*"):
        root.unlink()
    assert packages(host, reference)[0] == found


def test_a_package_without_programs_is_refused(host):
    found, _ = packages(host, f"path:{host.home}/flake#data")
    assert "holds no programs" in found


def test_a_package_of_the_project_is_refused(host):
    found, said = packages(host, f"path:{host.project}#greet")
    assert "lies in the project" in found and said == ""


# ---------------------------------------------------------------------------- development shells


def test_of_a_shell_what_lies_in_the_store_is_taken_over_and_nothing_else(host):
    (directories, variables), _ = devshell(host)
    assert directories == [host.tools]
    assert variables == {"CC": "gcc", "JAVA_HOME": host.tools}
    assert not os.path.exists("/tmp/hook-ran")


def test_a_named_shell_of_the_project(host):
    assert devshell(host, "#other")[0] == devshell(host)[0]
    assert devshell(host, ".#other")[0] == devshell(host)[0]
    assert "could not evaluate" in devshell(host, "#nothing")[0]


def test_a_shell_is_evaluated_once_until_one_of_its_files_changes(host):
    first, _ = devshell(host)
    assert devshell(host, env=NO_NIX) == (first, "")
    host.write("nix/tools.nix", 'dep: "${dep}/sub"')
    assert devshell(host)[0][0] == [host.tools + "/sub"]


def test_the_evaluation_reaches_no_file_of_the_user(host):
    (host.home / "private").mkdir(exist_ok=True)
    (host.home / "private/key").write_text("the-secret-key")
    host._own()
    tries = {
        "an input": f'{{ inputs.s = {{ url = "path:{host.home}/private"; flake = false; }};'
        f" outputs = {{ self, s }}: {{ devShells.{SYSTEM}.default = s; }}; }}",
        "a tree": f"{{ outputs = {{ self }}: {{ devShells.{SYSTEM}.default = builtins.fetchTree {{"
        f' type = "path"; path = "{host.home}/private"; narHash = "sha256-{"A" * 43}="; }}; }}; }}',
        "a path": f"{{ outputs = {{ self }}: {{ devShells.{SYSTEM}.default = builtins.path {{"
        f' path = "{host.home}/private"; sha256 = "{"0" * 52}"; }}; }}; }}',
    }
    for what, flake in tries.items():
        host.write("flake.nix", flake)
        found, _ = devshell(host)
        assert "could not evaluate" in found, what
        assert not list((host.base / "nix/store").glob("*/key")), what
    # The negative control: outside of the sandbox nix copies it, and only then looks at its hash.
    host.write("flake.nix", tries["a tree"])
    host.run(
        "nix",
        "--extra-experimental-features",
        "nix-command flakes",
        "print-dev-env",
        f"path:{host.project}",
        env={"NIX_REMOTE": "daemon"},
    )
    assert list((host.base / "nix/store").glob("*/key"))


def test_what_looks_like_a_secret_and_what_describes_no_shell_is_not_copied_into_the_store(host):
    host.write(".env", "TOKEN=the-secret-token")
    host.write(".env.nix", "the-secret-token")
    host.write("secrets.json", "the-secret-token")
    host.write("notes.txt", "the-secret-token")
    os.symlink(host.home / ".env", host.project / "link.nix")
    devshell(host)
    sources = list((host.base / "nix/store").glob("*-source/nix/tools.nix"))
    assert sources
    for source in sources:
        assert sorted(os.listdir(source.parents[1])) == ["flake.lock", "flake.nix", "nix"]


def test_what_is_hidden_is_not_to_be_found_in_the_store(host):
    host.write("nix/secret.nix", '"the-secret-token"')
    host.write("private/package.json", '"the-secret-token"')
    host.write("other.nix", '"the-visible-words"')
    options = ("--nix=trust", "--devshell", "--hide", "secret.nix", "--hide", "private/")
    done = host.inside("cat */*; grep -rhs the- /nix/store", *options)
    assert "the-visible-words" in done.stdout and "the-secret-token" not in done.stdout


def test_what_a_flake_has_nix_say_cannot_draw_on_the_terminal(host):
    words = r"shown\\u001b[8m\\nclaudebox: what will be\\u009b2J\\u202e"
    trace = f'builtins.trace (builtins.fromJSON "\\"{words}\\"") {{'
    host.write("flake.nix", SHELL.replace("  }; in {", f"  }}; in {trace}"))
    (directories, _), said = devshell(host)
    assert directories == [host.tools]
    assert "nix: trace: shown\n" in said
    assert r"nix: claudebox: what will be\x9b2J\u202e" in said


def test_the_evaluation_has_no_network(host):
    with socket.create_server(("127.0.0.1", 0)) as server:
        host.write(
            "flake.nix",
            f"{{ outputs = {{ self }}: {{ devShells.{SYSTEM}.default = builtins.fetchurl {{"
            f' url = "http://127.0.0.1:{server.getsockname()[1]}/x"; sha256 = "{"0" * 52}"; }}; }}; }}',
        )
        assert "could not evaluate" in devshell(host)[0]
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_shell_is_not_built_by_a_daemon_that_does_not_sandbox(host):
    host.write_configuration(SANDBOXED.replace("sandbox = true", "sandbox = false"))
    found, said = devshell(host, trust=False)
    assert "would be built without a sandbox" in found and said == ""
    assert devshell(host, trust=True)[0][0] == [host.tools]


def test_a_project_without_a_flake_has_no_shell(host):
    (host.project / "flake.nix").unlink()
    assert "has no flake.nix" in devshell(host)[0]


@pytest.mark.parametrize("reference", ["/etc", "path:/etc", "git+file:///etc", "./x#y", "~/x#y"])
def test_other_flakes_of_this_machine_are_not_evaluated(host, reference):
    assert devshell(host, reference)[0].startswith("failure: ")
