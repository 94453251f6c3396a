# Completion of claudebox and its subcommands for fish.

# Made by make.py from the argument parsers: command|spellings|kind of value|description.
set -g __claudebox_table '
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

# Prints the command that the words before the cursor name, as the table has it.
function __claudebox_command
    set -l words (commandline -opc)
    set -l command claudebox
    set -l name (basename -- $words[1])
    set -e words[1]
    if string match -q 'claudebox-*' -- $name
        set command "claudebox "(string replace claudebox- '' -- $name)
    else if test "$words[1]" = --gc
        set command 'claudebox gc'
        set -e words[1]
    else if set -q words[1]; and not string match -q -- '-*' $words[1]
        set command "claudebox $words[1]"
        set -e words[1]
    end
    if test "$command" != claudebox
        for word in $words
            if string match -q -- '-*' $word
                continue
            else if contains -- "$command|$word|command" (string match -r -- '^[^|]*\|[^|]*\|command' (string split \n -- $__claudebox_table))
                set command "$command $word"
            end
        end
    end
    echo $command
end

# Says whether the words before the cursor name this command, and what goes inside has not begun.
function __claudebox_is
    test (__claudebox_command) = "$argv"; and not contains -- -- (commandline -opc)
end

# The subcommand is the first word.
function __claudebox_has_none
    test (count (commandline -opc)) -eq 1; and __claudebox_is claudebox
end

# Prints the values of one kind.
function __claudebox_value
    set -l state $HOME/.claudebox
    set -q CLAUDEBOX_HOME; and test -n "$CLAUDEBOX_HOME"; and set state $CLAUDEBOX_HOME
    switch $argv[1]
        case '(*)'
            string split -n ' ' -- (string trim -c '()' -- $argv[1])
        case profile
            for file in $state/profiles/*.json
                string replace -r '\.json$' '' -- (string replace -r '.*/' '' -- $file)
            end
        case instance
            for directory in $state/instances/*/
                string replace -r '.*/([^/]*)/$' '$1' -- $directory
            end
            __fish_complete_directories (commandline -ct)
        case directory
            __fish_complete_directories (commandline -ct)
        case file
            __fish_complete_path (commandline -ct)
        case variable
            set -nx
        case subcommand
            for row in (string split \n -- $__claudebox_table)
                set -l fields (string split '|' -- $row)
                if test "$fields[1] $fields[3]" = 'claudebox command'
                    printf '%s\t%s\n' $fields[2] $fields[4]
                end
            end
            # Every claudebox-NAME on PATH is a subcommand, too.
            complete -C claudebox- | string replace -f -r '^claudebox-([^\s/]+)(\s.*)?$' '$1'
    end
end

# Registers the table for one program, `claudebox` or `claudebox-NAME`.
function __claudebox_register
    set -l program $argv[1]
    complete -c $program -e
    complete -c $program -f
    complete -c $program -n 'contains -- -- (commandline -opc)' -F
    for row in (string split -n \n -- $__claudebox_table)
        set -l fields (string split '|' -- $row)
        set -l command $fields[1]
        # The rows of other executables are not this one's.
        if test $program != claudebox
            set -l own (string replace - ' ' -- $program)
            string match -q -- "$own *" "$command "; or continue
        end
        if test "$fields[3]" = command
            set -l when "__claudebox_is $command"
            test $command = claudebox; and set when __claudebox_has_none
            complete -c $program -n $when -a $fields[2] -d $fields[4]
            continue
        else if test -z "$fields[2]"
            complete -c $program -n "__claudebox_is $command" -a "(__claudebox_value '$fields[3]')"
            continue
        end
        set -l options
        for spelling in (string split ' ' -- $fields[2])
            switch $spelling
                case '--*'
                    set -a options -l (string sub -s 3 -- $spelling)
                case '-*'
                    set -a options -s (string sub -s 2 -- $spelling)
            end
        end
        if test -n "$fields[3]"
            set -a options -x -a "(__claudebox_value '$fields[3]')"
        end
        complete -c $program -n "__claudebox_is $command" $options -d "$fields[4]"
    end
    if test $program = claudebox
        complete -c $program -n __claudebox_has_none -a '(__claudebox_value subcommand)'
    end
end

for __claudebox_row in (string split -n \n -- $__claudebox_table)
    set -l __claudebox_fields (string split '|' -- $__claudebox_row)
    if test "$__claudebox_fields[1] $__claudebox_fields[3]" = 'claudebox command'
        __claudebox_register claudebox-$__claudebox_fields[2]
    end
end
__claudebox_register claudebox
set -e __claudebox_row
