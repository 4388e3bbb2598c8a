"""The check at load: what it refuses and why, what it costs, what it leaves behind."""

import re

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import ModelError
from eah_interp.testing import random_image, tiny_folder, tiny_lvlm, tiny_processor


def attend_with_learned_sink(module, query, key, value, mask, scaling, **kwargs):
    """Attend with a sink that no query or key explains."""
    logits = query @ key.transpose(2, 3) * scaling + (0 if mask is None else mask)
    extra = torch.full_like(logits[..., :1], 1.0)
    weights = torch.cat([logits, extra], -1).softmax(-1)[..., :-1]
    return (weights @ value).transpose(1, 2).contiguous(), weights


def attend_to_nothing(module, query, key, value, mask, **kwargs):
    """Return zeros, whatever the queries and keys."""
    return (value.transpose(1, 2) * 0).contiguous(), None


def test_a_model_with_learned_sinks_is_refused_by_verification(monkeypatch):
    import transformers.models.llama.modeling_llama as modelling

    monkeypatch.setattr(modelling, "eager_attention_forward", attend_with_learned_sink)
    broken = tiny_lvlm("llava", attn_implementation="eager")
    with pytest.raises(ModelError, match=r"layer 0 is not explained by its queries"):
        eah.wrap(broken)
    assert eah.wrap(broken, verify=False).verified is False


def test_a_model_that_ignores_its_heads_is_refused_by_verification(monkeypatch):
    import transformers.models.llama.modeling_llama as modelling

    monkeypatch.setattr(modelling, "eager_attention_forward", attend_to_nothing)
    broken = tiny_lvlm("llava", attn_implementation="eager")
    with pytest.raises(ModelError, match=r"not explained by its queries"):
        eah.wrap(broken)


def test_verification_takes_five_forwards_and_no_image(monkeypatch):
    hf_model = tiny_lvlm("llava")
    calls = []
    hf_model.model.language_model.register_forward_pre_hook(
        lambda *_: calls.append("decoder")
    )
    hf_model.model.vision_tower.register_forward_pre_hook(
        lambda *_: calls.append("vision")
    )
    eah.wrap(hf_model)
    assert calls == ["decoder"] * 5


def test_verification_leaves_the_attention_modules_as_they_were():
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    paths = [site.path for site in model.anatomy.sites.values()]
    states = [model._module.get_submodule(path).__nnsight__ for path in paths]
    assert [state.sourced for state in states] == [False, False, False]
    with torch.no_grad(), model.trace(random_image(), "what ?"):
        eah.intervene(model, eah.EAH(layers=(1,)))
    assert [state.sourced for state in states] == [False, True, False]


def test_verification_happens_at_dispatch_when_loading_lazily(tmp_path):
    folder = tiny_folder(tmp_path, "llava")
    lazy = eah.load(folder, dispatch=False)
    assert not lazy.verified
    assert lazy.n_layers == 3
    with torch.no_grad(), lazy.trace(random_image(), "what ?"):
        eah.intervene(lazy)
    assert lazy.verified


# ---- Models whose plain runs differ.

IDENTITY_RUN = 3
"""Which run is the one of the identity patch, after three plain ones."""


def add_noise(hf_model, size, seed=0):
    """Add fresh noise of this size, in units of the logits' range, at each forward."""
    generator = torch.Generator().manual_seed(seed)

    def hook(module, args, logits):
        drawn = torch.rand(logits.shape, generator=generator) - 0.5
        return logits + (size * (logits.max() - logits.min()) * drawn).to(logits)

    hf_model.lm_head.register_forward_hook(hook)
    return hf_model


def add_at(hf_model, where, size=1e-4):
    """Add the same to all logits at some of the forwards, counted from 0."""
    counted = iter(range(100))

    def hook(module, args, logits):
        return logits + size if next(counted) in where else logits

    hf_model.lm_head.register_forward_hook(hook)
    return hf_model


def silence_attention(hf_model):
    """Let nothing that the decoder's heads return reach its output."""
    for layer in hf_model.model.language_model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    return hf_model


@pytest.mark.parametrize("seed", range(6))
def test_a_model_with_a_little_noise_is_accepted(seed):
    assert eah.wrap(add_noise(tiny_lvlm("llava"), 5e-4, seed)).verified


def test_in_bfloat16_a_rounding_of_a_logit_is_a_little_noise():
    hf_model = tiny_lvlm("llava", dtype=torch.bfloat16)
    assert eah.wrap(add_noise(hf_model, 4e-3)).verified


def test_a_model_with_much_noise_is_refused_as_not_deterministic():
    hf_model = add_noise(tiny_lvlm("llava"), 1e-2)
    said = r"not deterministic: plain runs of one prompt differ by (\S+), .* model.eval"
    with pytest.raises(ModelError, match=said) as caught:
        eah.wrap(hf_model)
    measured, allowed = map(
        float, re.findall(r"(?:by|most) ([\d.e-]+)", str(caught.value))
    )
    # Two draws differ by almost twice what one may add.
    assert 8 * allowed < measured < 10.1 * allowed


def test_a_model_with_dropout_at_work_is_told_to_call_eval():
    hf_model = tiny_lvlm("llava", attn_implementation="eager").train()
    for layer in hf_model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(ModelError, match=r"not deterministic: .* call model.eval\(\)"):
        eah.wrap(hf_model)


def test_noise_that_three_runs_do_not_show_is_looked_for_in_more():
    assert eah.wrap(add_at(tiny_lvlm("llava"), (IDENTITY_RUN, 5))).verified


@pytest.mark.parametrize("noise", [0, 1e-6])
def test_an_identity_patch_that_changes_more_than_plain_runs_differ_is_refused(noise):
    hf_model = add_at(tiny_lvlm("llava"), (IDENTITY_RUN,))
    if noise:
        add_noise(hf_model, noise)
    said = "an identity patch .* changes the logits by .*: expected "
    said += r"at most \S+, as between plain runs" if noise else "exactly 0;"
    with pytest.raises(ModelError, match=said):
        eah.wrap(hf_model)


@pytest.mark.parametrize("noise", [0, 1e-4])
def test_a_hook_point_that_does_nothing_is_refused_for_that(noise):
    """With noise the logits do change, by no more than they do unpatched."""
    hf_model = silence_attention(tiny_lvlm("llava"))
    if noise:
        add_noise(hf_model, noise)
    said = "leaves the logits unchanged .* does not reach the output"
    with pytest.raises(ModelError, match=said):
        eah.wrap(hf_model)


def test_logits_that_are_no_numbers_are_refused_for_that():
    hf_model = tiny_lvlm("llava")
    hf_model.lm_head.weight.data[0] = torch.nan
    with pytest.raises(ModelError, match=r"a plain run gives NaN .*torch.float32"):
        eah.wrap(hf_model)


@pytest.mark.parametrize("off", [-torch.inf, torch.finfo(torch.float32).min])
def test_logits_that_are_switched_off_are_no_part_of_the_range(off):
    def switch_off(module, args, logits):
        return torch.cat([torch.full_like(logits[..., :1], off), logits[..., 1:]], -1)

    for noise in (0, 1e-2):
        hf_model = add_noise(tiny_lvlm("llava"), noise)
        hf_model.lm_head.register_forward_hook(switch_off)
        if not noise:
            assert eah.wrap(hf_model).verified
            continue
        with pytest.raises(ModelError, match="not deterministic"):
            eah.wrap(hf_model)


def test_heads_that_all_attend_alike_have_nothing_to_show():
    """As where a model is built by hand: a broadcast changes nothing that heads do."""
    hf_model = tiny_lvlm("llava")
    for layer in hf_model.model.language_model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    assert eah.wrap(hf_model).verified
