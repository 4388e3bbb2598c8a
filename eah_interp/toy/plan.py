"""Where each object of a scene goes: size, place, colours, overlap within bounds."""

import dataclasses

import numpy as np

from eah_interp.toy.world import (
    COLOURS,
    TYPICAL_COLOURS,
    TYPICAL_COLOURS_SHARE,
    World,
)

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
