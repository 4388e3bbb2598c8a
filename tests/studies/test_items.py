"""Claims about items: each has a name and a picture, and a bad list is refused."""

import json
from collections import Counter

import pytest
from PIL import Image

from eah_interp.errors import InputError, SettingsError
from eah_interp.studies import Item, caption_items, pope_items, toy_items
from eah_interp.studies.items import check_items, open_image


def test_every_toy_scene_is_asked_a_yes_and_a_no_by_each_sampling_and_described():
    items = toy_items(3)
    assert Counter(item.task for item in items) == {"yes_no": 18, "caption": 3}
    by_kind = Counter(
        (item.kind, item.label) for item in items if item.label is not None
    )
    assert set(by_kind.values()) == {3}
    for item in items:
        assert item.task == "caption" or (item.object in item.truth) == item.label
    check_items(items)


def test_a_toy_item_s_picture_is_its_scene():
    from eah_interp.toy import draw_scene

    drawn = open_image(toy_items(2)[-1].image)
    assert drawn.tobytes() == draw_scene(1, split="test").pil().tobytes()


@pytest.mark.parametrize("values", [{"n_scenes": 0}, {"questions": False}])
def test_a_study_that_asks_nothing_is_refused(values):
    with pytest.raises(SettingsError, match="asks something"):
        toy_items(**({"n_scenes": 2, "captions": False} | values))


def test_pope_lines_become_items_and_a_bad_one_is_named(tmp_path):
    line = {
        "question_id": 1,
        "image": "a.jpg",
        "text": "Is there a dog?",
        "label": "no",
    }
    file = tmp_path / "coco_pope_random.json"
    file.write_text(json.dumps(line) + "\n" + json.dumps(line | {"label": "maybe"}))
    with pytest.raises(InputError, match=r"random.json:2 is no POPE question"):
        pope_items(file, tmp_path)
    (item,) = pope_items(file, tmp_path, suffix=" Yes or no?", limit=1)
    assert item.prompt == "Is there a dog? Yes or no?"
    assert item.label is False
    assert item.image == str(tmp_path / "a.jpg")
    assert item.cluster == "a.jpg"
    with pytest.raises(InputError, match="cannot read questions"):
        pope_items(tmp_path / "none.json", tmp_path)


def test_pictures_of_a_folder_are_described_in_the_order_of_their_names(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt"):
        Image.new("RGB", (2, 2)).save(tmp_path / name, format="PNG")
    assert [item.id for item in caption_items(tmp_path)] == ["a/caption", "b/caption"]
    assert len(caption_items(tmp_path, limit=1)) == 1
    with pytest.raises(InputError, match="no pictures in"):
        caption_items(tmp_path / "nowhere")


def test_items_without_a_name_of_their_own_are_refused():
    item = Item("1", "caption", "a.png", "What?")
    with pytest.raises(InputError, match="two items are called '1'"):
        check_items([item, item])
    with pytest.raises(InputError, match="at least 1 item"):
        check_items([])


def test_an_item_survives_its_mapping():
    item = toy_items(1)[0]
    assert Item.from_dict(json.loads(json.dumps(item.to_dict()))) == item
