"""Every protection that there is, and the tests that go red without it: the table of tests/mutation.

Most rows are made from the source itself: each element of a list of the policy, each refusal (a
`raise`), each check that a function calls, each O_NOFOLLOW. The rest is the list `WRITTEN` below. A
new list or module needs one line here; `python3 tests/mutation --list` shows what came of it.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class NotThere(Exception):
    """A row of the table no longer fits the source."""


@dataclass(frozen=True)
class Mutation:
    """One protection: `file` with the characters `start` to `end` replaced by `new`.

    `tests` are arguments of pytest; `as_root` says that only root's session can show the difference.
    """

    protection: str
    file: str
    start: int
    end: int
    new: str
    tests: tuple[str, ...]
    as_root: bool = False

    def applied(self, source: str) -> str:
        """Return the source without the protection."""
        return source[: self.start] + self.new + source[self.end :]

    def place(self, source: str) -> str:
        """Return the file and the line."""
        return f"{self.file}:{source.count(chr(10), 0, self.start) + 1}"


def _unit(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/unit/test_{name}.py" for name in names)


_INSIDE = "tests/integration/test_sandbox.py"
_EDITED = "tests/integration/test_edited_plans.py"
_LIFECYCLE = "tests/integration/test_lifecycle.py"
_CREDENTIALS = "tests/unit/test_login_mirror.py"
_REACH = "tests/net/test_reach.py"
_TIER = "tests/net/test_tier_lifecycle.py"
_EXCEPTIONS = "tests/net/test_exceptions.py"
_NFTABLES = "tests/net/test_nftables.py"
_CHECKER = "tests/fuzz/test_mount_checker.py"

# The lists of the policy. Each element is a protection, and each list has to be named in one of the
# two tables: tests/test_mutation.py sees to that.
LISTS = {
    "claudebox/policy.py": {
        "FORBIDDEN_VARIABLES": _unit("policy"),
        "FORBIDDEN_VARIABLE_PREFIXES": _unit("policy"),
        "MASKED_PROC_FILES": (_CHECKER, *_unit("policy")),
        "INET_DENIED_V4": (_NFTABLES,),
        "INET_DENIED_V6": (_NFTABLES,),
        "NIX_CONFIGURATION": _unit("policy"),
        "OWN_TARGETS": _unit("enforcement"),
        "OWN_VARIABLES": _unit("enforcement"),
        "SIDECAR_NETWORKS": (_EXCEPTIONS, _NFTABLES),
        "SECRET_HOME_PATHS": ("tests/fuzz/test_secret_places.py",),
        "HOME_MARKS": ("tests/fuzz/test_secret_places.py",),
        "SECRET_SYSTEM_PATHS": ("tests/fuzz/test_secret_places.py",),
        "SECRET_PLACE_VARIABLES": _unit("policy"),
        "SOCKET_ADDRESS_VARIABLES": _unit("policy"),
        "PROTECTED_GIT_PATHS": (_CHECKER,),
        "BARE_REPOSITORY_DIRECTORIES": _unit("protection"),
        "GIT_WORDS_WITH_FILES": _unit("protection", "git"),
        "PROTECTED_PROJECT_PATHS": (_CHECKER,),
        "WATCHED_PROJECT_PATHS": _unit("protection"),
        "SECRET_FILE_NAMES": _unit("audit"),
    },
    "claudebox/sandbox/seccomp.py": {
        "DENIED": _unit("seccomp"),
        "DENIED_IOCTLS": _unit("seccomp"),
    },
    "claudebox/sandbox/bwrap.py": {
        "NAMESPACES": (*_unit("bwrap_arguments"), _CHECKER),
    },
    "claudebox/enforcement.py": {
        "_NEEDED_TARGETS": _unit("enforcement"),
    },
}

# Lists of what is let in: what would be too much in them, as the source of one more element.
ADDITIONS = {
    "claudebox/policy.py": {
        "HOST_VARIABLES": ('"SSH_AUTH_SOCK"', _unit("policy")),
        "HOST_VARIABLE_PREFIXES": ('"AWS_"', _unit("policy")),
        "SYSTEM_FILES": (
            '"/etc/hostname"',
            (f"{_INSIDE}::test_etc_holds_only_what_programs_need",),
        ),
        "HARMLESS_FILE_NAMES": ('".env"', _unit("audit")),
        "NIX_HARMLESS_SANDBOX_PATHS": ('"/home"', _unit("nix")),
        "DEVSHELL_FILE_SUFFIXES": ('".env"', _unit("policy")),
        "DEVSHELL_FILE_NAMES": ('".env"', _unit("policy")),
        "DEVSHELL_VARIABLES": ('"LD_PRELOAD"', _unit("policy")),
    },
    "claudebox/sandbox/seccomp.py": {
        "ALLOWED_FAMILIES": ("40", _unit("seccomp")),
    },
}

# What another element covers already: said twice for the reader.
COVERED_TWICE = {
    "INET_DENIED_V6: '64:ff9b::/96'": "::/3 holds it",
    "_repository: protection.anchor(common + '/worktrees')": "protect does it for what it protects",
    "_nested: protection.anchor(directory)": "protect does it for what it protects",
    "git_directory: self.anchor(directory)": "protect does it for what it protects",
    "worktree_directory: self.anchor(directory)": "protect does it for what it protects",
    "parse_allow refuses: 'write [NETWORK/LENGTH]:PORT'": "it is no port either",
    "protect: self._protected.add(path)": "what is read-only is not mounted on again",
}

# Lists of the policy that are no protections.
NOT_PROTECTIONS = {"CERTIFICATE_BUNDLES", "CLAUDE_VARIABLES", "NIX_MODES", "NIX_VARIABLES"}
NOT_PROTECTIONS |= {"SYSTEM_FILES_BESIDE_STORE", "TMPFS_DIVISORS"}

# Where each refusal, a `raise` of one of the project's own errors, is a protection.
REFUSALS = {
    "claudebox/enforcement.py": (*_unit("enforcement"), _EDITED),
    "claudebox/git.py": _unit("git", "protection"),
    "claudebox/git_index.py": _unit("git_index"),
    "claudebox/hiding.py": _unit("hiding"),
    "claudebox/host.py": _unit("host"),
    "claudebox/instance.py": _unit("instance"),
    "claudebox/net.py": _unit("net"),
    "claudebox/nix.py": _unit("nix"),
    "claudebox/nix_store.py": (*_unit("nix_store"), "tests/integration/test_nix_packages.py"),
    "claudebox/plan.py": _unit("plan"),
    "claudebox/profiles.py": _unit("profile_schema", "profile"),
    "claudebox/schema.py": _unit("plan", "profile_schema"),
    "claudebox/policy.py": _unit("policy"),
    "claudebox/profile.py": _unit("profile", "command"),
    "claudebox/protection.py": _unit("protection"),
    "claudebox/sandbox/credentials.py": (_CREDENTIALS,),
    "claudebox/sandbox/inet.py": (_EXCEPTIONS, _TIER),
    "claudebox/sandbox/inet_namespaces.py": (_TIER,),
    "claudebox/sandbox/limits.py": _unit("control_groups"),
    "claudebox/sandbox/nftables.py": (_NFTABLES,),
    "claudebox/sandbox/sources.py": _unit("sources"),
    "claudebox/sandbox/standins.py": _unit("standins"),
    "claudebox/sandbox/state.py": _unit("state"),
}
_ERRORS = {"Failure", "Refused", "UnsafeGit", "PlanError", "OSError", "NetlinkError"}
_ERRORS |= {
    "Mismatch",
    "UnreadableIndex",
    "_Unsure",
    "ProfileError",
    "_not_protectable",
    "_not_allowable",
    "_changed",
    "_setup_failure",
}

# Functions in which each call that stands for itself is a check, or makes a protection.
CHECKS = {
    ("claudebox/enforcement.py", "refuse_unsafe"): (
        *_unit("enforcement", "hiding", "nix"),
        _EDITED,
    ),
    ("claudebox/protection.py", "mounts"): (*_unit("protection"), _CHECKER),
    ("claudebox/protection.py", "_repository"): (*_unit("protection"), _CHECKER),
    ("claudebox/protection.py", "_nested"): (*_unit("protection"), _CHECKER),
    ("claudebox/protection.py", "git_directory"): (*_unit("protection"), _CHECKER),
    ("claudebox/protection.py", "worktree_directory"): (*_unit("protection"), _CHECKER),
    ("claudebox/protection.py", "no_bare_repository"): (*_unit("protection"), _CHECKER),
    ("claudebox/protection.py", "protect"): (*_unit("protection"), _CHECKER),
    ("claudebox/protection.py", "anchor"): (*_unit("protection"), _CHECKER),
}

# Each O_NOFOLLOW, by file and function.
NO_FOLLOW = {
    ("claudebox/checkup.py", "_login"): _unit("checkup"),
    ("claudebox/git.py", "read_small_file"): _unit("git"),
    ("claudebox/git_index.py", "_content"): _unit("git_index"),
    ("claudebox/profiles.py", "_open_directory"): _unit("profile_schema", "profile"),
    ("claudebox/profiles.py", "_text"): _unit("profile_schema", "profile"),
    ("claudebox/instances.py", "is_live"): _unit("instance_directories"),
    ("claudebox/instances.py", "_DIRECTORY"): _unit("instance_directories"),
    ("claudebox/sandbox/credentials.py", "__init__"): (_CREDENTIALS,),
    ("claudebox/sandbox/credentials.py", "_read_host"): (_CREDENTIALS,),
    ("claudebox/sandbox/sources.py", "step_to"): _unit("sources", "standins"),
    ("claudebox/sandbox/standins.py", "_open"): _unit("standins"),
    ("claudebox/sandbox/standins.py", "_remove"): _unit("standins"),
    ("claudebox/sandbox/state.py", "__enter__"): _unit("state"),
    ("claudebox/sandbox/state.py", "_open"): _unit("state"),
    ("claudebox/sandbox/state.py", "open_directory"): _unit("state"),
    ("claudebox/sandbox/state.py", "read_file"): _unit("state"),
}
# O_EXCL with O_CREAT follows no link either (open(2)), so these have nothing to show.
NO_FOLLOW_BESIDE_EXCL = {
    ("claudebox/profile_files.py", "_edit"),
    ("claudebox/sandbox/standins.py", "_make"),
    ("claudebox/sandbox/state.py", "_prepare_credentials"),
    ("claudebox/sandbox/state.py", "replace_file"),
}

# (what is protected, file, the text, what stands there instead, tests)
WRITTEN = [
    # --- bwrap's arguments
    (
        "the sandbox ends with its launcher",
        "claudebox/sandbox/bwrap.py",
        '"--die-with-parent", ',
        "",
        _unit("bwrap_arguments"),
    ),
    (
        "no capabilities",
        "claudebox/sandbox/bwrap.py",
        'result += ["--cap-drop", "ALL"]',
        "pass",
        _unit("bwrap_arguments"),
    ),
    (
        "no further user namespaces",
        "claudebox/sandbox/bwrap.py",
        'result.append("--disable-userns")',
        "pass",
        _unit("bwrap_arguments"),
    ),
    (
        "no network in the tier none",
        "claudebox/sandbox/bwrap.py",
        'result.append("--unshare-net")',
        "pass",
        _unit("bwrap_arguments"),
    ),
    (
        "the system call filter",
        "claudebox/sandbox/bwrap.py",
        """result += ["--seccomp", Data("seccomp filter", seccomp.program(nested_namespaces=nested))]""",
        "pass",
        _unit("bwrap_arguments"),
    ),
    (
        "a read-only root",
        "claudebox/sandbox/bwrap.py",
        '"--remount-ro", "/", ',
        "",
        _unit("bwrap_arguments"),
    ),
    (
        "an empty directory is read-only",
        "claudebox/sandbox/bwrap.py",
        '"--tmpfs", target, "--remount-ro", target]',
        '"--tmpfs", target]',
        _unit("bwrap_arguments"),
    ),
    (
        "kernel settings are read-only",
        "claudebox/sandbox/bwrap.py",
        '["--proc", target, *_READ_ONLY_SYSCTL]',
        '["--proc", target]',
        _unit("bwrap_arguments"),
    ),
    (
        "a cover in proc",
        "claudebox/sandbox/bwrap.py",
        'return ["--ro-bind", "/dev/null", target]',
        "return []",
        _unit("bwrap_arguments"),
    ),
    (
        "a file of claudebox's own is read-only",
        "claudebox/sandbox/bwrap.py",
        '"--ro-bind-data", data',
        '"--file", data',
        _unit("bwrap_arguments"),
    ),
    (
        "a read-only mount is read-only",
        "claudebox/sandbox/bwrap.py",
        'f"--{kind}-fd"',
        '"--bind-fd"',
        (*_unit("bwrap_arguments"), _CHECKER),
    ),
    # --- the filter
    (
        "a foreign architecture",
        "claudebox/sandbox/seccomp.py",
        "(_RETURN, 0, 0, _KILL)",
        "(_RETURN, 0, 0, _ALLOW)",
        _unit("seccomp"),
    ),
    (
        "x32",
        "claudebox/sandbox/seccomp.py",
        "(_RETURN, 0, 0, _ERRNO | ENOSYS)",
        "(_RETURN, 0, 0, _ALLOW)",
        _unit("seccomp"),
    ),
    (
        "socket families",
        "claudebox/sandbox/seccomp.py",
        "(_RETURN, 0, 0, _ERRNO | EAFNOSUPPORT)",
        "(_RETURN, 0, 0, _ALLOW)",
        _unit("seccomp"),
    ),
    (
        "the low half of an ioctl request",
        "claudebox/sandbox/seccomp.py",
        "_FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24",
        "_FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 28",
        _unit("seccomp"),
    ),
    # --- the launch
    (
        "a plan is held against the policy",
        "claudebox/run.py",
        "        enforcement.refuse_unsafe(plan)\n    _tidy",
        "        pass\n    _tidy",
        (_EDITED,),
    ),
    (
        "a plan made just now is held against the policy, too",
        "claudebox/main.py",
        "        enforcement.refuse_unsafe(plan, protections_are_fresh=True)\n\n    return",
        "    return",
        (
            f"{_INSIDE}::"
            "test_a_plan_made_just_now_is_held_against_the_policy_before_its_payload_starts",
        ),
    ),
    (
        "what is looked at beside bwrap's work is looked at before the payload starts",
        "claudebox/run.py",
        "            at_gate()\n",
        "            pass\n",
        (
            f"{_INSIDE}::"
            "test_a_plan_made_just_now_is_held_against_the_policy_before_its_payload_starts",
        ),
    ),
    (
        "signals wait until what was begun is known",
        "claudebox/run.py",
        "        signals.hold()\n        groups",
        "        groups",
        (f"{_LIFECYCLE}::test_a_signal_in_the_moment_of_the_fork_leaves_no_process",),
    ),
    (
        "a signal whose exception is lost ends the launch, too",
        "claudebox/run.py",
        "        if ending:\n",
        "        if False:\n",
        (f"{_LIFECYCLE}::test_a_signal_whose_exception_python_loses_ends_the_launch_all_the_same",),
    ),
    (
        "signals wait until everything is cleaned up",
        "claudebox/run.py",
        "        # Any of them would end this in its middle.\n"
        "        for number in (*_FORWARDED, _signal.SIGINT):\n",
        "        for number in ():\n",
        (
            f"{_LIFECYCLE}::"
            "test_a_signal_while_a_launch_that_failed_is_cleaned_up_leaves_no_stand_in",
        ),
    ),
    (
        "the environment is the plan's alone",
        "claudebox/run.py",
        "os.execve(program, argv, variables)",
        "os.execve(program, argv, {**os.environ, **variables})",
        (f"{_INSIDE}::test_the_environment_inside_is_the_allowlist_and_what_claudebox_sets",),
    ),
    (
        "inherited descriptors are closed",
        "claudebox/run.py",
        "            if number > 2 and os.get_inheritable(number):\n",
        "            if False:\n",
        (f"{_INSIDE}::test_no_descriptor_is_inherited_but_the_three_standard_ones",),
    ),
    (
        "the mounts are looked at before the payload starts",
        "claudebox/run.py",
        "        expected.refuse_other(of_sandbox[1])\n",
        "",
        (f"{_INSIDE}::test_a_sandbox_with_a_mount_too_many_does_not_start",),
    ),
    (
        "a payload whose launcher is gone never starts",
        "claudebox/run.py",
        "read -r go <&9 || exit 125",
        "read -r go <&9",
        _unit("run"),
    ),
    (
        "SIGPIPE and SIGXFSZ are not ignored inside",
        "claudebox/run.py",
        "        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):\n",
        "        for number in ():\n",
        (f"{_INSIDE}::test_no_signal_is_ignored_or_blocked_inside_that_was_not_outside",),
    ),
    (
        "changed files are reported",
        "claudebox/run.py",
        '            _report(watch.changes(before, watch.fingerprint(place)), place["root"])\n',
        "",
        (f"{_INSIDE}::test_a_changed_file_that_can_run_code_outside_is_reported",),
    ),
    (
        "new repositories are reported",
        "claudebox/run.py",
        '            _report_repositories(repositories, place["root"])\n',
        "",
        (f"{_INSIDE}::test_a_repository_made_inside_is_reported",),
    ),
    (
        "terminal modes are put back",
        "claudebox/run.py",
        "            _restore_terminal(terminal)\n",
        "",
        (f"{_LIFECYCLE}::test_the_terminal_modes_are_put_back_when_the_payload_leaves_its_own",),
    ),
    (
        "a missing mount is noticed",
        "claudebox/sandbox/sources.py",
        "        if missing:\n",
        "        if False:\n",
        _unit("sources"),
    ),
    (
        "a mount too many is noticed",
        "claudebox/sandbox/sources.py",
        "        for point in inside.keys() - self._wanted.keys() - self._along.keys():\n",
        "        for point in ():\n",
        _unit("sources"),
    ),
    (
        "another source is noticed",
        "claudebox/sandbox/sources.py",
        "        if not same:\n",
        "        if False:\n",
        _unit("sources"),
    ),
    # --- what is found of the host
    (
        "the home directory and what is above it",
        "claudebox/policy.py",
        '        return "it is the home directory" if home == path else "it contains the home directory"\n',
        "        pass\n",
        _unit("policy"),
    ),
    (
        "what lies in a secret place",
        "claudebox/policy.py",
        '        if path in secrets:\n            return f"it lies in {secrets[path]}"\n',
        "        pass\n",
        _unit("policy"),
    ),
    (
        "what contains a secret place",
        "claudebox/policy.py",
        "    if path in secrets.above:\n",
        "    if False:\n",
        _unit("policy"),
    ),
    (
        "a secret place itself",
        "claudebox/policy.py",
        '    if path in secrets:\n        return f"it is {secrets[path]}"\n',
        "    pass\n",
        _unit("policy"),
    ),
    (
        "where a secret that is a link leads",
        "claudebox/policy.py",
        "        secrets[os.path.realpath(resolved)] = name\n",
        "        pass\n",
        _unit("policy"),
    ),
    (
        "claudebox's own state",
        "claudebox/policy.py",
        '    secrets[state_home(home, environ)] = "claudebox\'s own state"\n',
        "",
        _unit("policy"),
    ),
    (
        "the sessions of tmux",
        "claudebox/policy.py",
        '    add(f"/tmp/tmux-{os.getuid()}", f"/tmp/tmux-{os.getuid()}")\n',
        "",
        ("tests/fuzz/test_secret_places.py",),
    ),
    (
        "the home of root beside a home below it",
        "claudebox/policy.py",
        'homes = ["/root", home] if is_within(home, "/root") and home != "/root" else [home]',
        "homes = [home]",
        _unit("policy"),
    ),
    (
        "no variable of the host with a strange name",
        "claudebox/policy.py",
        " and name.isidentifier() and name.isascii()",
        "",
        _unit("policy"),
    ),
    (
        "no program of the project is run outside",
        "claudebox/host.py",
        '        if directory.startswith("/") and not inside:\n',
        '        if directory.startswith("/"):\n',
        _unit("git", "command"),
    ),
    (
        "no program of a relative directory is run outside",
        "claudebox/host.py",
        '        if directory.startswith("/") and not inside:\n',
        "        if not inside:\n",
        _unit("git", "command", "checkup"),
    ),
    (
        "a worktree's git directory links back",
        "claudebox/git.py",
        '            and os.path.realpath(os.path.join(git_dir, back.rstrip("\\n"))) == dot_git\n',
        "",
        _unit("git"),
    ),
    (
        "a worktree's common directory is its own",
        "claudebox/git.py",
        '            and os.path.realpath(os.path.join(git_dir, common.rstrip("\\n"))) == common_dir\n',
        "",
        _unit("git"),
    ),
    (
        "a submodule's git directory links back",
        "claudebox/git.py",
        "    elif is_git_directory(git_dir) and root in _core_worktrees(git_dir, root):\n",
        "    elif is_git_directory(git_dir):\n",
        _unit("git"),
    ),
    (
        "a commondir leads nowhere else",
        "claudebox/git.py",
        '    if common is not None and common.strip() != ".":\n',
        "    if False:\n",
        _unit("git"),
    ),
    (
        "a named pipe is not waited for",
        "claudebox/git.py",
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC",
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC",
        _unit("git"),
    ),
    (
        "a small file is small",
        "claudebox/git.py",
        "    if len(content) > limit or ",
        "    if ",
        _unit("git"),
    ),
    (
        "no include is followed when a submodule is asked",
        "claudebox/git.py",
        '[git, "config", "--no-includes", "--file", file, "--get", "core.worktree"]',
        '[git, "config", "--includes", "--file", file, "--get", "core.worktree"]',
        _unit("git"),
    ),
    (
        "includes of includes are protected",
        "claudebox/git.py",
        "                if is_include:\n                    pending.append(named)\n",
        "",
        _unit("protection", "git"),
    ),
    (
        "repositories below what looks like a bare one",
        "claudebox/project.py",
        '            found["repositories"].append(directory)\n        above',
        '            found["repositories"].append(directory)\n            continue\n        above',
        _unit("protection"),
    ),
    (
        "nested repositories",
        "claudebox/project.py",
        "                if directory != root:\n                    found",
        "                if False:\n                    found",
        _unit("protection"),
    ),
    # --- run-later files
    (
        "what is read-only stays read-only",
        "claudebox/protection.py",
        " or self._is_read_only(directory):\n            return\n",
        ":\n            return\n",
        _unit("protection"),
    ),
    (
        "a mount that would hide others replaces them",
        "claudebox/protection.py",
        "        if path in self._anchored:\n",
        "        if False:\n",
        _unit("protection"),
    ),
    (
        "what is there is read-only",
        "claudebox/protection.py",
        '            mount = {"kind": "ro-bind", "source": path,',
        '            mount = {"kind": "bind", "source": path,',
        (*_unit("protection"), _CHECKER),
    ),
    (
        "a file that git must not take for a hooks directory",
        "claudebox/protection.py",
        "if mode is None or (mode == stat.S_IFREG and not os.lstat(path).st_mode & 0o111):",
        "if mode in (None, stat.S_IFREG):",
        (*_unit("protection"), _EDITED),
    ),
    (
        "submodules whose names hold slashes",
        "claudebox/protection.py",
        '        if name not in ("objects", "refs", "logs"):\n            found.extend(_modules(path))\n',
        "",
        _unit("protection"),
    ),
    (
        "a checkout of claudebox itself",
        "claudebox/protection.py",
        "    if policy.is_within(own, root):\n",
        "    if False:\n",
        (f"{_INSIDE}::test_a_checkout_of_claudebox_itself_is_read_only_in_a_session",),
    ),
    # --- stand-ins
    (
        "a stand-in that a session uses stays",
        "claudebox/sandbox/standins.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        _unit("standins"),
    ),
    (
        "a stand-in that was changed stays",
        "claudebox/sandbox/standins.py",
        '            if os.read(descriptor, len(expected) + 1) in (b"", expected):\n',
        "            if True:\n",
        _unit("standins"),
    ),
    (
        "a stand-in that was removed meanwhile is noticed",
        "claudebox/sandbox/standins.py",
        "        if os.path.samestat(os.fstat(lock), os.lstat(path)):\n",
        "        if True:\n",
        _unit("standins"),
    ),
    # --- state
    (
        "an instance of another project",
        "claudebox/sandbox/state.py",
        '        if root != instance["root"]:\n',
        "        if False:\n",
        _unit("state"),
    ),
    (
        "state of another user",
        "claudebox/sandbox/state.py",
        "    if os.fstat(descriptor).st_uid != os.getuid():\n",
        "    if False:\n",
        _unit("state"),
    ),
    (
        "state that others can read",
        "claudebox/sandbox/state.py",
        "    if os.fstat(descriptor).st_mode & 0o077:\n",
        "    if False:\n",
        _unit("state"),
    ),
    (
        "a file of the instance is of bounded size",
        "claudebox/sandbox/state.py",
        "    if len(content) > _SIZE_LIMIT:\n",
        "    if False:\n",
        _unit("state"),
    ),
    (
        "an instance that gc removed meanwhile",
        "claudebox/sandbox/state.py",
        "            if os.path.samestat(os.fstat(directory), os.lstat(path)):\n",
        "            if True:\n",
        (*_unit("state"), "tests/integration/test_gc.py"),
    ),
    # --- credentials
    (
        "a file without a login never wins",
        "claudebox/sandbox/credentials.py",
        '        usable = bool(login["accessToken"] and login["refreshToken"])\n',
        "        usable = True\n",
        (_CREDENTIALS,),
    ),
    (
        "a file that is being written is not passed on",
        "claudebox/sandbox/credentials.py",
        "        if not ended and not _is_whole(inside):\n            return\n",
        "",
        (_CREDENTIALS,),
    ),
    # --- the audit
    (
        "nothing draws on the terminal: control characters",
        "claudebox/printable.py",
        "        if not character.isprintable() or (\n",
        "        if (\n",
        _unit("audit"),
    ),
    (
        "nothing draws on the terminal: marks",
        "claudebox/printable.py",
        'unicodedata.category(character)[0] == "M"',
        "False",
        _unit("audit"),
    ),
    (
        "values are masked",
        "claudebox/audit.py",
        'entry["value"] = "(not set)" if value is None else masked(value)',
        'entry["value"] = "(not set)" if value is None else value',
        _unit("audit"),
    ),
    (
        "no launch without a yes",
        "claudebox/audit.py",
        '    if not yes and not ask("Launch this?"):\n',
        "    if False:\n",
        ("tests/unit/test_audit.py", "tests/unit/test_command.py"),
    ),
    (
        "what was typed before the question is no answer",
        "claudebox/audit.py",
        "        termios.tcflush(terminal, termios.TCIFLUSH)\n",
        "",
        _unit("audit"),
    ),
    (
        "errors cannot draw on the terminal",
        "claudebox/command.py",
        'f"claudebox: {printable(message)}\\n"',
        'f"claudebox: {message}\\n"',
        ("tests/unit/test_command.py",),
    ),
    # --- the tier inet
    (
        "the host's own addresses, v4",
        "claudebox/sandbox/nftables.py",
        '[[*_in_set(4, "own4"), _TO_REFUSE], [*_in_set(16, "own6"), _TO_REFUSE]]',
        '[[*_in_set(16, "own6"), _TO_REFUSE]]',
        (_EXCEPTIONS, _REACH),
    ),
    (
        "the host's own addresses, v6",
        "claudebox/sandbox/nftables.py",
        '[[*_in_set(4, "own4"), _TO_REFUSE], [*_in_set(16, "own6"), _TO_REFUSE]]',
        '[[*_in_set(4, "own4"), _TO_REFUSE]]',
        (_EXCEPTIONS, _REACH),
    ),
    (
        "the networks that are near, v4",
        "claudebox/sandbox/nftables.py",
        '[[*_in_set(4, "near4"), _TO_REFUSE], [*_in_set(16, "near6"), _TO_REFUSE]]',
        '[[*_in_set(16, "near6"), _TO_REFUSE]]',
        (_REACH,),
    ),
    (
        "the networks that are near, v6",
        "claudebox/sandbox/nftables.py",
        '[[*_in_set(4, "near4"), _TO_REFUSE], [*_in_set(16, "near6"), _TO_REFUSE]]',
        '[[*_in_set(4, "near4"), _TO_REFUSE]]',
        (_REACH,),
    ),
    (
        "the sidecars' own networks",
        "claudebox/sandbox/nftables.py",
        "    output += [[*_to_network(*network(each)), _TO_REFUSE] for each in SIDECAR_NETWORKS]\n",
        "",
        (_EXCEPTIONS, _REACH),
    ),
    (
        "protocols that are none of the usual ones",
        "claudebox/sandbox/nftables.py",
        "        [_TO_REFUSE],\n",
        "        [_verdict(_ACCEPT)],\n",
        (_NFTABLES, _REACH),
    ),
    (
        "the filter drops what no rule names",
        "claudebox/sandbox/nftables.py",
        "hook, policy = (4, [(1, _HOOK_OUTPUT), (2, 0)]), (5, _DROP)",
        "hook, policy = (4, [(1, _HOOK_OUTPUT), (2, 0)]), (5, _ACCEPT)",
        (_NFTABLES, _TIER),
    ),
    (
        "the filter is read back",
        "claudebox/sandbox/nftables.py",
        "    verify(connection, filter_rules, contents)\n",
        "",
        (_TIER, _NFTABLES),
    ),
    (
        "the filter is there before anything else",
        "claudebox/sandbox/inet.py",
        "        _install_filter(packets, rules, contents)\n",
        "",
        (_TIER, _REACH),
    ),
    (
        "no port of the host is forwarded inside",
        "claudebox/sandbox/inet.py",
        '"-T", "none", "-U", "none", ',
        "",
        ("tests/net/test_exceptions.py", _REACH),
    ),
    (
        "no port of the sandbox is forwarded outside",
        "claudebox/sandbox/inet.py",
        '"-t", "none", "-u", "none", ',
        "",
        (_TIER, "tests/net/test_reach.py"),
    ),
    (
        "the host's loopback behind slirp4netns",
        "claudebox/sandbox/inet.py",
        '"--disable-host-loopback", ',
        "",
        (_REACH, _TIER),
    ),
    (
        "slirp4netns in a sandbox of its own",
        "claudebox/sandbox/inet.py",
        '"--enable-sandbox", "--enable-seccomp", ',
        "",
        (_TIER,),
    ),
    (
        "networks that the host gains",
        "claudebox/sandbox/inet.py",
        "            self._filter.block(own, near)\n",
        "            pass\n",
        ("tests/net/test_roaming.py",),
    ),
    (
        "a route message that cannot be understood",
        "claudebox/sandbox/netlink.py",
        '        raise NetlinkError(74, f"netlink message {kind:#x} that cannot be understood")\n',
        "        pass\n",
        ("tests/net/test_netlink.py",),
    ),
    (
        "the filter's networks come from a message of the kernel",
        "claudebox/sandbox/netlink.py",
        "        while sender[0] == 0 and ",
        "        while ",
        ("tests/net/test_netlink.py",),
    ),
    (
        "only queries are relayed",
        "claudebox/sandbox/dns_relay.py",
        "            if is_query(query):\n                self.look_up",
        "            if True:\n                self.look_up",
        ("tests/net/test_dns.py",),
    ),
    (
        "only queries are relayed over TCP",
        "claudebox/sandbox/dns_relay.py",
        "        if not is_query(query):\n            self.close()\n            return False\n",
        "",
        ("tests/net/test_dns.py",),
    ),
    (
        "no zone transfer",
        "claudebox/sandbox/dns_relay.py",
        '    return int.from_bytes(question[-4:-2], "big") not in _ZONE_TRANSFERS\n',
        "    return True\n",
        ("tests/net/test_dns_messages.py",),
    ),
    (
        "only answers are passed on",
        "claudebox/sandbox/dns_relay.py",
        "        if is_answer(self.lookup.query, answer):\n",
        "        if True:\n",
        ("tests/net/test_dns_messages.py",),
    ),
]

WRITTEN_FOR_ROOT = [
    (
        "kernel settings are read-only for root",
        "claudebox/sandbox/bwrap.py",
        '["--proc", target, *_READ_ONLY_SYSCTL]',
        '["--proc", target]',
        (f"{_INSIDE}::test_the_kernel_settings_are_read_only",),
    ),
    (
        "root has no capabilities",
        "claudebox/sandbox/bwrap.py",
        'result += ["--cap-drop", "ALL"]',
        "pass",
        (f"{_INSIDE}::test_no_capability_is_in_any_set_and_none_can_be_gained",),
    ),
]


@cache
def source_of(file: str, root: Path = ROOT) -> str:
    """Return the text of a file of the checkout, always the one that was there first."""
    return (root / file).read_text(encoding="utf-8")


def _offsets(source: str) -> list[int]:
    """Return where each line begins, as ast counts lines: from 1, columns in UTF-8 bytes."""
    found = [0, 0]
    for line in source.splitlines(keepends=True):
        found.append(found[-1] + len(line))
    return found


class _Source:
    """A file as text and as syntax tree, with the character position of each node."""

    def __init__(self, file: str, root: Path):
        self.file = file
        self.text = source_of(file, root)
        self.tree = ast.parse(self.text)
        self._lines = self.text.split("\n")
        self._offsets = _offsets(self.text)

    def _position(self, line: int, column: int) -> int:
        return self._offsets[line] + len(self._lines[line - 1].encode()[:column].decode())

    def span(self, node) -> tuple[int, int]:
        return (
            self._position(node.lineno, node.col_offset),
            self._position(node.end_lineno, node.end_col_offset),
        )

    def assigned(self, name: str):
        """Return the tuple or dict that the module calls `name`."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
                return node.value
        raise NotThere(f"{self.file} has no {name}")

    def functions(self):
        """Yield (name, node) of every function, and of every assignment of the module."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef):
                yield node.name, node
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and hasattr(node.targets[0], "id"):
                yield node.targets[0].id, node


def _elements(source: _Source, name: str, tests) -> list[Mutation]:
    value = source.assigned(name)
    if isinstance(value, ast.Dict):
        spans = [
            (source.span(key)[0], source.span(item)[1], key)
            for key, item in zip(value.keys, value.values, strict=True)
        ]
    elif isinstance(value, ast.Tuple):
        spans = [(*source.span(item), item) for item in value.elts]
    else:
        raise NotThere(f"{name} of {source.file} is neither a tuple nor a dict")
    found = []
    for start, end, node in spans:
        if source.text[end : end + 1] == ",":
            end += 1
        label = f"{name}: {ast.unparse(node)}"
        found.append(Mutation(label, source.file, start, end, "", tests))
    return found


def _additions(source: _Source, name: str, element: str, tests) -> list[Mutation]:
    _, end = source.span(source.assigned(name))
    before = source.text[: end - 1].rstrip()
    comma = "" if before.endswith((",", "(")) else ","
    label = f"{name}: {element} is not in it"
    return [Mutation(label, source.file, end - 1, end - 1, f"{comma} {element}", tests)]


def _refusals(source: _Source, tests) -> list[Mutation]:
    found = []
    for name, function in source.functions():
        for node in ast.walk(function):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            if getattr(node.exc.func, "id", None) not in _ERRORS:
                continue
            # Of these the first argument is what the second one is said of.
            second = node.exc.func.id in ("Mismatch", "PlanError", "_not_allowable")
            words = node.exc.args[1 if second else 0 :]
            said = " ".join(ast.unparse(words[0]).split()) if words else ""
            label = f"{name} refuses: {said[:70]}"
            found.append(Mutation(label, source.file, *source.span(node), "pass", tests))
    return found


def _checks(source: _Source, wanted: str, tests) -> list[Mutation]:
    found = []
    for name, function in source.functions():
        if name != wanted:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                said = " ".join(ast.unparse(node).split())
                label = f"{name}: {said[:70]}"
                found.append(Mutation(label, source.file, *source.span(node), "pass", tests))
    if not found:
        raise NotThere(f"{source.file} has no function {wanted} that calls anything")
    return found


def _no_follow(source: _Source, wanted: str, tests) -> list[Mutation]:
    found = []
    for name, function in source.functions():
        if name != wanted:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr == "O_NOFOLLOW":
                label = f"{name} follows no link"
                found.append(Mutation(label, source.file, *source.span(node), "0", tests))
    if not found:
        raise NotThere(f"{source.file} has no O_NOFOLLOW in {wanted}")
    return found


def _written(root: Path, row, as_root: bool) -> Mutation:
    protection, file, old, new, tests = row
    text = source_of(file, root)
    count = text.count(old)
    if count != 1:
        raise NotThere(f"{protection}: {file} has {count} times: {old.strip()}")
    start = text.index(old)
    return Mutation(protection, file, start, start + len(old), new, tests, as_root)


def all_mutations(root: Path = ROOT) -> list[Mutation]:
    """Return the whole table for the checkout `root`; raises NotThere if a row does not fit it."""
    return [row for row in _every(root) if row.protection not in COVERED_TWICE]


def _every(root: Path) -> list[Mutation]:
    found = []
    for file, lists in LISTS.items():
        source = _Source(file, root)
        for name, tests in lists.items():
            found += _elements(source, name, tests)
    for file, lists in ADDITIONS.items():
        source = _Source(file, root)
        for name, (element, tests) in lists.items():
            found += _additions(source, name, element, tests)
    for file, tests in REFUSALS.items():
        found += _refusals(_Source(file, root), tests)
    for (file, name), tests in CHECKS.items():
        found += _checks(_Source(file, root), name, tests)
    for (file, name), tests in NO_FOLLOW.items():
        found += _no_follow(_Source(file, root), name, tests)
    found += [_written(root, row, False) for row in WRITTEN]
    found += [_written(root, row, True) for row in WRITTEN_FOR_ROOT]
    # A function within a function is walked twice.
    unique = {(row.file, row.start, row.end, row.new, row.as_root): row for row in found}
    return list(unique.values())


def unlisted(root: Path = ROOT) -> list[str]:
    """Return what should be in the table and is not: lists of the policy, and places of O_NOFOLLOW."""
    missing = []
    file = "claudebox/policy.py"
    known = LISTS[file].keys() | ADDITIONS[file].keys() | NOT_PROTECTIONS
    for name, node in _Source(file, root).functions():
        is_list = isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple | ast.Dict)
        if is_list and name not in known:
            missing.append(f"{file}: {name}")
    places = NO_FOLLOW.keys() | NO_FOLLOW_BESIDE_EXCL
    for path in sorted((root / "claudebox").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if "O_NOFOLLOW" not in path.read_text(encoding="utf-8"):
            continue
        for name, node in _Source(file, root).functions():
            has_one = any(getattr(each, "attr", None) == "O_NOFOLLOW" for each in ast.walk(node))
            if has_one and (file, name) not in places:
                missing.append(f"{file}: O_NOFOLLOW in {name}")
    labels = {row.protection for row in _every(root)}
    return missing + [f"no row is called {label}" for label in COVERED_TWICE.keys() - labels]
