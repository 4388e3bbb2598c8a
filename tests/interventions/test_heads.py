"""Ablated heads do what the slow oracle's do, in any trace."""

import dataclasses

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.interventions.heads import How
from tests.interventions.other_methods import (
    BACKENDS,
    GREEDY,
    IMAGES,
    NEW,
    PROMPTS,
    OracleAblation,
    assert_close,
    logits_of,
    make,
    masks_of,
    wrapped,
)
from tests.made_results import Size, sink_map
from tests.oracle_forward import oracle_generate, oracle_logits

HOWS = How.__args__
HEADS = ((0, 1), (1, 2), (1, 3))


@pytest.fixture(scope="module")
def model():
    return wrapped("sdpa", 2)


def oracle_of(settings, hf_model, encoding):
    image, token = masks_of(hf_model, encoding)
    return OracleAblation(
        image,
        token,
        settings.layers,
        steps=settings.steps,
        heads=settings.heads,
        how=settings.how,
    )


@pytest.mark.parametrize(("attention", "n_kv_heads"), BACKENDS)
@pytest.mark.parametrize("how", HOWS)
def test_an_ablated_forward_equals_the_slow_oracle(how, attention, n_kv_heads):
    model, untouched = wrapped(attention, n_kv_heads), make("eager", n_kv_heads)
    settings = eah.Ablation(heads=HEADS, how=how)
    encoding = model.encode(IMAGES, PROMPTS)
    oracle = oracle_of(settings, untouched, encoding)
    expected = oracle_logits(untouched, encoding, edit_pattern=oracle).logits
    real = encoding["attention_mask"].bool()
    assert_close(logits_of(model, settings)[real], expected[real])
    plain = logits_of(model, None)
    assert (plain - expected)[real].abs().max() > 0.1


@pytest.mark.parametrize("steps", ["all", "prefill"])
@pytest.mark.parametrize("how", HOWS)
def test_a_generation_under_an_edit_equals_the_oracle(model, how, steps):
    settings = eah.Ablation(heads=HEADS, how=how, steps=steps)
    encoding = model.encode(IMAGES, PROMPTS)
    untouched = make("eager", 2)
    oracle = oracle_of(settings, untouched, encoding)
    expected = oracle_generate(untouched, encoding, edit_pattern=oracle, **GREEDY)
    found = eah.edit(model, settings).generate(**encoding, **NEW)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("how", HOWS)
def test_an_item_is_ablated_as_if_it_were_alone(model, how):
    settings = eah.Ablation(heads=HEADS, how=how)
    together = logits_of(model, settings)
    for place, (image, prompt) in enumerate(zip(IMAGES, PROMPTS, strict=True)):
        alone = logits_of(model, settings, [image], [prompt])[0]
        real = model.encode(IMAGES, PROMPTS)["attention_mask"][place].bool()
        assert_close(together[place][real], alone)


def test_the_means_are_those_of_the_prompt_and_are_reported(model):
    settings = eah.Ablation(heads=("L1H2",), how="mean")
    with torch.no_grad(), model.trace(IMAGES[0], PROMPTS[0]):
        patch = eah.intervene(model, settings)
    assert patch.settings == settings
    assert patch.layers == (1,)
    assert patch.learned[1].shape[:3] == (1, 1, 4)


def test_gradients_flow_through_an_ablation(model):
    settings = eah.Ablation(heads=("L1H2",), how="knockout")
    with model.trace(IMAGES[0], PROMPTS[0]):
        stream = model.model.language_model.layers[0].output
        stream.requires_grad_(True)
        eah.intervene(model, settings)
        loss = model.output.logits[0, -1].max()
        with loss.backward():
            gradient = stream.grad.save()
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def test_a_layer_is_not_silently_patched_twice(model):
    first, second = eah.Ablation(heads=("L1H2",)), eah.Ablation(heads=("L1H0",))
    with pytest.raises(UnsupportedError, match="layer 1"):
        eah.edit(eah.edit(model, first), second).generate(
            **model.encode(IMAGES, PROMPTS), **NEW
        )


def test_an_ablation_stands_behind_a_broadcast_in_the_same_layer(model):
    ablation = eah.Ablation(heads=("L1H2",))
    both = eah.edit(eah.edit(model, eah.EAH(donor=0)), ablation)
    encoding = model.encode(IMAGES, PROMPTS)
    with torch.no_grad(), model.trace(**encoding):
        eah.intervene(model, eah.EAH(donor=0))
        eah.intervene(model, ablation)
        expected = model.output.logits.save()
    found = logits_of(both, None)
    assert torch.equal(found, expected)
    assert not torch.equal(found, logits_of(model, ablation))


def test_a_mean_that_begins_after_the_prompt_is_refused(model):
    settings = eah.Ablation(heads=("L1H2",), how="mean")
    encoding = model.encode(IMAGES[0], PROMPTS[0])

    def begin_late():
        with model.generate(**encoding, **NEW) as tracer:
            for _ in tracer.iter[1:3]:
                eah.intervene(model, settings)

    with pytest.raises(UnsupportedError, match="needs the prompt"):
        begin_late()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": ()}, "heads must be"),
        ({"heads": ("H3",)}, "heads must be"),
        ({"heads": ((1, 2), "L1H2")}, "each once"),
        ({"heads": ((1, -1),)}, "0 or more"),
        ({"heads": ("L1H1",), "how": "median"}, "how must be one of zero"),
        ({"heads": ("L1H1",), "steps": "later"}, "steps must be one of"),
    ],
)
def test_impossible_settings_are_refused(as_users_run_it, values, message):
    with pytest.raises(SettingsError, match=message):
        eah.Ablation(**values)


def test_heads_and_layers_that_do_not_exist_are_refused(model):
    with pytest.raises(SettingsError, match="L1H4 do not exist"):
        eah.edit(model, eah.Ablation(heads=("L1H4",)))
    with pytest.raises(SettingsError, match="layer 9 does not exist"):
        eah.edit(model, eah.Ablation(heads=("L9H0",)))


def test_settings_survive_a_file():
    settings = eah.Ablation(heads=("L1H2", (0, 1)), how="mean", steps="prefill")
    assert eah.Ablation.from_dict(settings.to_dict()) == settings
    with pytest.raises(SettingsError, match="unknown settings hats and no heads"):
        eah.Ablation.from_dict({"hats": 1})


def test_the_densest_heads_are_those_of_the_mean_over_items_with_an_image():
    made = sink_map(Size(items=4, layers=3, heads=4))
    columns = made.columns.clone()
    columns[3] = False  # an item without an image
    density = made.density.clone()
    density[3] = 1 - density[3]
    sinks = dataclasses.replace(
        made, columns=columns, density=density, layers=(0, 2, 5)
    )
    mean = sinks.frame().query("item < 3").groupby("name")["density"].mean()
    assert sinks.densest(5) == tuple(mean.nlargest(5).index)
    assert len(set(sinks.densest(12))) == 12
    assert len(eah.Ablation(heads=sinks.densest(12)).pairs) == 12
    for k in (0, 13):
        with pytest.raises(SettingsError, match="k must be 1 to 12 heads"):
            sinks.densest(k)
    with pytest.raises(InputError, match="expected an item with an image"):
        sink_map(Size(images=False)).densest(1)
