"""Merged patches: GLM-4.6V, VideoLLaMA3, Kimi K2.5 and Muse Glimmer."""

from collections.abc import Sequence
from dataclasses import replace

import transformers as hf
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.lvlm.processors import drop_video
from eah_interp.testing._canvas import build_row_patcher, pad_picture
from eah_interp.testing._encode import encode_merged
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    text_settings,
    vision_settings,
)
from eah_interp.testing._qwen import CHAT, GLM4V, GLM_CHAT, QWEN2_VL

PIXELS = {"shortest_edge": 16 * 16, "longest_edge": 96 * 96}


def _configure_glm46v(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    older = GLM4V.build_config(size, tokenizer).to_dict()
    kept = {name: value for name, value in older.items() if name.endswith("token_id")}
    return hf.Glm46VConfig(
        vision_config=older["vision_config"], text_config=older["text_config"], **kept
    )


def _process_glm46v(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.Glm46VImageProcessorPil(patch_size=8, size=PIXELS)
    return drop_video(hf.Glm46VProcessor)(pictures, tokenizer, chat_template=GLM_CHAT)


def _configure_video_llama_3(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = vision_settings()
    del vision["image_size"]
    return hf.VideoLlama3Config(
        vision_config=vision,
        text_config=hf.Qwen2Config(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )


def _process_video_llama_3(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.VideoLlama3ImageProcessorPil(patch_size=8, merge_size=2, size=PIXELS)
    return drop_video(hf.VideoLlama3Processor)(pictures, tokenizer, chat_template=CHAT)


KIMI_TOKENS = (
    "<|media_pad|>",
    "<|video_pad|>",
    "<|media_begin|>",
    "<|media_end|>",
)


def _configure_kimi(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size,
        tokenizer,
        num_key_value_heads=size.n_heads,  # latent attention has no groups
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=size.d_head,
        qk_rope_head_dim=size.d_head,
        v_head_dim=size.d_head,
        n_group=1,
        topk_group=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    )
    del text["head_dim"]
    image, video, start, end = tokenizer.convert_tokens_to_ids(list(KIMI_TOKENS))
    vision = vision_settings(pos_emb_height=8, pos_emb_width=8)
    del vision["image_size"]
    return hf.Kimi_K25Config(
        vision_config=vision,
        text_config=hf.DeepseekV3Config(**text),
        projection_hidden_size=32,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )


def _encode_kimi(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Kimi_K25Processor does: pad with black to whole merged patches."""
    padded = [[pad_picture(image, factor=16) for image in row] for row in images]
    encoding = encode_merged(
        tokenizer,
        padded,
        prompts,
        pictures=build_row_patcher(),
        placeholder=KIMI_TOKENS[0],
        token=KIMI_TOKENS[0],
    )
    encoding["pixel_values"] = encoding["pixel_values"].view(-1, 3, 8, 8)
    return encoding


MUSE_TOKENS = (
    "<|patch|>",
    "<|video|>",
    "<|image_start|>",
    "<|image_end|>",
)


def _configure_muse(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = vision_settings(
        pos_emb_height=8, pos_emb_width=8, max_position_embeddings=64
    )
    del vision["image_size"]
    text = text_settings(
        size,
        tokenizer,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        output_multiplier=1.0,
    )
    return hf.MuseGlimmerConfig(
        vision_config=vision,
        text_config=text,
        out_hidden_size=128,
        projector_hidden_size=64,
        image_token_id=tokenizer.convert_tokens_to_ids("<|patch|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
    )


def _encode_muse(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what MuseGlimmerProcessor does, with the sizes that Qwen's would choose."""
    encoding = encode_merged(
        tokenizer,
        images,
        prompts,
        pictures=build_row_patcher(),
        placeholder=MUSE_TOKENS[0],
        token=MUSE_TOKENS[0],
        around=("<|image_start|>", "<|image_end|>"),
    )
    encoding["pixel_values"] = encoding["pixel_values"].repeat(1, 2)
    return encoding


GLM46V = replace(
    GLM4V,
    name="glm46v",
    model="Glm46VForConditionalGeneration",
    build_config=_configure_glm46v,
    build_processor=_process_glm46v,
    notes="the model of GLM-4V, with an image processor of its own",
)
VIDEO_LLAMA_3 = replace(
    QWEN2_VL,
    name="video_llama_3",
    model="VideoLlama3ForConditionalGeneration",
    build_config=_configure_video_llama_3,
    build_processor=_process_video_llama_3,
    notes="any aspect ratio; the encoding says how many patches are merged",
)
KIMI = Family(
    "kimi_k25",
    "Kimi_K25ForConditionalGeneration",
    _configure_kimi,
    specials=KIMI_TOKENS,
    named={"image_token": KIMI_TOKENS[0]},
    placeholder="<|media_begin|><|media_pad|><|media_end|>",
    no_processor="Kimi_K25Processor needs torchvision",
    encode=_encode_kimi,
    notes="latent attention: q and k are wider than v, and every head has its own",
)
MUSE_GLIMMER = Family(
    "muse_glimmer",
    "MuseGlimmerForConditionalGeneration",
    _configure_muse,
    specials=MUSE_TOKENS,
    named={"image_token": MUSE_TOKENS[0]},
    placeholder="<|patch|>",
    no_processor="MuseGlimmerProcessor needs torchvision",
    encode=_encode_muse,
    notes="gated attention, QK-norm without weights, windows and NoPE layers",
)
