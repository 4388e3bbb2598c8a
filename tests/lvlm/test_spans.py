"""A column must lead to the place in the picture that its patch was cut from.

Three checks that never use the code under test: the model's own packing run on features
that are their own numbers, the columns whose embedding moves when a region of the
picture is repainted, and what the real processors write.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from eah_interp.errors import InputError, ModelError, UnsupportedError
from eah_interp.lvlm.spans import find_spans, image_mask, image_token_id
from eah_interp.testing import (
    FAMILIES,
    random_image,
    tiny_inputs,
    tiny_lvlm,
    tiny_processor,
)
from tests.crossed import cross

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

LATENTS = ("idefics2", "instructblip", "blip_2", "aria", "kosmos2")
UNPLACED = ("smolvlm", "cohere2_vision", "chameleon")
"""Families whose processor would say what a grid shows, and cannot be built here."""
MIXED = ("got_ocr2", "deepseek_vl_hybrid", "emu3", "gemma4", "phi4_multimodal")
"""Families whose tower mixes patches in other ways than attention between them."""

SUPPORTED = [name for name, facts in FAMILIES.items() if not facts.refused]
PLACED = [name for name in SUPPORTED if name not in (*LATENTS, *UNPLACED)]
LOCAL = [name for name in PLACED if name not in MIXED]
SIZES = [(32, 32), (50, 30), (40, 90), (130, 70), (97, 31), (200, 60), (33, 180)]
side_lengths = st.integers(min_value=12, max_value=260)


def paint(width, height, seed=0):
    return random_image(seed, width=width, height=height)


@cache
def share_model(family):
    """Build a one-layer model once; tests that change it build their own."""
    return tiny_lvlm(family, n_layers=1)


@cache
def share_processor(family):
    return tiny_processor(family) if FAMILIES[family].build_processor else None


def encode(family, pictures=None, prompts=None):
    """Do what `tiny_inputs` does, with the shared processor."""
    processor = share_processor(family)
    if processor is None:
        return tiny_inputs(family, images=pictures, prompts=prompts)
    pictures = pictures or [[paint(32, 32)]]
    if prompts is None:
        prompts = [
            FAMILIES[family].placeholder * len(row) + " what ?" for row in pictures
        ]
    return processor(images=pictures, text=prompts, padding=True, return_tensors="pt")


def locate(family, pictures, prompts=None, **changes):
    """Encode pictures, nested by row, and find their spans."""
    inputs = encode(family, pictures, prompts)
    given = {
        "image_sizes": [(p.height, p.width) for row in pictures for p in row],
        "processor": share_processor(family),
        **changes,
    }
    return inputs, find_spans(share_model(family).config, inputs, **given)


def list_cells(span):
    return [c for part in span.parts for line in part.columns for c in line]


# -- every family


@pytest.mark.parametrize("family", SUPPORTED)
def test_spans_hold_exactly_the_image_tokens_of_each_row(family):
    q = FAMILIES[family].placeholder
    prompts = [q + " is there a boat", "a cat " + q + " or " + q + " what ?", "hello"]
    rows = [[paint(50, 30)], [paint(40, 90, 1), paint(130, 70, 2)], []]
    if family == "paligemma":  # its processor refuses a row without a picture
        prompts, rows = prompts[:2], rows[:2]
    inputs, spans = locate(family, rows, prompts)
    mask = image_mask(inputs["input_ids"], image_token_id(share_model(family).config))
    assert [len(row) for row in spans] == [len(row) for row in rows]
    for row, found in enumerate(spans):
        columns = [column for span in found for column in span.columns]
        assert columns == mask[row].nonzero().flatten().tolist()
        for number, span in enumerate(found):
            assert (span.row, span.image) == (row, number)
            assert (span.start, span.stop) == (span.columns[0], span.columns[-1] + 1)


@pytest.mark.parametrize("family", SUPPORTED)
def test_the_model_takes_as_many_image_tokens_as_the_spans_have(family):
    """The real forward pass raises where features and image tokens do not match."""
    model = share_model(family)
    for width, height in SIZES:
        inputs, ((span,),) = locate(family, [[paint(width, height)]])
        with torch.no_grad():
            model(**inputs)
        assert span.spatial == (family not in LATENTS)
        assert set(list_cells(span)) <= set(span.columns)
        assert len(list_cells(span)) == len(set(list_cells(span)))


@pytest.mark.parametrize("family", SUPPORTED)
def test_pictures_side_by_side_are_split_as_if_each_stood_alone(family):
    q = FAMILIES[family].placeholder
    pictures = [paint(50, 30), paint(40, 90, 1), paint(64, 64, 2)]
    _, (together,) = locate(family, [pictures], [q * 3 + " what ?"])
    apart = [locate(family, [[p]], [q + " what ?"])[1][0][0] for p in pictures]
    if family == "llava_onevision":  # several pictures in a prompt get no crops
        assert [len(span.parts) for span in together] == [1, 1, 1]
        assert [len(span.columns) for span in together] == [17, 17, 17]
        return
    for beside, alone in zip(together, apart, strict=True):
        shift = beside.start - alone.start
        assert beside.columns == tuple(column + shift for column in alone.columns)
        assert [part.box for part in beside.parts] == [part.box for part in alone.parts]
        assert beside.grid == alone.grid


@pytest.mark.parametrize("family", PLACED)
def test_padding_moves_a_span_and_nothing_else(family):
    q = FAMILIES[family].placeholder
    picture = paint(70, 45)
    prompts = [q + " what ?", q + " is there a big red boat in the picture ?"]
    inputs, spans = locate(family, [[picture], [picture]], prompts)
    _, ((single,),) = locate(family, [[picture]], prompts[:1])
    padding = int((inputs["attention_mask"][0] == 0).sum())
    assert padding > 0
    (padded,) = spans[0]
    assert padded.columns == tuple(column + padding for column in single.columns)
    assert [padded.place(c) for c in padded.columns] == [
        single.place(c) for c in single.columns
    ]


@pytest.mark.parametrize("family", PLACED)
def test_the_cells_of_a_part_cover_its_box_without_overlap(family):
    for width, height in SIZES:
        _, ((span,),) = locate(family, [[paint(width, height)]])
        for part in span.parts:
            boxes = [span.place(c) for line in part.columns for c in line]
            area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in boxes if b)
            left, top, right, bottom = np.clip(part.box, 0, 1)
            assert area == pytest.approx((right - left) * (bottom - top), abs=1e-9)


# -- the picture, repainted


def read_embeddings(family, model, picture):
    """Return what the decoder is given at each position."""
    seen = {}

    def keep(module, args, kwargs):
        seen["embeddings"] = kwargs["inputs_embeds"].detach()

    decoder = model.get_decoder()
    handle = decoder.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(**encode(family, [[picture]]))
    handle.remove()
    return seen["embeddings"][0]


@cache
def build_local_model(family):
    """Build a model whose vision tower does not mix patches."""
    model = tiny_lvlm(family, n_layers=1)
    outputs = ("out_proj", "attn.proj", "projection_layer", "o_proj")
    for name, module in model.named_modules():
        vision = "vision" in name or "visual" in name
        if vision and name.endswith(outputs):
            module.weight.data.zero_()
            module.bias is None or module.bias.data.zero_()
    return model


def overlap(box, region):
    """Return the share of a box that lies in a region."""
    width = min(box[2], region[2]) - max(box[0], region[0])
    height = min(box[3], region[3]) - max(box[1], region[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(width, 0.0) * max(height, 0.0) / area


@pytest.mark.parametrize(
    ("family", "size"), cross([*LOCAL], [(96, 96), (150, 90), (80, 200), (230, 64)])
)
def test_repainting_a_region_moves_the_columns_that_show_it_and_no_others(family, size):
    width, height = size
    model = build_local_model(family)
    picture = Image.new("RGB", size, (90, 90, 90))
    _, ((span,),) = locate(family, [[picture]])
    before = read_embeddings(family, model, picture)
    moved_once = set()
    for corner in [(0.0, 0.0), (0.62, 0.1), (0.3, 0.55), (0.7, 0.7)]:
        pixels = [int(corner[0] * width), int(corner[1] * height)]
        pixels += [pixels[0] + int(0.3 * width), pixels[1] + int(0.3 * height)]
        region = np.array(pixels) / np.array([width, height] * 2)
        # resampling spreads a pixel over its neighbours, more so where it shrinks
        reach = np.array([-1, -1, 1, 1]) * 0.5 / 8
        repainted = picture.copy()
        ImageDraw.Draw(repainted).rectangle(
            (pixels[0], pixels[1], pixels[2] - 1, pixels[3] - 1), (255, 240, 20)
        )
        after = read_embeddings(family, model, repainted)
        change = (after - before).abs().amax(-1)
        for column in span.columns:
            box = span.place(column)
            if box is None:
                assert change[column] < 1e-5
            elif overlap(box, region) > 0.3:
                assert change[column] > 1e-2
                moved_once.add(column)
            elif overlap(box, region + reach) == 0:
                assert change[column] <= 2e-2 * change.max()
        outside = [i for i in range(len(change)) if i not in span.columns]
        assert change[outside].max() == 0
    shown = [column for column in list_cells(span) if span.place(column)]
    assert len(moved_once) > len(shown) / 4


# -- LLaVA-NeXT and LLaVA-OneVision, against the model's own packing


def pack_numbers(model, size):
    """Pack features that are their own numbers; newline vectors are -1."""
    config = model.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    pixels = config.vision_config.image_size
    canvas = hf.image_processing_utils.select_best_resolution(
        size, config.image_grid_pinpoints
    )
    crops = 1 + (canvas[0] // pixels) * (canvas[1] // pixels)
    features = torch.arange(crops * side**2).float().view(crops, side**2, 1)
    options = {"image_newline": torch.tensor([-1.0])}
    if config.model_type == "llava_next":
        options["vision_feature_select_strategy"] = "default"
    packed, _ = model.model.pack_image_features(
        [features], torch.tensor([size]), **options
    )
    return packed[0].flatten().long().tolist(), canvas, side, pixels


@given(width=side_lengths, height=side_lengths)
def test_llava_next_grids_are_those_of_the_models_own_packing(width, height):
    model = share_model("llava_next")
    packed, canvas, side, pixels = pack_numbers(model, (height, width))
    ids = torch.full((1, len(packed) + 1), image_token_id(model.config))
    ids[0, 0] = 1
    encoding = {"input_ids": ids, "image_sizes": torch.tensor([[height, width]])}
    ((span,),) = find_spans(model.config, encoding)
    base, *others = span.parts
    assert [packed[c - 1] for line in base.columns for c in line] == list(
        range(side**2)
    )
    newlines = [c for c in span.columns if packed[c - 1] == -1]
    assert [span.place(c) for c in newlines] == [None] * len(newlines)
    assert set(newlines).isdisjoint(list_cells(span))
    if not others:  # so thin that newlines are all that is left
        assert set(packed[side**2 :]) <= {-1}
        return
    (crops,) = others
    wide = canvas[1] // pixels * side
    seen = np.array([[packed[c - 1] for c in line] for line in crops.columns])
    crop, inner = np.divmod(seen - side**2, side**2)
    rows = crop // (canvas[1] // pixels) * side + inner // side
    columns = crop % (canvas[1] // pixels) * side + inner % side
    assert (rows == rows[0, 0] + np.arange(len(seen))[:, None]).all()
    assert (columns == columns[0, 0] + np.arange(len(seen[0]))).all()
    check_box(crops.box, rows, columns, (height, width), canvas, pixels / side, wide)


def check_box(box, rows, columns, size, canvas, patch, wide):
    """Compare a box with where the kept rows and columns lie on the canvas."""
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    x_pad = (canvas[1] - size[1] * scale) / 2
    y_pad = (canvas[0] - size[0] * scale) / 2
    expected = (
        (columns.min() * patch - x_pad) / (size[1] * scale),
        (rows.min() * patch - y_pad) / (size[0] * scale),
        ((columns.max() + 1) * patch - x_pad) / (size[1] * scale),
        ((rows.max() + 1) * patch - y_pad) / (size[0] * scale),
    )
    pixel = 1 / (min(size) * scale)  # sizes and paddings are whole pixels
    assert box == pytest.approx(expected, abs=1.5 * pixel)
    assert columns.max() < wide


@given(width=side_lengths, height=side_lengths)
def test_onevision_grids_are_those_of_the_models_own_packing(width, height):
    model = share_model("llava_onevision")
    packed, _, side, _ = pack_numbers(model, (height, width))
    ids = torch.full((1, len(packed)), image_token_id(model.config))
    encoding = {"input_ids": ids, "image_sizes": torch.tensor([[height, width]])}
    ((span,),) = find_spans(model.config, encoding)
    base, *others = span.parts
    assert [packed[c] for line in base.columns for c in line] == list(range(side**2))
    newlines = {i for i, number in enumerate(packed) if number == -1}
    assert newlines == set(span.columns) - set(list_cells(span))
    for crops in others:
        seen = np.array([[packed[c] for c in line] for line in crops.columns])
        assert (np.diff(seen[:, 0]) > 0).all()
        assert (np.diff(seen[0]) > 0).all()


def test_onevision_shrinks_the_crops_of_a_large_picture():
    _, ((span,),) = locate("llava_onevision", [[paint(128, 128)]])
    assert (len(span.parts[1].columns), len(span.parts[1].columns[0])) == (12, 12)
    assert span.parts[1].box == (0.0, 0.0, 1.0, 1.0)


def test_pixels_that_make_no_whole_patch_are_in_no_box():
    """SigLIP cuts 384 pixels in 27 patches of 14 and never sees the last 6."""
    model = tiny_lvlm("llava_onevision", n_layers=1)
    model.config.vision_config.image_size = 36
    sizes = {"image_sizes": torch.tensor([[36, 36], [36, 36]])}
    ids = torch.full((1, 34), image_token_id(model.config))
    encoding = {"input_ids": ids, "batch_num_images": torch.tensor([2]), **sizes}
    ((first, _),) = find_spans(model.config, encoding)
    assert first.parts[0].box == pytest.approx((0, 0, 32 / 36, 32 / 36))


# -- LLaVA -----------------------------------------------------------------------------


@given(width=side_lengths, height=side_lengths)
def test_llava_shows_the_centre_square_of_the_picture(width, height):
    _, ((span,),) = locate("llava", [[paint(width, height)]])
    side = min(width, height)
    box = span.parts[0].box
    assert (box[2] - box[0]) * width == pytest.approx(side, rel=0.04)
    assert (box[3] - box[1]) * height == pytest.approx(side, rel=0.04)
    scaled_pixel = side / 32
    assert (box[0] + box[2]) / 2 * width == pytest.approx(width / 2, abs=scaled_pixel)
    assert (box[1] + box[3]) / 2 * height == pytest.approx(height / 2, abs=scaled_pixel)


def test_llava_that_pads_to_a_square_has_patches_that_show_no_picture():
    processor = tiny_processor("llava")
    processor.image_processor.do_pad = True
    picture = Image.new("RGB", (80, 40))
    _, ((span,),) = locate("llava", [[picture]], processor=processor)
    assert span.parts[0].box == pytest.approx((0.0, -0.5, 1.0, 1.5))
    rows = span.parts[0].columns
    assert [span.place(c) for c in (*rows[0], *rows[3])] == [None] * 8
    assert span.place(rows[1][0]) == pytest.approx((0.0, 0.0, 0.25, 0.5))


def test_llava_without_the_pictures_size_knows_the_grid_and_refuses_the_place():
    inputs = encode("llava")
    config = share_model("llava").config
    ((span,),) = find_spans(config, inputs)
    assert span.grid == (4, 4)
    with pytest.raises(UnsupportedError, match="pass image_sizes and processor"):
        span.place(span.start)


def test_a_llava_processor_that_only_resizes_shows_the_whole_picture_at_any_size():
    processor = tiny_processor("llava")
    processor.image_processor.do_center_crop = False
    inputs = encode("llava")
    config = share_model("llava").config
    ((span,),) = find_spans(config, inputs, processor=processor)
    assert span.place(span.columns[5]) == (0.25, 0.25, 0.5, 0.5)


def test_a_class_token_that_is_kept_has_no_place():
    config = tiny_lvlm("llava", n_layers=1).config
    config.vision_feature_select_strategy = "full"
    ids = torch.full((1, 17), image_token_id(config))
    ((span,),) = find_spans(config, {"input_ids": ids})
    assert span.parts[0].columns[0] == (1, 2, 3, 4)
    assert span.place(0) is None


def test_llava_with_a_pixtral_tower_has_a_row_for_each_run():
    config = hf.LlavaConfig(
        vision_config=hf.PixtralVisionConfig(patch_size=8), image_token_id=4
    )
    ids = torch.tensor([[1, 4, 4, 4, 5, 4, 4, 4, 6]])
    encoding = {"input_ids": ids, "image_sizes": torch.tensor([[16, 24]])}
    ((span,),) = find_spans(config, encoding)
    assert span.parts[0].columns == ((1, 2, 3), (5, 6, 7))


# -- tiles


@given(width=side_lengths, height=side_lengths)
def test_internvl_tiles_are_those_of_the_real_processor(width, height):
    """A tile's pixels are those of its box, cut from the picture and resized."""
    _, ((span,),) = locate("internvl", [[paint(width, height)]])
    n_tiles = len(span.columns) // 4
    assert len(span.parts) == n_tiles
    if n_tiles > 1:
        lefts = {part.box[0] for part in span.parts[:-1]}
        tops = {part.box[1] for part in span.parts[:-1]}
        reference = hf.models.got_ocr2.image_processing_pil_got_ocr2
        expected = reference.get_optimal_tiled_canvas((height, width), (32, 32), 1, 6)
        assert (len(lefts), len(tops)) == expected


def test_internvl_without_the_pictures_size_places_the_thumbnail_alone():
    _, ((span,),) = locate("internvl", [[paint(96, 64)]], image_sizes=None)
    *tiles, thumbnail = span.parts
    assert [tile.box for tile in tiles] == [None] * 6
    assert span.place(thumbnail.columns[0][0]) == (0.0, 0.0, 0.5, 0.5)
    with pytest.raises(UnsupportedError, match="which region the 'tile' grid shows"):
        span.place(span.start)


def test_internvl_tiles_that_the_processor_would_not_have_cut_are_refused():
    with pytest.raises(InputError, match="expected 2 tiles for image 0"):
        locate("internvl", [[paint(96, 64)]], image_sizes=[(32, 64)])


@pytest.mark.parametrize("processed", [True, False])
def test_idefics_tiles_are_read_off_their_markers(processed):
    given = {} if processed else {"processor": None}
    _, ((span,),) = locate("idefics3", [[paint(96, 64)]], **given)
    *tiles, thumbnail = span.parts
    boxes = [tile.box for tile in tiles]
    assert len(boxes) == 6
    assert boxes[1] == (pytest.approx((1 / 3, 0, 2 / 3, 0.5)) if processed else None)
    assert span.place(thumbnail.columns[1][1]) == (0.5, 0.5, 1.0, 1.0)


def test_idefics_markers_of_several_tokens_are_read_as_well():
    """Idefics3's own tokenizer writes `<row_1_col_1>` in pieces; SmolVLM's does not."""
    inputs, ((span,),) = locate("idefics3", [[paint(96, 64)]])
    processor = tiny_processor("idefics3")
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    processor.tokenizer.add_tokens(
        [f"row_{r}_col_{c}" for r in (1, 2) for c in (1, 2, 3)]
    )
    pieces = []
    for word in words:
        marked = word.startswith("<row")
        split = ["<", word.strip("<>"), ">"] if marked else [word]
        split = ["<", "image", "-", ">"] if word == "<global-img>" else split
        pieces.extend(split)
    ids = torch.tensor([processor.tokenizer.convert_tokens_to_ids(pieces)])
    config = share_model("idefics3").config
    ((again,),) = find_spans(config, {"input_ids": ids}, processor=processor)
    assert [part.box for part in again.parts] == [part.box for part in span.parts]
    assert len(again.columns) == len(span.columns)


def test_a_small_idefics_picture_is_one_grid():
    _, ((span,),) = locate("idefics3", [[paint(96, 96)]], None)
    processor = tiny_processor("idefics3")
    processor.image_processor.do_image_splitting = False
    encoding = processor(
        images=[[paint(96, 96)]], text=["<image> a boat"], return_tensors="pt"
    )
    config = share_model("idefics3").config
    ((whole,),) = find_spans(config, encoding, processor=processor)
    assert [part.name for part in whole.parts] == ["image"]
    assert [part.name for part in span.parts][-1] == "thumbnail"


def test_gemma_crops_of_pan_and_scan_belong_to_their_picture():
    processor = tiny_processor("gemma3")
    pictures = [paint(300, 100), paint(100, 90), paint(60, 130)]
    encoding = processor(
        images=[pictures[:2], pictures[2:]],
        text=["<start_of_image><start_of_image> what ?", "a <start_of_image>"],
        padding=True,
        return_tensors="pt",
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=16,
    )
    processor.image_processor.pan_and_scan_min_crop_size = 16
    model = share_model("gemma3")
    with torch.no_grad():
        model(**encoding)
    sizes = [(p.height, p.width) for p in pictures]
    first, second = find_spans(
        model.config, encoding, image_sizes=sizes, processor=processor
    )
    assert [len(span.parts) for span in (*first, *second)] == [4, 1, 3]
    assert first[0].parts[2].box == pytest.approx((1 / 3, 0, 2 / 3, 1))
    assert second[0].parts[1].box == pytest.approx((0, 0, 1, 0.5))
    with pytest.raises(InputError, match="expected image_sizes for"):
        find_spans(model.config, encoding, processor=processor)


# -- families without places, and without rules


@pytest.mark.parametrize(
    "config",
    [
        hf.Blip2Config(num_query_tokens=4, image_token_index=4),
        hf.InstructBlipConfig(num_query_tokens=4, image_token_index=4),
        hf.Idefics2Config(
            perceiver_config={"resampler_n_latents": 4}, image_token_id=4
        ),
    ],
)
def test_latents_have_no_place_and_are_no_grid(config):
    ids = torch.tensor([[4, 4, 4, 4, 0, 1, 9], [4, 4, 4, 4, 1, 9, 9]])
    (first,), (second,) = find_spans(config, {"input_ids": ids})
    assert not first.spatial
    assert first.grid == (0, 0)
    assert second.columns == (0, 1, 2, 3)
    assert [second.place(column) for column in second.columns] == [None] * 4


class MysteryConfig(hf.PreTrainedConfig):
    model_type = "mystery"


@pytest.mark.parametrize(
    ("count", "grid"), [(16, (4, 4)), (9, (0, 0)), (15, (0, 0)), (32, (0, 0))]
)
def test_an_unknown_family_has_a_grid_only_where_each_patch_is_a_token(count, grid):
    config = MysteryConfig()
    config.image_token_id = 4
    config.vision_config = hf.CLIPVisionConfig(image_size=32, patch_size=8)
    ids = torch.tensor([[1, *[4] * count, 9]])
    ((span,),) = find_spans(config, {"input_ids": ids})
    assert span.grid == grid
    assert len(span.columns) == count


def test_an_unknown_family_never_says_where_in_the_picture_a_column_is():
    config = MysteryConfig()
    config.image_token_id = 4
    config.vision_config = hf.CLIPVisionConfig(image_size=32, patch_size=8)
    ((span,),) = find_spans(config, {"input_ids": torch.full((1, 16), 4)})
    with pytest.raises(UnsupportedError, match="which region"):
        span.place(3)


# -- image token ids


@pytest.mark.parametrize("family", SUPPORTED)
def test_the_configs_image_token_is_the_one_that_stands_for_the_picture(family):
    config = share_model(family).config
    found = image_token_id(config)
    assert (encode(family)["input_ids"] == found).any()


def test_phi_4_keeps_its_image_token_with_the_vision_tower():
    config = hf.Phi4MultimodalConfig()
    assert image_token_id(config) == config.vision_config.image_token_id


def test_a_model_without_image_tokens_is_refused_by_its_type():
    with pytest.raises(ModelError, match="model type 'llama', got none; use a model"):
        image_token_id(hf.LlamaConfig())


# -- refusals


def test_an_encoding_without_token_ids_is_refused():
    config = share_model("llava").config
    with pytest.raises(InputError, match=r"input_ids of shape \[batch, key\]"):
        find_spans(config, {"pixel_values": torch.zeros(1, 3, 32, 32)})
    with pytest.raises(InputError, match=r"got torch.Size\(\[3\]\)"):
        find_spans(config, {"input_ids": torch.tensor([1, 4, 4])})


def test_a_truncated_picture_is_refused():
    inputs = encode("llava")
    cut = {**inputs, "input_ids": inputs["input_ids"][:, :12]}
    with pytest.raises(InputError, match="expected 16 image tokens side by side"):
        find_spans(share_model("llava").config, cut)


def test_a_truncated_idefics_picture_is_refused():
    inputs = encode("idefics3", [[paint(96, 64)]])
    config = share_model("idefics3").config
    ids = inputs["input_ids"]
    last = int((ids[0] == image_token_id(config)).nonzero()[-1])
    with pytest.raises(InputError, match="expected a closing token"):
        find_spans(config, {"input_ids": ids[:, :last]})


def test_a_truncated_internvl_picture_is_refused():
    inputs = encode("internvl", [[paint(96, 64)]])
    config = share_model("internvl").config
    with pytest.raises(InputError, match="multiple of 4 image tokens in the run"):
        find_spans(config, {"input_ids": inputs["input_ids"][:, :7]})


def test_idefics_tiles_without_row_and_column_markers_are_refused():
    inputs = encode("idefics3", [[paint(96, 64)]])
    processor = tiny_processor("idefics3")
    ids = inputs["input_ids"].clone()
    ids[ids == processor.tokenizer.convert_tokens_to_ids("<row_2_col_1>")] = 50
    config = share_model("idefics3").config
    with pytest.raises(InputError, match="expected markers <row_1_col_1>"):
        find_spans(config, {"input_ids": ids}, processor=processor)


def test_picture_tensors_in_another_order_than_the_text_are_refused():
    q = FAMILIES["qwen2_vl"].placeholder
    rows = [[paint(50, 30), paint(40, 90, 1)]]
    inputs = encode("qwen2_vl", rows, [q + " or " + q])
    swapped = {**inputs, "image_grid_thw": inputs["image_grid_thw"].flip(0)}
    config = share_model("qwen2_vl").config
    with pytest.raises(InputError, match="one and the same processor call"):
        find_spans(config, swapped)


@pytest.mark.parametrize("n", [1, 3])
def test_another_number_of_sizes_than_of_pictures_is_refused(n):
    rows = [[paint(50, 30)], [paint(40, 90, 1)]]
    with pytest.raises(InputError, match=f"expected {n} images by image_sizes"):
        locate("llava", rows, image_sizes=[(30, 50)] * n)


@pytest.mark.parametrize("key", ["image_grid_thw", "image_sizes"])
def test_another_number_of_picture_tensors_than_of_pictures_is_refused(key):
    family = {"image_grid_thw": "qwen2_vl", "image_sizes": "llava_next"}[key]
    inputs = encode(family)
    more = {**inputs, key: torch.cat([inputs[key]] * 2)}
    config = share_model(family).config
    with pytest.raises(InputError, match=f"expected 2 images by {key}, got 1"):
        find_spans(config, more)
    less = {name: value for name, value in inputs.items() if name != key}
    with pytest.raises(InputError, match=f"expected {key!r} in the encoding"):
        find_spans(config, less)


def test_a_column_of_text_has_no_place_to_ask_for():
    _, ((span,),) = locate("llava", [[paint(32, 32)]])
    with pytest.raises(InputError, match=f"got {span.stop}; take it from `columns`"):
        span.place(span.stop)


def test_a_prompt_without_pictures_has_no_spans():
    config = share_model("llava").config
    assert find_spans(config, {"input_ids": torch.tensor([[1, 9, 9]])}) == ((),)


def test_spans_are_values_that_cannot_be_changed():
    _, ((span,),) = locate("llava", [[paint(32, 32)]])
    with pytest.raises(AttributeError):
        span.start = 3
    assert replace(span) == span
    assert hash(span) == hash(replace(span))
