"""Heads-guided attention raises image columns as the slow oracle does."""

from dataclasses import dataclass

import pytest

from eah_interp.errors import SettingsError
from eah_interp.interventions.methods.heads_guided import HeadsGuided
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

EXAMPLE = HeadsGuided(alpha=3.0, layers=(1,))


@dataclass
class OracleHeadsGuided(Oracle):
    alpha: float = 0.0

    def change(self, call, item, row):
        columns = [k for k in range(call.scores.shape[-1]) if call.image[item, k]]
        guide = {}
        for column in columns:
            sizes = [abs(float(s)) for s in call.scores[item, :, row, column]]
            guide[column] = self.alpha * sum(sizes) / len(sizes)
        for head in range(call.scores.shape[1]):
            call.add(item, head, row, guide)


@pytest.mark.parametrize("family", sweep("llava", "gemma3"))
def test_a_family_generates_as_under_the_slow_oracle(family):
    layers = layers_of(family)
    oracle = OracleHeadsGuided(*masks_of(family), layers, alpha=3.0)
    check_family(family, HeadsGuided(alpha=3.0, layers=layers), oracle)


@pytest.mark.parametrize("family", sweep("llava", without=APART))
def test_a_row_of_a_batch_is_patched_as_if_it_were_alone(family):
    check_rows_alone(family, HeadsGuided(alpha=3.0, layers=layers_of(family)))


def test_only_the_prompt_is_patched_with_steps_prefill():
    oracle = OracleHeadsGuided(
        *masks_of("llava"), (0, 1, 2), steps="prefill", alpha=3.0
    )
    settings = HeadsGuided(alpha=3.0, layers=":", steps="prefill")
    check_family("llava", settings, oracle)


def test_settings_are_those_of_the_paper_and_survive_a_file(as_users_run_it):
    assert HeadsGuided.paper() == HeadsGuided.official()
    assert (HeadsGuided.paper().alpha, HeadsGuided.paper().layers) == (0.5, "5:19")
    settings = HeadsGuided(alpha=0.3, layers=(1, 2))
    assert HeadsGuided.from_dict(settings.to_dict()) == settings
    with pytest.raises(SettingsError, match="alpha must be a number from 0 to"):
        HeadsGuided(alpha=-1)
