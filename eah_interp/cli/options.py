"""Options and arguments that commands share, declared, read and written out once."""

import dataclasses
import functools
import inspect
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eah_interp.cli.app import PLUGIN, plugins
from eah_interp.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from eah_interp.interventions import EAH
    from eah_interp.lvlm import LVLM

# ---- Words of the command line, read and checked before any work begins.


def parse_indices(option: str, text: str | None) -> tuple[int, ...] | None:
    """Read `0,1` as indices.

    Raises:
        SettingsError: If it is something else.

    Example:
        >>> parse_indices("--layers", "0, 1")
        (0, 1)
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        msg = f"{option} must be numbers with commas between, as in 0,1; got {text!r}"
        raise SettingsError(msg) from error


def parse_donor(text: str | None) -> Any:
    """Read a head's number as a number, and a function's name as the function.

    Raises:
        SettingsError: If it names a function that `--plugin` did not import.

    Example:
        >>> parse_donor("7"), parse_donor("densest")
        (7, 'densest')
    """
    if text is None:
        return None
    if ":" in text:
        from eah_interp.plugins import find_plugin

        return find_plugin({"plugin": text})
    # No head has a number so long that Python would refuse to read it.
    is_number = text.lstrip("-").isdecimal() and len(text) < 20
    return int(text) if is_number else text


def check_output(
    path: Path | None, *, suffixes: tuple[str, ...], option: str = "--out"
) -> None:
    """Check that a file can be written to a folder that exists, before work begins.

    Args:
        path: The file.
        suffixes: What its name may end in.
        option: The option that named it.

    Raises:
        SettingsError: If it cannot.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        msg = f"{option} must end in {', '.join(suffixes)}, got {path.name!r}"
        raise SettingsError(msg)
    if not path.resolve().parent.is_dir():
        msg = f"{option}: the folder {path.resolve().parent} does not exist"
        raise SettingsError(msg)


def check_figure(path: Path | None, *, option: str = "--out") -> None:
    """Check that a figure can be drawn and written, before work begins.

    Raises:
        SettingsError: If its format is unknown or its folder does not exist.
        ExtraMissingError: If matplotlib is not installed.
    """
    check_output(path, suffixes=(".png", ".pdf", ".svg"), option=option)
    if path is not None:
        check_matplotlib()


def check_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        ExtraMissingError: If matplotlib is not installed.
    """
    from eah_interp.viz.figures import make_figure

    make_figure(height=1.0)


def check_dtype(name: str) -> None:
    """Check that a type of weights exists.

    Raises:
        SettingsError: If it does not.
    """
    import torch

    if name != "auto" and not isinstance(getattr(torch, name, None), torch.dtype):
        msg = f"--dtype must be float32, bfloat16, float16 or auto, got {name!r}"
        raise SettingsError(msg)


def check_device(name: str) -> None:
    """Check that a device is there and takes tensors.

    Raises:
        SettingsError: If it does not.
    """
    import torch

    if name == "auto":
        return
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        msg = f"--device {name} cannot be used here: {reason}"
        raise SettingsError(msg) from error


# ---- Arguments and options of several commands.

_MODEL, _EAH, OUTPUT = "Model", "EAH settings", "Output"

PAGE = (".html", ".htm")

MAX_NEW_TOKENS = 40
CAPTION_START = "There is a"

ImageFile = Annotated[Path, typer.Argument(help="An image file.", show_default=False)]
MaxNewTokens = Annotated[
    int, typer.Option(min=1, metavar="N", help="Longest answer in words, in tokens.")
]
CaptionStart = Annotated[
    str,
    typer.Option(metavar="TEXT", help="Words after which a caption names an object."),
]
Absent = Annotated[
    list[str] | None,
    typer.Option(
        "--absent", "-a", metavar="NAME", help="An object not in it; repeatable."
    ),
]
SaveFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write every number into this folder, as Parquet and JSON.",
        rich_help_panel=OUTPUT,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as JSON, and nothing else, on stdout.",
        rich_help_panel=OUTPUT,
    ),
]


# ---- Options that come as one object: the model's, and EAH's.

_PRESETS = ("default", "paper", "official")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model to load, where, and what to print."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Hub id or folder of a checkpoint, or toy:seed-1 and the like. "
            "Default: the embedded toy.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|cuda|...",
            help="Where to run (cuda:1, mps, ...); auto spreads a large model over "
            "what is there.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="float32, bfloat16 or float16. Default: the checkpoint's.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    json: Json = False

    def load(self) -> "LVLM":
        """Load the model.

        Raises:
            SettingsError: If the device or dtype does not exist here.
            ModelError: If the checkpoint cannot be loaded or worked on.
            InputError: If the folder does not exist.
        """
        import eah_interp

        chosen: dict[str, Any] = {}
        if self.dtype is not None:
            check_dtype(self.dtype)
            chosen["dtype"] = self.dtype
        if self.device is not None:
            check_device(self.device)
            chosen["device_map"] = self.device
        try:
            loaded = eah_interp.load(self.model, **chosen)
        except eah_interp.EAHError:
            raise
        except (OSError, ValueError) as error:  # what transformers raises
            reason = " ".join(str(error).split())
            msg = f"cannot load {self.model or 'the toy'}: {reason}"
            raise ModelError(msg) from error
        loaded.knows = ""  # commands say it of every image, after their numbers
        return loaded


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchOptions(ModelOptions):
    """The model's options, and EAH's settings as words of the command line."""

    preset: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            help="Where to start from: default (our corrected score), paper, or "
            "official (what the released file really does: layer 15). The options "
            "below change it.",
            rich_help_panel=_EAH,
        ),
    ] = "default"
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="0,1",
            help="Decoder layers to patch, counted from 0. Default: 1.",
            rich_help_panel=_EAH,
        ),
    ] = None
    definition: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="How a column's sink score is defined: visible (default), paper or "
            "official.",
            rich_help_panel=_EAH,
        ),
    ] = None
    beta: Annotated[
        float | None,
        typer.Option(
            metavar="B",
            help="Least score of a vision sink. Default: 1.0 (times the uniform "
            "share), 0.002 or 0.0008, by definition.",
            rich_help_panel=_EAH,
        ),
    ] = None
    gamma: Annotated[
        float | None,
        typer.Option(
            metavar="G",
            help="Least sink density of the densest donor, such as 0.15.",
            rich_help_panel=_EAH,
        ),
    ] = None
    donor: Annotated[
        str | None,
        typer.Option(
            metavar="WHOM",
            help="Whose pattern is broadcast: densest (the method); sparsest, random, "
            "mean, uniform, shuffled (controls); a head's number; or MODULE:NAME, a "
            "function of yours (see --plugin).",
            rich_help_panel=_EAH,
        ),
    ] = None
    recipients: Annotated[
        str | None,
        typer.Option(
            metavar="all|0,3,5",
            help="Heads that receive it. Default: all.",
            rich_help_panel=_EAH,
        ),
    ] = None
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="prefill: patch the prompt only; all: every generated token too.",
            rich_help_panel=_EAH,
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Seed of the random and shuffled donors.",
            rich_help_panel=_EAH,
        ),
    ] = None

    def eah(self) -> "EAH":
        """Make EAH's settings.

        Raises:
            SettingsError: If a value is impossible.
        """
        from eah_interp.interventions import EAH

        if self.preset not in _PRESETS:
            listed = ", ".join(_PRESETS)
            msg = f"--preset must be one of {listed}, got {self.preset!r}"
            raise SettingsError(msg)
        changes: dict[str, Any] = {
            "layers": parse_indices("--layers", self.layers),
            "definition": self.definition,
            "beta": self.beta,
            "gamma": self.gamma,
            "donor": parse_donor(self.donor),
            "recipients": self.recipients
            if self.recipients == "all"
            else parse_indices("--recipients", self.recipients),
            "steps": self.steps,
            "seed": self.seed,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        make: dict[str, Callable[..., EAH]] = {
            "default": EAH,
            "paper": EAH.paper,
            "official": EAH.official,
        }
        return make[self.preset](**given)

    def eah_for(self, model: "LVLM") -> "EAH":
        """Make EAH's settings, and check that a model has those layers and heads.

        Raises:
            SettingsError: If a value is impossible, or a layer or head not there.
            ModelError: If a layer has no heads to patch.
        """
        eah = self.eah()
        for layer in eah.layers:
            model.anatomy.site(layer)
        eah.check_fits(n_heads=model.n_heads)
        return eah


def with_options(
    kind: type[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `kind` in place of its `options` parameter.

    Args:
        kind: A dataclass whose fields are annotated as typer's options are.

    Returns:
        A decorator.
    """
    shared = inspect.signature(kind).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters

        @functools.wraps(command)
        def run(**values: Any) -> None:
            options = kind(**{name: values.pop(name) for name in shared})
            command(**values, options=options)

        kept = [value for name, value in own.items() if name != "options"]
        every = [
            value.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for value in (*kept, *shared.values())
        ]
        # typer reads a command's options off its signature and annotations.
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {value.name: value.annotation for value in every}
        return run

    return decorate


# ---- The command that makes a result again, written out from its options.


def write_command(
    name: str,
    words: Iterable[object] = (),
    *,
    given: Mapping[str, object],
    options: ModelOptions | None = None,
    defaults: Mapping[str, object] | None = None,
) -> str:
    """Write the command line that has the same meaning.

    Args:
        name: The command, such as `study run`.
        words: Its arguments.
        given: Its own options, by name; lists are repeated, None, False and empty ones
            left out, and True written without a value.
        options: The shared options; those that were left at their defaults are left
            out.
        defaults: Values of its own options that need not be written.

    Returns:
        One line, quoted for a POSIX shell.

    Example:
        >>> from eah_interp.cli.options import PatchOptions
        >>> options = PatchOptions(layers="0,1", seed=4)
        >>> write_command("ask", ["a b.png", "Why?"], given={}, options=options)
        "eah-interp ask 'a b.png' 'Why?' --layers 0,1 --seed 4"
    """
    named = [word for spec in plugins for word in (PLUGIN, spec)]
    parts = ["eah-interp", *named, *name.split(), *map(str, words)]
    fields = () if options is None else dataclasses.fields(options)
    shared = {
        field.name: getattr(options, field.name)
        for field in fields
        if field.name != "json" and getattr(options, field.name) != field.default
    }
    own = {
        option: value
        for option, value in given.items()
        if (option, value) not in (defaults or {}).items()
    }
    for option, value in {**own, **shared}.items():
        flag = f"--{option.replace('_', '-')}"
        values = value if isinstance(value, list | tuple) else [value]
        for one in values:
            if one is True:
                parts.append(flag)
            elif one is not None and one is not False:
                parts += [flag, str(one)]
    return shlex.join(parts)
