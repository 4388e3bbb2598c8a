"""Every intervention is a study condition, and survives a manifest."""

import pytest

import eah_interp as eah
from eah_interp.errors import SettingsError
from eah_interp.studies import (
    Condition,
    Study,
    StudyFile,
    StudyRun,
    sweep,
    toy_items,
)
from eah_interp.studies.items import open_image

PATCHES = (
    eah.EAH(),
    eah.PAI.paper(),
    eah.VAR(sink_dims=(3, 5), layers=(1, 2)),
    eah.Ablation(heads=("L1H2",), how="mean"),
)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: type(patch).__name__)
def test_a_condition_survives_a_manifest(patch):
    condition = Condition("it", patch)
    assert Condition.from_dict(condition.to_dict()) == condition


def test_an_unknown_kind_is_refused():
    with pytest.raises(SettingsError, match="one of eah, ablation, ad_hh"):
        Condition.from_dict({"name": "it", "opera": {}})


FILE = """\
items: {source: toy, n_scenes: 1, questions: false}
conditions:
  - baseline
  - {kind: pai, alpha: 0.5, layers: [1, 2], name: louder}
  - {kind: var, sink_dims: [3, 5], tau: 1.0, layers: [1, 2], name: moved}
  - {kind: ablation, heads: [L1H2, L2H0], how: knockout, name: blind}
  - {sweep: {how: [zero, mean]}, kind: ablation, heads: [L1H2]}
  - {sweep: {alpha: [0.1, 9.0]}, kind: pai}
decoding: {caption: {max_new_tokens: 6}}
"""
EXPECTED = {
    "baseline": None,
    "louder": eah.PAI(alpha=0.5, layers=(1, 2)),
    "moved": eah.VAR(sink_dims=(3, 5), tau=1.0, layers=(1, 2)),
    "blind": eah.Ablation(heads=("L1H2", "L2H0"), how="knockout"),
    "Ablation how=zero": eah.Ablation(heads=("L1H2",)),
    "Ablation how=mean": eah.Ablation(heads=("L1H2",), how="mean"),
    "PAI alpha=0.1": eah.PAI(alpha=0.1),
    "PAI alpha=9.0": eah.PAI(alpha=9.0),
}


def test_a_file_runs_other_methods_and_ablations_as_edits_do(toy, tmp_path):
    file = tmp_path / "other-methods.yaml"
    file.write_text(FILE)
    StudyFile.load(file).study().run(tmp_path / "run", progress=False)
    run = StudyRun.load(tmp_path / "run")
    rows = run.frame().set_index("condition")
    assert list(rows.index) == list(EXPECTED)
    assert rows.error.isna().all()
    for name, patch in EXPECTED.items():
        model = toy if patch is None else eah.edit(toy, patch)
        image, prompt = rows.loc[name, ["image", "prompt"]]
        answer = model.describe(open_image(image), prompt, max_new_tokens=6)
        assert rows.loc[name, "answer"] == answer, name
    assert rows.answer.nunique() > 1, "no condition did anything"


def test_any_intervention_can_be_swept():
    base = eah.Ablation(heads=("L1H2",), steps="prefill")
    swept = sweep({"how": ["zero", "mean"], "heads": [("L0H1",)]}, eah=base)
    assert [c.name for c in swept] == [
        "Ablation how=zero heads=L0H1",
        "Ablation how=mean heads=L0H1",
    ]
    expected = eah.Ablation(heads=("L0H1",), how="mean", steps="prefill")
    assert swept[1].patch == expected


def test_a_study_of_a_model_that_is_patched_already_is_refused(toy):
    """Its baseline was patched too, and its manifest said nothing of it."""
    items, conditions = toy_items(1), [Condition("baseline")]
    with pytest.raises(
        SettingsError, match=r"in the baseline too, by PAI\(.*: pass the"
    ):
        Study(eah.edit(toy, eah.PAI()), items, conditions)
    assert Study(toy, items, conditions).items
