"""Recipients of a broadcast: equal to interventions by hand, and shares add up."""

import dataclasses
import itertools
import math

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution.recipients import RecipientAttribution, attribute_recipients
from eah_interp.attribution.shapley import share_gains
from eah_interp.errors import ModelError, SettingsError
from eah_interp.testing import random_image
from tests.attribution.test_patching import pose_answer
from tests.tiny_families import share_model

RULES = ("densest", "sparsest", "random", "mean", "uniform", "shuffled", 2)


def values_with(model, case, settings, recipients):
    """Trace the model once: these heads, and no others, receive."""
    given = tuple(recipients)
    changed = dataclasses.replace(settings, recipients=given) if given else settings
    with torch.no_grad(), model.trace(**case.inputs, use_cache=False):
        if given:
            eah.intervene(model, changed)
        logits = model.output.logits.save()
    return case.readout.values(logits)


# -- against one intervention for each head ------------------------------------------


@pytest.mark.parametrize("donor", RULES)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl_gpt_oss"])
def test_one_recipient_is_an_intervention_with_one_recipient(family, donor):
    model, case = share_model(family), pose_answer(family)
    settings = eah.EAH(donor=donor, seed=7)
    plain = values_with(model, case, settings, ())
    whole = values_with(model, case, settings, range(4))
    alone = attribute_recipients(model, case, eah=settings, method="alone")
    without = attribute_recipients(model, case, eah=settings, method="without")
    torch.testing.assert_close(alone.plain, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.patched, whole, atol=1e-4, rtol=1e-4)
    assert alone.effects.abs().max() > 1e-3
    for head in range(4):
        others = [other for other in range(4) if other != head]
        one = values_with(model, case, settings, [head]) - plain
        left = whole - values_with(model, case, settings, others)
        close = {"atol": 1e-4, "rtol": 1e-3}
        torch.testing.assert_close(alone.effects[:, head], one, **close)
        torch.testing.assert_close(without.effects[:, head], left, **close)


@pytest.mark.parametrize("donor", ["densest", "mean"])
def test_shapley_values_are_the_mean_over_all_orders(donor):
    model, case = share_model("qwen2_5_vl"), pose_answer("qwen2_5_vl")
    settings = eah.EAH(donor=donor)
    worth = {
        subset: values_with(model, case, settings, subset)
        for size in range(5)
        for subset in itertools.combinations(range(4), size)
    }
    expected = torch.zeros(2, 4)
    for order in itertools.permutations(range(4)):
        for place, head in enumerate(order):
            before = tuple(sorted(order[:place]))
            after = tuple(sorted(order[: place + 1]))
            expected[:, head] += (worth[after] - worth[before]) / math.factorial(4)
    found = attribute_recipients(model, case, eah=settings, method="shapley")
    torch.testing.assert_close(found.effects, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.effects.sum(1), found.total, atol=1e-5, rtol=1e-5)
    assert found.total.abs().max() > 1e-3
    assert not found.errors.any()


@pytest.mark.slow
def test_sampled_shapley_values_of_two_layers_sum_to_the_whole():
    model, case = share_model("llava"), pose_answer("llava")
    settings = eah.EAH(layers=(0, 1, 2), donor="uniform")
    options = {"eah": settings, "method": "shapley", "batch_size": 7}
    few = attribute_recipients(model, case, n_permutations=8, **options)
    many = attribute_recipients(model, case, n_permutations=128, seed=1, **options)
    assert few.effects.shape == (2, 12)
    for found in (few, many):
        torch.testing.assert_close(
            found.effects.sum(1), found.total, atol=1e-5, rtol=1e-5
        )
    assert (many.errors < few.errors).float().mean() > 0.7
    apart = (few.effects - many.effects).abs()
    assert (apart <= 6 * (few.errors + many.errors) + 1e-4).all()


def test_recipients_of_the_settings_are_the_players():
    model, case = share_model("qwen2_5_vl"), pose_answer("qwen2_5_vl")
    settings = eah.EAH(recipients=(0, 3))
    found = attribute_recipients(model, case, eah=settings, method="shapley")
    assert found.recipients == ("L1H0", "L1H3")
    whole = values_with(model, case, settings, (0, 3))
    torch.testing.assert_close(found.patched, whole, atol=1e-4, rtol=1e-4)


def test_the_donor_has_no_effect():
    model = eah.load()
    found = attribute_recipients(model, random_image(), objects=["fish", "boat"])
    table = found.frame()
    assert table["is_donor"].sum() == 2
    assert (table.loc[table["is_donor"], "effect"] == 0).all()
    assert (table.loc[~table["is_donor"], "effect"] != 0).all()


def test_where_nothing_is_patched_nothing_has_an_effect():
    model, case = share_model("llava"), pose_answer("llava")
    found = attribute_recipients(model, case, eah=eah.EAH(beta=1e6), method="shapley")
    assert found.donors[1].tolist() == [-1]
    assert not found.effects.any()
    assert not found.total.any()
    assert not found.frame()["is_donor"].any()


def test_items_of_a_batch_have_donors_of_their_own():
    model = eah.load()
    images, prompts = [random_image(0), random_image(1)], ["Is there a fish?"] * 2
    settings = eah.EAH(donor="random", seed=(3, 4), layers=(1, 2))
    both = attribute_recipients(model, images, prompts, metric="yes_no", eah=settings)
    assert both.donors[1].shape == (2,)
    for item in range(2):
        settings = eah.EAH(donor="random", seed=3 + item, layers=(1, 2))
        one = attribute_recipients(
            model, images[item], prompts[item], metric="yes_no", eah=settings
        )
        assert one.donors[2][0] == both.donors[2][item]
        torch.testing.assert_close(
            both.effects[item], one.effects[0], atol=1e-5, rtol=1e-4
        )


# -- the maths alone -----------------------------------------------------------------


def random_game(n_players, seed=0):
    generator = torch.Generator().manual_seed(seed)
    worth = torch.randn(2**n_players, 2, generator=generator)
    asked = []

    def gain(coalitions):
        asked.extend(coalitions)
        return torch.stack([worth[sum(1 << i for i in each)] for each in coalitions])

    return gain, asked, worth


@pytest.mark.parametrize("n_players", [1, 2, 5, 8])
def test_few_players_are_shared_exactly(n_players):
    gain, asked, worth = random_game(n_players)
    found = share_gains(n_players, gain, n_orders=4)
    assert len(asked) == len(set(asked)) == 2**n_players
    expected = torch.zeros(n_players, 2)
    for player in range(n_players):  # the textbook's sum over coalitions without it
        others = [other for other in range(n_players) if other != player]
        for size in range(n_players):
            weight = 1 / (n_players * math.comb(n_players - 1, size))
            for team in itertools.combinations(others, size):
                bits = sum(1 << i for i in team)
                added = worth[bits | 1 << player] - worth[bits]
                expected[player] += weight * added
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.values.sum(0), worth[-1] - worth[0])
    assert not found.errors.any()


def test_many_players_are_sampled_with_honest_errors():
    gain, _, worth = random_game(9)
    exact = torch.zeros(9, 2)
    for player in range(9):
        for bits in range(2**9):
            if not bits >> player & 1:
                size = bits.bit_count()
                weight = 1 / (9 * math.comb(8, size))
                exact[player] += weight * (worth[bits | 1 << player] - worth[bits])
    inside = []
    for seed in range(30):
        found = share_gains(9, gain, n_orders=32, seed=seed)
        torch.testing.assert_close(
            found.values.sum(0), worth[-1] - worth[0], atol=1e-5, rtol=1e-5
        )
        inside.append((found.values - exact).abs() <= 2 * found.errors)
    assert 0.88 < float(torch.stack(inside).float().mean()) < 0.99  # 94 % expected
    again = share_gains(9, gain, n_orders=32, seed=29)
    assert torch.equal(again.values, found.values)


def test_players_that_only_add_up_are_known_without_error():
    own = torch.randn(12, 1, generator=torch.Generator().manual_seed(0))

    def gain(coalitions):
        return torch.stack([own[sorted(each)].sum(0) for each in coalitions])

    found = share_gains(12, gain, n_orders=4)
    torch.testing.assert_close(found.values, own, atol=1e-5, rtol=1e-5)
    assert float(found.errors.max()) < 1e-6


def test_players_that_meet_in_pairs_are_known_without_error():
    """An order and its reverse put every other player before a player once."""
    together = torch.randn(12, 12, generator=torch.Generator().manual_seed(0)).triu(1)

    def gain(coalitions):
        return torch.stack(
            [together[sorted(each)][:, sorted(each)].sum()[None] for each in coalitions]
        )

    found = share_gains(12, gain, n_orders=4)
    expected = (together + together.T).sum(1, keepdim=True) / 2
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-5)
    assert float(found.errors.max()) < 1e-5


# -- results and refusals ------------------------------------------------------------


def test_a_result_is_drawn_saved_and_loaded(tmp_path):
    found = attribute_recipients(eah.load(), random_image(), objects=["fish"])
    assert len(found.top(3)) == 3
    assert found.plot().axes
    again = RecipientAttribution.load(found.save(tmp_path / "recipients"))
    torch.testing.assert_close(again.effects, found.effects)
    assert again.eah == found.eah
    assert again.donors[1].tolist() == found.donors[1].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mean"}, "method must be one of alone, without, shapley"),
        ({"n_permutations": 7}, "an even number of at least 4, got 7"),
        ({"n_permutations": 2}, "an even number of at least 4, got 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eah": eah.EAH(layers=(8,))}, "layer 8 does not exist"),
        ({"eah": eah.EAH(recipients=(8,))}, r"heads \[8\] do not exist"),
        ({"objects": []}, "takes at least one object"),
    ],
)
def test_what_does_not_exist_is_refused(monkeypatch, as_users_run_it, options, message):
    model = eah.load()
    monkeypatch.setattr(type(model), "trace", None)
    with pytest.raises(SettingsError, match=message):
        attribute_recipients(model, random_image(), **{"objects": ["fish"], **options})


def test_layers_without_heads_are_refused(as_users_run_it):
    model = share_model("qwen3_5")
    settings = eah.EAH(layers=(min(model.anatomy.unfit),))
    with pytest.raises(ModelError, match="cannot be patched"):
        attribute_recipients(model, pose_answer("qwen3_5"), eah=settings)
