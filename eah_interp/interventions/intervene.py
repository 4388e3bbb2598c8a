"""One loop over a run's layers: patched as they come, in the trace it is called in."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar, overload

import nnsight
from nnsight.intervention.interleaver import Mediator
from nnsight.intervention.iterator import Iterations
from torch import Tensor

from eah_interp._types import ColumnMask, Donors, SinkColumns, Tower
from eah_interp.arguments import by_name, rename_keywords
from eah_interp.errors import ModelError, UnsupportedError
from eah_interp.indices import check_choice
from eah_interp.interventions.donation import LayerPatch
from eah_interp.interventions.eah import EAH, EAHPatch
from eah_interp.interventions.in_tower import (
    InTower,
    check_tower_settings,
    intervene_in_tower,
)
from eah_interp.interventions.intervention import Intervention, Patch
from eah_interp.interventions.kind_marks import KindMarks, find_marks
from eah_interp.interventions.point import PatchPoint
from eah_interp.interventions.stream import StreamPoint, TowerPoint, find_step
from eah_interp.kernels.sinks import check_image_columns
from eah_interp.lvlm.anatomy import (
    AttentionSite,
    StreamSite,
    attention_operation,
    check_settings,
    envoy_at,
    name_model,
)
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.prompt import (
    Memory,
    Prompt,
    memory_of_worker,
    prompt_of_worker,
)
from eah_interp.lvlm.runs import (
    PatchedCall,
    check_alone,
    check_mode,
    passes_of,
    patches_of_run,
    promise,
    wants_attentions,
)

Model = TypeVar("Model")


@overload
def intervene(
    model: Any,
    eah: EAH | None = None,
    *,
    image_mask: ColumnMask | None = None,
    prompt_mask: ColumnMask | None = None,
    tower: Tower = "language",
) -> EAHPatch: ...


@overload
def intervene(
    model: Any,
    eah: Intervention,
    *,
    image_mask: ColumnMask | None = None,
    prompt_mask: ColumnMask | None = None,
    tower: Tower = "language",
) -> Patch: ...


def intervene(
    model: Any,
    eah: EAH | Intervention | None = None,
    *,
    image_mask: ColumnMask | None = None,
    prompt_mask: ColumnMask | None = None,
    tower: Tower = "language",
    **others: Any,
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
        tower: `"language"`, or `"vision"`: layers and heads are those of the vision
            tower, the batch is the images or tiles that it sees, and all patches of an
            image are its image columns. `EAH` (`definition="visible"`), `Ablation` and
            what scales heads act there, in the one pass that reads images, whatever
            `steps` says; what only a prompt has is refused.
        **others: Other words for `eah`: `patch`, `settings`, `intervention`.

    Returns:
        Of EAH donors, densities and scores by layer, of others what they learned from
        the prompt; saved: usable after the trace.

    Raises:
        UnsupportedError: Outside a trace; after the layer has run, or at a step that
            comes too late for the settings; or where the layer's patches, the batch's
            rows, or the passes of a second prompt could not be kept apart; or if the
            settings have no meaning in the tower that is asked for.
        SettingsError: If a layer or head does not exist.
        ModelError: If a layer has no attention to patch.
        InputError: If there is no image, or its tokens are not known.
        NumericalError: If attention weights are NaN or infinite.
        KeywordError: If it has no such argument.

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
    if others:
        # Not by_name: a wrapped function does not travel to servers as its source.
        taken = () if eah is None else ("eah",)
        eah = rename_keywords("intervene", others, _ARGUMENTS, taken=taken)["eah"]
    settings = EAH() if eah is None else eah
    check_choice("tower", tower, Tower)
    if tower == "vision":
        of_prompts = {"image_mask": image_mask, "prompt_mask": prompt_mask}
        return _keep(intervene_in_tower(model, settings, **of_prompts))
    memory = memory_of_worker()
    sites = check_settings(model, settings)
    if not settings.is_fitted:
        settings.check_fitted()
    check_mode(model)
    check_alone(model)
    promise(model.interleaver, memory, settings)
    whole = prompt_of_worker(model, image_mask=image_mask).limit(prompt_mask)
    kind = settings.reads_kind
    marks = None if kind == "all" else find_marks(model, kind, whole, memory)
    done: dict[int, Any] = {}
    for site in sites:
        if isinstance(site, StreamSite):
            _patch_stream(model, settings, site, whole, memory, marks=marks)
            done[site.layer] = None
        else:
            point = _patch_call(model, settings, site, whole, memory, marks=marks)
            done[site.layer] = point.kept
    memory.steps[settings] = memory.steps.get(settings, 0) + 1
    result: EAHPatch | Patch = settings.report(done)
    if isinstance(result, EAHPatch | Patch):
        result = replace(result, model=name_model(model))
    return _keep(result)


_ARGUMENTS = ("eah", "image_mask", "prompt_mask", "tower")


def _keep(result: EAHPatch | Patch) -> EAHPatch | Patch:
    """Keep a result beyond its trace."""
    # A stored edit that runs under a plain `generate` has no trace to return to.
    with contextlib.suppress(ValueError):
        nnsight.save(result)
    return result


def _patch_call(
    model: Any,
    settings: Intervention,
    site: AttentionSite,
    whole: Prompt,
    memory: Memory,
    *,
    marks: KindMarks | None,
) -> PatchPoint:
    """Patch one attention call."""
    operation = PatchedCall(attention_operation(model, site), layer=site.layer)
    key = (site.layer, settings)
    is_first = key not in memory.learned
    if is_first and operation.step > 0:
        settings.check_late_start(operation.step)
    stream = None
    if is_first and (settings.reads_stream or settings.reads_kind == "language"):
        stream = _read_stream(model, site)
    call = AttentionCall.parse(operation.inputs)
    operation.check_rows(call.queries.shape[0])
    first = _first_row(model, operation.step, width=whole.image_mask.shape[1])
    point = PatchPoint.at(operation, call, whole, layer=site.layer, first=first)
    point.returns_maps = wants_attentions(model)
    point.stream, point.marks = stream, marks
    if is_first:
        end = first + call.queries.shape[2]
        _check_start(settings, point, step=operation.step, end=end)
        point.kept = settings.learn(point, stream)
        # Later steps need who donates, and not the scores that decided it.
        memory.learned[key] = settings.repeat(point.kept, call.queries.shape[0])
    else:
        point.kept = memory.learned[key]
    if is_first or settings.steps == "all":
        settings.apply_at(point)
    return point


def _patch_stream(
    model: Any,
    settings: Intervention,
    site: StreamSite,
    whole: Prompt,
    memory: Memory,
    *,
    marks: KindMarks | None,
) -> None:
    """Patch what enters one layer, or what it or its MLP returns."""
    step, width = find_step(model, site), whole.image_mask.shape[1]
    key = (site.layer, settings)
    is_first = key not in memory.learned
    if is_first and step > 0:
        settings.check_late_start(step)
    if not is_first and settings.steps == "prefill":
        return
    if site.place == "vision":
        if is_first:
            _apply_to_tower(model, settings, whole)
            memory.learned[key] = None
        else:  # images are read with the prompt: wait for the step, and do nothing
            _ = model.layers_input[0]
        return

    def find_first() -> int:
        return _first_row(model, step, width=width)

    point = StreamPoint.at(model, site, whole, find_first=find_first)
    point.marks = marks
    if is_first:
        end = point.first + point.output.shape[1]
        _check_start(settings, point, step=step, end=end)
        memory.learned[key] = None
    settings.apply_to_stream(point)


def _first_row(model: Any, step: int, *, width: int) -> int:
    """Find the position of a pass's first query row: how much was read before it."""
    passes = passes_of(model)
    if passes and passes[-1].past is not None:
        return passes[-1].past
    # On a server nobody counts: each pass after the prompt's reads one token.
    return 0 if step == 0 else width + step - 1


def _check_start(
    settings: Intervention, point: PatchPoint | StreamPoint, *, step: int, end: int
) -> None:
    """Check that a patch begins where the prompt does.

    Args:
        settings: The patch.
        point: Where it begins.
        step: The pass in which it does.
        end: Position after the last row of that pass.

    Raises:
        UnsupportedError: If keys stand before it that the patch has not seen.
        InputError: If it acts on image tokens and there are none.
    """
    if settings.reads_images:
        check_image_columns(point.image_mask)
    if step > 0 or point.first == 0:
        return
    if end > point.width:
        msg = (
            f"{point.first} keys stand before the prompt's first token (a learned "
            "prefix, or a cache whose tokens are not in input_ids), so image tokens "
            "are not where input_ids has them; pass all tokens as input_ids, and no "
            "prefix"
        )
        raise UnsupportedError(msg)
    if settings.steps == "prefill" or settings.needs_prompt:
        msg = (
            f"{point.first} of the prompt's {point.width} tokens are in a key/value "
            f"cache already, computed without {type(settings).__name__}, which patches "
            "or scores them; pass the whole prompt without past_key_values or cache "
            '(or prefill_chunk_size), or, where that will do, steps="all" with '
            "settings that need no scores"
        )
        raise UnsupportedError(msg)


def attention_calls(
    model: Any,
    settings: Intervention | None = None,
    *,
    layers: Collection[int] | None = None,
    prompt_mask: ColumnMask | None = None,
    detached: bool = False,
    follows_streams: bool = False,
    kind: SinkColumns = "all",
) -> Iterator[PatchPoint]:
    """Walk the attention calls of the trace it is called in, patched as they come.

    What looks at a whole run, plain or patched, looks at it by this loop. Between two
    calls, the point's `operation` may be read and written. It keeps no account of who
    patched what, as `intervene` does: nothing else should patch the same run.

    Args:
        model: The traced model.
        settings: What is done to the run; None for a plain one.
        layers: Layers to stop at, beside those that are patched; all when None. After
            the last of them the walk ends.
        prompt_mask: As for `intervene`.
        detached: Whether calls are cut off the graph of what made them.
        follows_streams: Whether the caller's numbers are right where a patch acts on
            what layers return, and not at their attention calls.
        kind: Which kind of sinks the caller asks each point for; `"all"` for none.

    Yields:
        Each call: `call` as the model made it, `operation` as it is now, patched.

    Raises:
        UnsupportedError: If the patch acts on what layers return, and the caller's
            numbers would not know of it.
    """
    check_mode(model)
    whole = prompt_of_worker(model).limit(prompt_mask)
    found = [] if settings is None else check_settings(model, settings)
    patched = {site.layer for site in found if isinstance(site, AttentionSite)}
    streams = {site.layer: site for site in found if isinstance(site, StreamSite)}
    doors = {n: site for n, site in streams.items() if site.place == "input"}
    towers = {n: site for n, site in streams.items() if site.place == "vision"}
    streams = {n: site for n, site in streams.items() if site.place in ("mlp", "layer")}
    if settings is not None:
        settings.check_fitted()
        acted = doors | towers | streams
        _check_followed(settings, acted, follows_streams=follows_streams)
        if towers:
            _apply_to_tower(model, settings, whole)
    kind = kind if settings is None or kind != "all" else settings.reads_kind
    memory = memory_of_worker()
    marks = None if kind == "all" else find_marks(model, kind, whole, memory)
    for layer in range(model.anatomy.n_layers):
        if layers is not None and layer > max(layers, default=-1):
            return
        if settings is not None and layer in doors:
            _apply_to_stream(model, settings, doors[layer], whole, marks)
        site = model.anatomy.sites.get(layer)
        here = layer in patched
        if site is not None and (layers is None or here or layer in layers):
            yield _visit_call(
                model,
                site,
                whole,
                settings=settings if here else None,
                detached=detached,
                marks=marks,
            )
        if settings is not None and layer in streams:
            _apply_to_stream(model, settings, streams[layer], whole, marks)


def _apply_to_tower(model: Any, settings: Intervention, whole: Prompt) -> None:
    """Patch what the vision tower returns."""
    point = TowerPoint(model, model.vision_output, whole)
    if settings.reads_images:
        check_image_columns(point.image_mask)
    settings.apply_to_tower(point)


def _apply_to_stream(
    model: Any,
    settings: Intervention,
    site: StreamSite,
    whole: Prompt,
    marks: KindMarks | None,
) -> None:
    """Patch a stream of a walk, which has one pass."""
    point = StreamPoint.at(model, site, whole, find_first=lambda: 0)
    point.marks = marks
    _check_start(settings, point, step=0, end=point.output.shape[1])
    settings.apply_to_stream(point)


def _check_followed(
    settings: Intervention, streams: Mapping[int, StreamSite], *, follows_streams: bool
) -> None:
    """Refuse a patch of what layers return, where only attention calls are followed."""
    if streams and not follows_streams:
        msg = (
            f"{type(settings).__name__} acts on what layers return, after their "
            "attention calls, and the effects of heads in a run so patched are not "
            "computed here: ask for a plain run; read_patterns, logit_lens, studies "
            "and `edit` take it"
        )
        raise UnsupportedError(msg)


def _visit_call(
    model: Any,
    site: AttentionSite,
    whole: Prompt,
    *,
    settings: Intervention | None,
    detached: bool,
    marks: KindMarks | None,
) -> PatchPoint:
    """Stand at one attention call, patched where there are settings."""
    reads = settings is not None and settings.reads_stream
    reads = reads or (marks is not None and marks.kind == "language")
    stream = _read_stream(model, site) if reads else None
    operation = attention_operation(model, site)
    call = AttentionCall.parse(operation.inputs)
    if detached:
        call = call.detach()
    point = PatchPoint.at(operation, call, whole, layer=site.layer)
    point.stream, point.marks = stream, marks
    if settings is not None:
        _check_start(settings, point, step=0, end=call.queries.shape[2])
        point.kept = settings.learn(point, stream)
        settings.apply_at(point)
        point.settings = settings
    return point


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


@by_name
def edit(
    model: Model,
    eah: EAH | Intervention | None = None,
    *,
    tower: Tower = "language",
) -> Model:
    """Make a patched twin of a model: patched in every later trace and generation.

    The original stays as it is; weights are shared. A twin may be edited again, in the
    other tower too.

    Args:
        model: An LVLM.
        eah: Settings: `EAH`, `Ablation`, `PAI` or `VAR`; `EAH()` when None.
        tower: `"language"`, or `"vision"`: whose layers and heads; see `intervene`.

    Returns:
        The patched LVLM.

    Raises:
        SettingsError: If a layer or head does not exist.
        ModelError: If a layer has no attention to patch.
        UnsupportedError: If the settings have no meaning in the vision tower.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> patched = eah.edit(model, eah.EAH(layers=(1,)))
        >>> isinstance(patched.describe(random_image(), max_new_tokens=2), str)
        True
    """
    eah = EAH() if eah is None else eah
    check_choice("tower", tower, Tower)
    in_tower = tower == "vision"
    (check_tower_settings if in_tower else check_settings)(model, eah)
    eah.check_fitted()
    whole: Any = model
    if in_tower or eah.steps == "prefill":  # images are read with the prompt
        with whole.edit() as (_, edited):
            intervene(edited, eah, tower=tower)
    else:
        with whole.edit() as (_, edited):
            # `tracer.iter[:]` without the tracer, which cannot travel to a server.
            for _ in Iterations()[:]:
                intervene(edited, eah)
        edited.loops_openly = True
    patch = InTower(eah) if in_tower else eah
    edited.patches = (*getattr(model, "patches", ()), patch)
    twin: Model = edited
    return twin


@by_name
def donors_of_run(model: Any, *, tower: Tower = "language") -> dict[int, Donors]:
    """Look up who donated in a model's latest run, such as a generation under `edit`.

    Args:
        model: The model that ran.
        tower: Whose heads: the `"language"` model's, or the `"vision"` tower's, whose
            items are the images and tiles that it saw.

    Returns:
        Donor head of each batch item, `[batch]`, by layer; -1 where an item was not
        patched or the donor is no head (`"mean"`, `"uniform"`). Empty if EAH was not
        in the run, in that tower.

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
    check_choice("tower", tower, Tower)
    return {
        layer: kept.donors
        for memory in patches_of_run(model)
        for (layer, _), kept in sorted(
            (memory.in_tower if tower == "vision" else memory.learned).items(),
            key=lambda known: known[0][0],
        )
        if isinstance(kept, LayerPatch)
    }
