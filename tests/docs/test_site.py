"""What the documentation site is made of; `make docs` builds it with -W."""

import doctest
import importlib
import inspect
import json
import re

import pytest
import typer

from eah_interp.cli import app
from eah_interp.interventions.methods import METHODS
from tests.browser import HAVE_BROWSER, WHY_NOT, start_chromium
from tests.docs.pages import FENCE, ROOT, find_pages

ROOMS = sorted(
    p.stem for p in (ROOT / "docs" / "api").glob("*.md") if p.stem != "index"
)
EQUATION = re.compile(r"\$\$(.+?)\$\$|(?<![\\$`])\$([^$`\n]+?)\$", re.DOTALL)


FILES = {"errors", "results"}
"""Pages of the API that are of one file, all of whose classes they show."""


def find_equations():
    """Return (equation, is it a block) of every page, code left out."""
    found = []
    for page in (p for p in find_pages() if p.is_relative_to(ROOT / "docs")):
        text = re.sub(r"`[^`]+`", "", FENCE.sub("", page.read_text()))
        found += [(m[1] or m[2], bool(m[1])) for m in EQUATION.finditer(text)]
    return found


def test_every_public_room_has_a_page_of_the_api():
    package = ROOT / "eah_interp"
    with_names = {
        path.parent.name
        for path in package.glob("*/__init__.py")
        if re.search(
            r"^from .* as \w+$|^    \w+ as \w+,$", path.read_text(), re.MULTILINE
        )
    }
    assert with_names - {"cli"} == set(ROOMS) - FILES


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_is_on_its_page(room, part):
    api = part("api")
    if room in FILES:
        module = importlib.import_module(f"eah_interp.{room}")
        own = [v for v in vars(module).values() if inspect.isclass(v)]
        names = {kind.__name__ for kind in own if kind.__module__ == module.__name__}
    else:
        text = (ROOT / "eah_interp" / room / "__init__.py").read_text()
        names = set(re.findall(r"(\w+) as \1\b", text))
        if room == "interventions":  # a method's file is all that names it
            names |= set(METHODS)
    assert names, room
    page = (ROOT / "docs" / "api" / f"{room}.md").read_text()
    assert f"<!-- api: {room} -->" in page
    content = [page]
    api.fill_page(None, "", content)
    documented = re.findall(r"^\.\. auto\w+:: [\w.]+\.(\w+)$", content[0], re.MULTILINE)
    assert sorted(documented) == sorted(names)


def test_the_page_of_the_package_has_every_name_that_it_offers(part):
    import eah_interp as eah

    table = part("api").describe_package()
    for names in eah._FOLDERS.values():
        for name in names:
            assert f"`{name}`" in table


def test_the_page_of_the_command_line_has_every_command_and_option(part):
    commands = part("commands")
    page = commands.describe_commands()
    count = 0
    for path, command in commands.walk(typer.main.get_command(app), "eah-interp"):
        assert f"# {path}\n" in page
        section = page.split(f"# {path}\n", 1)[1].split("\n## ")[0].split("\n### ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert all(f"`{name}`" in section for name in parameter.opts)
                count += 1
    assert count > 50
    content = [(ROOT / "docs" / "command-line.md").read_text()]
    commands.fill_page(None, "", content)
    assert page in content[0]


@pytest.fixture
def to_mathml(part):
    pytest.importorskip("docutils", reason="needs eah-interp[docs]")
    return part("mathml").to_mathml


def test_every_equation_becomes_mathml(to_mathml):
    equations = find_equations()
    assert len(equations) > 20
    for tex, as_block in equations:
        shown = to_mathml(tex, as_block=as_block)
        assert shown.startswith("<math")
        assert ('display="block"' in shown) == as_block


@pytest.mark.skipif(not HAVE_BROWSER, reason=WHY_NOT)
def test_equations_have_a_size_in_a_browser_without_a_network(to_mathml, tmp_path):
    equations = [to_mathml(tex, as_block=block) for tex, block in find_equations()]
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><meta charset=utf-8>"
        + "".join(f"<p>{equation}</p>" for equation in equations)
    )
    browser = start_chromium(tmp_path / "profile")
    browser.get(page.as_uri())
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('math')].map(m => {"
        "const box = m.getBoundingClientRect(); return [box.width, box.height]})"
    )
    browser.quit()
    assert len(sizes) == len(equations)
    assert all(min(size) > 4 for size in sizes), sizes


def test_a_page_that_loads_something_from_elsewhere_is_found(part, tmp_path):
    check_site = part("offline").check_site
    (tmp_path / "good.html").write_text(
        '<link rel="stylesheet" href="a.css"><a href="https://nnsight.net">x</a>'
        '<img src="data:image/png;base64,AA"><script src="_static/x.js"></script>'
    )
    assert check_site(tmp_path) == []
    assert (
        "https://nnsight.net good.html" in (tmp_path / "external-links.txt").read_text()
    )
    (tmp_path / "bad.html").write_text(
        '<link rel="stylesheet" href="https://fonts.example/a.css">'
        '<script src="//cdn.example/x.js"></script><img src="http://a.b/c.png">'
    )
    (tmp_path / "bad.css").write_text('@font-face{src: url("https://f.example/f")}')
    assert len(check_site(tmp_path)) == 4


def test_notebooks_are_copied_and_old_ones_leave(part, tmp_path):
    tutorials = part("tutorials")
    source, pages = tmp_path / "tutorials", tmp_path / "docs"
    source.mkdir()
    cell = {"cell_type": "code", "source": ["1"], "execution_count": None}
    for name in ("01_a.ipynb", "02_b.ipynb"):
        (source / name).write_text(json.dumps({"cells": [cell]}))
    assert tutorials.copy_notebooks(source, pages) == ["01_a", "02_b"]
    assert not tutorials.is_executed(pages / "01_a.ipynb")
    cell["execution_count"] = 1
    (source / "01_a.ipynb").write_text(json.dumps({"cells": [cell]}))
    (source / "02_b.ipynb").unlink()
    assert tutorials.copy_notebooks(source, pages) == ["01_a"]
    assert tutorials.is_executed(pages / "01_a.ipynb")
    assert [path.name for path in pages.iterdir()] == ["01_a.ipynb"]


def test_the_page_of_citations_has_every_work_of_the_file(part):
    yaml = pytest.importorskip("yaml")
    record = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    page = part("citation").describe_citation()
    works = [record, *record["references"]]
    assert [f"title = {{{work['title']}}}" in page for work in works] == [True] * 3
    keys = re.findall(r"^@\w+{(\w+),", page, re.MULTILINE)
    assert len(set(keys)) == len(works)
    for work in record["references"]:
        family = [author["family-names"] for author in work["authors"]]
        assert len(family) >= 9
        line = next(x for x in page.splitlines() if f"{family[0]}, " in x)
        assert "others" not in line
        assert "arXiv:" in str(work.get("identifiers")) or work["end"] > work["start"]
    assert "eprint = {2411.09968}," in page
    assert "pages = {3512--3534}," in page
    assert page.count("Jiawei") == 1, "an author of the second paper alone"
    written = (ROOT / "docs" / "citation.md").read_text()
    filled = [written]
    part("citation").fill_page(None, "", filled)
    assert page in written, "docs/citation.md is older than CITATION.cff"
    assert filled == [written]


@pytest.mark.parametrize("name", ["api", "citation", "docstrings", "offline"])
def test_the_examples_of_the_sites_own_code_run(name, part):
    result = doctest.testmod(part(name))
    assert result.attempted
    assert not result.failed


def test_formulas_in_docstrings_keep_their_lines(part):
    show = part("docstrings").show_formulas
    assert show(["A.", "", "    x", "      y", "", "B."])[2:4] == ["::", ""]
    assert show(["A.", "", "Args:", "    x: One."]) == [
        "A.",
        "",
        "Args:",
        "    x: One.",
    ]


def test_the_recipes_for_contributors_name_places_that_exist():
    page = (ROOT / "docs" / "contributing.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("|")]
    places = 0
    for row in rows:
        paths = re.findall(
            r"`((?:eah_interp|tests)/[\w/.]*)`(?:: ((?:`\w+`(?:, )?)+))?", row
        )
        for path, names in paths:
            assert (ROOT / path).exists(), path
            for name in re.findall(r"`(\w+)`", names):
                text = (ROOT / path).read_text()
                assert re.search(rf"^\s*(def |class )?{name}\b", text, re.MULTILINE), (
                    row
                )
            places += 1
    assert places > 15
