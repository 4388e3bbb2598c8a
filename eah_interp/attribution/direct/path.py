"""The model with everything frozen but the direct path to its logits.

What a component writes into the residual stream reaches the logits directly through
additions, norms and the unembedding. With every norm's scale frozen at its value and
every other component's input cut off, the logits are an affine function of what the
components wrote, and autograd gives its slope: no architecture has to be known beyond
which modules are norms. What is a norm is checked by recomputing it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eah_interp.errors import ModelError
from eah_interp.lvlm.anatomy import Anatomy
from eah_interp.lvlm.components import block_paths, norm_paths

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
    """

    heads: dict[int, Tensor] = field(default_factory=dict)
    blocks: dict[str, Tensor] = field(default_factory=dict)
    entering: list[Tensor] = field(default_factory=list)
    leaving: list[Tensor] = field(default_factory=list)
    biases: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    unembedded: Tensor | None = None

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
            handles.append(proj.register_forward_hook(_note_bias(path)))
    unembedding = root.get_submodule(str(anatomy.unembedding))
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


def _note_bias(path: DirectPath) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        del args
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            path.biases.append((output, bias.detach()))

    return hook


def _note_logits(path: DirectPath) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        path.unembedded = output
        _note_bias(path)(module, args, output)

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

    Example:
        >>> norm, x = nn.LayerNorm(4), torch.randn(2, 4, requires_grad=True)
        >>> frozen, bias = linearise_norm(norm, x, norm(x))
        >>> bool((frozen == norm(x)).all()), bias.tolist()
        (True, [0.0, 0.0, 0.0, 0.0])
    """
    eps = float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)) or 0.0)
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    bias = bias.detach().float() if isinstance(bias, Tensor) else None
    wide = stream.float()
    centred = wide - wide.mean(-1, keepdim=True)
    gains: list[Any] = [1.0]
    if isinstance(weight, Tensor):
        gains = [weight.detach().float(), 1 + weight.detach().float()]
    actual = output.detach().float()
    candidates = []
    for direction in (wide, centred):
        scale = (direction.detach().square().mean(-1, keepdim=True) + eps).rsqrt()
        for gain in gains:
            frozen = direction * (scale * gain)
            value = frozen.detach() if bias is None else frozen.detach() + bias
            candidates.append((float((value - actual).abs().max()), frozen))
    error, frozen = min(candidates, key=lambda candidate: candidate[0])
    size = float(actual.abs().max().clamp(min=1e-6))
    if error <= _LOOSE.get(output.dtype, 1e-3) * size:
        return (actual + (frozen - frozen.detach())).to(output.dtype), bias
    msg = (
        f"{name} ({type(norm).__name__}) is neither an RMS norm nor a layer norm: its "
        "output is not explained by its input, weight and bias, so its scale cannot "
        "be frozen and direct attribution would be wrong; use exact patching"
    )
    raise ModelError(msg)
