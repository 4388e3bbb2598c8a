"""Whatever takes a patch takes any intervention, or refuses it by name.

Compared with forward passes of plain transformers, whose patterns are rewritten after
the softmax by slow loops (tests/interventions/other_methods.py).
"""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import (
    ablate_heads,
    attribute_patches,
    attribute_recipients,
    pose,
    read_patterns,
    score_broadcast,
    trace_mediators,
)
from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import attention_operation
from eah_interp.testing import random_image
from tests.interventions.other_methods import (
    OracleAblation,
    OracleVAR,
    logits_of,
    make,
    masks_of,
    wrapped,
)
from tests.oracle_forward import OracleEAH, oracle_logits

IMAGES = [random_image(seed) for seed in (0, 1)]
PROMPTS = ["is there a cat ?", "what ?"]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
HEADS = ((1, 0), (1, 2))


@dataclass(frozen=True, kw_only=True)
class Sharpen(Intervention):
    """An intervention of a user's: scores times a factor."""

    kind: ClassVar[str] = "sharpen in a test"
    layers: tuple[int, ...] = (1,)
    factor: float = 2.0

    def find_sites(self, anatomy):
        return [anatomy.site(layer) for layer in self.layers]

    def check_fits(self, *, n_heads, d_model):
        del n_heads, d_model

    def apply_at(self, point):
        rows = point.rows_of(self.steps)
        where = rows[:, :, None].expand(-1, -1, point.call.n_heads)
        point.attend(where, change_logits=lambda _, scores: scores * self.factor)


@dataclass(frozen=True, kw_only=True)
class Bypass(Sharpen):
    """An intervention that writes to nnsight's operation, past the point's methods."""

    kind: ClassVar[str] = "bypass in a test"

    def apply_at(self, point):
        output = point.operation.output
        point.operation.output = (output[0] * self.factor, *output[1:])


SETTINGS = {
    "EAH": eah.EAH(),
    "EAH of the mean": eah.EAH(donor="mean", steps="all"),
    "EAH to some": eah.EAH(recipients=(0, 3), donor=1),
    "PAI": eah.PAI(layers=(1,), alpha=0.7),
    "VAR": eah.VAR(sink_dims=(0, 5), tau=1.5, rho=0.3, layers=(1,)),
    "zero": eah.Ablation(heads=HEADS, how="zero"),
    "mean": eah.Ablation(heads=HEADS, how="mean"),
    "uniform": eah.Ablation(heads=HEADS, how="uniform"),
    "previous": eah.Ablation(heads=HEADS, how="previous"),
    "knockout": eah.Ablation(heads=HEADS, how="knockout"),
    "a user's": Sharpen(),
}
OF_PATTERNS = [name for name in SETTINGS if name not in ("zero", "mean")]


@pytest.fixture(scope="module")
def model():
    return wrapped("sdpa", 2)


@pytest.fixture(scope="module")
def case(model):
    return pose(model, IMAGES, PROMPTS, objects=["cat", "dog"])


def values_under(model, case, settings):
    """The case's targets, read off a trace with `intervene` in it."""
    logits = logits_of(model, settings, IMAGES, PROMPTS)
    return torch.stack(
        [
            logits[target.row, target.position, case.readout.tokens[i]]
            for i, target in enumerate(case.readout.targets)
        ]
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_heads_and_the_rest_add_up_to_the_patched_logit(model, case, name):
    found = eah.attribute_heads(model, case, patch=SETTINGS[name])
    expected = values_under(model, case, SETTINGS[name])
    torch.testing.assert_close(found.patched.values, expected, **CLOSE)
    assert (found.patched.values - found.plain.values).abs().max() > 1e-3
    whole = found.plain.heads + sum(
        getattr(found.change, part)
        for part in ("new_pattern", "new_values", "new_scale")
    )
    torch.testing.assert_close(whole, found.patched.heads, **CLOSE)
    assert found.patch == SETTINGS[name]
    assert set(found.donors) == ({1} if isinstance(found.patch, eah.EAH) else set())


@pytest.mark.parametrize("name", SETTINGS)
def test_the_lens_ends_at_the_patched_logit(model, case, name):
    lens = eah.logit_lens(model, case, patch=SETTINGS[name])
    expected = values_under(model, case, SETTINGS[name])
    torch.testing.assert_close(lens.patched.logit[:, -1, 0], expected, **CLOSE)
    torch.testing.assert_close(lens.patched.logit[:, 1], lens.plain.logit[:, 1])


@pytest.mark.parametrize("name", SETTINGS)
def test_all_heads_of_the_patched_layer_carry_the_whole_effect(model, case, name):
    """What enters the layer is the same in both runs, so its heads are all there is."""
    heads = [(1, head) for head in range(4)]
    settings = SETTINGS[name]
    effect = values_under(model, case, settings) - values_under(model, case, None)
    there = eah.patch_heads(model, case, source=settings, heads=heads, together=True)
    torch.testing.assert_close(there.effects[:, 0], effect, **CLOSE)
    back = eah.patch_heads(
        model, case, source="plain", target=settings, heads=heads, together=True
    )
    torch.testing.assert_close(back.effects[:, 0], -effect, **CLOSE)
    torch.testing.assert_close(back.values, there.source_values, **CLOSE)
    assert there.source == type(settings).__name__


@pytest.mark.parametrize("name", OF_PATTERNS)
def test_the_pattern_alone_carries_what_changes_the_pattern(model, case, name):
    heads, settings = [(1, head) for head in range(4)], SETTINGS[name]
    asked = {"source": settings, "heads": heads, "together": True}
    whole = eah.patch_heads(model, case, **asked)
    of_pattern = eah.patch_heads(model, case, what="pattern", **asked)
    torch.testing.assert_close(of_pattern.effects, whole.effects, **CLOSE)
    of_values = eah.patch_heads(model, case, what="values", **asked)
    assert of_values.effects.abs().max() < 1e-4


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_approximate_the_exact_effects(model, case, name):
    found = eah.approximate_heads(
        model,
        case,
        source=SETTINGS[name],
        method="integrated_gradients",
        n_steps=32,
        check=0,
    )
    whole = found.whole_layers[:, 1]
    effect = values_under(model, case, SETTINGS[name])
    effect = effect - values_under(model, case, None)
    torch.testing.assert_close(whole, effect, **CLOSE)
    torch.testing.assert_close(found.approximate[:, 1].sum(-1), whole, **CLOSE)


def oracle_patterns(name, encoding):
    """The patterns that an eager forward attends with, rewritten by slow loops."""
    untouched = make("eager", 2)
    image, token = masks_of(untouched, encoding)
    settings, used = SETTINGS[name], {}
    if isinstance(settings, eah.EAH):
        edit = OracleEAH(image, token, donor=settings.donor)
    elif isinstance(settings, eah.VAR):
        edit = OracleVAR(image, token, (1,), hf_model=untouched, var=settings)
    else:
        edit = OracleAblation(image, token, (1,), heads=HEADS, how=settings.how)

    def watched(layer, pattern, visible):
        used[layer] = edit(layer, pattern, visible)
        return used[layer]

    if isinstance(edit, OracleVAR):
        with edit.watching():
            oracle_logits(untouched, encoding, edit_pattern=watched)
    else:
        oracle_logits(untouched, encoding, edit_pattern=watched)
    return used


@pytest.mark.parametrize(
    "name", ["EAH", "EAH of the mean", "VAR", "uniform", "previous", "knockout"]
)
def test_rows_are_those_that_the_slow_oracle_attends_with(model, name):
    encoding = model.encode(IMAGES, PROMPTS)
    names = [f"L{layer}H{head}" for layer in (1, 2) for head in range(4)]
    found = read_patterns(
        model, encoding, heads=names, query="all", patch=SETTINGS[name]
    )
    used = oracle_patterns(name, encoding)
    expected = torch.cat([used[1], used[2]], 1)
    real = encoding["attention_mask"].bool()[:, None, :, None].expand_as(expected)
    torch.testing.assert_close(found.patched.rows[real], expected[real], **CLOSE)
    assert (found.patched.rows - found.plain.rows)[real].abs().max() > 1e-2


@pytest.mark.parametrize("name", ["PAI", "a user's"])
def test_rows_of_changed_scores_mix_the_values_to_what_heads_return(model, name):
    """What a trace writes as outputs is the rows times the values."""
    encoding, settings = model.encode(IMAGES, PROMPTS), SETTINGS[name]
    names = [f"L1H{head}" for head in range(4)]
    found = read_patterns(model, encoding, heads=names, query="all", patch=settings)
    site = model.anatomy.site(1)
    with torch.no_grad(), model.trace(**encoding):  # the patch does not move them
        values = attention_operation(model, site).inputs[0][3].save()
    with torch.no_grad(), model.trace(**encoding):
        eah.intervene(model, settings)
        output = attention_operation(model, site).output[0].save()
    mixed = found.patched.rows @ values.repeat_interleave(2, 1)
    real = encoding["attention_mask"].bool()
    torch.testing.assert_close(mixed.transpose(1, 2)[real], output[real], **CLOSE)


@pytest.mark.parametrize("name", OF_PATTERNS)
def test_patches_of_the_image_and_the_rest_add_up_to_the_heads(model, case, name):
    found = attribute_patches(model, case, patch=SETTINGS[name])
    heads = eah.attribute_heads(model, case, patch=SETTINGS[name])
    torch.testing.assert_close(found.patched.heads, heads.patched.heads, **CLOSE)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_a_replaced_head_has_no_pattern_and_the_others_have(model, case, how):
    settings = SETTINGS[how]
    with pytest.raises(UnsupportedError, match="L1H0, L1H2 return is replaced"):
        attribute_patches(model, case, patch=settings)
    with pytest.raises(UnsupportedError, match="leave these heads or layers out"):
        read_patterns(model, case, heads=["L1H0"], patch=settings)
    found = read_patterns(model, case, heads=["L1H1", "L2H0"], patch=settings)
    torch.testing.assert_close(found.patched.rows[:, 0], found.plain.rows[:, 0])
    assert (found.patched.rows[:, 1] - found.plain.rows[:, 1]).abs().max() > 1e-5
    with pytest.raises(UnsupportedError, match='patch what="output"'):
        eah.patch_heads(model, case, source=settings, heads=["L1H0"], what="pattern")


def test_what_writes_past_the_point_is_run_but_its_patterns_are_not_guessed(
    model, case
):
    found = eah.attribute_heads(model, case, patch=Bypass())
    expected = values_under(model, case, Bypass())
    torch.testing.assert_close(found.patched.values, expected, **CLOSE)
    with pytest.raises(UnsupportedError, match=r"Bypass reads or writes the output"):
        read_patterns(model, case, heads=["L1H0"], patch=Bypass())


@pytest.mark.parametrize(
    "ask", [attribute_recipients, trace_mediators, score_broadcast]
)
@pytest.mark.usefixtures("as_users_run_it")
def test_what_divides_a_broadcast_refuses_other_methods_by_name(model, case, ask):
    with pytest.raises(SettingsError, match=r"PAI\(.*broadcasts nothing"):
        ask(model, case, eah=eah.PAI())


def test_ablations_run_in_a_run_that_any_intervention_patched(model, case):
    found = ablate_heads(model, case, target=SETTINGS["PAI"], heads=["L2H0"])
    expected = values_under(model, case, SETTINGS["PAI"])
    torch.testing.assert_close(found.values, expected, **CLOSE)
    both = eah.Ablation(heads=[(2, 0)], how="zero")
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        eah.intervene(model, SETTINGS["PAI"])
        eah.intervene(model, both)
        logits = model.output.logits.save()
    after = torch.stack(
        [
            logits[target.row, target.position, case.readout.tokens[i]]
            for i, target in enumerate(case.readout.targets)
        ]
    )
    torch.testing.assert_close(found.values + found.effects[:, 0], after, **CLOSE)


@pytest.mark.parametrize("patch", ["EAH", 3, {"layers": [1]}])
@pytest.mark.usefixtures("as_users_run_it")
def test_what_is_no_intervention_is_refused_before_any_forward_pass(model, patch):
    with pytest.raises(
        SettingsError, match=r"intervention's settings, such as eah\.EAH"
    ):
        eah.attribute_heads(model, IMAGES, PROMPTS, objects=["cat"], patch=patch)
    with pytest.raises(
        SettingsError, match=r"intervention's settings, such as eah\.EAH"
    ):
        eah.patch_heads(model, IMAGES, PROMPTS, objects=["cat"], source=patch)


@pytest.mark.parametrize("name", SETTINGS)
def test_results_of_any_intervention_are_saved_and_loaded(model, case, name, tmp_path):
    found = eah.attribute_heads(model, case, patch=SETTINGS[name])
    loaded = type(found).load(found.save(tmp_path))
    assert loaded.patch == SETTINGS[name]
    assert loaded.frame().equals(found.frame())


def test_an_answer_that_follows_the_prompt_is_patched_as_it_was_generated(model):
    """Rows of an answer have a prefill patch's pattern no more than a generation's."""
    settings = eah.PAI(layers=(1,), alpha=0.7, steps="prefill")
    caption = "a cat near the dog"
    found = eah.attribute_heads(
        model, IMAGES[:1], PROMPTS[:1], objects=["dog"], caption=caption, patch=settings
    )
    asked = pose(model, IMAGES[:1], PROMPTS[:1], objects=["dog"], caption=caption)
    with torch.no_grad(), model.trace(**asked.inputs):
        eah.intervene(model, settings, prompt_mask=asked.prompt_mask)
        logits = model.output.logits.save()
    target = asked.readout.targets[0]
    expected = logits[0, target.position, asked.readout.tokens[0]]
    torch.testing.assert_close(found.patched.values[0], expected, **CLOSE)
