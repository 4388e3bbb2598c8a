"""Claims about `eah-interp score`: the library's numbers, from files."""

import json
import re
import shlex

import pytest
from typer.testing import CliRunner

from eah_interp.cli import app
from eah_interp.cli.score import score

QUESTIONS = [
    {"question_id": 1, "text": "Is there a cat?", "label": "yes"},
    {"question_id": 2, "text": "Is there a dog?", "label": "no"},
]
ANSWERS = [{"answer": "Yes. It is not big."}, {"answer": "A dog!"}]


def run(*arguments):
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


@pytest.fixture
def pope(tmp_path):
    paths = tmp_path / "answers.jsonl", tmp_path / "questions.jsonl"
    for path, rows in zip(paths, (ANSWERS, QUESTIONS), strict=True):
        path.write_text("\n".join(map(json.dumps, rows)))
    return "pope", paths[0], "--questions", paths[1]


@pytest.fixture
def chair(reference_data, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(reference_data / "nltk_data")])
    folder = reference_data / "chair"
    return (
        *("chair", folder / "opera_captions_minigpt4_beam5.jsonl"),
        *("--annotations", folder / "chair_gt_objects_pattern.json"),
        *("--synonyms", folder / "chair_vocab.json"),
    )


def test_answers_are_scored_by_either_rule(pope):
    plain = json.loads(run(*pope, "--json").stdout)
    assert plain["rule"] == "pope"
    assert plain["score"]["tp"] == plain["score"]["fp"] == 1
    assert plain["score"]["n_neither"] == 1
    opera = json.loads(run(*pope, "--rule", "opera", "--json").stdout)
    assert (opera["score"]["fn"], opera["score"]["fp"]) == (1, 1)


def test_the_table_of_answers_has_rates_counts_and_what_was_guessed(pope):
    shown = run(*pope).stdout
    assert re.search(r"accuracy +50\.0 +1 of 2 answers", shown)
    assert re.search(r"yes ratio +100\.0 +2 of 2", shown)
    assert "TP 1, FP 1, TN 0, FN 0. 1 answers have no word" in shown


def test_answers_that_a_stricter_reading_turns_are_printed(pope):
    pope[1].write_text('{"answer": "NO"}\n{"answer": "**No**"}')
    assert json.loads(run(*pope, "--json").stdout)["n_turned"] == 2
    assert "2 answers would turn round" in " ".join(run(*pope).stdout.split())


def test_what_cannot_be_said_is_null_in_json_and_said_in_the_table(pope):
    pope[1].write_text('{"answer": "no"}\n{"answer": "no"}')
    assert json.loads(run(*pope, "--json").stdout)["score"]["precision"] is None
    assert re.search(r"precision +none", run(*pope).stdout)


def test_released_captions_are_scored(chair, reference_data):
    record = json.loads(run(*chair, "--json").stdout)
    expected = json.loads((reference_data / "chair/expected.json").read_text())
    expected = expected["runs"]["minigpt4/beam5"]
    assert record["score"]["chair_s"] == pytest.approx(expected["CHAIR_S"])
    assert record["score"]["n_absent"] == expected["hallucinated_mentions"]
    ids = [caption["image_id"] for caption in record["captions"]]
    assert ids == [image for image, _ in expected["per_caption"]]
    shown = run(*chair).stdout
    assert re.search(r"CHAIR_S +30\.6 +153 of 500 captions", shown)
    assert re.search(r"recall +63\.0 +960 of 1524 objects", shown)
    assert "Most often named though absent: " in shown


def test_released_mme_and_hallusionbench_are_scored(reference_data):
    folder = reference_data / "released"
    shown = run("mme", folder / "mme").stdout
    assert "Perception 963.611, cognition 249.643." in shown
    record = json.loads(run("mme", folder / "mme", "--json").stdout)
    assert round(record["score"]["perception"], 3) == 963.611
    paths = [folder / "hallusionbench" / name for name in ("HallusionBench.json",)]
    answers = folder / "hallusionbench/HallusionBench_result_sample.json"
    shown = run("hallusionbench", answers, "--questions", paths[0]).stdout
    assert "875 questions have no answer" in " ".join(shown.split())
    assert run("hallusionbench", answers).exit_code == 2


def test_made_answers_of_amber_and_mmvp_are_scored(tmp_path):
    notes = [{"id": 1, "type": "relation", "truth": "no"}]
    notes.append({"id": 2, "type": "generative", "truth": ["cup"], "hallu": []})
    (tmp_path / "annotations.json").write_text(json.dumps(notes))
    (tmp_path / "answers.json").write_text('[{"id": 1, "response": "No"}]')
    words = ("amber", tmp_path / "answers.json", "--annotations")
    words = (*words, tmp_path / "annotations.json")
    shown = run(*words).stdout
    assert re.search(r"relation +1 +99\.9 +99\.9 +99\.9", shown)
    record = json.loads(run(*words, "--json").stdout)
    assert record["score"]["corrected"]["all"]["accuracy"] == 100
    assert run(*words, "--relations", tmp_path / "none").exit_code == 2
    rows = ["Index,Question,Options,Correct Answer"]
    rows += [f"{n},Is it?,(a) Yes (b) No,(a)" for n in (1, 2)]
    (tmp_path / "Questions.csv").write_text("\n".join(rows))
    said = [json.dumps({"question_id": n, "response": "(a)"}) for n in (1, 2)]
    (tmp_path / "mmvp.jsonl").write_text("\n".join(said))
    shown = run(
        "mmvp", tmp_path / "mmvp.jsonl", "--questions", tmp_path / "Questions.csv"
    )
    assert re.search(r"all +2 +100\.0 +1 +100\.0 +0", shown.stdout)


@pytest.mark.parametrize("option", ["--annotations", "--synonyms"])
def test_a_missing_file_of_the_user_s_is_an_error_in_one_line(chair, option, tmp_path):
    arguments = list(chair)
    arguments[arguments.index(option) + 1] = tmp_path / "none"
    result = run(*arguments)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: .*none.*https?://.*\n", result.stderr)


def test_examples_in_the_help_have_options_that_exist():
    for command in score.registered_commands:
        name, text = command.callback.__name__, command.callback.__doc__
        examples = re.findall(r"^ *eah-interp score (.+)$", text, re.MULTILINE)
        assert examples
        for example in examples:
            words = shlex.split(example)
            assert words[0] == name
            assert run(*words, "--help").exit_code == 0
