"""Claims about building POPE questions: lawful, seeded, and the released ones."""

import json
from collections import Counter, defaultdict

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eah_interp.benchmarks import build_pope_questions
from eah_interp.benchmarks.pope_files import write_pope_questions
from eah_interp.errors import InputError, SettingsError

SAMPLINGS = ("random", "popular", "adversarial")
NAMES = ["person", "car", "chair", "book", "bottle", "cup", "apple", "oven", "umbrella"]
IMAGES = st.lists(
    st.lists(st.sampled_from(NAMES[:6]), min_size=1, max_size=8), min_size=1, max_size=9
).map(lambda lists: {f"{i}.jpg": names for i, names in enumerate(lists)})
ALL = {"all.jpg": NAMES[6:], "some.jpg": NAMES[5:], "few.jpg": NAMES[:4]}


@given(IMAGES, st.sampled_from(SAMPLINGS), st.integers(0, 99))
def test_half_are_absent_none_is_asked_twice_and_a_seed_fixes_all(
    images, sampling, seed
):
    images = images | ALL
    n = sum(len(set(names)) >= 3 for names in images.values())
    settings = {"sampling": sampling, "pairs": 3, "n_images": n, "seed": seed}
    table = build_pope_questions(images, **settings)
    assert len(table) == n * 2 * 3
    assert table.question_id.tolist() == list(range(1, len(table) + 1))
    for image, asked in table.groupby("image"):
        there = list(dict.fromkeys(images[image]))
        yes, no = (asked.object[asked.label == label] for label in ("yes", "no"))
        assert yes.tolist() == there[:3]
        assert len(no) == 3
        assert not set(no) & set(there)
        assert asked.object.is_unique
    pd.testing.assert_frame_equal(table, build_pope_questions(images, **settings))


def test_every_sampling_asks_about_the_same_images():
    images = {f"{i}.jpg": [NAMES[i % 9], NAMES[(i + 2) % 9]] for i in range(30)}
    settings = {"pairs": 2, "n_images": 7, "seed": 4}
    tables = [build_pope_questions(images, sampling=s, **settings) for s in SAMPLINGS]
    assert len({tuple(table.image) for table in tables}) == 1
    present = [tuple(table.object[table.label == "yes"]) for table in tables]
    assert len(set(present)) == 1
    other = build_pope_questions(images, sampling="random", **settings | {"seed": 5})
    assert other.object.tolist() != tables[0].object.tolist()


def test_popular_and_adversarial_ask_for_the_most_frequent():
    images = {
        "1": ["cup", "fork"],
        "2": ["cup", "fork"],
        "3": ["car", "person"],
        "4": ["person", "dog"],
        "5": ["person", "cup", "pan"],
        "6": ["cup"],
    }
    one = {"pairs": 1, "n_images": None}
    popular = build_pope_questions(images, sampling="popular", **one)
    rarely = build_pope_questions(images, sampling="adversarial", **one)
    absent = [dict(zip(t.image, t.object, strict=True)) for t in (popular, rarely)]
    assert absent[0]["3"] == "cup"
    assert absent[0]["1"] == "person"
    assert absent[1]["6"] == "fork"  # twice beside a cup, a pan once
    assert absent[1]["3"] in {"cup", "fork", "dog", "pan"}  # none is left beside a car


def test_released_questions_come_out_of_their_ground_truth(reference_data):
    """The order of objects that are not asked about is lost; it decides ties only."""
    folder = reference_data
    truth = json.loads((folder / "chair/chair_gt_objects_pattern.json").read_text())
    released = json.loads((folder / "pope/pope_llava15_13b.json").read_text())["splits"]
    asked = defaultdict(list)
    for _, image, name, label, _ in released["popular"]:
        asked[str(image)] += [name] if label == "yes" else []
    images = {i: list(dict.fromkeys(asked[i] + truth[i])) for i in asked}
    beside = Counter((a, b) for names in images.values() for a in names for b in names)
    for sampling, n_ties in (("popular", 0), ("adversarial", 6)):
        table = build_pope_questions(images, sampling=sampling, n_images=None)
        assert table.image.tolist() == [str(row[1]) for row in released[sampling]]
        assert table.label.tolist() == [row[3] for row in released[sampling]]
        theirs = [row[2] for row in released[sampling]]
        present = ["", *table.object[:-1]]
        pairs = zip(table.object, theirs, present, strict=True)
        ties = [(ours, name, there) for ours, name, there in pairs if ours != name]
        assert len(ties) == n_ties
        for ours, name, there in ties:
            assert beside[there, ours] == beside[there, name]


def test_questions_are_written_in_the_official_form(tmp_path):
    table = build_pope_questions(
        {"1.jpg": ["apple"], "2.jpg": ["cup"]},
        sampling="random",
        pairs=1,
        n_images=None,
        template="Do you see a {}?",
    )
    write_pope_questions(table, tmp_path / "q.json")
    lines = (tmp_path / "q.json").read_text().splitlines()
    first = {"question_id": 1, "image": "1.jpg", "text": "Do you see an apple?"}
    assert json.loads(lines[0]) == first | {"label": "yes"}
    assert len(lines) == 4


def test_images_of_too_few_or_too_many_objects_are_refused():
    with pytest.raises(InputError, match="500 images with at least 3 objects, got 1"):
        build_pope_questions({"1": ["a", "b", "c"], "2": ["a"]}, sampling="random")
    with pytest.raises(InputError, match="'1': expected an object that is absent"):
        build_pope_questions({"1": ["a"]}, sampling="random", pairs=1, n_images=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "rare"}, "sampling must be one of random, popular, adversarial"),
        ({"pairs": 0}, "pairs must be an integer of 1 or more, got 0"),
        ({"n_images": 0}, "n_images must be an integer of 1 or more, got 0"),
        ({"template": "Is there a thing?"}, "template must have one {}"),
    ],
)
def test_impossible_settings_are_refused(settings, message, as_users_run_it):
    with pytest.raises(SettingsError, match=message):
        build_pope_questions(ALL, **{"sampling": "random"} | settings)
