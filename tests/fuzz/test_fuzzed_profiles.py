"""Profiles in any state, and what they add to a plan: an error that names the file, or within the policy."""

import os

import pytest
from cases import dump, each_case, mutate_bytes, mutate_document
from mount_checker import complaints
from test_fuzzed_plans import interesting_paths

from claudebox import Failure, enforcement, instance, net, profile, profiles
from claudebox.printable import printable
from claudebox.sandbox import bwrap

WHOLE = {
    "description": "x",
    "extends": "base",
    "env": ["MY_TOKEN", "AWS_*"],
    "set": {"EXTRA": "x", "CI": "1"},
    "mounts": [{"path": "~/src/shared", "mode": "ro", "optional": True}],
    "hide": [".env", "sub/**"],
    "network": "inet",
    "allow": ["10.1.2.3:80"],
    "limits": {"processes": 100, "memory": "1G", "tmp": 1048576},
    "nested_namespaces": False,
    "claude_args": ["--verbose"],
}
BASE = {"env": ["EDITOR2"], "mounts": [], "hide": ["*.pem"], "limits": {"tmp": None}}


@pytest.fixture
def directory(host):
    """The directory of this host's profiles, with one that is whole and the one that it extends."""
    path = host.state / "profiles"
    path.mkdir(parents=True, exist_ok=True)
    for place in (host.state, path):
        os.chmod(place, 0o700)
    (path / "base.json").write_text(dump(BASE))
    return path


def test_a_profile_in_any_state_is_read_or_named_in_an_error(host, directory, bounds):
    def check(chance):
        bounds()
        kind = chance.randrange(3)
        document = WHOLE
        for _ in range(chance.randrange(1, 4)):
            document = mutate_document(chance, document)
        content = dump(document).encode()
        if kind == 0:
            content = mutate_bytes(chance, dump(WHOLE).encode())
        (directory / "web.json").write_bytes(content)
        try:
            profiles.resolve(profiles.Directory(str(host.home)), "web")
        except Failure as failure:
            assert "\n" not in printable(str(failure))

    each_case(600, check)


def test_what_a_profile_adds_to_a_plan_is_refused_or_within_the_policy(host, directory, bounds):
    made = [instance.resolve(str(place), shell=True) for place in (host.project, host.docs)]
    passed = []

    def check(chance):
        bounds()
        plan = chance.choice(made)
        document = {"extends": "base"}
        paths = interesting_paths(host, plan)
        mounts = []
        for _ in range(chance.randrange(3)):
            mount = {"path": chance.choice(paths), "mode": chance.choice(("ro", "rw"))}
            if chance.random() < 0.4:
                mount["target"] = chance.choice(paths)
            mounts.append(mount)
        document["mounts"] = mounts
        patterns = (".env", "sub", "vendor", ".git", "*", "**/config", ".claude", "keys", "bare")
        document["hide"] = [chance.choice(patterns) for _ in range(chance.randrange(2))]
        document["nested_namespaces"] = chance.random() < 0.2
        (directory / "web.json").write_text(dump(document))
        try:
            plan = net.apply(profile.apply(plan, "web"), "none")
            enforcement.refuse_unsafe(plan)
        except Failure as failure:
            assert "\n" not in printable(str(failure))
            passed.append(False)
            return
        facts = host.facts(plan)
        assert complaints(bwrap.by_path(bwrap.arguments(plan)), facts) == []
        passed.append(True)

    each_case(500, check)
    assert len(passed) < 50 or (any(passed) and not all(passed))
