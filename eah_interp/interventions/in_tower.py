"""Interventions at the attention calls of the vision tower.

What stands for the batch there are the images that the tower sees: whole ones, tiles or
frames, in the order in which it sees them. All of an image's patches are its image
columns; class tokens are rows and columns that count for nothing.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from eah_interp.errors import ModelError, SettingsError, UnsupportedError, show_value
from eah_interp.interventions.eah import EAHPatch
from eah_interp.interventions.intervention import Intervention, Patch
from eah_interp.interventions.point import PatchPoint
from eah_interp.kinds import register
from eah_interp.lvlm.anatomy import (
    Anatomy,
    AttentionSite,
    check_model,
    envoy_at,
    name_model,
)
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.prompt import Prompt, memory_of_worker
from eah_interp.lvlm.runs import PatchedCall, check_mode, promise, wants_attentions
from eah_interp.lvlm.tower import NO_TOWER
from eah_interp.lvlm.tower_calls import (
    TowerItems,
    check_pixels,
    count_edges,
    read_changed,
    tower_operation,
)
from eah_interp.lvlm.verify import verify_tower_call


@register
@dataclass(frozen=True)
class InTower:
    """A patch of the vision tower, among those that a patched twin carries.

    Attributes:
        settings: What is done there.
    """

    settings: Intervention


def find_tower(model: Any) -> Anatomy:
    """Find a model's vision tower.

    Raises:
        ModelError: If it has none of layers that attend.
    """
    tower: Anatomy | None = check_model(model).anatomy.tower
    if tower is None:
        msg = f'{NO_TOWER}: tower="vision" has nothing to act on'
        raise ModelError(msg)
    return tower


def check_tower_settings(model: Any, settings: Any) -> list[AttentionSite]:
    """Check that settings have a meaning in a model's tower, before any forward pass.

    Returns:
        Where they act, in the order of a forward pass.

    Raises:
        UnsupportedError: If they have not.
        SettingsError: If a layer or head does not exist, or these are no settings.
        ModelError: If there is no tower, or a layer's attention cannot be worked on.
    """
    tower = find_tower(model)
    if not isinstance(settings, Intervention):
        msg = (
            "a patch is an intervention's settings, such as eah.EAH() or "
            f"eah.Ablation(...): got {show_value(settings)}"
        )
        raise SettingsError(msg)
    if why := why_not_in_tower(settings):
        raise UnsupportedError(why)
    settings.check_fitted()
    sites = settings.find_sites(tower)
    settings.check_fits(n_heads=tower.n_heads, d_model=0)
    return sites


def why_not_in_tower(settings: Intervention) -> str:
    """Say why settings cannot act in the vision tower of any model; else nothing."""
    name, why = type(settings).__name__, settings.why_not_in_tower()
    if not why and any(hasattr(v, "_check_belongs") for v in vars(settings).values()):
        why = "what it holds was found in the language model, and is not the tower's"
    return why and f'{name} cannot act in the vision tower (tower="vision"): {why}'


def intervene_in_tower(
    model: Any, settings: Intervention, **of_prompts: Any
) -> EAHPatch | Patch:
    """Patch the tower in the trace it is called in; see `intervene`.

    Args:
        model: The traced model.
        settings: What is done.
        **of_prompts: What `intervene` is told about prompts: nothing.

    Raises:
        UnsupportedError: If the settings have no meaning in a tower, this is no step
            that reads images, or invokes cannot be told apart. At the end of a run
            in which the tower ran again, unpatched.
    """
    sites = check_tower_settings(model, settings)
    given = [name for name, value in of_prompts.items() if value is not None]
    if given:
        msg = (
            f"{', '.join(given)} tells tokens of the prompt apart, and the vision "
            'tower reads images: leave it out with tower="vision"'
        )
        raise UnsupportedError(msg)
    memory = memory_of_worker()
    check_mode(model)
    promise(model.interleaver, memory, settings)
    worker = Mediator.current("the vision tower")
    memory.once += [(f"{envoy_at(model, s.path).path}.input", worker) for s in sites]
    done: dict[int, Any] = {}
    for point in tower_points(model, sites):
        point.kept = settings.learn(point, None)
        settings.apply_at(point)
        done[point.layer] = memory.in_tower[point.layer, settings] = point.kept
    result: Any = settings.report(done)
    if isinstance(result, EAHPatch | Patch):
        result = replace(result, model=name_model(model), tower="vision")
    return result  # type: ignore[no-any-return]


def walk_tower(
    model: Any, settings: Intervention | None = None, *, layers: Collection[int]
) -> Iterator[PatchPoint]:
    """Walk attention calls of the tower, patched as they come; see `attention_calls`.

    Args:
        model: The traced model.
        settings: What is done to the run; None for a plain one.
        layers: Layers to stop at, beside those before them that are patched.

    Yields:
        Each call: `call` as the model made it, `operation` as it is now, patched.
    """
    found = [] if settings is None else check_tower_settings(model, settings)
    patched = {site.layer for site in found}
    before = {layer for layer in patched if layer <= max(layers)}
    anatomy = find_tower(model)
    sites = [anatomy.site(layer) for layer in sorted(before.union(layers))]
    for point in tower_points(model, sites, watched=False):
        if settings is not None and point.layer in patched:
            point.kept = settings.learn(point, None)
            settings.apply_at(point)
            point.settings = settings
        yield point


def tower_points(
    model: Any, sites: Iterable[AttentionSite], *, watched: bool = True
) -> Iterator[PatchPoint]:
    """Stand at attention calls of the tower, one after the other.

    Args:
        model: The traced model.
        sites: Where, in the order of a forward pass.
        watched: Whether account is kept of who patches what; not where nobody else
            patches the run, as in `attention_calls`.

    Raises:
        UnsupportedError: In a step after the prompt, in one of several invokes, or
            where a layer has run already.
        InputError: If the run has no image.
        ModelError: If a call does not explain what its layer attends to.
    """
    _check_step(model)
    check_pixels(model)
    edges: list[tuple[int, int]] = model.anatomy.edges
    changed = None if edges else read_changed(model)
    for site in sites:
        operation = tower_operation(model, site)
        if watched:
            operation = PatchedCall(operation, layer=site.layer)
        call = AttentionCall.parse(operation.inputs)
        verify_tower_call(model, site, call)
        items = TowerItems.of(model, operation, call)
        tokens = items.token_mask
        if changed is not None and not edges:
            edges.append(count_edges(changed, tokens))
        whole = Prompt(_inner(tokens, *(edges or [(0, 0)])[0]), tokens)
        point = PatchPoint.at(items.operation, items.call, whole, layer=site.layer)
        point.returns_maps = wants_attentions(model)
        point.shares_mask = items.shares_mask
        yield point


def _inner(tokens: Tensor, before: int, after: int) -> Tensor:
    """Mark an image's tokens but for some at both of its ends."""
    number, length = tokens.cumsum(-1), tokens.sum(-1, keepdim=True)
    return tokens & (number > before) & (number <= length - after)


def _check_step(model: Any) -> None:
    """Check that this step of a run reads images, and of all invokes.

    Raises:
        UnsupportedError: If not.
    """
    worker = Mediator.current("the vision tower")
    if worker.iteration != 0:
        msg = (
            "the vision tower reads images in a run's first forward pass: expected "
            'intervene(..., tower="vision") there, outside of a loop over steps, got '
            "a later step"
        )
        raise UnsupportedError(msg)
    batcher = model.interleaver.batcher
    if batcher is not None and batcher.batching and worker.batch_group is not None:
        msg = (
            "the vision tower cannot be patched for one of several invokes: it sees "
            "images or tiles, not rows; give all images and prompts to one trace, or "
            "intervene in an empty tracer.invoke()"
        )
        raise UnsupportedError(msg)
