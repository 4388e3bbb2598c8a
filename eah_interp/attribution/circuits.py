"""Circuits: the edges with the largest effects kept, all others carrying another run.

How much of a behaviour a circuit explains is measured as the MIB benchmark does
(Mueller et al., "MIB: A Mechanistic Interpretability Benchmark", arXiv:2504.13151):
faithfulness over sizes, the area under it (CPR), and the area between it and one (CMD).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.arguments import by_name, check_flag, check_kind
from eah_interp.attribution.averages import ObjectResult
from eah_interp.attribution.cases import Ask, asks
from eah_interp.attribution.chunks import show_items
from eah_interp.attribution.circuit_runs import Edge, check_circuits, run_circuits
from eah_interp.attribution.edges import (
    EMBEDDINGS,
    check_stream,
    find_receivers,
    find_senders,
    is_edge,
    list_receivers,
    list_senders,
)
from eah_interp.attribution.path_gradients import PathApproximation
from eah_interp.attribution.paths import (
    PathPatching,
    name_path,
    prepare_exchange,
    split_receiver,
)
from eah_interp.attribution.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.replay import check_batch_size, choose_batch_size
from eah_interp.attribution.results import (
    check_finite_result,
    label_targets,
    name_targets,
)
from eah_interp.attribution.sources import PathSource, check_source, pose_both
from eah_interp.errors import InputError, SettingsError, UnsupportedError, show_value
from eah_interp.indices import check_integer, to_float, to_list
from eah_interp.lvlm.anatomy import name_model
from eah_interp.shown_results import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of all edges at which the MIB benchmark measures faithfulness."""

TOLERANCE = 1e-3
"""Share of a target's value (or of 1) by which the run with every edge kept may differ
from the run as it is, and that with none from the other, in float32."""

COARSE = 0.02
"""In coarser types, where one step of a logit is more than that: share of the behaviour
by which they may differ, in the mean over targets. Faithfulness is off by no more."""

# ---- What circuits of some sizes leave of the targets.


@dataclass(frozen=True, eq=False, repr=False)
class Circuits(ObjectResult):
    """What becomes of targets when only the foremost edges are kept.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        source: What all other edges carry.
        senders: Who sends, for each edge, the foremost edge first.
        receivers: Who receives, for each edge.
        scores: What edges were ordered by: the mean effect over targets.
        shares: The share of the edges that is kept, for each size.
        sizes: How many edges that is.
        chosen: Which of the sizes was looked at more closely.
        values: The targets in the run as it is: every edge kept.
        source_values: The targets in the other run: no edge kept.
        kept: The targets with a circuit's edges kept and all others not.
        left: The targets with a circuit's edges not kept and all others kept.
        random: The targets with as many edges of each draw kept.
        without: Of the chosen size, the targets with each edge left out by itself.
        stability: For each size the share of the edges of a circuit found on one half
            of the items that is also in that of the other half, the mean over draws of
            halves; NaN where there are not two items.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    source: str
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    scores: Float[Tensor, " edge"]
    shares: tuple[float, ...]
    sizes: tuple[int, ...]
    chosen: int
    values: TargetValues
    source_values: TargetValues
    kept: Float[Tensor, "target size"]
    left: Float[Tensor, "target size"]
    random: Float[Tensor, "draw target size"]
    without: Float[Tensor, "target dropped"]
    stability: Float[Tensor, " size"]

    def share_of(self, values: Float[Tensor, "target ..."]) -> Float[Tensor, "..."]:
        """Say what share of the behaviour values have: 0 as the other run, 1 as this.

        Of means over targets, as the MIB benchmark has it.
        """
        behaviour = self.values.mean() - self.source_values.mean()
        found: Tensor = (values.mean(0) - self.source_values.mean()) / behaviour
        return found

    @property
    def faithfulness(self) -> Float[Tensor, " size"]:
        """The share of the behaviour that each circuit has."""
        return self.share_of(self.kept)

    @property
    def completeness(self) -> Float[Tensor, " size"]:
        """The share of the behaviour that is left without each circuit.

        Near zero where the circuit is all there is to it.
        """
        return self.share_of(self.left)

    @property
    def minimality(self) -> Float[Tensor, " dropped"]:
        """The share of the behaviour that the chosen circuit loses with each edge.

        Near zero where an edge could be left out.
        """
        whole: Tensor = self.faithfulness[self.chosen] - self.share_of(self.without)
        return whole

    @property
    def cpr(self) -> float:
        """The circuit performance ratio: the area under faithfulness over shares."""
        return area(self.shares, self.faithfulness)

    @property
    def cmd(self) -> float:
        """The circuit-model distance: the area between faithfulness and one."""
        return area(self.shares, (1 - self.faithfulness).abs())

    @property
    def random_cpr(self) -> Float[Tensor, " draw"]:
        """The circuit performance ratio of each draw of random edges."""
        drawn = [area(self.shares, self.share_of(one)) for one in self.random]
        return torch.tensor(drawn)

    @property
    def random_cmd(self) -> Float[Tensor, " draw"]:
        """The circuit-model distance of each draw of random edges."""
        drawn = [
            area(self.shares, (1 - self.share_of(one)).abs()) for one in self.random
        ]
        return torch.tensor(drawn)

    def frame(self) -> pd.DataFrame:
        """List every circuit of every target.

        Returns:
            Columns `object present row position target name share size kept left
            random value source`: the target with the circuit alone, without it, with
            as many random edges (the mean over draws), in the run as it is and in the
            other.
        """
        n_targets, n_sizes = self.kept.shape
        index = pd.MultiIndex.from_product(
            [range(n_targets), range(n_sizes)], names=["target", "size"]
        ).to_frame(index=False)
        which = index.pop("size").to_numpy()
        table = label_targets(index, self.targets)
        table["name"] = [count(self.sizes[i], "edge") for i in which]
        table["share"] = [self.shares[i] for i in which]
        table["size"] = [self.sizes[i] for i in which]
        columns = {"kept": self.kept, "left": self.left}
        if len(self.random):
            columns["random"] = self.random.mean(0)
        for name, values in columns.items():
            table[name] = values.double().flatten().numpy()
        table["value"] = self.values.double().numpy()[table["target"]]
        table["source"] = self.source_values.double().numpy()[table["target"]]
        return table

    def list_edges(self, size: int | None = None) -> pd.DataFrame:
        """List the edges of a circuit, the foremost first.

        Args:
            size: How many; those of the chosen size when None, with what the circuit
                loses without each (`minimality`).

        Raises:
            SettingsError: If it is below 1.

        Returns:
            Columns `sender receiver input name score`, and `minimality`.
        """
        own = self.sizes[self.chosen]
        n = own if size is None else check_integer("size", size, least=1)
        parts = [split_receiver(name) for name in self.receivers[:n]]
        table = pd.DataFrame(
            {
                "sender": self.senders[:n],
                "receiver": [who for who, _ in parts],
                "input": [what for _, what in parts],
                "name": list(map(name_path, self.senders[:n], self.receivers[:n])),
                "score": self.scores[:n].double().numpy(),
            }
        )
        if n == own and len(self.minimality) == n:
            table["minimality"] = self.minimality.double().numpy()
        return table

    def _compared(self) -> str:
        return "kept"

    def _about(self) -> str:
        chance = ""
        if len(self.random):
            chance = (
                f" (random edges {float(self.random_cpr.mean()):.2f} and "
                f"{float(self.random_cmd.mean()):.2f})"
            )
        return (
            f"{self.source} in all other edges, {name_targets(self.targets)}, "
            f"{len(self.senders)} edges, metric {self.metric}; CPR {self.cpr:.2f}, CMD "
            f"{self.cmd:.2f}{chance}"
        )

    def _first(self, k: int) -> pd.DataFrame:
        return self.frame()[["object", "size", "kept", "left", "value", "source"]].head(
            k
        )

    def plot(self, *, size: int | None = None, ax: "Axes | None" = None) -> "Figure":
        """Draw a circuit as a graph: layers upwards, an arrow for each edge.

        At the bottom stand the image's and the other tokens, at the top the logit;
        colours tell by which input an edge is read, widths how much it does.

        Args:
            size: How many edges; those of the chosen size when None.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
            SettingsError: If `size` is below 1.
        """
        from eah_interp.viz.graphs import plot_graph

        table = self.list_edges(size)
        return plot_graph(
            list(zip(table["sender"], table["receiver"], table["input"], strict=True)),
            weights=list(table["score"]),
            title=f"{count(len(table), 'edge')} of {len(self.senders)}",
            ax=ax,
        )

    def plot_faithfulness(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw faithfulness over the share of edges, beside that of random edges.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.graphs import plot_shares

        lines = {"kept": self.faithfulness.tolist()}
        lines["left out"] = self.completeness.tolist()
        if len(self.random):
            drawn = torch.stack([self.share_of(one) for one in self.random])
            lines["random"] = drawn.mean(0).tolist()
        return plot_shares(self.shares, lines, axis="share of the behaviour", ax=ax)


def area(shares: Sequence[float], heights: Sequence[float] | Tensor) -> float:
    """Integrate by trapezia over shares, as the MIB benchmark does.

    Example:
        >>> area((0.0, 0.5, 1.0), (0.0, 1.0, 1.0))
        0.75
    """
    at = torch.tensor(list(shares), dtype=torch.float64)
    heights = torch.as_tensor(heights, dtype=torch.float64)
    return float(torch.trapezoid(heights, at))


# ---- Finding them.


@by_name
@asks
def find_circuits(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    edges: PathPatching | PathApproximation,
    source: PathSource = "plain",
    source_images: object = None,
    source_prompts: object = None,
    shares: Sequence[float] = SHARES,
    chosen: float = 0.01,
    n_random: int = 5,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    **asked: Unpack[Ask],
) -> Circuits:
    r"""Keep the foremost edges, corrupt the rest, and measure what is left.

    Edges are ordered by the absolute mean effect over the targets of `edges`, which has
    to have every edge there is: `approximate_paths(...)` or `patch_paths(...,
    receivers="all")`. In a circuit every receiver reads the other run's stream plus,
    for each kept edge, what its sender writes here minus what it writes there. With
    every edge kept that is the run as it is, with none the other run. Both are checked:
    to 1e-3 in float32, and in coarser types, whose steps are larger, to 2 % of what the
    two runs differ by; shares are no more exact than that.

    Faithfulness is $(m(C) - m(\emptyset)) / (m(N) - m(\emptyset))$ of means over
    targets; `cpr` and `cmd` are areas over the shares that are kept (Mueller et al.,
    arXiv:2504.13151). Completeness is the same of all edges but the circuit's (Wang et
    al., arXiv:2211.00593), minimality what a circuit loses with each of its edges.
    Random edges of the same number say what chance gives, and halves of the items how
    much the circuit depends on them.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        edges: What edges are ordered by.
        source: What all other edges carry: `"plain"`, the run of `source_images` or
            `source_prompts`; `"resampled"`, that of another item of the batch.
        source_images: Other images for the source (or a `Case`), whose tokens stand
            where those of `images` do.
        source_prompts: Other prompts for the source, of the same length.
        shares: Which shares of all edges are kept, ascending.
        chosen: The share, one of `shares`, whose edges are left out one by one.
        n_random: Draws of random edges, for each size.
        batch_size: Most rows in one forward pass; by device and memory when None.
        seed: Of random edges, of halves, and of `"resampled"`.
        progress: Whether to show a bar over items.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        The targets under every circuit, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, positions of source and target do
            not correspond, or the other run has the same targets.
        SettingsError: If `edges` lack some, the source is no run of other inputs, or a
            number is impossible.
        UnsupportedError: If what heads write does not add up (a norm or gate behind
            them), circuits of every edge and of none are not the two runs, or the
            dtype is too coarse for what these differ by.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import approximate_paths
        >>> from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> asked = {
        ...     "images": random_image(0),
        ...     "prompts": " is there a cat ?",
        ...     "objects": ["cat"],
        ...     "source_images": random_image(3),
        ... }
        >>> edges = approximate_paths(model, **asked)
        >>> found = find_circuits(
        ...     model, edges=edges, shares=(0.05, 1.0), chosen=0.05, n_random=1, **asked
        ... )
        >>> found.sizes, round(float(found.faithfulness[-1]), 3)
        ((13, 262), 1.0)
    """
    check_batch_size(batch_size)
    seed, n_random = check_integer("seed", seed), check_integer("n_random", n_random)
    progress = check_flag("progress", progress)
    ascending = _check_shares(shares, chosen)
    check_kind(
        "edges",
        edges,
        (PathPatching, PathApproximation),
        expected="what approximate_paths or patch_paths found",
        error=SettingsError,
    )
    check_source(model, source)
    if source not in ("plain", "resampled"):
        msg = (
            "what is not kept carries another run of the model: expected "
            'source="plain" with source_images or source_prompts, or '
            f'source="resampled", got {show_value(source)}'
        )
        raise SettingsError(msg)
    check_stream(model)
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
    ordered, scores, effects = order_edges(model, edges)
    sizes = tuple(max(1, round(share * len(ordered))) for share in ascending)
    which = ascending.index(chosen)
    draws = _draw_orders(len(ordered), n_random, seed=seed)
    listed = list_circuits(ordered, sizes, which, draws)
    n_rows = batch_size or choose_batch_size(model, posed.n_tokens)
    is_fine = model._module.dtype in (torch.float32, torch.float64)
    parts: dict[str, list[tuple[list[int], Tensor]]] = {}
    for item in show_items(posed.items(), progress=progress):
        exchange, taken = prepare_exchange(model, item, source)
        check_circuits(model, exchange)
        found = [
            run_circuits(
                model,
                exchange,
                taken,
                listed[start : start + n_rows],
                batch_size=n_rows,
            )
            for start in range(0, len(listed), n_rows)
        ]
        values = exchange.replay.recording.values
        rows = torch.cat(found)
        off = (rows[:2] - torch.stack([values, taken.values])).abs()
        if is_fine:
            _check_ends(model, off[0], values, kept="every")
            _check_ends(model, off[1], taken.values, kept="no")
        for name, tensor in (
            ("off", off.T),
            ("rows", rows[2:].T),
            ("values", values),
            ("source_values", taken.values),
        ):
            parts.setdefault(name, []).append((item.targets, tensor))
    readout = posed.case.readout
    gathered = {name: posed.gather(part) for name, part in parts.items()}
    n_sizes, rows = len(sizes), gathered["rows"]
    after = 2 * n_sizes + sizes[which]
    behaviour = gathered["values"].mean() - gathered["source_values"].mean()
    if float(behaviour.abs()) <= 1e-6:
        msg = (
            "the target is the same in both runs, so there is no behaviour to "
            "explain: expected images or prompts whose targets differ"
        )
        raise InputError(msg)
    if not is_fine:
        _check_rounding(model, gathered["off"].mean(0), behaviour)
    return check_finite_result(
        Circuits(
            model=name_model(model),
            metric=readout.metric,
            targets=readout.targets,
            source=posed.name,
            senders=tuple(sender.name for sender, _ in ordered),
            receivers=tuple(receiver.name for _, receiver in ordered),
            scores=scores,
            shares=ascending,
            sizes=sizes,
            chosen=which,
            values=gathered["values"],
            source_values=gathered["source_values"],
            kept=rows[:, :n_sizes],
            left=rows[:, n_sizes : 2 * n_sizes],
            random=rows[:, after:]
            .view(len(rows), n_random, n_sizes)
            .movedim(1, 0)
            .contiguous(),
            without=rows[:, 2 * n_sizes : after],
            stability=compare_halves(effects, edges.targets, sizes, seed=seed),
        ),
        but=("stability",),
    )


def _check_shares(shares: object, chosen: object) -> tuple[float, ...]:
    listed = [to_float(one) for one in to_list(shares) or ()]
    numbers = [one for one in listed if one is not None and 0 < one <= 1]
    if not numbers or len(numbers) < len(listed) or numbers != sorted(set(numbers)):
        msg = (
            "shares must be a list of shares above 0 and up to 1, ascending, such as "
            f"(0.01, 0.1, 1.0), got {show_value(shares)}"
        )
        raise SettingsError(msg)
    if to_float(chosen) not in numbers:
        msg = f"chosen must be one of shares, {numbers}, got {show_value(chosen)}"
        raise SettingsError(msg)
    return tuple(numbers)


def order_edges(
    model: Any, edges: PathPatching | PathApproximation
) -> tuple[list[Edge], Float[Tensor, " edge"], Float[Tensor, "target edge"]]:
    """Order every edge by its mean effect over targets, the largest first.

    Returns:
        The edges, their mean effects, and their effects, in that order.

    Raises:
        SettingsError: If some edge is missing, or several are named together.
    """
    parts = {name for name in edges.senders if name in EMBEDDINGS}
    senders = [one.name for one in list_senders(model) if one.kind != "embedding"]
    senders = [*sorted(parts), *senders]
    whole = parts in ({"embedding"}, {"image", "text"})
    receivers = [one.name for one in list_receivers(model)]
    found = dict(
        zip(
            zip(edges.senders, edges.receivers, strict=True), range(10**9), strict=False
        )
    )
    pairs = [
        ((sender[0], receiver[0]), found.get((sender[0].name, receiver[0].name)))
        for sender in find_senders(model, senders)
        for receiver in find_receivers(model, receivers)
        if is_edge(sender, receiver)
    ]
    lost = [pair for pair, number in pairs if number is None]
    if lost or not whole or len(pairs) != len(edges.senders):
        missing = (
            f"; {name_path(*(one.name for one in lost[0]))} is missing" if lost else ""
        )
        msg = (
            f"edges has {len(edges.senders)} edges, the model {len(pairs)}: expected "
            'each once, from every head and MLP and from "embedding" (or "image" and '
            f'"text"), to receivers="all"{missing}'
        )
        raise SettingsError(msg)
    effects = edges.effects if isinstance(edges, PathPatching) else edges.approximate
    effects = effects[:, [number for _, number in pairs if number is not None]]
    scores = effects.mean(0)
    order = scores.abs().argsort(descending=True, stable=True)
    ordered = [pairs[i][0] for i in order.tolist()]
    return ordered, scores[order], effects[:, order]


def list_circuits(
    ordered: Sequence[Edge],
    sizes: Sequence[int],
    chosen: int,
    draws: Sequence[Sequence[int]],
) -> list[Sequence[Edge]]:
    """List the circuits that are run.

    Returns:
        Every edge; none; the foremost of each size; all but these; of the chosen size
        all but one, for each of its edges; of each draw the first of each size.
    """
    circuits: list[Sequence[Edge]] = [ordered, []]
    circuits += [ordered[:size] for size in sizes]
    circuits += [ordered[size:] for size in sizes]
    own = ordered[: sizes[chosen]]
    circuits += [[edge for edge in own if edge is not left] for left in own]
    for order in draws:
        circuits += [[ordered[i] for i in order[:size]] for size in sizes]
    return circuits


def _draw_orders(n_edges: int, n_draws: int, *, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randperm(n_edges, generator=generator).tolist() for _ in range(n_draws)
    ]


def _check_ends(model: Any, off: Tensor, run: Tensor, *, kept: str) -> None:
    if bool((off > TOLERANCE * run.abs().clamp(min=1.0)).any()):
        whose = "the run as it is" if kept == "every" else "the other run"
        msg = (
            f"with {kept} edge kept, a target is {float(off.max()):.2g} from that of "
            f"{whose}: expected the same; something besides heads and MLPs differs "
            f"between the runs in {name_model(model)} (images that are added between "
            "layers). Use patch_paths"
        )
        raise UnsupportedError(msg)


def _check_rounding(model: Any, off: Tensor, behaviour: Tensor) -> None:
    """Check that a coarse type leaves enough of the behaviour to be shared out.

    Args:
        model: The LVLM.
        off: How far the runs with every edge kept and with none are from the two runs.
        behaviour: By how much the two runs differ.
    """
    share = float(off.max() / behaviour.abs())
    if share > COARSE:
        kind = str(model._module.dtype).removeprefix("torch.")
        msg = (
            f"with every edge kept or none, targets are {float(off.max()):.2g} from "
            f"those of the two runs, {share:.1%} of the {float(behaviour.abs()):.2g} "
            f"by which these differ: expected at most {COARSE:.0%}. {kind} is too "
            "coarse for so small a difference; load the model with "
            "dtype=torch.float32, or take images or prompts whose answers differ more"
        )
        raise UnsupportedError(msg)


HALVES = 20
"""Draws of halves of the items."""


def compare_halves(
    effects: Float[Tensor, "target edge"],
    targets: Sequence[Target],
    sizes: Sequence[int],
    *,
    seed: int,
) -> Float[Tensor, " size"]:
    """Find a circuit on each half of the items: which share of it is in both.

    NaN where there are not two items.
    """
    items = sorted({target.asked_of for target in targets})
    if len(items) < 2:
        return torch.full((len(sizes),), math.nan)
    generator = torch.Generator().manual_seed(seed)
    of = torch.tensor([items.index(target.asked_of) for target in targets])
    shared = torch.zeros(len(sizes))
    for _ in range(HALVES):
        first = torch.randperm(len(items), generator=generator)[: len(items) // 2]
        half = torch.isin(of, first)
        orders = [
            effects[rows].mean(0).abs().argsort(descending=True, stable=True)
            for rows in (half, ~half)
        ]
        for place, size in enumerate(sizes):
            both = torch.isin(orders[0][:size], orders[1][:size])
            shared[place] += float(both.float().mean()) / HALVES
    return shared
