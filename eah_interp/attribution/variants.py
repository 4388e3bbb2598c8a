"""Many variants of a recorded run, in batches: in each row other nodes are set."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from eah_interp.attribution.nodes import Node
from eah_interp.attribution.replay import (
    BREAKS,
    AtCall,
    HeadChanges,
    Replay,
    RowValues,
    add_to_attended,
    check_copy,
    choose_batch_size,
    count_tokens,
    in_batches,
    prepare_replay,
    worth_cutting,
)
from eah_interp.attribution.runs import Recording
from eah_interp.errors import ModelError, is_out_of_memory
from eah_interp.lvlm.attention import AttentionCall

Variant = Sequence[Node]
"""The nodes that are set in a row; none for the run as it was."""


@dataclass(frozen=True)
class Given:
    """What nodes are set to.

    Attributes:
        heads: From layer and attention call (as the model makes it in that batch) to
            head outputs, `[1 query head d_value]` or what broadcasts to it.
        blocks: Outputs of other components for one item, by path.
        positions: True at the positions where they are set; everywhere when None.
        reads_call: Whether `heads` goes by the call, and not by its layer alone.
    """

    heads: Callable[[int, AttentionCall], Tensor]
    blocks: dict[str, Tensor]
    positions: Bool[Tensor, " position"] | None = None
    reads_call: bool = False


def given_by(run: Recording) -> Given:
    """Set nodes to what they returned in a recorded run."""

    def heads(layer: int, call: AttentionCall) -> Tensor:
        del call
        return run.heads[layer]

    return Given(heads, run.blocks)


def measure_variants(
    model: Any,
    run: Recording,
    variants: Sequence[Variant],
    given: Given,
    *,
    batch_size: int | None,
    progress: bool = False,
    label: str = "patches",
) -> Tensor:
    """Measure how each variant of a run changes its targets, `[variant target]`.

    Nodes that are given what they return anyway change nothing, and are not run. Each
    layer's first batch has a copy that is left alone: it must be what was recorded,
    and the others' changes are relative to it, so that what a batch does to rounding
    cancels out.

    Args:
        model: The LVLM.
        run: The run.
        variants: The nodes that are set each time.
        given: What they are set to.
        batch_size: Most copies in a batch; by device and memory when None.
        progress: Whether to show a bar.
        label: What the bar counts.
    """
    changes = torch.zeros(len(variants), len(run.values), device=run.values.device)
    nodes = {node for variant in variants for node in variant}
    moved = find_moved(run, nodes, given)
    starts = [
        min((node.layer for node in variant if node in moved), default=-1)
        for variant in variants
    ]
    chosen = [i for i, start in enumerate(starts) if start >= 0]
    if not chosen:
        return changes
    several = any(len({node.layer for node in variants[i]}) > 1 for i in chosen)
    first = 0 if given.reads_call and several else min(moved.values())
    if given.reads_call and several:
        batch_size = 1  # a row's call is its own
    n_tokens = count_tokens(run)
    rows = batch_size or choose_batch_size(
        model, n_tokens - worth_cutting(first, n_tokens)
    )
    # Copies that never share a batch need not be independent of each other.
    replay = prepare_replay(model, run, first=first, n_rows=min(rows, 2))
    first = worth_cutting(first, n_tokens) if replay.cuts_rows else 0
    if batch_size is None:
        batch_size = choose_batch_size(model, n_tokens - first)
    given = _remember(given, run)

    def measure(batch: list[tuple[int, Variant]]) -> Tensor:
        own = [variant for _, variant in batch]
        return run_variants(model, replay, own, given, start=batch[0][0], first=first)

    begun = sorted({starts[i] for i in chosen})
    jobs: list[tuple[int, Variant]] = [(start, ()) for start in begun]
    jobs += [(starts[i], variants[i]) for i in chosen]
    values = in_batches(
        jobs,
        measure,
        batch_size=batch_size,
        key=lambda job: job[0],
        progress=progress,
        label=label,
    )
    alone = dict(zip(begun, values, strict=False))
    for i, value in zip(chosen, values[len(begun) :], strict=True):
        changes[i] = value - alone[starts[i]]
    return changes


def _remember(given: Given, run: Recording) -> Given:
    """Compute what a layer's heads are given in a run once for its many batches."""
    known: dict[int, Tensor] = {}

    def heads(layer: int, call: AttentionCall) -> Tensor:
        if call is not run.calls[layer]:
            return given.heads(layer, call)
        if layer not in known:
            known.clear()  # batches come layer by layer
            known[layer] = given.heads(layer, call)
        return known[layer]

    return dataclasses.replace(given, heads=heads)


@torch.no_grad()
def find_moved(run: Recording, nodes: set[Node], given: Given) -> dict[Node, int]:
    """Find the nodes that are given something else than they returned in a run.

    Returns:
        For each the first position that is something else.
    """
    moved: dict[Node, int] = {}
    there = given.positions
    for node in (node for node in nodes if node.path):
        assert node.path is not None
        own, new = run.blocks[node.path], given.blocks[node.path]
        if torch.equal(own, new):
            continue
        n_tokens = count_tokens(run)
        apart = torch.ones(n_tokens, dtype=torch.bool, device=own.device)
        if own.numel() % n_tokens == 0:
            apart = (own != new).view(n_tokens, -1).any(-1)
        _note_first(moved, node, apart, there)
    for layer in {node.layer for node in nodes if node.head is not None}:
        own = run.heads[layer]
        new = given.heads(layer, run.calls[layer]).to(own).expand_as(own)
        apart = (new != own)[0].any(-1)
        for node in nodes:
            if node.head is not None and node.layer == layer:
                _note_first(moved, node, apart[:, node.head], there)
    return moved


def _note_first(
    moved: dict[Node, int], node: Node, apart: Tensor, there: Tensor | None
) -> None:
    if there is not None:
        apart = apart & there.to(apart.device)
    found = apart.nonzero()
    if len(found):
        moved[node] = int(found[0])


@torch.no_grad()
def run_variants(
    model: Any,
    replay: Replay,
    variants: Sequence[Variant],
    given: Given,
    *,
    start: int | None = None,
    first: int = 0,
) -> RowValues:
    """Run a batch of variants of a recorded run, from the first layer that changes.

    The attention of that layer is the same in all rows but for the heads that are set:
    where it can be, what it returns is what was recorded, and what their change adds.

    Args:
        model: The LVLM.
        replay: The run.
        variants: The nodes that are set, for each row.
        given: What they are set to.
        start: The first layer where a node is set to something else; that of the
            first node when None.
        first: The first position where one is; 0 unless the replay cuts rows.

    Returns:
        Every target in every row.
    """
    layers = [node.layer for variant in variants for node in variant]
    start = min(layers, default=0) if start is None else start
    alone = [row for row, variant in enumerate(variants) if not variant]
    ways = _list_ways(model, replay, variants, given, start=start, first=first)
    for way in range(replay.ways.get(start, 0), len(ways)):
        kept, attended, here = ways[way]
        try:
            values = _run_set(
                model, kept, variants, given, start=start, first=here, attended=attended
            )
            if alone:
                check_copy(model, replay.recording, values[alone])
        except BREAKS as error:
            if is_out_of_memory(error) or way == len(ways) - 1:
                raise
            # Later layers need what this layer's attention computes beside its output,
            # or the positions that were left out.
            replay.ways[start] = way + 1
            continue
        return values
    raise AssertionError


def _list_ways(
    model: Any,
    replay: Replay,
    variants: Sequence[Variant],
    given: Given,
    *,
    start: int,
    first: int,
) -> list[tuple[Replay, Any, int]]:
    """List ways to run variants, the cheapest first: replay, attention, position."""
    ways = [(replay, None, first)]
    if replay.cuts_rows:
        ways.append((dataclasses.replace(replay, cuts_rows=False), None, 0))
    if not _goes_on(model, replay.recording, start):
        replay.ways.setdefault(start, 1)
    if replay.ways.get(start, 0):
        return [ways[0], *ways]  # the first is known not to work
    here, last = first, model.anatomy.n_layers - 1
    if replay.cuts_rows and start == last:
        # Nothing attends any more: only what is read goes on.
        here = max(first, replay.first_read)
    attended = _attend(model, replay.recording, variants, given, start, here)
    return [(replay, attended, here), *ways]


def _goes_on(model: Any, recording: Recording, layer: int) -> bool:
    """Tell whether what a layer's attention returns follows from its heads alone."""
    if layer not in recording.attended:
        return False
    path = model.anatomy.sites[layer].out_proj
    module = model._module.get_submodule(path)
    # Adapters and quantised weights are left to their own modules.
    return type(module) is nn.Linear and (
        module.weight.is_floating_point()
        and module.weight.device == recording.heads[layer].device
    )


def _attend(
    model: Any,
    recording: Recording,
    variants: Sequence[Variant],
    given: Given,
    layer: int,
    first: int,
) -> Any:
    """Compute what a layer's attention returns where heads are set, in each row."""
    module = model._module.get_submodule(model.anatomy.sites[layer].out_proj)
    own = recording.heads[layer]
    new = given.heads(layer, recording.calls[layer]).to(own).expand_as(own)
    change = (new[0] - own[0]).float()
    if given.positions is not None:
        away = ~given.positions.to(change.device)
        change = change.masked_fill(away[:, None, None], 0)
    rows: list[HeadChanges | None] = []
    for variant in variants:
        heads = [node.head for node in variant if node.layer == layer]
        chosen = [head for head in heads if head is not None]
        rows.append((chosen, change[:, chosen]) if chosen else None)
    return add_to_attended(recording, layer, module, rows, first=first)


def _run_set(
    model: Any,
    replay: Replay,
    variants: Sequence[Variant],
    given: Given,
    *,
    start: int,
    first: int,
    attended: Any,
) -> RowValues:
    """Run variants; where a layer's attention is given, its heads are set in it."""
    n_rows = len(variants)
    heads: dict[int, Tensor] = {}
    rows_of: dict[str, list[int]] = {}
    for row, variant in enumerate(variants):
        for node in variant:
            if node.path is not None:
                rows_of.setdefault(node.path, []).append(row)
            elif attended is None or node.layer != start:
                blank = torch.zeros(n_rows, model.n_heads, dtype=torch.bool)
                heads.setdefault(node.layer, blank)[row, node.head] = True
    return replay.run(
        model,
        n_rows,
        start=start,
        first=first,
        at_calls={
            layer: _set_heads(given, mask, first) for layer, mask in heads.items()
        },
        attended=None if attended is None else {start: attended},
        blocks={
            path: _set_rows(path, given, rows, n_rows, replay.n_tokens, first)
            for path, rows in rows_of.items()
        },
    )


def _set_heads(given: Given, mask: Tensor, first: int) -> AtCall:
    """Set the marked heads, `[row head]`, at a layer's attention call."""

    def change(layer: int, operation: Any, call: AttentionCall) -> None:
        output = operation.output
        new = given.heads(layer, call).to(output[0])
        where = mask.to(new.device)[:, None, :, None]
        if given.positions is not None:
            where = where & given.positions[first:].to(new.device)[None, :, None, None]
        new = new[:, first:] if new.shape[1] > 1 else new
        operation.output = (torch.where(where, new, output[0]), *output[1:])

    return change


def _set_rows(
    path: str, given: Given, rows: list[int], n_rows: int, n_tokens: int, first: int
) -> Callable[[Tensor], Tensor]:
    """Set a component's output in some rows, whatever axes it has for positions."""
    whole, there = given.blocks[path], given.positions
    by_token = whole.numel() % n_tokens == 0

    def change(output: Tensor) -> Tensor:
        new = whole
        if by_token:
            new = whole.reshape(n_tokens, -1)[first:]
        if output.numel() != n_rows * new.numel() or (
            there is not None and not by_token
        ):
            msg = (
                f"{path} returned {tuple(output.shape)} for {n_rows} rows: expected "
                f"{n_rows} times {tuple(whole.shape)}, all its positions alike; leave "
                "this component out"
            )
            raise ModelError(msg)
        lines = output.reshape(n_rows, *new.shape).clone()
        if there is None:
            lines[rows] = new.to(lines)
        else:
            at = there[first:].to(lines.device)
            lines[rows] = torch.where(at[:, None], new.to(lines), lines[rows])
        return lines.view(output.shape)

    return change
