"""The real Claude Code in the real sandbox, against a Messages API on loopback."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fake_anthropic import FakeMessagesAPI, FakeOAuth, credentials, text, tool_use


def ask(world, api, *arguments, options=()):
    """Run `claude -p` in the sandbox with an API key."""
    world.environment |= api.environment
    return world.run(
        "claudebox", "-y", "--env", "ANTHROPIC_BASE_URL", *options, "--", "-p", *arguments
    )


def test_claude_answers_from_inside(world):
    with FakeMessagesAPI([text("hello from the model")]) as api:
        result = ask(world, api, "hello")
    assert (result.stdout, result.returncode) == ("hello from the model\n", 0)


def test_claude_runs_a_tool_that_writes_a_file_in_the_project(world):
    call = tool_use("Bash", {"command": "pwd > made; cat made", "description": "make a file"})
    with FakeMessagesAPI([call, text("done")]) as api:
        result = ask(world, api, "make a file")
        assert result.stdout == "done\n"
        assert api.main_requests[-1].tool_results() == [str(world.project)]
    assert (world.project / "made").read_text() == f"{world.project}\n"


def test_claude_streams(world):
    with FakeMessagesAPI([text("streamed")]) as api:
        result = ask(world, api, "--output-format", "stream-json", "--verbose", "hello")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[-1]["result"] == "streamed"


def test_the_status_of_claude_comes_back(world):
    result = world.run("claudebox", "-y", "--", "-p", "hello")
    assert result.returncode == 1
    assert "Not logged in" in result.stdout


@pytest.mark.parametrize("tier", ["full", "none"])
def test_the_briefing_reaches_the_model_with_the_tier_of_this_session(world, tier):
    with FakeMessagesAPI([text("ok")]) as api:
        if tier == "none":
            # The API is out of reach without a network: what would be sent is what is mounted.
            result = world.inside("cat /etc/claude-code/CLAUDE.md", "--network", tier)
            sent = result.stdout
        else:
            ask(world, api, "hello")
            sent = json.dumps(api.main_requests[0].body)
            assert "organization-managed policy instructions" in sent
    assert "# You are in a claudebox sandbox" in sent
    assert f"## Network: `{tier}`" in sent


def test_the_briefing_cannot_be_written_or_excluded_from_inside(world):
    settings = {"claudeMdExcludes": ["**/CLAUDE.md", "/etc/claude-code/CLAUDE.md"]}
    world.inside(f"echo '{json.dumps(settings)}' > ~/.claude/settings.json")
    result = world.inside("echo x > /etc/claude-code/CLAUDE.md; rm -f /etc/claude-code/CLAUDE.md")
    assert result.returncode != 0
    with FakeMessagesAPI([text("ok")]) as api:
        ask(world, api, "hello")
        assert "# You are in a claudebox sandbox" in json.dumps(api.main_requests[0].body)


def test_the_transcript_lasts_in_the_instance_and_nowhere_else(world):
    with FakeMessagesAPI([text("first"), text("second")]) as api:
        ask(world, api, "one")
        ask(world, api, "--continue", "two")
        assert "first" in json.dumps(api.main_requests[-1].body["messages"])
    assert sorted(os.listdir(world.home)) == [".claudebox", "project"]


LAUNCH = "claudebox -y --env ANTHROPIC_BASE_URL; echo status $? | tee status; sleep 60"


def start_interactive(world, command=LAUNCH):
    """Start `command` in tmux, 100 columns wide; return the function that runs tmux commands."""
    socket = f"claudebox-test-{os.getpid()}-{time.monotonic_ns()}"

    def tmux(*words):
        return subprocess.run(
            ["tmux", "-L", socket, "-f", "/dev/null", *words],
            env=world.environment,
            capture_output=True,
            text=True,
        ).stdout

    size = ("-x", "100", "-y", "30")
    tmux("new-session", "-d", "-c", str(world.project), *size, command)
    return tmux


def wait_for_screen(tmux, words, seconds=30):
    """Wait until `words` are on the screen; return the screen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        screen = tmux("capture-pane", "-p")
        if words in screen:
            return screen
        time.sleep(0.1)
    raise AssertionError(f"not on the screen: {words!r}\n{screen}")


@pytest.mark.parametrize("login", ["key", "oauth", "both"])
def test_an_interactive_session_starts_without_a_question_resizes_and_leaves(world, login):
    with FakeMessagesAPI([text("hello from the model")]) as api, FakeOAuth(api) as oauth:
        world.environment |= api.environment
        if login != "key":
            (world.home / ".claude").mkdir()
            file = world.home / ".claude/.credentials.json"
            file.write_text(credentials(*oauth.login()))
            file.chmod(0o600)
        if login == "oauth":
            del world.environment["ANTHROPIC_API_KEY"]
        tmux = start_interactive(world)
        try:
            # The prompt itself: no theme, trust, key or bypass question stands before it.
            screen = wait_for_screen(tmux, "bypass permissions on")
            assert "Do you" not in screen and "Yes" not in screen
            tmux("send-keys", "hi there", "Enter")
            wait_for_screen(tmux, "hello from the model")
            tmux("resize-window", "-x", "70", "-y", "24")
            rule = "─" * 70
            wait_for_screen(tmux, rule)
            tmux("send-keys", "C-c")
            time.sleep(0.4)
            tmux("send-keys", "C-c")
            wait_for_screen(tmux, "status 0")
        finally:
            tmux("kill-server")
    assert (world.project / "status").read_text() == "status 0\n"


def test_ctrl_z_suspends_claude_and_fg_brings_it_back(world):
    with FakeMessagesAPI([]) as api:
        world.environment |= api.environment
        tmux = start_interactive(world, "bash --norc -i")
        try:
            tmux("send-keys", "claudebox -y --env ANTHROPIC_BASE_URL", "Enter")
            wait_for_screen(tmux, "bypass permissions on")
            tmux("send-keys", "C-z")
            wait_for_screen(tmux, "Stopped")
            tmux("send-keys", "clear; echo outer $((40+2))", "Enter")
            wait_for_screen(tmux, "outer 42")
            tmux("send-keys", "fg", "Enter")
            wait_for_screen(tmux, "bypass permissions on")
        finally:
            tmux("kill-server")


def test_the_hosts_credentials_serve_inside_and_a_new_token_reaches_the_host(world):
    file = world.home / ".claude/.credentials.json"
    file.parent.mkdir()
    with FakeMessagesAPI([text("with oauth")], accepted_tokens=()) as api, FakeOAuth(api) as oauth:
        access, refresh = oauth.login()
        file.write_text(credentials(access, refresh, expires_at_ms=1000))
        file.chmod(0o600)
        # The certificate must be where the sandbox can read it.
        certificate = world.project / "ca.pem"
        certificate.write_bytes(Path(oauth.ca).read_bytes())
        world.environment |= oauth.environment
        world.environment["ANTHROPIC_BASE_URL"] = api.url
        world.environment["NODE_EXTRA_CA_CERTS"] = str(certificate)
        names = ("ANTHROPIC_BASE_URL", "HTTPS_PROXY", "NODE_EXTRA_CA_CERTS")
        options = [word for name in names for word in ("--env", name)]
        result = world.run("claudebox", "-y", *options, "--", "-p", "hello")
        assert result.stdout == "with oauth\n"
        assert oauth.refreshes == 1
    login = json.loads(file.read_text())["claudeAiOauth"]
    assert login["accessToken"] != access and login["expiresAt"] > time.time() * 1000
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_login_made_inside_lasts_for_the_next_launch(world):
    login = credentials("sk-ant-oat01-a", "sk-ant-ort01-b")
    directory = "$CLAUDE_SECURESTORAGE_CONFIG_DIR"
    world.inside(
        f"umask 077; printf %s '{login}' > {directory}/new; "
        f"mv {directory}/new {directory}/.credentials.json"
    )
    result = world.inside(f"cat {directory}/.credentials.json; claude auth status")
    assert login in result.stdout
    assert '"loggedIn": true' in result.stdout
    file = world.state / "credentials/.credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_api_key_wins_over_oauth(world):
    (world.home / ".claude").mkdir()
    with FakeMessagesAPI([text("ok")]) as api, FakeOAuth(api) as oauth:
        (world.home / ".claude/.credentials.json").write_text(credentials(*oauth.login()))
        ask(world, api, "hello")
        assert api.main_requests[0].token == api.environment["ANTHROPIC_API_KEY"]


def test_an_empty_api_key_counts_as_unset_and_is_noted(world):
    result = world.inside("env", env={"ANTHROPIC_API_KEY": ""})
    assert "ANTHROPIC_API_KEY" not in result.stdout
    assert "ANTHROPIC_API_KEY is set but empty" in result.stderr


def test_what_the_user_and_claude_wrote_into_the_instance_stays(world):
    world.inside("true")
    claude = world.instances()[0] / "claude"
    configuration = json.loads((claude / ".claude.json").read_text())
    configuration["theme"] = "light"
    configuration["projects"][str(world.project)]["history"] = ["x"]
    (claude / ".claude.json").write_text(json.dumps(configuration))
    (claude / "CLAUDE.md").write_text("My own line.\n@SANDBOX.md\n")
    (claude / "settings.json").write_text('{"model": "opus"}')
    world.inside("true", env={"ANTHROPIC_API_KEY": "sk-ant-api03-" + "k" * 40})
    after = json.loads((claude / ".claude.json").read_text())
    assert after.pop("customApiKeyResponses") == {"approved": ["k" * 20]}
    assert after == configuration
    assert (claude / "CLAUDE.md").read_text() == "My own line.\n@SANDBOX.md\n"
    assert (claude / "settings.json").read_text() == '{"model": "opus"}'


def test_an_instance_is_a_private_directory_named_by_its_root(world):
    world.inside("true")
    from hashlib import sha256

    (instance,) = world.instances()
    assert instance.name == sha256(os.fsencode(world.project)).hexdigest()[:16]
    assert stat.S_IMODE(instance.stat().st_mode) == 0o700
    metadata = json.loads((instance / "instance.json").read_text())
    assert metadata["root"] == str(world.project)
    assert abs(metadata["last_used"] - time.time()) < 60


@pytest.mark.parametrize("how", ["native", "npm"])
def test_claude_is_found_where_its_installers_put_it(world, how):
    """The native installer links ~/.local/bin/claude to a version; npm to a file of a package."""
    binary = os.path.realpath(subprocess.check_output(["which", "claude"], text=True).strip())
    if how == "native":
        program = world.home / ".local/share/claude/versions/9.9.9"
        link = world.home / ".local/bin/claude"
    else:
        program = world.home / ".nvm/versions/node/v22/lib/node_modules/claude-code/bin/claude.exe"
        link = world.home / ".nvm/versions/node/v22/bin/claude"
    for path in (program, link):
        path.parent.mkdir(parents=True)
    try:
        os.link(binary, program)
    except OSError:
        program.write_bytes(Path(binary).read_bytes())
        program.chmod(0o755)
    link.symlink_to(program)
    world.environment["PATH"] = f"{world.environment['PATH'].split(':')[0]}:{link.parent}:/usr/bin"
    result = world.inside("claude --version; ls -A ~; ls -A ~/.local ~/.nvm")
    assert "Claude Code" in result.stdout
    assert result.stdout.splitlines()[1:] == [".claude", "project"]
