"""Which token of the vision tower each image column is made of: a result of its own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.arguments import by_name
from eah_interp.errors import InputError, show_value
from eah_interp.indices import check_item, to_int
from eah_interp.lvlm.anatomy import check_model, name_model
from eah_interp.lvlm.inputs import check_encoding, is_encoding
from eah_interp.lvlm.prompt import prompt_of_worker
from eah_interp.lvlm.spans import ImageSpan
from eah_interp.lvlm.tower import (
    NO_TOWER,
    TowerReach,
    check_some_image,
    find_place,
    take_most,
)
from eah_interp.results import ModelResult
from eah_interp.shown_results import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class TowerMap(ModelResult):
    """Which tokens of the vision tower each image column is made of.

    Attributes:
        shape: The shape of the tower's output, its width left out, such as
            `(image, patch)` or `(patch,)`; tokens are numbered through it row by row.
        links: A row for each pair of a token and a column that it goes into: token,
            batch item, column.
        columns: The image columns of each item.
        spans: Each item's images, with their patch grids.
        reason: Why tokens have no columns of their own; empty where they have.
    """

    shape: tuple[int, ...]
    links: Int[Tensor, "link 3"]
    columns: ColumnMask
    spans: tuple[tuple[ImageSpan, ...], ...]
    reason: str = ""

    @property
    def spatial(self) -> bool:
        """Whether tokens go into columns of their own."""
        return not self.reason

    @property
    def n_tokens(self) -> int:
        """Number of the tower's tokens, of all images."""
        return int(torch.tensor(self.shape).prod()) if self.shape else 0

    def columns_of(self, token: int) -> tuple[tuple[int, int], ...]:
        """List the item and column of each column that a token goes into.

        Args:
            token: A token, counted through `shape`.

        Raises:
            InputError: If there is no such token.
        """
        number = to_int(token)
        if number is None or not 0 <= number < self.n_tokens:
            msg = (
                f"token {show_value(token)} does not exist: expected 0 to "
                f"{self.n_tokens - 1}, counted through {self.shape}"
            )
            raise InputError(msg)
        found = self.links[self.links[:, 0] == number, 1:].tolist()
        return tuple((item, column) for item, column in found)

    def tokens_of(self, column: int, *, item: int = 0) -> tuple[int, ...]:
        """List the tokens that a column is made of.

        Args:
            column: An image column.
            item: Which batch item.

        Raises:
            InputError: If the item has no such image column.
        """
        place = self._place(item, column)
        same = (self.links[:, 1:] == torch.tensor(place)).all(-1)
        return tuple(self.links[same, 0].tolist())

    def _place(self, item: int, column: int) -> tuple[int, int]:
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
        return row, place

    def most(
        self, values: Float[Tensor, " token"], *, missing: float = float("nan")
    ) -> Float[Tensor, "batch key"]:
        """Take, at each image column, the largest number of its tokens.

        Args:
            values: A number for each token, counted through `shape`.
            missing: What stands at columns that are made of no token.

        Raises:
            InputError: If there is not a number for each token.
        """
        if tuple(values.shape) != (self.n_tokens,):
            msg = (
                f"values have shape {tuple(values.shape)}: expected one for each of "
                f"{self.n_tokens} tokens"
            )
            raise InputError(msg)
        n_items, n_keys = self.columns.shape
        size = {"n_items": n_items, "n_keys": n_keys}
        return take_most(values, self.links, **size, missing=missing)

    def frame(self) -> pd.DataFrame:
        """List every pair of a token and a column that it goes into.

        Returns:
            Columns `token`, `item`, `column`, and the region of the image that the
            column stands for, in fractions of it: `left`, `top`, `right`, `bottom`;
            NaN where it has none, or none that is known.
        """
        table = pd.DataFrame(
            self.links.numpy(), columns=["token", "item", "column"]
        ).astype(int)
        boxes = [
            find_place(self.spans, item, column)
            for item, column in self.links[:, 1:].tolist()
        ]
        names = ("left", "top", "right", "bottom")
        for index, name in enumerate(names):
            table[name] = [float("nan") if b is None else b[index] for b in boxes]
        return table

    def plot(self, item: int = 0, *, ax: "Axes | None" = None) -> "Figure":
        """Draw which tokens an item's columns are made of.

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
        from eah_interp.viz.towers import plot_links

        index = check_item(item, len(self.columns))
        own = self.links[self.links[:, 1] == index]
        return plot_links(own[:, 0].tolist(), own[:, 2].tolist(), ax=ax)

    def _about(self) -> str:
        n_items, n_columns = len(self.columns), int(self.columns.sum())
        what = (
            f"{count(n_items, 'item')}, {count(self.n_tokens, 'token')} of the tower, "
            f"{count(n_columns, 'image column')}"
        )
        if self.reason:
            return f"{what}; not spatial: {self.reason}"
        used = len(set(self.links[:, 0].tolist()))
        each = _range(torch.bincount(self.links[:, 0]), "column") if used else "none"
        made = self.links[:, 1] * self.columns.shape[1] + self.links[:, 2]
        of = _range(torch.bincount(made), "token") if used else "none"
        links = f"tokens that are used: {used}, in {each} each; a column has {of}"
        return f"{what}; {links}"

    def _first(self, k: int) -> pd.DataFrame:
        names = ["token", "item", "column"]
        return pd.DataFrame(self.links[:k].numpy(), columns=names)


def _range(counts: Tensor, noun: str) -> str:
    some = counts[counts > 0]
    least, most = int(some.min()), int(some.max())
    return count(most, noun) if least == most else f"{least} to {count(most, noun)}"


@by_name
def map_tower(model: Any, images: object, prompts: object = None) -> TowerMap:
    """Find which tokens of the vision tower each image column is made of.

    Tokens are those of `model.vision_output`. One forward pass of the tower and the
    projector or merger, and some backward passes of the latter; the decoder does not
    run. A token that goes into no column (a class token, padding) has no link.

    Args:
        model: An LVLM.
        images: An image or images, or a ready-made encoding.
        prompts: A prompt or prompts; "Describe the image." when None.

    Returns:
        The links, on the CPU; none, and the reason, where tokens have no columns of
        their own: without a tower, or behind a resampler.

    Raises:
        InputError: If images or prompts do not fit, or there is no image.
        ModelError: If nothing of what the tower returns reaches the image tokens.
        UnsupportedError: If the model cannot be differentiated.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.interventions import map_tower
        >>> from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
        >>> model = eah.wrap(tiny_lvlm("qwen2_vl"), tiny_processor("qwen2_vl"))
        >>> found = map_tower(model, random_image(), "Is there a cat?")
        >>> found.tokens_of(found.spans[0][0].columns[0])
        (0, 1, 2, 3)
    """
    anatomy = check_model(model).anatomy
    encoding = images if is_encoding(images) else model.encode(images, prompts)
    check_encoding(encoding)
    kept: dict[str, Any] = {}
    if anatomy.vision_layers is None:
        with torch.no_grad(), model.trace(**encoding) as tracer:
            columns = nnsight.save(prompt_of_worker(model).image_mask)
            tracer.stop()
        shape, links, reason = (), torch.zeros(0, 3, dtype=torch.long), NO_TOWER
    else:
        with torch.no_grad(), model.trace(**encoding) as tracer:
            kept = nnsight.save({})
            prompt = prompt_of_worker(model)
            kept["columns"] = prompt.image_mask
            check_some_image(kept["columns"])
            reach = TowerReach.begin(model)
            kept["shape"] = tuple(reach.tokens.shape[:-1])
            kept["links"], kept["reason"] = reach.end(prompt)
            tracer.stop()
        columns, shape = kept["columns"], kept["shape"]
        links, reason = kept["links"], kept["reason"]
    return TowerMap(
        model=name_model(model),
        shape=shape,
        links=links.cpu(),
        columns=columns.cpu(),
        spans=model.spans(encoding),
        reason=reason,
    )
