"""Heads turned down or up by a factor, everywhere or where something is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from eah_interp.errors import SettingsError
from eah_interp.indices import check_choice
from eah_interp.interventions.heads import HeadsIntervention
from eah_interp.interventions.intervention import check_number
from eah_interp.interventions.methods.ad_hh import columns_behind
from eah_interp.interventions.point import PatchPoint, RowIndex
from eah_interp.kernels.patterns import PatternBlock

Gate = Literal["image", "behind"]
"""A row's weight on the image columns, or on all columns behind the last of them."""

Over = Literal["head", "layer"]
"""Whether a gate is each head's own, or the mean over the layer's heads."""


@dataclass(frozen=True, kw_only=True)
class ScaleHeads(HeadsIntervention):
    """Settings of scaled heads: which, by what, in which rows, and where at all.

    What a head returns in a row is multiplied by `factor`. With a gate, only where a
    quantity of that row lies in a range: the head's weight (after the softmax) on the
    image, or behind it. Suppression under a condition, as in MACI (arXiv:2605.19250)
    and Dual-Pathway (arXiv:2605.13156), is this with a factor below one; neither has a
    release, and the conditions that they learn or calibrate are not here.

    Attributes:
        heads: `(layer, head)` pairs, or names such as `"L3H7"`.
        factor: What their outputs are multiplied by.
        rows: `"all"`, or `"last"`: those that words are read from.
        gate: What is measured; None for no condition.
        over: Of each head, or on average over all heads of its layer.
        at_least: The row is scaled where the gate is this or more.
        at_most: The row is scaled where the gate is this or less.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> ScaleHeads(heads=["L3H7"], factor=0.0, gate="behind", at_least=0.4).over
        'head'
    """

    kind: ClassVar[str] = "scale_heads"

    heads: Sequence[tuple[int, int] | str]
    factor: float
    rows: Literal["all", "last"] = "all"
    gate: Gate | None = None
    over: Over = "head"
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        HeadsIntervention.__post_init__(self)
        set_value = object.__setattr__
        set_value(self, "factor", check_number("factor", self.factor, least=0.0))
        check_choice("rows", self.rows, ("all", "last"))
        check_choice("over", self.over, Over)
        if self.gate is not None:
            check_choice("gate", self.gate, Gate)
        ends = {"at_least": self.at_least, "at_most": self.at_most}
        given = {name: end for name, end in ends.items() if end is not None}
        for name, end in given.items():
            set_value(self, name, check_number(name, end, least=0.0, most=1.0))
        if bool(given) != (self.gate is not None):
            msg = (
                "a gate is what is measured, and a range: expected gate with at_least "
                f"or at_most, or none of them, got gate={self.gate!r} with "
                f"{', '.join(given) or 'no range'}"
            )
            raise SettingsError(msg)

    @property
    def reads_images(self) -> bool:  # type: ignore[override]
        """Whether it acts on image columns."""
        return self.gate is not None

    def why_not_in_tower(self) -> str:
        """Say what the settings ask for that only a prompt has."""
        if self.rows == "last":
            return 'rows="last" means the rows that words are read from'
        if self.gate == "behind":
            return 'gate="behind" measures what stands behind an image in a prompt'
        return ""

    def apply_at(self, point: PatchPoint) -> None:
        """Scale one layer's heads."""
        last = self.rows == "last"
        rows = point.reading_rows(self.steps) if last else point.rows_of(self.steps)
        where = rows[:, :, None] & self.mask_at(point)
        if self.gate is None:
            point.replace(self.factor * point.output, where)
            return
        image = point.image_mask
        columns = image if self.gate == "image" else columns_behind(image)

        def gated(block: PatternBlock, part: RowIndex) -> Tensor:
            del part
            measured = columns[:, None, None, : block.weights.shape[-1]] & block.visible
            share = (block.weights * measured).sum(-1, keepdim=True)
            if self.over == "layer":
                share = share.mean(1, keepdim=True)
            here = torch.ones_like(share, dtype=torch.bool)
            if self.at_least is not None:
                here = here & (share >= self.at_least)
            if self.at_most is not None:
                here = here & (share <= self.at_most)
            return torch.where(here, self.factor * block.weights, block.weights)

        point.attend(where, change=gated)
