"""What a gain has to be shown against: a turn to Yes, random heads and directions.

None of this looks at the image better. Who is no better than these has shown nothing of
the heads, or of the direction, that it chose.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from eah_interp.arguments import Named, check_mapping
from eah_interp.benchmarks.readouts import NextTokens
from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import check_choice, check_integer, to_float
from eah_interp.interventions.directions import Directions
from eah_interp.interventions.head_lists import Head, read_pairs

YES_PLEASE = "Whenever possible, please select Yes."
"""What a yes-biased prompt says after the question: the words of arXiv:2504.10020."""


@dataclass(frozen=True)
class NearTie(metaclass=Named):
    """When an answer between yes and no is turned to Yes.

    Where the two together are what the model is ready to say, and neither is far ahead.
    Their probabilities are those of all spellings, at the first token of the answer,
    before `generate` changes anything.

    Attributes:
        mass: What the two must have together, more than this.
        gap: What they may differ by, less than this.

    Raises:
        SettingsError: If one is no share from 0 to 1.

    Example:
        >>> NearTie().is_near(torch.tensor([0.3, 0.9]), torch.tensor([0.6, 0.1]))
        tensor([ True, False])
    """

    mass: float = 0.2
    gap: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mass", "gap"):
            value = to_float(getattr(self, name))
            if value is None or not 0 <= value <= 1:
                got = show_value(getattr(self, name))
                msg = f"{name} of a near tie must be a share from 0 to 1, got {got}"
                raise SettingsError(msg)
            object.__setattr__(self, name, value)

    def is_near(self, yes: Tensor, no: Tensor) -> Tensor:
        """Tell which answers are near ties.

        Args:
            yes: Probability of yes, for each answer.
            no: The same of no.
        """
        return (yes + no > self.mass) & ((yes - no).abs() < self.gap)

    def find(self, logits: Tensor, tokenizer: Any) -> list[bool]:
        """Find the near ties among answers.

        Args:
            logits: Of each answer's first token.
            tokenizer: The model's.

        Raises:
            InputError: If the tokenizer has no token of yes, or of no.
        """
        found = NextTokens.of(logits, tokenizer)
        says = torch.tensor([token.is_yes for token in found.tokens])
        yes, no = (found.probabilities[:, which].sum(1) for which in (says, ~says))
        return [bool(flag) for flag in self.is_near(yes, no)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NearTie":
        """Make it from a mapping.

        Raises:
            SettingsError: If a key is unknown, or a value impossible.
        """
        return cls(**_check_keys("a near tie", values, cls))

    def to_dict(self) -> dict[str, Any]:
        """Write it as a mapping."""
        return dataclasses.asdict(self)


What: TypeAlias = Literal["heads", "vectors"]
"""What is drawn in place of what a method found."""

WHATS: tuple[What, ...] = get_args(What)

_SAID = {
    "heads": "as many random heads of the same layers",
    "vectors": "random directions of the same norm",
}


@dataclass(frozen=True)
class RandomDraw(metaclass=Named):
    """Draw in place of what a method found: heads of its layers, or directions.

    Of `"heads"` as many as there are in each layer, no two draws of a seed the same and
    none the method's own; the own ones may be among them. Of `"vectors"` directions of
    normal numbers, each as long as the one that it replaces. Where a method finds them
    for each item (`fit`), each item has draws of its own, whatever its batch.

    Attributes:
        what: What is drawn.
        draw: Which draw, counted from 0.
        seed: Seeds them.

    Raises:
        SettingsError: If a value is impossible.

    Example:
        >>> import eah_interp as eah
        >>> method = eah.Ablation(heads=("L1H0", "L1H2", "L3H1"))
        >>> RandomDraw("heads").replace(method, n_heads=4, items=[0]).heads
        ((1, 0), (1, 1), (3, 0))
    """

    what: What
    draw: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("what", self.what, What)
        for name in ("draw", "seed"):
            value = check_integer(name, getattr(self, name))
            object.__setattr__(self, name, value)

    def check_has(self, patch: object) -> None:
        """Check that settings have what is drawn.

        Raises:
            SettingsError: If not.
        """
        if not has(patch, self.what):
            msg = (
                f"a condition with random {self.what} needs settings that have "
                f"{self.what}, got {show_value(patch)}"
            )
            raise SettingsError(msg)

    def replace(self, patch: Any, *, n_heads: int, items: Sequence[int]) -> Any:
        """Put what is drawn into a method's settings.

        Args:
            patch: The settings, fitted to the items where they have to be.
            n_heads: How many heads a layer of the model has.
            items: A number for each item that stays with it.

        Raises:
            SettingsError: If there is nothing to draw in the place of, or fewer other
                heads than draws are asked for.
        """
        self.check_has(patch)
        if not self.can_draw(patch):
            msg = (
                f"there are no {self.what} to draw others in place of: "
                f"{show_value(patch)}; name them, or fit the settings to the items"
            )
            raise SettingsError(msg)
        if self.what == "vectors":
            drawn: Any = self._draw_vectors(patch.vectors, items)
            return dataclasses.replace(patch, vectors=drawn)
        if patch.heads is None:
            pairs = zip(patch.by_item, items, strict=True)
            listed = [
                self._draw_heads(own, n_heads, self._seed_of(item))
                for own, item in pairs
            ]
            return dataclasses.replace(patch, by_item=listed)
        found = self._draw_heads(patch.heads, n_heads, self.seed)
        return dataclasses.replace(patch, heads=found)

    def can_draw(self, patch: Any) -> bool:
        """Tell whether there is something to draw in the place of, by now.

        Args:
            patch: Settings that have it; some find it on their items first.
        """
        if getattr(patch, self.what) is not None:
            return True
        return self.what == "heads" and getattr(patch, "by_item", None) is not None

    def _draw_heads(self, own: Any, n_heads: int, seed: int) -> tuple[Head, ...]:
        pairs = sorted(read_pairs(own)) if len(own) else []
        if not pairs:  # an item that has none of its own
            return ()
        return draw_heads(pairs, n_heads=n_heads, draw=self.draw, seed=seed)

    def _draw_vectors(self, own: Directions, items: Sequence[int]) -> Directions:
        """Draw each item's directions, or those of all items."""
        seeds = (
            [self._seed_of(item, self.draw) for item in items]
            if own.per_item
            else [1009 * self.seed + self.draw]
        )
        rows = zip(own.values, seeds, strict=True)
        drawn = [draw_directions(row, seed=seed) for row, seed in rows]
        return dataclasses.replace(own, values=torch.stack(drawn))

    def _seed_of(self, item: int, draw: int = 0) -> int:
        # A prime far above the number of items: no two seeds share an item's draws.
        return 1_000_003 * (1009 * self.seed + draw) + item

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RandomDraw":
        """Make it from a mapping.

        Raises:
            SettingsError: If a key is unknown, or a value impossible.
        """
        return cls(**_check_keys("a random draw", values, cls))

    def to_dict(self) -> dict[str, Any]:
        """Write it as a mapping."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Write what is drawn."""
        return f"{_SAID[self.what]} (draw {self.draw}, seed {self.seed})"


def has(patch: object, what: What) -> bool:
    """Tell whether settings have heads, or vectors, for which others can be drawn.

    Example:
        >>> import eah_interp as eah
        >>> has(eah.Ablation(heads=("L1H0",)), "heads"), has(eah.PAI(), "heads")
        (True, False)
    """
    if not dataclasses.is_dataclass(patch):
        return False
    return what in {field.name for field in dataclasses.fields(patch)}


def draw_heads(
    own: Sequence[Head], *, n_heads: int, draw: int, seed: int
) -> tuple[Head, ...]:
    """Draw as many heads of the same layers.

    Args:
        own: The heads that others are drawn in place of.
        n_heads: How many a layer has.
        draw: Which draw, counted from 0: no two are the same, and none is the own.
        seed: Seeds them.

    Raises:
        SettingsError: If there are not so many other sets of heads.

    Example:
        >>> draw_heads([(0, 1)], n_heads=2, draw=0, seed=5)
        ((0, 0),)
        >>> draw_heads([(0, 1)], n_heads=2, draw=1, seed=5)
        Traceback (most recent call last):
            ...
        eah_interp.errors.SettingsError: expected 2 draws of other heads in place of \
L0H1, but there is 1 (1 of 2 in layer 0); ask for fewer draws
    """
    counts: dict[int, int] = {}
    for layer, _ in own:
        counts[layer] = counts.get(layer, 0) + 1
    others = math.prod(math.comb(n_heads, k) for k in counts.values()) - 1
    if others <= draw:
        names = ", ".join(f"L{layer}H{head}" for layer, head in own)
        of = ", ".join(f"{k} of {n_heads} in layer {n}" for n, k in counts.items())
        there = {-1: "are none", 0: "are none", 1: "is 1"}.get(others, f"are {others}")
        msg = (
            f"expected {draw + 1} draws of other heads in place of {names}, but there "
            f"{there} ({of}); ask for fewer draws"
        )
        raise SettingsError(msg)
    generator = _seeded(seed)
    seen, found = {tuple(sorted(own))}, tuple(sorted(own))
    while len(seen) < draw + 2:
        found = tuple(sorted(_draw_set(counts, n_heads, generator)))
        seen.add(found)
    return found


def _draw_set(
    counts: Mapping[int, int], n_heads: int, generator: torch.Generator
) -> Iterator[Head]:
    for layer, count in counts.items():
        for head in torch.randperm(n_heads, generator=generator)[:count].tolist():
            yield layer, int(head)


def draw_directions(own: Tensor, *, seed: int) -> Tensor:
    """Draw a direction for each vector, as long as it is.

    Args:
        own: Vectors, along the last axis.
        seed: Seeds them.

    Example:
        >>> drawn = draw_directions(torch.tensor([3.0, 4.0]), seed=0)
        >>> round(float(drawn.norm()), 4)
        5.0
    """
    generator = _seeded(seed)
    wide = torch.float64
    noise = torch.randn(own.shape, generator=generator, dtype=wide)
    length = own.detach().to("cpu", wide).norm(dim=-1, keepdim=True)
    drawn: Tensor = noise * (length / noise.norm(dim=-1, keepdim=True))
    return drawn.to(own.device, own.dtype)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**63)  # a user's may be any integer


def _check_keys(what: str, values: object, kind: type[Any]) -> dict[str, Any]:
    """Check that a mapping has only keys that a class has.

    Raises:
        SettingsError: If not.
    """
    given = check_mapping(what, values)
    names = [field.name for field in dataclasses.fields(kind)]
    needed = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING
    ]
    unknown = sorted(set(given) - set(names))
    missing = [name for name in needed if name not in given]
    if unknown or missing:
        got = ", ".join(given) or "nothing"
        msg = f"{what} has {', '.join(names)}, got {got}"
        raise SettingsError(msg)
    return dict(given)
