"""The launch plan: what its schema lets through, and how it says what it does not."""

import copy
import io
import json
import os

import pytest

from claudebox import Failure, plan, plan_schema, schema


@pytest.fixture
def sample(paper_plan):
    return paper_plan


def refusal(document):
    """Return the message with which a document is refused."""
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(plan.PlanError) as caught:
        plan.loads(text)
    assert caught.value.status == 2
    return str(caught.value)


def put(document, keys, value):
    """Return a copy of `document` with `value` in the place that `keys` lead to."""
    changed = copy.deepcopy(document)
    place = changed
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return changed


def drop(document, keys):
    """Return a copy of `document` without what `keys` lead to."""
    changed = copy.deepcopy(document)
    place = changed
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return changed


def test_a_plan_with_one_of_everything_is_accepted_unchanged(sample):
    assert plan.checked(sample) == sample


def test_writing_what_was_read_gives_the_same_bytes(sample):
    text = plan.dumps(sample)
    assert plan.dumps(plan.loads(text)) == text


def test_the_order_of_keys_is_the_schemas_whatever_order_they_came_in(sample):
    def reversed_keys(value):
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        if isinstance(value, list):
            return [reversed_keys(item) for item in value]
        return value

    shuffled = json.dumps(reversed_keys(sample))
    assert plan.dumps(plan.loads(shuffled)) == plan.dumps(sample)


def test_the_order_of_mounts_variables_and_words_is_kept(sample):
    sample["env"].reverse()
    sample["mounts"].reverse()
    sample["command"] = ["z", "a", "z"]
    read = plan.loads(plan.dumps(sample))
    assert [v["name"] for v in read["env"]] == [v["name"] for v in sample["env"]]
    assert [m["target"] for m in read["mounts"]] == [m["target"] for m in sample["mounts"]]
    assert read["command"] == ["z", "a", "z"]


def test_a_plan_is_ascii_and_ends_with_a_newline(sample):
    sample["notes"] = ["größer ‮ \x1b"]
    text = plan.dumps(sample)
    assert text.isascii() and text.endswith("}\n") and "\x1b" not in text


def test_the_example_of_every_mount_kind_is_in_these_tests(sample):
    assert {mount["kind"] for mount in sample["mounts"]} == set(plan_schema.MOUNTS)


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        (["colour"], ".colour"),
        (["project", "roots"], ".project.roots"),
        (["project", "git", "hooks"], ".project.git.hooks"),
        (["instance", "lock"], ".instance.lock"),
        (["user", "shell"], ".user.shell"),
        (["bwrap", "argv"], ".bwrap.argv"),
        (["env", 0, "value"], ".env[0].value"),
        (["env", 3, "secret"], ".env[3].secret"),
        (["mounts", 0, "content"], ".mounts[0].content"),
        (["mounts", 5, "source"], ".mounts[5].source"),
        (["mounts", 12, "mode"], ".mounts[12].mode"),
    ],
)
def test_a_plan_with_an_unknown_key_is_refused_with_its_json_path(sample, keys, path):
    assert f": {path}: unknown key" in refusal(put(sample, keys, "x"))


def test_an_unknown_key_that_is_nearly_a_known_one_is_told_so(sample):
    assert 'did you mean "source"?' in refusal(put(sample, ["network", "sorce"], "x"))


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        (["schema"], ".schema"),
        (["project"], ".project"),
        (["project", "git"], ".project.git"),
        (["project", "git", "worktree"], ".project.git.worktree"),
        (["instance", "id"], ".instance.id"),
        (["user", "gid"], ".user.gid"),
        (["profile"], ".profile"),
        (["network", "tier"], ".network.tier"),
        (["bwrap", "disable_userns"], ".bwrap.disable_userns"),
        (["limits"], ".limits"),
        (["limits", "processes"], ".limits.processes"),
        (["env", 1, "name"], ".env[1].name"),
        (["env", 1, "source"], ".env[1].source"),
        (["env", 3, "value"], ".env[3].value"),
        (["mounts", 0, "source"], ".mounts[0].source"),
        (["mounts", 2, "kind"], ".mounts[2].kind"),
        (["mounts", 2, "target"], ".mounts[2].target"),
        (["mounts", 7, "content"], ".mounts[7].content"),
        (["mounts", 9, "reason"], ".mounts[9].reason"),
        (["command"], ".command"),
        (["notes"], ".notes"),
    ],
)
def test_a_plan_without_a_key_is_refused_with_its_json_path(sample, keys, path):
    assert f": {path}: this key is missing" in refusal(drop(sample, keys))


@pytest.mark.parametrize(
    ("keys", "value", "path"),
    [
        ([], [], "."),
        ([], None, "."),
        ([], 1, "."),
        ([], "claudebox/1", "."),
        (["schema"], 1, ".schema"),
        (["schema"], None, ".schema"),
        (["schema"], ["claudebox/1"], ".schema"),
        (["project"], [], ".project"),
        (["project", "git"], False, ".project.git"),
        (["project", "git", "worktree"], 0, ".project.git.worktree"),
        (["instance", "id"], 7, ".instance.id"),
        (["user", "uid"], "0", ".user.uid"),
        (["user", "uid"], -1, ".user.uid"),
        (["user", "uid"], True, ".user.uid"),
        (["user", "uid"], 0.0, ".user.uid"),
        (["user", "gid"], 2**63, ".user.gid"),
        (["profile"], "web", ".profile"),
        (["profile"], {"name": ""}, ".profile.name"),
        (["profile"], {"name": "web"}, ".profile.chain"),
        (["network", "tier"], "ful", ".network.tier"),
        (["network", "tier"], ["full"], ".network.tier"),
        (["network", "source"], "", ".network.source"),
        (["bwrap", "disable_userns"], "yes", ".bwrap.disable_userns"),
        (["limits"], None, ".limits"),
        (["limits", "processes"], 0, ".limits.processes"),
        (["limits", "memory"], "8G", ".limits.memory"),
        (["limits", "tmp"], 1.5, ".limits.tmp"),
        (["limits", "tmp"], -1, ".limits.tmp"),
        (["env"], {}, ".env"),
        (["env", 0], "TERM", ".env[0]"),
        (["env", 0, "name"], "A=B", ".env[0].name"),
        (["env", 0, "name"], "", ".env[0].name"),
        (["env", 0, "name"], "1A", ".env[0].name"),
        (["env", 0, "name"], "Ä", ".env[0].name"),
        (["env", 0, "name"], "A B", ".env[0].name"),
        (["env", 0, "source"], "profile", ".env[0].value"),
        (["env", 0, "source"], "project", ".env[0].source"),
        (["limits", "processes"], 0, ".limits.processes"),
        (["limits", "memory"], "1G", ".limits.memory"),
        (["packages"], ["jq"], ".packages[0]"),
        (["packages"], [{"reference": "jq", "reason": "x"}], ".packages[0].paths"),
        (["hide"], [".env"], ".hide[0]"),
        (["hide"], [{"pattern": "", "reason": "x"}], ".hide[0].pattern"),
        (["env", 1, "secret"], 1, ".env[1].secret"),
        (["env", 3, "value"], None, ".env[3].value"),
        (["mounts"], None, ".mounts"),
        (["mounts", 4], [], ".mounts[4]"),
        (["mounts", 4, "kind"], "overlay", ".mounts[4].kind"),
        (["mounts", 4, "kind"], None, ".mounts[4].kind"),
        (["mounts", 6, "size"], "1M", ".mounts[6].size"),
        (["mounts", 6, "size"], 0, ".mounts[6].size"),
        (["mounts", 7, "content"], 5, ".mounts[7].content"),
        (["mounts", 0, "reason"], "", ".mounts[0].reason"),
        (["command"], "claude", ".command"),
        (["command", 1], 3, ".command[1]"),
        (["command"], [], ".command"),
        (["command", 0], "", ".command"),
        (["notes", 0], {}, ".notes[0]"),
    ],
)
def test_a_wrong_value_is_refused_with_its_json_path(sample, keys, value, path):
    document = put(sample, keys, value) if keys else json.dumps(value)
    assert f"not a launch plan: {path}: " in refusal(document)


@pytest.mark.parametrize("version", ["claudebox/2", "claudebox", "", "Claudebox/1", "claudebox/1 "])
def test_an_unknown_version_is_refused_and_the_known_one_named(sample, version):
    message = refusal(put(sample, ["schema"], version))
    assert f': .schema: "{version}": ' in message and "claudebox/1" in message


PATHS = [
    ["project", "cwd"],
    ["project", "root"],
    ["project", "git", "dir"],
    ["project", "git", "common_dir"],
    ["instance", "path"],
    ["instance", "root"],
    ["user", "home"],
    ["bwrap", "path"],
    ["mounts", 0, "source"],
    ["mounts", 0, "target"],
    ["mounts", 1, "target"],
    ["mounts", 5, "target"],
    ["mounts", 7, "target"],
    ["mounts", 12, "target"],
]


def written(keys):
    """Return the JSON path that `keys` stand for."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


@pytest.mark.parametrize(
    "value",
    ["", "a", "usr/bin", "./a", "../a", "~/a", "/a/../b", "/a/./b", "/..", "/a//b", "//a", "/a/"],
)
def test_a_path_that_is_not_absolute_and_plain_is_refused(sample, value):
    for keys in PATHS:
        assert f": {written(keys)}: " in refusal(put(sample, keys, value))


@pytest.mark.parametrize("value", ["/", "/a", "/..a/b..", "/a b/\n", "/...", "/-"])
def test_an_unusual_but_plain_path_is_accepted(sample, value):
    changed = put(sample, ["mounts", 0, "target"], value)
    assert plan.loads(plan.dumps(changed)) == changed


def test_a_symbolic_link_may_lead_to_a_relative_path(sample):
    changed = put(sample, ["mounts", 1, "source"], "../usr/bin")
    assert plan.loads(plan.dumps(changed)) == changed


def test_a_variable_that_is_named_twice_is_refused(sample):
    sample["env"].append({"name": "TERM", "source": "claudebox", "value": "dumb"})
    assert ': .env[4].name: "TERM" is there twice' in refusal(sample)


def test_a_mount_point_that_is_used_twice_is_refused(sample):
    sample["mounts"].append({"kind": "tmpfs", "target": "/usr", "reason": "system"})
    assert ': .mounts[13].target: "/usr" is there twice' in refusal(sample)


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        (["project", "root"], ".project.root"),
        (["mounts", 7, "content"], ".mounts[7].content"),
        (["command", 1], ".command[1]"),
        (["env", 3, "value"], ".env[3].value"),
    ],
)
def test_a_nul_character_is_refused_with_its_json_path(sample, keys, path):
    assert f": {path}: a NUL character" in refusal(put(sample, keys, "/a\0b"))


@pytest.mark.parametrize("surrogate", ["\ud800", "\udfff", "\udc7f", "\udd00"])
def test_a_lone_surrogate_that_stands_for_no_byte_is_refused(sample, surrogate):
    for keys in (*PATHS, ["command", 1], ["network", "source"], ["mounts", 7, "content"]):
        message = refusal(put(sample, keys, f"/a{surrogate}"))
        assert f": {written(keys)}: " in message and "surrogate" in message


def test_a_key_with_a_lone_surrogate_is_refused_too(sample):
    assert ": .\ud800: unknown key" in refusal(put(sample, ["\ud800"], 1))


def test_a_path_that_is_not_utf8_makes_the_round_trip(sample):
    path = b"/home/u/caf\xe9 \xff\n\\"
    text = plan.dumps(put(sample, ["project", "root"], os.fsdecode(path)))
    assert os.fsencode(plan.loads(text)["project"]["root"]) == path
    assert plan.dumps(plan.loads(text)) == text


@pytest.mark.parametrize("alias", ["\udcc3\udca9", "a\udce2\udc82\udcac"])
def test_utf8_that_is_spelled_with_surrogates_is_refused(sample, alias):
    # Two spellings of the same bytes: a secret path could be named by the one that is not compared.
    assert os.fsencode(alias).decode()
    assert ": .mounts[0].source: " in refusal(put(sample, ["mounts", 0, "source"], f"/{alias}"))


@pytest.mark.parametrize(
    "twice",
    [
        '"network": {"tier": "none", "tier": "full"',
        '"network": {"tier": "full", "tier": "full"',
    ],
)
def test_a_key_that_is_given_twice_in_one_object_is_refused(sample, twice):
    text = json.dumps(sample).replace('"network": {"tier": "full"', twice)
    assert "tier" in refusal(text) and "twice" in refusal(text)


def test_a_key_that_is_given_twice_is_refused_with_its_json_path(sample):
    text = json.dumps(sample).replace('"tier": "full"', '"tier": "none", "tier": "full"')
    assert "not a launch plan: .network" in refusal(text)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_constant_that_is_not_json_is_refused(sample, constant):
    text = json.dumps(put(sample, ["user", "uid"], 77)).replace("77", constant)
    assert constant in refusal(text)


def test_a_constant_that_is_not_json_is_refused_with_its_json_path(sample):
    text = json.dumps(put(sample, ["user", "uid"], 77)).replace("77", "NaN")
    assert "not a launch plan: .user.uid: " in refusal(text)


@pytest.mark.parametrize("number", ["1e400", "1.5", "1e2", "9" * 5000, "-0.0"])
def test_a_number_that_is_not_whole_or_too_large_is_refused(sample, number):
    refusal(json.dumps(put(sample, ["user", "uid"], 77)).replace("77", number))


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"mounts":['])
def test_a_document_that_is_nested_too_deeply_is_refused(opening):
    refusal(opening * 100_000)


def test_a_deeply_nested_value_is_refused_in_its_place(sample):
    deep = json.loads("[" * 400 + "]" * 400)
    assert ": .profile: an object is needed, this is a list" in refusal(
        put(sample, ["profile"], deep)
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "line 1, column 1"),
        ("{", "line 1, column 2"),
        ('{"schema": }', "line 1, column 12"),
        ("{\n  'schema': 1}", "line 2, column 3"),
        ("{} {}", "line 1, column 4"),
        ("\ufeff{}", "line 1, column 1"),
        ('{"schema": "a\nb"}', "line 1, column 14"),
    ],
)
def test_what_is_not_json_is_refused_with_line_and_column(text, place):
    assert f"not a launch plan: {place}: " in refusal(text)


def test_a_plan_is_read_from_a_binary_stream(sample):
    assert plan.read(io.BytesIO(plan.dumps(sample).encode())) == sample


@pytest.mark.parametrize("nothing", [b"", b" ", b"\n\n", b"\t\r\n "])
def test_an_empty_stream_is_told_apart_from_a_malformed_plan(nothing):
    with pytest.raises(Failure, match="there is no plan on standard input") as caught:
        plan.read(io.BytesIO(nothing))
    assert caught.value.status == 2


def test_a_stream_that_is_not_utf8_is_refused_at_its_byte(sample):
    data = plan.dumps(sample).encode()
    with pytest.raises(plan.PlanError, match=r"byte 9: not UTF-8"):
        plan.read(io.BytesIO(data[:9] + b"\xff" + data[9:]))


class Endless(io.RawIOBase):
    """A stream that never ends, and that says how much of it was read."""

    taken = 0

    def read(self, size=-1):
        assert size > 0
        self.taken += size
        return b" " * (size - 1) + b"1"


def test_a_stream_without_end_is_refused_at_the_size_limit():
    stream = Endless()
    with pytest.raises(plan.PlanError, match=f"larger than {plan.SIZE_LIMIT} bytes"):
        plan.read(stream)
    assert stream.taken == plan.SIZE_LIMIT + 1


def test_a_plan_of_exactly_the_size_limit_is_read(sample, monkeypatch):
    data = plan.dumps(sample).encode()
    monkeypatch.setattr(plan, "SIZE_LIMIT", len(data))
    assert plan.read(io.BytesIO(data)) == sample
    with pytest.raises(plan.PlanError, match="larger than"):
        plan.read(io.BytesIO(data + b"\n"))


@pytest.mark.parametrize(
    ("word", "hint"),
    [("instanc", ' (did you mean "instance"?)'), ("zzz", ""), (None, ""), (3, ""), ([], "")],
)
def test_the_nearest_choice_is_suggested_only_if_there_is_one(word, hint):
    assert schema.nearest(word, ["instance", "audit"]) == hint


def test_a_value_that_can_be_one_word_only_is_refused_with_that_word(sample):
    assert 'this must be "claudebox/1"' in refusal(put(sample, ["schema"], "claudebox/2"))
