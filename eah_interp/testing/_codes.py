"""Chameleon and Emu3: pictures are codes of a discrete autoencoder."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers as hf
from transformers import BatchFeature, PreTrainedConfig

from eah_interp.testing._encode import flatten, write_runs
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    text_settings,
)

CODES = 64
_LETTERS = "ABCDEFGHIJ"


def _name_chameleon_code(code: int) -> str:
    """Spell a code as Chameleon's vocabulary does: letters for digits, Z at the end."""
    return "IMGIMG" + "".join(_LETTERS[int(digit)] for digit in str(code)) + "Z"


def _set_autoencoder(**changes: Any) -> dict[str, Any]:
    """Return the settings of an autoencoder with one block a level.

    Codes are numbers, and not vectors: a random codebook of vectors has one code that
    is nearest to everything, which would stand for every picture.
    """
    return {
        "embed_dim": 1,
        "latent_channels": 4,
        "base_channels": 32,  # its group norms have 32 groups
        "num_res_blocks": 1,
        **changes,
    }


def _configure_chameleon(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vq = _set_autoencoder(
        num_embeddings=CODES, resolution=16, channel_multiplier=(1, 1, 1)
    )
    return hf.ChameleonConfig(
        **text_settings(size, tokenizer),
        vq_config=vq,
        vocabulary_map=tokenizer.get_vocab(),
    )


def _encode_chameleon(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what ChameleonProcessor does: a square between a begin and an end token."""
    flat = flatten(images)
    pictures = hf.ChameleonImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="<image>",
        runs=["<racm3:break>" + "<image>" * 16 + "<eoss>"] * len(flat),
    )
    return BatchFeature({**words, **pictures(flat, return_tensors="pt")})


def _configure_emu3(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vq = _set_autoencoder(
        codebook_size=CODES,
        latent_channels=1,
        channel_multiplier=(1, 1),
        attn_resolutions=(),
    )
    return hf.Emu3Config(
        vq_config={**vq, "hidden_size": 32},
        text_config=text_settings(size, tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
    )


def _encode_emu3(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Emu3Processor does: rows of codes, each with an end-of-line code."""
    flat = flatten(images)
    pictures = hf.Emu3ImageProcessor(
        min_pixels=8 * 8, max_pixels=12 * 12, spatial_factor=2
    )
    encoded = pictures(flat, return_tensors="pt")
    sizes = torch.as_tensor(encoded["image_sizes"])
    runs = [
        f"<|image start|>{rows}*{columns}<|image token|>"
        + "<image>" * (rows * (columns + 1))
        + "<|extra_201|><|image end|>"
        for rows, columns in (sizes // 2).tolist()
    ]
    words = write_runs(tokenizer, images, prompts, placeholder="<image>", runs=runs)
    return BatchFeature(
        {**words, "pixel_values": encoded["pixel_values"], "image_sizes": sizes}
    )


CHAMELEON = Family(
    "chameleon",
    "ChameleonForConditionalGeneration",
    _configure_chameleon,
    specials=(
        "<image>",
        "<racm3:break>",
        "<eoss>",
        *(_name_chameleon_code(code) for code in range(CODES)),
    ),
    no_processor="ChameleonProcessor takes no chat template",
    encode=_encode_chameleon,
    notes="4 x 4 codes of the centre square; the logits of codes are switched off",
)
EMU3 = Family(
    "emu3",
    "Emu3ForConditionalGeneration",
    _configure_emu3,
    specials=(
        "<image>",
        "<|image start|>",
        "<|image token|>",
        "<|image end|>",
        "<|extra_200|>",
        "<|extra_201|>",
        *(f"<|visual token {code:06}|>" for code in range(CODES)),
    ),
    no_processor="Emu3Processor takes 8 x 8 pixels for a code, the tiny model 2 x 2",
    encode=_encode_emu3,
    notes="any aspect ratio; an end-of-line code, also an image token, ends each row",
)
