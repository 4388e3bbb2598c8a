"""Claims about comparing results: paired by scene, metrics as scored."""

import pandas as pd
import pytest

from eah_interp.benchmarks import compare_benchmarks
from eah_interp.benchmarks.toy import METRICS, ToyBenchmark, count_by_scene
from eah_interp.errors import InputError, SettingsError

CAPTIONS = pd.DataFrame(
    [
        # scene, caption, mentions, truth
        (7, "a cup, a pan", ["cup", "pan"], ["cup", "pan"]),
        (3, "a boat", ["boat"], ["fish"]),
        (5, "a sun, a sun, a car", ["sun", "sun", "car"], ["sun", "moon"]),
    ],
    columns=["scene", "caption", "mentions", "truth"],
)
QUESTIONS = pd.DataFrame(
    [
        # scene, present, says_yes: two kinds of question about scene 7
        (7, True, True),
        (7, False, True),
        (7, True, False),
        (7, False, False),
        (3, True, True),
        (3, False, False),
        (5, True, True),
        (5, False, True),
    ],
    columns=["scene", "present", "says_yes"],
).assign(kind="random")
RESULT = ToyBenchmark(QUESTIONS, CAPTIONS)


def test_every_metric_is_what_its_score_says():
    chair, pope = RESULT.chair(), RESULT.pope()
    expected = {
        "CHAIR_S": chair.chair_s,
        "CHAIR_I": chair.chair_i,
        "recall": chair.recall,
        "mentions per 100 captions": 100 * chair.mentions,
        "objects per 100 captions": 100 * chair.objects,
        "repeats per 100 captions": 100
        * (chair.n_4grams - chair.n_distinct_4grams)
        / chair.n,
        "accuracy": pope.accuracy,
        "false positives": pope.false_positives,
    }
    assert set(expected) == set(METRICS)
    for metric, value in expected.items():
        counts, totals = count_by_scene([RESULT], metric)
        assert 100 * counts.sum() / totals.sum() == pytest.approx(value)


def test_counts_stand_in_the_order_of_the_scenes_seeds():
    counts, totals = count_by_scene([RESULT], "CHAIR_I")
    assert counts.tolist() == [[1, 1, 0]]
    assert totals.tolist() == [[1, 3, 2]]
    counts, totals = count_by_scene([RESULT], "false positives")
    assert counts.tolist() == [[0, 1, 1]]
    assert totals.tolist() == [[1, 1, 2]]


def test_a_change_has_its_levels_and_an_interval_around_it():
    better = CAPTIONS.assign(mentions=CAPTIONS.truth)
    table = compare_benchmarks(RESULT, ToyBenchmark(QUESTIONS, better))
    rows = table.set_index("metric")
    assert rows.before["CHAIR_S"] == pytest.approx(200 / 3)
    assert rows.after["CHAIR_S"] == 0
    assert rows.change["CHAIR_S"] == pytest.approx(-200 / 3)
    told = rows.dropna(subset="low")
    assert {"CHAIR_S", "CHAIR_I"} < set(told.index)
    assert (told.low <= told.change).all()
    assert (told.change <= told.high).all()
    assert rows.change["accuracy"] == 0  # in every scene: no interval
    assert rows.loc["accuracy", ["low", "high"]].isna().all()


def test_the_order_of_rows_does_not_matter():
    again = ToyBenchmark(QUESTIONS.iloc[::-1], CAPTIONS.iloc[[2, 0, 1]])
    assert compare_benchmarks(RESULT, again).change.abs().max() == 0


def test_other_scenes_and_unknown_metrics_are_refused():
    other = ToyBenchmark(QUESTIONS, CAPTIONS.assign(scene=[7, 3, 6]))
    with pytest.raises(InputError, match="results of the same scenes"):
        compare_benchmarks(RESULT, other)
    with pytest.raises(SettingsError, match="metric must be one of CHAIR_S"):
        count_by_scene([RESULT], "BLEU")
