"""The policy: which variables get in, and which directories would expose a secret."""

import os

import pytest

from claudebox import Failure, policy


@pytest.fixture
def exposed(home):
    """Say why mounting a path would expose a secret, as a launch does it: resolved first."""

    def reason(path, environ=None):
        environ = os.environ if environ is None else environ
        secrets = policy.secret_paths(str(home), environ)
        return policy.exposed_secret(os.path.realpath(path), secrets, str(home))

    return reason


ALLOWED = (
    "TERM COLORTERM TERM_PROGRAM TERM_PROGRAM_VERSION LANG LC_ALL LC_TIME LANGUAGE TZ EDITOR VISUAL"
    " PAGER NO_COLOR FORCE_COLOR USER LOGNAME ANTHROPIC_API_KEY"
).split()


@pytest.mark.parametrize("name", ALLOWED)
def test_a_variable_that_grants_nothing_is_let_in(name):
    assert policy.host_variable_allowed(name)
    assert not policy.variable_forbidden(name)


@pytest.mark.parametrize(
    "name",
    (
        "HOME PATH SHELL AWS_SECRET_ACCESS_KEY GITHUB_TOKEN SSH_AUTH_SOCK DISPLAY WAYLAND_DISPLAY"
        " XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS PYTHONPATH NODE_OPTIONS ANTHROPIC_AUTH_TOKEN"
        " ANTHROPIC_API_KEY_2 TERM2 LC lc_all MYLC_ALL LD_PRELOAD LC_A.B LC_A=B LC_ÄÖ"
    ).split(),
)
def test_any_other_variable_is_not_let_in_of_itself(name):
    assert not policy.host_variable_allowed(name)


@pytest.mark.parametrize(
    "name",
    (
        "LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT LD_ LD_DEBUG_OUTPUT GCONV_PATH BASH_ENV ENV SHELLOPTS"
        " BASHOPTS IFS PS4 GLIBC_TUNABLES LOCPATH NLSPATH MALLOC_CHECK_ HOSTALIASES RES_OPTIONS"
        " LOCALDOMAIN TZDIR GETCONF_DIR NIS_PATH RESOLV_HOST_CONF"
    ).split(),
)
def test_a_variable_that_acts_outside_is_never_let_in(name):
    assert policy.variable_forbidden(name)
    assert not policy.host_variable_allowed(name)


@pytest.mark.parametrize("name", ["MY_LD_PRELOAD", "ENVIRONMENT", "LDFLAGS", "GITHUB_TOKEN", ""])
def test_a_name_that_only_resembles_a_forbidden_one_may_be_asked_for(name):
    assert not policy.variable_forbidden(name)


def test_claudebox_sets_no_variable_that_it_forbids():
    assert not [name for name in policy.CLAUDE_VARIABLES if policy.variable_forbidden(name)]


def test_a_path_is_within_itself_and_its_parents_only():
    assert policy.is_within("/a", "/a")
    assert policy.is_within("/a/b", "/a")
    assert policy.is_within("/a", "/")
    assert not policy.is_within("/ab", "/a")
    assert not policy.is_within("/a", "/a/b")


# What the design names, and nothing may take out of the list.
NAMED_SECRETS = (
    ".ssh .gnupg .aws .azure .kube .docker .config/gcloud .config/gh .config/sops .config/age .netrc"
    " .git-credentials .npmrc .pypirc .password-store .local/share/keyrings .mozilla"
    " .config/google-chrome .config/chromium .bash_history .zsh_history .claude .claude.json"
).split()


@pytest.mark.parametrize("name", NAMED_SECRETS)
def test_a_secret_of_the_home_directory_is_exposed_equal_inside_and_above(exposed, home, name):
    secret = home / name
    assert exposed(secret) == f"it is ~/{name}"
    assert exposed(secret / "x" / "y") == f"it lies in ~/{name}"
    assert exposed(home) == "it is the home directory"
    if "/" in name:
        assert "it contains ~/" in exposed(secret.parent)


def test_a_name_that_only_begins_like_a_secret_is_no_secret(exposed, home):
    assert exposed(home / ".sshfs") is None
    assert exposed(home / ".config" / "ghostty") is None
    assert exposed(home / "src") is None


@pytest.mark.parametrize("above", ["..", "../..", "/"])
def test_what_lies_above_the_home_directory_is_exposed(exposed, home, above):
    assert exposed(home / above) == "it contains the home directory"


@pytest.mark.parametrize(
    "path",
    (
        "/etc/shadow /etc/ssh /etc/ssl/private /root /run/user/1000 /run/docker.sock /run/dbus"
        " /var/run/docker.sock /var/lib/tailscale /var/lib/docker/volumes /var/lib/containerd"
        " /var/log /proc /sys/kernel /dev/shm /boot"
    ).split(),
)
def test_a_secret_of_the_system_is_exposed(exposed, path):
    assert exposed(path)


@pytest.mark.parametrize("path", ["/etc", "/var", "/var/lib", "/tmp", "/etc/ssl"])
def test_a_directory_above_a_secret_of_the_system_is_exposed(exposed, path):
    assert exposed(path).startswith("it contains ")


@pytest.mark.parametrize("path", ["/usr", "/usr/local", "/opt/app", "/srv/www", "/etc/ssl/certs"])
def test_a_directory_of_the_system_without_secrets_is_not_exposed(exposed, path):
    assert exposed(path) is None


def test_a_link_to_a_secret_is_exposed(exposed, home, project):
    (home / ".ssh").mkdir()
    (project / "keys").symlink_to(home / ".ssh")
    assert exposed(project / "keys") == "it is ~/.ssh"


def test_a_secret_that_is_a_link_is_exposed_where_it_leads(exposed, home, tmp_path):
    vault = tmp_path / "vault" / "keys"
    vault.mkdir(parents=True)
    (home / ".ssh").symlink_to(vault)
    assert exposed(vault) == "it is ~/.ssh"
    assert exposed(vault / "deeper") == "it lies in ~/.ssh"
    assert exposed(vault.parent) == "it contains ~/.ssh"
    assert exposed(home / ".ssh") == "it is ~/.ssh"


def test_a_secret_behind_a_chain_of_links_is_exposed_at_its_end(exposed, home, tmp_path):
    vault = tmp_path / "vault"
    vault.mkdir()
    (tmp_path / "hop").symlink_to(vault)
    (home / ".gnupg").symlink_to("../hop")
    assert exposed(vault) == "it is ~/.gnupg"


def test_a_secret_below_a_linked_directory_is_exposed_where_it_lies(exposed, home, tmp_path):
    configuration = tmp_path / "dotfiles"
    (configuration / "gh").mkdir(parents=True)
    (home / ".config").symlink_to(configuration)
    assert exposed(configuration / "gh") == "it is ~/.config/gh"
    assert exposed(configuration).startswith("it contains ~/.config/")


def test_a_secret_that_is_a_dangling_link_is_exposed_where_it_would_be(exposed, home, tmp_path):
    (home / ".netrc").symlink_to(tmp_path / "later")
    assert exposed(tmp_path / "later") == "it is ~/.netrc"


def test_a_secret_of_the_system_that_is_a_link_is_exposed_where_it_leads(
    exposed, tmp_path, monkeypatch
):
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    (tmp_path / "docker").symlink_to(volumes)
    monkeypatch.setattr(policy, "SECRET_SYSTEM_PATHS", (str(tmp_path / "docker"),))
    assert exposed(volumes)
    assert exposed(volumes / "a")


@pytest.mark.parametrize(
    "variable",
    ["SSH_AUTH_SOCK", "XDG_RUNTIME_DIR", "GNUPGHOME", "CLAUDE_CONFIG_DIR", "DOCKER_CONFIG"],
)
def test_a_place_that_a_variable_names_is_exposed(exposed, tmp_path, variable):
    place = tmp_path / "agent" / "s"
    environ = {variable: str(place)}
    assert exposed(place, environ) == f"it is ${variable}"
    assert exposed(place.parent, environ) == f"it contains ${variable}"
    assert exposed(place / "x", environ) == f"it lies in ${variable}"


def test_a_place_that_a_variable_names_through_a_link_is_exposed_where_it_leads(exposed, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    environ = {"SSH_AUTH_SOCK": f"{tmp_path}/link/agent"}
    assert exposed(tmp_path / "real", environ) == "it contains $SSH_AUTH_SOCK"


def test_every_file_of_a_list_in_a_variable_is_exposed(exposed, tmp_path):
    environ = {"KUBECONFIG": f"{tmp_path}/a/one:{tmp_path}/b/two"}
    assert exposed(tmp_path / "a", environ) == "it contains $KUBECONFIG"
    assert exposed(tmp_path / "b", environ) == "it contains $KUBECONFIG"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DBUS_SESSION_BUS_ADDRESS", "unix:path={}/bus,guid=0123"),
        ("DOCKER_HOST", "unix://{}/docker.sock"),
        ("CONTAINER_HOST", "unix://{}/podman.sock"),
    ],
)
def test_a_socket_that_an_address_in_a_variable_names_is_exposed(
    exposed, tmp_path, variable, value
):
    assert exposed(tmp_path / "sockets", {variable: value.format(tmp_path / "sockets")})


@pytest.mark.parametrize("value", ["", "relative/agent", "/"])
def test_a_variable_that_names_no_place_forbids_nothing(exposed, project, value):
    assert exposed(project, {"SSH_AUTH_SOCK": value}) is None


def test_claudeboxs_own_state_is_exposed(exposed, home):
    assert exposed(home / ".claudebox") == "it is claudebox's own state"
    assert exposed(home / ".claudebox" / "instances") == "it lies in claudebox's own state"


def test_the_state_lies_in_the_home_directory_unless_claudebox_home_says_otherwise(home, tmp_path):
    assert policy.state_home(str(home), {}) == f"{home}/.claudebox"
    assert policy.state_home(str(home), {"CLAUDEBOX_HOME": ""}) == f"{home}/.claudebox"
    other = str(tmp_path / "state")
    assert policy.state_home(str(home), {"CLAUDEBOX_HOME": other}) == other


def test_claudebox_home_is_resolved(home, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    environ = {"CLAUDEBOX_HOME": f"{tmp_path}/link/state"}
    assert policy.state_home(str(home), environ) == f"{tmp_path}/real/state"


def test_a_relative_claudebox_home_is_made_absolute(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert policy.state_home(str(home), {"CLAUDEBOX_HOME": "s"}) == f"{tmp_path}/s"


def test_a_project_that_contains_the_state_is_refused(exposed, project):
    environ = {"CLAUDEBOX_HOME": f"{project}/state"}
    assert exposed(project, environ) == "it contains claudebox's own state"


def test_a_project_in_a_secret_place_is_refused_with_the_reason(home):
    with pytest.raises(Failure, match=r"cannot be a project: it lies in ~/\.ssh") as caught:
        policy.refuse_secret_project(f"{home}/.ssh/keys", str(home))
    assert caught.value.status == 1


def test_a_project_beside_the_secrets_is_not_refused(home, project):
    policy.refuse_secret_project(str(project), str(home))
    policy.refuse_secret_project(f"{home}/src/app", str(home))


def test_the_home_of_root_does_not_make_every_project_of_root_a_secret():
    secrets = policy.secret_paths("/root", {})
    assert policy.exposed_secret("/root/src/app", secrets, "/root") is None
    assert policy.exposed_secret("/root/.ssh", secrets, "/root") == "it is ~/.ssh"
    assert policy.exposed_secret("/root", secrets, "/root") == "it is the home directory"


def test_another_home_directory_below_roots_still_protects_roots():
    secrets = policy.secret_paths("/root/scratch", {})
    assert policy.exposed_secret("/root/.ssh", secrets, "/root/scratch")


def test_the_hosts_credentials_are_where_claude_outside_keeps_them(home, tmp_path):
    assert policy.host_credentials(str(home), {}) == f"{home}/.claude/.credentials.json"
    environ = {"CLAUDE_CONFIG_DIR": str(tmp_path / "config")}
    assert policy.host_credentials(str(home), environ) == f"{tmp_path}/config/.credentials.json"


def test_only_files_that_this_kernel_has_are_masked():
    targets = [mount["target"] for mount in policy.proc_masks()]
    assert targets == [path for path in policy.MASKED_PROC_FILES if os.path.exists(path)]
    assert "/proc/keys" in policy.MASKED_PROC_FILES


def test_what_any_kernel_shows_of_the_whole_machine_is_masked(monkeypatch):
    monkeypatch.setattr(policy.os.path, "exists", lambda _path: True)
    names = (
        "kallsyms kcore key-users keys kmsg latency_stats sched_debug sysrq-trigger timer_list"
    ).split()
    assert [mount["target"] for mount in policy.proc_masks()] == [f"/proc/{n}" for n in names]


def test_a_development_shell_brings_nothing_that_acts_outside():
    assert not [name for name in policy.DEVSHELL_VARIABLES if policy.variable_refusal(name)]


def test_no_file_that_looks_like_a_secret_goes_into_the_store():
    from fnmatch import fnmatchcase

    for name in (*policy.DEVSHELL_FILE_NAMES, *(f"x{s}" for s in policy.DEVSHELL_FILE_SUFFIXES)):
        assert not any(fnmatchcase(name, pattern) for pattern in policy.SECRET_FILE_NAMES)
    assert not any(fnmatchcase(".env", f"*{s}") for s in policy.DEVSHELL_FILE_SUFFIXES)


def test_the_configuration_of_a_nix_daemon_is_read_where_the_daemon_reads_it():
    assert policy.NIX_CONFIGURATION == ("/etc/nix/nix.conf", "/etc/xdg/nix/nix.conf")
