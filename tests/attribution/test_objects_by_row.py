"""Objects by row: each item its own, told apart by what is in the image."""

import contextlib

import numpy as np
import pandas as pd
import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import (
    HeadAttribution,
    ablate_heads,
    approximate_heads,
    attribute_heads,
    attribute_patches,
    attribute_recipients,
    logit_lens,
    patch_heads,
    pose,
    read_patterns,
    score_broadcast,
    trace_mediators,
)
from eah_interp.errors import InputError, NumericalError, SettingsError
from eah_interp.testing import random_image
from eah_interp.toy import draw_scene
from tests.crossed import cross
from tests.fuzz.harness import find_bad
from tests.tiny_families import PICTURES, ignore_renamed, share_model

IMAGES = [random_image(seed) for seed in range(4)]
PROMPTS = ["Is there a boat?", "Describe the image.", "What is it?", "Say."]
OBJECTS = [["boat", "star"], ["cup"], [], ["fish", "boat", "lighthouse"]]
CAPTIONS = [
    "There is a boat. A star is near the boat.",
    "There are two cups.",
    "There is a spoon.",
    "There is a car and a fish and a lighthouse.",
]
SYNONYMS = {"boat": ["car"], "star": ["sun"]}


@pytest.fixture(scope="module")
def toy():
    return eah.load()


def numbers_of(found):
    """List a result's numbers by target, whatever the class."""
    if isinstance(found, HeadAttribution):
        runs = [run for run in (found.plain, found.patched) if run is not None]
        return torch.cat(
            [torch.cat([r.heads.flatten(1), r.blocks], 1) for r in runs], 1
        )
    for name in ("effects", "restored", "approximate"):
        if hasattr(found, name):
            return getattr(found, name).flatten(1)
    if hasattr(found.plain, "logit"):
        return found.plain.logit[:, :, 0]
    return found.plain.patches.sum(-1).flatten(1)


CALLS = {
    "attribute_heads": (attribute_heads, {"patch": eah.EAH()}),
    "logit_lens": (logit_lens, {"patch": eah.EAH()}),
    "attribute_patches": (attribute_patches, {"patch": eah.EAH()}),
    "attention_gradient": (attribute_patches, {"method": "attention_gradient"}),
    "patch_heads": (patch_heads, {"source": eah.EAH(), "heads": ["L1H0", "L1H3"]}),
    "ablate_heads": (ablate_heads, {"heads": ["L3H7", "L2.mlp"]}),
    "approximate_heads": (approximate_heads, {"source": eah.EAH(), "check": 0}),
    "attribute_recipients": (attribute_recipients, {}),
    "trace_mediators": (trace_mediators, {"nodes": ["L2H0", "L3.mlp"]}),
}


def assert_rows_are_those_of_single_items(call, model, images, prompts, asked):
    """Compare each item's rows with those of a call of its own."""
    function, options = call
    found = function(model, images, prompts, **asked, **options)
    several = numbers_of(found)
    rows = [target.asked_of for target in found.targets]
    assert sorted(set(rows)) == [n for n, own in enumerate(asked["objects"]) if own]
    for item, own in enumerate(asked["objects"]):
        if not own:
            continue
        single = dict(asked) | {"objects": own}
        if "caption" in asked:
            single["caption"] = asked["caption"][item]
        if "synonyms" in asked:
            single["synonyms"] = {w: s for w, s in SYNONYMS.items() if w in own}
        alone = function(model, images[item], prompts[item], **single, **options)
        mine = [n for n, row in enumerate(rows) if row == item]
        labels = [found.targets[n].label for n in mine]
        assert labels == [target.label for target in alone.targets]
        texts = [found.targets[n].text for n in mine]
        assert texts == [target.text for target in alone.targets]
        torch.testing.assert_close(
            several[mine], numbers_of(alone), atol=2e-5, rtol=1e-4
        )


# -- the rows of an item are those of a call of its own --------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_each_items_rows_are_those_that_it_has_alone(toy, name):
    """Prompts of unlike length, so rows are padded; one item is asked nothing."""
    asked = {"objects": OBJECTS}
    assert_rows_are_those_of_single_items(CALLS[name], toy, IMAGES, PROMPTS, asked)


@pytest.mark.parametrize("name", ["attribute_heads", "patch_heads"])
def test_each_items_synonyms_and_captions_are_its_own(toy, name):
    asked = {"objects": OBJECTS, "synonyms": SYNONYMS}
    assert_rows_are_those_of_single_items(CALLS[name], toy, IMAGES, PROMPTS, asked)
    asked["caption"] = CAPTIONS
    assert_rows_are_those_of_single_items(CALLS[name], toy, IMAGES, PROMPTS, asked)


@pytest.mark.parametrize("name", ["patch_heads", "approximate_heads"])
def test_words_of_several_tokens_are_read_whole_for_each_item(toy, name):
    asked = {"objects": OBJECTS, "metric": "log_prob"}
    assert_rows_are_those_of_single_items(CALLS[name], toy, IMAGES, PROMPTS, asked)
    found = patch_heads(toy, IMAGES, source=eah.EAH(), heads=["L1H0"], **asked)
    table = found.frame()
    assert table["row"].tolist() == [0, 0, 1, 3, 3, 3]
    assert table["object"].tolist() == [word for own in OBJECTS for word in own]


def test_differences_of_two_objects_may_differ_by_item(toy):
    asked = {"objects": [["boat", "star"], [], [], ["cup", "fish"]]}
    asked["metric"] = "logit_diff"
    call = CALLS["attribute_heads"]
    assert_rows_are_those_of_single_items(call, toy, IMAGES, PROMPTS, asked)


@ignore_renamed
@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "gemma3", "idefics3", "qwen2_5_vl", "paligemma"]
)
def test_families_read_each_items_own_objects(family):
    model = share_model(family)
    objects = [["boat", "cat"], ["dog"]]
    questions = ["what ?", "is there a cat near the boat ?"]
    call = (attribute_heads, {"patch": eah.EAH(layers=(1,))})
    asked = {"objects": objects}
    assert_rows_are_those_of_single_items(call, model, list(PICTURES), questions, asked)
    truth = [["boat"], None]
    found = attribute_heads(
        model, list(PICTURES), questions, objects=objects, truth=truth
    )
    assert [t.present for t in found.targets] == [True, False, None]
    assert len({t.images for t in found.targets}) == 2


def test_a_flat_list_holds_for_every_item(toy):
    flat = attribute_heads(toy, IMAGES[:2], objects=["boat", "cup"])
    listed = attribute_heads(toy, IMAGES[:2], objects=[["boat", "cup"]] * 2)
    assert flat == listed


@pytest.mark.parametrize(
    "objects",
    [
        (("boat", "star"), ("cup",)),
        np.array([["boat", "star"], ["cup", "fish"]]),
        pd.Series([["boat"], ["cup", "fish"]], index=[7, 3]),
        [np.array(["boat"]), pd.Series(["cup"], index=[5])],
    ],
    ids=["tuples", "array", "column of lists", "list of arrays"],
)
def test_lists_may_be_of_any_usual_kind(toy, objects):
    case = pose(toy, IMAGES[:2], objects=objects)
    expected = [(row, str(word)) for row, own in enumerate(objects) for word in own]
    assert [(t.row, t.label) for t in case.readout.targets] == expected


def test_each_prompt_spells_its_own_objects(toy):
    """After one prompt a word is written with a space, after another without."""
    prompts = ["<image> What is it?", "<image> It is a thing ("]
    for objects in (["boat"], [["boat"], ["boat"]]):
        both = pose(toy, IMAGES[:2], prompts, objects=objects)
        tokens = toy.tokenizer.convert_ids_to_tokens(both.readout.tokens.tolist())
        assert tokens == ["▁boat", "b"]
        for row in range(2):
            one = pose(toy, IMAGES[row], prompts[row], objects=["boat"])
            mine = both.readout.pick([row])
            assert mine.tokens.tolist() == one.readout.tokens.tolist()


# -- some items at a time --------------------------------------------------------------


IN_CHUNKS = ["attribute_heads", "logit_lens", "attribute_patches", "attention_gradient"]


@pytest.mark.parametrize(("name", "batch_size"), cross([*IN_CHUNKS], [1, 2, 4]))
def test_items_run_some_at_a_time_are_those_of_one_batch(toy, name, batch_size):
    function, options = CALLS[name]
    asked = {"objects": OBJECTS, "truth": [["boat"], None, [], ["fish"]]}
    if options.get("patch") is not None:  # seeds go with their items
        patch = eah.EAH(donor="random", seed=(3, 4, 5, 6))
        options = options | {"patch": patch}
    whole = function(toy, IMAGES, PROMPTS, **asked, **options)
    parts = function(toy, IMAGES, PROMPTS, **asked, **options, batch_size=batch_size)
    assert parts.targets == whole.targets
    one, other = parts.frame(), whole.frame()
    assert list(one) == list(other)
    for name, column in other.items():
        if column.dtype == "float64":
            np.testing.assert_allclose(one[name], column, atol=2e-5, rtol=1e-4)
        elif name not in ("rank", "patched_rank"):  # which rounding may swap
            assert one[name].equals(column), name
    assert parts.donors.keys() == whole.donors.keys()
    for layer, heads in whole.donors.items():
        assert parts.donors[layer][[0, 1, 3]].tolist() == heads[[0, 1, 3]].tolist()


def test_no_more_items_are_run_together_than_was_asked_for(toy, monkeypatch):
    seen = []
    trace = type(toy).trace

    def watch(self, *args, **kwargs):
        seen.append(len(kwargs["input_ids"]))
        return trace(self, *args, **kwargs)

    monkeypatch.setattr(type(toy), "trace", watch)
    attribute_heads(toy, IMAGES, objects=OBJECTS, batch_size=2)
    assert seen == [2, 1]  # the item that is asked nothing is not run


@pytest.mark.parametrize("name", [*CALLS])
def test_long_work_shows_one_bar_over_items(toy, capsys, name):
    function, options = CALLS[name]
    options = options | ({"batch_size": 1} if name in IN_CHUNKS else {})
    function(toy, IMAGES, objects=OBJECTS, **options)
    assert "items" not in capsys.readouterr().err
    function(toy, IMAGES, objects=OBJECTS, **options, progress=True)
    last = capsys.readouterr().err.strip().splitlines()[-1].rpartition("\r")[2]
    assert last.startswith("items: 100%")
    assert "3/3" in last


@pytest.mark.parametrize("name", IN_CHUNKS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"progress": "no"}, "progress must be True or False"),
    ],
)
def test_chunks_that_cannot_be_are_refused(
    toy, as_users_run_it, name, options, message
):
    function, others = CALLS[name]
    with pytest.raises(SettingsError, match=message):
        function(toy, IMAGES, objects=OBJECTS, **others, **options)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "metric",
    [np.array([0, 1]), np.array(["a", "b"]), torch.tensor([0, 1]), ["logit"], {}, None],
    ids=repr,
)
def test_a_metric_of_any_kind_is_told_which_there_are(
    toy, as_users_run_it, name, metric
):
    """An array that is compared with a word is many answers, and raised NumPy's."""
    function, others = CALLS[name]
    with pytest.raises(SettingsError, match="metric must be one of logit, "):
        function(toy, IMAGES, objects=OBJECTS, metric=metric, **others)


def test_items_that_cannot_be_told_apart_are_refused_with_the_remedy():
    model = share_model("qwen2_5_vl")
    with pytest.raises(InputError, match="pass one image and prompt at a time"):
        attribute_heads(model, list(PICTURES), objects=["boat"], batch_size=1)


# -- numbers that are none -------------------------------------------------------------

SPOILT = {
    "one token's logit": lambda model: model.lm_head.weight[-1],
    "every logit": lambda model: model.lm_head.weight,
    "one value": lambda model: model.model.language_model.layers[
        5
    ].self_attn.v_proj.weight[0],
    "one query": lambda model: model.model.language_model.layers[
        2
    ].self_attn.q_proj.weight[0],
}


@pytest.mark.parametrize("what", SPOILT)
def test_no_attribution_holds_nan(what, as_users_run_it):
    """One weight is enough: a gradient sums over all logits, zero times NaN too."""
    broken = eah.load()
    with torch.no_grad():
        SPOILT[what](broken._module).fill_(torch.nan)
    asked = {name: {"objects": ["boat"], **given} for name, (_, given) in CALLS.items()}
    calls = {name: function for name, (function, _) in CALLS.items()}
    calls |= {"read_patterns": read_patterns, "score_broadcast": score_broadcast}
    asked |= {"read_patterns": {"mean": True}, "score_broadcast": {}}
    named = 0
    for name, function in calls.items():
        with contextlib.suppress(NumericalError):
            named += 1
            found = function(broken, IMAGES[0], PROMPTS[0], **asked[name])
            named -= 1
            assert not list(find_bad(found, "", frozenset({"exact"}))), name
    assert named >= 5


# -- present and absent ----------------------------------------------------------------


def test_truth_says_which_objects_are_in_the_image(toy):
    found = attribute_heads(
        toy,
        IMAGES,
        objects=[["boat", "star"], ["cup"], [], ["fish", "house"]],
        synonyms=SYNONYMS,
        truth=[["Cars", "pan"], None, [], {"houses"}],
    )
    present = [True, False, None, False, True]
    assert [target.present for target in found.targets] == present
    table = found.frame()
    assert table["present"].dtype == "boolean"
    by_target = table.groupby("target")["present"].first().tolist()
    assert [None if value is pd.NA else value for value in by_target] == present
    logits = found.list_logits()
    assert logits["present"].isna().tolist() == [False] * 4 + [True]
    assert logits["object"].tolist() == ["boat", "house", "star", "fish", "cup"]
    assert found.list_logits(present=["star"])["present"].sum() == 1
    assert found.plot_logits().axes


def test_truth_of_a_single_item_may_be_flat(toy):
    asked = {"objects": ["boat", "cup"]}
    for truth in (["boat"], [["boat"]], "boat", ("boat", "pan"), {"boat"}):
        case = pose(toy, IMAGES[0], truth=truth, **asked)
        assert [t.present for t in case.readout.targets] == [True, False]
    for truth in ([], [[]]):
        case = pose(toy, IMAGES[0], truth=truth, **asked)
        assert [t.present for t in case.readout.targets] == [False, False]
    case = pose(toy, IMAGES[0], truth=None, **asked)
    assert [t.present for t in case.readout.targets] == [None, None]


def test_truth_goes_with_captions_and_whole_words(toy):
    truth = [["boat"], ["cup"], [], ["lighthouse"]]
    told = {"objects": OBJECTS, "synonyms": SYNONYMS, "truth": truth}
    found = pose(toy, IMAGES, caption=CAPTIONS, **told).readout.targets
    by_object = {(t.row, t.label): t.present for t in found}
    assert by_object == {
        (0, "boat"): True, (0, "star"): False, (1, "cup"): True, (3, "boat"): False,
        (3, "fish"): False, (3, "lighthouse"): True,
    }  # fmt: skip
    whole = pose(toy, IMAGES, metric="log_prob", objects=OBJECTS, truth=truth)
    assert [t.present for t in whole.readout.targets] == [
        *(True, False, True, False, False, True)
    ]


def test_what_is_known_of_objects_is_saved(toy, tmp_path):
    found = attribute_heads(
        toy, IMAGES[:2], objects=[["boat"], ["cup"]], truth=[["boat"], None]
    )
    again = HeadAttribution.load(found.save(tmp_path))
    assert again == found
    assert again.targets == found.targets
    pd.testing.assert_frame_equal(again.frame(), found.frame())


# -- refusals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"objects": [["boat"]] * 3}, InputError, "3 lists for 2 items: expected a"),
        ({"objects": [["boat"]]}, InputError, "objects has 1 lists for 2 items"),
        ({"objects": [[], []]}, SettingsError, "every item has an empty list"),
        ({"objects": [["boat"], "cup"]}, SettingsError, "write a list for each item"),
        ({"objects": [[], "cup"]}, SettingsError, "words and lists do not go together"),
        ({"objects": [["boat"], None]}, SettingsError, "do not go together"),
        ({"objects": [["boat"], [3]]}, SettingsError, "must be a list of words"),
        ({"objects": [["cup"], ["boat", "boat"]]}, SettingsError, "item 1: .* twice"),
        (
            {"objects": [["cup", "boat"], ["cup"]], "metric": "logit_diff"},
            SettingsError,
            'the objects of item 1: metric="logit_diff" takes two objects, got 1: cup',
        ),
        (
            {"objects": [["cup"], ["star"]], "caption": ["A cup.", "A cup."]},
            InputError,
            "the caption of item 1 does not name star",
        ),
        (
            {
                "objects": [["cup"], ["star"]],
                "caption": ["A cup.", "A star."],
                "synonyms": {"boat": ["ship"]},
            },
            SettingsError,
            "got some for 'boat'",
        ),
        ({"objects": ["cup"], "truth": ["cup"]}, InputError, "one flat list of names"),
        ({"objects": ["cup"], "truth": []}, InputError, "truth has one flat list"),
        ({"objects": ["cup"], "truth": [["cup"]]}, InputError, "1 lists for 2 items"),
        ({"objects": ["cup"], "truth": [["cup"], "a"]}, SettingsError, "truth must be"),
        ({"objects": ["cup"], "truth": [["cup"], [3]]}, SettingsError, "truth must be"),
        ({"objects": ["cup"], "truth": 3}, SettingsError, "truth must be a list"),
        ({"objects": ["cup"], "truth": [" ", "a"]}, SettingsError, "truth must be"),
        (
            {"metric": "yes_no", "truth": [["cup"], []]},
            SettingsError,
            "is not about one object",
        ),
    ],
)
def test_what_does_not_fit_the_items_is_refused_before_any_forward(
    toy, monkeypatch, as_users_run_it, asked, error, message
):
    monkeypatch.setattr(type(toy), "trace", None)
    with pytest.raises(error, match=message):
        pose(toy, IMAGES[:2], **asked)


def test_truth_beside_a_case_is_refused(toy):
    case = pose(toy, IMAGES[0], objects=["boat"])
    with pytest.raises(SettingsError, match="nothing beside it, got truth"):
        attribute_heads(toy, case, truth=["boat"])
    with pytest.raises(SettingsError, match="nothing beside it, got objects"):
        attribute_heads(toy, case, objects=pd.Series(["boat"]))


# -- averages --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged(toy):
    """Attribute objects of five items, of which two show the same image."""
    scenes = [draw_scene(seed) for seed in (3, 4, 5, 3, 6)]
    objects = [["cup", "fish"], ["cup", "boat"], ["fish"], ["boat"], []]
    return attribute_heads(
        toy,
        [scene.pil() for scene in scenes],
        objects=objects,
        truth=[["cup"], ["boat"], [], [], []],
        patch=eah.EAH(),
    )


def average_by_hand(values, clusters, *, resamples=2000, level=0.95):
    """Draw clusters, as scipy's bootstrap draws items, and average what is in them."""
    names = list(dict.fromkeys(clusters))
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(names), (resamples, len(names)))
    means = [
        np.mean(
            [
                value
                for place in sample
                for value, own in zip(values, clusters, strict=True)
                if own == names[place]
            ]
        )
        for sample in drawn
    ]
    ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return np.mean(values), *ends


@pytest.mark.parametrize("of", ["plain", "change", "new_pattern"])
def test_averages_are_those_of_a_loop_over_images(averaged, of):
    table = averaged.average(of=of)
    frame = averaged.frame()
    images = {0: "a", 1: "b", 2: "c", 3: "a"}
    for present, n_objects, n_images in ((True, 2, 2), (False, 4, 3)):
        mine = table[table["present"] == present]
        assert len(mine) == 64
        assert set(mine["n_objects"]) == {n_objects}
        assert set(mine["n_images"]) == {n_images}
        for name in ("L1H0", "L4H5"):
            own = frame[(frame["name"] == name) & (frame["present"] == present)]
            clusters = [images[row] for row in own["row"]]
            expected = average_by_hand(own[of].tolist(), clusters)
            row = mine[mine["name"] == name].iloc[0]
            found = row[["estimate", "low", "high"]].astype(float)
            if expected[2] - expected[1] < 1e-9:
                assert row["why"] == "no image differs"
                expected = (expected[0], np.nan, np.nan)
            else:
                assert row["why"] == ""
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-10)


def test_the_largest_means_of_each_part_come_first(averaged):
    table = averaged.average(k=3)
    assert table["present"].tolist() == [True] * 3 + [False] * 3
    whole = averaged.average()
    for present in (True, False):
        mine = table[table["present"] == present]["estimate"].abs()
        all_of = whole[whole["present"] == present]["estimate"].abs()
        assert mine.tolist() == all_of.nlargest(3).tolist()
    assert averaged.average(split="none", k=1)["n_objects"].tolist() == [6]
    apart = averaged.average(split="object", k=1)
    keys = apart[["object", "present", "n_objects"]].values.tolist()
    assert keys == [
        *(["cup", True, 1], ["cup", False, 1], ["fish", False, 2]),
        *(["boat", True, 1], ["boat", False, 1]),
    ]


def test_a_single_image_has_no_interval(toy):
    found = attribute_heads(toy, IMAGES[0], objects=["boat", "cup"])
    table = found.average()
    assert table["present"].isna().all()
    assert set(table["why"]) == {"a single image"}
    assert table[["low", "high"]].isna().all(axis=None)
    np.testing.assert_allclose(
        table["estimate"][:64], found.plain.heads.double().mean(0).flatten()
    )
    twice = attribute_heads(toy, [IMAGES[0]] * 2, objects=["boat"])
    assert set(twice.average()["why"]) == {"a single image"}
    apart = twice.average(clusters=["a", "b"])
    assert set(apart["n_images"]) == {2}
    assert set(apart["why"]) == {"no image differs"}
    assert apart[["low", "high"]].isna().all(axis=None)


def test_clusters_may_be_given_and_images_known_by_their_pixels(averaged):
    one = averaged.average(clusters=["x", "x", "y", "y", "z"], split="none")
    assert set(one["n_images"]) == {2}
    same = averaged.average(clusters=[0, 1, 2, 0, 4], split="none")
    pd.testing.assert_frame_equal(same, averaged.average(split="none"))
    assert averaged.targets[0].images == averaged.targets[-1].images


def test_images_of_ready_made_inputs_are_known_by_their_pixels_or_asked_for(toy):
    encoding = toy.encode([IMAGES[0], IMAGES[1], IMAGES[0]])
    found = attribute_heads(toy, encoding, objects=["boat"])
    assert set(found.average()["n_images"]) == {2}
    model = share_model("qwen2_5_vl")  # patches of all images lie along one axis
    flat = attribute_heads(model, model.encode(list(PICTURES)), objects=["boat"])
    with pytest.raises(SettingsError, match="expected clusters=, one for each item"):
        flat.average()
    assert set(flat.average(clusters=[0, 1])["n_images"]) == {2}


def test_an_average_over_numbers_that_are_missing_is_none(toy):
    """A share of an effect that is not there is NaN, and no mean passes over it."""
    found = trace_mediators(
        toy, IMAGES[:2], objects=["boat"], eah=eah.EAH(items="first"), nodes=["L2H0"]
    )
    assert found.shares.isnan().flatten().tolist() == [False, True]
    (row,) = found.average(of="share").to_dict("records")
    assert np.isnan(row["estimate"])
    assert row["why"] == "1 of 2 objects has no number"
    assert found.average()["estimate"].notna().all()


@pytest.mark.parametrize("name", CALLS)
def test_every_result_about_objects_has_averages(toy, name):
    function, options = CALLS[name]
    asked = {"objects": OBJECTS, "truth": [["boat"], [], [], ["fish"]]}
    found = function(toy, IMAGES, **asked, **options)
    table = found.average()
    assert set(table["present"]) == {True, False}
    assert set(table["n_images"]) == {2, 3}
    present = [n for n, target in enumerate(found.targets) if target.present]
    heads = numbers_of(found)[present].double().mean(0)
    first = table[table["present"]]["estimate"].to_numpy()
    if name == "logit_lens":
        assert table["point"].nunique() == 9
        first = found.average(of="logit", k=None)["estimate"][:9].to_numpy()
    if options.get("patch") is not None and name in CALLS:
        first = found.average(of="logit" if name == "logit_lens" else "plain")
        first = first[first["present"]]["estimate"].to_numpy()
    width = min(len(first), len(heads), 64)
    np.testing.assert_allclose(first[:width], heads[:width], atol=1e-6, rtol=1e-5)


def test_only_checked_heads_have_an_exact_average(toy, as_users_run_it):
    found = approximate_heads(
        toy, IMAGES[:2], objects=["boat"], source=eah.EAH(), check=5
    )
    assert len(found.average()) == 64
    assert len(found.average(of="exact")) == 5
    assert found.average(of="exact")["estimate"].notna().all()
    with pytest.raises(SettingsError, match="no column of numbers"):
        found.average(of=np.array(["exact", "approximate"]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"of": "patches"}, SettingsError, "no column of numbers: expected plain, pat"),
        ({"of": "row"}, SettingsError, "no column of numbers"),
        ({"of": pd.Series(["plain"])}, SettingsError, "no column of numbers"),
        ({"split": "head"}, SettingsError, "split must be"),
        ({"k": 0}, SettingsError, "k must be"),
        ({"level": 1.5}, SettingsError, "level"),
        ({"resamples": 0}, SettingsError, "resamples"),
        ({"clusters": ["a"]}, InputError, "clusters has 1 values: expected one for"),
        ({"clusters": "abcde"}, SettingsError, "clusters must be a list"),
        ({"clusters": [1, 2, None, 4, 5]}, SettingsError, "clusters must be a list"),
    ],
)
def test_averages_that_cannot_be_made_are_refused(
    averaged, as_users_run_it, options, error, message
):
    with pytest.raises(error, match=message):
        averaged.average(**options)
