"""What layout rules are made of, and the rules of one grid and of none.

Families: qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe, glm4v,
glm4v_moe, glm46v, ernie4_5_vl_moe, minimax_m3_vl, video_llama_3, muse_glimmer,
lighton_ocr, mistral3, hunyuan_vl, emu3, gemma4 (one grid, whose rows and columns the
encoding counts); blip-2, instructblip, idefics2, aria, kosmos-2 (none).

A rule gets what is known about an image and says how many image tokens it takes and
which of them form which grid. Token numbers in a `Layout` count the image's own image
tokens from 0; `spans` turns them into positions in the prompt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, ProcessorMixin

from eah_interp.errors import InputError
from eah_interp.kinds import register

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the original image's width and height."""

Grid = tuple[tuple[int, ...], ...]
"""Token numbers or positions, row by row."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@register
@dataclass(frozen=True)
class ImagePart:
    """A rectangular grid of image tokens, and the region of the image it shows.

    Attributes:
        name: "image" (all of it), "base" and "crop" (LLaVA-NeXT), "tile" and
            "thumbnail" (InternVL, Idefics3).
        columns: Positions in the prompt, padding counted, row by row.
        box: What the grid shows, in fractions of the original image. It may reach
            beyond 0 and 1 where patches at the edge also show padding. None where it
            cannot be known without the image's size or the processor.
    """

    name: str
    columns: Grid
    box: Box | None

    def __post_init__(self) -> None:
        # A saved one may hold any float: a NaN would draw a patch nowhere.
        if self.box is not None and not all(map(math.isfinite, self.box)):
            msg = f"{self.name}: expected a box of finite fractions, got {self.box}"
            raise InputError(msg)

    def __repr__(self) -> str:
        """Write its name and size, and what it shows."""
        size = f"{len(self.columns)} x {len(self.columns[0]) if self.columns else 0}"
        box = "?" if self.box is None else ", ".join(f"{end:.3g}" for end in self.box)
        return f"{self.name} {size} [{box}]"

    def find_box(self, row: int, column: int) -> Box | None:
        """Return the region that one patch shows, cut at the image's edge.

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
    """How many image tokens an image takes, and the grids among them.

    Attributes:
        runs: Lengths of the unbroken runs of image tokens; markers stand between them.
        parts: Grids of token numbers counted from the image's first image token;
            empty where the tokens have no place in the image.
    """

    runs: tuple[int, ...]
    parts: tuple[ImagePart, ...] = ()

    @property
    def count(self) -> int:
        """Number of image tokens."""
        return sum(self.runs)


@dataclass(frozen=True)
class EncodedImage:
    """What is known about one image of an encoding.

    Attributes:
        index: Number of the image, counted over the whole batch.
        config: The model's config.
        encoding: The processor's output.
        processor: The processor, where there is one.
        size: Height and width of the original, where they are known.
        ids: The row's token ids.
        positions: The row's image token positions from the image's first one on.
    """

    index: int
    config: PreTrainedConfig
    encoding: Mapping[str, Any]
    processor: ProcessorMixin | None
    size: tuple[int, int] | None
    ids: Sequence[int]
    positions: Sequence[int]

    @property
    def image_processor(self) -> Any:
        """The processor's part for images; None where there is none."""
        return getattr(self.processor, "image_processor", None)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; None where there is none."""
        return getattr(self.processor, "tokenizer", None)

    def look_up(self, key: str) -> list[int]:
        """Return the image's row in a per-image tensor of the encoding.

        Raises:
            InputError: The encoding lacks the key, or has too few entries.
        """
        return [int(value) for value in self.find_entry(key)]

    def find_entry(self, key: str) -> Any:
        """Return the image's entry in a per-image tensor of the encoding.

        Raises:
            InputError: The encoding lacks the key, or has too few entries.
        """
        values = self.encoding.get(key)
        if values is None or len(values) <= self.index:
            found = "none" if values is None else f"{len(values)} entries"
            raise InputError(
                f"expected {key!r} in the encoding with an entry for image "
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
    # With a stride, a crop so thin that newlines are all that is left has no columns.
    if not stride and (rows < 1 or columns < 1):
        msg = (
            f"an image would have {rows} x {columns} patches: expected 1 x 1 or more; "
            "its pixel_values are of a size that the model's processor does not make"
        )
        raise InputError(msg)
    stride = stride or columns
    firsts = range(start, start + rows * stride, stride)
    return tuple(tuple(range(first, first + columns)) for first in firsts)


def one_grid(rows: int, columns: int, box: Box | None = WHOLE) -> Layout:
    """Return the layout of one grid in one run, of an image shown whole unless told."""
    part = ImagePart("image", number(rows, columns), box)
    return Layout((rows * columns,), (part,))


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size that a config gives as one number or two."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def image_size_of(pixels: Any) -> tuple[int, int]:
    """Return height and width of the images that `pixel_values` hold.

    Raises:
        InputError: If they have no two axes of places.
    """
    shape: tuple[int, ...] = tuple(getattr(pixels, "shape", ()))
    if len(shape) < 2:
        msg = (
            f"pixel_values must be [..., height, width], got {list(shape)}: encode "
            "images with the model's processor"
        )
        raise InputError(msg)
    return int(shape[-2]), int(shape[-1])


def tower_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Return rows and columns of the patches that the vision tower sees."""
    vision = config.vision_config
    height, width = pair(vision.image_size)
    patch_height, patch_width = pair(vision.patch_size)
    return height // patch_height, width // patch_width


# ---- One grid whose rows and columns the encoding counts.


def lay_out_grid_thw(image: EncodedImage) -> Layout:
    """Qwen-VL and GLM-4V: `image_grid_thw` counts patches, which the model merges."""
    return lay_out_merged(image, image.config.vision_config.spatial_merge_size)


def lay_out_merged(image: EncodedImage, merge: int) -> Layout:
    """Lay an image out by its `image_grid_thw`, in squares of `merge` patches."""
    frames, rows, columns = image.look_up("image_grid_thw")
    rows, columns = rows // merge, columns // merge
    one = rows * columns
    parts = tuple(
        ImagePart("image", number(rows, columns, start=frame * one), WHOLE)
        for frame in range(frames)
    )
    return Layout((frames * one,), parts)


def lay_out_video_llama(image: EncodedImage) -> Layout:
    """VideoLLaMA3: the encoding says how many patches of an image are merged."""
    return lay_out_merged(image, int(image.find_entry("image_merge_sizes")))


def lay_out_muse(image: EncodedImage) -> Layout:
    """Muse Glimmer: merged patches of an image resized without padding."""
    return lay_out_merged(image, image.config.vision_config.merge_size)


def lay_out_pixtral(image: EncodedImage) -> Layout:
    """Pixtral and Mistral 3: `image_sizes` are pixels after resizing, without crop."""
    height, width = image.look_up("image_sizes")
    merge = getattr(image.config, "spatial_merge_size", 1)
    patch_height, patch_width = pair(image.config.vision_config.patch_size)
    rows, columns = height // (patch_height * merge), width // (patch_width * merge)
    part = ImagePart("image", number(rows, columns), WHOLE)
    return Layout((columns,) * rows, (part,))


def lay_out_hunyuan(image: EncodedImage) -> Layout:
    """HunYuan-VL: a begin vector, rows that end with a newline vector, an end vector.

    All of them are image tokens; the vectors have no place in the image.
    """
    _, rows, columns = image.look_up("image_grid_thw")
    merge = image.config.vision_config.spatial_merge_size
    rows, columns = rows // merge, columns // merge
    grid = number(rows, columns, start=1, stride=columns + 1)
    return Layout((rows * (columns + 1) + 2,), (ImagePart("image", grid, WHOLE),))


def lay_out_emu3(image: EncodedImage) -> Layout:
    """Emu3: rows of codes, each with an end-of-line code; sizes are after resizing."""
    height, width = image.look_up("image_sizes")
    factor = 2 ** (len(image.config.vq_config.channel_multiplier) - 1)
    rows, columns = height // factor, width // factor
    grid = number(rows, columns, stride=columns + 1)
    return Layout((rows * (columns + 1),), (ImagePart("image", grid, WHOLE),))


def lay_out_gemma4(image: EncodedImage) -> Layout:
    """Gemma 4: `image_position_ids` places patches, which the tower pools."""
    places = torch.as_tensor(image.find_entry("image_position_ids"))
    pool = image.config.vision_config.pooling_kernel_size
    columns, rows = ((places.amax(0) + 1) // pool).tolist()
    return one_grid(rows, columns)


# ---- Latents and learned queries, which have no place in the image.


def lay_out_queries(image: EncodedImage) -> Layout:
    """BLIP-2 and InstructBLIP: learned queries, with no place in the image."""
    return Layout((image.config.num_query_tokens,))


def lay_out_perceiver(image: EncodedImage) -> Layout:
    """Idefics2: perceiver latents; an image that is split takes five runs of them."""
    latents = image.config.perceiver_config.resampler_n_latents
    splits = getattr(image.image_processor, "do_image_splitting", False)
    return Layout((latents,) * (5 if splits else 1))


def lay_out_aria(image: EncodedImage) -> Layout:
    """Aria: learned queries for an image, and for each crop where it is split."""
    if getattr(image.image_processor, "split_image", False):
        return Layout((image.list_runs()[0][1],))
    queries = image.config.projector_patch_to_query_dict
    pixels = image.encoding.get("pixel_values")
    if pixels is None:
        return Layout((max(queries.values()),))
    patch, _ = pair(image.config.vision_config.patch_size)
    height, width = image_size_of(pixels)
    return Layout((queries[(height // patch) * (width // patch)],))


def lay_out_kosmos2(image: EncodedImage) -> Layout:
    """Kosmos-2: latents, with no place in the image."""
    return Layout((image.config.latent_query_num,))


# ---- Families without a rule.


def lay_out_unknown(image: EncodedImage) -> Layout:
    """Any other family: an unbroken run is taken for an image.

    It gets a grid only where it has exactly as many tokens as the vision tower has
    patches: a square number alone may as well count latents or rows with ends.
    """
    _, count = image.list_runs()[0]
    vision = getattr(image.config, "vision_config", None)
    if not (hasattr(vision, "image_size") and hasattr(vision, "patch_size")):
        return Layout((count,))
    rows, columns = tower_grid(image.config)
    if rows * columns != count:
        return Layout((count,))
    return one_grid(rows, columns, None)
