"""Passes in which nobody waits run as transformers runs them, and return the same.

The slow way, with nnsight's handlers in every pass, is what they are compared with: bit
for bit, as both compute the same tensors in the same shapes.
"""

import re
import sys
from collections import Counter
from contextlib import contextmanager

import accelerate.hooks
import nnsight
import pytest
import torch
from nnsight.intervention import source
from transformers.generation.streamers import BaseStreamer

import eah_interp as eah
from eah_interp.errors import EAHError, UnsupportedError
from eah_interp.lvlm import runs
from eah_interp.lvlm.runs import passes_of
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.tiny_families import SUPPORTED, encode, ignore_renamed, share_model, sweep

IMAGE, PROMPT = random_image(0), "is there a cat ?"
N_STEPS = 5
NEW = {
    "max_new_tokens": N_STEPS,
    "min_new_tokens": N_STEPS,
    "do_sample": False,
}
WHOLE = {**NEW, "return_dict_in_generate": True, "output_logits": True}
ALL_STEPS = eah.Ablation(heads=["L1H0"])
PREFILL = {
    "nothing": None,
    "EAH": eah.EAH(),
    "EAH to some": eah.EAH(recipients=(0, 3)),
    "uniform": eah.EAH(donor="uniform"),
    "PAI": eah.PAI(layers=":", alpha=3.0, steps="prefill"),
    "zero": eah.Ablation(heads=["L1H0", "L2H1"], steps="prefill"),
}


@pytest.fixture(scope="module")
def model():
    tiny = tiny_lvlm("llava", n_kv_heads=2, attn_implementation="sdpa")
    return eah.wrap(tiny, tiny_processor("llava"))


@pytest.fixture(scope="module")
def encoding(model):
    return model.encode(IMAGE, PROMPT)


@pytest.fixture(autouse=True)
def leave_the_model_as_it_was(model):
    """Whatever a run does and however it ends, nnsight's handlers are back after it."""
    yield
    assert_untouched(model)


def assert_untouched(model):
    forwards = [vars(module).get("forward") for module in model._module.modules()]
    assert {type(forward) for forward in forwards} == {source.Controller}
    assert not model.interleaver.interleaving


@contextmanager
def handled(model):
    """List how often each pass of a run stopped at the first layer's handler."""
    layer = model._module.get_submodule(model.anatomy.layers)[0]
    plainly, seen = source.run_body, []

    def run_body(state, module, args, kwargs):
        if module is layer:
            seen.append(len(passes_of(model)) - 1)
        return plainly(state, module, args, kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "run_body", run_body)
        yield seen


@contextmanager
def slow_way():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "IS_KNOWN", False)
        yield


def patched(model, settings):
    return model if settings is None else eah.edit(model, settings)


def both_ways(model, run):
    """Run with the handlers in every pass, and without: what comes, and which passes.

    Returns:
        What the plain passes gave, and the steps that went through handlers.
    """
    with slow_way(), handled(model) as every:
        expected = run()
    assert every == list(range(len(passes_of(model))))
    with handled(model) as some:
        found = run()
    assert len(passes_of(model)) == len(every)
    assert_equal(found, expected)
    return found, some


def assert_equal(found, expected):
    assert torch.equal(found.sequences, expected.sequences)
    assert len(found.logits) == len(expected.logits)
    for own, theirs in zip(found.logits, expected.logits, strict=True):
        assert torch.equal(own, theirs)


# ---- What is returned


@ignore_renamed
@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_every_family_generates_the_same_without_handlers(family):
    model, inputs = share_model(family), encode(family)
    _, none = both_ways(model, lambda: model.generate(**inputs, **WHOLE))
    assert none == []
    twin = eah.edit(model, eah.EAH())
    _, first = both_ways(twin, lambda: twin.generate(**inputs, **WHOLE))
    assert first == [0]
    assert_untouched(model)


ASSISTANT = tiny_lvlm("llava", n_layers=2)
KINDS = {
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 9, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "assisted": {"assistant_model": ASSISTANT},
    "hidden states": {"output_hidden_states": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PREFILL)
def test_every_kind_of_generation_is_the_same_without_handlers(
    model, encoding, name, kind
):
    twin = patched(model, PREFILL[name])

    def run():
        torch.manual_seed(3)
        return twin.generate(**encoding, **{**WHOLE, **KINDS[kind]})

    _, steps = both_ways(twin, run)
    assert steps == ([] if PREFILL[name] is None else [0])


def test_rows_of_two_invokes_are_the_same_without_handlers(model):
    def run():
        with model.generate(**NEW) as tracer:
            with tracer.invoke(IMAGE, PROMPT):
                eah.intervene(model, eah.EAH())
            with tracer.invoke(random_image(1), "what ?"):
                pass
            with tracer.invoke():
                ids = tracer.result.save()
        return ids

    with slow_way():
        expected = run()
    with handled(model) as steps:
        assert torch.equal(run(), expected)
    assert steps == [0]


def test_gradients_are_the_same_without_handlers(model, encoding):
    inputs = {**encoding, "pixel_values": encoding["pixel_values"].clone()}
    pixels = inputs["pixel_values"].requires_grad_()
    given = {**inputs, "use_cache": False, "trace": False}
    found = {}
    for way in (slow_way, lambda: handled(model)):
        with way() as steps:
            model.trace(**given).logits[0, -1].max().backward()
        found[way] = pixels.grad.clone()
        pixels.grad = None
    assert steps == []
    slow, plain = found.values()
    assert torch.equal(slow, plain)
    assert plain.abs().max() > 0


# ---- Where somebody waits


def test_an_edit_of_all_steps_goes_through_the_handlers_in_all(model, encoding):
    twin = eah.edit(model, ALL_STEPS)
    _, steps = both_ways(twin, lambda: twin.generate(**encoding, **WHOLE))
    assert steps == list(range(N_STEPS))


def test_one_of_two_edits_that_waits_is_enough(model, encoding):
    twin = eah.edit(eah.edit(model, eah.EAH(layers=(0,))), ALL_STEPS)
    _, steps = both_ways(twin, lambda: twin.generate(**encoding, **WHOLE))
    assert steps == list(range(N_STEPS))


def test_who_waits_for_the_result_alone_waits_in_no_pass(model, encoding):
    def run():
        with model.generate(**encoding, **WHOLE) as tracer:
            eah.intervene(model, eah.EAH())
            found = tracer.result.save()
        return found

    _, steps = both_ways(model, run)
    assert steps == [0]


def test_a_loop_is_waited_for_until_it_ends(model, encoding):
    def run():
        with model.generate(**encoding, **NEW) as tracer:
            kept = nnsight.save([])
            for _ in tracer.iter[:3]:
                kept.append(model.model.language_model.layers[2].output)
            ids = tracer.result.save()
        return ids, torch.cat(kept, 1)

    with slow_way():
        ids, kept = run()
    with handled(model) as steps:
        found, streams = run()
    assert steps == [0, 1, 2]
    assert torch.equal(found, ids)
    assert torch.equal(streams, kept)


def test_a_value_of_a_later_step_is_waited_for_in_every_step_before(model, encoding):
    def run():
        twin = eah.edit(model, eah.EAH())
        with twin.generate(**encoding, **NEW) as tracer:
            for _ in tracer.iter[3]:
                stream = twin.model.language_model.layers[1].output.save()
        return stream

    with slow_way():
        expected = run()
    with handled(model) as steps:
        assert torch.equal(run(), expected)
    assert steps == [0, 1, 2, 3]


def test_a_token_of_the_streamer_is_waited_for(model, encoding):
    def run():
        with model.generate(**encoding, **NEW) as tracer:
            tokens = nnsight.save([])
            for _ in tracer.iter[1:3]:
                tokens.append(model.generator.streamer.output)
                tokens.append(model.model.language_model.layers[1].output)
        return tokens

    with slow_way():
        expected = run()
    with handled(model) as steps:
        found = run()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert steps == [0, 1, 2]


def test_a_cache_of_activations_holds_every_step(model, encoding):
    layer = "model.model.language_model.layers.1"
    with handled(model) as steps, model.generate(**encoding, **NEW) as tracer:
        kept = tracer.cache(modules=[layer])
        eah.intervene(model, eah.EAH())
    assert steps == list(range(N_STEPS))
    assert len(kept[layer]) == N_STEPS


def test_a_value_saved_in_one_invoke_is_waited_for_in_the_rows_of_all(model):
    with handled(model) as steps, model.generate(**NEW) as tracer:
        with tracer.invoke(IMAGE, PROMPT):
            eah.intervene(model, eah.EAH())
        with tracer.invoke(random_image(1), "what ?"):
            for _ in tracer.iter[2]:
                stream = model.model.language_model.layers[1].output.save()
    assert steps == [0, 1, 2]
    assert stream.shape[:2] == (1, 1)


class Asking(BaseStreamer):
    """Asks another wrapper of the same modules, while a generation runs."""

    def __init__(self, other, encoding):
        self.other, self.encoding, self.seen = other, encoding, []

    def put(self, value):
        del value
        other = self.other
        with torch.no_grad(), other.trace(**self.encoding):
            stream = other.model.language_model.layers[1].output.save()
        self.seen.append(stream)

    def end(self):
        pass


def test_another_wrapper_traces_in_the_midst_of_a_run(model, encoding):
    other = nnsight.NNsight(model._module)
    streamer = Asking(other, encoding)
    plain = model.generate(**encoding, **NEW)
    found = model.generate(**encoding, **NEW, streamer=streamer)
    assert torch.equal(found, plain)
    assert len(streamer.seen) == N_STEPS + 1
    assert all(torch.equal(one, streamer.seen[0]) for one in streamer.seen)


# ---- What runs as ever


def test_hooks_run_in_every_pass(model, encoding):
    layer, seen = model._module.get_submodule(model.anatomy.layers)[1], []
    hooks = [
        layer.register_forward_pre_hook(lambda *_: seen.append("in")),
        layer.register_forward_hook(lambda *_: seen.append("out")),
    ]
    eah.edit(model, eah.EAH()).generate(**encoding, **NEW)
    for hook in hooks:
        hook.remove()
    assert seen == ["in", "out"] * N_STEPS


def test_a_hook_that_writes_is_obeyed(model, encoding):
    layer = model._module.get_submodule(model.anatomy.layers)[1]
    plain = model.generate(**encoding, **WHOLE)
    with layer.register_forward_hook(lambda *found: found[-1] * 2):
        doubled, steps = both_ways(model, lambda: model.generate(**encoding, **WHOLE))
    assert steps == []
    assert not torch.equal(doubled.logits[-1], plain.logits[-1])


def test_modules_of_accelerate_keep_what_moves_their_tensors(encoding):
    tiny = tiny_lvlm("llava", n_kv_heads=2, attn_implementation="sdpa")
    accelerate.hooks.add_hook_to_module(tiny, accelerate.hooks.ModelHook())
    moved = []

    class Mover(accelerate.hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            moved.append(module)
            return args, kwargs

    for layer in tiny.get_decoder().layers:
        accelerate.hooks.add_hook_to_module(layer, Mover())
    model = eah.wrap(tiny, tiny_processor("llava"))
    twin = eah.edit(model, eah.EAH())
    with slow_way():
        expected = twin.generate(**encoding, **WHOLE)
    moved.clear()
    assert_equal(twin.generate(**encoding, **WHOLE), expected)
    assert len(moved) == N_STEPS * model.n_layers


def test_a_forward_of_the_users_is_kept(model, encoding):
    """One that took a handler's place in the midst of a run stays where it is."""
    mlp = model._module.get_submodule(model.anatomy.layers)[1].mlp
    handler, calls = mlp.forward, []

    def forward(hidden):
        calls.append(hidden)
        return handler(hidden)

    class Taking(BaseStreamer):
        def put(self, value):
            del value
            mlp.forward = forward

        def end(self):
            pass

    expected = model.generate(**encoding, **NEW)
    found = model.generate(**encoding, **NEW, streamer=Taking())
    kept, mlp.forward = mlp.forward, handler
    assert kept is forward
    assert len(calls) == N_STEPS
    assert torch.equal(found, expected)


# ---- However it ends


class Interrupted(BaseException):
    """Like KeyboardInterrupt, which pytest itself would take."""


def at_call(number, error):
    calls = []

    def fail(*_, **__):
        calls.append(1)
        if len(calls) == number:
            raise error

    return fail


@pytest.mark.parametrize("error", [RuntimeError("stop"), Interrupted()])
@pytest.mark.parametrize("name", ["nothing", "EAH"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_pass_that_fails_leaves_no_handler_aside(
    model, encoding, number, name, error
):
    twin = patched(model, PREFILL[name])
    expected = twin.generate(**encoding, **WHOLE)
    layer = model._module.get_submodule(model.anatomy.layers)[2]
    with (
        layer.register_forward_hook(at_call(number, error)),
        pytest.raises(type(error)),
    ):
        twin.generate(**encoding, **WHOLE)
    assert_untouched(model)
    assert_equal(twin.generate(**encoding, **WHOLE), expected)


@pytest.mark.parametrize("error", [RuntimeError("stop"), Interrupted()])
@pytest.mark.parametrize("where", ["streamer", "criteria", "processor"])
def test_what_fails_between_two_passes_leaves_no_handler_aside(
    model, encoding, where, error
):
    class Failing(BaseStreamer):
        put = staticmethod(at_call(3, error))

        def end(self):
            pass

    fail = at_call(2, error)

    def judge(ids, scores, **_):
        return fail() or torch.zeros(len(ids), dtype=torch.bool)

    given = {
        "streamer": {"streamer": Failing()},
        "criteria": {"stopping_criteria": [judge]},
        "processor": {"logits_processor": [lambda _, scores: fail() or scores]},
    }[where]
    twin = eah.edit(model, eah.EAH())
    expected = twin.generate(**encoding, **WHOLE)
    with pytest.raises(type(error)):
        twin.generate(**encoding, **WHOLE, **given)
    assert_untouched(model)
    assert_equal(twin.generate(**encoding, **WHOLE), expected)


def test_an_interrupt_while_handlers_are_put_back_is_made_good(
    model, encoding, monkeypatch
):
    plainly = runs._Run.restore
    failing = at_call(2, Interrupted())

    def restore(run):
        failing()
        plainly(run)

    monkeypatch.setattr(runs._Run, "restore", restore)
    with pytest.raises(Interrupted):
        model.generate(**encoding, **NEW)
    assert_untouched(model)


def test_a_stopped_run_leaves_no_handler_aside(model, encoding):
    with model.generate(**encoding, **NEW) as tracer:
        eah.intervene(model, eah.EAH())
        for _ in tracer.iter[2]:
            stream = model.model.language_model.layers[0].output.save()
            tracer.stop()
    assert stream.shape[1] == 1


# ---- What is refused still is


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        (eah.EAH(), {"use_cache": False}),
        (PREFILL["PAI"], {"use_cache": False, "return_dict_in_generate": True}),
        (eah.EAH(), {"prefill_chunk_size": 4}),
        (eah.EAH(recipients=(0, 3)), {"num_beams": 2, "use_cache": False}),
    ],
)
def test_what_the_slow_way_refuses_is_refused_in_the_same_words(
    model, encoding, settings, given
):
    twin, messages = eah.edit(model, settings), []
    for way in (slow_way, lambda: handled(model)):
        with way(), pytest.raises(EAHError) as refused:
            twin.generate(**encoding, **{**NEW, **given})
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


def test_all_steps_asked_once_are_refused_in_the_same_words(model, encoding):
    def run():
        with model.generate(**encoding, **NEW):
            eah.intervene(model, ALL_STEPS)

    messages = []
    for way in (slow_way, lambda: handled(model)):
        with way(), pytest.raises(UnsupportedError, match="1 of 5") as refused:
            run()
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


# ---- What it costs, counted in calls of Python functions


def count_calls(run):
    """Count them, but for those of the tests' own checks of types and shapes."""
    calls = Counter()

    def count(frame, event, arg):
        if event == "call":
            calls[frame.f_code.co_filename] += 1

    run()
    sys.setprofile(count)
    run()
    sys.setprofile(None)
    checks = re.compile("^<|beartype|jaxtyping")
    return sum(n for file, n in calls.items() if not checks.search(file))


@pytest.mark.slow
def test_later_steps_make_the_calls_of_plain_transformers_and_few_more():
    """In a model that is all Python: 24 layers, of a width of a few numbers."""
    plain = tiny_lvlm("llava", n_layers=24)
    model = eah.wrap(tiny_lvlm("llava", n_layers=24), tiny_processor("llava"))
    encoding = model.encode(IMAGE, PROMPT)

    def count_later(generate):
        calls = []
        for n in (8, 24):
            new = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False}
            calls.append(count_calls(lambda new=new: generate(**encoding, **new)))
        return calls[1] - calls[0]

    expected = count_later(plain.generate)
    for settings in (None, eah.EAH()):
        twin = patched(model, settings)
        # Less where the tests' own checks are off, which wrap some of the package.
        assert count_later(twin.generate) < 1.1 * expected
        with slow_way():
            assert count_later(twin.generate) > 1.25 * expected
