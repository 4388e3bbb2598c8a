"""Direct logit attribution: what every head writes towards an object's logit."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.arguments import by_name, check_flag
from eah_interp.attribution.asked import reads_log_prob
from eah_interp.attribution.averages import ObjectResult
from eah_interp.attribution.cases import Ask, as_case, asks
from eah_interp.attribution.chunks import (
    check_chunks,
    in_chunks,
    join_donors,
    join_parts,
)
from eah_interp.attribution.direct_path import DirectRun, run_direct
from eah_interp.attribution.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.results import (
    check_finite_result,
    check_target,
    label_cell,
    label_targets,
    largest,
    list_heads,
    list_logits,
    name_head,
    name_targets,
)
from eah_interp.errors import NumericalError, SettingsError, UnsupportedError
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.spans import ImageSpan
from eah_interp.results import Part
from eah_interp.shown_results import count, count_heads, list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- Direct effects of every component, labelled: the result of `attribute_heads`.


HeadEffects = Float[Tensor, "target layer head"]


@dataclass(frozen=True, eq=False, repr=False)
class DirectEffects(Part):
    """How one run's components add up to each target.

    `heads + blocks + embedding + between + bias = values - remainder`.

    Attributes:
        values: The targets, as the run has them.
        heads: Direct effect of each head.
        blocks: Direct effect of every other component: MLPs, experts.
        embedding: Direct effect of what enters the first layer.
        between: Direct effect of what is added between layers (DeepStack's images).
        bias: Direct effect of constants: biases of output projections and norms.
        sources: Direct effect of each head by the position that it read; None where
            it was not asked for.
    """

    values: TargetValues
    heads: HeadEffects
    blocks: Float[Tensor, "target block"]
    embedding: TargetValues
    between: TargetValues
    bias: TargetValues
    sources: Float[Tensor, "target layer head key"] | None

    @property
    def remainder(self) -> TargetValues:
        """What the components leave unexplained: rounding."""
        named = self.heads.sum((1, 2)) + self.blocks.sum(1)
        return self.values - named - self.embedding - self.between - self.bias

    @property
    def error(self) -> TargetValues:
        """The remainder as a share of the target's value, or of 1 if that is more."""
        return self.remainder.abs() / self.values.abs().clamp(min=1.0)


@dataclass(frozen=True, eq=False, repr=False)
class Change(Part):
    """How a patch changed each head's direct effect; the three parts add up.

    Attributes:
        new_values: The head mixes other values, by the pattern it had.
        new_pattern: The head mixes them by another pattern.
        new_scale: The same output counts differently: norms scale it anew.
    """

    new_values: HeadEffects
    new_pattern: HeadEffects
    new_scale: HeadEffects

    @property
    def total(self) -> HeadEffects:
        """The whole change, patched minus plain."""
        return self.new_values + self.new_pattern + self.new_scale


@dataclass(frozen=True, eq=False, repr=False)
class HeadAttribution(ObjectResult):
    """Direct logit attribution of every component to objects' logits.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        layers: Decoder index of each entry of the layer axis.
        blocks: Name of each entry of the block axis: `L3.mlp`.
        spans: Each row's images, with their patch grids.
        plain: The run as it is.
        patch: The settings of the patched run; None where none was asked for.
        patched: The patched run.
        donors: Donor head of each patched layer, by batch item.
        change: How the patch changed each head.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    layers: tuple[int, ...]
    blocks: tuple[str, ...]
    spans: tuple[tuple[ImageSpan, ...], ...]
    plain: DirectEffects
    patch: Intervention | None
    patched: DirectEffects | None
    donors: dict[int, Tensor]
    change: Change | None

    def frame(self) -> pd.DataFrame:
        """List every component of every target.

        Returns:
            Columns `object present row position target layer head name kind plain`,
            and of a patched run `patched change new_values new_pattern new_scale`.
            `kind` is `head`, `block`, `embedding`, `between`, `bias` or `remainder`;
            the `plain` numbers of a target sum to its value.
        """
        heads = list_heads(self.targets, self.layers, self.plain.heads.shape[-1])
        heads["kind"] = "head"
        tables = [heads.assign(**self._head_columns())]
        singles = ("embedding", "between", "bias", "remainder")
        names = [*self.blocks, *singles]
        kinds = ["block"] * len(self.blocks) + list(singles)
        index = pd.MultiIndex.from_product(
            [range(len(self.targets)), range(len(names))], names=["target", "which"]
        ).to_frame(index=False)
        rest = label_targets(index, self.targets)
        rest["name"] = [names[which] for which in rest.pop("which")]
        rest["kind"] = kinds * len(self.targets)
        rest["plain"] = _stack_rest(self.plain)
        if self.patched is not None:
            rest["patched"] = _stack_rest(self.patched)
            rest["change"] = rest["patched"] - rest["plain"]
        tables.append(rest)
        table = pd.concat(tables, ignore_index=True)
        table[["layer", "head"]] = table[["layer", "head"]].astype("Int64")
        return table.sort_values("target", kind="stable").reset_index(drop=True)

    def _head_columns(self) -> dict[str, Any]:
        columns = {"plain": self.plain.heads}
        if self.patched is not None and self.change is not None:
            columns |= {
                "patched": self.patched.heads,
                "change": self.patched.heads - self.plain.heads,
                "new_values": self.change.new_values,
                "new_pattern": self.change.new_pattern,
                "new_scale": self.change.new_scale,
            }
        return {name: t.double().flatten().numpy() for name, t in columns.items()}

    def _compared(self) -> str:
        return "plain" if self.patched is None else "change"

    def _averaged(self, of: str) -> pd.DataFrame:
        del of
        table = self.frame()
        return table[table["kind"] == "head"]

    def _about(self) -> str:
        n_layers, n_heads = self.plain.heads.shape[1:]
        return (
            f"{name_targets(self.targets)}, {count_heads(n_layers, n_heads)}, "
            f"{count(len(self.blocks), 'block')}, metric {self.metric}; largest "
            f"{'plain effect' if self.patched is None else 'change'} first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        columns = {"plain": self.plain.heads}
        if self.patched is not None:
            columns["patched"] = self.patched.heads
            columns["change"] = self.patched.heads - self.plain.heads

        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            name = name_head(self.layers[cell[1]], cell[2])
            return label_cell(self.targets, cell[0]) | {"name": name}

        by = list(columns)[-1]
        return list_largest(columns, by=by, k=k, label=label)

    def top(self, k: int = 10, *, by: str | None = None) -> pd.DataFrame:
        """List each target's `k` heads with the largest effects, either sign.

        Args:
            k: How many.
            by: The column that is compared: `"plain"`, or by default `"change"` where
                there is a patched run.

        Raises:
            SettingsError: If `k` is below 1, or there is no such column.
        """
        table = self.frame()
        heads = table[table["kind"] == "head"].reset_index(drop=True)
        return largest(heads, k, by=by or ("plain" if self.patch is None else "change"))

    def picture(
        self, target: int, *, layer: int, head: int, patched: bool = False
    ) -> Float[Tensor, " key"]:
        """Return a head's direct effect by the position that it read.

        Args:
            target: Which target.
            layer: Decoder layer.
            head: Which head.
            patched: Of the patched run.

        Raises:
            UnsupportedError: If it was not kept: pass `sources=True`.
        """
        check_target(self.targets, target)
        run = self.patched if check_flag("patched", patched) else self.plain
        if run is None or run.sources is None:
            msg = (
                "effects by position were not kept: expected attribute_heads(..., "
                "sources=True), and patch= for a patched run"
            )
            raise UnsupportedError(msg)
        return run.sources[target, self.layers.index(layer), head]

    def plot(self, target: int = 0, *, ax: "Axes | None" = None) -> "Figure":
        """Draw one target's direct effects by layer and head.

        Args:
            target: Which target.
            ax: Axes of matplotlib to draw one panel into: the change where there is a
                patched run. A figure of its own with all panels when None.

        Returns:
            A matplotlib figure: plain, and where there is one, patched and change.

        Raises:
            SettingsError: If there is no such target, or `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_heads

        panels = self.panels(target)
        title = f"direct effect on {self.targets[target].label}"
        if ax is not None:
            name = list(panels)[-1]
            panels = {name: panels[name]}
        return plot_heads(panels, layers=self.layers, title=title, ax=ax)

    def panels(self, target: int) -> dict[str, Float[Tensor, "layer head"]]:
        """Return one target's effects of heads: plain, patched and the change.

        Raises:
            SettingsError: If there is no such target.
        """
        check_target(self.targets, target)
        panels = {"plain": self.plain.heads[target]}
        if self.patched is not None:
            panels["patched"] = self.patched.heads[target]
            panels["change"] = panels["patched"] - panels["plain"]
        return panels

    def plot_targets(self) -> "Figure":
        """Draw direct effects of heads on every target, a line of panels each.

        Returns:
            A matplotlib figure; each line has a scale of its own.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_head_lines

        lines = [
            (f"effect on {target.label}", self.panels(number))
            for number, target in enumerate(self.targets)
        ]
        return plot_head_lines(lines, layers=self.layers)

    def plot_top(
        self,
        target: int = 0,
        *,
        k: int = 12,
        by: str | None = None,
        ax: "Axes | None" = None,
    ) -> "Figure":
        """Draw the components with the largest effects as bars, plain against patched.

        Args:
            target: Which target.
            k: How many heads, MLPs and other components.
            by: The column that is compared: `"plain"`, or by default `"change"` where
                there is a patched run.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Returns:
            A matplotlib figure, one column wide.

        Raises:
            SettingsError: If there is no such target or column.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_bars

        check_target(self.targets, target)
        by = by or ("plain" if self.patched is None else "change")
        table = self.frame()
        table = table[(table["target"] == target) & (table["kind"] != "remainder")]
        top = largest(table, k, by=by)
        return plot_bars(
            list(top["name"]),
            {run: list(top[run]) for run in ("plain", "patched") if run in top},
            title=f"{len(top)} components, largest {by} first",
            axis=f"direct effect on {self.targets[target].label} (logit)",
            ax=ax,
        )

    def list_logits(self, *, present: Iterable[str] | None = None) -> pd.DataFrame:
        """List each object's logit, plain and patched, as `plot_logits` draws them.

        Args:
            present: The objects that are in the image; not known when None.

        Returns:
            Columns `object row target position plain`, of a patched run `patched
            change`, and `present`. Objects that are there come first.

        Raises:
            SettingsError: If `present` names none of the objects.
        """
        runs = {"plain": self.plain, "patched": self.patched}
        logits = {name: run.values for name, run in runs.items() if run is not None}
        return list_logits(self.targets, logits, present=present)

    def plot_logits(self, *, present: Iterable[str] | None = None) -> "Figure":
        """Draw the objects' logits, plain against patched, with the change written.

        Args:
            present: The objects that are in the image; no difference is made when None.

        Returns:
            A matplotlib figure, one column wide.

        Raises:
            SettingsError: If `present` names none of the objects.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_logits

        return plot_logits(self.list_logits(present=present), metric=self.metric)


def _stack_rest(run: DirectEffects) -> Any:
    singles = (run.embedding, run.between, run.bias, run.remainder)
    columns = [run.blocks, torch.stack(singles, 1)]
    return torch.cat(columns, 1).double().flatten().numpy()


WORST_ERROR = {torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest share of a target that components may leave unexplained, by dtype."""

WORST_ERROR_EXACT = 1e-3

WORST_ERROR_QUANTISED = 0.05
"""As for float16, in which int8 and 4-bit kernels compute, whatever the dtype."""


@by_name
@asks
def attribute_heads(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    patch: Intervention | None = None,
    sources: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
    **asked: Unpack[Ask],
) -> HeadAttribution:
    """Attribute an object's logit to every head, MLP and the embedding, directly.

    A component's direct effect is what it writes into the residual stream, times the
    slope of the logit there, with the scale of every norm frozen at its value (Elhage
    et al., "A Mathematical Framework for Transformer Circuits", 2021). Effects add up
    to the logit; what they leave is returned. What a head does *through* later
    components is not in it: see `patch_heads`.

    With `patch`, the same of the patched run, and the change of every head split into
    new values by the old pattern, a new pattern, and a new scale of the norms.

    Where the logits are capped (Gemma 2's `30 tanh(x / 30)`), effects are on the
    capped logit by the chord from zero: they add up to it.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        patch: Settings of a second, patched run: `EAH()`, or any intervention.
        sources: Also split every head's effect by the position that it read.
        batch_size: Most items in one forward pass; all of them when None. Where it is
            given, items that are asked nothing are not run.
        progress: Whether to show a bar.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        Effects by target, layer and head, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, or the caption names no object.
        SettingsError: If a word cannot be spelled, or the metric is not linear in the
            logits.
        ModelError: If a component does not write into the residual stream.
        NumericalError: If the effects do not add up to the logit.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> model = eah.load()
        >>> heads = attribute_heads(model, random_image(), objects=["fish", "boat"])
        >>> heads.plain.heads.shape, bool(heads.plain.error.max() < 1e-4)
        (torch.Size([2, 8, 8]), True)
        >>> heads.top(1)[["object", "kind"]].values.tolist()
        [['fish', 'head'], ['boat', 'head']]
    """
    if patch is not None:
        model.check(patch)
    sources = check_flag("sources", sources)
    check_chunks(batch_size=batch_size, progress=progress)
    if reads_log_prob(asked):
        msg = (
            "a log-probability is not a sum of direct effects: expected metric="
            '"logit", "logit_diff" or "yes_no" here; exact patching takes "log_prob"'
        )
        raise SettingsError(msg)
    case = as_case(model, images, prompts, **asked)
    if not case.readout.is_linear:
        msg = 'this case reads log-probabilities; pose it with metric="logit"'
        raise SettingsError(msg)
    plains, patcheds, changes, donors = [], [], [], []
    for chunk in in_chunks(case, patch, batch_size=batch_size, progress=progress):
        plain = run_direct(
            model, chunk.case, None, with_rows=sources or patch is not None
        )
        plains.append((chunk.targets, _sum_up(model, plain, sources=sources)))
        if patch is not None:
            patched = run_direct(model, chunk.case, chunk.patch, with_rows=sources)
            patcheds.append((chunk.targets, _sum_up(model, patched, sources=sources)))
            changes.append((chunk.targets, _split_change(plain, patched)))
            donors.append((chunk.items, patched.donors))
    return check_finite_result(
        HeadAttribution(
            model=name_model(model),
            metric=case.readout.metric,
            targets=case.readout.targets,
            layers=tuple(plain.heads),
            blocks=tuple(_name_block(model, path) for path in plain.blocks),
            spans=model.spans(case.encoding),
            plain=join_parts(plains),
            patch=patch,
            patched=join_parts(patcheds) if patcheds else None,
            donors=join_donors(donors, n_items=case.n_items),
            change=join_parts(changes) if changes else None,
        )
    )


def _name_block(model: Any, path: str) -> str:
    """Name a component by layer: `L3.mlp`."""
    return "L" + path.removeprefix(f"{model.anatomy.layers}.")


def _sum_up(model: Any, run: DirectRun, *, sources: bool) -> DirectEffects:
    """Stack a run's effects, and refuse them if they do not add up."""
    by_source = None
    if sources:
        widths = {run.rows[layer].shape[-1] for layer in run.heads}
        if len(widths) > 1:
            msg = (
                f"layers read {sorted(widths)} keys, so effects by position have no "
                "common axis; leave sources out"
            )
            raise UnsupportedError(msg)
        by_source = torch.stack([run.sources(layer).cpu() for layer in run.heads], 1)
    n_targets = len(run.values)
    blocks = [effect.cpu() for effect in run.blocks.values()]
    effects = DirectEffects(
        values=run.values.cpu(),
        heads=torch.stack([effect.cpu() for effect in run.heads.values()], 1),
        blocks=torch.stack(blocks, 1) if blocks else torch.zeros(n_targets, 0),
        embedding=run.embedding.cpu(),
        between=run.between.cpu(),
        bias=run.bias.cpu(),
        sources=by_source,
    )
    worst = float(effects.error.max())
    allowed = WORST_ERROR.get(model._module.dtype, WORST_ERROR_EXACT)
    why = "something else writes to the residual stream"
    if run.quantised:
        allowed = max(allowed, WORST_ERROR_QUANTISED)
        why = "its quantised output projections round what they are given, or " + why
    if not worst <= allowed:
        msg = (
            f"direct effects leave {worst:.2g} of a logit unexplained: expected at "
            f"most {allowed:g}; {why}, or the token's logit is masked out. Use exact "
            "patching, or a float32 model"
        )
        raise NumericalError(msg)
    return effects


def _split_change(plain: DirectRun, patched: DirectRun) -> Change:
    """Split each head's change: `A v g -> A v g' -> A v' g' -> A' v' g'`."""
    rescaled, old_pattern = [], []
    for layer, output in plain.outputs.items():
        rescaled.append(patched.credit(layer, output).cpu())
        mixed = patched.mix(layer, plain.rows[layer])
        old_pattern.append(patched.credit(layer, mixed).cpu())
    before = torch.stack([effect.cpu() for effect in plain.heads.values()], 1)
    after = torch.stack([effect.cpu() for effect in patched.heads.values()], 1)
    scaled, mixed_old = torch.stack(rescaled, 1), torch.stack(old_pattern, 1)
    return Change(
        new_values=mixed_old - scaled,
        new_pattern=after - mixed_old,
        new_scale=scaled - before,
    )
