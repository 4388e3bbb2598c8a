"""Scores of benchmarks as tables, and as mappings that JSON can hold."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from eah_interp.statistics import Effect
from eah_interp.tables import Table

NONE = "none"
"""What stands in a table where nothing can be said."""


def write_rate(value: float | None, *, digits: int = 1) -> str:
    """Write a rate.

    Example:
        >>> write_rate(12.34), write_rate(float("nan"))
        ('12.3', 'none')
    """
    if value is None or math.isnan(value):
        return NONE
    return f"{value:.{digits}f}"


def tabulate_rates(
    caption: str,
    groups: Mapping[str, Any],
    columns: Mapping[str, str],
    *,
    first: str,
    notes: str = "",
    digits: int = 1,
) -> Table:
    """Lay out results of one kind, a row each.

    Args:
        caption: What they are.
        groups: Results by name.
        columns: Their attributes, and what to call them; counts stand as they are.
        first: What the names are.
        notes: How to read them.
        digits: After the point.
    """
    return Table(
        caption=caption,
        header=(first, *columns.values()),
        rows=tuple(
            (name, *(_write(getattr(one, key), digits) for key in columns))
            for name, one in groups.items()
        ),
        notes=notes,
    )


def _write(value: Any, digits: int) -> str:
    return str(value) if isinstance(value, int) else write_rate(value, digits=digits)


def spread_effect(effect: Effect | None, *names: str) -> dict[str, float | None]:
    """Write an effect as three cells of a row: its estimate, and its interval's ends.

    Example:
        >>> spread_effect(None, "change", "low", "high")
        {'change': None, 'low': None, 'high': None}
    """
    if effect is None:
        return dict.fromkeys(names)
    parts = (effect.estimate, effect.low, effect.high)
    return dict(zip(names, parts, strict=True))


def to_plain(value: Any) -> Any:
    """Write a result as JSON can hold it: NaN and infinity as None.

    Example:
        >>> to_plain({"a": float("nan"), "b": (1, 2.5)})
        {'a': None, 'b': [1, 2.5]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
