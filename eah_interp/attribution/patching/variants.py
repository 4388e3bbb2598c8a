"""Many variants of one run in one batch: in each row other nodes are set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eah_interp.attribution.cases.batches import in_batches
from eah_interp.attribution.patching.nodes import Node
from eah_interp.attribution.patching.recording import Recording
from eah_interp.attribution.patching.replay import (
    AtCall,
    Replay,
    RowValues,
    prepare_replay,
)
from eah_interp.errors import ModelError
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
    """

    heads: Callable[[int, AttentionCall], Tensor]
    blocks: dict[str, Tensor]


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
    batch_size: int,
    progress: bool = False,
    label: str = "patches",
) -> Tensor:
    """Measure how each variant of a run changes its targets, `[variant target]`.

    Nodes that are given what they return anyway change nothing, and are not run.
    """
    changes = torch.zeros(len(variants), len(run.values), device=run.values.device)
    moved = find_moved(run, {node for nodes in variants for node in nodes}, given)
    chosen = [i for i, nodes in enumerate(variants) if moved & set(nodes)]
    if not chosen:
        return changes
    replay = prepare_replay(model, run)

    def measure(batch: list[Variant]) -> Tensor:
        if len(batch) == 1:
            return run_variants(model, replay, batch, given) - run.values
        # beside a copy that is left alone: what a batch does to rounding cancels out
        values = run_variants(model, replay, [(), *batch], given)
        return values[1:] - values[:1]

    changes[chosen] = in_batches(
        [variants[i] for i in chosen],
        measure,
        batch_size=batch_size,
        key=lambda nodes: min(node.layer for node in nodes),
        progress=progress,
        label=label,
    )
    return changes


@torch.no_grad()
def find_moved(run: Recording, nodes: set[Node], given: Given) -> set[Node]:
    """Find the nodes that are given something else than they returned in a run."""
    moved = {
        node
        for node in nodes
        if node.path and not torch.equal(run.blocks[node.path], given.blocks[node.path])
    }
    for layer in {node.layer for node in nodes if node.head is not None}:
        own = run.heads[layer]
        new = given.heads(layer, run.calls[layer]).to(own).expand_as(own)
        same = (new == own).all(1).all(-1)[0].tolist()
        moved |= {
            node
            for node in nodes
            if node.head is not None and node.layer == layer and not same[node.head]
        }
    return moved


@torch.no_grad()
def run_variants(
    model: Any, replay: Replay, variants: Sequence[Variant], given: Given
) -> RowValues:
    """Run a batch of variants of a recorded run, from the first layer that changes.

    Args:
        model: The LVLM.
        replay: The run.
        variants: The nodes that are set, for each row.
        given: What they are set to.

    Returns:
        Every target in every row.
    """
    n_rows = len(variants)
    heads: dict[int, Tensor] = {}
    rows_of: dict[str, list[int]] = {}
    for row, variant in enumerate(variants):
        for node in variant:
            if node.path is not None:
                rows_of.setdefault(node.path, []).append(row)
                continue
            blank = torch.zeros(n_rows, model.n_heads, dtype=torch.bool)
            heads.setdefault(node.layer, blank)[row, node.head] = True
    layers = [node.layer for variant in variants for node in variant]
    return replay.run(
        model,
        n_rows,
        start=min(layers, default=0),
        at_calls={layer: _set_heads(given, mask) for layer, mask in heads.items()},
        blocks={
            path: _set_rows(path, given.blocks[path], rows, n_rows)
            for path, rows in rows_of.items()
        },
    )


def _set_heads(given: Given, mask: Tensor) -> AtCall:
    """Set the marked heads, `[row head]`, at a layer's attention call."""

    def change(layer: int, operation: Any, call: AttentionCall) -> None:
        output = operation.output
        new = given.heads(layer, call).to(output[0])
        where = mask.to(new.device)[:, None, :, None]
        operation.output = (torch.where(where, new, output[0]), *output[1:])

    return change


def _set_rows(
    path: str, given: Tensor, rows: list[int], n_rows: int
) -> Callable[[Tensor], Tensor]:
    """Set a component's output in some rows, whatever axes it has for positions."""

    def change(output: Tensor) -> Tensor:
        if output.numel() != n_rows * given.numel():
            msg = (
                f"{path} returned {tuple(output.shape)} for {n_rows} rows: expected "
                f"{n_rows} times {tuple(given.shape)}; leave this component out"
            )
            raise ModelError(msg)
        lines = output.reshape(n_rows, -1).clone()
        lines[rows] = given.reshape(1, -1).to(lines)
        return lines.view(output.shape)

    return change
