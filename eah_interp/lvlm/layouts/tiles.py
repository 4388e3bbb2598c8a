"""Layouts of tiles and crops beside a view of the whole picture, each its own grid."""

import math
import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from transformers import BaseImageProcessor

from eah_interp.errors import InputError
from eah_interp.lvlm.layouts.grids import (
    WHOLE,
    Box,
    ImagePart,
    Layout,
    Picture,
    number,
    tower_grid,
)

PAN_AND_SCAN = "crops to help you see better"
"""What Gemma 3's processor writes between a picture and its crops."""


def lay_out_internvl(picture: Picture) -> Layout:
    """InternVL: tiles row by row, then the whole picture, in one run."""
    rows, columns = tower_grid(picture.config)
    ratio = picture.config.downsample_ratio
    rows, columns = int(rows * ratio), int(columns * ratio)
    one = rows * columns
    start, count = picture.list_runs()[0]
    n_tiles, rest = divmod(count, one)
    if rest:
        raise InputError(
            f"expected a multiple of {one} image tokens in the run at {start}, "
            f"got {count}; pass input_ids as the processor made them, untruncated"
        )
    if n_tiles == 1:
        return Layout((count,), (ImagePart("image", number(rows, columns), WHOLE),))
    boxes = place_tiles(picture, n_tiles - 1, choose=choose_tiles)
    parts = [
        ImagePart("tile", number(rows, columns, start=i * one), box)
        for i, box in enumerate(boxes)
    ]
    whole = number(rows, columns, start=(n_tiles - 1) * one)
    return Layout((count,), (*parts, ImagePart("thumbnail", whole, WHOLE)))


def place_tiles(
    picture: Picture,
    n_tiles: int,
    *,
    choose: Callable[[tuple[int, int], BaseImageProcessor], tuple[int, int]],
) -> Sequence[Box | None]:
    """Return the box of each tile; unknown without the picture's size and processor.

    Args:
        picture: What is known about the picture.
        n_tiles: Number of tiles in its tokens, a view of the whole picture left out.
        choose: From the picture's size, the rows and columns of tiles.

    Raises:
        InputError: The processor would have cut another number of tiles.
    """
    pictures = getattr(picture.processor, "image_processor", None)
    if pictures is None or picture.size is None:
        return [None] * n_tiles
    boxes = cut_boxes(*choose(picture.size, pictures))
    if len(boxes) != n_tiles:
        raise InputError(
            f"expected {len(boxes)} tiles for picture {picture.index} of height and "
            f"width {picture.size}, got {n_tiles}; pass the size of the original "
            "picture and the processor with the settings that made the encoding"
        )
    return boxes


def cut_boxes(rows: int, columns: int) -> list[Box]:
    """Cut the picture in equal tiles, row by row."""
    return [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def choose_tiles(
    size: tuple[int, int], pictures: BaseImageProcessor
) -> tuple[int, int]:
    """Return the rows and columns of tiles whose shape is nearest to the picture's."""
    height, width = size
    low, high = pictures.min_patches, pictures.max_patches
    grids = [
        (rows, columns)
        for columns in range(1, high + 1)
        for rows in range(1, high + 1)
        if low <= rows * columns <= high
    ]
    tile = pictures.size["height"] * pictures.size["width"]
    best, best_gap = (1, 1), math.inf
    for rows, columns in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        gap = abs(width / height - columns / rows)
        fills = height * width > 0.5 * tile * rows * columns
        if gap < best_gap or (gap == best_gap and fills):
            best, best_gap = (rows, columns), gap
    return best


def lay_out_idefics3(picture: Picture) -> Layout:
    """Idefics3 and SmolVLM: a run per tile after its marker, the whole picture last."""
    rows, columns = tower_grid(picture.config)
    factor = picture.config.scale_factor
    rows, columns = rows // factor, columns // factor
    one = rows * columns
    markers = _read_markers(picture)
    n_tiles = markers.index(markers[-1])  # a row of text ends with a whole picture
    whole = number(rows, columns, start=n_tiles * one)
    if n_tiles == 0:
        return Layout((one,), (ImagePart("image", whole, WHOLE),))
    parts = [
        ImagePart("tile", number(rows, columns, start=i * one), box)
        for i, box in enumerate(_place_tiles(picture, markers[: n_tiles + 1]))
    ]
    last = ImagePart("thumbnail", whole, WHOLE)
    return Layout((one,) * (n_tiles + 1), (*parts, last))


def _read_markers(picture: Picture) -> list[tuple[int, ...]]:
    """Return the token ids of the marker before each run of image tokens.

    A marker, such as `<row_1_col_2>`, is one token in SmolVLM and several in Idefics3.
    It stands between a fake token and the run; a fake token also ends the picture.
    """
    runs = picture.list_runs()
    end = sum(runs[-1])
    if end >= len(picture.ids):
        raise InputError(
            f"expected a closing token after the image tokens at {end}, got the end of "
            "the row; pass input_ids as the processor made them, untruncated"
        )
    fake = picture.ids[end]
    markers = []
    for start, _ in runs:
        before = [i for i in range(start) if picture.ids[i] == fake]
        opening = before[-1] if before else start - 1
        markers.append(tuple(picture.ids[opening + 1 : start]))
    return markers


def _place_tiles(
    picture: Picture, markers: Sequence[tuple[int, ...]]
) -> Sequence[Box | None]:
    """Return the boxes of tiles from their markers, the last of which is global."""
    tokenizer = getattr(picture.processor, "tokenizer", None)
    if tokenizer is None:
        return [None] * (len(markers) - 1)
    names = [tokenizer.decode(list(marker)).replace(" ", "") for marker in markers]
    found = [re.fullmatch(r"<row_(\d+)_col_(\d+)>", name) for name in names]
    places = [(int(match[1]), int(match[2])) for match in found if match]
    rows, columns = places[-1] if places else (0, 0)
    expected = list(product(range(1, rows + 1), range(1, columns + 1)))
    if places != expected or len(places) != len(markers) - 1:
        raise InputError(
            "expected markers <row_1_col_1>... before the tiles of picture "
            f"{picture.index}, got {names}; pass the processor that made the encoding"
        )
    return cut_boxes(rows, columns)


def lay_out_gemma3(picture: Picture) -> Layout:
    """Gemma 3: one pooled square; with pan and scan, one more for each crop."""
    one = picture.config.mm_tokens_per_image
    side = math.isqrt(one)
    tokenizer = getattr(picture.processor, "tokenizer", None)
    runs = picture.list_runs()
    if len(runs) < 3:  # at least two crops follow a picture that is cropped
        boxes: list[Box | None] = []
        whole: Box | None = WHOLE
    elif tokenizer is None:
        boxes, whole = [], None
    else:
        gap = picture.ids[sum(runs[0]) : runs[1][0]]
        words = " ".join(tokenizer.decode(gap).split())
        boxes, whole = _cut_crops(picture) if PAN_AND_SCAN in words else [], WHOLE
    parts = [
        ImagePart("crop", number(side, side, start=(i + 1) * one), box)
        for i, box in enumerate(boxes)
    ]
    image = ImagePart("image", number(side, side), whole)
    return Layout((one,) * (1 + len(boxes)), (image, *parts))


def _cut_crops(picture: Picture) -> list[Box | None]:
    """Return the boxes of pan and scan's crops, along the picture's longer side."""
    if picture.size is None:
        raise InputError(
            "expected image_sizes for an encoding with pan-and-scan crops, got none; "
            "pass the height and width of each original picture"
        )
    long, short = max(picture.size), min(picture.size)
    low, high = (
        _read_setting(picture, f"pan_and_scan_{name}")
        for name in ("min_crop_size", "max_num_crops")
    )
    n_crops = min(max(2, min(long // low, int(long / short + 0.5))), high)
    share = math.ceil(long / n_crops) / long
    cuts = [(i * share, min((i + 1) * share, 1.0)) for i in range(n_crops)]
    if picture.size[1] >= picture.size[0]:
        return [(start, 0.0, stop, 1.0) for start, stop in cuts]
    return [(0.0, start, 1.0, stop) for start, stop in cuts]


def _read_setting(picture: Picture, name: str) -> int:
    """Return a setting of the image processor, or else the processor's default."""
    pictures: Any = getattr(picture.processor, "image_processor", None)
    value = getattr(pictures, name, None)
    if value is None:
        value = type(picture.processor).images_kwargs[name]  # type: ignore[union-attr]
    return int(value)


# ---- Layouts of tiles between markers: Aya Vision, Cohere2 Vision and Ovis2.


def lay_out_aya(picture: Picture) -> Layout:
    """Aya Vision: a run per tile after its marker, the whole picture last."""
    markers = [picture.ids[start - 1] for start, _ in picture.list_runs()]
    n_tiles = markers.index(markers[-1])  # a row of text ends with a whole picture
    return _lay_out_tiles(picture, n_tiles, choose=choose_tiles)


def lay_out_cohere2(picture: Picture) -> Layout:
    """Cohere2 Vision: a run per tile before a line break, the whole picture last."""
    runs = picture.list_runs()
    n_tiles = 0
    while n_tiles + 1 < len(runs) and runs[n_tiles + 1][0] == sum(runs[n_tiles]) + 1:
        n_tiles += 1
    return _lay_out_tiles(picture, n_tiles, choose=choose_canvas)


def _lay_out_tiles(
    picture: Picture,
    n_tiles: int,
    *,
    choose: Callable[[tuple[int, int], BaseImageProcessor], tuple[int, int]],
) -> Layout:
    """Lay out tiles and then the whole picture, or the whole picture alone.

    Args:
        picture: What is known about the picture.
        n_tiles: Number of tiles, the whole picture left out.
        choose: From the picture's size, the rows and columns of tiles.
    """
    factor = picture.config.downsample_factor
    rows, columns = (side // factor for side in tower_grid(picture.config))
    one = rows * columns
    whole = number(rows, columns, start=n_tiles * one)
    if n_tiles == 0:
        return Layout((one,), (ImagePart("image", whole, WHOLE),))
    boxes = place_tiles(picture, n_tiles, choose=choose)
    parts = [
        ImagePart("tile", number(rows, columns, start=i * one), box)
        for i, box in enumerate(boxes)
    ]
    last = ImagePart("thumbnail", whole, WHOLE)
    return Layout((one,) * (n_tiles + 1), (*parts, last))


def choose_canvas(
    size: tuple[int, int], pictures: BaseImageProcessor
) -> tuple[int, int]:
    """Return the rows and columns of tiles that the picture is enlarged least for.

    Where it would have to shrink on every canvas, the one that it shrinks least on.

    Args:
        size: Height and width of the picture.
        pictures: Cohere2 Vision's image processor.
    """
    high = pictures.max_patches
    scales = {
        (rows, columns): min(
            rows * pictures.size["height"] / size[0],
            columns * pictures.size["height"] / size[1],
        )
        for count in range(1, high + 1)
        for columns in range(1, count + 1)
        for rows in range(1, count + 1)
        if rows * columns == count
    }
    enlarging = {grid: scale for grid, scale in scales.items() if scale >= 1}
    if enlarging:
        return min(enlarging, key=lambda grid: enlarging[grid])
    return max(scales, key=lambda grid: scales[grid])


def lay_out_ovis2(picture: Picture) -> Layout:
    """Ovis2: the whole picture, then tiles; indicators end columns, rows and all."""
    stride = picture.config.vision_config.hidden_stride
    rows, columns = (-(-side // stride) for side in tower_grid(picture.config))
    one = rows * columns
    whole = number(rows, columns)
    ends = _read_ends(picture)
    if len(ends) == 1:
        return Layout((one,), (ImagePart("image", whole, WHOLE),))
    row_end = picture.config.visual_indicator_token_ids[3]
    n_tiles, tile_rows = len(ends) - 1, 1 + ends.count(row_end)
    parts = [
        ImagePart("tile", number(rows, columns, start=(i + 1) * one), box)
        for i, box in enumerate(cut_boxes(tile_rows, n_tiles // tile_rows))
    ]
    thumbnail = ImagePart("thumbnail", whole, WHOLE)
    return Layout((one,) * len(ends), (thumbnail, *parts))


def _read_ends(picture: Picture) -> list[int]:
    """Return the indicator after each run of the picture.

    The first is the grid indicator, which the closing one follows at once where the
    picture has no tiles; then one for each tile, the last of which is the closing one.
    """
    closing = picture.config.visual_indicator_token_ids[4]
    ends: list[int] = []
    for run in picture.list_runs():
        following = picture.ids[sum(run) : sum(run) + 2]
        ends.extend(following[:1])
        closed = following if len(ends) == 1 else following[:1]
        if closing in closed:
            return ends
    raise InputError(
        f"expected the indicator {closing} after the image tokens of picture "
        f"{picture.index}, got the end of the row; pass input_ids as the processor "
        "made them, untruncated"
    )
