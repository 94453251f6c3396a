"""Every place of secrets that the manual names: no project there, and no mount of it, whoever asks."""

import os

import pytest
from mount_checker import SECRETS_OF_HOME, SECRETS_OF_THE_SYSTEM

from claudebox import Failure, enforcement, instance, policy


@pytest.fixture
def secrets(host):
    return policy.secret_paths(str(host.home))


def refused_as_a_source(host, path):
    """Say whether an edited plan is refused that mounts `path` read-only, and for what reason."""
    plan = instance.resolve(str(host.docs), shell=True)
    plan["mounts"].append({"kind": "ro-bind", "source": path, "target": "/x", "reason": "--mount"})
    try:
        enforcement.refuse_unsafe(plan)
    except Failure as failure:
        return failure.what
    return ""


@pytest.mark.parametrize("name", SECRETS_OF_HOME)
def test_a_secret_of_the_home_directory_is_no_project_and_no_mount(host, secrets, name):
    path = f"{host.home}/{name}"
    real = os.path.realpath(path)
    for place in {path, real, path + "/below", real + "/below"}:
        assert policy.exposed_secret(place, secrets, str(host.home))
    assert "would expose a secret" in refused_as_a_source(host, real)


def test_what_holds_a_secret_of_the_home_directory_is_no_mount(host, secrets):
    for name in SECRETS_OF_HOME:
        parent = f"{host.home}/{name}".rpartition("/")[0]
        assert policy.exposed_secret(parent, secrets, str(host.home))


@pytest.mark.parametrize("path", [*SECRETS_OF_THE_SYSTEM, f"/tmp/tmux-{os.getuid()}"])
def test_a_secret_of_the_system_is_no_project_and_no_mount(host, secrets, path):
    # As root's home is here another one, /root is none of its own.
    assert policy.exposed_secret(path, secrets, str(host.home))
    assert policy.exposed_secret(path + "/below", secrets, str(host.home))


@pytest.mark.parametrize("name", [".ssh", ".gnupg", ".aws"])
def test_a_directory_with_the_keys_of_anybody_is_no_project(host, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(Failure, match="somebody's home directory"):
        policy.refuse_secret_project(str(tmp_path), str(host.home))


def test_a_secret_of_the_system_is_one_also_where_no_link_leads_to_it(host, monkeypatch):
    """On Debian /var/run leads to /run: there the one is in the list by the other."""

    def no_link(_path):
        raise OSError

    monkeypatch.setattr(policy.os.path, "realpath", lambda path: path)
    monkeypatch.setattr(policy.os, "readlink", no_link)
    secrets = policy.secret_paths(str(host.home))
    for path in SECRETS_OF_THE_SYSTEM:
        assert secrets[path] == path
