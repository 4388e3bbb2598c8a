"""Effects of image tokens drawn on the picture, by the real patch grid."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from eah_interp.attribution.picture.map import PictureAttribution, Run
from eah_interp.errors import UnsupportedError
from eah_interp.lvlm.spans import ImagePart
from eah_interp.viz.effects import PAGE_WIDTH, check_target, name_target
from eah_interp.viz.figures import COLUMN_WIDTH, make_figure
from eah_interp.viz.picture import LEAST_SIDE, OUTLINE, find_edges, scale_box

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

POSITIVE, NEGATIVE = (84, 39, 136), (179, 88, 6)
"""The purple and the orange of the heads' figures, told apart by every eye."""

PALE = 0.35
"""How much of the grey picture stays under the colours; the rest is white."""

OPAQUE = 0.9
"""How much of the strongest colour is opaque."""


def plot_picture(
    found: PictureAttribution,
    image: Image.Image,
    *,
    target: int = 0,
    heads: Sequence[tuple[int, int]] | None = None,
    sign: Any = "both",
    number: int = 0,
    outlined: Iterable[int] = (),
) -> "Figure":
    """Draw a target's effects on the picture, plain, patched and the change.

    Colour is opaque at the largest effect and clear at zero, on one scale for all
    panels. Where a model looks at a picture several times (an overview and crops), each
    way has a row of panels.

    Args:
        found: What `attribute_patches` returned.
        image: The original picture.
        target: Which target.
        heads: Layers and heads to sum over; all when None.
        sign: Sum `"both"` signs, or only `"positive"` or `"negative"` effects.
        number: Which picture of the target's row it is.
        outlined: Positions of image tokens to outline, such as vision sinks.

    Returns:
        A matplotlib figure, one column wide, of several panels a page.

    Raises:
        UnsupportedError: If image tokens have no known place in the picture.
        SettingsError: If a target, head or picture does not exist.
        ExtraMissingError: If matplotlib is not installed.
    """
    check_target(found.targets, target)
    span = found.span(target, image=number)
    runs: tuple[Run, ...] = ("plain",)
    if found.patched is not None:
        runs = ("plain", "patched", "change")
    grids = {
        run: found.picture(target, heads=heads, run=run, sign=sign, image=number)
        for run in runs
    }
    most = max(_largest(grid) for of_run in grids.values() for grid in of_run) or 1.0
    kinds = list(dict.fromkeys(part.name for part in span.parts))
    shape = min(max(image.height / image.width, 0.4), 2.5)
    width = COLUMN_WIDTH if len(runs) * len(kinds) == 1 else PAGE_WIDTH
    side = min((width - 0.9) / len(runs), 2.5)
    figure = make_figure(
        width=side * len(runs) + 0.9, height=(side * shape + 0.25) * len(kinds) + 0.1
    )
    all_axes = figure.subplots(len(kinds), len(runs), squeeze=False)
    for line, kind in zip(all_axes, kinds, strict=True):
        for axes, run in zip(line, runs, strict=True):
            parts = [
                (part, grid)
                for part, grid in zip(span.parts, grids[run], strict=True)
                if part.name == kind
            ]
            drawn = draw_heat(image, parts, most=most, outlined=outlined)
            axes.imshow(drawn, interpolation="auto")
            axes.set_title(run if len(kinds) == 1 else f"{run}, {kind}", size=8)
            axes.set_xticks([])
            axes.set_yticks([])
    name = name_target(found.targets[target])
    what = "effect on" if found.method == "contribution" else "attention x gradient of"
    _add_bar(figure, all_axes, most=most, label=f"{what} {name} (logit)")
    return figure


def draw_heat(
    image: Image.Image,
    parts: Iterable[tuple[ImagePart, "Tensor"]],
    *,
    most: float,
    outlined: Iterable[int] = (),
) -> Image.Image:
    """Colour the patches of a pale grey copy of a picture by their effects.

    Args:
        image: The original picture.
        parts: Grids of image tokens that do not overlap, each with its numbers; NaN
            leaves a patch as it is.
        most: The number that gets the strongest colour.
        outlined: Positions of image tokens to outline.

    Returns:
        The copy, enlarged where the picture is small.

    Raises:
        UnsupportedError: If it is not known which part of the picture a grid shows.

    Example:
        >>> import torch
        >>> part = ImagePart("image", ((5, 6),), (0.0, 0.0, 1.0, 1.0))
        >>> white = Image.new("RGB", (480, 480), "white")
        >>> heat = draw_heat(white, [(part, torch.tensor([[0.0, 2.0]]))], most=2.0)
        >>> heat.getpixel((100, 9)), heat.getpixel((300, 9))
        ((255, 255, 255), (101, 60, 148))
    """
    factor = max(1, math.ceil(LEAST_SIDE / max(image.size)))
    size = image.width * factor, image.height * factor
    grey = image.convert("L").convert("RGB").resize(size, Image.Resampling.NEAREST)
    pale = Image.blend(Image.new("RGB", size, "white"), grey, PALE)
    colours = Image.new("RGB", size)
    opaque = Image.new("L", size)
    paint, mask = ImageDraw.Draw(colours), ImageDraw.Draw(opaque)
    marked = frozenset(outlined)
    edges = []
    for part, grid in parts:
        if part.box is None:
            msg = (
                f"expected to know which region the {part.name!r} grid shows, got "
                "neither by the encoding nor by the family; give images and prompts, "
                "or the encoding that model.encode returned"
            )
            raise UnsupportedError(msg)
        for row, line in enumerate(grid.tolist()):
            for index, value in enumerate(line):
                box = part.find_box(row, index)
                if box is None or math.isnan(value):
                    continue
                left, top, right, bottom = scale_box(box, size)
                place = (left, top, max(right - 1, left), max(bottom - 1, top))
                strength = min(abs(value) / most, 1.0) * OPAQUE
                paint.rectangle(place, fill=POSITIVE if value > 0 else NEGATIVE)
                mask.rectangle(place, fill=round(255 * strength))
        edges += find_edges(part, marked)
    drawn = Image.composite(colours, pale, opaque)
    pen = ImageDraw.Draw(drawn)
    width = max(3, min(size) // 120)
    inside = width // 2 + 1  # lines at the picture's edge stay whole
    for thick, fill in ((width + 2, "black"), (width, OUTLINE)):
        for edge in edges:
            left, top, right, bottom = scale_box(edge, size)
            ends = (
                min(max(left, inside), size[0] - 1 - inside),
                min(max(top, inside), size[1] - 1 - inside),
                min(max(right, inside), size[0] - 1 - inside),
                min(max(bottom, inside), size[1] - 1 - inside),
            )
            pen.line(ends, fill=fill, width=thick)
    return drawn


def _largest(grid: "Tensor") -> float:
    return float(grid.nan_to_num().abs().max())


def _add_bar(figure: "Figure", all_axes: Any, *, most: float, label: str) -> None:
    """Add a colour bar that goes through white where the picture shows through."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    steps = np.linspace(-1, 1, 255)[:, None]
    ends = np.where(steps > 0, [POSITIVE], [NEGATIVE]) / 255
    strength = abs(steps) * OPAQUE
    colours = ListedColormap(1 - strength * (1 - ends))
    scale = ScalarMappable(Normalize(-most, most), colours)
    bar = figure.colorbar(scale, ax=list(all_axes.flat), pad=0.02, fraction=0.06)
    bar.set_label(label, size=8)
    bar.ax.tick_params(length=2, labelsize=7)
