"""DeepSeek-VL, its hybrid, Janus and GOT-OCR2: one square shows the whole picture."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

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


def _configure_deepseek(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.DeepseekVLConfig(
        vision_config=hf.SiglipVisionConfig(**vision_settings(), vision_use_head=False),
        text_config=hf.LlamaConfig(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )


def _configure_hybrid(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.DeepseekVLHybridConfig(
        vision_config=hf.SiglipVisionConfig(**vision_settings(), vision_use_head=False),
        high_res_vision_config=hf.SamVisionConfig(**_SAM),
        text_config=hf.LlamaConfig(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )


def _configure_janus(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.JanusConfig(
        vision_config={
            **vision_settings(),
            "mlp_ratio": 2.0,
            "projection_dim": size.d_model,
            "num_image_tokens": 16,
        },
        vq_config={  # draws pictures, which no test here asks for
            "embed_dim": 4,
            "num_embeddings": 32,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": (1,),
            "num_res_blocks": 1,
            "projection_dim": size.d_model,
            "image_token_embed_dim": size.d_model,
        },
        text_config=hf.LlamaConfig(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )


def _process(
    name: str, pictures: str, **sizes: Any
) -> Callable[[Tokenizer], ProcessorMixin]:
    """Return the builder of a processor that pads a picture to a square."""

    def build(tokenizer: Tokenizer) -> ProcessorMixin:
        images = getattr(hf, pictures)(
            size={"height": 32, "width": 32}, min_size=1, **sizes
        )
        return getattr(hf, name)(
            images, tokenizer, chat_template=DEEPSEEK_CHAT, num_image_tokens=16
        )

    return build


def _configure_got(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.GotOcr2Config(
        vision_config=_SAM,
        text_config=hf.Qwen2Config(**text_settings(size, tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def _encode_got(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what GotOcr2Processor does for one page: a run of as many tokens as fit."""
    flat = flatten(images)
    pictures = hf.GotOcr2ImageProcessorPil(size={"height": 64, "width": 64})
    encoded = pictures(flat, return_tensors="pt")
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="<imgpad>",
        runs=["<img>" + "<imgpad>" * 4 + "</img>"] * len(flat),
    )
    return BatchFeature({**words, "pixel_values": encoded["pixel_values"]})


DEEPSEEK_VL = Family(
    "deepseek_vl",
    "DeepseekVLForConditionalGeneration",
    _configure_deepseek,
    specials=("<image_placeholder>",),
    named={"image_token": "<image_placeholder>"},
    placeholder="<image_placeholder>",
    build_processor=_process("DeepseekVLProcessor", "DeepseekVLImageProcessorPil"),
    notes="SigLIP tower, 4 x 4; the picture is padded to a square",
)


DEEPSEEK_VL_HYBRID = Family(
    "deepseek_vl_hybrid",
    "DeepseekVLHybridForConditionalGeneration",
    _configure_hybrid,
    specials=("<image_placeholder>",),
    named={"image_token": "<image_placeholder>"},
    placeholder="<image_placeholder>",
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
    notes="4 x 4 between markers; the picture is padded to a square",
)


GOT_OCR2 = Family(
    "got_ocr2",
    "GotOcr2ForConditionalGeneration",
    _configure_got,
    specials=("<imgpad>", "<img>", "</img>"),
    named={"image_token": "<imgpad>"},
    add_bos=False,
    placeholder="<imgpad>",
    no_processor="GotOcr2Processor takes pictures one page a row, and none in lists",
    encode=_encode_got,
    notes="SAM tower, 8 x 8 patches convolved to 2 x 2",
)


# ---- Chameleon and Emu3: pictures are codes of a discrete autoencoder.


CODES = 64


_LETTERS = "ABCDEFGHIJ"


def _name_chameleon_code(code: int) -> str:
    """Spell a code as Chameleon's vocabulary does: letters for digits, Z at the end."""
    return "IMGIMG" + "".join(_LETTERS[int(digit)] for digit in str(code)) + "Z"


def _set_autoencoder(**changes: Any) -> dict[str, Any]:
    """Return the settings of an autoencoder with one block a level.

    Codes are numbers, and not vectors: a random codebook of vectors has one code that
    is nearest to everything, which would stand for every picture.
    """
    return {
        "embed_dim": 1,
        "latent_channels": 4,
        "base_channels": 32,  # its group norms have 32 groups
        "num_res_blocks": 1,
        **changes,
    }


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
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what ChameleonProcessor does: a square between a begin and an end token."""
    flat = flatten(images)
    pictures = hf.ChameleonImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="<image>",
        runs=["<racm3:break>" + "<image>" * 16 + "<eoss>"] * len(flat),
    )
    return BatchFeature({**words, **pictures(flat, return_tensors="pt")})


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
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Emu3Processor does: rows of codes, each with an end-of-line code."""
    flat = flatten(images)
    pictures = hf.Emu3ImageProcessor(
        min_pixels=8 * 8, max_pixels=12 * 12, spatial_factor=2
    )
    encoded = pictures(flat, return_tensors="pt")
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
