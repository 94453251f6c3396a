"""What is asked of nix, and what of its answers is taken over."""

import json
import os
import shutil

import pytest

from claudebox import Failure, baked, host, nix_store, policy
from claudebox.sandbox import limits

HASH = "0123456789abcdfghijklmnpqrsvwxyz"
PATH = f"/nix/store/{HASH}-tool-1.0"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store in a scratch directory, a nix that notes its arguments, and what it answers."""

    class Store:
        path = tmp_path / "store"
        tool = f"{tmp_path}/store/{HASH}-tool-1.0"
        calls = tmp_path / "calls"

        def asked(self):
            lines = self.calls.read_text().splitlines() if self.calls.exists() else []
            self.calls.unlink(missing_ok=True)
            return lines

    monkeypatch.setattr(nix_store.policy, "NIX_STORE", str(Store.path))
    os.makedirs(f"{Store.tool}/bin")
    metadata = json.dumps({"url": "github:NixOS/nixpkgs/0123456?narHash=sha256-A%3D"})
    built = json.dumps([{"drvPath": "x", "outputs": {"out": Store.tool}}])
    program = tmp_path / "nix"
    program.write_text(
        f"""#!/bin/sh
echo "$PWD ${{0##*/}} $*" >>{Store.calls}
case "$*" in
*metadata*) echo '{metadata}' ;;
build*) cat {tmp_path}/built ;;
*--realise*)
    while [ $# -gt 0 ]; do [ "$1" = --add-root ] && ln -s {Store.tool} "$2"; shift; done ;;
esac
"""
    )
    (tmp_path / "built").write_text(built)
    program.chmod(0o755)
    shutil.copy(program, tmp_path / "nix-store")
    monkeypatch.setattr(baked, "PROGRAMS", {n: f"{tmp_path}/{n}" for n in ("nix", "nix-store")})
    return Store()


def packages(home, project, *references):
    return nix_store.packages(list(references), str(home), str(project))


def test_a_name_is_an_attribute_of_a_locked_nixpkgs(store, home, project):
    assert packages(home, project, "tool") == {"tool": [f"{store.tool}/bin"]}
    asked = store.asked()
    assert [line.split()[:4] for line in asked] == [
        ["/", "nix", "flake", "metadata"],
        ["/", "nix", "build", "--no-link"],
        ["/", "nix-store", "--realise", store.tool],
    ]
    assert "github:NixOS/nixpkgs/0123456?narHash=sha256-A%3D#tool" in asked[1]
    assert all("--no-accept-flake-config" in line for line in asked[:2])


def test_what_is_remembered_asks_nothing(store, home, project):
    packages(home, project, "tool")
    store.asked()
    assert packages(home, project, "tool") == {"tool": [f"{store.tool}/bin"]}
    assert store.asked() == []


def test_a_second_package_is_of_the_same_nixpkgs(store, home, project):
    packages(home, project, "tool")
    store.asked()
    packages(home, project, "other")
    assert not any("metadata" in line for line in store.asked())


def test_the_nixpkgs_of_a_build_wins(store, home, project, monkeypatch):
    monkeypatch.setattr(baked, "NIXPKGS", "github:NixOS/nixpkgs/abc")
    packages(home, project, "tool")
    assert "github:NixOS/nixpkgs/abc#tool" in store.asked()[0]
    monkeypatch.setattr(baked, "NIXPKGS", "github:NixOS/nixpkgs/def")
    packages(home, project, "tool")
    assert "github:NixOS/nixpkgs/def#tool" in store.asked()[0]


def spoil_root(store, entry):
    link = f"{entry}.root"
    os.unlink(link)
    os.symlink("/etc", link)


SPOILED = {
    "the store path is gone": lambda store, entry: shutil.rmtree(store.tool),
    "the root is gone": lambda store, entry: os.unlink(f"{entry}.root"),
    "the root leads elsewhere": spoil_root,
    "the entry is a link": lambda store, entry: (
        os.rename(entry, f"{entry}.moved"),
        os.symlink(f"{entry}.moved", entry),
    ),
    "the entry is cut off": lambda store, entry: open(entry, "w").close(),
    "a path out of the store": lambda store, entry: entry.write_text(
        entry.read_text().replace(store.tool, "/home/x")
    ),
    "a path above the store": lambda store, entry: entry.write_text(
        entry.read_text().replace(store.tool, f"{store.tool}/../..")
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_nix_is_asked_again_where(store, home, project, what):
    packages(home, project, "tool")
    store.asked()
    [entry] = (p for p in (home / ".claudebox/cache/nix").glob("package-*") if "." not in p.name)
    SPOILED[what](store, entry)
    if not os.path.isdir(store.tool):
        # As a build would.
        os.makedirs(f"{store.tool}/bin")
        os.unlink(f"{entry}.root")
    assert packages(home, project, "tool") == {"tool": [f"{store.tool}/bin"]}
    assert store.asked()


def test_what_is_remembered_is_private(store, home, project):
    packages(home, project, "tool")
    assert os.stat(home / ".claudebox/cache/nix").st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "answer",
    [
        *("", "[]", "{}", "null", '[{"outputs": {"out": "/etc"}}]', '[{"outputs": {"out": 1}}]'),
        *(json.dumps([{"outputs": {"out": path}}]) for path in (f"{PATH}/x", f"{PATH}/..", "x")),
    ],
)
def test_an_answer_that_is_no_store_path_is_refused(store, home, project, answer, tmp_path):
    (tmp_path / "built").write_text(answer)
    with pytest.raises(Failure, match="nix does not say|printed no JSON"):
        packages(home, project, "tool")


def test_without_nix_packages_are_refused(home, project, monkeypatch):
    monkeypatch.setattr(host, "find_program", lambda *_: None)
    with pytest.raises(Failure, match="nix was not found"):
        packages(home, project, "tool")


def test_no_path_of_the_project_is_searched_by_nix(store, home, project, monkeypatch, tmp_path):
    (tmp_path / "nix").write_text(f'#!/bin/sh\necho "$PATH" >{store.calls}; exit 1\n')
    monkeypatch.setenv("PATH", f"{project}/bin:relative:/usr/bin")
    with pytest.raises(Failure, match="could not"):
        packages(home, project, "tool")
    [path] = store.asked()
    assert str(project) not in path and "relative" not in path


@pytest.mark.parametrize(
    "reference",
    [
        *("", "#", "-x", "--option", "a b", "a\n", "a;b", "$(a)", "nixpkgs#", "#x", "nixpkgs#-x"),
        *("a/b", "github:o/r", "x#y#z", "./x#y", "~/x#y", "path:x#y", "path:/x/%2e%2e#y", "(x)"),
        "é",
    ],
)
def test_what_is_no_reference_is_refused(reference, project, capfd):
    with pytest.raises(Failure):
        nix_store._split(reference, str(project))


@pytest.mark.parametrize("form", ["{}#x", "path:{}#x", "git+file://{}#x", "{}/../project/sub#x"])
def test_a_reference_into_the_project_is_refused(project, form):
    with pytest.raises(Failure, match="lies in the project"):
        nix_store._split(form.format(project), str(project))


@pytest.mark.parametrize(
    ("reference", "flake", "attribute"),
    [
        ("jq", "nixpkgs", "jq"),
        ("python3Packages.requests", "nixpkgs", "python3Packages.requests"),
        ("nixpkgs/nixos-24.05#jq", "nixpkgs/nixos-24.05", "jq"),
        ("github:o/r?dir=x#a.b", "github:o/r?dir=x", "a.b"),
        ("/srv/flake#x", "/srv/flake", "x"),
    ],
)
def test_a_reference_is_a_flake_and_an_attribute(reference, flake, attribute, project):
    assert nix_store._split(reference, str(project)) == (flake, attribute)


# ---------------------------------------------------------------------------- flake.lock


def lock(**locked):
    return json.dumps({"nodes": {"root": {}, "dep": {"locked": locked}}}).encode()


GITHUB = {
    "type": "github",
    "owner": "NixOS",
    "repo": "nixpkgs",
    "rev": "0" * 40,
    "narHash": "sha256-A+/=",
    "lastModified": 1,
}
TARBALL = {"type": "tarball", "url": "https://example.org/x.tar.gz", "narHash": "sha256-A="}


@pytest.mark.parametrize("locked", [GITHUB, TARBALL, {**TARBALL, "type": "git", "allRefs": True}])
def test_inputs_of_the_public_internet_are_fetched(locked):
    expression = nix_store.locked_inputs(lock(**locked))
    assert expression.startswith("map (tree: (builtins.fetchTree tree).narHash) [ { ")
    assert f'narHash = "{locked["narHash"]}";' in expression


@pytest.mark.parametrize(
    "locked",
    [
        {"type": "path", "path": "/home/u/.ssh", "narHash": "sha256-A="},
        {**GITHUB, "host": "192.168.1.1"},
        {**GITHUB, "narHash": "${builtins.readFile /etc/passwd}"},
        {**GITHUB, "owner": 'a"; x = "b'},
        {**GITHUB, "owner": 1},
        {**GITHUB, "lastModified": "1"},
        {key: value for key, value in GITHUB.items() if key != "narHash"},
        {key: value for key, value in GITHUB.items() if key != "rev"},
        {**TARBALL, "type": "indirect"},
        *(
            {**TARBALL, "url": url}
            for url in (
                "http://example.org/x",
                "https://127.0.0.1/x",
                "https://[::1]/x",
                "https://localhost/x",
                "https://router.lan/x",
                "https://db.internal/x",
                "https://example.org:8443/x",
                "https://user@example.org/x",
                "file:///home/u",
                "",
            )
        ),
    ],
)
def test_other_inputs_are_not_fetched(locked):
    assert nix_store.locked_inputs(lock(**locked)) is None


@pytest.mark.parametrize("text", [b"x", b"[]", b'{"nodes": []}', b'{"nodes": {"a": 1}}', b"\xff"])
def test_what_is_no_lock_file_is_refused(text):
    with pytest.raises(Failure, match="no lock file"):
        nix_store.locked_inputs(text)


def test_without_inputs_nothing_is_fetched():
    assert nix_store.locked_inputs(b"") is None
    assert nix_store.locked_inputs(b'{"nodes": {"root": {}}}') is None


# ---------------------------------------------------------------------------- answers


@pytest.mark.parametrize("path", [PATH, f"/nix/store/{HASH}-a"])
def test_a_store_path(path):
    assert nix_store.is_store_path(path)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "/nix/store",
            "/nix/store/",
            f"/nix/store/{HASH}",
            f"/nix/store/{HASH}-",
            f"{PATH}/bin",
        ),
        *(
            f"/nix/store/{HASH[:-1]}-a",
            f"/nix/store/{HASH}-a b",
            f"x{PATH}",
            f"{PATH}\n",
            f"{PATH}:",
        ),
        *(f"/nix/store/{'e' * 32}-a", f"/nix/store/{HASH.upper()}-a", f"/nix/storex/{HASH}-a"),
    ],
)
def test_no_store_path(path):
    assert not nix_store.is_store_path(path)


@pytest.mark.parametrize(
    "value",
    ["gcc", PATH, f"{PATH}/lib:{PATH}", f"-I{PATH}/include -O2", f"-L{PATH} -lfoo", "-isystem x"],
)
def test_values_of_the_store_are_taken_over(value):
    assert nix_store._leads_nowhere_else(value)


@pytest.mark.parametrize(
    "value",
    [
        "/usr/lib",
        f"{PATH}:/usr",
        f"{PATH}/../x",
        f"-I{PATH}/../..",
        "-I/usr",
        "a/b",
        "~/x",
        "é",
        "a\nb",
        *(
            f"{PATH}//x",
            f"-Wl,-rpath,/home{PATH}",
            "file:///etc/passwd",
            f"-I -I/home/{PATH}",
            "./x",
        ),
    ],
)
def test_values_that_lead_elsewhere_are_not(value):
    assert not nix_store._leads_nowhere_else(value)


def test_of_an_environment_only_what_is_known_is_taken_over():
    def exported(value):
        return {"type": "exported", "value": value}

    answer = {
        "bashFunctions": {"evil": "rm"},
        "variables": {
            "PATH": exported(f"{PATH}/bin:/usr/bin:.:{PATH}/bin"),
            "CC": exported("gcc"),
            "CXX": {"type": "array", "value": ["x"]},
            "LD_PRELOAD": exported(PATH),
            "shellHook": exported("evil"),
            "GOROOT": exported("/usr/lib/go"),
        },
    }
    assert nix_store._taken_over(answer) == [f"bin {PATH}/bin", "set CC=gcc"]
    assert nix_store._roots([f"bin {PATH}/bin", f"set X=-I{PATH}/i:{PATH}"]) == {PATH}


@pytest.mark.parametrize("answer", [None, [], {}, {"variables": []}])
def test_an_answer_that_is_no_environment_is_refused(answer):
    with pytest.raises(Failure, match="does not say"):
        nix_store._taken_over(answer)


def test_an_answer_that_is_no_json_is_an_error():
    with pytest.raises(Failure, match="printed no JSON"):
        nix_store._json(b"{", "say something")


@pytest.mark.parametrize("answer", [{}, [], {"url": 1}, {"url": "x y"}])
def test_a_flake_that_nix_does_not_name_is_not_taken(tmp_path, answer):
    class Memory:
        project_root = str(tmp_path)

    with pytest.raises(Failure, match="does not say what"):
        nix_store._lock("github:a/b", Memory(), lambda *_: answer)


@pytest.mark.parametrize("reference", ["#a b", ".#$(x)", "#x\ny"])
def test_a_development_shell_has_a_name_of_plain_letters(project, home, reference):
    with pytest.raises(Failure, match="is no name"):
        nix_store.devshell(reference, str(project), str(home), False)


@pytest.mark.parametrize("reference", ["path:/x", "/x", "git+file:///x", "file:///x#y"])
def test_another_flake_of_this_machine_is_not_evaluated(project, home, reference):
    with pytest.raises(Failure, match="other than the project's"):
        nix_store.devshell(reference, str(project), str(home), False)


def test_a_development_shell_needs_a_daemon(monkeypatch):
    monkeypatch.setattr(nix_store.nix, "decision", lambda *_: None)
    with pytest.raises(Failure, match="need a nix daemon"):
        nix_store._refuse_unsandboxed_builds(True)


def test_the_files_of_a_development_shell_are_bounded(project, monkeypatch):
    for name in ("flake.nix", "more.nix"):
        (project / name).write_text("{}")
    assert set(nix_store._flake_files(str(project), ())) == {"flake.nix", "more.nix"}
    monkeypatch.setattr(nix_store, "_FILE_LIMIT", 1)
    with pytest.raises(Failure, match="too many files"):
        nix_store._flake_files(str(project), ())


# ---------------------------------------------------------------------------- limits


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """Control groups that note in files what is asked of them, in the process that asks."""
    noted = tmp_path / "noted"

    class Groups:
        def __init__(self, wanted):
            noted.write_text(f"{sorted(wanted)}\n")

        def complete(self):
            self.note("complete")

        def enter(self):
            self.note(f"enter {os.getpid()}")

        def close(self):
            self.note("close")

        def note(self, words):
            with open(noted, "a") as file:
                file.write(words + "\n")

    monkeypatch.setattr(limits, "Groups", Groups)
    return noted


def test_what_works_on_a_projects_files_is_limited_as_a_session_is(groups):
    answer = nix_store._run_hostile(["/bin/sh", "-c", "echo $$"], "try", env={})
    pid = answer.decode().strip()
    wanted = sorted(policy.limits(1 << 30))
    assert groups.read_text() == f"{wanted}\ncomplete\nenter {pid}\nclose\n"


def test_what_cannot_be_limited_is_not_run(groups, monkeypatch, tmp_path):
    def refuse(_self):
        raise PermissionError(1, "no")

    monkeypatch.setattr(limits.Groups, "enter", refuse)
    with pytest.raises(Failure, match="cannot be limited"):
        nix_store._run_hostile(["/bin/sh", "-c", f"touch {tmp_path}/mark"], "try", env={})
    assert not (tmp_path / "mark").exists()
    assert groups.read_text().endswith("close\n")
