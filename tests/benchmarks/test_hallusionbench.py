"""Claims about HallusionBench's score: a slow reference from its rules."""

import json
import random

import pandas as pd
import pytest

from eah_interp.benchmarks import read_hallusionbench, score_hallusionbench
from eah_interp.benchmarks.hallusionbench import HallusionScore
from eah_interp.benchmarks.pope import read_strictly
from eah_interp.errors import InputError

KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")
SAID = ["Yes.", "No", "no, it isn't", "I cannot tell", "**Yes**", "", "Not sure, yes"]


def score_slowly(rows):
    """Score answers by the script's rules: 1 right, 0 wrong, 2 uncertain."""
    for row in rows:
        given = read_strictly(row["answer"])
        state = 2 if given is None else int(given == (row["gt_answer"] == "1"))
        row["correct"] = state == 1
        if row["category"] == "VS" and row["figure_id"] == "0":
            row["correct"] = state in (1, 2)
    figures, pairs = {}, {}
    for row in rows:
        key = tuple(row[k] for k in KEYS[:3])
        pairs.setdefault((*key, row["question_id"]), []).append(row["correct"])
        if not (row["category"] == "VS" and row["figure_id"] == "0"):
            figures.setdefault((*key, row["figure_id"]), []).append(row["correct"])
    return (
        100 * sum(row["correct"] for row in rows) / len(rows),
        100 * sum(sum(v) == len(v) for v in figures.values()) / len(figures),
        100 * sum(sum(v) == len(v) for v in pairs.values()) / len(pairs),
    )


def make(rng, n):
    rows = {}
    for _ in range(n):
        category = rng.choice(["VD", "VS"])
        parts = (category, rng.choice(["map", "ocr"]), *(str(rng.randint(0, 2)),) * 1)
        key = (*parts, str(rng.randint(0, 2)), str(rng.randint(0, 2)))
        rows[key] = {
            **dict(zip(KEYS, key, strict=True)),
            "visual_input": "1",
            "question": "Is it?",
            "gt_answer": rng.choice("01"),
            "answer": rng.choice(SAID),
        }
    rows["VD", "map", "9", "1", "0"] = {
        **dict(zip(KEYS, ("VD", "map", "9", "1", "0"), strict=True)),
        "visual_input": "1",
        "question": "Is it?",
        "gt_answer": "1",
        "answer": "Yes",
    }
    return list(rows.values())


@pytest.mark.parametrize("seed", range(20))
def test_all_three_accuracies_are_the_slow_reference_s(seed, write):
    rows = make(random.Random(seed), 60)
    table = read_hallusionbench(write("answers.jsonl", rows), answers=True)
    found = score_hallusionbench(table)
    groups = {"all": rows}
    groups |= {c: [r for r in rows if r["category"] == c] for c in ("VD", "VS")}
    for name, own in groups.items():
        rates = found.official[name]
        got = (rates.a_acc, rates.f_acc, rates.q_acc)
        assert got == pytest.approx(score_slowly(own)), name


def one(answer, *, category="VS", figure="0", question="0", truth=True):
    values = (category, "map", "0", figure, question)
    row = dict(zip(KEYS, values, strict=True)) | {"visual_input": "0"}
    return row | {"question": "Is it?", "label": truth, "answer": answer}


def test_an_uncertain_answer_without_a_figure_is_right_for_the_script_alone():
    found = score_hallusionbench(
        pd.DataFrame([one("I cannot tell"), one("Hm", figure="1")])
    )
    assert found.official["all"].a_acc == 50
    assert found.corrected["all"].a_acc == 0
    assert found.official["all"].n_uncertain == 2
    assert found.official["all"].n_figures == 1  # figure 0 of VS is no figure


def test_a_question_of_one_figure_is_a_pair_for_the_script_alone():
    rows = [
        one("Yes", category="VD", figure="0"),
        one("No", category="VD", figure="1"),
        one("Yes", category="VD", figure="0", question="1"),
    ]
    found = score_hallusionbench(pd.DataFrame(rows))
    assert (found.official["all"].q_acc, found.official["all"].n_pairs) == (50, 2)
    assert (found.corrected["all"].q_acc, found.corrected["all"].n_pairs) == (0, 1)


def test_released_answers_are_scored_with_the_benchmark_s_truths(
    reference_data, tmp_path
):
    folder = reference_data / "released/hallusionbench"
    questions = read_hallusionbench(folder / "HallusionBench.json")
    assert len(questions) == 1129
    path = folder / "HallusionBench_result_sample.json"
    answers = read_hallusionbench(path, answers=True)
    found = score_hallusionbench(answers, questions=questions)
    assert found.official["all"].n == 254
    assert found.n_missing == 1129 - 254
    assert HallusionScore.load(found.save(tmp_path / "scored")) == found
    truths = {
        tuple(str(q[k]) for k in KEYS): q["gt_answer"]
        for q in json.loads((folder / "HallusionBench.json").read_text())
    }
    rows = [
        {k: str(r[k]) for k in KEYS}
        | {
            "answer": r["model_prediction"],
            "gt_answer": truths[tuple(str(r[k]) for k in KEYS)],
        }
        for r in json.loads(path.read_text())
    ]
    rates = found.official["all"]
    assert (rates.a_acc, rates.f_acc, rates.q_acc) == pytest.approx(score_slowly(rows))
    with pytest.raises(InputError, match=r"result_sample\.json:\d+: expected the"):
        score_hallusionbench(answers)


def test_what_does_not_fit_is_refused(write):
    row = make(random.Random(0), 1)[0]
    with pytest.raises(InputError, match=r"h\.jsonl:2: question .* stands in .*:1 al"):
        read_hallusionbench(write("h.jsonl", [row, row]), answers=True)
    with pytest.raises(InputError, match=r":1: expected the truth 0 or 1 as gt_answer"):
        read_hallusionbench(write("h.jsonl", [row | {"gt_answer": "2"}]))
    with pytest.raises(InputError, match=r"number or word under 'set_id', got none"):
        read_hallusionbench(write("h.jsonl", [{"category": "VD", "subcategory": "a"}]))
    answers = read_hallusionbench(write("a.jsonl", [row]), answers=True)
    other = read_hallusionbench(write("q.jsonl", [row | {"set_id": "77"}]))
    with pytest.raises(InputError, match=r"a\.jsonl:1: expected a question of the"):
        score_hallusionbench(answers, questions=other)
