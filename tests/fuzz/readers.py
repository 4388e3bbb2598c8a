"""File readers: POPE's, CHAIR's, COCO's, records, image files, and their scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from eah_interp import benchmarks
from eah_interp.benchmarks import records
from eah_interp.lvlm.images import read_image
from tests.fuzz.harness import Input, Target
from tests.fuzz.mutated import change_bytes, change_file
from tests.fuzz.values import Rng, change, input_of, odd, odd_text, pick

VOCABULARY = benchmarks.make_vocabulary([["cup", "mug"], ["tv", "television"], ["dog"]])
MAY_BE_NAN = frozenset(
    {"f1", "precision", "recall", "chair_s", "chair_i", "distinct_4grams"}
    | {"false_positives"}
)
"""Rates of nothing: no yes, no absent object, no mention, no four words. Their
docstrings say so."""

ASKED = ["Is there a cup in the image?", "Is there a dog in the image?"]
QUESTIONS = [
    {
        "question_id": i + 1,
        "image": f"COCO_val2014_{i:012}.jpg",
        "text": text,
        "label": w,
    }
    for i, (text, w) in enumerate(zip(ASKED * 3, ["yes", "no", "no"] * 2, strict=True))
]
ANSWERS = [
    {
        "question_id": row["question_id"],
        "question": row["text"],
        "answer": "Yes, a cup.",
    }
    for row in QUESTIONS
]
SAID = [{"image_id": i, "caption": "a dog near a mug"} for i in (1, 2, 3)]
SAID_OF_2018 = {
    "imgToEval": {str(i): {"image_id": i, "caption": "a tv"} for i in (1, 2)}
}
LISTS = {"1": ["cup"], "2": ["dog", "tv"], "3": []}
ROWS = [{"image": f"{i}.jpg", "objects": ["cup"]} for i in (1, 2)]
IMAGES = [{"id": i} for i in (1, 2, 3)]
INSTANCES = {
    "images": IMAGES,
    "annotations": [{"image_id": 1, "category_id": 4}],
    "categories": [{"id": 4, "name": "cup"}, {"id": 9, "name": "tv"}],
}
SAID_OF_COCO = {"images": IMAGES, "annotations": [{"image_id": 2, "caption": "a dog"}]}
SYNONYMS = "cup, mug\ntv, television\ndog, puppy\n"


def write(path: Path, content: Any, rng: Rng) -> Path:
    """Write JSON as lines, or as one value."""
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, list) and rng.random() < 0.7:
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(json.dumps(content))
    return path


def write_coco(folder: Path, rng: Rng) -> Path:
    for split in ("val", "train"):
        write(folder / f"instances_{split}2014.json", INSTANCES, rng)
        write(folder / f"captions_{split}2014.json", SAID_OF_COCO, rng)
    return folder


def reads(
    rng: Rng, folder: Path
) -> list[tuple[Callable[..., Any], Path, dict[str, Any]]]:
    """List each reader with a right file and its keywords."""
    path = folder / pick(rng, ["file.json", "file.jsonl"])
    content, function, options = pick(
        rng,
        [
            (
                QUESTIONS,
                benchmarks.read_pope_questions,
                {"limit": None, "with_images": True},
            ),
            (ANSWERS, benchmarks.read_pope_answers, {}),
            (SAID, benchmarks.read_captions, {"image_key": None, "repeats": "refuse"}),
            (SAID_OF_2018, benchmarks.read_captions, {"caption_key": None}),
            (LISTS, benchmarks.read_ground_truth, {"vocabulary": VOCABULARY}),
            (
                ROWS,
                benchmarks.read_ground_truth,
                {"vocabulary": VOCABULARY, "images": None},
            ),
            (SYNONYMS, benchmarks.read_synonyms, {}),
            (ANSWERS, records.read_records, {}),
            ("coco", benchmarks.read_ground_truth, {"vocabulary": VOCABULARY}),
        ],
    )
    if content == "coco":
        options |= {"lemmatize": str.split, "images": None, "year": 2014}
        return [(function, write_coco(folder, rng), options)]
    return [(function, write(path, content, rng), options)]


def make_reader(rng: Rng, folder: Path) -> Input:
    function, path, options = reads(rng, folder)[0]
    said = "as it was"
    if rng.random() < 0.85:
        one = pick(rng, sorted(path.iterdir())) if path.is_dir() else path
        said = change_file(rng, one)
    options = change(rng, options, most=1) if options else {}
    if "vocabulary" in options and not isinstance(
        options["vocabulary"], type(VOCABULARY)
    ):
        options["vocabulary"] = VOCABULARY
    given: Any = path
    if callable(
        options.get("lemmatize")
    ):  # what a user's own function raises is theirs
        options["lemmatize"] = str.split
    if rng.random() < 0.05 and function.__module__ != records.__name__:
        given = odd(rng) if rng.random() < 0.5 else folder / odd_text(rng).strip("/")
    # Records hold what their file holds, a NaN under a key that nobody reads included.
    then = len if function is records.read_records else None
    found = input_of(function, given, then=then, **options)
    return Input(found.call, f"{found.shown} [{said}]", MAY_BE_NAN)


def make_pope_score(rng: Rng, folder: Path) -> Input:
    """Files that were read, tables that were changed by hand, and their score."""
    questions = write(folder / "questions.json", QUESTIONS, rng)
    answers = write(folder / "answers.json", ANSWERS, rng)
    said = (
        change_file(rng, pick(rng, [questions, answers])) if rng.random() < 0.7 else ""
    )
    rule = pick(rng, ["pope", "opera", "pope", "opera", odd(rng)])

    def call() -> Any:
        asked = benchmarks.read_pope_questions(questions)
        told = benchmarks.read_pope_answers(answers)
        return benchmarks.score_answers(
            benchmarks.match_answers(asked, told, rule=rule)
        )

    return Input(call, f"score_answers [{said}]", MAY_BE_NAN)


def odd_table(rng: Rng, table: pd.DataFrame) -> Any:
    """Change a table: columns gone, of other types, rows gone or twice, NaN."""
    column = pick(rng, list(table.columns))
    ways: list[Callable[[], Any]] = [
        lambda: table.drop(columns=column),
        lambda: table.iloc[:0],
        lambda: pd.concat([table, table]),
        lambda: table.assign(**{column: None}),
        lambda: table.assign(**{column: float("nan")}),
        lambda: table.assign(**{column: 1}),
        lambda: table.assign(**{column: "text"}),
        lambda: table.assign(**{column: [[1]] * len(table)}),
        lambda: table.assign(**{column: [odd(rng)] * len(table)}),
        lambda: table.assign(**{column: table[column].astype("string")}),
        lambda: table.assign(**{column: table[column].astype("category")}),
        lambda: table.iloc[::-1],
        lambda: table.set_index(column),
        lambda: table.to_dict("records"),
        lambda: pd.concat([table, table[[column]]], axis=1),
        lambda: table.rename(columns=str.upper),
        lambda: odd(rng),
        lambda: table,
    ]
    try:
        return pick(rng, ways)()
    except (TypeError, ValueError):
        return None


def make_tables(rng: Rng, folder: Path) -> Input:
    questions = pd.DataFrame(QUESTIONS).assign(label=lambda t: t.label == "yes")
    questions["question"] = questions.text
    answers = pd.DataFrame({"question_id": questions.question_id, "answer": "Yes"})
    captions = pd.DataFrame({"image_id": [1, 2, 3], "caption": ["a dog", "a mug", ""]})
    truth: Any = {1: {"cup"}, 2: ["dog"], 3: set()}
    way = int(rng.integers(4))
    if way == 0:
        pair = [questions, answers]
        at = int(rng.integers(2))
        pair[at] = odd_table(rng, pair[at])
        return input_of(benchmarks.match_answers, *pair)
    if way == 1:
        matched = pd.DataFrame(
            {
                "label": [True, False] * 3,
                "says_yes": [True, True, False] * 2,
                "neither": False,
            }
        )
        table = odd_table(rng, matched)
        return input_of(benchmarks.score_answers, table, may_be_nan=MAY_BE_NAN)
    options = {"truth": truth, "vocabulary": VOCABULARY, "lemmatize": str.split}
    if way == 2:
        table = odd_table(rng, captions)
        if rng.random() < 0.3:
            options["truth"] = odd(rng)
        return input_of(benchmarks.find_mentions, table, **options)
    named = benchmarks.find_mentions(captions, **options)
    table = odd_table(rng, named)
    return input_of(benchmarks.score_captions, table, may_be_nan=MAY_BE_NAN)


def make_image_file(rng: Rng, folder: Path) -> Input:
    kind = pick(rng, ["png", "jpg", "gif", "bmp", "tiff", "webp"])
    mode = pick(rng, ["RGB", "L"] + ["P", "1", "RGBA", "LA", "I;16"] * (kind == "png"))
    size = pick(rng, [(8, 8), (1, 1), (40, 3)])
    path = folder / f"image.{kind}"
    Image.new(mode, size).save(path)
    if rng.random() < 0.8:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
    given: Any = pick(rng, [path, str(path), path.read_bytes()])
    return input_of(read_image, given, then=lambda image: image.size)


TARGETS = {
    "readers": Target(make_reader, 14_000),
    "readers.score": Target(make_pope_score, 2_500),
    "readers.tables": Target(make_tables, 4_000),
    "readers.images": Target(make_image_file, 2_000),
}
