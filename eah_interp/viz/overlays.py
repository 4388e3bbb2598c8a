"""Numbers of image tokens drawn on the image, where their patches were cut."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from eah_interp.arguments import by_name, check_flag, check_mapping
from eah_interp.errors import InputError, UnsupportedError
from eah_interp.indices import check_columns
from eah_interp.lvlm.images import ImageLike, read_image
from eah_interp.lvlm.spans import Box, ImagePart, ImageSpan
from eah_interp.viz.figures import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    add_bar,
    escape,
    make_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

# ---- Vision sinks, lit on a dimmed image.

OUTLINE = "#FFD000"
"""A yellow that stands out from the dimmed image under every colour vision."""

DIMMED = 0.35
"""Brightness and saturation of what is no sink."""

LEAST_SIDE = 480
"""Smaller images are enlarged by a whole factor, pixels kept sharp."""


@by_name
def draw_sinks(
    image: ImageLike, span: ImageSpan, *, columns: Iterable[int]
) -> Image.Image:
    """Show which places of an image are vision sinks.

    Their patches keep their colours and are outlined; the rest is dimmed. Where a model
    looks twice (an overview and crops), a place is lit if either token is a sink. Sinks
    without a place, such as newline vectors, are left out.

    Args:
        image: The original image.
        span: Its span in the prompt, found with the image's size.
        columns: Positions of its vision sinks; none is an image dimmed all over.

    Returns:
        A copy, enlarged where the image is small.

    Raises:
        UnsupportedError: The image tokens have no place in the image (learned
            queries), or it is not known which part of it they show.
        InputError: A column holds none of this image's image tokens.

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
            "expected image tokens that stand for places in the image, got learned "
            "queries or a layout that is not known; look at densities instead"
        )
    sinks = check_columns("columns", columns)
    boxes = [box for box in map(span.place, sorted(sinks)) if box is not None]
    bright = _enlarge(read_image(image))
    size = bright.size
    dim = ImageEnhance.Brightness(ImageEnhance.Color(bright).enhance(DIMMED))
    lit = Image.new("1", size)
    light = ImageDraw.Draw(lit)
    for box in boxes:
        light.rectangle(_find_pixels(box, size), fill=1)
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


@by_name
def plot_sinks(
    image: ImageLike, span: ImageSpan, *, columns: Mapping[str, Iterable[int]]
) -> "Figure":
    """Draw an image beside copies that show the sinks of one head each.

    Args:
        image: The original image.
        span: Its span in the prompt.
        columns: By title, positions of vision sinks.

    Returns:
        A matplotlib figure, a panel for the image and one for each title.

    Raises:
        UnsupportedError: As for `draw_sinks`.
        InputError: As for `draw_sinks`.
        ExtraMissingError: If matplotlib is not installed.
    """
    columns = check_mapping("columns", columns, error=InputError)
    image = read_image(image)
    panels = {"image": image}
    for title, sinks in columns.items():
        panels[title] = draw_sinks(image, span, columns=sinks)
    side = 2.4
    height = side * _shape(image) + 0.35
    figure = make_figure(width=side * len(panels), height=height)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
        axes.imshow(panel, interpolation="nearest")
        axes.set_title(title, size=9)
        axes.set_axis_off()
    return figure


def _find_pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Find the pixels of a patch, one at least; Pillow paints the last ones too."""
    left, top, right, bottom = scale_box(box, size)
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _enlarge(image: Image.Image) -> Image.Image:
    factor = max(1, math.ceil(LEAST_SIDE / max(image.size)))
    size = image.width * factor, image.height * factor
    return image.resize(size, Image.Resampling.NEAREST)


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
    """Turn fractions of an image into pixels."""
    width, height = size
    left, top, right, bottom = box
    return (
        round(left * width),
        round(top * height),
        round(right * width),
        round(bottom * height),
    )


# ---- Effects of image tokens, signs told apart.


def blank_image(parts: Sequence[ImagePart]) -> Image.Image:
    """Make a white image in the shape of the one that grids of image tokens show.

    Args:
        parts: The grids; the first whose region is known says the shape.
    """
    for part in parts:
        if part.box is not None and part.columns:
            left, top, right, bottom = part.box
            width = len(part.columns[0]) / (right - left)
            height = len(part.columns) / (bottom - top)
            dots = BLANK_SIDE / max(width, height)
            size = max(1, round(width * dots)), max(1, round(height * dots))
            return Image.new("RGB", size, "white")
    return Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), "white")


BLANK_SIDE = 480


POSITIVE, NEGATIVE = (84, 39, 136), (179, 88, 6)
"""The purple and the orange of the heads' figures, told apart by every eye."""

PALE = 0.35
"""How much of the grey image stays under the colours; the rest is white."""

OPAQUE = 0.9
"""How much of the strongest colour is opaque."""


def plot_effects(
    image: ImageLike,
    parts: Sequence[ImagePart],
    *,
    grids: Mapping[str, Sequence["Tensor"]],
    label: str,
    outlined: Iterable[int] = (),
) -> "Figure":
    """Draw effects of image tokens on the image, a column of panels for each run.

    Colour is opaque at the largest effect and clear at zero, on one scale for all
    panels. Where a model looks at an image several times (an overview and crops), each
    way has a row of panels.

    Args:
        image: The original image.
        parts: Its grids of image tokens.
        grids: By run, the effects of each part's tokens; NaN where there is none.
        label: What the numbers are.
        outlined: Positions of image tokens to outline, such as vision sinks.

    Returns:
        A matplotlib figure, one column wide, of several panels a page.

    Raises:
        UnsupportedError: If it is not known which part of the image a grid shows.
        ExtraMissingError: If matplotlib is not installed.
    """
    image = read_image(image)
    every = [grid for of_run in grids.values() for grid in of_run]
    most = max(float(grid.nan_to_num().abs().max()) for grid in every) or 1.0
    kinds = _list_kinds(parts)
    width = COLUMN_WIDTH if len(grids) * len(kinds) == 1 else PAGE_WIDTH
    side = min((width - 0.9) / len(grids), 2.5)
    height = (side * _shape(image) + 0.25) * len(kinds) + 0.1
    figure = make_figure(width=side * len(grids) + 0.9, height=height)
    all_axes = figure.subplots(len(kinds), len(grids), squeeze=False)
    for line, kind in zip(all_axes, kinds, strict=True):
        for axes, (run, of_run) in zip(line, grids.items(), strict=True):
            heat = draw_heat(
                image, _choose(parts, of_run, kind), most=most, outlined=outlined
            )
            axes.imshow(heat, interpolation="antialiased")
            axes.set_title(run if len(kinds) == 1 else f"{run}, {kind}", size=8)
            axes.set_xticks([])
            axes.set_yticks([])
    _add_effect_bar(figure, list(all_axes.flat), most=most, label=label)
    return figure


def _list_kinds(parts: Sequence[ImagePart]) -> list[str]:
    """List the ways in which a model looks at an image: overview, crop, tile."""
    return list(dict.fromkeys(part.name for part in parts))


def _choose(
    parts: Sequence[ImagePart], grids: Sequence["Tensor"], kind: str
) -> list[tuple[ImagePart, "Tensor"]]:
    pairs = zip(parts, grids, strict=True)
    return [(part, grid) for part, grid in pairs if part.name == kind]


def _shape(image: Image.Image) -> float:
    """Return height over width of a panel; very long images have wider panels."""
    return min(max(image.height / image.width, 0.4), 2.5)


def draw_heat(
    image: ImageLike,
    parts: Iterable[tuple[ImagePart, "Tensor"]],
    *,
    most: float,
    outlined: Iterable[int] = (),
) -> Image.Image:
    """Colour the patches of a pale grey copy of an image by their effects.

    Args:
        image: The original image.
        parts: Grids of image tokens that do not overlap, each with its numbers; NaN
            leaves a patch as it is.
        most: The number that gets the strongest colour.
        outlined: Positions of image tokens to outline.

    Returns:
        The copy, enlarged where the image is small.

    Raises:
        UnsupportedError: If it is not known which part of the image a grid shows.

    Example:
        >>> import torch
        >>> part = ImagePart("image", ((5, 6),), (0.0, 0.0, 1.0, 1.0))
        >>> white = Image.new("RGB", (480, 480), "white")
        >>> heat = draw_heat(white, [(part, torch.tensor([[0.0, 2.0]]))], most=2.0)
        >>> heat.getpixel((100, 9)), heat.getpixel((300, 9))
        ((255, 255, 255), (101, 60, 148))
    """
    grey = _enlarge(read_image(image).convert("L").convert("RGB"))
    size = grey.size
    pale = Image.blend(Image.new("RGB", size, "white"), grey, PALE)
    colours = Image.new("RGB", size)
    opaque = Image.new("L", size)
    paint, mask = ImageDraw.Draw(colours), ImageDraw.Draw(opaque)
    marked = check_columns("outlined", outlined)
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
                place = _find_pixels(box, size)
                strength = min(abs(value) / most, 1.0) * OPAQUE
                paint.rectangle(place, fill=POSITIVE if value > 0 else NEGATIVE)
                mask.rectangle(place, fill=round(255 * strength))
        edges += find_edges(part, marked)
    drawn = Image.composite(colours, pale, opaque)
    pen = ImageDraw.Draw(drawn)
    width = max(3, min(size) // 120)
    inside = width // 2 + 1  # lines at the image's edge stay whole
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


def _add_effect_bar(
    figure: "Figure", all_axes: list[Any], *, most: float, label: str
) -> None:
    """Add a colour bar that goes through white where the image shows through."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    steps = np.linspace(-1, 1, 255)[:, None]
    ends = np.where(steps > 0, [POSITIVE], [NEGATIVE]) / 255
    strength = abs(steps) * OPAQUE
    colours = ListedColormap(1 - strength * (1 - ends))
    scale = ScalarMappable(Normalize(-most, most), colours)
    add_bar(figure, all_axes, scale, label=label, fraction=0.06)


# ---- Heads' attention, their vision sinks outlined.


MOST_ABREAST = 4
"""So many panels stand side by side at most."""

STRIP = 6
"""So many panels of a strip stand side by side at most."""

LONGEST_WORD = 16
"""Letters of a word above a panel of a strip; the rest is cut."""


@dataclass(frozen=True)
class Panel:
    """Numbers of an image's tokens under one title.

    Attributes:
        title: What they are.
        grids: A grid for each of the image's parts; NaN where there is none.
        outlined: Positions of image tokens to outline.
    """

    title: str
    grids: Sequence["Tensor"]
    outlined: Sequence[int] = ()


def plot_attention_panels(
    image: ImageLike,
    parts: Sequence[ImagePart],
    panels: Sequence[Panel],
    *,
    of_a_head: int,
    outline: bool = True,
) -> "Figure":
    """Draw attention to patches on the image, vision sinks outlined.

    Colour is clear at zero and opaque at the largest weight, on one scale for all
    panels. Where a model looks at an image several times (an overview and crops), each
    way has panels of its own.

    Args:
        image: The original image.
        parts: Its grids of image tokens.
        panels: Attention to each part's tokens, a head's panels side by side.
        of_a_head: How many panels belong to one head.
        outline: Whether to outline what panels name.

    Returns:
        A matplotlib figure, one column wide of one or two panels abreast.

    Raises:
        UnsupportedError: If it is not known which part of the image a grid shows.
        ExtraMissingError: If matplotlib is not installed.
    """
    image, outline = read_image(image), check_flag("outline", outline)
    kinds = _list_kinds(parts)
    most = _find_most(panels)
    n_panels = len(panels) * len(kinds)
    across = _count_abreast(n_panels, of_a_head * len(kinds))
    figure, all_axes = _lay_panels(image, n_panels, across=across)
    drawn = [(one, kind) for one in panels for kind in kinds]
    for axes, (one, kind) in zip(all_axes, drawn, strict=False):
        _draw_panel(axes, image, parts, one, kind=kind, most=most, outline=outline)
        which = "" if len(kinds) == 1 else f"\n{kind}"
        axes.set_title(one.title + which, size=8, pad=3)
    _add_attention_bar(figure, all_axes, most=most)
    _explain_outlines(figure, outline=outline and any(one.outlined for one in panels))
    return figure


def plot_attention_strips(
    image: ImageLike,
    parts: Sequence[ImagePart],
    strips: Mapping[str, Sequence[Panel]],
    *,
    outline: bool = True,
) -> "Figure":
    """Draw strips of attention to patches on the image, such as one map a word.

    Colours, outlines and parts are those of `plot_attention_panels`. A strip that is
    too long for the page goes on below; its name stands before each of its lines.

    Args:
        image: The original image.
        parts: Its grids of image tokens.
        strips: Panels by the name of their strip.
        outline: Whether to outline what panels name.

    Returns:
        A matplotlib figure, as wide as a page.

    Raises:
        UnsupportedError: If it is not known which part of the image a grid shows.
        ExtraMissingError: If matplotlib is not installed.
    """
    image, outline = read_image(image), check_flag("outline", outline)
    kinds = _list_kinds(parts)
    across = min(max(map(len, strips.values())), STRIP)
    lines = [
        (name if len(kinds) == 1 else f"{name}\n{kind}", kind, panels[at : at + across])
        for name, panels in strips.items()
        for kind in kinds
        for at in range(0, len(panels), across)
    ]
    most = _find_most([panel for panels in strips.values() for panel in panels])
    figure, all_axes = _lay_panels(
        image, len(lines) * across, across=across, wide=True, above=0.4
    )
    for place, (name, kind, panels) in enumerate(lines):
        line = all_axes[place * across : (place + 1) * across]
        line[0].set_ylabel(escape(name), fontsize=8)
        for axes, one in zip(line, panels, strict=False):
            _draw_panel(axes, image, parts, one, kind=kind, most=most, outline=outline)
            axes.set_title(_cut_word(one.title), size=7, pad=3)
        for spare in line[len(panels) :]:
            spare.set_axis_off()
    _add_attention_bar(figure, all_axes, most=most)
    marked = any(one.outlined for panels in strips.values() for one in panels)
    _explain_outlines(figure, outline=outline and marked)
    return figure


def _cut_word(title: str) -> str:
    """Cut a long word in the first line of a title."""
    word, _, rest = title.partition("\n")
    if len(word) > LONGEST_WORD:
        word = f"{word[: LONGEST_WORD - 1]}\N{HORIZONTAL ELLIPSIS}"
    return escape(f"{word}\n{rest}")


def _find_most(panels: Sequence[Panel]) -> float:
    """Find the weight that gets the strongest colour."""
    weights = [float(grid.nan_to_num().max()) for one in panels for grid in one.grids]
    return max(weights, default=0.0) or 1.0


def _draw_panel(
    axes: Any,
    image: Image.Image,
    parts: Sequence[ImagePart],
    panel: Panel,
    *,
    kind: str,
    most: float,
    outline: bool,
) -> None:
    marked = panel.outlined if outline else ()
    chosen = _choose(parts, panel.grids, kind)
    heat = draw_heat(image, chosen, most=most, outlined=marked)
    axes.imshow(heat, interpolation="antialiased")


def _count_abreast(n_panels: int, of_a_head: int) -> int:
    """Choose how many panels stand side by side: whole heads where they fit."""
    if n_panels <= MOST_ABREAST:
        return n_panels if n_panels != 4 else 2
    whole = MOST_ABREAST // of_a_head * of_a_head
    return whole or min(of_a_head, MOST_ABREAST)


def _lay_panels(
    image: Image.Image,
    n_panels: int,
    *,
    across: int,
    wide: bool = False,
    above: float = 0.25,
) -> tuple["Figure", list[Any]]:
    """Make a figure of panels in the image's shape, and leave no empty frames."""
    down = -(-n_panels // across)
    shape = _shape(image)
    width = COLUMN_WIDTH if across <= 2 and not wide else PAGE_WIDTH
    side = min((width - (0.95 if wide else 0.55)) / across, 2.5 / max(shape, 1.0))
    figure = make_figure(width=width, height=(side * shape + above) * down + 0.3)
    figure.set_layout_engine("compressed")  # panels keep the image's shape
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
    label = "attention to a patch (%)"
    add_bar(figure, all_axes, scale, label=label, fraction=0.06)


def _explain_outlines(figure: "Figure", *, outline: bool) -> None:
    """Write what outlines and percentages mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    box = Rectangle(
        (0, 0), 1, 1, fill=False, edgecolor=OUTLINE, linewidth=1.6,
        path_effects=[withStroke(linewidth=2.8, foreground="black")],
        label="the head's vision sinks",
    )  # fmt: skip
    share = Line2D([], [], linestyle="none", label="%: attention to the image")
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
