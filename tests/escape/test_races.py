"""A session that exchanges files for links while another one starts gets it to follow none."""

import re
from functools import cache

import canaries
import pytest
from configurations import tables
from race_host import RACES

LAUNCHES = 8


@cache
def outcome() -> dict:
    found = canaries.world("race_host.py", LAUNCHES, timeout=300)
    tables["races"] = found["races"]
    tables["races, careless"] = found["careless"]
    return found


@pytest.mark.parametrize("race", RACES)
def test_a_launch_that_is_raced_follows_no_link(race):
    verdict, detail = outcome()["races"][race]
    assert verdict == "blocked", f"{RACES[race].sentence} {detail}"


@pytest.mark.parametrize("race", RACES)
def test_control_a_careless_launcher_loses_the_race(race):
    verdict, detail = outcome()["careless"][race]
    assert verdict == "LEAKED", f"{RACES[race].sentence} {detail}"


def test_known_limit_an_empty_file_may_appear_where_bwrap_follows_a_link():
    assert [name for name, race in RACES.items() if race.empty_file_may_appear] == ["mcp_oldroot"]
    manual = (canaries.CHECKOUT / "man/claudebox.1").read_text()
    assert "have an empty file made where the user may write" in re.sub(r"\s+", " ", manual)
