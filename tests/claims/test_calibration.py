"""Claims about verdicts on made outputs: right as often as their level says."""

import pytest
from scipy import stats

from tests.claims.simulated import LIMITS, WORLDS, judge_world, tally

RATE = 0.05
"""Of intervals at 95 %, this share excludes zero where nothing changed."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_verdicts_are_right_at_the_nominal_rate(name):
    """Over 200 made pairs: nulls err in one of twenty, effects are seen."""
    world, n = WORLDS[name], 200
    found = tally(world, n=n)
    if world.right == "cannot be told":
        wrong = n - found["cannot be told"]
        most = stats.binom.ppf(0.999, n, RATE)
        assert wrong <= most, found
    else:
        assert found[world.right] >= 0.9 * n, found
        opposite = {"holds": "does not hold", "does not hold": "holds"}[world.right]
        assert found[opposite] == 0, found


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_matching_hardly_helps_a_method(name):
    """What matching leaves is said on the page; few null methods pass for good ones."""
    assert tally(LIMITS[name], n=100)["holds"] <= stats.binom.ppf(0.999, 100, RATE)


def test_length_alone_lowers_chair_raw_and_not_matched():
    world = WORLDS["captions: fewer objects, as risky as before"]
    found, verdict = judge_world(world, 0)
    change = found.find("CHAIR_S")
    assert change.effect.high < 0
    assert change.matched.low < 0 < change.matched.high
    assert verdict == "cannot be told"


def test_repetition_alone_lowers_what_a_caption_names_and_not_the_verdict():
    world = WORLDS["captions: the same objects again and again"]
    found, verdict = judge_world(world, 1)
    assert found.find("objects").effect.high < 0
    assert found.find("CHAIR_S").effect.high < 0
    assert verdict == "cannot be told"


def test_saying_no_alone_mends_false_positives_and_no_more():
    world = WORLDS["answers: one yes in four turned to no"]
    found, verdict = judge_world(world, 2)
    assert found.find("false positives").effect.high < 0
    assert found.find("yes-ratio").effect.high < 0
    assert verdict == "does not hold"
