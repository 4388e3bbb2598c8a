"""What a patch may not do, and where it must work."""

import subprocess
import sys
import textwrap

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import eah_interp as eah
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.alignment import share_tensors

IMAGES = [random_image(seed) for seed in (0, 1, 2)]
PROMPTS = ["is there a cat ?", "what ?", "is the dog near the tree or the boat ?"]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def pair(request):
    """A wrapped model, and one of its very weights that nnsight never touched."""
    kwargs = {"n_kv_heads": 2, "attn_implementation": request.param}
    model = eah.wrap(tiny_lvlm("llava", **kwargs), tiny_processor("llava"))
    return model, share_tensors(tiny_lvlm("llava", **kwargs), model._module)


def test_an_empty_trace_is_bit_equal_to_plain_transformers(pair):
    model, plain = pair
    encoding = model.encode(IMAGES, PROMPTS)
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        logits = model.output.logits.save()
    with torch.no_grad():
        assert torch.equal(logits, plain(**encoding).logits)


def test_an_item_without_donor_is_bit_equal_to_plain_transformers(pair):
    model, plain = pair
    encoding = model.encode(IMAGES, PROMPTS)
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        patch = eah.intervene(model, eah.EAH(beta=1e6))
        logits = model.output.logits.save()
    assert patch.donors.tolist() == [-1, -1, -1]
    assert not patch[1].patched.any()
    with torch.no_grad():
        assert torch.equal(logits, plain(**encoding).logits)


def test_only_the_first_item_is_patched_by_the_released_rule(pair):
    model, plain = pair
    settings = eah.EAH.official(layers=(1,), beta=0.04)
    encoding = model.encode(IMAGES, PROMPTS)
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        patch = eah.intervene(model, settings)
        logits = model.output.logits.save()
    with torch.no_grad():
        clean = plain(**encoding).logits
    assert patch.donors[0] > 0
    assert not torch.allclose(logits[0], clean[0])
    assert torch.equal(logits[1:], clean[1:])


@pytest.mark.parametrize("recipients", ["all", (0, 3)])
@pytest.mark.parametrize("donor", ["mean", "uniform", "shuffled", 2])
def test_only_the_first_item_is_patched_by_a_control_of_the_first(
    pair, donor, recipients
):
    """Controls without a donor head have no -1 that keeps the other items out."""
    model, plain = pair
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        patch = eah.intervene(
            model, eah.EAH(items="first", donor=donor, recipients=recipients)
        )
        logits = model.output.logits.save()
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        eah.intervene(model, eah.EAH(donor=donor, recipients=recipients))
        everyone = model.output.logits.save()
    with torch.no_grad():
        clean = plain(**model.encode(IMAGES, PROMPTS)).logits
    assert patch[1].patched.tolist() == [True, False, False]
    assert torch.equal(logits[0], everyone[0])
    assert torch.equal(logits[1:], clean[1:])
    for item in range(3):
        assert not torch.allclose(everyone[item], clean[item])


@pytest.mark.parametrize("donor", ["densest", "mean"])
def test_layers_before_the_patch_are_unchanged(pair, donor):
    model, plain = pair
    encoding = model.encode(IMAGES, PROMPTS)
    with torch.no_grad():
        clean = plain(**encoding, output_hidden_states=True).hidden_states
    layers = model.model.language_model.layers
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        first, second = layers[0].output.save(), layers[1].output.save()
        eah.intervene(model, eah.EAH(layers=(2,), donor=donor))
        last = model.model.language_model.norm.output.save()
    assert torch.equal(first, clean[1])
    assert torch.equal(second, clean[2])
    assert not torch.equal(last, clean[3])


@pytest.mark.parametrize(
    "settings",
    [
        eah.EAH(),
        eah.EAH.paper(beta=0.03),
        eah.EAH(donor="sparsest"),
        eah.EAH(donor="random", seed=5),
        eah.EAH(donor="shuffled", seed=5),
        eah.EAH(donor="uniform"),
        eah.EAH(donor="mean", recipients=(0, 1)),
    ],
    ids=lambda settings: f"{settings.definition}-{settings.donor}",
)
def test_a_batch_of_different_lengths_equals_singles(pair, settings):
    model, _ = pair
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        batch = eah.intervene(model, settings)
        together = model.output.logits[:, -1].save()
    for item, (image, prompt) in enumerate(zip(IMAGES, PROMPTS, strict=True)):
        with torch.no_grad(), model.trace(image, prompt):
            single = eah.intervene(model, settings)
            alone = model.output.logits[0, -1].save()
        assert single.donors[0] == batch.donors[item]
        if settings.needs_scores:
            torch.testing.assert_close(single.density[0], batch.density[item])
        torch.testing.assert_close(alone, together[item], rtol=1e-4, atol=1e-4)


def test_random_donors_follow_the_seed_and_not_the_batch(pair):
    model, _ = pair

    def donors(**settings):
        with torch.no_grad(), model.trace(IMAGES, PROMPTS):
            patch = eah.intervene(model, eah.EAH(donor="random", **settings))
        return patch.donors.tolist()

    assert len(set(donors(seed=0))) == 1
    assert donors(seed=0) == donors(seed=0)
    assert len({tuple(donors(seed=seed)) for seed in range(8)}) > 1
    assert donors(seed=(0, 1, 2)) == [donors(seed=seed)[0] for seed in range(3)]


def test_gradients_flow_through_a_patched_pass_to_the_donor(pair):
    model, _ = pair
    encoding = model.encode(IMAGES[0], PROMPTS[0])
    weight = model._module.get_submodule(model.anatomy.sites[1].path).q_proj.weight
    with model.trace(**encoding):
        patch = eah.intervene(model, eah.EAH(donor=2))
        loss = model.output.logits[0, -1].max().save()
    (gradient,) = torch.autograd.grad(loss, weight)
    per_head = gradient.view(model.n_heads, -1).abs().sum(-1)
    assert patch.donors.tolist() == [2]
    assert per_head[2] > 0
    assert per_head[[0, 1, 3]].max() == 0


@pytest.mark.parametrize("donor", ["densest", "mean", "uniform", "shuffled"])
@pytest.mark.parametrize("recipients", ["all", (0, 3)])
def test_gradients_equal_those_of_finite_differences(donor, recipients):
    model = eah.wrap(
        tiny_lvlm("llava", n_kv_heads=2, dtype=torch.float64), tiny_processor("llava")
    )
    encoding = model.encode(IMAGES[0], PROMPTS[0])
    settings = eah.EAH(donor=donor, recipients=recipients)
    weight = model._module.get_submodule(model.anatomy.sites[0].path).v_proj.weight

    def loss():
        with model.trace(**encoding):
            eah.intervene(model, settings)
            value = model.output.logits[0, -1].sum().save()
        return value

    (gradient,) = torch.autograd.grad(loss(), weight)
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 1e-4
    with torch.no_grad():
        weight += step
        up = loss()
        weight -= 2 * step
        down = loss()
        weight += step
    slope = (gradient * step).sum() * 2
    # transformers computes RMS norms in float32 whatever the dtype: that is the noise.
    assert abs((up - down) - slope) <= 2e-3 * abs(slope)


def test_two_interventions_in_one_trace_add_up(pair):
    model, _ = pair
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        eah.intervene(model, eah.EAH(layers=(0,)))
        eah.intervene(model, eah.EAH(layers=(1,)))
        twice = model.output.logits.save()
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        eah.intervene(model, eah.EAH(layers=(0, 1)))
        once = model.output.logits.save()
    assert torch.equal(once, twice)


def test_two_models_in_one_process_do_not_mix():
    models = [
        eah.wrap(tiny_lvlm("llava", seed=seed), tiny_processor("llava"))
        for seed in (0, 1)
    ]
    alone = []
    for model in models:
        with torch.no_grad(), model.trace(IMAGES[0], PROMPTS[0]):
            patch = eah.intervene(model)
            logits = model.output.logits.save()
        alone.append((patch.donors.tolist(), logits))
    with torch.no_grad(), models[0].trace(IMAGES[0], PROMPTS[0]):
        eah.intervene(models[0])
        again = models[0].output.logits.save()
    assert torch.equal(again, alone[0][1])
    assert not torch.allclose(alone[0][1], alone[1][1])


def test_edit_leaves_the_original_alone_and_sticks(pair):
    model, _ = pair
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        clean = model.output.logits.save()
    patched = eah.edit(model, eah.EAH())
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        eah.intervene(model, eah.EAH())
        expected = model.output.logits.save()
    for _ in range(2):
        with torch.no_grad(), patched.trace(IMAGES, PROMPTS):
            edited = patched.output.logits.save()
        assert torch.equal(edited, expected)
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        again = model.output.logits.save()
    assert torch.equal(again, clean)


def test_an_edit_written_by_hand_equals_ours(pair):
    model, _ = pair
    ours = eah.edit(model, eah.EAH())
    with model.edit() as (_, byhand):
        eah.intervene(byhand, eah.EAH())
    assert byhand.describe(IMAGES, PROMPTS, max_new_tokens=4) == ours.describe(
        IMAGES, PROMPTS, max_new_tokens=4
    )


def test_beams_are_patched_row_by_row(pair):
    model, _ = pair
    encoding = model.encode(IMAGES[:2], PROMPTS[:2])
    shapes = []
    with (
        torch.no_grad(),
        model.generate(
            IMAGES[:2], PROMPTS[:2], num_beams=3, max_new_tokens=3, do_sample=False
        ),
    ):
        patch = eah.intervene(model, eah.EAH())
        shapes.append(patch.density.shape)
    with torch.no_grad(), model.trace(**encoding):
        single = eah.intervene(model, eah.EAH())
    assert patch.donors.tolist() == single.donors.repeat_interleave(3).tolist()


def test_several_invokes_with_images_share_one_forward(pair):
    model, _ = pair
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(IMAGES[0], PROMPTS[0]):
            first = eah.intervene(model, eah.EAH())
            patched = model.output.logits[:, -1].save()
        with tracer.invoke(IMAGES[1:], PROMPTS[1:]):
            untouched = model.output.logits[:, -1].save()
    with torch.no_grad(), model.trace(IMAGES[0], PROMPTS[0]):
        alone = eah.intervene(model, eah.EAH())
        expected = model.output.logits[:, -1].save()
    with torch.no_grad(), model.trace(IMAGES[1:], PROMPTS[1:]):
        clean = model.output.logits[:, -1].save()
    assert first.donors.tolist() == alone.donors.tolist()
    torch.testing.assert_close(patched, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(untouched, clean, rtol=1e-4, atol=1e-4)


SCRIPT = """
import torch
import eah_interp as eah
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor

model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
with torch.no_grad(), model.trace(random_image(), "what ?"):
    patch = eah.intervene(model)
print(patch.donors.tolist())
"""


def test_it_works_in_a_script(tmp_path, pytestconfig):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(pytestconfig.rootpath), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")


@pytest.mark.slow
def test_it_works_in_a_notebook(tmp_path, pytestconfig, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    cells = [
        nbformat.v4.new_code_cell(cell)
        for cell in textwrap.dedent(SCRIPT).strip().split("\n\n")
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert notebook.cells[-1].outputs[0].text.startswith("[")
