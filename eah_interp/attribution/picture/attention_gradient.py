"""Attention times its gradient, in the rows that are read, through all later layers."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.attribution.cases.places import Places, keep_logits
from eah_interp.attribution.cases.pose import Case
from eah_interp.attribution.cases.readouts import Readout, TargetValues
from eah_interp.attribution.gradient.run import with_gradients
from eah_interp.attribution.patching.pattern_rows import donate_rows, read_rows
from eah_interp.interventions.donation import apply_patch, plan_patch
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.anatomy import attention_operation, walk_sites
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.worker import prompt_of_worker


@dataclass
class SourceRun:
    """What each position is credited with, by head.

    Attributes:
        values: The targets.
        sources: By layer, `[target head key]`.
        donors: Donor head of each patched layer, by batch item.
    """

    values: TargetValues
    sources: list[Float[Tensor, "target head key"]]
    donors: dict[int, Tensor]


@dataclass
class _Layer:
    """One layer's attention at the places that are read.

    Attributes:
        rows: The pattern there, `[place head key]`.
        values: What was attended to, `[batch kv_head key d_value]`.
        outputs: What the heads returned, `[batch query head d_value]`, in the graph.
    """

    rows: Tensor
    values: Tensor
    outputs: Tensor


@dataclass
class _Pass:
    layers: list[_Layer] = field(default_factory=list)
    donors: dict[int, Tensor] = field(default_factory=dict)


def run_attention_gradient(model: Any, case: Case, eah: EAH | None) -> SourceRun:
    """Multiply each read row of each pattern by the gradient of the targets.

    The gradient with respect to `A[x, y]` of a head is that with respect to its output
    at `x`, times `v[y]`: no pattern is materialised, whatever the backend. One forward
    pass, and one backward pass for each target of a batch item. Needs the memory of a
    training step of the decoder, without gradients of weights.

    Args:
        model: An LVLM.
        case: The inputs and the readout.
        eah: Settings of a patched run; what is donated is part of the gradient's
            path, the choice of the donor is not.

    Returns:
        Credits by layer, on the CPU.
    """
    places = Places.of(case.readout)
    kept, read_at = keep_logits(model, case.readout.positions)
    where = {"items": places.items, "positions": places.positions}
    done = _Pass()
    with with_gradients(model):
        with model.trace(**case.inputs, **kept, use_cache=False):
            prompt = prompt_of_worker(model).limit(case.prompt_mask)
            for site in walk_sites(model.anatomy):
                operation = attention_operation(model, site)
                call = AttentionCall.parse(operation.inputs)
                tokens = prompt.fit(call)
                block = read_rows(call.detach(), tokens, **where)
                rows = block.weights[:, :, 0]
                if eah is not None and site.layer in eah.layers:
                    patch = plan_patch(eah, call, tokens, layer=site.layer)
                    apply_patch(eah, operation, call, tokens, patch)
                    rows = donate_rows(eah, block, patch, tokens, **where)
                    done.donors[site.layer] = patch.donors.cpu()
                output = operation.output
                heads = output[0]
                if not heads.requires_grad:  # the first layer: the graph begins here
                    heads = heads.detach().requires_grad_()
                    operation.output = (heads, *output[1:])
                done.layers.append(_Layer(rows, call.values.detach(), heads))
            final = model.output.logits.save()
        values = case.readout.values(final, places=read_at)
        sources = _read_gradients(done.layers, values, case.readout, places)
    return SourceRun(values.detach().cpu(), sources, done.donors)


def _read_gradients(
    layers: list[_Layer], values: Tensor, readout: Readout, places: Places
) -> list[Tensor]:
    """Run the backward passes, each for at most one target of every batch item."""
    shapes = [(len(readout.targets), *layer.rows.shape[1:]) for layer in layers]
    sources = [torch.zeros(shape) for shape in shapes]
    turns: dict[int, list[int]] = {}
    seen: dict[int, int] = {}
    for index, target in enumerate(readout.targets):
        turn = seen.get(target.row, 0)
        seen[target.row] = turn + 1
        turns.setdefault(turn, []).append(index)
    outputs = [layer.outputs for layer in layers]
    for targets in turns.values():
        gradients = torch.autograd.grad(
            values[targets].sum(), outputs, retain_graph=True, allow_unused=True
        )
        for layer, gradient, source in zip(layers, gradients, sources, strict=True):
            if gradient is None:
                continue
            credit = _credit(layer, places.take(gradient).float(), places)
            for t in targets:
                source[t] = credit[places.of_targets[t]].sum(0).cpu()
    return sources


def _credit(layer: _Layer, slope: Tensor, places: Places) -> Tensor:
    """Multiply rows by the pull of the slope on the values, `[place head key]`."""
    n_places, n_heads, width = layer.rows.shape
    values = layer.values[places.items.to(layer.values.device), :, :width].float()
    grouped = slope.reshape(n_places, values.shape[1], -1, slope.shape[-1])
    pull = torch.einsum("pkgd,pkyd->pkgy", grouped, values)
    return layer.rows * pull.reshape(n_places, n_heads, width)
