"""Figures show the numbers of the result they were given."""

import sys

import pytest
import torch
from PIL import Image

from eah_interp.errors import ExtraMissingError, InputError
from eah_interp.interventions import SinkMap
from eah_interp.lvlm import ImagePart, ImageSpan
from eah_interp.viz import plot_sink_map, plot_sinks
from eah_interp.viz.figures import COLUMN_WIDTH
from eah_interp.viz.sinks import MOST_NUMBERED


def make_map(n_layers=3, n_heads=4, *, n_items=2, n_columns=10):
    generator = torch.Generator().manual_seed(0)
    shape = (n_items, n_layers, n_heads, n_columns)
    sinks = torch.rand(shape, generator=generator) < 0.4
    density = sinks.float().mean(-1)
    return SinkMap(
        layers=tuple(range(2, 2 + n_layers)),
        density=density,
        sinks=sinks,
        columns=torch.ones(n_items, n_columns, dtype=torch.bool),
        donors=density.argmax(-1),
        spans=((),) * n_items,
        definition="visible",
        beta=1.0,
    )


@pytest.mark.parametrize("item", [0, 1])
def test_the_map_shows_every_density_of_its_item(item):
    sinks = make_map()
    axes, bar = plot_sink_map(sinks, item=item).axes
    shown = torch.tensor(axes.images[0].get_array())
    assert torch.allclose(shown, sinks.density[item] * 100)
    numbers = [int(text.get_text()) for text in axes.texts]
    assert numbers == (sinks.density[item] * 100).round().int().flatten().tolist()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "3", "4"]
    assert "%" in bar.get_ylabel()


def test_the_densest_head_of_each_layer_and_the_donor_are_marked():
    sinks = make_map()
    figure = plot_sink_map(sinks, donors={3: 1, 4: -1})
    axes = figure.axes[0]
    (dots,) = axes.lines
    places = [(round(x - 0.33), round(y + 0.33)) for x, y in dots.get_xydata()]
    assert places == [(int(head), row) for row, head in enumerate(sinks.donors[0])]
    frames = {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in axes.patches}
    assert frames == {(1.0, 1.0)}  # layer 3 is row 1; layer 4 has no donor
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["densest in its layer", "donor"]


def test_the_map_fits_a_papers_column_and_has_no_window():
    large = make_map(32, MOST_NUMBERED + 20)
    figure = plot_sink_map(large)
    assert figure.get_size_inches()[0] == COLUMN_WIDTH
    assert not figure.axes[0].texts  # cells too small for numbers
    assert figure.canvas.manager is None
    assert large.plot(1).axes  # the result's own door


def test_an_item_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="item 2 does not exist: expected 0 to 1"):
        plot_sink_map(make_map(), item=2)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ExtraMissingError, match=r"pip install 'eah-interp\[viz\]'"):
        plot_sink_map(make_map())


def test_a_panel_for_the_picture_and_for_each_head():
    part = ImagePart("image", ((0, 1), (2, 3)), (0.0, 0.0, 1.0, 1.0))
    span = ImageSpan(0, 0, 0, 4, (0, 1, 2, 3), (part,))
    image = Image.new("RGB", (600, 300), "white")
    figure = plot_sinks(image, span, columns={"L1H3": [0], "L0H2": [1, 2]})
    assert [axes.get_title() for axes in figure.axes] == ["image", "L1H3", "L0H2"]
    assert all(
        axes.images[0].get_array().shape == (300, 600, 3) for axes in figure.axes
    )
