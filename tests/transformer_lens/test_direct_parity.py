"""Direct logit attribution by head: the same as TransformerLens', from one model.

Left out: families with norms after attention (Gemma 3, GLM-4V). There TransformerLens
multiplies by the output projection and forgets that norm, so its heads do not add up
to the attention's output; ours do (tests/attribution/test_direct.py).
"""

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import Case, attribute_heads
from eah_interp.attribution.readouts import read_tokens
from eah_interp.lvlm.inputs import Encoding
from eah_interp.testing import FAMILIES, tiny_inputs, tiny_lvlm, tiny_processor

pytest.importorskip("transformer_lens", reason="needs eah-interp[lens]")

from eah_interp.transformer_lens import to_bridge

TOKENS = (9, 23)
PLAIN_NORMS = (
    "llava",
    "llava_next",
    "llava_onevision",
    "llava_mistral",
    "idefics3",
    "mistral3",
    "emu3",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("family", PLAIN_NORMS)
def test_heads_have_the_effects_that_transformer_lens_finds(family):
    processor = FAMILIES[family].build_processor and tiny_processor(family)
    model = eah.wrap(
        tiny_lvlm(family, n_kv_heads=2, attn_implementation="eager"), processor
    )
    inputs = Encoding(tiny_inputs(family))
    last = inputs["input_ids"].shape[1] - 1
    targets = [(str(t), 0, last, str(t), [(last, t, 1.0)]) for t in TOKENS]
    found = attribute_heads(model, Case(inputs, None, read_tokens(targets)))
    bridge = to_bridge(model)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        _, cache = bridge.run_with_cache(inputs["input_ids"], **rest)
    stack = cache.stack_head_results(layer=-1, pos_slice=-1)
    for row, token in enumerate(TOKENS):
        theirs = cache.logit_attrs(stack, tokens=token, pos_slice=-1)
        torch.testing.assert_close(
            found.plain.heads[row], theirs.view(3, 4), atol=1e-5, rtol=1e-4
        )
        assert theirs.abs().max() > 0.1
