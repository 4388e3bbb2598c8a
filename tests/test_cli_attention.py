"""`eah-interp attention`: what it prints and draws is what the library says."""

import json
import math

import pytest
from PIL import Image
from typer.testing import CliRunner

import eah_interp as eah
from eah_interp.attribution import HeadPatterns
from eah_interp.cli import app
from eah_interp.testing import tiny_folder
from eah_interp.toy import draw_scene

PROMPT = "Describe the image."


def run(*words):
    return CliRunner().invoke(app, ["attention", *(str(word) for word in words)])


def run_json(*words):
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def toy():
    return eah.load()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    paths = [folder / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        draw_scene(number).pil().save(path)
    return paths


def check_maps(record, found):
    """Check that each map is the library's: head by head, word by word."""
    shares = found.shares()
    assert len(record["maps"]) == len(shares)
    for one, line in zip(record["maps"], shares.itertuples(), strict=True):
        assert one["name"] == line.name
        assert one["share"] == pytest.approx(line.plain, abs=1e-6)
        asked = {"item": line.item, "image": line.image}
        asked["word"] = line.word if found.words else None
        (grid,) = found.picture(line.name, **asked)
        (part,) = one["parts"]
        assert part["weights"] == [
            [None if math.isnan(w) else pytest.approx(w, abs=1e-6) for w in row]
            for row in grid.tolist()
        ]
        best = one["strongest"][0]
        place = best["patch"]["row"], best["patch"]["column"]
        assert float(grid[place]) == pytest.approx(best["weight"], abs=1e-6)
        assert best["weight"] == pytest.approx(float(grid.max()), abs=1e-6)
        span = found.span(line.item, image=line.image)
        assert span.parts[0].columns[place[0]][place[1]] == best["position"]


@pytest.mark.parametrize("given", ["L3H7,L5H1", "--heads"])
def test_maps_of_words_are_those_of_the_library(scenes, toy, given):
    """Heads with a comma between, and named twice."""
    named = [given] if given != "--heads" else ["L3H7", "--heads", "L5H1"]
    record = run_json(scenes[0], PROMPT, "--heads", *named, "--words")
    found = eah.read_patterns(
        toy, Image.open(scenes[0]), PROMPT, heads=["L3H7", "L5H1"], words=True
    )
    assert record["heads"] == ["L3H7", "L5H1"]
    assert record["words"] == [[word.text for word in found.words[0]]]
    said = toy.describe(Image.open(scenes[0]), PROMPT)
    assert "".join(record["words"][0]) == said.replace(" ", "")
    check_maps(record, found)


def test_several_images_are_a_batch(scenes, toy):
    record = run_json(*scenes, PROMPT, "--top", 2, "--mean")
    images = [Image.open(path) for path in scenes]
    found = eah.read_patterns(toy, images, [PROMPT] * 2, top=2, mean=True)
    assert record["heads"] == list(found.names)
    assert [one["image"] for one in record["maps"]] == [
        str(path) for path in scenes for _ in range(3)
    ]
    assert [one["head"] for one in record["maps"][2::3]] == [None, None]
    assert record["words"] is None
    check_maps(record, found)


def test_images_together_are_one_prompt(scenes, toy):
    record = run_json(*scenes, PROMPT, "--together", "--mean")
    images = [Image.open(path) for path in scenes]
    found = eah.read_patterns(toy, [images], [PROMPT], mean=True)
    assert len(found.tokens) == 1
    assert [one["image"] for one in record["maps"]] == list(map(str, scenes))
    assert sum(one["share"] for one in record["maps"]) < 1
    check_maps(record, found)


def test_figures_and_numbers_are_written(scenes, tmp_path):
    out, folder = tmp_path / "maps.png", tmp_path / "numbers"
    words = ("--heads", "L3H7", "--words", "--out", out, "--save", folder)
    result = run(*scenes, PROMPT, *words)
    assert result.exit_code == 0, result.stderr
    assert "Written:" in result.stdout
    assert not out.exists()
    for number in range(2):
        with Image.open(tmp_path / f"maps-{number}.png") as drawn:
            assert drawn.size[0] > 1000
    assert HeadPatterns.load(folder).names == ("L3H7",)
    one = tmp_path / "one.svg"
    assert run(scenes[0], PROMPT, "--mean", "--out", one).exit_code == 0
    assert "<svg" in one.read_text()


def test_the_table_has_a_line_for_each_word(scenes):
    result = run(scenes[0], PROMPT, "--mean", "--words")
    assert result.exit_code == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("mean ")]
    record = run_json(scenes[0], PROMPT, "--mean", "--words")
    for line, one in zip(lines, record["maps"], strict=True):
        _, word, share, patch, weight, *_ = line.split()
        best = one["strongest"][0]
        assert word == one["word"]
        assert share == f"{one['share']:.1%}"
        assert patch == f"r{best['patch']['row']}c{best['patch']['column']}"
        assert weight == f"{best['weight']:.1%},"


def test_another_checkpoint_can_be_asked(scenes, tmp_path):
    folder = tiny_folder(tmp_path / "tiny", n_heads=4, n_kv_heads=2)
    record = run_json(scenes[0], "what ?", "-m", folder, "--top", 3)
    assert record["model"]["n_kv_heads"] == 2
    assert len(record["maps"]) == 3


def test_image_tokens_without_a_place_are_named_by_position(scenes, monkeypatch):
    """The command says so, draws nothing, and refuses a figure before it writes."""
    from eah_interp.cli.options import ModelOptions
    from tests.tiny_families import share_model

    monkeypatch.setattr(ModelOptions, "load", lambda _: share_model("idefics2"))
    result = run(scenes[0], "what ?", "--mean")
    assert result.exit_code == 0, result.stderr
    assert "they stand for no places" in " ".join(result.stdout.split())
    assert "position " in result.stdout
    record = run_json(scenes[0], "what ?", "--mean")
    assert record["spatial"] is False
    assert record["maps"][0]["parts"] == []
    folder = scenes[0].parent / "numbers"
    words = ("--mean", "--out", scenes[0].parent / "no.png", "--save", folder)
    result = run(scenes[0], "what ?", *words)
    assert result.exit_code == 1
    assert "learned queries" in result.stderr
    assert not list(folder.glob("*.parquet"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no head is named: expected --heads L3H7, --top 5"),
        (("--heads", "L99H0"), "layer 99 does not exist"),
        (("--heads", "L3"), "'L3' is no node of this model"),
        (("--top", "65"), "top must be 1 to 64 heads, got 65"),
        (("--mean", "--out", "map.txt"), "--out must end in .png"),
        (("--mean", "--out", "/no/map.png"), "--out: the folder /no does"),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_code(scenes, words, said):
    result = run(scenes[0], PROMPT, *words)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]  # after transformers' loading bar
    assert line.startswith("error: ")
    assert said in line


def test_an_empty_prompt_and_a_missing_image_are_refused(scenes, tmp_path):
    result = run(scenes[0], " ", "--mean")
    assert result.exit_code == 2
    assert "the prompt is empty" in result.stderr
    result = run(scenes[0], tmp_path / "none.png", PROMPT, "--mean")
    assert result.exit_code == 2
    assert "none.png" in result.stderr
