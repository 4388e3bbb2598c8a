"""Claims about caption files and CHAIR's vocabulary: every form, and what is wrong."""

import json

import pytest

from eah_interp.benchmarks import make_vocabulary, read_captions, read_synonyms
from eah_interp.benchmarks.records import read_records
from eah_interp.errors import InputError
from eah_interp.foreign_files import read_json

ROWS = [(7, "A cup."), (8, "Two cups,\nand “tea”.")]


def rows_of(table):
    return list(zip(table.image_id, table.caption, strict=True))


# -- captions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        [{"image_id": i, "caption": text} for i, text in ROWS],
        [{"image_id": str(i), "caption": text} for i, text in ROWS],
        [{"image": f"COCO_val2014_{i:012}.jpg", "text": text} for i, text in ROWS],
        json.dumps([{"image_id": i, "caption": text} for i, text in ROWS], indent=2),
        json.dumps([{"image_id": i, "caption": text} for i, text in ROWS]) + "\n",
        "\n\n".join(json.dumps({"image_id": i, "text": t}, indent=1) for i, t in ROWS),
        "\ufeff" + "\r\n".join(json.dumps({"image": i, "text": t}) for i, t in ROWS),
        json.dumps({"imgToEval": {i: {"image_id": i, "caption": t} for i, t in ROWS}}),
    ],
)
def test_every_form_of_release_is_read_alike(content, write):
    assert rows_of(read_captions(write("captions.jsonl", content))) == ROWS


def test_other_keys_can_be_named(write):
    path = write("captions.jsonl", [{"id": "n1", "out": "A cup.", "text": "?"}])
    assert rows_of(read_captions(path, image_key="id", caption_key="out")) == [
        ("n1", "A cup.")
    ]


def test_a_caption_beside_its_prompt_is_the_caption(write):
    prompt = {"image_id": 1, "text": "Describe the image."}
    for key in ("caption", "response", "answer", "pred"):
        table = read_captions(write("prompted.jsonl", [{**prompt, key: "A dog."}]))
        assert table.caption.tolist() == ["A dog."]
    both = [{**prompt, "caption": "A cat.", "response": "A dog."}]
    with pytest.raises(InputError, match=":1: expected one answer, got several"):
        read_captions(write("both.jsonl", both))


@pytest.mark.parametrize("key", ["generated_caption", "model_caption", "Response"])
def test_a_caption_of_people_does_not_pass_for_the_model_s(key, write):
    path = write("both.jsonl", [{"image_id": 7, "caption": "A cup.", key: "A dog."}])
    with pytest.raises(InputError, match=rf":1: .*'caption' 'A cup.' and '{key}'"):
        read_captions(path)
    assert rows_of(read_captions(path, caption_key=key)) == [(7, "A dog.")]


def test_a_number_in_the_file_does_not_pass_for_the_image_s(write):
    name = "COCO_val2014_000000000007.jpg"
    for image in (name, f"val2014/{name}"):
        path = write("c.jsonl", [{"image_id": 9, "image": image, "caption": "A cup."}])
        with pytest.raises(InputError, match=":1: expected one image, got image_id 9"):
            read_captions(path)
    path = write("c.jsonl", [{"image_id": 7, "image": name, "caption": "A cup."}])
    assert rows_of(read_captions(path)) == [(7, "A cup.")]
    assert rows_of(read_captions(path, image_key="image")) == [(7, "A cup.")]


def test_a_second_caption_of_an_image_counts_only_if_asked_for(write):
    path = write("c.jsonl", [{"image_id": i, "caption": "a"} for i in (5, 6, "5")])
    with pytest.raises(InputError, match=r"c\.jsonl:3: image 5 .*c\.jsonl:1 already"):
        read_captions(path)
    assert read_captions(path, repeats="count").image_id.tolist() == [5, 6, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"caption": "a"}], r"c\.jsonl:1: expected the image under 'image_id' or"),
        ([{"image_id": None, "caption": "a"}], r":1: expected an image's number"),
        ([{"image_id": 1, "caption": 2}], r":1: expected text under 'caption', got 2"),
        ([{"image_id": 1}], r":1: expected the key 'caption' or 'text', got"),
        (
            '{"image_id": 1, "caption": "a"}\n{"image_id": 2, "cap',
            r":2: not JSON: .*cut",
        ),
        ('{"a": 1}\n\nhello', r":3: not JSON"),
        ("[1, 2]", r":1: expected a JSON object {...}, got 1"),
        ('[{"a": 1}', r":1: not JSON: The array does not end"),
        ('[{"a": 1} {"a": 1}]', r":1: not JSON: Expecting ',' delimiter"),
        ('[{"a": 1}] x', r":1: not JSON: Extra data"),
        (" \n", "expected JSON objects, got an empty file"),
        ("[]", "expected JSON objects, got an empty file"),
        ('{"imgToEval": {"1": "a"}}', r"imgToEval: expected an object for each"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(content, message, write):
    with pytest.raises(InputError, match=message):
        read_captions(write("c.jsonl", content))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.jsonl: No such file"):
        read_records(tmp_path / "none.jsonl")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(InputError, match="UTF-8, got byte 7"):
        read_json(tmp_path / "latin.json")
    (tmp_path / "bad.json").write_text("{\n1}")
    with pytest.raises(InputError, match=r"bad\.json:2: not JSON"):
        read_json(tmp_path / "bad.json")


# -- vocabulary ----------------------------------------------------------------------


def test_the_list_s_lines_and_the_metric_s_pairs_make_the_reference_vocabulary(
    reference_data, write
):
    path = reference_data / "chair/chair_vocab.json"
    content = json.loads(path.read_text())
    lines = "\n".join(", ".join(group) for group in content["synonym_groups"])
    text, reference = read_synonyms(write("synonyms.txt", lines)), read_synonyms(path)
    assert dict(text.objects) == dict(reference.objects)
    # A pair of three words is never met.
    assert dict(reference.pairs) == dict(text.pairs) | {
        "stove top oven": "stove top oven"
    }


def test_names_are_taken_as_the_official_script_takes_them(write):
    lines = "cake,  cheesecake, cup cake\r\n\r\nchair, stool \r\n"
    vocabulary = read_synonyms(write("synonyms.txt", lines))
    names = {"cake", " cheesecake", "cup cake", "chair", "stool"}
    assert set(vocabulary.objects) == names
    assert vocabulary.objects["stool"] == "chair"
    assert "cup cake" not in vocabulary.pairs  # "cake" alone says the same


def test_names_of_two_words_are_found_and_the_last_group_has_a_name():
    vocabulary = make_vocabulary([["lamp"], ["lava rock", "lamp"]])
    assert vocabulary.pairs["lava rock"] == "lava rock"
    assert vocabulary.objects["lamp"] == "lava rock"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.txt", "", "official synonym list is at https://raw"),
        ("s.txt", "cup,mug\n", r"s\.txt:1: .* got 'cup,mug'"),
        ("s.json", '{"groups": []}', "expected lists of names under 'synonym_groups'"),
        ("s.json", "[[1]]", "expected lists of names under 'synonym_groups'"),
        ("s.json", "[[]]", "at least one name each"),
        ("s.json", "{", r"s\.json:1: not JSON"),
        ("s.json", '{"synonym_groups": [["a"]], "double_word_map": [1]}', "pairs of"),
    ],
)
def test_bad_lists_are_refused(name, content, message, write):
    with pytest.raises(InputError, match=message):
        read_synonyms(write(name, content))


def test_a_missing_list_says_where_it_is_had(tmp_path):
    with pytest.raises(InputError, match=r"No such file.*is at https://raw\.github"):
        read_synonyms(tmp_path / "synonyms.txt")
