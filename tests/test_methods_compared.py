"""The comparison of methods with their nulls: its sums, its verdicts, its study."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from eah_interp.benchmarks import cap_captions, score_captions
from eah_interp.benchmarks.paired import Draws
from eah_interp.studies import StudyFile
from tests.studies.made import caption, make_run, question

BENCH = Path(__file__).parents[1] / "docs" / "bench"
FOUND = {"ad_hh": [[0, 1]], "pih": [[1, 2], [3, 4]], "var": [5]}


@pytest.fixture(scope="module")
def methods():
    sys.path.insert(0, str(BENCH))
    import methods

    yield methods
    sys.path.remove(str(BENCH))


@pytest.mark.parametrize("toy", ["seed-0", "seed-1", "seed-2"])
def test_the_study_is_one_with_what_was_found_filled_in(methods, tmp_path, toy):
    file = tmp_path / "study.yaml"
    file.write_text(methods.fill_study(toy, FOUND, scenes=2))
    planned = StudyFile.load(file)
    assert planned.source.name == f"toy:{toy}"
    found = methods.list_nulls([one.to_dict() for one in planned.conditions])
    own = {name: len(nulls) for name, nulls in found.items()}
    assert own == {
        "EAH": 5,
        "PAI": 0,
        "VAR": 0,
        "heads-guided": 0,
        "SPIN": 0,
        "SPIN for questions": 0,
        "AD-HH": 3,
        "VHR": 3,
        "VISTA steering": 3,
        "PIH": 3,
        "growing boost": 0,
    }
    heads = {one.name: getattr(one.patch, "heads", None) for one in planned.conditions}
    assert heads["AD-HH"] == ((0, 1),)
    assert heads["PIH"] == ((1, 2), (3, 4))


# ---- Intervals over scenes and toys.


def simulate(methods, generator, *, toys, of_toys, of_scenes, n=40, samples=200):
    """Draw toys' effects, and scenes' that all toys share: the truth is zero."""
    scenes = of_scenes * torch.randn(n, generator=generator)
    shift = of_toys * torch.randn(toys, 1, generator=generator)
    values = (scenes + shift).double()
    places = torch.randint(n, (samples, n), generator=generator)
    drawn = values[:, places].mean(-1)
    return methods.Number(values.mean(1), drawn, n)


@pytest.mark.parametrize(
    ("toys", "of_toys", "of_scenes"),
    [(3, 1.0, 0.2), (3, 0.0, 1.0), (3, 1.0, 6.0), (1, 0.0, 1.0)],
)
def test_no_effect_is_found_at_the_nominal_rate_at_most(
    methods, toys, of_toys, of_scenes
):
    generator = torch.Generator().manual_seed(1)
    found = [
        simulate(
            methods, generator, toys=toys, of_toys=of_toys, of_scenes=of_scenes
        ).estimate()
        for _ in range(600)
    ]
    wrong = sum(one["p"] < 0.05 for one in found)
    assert stats.binom.sf(wrong - 1, 600, 0.05) > 0.001
    outside = sum(not one["low"] <= 0 <= one["high"] for one in found)
    assert outside == wrong


def test_three_toys_that_differ_have_two_degrees_of_freedom(methods):
    whole = torch.tensor([1.0, 2.0, 3.0])
    drawn = whole[:, None] + 1e-6 * torch.randn(3, 50)
    found = methods.Number(whole, drawn, 50).estimate()
    half = stats.t.ppf(0.975, 2) / 3**0.5
    assert found["high"] - 2 == pytest.approx(half, rel=1e-3)


# ---- Answers made by hand.


NAMES = ("boat", "fish", "tree", "cup")
TOLD = {
    "baseline": [(3, 3, 2), (4, 1, 3), (2, 4, 4), (3, 2, 1)],
    "shorter": [(1, 2, 1), (2, 1, 1), (2, 2, 1), (1, 1, 1)],
}


def tell(numbers):
    return " and ".join(f"a {NAMES[number % 4]}" for number in numbers)


def make_rows(methods, folder):
    items = [
        *(caption(f"c{n}", truth=NAMES[: n % 3 + 1], cluster=n) for n in range(4)),
        *(question(f"q{n}", label=n % 2 == 0, cluster=n) for n in range(4)),
    ]
    said = {
        name: [*(tell(one) for one in told), *(["Yes", "No", "No", "No"][:4])]
        for name, told in TOLD.items()
    }
    said["yes-biased"] = [*said["baseline"][:4], *["Yes"] * 4]
    runs = [make_run(folder / str(n), items, said) for n in range(2)]
    return methods.Rows(runs, draws=Draws(resamples=50))


def test_numbers_are_those_of_the_answers(methods, tmp_path):
    rows = make_rows(methods, tmp_path)
    accuracy = rows.rate("shorter", "right", "one", task="yes_no")
    assert accuracy.whole.tolist() == [75.0, 75.0]
    gap = accuracy - rows.rate("yes-biased", "right", "one", task="yes_no")
    assert gap.whole.tolist() == [25.0, 25.0]
    tables = {name: rows.captions[name][0] for name in TOLD}
    for name, table in tables.items():
        once = table.assign(mentions=[list(dict.fromkeys(m)) for m in table.mentions])
        expected = score_captions(once)
        assert float(rows.of_captions(name, "CHAIR_I").whole[0]) == pytest.approx(
            expected.chair_i
        )
        assert float(rows.of_captions(name, "recall").whole[0]) == pytest.approx(
            expected.recall
        )
    base = cap_captions(tables["baseline"], most=2)
    line = float(rows.line(2, "CHAIR_I").whole[0])
    assert line == pytest.approx(score_captions(base).chair_i)
    mean = float(pd.Series([len(set(m)) for m in tables["shorter"].mentions]).mean())
    pair = [score_captions(cap_captions(tables["baseline"], most=k)) for k in (1, 2)]
    share = (mean - pair[0].objects) / (pair[1].objects - pair[0].objects)
    named = [one.objects for one in pair]
    absent = [one.chair_i / 100 * one.objects for one in pair]
    cut = 100 * (absent[0] + share * (absent[1] - absent[0]))
    cut /= named[0] + share * (named[1] - named[0])
    own = float(rows.of_captions("shorter", "CHAIR_I").whole[0])
    assert float(rows.excess("shorter", "objects").whole[0]) == pytest.approx(own - cut)
    for by in ("objects", "words"):
        assert rows.excess("baseline", by).whole.tolist() == pytest.approx([0, 0])


# ---- Verdicts.


def one(task="captions", null="n", *, value=0.0, low=None, high=None, p=1.0):
    return {
        "task": task,
        "null": null,
        "value": value,
        "low": low,
        "high": high,
        "p_holm": p,
    }


VERDICTS = {
    "better": one(value=-3.0, low=-4.0, high=-2.0, p=0.01),
    "worse": one(value=3.0, low=2.0, high=4.0, p=0.01),
    "not better": one(value=0.1, low=-0.9, high=1.1),
    "cannot be told": one(value=-1.0, low=-3.0, high=1.0, p=0.3),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_gain_lies_below_zero_of_captions_and_above_it_of_questions(methods, verdict):
    found = VERDICTS[verdict]
    assert methods.judge(found) == verdict
    other = one(
        "questions",
        value=-found["value"],
        low=-found["high"],
        high=-found["low"],
        p=found["p_holm"],
    )
    assert methods.judge(other) == verdict


def test_what_has_no_interval_is_judged_by_what_there_is(methods):
    assert methods.judge(one(value=0.0, p=None)) == "not better"
    assert methods.judge(one(value=-50.0, p=None)) == "cannot be told"
    assert methods.judge(one(value=None, p=None)) == "cannot be told"


def test_a_method_is_as_good_as_the_worst_of_its_comparisons(methods):
    listed = [
        one(null=name) | {"verdict": verdict}
        for name, verdict in (("a", "better"), ("b", "cannot be told"), ("c", "worse"))
    ]
    assert methods.sum_method(listed) == ("worse", ["c"])
    assert methods.sum_method(listed[:2]) == ("cannot be told", ["b"])
    assert methods.sum_method(listed[:1]) == ("better", ["a"])
    said = methods.write_sentence(
        "It",
        [*listed, one("questions", "d") | {"verdict": "better"}],
    )
    assert (
        said == "It: of captions worse than c; of questions better than all its nulls."
    )


@pytest.mark.slow
def test_two_scenes_run_to_a_page(methods, tmp_path):
    places = {"record": "r.json", "page": "p.md", "figure": "f.png"}
    options = [f"--{key}={tmp_path / name}" for key, name in places.items()]
    found = CliRunner().invoke(
        methods.app,
        [f"--out={tmp_path}", "--toy=seed-0", "--scenes=2", "--searched=40", *options],
    )
    assert found.exit_code == 0, found.output
    page = (tmp_path / "p.md").read_text()
    record = json.loads((tmp_path / "r.json").read_text())
    assert len(record["methods"]) == 11
    for name in record["methods"]:
        assert f"- **{name}**: of captions" in page
    assert (tmp_path / "f.png").stat().st_size > 10_000
