"""Circuits that are known, because they were built: every true edge, and no other."""

import pytest
import torch

from eah_interp.attribution import Case, patch_paths
from eah_interp.attribution.readouts import read_tokens
from eah_interp.testing import random_image
from tests.attribution.planted import COPIES, IRRELEVANT, OBJECT, build_planted
from tests.attribution.planted_paths import (
    INDUCTION,
    SILENT,
    TWO_HOPS,
    UNHEARD,
    build_induction,
    build_two_hops,
)


def list_all(model):
    heads = [
        f"L{layer}H{head}"
        for layer in range(model.anatomy.n_layers)
        for head in range(model.n_heads)
    ]
    mlps = [f"L{layer}.mlp" for layer in range(model.anatomy.n_layers)]
    return ["image", "text", *heads, *mlps]


def rank(found):
    order = found.effects[0].abs().argsort(descending=True).tolist()
    return [(found.names[i], float(found.effects[0, i])) for i in order]


def ask_after(model, prompt, *, word, last):
    """Ask for a word's logit at the last place of another word."""
    encoding = model.encode(random_image(), prompt)
    ids = [
        model.tokenizer(one, add_special_tokens=False)["input_ids"][-1]
        for one in (word, last)
    ]
    place = int((encoding["input_ids"][0] == ids[1]).nonzero().max())
    aims = [(word, 0, place, word, [(place, ids[0], 1.0)])]
    return Case(encoding, None, read_tokens(aims))


def test_two_hops_by_value_query_and_key_rank_above_every_other_edge():
    model = build_two_hops()
    found = patch_paths(
        model,
        random_image(0),
        " there is a boat near what",
        objects=["cat"],
        source_images=random_image(3),
        senders=list_all(model),
        receivers="all",
    )
    ranked = rank(found)
    assert {name for name, _ in ranked[: len(TWO_HOPS)]} == TWO_HOPS
    last, next_one = (abs(ranked[i][1]) for i in (len(TWO_HOPS) - 1, len(TWO_HOPS)))
    assert last > 4 * next_one
    decoys = {name: effect for name, effect in ranked if UNHEARD in name}
    assert max(map(abs, decoys.values())) < 0.02 * last  # by way of the norms' scale
    silent = [effect for name, effect in ranked if name.startswith(f"{SILENT} ->")]
    assert silent
    assert set(silent) == {0.0}


def test_induction_is_found_by_the_key_of_the_head_that_looks():
    model = build_induction()
    clean, other = (
        ask_after(model, prompt, word=" boat", last=" cat")
        for prompt in (
            " there is cat boat a dog the cat",
            " there is near dog a dog the cat",
        )
    )
    found = patch_paths(
        model, clean, source_images=other, senders=list_all(model), receivers="all"
    )
    ranked = dict(rank(found))
    assert {name for name, effect in ranked.items() if abs(effect) > 0.1} == INDUCTION
    others = [effect for name, effect in ranked.items() if name not in INDUCTION]
    assert max(map(abs, others)) < 1e-4


@pytest.mark.parametrize("how", ["plain", "zero", "mean"])
def test_a_copy_is_one_value_and_one_write(how):
    model = build_planted()
    options = {"source_images": random_image(5)} if how == "plain" else {}
    copies, silent = (f"L{layer}H{head}" for layer, head in (COPIES, IRRELEVANT))
    found = patch_paths(
        model,
        random_image(),
        " what ?",
        objects=[OBJECT.strip()],
        source=how,
        senders=["image", copies, silent],
        receivers="all",
        **options,
    )
    ranked = rank(found)
    assert {name for name, _ in ranked[:2]} == {
        f"image -> {copies}.v",
        f"{copies} -> logit",
    }
    # image tokens also set the scale of every norm after them
    assert abs(ranked[1][1]) > 10 * abs(ranked[2][1])
    assert all(effect == 0 for name, effect in ranked if name.startswith(silent))
    assert torch.isfinite(found.effects).all()
