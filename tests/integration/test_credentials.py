"""One login, used outside and in several sandboxes at once: no side is left with a spent token."""

import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_claude import start_interactive, wait_for_screen
from test_lifecycle import wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fake_anthropic import FakeMessagesAPI, FakeOAuth, credentials, text

from claudebox.sandbox.credentials import Mirror

FILE = "$CLAUDE_SECURESTORAGE_CONFIG_DIR/.credentials.json"
HOUR = 3_600_000
BOTH = pytest.mark.parametrize("cure", [True, False], ids=["with the cure", "without it"])


def login(name, hours=8.0):
    """Return the text of a credentials file whose tokens carry `name`."""
    expires = int(time.time() * 1000 + hours * HOUR)
    return credentials(f"sk-ant-oat01-{name}", f"sk-ant-ort01-{name}", expires)


BLANK = json.dumps({"claudeAiOauth": {"accessToken": "", "refreshToken": "", "expiresAt": 0}})


def put(path, content):
    """Write a file as Claude Code outside does: beside it, then over it by rename."""
    new = path.with_name("new")
    new.write_text(content)
    new.chmod(0o600)
    new.rename(path)


@pytest.fixture
def host_file(world):
    """The host's credentials file, with a login in it."""
    file = world.home / ".claude/.credentials.json"
    file.parent.mkdir()
    put(file, login("first"))
    return file


class Session:
    """A shell inside that does what it is told, one script after the other."""

    def __init__(self, world, cure=True, options=()):
        command = ("claudebox", "-y", *options, "--shell")
        if not cure:
            command = without_cure(world, *options, "--shell")
        self.process = world.start(*command, stdin=subprocess.PIPE)
        self.ask("true")

    def ask(self, script):
        """Run a script inside and return what it printed."""
        self.process.stdin.write(f"{script}\necho; echo --end--\n")
        self.process.stdin.flush()
        lines = iter(self.process.stdout.readline, "")
        said = "".join(iter(lambda: next(lines), "--end--\n"))
        return said.removesuffix("\n")

    def file(self):
        """Return the credentials file as it is seen inside."""
        return self.ask(f"cat {FILE}")

    def write(self, content):
        """Write the credentials file as Claude Code does on a mount point: in place."""
        self.ask(f"printf %s '{content}' > {FILE}")

    def end(self):
        """End the session and return what it wrote on stderr."""
        _, errors = self.process.communicate("exit 0\n", timeout=30)
        assert self.process.returncode == 0, errors[-500:]
        return errors


def without_cure(world, *options):
    """Return the command that launches the same sandbox, but with nobody beside it."""
    world.inside("true")
    script = world.run("claudebox", "--dry-run", *options).stdout
    path = world.home / f"launch{len(list(world.home.glob('launch*')))}"
    path.write_text(script)
    return ("bash", str(path))


def seen(process):
    """Return how often a process gave the processor up, and the time it used."""
    with open(f"/proc/{process.pid}/status") as file:
        switches = [line for line in file if line.startswith("voluntary_ctxt_switches")]
    with open(f"/proc/{process.pid}/stat") as file:
        return switches, file.read().rpartition(")")[2].split()[11:13]


# ---------------------------------------------------------------------------- (a) the host refreshes


@BOTH
def test_a_login_that_the_host_replaced_by_rename_is_seen_inside(world, host_file, cure):
    session = Session(world, cure)
    assert "first" in session.file()
    for name, hours in (("second", 9), ("third", 10)):
        put(host_file, login(name, hours))
        if cure:
            wait_until(lambda name=name: name in session.file())
            assert session.file() == host_file.read_text()
        else:
            time.sleep(0.5)
            assert "first" in session.file()
    session.end()
    assert "third" in host_file.read_text()


def claude_with_login(world, api, oauth):
    """Let claude inside know the fake servers; return the options that let the variables in."""
    # The certificate must be where the sandbox can read it, which is in each project.
    for project in (world.project, world.home / "other"):
        if project.is_dir():
            (project / "ca.pem").write_bytes(Path(oauth.ca).read_bytes())
    world.environment |= oauth.environment
    world.environment["ANTHROPIC_BASE_URL"] = api.url
    world.environment["NODE_EXTRA_CA_CERTS"] = "ca.pem"
    names = ("ANTHROPIC_BASE_URL", "HTTPS_PROXY", "NODE_EXTRA_CA_CERTS")
    return [word for name in names for word in ("--env", name)]


STREAM = (
    *("-p", "--verbose", "--input-format", "stream-json", "--output-format", "stream-json"),
    *("--no-session-persistence",),
)


@BOTH
def test_the_next_request_of_a_running_claude_uses_the_hosts_new_token(world, host_file, cure):
    with (
        FakeMessagesAPI([text("one"), text("two")], accepted_tokens=()) as api,
        FakeOAuth(api) as oauth,
    ):
        access, refresh = oauth.login()
        put(host_file, credentials(access, refresh))
        options = [*claude_with_login(world, api, oauth), "--", *STREAM]
        command = ("claudebox", "-y", *options) if cure else without_cure(world, *options)
        session = world.start(*command, stdin=subprocess.PIPE)

        def ask(words):
            message = {"role": "user", "content": words}
            session.stdin.write(json.dumps({"type": "user", "message": message}) + "\n")
            session.stdin.flush()
            for line in session.stdout:
                event = json.loads(line)
                if event["type"] == "result":
                    return event["result"]
            raise AssertionError(session.stderr.read()[-500:])

        assert ask("first question") == "one"
        # Claude Code outside refreshes: the old pair is worth nothing now.
        oauth.spend(refresh)
        api.accepted_tokens.discard(access)
        new, _ = pair = oauth.login()
        put(host_file, credentials(*pair, int(time.time() * 1000) + 9 * HOUR))
        answer = ask("second question")
        session.communicate(timeout=30)
        if cure:
            assert answer == "two"
            assert api.main_requests[-1].token == new
            assert "used before" not in dict(oauth.log).values()
        else:
            assert answer != "two"
            assert (refresh, "used before") in oauth.log
    assert new in host_file.read_text()


# ---------------------------------------------------------------------------- (b) two refresh at once


class Crowded(FakeOAuth):
    """An OAuth server that answers no refresh before `crowd` of them are there, or a while later."""

    def __init__(self, api, crowd, patience):
        super().__init__(api, delay=0.5)
        self._barrier = threading.Barrier(crowd)
        self._patience = patience

    def spend(self, refresh):
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(self._patience)
            # Only the first ones wait.
            self._barrier.abort()
        return super().spend(refresh)


@BOTH
def test_two_sandboxes_with_an_expired_token_do_not_spend_the_same_refresh_token(
    world, host_file, cure
):
    other = world.home / "other"
    other.mkdir()
    patience = 1 if cure else 30
    with (
        FakeMessagesAPI(lambda _: text("hello"), accepted_tokens=()) as api,
        Crowded(api, 2, patience) as oauth,
    ):
        access, refresh = oauth.login()
        api.accepted_tokens.discard(access)
        put(host_file, credentials(access, refresh, int(time.time() * 1000) - HOUR))
        options = [*claude_with_login(world, api, oauth), "--", "-p", "hello"]
        sessions = []
        for directory in (world.project, other):
            world.project = directory
            command = ("claudebox", "-y", *options)
            if not cure:
                # Without the shared directory, and so without the shared lock.
                command = without_cure(world, *options)
                own = world.home / f"own-{directory.name}"
                own.mkdir()
                (own / ".credentials.json").write_text("")
                script = Path(command[1]).read_text()
                shared = f"{world.state}/credentials"
                assert shared in script
                Path(command[1]).write_text(script.replace(shared, str(own)))
            sessions.append(command)
        started = []
        for directory, command in zip((world.home / "project", other), sessions, strict=True):
            world.project = directory
            started.append(world.start(*command))
        outputs = [session.communicate(timeout=90) for session in started]
        verdicts = [verdict for _, verdict in oauth.log]
    if cure:
        assert [output for output, _ in outputs] == ["hello\n"] * 2, outputs
        assert set(verdicts) == {"refreshed"}
        content = json.loads(host_file.read_text())["claudeAiOauth"]
        assert content["expiresAt"] > time.time() * 1000
        assert content["accessToken"] in api.accepted_tokens
    else:
        assert sorted(verdicts)[:2] == ["refreshed", "used before"]


# ---------------------------------------------------------------------------- (c) invalid_grant


@BOTH
def test_a_refused_refresh_inside_does_not_destroy_the_hosts_login(world, host_file, cure):
    with FakeMessagesAPI([text("hello")], accepted_tokens=()) as api, FakeOAuth(api) as oauth:
        access, refresh = oauth.login()
        oauth.spend(refresh)
        api.accepted_tokens.discard(access)
        before = credentials(access, refresh, int(time.time() * 1000) - HOUR)
        put(host_file, before)
        options = [*claude_with_login(world, api, oauth), "--", "-p", "hello"]
        command = ("claudebox", "-y", *options) if cure else without_cure(world, *options)
        result = world.run(*command)
        assert "hello" not in result.stdout
        assert oauth.log[-1] == (refresh, "used before")
    if cure:
        assert host_file.read_text() == before
        assert stat.S_IMODE(host_file.stat().st_mode) == 0o600
    else:
        assert json.loads(host_file.read_text())["claudeAiOauth"]["refreshToken"] == ""


@BOTH
@pytest.mark.parametrize("content", [BLANK, "", "{", "{}"], ids=["blank", "empty", "half", "none"])
def test_a_file_without_a_login_never_replaces_one(world, host_file, cure, content):
    before = host_file.read_text()
    session = Session(world, cure)
    session.write(content)
    if cure and content == BLANK:
        # What is no JSON may be a file that is just being written.
        wait_until(lambda: host_file.read_text() == before)
    session.end()
    assert (host_file.read_text() == before) is cure
    if cure:
        assert stat.S_IMODE(host_file.stat().st_mode) == 0o600


def test_a_blanked_file_is_not_brought_back_inside_until_the_host_has_another_login(
    world, host_file
):
    session = Session(world)
    session.write(BLANK)
    wait_until(lambda: "first" in host_file.read_text())
    time.sleep(0.3)
    assert session.file() == BLANK
    put(host_file, login("second", 9))
    wait_until(lambda: "second" in session.file())
    session.end()


def test_a_file_that_the_host_blanked_gets_the_login_that_the_sandbox_has(world, host_file):
    session = Session(world)
    put(host_file, BLANK)
    wait_until(lambda: "first" in host_file.read_text())
    assert "first" in session.file()
    session.end()


# ---------------------------------------------------------------------------- newest wins


def test_a_login_refreshed_in_an_inode_that_the_host_has_replaced_reaches_the_host(
    world, host_file
):
    session = Session(world)
    put(host_file, login("older", 1))
    session.write(login("newer", 9))
    wait_until(lambda: "newer" in host_file.read_text())
    assert stat.S_IMODE(host_file.stat().st_mode) == 0o600
    assert "newer" in session.file()
    assert os.listdir(host_file.parent) == [".credentials.json"]
    session.end()
    assert "newer" in host_file.read_text()


def test_an_older_login_of_the_host_does_not_replace_a_newer_one_inside(world, host_file):
    session = Session(world)
    put(host_file, login("older", 1))
    wait_until(lambda: "first" in host_file.read_text())
    assert "first" in session.file()
    session.end()


def test_several_sandboxes_and_the_host_agree_on_the_newest_login(world, host_file):
    sessions = [Session(world) for _ in range(3)]
    put(host_file, login("outside", 9))
    for session in sessions:
        wait_until(lambda session=session: "outside" in session.file())
    sessions[1].write(login("inside", 10))
    wait_until(lambda: "inside" in host_file.read_text())
    for session in sessions:
        wait_until(lambda session=session: "inside" in session.file())
    for session in sessions:
        assert "could not be renewed" not in session.end()
    assert "inside" in host_file.read_text()
    assert os.listdir(host_file.parent) == [".credentials.json"]


def test_the_last_write_of_a_session_reaches_the_host(world, host_file):
    put(host_file, login("first"))
    session = Session(world)
    put(host_file, login("older", 1))
    script = f"printf %s '{login('last', 9)}' > {FILE}; exit 0\n"
    session.process.communicate(script, timeout=20)
    assert "last" in host_file.read_text()


def test_the_host_sees_one_whole_login_or_another_never_a_part(world, host_file):
    def padded(name, hours):
        document = json.loads(login(name, hours))
        document["padding"] = name * 20_000
        return json.dumps(document)

    broken, ended = [], threading.Event()

    def read():
        while not ended.is_set():
            content = host_file.read_text()
            try:
                json.loads(content)["padding"]
            except (ValueError, KeyError) as error:
                broken.append((len(content), error))

    put(host_file, padded("first", 8))
    mirror = Mirror(str(host_file))
    mounted = os.open(host_file, os.O_WRONLY)
    # From here on the host's file is another one than the one that the sandbox writes in place.
    put(host_file, padded("older", 1))
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for step in range(40):
            # The host replaces it by an older one, the sandbox writes a newer one.
            put(host_file, padded("older", 1))
            content = padded(f"newer{step}", 9 + step).encode()
            os.pwrite(mounted, content, 0)
            os.ftruncate(mounted, len(content))
            mirror.compare()
            assert host_file.read_bytes() == content
    finally:
        ended.set()
        reader.join()
        mirror.close()
        os.close(mounted)
    assert broken == []


def test_launchers_that_renew_the_hosts_file_at_once_do_not_mix_their_files(host_file, capfd):
    """Each runs in a process of its own, as fast as it can, against one host file."""
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            try:
                mirror = Mirror(str(host_file))
                for step in range(60):
                    content = json.loads(login(f"{number}-{step}", 9 + step))
                    content["padding"] = str(number) * (50_000 + 10_000 * number)
                    mirror._replace_host(json.dumps(content).encode())
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    broken = 0
    while children:
        content = host_file.read_text()
        try:
            json.loads(content)
        except ValueError:
            broken += 1
        for child in list(children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                assert status == 0
                children.remove(child)
    assert broken == 0
    assert "could not be renewed" not in capfd.readouterr().err
    assert os.listdir(host_file.parent) == [".credentials.json"]


def test_a_replacement_in_the_middle_of_a_comparison_is_not_missed(host_file, monkeypatch):
    mirror = Mirror(str(host_file))
    put(host_file, login("second", 9))
    read = mirror._read_host

    def read_and_replace():
        monkeypatch.setattr(mirror, "_read_host", read)
        found = read()
        put(host_file, login("third", 10))
        return found

    monkeypatch.setattr(mirror, "_read_host", read_and_replace)
    mirror.changed()
    while select.select([mirror.descriptor], [], [], 0.5)[0]:
        mirror.changed()
    assert b"third" in os.pread(mirror._mounted, 10_000, 0)
    mirror.close()


def test_a_login_that_is_just_being_written_inside_is_not_overwritten(host_file):
    mirror = Mirror(str(host_file))
    mirror.compare()
    inside = os.open(host_file, os.O_WRONLY)
    put(host_file, login("older", 1))
    # Claude Code inside truncates the file, then writes it, then closes it.
    os.ftruncate(inside, 0)
    mirror.changed()
    content = login("newer", 9).encode()
    os.write(inside, content[:50])
    mirror.changed()
    os.write(inside, content[50:])
    os.close(inside)
    assert select.select([mirror.descriptor], [], [], 5)[0]
    mirror.changed()
    mirror.close()
    assert host_file.read_bytes() == content


# ---------------------------------------------------------------------------- logout


def test_a_login_that_the_host_removed_stays_removed(world, host_file):
    session = Session(world)
    host_file.unlink()
    session.write(login("newer", 9))
    time.sleep(0.3)
    session.write(BLANK)
    session.end()
    assert os.listdir(host_file.parent) == []


def test_a_login_that_is_made_anew_outside_after_a_logout_is_seen_inside(world, host_file):
    session = Session(world)
    host_file.unlink()
    time.sleep(0.3)
    put(host_file, login("again", 9))
    wait_until(lambda: "again" in session.file(), seconds=5)
    session.end()


# ---------------------------------------------------------------------------- cost


def test_the_mirror_does_not_wake_the_launcher_while_nothing_happens(world, host_file):
    session = Session(world)
    time.sleep(0.3)
    before = seen(session.process)
    time.sleep(2)
    assert seen(session.process) == before
    # The control: this is the process that does the work.
    put(host_file, login("second", 9))
    wait_until(lambda: "second" in session.file())
    assert seen(session.process) != before
    session.end()


def test_the_mirror_is_the_launcher_itself_and_dies_with_it(world, host_file):
    session = Session(world)
    children = Path(f"/proc/{session.process.pid}/task/{session.process.pid}/children")
    assert len(children.read_text().split()) == 1
    assert len(os.listdir(f"/proc/{session.process.pid}/task")) == 1
    session.process.send_signal(signal.SIGKILL)
    session.process.communicate()
    put(host_file, login("second", 9))
    session = Session(world)
    assert "second" in session.file()
    session.end()


# ---------------------------------------------------------------------------- nothing leaks


def test_no_token_is_in_a_plan_a_dry_run_an_error_or_the_state(world, host_file):
    secrets = ("canary-oat", "canary-ort")
    content = credentials("sk-ant-oat01-canary-oat", "sk-ant-ort01-canary-ort")
    shown = []

    def note(result):
        shown.append(result.stdout + result.stderr)
        return result

    put(host_file, content)
    for command in (
        ("plan",),
        ("--dry-run",),
        ("--check",),
        ("instance", "list", "--json"),
        ("gc", "--json"),
    ):
        assert note(world.run("claudebox", *command)).returncode == 0, command
    session = Session(world)
    # What cannot be parsed, what cannot be written, what is no file.
    session.write(content.replace("}", ""))
    put(host_file, content[:-9])
    time.sleep(0.2)
    session.write(content)
    # The mirror may be renewing the file just now.
    time.sleep(0.2)
    host_file.unlink()
    host_file.mkdir()
    time.sleep(0.2)
    session.write(content[:-3])
    shown.append(session.end())
    host_file.rmdir()
    put(host_file, content)
    host_file.chmod(0o400)
    note(world.inside("true"))
    host_file.chmod(0o600)
    for path in world.state.rglob("*"):
        if path.is_file():
            shown.append(path.read_text(errors="replace"))
    assert "credentials" in shown[0]
    for output in shown:
        assert all(secret not in output for secret in secrets)


def test_a_login_file_of_the_host_that_cannot_be_renewed_is_named_without_its_content(
    world, host_file
):
    session = Session(world)
    put(host_file, login("older", 1))
    (host_file.parent / ".claudebox-temporary").mkdir()
    host_file.parent.chmod(0o500)
    try:
        session.write(login("newer", 9))
        time.sleep(0.3)
        errors = session.end()
    finally:
        host_file.parent.chmod(0o700)
    assert "Traceback" not in errors
    assert all(secret not in errors for secret in ("sk-ant", "newer", "older"))
    if os.geteuid() != 0:
        assert f"{host_file}" in errors


# ---------------------------------------------------------------------------- the API key


def test_an_api_key_wins_over_oauth_in_an_interactive_session_without_a_question(world, host_file):
    with FakeMessagesAPI([text("hello from the model")]) as api, FakeOAuth(api) as oauth:
        put(host_file, credentials(*oauth.login()))
        world.environment |= api.environment
        tmux = start_interactive(world)
        try:
            screen = wait_for_screen(tmux, "bypass permissions on")
            assert "Do you" not in screen and "Yes" not in screen
            tmux("send-keys", "hi there", "Enter")
            wait_for_screen(tmux, "hello from the model")
        finally:
            tmux("kill-server")
        assert api.main_requests[0].token == api.environment["ANTHROPIC_API_KEY"]
        assert oauth.log == []
    assert "sk-ant-oat01" in host_file.read_text()


def test_an_empty_api_key_leaves_oauth_in_use(world, host_file):
    with FakeMessagesAPI([text("with oauth")], accepted_tokens=()) as api, FakeOAuth(api) as oauth:
        access, _ = pair = oauth.login()
        put(host_file, credentials(*pair))
        options = claude_with_login(world, api, oauth)
        world.environment["ANTHROPIC_API_KEY"] = ""
        result = world.run("claudebox", "-y", *options, "--", "-p", "hello")
        assert result.stdout == "with oauth\n"
        assert "ANTHROPIC_API_KEY is set but empty" in result.stderr
        assert api.main_requests[0].token == access
