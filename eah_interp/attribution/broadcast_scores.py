"""Image-column scores before and after a broadcast: what `score_broadcast` returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.arguments import by_name
from eah_interp.attribution.results import check_finite_result, name_head
from eah_interp.attribution.runs import (
    check_unedited,
    open_question,
    score_run,
    visit_layers,
)
from eah_interp.attribution.sides import check_broadcast
from eah_interp.errors import InputError, SettingsError, UnsupportedError, show_value
from eah_interp.interventions.eah import EAH
from eah_interp.interventions.intervention import list_layers
from eah_interp.interventions.point import PatchPoint
from eah_interp.kernels.sinks import ColumnScores
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.spans import ImageSpan
from eah_interp.results import ModelResult, Part
from eah_interp.shown_results import count, count_heads, list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = Float[Tensor, "batch layer head key"]


@dataclass(frozen=True, eq=False, repr=False)
class ScoreRun(Part):
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


@dataclass(frozen=True, eq=False, repr=False)
class BroadcastScores(ModelResult):
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

    def _about(self) -> str:
        n_items, n_layers, n_heads, _ = self.plain.scores.shape
        return (
            f"{count(n_items, 'item')}, {count_heads(n_layers, n_heads)}, "
            f"{int(self.columns.sum())} image columns in all; largest change first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            item, layer, head, key = cell
            name = name_head(self.layers[layer], head)
            return {"item": item, "name": name, "read_at": key}

        columns = {name: run.scores for name, run in self.runs.items()}
        change = self.patched.scores - self.plain.scores
        columns["change"] = change.masked_fill(~self.columns[:, None, None], torch.nan)
        return list_largest(columns, by="change", k=k, label=label)

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
        if not isinstance(run, str) or run not in self.runs:
            msg = f"run must be plain or patched, got {show_value(run)}"
            raise SettingsError(msg)
        judged = self.columns.sum(-1).clamp(min=1)[:, None, None]
        return self.runs[run].sinks.sum(-1) / judged

    def plot(
        self, *, layer: int | None = None, item: int = 0, ax: "Axes | None" = None
    ) -> "Figure":
        """Draw one layer's heads, plain beside patched, a line each.

        Every cell is an image column's score, in multiples of the sink threshold. A
        frame marks the donor; under a control without a donor head (`"mean"`,
        `"uniform"`) there is none.

        Args:
            layer: Which decoder layer; the first when None.
            item: Which batch item.
            ax: Not taken: there are two panels.

        Returns:
            A matplotlib figure, one column wide.

        Raises:
            SettingsError: If the layer was not scored, or axes are given.
            InputError: If there is no such item, or it has no judged columns.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.figures import refuse_axes
        from eah_interp.viz.sinks import plot_columns

        refuse_axes(ax, panels="two panels, plain and patched,")
        layer = self.layers[0] if layer is None else layer
        if layer not in self.layers:
            named = ", ".join(map(str, self.layers))
            msg = f"layer {layer} was not scored: expected one of {named}; see layers="
            raise SettingsError(msg)
        if not 0 <= item < len(self.columns):
            msg = f"item {item} does not exist: expected 0 to {len(self.columns) - 1}"
            raise InputError(msg)
        judged = self.columns[item]
        if not bool(judged.any()):
            msg = f"item {item} has no image columns to draw: expected at least 1"
            raise InputError(f"{msg}, got 0")
        where = item, self.layers.index(layer)
        ratios, densities = {}, {}
        for name, run in self.runs.items():
            ratios[name] = run.ratio[where][:, judged]
            densities[name] = self.density(name)[where].tolist()
        return plot_columns(
            ratios,
            densities=densities,
            donors=self.donors_mask[where].nonzero().flatten().tolist(),
            layer=layer,
        )


# ---- Image-column scores of whole layers, plain and under EAH.


@by_name
def score_broadcast(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    eah: EAH | None = None,
    layers: Sequence[int] | None = None,
) -> BroadcastScores:
    """Score every head's image columns in the plain run and under EAH.

    The plain run has each head's own pattern, the patched run the pattern that it
    attends with: in a patched layer, what was donated. Patterns are streamed.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        eah: Settings; `EAH()` when None. Scores are by their definition and threshold.
        layers: Decoder layers to look at; the patched ones when None.

    Returns:
        Scores, thresholds and donors, on the CPU.

    Raises:
        InputError: If images or prompts do not fit.
        SettingsError: If a layer or head does not exist.
        ModelError: If a layer has no heads.
        UnsupportedError: If the model is a patched twin, or layers read unlike keys.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = score_broadcast(eah.load(), random_image())
        >>> tuple(found.plain.scores.shape)[:3], found.frame()["donor"].any()
        ((1, 1, 8), np.True_)
    """
    check_unedited(model)
    settings = EAH() if eah is None else eah
    check_broadcast(model, settings)
    chosen = tuple(list_layers(settings.layers if layers is None else layers))
    for layer in chosen:
        model.anatomy.site(layer)
    encoding, prompt_mask = open_question(model, images, prompts)
    runs: list[ScoreRun] = []
    donors: dict[int, Tensor] = {}
    columns: list[Tensor] = []
    for side in (None, settings):
        found: list[ColumnScores] = []

        def look(point: PatchPoint, found: list[ColumnScores] = found) -> None:
            found.append(score_run(point, settings.definition))

        donors = visit_layers(
            model, encoding, look, layers=chosen, patch=side, prompt_mask=prompt_mask
        )
        runs.append(_stack(found, float(settings.beta or 0)))
        columns = [one.columns for one in found]
    return check_finite_result(
        BroadcastScores(
            model=name_model(model),
            eah=settings,
            layers=chosen,
            columns=columns[0].cpu(),
            spans=model.spans(encoding),
            plain=runs[0],
            patched=runs[1],
            donors=donors,
        )
    )


def _stack(found: Sequence[ColumnScores], beta: float) -> ScoreRun:
    widths = {one.scores.shape[-1] for one in found}
    if len(widths) > 1:
        msg = (
            f"the layers read {sorted(widths)} keys, so their scores have no common "
            "axis: expected layers that read alike; look at them one by one"
        )
        raise UnsupportedError(msg)
    scores = torch.stack([one.scores for one in found], 1).cpu()
    thresholds = [one.threshold(beta).expand_as(one.scores) for one in found]
    return ScoreRun(scores=scores, threshold=torch.stack(thresholds, 1).cpu())
