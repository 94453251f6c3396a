# Completion of claudebox and its subcommands for bash.
#
# Nothing of claudebox is executed, and names of files are compared, never evaluated.

# Made by make.py from the argument parsers: command|spellings|kind of value|description.
_claudebox_table='
claudebox|audit|command|Show what a launch plan lets in, ask, and pass the plan on
claudebox|doctor|command|Say whether this host can run claudebox, and what mends it
claudebox|gc|command|Remove the instances of projects that are gone
claudebox|instance|command|The instance of a project
claudebox|net|command|The network tier of a launch plan
claudebox|plan|command|Print the plan that `claudebox` would launch
claudebox|profile|command|Profiles, and what the user adds to a launch plan
claudebox|run|command|Launch the plan on standard input
claudebox|help|command|open a manual page
claudebox|-h --help||show this help message and exit
claudebox|--version||show program’s version number and exit
claudebox|--repo||mount the whole repository that holds the directory
claudebox|--shell||run a shell instead of Claude Code
claudebox|--nix|(auto trust off)|the socket of a nix daemon is inside: auto (if its builds are sandboxed), trust, off
claudebox|--network|(none inet full)|none, inet or full
claudebox|--profile|profile|apply this profile
claudebox|--env|variable|let this variable of the host in (may be given more than once)
claudebox|--mount|file|mount PATH[:TARGET] read-only, or writable with :rw at the end
claudebox|--hide|file|hide the project’s files and directories that match GLOB
claudebox|--devshell|<>|use the development shell of the project’s flake, or of REF
claudebox|--allow|<>|open the inet tier for ADDRESS[:PORT], NETWORK/LENGTH or host:PORT
claudebox|-y --yes||launch without asking
claudebox|--check||show the audit and try the sandbox; launch nothing; exit 0 if a launch would work
claudebox|--dry-run||print the command of the launch; launch nothing
claudebox|--gc||the same as `claudebox gc`; stands first
claudebox|--list-profiles||the same as `claudebox profile list`; stands first
claudebox|--show-profile|profile|the same as `claudebox profile show`; stands first
claudebox help||subcommand|
claudebox audit|-h --help||show this help message and exit
claudebox audit|--version||show program’s version number and exit
claudebox audit|-y --yes||do not ask
claudebox audit|--json||print the audit as JSON instead of the plan; ask nothing
claudebox doctor|-h --help||show this help message and exit
claudebox doctor|--version||show program’s version number and exit
claudebox doctor|--json||print JSON
claudebox doctor|--fix||show the commands that mend it, ask, and run them
claudebox doctor|-y --yes||with --fix: do not ask
claudebox gc|-h --help||show this help message and exit
claudebox gc|--version||show program’s version number and exit
claudebox gc|--dry-run||show what would go; remove nothing
claudebox gc|--json||print JSON
claudebox gc|--older-than|<>|also what was not used for so many days; asks
claudebox gc|--force||also what belongs to a project that is not mounted or not readable now; asks
claudebox gc|-y --yes||do not ask
claudebox instance|-h --help||show this help message and exit
claudebox instance|--version||show program’s version number and exit
claudebox instance|resolve|command|print the base plan of a directory
claudebox instance|list|command|list the instances
claudebox instance|path|command|print the instance’s path of a directory
claudebox instance|remove|command|remove the instance of a directory
claudebox instance resolve|-h --help||show this help message and exit
claudebox instance resolve||directory|
claudebox instance resolve|--repo||mount the whole repository that holds the directory
claudebox instance resolve|--shell||run a shell instead of Claude Code
claudebox instance resolve|--nix|(auto trust off)|the socket of a nix daemon is inside: auto (if its builds are sandboxed), trust, off
claudebox instance list|-h --help||show this help message and exit
claudebox instance list|--json||print JSON
claudebox instance path|-h --help||show this help message and exit
claudebox instance path||directory|
claudebox instance remove|-h --help||show this help message and exit
claudebox instance remove||instance|the project’s directory, or the id that list shows
claudebox instance remove|-y --yes||do not ask
claudebox net|-h --help||show this help message and exit
claudebox net|--version||show program’s version number and exit
claudebox net|apply|command|set the tier of the plan on standard input
claudebox net|tiers|command|say what each tier allows
claudebox net|check|command|say whether this host can do a tier
claudebox net apply|-h --help||show this help message and exit
claudebox net apply||(none inet full)|none, inet or full
claudebox net apply|--allow|<>|open the inet tier for ADDRESS[:PORT], NETWORK/LENGTH or host:PORT
claudebox net tiers|-h --help||show this help message and exit
claudebox net check|-h --help||show this help message and exit
claudebox net check||(none inet full)|
claudebox plan|-h --help||show this help message and exit
claudebox plan|--version||show program’s version number and exit
claudebox plan|--repo||mount the whole repository that holds the directory
claudebox plan|--shell||run a shell instead of Claude Code
claudebox plan|--nix|(auto trust off)|the socket of a nix daemon is inside: auto (if its builds are sandboxed), trust, off
claudebox plan|--network|(none inet full)|none, inet or full
claudebox plan|--profile|profile|apply this profile
claudebox plan|--env|variable|let this variable of the host in (may be given more than once)
claudebox plan|--mount|file|mount PATH[:TARGET] read-only, or writable with :rw at the end
claudebox plan|--hide|file|hide the project’s files and directories that match GLOB
claudebox plan|--devshell|<>|use the development shell of the project’s flake, or of REF
claudebox plan|--allow|<>|open the inet tier for ADDRESS[:PORT], NETWORK/LENGTH or host:PORT
claudebox profile|-h --help||show this help message and exit
claudebox profile|--version||show program’s version number and exit
claudebox profile|apply|command|add a profile to the plan on standard input
claudebox profile|list|command|list the profiles
claudebox profile|show|command|print a profile
claudebox profile|check|command|say whether a profile, or each, can be used
claudebox profile|edit|command|open a profile, or a new one, in an editor
claudebox profile apply|-h --help||show this help message and exit
claudebox profile apply||profile|the profile
claudebox profile apply|--env|variable|let this variable of the host in (may be given more than once)
claudebox profile apply|--mount|file|mount PATH[:TARGET] read-only, or writable with :rw at the end
claudebox profile apply|--hide|file|hide the project’s files and directories that match GLOB
claudebox profile apply|--devshell|<>|use the development shell of the project’s flake, or of REF
claudebox profile list|-h --help||show this help message and exit
claudebox profile list|--json||print JSON
claudebox profile show|-h --help||show this help message and exit
claudebox profile show||profile|the profile
claudebox profile show|--resolved||with what it inherits, and from which profile
claudebox profile show|--json||print JSON
claudebox profile check|-h --help||show this help message and exit
claudebox profile check||profile|the profile
claudebox profile check|--json||print JSON
claudebox profile edit|-h --help||show this help message and exit
claudebox profile edit||profile|the profile
claudebox run|-h --help||show this help message and exit
claudebox run|--version||show program’s version number and exit
claudebox run||(-)|standard input
claudebox run|--dry-run||print the command; launch nothing
'
# End of what make.py made.

# Adds the words that begin with what is typed, each as it has to stand on the command line.
_claudebox_offer() {
    local word
    for word in "$@"; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$(printf %q "$word")")
    done
}

# Every claudebox-NAME on PATH is a subcommand, too.
_claudebox_subcommands() {
    local name
    while IFS= read -r name; do
        _claudebox_offer "${name#claudebox-}"
    done < <(compgen -c claudebox- | sort -u)
}

# Names of files that match a pattern in a directory of claudebox, without their ending.
_claudebox_state() {
    local file
    for file in "${CLAUDEBOX_HOME:-$HOME/.claudebox}/$1"/*"$2"; do
        [[ -e $file ]] || continue
        file=${file##*/}
        _claudebox_offer "${file%"$2"}"
    done
}

_claudebox_files() {
    local file
    compopt -o filenames 2>/dev/null
    while IFS= read -r file; do
        COMPREPLY+=("$file")
    done < <(compgen "$1" -- "$cur")
}

# Offers the values of one kind.
_claudebox_value() {
    case $1 in
        \(*\)) _claudebox_offer ${1//[()]/ } ;;
        profile) _claudebox_state profiles .json ;;
        instance) _claudebox_state instances ''; _claudebox_files -d ;;
        directory) _claudebox_files -d ;;
        file) _claudebox_files -f ;;
        variable) _claudebox_offer $(compgen -e) ;;
        subcommand) _claudebox_table_of claudebox command; _claudebox_subcommands ;;
    esac
}

# Offers from the table what a command has: `command` its subcommands or actions, `option` its options.
_claudebox_table_of() {
    local command spellings kind description
    while IFS='|' read -r command spellings kind description; do
        [[ $command == "$1" && -n $spellings ]] || continue
        case $2 in
            command) [[ $kind == command ]] && _claudebox_offer "$spellings" ;;
            option) [[ $kind != command ]] && _claudebox_offer $spellings ;;
        esac
    done <<<"$_claudebox_table"
}

# Prints the kind of value of an option of a command (empty: it takes none), or of its operand.
_claudebox_kind() {
    local command spellings kind description
    while IFS='|' read -r command spellings kind description; do
        [[ $command == "$1" && $kind != command ]] || continue
        if [[ -z $2 && -z $spellings || -n $2 && " $spellings " == *" $2 "* ]]; then
            printf '%s' "$kind"
            return
        fi
    done <<<"$_claudebox_table"
}

_claudebox_is_command() {
    [[ $_claudebox_table == *$'\n'"$1|$2|command|"* ]]
}

_claudebox() {
    local cur=${COMP_WORDS[COMP_CWORD]} name=${COMP_WORDS[0]##*/} at=1 before='' kind='' word
    local command=claudebox
    COMPREPLY=()
    if [[ $name == claudebox-* ]]; then
        command="claudebox ${name#claudebox-}"
    elif ((COMP_CWORD > 1)) && [[ ${COMP_WORDS[1]} == --gc ]]; then
        command='claudebox gc' at=2
    elif ((COMP_CWORD > 1)) && [[ ${COMP_WORDS[1]} != -* ]]; then
        command="claudebox ${COMP_WORDS[1]}" at=2
    fi
    # Finds the action of a subcommand, and the option whose value the last word is.
    for ((; at < COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        if [[ $word == -- ]]; then
            # What follows goes to the program inside.
            _claudebox_files -f
            return
        elif [[ $word == = ]]; then
            # bash makes three words of `--option=value`.
            continue
        elif [[ $word == -* ]]; then
            before=$word
            kind=$(_claudebox_kind "$command" "$before")
            continue
        elif [[ -z $kind && $command != claudebox ]] && _claudebox_is_command "$command" "$word"; then
            command+=" $word"
        fi
        before='' kind=''
    done
    [[ $cur == = ]] && cur=
    if [[ -n $kind ]]; then
        _claudebox_value "$kind"
    elif [[ $cur == -* ]]; then
        _claudebox_table_of "$command" option
    elif [[ $command == claudebox ]]; then
        # A subcommand stands first.
        ((COMP_CWORD > 1)) || _claudebox_value subcommand
    else
        _claudebox_table_of "$command" command
        _claudebox_value "$(_claudebox_kind "$command" '')"
    fi
    if ((${#COMPREPLY[@]} == 0)) && [[ -z $cur && -z $kind ]]; then
        _claudebox_table_of "$command" option
    fi
}

_claudebox_register() {
    local command spellings kind description
    while IFS='|' read -r command spellings kind description; do
        [[ $command == claudebox && $kind == command ]] && complete -F _claudebox "claudebox-$spellings"
    done <<<"$_claudebox_table"
    complete -F _claudebox claudebox
}
_claudebox_register
