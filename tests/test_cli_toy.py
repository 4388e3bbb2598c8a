"""Claims about `eah-interp toy`: what it prints is what the library measures."""

import json

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
        assert shown == pytest.approx(row, abs=1e-6)


def test_the_table_has_a_row_for_every_metric():
    shown = run("--no-controls").stdout
    assert all(metric in shown for metric in METRICS)
    assert "sparsest" not in shown
    assert "95 %" in shown


def test_an_unknown_toy_is_an_error_in_one_line(as_users_run_it):
    result = run("--model", "toy:seed-9")
    assert result.exit_code == 2
    assert "expected one of" in result.stderr
