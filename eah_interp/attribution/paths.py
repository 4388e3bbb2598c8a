"""Exact path patching: what one component does to an object through one reader of it.

Path patching (Wang et al., "Interpretability in the Wild", arXiv:2211.00593;
Goldowsky-Dill et al., "Localizing Model Behavior with Path Patching",
arXiv:2304.05969) of single edges: the receiver reads the stream as if the sender had
written what it writes in another run; everything else that writes is frozen.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from eah_interp.arguments import by_name, check_flag
from eah_interp.attribution.averages import ObjectResult
from eah_interp.attribution.cases import Ask, Case, asks
from eah_interp.attribution.edge_runs import (
    Exchange,
    Given,
    Reading,
    read_changed,
    record_streams,
    run_attended,
    run_given,
    run_to_logit,
)
from eah_interp.attribution.edges import (
    Names,
    Receivers,
    Senders,
    check_stream,
    find_receivers,
    find_senders,
    is_edge,
    name_set,
)
from eah_interp.attribution.nodes import grid_of_heads
from eah_interp.attribution.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.replay import (
    check_batch_size,
    choose_batch_size,
    in_batches,
    prepare_replay,
    worth_cutting,
)
from eah_interp.attribution.results import (
    check_finite_result,
    check_target,
    label_cell,
    label_targets,
    largest,
    name_targets,
)
from eah_interp.attribution.runs import Recording
from eah_interp.attribution.sources import (
    PathSource,
    PosedItem,
    average_over,
    check_source,
    pose_both,
)
from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import check_choice, check_integer
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import name_model
from eah_interp.shown_results import list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- Effects of edges, labelled: the result of `patch_paths`.


FinalNorm = Literal["recomputed", "frozen"]
"""Whether the last norm is computed anew for what reaches the logit directly, or keeps
its scale (and a soft cap its slope from zero), so that effects add up."""


@dataclass(frozen=True, eq=False, repr=False)
class PathPatching(ObjectResult):
    """How targets change when a receiver sees another run's sender.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        source: Where senders' outputs were taken from: a run, `"zero"`, `"mean"` or
            `"resampled"`.
        source_patch: Settings of the source; None where it is no patched run.
        final_norm: How the last norm took what reached the logit.
        senders: Who sent, for each edge: `L3H7`, or `L3H7+L3.mlp` together.
        receivers: Who received, for each edge: `L5H2.q`, `L5.mlp`, `logit`.
        values: The targets in the run as it is.
        source_values: The targets in the source run; None where it is no run of an
            item's own.
        effects: Change of each target by each edge.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    source: str
    source_patch: Intervention | None
    final_norm: FinalNorm
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    values: TargetValues
    source_values: TargetValues | None
    effects: Float[Tensor, "target edge"]

    def frame(self) -> pd.DataFrame:
        """List every edge of every target.

        Returns:
            Columns `object present row position target sender receiver input name
            effect value`: `receiver` and `input` are `L5H2` and `q`, `L5.mlp` and
            `stream`, `logit` and `stream`; `name` is all of it, `L3H7 -> L5H2.q`;
            `value` is what the target was before.
        """
        table = list_edges(self.targets, self.senders, self.receivers)
        table["effect"] = self.effects.double().flatten().numpy()
        table["value"] = self.values.double().numpy()[table["target"]]
        return table

    @property
    def names(self) -> tuple[str, ...]:
        """Name each edge: `L3H7 -> L5H2.q`."""
        return tuple(
            name_path(*ends) for ends in zip(self.senders, self.receivers, strict=True)
        )

    def _about(self) -> str:
        return (
            f"{self.source} into plain, {name_targets(self.targets)}, "
            f"{len(self.senders)} edges, metric {self.metric}; largest effect first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            return label_cell(self.targets, cell[0]) | {"name": self.names[cell[1]]}

        columns = {"effect": self.effects}
        columns["value"] = self.values[:, None].expand_as(self.effects)
        return list_largest(columns, by="effect", k=k, label=label)

    def top(self, k: int = 10) -> pd.DataFrame:
        """List each target's `k` edges with the largest effects, either sign.

        Raises:
            SettingsError: If `k` is below 1.
        """
        return largest(self.frame(), k, by="effect")

    def grid(self, target: int = 0, *, receiver: str) -> Float[Tensor, "layer head"]:
        """Lay out by the sender's layer and head what one receiver takes from heads.

        Layers are those that have a head that sends to it, in order; NaN where a head
        was not asked for.

        Args:
            target: Which target.
            receiver: `L5H2.q`, as in `receivers`.

        Raises:
            SettingsError: If there is no such target or receiver, or no head sends to
                it.
        """
        check_target(self.targets, target)
        own = [i for i, name in enumerate(self.receivers) if name == receiver]
        if not own:
            known = ", ".join(dict.fromkeys(self.receivers))
            msg = f"receiver={show_value(receiver)} received nothing: expected {known}"
            raise SettingsError(msg)
        effects = self.effects[target, own]
        return grid_of_heads([self.senders[i] for i in own], effects)[1]

    def plot(
        self, target: int = 0, *, k: int = 12, ax: "Axes | None" = None
    ) -> "Figure":
        """Draw the edges with the largest effects as bars.

        Args:
            target: Which target.
            k: How many.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
            SettingsError: If there is no such target, or `k` is below 1.
        """
        from eah_interp.viz.heads import plot_bars

        check_target(self.targets, target)
        table = self.frame()
        top = largest(table[table["target"] == target], k, by="effect")
        return plot_bars(
            [name.replace("->", "\N{RIGHTWARDS ARROW}") for name in top["name"]],
            {"effect": list(top["effect"])},
            title=f"{len(top)} edges, largest effect first",
            axis=f"effect on {self.targets[target].label}",
            ax=ax,
        )


def name_path(sender: str, receiver: str) -> str:
    """Name an edge.

    Example:
        >>> name_path("L3H7", "L5H2.q")
        'L3H7 -> L5H2.q'
    """
    return f"{sender} -> {receiver}"


def list_edges(
    targets: Sequence[Target], senders: Sequence[str], receivers: Sequence[str]
) -> pd.DataFrame:
    """List target, object, row, position, sender, receiver, input and name of edges.

    Rows are in the order of a flattened `[target edge]`.

    Example:
        >>> table = list_edges([Target("boat", 0, 7, "boat")], ["L1H0"], ["L2H3.q"])
        >>> table[["sender", "receiver", "input"]].values.tolist()
        [['L1H0', 'L2H3', 'q']]
    """
    index = pd.MultiIndex.from_product(
        [range(len(targets)), range(len(senders))], names=["target", "edge"]
    ).to_frame(index=False)
    which = index.pop("edge").to_numpy()
    parts = [split_receiver(name) for name in receivers]
    table = label_targets(index, targets)
    table["sender"] = [senders[i] for i in which]
    table["receiver"] = [parts[i][0] for i in which]
    table["input"] = [parts[i][1] for i in which]
    table["name"] = [name_path(senders[i], receivers[i]) for i in which]
    return table


def split_receiver(name: str) -> tuple[str, str]:
    """Split a receiver's name into who receives and by which input.

    Example:
        >>> split_receiver("L5H2.q"), split_receiver("L5.mlp")
        (('L5H2', 'q'), ('L5.mlp', 'stream'))
    """
    if "+" in name:
        return name, "set"
    who, _, what = name.rpartition(".")
    return (who, what) if what in ("q", "k", "v") else (name, "stream")


# ---- Which edges are patched, and in which order.


@dataclass(frozen=True)
class Plan:
    """Edges in the order in which they are run.

    Attributes:
        senders: Whose outputs are exchanged, each set by itself.
        receivers: Who reads them, each set by itself.
        edges: Which of the senders, and which of the receivers, for each edge.
        batch_size: Most rows in a batch; by device and memory when None.
    """

    senders: tuple[Senders, ...]
    receivers: tuple[Receivers, ...]
    edges: tuple[tuple[int, int], ...]
    batch_size: int | None

    @classmethod
    def of(
        cls,
        senders: Sequence[Senders],
        receivers: Sequence[Receivers],
        batch_size: int | None,
    ) -> "Plan":
        """List the edges between senders and receivers: whoever writes before.

        Raises:
            SettingsError: If nobody writes before somebody reads.
        """
        edges = tuple(
            (i, j)
            for i, sender in enumerate(senders)
            for j, receiver in enumerate(receivers)
            if is_edge(sender, receiver)
        )
        if not edges:
            msg = (
                f"there is no edge from {name_set(senders[0])} to "
                f"{name_set(receivers[0])}, or any other sender to a receiver that was "
                "named: expected senders in layers before their receivers (the heads "
                "of a layer write before its MLP reads, where it stands behind them)"
            )
            raise SettingsError(msg)
        return cls(tuple(senders), tuple(receivers), edges, batch_size)

    def rows(self, model: Any, n_positions: int) -> int:
        """Say how many copies share a batch that run so many positions each."""
        return self.batch_size or choose_batch_size(model, n_positions)

    def chunks(self, n_rows: int) -> Iterator[list[int]]:
        """Yield senders whose changes share a batch: as many as fit."""
        used = sorted({sender for sender, _ in self.edges})
        for start in range(0, len(used), n_rows):
            yield used[start : start + n_rows]

    def groups(self) -> dict[tuple[int, ...], list[int]]:
        """List receivers by the layers in which they read."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, receivers in enumerate(self.receivers):
            layers = tuple(sorted({receiver.layer for receiver in receivers}))
            groups.setdefault(layers, []).append(number)
        return groups

    def count_passes(self, n_rows: int) -> int:
        """Count the forward passes of an item, most of them of its last layers only."""
        edges = set(self.edges)
        total = 4  # the run, its source, and two that try what can be left out
        for chunk in self.chunks(n_rows):
            sent = [sender for i in chunk for sender in self.senders[i]]
            total += len({one.layer for one in sent if one.kind == "head"})
            for layers, receivers in self.groups().items():
                rows = sum((i, j) in edges for i in chunk for j in receivers)
                reads = [layer for layer in layers if self._reads(layer)]
                total += (len(reads) if rows else 0) + math.ceil(rows / n_rows)
        return total

    def _reads(self, layer: int) -> bool:
        return any(
            one.input != "logit"
            for receivers in self.receivers
            for one in receivers
            if one.layer == layer
        )


def measure_paths(
    model: Any,
    exchange: Exchange,
    plan: Plan,
    *,
    final_norm: FinalNorm,
    advance: Callable[[int], object] = int,
) -> Float[Tensor, "edge target"]:
    """Measure how each edge of a plan changes an item's targets.

    Args:
        model: The LVLM.
        exchange: The item.
        plan: The edges.
        final_norm: How the last norm takes what reaches the logit.
        advance: Told how many edges are done.
    """
    values = exchange.replay.recording.values
    place = {edge: number for number, edge in enumerate(plan.edges)}
    found = torch.zeros(len(plan.edges), len(values), device=values.device)
    n_tokens = exchange.replay.n_tokens
    for chunk in plan.chunks(plan.rows(model, n_tokens)):
        senders = [plan.senders[i] for i in chunk]
        change = exchange.changes(model, senders)
        moved = change.flatten(1).any(1).tolist()
        for layers, receivers in plan.groups().items():
            edges = [
                (row, j)
                for row, i in enumerate(chunk)
                for j in receivers
                if (i, j) in place
            ]
            advance(sum(not moved[row] for row, _ in edges))
            edges = [edge for edge in edges if moved[edge[0]]]
            if not edges:
                continue
            measured = _measure_group(
                model,
                exchange,
                change,
                [(row, plan.receivers[j]) for row, j in edges],
                senders=senders,
                layers=layers,
                final_norm=final_norm,
                plan=plan,
            )
            for (row, j), line in zip(edges, measured, strict=True):
                found[place[chunk[row], j]] = line
            advance(len(edges))
    return found


def _measure_group(
    model: Any,
    exchange: Exchange,
    change: Tensor,
    edges: Sequence[tuple[int, Receivers]],
    *,
    senders: Sequence[Senders],
    layers: tuple[int, ...],
    final_norm: FinalNorm,
    plan: Plan,
) -> Tensor:
    """Measure edges into receivers of some layers, `[edge target]`."""
    nothing = torch.zeros_like(change[:1])
    if layers == (model.anatomy.n_layers,):
        # beside a row that is left alone: what a batch does to rounding cancels out

        def add(rows: list[int]) -> Tensor:
            changes = torch.cat([nothing, change[rows]])
            values = run_to_logit(
                model, exchange.replay, changes, frozen=final_norm == "frozen"
            )
            return values[1:] - values[:1]

        n_rows = plan.rows(model, exchange.replay.n_tokens)
        return in_batches([row for row, _ in edges], add, batch_size=n_rows)
    rows = sorted({row for row, _ in edges})
    readings: dict[int, Reading] = {}
    for layer in layers:
        within = exchange.changes(
            model, [_heads_of(senders[row], layer) for row in rows]
        )
        before = change[rows] - within
        readings[layer] = read_changed(
            model,
            exchange,
            layer,
            torch.cat([nothing, before]),
            torch.cat([nothing, within]),
        )
    jobs: list[tuple[int, Given]] = []
    for number, (row, receivers) in enumerate(edges):
        given, same = {}, True
        for one in receivers:
            value = readings[one.layer].of(one)
            given[one] = value[rows.index(row) + 1]
            same = same and torch.equal(given[one], value[0])
        if not same:
            jobs.append((number, given))
    found = torch.zeros(len(edges), len(exchange.replay.recording.values)).to(change)
    if jobs:
        own = [given for _, given in jobs]
        lines = _run_jobs(model, exchange, layers, own, plan)
        found[[number for number, _ in jobs]] = lines.to(found)
    return found


def _run_jobs(
    model: Any,
    exchange: Exchange,
    layers: tuple[int, ...],
    jobs: Sequence[Given],
    plan: Plan,
) -> Tensor:
    """Measure what receivers of some layers do that have something else.

    Returns:
        Changes of the targets, `[job target]`: relative to a copy that was left alone
        in a batch of that kind, so that what a batch does to rounding cancels out.
    """
    kinds = [_kind_of(given) for given in jobs]
    missing = sorted({kind for kind in kinds if (layers, kind) not in exchange.alone})
    listed: list[tuple[str, Given]] = [(kind, {}) for kind in missing]
    listed += zip(kinds, jobs, strict=True)

    def give(batch: list[tuple[str, Given]]) -> Tensor:
        values = None
        if batch[0][0] != "others":
            single = [next(iter(given.items()), None) for _, given in batch]
            values = run_attended(model, exchange, layers[0], single)
        if values is None:
            rows = [given for _, given in batch]
            values = run_given(model, exchange, layers[0], rows)
        return values

    values = torch.zeros(len(listed), len(exchange.replay.recording.values))
    for kind in sorted(set(kinds)):
        own = [number for number, (name, _) in enumerate(listed) if name == kind]
        n_rows = plan.rows(model, _count_rows(model, exchange, layers, kind))
        found = in_batches([listed[number] for number in own], give, batch_size=n_rows)
        values = values.to(found)
        values[own] = found
    for kind, line in zip(missing, values, strict=False):
        exchange.alone[layers, kind] = line
    alone = torch.stack([exchange.alone[layers, kind] for kind in kinds])
    return values[len(missing) :] - alone


def _count_rows(
    model: Any, exchange: Exchange, layers: tuple[int, ...], kind: str
) -> int:
    """Count the positions that each copy runs: of the last layer, what is read."""
    replay, first = exchange.replay, exchange.first
    last = layers[0] == model.anatomy.n_layers - 1
    if last and kind != "others" and replay.cuts_rows:
        first = max(first, replay.first_read)
    return replay.n_tokens - first


def _kind_of(given: Given) -> str:
    """Tell apart what can share the cheap way: inputs of one head, of a group."""
    inputs = [one.input for one in given]
    if len(inputs) > 1 or inputs[0] == "mlp":
        return "others"
    return "head" if inputs[0] == "q" else "group"


def _heads_of(senders: Senders, layer: int) -> Senders:
    """List those of some senders that write in the first half of a layer."""
    return tuple(sender for sender in senders if sender.place == (layer, 0))


# ---- Effects of edges over items: `patch_paths`.


def prepare_exchange(
    model: Any,
    item: PosedItem,
    source: PathSource,
) -> tuple[Exchange, Recording]:
    """Run one item, and the run that its senders' outputs are taken from.

    Returns:
        What senders would write instead; and the run that it is from, which for
        `"zero"` and `"mean"` is the item's own.
    """
    run, own = record_streams(model, item.case)
    assert run.prompt is not None
    taken, given = run, own
    tokens = run.prompt.token_mask[0]
    if source in ("zero", "mean"):
        given = own.change(
            average_over(tokens) if source == "mean" else torch.zeros_like
        )
    else:
        taken, given = record_streams(model, item.other, item.patch)
    first = own.first_apart(given)
    replay = prepare_replay(model, run, first=first)
    first = worth_cutting(first, replay.n_tokens) if replay.cuts_rows else 0
    exchange = Exchange(replay, own, given, run.prompt.image_mask[0], tokens, first)
    return exchange, taken


@by_name
@asks
def patch_paths(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    receivers: Names,
    senders: Names | None = None,
    source: PathSource = "plain",
    source_images: object = None,
    source_prompts: object = None,
    final_norm: FinalNorm = "recomputed",
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    **asked: Unpack[Ask],
) -> PathPatching:
    """Patch single edges: who reads a head, by which input, on the way to an object.

    The effect of an edge from a sender to a receiver is the target's value when the
    receiver reads the recorded stream plus what the sender changes in it, minus the
    target's value as it is. What the sender changes is its output in the source run
    minus its own, through the output projection and, where a family has one, the norm
    behind it. All other heads and MLPs write what they wrote, up to the receiver;
    what comes after the receiver is run anew. This is path patching (Wang et al.,
    arXiv:2211.00593; Goldowsky-Dill et al., arXiv:2304.05969) with one edge to a path.

    A receiver is an input of a head, an MLP, or the logit. A query belongs to a head
    (`L5H2.q`); where heads share keys and values, a key or value belongs to their
    group (`L5G1.k`). The logit reads the stream after the last layer; with
    `final_norm="frozen"` its norm keeps the scale of the run as it is, and effects of
    senders add up to that of all of them (the change of direct effects).

    Many edges share a forward pass, which starts at the receiver's layer and, where the
    source differs in the last positions alone, at the first of these; the bar says how
    many passes there are at most before it begins.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        receivers: `"L5H2.q"`, `"L5G1.k"`, `"L5.mlp"`, `"logit"`; `"L5H2"` for each
            input of a head, `"L5"` for each of a layer, `"all"` for each there is.
            Names in a list of their own get the change together.
        senders: `"L3H7"`, `"L3.mlp"`, `"embedding"` (what enters the first layer), or
            of it `"image"` or `"text"`: what enters at these tokens. Names in a list of
            their own are exchanged together. Every head, MLP and the embedding, each by
            itself, when None. Pairs in which the receiver reads first are left out.
        source: What senders write instead: `"plain"`, in the run of `source_images` or
            `source_prompts`; an intervention's settings, in that run of the same item;
            `"zero"`, nothing; `"mean"`, the mean over the item's positions;
            `"resampled"`, what they write in another item of the batch.
        source_images: Other images for the source (or a `Case`), whose tokens stand
            where those of `images` do.
        source_prompts: Other prompts for the source, of the same length.
        final_norm: `"recomputed"` or `"frozen"`; the latter changes edges to the
            logit only.
        batch_size: Most edges in one forward pass; by device and memory when None.
            Halved, with a warning, when memory runs out.
        seed: Which items `"resampled"` draws.
        progress: Whether to show a bar.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        Effects by target and edge, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, the caption names no object, or
            positions of source and target do not correspond.
        SettingsError: If a word cannot be spelled, a sender, receiver or mode does not
            exist, no sender writes before a receiver reads, or the metric is not
            linear in the logits and the final norm is frozen.
        ModelError: If a layer has no heads.
        UnsupportedError: If a layer does not add to its input (Gemma 4, Granite), so
            that edges are not defined, or items of a batch are not independent.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.toy import draw_scene, without_object
        >>> scene, question = draw_scene(0), "Is there a boat in the image?"
        >>> found = patch_paths(
        ...     eah.load(),
        ...     draw_scene(0, objects=["boat", "fish"]).pil(),
        ...     "Describe the image.",
        ...     objects=["boat"],
        ...     source_images=draw_scene(0, objects=["fish"]).pil(),
        ...     senders=["L1H3", "L1.mlp"],
        ...     receivers=["L3H7", "logit"],
        ... )
        >>> found.names[:2], found.effects.shape
        (('L1H3 -> L3H7.q', 'L1H3 -> L3G3.k'), torch.Size([1, 8]))
    """
    check_batch_size(batch_size)
    seed = check_integer("seed", seed)
    progress = check_flag("progress", progress)
    check_choice("final_norm", final_norm, FinalNorm)
    check_source(model, source)
    check_stream(model)
    plan = Plan.of(
        find_senders(model, senders), find_receivers(model, receivers), batch_size
    )
    posed = pose_both(
        model,
        images,
        prompts,
        source=source,
        source_images=source_images,
        source_prompts=source_prompts,
        seed=seed,
        **asked,
    )
    check_frozen(posed.case, final_norm)
    items = posed.items()
    effects, values, theirs = [], [], []
    n_passes = plan.count_passes(plan.rows(model, posed.n_tokens))
    n_edges = len(plan.edges)
    with tqdm(
        total=n_edges * len(items),
        desc=f"{n_edges} edges, at most {n_passes} passes an item",
        disable=not progress,
    ) as bar:
        for item in items:
            exchange, taken = prepare_exchange(model, item, source)
            found = measure_paths(
                model, exchange, plan, final_norm=final_norm, advance=bar.update
            )
            effects.append((item.targets, found.T))
            values.append((item.targets, exchange.replay.recording.values))
            theirs.append((item.targets, taken.values))
    readout = posed.case.readout
    return check_finite_result(
        PathPatching(
            model=name_model(model),
            metric=readout.metric,
            targets=readout.targets,
            source=posed.name,
            source_patch=posed.patch,
            final_norm=final_norm,
            senders=tuple(name_set(plan.senders[i]) for i, _ in plan.edges),
            receivers=tuple(name_set(plan.receivers[j]) for _, j in plan.edges),
            values=posed.gather(values),
            source_values=posed.gather(theirs) if posed.is_run else None,
            effects=posed.gather(effects),
        )
    )


def check_frozen(case: Case, final_norm: FinalNorm) -> None:
    """Check that effects add up where the final norm is frozen.

    Raises:
        SettingsError: If the metric is not linear in the logits.
    """
    if final_norm == "frozen" and not case.readout.is_linear:
        msg = (
            'final_norm="frozen" makes effects add up, and a log-probability is no '
            'sum: expected metric="logit", "logit_diff" or "yes_no", or '
            'final_norm="recomputed"'
        )
        raise SettingsError(msg)
