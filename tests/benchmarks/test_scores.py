"""Claims about POPE's and CHAIR's scores, against released answers and captions."""

import json
import math

import pandas as pd
import pytest

from eah_interp.benchmarks import score_answers, score_captions
from eah_interp.errors import InputError

# Counts of the released LLaVA-1.5-13B answers: TP, FP, TN, FN (shared/data/README.md).
COUNTS = {
    "random": (1182, 31, 1379, 318),
    "popular": (1182, 59, 1441, 318),
    "adversarial": (1182, 117, 1383, 318),
}


def says_yes(answer):
    """Parse an answer as POPE's official script does."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


@pytest.mark.parametrize("split", COUNTS)
def test_released_answers_get_their_published_score(split, reference_data):
    data = json.loads((reference_data / "pope/pope_llava15_13b.json").read_text())
    rows = [(label == "yes", says_yes(a)) for *_, label, a in data["splits"][split]]
    score = score_answers(pd.DataFrame(rows, columns=["present", "says_yes"]))
    tp, fp, tn, fn = COUNTS[split]
    assert score.n == tp + fp + tn + fn
    assert round(score.f1, 1) == data["published_F1"][split]
    assert score.accuracy == pytest.approx(100 * (tp + tn) / score.n)
    assert score.precision == pytest.approx(100 * tp / (tp + fp))
    assert score.recall == pytest.approx(100 * tp / (tp + fn))
    assert score.false_positives == pytest.approx(100 * fp / (fp + tn))
    assert score.yes_ratio == pytest.approx(100 * (tp + fp) / score.n)
    assert score.n_neither == 0


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


def test_an_answer_that_is_neither_is_wrong_and_counted():
    table = pd.DataFrame(
        {"present": [True, True, False], "says_yes": [True, None, None]}
    )
    score = score_answers(table)
    assert score.n_neither == 2
    assert score.accuracy == pytest.approx(100 / 3)
    assert score.recall == 50
    assert score.false_positives == 0


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
    assert (score.mentions, score.words) == (3, 2)


def test_tables_without_their_columns_are_refused():
    with pytest.raises(InputError, match="columns 'present' and 'says_yes'"):
        score_answers(pd.DataFrame({"present": [True]}))
    with pytest.raises(InputError, match="at least one answer"):
        score_answers(pd.DataFrame({"present": [], "says_yes": []}))
    with pytest.raises(InputError, match="at least one caption"):
        score_captions(pd.DataFrame({"mentions": []}))
    with pytest.raises(InputError, match="lack the columns"):
        score_captions(pd.DataFrame({"mentions": [["cup"]]}))
