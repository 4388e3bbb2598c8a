"""Hook points by name are what plain hooks see and write, on every family."""

import pytest
import torch

from eah_interp.errors import ModelError
from tests.hooked import NO_TOWER, TOWER_OF, Hooked
from tests.tiny_families import (
    SUPPORTED,
    encode,
    ignore_renamed,
    measure_gap,
    share_model,
    share_plain,
    sweep,
)

pytestmark = ignore_renamed

TOLERANCE = 1e-4
"""Of the largest value, in float32: ours is SDPA where there is one, theirs eager."""

CALL = ("queries", "keys", "values", "attention_probabilities", "heads_output")
STREAM = ("layers_input", "attentions_output", "mlps_output", "layers_output")
ORDER = ("layers_input", *CALL, "attentions_output", "mlps_output", "layers_output")
ROWS_AT = dict.fromkeys(CALL, 2) | dict.fromkeys((*STREAM, "ln_final"), 1)
"""The axis of tokens."""

NOT_SUMS = {"gemma4": {0, 1, 2}, "inkling2": {0}}
"""Layers that scale what they add up, or begin a block of their own (Inkling 2)."""

PACKED = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "glm4v"),
    *("glm46v", "glm4v_moe", "ernie4_5_vl_moe", "kimi_k25", "video_llama_3"),
    *("muse_glimmer", "minimax_m3_vl", "inkling2", "mistral3", "llava_pixtral"),
    *("lighton_ocr", "hunyuan_vl"),
)
"""Families whose tower sees all images as one sequence of patches."""

UNFIT = {"qwen3_5": {0, 2}, "lfm2_vl": {0, 2}}
"""Layers without attention: they have a stream and an MLP."""


def read_all(family, encoding):
    """Read every hook point of a model in one trace."""
    model, seen = share_model(family), {}
    unfit = UNFIT.get(family, ())
    has_tower = family in TOWER_OF
    with torch.no_grad(), model.trace(**encoding, use_cache=False):
        seen["image_mask", 0] = model.image_mask
        if has_tower:
            for layer, value in enumerate(model.vision_layers_output):
                seen["vision_layers_output", layer] = value
        for layer in range(model.n_layers):
            for name in ORDER:
                if layer in unfit and (name in CALL or name == "attentions_output"):
                    continue
                seen[name, layer] = getattr(model, name)[layer]
        seen["ln_final", 0] = model.ln_final.output
        seen["logits", 0] = model.logits
    return seen


def of_tokens(name, value, tokens):
    """Take what tokens have, and leave out what padding has."""
    axis = ROWS_AT.get(name)
    if axis is None:
        return value
    return value.movedim(axis, 1)[tokens]


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_what_is_read_is_what_plain_hooks_see(family):
    encoding = encode(family)
    tokens = encoding["attention_mask"].bool()
    hooked = Hooked(family, share_plain(family))
    logits = hooked.run(encoding).logits

    seen = read_all(family, encoding)

    expected = {point: values[0] for point, values in hooked.seen.items()}
    if family in TOWER_OF:
        shape = seen["vision_layers_output", 0].shape
        assert len(shape) == 4 if family == "got_ocr2" else len(shape) <= 3
        assert (shape[:-2] in ((), (1,))) == (family in PACKED)
    mask, found_logits = seen.pop(("image_mask", 0)), seen.pop(("logits", 0))
    assert seen.keys() == expected.keys()
    for (name, layer), value in seen.items():
        theirs = expected[name, layer]
        assert value.shape == theirs.shape, (name, layer)
        ours = of_tokens(name, value, tokens)
        theirs = of_tokens(name, theirs, tokens)
        gap = (ours - theirs).abs().max() / theirs.abs().max()
        assert gap <= TOLERANCE, (name, layer, gap)
    assert measure_gap(found_logits[tokens], logits[tokens]) <= TOLERANCE
    assert mask.shape == tokens.shape
    assert mask.any(1).all()
    assert not (mask & ~tokens).any()


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_a_layer_returns_its_input_and_what_attention_and_mlp_add(family):
    seen = read_all(family, encode(family))
    sums = set(range(3)) - NOT_SUMS.get(family, set())
    for layer in range(3):
        entering, leaving = seen["layers_input", layer], seen["layers_output", layer]
        total = entering + seen["mlps_output", layer]
        if layer not in UNFIT.get(family, ()):
            total = total + seen["attentions_output", layer]
            close = torch.allclose(total, leaving, rtol=1e-4, atol=1e-4)
            assert close == (layer in sums)


def draw(name, value, seed=0):
    """Draw what is added to a value: of its size, and only where a row may look."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(value.shape, generator=generator) * value.std()
    if name == "attention_probabilities":
        return delta.abs() * (value > 0)
    return delta


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_what_is_written_is_written_as_by_a_plain_hook(family):
    encoding, model = encode(family), share_model(family)
    tokens = encoding["attention_mask"].bool()
    watched = Hooked(family, share_plain(family))
    plain = watched.run(encoding).logits
    points = [(name, 1) for name in ORDER]
    points += [("vision_layers_output", 0)] * (family in TOWER_OF)
    for point in points:
        name, layer = point
        delta = draw(name, watched.seen[point][0])
        expected = Hooked(family, share_plain(family), {point: delta}).run(encoding)
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            values = getattr(model, name)
            values[layer] = values[layer] + delta
            logits = model.logits.save()
        gap = measure_gap(logits[tokens], expected.logits[tokens])
        assert gap <= TOLERANCE, (name, gap)
        moved = measure_gap(expected.logits[tokens], plain[tokens])
        assert moved > 20 * TOLERANCE, f"{name} does nothing here: a weak test"


@pytest.mark.parametrize("family", NO_TOWER)
def test_families_without_a_vision_tower_say_so(family):
    model = share_model(family)
    with pytest.raises(ModelError, match="no vision_layers_output: its config has no"):
        len(model.vision_layers_output)
    assert "no vision_layers_output" in repr(model.vision_layers_output)


@pytest.mark.parametrize("family", UNFIT)
@pytest.mark.parametrize("name", [*CALL, "attentions_output"])
def test_layers_that_do_not_attend_are_refused_by_name(family, name):
    model, encoding = share_model(family), encode(family)
    with (
        pytest.raises(ModelError, match=r"layer 0 cannot be patched: it has no attent"),
        torch.no_grad(),
        model.trace(**encoding),
    ):
        getattr(model, name)[0].save()
