"""The commands for profiles as files: list, show, check, edit."""

import json
import os
import stat
import subprocess

import pytest


@pytest.fixture
def place(home):
    """The directory of the profiles."""
    directory = home / ".claudebox/profiles"
    directory.mkdir(parents=True)
    for path in (directory, directory.parent):
        path.chmod(0o700)
    return directory


@pytest.fixture
def write(place):
    def write_profile(name, document):
        text = document if isinstance(document, str) else json.dumps(document)
        (place / f"{name}.json").write_text(text)
        (place / f"{name}.json").chmod(0o600)

    return write_profile


@pytest.fixture
def some(write):
    """Two good profiles and two that are not."""
    write("base", {"description": "for all", "hide": [".env"], "network": "none"})
    write(
        "web",
        {
            "extends": "base",
            "env": ["TOKEN"],
            "set": {"A": "1"},
            "mounts": [{"path": "/usr/share"}],
        },
    )
    write("broken", {"network": "interent"})
    write("bad name", {})


def test_the_list_says_what_there_is_and_what_is_wrong(run, some):
    done = run("claudebox", "profile", "list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith('bad name  cannot be used: "bad name" is not a profile')
    assert lines[1] == "base      for all"
    assert lines[2].startswith("broken    cannot be used: profiles/broken.json: .network")
    assert lines[3] == "web       (extends base)"
    assert run("claudebox", "--list-profiles").stdout == done.stdout
    rows = json.loads(run("claudebox", "--list-profiles", "--json").stdout)
    assert [row["name"] for row in rows] == ["bad name", "base", "broken", "web"]
    assert rows[3] == {"name": "web", "description": None, "extends": "base", "problem": None}


def test_no_profiles_are_an_empty_list(run, home):
    done = run("claudebox", "profile", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"there are no profiles in {home}/.claudebox/profiles" in done.stderr
    assert json.loads(run("claudebox", "profile", "list", "--json").stdout) == []
    assert not (home / ".claudebox").exists()


def test_show_prints_the_file_and_with_json_what_it_says(run, write, place):
    text = '{\n   "description": "a \x1b[2J b",\n "env": ["A"]}\n'.replace("\x1b", "\\u001b")
    write("web", text)
    for words in (["claudebox", "profile", "show", "web"], ["claudebox", "--show-profile", "web"]):
        assert run(*words).stdout == text
    assert run("claudebox", "--show-profile=web").stdout == text
    shown = json.loads(run("claudebox", "profile", "show", "web", "--json").stdout)
    assert shown["profile"] == {"description": "a \x1b[2J b", "env": ["A"]}
    assert shown["path"] == f"{place}/web.json"


def test_show_resolved_says_where_each_value_comes_from(run, some):
    lines = run("claudebox", "profile", "show", "--resolved", "web").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["profile", "web", "→", "base"],
        ["description", "for", "all", "from", "base"],
        ["env", "TOKEN", "from", "web"],
        ["set", "A=1", "from", "web"],
        ["mounts", "ro", "/usr/share", "from", "web"],
        ["hide", ".env", "from", "base"],
        ["network", "none", "from", "base"],
    ]
    shown = json.loads(run("claudebox", "profile", "show", "--resolved", "--json", "web").stdout)
    assert shown["chain"] == ["web", "base"]
    assert shown["profile"]["network"] == "none"
    assert shown["origins"]["network"] == "base"
    assert shown["origins"].keys() == shown["profile"].keys()


@pytest.mark.parametrize("action", ["show", "check"])
def test_a_profile_that_is_not_there_is_one_line(run, some, is_one_line_error, action):
    error = is_one_line_error(run("claudebox", "profile", action, "bsae"), 1)
    assert 'there is no profile "bsae" (did you mean "base"?)' in error
    is_one_line_error(run("claudebox", "profile", action, "../base"), 2)


def test_check_is_for_all_or_one_and_has_an_exit_status(run, some, write):
    done = run("claudebox", "profile", "check")
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "problem",
        "ok",
        "problem",
        "ok",
    ]
    assert run("claudebox", "profile", "check", "web").returncode == 0
    done = run("claudebox", "profile", "check", "broken", "--json")
    assert done.returncode == 1
    (row,) = json.loads(done.stdout)
    assert row["name"] == "broken" and '"interent"' in row["problem"]


@pytest.mark.parametrize(
    ("mount", "says"),
    [
        ({"path": "~/gone"}, "No such file or directory"),
        ({"path": "~/.ssh"}, "would expose a secret: it is ~/.ssh"),
        ({"path": "~"}, "would expose a secret: it is the home directory"),
    ],
)
def test_check_looks_at_the_sources_of_mounts(run, write, home, mount, says):
    (home / ".ssh").mkdir()
    write("web", {"mounts": [mount]})
    done = run("claudebox", "profile", "check", "web")
    assert done.returncode == 1 and says in done.stdout
    write("web", {"mounts": [{"path": "~/gone", "optional": True}]})
    assert run("claudebox", "profile", "check", "web").returncode == 0


# ---------------------------------------------------------------------------- edit


@pytest.fixture
def editor(home):
    """Make a program that edits: a shell script whose $1 is the file."""

    def make(script):
        path = home / "editor"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return {"EDITOR": str(path)}

    return make


def test_a_new_profile_begins_with_a_description_that_teaches(run, place, editor, home):
    env = editor('cat "$1" > ~/seen; sed -i s/env/ENV/ "$1"; sed -i s/ENV/env/ "$1"; echo >> "$1"')
    done = run("claudebox", "profile", "edit", "web", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    start = json.loads((home / "seen").read_text())
    assert "claudebox-profile(5)" in start["description"]
    assert json.loads((place / "web.json").read_text()) == start
    assert stat.S_IMODE((place / "web.json").stat().st_mode) == 0o600
    assert os.listdir(place) == ["web.json"]


def test_the_directories_are_made_private(run, editor, home):
    env = {**editor('echo "{}" > "$1"'), "CLAUDEBOX_HOME": f"{home}/state/deep"}
    assert run("claudebox", "profile", "edit", "web", env=env).returncode == 0
    for path in ("state/deep", "state/deep/profiles"):
        assert stat.S_IMODE((home / path).stat().st_mode) == 0o700


def test_visual_wins_over_editor_and_can_have_arguments(run, place, editor, home):
    env = editor('test "$1" = --wait && echo "{}" > "$2"')
    env = {"VISUAL": f"{env['EDITOR']} --wait", "EDITOR": "/nonexistent"}
    assert run("claudebox", "profile", "edit", "web", env=env).returncode == 0
    assert (place / "web.json").read_text() == "{}\n"


def test_a_broken_draft_never_takes_the_place_of_a_good_profile(
    run, place, write, editor, is_one_line_error
):
    write("web", {"env": ["A"]})
    before = (place / "web.json").read_bytes()
    done = run("claudebox", "profile", "edit", "web", env=editor('echo "{ broken" > "$1"'))
    assert done.returncode == 1
    assert "profiles/web.json: line 1, column 3" in done.stderr
    assert "the profile web was left as it was" in done.stderr
    assert (place / "web.json").read_bytes() == before
    # The next time goes on with what was written.
    again = run("claudebox", "profile", "edit", "web", env=editor('sed -i "s/ broken/}/" "$1"'))
    assert again.returncode == 0 and "going on with the draft" in again.stderr
    assert (place / "web.json").read_text() == "{}\n"
    assert os.listdir(place) == ["web.json"]


def test_what_the_profile_would_inherit_is_checked_as_well(run, place, write, editor):
    write("base", {"extends": "web"})
    env = editor("""echo '{"extends": "base"}' > "$1" """)
    done = run("claudebox", "profile", "edit", "web", env=env)
    assert done.returncode == 1 and "a cycle: web → base → web" in done.stderr
    assert not (place / "web.json").exists()


def test_it_can_be_edited_again_at_once(place, editor, home, bin_directory, scratch_environment):
    env = editor('test -e ~/second && echo "{}" > "$1" || { echo "[" > "$1"; touch ~/second; }')
    terminal, side = os.openpty()
    session = subprocess.Popen(
        ["setsid", "-cw", bin_directory / "claudebox-profile", "edit", "web"],
        env={**scratch_environment, **env},
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    shown = b""
    while b"Edit it again?" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"y\n")
    assert session.wait(20) == 0
    os.close(terminal)
    assert (place / "web.json").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 3", "ended with status 3: nothing was changed"),
        ("true", "nothing was changed, so no profile was made"),
        ('rm "$1"', "the editor left no"),
    ],
)
def test_an_editor_that_makes_nothing_makes_no_profile(
    run, place, editor, is_one_line_error, script, says
):
    assert says in is_one_line_error(
        run("claudebox", "profile", "edit", "web", env=editor(script)), 1
    )
    assert not (place / "web.json").exists()


def test_an_unchanged_profile_is_left_alone(run, place, write, editor):
    write("web", "{ }")
    before = (place / "web.json").stat()
    assert run("claudebox", "profile", "edit", "web", env=editor("true")).returncode == 0
    assert (place / "web.json").stat().st_ino == before.st_ino
    assert os.listdir(place) == ["web.json"]


def test_an_editor_that_makes_a_new_file_that_others_can_write_is_put_right(run, place, editor):
    env = editor('rm "$1"; umask 0; echo "{}" > "$1"')
    assert run("claudebox", "profile", "edit", "web", env=env).returncode == 0
    assert stat.S_IMODE((place / "web.json").stat().st_mode) == 0o600


def test_an_editor_of_the_project_is_not_run(run, project, is_one_line_error):
    (project / "vi").write_text("#!/bin/sh\ntouch ran\n")
    (project / "vi").chmod(0o755)
    env = {"EDITOR": "./vi", "PATH": f"{project}:/usr/bin:/bin"}
    assert "which was not found" in is_one_line_error(
        run("claudebox", "profile", "edit", "web", env=env), 1
    )
    env["EDITOR"] = "vi"
    run("claudebox", "profile", "edit", "web", env={**env, "TERM": "dumb"}, stdin=b":q!\n")
    assert not (project / "ran").exists()


def test_a_name_that_is_none_is_refused_before_an_editor_is_looked_for(run, is_one_line_error):
    is_one_line_error(run("claudebox", "profile", "edit", "../x", env={"EDITOR": "/nowhere"}), 2)


@pytest.mark.parametrize("flag", ["--list-profiles", "--show-profile"])
def test_the_flags_stand_first(run, is_one_line_error, flag):
    words = [flag, "web"] if flag == "--show-profile" else [flag]
    assert f"{flag} is not the first option" in is_one_line_error(
        run("claudebox", "--yes", *words), 2
    )
