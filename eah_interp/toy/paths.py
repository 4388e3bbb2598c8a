"""Where the committed weights lie."""

from importlib import resources
from pathlib import Path
from typing import Literal, TypeAlias

from eah_interp.errors import SettingsError

ToyName: TypeAlias = Literal["seed-0", "seed-1", "seed-2", "low-prior"]
TOYS: tuple[ToyName, ...] = ("seed-0", "seed-1", "seed-2", "low-prior")
"""The default toy; two more from the same recipe, and one from a world in which
objects hardly go together. A finding on one may be an accident of its training."""


def toy_path(name: ToyName = "seed-0") -> Path:
    """Return the folder of a toy's weights, tokenizer and processor.

    It loads with plain transformers as well: `from_pretrained(toy_path())`.

    Args:
        name: Which of the trained toys.

    Returns:
        The folder.

    Raises:
        SettingsError: If there is no such toy.

    Example:
        >>> (toy_path() / "config.json").name
        'config.json'
    """
    if name not in TOYS:
        raise SettingsError(f"expected one of {TOYS}, got {name!r}")
    return Path(str(resources.files("eah_interp.toy"))) / "weights" / name
