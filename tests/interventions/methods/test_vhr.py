"""VHR finds and reinforces the heads that the slow oracle does."""

from dataclasses import dataclass, field, replace

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.interventions.methods.vhr import VHR, choose_heads
from eah_interp.lvlm.without_images import drop_images
from tests.interventions.methods.common import (
    APART,
    Oracle,
    check_family,
    check_prompt,
    check_rows_alone,
    layers_of,
    masks_of,
    share_encoding,
    share_model,
    share_plain,
    slow_decoder,
    sweep,
)
from tests.tiny_families import ignore_renamed

pytestmark = ignore_renamed

EXAMPLE = VHR(heads=("L1H0", "L1H2"))


@dataclass
class OracleVHR(Oracle):
    alpha: float = 2.0
    by_item: tuple = ()

    def rows_of(self, call, item):
        return self.rows_of_all(call, item)

    def change(self, call, item, row):
        for layer, head in self.by_item[item]:
            if layer == call.layer:
                call.pattern[item, head, row] *= self.alpha


@dataclass
class Blind(Oracle):
    """What heads return in the last row of prompts without their images."""

    outputs: dict = field(default_factory=dict)

    def read(self, call):
        for item in range(len(call.pattern)):
            for head in range(call.pattern.shape[1]):
                last = call.output(item, head)[-1]
                self.outputs[call.layer, item, head] = last


@dataclass
class Choosing(Oracle):
    """Chooses heads layer by layer, and reinforces them as it goes."""

    alpha: float = 2.0
    blind: dict = field(default_factory=dict)
    drop: bool = True
    chosen: dict = field(default_factory=dict)

    def read(self, call):
        if call.layer not in self.layers:
            return
        n_heads = call.pattern.shape[1]
        for item in range(len(call.pattern)):
            moved, surge = [], []
            for head in range(n_heads):
                blind = self.blind[call.layer, item, head]
                seeing = call.output(item, head)[-1]
                pairs = zip(seeing, blind, strict=True)
                moved.append(float(sum((a - b) ** 2 for a, b in pairs) ** 0.5))
                surge.append(float(sum(b**2 for b in blind)))
            if self.drop:
                high = [high_of(moved), high_of(surge)]
                for head in range(n_heads):
                    if moved[head] > high[0] and surge[head] > high[1]:
                        moved[head] = 0.0
            ordered = sorted(moved)
            middle = (ordered[n_heads // 2 - 1] + ordered[n_heads // 2]) / 2
            heads = [head for head in range(n_heads) if moved[head] > middle]
            self.chosen.setdefault(item, []).extend((call.layer, h) for h in heads)
            for head in heads:
                call.pattern[item, head] *= self.alpha


def high_of(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean + variance**0.5


def choose_slowly(family, settings):
    encoding, plain = share_encoding(family), share_plain(family)
    layers = layers_of(family)
    unseen = drop_images(share_model(family), encoding)
    masks = (torch.zeros_like(unseen["input_ids"], dtype=torch.bool),) * 2
    blind = Blind(*masks, layers)
    with torch.no_grad(), slow_decoder(plain, blind):
        plain(**unseen, use_cache=False)
    oracle = Choosing(
        *masks_of(family), layers, alpha=settings.alpha, blind=blind.outputs,
        drop=settings.outliers == "dropped",
    )  # fmt: skip
    with torch.no_grad(), slow_decoder(plain, oracle):
        plain(**encoding, use_cache=False)
    return oracle


@pytest.mark.parametrize("family", sweep("llava", "deepseek_vl"))
def test_the_heads_of_each_item_are_the_slow_oracles(family):
    settings = VHR(layers=layers_of(family))
    oracle = choose_slowly(family, settings)
    fitted = settings.fit(share_model(family), share_encoding(family), None)
    assert fitted.by_item == tuple(map(tuple, oracle.chosen.values()))
    assert fitted.by_item[0] != fitted.by_item[1]
    for check in (check_prompt, check_family):
        expected = OracleVHR(
            *masks_of(family), layers_of(family), by_item=fitted.by_item
        )
        check(family, fitted, expected)


@pytest.mark.parametrize("family", sweep("llava", without=APART))
def test_a_row_of_a_batch_is_patched_as_if_it_were_alone(family):
    layers = layers_of(family)
    by_item = [[(layer, row) for layer in layers] for row in (0, 1)]
    fitted = VHR(by_item=by_item)
    check_rows_alone(family, fitted, settings_of=lambda row: fitted.of_item(row, 2))
    same = VHR(heads=by_item[0])
    check_rows_alone(family, same)


def test_a_head_that_surges_without_the_image_is_not_chosen():
    seeing, blind = torch.zeros(1, 8, 2), torch.zeros(1, 8, 2)
    seeing[0, :, 0] = torch.arange(8.0)
    blind[0, 7] = 40.0  # it moves most, and it is largest where it sees nothing
    chosen = {
        drop: choose_heads(seeing, blind, drop_outliers=drop).nonzero()[:, 1].tolist()
        for drop in (False, True)
    }
    assert chosen == {False: [4, 5, 6, 7], True: [3, 4, 5, 6]}


def test_unfitted_settings_are_refused_and_fitted_ones_fit_their_items():
    model, encoding = share_model("llava"), share_encoding("llava")
    with pytest.raises(SettingsError, match=r"VHR has no heads.*call \.fit"):
        eah.edit(model, VHR())
    given = VHR(heads=("L1H2",))
    assert given.fit(model, encoding, None) is given
    of_three = VHR(by_item=[["L1H2"]] * 3)
    with pytest.raises(InputError, match="heads of 3 items, and the batch has 2 rows"):
        eah.edit(model, of_three).generate(**encoding, max_new_tokens=1)
    with pytest.raises(UnsupportedError, match="patched twin"):
        VHR().fit(eah.edit(model, given), encoding, None)
    with pytest.raises(SettingsError, match="L1H9 do not exist"):
        eah.edit(model, VHR(heads=("L1H9",)))


def test_settings_are_the_papers_and_survive_a_file(as_users_run_it):
    assert (VHR.paper().alpha, VHR.paper().layers) == (2.0, "1,-14:")
    for settings in (
        VHR(heads=("L1H2",)),
        VHR(by_item=[["L1H2", (0, 1)], []], outliers="kept"),
        VHR.paper(),
    ):
        assert VHR.from_dict(settings.to_dict()) == settings
    assert VHR(by_item=[["L1H2", (0, 1)]]) == VHR(by_item=[[(0, 1), (1, 2)]])
    for wrong in ({"alpha": -1}, {"outliers": "lost"}, {"by_item": []}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            VHR(**wrong)
    with pytest.raises(SettingsError, match="without heads for all"):
        replace(VHR(heads=("L0H1",)), by_item=[["L0H1"]])
