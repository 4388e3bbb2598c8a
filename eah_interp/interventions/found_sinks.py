"""Sinks by kind: the result of `find_sinks`, its tables and figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import (
    InputError,
    SettingsError,
    UnsupportedError,
    show_value,
)
from eah_interp.indices import check_choice, check_item, to_float, to_int, to_list
from eah_interp.kernels.sink_kinds import FLOOR, SinkRule, mark_sinks
from eah_interp.lvlm.spans import ImageSpan
from eah_interp.lvlm.tower import find_place
from eah_interp.results import ModelResult
from eah_interp.shown_results import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eah_interp.viz.towers import KindPanel

KINDS = ("none", "tower", "language", "both")
"""Kinds of a column: whose sink it is."""

FACTORS = (0.75, 1.0, 1.5, 2.0, 3.0)
"""What `sensitivity` multiplies the thresholds by."""


@dataclass(frozen=True, eq=False, repr=False)
class FoundSinks(ModelResult):
    """Which image columns are sinks, and whether of the tower or the language model.

    Numbers of columns are NaN where a column is no image column; those of the tower
    also where `reason` says that its tokens have no columns of their own.

    Attributes:
        columns: The image columns of each item.
        spans: Each item's images, with their patch grids.
        tower_norms: Norm of the tokens that a column is made of, the largest of them,
            as they leave each layer of the tower up to the one that is read.
        norm_thresholds: Norm from which on a token of an item is a sink of the tower.
        norms: Norm in the decoder's residual stream: entering it, and leaving each
            layer.
        tower_scores: The last of `tower_norms`, over the item's threshold.
        language_scores: The largest massive activation that a layer of the decoder
            returns, over its threshold; 0 below half of it.
        massive: Item, column, layer and dimension of each massive activation that has
            a score, in the order of layers.
        massive_values: These activations.
        layers: Layers of the decoder that attend.
        attention: Mean attention that a query gives a column, by layer and by kind of
            query: image tokens, then words; the mean over heads.
        shares: Share of the heads of all layers in which a column receives more than
            `beta` times an even share.
        learned: Share of attention that each head's learned sink takes, the mean over
            an item's tokens; NaN in layers without learned sinks.
        rule: From where on a token is a sink.
        beta: What `shares` counts.
        reason: Why the tower's tokens have no columns of their own; empty if they have.
    """

    columns: ColumnMask
    spans: tuple[tuple[ImageSpan, ...], ...]
    tower_norms: Float[Tensor, "batch tower_layer key"]
    norm_thresholds: Float[Tensor, " batch"]
    norms: Float[Tensor, "batch depth key"]
    tower_scores: Float[Tensor, "batch key"]
    language_scores: Float[Tensor, "batch decoder_layer key"]
    massive: Int[Tensor, "place 4"]
    massive_values: Float[Tensor, " place"]
    layers: tuple[int, ...]
    attention: Float[Tensor, "batch layer 2 key"]
    shares: Float[Tensor, "batch key"]
    learned: Float[Tensor, "batch layer head"]
    rule: SinkRule
    beta: float
    reason: str = ""

    # -- kinds -----------------------------------------------------------------------

    def mask(self, kind: str, *, factor: float = 1.0) -> ColumnMask:
        """Mark the columns that are sinks of a kind.

        Args:
            kind: `"tower"` or `"language"`, those that are both included; `"both"`;
                `"none"`; or `"all"` image columns.
            factor: What both thresholds are multiplied by, 0.5 or more: scores of
                massive activations below half the threshold are not kept.

        Raises:
            SettingsError: If there is no such kind, or the factor is below 0.5.
        """
        check_choice("kind", kind, ("all", *KINDS))
        factor = _check_factor(factor)
        tower = mark_sinks(self.tower_scores, factor=factor)
        most = self.language_scores.nan_to_num(0.0)
        language = mark_sinks(_most(most), factor=factor)
        found = {
            "all": self.columns,
            "tower": tower,
            "language": language,
            "both": tower & language,
            "none": ~(tower | language),
        }
        return found[kind] & self.columns

    def kind_of(self, column: int, *, item: int = 0) -> str:
        """Say whose sink a column is: one of `KINDS`.

        Args:
            column: An image column.
            item: Which batch item.

        Raises:
            InputError: If the item has no such image column.
        """
        row, place = to_int(item), to_int(column)
        n_items, n_keys = self.columns.shape
        if (
            row is None
            or place is None
            or not (0 <= row < n_items and 0 <= place < n_keys)
            or not bool(self.columns[row, place])
        ):
            msg = (
                f"item {show_value(item)} has no image column {show_value(column)}: "
                "expected one of `columns`"
            )
            raise InputError(msg)
        return KINDS[int(self._codes()[row, place])]

    def _codes(self) -> Tensor:
        return self.mask("tower").long() + 2 * self.mask("language").long()

    # -- tables ----------------------------------------------------------------------

    def frame(self) -> pd.DataFrame:
        """List every image column.

        Returns:
            Columns `item column kind`; its place on the image in fractions of it, `left
            top right bottom`; `tower_norm` and `tower_score`; `norm_in` and `norm_most`
            of the decoder; the first layer that makes it massive, in which dimension
            and what stands there, `layer dim value`, and `language_score`, the largest
            of all layers; `from_image` and `from_words`, the attention
            that it receives from either kind of query, the mean over layers; `share` of
            the heads in which it is a sink; and `rule`, what decided its kind.
        """
        return self._table(self.columns.nonzero())

    def _table(self, places: Tensor) -> pd.DataFrame:
        item, column = places[:, 0], places[:, 1]
        boxes = [
            find_place(self.spans, row, place) or (float("nan"),) * 4
            for row, place in places.tolist()
        ]
        left, top, right, bottom = zip(*boxes, strict=True) if boxes else ([],) * 4
        begin = self._begin()
        found = [begin.get(tuple(place)) for place in places.tolist()]
        language = _most(self.language_scores)[item, column]
        tower = self.tower_scores[item, column]
        received = self.attention.nanmean(1)[item, :, column]
        data: dict[str, Any] = {
            "item": item.numpy(),
            "column": column.numpy(),
            "kind": [KINDS[code] for code in self._codes()[item, column].tolist()],
            "left": left,
            "top": top,
            "right": right,
            "bottom": bottom,
            "tower_norm": _last(self.tower_norms)[item, column].numpy(),
            "tower_score": tower.numpy(),
            "norm_in": self.norms[item, 0, column].numpy(),
            "norm_most": _most(self.norms)[item, column].numpy(),
            "dim": pd.array([p and p[1] for p in found], dtype="Int64"),
            "layer": pd.array([p and p[0] for p in found], dtype="Int64"),
            "value": [float("nan") if p is None else p[2] for p in found],
            "language_score": language.numpy(),
            "from_image": received[:, 0].numpy(),
            "from_words": received[:, 1].numpy(),
            "share": self.shares[item, column].numpy(),
            "rule": [
                _say_rule(*pair)
                for pair in zip(tower.tolist(), language.tolist(), strict=True)
            ],
        }
        return pd.DataFrame(data)

    def _begin(self) -> dict[tuple[int, ...], tuple[int, int, float]]:
        """Find where each column is first massive: layer, dimension, activation."""
        found: dict[tuple[int, ...], tuple[int, int, float]] = {}
        rows = zip(self.massive.tolist(), self.massive_values.tolist(), strict=True)
        for (item, column, layer, dim), value in rows:
            known = found.get((item, column))
            if known is not None:
                if known[0] == layer and abs(value) > abs(known[2]):
                    found[item, column] = (layer, dim, value)
            elif float(self.language_scores[item, layer, column]) > 1:
                found[item, column] = (layer, dim, value)
        return found

    def by_layer(self) -> pd.DataFrame:
        """List every image column in every layer of the decoder.

        Returns:
            Columns `item column layer norm language_score from_image from_words`;
            attention is NaN in layers that do not attend.
        """
        item, column = self.columns.nonzero(as_tuple=True)
        tables = []
        for layer in range(self.language_scores.shape[1]):
            received = torch.full((len(item), 2), float("nan"))
            if layer in self.layers:
                at = self.layers.index(layer)
                received = self.attention[item, at, :, column]
            table = pd.DataFrame(
                {
                    "item": item.numpy(),
                    "column": column.numpy(),
                    "layer": layer,
                    "norm": self.norms[item, layer + 1, column].numpy(),
                    "language_score": self.language_scores[item, layer, column].numpy(),
                    "from_image": received[:, 0].numpy(),
                    "from_words": received[:, 1].numpy(),
                }
            )
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def label(
        self, table: pd.DataFrame, *, item: str = "row", column: str = "read_at"
    ) -> pd.DataFrame:
        """Say of each row of another table whose sink it is about.

        Such as that of `attribute_patches`, whose effects can then be summed by kind:
        `found.label(effects.frame()).groupby("kind")["plain"].sum()`.

        Args:
            table: A row for each of some columns of some items.
            item: Its column that names the item.
            column: Its column that names the column.

        Returns:
            The table with a column `kind`: one of `KINDS`; `"text"` where it is about
            no image column.

        Raises:
            InputError: If the table has no such columns.
        """
        missing = [name for name in (item, column) if name not in table]
        if missing:
            msg = (
                f"the table has no column {', '.join(missing)}: expected one of "
                f"items and one of columns, got {', '.join(map(str, table))}"
            )
            raise InputError(msg)
        codes = self._codes()
        known = {
            (row, place): KINDS[int(codes[row, place])]
            for row, place in self.columns.nonzero().tolist()
        }
        places = zip(table[item], table[column].fillna(-1), strict=True)
        kinds = [known.get((int(row), int(place)), "text") for row, place in places]
        return table.assign(kind=kinds)

    def learned_frame(self) -> pd.DataFrame:
        """List the heads that have learned sinks: parameters, and no columns.

        Returns:
            Columns `layer head name mass`: the share of attention that the sink takes,
            the mean over items; no rows where no layer has learned sinks.
        """
        mass = self.learned.nanmean(0)
        there = (~mass.isnan()).nonzero()
        layers = [self.layers[index] for index in there[:, 0].tolist()]
        heads = there[:, 1].tolist()
        return pd.DataFrame(
            {
                "layer": pd.array(layers, dtype="int64"),
                "head": pd.array(heads, dtype="int64"),
                "name": [f"L{a}H{b}" for a, b in zip(layers, heads, strict=True)],
                "mass": mass[there[:, 0], there[:, 1]].numpy(),
            }
        )

    def sensitivity(self, factors: Sequence[float] = FACTORS) -> pd.DataFrame:
        """Count the sinks of each kind were the thresholds others.

        Args:
            factors: What both thresholds are multiplied by, 0.5 and more: scores of
                massive activations below half the threshold are not kept.

        Returns:
            Columns `factor tower language both`, sinks of all items; `tower` and
            `language` count those that are both.

        Raises:
            SettingsError: If they are no list, or a factor is below 0.5.
        """
        listed = to_list(factors)
        if listed is None:
            got = show_value(factors)
            raise SettingsError(f"factors must be a list of numbers, got {got}")
        listed = [_check_factor(factor) for factor in listed]
        kinds = ("tower", "language", "both")
        rows = [
            [factor, *(int(self.mask(kind, factor=factor).sum()) for kind in kinds)]
            for factor in listed
        ]
        return pd.DataFrame(rows, columns=["factor", *kinds])

    # -- figures ---------------------------------------------------------------------

    def plot(
        self, item: int = 0, *, image: Any = None, ax: "Axes | None" = None
    ) -> "Figure":
        """Draw where one item's sinks of each kind are on its image.

        Where the model looks at an image several times (an overview and crops), or the
        item has several images, each way has a panel of its own. Sinks without a place,
        such as newline vectors, are left out; `frame()` has them.

        Args:
            item: Which batch item.
            image: The image to draw on, or a list of the item's images; blank ones when
                None.
            ax: Axes of matplotlib to draw a single panel into; a figure of its own when
                None.

        Returns:
            A matplotlib figure, one column wide, of several panels a page.

        Raises:
            InputError: If there is no such item, or there are not as many images.
            UnsupportedError: If its image tokens have no places in the image, or it is
                not known which.
            SettingsError: If `ax` is no axes, or there are several panels for it.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.towers import plot_kinds

        index = check_item(item, len(self.columns))
        panels = list(self._panels(index, image))
        if not panels:
            msg = (
                f"the image tokens of item {index} have no places in the image: look "
                "at frame() instead, or at plot_norms()"
            )
            raise UnsupportedError(msg)
        codes = self._codes()[index].tolist()
        kinds = {place: KINDS[code] for place, code in enumerate(codes) if code}
        return plot_kinds(panels, kinds, ax=ax)

    def _panels(self, item: int, image: Any) -> "Iterator[KindPanel]":
        """List the ways in which the model looks at an item's images."""
        from eah_interp.viz.towers import KindPanel

        spans = self.spans[item]
        images = list(image) if isinstance(image, list | tuple) else [image]
        if image is None:
            images = [None] * len(spans)
        if len(images) != len(spans):
            msg = (
                f"item {item} has {len(spans)} images, and {len(images)} are given to "
                "draw on: expected a list of as many, or none"
            )
            raise InputError(msg)
        for number, (span, own) in enumerate(zip(spans, images, strict=True)):
            names = dict.fromkeys(part.name for part in span.parts)
            for name in names:
                parts = [part for part in span.parts if part.name == name]
                if len(parts) > 1 and any(part.box is None for part in parts):
                    msg = (
                        f"which regions of the image its {len(parts)} {name!r} grids "
                        "show is not known: give images and prompts to find_sinks, or "
                        "look at frame()"
                    )
                    raise UnsupportedError(msg)
                which = f"image {number}" * (len(spans) > 1)
                way = name * (len(names) > 1 or not which)
                title = ", ".join(filter(None, (which, way)))
                yield KindPanel(title, parts, own)

    def plot_norms(self, item: int = 0, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the norms of one item's columns along both towers, by kind.

        Args:
            item: Which batch item.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Returns:
            A matplotlib figure, one column wide.

        Raises:
            InputError: If there is no such item.
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.towers import plot_norms

        index = check_item(item, len(self.columns))
        own = self.columns[index]
        codes = self._codes()[index][own].tolist()
        return plot_norms(
            self.tower_norms[index][:, own],
            self.norms[index][:, own],
            kinds=[KINDS[code] for code in codes],
            ax=ax,
        )

    # -- shown -----------------------------------------------------------------------

    def _about(self) -> str:
        counts = {kind: int(self.mask(kind).sum()) for kind in KINDS[1:]}
        both = counts.pop("both")
        named = ", ".join(f"{number} of the {kind}" for kind, number in counts.items())
        named = named.replace("the tower", "the vision tower")
        named = named.replace("the language", "the language model")
        learned = self.learned_frame()
        heads = f"; learned sinks in {count(len(learned), 'head')}" * bool(len(learned))
        why = f"; of the tower none are known: {self.reason}" if self.reason else ""
        return (
            f"{count(len(self.columns), 'item')}, "
            f"{count(int(self.columns.sum()), 'image column')}; sinks: {named}, {both} "
            f"of both{heads}{why}"
        )

    def _first(self, k: int) -> pd.DataFrame:
        sinks = (self._codes() > 0).nonzero()
        places = sinks if len(sinks) else self.columns.nonzero()
        names = ["item", "column", "kind", "tower_score", "language_score", "share"]
        return self._table(places[:k])[names]


def _check_factor(factor: object) -> float:
    number = to_float(factor)
    if number is None or not number >= FLOOR:
        got = show_value(factor)
        raise SettingsError(f"a factor must be a number of {FLOOR} or more, got {got}")
    return number


def _say_rule(tower: float, language: float) -> str:
    """Say what made a column a sink."""
    parts = []
    if tower > 1:
        parts.append(f"norm {tower:.2g} x its threshold")
    if language > 1:
        parts.append(f"massive, {language:.2g} x its threshold")
    return "; ".join(parts)


def _most(values: Tensor) -> Tensor:
    """Take the largest number over the middle axis; NaN where there is none."""
    if not values.shape[1]:
        return values.new_full((values.shape[0], values.shape[2]), float("nan"))
    return values.amax(1)


def _last(values: Tensor) -> Tensor:
    if not values.shape[1]:
        return values.new_full((values.shape[0], values.shape[2]), float("nan"))
    return values[:, -1]
