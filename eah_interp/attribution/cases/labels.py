"""Names of heads, and which of a table's rows come first."""

from collections.abc import Sequence

import pandas as pd

from eah_interp.attribution.cases.readouts import Target
from eah_interp.errors import SettingsError


def name_head(layer: int, head: int) -> str:
    """Name a head as the field does.

    Example:
        >>> name_head(3, 7)
        'L3H7'
    """
    return f"L{layer}H{head}"


def list_heads(
    targets: Sequence[Target], layers: Sequence[int], n_heads: int
) -> pd.DataFrame:
    """List target, object, row, position, layer, head and name of every head.

    Rows are in the order of a flattened `[target layer head]`.

    Example:
        >>> targets = [Target("boat", 0, 7, "boat")]
        >>> list_heads(targets, (1, 2), 2)["name"].tolist()
        ['L1H0', 'L1H1', 'L2H0', 'L2H1']
    """
    index = pd.MultiIndex.from_product(
        [range(len(targets)), layers, range(n_heads)],
        names=["target", "layer", "head"],
    )
    table = index.to_frame(index=False)
    table["name"] = "L" + table.layer.astype(str) + "H" + table["head"].astype(str)
    return label_targets(table, targets)


def label_targets(table: pd.DataFrame, targets: Sequence[Target]) -> pd.DataFrame:
    """Put the object, row and position of each row's target beside its number.

    Args:
        table: Has a column `target`.
        targets: The targets.
    """
    facts = pd.DataFrame(
        {
            "object": [target.label for target in targets],
            "row": [target.row for target in targets],
            "position": [target.position for target in targets],
        }
    )
    labelled = facts.iloc[table["target"]].reset_index(drop=True)
    return pd.concat([labelled, table.reset_index(drop=True)], axis=1)


def largest(table: pd.DataFrame, k: int, *, by: str) -> pd.DataFrame:
    """List each target's `k` rows that are largest in absolute value.

    Args:
        table: Has a column `target`.
        k: How many.
        by: The column that is compared.

    Raises:
        SettingsError: If `k` is below 1, or there is no such column of numbers.

    Example:
        >>> table = pd.DataFrame({"target": [0, 0, 1], "effect": [1.0, -2.0, 0.5]})
        >>> largest(table, 1, by="effect")["effect"].tolist()
        [-2.0, 0.5]
    """
    if k < 1:
        msg = f"k must be at least 1, got {k}"
        raise SettingsError(msg)
    if by not in table or not pd.api.types.is_float_dtype(table[by]):
        numbers = table.select_dtypes("float").columns
        msg = f"by={by!r} is no column of numbers: expected {', '.join(numbers)}"
        raise SettingsError(msg)
    order = table[by].abs().sort_values(ascending=False, kind="stable").index
    ordered = table.loc[order].sort_values("target", kind="stable")
    return ordered.groupby("target", sort=False).head(k).reset_index(drop=True)
