"""Heads' attention drawn on the picture, their vision sinks outlined."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from eah_interp.attribution.patterns.head_patterns import HeadPatterns
from eah_interp.viz.effects import PAGE_WIDTH
from eah_interp.viz.figures import COLUMN_WIDTH, make_figure
from eah_interp.viz.heat import OPAQUE, POSITIVE, draw_heat
from eah_interp.viz.picture import OUTLINE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    _add_bar(figure, all_axes, most=most or 1.0)
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


def _add_bar(figure: "Figure", all_axes: list[Any], *, most: float) -> None:
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
