"""Integrated gradients along the way from one run's head outputs to another's."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp._types import HeadOutputs
from eah_interp.attribution.cases.batches import in_batches
from eah_interp.attribution.cases.readouts import TargetValues
from eah_interp.attribution.gradient.run import with_gradients
from eah_interp.attribution.patching.replay import Replay
from eah_interp.lvlm.attention import AttentionCall

LayerEffects = Float[Tensor, "target head"]


def integrate_layer(
    model: Any,
    replay: Replay,
    donated: HeadOutputs,
    *,
    layer: int,
    n_steps: int,
    batch_size: int,
) -> tuple[LayerEffects, TargetValues]:
    r"""Integrate a target's gradient along the way of one layer's heads.

    $\mathrm{IG}_h = (z'_h - z_h) \cdot \int_0^1 \nabla_{z_h} m(z + \alpha (z' - z))
    \, d\alpha$ (Sundararajan et al., arXiv:1703.01365), all heads of the layer moving
    together and earlier layers as recorded. Summed over heads it is `m(z') - m(z)`,
    the effect of patching the whole layer, but for the error of the Gauss-Legendre
    rule, which falls as steps grow.

    Args:
        model: The LVLM.
        replay: The run that is given to.
        donated: Where the way ends, `[1 query head d_value]`.
        layer: The layer.
        n_steps: Points on the way.
        batch_size: Copies of the item in one forward pass.

    Returns:
        The effects of the heads, and the exact effect of all of them together.
    """
    recorded = replay.recording
    start = recorded.heads[layer].float()
    way = donated.float() - start
    # the way's end is run too, without weight, to say what the heads must sum to
    inner, gauss = place_points(n_steps)
    points = torch.cat([inner, torch.ones(1)]).to(start.device).view(-1, 1, 1, 1)

    def measure(steps: list[int]) -> Tensor:
        heads = (start + points[steps] * way).to(donated.dtype)
        values, gradients = _differentiate(model, replay, heads, layer=layer)
        slopes = [(gradient.float() * way).sum((1, 3)) for gradient in gradients]
        return torch.cat([values[:, :, None], torch.stack(slopes, 1)], 2)

    steps = list(range(len(points)))
    found = in_batches(steps, measure, batch_size=batch_size)
    values, slopes = found[:, :, 0], found[:-1, :, 1:]
    effects = torch.einsum("s,sth->th", gauss.to(slopes), slopes)
    return effects, values[-1] - recorded.values.to(values)


def place_points(n_steps: int) -> tuple[Float[Tensor, " step"], Float[Tensor, " step"]]:
    """Place points in (0, 1) by the rule of Gauss and Legendre, and weigh them.

    `n` points integrate polynomials of degree `2 n - 1` exactly; one is the midpoint.

    Args:
        n_steps: How many.

    Returns:
        Points, and weights that sum to one.

    Example:
        >>> points, weights = place_points(2)
        >>> round(float((weights * points**3).sum()), 6)
        0.25
    """
    points, weights = np.polynomial.legendre.leggauss(n_steps)
    return torch.tensor((points + 1) / 2).float(), torch.tensor(weights / 2).float()


def _differentiate(
    model: Any, replay: Replay, heads: Tensor, *, layer: int
) -> tuple[Float[Tensor, "row target"], list[Float[Tensor, "row query head d_value"]]]:
    """Run copies with head outputs of their own, and go back once for each target."""
    leaf = heads.detach().requires_grad_()

    def write(at: int, operation: Any, call: AttentionCall) -> None:
        del at, call
        operation.output = (leaf, *operation.output[1:])

    with with_gradients(model):
        values = replay.run(model, len(leaf), start=layer, at_calls={layer: write})
        n_targets = values.shape[1]
        gradients = [
            # rows do not see each other, so a sum over rows is one pass for all
            torch.autograd.grad(
                values[:, target].sum(), leaf, retain_graph=target < n_targets - 1
            )[0]
            for target in range(n_targets)
        ]
    return values.detach(), gradients
