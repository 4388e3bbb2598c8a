"""Forward passes whose gradients at head outputs are wanted, and nobody else's."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from eah_interp._types import HeadOutputs
from eah_interp.attribution.cases import Case
from eah_interp.attribution.readouts import Places, Readout, TargetValues, keep_logits
from eah_interp.attribution.replay import Replay, in_batches
from eah_interp.attribution.runs import Recording, read_places
from eah_interp.errors import EAHError, UnsupportedError
from eah_interp.interventions.donation import donors_by_layer
from eah_interp.interventions.intervene import attention_calls
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.prompt import prompt_of_worker
from eah_interp.lvlm.weights import check_recorded, find_quantised

_BACKWARD = re.compile(
    "backward|derivative|requires? grad|grad_fn|inference tensor|supports inference",
    re.IGNORECASE,
)
"""What errors say that are about gradients."""


@dataclass(frozen=True)
class GradientRun:
    """One run of one item, with its graph from the first head outputs on.

    Attributes:
        recording: What it passed on at its attention calls, cut off its graph.
        values: Its targets, with gradients.
        heads: Each layer's head outputs, `[1 query head d_value]`, with gradients.
    """

    recording: Recording
    values: TargetValues
    heads: dict[int, HeadOutputs]

    def gradients(self, target: int) -> dict[int, HeadOutputs]:
        """Run one backward pass: a target's gradient at every layer's head outputs.

        Where it is called `with with_gradients(model)`, what cannot be differentiated
        is refused by name.

        Raises:
            UnsupportedError: If the target does not depend on a layer's heads.
        """
        last = target == len(self.values) - 1
        found = torch.autograd.grad(
            self.values[target],
            list(self.heads.values()),
            retain_graph=not last,
            allow_unused=True,
        )
        by_layer = dict(zip(self.heads, found, strict=True))
        lost = [layer for layer, gradient in by_layer.items() if gradient is None]
        if lost:
            msg = (
                f"no gradient reaches the heads of layers {lost}: what comes after "
                "them is not differentiable here; use patch_heads, which needs none"
            )
            raise UnsupportedError(msg)
        return by_layer


def run_with_gradients(
    model: Any, case: Case, patch: Intervention | None
) -> GradientRun:
    """Run one item and keep the graph from the first attention call's output on.

    The vision tower, the embedding and the first layer's queries, keys and values get
    no gradient. Donors are chosen without gradients; what they donate has them.

    Args:
        model: An LVLM that `check_gradients` took.
        case: One item.
        patch: Settings of a patched run.
    """
    kept, read_at = keep_logits(model, case.readout.positions)
    done = Recording(case, patch, torch.zeros(0))
    heads: dict[int, Tensor] = {}
    with with_gradients(model), model.trace(**case.inputs, **kept, use_cache=False):
        done.prompt = prompt_of_worker(model).limit(case.prompt_mask)
        for point in attention_calls(model, patch, prompt_mask=case.prompt_mask):
            heads[point.layer] = begin_graph(point.operation)
            point.call = point.call.detach()
            done.keep(point, heads[point.layer].detach())
        final = model.output.logits.save()
    with torch.enable_grad():
        values = case.readout.values(final, places=read_at)
    done.values = values.detach()
    return GradientRun(done, values, heads)


def begin_graph(operation: Any) -> HeadOutputs:
    """Read what an attention call returns; where it has no graph, one begins there."""
    output = operation.output
    heads: Tensor = output[0]
    if not heads.requires_grad:
        heads = heads.detach().requires_grad_()
        operation.output = (heads, *output[1:])
    return heads


@contextlib.contextmanager
def with_gradients(model: Any) -> Iterator[None]:
    """Grow graphs from what is made to require gradients, not from weights.

    So no graph is kept before the first head output, nor for any weight. The weights
    are as they were afterwards.

    Raises:
        UnsupportedError: If the model cannot be differentiated in the block.
    """
    root: nn.Module = model._module
    # By name: accelerate makes new parameters of those that it keeps away.
    named = root.named_parameters(remove_duplicate=False)
    trained = [name for name, parameter in named if parameter.requires_grad]
    for name in trained:
        root.get_parameter(name).requires_grad = False
    try:
        with torch.enable_grad():
            yield
    except EAHError:
        raise
    except RuntimeError as error:
        if not _BACKWARD.search(str(error)):
            raise
        text = root.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
        first = str(error).strip().splitlines()[0].rstrip(".")
        msg = (
            f"{type(root).__name__} cannot be differentiated with "
            f"attn_implementation={text._attn_implementation!r} on {model.device}, "
            f"{root.dtype}: {first}. Expected a backward pass of every operation: load "
            "it with attn_implementation='sdpa' or 'eager', or use patch_heads, which "
            "needs none"
        )
        raise UnsupportedError(msg) from error
    finally:
        for name in trained:
            root.get_parameter(name).requires_grad = True


def check_gradients(model: Any) -> None:
    """Refuse a model that has no gradients, before any forward pass.

    Raises:
        UnsupportedError: If its weights are quantised, or made in inference mode, or
            if inference mode is on.
    """
    root: nn.Module = model._module
    check_recorded(root, instead=", or use patch_heads, which needs no gradients")
    quantised = find_quantised(root)
    if quantised is not None:
        name, module, found = quantised
        msg = (
            f"{name} ({type(module).__name__}) has quantised weights ({found}), "
            "whose gradients are missing or would be silently wrong: expected "
            "float32, float16 or bfloat16. Load the model without quantisation, "
            "or use patch_heads, which needs no gradients"
        )
        raise UnsupportedError(msg)


# ---- Integrated gradients along the way from one run's head outputs to another's.


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


# ---- Attention times its gradient


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


def run_attention_gradient(
    model: Any, case: Case, patch: Intervention | None
) -> SourceRun:
    """Multiply each read row of each pattern by the gradient of the targets.

    The gradient with respect to `A[x, y]` of a head is that with respect to its output
    at `x`, times `v[y]`: no pattern is materialised, whatever the backend. One forward
    pass, and one backward pass for each target of a batch item. Needs the memory of a
    training step of the decoder, without gradients of weights.

    Args:
        model: An LVLM.
        case: The inputs and the readout.
        patch: Settings of a patched run; what is donated is part of the gradient's
            path, the choice of the donor is not.

    Returns:
        Credits by layer, on the CPU.
    """
    places = Places.of(case.readout)
    kept, read_at = keep_logits(model, case.readout.positions)
    where = {"items": places.items, "positions": places.positions}
    layers: list[_Layer] = []
    learned: dict[int, Any] = {}
    with with_gradients(model):
        with model.trace(**case.inputs, **kept, use_cache=False):
            for point in attention_calls(model, patch, prompt_mask=case.prompt_mask):
                heads = begin_graph(point.operation)
                point.call = point.call.detach()
                with torch.no_grad():
                    rows = read_places(point, **where)
                if point.settings is not None:
                    learned[point.layer] = point.kept
                layers.append(_Layer(rows, point.call.values, heads))
            final = model.output.logits.save()
        values = case.readout.values(final, places=read_at)
        sources = _read_gradients(layers, values, case.readout, places)
    return SourceRun(values.detach().cpu(), sources, donors_by_layer(learned))


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
