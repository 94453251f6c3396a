"""What a profile and the options for one launch do to a plan."""

import json
import os
import socket
import sys
import types

import pytest

from claudebox import Failure, audit, briefing, enforcement, instance, net, policy, profile
from claudebox import plan as launch_plan


@pytest.fixture
def write(home):
    """Write a profile of the user's."""
    directory = home / ".claudebox/profiles"
    directory.mkdir(parents=True)
    for path in (directory, directory.parent):
        path.chmod(0o700)

    def write_profile(name, document):
        (directory / f"{name}.json").write_text(json.dumps(document))
        (directory / f"{name}.json").chmod(0o600)

    return write_profile


@pytest.fixture
def base(project):
    """The base plan of the project, a function: with the words of instance.resolve."""
    return lambda **options: instance.resolve(str(project), **options)


def apply(plan, *arguments, **options):
    applied = profile.apply(plan, *arguments, **options)
    # Whatever is applied is a plan in the order of the schema.
    assert launch_plan.dumps(launch_plan.loads(launch_plan.dumps(applied))) == launch_plan.dumps(
        applied
    )
    return applied


def variables(plan):
    return {variable["name"]: variable for variable in plan["env"]}


def new_mounts(before, after):
    return [mount for mount in after["mounts"] if mount not in before["mounts"]]


# ---------------------------------------------------------------------------- the profile


def test_without_a_profile_and_options_a_plan_stays_as_it_is(base):
    plan = base()
    assert apply(plan) is plan


def test_the_plan_names_the_profile_and_what_it_inherits_from(base, write):
    write("base", {})
    write("web", {"extends": "base"})
    assert apply(base(), "web")["profile"] == {"name": "web", "chain": ["web", "base"]}


def test_the_option_wins_over_the_environment(base, write):
    write("web", {})
    write("other", {})
    environ = {"CLAUDEBOX_PROFILE": "other"}
    assert apply(base(), "web", environ=environ)["profile"]["name"] == "web"
    assert apply(base(), environ=environ)["profile"]["name"] == "other"
    assert apply(base(), environ={"CLAUDEBOX_PROFILE": ""})["profile"] is None


@pytest.mark.parametrize("name", ["", "../web", "a/b", "."])
def test_a_name_that_is_none_is_wrong_usage(base, name):
    with pytest.raises(Failure, match="is not a profile") as caught:
        profile.apply(base(), name)
    assert caught.value.status == 2


def test_a_plan_that_has_a_profile_gets_no_second_one(base, write):
    write("web", {})
    write("other", {"env": ["X"]})
    plan = apply(base(), "web")
    with pytest.raises(Failure, match="the plan has the profile web already"):
        profile.apply(plan, "other")
    assert apply(plan, environ={"CLAUDEBOX_PROFILE": "other"}) is plan


# ---------------------------------------------------------------------------- env and set


def test_variables_are_let_in_by_name_and_value_is_not_in_the_plan(base, write):
    write("web", {"env": ["STAGING_TOKEN", "TERM"]})
    environ = {"STAGING_TOKEN": "canary", "TERM": "xterm", "OTHER": "x"}
    plan = apply(base(), "web", environ=environ)
    assert variables(plan)["STAGING_TOKEN"] == {
        "name": "STAGING_TOKEN",
        "source": "host",
        "reason": "profile:web",
    }
    # That one is let in anyway.
    assert variables(plan)["TERM"] == {"name": "TERM", "source": "host"}
    assert "OTHER" not in variables(plan)
    assert "canary" not in launch_plan.dumps(plan)


def test_a_beginning_of_names_stands_for_all_that_may_be_let_in(base, write):
    write("web", {"env": ["NPM_CONFIG_*", "L*", "H*"]})
    environ = {"NPM_CONFIG_B": "", "NPM_CONFIG_A": "", "NPM": "", "LD_PRELOAD": "", "LUA": ""}
    environ |= {"HOME": "/x", "HOSTALIASES": "", "NPM_CONFIG_%": ""}
    plan = apply(base(), "web", environ=environ)
    found = [v["name"] for v in plan["env"] if v.get("reason") == "profile:web"]
    assert found == ["NPM_CONFIG_A", "NPM_CONFIG_B", "LUA"]
    assert variables(plan)["HOME"]["source"] == "claudebox"


def test_variables_that_the_host_does_not_have_are_noted(base, write):
    write("web", {"env": ["GONE", "NPM_*", "TERM"]})
    assert apply(base(), "web", environ={})["notes"] == [
        "profile web: env GONE: the host does not have this variable",
        "profile web: env NPM_*: the host has no such variable",
    ]


def test_what_is_set_stands_in_the_plan_and_replaces_the_hosts(base, write):
    write("web", {"set": {"NODE_ENV": "development", "TERM": "dumb"}})
    plan = apply(base(), "web")
    for name, value in (("NODE_ENV", "development"), ("TERM", "dumb")):
        assert variables(plan)[name] == {
            "name": name,
            "source": "profile",
            "value": value,
            "reason": "profile:web",
        }


def test_what_claudebox_sets_in_this_plan_is_not_replaced(base, write):
    write("web", {"set": {"NIX_CONFIG": "sandbox = false"}})
    plan = base()
    plan["env"].append({"name": "NIX_CONFIG", "source": "claudebox", "value": "x"})
    with pytest.raises(Failure, match="profile web sets NIX_CONFIG, which claudebox sets"):
        profile.apply(plan, "web")


def test_a_name_with_a_star_can_be_given_for_one_launch(base):
    environ = {"NPM_A": "1", "NPM_B": "2"}
    plan = apply(base(), variables=["NPM_*"], environ=environ)
    assert [v["name"] for v in plan["env"] if v.get("reason") == "--env"] == ["NPM_A", "NPM_B"]


# ---------------------------------------------------------------------------- network


def test_the_tier_of_a_profile_is_below_the_environment_and_the_option(base, write):
    write("web", {"network": "none"})
    plan = apply(base(), "web")
    assert net.apply(plan, environ={})["network"] == {"tier": "none", "source": "profile web"}
    environ = {"CLAUDEBOX_NETWORK": "full"}
    assert net.apply(plan, environ=environ)["network"]["source"] == "CLAUDEBOX_NETWORK"
    assert net.apply(plan, "full", environ=environ)["network"]["source"] == "command line"


@pytest.mark.parametrize(
    ("asked", "setting", "warned"),
    [
        ("none", "full", True),
        ("none", "inet", True),
        ("inet", "full", True),
        ("full", "none", False),
        ("inet", "none", False),
        ("inet", "inet", False),
    ],
)
def test_an_environment_that_opens_more_than_the_profile_is_warned_of(
    base, write, monkeypatch, asked, setting, warned
):
    monkeypatch.setattr(net, "_sidecars", lambda _root: ["pasta"])
    write("web", {"network": asked})
    plan = net.apply(apply(base(), "web"), environ={"CLAUDEBOX_NETWORK": setting})
    said = f"CLAUDEBOX_NETWORK sets the network to {setting}, where profile web asks for {asked}"
    assert (said in audit.report(plan)["warnings"]) == warned
    # The command line is the user's own word.
    assert said not in net.apply(apply(base(), "web"), setting, environ={})["notes"]


def test_exceptions_of_a_profile_are_those_of_the_tier_inet(base, write, monkeypatch):
    monkeypatch.setattr(net, "_sidecars", lambda _root: ["pasta"])
    write("web", {"network": "inet", "allow": ["192.168.1.20:5432", "host:11434"]})
    plan = apply(base(), "web")
    allowed = net.apply(plan, allowed=["10.1.0.0/16"], environ={})["network"]["allow"]
    assert allowed == ["192.168.1.20:5432", "host:11434", "10.1.0.0/16"]
    none = net.apply(plan, "none", environ={})
    assert "allow" not in none["network"]
    assert "allowed in the network tier inet only, this is none" in none["notes"][-1]


# ---------------------------------------------------------------------------- the rest


def test_limits_replace_those_of_the_base_plan_one_by_one(base, write):
    write("web", {"limits": {"memory": "2G", "tmp": None}})
    plan = base()
    plan["limits"] = {"processes": 7, "memory": 1, "tmp": 1}
    limits = apply(plan, "web")["limits"]
    assert limits == {"processes": 7, "memory": 2 << 30, "tmp": None}


def test_nested_namespaces_are_allowed_on_the_word_of_a_profile(base, write):
    write("web", {"nested_namespaces": True})
    write("not", {"nested_namespaces": False})
    assert base()["bwrap"]["disable_userns"] is True
    assert apply(base(), "not")["bwrap"]["disable_userns"] is True
    plan = apply(base(), "web")
    assert plan["bwrap"]["disable_userns"] is False
    assert any("namespaces" in text for text in audit.report(plan)["warnings"])


def test_arguments_of_a_profile_stand_before_those_of_the_command_line(base, write):
    write("web", {"claude_args": ["--model", "opus"]})
    claude = ["claude", "--dangerously-skip-permissions"]
    plan = apply(base(arguments=["--model", "haiku"]), "web")
    assert plan["command"] == [*claude, "--model", "opus", "--model", "haiku"]
    assert apply(base(shell=True, arguments=["-c", "x"]), "web")["command"][1:] == ["-c", "x"]


# ---------------------------------------------------------------------------- mounts


@pytest.fixture
def docs(home):
    (home / "docs").mkdir()
    (home / "docs/page").write_text("")
    return home / "docs"


def test_mounts_are_read_only_and_at_their_own_place_if_nothing_else_is_said(base, write, docs):
    write("web", {"mounts": [{"path": "~/docs"}, {"path": f"{docs}/page", "target": "$HOME/p"}]})
    plan = base()
    assert new_mounts(plan, apply(plan, "web")) == [
        {"kind": "ro-bind", "source": str(docs), "target": str(docs), "reason": "profile:web"},
        {
            "kind": "ro-bind",
            "source": f"{docs}/page",
            "target": f"{docs.parent}/p",
            "reason": "profile:web",
        },
    ]


def test_a_writable_mount_is_marked_by_the_audit(base, write, docs):
    write("web", {"mounts": [{"path": "~/docs", "mode": "rw", "target": "/srv/docs"}]})
    plan = apply(base(), "web")
    assert plan["mounts"][-1]["kind"] == "bind"
    text = audit.table(audit.report(plan), lambda style, text: f"<{style}>{text}")
    assert f"<write>rw  /srv/docs<weak>  from {docs}  changes stay" in text


def test_a_link_is_resolved_and_the_name_stays(base, docs):
    (docs.parent / "link").symlink_to(docs)
    plan = base()
    (mount,) = new_mounts(plan, apply(plan, mounts=["~/link"]))
    assert (mount["source"], mount["target"]) == (str(docs), f"{docs.parent}/link")


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("~/docs", ("ro-bind", "docs")),
        ("~/docs:ro", ("ro-bind", "docs")),
        ("~/docs:rw", ("bind", "docs")),
        ("~/docs:/srv/d", ("ro-bind", "/srv/d")),
        ("$HOME/docs:~/d:rw", ("bind", "d")),
    ],
)
def test_a_mount_for_one_launch_has_a_target_and_a_mode(base, docs, home, text, mount):
    plan = base()
    kind, target = mount
    assert new_mounts(plan, apply(plan, mounts=[text])) == [
        {
            "kind": kind,
            "source": str(docs),
            "target": os.path.join(home, target),
            "reason": "--mount",
        }
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("~/a:b:c:d", "PATH[:TARGET][:ro|rw] is needed"),
        ("~/docs:/a:wr", "PATH[:TARGET][:ro|rw] is needed"),
        ("docs", "an absolute path is needed, or one below ~ or $HOME"),
        ("../docs", "an absolute path is needed"),
        ("~/docs:d", '.target: "d": an absolute path is needed'),
        ("", "an empty string cannot stand here"),
        (":rw", "an empty string cannot stand here"),
    ],
)
def test_a_mount_that_cannot_be_read_is_wrong_usage(base, docs, text, says):
    with pytest.raises(Failure) as caught:
        profile.apply(base(), mounts=[text])
    assert str(caught.value).startswith(f'--mount "{text}": ')
    assert says in str(caught.value)
    assert caught.value.status == 2


def refusal(plan, write, **mount):
    """Return what is said of a mount, the same for a profile and for one launch."""
    write("bad", {"mounts": [mount]})
    with pytest.raises(Failure) as caught:
        profile.apply(plan, "bad")
    said = str(caught.value)
    assert said.startswith(f'profiles/bad.json: .mounts[0]: "{mount["path"]}": ')
    option = ":".join(v for v in (mount["path"], mount.get("target"), mount.get("mode")) if v)
    if option.count(":") == len(mount) - 1:
        with pytest.raises(Failure) as caught:
            profile.apply(plan, mounts=[option])
        assert str(caught.value).startswith(f'--mount "{mount["path"]}": ')
        assert caught.value.what.partition(": ")[2] in said
    return said


def test_a_missing_source_is_an_error_unless_it_is_optional(base, write, home):
    assert '"optional": true' in refusal(base(), write, path="~/gone")
    with pytest.raises(Failure) as caught:
        profile.apply(base(), mounts=["~/gone"])
    assert str(caught.value).startswith('--mount "~/gone": No such file or directory: leave it out')
    (home / "dangling").symlink_to("nowhere")
    assert "where it leads to" in refusal(base(), write, path="~/dangling")
    write("web", {"mounts": [{"path": "~/gone", "optional": True}]})
    plan = base()
    assert apply(plan, "web")["mounts"] == plan["mounts"]


SECRETS = {
    "is": "~/.ssh",
    "in": "~/.ssh/keys",
    "above": "~/.config",
    "link": "~/innocent",
    "link above": "~/dotfiles",
    "home": "~",
    "above home": "{parent}",
    "root": "/",
    "system": "/etc/ssl/private",
    "state": "~/.claudebox",
    "profiles": "~/.claudebox/profiles",
    "proc": "/proc",
    "claude": "~/.claude",
}


@pytest.mark.parametrize("mode", ["ro", "rw"])
@pytest.mark.parametrize("place", SECRETS)
def test_a_source_that_exposes_a_secret_is_refused(base, write, home, tmp_path, mode, place):
    (home / ".ssh/keys").mkdir(parents=True)
    (home / ".config/gh").mkdir(parents=True)
    (home / ".claude").mkdir()
    (home / "innocent").symlink_to(".ssh")
    (tmp_path / "real").mkdir()
    (home / ".netrc").symlink_to(tmp_path / "real/netrc")
    (tmp_path / "real/netrc").write_text("")
    (home / "dotfiles").symlink_to(tmp_path / "real")
    path = SECRETS[place].format(parent=tmp_path)
    if not os.path.exists(os.path.expanduser(path.replace("~", str(home)))):
        pytest.fail(f"{path} is not there to be refused")
    said = refusal(base(), write, path=path, mode=mode, target="/srv/x")
    assert "would expose a secret" in said


@pytest.mark.parametrize("kind", ["socket", "pipe", "device"])
def test_a_source_that_is_no_file_is_refused(base, write, home, monkeypatch, kind):
    if kind == "socket":
        monkeypatch.chdir(home)
        socket.socket(socket.AF_UNIX).bind("special")
    elif kind == "pipe":
        os.mkfifo(home / "special")
    path = "/dev/null" if kind == "device" else "~/special"
    assert "a directory or a plain file is needed" in refusal(base(), write, path=path)


TARGETS = {
    "/": "more than the plan says",
    "/proc": "",
    "/proc/self": "",
    "/dev": "",
    "/dev/shm": "",
    "/etc": "claudebox's own",
    "/opt": "would cover what claudebox mounts",
    "/etc/passwd": "is mounted there already",
    "/etc/claude-code": "",
    "/etc/claude-code/hooks": "claudebox's own",
    "/run": "",
    "/run/claudebox/credentials/x": "claudebox's own",
    "/usr": "is mounted there already",
    "/usr/share/not-there-at-all": "does not exist, and nothing is made on the host",
    "/bin/x": "lies behind /bin",
    "~": "is mounted there already",
    "~/.claude": "",
    "~/.claude/skills": "lies in the instance",
    "{project}": "is mounted there already",
    "{project}/..": "a path without",
    "{project}/new": "does not exist, and nothing is made on the host",
    "{project}/.git": "",
    "{project}/.git/hooks": "",
    "{project}/.claude": "",
    "{project}/.claude/settings.json": "",
    "{project}/link/x": "symbolic link",
    "{project}/file": "are not both directories, or both files",
    "{project}/sub/.git/hooks": "",
    "{project}/sub/.git/objects": "git directory",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_would_cover_what_is_claudeboxs_is_refused(
    base, write, docs, project, repository, target
):
    repository(project)
    (project / "file").write_text("")
    (project / "real/x").mkdir(parents=True)
    (project / "link").symlink_to("real")
    repository(project / "sub")
    filled = target.format(project=project)
    if filled.endswith("/.."):
        write("bad", {"mounts": [{"path": "~/docs", "target": filled}]})
        with pytest.raises(Failure, match=TARGETS[target]):
            profile.apply(base(), "bad")
    else:
        assert TARGETS[target] in refusal(base(), write, path="~/docs", target=filled)


def test_a_directory_of_the_project_that_exists_can_be_a_target(base, docs, project):
    (project / "vendor/docs").mkdir(parents=True)
    plan = base()
    applied = apply(plan, mounts=[f"~/docs:{project}/vendor/docs"])
    assert len(new_mounts(plan, applied)) == 1
    enforcement.refuse_unsafe(applied)


def test_what_holds_the_project_or_lies_in_it_is_no_source(base, write, project, tmp_path):
    (project / "sub").mkdir()
    for path in (project, project / "sub"):
        said = refusal(base(), write, path=str(path), target="/srv/x")
        assert "it holds the project, or lies in it" in said
    (tmp_path / "up/project").mkdir(parents=True)
    plan = instance.resolve(str(tmp_path / "up/project"))
    said = refusal(plan, write, path=str(tmp_path / "up"), target="/srv/x")
    assert "it holds the project, or lies in it" in said


@pytest.mark.parametrize("place", ["", ".git", ".git/hooks"])
def test_a_git_repository_is_not_mounted_writable(base, write, tmp_path, repository, place):
    repository(tmp_path / "other")
    path = str(tmp_path / "other" / place).rstrip("/")
    assert "git" in refusal(base(), write, path=path, mode="rw", target="/srv/x")
    apply(base(), mounts=[f"{path}:/srv/x:ro"])


def test_a_writable_mount_with_repositories_or_programs_of_path_is_warned_of(
    base, docs, home, repository, monkeypatch
):
    repository(docs / "repo")
    (home / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{home}/bin:/usr/bin:/bin:{os.environ['PATH']}")
    warnings = audit.report(apply(base(), mounts=["~/docs:rw", "~/bin:rw"]))["warnings"]
    assert f"{docs} is writable inside, with the git repositories in it: repo" in warnings
    assert f"{home}/bin is writable inside, and programs in it run outside (PATH)" in warnings
    silent = audit.report(apply(base(), mounts=["~/docs", "~/bin"]))["warnings"]
    assert not any("is writable inside" in text for text in silent)


def test_a_mount_in_another_of_the_users_is_not_made_on_the_host(base, write, docs, home):
    (home / "other").mkdir()
    write(
        "web",
        {
            "mounts": [
                {"path": "~/docs", "target": "/srv/docs", "mode": "rw"},
                {"path": "~/other", "target": "/srv/docs/new"},
            ]
        },
    )
    with pytest.raises(Failure, match=r"web.json: .mounts\[1\]: .* nothing is made on the host"):
        profile.apply(base(), "web")
    (docs / "new").mkdir()
    enforcement.refuse_unsafe(apply(base(), "web"))


def test_an_error_names_the_profile_that_the_mount_comes_from(base, write):
    write("base", {"env": ["A"], "mounts": [{"path": "/usr/share"}, {"path": "~/gone"}]})
    write("web", {"extends": "base", "mounts": ["!/usr/share"]})
    with pytest.raises(Failure, match=r'profiles/base.json: .mounts\[1\]: "~/gone": No such file'):
        profile.apply(base(), "web")


# ---------------------------------------------------------------------------- hide


def test_hidden_files_are_in_the_plan_the_audit_and_the_briefing(base, write, project):
    for name in (".env", "a/.env.local", "keys/one", "key.pem"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("canary")
    os.link(project / ".env", project / "copy")
    write("web", {"hide": [".env*", "nothing"]})
    plan = apply(base(), "web", hidden=["keys/"])
    assert plan["hide"] == [
        {"pattern": ".env*", "reason": "profile:web"},
        {"pattern": "nothing", "reason": "profile:web"},
        {"pattern": "keys/", "reason": "--hide"},
    ]
    found = audit.report(plan)
    assert found["hidden"] == [
        {"pattern": ".env*", "reason": "profile:web", "files": [".env", "a/.env.local"]},
        {"pattern": "nothing", "reason": "profile:web", "files": []},
        {"pattern": "keys/", "reason": "--hide", "files": ["keys"]},
        {"pattern": None, "reason": "other names of what is hidden", "files": ["copy"]},
    ]
    text = audit.table(found, lambda _style, text: text)
    assert "hidden in the project\n  .env*  profile:web\n    --  .env\n    --  a/.env.local" in text
    assert "  nothing  profile:web\n    matches nothing" in text
    # What is hidden is not readable inside, and so nothing to warn of.
    assert [w for w in found["warnings"] if "look like secrets" in w] == [
        "1 file(s) look like secrets and are readable inside: key.pem"
    ]
    assert not any("hard links" in text for text in found["warnings"])
    told = briefing.text(plan)
    assert f"- `{project}/a/.env.local`" in told and "`keys/`" in told


def test_a_tracked_hidden_file_is_warned_of(base, project, repository, git):
    repository(project)
    (project / ".env").write_text("canary")
    assert not any(
        "git tracks" in w for w in audit.report(apply(base(), hidden=[".env"]))["warnings"]
    )
    git(project, "add", ".env")
    warnings = audit.report(apply(base(), hidden=[".env"]))["warnings"]
    assert "hidden, but git tracks it, so .git still holds it: .env" in warnings
    (project / ".git/index").write_bytes(b"DIRC garbage")
    warnings = audit.report(apply(base(), hidden=[".env"]))["warnings"]
    assert any("index: not readable" in text for text in warnings)


@pytest.mark.parametrize("pattern", ["../x", "~/x", "", ".git", "[z-a]"])
def test_a_pattern_that_is_none_is_wrong_usage(base, pattern):
    with pytest.raises(Failure) as caught:
        profile.apply(base(), hidden=[pattern])
    assert caught.value.status == 2
    assert str(caught.value).startswith(f'--hide "{pattern}": ')


# ---------------------------------------------------------------------------- packages


@pytest.fixture
def nix(monkeypatch):
    """A stand-in for the module that asks nix; it remembers what it was asked."""
    module = types.ModuleType("claudebox.nix")
    module.asked = []

    def packages(references, home, root):
        module.asked.append(("packages", references, home, root))
        return {name: [f"/nix/store/0-{name.partition('#')[2]}/bin"] for name in references}

    def devshell(reference, root, home, _trust, hidden=()):
        module.hidden = list(hidden)
        module.asked.append(("devshell", reference, root, home))
        variables = {
            "CC": "/nix/store/0-gcc/bin/gcc",
            "LD_PRELOAD": "/x",
            "HOME": "/x",
            "TERM": "t",
        }
        return ["/nix/store/0-shell/bin"], variables

    store = {"kind": "ro-bind", "source": "/usr", "target": "/nix/store", "reason": "toolchain"}
    module.packages, module.devshell = packages, devshell
    module.decision = lambda *_: None
    module.store_mounts = lambda mounts=(): [] if store in mounts else [store]
    monkeypatch.setitem(sys.modules, "claudebox.nix", module)
    import claudebox

    monkeypatch.setattr(claudebox, "nix", module, raising=False)
    return module


def test_programs_of_packages_come_first_in_path(base, write, nix, home, project):
    write("web", {"packages": ["jq", "nixpkgs#jq", "github:a/b#kubectl"]})
    plan = base()
    applied = apply(plan, "web")
    references = ["nixpkgs#jq", "github:a/b#kubectl"]
    assert nix.asked == [("packages", references, str(home), str(project))]
    directories = ["/nix/store/0-jq/bin", "/nix/store/0-kubectl/bin"]
    assert applied["packages"] == [
        {"reference": name, "paths": [path], "reason": "profile:web"}
        for name, path in zip(references, directories, strict=True)
    ]
    before = variables(plan)["PATH"]["value"]
    assert variables(applied)["PATH"]["value"] == ":".join([*directories, before])
    assert new_mounts(plan, applied) == nix.store_mounts()
    text = audit.table(audit.report(applied), lambda _style, text: text)
    assert "\npackages\n  nixpkgs#jq  profile:web\n  github:a/b#kubectl  profile:web\n" in text


def test_a_development_shell_is_asked_for_by_option_or_profile_and_never_otherwise(
    base, write, nix, project, home
):
    write("web", {"devshell": True})
    write("plain", {})
    apply(base(), "plain")
    apply(base(), "web", devshell=False)
    assert nix.asked == []
    applied = apply(base(), "web")
    apply(base(), devshell=True)
    apply(base(), "web", devshell="github:a/b#shell")
    place = (str(project), str(home))
    assert nix.asked == [
        ("devshell", None, *place),
        ("devshell", None, *place),
        ("devshell", "github:a/b#shell", *place),
    ]
    assert variables(applied)["CC"] == {
        "name": "CC",
        "source": "profile",
        "value": "/nix/store/0-gcc/bin/gcc",
        "reason": "devshell",
    }
    assert variables(applied)["TERM"]["value"] == "t"
    assert "LD_PRELOAD" not in variables(applied)
    assert variables(applied)["HOME"]["value"] == str(home)
    assert variables(applied)["PATH"]["value"].startswith("/nix/store/0-shell/bin:")
    assert applied["packages"] == [
        {"reference": str(project), "paths": ["/nix/store/0-shell/bin"], "reason": "devshell"}
    ]


def test_a_development_shell_sees_nothing_that_is_hidden_in_any_way(base, write, nix):
    write("web", {"devshell": True, "hide": ["a.nix"]})
    apply(base(), "web", hidden=["b.nix"])
    assert nix.hidden == ["a.nix", "b.nix"]
    apply(apply(base(), hidden=["c.nix"]), devshell=True, hidden=["d.nix"])
    assert nix.hidden == ["c.nix", "d.nix"]


def test_the_store_is_mounted_once(base, write, nix):
    write("web", {"packages": ["jq"]})
    plan = apply(base(), "web", devshell=True)
    assert [m["target"] for m in plan["mounts"]].count("/nix/store") == 1


# ---------------------------------------------------------------------------- the policy


@pytest.mark.parametrize("name", [*policy.OWN_VARIABLES, "LD_PRELOAD", "MALLOC_X"])
def test_nobody_sets_a_variable_of_claudeboxs_own_or_one_that_acts_outside(sample, name):
    sample["env"].append({"name": name, "source": "profile", "value": "x", "reason": "profile:x"})
    with pytest.raises(enforcement.Refused, match=name):
        enforcement._refuse_variables(sample)
