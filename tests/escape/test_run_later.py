"""Nothing that a session leaves behind runs outside later: plants, and a victim that goes on working."""

import re
from functools import cache

import canaries
import pytest
from configurations import TIERS, tables
from plants import PLANTS

CONFIGURATIONS = {
    f"{tier}-{variant}": ["--network", tier, *options]
    for tier in TIERS
    for variant, options in (("plain", []), ("let-in", ["--env", "LET_IN"]))
}
HELD = [plant for plant in PLANTS if not plant.known_limit]
LIMITS = [plant for plant in PLANTS if plant.known_limit]
TRIED_TOGETHER = [
    plant for plant in HELD if not (plant.setup or plant.options or plant.start != ".")
]


def named(plants):
    return pytest.mark.parametrize("plant", plants, ids=[plant.name for plant in plants])


@cache
def outcome() -> dict:
    found = canaries.world("later_host.py", CONFIGURATIONS, timeout=300)
    tables["run later, alone"] = found["alone"]
    for configuration, verdicts in found["together"].items():
        tables[f"run later, {configuration}"] = verdicts
    tables["run later, outside"] = found["controls"]
    return found


@named(HELD)
def test_what_a_session_leaves_does_not_run_later(plant):
    assert outcome()["alone"][plant.name] == ["blocked", ""], plant.sentence


@named(TRIED_TOGETHER)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_what_a_session_leaves_does_not_run_later_in_any_tier(configuration, plant):
    assert outcome()["together"][configuration][plant.name] == ["blocked", ""], plant.sentence


@named(PLANTS)
def test_control_what_is_left_without_a_sandbox_runs_later(plant):
    assert outcome()["controls"][plant.name] == ["LEAKED", ""], plant.sentence


@named(LIMITS)
def test_known_limit_what_is_left_runs_later_as_the_manual_says(plant):
    manual = (canaries.CHECKOUT / "man/claudebox.1").read_text()
    assert plant.known_limit in re.sub(r"\s+", " ", manual)
    assert outcome()["alone"][plant.name][0] == "LEAKED"


def test_every_plant_has_a_sentence_of_its_own():
    assert len({plant.sentence for plant in PLANTS}) == len({p.name for p in PLANTS}) == len(PLANTS)
