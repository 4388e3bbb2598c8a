"""Sink dimensions are read where residual streams enter layers, at first tokens."""

import pytest
import torch

from eah_interp.interventions import find_sink_dims
from tests.interventions.other_methods import IMAGES, PROMPTS, wrapped

PLANTED = (3, 11)


def first_streams(model, encoding):
    """Return `[layer, item, d_model]` of plain transformers' hidden states."""
    with torch.no_grad():
        found = model._module(**encoding, output_hidden_states=True, use_cache=False)
    firsts = [row.tolist().index(1) for row in encoding["attention_mask"]]
    entering = found.hidden_states[:-1]
    return torch.stack(
        [torch.stack([h[i, first] for i, first in enumerate(firsts)]) for h in entering]
    )


@pytest.fixture
def model():
    return wrapped("sdpa", 2)


def test_activations_are_those_of_plain_hidden_states(model):
    encoding = model.encode(list(IMAGES), list(PROMPTS))
    assert not encoding["attention_mask"].all(), "one prompt is padded"
    streams = first_streams(model, encoding).double()
    size = streams.pow(2).mean(-1, keepdim=True).sqrt()
    activations = (streams.abs() / size).flatten(0, 1)
    d_model = streams.shape[-1]
    table = find_sink_dims(model, list(IMAGES), list(PROMPTS), k=d_model)
    expected = activations.sort(0).values[(len(activations) - 1) // 2]
    found = torch.tensor(table.set_index("dim").activation.sort_index().tolist())
    assert torch.allclose(found.double(), expected, rtol=1e-4)
    assert table.activation.is_monotonic_decreasing
    assert (table.layers == 0).all()  # a random model has none


def test_planted_massive_activations_are_found(model):
    module = model._module
    embedding = module.get_input_embeddings().weight
    # 2 of d_model dimensions cannot each be 20 times the root mean square: in a wide
    # model they can. Here they share it, and stand far above all others.
    bos = int(model.encode(IMAGES[0], PROMPTS[0])["input_ids"][0, 0])
    with torch.no_grad():
        embedding[bos, list(PLANTED)] = 500.0
    table = find_sink_dims(model, IMAGES[0], PROMPTS[0], k=3)
    assert set(table.dim[:2]) == set(PLANTED)
    assert table.activation[1] > 10 * table.activation[2]
