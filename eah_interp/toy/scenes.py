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
from eah_interp.toy.world import (
    COLOURS,
    GROUPS,
    OBJECTS,
    SPLITS,
    Split,
    World,
    draw_objects,
    group_of,
    plan_scene,
)


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


@by_name
def with_object_moved(scene: Scene, name: str, *, left: int, top: int) -> Scene:
    """Redraw a scene with one object somewhere else, and nothing else changed.

    Args:
        scene: The factual scene.
        name: The object to move; it must be in the scene.
        left: Column of its left edge, in pixels.
        top: Row of its top edge, in pixels.

    Returns:
        The counterfactual scene: same size, colours, background and other objects.

    Raises:
        InputError: The scene has no such object, or it would not be whole there.
        SettingsError: A place that is no integer >= 0.

    Example:
        >>> scene = draw_scene(0, objects=["boat"])
        >>> with_object_moved(scene, "boat", left=0, top=0).placements[0].left
        0
    """
    _require(scene, name)
    left, top = check_integer("left", left), check_integer("top", top)
    own = next(p for p in scene.placements if p.name == name)
    most = scene.world.image_size - own.size
    if max(left, top) > most:
        msg = (
            f"the {name} is {own.size} pixels wide: expected left and top of at most "
            f"{most}, got {left} and {top}"
        )
        raise InputError(msg)
    return _redraw(scene, name, left=left, top=top)


@by_name
def with_object_recoloured(
    scene: Scene, name: str, *, colour: str, accent: str | None = None
) -> Scene:
    """Redraw a scene with one object in another colour, and nothing else changed.

    Args:
        scene: The factual scene.
        name: The object to paint; it must be in the scene.
        colour: Of its body, a word of `COLOURS`.
        accent: Of its accent; as it was when None.

    Returns:
        The counterfactual scene.

    Raises:
        InputError: The scene has no such object, or there is no such colour.

    Example:
        >>> scene = draw_scene(0, objects=["boat"])
        >>> with_object_recoloured(scene, "boat", colour="pink").placements[0].colour
        'pink'
    """
    _require(scene, name)
    colours = {"colour": colour} | ({} if accent is None else {"accent": accent})
    for what, word in colours.items():
        if _as_name(word) not in COLOURS:
            got = show_value(word)
            raise InputError(f"{what}: expected one of {tuple(COLOURS)}, got {got}")
    return _redraw(scene, name, **colours)


@by_name
def with_companions_turned(scene: Scene, name: str, *, group: str) -> Scene:
    """Redraw a scene with what an object usually stands with swapped for another group.

    Every other object of the same group as `name`, which makes `name` likely, becomes
    one of `group`, in the same place, size and colours: the companions' prior is
    turned, the object (there or not) stays.

    Args:
        scene: The factual scene.
        name: The object; it need not be in the scene.
        group: The group that takes the companions' places, a word of `GROUPS`.

    Returns:
        The counterfactual scene.

    Raises:
        InputError: There is no such object or group, the group is the object's own,
            no companion is in the scene, or the group has too few other objects.

    Example:
        >>> scene = draw_scene(0, objects=["spoon", "cup", "sun"])
        >>> with_companions_turned(scene, "spoon", group="sea").objects
        ('spoon', 'boat', 'sun')
    """
    check_kind("scene", scene, Scene, expected="a Scene, as draw_scene gives it")
    if _as_name(name) not in OBJECTS:
        got = show_value(name)
        raise InputError(f"name: expected one of OBJECTS, got {got}")
    own = group_of(name)
    others = tuple(one for one in GROUPS if one != own)
    if _as_name(group) not in others:
        got = show_value(group)
        raise InputError(f"group: expected one of {others}, got {got}")
    companions = [one for one in scene.objects if one in GROUPS[own] and one != name]
    free = [one for one in GROUPS[group] if one not in scene.objects]
    if not companions or len(free) < len(companions):
        msg = (
            f"expected a companion of {name} ({', '.join(GROUPS[own])}) in the scene, "
            f"and as many of {group} that are not: got {len(companions)} and "
            f"{len(free)}; the scene has {', '.join(scene.objects)}"
        )
        raise InputError(msg)
    turned = dict(zip(companions, free, strict=False))
    plan = tuple(
        dataclasses.replace(p, name=turned.get(p.name, p.name))
        for p in scene.placements
    )
    return render_scene(plan, seed=scene.seed, split=scene.split, world=scene.world)


def _redraw(scene: Scene, name: str, **changes: int | str) -> Scene:
    plan = tuple(
        dataclasses.replace(p, **changes)  # type: ignore[arg-type]
        if p.name == name
        else p
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
