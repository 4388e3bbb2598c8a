"""A method's captions against shorter ones of the baseline: the line to beat.

Who only says less hallucinates less. Cut to a method's own mean length, the baseline's
captions show what saying less would have done. A caption that is decoded greedily is,
up to any length, the caption that a model stopped at that length would have given, so
that the cut needs no pass of the model.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch
from torch import Tensor

from eah_interp.arguments import by_name
from eah_interp.benchmarks.chair import MENTIONS, STARTS, TEXT, TRUTH, check_captions
from eah_interp.benchmarks.paired import Draws, Pair, check_drawing
from eah_interp.errors import InputError
from eah_interp.indices import check_choice, check_integer
from eah_interp.results import Part
from eah_interp.statistics import Effect, percentile_effect, resample_sums

By: TypeAlias = Literal["objects", "words"]
"""What a caption's length is counted in: different objects that it names, or words."""

CAPPED = ("CHAIR_S", "CHAIR_I", "recall")
"""What is compared with capped captions, of different objects."""

_COLUMNS = ("absent", "objects", "hallucinates", "length")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CapChange(Part):
    """A metric of captions against the baseline's, cut to the same mean length.

    Attributes:
        condition: Whose captions.
        metric: `CHAIR_S`, `CHAIR_I` or `recall`, each object once a caption.
        by: What lengths are counted in.
        length: Mean length of the condition's captions.
        full: Mean length of the baseline's, uncut. Where it is smaller, nothing is cut.
        effect: The change, in points; None where it is not defined.
        undefined: Why it is not.
    """

    condition: str
    metric: str
    by: By
    length: float
    full: float
    effect: Effect | None
    undefined: str = ""


@by_name
def cap_captions(
    captions: pd.DataFrame, *, most: int, by: By = "objects"
) -> pd.DataFrame:
    """Cut captions to a length, and keep each object that is left once.

    Args:
        captions: One row a caption: `mentions`, `caption` and, to cut by words,
            `starts`: where in the text each mention starts.
        most: Different objects, or words, that are left of a caption at most.
        by: Which.

    Returns:
        The captions; where `starts` is known the text is cut too.

    Raises:
        InputError: If a column is missing.
        SettingsError: If `most` is no number of 0 or more, or there is no such unit.

    Example:
        >>> row = {"caption": "cup, pan, cup, fork", "starts": [0, 5, 10, 15]}
        >>> table = pd.DataFrame([row | {"mentions": ["cup", "pan", "cup", "fork"]}])
        >>> cap_captions(table, most=2).mentions[0]
        ['cup', 'pan']
        >>> cap_captions(table, most=3, by="words").caption[0]
        'cup, pan, cup,'
    """
    most = check_integer("most", most)
    check_choice("by", by, By)
    _check(captions, by, MENTIONS, TEXT)
    named, texts, starts = [], [], []
    for mentions, text, known in _walk(captions):
        seen: dict[str, int] = {}
        for name, start in zip(mentions, known, strict=True):
            seen.setdefault(name, start)
        ends = _list_ends(text)
        if by == "objects":
            kept = list(seen)[:most]
            dropped = list(seen)[most : most + 1]
            end = seen[dropped[0]] if dropped else len(text)
        else:
            end = [0, *ends][most] if most <= len(ends) else len(text)
            kept = [name for name, start in seen.items() if start < end]
        named.append(kept)
        starts.append([seen[name] for name in kept])
        texts.append(text[:end] if STARTS in captions else text)
    columns: dict[str, Any] = {MENTIONS: named, TEXT: texts}
    if STARTS in captions:
        columns[STARTS] = starts
    cut = captions.copy()
    for name, values in columns.items():
        cut[name] = pd.Series(values, index=captions.index, dtype=object)
    return cut


def _walk(
    captions: pd.DataFrame,
) -> Iterator[tuple[Sequence[str], str, Sequence[int]]]:
    """Walk captions: what each names, its text, and where (or in which order)."""
    orders = [range(len(named)) for named in captions[MENTIONS]]
    starts = captions.get(STARTS, orders)
    yield from zip(captions[MENTIONS], captions[TEXT], starts, strict=True)


def _list_ends(text: str) -> list[int]:
    """List where each word of a text ends."""
    ends, at = [], 0
    for word in text.split():
        at = text.index(word, at) + len(word)
        ends.append(at)
    return ends


def _check(captions: pd.DataFrame, by: By, *columns: str) -> None:
    check_captions(captions, *columns)
    if by == "words" and STARTS not in captions:
        msg = (
            "captions are cut by words where it is known where mentions start: "
            f"expected the column {STARTS!r}, which find_mentions adds, got "
            f"{', '.join(map(str, captions.columns))}"
        )
        raise InputError(msg)


@by_name
def contrast_cap(
    before: pd.DataFrame,
    after: pd.DataFrame,
    *,
    by: By = "objects",
    condition: str = "",
    draws: Draws | None = None,
) -> tuple[CapChange, ...]:
    """Compare captions with the baseline's, cut to the same mean length.

    The cap is the one under which the cut captions have the mean length of the others.
    A whole number would miss it, so that captions count as a mixture of two, cut at the
    numbers beside it. It is found anew for each bootstrap sample. Where the baseline's
    captions are shorter than the others they stay whole: nothing makes them longer.

    Args:
        before: The baseline's captions.
        after: Those of a method, about the same items.
        by: What lengths are counted in.
        condition: What the method is called.
        draws: Level, samples and seed of the intervals; `Draws()` when None.

    Returns:
        The change of each of `CAPPED`.

    Raises:
        InputError: If a column is missing, or the two share no item.
        SettingsError: If there is no such unit.
    """
    check_choice("by", by, By)
    draws = check_drawing(draws)
    pair = Pair.of(before, after)
    if pair.before.empty:
        msg = "expected captions of the same items, got none that both have"
        raise InputError(msg)
    sides = [
        CappedSums.of(side, by=by, draws=draws) for side in (pair.before, pair.after)
    ]
    cut = sides[0].at_length(sides[1].mean_length)
    whole = sides[1].whole_rates()
    found = []
    for metric in CAPPED:
        value, drawn = (
            100 * (new - old)
            for new, old in zip(whole[metric], cut[metric], strict=True)
        )
        effect, undefined = None, ""
        try:
            effect = percentile_effect(
                float(value), drawn, level=draws.level, n=sides[0].n
            )
        except InputError as error:
            undefined = str(error)
        found.append(
            CapChange(
                condition=condition,
                metric=metric,
                by=by,
                length=float(sides[1].mean_length[0]),
                full=float(sides[0].mean_length[0]),
                effect=effect,
                undefined=undefined,
            )
        )
    return tuple(found)


@by_name
def list_caps(
    captions: pd.DataFrame, *, by: By = "objects", draws: Draws | None = None
) -> pd.DataFrame:
    """List where captions stand when cut at every length: the line to beat.

    Args:
        captions: One row a caption: `mentions`, `truth`, `caption`, `cluster`.
        by: What they are cut by.
        draws: As for `contrast_cap`.

    Returns:
        One row a length, from 1: `cap`, mean `length`, and in percent `CHAIR_S`,
        `CHAIR_I` and `recall` with `..._low` and `..._high`; NaN where not defined.

    Raises:
        InputError: If a column is missing, or no caption has any length.
        SettingsError: If there is no such unit.
    """
    check_choice("by", by, By)
    draws = check_drawing(draws)
    sums = CappedSums.of(captions, by=by, draws=draws)
    rows = []
    for cap in range(1, sums.most + 1):
        row: dict[str, Any] = {"cap": cap, "length": float(sums.lengths[0][cap])}
        for metric, (value, drawn) in sums.at(cap).items():
            ends = [float("nan")] * 3
            try:
                effect = percentile_effect(
                    100 * float(value), 100 * drawn, level=draws.level, n=sums.n
                )
                ends = [effect.estimate, effect.low, effect.high]
            except InputError:
                ends[0] = 100 * float(value)
            names = (metric, f"{metric}_low", f"{metric}_high")
            row |= dict(zip(names, ends, strict=True))
        rows.append(row)
    if not rows:
        msg = f"expected captions of some length in {by}, got none of any"
        raise InputError(msg)
    return pd.DataFrame(rows)


Rates: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""Of each metric the value over all images, and over each drawn sample of them."""


@dataclass(frozen=True)
class CappedSums:
    """What captions come to when cut at every length, over all images and drawn ones.

    Attributes:
        n: Images.
        whole: `[cap, column]`, over all images; columns as `_COLUMNS`.
        drawn: `[sample, cap, column]`.
        fixed: Captions and objects in the images: `[2]`, and `[sample, 2]`.
    """

    n: int
    whole: Tensor
    drawn: Tensor
    fixed: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, captions: pd.DataFrame, *, by: By, draws: Draws) -> "CappedSums":
        """Sum captions by image, and over drawn images.

        Raises:
            InputError: If a column is missing, or there are fewer than two images.
        """
        _check(captions, by, MENTIONS, TRUTH, TEXT, "cluster")
        counted = _count(captions, by=by)
        n_caps, n_columns = counted.shape[1:]
        fixed = torch.tensor([[1.0, len(set(there))] for there in captions[TRUTH]])
        wide = torch.cat([counted.flatten(1), fixed.double()], dim=1)
        codes, _ = pd.factorize(captions["cluster"])
        by_image = torch.zeros(int(codes.max()) + 1, wide.shape[1], dtype=torch.float64)
        by_image.index_add_(0, torch.from_numpy(codes), wide)
        sums = resample_sums(by_image, resamples=draws.resamples, seed=draws.seed)
        shape = (n_caps, n_columns)
        return cls(
            n=sums.n,
            whole=sums.whole[:-2].view(shape),
            drawn=sums.drawn[:, :-2].view(-1, *shape),
            fixed=(sums.whole[-2:], sums.drawn[:, -2:]),
        )

    @property
    def most(self) -> int:
        """The cap from which on nothing is cut."""
        return len(self.whole) - 1

    @functools.cached_property
    def lengths(self) -> tuple[Tensor, Tensor]:
        """Mean length at each cap: `[cap]`, and `[sample, cap]`."""
        at = _COLUMNS.index("length")
        return (
            self.whole[:, at] / self.fixed[0][0],
            self.drawn[..., at] / self.fixed[1][:, :1],
        )

    @property
    def mean_length(self) -> tuple[Tensor, Tensor]:
        """Mean length of the uncut captions."""
        return self.lengths[0][-1], self.lengths[1][:, -1]

    def at(self, cap: int) -> Rates:
        """Find the rates of the captions cut at a whole number."""
        return self._rate(self.whole[cap], self.drawn[:, cap])

    def whole_rates(self) -> Rates:
        """Find the rates of the uncut captions."""
        return self.at(self.most)

    def at_length(self, wanted: tuple[Tensor, Tensor]) -> Rates:
        """Find the rates at mean lengths: of all images, and of each sample.

        Args:
            wanted: The mean lengths.
        """
        first, each = wanted
        return self._rate(
            _mix(self.whole[None], self.lengths[0][None], first[None])[0],
            _mix(self.drawn, self.lengths[1], each),
        )

    def _rate(self, whole: Tensor, drawn: Tensor) -> Rates:
        found = {}
        for metric in CAPPED:
            sides = [
                _divide(metric, sums, fixed)
                for sums, fixed in zip((whole, drawn), self.fixed, strict=True)
            ]
            found[metric] = (sides[0], sides[1])
        return found


def _divide(metric: str, sums: Tensor, fixed: Tensor) -> Tensor:
    absent, objects, hallucinates, _ = sums.unbind(-1)
    ones, truth = fixed.unbind(-1)
    if metric == "CHAIR_S":
        return hallucinates / ones
    return absent / objects if metric == "CHAIR_I" else (objects - absent) / truth


def _mix(sums: Tensor, lengths: Tensor, wanted: Tensor) -> Tensor:
    """Mix what two caps come to, so that the mean length is the one that is wanted.

    Args:
        sums: `[sample, cap, column]`.
        lengths: `[sample, cap]`, which never fall.
        wanted: `[sample]`.
    """
    last = lengths.shape[1] - 1
    above = torch.searchsorted(lengths.contiguous(), wanted[:, None].contiguous())
    above = above.clamp(1, last) if last else above.clamp(0, 0)
    below = (above - 1).clamp(min=0)
    low, high = lengths.gather(1, below), lengths.gather(1, above)
    share = ((wanted[:, None] - low) / (high - low)).nan_to_num(1.0).clamp(0, 1)
    rows = torch.arange(len(sums))
    first, second = sums[rows, below[:, 0]], sums[rows, above[:, 0]]
    return first + share * (second - first)


def _count(captions: pd.DataFrame, *, by: By) -> Tensor:
    """Count each caption, cut at every length from 0: `[caption, cap, column]`."""
    listed = list(_list_places(captions, by=by))
    most = max((length for _, length in listed), default=0)
    found = torch.zeros(len(listed), most + 1, len(_COLUMNS), dtype=torch.float64)
    for row, (places, length) in enumerate(listed):
        hidden = [place for place, is_absent in places if is_absent]
        for place, is_absent in places:
            found[row, place:, _COLUMNS.index("objects")] += 1
            found[row, place:, _COLUMNS.index("absent")] += is_absent
        if hidden:
            found[row, min(hidden) :, _COLUMNS.index("hallucinates")] = 1
        caps = torch.arange(most + 1, dtype=torch.float64)
        found[row, :, _COLUMNS.index("length")] = caps.clamp(max=length)
    return found


def _list_places(
    captions: pd.DataFrame, *, by: By
) -> Iterator[tuple[list[tuple[int, bool]], int]]:
    """List from which cap on each object of a caption is in it, and if it is absent."""
    for (mentions, text, starts), truth in zip(
        _walk(captions), captions[TRUTH], strict=True
    ):
        there, places = set(truth), {}
        if by == "objects":
            named = list(dict.fromkeys(mentions))
            places = {name: place for place, name in enumerate(named, start=1)}
            length = len(named)
        else:
            ends = _list_ends(text)
            for name, start in zip(mentions, starts, strict=True):
                # In the caption as soon as the word that it starts with is.
                places.setdefault(name, sum(end <= start for end in ends) + 1)
            length = len(ends)
        yield [(place, name not in there) for name, place in places.items()], length
