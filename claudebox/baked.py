"""What a build wires in by absolute path. Nothing in a checkout: then the host is looked at.

The build of flake.nix puts a file with the same names in the place of this one.
"""

# Directories in the store: the PATH of the sandbox, which then shows /nix/store and no /usr.
PATH: tuple[str, ...] = ()
# Programs by name, which are then not looked for.
PROGRAMS: dict[str, str] = {}
# What /bin/sh, /usr/bin/env and the user's shell are inside.
SH = ENV = SHELL = ""
# A bundle of certificates and a directory of time zones, where the host has none of its own.
CERTIFICATES = ZONEINFO = ""
# The flake reference, with its revision, that `nixpkgs` stands for in a profile's packages.
NIXPKGS = ""
