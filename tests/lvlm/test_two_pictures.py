"""Of two pictures of different sizes in a prompt, each has its own columns.

The check does not use the code under test: another picture of the same size moves what
the decoder reads at its own columns, and nowhere else.
"""

from functools import cache

import pytest
import torch
from torch import nn

from eah_interp.lvlm.spans import find_spans, image_mask, image_token_id
from eah_interp.testing import (
    FAMILIES,
    random_image,
    tiny_inputs,
    tiny_lvlm,
    tiny_processor,
)
from tests.tiny_families import SUPPORTED, sweep

SIZES = ((50, 30), (40, 90))


@cache
def share_model(family):
    return tiny_lvlm(family, n_layers=1)


def encode(family, seeds):
    one = FAMILIES[family].placeholder
    prompt = "a cat " + one + " or is it " + one + " what ?"
    pictures = [
        random_image(seed, width=width, height=height)
        for seed, (width, height) in zip(seeds, SIZES, strict=True)
    ]
    return tiny_inputs(family, images=[pictures], prompts=[prompt])


def read_first_layer(family, encoding):
    """Return what the first decoder layer is given, `[position, d_model]`."""
    model = share_model(family)
    (layer,) = next(
        module
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.ModuleList) and name.endswith("layers")
    )
    seen = []
    handle = layer.register_forward_pre_hook(
        lambda _, args, options: seen.append([*args, *options.values()][0]),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(**encoding)
    handle.remove()
    return seen[0][0]


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_each_of_two_pictures_moves_its_own_columns_alone(family):
    config = share_model(family).config
    processed = FAMILIES[family].build_processor is not None
    before = encode(family, (0, 1))
    (spans,) = find_spans(
        config,
        before,
        image_sizes=[(height, width) for width, height in SIZES],
        processor=tiny_processor(family) if processed else None,
    )
    held = [column for span in spans for column in span.columns]
    mask = image_mask(before["input_ids"], image_token_id(config))
    assert held == mask[0].nonzero().flatten().tolist()
    assert spans[0].stop < spans[1].start
    shown = read_first_layer(family, before)
    for number, seeds in enumerate([(2, 1), (0, 2)]):
        after = encode(family, seeds)
        assert torch.equal(after["input_ids"], before["input_ids"])
        moved = (read_first_layer(family, after) - shown).abs().amax(-1) > 1e-3
        columns = moved.nonzero().flatten().tolist()
        span = spans[number]
        assert set(columns) <= set(span.columns)
        cells = {c for part in span.parts for line in part.columns for c in line}
        shows = cells or set(span.columns)  # latents show no place, but the picture
        assert len(shows & set(columns)) > len(shows) / 2
