"""LLaVA-shaped random models, and twins of them that share every weight.

A twin is a second tree of modules around the same tensors. nnsight instruments modules,
not weights, so a twin that nnsight never saw is really plain.
"""

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

FIRST_IMAGE_POSITION = 35
"""Position of the first image token in a LLaVA-1.5 prompt."""
TOKENS_PER_IMAGE = 576
"""(336 / 14) squared: what one picture takes."""
QUERY_KEY_GAIN = 1.7
"""Queries and keys are this much larger than unit variance, so that heads differ."""


@dataclass(frozen=True)
class Shape:
    """Size of a decoder; 32 heads in all of them, as in LLaVA-1.5-7B."""

    d_model: int
    d_mlp: int
    vocab: int = 32064
    n_heads: int = 32


SHAPES = {
    "tiny": Shape(d_model=256, d_mlp=512, vocab=1064),
    "small": Shape(d_model=1024, d_mlp=2752),
    "7b": Shape(d_model=4096, d_mlp=11008),
}


@functools.lru_cache(maxsize=1)
def build_model(
    shape: Shape, *, n_layers: int, dtype: torch.dtype, device: str, seed: int = 0
) -> PreTrainedModel:
    """Build a LLaVA of the given width with random weights, for SDPA attention.

    The vision tower is tiny (2 layers, 64 wide) but cuts 336 x 336 pixels into the real
    576 tokens; its time is part of every variant alike. The last model is kept, so that
    a run of several prompts holds one set of weights; use twins and leave it alone.

    Args:
        shape: Width of the decoder.
        n_layers: Decoder layers.
        dtype: Type of the weights.
        device: Where they are made.
        seed: Seed of the weights.

    Returns:
        The model, in evaluation mode.
    """
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            hidden_size=shape.d_model,
            intermediate_size=shape.d_mlp,
            num_hidden_layers=n_layers,
            num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.n_heads,
            vocab_size=shape.vocab,
            max_position_embeddings=4096,
        ),
        image_token_id=shape.vocab - 64,
        image_seq_length=TOKENS_PER_IMAGE,
        dtype=dtype,
    )
    with torch.device(device), no_init_weights():
        model = LlavaForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    _fill_weights(model, seed=seed)
    return model.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def _fill_weights(model: nn.Module, *, seed: int) -> None:
    """Draw weights that keep the variance of activations; norms keep theirs at one."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(float(name.endswith("weight")))
        elif parameter.ndim < 2:
            parameter.zero_()
        elif "embed_tokens" in name:
            parameter.normal_(generator=generator)
        else:
            gain = QUERY_KEY_GAIN if "q_proj" in name or "k_proj" in name else 1.0
            std = gain / math.sqrt(parameter[0].numel())
            parameter.normal_(std=std, generator=generator)


def twin(model: PreTrainedModel, *, n_layers: int | None = None) -> PreTrainedModel:
    """Copy the modules of a model that nnsight has not seen, and share its weights.

    Args:
        model: The model.
        n_layers: Keep only the first layers; all of them when None.

    Returns:
        A model that computes the same and owns no tensor of its own.
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    copied: PreTrainedModel = copy.deepcopy(model, {id(t): t for t in tensors})
    if n_layers is not None:
        decoder: Any = copied.get_decoder()
        decoder.layers = decoder.layers[:n_layers]
        decoder.config.num_hidden_layers = n_layers
    return copied


def build_inputs(
    model: PreTrainedModel, *, batch: int, n_tokens: int, seed: int = 0
) -> dict[str, Tensor]:
    """Make a prompt of random words around as many whole pictures as fit.

    The first picture starts at position 35, as in LLaVA-1.5, and pictures stand side by
    side: 624 tokens hold one picture, 2,928 hold five (as many image tokens as
    LLaVA-NeXT has in its base view and four crops).

    Args:
        model: The model that will read it, for device and dtype.
        batch: Number of equal-length rows.
        n_tokens: Length of the prompt.
        seed: Seed of words and pixels.

    Returns:
        `input_ids`, `attention_mask` and `pixel_values`.
    """
    n_images = (n_tokens - FIRST_IMAGE_POSITION) // TOKENS_PER_IMAGE
    generator = torch.Generator().manual_seed(seed)
    image_token: int = model.config.image_token_id
    ids = torch.randint(3, image_token, (batch, n_tokens), generator=generator)
    stop = FIRST_IMAGE_POSITION + n_images * TOKENS_PER_IMAGE
    ids[:, FIRST_IMAGE_POSITION:stop] = image_token
    pixels = torch.randn(batch * n_images, 3, 336, 336, generator=generator)
    return {
        "input_ids": ids.to(model.device),
        "attention_mask": torch.ones_like(ids).to(model.device),
        "pixel_values": pixels.to(model.device, model.dtype),
    }
