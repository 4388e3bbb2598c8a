"""Videos: the video token's id, named at load, makes their columns the image's."""

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError
from eah_interp.testing import tiny_lvlm
from tests.oracle_forward import OracleEAH, oracle_logits

FAMILIES = ["qwen2_vl", "qwen2_5_vl"]


def video_inputs(config):
    """Two frames of 4 x 4 patches, merged to 2 x 2 tokens each, between words."""
    vision = config.vision_config
    grid = torch.tensor([[2, 4, 4]])
    size = 3 * vision.temporal_patch_size * vision.patch_size**2
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(int(grid.prod()), size, generator=generator)
    words = torch.randint(20, 60, (9,), generator=generator).tolist()
    tokens = [config.video_token_id] * 8
    ids = [*words[:4], config.vision_start_token_id, *tokens, *words[4:]]
    ids = torch.tensor([ids])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixels,
        "video_grid_thw": grid,
        "mm_token_type_ids": torch.where(ids == config.video_token_id, 2, 0),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_video_is_scored_and_patched_as_the_slow_oracle_does(family):
    untouched = tiny_lvlm(family, attn_implementation="eager")
    config = untouched.config
    inputs = video_inputs(config)
    oracle = OracleEAH(
        inputs["input_ids"] == config.video_token_id, inputs["attention_mask"].bool()
    )
    expected = oracle_logits(untouched, inputs, edit_pattern=oracle)
    model = eah.wrap(
        tiny_lvlm(family, attn_implementation="eager"),
        None,
        image_token_id=config.video_token_id,
    )
    with torch.no_grad(), model.trace(**inputs, use_cache=False):
        patch = eah.intervene(model, eah.EAH())
        logits = model.output.logits.save()
    assert patch.donors.tolist() == oracle.donors[1].tolist()
    torch.testing.assert_close(patch.density, oracle.densities[1].float())
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-4)
    # With the image's id there is nothing to score, and that is said.
    model = eah.wrap(tiny_lvlm(family), None)
    with (
        pytest.raises(InputError, match="selects no tokens"),
        torch.no_grad(),
        model.trace(**inputs, use_cache=False),
    ):
        eah.intervene(model, eah.EAH())
