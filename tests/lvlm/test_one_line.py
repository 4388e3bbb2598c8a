"""A generation in a `with` of one line generates: nnsight takes it for a trace."""

import contextlib
import subprocess
import sys

import nnsight
import pytest
import torch

import eah_interp as eah
from eah_interp.errors import UnsupportedError
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor

QUESTION = "Is there a cat?"
FEW = {"max_new_tokens": 2}


@pytest.fixture(scope="module")
def model():
    return eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))


@pytest.fixture(scope="module")
def image():
    return random_image()


@pytest.fixture(scope="module")
def expected(model, image):
    ids = model.generate(image, QUESTION, **FEW)
    assert isinstance(ids, torch.Tensor)
    return ids


# fmt: off
def test_a_body_on_the_line_of_its_with_generates(model, image, expected):
    with torch.no_grad(): ids = model.generate(image, QUESTION, **FEW)  # noqa: E701
    assert torch.equal(ids, expected)
    if True:
        with torch.no_grad(): ids = model.generate(image, QUESTION, **FEW)  # noqa: E701
    assert torch.equal(ids, expected)
    with contextlib.nullcontext(1) as é: ids = model.generate(image, QUESTION, **FEW)  # noqa: E701
    assert torch.equal(ids, expected)
    del é
# fmt: on


def test_a_call_inside_another_of_a_with_generates(model, image, expected):
    with contextlib.nullcontext(model.generate(image, QUESTION, **FEW)) as ids:
        assert torch.equal(ids, expected)
    with (
        torch.no_grad(),
        contextlib.nullcontext(
            model.generate(
                image,
                QUESTION,
                **FEW,
            )
        ) as ids,
    ):
        assert torch.equal(ids, expected)


def test_a_with_of_several_lines_still_traces(model, image, expected):
    with (
        torch.no_grad(),
        model.generate(
            image,
            QUESTION,
            **FEW,
        ) as tracer,
    ):
        ids = tracer.result.save()
    assert torch.equal(ids, expected)
    with model.generate(image, QUESTION, **FEW) as tracer:
        ids = tracer.result.save()
    assert torch.equal(ids, expected)
    with torch.no_grad(), model.generate(image, QUESTION, **FEW) as tracer:
        first = nnsight.save(model.output.logits.argmax(-1)[:, -1])
        ids = tracer.result.save()
    assert first == expected[0, -2]
    twin = eah.edit(model, eah.EAH(donor=1))
    with torch.no_grad():
        plain = twin.generate(image, QUESTION, **FEW)
    with twin.generate(image, QUESTION, **FEW) as tracer:
        ids = tracer.result.save()
    assert torch.equal(ids, plain)


SCRIPT = """
import torch
import eah_interp as eah
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
with torch.no_grad(): ids = model.generate(random_image(), "What?", max_new_tokens=1)
assert isinstance(ids, torch.Tensor), type(ids)
with model.generate(random_image(), "What?", max_new_tokens=1) as tracer:
    ids = tracer.result.save()
assert isinstance(ids, torch.Tensor), type(ids)
"""


def test_it_does_so_in_a_program_of_the_command_line_and_without_columns():
    for flags in ((), ("-X", "no_debug_ranges")):
        script = (
            SCRIPT
            if not flags
            else SCRIPT.replace("no_grad(): ids", "no_grad():\n    ids")
        )
        subprocess.run([sys.executable, *flags, "-c", script], check=True, timeout=120)


def test_running_the_model_inside_its_own_trace_is_refused_by_name(model, image):
    with (
        pytest.raises(UnsupportedError, match="describe runs the model, which is run"),
        model.trace(image, QUESTION),
    ):
        model.describe(image, QUESTION, max_new_tokens=1)
