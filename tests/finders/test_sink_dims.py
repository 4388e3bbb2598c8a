"""Massive dimensions are found over items; items that are alike say nothing."""

import math

import pytest
import torch
from scipy import stats

from eah_interp.errors import InputError, SettingsError
from eah_interp.finders import DimScores, score_sink_dims
from eah_interp.interventions import find_sink_dims
from eah_interp.lvlm.spans import image_mask
from eah_interp.testing import random_image
from tests.interventions.other_methods import IMAGES, PROMPTS, wrapped

PLANTED = (3, 11)


def draw(seed, *, n_items=12, n_dims=16, planted=0.0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(n_items, n_dims, generator=generator).abs()
    numbers[:, list(PLANTED)] += planted
    return DimScores(activation=numbers, massive=(numbers >= 20).float())


def test_activations_are_those_of_hidden_states_at_the_images():
    model = wrapped("sdpa", 2)
    encoding = model.encode(list(IMAGES), list(PROMPTS))
    with torch.no_grad():
        run = model._module(**encoding, output_hidden_states=True, use_cache=False)
    shown = image_mask(encoding["input_ids"], model.anatomy.image_token_id)
    layers = []
    for stream in run.hidden_states[:-1]:
        size = stream.double().abs() / stream.double().pow(2).mean(-1, True).sqrt()
        items = [size[i][shown[i]].max(0).values for i in range(len(size))]
        layers.append(torch.stack(items))
    ordered = torch.stack(layers).sort(0).values
    expected = ordered[(len(layers) - 1) // 2]
    found = score_sink_dims(
        model, list(IMAGES), list(PROMPTS), at="images", batch_size=1
    )
    torch.testing.assert_close(found.activation.double(), expected, rtol=1e-3, atol=0)


def test_a_massive_dimension_of_images_is_named():
    model = wrapped("sdpa", 2)
    images = [random_image(seed) for seed in range(6)]
    projector = model._module.model.multi_modal_projector
    with torch.no_grad():
        projector.linear_2.bias[list(PLANTED)] = 500.0
    found = score_sink_dims(model, images, "what ?", at="images")
    assert set(found.top(2)) == set(PLANTED)
    table = found.frame(resamples=200)
    assert set(table["dim"][:2]) == set(PLANTED)
    assert (table["low"][:2] > table["high"][2]).all()
    assert table["p"][0] < 0.05
    assert found.massive_in() == ()  # two of 32 numbers cannot be 20 times the mean


def test_first_tokens_that_are_alike_say_nothing_over_items():
    model = wrapped("sdpa", 2)
    found = score_sink_dims(model, list(IMAGES), list(PROMPTS), batch_size=1)
    listed = find_sink_dims(model, IMAGES[0], PROMPTS[0], k=3)
    assert list(found.top(3)) == listed["dim"].tolist()
    assert found.are_alike
    assert found.frame(resamples=20)[["p", "stability"]].isna().all().all()
    assert math.isnan(found.p_value(resamples=20))
    with pytest.raises(InputError, match="3 items have the same activations"):
        found.stability(resamples=20)


def test_planted_dimensions_are_stable_and_noise_is_not():
    sure = draw(0, planted=25.0)
    assert set(sure.massive_in()) == set(PLANTED)
    assert sure.p_value(resamples=199) == pytest.approx(1 / 200)
    assert draw(1, n_items=40).stability(resamples=200).low < 0
    p = [draw(seed).p_value(resamples=99) for seed in range(10)]
    assert sum(value > 0.05 for value in p) >= 8


@pytest.mark.slow
def test_p_is_uniform_where_no_dimension_is_massive():
    p = [draw(seed).p_value(resamples=199, seed=seed) for seed in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 3 <= sum(value <= 0.05 for value in p) <= 19


def test_unfit_parts_are_refused(as_users_run_it):
    with pytest.raises(InputError, match="expected shares of layers"):
        DimScores(activation=torch.ones(2, 4), massive=torch.ones(2, 3))
    with pytest.raises(SettingsError, match="k must be 1 to 16 dimensions"):
        draw(0).top(17)
    with pytest.raises(SettingsError, match="at must be"):
        score_sink_dims(wrapped("sdpa", 2), IMAGES[0], PROMPTS[0], at="last")
