"""The model with everything frozen but the direct path to its logits.

What a component writes into the residual stream reaches the logits directly through
additions, norms and the unembedding. With every norm's scale frozen at its value and
every other component's input cut off, the logits are an affine function of what the
components wrote, and autograd gives its slope: no architecture has to be known beyond
which modules are norms. What is a norm is checked by recomputing it.

All of it acts on one position at a time, so graphs are grown at the places that are
read and nowhere else: what a component wrote there is a leaf, put into its output.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
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
from eah_interp.lvlm.module_hooks import first_output, hook_stream
from eah_interp.lvlm.weights import (
    check_recorded,
    find_quantised,
    read_constant,
    read_weights,
    with_slope,
)

_LOOSE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass
class DirectPath:
    """What a run wrote into the residual stream, filled in while it runs.

    Everything is kept at the places that are read, `[place ...]`, and there alone.

    Attributes:
        places: The places.
        shape: Items and positions of the run.
        heads: Each layer's head outputs, `[place head d_value]`: leaves.
        blocks: The output of every other component, by path: leaves.
        embedding: The residual stream that enters the first layer: a leaf.
        between: What was added to the stream between layers, each with a leaf that is
            zero and stands there.
        leaving: The residual stream that left the latest layer, at all positions.
        biases: Outputs that hold a constant, each with that constant, and whether they
            are those of the positions that are read, instead of the places.
        unembedded: The unembedding's output, before any scaling or capping.
        errors: How far off each norm is that was written as an affine map, in units of
            what is allowed, with its name and kind.
        quantised: Whether an output projection or the unembedding has quantised
            weights, and rounds what it is given or computes.
    """

    places: Places
    shape: tuple[int, int]
    heads: dict[int, Tensor] = field(default_factory=dict)
    blocks: dict[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None
    between: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    leaving: Tensor | None = None
    biases: list[tuple[Tensor, Tensor, bool]] = field(default_factory=list)
    unembedded: Tensor | None = None
    errors: list[tuple[Tensor, str, nn.Module]] = field(default_factory=list)
    quantised: bool = False

    def fits(self, tensor: Tensor) -> bool:
        """Tell whether a tensor has a line for each position."""
        n_lines = self.shape[0] * self.shape[1]
        return tuple(tensor.shape[:2]) == self.shape or (
            tensor.numel() == n_lines * tensor.shape[-1]
        )

    def take(self, tensor: Tensor) -> Tensor:
        """Pick the places out of `[batch position ...]` or `[batch * position d]`."""
        if tuple(tensor.shape[:2]) == self.shape:
            return self.places.take(tensor)
        return self.places.take(tensor.reshape(*self.shape, tensor.shape[-1]))

    def put(self, tensor: Tensor, rows: Tensor) -> Tensor:
        """Put `[place ...]` where it belongs in a tensor, which keeps its numbers."""
        whole = tensor.detach()
        if tuple(tensor.shape[:2]) != self.shape:
            whole = whole.reshape(*self.shape, tensor.shape[-1])
        items, positions = self.places.items, self.places.positions
        where = (items.to(whole.device), positions.to(whole.device))
        return whole.index_put(where, rows.to(whole.dtype)).view(tensor.shape)

    def begin(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Begin a graph at the places: a leaf, and the tensor that holds it."""
        leaf = self.take(tensor.detach()).requires_grad_()
        return leaf, self.put(tensor, leaf)

    def cut(self, layer: int, output: Tensor) -> Tensor:
        """Make a layer's head outputs a leaf, to be put back into the run."""
        self.heads[layer], held = self.begin(output)
        return held

    def check_norms(self) -> None:
        """Check that every norm of the run was one, asking the device once.

        Raises:
            ModelError: If one is neither an RMS norm nor a layer norm.
            NumericalError: If what goes through one is NaN or infinite.
        """
        if not self.errors:
            return
        errors, names, norms = zip(*self.errors, strict=True)
        for error, name, norm in zip(
            torch.stack([one.to(errors[0].device) for one in errors]).tolist(),
            names,
            norms,
            strict=True,
        ):
            _check_norm(norm, error, name)

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
def open_direct_path(
    model: Any, places: Places, shape: tuple[int, int]
) -> Iterator[DirectPath]:
    """Hook a model so that only direct paths to the logits carry gradients.

    The run's numbers stay as they are. Heads are cut by the caller, who calls `cut`
    at each attention call, and `check_norms` after the run.

    Args:
        model: An LVLM.
        places: Where logits are read.
        shape: Items and positions of the run.

    Yields:
        What is written, filled in by the next forward pass.
    """
    anatomy: Anatomy = model.anatomy
    root: nn.Module = model._module
    path = DirectPath(places, shape)
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
        handles.append(hook_stream(layer, _enter(path, index)))
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
    handles += _hook_projection(path, unembedding, model._module.dtype, whole=True)
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
        first = first_output(output)
        if path.fits(first):
            path.blocks[name], held = path.begin(first)
        else:
            path.blocks[name] = held = first.detach().requires_grad_()
        return (held, *output[1:]) if isinstance(output, tuple) else held

    return hook


def _enter(path: DirectPath, index: int) -> Callable[[Tensor], Tensor]:
    def enter(stream: Tensor) -> Tensor:
        if index == 0:
            path.embedding, stream = path.begin(stream)
        elif path.leaving is not None and stream is not path.leaving:
            own = path.take(stream)
            added = (own - path.take(path.leaving)).detach()
            zero = torch.zeros_like(added).requires_grad_()
            path.between.append((zero, added))
            stream = path.put(stream, own + zero)
        return stream

    return enter


def _leave(path: DirectPath) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        path.leaving = first_output(output)

    return hook


def _hook_projection(
    path: DirectPath, module: nn.Module, dtype: torch.dtype, *, whole: bool = False
) -> list[Any]:
    """Note a linear module's constant, and give it a gradient where it has none.

    Args:
        path: What is filled in.
        module: The module.
        dtype: The model's.
        whole: Whether it is given positions that are read only.
    """
    # Both before the run, in which nobody else may call the module.
    constant = read_constant(module, dtype=dtype)
    quantised = find_quantised(module) is not None

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        path.quantised |= quantised
        if not whole:
            rows = path.take(output)
            given = path.take(args[0])
            if quantised:
                rows = with_slope(module, given, rows)
            elif type(module) is nn.Linear and module.weight.device == given.device:
                # Going back through all positions would cost a product of all of them.
                # A weight that is kept away has left already; the output remembers it.
                found = nn.functional.linear(given, module.weight)
                rows = rows.detach() + (found - found.detach())
            output = path.put(output, rows)
        else:
            rows = output = with_slope(module, args[0], output) if quantised else output
        if constant is not None:
            path.biases.append((rows, constant.to(output.device), whole))
        return output

    return [module.register_forward_hook(hook)]


def _note_logits(path: DirectPath) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        del module, args
        path.unembedded = output

    return hook


def _freeze_norm(path: DirectPath, name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        whole = not path.fits(output)  # of positions that are read only
        given, made = (one if whole else path.take(one) for one in (args[0], output))
        rows, bias, error = _linearise(module, given, made)
        path.errors.append((error, name, module))
        if bias is not None:
            path.biases.append((rows, bias, whole))
        return rows if whole else path.put(output, rows)

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
    frozen, bias, error = _linearise(norm, stream, output)
    _check_norm(norm, float(error), name)
    return frozen, bias


def _linearise(
    norm: nn.Module, stream: Tensor, output: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Write a norm as its likeliest affine map.

    Returns:
        The same output with that map's gradients; its constant; and how far off it is,
        in units of what is allowed (NaN where its input or output is none).
    """
    wide = stream.float()
    centred = wide - wide.mean(-1, keepdim=True)
    actual = output.detach().float()
    maps: list[Tensor] = []
    biases: list[Tensor | None] = []
    # Of an adapted norm, which of its parts it uses: the model's own, or a trained one.
    for part in norm.modules():
        eps = float(getattr(part, "variance_epsilon", getattr(part, "eps", 0.0)) or 0.0)
        own = read_weights(part)
        weight, bias = own.get("weight"), own.get("bias")
        if weight is not None and weight.shape != stream.shape[-1:]:
            continue
        gains: list[Any] = [1.0]
        if weight is not None:
            gains = [weight.float(), 1 + weight.float()]
        for direction in (wide, centred):
            scale = (direction.detach().square().mean(-1, keepdim=True) + eps).rsqrt()
            maps += [direction * (scale * gain) for gain in gains]
        biases += [None if bias is None else bias.float()] * 2 * len(gains)
    # Which of them it is stays on the device: asking would stop a run at every norm.
    stacked = torch.stack(maps)
    constants = torch.stack(
        [wide.new_zeros(wide.shape[-1]) if b is None else b for b in biases]
    )
    axes = tuple(range(1, stacked.ndim))
    spread = constants.view(len(maps), *(1,) * (wide.ndim - 1), wide.shape[-1])
    errors = (stacked.detach() + spread - actual).abs().amax(axes)
    best = errors.argmin()[None]
    frozen = stacked.index_select(0, best)[0]
    size = actual.abs().max().clamp(min=1e-6)
    error = errors.index_select(0, best)[0] / (_LOOSE.get(output.dtype, 1e-3) * size)
    constant = None
    if any(bias is not None for bias in biases):
        constant = constants.index_select(0, best)[0]
    return (actual + (frozen - frozen.detach())).to(output.dtype), constant, error


def _check_norm(norm: nn.Module, error: float, name: str) -> None:
    """Check that a norm was explained.

    Raises:
        ModelError: If it was not.
        NumericalError: If what goes through it is NaN or infinite.
    """
    if error <= 1:
        return
    if not math.isfinite(error):
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
        UnsupportedError: In inference mode.
    """
    check_recorded(
        model._module, instead=": how far a component moves a logit is a gradient"
    )
    places = Places.of(case.readout)
    kept, read_at = keep_logits(model, case.readout.positions)
    shape = (case.n_items, int(case.encoding["input_ids"].shape[1]))
    rows: dict[int, Tensor] = {}
    head_values: dict[int, Tensor] = {}
    learned: dict[int, Any] = {}
    with (
        model.alone(),
        open_direct_path(model, places, shape) as path,
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
    path.check_norms()
    values = case.readout.values(path.logits(final), places=read_at)
    run = DirectRun(
        values=values.detach(),
        heads={},
        blocks={name: torch.zeros_like(values.detach()) for name in path.blocks},
        embedding=torch.zeros_like(values.detach()),
        between=torch.zeros_like(values.detach()),
        bias=torch.zeros_like(values.detach()),
        slopes={},
        outputs={layer: z.detach() for layer, z in path.heads.items()},
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
    assert path.embedding is not None
    tensors = [
        *path.heads.values(),
        *path.blocks.values(),
        path.embedding,
        *(zero for zero, _ in path.between),
        *(output for output, _, _ in path.biases),
    ]
    for targets in readout.passes():
        slopes = torch.autograd.grad(
            values[targets].sum(), tensors, retain_graph=True, allow_unused=True
        )
        given = iter(slopes)
        for layer in path.heads:
            _keep_slope(run, layer, next(given), targets)
        for name, leaf in path.blocks.items():
            run.blocks[name][targets] = _effect(places, targets, leaf, next(given))
        run.embedding[targets] = _effect(places, targets, path.embedding, next(given))
        for _, added in path.between:
            run.between[targets] += _effect(places, targets, added, next(given))
        for _, bias, whole in path.biases:
            slope = next(given)
            if whole and slope is not None:
                slope = _at_places(places, slope, read_at)
            run.bias[targets] += _effect(places, targets, bias, slope)
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
    taken = slope.float()
    for t in targets:
        own = run.places.of_targets[t]
        run.slopes[layer][t, own] = taken[own]


def _at_places(places: Places, slope: Tensor, read_at: Tensor | None) -> Tensor:
    """Pick the places out of the slopes of logits, of all positions or of some."""
    positions = places.positions
    if read_at is not None:
        positions = torch.searchsorted(read_at.cpu(), positions.cpu())
    device = slope.device
    return slope[places.items.to(device), positions.to(device)]


def _effect(
    places: Places, targets: list[int], written: Tensor, slope: Tensor | None
) -> Tensor:
    """Compute what something written does to targets, `[place ...]` or a constant."""
    if slope is None:
        return torch.zeros(len(targets), device=written.device)
    effect = written.detach().float() * slope.float()
    return places.sum(effect.flatten(1).sum(-1), targets)
