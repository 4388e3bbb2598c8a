"""LLaVA and its kin, and Pixtral's tower behind other decoders.

Families: llava, llava_mistral, vipllava, llava_next, llava_next_video,
llava_onevision, llava_pixtral, mistral3, lighton_ocr.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.lvlm.loading import drop_video
from eah_interp.testing._facts import (
    BuildProcessor,
    Encode,
    Family,
    ImageRows,
    Size,
    Tokenizer,
    encode_as,
    flatten,
    name_ids,
    siglip_settings,
    text_settings,
    vision_settings,
    write_chat_template,
    write_chatml,
    write_runs,
)

PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]

ONEVISION_PINPOINTS = [
    [32 * rows, 32 * columns] for rows in range(1, 5) for columns in range(1, 5)
]

WINDOW = 8
"""Tokens that the sliding window of a tiny Mistral sees: fewer than an image has."""

VICUNA_CHAT = write_chat_template(
    user="USER: ", assistant="ASSISTANT: ", image="<image>\n", close=" "
)

ONEVISION_CHAT = write_chat_template(
    user="<|im_start|>user ",
    assistant="<|im_start|>assistant\n",
    image="<image>\n",
    close="<|im_end|>",
    images_first=True,
)


def _set_clip(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the settings of a config with a CLIP tower: 4 x 4 tokens."""
    return {
        "vision_config": hf.CLIPVisionConfig(**vision_settings()),
        "image_seq_length": 16,
        **name_ids(tokenizer, image_token_id="<image>"),
    }


def _process_clip(kind: str, **changes: Any) -> BuildProcessor:
    """Return the builder of a processor that crops an image, or a part, to a square."""

    def build(tokenizer: Tokenizer) -> ProcessorMixin:
        image_processor = getattr(hf, f"{kind}ImageProcessorPil")(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            **changes,
        )
        processor: ProcessorMixin = getattr(hf, f"{kind}Processor")(
            image_processor,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=VICUNA_CHAT,
        )
        return processor

    return build


# ---- LLaVA and ViP-LLaVA.


def _configure_llava(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = hf.LlamaConfig(**text_settings(size, tokenizer))
    return hf.LlavaConfig(text_config=text, **_set_clip(tokenizer))


def _configure_llava_mistral(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(size, tokenizer, sliding_window=WINDOW)
    return hf.LlavaConfig(text_config=hf.MistralConfig(**text), **_set_clip(tokenizer))


def _configure_vipllava(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.VipLlavaConfig(
        text_config=hf.LlamaConfig(**text_settings(size, tokenizer)),
        vision_feature_layers=[-2, -1],
        **_set_clip(tokenizer),
    )


LLAVA = Family(
    "llava",
    "LlavaForConditionalGeneration",
    _configure_llava,
    build_processor=_process_clip("Llava"),
    notes="CLIP tower, Llama decoder; the image is cropped to its centre, 4 x 4",
)

LLAVA_MISTRAL = replace(
    LLAVA,
    name="llava_mistral",
    build_config=_configure_llava_mistral,
    notes="LLaVA on a Mistral decoder whose sliding window is shorter than an image",
)

VIPLLAVA = replace(
    LLAVA,
    name="vipllava",
    model="VipLlavaForConditionalGeneration",
    build_config=_configure_vipllava,
    notes="as LLaVA, with several layers of the tower side by side",
)


# ---- LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision.


def _configure_llava_next(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(size, tokenizer, sliding_window=None)
    return hf.LlavaNextConfig(
        text_config=hf.MistralConfig(**text),
        image_grid_pinpoints=PINPOINTS,
        **_set_clip(tokenizer),
    )


def _configure_next_video(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.LlavaNextVideoConfig(
        vision_config=hf.CLIPVisionConfig(**vision_settings()),
        text_config=hf.LlamaConfig(**text_settings(size, tokenizer)),
        image_grid_pinpoints=PINPOINTS,
        **name_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )


def _configure_onevision(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.LlavaOnevisionConfig(
        vision_config=siglip_settings(),
        text_config=hf.Qwen2Config(**text_settings(size, tokenizer)),
        image_grid_pinpoints=ONEVISION_PINPOINTS,
        **name_ids(tokenizer, image_token_id="<image>", video_token_id="<video>"),
    )


def _process_onevision(tokenizer: Tokenizer) -> ProcessorMixin:
    image_processor = hf.LlavaOnevisionImageProcessorPil(
        size={"height": 32, "width": 32}, image_grid_pinpoints=ONEVISION_PINPOINTS
    )
    return drop_video(hf.LlavaOnevisionProcessor)(
        image_processor,
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION_CHAT,
    )


LLAVA_NEXT = Family(
    "llava_next",
    "LlavaNextForConditionalGeneration",
    _configure_llava_next,
    build_processor=_process_clip("LlavaNext", image_grid_pinpoints=PINPOINTS),
    notes="base view, crops and newline vectors; Mistral decoder",
)

LLAVA_NEXT_VIDEO = Family(
    "llava_next_video",
    "LlavaNextVideoForConditionalGeneration",
    _configure_next_video,
    specials=("<image>", "<video>"),
    named={"image_token": "<image>", "video_token": "<video>"},
    no_processor="LlavaNextVideoProcessor puts a video processor first: torchvision",
    encode=encode_as(LLAVA_NEXT),  # which treats images in the same way
    notes="images as in LLaVA-NeXT; Llama decoder",
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


# ---- Pixtral's tower, for images of any aspect ratio: Pixtral, Mistral 3, LightOnOCR.


def _set_pixtral() -> PreTrainedConfig:
    return hf.PixtralVisionConfig(**vision_settings(image_size=96))


def _configure_pixtral(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(size, tokenizer, sliding_window=None)
    return hf.LlavaConfig(
        vision_config=_set_pixtral(),
        text_config=hf.MistralConfig(**text),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        **name_ids(tokenizer, image_token_id="[IMG]"),
    )


def _configure_mistral3(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(size, tokenizer, sliding_window=None)
    return hf.Mistral3Config(
        vision_config=_set_pixtral(),
        text_config=hf.MistralConfig(**text),
        spatial_merge_size=2,
        tie_word_embeddings=False,
        **name_ids(tokenizer, image_token_id="[IMG]"),
    )


def _encode_pixtral(*, longest: int, side: int) -> Encode:
    """Return an encoder that does what PixtralProcessor does.

    It writes rows of tokens, each closed by a break, the last by an end.

    Args:
        longest: Most pixels along a side of an image.
        side: Pixels along a side of a token.
    """

    def encode(
        tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
    ) -> BatchFeature:
        image_processor = hf.PixtralImageProcessorPil(
            size={"longest_edge": longest}, patch_size=side
        )
        encoded = image_processor(flatten(images), return_tensors="pt")
        sizes = torch.as_tensor(encoded["image_sizes"])
        runs = [
            "[IMG_BREAK]".join(["[IMG]" * columns] * rows) + "[IMG_END]"
            for rows, columns in (sizes // side).tolist()
        ]
        words = write_runs(tokenizer, images, prompts, placeholder="[IMG]", runs=runs)
        return BatchFeature(
            {**words, "pixel_values": encoded["pixel_values"], "image_sizes": sizes}
        )

    return encode


def _configure_lighton(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.LightOnOcrConfig(
        vision_config=_set_pixtral(),
        text_config=hf.Qwen3Config(**text_settings(size, tokenizer)),
        spatial_merge_size=2,
        tie_word_embeddings=False,
        **name_ids(tokenizer, image_token_id="<|image_pad|>"),
    )


def _process_lighton(tokenizer: Tokenizer) -> ProcessorMixin:
    image_processor = hf.PixtralImageProcessorPil(
        size={"longest_edge": 96}, patch_size=16
    )
    return hf.LightOnOcrProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=write_chatml("<|image_pad|>"),
    )


LLAVA_PIXTRAL = Family(
    "llava_pixtral",
    "LlavaForConditionalGeneration",
    _configure_pixtral,
    specials=("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"),
    named={"image_token": "[IMG]"},
    placeholder="[IMG]",
    no_processor="PixtralProcessor needs torchvision",
    encode=_encode_pixtral(longest=48, side=8),
    notes="Pixtral 12B: any aspect ratio, a break token ends each row",
)

MISTRAL3 = replace(
    LLAVA_PIXTRAL,
    name="mistral3",
    model="Mistral3ForConditionalGeneration",
    build_config=_configure_mistral3,
    encode=_encode_pixtral(longest=96, side=16),
    notes="Pixtral tower, any aspect ratio; a break token ends each row",
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
