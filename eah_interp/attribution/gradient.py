"""Gradient approximations of what patching every head would do, and how good they are.

Exact patching runs every head; a gradient says it of all heads at once, to first order.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp._types import HeadOutputs
from eah_interp.arguments import by_name, check_flag
from eah_interp.attribution.averages import ObjectResult
from eah_interp.attribution.cases import Ask, asks
from eah_interp.attribution.chunks import show_items
from eah_interp.attribution.direct import HeadEffects
from eah_interp.attribution.gradient_runs import (
    GradientRun,
    check_gradients,
    integrate_layer,
    run_with_gradients,
    with_gradients,
)
from eah_interp.attribution.nodes import Node, list_head_nodes
from eah_interp.attribution.patching import What
from eah_interp.attribution.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.replay import (
    Replay,
    check_batch_size,
    choose_batch_size,
    prepare_replay,
)
from eah_interp.attribution.results import (
    check_finite_result,
    check_target,
    label_cell,
    largest,
    list_heads,
    name_head,
    name_targets,
)
from eah_interp.attribution.runs import Recording, mix_runs, record
from eah_interp.attribution.sides import (
    Side,
    check_side,
    gather,
    name_side,
    pose_pair,
    split_items,
    take_item,
)
from eah_interp.attribution.variants import Given, measure_variants
from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import check_integer
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.results import Part
from eah_interp.shown_results import count_heads, list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- Approximate effects of heads, with the exact effects of some of them beside.


Method = Literal["attribution_patching", "integrated_gradients"]
"""How effects are approximated."""

FEWEST = 3
"""Heads that a correlation takes at least: through two points there is a line."""

ROUNDING = 1e-5
"""Share of a target's value (or of 1) below which an effect's sign is rounding."""


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Part):
    """How well approximate effects agree with exact ones, for each target.

    Attributes:
        n_checked: How many heads were patched exactly.
        correlation: Pearson's, over the checked heads; NaN where `reason` says why.
        largest_error: The largest difference; NaN where nothing was checked.
        same_sign: Share of the checked heads whose two effects have one sign, effects
            within rounding of zero having sign zero; NaN where nothing was checked.
        reason: Why numbers are missing; empty where none is.
    """

    n_checked: int
    correlation: TargetValues
    largest_error: TargetValues
    same_sign: TargetValues
    reason: str

    def __str__(self) -> str:
        """Write the worst target's agreement in a line."""
        if not self.n_checked:
            return self.reason
        line = (
            f"{self.n_checked} heads checked: correlation at least "
            f"{float(self.correlation.min()):.3f}, errors at most "
            f"{float(self.largest_error.max()):.2g}, same sign in at least "
            f"{float(self.same_sign.min()):.0%}"
        )
        return f"{line} ({self.reason})" if self.reason else line


@dataclass(frozen=True, eq=False, repr=False)
class HeadApproximation(ObjectResult):
    """What patching each head would do to each target, approximately.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        layers: Decoder index of each entry of the layer axis.
        method: How effects were approximated.
        what: What of each head is put from the source into the target run.
        source: Where it is taken from: a run.
        target: The run that it is put into.
        source_patch: Settings of the source; None for a plain run.
        target_patch: Settings of the target; None for a plain run.
        n_steps: Points of the integral; None for attribution patching.
        values: The targets in the target run.
        source_values: The targets in the source run.
        approximate: Approximate effect of each head.
        exact: Exact effect of the heads that were checked; NaN for the others.
        whole_layers: Exact effect of patching all of a layer's heads together, which
            integrated gradients must sum to; None for attribution patching.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    layers: tuple[int, ...]
    method: Method
    what: What
    source: str
    target: str
    source_patch: Intervention | None
    target_patch: Intervention | None
    n_steps: int | None
    values: TargetValues
    source_values: TargetValues
    approximate: HeadEffects
    exact: HeadEffects
    whole_layers: Float[Tensor, "target layer"] | None

    @property
    def agreement(self) -> Agreement:
        """How well the checked heads agree; says so where none was checked."""
        checked = ~self.exact[0].isnan()
        n_checked = int(checked.sum())
        nothing = torch.full_like(self.values, torch.nan)
        if not n_checked:
            reason = (
                "not checked: no head was patched exactly, so nothing says how good "
                "this approximation is; pass check=16"
            )
            return Agreement(0, nothing, nothing, nothing, reason)
        found, exact = self.approximate[:, checked], self.exact[:, checked]
        floor = ROUNDING * self.values.abs().clamp(min=1.0)[:, None]
        correlation, reason = nothing, ""
        if n_checked < FEWEST:
            reason = (
                f"{n_checked} heads were checked: a correlation takes {FEWEST} at least"
            )
        else:
            correlation = _correlate(found, exact, floor)
            if correlation.isnan().any():
                reason = "where all effects are the same there is no correlation"
        return Agreement(
            n_checked=n_checked,
            correlation=correlation,
            largest_error=(found - exact).abs().amax(1),
            same_sign=(_sign(found, floor) == _sign(exact, floor)).float().mean(1),
            reason=reason,
        )

    @property
    def remainder(self) -> Float[Tensor, "target layer"] | None:
        """What a layer's heads leave of its exact effect; None where it is not known.

        For integrated gradients it falls to rounding as `n_steps` grows.
        """
        if self.whole_layers is None:
            return None
        return self.whole_layers - self.approximate.sum(-1)

    def frame(self) -> pd.DataFrame:
        """List every head of every target.

        Returns:
            Columns `object present row position target layer head name approximate
            exact`; `exact` is NaN where the head was not checked.
        """
        table = list_heads(self.targets, self.layers, self.approximate.shape[-1])
        return table.assign(
            approximate=self.approximate.double().flatten().numpy(),
            exact=self.exact.double().flatten().numpy(),
        )

    def _compared(self) -> str:
        return "approximate"

    def _averaged(self, of: str) -> pd.DataFrame:
        table = self.frame()
        checked = table["exact"].notna()  # the same heads of every target
        return table[checked] if of == "exact" else table

    def _about(self) -> str:
        n_layers, n_heads = self.approximate.shape[1:]
        n_checked = int((~self.exact[:1].isnan()).sum())
        return (
            f"{self.what} of {self.source} into {self.target} by {self.method}, "
            f"{name_targets(self.targets)}, {count_heads(n_layers, n_heads)}, "
            f"{n_checked} of them checked, metric {self.metric}; largest first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            name = name_head(self.layers[cell[1]], cell[2])
            return label_cell(self.targets, cell[0]) | {"name": name}

        columns = {"approximate": self.approximate, "exact": self.exact}
        return list_largest(columns, by="approximate", k=k, label=label)

    def top(self, k: int = 10, *, by: str = "approximate") -> pd.DataFrame:
        """List each target's `k` heads with the largest effects, either sign.

        Args:
            k: How many.
            by: The column that is compared: `"approximate"`, or `"exact"` for the
                checked heads.

        Raises:
            SettingsError: If `k` is below 1, or there is no such column.
        """
        table = self.frame()
        if isinstance(by, str) and by == "exact":
            table = table[table["exact"].notna()].reset_index(drop=True)
        return largest(table, k, by=by)

    def plot(self, target: int = 0, *, ax: "Axes | None" = None) -> "Figure":
        """Draw one target's approximate effects by layer and head.

        Args:
            target: Which target.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Returns:
            A matplotlib figure.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
            SettingsError: If there is no such target.
        """
        from eah_interp.viz.heads import plot_heads

        check_target(self.targets, target)
        title = f"effect on {self.targets[target].label}, by gradients"
        panel = f"{self.what}: {self.source} into {self.target}"
        effects = self.approximate[target]
        return plot_heads({panel: effects}, layers=self.layers, title=title, ax=ax)


def _correlate(found: Tensor, exact: Tensor, floor: Tensor) -> TargetValues:
    """Correlate rows; NaN where a row does not vary by more than rounding."""
    pair = [row.double() - row.double().mean(1, keepdim=True) for row in (found, exact)]
    product: Tensor = (pair[0] * pair[1]).sum(1)
    product = product / (pair[0].norm(dim=1) * pair[1].norm(dim=1))
    flat = torch.stack([row.abs().amax(1) for row in pair]) <= floor[:, 0]
    return product.masked_fill(flat.any(0), torch.nan).float()


def _sign(effects: Tensor, floor: Tensor) -> Tensor:
    return effects.sign() * (effects.abs() > floor)


# ---- Heads that move from one run's outputs to another's: by gradients, and exactly.


Moved = dict[int, HeadOutputs]
"""By layer, what all of its heads would return if they were patched."""


@torch.no_grad()
def move_heads(taken: Recording, into: Recording, what: What) -> Moved:
    """Compute what heads return in one run that are given something of another."""
    if what == "output":
        return taken.heads
    if what == "pattern":
        return {
            layer: mix_runs(taken, layer, call, values=into.calls[layer].values)
            for layer, call in taken.calls.items()
        }
    return {
        layer: mix_runs(into, layer, call, values=taken.calls[layer].values)
        for layer, call in into.calls.items()
    }


def linearise(run: GradientRun, moved: Moved) -> Tensor:
    """Multiply changes by gradients: `[target layer head]`."""
    change = {
        layer: moved[layer].float() - z.float()
        for layer, z in run.recording.heads.items()
    }
    effects = []
    for target in range(len(run.values)):
        slopes = run.gradients(target)
        each = [
            (slopes[layer].float() * dz).sum((0, 1, 3)) for layer, dz in change.items()
        ]
        effects.append(torch.stack([effect.cpu() for effect in each]))
    return torch.stack(effects)


def integrate(
    model: Any, replay: Replay, moved: Moved, n_steps: int, batch_size: int
) -> dict[str, Tensor]:
    """Integrate layer by layer."""
    found = [
        integrate_layer(
            model, replay, ends, layer=layer, n_steps=n_steps, batch_size=batch_size
        )
        for layer, ends in moved.items()
    ]
    return {
        "approximate": torch.stack([effects.cpu() for effects, _ in found], 1),
        "whole_layers": torch.stack([total.cpu() for _, total in found], 1),
    }


def draw_heads(model: Any, check: int, *, seed: int) -> list[Node]:
    """Draw heads at random, without putting them back."""
    nodes = list_head_nodes(model)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(nodes), generator=generator)[:check]
    return [nodes[index] for index in sorted(drawn.tolist())]


def patch_sample(
    model: Any,
    into: Recording,
    moved: Moved,
    sample: list[Node],
    batch_size: int | None,
) -> Tensor:
    """Patch the drawn heads exactly, one at a time; NaN for all others."""

    def heads(layer: int, call: AttentionCall) -> Tensor:
        del call
        return moved[layer]

    layers = list(moved)
    shape = (len(into.values), len(layers), model.n_heads)
    exact = torch.full(shape, torch.nan)
    if sample:
        variants = [(node,) for node in sample]
        found = measure_variants(
            model, into, variants, Given(heads, {}), batch_size=batch_size
        )
        for node, effects in zip(sample, found.cpu(), strict=True):
            exact[:, layers.index(node.layer), node.head] = effects
    return exact


@by_name
@asks
def approximate_heads(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    source: Side,
    target: Side = "plain",
    source_images: object = None,
    source_prompts: object = None,
    what: What = "output",
    method: Method = "attribution_patching",
    n_steps: int = 8,
    check: int = 16,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    **asked: Unpack[Ask],
) -> HeadApproximation:
    """Approximate what patching each head would do, from gradients, and check some.

    `"attribution_patching"` (Nanda 2023; Syed et al., arXiv:2310.10348): the change of
    a head's output between the runs, times the target's gradient there in the target
    run, summed over positions and width. Two forward passes and one backward pass for
    each target of an item, whatever the number of heads. `"integrated_gradients"`
    (Sundararajan et al., arXiv:1703.01365; for patching Hanna et al.,
    arXiv:2403.17806): the gradient's mean along the way from the target's to the
    source's outputs of a whole layer, earlier layers as in the target run; a layer's
    heads sum to the exact effect of patching them all, which is returned. One head's
    part in that is not quite what it would do alone.

    Gradients go through everything that comes after a head: norms, MLPs, later
    patterns. Choices are constants to them: the donors of an EAH run, and which
    experts a router picks, whose jumps no gradient sees. A sample of heads is patched
    exactly as well, and `.agreement` says how good the approximation is there.

    Needs a backward pass: eager or SDPA attention, or FlashAttention on its devices;
    weights that are not quantised. Memory is that of a forward pass that keeps its
    activations: of one item, and for integrated gradients of `batch_size` copies from
    the layer on.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        source: The run that activations are taken from: `"plain"`, or an
            intervention's settings.
        target: The run that they are put into, likewise.
        source_images: Other images for the source, whose tokens stand where those
            of `images` do.
        source_prompts: Other prompts for the source, of the same length.
        what: `"output"`: what the head returns. `"pattern"`: the source's attention
            pattern over the target's values (the gradient of the pattern times its
            change; no pattern is written out). `"values"`: the target's pattern over
            the source's values.
        method: How effects are approximated.
        n_steps: Points of the integral, by the rule of Gauss and Legendre.
        check: How many heads are patched exactly, drawn at random: the same for all
            targets. 0 for none, at the price of an approximation nobody has checked.
        seed: Of that draw.
        batch_size: Most copies of an item in one forward pass, by device and memory
            when None; halved, with a warning, when memory runs out.
        progress: Whether to show a bar.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        Approximate effects by target, layer and head, and exact ones of some heads, on
        the CPU.

    Raises:
        InputError: If images or prompts do not fit, the caption names no object, or
            positions of source and target do not correspond.
        SettingsError: If a word cannot be spelled, or a mode, run or number is
            impossible.
        ModelError: If a layer has no heads.
        UnsupportedError: If the model has no gradients (quantised weights, inference
            mode, attention without a backward pass), or its items are not independent.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> model, image = eah.load(), random_image()
        >>> found = approximate_heads(model, image, objects=["fish"], source=eah.EAH())
        >>> found.approximate.shape, found.agreement.n_checked
        (torch.Size([1, 8, 8]), 16)
        >>> bool(found.agreement.correlation > 0.8)
        True
    """
    _check_modes(what=what, method=method)
    n_steps, check = (
        check_integer("n_steps", n_steps, least=1),
        check_integer("check", check),
    )
    seed = check_integer("seed", seed)
    check_batch_size(batch_size)
    progress = check_flag("progress", progress)
    check_side(model, source, name="source")
    check_side(model, target, name="target")
    check_gradients(model)
    case, other = pose_pair(
        model,
        images,
        prompts,
        source_images=source_images,
        source_prompts=source_prompts,
        **asked,
    )
    sample = draw_heads(model, check, seed=seed)
    parts: dict[str, list[tuple[list[int], Tensor]]] = {}
    for item, indices, (given, wanted) in show_items(
        split_items(case, source, target), progress=progress and case.n_items > 1
    ):
        taken = record(model, take_item(other, item), given)
        ours = take_item(case, item)
        found: dict[str, Tensor] = {}
        if method == "integrated_gradients":
            into = record(model, ours, wanted)
            moved = move_heads(taken, into, what)
            replay = prepare_replay(model, into)
            n_rows = batch_size or choose_batch_size(model, replay.n_tokens)
            found |= integrate(model, replay, moved, n_steps, n_rows)
        else:
            with with_gradients(model):
                run = run_with_gradients(model, ours, wanted)
                into = run.recording
                moved = move_heads(taken, into, what)
                found["approximate"] = linearise(run, moved)
            del run  # its graph
        found |= {"values": into.values, "source_values": taken.values}
        if sample:
            whole = into if into.leaving else record(model, ours, wanted)
            found["exact"] = patch_sample(model, whole, moved, sample, batch_size)
        for name, tensor in found.items():
            parts.setdefault(name, []).append((indices, tensor))
    n_targets = len(case.readout.targets)
    gathered = {name: gather(part, n_targets) for name, part in parts.items()}
    unchecked = torch.full_like(gathered["approximate"], torch.nan)
    return check_finite_result(
        HeadApproximation(
            model=name_model(model),
            metric=case.readout.metric,
            targets=case.readout.targets,
            layers=tuple(sorted(model.anatomy.sites)),
            method=method,
            what=what,
            source=name_side(source, pictured=other is not case),
            target=name_side(target),
            source_patch=None if source == "plain" else source,
            target_patch=None if target == "plain" else target,
            n_steps=n_steps if method == "integrated_gradients" else None,
            values=gathered["values"],
            source_values=gathered["source_values"],
            approximate=gathered["approximate"],
            exact=gathered.get("exact", unchecked),
            whole_layers=gathered.get("whole_layers"),
        ),
        but=("exact",),
    )


def _check_modes(*, what: str, method: str) -> None:
    for name, given, known in (("what", what, What), ("method", method, Method)):
        if not isinstance(given, str) or given not in get_args(known):
            msg = f"{name} must be one of {', '.join(get_args(known))}"
            raise SettingsError(f"{msg}, got {show_value(given)}")
