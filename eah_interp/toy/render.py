"""From a plan to pixels, boxes and patch labels."""

import dataclasses
import functools
import statistics
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

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


@dataclasses.dataclass(frozen=True)
class _Inside:
    """Which pixels of a sprite are its object's, their extent and their number."""

    mask: Bool[np.ndarray, "size size"]
    left: int
    top: int
    right: int
    bottom: int
    area: int


@functools.lru_cache(maxsize=8192)
def _inside(name: str, size: int, *, flip: bool) -> _Inside:
    mask = draw_sprite(name, size, flip=flip)[0] > 0.5
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corners = (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1, mask.sum())
    return _Inside(mask, *(int(value) for value in corners))


_PAINT = {
    word: 255 * np.array(rgb, np.float32)[:, None, None]
    for word, rgb in COLOURS.items()
}
_NORMAL = np.array(
    [statistics.NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)],
    dtype=np.float32,
)
"""Gaussian noise of unit variance from a random byte: the quantile it stands for."""


def render_scene(
    plan: tuple[Placement, ...], *, seed: int, split: Split, world: World
) -> Scene:
    """Draw a plan; background and noise depend on split and seed only."""
    rng = np.random.default_rng((SPLITS.index(split), seed, 1))
    side = world.image_size
    image = _draw_background(rng, side=side)
    owner = np.zeros((side, side), dtype=np.int16)
    areas: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    for index, item in enumerate(plan, start=1):
        cover, tone = draw_sprite(item.name, item.size, flip=item.flip)
        left, top = item.left, item.top
        rows, cols = slice(top, top + item.size), slice(left, left + item.size)
        body, accent = _PAINT[item.colour], _PAINT[item.accent]
        window = image[:, rows, cols]
        paint = tone * (accent - body)
        paint += body
        paint -= window
        paint *= np.float32(item.strength) * cover
        window += paint
        inside = _inside(item.name, item.size, flip=item.flip)
        owner[rows, cols][inside.mask] = index
        areas.append(inside.area)
        left_top = (left + inside.left, top + inside.top)
        boxes.append((*left_top, left + inside.right, top + inside.bottom))
    amount = 255 * (0.01 + 0.13 * world.difficulty * float(rng.random()))
    noise = _NORMAL[np.frombuffer(rng.bytes(image.size), dtype=np.uint8)]
    noise *= np.float32(amount)
    image += noise.reshape(image.shape)
    image += 0.5
    np.clip(image, 0, 255, out=image)
    owned = _count_pixels(owner, n_objects=len(plan), world=world)
    shown = owned.sum(axis=0).tolist()
    return Scene(
        image=image.astype(np.uint8).transpose(1, 2, 0),
        objects=tuple(item.name for item in plan),
        boxes=tuple(boxes),
        visible=tuple(n / area for n, area in zip(shown, areas, strict=True)),
        labels=_label_patches(owned, plan=plan, world=world),
        placements=plan,
        seed=seed,
        split=split,
        world=world,
    )


def _draw_background(
    rng: np.random.Generator, *, side: int
) -> Float[np.ndarray, "3 side side"]:
    """Draw a smooth background around one colour, from 0 to 255."""
    draws = rng.random(4 + 3 * 4 * 4).astype(np.float32)
    base = 0.25 + 0.55 * draws[0] + 0.16 * (draws[1:4] - 0.5)
    knots = base[:, None, None] + 0.24 * (draws[4:].reshape(3, 4, 4) - 0.5)
    return np.asarray(_ramp(side) @ (255 * knots) @ _ramp(side).T)


@functools.cache
def _patch_of_pixel(world: World) -> Int[np.ndarray, " pixels"]:
    at = np.arange(world.image_size) // world.patch_size
    return np.asarray((at[:, None] * world.grid + at).ravel())


def _count_pixels(
    owner: Int[np.ndarray, "height width"], *, n_objects: int, world: World
) -> Int[np.ndarray, "patches objects"]:
    """Count how many pixels of each patch each object owns."""
    cells = _patch_of_pixel(world) * (n_objects + 1) + owner.ravel()
    counts = np.bincount(cells, minlength=world.grid**2 * (n_objects + 1))
    return np.asarray(counts.reshape(world.grid**2, n_objects + 1)[:, 1:])


def _label_patches(
    owned: Int[np.ndarray, "patches objects"],
    *,
    plan: tuple[Placement, ...],
    world: World,
) -> Int[np.ndarray, "rows cols"]:
    """Give each patch the label of the object that owns most of its pixels."""
    grid = world.grid
    if not plan:
        return np.zeros((grid, grid), dtype=np.int64)
    codes = np.array([OBJECTS.index(item.name) + 1 for item in plan])
    labels = codes[owned.argmax(axis=1)]
    labels[owned.max(axis=1) < LABEL_SHARE * world.patch_size**2] = 0
    return np.asarray(labels.reshape(grid, grid))
