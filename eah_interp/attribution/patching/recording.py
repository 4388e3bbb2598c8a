"""A run as it passed its hook points, to be run again in part."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from eah_interp.attribution.cases.places import keep_logits
from eah_interp.attribution.cases.pose import Case
from eah_interp.attribution.cases.readouts import TargetValues
from eah_interp.interventions.donation import apply_patch, plan_patch
from eah_interp.interventions.patches import LayerPatch
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.anatomy import attention_operation, walk_sites
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.components import block_paths
from eah_interp.lvlm.worker import Prompt, prompt_of_worker


@dataclass
class Recording:
    """What one run of one item passed on at its hook points.

    Attributes:
        case: The item.
        eah: How it was patched; None for a plain run.
        values: Its targets.
        prompt: Where its images and its padding are.
        patches: Who donated, by patched layer.
        heads: Each layer's head outputs, `[1 query head d_value]`.
        calls: Each layer's attention call as the model made it, before any patch.
        blocks: Output of every other component, by path.
        leaving: What each layer returned.
        decoder: Arguments that the decoder was called with.
    """

    case: Case
    eah: EAH | None
    values: TargetValues
    prompt: Prompt | None = None
    patches: dict[int, LayerPatch] = field(default_factory=dict)
    heads: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[int, AttentionCall] = field(default_factory=dict)
    blocks: dict[str, Tensor] = field(default_factory=dict)
    leaving: list[Any] = field(default_factory=list)
    decoder: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})


def record(model: Any, case: Case, eah: EAH | None = None) -> Recording:
    """Run one item, plain or patched, and keep what later runs may need.

    Args:
        model: An LVLM.
        case: One item.
        eah: Settings of a patched run.

    Returns:
        The recording, on the model's device.
    """
    kept, read_at = keep_logits(model, case.readout.positions)
    done = Recording(case, eah, torch.zeros(0))
    handles = _hook(model, done)
    try:
        with torch.no_grad(), model.trace(**case.inputs, **kept, use_cache=False):
            prompt = prompt_of_worker(model).limit(case.prompt_mask)
            for site in walk_sites(model.anatomy):
                operation = attention_operation(model, site)
                call = AttentionCall.parse(operation.inputs)
                done.calls[site.layer] = call
                done.prompt = prompt.fit(call)
                if eah is not None and site.layer in eah.layers:
                    patch = plan_patch(eah, call, done.prompt, layer=site.layer)
                    apply_patch(eah, operation, call, done.prompt, patch)
                    done.patches[site.layer] = patch
                done.heads[site.layer] = operation.output[0]
            final = model.output.logits.save()
    finally:
        for handle in handles:
            handle.remove()
    done.values = case.readout.values(final, places=read_at)
    return done


def _hook(model: Any, done: Recording) -> list[Any]:
    """Keep the decoder's arguments, and what layers and components return."""
    root: nn.Module = model._module
    anatomy = model.anatomy

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        del module
        done.decoder = (args, {k: _snapshot(v) for k, v in kwargs.items()})

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        done.leaving.append(output)

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            done.blocks[name] = output[0] if isinstance(output, tuple) else output

        return hook

    decoder = root.get_submodule(anatomy.layers.rpartition(".")[0])
    handles = [decoder.register_forward_pre_hook(enter, with_kwargs=True)]
    for layer in root.get_submodule(anatomy.layers).children():
        handles.append(layer.register_forward_hook(leave))
    for name in block_paths(root, anatomy):
        handles.append(root.get_submodule(name).register_forward_hook(keep(name)))
    return handles


def _snapshot(value: Any) -> Any:
    """Copy what a run may fill in: states that layers share by way of a dict."""
    return dict(value) if isinstance(value, dict) else value


def widen(value: Any, n_rows: int) -> Any:
    """Make what one item is run with serve for `n_rows` copies of it.

    Rows come first; before them may stand the three or four axes of multimodal
    rotary positions. What is neither (features of image tokens, all in one line) is
    repeated along its first axis. That it is right is seen by running it.
    """
    if isinstance(value, Tensor):
        if value.ndim < 2:
            return value
        if value.shape[0] in (3, 4) and value.shape[1] == 1:
            return value.repeat(1, n_rows, *(1,) * (value.ndim - 2))
        return value.repeat(n_rows, *(1,) * (value.ndim - 1))
    if isinstance(value, dict):
        return {key: widen(item, n_rows) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(widen(item, n_rows) for item in value)
    return value


def widen_prompt(prompt: Prompt, n_rows: int) -> Prompt:
    """Repeat one item's masks for every row."""
    limit = prompt.prompt_mask
    return Prompt(
        prompt.image_mask.expand(n_rows, -1),
        prompt.token_mask.expand(n_rows, -1),
        None if limit is None else limit.expand(n_rows, -1),
    )


def widen_patch(patch: LayerPatch, n_rows: int) -> LayerPatch:
    """Repeat one item's donor for every row."""
    return replace(
        patch,
        donors=patch.donors.expand(n_rows),
        patched=patch.patched.expand(n_rows),
        density=None,
        scores=None,
    )


def items_of(case: Case) -> Sequence[Case]:
    """Split a case into its items.

    Raises:
        InputError: If what belongs to each row cannot be told apart.
    """
    if case.n_items == 1:
        return [case]
    return [case.copies([item]) for item in range(case.n_items)]
