"""Every tutorial's notebook is its script, run to the end; its prose keeps to asserts.

The notebooks are executed by `make tutorials`, not here.
"""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("jupytext", reason="needs eah-interp[docs]")

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))
MOST_BYTES = 2_000_000

STATED_ELSEWHERE = {
    # number in prose: where it is checked
    "01": "the number of a tutorial",
    "02": "the number of a tutorial",
    "03": "the number of a tutorial",
    "05": "the number of a tutorial",
    "1.5": "LLaVA-1.5, a name",
}
"""Numbers that prose may say without an assert, each with its reason."""


def builder():
    spec = importlib.util.spec_from_file_location("build", TUTORIALS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def executed(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose_numbers(text):
    """List decimals, percentages and numbers of two digits or more in prose."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    text = re.sub(r"\bL\d+H\d+\b", "", text)
    return re.findall(
        r"(?<![\w.])\d+\.\d+|(?<![\w.])\d+(?=\s?%)|(?<![\w.])\d{2,}", text
    )


def test_numbers_in_prose_are_found_and_names_and_code_are_not():
    told = "It fell by 3.5 points (7 %) in 12 scenes, under `beta=0.25`, by L5H61."
    assert prose_numbers(told) == ["3.5", "7", "12"]


def test_there_are_ten_tutorials_in_order():
    numbers = [script.name[:2] for script in SCRIPTS]
    assert numbers == [f"{number:02d}" for number in range(1, 11)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
class TestTwins:
    def test_the_notebook_has_the_cells_of_its_script(self, script):
        expected, found = builder().read_script(script), executed(script)
        assert [(c.id, c.cell_type, c.source) for c in found.cells] == [
            (c.id, c.cell_type, c.source) for c in expected.cells
        ], f"make it anew: python tutorials/build.py {script.stem[:2]}"

    def test_every_cell_was_run_in_order_and_none_failed(self, script):
        cells = code_of(executed(script))
        assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
        kinds = {output.output_type for cell in cells for output in cell.outputs}
        assert kinds <= {"stream", "display_data", "execute_result"}

    def test_the_notebook_keeps_no_times_and_no_traces_of_a_machine(self, script):
        text = script.with_suffix(".ipynb").read_text()
        notebook = executed(script)
        assert all(cell.metadata == {} for cell in notebook.cells)
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        assert 'execution":' not in text
        for outputs in (cell.outputs for cell in code_of(notebook)):
            said = [o.get("text", "") for o in outputs]
            said += [o.get("data", {}).get("text/plain", "") for o in outputs]
            assert not re.search(r"/home/|/root/|/tmp/|/work/| at 0x", "".join(said))

    def test_the_notebook_is_small(self, script):
        assert script.with_suffix(".ipynb").stat().st_size < MOST_BYTES

    def test_one_constant_at_the_head_switches_to_a_real_checkpoint(self, script):
        (first, *others) = [cell.source for cell in code_of(executed(script))]
        assert re.fullmatch(
            r'MODEL = "(toy|tiny)"  # or .*llava-hf/llava-1.5-7b-hf.*', first
        )
        assert not any(re.search(r"^MODEL =", cell, re.MULTILINE) for cell in others)
        loads = [
            line for cell in others for line in cell.splitlines() if "load(" in line
        ]
        assert any("MODEL" in line for line in loads)

    def test_prose_states_no_number_that_no_assert_holds(self, script):
        notebook = executed(script)
        asserts = " ".join(
            line
            for cell in code_of(notebook)
            for line in cell.source.splitlines()
            if line.strip().startswith("assert ")
        )
        assert asserts.count("assert ") >= 8
        held = set(re.findall(r"\d+(?:\.\d+)?", asserts)) | set(STATED_ELSEWHERE)
        prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
        prose = re.sub(r"^# .*", "", prose, flags=re.MULTILINE)
        assert set(prose_numbers(prose)) <= held

    def test_it_ends_with_its_limits_and_exercises(self, script):
        prose = [c.source for c in executed(script).cells if c.cell_type == "markdown"]
        assert prose[-1].count("## What this does not show") == 1
        assert prose[-1].count("## Exercises") == 1
        assert len(re.findall(r"^\d\. ", prose[-1], re.MULTILINE)) in (1, 2)


@pytest.mark.parametrize("number", ["01", "02", "03", "04", "05", "09", "10"])
def test_figures_are_pictures_and_not_their_names(number):
    (script,) = [one for one in SCRIPTS if one.name.startswith(number)]
    shown = [
        output.data
        for cell in code_of(executed(script))
        for output in cell.outputs
        if "<Figure" in output.get("data", {}).get("text/plain", "")
        or "PIL.Image" in output.get("data", {}).get("text/plain", "")
    ]
    assert shown
    assert all("image/png" in data for data in shown)


def test_what_tutorial_05_says_of_the_full_study_is_what_the_full_study_says():
    told = (ROOT / "docs" / "toy-study.md").read_text()
    lines = [line for line in told.splitlines() if line.startswith("- CHAIR_S")]
    verdicts = {line.split("': ")[0].removeprefix("- ") + "'": line for line in lines}

    def verdict(metric, against):
        return verdicts[f"{metric}: 'EAH' against '{against}'"]

    assert "*holds*" in verdict("CHAIR_S", "baseline")
    assert "*cannot be told*" in verdict("CHAIR_S, length-matched", "baseline")
    assert "*cannot be told*" in verdict("CHAIR_S", "uniform")
    assert "*cannot be told*" in verdict("CHAIR_S", "shuffled")


def test_what_tutorial_02_says_of_the_model_card_is_what_the_card_says():
    card = (ROOT / "docs" / "toy.md").read_text()
    (line,) = [
        line
        for line in card.splitlines()
        if line.startswith("| 1. early layers are denser | visible, beta 1:")
    ]
    low, high = map(float, re.search(r"\[([-+.\d]+), ([-+.\d]+)\]", line).groups())
    assert low < 0 < high
