"""Conditions of a study that act in the vision tower."""

import pytest

import eah_interp as eah
from eah_interp.errors import SettingsError
from eah_interp.studies import (
    Condition,
    StudyFile,
    StudyRun,
    control_conditions,
    sweep,
)
from eah_interp.studies.conditions import PatchedConditions, describe_patch
from eah_interp.studies.items import open_image
from eah_interp.studies.nulls import RandomDraw
from tests.studies.common import assert_same, toy_study

ALL = ", ".join(f"L{layer}H{head}" for layer in range(3) for head in range(6))
"""Every head of the toy's tower."""

FILE = f"""\
items: {{source: toy, n_scenes: 1, questions: false}}
conditions:
  - baseline
  - {{kind: ablation, heads: [{ALL}], tower: vision, name: blind}}
  - {{kind: ablation, heads: [L0H1, L1H0], name: deaf}}
  - {{kind: eah, layers: [0, 1], tower: vision}}
  - {{sweep: {{how: [zero, mean]}}, kind: ablation, heads: [L1H2], tower: vision}}
decoding: {{caption: {{max_new_tokens: 6}}}}
"""
BLIND = eah.Ablation(heads=("L0H1", "L1H0"))
EXPECTED = {
    "baseline": (None, "language"),
    "blind": (eah.Ablation(heads=ALL.split(", ")), "vision"),
    "deaf": (BLIND, "language"),
    "EAH layers=0+1 tower=vision": (eah.EAH(layers=(0, 1)), "vision"),
    "Ablation how=zero tower=vision": (eah.Ablation(heads=("L1H2",)), "vision"),
    "Ablation how=mean tower=vision": (
        eah.Ablation(heads=("L1H2",), how="mean"),
        "vision",
    ),
}


def test_a_file_runs_conditions_in_either_tower_as_edits_do(toy, tmp_path):
    file = tmp_path / "towers.yaml"
    file.write_text(FILE)
    StudyFile.load(file).study().run(tmp_path / "run", progress=False)
    run = StudyRun.load(tmp_path / "run")
    rows = run.frame().set_index("condition")
    assert list(rows.index) == list(EXPECTED)
    assert rows.error.isna().all()
    for name, (patch, tower) in EXPECTED.items():
        model = toy if patch is None else eah.edit(toy, patch, tower=tower)
        image, prompt = rows.loc[name, ["image", "prompt"]]
        answer = model.describe(open_image(image), prompt, max_new_tokens=6)
        assert rows.loc[name, "answer"] == answer, name
    assert rows.loc["blind", "answer"] != rows.loc["baseline", "answer"]
    donors = rows.loc["EAH layers=0+1 tower=vision", "donors"]
    assert donors.startswith("L0H")
    assert "L1H" in donors


def test_answers_do_not_depend_on_their_batch(toy, tmp_path):
    conditions = (
        Condition("mean", eah.Ablation(heads=("L0H1",), how="mean"), tower="vision"),
        Condition("shuffled", eah.EAH(layers=(0,), donor="shuffled"), tower="vision"),
    )
    for size in (1, 4):
        study = toy_study(toy, 1, conditions=conditions, batch_size=size)
        study.run(tmp_path / str(size), progress=False)
    assert_same(tmp_path / "1", tmp_path / "4")


@pytest.mark.parametrize(
    "condition",
    [
        Condition("it", eah.EAH(layers=(0,)), tower="vision"),
        Condition("it", BLIND, tower="vision", ask="Say yes.", null_of="that"),
        Condition("it", BLIND, tower="vision", random=RandomDraw("heads")),
    ],
)
def test_a_condition_survives_a_manifest(condition):
    written = condition.to_dict()
    assert written["tower"] == "vision"
    assert Condition.from_dict(written) == condition


def test_a_condition_of_the_language_model_is_written_as_ever():
    written = Condition("it", eah.EAH()).to_dict()
    assert list(written) == ["name", "eah"]
    assert Condition.from_dict(written).tower == "language"


def test_controls_and_sweeps_stay_in_the_tower(load):
    assert {one.tower for one in control_conditions(tower="vision")[1:]} == {"vision"}
    names = [one.name for one in control_conditions(BLIND, draws=2, tower="vision")]
    assert names[:3] == [
        "baseline",
        "Ablation tower=vision",
        "Ablation tower=vision, random heads 1",
    ]
    swept = sweep({"layers": [(0,), (1,)]}, tower="vision")
    assert [one.name for one in swept] == [
        "EAH tower=vision layers=0",
        "EAH tower=vision layers=1",
    ]
    found = load("{kind: ablation, heads: [L1H2], tower: vision, controls: {draws: 1}}")
    assert [one.tower for one in found] == ["language", *["vision"] * 2, *EITHER]
    found = load("{controls: {layers: [0]}, tower: vision}")
    assert [one.tower for one in found] == ["language", *["vision"] * 6]


EITHER = ("language",) * 2
"""The nulls that change the question and the answer."""


@pytest.fixture
def load(tmp_path):
    def read(entry):
        file = tmp_path / "study.yaml"
        file.write_text(f"items: {{source: toy, n_scenes: 1}}\nconditions: [{entry}]\n")
        return StudyFile.load(file).conditions

    return read


def test_random_heads_are_drawn_among_the_towers(toy):
    n_heads = toy.anatomy.tower.n_heads
    draw = RandomDraw("heads")
    drawn = Condition("it", BLIND, tower="vision", random=draw)
    twin = drawn.apply(toy, seeds=[0])
    expected = draw.replace(BLIND, n_heads=n_heads, items=[0])
    assert twin.patches[0].settings == expected


def test_a_sweep_of_the_language_model_is_compared_without_the_tower():
    here, there = (Condition(t, eah.EAH(), tower=t) for t in ("language", "vision"))
    listed = [here.to_dict(), there.to_dict()]
    assert list(PatchedConditions(listed).settings) == ["language"]
    assert describe_patch(there.to_dict())[1].endswith("; in the vision tower")


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ("{kind: pai, tower: vision}", "PAI cannot act in the vision tower"),
        ("{kind: eah, tower: visual}", "tower"),
        ("{name: it, ask: Say yes., tower: vision}", "there is none: leave it out"),
        ("{kind: eah, definition: paper, tower: vision}", "of a causal prompt"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_what_cannot_act_there_is_refused_with_its_line(load, entry, match):
    with pytest.raises(SettingsError, match=match):
        load(entry)


def test_layers_of_the_tower_are_checked_before_anything_is_run(toy):
    n_layers = toy.anatomy.tower.n_layers
    condition = Condition("it", eah.EAH(layers=(n_layers,)), tower="vision")
    with pytest.raises(SettingsError, match=f"layer {n_layers} does not exist"):
        toy_study(toy, 1, conditions=(condition,))
