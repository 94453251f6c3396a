"""Profiles: their names and files, their schema and its words, and what they inherit."""

import copy
import json
import os
import random

import pytest

from claudebox import Failure, profiles

# ---------------------------------------------------------------------------- names


@pytest.fixture
def directory(home):
    """The directory of the profiles, made private; `directory.write` puts a profile in."""
    path = home / ".claudebox" / "profiles"
    path.mkdir(parents=True)
    path.chmod(0o700)
    path.parent.chmod(0o700)
    found = profiles.Directory(str(home))

    def write(name, document):
        text = document if isinstance(document, str) else json.dumps(document)
        (path / f"{name}.json").write_text(text)
        (path / f"{name}.json").chmod(0o600)

    found.write = write
    found.place = path
    return found


@pytest.mark.parametrize("name", ["web", "Web-2", "a.b_c", "0", "a..b", "x" * 200])
def test_a_name_of_letters_digits_dots_and_dashes_is_one(name):
    assert profiles.name_problem(name) is None


NO_NAMES = [
    "",
    ".",
    "..",
    ".web",
    "-web",
    "_web",
    "a/b",
    "../web",
    "/etc/passwd",
    "a b",
    "ü",
    "a\0b",
]
NO_NAMES += ["web\n", "x" * 201, "a\\b", "~", "٣"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_any_other_name_is_refused_before_the_file_system_is_touched(monkeypatch, name):
    def touched(*_arguments, **_options):
        raise AssertionError("the file system was touched")

    for function in ("open", "stat", "lstat", "listdir", "scandir", "readlink"):
        monkeypatch.setattr(os, function, touched)
    with pytest.raises(Failure, match="is not a profile") as caught:
        profiles.refuse_name(name)
    assert caught.value.status == 2


# ---------------------------------------------------------------------------- files


def test_there_are_no_profiles_where_there_is_no_directory(home):
    found = profiles.Directory(str(home))
    assert found.names() == []
    assert found.profile("web") is None


def test_the_profiles_are_the_files_that_end_in_json(directory):
    for name in ("web.json", "base.json", "web.json~", ".web.draft.json", "notes.txt"):
        (directory.place / name).write_text("{}")
    assert directory.names() == ["base", "web"]


def test_claudebox_home_is_where_the_profiles_are(tmp_path, home):
    (tmp_path / "state/profiles").mkdir(parents=True)
    found = profiles.Directory(str(home), {"CLAUDEBOX_HOME": f"{tmp_path}/state"})
    assert found.path == f"{tmp_path}/state/profiles"


def refusal(directory, name="web"):
    with pytest.raises(Failure) as caught:
        profiles.resolve(directory, name)
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_profile_that_others_can_write_is_refused(directory, mode):
    directory.write("web", {})
    (directory.place / "web.json").chmod(mode)
    assert "web.json can be written by others: chmod go-w" in refusal(directory)


@pytest.mark.parametrize("place", ["profiles", "state"])
def test_a_directory_that_others_can_write_is_refused(directory, place):
    directory.write("web", {})
    path = directory.place if place == "profiles" else directory.place.parent
    path.chmod(0o770)
    assert f"{path} can be written by others" in refusal(directory)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_belongs_to_another_user_is_refused(directory, monkeypatch, what):
    directory.write("web", {})
    uid = os.getuid()
    real = os.fstat

    def of_another(descriptor):
        status = list(real(descriptor))
        is_directory = bool(status[0] & 0o040000)
        status[4] = uid + 1 if is_directory == (what == "directory") else uid
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", of_another)
    assert "belongs to another user" in refusal(directory)


def test_a_symbolic_link_to_a_profile_is_not_followed(directory, home):
    (home / "elsewhere.json").write_text("{}")
    (directory.place / "web.json").symlink_to(home / "elsewhere.json")
    assert "profiles/web.json: a symbolic link is not followed" in refusal(directory)


def test_a_link_in_place_of_the_directory_is_not_followed(directory, home):
    directory.write("web", {})
    directory.place.rename(home / "moved")
    directory.place.symlink_to(home / "moved")
    assert "claudebox does not follow links here" in refusal(directory)


def test_a_pipe_or_a_directory_is_no_profile(directory, alarm):
    alarm(10)
    os.mkfifo(directory.place / "web.json", 0o600)
    (directory.place / "dir.json").mkdir(mode=0o700)
    assert "not a plain file" in refusal(directory)
    assert "not a plain file" in refusal(directory, "dir")


def test_a_profile_that_is_too_large_or_no_text_is_refused(directory):
    directory.write("web", " " * (profiles.SIZE_LIMIT + 1))
    assert "larger than 65536 bytes" in refusal(directory)
    (directory.place / "web.json").write_bytes(b'{"description": "\xff"}')
    assert "profiles/web.json: byte 17: not UTF-8" in refusal(directory)


def test_a_missing_profile_is_told_with_the_nearest_and_where_it_was_looked_for(directory):
    directory.write("web", {})
    said = refusal(directory, "wbe")
    assert 'there is no profile "wbe" (did you mean "web"?)' in said
    assert f"{directory.place}/wbe.json does not exist" in said


# ---------------------------------------------------------------------------- the schema

EXAMPLE = {
    "description": "front-end work with the staging API",
    "extends": "base",
    "env": ["STAGING_TOKEN", "NPM_CONFIG_*"],
    "set": {"NODE_ENV": "development", "ANTHROPIC_MODEL": "claude-sonnet-4-5-20250929"},
    "mounts": [
        {"path": "~/shared-docs", "mode": "ro"},
        {"path": "~/.cache/npm", "target": "~/.npm", "mode": "rw", "optional": True},
    ],
    "hide": [".env", ".env.*", "secrets/**", "/private/"],
    "network": "inet",
    "allow": ["192.168.1.20:5432", "host:11434"],
    "packages": ["awscli2", "nixpkgs#kubectl", "python3Packages.requests", "github:a/b#c"],
    "devshell": False,
    "limits": {"processes": 500, "memory": 8589934592, "tmp": None},
    "nested_namespaces": False,
    "claude_args": ["--model", "opus", "--model", ""],
}


def test_a_profile_with_every_key_is_one_and_keeps_the_order_of_the_schema():
    shuffled = dict(reversed(EXAMPLE.items()))
    assert list(profiles.checked(shuffled)) == list(EXAMPLE)
    assert profiles.checked(EXAMPLE) == EXAMPLE
    assert set(EXAMPLE) == set(profiles._KEYS)


def test_an_empty_profile_is_one():
    assert profiles.checked({}) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # Of the comma, from Python 3.13 on, or of what follows.
        ('{"a": 1,}', "line 1, column "),
        ('{\n "env": [\n "A" "B"]}', "line 3, column 6: Expecting ',' delimiter"),
        ("", "line 1, column 1: "),
        ("[" * 60_000, "nested too deeply"),
        ("[]", "an object is needed, this is a list"),
        ('{"env": [], "env": []}', '.env: the key "env" is given twice'),
        ('{"set": {"A": "1", "A": "2"}}', '.set.A: the key "A" is given twice'),
        ('{"mounts": [{"path": "/a", "path": "/b"}]}', ".mounts[0].path: the key"),
        ('{"limits": {"memory": NaN}}', ".limits.memory: a whole number from 0 on"),
        ('{"networ": "inet"}', '.networ: unknown key (did you mean "network"?)'),
        (
            '{"network": "interent"}',
            '.network: "interent": one of none, inet, full (did you mean "inet"?)',
        ),
        ('{"network": null}', ".network: null: one of none, inet, full"),
        ('{"env": "A"}', ".env: a list is needed, this is a string"),
        ('{"env": [1]}', ".env[0]: a string is needed, this is a number"),
        ('{"env": ["A", ""]}', ".env[1]: an empty string cannot stand here"),
        ('{"env": ["A-B"]}', '.env[0]: "A-B": the name of a variable is needed'),
        ('{"env": ["*"]}', '.env[0]: "*": the name of a variable is needed'),
        ('{"env": ["A*B"]}', '.env[0]: "A*B": the name of a variable is needed'),
        ('{"env": ["!"]}', ".env[0]: an empty string cannot stand here"),
        ('{"env": ["LD_PRELOAD"]}', '.env[0]: "LD_PRELOAD" is refused: it acts on'),
        ('{"env": ["LD_*"]}', '.env[0]: "LD_*" is refused: it acts on'),
        ('{"env": ["BASH_ENV"]}', '.env[0]: "BASH_ENV" is refused: it acts on'),
        ('{"env": ["HOME"]}', '.env[0]: "HOME" is refused: claudebox sets it'),
        ('{"set": ["A"]}', ".set: an object is needed, this is a list"),
        ('{"set": {"A": 1}}', ".set.A: a string is needed, this is a number"),
        ('{"set": {"A=B": "1"}}', ".set.A=B: not the name of an environment variable"),
        ('{"set": {"LD_PRELOAD": "/x.so"}}', ".set.LD_PRELOAD: it cannot be set: it acts on"),
        ('{"set": {"PATH": "/x"}}', ".set.PATH: it cannot be set: claudebox sets it"),
        ('{"env": ["A"], "set": {"A": "1"}}', '.env[0]: "A" has its value in "set" already'),
        ('{"mounts": [{}]}', ".mounts[0].path: this key is missing"),
        ('{"mounts": ["~/docs"]}', ".mounts[0]: an object is needed, this is a string"),
        (
            '{"mounts": [{"path": "/a", "mode": "rwo"}]}',
            '.mounts[0].mode: "rwo": one of ro, rw (did you mean "rw"?)',
        ),
        ('{"mounts": [{"path": "docs"}]}', '.mounts[0].path: "docs": an absolute path is needed'),
        ('{"mounts": [{"path": "~u/x"}]}', ".mounts[0].path: "),
        ('{"mounts": [{"path": "$XDG/x"}]}', ".mounts[0].path: "),
        ('{"mounts": [{"path": "~/../x"}]}', ".mounts[0].path: "),
        ('{"mounts": [{"path": "/a//b"}]}', ".mounts[0].path: "),
        ('{"mounts": [{"path": "/a\\u0000"}]}', ".mounts[0].path: a NUL character"),
        ('{"mounts": [{"path": "/a", "target": "b"}]}', ".mounts[0].target: "),
        (
            '{"mounts": [{"path": "/a", "target": "~/x"}, {"path": "/b", "target": "$HOME/x/"}]}',
            ".mounts[1]: ~/x is the place of .mounts[0] already",
        ),
        ('{"mounts": [{"path": "/a", "optional": 1}]}', ".mounts[0].optional: true or false"),
        ('{"hide": ["../x"]}', '.hide[0]: "../x": a pattern is relative to the project'),
        ('{"hide": ["~/x"]}', ".hide[0]: "),
        ('{"hide": ["a//b"]}', ".hide[0]: "),
        ('{"hide": ["/"]}', ".hide[0]: "),
        ('{"hide": [".git/config"]}', ".hide[0]: "),
        ('{"hide": ["[z-a]"]}', '.hide[0]: "[z-a]": not a pattern: bad character range'),
        ('{"allow": ["example.org"]}', ".allow[0]: 'example.org': only addresses can be allowed"),
        ('{"packages": ["--impure"]}', ".packages[0]: "),
        ('{"packages": ["./x#y"]}', ".packages[0]: "),
        ('{"packages": ["a b"]}', ".packages[0]: "),
        ('{"devshell": 1}', ".devshell: true, false or a flake reference is needed"),
        ('{"devshell": "--impure"}', ".devshell: "),
        ('{"devshell": "#"}', ".devshell: "),
        ('{"limits": {"memory": "8Q"}}', '.limits.memory: "8Q": a number is needed, then K, M'),
        ('{"limits": {"memory": "0G"}}', ".limits.memory: a size in bytes, at least 1"),
        ('{"limits": {"memory": "-1"}}', ".limits.memory: "),
        ('{"limits": {"processes": 0}}', ".limits.processes: a whole number from 1 on"),
        ('{"limits": {"processes": "5"}}', ".limits.processes: a whole number"),
        ('{"extends": "../x"}', '.extends: "../x": the name of a profile has'),
        ('{"extends": ["base"]}', ".extends: a string is needed, this is a list"),
        ('{"nested_namespaces": "no"}', ".nested_namespaces: true or false is needed"),
        ('{"claude_args": "--model opus"}', ".claude_args: a list is needed"),
    ],
)
def test_what_is_wrong_is_told_with_file_place_and_what_is_allowed(directory, text, says):
    directory.write("web", text)
    said = refusal(directory)
    assert said.startswith(f"profiles/web.json: {says}"), said
    assert "\n" not in said


@pytest.mark.parametrize(
    "document",
    [
        {"env": ["STAGING=hunter2-canary"]},
        {"set": {"API_TOKEN": "hunter2-canary"}},
        {"set": {"MINE": "ghp_hunter2-canary"}},
        {"set": {"MINE": "x9Kq2LmZ7pR4tVw8nB3cYhunter2canary"}},
        {"set": {"URL": "https://u:hunter2-canary@example.org/"}},
    ],
)
def test_a_secret_in_a_profile_is_refused_with_the_reason_and_not_repeated(directory, document):
    directory.write("web", document)
    said = refusal(directory)
    assert "never hold secrets" in said
    assert "canary" not in said


@pytest.mark.parametrize(
    ("text", "number"), [("8G", 8 << 30), ("512M", 512 << 20), ("1", 1), ("2T", 2 << 40), (7, 7)]
)
def test_sizes_can_have_a_unit(text, number):
    assert profiles.checked({"limits": {"memory": text}}) == {"limits": {"memory": number}}


@pytest.mark.parametrize("value", [True, False, "#ci", "github:a/b", "nixpkgs#hello"])
def test_a_development_shell_is_the_projects_or_a_reference(value):
    assert profiles.checked({"devshell": value}) == {"devshell": value}


@pytest.mark.parametrize(
    ("path", "expanded"),
    [
        ("~", "/home/u"),
        ("~/a", "/home/u/a"),
        ("$HOME/a/", "/home/u/a"),
        ("/a/~", "/a/~"),
        ("/a/$HOME", "/a/$HOME"),
        ("/", "/"),
    ],
)
def test_the_home_directory_is_expanded_and_nothing_else(path, expanded):
    assert profiles.expand(path, "/home/u") == expanded


# ---------------------------------------------------------------------------- inheritance


def test_lists_add_up_scalars_override_objects_are_put_together(directory):
    directory.write(
        "base",
        {
            "description": "base",
            "env": ["A", "B"],
            "set": {"X": "1", "Y": "1"},
            "network": "none",
            "hide": [".env"],
            "limits": {"memory": "1G", "processes": 10},
            "claude_args": ["--verbose"],
        },
    )
    directory.write(
        "web",
        {
            "extends": "base",
            "env": ["C"],
            "set": {"Y": "2"},
            "network": "inet",
            "limits": {"memory": None},
            "claude_args": ["--model", "opus"],
        },
    )
    found = profiles.resolve(directory, "web")
    assert found.chain == ["web", "base"]
    assert found.values == {
        "description": "base",
        "env": ["A", "B", "C"],
        "set": {"X": "1", "Y": "2"},
        "hide": [".env"],
        "network": "inet",
        "limits": {"memory": None, "processes": 10},
        "claude_args": ["--verbose", "--model", "opus"],
    }
    assert found.origins == {
        "description": "base",
        "env": ["base", "base", "web"],
        "set": {"X": "base", "Y": "web"},
        "hide": ["base"],
        "network": "web",
        "limits": {"memory": "web", "processes": "base"},
        "claude_args": ["base", "web", "web"],
    }


def test_a_name_with_an_exclamation_mark_removes_an_inherited_entry(directory):
    directory.write(
        "base",
        {
            "env": ["A", "B"],
            "hide": [".env", "*.pem"],
            "packages": ["jq"],
            "mounts": [{"path": "~/a"}, {"path": "/b", "target": "~/c"}],
            "set": {"X": "1", "Y": "1"},
            "claude_args": ["-a", "-b", "-a"],
        },
    )
    directory.write(
        "web",
        {
            "extends": "base",
            "env": ["!A"],
            "hide": ["!.env"],
            "packages": ["!nixpkgs#jq"],
            "mounts": ["!$HOME/c"],
            "set": {"X": None},
            "claude_args": ["!-a", "-a"],
        },
    )
    assert profiles.resolve(directory, "web").values == {
        "env": ["B"],
        "hide": ["*.pem"],
        "packages": [],
        "mounts": [{"path": "~/a"}],
        "set": {"Y": "1"},
        "claude_args": ["-b", "-a"],
    }


@pytest.mark.parametrize(
    ("child", "says"),
    [
        ({"env": ["!STAGING_TOKN"]}, '.env[0]: "!STAGING_TOKN": nothing of that name is inherited'),
        ({"env": ["!STAGING_TOKN"]}, '(did you mean "STAGING_TOKEN"?)'),
        ({"env": ["!STAGING_TOKEN", "!STAGING_TOKEN"]}, ".env[1]: "),
        ({"set": {"Z": None}}, ".set.Z: null removes what is inherited, and this is not"),
        ({"mounts": ["!~/docs"]}, '.mounts[0]: "!~/docs": nothing of that name'),
    ],
)
def test_a_removal_of_nothing_is_an_error(directory, child, says):
    directory.write("base", {"env": ["STAGING_TOKEN"]})
    directory.write("web", {"extends": "base", **child})
    assert says in refusal(directory)


def test_a_child_can_give_a_mount_another_source(directory):
    directory.write("base", {"mounts": [{"path": "/a", "target": "/x"}, {"path": "/b"}]})
    directory.write(
        "web", {"extends": "base", "mounts": [{"path": "/c", "target": "/x", "mode": "rw"}]}
    )
    assert profiles.resolve(directory, "web").values["mounts"] == [
        {"path": "/b"},
        {"path": "/c", "target": "/x", "mode": "rw"},
    ]


def test_a_variable_that_is_set_is_not_taken_from_the_host_as_well(directory):
    directory.write("base", {"env": ["A", "B"]})
    directory.write("web", {"extends": "base", "set": {"A": "1"}})
    assert profiles.resolve(directory, "web").values == {"env": ["B"], "set": {"A": "1"}}


def test_inheritance_has_any_depth(directory):
    directory.write("p0", {"env": ["V0"]})
    for level in range(1, 60):
        directory.write(f"p{level}", {"extends": f"p{level - 1}", "env": [f"V{level}"]})
    found = profiles.resolve(directory, "p59")
    assert found.values["env"] == [f"V{level}" for level in range(60)]
    assert found.chain == [f"p{level}" for level in range(59, -1, -1)]


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ({"web": {"extends": "web"}}, "profiles/web.json: .extends: a cycle: web → web"),
        (
            {"web": {"extends": "a"}, "a": {"extends": "b"}, "b": {"extends": "a"}},
            "profiles/b.json: .extends: a cycle: a → b → a",
        ),
        (
            {"web": {"extends": "base"}, "base": {"extends": "bsic"}, "basic": {}},
            'profiles/base.json: .extends: there is no profile "bsic" (did you mean "basic"?)',
        ),
        ({"web": {"extends": "base"}, "base": {"extends": "x"}}, "(web → base → x)"),
        ({"web": {"extends": "base"}, "base": {"env": 1}}, "profiles/base.json: .env: a list"),
    ],
)
def test_cycles_and_missing_or_wrong_parents_show_the_way_to_them(directory, documents, says):
    for name, document in documents.items():
        directory.write(name, document)
    assert says in refusal(directory)


def any_profile(chance):
    """Return a profile of few names, so that they meet; with removals."""

    def some(names):
        return [
            name if chance.random() < 0.7 or isinstance(name, dict) else f"!{name}"
            for name in chance.choices(names, k=chance.randrange(4))
        ]

    mounts = [{"path": "/a"}, {"path": "/b", "target": "/a"}, {"path": "/c"}, "/a", "/c"]
    document = {
        "env": some(["A", "B", "C"]),
        "hide": some([".env", "*.pem"]),
        "packages": some(["jq", "nixpkgs#jq", "curl"]),
        "mounts": [
            entry if isinstance(entry, dict) else f"!{entry}"
            for entry in chance.choices(mounts, k=chance.randrange(4))
        ],
        "claude_args": some(["-a", "-b"]),
        "set": {name: chance.choice(["1", "2", None]) for name in chance.sample("XYZ", 2)},
        "limits": {"memory": chance.choice([1, None])},
        "network": chance.choice(["none", "inet", "full"]),
        "description": chance.choice(["p", "q"]),
    }
    return {key: value for key, value in document.items() if chance.random() < 0.7}


def test_the_order_in_which_profiles_are_put_together_does_not_matter():
    for seed in range(2000):
        chance = random.Random(seed)
        a, b, c = (profiles.trace(any_profile(chance), name) for name in "abc")
        before = copy.deepcopy((a, b, c))
        left = profiles.merged(profiles.merged(a, b), c)
        right = profiles.merged(a, profiles.merged(b, c))
        assert left == right, seed
        assert profiles.settled(left) == profiles.settled(right), seed
        assert (a, b, c) == before


def test_a_resolved_profile_resolves_to_itself():
    for seed in range(2000):
        chance = random.Random(seed)
        traced = {}
        for name in "abc":
            traced = profiles.merged(traced, profiles.trace(any_profile(chance), name))
        once, origins = profiles.settled(traced)
        assert origins.keys() == once.keys()
        again, _ = profiles.settled(profiles.merged({}, profiles.trace(once, "resolved")))
        assert again == once, seed
        assert profiles.checked(once) == once, seed


def test_a_resolved_profile_in_a_file_is_the_same_profile(directory):
    directory.write("base", {"env": ["A", "B"], "set": {"X": "1"}})
    directory.write("web", {"extends": "base", "env": ["!A", "C"], "set": {"B": "2"}})
    once = profiles.resolve(directory, "web").values
    directory.write("flat", once)
    assert profiles.resolve(directory, "flat").values == once


def test_a_socket_with_the_name_of_a_profile_is_no_profile(directory, monkeypatch):
    import socket

    # The address of a socket is short.
    monkeypatch.chdir(directory.place)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("web.json")
        assert "profiles/web.json: No such device or address" in refusal(directory)


def test_a_number_that_python_does_not_read_is_an_error_of_the_document(directory):
    (directory.place / "web.json").write_text('{"limits": {"tmp": ' + "9" * 5000 + "}}")
    assert "digits" in refusal(directory)
