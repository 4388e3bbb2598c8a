"""Layouts of tiles and crops beside a view of the whole image, each its own grid.

Families: internvl, idefics3, smolvlm, aya_vision, cohere2_vision, ovis2, gemma3.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import product

from transformers import BaseImageProcessor

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

PAN_AND_SCAN = "crops to help you see better"
"""What Gemma 3's processor writes between an image and its crops."""


def lay_out_internvl(image: EncodedImage) -> Layout:
    """InternVL: tiles row by row, then the whole image, in one run."""
    rows, columns = tower_grid(image.config)
    ratio = image.config.downsample_ratio
    rows, columns = int(rows * ratio), int(columns * ratio)
    one = rows * columns
    start, count = image.list_runs()[0]
    n_tiles, rest = divmod(count, one)
    if rest:
        raise InputError(
            f"expected a multiple of {one} image tokens in the run at {start}, "
            f"got {count}; pass input_ids as the processor made them, untruncated"
        )
    if n_tiles == 1:
        return one_grid(rows, columns)
    boxes = place_tiles(image, n_tiles - 1, choose=choose_tiles)
    return Layout((count,), lay_out_tiles(rows, columns, boxes).parts)


def lay_out_tiles(
    rows: int, columns: int, boxes: Sequence[Box | None], whole: Box | None = WHOLE
) -> Layout:
    """Lay out tiles and then the whole image, a run each; or the whole image alone.

    Args:
        rows: Rows of tokens of a tile, and of the whole image.
        columns: Columns of tokens.
        boxes: What each tile shows; none where there are no tiles.
        whole: What the view of the whole image shows.
    """
    if not boxes:
        return one_grid(rows, columns, whole)
    one = rows * columns
    names = [*("tile" for _ in boxes), "thumbnail"]
    parts = [
        ImagePart(name, number(rows, columns, start=i * one), box)
        for i, (name, box) in enumerate(zip(names, [*boxes, whole], strict=True))
    ]
    return Layout((one,) * len(parts), tuple(parts))


def place_tiles(
    image: EncodedImage,
    n_tiles: int,
    *,
    choose: Callable[[tuple[int, int], BaseImageProcessor], tuple[int, int]],
) -> Sequence[Box | None]:
    """Return the box of each tile; unknown without the image's size and processor.

    Args:
        image: What is known about the image.
        n_tiles: Number of tiles in its tokens, a view of the whole image left out.
        choose: From the image's size, the rows and columns of tiles.

    Raises:
        InputError: The processor would have cut another number of tiles.
    """
    image_processor = image.image_processor
    if image_processor is None or image.size is None:
        return [None] * n_tiles
    boxes = cut_boxes(*choose(image.size, image_processor))
    if len(boxes) != n_tiles:
        raise InputError(
            f"expected {len(boxes)} tiles for image {image.index} of height and "
            f"width {image.size}, got {n_tiles}; pass the size of the original "
            "image and the processor with the settings that made the encoding"
        )
    return boxes


def cut_boxes(rows: int, columns: int) -> list[Box]:
    """Cut the image in equal tiles, row by row."""
    return [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def choose_tiles(
    size: tuple[int, int], image_processor: BaseImageProcessor
) -> tuple[int, int]:
    """Return the rows and columns of tiles whose shape is nearest to the image's."""
    height, width = size
    low, high = image_processor.min_patches, image_processor.max_patches
    grids = [
        (rows, columns)
        for columns in range(1, high + 1)
        for rows in range(1, high + 1)
        if low <= rows * columns <= high
    ]
    tile = image_processor.size["height"] * image_processor.size["width"]
    best, best_gap = (1, 1), math.inf
    for rows, columns in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        gap = abs(width / height - columns / rows)
        fills = height * width > 0.5 * tile * rows * columns
        if gap < best_gap or (gap == best_gap and fills):
            best, best_gap = (rows, columns), gap
    return best


def lay_out_idefics3(image: EncodedImage) -> Layout:
    """Idefics3 and SmolVLM: a run per tile after its marker, the whole image last."""
    rows, columns = tower_grid(image.config)
    factor = image.config.scale_factor
    rows, columns = rows // factor, columns // factor
    markers = _read_markers(image)
    n_tiles = markers.index(markers[-1])  # a row of text ends with a whole image
    boxes = _place_tiles(image, markers[: n_tiles + 1])
    return lay_out_tiles(rows, columns, boxes)


def _read_markers(image: EncodedImage) -> list[tuple[int, ...]]:
    """Return the token ids of the marker before each run of image tokens.

    A marker, such as `<row_1_col_2>`, is one token in SmolVLM and several in Idefics3.
    It stands between a fake token and the run; a fake token also ends the image.
    """
    runs = image.list_runs()
    end = sum(runs[-1])
    if end >= len(image.ids):
        raise InputError(
            f"expected a closing token after the image tokens at {end}, got the end of "
            "the row; pass input_ids as the processor made them, untruncated"
        )
    fake = image.ids[end]
    markers = []
    for start, _ in runs:
        before = [i for i in range(start) if image.ids[i] == fake]
        opening = before[-1] if before else start - 1
        markers.append(tuple(image.ids[opening + 1 : start]))
    return markers


def _place_tiles(
    image: EncodedImage, markers: Sequence[tuple[int, ...]]
) -> Sequence[Box | None]:
    """Return the boxes of tiles from their markers, the last of which is global."""
    tokenizer = image.tokenizer
    if tokenizer is None:
        return [None] * (len(markers) - 1)
    names = [tokenizer.decode(list(marker)).replace(" ", "") for marker in markers]
    found = [re.fullmatch(r"<row_(\d+)_col_(\d+)>", name) for name in names]
    places = [(int(match[1]), int(match[2])) for match in found if match]
    rows, columns = places[-1] if places else (0, 0)
    expected = list(product(range(1, rows + 1), range(1, columns + 1)))
    if places != expected or len(places) != len(markers) - 1:
        raise InputError(
            "expected markers <row_1_col_1>... before the tiles of image "
            f"{image.index}, got {names}; pass the processor that made the encoding"
        )
    return cut_boxes(rows, columns)


def lay_out_gemma3(image: EncodedImage) -> Layout:
    """Gemma 3: one pooled square; with pan and scan, one more for each crop."""
    one = image.config.mm_tokens_per_image
    side = math.isqrt(one)
    tokenizer = image.tokenizer
    runs = image.list_runs()
    if len(runs) < 3:  # at least two crops follow an image that is cropped
        boxes: list[Box | None] = []
        whole: Box | None = WHOLE
    elif tokenizer is None:
        boxes, whole = [], None
    else:
        gap = image.ids[sum(runs[0]) : runs[1][0]]
        words = " ".join(tokenizer.decode(gap).split())
        boxes, whole = _cut_crops(image) if PAN_AND_SCAN in words else [], WHOLE
    parts = [
        ImagePart("crop", number(side, side, start=(i + 1) * one), box)
        for i, box in enumerate(boxes)
    ]
    base = ImagePart("image", number(side, side), whole)
    return Layout((one,) * (1 + len(boxes)), (base, *parts))


def _cut_crops(image: EncodedImage) -> list[Box | None]:
    """Return the boxes of pan and scan's crops, along the image's longer side."""
    if image.size is None:
        raise InputError(
            "expected image_sizes for an encoding with pan-and-scan crops, got none; "
            "pass the height and width of each original image"
        )
    long, short = max(image.size), min(image.size)
    low, high = (
        _read_setting(image, f"pan_and_scan_{name}")
        for name in ("min_crop_size", "max_num_crops")
    )
    n_crops = min(max(2, min(long // low, int(long / short + 0.5))), high)
    share = math.ceil(long / n_crops) / long
    cuts = [(i * share, min((i + 1) * share, 1.0)) for i in range(n_crops)]
    if image.size[1] >= image.size[0]:
        return [(start, 0.0, stop, 1.0) for start, stop in cuts]
    return [(0.0, start, 1.0, stop) for start, stop in cuts]


def _read_setting(image: EncodedImage, name: str) -> int:
    """Return a setting of the image processor, or else the processor's default."""
    value = getattr(image.image_processor, name, None)
    if value is None:
        value = type(image.processor).images_kwargs[name]  # type: ignore[union-attr]
    return int(value)


# ---- Layouts of tiles between markers: Aya Vision, Cohere2 Vision and Ovis2.


def lay_out_aya(image: EncodedImage) -> Layout:
    """Aya Vision: a run per tile after its marker, the whole image last."""
    markers = [image.ids[start - 1] for start, _ in image.list_runs()]
    n_tiles = markers.index(markers[-1])  # a row of text ends with a whole image
    return _lay_out_chosen(image, n_tiles, choose=choose_tiles)


def lay_out_cohere2(image: EncodedImage) -> Layout:
    """Cohere2 Vision: a run per tile before a line break, the whole image last."""
    runs = image.list_runs()
    n_tiles = 0
    while n_tiles + 1 < len(runs) and runs[n_tiles + 1][0] == sum(runs[n_tiles]) + 1:
        n_tiles += 1
    return _lay_out_chosen(image, n_tiles, choose=choose_canvas)


def _lay_out_chosen(
    image: EncodedImage,
    n_tiles: int,
    *,
    choose: Callable[[tuple[int, int], BaseImageProcessor], tuple[int, int]],
) -> Layout:
    """Lay out tiles and then the whole image, or the whole image alone.

    Args:
        image: What is known about the image.
        n_tiles: Number of tiles, the whole image left out.
        choose: From the image's size, the rows and columns of tiles.
    """
    factor = image.config.downsample_factor
    rows, columns = (side // factor for side in tower_grid(image.config))
    boxes = place_tiles(image, n_tiles, choose=choose) if n_tiles else []
    return lay_out_tiles(rows, columns, boxes)


def choose_canvas(
    size: tuple[int, int], image_processor: BaseImageProcessor
) -> tuple[int, int]:
    """Return the rows and columns of tiles that the image is enlarged least for.

    Where it would have to shrink on every canvas, the one that it shrinks least on.

    Args:
        size: Height and width of the image.
        image_processor: Cohere2 Vision's image processor.
    """
    high = image_processor.max_patches
    scales = {
        (rows, columns): min(
            rows * image_processor.size["height"] / size[0],
            columns * image_processor.size["height"] / size[1],
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


def lay_out_ovis2(image: EncodedImage) -> Layout:
    """Ovis2: the whole image, then tiles; indicators end columns, rows and all."""
    stride = image.config.vision_config.hidden_stride
    rows, columns = (-(-side // stride) for side in tower_grid(image.config))
    one = rows * columns
    ends = _read_ends(image)
    if len(ends) == 1:
        return one_grid(rows, columns)
    row_end = image.config.visual_indicator_token_ids[3]
    n_tiles, tile_rows = len(ends) - 1, 1 + ends.count(row_end)
    parts = [
        ImagePart("tile", number(rows, columns, start=(i + 1) * one), box)
        for i, box in enumerate(cut_boxes(tile_rows, n_tiles // tile_rows))
    ]
    thumbnail = ImagePart("thumbnail", number(rows, columns), WHOLE)
    return Layout((one,) * len(ends), (thumbnail, *parts))


def _read_ends(image: EncodedImage) -> list[int]:
    """Return the indicator after each run of the image.

    The first is the grid indicator, which the closing one follows at once where the
    image has no tiles; then one for each tile, the last of which is the closing one.
    """
    closing = image.config.visual_indicator_token_ids[4]
    ends: list[int] = []
    for run in image.list_runs():
        following = image.ids[sum(run) : sum(run) + 2]
        ends.extend(following[:1])
        closed = following if len(ends) == 1 else following[:1]
        if closing in closed:
            return ends
    raise InputError(
        f"expected the indicator {closing} after the image tokens of image "
        f"{image.index}, got the end of the row; pass input_ids as the processor "
        "made them, untruncated"
    )
