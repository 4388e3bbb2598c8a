"""The tower's attention by name, against loops in plain transformers, by family."""

import dataclasses

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import read_patterns
from eah_interp.errors import InputError, ModelError, SettingsError, UnsupportedError
from eah_interp.interventions.donation import score_call
from eah_interp.lvlm.anatomy import find_packed_call
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.prompt import Prompt
from eah_interp.lvlm.sequences import Packing, SequenceMask, find_blocks, group_chunks
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.hooked import NO_TOWER, TOWER_OF
from tests.lvlm.test_hook_points import TOLERANCE, draw
from tests.tiny_families import (
    SUPPORTED,
    encode,
    ignore_renamed,
    measure_gap,
    share_model,
    share_plain,
    sweep,
)
from tests.tower_oracle import POINTS, TowerOracle, add

pytestmark = ignore_renamed

OWN_CODE = ("got_ocr2",)
"""Families whose tower attends by code of its own."""

ATTENDS = [f for f in SUPPORTED if f in TOWER_OF and f not in OWN_CODE]

SCALED = ("internvl", "internvl_gpt_oss", "inkling2")
"""Families whose tower scales what it adds, so that no module returns it."""

PACKED = ("qwen2_5_vl", "mistral3", "video_llama_3", "inkling2")
"""Windows, a mask in blocks, a loop in a statement, class tokens: packed sequences."""


@pytest.mark.parametrize("family", sweep(ATTENDS))
def test_what_is_read_is_what_loops_in_plain_transformers_see(family):
    encoding, model = encode(family), share_model(family)
    oracle = TowerOracle(family, share_plain(family))
    oracle.run(encoding)
    seen = {}
    with torch.no_grad(), model.trace(**encoding, use_cache=False) as tracer:
        for layer in range(2):
            for point in POINTS:
                seen[point, layer] = getattr(model, f"vision_{point}")[layer]
        tracer.stop()
    assert len(seen) == 2 * len(POINTS)
    for (point, layer), value in seen.items():
        theirs = oracle.whole(point, layer)
        assert value.shape == theirs.shape, (point, layer)
        gap = (value - theirs).abs().max() / theirs.abs().max()
        assert gap <= TOLERANCE, (point, layer, gap)


@pytest.mark.parametrize("family", sweep(ATTENDS))
def test_what_is_written_is_written_as_in_the_loops(family):
    encoding, model = encode(family), share_model(family)
    tokens = encoding["attention_mask"].bool()
    watched = TowerOracle(family, share_plain(family))
    plain = watched.run(encoding)
    for point in POINTS:
        delta = draw(point, watched.whole(point, 0))
        edits = {(point, 0): add(point, delta)}
        expected = TowerOracle(family, share_plain(family), edits).run(encoding)
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            values = getattr(model, f"vision_{point}")
            values[0] = values[0] + delta
            logits = model.logits.save()
        gap = measure_gap(logits[tokens], expected[tokens])
        assert gap <= TOLERANCE, (point, gap)
        moved = measure_gap(expected[tokens], plain[tokens])
        assert moved > 20 * TOLERANCE, f"{point} does nothing here: a weak test"


@pytest.mark.parametrize("family", sweep(ATTENDS))
def test_what_is_written_back_changes_not_one_bit(family):
    encoding, model = encode(family), share_model(family)
    with torch.no_grad():
        plain = model._module(**encoding, use_cache=False).logits
    with torch.no_grad(), model.trace(**encoding, use_cache=False):
        for layer in range(2):
            for point in ("queries", "keys", "values", "heads_output"):
                values = getattr(model, f"vision_{point}")
                values[layer] = values[layer]
        logits = model.logits.save()
    assert torch.equal(logits, plain)


@pytest.mark.parametrize("family", sweep([f for f in SUPPORTED if f in TOWER_OF]))
def test_a_layer_of_the_tower_returns_its_input_and_what_is_added(family):
    encoding, model = encode(family), share_model(family)
    if family in SCALED or family in OWN_CODE:
        match = "no module of .* returns what its|code of its own"
        with (
            pytest.raises(ModelError, match=match),
            torch.no_grad(),
            model.trace(**encoding),
        ):
            model.vision_attentions_output[0].save()
        return
    with torch.no_grad(), model.trace(**encoding, use_cache=False) as tracer:
        entering = model.vision_layers_input[1].clone().save()
        attended = model.vision_attentions_output[1].clone().save()
        added = model.vision_mlps_output[1].clone().save()
        leaving = model.vision_layers_output[1].save()
        tracer.stop()
    total = entering + attended.view_as(entering) + added.view_as(entering)
    assert (total - leaving).abs().max() <= 1e-5 * leaving.abs().max()
    assert added.abs().max() > 1e-3 * leaving.abs().max()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "mistral3"])
def test_backends_agree_and_nothing_moves_under_an_identity_patch(family, backend):
    model = tiny_lvlm(family, attn_implementation=backend)
    wrapped, encoding = eah.wrap(model), encode(family)
    with torch.no_grad():
        plain = model(**encoding, use_cache=False).logits
    with torch.no_grad(), wrapped.trace(**encoding, use_cache=False):
        pattern = wrapped.vision_attention_probabilities[0].save()
        wrapped.vision_values[0] = wrapped.vision_values[0]
        logits = wrapped.logits.save()
    assert torch.equal(logits, plain)
    oracle = TowerOracle(family, tiny_lvlm(family, attn_implementation="eager"))
    oracle.run(encoding)
    theirs = oracle.whole("attention_probabilities", 0)
    assert (pattern - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", PACKED)
def test_a_batch_has_the_patterns_of_its_images_alone(family):
    model = share_model(family)
    pictures = [random_image(0), random_image(1, width=48)]
    patterns = []
    for some in (pictures, pictures[:1], pictures[1:]):
        inputs = encode(family, some, ["what ?"] * len(some))
        with torch.no_grad(), model.trace(**inputs, use_cache=False) as tracer:
            patterns.append(model.vision_attention_probabilities[0].save())
            tracer.stop()
    both, *alone = patterns
    expected = [torch.block_diag(*(one[0, head] for one in alone)) for head in range(4)]
    torch.testing.assert_close(both[0], torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", *PACKED])
def test_a_change_in_place_is_a_change_of_the_run(family):
    model, encoding = share_model(family), encode(family)
    with torch.no_grad(), model.trace(**encoding):
        model.vision_heads_output[0][:, 1] = 0
        expected = model.logits.save()
    with torch.no_grad(), model.trace(**encoding):
        model.vision_values[0][:, 1] = 0
        logits = model.logits.save()
    with torch.no_grad():
        plain = model._module(**encoding).logits
    assert measure_gap(logits, expected) <= TOLERANCE
    assert measure_gap(plain, expected) > 20 * TOLERANCE


@pytest.mark.parametrize("family", ["llava", *PACKED])
def test_what_is_read_has_gradients(family):
    model, encoding = share_model(family), encode(family)
    delta = 1e-2
    with model.trace(**encoding):
        values = model.vision_values[0]
        loss = model.logits[:, -1].square().mean().save()
        with loss.backward():
            slope = values.grad.save()
    with torch.no_grad(), model.trace(**encoding):
        model.vision_values[0] = model.vision_values[0] + delta * slope / slope.norm()
        moved = model.logits[:, -1].square().mean().save()
    loss, slope = loss.detach(), slope.detach()
    expected = float(delta * slope.norm())
    assert abs(float(moved - loss) - expected) <= 0.2 * expected


@pytest.mark.parametrize("family", OWN_CODE)
@pytest.mark.parametrize("point", POINTS)
def test_a_tower_of_own_code_is_refused_by_name(family, point):
    model = share_model(family)
    with (
        pytest.raises(ModelError, match=r"GotOcr2VisionAttention\) is computed by"),
        torch.no_grad(),
        model.trace(**encode(family)),
    ):
        getattr(model, f"vision_{point}")[0].save()


@pytest.mark.parametrize("family", NO_TOWER)
def test_without_a_tower_there_is_no_attention_of_it(family):
    model = share_model(family)
    with pytest.raises(ModelError, match="no vision_queries: its config has no vision"):
        len(model.vision_queries)
    assert repr(model.vision_queries) == "<no vision_queries in this model>"


def test_what_is_outside_of_a_trace_or_does_not_exist_is_refused():
    model = share_model("qwen2_vl")
    with pytest.raises(UnsupportedError, match="works inside a trace only"):
        model.vision_queries[0]
    with pytest.raises(SettingsError, match=r"vision_keys\[2\] does not exist"):
        model.vision_keys[2]


def test_what_has_passed_is_refused():
    model = share_model("qwen2_vl")
    refused = pytest.raises(UnsupportedError, match=r"vision_queries\[0\] has passed")
    with (
        refused,
        torch.no_grad(),
        model.trace(**encode("qwen2_vl")),
    ):
        model.vision_heads_output[0].save()
        model.vision_queries[0].save()


def test_what_does_not_fit_is_refused():
    model = share_model("qwen2_vl")
    with (
        pytest.raises(InputError, match=r"vision_values\[0\] = ...: expected a ten"),
        torch.no_grad(),
        model.trace(**encode("qwen2_vl")),
    ):
        model.vision_values[0] = torch.zeros(3)


def test_a_pattern_changed_in_place_alone_is_refused():
    model = share_model("qwen2_vl")
    match = r"model.vision_attention_probabilities\[0\] = pattern"
    refused = pytest.raises(UnsupportedError, match=match)
    with refused, torch.no_grad(), model.trace(**encode("qwen2_vl")):
        model.vision_attention_probabilities[0][:, 1] = 0
        model.logits.save()


def test_the_tower_has_no_rows_of_one_invoke():
    model = share_model("llava")
    refused = pytest.raises(UnsupportedError, match="vision_queries cannot be told")
    with refused, torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(random_image(), "what ?"):
            model.vision_queries[0].save()
        with tracer.invoke(random_image(1), "is there a cat ?"):
            model.logits.save()


def test_a_tower_whose_call_does_not_explain_it_is_refused(monkeypatch):
    tiny = tiny_lvlm("llava", attn_implementation="eager")
    model = eah.wrap(tiny, tiny_processor("llava"))
    model.dispatch()
    monkeypatch.setattr(AttentionCall, "_scale", lambda _: 3.0)
    with (
        pytest.raises(ModelError, match="layer 0 of the vision tower is not explained"),
        torch.no_grad(),
        model.trace(**encode("llava")),
    ):
        model.vision_attention_probabilities[0].save()


def test_eager_attention_without_a_mask_sees_what_comes_later(monkeypatch):
    """Phi-4's tower calls itself causal, which only SDPA heeds."""
    tiny = tiny_lvlm("llava", attn_implementation="eager")
    expected = TowerOracle("llava", tiny)
    expected.run(encode("llava"))
    for layer in tiny.model.vision_tower.encoder.layers:
        monkeypatch.setattr(layer.self_attn, "is_causal", True)
    model = eah.wrap(tiny, tiny_processor("llava"))
    with torch.no_grad(), model.trace(**encode("llava")):
        pattern = model.vision_attention_probabilities[0].save()
    whole = expected.whole("attention_probabilities", 0)
    torch.testing.assert_close(pattern, whole)
    assert whole.triu(1).any()


def test_packed_towers_in_flash_attention_are_refused_by_name(monkeypatch):
    tiny = tiny_lvlm("qwen2_vl")
    model = eah.wrap(tiny)
    config = tiny.model.visual.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    with (
        pytest.raises(UnsupportedError, match="all images in one call of flash_attent"),
        torch.no_grad(),
        model.trace(**encode("qwen2_vl")),
    ):
        model.vision_queries[0].save()


def test_a_loop_is_told_from_a_single_call():
    alone = (
        "def forward(self, q):\n    f = ALL_ATTENTION_FUNCTIONS['x']\n    return f(q)"
    )
    assert find_packed_call(alone) is None
    looped = (
        "def forward(self, q):\n    f = ALL_ATTENTION_FUNCTIONS['x']\n"
        "    parts = [q.split(2), q.split(2)]\n"
        "    out = [f(a, b) for a, b in zip(*parts)]\n    return torch.cat(out, 1)"
    )
    found = find_packed_call(looped)
    assert (found.call, found.splits) == (("f", 4), ("parts", 3))
    assert found.joined == ("torch_cat", 5)


def test_sequences_are_spread_and_packed_back():
    packing = Packing(((2, 1), (4,)))
    packed = torch.randn(1, 3, 7, 5)
    items = packing.spread(packed, axis=2)
    assert items.shape == (2, 3, 4, 5)
    assert torch.equal(items[0, :, :3], packed[0, :, :3])
    assert not items[0, :, 3].any()
    assert torch.equal(packing.pack(items, axis=2), packed)
    assert packing.mask.write()[0, 0].sum() == 4 + 1
    assert Packing(((3,), (3,))).mask is None
    mixed = torch.ones(3, 3, dtype=torch.bool).tril()
    assert find_blocks(mixed) is None
    assert group_chunks((2, 2, 3), (3, 4)) == ((2,), (2,), (3,))
    assert SequenceMask(((2, 1),), 3).parts() == [(0, slice(0, 2)), (0, slice(2, 3))]


MASKS = (SequenceMask(((3, 1, 2), (4,)), 6), SequenceMask(((2, 2), (2, 2)), 4))


@pytest.mark.parametrize("mask", MASKS)
def test_parts_are_split_and_joined(mask):
    items = torch.randn(2, 3, mask.width, 5)
    tokens = mask.write()[:, 0].any(-1)
    parts = mask.split(items, axis=2)
    lengths = [length for chunk in mask.chunks for length in chunk]
    assert parts.shape == (len(lengths), 3, max(lengths), 5)
    for part, (row, own) in zip(parts, mask.parts(), strict=True):
        length = own.stop - own.start
        assert torch.equal(part[:, :length], items[row, :, own])
        assert not part[:, length:].any()
    back = items * tokens[:, None, :, None]
    assert torch.equal(mask.join(parts, axis=2), back)
    assert mask.part_tokens().sum(-1).tolist() == lengths
    some = torch.tensor([2, 0])
    assert torch.equal(mask.write(rows=some), mask.write()[:, :, some])


@pytest.mark.parametrize("mask", MASKS)
def test_a_call_of_windows_is_that_of_the_whole_mask(mask):
    """Scores, sinks and what heads return, window by window and with the mask."""
    torch.manual_seed(0)
    module = share_plain("qwen2_5_vl").get_submodule("model.visual.blocks.0.attn")
    tensors = [torch.randn(2, 4, mask.width, 8) for _ in range(3)]
    cut = AttentionCall(module, *tensors, mask, (), {"is_causal": False})
    whole = dataclasses.replace(cut, mask=mask.write())
    tokens = mask.write()[:, 0].any(-1)
    columns = tokens.clone()
    columns[:, 0] = False  # a token of the tower's own
    prompt = Prompt(columns, tokens)
    one = score_call(cut, prompt, definition="visible")
    other = score_call(whole, prompt, definition="visible")
    torch.testing.assert_close(one.scores, other.scores)
    torch.testing.assert_close(one.unit, other.unit)
    assert torch.equal(one.columns, other.columns)
    assert torch.equal(one.sinks(1.0), other.sinks(1.0))
    assert torch.equal(one.density(1.0), other.density(1.0))
    parts = cut.by_parts().attend_with(lambda block: block.weights)
    expected = whole.attend_with(lambda block: block.weights)
    real = tokens[..., None, None]
    torch.testing.assert_close(mask.join(parts, axis=1), expected * real)


def test_no_mask_of_all_pairs_is_made_where_packed_images_are_scored(monkeypatch):
    model, encoding = share_model("qwen2_5_vl"), encode("qwen2_5_vl")
    expected = eah.score_sinks(model, encoding, tower="vision")
    write = SequenceMask.write

    def refuse(self, device=None, *, rows=None):
        assert rows is not None, "a whole mask was written out"
        return write(self, device, rows=rows)

    monkeypatch.setattr(SequenceMask, "write", refuse)
    model.anatomy.checked.clear()  # what is checked once is checked so, too
    found = eah.score_sinks(model, encoding, tower="vision")
    assert torch.equal(found.density, expected.density)
    asked = {"heads": ["L0H1", "L1H0"], "query": [3], "tower": "vision"}
    read_patterns(model, encoding, **asked)
    with pytest.raises(AssertionError, match="a whole mask was written out"):
        SequenceMask(((1,),), 1).write()
