"""One mechanism for every family: EAH equals the slow oracle on each of them."""

import pytest
import torch

import eah_interp as eah
from eah_interp.lvlm.spans import image_mask, image_token_id
from eah_interp.testing import FAMILIES, random_image, tiny_lvlm, tiny_processor
from tests.oracle_forward import OracleEAH, oracle_logits

IMAGES = [random_image(0), random_image(1, width=48, height=32)]
PROMPTS = ["what ?", "is there a cat near the boat ?"]
DRIVEN = [
    name
    for name, family in FAMILIES.items()
    if not family.refused and not family.no_processor
]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", DRIVEN)
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
