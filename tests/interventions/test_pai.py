"""PAI boosts the image columns where the next word is read, as the slow oracle does."""

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import SettingsError, UnsupportedError
from tests.interventions.other_methods import (
    BACKENDS,
    IMAGES,
    NEW,
    PROMPTS,
    assert_close,
    logits_of,
    make,
    masks_of,
    oracle_pai,
    wrapped,
)

PAI = eah.PAI(alpha=0.7, layers="1:")


@pytest.fixture(scope="module")
def model():
    return wrapped("sdpa", 2)


@pytest.mark.parametrize(("attention", "n_kv_heads"), BACKENDS)
def test_a_boosted_forward_equals_the_slow_oracle(attention, n_kv_heads):
    model, untouched = wrapped(attention, n_kv_heads), make("eager", n_kv_heads)
    encoding = model.encode(IMAGES, PROMPTS)
    masks = masks_of(untouched, encoding)
    with torch.no_grad(), oracle_pai(untouched, *masks, alpha=0.7, layers=(1, 2)):
        expected = untouched(**encoding, use_cache=False).logits
    real = encoding["attention_mask"].bool()
    found, plain = logits_of(model, PAI), logits_of(model, None)
    assert_close(found[real], expected[real])
    assert (found - plain)[:, -1].abs().max() > 0.1


@pytest.mark.parametrize("steps", ["all", "prefill"])
def test_a_generation_under_an_edit_equals_the_oracle(model, steps):
    untouched = make("eager", 2)
    encoding = model.encode(IMAGES, PROMPTS)
    masks = masks_of(untouched, encoding)
    with oracle_pai(untouched, *masks, alpha=3.0, layers=(0, 1, 2), steps=steps):
        expected = untouched.generate(**encoding, **NEW)
    patched = eah.edit(model, eah.PAI(alpha=3.0, layers=":", steps=steps))
    assert patched.generate(**encoding, **NEW).tolist() == expected.tolist()
    assert model.generate(**encoding, **NEW).tolist() != expected.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        PAI,
        eah.VAR(sink_dims=(0, 1), tau=1.5, rho=0.3, layers=":"),
        eah.Ablation(heads=("L1H2",), how="mean"),
        eah.Ablation(heads=("L1H2",), how="previous"),
        eah.Ablation(heads=("L1H2",), how="knockout"),
    ],
    ids=lambda settings: settings.kind,
)
def test_an_answer_read_at_once_is_patched_as_its_generation_was(model, settings):
    encoding = model.encode(IMAGES[0], PROMPTS[0])
    width = encoding["input_ids"].shape[1]
    patched = eah.edit(model, settings)
    run = patched.generate(
        **encoding, **NEW, output_logits=True, return_dict_in_generate=True
    )
    whole = {**encoding, "input_ids": run.sequences}
    whole["attention_mask"] = torch.ones_like(run.sequences)
    prompt_mask = torch.arange(run.sequences.shape[1])[None] < width
    with torch.no_grad(), model.trace(**whole):
        eah.intervene(model, settings, prompt_mask=prompt_mask)
        logits = model.output.logits.save()
    assert_close(logits[0, width - 1 : -1], torch.cat(run.logits))


@pytest.mark.parametrize("cache", [True, False])
def test_a_cache_changes_no_word(model, cache):
    encoding = model.encode(IMAGES, PROMPTS)
    patched = eah.edit(model, PAI)
    expected = patched.generate(**encoding, **NEW)
    found = patched.generate(**encoding, **NEW, use_cache=cache)
    assert found.tolist() == expected.tolist()


def test_only_rows_that_words_are_read_from_change(model):
    found, plain = logits_of(model, PAI), logits_of(model, None)
    real = model.encode(IMAGES, PROMPTS)["attention_mask"].bool()
    changed = (found != plain).any(-1) & real
    assert changed.sum(1).tolist() == [1, 1, 1]


def test_alpha_zero_changes_nothing_much(model):
    found = logits_of(model, eah.PAI(alpha=0.0, layers=":"))
    assert_close(found, logits_of(model, None))


def test_it_stands_behind_a_broadcast_but_not_before_one(model):
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        eah.intervene(model, eah.EAH(donor=0))
        eah.intervene(model, PAI)
        both = model.output.logits.save()
    assert not torch.equal(both, logits_of(model, PAI))
    turned = eah.edit(eah.edit(model, PAI), eah.EAH(donor=0))
    with pytest.raises(UnsupportedError, match="layer 1"):
        logits_of(turned, None)


def test_a_layer_that_has_run_is_refused(model):
    def come_late():
        with model.trace(IMAGES[0], PROMPTS[0]):
            model.model.language_model.layers[1].output.save()
            eah.intervene(model, eah.PAI(layers=(1,)))

    with pytest.raises(UnsupportedError, match="layer 1 has already run"):
        come_late()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": -0.1}, "alpha must be a number from 0 to"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"layers": "two"}, "indices or a slice"),
        ({"layers": (1, 1)}, "each once"),
    ],
)
def test_impossible_settings_are_refused(as_users_run_it, values, message):
    with pytest.raises(SettingsError, match=message):
        eah.PAI(**values)


def test_a_slice_without_layers_is_refused(model):
    with pytest.raises(SettingsError, match="'7:' are none of the model's 3"):
        eah.edit(model, eah.PAI(layers="7:"))


def test_settings_are_those_of_the_paper_and_survive_a_file():
    assert eah.PAI.official() == eah.PAI(alpha=0.2, layers="2:")
    assert eah.PAI.paper(layers=(1, 2)) == eah.PAI(alpha=0.5, layers=(1, 2))
    assert eah.PAI.from_dict(PAI.to_dict()) == PAI
