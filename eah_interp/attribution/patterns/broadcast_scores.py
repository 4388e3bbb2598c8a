"""Image-column scores before and after a broadcast: what `score_broadcast` returns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.attribution.results import Result, register
from eah_interp.errors import SettingsError
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.spans import ImageSpan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = Float[Tensor, "batch layer head key"]


@register
@dataclass(frozen=True)
class ScoreRun:
    """How much attention image columns receive in one run.

    Attributes:
        scores: Each column's score; 0 where a column is not judged.
        threshold: What a vision sink's score is above.
    """

    scores: Scores
    threshold: Scores

    @property
    def sinks(self) -> Bool[Tensor, "batch layer head key"]:
        """Which columns are vision sinks; also those that are not judged: False."""
        return self.scores > self.threshold

    @property
    def ratio(self) -> Scores:
        """Score over threshold: above 1 is a vision sink; NaN where both are 0."""
        return self.scores / self.threshold


@dataclass(frozen=True)
class BroadcastScores(Result):
    """What each head of some layers does to the image columns, before and after EAH.

    Attributes:
        eah: The settings.
        layers: Decoder index of each entry of the layer axis.
        columns: The image columns that were judged.
        spans: Each item's images, with their patch grids.
        plain: The plain run: each head's own pattern.
        patched: The patched run: the pattern that each head attends with.
        donors: Donor head of each patched layer, by batch item.
    """

    eah: EAH
    layers: tuple[int, ...]
    columns: ColumnMask
    spans: tuple[tuple[ImageSpan, ...], ...]
    plain: ScoreRun
    patched: ScoreRun
    donors: dict[int, Tensor]

    @property
    def runs(self) -> dict[str, ScoreRun]:
        """Both runs, by name."""
        return {"plain": self.plain, "patched": self.patched}

    def frame(self) -> pd.DataFrame:
        """List every head's score of every judged image column.

        Returns:
            Columns `item layer head name donor recipient read_at plain_threshold plain
            plain_ratio plain_sink`, and the same of the patched run, and `change`.
            `read_at` is the column's position; a ratio is of score to threshold.
        """
        n_items, n_layers, n_heads, n_keys = self.plain.scores.shape
        table = pd.MultiIndex.from_product(
            [range(n_items), self.layers, range(n_heads), range(n_keys)],
            names=["item", "layer", "head", "read_at"],
        ).to_frame(index=False)
        names = "L" + table.layer.astype(str) + "H" + table["head"].astype(str)
        table.insert(3, "name", names)
        wide = (n_items, n_layers, n_heads, n_keys)
        for place, name in enumerate(("donor", "recipient")):
            marked = getattr(self, f"{name}s_mask").unsqueeze(-1).expand(wide)
            table.insert(4 + place, name, marked.flatten().numpy())
        for name, run in self.runs.items():
            table[f"{name}_threshold"] = run.threshold.double().flatten().numpy()
            table[name] = run.scores.double().flatten().numpy()
            table[f"{name}_ratio"] = run.ratio.double().flatten().numpy()
            table[f"{name}_sink"] = run.sinks.flatten().numpy()
        table["change"] = table["patched"] - table["plain"]
        judged = self.columns[:, None, None].expand(wide).flatten().numpy()
        return table[judged].reset_index(drop=True)

    @property
    def donors_mask(self) -> Bool[Tensor, "batch layer head"]:
        """Mark the heads that donate."""
        mask = torch.zeros(self.plain.scores.shape[:3], dtype=torch.bool)
        for layer, heads in self.donors.items():
            if layer in self.layers:
                place = self.layers.index(layer)
                for item, head in enumerate(heads.tolist()):
                    if head >= 0:
                        mask[item, place, head] = True
        return mask

    @property
    def recipients_mask(self) -> Bool[Tensor, "batch layer head"]:
        """Mark the heads that receive another pattern than their own."""
        mask = torch.zeros(self.plain.scores.shape[:3], dtype=torch.bool)
        chosen = self.eah.recipients
        for layer, heads in self.donors.items():
            if layer not in self.layers:
                continue
            place = self.layers.index(layer)
            patched = heads >= 0 if self.eah.has_donor_head else heads == heads
            if self.eah.items == "first":
                patched = patched & (torch.arange(len(heads)) == 0)
            who = slice(None) if chosen == "all" else list(chosen)
            mask[:, place, who] = patched[:, None]
        own = not self.eah.remakes_pattern
        return mask & ~self.donors_mask if own else mask

    def density(self, run: str = "patched") -> Float[Tensor, "batch layer head"]:
        """Measure the share of the judged columns that are vision sinks.

        Args:
            run: `"plain"` or `"patched"`.

        Raises:
            SettingsError: If there is no such run.
        """
        if run not in self.runs:
            msg = f"run must be plain or patched, got {run!r}"
            raise SettingsError(msg)
        judged = self.columns.sum(-1).clamp(min=1)[:, None, None]
        return self.runs[run].sinks.sum(-1) / judged

    def plot(self, *, layer: int | None = None, item: int = 0) -> "Figure":
        """Draw one layer's heads before and after the broadcast.

        The arguments are `viz.plot_donors`'s.
        """
        from eah_interp.viz import plot_donors

        return plot_donors(self, layer=layer, item=item)
