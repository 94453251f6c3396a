"""What git tracks, read from indexes that the real git wrote."""

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
