"""Numbers of image tokens, laid out as their patches lie in the picture."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.errors import UnsupportedError
from eah_interp.lvlm.spans import ImageSpan


def lay_out(
    span: ImageSpan, values: Mapping[int, float]
) -> tuple[Float[Tensor, "row column"], ...]:
    """Put a number of each image token where its patch was cut.

    Args:
        span: The picture in the prompt.
        values: A number for each position of `span.columns`.

    Returns:
        A grid for each of `span.parts`; NaN where a patch shows padding only.

    Raises:
        UnsupportedError: If image tokens have no place in the picture.

    Example:
        >>> from eah_interp.lvlm import ImagePart
        >>> part = ImagePart("image", ((5, 6), (7, 8)), (0.0, 0.0, 1.0, 1.0))
        >>> span = ImageSpan(0, 0, 5, 9, (5, 6, 7, 8), (part,))
        >>> lay_out(span, {5: 1.0, 6: 2.0, 7: 3.0, 8: 4.0})[0].tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    if not span.spatial:
        msg = (
            "expected image tokens that stand for places in the picture, got learned "
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
