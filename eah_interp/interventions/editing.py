"""Interventions at attention calls, in the trace that they are called in."""

import contextlib
from dataclasses import dataclass
from typing import Any

import nnsight
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import ModelError, UnsupportedError
from eah_interp.interventions.intervention import Intervention
from eah_interp.interventions.point import PatchPoint
from eah_interp.lvlm.anatomy import AttentionSite, attention_operation, envoy_at
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.rows import Rows
from eah_interp.lvlm.runs import PatchedCall, promise
from eah_interp.lvlm.worker import memory_of_worker, prompt_of_worker


@dataclass(frozen=True)
class Patch:
    """What an intervention did in a forward pass.

    Attributes:
        settings: The settings.
        layers: The layers that it was at, in order.
        learned: What it learned from the prompt, by layer: VAR's sink tokens, `[batch,
            position]`; a mean ablation's means, `[batch, 1, head, d_value]`.
    """

    settings: Intervention
    layers: tuple[int, ...]
    learned: dict[int, Tensor]


def patch_run(
    model: Any,
    settings: Intervention,
    sites: list[AttentionSite],
    *,
    image_mask: ColumnMask | None = None,
    prompt_mask: ColumnMask | None = None,
) -> Patch:
    """Patch the forward pass of the trace it is called in; see `intervene`.

    Args:
        model: The traced model.
        settings: What to do.
        sites: Where.
        image_mask: As for `intervene`.
        prompt_mask: As for `intervene`.

    Returns:
        What was done, saved.

    Raises:
        UnsupportedError: If it comes too late.
    """
    memory = memory_of_worker()
    promise(model.interleaver, memory, settings)
    whole = prompt_of_worker(model, image_mask=image_mask).limit(prompt_mask)
    learned: dict[int, Tensor] = {}
    for site in sites:
        operation = PatchedCall(attention_operation(model, site), layer=site.layer)
        key = (site.layer, settings)
        is_first = key not in memory.learned
        if is_first and operation.step > 0:
            _check_late_start(settings, step=operation.step)
        wants_stream = is_first and settings.reads_stream
        stream = _read_stream(model, site) if wants_stream else None
        call = AttentionCall.parse(operation.inputs)
        operation.check_rows(call.queries.shape[0])
        prompt = whole.fit(call, generated=operation.step)
        point = PatchPoint(
            layer=site.layer,
            operation=operation,
            call=call,
            prompt=prompt,
            rows=Rows.of(
                prompt, call, width=whole.image_mask.shape[1], step=operation.step
            ),
            step=operation.step,
            kept=memory.learned.get(key),
        )
        if is_first:
            memory.learned[key] = settings.learn(point, stream)
            point.kept = memory.learned[key]
        if point.kept is not None:
            learned[site.layer] = point.kept
        if is_first or settings.steps == "all":
            settings.apply_at(point)
    memory.steps[settings] = memory.steps.get(settings, 0) + 1
    result = Patch(settings, tuple(site.layer for site in sites), learned)
    # A stored edit that runs under a plain `generate` has no trace to return to.
    with contextlib.suppress(ValueError):
        nnsight.save(result)
    return result


def _check_late_start(settings: Intervention, *, step: int) -> None:
    if settings.steps == "prefill" or settings.needs_prompt:
        name = type(settings).__name__
        msg = (
            f"{name} was called first at step {step}, but it needs the prompt, which "
            "step 0 reads; call it from step 0 on, as in `for _ in tracer.iter[:]`"
        )
        raise UnsupportedError(msg)


def _read_stream(model: Any, site: AttentionSite) -> Tensor:
    """Read what enters a decoder layer."""
    envoy = envoy_at(model, site.layer_path)
    worker = Mediator.current("a decoder layer")
    location = f"{envoy.path}.input"
    if worker.occurrence(location) > worker.wanted(location):
        msg = (
            f"layer {site.layer} has already begun: intervene before anything is read "
            "from this layer or a later one"
        )
        raise UnsupportedError(msg)
    stream = envoy.input
    if not isinstance(stream, Tensor) or stream.ndim != 3:
        got = tuple(stream.shape) if isinstance(stream, Tensor) else type(stream)
        msg = (
            f"{site.layer_path} takes no residual stream [batch, position, d_model]: "
            f"got {got}; sink tokens cannot be found in this model"
        )
        raise ModelError(msg)
    return stream
