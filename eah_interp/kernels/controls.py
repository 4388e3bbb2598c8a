"""Control patterns: what a causal claim about a donor is compared with.

Each keeps the two properties of a pattern: rows sum to one, and no row attends to
a key that it cannot see. Where a learned sink takes a share, so that rows sum to less,
a control says where the rest goes and leaves its size alone: to the heads' mean (mean),
each head's own (uniform), the donor's (shuffled). Each takes whole patterns or a block
of their rows.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask

Rows = Float[Tensor, "batch head rows key"]
VisibleRows = Bool[Tensor, "batch #head rows key"]


def mean_pattern(pattern: Rows) -> Rows:
    """Replace every head's pattern by the mean over the layer's heads.

    So is what a row sums to, where a learned sink takes a share.

    Args:
        pattern: Whole patterns or a block of rows.

    Returns:
        The same pattern in every head.

    Example:
        >>> import torch
        >>> pattern = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> mean_pattern(pattern)[0, 0].tolist()
        [[0.5, 0.5]]
    """
    return pattern.mean(1, keepdim=True).expand_as(pattern)


def uniform_pattern(
    pattern: Rows, *, image_mask: ColumnMask, visible: VisibleRows
) -> Rows:
    """Spread every row's attention evenly over the image columns it can see.

    A row keeps its sum: what a learned sink takes of it is not handed out. Rows that
    see no image column keep their own pattern.

    Args:
        pattern: Whole patterns or a block of rows.
        image_mask: True at image tokens.
        visible: Which keys each row may attend to.

    Returns:
        The new pattern.

    Example:
        >>> import torch
        >>> see = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
        >>> image = torch.tensor([[False, True, True]])
        >>> own = see / see.sum(-1, keepdim=True)
        >>> uniform_pattern(own, image_mask=image, visible=see)[0, 0, 2].tolist()
        [0.0, 0.5, 0.5]
    """
    seen = visible & image_mask[:, None, None, :]
    count = seen.sum(-1, keepdim=True)
    mass = pattern.sum(-1, keepdim=True)
    even = seen * (mass / count.clamp(min=1))
    return torch.where(count > 0, even, pattern)


def shuffled_pattern(
    pattern: Rows,
    donors: Int[Tensor, " batch"],
    *,
    image_mask: ColumnMask,
    visible: VisibleRows,
    priority: Float[Tensor, "batch key"],
) -> Rows:
    """Broadcast the donor's pattern with its image columns permuted.

    A row that sees image columns `v` in order of position takes, at `v[i]`, the
    donor's weight at `s[i]`, where `s` is the same columns in order of priority.
    So every row that sees the whole image uses one permutation, no row looks at a key
    that is hidden from it, and a row's sum is the donor's.

    Args:
        pattern: Whole patterns or a block of rows.
        donors: Donor head of each item; items with -1 are left as they are.
        image_mask: True at image tokens.
        visible: Which keys each row may attend to.
        priority: A random number for each column.

    Returns:
        The new pattern.

    Example:
        >>> import torch
        >>> pattern = torch.tensor([[[[0.0, 0.7, 0.3]]]])
        >>> new = shuffled_pattern(
        ...     pattern,
        ...     torch.tensor([0]),
        ...     image_mask=torch.tensor([[False, True, True]]),
        ...     visible=torch.ones(1, 1, 1, 3, dtype=torch.bool),
        ...     priority=torch.tensor([[0.0, 0.9, 0.1]]),
        ... )
        >>> [round(w, 1) for w in new[0, 0, 0].tolist()]
        [0.0, 0.3, 0.7]
    """
    items = torch.arange(pattern.shape[0], device=pattern.device)
    index = donors.clamp(min=0)
    own_heads = visible.shape[1] != 1
    seen = (visible[items, index] if own_heads else visible[:, 0]) & image_mask[:, None]
    # Both argsorts list the seen columns first: by position, and by priority.
    place = torch.arange(pattern.shape[-1], device=pattern.device).float()
    hidden = torch.tensor(torch.inf, device=pattern.device)
    by_place = torch.where(seen, place, hidden).argsort(dim=-1, stable=True)
    by_priority = torch.where(seen, priority[:, None], hidden).argsort(
        dim=-1, stable=True
    )
    source = place.long().expand(seen.shape).scatter(-1, by_place, by_priority)
    source = torch.where(seen, source, place.long())
    donated = pattern[items, index].gather(-1, source).unsqueeze(1)
    return torch.where((donors >= 0)[:, None, None, None], donated, pattern)
