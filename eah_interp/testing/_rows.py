"""Rows of patches that end with a token or a vector: HunYuan-VL, Fuyu and Phi-4."""

from collections.abc import Sequence

import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    cut_tiles,
    flatten,
    pad_picture,
    read_pixels,
    text_settings,
    vision_settings,
    write_chat_template,
    write_runs,
)

ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
HUNYUAN_PLACEHOLDER = "<|im_start|><|image|><|im_end|>"
HUNYUAN_CHAT = write_chat_template(
    user="<|user|>", assistant="<|assistant|>", image=HUNYUAN_PLACEHOLDER
)
PHI4_SIDE = 32


def _configure_hunyuan(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    half = size.d_head // 2
    vision = vision_settings(max_image_size=64)
    del vision["image_size"]
    text = text_settings(
        size,
        tokenizer,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [half - 3 * (half // 4), *[half // 4] * 3],
        },
    )
    return hf.HunYuanVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        im_start_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        im_end_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        tie_word_embeddings=False,
    )


def _process_hunyuan(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.HunYuanVLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    )
    return hf.HunYuanVLProcessor(pictures, tokenizer, chat_template=HUNYUAN_CHAT)


def _configure_fuyu(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(size, tokenizer, rope_parameters=ROPE)
    del text["num_key_value_heads"], text["head_dim"]
    return hf.FuyuConfig(
        text_config=hf.PersimmonConfig(**text),
        patch_size=8,
        image_token_id=tokenizer.convert_tokens_to_ids("|SPEAKER|"),
    )


def _encode_fuyu(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what FuyuProcessor does for a picture, wherever it is in the text."""
    padded = [pad_picture(image, factor=8, color=1) for image in flatten(images)]
    patches = [cut_tiles(read_pixels(image), 8) for image in padded]
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="|SPEAKER|",
        runs=(
            ("|SPEAKER|" * (image.width // 8) + "|NEWLINE|") * (image.height // 8)
            + "<s>"
            for image in padded
        ),
    )
    pixels = torch.cat(patches).permute(0, 2, 3, 1).flatten(1)
    return BatchFeature({**words, "pixel_values": pixels[None]})


def _configure_phi4(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    image, audio = tokenizer.convert_tokens_to_ids(["<|image|>", "<|audio|>"])
    return hf.Phi4MultimodalConfig(
        vision_config=vision_settings(crop_size=PHI4_SIDE, image_token_id=image),
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 8,
            "input_size": 16,
            "bias_max_distance": 8,
            "audio_token_id": audio,
        },
        **text_settings(size, tokenizer, rope_parameters=ROPE),
    )


def _encode_phi4(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Phi4MultimodalProcessor does, at most 36 crops: a canvas, cut in tiles.

    Crops of pictures with fewer are padded with black; rows of patches that show
    padding alone are masked, and dropped by the model.
    """
    views, masks, sizes, runs = [], [], [], []
    for image in flatten(images):
        canvas, kept = _build_phi4_canvas(image)
        whole = canvas.resize((PHI4_SIDE, PHI4_SIDE), Image.Resampling.BICUBIC)
        crops = cut_tiles(read_pixels(canvas), PHI4_SIDE)
        views.append(torch.cat([read_pixels(whole)[None], crops]))
        tiles = cut_tiles(kept[None], 4)[:, 0]
        masks.append(torch.cat([torch.ones(1, 4, 4), tiles]))
        sizes.append((canvas.height, canvas.width))
        rows, columns = (-(-int(n) // 2) for n in (kept[:, 0].sum(), kept[0].sum()))
        runs.append("<|image|>" * (rows * (columns + 1) + 1 + 2 * 3))
    most = max(map(len, views))
    words = write_runs(tokenizer, images, prompts, placeholder="<|image|>", runs=runs)
    return BatchFeature(
        {
            **words,
            "image_pixel_values": torch.stack([_fill(v, most, 0) for v in views]),
            "image_sizes": torch.tensor(sizes),
            "image_attention_mask": torch.stack([_fill(m, most, 1) for m in masks]),
        }
    )


def _build_phi4_canvas(image: Image.Image) -> tuple[Image.Image, Tensor]:
    """Return the canvas, and 1 for each 8 x 8 patch of it that is not padding alone."""
    across, down = (-(-side // PHI4_SIDE) * PHI4_SIDE for side in image.size)
    scale = min(across / image.width, down / image.height)
    shown = min(across, int(image.width * scale)), min(down, int(image.height * scale))
    canvas = Image.new("RGB", (across, down), (255, 255, 255))
    canvas.paste(image.convert("RGB").resize(shown))
    kept = torch.ones(down // 8, across // 8)
    kept[down // 8 - (down - shown[1]) // 8 :] = 0
    kept[:, across // 8 - (across - shown[0]) // 8 :] = 0
    return canvas, kept


def _fill(values: Tensor, length: int, value: int) -> Tensor:
    missing = values.new_full((length - len(values), *values.shape[1:]), value)
    return torch.cat([values, missing])


HUNYUAN_VL = Family(
    "hunyuan_vl",
    "HunYuanVLForConditionalGeneration",
    _configure_hunyuan,
    specials=("<|image|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"),
    named={
        "image_token": "<|image|>",
        "image_start_token": "<|im_start|>",
        "image_end_token": "<|im_end|>",
    },
    add_bos=False,
    placeholder=HUNYUAN_PLACEHOLDER,
    build_processor=_process_hunyuan,
    notes="2 x 2 patches merged; begin, newline and end vectors are image tokens",
)
FUYU = Family(
    "fuyu",
    "FuyuForCausalLM",
    _configure_fuyu,
    specials=("|SPEAKER|", "|NEWLINE|"),
    named={"image_token": "|SPEAKER|"},
    placeholder="|SPEAKER|",
    no_processor="FuyuProcessor takes one picture, and puts it before the text",
    encode=_encode_fuyu,
    notes="no vision tower: pixels are projected; a newline token ends each row",
)
PHI4_MULTIMODAL = Family(
    "phi4_multimodal",
    "Phi4MultimodalForCausalLM",
    _configure_phi4,
    specials=("<|image|>", "<|audio|>"),
    named={"image_token": "<|image|>", "audio_token": "<|audio|>"},
    placeholder="<|image|>",
    no_processor="Phi4MultimodalProcessor needs torchvision",
    encode=_encode_phi4,
    notes="crops, a separator and the whole canvas, each row with an extensor",
)
