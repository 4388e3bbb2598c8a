"""Help texts: examples stay on lines of their own, whatever the terminal's width."""

import pytest
import typer
from typer.testing import CliRunner

from eah_interp.cli import app
from eah_interp.cli.app import split_examples


def walk(command, path=()):
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))


COMMANDS = dict(walk(typer.main.get_command(app)))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_examples_can_be_copied_whole_at_any_width(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    n_examples = 0
    for path, command in COMMANDS.items():
        prose, examples = split_examples(command.help)
        n_examples += len(examples)
        assert examples or path == ("score",), path
        assert "eah-interp " not in prose
        done = CliRunner().invoke(app, [*path, "--help"])
        assert done.exit_code == 0, done.output
        lines = done.stdout.splitlines()
        assert all(example in lines for example in examples), path
        assert prose.split()[0] in done.stdout
        framed = [line for line in lines if line not in examples]
        assert max(map(len, framed)) <= width
    assert n_examples > 20


def test_no_arguments_show_the_same_examples():
    done = CliRunner().invoke(app, ["study"])
    assert "eah-interp study check study.yaml" in done.output.splitlines()
