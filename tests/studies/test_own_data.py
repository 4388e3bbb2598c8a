"""Claims about a user's own table: its rows become items, its columns come back."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import eah_interp as eah
from eah_interp.errors import InputError, SettingsError
from eah_interp.studies import (
    Condition,
    Study,
    StudyFile,
    StudyRun,
    caption_items,
    table_items,
)
from eah_interp.studies.items import hash_image, open_image
from eah_interp.toy import draw_scene

QUESTIONS = [
    ("a.png", "Is there a boat in the image?", "yes", "hard", 3),
    ("a.png", "Is there a car in the image?", "no", "easy", 4),
    ("sub/b.png", "Is there a cup in the image?", "No.", "easy", 5),
]
COLUMNS = ["photo", "asked", "truth_is", "difficulty", "source_row"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    draw_scene(0).pil().save(tmp_path / "a.png")
    draw_scene(1).pil().save(tmp_path / "sub/b.png")
    return tmp_path


NAMED = {"image": "photo", "question": "asked", "label": "truth_is"}


def write(folder, kind):
    """Write the questions as a file of a kind, or return them as a frame."""
    table = pd.DataFrame(QUESTIONS, columns=COLUMNS)
    path = folder / f"mine.{kind}"
    if kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "tsv":
        path.write_text("\ufeff" + table.to_csv(index=False, sep="\t"))
    elif kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    elif kind == "json":
        table.to_json(path, orient="records")
    else:
        return table.assign(photo=[str(folder / p) for p in table.photo])
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "frame"])
def test_every_kind_of_table_gives_the_same_items(kind, folder):
    items = table_items(write(folder, kind), **NAMED)
    assert [item.label for item in items] == [True, False, False]
    assert [item.prompt for item in items] == [row[1] for row in QUESTIONS]
    assert [Path(item.image) for item in items] == [folder / r[0] for r in QUESTIONS]
    assert [item.columns["difficulty"] for item in items] == ["hard", "easy", "easy"]
    assert [int(item.columns["source_row"]) for item in items] == [3, 4, 5]
    assert len({item.id for item in items}) == 3


LABELS = [True, "Yes", "TRUE", 1, 1.0, np.bool_(True), np.int64(1), "y"]


@pytest.mark.parametrize("label", LABELS, ids=repr)
def test_a_label_may_be_written_in_any_usual_way(label):
    frame = pd.DataFrame({"image": ["toy:test:0"], "question": ["?"]})
    frame["label"] = pd.Series([label], dtype=object)
    assert table_items(frame)[0].label is True


def test_results_are_joined_to_the_columns_of_the_table(folder, tmp_path):
    items = table_items(write(folder, "csv"), kind="difficulty", **NAMED)
    assert "difficulty" not in items[0].columns
    study = Study(
        eah.load(), items, [Condition("baseline"), Condition("EAH", eah.EAH())]
    )
    run = study.run(tmp_path / "run", progress=False)
    frame = run.frame()
    assert frame.groupby("source_row").condition.nunique().tolist() == [2, 2, 2]
    assert set(frame.kind) == {"hard", "easy"}
    again = StudyRun.load(tmp_path / "run").frame()
    assert again.equals(frame)
    # Two questions about one image are one draw.
    assert eah.studies.summarise(run).find("EAH", "accuracy", task="yes_no").n == 3


def test_captions_take_objects_as_lists_and_as_text(folder):
    frame = pd.DataFrame(
        {
            "image": ["a.png", "a.png", "a.png", "a.png"],
            "objects": [["cup", "car"], "cup, car", '["cup", "car"]', None],
        }
    )
    items = table_items(frame, task="caption", images=folder, prompt="What is there?")
    assert [item.truth for item in items] == [("cup", "car")] * 3 + [()]
    assert {item.prompt for item in items} == {"What is there?"}
    assert items[0].image == str(folder / "a.png")


def test_images_come_out_of_an_archive_and_by_pattern(folder):
    archive = folder / "photos.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in ("a.png", "sub/b.png"):
            opened.write(folder / name, name)
    items = table_items(write(folder, "csv"), images=archive, **NAMED)
    pixels = np.asarray(open_image(items[2].image))
    assert (pixels == np.asarray(open_image(str(folder / "sub/b.png")))).all()
    assert hash_image(items[2].image) == hash_image(str(folder / "sub/b.png"))
    listed = caption_items(archive)
    assert [Path(item.image).name for item in listed] == ["a.png", "b.png"]
    by_pattern = caption_items(folder / "**" / "*.png")
    assert len(by_pattern) == 2
    with pytest.raises(InputError, match=r"has no file 'c\.png'"):
        open_image(str(archive / "c.png"))
    (folder / "torn.zip").write_bytes(archive.read_bytes()[:100])
    with pytest.raises(InputError, match=r"torn\.zip"):
        caption_items(folder / "torn.zip")
    with pytest.raises(InputError, match=r"torn\.zip"):
        open_image(str(folder / "torn.zip" / "a.png"))


def test_a_study_file_names_a_table(folder):
    write(folder, "csv")
    text = {
        "items": {"source": "table", "file": "mine.csv", **NAMED, "limit": 2},
        "conditions": ["baseline", "eah"],
    }
    (folder / "study.yaml").write_text(json.dumps(text))
    planned = StudyFile.load(folder / "study.yaml")
    assert planned.items == table_items(folder / "mine.csv", limit=2, **NAMED)
    text["items"]["label"] = "difficulty"
    (folder / "study.yaml").write_text(json.dumps(text))
    with pytest.raises(InputError, match=r"row 1 of .*mine\.csv: expected yes or no"):
        StudyFile.load(folder / "study.yaml")


def test_an_address_is_fetched_only_where_a_folder_for_it_is_named(folder, monkeypatch):
    asked = []

    class Found:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def read(self, most):
            return (folder / "a.png").read_bytes()[:most]

    def answer(address, timeout):
        asked.append(address)
        return Found()

    monkeypatch.setattr("urllib.request.urlopen", answer)
    frame = pd.DataFrame({"image": ["https://a.example/x/a.png?s=1"] * 2})
    with pytest.raises(InputError, match="download='images'"):
        table_items(frame, task="caption")
    assert not asked
    items = table_items(frame, task="caption", download=folder / "kept")
    assert len(asked) == 1
    assert open_image(items[0].image).size == (80, 80)
    frame["image"] = "file:///etc/hostname"
    with pytest.raises(InputError, match="begins with https"):
        table_items(frame, task="caption", download=folder / "kept")


WRONG = {
    "no such column": ({"image": "picture"}, "nothing in picture"),
    "no label": ({"label": "difficulty"}, "expected yes or no"),
    "no limit": ({"limit": -1}, "limit"),
    "none at all": ({"limit": 0}, "no rows"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_by_row(changes, message, folder):
    with pytest.raises((InputError, SettingsError), match=message):
        table_items(write(folder, "csv"), **{**NAMED, **changes})


def test_files_that_are_no_tables_and_columns_of_ours_are_refused(folder):
    bad = {
        "a.csv": b'image,question\n"a.png,x\n',
        "b.csv": b"image,question\na,b,c\nd,e,f,g\n",
        "c.csv": b"\xff\xfe\x00",
        "d.jsonl": b"[1, 2]",
        "e.csv": b"",
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            table_items(folder / name)
    frame = pd.DataFrame({"image": ["a"], "question": ["?"], "condition": ["x"]})
    with pytest.raises(InputError, match="column 'condition' of their own"):
        table_items(frame)
    twice = pd.DataFrame([["a", "?", "b"]], columns=["image", "question", "image"])
    with pytest.raises(InputError, match="twice"):
        table_items(twice)


TORN = {
    "a comma": "image,question,label\na.png,Is it a cat, or a dog?,yes\n",
    "a cut": "image,question,label\na.png,Is it a cat?,yes\na.png,Is it a do",
    "one more in each": "image,question,label\na.png,b.png,Is it?,yes\n",
}


@pytest.mark.parametrize("text", TORN.values(), ids=TORN)
def test_a_row_with_other_than_a_value_a_column_is_refused(text, folder):
    """Values went to the next column, or a question lost its label, without a word."""
    path = folder / "torn.csv"
    path.write_text(text)
    with pytest.raises(
        InputError, match=r"row \d of .*expected 3 values, one for each"
    ):
        table_items(path)


def test_a_column_that_stands_twice_in_a_file_is_refused(folder):
    path = folder / "twice.csv"
    path.write_text("image,question,label,label\na.png,Is it?,yes,no\n")
    with pytest.raises(InputError, match="columns stand in the table twice: label"):
        table_items(path)


def test_a_spreadsheet_s_empty_columns_and_rows_are_none(folder):
    path = folder / "sheet.csv"
    path.write_text('image,question,label,,\na.png,"Is it,\nor not?",yes,,\n\n')
    (item,) = table_items(path)
    assert (item.prompt, item.label, dict(item.columns)) == (
        "Is it,\nor not?",
        True,
        {},
    )


@pytest.mark.parametrize(
    ("named", "columns"),
    [
        ({"label": "right"}, ["truth"]),
        ({}, ["Label"]),
        ({}, [" label"]),
        ({"task": "caption"}, ["Objects"]),
        ({"task": "caption", "objects": "there"}, ["things"]),
    ],
)
def test_a_label_s_column_that_is_called_otherwise_is_no_lack_of_one(named, columns):
    """Answers were kept and not scored, as if the table had no labels."""
    row = {"image": "toy:test:0", "question": "?", **dict.fromkeys(columns, "yes")}
    with pytest.raises(
        InputError, match=r"expected the column '\w+', got image, quest"
    ):
        table_items(pd.DataFrame([row]), **named)
    assert table_items(pd.DataFrame([row]).drop(columns=columns))[0].label is None


def test_addresses_that_differ_in_their_query_are_two_images(folder, monkeypatch):
    """The second was the first one's file."""

    class Found:
        def __init__(self, address):
            self.address = address

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def read(self, most):
            number = int(self.address[-1])
            path = folder / f"{number}.png"
            draw_scene(number).pil().save(path)
            return path.read_bytes()[:most]

    monkeypatch.setattr("urllib.request.urlopen", lambda address, **_: Found(address))
    long = "https://a.example/" + "x/" * 100
    for begins in ("https://a.example/get.png?id=", f"{long}1/", f"{long}2/"):
        frame = pd.DataFrame({"image": [f"{begins}{number}" for number in range(3)]})
        items = table_items(frame, task="caption", download=folder / "kept")
        assert [open_image(item.image).tobytes() for item in items] == [
            draw_scene(number).pil().tobytes() for number in range(3)
        ]
    assert len(list((folder / "kept").iterdir())) == 9
