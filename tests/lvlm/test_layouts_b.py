"""Layouts that a tiny processor does not reach; the rest is in `test_spans.py`."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image, ImageDraw

from eah_interp.errors import InputError, UnsupportedError
from eah_interp.lvlm.layouts.crops import find_pooled_box
from eah_interp.lvlm.spans import find_spans, image_token_id
from eah_interp.testing import random_image, tiny_inputs, tiny_lvlm


def paint(width, height):
    return random_image(width=width, height=height)


def configure(family):
    return tiny_lvlm(family, n_layers=1).config


def stand_in(**attributes):
    """Make a processor of nothing but these attributes."""
    processor = hf.ProcessorMixin.__new__(hf.ProcessorMixin)
    vars(processor).update(attributes)
    return processor


def locate(family, picture, **changes):
    sizes = [(picture.height, picture.width)]
    inputs = tiny_inputs(family, images=[[picture]])
    given = {"image_sizes": sizes, **changes}
    ((span,),) = find_spans(configure(family), inputs, **given)
    return span


# -- Phi-4-multimodal, repainted: its decoder embeds the tokens by itself


def read_embeddings(model, picture):
    seen = {}

    def keep(module, args):
        seen["embeddings"] = args[0].detach()

    handle = model.get_decoder().layers[0].register_forward_pre_hook(keep)
    with torch.no_grad():
        model(**tiny_inputs("phi4_multimodal", images=[[picture]]))
    handle.remove()
    return seen["embeddings"][0]


def overlap(box, region):
    width = min(box[2], region[2]) - max(box[0], region[0])
    height = min(box[3], region[3]) - max(box[1], region[1])
    return max(width, 0.0) * max(height, 0.0) / ((box[2] - box[0]) * (box[3] - box[1]))


@pytest.mark.parametrize("size", [(96, 96), (150, 90), (80, 200)])
def test_repainting_a_region_moves_the_columns_of_phi_4_that_show_it(size):
    model = tiny_lvlm("phi4_multimodal", n_layers=1)
    for name, module in model.named_modules():
        if "img_processor" in name and name.endswith("out_proj"):
            module.weight.data.zero_()
            module.bias.data.zero_()
    picture = Image.new("RGB", size, (90, 90, 90))
    span = locate("phi4_multimodal", picture)
    before = read_embeddings(model, picture)
    moved = 0
    for corner in [(0.0, 0.0), (0.62, 0.1), (0.3, 0.55), (0.7, 0.7)]:
        start = [int(c * side) for c, side in zip(corner, size, strict=True)]
        stop = [s + int(0.3 * side) for s, side in zip(start, size, strict=True)]
        region = np.array([*start, *stop]) / np.array([*size, *size])
        repainted = picture.copy()
        ImageDraw.Draw(repainted).rectangle(
            (*start, stop[0] - 1, stop[1] - 1), (255, 240, 20)
        )
        change = (read_embeddings(model, repainted) - before).abs().amax(-1)
        for column in span.columns:
            box = span.place(column)
            if box is None:
                assert change[column] < 1e-5
            elif overlap(box, region) > 0.3:
                assert change[column] > 1e-2
                moved += 1
            elif overlap(box, region + np.array([-1, -1, 1, 1]) / 16) == 0:
                assert change[column] <= 2e-2 * change.max()
    assert moved > 12


# -- tiles that only a real LFM2-VL processor cuts


def encode_lfm2():
    """Two pictures: 1 x 2 tiles and a view of 1 x 3, then one of 2 x 1 alone."""
    start, end, first, second, view = range(10, 15)
    tiles = [start, first, *[4] * 4, second, *[4] * 4, view, *[4] * 3, end]
    ids = [1, *tiles, start, 4, 4, end, 9]
    shapes = torch.tensor([[4, 4], [4, 4], [2, 6], [4, 2]])
    return {"input_ids": torch.tensor([ids]), "spatial_shapes": shapes}


def read_markers(*names):
    """Stand in for a processor whose tokenizer gives ids 12, 13... these names."""
    table = dict(enumerate(names, start=12))
    tokenizer = SimpleNamespace(
        convert_ids_to_tokens=lambda ids: [table[i] for i in ids]
    )
    return stand_in(tokenizer=tokenizer)


def test_lfm2_tiles_are_placed_by_their_markers():
    processor = read_markers("<|img_row_1_col_1|>", "<|img_row_1_col_2|>")
    ((tiled, single),) = find_spans(
        configure("lfm2_vl"), encode_lfm2(), processor=processor
    )
    assert [part.name for part in tiled.parts] == ["tile", "tile", "thumbnail"]
    assert tiled.parts[1].box == (0.5, 0.0, 1.0, 1.0)
    assert tiled.place(8) == (0.5, 0.0, 0.75, 0.5)
    assert tiled.place(tiled.columns[-1]) == pytest.approx((2 / 3, 0, 1, 1))
    assert [part.name for part in single.parts] == ["image"]
    assert single.grid == (2, 1)


def test_lfm2_tiles_without_a_tokenizer_have_no_known_place():
    ((tiled, _),) = find_spans(configure("lfm2_vl"), encode_lfm2())
    with pytest.raises(UnsupportedError, match="which region the 'tile' grid shows"):
        tiled.place(tiled.start)
    assert tiled.place(tiled.columns[-1]) == pytest.approx((2 / 3, 0, 1, 1))


def test_lfm2_markers_that_do_not_count_to_the_tiles_are_refused():
    processor = read_markers("<|img_row_1_col_1|>", "<|img_row_2_col_2|>")
    with pytest.raises(InputError, match=r"before the 2 tiles of image 0, got \['<"):
        find_spans(configure("lfm2_vl"), encode_lfm2(), processor=processor)


def test_lfm2_needs_the_shape_of_every_tile():
    encoding = encode_lfm2()
    encoding["spatial_shapes"] = encoding["spatial_shapes"][:3]
    with pytest.raises(InputError, match="1 rows from row 3 for image 1, got 3 rows"):
        find_spans(configure("lfm2_vl"), encoding)


# -- latents


@pytest.mark.parametrize("family", ["aria", "kosmos2"])
def test_learned_queries_have_no_place_and_are_no_grid(family):
    config = configure(family)
    inputs = tiny_inputs(family, images=[[paint(50, 30)], [paint(40, 90)]])
    for (span,) in find_spans(config, inputs):
        assert len(span.columns) == 6
        assert not span.spatial
        assert {span.place(column) for column in span.columns} == {None}


def test_aria_counts_queries_without_pixels_and_takes_a_split_picture_whole():
    config = configure("aria")
    ids = torch.tensor([[1, *[image_token_id(config)] * 6]])
    ((span,),) = find_spans(config, {"input_ids": ids})
    assert len(span.columns) == 6
    split = stand_in(image_processor=SimpleNamespace(split_image=True))
    ids = torch.tensor([[1, *[image_token_id(config)] * 18]])
    ((span,),) = find_spans(config, {"input_ids": ids}, processor=split)
    assert len(span.columns) == 18


# -- canvases

PADDED = ["fuyu", "inkling2", "kimi_k25", "llama4", "phi4_multimodal"]


@pytest.mark.parametrize("family", PADDED)
def test_a_padded_canvas_has_no_known_place_without_the_pictures_size(family):
    span = locate(family, paint(50, 30), image_sizes=None)
    assert span.spatial
    with pytest.raises(UnsupportedError, match="pass image_sizes and processor"):
        span.place(span.parts[0].columns[0][0])


@pytest.mark.parametrize(
    ("family", "limits"),
    [
        ("fuyu", {"size": {"height": 16, "width": 16}}),
        ("kimi_k25", {"size": SimpleNamespace(max_height=2), "max_patches": 16384}),
    ],
)
def test_a_canvas_of_another_size_than_the_pictures_has_no_known_place(family, limits):
    processor = stand_in(image_processor=SimpleNamespace(**limits))
    assert locate(family, paint(50, 30), processor=processor).parts[0].box is None


def test_inkling2_pads_a_picture_on_the_right_and_below():
    span = locate("inkling2", paint(50, 30))
    assert span.grid == (2, 4)
    assert span.parts[0].box == (0.0, 0.0, 64 / 50, 32 / 30)
    other = locate("inkling2", paint(50, 30), image_sizes=[(30, 70)])
    assert other.parts[0].box is None


def test_kimi_shrinks_a_large_picture_before_it_is_padded():
    """40 x 24 pixels in 6 patches at most: int(40 * 0.632...) x int(24 * 0.632...)."""
    config = configure("kimi_k25")
    limits = SimpleNamespace(max_patches=6, size=SimpleNamespace(max_height=512))
    ids = torch.full((1, 2), image_token_id(config))
    ((span,),) = find_spans(
        config,
        {"input_ids": ids, "image_grid_thw": torch.tensor([[1, 2, 4]])},
        image_sizes=[(24, 40)],
        processor=stand_in(image_processor=limits),
    )
    assert span.parts[0].box == (0.0, 0.0, 32 / 25, 16 / 15)


def test_llama4_may_enlarge_a_picture_to_the_whole_canvas():
    limits = SimpleNamespace(resize_to_max_canvas=True)
    processor = stand_in(image_processor=limits)
    plain = locate("llama4", paint(40, 20))
    enlarged = locate("llama4", paint(40, 20), processor=processor)
    assert plain.parts[0].box == pytest.approx((0, 0, 32 / 40, 32 / 20))
    assert enlarged.parts[0].box == pytest.approx((0, 0, 1 / 2, 1))


def test_phi_4_has_no_equal_cells_where_a_tower_has_an_odd_number_of_patches():
    config = configure("phi4_multimodal")
    config.vision_config.image_size = 24
    inputs = tiny_inputs("phi4_multimodal", images=[[paint(32, 32)]])
    ((span,),) = find_spans(config, inputs, image_sizes=[(32, 32)])
    assert [part.box for part in span.parts] == [None, None]


# -- pooled and merged patches


def test_pooled_squares_reach_over_the_edges_that_were_padded():
    """3 x 3 patches in 2 x 2 squares of 2 x 2, one row and column of padding."""
    numbers = torch.full((4, 4), -1)
    numbers[:3, :3] = torch.arange(9).view(3, 3)
    after = numbers.unfold(0, 2, 2).unfold(1, 2, 2).reshape(4, 4)
    assert find_pooled_box(after, (2, 2)) == (0.0, 0.0, 4 / 3, 4 / 3)
    before = numbers.roll((1, 1), (0, 1)).unfold(0, 2, 2).unfold(1, 2, 2)
    assert find_pooled_box(before.reshape(4, 4), (2, 2)) == (-1 / 3, -1 / 3, 1.0, 1.0)


def test_molmo2_without_column_tokens_has_one_run_for_each_view():
    config = configure("molmo2")
    patch = image_token_id(config)
    encoding = {
        "input_ids": torch.tensor([[1, 5, *[patch] * 4, 8, 6, *[patch] * 2, 8]]),
        "image_grids": torch.tensor([[2, 2, 1, 2]]),
        "image_token_pooling": torch.arange(24).view(6, 4),
    }
    ((span,),) = find_spans(config, encoding)
    assert [part.columns for part in span.parts] == [((2, 3), (4, 5)), ((8, 9),)]


def test_video_llama_needs_to_know_how_many_patches_are_merged():
    inputs = tiny_inputs("video_llama_3", images=[[paint(32, 32)]])
    del inputs["image_merge_sizes"]
    with pytest.raises(InputError, match=r"'image_merge_sizes' .* got none"):
        find_spans(configure("video_llama_3"), inputs)


def test_frames_of_a_muse_video_are_grids_of_their_own():
    config = hf.MuseGlimmerConfig(image_token_id=4)
    encoding = {
        "input_ids": torch.full((1, 8), 4),
        "image_grid_thw": torch.tensor([[2, 4, 4]]),
    }
    ((span,),) = find_spans(config, encoding)
    assert [part.columns[0] for part in span.parts] == [(0, 1), (4, 5)]
