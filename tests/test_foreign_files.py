"""Claims about files that others wrote: each is read, or refused by name and line.

`mutate` and `damage` make thousands of such files from good ones; what comes out of a
reader is its result or an error of the package's, never one of Python's.
"""

import copy
import json
import random
import shutil
from pathlib import Path

import pandas as pd
import pytest

import eah_interp as eah
from eah_interp.benchmarks import amber, hallusionbench, mme, mmvp
from eah_interp.benchmarks.chair_files import read_captions, read_ground_truth
from eah_interp.benchmarks.mentions import make_vocabulary, read_synonyms
from eah_interp.benchmarks.pope_files import read_pope_answers, read_pope_questions
from eah_interp.errors import EAHError, InputError
from eah_interp.foreign_files import read_json, read_parquet
from eah_interp.results import Result
from eah_interp.studies import StudyFile, StudyRun, mme_items, table_items
from eah_interp.studies.conditions import Condition
from eah_interp.studies.progress import measure_progress
from tests.fuzz import evidence, outputs, readers
from tests.fuzz.harness import find_bad

SAVED = Path(__file__).parent / "saved"
VOCABULARY = make_vocabulary([["dog", "puppy"], ["cat"]])

WRONG = {
    "cut off": ('{"a": 1', r":1: not JSON: "),
    "no JSON": ('{"a": 1,\n b}', r":2: not JSON: "),
    "more": ('{"a": 1}\n{"a": 2}', r":2: not JSON: Extra data"),
    "deep lists": ('{"a":\n' + "[" * 5000, r":2: expected values nested up to 64 deep"),
    "closed lists": (
        "\n" + "[" * 99 + "]" * 99,
        r":2: expected values nested up to 64",
    ),
    "deep objects": ('{"a":' * 5000, r":1: expected values nested up to 64 deep"),
    "an integer": ('{"a":\n' + "9" * 5000 + "}", r":2: expected integers .* of 5000"),
    "a key twice": (
        '{"a": 1,\n"b": 2,\n"a": 3}',
        r":3: expected every key once, got 'a'",
    ),
    "half a character": ('{"a":\n"\\ud800"}', r":2: expected text, got half a char"),
    "the other half": ('{"\\udc00": 1}', r":1: expected text, got half a character"),
    "no UTF-8": (b'{"a":\n"\xff"}', r":2: expected text in UTF-8, got byte 7"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), r":1: expected text in UTF-8, got byte 0"),
    "a NUL": ('{"a":\n\x00}', r":2: not JSON: "),
    "nothing": ("", r":1: not JSON: "),
}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_in_json_is_named_with_its_line(tmp_path, content, message):
    path = write(tmp_path / "a.json", content)
    with pytest.raises(InputError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))


def test_what_is_odd_but_right_is_read(tmp_path):
    path = tmp_path / "a.json"
    whole = {"a": "\U0001f600 \\ud800", "b": 10**39, "c": [[1.5]], "d": "a" * 99}
    write(path, b"\xef\xbb\xbf" + json.dumps(whole).encode() + b"\r\n")
    assert read_json(path) == whole
    write(path, json.dumps({"a": float("nan"), "b": "9" * 99 + "0." + "3" * 60}))
    assert read_json(path)["a"] != read_json(path)["a"]
    deep = json.loads("[" * 64 + "]" * 64)
    assert read_json(write(path, json.dumps(deep))) == deep


def test_a_name_that_no_file_can_have_is_an_error_of_ours(tmp_path):
    for name in ("a\x00b", "x" * 5000, "."):
        with pytest.raises(InputError, match="cannot read"):
            read_json(tmp_path / name)


def test_a_table_holds_what_was_asked_for(tmp_path):
    path = tmp_path / "a.parquet"
    kinds = {"name": "text", "n": "integer", "x": "number"}
    table = pd.DataFrame({"name": ["a", None], "n": [1, 2], "x": [1.5, None], "m": 0})
    table.to_parquet(path)
    assert list(read_parquet(path, kinds)) == list(kinds)
    for changes, message in (
        ({"name": 1}, "expected text in the column 'name', got int64"),
        ({"n": 1.5}, "expected integer in the column 'n', got double"),
        ({"x": "a"}, "expected number in the column 'x', got"),
        ({"x": [[1], [2]]}, "expected number in the column 'x', got list"),
    ):
        table.assign(**changes).to_parquet(path)
        with pytest.raises(InputError, match=message):
            read_parquet(path, kinds)
    table.drop(columns="x").to_parquet(path)
    with pytest.raises(InputError, match="expected the columns name, n, x, got"):
        read_parquet(path, kinds)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError):
        read_parquet(path, kinds)


# ---- COCO's annotations: every entry is checked, and named by its place in the list.

INSTANCES = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 5, "name": "dog"}, {"id": 6, "name": "cat"}],
    "annotations": [
        {"image_id": 1, "category_id": 5},
        {"image_id": 2, "category_id": 6},
    ],
}
CAPTIONS = {
    "images": [{"id": 1}, {"id": 2}],
    "annotations": [
        {"image_id": 1, "caption": "a dog"},
        {"image_id": 2, "caption": "-"},
    ],
}


def read_coco(folder, instances, captions=CAPTIONS):
    write(folder / "instances_val2014.json", json.dumps(instances))
    write(folder / "captions_val2014.json", json.dumps(captions))
    return read_ground_truth(
        folder, vocabulary=VOCABULARY, images={1, 2}, lemmatize=str.split
    )


def test_entries_of_coco_are_named_by_their_place(tmp_path):
    assert read_coco(tmp_path, INSTANCES) == {1: {"dog"}, 2: {"cat"}}
    places = [
        (INSTANCES, "images", 1, ("id",)),
        (INSTANCES, "categories", 1, ("id", "name")),
        (INSTANCES, "annotations", 1, ("image_id", "category_id")),
        (CAPTIONS, "images", 0, ("id",)),
        (CAPTIONS, "annotations", 1, ("image_id", "caption")),
    ]
    for whole, key, number, names in places:
        file = "instances" if whole is INSTANCES else "captions"
        where = rf"{file}_val2014\.json: {key}\[{number}\]: expected "
        changed = [(None, value) for value in (None, 3, "a", [], [1], True)]
        changed += [
            (name, value)
            for name in names
            for value in (None, [], {}, True, 1.5, [1], {"a": 1}, "missing")
            if not (isinstance(value, str) and name == "caption")
        ]
        for name, value in changed:
            wrong = copy.deepcopy(whole)
            if name is None:
                wrong[key][number] = value
            elif value == "missing":
                del wrong[key][number][name]
            else:
                wrong[key][number][name] = value
            with pytest.raises(InputError, match=where):
                read_coco(
                    tmp_path,
                    wrong if whole is INSTANCES else INSTANCES,
                    wrong if whole is CAPTIONS else CAPTIONS,
                )
    for changes, message in (
        (
            {"annotations": [{"image_id": 1, "category_id": 9}]},
            "of 2 categories, got 9",
        ),
        ({"categories": [INSTANCES["categories"][0]] * 2}, r"\[1\]: expected each cat"),
        ({"images": {}}, r"expected COCO annotations, got no \['images'\]"),
    ):
        with pytest.raises(InputError, match=message):
            read_coco(tmp_path, {**INSTANCES, **changes})


# ---- Names that no file has.


@pytest.mark.parametrize("name", ["x" * 256, "é" * 200, "a/" * 3000], ids=len)
def test_a_path_that_is_too_long_is_refused_at_every_door(name):
    """Asked whether such a file is there, a system may raise and not say no."""
    for read in (
        read_captions,
        read_pope_questions,
        read_synonyms,
        lambda path: read_ground_truth(path, vocabulary=VOCABULARY),
        mme.read_mme,
        table_items,
        lambda path: mme_items(SAVED / "mme", images=path),
        Result.load,
        StudyRun.load,
        StudyFile.load,
    ):
        with pytest.raises(EAHError, match=r"too long|cannot read"):
            read(name)


# ---- Numbers that are none: Python's JSON has them, and 1e999 is one.


def attempt(read, path):
    """Read a file, or return why it is refused."""
    try:
        return read(path)
    except EAHError as error:
        return error


def put_words(content, words=("NaN", "Infinity", "-Infinity", "1e999")):
    """Yield JSON in which one value is a word: of each key the first, each word."""
    keys = {}
    for place in list_places(content):
        keys.setdefault(tuple(key for key in place if isinstance(key, str)), place)
    for place in filter(None, keys.values()):
        changed = copy.deepcopy(content)
        inside = changed
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = "@@"
        for word in words:
            yield place, json.dumps(changed).replace('"@@"', word)


OURS = readers.VOCABULARY
USED = {
    "POPE questions": (
        readers.QUESTIONS,
        lambda path: read_pope_questions(path, with_images=True),
    ),
    "POPE answers": (readers.ANSWERS, read_pope_answers),
    "captions": (readers.SAID, read_captions),
    "captions of 2018": (readers.SAID_OF_2018, read_captions),
    "objects": (
        readers.LISTS,
        lambda path: read_ground_truth(path, vocabulary=OURS),
    ),
    "rows of objects": (
        readers.ROWS,
        lambda path: read_ground_truth(path, vocabulary=OURS),
    ),
    "AMBER's annotations": (outputs.NOTES, amber.read_amber_annotations),
    "AMBER's answers": (outputs.GIVEN, amber.read_amber_answers),
    "AMBER's relations": (
        outputs.RELATIONS,
        lambda path: amber.read_amber_words(path, path),
    ),
    "HallusionBench": (
        outputs.HALLUSION,
        lambda path: hallusionbench.read_hallusionbench(path, answers=True),
    ),
    "MMVP's answers": (outputs.CHOSEN, mmvp.read_mmvp_answers),
    "a table": ([row | {"own": 1} for row in evidence.OWN], table_items),
}


@pytest.mark.parametrize("name", USED)
def test_a_number_that_is_none_is_refused_where_it_is_used(name, tmp_path):
    content, read = USED[name]
    path = tmp_path / "file.json"
    for place, text in put_words(content):
        path.write_text(text)
        found = attempt(read, path)
        if isinstance(found, EAHError):
            assert str(path) in str(found), place
        else:  # it stands under a key that the reader passes over, or counts as nothing
            assert not list(find_bad(found, "", frozenset())), (place, text)


@pytest.mark.parametrize(
    "name", ["heads-patched", "patterns-plain", "approximation-of-plain"]
)
def test_a_saved_result_holds_nan_only_where_it_has_fractions(name, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(SAVED / "results" / name, copied)
    content = json.loads((copied / "result.json").read_text())
    for place, text in put_words(content, words=("NaN",)):
        (copied / "result.json").write_text(text)
        found = attempt(Result.load, copied)
        held = find_bad(found, "", frozenset({"exact", "error", "errors"}))
        assert not list(held), place


# ---- Thousands of files.

ODD = [
    *(None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**30, 10**400),
    *("", "x", "\x00", "a/../../b", "..", ".", "\ud800", "é" * 300, "x" * 5000),
    *([], {}, [[]], [None], {"a": 1}, [1, "a"], {"kind": []}, ["x", ["y"]]),
    *("toy:", "toy:a:b", "CON", "NaN", "2001-99-99", [[[[[[1]]]]]]),
]
PIECES = [
    *(b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b"[" * 5000, b'{"a":' * 5000, b"9" * 5000),
    *(b"NaN", b"-Infinity", b"\\ud800", b'"', b"\\", b"}", b"]", b",", b":", b"1e999"),
    *(b"\r\n\r", b"\xe2\x80\xa8", b"&a ", b"*a", b"!!int x", b"!!bool 3", b"<<: "),
    *(b"!!timestamp z", b"!!python/object:os.system x", b"2001-99-99", b"? ", b"|"),
    *(b"\t", b"0x", b"12:99999999", b'"\\U00110000"', b'"\\ud800"', b'"\\0"'),
]


def list_places(value, place=()):
    yield place
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value[:40]) if isinstance(value, list) else inner
    for key, child in inner:
        yield from list_places(child, (*place, key))


def mutate(value, draw):
    """Return a value in which some parts are gone, or something odd."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        *way, last = draw.choice([*list_places(value)][1:] or [(None,)])
        if last is None or draw.random() < 0.02:
            return draw.choice(ODD)
        inside = value
        for key in way:
            inside = inside[key]
        what = draw.random()
        if what < 0.7:
            inside[last] = copy.deepcopy(draw.choice(ODD))
        elif what < 0.85 or isinstance(inside, list):
            del inside[last]
        else:
            names = ["new", "name", "kind", "a" * 300, "image", "\x00", "\ud800"]
            inside[draw.choice(names)] = inside.pop(last)
    return value


def damage(content, draw):
    """Return bytes of which some are gone, or others."""
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 4])):
        place, what = draw.randrange(len(content) + 1), draw.random()
        if what < 0.5:
            content[place:place] = draw.choice(PIECES)
        elif what < 0.7:
            del content[place : place + draw.choice([1, 1, 3, 20])]
        elif what < 0.9:
            content[place : place + 1] = bytes([draw.randrange(256)])
        else:
            del content[place:]
    return bytes(content)


def spoil(value, draw, *, lines=False):
    """Return the JSON of a value that was mutated, damaged, or both."""
    value = mutate(value, draw) if draw.random() < 0.8 else value
    many = lines and isinstance(value, list)
    text = "\n".join(map(json.dumps, value)) if many else json.dumps(value)
    return damage(text.encode(), draw) if draw.random() < 0.35 else text.encode()


QUESTIONS = [
    {"question_id": n, "image": f"a_{n}.jpg", "text": "Is there a dog?", "label": "yes"}
    for n in range(4)
]
ANSWERS = [{"question_id": n, "question": "a dog?", "answer": "Yes"} for n in range(4)]
TOLD = [{"image_id": n, "caption": "a dog and a cat"} for n in range(4)]
OF_2018 = {"imgToEval": {str(n): {"image_id": n, "caption": "-"} for n in range(3)}}
LISTS = ({"1": ["dog"], "2": ["cat"]}, [{"image": "a_1.jpg", "objects": ["dog"]}])
SYNONYMS = {"synonym_groups": [["dog", "puppy"]], "double_word_map": {"a b": "b"}}
STUDY = {
    "items": {"source": "toy", "n_scenes": 1, "captions": False},
    "conditions": [
        "baseline",
        {"kind": "eah", "name": "n", "layers": [0, 1], "beta": 0.1},
        {"sweep": {"beta": [1, 2]}, "kind": "eah"},
        {"controls": {"beta": 0.1}},
        {"kind": "pai"},
    ],
    "decoding": {"caption": {"max_new_tokens": 3}},
    "batch_size": 2,
}


def spoil_folder(source, names, folder, draw):
    """Copy a folder, and spoil one of its files."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    path = draw.choice(sorted(p for p in folder.rglob("*") if p.suffix in names))
    if path.suffix == ".json":
        path.write_bytes(spoil(json.loads(path.read_text()), draw))
    elif draw.random() < 0.5:
        path.write_bytes(damage(path.read_bytes(), draw))
    else:
        table = pd.read_parquet(path)
        column = draw.choice(list(table.columns))
        changed = [table.drop(columns=column), table.iloc[: len(table) // 2]]
        changed += [table.assign(**{column: odd}) for odd in (1, 1.5, "x", None, b"x")]
        draw.choice(changed).to_parquet(path)
    return folder


def read_study(folder):
    run = StudyRun.load(folder)
    run.frame(), run.sinks(), measure_progress(folder)


RESULTS = sorted(path.parent for path in (SAVED / "results").rglob("result.json"))
CONDITIONS = json.loads((SAVED / "study" / "manifest.json").read_text())["conditions"]
READERS = {
    "study file": lambda p, d: StudyFile.load(write(p / "s.yaml", spoil(STUDY, d))),
    "POPE questions": lambda p, d: read_pope_questions(
        write(p / "q", spoil(QUESTIONS, d, lines=d.random() < 0.5)), with_images=True
    ),
    "POPE answers": lambda p, d: read_pope_answers(
        write(p / "a", spoil(ANSWERS, d, lines=d.random() < 0.5))
    ),
    "captions": lambda p, d: read_captions(
        write(p / "c", spoil(d.choice([TOLD, OF_2018]), d, lines=d.random() < 0.5))
    ),
    "COCO, instances": lambda p, d: read_coco(p, mutate(INSTANCES, d)),
    "COCO, captions": lambda p, d: read_coco(p, INSTANCES, mutate(CAPTIONS, d)),
    "lists of objects": lambda p, d: read_ground_truth(
        write(p / "l", spoil(d.choice(LISTS), d)), vocabulary=VOCABULARY
    ),
    "synonyms": lambda p, d: read_synonyms(write(p / "s.json", spoil(SYNONYMS, d))),
    "synonyms, text": lambda p, d: read_synonyms(
        write(p / "s.txt", damage(b"dog, puppy\ncat, kitten\n", d))
    ),
    "a study's folder": lambda p, d: read_study(
        spoil_folder(SAVED / "study", (".json", ".parquet"), p / "s", d)
    ),
    "a result": lambda p, d: Result.load(
        spoil_folder(d.choice(RESULTS), (".json", ".parquet"), p / "r", d)
    ),
    "a condition": lambda _, d: Condition.from_dict(mutate(d.choice(CONDITIONS), d)),
    "settings": lambda _, d: eah.EAH.from_dict(mutate(eah.EAH().to_dict(), d)),
}


@pytest.mark.parametrize("name", READERS)
def test_whatever_a_file_holds_is_read_or_refused_by_name(
    tmp_path, name, as_users_run_it
):
    refused = 0
    for seed in range(80):
        try:
            READERS[name](tmp_path, random.Random(f"{name} {seed}"))
        except EAHError:
            refused += 1
    assert 20 < refused < 80  # some of what is odd is allowed
