"""Image columns raised by an amount that may grow with the answer, or by layer."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.arguments import check_flag
from eah_interp.errors import SettingsError
from eah_interp.indices import check_choice, to_list
from eah_interp.interventions.intervention import (
    MOST,
    LayersIntervention,
    check_number,
)
from eah_interp.interventions.point import PatchPoint, RowIndex
from eah_interp.kernels.patterns import PatternBlock

On = Literal["scores", "weights"]
"""Before the softmax, or after it."""

By = Literal["size", "number"]
"""In proportion to what is there, or by the same number everywhere."""

Growth = Literal["none", "linear", "geometric"]
"""How the amount depends on how many words of the answer a row has read."""


@dataclass(frozen=True, kw_only=True)
class ColumnBoost(LayersIntervention):
    """Settings of a boost: how much more a row looks at the image, and when.

    In the rows that words are read from, with the amount `a` of that row and layer:

        scores, size:    l <- l + a |l|        (PAI's rule)
        scores, number:  l <- l + a            (weights times `exp(a)`, normalised)
        weights, size:   A <- (1 + a) A
        weights, number: A <- A + a / n        (n image columns that the row sees)

    After a change of weights a row is divided so that it sums to what it did, unless
    `normalise` says no. A row that has read t words of the answer (0: the prompt's
    last) has `a = amount`, `amount (1 + rate t)` or `amount (1 + rate)^t`, never more
    than `most`; `by_layer` multiplies it layer by layer. `ColumnBoost(amount=0.2,
    layers="2:")` is `PAI()`.

    Attributes:
        amount: How much.
        on: Scores or weights.
        by: In proportion, or by a number.
        growth: How it depends on the words read.
        rate: How fast.
        most: Its largest value; None for `MOST`, a million.
        by_layer: A factor for each of the layers, in order; None for 1 in all.
        normalise: Whether rows keep their sums when weights change.
        layers: Indices, or a slice.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> ColumnBoost(amount=0.2, growth="linear", rate=0.1).layers
        ':'
    """

    kind: ClassVar[str] = "boost"
    reads_images: ClassVar[bool] = True

    amount: float = 0.2
    on: On = "scores"
    by: By = "size"
    growth: Growth = "none"
    rate: float = 0.0
    most: float | None = None
    by_layer: tuple[float, ...] | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        LayersIntervention.__post_init__(self)
        set_value = object.__setattr__
        for name, choices in (("on", On), ("by", By), ("growth", Growth)):
            check_choice(name, getattr(self, name), choices)
        set_value(self, "amount", check_number("amount", self.amount, least=0.0))
        set_value(self, "rate", check_number("rate", self.rate, least=-1.0))
        if self.most is not None:
            set_value(self, "most", check_number("most", self.most, least=0.0))
        if self.by_layer is not None:
            set_value(self, "by_layer", self._read_factors())
        set_value(self, "normalise", check_flag("normalise", self.normalise))

    def _read_factors(self) -> tuple[float, ...]:
        factors = to_list(self.by_layer) or []
        layers = self.layers
        if isinstance(layers, str) or len(layers) != len(factors):
            msg = (
                "by_layer has a factor for each of the layers, which are then named as "
                f"indices: got {len(factors)} factors for layers={layers!r}"
            )
            raise SettingsError(msg)
        return tuple(check_number("by_layer", one, least=0.0) for one in factors)

    def amounts(self, point: PatchPoint) -> Float[Tensor, "batch query"]:
        """Compute how much each row's image columns are raised by.

        Args:
            point: The attention call.
        """
        read = point.words_before.clamp(min=0).float()
        amount = torch.full_like(read, self.amount)
        if self.growth == "linear":
            # A falling amount ends at zero, and never becomes a suppression.
            amount = (amount * (1 + self.rate * read)).clamp(min=0)
        elif self.growth == "geometric":
            grown = (1 + self.rate) ** read  # infinite, sooner or later: no times 0
            amount = amount * grown.clamp(max=torch.finfo(grown.dtype).max)
        amount = amount.clamp(max=MOST if self.most is None else self.most)
        if self.by_layer is not None:
            amount = amount * self.by_layer[self.layers.index(point.layer)]  # type: ignore[arg-type]
        return amount

    def apply_at(self, point: PatchPoint) -> None:
        """Raise one layer's image columns in the rows that words are read from."""
        amounts = self.amounts(point)

        def raised(part: RowIndex, logits: Tensor) -> Tensor:
            image = point.image_mask[:, None, None, : logits.shape[-1]]
            size = logits.abs() if self.by == "size" else 1.0
            more = amounts[:, part][:, None, :, None] * size
            return torch.where(image, logits + more, logits)

        def weighed(block: PatternBlock, part: RowIndex) -> Tensor:
            weights = block.weights
            seen = point.image_mask[:, None, None, : weights.shape[-1]] & block.visible
            count = seen.sum(-1, keepdim=True).clamp(min=1)
            size = weights if self.by == "size" else 1.0 / count
            more = amounts[:, part][:, None, :, None] * size
            new = torch.where(seen, weights + more, weights)
            if not self.normalise:
                return new
            tiny = torch.finfo(new.dtype).tiny
            old_sum = weights.sum(-1, keepdim=True)
            return new * (old_sum / new.sum(-1, keepdim=True).clamp(min=tiny))

        rows = point.reading_rows(self.steps)
        where = rows[:, :, None].expand(-1, -1, point.call.n_heads)
        if self.on == "scores":
            point.attend(where, change_logits=raised)
        else:
            point.attend(where, change=weighed)
