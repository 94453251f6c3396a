"""The smallest launcher of the inet tier: start a payload in bwrap, wait for it, say how it went.

Run inside the world's host namespace with one JSON argument; see `main` for its keys. What it has
to say comes on stdout as a line that begins with REPORT.
"""

import json
import os
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from claudebox import Failure
from claudebox.sandbox import events, inet, inet_namespaces, nftables

GATE = 'echo ready >&"$1"; read answer <&"$2" || exit 125; shift 2; exec "$@"'


def bwrap(payload: list, gate: tuple, identity: tuple) -> None:
    """Exec bwrap around a payload that waits for an answer before it begins."""
    ready, answer = gate
    uid, gid = identity
    resolv = os.memfd_create("resolv.conf", 0)
    os.write(resolv, b"nameserver 127.0.0.1\noptions timeout:5 attempts:1\n")
    os.lseek(resolv, 0, os.SEEK_SET)
    arguments = ["bwrap", "--unshare-user", "--uid", str(uid), "--gid", str(gid), "--unshare-pid"]
    arguments += ["--unshare-ipc", "--unshare-uts", "--die-with-parent", "--cap-drop", "ALL"]
    arguments += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    arguments += ["--ro-bind-data", str(resolv), os.path.realpath("/etc/resolv.conf")]
    for descriptor in (ready, answer):
        os.set_inheritable(descriptor, True)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    arguments += ["--", "/bin/sh", "-c", GATE, "gate", str(ready), str(answer), *payload]
    os.execvp("bwrap", arguments)


def break_on_purpose(what: str) -> None:
    """Take away what the tier relies on, for tests of what happens then."""
    if what == "filter off":
        nftables.install = lambda *_: None
    elif what == "filter refused":
        whole = nftables.rules
        nftables.rules = lambda allow: [*whole(allow), ("nosuch", [nftables._TO_REFUSE])]
    elif what == "filter incomplete":
        whole_batches = nftables.batches
        nftables.batches = lambda rules, sets: whole_batches(rules[:-3], sets)
    elif what == "holder hangs":
        inet_namespaces._make_namespaces = lambda *_: time.sleep(100)


def launch(config: dict, loop, on_offline):
    """Start a session whose payload runs when this returns: (session, a pidfd of it)."""
    break_on_purpose(config.get("broken", ""))
    identity = os.geteuid(), os.getegid()
    ready, ready_end = os.pipe()
    answer_end, answer = os.pipe()

    def exec_payload():
        # Ours of the gate have to be closed for the other side's end to be seen.
        os.close(ready)
        os.close(answer)
        if config.get("broken") == "exec":
            os.execv("/nonexistent/bwrap", ["bwrap"])
        if config.get("broken") == "return":
            return
        bwrap(config["payload"], (ready_end, answer_end), identity)

    allow = [inet.parse_allow(each) for each in config.get("allow", [])]
    timeout = config.get("timeout", 10)
    listeners = len(inet.listened_on(allow))
    session = inet.start(
        inet_namespaces.Namespaces(exec_payload, listeners, timeout),
        loop,
        sidecars=config.get("sidecars"),
        allow=allow,
        timeout=timeout,
        resolv_conf=config.get("resolv_conf", "/etc/resolv.conf"),
        on_offline=on_offline,
    )
    os.close(ready_end)
    os.close(answer_end)
    try:
        session.wait_until_joined()
    except BaseException:
        session.close()
        session.end_payload()
        raise
    if os.read(ready, 16):
        os.write(answer, b"go\n")
    os.close(ready)
    return session, os.pidfd_open(session.pid)


def main(config: dict) -> None:
    """Keys: payload, and optionally sidecars, allow, timeout, resolv_conf, broken."""
    report = {"offline": []}
    loop = events.Loop()
    abstract = socket.socket(socket.AF_UNIX)  # what attacks.py looks for
    abstract.bind("\0claudebox-test-world")
    abstract.listen()
    try:
        session, ended = launch(config, loop, report["offline"].append)
    except Failure as failure:
        report.update(failure=failure.what, todo=failure.todo)
        try:
            os.waitpid(-1, os.WNOHANG)
            report["left"] = "a child"
        except ChildProcessError:
            report["left"] = None
    else:
        started = {"sidecar": session.sidecar, "pid": session.pid, "launcher": os.getpid()}
        started["sidecar_pid"] = session._process.pid
        print("REPORT", json.dumps(started), flush=True)
        loop.add(ended, lambda _: loop.stop())
        begin = events.now()
        loop.run()
        report["seconds"] = events.now() - begin
        session.close()
        report["status"] = os.waitstatus_to_exitcode(os.waitpid(session.pid, 0)[1])
        report["sidecar"] = session.sidecar
        report["descriptors"] = len(os.listdir("/proc/self/fd"))
    print("REPORT", json.dumps(report), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
