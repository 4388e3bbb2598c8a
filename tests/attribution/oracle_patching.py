"""One head, one forward: patches by hand in plain transformers, without nnsight.

The oracle replaces the eager attention function of the decoder's modelling module, as
`tests.oracle_forward` does, and mixes every head in a loop of its own.
"""

import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.oracle_forward import decoder_attentions, visibility


@dataclass
class Seen:
    """What a forward pass had in each layer, after EAH."""

    patterns: dict[int, Tensor] = field(default_factory=dict)  # [batch head query key]
    values: dict[int, Tensor] = field(default_factory=dict)  # [batch head key d]
    outputs: dict[int, Tensor] = field(default_factory=dict)  # [batch head query d]
    blocks: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


Edit = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From a head's pattern, values and output to another output."""


@contextmanager
def replaced_attention(hf_model, attend):
    first = next(iter(decoder_attentions(hf_model).values()))
    modelling = sys.modules[type(first).__module__]
    plain = modelling.eager_attention_forward
    assert first.config._attn_implementation == "eager"
    modelling.eager_attention_forward = lambda *a, **k: attend(plain, *a, **k)
    try:
        yield
    finally:
        modelling.eager_attention_forward = plain


def run_by_hand(
    hf_model: nn.Module,
    inputs: dict[str, Tensor],
    *,
    eah=None,
    rows: Tensor | None = None,
    heads: dict[tuple[int, int], Edit] | None = None,
    blocks: dict[str, Tensor] | None = None,
    watch: tuple[str, ...] = (),
) -> Seen:
    """Run once: EAH as an oracle's pattern edit (in some query rows), then edits."""
    seen = Seen()
    layer_of = {id(m): layer for layer, m in decoder_attentions(hf_model).items()}

    def attend(plain, module, query, key, value, attention_mask, **settings):
        output, pattern = plain(module, query, key, value, attention_mask, **settings)
        layer = layer_of.get(id(module))
        if layer is None:
            return output, pattern
        if eah is not None:
            new = eah(layer, pattern, visibility(attention_mask, pattern))
            if rows is not None:
                new = torch.where(rows[:, None, :, None], new, pattern)
            pattern = new.to(pattern.dtype)
        n_heads = query.shape[1]
        wide = value.repeat_interleave(n_heads // value.shape[1], 1)
        wide = wide[:, :, : pattern.shape[-1]]
        mixed = []
        for head in range(n_heads):
            z = pattern[:, head] @ wide[:, head]
            edit = (heads or {}).get((layer, head))
            if edit is not None:
                z = edit(pattern[:, head], wide[:, head], z)
            mixed.append(z)
        seen.patterns[layer], seen.values[layer] = pattern, wide
        seen.outputs[layer] = torch.stack(mixed, 1)
        return torch.stack(mixed, dim=2).contiguous(), pattern

    handles = [
        hf_model.get_submodule(name).register_forward_hook(
            watch_block(seen, name, (blocks or {}).get(name))
        )
        for name in {*watch, *(blocks or {})}
    ]
    try:
        with replaced_attention(hf_model, attend), torch.no_grad():
            seen.logits = hf_model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return seen


def watch_block(seen: Seen, name: str, new: Tensor | None):
    """Make a hook that keeps a component's output, and may replace it."""

    def leave(module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        seen.blocks[name] = first
        if new is None:
            return None
        shaped = new.reshape(first.shape)
        return (shaped, *output[1:]) if isinstance(output, tuple) else shaped

    return leave


def edit_from(source: Seen, layer: int, head: int, what: str) -> Edit:
    """Put another run's output, pattern or values into a head."""
    z, pattern, values = (
        seen[layer][:, head]
        for seen in (source.outputs, source.patterns, source.values)
    )
    edits = {
        "output": lambda _pattern, _values, _z: z,
        "pattern": lambda _pattern, own_values, _z: pattern @ own_values,
        "values": lambda own_pattern, _values, _z: own_pattern @ values,
        "zero": lambda _pattern, _values, own_z: torch.zeros_like(own_z),
    }
    return edits[what]
