"""The next launch of claudebox trips over nothing that an earlier session left for it."""

from functools import cache

import canaries
import pytest
from configurations import TIERS, tables
from traps import TRAPS

CONFIGURATIONS = [
    ["--network", tier, *options] for tier in TIERS for options in ([], ["--env", "LET_IN"])
]
# What a careless launcher cannot show, because an except clause or a limit is all that is there.
WITHOUT_CONTROL = {
    "credentials_are_a_directory",
    "credentials_of_the_host_are_nested",
    "deep_directories",
    "instance_claude_json_is_a_directory",
    "instance_claude_md_is_a_directory",
    "instance_configuration_has_other_types",
    "instance_configuration_is_garbage",
    "instance_configuration_is_nested",
    "instance_metadata_is_odd",
    "instance_sandbox_md_is_a_directory",
    "instance_temporary_is_a_directory",
}


@cache
def outcome() -> dict:
    found = canaries.world("next_host.py", CONFIGURATIONS, timeout=300)
    tables["next launch"] = found["launches"]
    tables["next launch, careless"] = found["careless"]
    return found


@pytest.mark.parametrize("trap", TRAPS)
def test_a_launch_reads_writes_and_mounts_nothing_elsewhere(trap):
    verdict, detail = outcome()["launches"][trap]
    assert verdict == "blocked", f"{TRAPS[trap].sentence} {detail}"


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if not TRAPS[trap].no_control])
def test_control_a_careless_launcher_trips_over_it(trap):
    verdict, detail = outcome()["careless"][trap]
    assert verdict == "LEAKED", f"{TRAPS[trap].sentence} {detail}"
    # Not because the careless launcher has a fault of another kind.
    what = ("touched: ", "a canary was seen", "it hung")
    assert detail.startswith(what) or "MemoryError" in detail, detail


def test_few_traps_have_no_control():
    assert {trap.name for trap in TRAPS.values() if trap.no_control} == WITHOUT_CONTROL
    assert len({trap.sentence for trap in TRAPS.values()}) == len(TRAPS)
