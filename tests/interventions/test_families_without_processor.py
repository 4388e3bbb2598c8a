"""EAH equals the slow oracle on families whose inputs come ready-made."""

import pytest
import torch

import eah_interp as eah
from eah_interp.lvlm.spans import image_mask, image_token_id
from eah_interp.testing import FAMILIES, random_image, tiny_inputs, tiny_lvlm
from tests.oracle_forward import OracleEAH, oracle_logits

# nnsight renames the Q-Former's submodules called `output`, none of which is hooked
pytestmark = pytest.mark.filterwarnings(
    "ignore:Module 'model.qformer.*has a submodule named 'output':UserWarning"
)

IMAGES = [[random_image(0)], [random_image(1, width=48, height=32)]]
QUESTIONS = [" what ?", " is there a cat near the boat ?"]
EAGER_ONLY = ("paligemma2", "got_ocr2", "inkling2")
"""transformers refuses SDPA for these decoders, and for GOT-OCR2's vision tower."""

DRIVEN = [
    (name, attention)
    for name, family in FAMILIES.items()
    if not family.refused and family.encode is not None
    for attention in ("eager", "sdpa")
    if attention == "eager" or name not in EAGER_ONLY
]
OFF = torch.finfo(torch.float32).min
"""The logit with which Chameleon switches its picture codes off."""


@pytest.mark.parametrize(("family", "attention"), DRIVEN)
def test_a_patched_forward_on_ready_made_inputs_equals_the_slow_oracle(
    family, attention
):
    settings = {"n_kv_heads": 2, "attn_implementation": attention}
    model = eah.wrap(tiny_lvlm(family, **settings))
    prompts = [FAMILIES[family].placeholder + question for question in QUESTIONS]
    encoding = tiny_inputs(family, images=IMAGES, prompts=prompts)
    untouched = tiny_lvlm(family, n_kv_heads=2, attn_implementation="eager")
    oracle = OracleEAH(
        image_mask=image_mask(encoding["input_ids"], image_token_id(untouched.config)),
        token_mask=encoding["attention_mask"].bool(),
    )
    expected = oracle_logits(untouched, encoding, edit_pattern=oracle).logits
    plain = oracle_logits(untouched, encoding).logits

    with torch.no_grad(), model.trace(**encoding):
        patch = eah.intervene(model, eah.EAH())
        logits = model.output.logits.save()

    assert model.verified
    assert patch.donors.tolist() == oracle.donors[1].tolist()
    torch.testing.assert_close(patch.density.double(), oracle.densities[1])
    real = encoding["attention_mask"].bool()[..., None] & (expected > OFF)
    size = expected[real].abs().max()
    assert (logits - expected)[real].abs().max() <= 1e-4 * size
    moved = (expected - plain)[real].abs().max()
    assert moved > 1e-3 * size, "the patch does nothing here: a weak test"


@pytest.mark.parametrize("family", EAGER_ONLY)
def test_families_driven_in_eager_attention_alone_refuse_sdpa(family):
    with pytest.raises(ValueError, match="does not support an attention impl"):
        tiny_lvlm(family, attn_implementation="sdpa")


@pytest.mark.parametrize("family", ["instructblip", "blip_2"])
def test_a_forward_that_insists_on_a_picture_is_verified_on_a_blank_one(family):
    assert eah.wrap(tiny_lvlm(family)).verified
