"""What of a broadcast's effect goes through each later node: `trace_mediators`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

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

LEAST_TOTAL = 1e-4
"""Effects below this share of the target's size (or of 1) are too small to divide."""


@dataclass(frozen=True)
class Mediation(Result):
    """Which later nodes carry a broadcast's effect.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        eah: The broadcast.
        nodes: The nodes that were set back: `L3H7`, `L3.mlp`.
        plain: The targets without the broadcast.
        patched: The targets with it.
        restored: The part of the effect that disappears when a node is set back to
            its plain output, in the targets' units.
        unmediated: The effect that is left when all the nodes are set back together.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    eah: EAH
    nodes: tuple[str, ...]
    plain: TargetValues
    patched: TargetValues
    restored: Float[Tensor, "target node"]
    unmediated: TargetValues

    @property
    def total(self) -> TargetValues:
        """What the broadcast does to each target."""
        return self.patched - self.plain

    @property
    def shares(self) -> Float[Tensor, "target node"]:
        """`restored` as a share of the total; NaN where the total is next to nothing.

        A share is undefined where the broadcast moves a target by less than 1e-4 of
        its value (or of 1): parts of an effect that is not there.
        """
        size = self.plain.abs().clamp(min=1.0)
        nothing = self.total.abs() < LEAST_TOTAL * size
        shares = self.restored / self.total[:, None]
        return shares.masked_fill(nothing[:, None], float("nan"))

    def frame(self) -> pd.DataFrame:
        """List every node of every target.

        Returns:
            Columns `object row position target layer head name kind restored share
            total unmediated`; `kind` is `head` or `block`.
        """
        table = list_nodes(self.targets, self.nodes)
        table["restored"] = self.restored.double().flatten().numpy()
        table["share"] = self.shares.double().flatten().numpy()
        table["total"] = self.total.double().numpy()[table["target"]]
        table["unmediated"] = self.unmediated.double().numpy()[table["target"]]
        return table

    def top(self, k: int = 10) -> pd.DataFrame:
        """List each target's `k` nodes that carry most, either sign.

        Raises:
            SettingsError: If `k` is below 1.
        """
        return largest(self.frame(), k, by="restored")

    def plot(self, target: int = 0) -> "Figure":
        """Draw what heads carry, by layer and head; other nodes are in `frame()`.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
            SettingsError: If no node is a head.
        """
        from eah_interp.viz import plot_heads

        layers, grid = grid_of_heads(self.nodes, self.restored[target])
        title = f"effect on {self.targets[target].label}"
        return plot_heads({"carried by": grid}, layers=layers, title=title)
