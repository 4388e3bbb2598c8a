"""A boost raises image columns as the slow oracle does, by step and by layer."""

from dataclasses import dataclass

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import SettingsError
from eah_interp.interventions.methods.boost import ColumnBoost
from eah_interp.interventions.point import PatchPoint
from tests.interventions.methods.common import (
    APART,
    GREEDY,
    Oracle,
    check_family,
    check_rows_alone,
    layers_of,
    masks_of,
    read_logits,
    share_encoding,
    share_model,
    sweep,
)
from tests.tiny_families import PICTURES, QUESTIONS, encode, ignore_renamed, measure_gap

pytestmark = ignore_renamed

EXAMPLE = ColumnBoost(layers=(1,), amount=3.0, on="weights")


@dataclass
class OracleBoost(Oracle):
    settings: ColumnBoost | None = None

    def amount(self, call):
        settings, read = self.settings, call.step
        amount = settings.amount
        if settings.growth == "linear":
            amount *= 1 + settings.rate * read
        elif settings.growth == "geometric":
            amount *= (1 + settings.rate) ** read
        if settings.most is not None:
            amount = min(amount, settings.most)
        if settings.by_layer is not None:
            amount *= settings.by_layer[settings.layers.index(call.layer)]
        return amount

    def change(self, call, item, row):
        amount, settings = self.amount(call), self.settings
        for head in range(call.scores.shape[1]):
            columns = call.sees(item, head, row)
            old = call.pattern[item, head, row].clone()
            size = {
                k: 1.0
                if settings.by == "number"
                else abs(float(call.scores[item, head, row, k]))
                if settings.on == "scores"
                else float(old[k])
                for k in columns
            }
            if settings.on == "scores":
                more = {k: amount * size[k] for k in columns}
                call.add(item, head, row, more)
                continue
            share = len(columns) if settings.by == "number" else 1
            for k in columns:
                call.pattern[item, head, row, k] += amount * size[k] / share
            if settings.normalise:
                call.pattern[item, head, row] *= (
                    old.sum() / call.pattern[item, head, row].sum()
                )


WAYS = {
    "scores by size, linear": {"growth": "linear", "rate": 0.5, "amount": 1.5},
    "scores by number, geometric": {
        "by": "number", "growth": "geometric", "rate": 1.0, "amount": 1.0, "most": 3.0,
    },
    "weights by size": {"on": "weights", "amount": 2.0},
    "weights by number, not normalised": {
        "on": "weights", "by": "number", "normalise": False, "amount": 0.8,
        "growth": "linear", "rate": -0.2,
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", sweep("llava"))
def test_a_family_generates_as_under_the_slow_oracle(family, way):
    layers = layers_of(family)
    settings = ColumnBoost(layers=layers, **WAYS[way])
    oracle = OracleBoost(*masks_of(family), layers, settings=settings)
    check_family(family, settings, oracle)


def test_layers_are_raised_by_amounts_of_their_own():
    settings = ColumnBoost(layers=(0, 1, 2), by_layer=(2.0, 0.0, 0.5), amount=1.0)
    oracle = OracleBoost(*masks_of("llava"), (0, 1, 2), settings=settings)
    check_family("llava", settings, oracle)


@pytest.mark.parametrize("family", sweep("llava", without=APART))
def test_a_row_of_a_batch_is_patched_as_if_it_were_alone(family):
    way = WAYS["scores by number, geometric"]
    check_rows_alone(family, ColumnBoost(layers=layers_of(family), **way))


def test_pai_is_a_case_of_it():
    boost = ColumnBoost(amount=0.7, layers="1:")
    model, encoding = share_model("llava"), share_encoding("llava")
    found = read_logits(model, boost, encoding)
    expected = read_logits(model, eah.PAI(alpha=0.7, layers="1:"), encoding)
    assert torch.equal(found, expected)


def test_an_answer_read_at_once_is_raised_as_its_generation_was():
    model = share_model("llava")
    encoding = encode("llava", [PICTURES[0]], [QUESTIONS[0]])
    width = encoding["input_ids"].shape[1]
    settings = ColumnBoost(layers=":", amount=1.0, growth="linear", rate=0.8)
    run = eah.edit(model, settings).generate(**encoding, **GREEDY)
    whole = {**encoding, "input_ids": run.sequences}
    whole["attention_mask"] = torch.ones_like(run.sequences)
    prompt_mask = torch.arange(run.sequences.shape[1])[None] < width
    with torch.no_grad(), model.trace(**whole):
        eah.intervene(model, settings, prompt_mask=prompt_mask)
        logits = model.output.logits.save()
    assert measure_gap(logits[0, width - 1 : -1], torch.cat(run.logits)) <= 1e-5


def test_settings_are_checked_and_survive_a_file(as_users_run_it):
    settings = ColumnBoost(layers=(2, 3), by_layer=(1.0, 0.5), most=2.0)
    assert ColumnBoost.from_dict(settings.to_dict()) == settings
    with pytest.raises(SettingsError, match="by_layer has a factor for each"):
        ColumnBoost(layers=":", by_layer=(1.0,))
    wrongs = [{"amount": -1}, {"rate": -2}, {"most": -1}, {"on": "keys"}]
    for wrong in [*wrongs, {"by": 1}, {"growth": "log"}, {"normalise": "no"}]:
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            ColumnBoost(**wrong)


@dataclass
class LongAnswer(PatchPoint):
    """A point whose rows have read so many of the answer's words."""

    words_before = torch.tensor([[-1, 0, 7, 20_000]])
    layer = 0

    def __init__(self):
        pass


@pytest.mark.parametrize("way", ["linear", "geometric"])
@pytest.mark.parametrize("amount", [0.0, 1e6])
def test_an_amount_that_grows_without_end_stays_a_number(amount, way):
    settings = ColumnBoost(amount=amount, growth=way, rate=1e6)
    found = settings.amounts(LongAnswer())
    assert found.tolist() == [[amount] * 4]
