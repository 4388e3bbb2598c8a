"""Integrated gradients: as steps grow they sum to the effect of a whole layer."""

import itertools

import numpy as np
import pytest
import torch

import eah_interp as eah
from eah_interp.attribution.gradient import approximate_heads
from eah_interp.attribution.gradient_runs import place_points
from eah_interp.attribution.patching import patch_heads
from eah_interp.testing import random_image, tiny_lvlm
from tests.attribution.test_gradient import pose_two
from tests.crossed import cross
from tests.oracle_forward import decoder_attentions
from tests.tiny_families import share_model

STEPS = (1, 2, 4, 8, 16)


def integrate(model, case, **asked):
    return approximate_heads(
        model, case, method="integrated_gradients", check=0, **asked
    )


def integrate_by_hand(hf_model, case, other, *, layer, n_points):
    """Walk from one picture's heads to another's in many small midpoint steps.

    Plain hooks on the output projection's input, in one layer; returns the effect of
    each head on the first target, and of all together.
    """
    proj = decoder_attentions(hf_model)[layer].o_proj
    target = case.readout

    def run(inputs, hook):
        handle = proj.register_forward_pre_hook(hook)
        logits = hf_model(**inputs, use_cache=False).logits
        handle.remove()
        place, tokens = int(target.positions[0]), target.tokens[:2]
        return (logits[0, place, tokens] * target.weights[:2]).sum()

    ends = []

    def keep(module, args):
        ends.append(args[0].detach())

    def put(tensor):
        return lambda *_: (tensor,)

    for each in (case, other):
        run(each.inputs, keep)
    start, way = ends[0], ends[1] - ends[0]
    total = torch.zeros(4)
    for share in (np.arange(n_points) + 0.5) / n_points:
        leaf = (start + float(share) * way).requires_grad_()
        run(case.inputs, put(leaf)).backward()
        total += (leaf.grad * way).view(-1, 4, 8).sum((0, 2)) / n_points
    with torch.no_grad():
        exact = run(case.inputs, put(ends[1])) - run(case.inputs, put(start))
    return total, exact


@pytest.mark.parametrize("layer", [0, 2])
def test_it_is_the_integral_of_the_gradient(layer):
    model = eah.wrap(tiny_lvlm("llava"))
    case, other = pose_two("llava"), pose_two("llava", 5)
    heads, exact = integrate_by_hand(
        tiny_lvlm("llava"), case, other, layer=layer, n_points=60
    )
    found = integrate(model, case, source="plain", source_images=other, n_steps=32)
    torch.testing.assert_close(found.approximate[0, layer], heads, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        found.whole_layers[0, layer], exact, atol=1e-5, rtol=1e-5
    )
    assert heads.abs().max() > 0.1


@pytest.mark.parametrize(
    ("on", "source", "what"),
    cross(
        [("llava", "eager"), ("llava", "sdpa"), ("gemma3", "sdpa")],
        ["EAH", "picture"],
        ["output", "pattern"],
    ),
)
def test_heads_sum_to_the_whole_layer_as_steps_grow(on, source, what):
    family, attention = on
    model = eah.wrap(tiny_lvlm(family, n_kv_heads=2, attn_implementation=attention))
    case, layer = pose_two(family), 1
    runs = {
        "EAH": {"source": eah.EAH()},
        "picture": {"source": "plain", "source_images": pose_two(family, 5)},
    }
    asked = {"what": what, **runs[source]}
    results = [integrate(model, case, n_steps=steps, **asked) for steps in STEPS]
    errors = [float(found.remainder[:, layer].abs().max()) for found in results]
    # each doubling is closer, until rounding is all that is left
    floor = 5e-6 * float(results[0].values.abs().max())
    for before, after in itertools.pairwise(errors):
        assert after < before or after < floor
    assert errors[0] > 5 * floor
    assert errors[-1] < floor
    heads = [(layer, head) for head in range(4)]
    exact = patch_heads(model, case, heads=heads, together=True, **asked).effects
    found = results[-1].whole_layers[:, layer]
    torch.testing.assert_close(found, exact[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("what", ["output", "pattern"])
def test_the_patched_layer_carries_the_whole_effect_of_eah(what):
    model = share_model("llava")
    case = pose_two("llava")
    found = integrate(model, case, source=eah.EAH(), what=what, n_steps=16)
    effect = found.source_values - found.values
    heads = found.approximate.sum(-1)
    torch.testing.assert_close(heads[:, 1], effect, atol=2e-5, rtol=1e-3)
    assert effect.abs().min() > 1e-2
    assert found.approximate[:, 0].abs().max() < 1e-5  # before the patch
    # a donor keeps its pattern, and before the patch there is nothing new to mix
    donor = eah.EAH(donor=2)
    found = integrate(model, case, source=donor, what=what, n_steps=4)
    assert found.approximate[:, 1, 2].abs().max() < 1e-5


@pytest.mark.parametrize("recipients", ["all", (0, 3)])
@pytest.mark.parametrize("donor", ["densest", "mean"])
def test_out_of_a_patched_run_it_is_the_same_way_back(donor, recipients):
    model = share_model("llava")
    case = pose_two("llava")
    settings = eah.EAH(donor=donor, recipients=recipients)
    found = integrate(model, case, source="plain", target=settings, n_steps=16)
    back = integrate(model, case, source=settings, n_steps=16)
    effect = found.source_values - found.values
    torch.testing.assert_close(
        found.approximate.sum(-1)[:, 1], effect, atol=2e-5, rtol=1e-3
    )
    # a straight way has one integral, whichever end one begins at
    torch.testing.assert_close(
        found.approximate[:, 1], -back.approximate[:, 1], atol=2e-5, rtol=1e-3
    )


def test_numbers_do_not_depend_on_the_batch_size():
    model, case = share_model("llava"), pose_two("llava")
    one, many = (
        integrate(model, case, source=eah.EAH(), n_steps=5, batch_size=size)
        for size in (1, 32)
    )
    torch.testing.assert_close(one.approximate, many.approximate, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        one.whole_layers, many.whole_layers, atol=1e-5, rtol=1e-4
    )


def test_one_point_is_the_midpoint_and_n_points_integrate_degree_2n_minus_1():
    points, weights = place_points(1)
    assert (points.tolist(), weights.tolist()) == ([0.5], [1.0])
    points, weights = place_points(4)
    for degree in range(8):
        integral = float((weights * points**degree).sum())
        assert integral == pytest.approx(1 / (degree + 1), abs=1e-6)


def test_a_picture_is_compared_with_itself_at_no_effect():
    found = integrate(
        share_model("llava"),
        random_image(),
        objects=["dog"],
        source="plain",
        n_steps=2,
    )
    assert not found.approximate.any()
    assert found.whole_layers.abs().max() < 1e-5
