"""Rows of patterns and column scores are those that the model attends with."""

import numpy as np
import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import (
    BroadcastScores,
    HeadPatterns,
    pose,
    read_patterns,
    runs,
    score_broadcast,
)
from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.interventions.donation import column_priority, layer_seed
from eah_interp.kernels.patterns import pattern_blocks
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.oracle import oracle_scores
from tests.oracle_forward import OracleEAH, oracle_logits
from tests.tiny_families import build_oracle, encode, share_model, share_plain

# crops, crops and newlines, merged patches, no square, both ways in a picture, sinks
FAMILIES = [
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "mistral3",
    "gemma3",
    "internvl_gpt_oss",
]
HEADS = ["L0H1", "L1H0", "L1H3", "L2H2"]
CLOSE = {"rtol": 1e-4, "atol": 2e-6}


def pick(patterns, rows, heads=HEADS):
    """Take `[batch head row key]` of some heads out of an oracle's patterns."""
    places = [(int(name[1]), int(name[3])) for name in heads]
    whole = torch.stack([patterns[layer][:, head] for layer, head in places], 1)
    return whole[:, :, rows]


class Kept:
    """An oracle's EAH that also keeps what every layer attends with."""

    def __init__(self, oracle):
        self.oracle, self.used = oracle, {}

    def __call__(self, layer, pattern, visible):
        self.used[layer] = self.oracle(layer, pattern, visible)
        return self.used[layer]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_output_attentions_and_of_the_donor(family):
    encoding = encode(family)
    tokens = encoding["attention_mask"].bool()
    real = tokens.all(0).nonzero().flatten().tolist()[-6:]
    patch = eah.EAH(layers=(1,))
    found = read_patterns(
        share_model(family), encoding, heads=HEADS, query=real, patch=patch
    )
    plain = share_plain(family)
    with torch.no_grad():
        attentions = plain(**encoding, output_attentions=True).attentions
    own = {layer: pattern.float() for layer, pattern in enumerate(attentions)}
    torch.testing.assert_close(found.plain.rows, pick(own, real), **CLOSE)
    kept = Kept(build_oracle(family, encoding))
    oracle_logits(plain, encoding, edit_pattern=kept)
    torch.testing.assert_close(found.patched.rows, pick(kept.used, real), **CLOSE)
    donors = found.donors[1]
    assert torch.equal(donors, kept.oracle.donors[1])
    for item, donor in enumerate(donors.tolist()):  # said without the oracle
        for head in (1, 2):
            donated = own[1][item, donor, real]
            row = found.patched.rows[item, head]
            torch.testing.assert_close(row, donated, **CLOSE)


@pytest.mark.parametrize(
    "changes",
    [
        {"donor": "mean"},
        {"donor": "uniform"},
        {"donor": "shuffled", "seed": 3},
        {"donor": 2, "recipients": (0, 3)},
        {"definition": "official", "beta": 0.03, "items": "first", "head_0": "never"},
        {"layers": (0, 1, 2)},
    ],
    ids=str,
)
def test_scores_and_rows_of_a_patched_run_are_the_oracles(changes):
    settings = eah.EAH(**changes)
    encoding = encode("llava")
    tokens = encoding["attention_mask"].bool()
    image = encoding["input_ids"] == share_plain("llava").config.image_token_id
    recipients = None
    if settings.recipients != "all":
        recipients = torch.zeros(len(image), 4, dtype=torch.bool)
        recipients[:, list(settings.recipients)] = True
    kept = Kept(
        OracleEAH(
            image_mask=image,
            token_mask=tokens,
            layers=settings.layers,
            definition=settings.definition,
            beta=settings.beta,
            donor=settings.donor,
            recipients=recipients,
            official=settings.items == "first",
            priority=column_priority(image, layer_seed(settings, 1)),
        )
    )
    run = oracle_logits(share_plain("llava"), encoding, edit_pattern=kept)
    model = share_model("llava")
    real = tokens.all(0).nonzero().flatten().tolist()
    found = read_patterns(model, encoding, heads=HEADS, query=real, patch=settings)
    torch.testing.assert_close(found.patched.rows, pick(kept.used, real), **CLOSE)
    scored = score_broadcast(model, encoding, eah=settings, layers=(0, 1, 2))
    for layer in (0, 1, 2):
        expected = oracle_scores(
            kept.used[layer], image, tokens, settings.definition, run.visible[layer]
        )
        got = scored.patched.scores[:, layer]
        torch.testing.assert_close(got, expected.scores.float(), **CLOSE)
        sinks = scored.patched.sinks[:, layer]
        near = (scored.patched.ratio[:, layer] - 1).abs() < 1e-5
        assert torch.equal(sinks | near, expected.sinks(settings.beta) | near)
    names = [(int(name[1]), int(name[3])) for name in HEADS]
    sinks = torch.stack([scored.patched.sinks[:, la, he] for la, he in names], 1)
    assert torch.equal(found.patched.sinks, sinks)


def test_the_plain_scores_are_those_of_score_sinks():
    model, encoding = share_model("llava_next"), encode("llava_next")
    scored = score_broadcast(model, encoding, layers=(0, 1))
    sinks = eah.score_sinks(model, encoding, layers=(0, 1))
    assert torch.equal(scored.plain.sinks, sinks.sinks)
    torch.testing.assert_close(scored.density("plain"), sinks.density)
    assert torch.equal(scored.columns, sinks.columns)
    assert scored.donors[1].tolist() == sinks.donors[:, 1].tolist()


def test_after_a_broadcast_every_recipient_has_the_donors_scores():
    scored = score_broadcast(share_model("llava"), encode("llava"))
    for item, donor in enumerate(scored.donors[1].tolist()):
        own = scored.plain.scores[item, 0, donor]
        assert not torch.allclose(scored.plain.scores[item, 0], own, atol=1e-4)
        same = own.expand_as(scored.patched.scores[item, 0])
        torch.testing.assert_close(scored.patched.scores[item, 0], same)
        assert scored.donors_mask[item, 0].nonzero().flatten().tolist() == [donor]
        assert (scored.recipients_mask[item, 0] != scored.donors_mask[item, 0]).all()


@pytest.mark.parametrize("items", ["all", "first"])
@pytest.mark.parametrize("recipients", ["all", (0, 3)])
@pytest.mark.parametrize("donor", ["densest", "mean", "uniform", "shuffled", 2])
def test_the_heads_that_receive_are_those_whose_scores_change(donor, recipients, items):
    settings = eah.EAH(donor=donor, recipients=recipients, items=items)
    scored = score_broadcast(share_model("llava"), encode("llava"), eah=settings)
    change = (scored.patched.scores - scored.plain.scores).abs().amax(-1)
    assert torch.equal(scored.recipients_mask, change > 1e-4)
    assert scored.recipients_mask.any((1, 2)).tolist() == [True, items == "all"]


def test_rows_of_an_answer_keep_their_pattern_in_a_prefill_patch():
    model = eah.load()
    case = pose(
        model, random_image(3), objects=["cup"], caption="There is a cup near a pan."
    )
    place = case.readout.targets[0].position
    start = int(case.prompt_mask[0].nonzero().max())
    asked = {"heads": ["L1H0", "L1H1"], "query": [start, place]}
    # Head 3 keeps its own pattern: unpatched, but computed in the same shapes.
    none = read_patterns(model, case, **asked, patch=eah.EAH(donor=3, recipients=(3,)))
    torch.testing.assert_close(none.patched.rows, none.plain.rows, **CLOSE)
    found = read_patterns(model, case, **asked, patch=eah.EAH(donor=3))
    change = (found.patched.rows - none.patched.rows).abs().amax((0, 1, 3))
    assert change[0] > 1e-3
    assert change[1] == 0
    through = read_patterns(model, case, **asked, patch=eah.EAH(donor=3, steps="all"))
    change = (through.patched.rows - through.plain.rows).abs().amax((0, 1, 3))
    assert change[1] > 1e-3


@pytest.fixture(scope="module")
def found():
    model = eah.wrap(tiny_lvlm("llava", n_kv_heads=2), tiny_processor("llava"))
    images = [random_image(0), random_image(1)]
    prompts = ["what ?", "is there a cat near the boat ?"]
    return read_patterns(
        model, images, prompts, heads=["L1H3", (0, 2)], query=(-1, -3), patch=eah.EAH()
    )


def test_the_frame_lists_every_weight(found):
    table = found.frame()
    n_items, n_heads, n_rows, n_keys = found.plain.rows.shape
    assert len(table) == n_items * n_heads * n_rows * n_keys
    for name in ("plain", "patched"):
        shown = table[name].to_numpy().reshape(found.plain.rows.shape)
        rows = found.find_run(name).rows
        np.testing.assert_allclose(shown, rows.double().numpy())
        sinks = table["sink" if name == "plain" else "patched_sink"].to_numpy()
        sinks = sinks.reshape(found.plain.rows.shape)[:, :, 0]
        assert (sinks == found.find_run(name).sinks.numpy()).all()
    one = table[
        (table.item == 1) & (table.name == "L0H2") & (table["query"] == n_keys - 3)
    ]
    assert one["plain"].to_numpy() == pytest.approx(
        found.row("L0H2", item=1, query=-3).numpy()
    )
    assert one["layer"].unique() == 0
    assert one["head"].unique() == 2
    assert (one["place"] == "image").to_numpy().tolist() == found.images[1].tolist()
    first = table[table.item == 0]
    assert (first["place"] == "padding").any()
    assert one["token"].tolist() == list(found.tokens[1])
    top = found.top(2)
    assert len(top) == n_items * n_heads * n_rows * 2
    assert top["patched"].iloc[0] == pytest.approx(
        float(found.patched.rows[0, 1, 1].max())
    )


def test_a_row_lies_on_the_picture_as_its_columns_do(found):
    (grid,) = found.picture("L1H3", item=1, query=-3, run="patched")
    row = found.row("L1H3", item=1, query=-3, run="patched")
    (part,) = found.span(1).parts
    expected = row[torch.tensor(part.columns)]
    torch.testing.assert_close(grid, expected)


def test_results_come_back_from_disk_as_they_were(found, tmp_path):
    again = HeadPatterns.load(found.save(tmp_path / "rows"))
    assert again.heads == found.heads
    assert again.tokens == found.tokens
    assert torch.equal(again.patched.rows, found.patched.rows)
    scored = score_broadcast(share_model("llava"), encode("llava"))
    scored_again = BroadcastScores.load(scored.save(tmp_path / "scores"))
    assert torch.equal(scored_again.patched.scores, scored.patched.scores)
    assert torch.equal(scored_again.patched.sinks, scored.patched.sinks)
    assert scored_again.donors[1].tolist() == scored.donors[1].tolist()


def test_the_scores_frame_lists_the_judged_columns():
    settings = eah.EAH(definition="official", beta=0.03)
    scored = score_broadcast(share_model("llava"), encode("llava"), eah=settings)
    table = scored.frame()
    assert len(table) == int(scored.columns.sum()) * 4
    one = table[(table.item == 1) & (table["head"] == 2)]
    at = one["read_at"].to_numpy()
    assert at.tolist() == scored.columns[1].nonzero().flatten().tolist()
    for name, run in scored.runs.items():
        got = one[[name, f"{name}_ratio"]].to_numpy()
        np.testing.assert_allclose(got[:, 0], run.scores[1, 0, 2].numpy()[at])
        np.testing.assert_allclose(got[:, 1], run.ratio[1, 0, 2].numpy()[at])
    assert (one["patched"] - one["plain"]).to_numpy() == pytest.approx(
        one["change"].to_numpy()
    )
    assert one["plain_threshold"].to_numpy() == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": ["L9H0"]}, "layer 9 does not exist"),
        ({"heads": ["L1.mlp"]}, "has no pattern: expected heads"),
        ({"heads": ["L1H0"], "query": 400}, "does not fit a prompt of"),
        ({"heads": ["L1H0"], "query": (-1, -1)}, "each once"),
        ({"heads": ["L1H0"], "query": ()}, "does not fit a prompt of"),
        ({"heads": ["L1H0"], "patch": eah.EAH(layers=(7,))}, "layer 7 does not exist"),
    ],
)
def test_what_is_not_there_is_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        read_patterns(share_model("llava"), encode("llava"), **changes)


def test_what_was_not_read_is_refused(found):
    with pytest.raises(SettingsError, match="'L1H1' was not read: expected"):
        found.row("L1H1")
    with pytest.raises(SettingsError, match="row -2 was not read"):
        found.row("L1H3", query=-2)
    with pytest.raises(SettingsError, match="item 2 does not exist"):
        found.row("L1H3", item=2)
    with pytest.raises(SettingsError, match="image 1 does not exist"):
        found.span(0, image=1)
    with pytest.raises(SettingsError, match="run='change' is not there"):
        found.find_run("change")
    with pytest.raises(SettingsError, match="k must be an integer of 1 or more"):
        found.top(0)
    scored = score_broadcast(share_model("llava"), encode("llava"))
    with pytest.raises(SettingsError, match="run must be plain or patched"):
        scored.density("both")


def test_a_patched_twin_is_refused():
    twin = eah.edit(share_model("llava"), eah.EAH())
    for read in (
        lambda: read_patterns(twin, encode("llava"), heads=["L1H0"]),
        lambda: score_broadcast(twin, encode("llava")),
    ):
        with pytest.raises(UnsupportedError, match="the model is a patched twin"):
            read()


def test_only_the_asked_rows_of_the_asked_heads_are_made(monkeypatch):
    made = []

    def watched(queries, keys, **options):
        made.append(tuple(queries.shape[:3]))
        return pattern_blocks(queries, keys, **options)

    monkeypatch.setattr(runs, "pattern_blocks", watched)
    encoding = encode("llava")
    read_patterns(share_model("llava"), encoding, heads=HEADS, query=(-1, -4))
    n_items = len(encoding["input_ids"])
    assert made == [(n_items, 1, 2), (n_items, 2, 2), (n_items, 1, 2)]  # L0, L1, L2
