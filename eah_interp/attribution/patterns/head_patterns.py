"""Rows of heads' attention patterns, labelled: the result of `read_patterns`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.attribution.cases.labels import name_head
from eah_interp.attribution.patterns.pattern_run import PatternRun, Run
from eah_interp.attribution.picture.grid import lay_out
from eah_interp.attribution.results import Result
from eah_interp.errors import SettingsError
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.spans import ImageSpan

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


@dataclass(frozen=True)
class HeadPatterns(Result):
    """Some query rows of some heads' attention patterns, plain and patched.

    Attributes:
        heads: Layer and head of each entry of the head axis.
        positions: Prompt position of each entry of the row axis.
        tokens: What stands at each position, by batch item.
        spans: Each item's images, with their patch grids.
        images: True at image tokens.
        padding: True at padding.
        plain: The run as it is.
        patch: The settings of the patched run; None where none was asked for.
        patched: The patched run: the patterns that heads attend with in it.
        donors: Donor head of each patched layer, by batch item.
        sinks_by: The settings whose definition and threshold say what a sink is.
    """

    heads: tuple[tuple[int, int], ...]
    positions: Int[Tensor, " row"]
    tokens: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[ImageSpan, ...], ...]
    images: ColumnMask
    padding: ColumnMask
    plain: PatternRun
    patch: EAH | None
    patched: PatternRun | None
    donors: dict[int, Tensor]
    sinks_by: EAH

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each entry of the head axis: `L1H3`."""
        return tuple(name_head(layer, head) for layer, head in self.heads)

    @property
    def runs(self) -> dict[Run, PatternRun]:
        """The runs that there are, by name."""
        runs: dict[Run, PatternRun] = {"plain": self.plain}
        return runs if self.patched is None else runs | {"patched": self.patched}

    def frame(self) -> pd.DataFrame:
        """List every weight.

        Returns:
            Columns `item layer head name query read_at token place plain sink`, and of
            a patched run `patched patched_sink change`. `query` and `read_at` are
            positions; `place` is `image`, `text` or `padding`, of what is read.
        """
        n_items, n_heads, n_rows, n_keys = self.plain.rows.shape
        table = pd.MultiIndex.from_product(
            [range(n_items), range(n_heads), self.positions.tolist(), range(n_keys)],
            names=["item", "which", "query", "read_at"],
        ).to_frame(index=False)
        which = table.pop("which").to_numpy()
        layer_head = torch.tensor(self.heads).numpy()[which]
        table.insert(1, "layer", layer_head[:, 0])
        table.insert(2, "head", layer_head[:, 1])
        table.insert(3, "name", [self.names[i] for i in which])
        at = table["item"].to_numpy(), table["read_at"].to_numpy()
        words = [list(row) for row in self.tokens]
        table["token"] = [words[i][k] for i, k in zip(*at, strict=True)]
        table["place"] = "text"
        table.loc[self.images.numpy()[at], "place"] = "image"
        table.loc[self.padding.numpy()[at], "place"] = "padding"
        for name, run in self.runs.items():
            wide = run.sinks.unsqueeze(2).expand(-1, -1, n_rows, -1)
            table[name] = run.rows.double().flatten().numpy()
            table["sink" if name == "plain" else f"{name}_sink"] = (
                wide.flatten().numpy()
            )
        if self.patched is not None:
            table["change"] = table["patched"] - table["plain"]
        return table

    def top(self, k: int = 10) -> pd.DataFrame:
        """List the `k` positions that each head attends to most, of each row.

        Of a patched run, those of the patched run.

        Args:
            k: How many.

        Raises:
            SettingsError: If `k` is below 1.
        """
        if k < 1:
            msg = f"k must be at least 1, got {k}"
            raise SettingsError(msg)
        by = "plain" if self.patched is None else "patched"
        keys = ["item", "layer", "head", "query"]
        ordered = self.frame().sort_values(
            [*keys, by], ascending=[True] * 4 + [False], kind="stable"
        )
        return ordered.groupby(keys, sort=False).head(k).reset_index(drop=True)

    def row(
        self, head: str | tuple[int, int], *, item: int = 0, query: int = -1,
        run: Run = "plain",
    ) -> Float[Tensor, " key"]:  # fmt: skip
        """Return one row of one head.

        Args:
            head: Such as `"L1H3"`.
            item: Which batch item.
            query: Its position; -1 is the last position of the prompt.
            run: Plain or patched.

        Raises:
            SettingsError: If an item, head, row or run is not there.
        """
        where = self.find_item(item), self.find_head(head), self.find_row(query)
        return self.find_run(run).rows[where]

    def picture(
        self,
        head: str | tuple[int, int],
        *,
        item: int = 0,
        query: int = -1,
        run: Run = "plain",
        image: int = 0,
    ) -> tuple[Float[Tensor, "row column"], ...]:
        """Lay one row's attention out as the patches lie in the picture.

        Args:
            head: Such as `"L1H3"`.
            item: Which batch item.
            query: The row's position.
            run: Plain or patched.
            image: Which picture of the item.

        Returns:
            A grid for each part of the picture (`spans[item][image].parts`: the whole,
            crops, tiles); NaN where a patch shows padding only.

        Raises:
            UnsupportedError: If image tokens have no place in the picture.
            SettingsError: If an item, head, row, run or picture is not there.
        """
        row = self.row(head, item=item, query=query, run=run)
        span = self.span(item, image=image)
        return lay_out(span, {column: float(row[column]) for column in span.columns})

    def span(self, item: int, *, image: int = 0) -> ImageSpan:
        """Return where a picture of an item is.

        Raises:
            SettingsError: If there is no such item or picture.
        """
        spans = self.spans[self.find_item(item)]
        if not 0 <= image < len(spans):
            msg = f"picture {image} does not exist: expected 0 to {len(spans) - 1}"
            raise SettingsError(msg)
        return spans[image]

    def find_head(self, head: str | tuple[int, int]) -> int:
        """Find a head on the head axis.

        Raises:
            SettingsError: If it was not asked for.
        """
        name = head if isinstance(head, str) else name_head(*head)
        if name not in self.names:
            msg = f"{name} was not read: expected one of {', '.join(self.names)}"
            raise SettingsError(msg)
        return self.names.index(name)

    def find_row(self, query: int) -> int:
        """Find a prompt position on the row axis.

        Raises:
            SettingsError: If it was not asked for.
        """
        known = self.positions.tolist()
        wanted = query + self.images.shape[1] if query < 0 else query
        if wanted not in known:
            named = ", ".join(map(str, known[:12])) + (" ..." if known[12:] else "")
            msg = f"row {query} was not read: expected one of {named}; see query="
            raise SettingsError(msg)
        return known.index(wanted)

    def find_item(self, item: int) -> int:
        """See that a batch item is there.

        Raises:
            SettingsError: If it is not.
        """
        if not 0 <= item < len(self.tokens):
            msg = f"item {item} does not exist: expected 0 to {len(self.tokens) - 1}"
            raise SettingsError(msg)
        return item

    def find_run(self, run: str) -> PatternRun:
        """Find a run by its name.

        Raises:
            SettingsError: If it was not asked for.
        """
        runs = {str(name): found for name, found in self.runs.items()}
        if run not in runs:
            msg = (
                f"run={run!r} is not there: expected {' or '.join(runs)}; a patched "
                "run is made by read_patterns(..., patch=)"
            )
            raise SettingsError(msg)
        return runs[run]

    def plot(
        self,
        image: "Image",
        *,
        item: int = 0,
        heads: Sequence[str | tuple[int, int]] | None = None,
        query: int = -1,
        number: int = 0,
    ) -> "Figure":
        """Draw the heads' attention on the picture, their vision sinks outlined.

        The arguments are `viz.plot_attention`'s.
        """
        from eah_interp.viz import plot_attention

        return plot_attention(
            self, image, item=item, heads=heads, query=query, number=number
        )
