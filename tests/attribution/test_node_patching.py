"""Nodes at places: equal to hooks by hand, and places are what they are called."""

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import ablate_heads, patch_heads, patch_nodes
from eah_interp.attribution.node_patching import find_points
from eah_interp.attribution.node_places import check_places
from eah_interp.errors import InputError, ModelError, SettingsError
from eah_interp.testing import random_image
from eah_interp.toy import draw_scene
from tests.attribution.test_patching import pose_answer
from tests.tiny_families import ignore_renamed, share_model, share_plain

KINDS = (
    "llava",
    "gemma3",
    "gemma4",
    "qwen3_5",
    "lfm2_vl",
    "internvl_gpt_oss",
    "llama4",
)


def run_plain(plain, anatomy, inputs, change=None):
    """Run a plain model; keep what enters and leaves layers, or change one."""
    entering, leaving, handles = {}, {}, []
    for n, layer in enumerate(plain.get_submodule(anatomy.layers)):

        def enter(module, args, kwargs, n=n):
            stream = args[0] if args else kwargs["hidden_states"]
            if change is not None and change[0] == ("layers_input", n):
                stream = stream.clone()
                stream[:, change[1]] = change[2][:, change[1]]
            entering[n] = stream
            return (
                ((stream, *args[1:]), kwargs)
                if args
                else (
                    args,
                    {**kwargs, "hidden_states": stream},
                )
            )

        def leave(module, args, output, n=n):
            own = output[0] if isinstance(output, tuple) else output
            if change is not None and change[0] == ("layers_output", n):
                own = own.clone()
                own[:, change[1]] = change[2][:, change[1]]
            leaving[n] = own
            return (own, *output[1:]) if isinstance(output, tuple) else own

        handles += [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            layer.register_forward_hook(leave),
        ]
    with torch.no_grad():
        logits = plain(**inputs, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits, {"layers_input": entering, "layers_output": leaving}


@ignore_renamed
@pytest.mark.parametrize("family", KINDS)
def test_a_stream_at_some_positions_is_what_hooks_give(family):
    model, case = share_model(family), pose_answer(family)
    plain, other = share_plain(family), pose_answer(family, seed=5)
    nodes = ["embedding", "layers_output[1]", "layers_input[2]"]
    width = case.encoding["input_ids"].shape[1]
    places = {"some": [2, 3, -2], "all": "all"}
    found = patch_nodes(model, case, source_images=other, nodes=nodes, positions=places)
    own, _ = run_plain(plain, model.anatomy, dict(case.encoding))
    _, given = run_plain(plain, model.anatomy, dict(other.encoding))
    value = case.readout.values(own)
    for i, node in enumerate(
        [("layers_input", 0), ("layers_output", 1), ("layers_input", 2)]
    ):
        for j, where in enumerate([[2, 3, width - 2], list(range(width))]):
            change = (node, where, given[node[0]][node[1]])
            logits, _ = run_plain(plain, model.anatomy, dict(case.encoding), change)
            expected = case.readout.values(logits) - value
            torch.testing.assert_close(
                found.effects[:, i, j], expected, atol=5e-5, rtol=1e-3
            )
    assert found.effects.abs().max() > 1e-3


def test_with_the_last_layers_stream_the_other_run_comes_out():
    model, case = share_model("llava"), pose_answer("llava")
    other = pose_answer("llava", seed=5)
    found = patch_nodes(model, case, source_images=other, nodes="layers_output[-1]")
    total = found.source_values - found.values
    torch.testing.assert_close(found.effects[:, 0, 0], total, atol=1e-5, rtol=1e-4)


def test_heads_and_mlps_at_all_positions_are_what_head_patching_gives():
    model, case = share_model("llava"), pose_answer("llava")
    other = pose_answer("llava", seed=5)
    names = ["L0H1", "L2H3", "mlps_output[1]"]
    found = patch_nodes(model, case, source_images=other, nodes=names)
    heads = patch_heads(
        model,
        case,
        source_images=other,
        source="plain",
        heads=["L0H1", "L2H3", "L1.mlp"],
    )
    torch.testing.assert_close(found.effects[:, :, 0], heads.effects)
    zeroed = patch_nodes(model, case, source="zero", nodes="heads_output[1]")
    ablated = ablate_heads(
        model, case, heads=[(1, head) for head in range(4)], together=True
    )
    torch.testing.assert_close(zeroed.effects[:, :, 0], ablated.effects)


def test_places_are_found_by_what_stands_there():
    model, scene = eah.load(), draw_scene(0, objects=["boat", "fish"])
    case = eah.attribution.pose(
        model, scene.pil(), "Is there a boat in the image?", objects=["boat"]
    )
    names = ["all", "image", "text", "question", "object", "last"]
    everything, image, text, question, word, last = check_places(names).masks(
        model, case
    )
    ids = case.encoding["input_ids"][0]
    assert everything.all()
    assert int(image.sum()) == 100
    assert torch.equal(text, ~image)
    assert question.nonzero().min() > image.nonzero().max()
    assert model.tokenizer.decode(ids[word]).strip() == "boat"
    assert last.nonzero().tolist() == [[len(ids) - 1]]
    (box,) = check_places({"a corner": (0.0, 0.0, 0.2, 0.3)}).masks(model, case)
    first = int(image.nonzero()[0])
    assert box.nonzero().flatten().tolist() == [
        first + 10 * row + column for row in range(3) for column in range(2)
    ]


def test_a_yes_or_no_question_is_patched_where_it_names_its_object():
    model, scene = eah.load(), draw_scene(0, objects=["boat", "fish"])
    words = ["boat", "fish"]
    prompts = [f"Is there a {word} in the image?" for word in words]
    asked = {
        "images": [scene.pil(), scene.pil()],
        "prompts": prompts,
        "metric": "yes_no",
        "source_prompts": prompts[::-1],
        "nodes": ["embedding", "layers_output[2]"],
    }
    by_name = patch_nodes(
        model, positions="object", objects=[[word] for word in words], **asked
    )
    ids = model.encode(asked["images"], prompts)["input_ids"].tolist()
    (place,) = {
        [model.tokenizer.decode([i]).strip() for i in row].index(word)
        for row, word in zip(ids, words, strict=True)
    }
    by_number = patch_nodes(model, positions=[place], **asked)
    assert torch.equal(by_name.effects, by_number.effects)
    # The prompts differ in that word alone: with its embedding all has changed.
    change = by_name.source_values - by_name.values
    torch.testing.assert_close(by_name.effects[:, 0, 0], change)
    assert change.abs().min() > 0.01


@pytest.mark.parametrize(
    "where",
    ["corner", [], (0.0, 0.0, 2.0, 1.0), (0.5, 0.0, 0.1, 1.0), ["last", "last"]],
)
def test_what_is_no_place_is_refused(where, as_users_run_it):
    with pytest.raises(SettingsError, match="positions"):
        check_places(where)


def test_places_where_nothing_stands_are_refused():
    model, case = share_model("llava"), pose_answer("llava")
    with pytest.raises(InputError, match="'object' are none in item 0"):
        patch_nodes(
            model,
            random_image(),
            " what ?",
            objects=["cat"],
            source="zero",
            positions="object",
        )
    with pytest.raises(SettingsError, match="does not fit"):
        patch_nodes(model, case, source="zero", positions=[999])


def test_a_seed_that_is_none_is_refused_before_a_run(as_users_run_it):
    with pytest.raises(SettingsError, match="seed must be"):
        patch_nodes(
            share_model("llava"), pose_answer("llava"), source="resampled", seed="a"
        )


def test_nodes_that_do_not_exist_are_refused():
    with pytest.raises(SettingsError, match="is no node"):
        find_points(share_model("llava"), "L1.mlp")
    with pytest.raises(SettingsError, match=r"layers_output\[9\] does not exist"):
        find_points(share_model("llava"), "layers_output[9]")
    with pytest.raises(ModelError, match="layer 0 cannot be patched"):
        find_points(share_model("qwen3_5"), "heads_output[0]")
    assert len(find_points(share_model("qwen3_5"), "heads_output")) == 1


def test_nodes_are_listed_with_their_places():
    model, case = share_model("llava"), pose_answer("llava")
    found = patch_nodes(
        model,
        case,
        source="mean",
        nodes=["mlps_output[1]"],
        positions=["image", "last"],
    )
    assert found.frame()["name"].tolist()[:2] == [
        "mlps_output[1] at image",
        "mlps_output[1] at last",
    ]
    assert "1 nodes at image, last" in " ".join(repr(found).split())
