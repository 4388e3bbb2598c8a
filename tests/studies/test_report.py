"""Claims about what is shown: no difference without an interval, and text is text."""

import io
import json
import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
from markupsafe import escape
from rich.console import Console
from typer.testing import CliRunner

from eah_interp.benchmarks.paired import Draws
from eah_interp.cli import app
from eah_interp.studies import StudyRun, report, summarise
from tests.studies.made import caption, make_run, patch, question

DRAWS = Draws(resamples=200)
EVIL = "<script>alert('x')</script>"
CHANGE = re.compile(r"[+-]\d+\.\d+ \[[+-]\d+\.\d+, [+-]\d+\.\d+\]")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    n = 12
    asked = [
        question(f"q{i}", label=i % 2 == 0, cluster=i, prompt=f"Is there {EVIL}?")
        for i in range(n)
    ]
    told = [caption(f"c{i}", truth=("boat",), cluster=i) for i in range(n)]
    yes = [f"Yes {EVIL}" if i % 3 else "No" for i in range(n)]
    boats = ["a boat and a fish" if i % 2 else "a boat" for i in range(n)]
    answers = {
        "baseline": yes + boats,
        "EAH": ["No"] * n + ["a boat"] * (n - 1) + [ValueError(EVIL)],
        f"{EVIL} $x$ & |": yes[::-1] + ["nothing"] * n,
        "deep": yes[::-1] + boats[::-1],
    }
    patches = {"EAH": patch(), "deep": patch(layers=(3,))}
    sinks = pd.DataFrame(
        [
            {"item": item.id, "layer": layer, "head": head, "density": (i % 5) / 10}
            for i, item in enumerate([*asked, *told])
            for layer in range(4)
            for head in range(2)
        ]
    )
    return make_run(
        tmp_path_factory.mktemp("made") / "study",
        [*asked, *told],
        answers,
        patches=patches,
        sinks=sinks,
    )


class Page(HTMLParser):
    """Reads a page: tags in order, whether they close, attributes, cells of tables."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append({"caption": "", "cells": [], "headers": []})

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "table" in self.open and data.strip():
            place = {"caption": "caption", "td": "cells", "th": "headers"}
            where = place.get(self.open[-1])
            if where == "caption":
                self.tables[-1]["caption"] += data
            elif where:
                self.tables[-1][where].append(data)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "page.html"
    return report(run, path, draws=DRAWS).read_text()


def test_what_a_study_holds_is_shown_as_text(page):
    assert "<script" not in page
    assert "Is there &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;?" in page


def test_the_page_needs_no_network_and_no_script(page):
    found = Page(page)
    links = [
        value
        for _, attrs in found.tags
        for name, value in attrs.items()
        if name in ("src", "href")
    ]
    assert links
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in links)
    assert not re.search(r"url\(|@import|https?://", page)
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in found.tags)


def test_the_page_can_be_read_without_seeing_it(page):
    found = Page(page)
    attributes = dict(found.tags)
    assert attributes["html"]["lang"] == "en"
    assert all(len(a["alt"]) > 30 for tag, a in found.tags if tag == "img")
    assert all(a.get("scope") for tag, a in found.tags if tag == "th")
    assert all(table["caption"] for table in found.tables)
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for tag, a in found.tags if tag == "a"}
    assert targets <= set(ids)
    assert "prefers-color-scheme: dark" in page


def test_the_page_begins_with_what_this_study_compared(page, run):
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", page)
    assert headings[0] == "What was compared"
    assert headings.index("The paper's claims") > headings.index("Tables")
    found = summarise(run, draws=DRAWS)
    first = page.partition('<h2 id="figures"')[0]
    for sentence in found.findings:
        assert f"<li>{escape(sentence)}</li>" in first
    assert len(found.findings) == 2 * 3
    told = [one for one in found.findings if one.startswith("EAH ")]
    chair = found.find("EAH", "CHAIR_S", task="caption")
    assert any("lowers CHAIR_S from" in one for one in told) == (
        chair.effect is not None and chair.effect.high < 0
    )
    for words in ("baseline", "prefill", "24 (up to 12", "each against baseline"):
        assert words in first


def test_claims_are_shown_where_the_study_bears_on_them_or_when_asked(run, tmp_path):
    def headings(name, **options):
        found = report(run, tmp_path / name, draws=DRAWS, **options).read_text()
        return re.findall(r"<h3>(\d)\. ", found), found

    shown, text = headings("some.html")
    assert shown == ["1", "2", "3"]
    assert "the study lacks it" not in text
    assert headings("all.html", claims=True)[0] == ["1", "2", "3", "4"]
    none, text = headings("none.html", claims=False)
    assert none == []
    assert 'href="#claims"' not in text


def test_steps_stand_in_every_row_table_and_report(run, page):
    rows = run.frame()
    assert set(rows.steps[rows.condition == "EAH"]) == {"prefill"}
    assert rows.steps[rows.condition == "baseline"].isna().all()
    found = summarise(run, draws=DRAWS)
    frame = found.frame()
    assert set(frame.steps[frame.condition == "deep"]) == {"prefill"}
    assert {row["steps"] for row in found.to_dict()["rows"]} == {"prefill", None}
    assert found.tables[0].header[1] == "steps"
    assert "| EAH | prefill |" in found.markdown()
    assert '<td class="answer">prefill</td>' in page


def test_a_terminal_of_80_columns_cuts_no_header(run):
    from eah_interp.cli.tables import lay_out

    for width in (60, 80, 120):
        for table in summarise(run, draws=DRAWS).tables:
            console = Console(width=width, file=io.StringIO())
            for part in lay_out(table, width=width):
                console.print(part)
            lines = console.file.getvalue().splitlines()
            assert all(len(line) <= width for line in lines)
            first = table.header[0]
            headers = [line for line in lines if line.startswith(first)]
            words = " ".join(headers)
            assert all(name in words for name in table.header), (width, table.header)


def test_the_page_states_what_the_numbers_are_of(page, run):
    assert summarise(run, draws=DRAWS).manifest_hash in page
    for stated in ("version of torch", "weights", "batch_size", "seed 0", "Decoding"):
        assert stated in page
    assert page.count("<figure>") == 7  # effects, sweeps, densities, a frontier


def test_no_cell_shows_a_difference_without_its_interval(page, run):
    tables = [t for t in Page(page).tables if "change against" in t["caption"]]
    assert len(tables) == 2
    cells = [cell for table in tables for cell in table["cells"]]
    assert len(cells) == 3 * (7 + 10)
    for cell in cells:
        assert CHANGE.fullmatch(cell) or cell.startswith("undefined: "), cell
    frame = summarise(run, draws=DRAWS).frame()
    changed = frame[frame.change.notna()]
    assert len(changed)
    assert changed[["low", "high"]].notna().all(axis=None)
    bare = frame[frame.reference.notna() & frame.change.isna()]
    assert len(bare)
    assert (bare.undefined != "").all()


def test_markdown_and_latex_keep_strange_names_in_their_cells(run):
    found = summarise(run, draws=DRAWS)
    lines = [line for line in found.markdown().splitlines() if "alert" in line]
    assert lines
    assert all(r"$x$ &amp; \|" in line for line in lines)
    assert "<script" not in found.markdown()
    assert r"\$x\$ \& |" in found.latex()


def test_a_part_of_a_study_says_so(run, tmp_path):
    part = StudyRun(shutil.copytree(run.folder, tmp_path / "part"))
    (part.folder / "rows" / "deep" / "000000.parquet").unlink()
    page = report(part, tmp_path / "part.html", partial=True, draws=DRAWS).read_text()
    assert "Part of a study: 24 rows are missing." in page


def test_figures_draw_what_the_summary_holds(run):
    axes = summarise(run, draws=DRAWS).plot("accuracy").axes[0]
    assert len(axes.get_yticklabels()) == 3
    assert axes.get_xlabel() == "change of accuracy (points)"


def invoke(*words):
    return CliRunner().invoke(app, ["study", *map(str, words)])


def test_the_command_writes_the_page(run, tmp_path):
    done = invoke("report", run.folder, "--resamples", 100)
    assert done.exit_code == 0, done.output
    assert (run.folder / "report.html").exists()
    wrong = invoke("report", run.folder, "--out", tmp_path / "page.pdf")
    assert wrong.exit_code == 2


def test_the_command_prints_tables_in_four_ways(run):
    options = ("summary", run.folder, "--resamples", 100)
    plain, latex = invoke(*options), invoke(*options, "--latex")
    assert "change against baseline" in plain.stdout
    assert r"\toprule" in latex.stdout
    assert "| condition |" in invoke(*options, "--markdown").stdout
    record = json.loads(invoke(*options, "--json").stdout)
    assert record["draws"] == {"level": 0.95, "resamples": 100, "seed": 0}
    assert invoke(*options, "--json", "--latex").exit_code == 2
    assert invoke("summary", run.folder, "--reference", "none").exit_code == 2
