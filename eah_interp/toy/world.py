"""What exists in the toy world, and which things go together."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import check_integer, to_float

GROUPS: dict[str, tuple[str, ...]] = {
    "sea": ("boat", "fish", "shell", "lighthouse"),
    "garden": ("tree", "flower", "butterfly", "mushroom"),
    "kitchen": ("cup", "spoon", "bottle", "pan"),
    "street": ("car", "house", "bicycle", "lamp"),
    "sky": ("sun", "moon", "star", "cloud"),
}
"""Objects that go together, the most frequent first in its group."""

OBJECTS: tuple[str, ...] = tuple(name for group in GROUPS.values() for name in group)
"""Every object's name; patch label `i + 1` means `OBJECTS[i]`, label 0 background."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.6, 0.2),
    "blue": (0.15, 0.3, 0.85),
    "yellow": (0.95, 0.85, 0.15),
    "white": (0.97, 0.97, 0.97),
    "brown": (0.45, 0.27, 0.12),
    "pink": (0.95, 0.45, 0.7),
    "black": (0.06, 0.06, 0.08),
}

TYPICAL_COLOURS: dict[str, tuple[str, str]] = {
    "boat": ("brown", "white"),
    "fish": ("blue", "yellow"),
    "shell": ("pink", "white"),
    "lighthouse": ("white", "red"),
    "tree": ("green", "brown"),
    "flower": ("pink", "yellow"),
    "butterfly": ("yellow", "black"),
    "mushroom": ("red", "white"),
    "cup": ("white", "blue"),
    "spoon": ("white", "black"),
    "bottle": ("green", "yellow"),
    "pan": ("black", "red"),
    "car": ("red", "black"),
    "house": ("brown", "red"),
    "bicycle": ("blue", "black"),
    "lamp": ("yellow", "brown"),
    "sun": ("yellow", "red"),
    "moon": ("white", "yellow"),
    "star": ("yellow", "blue"),
    "cloud": ("blue", "white"),
}
"""Body and accent; an object wears them most of the time, any two otherwise."""

GROUP_SHARES = (0.24, 0.22, 0.20, 0.18, 0.16)

RANK_SHARES = (0.34, 0.28, 0.22, 0.16)

COUNT_SHARES = (0.08, 0.27, 0.35, 0.30)
"""Shares of scenes with 1, 2, 3, ... objects."""

TYPICAL_COLOURS_SHARE = 0.75

Split: TypeAlias = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Knobs of the procedural world.

    Attributes:
        prior: Probability that the next object comes from the scene's own group: 0.2
            is no co-occurrence at all, 1.0 never mixes groups.
        difficulty: From 0 (clean, large, apart) to 1 (noisy, faint, occluded).
        image_size: Side of the square image in pixels.
        patch_size: Side of the square patch in pixels; divides `image_size`.

    Example:
        >>> World().grid
        10
    """

    prior: float = 0.85
    difficulty: float = 0.5
    image_size: int = 80
    patch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("prior", "difficulty"):
            share = to_float(getattr(self, name))
            if share is None or not 0 <= share <= 1:
                got = show_value(getattr(self, name))
                raise SettingsError(f"{name} must be a share from 0 to 1, got {got}")
            object.__setattr__(self, name, share)
        for name in ("image_size", "patch_size"):
            number = check_integer(name, getattr(self, name), least=1)
            object.__setattr__(self, name, number)
        if self.image_size % self.patch_size:
            msg = (
                f"patch_size must divide image_size, got {self.patch_size} and "
                f"{self.image_size}"
            )
            raise SettingsError(msg)

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


POPULARITY: tuple[float, ...] = tuple(
    group * rank for group in GROUP_SHARES for rank in RANK_SHARES
)
"""How often each of `OBJECTS` is drawn where the group does not matter."""


def group_of(name: str) -> str:
    """Name the group an object belongs to.

    Example:
        >>> group_of("boat")
        'sea'
    """
    return next(group for group, members in GROUPS.items() if name in members)


def draw_objects(rng: np.random.Generator, *, prior: float) -> tuple[str, ...]:
    """Draw the names of one scene's objects, without repetition, in random order.

    A group is drawn, and a first object in it. Each further object comes from the
    same group with probability `prior`, otherwise (and when the group is used up) from
    all other groups. Used for scenes and for text alike.

    Args:
        rng: Source of randomness.
        prior: Probability of staying in the group.

    Returns:
        One to four names.

    Example:
        >>> draw_objects(np.random.default_rng(1), prior=1.0)
        ('moon', 'sun', 'cloud')
    """
    count = 1 + _draw_index(rng, COUNT_SHARES)
    group = _draw_index(rng, GROUP_SHARES)
    weights = list(POPULARITY)
    inside = range(4 * group, 4 * group + 4)
    drawn: list[int] = []
    for position in range(count):
        stays = position == 0 or rng.random() < prior
        allowed = [w if (i in inside) == stays else 0.0 for i, w in enumerate(weights)]
        if not any(allowed):
            allowed = weights
        index = _draw_index(rng, allowed)
        weights[index] = 0.0
        drawn.append(index)
    return tuple(OBJECTS[i] for i in rng.permutation(drawn).tolist())


def draw_companion(
    rng: np.random.Generator, *, objects: Sequence[str], prior: float
) -> str | None:
    """Draw what usually comes along with some objects, or None.

    It is what the world would draw next if it stays in the first object's group.

    Args:
        rng: Source of randomness.
        objects: What is there.
        prior: Probability of staying in the group.

    Returns:
        An absent object of the group; None where the draw leaves the group, or all
        of the group is there.

    Example:
        >>> draw_companion(np.random.default_rng(0), objects=["sun", "moon"], prior=1.0)
        'star'
    """
    members = GROUPS[group_of(objects[0])]
    free = [name for name in members if name not in objects]
    if rng.random() >= prior or not free:
        return None
    return free[_draw_index(rng, [POPULARITY[OBJECTS.index(name)] for name in free])]


def _draw_index(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """Draw an index with probability in proportion to its weight."""
    edges = list(itertools.accumulate(weights))
    return bisect.bisect_right(edges, rng.random() * edges[-1])


# ---- Where each object of a scene goes: size, place, colours, overlap within bounds.


_PLACEMENT_TRIES = 12

_WORDS = tuple(COLOURS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how one object is drawn.

    Attributes:
        name: The object.
        left: Column of the sprite's left edge, in pixels.
        top: Row of the sprite's top edge, in pixels.
        size: Side of the sprite's square, in pixels.
        colour: Colour word of the body.
        accent: Colour word of the accent.
        strength: Opacity, 1 is solid.
        flip: Mirrored left to right.
    """

    name: str
    left: int
    top: int
    size: int
    colour: str
    accent: str
    strength: float
    flip: bool


def plan_scene(
    rng: np.random.Generator, *, names: tuple[str, ...], world: World
) -> tuple[Placement, ...]:
    """Draw size, place and colours of each object, keeping overlap within bounds."""
    side, hard = world.image_size, world.difficulty
    smallest = 0.36 - 0.12 * hard
    plan: list[Placement] = []
    for name in names:
        draws = rng.random(4 + 2 * _PLACEMENT_TRIES).tolist()
        large, odd, faint, mirror, *places = draws
        size = int(side * (smallest + (0.44 - smallest) * large))
        free = side - size + 1
        pairs = zip(places[::2], places[1::2], strict=True)
        corners = [(int(x * free), int(y * free)) for x, y in pairs]
        left, top = _choose_corner(corners, size=size, plan=plan, most=0.5 * hard)
        colour, accent = TYPICAL_COLOURS[name]
        if odd >= TYPICAL_COLOURS_SHARE:
            colour, accent = (_WORDS[i] for i in rng.permutation(len(_WORDS))[:2])
        plan.append(
            Placement(
                name=name,
                left=left,
                top=top,
                size=size,
                colour=colour,
                accent=accent,
                strength=1 - 0.65 * hard * faint,
                flip=mirror < 0.5,
            )
        )
    return tuple(plan)


def _choose_corner(
    corners: list[tuple[int, int]], *, size: int, plan: list[Placement], most: float
) -> tuple[int, int]:
    """Take the first corner whose square overlaps little enough, else the least bad."""
    best, least = corners[0], 2.0
    for left, top in corners:
        hidden = max(
            (_shared(left, top, size, other=other) for other in plan), default=0.0
        )
        if hidden <= most:
            return left, top
        if hidden < least:
            best, least = (left, top), hidden
    return best


def _shared(left: int, top: int, size: int, *, other: Placement) -> float:
    """Return the share of the smaller of two squares that lies in both."""
    width = min(left + size, other.left + other.size) - max(left, other.left)
    height = min(top + size, other.top + other.size) - max(top, other.top)
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min(size, other.size) ** 2
