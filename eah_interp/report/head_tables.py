"""Direct effects of heads as tables that can be added up by hand."""

from typing import Any

import pandas as pd
from torch import Tensor

from eah_interp.attribution import HeadAttribution
from eah_interp.attribution.cases.labels import largest
from eah_interp.attribution.picture.map import Run
from eah_interp.report.grids import Grid

RUNS = ("plain", "patched", "change")
PARTS = ("new_pattern", "new_values", "new_scale")
TITLES: dict[Run, str] = {
    "plain": "without EAH",
    "patched": "with EAH",
    "change": "change",
}
KINDS = {
    "block": "MLPs and other blocks",
    "embedding": "embedding",
    "between": "added between layers",
    "bias": "biases",
    "remainder": "remainder (rounding)",
}
"""What is summed over, by kind; heads stand before them."""

MOST_HEADS = 10


def tabulate_heads(found: HeadAttribution, target: int) -> Grid:
    """Lay out a target's logit as a sum: its largest heads, and all that is left.

    The rows add up to the last one, up to the rounding of each to four decimals.
    """
    table = found.frame()
    own = table[table["target"] == target]
    heads = own[own["kind"] == "head"].reset_index(drop=True)
    top = largest(heads, min(MOST_HEADS, len(heads)), by="change")
    rows = [
        (str(row["name"]), *(_write(row[name]) for name in (*RUNS, *PARTS)))
        for row in top.to_dict("records")
    ]
    others = heads[~heads["name"].isin(top["name"])]
    if len(others):
        rest = (_write(others[name].sum()) for name in (*RUNS, *PARTS))
        rows.append((f"{len(others)} other heads", *rest))
    for kind, title in KINDS.items():
        sums = own[own["kind"] == kind][list(RUNS)].sum()
        if kind == "remainder" or (sums != 0).any():
            rows.append((title, *(_write(sums[run]) for run in RUNS), "", "", ""))
    plain, patched = _values(found, target)
    name = found.targets[target].label
    return Grid(
        caption=f"Direct effects on {name}, in logits",
        header=("component", *TITLES.values(), "pattern", "values", "scale"),
        rows=tuple(rows),
        total=(
            f"{name}: sum",
            *(_write(value) for value in (plain, patched, patched - plain)),
            "",
            "",
            "",
        ),
        notes=f"The {len(top)} heads that EAH changes most, then all the rest: each "
        "column adds up to its last row. A head's change has three parts: it looks "
        "elsewhere (pattern), finds other things there (values), or counts "
        "differently because a later norm rescales it (scale). Effects through later "
        "components are not in it.",
    )


def tabulate_maps(found: HeadAttribution, target: int) -> tuple[Grid, ...]:
    """Lay out a target's effects of every head: plain, patched and the change."""
    assert found.patched is not None
    plain, patched = found.plain.heads[target], found.patched.heads[target]
    panels: dict[Run, Tensor] = {
        "plain": plain,
        "patched": patched,
        "change": patched - plain,
    }
    return tuple(
        Grid(
            caption=f"{found.targets[target].label}, {TITLES[run]}, in logits",
            header=("layer", *(f"H{head}" for head in range(plain.shape[1]))),
            rows=tuple(
                (f"L{layer}", *map(_round, line))
                for layer, line in zip(found.layers, panel.tolist(), strict=True)
            ),
        )
        for run, panel in panels.items()
    )


def tabulate_patches(grid: Tensor, *, caption: str, notes: str = "") -> Grid:
    """Lay out numbers of image tokens as they lie in the picture; NaN is no token."""
    rows = tuple(
        (str(row), *("" if value != value else _round(value) for value in line))
        for row, line in enumerate(grid.tolist())
    )
    header = ("row", *map(str, range(grid.shape[1])))
    return Grid(caption=caption, header=header, rows=rows, notes=notes)


def _values(found: HeadAttribution, target: int) -> tuple[float, float]:
    assert found.patched is not None
    return float(found.plain.values[target]), float(found.patched.values[target])


def _write(value: Any) -> str:
    """Write to four decimals; what is less, but is not nothing, by its size."""
    if pd.isna(value):
        return ""
    if 0 < abs(value) < 0.00005:
        return f"{float(value):+.0e}"
    return f"{float(value) + 0.0:+.4f}"


def _round(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"
