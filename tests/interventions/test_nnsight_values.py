"""Sessions, scans, caches, stops, gradients and servers of nnsight, with EAH."""

import os
import subprocess
import sys

import pytest
import torch

import eah_interp as eah
from eah_interp.testing import random_image, tiny_folder, tiny_lvlm, tiny_processor
from tests.interventions.test_against_oracle import oracle_of, untouched
from tests.oracle_forward import oracle_logits, replaced_patterns

IMAGES = [random_image(seed) for seed in (0, 1)]
PROMPTS = ["is there a cat ?", "what ?"]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request):
    tiny = tiny_lvlm("llava", n_kv_heads=2, attn_implementation=request.param)
    return eah.wrap(tiny, tiny_processor("llava"))


def layers_of(model):
    return model.model.language_model.layers


def logits_of(model, *settings):
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        for one in settings:
            eah.intervene(model, one)
        logits = model.output.logits.save()
    return logits


def test_a_session_carries_donors_and_activations_from_trace_to_trace(model):
    layers = layers_of(model)
    with torch.no_grad(), model.session():
        with model.trace(IMAGES[0], PROMPTS[0]):
            patch = eah.intervene(model)
            hidden = layers[1].output
        with model.trace(IMAGES[0], PROMPTS[0]):
            eah.intervene(model, eah.EAH(donor=patch.donors[0].item()))
            by_donor = model.output.logits.save()
        with model.trace(IMAGES[0], PROMPTS[0]):
            layers[1].output = hidden
            by_hidden = model.output.logits.save()
    with torch.no_grad(), model.trace(IMAGES[0], PROMPTS[0]):
        eah.intervene(model)
        expected = model.output.logits.save()
    assert torch.equal(by_donor, expected)
    assert torch.equal(by_hidden, expected)


def test_a_scan_has_the_shapes_of_a_trace(model):
    edited = eah.edit(model, eah.EAH(donor="mean"))
    with model.scan(IMAGES, PROMPTS):
        patch = eah.intervene(model)
        shapes = [patch.donors.shape, patch.density.shape, model.output.logits.shape]
        shapes.save()
    with edited.scan(IMAGES, PROMPTS):
        shape = edited.output.logits.shape
        shape.save()
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        patch = eah.intervene(model)
        logits = model.output.logits.save()
    assert shapes == [patch.donors.shape, patch.density.shape, logits.shape]
    assert shape == logits.shape


def test_a_cache_holds_what_a_patch_left(model):
    layers, edited = layers_of(model), eah.edit(model)
    with torch.no_grad(), model.trace(IMAGES, PROMPTS) as tracer:
        cache = tracer.cache(modules=[layers[0], layers[2]])
        eah.intervene(model)
        last = layers[2].output.save()
    with torch.no_grad(), edited.trace(IMAGES, PROMPTS) as tracer:
        whole = tracer.cache()
    assert torch.equal(cache[layers[2].path].output, last)
    assert torch.equal(whole[layers[2].path].output, last)
    assert torch.equal(whole[layers[0].path].output, cache[layers[0].path].output)


def test_a_cache_after_the_patch_is_refused(model):
    def too_late():
        with model.trace(IMAGES, PROMPTS) as tracer:
            eah.intervene(model)
            tracer.cache()

    with pytest.raises(ValueError, match=r"cache.* must be declared before reading"):
        too_late()


@pytest.mark.parametrize("steps", ["prefill", "all"])
def test_a_run_may_stop_before_and_after_the_patch(model, steps):
    layers, settings = layers_of(model), eah.EAH(steps=steps)
    edited = eah.edit(model, settings)
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        first = layers[0].output.save()
        eah.intervene(model, settings)
        second = layers[1].output.save()
    with torch.no_grad(), edited.trace(IMAGES, PROMPTS) as tracer:
        before = layers[0].output.save()
        tracer.stop()
    with torch.no_grad(), edited.trace(IMAGES, PROMPTS) as tracer:
        after = layers[1].output.save()
        tracer.stop()
    with torch.no_grad(), model.trace(IMAGES, PROMPTS) as tracer:
        patch = eah.intervene(model, settings)
        tracer.stop()
    assert torch.equal(before, first)
    assert torch.equal(after, second)
    assert (patch.donors >= 0).all()
    assert torch.equal(logits_of(edited), logits_of(model, settings))


def oracle_gradient(encoding, settings):
    """Differentiate a plain forward whose patterns were replaced head by head."""
    plain, kept = untouched(2), []
    first = plain.model.language_model.layers[0]
    handle = first.register_forward_hook(lambda *seen: kept.append(seen[2]))
    with replaced_patterns(plain, oracle_of(settings, encoding)):
        logits = plain(**encoding).logits
    handle.remove()
    loss = logits[:, -1].logsumexp(-1).sum()
    return torch.autograd.grad(loss, kept[0])[0]


@pytest.mark.parametrize("donor", ["densest", "mean"])
@pytest.mark.parametrize("recipients", ["all", (0, 3)])
def test_gradients_inside_a_trace_are_the_oracles(model, donor, recipients):
    settings = eah.EAH(donor=donor, recipients=recipients)
    encoding = model.encode(IMAGES[0], PROMPTS[0])
    expected = oracle_gradient(encoding, settings)
    hidden_states = layers_of(model)
    with model.trace(IMAGES[0], PROMPTS[0]):
        hidden = hidden_states[0].output
        eah.intervene(model, settings)
        loss = model.output.logits[:, -1].logsumexp(-1).sum()
        with loss.backward():
            traced = hidden.grad.save()
    edited = eah.edit(model, settings)
    with edited.trace() as tracer:
        with tracer.invoke(IMAGES[0], PROMPTS[0]):
            hidden = hidden_states[0].output
            loss = edited.output.logits[:, -1].logsumexp(-1).sum()
            with loss.backward():
                invoked = hidden.grad.save()
        with tracer.invoke(IMAGES[1], PROMPTS[1]):
            pass
    tolerance = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(traced, expected, rtol=0, atol=tolerance)
    width = expected.shape[1]
    torch.testing.assert_close(invoked[:, -width:], expected, rtol=0, atol=tolerance)


def test_a_gradient_written_behind_the_patch_is_what_flows_to_it(model):
    layers = layers_of(model)
    with model.trace(IMAGES, PROMPTS):
        hidden = layers[0].output
        eah.intervene(model)
        behind = layers[1].output
        loss = model.output.logits[:, -1].logsumexp(-1).sum()
        with loss.backward():
            behind.grad = behind.grad * 0
            gradient = hidden.grad.save()
    assert gradient.abs().max() == 0


def test_inference_mode_changes_no_number_and_leaves_gradients_possible(model):
    expected = logits_of(model, eah.EAH())
    edited = eah.edit(model)
    with torch.inference_mode(), model.trace(IMAGES, PROMPTS):
        eah.intervene(model)
        traced = model.output.logits.save()
    with torch.inference_mode(), edited.trace(IMAGES, PROMPTS):
        from_edit = edited.output.logits.save()
    with model.trace(IMAGES, PROMPTS):
        eah.intervene(model)
        tracked = model.output.logits.save()
    assert torch.equal(traced, expected)
    assert torch.equal(from_edit, expected)
    assert torch.equal(tracked, expected)
    assert tracked.requires_grad


@pytest.mark.parametrize("donor", ["densest", "mean", "shuffled"])
@pytest.mark.parametrize("recipients", ["all", (0, 3)])
def test_under_autocast_a_patch_is_the_oracles_under_autocast(model, donor, recipients):
    settings = eah.EAH(donor=donor, recipients=recipients)
    encoding = model.encode(IMAGES, PROMPTS)
    oracle = oracle_of(settings, encoding)
    with torch.autocast("cpu", torch.bfloat16):
        run = oracle_logits(untouched(2), encoding, edit_pattern=oracle)
        with torch.no_grad(), model.trace(IMAGES, PROMPTS):
            patch = eah.intervene(model, settings)
            logits = model.output.logits.save()
    if donor != "mean":
        assert patch.donors.tolist() == oracle.donors[1].tolist()
    assert logits.dtype == torch.bfloat16
    real = encoding["attention_mask"].bool()
    difference = (logits - run.logits)[real].float().abs().max()
    assert difference <= 0.05 * run.logits.float().abs().max()


SIMULATED = """
import sys
import torch
import eah_interp as eah
from eah_interp.testing import random_image

model = eah.load(sys.argv[1])
image, prompt = random_image(), "is there a cat ?"
new = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
every = eah.edit(model, eah.EAH(steps="all"))
results = []
for remote in (False, "local"):
    with torch.no_grad(), model.session(remote=remote):
        with model.trace(image, prompt):
            patch = eah.intervene(model)
        with model.trace(image, prompt):
            eah.intervene(model, eah.EAH(donor=patch.donors[0].item()))
            by_donor = model.output.logits.save()
    with torch.no_grad(), model.trace(remote=remote) as tracer:
        with tracer.invoke(image, prompt):
            eah.intervene(model, eah.EAH(recipients=(0, 1)))
            one = model.output.logits.save()
        with tracer.invoke(image, prompt):
            other = model.output.logits.save()
    with torch.no_grad(), every.trace(image, prompt, remote=remote):
        edited = every.output.logits.save()
    with every.generate(image, prompt, remote=remote, **new) as tracer:
        ids = tracer.result.save()
    results.append((by_donor, one, other, edited, ids))
assert all(torch.equal(*pair) for pair in zip(*results))
assert torch.equal(by_donor, edited) and not torch.equal(one, other)
print("same")
"""


@pytest.mark.slow
def test_sessions_invokes_and_edits_are_the_same_on_a_simulated_server(
    tmp_path, pytestconfig
):
    folder = tiny_folder(tmp_path / "model", "llava", n_kv_heads=2)
    script = tmp_path / "simulated.py"
    script.write_text(SIMULATED)
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
    )
    assert done.stdout.strip() == "same", done.stderr[-3000:]
