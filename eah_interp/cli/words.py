"""Words of the command line, read and checked before any work begins."""

from pathlib import Path

from eah_interp.errors import SettingsError


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


def parse_number(text: str | None) -> str | int | None:
    """Read a head's number as a number, and leave words as they are.

    Example:
        >>> parse_number("7"), parse_number("densest")
        (7, 'densest')
    """
    if text is None:
        return None
    return int(text) if text.lstrip("-").isdecimal() else text


def check_output(
    path: Path | None, *, suffixes: tuple[str, ...] = (), option: str = "--out"
) -> None:
    """See that a file can be written to a folder that exists, before work begins.

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


def check_dtype(name: str) -> None:
    """See that a type of weights exists.

    Raises:
        SettingsError: If it does not.
    """
    import torch

    if name != "auto" and not isinstance(getattr(torch, name, None), torch.dtype):
        msg = f"--dtype must be float32, bfloat16, float16 or auto, got {name!r}"
        raise SettingsError(msg)


def check_device(name: str) -> None:
    """See that a device is there and takes tensors.

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
