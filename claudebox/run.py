"""claudebox-run: launches a plan, stays beside the session, and cleans up after it."""

import _signal
import fcntl
import gc
import os
import sys

from claudebox import Failure, baked, git, git_identity, host, policy, project
from claudebox.sandbox import bwrap

# The payload waits in this shell until the launcher has seen that it is up, and never starts if the
# launcher is gone: `--die-with-parent` alone lets 81 of 300 payloads survive a SIGKILL in bwrap's
# first milliseconds. bwrap's own words go to a pipe as long; 7 is the session's real stderr.
_GATE = 'printf . >&8 && read -r go <&9 || exit 125; exec "$@" 2>&7 7>&- 8>&- 9<&-'
_REAL_STDERR, _READY, _GO = 7, 8, 9
_FIRST_DATA_DESCRIPTOR = 10
# Seconds that an unwanted bwrap may take to notice it.
_PATIENCE = 5
# Changed files that are named at the end of a session.
_REPORTED = 20

_FORWARDED = (_signal.SIGTERM, _signal.SIGHUP)
_FROM_TERMINAL = (_signal.SIGINT, _signal.SIGQUIT)
_NAMES = {
    _signal.SIGTERM: "TERM",
    _signal.SIGHUP: "HUP",
    _signal.SIGINT: "INT",
    _signal.SIGQUIT: "QUIT",
}


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived before the payload ran."""

    def __init__(self, number: int):
        self.number = number


class _Sandbox:
    """A bwrap process that holds its payload at the gate until `open_gate`."""

    def __init__(self, pid: int, ready: int, go: int, errors: int, network, expected: dict):
        self.pid = pid
        # In the tier inet bwrap is the first process of a pid namespace and hears no SIGTSTP.
        self._stops_along = pid if network is None else network.witness
        self._expected = expected
        self._network = network
        self._ready = ready
        self._go = go
        self._errors = errors
        self.ended = False

    def wait_until_ready(self) -> None:
        """Return when the payload stands at the gate, and its network is there.

        Raises Failure with bwrap's words, or those of what makes the network, otherwise.
        """
        if self._network is not None:
            self._network.wait_until_joined()
        if os.read(self._ready, 1):
            return
        os.close(self._go)
        self._go = None
        words = os.read(self._errors, 4096).decode(errors="replace").strip()
        self.wait()
        self.ended = True
        from claudebox.sandbox import diagnosis

        raise Failure(*diagnosis.explain(words))

    def processes(self) -> list[int]:
        """Return bwrap, its child, which is pid 1 inside, and the payload at the gate."""
        first = _children(self.pid)
        payload = _children(first[0]) if first else []
        if not payload:
            raise Failure("the sandbox ended before its payload started", "start it again")
        return [self.pid, first[0], payload[0]]

    def expect_mounts(self, plan: dict):
        """Return the Expectation that its payload sees exactly the mounts of `plan`."""
        from claudebox.sandbox import sources

        return sources.Expectation(plan, self._expected)

    def hold_to_limits(self, of_sandbox: list[int], groups, processes: int | None) -> None:
        """Limit the payload at the gate, in the control groups and by itself.

        `of_sandbox` are its processes().
        """
        from claudebox.sandbox import limits

        try:
            groups.move(of_sandbox)
            limits.hold(of_sandbox, processes)
        except OSError as error:
            raise Failure(
                f"the sandbox could not be limited: {error.strerror}", "start it again"
            ) from None

    def open_gate(self) -> None:
        """Let the payload start."""
        os.write(self._go, b"\n")
        os.close(self._go)
        self._go = None

    def abandon(self) -> None:
        """End a sandbox whose payload has not started: at its gate it sees that nobody is there.

        bwrap is not killed if it can be avoided: its child waits forever for a word from it when
        that happens before the child's own --die-with-parent (bubblewrap 0.8.0).
        """
        if self._go is not None:
            os.close(self._go)
            self._go = None
        from time import monotonic, sleep

        end = monotonic() + _PATIENCE
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if monotonic() > end:
                for process in (*_children(self.pid), self.pid):
                    os.kill(process, _signal.SIGKILL)
                self.wait()
                return
            sleep(0.002)
        self.leave_network()

    def wait(self) -> int:
        """Return the exit status of the payload, 128 + n if signal n ended it."""
        _, status = os.waitpid(self.pid, 0)
        if self._network is not None:
            # Its end takes the kernel a moment: that goes on beside what is left to do.
            self._network.stop()
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def leave_network(self) -> None:
        """End what joins the sandbox to the internet, and release it."""
        if self._network is not None:
            self._network.close()
            self._network = None

    def stop_along(self, *_) -> None:
        """Stop the process group where the session stopped itself: what a full-screen program does on ^Z.

        Its signal to the group reached what is inside the Landlock scope, and no one else.
        """
        try:
            if os.waitid(os.P_PID, self._stops_along, os.WSTOPPED | os.WNOHANG) is None:
                return
            if os.tcgetpgrp(0) == os.getpgrp():
                os.kill(0, _signal.SIGTSTP)
        except OSError:
            pass

    def forward(self, number: int) -> None:
        """Send a signal to the payload: the child of bwrap's own child, which is pid 1 inside."""
        for first in _children(self.pid):
            for payload in _children(first):
                try:
                    os.kill(payload, number)
                except ProcessLookupError:
                    # The signal went to the process group, and has ended it.
                    pass


def _children(parent: int) -> list[int]:
    try:
        # Not every kernel is built with it.
        with open(f"/proc/{parent}/task/{parent}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        pass
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(name))
    return found


def launch(plan: dict, at_gate=None) -> int:
    """Launch `plan`, wait for the session to end, clean up, and return its exit status.

    `at_gate` is for a plan that this process made just now: it is called instead of what holds
    other plans against the policy, beside bwrap's work and before the payload may start. Raises
    Failure if the plan breaks the policy or the sandbox cannot be made, and what `at_gate` raises;
    nothing of the payload has run then.
    """
    from claudebox.sandbox import held_signals, limits, standins, state

    if at_gate is None:
        from claudebox import enforcement

        enforcement.refuse_unsafe(plan)
    _tidy_descriptors()
    restored = [number for number in _NAMES if _signal.getsignal(number) != _signal.SIG_IGN]
    sandbox = opened = mirror = groups = terminal = None
    locks = []
    ending = []
    started = False
    signals = held_signals.HeldSignals()

    def arrived(number, _frame):
        if started:
            if not sandbox.ended:
                sandbox.forward(number)
            return
        # One is enough: a second would end the clean-up in its middle.
        for each in (*_FORWARDED, _signal.SIGINT):
            _signal.signal(each, _signal.SIG_IGN)
        ending.append(KeyboardInterrupt() if number == _signal.SIGINT else _Terminated(number))
        raise ending[0]

    def lost(unraisable):
        if unraisable.exc_value not in ending:
            sys.__unraisablehook__(unraisable)

    try:
        sys.unraisablehook = lost
        for number in (*_FORWARDED, _signal.SIGINT):
            if number in restored:
                _signal.signal(number, arrived)
        opened = state.prepare(plan)
        mirror = _mirror(plan)
        standins.make(plan, opened.directory, locks)
        place = plan["project"]
        loop = _event_loop(plan, mirror)
        signals.hold()
        groups = limits.Groups(plan["limits"])
        sandbox = _spawn(plan, restored, loop, signals, groups.fork)
        signals.release()
        # While bwrap works, which takes longer than all of this.
        if at_gate is not None:
            at_gate()
        state.seed(opened, plan)
        git_identity.remember(plan["user"]["home"])
        from claudebox.sandbox import watch

        before = watch.fingerprint(place)
        repositories = set(project.walk(place["root"])["repositories"])
        terminal = _terminal_state()
        expected = sandbox.expect_mounts(plan)
        sandbox.wait_until_ready()
        of_sandbox = sandbox.processes()
        expected.refuse_other(of_sandbox[1])
        sandbox.hold_to_limits(of_sandbox, groups, plan["limits"]["processes"])
        for number in _FROM_TERMINAL:
            _signal.signal(number, _signal.SIG_IGN)
        if ending:
            # What it raised was lost, as Python loses it in the import system's callbacks.
            raise ending[0]
        if terminal is not None:
            _signal.signal(_signal.SIGCHLD, sandbox.stop_along)
        started = True
        try:
            sandbox.open_gate()
            return _attend(sandbox, loop, mirror)
        except BaseException:
            sandbox.abandon()
            raise
        finally:
            # Whatever went wrong here, what the session left behind has to be told.
            sandbox.ended = True
            _restore_terminal(terminal)
            _report(watch.changes(before, watch.fingerprint(place)), place["root"])
            _report_repositories(repositories, place["root"])
    except _Terminated as terminated:
        return 128 + terminated.number
    finally:
        signals.hold()
        # Any of them would end this in its middle.
        for number in (*_FORWARDED, _signal.SIGINT):
            _signal.signal(number, _signal.SIG_IGN)
        if sandbox is not None and not sandbox.ended:
            sandbox.abandon()
        if mirror is not None:
            mirror.close()
        for lock in locks:
            os.close(lock)
        if opened is not None:
            standins.remove(opened.directory)
            opened.close()
        if sandbox is not None:
            sandbox.leave_network()
        if groups is not None:
            groups.close()
        signals.release()


def _mirror(plan: dict):
    """Return the mirror of the host's credentials file if the plan mounts it, and None otherwise."""
    source = policy.host_credentials(plan["user"]["home"])
    if all(mount.get("source") != source for mount in plan["mounts"]):
        return None
    from claudebox.sandbox import credentials

    return credentials.Mirror(source)


def _attend(sandbox: _Sandbox, loop, mirror) -> int:
    """Wait for the end of the session and return its exit status; until then do what the loop has."""
    if mirror is not None:
        mirror.compare()
        loop.add(mirror.descriptor, mirror.changed)
    if not loop.busy():
        return sandbox.wait()
    gc.enable()
    process = os.pidfd_open(sandbox.pid)
    loop.add(process, lambda _events: loop.stop())
    loop.run()
    os.close(process)
    return sandbox.wait()


def preflight(plan: dict) -> None:
    """Make the sandbox of `plan` up to the gate and take it down again; raise Failure if it cannot be.

    Nothing is created.
    """
    from claudebox import enforcement

    enforcement.refuse_unsafe(plan)
    state = policy.state_home(plan["user"]["home"])
    while not os.path.exists(state):
        state = os.path.dirname(state)
    if not os.path.isdir(state) or not os.access(state, os.W_OK | os.X_OK):
        raise Failure(f"{state} cannot be written", "mend that, or set CLAUDEBOX_HOME")
    attempt(plan)


def attempt(plan: dict) -> None:
    """Make the sandbox of `plan`, without what a launch would first create, and take it down again.

    Raises Failure with bwrap's own words if it cannot be made. Holds the plan against no policy.
    """
    _tidy_descriptors()
    mounts = [
        mount
        for mount in plan["mounts"]
        if mount["kind"] not in ("bind", "ro-bind") or os.path.exists(mount["source"])
    ]
    mounts = [
        mount
        for mount in mounts
        if mount["reason"] != "protected" or os.path.lexists(mount["target"])
    ]
    mounts = [mount for mount in mounts if mount["reason"] != "credentials"]
    from claudebox.sandbox import held_signals

    with held_signals.HeldSignals() as signals:
        sandbox = _spawn({**plan, "mounts": mounts}, [], _event_loop(plan, None), signals)
    try:
        sandbox.wait_until_ready()
    finally:
        if not sandbox.ended:
            sandbox.abandon()


def environment(plan: dict, environ=os.environ) -> dict[str, str]:
    """Return the environment that bwrap is executed with: all that the sandbox will see.

    It is passed by execve(2) alone: /proc/PID/cmdline is readable for every user, and bwrap's own
    /proc/1/environ inside still shows what `--clearenv` removed.
    """
    variables = {}
    for variable in plan["env"]:
        if variable["source"] != "host":
            variables[variable["name"]] = variable["value"]
        elif variable["name"] in environ:
            variables[variable["name"]] = environ[variable["name"]]
    return variables


def _payload(plan: dict, restored: list[int]) -> list[str]:
    """Return the command inside: GNU env to undo the signals that bwrap ignores, then the gate.

    In this order no signal can be lost between an open gate and the command.
    """
    shell, env = host.gate_programs()
    gate = [shell, "-c", _GATE, "sh", *plan["command"]]
    if not restored:
        return gate
    names = ",".join(_NAMES[number] for number in restored)
    return [env, f"--default-signal={names}", *gate]


def _env_restores_signals() -> bool:
    """Say whether `env` inside knows --default-signal (coreutils 8.31): its name is in the program."""
    if baked.ENV:
        return True
    try:
        with open("/usr/bin/env", "rb") as program:
            return b"default-signal" in program.read()
    except OSError:
        return False


def _tidy_descriptors() -> None:
    """Close what was inherited beyond stdin, stdout and stderr: bwrap would hand it all on."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            if number > 2 and os.get_inheritable(number):
                os.close(number)
        except OSError:
            pass


def _memory_file(name: str, content: bytes) -> int:
    """Return an inheritable descriptor, above those of the gate, of a file that holds `content`."""
    # memfd_create(2) takes names of up to 249 bytes; of a path that many have more.
    file = os.memfd_create(os.fsencode(name)[:200], os.MFD_CLOEXEC)
    while content:
        content = content[os.write(file, content) :]
    os.lseek(file, 0, os.SEEK_SET)
    moved = fcntl.fcntl(file, fcntl.F_DUPFD, _FIRST_DATA_DESCRIPTOR)
    os.close(file)
    return moved


def _descriptors(wanted: list, with_sources: bool) -> tuple[list[int], dict]:
    """Return inheritable descriptors for bwrap, and the status of each source by its target."""
    from claudebox.sandbox import sources

    files, expected = [], {}
    opener = sources.Opener()
    try:
        for argument in wanted:
            if isinstance(argument, bwrap.Data):
                files.append(_memory_file(argument.name, argument.content))
                continue
            opened = opener.open(argument.path)
            expected[argument.target] = os.fstat(opened)
            if with_sources:
                files.append(fcntl.fcntl(opened, fcntl.F_DUPFD, _FIRST_DATA_DESCRIPTOR))
    except BaseException:
        # What cleans up needs some of its own.
        for file in files:
            os.close(file)
        raise
    finally:
        opener.close()
    return files, expected


def _spawn(plan: dict, restored: list[int], loop, signals, fork=os.fork) -> _Sandbox:
    """Start bwrap, in the `inet` tier in a network of its own, with its payload held at the gate.

    `signals` are HeldSignals that are held, and are again when this returns: so that the caller has
    what was started before he hears one. `fork` is called instead of os.fork() for the process that
    everything else comes from.
    """
    from claudebox.sandbox import landlock

    program = plan["bwrap"]["path"]
    scoped = landlock.obstacle(program) is None
    in_internet = plan["network"]["tier"] == "inet"
    # There bwrap is the first process of a pid namespace, which hears none of these anyway.
    if in_internet or not _env_restores_signals():
        restored = []
    arguments = bwrap.arguments(plan)
    files, expected = _descriptors(bwrap.descriptors(arguments), plan["bwrap"]["bind_fd"])
    if not plan["bwrap"]["bind_fd"]:
        arguments = bwrap.by_path(arguments)
    words = bwrap.numbered(arguments, files)
    files.append(_memory_file("arguments", b"".join(os.fsencode(word) + b"\0" for word in words)))
    argv = ["bwrap", "--args", str(files[-1]), "--", *_payload(plan, restored)]
    variables = environment(plan)
    ready, ready_inside = os.pipe()
    go_inside, go = os.pipe()
    errors, errors_inside = os.pipe()

    def begin_child():
        signals.release()
        if scoped:
            landlock.scope()

    def become_bwrap():
        inside = (2, ready_inside, go_inside, errors_inside)
        high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, _FIRST_DATA_DESCRIPTOR) for each in inside]
        for number in (0, 1):
            os.set_inheritable(number, True)
        for descriptor, place in zip(high, (_REAL_STDERR, _READY, _GO, 2), strict=True):
            os.dup2(descriptor, place)
        # Python ignores these two, and execve would hand that on.
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        # Ctrl-C goes to the whole foreground process group; it must not end bwrap.
        for number in restored:
            _signal.signal(number, _signal.SIG_IGN)
        os.execve(program, argv, variables)

    network = None
    try:
        if in_internet:
            network = _join_internet(plan, become_bwrap, loop, begin_child, signals, fork)
            pid = network.pid
        else:
            pid = _fork(become_bwrap, program, begin_child, fork)
    finally:
        for descriptor in (*files, ready_inside, go_inside, errors_inside):
            os.close(descriptor)
    return _Sandbox(pid, ready, go, errors, network, expected)


def _fork(become_bwrap, program: str, begin_child, fork) -> int:
    pid = fork()
    if pid == 0:
        try:
            begin_child()
            become_bwrap()
        except OSError as error:
            os.write(2, f"{program}: {error.strerror}".encode())
        finally:
            os._exit(127)
    return pid


def _join_internet(plan: dict, become_bwrap, loop, begin_child, signals, fork):
    from claudebox.sandbox import inet_namespaces

    network = plan["network"]
    allowed = network.get("allow", ())
    listeners = len({exception for exception in allowed if exception.startswith("host:")})
    namespaces = inet_namespaces.Namespaces(become_bwrap, listeners, scope=begin_child, fork=fork)
    try:
        signals.release()
        # While they are made.
        from claudebox import command, net
        from claudebox.sandbox import inet

        network = inet.start(
            namespaces,
            loop,
            sidecars=net.sidecar_programs(plan["project"]["root"], network["sidecars"]),
            allow=[inet.parse_allow(exception) for exception in allowed],
            on_offline=command.complain,
        )
        signals.hold()
        return network
    except BaseException:
        signals.hold()
        namespaces.end()
        raise


class _NoLoop:
    """Stands for the event loop where there is nothing to attend to but the payload's end."""

    @staticmethod
    def busy() -> bool:
        return False


def _event_loop(plan: dict, mirror):
    if mirror is None and plan["network"]["tier"] != "inet":
        return _NoLoop()
    from claudebox.sandbox import events

    return events.Loop()


def _terminal_state():
    """Return the modes of the terminal that standard input is, and whether it listens to this group.

    None if standard input is no terminal.
    """
    if not os.isatty(0):
        return None
    import termios

    try:
        return termios.tcgetattr(0), os.tcgetpgrp(0) == os.getpgrp()
    except (termios.error, OSError):
        return None


def _restore_terminal(state) -> None:
    """Put back the terminal of before: a killed full-screen program leaves its own modes."""
    if state is None:
        return
    modes, in_foreground = state
    import termios

    try:
        if in_foreground:
            _take_back_foreground()
        # A launcher in the background would be stopped by SIGTTOU.
        if os.tcgetpgrp(0) == os.getpgrp():
            termios.tcsetattr(0, termios.TCSADRAIN, modes)
    except (termios.error, OSError):
        pass


def _take_back_foreground() -> None:
    """Make this group the terminal's foreground again where the one that is has no process left.

    A shell inside makes its own group the foreground, and cannot give it back at its end: this
    group has no number in its pid namespace. A living one is that of the shell which claudebox was
    started from, after Ctrl-Z and `bg`.
    """
    group = os.tcgetpgrp(0)
    # 0 is a group of another pid namespace.
    if group in (0, os.getpgrp()):
        return
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGTTOU])
        os.tcsetpgrp(0, os.getpgrp())
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    except PermissionError:
        pass


def _report(changed: list[str], root: str) -> None:
    if changed:
        from claudebox import command

        names = ", ".join(path[len(root) + 1 :] for path in changed[:_REPORTED])
        if len(changed) > _REPORTED:
            names += f" and {len(changed) - _REPORTED} more"
        command.complain(
            f"changed in this session, and can run code outside: {names}: read them before you go on"
        )


def _report_repositories(before: set, root: str) -> None:
    """Name the git repositories that were made in the session: what they configure, git obeys."""
    found = project.walk(root, afresh=True)
    made = set(found["repositories"]) - before
    # An empty directory .git is a stand-in that is still there.
    made = sorted(path for path in made if not git.is_empty(path + "/.git"))
    if made:
        from claudebox import command

        names = ", ".join(path[len(root) + 1 :] for path in made[:_REPORTED])
        command.complain(
            f"git repositories were made in this session: {names}: git obeys their configuration and"
            " hooks, also when it runs in a directory above: look at them, or remove them, first"
        )
    if not found["complete"]:
        from claudebox import command

        command.complain(
            f"only the first {project.ENTRY_LIMIT} entries of the project were searched for git"
            " repositories that were made in this session: there may be others"
        )


def take_terminal_back() -> None:
    """Make the terminal standard input again, after a plan was read from there."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        terminal = os.open(os.devnull, os.O_RDONLY)
    os.dup2(terminal, 0)
    if terminal > 2:
        os.close(terminal)


def main(arguments: list[str]) -> int:
    """Run `claudebox-run`: the exit status of the session, 1 for a refusal, 2 for wrong usage."""
    from claudebox import command

    parser = command.parser(
        "claudebox-run", "Launch the plan on standard input. plan → exit status of what ran"
    )
    parser.add_argument("plan", nargs="?", choices=["-"], metavar="-", help="standard input")
    parser.add_argument("--dry-run", action="store_true", help="print the command; launch nothing")
    options = parser.parse_args(arguments)
    # What the launch needs is imported while the stages before this one are at work.
    from claudebox import enforcement
    from claudebox.sandbox import landlock, limits, sources, standins, state, watch  # noqa: F401

    plan = command.read_plan(or_refuse=True)
    if options.dry_run:
        from claudebox import dry_run

        enforcement.refuse_unsafe(plan)
        sys.stdout.flush()
        sys.stdout.buffer.write(dry_run.script(plan))
        return 0
    if not sys.stdin.isatty():
        take_terminal_back()
    return launch(plan)
