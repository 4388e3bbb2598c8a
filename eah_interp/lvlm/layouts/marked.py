"""Layouts of tiles between markers: Aya Vision, Cohere2 Vision and Ovis2."""

from collections.abc import Callable

from transformers import BaseImageProcessor

from eah_interp.errors import InputError
from eah_interp.lvlm.layouts.grids import (
    WHOLE,
    ImagePart,
    Layout,
    Picture,
    number,
    tower_grid,
)
from eah_interp.lvlm.layouts.tiles import choose_tiles, cut_boxes, place_tiles


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
