"""Kill launchers of the inet tier at random moments and count what each leaves behind.

One JSON argument: {sidecar: [name, path], resolv_conf, kills, longest (seconds), seed}. Prints JSON.
"""

import json
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import launch

from claudebox.sandbox import events, libc


def launcher(config: dict, started: int) -> None:
    """A launcher whose payload never ends."""
    loop = events.Loop()
    session, ended = launch.launch(config, loop, lambda message: None)
    os.write(started, b"1")
    loop.add(ended, lambda _: loop.stop())
    loop.run()
    session.close()


def left_over(seconds: float) -> list:
    """Wait for every orphan to end: those that did not, by name. They are children of this process."""
    end = time.monotonic() + seconds
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        if pid == 0:
            if time.monotonic() > end:
                return children()
            time.sleep(0.002)


def children() -> list:
    found = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            for pid in file.read().split():
                with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
                    found.append(cmdline.read().replace(b"\0", b" ").decode()[:80])
                os.kill(int(pid), signal.SIGKILL)
    return found


def main(options: dict) -> None:
    # PR_SET_CHILD_SUBREAPER
    libc.call("prctl", 36, 1, 0, 0, 0)
    config = {"payload": ["/bin/sleep", "1000"], "sidecars": [options["sidecar"]]}
    config["resolv_conf"] = options["resolv_conf"]
    moments = random.Random(options["seed"])
    left, complete = [], 0
    for _ in range(options["kills"]):
        started, started_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                launcher(config, started_end)
            finally:
                os._exit(1)
        os.close(started_end)
        time.sleep(moments.uniform(0, options["longest"]))
        os.set_blocking(started, False)
        try:
            complete += bool(os.read(started, 1))
        except BlockingIOError:
            pass
        os.kill(pid, signal.SIGKILL)
        os.close(started)
        left += left_over(5)
    print(json.dumps({"left": left, "complete": complete}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
