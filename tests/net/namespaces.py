"""Runs a function in a throw-away user and network namespace, for tests of single modules."""

import os
import traceback

from claudebox.sandbox import libc


def in_namespace(function) -> None:
    """Run `function()` in a child inside new namespaces; AssertionError with its traceback if it fails."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            uid, gid = os.geteuid(), os.getegid()
            libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNET)
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"0 {uid} 1"),
                ("gid_map", f"0 {gid} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
            function()
        except BaseException:
            os.write(writer, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(pid, 0)
    if text:
        raise AssertionError(text)
