"""EAH as an activation patch, inside any nnsight trace."""

import contextlib
from typing import Any

import nnsight

from eah_interp._types import ColumnMask
from eah_interp.interventions.donation import apply_patch, patched_items, plan_patch
from eah_interp.interventions.patches import EAHPatch, LayerPatch
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.anatomy import attention_operation
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.worker import PROMISES, memory_of_worker, prompt_of_worker


def intervene(
    model: Any,
    eah: EAH | None = None,
    *,
    image_mask: ColumnMask | None = None,
) -> EAHPatch:
    """Patch the forward pass of the trace it is called in.

    The broadcast is written at the inputs of the attention call: every recipient
    gets the donor's query and key, hence exactly the donor's pattern, and keeps its
    own values. No pattern is materialised, whatever the attention backend. Like any
    read or write in a trace, it comes before what lies in later layers.

    Args:
        model: The traced model.
        eah: Settings; `EAH()` when None.
        image_mask: `[batch, position]`, True at image tokens, where they cannot be
            found from `input_ids`.

    Returns:
        Donors, densities and scores by layer, saved: usable after the trace.

    Raises:
        UnsupportedError: Outside a trace.
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
    sites = [model.anatomy.site(layer) for layer in eah.layers]
    eah.check_fits(n_heads=model.anatomy.n_heads)
    if eah.steps == "all" and memory.steps.get(eah, 0) == 0:
        getattr(model.interleaver, PROMISES, []).append(memory)
    whole = prompt_of_worker(model, image_mask=image_mask)
    done = []
    for site in sites:
        operation = attention_operation(model, site)
        call = AttentionCall.parse(operation.inputs)
        prompt = whole.fit(call)
        key = (site.layer, eah)
        is_prefill = key not in memory.donors
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


def edit(model: Any, eah: EAH | None = None) -> Any:
    """Make a patched twin of a model: EAH in every later trace and generation.

    The original stays as it is; weights are shared.

    Args:
        model: An LVLM.
        eah: Settings; `EAH()` when None.

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
    for layer in eah.layers:
        model.anatomy.site(layer)
    eah.check_fits(n_heads=model.anatomy.n_heads)
    if eah.steps == "prefill":
        with model.edit() as (_, edited):
            intervene(edited, eah)
    else:
        with model.edit() as (tracer, edited):
            for _ in tracer.iter[:]:
                intervene(edited, eah)
        edited.loops_openly = True
    return edited
