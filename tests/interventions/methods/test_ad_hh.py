"""AD-HH cuts heads off from the text behind the image as the slow oracle does."""

from dataclasses import dataclass

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import SettingsError
from eah_interp.interventions.methods.ad_hh import ADHH, HALLUCINATION_HEADS
from tests.interventions.methods.common import (
    APART,
    Oracle,
    check_family,
    check_rows_alone,
    columns_of,
    layers_of,
    masks_of,
    read_logits,
    share_encoding,
    share_model,
    share_plain,
    slow_decoder,
    split_widely,
    sweep,
)
from tests.tiny_families import ignore_renamed, measure_gap

pytestmark = ignore_renamed

EXAMPLE = ADHH(heads=("L1H0", "L1H2"), tau=0.1)


@dataclass
class OracleADHH(Oracle):
    heads: tuple = ()
    tau: float = 0.0
    over_the_batch: bool = False
    cut: int = 0
    asked: int = 0

    def behind(self, call, item):
        return columns_of(call, item, "behind")

    def change(self, call, item, row):
        items = range(len(call.pattern)) if self.over_the_batch else [item]
        for layer, head in self.heads:
            if layer != call.layer:
                continue
            total = sum(
                float(call.pattern[one, head, self.rows_of(call, one)[0], k])
                for one in items
                for k in self.behind(call, one)
            )
            self.asked += 1
            if total >= self.tau:
                self.cut += 1
                call.pattern[item, head, row, self.behind(call, item)] = 0


def heads_of(family, heads=(0, 1, 3)):
    return tuple((layer, head) for layer in layers_of(family) for head in heads)


def tau_of(family):
    return split_widely(family, "behind")


@pytest.mark.parametrize("family", sweep("llava", "internvl_gpt_oss"))
def test_a_family_generates_as_under_the_slow_oracle(family):
    heads, tau = heads_of(family), tau_of(family)
    oracle = OracleADHH(*masks_of(family), layers_of(family), heads=heads, tau=tau)
    check_family(family, ADHH(heads=heads, tau=tau), oracle)
    assert 0 < oracle.cut < oracle.asked, "the threshold decides nothing"


@pytest.mark.parametrize("family", sweep("llava", without=APART))
def test_a_row_of_a_batch_is_patched_as_if_it_were_alone(family):
    check_rows_alone(family, ADHH(heads=heads_of(family), tau=tau_of(family)))


def test_the_releases_sum_over_a_batch_cuts_off_more():
    """Two items that each stay below the threshold reach it together."""
    family, heads = "llava", heads_of("llava")
    masks, layers, tau = masks_of(family), layers_of(family), tau_of(family)
    encoding, found = share_encoding(family), {}
    cut = {}
    for name, over_the_batch in (("own", False), ("batch", True)):
        oracle = OracleADHH(
            *masks, layers, heads=heads, tau=tau, over_the_batch=over_the_batch
        )
        with torch.no_grad(), slow_decoder(share_plain(family), oracle):
            logits = share_plain(family)(**encoding, use_cache=False).logits
        found[name], cut[name] = logits[:, -1], oracle.cut
    ours = read_logits(share_model(family), ADHH(heads=heads, tau=tau), encoding)
    assert measure_gap(ours[:, -1], found["own"]) <= 1e-4
    assert measure_gap(ours[:, -1], found["batch"]) > 1e-2
    assert cut["batch"] > cut["own"]


def test_heads_that_were_not_found_yet_are_refused_when_they_are_needed():
    settings = ADHH()
    assert ADHH.from_dict(settings.to_dict()) == settings
    with pytest.raises(SettingsError, match=r"ADHH needs heads.*what a finder found"):
        eah.edit(share_model("llava"), settings)


def test_settings_are_the_releases_and_survive_a_file(as_users_run_it):
    assert ADHH.paper().tau == 0.4
    assert ADHH.official().tau == 0.0
    assert {name: len(heads) for name, heads in HALLUCINATION_HEADS.items()} == {
        "llava-1.5-7b": 20,
        "llava-1.5-13b": 35,
        "llava-1.6-34b": 10,
    }
    settings = ADHH.paper("llava-1.6-34b", tau=0.1)
    assert ADHH.from_dict(settings.to_dict()) == settings
    with pytest.raises(SettingsError, match="no heads of 'gpt-2'"):
        ADHH.paper("gpt-2")
    with pytest.raises(SettingsError, match="tau must be"):
        ADHH(heads=("L0H1",), tau=-1)
