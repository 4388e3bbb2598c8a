"""Vision sinks: how much attention each image column receives under each head.

Source: Zhang et al., arXiv:2411.09968, and the released file audited in
docs/method.md. The three definitions differ in the rows they count and in what
they divide by.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eah_interp._types import (
    ColumnMask,
    Definition,
    Densities,
    Donors,
    HeadColumnMask,
    HeadColumnScores,
    HeadMask,
    Keys,
    Pattern,
    Queries,
)
from eah_interp.errors import InputError, NumericalError, SettingsError, show_value
from eah_interp.indices import check_choice, check_integer, to_float, to_int, to_ints
from eah_interp.kernels.patterns import (
    PatternBlock,
    check_attention_shapes,
    check_finite,
    check_place,
    check_sizes,
    check_tensor,
    exact_product,
    is_abstract,
    pattern_blocks,
)
from eah_interp.results import Part

# ---- What a sink score is compared with: vision sinks, their density, dense heads.


DEFAULT_BETA: dict[Definition, float] = {
    "paper": 0.002,
    "official": 0.0008,
    "visible": 1.0,
}
"""The threshold each definition is published with (ours: the uniform share)."""


@dataclass(frozen=True, eq=False, repr=False)
class ColumnScores(Part):
    """How much attention each column receives, and what that is compared with.

    Attributes:
        scores: Mean received attention, float32; 0 where a column is not judged.
        unit: What `beta` multiplies: 1, or under `"visible"` each column's uniform
            share. The head axis is 1 where all heads see the same keys.
        columns: The columns that are judged (`"official"` drops the first of them).
    """

    scores: HeadColumnScores
    unit: Float[Tensor, "batch #head key"]
    columns: ColumnMask
    compared_in: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_tensor("scores", self.scores, axes="batch head key")
        check_tensor("unit", self.unit, axes="batch head key")
        check_tensor("columns", self.columns, axes="batch key", kind="bool")
        n_batch, n_heads, n_keys = self.scores.shape
        check_sizes("unit", self.unit, n_batch, (1, n_heads), n_keys)
        check_sizes("columns", self.columns, n_batch, n_keys)
        check_place(scores=self.scores, unit=self.unit, columns=self.columns)

    def sinks(self, beta: float) -> HeadColumnMask:
        """Mark the vision sinks: judged columns with `score > beta * unit`.

        Args:
            beta: Threshold, in multiples of `unit`.

        Returns:
            True at each vision sink of each head.

        Example:
            >>> import torch
            >>> scores = torch.tensor([[[0.0, 0.3, 0.1]]])
            >>> judged = torch.tensor([[False, True, True]])
            >>> ColumnScores(scores, torch.ones(1, 1, 3), judged).sinks(0.2)
            tensor([[[False,  True, False]]])
        """
        return (self.scores > self.threshold(beta)) & self.columns.unsqueeze(1)

    def only(self, columns: ColumnMask) -> "ColumnScores":
        """Let some of the judged columns be sinks, and no others.

        Densities stay shares of all judged columns.

        Args:
            columns: Those that may be.
        """
        check_tensor("columns", columns, axes="batch key", kind="bool")
        check_sizes("columns", columns, *self.columns.shape)
        check_place(scores=self.scores, columns=columns)
        scores = self.scores.masked_fill(~columns.unsqueeze(1), 0.0)
        return replace(self, scores=scores)

    def threshold(self, beta: float) -> Float[Tensor, "batch #head key"]:
        """Return what a vision sink's score is above.

        Raises:
            SettingsError: If beta is no finite number.
        """
        times = check_finite("beta", beta)
        if times is None:
            raise SettingsError("beta must be a number, got None")
        threshold = times * self.unit
        if self.compared_in is not None:
            threshold = threshold.to(self.compared_in).float()
        return threshold

    def density(self, beta: float) -> Densities:
        """Measure the share of the judged columns that are vision sinks.

        Args:
            beta: Threshold, in multiples of `unit`.

        Returns:
            Sink density of each head, in [0, 1].

        Example:
            >>> import torch
            >>> scores = torch.tensor([[[0.0, 0.3, 0.1]]])
            >>> judged = torch.tensor([[False, True, True]])
            >>> ColumnScores(scores, torch.ones(1, 1, 3), judged).density(0.2)
            tensor([[0.5000]])
        """
        judged = self.columns.sum(-1, keepdim=True).clamp(min=1)
        return self.sinks(beta).sum(-1) / judged


def dense_heads(density: Densities, *, gamma: float) -> HeadMask:
    """Mark the dense vision-sink heads, `density >= gamma`.

    Args:
        density: Sink density of each head.
        gamma: Least density, in (0, 1]; the paper looks at 0.15 and 0.20.

    Returns:
        True at each dense head.

    Raises:
        SettingsError: If gamma is outside (0, 1].
        InputError: If the density is no tensor `[batch, head]`.
        NumericalError: If it holds NaN.

    Example:
        >>> import torch
        >>> dense_heads(torch.tensor([[0.1, 0.2]]), gamma=0.2)
        tensor([[False,  True]])
    """
    _check_density(density)
    return density >= _check_gamma(gamma)


def score_columns(
    pattern: Pattern,
    *,
    image_mask: ColumnMask,
    token_mask: ColumnMask | None = None,
    visible: Bool[Tensor, "batch #head query key"] | None = None,
    definition: Definition = "visible",
) -> ColumnScores:
    r"""Score every image column from a whole attention pattern.

    `score(h, y) = sum over rows x in R, x != y, of A[h, x, y] / N(y)`, where

    - `"paper"`: R is the image tokens, N their number;
    - `"official"`: R is every token, `N = E - (y - S)` with S the second and E one
      past the last image column, both counted from the first real token;
    - `"visible"`: R is every token, N the number of them that can see y, and beta
      is in multiples of the uniform share: the mean over those rows of
      1 / (number of keys the row sees).

    Text between several images is neither scored nor, under `"paper"`, a row. Where a
    learned sink takes a share of each row, columns score what is left for them; the
    unit stays the share of a whole row, so a head that leaves little has few sinks.

    Args:
        pattern: Rows sum to one, or to less where a learned sink takes a share.
        image_mask: True at image tokens.
        token_mask: False at padding; all True when None.
        visible: Which keys each row may attend to. None means causal, without
            padding. Pass it for bidirectional image blocks and sliding windows.
        definition: Which of the three.

    Returns:
        Scores with the unit of beta and the columns judged.

    Raises:
        InputError: If an item has no image tokens, or shapes do not agree.
        NumericalError: If the pattern holds NaN or infinite weights.
        SettingsError: If `definition` is unknown.

    Example:
        >>> import torch
        >>> even = torch.ones(4, 4).tril() / torch.arange(1.0, 5)[:, None]
        >>> image = torch.tensor([[False, True, True, False]])
        >>> found = score_columns(even[None, None], image_mask=image)
        >>> found.scores[0, 0, 1:3].tolist() == found.unit[0, 0, 1:3].tolist()
        True
    """
    check_tensor("pattern", pattern, axes="batch head query key")
    _check_masks(image_mask, token_mask, definition)
    if visible is not None:
        check_tensor("visible", visible, axes="batch head query key", kind="bool")
    check_place(pattern=pattern, image_mask=image_mask, visible=visible)
    if pattern.shape[2] != pattern.shape[3]:
        msg = (
            f"expected a square prefill pattern, got {pattern.shape[2]} query rows "
            f"and {pattern.shape[3]} keys; score the prefill, not a decoding step"
        )
        raise InputError(msg)
    shape = (pattern.shape[0], pattern.shape[1], pattern.shape[3])
    _check_mask_sizes(shape, image_mask, token_mask)
    if visible is None:
        size = pattern.shape[-1]
        visible = torch.ones(size, size, dtype=torch.bool, device=pattern.device).tril()
        visible = visible.expand(pattern.shape[0], 1, size, size)
        if token_mask is not None:
            visible = visible & token_mask[:, None, None, :]
    elif visible.shape not in (pattern.shape, pattern[:, :1].shape):
        msg = (
            f"visible has shape {tuple(visible.shape)}: expected one flag for each "
            f"weight, {tuple(pattern.shape)}, with 1 allowed for head"
        )
        raise InputError(msg)
    # one block of all rows: the same sums as those of a stream of blocks
    whole = PatternBlock(slice(0, pattern.shape[2]), pattern.float(), visible)
    return _accumulate(
        iter([whole]),
        shape=shape,
        image_mask=image_mask,
        token_mask=token_mask,
        definition=definition,
        dtype=pattern.dtype,
    )


def stream_column_scores(
    queries: Queries,
    keys: Keys,
    *,
    image_mask: ColumnMask,
    token_mask: ColumnMask | None = None,
    mask: Tensor | None = None,
    definition: Definition = "visible",
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    change: Callable[[PatternBlock], Tensor] | None = None,
    block: int | None = None,
) -> ColumnScores:
    """Score every image column from queries and keys, without a whole pattern.

    The same numbers as `score_columns` of the pattern that these queries and keys
    give; float32 sums; memory O(batch x heads x block x keys).

    Args:
        queries: After RoPE.
        keys: After RoPE, one per key/value group.
        image_mask: True at image tokens.
        token_mask: False at padding; all True when None.
        mask: The attention call's own mask, boolean or additive; None is causal.
        definition: As for `score_columns`.
        scale: As for `pattern_blocks`.
        softcap: As for `pattern_blocks`.
        sink_logits: As for `pattern_blocks`.
        change: Maps a block to new weights, which are then scored, such as those that
            a patch gives its rows. None leaves them.
        block: As for `pattern_blocks`.

    Returns:
        Scores with the unit of beta and the columns judged.

    Raises:
        InputError: As for `score_columns` and `pattern_blocks`.
        NumericalError: If queries or keys hold NaN or infinite values.
        SettingsError: If `definition` is unknown.

    Example:
        >>> import torch
        >>> q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
        >>> image = torch.tensor([[False, True, True, True, False, False]])
        >>> found = stream_column_scores(q, k, image_mask=image, block=2)
        >>> found.scores.shape
        torch.Size([1, 4, 6])
    """
    check_attention_shapes(queries, keys, mask, sink_logits)
    _check_masks(image_mask, token_mask, definition)
    check_place(queries=queries, image_mask=image_mask)
    _check_change(change)
    shape = (queries.shape[0], queries.shape[1], keys.shape[2])
    _check_mask_sizes(shape, image_mask, token_mask)
    blocks = pattern_blocks(
        queries,
        keys,
        mask=mask,
        token_mask=token_mask,
        scale=scale,
        softcap=softcap,
        sink_logits=sink_logits,
        rounded=_rounds(definition, queries.dtype),
        block=block,
    )
    if change is not None:
        blocks = (replace(part, weights=change(part)) for part in blocks)
    return _accumulate(
        blocks,
        shape=shape,
        image_mask=image_mask,
        token_mask=token_mask,
        definition=definition,
        dtype=queries.dtype,
    )


# ---- What columns receive from some rows and from others, and what learned sinks take.


@dataclass(frozen=True, eq=False, repr=False)
class ReceivedAttention(Part):
    """What columns receive from the query rows of each of some groups.

    A column's own row is left out, as it is in scores.

    Attributes:
        received: Attention summed over the group's rows, float32.
        rows: How many of these rows see the column; the head axis is 1 where all heads
            see the same keys.
        even: What the column would receive if rows spread their attention evenly.
        lost: Mean share of the group's rows that goes to no key: what a learned sink
            takes; 0 without one.
    """

    received: Float[Tensor, "batch head group key"]
    rows: Float[Tensor, "batch #head group key"]
    even: Float[Tensor, "batch #head group key"]
    lost: Float[Tensor, "batch head group"]

    @property
    def mean(self) -> Float[Tensor, "batch head group key"]:
        """Mean attention that a row which sees the column gives it."""
        return self.received / self.rows.clamp(min=1)

    def sinks(self, beta: float) -> HeadColumnMask:
        """Mark columns that receive more than `beta` times an even share, of all rows.

        Args:
            beta: As for `ColumnScores.sinks`, under the definition `"visible"`.
        """
        return self.received.sum(2) > beta * self.even.sum(2)


def stream_received(
    queries: Queries,
    keys: Keys,
    *,
    groups: Bool[Tensor, "batch group query"],
    token_mask: ColumnMask | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    block: int | None = None,
) -> ReceivedAttention:
    """Sum what columns receive from groups of query rows, without a whole pattern.

    With all tokens in one group, what is received over what is even is the score of
    `score_columns` over its unit, under `"visible"`.

    Args:
        queries: After RoPE.
        keys: After RoPE, one per key/value group.
        groups: True at the rows of each group.
        token_mask: False at padding; all True when None.
        mask: The attention call's own mask, boolean or additive; None is causal.
        scale: As for `pattern_blocks`.
        softcap: As for `pattern_blocks`.
        sink_logits: As for `pattern_blocks`.
        block: As for `pattern_blocks`.

    Raises:
        InputError: As for `pattern_blocks`, or if the groups do not fit.

    Example:
        >>> import torch
        >>> q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
        >>> first = torch.arange(6) < 3
        >>> groups = torch.stack([first, ~first])[None]
        >>> stream_received(q, k, groups=groups).mean.shape
        torch.Size([1, 4, 2, 6])
    """
    check_attention_shapes(queries, keys, mask, sink_logits)
    check_tensor("groups", groups, axes="batch group query", kind="bool")
    check_sizes("groups", groups, queries.shape[0], groups.shape[1], queries.shape[2])
    check_place(queries=queries, groups=groups)
    n_batch, n_heads, n_keys = queries.shape[0], queries.shape[1], keys.shape[2]
    shape = (n_batch, n_heads, groups.shape[1], n_keys)
    received = torch.zeros(shape, device=queries.device)
    lost = torch.zeros(shape[:3], device=queries.device)
    rows, even = torch.zeros(()), torch.zeros(())
    for part in pattern_blocks(
        queries,
        keys,
        mask=mask,
        token_mask=token_mask,
        scale=scale,
        softcap=softcap,
        sink_logits=sink_logits,
        block=block,
    ):
        counts = groups[:, :, part.rows].to(part.weights.dtype)
        received = received + _group_sums(part.weights, counts, part.rows, n_keys)
        seen = part.visible.to(counts.dtype)
        share = seen / seen.sum(-1, keepdim=True).clamp(min=1)
        rows = rows + _group_sums(seen, counts, part.rows, n_keys)
        even = even + _group_sums(share, counts, part.rows, n_keys)
        if sink_logits is not None:
            gone = 1 - part.weights.sum(-1, keepdim=True)
            lost = lost + exact_product(counts.unsqueeze(1), gone).squeeze(-1)
    n_rows = groups.sum(-1).clamp(min=1)[:, None]
    return ReceivedAttention(
        received.float(), rows.float(), even.float(), (lost / n_rows).float()
    )


def _rounds(definition: Definition, dtype: torch.dtype) -> torch.dtype | None:
    """Return the dtype that the released file sums in; None for float32."""
    return dtype if definition == "official" and dtype.itemsize < 4 else None


def _accumulate(
    blocks: Iterator[PatternBlock],
    *,
    shape: tuple[int, int, int],
    image_mask: ColumnMask,
    token_mask: ColumnMask | None,
    definition: Definition,
    dtype: torch.dtype,
) -> ColumnScores:
    """Sum the blocks' columns over the rows that count, then divide."""
    tokens = torch.ones_like(image_mask) if token_mask is None else token_mask
    counted = (image_mask if definition == "paper" else tokens).float()
    n_batch, n_heads, n_keys = shape
    received = torch.zeros(n_batch, n_heads, n_keys, device=image_mask.device)
    rows_seen, even = torch.zeros(()), torch.zeros(())
    for part in blocks:
        counts = counted[:, part.rows].to(part.weights.dtype)
        received = received + _column_sums(part.weights, counts, part.rows, n_keys)
        if definition == "visible":
            seen = part.visible.to(counts.dtype)
            # what a row gives each key it sees, if it spreads its attention evenly
            share = seen / seen.sum(-1, keepdim=True).clamp(min=1)
            rows_seen = rows_seen + _column_sums(seen, counts, part.rows, n_keys)
            even = even + _column_sums(share, counts, part.rows, n_keys)
    unit = torch.ones(n_batch, 1, n_keys, device=image_mask.device)
    columns = image_mask
    if definition == "paper":
        divisor = image_mask.sum(-1)[:, None, None]
    elif definition == "official":
        columns, divisor = _official_columns(image_mask, tokens)
    else:
        divisor = rows_seen.clamp(min=1)
        unit = even / divisor
    rounded = _rounds(definition, dtype)
    if rounded is not None:  # sums are float32 inside torch.sum too, and rounded after
        received = received.to(rounded)
    scores = (received / divisor).masked_fill(~columns.unsqueeze(1), 0.0)
    if not is_abstract(received) and not bool(received.isfinite().all()):
        msg = (
            "attention weights are NaN or infinite: expected finite numbers, got "
            f"{int((~received.isfinite()).sum())} bad column sums; check the model's "
            "weights and dtype (float16 overflows where bfloat16 does not)"
        )
        raise NumericalError(msg)
    return ColumnScores(scores.float(), unit.float(), columns, rounded)


def _column_sums(weights: Tensor, counts: Tensor, rows: slice, n_keys: int) -> Tensor:
    """Sum columns over the counted rows, leaving each column's own row out."""
    return _group_sums(weights, counts.unsqueeze(1), rows, n_keys).squeeze(2)


def _group_sums(weights: Tensor, counts: Tensor, rows: slice, n_keys: int) -> Tensor:
    """Do so for each group of rows: `[batch group row]` to `[batch head group key]`."""
    total = exact_product(counts.unsqueeze(1), weights)
    own = weights[..., rows].diagonal(dim1=-2, dim2=-1)
    total[..., rows] -= own.unsqueeze(2) * counts.unsqueeze(1)
    return torch.nn.functional.pad(total, (0, n_keys - weights.shape[-1]))


def _official_columns(image_mask: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Drop each item's first image column; divide by `E - (y - S)`."""
    position = tokens.long().cumsum(-1) - 1
    order = image_mask.long().cumsum(-1)
    columns = image_mask & (order > 1)
    first = position.masked_fill(~image_mask, position.shape[-1]).amin(-1, keepdim=True)
    last = position.masked_fill(~image_mask, -1).amax(-1, keepdim=True)
    divisor = (last + 1) - (position - (first + 1))
    return columns, divisor.clamp(min=1).unsqueeze(1)


def _check_masks(
    image_mask: Tensor, token_mask: Tensor | None, definition: str
) -> None:
    check_choice("definition", definition, list(DEFAULT_BETA))
    check_tensor("image_mask", image_mask, axes="batch key", kind="bool")
    if token_mask is not None:
        check_tensor("token_mask", token_mask, axes="batch key", kind="bool")
    check_place(image_mask=image_mask, token_mask=token_mask)


def _check_change(change: object) -> None:
    if change is not None and not callable(change):
        msg = f"change must be a function of a block, got {show_value(change)}"
        raise InputError(msg)


def _check_density(density: Tensor) -> None:
    check_tensor("density", density, axes="batch head")
    if not density.shape[1]:
        raise InputError("density has no heads: expected 1 or more, got 0")
    # NaN is neither the most nor the least: no head would be found.
    if not is_abstract(density) and bool(density.isnan().any()):
        msg = "density holds NaN: expected shares; look at the pattern it is made of"
        raise NumericalError(msg)


def _check_gamma(gamma: object) -> float:
    share = to_float(gamma)
    if share is None or not 0 < share <= 1:
        got = show_value(gamma)
        msg = f"gamma is a share of the image columns in (0, 1], got {got}"
        raise SettingsError(msg)
    return share


def _check_mask_sizes(
    shape: tuple[int, int, int], image_mask: Tensor, token_mask: Tensor | None
) -> None:
    for name, given in (("image", image_mask), ("token", token_mask)):
        if given is not None and tuple(given.shape) != (shape[0], shape[2]):
            msg = (
                f"the {name} mask has shape {tuple(given.shape)}: expected one flag "
                f"for each key, {(shape[0], shape[2])}"
            )
            raise InputError(msg)
    check_image_columns(image_mask)


def check_image_columns(image_mask: ColumnMask) -> None:
    """Check that every batch item has image tokens.

    Raises:
        InputError: If one has none.
    """
    if is_abstract(image_mask):  # in nnsight's scan there are no numbers to count
        return
    counts = image_mask.sum(-1).tolist()
    for item, count in enumerate(counts):
        if count == 0:
            msg = (
                f"the image mask selects no tokens: expected at least 1, got 0 of "
                f"{image_mask.shape[-1]} in batch item {item}; pass an image, or "
                "input_ids that contain the model's image token id"
            )
            raise InputError(msg)


# ---- Which head donates its pattern.


_RULES = ("densest", "sparsest", "random")

HeadZero = Literal["eligible", "never"]
"""Whether head 0 may donate; `"never"` is the released file's accident."""


def choose_donors(
    density: Densities,
    *,
    rule: Literal["densest", "sparsest", "random"] | int = "densest",
    gamma: float | None = None,
    seed: int | Sequence[int] = 0,
    head_0: HeadZero = "eligible",
) -> Donors:
    """Choose each item's donor head from the sink densities of its layer.

    On a tie the lowest index wins. Under `"densest"` an item in which no head has a
    vision sink (or none reaches `gamma`) has no donor, and gets -1: there is no
    densest sink to broadcast, and head 0 would be an accident of the tie rule.

    Args:
        density: Sink density of each head.
        rule: `"densest"` (the method), `"sparsest"` or `"random"` (controls), or
            the index of a head.
        gamma: Least density that a densest donor must have.
        seed: For `"random"`: one seed, under which every item draws the same head
            whatever batch it stands in, or one seed for each item.
        head_0: `"never"`: an item whose donor would be head 0 has no donor, as in
            the released file (`if k > 0`).

    Returns:
        Index of each item's donor; -1 where there is none.

    Raises:
        SettingsError: If the rule is unknown, the head does not exist, gamma is
            outside (0, 1], or a seed is no integer of 0 or more.
        InputError: If there is not one seed for each item, or the density is no tensor
            `[batch, head]`.
        NumericalError: If it holds NaN.

    Example:
        >>> import torch
        >>> density = torch.tensor([[0.1, 0.4, 0.4], [0.0, 0.0, 0.0]])
        >>> choose_donors(density).tolist()
        [1, -1]
        >>> choose_donors(density, rule="sparsest").tolist()
        [0, 0]
    """
    _check_density(density)
    check_choice("head_0", head_0, HeadZero)
    gamma = None if gamma is None else _check_gamma(gamma)
    n_batch, n_heads = density.shape
    head = to_int(rule)
    if head is None:
        check_choice("donor", rule, _RULES, more=" or a head index here")
    if head is not None:
        if not 0 <= head < n_heads:
            got = show_value(head)
            msg = f"donor head {got} does not exist: expected 0 to {n_heads - 1}"
            raise SettingsError(msg)
        donors = torch.full((n_batch,), head, device=density.device)
    elif rule == "densest":
        most, donors = _lowest_index(density, largest=True)
        donors = donors.masked_fill(most <= 0, -1)
        if gamma is not None:
            donors = donors.masked_fill(most < gamma, -1)
    elif rule == "sparsest":
        _, donors = _lowest_index(density, largest=False)
    else:
        seeds = _seed_per_item(seed, n_batch)
        drawn = [
            int(torch.randint(n_heads, (), generator=torch.Generator().manual_seed(s)))
            for s in seeds
        ]
        donors = torch.tensor(drawn, device=density.device)
    return donors.masked_fill(donors == 0, -1) if head_0 == "never" else donors


def _lowest_index(
    density: torch.Tensor, *, largest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the extreme density and the first head that has it.

    `argmax` may return any of several equal maxima on CUDA; this cannot.
    """
    best = density.amax(-1) if largest else density.amin(-1)
    heads = torch.arange(density.shape[-1], device=density.device)
    tied = density == best.unsqueeze(-1)
    return best, heads.masked_fill(~tied, density.shape[-1]).amin(-1)


def _seed_per_item(seed: int | Sequence[int], n_batch: int) -> Sequence[int]:
    one, seeds = to_int(seed), to_ints(seed)
    for number in seeds or ():
        check_integer("seed", number)
    if one is not None:
        return [one] * n_batch
    if seeds is None or len(seeds) != n_batch:
        got = f"{show_value(seed)}" if seeds is None else f"{len(seeds)}"
        msg = (
            f"expected one seed for each of {n_batch} batch items, got {got}; "
            "pass a single seed to use it for every item"
        )
        raise InputError(msg)
    return seeds
