"""The code of the README and of every page of the docs runs as it stands, in order.

Pages are found, not listed. All blocks of a page share one namespace. A block that is
followed by a text block `SomeError: message` has to raise just that; any other text
block straight after is what it prints.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from eah_interp.attribution.direct import WORST_ERROR, WORST_ERROR_QUANTISED
from eah_interp.cli import app
from eah_interp.report.inspect import MOST_OBJECTS
from eah_interp.toy import draw_scene
from tests.docs.pages import ROOT, differ, find_blocks, find_pages, name_of

PAGES = {name_of(page): page for page in find_pages() if find_blocks(page, "python")}
REMOTE = 'remote="local"'
NEEDS = {"docs/how-to/large-models.md": ("bitsandbytes", "peft")}
"""Packages of extras that the fast tests do without; `make large` installs them."""
# PEFT 0.21 asks transformers 5.23 for an attribute by its old name
OLD_NAME = "ignore:.*is_gradient_checkpointing:Warning"


@pytest.fixture
def as_a_reader(tmp_path, monkeypatch, as_users_run_it):
    """Work in a folder with `photo.jpg`, where a reader's files would lie."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    draw_scene(0).pil().save(tmp_path / "photo.jpg")
    yield tmp_path
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.close("all")


def run_page(page, folder):
    """Run a page's blocks; return its namespace and how often it raised as promised."""
    blocks = find_blocks(page, "python")
    lines = [""] * (len(page.read_text().splitlines()) + 1)
    for block in blocks:
        for offset, line in enumerate(block.text.splitlines()):
            lines[block.line - 1 + offset] = line
    # nnsight reads a traced block's source from its file, whose lines are the page's.
    script = folder / (page.stem.replace("-", "_") + ".py")
    script.write_text("\n".join(lines) + "\n")
    scope = {"__name__": "__main__", "__file__": str(script)}
    if REMOTE in script.read_text():
        # The package travels by value, which its twin with shape checks cannot.
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "error", str(script)]
        subprocess.run(command, env=environment, check=True, timeout=120)
        return scope
    for block in blocks:
        code = compile("\n" * (block.line - 1) + block.text, str(script), "exec")
        if block.error is None:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, scope)
            if block.prints is not None:
                found = differ(block.prints, printed.getvalue())
                assert not found, f"{page.name}:{block.line}: {found}"
            continue
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the page says which
            exec(code, scope)
        assert said_by(caught.value) == block.error, f"{page.name}:{block.line}"
    return scope


def said_by(error):
    """Return an error as the last line of a traceback has it, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


STUDIES = ("docs/how-to/two-methods.md", "docs/studies.md")
"""Pages that run whole studies; shorter ones of the same kind are on other pages."""


def cases():
    """Yield the pages; one that needs a process of its own, or studies, is slow."""
    for name, page in PAGES.items():
        is_slow = REMOTE in page.read_text() or name in STUDIES
        marks = [pytest.mark.slow] if is_slow else []
        if name in NEEDS:
            marks.append(pytest.mark.filterwarnings(OLD_NAME))
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(cases()))
def test_the_code_of_a_page_runs(name, as_a_reader):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package, reason=f"needs {package}: make large")
    scope = run_page(PAGES[name], as_a_reader)
    check = CLAIMS.get(name)
    if check is not None:
        check(scope)


def check_readme(scope):
    assert scope["text"].startswith("There")
    assert len(scope["sinks"].top(5)) == 5
    assert len(scope["heads"].top(5)) == 2 * 5  # of two objects


def check_attribution(scope):
    assert len(scope["heads"].top(5)) == 5
    assert float(scope["heads"].plain.error.max()) < 1e-5
    shapley = scope["recipients"].effects.sum(1)
    assert float((shapley - scope["recipients"].total).abs().max()) < 1e-4
    assert scope["lens"].values.tolist() == pytest.approx(
        scope["heads"].plain.values.tolist(), abs=1e-4
    )
    assert scope["grid"].shape == (10, 10)
    assert scope["rough"].agreement.n_checked == 8


def check_report(scope):
    text = (ROOT / "docs" / "report.md").read_text()
    found = scope["found"]
    assert scope["page"].stat().st_size > 10_000
    assert found.remarks == ()
    assert list(found.donors.items()) == [(1, 3)]
    assert "# {1: 3}" in text
    margins = {"plain", "EAH", "sparsest", "random", "shuffled"}
    assert set(found.asked[0].margins) == margins
    assert f"At most {MOST_OBJECTS} objects are split by heads" in text


def check_score(_scope):
    page = ROOT / "docs" / "how-to" / "score.md"
    commands = re.findall(
        r"^\$ eah-interp (score pope .*)$", page.read_text(), re.MULTILINE
    )
    assert len(commands) == 2
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command))
        assert result.exit_code == 0, result.output
        assert "50.0" in result.output


def check_afternoon(scope):
    """Six scripts, each under ten lines, that print no more than a glance takes in."""
    blocks = find_blocks(PAGES["docs/how-to/afternoon.md"], "python")
    assert len(blocks) == 1 + 6
    for block in blocks[1:]:
        assert len([line for line in block.text.splitlines() if line]) < 10
        assert len(block.prints.splitlines()) < 10
    assert len(scope["found"].targets) == 152
    assert len(scope["chat"]) == 4


def check_two_methods(scope):
    page = PAGES["docs/how-to/two-methods.md"]
    file = ROOT / "docs" / "studies" / "two-methods.yaml"
    (shown,) = find_blocks(page, "yaml")
    lines = file.read_text().splitlines(keepends=True)
    assert shown.text == "".join(line for line in lines if not line.startswith("# "))
    assert len(scope["asked"]) == 5
    assert scope["by_eah"].p_holm >= scope["by_eah"].p


def check_large_models(scope):
    assert float(scope["heads"].plain.error.max()) < WORST_ERROR_QUANTISED
    page = (ROOT / "docs" / "how-to" / "large-models.md").read_text()
    assert f"above {100 * WORST_ERROR_QUANTISED:g} % of a logit" in page
    assert f"bfloat16 above {100 * WORST_ERROR[torch.bfloat16]:g} %" in page
    assert scope["model"].verified


CLAIMS = {
    "README.md": check_readme,
    "docs/attribution.md": check_attribution,
    "docs/how-to/afternoon.md": check_afternoon,
    "docs/how-to/large-models.md": check_large_models,
    "docs/how-to/score.md": check_score,
    "docs/how-to/two-methods.md": check_two_methods,
    "docs/report.md": check_report,
}


def test_the_readme_names_commands_that_exist():
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^    \S*eah-interp (\w+)", text, re.MULTILINE))
    listed = re.search(r"On the command line: (.*?);", text, re.DOTALL)
    named |= set(re.findall(r"`(?:eah-interp )?(\w+)`", listed[1]))
    assert named <= set(typer.main.get_command(app).commands)
    assert len(named) > 2


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("int('x')", "ValueError: something else"),
        ("1 + 1", "ValueError: invalid"),
    ],
)
def test_a_promised_error_that_does_not_come_is_found(text, fails, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# A\n\n```python\n{text}\n```\n```text\n{fails}\n```\n")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_page(page, tmp_path)


def test_a_block_keeps_the_line_that_it_has_on_its_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```python\na = 1\n```\n\nText.\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(page, tmp_path)
    assert caught.traceback[-1].lineno + 1 == 10


@pytest.mark.parametrize(
    ("text", "shown", "fits"),
    [
        ("print('a', 0.126)", "a   0.13", True),
        ("print('a', 0.16)", "a 0.13", False),
        ("print(4)", "5", False),
        ("print('a b')", "a c", False),
        ("print('a')", "a 1", False),
        ("pass", "anything", False),
    ],
)
def test_what_a_page_shows_is_what_is_printed(text, shown, fits, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# A\n\n```python\n{text}\n```\n\n```text\n{shown}\n```\n")
    if fits:
        run_page(page, tmp_path)
        return
    with pytest.raises(AssertionError, match=r"page\.md:4: shown: "):
        run_page(page, tmp_path)
