"""Direct effects: equal to hand-written algebra, and complete on every family."""

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import Case, attribute_heads
from eah_interp.attribution.direct_path import linearise_norm, run_direct
from eah_interp.attribution.readouts import read_tokens
from eah_interp.errors import ModelError, NumericalError, SettingsError
from eah_interp.lvlm.inputs import Encoding
from eah_interp.testing import random_image, tiny_inputs, tiny_lvlm, tiny_processor
from tests.attribution.planted import COPIES, IRRELEVANT, OBJECT, build_planted
from tests.tiny_families import OFF, SUPPORTED, ignore_renamed, share_model, sweep

CONTROLS = ("densest", "mean", "uniform", "shuffled", 2)


def pose_tokens(encoding, terms_of_targets):
    """Read tokens of the first row: `{label: [(position, token, weight), ...]}`."""
    targets = [
        (label, 0, terms[0][0], label, terms)
        for label, terms in terms_of_targets.items()
    ]
    return Case(Encoding(encoding), None, read_tokens(targets))


def pose_answer(family, model):
    """Ask for tokens that the model does not switch off, at two positions."""
    encoding = tiny_inputs(family)
    last = encoding["input_ids"].shape[1] - 1
    with torch.no_grad(), model.trace(**Encoding(encoding), use_cache=False):
        logits = model.output.logits.save()
    on = (logits[0, last] > OFF).nonzero().flatten().tolist()
    return pose_tokens(
        encoding,
        {
            "a": [(last, on[7], 1.0)],
            "b": [(last, on[9], 1.0), (last, on[11], -1.0)],
            "c": [(last - 1, on[5], 0.5)],
        },
    )


# -- against algebra written by hand -------------------------------------------------


@torch.no_grad()
def effects_by_hand(hf_model, inputs, *, position, token):
    """Write Llama's direct path out: z W_O, the final norm's scale, the unembedding."""
    decoder = hf_model.model.language_model
    seen = {"z": [], "mlp": []}

    def keep_z(module, args):
        seen["z"].append(args[0][0, position])

    def keep_mlp(module, args, output):
        seen["mlp"].append(output[0, position])

    def keep_final(module, args):
        seen["final"] = args[0][0, position]

    handles = [decoder.norm.register_forward_pre_hook(keep_final)]
    for layer in decoder.layers:
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(keep_z))
        handles.append(layer.mlp.register_forward_hook(keep_mlp))
    logits = hf_model(**inputs, use_cache=False).logits
    for handle in handles:
        handle.remove()
    rms = (seen["final"].square().mean() + decoder.norm.variance_epsilon).sqrt()
    direction = decoder.norm.weight / rms * hf_model.lm_head.weight[token]
    heads = []
    for layer, z in zip(decoder.layers, seen["z"], strict=True):
        slices = z.split(layer.self_attn.head_dim)
        weights = layer.self_attn.o_proj.weight.split(layer.self_attn.head_dim, 1)
        heads.append(
            [w @ one @ direction for w, one in zip(weights, slices, strict=True)]
        )
    mlps = [output @ direction for output in seen["mlp"]]
    return torch.tensor(heads), torch.tensor(mlps), logits[0, position, token]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_direct_effects_equal_those_written_out_by_hand(attention):
    options = {"n_kv_heads": 2, "attn_implementation": attention}
    model = eah.wrap(tiny_lvlm("llava", **options), tiny_processor("llava"))
    inputs = model.encode(random_image(), "Is there a cat?")
    position, token = inputs["input_ids"].shape[1] - 2, 17
    found = attribute_heads(model, pose_tokens(inputs, {"x": [(position, token, 1.0)]}))
    heads, mlps, logit = effects_by_hand(
        tiny_lvlm("llava", **options), inputs, position=position, token=token
    )
    torch.testing.assert_close(found.plain.heads[0], heads, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.plain.blocks[0], mlps, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.plain.values[0], logit, atol=1e-5, rtol=1e-5)
    assert found.blocks == ("L0.mlp", "L1.mlp", "L2.mlp")


def test_the_planted_head_comes_first_and_the_irrelevant_one_has_no_effect():
    model = build_planted()
    word = OBJECT.strip()
    found = attribute_heads(model, random_image(), "Is there a", objects=[word])
    layer, head = COPIES
    assert found.top(1)["name"].tolist() == [f"L{layer}H{head}"]
    assert found.plain.heads[0][IRRELEVANT] == 0
    others = found.plain.heads.clone()
    others[0][COPIES] = 0
    assert not others.any()
    assert not found.plain.blocks.any()


# -- completeness --------------------------------------------------------------------


@ignore_renamed
@pytest.mark.parametrize("family", sweep([f for f in SUPPORTED if f != "inkling2"]))
def test_components_add_up_to_the_logit(family):
    model = share_model(family)
    case = pose_answer(family, model)
    layer = sorted(model.anatomy.sites)[-2:][0]
    found = attribute_heads(model, case, patch=eah.EAH(layers=(layer,)), sources=True)
    for run, settings in ((found.plain, None), (found.patched, found.patch)):
        with torch.no_grad(), model.trace(**case.inputs, use_cache=False):
            if settings is not None:
                eah.intervene(model, settings)
            logits = model.output.logits.save()
        values = case.readout.values(logits)
        torch.testing.assert_close(run.values, values, atol=1e-5, rtol=1e-5)
        assert float(run.error.max()) < 1e-4
        torch.testing.assert_close(run.sources.sum(-1), run.heads, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        found.change.total,
        found.patched.heads - found.plain.heads,
        atol=1e-6,
        rtol=1e-5,
    )
    assert found.change.total.abs().max() > 1e-4


def test_heads_that_feed_a_convolution_are_refused_by_name():
    model = share_model("inkling2")
    with pytest.raises(ModelError, match="heads of layer 0 return does not reach"):
        attribute_heads(model, pose_answer("inkling2", model))


def test_what_is_added_between_layers_is_counted():
    model = share_model("qwen3_vl")
    inputs = tiny_inputs("qwen3_vl")
    image = (inputs["input_ids"] == model.anatomy.image_token_id)[0].nonzero()
    place = int(image[1])
    found = attribute_heads(model, pose_tokens(inputs, {"x": [(place, 9, 1.0)]}))
    assert found.plain.between.abs().max() > 1e-3
    assert float(found.plain.error.max()) < 1e-4


def test_biases_are_counted():
    model = share_model("kosmos2")
    found = attribute_heads(model, pose_answer("kosmos2", model))
    assert found.plain.bias.abs().max() > 1e-2


# -- the patched run -----------------------------------------------------------------


@pytest.mark.parametrize("donor", CONTROLS)
@pytest.mark.parametrize("recipients", ["all", (0, 3)])
def test_patched_rows_explain_what_every_control_writes(donor, recipients):
    model = share_model("llava")
    case = pose_answer("llava", model)
    settings = eah.EAH(layers=(0, 1), donor=donor, recipients=recipients)
    run = run_direct(model, case, settings)
    for layer, rows in run.rows.items():
        mixed = run.mix(layer, rows)
        torch.testing.assert_close(mixed, run.outputs[layer], atol=1e-5, rtol=1e-4)


def test_in_the_first_patched_layer_only_the_pattern_is_new():
    model = share_model("llava")
    case = pose_answer("llava", model)
    found = attribute_heads(model, case, patch=eah.EAH(layers=(1,)))
    change, donor = found.change, int(found.donors[1][0])
    assert change.new_pattern[:, 0].abs().max() < 1e-5  # before the patch
    assert change.new_values[:, :2].abs().max() < 1e-5
    assert change.new_values[:, 2].abs().max() > 1e-4
    assert change.new_pattern[:, 1, donor].abs().max() < 1e-5
    others = [head for head in range(model.n_heads) if head != donor]
    assert (change.new_pattern[:, 1, others].abs().amax(0) > 1e-5).all()


# -- refusals ------------------------------------------------------------------------


def test_log_probabilities_are_refused(as_users_run_it):
    model = eah.load()
    with pytest.raises(SettingsError, match="not a sum of direct effects"):
        attribute_heads(model, random_image(), objects=["fish"], metric="log_prob")


def test_a_patch_that_does_not_fit_is_refused_before_any_forward(monkeypatch):
    model = eah.load()
    monkeypatch.setattr(type(model), "trace", None)
    with pytest.raises(SettingsError, match="layer 9 does not exist"):
        attribute_heads(
            model, random_image(), objects=["fish"], patch=eah.EAH(layers=(9,))
        )


def test_a_token_that_the_model_switches_off_is_refused():
    model = share_model("chameleon")
    inputs = tiny_inputs("chameleon")
    last = inputs["input_ids"].shape[1] - 1
    with torch.no_grad(), model.trace(**Encoding(inputs)):
        logits = model.output.logits.save()
    token = int((logits[0, last] < OFF).nonzero()[0])
    with pytest.raises(NumericalError, match="unexplained"):
        attribute_heads(model, pose_tokens(inputs, {"x": [(last, token, 1.0)]}))


def test_a_module_that_is_no_norm_is_refused():
    stream = torch.randn(2, 3, 8)
    with pytest.raises(ModelError, match="neither an RMS norm nor a layer norm"):
        linearise_norm(torch.nn.Identity(), stream, stream.tanh())
