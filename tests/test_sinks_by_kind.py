"""Sinks by kind on the toy: the page says what the record has, and sums are right."""

import json
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

import eah_interp as eah
from eah_interp.benchmarks.paired import Draws
from eah_interp.interventions import find_sinks
from eah_interp.studies import StudyRun
from eah_interp.toy import draw_scene
from tests.studies.made import caption, make_run

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


def describe_by_hand(script, model, pictures, *, times):
    """Describe with forward hooks of plain torch in the place of the planted twin."""

    def enlarge(module, args):
        tokens = args[0].clone()
        tokens[:, list(script.TOWER)] *= times
        return (tokens,)

    def make_massive(module, args, output):
        stream = output[0] if isinstance(output, tuple) else output
        if stream.shape[1] > 1:  # the prompt, not what is written behind it
            for item, mask in enumerate(masks):
                columns = mask.nonzero().flatten()[list(script.LANGUAGE)]
                stream[item, columns, script.DIM] = script.VALUE
        return output

    plain = model._module.model
    prompts = ["Describe the image."] * len(pictures)
    inputs = model.encode(pictures, prompts)
    masks = inputs["input_ids"] == model._module.config.image_token_id
    hooks = [
        plain.multi_modal_projector.register_forward_pre_hook(enlarge),
        plain.language_model.layers[script.FROM].register_forward_hook(make_massive),
    ]
    try:
        ids = model._module.generate(**inputs, max_new_tokens=48, do_sample=False)
    finally:
        for hook in hooks:
            hook.remove()
    new = ids[:, inputs["input_ids"].shape[1] :]
    return [
        text.strip()
        for text in model.processor.batch_decode(new, skip_special_tokens=True)
    ]


def test_captions_are_of_a_toy_with_planted_sinks(script, tmp_path):
    model = eah.load("toy:seed-1")
    listed = script.list_conditions()
    chosen = {name: listed[name] for name in ("plain", "tower: scale back")}
    n_scenes = 8
    planted = script.plant(model)
    script.describe(planted, chosen, tmp_path / "planted", n_scenes=n_scenes)
    rows = StudyRun.load(tmp_path / "planted").frame()
    pictures = [draw_scene(seed).pil() for seed in range(n_scenes)]
    told = {}
    for name, times in (("baseline", script.TIMES), ("tower: scale back", 1.0)):
        told[name] = describe_by_hand(script, model, pictures, times=times)
        assert rows[rows.condition == name].answer.tolist() == told[name]
    plain = model.describe(pictures, "Describe the image.", max_new_tokens=48)
    assert told["baseline"] != told["tower: scale back"]
    assert told["baseline"] != plain


NAMES = ("boat", "fish", "tree", "cup", "star", "moon")


def tell(script, folder):
    """Make captions of six scenes in which only dropping tower sinks changes any."""

    def answers(first):
        # Scene k shows a boat, and k % 3 objects that are not there are named too.
        return [
            " and ".join(f"a {name}" for name in (first, *NAMES[1 : 1 + k % 3]))
            for k in range(6)
        ]

    items = [caption(f"c{k}", truth=NAMES[:1], cluster=k) for k in range(6)]
    names = ["baseline", *list(script.list_conditions())[1:]]
    said = {name: answers("boat") for name in names}
    said["tower: drop"] = answers("cup")
    folder.mkdir()
    bare = {"baseline": answers("boat")}
    for n in (1, 2):
        (folder / str(n)).mkdir()
        for world, own in (("as it is", bare), ("planted", said)):
            make_run(folder / str(n) / world, items, own)
    return script.read_captions(folder, ["1", "2"])


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


def test_edits_are_compared_with_their_controls_and_claims_by_kind(
    script, monkeypatch, tmp_path
):
    few = Draws(resamples=50)
    for name in ("sink_kinds", "false_prompts"):
        monkeypatch.setattr(sys.modules[name], "Draws", lambda: few)
    toys = {str(n): make_toy(script, n) for n in (1, 2)}
    summed = script.sum_toys(toys, tell(script, tmp_path / "told"))
    effects = {
        (one["name"], one["against"], one["what"]): one for one in summed["effects"]
    }
    others = "the same of other columns"
    dropped = effects["tower: drop", others, "margin"]
    assert dropped["toys"] == pytest.approx([1, 2])
    assert effects["tower: drop", others, "right"]["value"] == pytest.approx(50)
    assert effects["language: drop", others, "right"]["value"] == 0
    assert effects["language: drop", others, "right"]["verdict"] == "no change"
    # A margin that grows with density is an error that falls with it.
    assert summed["correlations"]["tower"]["value"] == pytest.approx(-1)
    assert summed["slopes"]["language"]["value"] == pytest.approx(10)
    # Six boats that are there become six cups that are not: 6 of 12 were absent.
    told = effects["tower: drop", others, "excess"]
    assert told["toys"] == pytest.approx([50, 50])
    assert told["verdict"] == "more absent"
    assert effects["tower: drop", "no edit", "excess"]["value"] == pytest.approx(50)
    assert effects["tower: drop", others, "recall"]["value"] == pytest.approx(-100)
    assert effects["tower: drop", others, "objects"]["value"] == 0
    assert effects["language: drop", others, "excess"]["verdict"] == "no change"
    assert summed["worlds"]["plain"]["CHAIR_I"]["value"] == pytest.approx(50)
    assert summed["worlds"]["plain"]["objects"]["value"] == pytest.approx(2)
    density = stats.spearmanr(range(6), [k % 3 for k in range(6)]).statistic
    assert summed["correlations of captions"]["all"]["value"] == pytest.approx(density)
    decided = [
        (one["name"], one["against"], one["what"])
        for one in summed["effects"]
        if one["decides"]
    ]
    assert len(decided) == 2 * (4 * len(script.COLUMNS) + len(script.EDITS))


def test_captions_that_failed_are_refused(script, tmp_path):
    items = [caption(f"c{k}", truth=NAMES[:1], cluster=k) for k in range(2)]
    for world in script.WORLDS:
        (tmp_path / "1").mkdir(exist_ok=True)
        said = {"baseline": ["a boat", ValueError("no picture")]}
        make_run(tmp_path / "1" / world, items, said)
    with pytest.raises(SystemExit, match="failed"):
        script.read_captions(tmp_path, ["1"])


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
