"""A run as it passed its hook points, to be run again in part."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eah_interp._types import ColumnMask, HeadOutputs
from eah_interp.attribution.cases import Case
from eah_interp.attribution.readouts import TargetValues, keep_logits
from eah_interp.errors import UnsupportedError
from eah_interp.interventions.donation import (
    apply_patch,
    donate_pattern,
    heads_changed,
    patched_outputs,
    patched_rows,
    plan_patch,
    recipient_mask,
)
from eah_interp.interventions.eah import EAH, LayerPatch
from eah_interp.kernels.patterns import PatternBlock, pattern_blocks
from eah_interp.kernels.sinks import ColumnScores, stream_column_scores
from eah_interp.lvlm.anatomy import attention_operation, block_paths, walk_sites
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.inputs import Encoding
from eah_interp.lvlm.prompt import Prompt, prompt_of_worker


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


# ---- Attention calls of a run, plain or patched, with the pattern that is really used.


@dataclass(frozen=True)
class Visit:
    """One layer's attention call in one run.

    Attributes:
        layer: The decoder layer.
        call: The call as the model made it, before the layer's own patch.
        prompt: Its tokens.
        eah: The settings of the run; None for a plain one.
        patch: Who donates in this layer; None where nobody does.
    """

    layer: int
    call: AttentionCall
    prompt: Prompt
    eah: EAH | None
    patch: LayerPatch | None

    def rows(self, positions: Sequence[int], heads: Sequence[int]) -> Tensor:
        """Compute some rows of some heads, as the run attends with them.

        Rows are computed a block at a time, and only the heads that were asked for are
        kept; where a layer is patched a block has all heads, since any may donate.

        Args:
            positions: Query positions.
            heads: Query heads.

        Returns:
            The rows, `[batch head row key]`, float32 on the CPU.
        """
        parts = self._take_rows(torch.tensor(positions))
        kept = list(heads)
        if self.patch is None:
            parts, kept = _take_heads(parts, kept), list(range(len(kept)))
        own = torch.tensor(positions, device=self.call.queries.device)
        queries, keys = parts.pop("queries"), parts.pop("keys")
        blocks = [
            self.change(block, own[block.rows])[:, kept].float().cpu()
            for block in pattern_blocks(queries, keys, **parts)
        ]
        return torch.cat(blocks, 2)

    def score(self, settings: EAH) -> ColumnScores:
        """Score every image column under the patterns that the run attends with.

        Args:
            settings: Say which definition.
        """
        parts = self.call.pattern_inputs(self.prompt.scored_mask)
        queries, keys = parts.pop("queries"), parts.pop("keys")
        place = torch.arange(queries.shape[2], device=queries.device)
        return stream_column_scores(
            queries,
            keys,
            image_mask=self.prompt.image_mask[:, : keys.shape[2]],
            definition=settings.definition,
            change=lambda block: self.change(block, place[block.rows]),
            **parts,
        )

    def change(self, block: PatternBlock, own: Tensor) -> Tensor:
        """Give a block of rows the weights that the run attends with.

        Args:
            block: Rows of every head, as the model computed them.
            own: Position of each row.
        """
        if self.eah is None or self.patch is None:
            return block.weights
        images = self.prompt.image_mask[:, : block.weights.shape[-1]]
        new = donate_pattern(self.eah, block, self.patch, image_mask=images)
        inside = self.prompt.prompt_mask
        if self.eah.steps == "all" or inside is None:
            return new
        return torch.where(inside[:, None, own, None], new, block.weights)

    def _take_rows(self, positions: Tensor) -> dict[str, Any]:
        """Take query rows out of what the pattern is computed from."""
        parts = self.call.pattern_inputs(self.prompt.token_mask)
        positions = positions.to(self.call.queries.device)
        keys, mask, tokens = parts["keys"], parts["mask"], parts.pop("token_mask")
        if mask is None:
            place = torch.arange(keys.shape[2], device=keys.device)
            mask = (place <= positions[:, None])[None, None]
            if tokens is not None:
                mask = mask & tokens[:, None, None]
        else:
            mask = mask[:, :, positions]
        sink = parts["sink_logits"]
        if sink is not None and sink.shape[2] > 1:
            parts["sink_logits"] = sink[:, :, positions]
        return parts | {"queries": parts["queries"][:, :, positions], "mask": mask}


def visit_layers(
    model: Any,
    encoding: Mapping[str, Any],
    look: Callable[[Visit], None],
    *,
    layers: Sequence[int],
    eah: EAH | None = None,
    prompt_mask: ColumnMask | None = None,
) -> dict[int, Tensor]:
    """Run a model, plain or patched, and look at the attention calls of some layers.

    Args:
        model: An LVLM that no edit has patched.
        encoding: Its inputs.
        look: Called at each of the layers, in the order of the forward pass.
        layers: Which decoder layers. What comes after the last of them is not run.
        eah: Settings of a patched run.
        prompt_mask: True at the prompt's tokens, where an answer follows.

    Returns:
        Donor head of each patched layer, by batch item, on the CPU.

    Raises:
        UnsupportedError: If the model is a patched twin.
    """
    check_unedited(model)
    donors: dict[int, Tensor] = {}
    inputs = {k: v for k, v in encoding.items() if k != "labels"}
    with torch.no_grad(), model.trace(**inputs, use_cache=False) as tracer:
        whole = prompt_of_worker(model).limit(prompt_mask)
        for site in _until(max(layers), model):
            patched = eah is not None and site.layer in eah.layers
            if not patched and site.layer not in layers:
                continue
            operation = attention_operation(model, site)
            call = AttentionCall.parse(operation.inputs)
            prompt = whole.fit(call)
            patch = None
            if eah is not None and patched:
                patch = plan_patch(eah, call, prompt, layer=site.layer)
                donors[site.layer] = patch.donors.cpu()
            if site.layer in layers:
                look(Visit(site.layer, call, prompt, eah, patch))
            if eah is not None and patch is not None:
                apply_patch(eah, operation, call, prompt, patch)
        tracer.stop()
    return donors


def open_question(
    model: Any, images: object, prompts: object
) -> tuple[Encoding, ColumnMask | None]:
    """Encode what is asked; of a case, its inputs and which of its tokens are prompt.

    Raises:
        InputError: If images or prompts do not fit.
    """
    if isinstance(images, Case):
        return images.encoding, images.prompt_mask
    if isinstance(images, Encoding):
        return images, None
    if isinstance(images, Mapping):
        return Encoding(images), None
    return model.encode(images, prompts), None


def check_unedited(model: Any) -> None:
    """Refuse a patched twin: its own patch would be read in part only.

    Raises:
        UnsupportedError: If the model was patched by `edit`.
    """
    if getattr(model, "_edits", None):
        msg = (
            "the model is a patched twin, as `edit` returns it: expected the model "
            "itself, with the settings as patch=eah.EAH(...)"
        )
        raise UnsupportedError(msg)


def _until(last: int, model: Any) -> Iterator[Any]:
    for site in walk_sites(model.anatomy):
        if site.layer <= last:
            yield site


def _take_heads(parts: dict[str, Any], heads: list[int]) -> dict[str, Any]:
    """Take query heads out of what the pattern is computed from, keys with them."""
    queries, keys = parts["queries"], parts["keys"]
    groups = queries.shape[1] // keys.shape[1]
    taken = parts | {
        "queries": queries[:, heads],
        "keys": keys[:, [head // groups for head in heads]],
    }
    for name in ("mask", "sink_logits"):
        if parts[name] is not None and parts[name].shape[1] > 1:
            taken[name] = parts[name][:, heads]
    return taken


# ---- The rows of attention patterns at the positions that are read, and no others.


Rows = Float[Tensor, "place head key"]


def read_rows(
    call: AttentionCall,
    prompt: Prompt,
    *,
    items: Int[Tensor, " place"],
    positions: Int[Tensor, " place"],
) -> PatternBlock:
    """Rebuild one query row of every head for each place.

    Args:
        call: The attention call.
        prompt: Its tokens.
        items: The batch item of each place.
        positions: The query position of each place.

    Returns:
        The rows, `[place head 1 key]`, float32: every place stands as an item of its
        own.
    """
    parts = call.pattern_inputs(prompt.token_mask)
    items, positions = items.to(call.queries.device), positions.to(call.queries.device)
    queries = parts.pop("queries")[items, :, positions].unsqueeze(2)
    keys = parts.pop("keys")
    mask, tokens = parts.pop("mask"), parts.pop("token_mask")
    if mask is None:
        place = torch.arange(keys.shape[2], device=keys.device)
        mask = (place <= positions[:, None])[:, None, None]
        if tokens is not None:
            mask = mask & tokens[items, None, None]
    else:
        wide = mask.expand(keys.shape[0], -1, -1, -1)
        mask = wide[items, :, positions].unsqueeze(2)
    sink = parts.pop("sink_logits", None)
    if sink is not None:
        wide = sink.expand(keys.shape[0], -1, call.queries.shape[2], 1)
        parts["sink_logits"] = wide[items, :, positions].unsqueeze(2)
    (block,) = pattern_blocks(queries, keys[items], mask=mask, **parts)
    return block


def donate_rows(
    eah: EAH,
    block: PatternBlock,
    patch: LayerPatch,
    prompt: Prompt,
    *,
    items: Int[Tensor, " place"],
    positions: Int[Tensor, " place"],
) -> Rows:
    """Patch the rows of `read_rows` as the forward pass is patched.

    Args:
        eah: The settings.
        block: The model's own rows.
        patch: Who donates in each batch item.
        prompt: The tokens; rows after the prompt keep their pattern in a prefill patch.
        items: The batch item of each place.
        positions: The query position of each place.

    Returns:
        The rows after the patch.
    """
    device = block.weights.device
    items = items.to(device)
    seed = eah.seed
    if not isinstance(seed, int):
        seed = tuple(seed[item] for item in items.tolist())
    of_places = replace(
        patch,
        donors=patch.donors[items],
        patched=patch.patched[items],
        density=None,
        scores=None,
    )
    images = prompt.image_mask[:, : block.weights.shape[-1]][items]
    new = donate_pattern(replace(eah, seed=seed), block, of_places, image_mask=images)
    if eah.steps == "prefill" and prompt.prompt_mask is not None:
        inside = prompt.prompt_mask[items, positions.to(device)]
        new = torch.where(inside[:, None, None, None], new, block.weights)
    return new[:, :, 0]


# ---- One run's attention pattern with another run's values.


def mix_runs(
    run: Recording, layer: int, call: AttentionCall, *, values: Tensor
) -> HeadOutputs:
    """Mix values by the pattern that a call has in a run.

    Where the run was patched, that is the donated pattern, for the heads and rows
    that received it. Masks, position biases and learned sinks are the run's own.

    Args:
        run: The run whose pattern is used, and whose patch.
        layer: The decoder layer.
        call: The layer's attention call in that run, of one item.
        values: `[1 kv_head key d_value]`.

    Returns:
        `[1 query head d_value]`.
    """
    call = replace(call, values=values)
    output = call.attend()
    patch = run.patches.get(layer)
    if patch is None:
        return output
    assert run.eah is not None
    assert run.prompt is not None
    new = patched_outputs(run.eah, call, run.prompt, patch)
    recipients = recipient_mask(run.eah, (1, call.n_heads), device=new.device)
    change = heads_changed(patch.patched, recipients, n_heads=call.n_heads)
    where = change[:, None, :, None]
    rows = patched_rows(run.eah, run.prompt, call.queries.shape[2])
    if rows is not None:
        where = where & rows[:, :, None, None]
    return torch.where(where, new, output)


def check_patch(model: Any, eah: EAH) -> None:
    """Refuse settings that do not fit a model, before any forward pass.

    Raises:
        SettingsError: If a layer or head does not exist.
        ModelError: If a layer has no heads.
    """
    for layer in eah.layers:
        model.anatomy.site(layer)
    eah.check_fits(n_heads=model.n_heads)
