"""Attribution patching: equal to plain autograd and finite differences, and checked."""

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import Case
from eah_interp.attribution.gradient import approximate_heads
from eah_interp.attribution.gradient_runs import run_with_gradients
from eah_interp.attribution.patching import patch_heads
from eah_interp.attribution.readouts import read_tokens
from eah_interp.attribution.replay import prepare_replay
from eah_interp.attribution.runs import record
from eah_interp.lvlm.inputs import Encoding
from eah_interp.lvlm.spans import image_mask
from eah_interp.testing import FAMILIES as FACTS
from eah_interp.testing import random_image, tiny_inputs, tiny_lvlm
from tests.attribution.planted import COPIES, IRRELEVANT, OBJECT, build_planted
from tests.attribution.test_direct import pose_answer
from tests.crossed import cross
from tests.oracle_forward import OracleEAH, decoder_attentions, replaced_patterns
from tests.tiny_families import SUPPORTED, ignore_renamed, share_model, sweep

FAMILIES = [
    ("llava", 4),
    ("llava", 2),
    ("gemma3", 2),
    ("lfm2_vl", 2),  # convolutions between its attention layers
]


def pose_two(family, picture=0):
    """Read two tokens at the answer, and a third three tokens before it."""
    image = random_image(picture)
    encoding = tiny_inputs(family, images=[[image]], prompts=[prompt_of(family)])
    last = encoding["input_ids"].shape[1] - 1
    aims = [
        ("a", 0, last, "a", [(last, 17, 1.0), (last, 30, -1.0)]),
        ("b", 0, last - 3, "b", [(last - 3, 21, 1.0)]),
    ]
    return Case(Encoding(encoding), None, read_tokens(aims))


def prompt_of(family):
    return f"{FACTS[family].placeholder} what is on the left ?"


# -- the oracle: plain transformers, hooks on the output projection -------------------


class Seen:
    """One run of the oracle: what its heads returned, and where they looked."""

    def __init__(self, hf_model, case, eah_of=None):
        self.z, self.patterns, handles = {}, {}, []

        def keep(layer):
            def hook(module, args):
                self.z[layer] = args[0]
                args[0].retain_grad()

            return hook

        def edit(layer, pattern, visible):
            new = pattern if eah_of is None else eah_of(layer, pattern, visible)
            new.retain_grad()
            self.patterns[layer] = new
            return new

        attentions = decoder_attentions(hf_model)
        for layer, attention in attentions.items():
            named = dict(attention.named_children())
            proj = named.get("o_proj", named.get("out_proj"))
            handles.append(proj.register_forward_pre_hook(keep(layer)))
        with replaced_patterns(hf_model, edit):
            logits = hf_model(**case.inputs, use_cache=False).logits
        for handle in handles:
            handle.remove()
        self.values = [
            self._read(case.readout, logits, target)
            for target in range(len(case.readout.targets))
        ]

    def _read(self, readout, logits, target):
        total = 0.0
        for owner, place, token, weight in zip(
            readout.owner.tolist(),
            readout.positions.tolist(),
            readout.tokens.tolist(),
            readout.weights.tolist(),
            strict=True,
        ):
            if owner == target:
                row = logits[0, place]
                if readout.metric == "log_prob":
                    row = row.log_softmax(-1)
                total = total + weight * row[token]
        return total


def approximate_by_hand(source, target, n_heads, what):
    """Multiply differences of z, or of whole patterns, by their gradients."""
    effects = []
    for value in target.values:
        for tensor in [*target.z.values(), *target.patterns.values()]:
            tensor.grad = None
        value.backward(retain_graph=True)
        rows = []
        for layer in target.z:
            if what == "output":
                change = (source.z[layer] - target.z[layer]) * target.z[layer].grad
                rows.append(change[0].view(len(change[0]), n_heads, -1).sum((0, 2)))
            else:
                pattern = target.patterns[layer]
                change = (source.patterns[layer] - pattern) * pattern.grad
                rows.append(change[0].sum((1, 2)))
        effects.append(torch.stack(rows).detach())
    return torch.stack(effects)


def settings_pair(direction, layer, masks):
    """Name the two runs, for our code and for the oracle."""
    settings = eah.EAH(layers=(layer,))
    oracle = OracleEAH(**masks, layers=(layer,))
    if direction == "into plain":
        return {"source": settings, "target": "plain"}, (oracle, None)
    return {"source": "plain", "target": settings}, (None, oracle)


@pytest.mark.parametrize(
    ("grouped", "attention", "direction", "what"),
    cross(
        [*FAMILIES],
        ["eager", "sdpa"],
        ["into plain", "out of EAH"],
        ["output", "pattern"],
    ),
)
def test_attribution_patching_is_the_gradient_times_the_change(
    grouped, attention, direction, what
):
    family, groups = grouped
    options = {"n_kv_heads": groups, "n_layers": 4}
    model = eah.wrap(tiny_lvlm(family, attn_implementation=attention, **options))
    plain = tiny_lvlm(family, attn_implementation="eager", **options)
    case = pose_two(family)
    masks = {
        "image_mask": image_mask(
            case.encoding["input_ids"], model.anatomy.image_token_id
        ),
        "token_mask": case.encoding["attention_mask"].bool(),
    }
    layer = sorted(model.anatomy.sites)[0]
    ours, theirs = settings_pair(direction, layer, masks)
    source, target = (Seen(plain, case, side) for side in theirs)
    expected = approximate_by_hand(source, target, model.n_heads, what)
    found = approximate_heads(model, case, what=what, check=0, **ours)
    assert found.layers == tuple(target.z)
    torch.testing.assert_close(found.approximate, expected, atol=2e-5, rtol=1e-3)
    assert (found.approximate.abs().amax((0, 2)) > 1e-3).any()
    values = torch.stack(target.values).detach()
    torch.testing.assert_close(found.values, values, atol=1e-5, rtol=1e-5)
    values = torch.stack(source.values).detach()
    torch.testing.assert_close(found.source_values, values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("what", ["output", "pattern", "values"])
def test_another_picture_can_be_the_source(what):
    model = eah.wrap(tiny_lvlm("llava"))
    plain = tiny_lvlm("llava", attn_implementation="eager")
    case, other = pose_two("llava"), pose_two("llava", picture=5)
    found = approximate_heads(
        model, case, source="plain", source_images=other, what=what, check=12
    )
    if what != "values":
        source, target = Seen(plain, other), Seen(plain, case)
        expected = approximate_by_hand(source, target, 4, what)
        torch.testing.assert_close(found.approximate, expected, atol=2e-5, rtol=1e-3)
    exact = patch_heads(model, case, source="plain", source_images=other, what=what)
    exact = exact.effects.view_as(found.exact)
    torch.testing.assert_close(found.exact, exact, atol=1e-5, rtol=1e-4)


@ignore_renamed
@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_gradients_are_finite_differences_in_every_family(family):
    """Nothing on the way to the logits drops gradients without saying so."""
    model = share_model(family)
    case = pose_answer(family, model)
    run = run_with_gradients(model, case, None)
    replay = prepare_replay(model, record(model, case))
    gradients = run.gradients(1)
    generator = torch.Generator().manual_seed(0)
    for layer in (min(run.heads), max(run.heads)):
        z, slope = run.recording.heads[layer], gradients[layer]
        # along the gradient, so that rounding is small beside what a step does; not
        # across z itself, where a router may be about to send a token elsewhere
        way = slope / slope.norm() + 0.1 * torch.randn(slope.shape, generator=generator)
        step = 3e-3 * z.norm() / way.norm() * way
        rows = torch.cat([z + step, z + step / 2, z - step / 2, z - step])

        def write(layer, operation, call, rows=rows):
            operation.output = (rows, *operation.output[1:])

        with torch.no_grad():
            values = replay.run(model, 4, start=layer, at_calls={layer: write})[:, 1]
        expected = float(values[0] - values[1] + values[2] - values[3])
        found = float((slope * step).sum())
        assert found == pytest.approx(expected, rel=0.03, abs=2e-5)
        assert abs(expected) > 1e-4


def test_where_everything_after_is_linear_it_is_exact():
    model = build_linear()
    case = pose_two("llava")
    found = approximate_heads(
        model, case, source="plain", source_images=pose_two("llava", 3), check=8
    )
    assert found.agreement.largest_error.max() < 1e-4
    assert found.exact[~found.exact.isnan()].abs().max() > 0.1
    assert (found.agreement.correlation > 0.9999).all()
    assert (found.agreement.same_sign == 1).all()


def build_linear():
    """Build a LLaVA of one layer after which there is neither MLP nor norm."""
    hf_model = tiny_lvlm("llava", n_layers=1, n_heads=8)
    decoder = hf_model.model.language_model
    decoder.layers[0].mlp.down_proj.weight.data.zero_()
    decoder.norm = torch.nn.Identity()
    return eah.wrap(hf_model)


def test_the_planted_head_comes_first_and_the_irrelevant_one_has_no_effect():
    model, question = build_planted(), "Is there a"
    pictures = {"source": "plain", "source_images": random_image(4)}
    for method in ("attribution_patching", "integrated_gradients"):
        found = approximate_heads(
            model,
            random_image(),
            question,
            objects=[OBJECT.strip()],
            method=method,
            check=12,
            **pictures,
        )
        layer, head = COPIES
        assert found.top(1)["name"].tolist() == [f"L{layer}H{head}"]
        assert found.approximate[0][IRRELEVANT] == 0
        assert abs(found.exact[0][IRRELEVANT]) < 1e-6
        assert found.agreement.same_sign == 1
        assert found.approximate[0][COPIES].sign() == found.exact[0][COPIES].sign()


# -- items and targets ---------------------------------------------------------------


def test_a_batch_is_its_items_one_by_one():
    model = share_model("llava")
    pictures, question = [random_image(0), random_image(1)], "Is there a dog?"
    settings = eah.EAH(donor="random", seed=(3, 8))
    asked = {"metric": "yes_no", "check": 5}
    both = approximate_heads(model, pictures, question, source=settings, **asked)
    for item, picture in enumerate(pictures):
        alone = eah.EAH(donor="random", seed=settings.seed[item])
        one = approximate_heads(model, picture, question, source=alone, **asked)
        pair = (both.approximate[item], one.approximate[0])
        torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-4)
        pair = (both.exact[item], one.exact[0])
        torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("metric", ["logit", "log_prob"])
def test_each_mention_in_a_caption_is_a_target_of_its_own(metric):
    model = share_model("llava")
    asked = {
        "objects": ["dog", "cat"],
        "caption": "a dog and a cat and a dog .",
        "metric": metric,
        "source": eah.EAH(),
    }
    found = approximate_heads(model, random_image(), check=12, **asked)
    assert [target.label for target in found.targets] == ["dog", "cat", "dog"]
    exact = patch_heads(model, random_image(), **asked).effects.view_as(found.exact)
    torch.testing.assert_close(found.exact, exact, atol=1e-5, rtol=1e-4)
    assert (found.agreement.correlation > 0.8).all()
    assert len({tuple(each.flatten().tolist()) for each in found.approximate}) == 3


# -- honesty -------------------------------------------------------------------------


def find(model, **asked):
    return approximate_heads(
        model, pose_two("llava"), source=eah.EAH(layers=(0,)), **asked
    )


def test_checked_heads_are_those_drawn_by_the_seed():
    model = share_model("llava")
    found, again, other = (find(model, check=5, seed=seed) for seed in (1, 1, 2))
    assert found.agreement.n_checked == 5
    assert torch.equal(found.exact.isnan(), again.exact.isnan())
    assert not torch.equal(found.exact.isnan(), other.exact.isnan())
    table = found.frame()
    assert table["exact"].notna().sum() == 5 * len(found.targets)
    assert table["approximate"].notna().all()
    assert len(found.top(2, by="exact")) == 2 * len(found.targets)


def test_agreement_is_that_of_the_checked_heads():
    found = find(share_model("llava"), check=7)
    table = found.frame().dropna()
    for target, part in table.groupby("target"):
        error = (part["approximate"] - part["exact"]).abs().max()
        assert float(found.agreement.largest_error[target]) == pytest.approx(error)
        correlation = part["approximate"].corr(part["exact"])
        assert float(found.agreement.correlation[target]) == pytest.approx(
            correlation, abs=1e-5
        )
    assert "7 heads checked" in str(found.agreement)


@pytest.mark.parametrize(
    ("check", "reason"), [(0, "not checked"), (2, "a correlation takes 3"), (12, "")]
)
def test_what_is_missing_is_said(check, reason):
    agreement = find(share_model("llava"), check=check).agreement
    assert agreement.n_checked == check
    assert (
        agreement.reason.startswith(reason) if not reason else reason in str(agreement)
    )
    assert bool(agreement.correlation.isnan().all()) == (check < 3)
    assert bool(agreement.largest_error.isnan().all()) == (check == 0)
    assert bool(agreement.same_sign.isnan().all()) == (check == 0)


def test_effects_that_are_all_the_same_have_no_correlation():
    same = approximate_heads(
        share_model("llava"), pose_two("llava"), source="plain", check=4
    )
    assert not same.approximate.any()
    assert same.agreement.correlation.isnan().all()
    assert "all effects are the same" in str(same.agreement)
    assert (same.agreement.same_sign == 1).all()


def test_a_result_is_saved_and_loaded(tmp_path):
    found = find(share_model("llava"), check=3)
    again = type(found).load(found.save(tmp_path / "found"))
    torch.testing.assert_close(again.exact, found.exact, equal_nan=True)
    assert str(again.agreement) == str(found.agreement)
    assert again.source_patch == found.source_patch
    assert found.plot(1).axes[0].get_title() == "output: EAH into plain"
