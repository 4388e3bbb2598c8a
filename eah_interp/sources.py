"""The text that a function was made of, where it can be told that it is its own."""

import inspect
import linecache
from types import FunctionType


def read_source(function: FunctionType) -> str:
    """Read the text that defines a function.

    Raises:
        OSError: If it is not there.

    Example:
        >>> made = eval("lambda x: x")
        >>> read_source(made)
        Traceback (most recent call last):
            ...
        OSError: code of <string> has no source of its own
    """
    _check_file(function)
    return inspect.getsource(function)


def read_lines(function: FunctionType) -> list[str]:
    """Read the whole file that a function stands in.

    Raises:
        OSError: If it stands in none.
    """
    _check_file(function)
    return linecache.getlines(function.__code__.co_filename)


def _check_file(function: FunctionType) -> None:
    # From Python 3.13 on "<string>" has lines: those of `python -c`. What eval and exec
    # made is of the same name, and would pass for a line of that program.
    name = function.__code__.co_filename
    if name in ("<string>", "<stdin>"):
        raise OSError(f"code of {name} has no source of its own")
