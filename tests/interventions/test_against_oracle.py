"""EAH inside a real forward pass equals patterns replaced head by head."""

import functools

import pytest
import torch

import eah_interp as eah
from eah_interp.interventions.donation import column_priority, layer_seed
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.oracle_forward import OracleEAH, oracle_generate, oracle_logits

IMAGES = [random_image(seed) for seed in (0, 1, 2)]
PROMPTS = ["is there a cat ?", "what ?", "is the dog near the tree or the boat ?"]

SETTINGS = {
    "default": eah.EAH(),
    "default, layers 0 and 1": eah.EAH(layers=(0, 1)),
    "a dense sink threshold": eah.EAH(beta=1.3, gamma=0.3),
    "paper": eah.EAH.paper(),
    "paper, high threshold": eah.EAH.paper(beta=0.05),
    "official": eah.EAH.official(layers=(1,), beta=0.03),
    "sparsest": eah.EAH(donor="sparsest"),
    "a head": eah.EAH(donor=2),
    "mean": eah.EAH(donor="mean"),
    "uniform": eah.EAH(donor="uniform"),
    "shuffled": eah.EAH(donor="shuffled", seed=3),
    "some recipients": eah.EAH(recipients=(0, 3)),
    "some recipients of a head": eah.EAH(donor=1, recipients=(2,)),
    "some recipients of the mean": eah.EAH(donor="mean", recipients=(1, 2)),
}


@functools.cache
def wrapped(n_kv_heads: int, attention: str, n_layers: int = 3) -> eah.LVLM:
    model = tiny_lvlm(
        "llava",
        n_kv_heads=n_kv_heads,
        attn_implementation=attention,
        n_layers=n_layers,
    )
    return eah.wrap(model, tiny_processor("llava"))


@functools.cache
def untouched(n_kv_heads: int, n_layers: int = 3):
    return tiny_lvlm(
        "llava", n_kv_heads=n_kv_heads, attn_implementation="eager", n_layers=n_layers
    )


def oracle_of(settings: eah.EAH, encoding) -> OracleEAH:
    token = untouched(4).config.image_token_id
    image_mask = encoding["input_ids"] == token
    n_items = len(image_mask)
    recipients = None
    if settings.recipients != "all":
        recipients = torch.zeros(n_items, 4, dtype=torch.bool)
        recipients[:, list(settings.recipients)] = True
    return OracleEAH(
        image_mask=image_mask,
        token_mask=encoding["attention_mask"].bool(),
        layers=settings.layers,
        definition=settings.definition,
        beta=settings.beta,
        gamma=settings.gamma,
        donor=settings.donor,
        recipients=recipients,
        steps=settings.steps,
        official=settings.items == "first",
        # The permutation is ours to draw; what it does is the oracle's to say.
        priority=column_priority(image_mask, layer_seed(settings, 1)),
    )


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_patched_forward_equals_the_slow_oracle(name, attention, n_kv_heads):
    settings = SETTINGS[name]
    model = wrapped(n_kv_heads, attention)
    encoding = model.encode(IMAGES, PROMPTS)
    oracle = oracle_of(settings, encoding)
    expected = oracle_logits(untouched(n_kv_heads), encoding, edit_pattern=oracle)

    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        patch = eah.intervene(model, settings)
        logits = model.output.logits.save()

    real = encoding["attention_mask"].bool()
    scale = expected.logits[real].abs().max()
    difference = (logits - expected.logits)[real].abs().max()
    assert difference <= 1e-4 * scale
    for layer in settings.layers:
        if settings.donor in ("mean", "uniform"):
            continue
        assert patch[layer].donors.tolist() == oracle.donors[layer].tolist()
        if patch[layer].density is not None:
            found = patch[layer].scores.scores.double()
            torch.testing.assert_close(
                found, oracle.scores[layer], rtol=1e-4, atol=1e-7
            )
            torch.testing.assert_close(
                patch[layer].density.double(), oracle.densities[layer]
            )


@pytest.mark.parametrize("name", ["default", "paper", "uniform", "some recipients"])
def test_the_settings_above_change_the_logits(name):
    """Otherwise the comparison with the oracle would be of nothing with nothing."""
    model = wrapped(2, "sdpa")
    encoding = model.encode(IMAGES, PROMPTS)
    plain = oracle_logits(untouched(2), encoding).logits
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        eah.intervene(model, SETTINGS[name])
        logits = model.output.logits.save()
    assert (logits - plain).abs().max() > 1e-2 * plain.abs().max()


def test_donors_differ_between_items_and_settings():
    """The oracle tests would be weak if every item had the same donor."""
    model = wrapped(4, "sdpa")
    found = set()
    for settings in (SETTINGS["default"], SETTINGS["paper, high threshold"]):
        with torch.no_grad(), model.trace(IMAGES, PROMPTS):
            patch = eah.intervene(model, settings)
        found |= set(patch.donors.tolist())
    assert len(found) > 1


@pytest.mark.parametrize("steps", ["prefill", "all"])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("donor", ["densest", "uniform"])
def test_generation_under_an_edit_equals_the_slow_oracle(steps, n_kv_heads, donor):
    settings = eah.EAH(steps=steps, donor=donor)
    model = wrapped(n_kv_heads, "sdpa")
    encoding = model.encode(IMAGES, PROMPTS)
    expected = oracle_generate(
        untouched(n_kv_heads),
        encoding,
        edit_pattern=oracle_of(settings, encoding),
        max_new_tokens=6,
    )
    patched = eah.edit(model, settings)
    ids = patched.generate(**encoding, max_new_tokens=6, do_sample=False)
    assert ids.tolist() == expected.tolist()


def test_prefill_and_all_steps_generate_different_text():
    """Otherwise the generation test could not tell them apart."""
    model = wrapped(4, "sdpa")
    encoding = model.encode(IMAGES, PROMPTS)
    texts = {
        steps: eah.edit(model, eah.EAH(steps=steps))
        .generate(**encoding, max_new_tokens=12, do_sample=False)
        .tolist()
        for steps in ("prefill", "all")
    }
    assert texts["prefill"] != texts["all"]


def test_a_loop_in_generate_equals_an_edit_of_every_step():
    settings = eah.EAH(steps="all")
    model = wrapped(2, "sdpa")
    encoding = model.encode(IMAGES, PROMPTS)
    edited = eah.edit(model, settings).generate(
        **encoding, max_new_tokens=5, min_new_tokens=5, do_sample=False
    )
    with model.generate(
        IMAGES, PROMPTS, max_new_tokens=5, min_new_tokens=5, do_sample=False
    ) as tracer:
        for _ in tracer.iter[:5]:
            eah.intervene(model, settings)
        ids = tracer.result.save()
    assert ids.tolist() == edited.tolist()


def test_all_steps_without_a_loop_is_refused_in_generate():
    model = wrapped(2, "sdpa")
    with (
        pytest.raises(eah.EAHError, match=r"patched 1 of 5 forward passes.*edit"),
        model.generate(
            IMAGES[0], "what ?", max_new_tokens=5, min_new_tokens=5, do_sample=False
        ),
    ):
        eah.intervene(model, eah.EAH(steps="all"))


def test_sink_map_equals_the_slow_oracle_in_every_layer():
    model = wrapped(2, "sdpa")
    encoding = model.encode(IMAGES, PROMPTS)
    run = oracle_logits(untouched(2), encoding)
    for settings in (eah.EAH(), eah.EAH.paper(), eah.EAH.official()):
        sinks = eah.score_sinks(model, IMAGES, PROMPTS, definition=settings.definition)
        assert sinks.layers == (0, 1, 2)
        for layer, pattern in run.patterns.items():
            oracle = oracle_of(settings, encoding)
            oracle.layers = (layer,)
            oracle(layer, pattern, run.visible[layer])
            torch.testing.assert_close(
                sinks.density[:, layer].double(), oracle.densities[layer]
            )
