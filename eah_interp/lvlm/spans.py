"""Where the images are in a prompt, and where in an image a prompt position is.

spans = find_spans(config, encoding, image_sizes=[(480, 640)], processor=processor)
spans[0][0].grid           # rows and columns of the first image of the first row
spans[0][0].place(42)      # the region of the image that position 42 shows
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig, ProcessorMixin

from eah_interp._types import ColumnMask
from eah_interp.errors import InputError, ModelError, UnsupportedError, show_value
from eah_interp.kinds import register
from eah_interp.lvlm.layouts import grids
from eah_interp.lvlm.layouts.grids import Box as Box
from eah_interp.lvlm.layouts.grids import EncodedImage, Layout
from eah_interp.lvlm.layouts.grids import ImagePart as ImagePart
from eah_interp.lvlm.layouts.table import LAYOUTS

PER_PICTURE = ("image_grid_thw", "image_sizes")
"""Tensors of an encoding that have one row for each image."""


@register
@dataclass(frozen=True)
class ImageSpan:
    """One image in one row of a prompt.

    Attributes:
        row: Row of the batch.
        image: Number of the image in its row.
        start: Position of its first image token; padding counts.
        stop: One past its last image token.
        columns: Positions that hold its image tokens, text and markers left out.
        parts: Its grids; empty where its tokens have no place in the image.
    """

    row: int
    image: int
    start: int
    stop: int
    columns: tuple[int, ...]
    parts: tuple[ImagePart, ...]

    def __repr__(self) -> str:
        """Write which image it is, and where; columns are counted."""
        last = f"{self.start}..{self.stop - 1}" if self.stop > self.start else "nowhere"
        parts = ", ".join(map(repr, self.parts)) or "no grid"
        return (
            f"ImageSpan(row={self.row}, image={self.image}, {len(self.columns)} tokens "
            f"at {last}: {parts})"
        )

    @property
    def spatial(self) -> bool:
        """Whether image tokens stand for places in the image."""
        return bool(self.parts)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the first part; (0, 0) where the span is not spatial."""
        if not self.parts:
            return 0, 0
        return len(self.parts[0].columns), len(self.parts[0].columns[0])

    def place(self, column: int) -> Box | None:
        """Return the region of the image that an image token stands for.

        Vision towers mix patches, so a token also carries what is elsewhere; this is
        where its patch was cut.

        Args:
            column: A position of `columns`.

        Returns:
            Left, top, right and bottom in fractions of the original image; None for
            newline vectors, latents, class tokens, and patches of padding alone.

        Raises:
            InputError: The position holds none of this image's tokens.
            UnsupportedError: The grid is known but not what of the image it shows.
        """
        if column not in self._members:
            raise InputError(
                f"expected a position of this image's tokens, {self.start} to "
                f"{self.stop - 1}, got {column}; take it from `columns`"
            )
        if column not in self._cells:
            return None
        part, row, index = self._cells[column]
        if part.box is None:
            raise UnsupportedError(
                f"expected to know which region the {part.name!r} grid shows, got "
                "neither by the encoding nor by the family; pass image_sizes and "
                "processor to find_spans"
            )
        return part.find_box(row, index)

    @cached_property
    def _members(self) -> frozenset[int]:
        return frozenset(self.columns)

    @cached_property
    def _cells(self) -> dict[int, tuple[ImagePart, int, int]]:
        return {
            column: (part, row, index)
            for part in self.parts
            for row, line in enumerate(part.columns)
            for index, column in enumerate(line)
        }


def image_token_id(config: PreTrainedConfig) -> int:
    """Return the id that stands for image content in a model's prompts.

    It is the config's: a processor's id may be a marker, as in Gemma 3.

    Raises:
        ModelError: The config names none.

    Example:
        >>> from transformers import LlavaConfig
        >>> image_token_id(LlavaConfig(image_token_id=7))
        7
    """
    vision = getattr(config, "vision_config", None)
    for holder in (config, vision):  # Phi-4-multimodal keeps it with the vision tower
        found = getattr(holder, "image_token_id", None)
        if isinstance(found, int) and found >= 0:
            return found
    raise ModelError(
        f"expected image_token_id in the config of model type {config.model_type!r}, "
        "got none; use a model whose images are tokens of the prompt, or set "
        "config.image_token_id where an old checkpoint lacks it"
    )


def image_mask(input_ids: Int[Tensor, "batch key"], image_token_id: int) -> ColumnMask:
    """Return which positions hold image tokens.

    Example:
        >>> import torch
        >>> image_mask(torch.tensor([[0, 7, 7, 3]]), 7)
        tensor([[False,  True,  True, False]])
    """
    return input_ids == image_token_id


def find_spans(
    config: PreTrainedConfig,
    encoding: Mapping[str, Any],
    *,
    image_sizes: Sequence[tuple[int, int]] | None = None,
    processor: ProcessorMixin | None = None,
) -> tuple[tuple[ImageSpan, ...], ...]:
    """Find each image of each row, and the grids that its image tokens form.

    Images that stand side by side are told apart by their number of tokens, which
    follows from the family's layout rule. Of a family without a rule, an unbroken run
    of image tokens is taken for one image, and it has a grid only where it is as long
    as the vision tower has patches.

    Args:
        config: The model's config.
        encoding: The processor's output, `input_ids` included.
        image_sizes: Height and width of every original image, in the order of the
            rows and of the images in them. Without them, what a grid shows is unknown
            where the processor crops (LLaVA) or chooses tiles by shape (InternVL).
        processor: The processor that made the encoding, for the same reason.

    Returns:
        For each row, its images from left to right; none for a row without images.

    Raises:
        ModelError: The config names no image token.
        InputError: The encoding lacks `input_ids`, or its image tokens do not add up
            to whole images, or to as many as are described.
    """
    if not isinstance(encoding, Mapping):
        got = show_value(encoding)
        raise InputError(f"expected an encoding, a mapping with input_ids, got {got}")
    ids = encoding.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise InputError(
            "expected a tensor input_ids of shape [batch, key] in the encoding, got "
            f"{getattr(ids, 'shape', ids)}; pass the processor's whole output, made "
            'with return_tensors="pt"'
        )
    lay_out = LAYOUTS.get(config.model_type, grids.lay_out_unknown)
    mask = image_mask(ids, image_token_id(config))
    rows: list[tuple[ImageSpan, ...]] = []
    index = 0
    for row, row_ids in enumerate(ids.tolist()):
        positions = mask[row].nonzero().flatten().tolist()
        spans: list[ImageSpan] = []
        while positions:
            size = None
            if image_sizes is not None:
                _check_number({"image_sizes": image_sizes}, at_least=index + 1)
                size = image_sizes[index]
            picture = EncodedImage(
                index, config, encoding, processor, size, row_ids, positions
            )
            span = _cut_span(picture, lay_out, row=row, image=len(spans))
            spans.append(span)
            positions = positions[len(span.columns) :]
            index += 1
        rows.append(tuple(spans))
    described = {key: encoding[key] for key in PER_PICTURE if key in encoding}
    if image_sizes is not None:
        described["image_sizes"] = image_sizes
    _check_number(described, at_least=index, at_most=index)
    return tuple(rows)


def _cut_span(
    picture: EncodedImage,
    lay_out: Callable[[EncodedImage], Layout],
    *,
    row: int,
    image: int,
) -> ImageSpan:
    """Cut the first image off the remaining image tokens of a row."""
    layout = lay_out(picture)
    columns = tuple(picture.positions[: layout.count])
    done = 0
    for length in layout.runs:
        run = columns[done : done + length]
        unbroken = len(run) == length and run[-1] - run[0] == length - 1
        if not unbroken:
            raise InputError(
                f"expected {length} image tokens side by side for image {image} of "
                f"row {row}, got a run of {_measure_run(run)} at {run[:1]}; pass "
                "input_ids and image tensors of one and the same processor call"
            )
        done += length
    parts = tuple(
        replace(part, columns=tuple(tuple(columns[i] for i in r) for r in part.columns))
        for part in layout.parts
    )
    return ImageSpan(row, image, columns[0], columns[-1] + 1, columns, parts)


def _measure_run(run: Sequence[int]) -> int:
    """Return how many positions follow each other without a gap."""
    return sum(position == run[0] + i for i, position in enumerate(run))


def _check_number(
    described: Mapping[str, Any], *, at_least: int, at_most: int | None = None
) -> None:
    """Refuse descriptions of fewer or more images than the text holds."""
    for name, values in described.items():
        given = len(values)
        if given < at_least or (at_most is not None and given > at_most):
            found = f"at least {at_least}" if at_most is None else str(at_least)
            raise InputError(
                f"expected {given} images by {name}, got {found} in input_ids; pass "
                "input_ids and images that belong together"
            )


# ---- Numbers of image tokens, laid out as their patches lie in the image.


def lay_out(
    span: ImageSpan, values: Mapping[int, float]
) -> tuple[Float[Tensor, "row column"], ...]:
    """Put a number of each image token where its patch was cut.

    Args:
        span: The image in the prompt.
        values: A number for each position of `span.columns`.

    Returns:
        A grid for each of `span.parts`; NaN where a patch shows padding only.

    Raises:
        UnsupportedError: If image tokens have no place in the image.

    Example:
        >>> from eah_interp.lvlm import ImagePart
        >>> part = ImagePart("image", ((5, 6), (7, 8)), (0.0, 0.0, 1.0, 1.0))
        >>> span = ImageSpan(0, 0, 5, 9, (5, 6, 7, 8), (part,))
        >>> lay_out(span, {5: 1.0, 6: 2.0, 7: 3.0, 8: 4.0})[0].tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    if not span.spatial:
        msg = (
            "expected image tokens that stand for places in the image, got learned "
            "queries or a layout that is not known; look at frame() or at sums over "
            "image tokens instead"
        )
        raise UnsupportedError(msg)
    grids = []
    for part in span.parts:
        hidden = [
            [
                part.box is not None and part.find_box(row, index) is None
                for index in range(len(line))
            ]
            for row, line in enumerate(part.columns)
        ]
        numbers = [[values[column] for column in line] for line in part.columns]
        grids.append(torch.tensor(numbers).masked_fill(torch.tensor(hidden), math.nan))
    return tuple(grids)
