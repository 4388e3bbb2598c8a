"""Hook points by name in every kind of trace: in place, steps, edits, invokes."""

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError, ModelError, SettingsError, UnsupportedError
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.hooked import Hooked
from tests.tiny_families import (
    SUPPORTED,
    encode,
    ignore_renamed,
    measure_gap,
    share_model,
    share_plain,
    sweep,
)

pytestmark = [
    ignore_renamed,
    # FlexAttention, uncompiled
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*flex_attention called without torch.comp"),
]

IMAGES = [random_image(seed) for seed in (0, 1, 2)]
PROMPTS = ["is there a cat ?", "what ?", "is the dog near the tree or the boat ?"]
NEW = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
KEPT = {"output_logits": True, "return_dict_in_generate": True}


@pytest.fixture(scope="module", params=["eager", "sdpa", "flex_attention"])
def model(request):
    tiny = tiny_lvlm("llava", n_kv_heads=2, attn_implementation=request.param)
    with torch.compiler.set_stance("force_eager"):
        yield eah.wrap(tiny, tiny_processor("llava"))


@pytest.fixture(scope="module")
def sdpa():
    return eah.wrap(tiny_lvlm("llava", n_kv_heads=2), tiny_processor("llava"))


def logits_under(model, *settings):
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        for one in settings:
            eah.intervene(model, one)
        logits = model.logits.save()
    return logits


def tokens_of(model):
    return model.encode(IMAGES, PROMPTS)["attention_mask"].bool()


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ---- Writing by hand what the package's interventions write.


def test_a_head_set_to_zero_by_hand_is_ablated(model):
    expected = logits_under(model, eah.Ablation(heads=("L1H2",)))
    tokens = tokens_of(model)
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        model.heads_output[1][:, 2] = 0
        in_place = model.logits.save()
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        heads = model.heads_output[1].clone()
        heads[:, 2] = 0
        model.heads_output[1] = heads
        assigned = model.logits.save()
    assert_close(in_place[tokens], expected[tokens])
    assert_close(assigned[tokens], expected[tokens])
    assert (expected - logits_under(model))[tokens].abs().max() > 0.1


def test_a_pattern_written_by_hand_is_the_broadcast(model):
    expected = logits_under(model, eah.EAH(layers=(1,), donor=3))
    tokens = tokens_of(model)
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        pattern = model.attention_probabilities[1]
        model.attention_probabilities[1] = pattern[:, 3:4].expand_as(pattern)
        logits = model.logits.save()
    assert_close(logits[tokens], expected[tokens])


def test_queries_and_keys_written_by_hand_are_the_broadcast(model):
    expected = logits_under(model, eah.EAH(layers=(1,), donor=3))
    tokens = tokens_of(model)
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        queries = model.queries[1]
        model.queries[1] = queries[:, 3:4].expand_as(queries)
        keys = model.keys[1]
        model.keys[1] = keys[:, 1:2].expand_as(keys)
        logits = model.logits.save()
    assert_close(logits[tokens], expected[tokens])


def test_a_pattern_is_changed_by_an_operator_and_reads_back(model):
    image, prompt = IMAGES[2], PROMPTS[2]
    with torch.no_grad(), model.trace(image, prompt):
        columns = model.image_mask[:, None, None, :]
        model.attention_probabilities[1] *= ~columns
        heads = model.heads_output[1].save()
    with torch.no_grad(), model.trace(image, prompt):
        columns = model.image_mask[:, None, None, :]
        pattern = (model.attention_probabilities[1] * ~columns).save()
        values = model.values[1].repeat_interleave(2, 1).save()
    assert_close(heads, pattern @ values)


def test_what_a_mask_hides_can_be_written(model):
    """A pattern is what heads mix by, also where the model would not look."""
    with torch.no_grad(), model.trace(IMAGES[0], PROMPTS[0]):
        ahead = torch.zeros_like(model.attention_probabilities[1])
        ahead[..., -1] = 1
        model.attention_probabilities[1] = ahead
        heads = model.heads_output[1].save()
    assert_close(heads, heads[:, :, -1:].expand_as(heads))


def test_changes_in_place_are_changes_of_the_run(sdpa):
    for name in ("layers_input", "attentions_output", "mlps_output", "layers_output"):
        with torch.no_grad(), sdpa.trace(IMAGES, PROMPTS):
            getattr(sdpa, name)[1][:, -1] += 1
            in_place = sdpa.logits.save()
        with torch.no_grad(), sdpa.trace(IMAGES, PROMPTS):
            value = getattr(sdpa, name)[1].clone()
            value[:, -1] += 1
            getattr(sdpa, name)[1] = value
            assigned = sdpa.logits.save()
        assert_close(in_place, assigned)
        assert not torch.allclose(assigned, logits_under(sdpa), atol=1e-2)


@pytest.mark.parametrize("name", ["keys", "values"])
def test_what_is_changed_in_place_stays_in_the_cache(sdpa, name):
    """An assignment changes one call; in place, the cache's own tensor changes."""
    seen = {}
    with torch.no_grad(), sdpa.generate(IMAGES[0], PROMPTS[0], **NEW) as tracer:
        for step in tracer.iter[:2]:
            cached = getattr(sdpa, name)[1]
            seen["in place", step] = cached.clone()
            if step == 0:
                cached[:] = 0
    with torch.no_grad(), sdpa.generate(IMAGES[0], PROMPTS[0], **NEW) as tracer:
        for step in tracer.iter[:2]:
            cached = getattr(sdpa, name)[1]
            seen["assigned", step] = cached.clone()
            if step == 0:
                getattr(sdpa, name)[1] = torch.zeros_like(cached)
    width = seen["assigned", 0].shape[2]
    assert not seen["in place", 1][:, :, :width].any()
    assert torch.equal(seen["assigned", 1][:, :, :width], seen["assigned", 0])


def test_norm_and_logits_are_written_too(sdpa):
    with torch.no_grad(), sdpa.trace(IMAGES, PROMPTS):
        sdpa.ln_final.output[:] = 0
        bare = sdpa.logits
        sdpa.logits = bare + 1
        logits = sdpa.output.logits.save()
    assert_close(logits, torch.ones_like(logits))


def test_a_written_value_takes_the_dtype_of_what_it_replaces():
    tiny = tiny_lvlm("llava", dtype=torch.bfloat16)
    model = eah.wrap(tiny, tiny_processor("llava"))
    with torch.no_grad(), model.trace(IMAGES[0], PROMPTS[0]):
        model.layers_output[1] = model.layers_output[1].double()
        pattern = model.attention_probabilities[2].save()
        model.attention_probabilities[2] = pattern
        logits = model.logits.save()
    assert logits.dtype == torch.bfloat16
    assert pattern.dtype == torch.float32


def test_maps_that_a_run_returns_are_the_patterns_that_were_written():
    tiny = tiny_lvlm("llava", attn_implementation="eager")
    model = eah.wrap(tiny, tiny_processor("llava"))
    with torch.no_grad(), model.trace(IMAGES[0], PROMPTS[0], output_attentions=True):
        plain = model.attention_probabilities[1].clone().save()
        model.attention_probabilities[1] = plain / 2
        maps = model.output.attentions.save()
    assert_close(maps[1], plain / 2)
    assert_close(maps[0].sum(-1), torch.ones_like(maps[0][..., 0]))


# ---- Steps, edits, invokes, shapes.

STEPWISE = ("attention_probabilities", "heads_output", "layers_output")


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_every_step_of_a_generation_is_read_and_written(family):
    """A constant is added at each step, as a plain hook adds it."""
    model, encoding = share_model(family), encode(family)
    width = share_plain(family).config.get_text_config(decoder=True).hidden_size
    delta = torch.linspace(-1, 1, width)
    hooked = Hooked(family, share_plain(family), {("mlps_output", 1): delta})
    expected = hooked.run(encoding, **NEW, **KEPT)
    seen = {name: [] for name in STEPWISE}
    with torch.no_grad(), model.generate(**encoding, **NEW, **KEPT) as tracer:
        for _ in tracer.iter[:3]:
            seen["attention_probabilities"].append(model.attention_probabilities[1])
            seen["heads_output"].append(model.heads_output[1])
            model.mlps_output[1] = model.mlps_output[1] + delta
            seen["layers_output"].append(model.layers_output[1])
    with torch.no_grad(), model.generate(**encoding, **NEW, **KEPT) as tracer:
        for _ in tracer.iter[:3]:
            model.mlps_output[1] = model.mlps_output[1] + delta
        found = tracer.result.save()
    assert found.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert measure_gap(ours, theirs) <= 1e-4
    for name, values in seen.items():
        theirs = hooked.seen[name, 1]
        assert len(values) == len(theirs) == 3
        for ours, its in zip(values, theirs, strict=True):
            assert ours.shape == its.shape
            axis = 1 if name == "layers_output" else 2
            last = [value.select(axis, -1) for value in (ours, its)]
            assert (last[0] - last[1]).abs().max() <= 1e-4 * last[1].abs().max()


def test_an_edit_keeps_what_is_written(model):
    with model.edit() as (_, edited):
        edited.heads_output[1][:, 2] = 0
    with torch.no_grad(), edited.trace(IMAGES, PROMPTS):
        logits = edited.logits.save()
    tokens = tokens_of(model)
    expected = logits_under(model, eah.Ablation(heads=("L1H2",)))
    assert_close(logits[tokens], expected[tokens])
    assert torch.equal(logits_under(model), logits_under(model))
    assert isinstance(edited.describe(IMAGES[0], max_new_tokens=2), str)


def test_each_invoke_reads_and_writes_its_own_rows(model):
    expected = logits_under(model, eah.Ablation(heads=("L1H2",)))
    plain, tokens = logits_under(model), tokens_of(model)
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(IMAGES[0], PROMPTS[0]):
            mask = model.image_mask.save()
            model.heads_output[1][:, 2] = 0
            one = model.logits.save()
        with tracer.invoke(IMAGES[1:], PROMPTS[1:]):
            pattern = model.attention_probabilities[1]
            model.attention_probabilities[1] = pattern * 0
            heads = model.heads_output[1].save()
            stream = model.layers_output[1].save()
            model.logits = model.logits * 0
        with tracer.invoke():
            whole = model.logits.save()
    assert mask.shape[0] == 1
    assert heads.shape[0] == stream.shape[0] == 2
    assert not heads.any()
    assert_close(one[0][tokens[0]], expected[0][tokens[0]])
    assert not whole[1:].any()
    assert not torch.allclose(one[0][tokens[0]], plain[0][tokens[0]], atol=1e-2)


def test_a_scan_has_the_shapes_of_a_trace(sdpa):
    with sdpa.scan(IMAGES[0], PROMPTS[0]):
        shapes = [
            tuple(sdpa.layers_output[0].shape),
            tuple(sdpa.attention_probabilities[1].shape),
            tuple(sdpa.heads_output[1].shape),
            tuple(sdpa.logits.shape),
        ]
        found = shapes.save()
    width = sdpa.encode(IMAGES[0], PROMPTS[0])["input_ids"].shape[1]
    assert found[:3] == [(1, width, 32), (1, 4, width, width), (1, 4, width, 8)]


def test_inference_mode_changes_no_number(sdpa):
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), sdpa.trace(IMAGES[0], PROMPTS[0]):
            sdpa.attention_probabilities[1] *= 0.5
            sdpa.heads_output[2][:, 1] = 0
            found.append(sdpa.logits)
    assert torch.equal(*found)


def test_gradients_flow_to_and_from_hook_points(sdpa):
    with sdpa.trace(IMAGES[0], PROMPTS[0]):
        pattern = sdpa.attention_probabilities[1]
        sdpa.attention_probabilities[1] = pattern
        stream = sdpa.layers_output[1]
        loss = sdpa.logits[0, -1, 7]
        with loss.backward():
            of_stream = stream.grad.save()
            of_pattern = pattern.grad.save()
    assert of_stream.abs().max() > 0
    assert of_pattern.abs().max() > 0


WITH_GRADIENTS = ("queries", "keys", "values", "heads_output")
ALL_OF_STREAM = ("layers_input", "attentions_output", "mlps_output", "layers_output")


@pytest.mark.parametrize("family", ["llava", "blip_2", "gemma3", "llama4"])
@pytest.mark.parametrize("name", [*WITH_GRADIENTS, *ALL_OF_STREAM])
def test_what_is_read_has_its_gradient(family, name):
    """Read through a view, too: BLIP-2's OPT packs tokens, heads are transposed.

    Along a random direction the loss changes by what the gradient says: the change is
    made by a write of its own.
    """
    encoding, model = encode(family), share_model(family)
    encoding = {key: value[1:] for key, value in encoding.items()}
    with model.trace(**encoding, use_cache=False):
        value = getattr(model, name)[1]
        direction = torch.linspace(-1, 1, value.numel()).view(value.shape).save()
        loss = model.logits[0, -1, 7].double()
        with loss.backward():
            slope = (value.grad * direction).sum().save()
    losses = []
    for step in (-1e-3, 1e-3):
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            values = getattr(model, name)
            values[1] = values[1] + step * direction
            losses.append(model.logits[0, -1, 7].double())
    measured = (losses[1] - losses[0]) / 2e-3
    assert abs(measured - slope) <= 0.02 * max(1, abs(slope))
    assert slope.abs() > 0


def test_changes_in_place_are_kept_where_gradients_flow(sdpa):
    with sdpa.trace(IMAGES[0], PROMPTS[0]):
        sdpa.heads_output[1][:, 2] = 0
        found = sdpa.logits.detach().save()
    with torch.no_grad(), sdpa.trace(IMAGES[0], PROMPTS[0]):
        sdpa.heads_output[1][:, 2] = 0
        expected = sdpa.logits.save()
    assert_close(found, expected)
    with sdpa.trace() as tracer:
        with tracer.invoke(IMAGES[0], PROMPTS[0]):
            sdpa.heads_output[1][:, 2] = 0
            one = sdpa.logits.detach().save()
        with tracer.invoke(IMAGES[0], PROMPTS[0]):
            other = sdpa.logits.detach().save()
    assert_close(one, expected)
    assert not torch.allclose(other, expected, atol=1e-2)


def test_layers_are_counted_and_walked_as_in_a_list(sdpa):
    assert len(sdpa.layers_output) == 3
    assert repr(sdpa.queries) == (
        "<queries of 3 layers, [batch, head, token, d_head] each>"
    )
    with torch.no_grad(), sdpa.trace(IMAGES[0], PROMPTS[0]):
        streams = list(sdpa.layers_output).save()
    with torch.no_grad(), sdpa.trace(IMAGES[0], PROMPTS[0]):
        last = sdpa.layers_output[-1].save()
    assert len(streams) == 3
    assert torch.equal(streams[-1], last)


# ---- Beside interventions.


def test_after_a_broadcast_the_pattern_is_the_donors(model):
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        eah.intervene(model, eah.EAH(layers=(1,), donor=0))
        pattern = model.attention_probabilities[1].save()
    assert_close(pattern, pattern[:, :1].expand_as(pattern))


def test_a_pattern_of_a_layer_that_is_patched_at_its_output_is_refused(sdpa):
    uniform = eah.Ablation(heads=("L1H2",), how="uniform")

    def run():
        with torch.no_grad(), sdpa.trace(IMAGES, PROMPTS):
            eah.intervene(sdpa, uniform)
            sdpa.attention_probabilities[1].save()

    with pytest.raises(UnsupportedError, match=r"probabilities\[1\] has passed"):
        run()


def test_a_patch_of_a_layer_whose_pattern_is_written_is_refused(sdpa):
    def run():
        with torch.no_grad(), sdpa.trace(IMAGES, PROMPTS):
            sdpa.attention_probabilities[1] = sdpa.attention_probabilities[1]
            eah.intervene(sdpa, eah.EAH(layers=(1,)))

    with pytest.raises(UnsupportedError, match=r"layer 1 has already run"):
        run()


# ---- Refused.


@pytest.mark.parametrize(
    "name",
    [
        *("layers_input", "queries", "keys", "values", "attention_probabilities"),
        *("heads_output", "attentions_output", "mlps_output", "layers_output"),
        "vision_layers_output",
    ],
)
def test_outside_a_trace_everything_is_refused(sdpa, name):
    with pytest.raises(UnsupportedError, match="inside a trace only"):
        getattr(sdpa, name)[1]
    with pytest.raises(UnsupportedError, match="inside a trace only"):
        getattr(sdpa, name)[1] = torch.zeros(1)
    with pytest.raises(SettingsError, match=rf"{name}\[9\] does not exist: expected"):
        getattr(sdpa, name)[9]


def test_logits_and_image_tokens_are_refused_outside_a_trace(sdpa):
    with pytest.raises(UnsupportedError, match="inside a trace only"):
        sdpa.logits  # noqa: B018
    with pytest.raises(UnsupportedError, match="inside a trace only"):
        sdpa.image_mask  # noqa: B018


@pytest.mark.parametrize(
    ("later", "earlier"),
    [
        ("layers_output", "queries"),
        ("layers_output", "heads_output"),
        ("heads_output", "attention_probabilities"),
        ("mlps_output", "attentions_output"),
        ("queries", "layers_input"),
    ],
)
@pytest.mark.parametrize("opened", [True, False])
def test_what_has_passed_is_refused(later, earlier, opened):
    """Also in the first trace, which has not opened the attention modules yet."""
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    if opened:
        logits_under(model, eah.EAH(layers=(1,)))

    def run():
        with torch.no_grad(), model.trace(IMAGES[0], PROMPTS[0]):
            getattr(model, later)[1]
            getattr(model, earlier)[1]

    with pytest.raises(UnsupportedError, match=rf"{earlier}\[1\] has passed: values"):
        run()


@pytest.mark.parametrize("step", [0, 1, 2])
def test_what_has_passed_in_a_step_is_not_read_from_the_next(sdpa, step):
    def run():
        with torch.no_grad(), sdpa.generate(IMAGES[0], PROMPTS[0], **NEW) as tracer:
            for _ in tracer.iter[step]:
                sdpa.layers_output[1]
                sdpa.queries[1]

    with pytest.raises(UnsupportedError, match=r"queries\[1\] has passed: values"):
        run()


def test_what_a_step_reads_first_may_be_the_models_input(sdpa):
    shapes = []
    with torch.no_grad(), sdpa.generate(IMAGES[0], PROMPTS[0], **NEW) as tracer:
        for _ in tracer.iter[1:3]:
            sdpa.inputs  # noqa: B018
            shapes.append(tuple(sdpa.layers_output[1].shape))
    assert shapes == [(1, 1, 32)] * 2


def test_a_pattern_changed_in_place_is_refused(sdpa):
    """At the next thing that is read or written, or at the end of the run."""

    def read_next():
        with torch.no_grad(), sdpa.trace(IMAGES[0], PROMPTS[0]):
            sdpa.attention_probabilities[1][:, 0] = 0
            sdpa.logits.save()

    def write_another():
        with torch.no_grad(), sdpa.trace(IMAGES[0], PROMPTS[0]):
            sdpa.attention_probabilities[1][:, 0] = 0
            sdpa.attention_probabilities[2] = torch.zeros(1)

    def end():
        with torch.no_grad(), sdpa.trace(IMAGES[0], PROMPTS[0]):
            sdpa.attention_probabilities[1][:, 0] = 0

    message = r"attention_probabilities\[1\] was changed in place, which changes noth"
    for run in (read_next, write_another, end):
        with pytest.raises(UnsupportedError, match=message):
            run()
    with torch.no_grad(), sdpa.trace(IMAGES[0], PROMPTS[0]):
        own = sdpa.attention_probabilities[1].clone()
        own[:, 0] = 0
        sdpa.logits.save()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers_output", torch.zeros(1, 2, 3)),
        ("queries", torch.zeros(1, 2, 3, 4)),
        ("attention_probabilities", torch.zeros(1, 4, 2, 2)),
        ("heads_output", 0),
        ("vision_layers_output", torch.zeros(5)),
    ],
)
def test_a_value_of_another_shape_is_refused(sdpa, as_users_run_it, name, value):
    del as_users_run_it
    with (
        pytest.raises(InputError, match=rf"{name}\[1\] = ...: expected a tensor of sh"),
        torch.no_grad(),
        sdpa.trace(IMAGES[0], PROMPTS[0]),
    ):
        getattr(sdpa, name)[1] = value


def test_a_vision_tower_has_no_rows_of_invokes(sdpa):
    def run():
        with torch.no_grad(), sdpa.trace() as tracer:
            with tracer.invoke(IMAGES[0], PROMPTS[0]):
                sdpa.vision_layers_output[0].save()
            with tracer.invoke(IMAGES[1], PROMPTS[1]):
                sdpa.logits.save()

    with pytest.raises(UnsupportedError, match="vision_layers_output cannot be"):
        run()


def test_invokes_whose_rows_beams_repeat_are_refused(sdpa):
    def run():
        with torch.no_grad(), sdpa.generate(num_beams=2, max_new_tokens=2) as tracer:
            with tracer.invoke(IMAGES[0], PROMPTS[0]):
                sdpa.layers_output[1].save()
            with tracer.invoke(IMAGES[1], PROMPTS[1]):
                sdpa.layers_output[1].save()

    with pytest.raises(UnsupportedError, match=r"layers_output: expected the 1 rows"):
        run()


def test_a_tuple_has_no_logits(sdpa):
    with (
        pytest.raises(UnsupportedError, match="returns a tuple without logits"),
        torch.no_grad(),
        sdpa.trace(IMAGES[0], PROMPTS[0], return_dict=False),
    ):
        sdpa.logits.save()


def test_patterns_under_dropout_are_refused():
    tiny = tiny_lvlm("llava")
    model = eah.wrap(tiny, tiny_processor("llava"))
    tiny.model.language_model.layers[0].self_attn.attention_dropout = 0.1
    tiny.train()
    with (
        pytest.raises(UnsupportedError, match="the model is in training mode"),
        model.trace(IMAGES[0], PROMPTS[0]),
    ):
        model.attention_probabilities[1].save()


def test_what_no_module_returns_is_refused_by_name(monkeypatch):
    """As in Granite: what is added was scaled on its way."""
    tiny = tiny_lvlm("llava")
    kind = type(tiny.model.language_model.layers[0])
    monkeypatch.setattr(kind, "forward", scaled_forward)
    model = eah.wrap(tiny, tiny_processor("llava"))
    for name, of in (("attentions_output", "attention"), ("mlps_output", "mlp")):
        with (
            pytest.raises(
                ModelError, match=rf"{name}\[1\] does not exist: .* its {of}"
            ),
            torch.no_grad(),
            model.trace(IMAGES[0], PROMPTS[0]),
        ):
            getattr(model, name)[1]


def scaled_forward(self, hidden_states, **kwargs):
    attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
    hidden_states = hidden_states + attended * 0.5
    added = self.mlp(self.post_attention_layernorm(hidden_states))
    return hidden_states + added * 0.5


def test_a_sum_that_does_not_add_up_at_load_loses_its_names():
    """The source says one thing, and a hook on the layer makes it another."""
    tiny = tiny_lvlm("llava")
    layer = tiny.model.language_model.layers[1]
    layer.register_forward_hook(lambda *given: given[-1] * 2)
    model = eah.wrap(tiny, tiny_processor("llava"))
    assert [w.mlp for w in model.anatomy.writers.values()] == ["mlp", None, "mlp"]
    with (
        pytest.raises(ModelError, match=r"mlps_output\[1\] does not exist"),
        model.trace(IMAGES[0], PROMPTS[0]),
    ):
        model.mlps_output[1]
