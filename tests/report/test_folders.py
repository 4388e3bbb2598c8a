"""Claims about pages that are mailed: they name files, and not where those are."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

import eah_interp as eah
from eah_interp.cli import app
from eah_interp.studies import Condition, Study, StudyRun, caption_items, report
from eah_interp.studies.conditions import BASELINE
from eah_interp.toy import draw_scene, toy_path

ABSOLUTE = re.compile(r"(?<![\w/<.:])/(?:home|tmp|root|work|usr|var|opt|mnt)/\S*")


@pytest.fixture
def home(tmp_path):
    """Return somebody's folder, with an image and a model in it."""
    folder = tmp_path / "of somebody"
    folder.mkdir()
    draw_scene(0).pil().save(folder / "boat.png")
    shutil.copytree(toy_path(), folder / "mine")
    return folder


def check(page, home):
    assert str(home) not in page
    assert "of somebody" not in page
    assert not ABSOLUTE.findall(page)
    assert "boat.png" in page


def test_one_images_page_and_its_figures_name_no_folder(home):
    out, image, model = home / "out.html", home / "boat.png", home / "mine"
    words = ["report", image, "is there a boat ?", "-m", model, "--out", out, "--json"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.stderr
    page = out.read_text()
    check(page, home)
    assert "eah-interp report boat.png" in page
    assert "--out out.html" in page
    record = json.loads(done.stdout)  # JSON holds paths as they were given
    assert record["picture"]["title"] == str(image)
    assert record["model"]["name"] == str(model)


@pytest.mark.slow
def test_the_demos_page_names_no_folder(home):
    words = ["demo", "--image", home / "boat.png", "-o", "boat", "-m", home / "mine"]
    done = CliRunner().invoke(app, [*map(str, words), "--out", str(home / "demo")])
    assert done.exit_code == 0, done.stderr
    pages = list((home / "demo").rglob("*.html"))
    assert pages
    for page in pages:
        check(page.read_text(), home)
    for figure in (home / "demo").rglob("*.png"):
        assert str(home).encode() not in figure.read_bytes()


def test_a_studys_page_names_no_folder(home):
    items = caption_items(home)
    pair = (BASELINE, Condition("EAH", eah.EAH(layers=(1, 2))))
    decoding = {"caption": {"max_new_tokens": 12}}
    study = Study(eah.load(home / "mine"), items, pair, decoding=decoding)
    run = study.run(home / "run", progress=False)
    page = report(run, home / "page.html").read_text()
    assert str(home) not in page
    assert "of somebody" not in page
    assert not ABSOLUTE.findall(page)
    assert StudyRun.load(home / "run").items().image[0] == str(home / "boat.png")
