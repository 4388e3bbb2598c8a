"""Heads of the vision tower set to something else: many copies of an item, a head each.

Images that a tower sees are the batch there, and a copy of an item has all of its own:
copies stand one after the other, whether a tower keeps images in rows or packs them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from eah_interp._types import HeadOutputs
from eah_interp.attribution.cases import Case
from eah_interp.attribution.readouts import keep_logits
from eah_interp.attribution.replay import (
    BREAKS,
    RowValues,
    allow,
    check_copy,
    choose_batch_size,
    count_tokens,
    in_batches,
)
from eah_interp.attribution.runs import Recording
from eah_interp.attribution.variants import Given, Variant
from eah_interp.errors import InputError, is_out_of_memory
from eah_interp.interventions.in_tower import find_tower, tower_points, walk_tower
from eah_interp.interventions.intervention import Intervention
from eah_interp.interventions.point import PatchPoint


def record_tower(
    model: Any, case: Case, patch: Intervention | None = None
) -> Recording:
    """Run one item, its tower plain or patched, and keep what the tower's heads return.

    Args:
        model: An LVLM.
        case: One item.
        patch: Settings of a patched tower.

    Returns:
        The recording, with a row for each image of the item, on the model's device.
    """
    kept, read_at = keep_logits(model, case.readout.positions)
    done = Recording(case, patch, torch.zeros(0))
    layers = sorted(find_tower(model).sites)
    with (
        model.alone(),
        torch.no_grad(),
        model.trace(**case.inputs, **kept, use_cache=False),
    ):
        for point in walk_tower(model, patch, layers=layers):
            done.keep(point, point.operation.output[0])
            done.prompt = point.prompt
        final = model.output.logits.save()
    done.values = case.readout.values(final, places=read_at)
    return done


def check_same_images(into: Recording, taken: Recording) -> None:
    """Check that two items' images are of one shape in the tower.

    Raises:
        InputError: If they are not, so that tokens do not correspond.
    """
    for layer, own in into.heads.items():
        other = taken.heads[layer]
        assert into.prompt is not None
        assert taken.prompt is not None
        masks = into.prompt.token_mask, taken.prompt.token_mask
        if own.shape != other.shape or not torch.equal(*masks):
            msg = (
                "the tower sees images of other shapes in the source: expected "
                f"{_count(masks[0])} tokens, got {_count(masks[1])}; use images of one "
                "size"
            )
            raise InputError(msg)


def _count(tokens: Tensor) -> str:
    return " + ".join(map(str, tokens.sum(-1).tolist()))


def measure_in_tower(
    model: Any,
    run: Recording,
    variants: Sequence[Variant],
    given: Given,
    *,
    batch_size: int | None,
    progress: bool = False,
    label: str = "patches",
) -> Tensor:
    """Measure how each variant of a tower changes the targets, `[variant target]`.

    Heads that are given what they return anyway change nothing, and are not run. A copy
    is run that is left alone, and changes are relative to it. Where copies of an item
    are not what was recorded, or share one attention mask that grows with the square of
    their number, they are run one by one.

    Args:
        model: The LVLM.
        run: The run, of `record_tower`.
        variants: The heads that are set each time.
        given: What they are set to.
        batch_size: Most copies in a batch; by device and memory when None.
        progress: Whether to show a bar.
        label: What the bar counts.
    """
    changes = torch.zeros(len(variants), len(run.values), device=run.values.device)
    layers = {node.layer for variant in variants for node in variant}
    new = {
        layer: given.heads(layer, run.calls[layer])
        .to(run.heads[layer])
        .expand_as(run.heads[layer])
        for layer in sorted(layers)
    }
    moves = {layer: _find_moved(run, layer, heads) for layer, heads in new.items()}
    chosen = [
        i
        for i, variant in enumerate(variants)
        if any(bool(moves[node.layer][node.head]) for node in variant)
    ]
    if not chosen:
        return changes
    jobs: list[Variant] = [(), *(variants[i] for i in chosen)]
    if batch_size is None:
        seen = sum(heads.shape[0] * heads.shape[1] for heads in [*new.values()][:1])
        batch_size = choose_batch_size(model, max(count_tokens(run), seen))
    rows = min(batch_size, len(jobs))
    every = tuple({node: None for i in chosen for node in variants[i]})
    if rows > 1 and not _may_share(model, run, new, every):
        rows = 1
    values = in_batches(
        jobs,
        lambda batch: _run_set(model, run, batch, new),
        batch_size=rows,
        progress=progress,
        label=label,
    )
    changes[chosen] = values[1:] - values[0]
    return changes


@torch.no_grad()
def _find_moved(run: Recording, layer: int, new: HeadOutputs) -> Bool[Tensor, " head"]:
    """Mark a layer's heads that are given something else than they returned."""
    assert run.prompt is not None
    apart = (new != run.heads[layer]).any(-1)
    return apart[run.prompt.token_mask].any(0).cpu()


@torch.no_grad()
def _may_share(
    model: Any, run: Recording, new: dict[int, Tensor], every: Variant
) -> bool:
    """Tell whether copies in a batch are what they are alone, each in its place.

    Of two copies one is left alone, and all heads of the other are set: a family whose
    images are found by numbers that count through the batch (Molmo 2) would read the
    first copy's images twice, which copies that are the same do not show.
    """
    try:
        alone = _run_set(model, run, [every], new)[0]
        found = _run_set(model, run, [(), every], new, look=partial(_check_copies, run))
        allowed = allow(model, run)
        if not float((alone - run.values).abs().max()) > 10 * allowed:
            return False  # too little changes to tell the copies apart
        check_copy(model, run, found[0])
        return float((found[1] - alone).abs().max()) <= allowed
    except BREAKS as error:
        if is_out_of_memory(error):
            raise
        return False


class _ApartError(RuntimeError):
    """Copies of an item do not stand one after the other, or not by themselves."""


def _check_copies(run: Recording, point: PatchPoint) -> None:
    """Check that two copies of an item stand one after the other in a call."""
    own, found = run.calls[point.layer].queries, point.call.queries
    if found.shape != (2 * own.shape[0], *own.shape[1:]) or point.shares_mask:
        raise _ApartError
    size = own.abs().max().clamp(min=1.0)
    # The first layer that is set: nothing has changed before it in either copy.
    tokens = point.prompt.token_mask[:, None, :, None]
    gap = ((found - own.repeat(2, 1, 1, 1)) * tokens).abs().max()
    if not float(gap / size) <= _CLOSE.get(own.dtype, _COARSE):
        raise _ApartError


_CLOSE = {torch.float32: 1e-4, torch.float64: 1e-8}

_COARSE = 5e-2


@torch.no_grad()
def _run_set(
    model: Any,
    run: Recording,
    variants: Sequence[Variant],
    new: dict[int, Tensor],
    *,
    look: Callable[[PatchPoint], None] | None = None,
) -> RowValues:
    """Run a copy of the item for each variant, with its heads set in all its images.

    Args:
        model: The LVLM.
        run: The item.
        variants: The heads that are set, for each copy.
        new: What heads return instead, by layer.
        look: Called at the first call, before anything is set.
    """
    n_rows = len(variants)
    case = run.case.copies([0] * n_rows)
    kept, read_at = keep_logits(model, case.readout.positions)
    anatomy = find_tower(model)
    heads: dict[int, Tensor] = {}
    for row, variant in enumerate(variants):
        for node in variant:
            blank = torch.zeros(n_rows, anatomy.n_heads, dtype=torch.bool)
            heads.setdefault(node.layer, blank)[row, node.head] = True
    sites = [anatomy.site(layer) for layer in sorted(heads)]
    with model.alone(), model.trace(**case.inputs, **kept, use_cache=False):
        for point in tower_points(model, sites, watched=False):
            if look is not None and point.layer == sites[0].layer:
                look(point)
            tokens = point.prompt.token_mask
            n_images = len(tokens) // n_rows
            chosen = heads[point.layer].repeat_interleave(n_images, 0).to(tokens.device)
            point.replace(
                new[point.layer].repeat(n_rows, 1, 1, 1),
                chosen[:, None] & tokens[:, :, None],
            )
        final = model.output.logits.save()
    return case.readout.values(final, places=read_at).view(n_rows, -1)
