"""Procedural scenes with exact ground truth.

A scene is planned (which objects, where, in which colours) and then rendered from the
plan, so the same scene with one object fewer, or another, differs in nothing else.
The generator of a scene is seeded with the pair (split, seed): no seed of one split
can reproduce a scene of another.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from eah_interp.arguments import by_name, check_kind
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_integer, to_list
from eah_interp.toy.render import Scene, render_scene
from eah_interp.toy.world import OBJECTS, SPLITS, Split, World, draw_objects, plan_scene


@by_name
def draw_scene(
    seed: int,
    *,
    split: Split = "test",
    world: World | None = None,
    objects: Sequence[str] | None = None,
) -> Scene:
    """Draw one scene.

    Args:
        seed: Any integer >= 0; the same seed gives the same scene.
        split: Which family of scenes the seed counts in.
        world: Knobs; the default world is what the committed weights were trained on.
        objects: Names to draw instead of a draw from the co-occurrence prior.

    Returns:
        The scene.

    Raises:
        SettingsError: An unknown split, or a seed that is no integer >= 0.
        InputError: An unknown object.

    Example:
        >>> scene = draw_scene(0, objects=["boat", "tree"])
        >>> scene.objects, scene.image.shape, scene.labels.shape
        (('boat', 'tree'), (80, 80, 3), (10, 10))
    """
    seed = check_integer("seed", seed)
    if not isinstance(split, str) or split not in SPLITS:
        got = show_value(split)
        raise SettingsError(f"split: expected one of {SPLITS}, got {got}")
    check_kind("world", world, (World, type(None)), expected="a World or None")
    named = () if objects is None else to_list(objects)
    if named is None or any(name not in OBJECTS for name in map(_as_name, named)):
        got = show_value(objects)
        raise InputError(f"objects: expected names in OBJECTS, got {got}")
    world = world or World()
    rng = np.random.default_rng((SPLITS.index(split), seed))
    names = draw_objects(rng, prior=world.prior)
    if objects is not None:
        names = tuple(named)
    plan = plan_scene(rng, names=names, world=world)
    return render_scene(plan, seed=seed, split=split, world=world)


@by_name
def draw_scenes(
    seeds: Sequence[int], *, split: Split = "test", world: World | None = None
) -> list[Scene]:
    """Draw one scene for each seed.

    Example:
        >>> [len(scene.objects) for scene in draw_scenes(range(3))]
        [2, 4, 4]
    """
    listed = to_list(seeds)
    if listed is None:
        raise SettingsError(
            f"seeds must be a list of integers, got {show_value(seeds)}"
        )
    return [draw_scene(seed, split=split, world=world) for seed in listed]


@by_name
def without_object(scene: Scene, name: str) -> Scene:
    """Redraw a scene with one object removed and nothing else changed.

    Args:
        scene: The factual scene.
        name: The object to remove; it must be in the scene.

    Returns:
        The counterfactual scene: same background, noise and other objects.

    Raises:
        InputError: The scene has no such object.

    Example:
        >>> scene = draw_scene(0, objects=["boat", "tree"])
        >>> without_object(scene, "boat").objects
        ('tree',)
    """
    _require(scene, name)
    plan = tuple(p for p in scene.placements if p.name != name)
    return render_scene(plan, seed=scene.seed, split=scene.split, world=scene.world)


@by_name
def with_object_swapped(scene: Scene, name: str, *, by: str) -> Scene:
    """Redraw a scene with another object in one object's place, size and colours.

    Args:
        scene: The factual scene.
        name: The object to replace; it must be in the scene.
        by: The object to draw instead; it must not be in the scene.

    Returns:
        The counterfactual scene.

    Raises:
        InputError: `name` is not in the scene, or `by` already is or is unknown.

    Example:
        >>> scene = draw_scene(0, objects=["boat", "tree"])
        >>> with_object_swapped(scene, "boat", by="car").objects
        ('car', 'tree')
    """
    _require(scene, name)
    if _as_name(by) not in OBJECTS or by in scene.objects:
        got = show_value(by)
        raise InputError(f"by: expected an object not in {scene.objects}, got {got}")
    plan = tuple(
        dataclasses.replace(p, name=by) if p.name == name else p
        for p in scene.placements
    )
    return render_scene(plan, seed=scene.seed, split=scene.split, world=scene.world)


def _require(scene: Scene, name: str) -> None:
    check_kind("scene", scene, Scene, expected="a Scene, as draw_scene gives it")
    if _as_name(name) not in scene.objects:
        got = show_value(name)
        raise InputError(f"name: expected one of {scene.objects}, got {got}")


def _as_name(value: object) -> str:
    """Return a text as it is, and no name for anything else: arrays compare oddly."""
    return value if isinstance(value, str) else ""
