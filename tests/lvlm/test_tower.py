"""The tower's tokens and the image columns that are made of them, on every family."""

import pytest
import torch

from eah_interp.errors import InputError, UnsupportedError
from eah_interp.interventions import map_tower
from eah_interp.lvlm.anatomy import _find_vision_output
from tests.hooked import NO_TOWER, TOWER_OF, first
from tests.tiny_families import (
    SUPPORTED,
    encode,
    ignore_renamed,
    share_model,
    share_plain,
    sweep,
)

pytestmark = ignore_renamed

READ_FIRST = (
    *("llava", "llava_next", "llava_mistral", "llava_next_video", "phi4_multimodal"),
)
"""Families that read what leaves the first of the tiny towers' two layers."""

RESAMPLED = ("blip_2", "instructblip", "idefics2", "aria", "kosmos2")

MOST = 24
"""Tokens that are moved one by one."""


class ReachedTheDecoder(Exception):  # noqa: N818
    """Raised where nothing more needs to run."""


def draw_move(width):
    """Draw what is added to a token."""
    return torch.randn(256, generator=torch.Generator().manual_seed(1))[:width]


def read_stream(plain, encoding, path, move=None):
    """Run to the decoder's first layer, with one token of the tower moved."""
    seen = {}

    def hook(_, __, output):
        own = first(output)
        seen["shape"] = own.shape[:-1]
        if move is None:
            return output
        new = own.clone(memory_format=torch.contiguous_format)
        new.view(-1, new.shape[-1])[move] += draw_move(new.shape[-1])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def stop(_, args, kwargs):
        seen["stream"] = args[0] if args else kwargs["hidden_states"]
        raise ReachedTheDecoder

    decoder = share_model_path(plain)
    handles = [
        plain.get_submodule(path).register_forward_hook(hook, prepend=True),
        plain.get_submodule(decoder).register_forward_pre_hook(stop, with_kwargs=True),
    ]
    try:
        with torch.no_grad(), pytest.raises(ReachedTheDecoder):
            plain(**encoding, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen["stream"], tuple(seen["shape"])


def share_model_path(plain):
    """Find the decoder's first layer, as `tests/hooked.py` does: where it attends."""
    from tests.oracle_forward import decoder_attentions

    names = {id(module): name for name, module in plain.named_modules()}
    attentions = decoder_attentions(plain)
    some = names[id(next(iter(attentions.values())))]
    return f"{some.rsplit('.', 2)[0]}.0"


@pytest.mark.parametrize("family", sweep([f for f in SUPPORTED if f in TOWER_OF]))
def test_moving_one_token_of_the_tower_moves_exactly_its_columns(family):
    encoding, plain = encode(family), share_plain(family)
    path = f"{TOWER_OF[family]}.{0 if family in READ_FIRST else 1}"
    before, shape = read_stream(plain, encoding, path)

    found = map_tower(share_model(family), encoding)

    assert found.shape == shape
    assert found.spatial == (family not in RESAMPLED), found.reason
    n_tokens = found.n_tokens
    moved_some = 0
    for token in range(0, n_tokens, max(1, n_tokens // MOST)):
        after, _ = read_stream(plain, encoding, path, move=token)
        change = (after - before).abs().amax(-1)
        # Products of other numbers may differ in their last bit (Ovis 2).
        moved = (change > 1e-5 * change.max()).nonzero().tolist()
        if family in RESAMPLED:
            assert len(moved) > 1 or not moved
        else:
            assert found.columns_of(token) == tuple(map(tuple, moved)), token
        moved_some += bool(moved)
    assert moved_some > 1


@pytest.mark.parametrize("family", sweep([f for f in SUPPORTED if f in TOWER_OF]))
def test_both_ends_of_the_projector_are_read_and_written_as_by_plain_hooks(family):
    encoding, plain, model = encode(family), share_plain(family), share_model(family)
    path = f"{TOWER_OF[family]}.{0 if family in READ_FIRST else 1}"
    before, shape = read_stream(plain, encoding, path)
    token = torch.tensor(shape).prod().item() // 2 + 1  # no class token
    after, _ = read_stream(plain, encoding, path, move=token)
    with torch.no_grad(), model.trace(**encoding) as tracer:
        mask = model.image_mask.save()
        own = model.vision_output
        new = own.clone(memory_format=torch.contiguous_format)
        new.view(-1, new.shape[-1])[token] += draw_move(new.shape[-1])
        model.vision_output = new
        read = model.image_features.save()
        model.image_features = 2 * read
        stream = model.layers_input[0].save()
        tracer.stop()
    # Theirs is eager, ours SDPA where there is one.
    assert (read - after[mask]).abs().max() <= 1e-4 * after.abs().max()
    assert not torch.equal(before[mask], after[mask])
    assert torch.equal(stream[mask], 2 * read)
    assert torch.equal(stream[~mask], after[~mask])


def test_a_tower_that_is_read_before_its_first_layer_has_no_output():
    from transformers import LlavaConfig

    config = LlavaConfig(vision_feature_layer=0)
    assert _find_vision_output(config, 2) is None
    assert _find_vision_output(LlavaConfig(vision_feature_layer=1), 2) == 0
    assert _find_vision_output(LlavaConfig(vision_feature_layer=[-2, -3]), 4) == 2


def test_image_features_stand_in_the_prompt_only():
    model = share_model("llava")
    refused = pytest.raises(UnsupportedError, match="stand in the prompt's forward")
    settings = {"max_new_tokens": 2, "min_new_tokens": 2}
    with (
        refused,
        torch.no_grad(),
        model.generate(**encode("llava"), **settings) as tracer,
    ):
        for _ in tracer.iter[1]:
            model.image_features.save()


def test_no_image_no_map():
    model = share_model("llava")
    with pytest.raises(InputError, match="expected an image in the batch, got none"):
        map_tower(model, {"input_ids": torch.tensor([[1, 5, 6]])})


def test_what_a_map_says_of_tokens_and_columns():
    encoding = encode("qwen2_vl")
    found = map_tower(share_model("qwen2_vl"), encoding)
    column = found.spans[1][0].columns[0]
    tokens = found.tokens_of(column, item=1)
    assert len(tokens) == 4
    assert all(found.columns_of(token) == ((1, column),) for token in tokens)
    values = torch.arange(found.n_tokens).float()
    most = found.most(values)
    assert most[1, column] == max(tokens)
    assert torch.equal(most.isnan(), ~found.columns)
    table = found.frame()
    assert len(table) == found.n_tokens
    rows = table[(table["item"] == 1) & (table["column"] == column)]
    assert tuple(rows["token"]) == tokens
    assert (rows[["left", "top"]] == 0).all().all()
    with pytest.raises(InputError, match="item 0 has no image column 0"):
        found.tokens_of(0)
    with pytest.raises(InputError, match="token 40 does not exist: expected 0 to 39"):
        found.columns_of(40)
    with pytest.raises(InputError, match="expected one for each of 40 tokens"):
        found.most(values[1:])
    with pytest.raises(InputError, match="item 2 does not exist"):
        found.plot(2)


@pytest.mark.parametrize("family", NO_TOWER)
def test_without_a_tower_the_reason_is_said(family):
    found = map_tower(share_model(family), encode(family))
    assert not found.spatial
    assert "no vision tower" in found.reason
    assert not len(found.links)
