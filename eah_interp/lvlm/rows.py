"""What a forward pass's query rows are: pictures, words, the prompt, the answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from eah_interp._types import ColumnMask, HeadOutputs
from eah_interp.kernels.abstract import is_abstract
from eah_interp.kernels.streaming import PatternBlock, mix_values
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.worker import Prompt

RowMask = Bool[Tensor, "batch query"]
"""Which query rows are meant, in each batch item."""


@dataclass(frozen=True)
class Rows:
    """The query rows of one attention call, by kind.

    A row that a generation reads after its prompt, or that an answer has in the same
    forward pass as its prompt, is an answer's.

    Attributes:
        image: True at image tokens.
        prompt: True at the prompt's tokens, without padding.
        answer: True at the answer's.
        last: True at each prompt's last token, which the first word is read from.
        own: Key position of each row.
    """

    image: RowMask
    prompt: RowMask
    answer: RowMask
    last: RowMask
    own: Tensor

    @classmethod
    def of(
        cls, prompt: Prompt, call: AttentionCall, *, width: int, step: int
    ) -> "Rows":
        """Say what an attention call's rows are.

        Args:
            prompt: The tokens, as wide as the call's keys.
            call: The call.
            width: Tokens of the prompt.
            step: Which forward pass of a generation this is.
        """
        n_batch, _, n_rows, _ = call.queries.shape
        device = call.queries.device
        place = torch.arange(n_rows, device=device)
        if step > 0 and n_rows == 1:
            # The cache holds the prompt, or a sliding window's end of it.
            nowhere = torch.zeros(n_batch, 1, dtype=torch.bool, device=device)
            last_key = min(width + step, call.keys.shape[2]) - 1
            own = torch.full((1,), last_key, device=device)
            return cls(nowhere, nowhere, ~nowhere, nowhere, own)
        tokens = prompt.token_mask[:, :n_rows]
        written = tokens & (place >= width)
        if prompt.prompt_mask is not None:
            written = written | (tokens & ~prompt.prompt_mask[:, :n_rows])
        asked = tokens & ~written
        end = ((place + 1) * asked).amax(-1, keepdim=True)
        last = asked & (place + 1 == end)
        return cls(prompt.image_mask[:, :n_rows], asked, written, last, place)


def first_row(rows: RowMask) -> int:
    """Find the first row that any item means; their number if there is none."""
    if is_abstract(rows):
        return 0
    found = rows.any(0).nonzero()
    return int(found[0]) if len(found) else rows.shape[1]


def attend_from(
    call: AttentionCall,
    first: int,
    *,
    token_mask: ColumnMask,
    change: Callable[[PatternBlock], Tensor] | None = None,
    change_logits: Callable[[slice, Tensor], Tensor] | None = None,
) -> HeadOutputs:
    """Attend with a changed pattern, from one query row on, block by block.

    Args:
        call: The attention call.
        first: The first row that is wanted; the others cost nothing.
        token_mask: False at padding.
        change: Maps a block of the pattern to its new weights. Its rows are counted
            from `first`.
        change_logits: Maps rows and their logits to other logits; also from `first`.

    Returns:
        What each head returns in these rows.
    """
    parts: dict[str, Any] = call.pattern_inputs(token_mask)
    queries, keys = parts.pop("queries"), parts.pop("keys")
    values = call.values[:, :, : keys.shape[2]]
    if first:
        mask, tokens, sinks = parts["mask"], parts["token_mask"], parts["sink_logits"]
        if mask is None:
            place = torch.arange(keys.shape[2], device=keys.device)
            mask = (place <= place[first : queries.shape[2], None])[None, None]
            if tokens is not None:
                mask = mask & tokens[:, None, None]
        else:
            mask = mask[:, :, first:]
        if sinks is not None and sinks.shape[2] != 1:
            sinks = sinks[:, :, first:]
        parts |= {"mask": mask, "sink_logits": sinks}
        queries = queries[:, :, first:]
    unchanged: Callable[[PatternBlock], Tensor] = lambda block: block.weights  # noqa: E731
    return mix_values(
        queries,
        keys,
        values,
        change=unchanged if change is None else change,
        change_logits=change_logits,
        **parts,
    )
