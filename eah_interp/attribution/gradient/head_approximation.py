"""Approximate effects of heads, with the exact effects of some of them beside."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.attribution.cases.labels import largest, list_heads
from eah_interp.attribution.cases.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.direct.head_attribution import HeadEffects
from eah_interp.attribution.patching.head_patching import What
from eah_interp.attribution.results import Result, register
from eah_interp.interventions.settings import EAH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal["attribution_patching", "integrated_gradients"]
"""How effects are approximated."""

FEWEST = 3
"""Heads that a correlation takes at least: through two points there is a line."""

ROUNDING = 1e-5
"""Share of a target's value (or of 1) below which an effect's sign is rounding."""


@register
@dataclass(frozen=True)
class Agreement:
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


@dataclass(frozen=True)
class HeadApproximation(Result):
    """What patching each head would do to each target, approximately.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        layers: Decoder index of each entry of the layer axis.
        method: How effects were approximated.
        what: What of each head is put from the source into the target run.
        source: Where it is taken from: a run.
        target: The run that it is put into.
        source_patch: EAH settings of the source; None for a plain run.
        target_patch: EAH settings of the target; None for a plain run.
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
    source_patch: EAH | None
    target_patch: EAH | None
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
            Columns `object row position target layer head name approximate exact`;
            `exact` is NaN where the head was not checked.
        """
        table = list_heads(self.targets, self.layers, self.approximate.shape[-1])
        return table.assign(
            approximate=self.approximate.double().flatten().numpy(),
            exact=self.exact.double().flatten().numpy(),
        )

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
        if by == "exact":
            table = table[table["exact"].notna()].reset_index(drop=True)
        return largest(table, k, by=by)

    def plot(self, target: int = 0) -> "Figure":
        """Draw one target's approximate effects by layer and head.

        Args:
            target: Which target.

        Returns:
            A matplotlib figure.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz import plot_heads

        title = f"effect on {self.targets[target].label}, by gradients"
        panel = f"{self.what}: {self.source} into {self.target}"
        effects = self.approximate[target]
        return plot_heads({panel: effects}, layers=self.layers, title=title)


def _correlate(found: Tensor, exact: Tensor, floor: Tensor) -> TargetValues:
    """Correlate rows; NaN where a row does not vary by more than rounding."""
    pair = [row.double() - row.double().mean(1, keepdim=True) for row in (found, exact)]
    product: Tensor = (pair[0] * pair[1]).sum(1)
    product = product / (pair[0].norm(dim=1) * pair[1].norm(dim=1))
    flat = torch.stack([row.abs().amax(1) for row in pair]) <= floor[:, 0]
    return product.masked_fill(flat.any(0), torch.nan).float()


def _sign(effects: Tensor, floor: Tensor) -> Tensor:
    return effects.sign() * (effects.abs() > floor)
