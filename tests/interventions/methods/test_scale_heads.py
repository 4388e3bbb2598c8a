"""Scaled heads return what the slow oracle's do, gated row by row."""

from dataclasses import dataclass

import pytest

from eah_interp.errors import SettingsError
from eah_interp.interventions.methods.scale_heads import ScaleHeads
from tests.interventions.methods.common import (
    APART,
    Oracle,
    check_family,
    check_prompt,
    check_rows_alone,
    layers_of,
    masks_of,
    measure_shares,
    split_widely,
    sweep,
)
from tests.tiny_families import ignore_renamed

pytestmark = ignore_renamed

EXAMPLE = ScaleHeads(heads=("L1H0", "L1H2"), factor=0.2, gate="image", at_least=0.1)

HEADS = (0, 1, 3)


@dataclass
class OracleScaling(Oracle):
    settings: ScaleHeads | None = None
    scaled: int = 0
    asked: int = 0

    def rows_of(self, call, item):
        if self.settings.rows == "last":
            return super().rows_of(call, item)
        return self.rows_of_all(call, item)

    def change(self, call, item, row):
        settings, n_heads = self.settings, call.pattern.shape[1]
        shares = measure_shares(call, item, row, settings.gate)
        for layer, head in settings.pairs:
            if layer != call.layer:
                continue
            share = shares[head]
            if settings.over == "layer":
                share = sum(shares) / n_heads
            low, high = settings.at_least, settings.at_most
            self.asked += 1
            if (low is None or share >= low) and (high is None or share <= high):
                self.scaled += 1
                call.pattern[item, head, row] *= settings.factor


def heads_of(family):
    return tuple((layer, head) for layer in layers_of(family) for head in HEADS)


@pytest.mark.parametrize("family", sweep("llava", "inkling2"))
def test_a_family_generates_as_under_the_slow_oracle(family):
    settings = ScaleHeads(heads=heads_of(family), factor=1.8)
    for check in (check_prompt, check_family):
        oracle = OracleScaling(*masks_of(family), layers_of(family), settings=settings)
        check(family, settings, oracle)


@pytest.mark.parametrize("family", sweep("llava"))
@pytest.mark.parametrize(
    ("gate", "over", "end"),
    [("image", "head", "at_most"), ("behind", "layer", "at_least")],
)
def test_a_gate_decides_row_by_row(family, gate, over, end):
    middle = split_widely(family, gate, over=over)
    settings = ScaleHeads(
        heads=heads_of(family), factor=0.2, rows="last", gate=gate, over=over,
        **{end: middle},
    )  # fmt: skip
    oracle = OracleScaling(*masks_of(family), layers_of(family), settings=settings)
    check_family(family, settings, oracle)
    assert 0 < oracle.scaled < oracle.asked, "the gate decides nothing"


@pytest.mark.parametrize("family", sweep("llava", without=APART))
def test_a_row_of_a_batch_is_patched_as_if_it_were_alone(family):
    settings = ScaleHeads(heads=heads_of(family), factor=0.0, gate="image", at_most=0.6)
    check_rows_alone(family, settings)


def test_settings_are_checked_and_survive_a_file(as_users_run_it):
    settings = ScaleHeads(heads=("L1H2",), factor=0.5, gate="image", at_most=0.1)
    assert ScaleHeads.from_dict(settings.to_dict()) == settings
    for wrong in ({"gate": "image"}, {"at_most": 0.2}):
        with pytest.raises(SettingsError, match="a gate is what is measured"):
            ScaleHeads(heads=("L1H2",), factor=1.0, **wrong)
    with pytest.raises(SettingsError, match="gate must be one of image, behind"):
        ScaleHeads(heads=("L1H2",), factor=1.0, gate="text", at_most=0.1)
    with pytest.raises(SettingsError, match="factor must be"):
        ScaleHeads(heads=("L1H2",), factor=-1.0)
