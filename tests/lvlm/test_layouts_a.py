"""Markers, codes, pooled grids and padded squares lie where the models put them.

The checks never use the code under test: the models' own packing run on codes and
patches that are their own numbers, pixels counted in what the processors make, and
boxes worked out by hand.
"""

from functools import cache

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eah_interp.errors import InputError, UnsupportedError
from eah_interp.lvlm.layouts.tiles import choose_canvas
from eah_interp.lvlm.spans import find_spans, image_token_id
from eah_interp.testing import (
    FAMILIES,
    random_image,
    tiny_inputs,
    tiny_lvlm,
    tiny_processor,
    tiny_tokenizer,
)

SPATIAL = (
    "aya_vision",
    "chameleon",
    "cohere2_vision",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "emu3",
    "gemma4",
    "got_ocr2",
    "janus",
    "lighton_ocr",
    "llava_mistral",
    "llava_next_video",
    "llava_pixtral",
    "ovis2",
    "paligemma2",
    "smolvlm",
)
LATENTS = ("idefics2", "instructblip", "blip_2")
SIZES = [(32, 32), (50, 30), (40, 90), (130, 70), (200, 60), (33, 180)]
PADDED = ("deepseek_vl", "janus")
side_lengths = st.integers(min_value=12, max_value=260)


@cache
def share_model(family):
    return tiny_lvlm(family, n_layers=1)


@cache
def share_processor(family):
    return tiny_processor(family) if FAMILIES[family].build_processor else None


def locate(family, sizes, **changes):
    """Encode one row of pictures of the given widths and heights; find their spans."""
    pictures = [
        random_image(seed, width=width, height=height)
        for seed, (width, height) in enumerate(sizes)
    ]
    prompts = [FAMILIES[family].placeholder * len(sizes) + " what ?"]
    inputs = tiny_inputs(family, images=[pictures], prompts=prompts)
    given = {
        "image_sizes": [(height, width) for width, height in sizes],
        "processor": share_processor(family),
        **changes,
    }
    (spans,) = find_spans(share_model(family).config, inputs, **given)
    return inputs, spans


def list_cells(span):
    return [c for part in span.parts for line in part.columns for c in line]


# -- every family


@pytest.mark.parametrize("family", SPATIAL)
def test_three_pictures_side_by_side_have_the_grids_that_each_has_alone(family):
    """The forward pass also raises where features and image tokens do not match."""
    sizes = [(50, 30), (40, 90), (64, 64)]
    inputs, together = locate(family, sizes)
    with torch.no_grad():
        share_model(family)(**inputs)
    mask = inputs["input_ids"][0] == image_token_id(share_model(family).config)
    columns = [column for span in together for column in span.columns]
    assert columns == mask.nonzero().flatten().tolist()
    for size, beside in zip(sizes, together, strict=True):
        _, (alone,) = locate(family, [size])
        shift = beside.start - alone.start
        assert beside.spatial
        assert list_cells(beside) == [column + shift for column in list_cells(alone)]
        assert [part.box for part in beside.parts] == [part.box for part in alone.parts]


@pytest.mark.parametrize("family", LATENTS)
def test_latents_of_a_real_encoding_have_no_place(family):
    inputs, spans = locate(family, [(50, 30), (40, 90)])
    with torch.no_grad():
        share_model(family)(**inputs)
    assert len(spans) == 2
    for span in spans:
        assert not span.spatial
        assert {span.place(column) for column in span.columns} == {None}


def test_idefics2_gives_a_split_picture_five_runs_of_latents():
    _, (span,) = locate("idefics2", [(50, 30)])
    assert len(span.columns) == 20


# -- rows that the encoding counts


@given(width=side_lengths, height=side_lengths)
def test_emu3_grids_leave_out_the_codes_that_the_model_puts_at_row_ends(width, height):
    model = share_model("emu3")
    inputs, (span,) = locate("emu3", [(width, height)])
    rows, columns = (inputs["image_sizes"][0] // 2).tolist()
    mapping = model.model.vocabulary_mapping
    packed = mapping.convert_img2bpe(torch.zeros(rows, columns, dtype=torch.long))
    ends = (packed.flatten() == mapping.eol_token_id).nonzero().flatten().tolist()
    assert span.grid == (rows, columns)
    assert set(span.columns) - set(list_cells(span)) == {span.start + i for i in ends}
    assert {span.place(span.start + i) for i in ends} == {None}
    last = list_cells(span)[-1]
    corner = (1 - 1 / columns, 1 - 1 / rows, 1, 1)
    assert span.place(last) == pytest.approx(corner)


@given(width=side_lengths, height=side_lengths)
def test_gemma4_cells_are_where_the_tower_pools_the_patches_of_their_box(width, height):
    inputs, (span,) = locate("gemma4", [(width, height)])
    places = inputs["image_position_ids"]
    tower = share_model("gemma4").model.vision_tower
    centres = (places + 0.5).clamp(min=0).float()  # each patch is its own place
    pooled, kept = tower.pooler._avg_pool_by_positions(centres, places, 70)
    extent = (places[0].amax(0) + 1).tolist()
    cells = list_cells(span)
    assert len(cells) == len(span.columns) == int(kept.sum())
    for column, (x, y) in zip(span.columns, pooled[0].tolist(), strict=False):
        left, top, right, bottom = span.place(column)
        assert (left + right) / 2 == pytest.approx(x / extent[0], abs=1e-5)
        assert (top + bottom) / 2 == pytest.approx(y / extent[1], abs=1e-5)


def test_gemma4_without_patch_places_is_refused():
    inputs = tiny_inputs("gemma4")
    del inputs["image_position_ids"]
    with pytest.raises(InputError, match="expected 'image_position_ids' in the enc"):
        find_spans(share_model("gemma4").config, inputs)


def test_lighton_rows_follow_each_other_without_a_break():
    _, (span,) = locate("lighton_ocr", [(96, 64)])
    assert span.grid == (4, 6)
    assert span.columns == tuple(range(span.start, span.start + 24))


def test_got_patches_are_convolved_to_a_quarter_of_each_side():
    _, (span,) = locate("got_ocr2", [(70, 40)])
    assert span.grid == (2, 2)
    assert span.place(span.columns[1]) == (0.5, 0.0, 1.0, 0.5)


# -- squares


@pytest.mark.parametrize("family", PADDED)
@given(width=side_lengths, height=side_lengths)
def test_a_padded_square_shows_the_picture_where_its_pixels_are(family, width, height):
    """A white picture is found among the grey pixels that pad it."""
    picture = Image.new("RGB", (width, height), "white")
    processor = share_processor(family)
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    shown = pixels[0, 0] > pixels[0, 0].max() - 0.1
    ys, xs = (shown.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    _, (span,) = locate(family, [(width, height)])
    left, top, right, bottom = span.parts[0].box
    x_scale, y_scale = 32 / (right - left), 32 / (bottom - top)
    assert (-left * x_scale, -top * y_scale) == pytest.approx((xs[0], ys[0]))
    assert ((1 - left) * x_scale, (1 - top) * y_scale) == pytest.approx(
        (xs[-1] + 1, ys[-1] + 1)
    )


def test_a_padded_square_without_the_pictures_size_has_no_known_place():
    _, (span,) = locate("deepseek_vl", [(50, 30)], image_sizes=None)
    assert span.grid == (4, 4)
    with pytest.raises(UnsupportedError, match="pass image_sizes and processor"):
        span.place(span.start)
    _, (span,) = locate("deepseek_vl", [(50, 30)], processor=None)
    assert span.parts[0].box is None


def test_a_square_that_is_not_padded_shows_the_whole_picture():
    processor = tiny_processor("janus")
    processor.image_processor.do_pad = False
    _, (span,) = locate("janus", [(32, 32)], processor=processor)
    assert span.place(span.columns[5]) == (0.25, 0.25, 0.5, 0.5)


def test_chameleon_shows_the_centre_that_its_processor_keeps():
    pictures = hf.ChameleonImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    processor = hf.ChameleonProcessor(pictures, tiny_tokenizer("chameleon"))
    _, (span,) = locate("chameleon", [(64, 32)], processor=processor)
    assert span.parts[0].box == pytest.approx((0.25, 0, 0.75, 1))
    _, (span,) = locate("chameleon", [(64, 32)])
    assert span.grid == (4, 4)
    assert span.parts[0].box is None


# -- tiles between markers


@pytest.mark.parametrize("size", SIZES)
def test_aya_tiles_are_those_of_the_real_processor(size):
    inputs, (span,) = locate("aya_vision", [size])
    *tiles, whole = span.parts
    assert len(span.parts) == len(inputs["pixel_values"])
    assert whole.box == (0, 0, 1, 1)
    lefts, tops = ({part.box[i] for part in tiles} for i in (0, 1))
    reference = hf.models.got_ocr2.image_processing_pil_got_ocr2
    columns, rows = reference.get_optimal_tiled_canvas(size[::-1], (32, 32), 1, 6)
    assert len(tiles) == (rows * columns if rows * columns > 1 else 0)
    assert (len(tops), len(lefts)) == ((rows, columns) if tiles else (0, 0))


def test_aya_tiles_that_the_processor_would_not_have_cut_are_refused():
    with pytest.raises(InputError, match="expected 2 tiles for image 0"):
        locate("aya_vision", [(96, 64)], image_sizes=[(32, 64)])


def test_aya_without_its_processor_knows_its_grids_and_places_the_whole_alone():
    _, (span,) = locate("aya_vision", [(96, 64)], processor=None)
    assert [part.name for part in span.parts] == ["tile"] * 6 + ["thumbnail"]
    assert [part.box for part in span.parts] == [None] * 6 + [(0, 0, 1, 1)]


@cache
def imitate_cohere2():
    """Give another processor the settings that Cohere2 Vision's would have."""
    processor = tiny_processor("aya_vision")
    assert processor.image_processor.max_patches == 6
    assert processor.image_processor.size["height"] == 32
    return processor


@given(width=side_lengths, height=side_lengths)
def test_cohere2_tiles_are_those_of_the_canvas_that_enlarges_least(width, height):
    processor = imitate_cohere2()
    pictures = processor.image_processor
    rows, columns = choose_canvas((height, width), pictures)
    scale = min(rows * 32 / height, columns * 32 / width)
    for other_rows in range(1, 7):
        for other_columns in range(1, 6 // other_rows + 1):
            other = min(other_rows * 32 / height, other_columns * 32 / width)
            if scale < 1:
                assert other <= scale
            elif other >= 1:
                assert other >= scale
                fewer = other_rows * other_columns < rows * columns
                assert other > scale or not fewer
    inputs, (span,) = locate("cohere2_vision", [(width, height)], processor=processor)
    assert len(span.parts) == len(inputs["pixel_values"])
    if rows * columns > 1:
        first = (0, 0, 1 / columns, 1 / rows)
        assert span.parts[0].box == pytest.approx(first)
        assert span.parts[-1].name == "thumbnail"


@given(width=side_lengths, height=side_lengths)
def test_ovis2_tiles_are_read_off_their_indicators(width, height):
    _, (span,) = locate("ovis2", [(width, height)], processor=None, image_sizes=None)
    picture = random_image(0, width=width, height=height)
    pictures = share_processor("ovis2").image_processor
    made = pictures(picture, return_tensors="pt")
    rows, columns = made["grids"][0].tolist()
    assert len(span.parts) == len(made["pixel_values"])
    first, *tiles = span.parts
    assert first.box == (0, 0, 1, 1)
    assert len({part.box[1] for part in tiles}) == (rows if tiles else 0)
    assert len({part.box[0] for part in tiles}) == (columns if tiles else 0)
    if tiles:
        assert tiles[-1].box == pytest.approx((1 - 1 / columns, 1 - 1 / rows, 1, 1))


def test_a_truncated_ovis2_picture_is_refused():
    inputs, (span,) = locate("ovis2", [(96, 64)])
    config = share_model("ovis2").config
    with pytest.raises(InputError, match="expected the indicator"):
        find_spans(config, {"input_ids": inputs["input_ids"][:, : span.stop]})


def test_smolvlm_tiles_are_read_off_their_markers():
    processor = tiny_processor("idefics3")  # has the same special tokens
    _, (span,) = locate("smolvlm", [(96, 64)], processor=processor)
    *tiles, whole = span.parts
    assert [part.box for part in tiles][-1] == pytest.approx((2 / 3, 0.5, 1, 1))
    assert whole.box == (0, 0, 1, 1)
