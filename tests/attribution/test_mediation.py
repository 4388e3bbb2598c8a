"""Mediators: equal to setting each node back by hand, and every path accounted for."""

import dataclasses

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution.mediation import Mediation, trace_mediators
from eah_interp.attribution.nodes import find_nodes
from eah_interp.errors import SettingsError
from eah_interp.testing import random_image
from tests.attribution.oracle_patching import edit_from, run_by_hand
from tests.attribution.test_patching import assert_same, pose_answer
from tests.tiny_families import (
    build_oracle,
    ignore_renamed,
    share_model,
    share_plain,
)


@ignore_renamed
@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("llava", (0,)),
        ("qwen2_5_vl", (0, 1)),
        ("lfm2_vl", (0,)),
        ("minimax_m3_vl", (0,)),
    ],
)
def test_every_node_is_set_back_as_by_hand(family, layers):
    model, case = share_model(family), pose_answer(family)
    fit = sorted(model.anatomy.sites)
    settings = eah.EAH(layers=tuple(fit[i] for i in layers))
    found = trace_mediators(model, case, eah=settings)
    plain, inputs = share_plain(family), dict(case.encoding)
    oracle = build_oracle(family, inputs, layers=settings.layers)
    nodes = find_nodes(model, found.nodes)
    before = run_by_hand(plain, inputs, watch=[n.path for n in nodes if n.path])
    patched = case.readout.values(run_by_hand(plain, inputs, eah=oracle).logits)
    oracle.steps = "all"  # with the donors that it has chosen
    restored = []
    for node in nodes:
        if node.path:
            change = {"blocks": {node.path: before.blocks[node.path]}}
        else:
            place = (node.layer, node.head)
            change = {"heads": {place: edit_from(before, *place, "output")}}
        run = run_by_hand(plain, inputs, eah=oracle, **change)
        restored.append(patched - case.readout.values(run.logits))
    assert_same(found.restored, torch.stack(restored, 1))
    total = patched - case.readout.values(before.logits)
    assert_same(found.total, total)


def test_mediators_come_after_the_patch_and_are_not_patched():
    model, case = share_model("llava"), pose_answer("llava")
    found = trace_mediators(model, case, eah=eah.EAH(layers=(0, 1)))
    heads = [f"L2H{head}" for head in range(4)]
    assert found.nodes == (*heads, "L0.mlp", "L1.mlp", "L2.mlp")


def test_what_no_node_carries_runs_along_the_residual_stream():
    """With all later nodes plain, the logit sees the patched layer's write alone."""
    model, case = share_model("llava"), pose_answer("llava")
    found = trace_mediators(model, case)
    plain, inputs = share_plain("llava"), dict(case.encoding)
    decoder = plain.model.language_model
    oracle = build_oracle("llava", inputs, layers=(1,))
    stream = {}
    handle = decoder.norm.register_forward_pre_hook(
        lambda _module, args: stream.update(final=args[0])
    )
    before = run_by_hand(plain, inputs)
    final = stream["final"]
    handle.remove()
    after = run_by_hand(plain, inputs, eah=oracle)
    written = (after.outputs[1] - before.outputs[1]).transpose(1, 2).flatten(2)
    moved = final + written @ decoder.layers[1].self_attn.o_proj.weight.T
    with torch.no_grad():
        logits = plain.lm_head(decoder.norm(moved))
    direct = case.readout.values(logits) - case.readout.values(before.logits)
    assert_same(found.unmediated, direct)


def test_with_every_path_cut_nothing_of_the_effect_is_left():
    """Read in an answer that is not patched itself: all must go by later nodes."""
    model, case = share_model("llava"), pose_answer("llava")
    prompt = torch.ones_like(case.encoding["input_ids"], dtype=torch.bool)
    prompt[:, -3:] = False
    case = dataclasses.replace(case, prompt_mask=prompt)
    found = trace_mediators(model, case)
    assert found.total.abs().max() > 1e-3
    assert found.unmediated.abs().max() < 1e-5
    one_layer = trace_mediators(model, case, nodes=[(2, head) for head in range(4)])
    assert one_layer.unmediated.abs().max() < 1e-5  # heads alone move between tokens
    some = trace_mediators(model, case, nodes=["L2.mlp"])
    assert some.unmediated.abs().max() > 1e-3


def test_shares_of_an_effect_that_is_not_there_are_undefined():
    model, case = share_model("llava"), pose_answer("llava")
    found = trace_mediators(model, case, eah=eah.EAH(beta=1e6), nodes=["L2H1"])
    assert not found.total.any()
    assert found.restored.abs().max() < 1e-5
    assert found.shares.isnan().all()
    there = trace_mediators(model, case, nodes=["L2H1"])
    assert there.shares.isfinite().all()
    torch.testing.assert_close(there.shares * there.total[:, None], there.restored)


def test_a_result_is_listed_drawn_saved_and_loaded(tmp_path):
    found = trace_mediators(
        eah.load(), random_image(), objects=["fish"], nodes=["L3H1", "L2.mlp"]
    )
    assert found.frame()["kind"].tolist() == ["head", "block"]
    assert found.top(1)["name"].tolist() == [
        found.nodes[int(found.restored[0].abs().argmax())]
    ]
    assert found.plot().axes
    again = Mediation.load(found.save(tmp_path / "mediation"))
    torch.testing.assert_close(again.restored, found.restored)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": []}, "the set of heads is empty"),
        ({"nodes": ["L9.mlp"]}, "'L9.mlp' is no node of this model"),
        ({"nodes": [(1, 0)]}, "L1H0 cannot carry the effect of patching layers 1"),
        ({"nodes": ["L0.mlp"]}, "L0.mlp cannot carry the effect of patching layers 1"),
        (
            {"nodes": [(2, 1)], "eah": eah.EAH(layers=(1, 2))},
            "L2H1 cannot carry the effect of patching layers 1, 2",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eah": eah.EAH(layers=(8,))}, "layer 8 does not exist"),
    ],
)
def test_nodes_that_carry_nothing_are_refused(
    monkeypatch, as_users_run_it, options, message
):
    model = eah.load()
    monkeypatch.setattr(type(model), "trace", None)
    with pytest.raises(SettingsError, match=message):
        trace_mediators(model, random_image(), **{"objects": ["fish"], **options})
