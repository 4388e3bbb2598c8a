"""The model with everything frozen but the direct path to its logits.

What a component writes into the residual stream reaches the logits directly through
additions, norms and the unembedding. With every norm's scale frozen at its value and
every other component's input cut off, the logits are an affine function of what the
components wrote, and autograd gives its slope: no architecture has to be known beyond
which modules are norms. What is a norm is checked by recomputing it.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eah_interp.attribution.cases import Case
from eah_interp.attribution.readouts import Places, Readout, TargetValues, keep_logits
from eah_interp.attribution.runs import read_places
from eah_interp.errors import ModelError, NumericalError
from eah_interp.interventions.donation import donors_by_layer
from eah_interp.interventions.intervene import attention_calls
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import (
    Anatomy,
    block_paths,
    norm_paths,
)
from eah_interp.lvlm.weights import (
    find_quantised,
    read_constant,
    read_weights,
    with_slope,
)

_LOOSE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass
class DirectPath:
    """What a run wrote into the residual stream, filled in while it runs.

    Attributes:
        heads: Each layer's head outputs, `[batch query head d_value]`: leaves.
        blocks: The output of every other component, by path: leaves.
        entering: The residual stream that enters each layer.
        leaving: The residual stream that leaves each layer.
        biases: Outputs that hold a constant, each with that constant.
        unembedded: The unembedding's output, before any scaling or capping.
        quantised: Whether an output projection or the unembedding has quantised
            weights, and rounds what it is given or computes.
    """

    heads: dict[int, Tensor] = field(default_factory=dict)
    blocks: dict[str, Tensor] = field(default_factory=dict)
    entering: list[Tensor] = field(default_factory=list)
    leaving: list[Tensor] = field(default_factory=list)
    biases: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    unembedded: Tensor | None = None
    quantised: bool = False

    def cut(self, layer: int, output: Tensor) -> Tensor:
        """Make a layer's head outputs a leaf, to be put back into the run."""
        leaf = output.detach().requires_grad_()
        self.heads[layer] = leaf
        return leaf

    def logits(self, final: Tensor) -> Tensor:
        """Return the final logits as a linear function of the unembedding's output.

        A constant factor on the logits is kept. A soft cap is replaced by the chord
        from zero to where it stands (`cap(x) / x`, frozen): its value is exact, and
        contributions add up; they are no derivative.
        """
        assert self.unembedded is not None
        raw = self.unembedded
        factor = torch.where(raw == 0, 1.0, final.detach() / raw.detach())
        return raw * factor


@contextlib.contextmanager
def open_direct_path(model: Any) -> Iterator[DirectPath]:
    """Hook a model so that only direct paths to the logits carry gradients.

    The run's numbers stay as they are. Heads are cut by the caller, who calls `cut`
    at each attention call.

    Args:
        model: An LVLM.

    Yields:
        What is written, filled in by the next forward pass.

    Raises:
        ModelError: In the forward pass, if a norm is not what it seems.
    """
    anatomy: Anatomy = model.anatomy
    root: nn.Module = model._module
    path = DirectPath()
    handles: list[Any] = []
    for name in norm_paths(root, anatomy):
        norm = root.get_submodule(name)
        handles.append(norm.register_forward_hook(_freeze_norm(path, name)))
    for name in block_paths(root, anatomy):
        block = root.get_submodule(name)
        handles.append(
            block.register_forward_pre_hook(_cut_inputs, with_kwargs=True, prepend=True)
        )
        handles.append(block.register_forward_hook(_leaf(path, name)))
    for index, layer in enumerate(root.get_submodule(anatomy.layers).children()):
        handles.append(
            layer.register_forward_pre_hook(_enter(path, index), with_kwargs=True)
        )
        handles.append(layer.register_forward_hook(_leave(path)))
    for site in anatomy.sites.values():
        attention = root.get_submodule(site.path)
        handles.append(
            attention.register_forward_pre_hook(_cut_inputs, with_kwargs=True)
        )
        if site.out_proj is not None:
            proj = root.get_submodule(site.out_proj)
            handles += _hook_projection(path, proj, model._module.dtype)
    unembedding = root.get_submodule(str(anatomy.unembedding))
    handles += _hook_projection(path, unembedding, model._module.dtype)
    handles.append(unembedding.register_forward_hook(_note_logits(path)))
    try:
        yield path
    finally:
        for handle in handles:
            handle.remove()


def _cut_inputs(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    del module
    return (
        tuple(_cut(value) for value in args),
        {name: _cut(value) for name, value in kwargs.items()},
    )


def _cut(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach()
    if isinstance(value, tuple):
        return tuple(_cut(item) for item in value)
    return value


def _leaf(path: DirectPath, name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        del module, args
        first = output[0] if isinstance(output, tuple) else output
        leaf = first.detach().requires_grad_()
        path.blocks[name] = leaf
        return (leaf, *output[1:]) if isinstance(output, tuple) else leaf

    return hook


def _enter(path: DirectPath, index: int) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        del module
        stream = args[0] if args else kwargs["hidden_states"]
        if index == 0:
            stream = stream.detach().requires_grad_()
        path.entering.append(stream)
        if args:
            return (stream, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": stream}

    return hook


def _leave(path: DirectPath) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        path.leaving.append(output[0] if isinstance(output, tuple) else output)

    return hook


def _hook_projection(
    path: DirectPath, module: nn.Module, dtype: torch.dtype
) -> list[Any]:
    """Note a linear module's constant, and give it a gradient where it has none."""
    # Both before the run, in which nobody else may call the module.
    constant = read_constant(module, dtype=dtype)
    quantised = find_quantised(module) is not None

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if quantised:
            path.quantised = True
            output = with_slope(module, args[0], output)
        if constant is not None:
            path.biases.append((output, constant.to(output.device)))
        return output

    return [module.register_forward_hook(hook)]


def _note_logits(path: DirectPath) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        del module, args
        path.unembedded = output

    return hook


def _freeze_norm(path: DirectPath, name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        frozen, bias = linearise_norm(module, args[0], output, name=name)
        if bias is not None:
            path.biases.append((frozen, bias))
        return frozen

    return hook


def linearise_norm(
    norm: nn.Module, stream: Tensor, output: Tensor, *, name: str = "norm"
) -> tuple[Tensor, Tensor | None]:
    """Write a norm as an affine map with its scale frozen at this input.

    Which norm it is (of the root mean square or of the deviation; a gain, one plus a
    gain, or none) is found by recomputing its output.

    Args:
        norm: An RMS norm or layer norm of any library.
        stream: What it was given, `[... d_model]`.
        output: What it returned.
        name: What errors call it.

    Returns:
        The same output, with gradients through the frozen map only; and the map's
        constant, if it has one.

    Raises:
        ModelError: If it is no such norm.
        NumericalError: If what goes through it is NaN or infinite.

    Example:
        >>> norm, x = nn.LayerNorm(4), torch.randn(2, 4, requires_grad=True)
        >>> frozen, bias = linearise_norm(norm, x, norm(x))
        >>> bool((frozen == norm(x)).all()), bias.tolist()
        (True, [0.0, 0.0, 0.0, 0.0])
    """
    wide = stream.float()
    centred = wide - wide.mean(-1, keepdim=True)
    actual = output.detach().float()
    candidates: list[tuple[float, Tensor, Tensor | None]] = []
    # Of an adapted norm, which of its parts it uses: the model's own, or a trained one.
    for part in norm.modules():
        eps = float(getattr(part, "variance_epsilon", getattr(part, "eps", 0.0)) or 0.0)
        own = read_weights(part)
        weight, bias = own.get("weight"), own.get("bias")
        if weight is not None and weight.shape != stream.shape[-1:]:
            continue
        bias = None if bias is None else bias.float()
        gains: list[Any] = [1.0]
        if weight is not None:
            gains = [weight.float(), 1 + weight.float()]
        for direction in (wide, centred):
            scale = (direction.detach().square().mean(-1, keepdim=True) + eps).rsqrt()
            for gain in gains:
                frozen = direction * (scale * gain)
                value = frozen.detach() if bias is None else frozen.detach() + bias
                error = float((value - actual).abs().max())
                candidates.append((error, frozen, bias))
    error, frozen, bias = min(candidates, key=lambda candidate: candidate[0])
    size = float(actual.abs().max().clamp(min=1e-6))
    if error <= _LOOSE.get(output.dtype, 1e-3) * size:
        return (actual + (frozen - frozen.detach())).to(output.dtype), bias
    if not (bool(wide.isfinite().all()) and bool(actual.isfinite().all())):
        msg = f"what goes through {name} is NaN or infinite: expected finite numbers"
        raise NumericalError(f"{msg}; load the model in another dtype")
    msg = (
        f"{name} ({type(norm).__name__}) is neither an RMS norm nor a layer norm: its "
        "output is not explained by its input, weight and bias, so its scale cannot "
        "be frozen and direct attribution would be wrong; use exact patching"
    )
    raise ModelError(msg)


# ---- One forward pass in which every component's direct effect is measured.


@dataclass
class DirectRun:
    """What every component wrote at the places, and what it did to each target.

    Attributes:
        values: The targets, as the run has them.
        heads: Direct effect of each head, by layer, `[target head]`.
        blocks: Direct effect of every other component, by path, `[target]`.
        embedding: Direct effect of what enters the first layer.
        between: Direct effect of what is added between layers (DeepStack's images).
        bias: Direct effect of constants.
        slopes: What a unit of a head's output does to each target, by layer: one
            tensor `[place head d_value]` for each target's pass.
        outputs: The heads' outputs at the places, by layer, `[place head d_value]`.
        rows: The patterns at the places, by layer, `[place head key]`.
        head_values: The values of each layer, `[batch kv_head key d_value]`.
        places: The places.
        donors: Who donated in each layer that EAH patched, on the CPU.
        quantised: Whether an output projection or the unembedding has quantised
            weights.
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
    donors: dict[int, Tensor]
    quantised: bool

    def mix(self, layer: int, rows: Tensor) -> Float[Tensor, "place head d_value"]:
        """Mix this run's values by rows of any pattern."""
        values = self.head_values[layer][self.places.items.to(rows.device)].float()
        n_places, n_heads, width = rows.shape
        grouped = rows.reshape(n_places, values.shape[1], -1, width)
        return (grouped @ values[:, :, :width]).view(n_places, n_heads, -1)

    def credit(
        self, layer: int, outputs: Float[Tensor, "place head d_value"]
    ) -> Float[Tensor, "target head"]:
        """Compute what head outputs at the places would do to each target here."""
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


@torch.enable_grad()  # also where a notebook has switched gradients off
def run_direct(
    model: Any, case: Case, patch: Intervention | None, *, with_rows: bool = True
) -> DirectRun:
    """Run a case with everything frozen but the direct paths, and read their slopes.

    Args:
        model: An LVLM.
        case: The inputs and the readout.
        patch: Settings of a patched run.
        with_rows: Whether the patterns at the places are kept, which effects by
            position need.

    Raises:
        ModelError: If a layer's heads do not write into the residual stream directly.
    """
    places = Places.of(case.readout)
    kept, read_at = keep_logits(model, case.readout.positions)
    rows: dict[int, Tensor] = {}
    head_values: dict[int, Tensor] = {}
    learned: dict[int, Any] = {}
    with (
        model.alone(),
        open_direct_path(model) as path,
        model.trace(**case.inputs, **kept, use_cache=False),
    ):
        for point in attention_calls(
            model, patch, prompt_mask=case.prompt_mask, detached=True
        ):
            layer, operation = point.layer, point.operation
            if with_rows:
                rows[layer] = read_places(
                    point, items=places.items, positions=places.positions
                )
            if point.settings is not None:
                learned[layer] = point.kept
            head_values[layer] = point.call.values
            output = operation.output
            operation.output = (path.cut(layer, output[0]), *output[1:])
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
        donors=donors_by_layer(learned),
        quantised=path.quantised,
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
    """Compute what something written does to targets; it may be a constant."""
    if slope is None:
        return torch.zeros(len(targets), device=written.device)
    effect = written.detach().float() * slope.float()
    # Experts and OPT's layers work on `[batch * position d_model]`.
    per_place = places.take(effect.view(*shape, effect.shape[-1])).sum(-1)
    return places.sum(per_place, targets)
