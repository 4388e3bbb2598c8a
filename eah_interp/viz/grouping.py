"""Patterns over fewer tokens: a picture's tokens as one, or as a few."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.attribution.patterns.head_patterns import HeadPatterns
from eah_interp.attribution.patterns.pattern_run import Run
from eah_interp.errors import InputError, SettingsError
from eah_interp.lvlm.spans import ImageSpan

By = Literal["image", "part", "row"]
"""What becomes one token: a picture, each of its grids, or each row of patches."""


@dataclass(frozen=True)
class GroupedPatterns:
    """Rows of patterns over groups of tokens.

    Attributes:
        names: Name of each entry of the head axis: `L1H3`.
        labels: What each group is called: a token's text, `[image 1]`.
        groups: The prompt positions of each group.
        queries: The group of each entry of the row axis.
        weights: Attention of groups to groups: the sum over the columns of a group,
            the mean over its rows that were read.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    queries: tuple[int, ...]
    weights: Float[Tensor, "head row group"]

    @property
    def whole(self) -> bool:
        """Whether every group attends: whole patterns were read."""
        return self.queries == tuple(range(len(self.groups)))

    def frame(self) -> pd.DataFrame:
        """List every weight.

        Returns:
            Columns `name query token group read_at n_tokens weight`: the group that
            attends, the group that is read, its first position and its size.
        """
        _, n_rows, n_groups = self.weights.shape
        table = pd.MultiIndex.from_product(
            [self.names, range(n_rows), range(n_groups)],
            names=["name", "query", "group"],
        ).to_frame(index=False)
        table["query"] = [self.queries[row] for row in table["query"]]
        table.insert(2, "token", [self.labels[group] for group in table["group"]])
        table["read_at"] = [self.groups[group][0] for group in table["group"]]
        table["n_tokens"] = [len(self.groups[group]) for group in table["group"]]
        table["weight"] = self.weights.double().flatten().numpy()
        return table


def group_patterns(
    found: HeadPatterns,
    *,
    item: int = 0,
    run: Run = "plain",
    by: By = "image",
    keep: Iterable[int] = (),
) -> GroupedPatterns:
    """Put a picture's tokens together, so that a pattern can be read.

    A group gets the sum of the attention that its tokens get, and pays the mean of what
    they pay: `A[g, h] = mean over x in g of (sum over y in h of A[x, y])`. So rows sum
    to what they summed to. Text tokens stay as they are, padding is left out.

    Args:
        found: What `read_patterns` returned.
        item: Which batch item.
        run: Plain or patched.
        by: `"image"`: a picture is one token, `[image 1]`. `"part"`: each of its grids
            is (overview, crops, tiles). `"row"`: each row of patches is. Image tokens
            that are no patches (newline vectors) are `[image 1:other]`; latents are one
            group.
        keep: Positions of image tokens that stay by themselves, `<patch:r3c5>`, such as
            vision sinks; rows and columns of patches count from 0.

    Returns:
        The grouped rows.

    Raises:
        SettingsError: If `by`, the item or the run is unknown.
        InputError: If a position to keep holds no image token of this item.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import read_patterns
        >>> from eah_interp.testing import random_image
        >>> image = random_image()
        >>> found = read_patterns(eah.load(), image, "What?", heads=["L1H3"])
        >>> grouped = group_patterns(found)
        >>> len(found.tokens[0]) - len(grouped.labels)  # 100 tokens have become one
        99
    """
    if by not in get_args(By):
        msg = f"by must be one of {', '.join(get_args(By))}, got {by!r}"
        raise SettingsError(msg)
    found.find_item(item)
    spans = found.spans[item]
    kept = frozenset(keep)
    strangers = kept - {column for span in spans for column in span.columns}
    if strangers:
        msg = (
            f"expected positions of image tokens to keep, got {sorted(strangers)}; "
            "take them from spans, or from sinks"
        )
        raise InputError(msg)
    label_of: dict[int, str] = {}
    for number, span in enumerate(spans, 1):
        label_of |= _label_columns(span, number, by=by, kept=kept, of=len(spans))
    groups: dict[str | int, list[int]] = {}
    for position, padded in enumerate(found.padding[item].tolist()):
        if not padded:
            single = position in kept or position not in label_of
            name = position if single else label_of[position]
            groups.setdefault(name, []).append(position)
    members = list(groups.values())
    labels = [label_of.get(group[0], found.tokens[item][group[0]]) for group in members]
    mean, sums, queries = _build_matrices(found, members)
    rows = found.find_run(run).rows[item].double()
    weights = torch.einsum("gx,hxy,ky->hgk", mean, rows, sums)
    return GroupedPatterns(
        names=found.names,
        labels=tuple(labels),
        groups=tuple(map(tuple, members)),
        queries=queries,
        weights=weights.float(),
    )


def _build_matrices(
    found: HeadPatterns, groups: list[list[int]]
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Make the mean over a group's rows, the sum over its columns, and who has rows."""
    known = {position: row for row, position in enumerate(found.positions.tolist())}
    sums = torch.zeros(len(groups), found.images.shape[1], dtype=torch.double)
    means = torch.zeros(len(groups), len(known), dtype=torch.double)
    for number, group in enumerate(groups):
        sums[number, group] = 1
        read = [known[position] for position in group if position in known]
        if read:
            means[number, read] = 1 / len(read)
    queries = means.any(1).nonzero().flatten().tolist()
    return means[queries], sums, tuple(queries)


def _label_columns(
    span: ImageSpan, number: int, *, by: By, kept: frozenset[int], of: int
) -> dict[int, str]:
    """Say of each image token which group it is in, or what it is called alone."""
    image = f"image {number}"
    which = f"{image}:" if of > 1 else ""
    repeated = len(span.parts) > 1
    base = f"[{image}]" if by == "image" else f"[{image}:other]"
    labels = dict.fromkeys(span.columns, base if span.parts else f"[{image}]")
    for part in span.parts:
        same = [one for one in span.parts if one.name == part.name]
        name = part.name + (f" {same.index(part) + 1}" if len(same) > 1 else "")
        within = f"{name}:" if repeated else ""
        for row, line in enumerate(part.columns):
            for place, column in enumerate(line):
                if by == "part":
                    labels[column] = f"[{image}:{name}]" if repeated else f"[{image}]"
                elif by == "row":
                    labels[column] = f"[{image}:{within}r{row}]"
                if column in kept:
                    labels[column] = f"<{which}{within}patch:r{row}c{place}>"
    for column in kept & set(span.columns):
        if not labels[column].startswith("<"):
            labels[column] = f"<{which}token:{column}>"
    return labels
