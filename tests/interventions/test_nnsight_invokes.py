"""Several invokes of nnsight in one forward pass, together with EAH."""

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError, UnsupportedError
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor

IMAGES = [random_image(seed) for seed in (0, 1, 2)]
PROMPTS = ["is there a cat ?", "what ?", "is the dog near the tree or the boat ?"]
PARTLY = eah.EAH(donor=0, recipients=(1,))
UNIFORM = eah.EAH(donor="uniform", recipients=(2, 3))
NEW = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request):
    tiny = tiny_lvlm("llava", n_kv_heads=2, attn_implementation=request.param)
    return eah.wrap(tiny, tiny_processor("llava"))


def logits_of(model, *settings, rows=slice(0, 3)):
    with torch.no_grad(), model.trace(IMAGES[rows], PROMPTS[rows]):
        for one in settings:
            eah.intervene(model, one)
        logits = model.output.logits.save()
    return logits


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_barrier_hands_a_patched_activation_to_another_invoke(model):
    layers = model.model.language_model.layers
    with torch.no_grad(), model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(IMAGES[0], PROMPTS[0]):
            eah.intervene(model)
            hidden = layers[1].output
            barrier()
        with tracer.invoke(IMAGES[0], PROMPTS[0]):
            barrier()
            layers[1].output = hidden
            logits = model.output.logits.save()
    with torch.no_grad(), model.trace(IMAGES[0], PROMPTS[0]):
        eah.intervene(model)
        expected = model.output.logits.save()
    assert_close(logits, expected)


@pytest.mark.parametrize("settings", [eah.EAH(), PARTLY, UNIFORM])
def test_one_invoke_is_patched_and_the_other_is_not(model, settings):
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(IMAGES[0], PROMPTS[0]):
            eah.intervene(model, settings)
            patched = model.output.logits.save()
        with tracer.invoke(IMAGES[1:], PROMPTS[1:]):
            untouched_rows = model.output.logits.save()
    assert_close(patched, logits_of(model, settings)[:1])
    assert_close(untouched_rows, logits_of(model)[1:])


def test_an_edit_and_an_empty_invoke_patch_the_rows_of_all_invokes(model):
    expected = logits_of(model, eah.EAH())
    edited = eah.edit(model)
    for one, settings in ((edited, ()), (model, (eah.EAH(),))):
        with torch.no_grad(), one.trace() as tracer:
            with tracer.invoke(IMAGES[0], PROMPTS[0]):
                alone = one.output.logits.save()
            with tracer.invoke(IMAGES[1:], PROMPTS[1:]):
                pass
            with tracer.invoke():
                for each in settings:
                    eah.intervene(one, each)
                together = one.output.logits.save()
        assert_close(together, expected)
        assert_close(alone, expected[:1])


def test_text_is_patched_only_where_a_mask_says_what_its_image_is(model):
    ids = torch.tensor([[1, 5, 6, 7, 8, 9]])
    mask = torch.tensor([[False, True, True, False, False, False]])
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(ids):
            eah.intervene(model, image_mask=mask)
            patched = model.output.logits.save()
        with tracer.invoke(ids):
            clean = model.output.logits.save()
    with torch.no_grad(), model.trace(ids):
        eah.intervene(model, image_mask=mask)
        expected = model.output.logits.save()
    assert_close(patched, expected)
    assert not torch.allclose(clean, patched)
    edited = eah.edit(model)

    def without_image():
        with torch.no_grad(), edited.trace() as tracer:
            with tracer.invoke("what ?"):
                pass
            with tracer.invoke("is there a cat ?"):
                pass

    with pytest.raises(InputError, match=r"selects no tokens.*pass an image"):
        without_image()


@pytest.mark.parametrize("second", ["text", "encoding"])
def test_invokes_that_cannot_share_a_forward_are_refused(model, second):
    encoding = model.encode(IMAGES[0], PROMPTS[0])
    inputs = {"text": ("what ?",), "encoding": (encoding,)}[second]
    first = {"text": (IMAGES[0], PROMPTS[0]), "encoding": (encoding,)}[second]

    def share():
        with torch.no_grad(), model.trace() as tracer:
            with tracer.invoke(*first):
                eah.intervene(model)
            with tracer.invoke(*inputs):
                pass

    with pytest.raises(eah.EAHError, match=r"give (every|each) invoke.*images, prom"):
        share()


def test_beams_of_several_invokes_are_patched_by_an_edit_only(model):
    edited = eah.edit(model)
    with edited.generate(num_beams=3, **NEW) as tracer:
        with tracer.invoke(IMAGES[0], PROMPTS[0]):
            pass
        with tracer.invoke(IMAGES[1:], PROMPTS[1:]):
            pass
        with tracer.invoke():
            ids = tracer.result.save()
    assert torch.equal(ids, edited.generate(IMAGES, PROMPTS, num_beams=3, **NEW))

    def patch_one():
        with model.generate(num_beams=3, **NEW) as tracer:
            with tracer.invoke(IMAGES[0], PROMPTS[0]):
                eah.intervene(model)
            with tracer.invoke(IMAGES[1:], PROMPTS[1:]):
                pass

    with pytest.raises(UnsupportedError, match=r"expected the 1 rows.*got 9.*beams"):
        patch_one()
