"""PaliGemma 2 and Gemma 4: pictures whose tokens attend in both directions."""

from collections.abc import Sequence

import torch
import transformers as hf
from transformers import BatchFeature, PreTrainedConfig

from eah_interp.testing._encode import flatten, mark_tokens, write_runs
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    text_settings,
    vision_settings,
)


def _configure_paligemma2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size, tokenizer, query_pre_attn_scalar=size.d_head, sliding_window=512
    )
    return hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**vision_settings(), vision_use_head=False),
        text_config=hf.Gemma2Config(**text),
        projection_dim=size.d_model,
        hidden_size=size.d_model,
        vocab_size=text["vocab_size"],
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def _encode_paligemma2(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what PaliGemmaProcessor does, and leave the pictures where they stand."""
    flat = flatten(images)
    pictures = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="<image>",
        runs=["<image>" * 16] * len(flat),
    )
    prefix = torch.zeros_like(words["input_ids"])
    return BatchFeature(
        {**words, "token_type_ids": prefix, **pictures(flat, return_tensors="pt")}
    )


def _configure_gemma4(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size,
        tokenizer,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"] * size.n_layers,
        global_head_dim=2 * size.d_head,
        hidden_size_per_layer_input=8,
        use_bidirectional_attention="vision",
    )
    text["layer_types"] = text["layer_types"][-size.n_layers :]
    text["vocab_size_per_layer_input"] = text["vocab_size"]
    vision = vision_settings(
        patch_size=4,
        head_dim=8,
        num_key_value_heads=4,
        pooling_kernel_size=3,
        position_embedding_size=256,
    )
    return hf.Gemma4Config(
        vision_config=hf.Gemma4VisionConfig(**vision),
        text_config=hf.Gemma4TextConfig(**text, tie_word_embeddings=False),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        boi_token_id=tokenizer.convert_tokens_to_ids("<|image>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("<image|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio|>"),
        tie_word_embeddings=False,
    )


def _encode_gemma4(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Gemma4Processor does: a token for each 3 x 3 patches, as many as fit."""
    flat = flatten(images)
    pictures = hf.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70)
    encoded = pictures(flat, return_tensors="pt")
    counts = torch.as_tensor(encoded.pop("num_soft_tokens_per_image")).tolist()
    runs = ["<|image>" + "<|image|>" * count + "<image|>" for count in counts]
    words = write_runs(tokenizer, images, prompts, placeholder="<|image|>", runs=runs)
    kinds = mark_tokens(words["input_ids"], tokenizer, "<|image|>")
    return BatchFeature({**words, "mm_token_type_ids": kinds, **encoded})


PALIGEMMA2 = Family(
    "paligemma2",
    "PaliGemmaForConditionalGeneration",
    _configure_paligemma2,
    add_bos=False,
    no_processor="its processor is PaliGemma's: build that of 'paligemma'",
    encode=_encode_paligemma2,
    notes="as PaliGemma; Gemma 2 decoder with soft-capping, in eager attention only",
)
GEMMA4 = Family(
    "gemma4",
    "Gemma4ForConditionalGeneration",
    _configure_gemma4,
    specials=("<|image|>", "<|image>", "<image|>", "<|video|>", "<|audio|>"),
    named={"image_token": "<|image|>"},
    placeholder="<|image|>",
    no_processor="Gemma4Processor needs a video processor, hence torchvision",
    encode=_encode_gemma4,
    notes="up to 70 tokens of 3 x 3 patches; image tokens attend in both directions",
)
