"""Images of any size, cut in patches or padded to whole ones, with ready-made inputs.

Families: kimi_k25, muse_glimmer, minimax_m3_vl, lfm2_vl, inkling2.
"""

from collections.abc import Sequence

import torch
import transformers as hf
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedConfig

from eah_interp.testing._facts import (
    PIXELS,
    Family,
    ImageRows,
    Size,
    Tokenizer,
    any_size_settings,
    build_row_patcher,
    cut_tiles,
    encode_merged,
    flatten,
    list_kinds,
    name_ids,
    pad_image,
    read_pixels,
    rope_settings,
    text_settings,
    vision_settings,
    write_runs,
)

# ---- Kimi K2.5.


def _configure_kimi(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size,
        tokenizer,
        num_key_value_heads=size.n_heads,  # latent attention has no groups
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=size.d_head,
        qk_rope_head_dim=size.d_head,
        v_head_dim=size.d_head,
        n_group=1,
        topk_group=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    )
    del text["head_dim"]
    return hf.Kimi_K25Config(
        vision_config=any_size_settings(pos_emb_height=8, pos_emb_width=8),
        text_config=hf.DeepseekV3Config(**text),
        projection_hidden_size=32,
        tie_word_embeddings=False,
        **name_ids(
            tokenizer,
            image_token_id="<|media_pad|>",
            video_token_id="<|video_pad|>",
            vision_start_token_id="<|media_begin|>",
            vision_end_token_id="<|media_end|>",
        ),
    )


def _encode_kimi(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Kimi_K25Processor does: pad with black to whole merged patches."""
    padded = [[pad_image(image, factor=16) for image in row] for row in images]
    encoding = encode_merged(
        tokenizer,
        padded,
        prompts,
        image_processor=build_row_patcher(),
        placeholder="<|media_pad|>",
        token="<|media_pad|>",
    )
    encoding["pixel_values"] = encoding["pixel_values"].view(-1, 3, 8, 8)
    return encoding


KIMI = Family(
    "kimi_k25",
    "Kimi_K25ForConditionalGeneration",
    _configure_kimi,
    specials=("<|media_pad|>", "<|video_pad|>", "<|media_begin|>", "<|media_end|>"),
    named={"image_token": "<|media_pad|>"},
    placeholder="<|media_begin|><|media_pad|><|media_end|>",
    no_processor="Kimi_K25Processor needs torchvision",
    encode=_encode_kimi,
    notes="latent attention: q and k are wider than v, and every head has its own",
)


# ---- Muse Glimmer.


def _configure_muse(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = any_size_settings(
        pos_emb_height=8, pos_emb_width=8, max_position_embeddings=64
    )
    text = text_settings(
        size, tokenizer, rope_parameters=rope_settings(), output_multiplier=1.0
    )
    return hf.MuseGlimmerConfig(
        vision_config=vision,
        text_config=text,
        out_hidden_size=128,
        projector_hidden_size=64,
        **name_ids(tokenizer, image_token_id="<|patch|>", video_token_id="<|video|>"),
    )


def _encode_muse(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what MuseGlimmerProcessor does, with the sizes that Qwen's would choose."""
    encoding = encode_merged(
        tokenizer,
        images,
        prompts,
        image_processor=build_row_patcher(),
        placeholder="<|patch|>",
        token="<|patch|>",
        around=("<|image_start|>", "<|image_end|>"),
    )
    encoding["pixel_values"] = encoding["pixel_values"].repeat(1, 2)
    return encoding


MUSE_GLIMMER = Family(
    "muse_glimmer",
    "MuseGlimmerForConditionalGeneration",
    _configure_muse,
    specials=("<|patch|>", "<|video|>", "<|image_start|>", "<|image_end|>"),
    named={"image_token": "<|patch|>"},
    placeholder="<|patch|>",
    no_processor="MuseGlimmerProcessor needs torchvision",
    encode=_encode_muse,
    notes="gated attention, QK-norm without weights, windows and NoPE layers",
)


# ---- MiniMax M3.

MINIMAX_TOKENS = (
    "]<]image[>[",
    "]<]video[>[",
    "]<]start of image[>[",
    "]<]end of image[>[",
)


def _configure_minimax(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    # sparse layers keep 2 blocks of 4 keys for each group of heads: a mask per head
    text = text_settings(
        size,
        tokenizer,
        rope_parameters=rope_settings(),
        layer_types=["minimax_m3_sparse"] * size.n_layers,
        mlp_layer_types=["sparse" if i % 2 else "dense" for i in range(size.n_layers)],
        dense_intermediate_size=2 * size.d_model,
        shared_intermediate_size=16,
        intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        index_n_heads=size.n_kv_heads,
        index_head_dim=size.d_head,
        index_block_size=4,
        index_topk_blocks=2,
    )
    image, video, *_ = MINIMAX_TOKENS
    return hf.MiniMaxM3VLConfig(
        vision_config=vision_settings(image_size=96),
        text_config=text,
        projector_hidden_size=32,
        **name_ids(tokenizer, image_token_index=image, video_token_index=video),
    )


def _encode_minimax(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what MiniMaxM3VLProcessor does."""
    image, _, start, end = MINIMAX_TOKENS
    return encode_merged(
        tokenizer,
        images,
        prompts,
        image_processor=hf.Qwen2VLImageProcessorPil(patch_size=8, size=PIXELS),
        placeholder=image,
        token=image,
        around=(start, end),
    )


MINIMAX_M3_VL = Family(
    "minimax_m3_vl",
    "MiniMaxM3SparseForConditionalGeneration",
    _configure_minimax,
    specials=MINIMAX_TOKENS,
    named={"image_token": MINIMAX_TOKENS[0]},
    placeholder=MINIMAX_TOKENS[0],
    no_processor="MiniMaxM3VLProcessor needs torchvision",
    encode=_encode_minimax,
    notes="sparse attention: each group of heads has a mask of its own",
)


# ---- LFM2-VL.


def _configure_lfm2_vl(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = any_size_settings(
        model_type="siglip2_vision_model", num_patches=64, vision_use_head=False
    )
    text = text_settings(
        size,
        tokenizer,
        layer_types=list_kinds(size, other="conv"),
        block_auto_adjust_ff_dim=False,
    )
    return hf.Lfm2VlConfig(
        vision_config=vision,
        text_config=hf.Lfm2Config(**text),
        projector_hidden_size=64,
        tie_word_embeddings=False,
        **name_ids(tokenizer, image_token_id="<image>"),
    )


def _encode_lfm2_vl(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Lfm2VlProcessor does with `do_image_splitting=False`."""
    encoded = build_row_patcher()(flatten(images), return_tensors="pt")
    shapes = encoded["image_grid_thw"][:, 1:]
    counts = shapes.prod(-1).tolist()
    patches = encoded["pixel_values"].view(-1, 3, 8, 8).permute(0, 2, 3, 1).flatten(1)
    seen = [torch.ones(count, dtype=torch.long) for count in counts]
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="<image>",
        runs=(
            "<|image_start|>" + "<image>" * (count // 4) + "<|image_end|>"
            for count in counts
        ),
    )
    return BatchFeature(
        {
            **words,
            "pixel_values": pad_sequence(patches.split(counts), batch_first=True),
            "pixel_attention_mask": pad_sequence(seen, batch_first=True),
            "spatial_shapes": shapes,
        }
    )


LFM2_VL = Family(
    "lfm2_vl",
    "Lfm2VlForConditionalGeneration",
    _configure_lfm2_vl,
    specials=("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
    no_processor="Lfm2VlProcessor needs torchvision",
    encode=_encode_lfm2_vl,
    notes="every other layer is a short convolution, without a pattern",
)


# ---- Inkling 2.

INKLING2_SIDE = 16  # pixels of an image token: 2 x 2 patches of 8
INKLING2_WINDOW = 12


def _configure_inkling2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    # as the checkpoints: windows, and full attention in the last layer of each period
    kinds = ["hybrid" if i % 3 == 2 else "hybrid_sliding" for i in range(size.n_layers)]
    text = text_settings(
        size,
        tokenizer,
        swa_num_attention_heads=size.n_heads,
        swa_num_key_value_heads=size.n_kv_heads,
        swa_head_dim=size.d_head,
        layer_types=kinds,
        d_rel=4,
        rel_extent=INKLING2_WINDOW,
        sliding_window_size=INKLING2_WINDOW,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
    )
    text["unpadded_vocab_size"] = text["vocab_size"]
    del text["intermediate_size"]
    return hf.Inkling2Config(
        vision_config={
            **vision_settings(text_hidden_size=size.d_model),
            "projection_hidden_dim": 64,
            "posemb_grid_size": 8,
        },
        text_config=text,
        **name_ids(tokenizer, image_token_id="<image>"),
    )


def _encode_inkling2(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Inkling2Processor does: no resizing, and padding just below black."""
    tiles, grids = [], []
    for image in flatten(images):
        pixels = read_pixels(image)
        bottom, right = (-side % INKLING2_SIDE for side in pixels.shape[1:])
        below_black = -1 - 1 / 127.5
        pixels = torch.nn.functional.pad(
            pixels, (0, right, 0, bottom), value=below_black
        )
        tiles.append(cut_tiles(pixels, INKLING2_SIDE).permute(0, 2, 3, 1))
        grids.append([1, *(side // INKLING2_SIDE for side in pixels.shape[1:])])
    runs = ("<image>" * len(tile) for tile in tiles)
    words = write_runs(tokenizer, images, prompts, placeholder="<image>", runs=runs)
    if not tiles:
        return BatchFeature(words)
    grid = torch.tensor(grids)
    return BatchFeature(
        {**words, "pixel_values": torch.cat(tiles), "image_grid_thw": grid}
    )


INKLING2 = Family(
    "inkling2",
    "Inkling2ForConditionalGeneration",
    _configure_inkling2,
    no_processor="Inkling2Processor needs torchvision",
    encode=_encode_inkling2,
    notes="each row of each head has a learned sink and a position bias of its own",
)
