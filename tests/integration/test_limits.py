"""A fork bomb, a memory hog and a full /tmp inside, and the host outside."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_lifecycle import wait_until

from claudebox.sandbox import libc, limits

ENFORCEABLE = limits.enforceable(os.getuid())
MIB = 1 << 20


def limited(world, script: str, *options, **given):
    """Run a shell script inside, under these limits."""
    plan = json.loads(
        world.run("claudebox", "plan", *options, "--shell", "--", "-c", script).stdout
    )
    plan["limits"].update(given)
    return world.run("claudebox-run", input=json.dumps(plan), stdin=None)


BOMB = """
import os, signal
first = os.getpid()
try:
    while True:
        os.fork()
except OSError:
    if os.getpid() != first:
        signal.pause()
print(len([name for name in os.listdir("/proc") if name.isdigit()]))
"""


@pytest.mark.parametrize("tier", ["none", "inet", "full"])
def test_a_fork_bomb_stops_at_the_limit(world, tier):
    (world.project / "bomb.py").write_text(BOMB)
    result = limited(world, "/usr/bin/python3 bomb.py", "--network", tier, processes=40)
    if ENFORCEABLE["processes"] is None:
        assert "number of processes cannot be limited" in world.inside("true").stderr
    else:
        assert 36 <= int(result.stdout) <= 40, result.stderr
    assert "Traceback" not in result.stderr


def test_the_limit_of_processes_is_each_sessions_own_and_not_the_users(world):
    if ENFORCEABLE["processes"] is not None:
        others = [subprocess.Popen(["sleep", "60"]) for _ in range(30)]
        try:
            assert limited(world, "echo $(echo ok)", processes=20).stdout == "ok\n"
        finally:
            for each in others:
                each.kill()
                each.wait()


HOG = """
import sys
hog = bytearray(256 << 20)
print("got it")
"""


def test_a_memory_hog_is_killed_where_there_are_control_groups_and_the_audit_says_where_not(world):
    (world.project / "hog.py").write_text(HOG)
    result = limited(world, "/usr/bin/python3 hog.py; echo $?", memory=128 * MIB)
    warned = "memory cannot be limited" in world.inside("true").stderr
    if ENFORCEABLE["memory"] is None:
        assert warned
    else:
        assert not warned
        assert result.stdout == f"{128 + signal.SIGKILL}\n", result.stderr


def test_a_full_tmp_is_full_at_its_limit(world):
    # /dev/shm and /var/tmp have half of it, /run a sixteenth.
    places = "/tmp ~ /var/tmp /dev/shm /run"
    script = f"for place in {places}; do head -c 40M /dev/zero >$place/full; stat -c %s $place/full; done"
    result = limited(world, script, tmp=16 * MIB)
    sizes = [16 * MIB, 16 * MIB, 8 * MIB, 8 * MIB, MIB]
    assert [int(line) for line in result.stdout.split()] == sizes
    assert result.stderr.count("No space left on device") == len(sizes)


def test_everything_in_memory_that_can_be_written_has_a_size(world):
    table = world.inside("cat /proc/self/mountinfo").stdout
    # What the host has in memory, perhaps its /tmp, is bound as any other place.
    hosts = {line.split(" ")[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    unbounded = []
    for line in table.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split(" ")[2] in hosts:
            continue
        kind, _, options = rest.split(" ", 2)
        writable = "rw" in fields.split(" ")[5].split(",")
        if kind in ("tmpfs", "ramfs") and writable and not re.search(r"\bsize=\d+", options):
            unbounded.append(fields.split(" ")[4])
    assert unbounded == []


@pytest.mark.parametrize("tier", ["inet", "full"])
def test_the_default_limits_stand_and_cannot_be_raised(world, tier):
    script = (
        "cat /proc/self/limits; cat /proc/self/oom_score_adj; ulimit -Hu 5000 || echo kept;"
        " echo -1000 >/proc/self/oom_score_adj || echo kept"
    )
    shown = world.inside(script, "--network", tier).stdout
    assert re.search(r"Max processes +4096 +4096", shown)
    # core(5): 1 keeps the kernel from starting a program outside for what crashes inside.
    assert re.search(r"Max core file size +1 +1", shown)
    assert shown.endswith("\n500\nkept\nkept\n")


def test_known_limit_a_session_of_a_user_can_lower_its_oom_score_adj_again(world):
    own = Path("/proc/self/oom_score_adj").read_text().strip()
    shown = world.inside(f"cd /proc/self; echo {own} >oom_score_adj; cat oom_score_adj").stdout
    # CAP_SYS_RESOURCE makes it the least that can be set (proc(5)); not all that root is has it.
    capabilities = re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[1]
    assert shown.split() == ["500" if int(capabilities, 16) >> 24 & 1 else own]


def test_no_process_of_a_sandbox_can_dump_core(world):
    shown = world.inside("grep -h 'core file' /proc/[0-9]*/limits").stdout
    assert {tuple(line.split()[4:6]) for line in shown.splitlines()} == {("1", "1")}
    assert len(shown.splitlines()) >= 2


def test_what_is_not_to_be_limited_is_not(world):
    result = limited(
        world, "ulimit -u; df --output=size /tmp", processes=None, memory=None, tmp=None
    )
    processes, _, size = result.stdout.split()
    own = subprocess.run(["bash", "-c", "ulimit -u"], capture_output=True, text=True).stdout
    assert processes == own.strip()
    assert int(size) > 0.4 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024


def groups_of(pid: int) -> list[str]:
    return [f"{place.directory}/{limits._beginning()}{pid}" for place in limits._places()]


@pytest.mark.parametrize("tier", ["inet", "full"])
def test_the_control_groups_are_gone_after_the_session_and_after_one_that_was_killed(world, tier):
    for kill in (False, True):
        session = world.start(
            "claudebox", "-y", "--network", tier, "--shell", "--", "-c", "echo up; read x", stdin=-1
        )
        assert session.stdout.readline() == "up\n"
        groups = groups_of(session.pid)
        assert all(map(os.path.isdir, groups))
        for group in groups:
            with open(group + "/cgroup.procs") as file:
                assert len(file.read().split()) >= 3
        if kill:
            session.kill()
        session.communicate("\n")

        def emptied(groups=groups):
            world.inside("true")
            return not any(map(os.path.exists, groups))

        wait_until(emptied, seconds=30)


DELEGATED = """
import os, sys
for directory in sys.argv[2:]:
    with open(directory + "/cgroup.procs", "w") as file:
        file.write("0")
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
sys.path.insert(0, "")
from claudebox.sandbox import limits
print(limits.enforceable(os.getuid()))
made = limits.Groups({"processes": 5, "memory": 1 << 26, "tmp": None})
told, tell = os.pipe()
child = made.fork()
if child == 0:
    os.read(told, 1)
    n = 0
    try:
        for n in range(9):
            if os.fork() == 0:
                os.read(0, 1)
                os._exit(0)
    except OSError:
        print("stopped at", n + 1, flush=True)
    os._exit(0)
made.move([child])
os.write(tell, b".")
os.waitpid(child, 0)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can hand a control group over")
def test_a_user_makes_groups_in_one_that_was_handed_over(tmp_path):
    places = [place for place in limits._places() if place.version == 1]
    if not places:
        pytest.skip("version 2 here: tests/unit has where groups are made there")
    directories = [f"{place.directory}/handed-over-{os.getpid()}" for place in places]
    try:
        for directory in directories:
            os.mkdir(directory)
            for path in (directory, f"{directory}/cgroup.procs"):
                os.chown(path, 12345, 12345)
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
        done = subprocess.run(
            [sys.executable, "-B", "-c", DELEGATED, "12345", *directories],
            cwd=root,
            input="",
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert "{'processes': 'group', 'memory': 'group'}" in done.stdout, done.stderr
        assert "stopped at 5" in done.stdout, done.stderr
    finally:
        for directory in directories:
            for name in os.listdir(directory):
                if name.startswith("claudebox-"):
                    os.rmdir(f"{directory}/{name}")
            os.rmdir(directory)


def test_a_process_can_be_made_in_a_control_group_of_version_2():
    with open("/proc/self/mountinfo") as file:
        tops = [line.split(" ")[4] for line in file if " - cgroup2 " in line]
    if not tops or not os.access(tops[0], os.W_OK):
        pytest.skip("no control group of version 2 can be made here")
    group = f"{tops[0]}/claudebox-test-{os.getpid()}"
    os.mkdir(group)
    try:
        descriptor = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        child = libc.fork_into(descriptor)
        if child == 0:
            with open("/proc/self/cgroup") as file:
                os._exit(0 if f"0::/{os.path.basename(group)}\n" in file.read() else 1)
        os.close(descriptor)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        os.rmdir(group)
