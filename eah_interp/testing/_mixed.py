"""Decoders that attend in some layers only: Qwen3.5 and LFM2-VL."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import transformers as hf
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedConfig

from eah_interp.testing._canvas import build_row_patcher
from eah_interp.testing._encode import flatten, write_runs
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    text_settings,
    vision_settings,
)
from eah_interp.testing._qwen import QWEN3_VL, build_rope, name_tokens


def list_kinds(size: Size, *, other: str) -> list[str]:
    """Return the kind of each layer: odd layers attend, and so does an only one."""
    return [
        "full_attention" if i % 2 or size.n_layers == 1 else other
        for i in range(size.n_layers)
    ]


def _configure_qwen3_5(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": size.d_model,
        "num_heads": 4,
        "patch_size": 8,
        "num_position_embeddings": 64,
    }
    text = text_settings(
        size,
        tokenizer,
        rope_parameters={**build_rope(size), "partial_rotary_factor": 1.0},
        layer_types=list_kinds(size, other="linear_attention"),
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )
    return hf.Qwen3_5Config(
        vision_config=vision, text_config=text, **name_tokens(tokenizer)
    )


def _configure_lfm2_vl(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = vision_settings(
        model_type="siglip2_vision_model", num_patches=64, vision_use_head=False
    )
    del vision["image_size"]
    text = text_settings(
        size,
        tokenizer,
        layer_types=list_kinds(size, other="conv"),
        block_auto_adjust_ff_dim=False,
    )
    return hf.Lfm2VlConfig(
        vision_config=vision,
        text_config=hf.Lfm2Config(**text),
        projector_hidden_size=64,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )


def _encode_lfm2_vl(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Lfm2VlProcessor does with `do_image_splitting=False`."""
    encoded = build_row_patcher()(flatten(images), return_tensors="pt")
    shapes = encoded["image_grid_thw"][:, 1:]
    counts = shapes.prod(-1).tolist()
    patches = encoded["pixel_values"].view(-1, 3, 8, 8).permute(0, 2, 3, 1).flatten(1)
    seen = [torch.ones(count, dtype=torch.long) for count in counts]
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="<image>",
        runs=(
            "<|image_start|>" + "<image>" * (count // 4) + "<|image_end|>"
            for count in counts
        ),
    )
    return BatchFeature(
        {
            **words,
            "pixel_values": pad_sequence(patches.split(counts), batch_first=True),
            "pixel_attention_mask": pad_sequence(seen, batch_first=True),
            "spatial_shapes": shapes,
        }
    )


def _encode_qwen3_5(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Call the real processor, which is Qwen3-VL's."""
    assert QWEN3_VL.build_processor is not None
    processor = QWEN3_VL.build_processor(tokenizer)
    encoding: BatchFeature = processor(
        images=[list(row) for row in images],
        text=list(prompts),
        padding=True,
        return_tensors="pt",
    )
    return encoding


QWEN3_5 = replace(
    QWEN3_VL,
    name="qwen3_5",
    model="Qwen3_5ForConditionalGeneration",
    build_config=_configure_qwen3_5,
    build_processor=None,
    no_processor="its tokenizer is loaded as a byte-level one, whatever was saved",
    encode=_encode_qwen3_5,
    notes="every other layer is a gated delta net, without a pattern; gated attention",
)
LFM2_VL = Family(
    "lfm2_vl",
    "Lfm2VlForConditionalGeneration",
    _configure_lfm2_vl,
    specials=("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
    no_processor="Lfm2VlProcessor needs torchvision",
    encode=_encode_lfm2_vl,
    notes="every other layer is a short convolution, without a pattern",
)
