"""What an earlier session could have left for the next launch to trip over.

A trap is a function that changes what such a session can write: the project, the `claude` directory
of the instance, the shared credentials. It must not make the launcher read, write or mount anything
elsewhere, nor hang, nor end in a traceback.
"""

import json
import os


class Trap:
    """Its name and sentence, how it is set, and why no careless launcher can show it."""

    def __init__(self, function, repository, no_control):
        self.name = function.__name__
        self.sentence = function.__doc__.partition("\n")[0]
        self.set = function
        self.repository = repository
        self.no_control = no_control


TRAPS: dict[str, Trap] = {}
_BY_EXCEPT = "nothing but an except clause holds it, which the fuzzing of the readers takes away"


def trap(repository=True, no_control=None):
    """Declare a trap for a project that is a repository, or that is none."""

    def register(function):
        declared = Trap(function, repository, no_control)
        TRAPS[declared.name] = declared
        return function

    return register


def _remove(path):
    import shutil

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _link(target, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _remove(path)
    os.symlink(target, path)


def _write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _remove(path)
    with open(path, "w") as file:
        file.write(text)


def _pipe(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _remove(path)
    os.mkfifo(path)


def _huge(path):
    """Make a file of 64 GiB that takes no space."""
    _write(path, "")
    os.truncate(path, 64 << 30)


# --------------------------------------------------------------------------- mount points


@trap(repository=False)
def git_links_to_keys(place):
    """A link .git -> ~/.ssh is not mounted."""
    _link(f"{place.home}/.ssh", f"{place.project}/.git")


@trap(repository=False)
def git_links_to_nothing(place):
    """A link .git to a name in ~/.ssh that is not there makes nothing there."""
    _link(f"{place.home}/.ssh/new", f"{place.project}/.git")


@trap(repository=False)
def git_file_names_keys(place):
    """A file .git that names ~/.ssh does not get it mounted."""
    _write(f"{place.project}/.git", f"gitdir: {place.home}/.ssh\n")


@trap(repository=False)
def git_file_names_another_repository(place):
    """A file .git that names another repository, which does not link back, does not get it mounted."""
    _write(f"{place.project}/.git", f"gitdir: {place.other}/.git\n")


@trap(repository=False)
def git_file_claims_a_worktree(place):
    """A file .git that claims to be a worktree of another repository does not get that mounted."""
    own = f"{place.project}/fake/worktrees/x"
    _write(f"{own}/gitdir", f"{place.project}/.git\n")
    _write(f"{own}/commondir", f"{place.other}/.git\n")
    _write(f"{place.project}/.git", f"gitdir: {own}\n")


@trap(repository=False)
def git_is_a_pipe(place):
    """A named pipe .git does not hold the launch up."""
    _pipe(f"{place.project}/.git")


@trap(repository=False)
def git_file_is_huge(place):
    """A huge file .git is not read as a whole."""
    _huge(f"{place.project}/.git")


@trap()
def common_directory_is_elsewhere(place):
    """commondir, left from before, does not get another repository mounted."""
    _write(f"{place.project}/.git/commondir", f"{place.other}/.git\n")


def _git_link(name, repository=True):
    def make(place):
        _link(f"{place.home}/.ssh", f"{place.project}/.git/{name}")

    make.__name__ = f"git_{name.replace('/', '_')}_links_to_keys".replace(".", "_")
    make.__doc__ = f"A link .git/{name} -> ~/.ssh is not mounted."
    trap(repository)(make)


for _name in ("hooks", "info", "branches", "remotes"):
    _git_link(_name)


def _git_file_link(name):
    def make(place):
        _link(f"{place.home}/.ssh/id_ed25519", f"{place.project}/.git/{name}")

    make.__name__ = f"git_{name.replace('/', '_')}_links_to_a_key".replace(".", "_")
    make.__doc__ = f"A link .git/{name} to a key is not mounted and not read."
    trap()(make)


for _name in ("config", "config.worktree", "commondir", "info/attributes", "info/exclude"):
    _git_file_link(_name)


def _make_repository(path):
    _write(f"{path}/HEAD", "ref: refs/heads/main\n")
    for name in ("objects", "refs"):
        os.makedirs(f"{path}/{name}", exist_ok=True)


@trap()
def module_links_to_keys(place):
    """A link .git/modules/x -> ~/.ssh is no submodule."""
    _make_repository(f"{place.home}/.ssh")
    _link(f"{place.home}/.ssh", f"{place.project}/.git/modules/x")


@trap()
def modules_link_to_keys(place):
    """A link .git/modules -> ~/.ssh is not looked through."""
    _make_repository(f"{place.home}/.ssh/x")
    _link(f"{place.home}/.ssh", f"{place.project}/.git/modules")


@trap()
def worktrees_link_to_keys(place):
    """A link .git/worktrees -> ~/.ssh is not looked through."""
    os.makedirs(f"{place.home}/.ssh/x")
    _link(f"{place.home}/.ssh", f"{place.project}/.git/worktrees")


@trap()
def nested_git_links_to_keys(place):
    """A link sub/.git -> ~/.ssh is not mounted."""
    os.makedirs(f"{place.project}/sub")
    _link(f"{place.home}/.ssh", f"{place.project}/sub/.git")


@trap()
def nested_git_file_names_keys(place):
    """A file sub/.git that names ~/.ssh does not get it mounted."""
    _write(f"{place.project}/sub/.git", f"gitdir: {place.home}/.ssh\n")


@trap()
def nested_configuration_links_to_a_key(place):
    """A link sub/.git/config to a key is not mounted."""
    _make_repository(f"{place.project}/sub/.git")
    _link(f"{place.home}/.ssh/id_ed25519", f"{place.project}/sub/.git/config")


@trap()
def nested_configuration_includes_keys(place):
    """A repository that was made inside and includes a key makes nothing of that key visible."""
    _make_repository(f"{place.project}/sub/.git")
    _link(f"{place.home}/.ssh/id_ed25519", f"{place.project}/sub/team")
    _write(f"{place.project}/sub/.git/config", "[include]\n\tpath = ../team\n")


@trap()
def bare_directory_links_to_nothing(place):
    """A link refs -> a name in ~/.ssh makes nothing there."""
    _link(f"{place.home}/.ssh/new", f"{place.project}/refs")


@trap()
def claude_links_to_the_root(place):
    """A link .claude -> / is not followed."""
    _link("/", f"{place.project}/.claude")


@trap()
def claude_links_to_keys(place):
    """A link .claude -> ~/.ssh is not followed: no settings.json is made there."""
    _link(f"{place.home}/.ssh", f"{place.project}/.claude")


def _settings(name):
    plain = name.replace("/", "_").replace(".", "_").strip("_")

    def link(place):
        _link(f"{place.home}/.ssh/id_ed25519", f"{place.project}/{name}")

    def dangling(place):
        _link(f"{place.home}/.ssh/new", f"{place.project}/{name}")

    def oldroot(place):
        _link(f"/oldroot{place.home}/.ssh/new", f"{place.project}/{name}")

    def pipe(place):
        _pipe(f"{place.project}/{name}")

    for function, what, sentence in (
        (link, "links_to_a_key", f"A link {name} to a key is not mounted."),
        (dangling, "links_to_nothing", f"A link {name} into ~/.ssh makes nothing there."),
        # bwrap before 0.12 follows it to the host's root, which it has there (CVE-2026-87766).
        (
            oldroot,
            "links_into_oldroot",
            f"A link {name} into bwrap's own view makes nothing there.",
        ),
        (pipe, "is_a_pipe", f"A named pipe {name} does not hold the launch up."),
    ):
        function.__name__ = f"{plain}_{what}"
        function.__doc__ = sentence
        trap()(function)


for _name in (".mcp.json", ".claude/settings.json", ".claude/settings.local.json"):
    _settings(_name)


@trap()
def mcp_is_huge(place):
    """A huge .mcp.json is not read as a whole."""
    _huge(f"{place.project}/.mcp.json")


@trap(
    no_control="what holds it is a limit of entries: a launcher without one would only take longer"
)
def deep_directories(place):
    """Directories that are nested deeper than a path can be long do not hold the launch up."""
    current = os.open(place.project, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=current)
        following = os.open("deep", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = following
    os.close(current)


# --------------------------------------------------------------------------- the instance


def _instance(name):
    plain = name.strip(".").replace(".", "_").replace("-", "_").lower()

    def link(place):
        # Such as the launcher would go on with, if it read it.
        keys = "keys.json" if name.endswith(".json") else "authorized_keys"
        _link(f"{place.home}/.ssh/{keys}", f"{place.claude}/{name}")

    def dangling(place):
        _link(f"{place.home}/.ssh/new", f"{place.claude}/{name}")

    def pipe(place):
        _pipe(f"{place.claude}/{name}")

    def huge(place):
        _huge(f"{place.claude}/{name}")

    for function, what, sentence in (
        (link, "links_to_keys", f"A link {name} in the instance is not read or written through."),
        (
            dangling,
            "links_to_nothing",
            f"A link {name} in the instance makes nothing where it leads.",
        ),
        (pipe, "is_a_pipe", f"A named pipe {name} in the instance does not hold the launch up."),
        (huge, "is_huge", f"A huge {name} in the instance is not read as a whole."),
    ):
        function.__name__ = f"instance_{plain}_{what}"
        function.__doc__ = sentence
        trap()(function)


for _name in ("CLAUDE.md", "SANDBOX.md", ".claude.json"):
    _instance(_name)


def _instance_directory(name):
    plain = name.strip(".").replace(".", "_").replace("-", "_").lower()

    def make(place):
        _remove(f"{place.claude}/{name}")
        os.makedirs(f"{place.claude}/{name}/deeper")

    make.__name__ = f"instance_{plain}_is_a_directory"
    make.__doc__ = f"A directory {name} in the instance ends the launch in one line, if at all."
    trap(no_control=_BY_EXCEPT)(make)


for _name in ("CLAUDE.md", "SANDBOX.md", ".claude.json"):
    _instance_directory(_name)


@trap()
def instance_temporary_links_to_keys(place):
    """A link with the name of claudebox's temporary file is not written through."""
    _link(f"{place.home}/.ssh/authorized_keys", f"{place.claude}/.claudebox-temporary")
    _remove(f"{place.claude}/SANDBOX.md")


@trap(no_control=_BY_EXCEPT)
def instance_temporary_is_a_directory(place):
    """A directory with the name of claudebox's temporary file ends the launch in one line, if at all."""
    os.makedirs(f"{place.claude}/.claudebox-temporary/x")
    _remove(f"{place.claude}/SANDBOX.md")


@trap(no_control=_BY_EXCEPT)
def instance_configuration_is_nested(place):
    """JSON that is nested 100,000 deep in the instance is no traceback."""
    _write(f"{place.claude}/.claude.json", "[" * 100_000)


@trap(no_control=_BY_EXCEPT)
def instance_configuration_is_garbage(place):
    """What is no JSON in the instance is no traceback, and is kept under no name that is a link."""
    _write(f"{place.claude}/.claude.json", "\0{")
    _link(f"{place.home}/.ssh/authorized_keys", f"{place.claude}/.claude.json.corrupted")


@trap(no_control=_BY_EXCEPT)
def instance_configuration_has_other_types(place):
    """JSON of other types than expected in the instance is no traceback."""
    odd = {"projects": 3, "customApiKeyResponses": [], "hasCompletedOnboarding": {"a": 1e400}}
    _write(f"{place.claude}/.claude.json", json.dumps(odd))


@trap()
def instance_is_a_link(place):
    """An instance that is a symbolic link is not used."""
    _remove(place.instance)
    _link(f"{place.home}/.ssh", place.instance)


@trap()
def instance_claude_is_a_link(place):
    """A `claude` directory of an instance that is a symbolic link is not mounted."""
    _remove(place.claude)
    _link(f"{place.home}/.ssh", place.claude)


@trap()
def instance_metadata_links_to_keys(place):
    """Metadata of an instance that is a symbolic link is not read or written through."""
    _link(f"{place.home}/.ssh/authorized_keys", f"{place.instance}/instance.json")


@trap()
def instance_metadata_is_huge(place):
    """Huge metadata of an instance is not read as a whole."""
    _huge(f"{place.instance}/instance.json")


@trap(no_control=_BY_EXCEPT)
def instance_metadata_is_odd(place):
    """Metadata with other types than expected is no traceback."""
    _write(f"{place.instance}/instance.json", '{"root": ["x"], "created": 1e999, "mount": 3}')


@trap()
def instance_record_links_to_keys(place):
    """A record of stand-ins that is a symbolic link is not read through."""
    _link(f"{place.home}/.ssh/authorized_keys", f"{place.instance}/standins.json")


@trap()
def instance_lock_links_to_nothing(place):
    """A lock of an instance that is a symbolic link makes nothing where it leads."""
    _link(f"{place.home}/.ssh/new", f"{place.instance}/lock")


@trap()
def instance_planted_for_a_project(place):
    """An instance with the metadata of another project is not used for this one."""
    _write(f"{place.instance}/instance.json", json.dumps({"root": "/other", "created": 1}))
    _write(f"{place.claude}/settings.json", place.canary)


# --------------------------------------------------------------------------- credentials


@trap()
def credentials_link_to_a_key(place):
    """A link .credentials.json in the shared directory is not read or mounted through."""
    _write(f"{place.home}/.claude/.credentials.json", "{}")
    _link(f"{place.home}/.ssh/id_ed25519", f"{place.credentials}/.credentials.json")


@trap()
def credentials_link_to_nothing(place):
    """A link .credentials.json in the shared directory makes nothing where it leads."""
    _link(f"{place.home}/.ssh/new", f"{place.credentials}/.credentials.json")
    _write(f"{place.home}/.claude/.credentials.json", "{}")


@trap()
def credentials_are_a_pipe(place):
    """A named pipe .credentials.json in the shared directory does not hold the launch up."""
    _write(f"{place.home}/.claude/.credentials.json", "{}")
    _pipe(f"{place.credentials}/.credentials.json")


@trap(no_control=_BY_EXCEPT)
def credentials_are_a_directory(place):
    """A directory .credentials.json in the shared directory ends the launch in one line, if at all."""
    os.makedirs(f"{place.credentials}/.credentials.json/x")


@trap()
def credentials_of_the_host_are_huge(place):
    """A login that a session made huge is not read as a whole."""
    _write(f"{place.home}/.claude/.credentials.json", "{}")
    os.truncate(f"{place.home}/.claude/.credentials.json", 64 << 30)


@trap(no_control=_BY_EXCEPT)
def credentials_of_the_host_are_nested(place):
    """A login that a session nested 100,000 deep is no traceback."""
    _write(f"{place.home}/.claude/.credentials.json", '{"claudeAiOauth":' * 100_000)
