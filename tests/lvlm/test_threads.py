"""Claims about threads: runs of one model wait for each other, and none is mixed up."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import attribute_heads, logit_lens, patch_heads
from eah_interp.interventions import donors_of_run
from eah_interp.testing import random_image, tiny_folder, tiny_lvlm, tiny_processor

N_THREADS, N_CALLS = 4, 3
IMAGES = [random_image(seed) for seed in range(N_THREADS)]
PROMPTS = ["what ?", "is there a cat ?", "where is the boat ?", "what is near it ?"]
SHORT = {"max_new_tokens": 3, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    return eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))


def trace(model, image, prompt):
    with torch.no_grad(), model.trace(image, prompt):
        eah.intervene(model, eah.EAH(layers=(1,)))
        logits = model.output.logits.save()
    return logits


def generate(model, image, prompt):
    with model.generate(image, prompt, min_new_tokens=3, **SHORT) as tracer:
        for _ in tracer.iter[:3]:
            eah.intervene(model, eah.EAH(layers=(1,), donor=2, steps="all"))
        ids = tracer.result.save()
    return ids


def edited(model, image, prompt):
    twin = eah.edit(model, eah.EAH(layers=(1,)))
    answer = twin.describe(image, prompt, **SHORT)
    return answer, donors_of_run(twin)[1].tolist()


def ask(model, image, prompt):
    return {"images": image, "prompts": prompt, "objects": ["cat"]}


CALLS = {
    "describe": lambda m, i, p: m.describe(i, p, **SHORT),
    "generate": lambda m, i, p: m.generate(i, p, **SHORT),
    "trace": trace,
    "generate patched": generate,
    "edit": edited,
    "score_sinks": lambda m, i, p: eah.score_sinks(m, i, p).frame(),
    "attribute_heads": lambda m, i, p: attribute_heads(m, **ask(m, i, p)).frame(),
    "logit_lens": lambda m, i, p: logit_lens(m, **ask(m, i, p)).frame(),
    "patch_heads": lambda m, i, p: patch_heads(
        m, source=eah.EAH(layers=(1,)), **ask(m, i, p)
    ).frame(),
}


def assert_equal(found, expected):
    if isinstance(found, pd.DataFrame):
        # A column says what is left over: rounding, which hangs on where weights lie.
        pd.testing.assert_frame_equal(found, expected, atol=1e-5)
    elif isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def run_together(jobs):
    """Run jobs in a thread each, all of them begun at one moment."""
    begin = threading.Barrier(len(jobs))

    def work(job):
        begin.wait()
        return [job() for _ in range(N_CALLS)]

    with ThreadPoolExecutor(len(jobs)) as threads:
        return list(threads.map(work, jobs))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_gives_in_threads_what_it_gives_alone(model, call):
    given = list(zip(IMAGES, PROMPTS, strict=True))
    alone = [call(model, *one) for one in given]
    jobs = [lambda one=one: call(model, *one) for one in given]
    for found, expected in zip(run_together(jobs), alone, strict=True):
        for one in found:
            assert_equal(one, expected)


def test_different_calls_in_threads_give_what_each_gives_alone(model):
    given = IMAGES[0], PROMPTS[0]
    alone = [call(model, *given) for call in CALLS.values()]
    jobs = [lambda call=call: call(model, *given) for call in CALLS.values()]
    for found, expected in zip(run_together(jobs), alone, strict=True):
        for one in found:
            assert_equal(one, expected)


def test_the_bare_model_may_be_called_beside_a_run(model):
    inputs = model.encode(IMAGES[0], PROMPTS[0])
    with torch.no_grad():
        expected = model._module(**inputs).logits
    inside = trace(model, IMAGES[0], PROMPTS[0])

    def bare():
        with torch.no_grad():
            return model._module(**inputs).logits

    found, other = run_together([bare, lambda: trace(model, IMAGES[0], PROMPTS[0])])
    assert all(torch.equal(logits, expected) for logits in found)
    assert all(torch.equal(logits, inside) for logits in other)


def test_a_trace_in_a_trace_does_not_wait_for_itself(model):
    expected = trace(model, IMAGES[1], PROMPTS[1])
    with model.alone(), torch.no_grad(), model.session():
        with model.trace(IMAGES[0], PROMPTS[0]):
            first = model.output.logits.save()
        with model.trace(IMAGES[1], PROMPTS[1]):
            eah.intervene(model, eah.EAH(layers=(1,)))
            second = model.output.logits.save()
    assert first.shape[0] == 1
    assert torch.equal(second, expected)


def test_a_run_that_fails_lets_the_next_thread_in(model):
    def fail():
        with pytest.raises(ZeroDivisionError):
            failing(model)
        return trace(model, IMAGES[0], PROMPTS[0])

    expected = trace(model, IMAGES[0], PROMPTS[0])
    for found in run_together([fail, fail]):
        assert all(torch.equal(one, expected) for one in found)


def failing(model):
    with torch.no_grad(), model.trace(IMAGES[0], PROMPTS[0]):
        model.model.language_model.layers[1].output.save()
        1 / 0  # noqa: B018


def test_two_threads_may_be_the_first_to_use_a_model(tmp_path):
    loaded = eah.load(tiny_folder(tmp_path, "llava"), dispatch=False)
    jobs = [lambda: loaded.describe(IMAGES[0], PROMPTS[0], **SHORT)] * 3
    answers = {one for found in run_together(jobs) for one in found}
    assert len(answers) == 1
    assert loaded.verified


def test_a_lock_is_the_modules_whoever_wraps_it(model):
    twin = eah.edit(model, eah.EAH(layers=(1,)))
    again = eah.wrap(model._module, tiny_processor("llava"))
    assert twin.alone() is model.alone() is again.alone()
    other = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    assert other.alone() is not model.alone()
    assert not copy.deepcopy(model.interleaver).interleaving
