"""The escape suite: every probe, in every tier, with and without what options let in, and its control."""

import ctypes
import re

import canaries
import pytest
from configurations import CONFIGURATIONS, LET_IN, VARIANTS, control_of, run_of
from probes import everything

PROBES = everything.PROBES.values()


def _landlock_scopes() -> bool:
    """Say whether claudebox uses Landlock's scopes, and this kernel has them (ABI 6)."""
    # landlock_create_ruleset with LANDLOCK_CREATE_RULESET_VERSION.
    version = ctypes.CDLL(None, use_errno=True).syscall(444, None, ctypes.c_long(0), 1)
    return version >= 6 and (canaries.CHECKOUT / "claudebox/sandbox/landlock.py").exists()


# Probes that find what they look for, in a tier or in all (None), and what the manual says about it.
KNOWN_LIMITS = {
    ("hard_link_to_a_secret", None): "A file in the project with another name elsewhere",
    ("mount_below_the_project", None): "Filesystems that are mounted below the project come along",
    ("standard_stream", None): "a file on one of them can be opened anew inside",
    ("socket_in_the_project", None): "Sockets and named pipes in the project, in every tier",
    ("signal_to_the_own_process_group", None): "what shares its process group",
    ("abstract_socket", "full"): "sockets in the tier .Cm full",
    ("abstract_socket_by_datagram", "full"): "sockets in the tier .Cm full",
    ("abstract_socket_of_the_x_server", "full"): "an X server or a message bus may listen on one",
    ("names_of_the_sockets_of_the_host", "full"): ".Pa /proc/net lists the sockets of the host",
    ("listening_ports_of_the_host", "full"): ".Pa /proc/net lists the sockets of the host",
    ("loopback_tcp", "full"): "services on the loopback address",
    ("loopback_tcp_other_address", "full"): "services on the loopback address",
    ("loopback_tcp_ipv6", "full"): "services on the loopback address",
    ("own_address_tcp", "full"): "services on the loopback address, the local network",
    ("loopback_udp", "full"): "services on the loopback address",
}
# Not where claudebox uses Landlock's scopes and the kernel has them.
CLOSED_BY_LANDLOCK = {
    "signal_to_the_own_process_group",
    "abstract_socket",
    "abstract_socket_by_datagram",
    "abstract_socket_of_the_x_server",
}
# What the audit says before a launch in which such a limit matters.
AUDIT_SAYS = {
    "hard_link_to_a_secret": "have another name elsewhere (hard links)",
    "mount_below_the_project": "mounted below the project",
    "abstract_socket": "abstract sockets",
    "loopback_tcp": "everything that this machine can reach",
}
# Probes that no machine has a control for.
WITHOUT_CONTROL = {
    "call_vhangup",
    "capabilities_ambient",
    "capabilities_inheritable",
    "find_the_namespace_above",
    "mount_the_old_control_groups",
    "setuid_programs_gain_nothing",
    "terminal_takes_the_console",
}


def _held() -> list:
    """Return (configuration, probe) of all that has to stay outside."""
    limits = KNOWN_LIMITS.keys()
    if _landlock_scopes():
        limits = {(probe, tier) for probe, tier in limits if probe not in CLOSED_BY_LANDLOCK}
    return [
        (configuration, probe.name)
        for configuration in CONFIGURATIONS
        for probe in PROBES
        if not {(probe.name, None), (probe.name, configuration.split("-")[0])} & limits
    ]


@pytest.mark.parametrize(("configuration", "probe"), _held())
def test_what_the_probe_looks_for_stays_outside(configuration, probe):
    verdict, detail = run_of(configuration)["verdicts"].get(probe, ("broken", "it did not run"))
    if verdict == "n/a":
        # What is not there inside must not have been there outside either.
        assert control_of(everything.PROBES[probe])[0] == "n/a", detail
    else:
        assert verdict == "blocked", f"{everything.PROBES[probe].sentence} {verdict}: {detail}"


@pytest.mark.parametrize("probe", [probe.name for probe in PROBES])
def test_the_control_of_the_probe_finds_it_without_the_protection(probe):
    verdict, detail = control_of(everything.PROBES[probe])
    assert verdict in ("LEAKED", "n/a"), f"{everything.PROBES[probe].sentence} {verdict}: {detail}"
    assert (verdict, detail) != ("n/a", "")


@pytest.mark.parametrize(("probe", "tier"), KNOWN_LIMITS, ids=lambda value: str(value or "all"))
def test_known_limit_is_in_the_manual_and_in_the_audit(probe, tier):
    manual = (canaries.CHECKOUT / "man/claudebox.1").read_text()
    configurations = [c for c in CONFIGURATIONS if tier in (None, c.split("-")[0])]
    for configuration in configurations:
        run = run_of(configuration)
        expected = "LEAKED"
        if probe in CLOSED_BY_LANDLOCK and _landlock_scopes():
            expected = "blocked"
        verdict, detail = run["verdicts"][probe]
        assert verdict in (expected, "n/a"), f"{configuration}: {detail}"
        if expected == "LEAKED":
            assert KNOWN_LIMITS[probe, tier] in re.sub(r"\s+", " ", manual)
            assert AUDIT_SAYS.get(probe, "") in run["errors"]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_what_was_let_in_is_there_and_the_session_ended_well(configuration):
    run = run_of(configuration)
    assert run["status"] == 0
    expected = LET_IN if "LET_IN" in VARIANTS[configuration.split("-", 1)[1]]["options"] else ""
    assert run["let_in"] == expected


def test_there_are_more_probes_than_any_peer_has():
    assert len(everything.PROBES) >= 150
    assert len({probe.sentence for probe in PROBES}) == len(everything.PROBES)


def test_few_probes_have_no_control():
    assert {probe.name for probe in PROBES if probe.no_control} == WITHOUT_CONTROL
    missing = [probe.name for probe in PROBES if control_of(probe)[0] == "n/a"]
    only_root = [probe.name for probe in PROBES if probe.only_root and not canaries.AS_ROOT]
    # What a kernel or a machine does not have differs from one to the next.
    assert len(set(missing) - set(only_root) - WITHOUT_CONTROL) <= 25
