"""The null of SPIN turns down as many heads as SPIN, and does not look at the image."""

from dataclasses import dataclass

import pytest
import torch
from scipy import stats

from eah_interp.errors import SettingsError
from eah_interp.interventions.methods.random_spin import RandomSPIN
from tests.interventions.methods.common import (
    APART,
    Oracle,
    check_family,
    check_rows_alone,
    layers_of,
    masks_of,
    sweep,
)
from tests.tiny_families import ignore_renamed

pytestmark = ignore_renamed

EXAMPLE = RandomSPIN(keep=0.5, factor=0.1, layers=(1,), seed=3)


@dataclass
class OracleRandomSPIN(Oracle):
    """Draws of a layer and of the answer's n-th word, from a generator of their own."""

    keep: float = 0.5
    factor: float = 0.1
    seed: int = 0

    def change(self, call, item, row):
        n_heads = call.scores.shape[1]
        seen = [call.sees(item, head, row) for head in range(n_heads)]
        number = (self.seed * 1009 + call.layer) * 2**21 + 2**20 + call.step
        drawn = torch.rand(n_heads, generator=torch.Generator().manual_seed(number))
        kept = torch.topk(drawn, int(self.keep * n_heads)).indices.tolist()
        for head in range(n_heads):
            if head not in kept and seen[head]:  # heads of sparse calls see unlike keys
                call.pattern[item, head, row] *= self.factor


@pytest.mark.parametrize("family", sweep("llava"))
def test_a_family_generates_as_under_the_slow_oracle(family):
    layers = layers_of(family)
    oracle = OracleRandomSPIN(*masks_of(family), layers, seed=3)
    settings = RandomSPIN(keep=0.5, factor=0.1, layers=layers, seed=3)
    check_family(family, settings, oracle)


@pytest.mark.parametrize("family", sweep("llava", without=APART))
def test_a_row_of_a_batch_is_patched_as_if_it_were_alone(family):
    check_rows_alone(family, RandomSPIN(keep=0.5, layers=layers_of(family)))


def test_every_head_is_kept_as_often():
    gates = torch.stack(
        [
            RandomSPIN(seed=seed)._draw(1, word, 8)
            for seed in range(50)
            for word in (0, 7)
        ]
    )
    counts = (gates.argsort(1).argsort(1) < 4).sum(0)
    assert counts.sum() == 4 * len(gates)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001
    assert len({tuple(row) for row in gates.tolist()}) == len(gates)


def test_settings_survive_a_file_and_a_seed_is_an_integer(as_users_run_it):
    settings = RandomSPIN.paper(task="yes_no", seed=2)
    assert (settings.keep, settings.seed) == (0.8, 2)
    assert RandomSPIN.from_dict(settings.to_dict()) == settings
    with pytest.raises(SettingsError, match="seed must be"):
        RandomSPIN(seed=0.5)
