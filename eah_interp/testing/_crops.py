"""Crops beside a view of the whole picture: Llama 4 and Molmo2."""

from collections.abc import Iterator, Sequence

import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig

from eah_interp.lvlm.layouts.canvases import fit_inside
from eah_interp.testing._canvas import cut_tiles, read_pixels
from eah_interp.testing._encode import flatten, mark_tokens, write_runs
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    text_settings,
    vision_settings,
)

LLAMA4_SIDE = 32
LLAMA4_TOKENS = (
    "<|patch|>",
    "<|image|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)
MOLMO2_TOKENS = (
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<im_end>",
    "<frame_start>",
    "<frame_end>",
    "<|image|>",
)
CROP, WINDOW = 5, 3  # patches along a side of a crop, and between crops


def _configure_llama4(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size,
        tokenizer,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        intermediate_size_mlp=2 * size.d_model,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        attention_chunk_size=32,
    )
    return hf.Llama4Config(
        vision_config=vision_settings(
            intermediate_size=128,
            image_size=LLAMA4_SIDE,
            projector_input_dim=64,
            projector_output_dim=64,
            vision_output_dim=64,
        ),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
    )


def _encode_llama4(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Llama4Processor does: tiles of the least canvas that a picture fits."""
    views, runs = [], []
    for image in flatten(images):
        rows, columns = (-(-side // LLAMA4_SIDE) for side in image.size[::-1])
        runs.append(_write_llama4(rows, columns))
        if rows * columns > 1:
            canvas = Image.new("RGB", (columns * LLAMA4_SIDE, rows * LLAMA4_SIDE))
            target = max(image.height, LLAMA4_SIDE), max(image.width, LLAMA4_SIDE)
            height, width = fit_inside((image.height, image.width), target)
            canvas.paste(image.convert("RGB").resize((width, height)))
            views.append(cut_tiles(read_pixels(canvas), LLAMA4_SIDE))
            whole = image.resize((LLAMA4_SIDE, LLAMA4_SIDE))
        else:
            size = (image.height, image.width)
            height, width = fit_inside(size, (LLAMA4_SIDE, LLAMA4_SIDE))
            whole = Image.new("RGB", (LLAMA4_SIDE, LLAMA4_SIDE))
            whole.paste(image.convert("RGB").resize((width, height)))
        views.append(read_pixels(whole)[None])
    words = write_runs(tokenizer, images, prompts, placeholder="<|image|>", runs=runs)
    return BatchFeature({**words, "pixel_values": torch.cat(views)})


def _write_llama4(rows: int, columns: int) -> str:
    one = "<|patch|>" * 4
    row = "<|tile_x_separator|>".join([one] * columns) + "<|tile_y_separator|>"
    tiles = row * rows if rows * columns > 1 else ""
    return f"<|image_start|>{tiles}<|image|>{one}<|image_end|>"


def _configure_molmo2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    side = 8 * CROP
    image, _, start, low, end, frame, frame_end, _ = tokenizer.convert_tokens_to_ids(
        list(MOLMO2_TOKENS)
    )
    text = text_settings(
        size,
        tokenizer,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        additional_vocab_size=0,
    )
    tower = {"num_key_value_heads": 4, "head_dim": 8}
    return hf.Molmo2Config(
        vision_config=vision_settings(image_size=[side, side], **tower),
        adapter_config={
            "vision_feature_layer": [1, 0],
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "text_hidden_size": size.d_model,
            **tower,
        },
        text_config=text,
        image_patch_id=image,
        image_start_token_id=start,
        low_res_image_start_token_id=low,
        image_end_token_id=end,
        frame_start_token_id=frame,
        frame_end_token_id=frame_end,
    )


def _encode_molmo2(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Molmo2Processor does, with 5 x 5 patches a crop and margins of one."""
    views, pooled, grids, runs = [], [], [], []
    done = 0
    for image in flatten(images):
        # as many crops as cover the picture without making it smaller
        shape = [max(1, -(-(side - 16) // (8 * WINDOW))) for side in image.size[::-1]]
        height, width = (8 * (WINDOW * n + 2) for n in shape)
        pixels = read_pixels(image.resize((width, height)))
        crops = pixels.unfold(1, 8 * CROP, 8 * WINDOW).unfold(2, 8 * CROP, 8 * WINDOW)
        crops = crops.permute(1, 2, 0, 3, 4).flatten(0, 1)
        low = read_pixels(image.resize((8 * CROP, 8 * CROP)))[None]
        own = [torch.arange(CROP**2).view(CROP, CROP), _number_patches(*shape)]
        squares = [_pool(numbers, done + i * CROP**2) for i, numbers in enumerate(own)]
        views.append(torch.cat([low, crops]))
        done += len(views[-1]) * CROP**2
        pooled += [square.flatten(0, 1) for square in squares]
        grids.append([*squares[0].shape[:2], *squares[1].shape[:2]])
        runs.append("".join(_write_molmo2(grids[-1])))
    patches = [cut_tiles(view, 8) for view in torch.cat(views)]
    words = write_runs(tokenizer, images, prompts, placeholder="<|image|>", runs=runs)
    return BatchFeature(
        {
            **words,
            "mm_token_type_ids": mark_tokens(
                words["input_ids"], tokenizer, *MOLMO2_TOKENS[:-1]
            ),
            "pixel_values": torch.stack(patches).permute(0, 1, 3, 4, 2).flatten(2),
            "image_token_pooling": torch.cat(pooled),
            "image_grids": torch.tensor(grids),
            "image_num_crops": torch.tensor([len(view) for view in views]),
        }
    )


def _number_patches(rows: int, columns: int) -> Tensor:
    """Number the canvas's patches by the crop that they are not the margin of."""
    places = []
    for n_crops in (rows, columns):
        place = torch.arange(WINDOW * n_crops + 2)
        crop = ((place - 1).clamp(min=0) // WINDOW).clamp(max=n_crops - 1)
        places.append((crop, place - WINDOW * crop))
    (row, y), (column, x) = places
    crop = row[:, None] * columns + column
    return crop * CROP**2 + y[:, None] * CROP + x


def _pool(numbers: Tensor, first: int) -> Tensor:
    """Group a grid of patch numbers 2 x 2, with -1 below and to the right of it."""
    bottom, right = (-side % 2 for side in numbers.shape)
    padded = torch.nn.functional.pad(numbers + first, (0, right, 0, bottom), value=-1)
    return padded.unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)


def _write_molmo2(grid: Sequence[int]) -> Iterator[str]:
    for start, rows, columns in (
        ("<low_res_im_start>", grid[0], grid[1]),
        ("<im_start>", grid[2], grid[3]),
    ):
        yield start + ("<im_patch>" * columns + "<im_col>") * rows + "<im_end>"


LLAMA4 = Family(
    "llama4",
    "Llama4ForConditionalGeneration",
    _configure_llama4,
    specials=LLAMA4_TOKENS,
    named={"image_token": "<|patch|>"},
    placeholder="<|image|>",
    no_processor="Llama4Processor needs torchvision",
    encode=_encode_llama4,
    notes="tiles of 2 x 2 tokens, the whole picture last; chunked attention, experts",
)
MOLMO2 = Family(
    "molmo2",
    "Molmo2ForConditionalGeneration",
    _configure_molmo2,
    specials=MOLMO2_TOKENS,
    named={"image_token": "<im_patch>"},
    placeholder="<|image|>",
    no_processor="Molmo2Processor needs torchvision",
    encode=_encode_molmo2,
    notes="pooled patches of overlapping crops; image tokens see each other",
)
