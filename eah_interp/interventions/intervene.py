"""Interventions at attention calls, in the trace that they are called in."""

import contextlib
from dataclasses import dataclass
from typing import Any, overload

import nnsight
from nnsight.intervention.interleaver import Mediator
from nnsight.intervention.iterator import Iterations
from torch import Tensor

from eah_interp._types import ColumnMask, Donors
from eah_interp.errors import ModelError, UnsupportedError
from eah_interp.interventions.donation import apply_patch, patched_items, plan_patch
from eah_interp.interventions.eah import EAH, EAHPatch, LayerPatch
from eah_interp.interventions.intervention import Intervention, PatchPoint
from eah_interp.lvlm.anatomy import AttentionSite, attention_operation, envoy_at
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.prompt import Rows, memory_of_worker, prompt_of_worker
from eah_interp.lvlm.runs import PatchedCall, patches_of_run, promise


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


@overload
def intervene(
    model: Any,
    eah: EAH | None = None,
    *,
    image_mask: ColumnMask | None = None,
    prompt_mask: ColumnMask | None = None,
) -> EAHPatch: ...


@overload
def intervene(
    model: Any,
    eah: Intervention,
    *,
    image_mask: ColumnMask | None = None,
    prompt_mask: ColumnMask | None = None,
) -> Patch: ...


def intervene(
    model: Any,
    eah: EAH | Intervention | None = None,
    *,
    image_mask: ColumnMask | None = None,
    prompt_mask: ColumnMask | None = None,
) -> EAHPatch | Patch:
    """Patch the forward pass of the trace it is called in.

    The broadcast is written at the inputs of the attention call: every recipient
    gets the donor's query and key, hence exactly the donor's pattern, and keeps its
    own values. No pattern is materialised, whatever the attention backend. Like any
    read or write in a trace, it comes before what lies in later layers. `Ablation`,
    `PAI` and `VAR` are written at the output of the call, a block of rows at a time.

    Args:
        model: The traced model.
        eah: Settings: `EAH`, `Ablation`, `PAI` or `VAR`; `EAH()` when None.
        image_mask: `[batch, position]`, True at image tokens, where they cannot be
            found from `input_ids`.
        prompt_mask: `[batch, position]`, True at the prompt's tokens, where an answer
            follows the prompt in the same forward pass (teacher forcing). The patch
            is then the one that a generation of that answer would have had: donors
            are chosen from the prompt's rows, and with `steps="prefill"` only these
            rows are patched.

    Returns:
        Of EAH donors, densities and scores by layer, of others what they learned from
        the prompt; saved: usable after the trace.

    Raises:
        UnsupportedError: Outside a trace; after the layer has run, or at a step that
            comes too late for the settings; or where the layer's patches or the
            batch's rows could not be kept apart.
        SettingsError: If a layer or head does not exist.
        ModelError: If a layer has no attention to patch.
        InputError: If there is no image, or its tokens are not known.
        NumericalError: If attention weights are NaN or infinite.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> with model.trace(random_image(), "Is there a cat?"):
        ...     patch = eah.intervene(model, eah.EAH(layers=(1,)))
        ...     logits = model.output.logits.save()
        >>> patch.donors.shape, patch.density.shape
        (torch.Size([1]), torch.Size([1, 4]))
    """
    eah = EAH() if eah is None else eah
    memory = memory_of_worker()
    sites = find_sites(model, eah)
    if isinstance(eah, Intervention):
        return patch_run(
            model, eah, sites, image_mask=image_mask, prompt_mask=prompt_mask
        )
    promise(model.interleaver, memory, eah)
    whole = prompt_of_worker(model, image_mask=image_mask).limit(prompt_mask)
    done = []
    for site in sites:
        operation = PatchedCall(attention_operation(model, site), layer=site.layer)
        key = (site.layer, eah)
        is_prefill = key not in memory.donors
        if is_prefill and operation.step > 0:
            check_late_start(eah, step=operation.step)
        call = AttentionCall.parse(operation.inputs)
        operation.check_rows(call.queries.shape[0])
        # Each pass after the prompt's reads one token.
        prompt = whole.fit(call, generated=operation.step)
        if is_prefill:
            patch = plan_patch(eah, call, prompt, layer=site.layer)
            memory.donors[key] = patch.donors
        else:
            donors = memory.donors[key]
            patch = LayerPatch(
                site.layer, donors, patched_items(eah, donors), None, None
            )
        if is_prefill or eah.steps == "all":
            apply_patch(eah, operation, call, prompt, patch)
        done.append(patch)
    memory.steps[eah] = memory.steps.get(eah, 0) + 1
    result = EAHPatch(eah, tuple(done))
    # A stored edit that runs under a plain `generate` has no trace to return to.
    with contextlib.suppress(ValueError):
        nnsight.save(result)
    return result


def edit(model: Any, eah: EAH | Intervention | None = None) -> Any:
    """Make a patched twin of a model: patched in every later trace and generation.

    The original stays as it is; weights are shared.

    Args:
        model: An LVLM.
        eah: Settings: `EAH`, `Ablation`, `PAI` or `VAR`; `EAH()` when None.

    Returns:
        The patched LVLM.

    Raises:
        SettingsError: If a layer or head does not exist.
        ModelError: If a layer has no attention to patch.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> patched = eah.edit(model, eah.EAH(layers=(1,)))
        >>> isinstance(patched.describe(random_image(), max_new_tokens=2), str)
        True
    """
    eah = EAH() if eah is None else eah
    find_sites(model, eah)
    if eah.steps == "prefill":
        with model.edit() as (_, edited):
            intervene(edited, eah)
    else:
        with model.edit() as (_, edited):
            # `tracer.iter[:]` without the tracer, which cannot travel to a server.
            for _ in Iterations()[:]:
                intervene(edited, eah)
        edited.loops_openly = True
    return edited


def donors_of_run(model: Any) -> dict[int, Donors]:
    """Look up who donated in a model's latest run, such as a generation under `edit`.

    Args:
        model: The model that ran.

    Returns:
        Donor head of each batch item, `[batch]`, by layer; -1 where an item was not
        patched or the donor is no head (`"mean"`, `"uniform"`). Empty if EAH was not
        in the run.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.interventions import donors_of_run
        >>> from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> patched = eah.edit(model, eah.EAH(layers=(1,), donor=2))
        >>> text = patched.describe(random_image(), max_new_tokens=2)
        >>> donors_of_run(patched)
        {1: tensor([2])}
    """
    return {
        layer: donors
        for memory in patches_of_run(model)
        for (layer, _), donors in sorted(
            memory.donors.items(), key=lambda known: known[0][0]
        )
    }


def find_sites(model: Any, eah: EAH | Intervention) -> list[AttentionSite]:
    """Find the attention of the layers to patch, in a whole model.

    Raises:
        ModelError: If the model is only a part of one, or a layer has no attention.
        SettingsError: If a layer or head does not exist.
    """
    anatomy = getattr(model, "anatomy", None)
    if anatomy is None:
        where = getattr(model, "path", type(model).__name__)
        msg = (
            f"expected a model of eah_interp.load or eah_interp.wrap, got {where}: "
            "pass the whole model, not one of its modules"
        )
        raise ModelError(msg)
    if isinstance(eah, Intervention):
        config = model.config.get_text_config(decoder=True)
        eah.check_fits(n_heads=anatomy.n_heads, d_model=config.hidden_size)
        return eah.find_sites(anatomy)
    sites = [anatomy.site(layer) for layer in eah.layers]
    eah.check_fits(n_heads=anatomy.n_heads)
    return sites


def check_late_start(eah: EAH, *, step: int) -> None:
    """See that a patch can begin after the prompt was read.

    Raises:
        UnsupportedError: If it is a patch of the prompt, or takes its donors from it.
    """
    if eah.steps == "prefill":
        msg = (
            f'called at step {step}, but steps="prefill" patches the prompt, which '
            'step 0 reads; call it at step 0, or use steps="all"'
        )
        raise UnsupportedError(msg)
    if eah.needs_scores:
        msg = (
            f"called first at step {step}, but the {eah.donor} donor is chosen from "
            "the prompt, which step 0 reads; call it from step 0 on, as in "
            "`for _ in tracer.iter[:]`, or name a head, as in EAH(donor=0)"
        )
        raise UnsupportedError(msg)
