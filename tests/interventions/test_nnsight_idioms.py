"""Edits and generation steps of nnsight, together with EAH."""

import re
from collections import Counter

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import ModelError, UnsupportedError
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.interventions.test_against_oracle import oracle_of, untouched
from tests.oracle_forward import oracle_generate, oracle_logits

IMAGES = [random_image(seed) for seed in (0, 1, 2)]
PROMPTS = ["is there a cat ?", "what ?", "is the dog near the tree or the boat ?"]
PARTLY = eah.EAH(donor=0, recipients=(1,))
UNIFORM = eah.EAH(donor="uniform", recipients=(2, 3))
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6}
FUNCTION = re.compile(r"^def (test_\w+)", re.MULTILINE)
NEW = {**GREEDY, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    tiny = tiny_lvlm("llava", n_kv_heads=2, attn_implementation="sdpa")
    return eah.wrap(tiny, tiny_processor("llava"))


def logits_of(model, *settings, rows=slice(0, 3)):
    with torch.no_grad(), model.trace(IMAGES[rows], PROMPTS[rows]):
        for one in settings:
            eah.intervene(model, one)
        logits = model.output.logits.save()
    return logits


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# -- edits -----------------------------------------------------------------------------


def test_an_edit_in_place_lasts_until_it_is_cleared(model):
    clean = logits_of(model)
    with model.edit(inplace=True):
        eah.intervene(model, eah.EAH())
    edited = logits_of(model)
    directly = model.trace(IMAGES, PROMPTS, trace=False).logits
    model.clear_edits()
    assert torch.equal(edited, logits_of(model, eah.EAH()))
    assert torch.equal(directly, edited)
    assert torch.equal(logits_of(model), clean)


@pytest.mark.parametrize("layers", [(0, 1), (1, 0)])
def test_edits_of_edits_are_one_edit_of_both_layers(model, layers):
    first = eah.edit(model, eah.EAH(layers=layers[:1]))
    both = eah.edit(first, eah.EAH(layers=layers[1:]))
    expected = logits_of(model, eah.EAH(layers=(0, 1)))
    assert torch.equal(logits_of(both), expected)
    first.clear_edits()
    assert torch.equal(logits_of(first), logits_of(model))
    assert torch.equal(logits_of(both), expected)


def test_two_patches_of_one_layer_add_up_as_in_the_oracle(model):
    settings = (eah.EAH(donor=0), UNIFORM)
    encoding = model.encode(IMAGES, PROMPTS)
    first, second = (oracle_of(one, encoding) for one in settings)

    def both(layer, pattern, visible):
        return second(layer, first(layer, pattern, visible), visible)

    expected = oracle_logits(untouched(2), encoding, edit_pattern=both).logits
    real = encoding["attention_mask"].bool()
    stacked = eah.edit(eah.edit(model, settings[0]), settings[1])
    for found in (logits_of(model, *settings), logits_of(stacked)):
        assert_close(found[real], expected[real])
    assert not torch.allclose(logits_of(model, settings[0]), logits_of(stacked))


@pytest.mark.parametrize("first", [PARTLY, UNIFORM])
@pytest.mark.parametrize("second", [PARTLY, eah.EAH(donor="mean"), eah.EAH(donor=2)])
def test_a_patch_after_one_of_the_output_is_refused(model, first, second):
    edited = eah.edit(model, first)
    with pytest.raises(UnsupportedError, match=r"layer 1 is patched twice .* one EAH"):
        logits_of(eah.edit(edited, second))
    with pytest.raises(UnsupportedError, match=r"layer 1 is patched twice .* one EAH"):
        logits_of(edited, second)
    with pytest.raises(UnsupportedError, match=r"layer 1 has already run, or is alr"):
        logits_of(model, first, second)
    assert torch.equal(logits_of(edited), logits_of(model, first))


def test_intervening_after_the_layer_has_run_is_refused(model):
    def too_late():
        with torch.no_grad(), model.trace(IMAGES, PROMPTS):
            model.model.language_model.layers[2].output.save()
            eah.intervene(model)

    with pytest.raises(UnsupportedError, match=r"layer 1 has already run.*before any"):
        too_late()


def test_a_part_of_a_model_is_refused(model):
    part = model.model.language_model
    with pytest.raises(ModelError, match=r"got model.*: pass the whole model"):
        eah.edit(part)
    with (
        pytest.raises(ModelError, match=r"got model.*: pass the whole model"),
        model.trace(IMAGES, PROMPTS),
    ):
        eah.intervene(part)


# -- steps of a generation -------------------------------------------------------------


def at_steps(oracle, steps):
    """Let an oracle patch at some forward passes only."""
    seen = Counter()

    def edit(layer, pattern, visible):
        seen[layer] += 1
        chosen = seen[layer] - 1 in steps
        return oracle(layer, pattern, visible) if chosen else pattern

    return edit


@pytest.mark.parametrize("recipients", ["all", (0, 3)])
@pytest.mark.parametrize(
    ("chosen", "steps", "donor"),
    [
        (slice(0, 6), range(6), "densest"),
        (slice(0, 3), range(3), "densest"),
        ([0, 2, 4], [0, 2, 4], "shuffled"),
        (slice(2, 4), [2, 3], 1),
        (3, [3], 1),
        ([1, 4], [1, 4], "uniform"),
        ([1, 4], [1, 4], "mean"),
    ],
)
def test_chosen_steps_are_patched_as_in_the_oracle(
    model, chosen, steps, donor, recipients
):
    settings = eah.EAH(donor=donor, recipients=recipients, steps="all")
    encoding = model.encode(IMAGES, PROMPTS)
    choose = oracle_of(settings, encoding)
    if 0 not in steps:  # nothing to choose from: the donor is given, or there is none
        choose.donors[1] = torch.full((3,), 1)
    oracle = at_steps(choose, steps)
    plain = untouched(2)
    expected = oracle_generate(plain, encoding, edit_pattern=oracle, **GREEDY)
    with model.generate(IMAGES, PROMPTS, **NEW) as tracer:
        for _ in tracer.iter[chosen]:
            eah.intervene(model, settings)
        ids = tracer.result.save()
    assert ids.tolist() == expected.tolist()
    assert ids.tolist() != oracle_generate(plain, encoding, **GREEDY).tolist()


@pytest.mark.filterwarnings("ignore:.* was never reached. the loop asked")
def test_all_steps_are_those_of_an_edit(model):
    settings = eah.EAH(steps="all")
    with model.generate(**NEW) as tracer:
        with tracer.invoke(IMAGES, PROMPTS):
            for _ in tracer.all():
                eah.intervene(model, settings)
        with tracer.invoke():
            ids = tracer.result.save()
    edited = eah.edit(model, settings)
    uncached = edited.generate(IMAGES, PROMPTS, use_cache=False, **NEW)
    assert torch.equal(ids, edited.generate(IMAGES, PROMPTS, **NEW))
    assert torch.equal(ids, uncached)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (eah.EAH(donor=1), r'called at step 1, but steps="prefill".*which step 0'),
        (eah.EAH(steps="all"), r"first at step 1, but the densest .*EAH\(donor=0\)"),
    ],
)
def test_a_patch_that_begins_too_late_is_refused(model, settings, message):
    def too_late():
        with model.generate(IMAGES, PROMPTS, **NEW) as tracer:
            for _ in tracer.iter[1:3]:
                eah.intervene(model, settings)

    with pytest.raises(UnsupportedError, match=message):
        too_late()


def test_a_patched_prompt_that_is_read_again_is_refused(model):
    with pytest.raises(UnsupportedError, match=r"first of 6 .*leave the cache on"):
        eah.edit(model).generate(IMAGES, PROMPTS, use_cache=False, **NEW)


def test_every_test_that_the_page_names_exists(pytestconfig):
    page = (pytestconfig.rootpath / "docs/nnsight.md").read_text()
    files = (pytestconfig.rootpath / "tests/interventions").glob("test_*.py")
    tests = {name for file in files for name in FUNCTION.findall(file.read_text())}
    rows = [
        line for line in page.splitlines() if line.startswith(("| `", "| a", "| i"))
    ]
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) >= 25
    assert named <= tests
    assert all(
        "`test_" in row or "the same" in row for row in rows if "idiom" not in row
    )
