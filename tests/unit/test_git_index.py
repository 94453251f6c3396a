"""What git tracks, read from indexes that the real git wrote."""

import resource
import struct

import pytest

from claudebox import git_index


def tracked(root, *paths, repositories=()):
    found = git_index.tracked(str(root), [f"{root}/{path}" for path in paths], list(repositories))
    return [path[len(str(root)) + 1 :] for path in found]


@pytest.fixture
def files(repository, project, git):
    """The project, a repository that tracks some files."""
    repository(project)
    for name in (".env", "a/b/.env", "a/b.c", "keys/one", "x" * 200 + "/.env", "ü"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (project / "untracked").write_text("")
    git(project, "add", ".env", "a", "keys", "x" * 200, "ü")
    return project


def assert_right(root):
    paths = [".env", "untracked", "a/b/.env", "keys", "key", "a/b", "ü", "x" * 200 + "/.env"]
    expected = [path for path in paths if path not in ("untracked", "key")]
    assert tracked(root, *paths) == expected


@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_every_version_of_the_index_is_read(files, git, version):
    git(files, "update-index", "--index-version", version)
    if version == "3":
        # An extended entry makes git write version 3.
        (files / "later").write_text("")
        git(files, "add", "--intent-to-add", "later")
    assert (files / ".git/index").read_bytes()[7] == int(version)
    assert_right(files)


def test_a_split_index_is_read(files, git):
    git(files, "update-index", "--split-index")
    (files / "more").write_text("")
    git(files, "add", "more")
    git(files, "rm", "-q", "--cached", "keys/one")
    assert list((files / ".git").glob("sharedindex.*"))
    assert tracked(files, ".env", "more", "a/b/.env", "nothing") == [".env", "more", "a/b/.env"]


def test_an_index_of_sha256_is_read(project, git):
    git(project, "init", "-q", "--object-format=sha256")
    (project / ".env").write_text("")
    git(project, "add", ".env")
    assert tracked(project, ".env", "other") == [".env"]


def test_a_path_belongs_to_the_nearest_repository(files, repository, git):
    nested = repository(files / "nested")
    (nested / ".env").write_text("")
    (nested / "key").write_text("")
    git(nested, "add", "key")
    found = tracked(files, "nested/.env", "nested/key", ".env", repositories=[str(nested)])
    assert sorted(found) == [".env", "nested/key"]


def test_a_worktree_has_an_index_of_its_own(files, git, tmp_path):
    git(files, "commit", "-q", "-m", "x")
    git(files, "worktree", "add", "-q", str(tmp_path / "side"))
    (tmp_path / "side/new").write_text("")
    git(tmp_path / "side", "add", "new")
    assert tracked(tmp_path / "side", ".env", "new", "other") == [".env", "new"]
    assert tracked(files, "new") == []


def test_nothing_is_tracked_where_there_is_no_repository_or_no_index(project, git):
    assert tracked(project, ".env") == []
    git(project, "init", "-q")
    assert tracked(project, ".env") == []


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:40],
        lambda data: data[:-40],
        lambda data: b"TREE" + data[4:],
        lambda data: data[:4] + b"\0\0\0\x09" + data[8:],
        lambda data: data[:8] + b"\xff\xff\xff\xff" + data[12:],
        lambda data: data.replace(b".env\0", b".en\0\0", 1),
    ],
)
def test_a_broken_index_is_told_apart_from_one_that_tracks_nothing(files, change):
    index = files / ".git/index"
    index.write_bytes(change(index.read_bytes()))
    with pytest.raises(git_index.UnreadableIndex):
        tracked(files, ".env")


def entry(name, version, cut=0):
    """Return an entry of an index; of version 4, one that keeps all of the name before but `cut`."""
    head = bytes(60) + struct.pack(">H", min(len(name), 0xFFF))
    if version == 4:
        return head + bytes([cut]) + name[-1:] + b"\0"
    return (head + name).ljust((len(head) + len(name)) // 8 * 8 + 8, b"\0")


def index(version, entries, rest=b""):
    return (
        b"DIRC" + struct.pack(">II", version, len(entries)) + b"".join(entries) + rest + bytes(20)
    )


@pytest.fixture
def little_memory():
    """Let this process have 256 MiB more than it has, so that a bomb fails here."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


BOMBS = {
    "one name of many directories": index(2, [entry(b"a/" * 100_000, 2)]),
    "many long names": index(2, [entry(b"%d/" % n + b"a/" * 2000, 2) for n in range(500)]),
    "names that grow": index(4, [entry(b"a" * n, 4) for n in range(1, 60_000)]),
    "a number without end": index(4, [bytes(60) + b"\0\1" + b"\xff" * 300_000]),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_index_cannot_take_all_memory(files, alarm, little_memory, name):
    alarm(20)
    (files / ".git/index").write_bytes(BOMBS[name])
    try:
        assert tracked(files, ".env") == []
    except git_index.UnreadableIndex:
        pass


def test_a_shared_index_that_is_split_from_itself_is_not_read_for_ever(files, alarm):
    alarm(20)
    link = b"link" + struct.pack(">I", 20) + b"\1" * 20
    (files / ".git/index").write_bytes(index(2, [], link))
    (files / ".git" / ("sharedindex." + "01" * 20)).write_bytes(index(2, [], link))
    with pytest.raises(git_index.UnreadableIndex):
        tracked(files, ".env")


def test_reading_the_index_runs_nothing_that_the_repository_configures(files, git):
    git(files, "config", "core.fsmonitor", f"touch {files}/ran; false")
    git(files, "config", "core.hooksPath", f"{files}")
    assert tracked(files, ".env") == [".env"]
    assert not (files / "ran").exists()


def test_a_link_in_the_place_of_an_index_is_not_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"DIRC" + bytes(100))
    (tmp_path / "index").symlink_to("real")
    with pytest.raises(git_index.UnreadableIndex) as caught:
        git_index._content(f"{tmp_path}/index")
    # By the link, not by what it leads to.
    assert isinstance(caught.value.__cause__, OSError)
