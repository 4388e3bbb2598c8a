"""Runs in which some edges are kept, and all others carry what another run sends.

A receiver reads the other run's stream plus, for each sender whose edge to it is kept,
what that sender writes here minus what it writes there. Layer by layer every receiver
that has a kept edge gets a stream of its own; many circuits share the passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.attribution.edge_runs import (
    Exchange,
    read_changed,
    run_to_logit,
)
from eah_interp.attribution.edges import Receiver, Sender
from eah_interp.attribution.replay import RowValues
from eah_interp.attribution.runs import Recording
from eah_interp.errors import UnsupportedError
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.attention import AttentionCall

Edge = tuple[Sender, Receiver]

Stream = Float[Tensor, "position d_model"]

Row = tuple[int, frozenset[Sender]]
"""A circuit, and the senders whose edges to a receiver are kept."""


def check_circuits(model: Any, exchange: Exchange) -> None:
    """Check that what heads write adds up, so that each can be kept or left by itself.

    Raises:
        UnsupportedError: If a norm or anything else stands between the heads and the
            stream, or a layer has no heads.
    """
    if model.anatomy.unfit:
        layer, why = next(iter(model.anatomy.unfit.items()))
        msg = (
            f"{name_model(model)}: layer {layer} has no heads ({why}), so what it "
            "does cannot be split into edges; use patch_paths, which leaves it alone"
        )
        raise UnsupportedError(msg)
    for layer in model.anatomy.sites:
        if exchange.projection(model, layer) is None:
            msg = (
                f"{name_model(model)}: more than a linear projection stands between "
                f"the heads of layer {layer} and the stream (a norm, a gate, quantised "
                "weights), so heads' parts do not add up and a circuit of some of them "
                "is not defined; use patch_paths, which takes one edge at a time"
            )
            raise UnsupportedError(msg)


@dataclass
class _Circuit:
    """One circuit while it is run.

    Attributes:
        into: The senders whose edges to each receiver are kept.
        sends: The senders that have a kept edge.
        moved: What each sender that writes something else writes more than in the
            other run.
    """

    into: dict[Receiver, list[Sender]] = field(default_factory=dict)
    sends: set[Sender] = field(default_factory=set)
    moved: dict[Sender, Stream] = field(default_factory=dict)

    @classmethod
    def of(cls, kept: Sequence[Edge]) -> "_Circuit":
        made = cls()
        for sender, receiver in kept:
            made.into.setdefault(receiver, []).append(sender)
            made.sends.add(sender)
        return made

    def heard(self, receiver: Receiver) -> frozenset[Sender]:
        """List the senders by which a receiver's stream differs."""
        return frozenset(s for s in self.into.get(receiver, ()) if s in self.moved)

    def more(self, senders: frozenset[Sender]) -> Stream:
        """Sum what they write more, in one order for all."""
        ordered = sorted(senders, key=lambda one: (one.place, one.name))
        return torch.stack([self.moved[one] for one in ordered]).sum(0)


@torch.no_grad()
def run_circuits(
    model: Any,
    exchange: Exchange,
    taken: Recording,
    kept: Sequence[Sequence[Edge]],
    *,
    batch_size: int,
) -> RowValues:
    """Run circuits: their edges kept, all others as in the other run.

    Args:
        model: The LVLM.
        exchange: The item, and what senders write in the other run.
        taken: The other run.
        kept: The edges of each circuit.
        batch_size: Most rows in a forward pass.

    Returns:
        Every target in every circuit.
    """
    circuits = [_Circuit.of(edges) for edges in kept]
    _send_embedding(exchange, circuits)
    receivers: dict[tuple[int, str], set[Receiver]] = {}
    for circuit in circuits:
        for receiver in circuit.into:
            half = "mlp" if receiver.input == "mlp" else "heads"
            receivers.setdefault((receiver.layer, half), set()).add(receiver)
    for layer in range(model.anatomy.n_layers):
        if own := receivers.get((layer, "heads")):
            _run_heads(model, exchange, taken, circuits, layer, own, batch_size)
        if own := receivers.get((layer, "mlp")):
            _run_mlp(model, exchange, circuits, layer, next(iter(own)), batch_size)
    end = model.anatomy.n_layers
    logit = Receiver("logit", end, "logit", 0, (end, 0))
    base = exchange.given.entering[-1].float() - exchange.own.entering[-1].float()
    changes = []
    for circuit in circuits:
        heard = circuit.heard(logit)
        changes.append(base[0] + circuit.more(heard) if heard else base[0])
    values = [
        run_to_logit(
            model,
            exchange.replay,
            torch.stack(changes[start : start + batch_size]),
            frozen=False,
        )
        for start in range(0, len(changes), batch_size)
    ]
    return torch.cat(values)


def _send_embedding(exchange: Exchange, circuits: Sequence[_Circuit]) -> None:
    change = exchange.own.entering[0][0].float() - exchange.given.entering[0][0].float()
    parts = {"embedding": None, "image": exchange.image, "text": ~exchange.image}
    for circuit in circuits:
        for sender in circuit.sends:
            if sender.kind == "embedding":
                where = parts[sender.name]
                _keep(
                    circuit,
                    sender,
                    change if where is None else change * where[:, None],
                )


def _keep(circuit: _Circuit, sender: Sender, moved: Stream) -> None:
    if bool(moved.any()):
        circuit.moved[sender] = moved


def _list_rows(
    circuits: Sequence[_Circuit], receivers: set[Receiver]
) -> dict[Row, list[Receiver]]:
    """List the streams that are read, each once, and who reads it."""
    rows: dict[Row, list[Receiver]] = {}
    for number, circuit in enumerate(circuits):
        for receiver in receivers:
            if heard := circuit.heard(receiver):
                rows.setdefault((number, heard), []).append(receiver)
    return rows


def _run_heads(
    model: Any,
    exchange: Exchange,
    taken: Recording,
    circuits: Sequence[_Circuit],
    layer: int,
    receivers: set[Receiver],
    batch_size: int,
) -> None:
    """Run a layer's heads in each circuit, and keep what they write more."""
    rows = _list_rows(circuits, receivers)
    if not rows:
        return
    changed = sorted({number for number, _ in rows})
    call = taken.calls[layer]
    inputs = {
        "q": call.queries.repeat(len(changed), 1, 1, 1),
        "k": call.keys.repeat(len(changed), 1, 1, 1),
        "v": call.values.repeat(len(changed), 1, 1, 1),
    }
    base = exchange.given.entering[layer].float() - exchange.own.entering[layer].float()
    listed = list(rows)
    for start in range(0, len(listed), batch_size):
        batch = listed[start : start + batch_size]
        before = torch.stack([base[0] + circuits[c].more(heard) for c, heard in batch])
        reading = read_changed(model, exchange, layer, before)
        for row, (number, heard) in enumerate(batch):
            for receiver in rows[number, heard]:
                made = reading.of(receiver)[row]
                inputs[receiver.input][changed.index(number), receiver.index] = made
    for start in range(0, len(changed), batch_size):
        part = slice(start, start + batch_size)
        heads = _attend(
            model, exchange, layer, {name: one[part] for name, one in inputs.items()}
        )
        for number, outputs in zip(changed[part], heads, strict=True):
            _write_heads(model, exchange, circuits[number], layer, outputs)


def _attend(
    model: Any, exchange: Exchange, layer: int, inputs: dict[str, Tensor]
) -> Float[Tensor, "row query head d_value"]:
    """Run a layer's attention call on queries, keys and values of our own."""
    n_rows = len(inputs["q"])
    kept: list[Tensor] = []

    def give(layer: int, operation: Any, call: AttentionCall) -> None:
        del layer
        args, options = call.inputs
        given = (args[0], inputs["q"], inputs["k"], inputs["v"], *args[4:])
        operation.inputs = (given, options)
        kept.append(operation.output[0])

    exchange.replay.run(model, n_rows, start=layer, at_calls={layer: give})
    return kept[0]


def _write_heads(
    model: Any, exchange: Exchange, circuit: _Circuit, layer: int, outputs: Tensor
) -> None:
    """Carry heads' outputs through the projection, each by itself."""
    own = sorted(
        (s for s in circuit.sends if s.kind == "head" and s.layer == layer),
        key=lambda one: one.name,
    )
    if not own:
        return
    change = outputs - exchange.given.heads[layer][0].to(outputs)
    rows = torch.zeros(len(own) + 1, *change.shape).to(change)
    for row, sender in enumerate(own):
        rows[row, :, sender.head] = change[:, sender.head]
    proj = exchange.projection(model, layer)
    assert proj is not None
    written = proj(rows.flatten(2)).float()
    for row, sender in enumerate(own):
        _keep(circuit, sender, written[row] - written[-1])


def _run_mlp(
    model: Any,
    exchange: Exchange,
    circuits: Sequence[_Circuit],
    layer: int,
    receiver: Receiver,
    batch_size: int,
) -> None:
    """Run a layer's MLP in each circuit, and keep what it writes more."""
    rows = list(_list_rows(circuits, {receiver}))
    own, given = exchange.own, exchange.given
    base = given.entering[layer].float() - own.entering[layer].float()
    behind = receiver.place[1] == 1
    if behind:
        base = base + given.attention[layer].float() - own.attention[layer].float()
    sender = Sender(f"L{layer}.mlp", layer, "mlp")
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        change = torch.stack([base[0] + circuits[c].more(heard) for c, heard in batch])
        nothing = torch.zeros_like(change)
        before, within = (nothing, change) if behind else (change, nothing)
        reading = read_changed(model, exchange, layer, before, within)
        assert reading.mlp is not None
        for (number, _), added in zip(batch, reading.mlp, strict=True):
            moved = added.float() - given.mlp[layer][0].float()
            _keep(circuits[number], sender, moved)
