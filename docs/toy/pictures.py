"""The two figures of the model card."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from conditions import DONORS, name_of

mpl.use("agg")
from matplotlib import pyplot as plt

COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#999999")
"""Okabe and Ito's, told apart by colour-blind readers; the method in black."""

MARKERS = "osv^D*"


def draw_effects(record: dict[str, Any], path: Path) -> None:
    """Draw the change of CHAIR_S, false positives and recall by layer and donor."""
    metrics = ("CHAIR_S", "false positives", "recall")
    n_layers = record["toys"]["seed-0"]["recipe"]["architecture"]["n_layers"]
    figure, axes = plt.subplots(
        len(metrics), 1, figsize=(7, 8), sharex=True, layout="constrained"
    )
    for axis, metric in zip(axes, metrics, strict=True):
        for place, donor in enumerate(DONORS):
            effects = [
                record["effects"][name_of((layer,), donor)][metric]["over_scenes"]
                for layer in range(n_layers)
            ]
            at = [layer + (place - 2.5) * 0.11 for layer in range(n_layers)]
            middle = [effect["estimate"] for effect in effects]
            error = [
                [0 if e["low"] is None else e["estimate"] - e["low"] for e in effects],
                [0 if e["low"] is None else e["high"] - e["estimate"] for e in effects],
            ]
            axis.errorbar(
                at,
                middle,
                yerr=error,
                color=COLOURS[place],
                marker=MARKERS[place],
                linestyle="none",
                markersize=4,
                linewidth=1,
                label=donor,
            )
        axis.axhline(0, color="#666666", linewidth=0.8)
        axis.set_ylabel(f"{metric}\nchange, points")
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend(ncols=3, fontsize="small", title="donor")
    axes[-1].set_xlabel("patched layer (0-based)")
    axes[-1].set_xticks(range(n_layers))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_sinks_by_head(record: dict[str, Any], path: Path) -> None:
    """Draw the sink density of every head of the default toy, by definition."""
    maps = record["density by head"]
    figure, axes = plt.subplots(
        1, len(maps), figsize=(3 * len(maps), 3.2), sharey=True, layout="constrained"
    )
    for axis, (title, rows) in zip(axes, maps.items(), strict=True):
        picture = axis.imshow(rows, vmin=0, vmax=1, cmap="cividis")
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("head")
        for layer, row in enumerate(rows):
            for head, value in enumerate(row):
                axis.text(
                    head,
                    layer,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if value < 0.5 else "black",
                )
    axes[0].set_ylabel("layer")
    figure.colorbar(picture, ax=axes, label="sink density", shrink=0.8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
