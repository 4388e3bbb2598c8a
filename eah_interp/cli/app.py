"""The typer app, what commands print where, and how their errors end them."""

import contextlib
import gc
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

import eah_interp
from eah_interp.errors import EAHError, InputError, SettingsError, is_out_of_memory
from eah_interp.files import save_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

PLUGIN = "--plugin"

Function = TypeVar("Function", bound=Callable[..., Any])

if TYPE_CHECKING:
    from typer.core import TyperCommand as _Helped
else:
    _Helped = object

plugins: list[str] = []
"""Code that this command line has imported, to be written into one that resumes it."""


def split_examples(text: str) -> tuple[str, list[str]]:
    r"""Split a help text into its prose and its examples, whole command lines.

    Example:
        >>> split_examples("Show it.\n\n    eah-interp demo --out a\n\nThat is all.")
        ('Show it.\n\nThat is all.', ['eah-interp demo --out a'])
    """
    prose: list[str] = []
    examples: list[str] = []
    for line in text.replace("\b", "").replace("\f", "").strip().splitlines():
        if line.strip().startswith("eah-interp "):
            examples.append(line.strip())
        elif line.strip() or (prose and prose[-1]):
            prose.append(line)
    return "\n".join(prose).strip(), examples


class _ShowsExamples(_Helped):
    """Writes the examples of its help as they are: a terminal's width breaks none."""

    help: str | None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, and its examples below."""
        whole = self.help
        prose, examples = split_examples(whole or "")
        try:
            self.help = prose
            super().format_help(ctx, formatter)
        finally:
            self.help = whole
        if examples:
            typer.echo("\n".join([" Examples:", "", *examples, ""]))


class _Command(_ShowsExamples, TyperCommand):
    """A command."""


class _Group(_ShowsExamples, TyperGroup):
    """A group of commands."""


class App(typer.Typer):
    """A group of commands whose help shows examples that can be copied."""

    def __init__(self, **options: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"]}
        given: dict[str, Any] = {
            "cls": _Group,
            "no_args_is_help": True,
            "rich_markup_mode": "markdown",
            "context_settings": settings,
        }
        super().__init__(**given | options)

    def command(
        self, name: str | None = None, **options: Any
    ) -> Callable[[Function], Function]:
        """Add a command, as typer does."""
        return super().command(name, **{"cls": _Command} | options)


class _PluginsAnywhere(_Group):
    """Takes `--plugin` after the command as well as before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = iter(args)
        first: list[str] = []
        rest: list[str] = []
        for word in words:
            if word == PLUGIN:
                first += [word, *itertools.islice(words, 1)]
            else:
                (first if word.startswith(f"{PLUGIN}=") else rest).append(word)
        return super().parse_args(ctx, [*first, *rest])


app = App(name="eah-interp", cls=_PluginsAnywhere, pretty_exceptions_enable=False)


def _print_version(value: bool) -> bool:  # noqa: FBT001 - typer calls it so
    if value:
        typer.echo(f"eah-interp {eah_interp.__version__}")
        raise typer.Exit
    return value


@app.callback()
def main(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and leave.",
        ),
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Import code of your own: a donor rule or an intervention, which "
            "study files and --donor may name then. FILE.py:NAME will do.",
        ),
    ] = None,
) -> None:
    """Look at vision sinks in vision-language models, and patch them with EAH.

    A **vision sink** is an image token that an attention head looks at more than
    evenly. **EAH** broadcasts the pattern of the head with the most sinks to the other
    heads of a shallow layer, which is claimed to lower hallucination.

    Begin with the embedded toy model, which needs no download and no GPU; then your
    own image, and your own model:

        eah-interp demo --out demo-out
        eah-interp sinks photo.jpg
        eah-interp ask photo.jpg "Is there a dog in the image?" -m CHECKPOINT

    Layers and heads are counted from 0. Exit codes: 0 done, 1 failed, 2 asked for
    something impossible, 130 interrupted.
    """
    del version  # its callback has printed it
    plugins[:] = plugin or []
    if plugins:
        from eah_interp.plugins import import_plugin

        with working(spinning=False):
            for spec in plugins:
                import_plugin(spec)


# ---- The terminal: results on stdout; progress, warnings and errors on stderr.


FAILURE, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes: it failed, what was asked for is impossible, or it was stopped."""


class Bar:
    """A progress bar on stderr; silent where stderr is no terminal.

    Attributes:
        progress: rich's bar; None shows nothing.
    """

    def __init__(self, progress: "Progress | None" = None) -> None:
        self.progress = progress
        self._task: TaskID | None = None
        if progress is not None:
            self._task = progress.add_task("starting", total=None)
        self._total = 0

    def expect(self, steps: int) -> None:
        """Announce steps to come."""
        self._total += steps
        if self.progress is not None and self._task is not None:
            self.progress.update(self._task, total=self._total)

    def step(self, what: str) -> None:
        """Show what begins now; what was before it is done."""
        if self.progress is not None and self._task is not None:
            self.progress.update(self._task, advance=1, description=what)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Let Python look for no circles of objects while millions are made that have none.

    NLTK's data and a file of captions make it look again and again: a fifth of the
    time that a comparison takes.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def working(*, spinning: bool = True) -> Iterator[Bar]:
    """Show progress while a command works, and turn its errors into one line.

    Whatever libraries print meanwhile goes to stderr, so that stdout holds the result
    alone.

    Args:
        spinning: Whether to show the bar; not where the work shows one of its own.

    Yields:
        The bar.

    Raises:
        typer.Exit: With code 2 for impossible settings and inputs, 1 for failures,
            memory that is too small among them. Other errors are faults of ours, and
            keep their traceback.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    shown = console.is_terminal and spinning
    progress = Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        disable=not shown,
    )
    try:
        # Older rich ends a bar that is not shown with an empty line.
        bar = progress if shown else contextlib.nullcontext()
        with contextlib.redirect_stdout(sys.stderr), bar:
            yield Bar(progress if shown else None)
    except Exception as error:
        said = " ".join(str(error).split())
        if not isinstance(error, EAHError):
            if not is_out_of_memory(error):
                raise
            said = (
                f"out of memory: {said or type(error).__name__}; a smaller --dtype or "
                "another --device needs less, and a smaller batch"
            )
        console.print(f"error: {said}", markup=False, highlight=False, soft_wrap=True)
        usage = isinstance(error, InputError | SettingsError)
        raise typer.Exit(USAGE if usage else FAILURE) from error


def show(parts: Iterable["RenderableType"]) -> None:
    """Print tables and sentences on stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    for part in parts:
        console.print(part, markup=False)  # file names may hold brackets


def show_json(record: Mapping[str, Any]) -> None:
    """Print a record as JSON on stdout."""
    typer.echo(write_json(record))


def write_json(record: Mapping[str, Any]) -> str:
    """Write a record as JSON; NaN and infinity are refused, JSON has none."""
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of its suffix, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lstrip(".").lower())
    save_bytes(buffer.getvalue(), path)
