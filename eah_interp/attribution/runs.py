"""A run as it passed its hook points: recorded, looked at, and mixed with another."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eah_interp._types import ColumnMask, Definition, Donors, HeadOutputs, Tower
from eah_interp.attribution.cases import Case
from eah_interp.attribution.readouts import TargetValues, keep_logits
from eah_interp.errors import UnsupportedError
from eah_interp.interventions.donation import donors_by_layer, score_call
from eah_interp.interventions.in_tower import walk_tower
from eah_interp.interventions.intervene import attention_calls
from eah_interp.interventions.intervention import Intervention
from eah_interp.interventions.point import PatchPoint, change_block, find_changes
from eah_interp.kernels.patterns import pattern_blocks
from eah_interp.kernels.sinks import ColumnScores, stream_column_scores
from eah_interp.lvlm.anatomy import AttentionSite, block_paths, check_model
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.inputs import Encoding, check_encoding, is_encoding
from eah_interp.lvlm.module_hooks import first_output
from eah_interp.lvlm.prompt import Prompt, prompt_of_worker


@dataclass
class Recording:
    """What one run of one item passed on at its hook points.

    Attributes:
        case: The item.
        patch: How it was patched; None for a plain run.
        values: Its targets.
        prompt: Where its images and its padding are.
        learned: What the patch learned from the prompt, by patched layer: of EAH, who
            donated.
        heads: Each layer's head outputs, `[1 query head d_value]`.
        calls: Each layer's attention call as the model made it, before any patch.
        blocks: Output of every other component, by path.
        leaving: What each layer returned.
        attended: What each layer's attention module returned, where its output
            projection makes that of the head outputs, and nothing stands between.
        masked: Layers whose attention mask was made before them, from the prompt's
            tokens alone.
        decoder: Arguments that the decoder was called with.
    """

    case: Case
    patch: Intervention | None
    values: TargetValues
    prompt: Prompt | None = None
    learned: dict[int, Any] = field(default_factory=dict)
    heads: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[int, AttentionCall] = field(default_factory=dict)
    blocks: dict[str, Tensor] = field(default_factory=dict)
    leaving: list[Any] = field(default_factory=list)
    attended: dict[int, Any] = field(default_factory=dict)
    masked: set[int] = field(default_factory=set)
    decoder: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def keep(self, point: PatchPoint, heads: Tensor) -> None:
        """Keep what passed an attention call."""
        self.calls[point.layer] = point.call
        self.heads[point.layer] = heads
        if point.settings is not None:
            self.learned[point.layer] = point.kept


def record(model: Any, case: Case, patch: Intervention | None = None) -> Recording:
    """Run one item, plain or patched, and keep what later runs may need.

    Args:
        model: An LVLM.
        case: One item.
        patch: Settings of a patched run.

    Returns:
        The recording, on the model's device.
    """
    kept, read_at = keep_logits(model, case.readout.positions)
    done = Recording(case, patch, torch.zeros(0))
    with (
        model.alone(),
        _hooked(model, done),
        torch.no_grad(),
        model.trace(**case.inputs, **kept, use_cache=False),
    ):
        done.prompt = prompt_of_worker(model).limit(case.prompt_mask)
        for point in attention_calls(model, patch, prompt_mask=case.prompt_mask):
            done.keep(point, point.operation.output[0])
        final = model.output.logits.save()
    done.values = case.readout.values(final, places=read_at)
    return done


@contextlib.contextmanager
def _hooked(model: Any, done: Recording) -> Iterator[None]:
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
            done.blocks[name] = first_output(output)

        return hook

    decoder = root.get_submodule(anatomy.layers.rpartition(".")[0])
    handles = [decoder.register_forward_pre_hook(enter, with_kwargs=True)]
    for site in anatomy.sites.values():
        handles += _watch_attention(root, site, done)
    for layer in root.get_submodule(anatomy.layers).children():
        handles.append(layer.register_forward_hook(leave))
    for name in block_paths(root, anatomy):
        handles.append(root.get_submodule(name).register_forward_hook(keep(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_attention(
    root: nn.Module, site: AttentionSite, done: Recording
) -> list[Any]:
    """Keep what an attention module returns, where its heads alone make it."""
    attention, layer = root.get_submodule(site.path), site.layer
    projected: list[Tensor] = []
    given: set[int] = set()

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        del module
        given.clear()
        given.update(
            value.untyped_storage().data_ptr()
            for value in (*args, *kwargs.values())
            if isinstance(value, Tensor)
        )

    def project(module: nn.Module, args: Any, output: Any) -> None:
        del module
        own = done.heads.get(layer)
        projected.clear()
        if own is not None and torch.equal(own.reshape(args[0].shape), args[0]):
            projected.append(output)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        first, *others = output if isinstance(output, tuple) else (output,)
        if projected and first is projected[0]:
            # A map of the weights beside it is nothing that a layer goes on with.
            rest = [None if isinstance(other, Tensor) else other for other in others]
            kept = (first, *rest) if isinstance(output, tuple) else first
            done.attended[layer] = kept
        projected.clear()
        mask = done.calls[layer].mask if layer in done.calls else None
        made_before = (
            isinstance(mask, Tensor) and mask.untyped_storage().data_ptr() in given
        )
        if layer in done.calls and (mask is None or made_before):
            done.masked.add(layer)

    handles = [
        attention.register_forward_pre_hook(enter, with_kwargs=True),
        attention.register_forward_hook(leave),
    ]
    if site.out_proj is not None:
        module = root.get_submodule(site.out_proj)
        handles.append(module.register_forward_hook(project))
    return handles


def _snapshot(value: Any) -> Any:
    """Copy what a run may fill in: states that layers share by way of a dict."""
    return dict(value) if isinstance(value, dict) else value


def cut(value: Any, first: int, prompt: Prompt) -> Any:
    """Take the positions from `first` on out of what one item is run with.

    Rows come first and positions second; before both may stand the axes of multimodal
    rotary positions. Masks have two axes of positions, and features of image tokens lie
    in one line. That it is right is seen by running it.

    Args:
        value: A tensor, or tensors in dicts, lists and tuples.
        first: The first position that is kept.
        prompt: Where the item's image tokens are.
    """
    if isinstance(value, Tensor):
        return _cut_tensor(value, first, prompt.image_mask[0]) if first else value
    if isinstance(value, dict):
        return {key: cut(item, first, prompt) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(cut(item, first, prompt) for item in value)
    return value


def _cut_tensor(value: Tensor, first: int, images: Tensor) -> Tensor:
    width, n_images = len(images), int(images.sum())
    sizes = tuple(value.shape)
    if sizes == (width,):
        return value[first:]
    if len(sizes) == 4 and sizes[2:] == (width, width):
        return value[:, :, first:, first:]
    if len(sizes) > 1 and sizes[:2] == (1, width):
        return value[:, first:]
    if len(sizes) > 2 and sizes[0] in (3, 4) and sizes[1:3] == (1, width):
        return value[:, :, first:]
    if len(sizes) > 1 and sizes[0] == n_images:
        return value[int(images[:first].sum()) :]
    return value


def share(value: Any, n_rows: int) -> Any:
    """Show one item's tensors, rows first, as `n_rows` rows that share their memory."""
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == 1:
        return value.expand(n_rows, *value.shape[1:])
    if isinstance(value, tuple):
        return tuple(share(item, n_rows) for item in value)
    return widen(value, n_rows)


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


# ---- The patterns that a run attends with, patched where it is.


def read_rows(
    point: PatchPoint, positions: Sequence[int] | Tensor, heads: Sequence[int]
) -> Float[Tensor, "batch head row key"]:
    """Compute some rows of some heads, as the run attends with them.

    Rows are computed a block at a time, and only the heads that were asked for are
    kept; where a layer is patched a block has all heads, since any may donate.

    Args:
        point: The attention call.
        positions: Query positions.
        heads: Query heads.

    Returns:
        The rows, float32, on the model's device.

    Raises:
        UnsupportedError: If what an asked head returns is replaced as a whole.
    """
    own = torch.as_tensor(positions, device=point.call.queries.device)
    kept: Sequence[int] | slice = list(heads)
    changes = find_changes(point)
    asked = None
    if not changes:
        asked, kept = list(heads), slice(None)
    parts = point.call.rows(own, token_mask=point.prompt.token_mask, heads=asked)
    blocks = [
        change_block(point, changes, block, own[block.rows], heads=heads)[:, kept]
        for block in pattern_blocks(parts.pop("queries"), parts.pop("keys"), **parts)
    ]
    return torch.cat(blocks, 2).float()


def read_places(
    point: PatchPoint,
    *,
    items: Int[Tensor, " place"],
    positions: Int[Tensor, " place"],
) -> Float[Tensor, "place head key"]:
    """Compute one query row of every head for each place, as the run attends with it.

    Args:
        point: The attention call.
        items: The batch item of each place.
        positions: The query position of each place.
    """
    # Places of different items mostly share positions: a prompt's last, in a batch.
    unique, inverse = torch.unique(positions, return_inverse=True)
    rows = read_rows(point, unique, range(point.call.n_heads))
    return rows[items.to(rows.device), :, inverse.to(rows.device)]


def score_run(
    point: PatchPoint, definition: Definition, *, heads: Sequence[int] | None = None
) -> ColumnScores:
    """Score every image column under the patterns that the run attends with.

    Args:
        point: The attention call.
        definition: Of the score.
        heads: The heads whose scores are used; all when None.
    """
    changes = find_changes(point)
    if not changes:
        return score_call(point.call, point.prompt, definition=definition)
    parts = point.call.pattern_inputs(point.prompt.scored_mask)
    queries, keys = parts.pop("queries"), parts.pop("keys")
    return stream_column_scores(
        queries,
        keys,
        image_mask=point.prompt.image_mask[:, : keys.shape[2]],
        definition=definition,
        change=lambda block: change_block(
            point, changes, block, block.rows, heads=heads
        ),
        **parts,
    )


def visit_layers(
    model: Any,
    encoding: Mapping[str, Any],
    look: Callable[[PatchPoint], None],
    *,
    layers: Sequence[int],
    patch: Intervention | None = None,
    prompt_mask: ColumnMask | None = None,
    tower: Tower = "language",
) -> dict[int, Donors]:
    """Run a model, plain or patched, and look at the attention calls of some layers.

    Args:
        model: An LVLM that no edit has patched.
        encoding: Its inputs.
        look: Called at each of the layers, in the order of the forward pass.
        layers: Which decoder layers. What comes after the last of them is not run.
        patch: Settings of a patched run.
        prompt_mask: True at the prompt's tokens, where an answer follows.
        tower: Whose layers, and where the patch acts.

    Returns:
        Donor head of each layer that EAH patched, by batch item, on the CPU.

    Raises:
        UnsupportedError: If the model is a patched twin.
    """
    check_unedited(model)
    learned: dict[int, Any] = {}
    inputs = {k: v for k, v in encoding.items() if k != "labels"}
    with torch.no_grad(), model.trace(**inputs, use_cache=False) as tracer:
        points = (
            walk_tower(model, patch, layers=layers)
            if tower == "vision"
            else attention_calls(
                model,
                patch,
                layers=layers,
                prompt_mask=prompt_mask,
                follows_streams=True,
            )
        )
        for point in points:
            learned[point.layer] = point.kept
            if point.layer in layers:
                look(point)
        tracer.stop()
    return donors_by_layer(learned)


def open_question(
    model: Any, images: object, prompts: object
) -> tuple[Encoding, ColumnMask | None]:
    """Encode what is asked; of a case, its inputs and which of its tokens are prompt.

    Raises:
        InputError: If images or prompts do not fit.
    """
    if isinstance(images, Case):
        return images.encoding, images.prompt_mask
    if is_encoding(images):
        check_encoding(images, ids_needed=True)
        return images if isinstance(images, Encoding) else Encoding(images), None
    return model.encode(images, prompts), None


def check_unedited(model: Any) -> None:
    """Refuse a patched twin: its own patch would be read in part only.

    Raises:
        ModelError: If it is no whole model.
        UnsupportedError: If the model was patched by `edit`.
    """
    check_model(model)
    if getattr(model, "_edits", None):
        msg = (
            "the model is a patched twin, as `edit` returns it: expected the model "
            "itself, with the settings as patch=eah.EAH(...)"
        )
        raise UnsupportedError(msg)


# ---- One run's attention pattern with another run's values.


def mix_runs(
    run: Recording, layer: int, call: AttentionCall, *, values: Tensor
) -> HeadOutputs:
    """Mix values by the pattern that a call has in a run.

    Where the run was patched, that is the patched pattern, for the heads and rows
    that have it. Masks, position biases and learned sinks are the run's own.

    Args:
        run: The run whose pattern is used, and whose patch.
        layer: The decoder layer.
        call: The layer's attention call in that run, of one item.
        values: `[1 kv_head key d_value]`.

    Returns:
        `[1 query head d_value]`.

    Raises:
        UnsupportedError: If the patch replaces what heads return as a whole.
    """
    call = replace(call, values=values)
    output = call.attend()
    if layer not in run.learned:
        return output
    assert run.prompt is not None
    kept = run.learned[layer]
    point = PatchPoint.at(None, call, run.prompt, layer=layer, kept=kept)
    point.settings = run.patch
    for change in find_changes(point):
        if change.output is not None:
            msg = (
                f"{run.patch} replaces what heads return as a whole: there is no "
                'pattern of theirs to take apart; patch what="output"'
            )
            raise UnsupportedError(msg)
        new = change.attend(call, point.prompt.token_mask)
        output = torch.where(change.where[..., None], new.to(output), output)
    return output
