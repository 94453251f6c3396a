"""Stand-ins on loopback for the Messages API and the OAuth endpoint, so that tests can run claude."""

import argparse
import contextlib
import http.server
import json
import secrets
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

API_HOST = "api.anthropic.com"
TOKEN_HOST = "platform.claude.com"
TOKEN_PATH = "/v1/oauth/token"
# Every host that the fake proxy has a certificate for; it refuses all others, so that nothing
# that claude sends in a test leaves the machine.
HOSTS = (API_HOST, TOKEN_HOST, "console.anthropic.com", "claude.ai", "claude.com")

# claude looks for the first of these texts.
BAD_KEY = "invalid x-api-key"
BAD_BEARER = "OAuth token has expired. Please obtain a new token or refresh your existing token."

API_KEY = "sk-ant-api03-claudebox-test-" + "k" * 60 + "-AAAAAAAA"
SCOPES = (
    "user:inference",
    "user:profile",
    "user:sessions:claude_code",
    "user:mcp_servers",
    "user:file_upload",
)

# Status, content type, body.
Answer = tuple[int, str, bytes]


@dataclass(frozen=True)
class Reply:
    """What the model says in one turn, or (with `status` not 200) the error it fails with."""

    content: tuple[dict, ...] = ()
    stop_reason: str = "end_turn"
    status: int = 200
    error: dict = field(default_factory=dict)


def text(words: str) -> Reply:
    """The model says `words` and ends its turn."""
    return Reply(({"type": "text", "text": words},))


def tool_use(name: str, arguments: dict) -> Reply:
    """The model calls a tool; claude runs it and comes back with the result, for the next reply."""
    call = {"type": "tool_use", "id": "toolu_" + secrets.token_hex(12), "name": name}
    return Reply(({**call, "input": arguments},), "tool_use")


def error(status: int, kind: str, message: str) -> Reply:
    """The API fails one request, for example `error(529, "overloaded_error", "Overloaded")`.

    claude asks again after most failures (even six times after a 400), and each time uses up a reply.
    """
    return Reply(status=status, error={"type": kind, "message": message})


def credentials(
    access: str, refresh: str, expires_at_ms: int | None = None, scopes: Iterable[str] = SCOPES
) -> str:
    """The text of a `.credentials.json`; without `expires_at_ms` it is valid for eight hours."""
    if expires_at_ms is None:
        expires_at_ms = int((time.time() + 8 * 3600) * 1000)
    login = {
        "accessToken": access,
        "refreshToken": refresh,
        "expiresAt": expires_at_ms,
        "scopes": list(scopes),
        "subscriptionType": "max",
        # Without it claude rewrites the file at once, although no token is new.
        "subscriptionTypeSource": "sign_in",
        "rateLimitTier": "default_claude_max_20x",
    }
    return json.dumps({"claudeAiOauth": login})


@dataclass(frozen=True)
class Request:
    """One request as it arrived; `headers` has lower-case names, `body` is parsed JSON or None."""

    method: str
    host: str
    path: str
    headers: dict[str, str]
    body: dict | list | None
    status: int = 0

    @property
    def token(self) -> str | None:
        """The bearer token or API key that the request carries."""
        bearer = self.headers.get("authorization", "")
        return bearer.removeprefix("Bearer ") or self.headers.get("x-api-key")

    @property
    def is_main_loop(self) -> bool:
        """Whether the conversation itself asks, and not a title, a quota check or a token count."""
        if self.path != "/v1/messages" or not isinstance(self.body, dict):
            return False
        return any(tool.get("name") == "Bash" for tool in self.body.get("tools") or ())

    def tool_results(self) -> list[str]:
        """The texts of the tool results in the last message."""
        found = []
        for block in _blocks(self.body["messages"][-1]["content"]):
            if block["type"] == "tool_result":
                inner = _blocks(block.get("content") or "")
                found.append("".join(part.get("text", "") for part in inner))
        return found


def _blocks(content: str | list) -> list[dict]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server.HTTPServer: its server_bind asks the DNS for the name of the address.
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        # claude closes connections whenever it likes: that is no failure.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Service:
    """A server in a thread, as a context manager."""

    tls: ssl.SSLContext | None = None

    def __init__(self, host: str, port: int):
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._requests: list[Request] = []
        handler = type("Handler", (_Handler,), {"service": self})
        self._server = _Server((host, port), handler)
        self.port = self._server.server_address[1]
        self.url = f"http://{host}:{self.port}"

    def __enter__(self):
        serve = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        serve.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def requests(self) -> list[Request]:
        """All requests that were answered so far, in order."""
        with self.lock:
            return list(self._requests)

    def wait_for(self, wanted: Callable[[Request], bool], timeout: float = 10) -> Request:
        """The first request that is wanted, as soon as there is one."""
        with self._changed:
            if self._changed.wait_for(lambda: any(map(wanted, self._requests)), timeout):
                return next(filter(wanted, self._requests))
        seen = ", ".join(f"{one.method} {one.path}" for one in self.requests) or "none"
        raise TimeoutError(f"no such request within {timeout} s; there were: {seen}")

    def answer(self, request: Request) -> Answer:
        raise NotImplementedError

    def record(self, request: Request, status: int) -> None:
        with self._changed:
            self._requests.append(replace(request, status=status))
            self._changed.notify_all()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: _Service
    tunnel_host = ""

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        """Ends the TLS of the tunnel here and reads the requests in it with this same handler."""
        host = self.path.rpartition(":")[0]
        if self.service.tls is None or host not in HOSTS:
            self.service.record(Request("CONNECT", host, self.path, {}, None), 403)
            self.send_error(403)
            self.close_connection = True
            return
        self.send_response(200)
        self.end_headers()
        self.connection = self.service.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb")
        self.tunnel_host = host
        self.close_connection = False

    def answer_request(self):
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        # A proxy is asked for http:// addresses with the whole URL in place of the path.
        target = urllib.parse.urlsplit(self.path)
        request = Request(
            self.command,
            self.tunnel_host or target.netloc or self.headers.get("host", ""),
            target.path,
            {name.lower(): value for name, value in self.headers.items()},
            body,
        )
        status, kind, payload = self.service.answer(request)
        self.service.record(request, status)
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(payload)))
        if status == 401:
            # Without this claude tries the same key again for minutes.
            self.send_header("x-should-retry", "false")
        self.send_header("request-id", "req_" + secrets.token_hex(12))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer_request


def _json(status: int, value: dict) -> Answer:
    return status, "application/json", json.dumps(value).encode()


def _failure(status: int, kind: str, message: str) -> Answer:
    return _json(status, {"type": "error", "error": {"type": kind, "message": message}})


class FakeMessagesAPI(_Service):
    """An Anthropic Messages API on loopback that says what the test wants it to say.

    `replies` is a list that the turns of the conversation use up one by one, or a function from
    the `Request` to a `Reply`; an item of the list may be such a function too. What claude asks
    beside the conversation (titles, quota checks) gets a plain text and uses up nothing. When the
    list is used up, the model says so.

    `accepted_tokens` is a set of bearer tokens and API keys, to be changed at any time; all others
    get a 401. None, the default, accepts everything.
    """

    def __init__(
        self,
        replies: Iterable[Reply | Callable] | Callable[[Request], Reply] = (),
        accepted_tokens: Iterable[str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ):
        super().__init__(host, port)
        self.replies = replies if callable(replies) else list(replies)
        self.accepted_tokens = None if accepted_tokens is None else set(accepted_tokens)
        self._broken: Reply | None = None

    @property
    def main_requests(self) -> list[Request]:
        """The requests of the conversation itself, without those that were refused."""
        return [one for one in self.requests if one.is_main_loop and one.status != 401]

    @property
    def environment(self) -> dict[str, str]:
        """What claude needs to come here with an API key."""
        return {"ANTHROPIC_BASE_URL": self.url, "ANTHROPIC_API_KEY": API_KEY}

    def accept(self, token: str) -> None:
        """Adds to `accepted_tokens`, if it restricts anything at all."""
        with self.lock:
            if self.accepted_tokens is not None:
                self.accepted_tokens.add(token)

    def answer(self, request: Request) -> Answer:
        refusal = self._refusal(request)
        if refusal:
            return _failure(401, "authentication_error", refusal)
        if not request.path.startswith("/v1/messages"):
            return self._answer_aside(request)
        if request.path == "/v1/messages/count_tokens":
            return _json(200, {"input_tokens": 10})
        if not isinstance(request.body, dict):
            return _failure(400, "invalid_request_error", "the body is not a JSON object")
        reply = self._next_reply(request) if request.is_main_loop else text("ok")
        if reply.status != 200:
            return _failure(reply.status, reply.error["type"], reply.error["message"])
        message = _message(reply, request.body.get("model", ""))
        if request.body.get("stream"):
            return 200, "text/event-stream", _events(message)
        return _json(200, message)

    def _refusal(self, request: Request) -> str | None:
        with self.lock:
            if self.accepted_tokens is None or request.token in self.accepted_tokens:
                return None
        if request.token is None and not request.path.startswith("/v1/"):
            return None
        return BAD_BEARER if request.headers.get("authorization") else BAD_KEY

    def _next_reply(self, request: Request) -> Reply:
        with self.lock:
            if self._broken:
                return self._broken
            if callable(self.replies):
                reply = self.replies
            elif self.replies:
                reply = self.replies.pop(0)
            else:
                reply = text("the test has no more replies")
        if not callable(reply):
            return reply
        try:
            return reply(request)
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as problem:
            # claude tries again with other beta headers after a 400, and must not get the next
            # reply then: the session ends with the problem.
            message = f"the test's reply failed: {problem!r}"
            self._broken = error(400, "invalid_request_error", message)
            return self._broken

    def _answer_aside(self, request: Request) -> Answer:
        if request.path == "/api/oauth/profile":
            return _json(200, PROFILE)
        return _json(200, {})


PROFILE = {
    "account": {
        "uuid": "00000000-0000-4000-8000-000000000001",
        "email": "test@example.com",
        "full_name": "Test",
        "display_name": "Test",
        "has_claude_max": True,
        "has_claude_pro": False,
        "created_at": "2024-01-01T00:00:00Z",
    },
    "organization": {
        "uuid": "00000000-0000-4000-8000-000000000002",
        "name": "Test",
        "organization_type": "claude_max",
        "rate_limit_tier": "default_claude_max_20x",
        "billing_type": "stripe_subscription",
        "has_extra_usage_enabled": False,
    },
}


def _message(reply: Reply, model: str) -> dict:
    return {
        "id": "msg_" + secrets.token_hex(12),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": list(reply.content),
        "stop_reason": reply.stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }


def _events(message: dict) -> bytes:
    events = [{"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}]
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            start, delta = {"text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            arguments = json.dumps(block["input"])
            start, delta = {"input": {}}, {"type": "input_json_delta", "partial_json": arguments}
        events += [
            {"type": "content_block_start", "index": index, "content_block": {**block, **start}},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]
    end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": end, "usage": message["usage"]})
    events.append({"type": "message_stop"})
    return "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events).encode()


class FakeOAuth(_Service):
    """A proxy (HTTPS_PROXY) that plays the hosts of Anthropic, with single-use refresh tokens.

    Whatever is not the token endpoint goes to `api` (and is in the `requests` of both). `login`
    makes a pair of tokens that is good; each refresh token works once, and a second use gets
    `invalid_grant`. The access tokens it issues are added to `api.accepted_tokens`. A refresh that
    succeeds takes `delay` seconds; a refusal comes at once, which is the worst case for claude.
    """

    def __init__(self, api: FakeMessagesAPI, delay: float = 0, expires_in: int = 8 * 3600):
        super().__init__("127.0.0.1", 0)
        self.api = api
        self.delay = delay
        self.expires_in = expires_in
        # (refresh token, "refreshed" | "used before" | "unknown"), in order.
        self.log: list[tuple[str, str]] = []
        self._good: set[str] = set()
        self._spent: set[str] = set()
        self._cleanup = contextlib.ExitStack()
        directory = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="fake-ca-"))
        self.ca = Path(directory, "ca.pem")
        self.tls = _tls(Path(directory))

    def __exit__(self, *details):
        super().__exit__(*details)
        self._cleanup.close()

    @property
    def environment(self) -> dict[str, str]:
        """What claude needs to take this for the internet."""
        return {"HTTPS_PROXY": self.url, "NODE_EXTRA_CA_CERTS": str(self.ca)}

    @property
    def refreshes(self) -> int:
        """How many refreshes succeeded."""
        with self.lock:
            return sum(verdict == "refreshed" for _, verdict in self.log)

    def login(self) -> tuple[str, str]:
        """A new access token and the refresh token that goes with it."""
        access = "sk-ant-oat01-" + secrets.token_urlsafe(64)
        refresh = "sk-ant-ort01-" + secrets.token_urlsafe(64)
        with self.lock:
            self._good.add(refresh)
        self.api.accept(access)
        return access, refresh

    def answer(self, request: Request) -> Answer:
        if request.path != TOKEN_PATH:
            answer = self.api.answer(request)
            self.api.record(request, answer[0])
            return answer
        asked = request.body or {}
        if asked.get("grant_type") != "refresh_token":
            return _json(400, {"error": "unsupported_grant_type"})
        verdict = self.spend(asked.get("refresh_token", ""))
        if verdict != "refreshed":
            return _json(
                400, {"error": "invalid_grant", "error_description": f"Refresh token {verdict}"}
            )
        time.sleep(self.delay)
        access, refresh = self.login()
        return _json(
            200,
            {
                "token_type": "Bearer",
                "access_token": access,
                "refresh_token": refresh,
                "expires_in": self.expires_in,
                "scope": " ".join(SCOPES),
                "account": {
                    "uuid": PROFILE["account"]["uuid"],
                    "email_address": PROFILE["account"]["email"],
                },
                "organization": {"uuid": PROFILE["organization"]["uuid"], "name": "Test"},
            },
        )

    def spend(self, refresh: str) -> str:
        """Uses a refresh token up, as a refresh elsewhere would; returns the verdict."""
        with self.lock:
            if refresh in self._spent:
                verdict = "used before"
            elif refresh in self._good:
                verdict = "refreshed"
                self._good.remove(refresh)
                self._spent.add(refresh)
            else:
                verdict = "unknown"
            self.log.append((refresh, verdict))
        return verdict


def _tls(directory: Path) -> ssl.SSLContext:
    """Makes a CA (ca.pem) and a certificate for all of `HOSTS` in the directory."""

    def make(name: str, *options: str) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        command = ("openssl", "req", "-x509", *key, "-days", "2", "-subj", f"/CN=test {name}")
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        subprocess.run((*command, *files, *options), cwd=directory, check=True, capture_output=True)

    make("ca")
    names = "subjectAltName=" + ",".join(f"DNS:{host}" for host in HOSTS)
    leaf = ("-addext", names, "-addext", "basicConstraints=critical,CA:FALSE")
    make("host", "-CA", "ca.pem", "-CAkey", "ca.key", *leaf)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "host.pem", directory / "host.key")
    return context


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a fake Messages API, to try by hand.")
    parser.add_argument("--port", type=int, default=8899)
    parser.add_argument("--reply", default="hello from the fake", help="what the model says")
    options = parser.parse_args()
    with FakeMessagesAPI(lambda _: text(options.reply), port=options.port) as api:
        print(*(f"{name}={value}" for name, value in api.environment.items()), flush=True)
        seen = 0
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                for request in api.requests[seen:]:
                    seen += 1
                    print(request.status, request.method, request.path, flush=True)
                time.sleep(0.2)


if __name__ == "__main__":
    main()
