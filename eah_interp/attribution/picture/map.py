"""Effects of image tokens, on the picture: the result of `attribute_patches`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp.attribution.cases.labels import largest, list_heads
from eah_interp.attribution.cases.readouts import MetricName, Target
from eah_interp.attribution.picture.effects import PictureEffects
from eah_interp.attribution.picture.grid import lay_out
from eah_interp.attribution.results import Result, register
from eah_interp.errors import SettingsError
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.spans import ImageSpan

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

Sign = Literal["both", "positive", "negative"]
"""Which effects are summed over heads: all, or those of one sign alone."""

Run = Literal["plain", "patched", "change"]
"""Which run, or patched minus plain."""

Heads = Sequence[tuple[int, int]] | None
"""Layers and heads, such as `[(3, 7)]`; None for all."""

register(Target)


@dataclass(frozen=True)
class PictureAttribution(Result):
    """Effects on objects' logits by the image token that heads read.

    Attributes:
        metric: What was read.
        method: How image tokens were credited.
        targets: What each number is about.
        layers: Decoder index of each entry of the layer axis.
        columns: Position of each image token; -1 where a target's row has fewer.
        spans: Each row's images, with their patch grids.
        plain: The run as it is.
        patch: The settings of the patched run; None where none was asked for.
        patched: The patched run.
        donors: Donor head of each patched layer, by batch item.
    """

    metric: MetricName
    method: str
    targets: tuple[Target, ...]
    layers: tuple[int, ...]
    columns: Int[Tensor, "target patch"]
    spans: tuple[tuple[ImageSpan, ...], ...]
    plain: PictureEffects
    patch: EAH | None
    patched: PictureEffects | None
    donors: dict[int, Tensor]

    def frame(self) -> pd.DataFrame:
        """List what every head took from every image token.

        Returns:
            Columns `object row position target layer head name read_at plain`, and of
            a patched run `patched change`; `read_at` is an image token's position, and
            empty for all other tokens together.
        """
        n_targets, n_layers, n_heads, n_patches = self.plain.patches.shape
        heads = list_heads(self.targets, self.layers, n_heads)
        table = heads.loc[heads.index.repeat(n_patches + 1)].reset_index(drop=True)
        text = torch.full((n_targets, 1), -2)
        read_at = torch.cat([self.columns, text], 1)[:, None, None]
        read_at = read_at.expand(-1, n_layers, n_heads, -1).flatten()
        table["read_at"] = pd.array(read_at.numpy(), dtype="Int64")
        table["plain"] = self.plain.flat()
        if self.patched is not None:
            table["patched"] = self.patched.flat()
            table["change"] = table["patched"] - table["plain"]
        table = table[table["read_at"] != -1].reset_index(drop=True)
        table["read_at"] = table["read_at"].mask(table["read_at"] == -2)
        return table

    def top(self, k: int = 10, *, by: str | None = None) -> pd.DataFrame:
        """List each target's `k` image tokens and heads with the largest effects.

        Args:
            k: How many.
            by: The column that is compared: `"plain"`, or by default `"change"` where
                there is a patched run.

        Raises:
            SettingsError: If `k` is below 1, or there is no such column.
        """
        table = self.frame()
        image = table[table["read_at"].notna()].reset_index(drop=True)
        return largest(image, k, by=by or ("plain" if self.patch is None else "change"))

    def summed(
        self,
        target: int,
        *,
        heads: Heads = None,
        run: Run = "plain",
        sign: Sign = "both",
    ) -> Float[Tensor, " patch"]:
        """Sum one target's effects over heads, for each image token.

        Args:
            target: Which target.
            heads: Layers and heads; all when None.
            run: Plain, patched, or the change of the sum.
            sign: Sum all effects, or only the positive or the negative ones, which
                would cancel each other.

        Raises:
            SettingsError: If a target, head or run does not exist.
        """
        if not 0 <= target < len(self.targets):
            last = len(self.targets) - 1
            msg = f"target {target} does not exist: expected 0 to {last}"
            raise SettingsError(msg)
        if sign not in get_args(Sign):
            msg = f"sign must be one of {', '.join(get_args(Sign))}, got {sign!r}"
            raise SettingsError(msg)
        if run == "change":
            old, new = (
                self.summed(target, heads=heads, run=which, sign=sign)
                for which in ("plain", "patched")
            )
            return new - old
        effects = self._run(run).patches[target]
        effects = effects.flatten(0, 1) if heads is None else self._pick(effects, heads)
        if sign == "positive":
            effects = effects.clamp(min=0)
        elif sign == "negative":
            effects = effects.clamp(max=0)
        return effects.sum(0)

    def _run(self, run: str) -> PictureEffects:
        runs = {"plain": self.plain, "patched": self.patched}
        found = runs.get(run)
        if found is None:
            known = [name for name, effects in runs.items() if effects is not None]
            msg = (
                f"run={run!r} is not there: expected {' or '.join(known)}; a patched "
                "run is made by attribute_patches(..., patch=)"
            )
            raise SettingsError(msg)
        return found

    def _pick(self, effects: Tensor, heads: Sequence[tuple[int, int]]) -> Tensor:
        n_heads = effects.shape[1]
        if not heads:
            msg = "heads is empty: name layers and heads, as in [(3, 7)], or leave it"
            raise SettingsError(msg)
        for layer, head in heads:
            if layer not in self.layers or not 0 <= head < n_heads:
                last = f"layers to {self.layers[-1]}, heads to {n_heads - 1}"
                msg = f"there is no head L{layer}H{head}: expected {last}"
                raise SettingsError(msg)
        return torch.stack([effects[self.layers.index(la), h] for la, h in heads])

    def picture(
        self,
        target: int,
        *,
        heads: Heads = None,
        run: Run = "plain",
        sign: Sign = "both",
        image: int = 0,
    ) -> tuple[Float[Tensor, "row column"], ...]:
        """Lay one target's effects out as the patches lie in the picture.

        Args:
            target: Which target.
            heads: Layers and heads; all when None.
            run: Plain, patched, or the change.
            sign: As for `summed`.
            image: Which picture of the target's row.

        Returns:
            A grid for each part of the picture (`spans[row][image].parts`: the whole,
            crops, tiles); NaN where a patch shows padding only.

        Raises:
            UnsupportedError: If image tokens have no place in the picture.
            SettingsError: If a target, head, run or picture does not exist.
        """
        values = self.summed(target, heads=heads, run=run, sign=sign)
        columns = self.columns[target].tolist()
        by_column = dict(zip(columns, values.tolist(), strict=True))
        return lay_out(self.span(target, image=image), by_column)

    def span(self, target: int, *, image: int = 0) -> ImageSpan:
        """Return where a picture of a target's row is.

        Raises:
            SettingsError: If the row has no such picture.
        """
        spans = self.spans[self.targets[target].row]
        if not 0 <= image < len(spans):
            msg = f"picture {image} does not exist: expected 0 to {len(spans) - 1}"
            raise SettingsError(msg)
        return spans[image]

    def plot(
        self,
        image: "Image",
        *,
        target: int = 0,
        heads: Heads = None,
        sign: Sign = "both",
        number: int = 0,
        outlined: Sequence[int] = (),
    ) -> "Figure":
        """Draw one target's effects on the picture, plain, patched and the change.

        Args:
            image: The original picture.
            target: Which target.
            heads: Layers and heads; all when None.
            sign: As for `summed`.
            number: Which picture of the target's row it is.
            outlined: Positions of image tokens to outline, such as vision sinks.

        Returns:
            A matplotlib figure.

        Raises:
            UnsupportedError: If image tokens have no known place in the picture.
            SettingsError: If a target, head or picture does not exist.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz import plot_picture

        return plot_picture(
            self,
            image,
            target=target,
            heads=heads,
            sign=sign,
            number=number,
            outlined=outlined,
        )
