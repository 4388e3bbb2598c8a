"""The command writes the page, and the page names the command that makes it again."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eah_interp.cli import app
from eah_interp.testing import random_image, tiny_folder
from eah_interp.toy.language import TOY_KNOWS
from tests.report.reading import Page


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a photo.png"
    random_image(1, width=60, height=40).save(path)
    return path


@pytest.mark.slow
def test_the_command_on_the_page_makes_the_page_again(photo, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    words = ("report", photo, "Is there a boat in the image?", "--out", out, "-a")
    done = run(*words, "boat", "--layers", "2", "--max-new-tokens", 1, "--json")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["command"] == "report"
    first = Page(out.read_text())
    (line,) = [t for t in first.text.splitlines() if t.startswith("eah-interp ")]
    out.unlink()
    monkeypatch.chdir(tmp_path)  # the page names files without their folders
    again = run(*shlex.split(line)[1:])
    assert again.exit_code == 0, again.stderr
    assert f"Written: {out.name}" in again.stdout.replace("\n", "")
    second = Page(out.read_text())
    assert [t for t in second.tables if t[0] != "Model and versions"] == [
        t for t in first.tables if t[0] != "Model and versions"
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--out", "page.pdf"), "--out must end in .html"),
        (("--out", "gone/page.html"), "does not exist"),
        (("--out", "p.html", "-o", "boat", "-a", "boat"), "named more than once"),
        ((" ", "--out", "p.html"), "a question is empty"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_model_is_loaded(
    photo, tmp_path, monkeypatch, more, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eah_interp.load", None)  # calling it would fail otherwise
    done = run("report", photo, *more)
    assert done.exit_code == 2
    assert message in done.stderr


FEW = ("--max-new-tokens", 1)
OWN = {
    "ask": ("What is it?", *FEW),
    "sinks": (),
    "attribute": ("What is it?", "--explain", "boat"),
    "report": ("What is it?", "--out", "page.html", *FEW),
}
"""Commands that take an image of the user's own, and what else they need."""


@pytest.mark.parametrize("command", OWN)
def test_the_toy_says_that_it_knows_no_photographs(
    photo, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    shown = run(command, photo, *OWN[command])
    assert shown.exit_code == 0, shown.stderr
    assert TOY_KNOWS in " ".join(shown.stdout.split())
    record = json.loads(run(command, photo, *OWN[command], "--json").stdout)
    assert record["note"] == TOY_KNOWS
    if command == "report":
        assert TOY_KNOWS in " ".join(Page(Path("page.html").read_text()).text.split())


@pytest.mark.slow
def test_of_a_scene_and_of_another_model_nothing_of_the_kind_is_said(photo, tmp_path):
    scene = run("demo", *FEW, "--json")
    assert json.loads(scene.stdout)["note"] is None
    own = run("demo", "--image", photo, *FEW, "--json")
    assert json.loads(own.stdout)["note"] == TOY_KNOWS
    folder = tiny_folder(tmp_path / "tiny")
    other = run("sinks", photo, "-m", folder, "--json")
    assert json.loads(other.stdout)["note"] is None
