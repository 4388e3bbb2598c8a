"""The README's example is a doctest, and its picture shows what the toy says."""

import doctest
import json

import pytest

import eah_interp as eah
from eah_interp.toy import draw_scene


def test_the_first_example_runs_as_it_stands(pytestconfig):
    readme = pytestconfig.rootpath / "README.md"
    found = doctest.testfile(str(readme), module_relative=False, encoding="utf-8")
    assert found.attempted >= 5
    assert found.failed == 0


def test_the_picture_s_numbers_are_the_toy_s(pytestconfig):
    file = pytestconfig.rootpath / "docs" / "images" / "readme.json"
    shown = json.loads(file.read_text())
    model, scene = eah.load(), draw_scene(shown["scene"])
    patched = eah.edit(model, eah.EAH())
    assert list(scene.objects) == shown["present"]
    for name, looking in {"plain": model, "EAH": patched}.items():
        caption = looking.describe(scene.pil(), "Describe the image.")
        assert caption.strip() == shown["captions"][name]
    named = [f" {word}" in shown["captions"]["plain"] for word in shown["absent"]]
    assert named
    assert all(named), "the picture shows no hallucination"
    for row in shown["logits"]:
        assert row["change"] == pytest.approx(row["patched"] - row["plain"])
