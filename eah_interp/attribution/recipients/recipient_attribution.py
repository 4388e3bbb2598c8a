"""What each recipient of a broadcast does: the result of `attribute_recipients`."""

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

Method = Literal["alone", "without", "shapley"]
"""Only it receives; all but it receive; the mean over all orders of joining."""


@dataclass(frozen=True)
class RecipientAttribution(Result):
    """How much of a broadcast's effect is owed to each head that receives.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        eah: The broadcast.
        method: How the effect was divided.
        recipients: The heads that receive: `L1H0`.
        donors: Donor head of each patched layer, by batch item; -1 for none.
        plain: The targets without the broadcast.
        patched: The targets with all of it.
        effects: Share of each recipient in the targets' units. Shapley values sum to
            `total`. A donor that receives its own pattern has 0.
        errors: Standard errors of sampled Shapley values; 0 where effects are exact.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    eah: EAH
    method: Method
    recipients: tuple[str, ...]
    donors: dict[int, Tensor]
    plain: TargetValues
    patched: TargetValues
    effects: Float[Tensor, "target recipient"]
    errors: Float[Tensor, "target recipient"]

    @property
    def total(self) -> TargetValues:
        """What the whole broadcast does to each target."""
        return self.patched - self.plain

    def frame(self) -> pd.DataFrame:
        """List every recipient of every target.

        Returns:
            Columns `object row position target layer head name kind effect error
            total is_donor`.
        """
        table = list_nodes(self.targets, self.recipients)
        table["effect"] = self.effects.double().flatten().numpy()
        table["error"] = self.errors.double().flatten().numpy()
        table["total"] = self.total.double().numpy()[table["target"]]
        places = zip(table["layer"], table["head"], table["row"], strict=True)
        table["is_donor"] = [
            int(self.donors[layer][row]) == head for layer, head, row in places
        ]
        return table

    def top(self, k: int = 10) -> pd.DataFrame:
        """List each target's `k` recipients with the largest effects, either sign.

        Raises:
            SettingsError: If `k` is below 1.
        """
        return largest(self.frame(), k, by="effect")

    def plot(self, target: int = 0) -> "Figure":
        """Draw one target's effects by layer and recipient.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz import plot_heads

        layers, grid = grid_of_heads(self.recipients, self.effects[target])
        title = f"effect on {self.targets[target].label}"
        return plot_heads({self.method: grid}, layers=layers, title=title)
