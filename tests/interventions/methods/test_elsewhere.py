"""Whatever takes an intervention takes a method: attribution, studies, servers.

Each method's own test file has an example of it, in layer 1.
"""

import importlib
from pathlib import Path

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import pose
from eah_interp.interventions.methods import METHODS
from eah_interp.studies import Condition, Study, toy_items
from eah_interp.studies.items import open_image
from eah_interp.studies.ledger import examine_toy, find_claim
from eah_interp.testing import random_image
from tests.interventions.methods.common import GREEDY
from tests.interventions.other_methods import logits_of, wrapped
from tests.interventions.test_remote import check_server
from tests.tiny_families import measure_gap

IMAGES = [random_image(seed) for seed in (0, 1)]
PROMPTS = ["is there a cat ?", "what ?"]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
FILES = sorted(Path(__file__).parent.glob("test_*.py"))
TESTS = [importlib.import_module(f"{__package__}.{path.stem}") for path in FILES
         if path != Path(__file__)]  # fmt: skip
EXAMPLES = {
    type(test.EXAMPLE).__name__: test.EXAMPLE
    for test in TESTS
    if hasattr(test, "EXAMPLE")
}


@pytest.fixture(scope="module")
def model():
    return wrapped("sdpa", 2)


@pytest.fixture(scope="module")
def case(model):
    return pose(model, IMAGES, PROMPTS, objects=["cat", "dog"])


def values_under(model, case, settings):
    logits = logits_of(model, settings, IMAGES, PROMPTS)
    return torch.stack(
        [
            logits[target.row, target.position, case.readout.tokens[i]]
            for i, target in enumerate(case.readout.targets)
        ]
    )


def test_every_method_has_an_example():
    assert set(EXAMPLES) == set(METHODS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_heads_and_the_rest_add_up_to_the_patched_logit(model, case, name):
    found = eah.attribute_heads(model, case, patch=EXAMPLES[name])
    expected = values_under(model, case, EXAMPLES[name])
    torch.testing.assert_close(found.patched.values, expected, **CLOSE)
    assert (found.patched.values - found.plain.values).abs().max() > 1e-3
    parts = ("new_pattern", "new_values", "new_scale")
    whole = found.plain.heads + sum(getattr(found.change, part) for part in parts)
    torch.testing.assert_close(whole, found.patched.heads, **CLOSE)


@pytest.mark.parametrize("name", EXAMPLES)
def test_all_heads_of_the_patched_layer_carry_the_whole_effect(model, case, name):
    heads = [(1, head) for head in range(4)]
    settings = EXAMPLES[name]
    effect = values_under(model, case, settings) - values_under(model, case, None)
    there = eah.patch_heads(model, case, source=settings, heads=heads, together=True)
    torch.testing.assert_close(there.effects[:, 0], effect, **CLOSE)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_answer_read_at_once_is_patched_as_its_generation_was(model, name):
    settings = EXAMPLES[name]
    encoding = model.encode(IMAGES[0], PROMPTS[0])
    width = encoding["input_ids"].shape[1]
    run = eah.edit(model, settings).generate(**encoding, **GREEDY)
    whole = {**encoding, "input_ids": run.sequences}
    whole["attention_mask"] = torch.ones_like(run.sequences)
    prompt_mask = torch.arange(run.sequences.shape[1])[None] < width
    with torch.no_grad(), model.trace(**whole):
        eah.intervene(model, settings, prompt_mask=prompt_mask)
        logits = model.output.logits.save()
    assert measure_gap(logits[0, width - 1 : -1], torch.cat(run.logits)) <= 1e-5


@pytest.mark.parametrize("name", EXAMPLES)
def test_steps_prefill_leaves_the_answers_own_rows_alone(model, name):
    """A cached step is the plain model's, on the keys that the patched prompt left."""
    settings = type(EXAMPLES[name])(**{**vars(EXAMPLES[name]), "steps": "prefill"})
    encoding = model.encode(IMAGES[0], PROMPTS[0])
    found = eah.edit(model, settings).generate(**encoding, **GREEDY)
    with model.trace(**encoding, use_cache=True):
        eah.intervene(model, settings)
        cache = model.output.past_key_values.save()
    ids = found.sequences[:, encoding["input_ids"].shape[1] :]
    for step, logits in enumerate(found.logits[1:]):
        with torch.no_grad():
            own = model._module(input_ids=ids[:, step, None], past_key_values=cache)
        assert measure_gap(own.logits[:, -1], logits) <= 1e-5


def test_a_study_runs_every_method_as_an_edit_does(tmp_path):
    toy = eah.load()
    conditions = [Condition(name, settings) for name, settings in EXAMPLES.items()]
    items = toy_items(1, questions=False)
    decoding = {"caption": {"max_new_tokens": 6}}
    study = Study(toy, items, conditions, decoding=decoding)
    rows = study.run(tmp_path / "run", progress=False).frame().set_index("condition")
    assert rows.error.isna().all()
    for name, settings in EXAMPLES.items():
        image, prompt = rows.loc[name, ["image", "prompt"]]
        twin = eah.edit(toy, settings)
        answer = twin.describe(open_image(image), prompt, max_new_tokens=6)
        assert rows.loc[name, "answer"] == answer, name


def test_a_claim_whose_heads_cannot_be_found_is_not_measured(tmp_path):
    found = examine_toy(find_claim("ad-hh"), tmp_path, n_scenes=2, progress=False)
    assert found.verdict == "not measured"
    assert "what the method needs is not found" in found.findings[0].why


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_server_without_the_package_computes_the_same(tmp_path, pytestconfig, name):
    given = {k: v for k, v in vars(EXAMPLES[name]).items() if v is not None}
    settings = ", ".join(f"{key}={value!r}" for key, value in given.items())
    body = f"    patch = eah.intervene(model, eah.{name}({settings}))"
    check_server(tmp_path, pytestconfig, body, "torch.tensor(patch.layers)")
