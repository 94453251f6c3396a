"""The configurations of the escape suite and its controls: each is launched once, when first asked for."""

import subprocess

import canaries
import pytest
from probes import everything

TIERS = ("none", "inet", "full")
# In a control no option puts a value on a command line, so this shell has one on its own.
OUTSIDE = ["sh", "-c", 'shift; "$@"; exit', "sh", "LET_IN=let-in-value"]
LET_IN = "let-in-value"


def _variants() -> dict[str, dict]:
    """Return name → what is let in: options, files made in the home directory, names seen there."""
    let_in = {"options": ["--env", "LET_IN"], "let_in_names": []}
    program = str(canaries.CHECKOUT / "bin/claudebox")
    usage = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    if "--mount" in usage:
        let_in["options"] += ["--mount", f"{canaries.HOME}/let-in"]
        let_in["files"] = {"let-in/file": LET_IN}
        let_in["let_in_names"] += ["let-in"]
    return {"plain": {"options": []}, "let-in": let_in}


VARIANTS = _variants()
CONFIGURATIONS = [f"{tier}-{variant}" for tier in TIERS for variant in VARIANTS]

runs: dict[str, dict] = {}
# The verdicts of the other classes, for the summary: name → (plant, trap or race) → verdict, detail.
tables: dict[str, dict] = {}
_failed: dict[str, str] = {}


def run_of(name: str) -> dict:
    """Return the run of a configuration ("none-plain"), or of a control ("outside", "namespaces")."""
    if name in _failed:
        pytest.fail(_failed[name], pytrace=False)
    if name not in runs:
        try:
            runs[name] = canaries.world("canary_host.py", _what(name))
        except Exception as error:
            _failed[name] = f"{name}: {error}"
            raise
    return runs[name]


def _what(name: str) -> dict:
    if name in ("outside", "namespaces"):
        probes = [p.name for p in everything.PROBES.values() if p.control == name]
        prefix = OUTSIDE if name == "outside" else canaries.NAMESPACES
        return {"prefix": prefix, "probes": probes}
    tier, variant = name.split("-", 1)
    what = VARIANTS[variant]
    return {**what, "options": ["--network", tier, *what["options"]]}


def control_of(probe) -> tuple[str, str]:
    """Return verdict and detail of a probe's control: LEAKED, or n/a with the reason."""
    if probe.no_control:
        return "n/a", probe.no_control
    if probe.only_root and not canaries.AS_ROOT:
        return "n/a", f"{probe.only_root}; root's run has it"
    verdict, detail = run_of(probe.control)["verdicts"].get(
        probe.name, ("broken", "it did not run")
    )
    if verdict == "blocked" and detail == "ENOSYS":
        return "n/a", "this kernel has no such call"
    return verdict, detail
