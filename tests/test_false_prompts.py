"""False prompts on the toy: the page says what the record has, and sums are right."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(DOCS / "bench"))
    import false_prompts

    yield false_prompts
    sys.path.remove(str(DOCS / "bench"))


def test_the_page_is_what_the_record_makes(script):
    record = json.loads((DOCS / "false-prompts.json").read_text())
    assert (DOCS / "false-prompts.md").read_text() == script.write_page(record)
    assert list(record["toys"]) == list(script.TOYS)


def make_answers(script, shift):
    """Make a toy's answers: of six scenes, some follow."""
    plain = {"false": [1.0, 1, 1, 0, 0, 0], "true": [1.0] * 6, "margin": [0.5] * 6}
    found = {
        "false": [0.0, 0, 1, 0, 0, 0],
        "true": [1.0, 1, 1, 1, 0, 1],
        "margin": [0.5 - shift] * 6,
    }
    rest = {"rise": [0.1 * k for k in range(6)]}
    cells = {
        f"describe: {where}, {name}": {**(found if name == "found" else plain), **rest}
        for where in script.WHERE
        for name in ("found", *range(script.N_DRAWS))
    }
    cells |= {
        f"ask: {where}, {name}": found if name == "found" else plain
        for where in script.WHERE
        for name in ("found", *range(script.N_DRAWS))
    }
    keys = [("plain", 4), ("asked", 4), ("told a number", 3), ("told four times", 3)]
    counted = {
        f"{key}, {n}: {name}": [float(k % 3) for k in range(6)]
        for key, most in keys
        for n in range(1, most + 1)
        for name in ("named", "right", "four", "number")
    }
    cells |= {"describe: plain": {**plain, **rest}, "ask: plain": plain}
    return cells | {"counted": counted, "neutral": plain}


def test_changes_are_of_the_same_scenes_and_over_toys(script):
    toys = {n: {"answers": make_answers(script, n)} for n in (1, 2, 3)}
    summed = script.sum_toys(toys)
    effects = {
        (one["kind"], one["where"], one["against"], one["what"]): one
        for one in summed["effects"]
    }
    false = effects["ask", "all", "random", "false"]
    assert false["toys"] == pytest.approx([-100 * 2 / 6] * 3)
    apart = effects["ask", "all", "plain", "apart"]
    assert apart["value"] == pytest.approx(100 * (2 - 1) / 6)
    margin = effects["describe", "shallow", "plain", "margin"]
    assert margin["toys"] == pytest.approx([-1, -2, -3])
    assert margin["low"] < -2 < margin["high"]
    decided = [one for one in summed["effects"] if one["decides"]]
    assert len(decided) == 8
    assert all(one["p_holm"] >= one["p"] for one in decided)
    assert summed["followed"]["ask: false"]["value"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"value": -3.0, "low": -4.0, "high": -2.0, "p_holm": 0.01}, "lower"),
        ({"value": 3.0, "low": 2.0, "high": 4.0, "p_holm": 0.01}, "higher"),
        ({"value": 0.1, "low": -0.9, "high": 1.1, "p_holm": 1.0}, "no lower"),
        ({"value": -1.0, "low": -3.0, "high": 1.0, "p_holm": 0.3}, "cannot be told"),
        ({"value": 0.0, "low": None, "high": None}, "cannot be told"),
    ],
)
def test_a_change_is_judged_by_its_interval(script, values, verdict):
    assert script.judge(values) == verdict


@pytest.mark.slow
def test_two_scenes_run_to_a_page(script, tmp_path):
    options = [
        f"--out={tmp_path}",
        *("--toy=seed-0", "--described=3", "--asked=3", "--counted=2"),
        "--searched=30",
        *(f"--record={tmp_path / 'r.json'}", f"--page={tmp_path / 'p.md'}"),
    ]
    found = CliRunner().invoke(script.app, options)
    assert found.exit_code == 0, found.output
    assert "## Does it count?" in (tmp_path / "p.md").read_text()
