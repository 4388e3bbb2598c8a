"""Layouts of merged patches, rows with ends and pooled crops; and of latents."""

import math

import torch

from eah_interp.lvlm.layouts.grids import (
    WHOLE,
    Box,
    ImagePart,
    Layout,
    Picture,
    lay_out_merged,
    number,
    pair,
)


def lay_out_video_llama(picture: Picture) -> Layout:
    """VideoLLaMA3: the encoding says how many patches of a picture are merged."""
    return lay_out_merged(picture, int(picture.find_entry("image_merge_sizes")))


def lay_out_muse(picture: Picture) -> Layout:
    """Muse Glimmer: merged patches of a picture resized without padding."""
    return lay_out_merged(picture, picture.config.vision_config.merge_size)


def lay_out_hunyuan(picture: Picture) -> Layout:
    """HunYuan-VL: a begin vector, rows that end with a newline vector, an end vector.

    All of them are image tokens; the vectors have no place in the picture.
    """
    _, rows, columns = picture.look_up("image_grid_thw")
    merge = picture.config.vision_config.spatial_merge_size
    rows, columns = rows // merge, columns // merge
    grid = number(rows, columns, start=1, stride=columns + 1)
    return Layout((rows * (columns + 1) + 2,), (ImagePart("image", grid, WHOLE),))


def lay_out_molmo2(picture: Picture) -> Layout:
    """Molmo2: the whole picture at low resolution, then its crops as one grid.

    Tokens pool squares of patches; `image_token_pooling` names them, with -1 for the
    padding that completes the squares at the edges.
    """
    low_rows, low_columns, rows, columns = picture.look_up("image_grids")
    earlier = torch.as_tensor(picture.encoding["image_grids"][: picture.index])
    done = int((earlier[:, 0] * earlier[:, 1] + earlier[:, 2] * earlier[:, 3]).sum())
    parts = []
    start = 0
    for name, height, width in (
        ("base", low_rows, low_columns),
        ("crop", rows, columns),
    ):
        pooled = picture.encoding["image_token_pooling"][done + start :]
        box = find_pooled_box(pooled[: height * width], (height, width))
        parts.append(ImagePart(name, number(height, width, start=start), box))
        start += height * width
    by_row = picture.list_runs()[0][1] == low_columns != low_rows * low_columns
    if by_row:  # a column token ends each row
        runs = (low_columns,) * low_rows + (columns,) * rows
    else:
        runs = (low_rows * low_columns, rows * columns)
    return Layout(runs, tuple(parts))


def find_pooled_box(pooled: torch.Tensor, shape: tuple[int, int]) -> Box:
    """Return what a grid of pooled squares shows, reaching over padded edges.

    Args:
        pooled: Patch numbers `[square, patch]` of each square, row by row; -1 for none.
        shape: Rows and columns of squares.
    """
    rows, columns = shape
    side = math.isqrt(pooled.shape[-1])
    real = (pooled >= 0).reshape(rows, columns, side, side).transpose(1, 2)
    real = real.reshape(rows * side, columns * side)
    across, down = real.any(0).long(), real.any(1).long()
    left, top = int(across.argmax()), int(down.argmax())
    width, height = int(across.sum()), int(down.sum())
    return (
        -left / width,
        -top / height,
        (columns * side - left) / width,
        (rows * side - top) / height,
    )


def lay_out_aria(picture: Picture) -> Layout:
    """Aria: learned queries for a picture, and for each crop where it is split."""
    settings = getattr(picture.processor, "image_processor", None)
    if getattr(settings, "split_image", False):
        return Layout((picture.list_runs()[0][1],))
    queries = picture.config.projector_patch_to_query_dict
    pixels = picture.encoding.get("pixel_values")
    if pixels is None:
        return Layout((max(queries.values()),))
    patch, _ = pair(picture.config.vision_config.patch_size)
    height, width = pixels.shape[-2:]
    return Layout((queries[(height // patch) * (width // patch)],))


def lay_out_kosmos2(picture: Picture) -> Layout:
    """Kosmos-2: latents, with no place in the picture."""
    return Layout((picture.config.latent_query_num,))
