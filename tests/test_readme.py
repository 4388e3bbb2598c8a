"""The code of the README and of the docs runs as it stands, in order."""

import re

import pytest
import typer


@pytest.fixture
def blocks(pytestconfig):
    text = (pytestconfig.rootpath / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_code_of_the_readme_runs(blocks, tmp_path):
    assert len(blocks) == 4
    # nnsight reads the source of a traced block from its file.
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks))
    scope = {"__name__": "readme", "__file__": str(script)}
    exec(compile(script.read_text(), str(script), "exec"), scope)
    assert scope["patch"].density.shape == (1, scope["model"].n_heads)
    assert scope["text"].startswith(("There", "This", "I", "A"))
    assert len(scope["sinks"].top(5)) == 5
    difference = (scope["bridged"] - scope["logits"]).abs().max()
    assert difference < 1e-4 * scope["logits"].abs().max()
    assert len(scope["before"].captions) == len(scope["after"].captions) == 16


def test_the_code_of_the_attribution_page_runs(pytestconfig, tmp_path):
    text = (pytestconfig.rootpath / "docs" / "attribution.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 9
    script = tmp_path / "attribution.py"
    script.write_text("\n".join(blocks))
    scope = {"__name__": "attribution", "__file__": str(script)}
    exec(compile(script.read_text(), str(script), "exec"), scope)
    assert len(scope["heads"].top(5)) == 5
    assert float(scope["heads"].plain.error.max()) < 1e-5
    shapley = scope["recipients"].effects.sum(1)
    assert float((shapley - scope["recipients"].total).abs().max()) < 1e-4
    assert scope["lens"].values.tolist() == pytest.approx(
        scope["heads"].plain.values.tolist(), abs=1e-4
    )
    assert scope["grid"].shape == (10, 10)
    assert scope["rough"].agreement.n_checked == 8


def test_the_readme_names_commands_that_exist(pytestconfig):
    from eah_interp.cli import app

    text = (pytestconfig.rootpath / "README.md").read_text()
    named = set(re.findall(r"^    eah-interp (\w+)", text, re.MULTILINE))
    assert named == set(typer.main.get_command(app).commands)
