"""What the sandbox looks like from inside."""

import os
import subprocess
from pathlib import Path

import pytest

CANARY = "canary-6f1c"
SECRETS = [
    ".ssh/id_ed25519",
    ".gnupg/private-keys-v1.d/key",
    ".aws/credentials",
    ".config/gh/hosts.yml",
    ".netrc",
    ".git-credentials",
    ".bash_history",
    ".mozilla/firefox/logins.json",
]


def test_no_secret_of_the_home_directory_can_be_found_inside(world):
    for name in SECRETS:
        path = world.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CANARY)
    attempts = "; ".join(f"cat ~/{name}" for name in SECRETS)
    result = world.inside(f"{attempts}; grep -rs {CANARY} ~ / --exclude-dir=usr --exclude-dir=proc")
    assert CANARY not in result.stdout
    assert result.stderr.count("No such file or directory") == len(SECRETS)


def test_the_root_holds_nothing_of_the_host_but_what_the_plan_names(world):
    names = world.inside("ls -A /").stdout.split()
    expected = {"bin", "dev", "etc", "lib", "opt", "proc", "run", "sbin", "tmp", "usr", "var"}
    assert set(names) - {"lib64", "lib32", "libx32", "opt"} <= expected | {
        os.fspath(world.home).split("/")[1]
    }
    assert world.inside("ls -A ~").stdout.split() == [".claude", "project"]
    assert world.inside("ls -A /var /run").stdout.split() == [
        "/run:",
        "claudebox",
        "/var:",
        "tmp",
    ]


def test_the_project_is_read_write_at_its_own_path(world):
    result = world.inside("pwd && echo made inside > made && ls -A")
    assert result.stdout.splitlines()[0] == str(world.project)
    assert (world.project / "made").read_text() == "made inside\n"


@pytest.mark.parametrize(
    "name", ["with space", "new\nline", "b\udcffyte", "-dash", "quo'te\"$x", "ü", "ü" * 127]
)
def test_a_project_path_of_any_bytes_works(world, name):
    project = world.home / name
    project.mkdir()
    result = world.inside("echo made > made; pwd", cwd=project)
    assert result.stdout == f"{project}\n"
    assert (project / "made").read_text() == "made\n"


def test_the_environment_inside_is_the_allowlist_and_what_claudebox_sets(world):
    result = world.inside(
        "env -0",
        env={
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "LC_TIME": "C",
            "SSH_AUTH_SOCK": "/x",
            "EDITOR": "vi",
        },
    )
    names = {entry.partition("=")[0] for entry in result.stdout.split("\0") if entry}
    from_bash = {"PWD", "SHLVL", "_", "OLDPWD"}
    assert names - from_bash == {
        "CLAUDE_CONFIG_DIR",
        "CLAUDE_SECURESTORAGE_CONFIG_DIR",
        "DISABLE_AUTOUPDATER",
        "EDITOR",
        "HOME",
        "IS_SANDBOX",
        "LANG",
        "LC_TIME",
        "PATH",
        "SHELL",
        "TERM",
        "TMPDIR",
    }


def test_no_process_inside_shows_a_variable_that_was_not_let_in(world):
    result = world.inside("cat /proc/*/environ /proc/*/cmdline", env={"SECRET_TOKEN": CANARY})
    assert CANARY not in result.stdout
    assert "IS_SANDBOX=1" in result.stdout


def test_no_value_of_a_variable_is_on_a_command_line(world):
    probe = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; done"
    world.environment["ANTHROPIC_API_KEY"] = CANARY
    session = world.start("claudebox", "-y", "--shell", "--", "-c", "echo up; read x", stdin=-1)
    try:
        assert session.stdout.readline() == "up\n"
        shown = subprocess.run(["bash", "-c", probe], capture_output=True, text=True).stdout
        assert "--args" in shown
        assert CANARY not in shown
    finally:
        session.communicate("\n")


def test_a_variable_named_by_env_is_let_in(world):
    result = world.inside("echo $STAGING", "--env", "STAGING", env={"STAGING": "value"})
    assert result.stdout == "value\n"
    assert "--env" in result.stderr


def test_no_descriptor_is_inherited_but_the_three_standard_ones(world, tmp_path):
    secret = tmp_path / "open"
    secret.write_text(CANARY)
    opened = " ".join(f"{number}<{secret}" for number in range(3, 10))
    result = world.run(
        "bash",
        "-c",
        f"exec {opened} 17<{secret}; exec claudebox -y --shell -- -c"
        " 'for n in 3 4 5 6 7 8 9 17 20; do cat <&$n; done; ls /proc/self/fd /proc/1/fd'",
    )
    assert CANARY not in result.stdout
    assert result.stdout.count("0\n1\n2\n3\n") == 1  # 3 is what ls reads the directory with


def test_no_capability_is_in_any_set_and_none_can_be_gained(world):
    status = world.inside("cat /proc/self/status").stdout
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{name}:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert "Seccomp:\t2\n" in status


def test_no_further_user_namespace_can_be_made(world):
    result = world.inside("unshare --user --map-root-user true")
    assert result.returncode != 0


def test_the_processes_of_the_host_are_not_visible(world):
    result = world.inside("echo /proc/[0-9]*; kill -0 -1; readlink /proc/1/exe")
    assert len(result.stdout.split("\n")[0].split()) < 8


@pytest.mark.parametrize("kind", ["user", "pid", "ipc", "uts", "cgroup", "mnt"])
def test_the_sandbox_has_its_own_namespace(world, kind):
    inside = world.inside(f"readlink /proc/self/ns/{kind}").stdout.strip()
    assert inside.startswith(kind)
    assert inside != os.readlink(f"/proc/self/ns/{kind}")


def test_the_kernel_settings_are_read_only(world):
    result = world.inside("echo x > /proc/sys/kernel/core_pattern; echo $?")
    assert result.stdout == "1\n"
    assert "Read-only file system" in result.stderr


def test_the_root_and_the_system_are_read_only(world):
    result = world.inside("touch /x /etc/x /usr/x /opt/x; ls /x /etc/x /usr/x")
    assert result.stdout == ""


def test_kernel_keys_cannot_be_read(world):
    result = world.inside("cat /proc/keys; cat /proc/key-users")
    assert result.stdout == ""


def test_tmp_is_private(world, tmp_path):
    result = world.inside("ls -A /dev/shm /var/tmp; mount | grep -c ' /tmp '; touch /tmp/mark")
    assert not os.path.exists("/tmp/mark")
    assert "1\n" in result.stdout


def test_the_network_of_tier_none_has_nothing_but_lo(world):
    result = world.inside(
        "cat /proc/net/dev; getent hosts example.org; echo $?", "--network", "none"
    )
    interfaces = [line.split(":")[0].strip() for line in result.stdout.splitlines() if ":" in line]
    assert interfaces == ["lo"]
    assert result.stdout.endswith("2\n")
    assert (
        os.readlink("/proc/self/ns/net")
        != world.inside("readlink /proc/self/ns/net", "--network", "none").stdout.strip()
    )


def test_the_network_of_tier_full_is_the_hosts(world):
    result = world.inside("readlink /proc/self/ns/net", "--network", "full")
    assert result.stdout.strip() == os.readlink("/proc/self/ns/net")


TYPE_INTO_THE_TERMINAL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for request in (0x5412, 0x5412 | 1 << 32, 0x541C, 0x541D):
    done = libc.ioctl(0, ctypes.c_ulong(request), b"x")
    print("typed" if done == 0 else ctypes.get_errno())
"""


def test_nothing_can_be_typed_into_the_terminal(world):
    (world.project / "type.py").write_text(TYPE_INTO_THE_TERMINAL)
    result = world.inside("script -qec 'python3 type.py' /dev/null")
    assert result.stdout.split() == ["1"] * 4


def test_git_commits_with_the_hosts_identity_and_nothing_else_of_its_configuration(repository):
    repository.git("config", "--global", "credential.helper", f"!echo {CANARY}")
    repository.git("config", "--global", "http.extraHeader", f"Authorization: {CANARY}")
    result = repository.inside(
        "echo two > file; git commit -qam second && git log -1 --format='%an <%ae>' && git config -l"
    )
    assert result.stdout.startswith("Ann Dev <ann@example.org>\n")
    assert CANARY not in result.stdout
    assert repository.git("log", "-1", "--format=%s") == "second\n"


def test_what_git_would_run_outside_cannot_be_written(repository):
    result = repository.inside(
        "echo x > .git/hooks/pre-commit; git config core.fsmonitor evil; echo x > .git/commondir;"
        "echo x > .git/info/attributes; echo x > .git/config.worktree; mv .git .old;"
        "mv .git/info .git/i; mv .git/hooks .git/h; rm -rf .git/hooks; ln -sf /x .git/config;"
        "echo '{}' > .mcp.json; echo x > .claude/settings.json; mv .claude .c; rm -f .mcp.json;"
        "echo x > .claude/settings.local.json"
    )
    assert result.returncode != 0
    assert not (repository.project / ".git/hooks/pre-commit").exists()
    assert "evil" not in repository.git("config", "-l")
    for name in (".old", ".c", ".mcp.json", ".claude", ".git/commondir", ".git/config.worktree"):
        assert not (repository.project / name).exists(), name


def test_stand_ins_are_gone_after_the_session_and_git_add_does_not_take_them(repository):
    before = sorted(p for p in repository.project.rglob("*") if "objects" not in p.parts)
    result = repository.inside("ls -A; git status --porcelain; git add -A; git status --porcelain")
    assert ".mcp.json" in result.stdout.split()
    assert "??" not in result.stdout and "A " not in result.stdout
    after = sorted(p for p in repository.project.rglob("*") if "objects" not in p.parts)
    assert after == before


def test_stand_ins_of_a_killed_session_are_removed_by_the_next(repository):
    session = repository.start("claudebox", "-y", "--shell", "--", "-c", "echo up; sleep 60")
    assert session.stdout.readline() == "up\n"
    session.kill()
    session.wait()
    assert (repository.project / ".mcp.json").exists()
    repository.inside("true")
    assert not (repository.project / ".mcp.json").exists()


def test_a_stand_in_stays_while_another_session_needs_it(repository):
    first = repository.start("claudebox", "-y", "--shell", "--", "-c", "echo up; read x", stdin=-1)
    assert first.stdout.readline() == "up\n"
    repository.inside("true")
    assert (repository.project / ".mcp.json").exists()
    first.communicate("\n")
    assert not (repository.project / ".mcp.json").exists()


def test_a_directory_without_a_repository_cannot_be_given_one(world):
    result = world.inside("git init -q; mkdir -p .git/hooks; echo x > .git/config; mv .git x")
    assert result.returncode != 0
    assert not (world.project / ".git").exists()


def test_a_changed_file_that_can_run_code_outside_is_reported(world):
    (world.project / ".envrc").write_text("old\n")
    result = world.inside("echo evil >> .envrc; mkdir .vscode; echo {} > .vscode/tasks.json")
    assert "can run code outside: .envrc, .vscode/tasks.json" in result.stderr
    assert "can run code outside" not in world.inside("true").stderr


def test_git_does_not_take_the_project_itself_for_a_repository(repository):
    """With .git made invalid, git falls back to a bare repository in the directory itself."""
    mark = repository.home / "ran"
    result = repository.inside(
        "ln -s .git/objects objects; ln -s .git/refs refs; mkdir refs; cp .git/index index;"
        " mv .git/HEAD HEAD; printf '[core]\\n\\trepositoryformatversion = 0\\n\\tbare = false\\n"
        f'\\tworktree = {repository.project}\\n\\tfsmonitor = "touch {mark};false"\\n\' > config'
    )
    assert result.returncode == 0
    subprocess.run(
        ["git", "status"], cwd=repository.project, env=repository.environment, capture_output=True
    )
    # While the session runs nothing happens either: the stand-in is on the host then.
    assert not mark.exists()


def test_a_repository_made_inside_is_reported(repository):
    result = repository.inside("git init -q new/deeper; mkdir -p b; git init -q --bare b/are")
    assert "git repositories were made in this session: b/are, new/deeper" in result.stderr


@pytest.mark.parametrize("key", ["include.path", "core.hooksPath", "core.attributesFile"])
def test_what_the_configuration_of_a_repository_names_is_read_only(repository, key):
    place = repository.project / "tools"
    place.mkdir()
    (place / "named").mkdir() if key == "core.hooksPath" else (place / "named").write_text("")
    value = "../tools/named" if key == "include.path" else "tools/named"
    repository.git("config", key, value)
    inside = "echo x > tools/named; echo x > tools/named/pre-commit; mv tools t; rm -rf tools/named"
    assert repository.inside(inside).returncode != 0
    assert (place / "named").exists()
    assert list(place.rglob("*")) == [place / "named"]
    assert (place / "named").is_dir() or (place / "named").read_text() == ""


def test_a_mount_source_that_becomes_a_link_stops_the_launch(repository):
    """A session swaps a directory for a link to a secret, again and again, while another starts."""
    (repository.home / ".ssh").mkdir()
    (repository.home / ".ssh/id_rsa").write_text(CANARY)
    swap = (
        "import ctypes, os, time\n"
        "libc = ctypes.CDLL(None)\n"
        "os.symlink('../../../.ssh', 'sub/.git/lnk')\n"
        "print('up', flush=True)\n"
        "end = time.monotonic() + 6\n"
        "while time.monotonic() < end:\n"
        "    libc.syscall(316, -100, b'sub/.git/info', -100, b'sub/.git/lnk', 2)\n"
        "    time.sleep(0.003)\n"
    )
    (repository.project / "swap.py").write_text(swap)
    script = "git init -q sub; python3 swap.py"
    first = repository.start("claudebox", "-y", "--shell", "--", "-c", script)
    assert first.stdout.readline() == "up\n"
    outcomes = set()
    while first.poll() is None:
        result = repository.inside(
            "cat sub/.git/*/id_rsa ~/.ssh/id_rsa; touch sub/.git/info/x; true"
        )
        outcomes.add(result.returncode)
        assert CANARY not in result.stdout
    first.communicate()
    assert os.listdir(repository.home / ".ssh") == ["id_rsa"]


def test_a_checkout_of_claudebox_itself_is_read_only_in_a_session(world):
    import shutil

    root = os.path.dirname(world.environment["PATH"].split(":")[0])
    for name in ("bin", "claudebox"):
        shutil.copytree(f"{root}/{name}", world.project / name, symlinks=True)
    result = world.run(
        str(world.project / "bin/claudebox"),
        *("-y", "--shell", "--", "-c"),
        "echo x >> bin/claudebox; echo x > bin/python3; echo x >> claudebox/main.py; mv bin b",
    )
    assert result.returncode != 0
    assert not (world.project / "bin/python3").exists()
    with open(f"{root}/bin/claudebox") as original:
        assert (world.project / "bin/claudebox").read_text() == original.read()


@pytest.mark.parametrize("tier", ["full", "inet"])
def test_no_signal_is_ignored_or_blocked_inside_that_was_not_outside(world, tier):
    """Python ignores SIGPIPE and SIGXFSZ, and bwrap is made to ignore those of the terminal."""
    status = world.inside("exec cat /proc/self/status", "--network", tier).stdout
    assert "SigIgn:\t0000000000000000\n" in status
    assert "SigBlk:\t0000000000000000\n" in status


def test_a_repository_that_one_session_broke_gets_no_hooks_in_the_next(repository):
    """The submodule's git directory lies in the broken one, which must not become writable for it."""
    library = repository.home / "library"
    library.mkdir()
    repository.git("init", "-q", cwd=library)
    repository.git("commit", "-q", "--allow-empty", "-m", "first", cwd=library)
    local = ("-c", "protocol.file.allow=always")
    repository.git(*local, "submodule", "-q", "add", str(library), "deps/library")
    assert repository.inside("mv .git/objects .git/moved").returncode == 0
    result = repository.inside(
        "touch .git/x; echo x > .git/hooks/pre-commit; mv .git/moved .git/objects"
    )
    assert result.stderr.count("Read-only file system") == 3
    assert not (repository.project / ".git/hooks/pre-commit").exists()


def test_etc_holds_only_what_programs_need(world):
    # Of the host, from claudebox(1); made by claudebox; made by bwrap for what lies deeper.
    system = "alternatives ca-certificates ca-certificates.conf ld.so.cache ld.so.conf ld.so.conf.d"
    system += " localtime mime.types protocols services"
    own = "claude-code gitconfig group hosts nsswitch.conf passwd resolv.conf"
    names = set(world.inside("ls -A /etc").stdout.split())
    assert names <= {*system.split(), *own.split(), "pki", "ssl"}
    assert set(world.inside("ls -A /etc/ssl").stdout.split()) <= {
        "certs",
        "cert.pem",
        "openssl.cnf",
    }


ONE_MORE_MOUNT = """
import sys
sys.path.insert(0, {root!r})
from claudebox import command, main
from claudebox.sandbox import bwrap
made = bwrap.arguments
bwrap.arguments = lambda plan: [*made(plan), "--tmpfs", "/tmp/extra"]
sys.exit(command.run(main.main, ["-y", "--shell", "--", "-c", "echo launched"]))
"""


def test_a_sandbox_with_a_mount_too_many_does_not_start(world):
    """What a link that bwrap followed would leave: the payload waits until it was looked at."""
    root = os.path.dirname(world.environment["PATH"].split(":")[0])
    result = world.run("/usr/bin/python3", "-I", "-S", "-c", ONE_MORE_MOUNT.format(root=root))
    assert "launched" not in result.stdout
    assert result.returncode == 1
    assert "/tmp/extra is mounted, which the plan does not say" in result.stderr


ONE_SECRET_MORE = """
import sys
sys.path.insert(0, {root!r})
from claudebox import command, main, pipeline
composed = pipeline.compose
secret = dict(kind="ro-bind", source={secret!r}, target="/mnt", reason="system")
def compose(*arguments):
    plan = composed(*arguments)
    return dict(plan, mounts=[*plan["mounts"], secret])
pipeline.compose = compose
sys.exit(command.run(main.main, ["-y", "--shell", "--", "-c", "echo launched; touch mark"]))
"""


def test_a_plan_made_just_now_is_held_against_the_policy_before_its_payload_starts(world):
    """That happens beside bwrap's work: what it refuses leaves nothing behind either."""
    root = os.path.dirname(world.environment["PATH"].split(":")[0])
    secret = world.home / ".ssh"
    secret.mkdir()
    before = sorted(os.listdir(world.project))
    script = ONE_SECRET_MORE.format(root=root, secret=str(secret))
    result = world.run("/usr/bin/python3", "-I", "-S", "-c", script)
    assert "launched" not in result.stdout
    assert result.returncode == 1
    assert f"the mount source {secret} would expose a secret" in result.stderr.splitlines()[-1]
    assert sorted(os.listdir(world.project)) == before


def test_known_limit_a_program_of_the_project_can_be_made_set_user_id(world):
    world.inside("cp /bin/true program && chmod 4755 program")
    assert (world.project / "program").stat().st_mode & 0o4000
    manual = (Path(__file__).resolve().parents[2] / "man/claudebox.1").read_text()
    assert "Set-user-ID programs" in manual
