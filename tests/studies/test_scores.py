"""Claims about scores: every answer is counted once, by the benchmarks' own rules."""

from itertools import product

import pandas as pd
import pytest

from eah_interp.benchmarks import score_answers, score_captions
from eah_interp.benchmarks.paired import Draws
from eah_interp.benchmarks.pope import says_yes
from eah_interp.errors import InputError, SettingsError
from eah_interp.studies.contrasts import score_conditions
from eah_interp.studies.scores import score_rows
from eah_interp.toy.language import TOY_KNOWS
from tests.studies.made import caption, make_run, question

DRAWS = Draws(resamples=50)
SAID = ["Yes.", "No, there is none.", "Perhaps.", "yes", "No", "There isn't one."]


@pytest.fixture
def questions():
    return [question(f"q{n}", label=n % 2 == 0, cluster=n // 2) for n in range(6)]


def values(rows, task, condition="baseline"):
    return {
        score.metric.name: score.effect.estimate
        for score in score_conditions(rows, [condition], draws=DRAWS)
        if score.metric.task == task and score.kind == "all" and score.effect
    }


def test_questions_score_as_the_benchmark_scores_them(tmp_path, questions):
    run = make_run(tmp_path / "s", questions, {"baseline": SAID})
    found = values(score_rows(run), "yes_no")
    table = pd.DataFrame(
        {
            "present": [item.label for item in questions],
            "says_yes": [says_yes(answer) for answer in SAID],
        }
    )
    official = score_answers(table)
    assert found["accuracy"] == pytest.approx(official.accuracy)
    assert found["F1"] == pytest.approx(official.f1)
    assert found["precision"] == pytest.approx(official.precision)
    assert found["recall"] == pytest.approx(official.recall)
    assert found["false positives"] == pytest.approx(official.false_positives)
    assert found["yes-ratio"] == pytest.approx(official.yes_ratio)
    assert found["neither"] == pytest.approx(100 / 6)  # "Perhaps."


def test_the_rule_of_opera_reads_contractions_as_no(tmp_path, questions):
    run = make_run(tmp_path / "s", questions, {"baseline": SAID})
    pope, opera = score_rows(run), score_rows(run, rule="opera")
    assert pope.questions.yes.tolist() == [1, 0, 1, 1, 0, 1]
    assert opera.questions.yes.tolist() == [1, 0, 1, 1, 0, 0]


def test_an_unknown_rule_is_refused(tmp_path, questions, as_users_run_it):
    run = make_run(tmp_path / "s", questions, {"baseline": SAID})
    with pytest.raises(SettingsError, match="rule must be one of"):
        score_rows(run, rule="mine")


def test_captions_of_the_toy_score_as_chair_does(tmp_path):
    told = ["There is a boat and a fish.", "I can see a tree, a tree.", "Nothing."]
    truth = [("boat",), ("tree", "fish"), ("fish",)]
    items = [caption(f"c{n}", truth=t, cluster=n) for n, t in enumerate(truth)]
    rows = score_rows(make_run(tmp_path / "s", items, {"baseline": told}))
    table = pd.DataFrame(
        {
            "mentions": [["boat", "fish"], ["tree", "tree"], []],
            "truth": [list(t) for t in truth],
            "caption": told,
        }
    )
    official, found = score_captions(table), values(rows, "caption")
    assert found["CHAIR_S"] == pytest.approx(official.chair_s)
    assert found["recall"] == pytest.approx(official.recall)
    assert found["mentions"] == pytest.approx(official.mentions)
    assert found["words"] == pytest.approx(official.words)
    assert found["tokens"] == pytest.approx((7 + 7 + 1) / 3)


def test_failures_and_missing_rows_are_counted(tmp_path, questions):
    said = [*SAID[:4], ValueError("no such file"), None]
    rows = score_rows(make_run(tmp_path / "s", questions, {"baseline": said}))
    assert rows.failures.to_dict("records") == [
        {"condition": "baseline", "answered": 4, "failed": 1, "missing": 1}
    ]
    assert len(rows.questions) == 4


def test_captions_without_a_vocabulary_are_listed_and_not_scored(tmp_path):
    item = caption("c", truth=("cup",), cluster=1, image="images/1.jpg")
    rows = score_rows(make_run(tmp_path / "s", [item], {"baseline": ["A cup."]}))
    assert rows.captions.empty
    assert "1 captions of images are not scored" in rows.notes[0]
    assert "synonyms" in rows.notes[0]


def test_captions_of_images_score_with_the_users_files(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "eah_interp.benchmarks.mentions.load_lemmatizer", lambda: str.split
    )
    synonyms = tmp_path / "synonyms.txt"
    synonyms.write_text("cup, mug\npan\n")
    image = "COCO_val2014_000000000042.jpg"
    item = caption("c", truth=("mug",), cluster=1, image=image)
    run = make_run(tmp_path / "s", [item], {"baseline": ["a mug and a pan"]})
    rows = score_rows(run, synonyms=synonyms)
    assert rows.captions.mentions[0] == ["cup", "pan"]
    assert rows.captions.truth[0] == ["cup"]
    bare = caption("c", truth=(), cluster=1, image=image)
    run = make_run(tmp_path / "t", [bare], {"baseline": ["a mug"]})
    with pytest.raises(InputError, match="have no ground truth"):
        score_rows(run, synonyms=synonyms)
    truth = tmp_path / "truth.json"
    truth.write_text('{"42": ["pan"]}')
    found = score_rows(run, synonyms=synonyms, annotations=truth)
    assert found.captions.truth[0] == ["pan"]


def test_questions_without_a_label_are_noted(tmp_path, questions):
    items = [*questions, question("open", label=None, cluster=9)]
    run = make_run(tmp_path / "s", items, {"baseline": [*SAID, "Yes"]})
    rows = score_rows(run)
    assert len(rows.questions) == 6
    assert rows.notes == ("1 answers to questions without a label: not scored.",)


def test_a_toy_that_was_shown_images_of_one_s_own_is_noted(tmp_path):
    own = caption("c", truth=("cup",), cluster=1, image="images/1.jpg")
    drawn = caption("d", truth=("cup",), cluster=2)
    toy, other = "LlavaForConditionalGeneration (seed-0)", "Made (by hand)"
    noted = {
        (model, item.id): TOY_KNOWS in " ".join(score_rows(run).notes)
        for n, (model, item) in enumerate(product((toy, other), (own, drawn)))
        if (
            run := make_run(
                tmp_path / str(n), [item], {"baseline": ["A cup."]}, model=model
            )
        )
    }
    assert noted == {
        (toy, "c"): True,
        (toy, "d"): False,
        (other, "c"): False,
        (other, "d"): False,
    }
