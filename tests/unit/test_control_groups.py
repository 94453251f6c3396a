"""Where a session gets control groups of its own, and what is written into them."""

import _thread
import os
import signal
import threading
import time

import pytest

from claudebox import Failure, policy
from claudebox.sandbox import limits

GIB = 1 << 30
OWN = f"claudebox-{os.stat('/proc/self/ns/pid').st_ino}-"


@pytest.mark.parametrize("memory", [1 << 29, 8 * GIB, 24 * GIB + 12345, 2048 * GIB])
def test_the_default_limits_are_parts_of_the_machine(memory):
    found = policy.limits(memory)
    assert found["processes"] == 4096
    assert memory * 0.7 < found["memory"] <= memory * 0.75
    assert found["memory"] % (1 << 20) == found["tmp"] % (1 << 20) == 0
    # All that a session can write to memory.
    targets = ("/tmp", "/home/u", "/var/tmp", "/dev/shm", "/run")
    mounts = [{"kind": "tmpfs", "target": target} for target in targets]
    assert sum(policy.tmpfs_size(mount, found["tmp"]) for mount in mounts) < memory * 0.8


@pytest.fixture
def tree(tmp_path):
    """Make a control group of version 2 with groups below it, and the tables that say where we are."""

    def make(path, passed_on="memory pids", version=2, root="/"):
        top = tmp_path / "cgroup"
        here = top
        for part in ("", *path.removeprefix(root).strip("/").split("/")):
            here = here / part
            here.mkdir(exist_ok=True)
            (here / "cgroup.subtree_control").write_text(passed_on + "\n")
            (here / "cgroup.procs").write_text("")
        own, table = tmp_path / "own", tmp_path / "table"
        if version == 2:
            own.write_text(f"1:name=systemd:/x\n0::{path}\n")
            table.write_text(
                "21 1 0:1 / /proc rw - proc proc rw\n"
                f"22 1 0:2 {root} {top} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
            )
        else:
            own.write_text(f"3:cpu,pids:{path}\n2:memory:{path}\n0::/\n")
            table.write_text(
                f"22 1 0:2 {root} {top} rw - cgroup cgroup rw,cpu,pids\n"
                f"23 1 0:3 {root} {top} rw - cgroup cgroup rw,memory\n"
                f"24 1 0:4 {root} {top}/cpuset rw - cgroup cgroup rw,cpuset\n"
            )
        return [
            (place.directory.removeprefix(str(top)), place.controllers, place.version)
            for place in limits._places(str(own), str(table))
        ]

    return make


def test_in_version_2_the_group_is_a_sibling_of_ours(tree):
    assert tree("/user/app/term.scope") == [("/user/app", ["pids", "memory"], 2)]


def test_in_version_2_the_nearest_group_above_that_passes_controllers_on_is_taken(tree, tmp_path):
    assert tree("/user/app/konsole/tab") == [("/user/app/konsole", ["pids", "memory"], 2)]
    for name in ("/user/app/konsole", "/user/app"):
        (tmp_path / f"cgroup{name}/cgroup.subtree_control").write_text("cpu\n")
    places = limits._places(str(tmp_path / "own"), str(tmp_path / "table"))
    assert [place.directory for place in places] == [str(tmp_path / "cgroup/user")]


def test_at_the_top_of_version_2_the_group_is_a_child(tree):
    assert tree("/") == [("", ["pids", "memory"], 2)]


def test_a_part_of_the_tree_can_be_mounted(tree):
    assert tree("/docker/1/app/x", root="/docker/1") == [("/app", ["pids", "memory"], 2)]
    assert tree("/elsewhere/x", root="/docker/1") == []


def test_only_controllers_that_are_passed_on_count(tree):
    assert tree("/user/app/x", passed_on="cpu memory") == [("/user/app", ["memory"], 2)]
    assert tree("/user/app/x", passed_on="cpu") == []


def test_in_version_1_the_groups_are_children_one_for_each_controller(tree):
    assert tree("/user/app", version=1) == [
        ("/user/app", ["pids"], 1),
        ("/user/app", ["memory"], 1),
    ]


def test_a_group_that_cannot_be_written_is_no_place(tree, monkeypatch):
    monkeypatch.setattr(limits.os, "access", lambda path, mode: not path.endswith(".procs"))
    assert tree("/user/app/x") == []
    monkeypatch.setattr(limits.os, "access", lambda path, mode: path.endswith(".procs"))
    assert tree("/user/app/x") == []
    assert tree("/user/app", version=1) == []


def test_without_control_groups_there_is_no_place():
    assert limits._places("/nonexistent", "/proc/self/mountinfo") == []


@pytest.mark.parametrize(
    ("controllers", "user", "processes", "memory"),
    [
        (["pids", "memory"], 1000, "group", "group"),
        (["memory"], 1000, "process", "group"),
        ([], 1000, "process", None),
        ([], 0, None, None),
        (["pids"], 0, "group", None),
    ],
)
def test_what_this_host_can_enforce(monkeypatch, controllers, user, processes, memory):
    place = limits._Place("/nonexistent", controllers, 2)
    monkeypatch.setattr(limits, "_places", lambda: [place])
    assert limits.enforceable(user) == {"processes": processes, "memory": memory}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Have sessions make their groups in a directory."""

    def at(*versions):
        found = []
        for controllers, version in versions:
            directory = tmp_path / f"{controllers[0]}{version}"
            directory.mkdir()
            found.append(limits._Place(str(directory), controllers, version))
        monkeypatch.setattr(limits, "_places", lambda: found)
        return [f"{place.directory}/{OWN}{os.getpid()}" for place in found]

    return at


def content(directory):
    found = {}
    for name in os.listdir(directory):
        with open(f"{directory}/{name}") as file:
            found[name] = file.read()
    return found


LIMITS = {"processes": 100, "memory": 1 << 20, "tmp": 5}


def test_a_group_of_version_2_gets_both_limits_and_no_swap(places):
    (group,) = places((["pids", "memory"], 2))
    limits.Groups(LIMITS)
    assert content(group) == {"pids.max": "100", "memory.max": "1048576", "memory.swap.max": "0"}


def test_groups_of_version_1_get_one_limit_each_and_the_processes(places):
    pids, memory = places((["pids"], 1), (["memory"], 1))
    groups = limits.Groups(LIMITS)
    assert not os.path.exists(pids)
    child = groups.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    groups.move([8])
    assert content(pids) == {"pids.max": "100", "cgroup.procs": "8"}
    assert content(memory) == {
        "memory.limit_in_bytes": "1048576",
        "memory.memsw.limit_in_bytes": "1048576",
        "cgroup.procs": "8",
    }


def test_what_is_not_limited_needs_no_group(places):
    pids, memory = places((["pids"], 1), (["memory"], 1))
    groups = limits.Groups({"processes": None, "memory": 1, "tmp": None})
    groups._begin_to_move(7)
    groups.move([7])
    assert not os.path.exists(pids) and os.path.exists(memory)


def test_the_groups_are_removed_and_so_are_those_of_killed_launchers(places):
    (group,) = places((["memory"], 2))
    directory = os.path.dirname(group)
    dead, alive = f"{directory}/{OWN}{2**22 + 1}", f"{directory}/{OWN}1"
    # Of a launcher that has pids of its own nothing can be said.
    elsewhere = f"{directory}/claudebox-1-{2**22 + 1}"
    for each in (dead, alive, f"{directory}/{OWN}x", elsewhere):
        os.mkdir(each)
    groups = limits.Groups(LIMITS)
    assert not os.path.exists(dead) and os.path.exists(alive)
    for name in os.listdir(group):
        os.unlink(f"{group}/{name}")
    groups.close()
    assert set(os.listdir(directory)) == {f"{OWN}1", f"{OWN}x", os.path.basename(elsewhere)}
    groups.close()


def test_a_group_that_cannot_be_made_stops_the_launch(places):
    (group,) = places((["memory"], 2))
    with open(group, "w"):
        pass
    with pytest.raises(Failure, match="control group cannot be made"):
        limits.Groups(LIMITS)


def test_a_group_of_version_1_that_cannot_be_made_stops_the_launch_when_it_is_needed(places):
    """The process is there already by then: at its gate."""
    (group,) = places((["memory"], 1))
    with open(group, "w"):
        pass
    groups = limits.Groups(LIMITS)
    child = groups.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(Failure, match="control group cannot be made"):
        groups.move([child])
    os.unlink(group)
    groups.close()


def test_a_signal_when_the_moving_begins_does_not_hang_the_clean_up(places, monkeypatch):
    (group,) = places((["memory"], 1))

    def interrupted(*_):
        raise KeyboardInterrupt

    groups = limits.Groups(LIMITS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_thread, "start_new_thread", interrupted)
        groups._begin_to_move(7)
    for name in os.listdir(group):
        os.unlink(f"{group}/{name}")
    closing = threading.Thread(target=groups.close, daemon=True)
    closing.start()
    closing.join(timeout=10)
    assert not closing.is_alive() and not os.path.exists(group)


def test_a_group_of_version_2_outlives_one_of_version_1_that_cannot_be_made(places):
    """A process is in it: it is removed at the end."""
    group, other = places((["memory"], 2), (["pids"], 1))
    with open(other, "w"):
        pass
    groups = limits.Groups(LIMITS)
    groups._begin_to_move(7)
    with pytest.raises(Failure, match="control group cannot be made"):
        groups.move([7])
    for name in os.listdir(group):
        os.unlink(f"{group}/{name}")
    groups.close()
    assert not os.path.exists(group)


def test_without_a_thread_to_spare_processes_are_moved_all_the_same(places, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    (group,) = places((["memory"], 1))
    groups = limits.Groups(LIMITS)
    groups._begin_to_move(7)
    groups.move([7, 8])
    assert content(group)["cgroup.procs"] == "8"


def test_a_signal_while_a_move_is_waited_for_does_not_hold_up_the_end(places, monkeypatch):
    class Rang(Exception):
        pass

    def ring(*_):
        raise Rang

    def move(process, moving):
        time.sleep(0.1)
        moved(process, moving)
        # Before whoever waits can go on: this thread holds the interpreter.
        os.kill(os.getpid(), signal.SIGUSR1)

    places((["memory"], 1))
    groups = limits.Groups({"processes": None, "memory": 1, "tmp": None})
    moved = groups._move_beside
    monkeypatch.setattr(groups, "_move_beside", move)
    before = signal.signal(signal.SIGUSR1, ring)
    try:
        groups._begin_to_move(7)
        with pytest.raises(Rang):
            groups.move([7])
        assert groups._moving.acquire(timeout=1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_child_can_enter_all_groups_before_it_executes_a_program(places):
    pids, memory = places((["pids"], 1), (["memory"], 1))
    groups = limits.Groups(LIMITS)
    groups.complete()
    groups.enter()
    assert content(pids)["cgroup.procs"] == content(memory)["cgroup.procs"] == "0"
