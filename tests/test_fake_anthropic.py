"""The stand-ins for Anthropic's servers, held against the real claude, without a sandbox."""

import json
import os
import shutil
import subprocess
import time

import pytest
from fake_anthropic import FakeMessagesAPI, FakeOAuth, credentials, text, tool_use

INSTALL = (
    "claude is missing; to install it: npm install -g @anthropic-ai/claude-code-linux-x64 && "
    'ln -s "$(npm root -g)/@anthropic-ai/claude-code-linux-x64/claude" /usr/local/bin/claude'
)


@pytest.fixture
def ask(tmp_path):
    """Runs `claude -p hello` in an empty home with exactly this environment."""
    claude = shutil.which("claude") or pytest.fail(INSTALL)
    (tmp_path / ".claude").mkdir()
    (tmp_path / "project").mkdir()
    base = {
        "HOME": str(tmp_path),
        "CLAUDE_CONFIG_DIR": str(tmp_path / ".claude"),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "TMPDIR": str(tmp_path),
        "IS_SANDBOX": "1",
        "DISABLE_AUTOUPDATER": "1",
    }

    def run(environment):
        done = subprocess.run(
            [claude, "--dangerously-skip-permissions", "-p", "hello"],
            env={**base, **environment},
            cwd=tmp_path / "project",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    return run


def test_a_reply_reaches_the_user(ask):
    with FakeMessagesAPI([text("words of the test")]) as api:
        assert ask(api.environment) == "words of the test"
    assert api.main_requests[0].token == api.environment["ANTHROPIC_API_KEY"]


def test_a_tool_is_run_and_its_result_comes_back(ask, tmp_path):
    command = {"command": "echo from bash | tee out.txt", "description": "Write a file"}
    with FakeMessagesAPI([tool_use("Bash", command), text("done")]) as api:
        assert ask(api.environment) == "done"
    assert (tmp_path / "project/out.txt").read_text() == "from bash\n"
    assert [one.tool_results() for one in api.main_requests] == [[], ["from bash"]]


def test_a_valid_login_is_used_as_it_is(ask, tmp_path):
    file = tmp_path / ".claude/.credentials.json"
    with FakeMessagesAPI([text("hello")], accepted_tokens=()) as api, FakeOAuth(api) as oauth:
        access, refresh = oauth.login()
        before = credentials(access, refresh)
        file.write_text(before)
        assert ask(oauth.environment) == "hello"
    assert api.main_requests[0].headers["authorization"] == f"Bearer {access}"
    assert oauth.refreshes == 0
    assert file.read_text() == before


def test_an_expired_login_is_refreshed_once(ask, tmp_path):
    file = tmp_path / ".claude/.credentials.json"
    with FakeMessagesAPI([text("hello")], accepted_tokens=()) as api, FakeOAuth(api) as oauth:
        access, refresh = oauth.login()
        api.accepted_tokens.discard(access)
        file.write_text(credentials(access, refresh, int(time.time() - 3600) * 1000))
        assert ask(oauth.environment) == "hello"
    assert oauth.log == [(refresh, "refreshed")]
    login = json.loads(file.read_text())["claudeAiOauth"]
    assert login["accessToken"] == api.main_requests[0].token != access
    assert login["refreshToken"] != refresh
    assert login["expiresAt"] > time.time() * 1000
    assert os.stat(file).st_mode & 0o777 == 0o600
