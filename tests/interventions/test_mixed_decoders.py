"""Layers and models without a pattern of their own are refused; the rest is patched."""

import re

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError, ModelError
from eah_interp.lvlm.anatomy import resolve_anatomy
from eah_interp.testing import FAMILIES, tiny_inputs, tiny_lvlm

KINDS = {"qwen3_5": "Qwen3_5GatedDeltaNet", "lfm2_vl": "Lfm2ShortConv"}


@pytest.mark.parametrize("family", KINDS)
def test_a_layer_that_does_not_attend_is_refused_before_any_forward(family):
    model = eah.wrap(tiny_lvlm(family))
    runs = []
    layer = model._module.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda *_: runs.append(1))
    why = f"layer 2 cannot be patched: it has no attention call .*{KINDS[family]}.*; "
    with pytest.raises(ModelError, match=why + "layers that can: 1"):
        eah.edit(model, eah.EAH(layers=(1, 2)))
    assert not runs


@pytest.mark.parametrize("family", KINDS)
def test_only_layers_that_attend_are_hook_points(family):
    anatomy = resolve_anatomy(tiny_lvlm(family, n_layers=4))
    assert list(anatomy.sites) == [1, 3]
    assert list(anatomy.unfit) == [0, 2]


@pytest.mark.parametrize(
    ("family", "projection"),
    [
        ("muse_glimmer", "o_proj"),  # a gate is computed between
        ("kosmos2", "out_proj"),  # a norm stands between
        ("fuyu", "dense"),
        ("lfm2_vl", "out_proj"),
    ],
)
def test_the_output_projection_is_the_last_module_after_the_call(family, projection):
    site = resolve_anatomy(tiny_lvlm(family)).sites[1]
    assert site.out_proj == f"{site.path}.{projection}"


def test_heads_of_latent_attention_are_as_wide_as_their_queries():
    anatomy = resolve_anatomy(tiny_lvlm("kimi_k25", n_kv_heads=2, d_head=8))
    assert (anatomy.d_head, anatomy.n_heads, anatomy.n_kv_heads) == (16, 4, 4)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_a_sparse_layers_mask_is_one_of_each_group_of_heads(n_kv_heads):
    """Else the broadcast of MiniMax M3's masks would not be tested at all."""
    model = tiny_lvlm("minimax_m3_vl", n_kv_heads=n_kv_heads)
    seen = {}

    def keep(module, args, kwargs, output):
        seen["blocks"] = output

    handle = (
        model.get_decoder()
        .layers[1]
        .self_attn.indexer.register_forward_hook(keep, with_kwargs=True)
    )
    with torch.no_grad():
        model(**tiny_inputs("minimax_m3_vl"))
    handle.remove()
    assert seen["blocks"].shape[1] == n_kv_heads
    assert any(
        not torch.equal(seen["blocks"][:, 0], seen["blocks"][:, group])
        for group in range(1, n_kv_heads)
    )


def test_a_prompt_of_two_pictures_for_one_placeholder_is_refused():
    placeholder = re.escape(FAMILIES["llama4"].placeholder)
    with pytest.raises(InputError, match=f"expected one {placeholder} for each"):
        tiny_inputs("llama4", prompts=["no picture ?"])
