"""Heads that move from one run's outputs to another's: by gradients, and exactly."""

from typing import Any

import torch
from torch import Tensor

from eah_interp._types import HeadOutputs
from eah_interp.attribution.gradient.integrated import integrate_layer
from eah_interp.attribution.gradient.run import GradientRun
from eah_interp.attribution.patching.head_patching import What
from eah_interp.attribution.patching.mixing import mix_runs
from eah_interp.attribution.patching.nodes import Node, list_head_nodes
from eah_interp.attribution.patching.recording import Recording
from eah_interp.attribution.patching.replay import Replay
from eah_interp.attribution.patching.variants import Given, measure_variants
from eah_interp.lvlm.attention import AttentionCall

Moved = dict[int, HeadOutputs]
"""By layer, what all of its heads would return if they were patched."""


@torch.no_grad()
def move_heads(taken: Recording, into: Recording, what: What) -> Moved:
    """Compute what heads return in one run that are given something of another."""
    if what == "output":
        return taken.heads
    if what == "pattern":
        return {
            layer: mix_runs(taken, layer, call, values=into.calls[layer].values)
            for layer, call in taken.calls.items()
        }
    return {
        layer: mix_runs(into, layer, call, values=taken.calls[layer].values)
        for layer, call in into.calls.items()
    }


def linearise(run: GradientRun, moved: Moved) -> Tensor:
    """Multiply changes by gradients: `[target layer head]`."""
    change = {
        layer: moved[layer].float() - z.float()
        for layer, z in run.recording.heads.items()
    }
    effects = []
    for target in range(len(run.values)):
        slopes = run.gradients(target)
        each = [
            (slopes[layer].float() * dz).sum((0, 1, 3)) for layer, dz in change.items()
        ]
        effects.append(torch.stack([effect.cpu() for effect in each]))
    return torch.stack(effects)


def integrate(
    model: Any, replay: Replay, moved: Moved, n_steps: int, batch_size: int
) -> dict[str, Tensor]:
    """Integrate layer by layer."""
    found = [
        integrate_layer(
            model, replay, ends, layer=layer, n_steps=n_steps, batch_size=batch_size
        )
        for layer, ends in moved.items()
    ]
    return {
        "approximate": torch.stack([effects.cpu() for effects, _ in found], 1),
        "whole_layers": torch.stack([total.cpu() for _, total in found], 1),
    }


def draw_heads(model: Any, check: int, *, seed: int) -> list[Node]:
    """Draw heads at random, without putting them back."""
    nodes = list_head_nodes(model)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(nodes), generator=generator)[:check]
    return [nodes[index] for index in sorted(drawn.tolist())]


def patch_sample(
    model: Any, into: Recording, moved: Moved, sample: list[Node], batch_size: int
) -> Tensor:
    """Patch the drawn heads exactly, one at a time; NaN for all others."""

    def heads(layer: int, call: AttentionCall) -> Tensor:
        del call
        return moved[layer]

    layers = list(moved)
    shape = (len(into.values), len(layers), model.n_heads)
    exact = torch.full(shape, torch.nan)
    if sample:
        variants = [(node,) for node in sample]
        found = measure_variants(
            model, into, variants, Given(heads, {}), batch_size=batch_size
        )
        for node, effects in zip(sample, found.cpu(), strict=True):
            exact[:, layers.index(node.layer), node.head] = effects
    return exact
