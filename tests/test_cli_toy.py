"""Claims about `eah-interp toy`: what it prints is what the library measures."""

import json
import math

import pytest
from typer.testing import CliRunner

import eah_interp as eah
from eah_interp.benchmarks import compare_benchmarks, run_toy_benchmark
from eah_interp.benchmarks.toy import METRICS
from eah_interp.cli import app
from eah_interp.toy import draw_scenes

ARGUMENTS = ["toy", "--scenes", "6", "--layers", "2"]


def run(*arguments):
    return CliRunner().invoke(app, [*ARGUMENTS, *arguments])


@pytest.fixture(scope="module")
def record():
    return json.loads(run("--json", "--model", "toy:seed-1").stdout)


def test_it_measures_eah_and_its_controls_against_plain(record):
    assert list(record["changes"]) == ["EAH", "sparsest", "random", "shuffled"]
    assert record["scenes"] == 6
    assert record["settings"]["layers"] == [2]
    assert record["model"]["name"] == "toy:seed-1"


def test_its_numbers_are_the_library_s(record):
    model, scenes = eah.load("toy:seed-1"), draw_scenes(range(6))
    before, after = (
        run_toy_benchmark(model, scenes, eah=settings, progress=False)
        for settings in (None, eah.EAH(layers=(2,)))
    )
    expected = compare_benchmarks(before, after)
    for shown, row in zip(
        record["changes"]["EAH"], expected.to_dict("records"), strict=True
    ):
        assert shown.pop("metric") == row.pop("metric")
        for name, value in row.items():
            if math.isnan(value):
                assert shown[name] is None
            else:
                assert shown[name] == pytest.approx(value, abs=1e-6)


def test_the_table_has_a_row_for_every_metric():
    shown = run("--no-controls").stdout
    assert all(metric in shown for metric in METRICS)
    assert "sparsest" not in shown
    assert "95 %" in shown


def test_what_differs_in_no_scene_is_undetermined_and_null():
    """Two scenes of this toy under this patch: every count is the same."""
    few = ["toy", "--scenes", "4", "--layers", "7", "--no-controls"]
    shown = CliRunner().invoke(app, few, env={"COLUMNS": "120"}).stdout
    assert "undetermined (4 scenes, none differ)" in shown
    assert "[+0.0, +0.0]" not in shown
    record = json.loads(CliRunner().invoke(app, [*few, "--json"]).stdout)
    same = [row for row in record["changes"]["EAH"] if row["low"] is None]
    assert same
    assert all(row["high"] is None and row["change"] == 0 for row in same)


def test_an_unknown_toy_is_an_error_in_one_line(as_users_run_it):
    result = run("--model", "toy:seed-9")
    assert result.exit_code == 2
    assert "expected one of" in result.stderr
