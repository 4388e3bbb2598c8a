"""`EAH.official()` does in a model what the released file does in its own."""

import pytest
import torch

import eah_interp as eah
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.oracle_forward import OracleEAH, oracle_generate, oracle_logits

IMAGES = [random_image(3), random_image(4)]
PROMPTS = ["what ?", "is there a dog near the tree ?"]


@pytest.fixture(scope="module")
def deep():
    model = tiny_lvlm("llava", n_layers=17, n_kv_heads=2)
    return eah.wrap(model, tiny_processor("llava"))


@pytest.fixture(scope="module")
def untouched():
    return tiny_lvlm("llava", n_layers=17, n_kv_heads=2, attn_implementation="eager")


def oracle_for(encoding, token, **settings):
    return OracleEAH(
        image_mask=encoding["input_ids"] == token,
        token_mask=encoding["attention_mask"].bool(),
        definition="official",
        official=True,
        **settings,
    )


@pytest.mark.parametrize("beta", [0.0008, 0.03, 0.05, 0.08])
def test_it_patches_decoder_index_15_and_no_other_layer(deep, untouched, beta):
    """Audit line 1: `if i == 15`, though the papers say layer two."""
    encoding = deep.encode(IMAGES, PROMPTS)
    oracle = oracle_for(
        encoding, untouched.config.image_token_id, layers=(15,), beta=beta
    )
    expected = oracle_logits(untouched, encoding, edit_pattern=oracle)
    with torch.no_grad(), deep.trace(IMAGES, PROMPTS):
        patch = eah.intervene(deep, eah.EAH.official(beta=beta))
        logits = deep.output.logits.save()
    assert [layer.layer for layer in patch.layers] == [15]
    assert patch.donors.tolist() == oracle.donors[15].tolist()
    real = encoding["attention_mask"].bool()
    size = expected.logits[real].abs().max()
    assert (logits - expected.logits)[real].abs().max() <= 1e-4 * size


def test_the_thresholds_above_patch_something(deep):
    donors = set()
    for beta in (0.03, 0.05, 0.08):
        with torch.no_grad(), deep.trace(IMAGES, PROMPTS):
            patch = eah.intervene(deep, eah.EAH.official(beta=beta))
        donors.add(int(patch.donors[0]))
    assert donors - {-1}


def test_it_patches_the_prefill_only_and_the_first_beam_only(deep, untouched):
    """Audit lines 5 and 7, under cached greedy generation."""
    encoding = deep.encode(IMAGES, PROMPTS)
    settings = eah.EAH.official(layers=(1,), beta=0.05)
    oracle = oracle_for(
        encoding, untouched.config.image_token_id, layers=(1,), beta=settings.beta
    )
    expected = oracle_generate(
        untouched, encoding, edit_pattern=oracle, max_new_tokens=5
    )
    patched = eah.edit(deep, settings)
    ids = patched.generate(**encoding, max_new_tokens=5, do_sample=False)
    assert ids.tolist() == expected.tolist()
    assert oracle.donors[1].tolist()[1] == -1


@pytest.mark.parametrize(("donor", "steps"), [("mean", "all"), ("uniform", "prefill")])
def test_a_control_of_the_first_item_generates_the_others_as_they_are(
    deep, donor, steps
):
    encoding = deep.encode(IMAGES, PROMPTS)
    written = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}

    def generate(**changes):
        patch = eah.EAH(layers=(1, 2, 3), donor=donor, steps=steps, **changes)
        return eah.edit(deep, patch).generate(**encoding, **written).tolist()

    plain = deep.generate(**encoding, **written).tolist()
    both = generate()
    assert plain[1] != both[1]  # else the second item were as it is anyway
    assert generate(items="first") == [both[0], plain[1]]


def test_our_presets_do_not_have_its_accidents():
    ours, paper = eah.EAH(), eah.EAH.paper()
    for settings in (ours, paper):
        assert settings.layers == (1,)
        assert settings.items == "all"
        assert settings.head_0 == "eligible"
    released = eah.EAH.official()
    assert (released.layers, released.items, released.head_0) == (
        (15,),
        "first",
        "never",
    )
