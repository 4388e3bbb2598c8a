"""Heads ranked over many items: how sure the ranking is, and what chance would give."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_integer, to_int
from eah_interp.interventions.head_lists import HeadList
from eah_interp.results import ModelResult
from eah_interp.statistics import (
    Effect,
    check_draws,
    correlate_ranks,
    percentile_effect,
    rank_rows,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Shuffled = Literal["signs", "groups", "heads"]
"""Which labels chance is made of: see `HeadScores.shuffled`."""

_BLOCK = 5_000_000
"""Numbers that are drawn at a time."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores(ModelResult):
    """Every head's score on every line that was asked about.

    A head's score is the mean over lines; where lines are of two groups, the mean of
    those of the group minus that of the others. What chance would give is found with
    the labels shuffled (`labels`), the largest score of all heads in each draw, so a
    p-value holds for all heads together.

    Attributes:
        finder: What was looked for: `"image"`, `"prompt"`, `"hallucination"`,
            `"localisation"`.
        measure: What a line's score is, in words.
        scores: `[line, layer, head]`, float32, on the CPU.
        layers: The decoder layer of each row of heads.
        items: The item that each line is of.
        labels: Which labels are shuffled. `"signs"`: a line's score would have the
            other sign with its two answers exchanged. `"groups"`: which lines of an
            item are of the group. `"heads"`: which head of an item has which score.
        group: True at lines of the group; None where there are no groups.
        before: What each line's answer was before any head was changed; None where
            nothing was changed.
        weights: `hash_weights` of the model.

    Raises:
        InputError: If the parts are not of one size, or a score is not finite.
    """

    finder: str
    measure: str
    scores: Float[Tensor, "line layer head"]
    layers: tuple[int, ...]
    items: Int[Tensor, " line"]
    labels: Shuffled
    group: Bool[Tensor, " line"] | None = None
    before: Float[Tensor, " line"] | None = None
    weights: str = ""

    def __post_init__(self) -> None:
        n_lines = len(self.scores)
        parts = [p for p in (self.items, self.group, self.before) if p is not None]
        if any(len(part) != n_lines for part in parts):
            msg = f"expected {n_lines} items, groups and values, one for each line"
            raise InputError(msg)
        if self.scores.shape[1] != len(self.layers):
            n_rows = self.scores.shape[1]
            msg = f"expected {n_rows} layers, one for each row, got {len(self.layers)}"
            raise InputError(msg)
        if not bool(self.scores.isfinite().all()):
            msg = (
                "scores must be finite: expected numbers, and the model gave NaN or "
                "infinity; load it in another dtype"
            )
            raise InputError(msg)

    @property
    def n_items(self) -> int:
        """How many items lines are of."""
        return len(set(self.items.tolist()))

    @property
    def mean(self) -> Float[Tensor, "layer head"]:
        """Each head's score; NaN where nothing was measured."""
        if not len(self.scores):
            return torch.full(self.scores.shape[1:], math.nan)
        return self._score(self._weights()[None])[0].view(self.scores.shape[1:])

    def frame(
        self, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
    ) -> "pd.DataFrame":
        """List the heads, the foremost first.

        Args:
            resamples: Draws of items, halves and labels.
            seed: Seeds them.
            level: Of the intervals.

        Returns:
            Columns `rank layer head name score low high rank_first rank_second p
            stability stability_low stability_high`: `low` and `high` from draws of
            items; the ranks of one draw of halves; `p` of so large a score anywhere
            with shuffled labels; `stability` as `stability()` has it, the same in
            every row. NaN where there are too few items. Where heads were changed also
            `cured`: the share of lines whose answer was above 0 before, and is not
            without the head.

        Raises:
            SettingsError: If the level is not between 0 and 1, or draws are unfit.
        """
        import pandas as pd

        check_draws(level=level, resamples=resamples, seed=seed)
        own = self.mean.flatten()
        n_heads = self.scores.shape[2]
        order = own.argsort(descending=True, stable=True)
        places = order.tolist()
        table = pd.DataFrame(
            {
                "rank": range(1, len(places) + 1),
                "layer": [self.layers[place // n_heads] for place in places],
                "head": [place % n_heads for place in places],
            }
        )
        table["name"] = [
            f"L{layer}H{head}"
            for layer, head in zip(table["layer"], table["head"], strict=True)
        ]
        low, high = self._intervals(resamples=resamples, seed=seed, level=level)
        first, second = self._halves(seed)
        p = self._p_values(resamples=resamples, seed=seed)
        numbers = {"score": own, "low": low, "high": high}
        numbers |= {"rank_first": _rank(first), "rank_second": _rank(second), "p": p}
        nothing = torch.full_like(own, math.nan)
        for name, value in numbers.items():
            known = value if len(self.scores) else nothing
            table[name] = known[order].double().numpy()
        if self.before is not None:
            table["cured"] = self._cured()[order].double().numpy()
        stable = self._stability(resamples=resamples, seed=seed, level=level)
        for name, number in zip(("", "_low", "_high"), stable, strict=True):
            table[f"stability{name}"] = number
        return table

    def top(self, k: int = 10) -> HeadList:
        """Give the `k` foremost heads, with the model that they were found in.

        Raises:
            SettingsError: If there are not so many.
        """
        n_layers, n_heads = self.scores.shape[1:]
        n = to_int(k)
        if n is None or not 1 <= n <= n_layers * n_heads:
            msg = f"k must be 1 to {n_layers * n_heads} heads, got {show_value(k)}"
            raise SettingsError(msg)
        order = self.mean.flatten().argsort(descending=True, stable=True)[:n].tolist()
        pairs = tuple((self.layers[i // n_heads], i % n_heads) for i in order)
        return HeadList(pairs, model=self.model, weights=self.weights)

    def significant(
        self, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> tuple[str, ...]:
        """Name the heads whose score shuffled labels would not give, foremost first.

        With no effect at all, a head is named in 5 of 100 such searches at level 0.95.

        Args:
            level: One minus how often a search may name a head by chance.
            resamples: Draws of labels.
            seed: Seeds them.

        Raises:
            SettingsError: If the level is not between 0 and 1, or draws are unfit.
        """
        check_draws(level=level, resamples=resamples, seed=seed)
        p = self._p_values(resamples=resamples, seed=seed)
        listed = self.mean.flatten().argsort(descending=True, stable=True).tolist()
        n_heads = self.scores.shape[2]
        alpha = 1 - level + 1e-9
        return tuple(
            f"L{self.layers[i // n_heads]}H{i % n_heads}"
            for i in listed
            if float(p[i]) <= alpha
        )

    def p_value(self, *, resamples: int = 1000, seed: int = 0) -> float:
        """Find how often shuffled labels give some head as large a score as the first.

        Args:
            resamples: Draws of labels.
            seed: Seeds them.

        Raises:
            SettingsError: If draws are unfit.
        """
        check_draws(level=0.5, resamples=resamples, seed=seed)
        return float(self._p_values(resamples=resamples, seed=seed).min())

    def shuffled(self, seed: int = 0) -> "HeadScores":
        """Make the null of this result: the same scores, their labels shuffled once.

        Args:
            seed: Seeds the draw.

        Raises:
            SettingsError: If the seed is no integer of 0 or more.
        """
        generator = torch.Generator().manual_seed(check_integer("seed", seed))
        if self.labels == "signs":
            signs = _draw_signs(self.items, 1, generator)[0]
            return replace(self, scores=self.scores * signs[:, None, None])
        if self.labels == "groups":
            assert self.group is not None
            drawn = _draw_groups(self.items, self.group, 1, generator)[0]
            return replace(self, group=drawn)
        flat = self.scores.flatten(1)
        order = torch.rand(flat.shape, generator=generator).argsort(1)
        return replace(self, scores=flat.gather(1, order).view(self.scores.shape))

    def stability(
        self, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
    ) -> Effect:
        """Compare halves of the items: Spearman's correlation of the heads' scores.

        The estimate is the mean over random halves; the interval has the middle 95 % of
        draws in which, besides, each half is drawn from its own items with replacement.

        Args:
            resamples: Random halves.
            seed: Seeds them.
            level: Of the interval.

        Raises:
            InputError: If there are fewer than four items.
            SettingsError: If the level is not between 0 and 1, or draws are unfit.
        """
        check_draws(level=level, resamples=resamples, seed=seed)
        if self.n_items < 4:
            msg = f"halves need 4 items or more, got {self.n_items}"
            raise InputError(msg)
        estimate, low, high = self._stability(
            resamples=resamples, seed=seed, level=level
        )
        return Effect(
            estimate=estimate, low=low, high=high, level=level, n=self.n_items
        )

    def _about(self) -> str:
        n_lines = len(self.scores)
        return (
            f"{self.finder} heads by {self.measure}: {self.n_items} items, {n_lines} "
            f"lines, {self.mean.numel()} heads"
        )

    def _first(self, k: int) -> "pd.DataFrame":
        import pandas as pd

        # Without intervals: to draw them takes longer than to look.
        own, n_heads = self.mean.flatten(), self.scores.shape[2]
        found = own.argsort(descending=True, stable=True)[:k].tolist()
        names = [f"L{self.layers[i // n_heads]}H{i % n_heads}" for i in found]
        return pd.DataFrame({"name": names, "score": own[found].double().tolist()})

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the heads' scores by layer and head.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_heads

        title = f"{self.finder} heads"
        return plot_heads(
            {self.measure: self.mean}, layers=self.layers, title=title, ax=ax
        )

    # ---- Means of lines, whatever they are weighted by.

    def _weights(self) -> Float[Tensor, " line"]:
        """Weigh lines so that their sum is the score."""
        return _weigh(torch.ones(len(self.scores)), self.group)

    def _score(self, weights: Float[Tensor, "draw line"]) -> Float[Tensor, "draw head"]:
        return weights.double() @ self.scores.flatten(1).double()

    def _of_items(self, times: Float[Tensor, "draw item"]) -> Tensor:
        """Score draws in which each item is there so many times."""
        index = torch.unique(self.items, return_inverse=True)[1]
        return self._score(_weigh(times[:, index], self.group))

    def _intervals(
        self, *, resamples: int, seed: int, level: float
    ) -> tuple[Tensor, Tensor]:
        n = self.n_items
        generator = torch.Generator().manual_seed(seed)
        nothing = torch.full_like(self.mean.flatten(), torch.nan)
        if n < 2:
            return nothing, nothing
        times = _draw_times(torch.ones(resamples, n, dtype=torch.bool), generator)
        drawn = self._of_items(times)
        if bool(drawn.isnan().any()):  # a draw without one of the groups
            return nothing, nothing
        alpha = (1 - level) / 2
        ends = torch.tensor([alpha, 1 - alpha], dtype=torch.float64)
        low, high = drawn.quantile(ends, dim=0)
        return low, high

    def _halves(self, seed: int) -> tuple[Tensor, Tensor]:
        if self.n_items < 2:
            nothing = torch.full_like(self.mean.flatten(), torch.nan)
            return nothing, nothing
        generator = torch.Generator().manual_seed(seed)
        half = _draw_halves(self.n_items, 1, generator)
        first, second = self._of_items(half.float()), self._of_items((~half).float())
        return first[0], second[0]

    def _stability(
        self, *, resamples: int, seed: int, level: float
    ) -> tuple[float, float, float]:
        n = self.n_items
        if n < 4 or self.mean.numel() < 3:
            return (float("nan"),) * 3
        generator = torch.Generator().manual_seed(seed)
        halves = _draw_halves(n, resamples, generator)
        exact = correlate_ranks(
            self._of_items(halves.float()), self._of_items((~halves).float())
        )
        drawn = correlate_ranks(
            self._of_items(_draw_times(halves, generator)),
            self._of_items(_draw_times(~halves, generator)),
        )
        exact, drawn = exact[~exact.isnan()], drawn[~drawn.isnan()]
        if not len(exact) or not len(drawn):
            return (float("nan"),) * 3
        found = percentile_effect(float(exact.mean()), drawn, level=level, n=n)
        return found.estimate, found.low, found.high

    def _p_values(self, *, resamples: int, seed: int) -> Float[Tensor, " head"]:
        """Find how often the largest of all heads, by chance, is as large as each."""
        own = self.mean.flatten()
        if not len(self.scores):
            return torch.full_like(own, torch.nan)
        generator = torch.Generator().manual_seed(seed)
        largest = torch.cat(list(self._draw_largest(resamples, generator)))
        # What differs by rounding alone is as large.
        slack = 1e-9 * own.abs().max()
        above = (largest[:, None] >= own - slack).sum(0)
        return (1 + above) / (1 + resamples)

    def _draw_largest(self, resamples: int, generator: torch.Generator) -> Any:
        n_lines, n_heads = self.scores.flatten(1).shape
        each = n_lines * n_heads if self.labels == "heads" else n_lines + n_heads
        size = max(1, _BLOCK // each)
        for start in range(0, resamples, size):
            count = min(size, resamples - start)
            if self.labels == "signs":
                drawn = self._weights() * _draw_signs(self.items, count, generator)
                yield self._score(drawn).amax(1)
            elif self.labels == "groups":
                assert self.group is not None
                groups = _draw_groups(self.items, self.group, count, generator)
                ones = torch.ones(count, n_lines)
                yield self._score(_weigh(ones, groups)).amax(1)
            else:
                flat = self.scores.flatten(1).double()
                order = torch.rand(count, n_lines, n_heads, generator=generator)
                mixed = flat.expand(count, -1, -1).gather(2, order.argsort(2))
                yield mixed.mean(1).amax(1)

    def _cured(self) -> Float[Tensor, " head"]:
        """Share, of lines above 0 before, of those that are not without the head."""
        assert self.before is not None
        above = self.before > 0
        after = self.before[:, None] - self.scores.flatten(1)
        return (after[above] <= 0).double().mean(0)


def _weigh(times: Tensor, group: Tensor | None) -> Tensor:
    """Weigh lines, there so many times, for a mean or a difference of two."""
    if group is None:
        return times / times.sum(-1, keepdim=True)
    inside, outside = times * group, times * ~group
    return inside / inside.sum(-1, keepdim=True) - outside / outside.sum(
        -1, keepdim=True
    )


def _draw_signs(items: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw a sign for each item, which all its lines have."""
    _, index = torch.unique(items, return_inverse=True)
    n_items = int(index.max()) + 1 if len(index) else 0
    signs = torch.randint(0, 2, (count, n_items), generator=generator) * 2 - 1
    return signs[:, index].double()


def _draw_groups(
    items: Tensor, group: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Draw which lines of each item are of the group, as many as there are."""
    _, index = torch.unique(items, return_inverse=True)
    drawn = torch.rand(count, len(items), generator=generator, dtype=torch.float64)
    # Lines sorted by item, then at random; groups in their own order, by item too.
    places = (index + drawn).argsort(1)
    own = group[index.argsort(stable=True)]
    new = torch.zeros(count, len(items), dtype=torch.bool)
    return new.scatter(1, places, own.expand(count, -1))


def _draw_halves(n: int, count: int, generator: torch.Generator) -> Tensor:
    order = torch.rand(count, n, generator=generator).argsort(1)
    return order < n // 2


def _draw_times(among: Tensor, generator: torch.Generator) -> Tensor:
    """Draw, with replacement, as many items as are marked, among these."""
    count, n = among.shape
    places = among.float().argsort(dim=1, descending=True, stable=True)
    size = among.sum(1, keepdim=True)
    # As many draws as the largest row wants; beyond a row's own size they count 0.
    most = int(size.max())
    picks = (torch.rand(count, most, generator=generator) * size).long()
    counted = (torch.arange(most) < size).float()
    return torch.zeros(count, n).scatter_add(1, places.gather(1, picks), counted)


def _rank(scores: Tensor) -> Tensor:
    """Rank numbers, the largest first, ties at the mean of their ranks."""
    return rank_rows(-scores[None])[0]
