"""Claims about benchmarks as studies: their items, and answers for their scores."""

import json

import pytest
from PIL import Image

import eah_interp as eah
from eah_interp.benchmarks import score_amber, score_hallusionbench, score_mme
from eah_interp.benchmarks.amber import read_amber_annotations
from eah_interp.benchmarks.mmvp import read_mmvp_questions, score_mmvp
from eah_interp.benchmarks.paired import Draws
from eah_interp.errors import InputError, SettingsError
from eah_interp.studies import (
    Condition,
    Study,
    StudyFile,
    amber_items,
    hallusionbench_items,
    list_answers,
    mme_items,
    mmvp_items,
    summarise,
)


@pytest.fixture
def files(tmp_path):
    """Write two images and a small file of each benchmark."""
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (32, 32), "navy").save(tmp_path / name)
    asked = [("1.jpg", "Is there a cup?"), ("2.jpg", "Is there a dog?")]
    queries = [
        {"id": n + 7, "image": image, "query": text}
        for n, (image, text) in enumerate(asked)
    ]
    queries.append({"id": 9, "image": "1.jpg", "query": "Describe this image."})
    notes = [
        {"id": 7, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 8, "type": "relation", "truth": "yes"},
        {"id": 9, "type": "generative", "truth": ["cup"], "hallu": []},
    ]
    (tmp_path / "query.json").write_text(json.dumps(queries))
    (tmp_path / "annotations.json").write_text(json.dumps(notes))
    (tmp_path / "mme").mkdir()
    lines = [f"1.jpg\tIs there a {n}?\t{t}" for n, t in (("cup", "Yes"), ("pan", "No"))]
    (tmp_path / "mme/existence.txt").write_text("\n".join(lines) + "\n")
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
    hallusion = [
        dict(zip(keys, ("VS", "map", "0", str(figure), "0"), strict=True))
        | {
            "visual_input": str(figure),
            "question": "Is there a cup?",
            "gt_answer": "1",
            "filename": None if figure == 0 else f"./{figure}.jpg",
        }
        for figure in range(3)
    ]
    (tmp_path / "HallusionBench.json").write_text(json.dumps(hallusion))
    rows = ["Index,Question,Options,Correct Answer"]
    rows += [f"{n},Is it there?,(a) Yes (b) No,(a)" for n in (1, 2)]
    (tmp_path / "Questions.csv").write_text("\n".join(rows))
    return tmp_path


STUDY = """
items:
  - {source: amber, queries: query.json, annotations: annotations.json, images: .}
  - {source: mme, questions: mme, images: .}
  - source: hallusionbench
    questions: HallusionBench.json
    images: .
    figures_only: true
  - {source: mmvp, questions: Questions.csv, images: .}
conditions: [baseline, eah]
decoding: {choice: {max_new_tokens: 3}}
"""


def test_a_study_file_runs_them_and_their_scores_take_its_answers(files):
    (files / "study.yaml").write_text(STUDY)
    planned = StudyFile.load(files / "study.yaml")
    assert [item.id for item in planned.items] == [
        *("amber/7", "amber/8", "amber/9", "mme/existence/1", "mme/existence/2"),
        *("hallusionbench/VS_map_0_1_0", "hallusionbench/VS_map_0_2_0"),
        *("mmvp/1", "mmvp/2"),
    ]
    assert planned.decoding["choice"] == {"max_new_tokens": 3, "do_sample": False}
    run = planned.study().run(files / "run", progress=False)
    rows = run.frame().query("condition == 'EAH'").set_index("item")
    assert rows.error.isna().all()
    rows["yes"] = rows.answer.str.startswith("Yes")  # as the toy says it

    def answers_of(name):
        return list_answers(run, benchmark=name, condition="EAH")

    amber = score_amber(
        answers_of("amber"),
        annotations=read_amber_annotations(files / "annotations.json"),
        relations={"cup": []},
        nouns=str.split,
    )
    right = [not rows.yes["amber/7"], rows.yes["amber/8"]]
    assert amber.corrected["all"].accuracy == 100 * sum(right) / 2
    assert amber.captions.n == 1
    mme = score_mme(answers_of("mme")).official["existence"]
    said = [rows.yes[f"mme/existence/{n}"] for n in (1, 2)]
    assert mme.accuracy == 50 * (int(said[0]) + int(not said[1]))
    rates = score_hallusionbench(answers_of("hallusionbench")).official["all"]
    assert rates.n == 2
    said = rows.yes[rows.index.str.startswith("hallusionbench")]
    assert rates.a_acc == 50 * said.sum()
    found = score_mmvp(
        answers_of("mmvp"), questions=read_mmvp_questions(files / "Questions.csv")
    )
    assert found.n == 2
    summary = summarise(run, draws=Draws(resamples=50))
    assert any("4 answers to questions with options" in n for n in summary.notes)
    with pytest.raises(SettingsError, match="condition must be one of baseline, EAH"):
        list_answers(run, benchmark="mme", condition="none")


def test_prompts_images_and_truths_are_the_files(files):
    [cup, dog, told] = amber_items(
        files / "query.json", files / "annotations.json", files, suffix=" Yes or No?"
    )
    assert (cup.prompt, cup.label, cup.kind) == (
        "Is there a cup? Yes or No?",
        False,
        "existence",
    )
    assert (dog.label, dog.kind) == (True, "relation")
    assert (told.task, told.prompt, told.truth) == (
        "caption",
        "Describe this image.",
        ("cup",),
    )
    [first, second] = mme_items(files / "mme", files)
    assert (first.label, second.label, first.cluster) == (
        True,
        False,
        "existence/1.jpg",
    )
    one = mmvp_items(files / "Questions.csv", files)[0]
    assert (one.task, one.prompt) == ("choice", "Is it there? (a) Yes (b) No")
    assert one.image == str(files / "1.jpg")


def test_questions_without_a_figure_are_left_out_only_if_asked(files):
    path = files / "HallusionBench.json"
    with pytest.raises(
        InputError, match=r"json:1: a question without a figure, as 1 of"
    ):
        hallusionbench_items(path, files)
    items = hallusionbench_items(path, files, figures_only=True)
    assert [item.image for item in items] == [str(files / f"{n}.jpg") for n in (1, 2)]
    assert len({item.cluster for item in items}) == 1


def test_a_limit_parts_no_pair(files):
    with pytest.raises(SettingsError, match="limit must be even, since MME"):
        mme_items(files / "mme", files, limit=1)
    with pytest.raises(SettingsError, match="limit must be even, since MMVP"):
        mmvp_items(files / "Questions.csv", files, limit=1)
    assert len(mmvp_items(files / "Questions.csv", files, limit=2)) == 2


def test_a_study_without_choices_is_the_study_it_was(files):
    items = mme_items(files / "mme", files)
    study = Study(eah.load(), items, [Condition("baseline")])
    assert set(study.settings) == {"yes_no", "caption"}
    run = study.run(files / "plain", progress=False)
    with pytest.raises(InputError, match="no answered item of amber"):
        list_answers(run, benchmark="amber")


def test_a_query_without_annotation_is_named(files):
    (files / "annotations.json").write_text(
        '[{"id": 7, "type": "relation", "truth": "no"}]'
    )
    with pytest.raises(InputError, match=r"query\.json:1: expected an annotated item"):
        amber_items(files / "query.json", files / "annotations.json", files)
