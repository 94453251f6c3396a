# claudebox for a Nix store: every program is wired in by its store path, and nothing of /usr is used.
{
  lib,
  runCommand,
  writeText,
  python3,
  bash,
  bubblewrap,
  cacert,
  comma,
  coreutils,
  curl,
  fd,
  findutils,
  gawk,
  git,
  gnugrep,
  gnused,
  jq,
  less,
  nix,
  passt,
  ripgrep,
  slirp4netns,
  tzdata,
  claude,
  nixpkgsReference ? "",
}:
let
  version = builtins.head (
    builtins.match ".*__version__ = \"([^\"]*)\".*" (builtins.readFile ./claudebox/__init__.py)
  );

  # The sandbox's PATH.
  inside = lib.makeBinPath [
    bash
    coreutils
    findutils
    gnugrep
    gnused
    gawk
    git
    curl
    jq
    ripgrep
    fd
    nix
    comma
    less
    claude
  ];

  # What claudebox executes, outside, and `claude`, inside.
  programs = builtins.mapAttrs (name: package: "${lib.getBin package}/bin/${name}") {
    inherit claude git nix slirp4netns;
    bwrap = bubblewrap;
    nix-store = nix;
    pasta = passt;
  };

  # JSON's strings, lists and objects are Python's, too.
  baked = writeText "baked.py" ''
    """What the build of package.nix wires in; see claudebox/baked.py of the sources."""

    PATH = tuple(${builtins.toJSON inside}.split(":"))
    PROGRAMS = ${builtins.toJSON programs}
    SH = ${builtins.toJSON "${lib.getBin bash}/bin/sh"}
    ENV = ${builtins.toJSON "${lib.getBin coreutils}/bin/env"}
    SHELL = ${builtins.toJSON "${lib.getBin bash}/bin/bash"}
    CERTIFICATES = ${builtins.toJSON "${cacert}/etc/ssl/certs/ca-bundle.crt"}
    ZONEINFO = ${builtins.toJSON "${tzdata}/share/zoneinfo"}
    NIXPKGS = ${builtins.toJSON nixpkgsReference}
  '';

  executable = writeText "claudebox" ''
    #!${python3.interpreter} -IS
    # Every claudebox command: the name that this file is called by says which.

    import _signal
    import sys

    # Until command.run can say in one line that it was interrupted, Ctrl-C ends this without a word.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

    from os import _exit

    sys.path.insert(0, "@site@")

    from claudebox.main import entry

    _exit(entry(sys.argv))
  '';
in
runCommand "claudebox-${version}"
  {
    nativeBuildInputs = [ python3 ];
    passthru = { inherit version; };
    meta = {
      description = "Run Claude Code in a bubblewrap sandbox that holds no secrets";
      mainProgram = "claudebox";
      platforms = [
        "x86_64-linux"
        "aarch64-linux"
      ];
    };
  }
  ''
    site=$out/${python3.sitePackages}
    mkdir -p $out/bin $site
    cp -r ${./claudebox} $site/claudebox
    chmod -R u+w $site/claudebox
    find $site/claudebox -name __pycache__ -prune -exec rm -r {} +
    cp ${baked} $site/claudebox/baked.py
    # Files in the store have no time that a .pyc could be compared with.
    python3 -m compileall -q --invalidation-mode unchecked-hash $site/claudebox

    sed "s|@site@|$site|" ${executable} >$out/bin/claudebox
    chmod 555 $out/bin/claudebox
    for command in ${./bin}/claudebox-*; do
      ln -s claudebox $out/bin/''${command##*/}
    done

    for page in ${./man}/*.[1-9]; do
      mkdir -p $out/share/man/man''${page##*.}
      cp $page $out/share/man/man''${page##*.}/
    done

    completions=$site/claudebox/completions
    mkdir -p $out/share/bash-completion $out/share/zsh/site-functions $out/share/fish
    cp -rL $completions/bash $out/share/bash-completion/completions
    cp $completions/_claudebox $out/share/zsh/site-functions/
    cp -rL $completions/fish $out/share/fish/vendor_completions.d
  ''
