"""What runs write into the residual stream, and runs in which one reader sees more.

An edge is measured in three steps. What its sender changes in the stream: the sender's
output is another run's, through the output projection and, where a family has one, the
norm behind it, everything else being as recorded. What its receiver makes of that: one
layer is run with the recorded stream plus that change. And what becomes of the targets
when the receiver, and nobody else, has what it made: a run from its layer on. Each is a
replay of the recorded item (`replay.py`), many changes to a batch.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from eah_interp.attribution.cases import Case
from eah_interp.attribution.direct_path import linearise_norm
from eah_interp.attribution.edges import Receiver, Senders
from eah_interp.attribution.readouts import TargetValues, keep_logits
from eah_interp.attribution.replay import (
    BREAKS,
    AtCall,
    HeadChanges,
    Replay,
    RowValues,
    add_to_attended,
    check_copy,
)
from eah_interp.attribution.runs import Recording, record
from eah_interp.errors import is_out_of_memory
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import Anatomy
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.module_hooks import first_output, hook_stream
from eah_interp.lvlm.weights import find_quantised

Change = Float[Tensor, "row position d_model"]
"""What is added to the residual stream in each row of a batch, float32."""

# ---- What a run wrote.


@dataclass
class Written:
    """What one run of one item wrote into the residual stream.

    Attributes:
        entering: The stream that enters each layer, and last the one that enters the
            final norm, `[1 position d_model]`.
        heads: Each layer's head outputs, `[1 position head d_value]`.
        attention: What each layer's attention, or what it has instead, adds.
        mlp: What each layer's MLP adds.
    """

    entering: list[Tensor] = field(default_factory=list)
    heads: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)

    def first_apart(self, other: "Written") -> int:
        """Find the first position where another run wrote something else.

        Returns:
            The position; the last one where they wrote the same, and 0 where what was
            written does not lie position by position.
        """
        n_tokens = self.entering[0].shape[1]
        apart = torch.zeros(n_tokens, dtype=torch.bool, device=self.entering[0].device)
        pairs = [(self.entering[0], other.entering[0])]
        for kept, others in (
            (self.heads, other.heads),
            (self.attention, other.attention),
            (self.mlp, other.mlp),
        ):
            pairs += [(tensor, others[layer]) for layer, tensor in kept.items()]
        for one, two in pairs:
            if one.shape != two.shape or one.shape[1] != n_tokens:
                return 0
            apart |= (one != two)[0].flatten(1).any(1)
        found = apart.nonzero()
        return int(found[0]) if len(found) else n_tokens - 1

    def change(self, transform: Callable[[Tensor], Tensor]) -> "Written":
        """Write something else instead, at every place."""
        return Written(
            [transform(self.entering[0]), *self.entering[1:]],
            {layer: transform(z) for layer, z in self.heads.items()},
            {layer: transform(z) for layer, z in self.attention.items()},
            {layer: transform(z) for layer, z in self.mlp.items()},
        )


def record_streams(
    model: Any, case: Case, patch: Intervention | None = None
) -> tuple[Recording, Written]:
    """Run one item, and keep what later runs need and what it wrote to the stream."""
    written = Written()
    root: nn.Module = model._module
    anatomy: Anatomy = model.anatomy
    handles = []
    for layer in range(anatomy.n_layers):
        module = root.get_submodule(f"{anatomy.layers}.{layer}")
        handles.append(hook_stream(module, written.entering.append))
        for path, kept in (
            (attention_writer(anatomy, layer), written.attention),
            (mlp_writer(anatomy, layer), written.mlp),
        ):
            if path is not None:
                writer = root.get_submodule(path)
                handles.append(writer.register_forward_hook(_note(kept, layer)))
    norm = root.get_submodule(str(anatomy.final_norm))
    handles.append(hook_stream(norm, written.entering.append))
    try:
        run = record(model, case, patch)
    finally:
        for handle in handles:
            handle.remove()
    written.heads = run.heads
    return run, written


def attention_writer(anatomy: Anatomy, layer: int) -> str | None:
    """Name the module that returns what attention, or what is instead, adds."""
    writers = anatomy.writers[layer]
    name = writers.attention or writers.instead
    return None if name is None else f"{anatomy.layers}.{layer}.{name}"


def mlp_writer(anatomy: Anatomy, layer: int) -> str | None:
    """Name the module that returns what a layer's MLP adds."""
    name = anatomy.writers[layer].mlp
    return None if name is None else f"{anatomy.layers}.{layer}.{name}"


def _note(kept: dict[int, Tensor], layer: int) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        first = first_output(output)
        kept[layer] = first.view(1, -1, first.shape[-1])  # experts pack their tokens

    return hook


# ---- What a sender that writes something else changes in the stream.


@dataclass(frozen=True)
class Exchange:
    """One item, and what its senders would write instead.

    Attributes:
        replay: The item, as it is run again.
        own: What it wrote.
        given: What it would write.
        image: True at the item's image tokens.
        token: False at padding.
        first: The first position where anything would be written that was not; 0
            unless positions before it can be left out of a run.
        projections: Output projections that were looked for, by layer.
        alone: The targets of a copy that was left alone, by how it was run.
        whole: Layers from which on no position can be left out, as was found.
    """

    replay: Replay
    own: Written
    given: Written
    image: Bool[Tensor, " position"]
    token: Bool[Tensor, " position"]
    first: int = 0
    projections: dict[int, nn.Module | None] = field(default_factory=dict)
    alone: dict[Any, TargetValues] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)

    def projection(self, model: Any, layer: int) -> nn.Module | None:
        """Find a layer's output projection, once; see `find_projection`."""
        if layer not in self.projections:
            self.projections[layer] = find_projection(model, layer, self.own)
        return self.projections[layer]

    @torch.no_grad()
    def changes(self, model: Any, senders: Sequence[Senders]) -> Change:
        """Compute what senders change in the stream, a row for each set of them.

        A head's change goes through the output projection and, where a family has
        one, the norm behind it; heads of one layer that go together go through it
        together.
        """
        shape = (len(senders), *self.own.entering[0].shape[1:])
        total = torch.zeros(shape, device=self.own.entering[0].device)
        heads: dict[int, Tensor] = {}
        for row, together in enumerate(senders):
            for sender in together:
                if sender.kind == "head":
                    blank = torch.zeros(len(senders), model.n_heads, dtype=torch.bool)
                    heads.setdefault(sender.layer, blank)[row, sender.head] = True
                else:
                    total[row] += self._written_more(sender.layer, sender.name)
        for layer, mask in heads.items():
            rows = mask.any(1).nonzero().flatten()
            total[rows.to(total.device)] += self.head_changes(model, layer, mask[rows])
        return total

    def _written_more(self, layer: int, name: str) -> Tensor:
        """Compute the change of what is no head, `[position d_model]`."""
        if layer < 0:
            change = self.given.entering[0].float() - self.own.entering[0].float()
            where = {"image": self.image, "text": ~self.image}.get(name)
            return change[0] if where is None else change[0] * where[:, None]
        kind = "mlp" if name.endswith(".mlp") else "attention"
        new, old = getattr(self.given, kind)[layer], getattr(self.own, kind)[layer]
        changed: Tensor = new.float() - old.float()
        return changed[0]

    def head_changes(
        self, model: Any, layer: int, mask: Bool[Tensor, "row head"]
    ) -> Change:
        """Compute what a layer's heads change in the stream when some are exchanged.

        Where nothing but a linear projection follows the heads, that projection alone
        is run; else the layer.
        """
        old = self.own.heads[layer]
        where = mask.to(old.device)[:, None, :, None]
        proj = self.projection(model, layer)
        if proj is not None:
            moved = (self.given.heads[layer].to(old) - old) * where
            # beside a row of nothing: what the projection adds by itself cancels out
            moved = torch.cat([moved, torch.zeros_like(old)]).flatten(2)
            written = proj(moved).float()
            changed: Tensor = written[:-1] - written[-1:]
            return changed
        kept: dict[str, Tensor] = {}
        path = attention_writer(model.anatomy, layer)

        def exchange(layer: int, operation: Any, call: AttentionCall) -> None:
            del call
            output = operation.output
            new = torch.where(where, self.given.heads[layer].to(old), output[0][:-1])
            operation.output = (torch.cat([new, output[0][-1:]]), *output[1:])

        self.replay.run(
            model,
            len(mask) + 1,
            start=layer,
            at_calls={layer: exchange},
            blocks={str(path): _keep(kept, "attention")},
        )
        written = kept["attention"].float()
        written = written.view(len(mask) + 1, -1, written.shape[-1])
        return written[:-1] - written[-1:]


@torch.no_grad()
def find_projection(model: Any, layer: int, written: Written) -> nn.Module | None:
    """Find a layer's output projection, if it alone follows the heads.

    That it does is seen by running it: gates, norms and convolutions between the heads
    and the stream, and quantised projections, give something else.
    """
    site = model.anatomy.sites[layer]
    if site.out_proj is None:
        return None
    proj: nn.Module = model._module.get_submodule(site.out_proj)
    if find_quantised(proj) is not None:
        return None
    flat = written.heads[layer].flatten(2)
    weight = getattr(proj, "in_features", flat.shape[-1])
    if weight != flat.shape[-1]:
        return None
    found, expected = proj(flat).float(), written.attention[layer].float()
    if found.shape != expected.shape:
        return None
    coarse = {torch.float32: 1e-5, torch.float64: 1e-8}.get(model._module.dtype, 2e-2)
    size = float(expected.abs().max().clamp(min=1e-6))
    return proj if float((found - expected).abs().max()) <= coarse * size else None


def _keep(
    kept: dict[str, Tensor], name: str, instead: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Keep what a component returns, or return something else in its place."""

    def change(output: Tensor) -> Tensor:
        kept[name] = output
        return output if instead is None else instead.to(output).view(output.shape)

    return change


# ---- What receivers make of a changed stream.


@dataclass(frozen=True)
class Reading:
    """What readers of one layer compute from a changed stream, in each row.

    Attributes:
        queries: `[row head query d_head]`.
        keys: `[row kv_head key d_head]`.
        values: `[row kv_head key d_value]`.
        mlp: What the MLP adds, `[row position d_model]`.
    """

    queries: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    mlp: Tensor | None

    def of(self, receiver: Receiver) -> Tensor:
        """Return what a receiver computed, a row for each."""
        if receiver.input == "mlp":
            assert self.mlp is not None
            return self.mlp
        named = {"q": self.queries, "k": self.keys, "v": self.values}
        tensor = named[receiver.input]
        assert tensor is not None
        return tensor[:, receiver.index]


@torch.no_grad()
def read_changed(
    model: Any,
    exchange: Exchange,
    layer: int,
    before: Change,
    within: Change | None = None,
) -> Reading:
    """Run a layer on the recorded stream plus a change, attention added as recorded.

    Args:
        model: The LVLM.
        exchange: The item.
        layer: The layer.
        before: What is added to the stream that enters the layer.
        within: What is added after its attention: the change of its own heads.

    Returns:
        What its readers compute.
    """
    anatomy: Anatomy = model.anatomy
    n_rows = len(before)
    kept: dict[str, Tensor] = {}
    calls: dict[int, AttentionCall] = {}
    blocks: dict[str, Callable[[Tensor], Tensor]] = {}
    mixing, mlp = attention_writer(anatomy, layer), mlp_writer(anatomy, layer)
    if mlp is not None:
        blocks[mlp] = _keep(kept, "mlp")
    if mixing is not None:
        added = exchange.own.attention[layer]
        fixed = (
            added.expand(n_rows, -1, -1)
            if within is None
            else (added.float() + within).to(added)
        )
        blocks[mixing] = _keep({}, "attention", fixed)

    def look(layer: int, operation: Any, call: AttentionCall) -> None:
        del operation
        calls[layer] = call

    with _changed_stream(model, layer, before):
        exchange.replay.run(
            model,
            n_rows,
            start=layer,
            at_calls={layer: look} if layer in anatomy.sites else {},
            blocks=blocks,
        )
    call = calls.get(layer)
    added_by_mlp = kept.get("mlp")
    if added_by_mlp is not None:
        added_by_mlp = added_by_mlp.view(n_rows, -1, added_by_mlp.shape[-1])
    if call is None:
        return Reading(None, None, None, added_by_mlp)
    return Reading(call.queries, call.keys, call.values, added_by_mlp)


@contextlib.contextmanager
def _changed_stream(model: Any, layer: int, change: Change) -> Iterator[None]:
    """Add to the stream that enters a layer, or after the last one the final norm."""

    def add(stream: Tensor) -> Tensor:
        return (stream.float() + change.to(stream.device)).to(stream.dtype)

    anatomy: Anatomy = model.anatomy
    path = f"{anatomy.layers}.{layer}"
    if layer == anatomy.n_layers:
        path = str(anatomy.final_norm)
    module = model._module.get_submodule(path)
    handle = hook_stream(module, add)
    try:
        yield
    finally:
        handle.remove()


# ---- What becomes of the targets.


@torch.no_grad()
def run_attended(
    model: Any,
    exchange: Exchange,
    layer: int,
    given: Sequence[tuple[Receiver, Tensor] | None],
) -> RowValues | None:
    """Run copies in which one reader's query, key or value is another, the cheap way.

    Its attention is the recorded one but for the heads that the reader is of, so these
    alone attend anew, and what they change goes through their part of the output
    projection; of the last layer, only what is read goes on.

    Args:
        model: The LVLM.
        exchange: The item.
        layer: The readers' layer.
        given: A reader and what it has, for each copy, of as many heads each; None for
            a copy that is left alone.

    Returns:
        Every target in each copy; None where what attention returns does not follow
        from its heads that way.
    """
    replay = exchange.replay
    recording = replay.recording
    proj = exchange.projection(model, layer)
    if replay.ways.get(layer) or not _attends_alone(recording, layer, proj):
        return None
    assert isinstance(proj, nn.Linear)
    last = layer == model.anatomy.n_layers - 1
    first = exchange.first
    if last and replay.cuts_rows:
        first = max(first, replay.first_read)
    rows: list[HeadChanges | None] = [None] * len(given)
    if changed := [(row, one) for row, one in enumerate(given) if one is not None]:
        numbers, readers = zip(*changed, strict=True)
        changes, heads = _attend_anew(model, recording, layer, readers)
        for row, own, change in zip(numbers, heads, changes, strict=True):
            rows[row] = (own, change)
    returned = add_to_attended(recording, layer, proj, rows, first=first)
    try:
        values = replay.run(
            model, len(rows), start=layer, first=first, attended={layer: returned}
        )
        alone = [row for row, one in enumerate(given) if one is None]
        if alone:
            check_copy(model, recording, values[alone])
    except BREAKS as error:
        if is_out_of_memory(error):
            raise
        replay.ways[layer] = 1  # later layers need what attention computes beside
        return None
    return values


def _attends_alone(recording: Recording, layer: int, proj: nn.Module | None) -> bool:
    """Tell whether each head of a layer can attend by itself, outside a run."""
    if type(proj) is not nn.Linear or layer not in recording.attended:
        return False
    call = recording.calls[layer]
    extras = [call.options.get(name) for name in ("position_bias", "s_aux", "sinks")]
    if any(extra is not None for extra in extras):
        return False
    mask = call.mask
    if mask is None:
        return True
    return isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1] == 1


def _attend_anew(
    model: Any,
    recording: Recording,
    layer: int,
    given: Sequence[tuple[Receiver, Tensor]],
) -> tuple[Float[Tensor, "row query head d_value"], list[list[int]]]:
    """Let the heads of readers attend with what these are given.

    Returns:
        What each head returns more than in the recording; and which heads they are.
    """
    call, own = recording.calls[layer], recording.heads[layer]
    groups = model.n_heads // call.n_kv_heads
    heads = [
        [one.index]
        if one.input == "q"
        else list(range(one.index * groups, (one.index + 1) * groups))
        for one, _ in given
    ]
    queries = torch.stack([call.queries[0, each] for each in heads])
    keys, values = (
        torch.stack([tensor[0, [head // groups for head in each]] for each in heads])
        for tensor in (call.keys, call.values)
    )
    for row, (one, value) in enumerate(given):
        target = {"q": queries, "k": keys, "v": values}[one.input]
        target[row] = value.to(target)
    mask = call.mask
    if isinstance(mask, Tensor):
        mask = mask.expand(len(given), -1, -1, -1)
    found = replace(call, queries=queries, keys=keys, values=values, mask=mask).attend()
    before = torch.stack([own[0][:, each] for each in heads])
    return found.float() - before.float(), heads


Given = Mapping[Receiver, Tensor]
"""What receivers have instead of what they would compute."""


@torch.no_grad()
def run_given(
    model: Any, exchange: Exchange, start: int, rows: Sequence[Given]
) -> RowValues:
    """Run copies of an item in which receivers have what they are given.

    Args:
        model: The LVLM.
        exchange: The item.
        start: The first layer with such a receiver.
        rows: What is given to whom, in each copy; nothing to one that is left alone.
    """
    first = 0 if start in exchange.whole else exchange.first
    alone = [row for row, given in enumerate(rows) if not given]
    try:
        values = _run_rows(model, exchange.replay, rows, start=start, first=first)
        if first and alone:
            check_copy(model, exchange.replay.recording, values[alone])
    except BREAKS as error:
        if is_out_of_memory(error) or not first:
            raise
        exchange.whole.add(start)
        values = _run_rows(model, exchange.replay, rows, start=start, first=0)
    return values


def _run_rows(
    model: Any, replay: Replay, rows: Sequence[Given], *, start: int, first: int
) -> RowValues:
    anatomy: Anatomy = model.anatomy
    by_layer: dict[int, list[tuple[int, Receiver, Tensor]]] = {}
    blocks: dict[str, Callable[[Tensor], Tensor]] = {}
    added: dict[int, list[tuple[int, Tensor]]] = {}
    for row, given in enumerate(rows):
        for receiver, value in given.items():
            if receiver.input == "mlp":
                added.setdefault(receiver.layer, []).append((row, value))
            else:
                entry = (row, receiver, value)
                by_layer.setdefault(receiver.layer, []).append(entry)
    for layer, entries in added.items():
        blocks[str(mlp_writer(anatomy, layer))] = _write_rows(entries, len(rows))
    return replay.run(
        model,
        len(rows),
        start=start,
        first=first,
        at_calls={layer: _give(entries) for layer, entries in by_layer.items()},
        blocks=blocks,
    )


def _give(entries: Sequence[tuple[int, Receiver, Tensor]]) -> AtCall:
    """Give receivers of one layer their queries, keys and values."""
    names = {"q": "queries", "k": "keys", "v": "values"}

    def change(layer: int, operation: Any, call: AttentionCall) -> None:
        del layer
        changed: dict[str, Tensor] = {}
        for row, receiver, value in entries:
            name = names[receiver.input]
            if name not in changed:
                changed[name] = getattr(call, name).clone()
            own = changed[name][row, receiver.index]
            own.copy_(value[-len(own) :])  # a run may have the last rows only
        operation.inputs = replace(call, **changed).inputs  # type: ignore[arg-type]

    return change


def _write_rows(
    entries: Sequence[tuple[int, Tensor]], n_rows: int
) -> Callable[[Tensor], Tensor]:
    def change(output: Tensor) -> Tensor:
        lines = output.reshape(n_rows, -1).clone()
        for row, value in entries:
            lines[row] = value.reshape(-1)[-lines.shape[1] :].to(lines)
        return lines.view(output.shape)

    return change


@torch.no_grad()
def run_to_logit(
    model: Any, replay: Replay, change: Change, *, frozen: bool
) -> RowValues:
    """Add changes to the last layer's stream, and read the targets.

    Args:
        model: The LVLM.
        replay: The item.
        change: What is added, a row for each.
        frozen: Whether the final norm keeps its scale, and a soft cap its slope from
            zero: then changes of targets add up.
    """
    end = model.anatomy.n_layers
    if not frozen:
        with _changed_stream(model, end, change):
            return replay.run(model, len(change), start=end)
    with _frozen_end(model, change) as (raw, final):
        replay.run(model, len(change), start=end)
    case = replay.recording.case
    # the first row is that of no change: its chord serves all
    factor = torch.where(raw[0][:1] == 0, 1.0, final[0][:1] / raw[0][:1])
    logits = final[0][:1] + (raw[0] - raw[0][:1]) * factor
    readout = case.readout.of_copies([0] * len(change))
    _, read_at = keep_logits(model, case.readout.positions)
    values: TargetValues = readout.values(logits, places=read_at)
    return values.view(len(change), -1)


@contextlib.contextmanager
def _frozen_end(
    model: Any, change: Change
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Let a change pass the final norm with its scale as it is; keep the logits."""
    raw: list[Tensor] = []
    final: list[Tensor] = []
    root: nn.Module = model._module
    anatomy: Anatomy = model.anatomy

    def through(norm: nn.Module, args: Any, output: Tensor) -> Tensor:
        with torch.enable_grad():  # the frozen map is linear: twice back is forward
            stream = args[0].detach().requires_grad_()
            passed, _ = linearise_norm(norm, stream, output, name="the final norm")
            unit = torch.zeros_like(passed, requires_grad=True)
            (back,) = torch.autograd.grad(passed, stream, unit, create_graph=True)
            (tangent,) = torch.autograd.grad(back, unit, change.to(back))
        new: Tensor = output + tangent.to(output.dtype)
        return new

    def keep_raw(module: nn.Module, args: Any, output: Tensor) -> None:
        del module, args
        raw.append(output.float())

    def keep_final(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        final.append(output.logits.float())

    handles = [
        root.get_submodule(str(anatomy.final_norm)).register_forward_hook(through),
        root.get_submodule(str(anatomy.unembedding)).register_forward_hook(keep_raw),
        root.register_forward_hook(keep_final),
    ]
    try:
        yield raw, final
    finally:
        for handle in handles:
            handle.remove()
