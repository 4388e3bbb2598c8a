"""Claims about manifests: they fix what rows depend on, and differences are named."""

import dataclasses
import json
import shutil

import pandas as pd
import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError, SettingsError
from eah_interp.studies import (
    Condition,
    Item,
    StudyRun,
    compare_runs,
    summarise,
    toy_items,
)
from eah_interp.studies.conditions import BASELINE
from eah_interp.studies.manifest import Manifest, _hash_items, hash_weights
from eah_interp.studies.progress import measure_progress
from tests.studies.common import content, toy_study


@pytest.fixture
def copied(undisturbed, tmp_path):
    return shutil.copytree(undisturbed, tmp_path / "study")


CHANGES = {
    "items": ({"n_scenes": 4}, "n_items: 9 against 12"),
    "batch": ({"batch_size": 3}, "batch_size: 2 against 3"),
    "seed": ({"seed": 1}, "seed: 0 against 1"),
    "decoding": (
        {"decoding": {"caption": {"max_new_tokens": 5}}},
        r"decoding.caption.max_new_tokens: 4 against 5",
    ),
    "a setting": (
        {"conditions": (BASELINE, Condition("EAH", eah.EAH(layers=(1,))))},
        r"conditions\[1\]\.\w+\.layers\[0\]: 2 against 1",
    ),
    "conditions": (
        {"conditions": (BASELINE,)},
        r"conditions: 2 \(baseline, EAH\) against 1 \(baseline\)",
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_study_in_the_same_folder_is_refused_and_its_difference_named(
    toy, copied, change
):
    options, message = change
    before = content(copied)
    other = toy_study(toy, **options)
    with pytest.raises(SettingsError, match=message):
        other.run(copied, progress=False)
    assert content(copied).equals(before)


def test_one_changed_weight_is_another_study():
    module = torch.nn.Linear(2, 2)
    before = hash_weights(module)
    with torch.no_grad():
        module.weight[1, 1] += 1e-6
    assert hash_weights(module) != before


def test_weights_in_another_dtype_are_other_weights():
    module = torch.nn.Linear(2, 2).bfloat16()
    assert hash_weights(module) != hash_weights(module.float())


def test_whoever_writes_a_manifest_second_is_refused_and_changes_nothing(toy, tmp_path):
    """Two processes that both found an empty folder: the second must not win."""
    items = toy_items(1)
    ours, theirs = (
        Manifest.of(toy, items, [BASELINE], decoding={}, batch_size=size)
        for size in (1, 2)
    )
    ours.save(tmp_path, items)
    with pytest.raises(SettingsError, match="batch_size: 1 against 2"):
        theirs.save(tmp_path, items)
    assert Manifest.load(tmp_path) == ours
    ours.save(tmp_path, items)


def test_a_run_killed_between_manifest_and_items_is_mended(toy, tmp_path):
    study = toy_study(toy, 1)
    study.run(tmp_path, progress=False)
    (tmp_path / "items.json").unlink()
    with pytest.raises(InputError, match=r"expected items\.json"):
        StudyRun.load(tmp_path).items()
    study.run(tmp_path, progress=False)
    assert len(content(tmp_path)) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no study"),
        ("[]", "has format None"),
        ('{"format": 99}', "has format 99, expected 2"),
        ('{"format": 1}', "with its fields"),
    ],
)
def test_a_folder_that_is_no_study_is_refused(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        StudyRun.load(tmp_path)


def test_items_that_are_none_are_refused(copied):
    (copied / "items.json").write_text(json.dumps([{"name": "x"}]))
    with pytest.raises(InputError, match="does not list items"):
        StudyRun.load(copied).items()


def test_a_manifest_names_versions_backend_and_weights(undisturbed, toy):
    manifest = StudyRun.load(undisturbed).manifest
    assert manifest.weights == hash_weights(toy._module)
    assert (
        manifest.attention == toy._module.config.get_text_config()._attn_implementation
    )
    assert {"python", "torch", "transformers", "nnsight"} <= set(manifest.versions)
    assert all(dataclasses.asdict(manifest).values()) or manifest.seed == 0


# ---- Images by their bytes, and folders that someone touched.


@pytest.fixture
def pictured(toy, tmp_path, monkeypatch):
    """Return a study of two image files that was stopped half way, and its folder."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        eah.toy.draw_scene(number).pil().save(images / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    study = pictures(toy)
    study.run("runs", shard="1/2", progress=False)
    return study, tmp_path / "runs"


def pictures(toy, folder="images", **changes):
    items = [Item(f"{n}", "caption", f"{folder}/{n}.png", "What?") for n in (0, 1)]
    items = [dataclasses.replace(item, **changes) for item in items]
    return toy_study(toy, items=items, conditions=(BASELINE,), batch_size=1)


def test_an_image_that_was_replaced_between_two_runs_is_noticed(
    toy, pictured, tmp_path
):
    _, folder = pictured
    eah.toy.draw_scene(7).pil().save(tmp_path / "images" / "0.png")
    with pytest.raises(SettingsError, match=r"images/0\.png: other bytes than when"):
        pictures(toy).run(folder, progress=False)
    eah.toy.draw_scene(0).pil().save(tmp_path / "images" / "0.png")
    assert pictures(toy).run(folder, progress=False).is_complete


def test_an_image_that_no_answer_came_from_may_be_mended(toy, tmp_path):
    image = tmp_path / "late.png"
    items = [Item("late", "caption", str(image), "What?")]
    study = toy_study(toy, items=items, conditions=(BASELINE,))
    run = study.run(tmp_path / "runs", progress=False)
    assert run.manifest.images == (None,)
    eah.toy.draw_scene(0).pil().save(image)
    run = study.run(tmp_path / "runs", retry_failed=True, progress=False)
    assert run.frame().error.isna().all()
    assert None not in run.manifest.images
    eah.toy.draw_scene(1).pil().save(image)
    with pytest.raises(SettingsError, match="other bytes"):
        study.run(tmp_path / "runs", progress=False)


def test_the_same_images_by_another_path_are_the_same_study(toy, pictured, tmp_path):
    _, folder = pictured
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    for name in ("./images", "runs/../images", str(tmp_path / "images"), "moved"):
        run = pictures(toy, name).run(folder, progress=False)
    assert run.is_complete
    other = pictures(toy, "moved").run(tmp_path / "other", progress=False)
    assert compare_runs(run, other).scores is not None
    different = pictures(toy, prompt="Why?").run(tmp_path / "third", progress=False)
    with pytest.raises(SettingsError, match="items: "):
        compare_runs(run, different)
    with pytest.raises(SettingsError, match="items: "):
        pictures(toy, label=True).run(folder, progress=False)


def test_a_folder_from_before_is_read_and_goes_on_if_its_images_are_trusted(
    toy, pictured, tmp_path
):
    study, folder = pictured
    values = json.loads((folder / "manifest.json").read_text())
    del values["images"]
    values |= {"format": 1, "items": _hash_items(study.items, with_paths=True)}
    (folder / "manifest.json").write_text(json.dumps(values))
    assert len(StudyRun.load(folder).frame()) == 1
    with pytest.raises(SettingsError, match=r"its 2 images are .* --trust-images"):
        study.run(folder, progress=False)
    moved = pictures(toy, str(tmp_path / "images"))
    assert moved.run(folder, trust_images=True, progress=False).is_complete
    with pytest.raises(SettingsError, match="items: "):
        pictures(toy, prompt="Why?").run(folder, trust_images=True, progress=False)


def test_items_that_were_changed_by_hand_are_refused(toy, copied):
    path = copied / "items.json"
    items = json.loads(path.read_text())
    items[0]["label"] = not items[0]["label"]
    path.write_text(json.dumps(items))
    for use in (
        StudyRun.load(copied).items,
        lambda: summarise(StudyRun.load(copied)),
        lambda: toy_study(toy).run(copied, progress=False),
    ):
        with pytest.raises(InputError, match=r"items\.json was changed since"):
            use()
    path.unlink()
    toy_study(toy).run(copied, progress=False)
    assert len(content(copied)) == 18


@pytest.mark.parametrize(
    "name",
    [
        "000000 (1).parquet",
        "000000.sync-conflict-20260101-101010-ABC.parquet",
        "000000 copy.parquet",
        "0.parquet",
    ],
)
def test_copies_by_another_name_are_no_rows(copied, name):
    for first in copied.rglob("000000.parquet"):
        shutil.copy(first, first.with_name(name))
    assert StudyRun.load(copied).is_complete
    assert len(content(copied)) == 18


def test_copies_by_the_name_of_a_batch_are_refused_and_named(copied):
    first = copied / "rows/baseline/000000.parquet"
    twin = shutil.copy(first, first.with_name("000099.parquet"))
    run = StudyRun.load(copied)
    for use in (run.frame, run.check_complete, lambda: measure_progress(copied)):
        with pytest.raises(
            InputError, match=r"twice, in .*000000\.parquet and .*000099"
        ):
            use()
    twin.replace(copied / "rows/EAH/000099.parquet")
    with pytest.raises(InputError, match="rows of another condition than 'EAH'"):
        run.frame()


def test_a_study_is_complete_by_its_items_and_not_by_its_rows(copied):
    """As many rows as items, but of another study's item."""
    path = copied / "rows/baseline/000000.parquet"
    rows = pd.read_parquet(path)
    rows.loc[0, "item"] = "of another study"
    rows.to_parquet(path, index=False)
    with pytest.raises(InputError, match="such as 'of another study'"):
        StudyRun.load(copied).check_complete()


def test_rows_without_a_manifest_are_nobody_s(toy, copied):
    (copied / "manifest.json").unlink()
    with pytest.raises(SettingsError, match=r"has rows and no manifest\.json"):
        toy_study(toy, seed=9).run(copied, progress=False)
    assert not (copied / "manifest.json").exists()
