"""Learned queries stand for a picture: Aria and Kosmos-2."""

from collections.abc import Sequence

import torch
import transformers as hf
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.testing._canvas import read_pixels
from eah_interp.testing._encode import flatten, mark_tokens, write_runs
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    text_settings,
    vision_settings,
    write_chat_template,
)

ARIA_CHAT = write_chat_template(
    user="<|im_start|>user\n",
    assistant="<|im_start|>assistant\n",
    image="<|img|>",
    close="<|im_end|>\n",
)
N_QUERIES = 6


def _configure_aria(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    # its processor makes every picture 980 x 980 pixels: 14 x 14 large patches
    vision = vision_settings(
        model_type="idefics3_vision", hidden_size=8, image_size=980, patch_size=70
    )
    text = text_settings(size, tokenizer, moe_num_experts=4, moe_topk=2)
    return hf.AriaConfig(
        vision_config=vision,
        text_config=hf.AriaTextConfig(**text),
        projector_patch_to_query_dict={196: N_QUERIES},
        image_token_index=tokenizer.convert_tokens_to_ids("<|img|>"),
    )


def _process_aria(tokenizer: Tokenizer) -> ProcessorMixin:
    return hf.AriaProcessor(
        hf.AriaImageProcessorPil(),
        tokenizer,
        chat_template=ARIA_CHAT,
        size_conversion={980: N_QUERIES},
    )


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
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
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
