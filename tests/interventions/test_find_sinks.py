"""Planted sinks are found where they are, by their kind, and nothing else is."""

import contextlib

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import attribute_patches, pose
from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.interventions import FoundSinks, SinkRule, find_sinks, map_tower
from eah_interp.kernels import score_columns
from eah_interp.kernels.sinks import stream_received
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.hooked import POST_NORMS, TOWER_OF, first
from tests.lvlm.test_tower import READ_FIRST
from tests.tiny_families import (
    encode,
    ignore_renamed,
    share_model,
)

pytestmark = ignore_renamed

PLANTED = (
    *("llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "idefics3", "internvl"),
    *("gemma3", "paligemma", "glm4v", "llava_pixtral", "llama4"),
)
"""Families of towers of all kinds: with class tokens, windows, merges, pools, tiles."""

DIM, LAYER, VALUE = 5, 1, 4000.0
"""The dimension that is massive, what returns it, and how much."""

RANDOM = ("llava", "qwen2_5_vl", "internvl", "gemma3", "idefics3")

RATE = 1e-3
"""Most false alarms among image columns of random models."""


@contextlib.contextmanager
def planted(model, family, encoding, *, token=None, places=()):
    """Give one token of the tower a huge norm, and columns a massive dimension."""
    shape = encoding["input_ids"].shape
    # Inside the layers: what a module itself returns, nnsight reads before its hooks.
    handles = []

    def enlarge(_, __, output):
        new = output.clone(memory_format=torch.contiguous_format)
        generator = torch.Generator().manual_seed(7)
        huge = 300 * torch.randn(256, generator=generator)[: new.shape[-1]]
        new.view(-1, new.shape[-1])[token] += huge
        return new

    def massive(_, __, output):
        new = first(output).clone()
        if new.numel() != shape.numel() * new.shape[-1]:  # a step after the prompt
            return output
        wide = new.view(*shape, new.shape[-1])
        for item, column in places:
            wide[item, column, DIM] += VALUE
        return (new, *output[1:]) if isinstance(output, tuple) else new

    root = model._module
    if token is not None:
        path = f"{TOWER_OF[family]}.{0 if family in READ_FIRST else 1}"
        parts = root.get_submodule(path).modules()
        last = [part for part in parts if isinstance(part, torch.nn.Linear)][-1]
        handles.append(last.register_forward_hook(enlarge))
    layer = root.get_submodule(f"{model.anatomy.layers}.{LAYER}")
    writer = layer.get_submodule(POST_NORMS.get(family, ("", "mlp"))[1])
    handles.append(writer.register_forward_hook(massive))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def columns_by_kind(found):
    """Return the item and column of every sink, by kind."""
    table = found.frame()
    return {
        kind: set(zip(rows["item"].tolist(), rows["column"].tolist(), strict=True))
        for kind, rows in table.groupby("kind")
        if kind != "none"
    }


@pytest.mark.parametrize("family", PLANTED)
def test_planted_sinks_are_found_at_their_place_and_by_their_kind(family):
    model, encoding = share_model(family), encode(family)
    links = map_tower(model, encoding)
    used = links.links[links.links[:, 1] == 0, 0].unique()
    token = int(used[len(used) // 2])
    of_tower = set(links.columns_of(token))
    other = [
        (item, column)
        for item, column in links.columns.nonzero().tolist()
        if (item, column) not in of_tower
    ]
    of_language = {other[1], other[-1]}
    shared = next(iter(of_tower))

    with planted(model, family, encoding, token=token, places=(*of_language, shared)):
        found = find_sinks(model, encoding)

    kinds = columns_by_kind(found)
    assert kinds.pop("both") == {shared}
    assert kinds.pop("language") == of_language
    assert kinds.pop("tower", set()) == of_tower - {shared}
    assert not kinds
    rows = found.frame().set_index(["item", "column"])
    for place in of_language:
        row = rows.loc[place]
        assert (row["layer"], row["dim"]) == (LAYER, DIM)
        assert row["value"] == pytest.approx(VALUE, rel=1e-2)
        assert "massive" in row["rule"]
    assert "norm" in rows.loc[shared]["rule"]
    massive = found.massive[(found.massive[:, 2] == LAYER)]
    assert set(massive[:, 3].tolist()) == {DIM}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_nothing_is_found_where_nothing_is_planted(family):
    found = find_sinks(share_model(family), encode(family))
    assert not columns_by_kind(found)
    assert not len(found.learned_frame())


@pytest.mark.slow
def test_random_models_have_no_more_sinks_than_the_stated_rate():
    alarms = total = 0
    for family in RANDOM:
        for seed in range(20):
            processor = tiny_processor(family)
            model = eah.wrap(tiny_lvlm(family, seed=seed, d_head=16), processor)
            images = [random_image(seed), random_image(seed + 100)]
            found = find_sinks(model, images, ["Is there a cat?"] * 2)
            alarms += int((found.mask("all") & ~found.mask("none")).sum())
            total += int(found.columns.sum())
    assert total > 1000
    assert alarms <= RATE * total


def test_what_is_large_in_every_token_and_what_enters_the_decoder_is_no_sink():
    model, encoding = share_model("llava"), encode("llava")
    every = [tuple(p) for p in encoding["attention_mask"].nonzero().tolist()]
    with planted(model, "llava", encoding, places=every):
        assert not columns_by_kind(find_sinks(model, encoding))
    column = int(map_tower(model, encoding).columns[0].nonzero()[3])

    projector = model._module.get_submodule("model.multi_modal_projector.linear_2")
    place = int(map_tower(model, encoding).columns[0, :column].sum())

    def massive(_, __, output):
        new = output.clone()
        new[0, place, DIM] = VALUE
        return new

    handle = projector.register_forward_hook(massive)
    found = find_sinks(model, encoding)
    handle.remove()
    assert not columns_by_kind(found)


def read_patterns(model, encoding):
    """Write every layer's pattern out."""
    with torch.no_grad(), model.trace(**encoding, use_cache=False):
        mask = model.image_mask.save()
        patterns = []
        for layer in sorted(model.anatomy.sites):
            patterns.append(model.attention_probabilities[layer])
        patterns = patterns.save()
    return mask, patterns


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_attention_and_norms_are_those_of_a_slow_oracle(family):
    model, encoding = share_model(family), encode(family)
    found = find_sinks(model, encoding, beta=1.2)
    mask, patterns = read_patterns(model, encoding)
    tokens = encoding["attention_mask"].bool()
    n_heads = sum(pattern.shape[1] for pattern in patterns)
    for item, column in [
        (0, found.spans[0][0].columns[1]),
        (1, found.spans[1][0].stop - 2),
    ]:
        sinks = 0
        for at, pattern in enumerate(patterns):
            got, even = {True: [], False: []}, []
            for row in tokens[item].nonzero().flatten().tolist():
                weights = pattern[item, :, row]
                seen = int((weights[0] > 0).sum())
                if row == column or float(weights[0, column]) == 0:
                    continue
                got[bool(mask[item, row])].append(weights[:, column])
                even.append(1 / seen)
            for group, kind in enumerate((True, False)):
                theirs = torch.stack(got[kind]).mean() if got[kind] else 0.0
                ours = found.attention[item, at, group, column]
                assert float(ours) == pytest.approx(float(theirs), abs=1e-5)
            received = torch.stack(got[True] + got[False]).sum(0)
            sinks += int((received > 1.2 * sum(even)).sum())
        assert float(found.shares[item, column]) == pytest.approx(sinks / n_heads)
    with torch.no_grad(), model.trace(**encoding, use_cache=False):
        entering = model.layers_input[0].norm(dim=-1).save()
        leaving = model.layers_output[2].norm(dim=-1).save()
    own = found.columns
    assert torch.equal(found.norms[:, 0][own], entering[own])
    assert torch.equal(found.norms[:, -1][own], leaving[own])


def test_all_rows_in_one_group_are_the_scores_of_a_whole_pattern():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 4, 9, 8, generator=generator)
    keys = torch.randn(2, 2, 9, 8, generator=generator)
    image = torch.zeros(2, 9, dtype=torch.bool)
    image[:, 2:7] = True
    tokens = torch.ones(2, 9, dtype=torch.bool)
    tokens[0, 0] = False
    received = stream_received(
        queries, keys, groups=tokens[:, None], token_mask=tokens, block=4
    )
    logits = queries @ keys.repeat_interleave(2, 1).transpose(2, 3) * 8**-0.5
    visible = torch.ones(9, 9, dtype=torch.bool).tril() & tokens[:, None, None]
    pattern = logits.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)
    scored = score_columns(pattern, image_mask=image, token_mask=tokens)
    columns = image[:, None].expand(-1, 4, -1)
    assert torch.allclose(received.mean[:, :, 0][columns], scored.scores[columns])
    even = (received.even / received.rows.clamp(min=1))[:, :, 0]
    assert torch.allclose(even[:, 0][image], scored.unit[:, 0][image])
    assert torch.equal(received.sinks(1.1)[columns], scored.sinks(1.1)[columns])
    assert not received.lost.any()


def test_a_learned_sink_is_found_in_its_head():
    processor = tiny_processor("internvl_gpt_oss")
    hf_model = tiny_lvlm("internvl_gpt_oss")
    sinks = hf_model.get_submodule("model.language_model.layers.1.self_attn").sinks
    with torch.no_grad():
        sinks[:] = -20.0
        sinks[2] = 20.0
    model = eah.wrap(hf_model, processor)
    table = find_sinks(model, random_image(), "Is there a cat?").learned_frame()
    mass = table.set_index("name")["mass"]
    assert mass["L1H2"] > 0.99
    assert mass[["L1H0", "L1H1", "L1H3"]].max() < 0.01
    assert set(table["layer"]) == {0, 1, 2}


def test_an_item_has_the_same_sinks_alone_and_in_a_batch():
    model = share_model("llava")
    images = [random_image(0), random_image(3)]
    questions = ["Is there a cat?", "What is it in the picture?"]
    whole = find_sinks(model, images, questions)
    for item in range(2):
        one = find_sinks(model, images[item], questions[item])
        for name in ("tower_scores", "shares"):
            ours = getattr(whole, name)[item][whole.columns[item]]
            alone = getattr(one, name)[0][one.columns[0]]
            assert torch.allclose(ours, alone, atol=1e-5), name
        assert torch.allclose(
            whole.norms[item][:, whole.columns[item]],
            one.norms[0][:, one.columns[0]],
            rtol=1e-4,
        )


@pytest.mark.parametrize("family", ["blip_2", "chameleon"])
def test_without_a_map_there_are_sinks_of_the_language_model_only(family):
    model, encoding = share_model(family), encode(family)
    place = (0, int(map_tower(model, encoding).columns[0].nonzero()[1]))
    with planted(model, family, encoding, places=(place,)):
        found = find_sinks(model, encoding)
    assert columns_by_kind(found) == {"language": {place}}
    assert found.reason
    assert found.tower_scores.isnan().all()
    assert "of the tower none are known" in " ".join(repr(found).split())


def test_thresholds_and_tables_are_those_of_the_rule(as_users_run_it):
    model, encoding = share_model("llava"), encode("llava")
    strict = find_sinks(
        model, encoding, rule=SinkRule(norm_times=1.01, norm_spread=0.1)
    )
    table = strict.sensitivity()
    counts = table.set_index("factor")["tower"]
    assert counts[1.0] == strict.mask("tower").sum() > 0
    assert counts.is_monotonic_decreasing
    assert len(strict.by_layer()) == 3 * int(strict.columns.sum())
    column = strict.spans[0][0].columns[0]
    assert strict.kind_of(column) in ("none", "tower")
    assert isinstance(strict, FoundSinks)
    with pytest.raises(SettingsError, match="massive must be a number above 0"):
        SinkRule(massive=0)
    with pytest.raises(SettingsError, match="rule must be a SinkRule"):
        find_sinks(model, encoding, rule=3)
    with pytest.raises(SettingsError, match="beta must be a number of 0 or more"):
        find_sinks(model, encoding, beta=-1)
    for odd in (0.1, "toy", None, float("nan"), []):
        with pytest.raises(SettingsError, match=r"factor must be .* 0\.5 or more"):
            strict.sensitivity([odd])
        with pytest.raises(SettingsError, match=r"factor must be .* 0\.5 or more"):
            strict.mask("tower", factor=odd)
    with pytest.raises(SettingsError, match=r"factors must be a list"):
        strict.sensitivity(0.5)
    with pytest.raises(InputError, match="has no image column 0"):
        strict.kind_of(0)
    with pytest.raises(SettingsError, match="kind must be"):
        strict.mask("text")
    with pytest.raises(InputError, match="item 2 does not exist"):
        strict.plot(2)
    with pytest.raises(InputError, match="expected an image in the batch"):
        find_sinks(model, {"input_ids": torch.tensor([[1, 5, 6]])})


def test_effects_of_image_tokens_add_up_by_kind():
    model, encoding = share_model("llava"), encode("llava")
    columns = map_tower(model, encoding).columns
    places = tuple((row, int(columns[row].nonzero()[4 + row])) for row in range(2))
    with planted(model, "llava", encoding, places=places):
        found = find_sinks(model, encoding)
        case = pose(model, encoding, objects=["cat"])
        effects = attribute_patches(model, case)
    table = found.label(effects.frame())
    by_kind = table.groupby(["row", "kind"])["plain"].sum()
    for row in range(2):
        patches = effects.plain.patches[row].sum((0, 1))
        sums = {"language": 0.0, "none": 0.0}
        for column, value in zip(effects.columns[row].tolist(), patches, strict=True):
            sums["language" if (row, column) in places else "none"] += float(value)
        for kind, total in sums.items():
            assert by_kind[row, kind] == pytest.approx(total, abs=1e-4)
        text = float(effects.plain.text[row].sum())
        assert by_kind[row, "text"] == pytest.approx(text, abs=1e-4)
    with pytest.raises(InputError, match="has no column row, read_at"):
        found.label(found.by_layer())


def test_an_image_without_places_cannot_be_drawn_on():
    found = find_sinks(share_model("blip_2"), encode("blip_2"))
    with pytest.raises(UnsupportedError, match="have no places in the image"):
        found.plot()


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "idefics3"])
def test_every_sink_with_a_place_is_drawn_whatever_the_model_tiles(family):
    model, encoding = share_model(family), encode(family)
    cells = [
        (part.name, column)
        for span in model.spans(encoding)[0]
        for part in span.parts
        for line in part.columns
        for column in line
    ]
    chosen = dict(cells)  # the last of each way
    places = tuple((0, column) for column in chosen.values())
    with planted(model, family, encoding, places=places):
        found = find_sinks(model, encoding)
    figure = found.plot()
    ways = list(dict.fromkeys(name for name, _ in cells))
    drawn = [
        sum(patch.get_alpha() == 0.6 for patch in axes.patches) for axes in figure.axes
    ]
    outlined = sum(len(axes.patches) for axes in figure.axes)
    assert drawn == [1] * len(ways)
    assert outlined == len(cells)
    if len(ways) > 1:
        assert [axes.get_title() for axes in figure.axes] == ways
        with pytest.raises(SettingsError, match="makes a figure for them"):
            found.plot(ax=figure.axes[0])
    with pytest.raises(InputError, match="item 0 has 1 images, and 2 are given"):
        found.plot(image=[random_image(), random_image()])


def test_other_kernels_find_the_same_sinks():
    """Eager attention and SDPA, of the same weights."""
    both = []
    for attention in ("eager", "sdpa"):
        hf_model = tiny_lvlm("llava", attn_implementation=attention)
        model = eah.wrap(hf_model, tiny_processor("llava"))
        inputs = dict(model.encode([random_image(), random_image(3)], ["A cat?"] * 2))
        links = map_tower(model, inputs)
        own = links.links[links.links[:, 1] == 0]
        places = ((0, int(own[6, 2])), (1, int(links.columns[1].nonzero()[3])))
        given = {"token": int(own[2, 0]), "places": places}
        with planted(model, "llava", inputs, **given):
            both.append(find_sinks(model, inputs))
    one, other = both
    assert columns_by_kind(one) == columns_by_kind(other)
    assert set(columns_by_kind(one)) == {"tower", "language"}
    for name in ("tower_scores", "shares", "attention", "norms"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5, equal_nan=True), name
