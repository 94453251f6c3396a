"""The checks of `claudebox doctor` on hosts that are made up, and the commands that it runs."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import pytest

from claudebox import Failure, audit, checkup, command, distribution, doctor, host, nix
from claudebox.checkup import OK, PROBLEM, WARNING
from claudebox.sandbox import diagnosis, inet

REFUSED = Failure("bwrap could not make the sandbox: No permissions", "look elsewhere")


@pytest.fixture
def this(monkeypatch, home, project):
    """A host where all is well, for a user who uses sudo; its attributes can be changed."""
    monkeypatch.chdir(project)
    made = checkup.Host()
    made.distribution = distribution.Distribution("Debian", "apt")
    made.becoming_root = "sudo"
    made._sandbox = {"full": None, "none": None}
    return made


@pytest.fixture
def settings(monkeypatch):
    """The kernel's settings, by their path below /proc/sys."""
    values = {}
    monkeypatch.setattr(diagnosis, "setting", values.get)
    return values


def look(check, this):
    """Return what one check finds, by name: verdict, detail, the line that mends it, advice."""
    found = {}
    for finding in check(this):
        line = " && ".join(this.line(each) for each in this.mends(finding))
        found[finding.name] = (finding.verdict, finding.detail, line, this.advice(finding))
    return found


def without(monkeypatch, *names):
    """Hide programs."""
    find = host.find_program
    monkeypatch.setattr(
        host, "find_program", lambda name, *rest: None if name in names else find(name, *rest)
    )


# ---------------------------------------------------------------------------- bwrap


APT = "sudo apt-get update && sudo apt-get install -y --no-install-recommends"


def test_a_missing_bwrap_is_a_problem_that_its_package_mends(this, monkeypatch):
    without(monkeypatch, "bwrap")
    this._sandbox = {}
    assert look(checkup._bwrap, this)["bwrap"] == (PROBLEM, "not found", f"{APT} bubblewrap", None)
    verdict, _, line, _ = look(checkup._sandbox, this)["sandbox"]
    assert (verdict, line) == (PROBLEM, f"{APT} bubblewrap")


def test_an_unknown_distribution_is_told_the_names_of_the_packages(this, monkeypatch):
    without(monkeypatch, "bwrap")
    this.distribution = distribution.Distribution("Own Linux", None)
    _, _, line, advice = look(checkup._bwrap, this)["bwrap"]
    assert line == ""
    assert advice == "install bubblewrap with the package manager of Own Linux"


@pytest.mark.parametrize(
    ("version", "bwrap", "vulnerability"),
    [
        ("0.5.0", WARNING, WARNING),
        ("0.8.0", OK, WARNING),
        ("0.11.9", OK, WARNING),
        ("0.12.0", OK, None),
        ("1.0", OK, None),
    ],
)
def test_a_version_of_bwrap_is_judged(this, fp, monkeypatch, version, bwrap, vulnerability):
    monkeypatch.setattr(checkup, "_mended_by_distribution", lambda path: False)
    fp.register([this.find("bwrap"), "--version"], stdout=f"bubblewrap {version}\n")
    found = look(checkup._bwrap, this)
    assert found["bwrap"][0] == bwrap
    assert version in found["bwrap"][1]
    assert found.get("CVE-2026-87766", (None,))[0] == vulnerability
    if vulnerability:
        _, detail, line, advice = found["CVE-2026-87766"]
        assert "GHSA-pxhw-h44j-8pfx" in detail and "claudebox works around it" in detail
        # No command of ours can promise a package that does not exist yet.
        assert line == "" and "apt-get install -y --only-upgrade bubblewrap" in advice


def test_a_bwrap_that_says_no_version_is_not_judged(this, fp):
    fp.register([this.find("bwrap"), "--version"], returncode=1)
    assert {each[0] for each in look(checkup._bwrap, this).values()} == {OK}


@pytest.mark.parametrize("words", ["CVE-2026-87766", "GHSA-pxhw-h44j-8pfx", "CVE-2024-42472"])
def test_a_change_log_that_names_the_vulnerability_says_that_it_is_mended(monkeypatch, words):
    log = gzip.compress(f"bubblewrap (0.8.0-2+deb12u9)\n  * Backport a fix for {words}\n".encode())
    opened = []

    def open_log(path, mode):
        opened.append(path)
        import io

        return io.BytesIO(gzip.decompress(log))

    monkeypatch.setattr(gzip, "open", open_log)
    assert checkup._mended_by_distribution("/usr/bin/bwrap") == (words != "CVE-2024-42472")
    assert opened == ["/usr/share/doc/bubblewrap/changelog.Debian.gz"]
    # Which says nothing of a bwrap that the user has built.
    assert not checkup._mended_by_distribution("/usr/local/bin/bwrap")


def test_an_rpm_is_asked_for_its_change_log(monkeypatch, fp):
    def missing(*_):
        raise FileNotFoundError

    monkeypatch.setattr(gzip, "open", missing)
    monkeypatch.setattr(checkup.os.path, "exists", lambda path: path == "/usr/bin/rpm")
    question = ["/usr/bin/rpm", "-q", "--changelog", "bubblewrap"]
    fp.register(question, stdout="- Fix CVE-2026-87766\n")
    assert checkup._mended_by_distribution("/usr/bin/bwrap")
    fp.register(question, stdout="- Rebuilt\n")
    assert not checkup._mended_by_distribution("/usr/bin/bwrap")


# ---------------------------------------------------------------------------- user namespaces


FORBIDDEN = {
    "apparmor": (diagnosis.APPARMOR, "1", "apparmor_parser -r /etc/apparmor.d/claudebox-bwrap"),
    "user namespaces": (diagnosis.MAXIMUM, "0", "echo 28633 > /proc/sys/user/max_user_namespaces"),
    "userns clone": (diagnosis.CLONE, "0", "echo 1 > /proc/sys/kernel/unprivileged_userns_clone"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_setting_that_forbids_user_namespaces_has_a_command_that_mends_it(this, settings, name):
    setting, value, line = FORBIDDEN[name]
    settings[setting] = value
    this._sandbox = {"full": REFUSED, "none": REFUSED}
    found = look(checkup._user_namespaces, this)
    assert found[name][0] == PROBLEM
    assert found[name][2].startswith("sudo sh -c ") and line in found[name][2]
    assert {each[0] for other, each in found.items() if other != name} == {OK}
    assert look(checkup._sandbox, this)["sandbox"][3] == "what is amiss below forbids it"


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_setting_is_no_problem_where_bwrap_works(this, settings, name):
    setting, value, _ = FORBIDDEN[name]
    settings[setting] = value
    assert look(checkup._user_namespaces, this)[name][0] == OK


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_setting_is_a_warning_as_long_as_there_is_no_bwrap(this, settings, name):
    setting, value, _ = FORBIDDEN[name]
    settings[setting] = value
    this._sandbox = {}
    assert look(checkup._user_namespaces, this)[name][0] == WARNING


def test_on_nixos_a_setting_is_changed_in_the_configuration(this, settings):
    settings[diagnosis.MAXIMUM] = "0"
    this.distribution = distribution.Distribution("NixOS", "nix")
    this._sandbox = {"full": REFUSED, "none": REFUSED}
    verdict, _, line, advice = look(checkup._user_namespaces, this)["user namespaces"]
    assert (verdict, line) == (PROBLEM, "")
    assert 'boot.kernel.sysctl."user.max_user_namespaces" = 28633;' in advice


@pytest.mark.parametrize(
    ("path", "attachment"),
    [
        ("/usr/bin/bwrap", "/usr/bin/bwrap"),
        ("/home/a b/x", '"/home/a b/x"'),
        ('/home/"a$(touch planted)`', '"/home/\\"a$(touch planted)`"'),
        ("/home/[a]*{b}", "/home/\\[a\\]\\*\\{b\\}"),
    ],
)
def test_the_profile_that_the_command_writes_names_the_program(
    tmp_path, monkeypatch, path, attachment
):
    monkeypatch.setattr(checkup, "_PROFILE_DIRECTORY", str(tmp_path))
    (tmp_path / "apparmor_parser").write_text('#!/bin/sh\necho "$@" > "$0.called"\n')
    (tmp_path / "apparmor_parser").chmod(0o755)
    words = checkup._profile_for_bwrap(path).argv(None)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(words, check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "claudebox-bwrap").read_text() == (
        f"abi <abi/4.0>,\nprofile claudebox-bwrap {attachment} flags=(unconfined) {{ userns, }}\n"
    )
    called = (tmp_path / "apparmor_parser.called").read_text()
    assert called == f"-r {tmp_path}/claudebox-bwrap\n"
    assert not (tmp_path / "planted").exists()


def test_the_profile_for_inet_is_for_all_commands_where_they_are(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/x/bin/claudebox-doctor"])
    (*_, script) = checkup._profile_for_launcher().words
    assert "profile claudebox-launcher /opt/x/bin/claudebox{,-*} flags=(unconfined)" in script


def test_a_refused_sandbox_is_a_problem_with_the_words_of_bwrap(this, settings):
    this._sandbox = {"full": REFUSED, "none": REFUSED}
    found = look(checkup._sandbox, this)
    assert found == {"sandbox": (PROBLEM, REFUSED.what, "", REFUSED.todo)}


def test_a_sandbox_that_only_lacks_the_tier_none_is_a_warning(this):
    this._sandbox = {"full": None, "none": REFUSED}
    found = look(checkup._sandbox, this)
    assert [each[0] for each in found.values()] == [OK, WARNING]


@pytest.mark.parametrize(
    ("inside", "sandbox", "verdict"),
    [
        (False, {"full": REFUSED}, OK),
        (True, {"full": None}, OK),
        (True, {"full": REFUSED}, WARNING),
        (True, {}, WARNING),
    ],
)
def test_a_container_is_named_where_bwrap_does_not_work(
    this, monkeypatch, inside, sandbox, verdict
):
    monkeypatch.setattr(diagnosis, "in_container", lambda: inside)
    this._sandbox = sandbox
    assert look(checkup._container, this)["container"][0] == verdict


# ---------------------------------------------------------------------------- kernel, inet


@pytest.mark.parametrize(("version", "verdict"), [(7, OK), (6, OK), (5, WARNING), (None, WARNING)])
def test_an_old_landlock_is_a_warning(this, settings, monkeypatch, version, verdict):
    def call(*_):
        if version is None:
            raise OSError(38, "Function not implemented")
        return version

    monkeypatch.setattr("claudebox.sandbox.libc.call", call)
    settings["kernel/seccomp/actions_avail"] = "kill_process kill_thread errno allow"
    found = look(checkup._kernel, this)
    assert found["landlock"][0] == verdict and found["seccomp"][0] == OK


@pytest.mark.parametrize(
    ("processes", "memory", "verdict"),
    [
        ("group", "group", OK),
        ("process", "group", OK),
        ("process", None, WARNING),
        (None, None, WARNING),
    ],
)
def test_limits_that_cannot_be_held_are_a_warning(this, monkeypatch, processes, memory, verdict):
    found = {"processes": processes, "memory": memory}
    monkeypatch.setattr("claudebox.sandbox.limits.enforceable", lambda _: found)
    assert look(checkup._limits, this)["limits"][0] == verdict


def test_a_kernel_without_system_call_filters_is_a_warning(this, settings):
    assert look(checkup._kernel, this)["seccomp"][0] == WARNING


GOOD_INET = [
    ("user namespaces and nftables", True, "made"),
    ("/dev/net/tun", True, "can be opened"),
    ("pasta", True, "/usr/bin/pasta; joined"),
    ("slirp4netns", True, "/usr/bin/slirp4netns; joined"),
]


@pytest.fixture
def inet_check(monkeypatch):
    """What `inet.check` says, to be changed, and the sidecars that are found."""
    results = {name: (good, detail) for name, good, detail in GOOD_INET}
    programs = ["pasta", "slirp4netns"]
    monkeypatch.setattr(inet, "check", lambda _: [(n, *r) for n, r in results.items()])
    monkeypatch.setattr(
        "claudebox.net.sidecar_programs", lambda *_: [(name, f"/x/{name}") for name in programs]
    )
    return results, programs


def test_a_host_that_can_do_inet_has_three_good_lines(this, inet_check):
    found = look(checkup._inet, this)
    assert list(found) == ["inet filter", "/dev/net/tun", "inet sidecar"]
    assert {each[0] for each in found.values()} == {OK}


def test_one_sidecar_of_two_is_enough(this, inet_check):
    results, programs = inet_check
    results["pasta"] = (False, "not found; it is in the package passt")
    programs.remove("pasta")
    verdict, detail, line, _ = look(checkup._inet, this)["inet sidecar"]
    assert (verdict, line) == (OK, "") and "slirp4netns" in detail and "pasta" not in detail


def test_a_missing_sidecar_is_a_warning_that_a_package_mends(this, inet_check):
    results, programs = inet_check
    programs.clear()
    results["pasta"] = results["slirp4netns"] = (False, "not found")
    verdict, _, line, _ = look(checkup._inet, this)["inet sidecar"]
    assert (verdict, line) == (WARNING, f"{APT} slirp4netns")


def test_a_sidecar_that_does_not_work_is_replaced_by_the_other(this, inet_check):
    results, programs = inet_check
    programs.remove("slirp4netns")
    results["pasta"], results["slirp4netns"] = (False, "exit status 1"), (False, "not found")
    verdict, detail, line, _ = look(checkup._inet, this)["inet sidecar"]
    assert (verdict, line) == (WARNING, f"{APT} slirp4netns") and "exit status 1" in detail


def test_a_kernel_without_nftables_loads_them(this, inet_check, settings):
    why = "the filter could not be installed: Protocol not supported: nftables is needed"
    inet_check[0]["user namespaces and nftables"] = (False, why)
    found = look(checkup._inet, this)["inet filter"]
    assert found == (WARNING, why, "sudo modprobe nf_tables", None)


def test_apparmor_that_forbids_the_holder_is_told_of_the_launcher(this, inet_check, settings):
    why = "this host does not let you make namespaces: Permission denied"
    inet_check[0]["user namespaces and nftables"] = (False, why)
    settings[diagnosis.APPARMOR] = "1"
    assert "/etc/apparmor.d/claudebox-launcher" in look(checkup._inet, this)["inet filter"][2]


@pytest.mark.parametrize(
    ("there", "line"), [(True, "sudo chmod 0666 /dev/net/tun"), (False, "sudo modprobe tun")]
)
def test_a_tun_device_is_made_or_opened(this, inet_check, monkeypatch, there, line):
    inet_check[0]["/dev/net/tun"] = (False, "you may not open it")
    monkeypatch.setattr(checkup.os.path, "exists", lambda path: there)
    verdict, _, mend, _ = look(checkup._inet, this)["/dev/net/tun"]
    assert (verdict, mend) == (WARNING, line)


# ---------------------------------------------------------------------------- claude and its login


@pytest.fixture
def no_claude(monkeypatch):
    """A host without claude, wherever this one has it."""
    without(monkeypatch, "claude", "npm")


@pytest.mark.parametrize(
    ("machine", "package"),
    [("x86_64", "claude-code-linux-x64"), ("aarch64", "claude-code-linux-arm64")],
)
def test_a_missing_claude_is_installed_by_npm_for_the_machine(
    this, no_claude, home, monkeypatch, machine, package
):
    monkeypatch.setattr("os.uname", lambda: os.uname_result(("Linux", "h", "6.12", "#1", machine)))
    verdict, _, line, _ = look(checkup._claude, this)["claude"]
    local = f"{home}/.local"
    assert verdict == PROBLEM
    assert line.split(" && ")[2:] == [
        f"npm install --global --prefix {local} --no-fund --no-audit @anthropic-ai/{package}",
        f"mkdir -p {local}/bin",
        f"ln -sf {local}/lib/node_modules/@anthropic-ai/{package}/claude {local}/bin/claude",
    ]
    assert line.startswith(f"{APT} npm ca-certificates && ")


def test_claude_on_musl_is_the_one_for_musl(this, no_claude, monkeypatch):
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: "ld-musl" in path or exists(path))
    assert "@anthropic-ai/claude-code-linux-" in look(checkup._claude, this)["claude"][2]
    assert "-musl" in look(checkup._claude, this)["claude"][2]


def test_claude_on_nixos_comes_from_nixpkgs(this, no_claude, monkeypatch):
    monkeypatch.setattr(host, "is_nixos", lambda: True)
    this.distribution = distribution.Distribution("NixOS", "nix")
    line = look(checkup._claude, this)["claude"][2]
    assert line.startswith("env NIXPKGS_ALLOW_UNFREE=1 nix ") and "nixpkgs#claude-code" in line


def test_claude_in_the_local_directory_is_found_without_path(this, home, programs, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    (home / ".local/bin").mkdir(parents=True)
    shutil.copy(programs / "claude", home / ".local/bin/claude")
    verdict, detail, _, _ = look(checkup._claude, this)["claude"]
    assert verdict == OK and f"{home}/.local/bin/claude" in detail


def test_a_version_of_claude_is_known_without_running_it(tmp_path, programs):
    native = tmp_path / "share/claude/versions/2.1.330"
    assert checkup._claude_version(str(native)) == "2.1.330"
    (tmp_path / "package.json").write_text('{"name": "x", "version": "2.0.7"}')
    assert checkup._claude_version(f"{tmp_path}/claude") == "2.0.7"
    (tmp_path / "package.json").write_text("[")
    assert checkup._claude_version(f"{tmp_path}/claude") == ""
    assert checkup._claude_version(f"{programs}/claude") == ""


def test_a_claude_that_cannot_run_is_a_problem(this, tools, monkeypatch):
    (tools / "claude").write_text("#!/usr/bin/env node\n")
    (tools / "claude").chmod(0o755)
    without(monkeypatch, "node")
    verdict, detail, line, _ = look(checkup._claude, this)["claude"]
    assert verdict == PROBLEM and "needs node" in detail and "@anthropic-ai" in line


LOGIN = {"claudeAiOauth": {"accessToken": "sk-a", "refreshToken": "sk-r", "expiresAt": 1}}


def write_login(home, mode=0o600, content=LOGIN):
    path = home / ".claude/.credentials.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    path.chmod(mode)
    return path


def test_no_login_is_a_warning(this):
    verdict, _, line, advice = look(checkup._credentials, this)["credentials"]
    assert (verdict, line) == (WARNING, "") and "ANTHROPIC_API_KEY" in advice


def test_a_login_without_tokens_is_none(this, home):
    write_login(home, content={"claudeAiOauth": {"accessToken": "", "refreshToken": ""}})
    assert look(checkup._credentials, this)["credentials"][:2] == (WARNING, "no login yet")


def test_a_login_is_named_and_not_shown(this, home):
    path = write_login(home)
    verdict, detail, _, _ = look(checkup._credentials, this)["credentials"]
    assert (verdict, detail) == (OK, str(path))


def test_a_login_that_sandboxes_share_is_one(this, home):
    path = write_login(home)
    shared = home / ".claudebox/credentials"
    shared.mkdir(parents=True)
    path.rename(shared / path.name)
    assert look(checkup._credentials, this)["credentials"][1] == str(shared / path.name)


@pytest.mark.parametrize("left", ["link", "pipe"])
def test_what_a_sandbox_left_for_the_shared_login_is_neither_followed_nor_waited_for(
    this, home, tmp_path, alarm, left
):
    alarm(5)
    shared = home / ".claudebox/credentials/.credentials.json"
    shared.parent.mkdir(parents=True)
    if left == "pipe":
        os.mkfifo(shared, 0o644)
    else:
        (tmp_path / "program").write_text("#!/bin/sh\n")
        (tmp_path / "program").chmod(0o755)
        shared.symlink_to(tmp_path / "program")
    verdict, detail, line, _ = look(checkup._credentials, this)["credentials"]
    assert (verdict, line) == (WARNING, "") and "not a plain file" in detail


def test_no_command_is_offered_for_a_file_that_a_sandbox_can_replace(this, home):
    path = write_login(home, 0o644)
    shared = home / ".claudebox/credentials"
    shared.mkdir(parents=True)
    path.rename(shared / path.name)
    assert look(checkup._credentials, this)["credentials"][2] == ""


def test_a_key_is_a_login(this, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret")
    found = look(checkup._credentials, this)["credentials"]
    assert found[:2] == (OK, "ANTHROPIC_API_KEY")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_login_that_others_can_read_is_closed(this, home, mode):
    path = write_login(home, mode)
    verdict, detail, line, _ = look(checkup._credentials, this)["credentials"]
    assert verdict == WARNING and f"mode {mode:04o}" in detail
    assert line == f"chmod 600 {path}"


# ---------------------------------------------------------------------------- state, git, nix


def test_state_that_is_not_there_yet_is_no_matter(this, home):
    assert look(checkup._state, this)["state"][0] == OK
    assert not (home / ".claudebox").exists()


@pytest.mark.parametrize(("mode", "verdict"), [(0o700, OK), (0o755, WARNING), (0o710, WARNING)])
def test_state_that_others_can_enter_is_closed(this, home, mode, verdict):
    (home / ".claudebox").mkdir()
    (home / ".claudebox").chmod(mode)
    found = look(checkup._state, this)["state"]
    assert found[0] == verdict
    assert found[2] == ("" if verdict == OK else f"chmod 700 {home}/.claudebox")


def test_state_that_is_a_file_is_a_problem(this, home):
    (home / ".claudebox").touch()
    assert look(checkup._state, this)["state"][0] == PROBLEM


def test_state_that_cannot_be_written_is_a_problem(this, home, monkeypatch):
    (home / ".claudebox").mkdir(mode=0o700)
    monkeypatch.setattr(os, "access", lambda *_: False)
    verdict, _, line, _ = look(checkup._state, this)["state"]
    assert (verdict, line) == (PROBLEM, f"chmod 700 {home}/.claudebox")
    monkeypatch.setenv("CLAUDEBOX_HOME", f"{home}/elsewhere")
    assert look(checkup._state, this)["state"][0] == PROBLEM


def test_state_of_another_user_is_given_back(this, home, monkeypatch):
    (home / ".claudebox").mkdir(mode=0o700)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    verdict, _, line, _ = look(checkup._state, this)["state"]
    assert verdict == PROBLEM and line.startswith("sudo chown -R 12345:")


def test_a_missing_git_is_a_warning_that_its_package_mends(this, monkeypatch):
    without(monkeypatch, "git")
    verdict, _, line, _ = look(checkup._git, this)["git"]
    assert (verdict, line) == (WARNING, f"{APT} git")


@pytest.mark.parametrize(
    ("reason", "verdict", "advice"),
    [
        (None, OK, False),
        ("the nix daemon builds with sandbox = false", WARNING, True),
        ("u is one of the nix daemon's trusted-users", WARNING, False),
    ],
)
def test_whether_a_session_is_given_the_nix_daemon_is_said(
    this, monkeypatch, reason, verdict, advice
):
    monkeypatch.setattr(nix, "_is_socket", lambda _: True)
    monkeypatch.setattr(nix, "why_unsafe", lambda: reason)
    found = look(checkup._nix, this)["nix"]
    assert found[0] == verdict and (reason or "its socket is inside") in found[1]
    assert ("sandbox = true" in (found[3] or "")) == advice


def test_no_nix_daemon_is_no_matter(this, monkeypatch):
    monkeypatch.setattr(nix, "_is_socket", lambda _: False)
    assert look(checkup._nix, this)["nix"][0] == OK


def test_a_check_that_fails_is_a_line_and_not_the_end(this, monkeypatch):
    def _broken_one(_this):
        raise Failure("there is none", "get one")
        yield

    def _unreadable(_this):
        raise PermissionError(13, "Permission denied", "/x")
        yield

    monkeypatch.setattr(checkup, "CHECKS", (_broken_one, _unreadable, checkup._python))
    found = list(checkup.findings(this))
    assert [(each.name, each.verdict) for each in found] == [
        ("broken one", PROBLEM),
        ("unreadable", WARNING),
        ("python", OK),
    ]


def test_a_machine_without_a_system_call_filter_is_a_problem(this, monkeypatch):
    monkeypatch.setattr(
        "os.uname", lambda: os.uname_result(("Linux", "host", "6.12", "#1", "riscv64"))
    )
    monkeypatch.setattr(checkup, "CHECKS", (checkup._machine,))
    (found,) = checkup.findings(this)
    assert (found.name, found.verdict) == ("machine", PROBLEM)


def test_standing_in_the_home_directory_hides_no_program_of_it(this, home, tools, monkeypatch):
    (home / "bin").mkdir()
    (home / "bin/mine").touch()
    (home / "bin/mine").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}/bin")
    monkeypatch.chdir(home)
    assert checkup.Host().find("mine") == f"{home}/bin/mine"
    (home / "bin/.git").mkdir()
    (home / "bin/.git/HEAD").touch()
    monkeypatch.chdir(home / "bin")
    assert checkup.Host().find("mine") is None


# ---------------------------------------------------------------------------- what is shown and run


@pytest.fixture
def sick(this, tmp_path, tools, monkeypatch, capsys):
    """A host whose checks say what `state` says, and whose programs are stand-ins that log."""
    log = tmp_path / "log"
    for name in ("sudo", "apt-get", "npm"):
        (tools / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >> {log}\n'
            + ('exec "$@"\n' if name == "sudo" else f"! [ -e {tmp_path}/{name}-fails ]\n")
        )
        (tools / name).chmod(0o755)
    monkeypatch.setattr(host, "SYSTEM_DIRECTORIES", (str(tools),))
    monkeypatch.setattr(doctor, "_SYSTEM_DIRECTORIES", ("/usr/bin", "/bin"))
    npm = distribution.Command("npm", "install", "claude")

    def check(_this):
        there = log.read_text() if log.exists() else ""
        if "install -y" not in there:
            yield checkup.Finding("bwrap", PROBLEM, "not found", ["bubblewrap"])
            yield checkup.Finding("git", WARNING, "not found", ["git"])
        if "npm" not in there:
            yield checkup.Finding("claude", PROBLEM, "not found", ["npm"], [npm])
        yield checkup.Finding("other", WARNING, "so so", advice="live with it")
        yield checkup.Finding("python", OK, "good\x1b[2J")

    monkeypatch.setattr(checkup, "CHECKS", (check,))
    monkeypatch.setattr(checkup, "Host", lambda: this)
    this.log = lambda: log.read_text().splitlines() if log.exists() else []

    def call(*words):
        status = command.run(doctor.main, list(words))
        return (status, *capsys.readouterr())

    this.call = call
    return this


INSTALL = "apt-get install -y --no-install-recommends"
RUN = [
    *("sudo apt-get update", "apt-get update"),
    f"sudo {INSTALL} bubblewrap git npm ca-certificates",
    f"{INSTALL} bubblewrap git npm ca-certificates",
    "npm install claude",
]


def test_a_line_that_is_not_ok_is_followed_by_what_mends_it(sick):
    status, output, error = sick.call()
    assert (status, error) == (1, "")
    assert output.splitlines() == [
        "problem  bwrap   not found",
        f"         {APT} bubblewrap",
        "warning  git     not found",
        f"         {APT} git",
        "problem  claude  not found",
        f"         {APT} npm ca-certificates && npm install claude",
        "warning  other   so so",
        "         live with it",
        "ok       python  good\\x1b[2J",
        "",
        "A launch would fail here.",
    ]
    assert sick.log() == []


def test_json_says_the_same(sick):
    status, output, _ = sick.call("--json")
    document = json.loads(output)
    assert (status, document["launch"]) == (1, False)
    assert (document["distribution"], document["package_manager"]) == ("Debian", "apt")
    bwrap, _, claude, other, _ = document["checks"]
    assert bwrap["commands"] == ["sudo apt-get update", f"sudo {INSTALL} bubblewrap"]
    assert claude["commands"][-1] == "npm install claude"
    assert other == {
        "name": "other",
        "verdict": "warning",
        "detail": "so so",
        "commands": [],
        "advice": "live with it",
    }


def test_warnings_alone_do_not_fail(sick, monkeypatch):
    monkeypatch.setattr(
        checkup, "CHECKS", (lambda _: [checkup.Finding("git", WARNING, "none", ["git"])],)
    )
    status, output, _ = sick.call()
    assert (status, output.splitlines()[-1]) == (0, "A launch would work here.")
    assert json.loads(sick.call("--json")[1])["launch"] is True


def test_fix_installs_all_packages_at_once_then_runs_the_rest_and_looks_again(sick):
    status, output, error = sick.call("--fix", "--yes")
    assert (status, error) == (0, "")
    assert sick.log() == RUN
    assert output.count("python  good") == 2 and "fail here" not in output


def test_what_is_asked_about_is_what_is_run(sick, monkeypatch, capsys):
    asked = []

    def ask(question):
        asked.append((question, capsys.readouterr().out))
        return True

    monkeypatch.setattr(audit, "ask", ask)
    assert sick.call("--fix")[0] == 0
    ((question, shown),) = asked
    assert question == "Run these?"
    assert shown.partition("can mend:\n")[2].splitlines() == [
        "  sudo apt-get update",
        f"  sudo {INSTALL} bubblewrap git npm ca-certificates",
        "  npm install claude",
    ]


def test_a_no_runs_nothing(sick, monkeypatch):
    monkeypatch.setattr(audit, "ask", lambda _: False)
    status, _, error = sick.call("--fix")
    assert (status, sick.log()) == (1, [])
    assert error == "claudebox: not confirmed, so nothing was changed: answer y to run them\n"


def test_the_first_command_that_fails_ends_it(sick, tmp_path):
    (tmp_path / "apt-get-fails").touch()
    status, _, error = sick.call("--fix", "-y")
    assert (status, sick.log()) == (1, RUN[:2])
    assert error.startswith("claudebox: `sudo apt-get update` failed with status 1, ")
    assert error.count("\n") == 1


def test_a_command_that_changed_nothing_is_not_run_again(sick, monkeypatch):
    npm = distribution.Command("npm", "install", "claude")
    finding = checkup.Finding("claude", PROBLEM, "not found", [], [npm])
    monkeypatch.setattr(checkup, "CHECKS", (lambda _: [finding],))
    assert sick.call("--fix", "-y")[0] == 1
    assert sick.log() == ["npm install claude"]


def test_what_the_first_round_brought_to_light_is_mended_in_the_next(sick, monkeypatch):
    npm = distribution.Command("npm", "install", "claude")

    def check(this):
        first = checkup.Finding("bwrap", PROBLEM, "not found", ["bubblewrap"])
        yield checkup.Finding("claude", PROBLEM, "not found", [], [npm]) if sick.log() else first

    monkeypatch.setattr(checkup, "CHECKS", (check,))
    asked = []
    monkeypatch.setattr(audit, "ask", lambda question: asked.append(question) or True)
    sick.call("--fix")
    assert len(asked) == 2 and sick.log()[-1] == "npm install claude"


def test_a_program_of_the_project_is_not_run_by_fix(sick, project, monkeypatch):
    (project / "npm").write_text(f"#!/bin/sh\ntouch {project}/planted\n")
    (project / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{project}:/usr/bin:/bin")
    sick.call("--fix", "-y")
    assert sick.log() == RUN and not (project / "planted").exists()


@pytest.mark.parametrize("words", [("--yes",), ("--json", "--fix"), ("--json", "-y"), ("x",)])
def test_options_that_do_not_go_together_are_wrong_usage(sick, words):
    assert sick.call(*words)[0] == 2 and sick.log() == []
