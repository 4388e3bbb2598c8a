"""Claims about items: each has a name and an image, and a bad list is refused."""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from eah_interp.benchmarks import read_pope_questions
from eah_interp.errors import InputError, SettingsError
from eah_interp.studies import (
    Item,
    StudyFile,
    StudyRun,
    caption_items,
    compare_runs,
    pope_items,
    toy_items,
)
from eah_interp.studies.items import check_items, open_image
from tests.studies.common import content, toy_study


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


def test_a_toy_item_s_image_is_its_scene():
    from eah_interp.toy import draw_scene

    drawn = open_image(toy_items(2)[-1].image)
    assert drawn.tobytes() == draw_scene(1, split="test").pil().tobytes()


@pytest.mark.parametrize("values", [{"n_scenes": 0}, {"questions": False}])
def test_a_study_that_asks_nothing_is_refused(values):
    with pytest.raises(SettingsError, match="asks something"):
        toy_items(**({"n_scenes": 2, "captions": False} | values))


ASKED = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "no"},
    {"question_id": 2, "image": "b.jpg", "text": "Is there a cat?", "label": "yes"},
]


def lines(rows):
    return "\n".join(map(json.dumps, rows))


@pytest.fixture
def doors(tmp_path):
    """Write questions; return how `score` and how a study reads them."""

    def write(content):
        file = tmp_path / "coco_pope_random.json"
        file.write_text(content, encoding="utf-8")
        return (lambda: read_pope_questions(file)), (lambda: pope_items(file, "images"))

    return write


@pytest.mark.parametrize(
    "content",
    [
        lines(ASKED),
        lines(ASKED) + "\n\n",
        json.dumps(ASKED, indent=4),
        "\n".join(json.dumps(row, indent=1) for row in ASKED),
        "\ufeff" + lines(ASKED),
        lines({**row, "label": f" {row['label'].title()}"} for row in ASKED),
        lines(
            {"question": row["text"], "image": row["image"], "label": row["label"]}
            for row in ASKED
        ),
        lines({**row, "object": "dog"} for row in ASKED),
    ],
    ids=["lines", "blank", "array", "apart", "bom", "label", "question", "more"],
)
def test_a_study_reads_every_file_of_questions_that_score_reads(content, doors):
    score, study = doors(content)
    table, items = score(), study()
    assert [item.prompt for item in items] == table.text.tolist()
    assert [item.label for item in items] == (table.label == "yes").tolist()
    assert [item.id for item in items] == ["coco_pope_random/1", "coco_pope_random/2"]
    assert [item.image for item in items] == ["images/a.jpg", "images/b.jpg"]
    assert [item.cluster for item in items] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines([ASKED[0], ASKED[1] | {"label": "maybe"}]), r"random.json:2: .*'maybe'"),
        (lines([{"image": "a.jpg", "label": "no"}]), r":1: .*'text' or 'question'"),
        (lines([ASKED[0], ASKED[0]]), r":2: question_id 1 stands in .*:1 already"),
        (lines(ASKED)[:-9], r":2: not JSON: .* cut off"),
        ("[1]", r":1: expected a JSON object"),
        ("", "empty file; the questions of the paper are at https://"),
    ],
    ids=["label", "text", "twice", "cut off", "number", "empty"],
)
def test_a_study_refuses_the_questions_that_score_refuses(content, message, doors):
    said = []
    for read in doors(content):
        with pytest.raises(InputError, match=message) as refusal:
            read()
        said.append(str(refusal.value))
    assert said[0] == said[1]


def test_a_study_s_questions_name_their_images_and_only_the_first_may_do(tmp_path):
    file = tmp_path / "q.json"
    file.write_text(lines([ASKED[0], ASKED[1] | {"label": "maybe"}]))
    (item,) = pope_items(file, tmp_path, suffix=" Yes or no?", limit=1)
    assert item.prompt == "Is there a dog? Yes or no?"
    assert item.image == str(tmp_path / "a.jpg")
    file.write_text(lines([ASKED[0], {"text": "Is there?", "label": "no"}]))
    with pytest.raises(InputError, match=r"q.json:2: expected the key 'image', got"):
        pope_items(file, tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        pope_items(tmp_path / "none.json", tmp_path)


def test_images_of_a_folder_are_described_in_the_order_of_their_names(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt"):
        Image.new("RGB", (2, 2)).save(tmp_path / name, format="PNG")
    assert [item.id for item in caption_items(tmp_path)] == ["a/caption", "b/caption"]
    assert len(caption_items(tmp_path, limit=1)) == 1
    with pytest.raises(InputError, match="no images in"):
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


CHAT = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
)


def test_an_item_of_messages_survives_its_mapping_and_can_be_read():
    item = Item("1", "caption", "toy:test:1", CHAT)
    assert Item.from_dict(json.loads(json.dumps(item.to_dict()))) == item
    assert item in {item}
    assert item.prompt == CHAT
    assert item.prompt_text == "system: Be brief.\nuser: What?"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"type": "image", "path": "b.png"}], "item '1' have 1 images: expected one"),
        ([{"type": "image"}, {"type": "image"}], "item '1' have 2 images"),
        ([{"type": "video"}], "type 'video': expected 'text' or 'image'"),
        ([{"type": "text", "text": "?", "more": Path("a")}], "cannot be saved"),
    ],
)
def test_items_whose_messages_show_other_images_are_refused(parts, message):
    with pytest.raises(InputError, match=message):
        Item("1", "caption", "a.png", [{"role": "user", "content": parts}])


def test_a_study_of_messages_answers_as_the_same_text_does(toy, tmp_path):
    scenes = [f"toy:test:{seed}" for seed in range(2)]
    told = [
        Item(image, "caption", image, [CHAT[1] | {"content": content}])
        for image, content in zip(
            scenes, ["Describe the image.", describe_parts()], strict=True
        )
    ]
    written = [Item(image, "caption", image, "Describe the image.") for image in scenes]
    toy_study(toy, items=told).run(tmp_path / "told", progress=False)
    toy_study(toy, items=written).run(tmp_path / "written", progress=False)
    one, other = content(tmp_path / "told"), content(tmp_path / "written")
    assert one.drop(columns="prompt").equals(other.drop(columns="prompt"))
    assert set(one.prompt) == {"user: Describe the image."}
    again = StudyRun.load(tmp_path / "told")
    assert again.manifest.items != StudyRun.load(tmp_path / "written").manifest.items
    with pytest.raises(SettingsError, match=r"another study \(items"):
        compare_runs(again, StudyRun.load(tmp_path / "written"))
    compare_runs(again, again)


def describe_parts():
    return [{"type": "image"}, {"type": "text", "text": "Describe the image."}]


def test_a_study_file_takes_messages(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    file = tmp_path / "study.yaml"
    file.write_text(
        "items: {source: captions, images: ., prompt: [{role: system, content: Be "
        "brief.}, {role: user, content: [{type: image}, "
        "{type: text, text: 'What?'}]}]}\n"
        "conditions: [baseline]\n"
    )
    (item,) = StudyFile.load(file).items
    assert item.prompt == CHAT
    file.write_text(file.read_text().replace("type: image", "type: video"))
    with pytest.raises(InputError, match=r"items from captions.*type 'video'"):
        StudyFile.load(file)
