"""Donors and densities by sinks of one kind, against a slow count."""

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.interventions import find_sinks, map_tower
from tests.interventions.test_find_sinks import planted
from tests.tiny_families import encode, ignore_renamed, share_model

pytestmark = ignore_renamed


def plant(family):
    """Choose a token of the tower and columns of the decoder to make sinks of."""
    model, encoding = share_model(family), encode(family)
    links = map_tower(model, encoding)
    token = int(links.links[links.links[:, 1] == 0, 0][3])
    mine = links.columns_of(token)
    others = [
        (item, column)
        for item, column in links.columns.nonzero().tolist()
        if (item, column) not in mine
    ]
    return model, encoding, token, (others[2], others[5], others[-2])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "llama4"])
def test_sinks_of_one_kind_are_counted_and_no_others(family):
    model, encoding, token, places = plant(family)
    with planted(model, family, encoding, token=token, places=places):
        found = find_sinks(model, encoding)
        every = eah.score_sinks(model, encoding)
        tower = eah.score_sinks(model, encoding, columns="tower")
        language = eah.score_sinks(model, encoding, columns="language")
    n_columns = every.columns.sum(-1)[:, None, None]
    of_tower = found.mask("tower")[:, None, None]
    assert torch.equal(tower.sinks, every.sinks & of_tower)
    assert torch.allclose(tower.density, tower.sinks.sum(-1) / n_columns)
    # Massive where layer 1 returns, so a sink of the language model from layer 2 on.
    late = torch.tensor([layer >= 2 for layer in language.layers])[None, :, None, None]
    of_language = found.mask("language")[:, None, None] & late
    assert torch.equal(language.sinks, every.sinks & of_language)
    assert torch.allclose(language.density, language.sinks.sum(-1) / n_columns)
    assert (tower.counted, every.counted) == ("tower", "all")
    assert "sinks of the tower kind" in " ".join(repr(tower).split())


@pytest.mark.parametrize("kind", ["tower", "language"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_donor_is_the_densest_in_sinks_of_that_kind(family, kind):
    model, encoding, token, places = plant(family)
    settings = eah.EAH(layers=(2,), columns=kind, beta=0.5)
    with planted(model, family, encoding, token=token, places=places):
        scored = eah.score_sinks(model, encoding, columns=kind, beta=0.5)
        with torch.no_grad(), model.trace(**encoding):
            patch = eah.intervene(model, settings)
            logits = model.logits.save()
        at = scored.layers.index(2)
        assert torch.equal(patch[2].density, scored.density[:, at])
        assert torch.equal(patch[2].donors, scored.donors[:, at])
        by_hand = []
        for item, donor in enumerate(scored.donors[:, at].tolist()):
            fixed = eah.EAH(layers=(2,), donor=max(donor, 0))
            with torch.no_grad(), model.trace(**encoding):
                if donor >= 0:
                    eah.intervene(model, fixed)
                by_hand.append(model.logits[item].save())
    assert (scored.donors[:, at] >= 0).any()
    for item, one in enumerate(by_hand):
        assert torch.allclose(logits[item], one, atol=1e-4)


def test_a_run_with_gradients_or_two_patches_has_the_same_donors():
    model, encoding, token, places = plant("llava")
    settings = eah.EAH(layers=(1,), columns="tower", beta=0.5)
    with planted(model, "llava", encoding, token=token, places=places):
        with torch.no_grad(), model.trace(**encoding):
            alone = eah.intervene(model, settings)
            logits = model.logits.save()
        assert not logits.requires_grad
        with model.trace(**encoding):
            again = eah.intervene(model, settings)
        edited = eah.edit(model, settings)
        with torch.no_grad(), edited.trace(**encoding):
            other = eah.EAH(layers=(2,), columns="tower", beta=0.5)
            eah.intervene(edited, other)
            both = edited.logits.save()
        text = edited.generate(**encoding, max_new_tokens=2)
    assert torch.equal(alone.donors, again.donors)
    assert not torch.allclose(both, logits)
    assert not both.requires_grad
    assert text.shape[1] > encoding["input_ids"].shape[1]


def test_settings_of_all_columns_are_written_as_before(as_users_run_it):
    assert "columns" not in eah.EAH().to_dict()
    one = eah.EAH(columns="tower")
    assert eah.EAH.from_dict(one.to_dict()) == one
    assert eah.EAH.from_dict(eah.EAH().to_dict()) == eah.EAH()
    with pytest.raises(SettingsError, match="columns must be"):
        eah.EAH(columns="text")
    with pytest.raises(SettingsError, match="columns must be"):
        eah.score_sinks(share_model("llava"), encode("llava"), columns="text")


def test_kinds_that_a_model_does_not_have_are_refused_by_name():
    for family, why in (("chameleon", "no tower of layers"), ("blip_2", "resampler")):
        model, encoding = share_model(family), encode(family)
        with pytest.raises(UnsupportedError, match=why):
            eah.score_sinks(model, encoding, columns="tower")
        eah.score_sinks(model, encoding, columns="language")


def test_a_kind_is_found_in_the_prompt():
    model, encoding = share_model("llava"), encode("llava")
    settings = eah.EAH(columns="language", steps="all")
    refused = pytest.raises(UnsupportedError, match="called first at step 1")
    with (
        refused,
        torch.no_grad(),
        model.generate(**encoding, max_new_tokens=3, min_new_tokens=3) as tracer,
    ):
        for _ in tracer.iter[1:]:
            eah.intervene(model, settings)


def test_hooks_of_transformer_lens_know_no_kinds():
    hooks = pytest.importorskip("eah_interp.transformer_lens.hooks")
    with pytest.raises(SettingsError, match="columns='tower': these hooks do not"):
        hooks.eah_hooks(None, eah.EAH(columns="tower"), inputs={})
