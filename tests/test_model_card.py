"""The toy's model card says what was measured, and does its sums right."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import eah_interp as eah
from eah_interp.benchmarks import run_toy_benchmark
from eah_interp.benchmarks.toy import ToyBenchmark
from eah_interp.toy import TOYS, draw_scenes, toy_path

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module", autouse=True)
def scripts_on_the_path():
    """The card is made by scripts: its files find each other beside it."""
    sys.path.insert(0, str(DOCS / "toy"))
    yield
    sys.path.remove(str(DOCS / "toy"))


@pytest.fixture(scope="module")
def record():
    return json.loads((DOCS / "toy.json").read_text())


def result(*, absent, mentions=2):
    """Make captions of so many mentions, the first `absent[i]` of which are absent."""
    captions = pd.DataFrame(
        {
            "scene": scene,
            "caption": "words",
            "mentions": ["fish"] * n + ["boat"] * (mentions - n),
            "truth": ["boat", "cup"],
        }
        for scene, n in enumerate(absent)
    )
    questions = pd.DataFrame(
        {"scene": scene, "present": False, "says_yes": bool(n)}
        for scene, n in enumerate(absent)
    ).assign(kind="adversarial")
    return ToyBenchmark(questions, captions)


def run_of(sinks=None, **results):
    from measure import Run

    return Run(results, sinks)


def test_the_page_is_written_from_the_record(record):
    from page import write_page

    assert (DOCS / "toy.md").read_text() == write_page(record)
    for line in (DOCS / "toy.md").read_text().splitlines():
        if line.startswith("!["):
            picture = line.split("(")[1].rstrip(")")
            assert (DOCS / picture).is_file()


def test_the_record_is_of_the_committed_weights(record):
    assert list(record["toys"]) == list(TOYS)
    for name in TOYS:
        file = (toy_path(name) / "model.safetensors").read_bytes()
        assert record["toys"][name]["sha256"] == hashlib.sha256(file).hexdigest()
        log = json.loads((toy_path(name) / "training_log.json").read_text())
        assert record["toys"][name] == {k: v for k, v in log.items() if k != "steps"}


def test_a_weaker_prior_hallucinates_less(record):
    for metric in ("false positives", "CHAIR_S"):
        found = record["prior"][metric]
        assert found["over_scenes"]["high"] < 0
        assert all(run["estimate"] < 0 for run in found["each_run"])


def test_an_effect_is_the_change_of_a_rate_by_run_and_over_runs():
    from claims import contrast

    first = run_of(plain=result(absent=[1, 1, 0, 0]), patch=result(absent=[0, 0, 0, 1]))
    second = run_of(
        plain=result(absent=[1, 1, 1, 0]), patch=result(absent=[0, 0, 0, 0])
    )
    found = contrast([first, second], before="plain", after="patch", metric="CHAIR_S")
    assert [run["estimate"] for run in found["each_run"]] == [-25, -75]
    assert found["over_scenes"]["estimate"] == -50
    assert found["over_runs"]["estimate"] == -50
    assert found["over_runs"]["n"] == 2
    assert found["over_scenes"]["n"] == 4
    yes = contrast([first], before="plain", after="patch", metric="false positives")
    assert yes["over_scenes"]["estimate"] == -25


def test_length_matched_chair_cuts_both_captions_at_the_shorter():
    from claims import length_matched

    # Plain: boat, fish; patched: boat. Cut at one mention, neither hallucinates.
    plain = result(absent=[0, 0])
    captions = plain.captions.assign(mentions=[["boat", "fish"]] * 2)
    shorter = plain.captions.assign(mentions=[["boat"], ["fish", "boat"]])
    run = run_of(
        plain=ToyBenchmark(plain.questions, captions),
        patch=ToyBenchmark(plain.questions, shorter),
    )
    found = length_matched([run], "patch")["over_scenes"]
    # Scene 0: False and False; scene 1, cut at two: both name a fish.
    assert found["estimate"] == 0
    from claims import contrast

    uncut = contrast([run], before="plain", after="patch", metric="CHAIR_S")
    assert uncut["over_scenes"]["estimate"] == -50


def test_the_verdict_goes_by_the_interval_and_the_signs():
    from page import judge

    def found(low, high, *signs):
        runs = [{"estimate": sign} for sign in signs]
        effect = {"estimate": (low + high) / 2, "low": low, "high": high}
        return {"over_scenes": effect, "each_run": runs}

    assert judge(found(-2, 1, -1, -1, -1)) == "no difference shown"
    assert judge(found(-3, -1, -1, -2, -3)) == "lower, in all three toys"
    assert judge(found(1, 3, 1, 2, -1)) == "higher, not in every toy"


def test_density_is_correlated_with_absent_mentions_within_object_counts():
    from claims import density_and_hallucination

    rng = np.random.default_rng(0)
    absent = rng.integers(0, 3, size=60)
    plain = result(absent=absent, mentions=3)
    sinks = pd.DataFrame(
        {
            "definition": "visible",
            "beta": 1.0,
            "layer": layer,
            "head": 0,
            "scene": np.arange(60),
            "density": (3 - absent) / 10,
        }
        for layer in (0, 1)
    )
    sinks = sinks.explode(["scene", "density"]).astype({"density": float, "scene": int})
    run = run_of(sinks, plain=plain)
    found = density_and_hallucination([run, run], beta=1.0)
    for effect in [*found["raw"], *found["within object count"]]:
        assert effect["estimate"] == pytest.approx(-1)


def test_conditions_cover_every_layer_donor_and_definition():
    from conditions import CONTROLS, PLAIN, list_conditions

    conditions = list_conditions(8)
    assert next(iter(conditions)) == PLAIN
    assert len(CONTROLS) == 5
    for layer in range(8):
        for donor in ("densest", *CONTROLS):
            expected = eah.EAH(layers=(layer,), donor=donor)
            assert conditions[f"L{layer} {donor}"] == expected
    assert conditions["L0+1 paper"] == eah.EAH.paper(layers=(0, 1))
    assert conditions["L1 to 4 heads"].recipients == (0, 1, 2, 3)


def test_a_stopped_measurement_goes_on_and_other_weights_are_refused(
    tmp_path, monkeypatch
):
    import measure

    few = {"plain": None, "L1 densest": eah.EAH()}
    monkeypatch.setattr(measure, "list_conditions", lambda _: few)
    asked = []

    def ask(model, scenes, *, eah, **options):
        asked.append(eah)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return result(absent=[0, 1]).questions

    def describe(model, scenes, **options):
        return result(absent=[0, 1]).captions

    monkeypatch.setattr(measure, "ask_about_scenes", ask)
    monkeypatch.setattr(measure, "describe_scenes", describe)
    with pytest.raises(KeyboardInterrupt):
        measure.measure_toy("seed-0", n_scenes=2, folder=tmp_path)
    measure.measure_toy("seed-0", n_scenes=2, folder=tmp_path)
    assert asked == [None, eah.EAH(), eah.EAH()]
    run = measure.read(tmp_path, "seed-0", n_scenes=2)
    assert set(run.results) == set(few)
    assert run.sinks.groupby(["definition", "beta"]).ngroups == 3
    assert run.sinks.scene.nunique() == 2
    (tmp_path / "seed-0-2" / "weights.json").write_text("{}")
    with pytest.raises(SystemExit, match="measured on other weights"):
        measure.measure_toy("seed-0", n_scenes=2, folder=tmp_path)


@pytest.mark.slow
def test_the_record_s_levels_and_effects_come_out_again(record):
    scenes = draw_scenes(range(record["scenes"]))
    model = eah.load()
    before, after = (
        run_toy_benchmark(model, scenes, eah=settings, progress=False)
        for settings in (None, eah.EAH())
    )
    plain = record["plain"]["seeds"]
    assert before.chair().chair_s == pytest.approx(plain["CHAIR_S"][0], abs=0.5)
    assert before.chair().recall == pytest.approx(plain["recall"][0], abs=0.5)
    effect = record["effects"]["L1 densest"]["CHAIR_S"]["each_run"][0]
    change = after.chair().chair_s - before.chair().chair_s
    assert change == pytest.approx(effect["estimate"], abs=1)
