"""One attention call while an intervention is at it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from eah_interp._types import ColumnMask, HeadOutputs, Steps
from eah_interp.kernels import PatternBlock
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.rows import Rows, attend_from, first_row
from eah_interp.lvlm.runs import PatchedCall
from eah_interp.lvlm.worker import Prompt

RowHeads = Bool[Tensor, "batch query head"]
"""Which heads are changed in which query rows."""

ChangeRows = Callable[[slice, Tensor], Tensor]
"""From some query rows, counted in the whole call, and their weights or logits."""


@dataclass
class PatchPoint:
    """One attention call in one forward pass, and what is known about it.

    Attributes:
        layer: The decoder layer.
        operation: The call in nnsight.
        call: The same, taken apart.
        prompt: Its key columns: pictures, padding.
        rows: Its query rows, by kind.
        step: Which forward pass of the run this is, counted from 0.
        kept: What the intervention learned from the prompt in this layer.
        returned: What the call returned, once it was read.
    """

    layer: int
    operation: PatchedCall
    call: AttentionCall
    prompt: Prompt
    rows: Rows
    step: int
    kept: Tensor | None = None
    returned: Any = None

    def columns(self, prompt_mask: Bool[Tensor, "batch position"]) -> ColumnMask:
        """Make a mask of the prompt's tokens as wide as the call's keys.

        Args:
            prompt_mask: `[batch, position]`; what came later is False.
        """
        prompt = Prompt(prompt_mask, prompt_mask)
        return prompt.fit(self.call, generated=self.step).image_mask

    @property
    def image_mask(self) -> ColumnMask:
        """True at key columns that hold image tokens."""
        return self.prompt.image_mask

    @property
    def output(self) -> HeadOutputs:
        """What the call returns."""
        output: HeadOutputs = self._returned[0]
        return output

    @property
    def _returned(self) -> tuple[Any, ...]:
        # Read once: whoever reads it patches it, and nobody may after that.
        if self.returned is None:
            self.returned = self.operation.output
        returned: tuple[Any, ...] = self.returned
        return returned

    def rows_of(self, steps: Steps) -> Bool[Tensor, "batch query"]:
        """Mark the rows of the prompt, or these and the answer's."""
        if steps == "prefill":
            return self.rows.prompt
        return self.rows.prompt | self.rows.answer

    def replace(self, new: Tensor, where: RowHeads) -> None:
        """Write some heads' outputs in some rows.

        Args:
            new: `[batch query head d_value]`, or its last rows.
            where: True where they are written.
        """
        own = self.output
        start = own.shape[1] - new.shape[1]
        chosen = where[:, start:, :, None]
        mixed = torch.where(chosen, new.to(own.dtype), own[:, start:])
        whole = mixed if start == 0 else torch.cat([own[:, :start], mixed], 1)
        self.operation.output = (whole, *self._returned[1:])

    def attend(
        self,
        where: RowHeads,
        *,
        change: Callable[[PatternBlock, slice], Tensor] | None = None,
        change_logits: ChangeRows | None = None,
    ) -> None:
        """Attend anew in some rows, with changed weights, and write what comes of it.

        Args:
            where: True at the heads and rows that are written; rows before the first
                of them are not computed.
            change: From a block of the pattern, and its rows in the whole call.
            change_logits: From rows in the whole call, and their logits.
        """
        first = first_row(where.any(-1))
        if first == where.shape[1]:
            return

        def moved(rows: slice) -> slice:
            return slice(rows.start + first, rows.stop + first)

        def weights(block: PatternBlock) -> Tensor:
            return block.weights if change is None else change(block, moved(block.rows))

        def logits(rows: slice, given: Tensor) -> Tensor:
            return given if change_logits is None else change_logits(moved(rows), given)

        new = attend_from(
            self.call,
            first,
            token_mask=self.prompt.token_mask,
            change=weights,
            change_logits=logits,
        )
        self.replace(new, where)
