"""Where each object of a scene goes: size, place, colours, overlap within bounds."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from eah_interp.toy.world import (
    COLOURS,
    TYPICAL_COLOURS,
    TYPICAL_COLOURS_SHARE,
    World,
)

_PLACEMENT_TRIES = 12


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
    words = tuple(COLOURS)
    side, hard = world.image_size, world.difficulty
    squares = np.zeros((0, 3))
    plan: list[Placement] = []
    for name in names:
        size = int(side * rng.uniform(0.36 - 0.12 * hard, 0.44))
        corners = rng.integers(0, side - size + 1, size=(_PLACEMENT_TRIES, 2))
        hidden = _overlap(corners, size=size, squares=squares)
        fits = np.flatnonzero(hidden <= 0.5 * hard)
        choice = int(fits[0]) if len(fits) else int(hidden.argmin())
        left, top = (int(v) for v in corners[choice])
        colour, accent = TYPICAL_COLOURS[name]
        if rng.random() >= TYPICAL_COLOURS_SHARE:
            first, second = rng.permutation(len(words))[:2]
            colour, accent = words[first], words[second]
        plan.append(
            Placement(
                name=name,
                left=left,
                top=top,
                size=size,
                colour=colour,
                accent=accent,
                strength=float(rng.uniform(1 - 0.65 * hard, 1)),
                flip=bool(rng.random() < 0.5),
            )
        )
        squares = np.vstack([squares, (left, top, size)])
    return tuple(plan)


def _overlap(
    corners: Int[np.ndarray, "tries 2"],
    *,
    size: int,
    squares: Float[np.ndarray, "placed 3"],
) -> Float[np.ndarray, " tries"]:
    """Return, per candidate corner, the largest share of a square that is shared."""
    if not len(squares):
        return np.zeros(len(corners))
    start = np.maximum(corners[:, None], squares[None, :, :2])
    stop = np.minimum(corners[:, None] + size, squares[None, :, :2] + squares[:, 2:])
    shared = np.clip(stop - start, 0, None).prod(axis=2)
    smaller = np.minimum(size, squares[:, 2]) ** 2
    return np.asarray((shared / smaller).max(axis=1))
