"""Gemma and PaliGemma, whose image tokens attend in both directions.

Families: gemma3, gemma4, paligemma, paligemma2.
"""

from collections.abc import Sequence

import torch
import transformers as hf
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
    siglip_settings,
    text_settings,
    vision_settings,
    write_chat_template,
    write_runs,
)

# ---- Gemma 3.

GEMMA_CHAT = write_chat_template(
    user="<start_of_turn>user\n",
    assistant="<start_of_turn>model\n",
    image="<start_of_image>",
    close="<end_of_turn>\n",
)


def _configure_gemma3(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size, tokenizer, query_pre_attn_scalar=size.d_head, sliding_window=512
    )
    return hf.Gemma3Config(
        vision_config=siglip_settings(patch_size=4),
        text_config=hf.Gemma3TextConfig(**text),
        mm_tokens_per_image=16,
        tie_word_embeddings=False,  # tied, a tiny model only repeats its last token
        **name_ids(
            tokenizer,
            boi_token_id="<start_of_image>",
            eoi_token_id="<end_of_image>",
            image_token_id="<image_soft_token>",
        ),
    )


def _process_gemma3(tokenizer: Tokenizer) -> ProcessorMixin:
    return hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        image_seq_length=16,
        chat_template=GEMMA_CHAT,
    )


GEMMA3 = Family(
    "gemma3",
    "Gemma3ForConditionalGeneration",
    _configure_gemma3,
    specials=(
        "<image_soft_token>",
        "<start_of_image>",
        "<end_of_image>",
        "<start_of_turn>",
        "<end_of_turn>",
    ),
    named={
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    },
    placeholder="<start_of_image>",
    build_processor=_process_gemma3,
    notes="8 x 8 patches pooled to 4 x 4; image tokens attend in both directions",
)


# ---- Gemma 4.


def _configure_gemma4(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    kinds = ["sliding_attention", "full_attention"] * size.n_layers
    text = text_settings(
        size,
        tokenizer,
        sliding_window=512,
        layer_types=kinds[-size.n_layers :],  # the last layer is a full one
        global_head_dim=2 * size.d_head,
        hidden_size_per_layer_input=8,
        use_bidirectional_attention="vision",
    )
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
        tie_word_embeddings=False,
        **name_ids(
            tokenizer,
            image_token_id="<|image|>",
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
            video_token_id="<|video|>",
            audio_token_id="<|audio|>",
        ),
    )


def _encode_gemma4(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Gemma4Processor does: a token for each 3 x 3 patches, as many as fit."""
    image_processor = hf.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70)
    encoded = image_processor(flatten(images), return_tensors="pt")
    counts = torch.as_tensor(encoded.pop("num_soft_tokens_per_image")).tolist()
    runs = ["<|image>" + "<|image|>" * count + "<image|>" for count in counts]
    words = write_runs(tokenizer, images, prompts, placeholder="<|image|>", runs=runs)
    kinds = mark_tokens(words["input_ids"], tokenizer, "<|image|>")
    return BatchFeature({**words, "mm_token_type_ids": kinds, **encoded})


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


# ---- PaliGemma and PaliGemma 2.


def _join_paligemma(
    text: PreTrainedConfig, size: Size, tokenizer: Tokenizer
) -> PreTrainedConfig:
    """Put a SigLIP tower before a decoder."""
    return hf.PaliGemmaConfig(
        vision_config=siglip_settings(),
        text_config=text,
        projection_dim=size.d_model,
        hidden_size=size.d_model,
        vocab_size=text.vocab_size,
        pad_token_id=0,
        tie_word_embeddings=False,
        **name_ids(tokenizer, image_token_id="<image>"),
    )


def _configure_paligemma(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    # PaliGemmaProcessor adds 1,024 location and 128 segmentation tokens
    vocab_size = -(-(len(tokenizer) + 1024 + 128) // 64) * 64
    text = hf.GemmaConfig(**text_settings(size, tokenizer, vocab_size=vocab_size))
    return _join_paligemma(text, size, tokenizer)


def _configure_paligemma2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size, tokenizer, query_pre_attn_scalar=size.d_head, sliding_window=512
    )
    return _join_paligemma(hf.Gemma2Config(**text), size, tokenizer)


def _process_images() -> hf.SiglipImageProcessorPil:
    return hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})


def _process_paligemma(tokenizer: Tokenizer) -> ProcessorMixin:
    image_processor = _process_images()
    image_processor.image_seq_length = 16
    return hf.PaliGemmaProcessor(image_processor, tokenizer)


def _encode_paligemma2(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what PaliGemmaProcessor does, and leave the images where they stand."""
    encoding = encode_equal(
        tokenizer,
        images,
        prompts,
        image_processor=_process_images(),
        placeholder="<image>",
        run="<image>" * 16,
    )
    encoding["token_type_ids"] = torch.zeros_like(encoding["input_ids"])  # all prefix
    return encoding


PALIGEMMA = Family(
    "paligemma",
    "PaliGemmaForConditionalGeneration",
    _configure_paligemma,
    add_bos=False,
    build_processor=_process_paligemma,
    notes="4 x 4; no chat template; the prompt attends in both directions",
)

PALIGEMMA2 = Family(
    "paligemma2",
    "PaliGemmaForConditionalGeneration",
    _configure_paligemma2,
    add_bos=False,
    no_processor="its processor is PaliGemma's: build that of 'paligemma'",
    encode=_encode_paligemma2,
    notes="as PaliGemma; Gemma 2 decoder with soft-capping, in eager attention only",
)
