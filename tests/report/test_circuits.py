"""The circuit of an answer: as many edges and runs as are asked for, and said."""

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

from eah_interp.attribution import circuits as finding
from eah_interp.cli import app
from eah_interp.report import circuits as page_circuits
from eah_interp.report import inspect as inspecting
from eah_interp.report.circuits import count_runs, tell_circuit, trace_answer
from eah_interp.toy import draw_scene, without_object
from tests.made_results import Size, circuits
from tests.report.reading import Page

QUESTION = "Is there a boat in the image?"


@pytest.fixture(scope="module")
def pair():
    scene = draw_scene(0, objects=["boat", "fish"])
    return scene.pil(), without_object(scene, "boat").pil()


@pytest.fixture
def files(pair, tmp_path):
    paths = tmp_path / "boat.png", tmp_path / "no-boat.png"
    for path, image in zip(paths, pair, strict=True):
        image.save(path)
    return paths


def report(files, *more):
    own, other = files
    out = own.parent / "page.html"
    words = ["report", own, "--circuit", other, "--out", out, "--max-new-tokens", 1]
    done = CliRunner().invoke(app, [str(word) for word in (*words, *more)])
    return done, out


def test_an_answer_has_the_circuit_that_was_asked_for_in_as_many_runs(
    toy, pair, monkeypatch
):
    listed, steps = [], []

    def list_all(*given):
        listed.extend(whole(*given))
        return listed

    class Steps:
        step = staticmethod(steps.append)

        def expect(self, steps):
            """Be told how many there are."""

    whole = finding.list_circuits
    monkeypatch.setattr(finding, "list_circuits", list_all)
    image, other = pair
    found = trace_answer(toy, image, QUESTION, other=other, n_edges=4, bar=Steps())
    every = len(found.senders)
    assert found.sizes == (1, 2, 4, 8, 16, every)
    assert found.sizes[found.chosen] == len(found.list_edges()) == 4
    assert len(listed) == count_runs(4) == 30
    assert steps == ["gradients of every edge", "30 runs with some edges"]
    assert found.source == "plain, another image"
    assert float(found.values) > 0 > float(found.source_values)  # yes, and no
    torch.testing.assert_close(found.kept[:, -1], found.values)
    first = found.list_edges()["name"][0]
    share = f"{float(found.faithfulness[2]):.0%}"
    said = tell_circuit(found)
    assert f"with 4 of {every:,} edges the answer keeps {share}" in said
    assert f"foremost: {first}, " in said


@pytest.fixture
def inspected(found, monkeypatch):
    """Let the command find what was found before; its own questions are asked."""
    made = [found]

    def inspect(*given, command, **options):
        return dataclasses.replace(made[-1], command=command)

    monkeypatch.setattr(inspecting, "inspect_image", inspect)
    return made


def test_the_command_shows_the_circuit_and_says_its_cost_first(
    files, inspected, monkeypatch
):
    own, asked = circuits(Size(layers=2, heads=3)), []

    def trace(model, image, prompt, **given):
        asked.append((prompt, given["n_edges"], given["other"].size))
        return own

    monkeypatch.setattr(page_circuits, "trace_answer", trace)
    done, out = report(files, QUESTION, "--circuit-edges", 7, "--json")
    assert done.exit_code == 0, done.stderr
    assert "finding a circuit: 33 runs with some edges" in done.stderr
    first = inspected[0].asked[0].question.prompt
    assert asked == [(first, 7, (80, 80))]
    record = json.loads(done.stdout)["circuit"]
    edges = own.list_edges()
    assert [edge["name"] for edge in record["edges"]] == edges["name"].tolist()
    assert [row["size"] for row in record["sizes"]][: len(own.sizes)] == list(own.sizes)
    page = Page(out.read_text())
    assert page.table("Edges of the circuit")[1][0] == edges["name"][0]
    assert "--circuit no-boat.png --circuit-edges 7" in page.text


def test_a_question_without_yes_or_no_has_no_circuit_and_the_page_says_so(
    files, inspected
):
    (whole,) = inspected
    asked = tuple(dataclasses.replace(one, yes={}, no={}) for one in whole.asked)
    inspected.append(dataclasses.replace(whole, asked=asked))
    done, out = report(files, "What is it?")
    assert done.exit_code == 0, done.stderr
    why = "No circuit was found: no question is answered by yes or no"
    assert why in " ".join(done.stdout.split())
    assert why in Page(out.read_text()).text
    assert "runs with some edges" not in done.stderr


def test_the_other_image_is_read_before_the_model_is_loaded(files, monkeypatch):
    monkeypatch.setattr("eah_interp.load", None)
    files[1].unlink()
    done, out = report(files, QUESTION)
    assert done.exit_code == 2
    assert "no-boat.png" in done.stderr
    assert not out.exists()
