"""Probes for the environment: what a caller's variables, and processes that show them, give away."""

import contextlib
import os

from probes import CANARY, FACTS, NotHere, declare, named

probe = declare("environment")

# Set for the caller of claudebox, each to the canary.
VARIABLES = {
    "cloud": (
        "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AZURE_CLIENT_SECRET"
        " GOOGLE_APPLICATION_CREDENTIALS CLOUDFLARE_API_TOKEN DIGITALOCEAN_ACCESS_TOKEN"
        " HCLOUD_TOKEN LINODE_TOKEN OS_PASSWORD VAULT_TOKEN TF_VAR_password KUBECONFIG"
    ),
    "forge": "GITHUB_TOKEN GH_TOKEN GITLAB_TOKEN BITBUCKET_PASSWORD GITEA_TOKEN HOMEBREW_GITHUB_API_TOKEN",
    "package": "NPM_TOKEN NODE_AUTH_TOKEN PYPI_TOKEN TWINE_PASSWORD CARGO_REGISTRY_TOKEN GEM_HOST_API_KEY",
    "model": (
        "OPENAI_API_KEY GEMINI_API_KEY HF_TOKEN MISTRAL_API_KEY ANTHROPIC_AUTH_TOKEN"
        " CLAUDE_CODE_OAUTH_TOKEN"
    ),
    "database": "DATABASE_URL PGPASSWORD MYSQL_PWD REDIS_URL MONGODB_URI RABBITMQ_DEFAULT_PASS",
    "ci": "CI_JOB_TOKEN ACTIONS_RUNTIME_TOKEN JENKINS_TOKEN SENTRY_DSN SLACK_TOKEN STRIPE_SECRET_KEY",
    "agent": (
        "SSH_AUTH_SOCK SSH_AGENT_PID GPG_AGENT_INFO GNUPGHOME SSH_CONNECTION SSH_ASKPASS"
        " GNOME_KEYRING_CONTROL SUDO_ASKPASS SUDO_USER"
    ),
    "desktop": (
        "DBUS_SESSION_BUS_ADDRESS DBUS_SYSTEM_BUS_ADDRESS DISPLAY WAYLAND_DISPLAY XAUTHORITY"
        " XDG_RUNTIME_DIR XDG_DATA_DIRS XDG_CONFIG_HOME PULSE_SERVER PIPEWIRE_REMOTE DESKTOP_SESSION"
        " TMUX STY VSCODE_IPC_HOOK_CLI WINDOWID INVOCATION_ID NOTIFY_SOCKET LISTEN_FDS"
    ),
    "container": "DOCKER_HOST DOCKER_CONFIG CONTAINER_HOST REGISTRY_AUTH_FILE BUILDKIT_HOST",
    "proxy": "HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy NO_PROXY",
    "loader": (
        "LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT LD_DEBUG_OUTPUT LD_PROFILE_OUTPUT GCONV_PATH LOCPATH"
        " NLSPATH MALLOC_TRACE GETCONF_DIR HOSTALIASES RES_OPTIONS RESOLV_HOST_CONF LOCALDOMAIN"
    ),
    "shell": "BASH_ENV ENV PROMPT_COMMAND PS4 CDPATH HISTFILE INPUTRC ZDOTDIR BASH_FUNC_canary%%",
    "interpreter": (
        "PYTHONPATH PYTHONSTARTUP PYTHONUSERBASE PYTHONBREAKPOINT PERL5LIB PERL5OPT RUBYOPT RUBYLIB"
        " NODE_OPTIONS NODE_PATH NODE_EXTRA_CA_CERTS JAVA_TOOL_OPTIONS _JAVA_OPTIONS CLASSPATH"
        " GOFLAGS RUSTC_WRAPPER CC MAKEFLAGS LUA_PATH PHPRC R_PROFILE JULIA_LOAD_PATH DOTNET_ROOT"
    ),
    "git": (
        "GIT_SSH_COMMAND GIT_SSH GIT_ASKPASS GIT_CONFIG_GLOBAL GIT_CONFIG_PARAMETERS GIT_DIR"
        " GIT_EXTERNAL_DIFF GIT_PAGER GIT_EDITOR GIT_TEMPLATE_DIR GIT_EXEC_PATH GIT_PROXY_COMMAND"
    ),
    "tool": "LESSOPEN LESSCLOSE MANPAGER BROWSER TERMINFO TERMCAP CURL_HOME WGETRC NETRC DIRENV_DIFF",
    "plain": "MY_PASSWORD COMPANY_INTERNAL_HOST SECRET lower_case_secret PWD_OLD OLDPWD MAIL",
}
# The loader and the interpreter of the tests' own processes would trip over these values.
HARMLESS_VALUES = {
    "LD_PRELOAD": "/nonexistent/",
    "PYTHONPATH": "/nonexistent/",
    "MALLOC_TRACE": "/dev/null#",
}


def caller() -> dict[str, str]:
    """Return the variables of the caller of claudebox, each with the canary in its value."""
    return {
        name: f"{HARMLESS_VALUES.get(name, '')}{CANARY}-env-{name}"
        for names in VARIABLES.values()
        for name in names.split()
    }


def _shown_in(environment: bytes, names) -> str | None:
    entries = dict(entry.partition(b"=")[::2] for entry in environment.split(b"\0"))
    for name in names:
        if CANARY.encode() in entries.get(name.encode(), b""):
            return name
    return None


def _group(kind, names):
    def look():
        for name in names:
            if CANARY in os.environ.get(name, ""):
                return name
        with open("/proc/self/environ", "rb") as file:
            return _shown_in(file.read(), names)

    return look


for _kind, _names in VARIABLES.items():
    probe()(
        named(
            f"variables_{_kind}",
            f"Variables of this kind are not let in: {_kind} ({' '.join(_names.split()[:2])}, …).",
            _group(_kind, _names.split()),
        )
    )


@probe()
def any_variable_with_a_canary():
    """No variable at all has a value from the caller but those of the allowlist."""
    for name, value in os.environ.items():
        if CANARY in value:
            return name
    return None


@probe()
def environment_of_process_one():
    """The environment of process 1 inside, which is bwrap's own, holds nothing more."""
    if not FACTS["sandboxed"]:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            return CANARY.encode() in file.read() and "the parent's environment"
    with open("/proc/1/environ", "rb") as file:
        return CANARY.encode() in file.read() and "/proc/1/environ"


def _of_every_process(name):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
            if CANARY.encode() in file.read(1 << 20):
                return f"/proc/{pid}/{name}"
    return None


@probe()
def environment_of_every_process():
    """No process that can be seen shows a canary in its environment."""
    return _of_every_process("environ")


@probe()
def command_line_of_every_process():
    """No process that can be seen shows a canary in its command line."""
    return _of_every_process("cmdline")


@probe()
def environment_of_a_host_process():
    """The environment of a process of the host cannot be read by its pid."""
    with open(f"/proc/{FACTS['victim']}/environ", "rb") as file:
        return CANARY.encode() in file.read() and f"/proc/{FACTS['victim']}/environ"


@probe()
def command_line_of_a_host_process():
    """The command line of a process of the host cannot be read by its pid."""
    with open(f"/proc/{FACTS['victim']}/cmdline", "rb") as file:
        return CANARY.encode() in file.read() and f"/proc/{FACTS['victim']}/cmdline"


@probe()
def stack_of_the_own_process():
    """The memory where the kernel put the environment of this process holds no canary."""
    with open("/proc/self/maps") as maps:
        line = next((line for line in maps if "[stack]" in line), None)
    if line is None:
        raise NotHere("no stack is to be seen in /proc/self/maps")
    start, end = (int(text, 16) for text in line.split()[0].split("-"))
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        content = memory.read(end - start)
    return (CANARY + "-env").encode() in content and "the stack"


@probe()
def variables_in_a_login_shell():
    """A login shell inside, which reads what profiles it finds, has no canary in its environment."""
    import subprocess

    answer = subprocess.run(["/bin/bash", "-l", "-c", "env"], capture_output=True, timeout=20)
    return CANARY.encode() in answer.stdout and "env of a login shell"


@probe(observed=True)
def values_on_command_lines():
    """No command line on the host shows a value that is let in, to whoever may run ps."""


@probe(observed=True)
def environment_of_bwrap():
    """The environment of bwrap itself, outside, holds nothing that is not let in."""
