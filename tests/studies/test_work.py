"""A row says which heads donated, and how long the answer is, for its own item."""

import dataclasses

import pytest

import eah_interp as eah
from eah_interp.studies import Condition, toy_items
from eah_interp.studies.conditions import BASELINE
from eah_interp.studies.items import open_image
from eah_interp.studies.work import run_batch, split_batches
from tests.studies.common import SHORT

LAYERS = (1, 2)
LONG = {"max_new_tokens": 40, "do_sample": False}


@pytest.fixture(scope="module")
def batch():
    return split_batches(toy_items(4, samplings=("random",)), 8)[0]


def donors_in_a_trace(model, item, patch):
    with model.trace(open_image(item.image), item.prompt):
        found = eah.intervene(model, patch)
    return [f"L{layer}H{int(found[layer].donors)}" for layer in patch.layers]


@pytest.mark.parametrize("steps", ["prefill", "all"])
@pytest.mark.parametrize("donor", ["densest", "sparsest", "random", 5])
def test_a_row_names_the_donors_that_a_trace_of_its_item_reports(
    toy, batch, donor, steps
):
    condition = Condition("it", eah.EAH(layers=LAYERS, donor=donor, steps=steps))
    rows = run_batch(toy, batch, condition, decoding=SHORT)
    for seed, item, got in zip(batch.seeds, batch.items, rows.donors, strict=True):
        patch = dataclasses.replace(condition.patch, seed=(seed,))
        assert got.split() == donors_in_a_trace(toy, item, patch)


def test_an_unreadable_image_takes_no_other_item_s_donor(toy, batch):
    condition = Condition("it", eah.EAH(layers=LAYERS))
    whole = run_batch(toy, batch, condition, decoding=SHORT)
    broken = dataclasses.replace(batch.items[1], image="nowhere.png")
    items = (batch.items[0], broken, *batch.items[2:])
    rows = run_batch(
        toy, dataclasses.replace(batch, items=items), condition, decoding=SHORT
    )
    assert rows.error.notna().tolist() == [i == 1 for i in range(len(items))]
    assert rows.donors[1] == ""
    assert rows.donors.drop(1).tolist() == whole.donors.drop(1).tolist()


@pytest.mark.parametrize(
    "condition",
    [
        BASELINE,
        Condition("mean", eah.EAH(donor="mean")),
        Condition("PAI", eah.PAI.paper(layers=(1,))),
    ],
    ids=lambda condition: condition.name,
)
def test_no_head_is_named_where_none_donates(toy, batch, condition):
    patched = Condition("EAH", eah.EAH(layers=LAYERS))
    assert all(run_batch(toy, batch, patched, decoding=SHORT).donors != "")
    assert all(run_batch(toy, batch, condition, decoding=SHORT).donors == "")


def write_alone(model, item):
    """Caption one picture by itself: ids, up to the end of the text."""
    encoding = model.encode(open_image(item.image), item.prompt)
    whole = model.generate(**encoding, **LONG)[0].tolist()
    new = whole[encoding["input_ids"].shape[1] :]
    return new[: new.index(model.tokenizer.eos_token_id)]


def test_what_pads_and_ends_by_the_generations_config_is_no_token_of_an_answer(toy):
    """Which may name others than the tokenizer does."""
    captions = split_batches(toy_items(4, questions=False), 8)[0]
    decoding = {"caption": LONG}
    expected = run_batch(toy, captions, BASELINE, decoding=decoding).n_tokens.tolist()
    config = toy._module.generation_config
    kept = config.pad_token_id
    config.pad_token_id = 0
    found = run_batch(toy, captions, BASELINE, decoding=decoding).n_tokens.tolist()
    config.pad_token_id = kept
    assert found == expected


def test_a_caption_is_no_longer_beside_longer_ones_than_alone(toy):
    captions = split_batches(toy_items(4, questions=False), 8)[0]
    rows = run_batch(toy, captions, BASELINE, decoding={"caption": LONG})
    alone = [write_alone(toy, item) for item in captions.items]
    lengths = [len(ids) for ids in alone]
    assert len(set(lengths)) > 1  # else no row of the batch were padded
    assert rows.n_tokens.tolist() == lengths
    assert rows.answer.tolist() == [toy.tokenizer.decode(ids) for ids in alone]
