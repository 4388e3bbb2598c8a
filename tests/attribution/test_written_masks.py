"""A mask of four axes says the same of padding as flags do, wherever it is read."""

import pytest
import torch

import eah_interp as eah
from eah_interp import attribution, finders
from eah_interp.errors import InputError
from eah_interp.interventions import find_sinks
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor

PROMPTS = ["what is near the tree or the boat ?", " is there a cat ?"]
CAT = {"objects": ["cat"]}
EDGES = {"source": "mean", "senders": ["L0H0", "image"], "receivers": ["L1H1", "logit"]}
CALLS = {
    "attribute_heads": lambda m, e: eah.attribute_heads(m, e, **CAT).plain.heads,
    "attribute_patches": lambda m, e: torch.tensor(
        attribution.attribute_patches(m, e, **CAT).frame()["plain"].to_numpy()
    ),
    "logit_lens": lambda m, e: torch.tensor(
        eah.logit_lens(m, e, positions="image", **CAT).frame()["logit"].to_numpy()
    ),
    "patch_heads": lambda m, e: (
        attribution.patch_heads(
            m, e, source=eah.EAH(), heads=["L1H0"], positions="question", **CAT
        ).effects
    ),
    "ablate_heads": lambda m, e: (
        attribution.ablate_heads(m, e, heads=["L1H0"], how="mean", **CAT).effects
    ),
    "patch_paths": lambda m, e: attribution.patch_paths(m, e, **EDGES, **CAT).effects,
    "patch_nodes": lambda m, e: (
        attribution.patch_nodes(
            m, e, nodes=["layers_output[0]"], positions=["all"], source="mean", **CAT
        ).effects
    ),
    "find_sinks": lambda m, e: find_sinks(m, e).norms.nan_to_num(),
    "find_localisation_heads": lambda m, e: (
        finders.find_localisation_heads(m, e).scores
    ),
}


@pytest.fixture(scope="module")
def model():
    return eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))


@pytest.fixture(scope="module")
def flagged(model):
    encoding = dict(model.encode([random_image(0), random_image(1)], PROMPTS))
    assert not encoding["attention_mask"].all()
    return encoding


@pytest.fixture(scope="module", params=["booleans", "added"])
def written(request, flagged):
    tokens = flagged["attention_mask"].bool()
    causal = torch.ones(2 * tokens.shape[1:]).tril().bool()
    mask = causal & tokens[:, None, None] & tokens[:, None, :, None]
    if request.param == "added":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo().min)
    places = (tokens.cumsum(-1) - 1).clamp(min=0)
    return {**flagged, "attention_mask": mask, "position_ids": places}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_padding_in_a_written_mask_is_no_token(model, flagged, written, call):
    torch.testing.assert_close(
        call(model, written), call(model, flagged), atol=2e-5, rtol=1e-4
    )


CHANGED = {
    "an answer": lambda m, e: eah.attribute_heads(
        m, e, caption=["a cat", "a cat"], **CAT
    ),
    "no image": finders.find_image_heads,
    "directions": finders.find_directions,
}


@pytest.mark.parametrize("call", CHANGED.values(), ids=CHANGED)
def test_where_tokens_are_added_or_left_out_it_is_refused(model, written, call):
    with pytest.raises(InputError, match=r"expected a flag for each token"):
        call(model, written)
