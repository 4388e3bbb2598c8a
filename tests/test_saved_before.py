"""What was saved before still loads: files that commit 55005b7 wrote, read now.

The files are in `tests/saved`; `tests/saved/make.py` says how they were made. A test
that fails here is a promise to users that is about to be broken: mend the package, and
leave the files alone.
"""

import json
import platform
import shutil
from importlib.metadata import version

import pandas as pd
import pytest
import torch

import eah_interp as eah
from eah_interp import attribution
from eah_interp.benchmarks import read_pope_questions
from eah_interp.errors import SettingsError
from eah_interp.studies import (
    Condition,
    StudyFile,
    StudyRun,
    answer_claims,
    pope_items,
    summarise,
)
from eah_interp.studies.progress import measure_progress
from eah_interp.toy.training.train import main as train
from tests.saved import plan

SAVED = json.loads(plan.SETTINGS_FILE.read_text())
EXPECTED = json.loads(plan.EXPECTED_FILE.read_text())

STEPS = {
    ("baseline", None),
    ("EAH", "prefill"),
    ("random donor", "prefill"),
    ("L3H5 / L4H0: knockout", "all"),
}
"""What each condition of the saved study patches, as its manifest says."""


@pytest.fixture(scope="module")
def toy():
    return eah.load()


@pytest.fixture
def answered(monkeypatch):
    """Count how often a model is asked for answers."""
    calls, generate = [], eah.LVLM.generate

    def count(model, *arguments, **options):
        calls.append(model)
        return generate(model, *arguments, **options)

    monkeypatch.setattr(eah.LVLM, "generate", count)
    return calls


def test_every_saved_setting_is_one_that_is_made_anew():
    assert list(SAVED) == [*plan.SETTINGS, "conditions"]
    assert list(SAVED["conditions"]) == [one.name for one in plan.CONDITIONS]


@pytest.mark.parametrize("name", plan.SETTINGS)
def test_saved_settings_load_as_those_made_anew_and_are_written_the_same(name):
    saved, anew = SAVED[name], plan.SETTINGS[name]
    loaded = getattr(eah, saved["class"]).from_dict(saved["values"])
    assert type(loaded) is type(anew)
    assert loaded == anew
    assert loaded.to_dict() == anew.to_dict() == saved["values"]
    assert json.loads(json.dumps(loaded.to_dict())) == saved["values"]


@pytest.mark.parametrize("kind", plan.IN_PART)
def test_settings_written_by_hand_need_not_say_what_is_default(kind):
    written, anew = plan.IN_PART[kind]
    assert getattr(eah, kind).from_dict(written) == anew


@pytest.mark.parametrize("anew", plan.CONDITIONS, ids=lambda one: one.name)
def test_saved_conditions_load_as_those_made_anew_and_are_written_the_same(anew):
    saved = SAVED["conditions"][anew.name]
    loaded = Condition.from_dict(saved)
    assert loaded == anew
    assert type(loaded.patch) is type(anew.patch)
    assert loaded.to_dict() == saved


@pytest.mark.parametrize("name", EXPECTED["results"])
def test_a_saved_result_loads_with_its_class_its_table_and_every_attribute(
    name, tmp_path
):
    """Exactly: tensors to the byte, and tables that add nothing up but rounding."""
    folder = plan.RESULTS / name
    expected = json.loads((folder / "expected.json").read_text())
    kind = getattr(attribution, expected["class"])
    loaded = kind.load(folder)
    assert type(loaded) is kind
    # The model's name came after these were saved: theirs is empty.
    expected["attributes"]["model"] = plan.digest("")
    if expected["class"] == "HeadPatterns":  # so did the words of an answer
        expected["attributes"]["words"] = plan.digest([])
        expected["attributes"]["tower"] = plan.digest("language")
    if expected["class"] == "HeadPatching":  # and where heads were patched
        expected["attributes"]["positions"] = plan.digest("all")
        expected["attributes"]["tower"] = plan.digest("language")
    # So did what is known of an object: of theirs nothing is.
    if hasattr(loaded, "targets"):
        expected["frame"]["present"] = plan.digest([None] * len(loaded.frame()))
    assert expect_then(loaded) == expected
    again = kind.load(loaded.save(tmp_path))
    assert expect_then(again) == expected
    assert again == loaded


def expect_then(result):
    """Say what a result is, its targets as they were when it was saved."""
    found = plan.expect(result)
    targets = plan.describe(getattr(result, "targets", ()))
    for target in targets:
        later = {name: target.pop(name) for name in ("present", "item", "images")}
        assert later == {"present": None, "item": None, "images": []}
    if targets:
        found["attributes"]["targets"] = plan.digest(targets)
    return found


@pytest.mark.parametrize("name", plan.WHOLE)
def test_the_table_of_a_saved_result_is_the_one_that_was_saved_beside_it(name):
    beside = pd.read_parquet(plan.RESULTS / name / "frame.parquet")
    loaded = attribution.HeadAttribution.load(plan.RESULTS / name)
    table = loaded.frame()
    assert table.pop("present").isna().all()  # the column came later
    assert plan.list_frame(table) == plan.list_frame(beside)


def test_a_saved_study_opens_with_every_row_that_it_had():
    run = StudyRun.load(plan.STUDY)
    assert run.is_complete
    assert list(run.conditions) == EXPECTED["conditions"]
    frame = plan.list_frame(run.frame())
    # what each condition patches was in the manifest, and came into rows later
    assert set(zip(frame["condition"], frame.pop("steps"), strict=True)) == STEPS
    assert frame == EXPECTED["frame"]
    sinks = plan.list_frame(run.sinks())
    assert {name: plan.digest(column) for name, column in sinks.items()} == EXPECTED[
        "sinks"
    ]
    assert progress_of(plan.STUDY) == EXPECTED["progress"]


def test_a_saved_study_sums_up_to_the_same_figures():
    run = StudyRun.load(plan.STUDY)
    summary = summarise(run, draws=plan.DRAWS)
    assert summary.manifest_hash == EXPECTED["manifest_hash"]
    assert [dict(row) for row in summary.failures] == EXPECTED["failures"]
    assert list(summary.notes) == EXPECTED["notes"]
    later = ("objects", "distinct 4-grams")  # metrics that came after it was saved
    rows = [row for row in summary.to_dict()["rows"] if row["metric"] not in later]
    assert len(rows) == len(EXPECTED["summary"])
    for row, expected in zip(rows, EXPECTED["summary"], strict=True):
        there = {key: value for key, value in row.items() if value is not None}
        assert (there["condition"], there.pop("steps", None)) in STEPS
        if "undefined" in expected:  # a sentence: what was a picture is an image now
            expected = {
                **expected,
                "undefined": expected["undefined"].replace("pictures", "images"),
            }
        assert there == pytest.approx(expected)
    claims = answer_claims(run, draws=plan.DRAWS)
    assert [claim.verdict for claim in claims] == EXPECTED["verdicts"]


def test_a_saved_study_is_finished_when_the_same_is_run_again(toy, answered, tmp_path):
    """Nothing is asked, and no file touched: a failed item counts as done too.

    It has an image, and was written before images were hashed: it has to be trusted.
    """
    folder = copy_study(plan.STUDY, tmp_path)
    before = list_files(folder)
    with pytest.raises(SettingsError, match=r"go on with --trust-images"):
        plan.make_study(toy).run(folder, progress=False)
    run = plan.make_study(toy).run(folder, trust_images=True, progress=False)
    assert run.is_complete
    assert not answered
    assert list_files(folder) == before


def test_a_saved_study_that_was_stopped_goes_on_to_the_rows_of_one_that_was_not(
    toy, answered, tmp_path
):
    """Of 8 files 2 are there: they stay, and the answers of the other 6 are made.

    The study that was not stopped has an item more, which has no answer. This one has
    scenes of the toy and no image file: nothing that could have been replaced.
    """
    folder = copy_study(plan.UNFINISHED, tmp_path)
    assert progress_of(folder) == EXPECTED["unfinished"]
    before = list_files(folder)
    run = StudyFile.load(plan.STUDY_FILE).study(toy).run(folder, progress=False)
    assert run.is_complete
    assert len(answered) == 6
    after = list_files(folder)
    assert len(after) == len(before) + 7  # of sink densities, one more
    assert {path: after[path] for path in before} == before
    whole = StudyRun.load(plan.STUDY)
    rows = whole.frame().query("item != @plan.FAILING.id")
    assert plan.list_frame(run.frame()) == plan.list_frame(rows)
    one, other = run.sinks(), whole.sinks()
    keys = ["item", "layer", "head"]
    assert one[keys].equals(other[keys])
    torch.testing.assert_close(
        torch.tensor(one["density"].tolist()),
        torch.tensor(other["density"].tolist()),
        rtol=0,
        atol=0.05,  # a column of 100 that is next to the threshold may cross it
    )


@pytest.mark.parametrize(
    ("file", "expected"),
    [(plan.STUDY_FILE, "study_file"), (plan.EVERY_KEY_FILE, "every_key")],
)
def test_a_saved_study_file_means_what_it_meant(file, expected):
    assert StudyFile.load(file).to_dict() == EXPECTED[expected]


def test_saved_questions_are_read_as_they_were_written():
    questions = read_pope_questions(plan.QUESTIONS).drop(columns="place")
    assert plan.list_frame(questions) == EXPECTED["questions"]
    items = pope_items(plan.QUESTIONS, "pictures", kind="random")
    assert [item.to_dict() for item in items] == EXPECTED["items"]


def test_a_saved_checkpoint_of_a_toy_trains_on_where_it_stopped(tmp_path):
    """The second step, and its loss: a toy begun anew would do the first."""
    shutil.copytree(plan.TRAINING, tmp_path, dirs_exist_ok=True)
    train([*plan.TRAINING_LINE.split(), "--out", str(tmp_path), "--stop-after", "1"])
    log = json.loads((tmp_path / "checkpoint/progress.json").read_text())["log"]
    first, second = EXPECTED["training"]
    assert log[0] == first
    assert [line["step"] for line in log] == [1, 2]
    assert log[1]["loss"] == pytest.approx(second["loss"], abs=5e-4)


def copy_study(folder, path):
    """Copy a study, as if the packages of this machine had run it.

    A study refuses to go on under other versions, as it should. Those are what differs
    between the machine that made the files and this one; all else has to be the same.
    """
    copied = shutil.copytree(folder, path / "study")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["versions"] = {
        name: platform.python_version() if name == "python" else version(name)
        for name in manifest["versions"]
    }
    (copied / "manifest.json").write_text(json.dumps(manifest))
    return copied


def list_files(folder):
    """List a folder's files: what is in each, and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def progress_of(folder):
    found = json.loads(json.dumps(measure_progress(folder).to_dict()))
    return {key: value for key, value in found.items() if key != "folder"}
