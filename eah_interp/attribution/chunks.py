"""Items of a batch run some at a time, and what was found of them put together."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from eah_interp.arguments import check_flag
from eah_interp.attribution.cases import Case
from eah_interp.attribution.replay import check_batch_size
from eah_interp.attribution.sides import split_items
from eah_interp.interventions.intervention import Intervention
from eah_interp.results import Part

Kind = TypeVar("Kind", bound=Part)
Line = TypeVar("Line")


@dataclass(frozen=True)
class Chunk:
    """Some items of a case.

    Attributes:
        case: These items with their targets.
        items: Which of the batch they are.
        targets: Which of the whole case's targets theirs are, in order.
        patch: The settings that give them the patch they have in the batch.
    """

    case: Case
    items: list[int]
    targets: list[int]
    patch: Intervention | None


def check_chunks(*, batch_size: int | None, progress: bool) -> None:
    """Check how items are run.

    Raises:
        SettingsError: If the batch size is below 1, or `progress` is no switch.
    """
    check_flag("progress", progress)
    check_batch_size(batch_size)


def in_chunks(
    case: Case,
    patch: Intervention | None,
    *,
    batch_size: int | None,
    progress: bool = False,
) -> Iterator[Chunk]:
    """Yield a case in parts of so many items, padded as the whole is.

    Items that are asked nothing come with others, or not at all.

    Args:
        case: The whole.
        patch: Settings of a patched run; items with unlike ones (a seed each) do not
            share a part.
        batch_size: Most items in a part; all of them when None.
        progress: Whether to show a bar.

    Raises:
        InputError: If the items of the batch cannot be told apart.
    """
    n_targets = len(case.readout.targets)
    if batch_size is None or batch_size >= case.n_items:
        items, targets = list(range(case.n_items)), list(range(n_targets))
        whole = Chunk(case, items, targets, patch)
        yield from show_items([whole], progress=progress)
        return
    asked = split_items(case, "plain" if patch is None else patch)
    alike = [list(g) for _, g in itertools.groupby(asked, key=lambda entry: entry[2])]
    chunks = [
        group[start : start + batch_size]
        for group in alike
        for start in range(0, len(group), batch_size)
    ]
    with tqdm(total=len(asked), desc="items", disable=not progress) as bar:
        for part in chunks:
            items = [item for item, _, _ in part]
            targets = [target for _, own, _ in part for target in own]
            yield Chunk(case.copies(items), items, targets, part[0][2][0])
            bar.update(len(items))


def show_items(lines: Sequence[Line], *, progress: bool) -> Iterator[Line]:
    """Yield the lines of items one by one, with a bar where it is asked for."""
    yield from tqdm(lines, desc="items", disable=not progress)


def join_parts(parts: Sequence[tuple[Sequence[int], Kind]]) -> Kind:
    """Put tensors `[target ...]` of parts together, in the order of all targets.

    Args:
        parts: For each the targets that it is about, and the part.

    Example:
        >>> from eah_interp.attribution.patches import PictureEffects
        >>> one, other = (
        ...     PictureEffects(value, torch.zeros(1, 2, 2, 9), torch.zeros(1, 2, 2))
        ...     for value in (torch.ones(1), torch.full((1,), 2.0))
        ... )
        >>> join_parts([([1], one), ([0], other)]).values.tolist()
        [2.0, 1.0]
    """
    order = torch.tensor([target for targets, _ in parts for target in targets])
    first = parts[0][1]
    joined: dict[str, Any] = {}
    for field in dataclasses.fields(first):  # type: ignore[arg-type]
        values = [getattr(part, field.name) for _, part in parts]
        joined[field.name] = values[0]
        if isinstance(values[0], Tensor):
            joined[field.name] = torch.cat(values)[order.argsort()]
    return type(first)(**joined)


def join_donors(
    parts: Sequence[tuple[Sequence[int], Mapping[int, Tensor]]], *, n_items: int
) -> dict[int, Tensor]:
    """Put donors of items together; -1 where an item was not run, or has none.

    Example:
        >>> join_donors([([0, 2], {1: torch.tensor([4, 5])})], n_items=3)
        {1: tensor([ 4, -1,  5])}
    """
    layers = sorted({layer for _, donors in parts for layer in donors})
    joined = {layer: torch.full((n_items,), -1) for layer in layers}
    for items, donors in parts:
        for layer, heads in donors.items():
            joined[layer][list(items)] = heads
    return joined
