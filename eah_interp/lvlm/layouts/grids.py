"""How each family lays a picture out in image tokens: one small rule per layout.

A rule gets what is known about a picture and says how many image tokens it takes and
which of them form which grid. Token numbers in a `Layout` count the picture's own image
tokens from 0; `spans` turns them into positions in the prompt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, ProcessorMixin

from eah_interp.errors import InputError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the original picture's width and height."""


Grid = tuple[tuple[int, ...], ...]
"""Token numbers or positions, row by row."""


WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class ImagePart:
    """A rectangular grid of image tokens, and the region of the picture it shows.

    Attributes:
        name: "image" (all of it), "base" and "crop" (LLaVA-NeXT), "tile" and
            "thumbnail" (InternVL, Idefics3).
        columns: Positions in the prompt, padding counted, row by row.
        box: What the grid shows, in fractions of the original picture. It may reach
            beyond 0 and 1 where patches at the edge also show padding. None where it
            cannot be known without the picture's size or the processor.
    """

    name: str
    columns: Grid
    box: Box | None

    def find_box(self, row: int, column: int) -> Box | None:
        """Return the region that one patch shows, cut at the picture's edge.

        None where the patch shows padding only, or where `box` is None.
        """
        if self.box is None:
            return None
        left, top, right, bottom = self.box
        width = (right - left) / len(self.columns[0])
        height = (bottom - top) / len(self.columns)
        patch = (
            min(max(left + column * width, 0.0), 1.0),
            min(max(top + row * height, 0.0), 1.0),
            min(max(left + (column + 1) * width, 0.0), 1.0),
            min(max(top + (row + 1) * height, 0.0), 1.0),
        )
        return patch if patch[0] < patch[2] and patch[1] < patch[3] else None


@dataclass(frozen=True)
class Layout:
    """How many image tokens a picture takes, and the grids among them.

    Attributes:
        runs: Lengths of the unbroken runs of image tokens; markers stand between them.
        parts: Grids of token numbers counted from the picture's first image token;
            empty where the tokens have no place in the picture.
    """

    runs: tuple[int, ...]
    parts: tuple[ImagePart, ...] = ()

    @property
    def count(self) -> int:
        """Number of image tokens."""
        return sum(self.runs)


@dataclass(frozen=True)
class Picture:
    """What is known about one picture of an encoding.

    Attributes:
        index: Number of the picture, counted over the whole batch.
        config: The model's config.
        encoding: The processor's output.
        processor: The processor, where there is one.
        size: Height and width of the original, where they are known.
        ids: The row's token ids.
        positions: The row's image token positions from the picture's first one on.
    """

    index: int
    config: PreTrainedConfig
    encoding: Mapping[str, Any]
    processor: ProcessorMixin | None
    size: tuple[int, int] | None
    ids: Sequence[int]
    positions: Sequence[int]

    def look_up(self, key: str) -> list[int]:
        """Return the picture's row in a per-picture tensor of the encoding.

        Raises:
            InputError: The encoding lacks the key, or has too few entries.
        """
        return [int(value) for value in self.find_entry(key)]

    def find_entry(self, key: str) -> Any:
        """Return the picture's entry in a per-picture tensor of the encoding.

        Raises:
            InputError: The encoding lacks the key, or has too few entries.
        """
        values = self.encoding.get(key)
        if values is None or len(values) <= self.index:
            found = "none" if values is None else f"{len(values)} entries"
            raise InputError(
                f"expected {key!r} in the encoding with an entry for picture "
                f"{self.index}, got {found}; pass the processor's whole output"
            )
        return values[self.index]

    def list_runs(self) -> list[tuple[int, int]]:
        """Return start and length of each unbroken run of the remaining positions."""
        runs: list[tuple[int, int]] = []
        for position in self.positions:
            if runs and sum(runs[-1]) == position:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((position, 1))
        return runs


def number(rows: int, columns: int, *, start: int = 0, stride: int = 0) -> Grid:
    """Number a grid row by row.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        start: Number of the first token.
        stride: Distance from one row's first token to the next row's; `columns` if 0.
    """
    stride = stride or columns
    firsts = range(start, start + rows * stride, stride)
    return tuple(tuple(range(first, first + columns)) for first in firsts)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size that a config gives as one number or two."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def tower_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Return rows and columns of the patches that the vision tower sees."""
    vision = config.vision_config
    height, width = pair(vision.image_size)
    patch_height, patch_width = pair(vision.patch_size)
    return height // patch_height, width // patch_width


def lay_out_grid_thw(picture: Picture) -> Layout:
    """Qwen-VL and GLM-4V: `image_grid_thw` counts patches, which the model merges."""
    return lay_out_merged(picture, picture.config.vision_config.spatial_merge_size)


def lay_out_merged(picture: Picture, merge: int) -> Layout:
    """Lay a picture out by its `image_grid_thw`, in squares of `merge` patches."""
    frames, rows, columns = picture.look_up("image_grid_thw")
    rows, columns = rows // merge, columns // merge
    one = rows * columns
    parts = tuple(
        ImagePart("image", number(rows, columns, start=frame * one), WHOLE)
        for frame in range(frames)
    )
    return Layout((frames * one,), parts)


def lay_out_pixtral(picture: Picture) -> Layout:
    """Pixtral and Mistral 3: `image_sizes` are pixels after resizing, without crop."""
    height, width = picture.look_up("image_sizes")
    merge = getattr(picture.config, "spatial_merge_size", 1)
    patch_height, patch_width = pair(picture.config.vision_config.patch_size)
    rows, columns = height // (patch_height * merge), width // (patch_width * merge)
    part = ImagePart("image", number(rows, columns), WHOLE)
    return Layout((columns,) * rows, (part,))


def lay_out_queries(picture: Picture) -> Layout:
    """BLIP-2 and InstructBLIP: learned queries, with no place in the picture."""
    return Layout((picture.config.num_query_tokens,))


def lay_out_perceiver(picture: Picture) -> Layout:
    """Idefics2: perceiver latents; a picture that is split takes five runs of them."""
    latents = picture.config.perceiver_config.resampler_n_latents
    pictures = getattr(picture.processor, "image_processor", None)
    splits = getattr(pictures, "do_image_splitting", False)
    return Layout((latents,) * (5 if splits else 1))


def lay_out_unknown(picture: Picture) -> Layout:
    """Any other family: an unbroken run is taken for a picture.

    It gets a grid only where it has exactly as many tokens as the vision tower has
    patches: a square number alone may as well count latents or rows with ends.
    """
    _, count = picture.list_runs()[0]
    vision = getattr(picture.config, "vision_config", None)
    if not (hasattr(vision, "image_size") and hasattr(vision, "patch_size")):
        return Layout((count,))
    rows, columns = tower_grid(picture.config)
    if rows * columns != count:
        return Layout((count,))
    return Layout((count,), (ImagePart("image", number(rows, columns), None),))


# ---- Layouts of merged patches, rows with ends and pooled crops; and of latents.


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
