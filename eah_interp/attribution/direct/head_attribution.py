"""Direct effects of every component, labelled: the result of `attribute_heads`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.attribution.cases.labels import label_targets, largest, list_heads
from eah_interp.attribution.cases.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.results import Result, register
from eah_interp.errors import UnsupportedError
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.spans import ImageSpan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HeadEffects = Float[Tensor, "target layer head"]
register(Target)


@register
@dataclass(frozen=True)
class DirectEffects:
    """How one run's components add up to each target.

    `heads + blocks + embedding + between + bias = values - remainder`.

    Attributes:
        values: The targets, as the run has them.
        heads: Direct effect of each head.
        blocks: Direct effect of every other component: MLPs, experts.
        embedding: Direct effect of what enters the first layer.
        between: Direct effect of what is added between layers (DeepStack's pictures).
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


@register
@dataclass(frozen=True)
class Change:
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


@dataclass(frozen=True)
class HeadAttribution(Result):
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
    patch: EAH | None
    patched: DirectEffects | None
    donors: dict[int, Tensor]
    change: Change | None

    def frame(self) -> pd.DataFrame:
        """List every component of every target.

        Returns:
            Columns `object row position target layer head name kind plain`, and of a
            patched run `patched change new_values new_pattern new_scale`. `kind` is
            `head`, `block`, `embedding`, `between`, `bias` or `remainder`; the
            `plain` numbers of a target sum to its value.
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
        run = self.patched if patched else self.plain
        if run is None or run.sources is None:
            msg = (
                "effects by position were not kept: expected attribute_heads(..., "
                "sources=True), and patch= for a patched run"
            )
            raise UnsupportedError(msg)
        return run.sources[target, self.layers.index(layer), head]

    def plot(self, target: int = 0) -> "Figure":
        """Draw one target's direct effects by layer and head.

        Args:
            target: Which target.

        Returns:
            A matplotlib figure: plain, and where there is one, patched and change.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz import plot_heads

        panels = {"plain": self.plain.heads[target]}
        if self.patched is not None:
            panels["patched"] = self.patched.heads[target]
            panels["change"] = panels["patched"] - panels["plain"]
        title = f"direct effect on {self.targets[target].label}"
        return plot_heads(panels, layers=self.layers, title=title)

    def plot_logits(self, *, present: Iterable[str] | None = None) -> "Figure":
        """Draw the objects' logits, plain against patched.

        The arguments are `viz.plot_logits`'s.
        """
        from eah_interp.viz import plot_logits

        return plot_logits(self, present=present)


def _stack_rest(run: DirectEffects) -> Any:
    singles = (run.embedding, run.between, run.bias, run.remainder)
    columns = [run.blocks, torch.stack(singles, 1)]
    return torch.cat(columns, 1).double().flatten().numpy()
