"""VAR finds sinks and heads, and moves attention, as the slow oracle does."""

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.interventions import SINK_DIMS
from tests.interventions.other_methods import (
    BACKENDS,
    GREEDY,
    IMAGES,
    NEW,
    PROMPTS,
    OracleVAR,
    assert_close,
    logits_of,
    make,
    masks_of,
    wrapped,
)
from tests.oracle_forward import oracle_generate, oracle_logits

# A random model has no massive activations: thresholds that split its tokens.
SETTINGS = {
    "some heads": eah.VAR(sink_dims=(0, 5), tau=1.5, rho=0.7, layers=":"),
    "all but the last layer": eah.VAR(sink_dims=(0, 5), tau=1.5, rho=0.3),
    "much of little": eah.VAR(sink_dims=(3,), tau=1.0, share=1.0, min_image=0.5),
    "image sinks or none": eah.VAR(
        sink_dims=(3,), tau=2.2, rho=0.3, layers=":", lone_sinks="kept"
    ),
}


@pytest.fixture(scope="module")
def model():
    return wrapped("sdpa", 2)


def oracle_of(settings, hf_model, encoding):
    image, token = masks_of(hf_model, encoding)
    layers = {":": (0, 1, 2), ":-1": (0, 1)}[settings.layers]
    return OracleVAR(image, token, layers, hf_model=hf_model, var=settings)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("attention", "n_kv_heads"), BACKENDS)
def test_a_redistributed_forward_equals_the_slow_oracle(name, attention, n_kv_heads):
    settings = SETTINGS[name]
    model, untouched = wrapped(attention, n_kv_heads), make("eager", n_kv_heads)
    encoding = model.encode(IMAGES, PROMPTS)
    with oracle_of(settings, untouched, encoding).watching() as oracle:
        expected = oracle_logits(untouched, encoding, edit_pattern=oracle).logits
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        patch = eah.intervene(model, settings)
        found = model.output.logits.save()
    real = encoding["attention_mask"].bool()
    assert_close(found[real], expected[real])
    for layer in patch.layers:
        for item, sinks in enumerate(patch.learned[layer]):
            assert sinks.nonzero().flatten().tolist() == oracle.sinks[layer, item]
    n_rows = sum(len(prompt.split()) for prompt in PROMPTS) * 4 * len(patch.layers)
    assert oracle.changed > 0, "no head was image-centric"
    assert oracle.changed < 4 * n_rows
    assert (found - logits_of(model, None))[real].abs().max() > 1e-2


@pytest.mark.parametrize("name", ["some heads", "much of little"])
def test_a_generation_under_an_edit_equals_the_oracle(model, name):
    settings, untouched = SETTINGS[name], make("eager", 2)
    encoding = model.encode(IMAGES, PROMPTS)
    with oracle_of(settings, untouched, encoding).watching() as oracle:
        expected = oracle_generate(untouched, encoding, edit_pattern=oracle, **GREEDY)
    found = eah.edit(model, settings).generate(**encoding, **NEW)
    assert found.tolist() == expected.tolist()


def test_an_item_is_patched_as_if_it_were_alone(model):
    settings = SETTINGS["some heads"]
    together = logits_of(model, settings)
    for place, (image, prompt) in enumerate(zip(IMAGES, PROMPTS, strict=True)):
        alone = logits_of(model, settings, [image], [prompt])[0]
        real = model.encode(IMAGES, PROMPTS)["attention_mask"][place].bool()
        assert_close(together[place][real], alone)


def test_no_sinks_change_nothing_much(model):
    found = logits_of(model, eah.VAR(sink_dims=(0,), tau=1e6, layers=":"))
    assert_close(found, logits_of(model, None))


def test_a_layer_that_has_begun_is_refused(model):
    def come_late():
        with model.trace(IMAGES[0], PROMPTS[0]):
            model.model.language_model.layers[1].input_layernorm.output.save()
            eah.intervene(model, eah.VAR(sink_dims=(0,), layers=(1,)))

    with pytest.raises(UnsupportedError, match="layer 1 has already begun"):
        come_late()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sink_dims": ()}, "sink_dims must be indices"),
        ({"rho": 1.5}, "rho must be a number from 0 to 1"),
        ({"share": -1}, "share must be"),
        ({"tau": float("inf")}, "tau must be"),
        ({"lone_sinks": "lost"}, "lone_sinks must be one of give, kept"),
    ],
)
def test_impossible_settings_are_refused(as_users_run_it, values, message):
    with pytest.raises(SettingsError, match=message):
        eah.VAR(**{"sink_dims": (0,), **values})


def test_settings_are_those_of_the_paper_and_of_its_release():
    paper = eah.VAR.paper("llama-2-7b", task="general")
    assert (paper.sink_dims, paper.tau, paper.rho) == ((1415, 2533), 20.0, 0.8)
    assert (paper.share, paper.min_image, paper.layers) == (0.6, 0.2, ":-1")
    official = eah.VAR.official()
    assert (official.share, official.rho, official.layers) == (0.4, 0.5, "2:")
    assert eah.VAR.from_dict(official.to_dict()) == official
    with pytest.raises(SettingsError, match="no settings for 'gpt-2'"):
        eah.VAR.paper("gpt-2")
    assert set(SINK_DIMS) >= {"llama-2-7b", "llama-2-13b"}


def test_sink_dimensions_of_another_model_are_refused(model):
    with pytest.raises(SettingsError, match="do not exist: the model's stream"):
        eah.edit(model, eah.VAR.paper("llama-2-7b"))
