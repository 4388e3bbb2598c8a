"""The logit lens: the model's own end, on the stream of every layer."""

import math

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import Case, LogitLens, logit_lens, pose
from eah_interp.attribution import lens as lens_module
from eah_interp.attribution.readouts import read_tokens
from eah_interp.attribution.unembedding import find_unembedding
from eah_interp.errors import ModelError, SettingsError
from eah_interp.lvlm.inputs import Encoding
from eah_interp.testing import random_image, tiny_inputs, tiny_lvlm, tiny_processor
from tests.attribution.planted import COPIES, OBJECT, build_planted
from tests.attribution.test_direct import pose_answer, pose_tokens
from tests.tiny_families import (
    OFF,
    PICTURES,
    QUESTIONS,
    SUPPORTED,
    encode,
    ignore_renamed,
    share_model,
    share_plain,
    sweep,
)

WITHOUT_STREAM = {"inkling2": "it mixes what earlier blocks returned before its norm"}


# -- exact at the end ----------------------------------------------------------------


@ignore_renamed
@pytest.mark.parametrize(
    "family", sweep([f for f in SUPPORTED if f not in WITHOUT_STREAM])
)
def test_after_the_last_layer_the_lens_is_the_models_logit(family):
    model = share_model(family)
    case = pose_answer(family, model)
    layer = sorted(model.anatomy.sites)[-2:][0]
    found = logit_lens(model, case, patch=eah.EAH(layers=(layer,)))
    runs = ((found.plain, None), (found.patched, found.patch))
    for reading, settings in runs:
        with torch.no_grad(), model.trace(**case.inputs, use_cache=False):
            if settings is not None:
                eah.intervene(model, settings)
            logits = model.output.logits.save()
        values = case.readout.values(logits)
        torch.testing.assert_close(
            reading.logit[:, -1, 0], values, atol=2e-5, rtol=1e-5
        )
        last = case.encoding["input_ids"].shape[1] - 1
        # targets: a token at `last`, a difference there, half a token before
        for target, place in ((0, last), (1, last), (2, last - 1)):
            token = int(case.readout.tokens[case.readout.owner == target][0])
            share = logits[0, place].float().softmax(-1)[token]
            rank = 1 + int((logits[0, place] > logits[0, place, token]).sum())
            assert reading.probability[target, -1, 0] == pytest.approx(
                float(share), rel=1e-3, abs=1e-6
            )
            assert int(reading.rank[target, -1, 0]) == rank
    assert (found.patched.logit - found.plain.logit)[:, -1, 0].abs().max() > 1e-5


@pytest.mark.parametrize("family", WITHOUT_STREAM)
def test_a_model_without_a_residual_stream_is_refused(family):
    model = share_model(family)
    with pytest.raises(ModelError, match="has no residual stream that could be read"):
        logit_lens(model, pose_answer(family, model))


# -- against plain transformers ------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "paligemma2", "kosmos2"])
def test_every_layer_is_read_as_plain_transformers_would(family, monkeypatch):
    """`output_hidden_states` of the same weights, normed and unembedded by hand."""
    monkeypatch.setattr(lens_module, "LOGITS_AT_ONCE", 1000)  # a few places at a time
    model, plain = share_model(family), share_plain(family)
    inputs = Encoding(tiny_inputs(family))
    last = inputs["input_ids"].shape[1] - 1
    token = 7
    case = pose_tokens(inputs, {"x": [(last, token, 1.0)]})
    found = logit_lens(model, case, positions="image")
    with torch.no_grad():
        states = plain(**inputs, output_hidden_states=True).hidden_states[:-1]
        norm = plain.get_submodule(model.anatomy.final_norm)
        by_hand = [plain.get_output_embeddings()(norm(state))[0] for state in states]
    cap = getattr(plain.config.get_text_config(), "final_logit_softcapping", None)
    if cap is not None:
        by_hand = [cap * torch.tanh(logits / cap) for logits in by_hand]
    places = found.positions[0].tolist()
    columns = [c for span in model.spans(inputs)[0] for c in span.columns]
    assert places == [last, *columns]
    for point, logits in enumerate(by_hand):
        torch.testing.assert_close(
            found.plain.logit[0, point], logits[places, token], atol=1e-4, rtol=1e-4
        )
        ranks = 1 + (logits[places] > logits[places, token][:, None]).sum(-1)
        assert found.plain.rank[0, point].tolist() == ranks.tolist()


def test_synonyms_share_a_mean_logit_the_best_rank_and_a_sum_of_probabilities():
    """Of a difference, rank and probability are those of the words before the minus."""
    model, plain = share_model("llava"), share_plain("llava")
    inputs = Encoding(tiny_inputs("llava"))
    last = inputs["input_ids"].shape[1] - 1
    named, against = [7, 9, 12], [20, 21]
    words = [(last, token, 1 / 3) for token in named]
    both = words + [(last, token, -1 / 2) for token in against]
    case = pose_tokens(inputs, {"x": words, "x - y": both})
    found = logit_lens(model, case, positions="image")
    with torch.no_grad():
        logits = plain(**inputs, use_cache=False).logits[0].double()
    for place, position in enumerate(found.positions[0].tolist()):
        row = logits[position].tolist()
        total = sum(math.exp(logit) for logit in row)
        together = sum(math.exp(row[token]) for token in named) / total
        best = max(row[token] for token in named)
        rank = 1 + sum(logit > best for logit in row)
        mean = sum(row[token] for token in named) / 3
        lead = mean - sum(row[token] for token in against) / 2
        reading = found.plain
        assert reading.logit[:, -1, place].tolist() == pytest.approx(
            [mean, lead], abs=1e-4
        )
        assert reading.rank[:, -1, place].tolist() == [rank, rank]
        assert reading.probability[:, -1, place].tolist() == pytest.approx(
            [together, together], rel=1e-3
        )


def test_rows_of_a_batch_are_read_apart():
    model = share_model("llava")
    both = pose(model, list(PICTURES), list(QUESTIONS), objects=["cat", "boat"])
    found = logit_lens(model, both, patch=eah.EAH())
    assert [target.row for target in found.targets] == [0, 0, 1, 1]
    for row, (picture, question) in enumerate(zip(PICTURES, QUESTIONS, strict=True)):
        alone = logit_lens(
            model, picture, question, objects=["cat", "boat"], patch=eah.EAH()
        )
        mine = slice(2 * row, 2 * row + 2)
        for run in ("plain", "patched"):
            torch.testing.assert_close(
                getattr(found, run).logit[mine],
                getattr(alone, run).logit,
                atol=1e-4,
                rtol=1e-4,
            )


def test_a_row_with_fewer_image_tokens_has_no_number_beyond_them():
    model = share_model("qwen2_vl")
    inputs = encode("qwen2_vl")  # pictures of two sizes
    last = inputs["input_ids"].shape[1] - 1
    targets = [(f"row {row}", row, last, "x", [(last, 7, 1.0)]) for row in (0, 1)]
    case = Case(Encoding(inputs), None, read_tokens(targets))
    found = logit_lens(model, case, positions="image")
    counts = [(found.positions[row] >= 0).sum().item() for row in (0, 1)]
    assert counts[0] != counts[1]
    short = counts.index(min(counts))
    assert found.plain.logit[short, :, counts[short] :].isnan().all()
    assert (found.plain.rank[short, :, counts[short] :] == -1).all()
    assert not found.plain.logit[short, :, : counts[short]].isnan().any()
    assert not found.frame()["logit"].isna().any()


def test_the_planted_object_is_readable_only_after_the_head_that_writes_it():
    model = build_planted()
    found = logit_lens(
        model, random_image(), "Is there a", objects=[OBJECT.strip()], patch=None
    )
    written = found.plain.logit[0, :, 0].diff()  # by layer
    assert written.abs().argmax() == COPIES[0]
    others = written.clone()
    others[COPIES[0]] = 0
    assert others.abs().max() < 1e-5


def test_only_the_answer_is_read_unless_more_is_asked_for():
    model = share_model("llava")
    case = pose(model, list(PICTURES), list(QUESTIONS), objects=["cat"])
    more = logit_lens(model, case, positions="image", patch=eah.EAH())
    found = logit_lens(model, case, patch=eah.EAH())
    assert torch.equal(found.positions, more.positions[:, :1])
    for run in ("plain", "patched"):
        for name in ("logit", "probability"):
            torch.testing.assert_close(
                getattr(getattr(found, run), name),
                getattr(getattr(more, run), name)[..., :1],
                atol=1e-5,
                rtol=1e-4,
            )
    assert set(found.frame()["place"]) == {"answer"}
    assert found.top(1)["place"].tolist() == ["answer", "answer"]
    assert set(found.curves(0)["plain"]) == {"answer"}
    assert "other tokens" not in repr(found)
    with pytest.raises(SettingsError, match=r"read no image tokens.*positions="):
        found.top(1, place="image")


def test_positions_are_those_of_the_encoding_and_padding_is_none():
    """Against `output_hidden_states` of the same weights, two rows of two lengths."""
    model, plain = share_model("llava"), share_plain("llava")
    prompts = [QUESTIONS[0], f"{QUESTIONS[1]} Please answer in one word."]
    case = pose(model, list(PICTURES), prompts, objects=["cat"])
    mask = case.encoding["attention_mask"]
    n_padding = mask.shape[1] - mask.sum(1)
    assert n_padding.max() > 0
    shorter = int(n_padding.argmax())
    padded = mask[shorter].argmin()
    image = model.spans(case.encoding)[0][0].columns[2]
    found = logit_lens(model, case, positions=[int(padded), image, -2])
    width = mask.shape[1]
    assert found.positions[1 - shorter].tolist() == [
        width - 1,
        padded,
        image,
        width - 2,
    ]
    assert found.positions[shorter].tolist() == [width - 1, -1, image, width - 2]
    assert found.plain.logit[shorter, :, 1].isnan().all()
    table = found.frame()
    assert set(table["place"]) == {"answer", "image", "text"}
    assert table[table["read_at"] == image]["place"].eq("image").all()
    with torch.no_grad():
        states = plain(**case.encoding, output_hidden_states=True).hidden_states[:-1]
        norm = plain.get_submodule(model.anatomy.final_norm)
        head = plain.get_output_embeddings()
        for target, places in enumerate(found.positions.tolist()):
            token = int(case.readout.tokens[case.readout.owner == target][0])
            row = found.targets[target].row
            for point, state in enumerate(states):
                for number, place in enumerate(places):
                    if place < 0:
                        continue
                    value = head(norm(state[row, place]))[token]
                    assert float(found.plain.logit[target, point, number]) == (
                        pytest.approx(float(value), abs=1e-4)
                    )


@pytest.mark.parametrize(
    "positions", ["all", [], [3, 3], [-1, 10**6], [1.5], None, "image ", [0, True]]
)
def test_positions_that_are_not_there_are_refused_before_any_forward(
    as_users_run_it, monkeypatch, positions
):
    model = share_model("llava")
    last = tiny_inputs("llava")["input_ids"].shape[1] - 1
    case = pose_tokens(tiny_inputs("llava"), {"x": [(last, 7, 1.0)]})
    monkeypatch.setattr(type(model), "trace", None)
    with pytest.raises(SettingsError, match='positions must be "answer", "image"'):
        logit_lens(model, case, positions=positions)


def test_a_patch_changes_nothing_before_its_layer():
    model = share_model("llava")
    case = pose_answer("llava", model)
    found = logit_lens(model, case, patch=eah.EAH(layers=(1,)))
    change = (found.patched.logit - found.plain.logit).abs().amax((0, 2))
    assert (change[:2] == 0).all()  # the embedding and layer 0
    assert (change[2:] > 1e-5).all()
    assert set(found.donors) == {1}


# -- what comes after the unembedding ------------------------------------------------


def fit(raw, final, *, cap=None):
    """Ask what lies between two sets of logits of a LLaVA that returns `raw`."""
    hf_model = tiny_lvlm("llava", n_layers=2)
    hf_model.config.text_config.final_logit_softcapping = cap
    model = eah.wrap(hf_model, tiny_processor("llava"))
    with torch.no_grad():
        stream = torch.randn(5, hf_model.config.text_config.hidden_size)
        norm = hf_model.get_submodule(model.anatomy.final_norm)
        logits = hf_model.lm_head(norm(stream))
    return (
        find_unembedding(model, raw=raw(logits), final=final(logits), last=stream),
        stream,
        final(logits),
    )


@pytest.mark.parametrize(
    ("after", "cap", "scale"),
    [
        (lambda x: x, None, 1.0),
        (lambda x: x / 8, None, 0.125),
        (lambda x: 30 * torch.tanh(x / 30), 30.0, 1.0),
        (lambda x: 30 * torch.tanh(x / 4 / 30), 30.0, 0.25),
        (lambda x: x[:, :-3], None, 1.0),
        (lambda x: x.index_fill(1, torch.tensor([2, 5]), -3e38), None, 1.0),
    ],
)
def test_scales_caps_padding_and_switched_off_tokens_are_found(after, cap, scale):
    end, stream, final = fit(lambda x: x, after, cap=cap)
    assert end.scale == pytest.approx(scale, rel=1e-5)
    assert end.cap == (None if cap is None else cap)
    read = end.read(stream)
    on = ~end.off
    torch.testing.assert_close(read[:, on], final[:, on], atol=1e-5, rtol=1e-5)
    assert (read[:, end.off] == -math.inf).all()


def test_logits_that_are_not_finished_one_by_one_are_refused():
    with pytest.raises(ModelError, match="neither a constant factor nor the soft cap"):
        fit(lambda x: x, lambda x: x.log_softmax(-1))


def test_something_between_the_layers_and_the_norm_is_refused():
    with pytest.raises(ModelError, match="do not make this model's logits"):
        fit(lambda x: 2 * x, lambda x: 2 * x)


# -- the result ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_lens():
    model = eah.load()
    return logit_lens(
        model,
        random_image(),
        "Describe the image.",
        objects=["fish", "boat"],
        positions="image",
        patch=eah.EAH(),
    )


def test_the_frame_is_tidy_and_says_where(toy_lens):
    table = toy_lens.frame()
    n_places = toy_lens.positions.shape[1]
    assert len(table) == 2 * len(toy_lens.points) * n_places
    row = table[
        (table.object == "boat") & (table.point == "L3") & (table.place == "answer")
    ].iloc[0]
    assert row["layer"] == 3
    assert row["logit"] == pytest.approx(float(toy_lens.plain.logit[1, 4, 0]))
    assert row["change"] == pytest.approx(row["patched_logit"] - row["logit"])
    assert table[table.point == "embedding"]["layer"].isna().all()


def test_top_names_the_image_tokens_where_the_object_is_most_readable(toy_lens):
    top = toy_lens.top(3)
    assert top["object"].tolist() == ["fish"] * 3 + ["boat"] * 3
    assert (top["place"] == "image").all()
    best = toy_lens.plain.probability[1, :, 1:].max()
    assert top["probability"][3] == pytest.approx(float(best))
    lowest = toy_lens.top(1, by="patched_rank", place="answer")
    assert lowest["patched_rank"].tolist() == [
        int(rank) for rank in toy_lens.patched.rank[:, :, 0].amin(1)
    ]


def test_curves_are_means_and_maxima_over_image_tokens(toy_lens):
    curves = toy_lens.curves(1, of="probability")["patched"]
    values = toy_lens.patched.probability[1]
    torch.testing.assert_close(curves["answer"], values[:, 0])
    torch.testing.assert_close(curves["image mean"], values[:, 1:].mean(1))
    torch.testing.assert_close(curves["image max"], values[:, 1:].amax(1))


def test_a_lens_is_saved_and_loaded(toy_lens, tmp_path):
    loaded = LogitLens.load(toy_lens.save(tmp_path / "lens"))
    assert torch.equal(loaded.plain.logit, toy_lens.plain.logit)
    assert torch.equal(loaded.patched.rank, toy_lens.patched.rank)
    assert loaded.targets == toy_lens.targets
    assert loaded.points == toy_lens.points
    assert loaded.patch == toy_lens.patch
    assert loaded.frame().equals(toy_lens.frame())


def test_values_are_the_targets(toy_lens):
    model = eah.load()
    case = pose(model, random_image(), "Describe the image.", objects=["fish", "boat"])
    with torch.no_grad(), model.trace(**case.inputs):
        logits = model.output.logits.save()
    torch.testing.assert_close(
        toy_lens.values, case.readout.values(logits), atol=1e-5, rtol=1e-5
    )


# -- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 0}, "k must be an integer of 1 or more"),
        ({"by": "size"}, "no column to compare"),
        ({"place": "picture"}, "place must be one of answer, image, text"),
        ({"place": "text"}, "read no text tokens, only answer, image"),
    ],
)
def test_impossible_tops_are_refused(toy_lens, change, said):
    with pytest.raises(SettingsError, match=said):
        toy_lens.top(**change)


def test_impossible_curves_are_refused(toy_lens):
    with pytest.raises(SettingsError, match="target 2 does not exist"):
        toy_lens.curves(2)
    with pytest.raises(SettingsError, match="of must be logit or probability"):
        toy_lens.curves(0, of="rank")


def test_log_probabilities_are_refused():
    with pytest.raises(SettingsError, match="reads one position at a time"):
        logit_lens(eah.load(), random_image(), objects=["fish"], metric="log_prob")
    case = pose(eah.load(), random_image(), objects=["fish"], metric="log_prob")
    with pytest.raises(SettingsError, match="this case reads log-probabilities"):
        logit_lens(eah.load(), case)


def test_targets_of_several_positions_are_refused_before_any_forward(monkeypatch):
    model = share_model("llava")
    case = pose_tokens(tiny_inputs("llava"), {"x": [(20, 7, 1.0), (21, 7, 1.0)]})
    monkeypatch.setattr(type(model), "trace", None)
    with pytest.raises(SettingsError, match="expected one position for each target"):
        logit_lens(model, case)
    with pytest.raises(SettingsError, match="layer 9 does not exist"):
        logit_lens(model, case, patch=eah.EAH(layers=(9,)))


def test_tokens_that_are_switched_off_have_no_probability():
    model = share_model("chameleon")
    inputs = tiny_inputs("chameleon")
    last = inputs["input_ids"].shape[1] - 1
    with torch.no_grad(), model.trace(**Encoding(inputs)):
        logits = model.output.logits.save()
    token = int((logits[0, last] < OFF).nonzero()[0])
    found = logit_lens(model, pose_tokens(inputs, {"x": [(last, token, 1.0)]}))
    assert (found.plain.probability == 0).all()
