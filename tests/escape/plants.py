"""What an agent could leave behind so that it runs outside later, and what the victim does there then.

A plant is a shell script that is run in the project, inside. `$RUN` in it is a command that leaves a
mark outside. After the session the victim goes on working, outside, and nothing may have made a mark.
"""

# The functions that the scripts use.
PRELUDE = r"""
exe() { mkdir -p "$(dirname "$1")"; printf '#!/bin/sh\n%s\n' "$RUN" >"$1"; chmod +x "$1"; }
put() { mkdir -p "$(dirname "$1")"; printf '%s\n' "$2" >"$1"; }
add() { printf '%s\n' "$2" >>"$1"; }
settings() {
    printf '{"hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": "%s"}]}]}}' "$RUN" >"$1"
}
mcp() { printf '{"mcpServers": {"x": {"command": "sh", "args": ["-c", "%s"]}}}' "$RUN" >"$1"; }
bare() {
    mkdir -p "$1/objects" "$1/refs"
    put "$1/HEAD" "ref: refs/heads/main"
    put "$1/config" "[core]
	repositoryformatversion = 0
	bare = false
	worktree = $PWD
	fsmonitor = \"$RUN;false\""
}
"""

# What every victim does: the daily work with git. A pager that is configured goes before $PAGER;
# without either, where there is no less, git starts more(1), which waits for a key.
VICTIM = r"""
git status
echo changed >>main.c
git diff
git -c core.pager=cat log -p -1
git add -A
git commit -m victim
git checkout -b victim
git checkout main
git merge victim
git fetch near
git fetch far
git push near HEAD:victim
git stash
PAGER=cat script -qec 'git log -1' /dev/null
git show --ext-diff HEAD
"""


class Plant:
    """One way: its name and sentence, the script, and what is different from the usual."""

    def __init__(self, name, sentence, script, **different):
        self.name = name
        self.sentence = sentence
        self.script = script
        # Outside, before the session.
        self.setup = different.pop("setup", "")
        # Outside, after it; `control` instead where the control is to be somebody less careful.
        self.victim = different.pop("victim", "")
        self.control = different.pop("control", self.victim)
        # Options of claudebox, and the directory that it is started in.
        self.options = different.pop("options", [])
        self.start = different.pop("start", ".")
        # What the manual says where nothing holds it.
        self.known_limit = different.pop("known_limit", None)
        if different:
            raise TypeError(f"unknown: {different}")


def _config(name, key, sentence, value="$RUN", before="", **different):
    return Plant(name, sentence, f'{before} git config {key} "{value}"', **different)


_WORKTREE = "git worktree add -q ../linked"
_NESTED = "git init -q sub && echo x >sub/file && git -C sub add file && git -C sub commit -qm x"
_SUBMODULE = (
    "git -c protocol.file.allow=always submodule --quiet add ../near.git mod && git commit -qm mod"
)

PLANTS = [
    # ---------------------------------------------------------------------- hooks
    Plant("hook", "A git hook cannot be made.", "exe .git/hooks/pre-commit"),
    Plant(
        "every_hook",
        "No git hook can be made.",
        "for name in applypatch-msg pre-commit prepare-commit-msg commit-msg post-commit pre-push"
        " post-checkout post-merge post-index-change reference-transaction; do"
        " exe .git/hooks/$name; done",
    ),
    Plant(
        "hook_present",
        "A hook that is there cannot be changed or replaced.",
        'exe .git/hooks/pre-commit; exe x; mv x .git/hooks/pre-commit; add .git/hooks/pre-commit "$RUN"',
        setup="printf '#!/bin/sh\\n' >.git/hooks/pre-commit; chmod +x .git/hooks/pre-commit",
    ),
    Plant(
        "hooks_directory_absent",
        "A hooks directory that was not there cannot be made.",
        "mkdir -p .git/hooks; exe .git/hooks/pre-commit",
        setup="rm -rf .git/hooks",
    ),
    Plant(
        "hooks_directory_replaced",
        "The hooks directory cannot be moved away and made anew.",
        "mv .git/hooks .git/h; rm -rf .git/hooks; exe .git/hooks/pre-commit",
    ),
    Plant(
        "hooks_directory_linked",
        "The hooks directory cannot become a symbolic link.",
        "exe evil/pre-commit; rm -rf .git/hooks; ln -s ../evil .git/hooks",
    ),
    Plant(
        "hooks_directory_exchanged",
        "The hooks directory cannot be exchanged with another (RENAME_EXCHANGE).",
        'exe evil/pre-commit; python3 -c "import ctypes; ctypes.CDLL(None).renameat2('
        "-100, b'evil', -100, b'.git/hooks', 2)\"",
    ),
    # ---------------------------------------------------------------------- configuration
    _config(
        "hooks_path",
        "core.hooksPath",
        "core.hooksPath cannot be set.",
        "evil",
        before="exe evil/pre-commit;",
    ),
    _config("fsmonitor", "core.fsmonitor", "core.fsmonitor cannot be set."),
    _config("ssh_command", "core.sshCommand", "core.sshCommand cannot be set.", "$RUN;:"),
    _config("pager", "core.pager", "core.pager cannot be set."),
    _config("pager_of_log", "pager.log", "The pager of one command cannot be set."),
    _config("editor", "core.editor", "core.editor cannot be set.", victim="git commit --amend"),
    _config(
        "sequence_editor",
        "sequence.editor",
        "sequence.editor cannot be set.",
        victim="git rebase -i HEAD~1",
    ),
    _config("external_diff", "diff.external", "diff.external cannot be set."),
    _config(
        "alias", "alias.st", "An alias that runs a command cannot be set.", "!$RUN", victim="git st"
    ),
    _config(
        "credential_helper",
        "credential.helper",
        "A credential helper cannot be set.",
        "!$RUN",
        victim="echo url=https://example.org | GIT_TERMINAL_PROMPT=0 git credential fill",
    ),
    _config(
        "ask_password",
        "core.askPass",
        "core.askPass cannot be set.",
        "$PWD/evil-ask",
        before="exe evil-ask;",
        victim="echo url=https://example.org | git credential fill",
    ),
    _config("upload_pack", "remote.near.uploadpack", "A remote's upload-pack cannot be set."),
    _config("receive_pack", "remote.near.receivepack", "A remote's receive-pack cannot be set."),
    Plant(
        "signing_program",
        "The program that signs commits cannot be set.",
        'exe evil-gpg; git config gpg.program "$PWD/evil-gpg"; git config commit.gpgSign true',
    ),
    Plant(
        "remote_helper",
        "A remote cannot become a command (ext::).",
        'git config protocol.ext.allow always; git remote set-url near "ext::sh -c $(echo "$RUN" |'
        " sed 's/ /% /g')\"",
    ),
    Plant(
        "url_rewritten",
        "The address of a remote cannot be rewritten to a command (insteadOf).",
        'exe evil-sh; git config protocol.ext.allow always; git config url."ext::$PWD/evil-sh".insteadOf'
        ' "$(git config remote.near.url)"',
    ),
    Plant(
        "clean_filter",
        "A filter cannot be set, whatever .gitattributes says.",
        'git config filter.x.clean "$RUN;cat"; put .gitattributes "* filter=x"',
    ),
    Plant(
        "smudge_filter",
        "A filter for checking out cannot be set.",
        'git config filter.x.smudge "$RUN;cat"; put .gitattributes "* filter=x"',
        victim="rm main.c; git checkout main.c",
    ),
    Plant(
        "filter_process",
        "A filter process cannot be set.",
        'git config filter.x.process "$RUN"; put .gitattributes "* filter=x"',
    ),
    Plant(
        "text_conversion",
        "A text conversion for diffs cannot be set.",
        'git config diff.x.textconv "$RUN;cat"; put .gitattributes "* diff=x"',
    ),
    Plant(
        "diff_command",
        "A diff driver cannot be set.",
        'git config diff.x.command "$RUN"; put .gitattributes "* diff=x"',
    ),
    Plant(
        "merge_driver",
        "A merge driver cannot be set.",
        'git config merge.x.driver "$RUN"; put .gitattributes "* merge=x"',
        victim="git checkout -b one main; echo 1 >>main.c; git commit -am 1; git checkout main;"
        " echo 2 >>main.c; git commit -am 2; git merge one",
    ),
    Plant(
        "attributes_of_the_repository",
        "info/attributes cannot hand files to a filter that the user has.",
        'put .git/info/attributes "* filter=own"; mv .git/info .git/i;'
        ' put .git/info/attributes "* filter=own"',
        setup='git config --global filter.own.clean "$RUN;cat"',
    ),
    Plant(
        "configuration_edited",
        "The configuration cannot be edited as a file.",
        'add .git/config "[core]"; add .git/config "	fsmonitor = \\"$RUN;false\\""',
    ),
    Plant(
        "configuration_replaced",
        "The configuration cannot be replaced by another file or a link.",
        'put evil.cfg "[core]"; add evil.cfg "	fsmonitor = \\"$RUN;false\\""; cp evil.cfg e2;'
        " mv e2 .git/config; rm -f .git/config; ln -s ../evil.cfg .git/config",
    ),
    Plant(
        "configuration_by_its_lock",
        "The configuration cannot be replaced by way of its lock file.",
        'cp .git/config .git/config.lock; add .git/config.lock "[core]";'
        ' add .git/config.lock "	fsmonitor = \\"$RUN;false\\""; mv .git/config.lock .git/config;'
        " rm -f .git/config.lock",
    ),
    Plant(
        "configuration_by_hard_link",
        "The configuration cannot be written through a hard link.",
        'ln .git/config evil-link; add evil-link "[core]"; add evil-link "	fsmonitor = \\"$RUN;false\\""',
    ),
    Plant(
        "include",
        "A file that the configuration includes cannot be changed.",
        'mv team.cfg t; put team.cfg "[core]"; add team.cfg "	fsmonitor = \\"$RUN;false\\""',
        setup="git config include.path ../team.cfg; echo >team.cfg",
    ),
    Plant(
        "include_absent",
        "A file that the configuration includes, and that is not there, cannot be made.",
        'put tools/team.cfg "[core]"; add tools/team.cfg "	fsmonitor = \\"$RUN;false\\""',
        setup="git config include.path ../tools/team.cfg; mkdir tools",
    ),
    Plant(
        "include_if",
        "A file that the configuration includes under a condition cannot be changed.",
        'put team.cfg "[core]"; add team.cfg "	fsmonitor = \\"$RUN;false\\""',
        setup='git config "includeIf.onbranch:main.path" ../team.cfg; echo >team.cfg',
    ),
    Plant(
        "hooks_path_in_the_project",
        "Hooks in a directory that core.hooksPath names cannot be made.",
        "exe .hooks/pre-commit; mv .hooks .h; exe .hooks/pre-commit",
        setup="git config core.hooksPath .hooks; mkdir .hooks",
    ),
    Plant(
        "attributes_file",
        "A file that core.attributesFile names cannot hand files to a filter that the user has.",
        'put attributes "* filter=own"',
        setup='git config core.attributesFile attributes; git config --global filter.own.clean "$RUN;cat"',
    ),
    Plant(
        "worktree_configuration",
        "config.worktree, which was not there, cannot be made.",
        'put .git/config.worktree "[core]"; add .git/config.worktree "	fsmonitor = \\"$RUN;false\\""',
        setup="git config core.repositoryFormatVersion 1; git config extensions.worktreeConfig true",
    ),
    Plant(
        "common_directory",
        "commondir cannot send git to another configuration.",
        'cp -r .git evil.git; add evil.git/config "[core]";'
        ' add evil.git/config "	fsmonitor = \\"$RUN;false\\""; put .git/commondir "$PWD/evil.git"',
    ),
    # ---------------------------------------------------------------------- the directory itself
    Plant(
        "git_directory_renamed",
        ".git cannot be moved away and made anew.",
        "mv .git .old; mkdir -p .git; cp -r .old/. .git; exe .git/hooks/pre-commit;"
        ' git config core.fsmonitor "$RUN;false"',
    ),
    Plant(
        "git_directory_becomes_a_file",
        ".git cannot become a file that leads elsewhere.",
        'cp -r .git evil.git; printf "[core]\\n\\tfsmonitor = \\"$RUN;false\\"\\n" >>evil.git/config;'
        ' mv .git .old; rm -rf .git; put .git "gitdir: evil.git"',
    ),
    Plant(
        "git_directory_becomes_a_link",
        ".git cannot become a symbolic link.",
        'cp -r .git evil.git; printf "[core]\\n\\tfsmonitor = \\"$RUN;false\\"\\n" >>evil.git/config;'
        " mv .git .old; ln -s evil.git .git",
    ),
    Plant(
        "project_replaced",
        "The project directory cannot be replaced by another.",
        'cd ..; cp -r app evil; printf "[core]\\n\\tfsmonitor = \\"$RUN;false\\"\\n" >>evil/.git/config;'
        " mv app old; mv -T evil app",
    ),
    Plant(
        "parent_replaced",
        "The directory above the project cannot be replaced by another.",
        'cd ../..; cp -r src evil; printf "[core]\\n\\tfsmonitor = \\"$RUN;false\\"\\n"'
        " >>evil/app/.git/config; mv src old; mv -T evil src",
    ),
    Plant(
        "repository_where_there_was_none",
        "A project without a repository cannot be given one.",
        'git init -q -b main; exe .git/hooks/pre-commit; git config core.fsmonitor "$RUN;false"',
        setup="rm -rf .git",
    ),
    Plant(
        "git_file_where_there_was_none",
        "A project without a repository cannot be given a .git file.",
        'git init -q evil.git; printf "[core]\\n\\tfsmonitor = \\"$RUN;false\\"\\n" >>evil.git/.git/config;'
        ' put .git "gitdir: evil.git/.git"',
        setup="rm -rf .git",
    ),
    Plant(
        "bare_repository",
        "The project itself cannot become a bare repository.",
        "bare .",
        setup="rm -rf .git",
    ),
    Plant(
        "bare_repository_after_breaking",
        ".git cannot be broken so that git takes the project for a bare repository.",
        "mv .git/HEAD .git/h; rm -f .git/HEAD; bare .",
    ),
    Plant(
        "unusual_place_above",
        "A repository cannot be made in the directory above the project.",
        'cd ..; git init -q -b main; git config core.fsmonitor "$RUN;false"',
        setup="rm -rf .git",
    ),
    # ---------------------------------------------------------------------- nested and linked ones
    Plant(
        "nested_repository",
        "Hooks and configuration of a repository in a subdirectory cannot be changed.",
        'exe sub/.git/hooks/pre-commit; git -C sub config core.fsmonitor "$RUN;false"',
        setup=_NESTED,
        victim="cd sub; git status; echo x >>file; git commit -am x",
    ),
    Plant(
        "nested_repository_replaced",
        "A repository in a subdirectory cannot be moved away and made anew.",
        'mv sub/.git sub/.old; cp -r sub/.old sub/.git; git -C sub config core.fsmonitor "$RUN;false";'
        ' mv sub s; cp -r s sub; git -C sub config core.fsmonitor "$RUN;false"',
        setup=_NESTED,
        victim="cd sub; git status",
    ),
    Plant(
        "submodule",
        "Hooks and configuration of a submodule cannot be changed.",
        'git -C mod config core.fsmonitor "$RUN;false"; exe .git/modules/mod/hooks/pre-commit',
        setup=_SUBMODULE,
        victim="cd mod; git status; echo x >>file; git commit -am x",
    ),
    Plant(
        "submodule_led_elsewhere",
        "The .git file of a submodule cannot lead elsewhere.",
        "cp -r .git/modules/mod evil.git;"
        ' printf "[core]\\n\\tworktree = $PWD/mod\\n\\tfsmonitor = \\"$RUN;false\\"\\n" >>evil.git/config;'
        ' put mod/.git "gitdir: ../evil.git"; mv mod m; cp -r m mod; put mod/.git "gitdir: ../evil.git"',
        setup=_SUBMODULE,
        victim="cd mod; git status",
    ),
    Plant(
        "linked_worktree",
        "A session in a linked worktree cannot change the repository's hooks and configuration.",
        'git config core.fsmonitor "$RUN;false"; exe "$(git rev-parse --git-common-dir)/hooks/pre-commit"',
        setup=_WORKTREE,
        start="../linked",
    ),
    Plant(
        "linked_worktree_led_elsewhere",
        "The .git file of a linked worktree cannot lead elsewhere.",
        'cp -r "$(git rev-parse --git-common-dir)" evil.git; git config --file evil.git/config'
        ' core.fsmonitor "$RUN;false"; put .git "gitdir: evil.git"; mv .git g;'
        ' put .git "gitdir: evil.git"',
        setup=_WORKTREE,
        start="../linked",
        victim="cd ../linked; git status",
    ),
    Plant(
        "worktree_directory",
        "The private directory of a linked worktree cannot lead git to another configuration.",
        'd=$(git rev-parse --git-dir); cp -r "$(git rev-parse --git-common-dir)" evil.git;'
        ' git config --file evil.git/config core.fsmonitor "$RUN;false"; put "$d/commondir" "$PWD/evil.git"',
        setup=_WORKTREE,
        start="../linked",
        victim="cd ../linked; git status",
    ),
    Plant(
        "other_worktree",
        "A session in the main worktree cannot change a linked one's configuration.",
        "d=.git/worktrees/linked; cp -r .git evil.git; git config --file evil.git/config core.fsmonitor"
        ' "$RUN;false"; put $d/commondir "$PWD/evil.git"; git config --file $d/config.worktree'
        ' core.fsmonitor "$RUN;false"',
        setup=_WORKTREE,
        victim="cd ../linked; git status",
    ),
    # ---------------------------------------------------------------------- Claude Code
    Plant(
        "settings_absent",
        ".claude/settings.json, which was not there, cannot be made.",
        "mkdir -p .claude; settings .claude/settings.json",
    ),
    Plant(
        "settings_present",
        ".claude/settings.json, which was there, cannot be changed or replaced.",
        "settings .claude/settings.json; settings x; mv x .claude/settings.json",
        setup="mkdir .claude; echo {} >.claude/settings.json",
    ),
    Plant(
        "local_settings_absent",
        ".claude/settings.local.json, which was not there, cannot be made.",
        "mkdir -p .claude; settings .claude/settings.local.json",
    ),
    Plant(
        "local_settings_present",
        ".claude/settings.local.json, which was there, cannot be changed.",
        "settings .claude/settings.local.json; rm -f .claude/settings.local.json;"
        " settings .claude/settings.local.json",
        setup="mkdir .claude; echo {} >.claude/settings.local.json",
    ),
    Plant("mcp_absent", ".mcp.json, which was not there, cannot be made.", "mcp .mcp.json"),
    Plant(
        "mcp_present",
        ".mcp.json, which was there, cannot be changed or replaced.",
        "mcp .mcp.json; mcp x; mv x .mcp.json",
        setup="echo '{}' >.mcp.json",
    ),
    Plant(
        "settings_directory_replaced",
        ".claude cannot be moved away and made anew.",
        "mv .claude .c; mkdir .claude; settings .claude/settings.json",
        setup="mkdir .claude; echo {} >.claude/settings.json",
    ),
    Plant(
        "settings_directory_linked",
        ".claude cannot become a symbolic link.",
        "mkdir evil; settings evil/settings.json; rm -rf .claude; mv .claude c; ln -s evil .claude",
    ),
    Plant(
        "settings_of_the_directory_of_the_session",
        "Neither the settings of the directory where a session starts nor those of the repository"
        " can be made.",
        "mkdir -p .claude ../.claude; settings .claude/settings.json; settings ../.claude/settings.json",
        setup="mkdir sub; echo x >sub/file",
        options=["--repo"],
        start="sub",
    ),
    Plant(
        "settings_of_the_user",
        "The user's own ~/.claude/settings.json cannot be made.",
        "mkdir -p ~/.claude; settings ~/.claude/settings.json",
    ),
    Plant(
        "configuration_of_the_user",
        "The user's own ~/.claude.json cannot be made.",
        "mcp ~/.claude.json; mkdir -p ~/.claude; mcp ~/.claude/.claude.json",
    ),
    # ---------------------------------------------------------------------- shells and programs
    Plant(
        "shell_start_files",
        "Files that shells read when they start are not the host's.",
        'for f in .bashrc .profile .bash_profile .zshrc .bash_login; do add ~/$f "$RUN"; done',
        victim="bash -i -c true; bash -l -c true; sh -l -c true",
    ),
    Plant(
        "git_configuration_of_the_user",
        "The user's own git configuration cannot be changed.",
        'git config --global core.fsmonitor "$RUN;false"; mkdir -p ~/.config/git;'
        ' git config --file ~/.config/git/config core.fsmonitor "$RUN;false"',
    ),
    Plant(
        "program_of_the_user",
        "A program in ~/.local/bin is not the host's.",
        "exe ~/.local/bin/git; exe ~/bin/git",
        victim='PATH="$HOME/.local/bin:$HOME/bin:$PATH" git status',
    ),
    Plant(
        "desktop_start_files",
        "Programs that a desktop or systemd start at login are not the host's.",
        "exe ~/.config/autostart/x; exe ~/.config/systemd/user/x; exe ~/.xprofile",
        victim="for f in ~/.config/autostart/x ~/.config/systemd/user/x ~/.xprofile; do sh $f; done",
    ),
    # ---------------------------------------------------------------------- the next launch
    Plant(
        "programs_in_the_project_on_path",
        "The next launch runs no git, bwrap, claude, python3 or man of the project, even on PATH.",
        "for name in git bwrap claude python3 node man pasta slirp4netns; do exe bin/$name; done",
        victim='PATH="$PWD/bin:$PATH" claudebox -y --shell -- -c true; PATH="bin:$PATH" claudebox --check',
        control='PATH="$PWD/bin:$PATH" git --version',
    ),
    Plant(
        "modules_in_the_project",
        "The next launch imports no module of the project.",
        "for n in json os re sys argparse socket claudebox sitecustomize usercustomize site; do"
        ' put $n.py "import posix; posix.system(\\"$RUN\\")"; done; mkdir -p claudebox/sandbox;'
        " cp json.py claudebox/__init__.py; cp json.py claudebox/main.py",
        victim="claudebox -y --shell -- -c true; PYTHONPATH=$PWD claudebox plan",
        control='PYTHONPATH=$PWD /usr/bin/python3 -c "import json"',
    ),
    Plant(
        "subcommand_in_the_project",
        "The dispatcher finds no subcommand in the project.",
        "exe bin/claudebox-evil; exe claudebox-evil",
        victim='PATH="$PWD/bin:$PWD:$PATH" claudebox evil',
        control='PATH="$PWD/bin:$PWD:$PATH" claudebox-evil',
    ),
    Plant(
        "hooks_while_claudebox_looks",
        "The next launch, which asks git for settings, obeys nothing that the project configures.",
        'bare sub; bare deeper/sub; put .gitattributes "* filter=x"',
        victim="claudebox -y --shell -- -c true; claudebox --check",
        control="cd sub; git status",
    ),
    # ---------------------------------------------------------------------- known limits
    Plant(
        "repository_made_in_the_session",
        "A repository that is made in a subdirectory has its own configuration.",
        'git init -q new; git -C new config core.fsmonitor "$RUN;false"; echo x >new/file;'
        " git -C new add file; git -C new -c core.fsmonitor= commit -qm x",
        victim="git -C new status",
        known_limit="Their hooks and configuration come from the agent",
    ),
    Plant(
        "unfinished_rebase",
        "A rebase that is left unfinished can hold commands.",
        "git checkout -q -b other main; echo a >other; git add other; git commit -qm a;"
        ' GIT_SEQUENCE_EDITOR="sed -i 1ibreak" git rebase -q -i HEAD~1;'
        ' add .git/rebase-merge/git-rebase-todo "exec $RUN"',
        victim="git reset -q --hard; git rebase --continue",
        control="git rebase --continue",
        known_limit="A rebase that is left unfinished: its list of steps can hold commands",
    ),
    Plant(
        "code_of_the_project",
        "The victim runs what the agent wrote when it runs the project.",
        'put Makefile "all:"; printf "\\t$RUN\\n" >>Makefile',
        victim="make -s || sh -c \"$(sed -n 's/^\\t//p' Makefile)\"",
        known_limit="Files of the project that you run, outside, later",
    ),
]
