"""Edges by gradients: right to first order, and never without exact ones beside."""

import dataclasses

import pytest
import torch

from eah_interp.attribution import approximate_paths, patch_paths, pose
from eah_interp.errors import SettingsError
from eah_interp.lvlm.inputs import Encoding
from eah_interp.testing import random_image
from tests.attribution.planted_paths import TWO_HOPS, build_two_hops
from tests.attribution.test_patching import pose_answer
from tests.tiny_families import ignore_renamed, share_model, share_plain

ASKED = {"prompts": " is there a cat ?", "objects": ["cat", "boat"]}


@ignore_renamed
@pytest.mark.parametrize("family", ["llava", "gemma3", "aya_vision", "qwen3_5"])
def test_of_a_change_that_shrinks_the_error_falls_faster(family):
    model, case = share_model(family), pose_answer(family)
    layer = sorted(model.anatomy.sites)[-1]
    errors = []
    for size in (3e-2, 3e-3):
        other = dataclasses.replace(case, encoding=Encoding(case.encoding))
        pixels = other.encoding["pixel_values"]
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
        other.encoding["pixel_values"] = pixels + size * noise
        found = approximate_paths(
            model,
            case,
            source_images=other,
            senders=["embedding", "L0.mlp"],
            receivers=[f"L{layer}H1", f"L{layer}.mlp", "logit"],
            check=16,
        )
        off = found.approximate - found.exact
        errors.append(float(off.norm() / found.exact.norm()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_edges_that_are_known_rank_above_all_others_by_gradients_too():
    model = build_two_hops()
    options = {
        "prompts": " there is a boat near what",
        "objects": ["cat"],
        "source_images": random_image(3),
    }
    found = approximate_paths(model, random_image(0), check=64, **options)
    order = found.approximate[0].abs().argsort(descending=True).tolist()
    first = {found.names[i].replace("embedding", "image") for i in order[:8]}
    assert first == TWO_HOPS
    assert found.agreement.largest_error[0] < 0.05


def test_edges_of_the_embedding_sum_to_the_change_as_steps_grow():
    model, images = share_model("llava"), (random_image(0), random_image(3))
    errors = []
    for n_steps in (1, 32):
        found = approximate_paths(
            model,
            images[0],
            source_images=images[1],
            method="eap_ig",
            n_steps=n_steps,
            senders=["embedding"],
            check=3,
            **ASKED,
        )
        total = found.source_values - found.values
        left = total - found.approximate.sum(1)
        torch.testing.assert_close(found.remainder, left, atol=1e-4, rtol=1e-3)
        errors.append(float(left.abs().max()))
    assert errors[1] < 0.1 * errors[0]


def test_of_edges_that_are_known_the_error_falls_with_steps_and_below_eaps():
    model = build_two_hops()
    options = {
        "prompts": " there is a boat near what",
        "objects": ["cat"],
        "source_images": random_image(3),
        "check": 16,
    }
    errors = [
        float(found.agreement.largest_error[0])
        for found in (
            approximate_paths(model, random_image(0), **one, **options)
            for one in ({}, *({"method": "eap_ig", "n_steps": n} for n in (1, 2, 8)))
        )
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def by_hand(model, plain, images, *, points):
    """Average along the way, in plain transformers, what an MLP's edge does.

    From the MLP of the first layer to the logit: the change that it writes, times the
    gradient at the stream that enters the last norm, at even points of the way.
    """
    case = pose(model, images[0], **ASKED)
    decoder = plain.model.language_model
    entered, written, ends = [], [], []
    for image in images:
        kept = {}
        handles = [
            decoder.layers[0].register_forward_pre_hook(
                lambda _, args, kwargs, kept=kept: kept.update(
                    x=args[0] if args else kwargs["hidden_states"]
                ),
                with_kwargs=True,
            ),
            decoder.layers[0].mlp.register_forward_hook(
                lambda *given, kept=kept: kept.update(mlp=given[2])
            ),
        ]
        with torch.no_grad():
            plain(**pose(model, image, **ASKED).inputs, use_cache=False)
        for handle in handles:
            handle.remove()
        entered.append(kept["x"])
        written.append(kept["mlp"])
    total = 0
    for number in range(points):
        share = (number + 0.5) / points
        start = (1 - share) * entered[0] + share * entered[1]
        ends.clear()

        def begin(module, args, kwargs, start=start):
            if args:
                return (start.clone().requires_grad_(), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": start.clone().requires_grad_()}

        handles = [
            decoder.layers[0].register_forward_pre_hook(begin, with_kwargs=True),
            decoder.norm.register_forward_pre_hook(
                lambda _, args: ends.append(args[0])
            ),
        ]
        logits = plain(**case.inputs, use_cache=False).logits
        for handle in handles:
            handle.remove()
        values = case.readout.values(logits)
        for target, value in enumerate(values):
            (slope,) = torch.autograd.grad(value, ends[0], retain_graph=True)
            effect = (slope * (written[1] - written[0])).sum() / points
            total = total + effect * torch.eye(len(values))[target]
    return total.detach()


def test_the_integral_is_that_of_gradients_by_hand_along_the_same_way():
    model, plain = share_model("llava"), share_plain("llava")
    images = (random_image(0), random_image(3))
    found = approximate_paths(
        model,
        images[0],
        source_images=images[1],
        senders=["L0.mlp"],
        receivers=["L1H0.q", "L1H1.q", "logit"],
        method="eap_ig",
        n_steps=48,
        check=3,
        **ASKED,
    )
    expected = by_hand(model, plain, images, points=100)
    place = found.names.index("L0.mlp -> logit")
    torch.testing.assert_close(
        found.approximate[:, place], expected, atol=2e-3, rtol=2e-2
    )
    assert expected.abs().min() > 0.01


def test_checked_edges_are_those_of_exact_path_patching():
    model, image = share_model("qwen2_5_vl"), random_image(0)
    options = {"source_images": random_image(3), "receivers": ["L2", "logit"], **ASKED}
    found = approximate_paths(model, image, check=6, seed=1, **options)
    exact = patch_paths(model, image, **options)
    checked = ~found.exact[0].isnan()
    assert found.names == exact.names
    assert int(checked.sum()) == found.agreement.n_checked == 6
    torch.testing.assert_close(
        found.exact[:, checked], exact.effects[:, checked], atol=1e-5, rtol=1e-4
    )
    assert "6 edges checked: rank correlation at least" in str(found.agreement)
    assert found.agreement.low[0] <= found.agreement.rank_correlation[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"check": 2}, "check must be"),
        ({"method": "eap_ig"}, "goes along what enters the first layer"),
        ({"method": "exact"}, "method must be one of eap, eap_ig"),
        ({"n_steps": 0}, "n_steps must be"),
    ],
)
def test_what_cannot_be_approximated_is_refused(changes, message, as_users_run_it):
    model, case = share_model("llava"), pose_answer("llava")
    with pytest.raises(SettingsError, match=message):
        approximate_paths(model, case, **{"source": "mean", **changes})
