"""Vision sinks drawn on the picture, by the real patch grid."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from eah_interp.attribution.patches import PictureAttribution
from eah_interp.attribution.patches import RunOrChange as Run
from eah_interp.attribution.patterns import HeadPatterns
from eah_interp.errors import UnsupportedError
from eah_interp.lvlm.spans import Box, ImagePart, ImageSpan
from eah_interp.viz.figures import COLUMN_WIDTH, make_figure
from eah_interp.viz.heads import PAGE_WIDTH, check_target, name_target

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

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


# ---- Effects of image tokens drawn on the picture, by the real patch grid.


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
    _add_effect_bar(figure, all_axes, most=most, label=f"{what} {name} (logit)")
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


def _add_effect_bar(
    figure: "Figure", all_axes: Any, *, most: float, label: str
) -> None:
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


# ---- Heads' attention drawn on the picture, their vision sinks outlined.


MOST_ABREAST = 4
"""So many panels stand side by side at most."""


def plot_attention(
    found: HeadPatterns,
    image: Image.Image,
    *,
    item: int = 0,
    heads: Sequence[str | tuple[int, int]] | None = None,
    query: int = -1,
    number: int = 0,
    outline: bool = True,
) -> "Figure":
    """Draw what heads attend to on the picture, plain beside patched.

    Colour is clear at zero and opaque at the largest weight, on one scale for all
    panels; the head's vision sinks in that run are outlined. Each title says how much
    of the row goes to this picture: the rest goes to other tokens. Where a model looks
    at a picture several times (an overview and crops), each way has panels of its own.

    Args:
        found: What `read_patterns` returned.
        image: The original picture.
        item: Which batch item.
        heads: Some of the heads that were read, such as `["L1H3"]`; all when None.
        query: Position of the row that is drawn; -1 is the prompt's last.
        number: Which picture of the item it is.
        outline: Whether to outline vision sinks.

    Returns:
        A matplotlib figure, one column wide of one or two panels abreast.

    Raises:
        UnsupportedError: If image tokens have no known place in the picture.
        SettingsError: If an item, head, row or picture is not there.
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import read_patterns
        >>> from eah_interp.testing import random_image
        >>> image = random_image()
        >>> found = read_patterns(eah.load(), image, heads=["L1H3"], patch=eah.EAH())
        >>> [a.get_title().split(",")[0] for a in plot_attention(found, image).axes[:2]]
        ['L1H3 plain', 'L1H3 patched']
    """
    chosen = [found.heads[found.find_head(head)] for head in heads or found.heads]
    span = found.span(item, image=number)
    kinds = list(dict.fromkeys(part.name for part in span.parts)) or [""]
    panels = []
    for head in chosen:
        for run, of_run in found.runs.items():
            grids = found.picture(head, item=item, query=query, run=run, image=number)
            row = found.row(head, item=item, query=query, run=run)
            share = float(row[list(span.columns)].sum())
            index = found.find_head(head)
            sinks = of_run.sinks[item, index].nonzero().flatten().tolist()
            title = found.names[index] + (f" {run}" if len(found.runs) > 1 else "")
            for kind in kinds:
                parts = [
                    (part, grid)
                    for part, grid in zip(span.parts, grids, strict=True)
                    if part.name == kind
                ]
                which = "" if len(kinds) == 1 else f"\n{kind}"
                panels.append((f"{title}, {share:.0%}{which}", parts, sinks))
    most = max(
        (float(grid.nan_to_num().max()) for _, parts, _ in panels for _, grid in parts),
        default=0.0,
    )
    across = _count_abreast(len(panels), len(found.runs) * len(kinds))
    figure, all_axes = _lay_panels(image, len(panels), across=across)
    for axes, (title, parts, sinks) in zip(all_axes, panels, strict=False):
        marked = sinks if outline else ()
        drawn = draw_heat(image, parts, most=most or 1.0, outlined=marked)
        axes.imshow(drawn, interpolation="auto")
        axes.set_title(title, size=8, pad=3)
    _add_attention_bar(figure, all_axes, most=most or 1.0)
    _explain(figure, outline=outline)
    return figure


def _count_abreast(n_panels: int, of_a_head: int) -> int:
    """Choose how many panels stand side by side: whole heads where they fit."""
    if n_panels <= MOST_ABREAST:
        return n_panels if n_panels != 4 else 2
    whole = MOST_ABREAST // of_a_head * of_a_head
    return whole or min(of_a_head, MOST_ABREAST)


def _lay_panels(
    image: Image.Image, n_panels: int, *, across: int
) -> tuple["Figure", list[Any]]:
    """Make a figure of panels in the picture's shape, and leave no empty frames."""
    down = -(-n_panels // across)
    shape = min(max(image.height / image.width, 0.4), 2.5)
    width = COLUMN_WIDTH if across <= 2 else PAGE_WIDTH
    side = min((width - 0.55) / across, 2.5 / max(shape, 1.0))
    figure = make_figure(width=width, height=(side * shape + 0.25) * down + 0.3)
    figure.set_layout_engine("compressed")  # panels keep the picture's shape
    grid = figure.subplots(down, across, squeeze=False)
    axes = list(grid.flat)
    for one in axes:
        one.set_xticks([])
        one.set_yticks([])
    for spare in axes[n_panels:]:
        spare.set_axis_off()
    return figure, axes


def _add_attention_bar(figure: "Figure", all_axes: list[Any], *, most: float) -> None:
    """Add a colour bar from clear to opaque, in percent of a row's attention."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    full = tuple(1 - OPAQUE * (1 - value / 255) for value in POSITIVE)
    ends: list[Any] = ["white", full]
    colours = LinearSegmentedColormap.from_list("attention", ends)
    scale = ScalarMappable(Normalize(0, 100 * most), colours)
    bar = figure.colorbar(scale, ax=all_axes, pad=0.02, fraction=0.06)
    bar.set_label("attention to a patch (%)", size=8)
    bar.ax.tick_params(length=2, labelsize=7)


def _explain(figure: "Figure", *, outline: bool) -> None:
    """Say what outlines and percentages mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    box = Rectangle(
        (0, 0), 1, 1, fill=False, edgecolor=OUTLINE, linewidth=1.6,
        path_effects=[withStroke(linewidth=2.8, foreground="black")],
        label="the head's vision sinks",
    )  # fmt: skip
    share = Line2D([], [], linestyle="none", label="%: attention to the picture")
    figure.legend(
        handles=[box, share] if outline else [share],
        ncols=2,
        columnspacing=0.2,
        loc="outside lower center",
        frameon=False,
        fontsize=7,
        handlelength=1.2,
        handleheight=1.0,
    )


def plot_sinks(
    image: Image.Image, span: ImageSpan, *, columns: Mapping[str, Iterable[int]]
) -> "Figure":
    """Draw a picture beside copies that show the sinks of one head each.

    Args:
        image: The original picture.
        span: Its span in the prompt.
        columns: By title, positions of vision sinks.

    Returns:
        A matplotlib figure, a panel for the picture and one for each title.

    Raises:
        UnsupportedError: As for `draw_sinks`.
        InputError: As for `draw_sinks`.
        ExtraMissingError: If matplotlib is not installed.
    """
    panels = {"picture": image}
    for title, sinks in columns.items():
        panels[title] = draw_sinks(image, span, columns=sinks)
    side = 2.4
    shape = min(max(image.height / image.width, 0.4), 2.5)
    figure = make_figure(width=side * len(panels), height=side * shape + 0.35)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
        axes.imshow(panel, interpolation="nearest")
        axes.set_title(title, size=9)
        axes.set_axis_off()
    return figure
