"""Images that a vision tower packs into one sequence, and what each may look at.

Towers for images of any size put the patches of all images one after the other. What
attends to what is said by lengths (Qwen-VL's images and windows) or by a mask that is
full in blocks along its diagonal (Pixtral's). Nothing here is written out until a
pattern is asked for.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

Chunks = tuple[tuple[int, ...], ...]
"""Of each image, the lengths of the parts that attend within themselves, in order."""


@dataclass(frozen=True)
class SequenceMask:
    """An attention mask, told by lengths: what is in one part sees all of that part.

    Attributes:
        chunks: The parts of each batch item; what comes after them is padding.
        width: Tokens of an item, padding included.

    Example:
        >>> SequenceMask(((2, 1), (2,)), 3).write().int().tolist()[0][0]
        [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """

    chunks: Chunks
    width: int

    def write(
        self, device: Any = None, *, rows: slice | Tensor | None = None
    ) -> Bool[Tensor, "batch 1 query key"]:
        """Write it out; rows and columns of padding are False.

        Args:
            device: Where it is wanted.
            rows: Some of its query rows; all when None.
        """
        owner = torch.full((len(self.chunks), self.width), -1)
        for row, lengths in enumerate(self.chunks):
            numbers = torch.arange(len(lengths))
            own = numbers.repeat_interleave(torch.tensor(lengths, dtype=torch.long))
            owner[row, : len(own)] = own
        owner = owner.to(device)
        own = owner if rows is None else owner[:, rows]
        there = (own >= 0)[:, None, :, None]
        return there & (own[:, None, :, None] == owner[:, None, None, :])

    def split(self, items: Tensor, *, axis: int) -> Tensor:
        """Give each part a batch item of its own, padded with zeros behind.

        Args:
            items: `[item, ..., token, ...]`.
            axis: That of the tokens.

        Example:
            >>> mask = SequenceMask(((2, 1),), 3)
            >>> mask.split(torch.tensor([[5, 6, 7]]), axis=1).tolist()
            [[5, 6], [7, 0]]
        """
        place, there = self._places(items.device)
        tokens = items.movedim(axis, 1).flatten(0, 1)
        parts = tokens[place]
        wide = there.view(*there.shape, *(1,) * (parts.ndim - 2))
        return (parts * wide).movedim(1, axis)

    def join(self, parts: Tensor, *, axis: int) -> Tensor:
        """Undo `split`; zeros where an item has padding."""
        place, there = self._places(parts.device)
        tokens = parts.movedim(axis, 1)
        n_items = len(self.chunks)
        whole = tokens.new_zeros((n_items * self.width, *tokens.shape[2:]))
        whole[place[there]] = tokens[there]
        return whole.view(n_items, self.width, *tokens.shape[2:]).movedim(1, axis)

    def part_tokens(self, device: Any = None) -> Bool[Tensor, "part token"]:
        """True at the tokens of each part, False at the padding behind them."""
        return self._places(device)[1]

    def _places(self, device: Any) -> tuple[Tensor, Tensor]:
        """Find where each part's tokens stand, counted through all items."""
        starts = [(row * self.width + part.start, part) for row, part in self.parts()]
        lengths = torch.tensor([part.stop - part.start for _, part in starts])
        offset = torch.arange(int(lengths.max()))
        there = offset < lengths[:, None]
        place = torch.tensor([start for start, _ in starts])[:, None] + offset
        return (place * there).to(device), there.to(device)

    def parts(self) -> list[tuple[int, slice]]:
        """List the parts: the item, and which of its tokens."""
        return [
            (row, slice(end - length, end))
            for row, lengths in enumerate(self.chunks)
            for length, end in zip(lengths, accumulate(lengths), strict=True)
        ]


@dataclass(frozen=True)
class Packing:
    """How images stand in one packed sequence `[1, ..., token, ...]`.

    Attributes:
        chunks: Of each image, the parts that attend within themselves.
    """

    chunks: Chunks

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each image."""
        return tuple(map(sum, self.chunks))

    @property
    def mask(self) -> SequenceMask | None:
        """What each token may look at, an item for each image; None for all."""
        whole = all(len(parts) == 1 for parts in self.chunks)
        if whole and len(set(self.lengths)) == 1:
            return None
        return SequenceMask(self.chunks, max(self.lengths))

    def token_mask(self, device: Any = None) -> Bool[Tensor, "image token"]:
        """True at the tokens of each image, False at the padding behind them."""
        place = torch.arange(max(self.lengths), device=device)
        return place < torch.tensor(self.lengths, device=device)[:, None]

    def spread(self, packed: Tensor, *, axis: int) -> Tensor:
        """Give each image a batch item of its own, padded with zeros behind.

        Args:
            packed: `[1, ..., token, ...]`.
            axis: That of the tokens.

        Example:
            >>> packing = Packing(((2,), (1,)))
            >>> packing.spread(torch.tensor([[5, 6, 7]]), axis=1).tolist()
            [[5, 6], [7, 0]]
        """
        if len(self.chunks) == 1:
            return packed
        mask = self.token_mask(packed.device)
        tokens = packed.movedim(axis, 1)[0]
        whole = tokens.new_zeros((*mask.shape, *tokens.shape[1:]))
        whole[mask] = tokens
        return whole.movedim(1, axis)

    def pack(self, items: Tensor, *, axis: int) -> Tensor:
        """Undo `spread`."""
        if len(self.chunks) == 1:
            return items
        mask = self.token_mask(items.device)
        return items.movedim(axis, 1)[mask][None].movedim(1, axis)


def group_chunks(lengths: tuple[int, ...], images: tuple[int, ...]) -> Chunks:
    """Tell which parts of a packed sequence are windows of one image.

    Args:
        lengths: Of the parts that attend within themselves.
        images: Tokens of each image, as far as it is known.

    Returns:
        The parts of each image; each part by itself where these do not add up.

    Example:
        >>> group_chunks((2, 2, 3), (4, 3))
        ((2, 2), (3,))
        >>> group_chunks((5, 5), (4, 4))
        ((5,), (5,))
    """
    ends = list(accumulate(lengths))
    if sum(images) != sum(lengths) or not set(accumulate(images)) <= set(ends):
        return tuple((length,) for length in lengths)
    found: list[tuple[int, ...]] = []
    start = 0
    for end in accumulate(images):
        stop = ends.index(end) + 1
        found.append(lengths[start:stop])
        start = stop
    return tuple(found)


def find_blocks(visible: Bool[Tensor, "query key"]) -> tuple[int, ...] | None:
    """Find the lengths of a mask's blocks along its diagonal; None if it has others.

    Args:
        visible: True where a row may look.

    Example:
        >>> find_blocks(torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).bool())
        (2, 3)
    """
    linked = visible.diagonal(offset=1)
    ends = [int(end) + 1 for end in (~linked).nonzero().flatten()] + [len(visible)]
    lengths = tuple(b - a for a, b in zip([0, *ends], ends, strict=False))
    blocks = SequenceMask((lengths,), len(visible)).write(visible.device)[0, 0]
    return lengths if torch.equal(blocks, visible) else None
