"""Run a model's hook points once, and refuse the model if they are not what they seem.

What is checked, on a prompt of a few text tokens (three plain and two patched runs):

1. plain runs give the same logits, or nearly: the largest difference between two of
   them is the model's noise, 0 for most;
2. an identity patch at every attention call changes the logits by no more than that
   noise: where it is 0, not one bit;
3. every call's output is what its queries, keys, mask, scale and sink logits explain,
   so the pattern that we score is the pattern that the model uses;
4. queries and keys written at a call read back in that call's output;
5. giving every head the pattern of one head moves the logits, by ten times the noise;
6. the image token's id, where there is one, is not negative.

A layer whose output is not its input plus what attention and MLP are thought to add
(`writers.py`) keeps its attention, and loses the names of what they add.
"""

import contextlib
import inspect
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
from nnsight.intervention.source import STATE
from torch import Tensor, nn

from eah_interp.errors import ModelError
from eah_interp.kernels.broadcast import broadcast_pattern
from eah_interp.kernels.patterns import is_abstract
from eah_interp.lvlm.anatomy import (
    Anatomy,
    AttentionSite,
    attention_operation,
    walk_sites,
)
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.layouts.grids import pair
from eah_interp.lvlm.module_hooks import first_output
from eah_interp.lvlm.runs import name_training
from eah_interp.lvlm.writers import UNKNOWN

PROBE_LENGTH = 7
"""Tokens of the prompt that hook points are verified on."""

N_PLAIN = 3
"""Plain runs that a model's noise is measured on."""

N_MORE = 5
"""Plain runs more, where an identity patch differs from all of those."""

MOST_NOISE = 1e-3
"""Noise that a model may have, in units of its logits' range."""

CLEAR = 10
"""How many times the noise a patch must move the logits that is meant to."""

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE = 5e-2


def verify_hook_points(model: Any, anatomy: Anatomy) -> None:
    """Check every hook point of a loaded model on a short prompt.

    Args:
        model: The wrapped model, weights loaded.
        anatomy: What was resolved.

    Raises:
        ModelError: At the first check that fails, naming the layer and the finding.
    """
    _check_image_token(model, anatomy)
    ids = _probe_ids(model, anatomy)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= _blank_image(model, ids)
    opened = _unopened_modules(model, anatomy)
    try:
        _check_patches(model, anatomy, inputs)
    finally:
        _close(opened)


def _check_patches(model: Any, anatomy: Anatomy, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        with _checked_sums(model._module, anatomy):
            plain = _run_plainly(model, inputs, 1)
        plain += _run_plainly(model, inputs, N_PLAIN - 1)
        _check_deterministic(model._module, plain)
        same, _ = _patched_forward(model, anatomy, inputs, move=False)
        if not _nearest(same, plain) <= _noise(plain):
            # Of kernels that race, three runs may agree by chance: ask a few more.
            plain += _run_plainly(model, inputs, N_MORE)
            _check_deterministic(model._module, plain)
        noise = _noise(plain)
        changed = _nearest(same, plain)
        if not changed <= noise:
            msg = (
                f"an identity patch at the attention calls changes the logits by "
                f"{changed:.2g}: expected {_expected(noise)}; this model does not "
                "compute the same under nnsight, so no patch of it can be exact"
            )
            raise ModelError(msg)
        moved, heads_changed = _patched_forward(model, anatomy, inputs, move=True)
    change = _nearest(moved, plain)
    # Heads of one pattern, as of an even one, return with another's what they did.
    if heads_changed and not (change > 0 and change >= CLEAR * noise):
        wanted = f", expected at least {CLEAR} times as much" if noise else ""
        msg = (
            "giving every head the pattern of one head leaves the logits unchanged "
            f"(by {change:.2g}; plain runs differ by {noise:.2g}{wanted}): what is "
            "written at the attention calls does not reach the output"
        )
        raise ModelError(msg)


def _run_plainly(model: Any, inputs: dict[str, Tensor], n_runs: int) -> list[Tensor]:
    return [model._module(**inputs, use_cache=False).logits for _ in range(n_runs)]


@contextlib.contextmanager
def _checked_sums(root: nn.Module, anatomy: Anatomy) -> Iterator[None]:
    """Drop the writers of layers that do not return the sum that they should."""
    handles: list[Any] = []
    for layer, writers in anatomy.writers.items():
        if not writers.adds_up:
            continue
        whole = root.get_submodule(f"{anatomy.layers}.{layer}")
        parts: list[Tensor] = []
        for path in (writers.attention or writers.instead, writers.mlp):
            writer = whole.get_submodule(str(path))
            handles.append(writer.register_forward_hook(_note_part(parts)))
        check = _check_sum(anatomy, layer, parts)
        handles.append(whole.register_forward_hook(check, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note_part(parts: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        parts.append(first_output(output))

    return hook


def _check_sum(anatomy: Anatomy, layer: int, parts: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        del module
        entering = args[0] if args else next(iter(kwargs.values()))
        leaving = first_output(output)
        total = entering.to(leaving.device).float()
        for part in parts:
            total = total + part.to(leaving.device).reshape(total.shape)
        parts.clear()
        allowed = _TOLERANCE.get(leaving.dtype, _COARSE)
        if not _distance(leaving, total) <= allowed * float(total.abs().max()):
            anatomy.writers[layer] = UNKNOWN

    return hook


def _check_deterministic(root: nn.Module, plain: list[Tensor]) -> None:
    """Refuse a model whose plain runs differ so much that patches drown in it."""
    first = plain[0]
    if first.isnan().any():
        msg = (
            f"a plain run gives NaN for logits, in {first.dtype}: expected numbers; "
            "load the model in another dtype, or check its weights"
        )
        raise ModelError(msg)
    # Chameleon switches logits off by the lowest number there is: no part of the range.
    on = first[first > torch.finfo(first.dtype).min / 2].float()
    size = float(on.max() - on.min()) if on.numel() else 0.0
    # One rounding of a logit in bfloat16 is more than 1e-3 of it.
    allowed = max(MOST_NOISE, 4 * torch.finfo(first.dtype).eps)
    noise = _noise(plain)
    if not noise <= allowed * size:
        training = name_training(root)
        remedy = (
            f"{training}; call model.eval()"
            if training
            else "call model.eval() if it is training, or torch."
            "use_deterministic_algorithms(True), or load it with another dtype or "
            "attn_implementation"
        )
        msg = (
            f"the model is not deterministic: plain runs of one prompt differ by "
            f"{noise:.2g}, expected at most {allowed * size:.2g} ({allowed:.2g} of the "
            f"logits' range), so what a patch changes cannot be told from noise; "
            f"{remedy}"
        )
        raise ModelError(msg)


def _noise(plain: list[Tensor]) -> float:
    """Return the largest difference between two plain runs."""
    return max(_distance(a, b) for a, b in combinations(plain, 2))


def _nearest(run: Tensor, plain: list[Tensor]) -> float:
    """Return a run's difference from the plain run that it is most like."""
    return min(_distance(run, other) for other in plain)


def _expected(noise: float) -> str:
    return f"at most {noise:.2g}, as between plain runs" if noise else "exactly 0"


def _unopened_modules(model: Any, anatomy: Anatomy) -> list[nn.Module]:
    """List the attention modules that nnsight has not opened to operations yet."""
    modules = [model._module.get_submodule(s.path) for s in walk_sites(anatomy)]
    return [m for m in modules if not getattr(vars(m).get(STATE), "sourced", False)]


def _close(modules: list[nn.Module]) -> None:
    """Give modules their plain forward back.

    nnsight leaves a module open for good once an operation of its was read, and every
    later trace then stops at each of them, read or not. It opens again what is read
    again.
    """
    for module in modules:
        state = vars(module).get(STATE)
        if state is not None and state.sourced:
            state.body, state.compiled, state.sourced = state.original, None, False


def _patched_forward(
    model: Any,
    anatomy: Anatomy,
    inputs: dict[str, Tensor],
    *,
    move: bool,
) -> tuple[Tensor, bool]:
    """Run with every attention call rewritten; check each call's output on the way.

    Returns:
        The logits, and whether the rewriting changed what any attention call returns.
    """
    changed: list[bool] = []  # appended to: a trace does not hand back what it rebinds
    with model.trace(**inputs, use_cache=False):
        for site in walk_sites(anatomy):
            operation = attention_operation(model, site)
            call = AttentionCall.parse(operation.inputs)
            if move and call.n_heads > 1:
                donors = torch.full_like(call.queries[:, 0, 0, 0], call.n_heads - 1)
                wanted = _attend_like(call, donors.long())
                own = call.attend_with(lambda block: block.weights)
                changed.append(_distance(wanted, own) > 0)
                if call.sinks_are_weights:
                    operation.output = (wanted, *operation.output[1:])
                    continue
                call = call.broadcast(donors.long())
            operation.inputs = call.inputs
            _check_explained(f"layer {site.layer}", call, operation.output)
        logits: Tensor = model.output.logits.save()
    return logits, any(changed)


def _attend_like(call: AttentionCall, donors: Tensor) -> Tensor:
    return call.attend_with(lambda block: broadcast_pattern(block.weights, donors))


def verify_tower_call(model: Any, site: AttentionSite, call: AttentionCall) -> None:
    """Check that a tower's call is explained by its pattern, once for each layer.

    Loading looks at no image, and nobody who does not ask for the tower's attention
    waits for it: it is checked on the first call that somebody reads, with the model's
    own attention function, before the model itself makes the call.

    Args:
        model: The traced model.
        site: The layer of the tower.
        call: What its attention is given.

    Raises:
        ModelError: If queries, keys, mask and scale do not explain what it returns.
    """
    backend = str(
        getattr(getattr(call.module, "config", None), "_attn_implementation", "")
    )
    checked = model.anatomy.checked
    if (site.layer, backend) in checked or not getattr(model, "_verify", True):
        return
    if is_abstract(call.queries):
        return
    with torch.no_grad():
        own = call.detach()
        _check_explained(f"layer {site.layer} of the vision tower", own, own.attend())
    checked.add((site.layer, backend))


def _check_explained(where: str, call: AttentionCall, output: Any) -> None:
    actual = output[0] if isinstance(output, tuple | list) else output
    expected = _explain(call)
    if actual.shape != expected.shape:
        msg = (
            f"the attention call of {where} returns shape "
            f"{tuple(actual.shape)}: expected [batch query head d_value] = "
            f"{tuple(expected.shape)}"
        )
        raise ModelError(msg)
    allowed = _TOLERANCE.get(actual.dtype, _COARSE)
    size = float(expected.float().abs().max())
    distance = _distance(actual, expected)
    if not distance <= allowed * max(size, 1e-6):
        msg = (
            f"the attention of {where} is not explained by its queries, "
            f"keys, mask and scale: off by {distance:.2g} on outputs of size "
            f"{size:.2g} (allowed {allowed:g} of it). The layer uses something else "
            "besides (learned sinks or a bias that its call does not show), so its "
            "pattern cannot be scored or broadcast exactly"
        )
        raise ModelError(msg)


def _explain(call: AttentionCall) -> Tensor:
    """Attend with the pattern that queries, keys, mask and scale give."""
    mask = call.packing
    if mask is None:
        return call.attend_with(lambda block: block.weights)
    found = call.by_parts().attend_with(lambda block: block.weights)
    return mask.join(found, axis=1)


def _check_image_token(model: Any, anatomy: Anatomy) -> None:
    token = anatomy.image_token_id
    if token is not None and token < 0:
        size = _count_tokens(model)
        msg = f"image_token_id={token} is not a token; vocabulary of {size}"
        raise ModelError(msg)


def _blank_image(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Make the image that a forward insists on, of which no token of the text tells.

    BLIP-2, InstructBLIP and Kosmos-2 take no call without one.
    """
    parameters = inspect.signature(type(model._module).forward).parameters
    required = {p.name for p in parameters.values() if p.default is p.empty}
    blank: dict[str, Tensor] = {}
    if "image_embeds_position_mask" in parameters:  # Kosmos-2: features of no position
        width = model._module.get_input_embeddings().embedding_dim
        blank["image_embeds"] = torch.zeros(1, 0, width, device=ids.device)
        blank["image_embeds_position_mask"] = torch.zeros_like(ids)
    if "pixel_values" in required:
        size = pair(model._module.config.vision_config.image_size)
        pixels = torch.zeros(1, 3, *size, dtype=model._module.dtype, device=ids.device)
        blank["pixel_values"] = pixels
    if "qformer_input_ids" in required:
        blank["qformer_input_ids"] = torch.zeros_like(ids)
    return blank


def _probe_ids(model: Any, anatomy: Anatomy) -> Tensor:
    """Choose plain text tokens, spread over the vocabulary, no special ones."""
    size = _count_tokens(model)
    special = set(getattr(model.tokenizer, "all_special_ids", None) or ())
    special.add(anatomy.image_token_id)
    wanted = torch.linspace(size // 10, size - 1 - size // 10, PROBE_LENGTH).long()
    ids = []
    for start in wanted.tolist():
        token = start
        while token in special and token + 1 < size:
            token += 1
        ids.append(token)
    return torch.tensor([ids], device=model.device)


def _count_tokens(model: Any) -> int:
    # An adapter's embedding has its parts' weights, and no number of its own.
    embedding = model._module.get_input_embeddings()
    embedding = getattr(embedding, "base_layer", embedding)
    return int(embedding.num_embeddings)


def _distance(a: Tensor, b: Tensor) -> float:
    # Equal infinities have no difference, but inf - inf is NaN.
    return float((a.float() - b.float()).abs().masked_fill(a == b, 0).max())
