"""The command that makes a result again, written out from its options."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping

from eah_interp.cli.options import ModelOptions


def write_command(
    name: str,
    words: Iterable[object] = (),
    *,
    given: Mapping[str, object],
    options: ModelOptions,
) -> str:
    """Write the command line that has the same meaning.

    Args:
        name: The command.
        words: Its arguments.
        given: Its own options, by name; lists are repeated, None, False and empty ones
            left out, and True written without a value.
        options: The shared options; those that were left at their defaults are left
            out.

    Returns:
        One line, quoted for a POSIX shell.

    Example:
        >>> from eah_interp.cli.options import PatchOptions
        >>> options = PatchOptions(layers="0,1", seed=4)
        >>> write_command("ask", ["a b.png", "Why?"], given={}, options=options)
        "eah-interp ask 'a b.png' 'Why?' --layers 0,1 --seed 4"
    """
    parts = ["eah-interp", name, *map(str, words)]
    shared = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name != "json" and getattr(options, field.name) != field.default
    }
    for option, value in {**given, **shared}.items():
        flag = f"--{option.replace('_', '-')}"
        values = value if isinstance(value, list | tuple) else [value]
        for one in values:
            if one is True:
                parts.append(flag)
            elif one is not None and one is not False:
                parts += [flag, str(one)]
    return shlex.join(parts)
