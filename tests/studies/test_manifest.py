"""Claims about manifests: they fix what rows depend on, and differences are named."""

import dataclasses
import json

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError, SettingsError
from eah_interp.studies import Condition, StudyRun, toy_items
from eah_interp.studies.conditions import BASELINE
from eah_interp.studies.manifest import Manifest, hash_weights
from tests.studies.common import content, toy_study


@pytest.fixture
def copied(undisturbed, tmp_path):
    import shutil

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
        ('{"format": 99}', "has format 99, expected 1"),
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
