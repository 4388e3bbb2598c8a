"""The gallery shows what its own blocks draw (which tests/docs runs)."""

import re

import pytest

from tests.docs.pages import ROOT, find_blocks

PAGE = ROOT / "docs" / "pictures.md"


@pytest.mark.parametrize(("name", "least"), [("pictures", 7), ("how-to/attention", 1)])
def test_every_picture_is_a_figure_of_a_block_and_lies_in_its_folder(name, least):
    page = ROOT / "docs" / f"{name}.md"
    shown = re.findall(rf"images/{page.stem}-(\w+)\.png\)", page.read_text())
    code = "\n".join(block.text for block in find_blocks(page, "python"))
    made = re.findall(r"^(\w+) = ", code, re.MULTILINE)
    assert len(shown) >= least
    assert set(shown) <= set(made)
    folder = ROOT / "docs" / "images"
    files = folder.glob(f"{page.stem}-*")
    assert {path.stem.removeprefix(f"{page.stem}-") for path in files} == set(shown)


def test_every_figure_of_the_package_is_in_the_gallery():
    import eah_interp.viz

    text = PAGE.read_text()
    public = {name for name in vars(eah_interp.viz) if re.match(r"(plot|show)_", name)}
    drawn_by = {  # a result's own `.plot`
        "plot_attention": "patterns.plot(image)",
        "plot_donors": "scores.plot()",
        "plot_sink_map": "sinks.plot()",
    }
    missing = {name for name in public if drawn_by.get(name, name) not in text}
    assert not missing
