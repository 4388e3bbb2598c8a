"""PaliGemma 2 and Gemma 4: pictures whose tokens attend in both directions."""

from collections.abc import Sequence

import torch
import transformers as hf
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.errors import InputError
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    flatten,
    mark_tokens,
    text_settings,
    vision_settings,
    write_chat_template,
    write_runs,
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


# ---- Gemma 3, PaliGemma and Mistral 3.


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
        vision_config=hf.SiglipVisionConfig(
            **vision_settings(patch_size=4), vision_use_head=False
        ),
        text_config=hf.Gemma3TextConfig(**text),
        mm_tokens_per_image=16,
        boi_token_id=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=False,  # tied, a tiny model only repeats its last token
    )


def _process_gemma3(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    return hf.Gemma3Processor(
        pictures, tokenizer, image_seq_length=16, chat_template=GEMMA_CHAT
    )


def _configure_paligemma(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    # PaliGemmaProcessor adds 1,024 location and 128 segmentation tokens
    vocab_size = -(-(len(tokenizer) + 1024 + 128) // 64) * 64
    return hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**vision_settings(), vision_use_head=False),
        text_config=hf.GemmaConfig(
            **text_settings(size, tokenizer, vocab_size=vocab_size)
        ),
        projection_dim=size.d_model,
        hidden_size=size.d_model,
        vocab_size=vocab_size,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def _process_paligemma(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pictures.image_seq_length = 16
    return hf.PaliGemmaProcessor(pictures, tokenizer)


def _configure_mistral3(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(
            **vision_settings(image_size=96, patch_size=8)
        ),
        text_config=hf.MistralConfig(
            **text_settings(size, tokenizer, sliding_window=None)
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def _encode_mistral3(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what PixtralProcessor does: rows of tokens, each closed by a break or end."""
    flat = flatten(images)
    pictures = hf.PixtralImageProcessorPil(size={"longest_edge": 96}, patch_size=16)
    encoded = pictures(flat, return_tensors="pt")
    runs = iter(
        "[IMG_BREAK]".join(["[IMG]" * (width // 16)] * (height // 16)) + "[IMG_END]"
        for height, width in torch.as_tensor(encoded["image_sizes"]).tolist()
    )
    texts = []
    for prompt, row in zip(prompts, images, strict=True):
        pieces = prompt.split("[IMG]")
        if len(pieces) != len(row) + 1:
            raise InputError(
                f"expected one [IMG] for each of {len(row)} pictures, got "
                f"{len(pieces) - 1} in {prompt!r}; change the prompt"
            )
        middle = "".join(next(runs) + piece for piece in pieces[1:])
        texts.append(pieces[0] + middle)
    words = tokenizer(texts, padding=True, return_tensors="pt")
    return BatchFeature(
        {
            "input_ids": words["input_ids"],
            "attention_mask": words["attention_mask"],
            "pixel_values": encoded["pixel_values"],
            "image_sizes": torch.as_tensor(encoded["image_sizes"]),
        }
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


PALIGEMMA = Family(
    "paligemma",
    "PaliGemmaForConditionalGeneration",
    _configure_paligemma,
    add_bos=False,
    build_processor=_process_paligemma,
    notes="4 x 4; no chat template; the prompt attends in both directions",
)


MISTRAL3 = Family(
    "mistral3",
    "Mistral3ForConditionalGeneration",
    _configure_mistral3,
    specials=("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"),
    named={"image_token": "[IMG]"},
    placeholder="[IMG]",
    no_processor="PixtralProcessor needs torchvision",
    encode=_encode_mistral3,
    notes="Pixtral tower, any aspect ratio; a break token ends each row",
)
