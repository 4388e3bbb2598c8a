"""Sinks of one kind dropped, scaled and replaced, and other columns in their place."""

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import SettingsError
from eah_interp.interventions import SinkEdit, find_sinks
from eah_interp.studies.conditions import control_conditions
from tests.interventions.test_find_sinks import planted
from tests.interventions.test_sinks_of_a_kind import plant
from tests.tiny_families import ignore_renamed

pytestmark = ignore_renamed

FAMILIES = ("llava", "qwen2_5_vl", "internvl_gpt_oss")


def run(model, encoding, settings):
    with torch.no_grad(), model.trace(**encoding, use_cache=False):
        patch = eah.intervene(model, settings)
        logits = model.logits.save()
    return patch, logits


def run_dropped(model, encoding, columns, layers):
    """Take columns out of patterns by hand, and divide by what is left."""
    with torch.no_grad(), model.trace(**encoding, use_cache=False):
        for layer in layers:
            pattern = model.attention_probabilities[layer]
            kept_by_sink = 1 - pattern.sum(-1, keepdim=True)
            gone = columns[:, None, None, :].expand_as(pattern).clone()
            eye = torch.eye(pattern.shape[-1], dtype=torch.bool)
            gone = gone & ~columns[:, None, :, None] & ~eye
            left = pattern.masked_fill(gone, 0.0)
            left = left / (left.sum(-1, keepdim=True) + kept_by_sink).clamp(min=1e-30)
            model.attention_probabilities[layer] = left
        logits = model.logits.save()
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_sinks_are_attended_by_no_other_token(family):
    model, encoding, token, places = plant(family)
    tokens = encoding["attention_mask"].bool()
    with planted(model, family, encoding, token=token, places=places):
        found = find_sinks(model, encoding)
        tower = SinkEdit(columns="tower", layers=(0, 2))
        patch, logits = run(model, encoding, tower)
        expected = run_dropped(model, encoding, found.mask("tower"), (0, 2))
        _, plain = run(model, encoding, eah.EAH(layers=(1,), gamma=1.0))
        language = SinkEdit(columns="language", layers=(2,))
        _, other = run(model, encoding, language)
        theirs = run_dropped(model, encoding, found.mask("language"), (2,))
    assert torch.equal(patch.learned[2], found.mask("tower"))
    assert torch.allclose(logits[tokens], expected[tokens], atol=1e-3)
    assert torch.allclose(other[tokens], theirs[tokens], atol=1e-3)
    assert not torch.allclose(logits[tokens], plain[tokens], atol=1e-2)


@pytest.mark.parametrize("act", ["scale", "mean"])
def test_what_the_projector_made_of_sinks_is_scaled_or_replaced(act):
    model, encoding, token, places = plant("qwen2_5_vl")
    settings = SinkEdit(columns="tower", act=act, factor=0.25)
    with planted(model, "qwen2_5_vl", encoding, token=token, places=places):
        sinks = find_sinks(model, encoding).mask("tower")
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            eah.intervene(model, settings)
            new = model.layers_input[0].save()
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            old = model.layers_input[0].save()
            image = model.image_mask.save()
    for item in range(2):
        for column in range(new.shape[1]):
            expected = old[item, column]
            if sinks[item, column] and act == "scale":
                expected = 0.25 * expected
            elif sinks[item, column]:
                expected = old[item][image[item] & ~sinks[item]].mean(0)
            assert torch.allclose(new[item, column], expected, atol=1e-5)
    assert sinks.any()


def test_sinks_of_the_language_model_are_scaled_where_a_layer_returns_them():
    model, encoding, token, places = plant("llava")
    settings = SinkEdit(
        columns="language", act="scale", factor=0.5, at="layers", layers=(1,)
    )
    with planted(model, "llava", encoding, token=token, places=places):
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            old = model.layers_output[1].save()
        edited = eah.edit(model, settings)
        with torch.no_grad(), edited.trace(**encoding, use_cache=False):
            new = edited.layers_output[1].save()
        answer = edited.generate(**encoding, max_new_tokens=2)
    changed = (new != old).any(-1).nonzero().tolist()
    assert {tuple(place) for place in changed} == set(places)
    for item, column in places:
        assert torch.equal(new[item, column], 0.5 * old[item, column])
    assert answer.shape[0] == 2


@pytest.mark.parametrize("instead", ["random", "norm", "attention"])
def test_controls_edit_as_many_other_image_columns(instead):
    model, encoding, token, places = plant("llava")
    settings = SinkEdit(columns="tower", layers=(1,), instead=instead)
    with planted(model, "llava", encoding, token=token, places=places):
        found = find_sinks(model, encoding)
        patch, _ = run(model, encoding, settings)
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            norms = model.layers_input[1].norm(dim=-1).save()
            pattern = model.attention_probabilities[1].save()
    sinks, chosen = found.mask("tower"), patch.learned[1]
    assert torch.equal(chosen.sum(-1), sinks.sum(-1))
    assert not (chosen & (sinks | ~found.columns)).any()
    tokens = encoding["attention_mask"].bool()
    (item, column), (place, other) = sinks.nonzero()[0], chosen.nonzero()[0]
    assert item == place
    free = found.columns[item] & ~sinks[item]
    if instead == "norm":
        gap = (norms[item] - norms[item, column]).abs().masked_fill(~free, torch.inf)
        assert int(gap.argmin()) == other
    if instead == "attention":
        received = torch.zeros(pattern.shape[-1])
        for key in [*free.nonzero().flatten().tolist(), int(column)]:
            rows = [
                pattern[item, :, row, key].mean()
                for row in range(key + 1, pattern.shape[2])
                if tokens[item, row]
            ]
            received[key] = torch.stack(rows).mean()
        gap = (received - received[column]).abs().masked_fill(~free, torch.inf)
        assert int(gap.argmin()) == other


def test_settings_that_do_not_go_together_are_refused(as_users_run_it):
    with pytest.raises(SettingsError, match='"attention" goes with act="drop"'):
        SinkEdit(act="scale", instead="attention")
    with pytest.raises(SettingsError, match="made by its layers"):
        SinkEdit(columns="language", act="mean")
    with pytest.raises(SettingsError, match="factor must be a number"):
        SinkEdit(act="scale", factor="much")
    one = SinkEdit(columns="language", act="scale", at="layers", layers=(1,))
    assert SinkEdit.from_dict(one.to_dict()) == one


def test_a_study_gets_the_controls_that_fit():
    names = [c.name for c in control_conditions(SinkEdit(), name="no tower sinks")]
    assert names[:5] == [
        "baseline",
        "no tower sinks",
        "no tower sinks, random columns",
        "no tower sinks, like norm",
        "no tower sinks, like attention",
    ]
