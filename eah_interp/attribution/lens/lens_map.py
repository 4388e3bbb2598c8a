"""What every layer says of objects, labelled: the result of `logit_lens`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp.attribution.cases.labels import label_targets
from eah_interp.attribution.cases.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.results import Result, register
from eah_interp.errors import SettingsError
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.spans import ImageSpan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

register(Target)


@register
@dataclass(frozen=True)
class LensReading:
    """What one run's residual stream says of each target.

    Where a row has fewer places than another: NaN, and rank -1.

    Attributes:
        logit: The target, as the last layer would have it: a logit, its mean over
            synonyms, or a difference.
        rank: Of the likeliest of the target's tokens among all tokens; 1 is first.
        probability: Of the target's tokens together, in [0, 1]. Of a difference, of
            the first object, as is the rank.
    """

    logit: Float[Tensor, "target point place"]
    rank: Int[Tensor, "target point place"]
    probability: Float[Tensor, "target point place"]


@dataclass(frozen=True)
class LogitLens(Result):
    """The residual stream by layer, read as if it were the last layer's.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        points: Where in depth: `"embedding"`, which enters the first layer, and `"L0"`
            and so on, what leaves each layer.
        positions: Where in the prompt: the position where the target is read, then
            the row's image tokens; -1 where a row has fewer.
        spans: Each row's images, with their patch grids.
        plain: The run as it is.
        patch: The settings of the patched run; None where none was asked for.
        patched: The patched run.
        donors: Donor head of each patched layer, by batch item.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    points: tuple[str, ...]
    positions: Int[Tensor, "target place"]
    spans: tuple[tuple[ImageSpan, ...], ...]
    plain: LensReading
    patch: EAH | None
    patched: LensReading | None
    donors: dict[int, Tensor]

    @property
    def values(self) -> TargetValues:
        """The targets themselves: the last layer's reading at the answer."""
        return self.plain.logit[:, -1, 0]

    def frame(self) -> pd.DataFrame:
        """List every reading.

        Returns:
            Columns `object row position target point layer place read_at logit rank
            probability`, and of a patched run `patched_logit patched_rank
            patched_probability change` (of the logit). `layer` is empty for the
            embedding; `place` is `answer` or `image`; `read_at` is a position.
        """
        n_targets, n_places = self.positions.shape
        table = pd.MultiIndex.from_product(
            [range(n_targets), range(len(self.points)), range(n_places)],
            names=["target", "depth", "number"],
        ).to_frame(index=False)
        read_at = self.positions[:, None].expand(-1, len(self.points), -1)
        depth, number = table.pop("depth"), table.pop("number")
        table["point"] = [self.points[d] for d in depth]
        table["layer"] = (depth - 1).astype("Int64").mask(depth == 0)
        table["place"] = number.eq(0).map({True: "answer", False: "image"})
        table["read_at"] = read_at.flatten().numpy()
        for name in ("logit", "rank", "probability"):
            table[name] = _flat(getattr(self.plain, name))
            if self.patched is not None:
                table[f"patched_{name}"] = _flat(getattr(self.patched, name))
        if self.patched is not None:
            table["change"] = table["patched_logit"] - table["logit"]
        table = label_targets(table, self.targets)
        return table[table["read_at"] >= 0].reset_index(drop=True)

    def top(
        self, k: int = 10, *, by: str = "probability", place: str = "image"
    ) -> pd.DataFrame:
        """List each target's `k` places, over all layers, where it is most readable.

        Args:
            k: How many.
            by: The column that is compared, such as `"patched_probability"`; largest
                first, of ranks the smallest.
            place: `"image"` or `"answer"`.

        Raises:
            SettingsError: If `k` is below 1, or there is no such column or place.
        """
        table = self.frame()
        if k < 1:
            msg = f"k must be at least 1, got {k}"
            raise SettingsError(msg)
        if place not in ("image", "answer"):
            msg = f"place must be image or answer, got {place!r}"
            raise SettingsError(msg)
        numbers = [
            name
            for name in map(str, table.columns)
            if name.endswith(("logit", "rank", "probability"))
        ]
        if by not in (*numbers, *(["change"] if self.patched else [])):
            msg = f"by={by!r} is no column to compare: expected {', '.join(numbers)}"
            raise SettingsError(msg)
        there = table[table["place"] == place]
        ordered = there.sort_values(by, ascending=by.endswith("rank"), kind="stable")
        ordered = ordered.sort_values("target", kind="stable")
        return ordered.groupby("target", sort=False).head(k).reset_index(drop=True)

    def curves(self, target: int, *, of: str = "logit") -> dict[str, dict[str, Tensor]]:
        """Sum up one target by depth: at the answer, and over the image tokens.

        Args:
            target: Which target.
            of: `"logit"` or `"probability"`.

        Returns:
            For each run (`plain`, `patched`) the curves `answer`, `image mean` and
            `image max`, `[point]` each.

        Raises:
            SettingsError: If there is no such target or number.
        """
        if of not in ("logit", "probability"):
            msg = f"of must be logit or probability, got {of!r}"
            raise SettingsError(msg)
        if not 0 <= target < len(self.targets):
            msg = (
                f"target {target} does not exist: expected 0 to {len(self.targets) - 1}"
            )
            raise SettingsError(msg)
        runs = {"plain": self.plain, "patched": self.patched}
        image = self.positions[target] >= 0
        image[0] = False
        curves: dict[str, dict[str, Tensor]] = {}
        for name, reading in runs.items():
            if reading is None:
                continue
            values: Tensor = getattr(reading, of)[target]
            curves[name] = {"answer": values[:, 0]}
            if image.any():
                over = values[:, image]
                curves[name]["image mean"] = over.mean(1)
                curves[name]["image max"] = over.amax(1)
        return curves

    def plot(self, target: int = 0, *, of: str = "logit") -> "Figure":
        """Draw one target by layer, at the answer and over the image tokens.

        Args:
            target: Which target.
            of: `"logit"` or `"probability"`.

        Returns:
            A matplotlib figure, one column wide.

        Raises:
            SettingsError: If there is no such target or number.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz import plot_lens

        return plot_lens(self, target, of=of)


def _flat(values: Tensor) -> Any:
    whole = values.dtype == torch.long
    return (values if whole else values.double()).flatten().numpy()
