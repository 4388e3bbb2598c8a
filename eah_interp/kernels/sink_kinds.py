"""What tells kinds of sinks apart: a huge norm, and massive activations.

Sinks of the vision tower are tokens of a norm far above the others' (Darcet et al.,
"Vision Transformers Need Registers", arXiv:2309.16588; in vision-language models, Luo
et al., arXiv:2510.08510, and Choi et al., arXiv:2604.03316). Sinks of the language
model are massively activated in a few dimensions of its residual stream (Sun et al.,
arXiv:2402.17762; Kang et al., arXiv:2503.03321). The papers' thresholds are numbers of
one model each, such as a norm of 100; here both are multiples of what is usual in the
same item of the same model.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import to_float
from eah_interp.kernels.patterns import check_place, check_sizes, check_tensor
from eah_interp.results import Part

NORMAL = 1.4826
"""Standard deviation of a normal distribution, in units of its median deviation."""

FLOOR = 0.5
"""Smallest score of a massive activation that is kept, in units of its threshold."""


@dataclass(frozen=True, eq=False, repr=False)
class SinkRule(Part):
    """From where on a token is a sink of the vision tower, or of the language model.

    A score is a number over its threshold: a sink's is above 1.

    Attributes:
        norm_times: A sink of the tower has a norm of at least so many times its
            item's median, ...
        norm_spread: ... and its logarithm is at least so many standard deviations
            above the median of the logarithms, the deviation taken from the median
            deviation, which sinks do not move.
        massive: A sink of the language model has an activation of at least so many
            times the median size of its own activations in that layer, ...
        massive_times: ... and of at least so many times the median over its item's
            tokens of that dimension, so that what is large in all of them is none.

    Raises:
        SettingsError: If a threshold is not above 0.
    """

    norm_times: float = 2.0
    norm_spread: float = 5.0
    massive: float = 30.0
    massive_times: float = 5.0

    def __post_init__(self) -> None:
        for name in ("norm_times", "norm_spread", "massive", "massive_times"):
            value = to_float(getattr(self, name))
            if value is None or not 0 < value < torch.inf:
                got = show_value(getattr(self, name))
                msg = f"{name} must be a number above 0, got {got}"
                raise SettingsError(msg)
            object.__setattr__(self, name, value)


def norm_threshold(norms: Float[Tensor, " token"], rule: SinkRule) -> float:
    """Find the norm above which one of these tokens is a sink of the tower.

    Args:
        norms: The norms of one item's tokens.
        rule: The rule.

    Returns:
        The threshold; infinity where there are no tokens.

    Example:
        >>> norms = torch.tensor([10.0, 11.0, 9.0, 10.5, 9.5, 10.0, 60.0])
        >>> 10 < norm_threshold(norms, SinkRule()) < 60
        True
    """
    check_tensor("norms", norms, axes="token")
    if not len(norms):
        return float("inf")
    logs = norms.double().clamp(min=torch.finfo(torch.float32).tiny).log()
    middle = logs.median()
    spread = NORMAL * (logs - middle).abs().median()
    times = torch.tensor(rule.norm_times, dtype=torch.float64).log()
    return float((middle + torch.maximum(times, rule.norm_spread * spread)).exp())


@dataclass(frozen=True, eq=False, repr=False)
class MassiveActivations(Part):
    """Activations of image columns that are massive, or nearly so.

    Attributes:
        places: Item, column and dimension of each, `[place, 3]`.
        values: The activations.
        scores: In units of the threshold, `FLOOR` and more.
    """

    places: Int[Tensor, "place 3"]
    values: Float[Tensor, " place"]
    scores: Float[Tensor, " place"]

    def by_column(self, n_items: int, n_keys: int) -> Float[Tensor, "batch key"]:
        """Take each column's largest score; 0 where nothing is massive.

        Args:
            n_items: Batch items.
            n_keys: Columns of an item.
        """
        whole = self.scores.new_zeros(n_items * n_keys)
        place = self.places[:, 0] * n_keys + self.places[:, 1]
        whole = whole.scatter_reduce(0, place, self.scores, "amax")
        return whole.view(n_items, n_keys)


def find_massive(
    stream: Float[Tensor, "batch key d_model"],
    *,
    columns: ColumnMask,
    token_mask: ColumnMask,
    rule: SinkRule,
    entering: MassiveActivations | None = None,
) -> MassiveActivations:
    """Find the massive activations of image columns in a layer's residual stream.

    Args:
        stream: The residual stream.
        columns: The image columns.
        token_mask: False at padding.
        rule: The rule.
        entering: Those of the stream that entered the decoder: what is massive there
            already was not made by the decoder, and is left out.

    Raises:
        InputError: If the masks do not fit the stream.

    Example:
        >>> stream = torch.randn(1, 12, 16)
        >>> stream[0, 5, 3] = -500.0
        >>> every = torch.ones(1, 12, dtype=torch.bool)
        >>> found = find_massive(
        ...     stream, columns=every, token_mask=every, rule=SinkRule()
        ... )
        >>> found.places.tolist(), float(found.values)
        ([[0, 5, 3]], -500.0)
    """
    check_tensor("stream", stream, axes="batch key d_model")
    check_tensor("columns", columns, axes="batch key", kind="bool")
    check_tensor("token_mask", token_mask, axes="batch key", kind="bool")
    check_sizes("columns", columns, *stream.shape[:2])
    check_sizes("token_mask", token_mask, *stream.shape[:2])
    check_place(stream=stream, columns=columns, token_mask=token_mask)
    if not stream.shape[2]:
        raise InputError("stream has no dimensions: expected 1 or more, got 0")
    place = columns.nonzero()
    own = stream[columns].float()
    sizes = own.abs()
    tiny = torch.finfo(torch.float32).tiny
    usual = sizes.median(-1, keepdim=True).values if len(own) else sizes[:, :1]
    within = sizes / (rule.massive * usual.clamp(min=tiny))
    dims = (within >= FLOOR).any(0).nonzero().flatten()
    scores = within[:, dims]
    for item in range(len(stream)) if len(dims) else ():
        tokens = stream[item, token_mask[item]][:, dims].float().abs()
        mine = place[:, 0] == item
        if not len(tokens):
            continue
        typical = tokens.median(0).values.clamp(min=tiny)
        among = sizes[mine][:, dims] / (rule.massive_times * typical)
        scores[mine] = torch.minimum(scores[mine], among)
    if entering is not None and len(dims):
        scores = _leave_out(scores, place, dims, entering)
    at, dim = (scores >= FLOOR).nonzero(as_tuple=True)
    places = torch.cat([place[at], dims[dim, None]], 1)
    return MassiveActivations(places, own[at, dims[dim]], scores[at, dim])


def _leave_out(
    scores: Tensor, place: Tensor, dims: Tensor, entering: MassiveActivations
) -> Tensor:
    """Take away the score of what was massive when it entered the decoder."""
    there = entering.places[entering.scores > 1]
    for item, column, dim in there.tolist():
        row = (place == torch.tensor([item, column], device=place.device)).all(-1)
        scores = scores.masked_fill(row[:, None] & (dims == dim), 0.0)
    return scores


def mark_sinks(
    scores: Float[Tensor, "batch key"], *, factor: float = 1.0
) -> Bool[Tensor, "batch key"]:
    """Mark the columns whose score is above a threshold times a factor.

    Args:
        scores: In units of the threshold; NaN is none.
        factor: What the threshold is multiplied by.
    """
    return scores > factor
