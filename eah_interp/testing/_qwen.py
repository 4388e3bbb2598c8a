"""Qwen-VL and its kin: images of any size, each 2 x 2 patches merged to a token.

Families: qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, video_llama_3, glm4v,
glm4v_moe, glm46v, ernie4_5_vl_moe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import transformers as hf
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.lvlm.loading import drop_video
from eah_interp.testing._facts import (
    PIXELS,
    BuildConfig,
    BuildProcessor,
    Family,
    ImageRows,
    Size,
    Tokenizer,
    any_size_settings,
    encode_as,
    encode_merged,
    list_kinds,
    mark_tokens,
    name_ids,
    rope_settings,
    text_settings,
    write_chat_template,
    write_chatml,
)

TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": 8,
}

PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"

CHAT = write_chatml(PLACEHOLDER)

TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
"""The special tokens that a Qwen-VL config carries."""


def _build_rope(size: Size, **changes: Any) -> dict[str, Any]:
    """Share the rotary frequencies out over time, height and width, as Qwen does."""
    half = size.d_head // 2
    side = half * 3 // 8
    return rope_settings(mrope_section=[half - 2 * side, side, side], **changes)


def _configure(
    name: str,
    *,
    tower: Mapping[str, Any],
    tokens: Mapping[str, str] = TOKENS,
    rope: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
) -> BuildConfig:
    """Return the builder of a config of the given class name.

    Args:
        name: Name of the config's class.
        tower: Settings of the tower besides those of `TOWER`.
        tokens: Special tokens by their names in the config.
        rope: Settings of the rotary embedding besides those that all share.
        text: Settings of the decoder besides those that all share.
    """

    def build(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
        decoder = text_settings(
            size, tokenizer, rope_parameters=_build_rope(size, **(rope or {}))
        )
        config: PreTrainedConfig = getattr(hf, name)(
            vision_config={**TOWER, "out_hidden_size": size.d_model, **tower},
            text_config={**decoder, **(text or {})},
            **name_ids(tokenizer, **tokens),
        )
        return config

    return build


def _process(
    name: str,
    *,
    images: str = "Qwen2VLImageProcessorPil",
    chat: str = CHAT,
    **changes: Any,
) -> BuildProcessor:
    """Return the builder of a processor of the given class names."""

    def build(tokenizer: Tokenizer) -> ProcessorMixin:
        image_processor = getattr(hf, images)(patch_size=8, size=PIXELS, **changes)
        return drop_video(getattr(hf, name))(
            image_processor, tokenizer, chat_template=chat
        )

    return build


# ---- Qwen2-VL to Qwen3.5, and VideoLLaMA3.


def _configure_qwen2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": size.d_model,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 8,
    }
    text = text_settings(size, tokenizer, rope_parameters=_build_rope(size))
    return hf.Qwen2VLConfig(
        vision_config=vision, text_config=text, **name_ids(tokenizer, **TOKENS)
    )


def _configure_qwen3_5(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    build = _configure(
        "Qwen3_5Config",
        tower={"num_position_embeddings": 64},
        rope={"partial_rotary_factor": 1.0},
        text={
            "layer_types": list_kinds(size, other="linear_attention"),
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    )
    return build(size, tokenizer)


def _configure_video_llama_3(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.VideoLlama3Config(
        vision_config=any_size_settings(),
        text_config=hf.Qwen2Config(**text_settings(size, tokenizer)),
        **name_ids(
            tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"
        ),
    )


QWEN2_VL = Family(
    "qwen2_vl",
    "Qwen2VLForConditionalGeneration",
    _configure_qwen2,
    specials=(*TOKENS.values(), "<|im_start|>", "<|im_end|>"),
    named={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    add_bos=False,
    placeholder=PLACEHOLDER,
    build_processor=_process("Qwen2VLProcessor"),
    notes="any aspect ratio, 2 x 2 patches merged: a token sees 16 x 16 pixels",
)

QWEN2_5_VL = replace(
    QWEN2_VL,
    name="qwen2_5_vl",
    model="Qwen2_5_VLForConditionalGeneration",
    build_config=_configure(
        "Qwen2_5_VLConfig", tower={"window_size": 32, "fullatt_block_indexes": [1]}
    ),
    build_processor=_process("Qwen2_5_VLProcessor"),
    notes="as Qwen2-VL, with windows in the vision tower",
)

QWEN3_VL = replace(
    QWEN2_VL,
    name="qwen3_vl",
    model="Qwen3VLForConditionalGeneration",
    build_config=_configure(
        "Qwen3VLConfig",
        tower={"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    ),
    build_processor=_process("Qwen3VLProcessor"),
    notes="as Qwen2-VL, with QK-norm, and the tower's layers added in the decoder",
)

QWEN3_VL_MOE = replace(
    QWEN3_VL,
    name="qwen3_vl_moe",
    model="Qwen3VLMoeForConditionalGeneration",
    build_config=_configure(
        "Qwen3VLMoeConfig",
        tower={"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        text={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    notes="as Qwen3-VL, with experts",
)

QWEN3_5 = replace(
    QWEN3_VL,
    name="qwen3_5",
    model="Qwen3_5ForConditionalGeneration",
    build_config=_configure_qwen3_5,
    build_processor=None,
    no_processor="its tokenizer is loaded as a byte-level one, whatever was saved",
    encode=encode_as(QWEN3_VL),
    notes="every other layer is a gated delta net, without a pattern; gated attention",
)

VIDEO_LLAMA_3 = replace(
    QWEN2_VL,
    name="video_llama_3",
    model="VideoLlama3ForConditionalGeneration",
    build_config=_configure_video_llama_3,
    build_processor=_process(
        "VideoLlama3Processor", images="VideoLlama3ImageProcessorPil", merge_size=2
    ),
    notes="any aspect ratio; the encoding says how many patches are merged",
)


# ---- GLM-4V, with experts, and GLM-4.6V.

GLM_PLACEHOLDER = "<|begin_of_image|><|image|><|end_of_image|>"

GLM_CHAT = write_chat_template(
    user="<|user|>\n", assistant="<|assistant|>\n", image=GLM_PLACEHOLDER
)

GLM_TOKENS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}


def _configure_glm46v(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    older = GLM4V.build_config(size, tokenizer).to_dict()
    return hf.Glm46VConfig(
        vision_config=older["vision_config"],
        text_config=older["text_config"],
        **name_ids(tokenizer, **GLM_TOKENS),
    )


GLM4V = Family(
    "glm4v",
    "Glm4vForConditionalGeneration",
    _configure("Glm4vConfig", tower={"image_size": 64}, tokens=GLM_TOKENS),
    specials=(*GLM_TOKENS.values(), "<|user|>", "<|assistant|>"),
    named={"image_token": "<|image|>", "video_token": "<|video|>"},
    add_bos=False,
    placeholder=GLM_PLACEHOLDER,
    build_processor=_process(
        "Glm4vProcessor", images="Glm4vImageProcessorPil", chat=GLM_CHAT
    ),
    notes="as Qwen2-VL, with a downsampling convolution in place of the merger",
)

GLM4V_MOE = replace(
    GLM4V,
    name="glm4v_moe",
    model="Glm4vMoeForConditionalGeneration",
    build_config=_configure(
        "Glm4vMoeConfig",
        tower={"image_size": 64},
        tokens=GLM_TOKENS,
        rope={"partial_rotary_factor": 1.0},
        text={
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
    ),
    notes="as GLM-4V, with experts from the second layer on",
)

GLM46V = replace(
    GLM4V,
    name="glm46v",
    model="Glm46VForConditionalGeneration",
    build_config=_configure_glm46v,
    build_processor=_process(
        "Glm46VProcessor", images="Glm46VImageProcessorPil", chat=GLM_CHAT
    ),
    notes="the model of GLM-4V, with an image processor of its own",
)


# ---- Ernie 4.5 VL.

ERNIE_TOKENS = {
    "image_token_id": "<|IMAGE_PLACEHOLDER|>",
    "video_token_id": "<|VIDEO_PLACEHOLDER|>",
    "image_start_token_id": "<|IMAGE_START|>",
    "image_end_token_id": "<|IMAGE_END|>",
    "video_start_token_id": "<|VIDEO_START|>",
    "video_end_token_id": "<|VIDEO_END|>",
}


def _configure_ernie(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    half = size.d_head // 2
    side = half * 3 // 8
    # unlike Qwen's, time comes last
    rope = rope_settings(mrope_section=[side, side, half - 2 * side])
    text = text_settings(
        size,
        tokenizer,
        rope_parameters=rope,
        moe_num_experts=4,
        moe_k=2,
        moe_num_shared_experts=1,
        moe_intermediate_size=[16, 16],
    )
    return hf.Ernie4_5_VLMoeConfig(
        vision_config=dict(TOWER),
        text_config=text,
        tie_word_embeddings=False,
        **name_ids(tokenizer, **ERNIE_TOKENS),
    )


def _encode_ernie(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Ernie4_5_VLMoeProcessor does: experts are told what a token is."""
    image, _, start, end, *_ = ERNIE_TOKENS.values()
    encoding = encode_merged(
        tokenizer,
        images,
        prompts,
        image_processor=hf.Ernie4_5_VLMoeImageProcessorPil(patch_size=8, size=PIXELS),
        placeholder=image,
        token=image,
    )
    ids = encoding["input_ids"]
    encoding["mm_token_type_ids"] = mark_tokens(ids, tokenizer, image)
    encoding["moe_mm_token_type_ids"] = mark_tokens(ids, tokenizer, image, start, end)
    return encoding


ERNIE = Family(
    "ernie4_5_vl_moe",
    "Ernie4_5_VLMoeForConditionalGeneration",
    _configure_ernie,
    specials=tuple(ERNIE_TOKENS.values()),
    named={
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
    },
    add_bos=False,
    placeholder="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
    no_processor="Ernie4_5_VLMoeProcessor saves its video processor's font",
    encode=_encode_ernie,
    notes="2 x 2 patches merged; image tokens have experts of their own",
)
