"""What claudebox reads of instances and logins, after a sandbox or another program has written it."""

import json
import os

import pytest
from cases import ODD_VALUES, dump, each_case, mutate_bytes, mutate_document

from claudebox import Failure, instance, instances
from claudebox.printable import printable
from claudebox.sandbox import credentials, standins, state

CANARY = "canary-71bb"

LOGIN = {
    "claudeAiOauth": {
        "accessToken": "sk-ant-oat01-x",
        "refreshToken": "sk-ant-ort01-y",
        "expiresAt": 1_900_000_000_000,
        "scopes": ["user:inference"],
    },
    "mcpOAuth": {},
}
CONFIGURATION = {
    "hasCompletedOnboarding": True,
    "projects": {"/home/u/app": {"hasTrustDialogAccepted": True, "history": []}},
    "customApiKeyResponses": {"approved": ["x" * 20], "rejected": []},
}


def fuzzed(chance, document):
    """Return the bytes of a document: changed in itself, or as bytes, or none at all."""
    kind = chance.randrange(4)
    if kind == 0:
        return mutate_bytes(chance, dump(document).encode())
    if kind == 1:
        return dump(chance.choice(ODD_VALUES)).encode()
    for _ in range(chance.randrange(1, 4)):
        document = mutate_document(chance, document)
    return dump(document).encode()


def put(chance, path, content):
    """Put a file at `path`, or now and then something else that has its name."""
    remove(path)
    kind = chance.randrange(12)
    if kind == 0:
        os.symlink(chance.choice(("/etc/passwd", "..", "self", str(path) + ".aim")), path)
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        os.mkdir(path)
    elif kind != 3:
        path.write_bytes(content)


def remove(path):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    elif os.path.lexists(path):
        path.unlink()


def only_failures(call):
    try:
        return call()
    except Failure as failure:
        assert "\n" not in printable(str(failure))
        return None


@pytest.fixture
def place(host):
    """An instance of the project of this host, made as a launch makes it, and its path."""
    plan = instance.resolve(str(host.project), shell=True)
    opened = state.prepare(plan)
    state.seed(opened, plan)
    path = host.state / "instances" / plan["instance"]["id"]
    yield plan, opened, path
    opened.close()


def test_the_expiry_of_a_login_is_a_number_or_nothing(bounds):
    def check(chance):
        bounds()
        found = credentials.expiry(fuzzed(chance, LOGIN))
        assert found is None or (type(found) is int and 0 < found < 2**63)

    each_case(3000, check)


def test_a_login_in_any_state_is_mirrored_without_a_traceback(tmp_path, bounds, monkeypatch):
    """Both sides change at will: nothing is followed, nothing but a login is passed on."""
    directory = tmp_path / "claude"
    directory.mkdir()
    outside = directory / ".credentials.json"
    aim = directory / ".credentials.json.aim"
    complaints = []
    monkeypatch.setattr("claudebox.command.complain", complaints.append)

    def check(chance):
        bounds()
        remove(outside)
        outside.write_bytes(fuzzed(chance, LOGIN))
        aim.write_text(CANARY)
        mirror = credentials.Mirror(str(outside))
        inside = os.dup(mirror._mounted)
        try:
            for _ in range(chance.randrange(1, 5)):
                if chance.random() < 0.4:
                    os.ftruncate(inside, 0)
                    os.pwrite(inside, fuzzed(chance, LOGIN), 0)
                else:
                    put(chance, outside, fuzzed(chance, LOGIN))
                before = outside.read_bytes() if outside.is_file() else None
                mirror.changed()
                after = outside.read_bytes() if outside.is_file() else None
                assert before == after or credentials.expiry(after) is not None
        finally:
            mirror.close()
            os.close(inside)
        assert aim.read_text() == CANARY
        assert not [name for name in os.listdir(directory) if "claudebox" in name]

    each_case(250, check)


def test_metadata_in_any_state_makes_an_instance_or_a_problem(place, host, bounds):
    plan, _opened, path = place
    metadata = json.loads((path / "instance.json").read_text())

    def check(chance):
        bounds()
        put(chance, path / "instance.json", fuzzed(chance, metadata))
        for found in instances.every(str(host.home)):
            if found.problem is None:
                assert found.root == plan["project"]["root"]
                assert type(found.created) is int and type(found.last_used) is int
                found.root_state()
                instances.human_age(1e9 - found.last_used)
                found.has_standins()
            printable(str(found.problem))

    each_case(400, check)


def test_metadata_in_any_state_is_renewed_or_stops_the_launch(place, bounds):
    plan, opened, path = place
    metadata = json.loads((path / "instance.json").read_text())

    def check(chance):
        bounds()
        put(chance, path / "instance.json", fuzzed(chance, metadata))
        only_failures(lambda: state._refresh_metadata(opened.directory, plan["instance"]))
        if (path / "instance.json").is_file() and not (path / "instance.json").is_symlink():
            remove(path / "instance.json")
            assert only_failures(
                lambda: state._refresh_metadata(opened.directory, plan["instance"]) or True
            )

    each_case(300, check)


def test_a_record_of_stand_ins_in_any_state_removes_nothing_but_stand_ins(place, host, bounds):
    _plan, opened, path = place
    victim = host.project / "victim"
    record = [
        [f"{host.project}/.mcp.json", '{"mcpServers": {}}\n'],
        [f"{host.project}/refs", ""],
        [f"{host.project}/.claude", None],
        [str(victim), "x"],
    ]

    def check(chance):
        bounds()
        victim.write_text(CANARY)
        put(chance, path / standins.RECORD, fuzzed(chance, record))
        for entry in standins.recorded(opened.directory):
            assert len(entry) == 2 and entry[0].startswith("/")
        only_failures(lambda: standins.remove(opened.directory))
        assert victim.read_text() == CANARY

    try:
        each_case(300, check)
    finally:
        victim.unlink()


def test_claudes_configuration_in_any_state_gets_its_answers(place, bounds):
    """Everything in the directory was written inside: nothing outside it may change or be read."""
    plan, opened, path = place
    claude = path / "claude"
    plan["env"].append({"name": "ANTHROPIC_API_KEY", "source": "host", "secret": True})
    environ = {"ANTHROPIC_API_KEY": "k" * 40}

    def check(chance):
        bounds()
        put(chance, claude / ".claude.json", fuzzed(chance, CONFIGURATION))
        put(chance, claude / "CLAUDE.md", mutate_bytes(chance, b"@SANDBOX.md\nnotes\n"))
        only_failures(lambda: state._seed_claude(opened.directory, plan, environ))
        if (claude / ".claude.json").is_file() and not (claude / ".claude.json").is_symlink():
            written = (claude / ".claude.json").read_bytes()
            configuration = json.loads(written.decode("utf-8", "surrogateescape"))
            assert configuration["hasCompletedOnboarding"] is True
            trusted = configuration["projects"][plan["project"]["cwd"]]
            assert trusted["hasTrustDialogAccepted"] is True
            assert "k" * 20 in configuration["customApiKeyResponses"]["approved"]
        for name in os.listdir(claude):
            if name.startswith(".claude.json.corrupted"):
                remove(claude / name)

    before = os.stat("/etc/passwd")
    each_case(300, check)
    after = os.stat("/etc/passwd")
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
