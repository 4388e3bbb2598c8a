"""Ablations of single heads: nothing, their mean, another pattern, no image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from eah_interp.errors import SettingsError
from eah_interp.indices import check_choice
from eah_interp.interventions.head_lists import HeadList, read_pairs
from eah_interp.interventions.intervention import Intervention
from eah_interp.interventions.point import PatchPoint, RowIndex
from eah_interp.kernels.patterns import PatternBlock
from eah_interp.kernels.replacements import (
    hide_columns,
    previous_pattern,
    uniform_pattern,
)
from eah_interp.lvlm.anatomy import Anatomy, AttentionSite

How = Literal["zero", "mean", "uniform", "previous", "knockout"]
"""What becomes of an ablated head."""


@dataclass(frozen=True, kw_only=True)
class HeadsIntervention(Intervention):
    """Settings of something done to single heads.

    Attributes:
        heads: `(layer, head)` pairs, names such as `"L3H7"`, or the `HeadList` that a
            finder made, which is refused on another model; None, where a child says
            so, as long as they still have to be found.
    """

    # No default: a child could not take it back.
    heads: Sequence[tuple[int, int] | str] | HeadList | None

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        Intervention.__post_init__(self)
        if self.heads is not None and not isinstance(self.heads, HeadList):
            object.__setattr__(self, "heads", tuple(sorted(read_pairs(self.heads))))

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The heads as `(layer, head)`; none where they still have to be found."""
        return () if self.heads is None else tuple(sorted(read_pairs(self.heads)))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have one of the heads."""
        return tuple(sorted({layer for layer, _ in self.pairs}))

    def find_sites(self, anatomy: Anatomy) -> list[AttentionSite]:
        """Find the layers that have one of the heads."""
        return [anatomy.site(layer) for layer in self.layers]

    @property
    def is_fitted(self) -> bool:  # type: ignore[override]
        """Whether the heads are known."""
        return self.heads is not None

    def check_fitted(self) -> None:
        """Check that the heads are known.

        Raises:
            SettingsError: If not.
        """
        if self.heads is None:
            name = type(self).__name__
            msg = (
                f"{name} needs heads, which belong to a model: expected those of "
                f"yours, got none; pass what a finder found, as in {name}(heads=found)"
                ", or call .fit(model, images, prompts) where it has one"
            )
            raise SettingsError(msg)

    def check_fits(self, *, n_heads: int, d_model: int) -> None:
        """Check that the heads exist."""
        del d_model
        beyond = [f"L{layer}H{head}" for layer, head in self.pairs if head >= n_heads]
        if beyond:
            msg = (
                f"heads {', '.join(beyond)} do not exist: the model has heads 0 to "
                f"{n_heads - 1} in every layer"
            )
            raise SettingsError(msg)

    def mask_at(self, point: PatchPoint) -> Bool[Tensor, " head"]:
        """Mark the heads that are in a call's layer."""
        device = point.call.queries.device
        chosen = torch.zeros(point.call.n_heads, dtype=torch.bool, device=device)
        chosen[[head for layer, head in self.pairs if layer == point.layer]] = True
        return chosen


@dataclass(frozen=True, kw_only=True)
class Ablation(HeadsIntervention):
    """Settings of an ablation: which heads, and what they do instead.

    `"zero"`: they return nothing. `"mean"`: at every position what they returned on
    average over this item's prompt (images and words, no padding), which leaves the
    stream nearer to what later layers are used to; the mean is of the item alone, so
    it does not depend on its batch. The others keep the head's values and replace its
    pattern: `"uniform"` spreads every row evenly over the image columns that it sees
    (rows that see none keep theirs), `"previous"` looks at the token before its own,
    `"knockout"` may look at no image column (hidden before the softmax, so that the
    other columns, and a learned sink, take their mass; Geva et al., arXiv:2304.14767);
    a row that sees nothing else returns nothing.

    Attributes:
        heads: `(layer, head)` pairs, names such as `"L3H7"`, or the `HeadList` that a
            finder made, which is refused on another model.
        how: What they do instead.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> Ablation(heads=("L3H7", (1, 0))).heads
        ((1, 0), (3, 7))
        >>> Ablation(heads=())
        Traceback (most recent call last):
            ...
        eah_interp.errors.SettingsError: heads must be (layer, head) pairs or names \
such as 'L3H7', each once, got ()
    """

    kind: ClassVar[str] = "ablation"

    heads: Sequence[tuple[int, int] | str] | HeadList
    how: How = "zero"

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        Intervention.__post_init__(self)
        if not isinstance(self.heads, HeadList):
            object.__setattr__(self, "heads", tuple(sorted(read_pairs(self.heads))))
        check_choice("how", self.how, How)

    @property
    def needs_prompt(self) -> bool:  # type: ignore[override]
        """Whether it learns something from the prompt that later steps need."""
        return self.how == "mean"

    @property
    def reads_images(self) -> bool:  # type: ignore[override]
        """Whether it acts on image columns."""
        return self.how in ("uniform", "knockout")

    def why_not_in_tower(self) -> str:
        """Say what the settings ask for that only a prompt has."""
        if self.how == "previous":
            return 'how="previous" looks at the token that was read before'
        if self.how == "knockout":
            return 'how="knockout" hides the image columns, and there are no others'
        return ""

    def learn(self, point: PatchPoint, stream: Tensor | None) -> Tensor | None:
        """Average what the heads return over each item's prompt."""
        del stream
        if self.how != "mean":
            return None
        output = point.output
        rows = point.rows.prompt[:, :, None, None]
        total = (output.float() * rows).sum(1, keepdim=True)
        return (total / rows.sum(1, keepdim=True).clamp(min=1)).to(output.dtype)

    def apply_at(self, point: PatchPoint) -> None:
        """Write what the ablated heads of one layer return instead."""
        chosen = self.mask_at(point)
        where = point.rows_of(self.steps)[:, :, None] & chosen
        image = point.image_mask

        def uniform(block: PatternBlock, rows: RowIndex) -> Tensor:
            del rows
            seen = image[:, : block.weights.shape[-1]]
            return uniform_pattern(
                block.weights, image_mask=seen, visible=block.visible
            )

        def previous(block: PatternBlock, rows: RowIndex) -> Tensor:
            own = point.rows.own[rows]
            return previous_pattern(block.weights, visible=block.visible, own=own)

        def hidden(rows: RowIndex, logits: Tensor) -> Tensor:
            del rows
            return hide_columns(logits, image[:, : logits.shape[-1]])

        def elsewhere(block: PatternBlock, rows: RowIndex) -> Tensor:
            # A row that sees images only has had every column hidden.
            del rows
            words = ~image[:, None, None, : block.weights.shape[-1]]
            return block.weights * (block.visible & words)

        if self.how == "zero":
            point.replace(torch.zeros_like(point.output), where)
        elif self.how == "mean":
            assert point.kept is not None
            point.replace(point.kept.expand_as(point.output), where)
        elif self.how == "uniform":
            point.attend(where, change=uniform)
        elif self.how == "previous":
            point.attend(where, change=previous)
        else:
            point.attend(where, change=elsewhere, change_logits=hidden)
