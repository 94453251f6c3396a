"""The network tier of a plan: what decides it, and what has no meaning in one."""

import pytest

from claudebox import Failure, net


@pytest.fixture
def plan(sample):
    return {**sample, "network": {"tier": "full", "source": "default"}}


def test_a_tier_that_does_not_exist_is_refused_with_the_nearest(plan):
    with pytest.raises(Failure, match=r'"ine" .* is not a network tier \(did you mean "inet"\?\)'):
        net.apply(plan, "ine")


@pytest.mark.parametrize("tier", ["none", "full"])
def test_an_exception_has_no_meaning_without_a_filter(plan, tier):
    with pytest.raises(Failure, match="--allow 10.0.0.1 has no meaning"):
        net.apply(plan, tier, ["10.0.0.1"])


def test_inet_is_refused_without_a_program_that_joins_it_to_the_internet(plan, monkeypatch):
    monkeypatch.setattr(net, "sidecar_programs", lambda *_: [])
    with pytest.raises(Failure, match="neither pasta nor slirp4netns"):
        net.apply(plan, "inet")


def test_an_exception_that_cannot_be_made_is_refused_at_once(plan, monkeypatch):
    monkeypatch.setattr(net, "sidecar_programs", lambda *_: [("pasta", "/usr/bin/pasta")])
    with pytest.raises(Failure, match="--allow 'localhost'"):
        net.apply(plan, "inet", ["localhost"])
    applied = net.apply(plan, "inet", ["10.0.0.1"])
    assert applied["network"]["allow"] == ["10.0.0.1"]
