"""Figures of effects show the numbers of the result they were given."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import eah_interp as eah
from eah_interp.attribution import attribute_heads, attribute_patches, logit_lens
from eah_interp.errors import ExtraMissingError, SettingsError, UnsupportedError
from eah_interp.lvlm import ImagePart
from eah_interp.testing import random_image
from eah_interp.viz import plot_targets, plot_top
from eah_interp.viz.figures import COLUMN_WIDTH, PAGE_WIDTH
from eah_interp.viz.heads import plot_heads
from eah_interp.viz.overlays import NEGATIVE, POSITIVE, draw_heat

IMAGE = random_image(2, width=48, height=40)


@pytest.fixture(scope="module")
def asked():
    return (eah.load(), IMAGE, "Describe the image."), {
        "objects": ["fish", "boat"],
        "patch": eah.EAH(),
    }


@pytest.fixture(scope="module")
def heads(asked):
    return attribute_heads(*asked[0], **asked[1])


@pytest.fixture(scope="module")
def patches(asked):
    return attribute_patches(*asked[0], **asked[1])


@pytest.fixture(scope="module")
def lens(asked):
    return logit_lens(*asked[0], **asked[1], positions="image")


# -- heads ---------------------------------------------------------------------------


def test_panels_of_heads_share_one_scale_with_zero_in_its_middle(heads):
    figure = heads.plot(1)
    *panels, bar = figure.axes
    plain, patched = heads.plain.heads[1], heads.patched.heads[1]
    expected = {"plain": plain, "patched": patched, "change": patched - plain}
    assert [axes.get_title() for axes in panels] == list(expected)
    most = float(max(value.abs().max() for value in expected.values()))
    for axes in panels:
        (drawn,) = axes.images
        shown = torch.tensor(drawn.get_array())
        torch.testing.assert_close(shown, expected[axes.get_title()])
        assert drawn.get_clim() == pytest.approx((-most, most))
    assert "boat" in bar.get_ylabel()
    assert figure.get_size_inches()[0] == PAGE_WIDTH


def test_one_panel_fits_a_papers_column():
    figure = plot_heads({"plain": torch.randn(32, 32)}, layers=range(32), title="x")
    assert figure.get_size_inches()[0] == COLUMN_WIDTH
    assert figure.canvas.manager is None


def test_every_target_has_its_line_and_its_scale(heads):
    figure = plot_targets(heads)
    bars = [axes for axes in figure.axes if axes.get_ylabel().startswith("effect on")]
    assert [bar.get_ylabel() for bar in bars] == ["effect on fish", "effect on boat"]
    drawn = [axes.images[0] for axes in figure.axes if axes.get_title() == "change"]
    for index, image in enumerate(drawn):
        change = heads.patched.heads[index] - heads.plain.heads[index]
        torch.testing.assert_close(torch.tensor(image.get_array()), change)
    assert drawn[0].get_clim() != drawn[1].get_clim()


# -- bars ----------------------------------------------------------------------------


def test_bars_are_the_components_that_change_most(heads):
    axes = plot_top(heads, 1, k=6).axes[0]
    table = heads.frame()
    table = table[(table.target == 1) & (table.kind != "remainder")].set_index("name")
    order = table["change"].abs().sort_values(ascending=False).index[:6]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(order)
    plain, patched = axes.containers
    for bars, run in ((plain, "plain"), (patched, "patched")):
        assert [bar.get_width() for bar in bars] == pytest.approx(
            list(table.loc[order, run])
        )
    written = [float(text.get_text()) for text in axes.texts]
    assert written == pytest.approx(list(table.loc[order, "change"]), rel=0.06)
    top, bottom = axes.get_ylim()
    assert top > bottom  # the largest is on top


def test_bars_by_plain_effect(heads):
    axes = plot_top(heads, k=3, by="plain").axes[0]
    table = heads.frame()
    own = table[(table.target == 0) & (table.kind != "remainder")]
    largest = own.loc[own["plain"].abs().idxmax(), "name"]
    assert axes.get_yticklabels()[0].get_text() == largest


# -- curves --------------------------------------------------------------------------


def test_curves_are_the_lens_by_layer(lens):
    figure = lens.plot(1, of="probability")
    curves = lens.curves(1, of="probability")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert len(lines) == 6
    for run, named in curves.items():
        for name, values in named.items():
            shown = torch.tensor(lines[f"{name}, {run}"].get_ydata())
            torch.testing.assert_close(shown, values)
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["emb.", *(f"L{layer}" for layer in range(8))]
    assert figure.get_size_inches()[0] == COLUMN_WIDTH
    assert lens.plot(1).axes


# -- on the picture ------------------------------------------------------------------


def test_colour_says_sign_and_size_where_the_patch_is():
    white = Image.new("RGB", (480, 480), "white")
    part = ImagePart("image", ((0, 1), (2, 3)), (0.0, 0.0, 1.0, 1.0))
    grid = torch.tensor([[2.0, -2.0], [0.0, float("nan")]])
    drawn = draw_heat(white, [(part, grid)], most=2.0)
    blend = [
        tuple(round(255 + 0.9 * (c - 255)) for c in end) for end in (POSITIVE, NEGATIVE)
    ]
    assert drawn.getpixel((100, 100)) == pytest.approx(blend[0], abs=1)
    assert drawn.getpixel((400, 100)) == pytest.approx(blend[1], abs=1)
    assert drawn.getpixel((100, 400)) == drawn.getpixel((400, 400)) == (255,) * 3
    half = draw_heat(white, [(part, grid / 2)], most=2.0).getpixel((100, 100))
    assert half == pytest.approx([(255 + c) / 2 for c in blend[0]], abs=2)


def test_outlined_patches_have_an_edge():
    white = Image.new("RGB", (480, 480), "white")
    part = ImagePart("image", ((0, 1), (2, 3)), (0.0, 0.0, 1.0, 1.0))
    drawn = draw_heat(white, [(part, torch.zeros(2, 2))], most=1.0, outlined=[3])
    assert drawn.getpixel((240, 400)) != (255, 255, 255)
    assert drawn.getpixel((100, 100)) == (255, 255, 255)


def test_a_grid_that_shows_nobody_knows_what_is_refused():
    part = ImagePart("image", ((0, 1),), None)
    with pytest.raises(UnsupportedError, match="which region the 'image' grid shows"):
        draw_heat(IMAGE, [(part, torch.zeros(1, 2))], most=1.0)


def test_panels_on_the_picture_are_the_runs_and_the_change(patches):
    figure = patches.plot(IMAGE, target=1)
    *panels, bar = figure.axes
    assert [axes.get_title() for axes in panels] == ["plain", "patched", "change"]
    runs = ("plain", "patched", "change")
    grids = [patches.picture(1, run=run)[0] for run in runs]
    most = max(float(grid.abs().max()) for grid in grids)
    (part,) = patches.span(1).parts
    for axes, grid in zip(panels, grids, strict=True):
        expected = draw_heat(IMAGE, [(part, grid)], most=most)
        shown = torch.tensor(axes.images[0].get_array())
        assert (shown.numpy() == np.asarray(expected)).all()
    assert bar.get_ylim() == pytest.approx((-most, most))
    assert "boat (logit)" in bar.get_ylabel()


def test_a_plain_run_alone_fits_a_column(asked):
    found = attribute_patches(*asked[0], objects=["fish"])
    figure = found.plot(IMAGE)
    assert figure.get_size_inches()[0] <= COLUMN_WIDTH
    assert len(figure.axes) == 2


# -- refusals ------------------------------------------------------------------------


def test_targets_that_are_not_there_are_refused(heads, patches, lens):
    for draw in (heads.plot_top, lens.plot):
        with pytest.raises(SettingsError, match="target 2 does not exist"):
            draw(2)
    with pytest.raises(SettingsError, match="target 2 does not exist"):
        patches.plot(IMAGE, target=2)


def test_without_matplotlib_the_extra_is_named(monkeypatch, heads):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ExtraMissingError, match=r"pip install 'eah-interp\[viz\]'"):
        plot_top(heads)
