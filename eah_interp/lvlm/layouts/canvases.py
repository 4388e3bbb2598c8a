"""Layouts of images on a canvas: scaled, put in its corner, and the rest padded.

Families: kimi_k25, inkling2, fuyu, llama4, lfm2_vl, phi4_multimodal.

The arithmetic follows their image processors, on sizes instead of pixels.
"""

import math
import re
from collections.abc import Sequence

import torch

from eah_interp.errors import InputError
from eah_interp.lvlm.layouts.grids import (
    WHOLE,
    Box,
    EncodedImage,
    ImagePart,
    Layout,
    number,
    one_grid,
    tower_grid,
)
from eah_interp.lvlm.layouts.tiles import cut_boxes, lay_out_tiles

Shape = tuple[int, int]
"""Height and width."""


def find_canvas_box(shown: Shape, canvas: Shape) -> Box:
    """Return a canvas in fractions of the image scaled into its top left corner."""
    return 0.0, 0.0, canvas[1] / shown[1], canvas[0] / shown[0]


def scale_size(size: Shape, scale: float) -> Shape:
    """Return a size times a factor, rounded down to whole pixels."""
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def lay_out_kimi(image: EncodedImage) -> Layout:
    """Kimi K2.5: an image is never enlarged, and padded to whole merged patches."""
    _, rows, columns = image.look_up("image_grid_thw")
    vision = image.config.vision_config
    merge_rows, merge_columns = vision.merge_kernel_size
    patch = vision.patch_size
    image_processor = image.image_processor
    longest = getattr(getattr(image_processor, "size", None), "max_height", None) or 512
    most = getattr(image_processor, "max_patches", 16384)
    box: Box | None = None
    if image.size is not None:
        height, width = image.size
        patches = max(1, height // patch) * max(1, width // patch)
        sides = [longest * patch / side for side in image.size]
        shown = scale_size(image.size, min(1.0, math.sqrt(most / patches), *sides))
        factors = (merge_rows * patch, merge_columns * patch)
        whole = [-(-side // f) * f for side, f in zip(shown, factors, strict=True)]
        if whole == [rows * patch, columns * patch]:
            box = find_canvas_box(shown, (whole[0], whole[1]))
    return one_grid(rows // merge_rows, columns // merge_columns, box)


def lay_out_inkling2(image: EncodedImage) -> Layout:
    """Inkling 2: an image is never scaled, and padded to whole image tokens.

    `image_grid_thw` counts image tokens, not the patches that they merge.
    """
    _, rows, columns = image.look_up("image_grid_thw")
    vision = image.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    box: Box | None = None
    if image.size is not None and (
        [-(-length // side) for length in image.size] == [rows, columns]
    ):
        box = find_canvas_box(image.size, (rows * side, columns * side))
    return one_grid(rows, columns, box)


def lay_out_fuyu(image: EncodedImage) -> Layout:
    """Fuyu: a run for each row of patches, and a newline token between rows."""
    runs = image.list_runs()
    columns = runs[0][1]
    rows = 1
    while rows < len(runs) and runs[rows] == (sum(runs[rows - 1]) + 1, columns):
        rows += 1
    patch = image.config.patch_size
    limits = getattr(image.image_processor, "size", None) or {
        "height": 1080,
        "width": 1920,
    }
    box: Box | None = None
    if image.size is not None:
        height, width = image.size
        scale = min(1.0, limits["height"] / height, limits["width"] / width)
        shown = scale_size(image.size, scale)
        if [-(-side // patch) for side in shown] == [rows, columns]:
            box = find_canvas_box(shown, (rows * patch, columns * patch))
    return Layout((columns,) * rows, (ImagePart("image", number(rows, columns), box),))


def lay_out_llama4(image: EncodedImage) -> Layout:
    """Llama 4: a run per tile, with separators between, and the whole image last."""
    side, _ = tower_grid(image.config)
    side = int(side * image.config.vision_config.pixel_shuffle_ratio)
    before = [image.ids[start - 1] for start, _ in image.list_runs()]
    n_tiles = before.index(before[-1])  # a row of text ends with a whole image
    if n_tiles == 0:
        return one_grid(side, side, _find_llama4_box(image, 1, 1))
    row_end = image.ids[image.list_runs()[n_tiles][0] - 2]
    rows = 1 + before[1:n_tiles].count(row_end)
    columns = n_tiles // rows
    canvas = _find_llama4_box(image, rows, columns)
    boxes = [_scale(cut, canvas) for cut in cut_boxes(rows, columns)]
    return lay_out_tiles(side, side, boxes)


def _find_llama4_box(image: EncodedImage, rows: int, columns: int) -> Box | None:
    """Return the canvas of tiles; an image is enlarged to one tile's side at most."""
    if image.size is None:
        return None
    tile = image.config.vision_config.image_size
    canvas = (rows * tile, columns * tile)
    if getattr(image.image_processor, "resize_to_max_canvas", False):
        target = canvas
    else:
        height, width = image.size
        target = min(max(height, tile), canvas[0]), min(max(width, tile), canvas[1])
    return find_canvas_box(fit_inside(image.size, target), canvas)


def fit_inside(size: Shape, target: Shape) -> Shape:
    """Scale a size until it touches the target's height or width from inside."""
    y_scale, x_scale = target[0] / size[0], target[1] / size[1]
    if x_scale < y_scale:
        return max(1, min(math.floor(size[0] * x_scale), target[0])), target[1]
    return target[0], max(1, min(math.floor(size[1] * y_scale), target[1]))


def _scale(cut: Box, box: Box | None) -> Box | None:
    """Return a part of a box that is given in fractions of it from its corner."""
    if box is None:
        return None
    return cut[0] * box[2], cut[1] * box[3], cut[2] * box[2], cut[3] * box[3]


def lay_out_lfm2(image: EncodedImage) -> Layout:
    """LFM2-VL: tiles with a marker before each and a smaller view last, or one grid.

    Runs of one image have one token between them, of two images at least two.
    """
    groups = _group_runs(image)
    runs = groups[image.index]
    shapes = image.encoding.get("spatial_shapes")
    first = sum(map(len, groups[: image.index]))
    if shapes is None or len(shapes) < first + len(runs):
        found = "none" if shapes is None else f"{len(shapes)} rows"
        raise InputError(
            f"expected 'spatial_shapes' with {len(runs)} rows from row {first} for "
            f"image {image.index}, got {found}; pass the processor's whole output"
        )
    factor = image.config.downsample_factor
    boxes = [*_place_lfm2_tiles(image, runs), WHOLE]
    parts: list[ImagePart] = []
    done = 0
    for index, box in enumerate(boxes):
        rows, columns = (-(-int(n) // factor) for n in shapes[first + index])
        last = "image" if len(runs) == 1 else "thumbnail"
        name = "tile" if index < len(boxes) - 1 else last
        parts.append(ImagePart(name, number(rows, columns, start=done), box))
        done += rows * columns
    counts = tuple(len(part.columns) * len(part.columns[0]) for part in parts)
    return Layout(counts, tuple(parts))


def _group_runs(image: EncodedImage) -> list[list[Shape]]:
    """Return start and length of each run of each image of the whole encoding."""
    groups: list[list[Shape]] = []
    for row in image.encoding["input_ids"].tolist():
        inside = [i for i, t in enumerate(row) if t == image.config.image_token_id]
        end = -2
        whole = EncodedImage(0, image.config, {}, None, None, row, inside)
        for start, length in whole.list_runs():
            if start - end == 1:
                groups[-1].append((start, length))
            else:
                groups.append([(start, length)])
            end = start + length
    return groups


def _place_lfm2_tiles(image: EncodedImage, runs: Sequence[Shape]) -> list[Box | None]:
    """Return the boxes of tiles by their markers, which only a tokenizer can read."""
    n_tiles = len(runs) - 1
    tokenizer = image.tokenizer
    if n_tiles == 0 or tokenizer is None:
        return [None] * n_tiles
    ids = [image.ids[start - 1] for start, _ in runs[:-1]]
    names = tokenizer.convert_ids_to_tokens(ids)
    found = [re.fullmatch(r"<\|img_row_(\d+)_col_(\d+)\|>", name) for name in names]
    rows, columns = (max(int(m[i]) if m else 0 for m in found) for i in (1, 2))
    if rows * columns != n_tiles:
        raise InputError(
            f"expected markers <|img_row_1_col_1|>... before the {n_tiles} tiles of "
            f"image {image.index}, got {names}; pass the processor that made the "
            "encoding"
        )
    return list(cut_boxes(rows, columns))


def lay_out_phi4(image: EncodedImage) -> Layout:
    """Phi-4: the crops' grid without padding, a separator, and the whole canvas.

    Each row of either grid ends with an extensor, which has no place.
    """
    height, width = image.look_up("image_sizes")
    vision = image.config.vision_config
    patches = vision.image_size // vision.patch_size
    side = -(-patches // 2)
    high, wide = height // vision.crop_size, width // vision.crop_size
    masks = torch.as_tensor(image.encoding["image_attention_mask"][image.index])
    kept = masks[1 : high * wide + 1, ::2, ::2].reshape(high, wide, side, side)
    kept = kept.transpose(1, 2).reshape(high * side, wide * side)
    rows, columns = int(kept[:, 0].sum()), int(kept[0].sum())
    base_box = crop_box = None
    if image.size is not None and patches % 2 == 0:
        scale = min(height / image.size[0], width / image.size[1])
        if width / image.size[1] < height / image.size[0]:
            shown = (int(image.size[0] * scale), width)
        else:
            shown = (height, int(image.size[1] * scale))
        cell = 2 * vision.patch_size
        base_box = find_canvas_box(shown, (height, width))
        crop_box = find_canvas_box(shown, (rows * cell, columns * cell))
    first = rows * (columns + 1)
    crops = number(rows, columns, stride=columns + 1)
    base = number(side, side, start=first + 1, stride=side + 1)
    parts = (ImagePart("crop", crops, crop_box), ImagePart("base", base, base_box))
    return Layout((first + 1 + side * (side + 1),), parts)
