"""Idefics2, InstructBLIP and BLIP-2: learned latents stand for a picture."""

from collections.abc import Sequence

import torch
import transformers as hf
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.testing._encode import flatten, write_runs
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    text_settings,
    vision_settings,
)
from eah_interp.testing._tiled import IDEFICS_CHAT

LATENTS = 4
_NO_PLACEHOLDER = (
    "its processor knows no placeholder: it writes one picture's tokens before the "
    "padding of a row"
)


def _configure_idefics2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.Idefics2Config(
        vision_config=vision_settings(),
        perceiver_config={
            "hidden_size": size.d_model,
            "resampler_n_latents": LATENTS,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        text_config=hf.MistralConfig(
            **text_settings(size, tokenizer, sliding_window=None)
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )


def _process_idefics2(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.Idefics2ImageProcessorPil(
        size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=True
    )
    return hf.Idefics2Processor(
        pictures, tokenizer, image_seq_len=LATENTS, chat_template=IDEFICS_CHAT
    )


def _configure_blip(
    config: type[PreTrainedConfig], text: PreTrainedConfig, tokenizer: Tokenizer
) -> PreTrainedConfig:
    """Put a tower and a Q-Former of two layers before a language model."""
    return config(
        vision_config=vision_settings(),
        qformer_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": text.vocab_size,
        },
        text_config=text,
        num_query_tokens=LATENTS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )


def _configure_instructblip(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = hf.LlamaConfig(**text_settings(size, tokenizer))
    return _configure_blip(hf.InstructBlipConfig, text, tokenizer)


def _configure_blip2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    settings = text_settings(
        size,
        tokenizer,
        ffn_dim=2 * size.d_model,
        word_embed_proj_dim=size.d_model,
        tie_word_embeddings=False,
    )
    for absent in ("intermediate_size", "num_key_value_heads", "head_dim"):
        del settings[absent]  # OPT has one key/value head for each query head
    return _configure_blip(hf.Blip2Config, hf.OPTConfig(**settings), tokenizer)


def _encode_blip2(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Write a run of query tokens for each picture."""
    flat = flatten(images)
    pictures = hf.BlipImageProcessorPil(size={"height": 32, "width": 32})
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="<image>",
        runs=["<image>" * LATENTS] * len(flat),
    )
    return BatchFeature({**words, **pictures(flat, return_tensors="pt")})


def _encode_instructblip(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do the same, and show each picture's Q-Former the text of its row.

    It is padded on the right: the Q-Former counts its positions from the left.
    """
    questions = [
        prompt.replace("<image>", "")
        for prompt, row in zip(prompts, images, strict=True)
        for _ in row
    ]
    asked = tokenizer(
        questions, padding=True, padding_side="right", return_tensors="pt"
    )
    qformer: dict[str, Tensor] = {
        f"qformer_{name}": torch.as_tensor(asked[name])
        for name in ("input_ids", "attention_mask")
    }
    return BatchFeature({**_encode_blip2(tokenizer, images, prompts), **qformer})


IDEFICS2 = Family(
    "idefics2",
    "Idefics2ForConditionalGeneration",
    _configure_idefics2,
    specials=("<image>", "<fake_token_around_image>", "<end_of_utterance>"),
    named={
        "image_token": "<image>",
        "image_boundary_token": "<fake_token_around_image>",
    },
    build_processor=_process_idefics2,
    notes="four quarters and the whole picture, 4 perceiver latents each",
)
INSTRUCTBLIP = Family(
    "instructblip",
    "InstructBlipForConditionalGeneration",
    _configure_instructblip,
    no_processor=_NO_PLACEHOLDER,
    encode=_encode_instructblip,
    notes="4 queries that also read the question; Llama decoder, as with Vicuna",
)
BLIP_2 = Family(
    "blip_2",
    "Blip2ForConditionalGeneration",
    _configure_blip2,
    no_processor=_NO_PLACEHOLDER,
    encode=_encode_blip2,
    notes="4 queries; OPT decoder: learned positions, no grouped heads, biases",
)
