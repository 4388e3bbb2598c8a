"""Exact patching: equal to one head, one forward, by hand, on every kind of model."""

import dataclasses

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import Case, HeadPatching, ablate_heads, patch_heads
from eah_interp.attribution.nodes import list_block_nodes
from eah_interp.attribution.readouts import read_tokens
from eah_interp.attribution.replay import Replay, in_batches, prepare_replay
from eah_interp.attribution.runs import record
from eah_interp.lvlm.inputs import Encoding
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.attribution.oracle_patching import edit_from, run_by_hand
from tests.attribution.planted import COPIES, IRRELEVANT, OBJECT, build_planted
from tests.crossed import cross
from tests.tiny_families import (
    OFF,
    build_oracle,
    encode,
    ignore_renamed,
    share_model,
    share_plain,
)

KINDS = (
    "llava",
    "qwen2_5_vl",
    "gemma3",
    "qwen3_5",
    "lfm2_vl",
    "minimax_m3_vl",
    "inkling2",
    "internvl_gpt_oss",
    "gemma4",
    "llama4",
)
"""Grouped queries, windows, mixed decoders, masks per head, position biases, sinks."""

WHATS = ("output", "pattern", "values")


def pose_answer(family, seed=0, metric="logit"):
    """Ask for the logits of two tokens at the answer, and before it."""
    encoding = encode(family, [random_image(seed)], [" is there a cat ?"])
    last = encoding["input_ids"].shape[1] - 1
    with torch.no_grad():
        logits = share_plain(family)(**encoding, use_cache=False).logits
    on = (logits[0, last] > OFF).nonzero().flatten().tolist()
    aims = [
        ("a", 0, last, "a", [(last, on[7], 1.0), (last, on[9], -1.0)]),
        ("b", 0, last - 1, "b", [(last - 1, on[5], 1.0)]),
    ]
    return Case(Encoding(encoding), None, read_tokens(aims, metric=metric))


def layer_to_patch(model):
    return sorted(model.anatomy.sites)[-2:][0]


def effects_by_hand(
    family, case, source, target, what, *, other=None, together=False, names=None
):
    """Run the whole model once for every head, in eager attention."""
    plain = share_plain(family)
    inputs = dict(case.encoding)
    others = inputs if other is None else dict(other.encoding)

    def oracle(side, inputs=inputs):
        if side == "plain":
            return None
        return build_oracle(family, inputs, layers=side.layers, donor=side.donor)

    taken = run_by_hand(plain, others, eah=oracle(source, others))
    donating = oracle(target)
    into = run_by_hand(plain, inputs, eah=donating)
    if donating is not None:
        donating.steps = "all"  # the donors that it has chosen stay
    value = case.readout.values(into.logits)
    heads = names or [
        (layer, head)
        for layer in sorted(into.outputs)
        for head in range(into.outputs[layer].shape[1])
    ]
    sets = [heads] if together else [[head] for head in heads]
    changes = []
    for each in sets:
        edits = {head: edit_from(taken, *head, what) for head in each}
        run = run_by_hand(plain, inputs, eah=donating, heads=edits)
        changes.append(case.readout.values(run.logits) - value)
    return torch.stack(changes, 1)


def assert_same(found, expected):
    size = max(1.0, float(expected.abs().max()))
    assert expected.abs().max() > 1e-3  # there is something to get right
    torch.testing.assert_close(found, expected, atol=3e-5 * size, rtol=1e-3)


# -- against one forward per head ----------------------------------------------------


@ignore_renamed
@pytest.mark.parametrize(("family", "what"), cross([*KINDS], [*WHATS]))
def test_every_head_has_the_effect_of_a_forward_of_its_own(family, what):
    model, case = share_model(family), pose_answer(family)
    sides = {"source": eah.EAH(layers=(layer_to_patch(model),)), "target": "plain"}
    other = pose_answer(family, seed=5)
    found = patch_heads(model, case, source_images=other, what=what, **sides)
    assert found.source == "EAH, another image"
    expected = effects_by_hand(family, case, *sides.values(), what, other=other)
    assert found.effects.shape == expected.shape
    assert_same(found.effects, expected)


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("donor", ["densest", "uniform"])
def test_heads_are_put_back_into_a_patched_run(what, donor):
    model, case = share_model("qwen2_5_vl"), pose_answer("qwen2_5_vl")
    target = eah.EAH(layers=(0, 1), donor=donor)
    found = patch_heads(model, case, source="plain", target=target, what=what)
    expected = effects_by_hand("qwen2_5_vl", case, "plain", target, what)
    assert_same(found.effects, expected)


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("target", ["plain", eah.EAH(layers=(1,), donor=1)])
def test_heads_are_patched_together(what, target):
    model, case = share_model("qwen2_5_vl"), pose_answer("qwen2_5_vl")
    source = eah.EAH(layers=(0,))
    heads = [(0, 1), (0, 2), (1, 0), (2, 3)]
    options = {"source": source, "target": target, "what": what}
    found = patch_heads(model, case, heads=heads, together=True, **options)
    assert found.patches == ("L0H1+L0H2+L1H0+L2H3",)
    expected = effects_by_hand(
        "qwen2_5_vl", case, source, target, what, together=True, names=heads
    )
    assert_same(found.effects, expected)


def test_all_heads_of_the_patched_layer_together_are_the_whole_effect():
    model, case = share_model("llava"), pose_answer("llava", metric="log_prob")
    heads = [(1, head) for head in range(4)]
    found = patch_heads(model, case, source=eah.EAH(), heads=heads, together=True)
    total = (found.source_values - found.values)[:, None]
    assert total.abs().max() > 1e-3
    torch.testing.assert_close(found.effects, total, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen3_5", "qwen3_vl_moe"])
def test_components_that_are_no_heads_are_patched(family):
    model, case = share_model(family), pose_answer(family)
    settings = eah.EAH(layers=(layer_to_patch(model),))
    nodes = list_block_nodes(model)
    names = [node.name for node in nodes]
    found = patch_heads(model, case, source=settings, heads=names)
    plain, inputs = share_plain(family), dict(case.encoding)
    oracle = build_oracle(family, inputs, layers=settings.layers)
    taken = run_by_hand(plain, inputs, eah=oracle, watch=[n.path for n in nodes])
    value = case.readout.values(run_by_hand(plain, inputs).logits)
    expected = []
    for node in nodes:
        run = run_by_hand(plain, inputs, blocks={node.path: taken.blocks[node.path]})
        expected.append(case.readout.values(run.logits) - value)
    assert_same(found.effects, torch.stack(expected, 1))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("what", WHATS)
def test_an_answer_that_follows_the_prompt_is_left_unpatched(attention, what):
    options = {"n_kv_heads": 2, "attn_implementation": attention}
    model = eah.wrap(tiny_lvlm("llava", **options), tiny_processor("llava"))
    case = pose_answer("llava")
    prompt = torch.ones_like(case.encoding["input_ids"], dtype=torch.bool)
    prompt[:, -3:] = False
    case = dataclasses.replace(case, prompt_mask=prompt)
    found = patch_heads(model, case, source=eah.EAH(), what=what)
    plain, inputs = share_plain("llava"), dict(case.encoding)
    oracle = build_oracle("llava", inputs, layers=(1,))
    oracle.token_mask = oracle.token_mask & prompt
    taken = run_by_hand(plain, inputs, eah=oracle, rows=prompt)
    value = case.readout.values(run_by_hand(plain, inputs).logits)
    expected = []
    for layer in range(3):
        for head in range(4):
            edits = {(layer, head): edit_from(taken, layer, head, what)}
            run = run_by_hand(plain, inputs, heads=edits)
            expected.append(case.readout.values(run.logits) - value)
    assert_same(found.effects, torch.stack(expected, 1))


def test_layers_are_not_left_out_where_later_ones_use_their_keys():
    hf_model = tiny_lvlm("gemma4", n_layers=8, n_kv_heads=2)
    config = hf_model.config
    config.text_config.num_kv_shared_layers = 2
    torch.manual_seed(0)
    hf_model = type(hf_model)(config).eval()
    shares = [
        layer.self_attn.is_kv_shared_layer
        for layer in hf_model.model.language_model.layers
    ]
    assert shares == [False] * 6 + [True] * 2
    model = eah.wrap(hf_model)
    case = pose_answer("gemma4")
    recording = record(model, case)
    assert not prepare_replay(model, recording).skips_layers
    # the layers that store keys come after the middle: it alone would not show it
    assert Replay(recording, reuses_images=True, skips_layers=True).run(
        model, 2, start=4
    ).shape == (2, 2)
    found = ablate_heads(model, case, heads=[(7, 1), (6, 0), (2, 2)])
    assert found.effects.isfinite().all()


def test_ablated_heads_return_nothing_or_their_mean():
    model, case = share_model("qwen2_5_vl"), pose_answer("qwen2_5_vl")
    target = eah.EAH()
    found = ablate_heads(model, case, target=target)
    assert_same(
        found.effects, effects_by_hand("qwen2_5_vl", case, "plain", target, "zero")
    )
    mean = ablate_heads(model, case, how="mean", heads=[(1, 2)])
    plain, inputs = share_plain("qwen2_5_vl"), dict(case.encoding)
    before = run_by_hand(plain, inputs)
    average = before.outputs[1][:, 2].mean(1, keepdim=True)
    edit = {(1, 2): lambda _pattern, _values, z: average.expand_as(z)}
    run = run_by_hand(plain, inputs, heads=edit)
    change = case.readout.values(run.logits) - case.readout.values(before.logits)
    assert_same(mean.effects[:, 0], change)


# -- laws ----------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["plain", eah.EAH(layers=(0, 1), recipients=(0, 3))])
@pytest.mark.parametrize("what", WHATS)
def test_a_run_put_into_itself_changes_nothing(side, what):
    model, case = share_model("qwen2_5_vl"), pose_answer("qwen2_5_vl")
    found = patch_heads(model, case, source=side, target=side, what=what)
    assert float(found.effects.abs().max()) <= (0 if what == "output" else 1e-5)


def test_items_of_a_batch_are_patched_as_if_alone():
    model = eah.load()
    images, prompts = [random_image(0), random_image(1)], ["Is there a fish?"] * 2
    options = {
        "metric": "yes_no",
        "source": eah.EAH(donor="random", seed=(3, 4)),
        "heads": [(1, 2), (2, 5), "L4.mlp"],
    }
    both = patch_heads(model, images, prompts, **options)
    assert [target.row for target in both.targets] == [0, 1]
    for item in range(2):
        options["source"] = eah.EAH(donor="random", seed=3 + item)
        one = patch_heads(model, images[item], prompts[item], **options)
        torch.testing.assert_close(
            both.effects[item], one.effects[0], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("donor", ["densest", "mean", "uniform"])
def test_only_the_first_item_is_patched_where_settings_say_so(donor):
    model = eah.load()
    source = eah.EAH(items="first", donor=donor)
    found = patch_heads(
        model,
        [random_image(0), random_image(1)],
        ["Is there a fish?"] * 2,
        metric="yes_no",
        source=source,
        heads=[(1, h) for h in range(8)],
    )
    assert found.effects[0].abs().max() > 1e-3
    assert not found.effects[1].any()


def test_the_planted_head_comes_first_and_the_irrelevant_one_has_no_effect():
    model = build_planted()
    asked = {"prompts": "Is there a", "objects": [OBJECT.strip()]}
    layer, head = COPIES
    grey = random_image(3)
    for found in (
        patch_heads(model, random_image(), source="plain", source_images=grey, **asked),
        ablate_heads(model, random_image(), **asked),
        ablate_heads(model, random_image(), how="mean", **asked),
    ):
        assert found.top(1)["name"].tolist() == [f"L{layer}H{head}"]
        grid = found.grid()
        assert grid[COPIES].abs() > 1e-4
        assert grid[IRRELEVANT] == 0
        grid[COPIES] = 0
        assert not grid.any()


def test_a_result_is_listed_drawn_saved_and_loaded(tmp_path):
    found = patch_heads(
        eah.load(),
        random_image(),
        objects=["fish", "boat"],
        source=eah.EAH(),
        heads=[(1, 0), "L2.mlp", "L2H3"],
    )
    table = found.frame()
    assert table["kind"].tolist() == ["head", "block", "head"] * 2
    assert table["head"].isna().tolist() == [False, True, False] * 2
    assert found.grid().shape == (2, 4)
    assert found.grid().isnan().sum() == 6
    assert found.plot().axes
    again = HeadPatching.load(found.save(tmp_path / "patching"))
    assert again.patches == found.patches
    assert again.source_patch == eah.EAH()
    torch.testing.assert_close(again.effects, found.effects)


# -- memory --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"),
        MemoryError("out of memory"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_stays_so(error):
    sizes = []

    def run(jobs):
        sizes.append(len(jobs))
        if len(jobs) > 3:
            raise error
        return torch.tensor(jobs)

    with pytest.warns(UserWarning, match="out of memory with") as caught:
        found = in_batches([5, 3, 1, 4, 2, 9, 7, 8, 0, 6], run, batch_size=8)
    assert found.tolist() == [5, 3, 1, 4, 2, 9, 7, 8, 0, 6]
    assert sizes == [8, 4, 2, 2, 2, 2, 2]
    said = [str(warning.message) for warning in caught]
    assert [text.partition(" (")[0][-15:] for text in said] == [
        "going on with 4",
        "going on with 2",
    ]


def test_one_job_that_does_not_fit_and_other_errors_are_raised():
    def fail(jobs):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        in_batches([1], fail, batch_size=4)

    def break_down(jobs):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        in_batches([1, 2], break_down, batch_size=4)


def test_jobs_share_a_batch_only_under_one_key():
    batches = []

    def run(jobs):
        batches.append(jobs)
        return torch.tensor(jobs)

    jobs = [21, 11, 22, 12, 23]
    found = in_batches(jobs, run, batch_size=2, key=lambda job: job // 10)
    assert found.tolist() == jobs
    assert batches == [[11, 12], [21, 22], [23]]


def test_a_model_that_runs_out_of_memory_in_a_trace_goes_on_with_less():
    model = eah.wrap(tiny_lvlm("llava", n_kv_heads=2), tiny_processor("llava"))
    case = pose_answer("llava")
    expected = patch_heads(model, case, source=eah.EAH())

    def refuse(module, args):
        if args[0].shape[0] > 4:
            raise torch.OutOfMemoryError

    layers = model._module.model.language_model.layers
    handle = layers[2].mlp.register_forward_pre_hook(refuse)
    with pytest.warns(UserWarning, match="going on with 2"):
        found = patch_heads(model, case, source=eah.EAH())
    handle.remove()
    torch.testing.assert_close(found.effects, expected.effects, atol=1e-5, rtol=1e-4)


def test_a_replay_that_does_not_fit_is_not_taken_for_one_that_needs_more():
    model = eah.wrap(tiny_lvlm("llava", n_kv_heads=2), tiny_processor("llava"))
    recording = record(model, pose_answer("llava"))
    seen = []

    def refuse(module, args):
        seen.append(len(args[0]))
        raise torch.OutOfMemoryError

    layers = model._module.model.language_model.layers
    handle = layers[2].mlp.register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        prepare_replay(model, recording)
    handle.remove()
    assert seen == [2]
