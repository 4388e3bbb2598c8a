"""Exact effects of patched heads, labelled: the result of `patch_heads`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from eah_interp.attribution.cases.labels import largest
from eah_interp.attribution.cases.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.patching.nodes import grid_of_heads, list_nodes
from eah_interp.attribution.results import Result
from eah_interp.interventions.settings import EAH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

What = Literal["output", "pattern", "values"]
"""What of a head is patched: its output, its pattern, or the values it mixes."""


@dataclass(frozen=True)
class HeadPatching(Result):
    """How targets change when nodes of one run are put into another.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        what: What of each node was patched.
        source: Where it was taken from: a run, `"zero"` or `"mean"`.
        target: The run that it was put into.
        source_patch: EAH settings of the source; None for a plain run.
        target_patch: EAH settings of the target; None for a plain run.
        patches: What was patched each time: `L3H7`, `L3.mlp`, or `L3H7+L4H0` together.
        values: The targets in the target run, before any patch.
        source_values: The targets in the source run; None for ablations.
        effects: Change of each target by each patch: patched minus `values`.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    what: What
    source: str
    target: str
    source_patch: EAH | None
    target_patch: EAH | None
    patches: tuple[str, ...]
    values: TargetValues
    source_values: TargetValues | None
    effects: Float[Tensor, "target patch"]

    def frame(self) -> pd.DataFrame:
        """List every patch of every target.

        Returns:
            Columns `object row position target layer head name kind effect value`;
            `kind` is `head`, `block` (MLPs and the like) or `set`, `value` what the
            target was before.
        """
        table = list_nodes(self.targets, self.patches)
        table["effect"] = self.effects.double().flatten().numpy()
        table["value"] = self.values.double().numpy()[table["target"]]
        return table

    def top(self, k: int = 10) -> pd.DataFrame:
        """List each target's `k` patches with the largest effects, either sign.

        Raises:
            SettingsError: If `k` is below 1.
        """
        return largest(self.frame(), k, by="effect")

    def grid(self, target: int = 0) -> Float[Tensor, "layer head"]:
        """Lay a target's effects out by layer and head; NaN where none was patched.

        Layers are those that have a patched head, in order.

        Raises:
            SettingsError: If no single head was patched.
        """
        return grid_of_heads(self.patches, self.effects[target])[1]

    def plot(self, target: int = 0) -> "Figure":
        """Draw one target's effects by layer and head; other nodes are in `frame()`.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
            SettingsError: If no single head was patched.
        """
        from eah_interp.viz import plot_heads

        layers, grid = grid_of_heads(self.patches, self.effects[target])
        title = f"effect on {self.targets[target].label}"
        panel = f"{self.what}: {self.source} into {self.target}"
        return plot_heads({panel: grid}, layers=layers, title=title)
