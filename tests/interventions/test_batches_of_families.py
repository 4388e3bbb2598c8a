"""A row of a batch is patched as if it stood alone, in every family.

Where transformers itself reads a row of a batch differently, that is shown on the plain
model, with what holds instead.
"""

import pytest
import torch
import transformers as hf

import eah_interp as eah
from eah_interp.testing import FAMILIES, random_image, tiny_lvlm
from eah_interp.testing._tokenizer import build_tokenizer
from tests.tiny_families import (
    PICTURES,
    QUESTIONS,
    SUPPORTED,
    encode,
    ignore_renamed,
    measure_gap,
    share_model,
    share_plain,
    sweep,
)

pytestmark = ignore_renamed

TOLERANCE = 1e-4
"""Of the largest logit, in float32: a wider batch is summed in another order, which
makes 2e-6 here; padding itself adds exact zeros."""

APART = {
    "minimax_m3_vl": "blocks of keys are cut by their slot, which padding moves",
    "hunyuan_vl": "pictures are numbered through the batch, in the last rotary axis",
}
"""Families whose rows transformers itself reads differently in a batch."""


def run_patched(model, encoding, **more):
    with torch.no_grad(), model.trace(**encoding, **more):
        patch = eah.intervene(model, eah.EAH())
        logits = model.output.logits[:, -1].save()
    return patch, logits


def run_plain(model, encoding):
    with torch.no_grad():
        return model(**encoding).logits[:, -1]


def encode_row(family, row):
    return encode(family, [PICTURES[row]], [QUESTIONS[row]])


def check_rows(model, together, alone, **more):
    """Compare a patched batch with its rows: donors, densities and last logits."""
    batch, logits = run_patched(model, together, **more)
    for row, one in enumerate(alone):
        single, expected = run_patched(model, one)
        assert single.donors[0] >= 0
        assert batch.donors[row] == single.donors[0]
        torch.testing.assert_close(batch.density[row], single.density[0])
        assert measure_gap(logits[row], expected[0]) <= TOLERANCE


@pytest.mark.parametrize(
    "family", sweep([name for name in SUPPORTED if name not in APART])
)
def test_rows_of_a_left_padded_batch_are_patched_as_each_alone(family):
    together = encode(family)
    padding = (together["attention_mask"] == 0).sum(1)
    assert sorted(padding.tolist())[0] == 0
    assert padding.max() > 0
    check_rows(
        share_model(family), together, [encode_row(family, 0), encode_row(family, 1)]
    )


# -- where transformers itself reads a row of a batch differently


@pytest.mark.parametrize(("family", "row"), [("minimax_m3_vl", 0), ("hunyuan_vl", 1)])
def test_families_set_apart_differ_without_any_patch(family, row):
    plain = share_plain(family)
    together = run_plain(plain, encode(family))
    alone = [run_plain(plain, encode_row(family, one)) for one in (0, 1)]
    assert measure_gap(together[row], alone[row][0]) > 10 * TOLERANCE
    assert measure_gap(together[1 - row], alone[1 - row][0]) <= TOLERANCE


def test_minimax_rows_of_one_length_are_patched_as_each_alone():
    family, questions = "minimax_m3_vl", ("is it red ?", "a cat there ?")
    pictures = (random_image(0), random_image(1))
    together = encode(family, pictures, questions)
    assert together["attention_mask"].all()
    alone = [
        encode(family, [picture], [question])
        for picture, question in zip(pictures, questions, strict=True)
    ]
    check_rows(share_model(family), together, alone)


def test_hunyuan_rows_with_positions_of_their_own_are_patched_as_each_alone():
    family = "hunyuan_vl"
    together, alone = encode(family), [encode_row(family, row) for row in (0, 1)]
    number = share_plain(family).model.get_rope_index
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    width = together["input_ids"].shape[1]
    positions = []
    for one in alone:
        own, _ = number(**{name: one[name] for name in names})
        missing = width - own.shape[-1]
        positions.append(torch.nn.functional.pad(own, (missing, 0)))
    own = torch.cat(positions, dim=1)
    check_rows(share_model(family), together, alone, position_ids=own)


def test_phi4_rows_differ_under_sdpa_without_any_patch():
    """Its tower gets a mask, which is not causal, only where some patch is padding."""
    family = "phi4_multimodal"
    plain = tiny_lvlm(family, n_kv_heads=2, attn_implementation="sdpa")
    together = run_plain(plain, encode(family))
    assert measure_gap(together[:1], run_plain(plain, encode_row(family, 0))) > 0.1
    assert measure_gap(together[1:], run_plain(plain, encode_row(family, 1))) < 1e-4


# -- what the real processors of BLIP-2 and InstructBLIP write


def build_blip_processor(family):
    """Build the real processor; it wants a tokenizer that names no image token."""
    words, asked = (build_tokenizer(("<image>",), named={}) for _ in range(2))
    pictures = hf.BlipImageProcessorPil(size={"height": 32, "width": 32})
    if family == "blip_2":
        return hf.Blip2Processor(pictures, words, num_query_tokens=4)
    return hf.InstructBlipProcessor(pictures, words, asked, num_query_tokens=4)


@pytest.mark.parametrize("family", ["blip_2", "instructblip"])
def test_rows_that_a_blip_processor_pads_are_patched_as_each_alone(family):
    assert FAMILIES[family].build_processor is None
    model = eah.wrap(tiny_lvlm(family, n_kv_heads=2), build_blip_processor(family))
    together = model.encode(list(PICTURES), list(QUESTIONS))
    mask = together["attention_mask"]
    assert mask.tolist() == mask.sort(dim=1).values.tolist()
    assert mask.sum(1).tolist() == [7, 13]
    rows = [model.encode(PICTURES[row], QUESTIONS[row]) for row in (0, 1)]
    check_rows(model, together, rows)
