"""The user's git identity: asked of git, and remembered for as long as git's files stay the same."""

import os

from claudebox import host, policy

KEYS = "^(user\\.(name|email)|init\\.defaultbranch)$"
CACHE = "git-identity"
_LIMIT = 65536

# What a launch has yet to remember: the text of the cache, or nothing.
_unwritten = ""


class GitIdentity:
    """The user's name, mail address and default branch, asked of git while other work goes on.

    `git config` runs in `/`, so that no repository's configuration is read; nothing else of the
    user's configuration, which can hold tokens, is asked for. An answer of the system's own git is
    remembered in claudebox's own state together with the inode, size and change time of the files
    that git reads (git-config(1)); files that include others are asked about every time.
    """

    def __init__(self, project_root: str, home: str):
        git = host.find_program("git", project_root)
        self._pid = self._output = None
        self._answer = ""
        self._facts = None
        if git is None:
            return
        self._facts = _facts(git, home)
        if self._facts is not None:
            known = _remembered(policy.state_home(home))
            if known.startswith(self._facts):
                self._answer = known[len(self._facts) :]
                return
        self._output, output = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        keep = {
            name: value
            for name, value in os.environ.items()
            if name == "PATH" or name.startswith("XDG_CONFIG")
        }
        self._pid = os.posix_spawn(
            git,
            ["git", "-C", "/", "config", "-z", "--get-regexp", KEYS],
            {**keep, "HOME": home, "LC_ALL": "C", "GIT_DIR": "/dev/null"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
            ],
        )
        os.close(output)
        os.close(null)

    def settings(self) -> dict[str, str]:
        """Return what git answered, by lower-case key; empty if git is not there or says nothing."""
        if self._pid is not None:
            self._read()
        found = {}
        for entry in self._answer.split("\0"):
            key, separator, value = entry.partition("\n")
            if separator:
                found[key] = value
        return found

    def _read(self) -> None:
        answer = b""
        while len(answer) < _LIMIT:
            piece = os.read(self._output, _LIMIT)
            if not piece:
                break
            answer += piece
        os.close(self._output)
        os.waitpid(self._pid, 0)
        self._pid = None
        self._answer = os.fsdecode(answer)
        if self._facts is not None and len(answer) < _LIMIT:
            global _unwritten
            _unwritten = self._facts + self._answer


def remember(home: str) -> None:
    """Write what git answered in this process, if it did and may be remembered. No error matters."""
    global _unwritten
    text, _unwritten = _unwritten, ""
    if not text:
        return
    from claudebox import Failure
    from claudebox.sandbox import state

    try:
        cache = state.make_cache(policy.state_home(home))
        try:
            state.replace_file(cache, CACHE, text, f".{CACHE}.{os.getpid()}")
        finally:
            os.close(cache)
    except (OSError, Failure):
        pass


def _facts(git: str, home: str) -> str | None:
    """Return what has to be the same for git to answer the same, or None if that cannot be told."""
    if git != "/usr/bin/git":
        # Another git has its system's file where only it knows.
        return None
    configuration = os.environ.get("XDG_CONFIG_HOME") or home + "/.config"
    facts = []
    for path in (git, "/etc/gitconfig", configuration + "/git/config", home + "/.gitconfig"):
        try:
            status = os.stat(path)
        except OSError:
            facts.append(f"{path} -")
            continue
        facts.append(f"{path} {status.st_ino} {status.st_size} {status.st_ctime_ns}")
        if path != git:
            try:
                with open(path, "rb") as file:
                    if b"include" in file.read().lower():
                        return None
            except OSError:
                return None
    return "\n".join(facts) + "\n\n"


def _remembered(state_home: str) -> str:
    from claudebox import git

    return git.read_small_file(f"{state_home}/cache/{CACHE}", 2 * _LIMIT, binary=True) or ""
