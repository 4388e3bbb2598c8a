"""The options that every command shares, declared once."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eah_interp.cli.words import (
    check_device,
    check_dtype,
    parse_indices,
    parse_number,
)
from eah_interp.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from eah_interp.interventions import EAH
    from eah_interp.lvlm import LVLM

_MODEL, _EAH, _OUTPUT = "Model", "EAH settings", "Output"
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
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the result as JSON, and nothing else, on stdout.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False

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
            return eah_interp.load(self.model, **chosen)
        except eah_interp.EAHError:
            raise
        except (OSError, ValueError) as error:  # what transformers raises
            reason = " ".join(str(error).split())
            msg = f"cannot load {self.model or 'the toy'}: {reason}"
            raise ModelError(msg) from error


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
            "mean, uniform, shuffled (controls); or a head's number.",
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
            "donor": parse_number(self.donor),
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
        """Make EAH's settings and see that a model has those layers and heads.

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
    kind: type[ModelOptions],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `kind` in place of its `options` parameter.

    Args:
        kind: `ModelOptions` or `PatchOptions`.

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
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {value.name: value.annotation for value in every}
        return run

    return decorate
