"""What users call: tiny models, tokenizers, processors, folders, inputs and images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import nn
from transformers import (
    BatchFeature,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from eah_interp.arguments import by_name
from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.testing._facts import Family, Size, call_processor
from eah_interp.testing._families import FAMILIES
from eah_interp.testing._tokenizer import build_tokenizer


@by_name
def tiny_lvlm(
    family: str = "llava",
    *,
    n_layers: int = 3,
    n_heads: int = 4,
    n_kv_heads: int | None = None,
    d_head: int = 8,
    seed: int = 0,
    attn_implementation: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Build a tiny random model of a family, from its real config and model classes.

    The same arguments give the same weights; the global random state is untouched.
    Heads attend differently and logits have a size of 1 to 10, so that a patch that
    does nothing, or to the wrong head, is seen.

    Args:
        family: A name in `FAMILIES`, refused families included.
        n_layers: Decoder layers.
        n_heads: Query heads of each decoder layer.
        n_kv_heads: Key/value heads; as many as query heads when None.
        d_head: Width of a head; the model is `n_heads * d_head` wide.
        seed: Seed of the weights.
        attn_implementation: "eager", "sdpa"...; the model's default when None.
        dtype: Type of the weights.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        SettingsError: The family is unknown, or the heads cannot be grouped.

    Example:
        >>> model = tiny_lvlm("llava", n_layers=2, n_kv_heads=2)
        >>> model.config.text_config.num_key_value_heads
        2
    """
    facts = _find(family)
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    if min(n_layers, n_heads, n_kv_heads, d_head) < 1 or n_heads % n_kv_heads:
        raise SettingsError(
            "expected n_layers and d_head of at least 1 and n_heads a multiple of "
            f"n_kv_heads, got n_layers={n_layers}, d_head={d_head}, n_heads={n_heads}, "
            f"n_kv_heads={n_kv_heads}; change one of them"
        )
    size = Size(n_layers, n_heads, n_kv_heads, d_head)
    config = facts.build_config(size, tiny_tokenizer(family))
    model_class = getattr(hf, facts.model)
    options = (
        {"attn_implementation": attn_implementation} if attn_implementation else {}
    )
    # the model's own initialisation fills what `scale_weights` keeps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class._from_config(config, **options)
    scale_weights(model, seed=seed)
    model.eval()
    # a needless cast would make Llama 4's complex rotations real
    return model if model.dtype == dtype else model.to(dtype)


@by_name
def tiny_tokenizer(family: str = "llava") -> PreTrainedTokenizerFast:
    """Build the family's tokenizer: some 200 words and its special tokens.

    Example:
        >>> tiny_tokenizer("llava").tokenize("<image> Is there a boat?")
        ['<image>', 'is', 'there', 'a', 'boat', '?']
    """
    facts = _find(family)
    return build_tokenizer(facts.specials, named=facts.named, add_bos=facts.add_bos)


@by_name
def tiny_processor(family: str = "llava") -> ProcessorMixin:
    """Build the family's real processor around a tiny tokenizer, left-padding.

    Image processors are the PIL versions, so torchvision is not needed.

    Raises:
        SettingsError: The family is unknown.
        UnsupportedError: Its processor cannot be built offline; the message says why.

    Example:
        >>> processor = tiny_processor("llava")
        >>> encoding = processor(
        ...     images=random_image(), text="<image> a boat", return_tensors="pt"
        ... )
        >>> encoding["input_ids"].shape  # <s>, 16 image tokens, two words
        torch.Size([1, 19])
    """
    facts = _find(family)
    if facts.build_processor is None:
        raise UnsupportedError(
            f"expected a processor for {family!r}, got none: {facts.no_processor}; "
            f"use a family that has one: {', '.join(_with_processor())}"
        )
    return facts.build_processor(tiny_tokenizer(family))


@by_name
def tiny_folder(path: str | Path, family: str = "llava", **changes: Any) -> Path:
    """Save a tiny model and its processor where `from_pretrained(path)` finds them.

    Args:
        path: Folder to write into; made where it is missing.
        family: A name in `FAMILIES`. Without a processor, the tokenizer is saved.
        **changes: What `tiny_lvlm` takes.

    Returns:
        The folder.
    """
    folder = Path(path)
    tiny_lvlm(family, **changes).save_pretrained(folder)
    if _find(family).build_processor is None:
        tiny_tokenizer(family).save_pretrained(folder)
    else:
        tiny_processor(family).save_pretrained(folder)
    return folder


@by_name
def tiny_inputs(
    family: str = "llava",
    *,
    images: Sequence[Sequence[Image.Image]] | None = None,
    prompts: Sequence[str] | None = None,
) -> BatchFeature:
    """Encode a batch for a tiny model, with or without a real processor.

    Args:
        family: A supported family of `FAMILIES`.
        images: The images of each prompt; one random image each when None.
        prompts: One text per row, holding the family's `placeholder` once for each of
            its images; images followed by a question when None.

    Returns:
        A left-padded batch of model inputs, as tensors.

    Raises:
        SettingsError: The family is unknown.
        UnsupportedError: The family is one that this package refuses.

    Example:
        >>> inputs = tiny_inputs("mistral3", images=[[random_image(width=64)]])
        >>> inputs["input_ids"].eq(4).sum()  # 2 x 4 image tokens
        tensor(8)
    """
    facts = _find(family)
    if facts.refused:
        raise UnsupportedError(
            f"expected a supported family, got {family!r}: {facts.refused}; "
            "choose one whose `refused` is empty"
        )
    if images is None:
        images = [[random_image(i)] for i in range(len(prompts or [""]))]
    if prompts is None:
        question = " is there a boat in the image ?"
        prompts = [facts.placeholder * len(row) + question for row in images]
    if facts.encode is not None:
        return facts.encode(tiny_tokenizer(family), images, prompts)
    return call_processor(tiny_processor(family), images, prompts)


@by_name
def random_image(seed: int = 0, *, width: int = 32, height: int = 32) -> Image.Image:
    """Draw an image of 8 x 8 randomly coloured cells, the same for the same seed.

    Example:
        >>> random_image(3, width=40, height=24).size
        (40, 24)
    """
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)


def _find(family: str) -> Family:
    if family not in FAMILIES:
        raise SettingsError(
            f"expected a family of eah_interp.testing.FAMILIES, got {family!r}; "
            f"choose from {', '.join(FAMILIES)}"
        )
    return FAMILIES[family]


def _with_processor() -> list[str]:
    return [name for name, facts in FAMILIES.items() if facts.build_processor]


# ---- Random weights under which attention heads differ and logits are not all alike.


QUERY_KEY_GAIN = 1.7

LOGIT_SCALE = 3.0

_QUERY_KEY = ("q_proj", "k_proj", "qkv_proj", "qkv", "q_b_proj", "kv_b_proj")


@torch.no_grad()
def scale_weights(model: PreTrainedModel, *, seed: int) -> None:
    """Refill the weights in place so that activations, scores and logits have size.

    A Hugging Face initialisation (standard deviation 0.02) of a narrow model gives
    attention that is even and the same in every head, and logits that are nearly zero,
    which would let a wrong patch pass a test. Here a linear map keeps the variance of
    its input, queries and keys are `QUERY_KEY_GAIN` times larger, and logits have a
    standard deviation near `LOGIT_SCALE` (near 1 where the unembedding is tied to the
    embedding). Norm weights keep their initial values.
    """
    generator = torch.Generator().manual_seed(seed)
    unembedding = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    tied = unembedding is not None and unembedding.weight is embedding.weight
    seen: set[int] = set()
    for name, module in model.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.is_floating_point():
                continue
            seen.add(id(parameter))
            std = _choose_std(name, module, part, parameter)
            if parameter is embedding.weight:
                # a tied, strong embedding would only repeat the last token
                std = 1.0 / math.sqrt(parameter.shape[1]) if tied else 1.0
            elif unembedding is not None and parameter is unembedding.weight:
                std = LOGIT_SCALE / math.sqrt(parameter.shape[1])
            if std is not None:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(std * noise)


def _choose_std(
    name: str, module: nn.Module, part: str, parameter: nn.Parameter
) -> float | None:
    """Return the standard deviation to draw a parameter with, None to keep it."""
    if isinstance(module, nn.Embedding):
        return 1.0
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        if part == "bias":
            return 0.1
        gain = QUERY_KEY_GAIN if name.rpartition(".")[2] in _QUERY_KEY else 1.0
        return gain / math.sqrt(parameter[0].numel())
    if part == "sinks":  # one logit per head: as wide as the attention logits
        return QUERY_KEY_GAIN
    if parameter.ndim > 1:  # position tables, expert weights
        return 1.0 / math.sqrt(parameter.shape[-1])
    return None
