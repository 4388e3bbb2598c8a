"""Ways of generating that a patch does not depend on: caches, beams, draws, compiling.

Each is compared with the slow oracle in plain transformers, which generates with the
usual cache, and as many beams or the same draws.
"""

import pytest
import torch

import eah_interp as eah
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.oracle_forward import oracle_generate, replaced_patterns
from tests.tiny_families import (
    build_oracle,
    encode,
    ignore_renamed,
    share_model,
    share_plain,
)

pytestmark = ignore_renamed

FAMILIES = ("llava", "qwen2_vl", "gemma3")
NEW = {"max_new_tokens": 4, "min_new_tokens": 4}
CACHES = {
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "none": {"use_cache": False},
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_patched_generation_is_the_oracle_s_with_every_cache(family, cache):
    encoding = encode(family)
    oracle = build_oracle(family, encoding, steps="all")
    expected = oracle_generate(
        share_plain(family), encoding, edit_pattern=oracle, **NEW
    )
    edited = eah.edit(share_model(family), eah.EAH(steps="all"))
    found = edited.generate(**encoding, do_sample=False, **NEW, **CACHES[cache])
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_under_a_patch_are_the_oracle_s(family):
    encoding, n_beams = encode(family), 3
    # Beams are copies of the prompt's rows from the prefill on.
    rows = {
        name: encoding[name].repeat_interleave(n_beams, 0)
        for name in ("input_ids", "attention_mask")
    }
    asked = {"num_beams": n_beams, "num_return_sequences": 2, **NEW}
    oracle = build_oracle(family, rows, steps="prefill")
    expected = oracle_generate(
        share_plain(family), encoding, edit_pattern=oracle, **asked
    )
    edited = eah.edit(share_model(family), eah.EAH(steps="prefill"))
    found = edited.generate(**encoding, do_sample=False, **asked)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_are_drawn_under_a_patch_are_the_oracle_s(family):
    encoding = encode(family)
    asked = {"do_sample": True, "temperature": 0.7, "top_k": 20, **NEW}
    edited = eah.edit(share_model(family), eah.EAH(steps="all"))
    drawn = []
    for seed in range(3):
        oracle = build_oracle(family, encoding, steps="all")
        plain = share_plain(family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with replaced_patterns(plain, oracle):
                expected = plain.generate(**encoding, **asked)
            torch.manual_seed(seed)
            found = edited.generate(**encoding, **asked)
        assert found.tolist() == expected.tolist()
        drawn.append(str(found.tolist()))
    assert len(set(drawn)) > 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_a_compiled_model_is_patched_as_the_model_is():
    """Without code generation: what is asked is that graphs leave the patch in."""
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    encoding = model.encode(random_image(), "what ?")
    edited = eah.edit(model, eah.EAH(layers=(1,), steps="all"))
    expected = edited.generate(**encoding, do_sample=False, **NEW)
    plain = model.generate(**encoding, do_sample=False, **NEW)
    assert not torch.equal(plain, expected)
    model._module.compile(backend="eager")
    assert torch.equal(edited.generate(**encoding, do_sample=False, **NEW), expected)
    assert torch.equal(model.generate(**encoding, do_sample=False, **NEW), plain)
