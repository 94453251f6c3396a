"""The usual tools of a developer, at work inside the system call filter."""

import os

import pytest


def works(world, script: str, *options) -> str:
    """Run a shell script inside, which has to end well, and return what it printed."""
    result = world.inside(f"set -e; {script}", *options, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_git_commits_and_clones(repository):
    shown = works(
        repository, "echo two >file; git commit -qam second; git clone -q . /tmp/c; cat /tmp/c/file"
    )
    assert shown == "two\n"


def test_python_makes_processes_threads_locks_and_shared_memory(world):
    (world.project / "work.py").write_text(
        """
import concurrent.futures, multiprocessing, multiprocessing.shared_memory, subprocess, sys, threading


def square(number):
    return number * number


if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            assert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]
    with multiprocessing.Lock():
        pass
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 20)
    memory.buf[0] = 1
    memory.close()
    memory.unlink()
    thread = threading.Thread(target=subprocess.run, args=(["true"],), kwargs={"check": True})
    thread.start()
    thread.join()
    print("done")
"""
    )
    assert works(world, "/usr/bin/python3 work.py") == "done\n"


def test_python_makes_a_virtual_environment_with_pip(world):
    script = "/usr/bin/python3 -m venv --without-pip /tmp/v; /tmp/v/bin/python -c 'print(6 * 7)'"
    assert works(world, f"{script}; /usr/bin/python3 -m pip --version").startswith("42\npip ")


def test_node_has_threads_processes_and_files(world):
    (world.project / "work.js").write_text(
        """
const { Worker, isMainThread, parentPort } = require("worker_threads");
if (isMainThread) {
  require("fs").promises.readFile(__filename).then(() => {
    require("child_process").execFileSync("true");
    new Worker(__filename).once("message", (word) => console.log(word));
  });
} else {
  parentPort.postMessage("done");
}
"""
    )
    assert works(world, "node work.js; npm --version").startswith("done\n")


def test_a_process_can_be_traced(world):
    assert "execve" in works(world, "strace -f -o /tmp/trace sh -c /usr/bin/true; cat /tmp/trace")


def test_no_namespace_can_be_made(world):
    kinds = "user mount net pid ipc uts cgroup time"
    result = world.inside(f"for kind in {kinds}; do unshare --$kind true; echo $?; done")
    assert result.stdout == "1\n" * 8
    assert result.stderr.count("unshare failed: Operation not permitted") == 8


NESTED = (
    "bwrap --unshare-all --ro-bind /usr /usr --symlink usr/lib /lib --symlink usr/lib64 /lib64"
    " --bind /proc /proc --dev /dev --tmpfs /tmp /usr/bin/echo nested"
)


# Of a process without CAP_SETFCAP a child namespace cannot map uid 0 (user_namespaces(7)).
not_for_root = pytest.mark.skipif(os.getuid() == 0, reason="uid 0 cannot be mapped once more")


def nested(world, script: str):
    """Run a shell script inside, in a plan that lets namespaces be nested."""
    pipeline = (
        'claudebox plan --shell -- -c "$1" | jq ".bwrap.disable_userns = false"'
        " | claudebox-audit --yes | claudebox-run"
    )
    return world.run("bash", "-c", pipeline, "bash", script)


def test_a_sandbox_inside_the_sandbox_is_refused(world):
    result = world.inside(NESTED)
    assert (result.returncode, result.stdout) == (1, "")
    assert "No permissions to create" in result.stderr


@not_for_root
def test_a_plan_can_let_a_sandbox_be_made_inside_the_sandbox(world):
    result = nested(world, NESTED)
    assert (result.returncode, result.stdout) == (0, "nested\n"), result.stderr
    assert "! nested namespaces" in result.stderr


def test_known_limit_root_cannot_nest_namespaces(world):
    if os.getuid() == 0:
        result = nested(world, NESTED)
        assert (result.returncode, result.stdout) == (1, "")
        assert "uid map" in result.stderr


@not_for_root
def test_nested_namespaces_undo_no_mount(world):
    (world.home / ".ssh").mkdir()
    (world.home / ".ssh" / "key").write_text("canary")
    (world.project / ".mcp.json").write_text("{}")
    script = (
        "unshare --user --map-root-user --mount sh -c '"
        'umount ~; cat ~/.ssh/key; mount -o remount,rw,bind "$PWD/.mcp.json";'
        ' umount -l "$PWD/.mcp.json"; echo bad >.mcp.json; mount -t tmpfs x /mnt; echo end\''
    )
    result = nested(world, script)
    assert result.stdout == "end\n", result.stderr
    assert (world.project / ".mcp.json").read_text() == "{}"


@not_for_root
def test_known_limit_nested_namespaces_have_no_proc_of_their_own(world):
    # The kernel makes no new one where a part of the present one is covered.
    result = nested(world, NESTED.replace("--bind /proc /proc", "--proc /proc"))
    assert (result.returncode, result.stdout) == (1, "")
    assert "Can't mount proc" in result.stderr
