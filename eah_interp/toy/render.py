"""From a plan to pixels, boxes and patch labels."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from eah_interp.results import Part
from eah_interp.toy.world import COLOURS, OBJECTS, SPLITS, Placement, Split, World

if TYPE_CHECKING:
    from PIL import Image

# ---- The twenty objects of the toy world, as two-tone sprites.


Plane: TypeAlias = Float[np.ndarray, "size size"]

Region: TypeAlias = Bool[np.ndarray, "size size"]

Shape: TypeAlias = Callable[[Plane, Plane], tuple[Region, Region]]

Number: TypeAlias = float | int

SUPERSAMPLING = 4
"""Sub-pixels a side for each pixel of a sprite, averaged to soften its edge."""


def _disc(x: Plane, y: Plane, cx: Number, cy: Number, r: Number) -> Region:
    return (x - cx) ** 2 + (y - cy) ** 2 < r * r


def _oval(x: Plane, y: Plane, *at: Number) -> Region:
    cx, cy, rx, ry = at
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1


def _box(x: Plane, y: Plane, *sides: Number) -> Region:
    left, top, right, bottom = sides
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def _cone(x: Plane, y: Plane, *at: Number) -> Region:
    """Fill a trapezium around cx, `r0` to either side at `top`, `r1` at `bottom`."""
    cx, top, r0, bottom, r1 = at
    width = r0 + (r1 - r0) * (y - top) / (bottom - top)
    return (y > top) & (y < bottom) & (np.abs(x - cx) < width)


def _line(x: Plane, y: Plane, *ends: Number) -> Region:
    x0, y0, x1, y1 = ends
    dx, dy = x1 - x0, y1 - y0
    share = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    distance = np.hypot(x - x0 - share * dx, y - y0 - share * dy)
    return np.asarray(distance < 0.1)


def _ring(x: Plane, y: Plane, *at: Number) -> Region:
    cx, cy, r = at
    return np.asarray(_disc(x, y, cx, cy, r) & ~_disc(x, y, cx, cy, r - 0.2))


def _boat(x: Plane, y: Plane) -> tuple[Region, Region]:
    sail = (x > -0.05) & (y > -0.9) & (y < 0.2) & (x < 0.05 + 0.75 * (y + 0.9))
    hull = _cone(x, y, 0, 0.35, 0.95, 0.85, 0.55)
    return hull | _box(x, y, -0.2, -0.95, -0.05, 0.36) | sail, sail


def _fish(x: Plane, y: Plane) -> tuple[Region, Region]:
    tail = (x > 0.4) & (x < 0.95) & (np.abs(y) < (x - 0.3))
    eye = _disc(x, y, -0.5, -0.12, 0.15)
    return _oval(x, y, -0.2, 0, 0.75, 0.5) | tail, tail | eye


def _shell(x: Plane, y: Plane) -> tuple[Region, Region]:
    fan = _disc(x, y, 0, 0.5, 1.2) & (np.abs(x) < 0.12 + 0.75 * (0.75 - y)) & (y < 0.75)
    angle = np.arctan2(x, 0.9 - y)
    return fan, fan & (np.sin(angle * 14) > 0.2)


def _lighthouse(x: Plane, y: Plane) -> tuple[Region, Region]:
    tower = _cone(x, y, 0, -0.5, 0.25, 0.95, 0.5)
    top = _cone(x, y, 0, -0.98, 0.02, -0.5, 0.4)
    return tower | top, top | (tower & (np.sin(y * 11) > 0))


def _tree(x: Plane, y: Plane) -> tuple[Region, Region]:
    crown = _cone(x, y, 0, -0.98, 0, 0, 0.6) | _cone(x, y, 0, -0.4, 0.1, 0.55, 0.85)
    trunk = _box(x, y, -0.15, 0.5, 0.15, 0.97)
    return crown | trunk, trunk


def _flower(x: Plane, y: Plane) -> tuple[Region, Region]:
    angle, radius = np.arctan2(x, y + 0.3), np.hypot(x, y + 0.3)
    petals = radius < 0.45 + 0.2 * np.cos(5 * angle)
    stem = _box(x, y, -0.08, 0.1, 0.08, 0.97) | _oval(x, y, 0.3, 0.65, 0.3, 0.13)
    return petals | stem, _disc(x, y, 0, -0.3, 0.2) | (stem & ~petals)


def _butterfly(x: Plane, y: Plane) -> tuple[Region, Region]:
    wings = _oval(np.abs(x), y, 0.5, -0.4, 0.45, 0.5)
    wings |= _oval(np.abs(x), y, 0.4, 0.45, 0.35, 0.4)
    body = _oval(x, y, 0, 0, 0.13, 0.8)
    return wings | body, body | _disc(np.abs(x), y, 0.55, -0.4, 0.18)


def _mushroom(x: Plane, y: Plane) -> tuple[Region, Region]:
    cap = _oval(x, y, 0, 0.05, 0.95, 0.9) & (y < 0.05)
    dots = _disc(np.abs(x), y, 0.45, -0.25, 0.16) | _disc(x, y, 0, -0.55, 0.17)
    stem = _box(x, y, -0.25, 0.05, 0.25, 0.92)
    return cap | stem, dots | stem


def _cup(x: Plane, y: Plane) -> tuple[Region, Region]:
    body = _cone(x, y, -0.2, -0.55, 0.65, 0.75, 0.5)
    handle = _ring(x, y, 0.5, 0.05, 0.45) & (x > 0.35)
    return body | handle, _box(x, y, -0.85, -0.6, 0.45, -0.3) & body


def _spoon(x: Plane, y: Plane) -> tuple[Region, Region]:
    bowl = _oval(x, y, 0, -0.6, 0.32, 0.38)
    return bowl | _box(x, y, -0.1, -0.3, 0.1, 0.97), _oval(x, y, 0, -0.6, 0.17, 0.22)


def _bottle(x: Plane, y: Plane) -> tuple[Region, Region]:
    body = _box(x, y, -0.38, -0.2, 0.38, 0.97) | _cone(x, y, 0, -0.5, 0.15, -0.2, 0.38)
    neck = _box(x, y, -0.15, -0.97, 0.15, -0.45)
    label = _box(x, y, -0.38, 0.15, 0.38, 0.6)
    return body | neck, label | _box(x, y, -0.15, -0.97, 0.15, -0.75)


def _pan(x: Plane, y: Plane) -> tuple[Region, Region]:
    plate = _disc(x, y, -0.35, 0, 0.6)
    return plate | _box(x, y, 0.1, -0.14, 0.98, 0.14), _disc(x, y, -0.35, 0, 0.38)


def _car(x: Plane, y: Plane) -> tuple[Region, Region]:
    cabin = _cone(x, y, -0.05, -0.5, 0.4, 0, 0.65)
    wheels = _disc(np.abs(x), y, 0.55, 0.45, 0.25)
    window = _cone(x, y, -0.05, -0.38, 0.3, -0.03, 0.45)
    return cabin | _box(x, y, -0.97, -0.02, 0.97, 0.45) | wheels, wheels | window


def _house(x: Plane, y: Plane) -> tuple[Region, Region]:
    roof = _cone(x, y, 0, -0.9, 0, -0.1, 0.97)
    door = _box(x, y, -0.18, 0.3, 0.18, 0.9)
    return roof | _box(x, y, -0.7, -0.12, 0.7, 0.9), roof | door


def _bicycle(x: Plane, y: Plane) -> tuple[Region, Region]:
    wheels = _ring(np.abs(x), y, 0.54, 0.3, 0.45)
    frame = _line(x, y, -0.54, 0.3, -0.1, -0.35) | _line(x, y, -0.1, -0.35, 0.4, -0.35)
    frame |= _line(x, y, 0.54, 0.3, 0.35, -0.6) | _line(x, y, -0.54, 0.3, 0.4, -0.35)
    return wheels | frame, frame


def _lamp(x: Plane, y: Plane) -> tuple[Region, Region]:
    shade = _cone(x, y, 0, -0.9, 0.3, -0.1, 0.7)
    foot = _box(x, y, -0.45, 0.75, 0.45, 0.95) | _box(x, y, -0.09, -0.1, 0.09, 0.8)
    return shade | foot, foot


def _sun(x: Plane, y: Plane) -> tuple[Region, Region]:
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    disc = radius < 0.55
    rays = (radius > 0.65) & (radius < 0.98) & (np.cos(8 * angle) > 0.2)
    return disc | rays, rays


def _moon(x: Plane, y: Plane) -> tuple[Region, Region]:
    crescent = _disc(x, y, 0, 0, 0.9) & ~_disc(x, y, 0.45, -0.1, 0.75)
    return crescent, _disc(x, y, -0.6, 0.1, 0.14)


def _star(x: Plane, y: Plane) -> tuple[Region, Region]:
    turn = 2 * math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + turn / 2) % turn - turn / 2)
    radius = np.hypot(x, y)
    edge = 0.36 / (np.cos(angle) * 0.36 + np.sin(angle) * 0.87) * 0.98
    return radius < edge, radius < 0.2


def _cloud(x: Plane, y: Plane) -> tuple[Region, Region]:
    puffs = _disc(x, y, -0.5, 0.1, 0.42) | _disc(x, y, 0.05, -0.15, 0.5)
    puffs |= _disc(x, y, 0.55, 0.1, 0.4) | _box(x, y, -0.5, 0.1, 0.55, 0.5)
    return puffs & (y < 0.5), puffs & (y > 0.28) & (y < 0.5)


SHAPES: dict[str, Shape] = {
    "boat": _boat,
    "fish": _fish,
    "shell": _shell,
    "lighthouse": _lighthouse,
    "tree": _tree,
    "flower": _flower,
    "butterfly": _butterfly,
    "mushroom": _mushroom,
    "cup": _cup,
    "spoon": _spoon,
    "bottle": _bottle,
    "pan": _pan,
    "car": _car,
    "house": _house,
    "bicycle": _bicycle,
    "lamp": _lamp,
    "sun": _sun,
    "moon": _moon,
    "star": _star,
    "cloud": _cloud,
}


@functools.lru_cache(maxsize=8192)
def draw_sprite(
    name: str, size: int, *, flip: bool = False
) -> Float[np.ndarray, "2 size size"]:
    """Draw one object as coverage and tone, both between 0 and 1.

    Args:
        name: One of the twenty object names.
        size: Side of the square in pixels.
        flip: Mirror left and right.

    Returns:
        `[0]` the share of each pixel that the object covers, `[1]` how much of that is
        accent. The array is cached and read-only.

    Example:
        >>> sprite = draw_sprite("boat", 24)
        >>> sprite.shape, bool(sprite.flags.writeable)
        ((2, 24, 24), False)
    """
    axis = (np.arange(size * SUPERSAMPLING) + 0.5) / (size * SUPERSAMPLING) * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    body, accent = SHAPES[name](-x if flip else x, y)
    fine = np.stack([body | accent, accent]).astype(np.float32)
    blocks = fine.reshape(2, size, SUPERSAMPLING, size, SUPERSAMPLING)
    coverage, toned = blocks.mean(axis=(2, 4))
    sprite = np.stack([coverage, toned / np.maximum(coverage, 1e-6)])
    sprite.flags.writeable = False
    return sprite


LABEL_SHARE = 0.2
"""A patch carries an object's label if the object owns this share of its pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Scene(Part):
    """One drawn image and everything that is true of it.

    Attributes:
        image: The image.
        objects: Names, in drawing order (a later one may hide part of an earlier one).
        boxes: Per object `(left, top, right, bottom)` in pixels, right and bottom
            exclusive, around all of it, hidden parts included.
        visible: Per object the share of its pixels that no other object hides.
        labels: Per patch 0 for background, or `i + 1` for `OBJECTS[i]`.
        placements: The plan the image was rendered from.
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

    def _about(self) -> str:
        height, width = self.image.shape[:2]
        return (
            f"number {self.seed} of the {self.split} split, {width} x {height} pixels: "
            f"{', '.join(self.objects) or 'no objects'}"
        )

    def pil(self) -> "Image.Image":
        """Convert the image to a PIL image."""
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
