"""Vision sinks drawn on the picture, by the real patch grid."""

import math
from collections.abc import Iterable

from PIL import Image, ImageDraw, ImageEnhance

from eah_interp.errors import UnsupportedError
from eah_interp.lvlm.spans import Box, ImagePart, ImageSpan

OUTLINE = "#FFD000"
"""A yellow that stands out from the dimmed picture under every colour vision."""

DIMMED = 0.35
"""Brightness and saturation of what is no sink."""

LEAST_SIDE = 480
"""Smaller pictures are enlarged by a whole factor, pixels kept sharp."""


def draw_sinks(
    image: Image.Image, span: ImageSpan, *, columns: Iterable[int]
) -> Image.Image:
    """Show which places of a picture are vision sinks.

    Their patches keep their colours and are outlined; the rest is dimmed. Where a model
    looks twice (an overview and crops), a place is lit if either token is a sink. Sinks
    without a place, such as newline vectors, are left out.

    Args:
        image: The original picture.
        span: Its span in the prompt, found with the picture's size.
        columns: Positions of its vision sinks; none is a picture dimmed all over.

    Returns:
        A copy, enlarged where the picture is small.

    Raises:
        UnsupportedError: The image tokens have no place in the picture (learned
            queries), or it is not known which part of it they show.
        InputError: A column holds none of this picture's image tokens.

    Example:
        >>> from eah_interp.lvlm import ImagePart, ImageSpan
        >>> part = ImagePart("image", ((5, 6), (7, 8)), (0.0, 0.0, 1.0, 1.0))
        >>> span = ImageSpan(0, 0, 5, 9, (5, 6, 7, 8), (part,))
        >>> white = Image.new("RGB", (480, 480), "white")
        >>> drawn = draw_sinks(white, span, columns=[8])
        >>> drawn.getpixel((360, 360)), drawn.getpixel((120, 120))
        ((255, 255, 255), (89, 89, 89))
    """
    if not span.spatial:
        raise UnsupportedError(
            "expected image tokens that stand for places in the picture, got learned "
            "queries or a layout that is not known; look at densities instead"
        )
    sinks = frozenset(columns)
    boxes = [box for box in map(span.place, sorted(sinks)) if box is not None]
    factor = max(1, math.ceil(LEAST_SIDE / max(image.size)))
    size = image.width * factor, image.height * factor
    bright = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    dim = ImageEnhance.Brightness(ImageEnhance.Color(bright).enhance(DIMMED))
    lit = Image.new("1", size)
    light = ImageDraw.Draw(lit)
    for box in boxes:
        left, top, right, bottom = scale_box(box, size)
        light.rectangle((left, top, right - 1, bottom - 1), fill=1)
    drawn = Image.composite(bright, dim.enhance(DIMMED), lit)
    pen = ImageDraw.Draw(drawn)
    width = max(2, min(size) // 200)
    for part in span.parts:
        for edge in find_edges(part, sinks):
            left, top, right, bottom = scale_box(edge, size)
            last = size[0] - width // 2 - 1, size[1] - width // 2 - 1
            ends = (min(left, last[0]), min(top, last[1]))
            pen.line(
                (*ends, min(right, last[0]), min(bottom, last[1])),
                fill=OUTLINE,
                width=width,
            )
    return drawn


def find_edges(part: ImagePart, sinks: frozenset[int]) -> list[Box]:
    """Find the patch edges of a grid that have a sink on one side only."""
    edges: list[Box] = []
    grid = part.columns
    for row, line in enumerate(grid):
        for index, column in enumerate(line):
            box = part.find_box(row, index) if column in sinks else None
            if box is None:
                continue
            left, top, right, bottom = box
            sides = {
                (row - 1, index): (left, top, right, top),
                (row + 1, index): (left, bottom, right, bottom),
                (row, index - 1): (left, top, left, bottom),
                (row, index + 1): (right, top, right, bottom),
            }
            edges += [
                edge
                for (r, c), edge in sides.items()
                if not (
                    0 <= r < len(grid) and 0 <= c < len(line) and grid[r][c] in sinks
                )
            ]
    return edges


def scale_box(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Turn fractions of a picture into pixels."""
    width, height = size
    left, top, right, bottom = box
    return (
        round(left * width),
        round(top * height),
        round(right * width),
        round(bottom * height),
    )
