"""CircuitsVis widgets are drawn without a network, from one copy of the JavaScript."""

import socket
import sys
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import eah_interp as eah
from eah_interp.attribution import read_patterns
from eah_interp.errors import ExtraMissingError, InputError, SettingsError
from eah_interp.lvlm import ImagePart, ImageSpan
from eah_interp.testing import random_image
from eah_interp.viz import (
    Widget,
    group_patterns,
    restart_sharing,
    save_page,
    show_attention,
    show_tokens,
)
from eah_interp.viz.circuits import HEIGHT, cut_groups
from eah_interp.viz.widgets import ELEMENTS, MISSING, read_bundle, share_page
from tests.viz.browser import start

pytest.importorskip("circuitsvis", reason="no circuitsvis: pip install '.[viz]'")

IMAGE = random_image(3, width=60, height=40)
BAD = [
    "</script><script>window.hit=1</script>",
    "<img src=x onerror=window.hit=1>",
    "<image>",
    "a & \"b\" 'c' \u2028 &lt;",
]
OWN = ("localhost", "127.0.0.1", "::1")
HEART = "var CircuitsVis=(()=>{"


@pytest.fixture(autouse=True)
def no_network_and_a_new_kernel(monkeypatch):
    """Refuse every connection but those of a browser's own driver."""
    connect = socket.socket.connect

    def refuse(self, address):
        if isinstance(address, tuple) and address[0] in OWN:
            return connect(self, address)
        msg = f"the network was asked for {address}"
        raise AssertionError(msg)

    def never(*args, **kwargs):
        msg = f"a page was asked for: {args}"
        raise AssertionError(msg)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", never)
    restart_sharing()
    yield
    restart_sharing()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = start(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module")
def found():
    asked = {"heads": ["L1H3", "L1H0"], "query": "all", "patch": eah.EAH()}
    return read_patterns(eah.load(), IMAGE, "Is there a cup?", **asked)


def bad_widget(element):
    n = len(BAD)
    values = torch.eye(n).tolist()
    properties = {
        "AttentionHeads": {"attention": [values], "tokens": BAD},
        "AttentionPattern": {"attention": values, "tokens": BAD},
        "ColoredTokens": {"values": [0.5] * n, "tokens": BAD},
        "ColoredTokensMulti": {"values": values, "tokens": BAD, "labels": BAD},
    }
    return Widget(element, properties[element], caption=BAD[0])


# -- in a browser --------------------------------------------------------------------


def test_a_page_of_widgets_is_drawn_offline_from_one_copy(browser, found, tmp_path):
    keep = found.span(0).columns[:2]
    widgets = [
        show_attention(found, by="row"),
        show_attention(found, run="patched", keep=keep),
        show_tokens(found, keep=keep, images=IMAGE),
    ]
    page = save_page(widgets, tmp_path / "new" / "page.html", title="A & <B>")
    content = page.read_text(encoding="utf-8")
    assert content.count(HEART) == 1
    assert page.stat().st_size < 2_000_000
    assert [file.name for file in page.parent.iterdir()] == ["page.html"]
    browser.open(content)
    browser.wait("document.querySelectorAll('canvas').length >= 4")
    browser.wait("document.body.innerText.includes('[image')")
    assert browser.errors == []
    assert browser.requests == []
    text = browser.text
    for label in group_patterns(found, keep=keep).labels:
        assert label.strip() in text
    for name in ("L1H3", "L1H0", "L1H0 patched", "A & <B>"):
        assert name in text
    sizes = browser.run(
        "return [...document.querySelectorAll('canvas')].map(c => c.width * c.height)"
    )
    assert min(sizes) > 0
    drawn = browser.run(
        "return [...document.querySelectorAll('canvas')].some(c => { const g = "
        "c.getContext('2d'); return g && new Uint32Array(g.getImageData(0, 0, c.width,"
        " c.height).data.buffer).some(Boolean); })"
    )
    assert drawn
    pictures = browser.run(
        "return [...document.images].map(i => [i.complete, i.naturalHeight])"
    )
    assert pictures == [[True, HEIGHT]] * 3  # [image 1] and the two patches


@pytest.mark.parametrize("element", ELEMENTS)
def test_text_that_looks_like_html_is_text(browser, element):
    page = share_page([bad_widget(element)], title=BAD[0])
    assert page.count("</script>") == 2  # the copy, and the one widget
    browser.open(page)
    browser.wait("document.querySelector('figure div').childElementCount > 0")
    browser.wait("document.querySelector('figure div').offsetHeight > 10")
    assert browser.run("return window.hit") is None
    assert browser.errors == []
    assert browser.requests == []
    assert BAD[0] in browser.text
    if ELEMENTS[element] == "html":  # others draw their tokens on a canvas
        for token in BAD[1:3]:
            assert token in browser.text


def test_cells_share_the_first_cells_copy_in_any_order(browser, found):
    widget = show_tokens(found)
    first, second = widget._repr_html_(), widget._repr_html_()
    assert [first.count(HEART), second.count(HEART)] == [1, 0]
    restart_sharing()
    again = widget._repr_html_()
    assert again.count(HEART) == 1
    for cells in (first + second, second + first, first + again):
        browser.open(cells)
        browser.wait("document.body.innerText.split('[image').length >= 3")
        assert browser.errors == []
    assert browser.requests == []


def test_a_page_without_the_copy_says_so_until_it_comes(browser, found):
    widget = show_tokens(found)
    widget._repr_html_()
    browser.open(widget._repr_html_())
    browser.wait(f"document.body.innerText.includes({MISSING[:40]!r})")
    assert browser.errors == []
    browser.run(read_bundle())  # its cell is run again
    browser.wait("document.body.innerText.includes('[image')")


# -- in a notebook's kernel ----------------------------------------------------------


def in_cell(monkeypatch, cell, run, *, code=""):
    parent = {
        "header": {"msg_id": run},
        "metadata": {"cellId": cell} if cell else {},
        "content": {"code": code},
    }
    shell = SimpleNamespace(get_parent=lambda: parent)
    module = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)


def brings(widget):
    return HEART in widget._repr_html_()


def test_the_cell_that_brought_the_copy_brings_it_again(monkeypatch):
    widget = bad_widget("ColoredTokens")
    in_cell(monkeypatch, "a", "1")
    assert [brings(widget), brings(widget)] == [True, False]  # two in one cell
    in_cell(monkeypatch, "b", "2")
    assert not brings(widget)
    in_cell(monkeypatch, "a", "3")
    assert [brings(widget), brings(widget)] == [True, False]
    restart_sharing()
    in_cell(monkeypatch, "b", "4")
    assert brings(widget)
    in_cell(monkeypatch, "a", "5")
    assert not brings(widget)


def test_a_cell_without_a_name_is_known_by_its_code(monkeypatch):
    widget = bad_widget("ColoredTokens")
    in_cell(monkeypatch, None, "1", code="first")
    assert brings(widget)
    in_cell(monkeypatch, None, "2", code="second")
    assert not brings(widget)
    in_cell(monkeypatch, None, "3", code="first")
    assert brings(widget)


def test_outside_a_kernel_there_is_one_copy(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    widget = bad_widget("ColoredTokens")
    assert [brings(widget), brings(widget)] == [True, False]


def test_where_every_output_is_a_page_each_brings_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    widget = bad_widget("ColoredTokens")
    assert [brings(widget), brings(widget)] == [True, True]


# -- what widgets are given ----------------------------------------------------------


def test_values_are_those_of_the_grouped_frame(found):
    keep = found.span(0).columns[5:7]
    widget = show_attention(found, run="patched", by="row", keep=keep)
    grouped = group_patterns(found, run="patched", by="row", keep=keep)
    given = torch.tensor(widget.properties["attention"])
    shown = torch.tensor(grouped.frame()["weight"].to_numpy()).view(given.shape)
    torch.testing.assert_close(given, shown.float())
    strip = show_tokens(found, by="row", keep=keep)
    values = torch.tensor(strip.properties["values"])
    names = ["L1H3 plain", "L1H0 plain", "L1H3 patched", "L1H0 patched"]
    assert strip.properties["labels"] == names
    assert strip.properties["tokens"] == list(grouped.labels)
    torch.testing.assert_close(values.sum(0), torch.ones(4))
    torch.testing.assert_close(values[:, 3], given[1, -1])  # the last token's own row


def test_thumbnails_are_cut_where_the_patches_are():
    columns = tuple(tuple(range(5 + 10 * row, 15 + 10 * row)) for row in range(10))
    # letterboxed: a band of padding above and below the wide picture
    part = ImagePart("image", columns, (0.0, -0.5, 1.0, 1.5))
    span = ImageSpan(0, 0, 5, 105, sum(columns, ()), (part,))
    picture = Image.new("RGB", (200, 100), "black")
    picture.paste("red", (40, 10, 60, 30))  # row 3, column 2: 20 x 20 pixels a patch
    red, black, padding = columns[3][2], columns[3][1], columns[0][0]
    cuts = cut_groups(picture, span, [[red], [black], columns[3], [padding], [0]])
    assert sorted(cuts) == [0, 1, 2]
    assert (np.asarray(cuts[0]) == (255, 0, 0)).all()
    assert (np.asarray(cuts[1]) == 0).all()
    assert cuts[2].size == (8 * HEIGHT, HEIGHT)


# -- refusals ------------------------------------------------------------------------


def test_what_cannot_be_shown_is_refused(found, tmp_path):
    with pytest.raises(SettingsError, match="element must be one of AttentionHeads"):
        Widget("TopkTokens", {})
    with pytest.raises(SettingsError, match="expected at least one widget"):
        share_page([])
    row = read_patterns(eah.load(), IMAGE, heads=["L1H3"])
    with pytest.raises(SettingsError, match=r'read_patterns\(..., query="all"\)'):
        show_attention(row)
    with pytest.raises(InputError, match="expected 1 images, got 2"):
        show_tokens(found, images=[IMAGE, IMAGE])
    with pytest.raises(SettingsError, match="row 400 was not read"):
        show_tokens(found, query=400)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SettingsError, match="cannot write"):
        bad_widget("ColoredTokens").save(tmp_path / "folder")


def test_without_circuitsvis_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("eah_interp.viz.widgets.find_spec", lambda _: None)
    read_bundle.cache_clear()
    with pytest.raises(ExtraMissingError, match=r"pip install 'eah-interp\[viz\]'"):
        share_page([bad_widget("ColoredTokens")])
    read_bundle.cache_clear()
