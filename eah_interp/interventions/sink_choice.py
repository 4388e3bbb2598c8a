"""Which columns stand for sinks, and which change places: masks and places alone.

Items are rows, and places their columns in the decoder, or tokens of the vision tower.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import InputError


def choose_random(sinks: ColumnMask, image: ColumnMask, priority: Tensor) -> ColumnMask:
    """Choose as many image columns that are no sinks, by the highest priority.

    Args:
        sinks: The sinks.
        image: The image columns.
        priority: A number for each column, drawn at random.

    Returns:
        The chosen columns: as many as there are sinks, or all others if fewer.

    Example:
        >>> sinks = torch.tensor([[True, False, False, False]])
        >>> image = torch.tensor([[True, True, True, False]])
        >>> priority = torch.tensor([[0.9, 0.2, 0.4, 0.8]])
        >>> choose_random(sinks, image, priority).tolist()
        [[False, False, True, False]]
    """
    free = image & ~sinks
    order = priority.masked_fill(~free, -torch.inf).argsort(-1, descending=True)
    rank = order.argsort(-1)
    return free & (rank < sinks.sum(-1, keepdim=True))


def match_columns(sinks: ColumnMask, image: ColumnMask, numbers: Tensor) -> ColumnMask:
    """Choose, for each sink, an image column that is none and has a number like it.

    Sinks of the largest numbers choose first, each the nearest that is left.

    Args:
        sinks: The sinks.
        image: The image columns.
        numbers: A number for each column.

    Returns:
        The chosen columns: as many as there are sinks, or all others if fewer.

    Example:
        >>> sinks = torch.tensor([[True, False, False, False]])
        >>> image = torch.tensor([[True, True, True, False]])
        >>> match_columns(sinks, image, torch.tensor([[9.0, 1.0, 5.0, 9.0]])).tolist()
        [[False, False, True, False]]
    """
    free = (image & ~sinks).cpu()
    values = numbers.float().cpu()
    chosen = torch.zeros_like(free)
    for item in range(len(free)):
        own = sinks[item].cpu().nonzero().flatten()
        for place in own[values[item, own].argsort(descending=True)].tolist():
            left = free[item] & ~chosen[item]
            if not bool(left.any()):
                break
            gap = (values[item] - values[item, place]).abs()
            chosen[item, int(gap.masked_fill(~left, torch.inf).argmin())] = True
    return chosen.to(sinks.device)


def prefer_places(
    priority: Float[Tensor, "batch place"],
    image: Bool[Tensor, "batch place"],
    to: tuple[int, ...],
) -> Float[Tensor, "batch place"]:
    """Put named places of each item before what is drawn.

    Args:
        priority: A number below 1 for each place, drawn at random.
        image: The places of images.
        to: The named ones, counted through an item's image places.

    Raises:
        InputError: If an item with an image has no such place.

    Example:
        >>> image = torch.tensor([[False, True, True, True]])
        >>> prefer_places(torch.zeros(1, 4), image, (2, 0)).tolist()
        [[0.0, 1.0, 0.0, 2.0]]
    """
    found = priority.clone()
    for item in range(len(image)) if to else ():
        own = image[item].nonzero().flatten()
        if not len(own):
            continue
        if max(to) >= len(own):
            msg = (
                f"place {max(to)} does not exist in item {item}: expected 0 to "
                f"{len(own) - 1}, counted through its image columns"
            )
            raise InputError(msg)
        best = torch.arange(len(to), 0, -1).to(found)
        found[item, own[list(to)]] = best
    return found


def pair_in_item(
    chosen: Bool[Tensor, "batch place"],
    free: Bool[Tensor, "batch place"],
    priority: Float[Tensor, "batch place"],
) -> Int[Tensor, "pair 2 2"]:
    """Pair each chosen place, in order, with a free one of its item, the first drawn.

    Args:
        chosen: What is moved.
        free: Where it may go.
        priority: A number for each place; the highest are taken first.

    Returns:
        Item and place of the two of each pair; as many as there are of both.

    Example:
        >>> chosen = torch.tensor([[True, False, False, False]])
        >>> free = torch.tensor([[False, True, True, False]])
        >>> priority = torch.tensor([[0.9, 0.2, 0.4, 0.8]])
        >>> pair_in_item(chosen, free, priority).tolist()
        [[[0, 0], [0, 2]]]
    """
    pairs = []
    for item in range(len(chosen)):
        own = chosen[item].nonzero().flatten().tolist()
        open_ = free[item].nonzero().flatten()
        order = priority[item, open_].argsort(descending=True, stable=True)
        where = open_[order].tolist()
        pairs += [
            [[item, place], [item, other]]
            for place, other in zip(own, where, strict=False)
        ]
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2, 2)


def pair_between_items(chosen: Bool[Tensor, "batch place"]) -> Int[Tensor, "pair 2 2"]:
    """Pair chosen places of neighbouring items, the first of one with that of another.

    Args:
        chosen: What is swapped.

    Returns:
        Item and place of the two of each pair: of items 0 and 1, of 2 and 3, and so on;
        as many as the item with fewer has.

    Example:
        >>> chosen = torch.tensor([[False, True, True], [True, False, False]])
        >>> pair_between_items(chosen).tolist()
        [[[0, 1], [1, 0]]]
    """
    pairs = []
    for item in range(0, len(chosen) - 1, 2):
        one, other = (
            chosen[row].nonzero().flatten().tolist() for row in (item, item + 1)
        )
        pairs += [
            [[item, place], [item + 1, there]]
            for place, there in zip(one, other, strict=False)
        ]
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2, 2)
