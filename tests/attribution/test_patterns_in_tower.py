"""Patterns of the vision tower's heads are those of plain transformers, by family."""

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import HeadPatterns, read_patterns
from eah_interp.errors import ModelError, SettingsError, UnsupportedError
from tests.hooked import NO_TOWER
from tests.interventions.test_in_tower import (
    SOME,
    density_of,
    expect,
    look_at,
    patches_of,
)
from tests.lvlm.test_hook_points import PACKED
from tests.lvlm.test_tower_attention import ATTENDS, OWN_CODE
from tests.tiny_families import (
    encode,
    ignore_renamed,
    share_model,
    share_plain,
    sweep,
)
from tests.tower_oracle import TowerOracle, add

pytestmark = ignore_renamed


def places_of(family, tokens):
    """List where an image's tokens stand in its item; a tower may pad in between."""
    return torch.arange(len(tokens)) if family in PACKED else tokens


CLOSE = {"rtol": 1e-4, "atol": 2e-6}


def read(family, **asked):
    return read_patterns(share_model(family), encode(family), tower="vision", **asked)


@pytest.mark.parametrize("family", sweep(ATTENDS))
def test_whole_patterns_are_those_of_transformers_image_by_image(family):
    oracle, _, images = look_at(family)
    found = read(family, heads=["L0H1", "L1H3"], mean=True, query="all")
    assert found.names == ("L0H1", "L1H3", "mean")
    assert len(found.plain.rows) == len(images)
    layers = [oracle.whole("attention_probabilities", layer) for layer in (0, 1)]
    for item, (row, tokens) in enumerate(images):
        line = found.plain.rows[item]
        here = places_of(family, tokens)
        padding = torch.ones(line.shape[1], dtype=torch.bool)
        padding[here] = False
        square = torch.meshgrid(tokens, tokens, indexing="ij")
        theirs = [layers[0][row, 1], layers[1][row, 3]]
        theirs.append(torch.cat([layer[row] for layer in layers]).mean(0))
        for head, whole in enumerate(theirs):
            ours = line[head][torch.meshgrid(here, here, indexing="ij")]
            torch.testing.assert_close(ours, whole[square], **CLOSE)
        assert (line[:, here][..., padding] == 0).all()
        assert line[:, padding].isnan().all()
        assert torch.equal(found.padding[item], padding)
        patches = patches_of(family, here)
        assert found.images[item].nonzero().flatten().tolist() == patches.tolist()
        density = density_of(layers[0][row], tokens, patches_of(family, tokens))
        share = found.plain.sinks[item, 0].sum() / len(patches)
        assert abs(float(share - density[1])) <= 1e-6


@pytest.mark.parametrize("family", sweep(ATTENDS))
def test_rows_of_a_patched_run_are_those_of_replaced_patterns(family):
    oracle, _, _ = look_at(family)
    own = oracle.whole("attention_probabilities", 0)
    new = own.clone()
    new[:, [0, 2]] = own[:, 3:]
    edits = {
        ("attention_probabilities", 0): add("attention_probabilities", new - own),
    }
    changed = TowerOracle(family, share_plain(family), edits)
    changed.run(encode(family))
    later = changed.whole("attention_probabilities", 1)
    patch = eah.EAH(layers=(0,), donor=3, recipients=(0, 2))
    found = read(family, heads=["L0H0", "L0H1", "L1H2"], query=[2, 0], patch=patch)
    assert found.patched is not None
    assert found.donors[0].tolist() == [3] * len(found.tokens)
    assert not torch.equal(found.patched.rows[:, 2], found.plain.rows[:, 2])
    for item, (row, tokens) in enumerate(look_at(family)[2]):
        here = places_of(family, tokens)
        for place, query in enumerate([2, 0]):
            line = found.patched.rows[item, :, place]
            at = (here == query).nonzero().flatten()
            if not len(at):  # padding
                assert line.isnan().all()
                continue
            theirs = [new[row, 0], new[row, 1], later[row, 2]]
            theirs = [whole[tokens[at[0]], tokens] for whole in theirs]
            torch.testing.assert_close(line[:, here], torch.stack(theirs), **CLOSE)


@pytest.mark.parametrize("family", SOME)
def test_the_densest_heads_are_those_that_score_sinks_finds(family):
    model, encoding = share_model(family), encode(family)
    scored = eah.score_sinks(model, encoding, tower="vision")
    found = read(family, top=3, query=0)
    # One column on the threshold may fall to either side.
    density = scored.density.mean(0)
    least = density.flatten().topk(3).values.min() - 1 / 16
    for layer, head in found.heads:
        assert density[layer, head] >= least


def test_tokens_are_patches_and_the_towers_own():
    found = read("llava", heads="L1H2", query=[0, 5])
    assert found.tokens[0][:3] == ("own 0", "patch 0", "patch 1")
    assert "of the vision tower" in " ".join(repr(found).split())
    table = found.frame()
    assert set(table["place"]) == {"image", "own"}
    assert len(table) == 2 * 2 * 17
    shares = found.shares()
    assert (shares["plain"] < 1).all()  # the class token has the rest
    assert shares["image"].tolist() == [0] * 4
    with pytest.raises(UnsupportedError, match="expected image tokens that stand for"):
        found.picture("L1H2", query=0)


def test_a_row_of_padding_is_no_row(tmp_path):
    found = read("qwen2_5_vl", heads="L0H1", query="all")
    assert found.tokens[0][15:17] == ("patch 15", "padding")
    assert found.row("L0H1", item=1, query=20).sum() == pytest.approx(1)
    with pytest.raises(SettingsError, match="item 0 has no row 20, which is padding"):
        found.row("L0H1", item=0, query=20)
    assert HeadPatterns.load(found.save(tmp_path)) == found
    grouped = found.group(item=0)
    assert len(grouped.queries) == 1


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"words": True}, "words=True reads rows of the language model's answer"),
        ({"query": 0, "definition": "paper"}, "counts the tokens of a causal prompt"),
        ({"query": 0, "patch": eah.PAI()}, "PAI cannot act in the vision tower"),
    ],
)
def test_what_only_a_prompt_has_is_refused(asked, match):
    with pytest.raises(UnsupportedError, match=match):
        read("llava", heads="L0H1", **asked)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"heads": "L0H1"}, "no row of the vision tower is read last: expected query="),
        ({"heads": "L2H1", "query": 0}, "layer 2 does not exist: expected 0 to 1"),
        ({"heads": "L0H4", "query": 0}, "L0H4 does not exist"),
        ({"heads": "L0.mlp", "query": 0}, "no node of this model"),
        ({"heads": "L0H1", "query": 17}, "does not fit an image of 17 tokens"),
    ],
)
def test_heads_and_rows_are_the_towers(asked, match):
    with pytest.raises(SettingsError, match=match):
        read("llava", **asked)


@pytest.mark.parametrize("family", [*NO_TOWER, *OWN_CODE])
def test_a_model_whose_tower_does_not_attend_is_refused(family):
    with pytest.raises(ModelError, match=r"no vision tower of layers|code of its own"):
        read(family, heads="L0H1", query=0)


def test_a_patch_in_the_tower_is_refused_where_heads_are_replaced():
    patch = eah.Ablation(heads=("L0H1",))
    with pytest.raises(UnsupportedError, match="L0H1 return is replaced as a whole"):
        read("llava", heads="L0H1", query=0, patch=patch)
    found = read("llava", heads="L1H1", query=0, patch=patch)
    new = look_at("llava")[0].whole("heads_output", 0).clone()
    new[:, 1] = 0
    expect("llava", ("heads_output", 0), new)  # runs: the same patch by hand
    assert not torch.equal(found.plain.rows, found.patched.rows)
