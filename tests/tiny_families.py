"""Every supported family, wrapped and plain, built once for the tests that share it."""

from collections.abc import Sequence
from functools import cache

import pytest
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

import eah_interp as eah
from eah_interp.lvlm.spans import image_mask, image_token_id
from eah_interp.testing import (
    FAMILIES,
    random_image,
    tiny_inputs,
    tiny_lvlm,
    tiny_processor,
)
from tests.oracle_forward import OracleEAH

# nnsight renames the Q-Former's submodules called `output`, none of which is hooked
ignore_renamed = pytest.mark.filterwarnings(
    "ignore:Module 'model.qformer.*has a submodule named 'output':UserWarning"
)

SUPPORTED = [name for name, facts in FAMILIES.items() if not facts.refused]
EAGER = {
    "phi4_multimodal": "its vision tower is causal under SDPA where nothing is padded",
}
"""Families that run in eager attention here though transformers has SDPA for them."""

CORE = (
    *("llava", "llava_next", "qwen2_5_vl", "idefics3", "gemma3", "gemma4", "llama4"),
    *("deepseek_vl", "qwen3_5", "minimax_m3_vl", "inkling2", "internvl_gpt_oss"),
)
"""Families whose attention differs; every other one is like one of them."""


def sweep(families: Sequence[str]) -> list[object]:
    """List families for `parametrize`: those at the core, the others marked slow.

    That EAH is exact is tested on every family in every run. What else is tested on
    all of them is so in `make check-all`.
    """
    return [
        name if name in CORE else pytest.param(name, marks=pytest.mark.slow)
        for name in families
    ]


PICTURES = (random_image(0), random_image(1, width=48))
QUESTIONS = (" what ?", " is there a cat near the boat ?")
OFF = -1e30
"""Below it lie the logits that Chameleon switches off."""


def attention_of(family: str) -> str:
    """Choose SDPA, unless a part of the model has none."""
    parts = share_plain(family).modules()
    models = [part for part in parts if isinstance(part, PreTrainedModel)]
    fit = family not in EAGER and all(model._supports_sdpa for model in models)
    return "sdpa" if fit else "eager"


@cache
def share_model(family: str) -> eah.LVLM:
    """Wrap a model with its processor, if it has one."""
    model = tiny_lvlm(family, n_kv_heads=2, attn_implementation=attention_of(family))
    processed = FAMILIES[family].build_processor is not None
    return eah.wrap(model, tiny_processor(family) if processed else None)


@cache
def share_plain(family: str) -> nn.Module:
    """Build the same weights for the oracle: eager, and never touched by nnsight."""
    return tiny_lvlm(family, n_kv_heads=2, attn_implementation="eager")


def encode(
    family: str,
    pictures: Sequence[Image.Image] = PICTURES,
    questions: Sequence[str] = QUESTIONS,
) -> dict[str, Tensor]:
    """Encode a picture and a question a row: with the real processor, if it has one."""
    if FAMILIES[family].build_processor is not None:
        return dict(share_model(family).encode(list(pictures), list(questions)))
    prompts = [FAMILIES[family].placeholder + question for question in questions]
    return dict(
        tiny_inputs(family, images=[[one] for one in pictures], prompts=prompts)
    )


def build_oracle(family: str, encoding: dict[str, Tensor], **changes) -> OracleEAH:
    """Build the default EAH as an oracle for this encoding."""
    token = image_token_id(share_plain(family).config)
    masks = {
        "image_mask": image_mask(encoding["input_ids"], token),
        "token_mask": encoding["attention_mask"].bool(),
    }
    return OracleEAH(**masks, **changes)


def measure_gap(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference between logits, in units of the largest logit."""
    on = expected > OFF
    return float((found - expected)[on].abs().max() / expected[on].abs().max())
