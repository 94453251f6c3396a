"""Profiles from inside the sandbox: variables, mounts, what is hidden and stays so."""

import json
import os
import shutil
import subprocess
import time

import pytest

CANARY = "canary-81c2"


@pytest.fixture
def profile(world):
    """Write a profile of the world's user."""
    directory = world.state / "profiles"
    directory.mkdir(parents=True)
    for path in (directory, directory.parent):
        path.chmod(0o700)

    def write(name, document):
        (directory / f"{name}.json").write_text(json.dumps(document))
        (directory / f"{name}.json").chmod(0o600)

    return write


def make(project, *names):
    for name in names:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(os.fsencode(f"{CANARY} {name}\n"))


def test_a_profile_brings_variables_mounts_and_the_tier(world, profile):
    (world.home / "docs").mkdir()
    (world.home / "docs/page").write_text("a page\n")
    (world.home / ".cache/npm").mkdir(parents=True)
    (world.home / "file").write_text("a file\n")
    profile("base", {"network": "none", "env": ["NPM_CONFIG_*"]})
    profile(
        "web",
        {
            "extends": "base",
            "env": ["STAGING_TOKEN"],
            "set": {"NODE_ENV": "development", "ODD": "a 'b' \"c\" $d\n"},
            "mounts": [
                {"path": "~/docs"},
                {"path": "~/.cache/npm", "target": "~/.npm", "mode": "rw"},
                {"path": "$HOME/file", "target": "/srv/deep/file"},
            ],
        },
    )
    script = (
        "env -0 | grep -z -e ^STAGING -e ^NODE -e ^ODD -e ^NPM -e ^OTHER | tr '\\0' ';';"
        " cat ~/docs/page /srv/deep/file; echo x > ~/docs/new; echo x > ~/docs/page;"
        " echo x > /srv/deep/file; echo kept > ~/.npm/made; ls /sys/class/net /proc/net/dev;"
        " grep -c : /proc/net/dev"
    )
    environment = {"STAGING_TOKEN": CANARY, "NPM_CONFIG_A": "1", "OTHER_TOKEN": "no"}
    result = world.inside(script, "--profile", "web", env=environment)
    assert f"STAGING_TOKEN={CANARY};" in result.stdout
    assert "NODE_ENV=development;" in result.stdout
    assert "ODD=a 'b' \"c\" $d\n;" in result.stdout
    assert "NPM_CONFIG_A=1;" in result.stdout
    assert "OTHER" not in result.stdout
    assert "a page\na file\n" in result.stdout
    assert result.stderr.count("Read-only file system") == 3
    assert result.stdout.endswith("\n1\n")
    assert (world.home / ".cache/npm/made").read_text() == "kept\n"
    assert os.listdir(world.home / "docs") == ["page"]
    assert CANARY not in result.stderr


def test_the_environment_chooses_a_profile_too(world, profile):
    profile("web", {"set": {"CHOSEN": "yes"}})
    assert world.inside("echo $CHOSEN", env={"CLAUDEBOX_PROFILE": "web"}).stdout == "yes\n"


def test_a_profile_of_the_project_is_never_one(world):
    (world.project / "profiles").mkdir()
    (world.project / "profiles/web.json").write_text('{"env": ["TOKEN"]}')
    (world.project / ".claudebox/profiles").mkdir(parents=True)
    (world.project / ".claudebox/profiles/web.json").write_text('{"env": ["TOKEN"]}')
    result = world.inside("true", "--profile", "web")
    assert result.returncode == 1 and 'there is no profile "web"' in result.stderr


def test_the_pipe_launches_the_same(world, profile):
    make(world.project, ".env")
    profile("web", {"hide": [".env"], "set": {"A": "1"}})
    line = (
        "claudebox-instance resolve --shell -- -c 'cat .env; echo $A' | claudebox-profile apply web"
        " | claudebox-net apply none | claudebox-audit --yes | claudebox-run -"
    )
    result = world.run("bash", "-o", "pipefail", "-c", line)
    assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr


def test_a_mount_in_a_directory_of_the_project_that_exists_makes_nothing_on_the_host(world):
    (world.home / "docs").mkdir()
    (world.home / "docs/page").write_text("a page\n")
    (world.project / "vendor/docs").mkdir(parents=True)
    option = f"~/docs:{world.project}/vendor/docs"
    assert world.inside("cat vendor/docs/page", "--mount", option).stdout == "a page\n"
    assert os.listdir(world.project / "vendor/docs") == []
    option = f"~/docs:{world.project}/vendor/new"
    result = world.inside("true", "--mount", option)
    assert result.returncode == 1 and "nothing is made on the host" in result.stderr
    assert os.listdir(world.project / "vendor") == ["docs"]


# ---------------------------------------------------------------------------- hidden


@pytest.fixture
def secrets(world):
    """A project with secrets in several places; the names of those."""
    names = [".env", "a/b/.env.local", "keys/one", "keys/deep/two", "a/innocent", "config/prod"]
    make(world.project, *names[:4], names[5], "a/b/visible")
    os.link(world.project / "keys/deep/two", world.project / names[4])
    (world.project / "config/.env").symlink_to("prod")
    return names


HIDE = ["--hide", ".env", "--hide", ".env.*", "--hide", "keys/"]


def test_what_is_hidden_cannot_be_read_and_nothing_else_changes(world, secrets):
    result = world.inside("cat a/b/visible; grep -rs canary . ; ls keys", *HIDE)
    assert result.stdout.splitlines()[0] == f"{CANARY} a/b/visible"
    assert result.stdout.splitlines()[1:] == [f"./a/b/visible:{CANARY} a/b/visible"]
    for name in secrets:
        assert CANARY in (world.project / name).read_text()
    assert sorted(os.listdir(world.project)) == [".env", "a", "config", "keys"]


# Each tries to read the content of one of the hidden files in another way.
ATTACKS = {
    "remove": "rm -rf .env keys a/b/.env.local; cat .env a/b/.env.local keys/*",
    "rename": "mv .env x; mv keys y; cat x y/one",
    "rename a parent": "mv a z; mv a/b a/z; cat z/b/.env.local a/z/.env.local",
    "rename a parent of a directory": "mv config c2; cat c2/prod",
    "exchange": "mkdir -p n/b; mv -T n a; mv --exchange n a; cat n/b/.env.local",
    "hard link": "ln .env x; ln a/b/.env.local x2; ln keys/one x3; cat x x2 x3",
    "through /proc": "cat /proc/self/cwd/.env /proc/1/cwd/.env /proc/1/root$PWD/.env",
    "copy of the tree": "cp -a . /tmp/copy; cat /tmp/copy/.env /tmp/copy/a/b/.env.local",
    "unmount": "umount .env; umount -l keys; umount a/b; cat .env keys/one a/b/.env.local",
    "mount": "mkdir /tmp/m; mount --bind . /tmp/m; mount --rbind -o rw . /tmp/m; cat /tmp/m/.env",
    "namespace": "unshare -Urm sh -c 'umount -l .env; umount -l keys; cat .env keys/one'",
    "write": "echo x > .env; truncate -s 100 .env; chmod 777 .env; echo x > keys/new; cat .env",
    "descriptor": "exec 5<a; cat /proc/self/fd/5/b/.env.local /proc/self/fd/5/innocent",
    "overlay": "mkdir u w m; mount -t overlay o -o lowerdir=.,upperdir=u,workdir=w m; cat m/.env",
    "link": "ln -s .env x; ln -s ../keys a/k; cat x a/k/one config/.env",
    "handle": "python3 -c 'import os; os.open(\".env\", os.O_RDWR)'; cat .env",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_hidden_stays_hidden_against(world, secrets, attack):
    result = world.inside(f"{ATTACKS[attack]}; grep -rs canary . /tmp", *HIDE)
    shown = [line for line in result.stdout.splitlines() if "visible" not in line]
    assert not any(CANARY in line for line in shown), result.stdout
    for name in secrets:
        assert CANARY in (world.project / name).read_text()


def test_the_attacks_find_the_canary_where_nothing_is_hidden(world, secrets):
    for attack in ("rename a parent", "hard link", "copy of the tree", "descriptor"):
        assert CANARY in world.inside(ATTACKS[attack]).stdout, attack
        for name in ("x", "x2", "x3"):
            (world.project / name).unlink(missing_ok=True)
        if (world.project / "z").exists():
            (world.project / "z").rename(world.project / "a")


def test_a_hidden_directory_may_hold_repositories_and_settings(repository):
    make(repository.project, "vendor/lib/.env", ".claude/settings.json", ".mcp.json")
    (repository.project / ".claude/settings.json").write_text('{"canary": 1}')
    (repository.project / ".mcp.json").write_text('{"mcpServers": {"canary": {}}}')
    repository.git("init", "-q", cwd=repository.project / "vendor/lib")
    result = repository.inside(
        "grep -rs canary . --exclude-dir=.git; ls -A vendor .claude; cat .mcp.json;"
        " echo x > .mcp.json; mkdir .claude/x; mv .claude c; mkdir -p vendor/lib/.git/hooks",
        *("--hide", "vendor", "--hide", ".claude", "--hide", ".mcp.json"),
    )
    assert result.stdout == 'vendor:\n\n.claude:\n{"mcpServers": {}}\n'.replace(
        "vendor:\n\n.claude:", ".claude:\n\nvendor:"
    )
    assert result.stderr.count("Read-only file system") >= 3
    assert (repository.project / "vendor/lib/.git/HEAD").exists()


def test_git_works_beside_hidden_files(repository):
    make(repository.project, ".env", "a/.env")
    result = repository.inside(
        "echo two > file && git commit -qam second && git switch -qc side && git log --oneline | wc -l",
        *HIDE,
    )
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr


def test_a_hidden_file_that_is_a_socket_or_a_pipe_is_covered(world):
    os.mkfifo(world.project / "pipe")
    result = world.inside("cat pipe; stat -c %F pipe", "--hide", "pipe")
    assert result.stdout == "regular empty file\n"


def test_names_of_any_bytes_are_hidden(world):
    names = ["new\nline/.env", "b\udcffyte/.env", "quo'te\"$x/.env", "sp ace/.env"]
    make(world.project, *names)
    result = world.inside("grep -rs canary .; echo $?", "--hide", ".env")
    assert result.stdout == "1\n", result.stderr


def test_a_project_that_cannot_be_searched_is_not_launched(world):
    make(world.project, "closed/.env")
    (world.project / "closed").chmod(0)
    try:
        result = world.inside("chmod 700 closed; cat closed/.env", "--hide", ".env")
        if os.getuid() == 0:
            assert (result.returncode, result.stdout) == (0, "")
        else:
            assert result.returncode == 1
            assert "closed cannot be searched for what is to be hidden" in result.stderr
    finally:
        (world.project / "closed").chmod(0o700)


def test_the_audit_names_what_is_hidden_and_what_git_still_holds(repository):
    make(repository.project, ".env")
    repository.git("add", ".env")
    result = repository.inside("cat .env; git show :.env", "--hide", ".env")
    assert "hidden in the project\n  .env  --hide\n    --  .env\n" in result.stderr
    assert "hidden, but git tracks it, so .git still holds it: .env" in result.stderr


def test_two_sessions_hide_the_same_and_different_things(world):
    make(world.project, ".env", "key.pem")
    script = "echo up; read x; cat .env key.pem"
    session = world.start(
        "claudebox", "-y", "--hide", ".env", "--shell", "--", "-c", script, stdin=subprocess.PIPE
    )
    try:
        assert session.stdout.readline() == "up\n"
        assert world.inside("cat .env key.pem", "--hide", "*").stdout == ""
    finally:
        output, _ = session.communicate("\n")
    assert output == f"{CANARY} key.pem\n"


def test_the_stand_ins_of_a_hidden_directory_outlive_another_session(world):
    """Without them the mount would be gone, and `.claude` could be made inside."""
    first = world.start("claudebox", "-y", "--shell", "--", "-c", "echo up; read x", stdin=-1)
    assert first.stdout.readline() == "up\n"
    second = world.start(
        *("claudebox", "-y", "--hide", ".claude", "--shell", "--", "-c"),
        "echo up; read x; mkdir -p .claude && echo '{}' > .claude/settings.json; ls -A .claude",
        stdin=subprocess.PIPE,
    )
    try:
        assert second.stdout.readline() == "up\n"
        first.communicate("\n")
    finally:
        output, _ = second.communicate("\n")
    assert output == ""
    assert not (world.project / ".claude/settings.json").exists()


# ---------------------------------------------------------------------------- edited plans


def edited(world, edit, *options, script="cat .env a/b/.env.local keys/one a/innocent"):
    made = world.run("claudebox", "plan", *options, "--shell", "--", "-c", script)
    plan = json.loads(made.stdout)
    edit(plan)
    return subprocess.run(
        ["claudebox-run", "-"],
        input=json.dumps(plan),
        cwd=world.project,
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def drop(*ends):
    def edit(plan):
        kept = [m for m in plan["mounts"] if not m["target"].endswith(ends)]
        assert len(kept) < len(plan["mounts"])
        plan["mounts"] = kept

    return edit


def append(**mount):
    return lambda plan: plan["mounts"].append(mount)


def test_an_edited_plan_that_hides_is_launched(world, secrets):
    result = edited(world, lambda plan: plan["notes"].append("edited"), *HIDE)
    assert (result.returncode, result.stdout) == (1, ""), result.stderr
    assert "keys/one: No such file" in result.stderr


HIDDEN_EDITS = {
    "one mask less": lambda w: drop("/.env.local"),
    "one directory less": lambda w: drop("/keys"),
    "a parent that can be renamed": lambda w: drop("/a/b"),
    "another name that is visible": lambda w: drop("/innocent"),
    "a directory over its masks": lambda w: (
        lambda plan: plan["mounts"].append(
            plan["mounts"].pop(
                next(i for i, m in enumerate(plan["mounts"]) if m["target"].endswith("/a/b"))
            )
        )
    ),
    "the project a second time": lambda w: append(
        kind="ro-bind", source=str(w.project), target="/again", reason="x"
    ),
    "what holds the project": lambda w: append(
        kind="ro-bind", source=f"{w.project}/a", target="/again", reason="x"
    ),
    "other content in what is hidden": lambda w: (
        lambda plan: next(m for m in plan["mounts"] if m["target"].endswith("/.env")).update(
            content="x"
        )
    ),
    "a hidden file that does not exist": lambda w: append(
        kind="file", content="", target=f"{w.project}/new", reason="hidden"
    ),
    "a hidden directory that does not exist": lambda w: append(
        kind="empty-dir", target=f"{w.project}/new", reason="hidden"
    ),
    "hiding out of the project": lambda w: append(
        kind="empty-dir", target=f"{w.home}/x", reason="hidden"
    ),
    "hiding the project": lambda w: append(
        kind="empty-dir", target=str(w.home.parent), reason="hidden"
    ),
    "a pattern that is none": lambda w: (
        lambda plan: plan["hide"].append({"pattern": "../x", "reason": "x"})
    ),
    "a pattern that nothing covers": lambda w: (
        lambda plan: plan["hide"].append({"pattern": "visible", "reason": "x"})
    ),
    "a package from elsewhere": lambda w: (
        lambda plan: plan["packages"].append({"reference": "x", "paths": ["/tmp"], "reason": "x"})
    ),
    "a writable repository": lambda w: append(
        kind="bind", source=f"{w.home}/other", target="/other", reason="profile:web"
    ),
    "a writable directory of hooks": lambda w: append(
        kind="bind", source=f"{w.home}/other/.git/hooks", target="/hooks", reason="profile:web"
    ),
    "a mount in the project that is made there": lambda w: append(
        kind="ro-bind", source=f"{w.home}/docs", target=f"{w.project}/new", reason="profile:web"
    ),
}


@pytest.mark.parametrize("what", HIDDEN_EDITS)
def test_an_edited_plan_is_refused_that_has(world, secrets, what):
    (world.home / "docs").mkdir()
    (world.home / "other").mkdir()
    world.git("init", "-q", cwd=world.home / "other")
    before = sorted(os.walk(world.project))
    result = edited(world, HIDDEN_EDITS[what](world), *HIDE)
    assert (result.returncode, result.stdout) == (1, ""), result.stderr
    assert "the plan is refused" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(os.walk(world.project)) == before


def test_what_hides_a_protected_place_is_not_undone_later(repository):
    make(repository.project, "sub/deep/lib/secret")
    repository.git("init", "-q", cwd=repository.project / "sub/deep/lib")
    sub = f"{repository.project}/sub"

    def uncover(plan):
        plan["hide"] = []
        anchor = next(m for m in plan["mounts"] if m["target"] == sub)
        plan["mounts"].remove(anchor)
        plan["mounts"].append(anchor)

    result = edited(repository, uncover, "--hide", "deep", script="ls sub/deep")
    assert result.returncode == 1 and "would hide an earlier one" in result.stderr, result.stdout


def test_a_session_can_start_beside_what_is_hidden_further_up(repository):
    make(repository.project, "a/.env", "a/b/c/x", "a/b/.env")
    line = (
        "claudebox-instance resolve --repo --shell -- -c 'cat x ../.env ../../.env; mv ../../b ../../z'"
        " | claudebox-profile apply --hide .env | claudebox-run -"
    )
    result = repository.run("bash", "-c", line, cwd=repository.project / "a/b/c")
    assert result.stdout == f"{CANARY} a/b/c/x\n", result.stderr
    assert "Device or resource busy" in result.stderr


def test_the_protection_of_hooks_cannot_be_undone_by_a_mount_in_them(repository):
    (repository.project / ".git/hooks/sub").mkdir()
    for target in (".git/hooks/sub", ".git/hooks/pre-commit.sample"):
        path = f"{repository.project}/{target}"
        mount = {"kind": "bind", "source": path, "target": path, "reason": "hidden"}
        result = edited(repository, append(**mount))
        assert result.returncode == 1 and "the plan is refused" in result.stderr


def test_a_file_that_came_to_match_between_plan_and_launch_is_noticed(world, secrets):
    def later(_plan):
        make(world.project, "b/.env")

    result = edited(world, later, *HIDE)
    assert result.returncode == 1
    assert "b/.env is to be hidden and is not: the project may have changed" in result.stderr


# ---------------------------------------------------------------------------- limits of hiding


def wait_for(session, word):
    line = session.stdout.readline()
    assert line.strip() == word, line


def test_known_limit_what_is_made_after_the_launch_is_not_hidden(world):
    result = world.inside(f"echo {CANARY} > .env; cat .env", "--hide", ".env")
    assert result.stdout == f"{CANARY}\n"


def test_known_limit_a_hidden_file_that_is_replaced_outside_is_visible(world):
    make(world.project, ".env")
    session = world.start(
        *("claudebox", "-y", "--hide", ".env", "--shell", "--", "-c"),
        "cat .env; echo up; read x; cat .env",
        stdin=subprocess.PIPE,
    )
    try:
        wait_for(session, "up")
        (world.project / "saved").write_text(f"{CANARY} saved\n")
        (world.project / "saved").rename(world.project / ".env")
    finally:
        output, _ = session.communicate("\n")
    assert output == f"{CANARY} saved\n"


def test_known_limit_what_a_link_led_to_is_not_hidden_when_the_link_was_removed(world):
    make(world.project, "config/real")
    (world.project / ".env").symlink_to("config/real")
    first = world.inside("cat config/real; rm .env", "--hide", ".env")
    assert CANARY not in first.stdout
    assert "config/real is hidden because a link leads there" in first.stderr
    second = world.inside("cat config/real", "--hide", ".env")
    assert CANARY in second.stdout and "matches nothing" in second.stderr
    # The cure.
    (world.project / ".env").symlink_to("config/real")
    options = ("--hide", ".env", "--hide", "config/real")
    both = world.inside("cat config/real; rm .env", *options)
    assert CANARY not in both.stdout and "a link leads there" not in both.stderr
    assert CANARY not in world.inside("cat config/real", *options).stdout


def test_known_limit_git_still_holds_a_hidden_file_that_was_committed(repository):
    make(repository.project, ".env")
    repository.git("add", ".env")
    repository.git("commit", "-qm", "secret")
    result = repository.inside(
        "cat .env; git show HEAD:.env; git worktree add -q wt HEAD; cat wt/.env", "--hide", ".env"
    )
    assert result.stdout == f"{CANARY} .env\n" * 2
    assert "hidden, but git tracks it" in result.stderr


def test_hiding_many_files_is_bounded_and_works_up_to_the_bound(world):
    for number in range(200):
        make(world.project, f"d/{number}.key")
    start = time.monotonic()
    result = world.inside("cat d/*.key | wc -c", "--hide", "*.key")
    assert result.stdout == "0\n", result.stderr
    assert time.monotonic() - start < 30
    for number in range(200, 401):
        make(world.project, f"d/{number}.key")
    result = world.inside("true", "--hide", "*.key")
    assert result.returncode == 1 and "hide the directory that they are in" in result.stderr
    shutil.rmtree(world.project / "d")
