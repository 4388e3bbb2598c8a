"""Command lines and study files on the pages are ones that exist."""

import re
import shlex

import pytest
import typer

from eah_interp.cli import app
from eah_interp.studies import StudyFile
from tests.docs.pages import find_blocks, find_pages, name_of


def find_command_lines():
    """Return (page, line) of each `eah-interp ...` in a console or indented block."""
    found = []
    for page in find_pages():
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^(?:\$|   ) (eah-interp .*)$", text, re.MULTILINE):
            found.append((name_of(page), line))
    return found


def check_words(words, choices_of):
    """Check the words of a command line; raise LookupError where one is unknown."""
    words, command = words[1:], typer.main.get_command(app)
    anywhere = {"--plugin": next(p for p in command.params if p.name == "plugin")}
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    options = {
        name: p for p in command.params for name in [*p.opts, *p.secondary_opts]
    } | {"--help": None, "-h": None, **anywhere}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    given = []
    while words:
        word, *words = words
        if not word.startswith("-"):
            given.append(word)
            continue
        name, _, value = word.partition("=")
        if name not in options:
            raise LookupError(f"{command.name} has no option {name}")
        option = options[name]
        if option is None or option.is_flag:
            continue
        if not value:
            value, *words = words
        choices = choices_of(option)
        if choices and value not in choices:
            raise LookupError(f"{name} takes {choices}, got {value}")
    least = sum(p.required for p in arguments)
    most = 99 if any(p.nargs == -1 for p in arguments) else len(arguments)
    if getattr(command, "commands", {}) and given:
        raise LookupError(f"no command {given[0]}")
    if not least <= len(given) <= most and options:
        raise LookupError(f"{command.name} takes {least} to {most}, got {given}")


@pytest.mark.parametrize(("page", "line"), find_command_lines())
def test_a_command_line_on_a_page_can_be_typed(page, line, part):
    words = shlex.split(line, comments=True)
    if "..." in words or "|" in words:
        words = words[: min(words.index(w) for w in ("...", "|") if w in words)]
    check_words(words, part("commands").choices_of)


@pytest.mark.parametrize(
    "line",
    [
        "eah-interp nothing",
        "eah-interp sinks photo.jpg --no-such-option",
        "eah-interp sinks",
        "eah-interp score pope a.jsonl --questions b --rule mine",
    ],
)
def test_a_command_line_that_cannot_be_typed_is_found(line, part):
    with pytest.raises(LookupError):
        check_words(shlex.split(line), part("commands").choices_of)


STUDIES = [
    (name_of(page), block)
    for page in find_pages()
    for block in find_blocks(page, "yaml")
    if re.search(r"^(items|conditions):", block.text, re.MULTILINE)
]


@pytest.mark.parametrize(("name", "block"), STUDIES)
def test_a_study_file_on_a_page_is_valid(name, block, tmp_path):
    (tmp_path / "study.yaml").write_text(block.text)
    own = "file,asked,right\na.png,Is there a cup?,yes\n"  # what a reader brings
    (tmp_path / "questions.csv").write_text(own)
    assert StudyFile.load(tmp_path / "study.yaml").study().conditions, name
