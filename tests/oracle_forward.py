"""Plain transformers with patterns replaced after the softmax: no nnsight, no q or k.

The oracle patches the eager attention function of the decoder's modelling module. It
needs a model of its own, in eager attention, that nnsight never instrumented: an
instrumented forward keeps a snapshot of the module's globals and misses the change.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.oracle import (
    oracle_broadcast,
    oracle_donors,
    oracle_mean_pattern,
    oracle_recipients,
    oracle_scores,
    oracle_shuffled_pattern,
    oracle_uniform_pattern,
)

EditPattern = Callable[[int, Tensor, Tensor], Tensor]
"""From (layer, pattern [batch head query key], visible [batch 1 query key])."""


@dataclass
class OracleRun:
    """What a forward under the oracle saw; `calls` has one entry per attention call."""

    calls: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    logits: Tensor | None = None

    @property
    def patterns(self) -> dict[int, Tensor]:
        """The unpatched pattern of each layer in its first call (the prefill)."""
        return {layer: pattern for layer, pattern, _ in reversed(self.calls)}

    @property
    def visible(self) -> dict[int, Tensor]:
        """What each row could see, [batch 1 query key], of each layer's first call."""
        return {layer: visible for layer, _, visible in reversed(self.calls)}


def decoder_attentions(hf_model: nn.Module) -> dict[int, nn.Module]:
    """Return the self-attention module of each decoder layer that has one."""
    n_layers = hf_model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [
        module
        for module in hf_model.get_decoder().modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    return {
        index: layer.self_attn
        for index, layer in enumerate(lists[0])
        if hasattr(layer, "self_attn")
    }


def visibility(mask: Tensor | None, pattern: Tensor) -> Tensor:
    """Return which keys each row sees, [batch 1|head query key], from a mask."""
    batch, _, n_queries, length = pattern.shape
    if mask is None:
        return torch.ones(batch, 1, n_queries, length, dtype=torch.bool)
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen[..., :length].expand(batch, -1, n_queries, length)


@contextmanager
def replaced_patterns(
    hf_model: nn.Module, edit_pattern: EditPattern | None = None
) -> Iterator[OracleRun]:
    """Run every decoder attention through explicit head loops on an edited pattern.

    `edit_pattern(layer, pattern, visible)` returns the pattern to use; it is called at
    every layer and every step (a cached step has one query row), so it decides itself
    what to leave alone. None edits nothing.
    """
    attentions = decoder_attentions(hf_model)
    layer_of = {id(module): layer for layer, module in attentions.items()}
    first = next(iter(attentions.values()))
    modelling = sys.modules[type(first).__module__]
    plain = modelling.eager_attention_forward
    implementation = first.config._attn_implementation
    assert implementation == "eager", f"the oracle wants eager, got {implementation}"
    run = OracleRun()

    def attend(module, query, key, value, attention_mask, **settings):
        output, pattern = plain(module, query, key, value, attention_mask, **settings)
        layer = layer_of.get(id(module))
        if layer is None:  # a vision tower's attention in the same modelling module
            return output, pattern
        visible = visibility(attention_mask, pattern)
        run.calls.append((layer, pattern.detach(), visible))
        if edit_pattern is not None:
            pattern = edit_pattern(layer, pattern, visible).to(pattern.dtype)
        n_heads = query.shape[1]
        groups = n_heads // value.shape[1]
        mixed = [pattern[:, h] @ value[:, h // groups] for h in range(n_heads)]
        return torch.stack(mixed, dim=2).contiguous(), pattern

    modelling.eager_attention_forward = attend
    try:
        yield run
    finally:
        modelling.eager_attention_forward = plain


def oracle_logits(
    hf_model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    edit_pattern: EditPattern | None = None,
) -> OracleRun:
    """Return one forward's logits and patterns, its attention edited head by head."""
    with replaced_patterns(hf_model, edit_pattern) as run, torch.no_grad():
        run.logits = hf_model(**inputs, use_cache=False).logits
    assert run.calls, "the model never called the eager attention of its decoder"
    return run


def oracle_generate(
    hf_model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    edit_pattern: EditPattern | None = None,
    **settings: object,
) -> Tensor:
    """Return greedy token ids under `edit_pattern`, prompt included."""
    with replaced_patterns(hf_model, edit_pattern):
        return hf_model.generate(**inputs, do_sample=False, **settings)


@dataclass
class OracleEAH:
    """EAH as an `edit_pattern`: scores, chooses and broadcasts by the oracle's loops.

    The first call of a layer (the prefill) chooses the donors; with `steps="all"` later
    calls reuse them. `donor` is a rule or a head; "shuffled" needs `priority`. With
    `official=True` the released donor rules hold: head 0 never, batch item 0 only.
    """

    image_mask: Tensor  # [batch key]
    token_mask: Tensor  # [batch key]
    layers: tuple[int, ...] = (1,)
    definition: str = "visible"
    beta: float = 1.0
    gamma: float | None = None
    donor: str | int = "densest"
    recipients: Tensor | None = None  # [batch head]
    steps: str = "prefill"
    official: bool = False
    priority: Tensor | None = None  # [batch key]
    donors: dict[int, Tensor] = field(default_factory=dict)
    densities: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, pattern: Tensor, visible: Tensor) -> Tensor:
        if layer not in self.layers:
            return pattern
        if layer in self.donors and self.steps == "prefill":
            return pattern
        if layer not in self.donors:
            self.donors[layer] = self._choose(layer, pattern, visible)
        patched = self._control(pattern, self.donors[layer], visible)
        return oracle_recipients(pattern, patched, self.recipients)

    def _choose(self, layer: int, pattern: Tensor, visible: Tensor) -> Tensor:
        found = oracle_scores(
            pattern, self.image_mask, self.token_mask, self.definition, visible
        )
        self.scores[layer] = found.scores
        self.densities[layer] = found.density(self.beta)
        if isinstance(self.donor, int):
            return torch.full((len(pattern),), self.donor)
        rule = "sparsest" if self.donor == "sparsest" else "densest"
        return oracle_donors(
            self.densities[layer], rule, self.gamma, official=self.official
        )

    def _control(self, pattern: Tensor, donors: Tensor, visible: Tensor) -> Tensor:
        generated = pattern.shape[-1] - self.image_mask.shape[-1]
        image_mask = nn.functional.pad(self.image_mask, (0, generated))
        if self.donor == "mean":
            return oracle_mean_pattern(pattern)
        if self.donor == "uniform":
            return oracle_uniform_pattern(pattern, image_mask, visible)
        if self.donor == "shuffled":
            assert self.priority is not None
            priority = nn.functional.pad(self.priority, (0, generated))
            return oracle_shuffled_pattern(
                pattern, donors, image_mask, visible, priority
            )
        return oracle_broadcast(pattern, donors)
