"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and GLM-4V."""

from collections.abc import Callable
from typing import Any

import transformers as hf
from transformers import PreTrainedConfig, ProcessorMixin

from eah_interp.lvlm.processors import drop_video
from eah_interp.testing._facts import (
    Family,
    Size,
    Tokenizer,
    text_settings,
    write_chat_template,
)

SPECIALS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|im_start|>",
    "<|im_end|>",
)
NAMED = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
CHAT = write_chat_template(
    user="<|im_start|>user\n",
    assistant="<|im_start|>assistant\n",
    image=PLACEHOLDER,
    close="<|im_end|>\n",
)

GLM_PLACEHOLDER = "<|begin_of_image|><|image|><|end_of_image|>"
GLM_CHAT = write_chat_template(
    user="<|user|>\n", assistant="<|assistant|>\n", image=GLM_PLACEHOLDER
)


def build_rope(size: Size) -> dict[str, Any]:
    """Share the rotary frequencies out over time, height and width, as Qwen does."""
    half = size.d_head // 2
    side = half * 3 // 8
    sections = [half - 2 * side, side, side]
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}


def name_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the token ids that a Qwen-VL config carries."""
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }


def _configure_qwen2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": size.d_model,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 8,
    }
    text = text_settings(size, tokenizer, rope_parameters=build_rope(size))
    return hf.Qwen2VLConfig(
        vision_config=vision, text_config=text, **name_tokens(tokenizer)
    )


def _configure_qwen2_5(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": size.d_model,
        "num_heads": 4,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    text = text_settings(size, tokenizer, rope_parameters=build_rope(size))
    return hf.Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, **name_tokens(tokenizer)
    )


def _configure_qwen3(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
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
    text = text_settings(size, tokenizer, rope_parameters=build_rope(size))
    return hf.Qwen3VLConfig(
        vision_config=vision, text_config=text, **name_tokens(tokenizer)
    )


def _configure_glm4v(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": size.d_model,
        "num_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    text = text_settings(size, tokenizer, rope_parameters=build_rope(size))
    return hf.Glm4vConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        image_start_token_id=tokenizer.convert_tokens_to_ids("<|begin_of_image|>"),
        image_end_token_id=tokenizer.convert_tokens_to_ids("<|end_of_image|>"),
        video_start_token_id=tokenizer.convert_tokens_to_ids("<|begin_of_video|>"),
        video_end_token_id=tokenizer.convert_tokens_to_ids("<|end_of_video|>"),
    )


def _process(
    name: str, *, pictures: str = "Qwen2VLImageProcessorPil", chat: str = CHAT
) -> Callable[[Tokenizer], ProcessorMixin]:
    """Return the builder of a processor of the given class names."""

    def build(tokenizer: Tokenizer) -> ProcessorMixin:
        images = getattr(hf, pictures)(
            patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 96 * 96}
        )
        return drop_video(getattr(hf, name))(images, tokenizer, chat_template=chat)

    return build


QWEN2_VL = Family(
    "qwen2_vl",
    "Qwen2VLForConditionalGeneration",
    _configure_qwen2,
    specials=SPECIALS,
    named=NAMED,
    add_bos=False,
    placeholder=PLACEHOLDER,
    build_processor=_process("Qwen2VLProcessor"),
    notes="any aspect ratio, 2 x 2 patches merged: a token sees 16 x 16 pixels",
)
QWEN2_5_VL = Family(
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    _configure_qwen2_5,
    specials=SPECIALS,
    named=NAMED,
    add_bos=False,
    placeholder=PLACEHOLDER,
    build_processor=_process("Qwen2_5_VLProcessor"),
    notes="as Qwen2-VL, with windows in the vision tower",
)
QWEN3_VL = Family(
    "qwen3_vl",
    "Qwen3VLForConditionalGeneration",
    _configure_qwen3,
    specials=SPECIALS,
    named=NAMED,
    add_bos=False,
    placeholder=PLACEHOLDER,
    build_processor=_process("Qwen3VLProcessor"),
    notes="as Qwen2-VL, with QK-norm, and the tower's layers added in the decoder",
)
GLM4V = Family(
    "glm4v",
    "Glm4vForConditionalGeneration",
    _configure_glm4v,
    specials=(
        "<|image|>",
        "<|video|>",
        "<|begin_of_image|>",
        "<|end_of_image|>",
        "<|begin_of_video|>",
        "<|end_of_video|>",
        "<|user|>",
        "<|assistant|>",
    ),
    named={"image_token": "<|image|>", "video_token": "<|video|>"},
    add_bos=False,
    placeholder=GLM_PLACEHOLDER,
    build_processor=_process(
        "Glm4vProcessor", pictures="Glm4vImageProcessorPil", chat=GLM_CHAT
    ),
    notes="as Qwen2-VL, with a downsampling convolution in place of the merger",
)
