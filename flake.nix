{
  description = "Claude Code in a bubblewrap sandbox that holds no secrets";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    claude-code = {
      url = "github:ryoppippi/nix-claude-code";
      inputs.nixpkgs.follows = "nixpkgs";
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      claude-code,
    }:
    let
      inherit (nixpkgs) lib;
      forEachSystem =
        make:
        lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
          system: make system nixpkgs.legacyPackages.${system}
        );
      build =
        system: pkgs:
        pkgs.callPackage ./package.nix {
          claude = claude-code.packages.${system}.default;
          # What the packages of a profile are taken from, so that a launch need not look it up.
          nixpkgsReference = if nixpkgs ? rev then "github:NixOS/nixpkgs/${nixpkgs.rev}" else "";
        };
      python =
        pkgs:
        pkgs.python3.withPackages (packages: [
          packages.pytest
          packages.pytest-subprocess
        ]);
    in
    {
      packages = forEachSystem (
        system: pkgs: {
          default = build system pkgs;
          claudebox = build system pkgs;
        }
      );

      apps = forEachSystem (
        system: _pkgs: {
          default = {
            type = "app";
            program = "${self.packages.${system}.default}/bin/claudebox";
          };
        }
      );

      checks = forEachSystem (
        system: pkgs: {
          package = self.packages.${system}.default;
          # The tests of the sandbox itself need a host: see tests/run.
          unit-tests =
            pkgs.runCommand "claudebox-unit-tests"
              {
                nativeBuildInputs = [
                  (python pkgs)
                  pkgs.git
                ];
              }
              ''
                cp -r ${self} checkout
                chmod -R u+w checkout
                cd checkout
                HOME=$PWD/.. python3 -m pytest -p no:cacheprovider --confcutdir=tests/unit tests/unit
                touch $out
              '';
          ruff = pkgs.runCommand "claudebox-ruff" { nativeBuildInputs = [ pkgs.ruff ]; } ''
            ruff check --no-cache ${self}
            touch $out
          '';
        }
      );

      devShells = forEachSystem (
        _system: pkgs: {
          default = pkgs.mkShell {
            packages = [
              (python pkgs)
              pkgs.bubblewrap
              pkgs.git
              pkgs.mandoc
              pkgs.passt
              pkgs.ruff
              pkgs.slirp4netns
            ];
          };
        }
      );

      overlays.default = final: _prev: {
        claudebox = build final.stdenv.hostPlatform.system final;
      };
    };
}
