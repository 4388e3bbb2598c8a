"""One mechanism for every family: EAH equals the slow oracle on each of them."""

import pytest
import torch

import eah_interp as eah
from eah_interp.lvlm.spans import image_mask, image_token_id
from eah_interp.testing import FAMILIES, random_image, tiny_lvlm, tiny_processor
from tests.oracle_forward import OracleEAH, oracle_logits

IMAGES = [random_image(0), random_image(1, width=48, height=32)]
PROMPTS = ["what ?", "is there a cat near the boat ?"]
EAGER_ONLY = ("internvl_gpt_oss",)
"""transformers refuses SDPA for gpt-oss."""
DRIVEN = [
    (name, attention)
    for name, family in FAMILIES.items()
    if not family.refused and not family.no_processor
    for attention in ("eager", "sdpa")
    if attention == "eager" or name not in EAGER_ONLY
]


@pytest.mark.parametrize(("family", "attention"), DRIVEN)
def test_a_patched_forward_equals_the_slow_oracle(family, attention):
    settings = {"n_kv_heads": 2, "attn_implementation": attention}
    model = eah.wrap(tiny_lvlm(family, **settings), tiny_processor(family))
    encoding = model.encode(IMAGES, PROMPTS)
    untouched = tiny_lvlm(family, n_kv_heads=2, attn_implementation="eager")
    oracle = OracleEAH(
        image_mask=image_mask(encoding["input_ids"], image_token_id(untouched.config)),
        token_mask=encoding["attention_mask"].bool(),
    )
    expected = oracle_logits(untouched, encoding, edit_pattern=oracle)
    plain = oracle_logits(untouched, encoding)

    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        patch = eah.intervene(model, eah.EAH())
        logits = model.output.logits.save()

    assert patch.donors.tolist() == oracle.donors[1].tolist()
    torch.testing.assert_close(patch.density.double(), oracle.densities[1])
    real = encoding["attention_mask"].bool()
    size = expected.logits[real].abs().max()
    assert (logits - expected.logits)[real].abs().max() <= 1e-4 * size
    moved = (expected.logits - plain.logits)[real].abs().max()
    assert moved > 1e-3 * size, "the patch does nothing here: a weak test"


@pytest.mark.parametrize("family", EAGER_ONLY)
def test_families_driven_in_eager_attention_alone_refuse_sdpa(family):
    with pytest.raises(ValueError, match="does not support an attention impl"):
        tiny_lvlm(family, attn_implementation="sdpa")
