"""Claims about study files: what they say is what runs, and errors name the line."""

import itertools
import sys

import pytest

import eah_interp as eah
from eah_interp.errors import ExtraMissingError, InputError, SettingsError
from eah_interp.studies import Condition, StudyFile, study_file
from eah_interp.studies.conditions import BASELINE, OURS
from eah_interp.studies.study_file import read_condition
from tests.studies.common import toy_study

GOOD = """\
model:
  name: toy
items:
  source: toy
  n_scenes: 2
conditions:
  - baseline
  - kind: eah
    name: first layers
    layers: [0, 1]
    beta: 1e-3
seed: 5
"""


@pytest.fixture
def load(tmp_path):
    def read(text):
        file = tmp_path / "study.yaml"
        file.write_text(text)
        return StudyFile.load(file)

    return read


def test_a_file_says_what_runs(load, toy):
    study = load(GOOD + "decoding: {caption: {num_beams: 2}}\nbatch_size: 3\n")
    assert len(study.items) == 14
    first = eah.EAH(layers=(0, 1), beta=1e-3, seed=5)
    assert study.conditions[0] == BASELINE
    assert (study.conditions[1].name, study.conditions[1].patch) == (
        "first layers",
        first,
    )
    assert study.decoding["caption"] == {
        "max_new_tokens": 64,
        "do_sample": False,
        "num_beams": 2,
    }
    assert study.to_dict()["n_batches"] == len(study.batches) == 5
    made = study.study(toy)
    assert (made.batch_size, made.seed, made.items) == (3, 5, study.items)


WRONG = {
    "an unknown key": ("name: toy", "nam: toy", r":2: model.nam: expected one of the"),
    "a key of a source": ("n_scenes: 2", "n_scens: 2", r":5: items.n_scens: expected"),
    "an impossible number": (
        "n_scenes: 2",
        "n_scenes: -2",
        r":5: items.n_scenes: .*-2",
    ),
    "a source": ("source: toy", "source: tyo", r":3: items: expected source to be one"),
    "a condition": ("- baseline", "- basline", r":7: conditions.0: .*got 'basline'"),
    "a kind": ("kind: eah", "kind: hae", r":8: conditions.1.kind: kind must be one of"),
    "a setting": ("beta: 1e-3", "bta: 1", r":11: conditions.1.bta: expected one of"),
    "no number": ("1e-3", "much", r":11: conditions.1.beta: expected .*got 'much'"),
    "a found value": (
        "- baseline",
        "- {kind: steer, vectors: {values: [[[1.0]]], layers: [0]}}",
        r":7: conditions.0.vectors: expected an instance of Directions, got \{'values'",
    ),
    "our refusal": ("1e-3", "-1", r":11: conditions.1.beta: beta must be a number"),
    "a key twice": ("seed: 5", "items: 5", r":12: expected every key once, .*line 3"),
    "no YAML": ("seed: 5", "seed: [5", r":13: expected YAML, got"),
    "a missing key": ("  n_scenes: 2\n", "", r":3: items: n_scenes: expected this key"),
    "a name twice": ("name: first layers", "name: baseline", r":6: conditions: .*once"),
    "a sweep": ("- baseline", "- sweep: {beta: [x]}", r":7: conditions.0.sweep.beta: "),
    "a control": ("- baseline", "- controls: {beta: -1}", r":7: .*controls.beta: beta"),
    "no list": ("- baseline", "- sweep: {beta: 1}", r":7: .*list of values, got 1"),
    "no mapping": (GOOD, "- 3", r"study.yaml: expected keys with values, got \[3\]"),
    "nothing": (GOOD, "", r"study.yaml: expected keys with values, got None"),
}


@pytest.mark.parametrize(("old", "new", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_its_line(load, old, new, message):
    assert old in GOOD
    with pytest.raises(SettingsError, match=message) as caught:
        load(GOOD.replace(old, new))
    assert "study.yaml" in str(caught.value)


def test_all_errors_are_named_at_once(load):
    wrong = GOOD.replace("2", "0").replace("seed: 5", "sinks: perhaps")
    with pytest.raises(
        SettingsError, match=r":5: items.*:12: sinks: expected a valid b"
    ):
        load(wrong)


def test_files_are_found_beside_the_study_file(load, tmp_path):
    text = GOOD.replace("source: toy", "source: pope").replace(
        "n_scenes: 2", "questions: q.json\n  images: images"
    )
    with pytest.raises(InputError, match=f"pope: cannot read {tmp_path}"):
        load(text)
    line = '{"question_id": 1, "image": "a.jpg", "text": "Dog?", "label": "no"}'
    (tmp_path / "q.json").write_text(line)
    assert load(text).items[0].image == str(tmp_path / "images" / "a.jpg")
    with pytest.raises(InputError, match="cannot read the study file"):
        StudyFile.load(tmp_path / "none.yaml")


def test_several_sources_are_one_study(load):
    several = "[{source: toy, n_scenes: 1}, {source: toy, n_scenes: 1, split: train}]"
    text = GOOD.replace("items:\n  source: toy\n  n_scenes: 2\n", f"items: {several}\n")
    with pytest.raises(InputError, match="two items are called"):
        load(text)


def test_controls_bring_no_second_baseline(load):
    names = [c.name for c in load(GOOD + "").conditions]
    with_controls = load(GOOD.replace("- baseline", "- baseline\n  - controls: true"))
    assert names == ["baseline", "first layers"]
    assert [c.name for c in with_controls.conditions] == [
        "baseline",
        "EAH",
        "sparsest",
        "random",
        "mean",
        "uniform",
        "shuffled",
        "first layers",
    ]
    assert with_controls.conditions[3].patch.seed == 5


def test_presets_are_those_of_the_settings():
    (paper,) = read_condition({"kind": "eah", "preset": "paper"}, seed=0)
    assert (paper.name, paper.patch) == ("EAH paper", eah.EAH.paper())
    (official,) = read_condition({"kind": "eah", "preset": "official"}, seed=0)
    assert official.patch == eah.EAH.official()


def test_a_sweep_varies_and_each_definition_keeps_its_own_beta():
    entry = {"sweep": {"definition": ["paper", "visible"], "layers": [1, [0, 1]]}}
    found = {c.name: c.patch for c in read_condition(entry, seed=0)}
    assert found["EAH definition=paper layers=0+1"] == eah.EAH.paper(layers=(0, 1))
    assert found["EAH definition=visible layers=1"] == eah.EAH()
    assert len(found) == 4


def test_every_kind_of_the_interventions_can_be_written(load):
    assert OURS["eah"] is eah.EAH
    for kind, settings in OURS.items():
        assert kind == "eah" or settings.kind == kind


@pytest.mark.parametrize("package", ["yaml", "pydantic"])
def test_without_its_packages_the_extra_is_named(load, monkeypatch, package):
    for made in (study_file.make_base, study_file.make_study_schema):
        made.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraMissingError, match=r"eah-interp\[eval\]"):
        load(GOOD)


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefgh")
)
BOUNDS = {
    "aliases": (LAUGHS, r":\d: .*more than 50000 values, with its aliases written out"),
    "merged": (LAUGHS.replace("[x,x,x,x,x,x,x,x,x]", "{x: 1}"), r":\d: .*than 50000"),
    "a circle": ("a: 1\nb: &a [*a]\n", r":2: .*an alias inside of what it stands for"),
    "a circle of keys": ("&a {x: &b [*a], y: *b}", r":1: .*an alias inside of"),
    "depth": ("a:\n  " + "[" * 5000, r":2: .*values nested more than 32 deep"),
    "values": ("a: [" + "x," * 60_000 + "]", r":1: .*more than 50000 values"),
    "an integer": ("a: 1\nseed: " + "9" * 5000, r":2: .*9', which is no int"),
    "a date": ("seed: 2001-99-99", r":1: .*'2001-99-99', which is no timestamp"),
    "a tag": ("seed: !!int x", r":1: .*'x', which is no int"),
    "code": ("seed: !!python/object/apply:os.getcwd []", r":1: .*determine a constr"),
    "half a character": ('a: 1\nb: "\\ud800"', r":2: .*which is no text"),
    "no character": ('a: 1\nb: "\\U00110000"', r":2: expected YAML"),
    "a NUL": ('a: 1\nb: "\\0"', r":2: .*which is no text"),
    "a raw NUL": ("a: 1\nb: \0", r":2: .*unacceptable character"),
}


@pytest.mark.parametrize(("text", "message"), BOUNDS.values(), ids=BOUNDS)
def test_yaml_is_read_within_bounds(load, text, message):
    with pytest.raises(SettingsError, match=rf"study\.yaml{message}"):
        load(text)


def test_yaml_that_is_no_utf8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(InputError, match=r"study\.yaml:2: expected text in UTF-8"):
        StudyFile.load(path)
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert len(StudyFile.load(path).items) == 14


NAMES = {
    "too long": ("x" * 300, "is 300 bytes long as a folder"),
    "long as a folder": ('"' + " " * 100 + 'x"', "is 301 bytes long"),
    "empty": ('" "', "is empty"),
    "a device": ("aux.1", "is a device on Windows"),
    "a device in capitals": ("LPT1", "is a device on Windows"),
    "a dot at the end": ("a.", "ends in a dot"),
    "dots": ("..", "ends in a dot"),
    "a line": ('"a\\nb"', "holds control characters"),
}


@pytest.mark.parametrize(("name", "message"), NAMES.values(), ids=NAMES)
def test_a_name_that_can_be_no_folder_is_refused_with_its_line(load, name, message):
    with pytest.raises(SettingsError, match=f":9: conditions.1.name: name .*{message}"):
        load(GOOD.replace("first layers", name))


def test_names_that_would_share_a_folder_are_refused(load, toy):
    pairs = (("eah", "EAH"), ("\uac00", "\u1100\u1161"), ("stra\u00dfe", "STRASSE"))
    for one, other in pairs:
        names = f"  - {{kind: eah, name: {one}}}\n  - {{kind: eah, name: {other}}}\n"
        with pytest.raises(SettingsError, match=r":6: conditions: .*share a folder"):
            load(GOOD.replace("  - baseline\n", names))
        conditions = [Condition(one), Condition(other)]
        with pytest.raises(SettingsError, match="would share a folder"):
            toy_study(toy, conditions=conditions)


def test_a_study_that_never_ends_is_refused(load):
    with pytest.raises(SettingsError, match="expected n_scenes of 1 to 100000"):
        load(GOOD.replace("n_scenes: 2", "n_scenes: 1" + "0" * 30))
    axes = ", ".join(f"{name}: [1, 2, 3, 4, 5, 6, 7, 8, 9]" for name in "abcdefghi")
    with pytest.raises(SettingsError, match=r":7: .*at most 10000 combinations"):
        load(GOOD.replace("- baseline", f"- sweep: {{{axes}}}"))
