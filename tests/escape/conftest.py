"""Prints what came of the escape suite: a table of verdicts, and the controls that could not be had."""

import collections

import canaries
from configurations import control_of, runs, tables
from probes import everything


def pytest_terminal_summary(terminalreporter):
    write = terminalreporter.write_line
    for name, verdicts in tables.items():
        counts = collections.Counter(verdict for verdict, _ in verdicts.values())
        write(f"{name:<26}" + "  ".join(f"{n} {v}" for v, n in sorted(counts.items())))
    if not runs:
        return
    kinds = list(dict.fromkeys(probe.kind for probe in everything.PROBES.values()))
    write("")
    write(f"escape: {len(everything.PROBES)} probes as {'root' if canaries.AS_ROOT else 'user'}")
    write(f"{'':<14}" + "".join(f"  {kind:<30}" for kind in kinds))
    for name, run in runs.items():
        counts = collections.defaultdict(collections.Counter)
        for probe, (verdict, _) in run["verdicts"].items():
            counts[everything.PROBES[probe].kind][verdict] += 1
        cells = [" ".join(f"{n} {v}" for v, n in sorted(counts[kind].items())) for kind in kinds]
        write(f"{name:<14}" + "".join(f"  {cell:<30}" for cell in cells))
    write(
        "LEAKED: what succeeds in outside and namespaces, the controls; in the others a known limit,"
        " or the test of it failed"
    )
    if {"outside", "namespaces"} <= runs.keys():
        reasons = collections.defaultdict(list)
        for probe in everything.PROBES.values():
            verdict, reason = control_of(probe)
            if verdict == "n/a":
                reasons[reason].append(probe.name)
        write(f"controls n/a: {sum(map(len, reasons.values()))}")
        for reason, names in reasons.items():
            write(f"  {reason}: {', '.join(names)}")
