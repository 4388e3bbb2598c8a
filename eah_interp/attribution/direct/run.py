"""One forward pass in which every component's direct effect is measured."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.attribution.cases.places import Places, keep_logits
from eah_interp.attribution.cases.pose import Case
from eah_interp.attribution.cases.readouts import Readout, TargetValues
from eah_interp.attribution.direct.path import DirectPath, open_direct_path
from eah_interp.attribution.patching.pattern_rows import donate_rows, read_rows
from eah_interp.errors import ModelError
from eah_interp.interventions.donation import apply_patch, plan_patch
from eah_interp.interventions.patches import EAHPatch, LayerPatch
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.anatomy import attention_operation, walk_sites
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.worker import prompt_of_worker


@dataclass
class DirectRun:
    """What every component wrote at the places, and what it did to each target.

    Attributes:
        values: The targets, as the run has them.
        heads: Direct effect of each head, by layer, `[target head]`.
        blocks: Direct effect of every other component, by path, `[target]`.
        embedding: Direct effect of what enters the first layer.
        between: Direct effect of what is added between layers (DeepStack's pictures).
        bias: Direct effect of constants.
        slopes: What a unit of a head's output does to each target, by layer: one
            tensor `[place head d_value]` for each target's pass.
        outputs: The heads' outputs at the places, by layer, `[place head d_value]`.
        rows: The patterns at the places, by layer, `[place head key]`.
        head_values: The values of each layer, `[batch kv_head key d_value]`.
        places: The places.
        patch: Who donated, in a patched run.
    """

    values: TargetValues
    heads: dict[int, Float[Tensor, "target head"]]
    blocks: dict[str, TargetValues]
    embedding: TargetValues
    between: TargetValues
    bias: TargetValues
    slopes: dict[int, Float[Tensor, "target place head d_value"]]
    outputs: dict[int, Tensor]
    rows: dict[int, Tensor]
    head_values: dict[int, Tensor]
    places: Places
    patch: EAHPatch | None

    def mix(self, layer: int, rows: Tensor) -> Float[Tensor, "place head d_value"]:
        """Mix this run's values by rows of any pattern."""
        values = self.head_values[layer][self.places.items.to(rows.device)].float()
        n_places, n_heads, width = rows.shape
        grouped = rows.reshape(n_places, values.shape[1], -1, width)
        return (grouped @ values[:, :, :width]).view(n_places, n_heads, -1)

    def credit(
        self, layer: int, outputs: Float[Tensor, "place head d_value"]
    ) -> Float[Tensor, "target head"]:
        """Say what head outputs at the places would do to each target in this run."""
        effect = (self.slopes[layer] * outputs.float()).sum(-1)  # target place head
        return torch.stack(
            [effect[t, own].sum(0) for t, own in enumerate(self.places.of_targets)]
        )

    def sources(self, layer: int) -> Float[Tensor, "target head key"]:
        """Split each head's direct effect by the position that it read."""
        items = self.places.items.to(self.rows[layer].device)
        values = self.head_values[layer][items].float()
        groups = self.rows[layer].shape[1] // values.shape[1]
        width = self.rows[layer].shape[2]
        split = []
        for t, own in enumerate(self.places.of_targets):
            slope = self.slopes[layer][t, own]
            slope = slope.view(len(own), -1, groups, slope.shape[-1])
            pull = torch.einsum("pkgd,pkyd->pkgy", slope, values[own][:, :, :width])
            split.append((self.rows[layer][own] * pull.flatten(1, 2)).sum(0))
        return torch.stack(split)


def run_direct(model: Any, case: Case, eah: EAH | None) -> DirectRun:
    """Run a case with everything frozen but the direct paths, and read their slopes.

    Raises:
        ModelError: If a layer's heads do not write into the residual stream directly.
    """
    places = Places.of(case.readout)
    kept, read_at = keep_logits(model, case.readout.positions)
    rows: dict[int, Tensor] = {}
    head_values: dict[int, Tensor] = {}
    patches: list[LayerPatch] = []
    where = {"items": places.items, "positions": places.positions}
    with (
        torch.enable_grad(),
        open_direct_path(model) as path,
        model.trace(**case.inputs, **kept, use_cache=False),
    ):
        prompt = prompt_of_worker(model).limit(case.prompt_mask)
        for site in walk_sites(model.anatomy):
            operation = attention_operation(model, site)
            call = AttentionCall.parse(operation.inputs).detach()
            tokens = prompt.fit(call)
            block = read_rows(call, tokens, **where)
            rows[site.layer] = block.weights[:, :, 0]
            if eah is not None and site.layer in eah.layers:
                patch = plan_patch(eah, call, tokens, layer=site.layer)
                apply_patch(eah, operation, call, tokens, patch)
                rows[site.layer] = donate_rows(eah, block, patch, tokens, **where)
                patches.append(patch)
            head_values[site.layer] = call.values
            output = operation.output
            operation.output = (path.cut(site.layer, output[0]), *output[1:])
        final = model.output.logits.save()
    values = case.readout.values(path.logits(final), places=read_at)
    run = DirectRun(
        values=values.detach(),
        heads={},
        blocks={name: torch.zeros_like(values.detach()) for name in path.blocks},
        embedding=torch.zeros_like(values.detach()),
        between=torch.zeros_like(values.detach()),
        bias=torch.zeros_like(values.detach()),
        slopes={},
        outputs={layer: places.take(z.detach()) for layer, z in path.heads.items()},
        rows=rows,
        head_values=head_values,
        places=places,
        patch=None if eah is None else EAHPatch(eah, tuple(patches)),
    )
    _read_slopes(run, path, values, case.readout, read_at)
    return run


def _read_slopes(
    run: DirectRun,
    path: DirectPath,
    values: Tensor,
    readout: Readout,
    read_at: Tensor | None,
) -> None:
    """Run one backward pass for each part of the readout, and fill in the effects."""
    n_targets, places = len(readout.targets), run.places
    for layer, output in run.outputs.items():
        shape = (n_targets, *output.shape)
        run.slopes[layer] = torch.zeros(shape, device=output.device)
    tensors = [
        *path.heads.values(),
        *path.blocks.values(),
        *path.entering,
        *(output for output, _ in path.biases),
    ]
    shape = tuple(path.entering[0].shape[:2])
    effect = functools.partial(_effect, places, shape=shape)
    for targets in readout.passes():
        slopes = torch.autograd.grad(
            values[targets].sum(), tensors, retain_graph=True, allow_unused=True
        )
        given = iter(slopes)
        for layer in path.heads:
            _keep_slope(run, layer, next(given), targets)
        for name, leaf in path.blocks.items():
            run.blocks[name][targets] = effect(targets, leaf, next(given))
        for index, stream in enumerate(path.entering):
            slope = next(given)
            if index == 0:
                run.embedding[targets] = effect(targets, stream, slope)
            elif (added := stream.detach() - path.leaving[index - 1].detach()).any():
                run.between[targets] += effect(targets, added, slope)
        for output, bias in path.biases:
            of_logits = read_at if output is path.unembedded else None
            pair = _spread(bias, next(given), of_logits, shape)
            run.bias[targets] += effect(targets, *pair)
    run.heads = {layer: run.credit(layer, z) for layer, z in run.outputs.items()}


def _keep_slope(
    run: DirectRun, layer: int, slope: Tensor | None, targets: list[int]
) -> None:
    """Keep the slopes of a layer's heads at the places of some targets."""
    if slope is None:
        msg = (
            f"what the heads of layer {layer} return does not reach the residual "
            "stream through linear maps and norms alone, so their direct effect is "
            "not defined; use exact patching"
        )
        raise ModelError(msg)
    taken = run.places.take(slope).float()
    for t in targets:
        own = run.places.of_targets[t]
        run.slopes[layer][t, own] = taken[own]


def _spread(
    bias: Tensor, slope: Tensor | None, read_at: Tensor | None, shape: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """Put logits of some positions where they belong among all, bias multiplied in."""
    if slope is None or read_at is None:
        return bias, slope
    full = slope.new_zeros(*shape, 1)
    full[:, read_at] = (slope * bias).sum(-1, keepdim=True)
    return torch.ones_like(full), full


def _effect(
    places: Places,
    targets: list[int],
    written: Tensor,
    slope: Tensor | None,
    *,
    shape: tuple[int, int],
) -> Tensor:
    """Say what a thing that was written does to targets; it may be a constant."""
    if slope is None:
        return torch.zeros(len(targets), device=written.device)
    effect = written.detach().float() * slope.float()
    # Experts and OPT's layers work on `[batch * position d_model]`.
    per_place = places.take(effect.view(*shape, effect.shape[-1])).sum(-1)
    return places.sum(per_place, targets)
