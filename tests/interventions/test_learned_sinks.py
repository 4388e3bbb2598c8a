"""A recipient loses to a learned sink what its donor loses, whoever holds the sink.

Inkling 2 hands the sink's logit of each row to its attention call; gpt-oss keeps one
per head as a weight, which its attention reads by itself.
"""

import functools

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import ModelError, UnsupportedError
from eah_interp.interventions.donation import column_priority, layer_seed
from eah_interp.lvlm import attention
from eah_interp.lvlm.anatomy import attention_operation
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.spans import image_mask, image_token_id
from eah_interp.testing import FAMILIES, random_image, tiny_inputs, tiny_lvlm
from tests.alignment import assert_as_alike
from tests.crossed import cross
from tests.oracle_forward import OracleEAH, oracle_generate, oracle_logits

SINKS = ["inkling2", "internvl_gpt_oss"]
IMAGES = [[random_image(0)], [random_image(1, width=48, height=32)]]
QUESTIONS = [" what ?", " is there a cat near the boat ?"]
SETTINGS = {
    "all layers": eah.EAH(layers=(0, 1, 2)),
    "some recipients": eah.EAH(recipients=(0, 3)),
    "some recipients of a head": eah.EAH(donor=1, recipients=(2,), layers=(2,)),
    "paper, sparsest": eah.EAH.paper(donor="sparsest"),
    "official": eah.EAH.official(layers=(1,), beta=0.03),
    "mean": eah.EAH(donor="mean", layers=(1, 2)),
    "uniform": eah.EAH(donor="uniform", layers=(1, 2)),
    "shuffled": eah.EAH(donor="shuffled", seed=3),
}


def wrapped(family, n_kv_heads=2):
    plain = tiny_lvlm(family, n_kv_heads=n_kv_heads, attn_implementation="eager")
    return eah.wrap(plain)


@functools.cache
def untouched(family, n_kv_heads=2):
    return tiny_lvlm(family, n_kv_heads=n_kv_heads, attn_implementation="eager")


def encode(family):
    prompts = [FAMILIES[family].placeholder + question for question in QUESTIONS]
    return tiny_inputs(family, images=IMAGES, prompts=prompts)


def build_oracle(family, settings, encoding):
    images = image_mask(encoding["input_ids"], image_token_id(untouched(family).config))
    recipients = None
    if settings.recipients != "all":
        recipients = torch.zeros(2, 4, dtype=torch.bool)
        recipients[:, list(settings.recipients)] = True
    return OracleEAH(
        image_mask=images,
        token_mask=encoding["attention_mask"].bool(),
        layers=settings.layers,
        definition=settings.definition,
        beta=settings.beta,
        donor=settings.donor,
        recipients=recipients,
        steps=settings.steps,
        official=settings.items == "first",
        priority=column_priority(images, layer_seed(settings, 1)),
    )


def run_patched(model, settings, encoding):
    with torch.no_grad(), model.trace(**encoding):
        patch = eah.intervene(model, settings)
        logits = model.output.logits.save()
    return patch, logits


@pytest.mark.parametrize("family", SINKS)
def test_sinks_take_a_share_that_differs_between_heads(family):
    """Else the tests below would not see a sink that is left out of a broadcast."""
    encoding = encode(family)
    real = encoding["attention_mask"].bool()
    with torch.no_grad():
        found = untouched(family)(**encoding, output_attentions=True)
    for pattern in found.attentions:
        mass = pattern.sum(-1).transpose(1, 2)[real]
        assert mass.mean() < 0.97
        assert mass.amin(0).max() < 0.9  # in some row of each head
        assert (mass.amax(1) - mass.amin(1)).mean() > 0.05


@pytest.mark.parametrize(
    ("name", "family", "n_kv_heads"), cross([*SETTINGS], [*SINKS], [4, 2, 1])
)
def test_a_patched_forward_equals_the_slow_oracle_with_sinks(name, family, n_kv_heads):
    settings, encoding = SETTINGS[name], encode(family)
    oracle = build_oracle(family, settings, encoding)
    plain = untouched(family, n_kv_heads)
    expected = oracle_logits(plain, encoding, edit_pattern=oracle).logits
    patch, logits = run_patched(wrapped(family, n_kv_heads), settings, encoding)
    real = encoding["attention_mask"].bool()
    assert (logits - expected)[real].abs().max() <= 1e-5 * expected[real].abs().max()
    for layer in settings.layers:
        if settings.donor not in ("mean", "uniform"):
            assert patch[layer].donors.tolist() == oracle.donors[layer].tolist()


@pytest.mark.parametrize("left_out", ["sinks", "position_bias"])
def test_without_its_sink_or_its_bias_a_broadcast_is_another(left_out, monkeypatch):
    kept = tuple(name for name in attention._PER_HEAD if name != left_out)
    settings, encoding = eah.EAH(), encode("inkling2")
    _, logits = run_patched(wrapped("inkling2"), settings, encoding)
    model = wrapped("inkling2")
    monkeypatch.setattr(attention, "_PER_HEAD", kept)
    _, other = run_patched(model, settings, encoding)
    assert (other - logits).abs().max() > 5e-3 * logits.abs().max()


def test_every_recipient_has_the_donors_pattern_and_lost_mass():
    model, encoding = wrapped("inkling2"), encode("inkling2")

    def pattern_under(settings):
        with torch.no_grad(), model.trace(**encoding):
            eah.intervene(model, settings)
            operation = attention_operation(model, model.anatomy.site(1))
            pattern = operation.output[1].save()
        return pattern

    pattern = pattern_under(eah.EAH(donor=2))
    own = pattern_under(eah.EAH(beta=1e6))  # no head is dense enough to donate
    assert torch.equal(pattern[:, 2], own[:, 2])
    run = oracle_logits(untouched("inkling2"), encoding)
    donor = run.patterns[1][:, 2:3].expand_as(pattern)
    assert_as_alike(pattern, donor, plain=(own, run.patterns[1]))


@pytest.mark.parametrize("family", SINKS)
@pytest.mark.parametrize("steps", ["prefill", "all"])
def test_generation_with_sinks_under_an_edit_equals_the_slow_oracle(family, steps):
    settings, encoding = eah.EAH(steps=steps), encode(family)
    oracle = build_oracle(family, settings, encoding)
    expected = oracle_generate(
        untouched(family), encoding, edit_pattern=oracle, max_new_tokens=6
    )
    patched = eah.edit(wrapped(family), settings)
    ids = patched.generate(**encoding, max_new_tokens=6, do_sample=False)
    assert ids.tolist() == expected.tolist()


def test_an_item_without_a_donor_keeps_what_its_heads_return_bit_for_bit():
    """Where the pattern is remade for gpt-oss, only who is patched gets the new one.

    Its logits keep no bits: experts multiply the tokens of all items together, and
    those of the patched item choose other experts.
    """
    encoding = encode("internvl_gpt_oss")
    model = wrapped("internvl_gpt_oss")

    out_proj = model.model.language_model.layers[1].self_attn.o_proj
    with torch.no_grad(), model.trace(**encoding):
        plain_heads = out_proj.input.save()
        plain = model.output.logits.save()
    with torch.no_grad(), model.trace(**encoding):
        patch = eah.intervene(model, eah.EAH(items="first"))
        heads = out_proj.input.save()
        logits = model.output.logits.save()
    assert patch.donors.tolist()[1] == -1 != patch.donors.tolist()[0]
    assert torch.equal(heads[1], plain_heads[1])
    assert not torch.equal(heads[0], plain_heads[0])
    assert_as_alike(logits[1], plain[1], plain=(plain, plain))


@pytest.mark.parametrize("family", SINKS)
def test_a_hidden_picture_leaves_its_attention_to_words_and_sink(family):
    """In every row, of pictures and of words: hidden before the softmax, not after."""
    encoding = encode(family)
    images = image_mask(encoding["input_ids"], image_token_id(untouched(family).config))

    def hide(layer, pattern, visible):
        new = pattern.double()
        if layer == 1:
            in_sink = 1 - new[:, 2].sum(-1, keepdim=True)
            words = new[:, 2].masked_fill(images[:, None], 0)
            new[:, 2] = words / (words.sum(-1, keepdim=True) + in_sink)
        return new

    run = oracle_logits(untouched(family), encoding, edit_pattern=hide)
    settings = eah.Ablation(heads=("L1H2",), how="knockout")
    _, logits = run_patched(wrapped(family), settings, encoding)
    real = encoding["attention_mask"].bool()
    size = run.logits[real].abs().max()
    assert (logits - run.logits)[real].abs().max() <= 1e-5 * size


def test_sinks_that_are_weights_cannot_be_broadcast_at_the_inputs():
    model, encoding = wrapped("internvl_gpt_oss"), encode("internvl_gpt_oss")
    with torch.no_grad(), model.trace(**encoding):
        operation = attention_operation(model, model.anatomy.site(1))
        inputs = operation.inputs.save()
    call = AttentionCall.parse(inputs)
    assert call.sinks_are_weights
    with pytest.raises(UnsupportedError, match="reads learned sinks off its own"):
        call.broadcast(torch.tensor([0, 1]))


def test_sinks_that_the_call_does_not_show_are_refused(monkeypatch):
    """As if gpt-oss read a sink off its module without a word."""
    plain = tiny_lvlm("internvl_gpt_oss", attn_implementation="eager")
    monkeypatch.setattr(AttentionCall, "_sink_logits", lambda _: None)
    with pytest.raises(ModelError, match="learned sinks or a bias that its call"):
        eah.wrap(plain)
