"""Donor against recipients: every head's image columns, before and after EAH."""

from typing import TYPE_CHECKING, Any

from eah_interp.attribution.broadcast_scores import BroadcastScores
from eah_interp.errors import InputError, SettingsError
from eah_interp.viz.figures import COLUMN_WIDTH, DONOR, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 8.0
"""Ratios of score to threshold are coloured up to this, and down to one over it."""

MOST_LABELLED = 40
"""Up to this many heads, each line says its head and density."""


def plot_donors(
    found: BroadcastScores, *, layer: int | None = None, item: int = 0
) -> "Figure":
    """Draw one layer's heads before and after the broadcast, a line each.

    Every cell is an image column's score, in multiples of the sink threshold: purple
    is a vision sink, orange is none, white lies at the threshold. The percentage beside
    a line is the head's sink density. A frame marks the donor; under a control without
    a donor head (`"mean"`, `"uniform"`) there is none. Of more than 200 columns not
    every one has a pixel of its own: save the figure as PDF, or with a higher dpi.

    Args:
        found: What `score_broadcast` returned.
        layer: Which decoder layer; the first when None.
        item: Which batch item.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        SettingsError: If the layer was not scored.
        InputError: If there is no such item, or it has no judged columns.
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import score_broadcast
        >>> from eah_interp.testing import random_image
        >>> figure = plot_donors(score_broadcast(eah.load(), random_image()))
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['before', 'after']
    """
    place = _find_layer(found, layer)
    if not 0 <= item < len(found.columns):
        msg = f"item {item} does not exist: expected 0 to {len(found.columns) - 1}"
        raise InputError(msg)
    judged = found.columns[item]
    if not bool(judged.any()):
        msg = f"item {item} has no image columns to draw: expected at least 1, got 0"
        raise InputError(msg)
    n_heads = found.plain.scores.shape[2]
    few = n_heads <= MOST_LABELLED
    each = 0.15 if few else 0.06
    figure = make_figure(width=COLUMN_WIDTH, height=1.15 + each * n_heads)
    panels = figure.subplots(1, 2, sharey=True)
    donors = found.donors_mask[item, place].nonzero().flatten().tolist()
    for axes, title, (name, run) in zip(
        panels, ("before", "after"), found.runs.items(), strict=True
    ):
        drawn = axes.imshow(
            run.ratio[item, place][:, judged].numpy(),
            cmap="PuOr",
            norm=_scale(),
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(title, size=8)
        axes.tick_params(length=2, labelsize=7)
        axes.set_xlabel("image column", size=8)
        if few:
            _write_densities(axes, found.density(name)[item, place].tolist())
        _frame_donors(axes, donors, n_columns=int(judged.sum()))
    _label_heads(panels[0], found, place, donors=donors, few=few)
    _add_bar(figure, panels, drawn)
    return figure


def _find_layer(found: BroadcastScores, layer: int | None) -> int:
    if layer is None:
        return 0
    if layer not in found.layers:
        named = ", ".join(map(str, found.layers))
        msg = f"layer {layer} was not scored: expected one of {named}; see layers="
        raise SettingsError(msg)
    return found.layers.index(layer)


def _scale() -> Any:
    from matplotlib.colors import LogNorm

    return LogNorm(1 / MOST, MOST, clip=True)


def _label_heads(
    axes: Any, found: BroadcastScores, place: int, *, donors: list[int], few: bool
) -> None:
    n_heads = found.plain.scores.shape[2]
    ticks = range(n_heads) if few else range(0, n_heads, 8)
    axes.set_yticks(list(ticks), [str(head) for head in ticks])
    axes.set_ylabel(f"head of layer {found.layers[place]}", size=8)
    for head, label in zip(ticks, axes.get_yticklabels(), strict=True):
        if head in donors:
            label.set_fontweight("bold")
            label.set_color(DONOR)


def _write_densities(axes: Any, densities: list[float]) -> None:
    """Write each head's sink density at the right of its line."""
    for row, density in enumerate(densities):
        axes.annotate(
            f"{density:.0%}",
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
        )


def _frame_donors(axes: Any, donors: list[int], *, n_columns: int) -> None:
    from matplotlib.patches import Rectangle

    for head in donors:
        for colour, width in (("white", 2.8), (DONOR, 1.6)):
            place = -0.5, head - 0.5
            frame = Rectangle(
                place, n_columns, 1, fill=False, edgecolor=colour, linewidth=width,
                clip_on=False, zorder=3,
            )  # fmt: skip
            axes.add_patch(frame)


def _add_bar(figure: "Figure", panels: Any, drawn: Any) -> None:
    bar = figure.colorbar(
        drawn, ax=list(panels), location="bottom", fraction=0.05, pad=0.03, aspect=30
    )
    ticks = [1 / MOST, 1 / 2, 1, 2, MOST]
    names = [f"1/{MOST:.0f}", "1/2", "1", "2", f"{MOST:.0f}"]
    bar.set_ticks(ticks, labels=names)
    bar.minorticks_off()
    bar.set_label("score / sink threshold (above 1: a vision sink)", size=8)
    bar.ax.tick_params(length=2, labelsize=7)
