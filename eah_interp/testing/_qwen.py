"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and GLM-4V."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import transformers as hf
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.lvlm.loading import drop_video
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    build_row_patcher,
    encode_merged,
    mark_tokens,
    pad_picture,
    text_settings,
    vision_settings,
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


# ---- Mixture-of-experts decoders behind the towers of Qwen3-VL, GLM-4V and Ernie.


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


# ---- Merged patches: GLM-4.6V, VideoLLaMA3, Kimi K2.5 and Muse Glimmer.


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
