"""Claims about ground truth: COCO's folders and lists of objects, and their errors."""

import json

import pytest

from eah_interp.benchmarks import make_vocabulary, read_ground_truth
from eah_interp.errors import InputError

VOCABULARY = make_vocabulary([["cup", "mug"], ["tv", "television"], ["dog"]])
CATEGORIES = [{"id": 4, "name": "cup"}, {"id": 9, "name": "tv"}]
INSTANCES = {
    "val": [(1, 4), (1, 4), (1, 9)],
    "train": [(5, 9)],
}
CAPTIONS = {
    "val": [(1, "a dog near a mug"), (2, "a television"), (3, "nothing")],
    "train": [(5, "a dog"), (6, "a mug")],
}


def save_coco(folder, split, year=2014, *, instances=True, captions=True):
    images = [{"id": image} for image in ((1, 2, 3, 4) if split == "val" else (5, 6))]
    if instances:
        marked = [{"image_id": i, "category_id": c} for i, c in INSTANCES[split]]
        content = {"images": images, "annotations": marked, "categories": CATEGORIES}
        path = folder / f"instances_{split}{year}.json"
        path.write_text(json.dumps(content))
    if captions:
        said = [{"image_id": i, "caption": text} for i, text in CAPTIONS[split]]
        content = {"images": images, "annotations": said}
        (folder / f"captions_{split}{year}.json").write_text(json.dumps(content))


def read(path, **options):
    options = {"vocabulary": VOCABULARY, "lemmatize": str.split} | options
    return read_ground_truth(path, **options)


def test_objects_are_those_of_segmentations_and_of_captions(tmp_path):
    save_coco(tmp_path, "val")
    save_coco(tmp_path, "train")
    assert read(tmp_path) == {
        1: {"cup", "tv", "dog"},
        2: {"tv"},
        3: set(),
        4: set(),
        5: {"tv", "dog"},
        6: {"cup"},
    }
    assert read(tmp_path, images=[2, 5, 99]) == {2: {"tv"}, 5: {"tv", "dog"}}


def test_train_is_needed_only_for_what_is_not_in_val(tmp_path):
    save_coco(tmp_path, "val")
    assert set(read(tmp_path, images=[1, 4])) == {1, 4}
    with pytest.raises(InputError, match=r"COCO's instances_train2014\.json in"):
        read(tmp_path, images=[1, 5])


def test_other_years_are_read_where_named(tmp_path):
    save_coco(tmp_path, "val", 2017)
    assert read(tmp_path, images=[2], year=2017) == {2: {"tv"}}
    with pytest.raises(InputError, match=r"2014\.json .* 'instances_val2017\.json'\]"):
        read(tmp_path, images=[2])


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"7": ["mug", "cup"], "COCO_val2014_000000000008.jpg": []}),
        '{"image": "7.jpg", "objects": ["mug"]}\n{"image": "8.jpg", "objects": []}',
        '[{"image_id": 7, "objects": ["cup"]}, {"image_id": 8, "objects": []}]',
    ],
)
def test_lists_of_objects_are_ground_truth_too(content, write):
    path = write("truth.json", content)
    assert read(path) == {7: {"cup"}, 8: set()}
    assert read(path, images=[8, 9]) == {8: set()}


def test_a_missing_folder_or_half_of_it_says_where_it_is_had(tmp_path):
    url = r"http://images\.cocodataset\.org/annotations/annotations_trainval2014\.zip"
    with pytest.raises(InputError, match=f"no such file or folder; .*{url}"):
        read(tmp_path / "coco")
    with pytest.raises(InputError, match=f"got no annotations; .*{url}"):
        read(tmp_path)
    save_coco(tmp_path, "val", captions=False)
    with pytest.raises(InputError, match=r"captions_val2014\.json .*instances_val2014"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"annotations": []}'])
def test_files_that_are_not_coco_s_are_refused(content, tmp_path):
    save_coco(tmp_path, "val")
    (tmp_path / "instances_val2014.json").write_text(content)
    with pytest.raises(InputError, match="expected COCO annotations, got no"):
        read(tmp_path)


def test_objects_without_a_name_in_the_vocabulary_are_refused(tmp_path, write):
    save_coco(tmp_path, "val")
    with pytest.raises(InputError, match=r"instances_val2014\.json: .* got 'tv'; add"):
        read(tmp_path, vocabulary=make_vocabulary([["cup"]]))
    with pytest.raises(InputError, match=r"truth\.json:1: .* got 'sun'"):
        read(write("truth.json", '{"1": ["sun"]}'))


@pytest.mark.parametrize(
    "content",
    ['{"1": "cup"}', '{"1": [2]}', '{"image": "1", "objects": 3}', '{"a": 1}'],
)
def test_lists_that_are_none_are_refused(content, write):
    with pytest.raises(InputError, match=r"truth\.json:1: expected a list of objects"):
        read(write("truth.json", content))
