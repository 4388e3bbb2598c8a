"""A circuit that is known: every method names its one head first, and no other."""

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import (
    ablate_heads,
    attribute_heads,
    attribute_patches,
    attribute_recipients,
    patch_heads,
    trace_mediators,
)
from eah_interp.attribution.gradient import approximate_heads
from eah_interp.testing import random_image
from tests.attribution.planted import COPIES, IRRELEVANT, OBJECT, build_planted

NAME = f"L{COPIES[0]}H{COPIES[1]}"
OTHER = f"L{IRRELEVANT[0]}H{IRRELEVANT[1]}"
ASKED = {"objects": [OBJECT.strip()]}
PICTURE, QUESTION = random_image(0), "Is there a"


@pytest.fixture(scope="module")
def planted():
    return build_planted()


def read_effects(result, column):
    """Return each head's number, by name."""
    table = result.frame()
    heads = table[table["head"].notna()] if "head" in table else table
    return dict(zip(heads["name"], heads[column].astype(float), strict=True))


def assert_only_the_planted_head(effects):
    assert max(effects, key=lambda name: abs(effects[name])) == NAME
    assert abs(effects[NAME]) > 1e-2
    assert effects[OTHER] == pytest.approx(0, abs=1e-6)
    others = [value for name, value in effects.items() if name != NAME]
    assert max(map(abs, others)) < 1e-5


def test_direct_effects(planted):
    found = attribute_heads(planted, PICTURE, QUESTION, **ASKED)
    assert_only_the_planted_head(read_effects(found, "plain"))


def test_ablation(planted):
    found = ablate_heads(planted, PICTURE, QUESTION, **ASKED)
    assert_only_the_planted_head(read_effects(found, "effect"))


@pytest.mark.parametrize("what", ["output", "values"])
def test_exact_patching_from_another_picture(planted, what):
    found = patch_heads(
        planted,
        PICTURE,
        QUESTION,
        source="plain",
        source_images=random_image(5),
        what=what,
        **ASKED,
    )
    assert_only_the_planted_head(read_effects(found, "effect"))


@pytest.mark.parametrize("method", ["attribution_patching", "integrated_gradients"])
def test_gradient_approximations(planted, method):
    found = approximate_heads(
        planted,
        PICTURE,
        QUESTION,
        source="plain",
        source_images=random_image(5),
        method=method,
        **ASKED,
    )
    assert_only_the_planted_head(read_effects(found, "approximate"))


@pytest.mark.parametrize("method", ["alone", "without", "shapley"])
def test_recipients_of_another_pattern(planted, method):
    """All heads attend evenly, so what moves the object is to see pictures alone."""
    found = attribute_recipients(
        planted, PICTURE, QUESTION, eah=eah.EAH(donor="uniform"), method=method, **ASKED
    )
    assert_only_the_planted_head(read_effects(found, "effect"))


def test_mediators_of_a_patch_that_comes_before(planted):
    """A broadcast in layer 0 moves nothing: its heads write nothing."""
    found = trace_mediators(
        planted, PICTURE, QUESTION, eah=eah.EAH(layers=(0,), donor="uniform"), **ASKED
    )
    effects = read_effects(found, "restored")
    assert max(map(abs, effects.values())) < 1e-5


@pytest.mark.parametrize("method", ["contribution", "attention_gradient"])
def test_effects_by_image_token_are_the_planted_heads_alone(planted, method):
    found = attribute_patches(planted, PICTURE, QUESTION, method=method, **ASKED)
    table = found.frame()
    strength = table["plain"].abs().groupby(table["name"]).max()
    assert strength.idxmax() == NAME
    assert strength.drop(NAME).max() < 1e-5
    assert torch.isfinite(torch.tensor(strength.to_numpy())).all()
