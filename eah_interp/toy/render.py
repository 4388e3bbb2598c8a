"""From a plan to pixels, boxes and patch labels."""

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

from eah_interp.toy.plan import Placement
from eah_interp.toy.sprites import draw_sprite
from eah_interp.toy.world import COLOURS, OBJECTS, SPLITS, Split, World

if TYPE_CHECKING:
    from PIL import Image

LABEL_SHARE = 0.2
"""A patch carries an object's label if the object owns this share of its pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """One drawn picture and everything that is true of it.

    Attributes:
        image: The picture.
        objects: Names, in drawing order (a later one may hide part of an earlier one).
        boxes: Per object `(left, top, right, bottom)` in pixels, right and bottom
            exclusive, around all of it, hidden parts included.
        visible: Per object the share of its pixels that no other object hides.
        labels: Per patch 0 for background, or `i + 1` for `OBJECTS[i]`.
        placements: The plan the picture was rendered from.
        seed: Seed within the split.
        split: Split the seed belongs to.
        world: Knobs it was drawn with.
    """

    image: UInt8[np.ndarray, "height width 3"]
    objects: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    visible: tuple[float, ...]
    labels: Int[np.ndarray, "rows cols"]
    placements: tuple[Placement, ...]
    seed: int
    split: Split
    world: World

    def pil(self) -> "Image.Image":
        """Convert the picture to a PIL image."""
        from PIL import Image

        return Image.fromarray(self.image)


@functools.cache
def _ramp(side: int) -> Float[np.ndarray, "side 4"]:
    """Return weights that interpolate 4 values smoothly along one image side."""
    at = np.linspace(0, 3, side)[:, None]
    return np.asarray(np.clip(1 - np.abs(at - np.arange(4)), 0, 1), dtype=np.float32)


@functools.lru_cache(maxsize=8192)
def _extent(name: str, size: int, *, flip: bool) -> tuple[int, int, int, int, int]:
    """Return left, top, right, bottom (exclusive) and area of a sprite's pixels."""
    inside = draw_sprite(name, size, flip=flip)[0] > 0.5
    rows, cols = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    left, right = int(cols[0]), int(cols[-1]) + 1
    return left, int(rows[0]), right, int(rows[-1]) + 1, int(inside.sum())


def _noise(
    rng: np.random.Generator, *, shape: tuple[int, ...]
) -> Float[np.ndarray, "..."]:
    """Draw noise of unit variance, near enough to Gaussian: the sum of two bytes."""
    first, second = rng.integers(0, 256, size=(2, *shape), dtype=np.uint8)
    noise = first.astype(np.float32)
    noise += second
    noise -= 255
    noise /= 104.5
    return np.asarray(noise)


def render_scene(
    plan: tuple[Placement, ...], *, seed: int, split: Split, world: World
) -> Scene:
    """Draw a plan; background and noise depend on split and seed only."""
    rng = np.random.default_rng((SPLITS.index(split), seed, 1))
    side = world.image_size
    base = rng.uniform(0.25, 0.8) + rng.uniform(-0.08, 0.08, size=3)
    knots = (base + rng.uniform(-0.12, 0.12, size=(4, 4, 3))).astype(np.float32)
    image = _ramp(side) @ (_ramp(side) @ knots).reshape(4, -1)
    image = image.reshape(side, side, 3)
    owner = np.full((side, side), -1, dtype=np.int16)
    areas: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    for index, item in enumerate(plan):
        cover, tone = draw_sprite(item.name, item.size, flip=item.flip)
        left, top, stop = item.left, item.top, item.size
        window = (slice(top, top + stop), slice(left, left + stop))
        body = np.array(COLOURS[item.colour], dtype=np.float32)
        accent = np.array(COLOURS[item.accent], dtype=np.float32)
        paint = body + tone[..., None] * (accent - body)
        paint -= image[window]
        paint *= (np.float32(item.strength) * cover)[..., None]
        image[window] += paint
        inside = cover > 0.5
        owner[window][inside] = index
        extent = _extent(item.name, item.size, flip=item.flip)
        areas.append(extent[4])
        boxes.append(
            (left + extent[0], top + extent[1], left + extent[2], top + extent[3])
        )
    image += _noise(rng, shape=image.shape) * np.float32(
        0.01 + 0.13 * world.difficulty * rng.random()
    )
    np.clip(image, 0, 1, out=image)
    image *= 255
    image += 0.5
    shown = np.bincount(owner.ravel() + 1, minlength=len(plan) + 1)[1:].tolist()
    return Scene(
        image=image.astype(np.uint8),
        objects=tuple(item.name for item in plan),
        boxes=tuple(boxes),
        visible=tuple(n / area for n, area in zip(shown, areas, strict=True)),
        labels=_label_patches(owner, plan=plan, world=world),
        placements=plan,
        seed=seed,
        split=split,
        world=world,
    )


def _label_patches(
    owner: Int[np.ndarray, "height width"],
    *,
    plan: tuple[Placement, ...],
    world: World,
) -> Int[np.ndarray, "rows cols"]:
    """Give each patch the label of the object that owns most of its pixels."""
    grid, step = world.grid, world.patch_size
    codes = np.array([0, *(OBJECTS.index(item.name) + 1 for item in plan)])
    patches = owner.reshape(grid, step, grid, step)
    owned = np.stack(
        [(patches == index).sum(axis=(1, 3)) for index in range(len(plan))]
        or [np.zeros((grid, grid))]
    )
    winner = owned.argmax(axis=0) + 1
    winner[owned.max(axis=0) < LABEL_SHARE * step * step] = 0
    return np.asarray(codes[winner])
