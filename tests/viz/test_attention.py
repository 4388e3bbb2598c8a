"""Attention lies on the picture where the model's patches were cut."""

import numpy as np
import pytest
import torch
from PIL import Image

import eah_interp as eah
from eah_interp.attribution import HeadPatterns, read_patterns
from eah_interp.attribution.patterns import PatternRun
from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.lvlm import ImagePart, ImageSpan
from eah_interp.testing import FAMILIES, random_image
from eah_interp.viz import plot_attention
from eah_interp.viz.figures import COLUMN_WIDTH, PAGE_WIDTH
from eah_interp.viz.overlays import OPAQUE, POSITIVE, draw_heat
from tests.tiny_families import encode, share_model

FULL = tuple(round(255 + OPAQUE * (c - 255)) for c in POSITIVE)


def grid(start, rows, columns):
    return tuple(
        tuple(range(start + row * columns, start + (row + 1) * columns))
        for row in range(rows)
    )


def make(parts, *, bright, sinks=(), extra=0, patched=False):
    """Make a result of one head that puts half of its attention on one column."""
    columns = tuple(c for part in parts for line in part.columns for c in line)
    width = max(columns) + 2 + extra
    row = torch.zeros(1, 1, 1, width)
    row[..., bright] = 0.5
    row[..., 0] = 0.5
    marked = torch.zeros(1, 1, width, dtype=torch.bool)
    marked[..., list(sinks)] = True
    span = ImageSpan(0, 0, min(columns), max(columns) + 1, columns, tuple(parts))
    images = torch.zeros(1, width, dtype=torch.bool)
    images[0, list(columns)] = True
    run = PatternRun(row, marked)
    return HeadPatterns(
        heads=((1, 3),),
        positions=torch.tensor([width - 1]),
        tokens=(("x",) * width,),
        spans=((span,),),
        images=images,
        padding=torch.zeros(1, width, dtype=torch.bool),
        plain=run,
        patch=eah.EAH() if patched else None,
        patched=run if patched else None,
        donors={},
        sinks_by=eah.EAH(),
    )


def pixel(picture, box):
    left, top, right, bottom = box
    height, width = picture.shape[:2]
    middle = (top + bottom) / 2 * height, (left + right) / 2 * width
    return tuple(int(value) for value in picture[int(middle[0]), int(middle[1])])


WHOLE = ImagePart("image", grid(5, 3, 4), (0.0, 0.0, 1.0, 1.0))
CROPPED = ImagePart("image", grid(5, 4, 4), (0.25, 0.0, 0.75, 1.0))
PADDED = ImagePart("image", grid(5, 4, 4), (0.0, -0.5, 1.0, 1.5))


@pytest.mark.parametrize("part", [WHOLE, CROPPED, PADDED], ids=["3x4", "crop", "pad"])
def test_colour_and_outline_are_on_the_patch_and_nowhere_else(part):
    white = Image.new("RGB", (960, 480), "white")
    columns = [c for line in part.columns for c in line]
    for bright in columns:
        found = make([part], bright=bright, sinks=[bright])
        box = found.span(0).place(bright)
        if box is None:  # a patch of padding alone
            continue
        (axes, _) = plot_attention(found, white).axes
        shown = np.asarray(axes.images[0].get_array())
        for other in columns:
            place = found.span(0).place(other)
            expected = FULL if other == bright else (255, 255, 255)
            if place is not None:
                assert pixel(shown, place) == pytest.approx(expected, abs=1)
        # yellow at the border: a little inside where that is the picture's own edge
        left, top, right, bottom = box
        edges = [((left + right) / 2, top), ((left + right) / 2, bottom)]
        edges += [(left, (top + bottom) / 2), (right, (top + bottom) / 2)]
        for x, y in edges:
            at = min(max(y, 0.005), 0.99) * 480, min(max(x, 0.003), 0.995) * 960
            near = shown[
                int(at[0]) - 2 : int(at[0]) + 4, int(at[1]) - 2 : int(at[1]) + 4
            ]
            near = near.reshape(-1, 3)
            assert any((value == (255, 208, 0)).all() for value in near), (bright, x, y)
        assert axes.get_title() == "L1H3, 50%"


def test_without_outline_there_is_none():
    found = make([WHOLE], bright=5, sinks=[10])
    white = Image.new("RGB", (480, 480), "white")
    figures = [plot_attention(found, white, outline=o) for o in (True, False)]
    yellow = [
        (np.asarray(f.axes[0].images[0].get_array()) == (255, 208, 0)).all(-1).any()
        for f in figures
    ]
    assert yellow == [True, False]
    texts = [[t.get_text() for t in f.legends[0].texts] for f in figures]
    assert len(texts[0]) == 2
    assert len(texts[1]) == 1
    plain = plot_attention(make([WHOLE], bright=5, sinks=[]), white)
    assert [t.get_text() for t in plain.legends[0].texts] == texts[1]


def test_an_overview_and_crops_have_panels_of_their_own():
    overview = ImagePart("base", grid(1, 1, 1), (0.0, 0.0, 1.0, 1.0))
    left = ImagePart("crop", grid(2, 2, 2), (0.0, 0.0, 0.5, 1.0))
    right = ImagePart("crop", grid(6, 2, 2), (0.5, 0.0, 1.0, 1.0))
    found = make([overview, left, right], bright=7, sinks=[7], extra=1)
    white = Image.new("RGB", (480, 480), "white")
    base, crop, _ = plot_attention(found, white).axes
    assert [axes.get_title() for axes in (base, crop)] == [
        "L1H3, 50%\nbase",
        "L1H3, 50%\ncrop",
    ]
    shown = np.asarray(crop.images[0].get_array())
    assert pixel(shown, (0.75, 0.0, 1.0, 0.5)) == pytest.approx(FULL, abs=1)
    assert pixel(shown, (0.0, 0.0, 0.25, 0.5)) == (255, 255, 255)
    assert (np.asarray(base.images[0].get_array()) == 255).all()


@pytest.fixture(scope="module")
def toy():
    image = random_image(3, width=60, height=40)
    asked = {"heads": ["L1H3", "L1H0"], "patch": eah.EAH()}
    return read_patterns(eah.load(), image, "Is there a cup?", **asked), image


def test_the_panels_are_the_frames_weights(toy):
    found, image = toy
    figure = found.plot(image)
    *panels, bar = figure.axes
    table = found.frame()
    image_rows = table[table["place"] == "image"]
    most = image_rows[["plain", "patched"]].to_numpy().max()
    (part,) = found.span(0).parts
    titles = []
    for axes, (name, run) in zip(
        panels,
        [(n, r) for n in ("L1H3", "L1H0") for r in ("plain", "patched")],
        strict=True,
    ):
        own = image_rows[image_rows["name"] == name].set_index("read_at")
        weights = torch.tensor([[own[run][c] for c in line] for line in part.columns])
        column = "sink" if run == "plain" else "patched_sink"
        marked = own.index[own[column]].tolist()
        expected = draw_heat(image, [(part, weights)], most=most, outlined=marked)
        shown = np.asarray(axes.images[0].get_array())
        assert (shown == np.asarray(expected)).all()
        titles.append(f"{name} {run}, {own[run].sum():.0%}")
    assert [axes.get_title() for axes in panels] == titles
    assert bar.get_ylim() == pytest.approx((0, 100 * most))
    assert "%" in bar.get_ylabel()


def test_figures_fit_a_column_or_a_page_and_can_be_read(toy):
    found, image = toy
    figures = [found.plot(image), found.plot(image, heads=["L1H0"])]
    assert [f.get_size_inches()[0] for f in figures] == [COLUMN_WIDTH] * 2
    heads = [(layer, head) for layer in (1, 2) for head in range(3)]
    many = read_patterns(eah.load(), image, heads=heads)
    wide = many.plot(image)
    assert wide.get_size_inches()[0] == PAGE_WIDTH
    for figure in (*figures, wide):
        sizes = [
            t.get_fontsize()
            for t in figure.findobj(lambda a: hasattr(a, "get_fontsize"))
        ]
        assert min(sizes) >= 6
        assert figure.canvas.manager is None


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "mistral3"])
def test_real_layouts_are_drawn(family):
    picture = random_image(1, width=48)
    asked = [picture], [" what ?"]
    if FAMILIES[family].build_processor is None:
        encoding = encode(family, *asked)
    else:  # knows how large the picture was
        encoding = share_model(family).encode(*asked)
    found = read_patterns(share_model(family), encoding, heads=["L1H0"])
    figure = plot_attention(found, picture)
    kinds = {part.name for part in found.span(0).parts}
    assert len(figure.axes) == len(kinds) + 1


def test_latents_have_no_place_to_draw():
    encoding = encode("idefics2")
    found = read_patterns(share_model("idefics2"), encoding, heads=["L1H0"])
    with pytest.raises(UnsupportedError, match="learned queries"):
        plot_attention(found, random_image(0))


def test_what_is_not_there_is_refused(toy):
    found, image = toy
    with pytest.raises(SettingsError, match="'L5H5' was not read"):
        plot_attention(found, image, heads=["L5H5"])
    with pytest.raises(SettingsError, match="row 0 was not read"):
        plot_attention(found, image, query=0)
    with pytest.raises(SettingsError, match="item 1 does not exist"):
        plot_attention(found, image, item=1)
    with pytest.raises(SettingsError, match="image 1 does not exist"):
        plot_attention(found, image, number=1)
