"""One grid shows the whole image: patches of a square, or codes of an autoencoder.

Families: deepseek_vl, deepseek_vl_hybrid, janus, got_ocr2, chameleon, emu3.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.testing._facts import (
    BuildProcessor,
    Family,
    ImageRows,
    Size,
    Tokenizer,
    encode_equal,
    flatten,
    name_ids,
    siglip_settings,
    text_settings,
    vision_settings,
    write_chat_template,
    write_runs,
)

DEEPSEEK_CHAT = write_chat_template(
    user="User: ", assistant="Assistant: ", image="<image_placeholder>", close=" "
)

_SAM: dict[str, Any] = {
    **vision_settings(image_size=64),
    "output_channels": 32,
    "global_attn_indexes": [1],
    "window_size": 4,
    "mlp_dim": 64,
}


# ---- DeepSeek-VL, its hybrid and Janus.


def _set_deepseek(size: Size, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "text_config": hf.LlamaConfig(**text_settings(size, tokenizer)),
        "tie_word_embeddings": False,
        **name_ids(tokenizer, image_token_id="<image_placeholder>"),
    }


def _configure_deepseek(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.DeepseekVLConfig(
        vision_config=siglip_settings(), **_set_deepseek(size, tokenizer)
    )


def _configure_hybrid(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.DeepseekVLHybridConfig(
        vision_config=siglip_settings(),
        high_res_vision_config=hf.SamVisionConfig(**_SAM),
        **_set_deepseek(size, tokenizer),
    )


def _configure_janus(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.JanusConfig(
        vision_config={
            **vision_settings(),
            "mlp_ratio": 2.0,
            "projection_dim": size.d_model,
            "num_image_tokens": 16,
        },
        vq_config={  # draws images, which no test here asks for
            "embed_dim": 4,
            "num_embeddings": 32,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": (1,),
            "num_res_blocks": 1,
            "projection_dim": size.d_model,
            "image_token_embed_dim": size.d_model,
        },
        **_set_deepseek(size, tokenizer),
    )


def _process(name: str, images: str, **sizes: Any) -> BuildProcessor:
    """Return the builder of a processor that pads an image to a square."""

    def build(tokenizer: Tokenizer) -> ProcessorMixin:
        image_processor = getattr(hf, images)(
            size={"height": 32, "width": 32}, min_size=1, **sizes
        )
        processor: ProcessorMixin = getattr(hf, name)(
            image_processor,
            tokenizer,
            chat_template=DEEPSEEK_CHAT,
            num_image_tokens=16,
        )
        return processor

    return build


DEEPSEEK_VL = Family(
    "deepseek_vl",
    "DeepseekVLForConditionalGeneration",
    _configure_deepseek,
    specials=("<image_placeholder>",),
    named={"image_token": "<image_placeholder>"},
    placeholder="<image_placeholder>",
    build_processor=_process("DeepseekVLProcessor", "DeepseekVLImageProcessorPil"),
    notes="SigLIP tower, 4 x 4; the image is padded to a square",
)

DEEPSEEK_VL_HYBRID = replace(
    DEEPSEEK_VL,
    name="deepseek_vl_hybrid",
    model="DeepseekVLHybridForConditionalGeneration",
    build_config=_configure_hybrid,
    build_processor=_process(
        "DeepseekVLHybridProcessor",
        "DeepseekVLHybridImageProcessorPil",
        high_res_size={"height": 64, "width": 64},
    ),
    notes="as DeepSeek-VL, with a SAM tower of twice the pixels beside SigLIP",
)

JANUS = Family(
    "janus",
    "JanusForConditionalGeneration",
    _configure_janus,
    specials=("<image_placeholder>", "<begin_of_image>", "<end_of_image>"),
    named={
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    },
    placeholder="<image_placeholder>",
    build_processor=_process("JanusProcessor", "JanusImageProcessorPil"),
    notes="4 x 4 between markers; the image is padded to a square",
)


# ---- GOT-OCR2.


def _configure_got(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.GotOcr2Config(
        vision_config=_SAM,
        text_config=hf.Qwen2Config(**text_settings(size, tokenizer)),
        image_seq_length=4,
        tie_word_embeddings=False,
        **name_ids(tokenizer, image_token_index="<imgpad>"),
    )


def _encode_got(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what GotOcr2Processor does for one page: a run of as many tokens as fit."""
    encoding = encode_equal(
        tokenizer,
        images,
        prompts,
        image_processor=hf.GotOcr2ImageProcessorPil(size={"height": 64, "width": 64}),
        placeholder="<imgpad>",
        run="<img>" + "<imgpad>" * 4 + "</img>",
    )
    del encoding["num_patches"]  # the model does not take it
    return encoding


GOT_OCR2 = Family(
    "got_ocr2",
    "GotOcr2ForConditionalGeneration",
    _configure_got,
    specials=("<imgpad>", "<img>", "</img>"),
    named={"image_token": "<imgpad>"},
    add_bos=False,
    placeholder="<imgpad>",
    no_processor="GotOcr2Processor takes images one page a row, and none in lists",
    encode=_encode_got,
    notes="SAM tower, 8 x 8 patches convolved to 2 x 2",
)


# ---- Chameleon and Emu3: images are codes of a discrete autoencoder.

CODES = 64


def _set_autoencoder(**changes: Any) -> dict[str, Any]:
    """Return the settings of an autoencoder with one block a level.

    Codes are numbers, and not vectors: a random codebook of vectors has one code that
    is nearest to everything, which would stand for every image.
    """
    return {
        "embed_dim": 1,
        "latent_channels": 4,
        "base_channels": 32,  # its group norms have 32 groups
        "num_res_blocks": 1,
        **changes,
    }


def _name_chameleon_code(code: int) -> str:
    """Spell a code as Chameleon's vocabulary does: letters for digits, Z at the end."""
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def _configure_chameleon(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vq = _set_autoencoder(
        num_embeddings=CODES, resolution=16, channel_multiplier=(1, 1, 1)
    )
    return hf.ChameleonConfig(
        **text_settings(size, tokenizer),
        vq_config=vq,
        vocabulary_map=tokenizer.get_vocab(),
    )


def _encode_chameleon(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what ChameleonProcessor does: a square between a begin and an end token."""
    image_processor = hf.ChameleonImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return encode_equal(
        tokenizer,
        images,
        prompts,
        image_processor=image_processor,
        placeholder="<image>",
        run="<racm3:break>" + "<image>" * 16 + "<eoss>",
    )


CHAMELEON = Family(
    "chameleon",
    "ChameleonForConditionalGeneration",
    _configure_chameleon,
    specials=(
        "<image>",
        "<racm3:break>",
        "<eoss>",
        *(_name_chameleon_code(code) for code in range(CODES)),
    ),
    no_processor="ChameleonProcessor takes no chat template",
    encode=_encode_chameleon,
    notes="4 x 4 codes of the centre square; the logits of codes are switched off",
)


def _configure_emu3(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vq = _set_autoencoder(
        codebook_size=CODES,
        latent_channels=1,
        channel_multiplier=(1, 1),
        attn_resolutions=(),
    )
    return hf.Emu3Config(
        vq_config={**vq, "hidden_size": 32},
        text_config=text_settings(size, tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
    )


def _encode_emu3(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Emu3Processor does: rows of codes, each with an end-of-line code."""
    image_processor = hf.Emu3ImageProcessor(
        min_pixels=8 * 8, max_pixels=12 * 12, spatial_factor=2
    )
    encoded = image_processor(flatten(images), return_tensors="pt")
    sizes = torch.as_tensor(encoded["image_sizes"])
    runs = [
        f"<|image start|>{rows}*{columns}<|image token|>"
        + "<image>" * (rows * (columns + 1))
        + "<|extra_201|><|image end|>"
        for rows, columns in (sizes // 2).tolist()
    ]
    words = write_runs(tokenizer, images, prompts, placeholder="<image>", runs=runs)
    return BatchFeature(
        {**words, "pixel_values": encoded["pixel_values"], "image_sizes": sizes}
    )


EMU3 = Family(
    "emu3",
    "Emu3ForConditionalGeneration",
    _configure_emu3,
    specials=(
        "<image>",
        "<|image start|>",
        "<|image token|>",
        "<|image end|>",
        "<|extra_200|>",
        "<|extra_201|>",
        *(f"<|visual token {code:06}|>" for code in range(CODES)),
    ),
    no_processor="Emu3Processor takes 8 x 8 pixels for a code, the tiny model 2 x 2",
    encode=_encode_emu3,
    notes="any aspect ratio; an end-of-line code, also an image token, ends each row",
)
