"""The gallery shows what its own blocks draw (which tests/docs runs)."""

import re

from tests.docs.pages import ROOT, find_blocks

PAGE = ROOT / "docs" / "pictures.md"


def test_every_picture_is_a_figure_of_a_block_and_lies_in_its_folder():
    shown = re.findall(r"\(images/pictures-(\w+)\.png\)", PAGE.read_text())
    code = "\n".join(block.text for block in find_blocks(PAGE, "python"))
    made = re.findall(r"^(\w+) = ", code, re.MULTILINE)
    assert len(shown) >= 7
    assert set(shown) <= set(made)
    folder = ROOT / "docs" / "images"
    there = {path.stem.removeprefix("pictures-") for path in folder.glob("pictures-*")}
    assert there == set(shown)


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
