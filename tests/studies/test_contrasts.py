"""Claims about comparisons: paired, cut to one length, and refused where undefined."""

import dataclasses
import random

import pandas as pd
import pytest

from eah_interp.benchmarks.chair import match_lengths
from eah_interp.benchmarks.paired import Draws
from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.studies import compare_runs, summarise
from eah_interp.studies.claims import answer_claims
from eah_interp.toy.world import OBJECTS
from tests.studies.made import caption, make_run, patch, question

DRAWS = Draws(resamples=200)


def ask(n_images, *, each=1):
    return [
        question(f"{image}/{n}", label=False, cluster=image)
        for image in range(n_images)
        for n in range(each)
    ]


def tell(seed, n=30):
    """Make captions of random objects and lengths, and what is in the images."""
    rng = random.Random(seed)
    truth = [rng.sample(OBJECTS, 3) for _ in range(n)]
    items = [caption(f"c{i}", truth=t, cluster=i) for i, t in enumerate(truth)]
    said = [
        [" ".join(rng.choices(OBJECTS, k=rng.randint(0, most))) for _ in range(n)]
        for most in (6, 3)
    ]
    return items, said


def test_length_matching_agrees_with_a_naive_loop(tmp_path):
    items, (long, short) = tell(0)
    run = make_run(tmp_path / "s", items, {"baseline": long, "short": short})
    found = summarise(run, draws=DRAWS)
    guilty = [0, 0]
    for item, *both in zip(items, long, short, strict=True):
        words = [text.split() for text in both]
        least = min(len(set(named)) for named in words)
        for side, named in enumerate(words):
            met = set()
            for word in named:
                if len(met | {word}) > least:
                    break
                met.add(word)
            guilty[side] += not met <= set(item.truth)
    change = found.find("short", "CHAIR_S, length-matched", task="caption")
    assert change.effect.estimate == pytest.approx(100 * (guilty[1] - guilty[0]) / 30)
    plain = found.find("short", "CHAIR_S", task="caption")
    assert plain.effect.estimate < change.effect.estimate - 5


def test_a_caption_that_repeats_itself_does_not_pass_for_an_honest_one(tmp_path):
    """Ten true mentions are no reason to cut the other caption after one."""
    items = [caption(f"c{n}", truth=("cup",), cluster=n) for n in range(8)]
    plain = ["a cup, a boat"] * 8
    loops = ["a cup, a cup, a cup, a boat"] * 8
    run = make_run(tmp_path / "s", items, {"baseline": plain, "loops": loops})
    found = summarise(run, draws=DRAWS)

    def change(metric):
        return found.find("loops", metric, task="caption").effect.estimate

    assert change("CHAIR_I") == pytest.approx(25 - 50)
    assert change("CHAIR_S, length-matched") == 0
    assert change("CHAIR_I, length-matched") == 0
    # Of 5 runs of four words two come twice; the baseline's only one comes once.
    assert change("distinct 4-grams") == pytest.approx(60 - 100)


def test_only_mentions_are_cut_and_only_of_as_many_captions():
    one = pd.DataFrame({"mentions": [["cup", "pan"], []], "caption": ["a", "b"]})
    other = pd.DataFrame({"mentions": [["pan"], ["cup"]], "caption": ["c", "d"]})
    cut = match_lengths(one, other=other)
    assert cut.mentions.tolist() == [["cup"], []]
    assert cut.caption.tolist() == ["a", "b"]
    assert one.mentions.tolist() == [["cup", "pan"], []]
    with pytest.raises(InputError, match="as many captions twice"):
        match_lengths(one, other=other[:1])


def test_an_item_that_failed_once_is_left_out_of_both_sides(tmp_path):
    items = ask(4)
    before, after = ["Yes", "No", "Yes", "No"], ["No", "No", ValueError("x"), "Yes"]
    run = make_run(tmp_path / "s", items, {"baseline": before, "patched": after})
    found = summarise(run, draws=DRAWS).find("patched", "accuracy", task="yes_no")
    assert (found.n, found.n_dropped) == (3, 1)
    assert found.effect.estimate == pytest.approx(0)  # one mended, one broken
    assert (found.gained, found.lost, found.p) == (1, 1, 1.0)


def test_a_change_prints_as_one_line_and_is_found_without_its_task(tmp_path):
    items, plain, x = ask(10, each=2), ["No"] * 20, ["Yes"] * 8 + ["No"] * 12
    run = make_run(tmp_path / "s", items, {"baseline": plain, "x": x})
    found = summarise(run, draws=DRAWS)
    change = found.find("x", "accuracy")
    assert change == found.find("x", "accuracy", task="yes_no")
    assert str(change) == (
        f"accuracy, x minus baseline: {change.effect} points (95 %, 20 items of 10 "
        "images), p = 0.0078, Holm 0.0156"
    )
    same = dataclasses.replace(change, effect=None, undefined="why", kind="random")
    assert str(same).endswith("(random), x minus baseline: undefined, why (20 items)")
    assert "p < 0.0001" in str(dataclasses.replace(change, p=1e-9))


def test_a_metric_of_two_tasks_asks_which(tmp_path):
    items = [*ask(4), caption("c", truth=["cup"], cluster=1)]
    said = ["No"] * 4 + ["a cup"]
    run = make_run(tmp_path / "s", items, {"baseline": said, "x": said})
    found = summarise(run, draws=DRAWS)
    with pytest.raises(SettingsError, match=r"several tasks: .*task='caption'"):
        found.find("x", "recall")
    assert found.find("x", "recall", task="yes_no").metric.task == "yes_no"
    with pytest.raises(SettingsError, match=r"compared with 'baseline' are x, in acc"):
        found.find("y", "accuracy")


def test_images_are_drawn_and_not_questions(tmp_path):
    rng = random.Random(0)
    said = [rng.choice(["Yes", "No"]) for _ in range(40)]
    plain = ["No"] * 40
    once = make_run(tmp_path / "a", ask(40), {"baseline": plain, "x": said})
    repeated = {
        "baseline": plain * 9,
        "x": [answer for answer in said for _ in range(9)],
    }
    often = make_run(tmp_path / "b", ask(40, each=9), repeated)
    one, nine = (
        summarise(run, draws=DRAWS).find("x", "accuracy", task="yes_no")
        for run in (once, often)
    )
    assert nine.n == 9 * one.n
    assert (nine.effect.low, nine.effect.high) == (one.effect.low, one.effect.high)


def test_items_of_one_image_are_one_draw_whether_they_say_so_or_not(tmp_path):
    """Twelve questions on each of five images: not sixty independent answers."""
    named = ask(5, each=12)
    bare = [dataclasses.replace(item, cluster="") for item in named]
    half = [
        dataclasses.replace(item, cluster="" if n % 2 else item.cluster)
        for n, item in enumerate(named)
    ]
    said = [answer for answer in ["Yes", "Yes", "No", "No", "No"] for _ in range(12)]
    answers = {"baseline": ["No"] * 60, "x": said}
    intervals = [
        summarise(make_run(tmp_path / name, items, answers), draws=DRAWS)
        .find("x", "accuracy", task="yes_no")
        .effect
        for name, items in (("named", named), ("bare", bare), ("half", half))
    ]
    assert [effect.n for effect in intervals] == [5, 5, 5]
    assert len({(effect.low, effect.high) for effect in intervals}) == 1
    assert intervals[0].high - intervals[0].low > 50


def test_no_change_at_all_is_no_certainty(tmp_path):
    answers = ["No"] * 30
    run = make_run(tmp_path / "s", ask(30), {"baseline": answers, "same": answers})
    found = summarise(run, draws=DRAWS).find("same", "accuracy", task="yes_no")
    share = 1 - 0.025 ** (1 / 30)  # Clopper and Pearson's of 0 in 30
    assert found.effect.high == pytest.approx(100 * share)
    assert found.effect.low == pytest.approx(-100 * share)
    assert (found.gained, found.lost, found.p, found.odds) == (0, 0, 1.0, None)


def test_undefined_rates_are_named(tmp_path):
    items, (said, _) = tell(1)
    silent = ["Nothing."] * len(items)
    run = make_run(tmp_path / "s", items, {"baseline": said, "silent": silent})
    found = summarise(run, draws=DRAWS)
    change = found.find("silent", "CHAIR_I", task="caption")
    assert change.effect is None
    assert change.undefined == "its divisor is zero"
    matched = found.find("silent", "CHAIR_I, length-matched", task="caption")
    assert matched.undefined == "its divisor is zero"
    assert found.find("silent", "CHAIR_S", task="caption").effect.high < 0


def test_a_rate_that_some_samples_lack_is_named(tmp_path):
    items = ask(6)
    run = make_run(
        tmp_path / "s",
        items,
        {"baseline": ["Yes", *["No"] * 5], "x": ["Yes", "Yes", *["No"] * 4]},
    )
    found = summarise(run, draws=DRAWS).find("x", "precision", task="yes_no")
    assert found.effect is None
    assert "bootstrap samples" in found.undefined


def test_one_item_has_no_interval(tmp_path):
    run = make_run(tmp_path / "s", ask(1), {"baseline": ["Yes"], "x": ["No"]})
    found = summarise(run, draws=DRAWS).find("x", "accuracy", task="yes_no")
    assert found.effect is None
    assert "2 images or more" in found.undefined
    assert found.p == 1.0


def test_nothing_in_common_is_named(tmp_path):
    answers = {"baseline": ["Yes", ValueError("x")], "x": [ValueError("x"), "No"]}
    run = make_run(tmp_path / "s", ask(2), answers)
    found = summarise(run, draws=DRAWS).find("x", "accuracy", task="yes_no")
    assert (found.n, found.n_dropped) == (0, 2)
    assert found.undefined == "no item was answered under both"


def test_holm_s_family_is_all_tests_over_all_questions(tmp_path):
    items = [
        question(f"{n}", label=False, cluster=n, kind="random" if n % 2 else "popular")
        for n in range(20)
    ]
    yes, no = ["Yes"] * 20, ["No"] * 20
    mixed = ["Yes"] * 13 + ["No"] * 7
    run = make_run(tmp_path / "s", items, {"baseline": yes, "a": no, "b": mixed})
    found = summarise(run, draws=DRAWS)
    tested = [c for c in found.contrasts if c.p_holm is not None]
    assert {c.kind for c in tested} == {"all"}
    assert len(tested) == 4  # accuracy and false positives, twice
    least = found.find("a", "accuracy", task="yes_no")
    assert least.p == pytest.approx(2 * 0.5**20)
    assert least.p_holm == pytest.approx(4 * least.p)
    most = found.find("b", "false positives", task="yes_no")
    assert most.p_holm == pytest.approx(2 * most.p)
    kind = found.find("a", "accuracy", task="yes_no", kind="popular")
    assert (kind.p is not None, kind.p_holm) == (True, None)


def test_a_part_of_a_study_is_refused_unless_asked_for(tmp_path):
    run = make_run(tmp_path / "s", ask(3), {"baseline": ["Yes", "No", None]})
    with pytest.raises(UnsupportedError, match="partial=True"):
        summarise(run)
    found = summarise(run, partial=True, draws=DRAWS)
    assert found.failures[0]["missing"] == 1


def test_an_unknown_reference_or_contrast_is_refused(tmp_path):
    run = make_run(tmp_path / "s", ask(2), {"baseline": ["Yes", "No"]})
    with pytest.raises(SettingsError, match="reference must be a condition"):
        summarise(run, reference="plain")
    with pytest.raises(SettingsError, match="no contrast of"):
        summarise(run, draws=DRAWS).find("x", "accuracy", task="yes_no")


def test_studies_that_differ_are_compared_only_if_asked_for(tmp_path):
    items = ask(6)
    one = make_run(tmp_path / "a", items, {"baseline": ["Yes"] * 6})
    same = make_run(tmp_path / "b", items, {"baseline": ["No"] * 5 + ["Yes"]})
    other = make_run(
        tmp_path / "c",
        [*items[1:], *ask(8)[7:]],
        {"baseline": ["No"] * 6},
        dtype="bf16",
    )
    found = compare_runs(one, same, draws=DRAWS)
    assert found.contrasts[0].effect.estimate == pytest.approx(100 * 5 / 6)
    with pytest.raises(SettingsError, match="dtype"):
        compare_runs(one, other)
    found = compare_runs(one, other, allow_different=True, draws=DRAWS)
    assert found.contrasts[0].n == 5
    assert any("bf16" in note for note in found.notes)
    assert any("left out" in note for note in found.notes)
    stranger = make_run(tmp_path / "d", items, {"mine": ["No"] * 6})
    with pytest.raises(SettingsError, match="condition of the same name"):
        compare_runs(one, stranger, allow_different=True)
    elsewhere = make_run(tmp_path / "e", ask(9)[8:], {"baseline": ["No"]})
    with pytest.raises(InputError, match="share no item"):
        compare_runs(one, elsewhere, allow_different=True)


@pytest.mark.parametrize(
    "change",
    [{"prompt": "Is there a pan?"}, {"image": "toy:test:99"}, {"label": True}],
    ids=lambda change: next(iter(change)),
)
def test_items_of_one_name_that_ask_different_things_are_not_compared(tmp_path, change):
    items = ask(6)
    others = [dataclasses.replace(items[0], **change), *items[1:]]
    one = make_run(tmp_path / "a", items, {"baseline": ["Yes"] * 6})
    two = make_run(tmp_path / "b", others, {"baseline": ["No", *["Yes"] * 5]})
    found = compare_runs(one, two, allow_different=True, draws=DRAWS)
    assert {contrast.n for contrast in found.contrasts} == {5}
    yes = next(c for c in found.contrasts if c.metric.name == "yes-ratio")
    assert yes.effect.estimate == 0  # only the first answer differs
    assert any("1 items are in one of the two studies only" in n for n in found.notes)


@pytest.fixture
def claimed(tmp_path):
    """A study in which claims 1, 2 and 3 hold and the recipients of claim 4 do not."""
    rng = random.Random(0)
    n = 60
    items = [caption(f"c{i}", truth=("boat", "car"), cluster=i) for i in range(n)]
    wrong, right = "a boat and a fish", "a boat and a car"
    density = [rng.random() for _ in range(n)]
    answers = {
        "baseline": [wrong if d < 0.7 else right for d in density],
        "EAH": [wrong if d < 0.3 else right for d in density],
        "deep": [wrong if d < 0.65 else right for d in density],
        "few": [right] * n,
    }
    patches = {
        "EAH": patch(),
        "deep": patch(layers=(3,)),
        "few": patch(recipients=(0, 1)),
    }
    sinks = pd.DataFrame(
        [
            {"item": f"c{i}", "layer": layer, "head": head, "density": value}
            for i, d in enumerate(density)
            for layer in range(5)
            for head, value in enumerate((d if layer < 2 else d / 9, 0.1))
        ]
    )
    return make_run(tmp_path / "s", items, answers, patches=patches, sinks=sinks)


def test_claims_are_answered_with_intervals_or_by_what_is_lacking(claimed):
    first, second, third, fourth = answer_claims(claimed, draws=DRAWS)
    assert [c.verdict for c in (first, second, third)] == ["holds"] * 3
    assert fourth.verdict == "does not hold"
    verdicts = {finding.what: finding.verdict for finding in fourth.findings}
    assert verdicts["CHAIR_S: 'EAH' against 'few'"] == "does not hold"
    assert verdicts["beta 0.002 against others"] == "not measured"
    lacking = next(f for f in fourth.findings if f.what.startswith("the densest"))
    assert "control_conditions()" in str(lacking)
    correlation = second.findings[0].effect
    assert -1 <= correlation.low <= correlation.estimate <= correlation.high < 0


def test_claims_without_sinks_or_patches_are_not_measured(tmp_path):
    run = make_run(tmp_path / "s", ask(3), {"baseline": ["Yes"] * 3})
    claims = answer_claims(run, draws=DRAWS)
    assert {claim.verdict for claim in claims} == {"not measured"}
    assert "sinks=True" in str(claims[0].findings[0])
    assert "EAH(layers=(1,))" in str(claims[2].findings[0])


def test_correlations_agree_with_scipy(claimed):
    from scipy import stats

    from eah_interp.studies.claims import density_and_errors
    from eah_interp.studies.scores import score_rows

    rows = score_rows(claimed)
    table = density_and_errors(claimed.sinks(), claimed.items(), rows, "baseline")
    expected = stats.spearmanr(table.density, table.error).statistic
    found = answer_claims(claimed, rows, draws=DRAWS)[1].findings[0].effect
    assert found.estimate == pytest.approx(expected)
