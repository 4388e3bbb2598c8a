"""LLaVA, LLaVA-NeXT and LLaVA-OneVision."""

from collections.abc import Sequence

import torch
import transformers as hf
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.lvlm.loading import drop_video
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    flatten,
    text_settings,
    vision_settings,
    write_chat_template,
    write_runs,
)

PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]


ONEVISION_PINPOINTS = [
    [32 * rows, 32 * columns] for rows in range(1, 5) for columns in range(1, 5)
]


VICUNA_CHAT = write_chat_template(
    user="USER: ", assistant="ASSISTANT: ", image="<image>\n", close=" "
)


QWEN_CHAT = write_chat_template(
    user="<|im_start|>user ",
    assistant="<|im_start|>assistant\n",
    image="<image>\n",
    close="<|im_end|>",
    images_first=True,
)


def _configure_llava(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision_settings()),
        text_config=hf.LlamaConfig(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )


def _configure_vipllava(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision_settings()),
        text_config=hf.LlamaConfig(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layers=[-2, -1],
    )


def _process_llava(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.LlavaImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return hf.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_CHAT,
    )


def _configure_llava_next(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(size, tokenizer, sliding_window=None)
    return hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**vision_settings()),
        text_config=hf.MistralConfig(**text),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
    )


def _process_llava_next(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=PINPOINTS,
    )
    return hf.LlavaNextProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_CHAT,
    )


def _configure_onevision(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**vision_settings(), vision_use_head=False),
        text_config=hf.Qwen2Config(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=ONEVISION_PINPOINTS,
    )


def _process_onevision(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.LlavaOnevisionImageProcessorPil(
        size={"height": 32, "width": 32}, image_grid_pinpoints=ONEVISION_PINPOINTS
    )
    return drop_video(hf.LlavaOnevisionProcessor)(
        pictures,
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=QWEN_CHAT,
    )


LLAVA = Family(
    "llava",
    "LlavaForConditionalGeneration",
    _configure_llava,
    build_processor=_process_llava,
    notes="CLIP tower, Llama decoder; the picture is cropped to its centre, 4 x 4",
)


LLAVA_NEXT = Family(
    "llava_next",
    "LlavaNextForConditionalGeneration",
    _configure_llava_next,
    build_processor=_process_llava_next,
    notes="base view, crops and newline vectors; Mistral decoder",
)


LLAVA_ONEVISION = Family(
    "llava_onevision",
    "LlavaOnevisionForConditionalGeneration",
    _configure_onevision,
    specials=("<image>", "<video>", "<|im_start|>", "<|im_end|>"),
    named={"image_token": "<image>", "video_token": "<video>"},
    add_bos=False,
    build_processor=_process_onevision,
    notes="as LLaVA-NeXT with up to 4 x 4 crops, which are shrunk; Qwen2 decoder",
)


VIPLLAVA = Family(
    "vipllava",
    "VipLlavaForConditionalGeneration",
    _configure_vipllava,
    build_processor=_process_llava,
    notes="as LLaVA, with several layers of the tower side by side",
)


# ---- LLaVA with other decoders and towers, LLaVA-NeXT-Video, and LightOnOCR.


LIGHTON_CHAT = write_chat_template(
    user="<|im_start|>user\n",
    assistant="<|im_start|>assistant\n",
    image="<|image_pad|>",
    close="<|im_end|>\n",
)


WINDOW = 8
"""Tokens that the sliding window of a tiny Mistral sees: fewer than a picture has."""


def _configure_llava_mistral(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision_settings()),
        text_config=hf.MistralConfig(
            **text_settings(size, tokenizer, sliding_window=WINDOW)
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )


def _configure_llava_pixtral(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.LlavaConfig(
        vision_config=hf.PixtralVisionConfig(**vision_settings(image_size=96)),
        text_config=hf.MistralConfig(
            **text_settings(size, tokenizer, sliding_window=None)
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )


def _encode_pixtral(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what PixtralProcessor does: rows of tokens, each closed by a break or end."""
    flat = flatten(images)
    pictures = hf.PixtralImageProcessorPil(size={"longest_edge": 48}, patch_size=8)
    encoded = pictures(flat, return_tensors="pt")
    sizes = torch.as_tensor(encoded["image_sizes"])
    runs = [
        "[IMG_BREAK]".join(["[IMG]" * columns] * rows) + "[IMG_END]"
        for rows, columns in (sizes // 8).tolist()
    ]
    words = write_runs(tokenizer, images, prompts, placeholder="[IMG]", runs=runs)
    return BatchFeature(
        {**words, "pixel_values": encoded["pixel_values"], "image_sizes": sizes}
    )


def _configure_lighton(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.LightOnOcrConfig(
        vision_config=hf.PixtralVisionConfig(**vision_settings(image_size=96)),
        text_config=hf.Qwen3Config(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def _process_lighton(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.PixtralImageProcessorPil(size={"longest_edge": 96}, patch_size=16)
    return hf.LightOnOcrProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=LIGHTON_CHAT,
    )


def _configure_next_video(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.LlavaNextVideoConfig(
        vision_config=hf.CLIPVisionConfig(**vision_settings()),
        text_config=hf.LlamaConfig(**text_settings(size, tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
    )


def _encode_next_video(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Let LLaVA-NeXT's processor do it, which treats pictures in the same way."""
    assert LLAVA_NEXT.build_processor is not None
    return LLAVA_NEXT.build_processor(tokenizer)(
        images=[list(row) for row in images],
        text=list(prompts),
        padding=True,
        return_tensors="pt",
    )


LLAVA_MISTRAL = Family(
    "llava_mistral",
    "LlavaForConditionalGeneration",
    _configure_llava_mistral,
    build_processor=LLAVA.build_processor,
    notes="LLaVA on a Mistral decoder whose sliding window is shorter than a picture",
)


LLAVA_PIXTRAL = Family(
    "llava_pixtral",
    "LlavaForConditionalGeneration",
    _configure_llava_pixtral,
    specials=("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"),
    named={"image_token": "[IMG]"},
    placeholder="[IMG]",
    no_processor="PixtralProcessor needs torchvision",
    encode=_encode_pixtral,
    notes="Pixtral 12B: any aspect ratio, a break token ends each row",
)


LIGHTON_OCR = Family(
    "lighton_ocr",
    "LightOnOcrForConditionalGeneration",
    _configure_lighton,
    specials=(
        "<|image_pad|>",
        "<|vision_pad|>",
        "<|vision_end|>",
        "<|im_start|>",
        "<|im_end|>",
    ),
    named={
        "image_token": "<|image_pad|>",
        "image_break_token": "<|vision_pad|>",
        "image_end_token": "<|vision_end|>",
    },
    add_bos=False,
    placeholder="<|image_pad|>",
    build_processor=_process_lighton,
    notes="Pixtral tower, any aspect ratio, rows without breaks; Qwen3 decoder",
)


LLAVA_NEXT_VIDEO = Family(
    "llava_next_video",
    "LlavaNextVideoForConditionalGeneration",
    _configure_next_video,
    specials=("<image>", "<video>"),
    named={"image_token": "<image>", "video_token": "<video>"},
    no_processor="LlavaNextVideoProcessor puts a video processor first: torchvision",
    encode=_encode_next_video,
    notes="pictures as in LLaVA-NeXT; Llama decoder",
)
