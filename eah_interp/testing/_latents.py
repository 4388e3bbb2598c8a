"""Learned latents or queries stand for an image: their tokens have no place in it.

Families: idefics2, instructblip, blip_2, aria, kosmos2.
"""

from collections.abc import Sequence

import torch
import transformers as hf
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.testing._facts import (
    Family,
    ImageRows,
    Size,
    Tokenizer,
    encode_equal,
    flatten,
    mark_tokens,
    name_ids,
    read_pixels,
    text_settings,
    vision_settings,
    write_chatml,
    write_runs,
)
from eah_interp.testing._tiles import IDEFICS_CHAT

LATENTS = 4

N_QUERIES = 6

_NO_PLACEHOLDER = (
    "its processor knows no placeholder: it writes one image's tokens before the "
    "padding of a row"
)


# ---- Idefics2.


def _configure_idefics2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(size, tokenizer, sliding_window=None)
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
        text_config=hf.MistralConfig(**text),
        **name_ids(tokenizer, image_token_id="<image>"),
    )


def _process_idefics2(tokenizer: Tokenizer) -> ProcessorMixin:
    image_processor = hf.Idefics2ImageProcessorPil(
        size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=True
    )
    return hf.Idefics2Processor(
        image_processor, tokenizer, image_seq_len=LATENTS, chat_template=IDEFICS_CHAT
    )


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
    notes="four quarters and the whole image, 4 perceiver latents each",
)


# ---- InstructBLIP and BLIP-2.


def _join_blip(
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
        **name_ids(tokenizer, image_token_index="<image>"),
    )


def _configure_instructblip(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = hf.LlamaConfig(**text_settings(size, tokenizer))
    return _join_blip(hf.InstructBlipConfig, text, tokenizer)


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
    return _join_blip(hf.Blip2Config, hf.OPTConfig(**settings), tokenizer)


def _encode_blip2(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Write a run of query tokens for each image."""
    return encode_equal(
        tokenizer,
        images,
        prompts,
        image_processor=hf.BlipImageProcessorPil(size={"height": 32, "width": 32}),
        placeholder="<image>",
        run="<image>" * LATENTS,
    )


def _encode_instructblip(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do the same, and show each image's Q-Former the text of its row.

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


# ---- Aria.


def _configure_aria(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    # its processor makes every image 980 x 980 pixels: 14 x 14 large patches
    vision = vision_settings(
        model_type="idefics3_vision", hidden_size=8, image_size=980, patch_size=70
    )
    text = text_settings(size, tokenizer, moe_num_experts=4, moe_topk=2)
    return hf.AriaConfig(
        vision_config=vision,
        text_config=hf.AriaTextConfig(**text),
        projector_patch_to_query_dict={196: N_QUERIES},
        **name_ids(tokenizer, image_token_index="<|img|>"),
    )


def _process_aria(tokenizer: Tokenizer) -> ProcessorMixin:
    return hf.AriaProcessor(
        hf.AriaImageProcessorPil(),
        tokenizer,
        chat_template=write_chatml("<|img|>"),
        size_conversion={980: N_QUERIES},
    )


ARIA = Family(
    "aria",
    "AriaForConditionalGeneration",
    _configure_aria,
    specials=("<|img|>", "<|im_start|>", "<|im_end|>"),
    named={"image_token": "<|img|>"},
    placeholder="<|img|>",
    build_processor=_process_aria,
    notes="6 learned queries, not spatial; experts",
)


# ---- Kosmos-2.


def _configure_kosmos2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    config = hf.Kosmos2Config(
        vision_config=vision_settings(),
        text_config={
            "vocab_size": text_settings(size, tokenizer)["vocab_size"],
            "embed_dim": size.d_model,
            "layers": size.n_layers,
            "ffn_dim": 2 * size.d_model,
            "attention_heads": size.n_heads,
            "max_position_embeddings": 1024,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        },
        latent_query_num=N_QUERIES,
        tie_word_embeddings=False,
    )
    config.image_token_id = tokenizer.convert_tokens_to_ids("<latent>")
    return config


def _encode_kosmos2(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Kosmos2Processor does, with one id for all latents instead of many."""
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="<image>",
        runs=("<image>" + "<latent>" * N_QUERIES + "</image>" for _ in flatten(images)),
    )
    pixels = [read_pixels(image.resize((32, 32))) for image in flatten(images)]
    places = mark_tokens(words["input_ids"], tokenizer, "<latent>")
    return BatchFeature(
        {
            **words,
            "pixel_values": torch.stack(pixels),
            "image_embeds_position_mask": places,
        }
    )


KOSMOS2 = Family(
    "kosmos2",
    "Kosmos2ForConditionalGeneration",
    _configure_kosmos2,
    specials=("<latent>", "<image>", "</image>"),
    named={"image_token": "<latent>"},
    no_processor="Kosmos2Processor gives every latent a token id of its own",
    encode=_encode_kosmos2,
    notes="6 latents, not spatial; a real config names no image token",
)
