"""Gradient approximations of all edges at once, and how good they are.

Exact path patching runs every edge; a gradient at each receiver's input says it of all
senders at once, to first order: edge attribution patching (Syed et al.,
arXiv:2310.10348), and with the gradient's mean along a way to the other input,
EAP-IG (Hanna et al., arXiv:2403.17806).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from eah_interp.arguments import by_name, check_flag
from eah_interp.attribution.averages import ObjectResult
from eah_interp.attribution.cases import Ask, Case, asks
from eah_interp.attribution.chunks import show_items
from eah_interp.attribution.edge_runs import (
    Exchange,
    attention_writer,
    mlp_writer,
)
from eah_interp.attribution.edges import (
    Names,
    Receiver,
    check_stream,
    find_receivers,
    find_senders,
    name_set,
)
from eah_interp.attribution.gradient_runs import (
    check_gradients,
    place_points,
    with_gradients,
)
from eah_interp.attribution.paths import (
    Plan,
    list_edges,
    measure_paths,
    name_path,
    prepare_exchange,
)
from eah_interp.attribution.readouts import (
    MetricName,
    Target,
    TargetValues,
    keep_logits,
)
from eah_interp.attribution.replay import check_batch_size
from eah_interp.attribution.results import (
    check_finite_result,
    check_target,
    label_cell,
    largest,
    name_targets,
)
from eah_interp.attribution.sources import PathSource, check_source, pose_both
from eah_interp.errors import SettingsError
from eah_interp.indices import check_choice, check_integer
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import (
    Anatomy,
    attention_operation,
    name_model,
    walk_sites,
)
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.module_hooks import first_output, hook_stream
from eah_interp.results import Part
from eah_interp.shown_results import list_largest
from eah_interp.statistics import correlate_ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- Approximate effects of edges, with the exact effects of some of them beside.


PathMethod = Literal["eap", "eap_ig"]
"""How effects are approximated."""

FEWEST = 3
"""Edges that a rank correlation takes at least."""

RESAMPLES = 1000
"""Bootstrap samples of a rank correlation's interval."""

EdgeEffects = Float[Tensor, "target edge"]


@dataclass(frozen=True, eq=False, repr=False)
class PathAgreement(Part):
    """How well approximate effects of edges agree with exact ones, for each target.

    Attributes:
        n_checked: How many edges were patched exactly.
        rank_correlation: Spearman's, over the checked edges; NaN where all effects are
            the same.
        low: Lower end of its 95 % interval, a percentile bootstrap over edges.
        high: Upper end.
        largest_error: The largest difference.
        largest_effect: The largest exact effect, either sign, to hold it against.
    """

    n_checked: int
    rank_correlation: TargetValues
    low: TargetValues
    high: TargetValues
    largest_error: TargetValues
    largest_effect: TargetValues

    def __str__(self) -> str:
        """Write the worst target's agreement in a line."""
        if not self.n_checked:
            return "no edge checked"
        worst = int(self.rank_correlation.nan_to_num(nan=-2.0).argmin())
        return (
            f"{self.n_checked} edges checked: rank correlation at least "
            f"{float(self.rank_correlation[worst]):.2f} "
            f"[{float(self.low[worst]):.2f}, {float(self.high[worst]):.2f}], errors at "
            f"most {float(self.largest_error.max()):.2g} (effects up to "
            f"{float(self.largest_effect.max()):.2g})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class PathApproximation(ObjectResult):
    """What patching each edge would do to each target, approximately.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        method: How effects were approximated.
        source: Where senders' outputs were taken from.
        source_patch: Settings of the source; None where it is no patched run.
        n_steps: Points of the integral; None for `"eap"`.
        senders: Who sends, for each edge.
        receivers: Who receives, for each edge.
        values: The targets in the run as it is.
        source_values: The targets in the source run; None where it is no run of an
            item's own.
        approximate: Approximate effect of each edge.
        exact: Exact effect of the edges that were checked; NaN for the others.
        remainder: What the edges of the embedding, all together, leave of the change
            of the target along the integral's way, which they must sum to; it falls as
            steps grow. None for `"eap"`.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    method: PathMethod
    source: str
    source_patch: Intervention | None
    n_steps: int | None
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    values: TargetValues
    source_values: TargetValues | None
    approximate: EdgeEffects
    exact: EdgeEffects
    remainder: TargetValues | None

    @property
    def names(self) -> tuple[str, ...]:
        """Name each edge: `L3H7 -> L5H2.q`."""
        return tuple(
            name_path(*ends) for ends in zip(self.senders, self.receivers, strict=True)
        )

    @property
    def agreement(self) -> PathAgreement:
        """How well the checked edges agree."""
        checked = ~self.exact[:1].isnan().all(0)
        found, exact = self.approximate[:, checked], self.exact[:, checked]
        if not found.numel():
            nothing = torch.full_like(self.values, torch.nan)
            return PathAgreement(0, *(nothing,) * 5)
        correlation = correlate_ranks(found, exact).float()
        generator = torch.Generator().manual_seed(0)
        n = int(checked.sum())
        draws = torch.randint(n, (RESAMPLES, n), generator=generator)
        ends = []
        for one, other in zip(found, exact, strict=True):
            drawn = correlate_ranks(one[draws], other[draws])
            drawn = drawn[drawn.isfinite()]
            levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
            nothing = torch.full((2,), torch.nan, dtype=torch.float64)
            ends.append(torch.quantile(drawn, levels) if len(drawn) else nothing)
        return PathAgreement(
            n_checked=n,
            rank_correlation=correlation,
            low=torch.stack(ends)[:, 0].float(),
            high=torch.stack(ends)[:, 1].float(),
            largest_error=(found - exact).abs().amax(1),
            largest_effect=exact.abs().amax(1),
        )

    def frame(self) -> pd.DataFrame:
        """List every edge of every target.

        Returns:
            Columns `object present row position target sender receiver input name
            approximate exact`; `exact` is NaN where the edge was not checked.
        """
        table = list_edges(self.targets, self.senders, self.receivers)
        return table.assign(
            approximate=self.approximate.double().flatten().numpy(),
            exact=self.exact.double().flatten().numpy(),
        )

    def _compared(self) -> str:
        return "approximate"

    def _averaged(self, of: str) -> pd.DataFrame:
        table = self.frame()
        checked = table["exact"].notna()  # the same edges of every target
        return table[checked] if of == "exact" else table

    def _about(self) -> str:
        return (
            f"{self.source} into plain by {self.method}, {name_targets(self.targets)}, "
            f"{len(self.senders)} edges, {self.agreement}; largest first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            return label_cell(self.targets, cell[0]) | {"name": self.names[cell[1]]}

        columns = {"approximate": self.approximate, "exact": self.exact}
        return list_largest(columns, by="approximate", k=k, label=label)

    def top(self, k: int = 10, *, by: str = "approximate") -> pd.DataFrame:
        """List each target's `k` edges with the largest effects, either sign.

        Args:
            k: How many.
            by: `"approximate"`, or `"exact"` for the checked edges.

        Raises:
            SettingsError: If `k` is below 1, or there is no such column.
        """
        table = self.frame()
        if isinstance(by, str) and by == "exact":
            table = table[table["exact"].notna()].reset_index(drop=True)
        return largest(table, k, by=by)

    def plot(
        self, target: int = 0, *, k: int = 12, ax: "Axes | None" = None
    ) -> "Figure":
        """Draw the edges with the largest effects as bars, exact ones where checked.

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
        top = largest(table[table["target"] == target], k, by="approximate")
        return plot_bars(
            list(top["name"]),
            {name: list(top[name]) for name in ("approximate", "exact")},
            title=f"{len(top)} edges by {self.method}, largest first",
            axis=f"effect on {self.targets[target].label}",
            ax=ax,
        )


# ---- One forward pass with its graph, and the gradient at each receiver's input.


@dataclass
class EdgeGradients:
    """One run of one item with its graph, from what enters the first layer on.

    Attributes:
        values: Its targets, with gradients.
        entering: The stream that enters each layer, and last the final norm.
        calls: Queries, keys and values of each layer's attention call.
        attention: What each layer's attention, or what is instead, returned.
        mlp: What each layer's MLP returned.
    """

    values: TargetValues = field(default_factory=lambda: torch.zeros(0))
    entering: list[Tensor] = field(default_factory=list)
    calls: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)

    def slopes(self, target: int) -> dict[tuple[int, str], Tensor]:
        """Run one backward pass: a target's gradient at what receivers compute.

        Returns:
            By layer and input; what enters the first layer as `(-1, "embedding")`.
        """
        end = len(self.entering) - 1
        wanted = {
            (-1, "embedding"): self.entering[0],
            (end, "logit"): self.entering[-1],
        }
        wanted |= {(layer, "mlp"): added for layer, added in self.mlp.items()}
        for layer, call in self.calls.items():
            wanted |= {(layer, name): tensor for name, tensor in call.items()}
        found = torch.autograd.grad(
            self.values[target],
            list(wanted.values()),
            retain_graph=True,
            allow_unused=True,
        )
        return {
            name: torch.zeros_like(tensor) if slope is None else slope
            for (name, tensor), slope in zip(wanted.items(), found, strict=True)
        }

    def at_input(
        self, receiver: Receiver, slopes: dict[tuple[int, str], Tensor]
    ) -> Float[Tensor, "position d_model"]:
        """Carry a slope back from what a receiver computes to the stream it reads."""
        slope = slopes[receiver.layer, receiver.input]
        if receiver.input == "logit":
            return slope[0].float()
        if receiver.input == "mlp":
            made = self.mlp[receiver.layer]
            # attention enters the sum that the MLP reads, and nothing else it reads
            behind = receiver.place[1] == 1
            read = self.attention[receiver.layer] if behind else None
            read = self.entering[receiver.layer] if read is None else read
        else:
            made = self.calls[receiver.layer][receiver.input]
            read = self.entering[receiver.layer]
            own = torch.zeros_like(slope)
            own[:, receiver.index] = slope[:, receiver.index]
            slope = own
        (back,) = torch.autograd.grad(made, read, slope, retain_graph=True)
        return back.reshape(-1, back.shape[-1]).float()


def run_edge_gradients(
    model: Any, case: Case, *, start: Tensor | None = None
) -> EdgeGradients:
    """Run one item and keep the graph from what enters the first layer on.

    Args:
        model: An LVLM that `check_gradients` took.
        case: One item.
        start: What enters the first layer instead.
    """
    done = EdgeGradients()
    kept, read_at = keep_logits(model, case.readout.positions)
    handles = _hook(model, done, start)
    try:
        with model.alone(), model.trace(**case.inputs, **kept, use_cache=False):
            for site in walk_sites(model.anatomy):
                operation = attention_operation(model, site)
                call = AttentionCall.parse(operation.inputs)
                done.calls[site.layer] = {
                    "q": call.queries,
                    "k": call.keys,
                    "v": call.values,
                }
            final = model.output.logits.save()
    finally:
        for handle in handles:
            handle.remove()
    with torch.enable_grad():
        done.values = case.readout.values(final, places=read_at)
    return done


def _hook(model: Any, done: EdgeGradients, start: Tensor | None) -> list[Any]:
    """Begin the graph at the first layer, and keep what is read and written after."""
    anatomy: Anatomy = model.anatomy
    root: nn.Module = model._module

    def enter(stream: Tensor) -> Tensor:
        if not done.entering:
            begun = stream if start is None else start.to(stream)
            stream = begun.detach().requires_grad_()
        done.entering.append(stream)
        return stream

    def note(into: dict[int, Tensor], layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            into[layer] = first_output(output)

        return hook

    readers = [f"{anatomy.layers}.{layer}" for layer in range(anatomy.n_layers)]
    handles: list[Any] = [
        hook_stream(root.get_submodule(path), enter)
        for path in (*readers, str(anatomy.final_norm))
    ]
    for layer in range(anatomy.n_layers):
        for path, into in (
            (attention_writer(anatomy, layer), done.attention),
            (mlp_writer(anatomy, layer), done.mlp),
        ):
            if path is not None:
                writer = root.get_submodule(path)
                handles.append(writer.register_forward_hook(note(into, layer)))
    return handles


def score_edges(
    run: EdgeGradients,
    changes: Float[Tensor, "sender position d_model"],
    receivers: Sequence[Receiver],
) -> tuple[
    Float[Tensor, "target sender receiver"], Float[Tensor, "target position d_model"]
]:
    """Multiply senders' changes by the gradients at receivers' inputs.

    Returns:
        The products; and the gradients at what enters the first layer, by target.
    """
    flat = changes.flatten(1)
    products, at_start = [], []
    for target in range(len(run.values)):
        slopes = run.slopes(target)
        columns = [flat @ run.at_input(one, slopes).flatten() for one in receivers]
        products.append(torch.stack(columns, 1))
        at_start.append(slopes[-1, "embedding"])
    return torch.stack(products), torch.cat(at_start)


@dataclass(frozen=True)
class Scored:
    """What one item's edges were found to do."""

    effects: Float[Tensor, "target sender receiver"]
    remainder: TargetValues | None


def approximate_item(
    model: Any,
    exchange: Exchange,
    plan: Plan,
    *,
    n_steps: int | None,
) -> Scored:
    """Score all senders and receivers of a plan, in one pass or along a way."""
    case = exchange.replay.recording.case
    singles = sorted(
        {one for together in plan.receivers for one in together},
        key=lambda one: (one.layer, one.name),
    )
    n_rows = plan.rows(model, exchange.replay.n_tokens)
    changes = torch.cat(
        [
            exchange.changes(model, plan.senders[i : i + n_rows])
            for i in range(0, len(plan.senders), n_rows)
        ]
    )
    begin, end = exchange.own.entering[0], exchange.given.entering[0]
    way = end.float() - begin.float()
    with with_gradients(model):
        if n_steps is None:
            run = run_edge_gradients(model, case)
            single, _ = score_edges(run, changes, singles)
            remainder = None
        else:
            points, weights = place_points(n_steps)
            single = torch.zeros(())
            along = torch.zeros(())
            for point, weight in zip(points.tolist(), weights.tolist(), strict=True):
                start = (begin.float() + point * way).to(begin.dtype)
                run = run_edge_gradients(model, case, start=start)
                products, at_start = score_edges(run, changes, singles)
                single = single.to(products) + weight * products
                pulled = (at_start.float() * way).sum((1, 2))
                along = along.to(pulled) + weight * pulled
                del run  # its graph
            with torch.no_grad():
                last = run_edge_gradients(model, case, start=end).values.detach()
            remainder = last - exchange.replay.recording.values.to(last) - along
    columns = [
        single[:, :, [singles.index(one) for one in together]].sum(-1)
        for together in plan.receivers
    ]
    return Scored(torch.stack(columns, -1), remainder)


@by_name
@asks
def approximate_paths(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    receivers: Names = "all",
    senders: Names | None = None,
    source: PathSource = "plain",
    source_images: object = None,
    source_prompts: object = None,
    method: PathMethod = "eap",
    n_steps: int = 5,
    check: int = 32,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    **asked: Unpack[Ask],
) -> PathApproximation:
    r"""Approximate what patching each edge would do, from gradients, and check some.

    `"eap"` (edge attribution patching; Syed et al., arXiv:2310.10348): what the sender
    changes in the stream, times the target's gradient at the receiver's input, summed
    over positions and width: $\Delta_s \cdot \nabla_r m$. One forward and one backward
    pass for each target of an item, and a short one for each receiver, whatever the
    number of senders. `"eap_ig"` (Hanna et al., arXiv:2403.17806, the form that goes
    along inputs): the gradient's mean along the straight way from what enters the
    item's first layer to what enters the source's, by the rule of Gauss and Legendre.
    All edges of the embedding then sum to the change of the target along that way, but
    for the rule's error, which is returned and falls as steps grow. That an edge's
    number is the effect of patching it alone follows from neither: with more steps
    `"eap_ig"` converges to the mean over runs on the way, not to the exact effect.

    A sample of edges is patched exactly as well (`patch_paths`), and `.agreement` says
    how the ranks correlate, with an interval, and how large the largest error is.

    Needs a backward pass, as `approximate_heads`; memory is that of a forward pass that
    keeps its activations, and the change of every sender at every position.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        receivers: As for `patch_paths`; every one there is by default.
        senders: As for `patch_paths`; all, each by itself, when None.
        source: As for `patch_paths`. `"eap_ig"` takes a source of other inputs only.
        source_images: Other images for the source, whose tokens stand where those
            of `images` do.
        source_prompts: Other prompts for the source, of the same length.
        method: How effects are approximated.
        n_steps: Points of the integral.
        check: How many edges are patched exactly, drawn at random: the same for all
            targets; three at least.
        seed: Of that draw, and of `"resampled"`.
        batch_size: Most edges in a forward pass of exact patching, and most senders
            whose changes are computed at a time; by device and memory when None.
        progress: Whether to show a bar.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        Approximate effects by target and edge, and exact ones of some, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, the caption names no object, or
            positions of source and target do not correspond.
        SettingsError: If a word cannot be spelled, a sender, receiver, mode or number
            is impossible, or the way of `"eap_ig"` has no length.
        ModelError: If a layer has no heads.
        UnsupportedError: If edges are not defined (see `patch_paths`), or the model has
            no gradients.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.toy import draw_scene
        >>> images = [draw_scene(0, objects=[name]).pil() for name in ("boat", "cup")]
        >>> found = approximate_paths(
        ...     eah.load(),
        ...     images[0],
        ...     "Is there a boat in the image?",
        ...     metric="yes_no",
        ...     source_images=images[1],
        ...     senders=["L1H3", "L2H0", "L1.mlp"],
        ...     receivers=["L3", "logit"],
        ...     check=8,
        ... )
        >>> found.approximate.shape, found.agreement.n_checked
        (torch.Size([1, 54]), 8)
    """
    check_batch_size(batch_size)
    seed, n_steps = (
        check_integer("seed", seed),
        check_integer("n_steps", n_steps, least=1),
    )
    check = check_integer("check", check, least=FEWEST)
    progress = check_flag("progress", progress)
    check_choice("method", method, PathMethod)
    check_source(model, source)
    check_stream(model)
    check_gradients(model)
    if method == "eap_ig" and (
        isinstance(source, Intervention) or source in ("zero", "mean")
    ):
        msg = (
            'method="eap_ig" goes along what enters the first layer, from the item\'s '
            "to the source's: expected source_images, source_prompts or "
            'source="resampled"; use method="eap"'
        )
        raise SettingsError(msg)
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
    sample = draw_edges(plan, check, seed=seed)
    parts: dict[str, list[tuple[list[int], Tensor]]] = {}
    steps = n_steps if method == "eap_ig" else None
    several = posed.case.n_items > 1
    for item in show_items(posed.items(), progress=progress and several):
        exchange, taken = prepare_exchange(model, item, source)
        scored = approximate_item(model, exchange, plan, n_steps=steps)
        edges = [scored.effects[:, i, j] for i, j in plan.edges]
        found = {
            "approximate": torch.stack(edges, 1),
            "exact": _check_sample(model, exchange, plan, sample),
            "values": exchange.replay.recording.values,
            "source_values": taken.values,
        }
        if scored.remainder is not None:
            found["remainder"] = scored.remainder
        for name, tensor in found.items():
            parts.setdefault(name, []).append((item.targets, tensor))
    readout = posed.case.readout
    gathered = {name: posed.gather(part) for name, part in parts.items()}
    return check_finite_result(
        PathApproximation(
            model=name_model(model),
            metric=readout.metric,
            targets=readout.targets,
            method=method,
            source=posed.name,
            source_patch=posed.patch,
            n_steps=steps,
            senders=tuple(name_set(plan.senders[i]) for i, _ in plan.edges),
            receivers=tuple(name_set(plan.receivers[j]) for _, j in plan.edges),
            values=gathered["values"],
            source_values=gathered["source_values"] if posed.is_run else None,
            approximate=gathered["approximate"],
            exact=gathered["exact"],
            remainder=gathered.get("remainder"),
        ),
        but=("exact",),
    )


def draw_edges(plan: Plan, check: int, *, seed: int) -> Plan:
    """Draw edges of a plan at random, without putting them back."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(plan.edges), generator=generator)[:check]
    edges = tuple(plan.edges[index] for index in sorted(drawn.tolist()))
    return Plan(plan.senders, plan.receivers, edges, plan.batch_size)


def _check_sample(
    model: Any, exchange: Exchange, plan: Plan, sample: Plan
) -> EdgeEffects:
    """Patch the drawn edges exactly; NaN for all others."""
    found = measure_paths(model, exchange, sample, final_norm="recomputed")
    exact = torch.full((found.shape[1], len(plan.edges)), torch.nan)
    places = {edge: number for number, edge in enumerate(plan.edges)}
    exact[:, [places[edge] for edge in sample.edges]] = found.T.cpu()
    return exact
