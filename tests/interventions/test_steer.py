"""Steering is what plain PyTorch hooks and the formula, row by row, make of a model."""

import json
import math
from dataclasses import replace

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import ablate_heads, logit_lens, patch_heads, read_patterns
from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.interventions import Directions, find_directions
from eah_interp.interventions.directions import join_directions
from eah_interp.lvlm.spans import image_mask, image_token_id
from eah_interp.lvlm.without_images import drop_images
from eah_interp.testing import FAMILIES, tiny_lvlm, tiny_processor
from tests.alignment import assert_as_alike
from tests.hooked import Hooked
from tests.interventions.methods.common import APART
from tests.tiny_families import (
    CORE,
    PICTURES,
    QUESTIONS,
    SUPPORTED,
    encode,
    ignore_renamed,
    measure_gap,
    share_model,
    share_plain,
    sweep,
)

pytestmark = ignore_renamed

STEPS = 3
TOLERANCE = 1e-4
"""Of the largest logit, in float32: SDPA and eager attention are 3e-6 apart here."""
GREEDY = {
    "max_new_tokens": STEPS,
    "min_new_tokens": STEPS,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}
SETTINGS = {
    "VISTA": {"scale": 0.8},
    "away, by last rows": {"scale": -0.5, "adaptive": False, "positions": "last"},
    "moved stream": {
        "at": "stream",
        "preserve_norm": False,
        "scale": 0.3,
        "steps": "prefill",
        "positions": "text",
        "layers": (0, 2),
    },
    "images": {"at": "stream", "positions": "image", "scale": 0.5, "layers": "1:"},
}


def sweep_few(families):
    """List families for `parametrize`: two in every run, the others marked slow."""
    return [
        family
        if family in ("llava", "gemma3")
        else pytest.param(family, marks=pytest.mark.slow)
        for family in families
    ]


class Steered(Hooked):
    """A plain model whose layers or MLPs are steered by the formula, row by row."""

    def __init__(self, family, plain, encoding, settings):
        super().__init__(family, plain)
        self.settings = settings
        self.tokens = encoding["attention_mask"].bool()
        token = image_token_id(plain.config)
        self.image = image_mask(encoding["input_ids"], token)
        self.passes = dict.fromkeys(range(99), 0)
        self.place = "mlps_output" if settings.at == "mlp" else "layers_output"

    def marked(self, item, row, *, n_rows, later):
        """Tell whether a row is steered."""
        if later:
            return self.settings.steps == "all" and self.settings.positions != "image"
        last = row == n_rows - 1  # padded on the left
        image = bool(self.image[item, row])
        fit = {"all": True, "last": last, "image": image, "text": not image}
        return bool(self.tokens[item, row]) and fit[self.settings.positions]

    def meet(self, point, value):
        super().meet(point, value)
        name, layer = point
        layers = self.settings.layers
        every = (
            [*range(3)][slice(*layers_of(layers))]
            if isinstance(layers, str)
            else layers
        )
        if name != self.place or layer not in every:
            return value
        later, new = self.passes[layer] > 0, value.clone()
        self.passes[layer] += 1
        vectors = self.settings.vectors
        for item in range(value.shape[0]):
            v = vectors.values[item if vectors.per_item else 0, layer].double()
            for row in range(value.shape[1]):
                if self.marked(item, row, n_rows=value.shape[1], later=later):
                    x = value[item, row].double()
                    new[item, row] = self.steer(x, v).to(value.dtype)
        return new

    def steer(self, x, v):
        """Steer one vector of one row, in float64."""
        if not self.settings.preserve_norm:
            return x + self.settings.scale * v
        length, size = math.sqrt(float(x @ x)), math.sqrt(float(v @ v))
        scale = self.settings.scale
        if self.settings.adaptive:
            scale = scale * (1 + max(0.0, -float(x @ v) / (length * size)))
        turned = x / length + scale * v / size
        return turned / math.sqrt(float(turned @ turned)) * length


def layers_of(written):
    return [int(end) if end else None for end in written.split(":")]


def draw(family, *, n_items=2, per_item=True, seed=0):
    """Draw directions, one an item and layer."""
    model = share_model(family)
    width = model.config.get_text_config(decoder=True).hidden_size
    generator = torch.Generator().manual_seed(seed)
    rows = n_items if per_item else 1
    values = torch.randn(rows, model.n_layers, width, generator=generator)
    return Directions(values, tuple(range(model.n_layers)), per_item=per_item)


def run(model, encoding, settings=None):
    with torch.no_grad(), model.trace(**encoding, use_cache=False):
        if settings is not None:
            eah.intervene(model, settings)
        logits = model.output.logits.save()
    return logits


def check_forward(model, family, changes):
    encoding, plain = encode(family), share_plain(family)
    settings = eah.Steer(vectors=draw(family), **changes)
    tokens = encoding["attention_mask"].bool()
    expected = Steered(family, plain, encoding, settings).run(encoding).logits[tokens]
    found = run(model, encoding, settings)[tokens]
    assert measure_gap(found, expected) <= TOLERANCE
    bare = run(model, encoding)[tokens]
    assert measure_gap(found, bare) > 20 * TOLERANCE, "it does nothing: a weak test"


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_a_steered_forward_equals_plain_hooks(family):
    for name in ("VISTA", "images"):
        check_forward(share_model(family), family, SETTINGS[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_all_settings_are_those_of_plain_hooks(name):
    check_forward(share_model("llava"), "llava", SETTINGS[name])


@pytest.mark.parametrize("family", sweep_few(CORE))
def test_it_is_the_same_in_eager_attention(family):
    processed = FAMILIES[family].build_processor is not None
    model = eah.wrap(
        tiny_lvlm(family, n_kv_heads=2, attn_implementation="eager"),
        tiny_processor(family) if processed else None,
    )
    for name in ("VISTA", "images"):
        check_forward(model, family, SETTINGS[name])


@pytest.mark.parametrize("family", sweep_few(CORE))
@pytest.mark.parametrize("name", ["VISTA", "moved stream"])
def test_a_generation_under_an_edit_equals_plain_hooks(family, name):
    encoding, plain = encode(family), share_plain(family)
    settings = eah.Steer(vectors=draw(family), **SETTINGS[name])
    expected = Steered(family, plain, encoding, settings).run(encoding, **GREEDY)
    found = eah.edit(share_model(family), settings).generate(**encoding, **GREEDY)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert measure_gap(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("family", sweep_few([one for one in CORE if one not in APART]))
def test_a_batch_is_steered_as_its_items_are_alone(family):
    model, whole = share_model(family), eah.Steer(vectors=draw(family), scale=0.8)
    batch = encode(family)
    together, bare = run(model, batch, whole)[:, -1], run(model, batch)[:, -1]
    for item in range(2):
        one = encode(family, PICTURES[item : item + 1], QUESTIONS[item : item + 1])
        alone = run(model, one, whole.of_item(item, 2))[0, -1]
        plain = (bare[item], run(model, one)[0, -1])
        assert_as_alike(together[item], alone, plain=plain)


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2_vl"])
def test_layers_without_attention_are_steered(family):
    model, encoding = share_model(family), encode(family)
    unfit = [n for n in range(3) if n not in model.anatomy.sites]
    assert unfit
    for at in ("mlp", "stream"):
        settings = eah.Steer(
            vectors=draw(family), layers=tuple(unfit), at=at, scale=0.8
        )
        plain = share_plain(family)
        expected = Steered(family, plain, encoding, settings).run(encoding).logits
        tokens = encoding["attention_mask"].bool()
        found = run(model, encoding, settings)
        assert measure_gap(found[tokens], expected[tokens]) <= TOLERANCE
        assert [site.layer for site in model.check(settings)] == unfit


@pytest.fixture(scope="module")
def model():
    return share_model("llava")


@pytest.fixture(scope="module")
def encoding():
    return encode("llava")


def test_beams_are_steered_as_the_items_they_are_of(model, encoding):
    settings = eah.Steer(vectors=draw("llava"), scale=0.8)
    patched = eah.edit(model, settings)
    beams = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}
    whole = patched.generate(**encoding, **beams)[:, -3:]
    for item in range(2):
        one = encode("llava", PICTURES[item : item + 1], QUESTIONS[item : item + 1])
        alone = eah.edit(model, settings.of_item(item, 2)).generate(**one, **beams)
        assert alone[0, -3:].tolist() == whole[item].tolist()


def test_an_answer_read_at_once_is_steered_as_its_generation_was(model):
    encoding = encode("llava", PICTURES[:1], QUESTIONS[:1])
    width = encoding["input_ids"].shape[1]
    for changes in SETTINGS.values():
        settings = eah.Steer(vectors=draw("llava", n_items=1), **changes)
        # a written image token would ask for an image of its own
        no_image = {"suppress_tokens": [model.config.image_token_id]}
        twin = eah.edit(model, settings)
        generated = twin.generate(**encoding, **GREEDY, **no_image)
        ids = generated.sequences
        whole = {**encoding, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        prompt_mask = torch.arange(ids.shape[1])[None] < width
        with torch.no_grad(), model.trace(**whole):
            eah.intervene(model, settings, prompt_mask=prompt_mask)
            logits = model.output.logits.save()
        steps = torch.cat(generated.logits)  # before tokens are suppressed
        torch.testing.assert_close(
            logits[0, width - 1 : -1], steps, rtol=1e-4, atol=1e-4
        )


def test_it_stands_beside_another_patch(model, encoding):
    steer = eah.Steer(vectors=draw("llava"), scale=0.8)
    pai = eah.PAI(layers=(1,), alpha=0.7)
    with torch.no_grad(), model.trace(**encoding):
        eah.intervene(model, pai)
        model.layers_output[2].mean()
        logits = model.output.logits.save()
    twin = eah.edit(eah.edit(model, steer), pai)
    both = twin.generate(**encoding, **GREEDY).logits[0]
    other = eah.edit(eah.edit(model, pai), steer).generate(**encoding, **GREEDY)
    torch.testing.assert_close(both, other.logits[0])
    assert measure_gap(both, logits[:, -1]) > TOLERANCE


@pytest.mark.parametrize("at", ["mlp", "stream"])
def test_what_follows_a_run_follows_a_steered_one(model, encoding, at):
    settings = eah.Steer(vectors=draw("llava"), scale=0.8, at=at)
    expected = Steered("llava", share_plain("llava"), encoding, settings)
    logits = expected.run(encoding).logits[:, -1]
    lens = logit_lens(model, dict(encoding), objects=["cat"], patch=settings)
    bare = run(model, encoding)[:, -1]
    token = int((bare - lens.plain.logit[:, -1, :1]).abs().sum(0).argmin())
    read = logits[:, token]
    torch.testing.assert_close(lens.patched.logit[:, -1, 0], read, rtol=1e-4, atol=1e-4)
    patterns = read_patterns(model, dict(encoding), heads=["L2H1"], patch=settings)
    for item in range(2):
        row = patterns.row("L2H1", item=item, run="patched")
        own = expected.seen["attention_probabilities", 2][0][item, 1, -1]
        torch.testing.assert_close(row, own, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ask", [ablate_heads, patch_heads, eah.attribute_heads])
def test_effects_of_heads_in_a_steered_run_are_refused_by_name(model, encoding, ask):
    settings = eah.Steer(vectors=draw("llava"))
    side = {
        ablate_heads: {"target": settings},
        patch_heads: {"source": settings},
        eah.attribute_heads: {"patch": settings},
    }[ask]
    with pytest.raises(UnsupportedError, match="Steer acts on what layers return"):
        ask(model, dict(encoding), objects=["cat"], **side)


# ---- Directions that an image adds.


def test_a_direction_is_the_difference_that_the_image_makes(model, encoding):
    found = find_directions(model, dict(encoding), per_item=True, batch_size=1)
    seen, unseen = (Hooked("llava", share_plain("llava")) for _ in range(2))
    seen.run(encoding)
    unseen.run(drop_images(model, encoding))
    for layer in range(3):
        point = ("layers_output", layer)
        expected = seen.seen[point][0][:, -1] - unseen.seen[point][0][:, -1]
        torch.testing.assert_close(
            found.values[:, layer], expected, rtol=1e-3, atol=1e-3
        )


def test_text_stays_token_by_token_where_images_are_left_out(model, encoding):
    bare = drop_images(model, encoding)
    token = image_token_id(model.config)
    for item in range(2):
        kept = encoding["input_ids"][item][encoding["attention_mask"][item].bool()]
        expected = kept[kept != token].tolist()
        real = bare["attention_mask"][item].bool()
        assert bare["input_ids"][item][real].tolist() == expected
        assert real.tolist() == sorted(real.tolist())
    with pytest.raises(InputError, match="row 0 has no image to leave out"):
        drop_images(model, bare)


@pytest.mark.parametrize("family", sweep_few(SUPPORTED))
def test_every_family_runs_without_its_images(family):
    found = find_directions(share_model(family), encode(family), per_item=True)
    assert found.values.isfinite().all()
    # First layers that attend to a window, or convolve, may not reach the image.
    reached = found.values.norm(dim=-1) > 0
    assert reached[:, -1].all()
    assert (reached[:, 1:] >= reached[:, :-1]).all()


@pytest.mark.parametrize("family", ["lfm2_vl", "qwen3_5"])
def test_what_rounding_makes_is_no_direction(family):
    # Their first layer does not attend: the image is out of the last token's reach.
    model, encoding = share_model(family), encode(family)
    found = find_directions(model, encoding, per_item=True)
    assert not found.values[1, 0].any()
    item = encode(family, PICTURES[1:2], QUESTIONS[1:2])
    first = eah.Steer(vectors=draw(family, n_items=1), layers=(0,), scale=0.8)
    told = replace(first, vectors=find_directions(model, item))
    bare = run(model, item)
    assert measure_gap(run(model, item, first), bare) > 1e-2
    assert measure_gap(run(model, item, told), bare) < TOLERANCE


def test_directions_join_as_a_mean_and_a_first_component():
    generator = torch.Generator().manual_seed(0)
    shared, own = torch.randn(2, 12, generator=generator)
    own = own / own.norm()
    weights = torch.tensor([3.0, -1.0, -1.0, -1.0])
    items = shared + weights[:, None] * own  # its largest loading is positive
    joined = join_directions(items.view(4, 3, 4)).flatten()
    torch.testing.assert_close(joined, shared + own, rtol=1e-4, atol=1e-5)
    alone = join_directions(items[:1].view(1, 3, 4)).flatten()
    torch.testing.assert_close(alone, items[0])
    alike = join_directions(items[:1].expand(3, -1).reshape(3, 3, 4)).flatten()
    torch.testing.assert_close(alike, items[0])


def test_a_fit_finds_what_each_item_adds_and_a_given_vector_stays(model, encoding):
    fitted = eah.Steer.vista().fit(model, dict(encoding), None)
    assert fitted.vectors == find_directions(model, dict(encoding), per_item=True)
    assert fitted.fit(model, dict(encoding), None) is fitted
    pai = eah.PAI()
    assert pai.fit(model, dict(encoding), None) is pai


def test_a_planted_direction_is_recovered():
    """What images write into the stream is one vector, from layer 1 on."""
    hf_model = tiny_lvlm("llava")
    decoder = hf_model.model.language_model
    generator = torch.Generator().manual_seed(3)
    planted = torch.randn(32, generator=generator)
    with torch.no_grad():
        projector = hf_model.model.multi_modal_projector
        projector.linear_2.weight.zero_()
        projector.linear_2.bias.zero_()
        projector.linear_2.bias[0] = (
            1  # every image token is the same, words have 0 there
        )
        decoder.embed_tokens.weight[:, 0] = 0
        for index, block in enumerate(decoder.layers):
            block.mlp.down_proj.weight.zero_()
            block.self_attn.o_proj.weight[0] = 0
            if index > 0:
                block.self_attn.o_proj.weight.zero_()
            if index == 1:
                block.input_layernorm.weight.fill_(1)
                block.self_attn.v_proj.weight.zero_()
                block.self_attn.v_proj.weight[0, 0] = 1
                block.self_attn.o_proj.weight[:, 0] = planted
    model = eah.wrap(hf_model, tiny_processor("llava"))
    found = find_directions(model, list(PICTURES), list(QUESTIONS)).values[0]
    added = found[1] - found[0]
    assert torch.cosine_similarity(added, planted, dim=0) > 0.9
    assert torch.cosine_similarity(found[2], found[1], dim=0) > 0.9


# ---- Settings.


def test_settings_survive_a_file(tmp_path, model, encoding):
    fitted = eah.Steer(scale=0.3, layers=(1,)).fit(model, dict(encoding), None)
    written = json.loads(json.dumps(fitted.to_dict()))
    assert eah.Steer.from_dict(eah.Steer().to_dict()) == eah.Steer()
    assert eah.Steer.from_dict(written) == fitted
    fitted.vectors.save(tmp_path / "found")
    read = eah.Steer.from_dict({"vectors": str(tmp_path / "found")})
    assert read.vectors == fitted.vectors
    with pytest.raises(InputError, match="holds no saved result"):
        eah.Steer.from_dict({"vectors": str(tmp_path / "nothing")})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": "far"}, "scale must be a number"),
        ({"at": "attention"}, "at must be"),
        ({"positions": "first"}, "positions must be"),
        ({"vectors": 3}, "vectors must be Directions"),
        ({"adaptive": True, "preserve_norm": False}, "expected preserve_norm=True"),
        ({"layers": (1, 1)}, "each once"),
    ],
)
def test_impossible_settings_are_refused(as_users_run_it, values, message):
    with pytest.raises(SettingsError, match=message):
        eah.Steer(**values)


def test_what_is_not_fitted_is_refused_and_fits_are_of_these_items(model, encoding):
    for use in (
        lambda: eah.edit(model, eah.Steer()),
        lambda: run(model, encoding, eah.Steer()),
        lambda: read_patterns(model, dict(encoding), heads=["L1H1"], patch=eah.Steer()),
    ):
        with pytest.raises(
            SettingsError, match=r"call \.fit\(model, images, prompts\)"
        ):
            use()
    settings = eah.Steer(vectors=draw("llava", n_items=3))
    with pytest.raises(
        InputError, match="vectors of 3 items, and the batch has 2 rows"
    ):
        run(model, encoding, settings)


def test_vectors_of_another_model_or_shape_are_refused(model, encoding):
    fitted = eah.Steer().fit(model, dict(encoding), None)
    other = eah.wrap(tiny_lvlm("llava", seed=7), tiny_processor("llava"))
    with pytest.raises(SettingsError, match=r"were found in LlavaFor.* with weights"):
        eah.edit(other, fitted)
    narrow = Directions(torch.ones(1, 3, 5), (0, 1, 2))
    with pytest.raises(SettingsError, match="vectors have 5 numbers: expected 32"):
        eah.edit(model, eah.Steer(vectors=narrow))
    few = Directions(torch.ones(1, 1, 32), (1,))
    with pytest.raises(SettingsError, match="no vector for layers 0, 2"):
        eah.edit(model, eah.Steer(vectors=few))
    with pytest.raises(SettingsError, match="layer 9 does not exist"):
        eah.edit(model, eah.Steer(layers=(9,)))
    with pytest.raises(SettingsError, match="'7:' are none of the model's 3"):
        eah.edit(model, eah.Steer(layers="7:"))
    assert eah.edit(model, eah.Steer(vectors=few, layers=(1,))) is not None


def test_directions_are_of_the_model_itself(model, encoding):
    twin = eah.edit(model, eah.EAH(layers=(1,)))
    with pytest.raises(UnsupportedError, match="the model is a patched twin"):
        find_directions(twin, dict(encoding))
