"""One attention call as transformers makes it, and the call with other patterns.

The decoder's attention modules call `attention_interface(self, q, k, v, mask, ...)`
whatever the backend, so what is read and changed here holds for eager, SDPA,
FlashAttention and Flex alike.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from eah_interp._types import ColumnMask, Donors, HeadMask, HeadOutputs, Pattern
from eah_interp.errors import ModelError, UnsupportedError
from eah_interp.kernels.broadcast import (
    broadcast_keys,
    broadcast_queries,
    changed_heads,
)
from eah_interp.kernels.patterns import (
    PatternBlock,
    apply_pattern,
    mix_values,
    pattern_blocks,
)
from eah_interp.lvlm.sequences import SequenceMask

# ---- What an attention call gets besides queries and keys: masks and biases.


def broadcast_extra(extra: Any, donors: Donors, change: HeadMask) -> Any:
    """Broadcast a tensor along its head axis, where it has one."""
    n_heads = change.shape[1]
    if not isinstance(extra, Tensor) or extra.ndim != 4 or extra.shape[1] != n_heads:
        return extra
    if n_heads == 1:
        return extra
    wide = extra.expand(change.shape[0], -1, -1, -1)
    items = torch.arange(change.shape[0], device=extra.device)
    donated = wide[items, donors.clamp(min=0).to(extra.device)].unsqueeze(1)
    return torch.where(change[:, :, None, None], donated, wide)


def add_bias(bias: Tensor, mask: Any, queries: Tensor, keys: Tensor) -> Tensor:
    """Write a position bias and a mask (causal when None) as one additive mask."""
    n_rows, n_keys = queries.shape[2], keys.shape[2]
    bias = bias[..., :n_keys].float()
    if mask is None:
        place = torch.arange(n_keys, device=keys.device)
        mask = (place <= place[-n_rows:, None])[None, None]
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(torch.float32).min)
    biased: Tensor = bias + mask.float()
    return biased


def write_out_block_mask(mask: Any, queries: Tensor, n_keys: int) -> Tensor:
    """Write Flex's block mask out as a boolean one.

    Raises:
        ModelError: If the mask is of another kind.
    """
    from torch.nn.attention.flex_attention import create_mask

    if not hasattr(mask, "mask_mod"):
        msg = (
            f"an attention mask of type {type(mask).__name__} cannot be read: expected "
            "None, a tensor, or a Flex block mask; load with attn_implementation='sdpa'"
        )
        raise ModelError(msg)
    n_batch, _, n_rows, _ = queries.shape
    return create_mask(
        mask.mask_mod, n_batch, 1, n_rows, n_keys, device=str(queries.device)
    )


_PER_HEAD = ("position_bias", "sinks")
"""Keyword arguments of an attention call that shape each head's pattern."""


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one attention call, taken apart.

    Attributes:
        module: The attention module that makes the call.
        queries: `[batch head query d_head]`, after RoPE.
        keys: `[batch kv_head key d_head]`, after RoPE, cached keys included.
        values: `[batch kv_head key d_value]`.
        mask: What the model passes as attention mask: None, a 2-D padding mask, a
            4-D boolean or additive mask, or Flex's block mask; or, where it makes a
            call for each part of a packed sequence, which parts there are.
        rest: Further positional arguments.
        options: Keyword arguments.
    """

    module: nn.Module
    queries: Tensor
    keys: Tensor
    values: Tensor
    mask: Any
    rest: tuple[Any, ...]
    options: dict[str, Any]

    @classmethod
    def parse(cls, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> "AttentionCall":
        """Take apart the `(args, kwargs)` that nnsight reads at the call.

        Raises:
            ModelError: If the arguments are not module, queries, keys, values, mask.
        """
        args, options = inputs
        tensors = args[1:4]
        if (
            len(args) < 4
            or not isinstance(args[0], nn.Module)
            or not all(isinstance(t, Tensor) and t.ndim == 4 for t in tensors)
            or args[1].shape[1] % args[2].shape[1]
        ):
            got = ", ".join(
                str(tuple(a.shape)) if isinstance(a, Tensor) else type(a).__name__
                for a in args
            )
            msg = (
                "the attention call is not (module, queries, keys, values, mask) with "
                f"4-D tensors and heads a multiple of key/value groups: got ({got})"
            )
            raise ModelError(msg)
        options = dict(options)
        mask = args[4] if len(args) > 4 else options.pop("attention_mask", None)
        module, queries, keys, values = args[:4]
        return cls(module, queries, keys, values, mask, tuple(args[5:]), options)

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The `(args, kwargs)` to hand back to nnsight."""
        args = (self.module, self.queries, self.keys, self.values, self.mask)
        return (*args, *self.rest), self.options

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return self.queries.shape[1]

    @property
    def n_kv_heads(self) -> int:
        """Number of key/value groups."""
        return self.keys.shape[1]

    @property
    def sinks_are_weights(self) -> bool:
        """Whether heads have learned sinks that cannot be written (gpt-oss).

        Eager attention reads them off the module, other backends take one number per
        head from the call: the donor's sink, which differs between batch items, has
        no way in. `attend_with` gives exactly the pattern that is wanted instead.
        """
        return self.options.get("s_aux") is not None

    def detach(self) -> "AttentionCall":
        """Cut the call's tensors off what they were computed from."""
        options = {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in self.options.items()
        }
        return replace(
            self,
            queries=self.queries.detach(),
            keys=self.keys.detach(),
            values=self.values.detach(),
            options=options,
        )

    def pattern_inputs(self, token_mask: ColumnMask | None = None) -> dict[str, Any]:
        """Collect what `kernels.pattern_blocks` needs to rebuild this pattern."""
        n_rows, n_keys = self.queries.shape[2], self.keys.shape[2]
        mask, tokens, keys = self.mask, token_mask, self.keys
        if isinstance(mask, Tensor) and mask.ndim == 2:
            tokens, mask = mask[:, :n_keys].bool(), None
        elif isinstance(mask, Tensor):
            mask = mask[..., :n_keys]
        elif isinstance(mask, SequenceMask):
            mask = mask.write(self.keys.device)
        elif mask is not None:
            mask = write_out_block_mask(mask, self.queries, n_keys)
        if mask is None and n_rows > 1 and self._is_causal():
            # A static cache is longer than the prompt; a causal prefill never reads on.
            n_keys = n_rows
            mask = self._window_mask(tokens)
        elif mask is None:
            if tokens is None:
                mask = torch.ones((1, n_keys), dtype=torch.bool, device=keys.device)
            else:
                mask = tokens[:, :n_keys]
            # All rows see the same: one row is kept.
            mask = mask[:, None, None].expand(-1, 1, n_rows, -1)
        keys = keys[:, :, :n_keys]
        bias = self.options.get("position_bias")
        if bias is not None:
            mask = add_bias(bias, mask, self.queries, keys)
        return {
            "queries": self.queries,
            "keys": keys,
            "mask": mask,
            "token_mask": None if tokens is None else tokens[:, :n_keys],
            "scale": self._scale(),
            "softcap": self.options.get("softcap"),
            "sink_logits": self._sink_logits(),
        }

    def rows(
        self,
        rows: slice | Tensor,
        *,
        token_mask: ColumnMask | None = None,
        heads: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Collect what `kernels.pattern_blocks` needs to rebuild some query rows.

        Args:
            rows: Consecutive rows, or positions; the same in each batch item.
            token_mask: False at padding.
            heads: Query heads, each with its keys; None for all.
        """
        mask = self.mask
        if isinstance(mask, SequenceMask):
            # Of a packed sequence's mask only these rows are written out.
            seen = mask.write(self.keys.device, rows=rows)
            parts = _take_rows(self._unmasked().pattern_inputs(token_mask), rows)
            parts["mask"] = seen
            return parts if heads is None else _take_heads(parts, list(heads))
        parts = self.pattern_inputs(token_mask)
        n_rows = parts["queries"].shape[2]
        # All rows stay causal without a mask: their blocks then read fewer keys.
        if not (isinstance(rows, slice) and rows.indices(n_rows) == (0, n_rows, 1)):
            parts = _take_rows(parts, rows)
        return parts if heads is None else _take_heads(parts, list(heads))

    def _unmasked(self) -> "AttentionCall":
        """Take the call's mask away, so that every row sees every key."""
        return replace(self, mask=None, options={**self.options, "is_causal": False})

    @property
    def packing(self) -> SequenceMask | None:
        """The parts of packed sequences, where they are all that tells rows apart."""
        more = any(isinstance(self.options.get(name), Tensor) for name in _PER_HEAD)
        return self.mask if isinstance(self.mask, SequenceMask) and not more else None

    def by_parts(self) -> "AttentionCall":
        """Give each part of packed sequences a batch item: no part sees another.

        Returns:
            The call of all parts of its `packing`, padded behind; rows of padding see
            what others do.
        """
        mask = self.packing
        assert mask is not None
        queries, keys, values = (
            mask.split(tensor, axis=2)
            for tensor in (self.queries, self.keys, self.values)
        )
        there = mask.part_tokens(self.keys.device)
        seen = there[:, None, None].expand(-1, 1, there.shape[1], -1)
        own = replace(self._unmasked(), queries=queries, keys=keys, values=values)
        return own if bool(there.all()) else replace(own, mask=seen)

    def _is_causal(self) -> bool:
        config = getattr(self.module, "config", None)
        if getattr(config, "_attn_implementation", None) == "eager":
            return False  # without a mask, every row sees every key
        given = self.options.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if given is None else given)

    def _window_mask(self, tokens: ColumnMask | None) -> Tensor | None:
        """Write out a sliding window that FlashAttention gets as a number."""
        n_rows = self.queries.shape[2]
        window = self.options.get("sliding_window")
        if window is None or window >= n_rows:
            return None
        place = torch.arange(n_rows, device=self.keys.device)
        behind = place[:, None] - place
        mask: Tensor = ((behind >= 0) & (behind < window))[None, None]
        return mask if tokens is None else mask & tokens[:, None, None, :n_rows]

    def why_not_resumed(self) -> str:
        """Say why no run of this call's last rows alone can take its other keys.

        Returns:
            A sentence; empty where `resume` works. It does not ask who made the mask:
            that must not be the attention module itself, from what it reads.
        """
        backend = self.module.config._attn_implementation  # type: ignore[union-attr]
        if backend not in ("sdpa", "eager"):
            return f"rows of {backend} attention's masks are not cut here"
        if any(
            self.options.get(name) is not None for name in ("position_bias", "sinks")
        ):
            return "its rows have biases or sinks of their own"
        mask, n_rows = self.mask, self.queries.shape[2]
        if mask is None or (
            isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[2] == n_rows
        ):
            return ""
        return "its mask has no rows that can be cut"

    def looks_ahead(self, first: int) -> bool:
        """Tell whether positions before one attend to it, or to what comes after it.

        So do prefixes and image tokens that see each other in both directions; then
        what changes from that position on changes what stands before it, too.
        """
        if first == 0:
            return False
        if not isinstance(self.mask, Tensor):
            return not self._is_causal()
        ahead = self.mask[..., :first, first:]
        if ahead.dtype != torch.bool:
            ahead = ahead > torch.finfo(ahead.dtype).min / 2
        return bool(ahead.any())

    def resume(
        self, whole: "AttentionCall", first: int, *, row: int
    ) -> "AttentionCall":
        """Attend as the last rows of a whole call, whose first keys were kept.

        Args:
            whole: The call of one item with all its rows: where the keys and values
                of positions before `first` are taken from, and the mask.
            first: Position of the first row here.
            row: Position of the first row that is wanted; not before `first`.

        Returns:
            The call of the rows from `row` on, of every item here, with all keys.

        Raises:
            UnsupportedError: If it cannot be; see `why_not_resumed`.
        """
        own, n_keys = self.queries.shape[2], whole.keys.shape[2]
        why = whole.why_not_resumed()
        if not why and (own, self.keys.shape[2]) != (n_keys - first,) * 2:
            why = f"it has {own} rows and {self.keys.shape[2]} keys"
        if why:
            msg = f"{type(self.module).__name__} cannot go on from position {first}: "
            raise UnsupportedError(msg + why)
        mask = whole.mask
        if mask is not None:
            mask = mask[:, :, row:]
        elif n_keys - row > 1 and whole._is_causal():
            # A last row sees every key, and attention without a mask is faster.
            place = torch.arange(n_keys, device=self.keys.device)
            mask = (place <= place[row:, None])[None, None]
        return replace(
            self,
            queries=self.queries[:, :, row - first :],
            keys=_go_on(whole.keys, self.keys, first),
            values=_go_on(whole.values, self.values, first),
            mask=mask,
        )

    def broadcast(
        self, donors: Donors, recipients: HeadMask | None = None
    ) -> "AttentionCall":
        """Give the recipients the donor's queries and keys, hence its pattern.

        Per-head extras (a mask, position bias or sink logits with a head axis) go
        along, so a recipient loses to the sink what the donor loses.

        Raises:
            UnsupportedError: For a partial broadcast under grouped-query attention;
                see `attend_partly`. Where `sinks_are_weights`; see `attend_with`.
        """
        if self.sinks_are_weights:
            msg = (
                f"{type(self.module).__name__} reads learned sinks off its own "
                "weights: queries and keys alone do not give a head the donor's "
                "pattern; attend with the pattern (eah_interp.interventions does)"
            )
            raise UnsupportedError(msg)
        heads = self.n_heads
        change = changed_heads(donors, heads, recipients)
        options = dict(self.options)
        for name in _PER_HEAD:
            if isinstance(options.get(name), Tensor):
                options[name] = broadcast_extra(options[name], donors, change)
        return replace(
            self,
            queries=broadcast_queries(self.queries, donors, recipients=recipients),
            keys=broadcast_keys(
                self.keys, donors, n_heads=heads, recipients=recipients
            ),
            mask=broadcast_extra(self.mask, donors, change),
            options=options,
        )

    def attend(self) -> HeadOutputs:
        """Run the call as the module itself would, whatever the backend.

        Where there are as many keys as queries' heads, none are repeated, whatever
        the module thinks of its groups.
        """
        if isinstance(self.mask, SequenceMask):
            return self._attend_parts(self.mask)
        # Imported here: a registry cannot travel to a server with this method.
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        home = sys.modules[type(self.module).__module__]
        eager = getattr(home, "eager_attention_forward", None)
        name = self.module.config._attn_implementation  # type: ignore[union-attr]
        function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
        (module, *args), options = self.inputs
        if self.n_kv_heads == self.n_heads:
            module = Ungrouped(module)
        output: HeadOutputs = function(module, *args, **options)[0]
        return output

    def _attend_parts(self, mask: SequenceMask) -> HeadOutputs:
        """Make a call for each part of packed sequences, as the module does."""
        n_batch, n_heads, n_rows, _ = self.queries.shape
        shape = (n_batch, n_rows, n_heads, self.values.shape[-1])
        whole = self.values.new_zeros(shape)
        for row, part in mask.parts():
            one = replace(
                self,
                queries=self.queries[row : row + 1, :, part],
                keys=self.keys[row : row + 1, :, part],
                values=self.values[row : row + 1, :, part],
                mask=None,
            )
            whole[row, part] = one.attend()[0]
        return whole

    def attend_partly(self, donors: Donors, recipients: HeadMask) -> HeadOutputs:
        """Attend with a broadcast to some heads, where heads share keys.

        Each head gets a copy of its group's keys and values, so that the donor's keys
        reach the recipients and nobody else. (Two attention calls, keeping from each
        the heads it is right for, are as exact and slower: docs/bench has the times.)
        """
        groups = self.n_heads // self.n_kv_heads
        single = replace(
            self,
            keys=self.keys.repeat_interleave(groups, 1),
            values=self.values.repeat_interleave(groups, 1),
        )
        return single.broadcast(donors, recipients).attend()

    def attend_with(
        self,
        change: Callable[[PatternBlock], Tensor],
        token_mask: ColumnMask | None = None,
    ) -> HeadOutputs:
        """Attend with a changed pattern, rebuilt a block of query rows at a time."""
        parts = self.pattern_inputs(token_mask)
        values = self.values[:, :, : parts["keys"].shape[2]]
        queries, keys = parts.pop("queries"), parts.pop("keys")
        return mix_values(queries, keys, values, change=change, **parts)

    def pattern(self) -> Pattern:
        """Write the whole pattern out, `[batch head query key]`, in float32.

        It takes as much memory as eager attention's.
        """
        parts = self.pattern_inputs()
        queries, keys = parts.pop("queries"), parts.pop("keys")
        width = keys.shape[2]
        blocks = [
            pad(block.weights, (0, width - block.weights.shape[-1]))
            for block in pattern_blocks(queries, keys, **parts)
        ]
        return torch.cat(blocks, 2)

    def apply(self, pattern: Pattern) -> HeadOutputs:
        """Attend with another pattern, whole: what the call would return."""
        return apply_pattern(pattern, self.values)

    def _sink_logits(self) -> Tensor | None:
        """Read a learned sink's logits: of each row (Inkling 2), or of each head."""
        of_rows, of_heads = self.options.get("sinks"), self.options.get("s_aux")
        return of_rows if of_heads is None else of_heads.view(1, -1, 1, 1)

    def _scale(self) -> float | None:
        scale = self.options.get("scaling")
        return None if scale is None else float(scale)


def _go_on(kept: Tensor, own: Tensor, first: int) -> Tensor:
    """Put one item's keys or values before `first` in front of every item's own."""
    if first == 0:
        return own
    return torch.cat([kept[:, :, :first].expand(own.shape[0], -1, -1, -1), own], 2)


def _take_rows(parts: dict[str, Any], rows: slice | Tensor) -> dict[str, Any]:
    """Take query rows out of what a pattern is computed from."""
    queries, keys, mask, tokens = (
        parts[name] for name in ("queries", "keys", "mask", "token_mask")
    )
    rows = rows.to(queries.device) if isinstance(rows, Tensor) else rows
    if mask is None:
        place = torch.arange(keys.shape[2], device=keys.device)
        mask = (place <= place[: queries.shape[2]][rows, None])[None, None]
        if tokens is not None:
            mask = mask & tokens[:, None, None]
    else:
        mask = mask[:, :, rows]
    sink = parts["sink_logits"]
    if sink is not None and sink.shape[2] > 1:
        sink = sink[:, :, rows]
    return parts | {
        "queries": queries[:, :, rows],
        "mask": mask,
        "token_mask": None,  # in the mask
        "sink_logits": sink,
    }


def _take_heads(parts: dict[str, Any], heads: list[int]) -> dict[str, Any]:
    """Take query heads out of what a pattern is computed from, keys with them."""
    queries, keys = parts["queries"], parts["keys"]
    groups = queries.shape[1] // keys.shape[1]
    taken = parts | {
        "queries": queries[:, heads],
        "keys": keys[:, [head // groups for head in heads]],
    }
    for name in ("mask", "sink_logits"):
        if parts[name] is not None and parts[name].shape[1] > 1:
            taken[name] = parts[name][:, heads]
    return taken


class Ungrouped:
    """An attention module as its attention function sees it, each head with own keys.

    Attributes:
        num_key_value_groups: Always 1; everything else is the module's.
    """

    num_key_value_groups = 1

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)
