"""The flake, against stub inputs: what it offers, what it builds, and a session of that, without /usr."""

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from nix_world import NixHost

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = f"{platform.machine()}-linux"
PYTHON = "/usr/bin/python3.11" if os.path.exists("/usr/bin/python3.11") else "/usr/bin/python3"
LIBRARY = f"lib/{Path(os.path.realpath(PYTHON)).name}"

# Programs of this machine, copied into packages that work from a store: package → programs.
COPIED = {
    "bash": ("bash",),
    "bubblewrap": ("bwrap",),
    "coreutils": ("cat", "env", "head", "id", "ls", "readlink"),
    "git": ("git",),
    "gnugrep": ("grep",),
    "passt": ("pasta",),
    "slirp4netns": ("slirp4netns",),
}
# Packages that stand for themselves: a program that says its name.
STUBS = "cacert comma curl fd findutils gawk gnused jq less mandoc nix ripgrep ruff tzdata".split()

NIXPKGS = """
{
  outputs = { self }: let
    genAttrs = names: make:
      builtins.listToAttrs (map (name: { inherit name; value = make name; }) names);
    lib = {
      inherit genAttrs;
      getBin = package: package;
      makeBinPath = packages: builtins.concatStringsSep ":" (map (package: "${package}/bin") packages);
    };
    packagesFor = system: let
      # Its path is in what was copied, as it is in what nixpkgs builds.
      libraries = builtins.path { path = ./libraries; name = "libraries"; };
      run = name: script: environment: derivation (environment // {
        inherit name system;
        builder = "${./static}/bash";
        args = [ "-e" "-c" "PATH=$PATH:${./static}; ${script}" ];
      });
      copied = name: run name "cp -r ${./packages + "/${name}"} $out" { inherit libraries; };
      stub = name:
        run name "mkdir -p $out/bin; echo echo stub ${name} >$out/bin/${name}; chmod +x $out/bin/*" { };
      pkgs = genAttrs (builtins.attrNames (builtins.readDir ./packages)) copied
        // genAttrs (builtins.filter builtins.isString (builtins.split " " "STUBS")) stub
        // {
          inherit lib;
          stdenv.hostPlatform = { inherit system; };
          python3 = copied "python3" // {
            interpreter = "${copied "python3"}/bin/python3";
            sitePackages = "LIBRARY/site-packages";
            withPackages = _choose: copied "python3";
          };
          writeText = name: text: run name ''printf %s "$text" >$out'' { inherit text; };
          runCommand = name: attributes: script:
            run name script {
              PATH = lib.makeBinPath (attributes.nativeBuildInputs or [ ]);
            } // (attributes.passthru or { }) // { meta = attributes.meta or { }; };
          mkShell = attributes: run "shell" "echo >$out" { inherit (attributes) packages; };
          callPackage = file: given: let function = import file; in
            function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // given);
        };
    in pkgs;
  in {
    inherit lib;
    legacyPackages = genAttrs [ "x86_64-linux" "aarch64-linux" ] packagesFor;
  };
}
"""
CLAUDE = """
{
  inputs.nixpkgs.url = "path:/nonexistent";
  outputs = { self, nixpkgs }: {
    packages = nixpkgs.lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system:
      let pkgs = nixpkgs.legacyPackages.${system}; in {
        default = pkgs.runCommand "claude" { } ''
          mkdir -p $out/bin
          printf '#!/usr/bin/env bash\\necho "claude of the store: $*"\\n' >$out/bin/claude
          chmod +x $out/bin/claude
        '';
      });
  };
}
"""


def libraries_of(program):
    """Return the shared libraries of a program of this machine, its loader included."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True)
    return re.findall(r"(/\S+) \(0x", done.stdout)


def loader(libraries):
    return next(path.name for path in libraries.iterdir() if path.name.startswith("ld-linux"))


def copy_program(source, target, libraries, store_path):
    """Copy a program so that it takes its loader and its libraries from the store."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(os.path.realpath(source), target)
    target.chmod(0o755)
    words = ["patchelf", "--force-rpath", "--set-rpath", store_path]
    words += ["--set-interpreter", f"{store_path}/{loader(libraries)}"]
    subprocess.run([*words, target], check=True)


def write_inputs(host):
    """Write the two stub flakes below the host's base directory."""
    nixpkgs = host.base / "nixpkgs"
    libraries = nixpkgs / "libraries"
    libraries.mkdir(parents=True)
    programs = [shutil.which(name) for names in COPIED.values() for name in names]
    extensions = Path("/usr", LIBRARY, "lib-dynload").glob("_ctypes.*")
    for program in (*programs, PYTHON, *extensions):
        for library in libraries_of(program):
            shutil.copy(library, libraries)
            (libraries / Path(library).name).chmod(0o755)
    store_path = host.nix("nix", "store", "add-path", "--name", "libraries", libraries).strip()
    for package, names in COPIED.items():
        for name in names:
            target = nixpkgs / "packages" / package / "bin" / name
            copy_program(shutil.which(name), target, libraries, store_path)
    (nixpkgs / "packages/bash/bin/sh").symlink_to("bash")
    python = nixpkgs / "packages/python3"
    copy_program(PYTHON, python / "bin/python3", libraries, store_path)
    shutil.copytree(
        Path("/usr", LIBRARY),
        python / LIBRARY,
        ignore=shutil.ignore_patterns(
            "test",
            "idlelib",
            "__pycache__",
            "site-packages",
            "dist-*",
            "lib2to3",
            "config-*",
            "sitecustomize.py",
        ),
    )
    for extension in (python / LIBRARY / "lib-dynload").iterdir():
        extension.chmod(0o644)
    (nixpkgs / "static").mkdir()
    shutil.copy("/bin/bash-static", nixpkgs / "static/bash")
    for applet in ("basename", "chmod", "cp", "find", "ln", "mkdir", "rm", "sed", "touch"):
        shutil.copy("/bin/busybox", nixpkgs / "static" / applet)
    text = NIXPKGS.replace("STUBS", " ".join(STUBS)).replace("LIBRARY", LIBRARY)
    (nixpkgs / "flake.nix").write_text(text)
    (host.base / "claude").mkdir()
    (host.base / "claude/flake.nix").write_text(CLAUDE)


class Flake:
    """The flake of this checkout with its inputs replaced, in a host that can build it."""

    def __init__(self):
        self.host = NixHost()
        self.host.start_daemon()
        write_inputs(self.host)
        checkout = self.host.base / "checkout"
        ignored = shutil.ignore_patterns(".git", "__pycache__", "tests")
        shutil.copytree(ROOT, checkout, symlinks=True, ignore=ignored)
        self.reference = f"path:{checkout}"

    def nix(self, *words):
        base = self.host.base
        inputs = ["--override-input", "nixpkgs", f"path:{base}/nixpkgs"]
        inputs += ["--override-input", "claude-code", f"path:{base}/claude"]
        return self.host.nix("nix", *words, *inputs, "--offline", "--no-write-lock-file")


@pytest.fixture(scope="module")
def flake():
    flake = Flake()
    yield flake
    flake.host.close()


@pytest.fixture(scope="module")
def built(flake):
    """The store path of claudebox, built by the flake."""
    answer = json.loads(flake.nix("build", "--no-link", "--json", flake.reference))
    return answer[0]["outputs"]["out"]


@pytest.fixture(scope="module")
def bare(flake, built):
    """A host with that store, and without a /usr."""
    host = NixHost(store=flake.host.nix_directory)
    host.environment["PATH"] = f"{built}/bin"
    yield host
    host.close()


def test_the_flake_offers_what_it_is_to_offer(flake):
    shown = json.loads(flake.nix("flake", "show", "--json", flake.reference))
    for system in ("x86_64-linux", "aarch64-linux"):
        assert shown["packages"][system].keys() == {"default", "claudebox"}
        assert shown["apps"][system]["default"]["type"] == "app"
        assert shown["checks"][system].keys() == {"package", "ruff", "unit-tests"}
        assert shown["devShells"][system].keys() == {"default"}
    assert shown["overlays"].keys() == {"default"}


def test_the_flake_passes_its_own_check(flake):
    flake.nix("flake", "check", "--no-build", flake.reference)


def test_the_overlay_adds_claudebox(flake):
    names = "overlay: builtins.attrNames (overlay { } { })"
    answer = flake.nix("eval", "--json", f"{flake.reference}#overlays.default", "--apply", names)
    assert json.loads(answer) == ["claudebox"]


def test_commands_and_manual_pages_are_installed(flake, built):
    place = flake.host.store_file(built)
    assert {p.name for p in (place / "bin").iterdir()} == {p.name for p in (ROOT / "bin").iterdir()}
    pages = {path.name for path in place.glob("share/man/man*/*")}
    assert pages == {path.name for path in (ROOT / "man").iterdir()}


def test_completions_are_installed_where_shells_look(flake, built):
    share = flake.host.store_file(built) / "share"
    sources = ROOT / "claudebox/completions"
    for name in os.listdir(ROOT / "bin"):
        bash = share / "bash-completion/completions" / name
        assert bash.read_text() == (sources / "claudebox.bash").read_text()
        fish = share / f"fish/vendor_completions.d/{name}.fish"
        assert fish.read_text() == (sources / "claudebox.fish").read_text()
    assert (share / "zsh/site-functions/_claudebox").is_file()


def test_the_plan_names_nothing_of_usr(bare):
    done = bare.run("claudebox", "plan")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    # Scripts begin with that path: a link of that name leads to the store.
    links = [mount for mount in plan["mounts"] if mount["target"] == "/usr/bin/env"]
    assert [link["kind"] for link in links] == ["symlink"]
    assert links[0]["source"].startswith("/nix/store/")
    plan["mounts"].remove(links[0])
    assert "/usr" not in json.dumps(plan)
    variables = {entry["name"]: entry.get("value", "") for entry in plan["env"]}
    assert all(part.startswith("/nix/store/") for part in variables["PATH"].split(":"))
    assert re.fullmatch(r"/nix/store/[^/]*-bash/bin/bash", variables["SHELL"])
    assert plan["bwrap"]["path"].startswith("/nix/store/")


def test_a_shell_runs_inside_on_a_host_without_usr(bare):
    bare.write("script", "#!/usr/bin/env bash\necho ran\n").chmod(0o755)
    done = bare.inside("echo $BASH; command -v git; ls /usr/bin /bin; ./script")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"/nix/store/[^/]*-bash/bin/bash", lines[0])
    assert re.fullmatch(r"/nix/store/[^/]*-git/bin/git", lines[1])
    assert lines[2:] == ["/bin:", "sh", "", "/usr/bin:", "env", "ran"]


def test_claude_of_the_input_runs_inside(bare):
    done = bare.run("claudebox", "-y", "--", "-p", "hello")
    assert done.stdout == "claude of the store: --dangerously-skip-permissions -p hello\n", (
        done.stderr
    )


def test_its_plan_goes_through_a_pipe(bare):
    plan = bare.run("claudebox", "plan", "--shell", "--", "-c", "echo piped").stdout
    done = bare.run("claudebox-run", "-", input=plan, stdin=None)
    assert done.stdout == "piped\n", done.stderr


def test_nothing_of_usr_is_inside_on_another_distribution_either(flake, built):
    done = flake.host.run(
        f"{built}/bin/claudebox", "-y", "--shell", "--", "-c", "ls /usr /usr/bin; type env"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:5] == ["/usr:", "bin", "", "/usr/bin:", "env"]
    plan = json.loads(flake.host.run(f"{built}/bin/claudebox", "plan").stdout)
    named = [m for m in plan["mounts"] if m["target"] != "/usr/bin/env"]
    assert "/usr" not in json.dumps({**plan, "mounts": named})


@pytest.mark.parametrize("tier", ["none", "full"])
def test_the_daemon_of_the_host_is_used_from_a_flake_built_sandbox(flake, built, tier):
    script = "test -S /nix/var/nix/daemon-socket/socket && echo $NIX_REMOTE"
    done = flake.host.run(
        f"{built}/bin/claudebox",
        "-y",
        "--nix=trust",
        "--network",
        tier,
        "--shell",
        "--",
        "-c",
        script,
    )
    assert done.stdout == "daemon\n", done.stderr
