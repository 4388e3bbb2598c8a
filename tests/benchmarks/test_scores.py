"""Claims about POPE's and CHAIR's scores: rates, counts, and what cannot be said."""

import json
import math

import pandas as pd
import pytest

from eah_interp.benchmarks import score_answers, score_captions
from eah_interp.benchmarks.chair import count_mentions
from eah_interp.errors import InputError


def test_released_captions_get_their_published_score(reference_data):
    expected = json.loads((reference_data / "chair/expected.json").read_text())
    truth = json.loads(
        (reference_data / "chair" / "chair_gt_objects_pattern.json").read_text()
    )
    assert len(expected["runs"]) == 3
    for run in expected["runs"].values():
        captions = pd.DataFrame(
            {
                "mentions": [expected["nodes"][node] for node in nodes],
                "truth": truth[str(image)],
                "caption": "words are counted elsewhere",
            }
            for image, nodes in run["per_caption"]
        )
        score = score_captions(captions)
        assert score.n == run["captions"]
        assert score.chair_s == pytest.approx(run["CHAIR_S"], abs=1e-4)
        assert score.chair_i == pytest.approx(run["CHAIR_I"], abs=1e-4)
        assert score.recall == pytest.approx(run["Recall"], abs=1e-4)
        assert score.mentions == pytest.approx(run["object_mentions"] / score.n)
        assert score.n_hallucinating == run["hallucinated_captions"]


def test_an_answer_that_is_neither_is_wrong_and_counted():
    table = pd.DataFrame(
        {"present": [True, True, False], "says_yes": [True, None, None]}
    )
    score = score_answers(table)
    assert score.n_neither == 2
    assert score.accuracy == pytest.approx(100 / 3)
    assert score.recall == 50
    assert score.false_positives == 0


def test_the_counts_are_those_of_the_rates():
    asked = [(True, True)] * 5 + [(True, False)] * 3 + [(False, True)] * 2
    asked += [(False, False)] * 6 + [(True, None)]
    score = score_answers(pd.DataFrame(asked, columns=["present", "says_yes"]))
    assert (score.tp, score.fn, score.fp, score.tn) == (5, 3, 2, 6)
    assert (score.n, score.n_neither) == (17, 1)
    assert score.accuracy == pytest.approx(100 * 11 / 17)
    assert score.precision == pytest.approx(100 * 5 / 7)
    assert score.recall == pytest.approx(100 * 5 / 9)
    assert score.f1 == pytest.approx(100 * 10 / 16)
    assert score.yes_ratio == pytest.approx(100 * 7 / 17)
    assert score.false_positives == 25


def test_an_answer_that_a_rule_had_to_guess_counts_and_is_reported():
    table = pd.DataFrame(
        {"present": [True, False], "says_yes": [True, True], "neither": [True, False]}
    )
    score = score_answers(table)
    assert (score.tp, score.fp, score.n_neither) == (1, 1, 1)
    assert score.accuracy == 50


def test_what_cannot_be_said_is_nan():
    silent = pd.DataFrame([{"mentions": [], "truth": ["cup"], "caption": ""}])
    assert math.isnan(score_captions(silent).chair_i)
    assert score_captions(silent).chair_s == 0
    never = score_answers(pd.DataFrame({"present": [False], "says_yes": [False]}))
    assert math.isnan(never.precision)
    assert math.isnan(never.recall)
    assert math.isnan(never.f1)
    assert never.accuracy == 100


def test_every_mention_counts_but_an_object_is_found_once():
    row = {"mentions": ["cup", "cup", "pan"], "truth": ["cup", "sun"], "caption": "a b"}
    score = score_captions(pd.DataFrame([row]))
    assert score.chair_i == pytest.approx(100 / 3)
    assert score.recall == 50
    assert (score.mentions, score.objects, score.words) == (3, 2, 2)


def test_runs_of_four_words_that_come_again_are_counted_in_their_own_caption():
    texts = ["A cup. a cup. A cup. a cup.", "A cup. a cup. a pan", "a b c"]
    rows = [{"mentions": [], "truth": [], "caption": text} for text in texts]
    table = count_mentions(pd.DataFrame(rows))
    assert table.n_4grams.tolist() == [5, 3, 0]
    assert table.n_distinct_4grams.tolist() == [2, 3, 0]
    score = score_captions(pd.DataFrame(rows))
    assert score.distinct_4grams == pytest.approx(100 * 5 / 8)
    assert math.isnan(score_captions(pd.DataFrame(rows[2:])).distinct_4grams)


def test_tables_without_their_columns_are_refused():
    with pytest.raises(InputError, match="columns 'present' and 'says_yes'"):
        score_answers(pd.DataFrame({"present": [True]}))
    with pytest.raises(InputError, match="at least one answer"):
        score_answers(pd.DataFrame({"present": [], "says_yes": []}))
    with pytest.raises(InputError, match="at least one caption"):
        score_captions(pd.DataFrame({"mentions": []}))
    with pytest.raises(InputError, match="lack the columns"):
        score_captions(pd.DataFrame({"mentions": [["cup"]]}))
