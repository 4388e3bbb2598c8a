"""Claims about the procedural scenes: repeatable, disjoint, true to their labels."""

import time

import numpy as np
import pytest

from eah_interp.errors import InputError, SettingsError
from eah_interp.toy import (
    OBJECTS,
    World,
    draw_scene,
    draw_scenes,
    with_companions_turned,
    with_object_moved,
    with_object_recoloured,
    with_object_swapped,
    without_object,
)
from eah_interp.toy.render import SHAPES, draw_sprite
from eah_interp.toy.world import COLOURS, GROUPS, SPLITS, TYPICAL_COLOURS, group_of

CLEAN = World(difficulty=0.0)


def differing_pixels(first, second):
    return (first.image != second.image).any(axis=-1)


def test_every_object_has_a_group_a_shape_and_colours_of_its_own():
    assert len(OBJECTS) == len(set(OBJECTS)) == 20
    assert set(SHAPES) == set(OBJECTS) == set(TYPICAL_COLOURS)
    assert len(set(TYPICAL_COLOURS.values())) == len(OBJECTS)
    assert all(set(pair) <= set(COLOURS) for pair in TYPICAL_COLOURS.values())


def test_the_same_seed_draws_the_same_scene():
    first, second = draw_scene(7), draw_scene(7)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.placements == second.placements


def test_no_seed_draws_the_same_picture_in_two_splits():
    pictures = {
        scene.image.tobytes()
        for split in SPLITS
        for scene in draw_scenes(range(100), split=split)
    }
    assert len(pictures) == 100 * len(SPLITS)


def test_an_unknown_split_or_object_is_refused(as_users_run_it):
    with pytest.raises(SettingsError, match="split: expected one of"):
        draw_scene(0, split="dev")
    with pytest.raises(InputError, match="expected names in OBJECTS, got"):
        draw_scene(0, objects=["zebra"])


def test_a_removed_object_changes_pixels_inside_its_box_only():
    for scene in draw_scenes(range(40)):
        for index, name in enumerate(scene.objects):
            other = without_object(scene, name)
            rows, cols = np.nonzero(differing_pixels(scene, other))
            place = scene.placements[index]
            assert len(rows) > 0
            assert place.left <= cols.min()
            assert cols.max() < place.left + place.size
            assert place.top <= rows.min()
            assert rows.max() < place.top + place.size


def test_in_a_clean_world_a_box_is_the_extent_of_its_object():
    blank = without_object(draw_scene(3, objects=["cup"], world=CLEAN), "cup")
    for name in OBJECTS:
        scene = draw_scene(3, objects=[name], world=CLEAN)
        left, top, right, bottom = scene.boxes[0]
        rows, cols = np.nonzero(differing_pixels(scene, blank))
        # A pixel is the object's when half covered; thin tips fade beyond that.
        assert np.abs(np.array([cols.min() - left, rows.min() - top])).max() <= 2
        assert (
            np.abs(np.array([cols.max() + 1 - right, rows.max() + 1 - bottom])).max()
            <= 2
        )


def test_labels_name_the_objects_of_the_scene_and_lie_in_their_boxes():
    for scene in draw_scenes(range(100)):
        named = {OBJECTS[label - 1] for label in np.unique(scene.labels) if label}
        assert named <= set(scene.objects)
        for name, box in zip(scene.objects, scene.boxes, strict=True):
            rows, cols = np.nonzero(scene.labels == OBJECTS.index(name) + 1)
            left, top, right, bottom = (side / scene.world.patch_size for side in box)
            assert np.all((cols + 1 > left) & (cols < right))
            assert np.all((rows + 1 > top) & (rows < bottom))


def test_nearly_every_object_labels_a_patch():
    scenes = draw_scenes(range(200))
    n_objects = sum(len(scene.objects) for scene in scenes)
    n_labelled = sum(len(np.unique(scene.labels)) - 1 for scene in scenes)
    assert n_labelled > 0.98 * n_objects


def test_a_swapped_object_takes_the_place_of_the_other():
    scene = draw_scene(5, objects=["boat", "tree", "cup"])
    other = with_object_swapped(scene, "tree", by="car")
    assert other.objects == ("boat", "car", "cup")
    assert other.placements[1].left == scene.placements[1].left
    assert other.placements[0] == scene.placements[0]
    assert differing_pixels(scene, other).any()


def test_counterfactuals_of_absent_objects_are_refused():
    scene = draw_scene(5, objects=["boat", "tree"])
    with pytest.raises(InputError, match="name: expected one of"):
        without_object(scene, "car")
    with pytest.raises(InputError, match="by: expected an object not in"):
        with_object_swapped(scene, "boat", by="tree")


def test_the_prior_knob_sets_how_often_objects_share_a_group():
    def share(prior):
        pairs = [
            group_of(a) == group_of(b)
            for scene in draw_scenes(range(120), world=World(prior=prior))
            for a in scene.objects
            for b in scene.objects
            if a < b
        ]
        return sum(pairs) / len(pairs)

    assert share(1.0) == 1.0
    assert share(1.0) > share(0.85) + 0.1 > share(0.5) + 0.2


def test_difficulty_adds_noise_and_occlusion():
    def roughness(difficulty):
        scenes = draw_scenes(range(50), world=World(difficulty=difficulty))
        images = np.stack([scene.image.astype(float) for scene in scenes])
        return np.abs(np.diff(images[:, 0], axis=1)).mean()

    hidden = [
        1
        - np.mean(
            [min(s.visible) for s in draw_scenes(range(80), world=World(difficulty=d))]
        )
        for d in (0.0, 1.0)
    ]
    assert roughness(1.0) > 2 * roughness(0.0)
    assert hidden[1] > hidden[0]


def test_sprites_are_different_fill_their_square_and_cannot_be_written_to():
    drawn = [draw_sprite(name, 28)[0] for name in OBJECTS]
    for index, sprite in enumerate(drawn):
        assert 0.1 < sprite.mean() < 0.8
        assert all(np.abs(sprite - other).mean() > 0.05 for other in drawn[:index])
    with pytest.raises(ValueError, match="read-only"):
        drawn[0][0, 0] = 1


def test_other_sizes_of_picture_work():
    scene = draw_scene(0, world=World(image_size=64))
    assert scene.image.shape == (64, 64, 3)
    assert scene.labels.shape == (8, 8)


def test_a_batch_of_64_is_quick(as_users_run_it):
    draw_scenes(range(500))  # sprites are cached
    times = []
    for _ in range(5):
        start = time.process_time()
        draw_scenes(range(64))
        times.append(time.process_time() - start)
    assert min(times) < 0.1  # seconds of CPU; about 0.047 on a free core


def test_groups_are_of_one_size():
    assert {len(members) for members in GROUPS.values()} == {4}


def test_an_object_is_moved_and_nothing_else():
    scene = draw_scene(5, objects=["tree", "cup"])
    moved = with_object_moved(scene, "cup", left=1, top=2)
    own = [(p.left, p.top) for p in moved.placements]
    assert own == [(scene.placements[0].left, scene.placements[0].top), (1, 2)]
    assert moved.boxes[0] == scene.boxes[0]
    assert not np.array_equal(moved.image, scene.image)
    with pytest.raises(InputError, match="pixels wide: expected left and top"):
        with_object_moved(scene, "cup", left=79, top=0)


def test_an_object_is_recoloured_in_its_own_pixels_alone():
    scene = draw_scene(5, objects=["cup"], world=CLEAN)
    colour = "pink" if scene.placements[0].colour != "pink" else "green"
    painted = with_object_recoloured(scene, "cup", colour=colour, accent="black")
    changed = (painted.image != scene.image).any(-1)
    left, top, right, bottom = scene.boxes[0]
    assert changed.any()
    changed[top - 1 : bottom + 1, left - 1 : right + 1] = False  # soft edges
    assert not changed.any()
    with pytest.raises(InputError, match="colour: expected one of"):
        with_object_recoloured(scene, "cup", colour="transparent")


def test_companions_are_turned_in_their_places():
    scene = draw_scene(5, objects=["cup", "sun", "pan"])
    turned = with_companions_turned(scene, "spoon", group="sea")
    assert turned.objects == ("boat", "sun", "fish")
    places = [(p.left, p.top, p.size, p.colour) for p in scene.placements]
    assert [(p.left, p.top, p.size, p.colour) for p in turned.placements] == places
    with pytest.raises(InputError, match="expected a companion of boat"):
        with_companions_turned(scene, "boat", group="kitchen")
    with pytest.raises(InputError, match="group: expected one of"):
        with_companions_turned(scene, "spoon", group="kitchen")
