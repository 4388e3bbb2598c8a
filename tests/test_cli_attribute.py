"""`eah-interp attribute`: what it prints is what the library says."""

import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

import eah_interp as eah
from eah_interp.attribution import HeadAttribution, attribute_heads
from eah_interp.cli import app
from eah_interp.testing import random_image, tiny_folder

PROMPT = "is there a boat ?"


def run(*words):
    return CliRunner().invoke(app, ["attribute", *(str(word) for word in words)])


def run_json(*words):
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def toy():
    return eah.load()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    random_image(1, width=48, height=32).save(path)
    return path


def test_effects_are_those_of_the_library(photo, toy):
    words = ("-e", "fish", "-e", "boat", "--layers", "0,2", "--donor", 3, "--top", 4)
    record = run_json(photo, PROMPT, *words)
    settings = eah.EAH(layers=(0, 2), donor=3)
    found = attribute_heads(
        toy, Image.open(photo), PROMPT, objects=["fish", "boat"], patch=settings
    )
    assert record["settings"] == settings.to_dict()
    assert [one["object"] for one in record["targets"]] == ["fish", "boat"]
    assert [d["name"] for d in record["donors"]] == ["L0H3", "L2H3"]
    table = found.frame()
    for index, one in enumerate(record["targets"]):
        assert one["plain"] == float(found.plain.values[index])
        assert one["patched"] == float(found.patched.values[index])
        heads = table[(table.target == index) & (table.kind == "head")]
        size = heads[["plain", "patched"]].abs().max(axis=1).sort_values()
        assert [row["name"] for row in one["top"]] == [
            heads.loc[label, "name"] for label in size.index[: -4 - 1 : -1]
        ]
        for row in one["top"]:
            own = heads[heads.name == row["name"]].iloc[0]
            for column in ("plain", "patched", "change", "new_values", "new_pattern"):
                assert row[column] == own[column]
        total = sum(kind["plain"] for kind in one["sums"].values())
        assert total == pytest.approx(one["plain"], abs=1e-5)
    assert record["error"] < 1e-5


def test_tables_list_heads_and_add_up(photo):
    result = run(photo, PROMPT, "-e", "fish", "-e", "boat", "--top", 3)
    assert result.exit_code == 0, result.stderr
    rows = re.findall(r"^L\d+H\d+ +((?:[+-]\d+\.\d{3} *){6})$", result.stdout, re.M)
    assert len(rows) == 2 * 3
    for row in rows:
        plain, patched, change, *parts = (float(cell) for cell in row.split())
        assert patched - plain == pytest.approx(change, abs=2e-3)
        assert sum(parts) == pytest.approx(change, abs=2e-3)
    logits = re.findall(r"^logit (.+) plain", result.stdout, re.M)
    sums = re.findall(
        r"^(?:all heads|MLPs and other blocks|embedding|biases) +([+-]\d+\.\d+)",
        result.stdout,
        re.M,
    )
    per_target = len(sums) // 2
    for index, logit in enumerate(logits):
        mine = sums[index * per_target : (index + 1) * per_target]
        assert sum(map(float, mine)) == pytest.approx(float(logit), abs=3e-3)
    assert "add up to the logit within" in " ".join(result.stdout.split())


def test_a_caption_is_read_where_it_names_the_object(photo):
    caption = "There is a fish and a boat near the fish."
    record = run_json(photo, PROMPT, "-e", "fish", "--caption", caption)
    assert [one["object"] for one in record["targets"]] == ["fish", "fish"]
    first, second = (one["position"] for one in record["targets"])
    assert second > first
    assert record["caption"] == caption


def test_yes_minus_no_is_explained(photo):
    record = run_json(photo, PROMPT, "--yes-no")
    assert record["metric"] == "yes_no"
    assert [one["object"] for one in record["targets"]] == ["Yes - No"]


def test_figures_and_numbers_are_written(photo, tmp_path):
    heads, picture, folder = (tmp_path / n for n in ("heads.png", "p.svg", "numbers"))
    words = ("--figure", heads, "--picture", picture, "--save", folder)
    result = run(photo, PROMPT, "-e", "fish", "-e", "boat", *words)
    assert result.exit_code == 0, result.stderr
    assert "Written:" in result.stdout
    with Image.open(heads) as drawn:
        assert drawn.size[0] > 1000
    assert "<svg" in picture.read_text()
    found = HeadAttribution.load(folder)
    assert [target.label for target in found.targets] == ["fish", "boat"]


def test_another_checkpoint_can_be_asked(photo, tmp_path):
    folder = tiny_folder(tmp_path / "tiny", n_heads=4, n_kv_heads=2)
    record = run_json(photo, PROMPT, "-m", folder, "-e", "cat")
    assert record["model"]["n_heads"] == 4
    assert record["error"] < 1e-5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to explain: name one with --explain"),
        (("-o", "a b", "-o", "fish"), "write --explain 'a b' --explain fish"),
        (("-e", "boat", "--yes-no"), "leave out --explain"),
        (("--yes-no", "--caption", "Yes."), "leave out --caption"),
        (("-e", "boat", "-e", "boat"), "names a thing twice"),
        (("-e", "boat", "--figure", "heads.txt"), "--figure must end in .png"),
        (("-e", "boat", "--picture", "/no/p.png"), "--picture: the folder /no does"),
        (("-e", "boat", "--caption", "A fish."), "the caption does not name boat"),
        (("-e", "boat", "--layers", "9"), "layer 9 does not exist"),
        (("-e", "猫"), "猫"),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_code(photo, words, said):
    result = run(photo, PROMPT, *words)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]  # after transformers' loading bar
    assert line.startswith("error: ")
    assert said in line


def test_an_empty_prompt_and_a_missing_picture_are_refused(photo, tmp_path):
    assert "the prompt is empty" in run(photo, " ", "-e", "boat").stderr
    missing = run(tmp_path / "none.png", PROMPT, "-e", "boat")
    assert missing.exit_code == 2
    assert missing.stderr.startswith("error: ")


def test_help_teaches_by_examples_whose_options_exist():
    (listed,) = [
        c for c in app.registered_commands if c.callback.__name__ == "attribute"
    ]
    text = listed.callback.__doc__
    examples = re.findall(r"^ +eah-interp attribute (.+)$", text, re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        words = re.findall(r'"[^"]+"|\S+', example)
        assert run(*words, "--help").exit_code == 0, example
