"""SPIN turns down the heads that the slow oracle turns down, row by row."""

from dataclasses import dataclass

import pytest
import torch

from eah_interp.errors import SettingsError
from eah_interp.interventions.methods.spin import SPIN
from tests.interventions.methods.common import (
    APART,
    Oracle,
    check_family,
    check_prompt,
    check_rows_alone,
    layers_of,
    masks_of,
    sweep,
)
from tests.tiny_families import ignore_renamed

pytestmark = ignore_renamed

EXAMPLE = SPIN(keep=0.5, factor=0.1, layers=(1,), rows="text")


@dataclass
class OracleSPIN(Oracle):
    keep: float = 0.5
    factor: float = 0.0
    text: bool = False

    def rows_of(self, call, item):
        if not self.text:
            return super().rows_of(call, item)
        rows = self.rows_of_all(call, item)
        return rows if call.step else [row for row in rows if not self.image[item, row]]

    def change(self, call, item, row):
        n_heads = call.scores.shape[1]
        seen = [
            k
            for k in range(call.scores.shape[-1])
            if call.image[item, k] and call.visible[item, 0, row, k]
        ]
        if not seen:
            return
        sums = torch.tensor(
            [
                sum(float(s) for s in call.scores[item, h, row, seen])
                for h in range(n_heads)
            ]
        )
        gates = torch.softmax(sums / sums.std(), 0)
        kept = torch.topk(gates, int(self.keep * n_heads)).indices.tolist()
        for head in range(n_heads):
            if head not in kept:
                call.pattern[item, head, row] *= self.factor


@pytest.mark.parametrize("family", sweep("llava", "qwen2_5_vl"))
def test_a_family_generates_as_under_the_slow_oracle(family):
    layers = layers_of(family)
    oracle = OracleSPIN(*masks_of(family), layers, keep=0.6, factor=0.1)
    check_family(family, SPIN(keep=0.6, factor=0.1, layers=layers), oracle)


@pytest.mark.parametrize("family", sweep("llava"))
def test_all_text_rows_are_gated_one_by_one(family):
    layers = layers_of(family)
    settings = SPIN(keep=0.5, factor=0.0, layers=layers, rows="text")
    for check in (check_prompt, check_family):
        oracle = OracleSPIN(*masks_of(family), layers, text=True)
        check(family, settings, oracle)


@pytest.mark.parametrize("family", sweep("llava", without=APART))
def test_a_row_of_a_batch_is_patched_as_if_it_were_alone(family):
    check_rows_alone(family, SPIN(keep=0.5, layers=layers_of(family)))


def test_settings_are_the_papers_and_survive_a_file(as_users_run_it):
    assert SPIN.paper() == SPIN(keep=0.95, factor=0.08, layers=":")
    assert SPIN.paper(task="yes_no") == SPIN(keep=0.8, factor=0.1)
    assert SPIN.official() == SPIN(keep=0.95, factor=0.0)
    settings = SPIN(rows="text", layers=(1,))
    assert SPIN.from_dict(settings.to_dict()) == settings
    with pytest.raises(SettingsError, match="task must be one of caption, yes_no"):
        SPIN.paper(task="poem")
    for wrong in ({"keep": 1.5}, {"factor": -1}, {"rows": "none"}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            SPIN(**wrong)
