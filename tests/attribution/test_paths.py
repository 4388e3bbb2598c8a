"""Path patching: equal to one edge, whole forward passes, by hand, on every kind."""

import dataclasses
import re

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import PathPatching, ablate_heads, patch_paths
from eah_interp.attribution.direct_path import run_direct
from eah_interp.attribution.edges import list_receivers, list_senders
from eah_interp.attribution.replay import Replay
from eah_interp.errors import (
    InputError,
    ModelError,
    SettingsError,
    UnsupportedError,
)
from eah_interp.lvlm.inputs import Encoding
from eah_interp.testing import random_image
from tests.attribution.oracle_patching import run_by_hand
from tests.attribution.oracle_paths import PathsByHand
from tests.attribution.test_patching import pose_answer
from tests.tiny_families import (
    build_oracle,
    ignore_renamed,
    share_model,
    share_plain,
)

KINDS = (
    *("llava", "qwen2_5_vl", "gemma3", "qwen3_5", "lfm2_vl", "aya_vision"),
    *("minimax_m3_vl", "internvl_gpt_oss", "llama4", "glm4v", "qwen3_vl", "kosmos2"),
)
"""Norms behind heads and MLPs, side by side, gates, mixed decoders, images between
layers, position biases, sinks, experts, a norm within attention."""


def read_sender(name):
    if name == "embedding":
        return name, -1, None
    if head := re.fullmatch(r"L(\d+)H(\d+)", name):
        return "head", int(head[1]), int(head[2])
    layer, _, kind = name[1:].partition(".")
    return kind, int(layer), None


def read_receiver(name, n_layers):
    if name == "logit":
        return name, n_layers, 0
    if name.endswith(".mlp"):
        return "mlp", int(name[1:].partition(".")[0]), 0
    found = re.fullmatch(r"L(\d+)[HG](\d+)\.([qkv])", name)
    return found[3], int(found[1]), int(found[2])


def effects_by_hand(family, found, other):
    """Run every edge of a result by hand."""
    model, case = share_model(family), pose_answer(family)
    n_layers = model.anatomy.n_layers
    oracle = PathsByHand(
        share_plain(family), model.anatomy, case, dict(case.encoding), other
    )
    return oracle, torch.stack(
        [
            oracle.effect(
                [read_sender(one) for one in senders.split("+")],
                [read_receiver(one, n_layers) for one in receivers.split("+")],
            )
            for senders, receivers in zip(found.senders, found.receivers, strict=True)
        ],
        1,
    )


def assert_same(found, expected):
    size = max(1.0, float(expected.abs().max()))
    assert expected.abs().max() > 1e-3  # there is something to get right
    torch.testing.assert_close(found, expected, atol=3e-5 * size, rtol=1e-3)


def choose_ends(model):
    """Choose senders and receivers of every kind that a model has."""
    heads = sorted(model.anatomy.sites)
    first, last = heads[0], heads[-1]
    mixers = [one.name for one in list_senders(model) if one.kind == "mixer"]
    senders = ["embedding", f"L{first}H1", *(mixers[:1] or ["L0.mlp"])]
    reads = [one.name for one in list_receivers(model) if one.layer == last]
    receivers = [reads[3], *(one for one in reads if re.search(r"1\.[kv]", one))]
    return senders, [*receivers, f"L{last}.mlp", "logit"]


@ignore_renamed
@pytest.mark.parametrize("family", KINDS)
def test_every_edge_has_the_effect_of_forwards_of_its_own(family):
    model, case = share_model(family), pose_answer(family)
    senders, receivers = choose_ends(model)
    other = pose_answer(family, seed=5)
    found = patch_paths(
        model, case, source_images=other, senders=senders, receivers=receivers
    )
    oracle, expected = effects_by_hand(family, found, dict(other.encoding))
    assert_same(found.effects, expected)
    torch.testing.assert_close(found.values, oracle.value, atol=1e-4, rtol=1e-4)
    assert isinstance(found, PathPatching)


# -- laws ------------------------------------------------------------------------------


@ignore_renamed
@pytest.mark.parametrize("family", ["llava", "gemma3", "kosmos2", "qwen3_vl"])
def test_all_that_is_written_together_makes_the_other_run(family):
    model, case = share_model(family), pose_answer(family)
    everything = [[one.name for one in list_senders(model)]]
    found = patch_paths(
        model,
        case,
        source_images=pose_answer(family, seed=5),
        senders=everything,
        receivers="logit",
    )
    total = (found.source_values - found.values)[:, None]
    assert total.abs().min() > 1e-3
    torch.testing.assert_close(found.effects, total, atol=2e-5, rtol=1e-4)


@ignore_renamed
@pytest.mark.parametrize("family", ["llava", "aya_vision", "paligemma2"])
def test_edges_of_the_logit_add_up_where_the_last_norm_is_frozen(family):
    model, case = share_model(family), pose_answer(family)
    other = pose_answer(family, seed=5)
    names = [one.name for one in list_senders(model)]
    parts = {}
    for name in names:  # heads of a layer share the norm behind them, if there is one
        key = name.partition("H")[0] if "H" in name else name
        parts.setdefault(key, []).append(name)
    options = {"source_images": other, "receivers": ["logit"], "final_norm": "frozen"}
    found = patch_paths(model, case, senders=list(parts.values()), **options)
    whole = patch_paths(model, case, senders=[names], **options)
    assert len(found.names) == len(parts)
    torch.testing.assert_close(
        found.effects.sum(1, keepdim=True), whole.effects, atol=2e-5, rtol=1e-4
    )
    assert whole.effects.abs().min() > 1e-3


def test_a_frozen_edge_of_the_logit_is_the_change_of_a_direct_effect():
    model, case = share_model("llava"), pose_answer("llava")
    other = pose_answer("llava", seed=5)
    found = patch_paths(
        model,
        case,
        source_images=other,
        senders=["L0H1", "L2H3"],
        receivers="logit",
        final_norm="frozen",
    )
    direct, taken = run_direct(model, case, None), run_direct(model, other, None)
    for edge, (layer, head) in enumerate([(0, 1), (2, 3)]):
        new = direct.credit(layer, taken.outputs[layer])[:, head]
        change = new - direct.heads[layer][:, head]
        torch.testing.assert_close(found.effects[:, edge], change, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_sets_of_senders_and_receivers_are_patched_together(family):
    model, case = share_model(family), pose_answer(family)
    other = pose_answer(family, seed=5)
    found = patch_paths(
        model,
        case,
        source_images=other,
        senders=[["L0H1", "L0H2", "L1.mlp"], ["L1H0", "L0H0"]],
        receivers=[["L2H1.q", "L2G0.v"], ["L2.mlp", "L2H0.q"], "L2.mlp"],
    )
    assert found.frame()["input"].tolist()[:3] == ["set", "set", "stream"]
    _, expected = effects_by_hand(family, found, dict(other.encoding))
    assert_same(found.effects, expected)


def test_what_a_broadcast_changes_is_sent_on():
    model, case = share_model("llava"), pose_answer("llava")
    source = eah.EAH(layers=(1,))
    senders = ["L0H1", "L1H0", "L1H2"]
    found = patch_paths(
        model, case, source=source, senders=senders, receivers=["L2H1", "logit"]
    )
    oracle = PathsByHand(
        share_plain("llava"),
        model.anatomy,
        case,
        dict(case.encoding),
        dict(case.encoding),
    )
    eah_by_hand = build_oracle("llava", dict(case.encoding), layers=(1,))
    patched = run_by_hand(share_plain("llava"), dict(case.encoding), eah=eah_by_hand)
    for layer, heads in patched.outputs.items():
        oracle.source.heads[layer] = heads.transpose(1, 2)
    expected = torch.stack(
        [
            oracle.effect([read_sender(one)], [read_receiver(other, 3)])
            for one, other in zip(found.senders, found.receivers, strict=True)
        ],
        1,
    )
    assert_same(found.effects, expected)
    before = [i for i, name in enumerate(found.senders) if name == "L0H1"]
    assert not found.effects[:, before].any()  # nothing changes before the broadcast


def test_batches_of_any_size_say_the_same():
    model, case = share_model("qwen2_5_vl"), pose_answer("qwen2_5_vl")
    options = {"receivers": ["L1H1", "L2H3", "L1.mlp", "logit"], "source": "mean"}
    options["senders"] = ["embedding", "L0H1", "L1H2", "L0.mlp"]
    found = [patch_paths(model, case, batch_size=n, **options) for n in (1, 3, None)]
    assert found[0].effects.abs().max() > 1e-2
    for other in found[1:]:
        assert found[0].names == other.names
        torch.testing.assert_close(
            found[0].effects, other.effects, atol=1e-5, rtol=1e-4
        )


@ignore_renamed
@pytest.mark.parametrize(
    "family", ["llava", "gemma3", "qwen3_vl", "aya_vision", "paligemma"]
)
def test_what_stands_before_the_first_change_is_not_run_again(family, monkeypatch):
    """Two prompts that differ at the end, each edge by whole passes of its own."""
    model, case = share_model(family), pose_answer(family)
    ids = case.encoding["input_ids"].clone()
    place = int(ids.shape[1]) - 3
    ids[0, place] = ids[0, place - 1]
    other = dataclasses.replace(
        case, encoding=Encoding({**case.encoding, "input_ids": ids})
    )
    begun = []
    run = Replay.run

    def note(self, *args, **options):
        begun.append(options.get("first", 0))
        return run(self, *args, **options)

    monkeypatch.setattr(Replay, "run", note)
    senders, receivers = choose_ends(model)
    receivers = [*receivers, [*receivers[:1], f"L{model.anatomy.n_layers - 1}.mlp"]]
    found = patch_paths(
        model, case, source_images=other, senders=senders, receivers=receivers
    )
    _, expected = effects_by_hand(family, found, dict(other.encoding))
    assert_same(found.effects, expected)
    if family in ("llava", "qwen3_vl"):
        assert place in begun


# -- sources ---------------------------------------------------------------------------


def test_resampled_senders_write_what_they_write_in_another_item():
    model = share_model("llava")
    images, prompts = [random_image(0), random_image(3)], [" what ?"] * 2
    options = {"senders": ["L1H1"], "receivers": ["L2H0.q", "logit"]}
    found = patch_paths(
        model, images, prompts, objects=["cat"], source="resampled", **options
    )
    swapped = patch_paths(
        model,
        images,
        prompts,
        objects=["cat"],
        source_images=images[::-1],
        **options,
    )
    assert found.source == "resampled"
    assert found.source_values is None
    torch.testing.assert_close(found.effects, swapped.effects)
    assert found.effects.abs().max() > 1e-4
    table = found.average(split="none")
    assert table["name"].tolist() == ["L1H1 -> L2H0.q", "L1H1 -> logit"]
    assert table["low"].notna().all()


def test_a_sender_that_writes_nothing_is_a_head_ablated_in_one_reader_alone():
    model, case = share_model("llava"), pose_answer("llava")
    found = patch_paths(
        model, case, source="zero", senders=["L2H1"], receivers=["L2.mlp", "logit"]
    )
    whole = ablate_heads(model, case, heads=["L2H1"])
    assert found.effects.shape == (2, 2)
    # a head of the last layer acts by its MLP and directly: to first order the sum
    torch.testing.assert_close(
        found.effects.sum(1, keepdim=True), whole.effects, atol=0.05, rtol=0.2
    )


def test_another_prompt_has_the_same_number_of_tokens():
    model, image = share_model("llava"), random_image()
    options = {"objects": ["cat"], "senders": ["text"], "receivers": ["L1H0.q"]}
    found = patch_paths(
        model,
        image,
        " is there a cat ?",
        source_prompts=" is there a boat ?",
        **options,
    )
    assert found.effects.abs().max() > 0
    with pytest.raises(InputError, match=r"the source has .* tokens, the target"):
        patch_paths(
            model, image, " is there a cat ?", source_prompts=" what ?", **options
        )


# -- what is shown ---------------------------------------------------------------------


def test_edges_are_listed_with_who_sends_and_who_receives():
    model, case = share_model("llava"), pose_answer("llava")
    found = patch_paths(
        model,
        case,
        source="mean",
        senders=["L0H1", "L1.mlp"],
        receivers=["L1H3", "L2.mlp", "logit"],
    )
    table = found.frame()
    ends = ["sender", "receiver", "input"]
    assert table[ends].values.tolist()[:5] == [
        ["L0H1", "L1H3", "q"],
        ["L0H1", "L1G1", "k"],
        ["L0H1", "L1G1", "v"],
        ["L0H1", "L2.mlp", "stream"],
        ["L0H1", "logit", "stream"],
    ]
    assert table["name"][0] == "L0H1 -> L1H3.q"
    for _, own in found.top(3).groupby("target"):
        assert own["effect"].abs().is_monotonic_decreasing
    assert found.grid(1, receiver="L1H3.q").shape == (1, 2)
    with pytest.raises(SettingsError, match="received nothing"):
        found.grid(receiver="L9")
    assert "7 edges, metric logit" in " ".join(repr(found).split())


def test_the_number_of_passes_is_said_before_it_begins(capsys):
    model, case = share_model("llava"), pose_answer("llava")
    patch_paths(
        model,
        case,
        source="zero",
        senders=["L0H1", "L0H2"],
        receivers=["L2H1.q", "logit"],
        batch_size=4,
        progress=True,
    )
    said = capsys.readouterr().err
    assert "4 edges, at most 8 passes an item" in said


# -- refusals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "plain"}, "the source is the run itself"),
        ({"source": "noise"}, "source must be"),
        ({"senders": ["L9H0"]}, "'L9H0' does not exist"),
        ({"senders": ["L0H1", "L0H1"]}, "L0H1 is named twice"),
        ({"senders": []}, "senders must be a list of names"),
        ({"receivers": ["L2H3.k"]}, "heads 2 to 3 share it.*L2G1.k"),
        ({"receivers": [["L2H1.q", "logit"]]}, "names the logit with others"),
        ({"receivers": ["L2H1.z"]}, "receives nothing"),
        ({"senders": ["L2H1"], "receivers": ["L1H1.q"]}, "there is no edge"),
        ({"final_norm": "thawed"}, "final_norm"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"source": "zero", "source_images": random_image()}, "takes nothing from"),
    ],
)
def test_what_makes_no_edge_is_refused(changes, message, as_users_run_it):
    model, case = share_model("llava"), pose_answer("llava")
    options = {"source": "mean", "senders": ["L0H1"], "receivers": ["L2H1"], **changes}
    with pytest.raises(SettingsError, match=message):
        patch_paths(model, case, **options)


def test_one_item_alone_cannot_be_resampled():
    model, case = share_model("llava"), pose_answer("llava")
    with pytest.raises(InputError, match="expected two items at least, got 1"):
        patch_paths(model, case, source="resampled", receivers="logit")


def test_frozen_norms_need_a_metric_that_adds_up():
    model, case = share_model("llava"), pose_answer("llava", metric="log_prob")
    with pytest.raises(SettingsError, match="a log-probability is no sum"):
        patch_paths(model, case, source="zero", receivers="logit", final_norm="frozen")


@pytest.mark.parametrize("family", ["gemma4", "inkling2"])
def test_streams_that_are_scaled_on_the_way_are_refused_by_name(family):
    with pytest.raises(UnsupportedError, match="does not return its input plus"):
        patch_paths(
            share_model(family),
            pose_answer(family),
            source="zero",
            receivers="logit",
        )


def test_layers_without_heads_say_so():
    with pytest.raises(ModelError, match="layer 0 has no heads"):
        patch_paths(
            share_model("qwen3_5"),
            pose_answer("qwen3_5"),
            source="zero",
            senders=["L0H1"],
            receivers="logit",
        )
