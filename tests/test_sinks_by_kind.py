"""Sinks by kind on the toy: the page says what the record has, and sums are right."""

import json
import sys
from pathlib import Path

import pytest
import torch

import eah_interp as eah
from eah_interp.benchmarks.paired import Draws
from eah_interp.interventions import find_sinks
from eah_interp.toy import draw_scene

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(DOCS / "bench"))
    import sink_kinds

    yield sink_kinds
    sys.path.remove(str(DOCS / "bench"))


def test_the_page_is_what_the_record_makes(script):
    record = json.loads((DOCS / "sinks-by-kind.json").read_text())
    assert (DOCS / "sinks-by-kind.md").read_text() == script.write_page(record)
    assert list(record["toys"]) == list(script.TOYS)


def test_sinks_are_planted_where_the_page_says_and_answers_are_read(script):
    model = eah.load()
    planted = script.plant(model)
    scenes = [draw_scene(seed) for seed in range(2)]
    found = find_sinks(planted, [scene.pil() for scene in scenes])
    for item, spans in enumerate(found.spans):
        columns = torch.tensor(spans[0].columns)
        for kind, places in (("tower", script.TOWER), ("language", script.LANGUAGE)):
            marked = found.mask(kind)[item, columns].nonzero().flatten().tolist()
            assert marked == list(places)
    asked = script.list_questions(scenes)
    answers = script.ask(model, asked)
    said = model.describe(
        [one[0] for one in asked], [one[1] for one in asked], max_new_tokens=2
    )
    right = [
        text.startswith("Yes") == truth
        for text, (*_, truth) in zip(said, asked, strict=True)
    ]
    assert answers["right"] == [(right[k] + right[k + 2]) / 2 for k in range(2)]


def make_toy(script, shift):
    """Make a toy's answers in six scenes, better by a shift without tower sinks."""
    names = list(script.list_conditions())
    bare = [f"as it is, {n}" for n in names if n.endswith(f"layer {script.LAYER}")]

    def answers(margin):
        own = [float(k % 2) for k in range(6)]
        base = [margin + k for k in range(6)]
        return {"right": own, "false": own, "margin": base, "patched": [1.0] * 6}

    found = {name: answers(0.5) for name in ["as it is, plain", *bare, *names]}
    found["tower: drop"] = answers(0.5 + shift)
    found["tower: drop"]["right"] = [1.0] * 6
    density = {
        columns: {"shallow": [float(k) for k in range(6)], "slope": [0.1] * 6}
        for columns in script.COLUMNS
    }
    flat = {c: {"shallow": [0.0] * 6, "slope": [0.0] * 6} for c in script.COLUMNS}
    return {"answers": found, "density": density, "density as it is": flat}


def test_edits_are_compared_with_their_controls_and_claims_by_kind(script, monkeypatch):
    few = Draws(resamples=50)
    for name in ("sink_kinds", "false_prompts"):
        monkeypatch.setattr(sys.modules[name], "Draws", lambda: few)
    toys = {str(n): make_toy(script, n) for n in (1, 2, 3)}
    summed = script.sum_toys(toys)
    effects = {
        (one["name"], one["against"], one["what"]): one for one in summed["effects"]
    }
    others = "the same of other columns"
    dropped = effects["tower: drop", others, "margin"]
    assert dropped["toys"] == pytest.approx([1, 2, 3])
    assert effects["tower: drop", others, "right"]["value"] == pytest.approx(50)
    assert effects["language: drop", others, "right"]["value"] == 0
    assert effects["language: drop", others, "right"]["verdict"] == "no change"
    # A margin that grows with density is an error that falls with it.
    assert summed["correlations"]["tower"]["value"] == pytest.approx(-1)
    assert summed["slopes"]["language"]["value"] == pytest.approx(10)
    decided = {
        (one["name"], one["against"]) for one in summed["effects"] if one["decides"]
    }
    assert len(decided) == 4 * len(script.COLUMNS) + len(script.EDITS)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"value": -3, "low": -5, "high": -1, "p_holm": 0.01}, "fewer right"),
        ({"value": 3, "low": 1, "high": 5, "p_holm": 0.01}, "more right"),
        ({"value": 0.2, "low": -0.5, "high": 0.9, "p_holm": 1.0}, "no change"),
        ({"value": 3, "low": 1, "high": 5, "p_holm": 0.2}, "cannot be told"),
        ({"value": 0.0, "low": None, "high": None}, "no change"),
    ],
)
def test_what_lies_within_a_point_is_no_change(script, values, verdict):
    assert script.judge(values) == verdict
