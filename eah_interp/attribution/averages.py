"""Averages over objects, with intervals that draw images: `result.average()`."""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from eah_interp.arguments import check_count
from eah_interp.attribution.readouts import Target
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_choice, to_list
from eah_interp.results import ModelResult
from eah_interp.statistics import check_draws, percentile_effect, resample_sums

Split = Literal["present", "object", "none"]
"""What is averaged apart: objects that are in the image and those that are not; also
each object; or nothing."""

LABELS = ("layer", "head", "name", "point")
"""Columns that say of which part of the model a number is."""

_NO_NUMBERS = {"target", "row", "position", "read_at", "error", *LABELS}

_GROUPS = {"present": ("present",), "object": ("object", "present"), "none": ()}


class ObjectResult(ModelResult):
    """A result that has numbers for each object that was asked for."""

    targets: tuple[Target, ...]

    def average(
        self,
        *,
        of: str | None = None,
        split: Split = "present",
        k: int | None = None,
        clusters: Iterable[str | int | float] | None = None,
        level: float = 0.95,
        resamples: int = 2000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Average over objects, with an interval that draws images.

        The mean is over objects: each counts once, in a caption each mention. Objects
        of one image are not independent, nor are items that show the same image: the
        interval is a percentile bootstrap that draws images, each with all that was
        asked of it. It answers "other images, this very model".

        Where the interval is not defined, its ends are NaN and `why` says why: a single
        image, or no image that differs from the others. Where one of the objects has no
        number, the mean has none either.

        Args:
            of: The column of the table that is averaged, such as `"plain"`; the one
                that `top` compares when None. Of a lens that is read at the answer; of
                image tokens (`attribute_patches`) it is their sum.
            split: `"present"`: objects that are in the image, those that are not, and
                those of which it is not known, apart. `"object"`: also each object by
                itself. `"none"`: all together.
            k: Only the `k` largest means of each part, either sign, largest first; all
                of them, in the table's order, when None.
            clusters: What is drawn, for each item: items with the same value are drawn
                together. Items that show the same image when None.
            level: Confidence level.
            resamples: Bootstrap samples.
            seed: Seeds them.

        Returns:
            Columns of `split`, then `name estimate low high n_objects n_images why`,
            and `layer head`; of a lens `point` and `layer`. Of direct effects heads are
            listed alone, as `top` does.

        Raises:
            SettingsError: If there is no such column, a setting is impossible, or it is
                not known which items show the same image.
            InputError: If there is not a cluster for each item.
        """
        check_choice("split", split, Split)
        level, resamples, seed = check_draws(
            level=level, resamples=resamples, seed=seed
        )
        k = None if k is None else check_count("k", k)
        by = self._compared() if of is None else of
        table = self._averaged(by if isinstance(by, str) else "")
        if not isinstance(by, str) or by not in _list_numbers(table):
            listed = ", ".join(_list_numbers(table))
            msg = f"of={show_value(by)} is no column of numbers: expected {listed}"
            raise SettingsError(msg)
        drawn = cluster_targets(self.targets, clusters)
        n_targets = len(self.targets)
        n_cells = len(table) // n_targets if n_targets else 0
        cells = table.head(n_cells)[[name for name in LABELS if name in table]]
        values = torch.tensor(table[by].to_numpy(dtype="float64", na_value=math.nan))
        values = values.view(n_targets, n_cells)
        parts = []
        for labels, members in _list_groups(self.targets, split):
            found = average_cells(
                values[members],
                [drawn[member] for member in members],
                level=level,
                resamples=resamples,
                seed=seed,
            )
            part = pd.concat([cells.reset_index(drop=True), found], axis=1)
            for place, (name, value) in enumerate(labels.items()):
                part.insert(place, name, value)
            if k is not None:
                order = (
                    part["estimate"].abs().sort_values(ascending=False, kind="stable")
                )
                part = part.loc[order.index[:k]]
            parts.append(part)
        return _tidy(parts, cells, split)

    def _compared(self) -> str:
        """Name the column that is averaged where none is named."""
        return "effect"

    def _averaged(self, of: str) -> pd.DataFrame:
        """List what is averaged: as many rows of each target, in the same order."""
        del of
        return self.frame()


def _list_numbers(table: pd.DataFrame) -> list[str]:
    numbers = table.select_dtypes("number").columns
    return [name for name in map(str, numbers) if name not in _NO_NUMBERS]


def _list_groups(
    targets: Sequence[Target], split: Split
) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Yield what is averaged apart: its labels, and which targets it holds.

    Objects in their order; of each those that are in the image, then those that are
    not, then those of which it is not known.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    objects = {t.label: n for n, t in reversed(list(enumerate(targets)))}
    for number, target in enumerate(targets):
        facts = {"object": target.label, "present": target.present}
        key = tuple(facts[name] for name in _GROUPS[split])
        groups.setdefault(key, []).append(number)

    def place(key: tuple[Any, ...]) -> tuple[int, int]:
        facts = dict(zip(_GROUPS[split], key, strict=True))
        order = (True, False, None)
        return objects.get(str(facts.get("object")), 0), order.index(
            facts.get("present")
        )

    for key in sorted(groups, key=place):
        yield dict(zip(_GROUPS[split], key, strict=True)), groups[key]


def _tidy(parts: list[pd.DataFrame], cells: pd.DataFrame, split: Split) -> pd.DataFrame:
    """Put parts under each other: who, the mean, how many, and then where it lies."""
    first = [*_GROUPS[split], *(n for n in ("name", "point") if n in cells)]
    numbers = ["estimate", "low", "high", "n_objects", "n_images", "why"]
    rest = [name for name in cells if name not in first]
    columns = [*first, *numbers, *rest]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    table = table.reindex(columns=columns)
    if "present" in table:
        table["present"] = table["present"].astype("boolean")
    return table


ROUNDING = 1e-5
"""Share of the largest effect by which images differ when only rounding does: equal
images in two rows of a batch are up to 4e-6 apart on some processors."""


def average_cells(
    values: Tensor,
    clusters: Sequence[int],
    *,
    level: float,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Average the lines of a table over objects, with intervals that draw clusters.

    Args:
        values: A line for each object, `[object cell]`.
        clusters: The cluster of each object.
        level: Confidence level.
        resamples: Bootstrap samples.
        seed: Seeds them.

    Returns:
        `estimate low high n_objects n_images why`, a line for each cell. An estimate is
        NaN where one of its objects has no number.

    Example:
        >>> values = torch.tensor([[1.0, 5.0], [2.0, math.nan], [6.0, 5.0]])
        >>> table = average_cells(values, [0, 0, 1], level=0.9, resamples=99, seed=0)
        >>> table["estimate"].tolist(), table["why"].tolist()
        ([3.0, nan], ['', '1 of 3 objects has no number'])
        >>> table[["low", "high", "n_images"]].values.tolist()[0]
        [1.5, 6.0, 2.0]
    """
    numbers = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    places = torch.tensor([numbers[cluster] for cluster in clusters])
    n_objects, n_cells = values.shape
    lost = (~values.isfinite()).sum(0).tolist()
    whole = torch.tensor([not number for number in lost], dtype=torch.bool)
    counted = torch.ones(n_objects, 1, dtype=torch.float64)
    rows = torch.cat([values.double()[:, whole], counted], 1)
    sums = torch.zeros(len(numbers), rows.shape[1], dtype=torch.float64)
    sums.index_add_(0, places, rows)
    totals = sums.sum(0)
    means = iter((totals[:-1] / totals[-1]).tolist())
    samples = None
    if len(numbers) > 1:
        found = resample_sums(sums, resamples=resamples, seed=seed).drawn
        samples = iter((found[:, :-1] / found[:, -1:]).T)
    per_image = sums[:, :-1] / sums[:, -1:]
    apart = iter((per_image.amax(0) - per_image.amin(0)).tolist())
    rounding = ROUNDING * float(rows[:, :-1].abs().amax()) if whole.any() else 0.0
    lines = []
    for cell in range(n_cells):
        estimate, low, high = (math.nan,) * 3
        why = ""
        if lost[cell]:
            verb = "has" if lost[cell] == 1 else "have"
            why = f"{lost[cell]} of {n_objects} objects {verb} no number"
        elif samples is None:
            estimate, why = next(means), "a single image"
        else:
            effect = percentile_effect(
                next(means), next(samples), level=level, n=len(numbers)
            )
            estimate, low, high = effect.estimate, effect.low, effect.high
            if next(apart) <= rounding:
                low, high, why = math.nan, math.nan, "no image differs"
        lines.append((estimate, low, high, n_objects, len(numbers), why))
    names = ["estimate", "low", "high", "n_objects", "n_images", "why"]
    return pd.DataFrame(lines, columns=names)


def cluster_targets(
    targets: Sequence[Target], clusters: Iterable[str | int | float] | None
) -> list[int]:
    """Number what is drawn: the cluster of each target.

    Items that have an image in common are one cluster, also by way of a third.

    Args:
        targets: The targets.
        clusters: The user's own, one for each item.

    Raises:
        SettingsError: If clusters are no list of names or numbers, or are not given and
            it is not known which items show the same image.
        InputError: If there is not a cluster for each item.

    Example:
        >>> shown = [("a",), ("b",), ("a", "c"), ("c",)]
        >>> targets = [Target("", i, 7, "", images=s) for i, s in enumerate(shown)]
        >>> cluster_targets(targets, None)
        [0, 1, 0, 0]
        >>> cluster_targets(targets, ["x", "x", "y", "y"])
        [0, 0, 2, 2]
    """
    items = [target.asked_of for target in targets]
    keys: list[tuple[Hashable, ...]]
    if clusters is not None:
        named = _check_clusters(clusters, n_items=max(items, default=-1) + 1)
        keys = [(named[item],) for item in items]
    elif all(target.images for target in targets) or len(set(items)) < 2:
        keys = [(*target.images,) or ("",) for target in targets]
    else:
        msg = (
            "it is not known which items show the same image: inputs came ready-made, "
            "or the result was saved before it was kept; expected clusters=, one for "
            "each item, such as the names of the image files"
        )
        raise SettingsError(msg)
    leader: dict[Hashable, Hashable] = {}

    def lead(key: Hashable) -> Hashable:
        while leader.setdefault(key, key) != key:
            key = leader[key]
        return key

    for own in keys:
        for key in own[1:]:
            leader[lead(key)] = lead(own[0])
    first: dict[Hashable, int] = {}
    return [
        first.setdefault(lead(own[0]), item)
        for own, item in zip(keys, items, strict=True)
    ]


def _check_clusters(clusters: object, *, n_items: int) -> list[Hashable]:
    listed = to_list(clusters)
    plain = listed is not None and all(
        isinstance(one, str | int | float) and one == one for one in listed
    )
    if listed is None or not plain:
        got = show_value(clusters)
        msg = (
            f"clusters must be a list of names or numbers, one for each item, got {got}"
        )
        raise SettingsError(msg)
    if len(listed) < n_items:
        msg = (
            f"clusters has {len(listed)} values: expected one for each item, at least "
            f"{n_items}"
        )
        raise InputError(msg)
    return listed
