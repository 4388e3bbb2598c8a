"""A model's weights: whether a checkpoint has them all, where they are, what they say.

Everything that reads a weight outside its module's own forward pass reads it here. It
may be on another device, which accelerate brings it from when the module is called, or
in fewer bits, or spread over an adapter's parts.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eah_interp.errors import ModelError, UnsupportedError
from eah_interp.lvlm.adapters import is_adapted

# ---- Weights that a checkpoint lacks: refused, where transformers makes random ones.


@contextlib.contextmanager
def checking_weights(*, allow_missing: bool) -> Iterator[None]:
    """Check that what is loaded in the block has the weights of a checkpoint, and all.

    nnsight and the pipelines of transformers load by `from_pretrained` and drop what
    it tells of missing weights, so it is asked there. What the model's class knows to
    be absent from checkpoints (tied weights, say) is not missing.

    Args:
        allow_missing: Let them pass.

    Raises:
        ModelError: If weights are missing, have another shape, or are of layers or
            biases that the config leaves out.
    """
    plain = PreTrainedModel.__dict__["from_pretrained"]
    found: list[tuple[nn.Module, dict[str, Any]]] = []

    def load_and_tell(cls: type, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.pop("output_loading_info", False)
        # Those of another shape too: by itself transformers raises for them, and its
        # pipeline then tries one class after the other.
        kwargs["ignore_mismatched_sizes"] = True
        loaded = plain.__get__(None, cls)(*args, output_loading_info=True, **kwargs)
        found.append(loaded)
        _name_a_device_first(loaded[0])
        return loaded if asked else loaded[0]

    PreTrainedModel.from_pretrained = classmethod(load_and_tell)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = plain
    # The last is the whole model: a part that it loads for itself comes before.
    if found and not allow_missing:
        _refuse_missing(found[-1][1])
        _refuse_left_out(*found[-1])


def _refuse_missing(info: dict[str, Any]) -> None:
    found = []
    missing = sorted(info["missing_keys"])
    if missing:
        found.append(f"it lacks {len(missing)} ({_list_some(missing)})")
    shapes = [
        f"{name}: {tuple(held)} in place of {tuple(wanted)}"
        for name, held, wanted in sorted(info["mismatched_keys"])
    ]
    if shapes:
        found.append(f"{len(shapes)} have another shape ({_list_some(shapes)})")
    if found:
        msg = (
            "expected a checkpoint with all of the model's weights: "
            f"{' and '.join(found)}, which would be random; get the whole checkpoint "
            "of this architecture, or pass allow_missing=True"
        )
        raise ModelError(msg)


def _refuse_left_out(model: nn.Module, info: dict[str, Any]) -> None:
    left_out = sorted(
        filter(lambda name: _is_cut(model, name), info["unexpected_keys"])
    )
    if left_out:
        msg = (
            "expected a config of all that the checkpoint has: by this one "
            f"{len(left_out)} of its weights have no place ({_list_some(left_out)}), "
            "so that another model would run; load it with its own config, or pass "
            "allow_missing=True"
        )
        raise ModelError(msg)


def _is_cut(model: nn.Module, name: str) -> bool:
    """Tell whether a weight without a place belongs to a part that the model has.

    Such as a layer beyond the last one, or a bias where the config has none. What is no
    part of the model at all (a head for another task, an old buffer) changes nothing.
    """
    *owners, leaf = name.split(".")
    module = model
    for owner in owners:
        length = len(module) if isinstance(module, nn.ModuleList) else None
        if length is not None and owner.isdecimal() and int(owner) >= length:
            return True
        inner = getattr(module, owner, None)
        if not isinstance(inner, nn.Module):
            return False
        module = inner
    has_weights = any(True for _ in module.parameters(recurse=False))
    computes = has_weights and not any(True for _ in module.children())
    return computes and getattr(module, leaf, None) is None


def _list_some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# ---- Weights that accelerate keeps on the CPU or the disk between a module's calls.


@contextlib.contextmanager
def at_hand(module: nn.Module) -> Iterator[None]:
    """Put a module's own weights where it computes, as in its forward pass.

    Args:
        module: Any module; outside its own forward pass.
    """
    away = _bringing_hooks(module)
    try:
        for hook in away:
            hook.pre_forward(module)
        yield
    finally:
        for hook in reversed(away):
            hook.post_forward(module, None)


def read_weights(module: nn.Module) -> dict[str, Tensor]:
    """Read a module's own parameters and buffers, wherever they are kept.

    Args:
        module: Any module; those of its submodules are not its own.

    Returns:
        Its tensors by name, detached, on the device that it computes on.

    Raises:
        ModelError: If they have no numbers: the model was built without weights, or
            they come and go with a module above this one.

    Example:
        >>> sorted(read_weights(nn.Linear(2, 2)))
        ['bias', 'weight']
    """
    with at_hand(module):
        own = {n: p.detach() for n, p in module.named_parameters(recurse=False)}
        own |= {n: b.detach() for n, b in module.named_buffers(recurse=False)}
    empty = [name for name, tensor in own.items() if tensor.is_meta]
    if empty:
        msg = (
            f"the {' and '.join(empty)} of a {type(module).__name__} are not at hand: "
            "expected weights on a device, or kept away by accelerate's hook of that "
            "module; load the model without preload_module_classes"
        )
        raise ModelError(msg)
    return own


def list_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """List a model's parameters and buffers by name, wherever they are kept.

    Args:
        model: Any model.

    Yields:
        What `state_dict()` has, by name, those kept away brought back one by one.

    Raises:
        ModelError: If one has no numbers.
        UnsupportedError: If reading them would change the model.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            msg = (
                "bitsandbytes has repacked 4-bit weights for this CPU, and its "
                "state_dict() would turn them into others: expected weights that can "
                "be read; use a GPU, 8 bits, or no quantisation"
            )
            raise UnsupportedError(msg)
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_meta:
            yield name, tensor
            continue
        owner, _, own = name.rpartition(".")
        yield name, read_weights(model.get_submodule(owner))[own]


def find_device(model: nn.Module) -> torch.device:
    """Find the device that a model's inputs go to.

    Args:
        model: Any model, or a part of one.

    Returns:
        Where its first weights are; where those are kept away, where it computes.

    Example:
        >>> find_device(nn.Linear(2, 2))
        device(type='cpu')
    """
    first = next(iter(model.parameters()), None)
    if first is not None and not first.is_meta:
        return first.device
    for module in model.modules():
        for hook in _bringing_hooks(module):
            if hook.execution_device is not None:
                # accelerate names a GPU by its number alone
                return torch.device(hook.execution_device)
    return torch.device("cpu") if first is None else first.device


def is_kept_away(model: nn.Module) -> bool:
    """Return whether accelerate keeps some of a model's weights off its device."""
    return any(_bringing_hooks(module) for module in model.modules())


@contextlib.contextmanager
def as_dispatched(model: nn.Module) -> Iterator[None]:
    """Let a pipeline of transformers take a model whose weights are kept away.

    A pipeline moves a model to its device unless it has a device map; `cpu_offload` and
    `disk_offload` leave none. Of a map it takes the first place for a device, which
    "disk" is not.
    """
    has_map = getattr(model, "hf_device_map", None) is not None
    if has_map:
        _name_a_device_first(model)
    if has_map or not is_kept_away(model):
        yield
        return
    model.hf_device_map = {"": str(find_device(model))}  # type: ignore[assignment]
    try:
        yield
    finally:
        del model.hf_device_map


def _name_a_device_first(model: Any) -> None:
    places = getattr(model, "hf_device_map", None)
    if places and next(iter(places.values())) == "disk":
        # The order says nothing; a map of the disk alone computes on the main device.
        on_device = {name: place for name, place in places.items() if place != "disk"}
        if on_device:
            model.hf_device_map = on_device | places


def _bringing_hooks(module: nn.Module) -> list[Any]:
    """List accelerate's hooks of a module that bring its weights when it is called."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))  # several in a row are one hook
    return [one for one in hooks if getattr(one, "offload", False)]


# ---- Weights in fewer bits, and linear maps that are more than one matrix.


def name_quantised(module: nn.Module) -> str:
    """Name how a module's own weights are quantised; nothing if they are not.

    Example:
        >>> name_quantised(nn.Linear(2, 2))
        ''
    """
    for parameter in module.parameters(recurse=False):
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            return str(parameter.dtype).removeprefix("torch.")
        kind = type(parameter.data)  # that shows the dtype which it computes in
        if kind.__module__.partition(".")[0] in ("torchao", "optimum"):
            return kind.__name__
    is_linear = hasattr(module, "in_features") or hasattr(module, "infeatures")
    has_none = not isinstance(getattr(module, "weight", None), Tensor)
    # Aria's projector has a width, and linear layers of its own
    holds_others = any(type(child) is nn.Linear for child in module.modules())
    if is_linear and has_none and not holds_others:
        return "packed"
    return ""


def check_recorded(model: nn.Module, *, instead: str) -> None:
    """Check that torch keeps what gradients are computed from.

    Args:
        model: The model.
        instead: What does without gradients.

    Raises:
        UnsupportedError: If inference mode is on, or its weights were made in it.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    frozen = [name for name, tensor in tensors if tensor.is_inference()]
    if torch.is_inference_mode_enabled() or frozen:
        where = "this runs" if not frozen else f"{frozen[0]} was made"
        msg = (
            f"gradients were switched off for good: {where} in torch.inference_mode(); "
            "expected torch.no_grad() at most. Leave that block (and load the model "
            f"outside it){instead}"
        )
        raise UnsupportedError(msg)


def find_quantised(model: nn.Module) -> tuple[str, nn.Module, str] | None:
    """Find the first module of a model, itself included, whose weights are quantised.

    Returns:
        Its path, the module, and how they are; None if there is none.
    """
    for path, module in model.named_modules():
        found = name_quantised(module)
        if found:
            return path, module, found
    return None


def read_constant(module: nn.Module, *, dtype: torch.dtype) -> Tensor | None:
    """Read what a linear module adds to any input.

    Of an adapter, or of quantised weights, it is what becomes of zeros.

    Args:
        module: A linear module.
        dtype: What it is given.

    Returns:
        The constant, float32; None if there is none.

    Example:
        >>> read_constant(nn.Linear(2, 2, bias=False), dtype=torch.float32) is None
        True
    """
    width = getattr(module, "in_features", None)
    if width is None or not (is_adapted(module) or find_quantised(module)):
        bias = read_weights(module).get("bias")
        return None if bias is None else bias.float()
    with torch.no_grad():
        zeros = torch.zeros(1, 1, width, dtype=dtype, device=find_device(module))
        constant: Tensor = module.forward(zeros)[0, 0].float()
    return constant if bool(constant.any()) else None


def check_plain(model: nn.Module, *, for_what: str) -> None:
    """Refuse a model whose weights cannot be handed on as they are.

    Args:
        model: Any model.
        for_what: What hands them on, as errors call it.

    Raises:
        UnsupportedError: If they are quantised, hold an adapter, or are kept away.
    """
    quantised = find_quantised(model)
    adapted = [name for name, module in model.named_modules() if is_adapted(module)]
    if quantised is not None:
        found = f"{quantised[0]} has quantised weights ({quantised[2]})"
        remedy = "load the model without quantisation"
    elif adapted:
        found = f"{adapted[0]} holds an adapter"
        remedy = "merge it first (PEFT's merge_and_unload)"
    elif is_kept_away(model):
        found = "accelerate keeps some of its weights off the device"
        remedy = "load the model without offload"
    else:
        return
    msg = f"{for_what} needs a model's plain weights, and {found}: {remedy}"
    raise UnsupportedError(msg)


class _Transposed(torch.autograd.Function):
    """Return an output as it is, with the gradient of the matrix that made it."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, output: Tensor, module: nn.Module) -> Tensor:
        ctx.module, ctx.like = module, given.new_zeros(0)
        ctx.width = given.shape[-1]
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = slopes
        parts = [
            slope.float() @ rows.to(slope.device).T
            for rows in _ask_rows(ctx.module, ctx.width, ctx.like)
        ]
        return torch.cat(parts, -1).to(ctx.like.dtype), None, None


def with_slope(module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
    """Give the output of a quantised linear module the gradient of its matrix.

    Kernels for quantised weights have no gradient, or one of another rounding. The
    matrix is read through the module, by asking it for its rows, when the gradient is
    computed: whatever it is made of, and wherever that is kept. Only some of it is in
    memory at a time.

    Args:
        module: A linear module.
        given: What it was given.
        output: What it returned.

    Returns:
        The same output.

    Example:
        >>> linear, x = nn.Linear(2, 2), torch.ones(1, 3, 2, requires_grad=True)
        >>> with_slope(linear, x, linear(x).detach()).sum().backward()
        >>> bool(torch.isclose(x.grad[0, 0], linear.weight.sum(0)).all())
        True
    """
    apply: Any = _Transposed.apply
    made: Tensor = apply(given, output.detach(), module)
    return made


AT_ONCE = 256
"""Rows of a matrix that are asked for together."""


@torch.no_grad()
def _ask_rows(module: nn.Module, width: int, like: Tensor) -> Iterator[Tensor]:
    """Ask a linear module for its matrix, some `[input output]` rows at a time."""
    device = find_device(module)
    constant = module.forward(like.new_zeros(1, 1, width, device=device)).float()
    for start in range(0, width, AT_ONCE):
        rows = torch.eye(width, dtype=like.dtype, device=device)
        rows = rows[start : start + AT_ONCE]
        yield (module.forward(rows[None]).float() - constant)[0]
