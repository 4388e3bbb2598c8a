"""Curves over the decoder's depth."""

from typing import TYPE_CHECKING

from eah_interp.attribution.lens.lens_map import LogitLens
from eah_interp.viz.effects import (
    PATCHED,
    PLAIN,
    check_target,
    name_target,
    style_lines,
)
from eah_interp.viz.figures import make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = {"answer": "-", "image max": "--", "image mean": ":"}
"""How each curve is drawn, so that they differ in print."""

MOST_TICKS = 12


def plot_lens(lens: LogitLens, target: int = 0, *, of: str = "logit") -> "Figure":
    """Draw what each layer says of an object, at the answer and at image tokens.

    Args:
        lens: What `logit_lens` returned.
        target: Which target.
        of: `"logit"` or `"probability"`.

    Returns:
        A matplotlib figure, one column wide: the answer, and the largest and the mean
        over image tokens; grey plain, blue patched.

    Raises:
        SettingsError: If there is no such target or number.
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import logit_lens
        >>> from eah_interp.testing import random_image
        >>> lens = logit_lens(eah.load(), random_image(), objects=["dog"])
        >>> [line.get_label() for line in plot_lens(lens).axes[0].lines]
        ['answer', 'image max', 'image mean']
    """
    check_target(lens.targets, target)
    figure = make_figure(height=2.4)
    axes = figure.add_subplot()
    curves = lens.curves(target, of=of)
    depth = range(len(lens.points))
    for run, colour in (("plain", PLAIN), ("patched", PATCHED)):
        for name, style in LINES.items():
            if run not in curves or name not in curves[run]:
                continue
            label = name if len(curves) == 1 else f"{name}, {run}"
            axes.plot(
                depth,
                curves[run][name].numpy(),
                style,
                color=colour,
                label=label,
                linewidth=1.3,
                marker="o" if name == "answer" else None,
                markersize=2.5,
            )
    every = -(-len(lens.points) // MOST_TICKS)
    shown = range(0, len(lens.points), every)
    labels = ["emb." if n == 0 else lens.points[n] for n in shown]
    axes.set_xticks(list(shown), labels)
    axes.set_xlabel("read after")
    axes.set_ylabel(f"{of} of {name_target(lens.targets[target])}")
    style_lines(axes)
    figure.legend(
        loc="outside upper center",
        ncols=len(curves),
        frameon=False,
        fontsize=7,
        handlelength=2.6,
    )
    return figure
