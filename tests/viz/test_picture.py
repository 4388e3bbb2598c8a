"""Sinks are drawn where the model's patches were cut."""

import numpy as np
import pytest
from PIL import Image

from eah_interp.errors import InputError, UnsupportedError
from eah_interp.lvlm import ImagePart, ImageSpan
from eah_interp.viz import draw_sinks
from eah_interp.viz.overlays import DIMMED

SIDE = 480


def span_of(*parts, extra=()):
    columns = tuple(c for part in parts for line in part.columns for c in line) + extra
    return ImageSpan(0, 0, min(columns), max(columns) + 1, columns, parts)


def grid(start, rows, columns):
    return tuple(
        tuple(range(start + row * columns, start + (row + 1) * columns))
        for row in range(rows)
    )


def lit(image, box):
    """Whether the middle of a box has kept the white it was painted with."""
    left, top, right, bottom = box
    x, y = (left + right) / 2 * image.width, (top + bottom) / 2 * image.height
    return image.getpixel((int(x), int(y))) == (255, 255, 255)


WHOLE = ImagePart("image", grid(5, 3, 4), (0.0, 0.0, 1.0, 1.0))
CROPPED = ImagePart("image", grid(5, 4, 4), (0.25, 0.0, 0.75, 1.0))
PADDED = ImagePart("image", grid(5, 4, 4), (0.0, -0.5, 1.0, 1.5))


@pytest.mark.parametrize("part", [WHOLE, CROPPED, PADDED], ids=["3x4", "crop", "pad"])
def test_sinks_are_lit_and_the_rest_is_dimmed(part):
    white = Image.new("RGB", (SIDE * 2, SIDE), "white")
    span = span_of(part)
    for column in span.columns:
        drawn = draw_sinks(white, span, columns=[column])
        for other in span.columns:
            box = span.place(other)
            assert box is None or lit(drawn, box) == (other == column)


def test_a_place_is_lit_by_either_of_two_looks():
    overview = ImagePart("base", grid(0, 1, 1), (0.0, 0.0, 1.0, 1.0))
    crops = ImagePart("crop", grid(1, 2, 2), (0.0, 0.0, 1.0, 1.0))
    span = span_of(overview, crops, extra=(9,))
    white = Image.new("RGB", (SIDE, SIDE), "white")
    assert lit(draw_sinks(white, span, columns=[0]), (0.0, 0.0, 0.5, 0.5))
    one = draw_sinks(white, span, columns=[1, 9])  # 9 is a newline: it has no place
    assert lit(one, (0.0, 0.0, 0.5, 0.5))
    assert not lit(one, (0.5, 0.5, 1.0, 1.0))


def test_only_the_border_between_sink_and_no_sink_is_outlined():
    span = span_of(ImagePart("image", grid(0, 2, 2), (0.0, 0.0, 1.0, 1.0)))
    white = Image.new("RGB", (SIDE, SIDE), "white")
    drawn = draw_sinks(white, span, columns=[0, 1])
    upper = np.asarray(drawn)[10:200, 10:470]
    assert (upper == 255).all()  # no line between the two
    assert drawn.getpixel((SIDE // 4, SIDE // 2)) == (255, 208, 0)


def test_a_small_picture_is_enlarged_by_a_whole_factor_and_left_alone():
    small = Image.new("RGB", (80, 40), "white")
    span = span_of(WHOLE)
    drawn = draw_sinks(small, span, columns=[])
    assert drawn.size == (480, 240)
    assert drawn.getpixel((0, 0)) == (int(255 * DIMMED),) * 3
    assert small.size == (80, 40)


def test_tokens_without_a_place_are_refused():
    white = Image.new("RGB", (SIDE, SIDE), "white")
    with pytest.raises(UnsupportedError, match="stand for places in the image"):
        draw_sinks(white, ImageSpan(0, 0, 1, 3, (1, 2), ()), columns=[1])
    unknown = span_of(ImagePart("image", grid(0, 2, 2), None))
    with pytest.raises(UnsupportedError, match="expected to know which region"):
        draw_sinks(white, unknown, columns=[1])


def test_a_column_of_another_picture_is_refused():
    white = Image.new("RGB", (SIDE, SIDE), "white")
    with pytest.raises(InputError, match="got 99"):
        draw_sinks(white, span_of(WHOLE), columns=[99])


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (3, 2)])
def test_patches_smaller_than_a_pixel_are_drawn_too(size):
    sinks = WHOLE.columns[0]
    drawn = draw_sinks(Image.new("RGB", size, "white"), span_of(WHOLE), columns=sinks)
    assert drawn.width * size[1] == drawn.height * size[0]
