"""Hide patterns: what they match, what the walk finds, and the mounts that cover it."""

import os
import random
import time

import pytest

from claudebox import Failure, hiding, policy

# ---------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        (".env", ".env", True),
        (".env", "a/b/.env", True),
        (".env", ".envrc", False),
        (".env", "x.env", False),
        (".env", ".env/x", False),
        (".env.*", ".env.local", True),
        (".env.*", ".env.", True),
        (".env.*", ".env", False),
        ("/.env", ".env", True),
        ("/.env", "a/.env", False),
        ("a/.env", "a/.env", True),
        ("a/.env", "b/a/.env", False),
        ("**/.env", ".env", True),
        ("**/.env", "a/b/.env", True),
        ("a/**/k", "a/k", True),
        ("a/**/k", "a/b/c/k", True),
        ("a/**/k", "b/a/k", False),
        ("a/**/**/k", "a/b/k", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("**", "a/b", True),
        ("*", "a/b", True),
        ("/*", "a/b", False),
        ("*.pem", "x/.pem", True),
        ("*.pem", "x.pem\n", False),
        ("a*b*c", "axxbyyc", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a[!/]c", "a[!/]c", True),
        ("a/[!x]", "a/y", True),
        ("[ab].key", "b.key", True),
        ("[!ab].key", "b.key", False),
        ("[!ab].key", "c.key", True),
        ("[a-c]", "b", True),
        ("[]]", "]", True),
        ("[!]]", "a", True),
        ("[]", "[]", True),
        ("[a", "[a", True),
        ("[\\]", "\\", True),
        ("[^a]", "b", True),
        ("a.b", "aXb", False),
        ("a+(b)|c", "a+(b)|c", True),
        ("*", "a\nb", True),
        ("\udcff*", "\udcffx", True),
        ("É", "é", False),
    ],
)
def test_a_pattern_matches(pattern, path, matches):
    assert hiding.Pattern(pattern).matches(path, is_directory=False) is matches


def test_a_pattern_with_a_slash_at_its_end_matches_directories_only():
    assert hiding.Pattern("secrets/").matches("a/secrets", is_directory=True)
    assert not hiding.Pattern("secrets/").matches("secrets", is_directory=False)
    assert not hiding.Pattern("/secrets/").matches("a/secrets", is_directory=True)


@pytest.mark.parametrize(
    "pattern",
    ["", "/", "//", "a//b", "//a", "a//", "..", "../a", "a/..", "./a", "~", "~/a", ".git"],
)
def test_what_is_not_relative_to_the_project_is_no_pattern(pattern):
    assert hiding.problem(pattern)


@pytest.mark.parametrize("pattern", [".env", "a/b", "/a", "a/", "**", "a/**", ".github", "x.git"])
def test_what_is_relative_to_the_project_is_a_pattern(pattern):
    assert hiding.problem(pattern) is None


def test_a_pattern_of_many_stars_is_not_slow():
    start = time.process_time()
    assert not hiding.Pattern("**/a/" * 20 + "*a" * 20 + "*b").matches("a/" * 60 + "a" * 200, False)
    assert hiding.Pattern("**/a/" * 20 + "*a" * 20 + "*b").matches(
        "a/" * 60 + "a" * 200 + "b", False
    )
    assert time.process_time() - start < 2


def test_patterns_match_what_a_matcher_of_few_lines_says():
    def name_fits(pattern, name):
        if not pattern:
            return not name
        if pattern[0] == "*":
            return name_fits(pattern[1:], name) or (bool(name) and name_fits(pattern, name[1:]))
        return bool(name) and pattern[0] in ("?", name[0]) and name_fits(pattern[1:], name[1:])

    def fits(pattern, path):
        if not pattern:
            return not path
        if pattern[0] == "**":
            if len(pattern) == 1:
                return bool(path)
            return any(fits(pattern[1:], path[n:]) for n in range(len(path) + 1))
        return bool(path) and name_fits(pattern[0], path[0]) and fits(pattern[1:], path[1:])

    chance = random.Random(5)
    tried = {True: 0, False: 0}
    for _ in range(20_000):
        words = [
            "**"
            if chance.random() < 0.3
            else "".join(chance.choices("ab*?", k=chance.randint(1, 4)))
            for _ in range(chance.randint(2, 5))
        ]
        words = [word if word == "**" or "**" not in word else "*" for word in words]
        path = [
            "".join(chance.choices("ab", k=chance.randint(1, 4)))
            for _ in range(chance.randint(1, 5))
        ]
        expected = fits(words, path)
        tried[expected] += 1
        found = hiding.Pattern("/".join(words)).matches("/".join(path), False)
        assert found == expected, (words, path)
    assert min(tried.values()) > 1000


# ---------------------------------------------------------------------------- the walk


def make(project, *paths):
    for path in paths:
        place = project / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            place.mkdir(exist_ok=True)
        else:
            place.write_text("canary")


def found(project, *patterns):
    result = hiding.find(str(project), list(patterns))
    skip = len(str(project)) + 1
    return [path[skip:] for path in result.files], [path[skip:] for path in result.directories]


def test_files_and_directories_that_match_are_found_at_any_depth(project):
    make(project, ".env", "a/.env", "a/b/.env.local", "a/b/x", "keys/one", "keys/deep/.env")
    assert found(project, ".env", ".env.*", "keys") == (
        [".env", "a/.env", "a/b/.env.local"],
        ["keys"],
    )


def test_what_git_needs_is_passed_over(project):
    make(project, ".git/config", ".git/.env", "sub/.git/config", "sub/config")
    assert found(project, "config", ".env") == (["sub/config"], [])


def test_a_directory_that_looks_like_a_git_directory_is_searched(project):
    make(project, "x/HEAD", "x/objects/", "x/refs/", "x/.env")
    assert found(project, ".env") == (["x/.env"], [])


def test_every_other_name_of_a_hidden_file_is_found(project, tmp_path):
    make(project, ".env", "keys/one", "a/b/file")
    os.link(project / ".env", project / "a/b/innocent")
    os.link(project / "keys/one", project / "copy")
    os.link(project / "a/b/file", project / "unrelated")
    assert found(project, ".env", "keys/") == ([".env", "a/b/innocent", "copy"], ["keys"])


def test_what_a_hidden_link_leads_to_in_the_project_is_found(project, tmp_path):
    make(project, "config/prod", "data/x", "elsewhere")
    (tmp_path / "outside").write_text("")
    (project / ".env").symlink_to("config/prod")
    (project / "sub").mkdir()
    (project / "sub/.env").symlink_to(tmp_path / "outside")
    (project / "keys").symlink_to("data")
    (project / "loop").symlink_to("loop")
    (project / "gone").symlink_to("nothing")
    os.link(project / "data/x", project / "second")
    assert found(project, ".env", "keys", "loop", "gone") == (["config/prod", "second"], ["data"])


def test_a_hidden_link_to_the_project_itself_is_refused(project):
    (project / "me").symlink_to(".")
    with pytest.raises(Failure, match="leads to the project itself"):
        found(project, "me")


def test_links_are_not_followed_by_the_walk(project, tmp_path):
    (tmp_path / "outside").mkdir()
    make(tmp_path / "outside", ".env")
    (project / "link").symlink_to(tmp_path / "outside")
    assert found(project, ".env") == ([], [])


@pytest.mark.parametrize("name", ["new\nline", "b\udcffyte", "quo'te\"", "[x]", "-dash", "sp ace"])
def test_names_of_any_bytes_are_found(project, name):
    make(project, f"{name}/.env")
    assert found(project, ".env") == ([f"{name}/.env"], [])


def test_a_project_with_too_many_entries_is_refused(project, monkeypatch):
    make(project, *(f"{number}" for number in range(6)))
    monkeypatch.setattr(policy, "HIDE_ENTRY_LIMIT", 6)
    assert found(project, ".env") == ([], [])
    make(project, ".git", "more")
    with pytest.raises(Failure, match="more than 6 entries, so not all of it can be searched"):
        found(project, ".env")


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400, 0o300, 0o600])
def test_a_directory_that_the_user_could_make_readable_is_refused(project, monkeypatch, mode):
    make(project, "closed/.env")
    (project / "closed").chmod(mode)
    if os.geteuid() == 0:
        # Root reads everything, so it is told what others are.
        real = os.scandir

        def scandir(path):
            if str(path).endswith("closed") and not mode & 0o400:
                raise PermissionError(13, "Permission denied", path)
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        monkeypatch.setattr(os, "access", lambda path, _: os.lstat(path).st_mode & 0o100 != 0)
    try:
        with pytest.raises(Failure, match="closed cannot be searched for what is to be hidden"):
            found(project, ".env")
        assert found(project, ".env", "closed") == ([], ["closed"])
    finally:
        (project / "closed").chmod(0o700)


def test_a_directory_of_another_user_that_cannot_be_entered_is_passed_over(project, monkeypatch):
    make(project, "closed/.env", "a/.env")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).endswith("closed"))
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert found(project, ".env") == (["a/.env"], [])
    # By name, what is in it could be reached.
    monkeypatch.setattr(os, "access", lambda _path, _mode: True)
    with pytest.raises(Failure, match="cannot be searched"):
        found(project, ".env")


# ---------------------------------------------------------------------------- the mounts


def bind(path, reason):
    return {"kind": "bind", "source": str(path), "target": str(path), "reason": reason}


@pytest.fixture
def plan(sample, project):
    """The sample with nothing in the project but the project."""
    sample["mounts"] = [mount for mount in sample["mounts"] if mount["reason"] != "protected"]
    sample["project"]["git"] = None
    sample["notes"] = []
    return sample


def cover(plan, *patterns):
    return hiding.cover(plan, [{"pattern": text, "reason": "x"} for text in patterns])


def added(before, after):
    return [mount for mount in after["mounts"] if mount not in before["mounts"]]


def hidden(path, kind="file"):
    mount = {"kind": kind, "target": str(path), "reason": "hidden"}
    return {"kind": kind, "content": "", **mount} if kind == "file" else mount


def test_every_directory_on_the_way_becomes_a_mount_point_once(plan, project):
    make(project, ".env", "a/b/.env", "a/c/.env", "keys/x")
    covered = cover(plan, ".env", "keys/")
    assert added(plan, covered) == [
        hidden(project / "keys", "empty-dir"),
        hidden(project / ".env"),
        bind(project / "a", "hidden"),
        bind(project / "a/b", "hidden"),
        hidden(project / "a/b/.env"),
        bind(project / "a/c", "hidden"),
        hidden(project / "a/c/.env"),
    ]
    assert covered["hide"] == [{"pattern": p, "reason": "x"} for p in (".env", "keys/")]


def test_covering_twice_is_covering_once(plan, project):
    make(project, ".env", "a/.env", "b/key")
    once = cover(plan, ".env")
    assert cover(once, ".env") == once
    both = cover(once, "b")
    assert both["mounts"] == [*once["mounts"], hidden(project / "b", "empty-dir")]
    assert cover(both, ".env")["mounts"] == both["mounts"]


def test_a_directory_that_is_hidden_later_takes_the_place_of_what_was_hidden_in_it(plan, project):
    make(project, "a/b/.env")
    assert added(plan, cover(cover(plan, ".env"), "a")) == [hidden(project / "a", "empty-dir")]


def test_what_hides_stands_before_the_users_own_mounts(plan, project):
    make(project, "docs/own", ".env", "docs/.env", "docs/keys/x")
    plan["mounts"].append(
        {"kind": "bind", "source": "/srv", "target": f"{project}/docs", "reason": "profile:web"}
    )
    covered = cover(plan, ".env", "keys")
    # What lies below another mount is covered by that, and nothing is made in it.
    assert added(plan, covered) == [hidden(project / ".env")]
    assert covered["mounts"][-1]["reason"] == "profile:web"


def test_a_directory_with_one_of_the_users_own_mounts_in_it_is_refused(plan, project):
    make(project, "docs/own")
    plan["mounts"].append(
        {"kind": "bind", "source": "/srv", "target": f"{project}/docs/own", "reason": "--mount"}
    )
    with pytest.raises(
        Failure, match="docs is to be hidden, and .*docs/own in it is to be mounted"
    ):
        cover(plan, "docs")


@pytest.mark.parametrize("pattern", ["a", "a/b", "b", "**"])
def test_the_directory_in_which_the_session_starts_is_not_hidden(plan, project, pattern):
    make(project, "a/b/")
    plan["project"]["cwd"] = f"{project}/a/b"
    with pytest.raises(Failure, match="the session starts in it"):
        cover(plan, pattern)


def test_what_is_read_only_already_is_replaced(plan, project):
    make(project, ".mcp.json", "hooks/pre-commit", "hooks/deep/x", ".claude/settings.json")
    read_only = {"kind": "ro-bind", "reason": "protected"}
    plan["mounts"] += [
        bind(project / ".claude", "protected"),
        *(
            {**read_only, "source": f"{project}/{name}", "target": f"{project}/{name}"}
            for name in (".claude/settings.json", ".mcp.json", "hooks")
        ),
    ]
    covered = cover(plan, ".mcp.json")
    assert added(plan, covered) == [
        {**hidden(project / ".mcp.json"), "content": '{"mcpServers": {}}\n'}
    ]
    assert len(covered["mounts"]) == len(plan["mounts"])
    # Nothing in it becomes a writable mount point.
    assert added(plan, cover(plan, "deep/")) == [hidden(project / "hooks/deep", "empty-dir")]
    assert added(plan, cover(plan, "hooks")) == [hidden(project / "hooks", "empty-dir")]
    covered = cover(plan, ".claude")
    assert added(plan, covered) == [hidden(project / ".claude", "empty-dir")]
    assert not any("/.claude/settings" in mount["target"] for mount in covered["mounts"])


def test_a_stand_in_is_left_as_it_is(plan, project):
    make(project, "refs")
    plan["mounts"].append(
        {"kind": "file", "content": "", "target": f"{project}/refs", "reason": "protected"}
    )
    assert cover(plan, "refs")["mounts"] == plan["mounts"]


def test_too_many_mounts_are_refused(plan, project, monkeypatch):
    make(project, *(f"d/{number}.key" for number in range(5)))
    monkeypatch.setattr(policy, "HIDDEN_LIMIT", 5)
    with pytest.raises(Failure, match="more than 5: hide the directory that they are in"):
        cover(plan, "*.key")
    assert len(added(plan, cover(plan, "d"))) == 1


def test_another_filesystem_is_noted(plan, project, monkeypatch):
    make(project, "disk/.env", "a/.env")
    real = hiding._status

    def on_another(entry):
        status = real(entry)
        if entry.name == "disk":
            status = os.stat_result([*status[:2], status.st_dev + 1, *status[3:]])
        return status

    monkeypatch.setattr(hiding, "_status", on_another)
    covered = cover(plan, ".env")
    assert covered["notes"] == [f"nothing is hidden in {project}/disk, which is another filesystem"]
    assert hidden(project / "disk/.env") not in covered["mounts"]
    assert hidden(project / "disk", "empty-dir") in cover(plan, "disk")["mounts"]
