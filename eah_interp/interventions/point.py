"""One attention call while an intervention is at it, and what becomes of its heads."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask, Donors, HeadMask, HeadOutputs, Steps
from eah_interp.errors import UnsupportedError
from eah_interp.kernels.broadcast import broadcast_pattern
from eah_interp.kernels.patterns import PatternBlock, pattern_blocks
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.prompt import Prompt, QueryRows, attend_from, first_row

RowHeads = Bool[Tensor, "batch query head"]
"""Which heads are changed in which query rows."""

RowIndex = slice | Tensor
"""Query rows of the whole call: consecutive ones, or their positions."""

ChangeWeights = Callable[[PatternBlock, RowIndex], Tensor]
"""From a block of the model's pattern, and which rows it holds, to new weights."""

ChangeLogits = Callable[[RowIndex, Tensor], Tensor]
"""From query rows and their logits, before the mask, to other logits."""


@dataclass
class PatchPoint:
    """One attention call in one forward pass, and what is known about it.

    An intervention acts by `attend`, `broadcast` and `replace`, and by nothing else:
    then what it does to patterns is known everywhere (`find_changes`).

    Attributes:
        layer: The decoder layer.
        operation: The call in nnsight.
        call: The same, taken apart, as the model makes it.
        prompt: Its key columns: images, padding.
        width: Tokens of the prompt.
        first: Position of its first query row, counted from the prompt's first token.
        kept: What the intervention learned from the prompt in this layer.
        returned: What the call returned, once it was read.
        known_rows: Its query rows, once they were asked for.
        settings: The intervention that has patched it; None where none has.
        returns_maps: Whether the run returns attention maps beside its logits.
        stream: What entered the layer, where it was asked for.
        marks: What was seen of kinds of sinks before the decoder, where it is needed.
        shares_mask: Whether images are packed under one mask of all of them.
    """

    layer: int
    operation: Any
    call: AttentionCall
    prompt: Prompt
    width: int
    first: int = 0
    kept: Any = None
    returned: Any = None
    known_rows: QueryRows | None = None
    settings: Any = None
    returns_maps: bool = False
    stream: Tensor | None = None
    marks: Any = None
    shares_mask: bool = False

    @classmethod
    def at(
        cls,
        operation: Any,
        call: AttentionCall,
        whole: Prompt,
        *,
        layer: int,
        first: int = 0,
        kept: Any = None,
    ) -> "PatchPoint":
        """Stand at an attention call.

        Args:
            operation: The call in nnsight.
            call: The same, taken apart.
            whole: The tokens of the run's prompt.
            layer: The decoder layer.
            first: Position of its first query row.
            kept: What was learned from the prompt, where that is known already.
        """
        width, n_rows = whole.image_mask.shape[1], call.queries.shape[2]
        beyond = max(0, first + n_rows - width)
        if beyond and first < width and whole.prompt_mask is None:
            # Assisted decoding reads its first guesses together with the prompt.
            whole = whole.limit(torch.ones_like(whole.image_mask))
        prompt = whole.fit(call, generated=beyond)
        return cls(layer, operation, call, prompt, width, first, kept)

    @property
    def rows(self) -> QueryRows:
        """Its query rows, by kind."""
        if self.known_rows is None:
            self.known_rows = QueryRows.of(
                self.prompt, self.call, width=self.width, first=self.first
            )
        return self.known_rows

    def columns(self, prompt_mask: Bool[Tensor, "batch position"]) -> ColumnMask:
        """Make a mask of the prompt's tokens as wide as the call's keys.

        Args:
            prompt_mask: `[batch, position]`; what came later is False.
        """
        prompt = Prompt(prompt_mask, prompt_mask)
        beyond = max(0, self.first + self.call.queries.shape[2] - self.width)
        return prompt.fit(self.call, generated=beyond).image_mask

    def sinks_of_kind(self) -> ColumnMask:
        """Mark the key columns that are sinks of the kind that was asked for."""
        return self.columns(self.marks.mask(self.stream))

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

    def reading_rows(self, steps: Steps) -> Bool[Tensor, "batch query"]:
        """Mark the rows that words are read from: the prompt's last, the answer's."""
        if steps == "prefill":
            return self.rows.last
        return self.rows.last | self.rows.answer

    @property
    def words_before(self) -> Int[Tensor, "batch query"]:
        """Count the answer's words that each row has read; 0 at the prompt's last."""
        asked = self.prompt.prompt_mask
        own = self.rows.own
        if asked is None:
            place = torch.arange(len(own), device=own.device) + self.first
            return (place - (self.width - 1)).expand(self.rows.last.shape)
        columns = torch.arange(asked.shape[1], device=asked.device)
        end = ((columns + 1) * (asked & self.prompt.token_mask)).amax(-1, keepdim=True)
        return own + 1 - end

    def mark(
        self,
        items: Bool[Tensor, " batch"],
        heads: HeadMask | None = None,
        rows: Bool[Tensor, "batch query"] | None = None,
    ) -> RowHeads:
        """Mark heads in rows of items; all heads, all rows (padding too) when None."""
        n_batch, n_heads, n_rows, _ = self.call.queries.shape
        where = items[:, None, None].expand(n_batch, n_rows, n_heads)
        if heads is not None:
            where = where & heads[:, None]
        return where if rows is None else where & rows[:, :, None]

    def broadcast(
        self,
        donors: Donors,
        *,
        recipients: HeadMask | None = None,
        rows: Bool[Tensor, "batch query"] | None = None,
    ) -> None:
        """Give heads the pattern of a donor: at the call's inputs where that can be.

        Args:
            donors: Donor head of each item; -1 leaves an item as it is.
            recipients: The heads that receive; None for all.
            rows: Query rows that are patched; None for all.
        """
        call = self.call
        if rows is not None or call.sinks_are_weights:
            new = attend_like(donors, call, self.prompt.token_mask)
            self.replace(new, self.mark(donors >= 0, recipients, rows))
        elif recipients is None or call.n_kv_heads == call.n_heads:
            self.operation.inputs = call.broadcast(donors, recipients).inputs
        else:
            self._refuse_maps()
            self.operation.skip((call.attend_partly(donors, recipients), None))

    def replace(self, new: Tensor, where: RowHeads) -> None:
        """Write some heads' outputs in some rows.

        Args:
            new: `[batch query head d_value]`, or its last rows.
            where: True where they are written.
        """
        self._refuse_maps()
        own = self.output
        start = own.shape[1] - new.shape[1]
        chosen = where[:, start:, :, None]
        mixed = torch.where(chosen, new.to(own.dtype), own[:, start:])
        whole = mixed if start == 0 else torch.cat([own[:, :start], mixed], 1)
        self.operation.output = (whole, *self._returned[1:])

    def _refuse_maps(self) -> None:
        """Refuse to write outputs beside a map that would not be theirs.

        Raises:
            UnsupportedError: If the run returns attention maps.
        """
        if self.returns_maps:
            msg = (
                f"output_attentions=True would return the map that layer {self.layer} "
                "had before the patch, which is written at the call's output; leave "
                "it off, and read the patched rows with "
                "eah_interp.attribution.read_patterns(model, ..., patch=...)"
            )
            raise UnsupportedError(msg)

    def attend(
        self,
        where: RowHeads,
        *,
        change: ChangeWeights | None = None,
        change_logits: ChangeLogits | None = None,
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
        new = attend_changed(
            self.call,
            first,
            token_mask=self.prompt.token_mask,
            change=change,
            change_logits=change_logits,
        )
        self.replace(new, where)


def attend_changed(
    call: AttentionCall,
    first: int,
    *,
    token_mask: ColumnMask,
    change: ChangeWeights | None,
    change_logits: ChangeLogits | None,
) -> HeadOutputs:
    """Attend from one row on, with callbacks that count rows in the whole call."""

    def moved(rows: slice) -> slice:
        return slice(rows.start + first, rows.stop + first)

    def weights(block: PatternBlock) -> Tensor:
        return block.weights if change is None else change(block, moved(block.rows))

    def logits(rows: slice, given: Tensor) -> Tensor:
        return given if change_logits is None else change_logits(moved(rows), given)

    return attend_from(
        call, first, token_mask=token_mask, change=weights, change_logits=logits
    )


def attend_like(
    donors: Donors, call: AttentionCall, token_mask: ColumnMask
) -> HeadOutputs:
    """Compute what every head would return if all of them had the donor's pattern."""
    if call.sinks_are_weights:
        return call.attend_with(
            lambda block: broadcast_pattern(block.weights, donors), token_mask
        )
    return call.broadcast(donors).attend()


# ---- What an intervention does at a call, found out without doing it.


@dataclass(frozen=True)
class HeadChange:
    """What becomes of some heads in some rows of a call.

    Attributes:
        where: Which heads and rows.
        weights: The new pattern, from a block of the model's.
        logits: The new scores that the pattern is made of.
        donors: Where heads receive a donor's pattern: who donates.
        output: What the heads return instead, where that is no pattern's doing.
    """

    where: RowHeads
    weights: ChangeWeights | None = None
    logits: ChangeLogits | None = None
    donors: Donors | None = None
    output: Tensor | None = None

    def attend(self, call: AttentionCall, token_mask: ColumnMask) -> HeadOutputs:
        """Attend with the new pattern in every row and head, whatever the values."""
        if self.donors is not None:
            return attend_like(self.donors, call, token_mask)
        return attend_changed(
            call, 0, token_mask=token_mask, change=self.weights,
            change_logits=self.logits,
        )  # fmt: skip


@dataclass
class _Watched(PatchPoint):
    """A point at which nothing is written: what would be is noted instead."""

    changes: list[HeadChange] = field(default_factory=list)

    @property
    def _returned(self) -> tuple[Any, ...]:
        # A watched point has no operation in nnsight: the call is made by us.
        if self.returned is None:
            self.returned = (self.call.attend(),)
        returned: tuple[Any, ...] = self.returned
        return returned

    def broadcast(
        self,
        donors: Donors,
        *,
        recipients: HeadMask | None = None,
        rows: Bool[Tensor, "batch query"] | None = None,
    ) -> None:
        """Note who receives whose pattern."""
        where = self.mark(donors >= 0, recipients, rows)

        def donated(block: PatternBlock, rows: RowIndex) -> Tensor:
            del rows
            return broadcast_pattern(block.weights, donors)

        self.changes.append(HeadChange(where, weights=donated, donors=donors))

    def replace(self, new: Tensor, where: RowHeads) -> None:
        """Note what heads return."""
        self.changes.append(HeadChange(where, output=new))

    def attend(
        self,
        where: RowHeads,
        *,
        change: ChangeWeights | None = None,
        change_logits: ChangeLogits | None = None,
    ) -> None:
        """Note which weights or logits change."""
        self.changes.append(HeadChange(where, weights=change, logits=change_logits))


class _Nothing:
    """Stands where a watched point has no operation, and says so."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, what: str) -> Any:
        msg = (
            f"{self._name} reads or writes the {what} of the attention call itself, so "
            "what it does to patterns is not known here: in apply_at, use "
            "point.attend, point.broadcast and point.replace"
        )
        raise UnsupportedError(msg)


def find_changes(point: PatchPoint) -> tuple[HeadChange, ...]:
    """Find what a point's settings do at its call, without doing it.

    Args:
        point: The call, with what was learned from the prompt.

    Returns:
        The changes in their order; none at a point that nothing has patched.

    Raises:
        UnsupportedError: If the intervention writes past `PatchPoint`.
    """
    if point.settings is None:
        return ()
    watched = _Watched(
        layer=point.layer,
        operation=_Nothing(type(point.settings).__name__),
        call=point.call,
        prompt=point.prompt,
        width=point.width,
        first=point.first,
        kept=point.kept,
    )
    point.settings.apply_at(watched)
    return tuple(watched.changes)


def change_block(
    point: PatchPoint,
    changes: tuple[HeadChange, ...],
    block: PatternBlock,
    rows: RowIndex,
    *,
    heads: Collection[int] | None = None,
) -> Float[Tensor, "batch head rows key"]:
    """Give rows of a pattern the weights that heads attend with after some changes.

    Args:
        point: The call.
        changes: What `find_changes` found.
        block: Rows of every head, as the model computes them.
        rows: Which rows of the call these are.
        heads: The heads that are wanted; all when None.

    Raises:
        UnsupportedError: If what a wanted head returns is replaced as a whole.
    """
    weights = block.weights
    for change in changes:
        where = change.where[:, rows].transpose(1, 2)[..., None]
        if not where.any():
            continue
        if change.output is not None:
            gone = where.any(0).any(-1).any(-1).nonzero().flatten().tolist()
            lost = [head for head in gone if heads is None or head in heads]
            if not lost:
                continue
            named = ", ".join(f"L{point.layer}H{head}" for head in lost[:4])
            msg = (
                f"what {named} return is replaced as a whole, so they attend with no "
                "pattern in this run: leave these heads or layers out, or ablate them "
                "by their pattern, as in Ablation(how='uniform')"
            )
            raise UnsupportedError(msg)
        own = block
        if change.logits is not None:
            own = _recompute(point, change.logits, rows, width=weights.shape[-1])
        new = own.weights if change.weights is None else change.weights(own, rows)
        weights = torch.where(where, new, weights)
    return weights


def _recompute(
    point: PatchPoint, change: ChangeLogits, rows: RowIndex, *, width: int
) -> PatternBlock:
    """Compute rows of a pattern from changed logits."""
    parts = point.call.rows(rows, token_mask=point.prompt.token_mask)
    n_rows = parts["queries"].shape[2]
    (block,) = pattern_blocks(
        parts.pop("queries"),
        parts.pop("keys"),
        block=n_rows,
        change_logits=lambda _, logits: change(rows, logits),
        **parts,
    )
    return PatternBlock(
        block.rows, block.weights[..., :width], block.visible[..., :width]
    )
