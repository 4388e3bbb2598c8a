"""Patterns and scores as controls, ablations and other methods rewrite them.

Each takes some query rows of a layer's attention and returns them rewritten. What a row
sums to is left alone: one, or less where a learned sink takes a share. NaN that goes
in comes out.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import SettingsError
from eah_interp.kernels.patterns import (
    check_place,
    check_sizes,
    check_tensor,
    is_abstract,
)

PatternRows = Float[Tensor, "batch head rows key"]
VisibleRows = Bool[Tensor, "batch #head rows key"]


_AXES = "batch head rows key"


def _check_rows(pattern: Tensor, *, visible: Tensor, columns: Tensor) -> None:
    """Check that rows of a pattern, and what goes with them, fit each other."""
    check_tensor("pattern", pattern, axes=_AXES)
    n_batch, n_heads, n_rows, n_keys = pattern.shape
    check_tensor("visible", visible, axes=_AXES, kind="bool")
    check_sizes("visible", visible, n_batch, (1, n_heads), n_rows, n_keys)
    check_tensor("the mask of columns", columns, axes="batch key", kind="bool")
    check_sizes("the mask of columns", columns, n_batch, n_keys)
    check_place(pattern=pattern, visible=visible, columns=columns)


# ---- Control patterns: what a causal claim about a donor is compared with.


def mean_pattern(pattern: PatternRows) -> PatternRows:
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
    check_tensor("pattern", pattern, axes=_AXES)
    return pattern.mean(1, keepdim=True).expand_as(pattern)


def uniform_pattern(
    pattern: PatternRows, *, image_mask: ColumnMask, visible: VisibleRows
) -> PatternRows:
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
    _check_rows(pattern, visible=visible, columns=image_mask)
    seen = visible & image_mask[:, None, None, :]
    count = seen.sum(-1, keepdim=True)
    mass = pattern.sum(-1, keepdim=True)
    even = seen * (mass / count.clamp(min=1))
    return torch.where(count > 0, even, pattern)


def shuffled_pattern(
    pattern: PatternRows,
    donors: Int[Tensor, " batch"],
    *,
    image_mask: ColumnMask,
    visible: VisibleRows,
    priority: Float[Tensor, "batch key"],
) -> PatternRows:
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
    _check_rows(pattern, visible=visible, columns=image_mask)
    check_tensor("donors", donors, axes="batch", kind="int")
    check_sizes("donors", donors, pattern.shape[0])
    check_tensor("priority", priority, axes="batch key")
    check_sizes("priority", priority, pattern.shape[0], pattern.shape[3])
    check_place(pattern=pattern, donors=donors, priority=priority)
    if not is_abstract(donors) and bool((donors >= pattern.shape[1]).any()):
        msg = f"donors must be heads 0 to {pattern.shape[1] - 1}, or -1 for none"
        raise SettingsError(msg)
    items = torch.arange(pattern.shape[0], device=pattern.device)
    index = donors.clamp(min=0)
    own_heads = visible.shape[1] != 1
    seen = (visible[items, index] if own_heads else visible[:, 0]) & image_mask[:, None]
    # both argsorts list the seen columns first: by position, and by priority
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


# ---- Ablations: patterns and scores that take something away.


def previous_pattern(
    pattern: PatternRows, *, visible: VisibleRows, own: Int[Tensor, " rows"]
) -> PatternRows:
    """Let every row attend to the token before its own, and to nothing else.

    That is the last key before its own that it can see; a first token, which sees none,
    keeps its own pattern.

    Args:
        pattern: Whole patterns or a block of rows.
        visible: Which keys each row may attend to.
        own: Key position of each row's own token.

    Returns:
        The new pattern.

    Example:
        >>> import torch
        >>> see = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
        >>> even = see / see.sum(-1, keepdim=True)
        >>> previous_pattern(even, visible=see, own=torch.arange(3))[0, 0].tolist()
        [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    place = torch.arange(pattern.shape[-1], device=pattern.device)
    before = visible & (place < own.to(pattern.device).unsqueeze(-1))
    last = ((place + 1) * before).amax(-1, keepdim=True)
    chosen = (place + 1 == last).expand_as(pattern)
    mass = pattern.sum(-1, keepdim=True)
    return torch.where(last > 0, chosen * mass, pattern)


def hide_columns(logits: PatternRows, columns: ColumnMask) -> PatternRows:
    """Hide columns before the softmax, so that the others take their mass.

    Attention knock-out as in Geva et al., arXiv:2304.14767.

    Args:
        logits: Attention scores of some rows.
        columns: True at the columns to hide.

    Returns:
        The scores, at the dtype's minimum there.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[[[0.0, 0.0, 0.0]]]])
        >>> hidden = torch.tensor([[False, True, False]])
        >>> hide_columns(scores, hidden).softmax(-1).tolist()
        [[[[0.5, 0.0, 0.5]]]]
    """
    return logits.masked_fill(columns[:, None, None], torch.finfo(logits.dtype).min)


# ---- Other methods: PAI's scores, VAR's patterns.


def boost_scores(
    logits: PatternRows,
    columns: ColumnMask,
    *,
    alpha: float,
    rows: Bool[Tensor, "batch rows"],
) -> PatternRows:
    """Scale up some rows' scores of some columns: `l + alpha |l|`, before the softmax.

    Source: PAI, Liu et al., arXiv:2407.21771, equation 3.

    Args:
        logits: Attention scores of some rows.
        columns: True at the columns to look at more.
        alpha: How much more.
        rows: True at the rows that do.

    Returns:
        The new scores.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[[[2.0, -2.0, 2.0]]]])
        >>> image = torch.tensor([[True, True, False]])
        >>> rows = torch.tensor([[True]])
        >>> boost_scores(scores, image, alpha=0.5, rows=rows).tolist()
        [[[[3.0, -1.0, 2.0]]]]
    """
    boosted = columns[:, None, None] & rows[:, None, :, None]
    return torch.where(boosted, logits + alpha * logits.abs(), logits)


def sink_values(
    hidden: Float[Tensor, "batch pos d_model"], dims: tuple[int, ...]
) -> Float[Tensor, "batch pos"]:
    """Measure how massively tokens are activated in sink dimensions.

    `phi(x) = max over d in dims of |x[d]| / rms(x)`, in float32, where `rms(x)` is the
    root of the mean square over all dimensions. Source: Kang et al., arXiv:2503.03321,
    section 4.

    Args:
        hidden: The residual stream.
        dims: The sink dimensions.

    Returns:
        One number for each token.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[0.0, 6.0, 0.0, 8.0]]])
        >>> round(sink_values(x, (1, 2)).item(), 3)
        1.2
    """
    x = hidden.float()
    # as in an RMSNorm: a token that is all zero gets 0, and not NaN
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (x * scale)[..., list(dims)].abs().amax(-1)


def redistribute_pattern(
    pattern: PatternRows,
    *,
    image_mask: ColumnMask,
    sinks: ColumnMask,
    rho: float,
    share: float,
    min_image: float,
) -> PatternRows:
    """Move attention from sinks to the rest of the image, in heads that look there.

    A head is image-centric in a row `i` if it spends at least `min_image` on the image,
    and at least `rho` of that on image columns that are no sinks. There

        omega_i = share * sum over sinks j of A[i, j]
        A[i, j] <- (1 - share) A[i, j]                  for a sink j, image or text
        A[i, j] <- A[i, j] (1 + omega_i / sum over k of A[i, k])
                                                        for image columns j, k, no sinks

    Source: VAR, Kang et al., arXiv:2503.03321, equations 3 and 4.

    Args:
        pattern: Whole patterns or a block of rows.
        image_mask: True at image tokens.
        sinks: True at sink tokens, of the image or not.
        rho: Least share of the image's attention that goes to no sink.
        share: How much of a sink's attention is moved.
        min_image: Least attention to the image.

    Returns:
        The new pattern; rows of other heads as they were.

    Example:
        >>> import torch
        >>> new = redistribute_pattern(
        ...     torch.tensor([[[[0.5, 0.1, 0.3, 0.1]]]]),
        ...     image_mask=torch.tensor([[False, True, True, False]]),
        ...     sinks=torch.tensor([[True, True, False, False]]),
        ...     rho=0.5,
        ...     share=0.6,
        ...     min_image=0.2,
        ... )
        >>> [round(w, 2) for w in new.flatten().tolist()]
        [0.2, 0.04, 0.66, 0.1]
    """
    image, sink = image_mask[:, None, None], sinks[:, None, None]
    seeing = image & ~sink
    on_image = (pattern * image).sum(-1, keepdim=True)
    on_rest = (pattern * seeing).sum(-1, keepdim=True)
    # the last: where every image column is a sink, nothing could take the budget
    centric = (on_image >= min_image) & (on_rest >= rho * on_image) & (on_rest > 0)
    budget = share * (pattern * sink).sum(-1, keepdim=True)
    tiny = torch.finfo(pattern.dtype).tiny
    grown = pattern * (1 + budget / on_rest.clamp(min=tiny))
    new = torch.where(seeing, grown, torch.where(sink, (1 - share) * pattern, pattern))
    return torch.where(centric, new, pattern)
