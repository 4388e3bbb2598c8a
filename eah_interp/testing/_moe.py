"""Mixture-of-experts decoders behind the towers of Qwen3-VL, GLM-4V and Ernie."""

from collections.abc import Sequence
from dataclasses import replace

import transformers as hf
from transformers import BatchFeature, PreTrainedConfig

from eah_interp.testing._encode import encode_merged, mark_tokens
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    text_settings,
)
from eah_interp.testing._qwen import GLM4V, QWEN3_VL, build_rope, name_tokens

ERNIE_TOKENS = (
    "<|IMAGE_PLACEHOLDER|>",
    "<|VIDEO_PLACEHOLDER|>",
    "<|IMAGE_START|>",
    "<|IMAGE_END|>",
    "<|VIDEO_START|>",
    "<|VIDEO_END|>",
)
ERNIE_PLACEHOLDER = "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"


def _configure_qwen3_moe(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": size.d_model,
        "num_heads": 4,
        "patch_size": 8,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = text_settings(
        size,
        tokenizer,
        rope_parameters=build_rope(size),
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    )
    return hf.Qwen3VLMoeConfig(
        vision_config=vision, text_config=text, **name_tokens(tokenizer)
    )


def _configure_glm4v_moe(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    dense = GLM4V.build_config(size, tokenizer)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": size.d_model,
        "num_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    text = text_settings(
        size,
        tokenizer,
        rope_parameters={**build_rope(size), "partial_rotary_factor": 1.0},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    )
    names = ("image_token_id", "image_start_token_id", "image_end_token_id")
    videos = ("video_token_id", "video_start_token_id", "video_end_token_id")
    return hf.Glm4vMoeConfig(
        vision_config=vision,
        text_config=text,
        **{name: getattr(dense, name) for name in (*names, *videos)},
    )


def _configure_ernie(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    half = size.d_head // 2
    side = half * 3 // 8
    sections = [side, side, half - 2 * side]
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 8,
    }
    text = text_settings(
        size,
        tokenizer,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": sections,
        },
        moe_num_experts=4,
        moe_k=2,
        moe_num_shared_experts=1,
        moe_intermediate_size=[16, 16],
    )
    image, video, *ends = tokenizer.convert_tokens_to_ids(list(ERNIE_TOKENS))
    return hf.Ernie4_5_VLMoeConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=image,
        video_token_id=video,
        image_start_token_id=ends[0],
        image_end_token_id=ends[1],
        video_start_token_id=ends[2],
        video_end_token_id=ends[3],
        tie_word_embeddings=False,
    )


def _encode_ernie(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Ernie4_5_VLMoeProcessor does: experts are told what a token is."""
    pictures = hf.Ernie4_5_VLMoeImageProcessorPil(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 96 * 96}
    )
    encoding = encode_merged(
        tokenizer,
        images,
        prompts,
        pictures=pictures,
        placeholder=ERNIE_TOKENS[0],
        token=ERNIE_TOKENS[0],
    )
    ids = encoding["input_ids"]
    image, _, start, end, *_ = ERNIE_TOKENS
    encoding["mm_token_type_ids"] = mark_tokens(ids, tokenizer, image)
    encoding["moe_mm_token_type_ids"] = mark_tokens(ids, tokenizer, image, start, end)
    return encoding


QWEN3_VL_MOE = replace(
    QWEN3_VL,
    name="qwen3_vl_moe",
    model="Qwen3VLMoeForConditionalGeneration",
    build_config=_configure_qwen3_moe,
    notes="as Qwen3-VL, with experts",
)
GLM4V_MOE = replace(
    GLM4V,
    name="glm4v_moe",
    model="Glm4vMoeForConditionalGeneration",
    build_config=_configure_glm4v_moe,
    notes="as GLM-4V, with experts from the second layer on",
)
ERNIE = Family(
    "ernie4_5_vl_moe",
    "Ernie4_5_VLMoeForConditionalGeneration",
    _configure_ernie,
    specials=ERNIE_TOKENS,
    named={"image_token": ERNIE_TOKENS[0], "video_token": ERNIE_TOKENS[1]},
    add_bos=False,
    placeholder=ERNIE_PLACEHOLDER,
    no_processor="Ernie4_5_VLMoeProcessor saves its video processor's font",
    encode=_encode_ernie,
    notes="2 x 2 patches merged; image tokens have experts of their own",
)
