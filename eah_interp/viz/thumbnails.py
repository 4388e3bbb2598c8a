"""Small cuts of a picture, for token labels."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from eah_interp.lvlm.spans import Box, ImageSpan

HEIGHT = 32
"""Of a thumbnail, in pixels; a wide one is at most eight times as wide."""


def cut_groups(
    image: Image.Image, span: ImageSpan, groups: Sequence[Iterable[int]]
) -> dict[int, Image.Image]:
    """Cut out what groups of image tokens show: the box around their patches.

    Args:
        image: The original picture.
        span: Its span in the prompt.
        groups: Prompt positions of each group.

    Returns:
        A small picture for each group that has patches of this picture, by its number.

    Raises:
        UnsupportedError: If it is not known which part of the picture a grid shows.

    Example:
        >>> from eah_interp.lvlm import ImagePart
        >>> part = ImagePart("image", ((5, 6),), (0.0, 0.0, 1.0, 1.0))
        >>> span = ImageSpan(0, 0, 5, 7, (5, 6), (part,))
        >>> white = Image.new("RGB", (80, 40), "white")
        >>> {n: c.size for n, c in cut_groups(white, span, [[4], [6], [5, 6]]).items()}
        {1: (32, 32), 2: (64, 32)}
    """
    own = frozenset(span.columns)
    cuts: dict[int, Image.Image] = {}
    for number, group in enumerate(groups):
        boxes = [span.place(column) for column in group if column in own]
        known = [box for box in boxes if box is not None]
        if known:
            cuts[number] = _cut(image, _around(known))
    return cuts


def write_labels(
    tokens: Sequence[str], thumbnails: Mapping[int, Image.Image]
) -> list[str]:
    """Write tokens as HTML, some as pictures, without a space inside a tag.

    CircuitsVis turns every space of a token into a hard one; a slash parts attributes
    too.

    Args:
        tokens: HTML of each token, escaped.
        thumbnails: Pictures that stand before a token, by its number.
    """
    labels = list(tokens)
    for number, picture in thumbnails.items():
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        labels[number] = (
            f'<img/src="data:image/png;base64,{data}"/height="{picture.height}"/alt=""'
            f'/style="vertical-align:middle">{tokens[number]}'
        )
    return labels


def _around(boxes: Sequence[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _cut(image: Image.Image, box: Box) -> Image.Image:
    left, top, right, bottom = box
    sides = (
        math.floor(left * image.width + 1e-6),
        math.floor(top * image.height + 1e-6),
        max(math.ceil(right * image.width - 1e-6), 1),
        max(math.ceil(bottom * image.height - 1e-6), 1),
    )
    cut = image.convert("RGB").crop(sides)
    width = min(max(round(HEIGHT * cut.width / cut.height), 4), 8 * HEIGHT)
    small = cut.height < HEIGHT
    how = Image.Resampling.NEAREST if small else Image.Resampling.BOX
    return cut.resize((width, HEIGHT), how)
