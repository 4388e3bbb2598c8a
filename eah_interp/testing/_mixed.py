"""Decoders that attend in some layers only: Qwen3.5 and LFM2-VL."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import transformers as hf
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedConfig

from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    build_row_patcher,
    cut_tiles,
    encode_merged,
    flatten,
    read_pixels,
    text_settings,
    vision_settings,
    write_runs,
)
from eah_interp.testing._qwen import QWEN3_VL, build_rope, name_tokens
from eah_interp.testing._tiles import INTERNVL


def list_kinds(size: Size, *, other: str) -> list[str]:
    """Return the kind of each layer: odd layers attend, and so does an only one."""
    return [
        "full_attention" if i % 2 or size.n_layers == 1 else other
        for i in range(size.n_layers)
    ]


def _configure_qwen3_5(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": size.d_model,
        "num_heads": 4,
        "patch_size": 8,
        "num_position_embeddings": 64,
    }
    text = text_settings(
        size,
        tokenizer,
        rope_parameters={**build_rope(size), "partial_rotary_factor": 1.0},
        layer_types=list_kinds(size, other="linear_attention"),
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )
    return hf.Qwen3_5Config(
        vision_config=vision, text_config=text, **name_tokens(tokenizer)
    )


def _configure_lfm2_vl(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = vision_settings(
        model_type="siglip2_vision_model", num_patches=64, vision_use_head=False
    )
    del vision["image_size"]
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
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )


def _encode_lfm2_vl(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
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


def _encode_qwen3_5(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Call the real processor, which is Qwen3-VL's."""
    assert QWEN3_VL.build_processor is not None
    processor = QWEN3_VL.build_processor(tokenizer)
    encoding: BatchFeature = processor(
        images=[list(row) for row in images],
        text=list(prompts),
        padding=True,
        return_tensors="pt",
    )
    return encoding


QWEN3_5 = replace(
    QWEN3_VL,
    name="qwen3_5",
    model="Qwen3_5ForConditionalGeneration",
    build_config=_configure_qwen3_5,
    build_processor=None,
    no_processor="its tokenizer is loaded as a byte-level one, whatever was saved",
    encode=_encode_qwen3_5,
    notes="every other layer is a gated delta net, without a pattern; gated attention",
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


# ---- More than queries and keys per head: MiniMax M3, Inkling 2, and gpt-oss.


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
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
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
    return hf.MiniMaxM3VLConfig(
        vision_config=vision_settings(image_size=96),
        text_config=text,
        projector_hidden_size=32,
        image_token_index=tokenizer.convert_tokens_to_ids(MINIMAX_TOKENS[0]),
        video_token_index=tokenizer.convert_tokens_to_ids(MINIMAX_TOKENS[1]),
    )


def _encode_minimax(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what MiniMaxM3VLProcessor does."""
    pictures = hf.Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 96 * 96}
    )
    image, _, start, end = MINIMAX_TOKENS
    return encode_merged(
        tokenizer,
        images,
        prompts,
        pictures=pictures,
        placeholder=image,
        token=image,
        around=(start, end),
    )


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
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )


def _encode_inkling2(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
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


def _configure_internvl_gpt_oss(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = hf.GptOssConfig(
        **text_settings(
            size,
            tokenizer,
            sliding_window=12,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )
    )
    other = INTERNVL.build_config(size, tokenizer).to_dict()
    return hf.InternVLConfig(
        vision_config=other["vision_config"],
        text_config=text,
        image_token_id=other["image_token_id"],
        image_seq_length=other["image_seq_length"],
        tie_word_embeddings=False,
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


INKLING2 = Family(
    "inkling2",
    "Inkling2ForConditionalGeneration",
    _configure_inkling2,
    no_processor="Inkling2Processor needs torchvision",
    encode=_encode_inkling2,
    notes="each row of each head has a learned sink and a position bias of its own",
)


INTERNVL_GPT_OSS = replace(
    INTERNVL,
    name="internvl_gpt_oss",
    build_config=_configure_internvl_gpt_oss,
    notes="InternVL on a gpt-oss decoder: each head has a learned sink, as a weight",
)
