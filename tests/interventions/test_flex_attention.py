"""FlexAttention: the same patch, wherever transformers has it for the decoder.

It runs on a CPU too. Uncompiled it is exact and quick to start; one test compiles it.
"""

import pytest
import torch

import eah_interp as eah
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.oracle_forward import oracle_logits
from tests.tiny_families import (
    SUPPORTED,
    attention_of,
    build_oracle,
    encode,
    ignore_renamed,
    measure_gap,
    share_plain,
)

FLEX = "flex_attention"
WITHOUT = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "glm46v", "qwen3_5", "aria"),
    *("ernie4_5_vl_moe", "minimax_m3_vl", "inkling2", "kosmos2", "fuyu"),
)
"""Families whose decoder has no FlexAttention in transformers."""
ON_CUDA = ("internvl_gpt_oss",)
"""Learned sinks want a CUDA device there."""
QUICK = ("llava", "gemma3", "gemma4", "llama4", "deepseek_vl")
"""Grouped queries, windows, shared keys, chunks; the others are marked slow."""

FAMILIES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in SUPPORTED
    if name not in (*WITHOUT, *ON_CUDA)
]
PATCHES = {
    "no patch": None,
    "EAH": eah.EAH(layers=(0, 1)),
    "some recipients": eah.EAH(recipients=(0, 1)),
    "uniform": eah.EAH(donor="uniform"),
    "shuffled": eah.EAH(donor="shuffled"),
    "PAI": eah.PAI(layers=(1,)),
    "VAR": eah.VAR(sink_dims=(0, 5), tau=1.5, rho=0.3),
    "knockout": eah.Ablation(heads=("L1H2",), how="knockout"),
}

pytestmark = [
    ignore_renamed,
    # Of what torch's compiler itself still uses, and transformers asks it for.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Its pattern is materialised then, which is what a tiny model may do.
    pytest.mark.filterwarnings(r"ignore:\s*flex_attention called without torch.comp"),
]


@pytest.fixture
def uncompiled():
    with torch.compiler.set_stance("force_eager"):
        yield


def build(family):
    """Build a model whose decoder alone has FlexAttention."""
    model = tiny_lvlm(family, n_kv_heads=2, attn_implementation=attention_of(family))
    decoder = model.config.get_text_config(decoder=True)
    parts = [n for n in model.config.sub_configs if getattr(model.config, n) is decoder]
    model.set_attn_implementation({parts[0]: FLEX} if parts else FLEX)
    assert decoder._attn_implementation == FLEX
    return model


def check_against_oracle(family):
    model, encoding = eah.wrap(build(family)), encode(family)
    oracle = build_oracle(family, encoding)
    run = oracle_logits(share_plain(family), encoding, edit_pattern=oracle)
    with torch.no_grad(), model.trace(**encoding, use_cache=False):
        patch = eah.intervene(model, eah.EAH())
        logits = model.output.logits.save()
    assert patch.donors.tolist() == oracle.donors[1].tolist()
    real = encoding["attention_mask"].bool()
    assert measure_gap(logits[real], run.logits[real]) <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patched_forward_equals_the_slow_oracle(family, uncompiled):
    check_against_oracle(family)


@pytest.mark.slow
def test_a_compiled_patched_forward_equals_the_slow_oracle():
    check_against_oracle("llava")


@pytest.mark.parametrize("family", WITHOUT)
def test_families_without_it_are_refused_by_transformers(family):
    with pytest.raises(ValueError, match="does not support an attention impl"):
        build(family)


@pytest.mark.parametrize("name", PATCHES)
def test_every_intervention_and_generation_is_that_of_eager_attention(name, uncompiled):
    patch, found = PATCHES[name], []
    pictures = [random_image(0), random_image(1)]
    prompts = ["is there a cat ?", "what ?"]
    for attention in ("eager", FLEX):
        plain = tiny_lvlm("llava", n_kv_heads=2, attn_implementation=attention)
        model = eah.wrap(plain, tiny_processor("llava"))
        model = model if patch is None else eah.edit(model, patch)
        encoding = model.encode(pictures, prompts)
        with torch.no_grad(), model.trace(**encoding):
            logits = model.output.logits.save()
        ids = model.generate(**encoding, max_new_tokens=4, min_new_tokens=4)
        found.append((logits[encoding["attention_mask"].bool()], ids))
    (eager, eager_ids), (flex, flex_ids) = found
    torch.testing.assert_close(flex, eager, atol=1e-4, rtol=1e-4)
    assert flex_ids.tolist() == eager_ids.tolist()
