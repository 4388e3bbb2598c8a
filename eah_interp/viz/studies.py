"""Figures of studies: effects with intervals, layer by layer, sinks beside errors."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from eah_interp.errors import InputError, SettingsError
from eah_interp.statistics import Effect, estimate_mean
from eah_interp.studies.contrasts import Contrast
from eah_interp.studies.scores import ALL, MATCHED
from eah_interp.studies.summary import StudySummary
from eah_interp.viz.figures import make_figure
from eah_interp.viz.heads import style_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAIN, CUT = "#0072B2", "#D55E00"
"""Blue, and vermilion for captions of one length: apart under every colour vision."""


ERRORS = {
    "caption": "absent objects in the caption",
    "yes_no": "false positives (%)",
}


def plot_effects(summary: StudySummary, metric: str | None = None) -> "Figure":
    """Draw how each condition changes a metric, with intervals.

    A filled mark's interval lies on one side of zero. Beside CHAIR stands the change
    with both captions cut to one length.

    Args:
        summary: What `summarise` returned.
        metric: Which; CHAIR_S when None, or false positives where there are no
            captions.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        SettingsError: If nothing was measured by that metric.
        ExtraMissingError: If matplotlib is not installed.
    """
    chosen = _contrasts(summary, metric)
    name = chosen[0].metric.name
    cut = {
        c.condition: c
        for c in summary.contrasts
        if c.metric.name == name + MATCHED and c.kind == ALL
    }
    figure = make_figure(height=0.95 + len(chosen) * (0.24 if cut else 0.17))
    axes = figure.add_subplot()
    axes.axvline(0, color="0.5", linewidth=0.7, zorder=0)
    shift = 0.16 if cut else 0.0
    for row, contrast in enumerate(chosen):
        _draw(axes, contrast.effect, row - shift, colour=MAIN, mark="o")
        if contrast.condition in cut:
            other = cut[contrast.condition]
            _draw(axes, other.effect, row + shift, colour=CUT, mark="s")
    axes.set_yticks(range(len(chosen)), [_safe(c.condition) for c in chosen])
    axes.set_ylim(len(chosen) - 0.5, -0.5)
    axes.set_xlabel(_axis(chosen[0]))
    style_lines(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if cut:
        _legend(figure, [("as they are", MAIN, "o"), ("length-matched", CUT, "s")])
    return figure


def plot_layers(summary: StudySummary, metric: str | None = None) -> "Figure":
    """Draw the effect of patching one layer, layer by layer.

    Args:
        summary: What `summarise` returned, of a study with such conditions.
        metric: As for `plot_effects`.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        InputError: If fewer than two conditions differ in their one layer alone.
        SettingsError: If nothing was measured by that metric.
        ExtraMissingError: If matplotlib is not installed.
    """
    layers = layers_of(summary)
    if len(layers) < 2:
        msg = (
            "expected 2 conditions or more that differ in their one layer, got "
            f"{len(layers)}; study sweep({{'layers': [(0,), (1,), (2,)]}})"
        )
        raise InputError(msg)
    chosen = [c for c in _contrasts(summary, metric) if c.condition in layers]
    figure = make_figure(height=2.2)
    axes = figure.add_subplot()
    axes.axhline(0, color="0.5", linewidth=0.7, zorder=0)
    name = chosen[0].metric.name
    series = [(name, MAIN, "o", -0.08), (name + MATCHED, CUT, "s", 0.08)]
    drawn = []
    for which, colour, mark, shift in series:
        found = sorted(
            (layers[c.condition], c.effect)
            for c in summary.contrasts
            if c.metric.name == which and c.kind == ALL and c.condition in layers
            if c.effect is not None and c.metric.task == chosen[0].metric.task
        )
        if not found:
            continue
        drawn.append((which, colour, mark))
        places = [layer + shift for layer, _ in found]
        axes.plot(places, [e.estimate for _, e in found], color=colour, linewidth=0.8)
        for place, (_, effect) in zip(places, found, strict=True):
            _draw(axes, effect, place, colour=colour, mark=mark, upright=True)
    axes.set_xticks(sorted(layers.values()))
    axes.set_xlabel("patched decoder layer")
    axes.set_ylabel(_axis(chosen[0]))
    style_lines(axes)
    if len(drawn) > 1:
        _legend(figure, [(which, c, m) for which, c, m in drawn])
    return figure


def plot_density(table: pd.DataFrame, *, task: str) -> "Figure":
    """Draw the density of each picture's densest shallow head against its errors.

    Dots are pictures, moved a little apart; marks are means of fifths of them by
    density, with Student's intervals.

    Args:
        table: What `density_and_errors` returned.
        task: `"caption"` or `"yes_no"`.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        InputError: If there are no pictures of that task.
        ExtraMissingError: If matplotlib is not installed.
    """
    import numpy as np

    part = table[table.task == task]
    if part.empty:
        msg = f"expected pictures with densities and errors of {task!r}, got none"
        raise InputError(msg)
    figure = make_figure(height=2.2)
    axes = figure.add_subplot()
    x = 100 * part.densest.to_numpy(dtype=float)
    y = part.error.to_numpy(dtype=float)
    step = min(np.diff(np.unique(y)), default=1.0)
    rng = np.random.default_rng(0)
    moved = y + rng.uniform(-0.06, 0.06, len(y)) * step
    axes.scatter(x, moved, s=7, color="0.6", alpha=0.6, linewidths=0, zorder=1)
    for group in np.array_split(np.argsort(x, kind="stable"), 5):
        if len(group) < 2:
            continue
        mean = estimate_mean(y[group].tolist())
        place = float(np.median(x[group]))
        _draw(axes, mean, place, colour=MAIN, mark="o", upright=True, filled=True)
    axes.set_xlabel("density of the densest head of layers 0 and 1 (%)")
    axes.set_ylabel(ERRORS[task])
    style_lines(axes)
    return figure


def layers_of(summary: StudySummary) -> dict[str, int]:
    """List conditions that broadcast the densest head in one layer each.

    Of those that are alike but for the layer, the largest group.

    Returns:
        The layer, by condition.
    """
    groups: dict[str, dict[str, int]] = {}
    for condition in summary.manifest.conditions:
        eah = condition.get("eah") or {}
        if eah.get("donor") == "densest" and len(eah.get("layers", ())) == 1:
            rest = str({k: v for k, v in eah.items() if k != "layers"})
            groups.setdefault(rest, {})[str(condition["name"])] = eah["layers"][0]
    return max(groups.values(), key=len, default={})


def _contrasts(summary: StudySummary, metric: str | None) -> list[Contrast]:
    for name in ("CHAIR_S", "false positives") if metric is None else (metric,):
        found = [
            c for c in summary.contrasts if c.metric.name == name and c.kind == ALL
        ]
        if found:
            task = found[0].metric.task
            return [c for c in found if c.metric.task == task]
    names = sorted({c.metric.name for c in summary.contrasts})
    msg = f"metric must be one of {', '.join(names) or 'none: no contrasts'}, got "
    raise SettingsError(msg + repr(metric))


def _draw(
    axes: Any,
    effect: Effect | None,
    place: float,
    *,
    colour: str,
    mark: str,
    upright: bool = False,
    filled: bool | None = None,
) -> None:
    """Draw an estimate with its interval; where it is undefined, say so."""
    if effect is None:
        if not upright:
            axes.annotate(
                "undefined", (0, place), (3, 0), textcoords="offset points",
                va="center", fontsize=6, color=colour,
            )  # fmt: skip
        return
    filled = effect.excludes_zero if filled is None else filled
    ends, at = (effect.low, effect.high), (place, place)
    line = (at, ends) if upright else (ends, at)
    axes.plot(*line, color=colour, linewidth=1.2, solid_capstyle="butt")
    point = (place, effect.estimate) if upright else (effect.estimate, place)
    axes.plot(
        *point,
        marker=mark,
        markersize=4,
        color=colour,
        markerfacecolor=colour if filled else "white",
        markeredgewidth=1,
    )


def _axis(contrast: Contrast) -> str:
    name = contrast.metric.name
    unit = "points" if contrast.metric.percent else "a caption"
    return f"change of {name} ({unit})"


def _legend(figure: "Figure", entries: list[tuple[str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=mark, markersize=4, label=label)
        for label, colour, mark in entries
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        fontsize=7,
    )


def _safe(name: str) -> str:
    """Write a condition's name so that dollar signs are no formulas; not too long."""
    short = name if len(name) <= 26 else name[:25] + "…"
    return short.replace("$", r"\$")
