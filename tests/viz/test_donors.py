"""Donor against recipients, and objects' logits: the figures are their tables."""

import numpy as np
import pytest

import eah_interp as eah
from eah_interp.attribution import attribute_heads, logit_lens, score_broadcast
from eah_interp.errors import InputError, SettingsError
from eah_interp.testing import random_image
from eah_interp.viz import plot_donors
from eah_interp.viz.figures import COLUMN_WIDTH
from eah_interp.viz.heads import MARKS

IMAGE = random_image(2, width=48, height=40)


def smallest_text(figure):
    texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
    return min(text.get_fontsize() for text in texts)


# -- donors --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored():
    return score_broadcast(eah.load(), IMAGE, eah=eah.EAH(layers=(1, 2)))


@pytest.mark.parametrize("layer", [1, 2])
def test_cells_are_the_frames_ratios_before_and_after(scored, layer):
    figure = plot_donors(scored, layer=layer)
    before, after, bar = figure.axes
    table = scored.frame()
    table = table[table["layer"] == layer]
    for axes, run in ((before, "plain"), (after, "patched")):
        wide = table.pivot_table(index="head", columns="read_at", values=f"{run}_ratio")
        shown = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(shown, wide.to_numpy())
        assert axes.get_title() == run
        density = table.groupby("head")[f"{run}_sink"].mean()
        written = [text.get_text() for text in axes.texts]
        assert written == [f"{value:.0%}" for value in density]
    assert before.get_ylabel() == f"head of layer {layer}"
    low, high = before.images[0].get_clim()
    assert low * high == pytest.approx(1)  # the threshold is in the middle: white
    assert before.images[0].cmap(before.images[0].norm(1.0))[:3] == pytest.approx(
        (0.968, 0.968, 0.968), abs=0.02
    )
    assert "threshold" in bar.get_xlabel()


def test_the_donor_is_framed_and_every_line_is_its_line_after(scored):
    before, after, _ = plot_donors(scored, layer=1).axes
    donor = int(scored.donors[1][0])
    for axes in (before, after):
        places = {frame.get_y() + 0.5 for frame in axes.patches}
        assert places == {donor}
    labels = before.get_yticklabels()
    bold = [label.get_text() for label in labels if label.get_fontweight() == "bold"]
    assert bold == [str(donor)]
    own = np.asarray(before.images[0].get_array())
    new = np.asarray(after.images[0].get_array())
    np.testing.assert_allclose(new, np.tile(own[donor], (len(new), 1)), rtol=1e-4)
    assert not np.allclose(own, new)


def test_controls_without_a_donor_head_have_no_frame():
    found = score_broadcast(eah.load(), IMAGE, eah=eah.EAH(donor="mean"))
    figure = found.plot()
    assert not figure.axes[0].patches
    assert figure.get_size_inches()[0] == COLUMN_WIDTH
    assert smallest_text(figure) >= 6


def test_layers_and_items_that_were_not_scored_are_refused(scored):
    with pytest.raises(SettingsError, match="layer 5 was not scored"):
        plot_donors(scored, layer=5)
    with pytest.raises(InputError, match="item 1 does not exist"):
        plot_donors(scored, item=1)


# -- logits --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    asked = {"objects": ["fish", "boat", "cup"], "patch": eah.EAH()}
    return attribute_heads(eah.load(), IMAGE, **asked)


def points(axes):
    """Return the marks of each line: (x, marker) of plain and patched."""
    marks: dict[float, list] = {}
    for line in axes.lines:
        if line.get_linestyle() == "None":
            x, y = line.get_xdata()[0], line.get_ydata()[0]
            marks.setdefault(y, []).append((x, line.get_marker()))
    return [marks[y] for y in sorted(marks)]


def test_marks_are_the_tables_logits_and_the_change_is_written(found):
    figure = found.plot_logits(present=["boat"])
    axes = figure.axes[0]
    table = found.list_logits(present=["boat"])
    assert table["object"].tolist() == ["boat", "fish", "cup"]
    assert table["present"].tolist() == [True, False, False]
    own = found.frame()
    for line, marks in zip(table.itertuples(), points(axes), strict=True):
        of_target = own[own["target"] == line.target]
        assert line.plain == pytest.approx(of_target["plain"].sum(), abs=1e-5)
        assert line.patched == pytest.approx(of_target["patched"].sum(), abs=1e-5)
        assert [x for x, _ in marks] == pytest.approx([line.plain, line.patched])
        assert {mark for _, mark in marks} == {MARKS[line.present]}
    written = [text.get_text() for text in axes.texts]
    assert written == [f"{change:+.2f}" for change in table["change"]]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["boat", "fish", "cup"]
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["plain", "patched", "in the image", "not in the image"]
    assert figure.get_size_inches()[0] == COLUMN_WIDTH
    assert smallest_text(figure) >= 6


def test_present_and_absent_differ_by_shape_and_place(found):
    axes = found.plot_logits(present=["boat"]).axes[0]
    shapes = [marks[0][1] for marks in points(axes)]
    assert shapes == ["o", "D", "D"]
    dashed = [line for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert 0.5 in [line.get_ydata()[0] for line in dashed]
    assert {marks[0][1] for marks in points(found.plot_logits().axes[0])} == {"o"}


def test_a_lens_gives_the_same_logits(found):
    lens = logit_lens(
        eah.load(), IMAGE, objects=["fish", "boat", "cup"], patch=eah.EAH()
    )
    ours, theirs = lens.list_logits(), found.list_logits()
    for name in ("plain", "patched", "change"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)


def test_a_plain_run_alone_has_no_change_and_items_are_told_apart():
    found = attribute_heads(eah.load(), [IMAGE, IMAGE], objects=["fish"])
    axes = found.plot_logits().axes[0]
    assert not axes.texts
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["fish (0)", "fish (1)"]


def test_present_objects_that_were_not_read_are_refused(found):
    with pytest.raises(SettingsError, match="present names none of the objects"):
        found.plot_logits(present=["whale"])
