"""LLaVA, LLaVA-NeXT and LLaVA-OneVision."""

import transformers as hf
from transformers import PreTrainedConfig, ProcessorMixin

from eah_interp.lvlm.processors import drop_video
from eah_interp.testing._facts import (
    Family,
    Size,
    Tokenizer,
    text_settings,
    vision_settings,
    write_chat_template,
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
