"""Captions cut to a length are what a hand cuts, and the line to beat is exact."""

import numpy as np
import pandas as pd
import pytest

import eah_interp as eah
from eah_interp.benchmarks.lengths import cap_captions, contrast_cap, list_caps
from eah_interp.benchmarks.paired import Draws
from eah_interp.errors import InputError, SettingsError
from eah_interp.toy import draw_scene
from eah_interp.toy.language import mentions_in

DRAWS = Draws(resamples=300)
WORDS = ["cup", "pan", "fork", "dog", "boat"]


def make(rng, n, *, longest, cluster=1):
    """Make captions: names, some twice, with a word before each."""
    rows = []
    for number in range(n):
        named = [str(rng.choice(WORDS)) for _ in range(rng.integers(0, longest))]
        text, starts = "", []
        for name in named:
            text += "a "
            starts.append(len(text))
            text += f"{name} "
        rows.append(
            {
                "item": str(number),
                "condition": "",
                "cluster": str(number // cluster),
                "caption": text.strip() + " here" * int(rng.integers(0, 3)),
                "mentions": named,
                "starts": starts,
                "truth": [str(rng.choice(WORDS)), "cup"],
                "n_tokens": len(named),
            }
        )
    return pd.DataFrame(rows)


def score(tables, weights):
    """Score mixtures of captions in plain Python: weights and tables side by side."""
    sums = dict.fromkeys(["one", "hit", "absent", "objects", "found", "truth"], 0.0)
    for table, weight in zip(tables, weights, strict=True):
        for row in table.itertuples():
            named, truth = set(row.mentions), set(row.truth)
            sums["one"] += weight
            sums["hit"] += weight * bool(named - truth)
            sums["absent"] += weight * len(named - truth)
            sums["objects"] += weight * len(named)
            sums["found"] += weight * len(named & truth)
            sums["truth"] += weight * len(truth)
    return {
        "CHAIR_S": 100 * sums["hit"] / sums["one"],
        "CHAIR_I": 100 * sums["absent"] / sums["objects"],
        "recall": 100 * sums["found"] / sums["truth"],
    }


def length_of(table, by):
    if by == "objects":
        return sum(len(set(named)) for named in table.mentions) / len(table)
    return sum(len(text.split()) for text in table.caption) / len(table)


def beat(before, after, by):
    """Find the change against the mixture of two cuts, cut by cut."""
    wanted = length_of(after, by)
    cap = 0
    while length_of(cap_captions(before, most=cap + 1, by=by), by) < wanted:
        cap += 1
        if cap > 100:
            return score([after], [1]), score([before], [1])
    pair = [cap_captions(before, most=cap + n, by=by) for n in (0, 1)]
    low, high = (length_of(one, by) for one in pair)
    share = (wanted - low) / (high - low)
    return score([after], [1]), score(pair, [1 - share, share])


@pytest.mark.parametrize("by", ["objects", "words"])
@pytest.mark.parametrize("seed", range(6))
def test_a_change_is_that_against_captions_cut_by_hand_to_the_same_mean(by, seed):
    rng = np.random.default_rng(seed)
    before = make(rng, 40, longest=9, cluster=2)
    after = make(rng, 40, longest=[3, 5, 7, 9, 12, 20][seed], cluster=2)
    own, cut = beat(before, after, by)
    for change in contrast_cap(before, after, by=by, draws=DRAWS):
        name = change.metric
        assert change.effect.estimate == pytest.approx(own[name] - cut[name])
        assert change.effect.low < change.effect.estimate < change.effect.high
        assert change.length == pytest.approx(length_of(after, by))
        assert change.full == pytest.approx(length_of(before, by))


@pytest.mark.parametrize("by", ["objects", "words"])
def test_every_drawn_sample_has_a_cap_of_its_own(by):
    """The interval is that of cutting each sample's captions by hand."""
    rng = np.random.default_rng(8)
    before, after = make(rng, 12, longest=8), make(rng, 12, longest=5)
    before.loc[0, "truth"].append("dog")
    found = contrast_cap(before, after, by=by, draws=Draws(resamples=60))
    draws = np.random.default_rng(0).integers(0, 12, (60, 12))
    values = {"CHAIR_S": [], "CHAIR_I": [], "recall": []}
    for places in draws:
        sides = [t.iloc[places].reset_index(drop=True) for t in (before, after)]
        own, cut = beat(*sides, by)
        for name, listed in values.items():
            listed.append(own[name] - cut[name])
    for change in found:
        ends = np.quantile(values[change.metric], [0.025, 0.975])
        assert [change.effect.low, change.effect.high] == pytest.approx(list(ends))


def test_the_line_is_the_captions_cut_at_every_number_of_objects():
    table = make(np.random.default_rng(1), 30, longest=9)
    line = list_caps(table, draws=DRAWS)
    assert list(line.cap) == list(range(1, 6))
    for row in line.itertuples():
        cut = cap_captions(table, most=row.cap)
        expected = score([cut], [1])
        assert row.length == pytest.approx(length_of(cut, "objects"))
        for name, value in expected.items():
            assert getattr(row, name) == pytest.approx(value)
            low, high = getattr(row, f"{name}_low"), getattr(row, f"{name}_high")
            assert low <= value <= high


def test_the_baseline_does_not_beat_itself_at_any_length():
    """Cut by a coin between two numbers, it lies on its own line."""
    rng = np.random.default_rng(3)
    before = make(rng, 2000, longest=9)
    coin = rng.random(2000) < 0.4
    parts = [cap_captions(before, most=most) for most in (2, 3)]
    mixed = pd.concat([parts[0][~coin], parts[1][coin]]).sort_index()
    for change in contrast_cap(before, mixed, draws=DRAWS):
        assert abs(change.effect.estimate) < 1.5
        assert change.effect.low < 0 < change.effect.high
    for change in contrast_cap(before, parts[0], draws=DRAWS):
        assert change.effect.estimate == pytest.approx(0, abs=1e-9)


def test_a_cut_of_a_greedy_caption_is_what_a_shorter_generation_says():
    model = eah.load()
    image = draw_scene(3).pil()
    whole = model.describe(image, max_new_tokens=40)
    for k in (1, 3, 6, 9):
        short = model.describe(image, max_new_tokens=k)
        assert whole.startswith(short)
        assert whole.split()[: len(short.split()) - 1] == short.split()[:-1]
    named = list(mentions_in(whole))
    table = pd.DataFrame([{"caption": whole, "mentions": named}])
    assert cap_captions(table, most=1).mentions[0] == named[:1]


def test_text_is_cut_where_it_is_known_where_objects_start():
    row = {"caption": "a cup, a pan.", "mentions": ["cup", "pan"], "starts": [2, 9]}
    table = pd.DataFrame([row])
    assert cap_captions(table, most=1).caption[0] == "a cup, a "
    assert cap_captions(table, most=0).mentions[0] == []
    words = cap_captions(table, most=2, by="words")
    assert (words.caption[0], words.mentions[0], words.starts[0]) == (
        "a cup,",
        ["cup"],
        [2],
    )
    assert cap_captions(table, most=0, by="words").caption[0] == ""
    assert cap_captions(table, most=9, by="words").caption[0] == row["caption"]
    bare = table.drop(columns="starts")
    assert cap_captions(bare, most=1).caption[0] == row["caption"]


@pytest.mark.usefixtures("as_users_run_it")
def test_what_cannot_be_cut_is_refused():
    table = make(np.random.default_rng(1), 4, longest=4)
    bare = table.drop(columns="starts")
    with pytest.raises(InputError, match="expected the column 'starts'"):
        contrast_cap(bare, bare, by="words")
    with pytest.raises(SettingsError, match="by must be"):
        cap_captions(table, most=1, by="tokens")
    with pytest.raises(SettingsError, match="most must be"):
        cap_captions(table, most=-1)
    with pytest.raises(InputError, match="none that both have"):
        contrast_cap(table, table.assign(item="x" + table["item"]))
    with pytest.raises(InputError, match="captions lack the columns"):
        list_caps(table.drop(columns="truth"))
    nothing = table.assign(mentions=[[]] * 4, starts=[[]] * 4, caption="")
    with pytest.raises(InputError, match="of some length in objects"):
        list_caps(nothing)
    (_, rate, _) = contrast_cap(table, nothing, draws=DRAWS)
    assert rate.effect is None
    assert "divisor is zero" in rate.undefined
