"""Dimensions of massive activations over many items, with their null."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from eah_interp.arguments import by_name, check_flag
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.finders.scores import HeadScores
from eah_interp.indices import check_choice, check_integer, to_int
from eah_interp.interventions.directions import encode_plain
from eah_interp.interventions.var import MASSIVE, Tokens, read_activations
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.fingerprint import hash_weights
from eah_interp.lvlm.inputs import repeat_rows
from eah_interp.results import ModelResult
from eah_interp.statistics import Effect

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class DimScores(ModelResult):
    """Every dimension's activation at first tokens, or at images', item by item.

    A dimension's score is the mean over items. Chance is what the largest of all
    dimensions scores when the dimensions of each item are exchanged: with it none is
    foremost in item after item. Items that are all alike are one item: where every
    prompt begins with the same token, nothing over items is known, and p and stability
    are NaN.

    Attributes:
        activation: `[item, d_model]`: `|x[d]| / rms(x)`, its median over layers.
        massive: The share of layers in which it is 20 or more.
        at: At which tokens.
        weights: `hash_weights` of the model.

    Raises:
        InputError: If the parts are not of one size, or a number is not finite.
    """

    activation: Float[Tensor, "item d_model"]
    massive: Float[Tensor, "item d_model"]
    at: Tokens = "first"
    weights: str = ""

    def __post_init__(self) -> None:
        if self.activation.shape != self.massive.shape:
            msg = (
                f"expected shares of layers for {tuple(self.activation.shape)} items "
                f"and dimensions, got {tuple(self.massive.shape)}"
            )
            raise InputError(msg)
        object.__setattr__(self, "_ranked", self._rank())

    def _rank(self) -> HeadScores:
        """Rank the dimensions as heads are: of one layer."""
        return HeadScores(
            finder="sink",
            measure=f"activation, {self.at}",
            scores=self.activation[:, None],
            layers=(0,),
            items=torch.arange(len(self.activation)),
            labels="heads",
            weights=self.weights,
            model=self.model,
        )

    @property
    def are_alike(self) -> bool:
        """Whether all items have the same numbers, but for rounding."""
        first = self.activation[:1]
        return bool(torch.isclose(self.activation, first, rtol=1e-4).all())

    @property
    def ranked(self) -> HeadScores:
        """The scores as those of heads, whose number is the dimension."""
        found: HeadScores = self._ranked  # type: ignore[attr-defined]
        return found

    def frame(
        self, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
    ) -> "pd.DataFrame":
        """List the dimensions, the foremost first.

        Args:
            resamples: Draws of items, halves and labels.
            seed: Seeds them.
            level: Of the intervals.

        Returns:
            Columns `rank dim score low high rank_first rank_second p stability
            stability_low stability_high`, as those of heads, and `layers`: the share of
            items and layers in which the activation is 20 or more.

        Raises:
            SettingsError: If the level is not between 0 and 1, or draws are unfit.
        """
        table = self.ranked.frame(resamples=resamples, seed=seed, level=level)
        table = table.drop(columns=["layer", "name"]).rename(columns={"head": "dim"})
        if self.are_alike:
            for name in ("p", "stability", "stability_low", "stability_high"):
                table[name] = math.nan
        shares = self.massive.mean(0).double().numpy()
        return table.assign(layers=shares[table["dim"].to_numpy()])

    def top(self, k: int = 10) -> tuple[int, ...]:
        """Give the `k` foremost dimensions, as `sink_dims` takes them.

        Args:
            k: How many.

        Raises:
            SettingsError: If there are not so many.
        """
        n_dims = self.activation.shape[1]
        n = to_int(k)
        if n is None or not 1 <= n <= n_dims:
            msg = f"k must be 1 to {n_dims} dimensions, got {show_value(k)}"
            raise SettingsError(msg)
        return tuple(dim for _, dim in self.ranked.top(n).pairs)

    def massive_in(self, share: float = 0.5) -> tuple[int, ...]:
        """Give the dimensions that are massive in most layers and items.

        Args:
            share: In how many of them at least.
        """
        means = self.massive.mean(0)
        return tuple(dim for dim in self.top(len(means)) if float(means[dim]) >= share)

    def p_value(self, *, resamples: int = 1000, seed: int = 0) -> float:
        """Find how often exchanged dimensions give one as large a score as the first.

        NaN where all items are alike.

        Args:
            resamples: Draws.
            seed: Seeds them.

        Raises:
            SettingsError: If draws are unfit.
        """
        found = self.ranked.p_value(resamples=resamples, seed=seed)
        return math.nan if self.are_alike else found

    def stability(
        self, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
    ) -> Effect:
        """Compare halves of the items: Spearman's correlation of the scores.

        Args:
            resamples: Random halves.
            seed: Seeds them.
            level: Of the interval.

        Raises:
            InputError: If there are fewer than four items, or all are alike.
            SettingsError: If the level is not between 0 and 1, or draws are unfit.
        """
        if self.are_alike:
            msg = (
                f"all {len(self.activation)} items have the same activations: expected "
                "items that differ, to compare halves of them; prompts that begin with "
                "the same token are alike there, at='images' looks at their images"
            )
            raise InputError(msg)
        return self.ranked.stability(resamples=resamples, seed=seed, level=level)

    def _about(self) -> str:
        n_items, n_dims = self.activation.shape
        tokens = {"first": "the first token", "images": "image tokens"}[self.at]
        return f"{n_dims} dimensions by activation at {tokens}: {n_items} items"

    def _first(self, k: int) -> "pd.DataFrame":
        import pandas as pd

        dims = list(self.top(min(k, self.activation.shape[1])))
        means = self.ranked.mean.flatten()[dims].double()
        return pd.DataFrame({"dim": dims, "score": means.tolist()})

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the activations by item and dimension.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_values

        title = self.ranked.measure
        return plot_values(
            self.activation, title=title, rows="item", columns="dimension", ax=ax
        )


@by_name
def score_sink_dims(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    at: Tokens = "first",
    batch_size: int = 8,
    progress: bool = False,
) -> DimScores:
    """Score the dimensions in which tokens are massively activated, over items.

    What `find_sink_dims` lists, item by item, so that it is known how sure the ranking
    is. Sink dimensions are the same at the first token and at the image's sinks
    (Kang et al., arXiv:2503.03321, section 4); the first token is often the same in
    every prompt, and says nothing over items. One forward pass an item.

    Args:
        model: An LVLM that no edit has patched.
        images: An image or images; or a ready-made encoding.
        prompts: A prompt or prompts; "Describe the image." when None.
        at: At each item's first token, or the largest of its image tokens.
        batch_size: Most items in one forward pass.
        progress: Whether to show a bar.

    Returns:
        Scores by item and dimension.

    Raises:
        InputError: If images or prompts do not fit.
        SettingsError: If the batch size is below 1, or there are no such tokens.
        UnsupportedError: If the model is a patched twin.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = score_sink_dims(eah.load(), [random_image(0), random_image(1)])
        >>> len(found.activation), len(found.top(2))
        (2, 2)
    """
    check_choice("at", at, Tokens)
    size = check_integer("batch_size", batch_size, least=1)
    progress = check_flag("progress", progress)
    whole = encode_plain(model, images, prompts)
    n_items = len(whole["input_ids"])
    if not n_items:
        raise InputError("expected at least 1 item, got none")
    parts: list[Tensor] = []
    with tqdm(total=n_items, desc="items", disable=not progress) as bar:
        for start in range(0, n_items, size):
            items = list(range(start, min(start + size, n_items)))
            encoding = whole if len(items) == n_items else repeat_rows(whole, items)
            parts.append(read_activations(model, encoding, at=at))
            bar.update(len(items))
    values = torch.cat(parts, 1)
    return DimScores(
        activation=values.median(0).values,
        massive=(values >= MASSIVE).float().mean(0),
        at=at,
        weights=hash_weights(model),
        model=name_model(model),
    )
