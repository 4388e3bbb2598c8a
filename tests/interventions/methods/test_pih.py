"""PIH writes the means of its heads, as the slow oracle does."""

from dataclasses import dataclass, field

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import SettingsError
from eah_interp.interventions.methods.pih import PIH, PIH_HEADS
from eah_interp.studies.ledger import find_claim
from tests.interventions.methods.common import (
    APART,
    Oracle,
    check_family,
    check_prompt,
    check_rows_alone,
    layers_of,
    masks_of,
    share_model,
    sweep,
)
from tests.tiny_families import ignore_renamed

pytestmark = ignore_renamed

EXAMPLE = PIH(heads=("L1H0", "L1H2"))


@dataclass
class OraclePIH(Oracle):
    heads: tuple = ()
    means: dict = field(default_factory=dict)

    def rows_of(self, call, item):
        return self.rows_of_all(call, item)

    def read(self, call):
        """Replace outputs: what a head returns is no pattern's doing any more."""
        written = {}
        for item in range(len(call.pattern)):
            rows = self.rows_of(call, item)
            for layer, head in self.heads:
                if layer != call.layer or (call.step and self.steps == "prefill"):
                    continue
                own = call.output(item, head).clone()
                if not call.step:
                    mean = sum(own[row] for row in rows) / len(rows)
                    self.means[layer, item, head] = mean
                for row in rows:
                    own[row] = self.means[layer, item, head]
                written[item, head] = own
                self.changed += 1
        plain = call.output
        call.output = lambda item, head: written.get((item, head), plain(item, head))


def heads_of(family):
    return tuple((layer, head) for layer in layers_of(family) for head in (0, 2))


@pytest.mark.parametrize("steps", ["all", "prefill"])
@pytest.mark.parametrize("family", sweep("llava"))
def test_a_family_generates_as_under_the_slow_oracle(family, steps):
    settings = PIH(heads=heads_of(family), steps=steps)
    for check in (check_prompt, check_family):
        layers = layers_of(family)
        oracle = OraclePIH(
            *masks_of(family), layers, steps=steps, heads=heads_of(family)
        )
        check(family, settings, oracle)


@pytest.mark.parametrize("family", sweep("llava", without=APART))
def test_a_row_of_a_batch_is_patched_as_if_it_were_alone(family):
    check_rows_alone(family, PIH(heads=heads_of(family)))


def test_the_releases_mean_of_one_new_token_is_itself():
    """Its hook averages rows and items of a pass, so one item's answer stays."""
    one, two = torch.randn(1, 1, 4), torch.randn(2, 1, 4)
    assert torch.equal(one.mean((0, 1), keepdim=True), one)
    assert not torch.allclose(two.mean((0, 1), keepdim=True), two)
    assert PIH.official().steps == "prefill"


def test_its_claim_has_its_heads_found_and_without_any_it_is_refused():
    assert find_claim("pih").conditions[-1]["heads"] == {"found": "prompt"}
    with pytest.raises(SettingsError, match="PIH needs heads"):
        eah.edit(share_model("llava"), PIH())


def test_settings_are_the_releases_and_survive_a_file():
    assert {len(heads) for heads in PIH_HEADS.values()} == {3}
    assert PIH.paper("janus-pro-7b").pairs == ((0, 20), (1, 7), (14, 27))
    settings = PIH.official("llava-onevision-qwen2-7b")
    assert PIH.from_dict(settings.to_dict()) == settings
    with pytest.raises(SettingsError, match="no heads of 'gpt-2'"):
        PIH.paper("gpt-2")
