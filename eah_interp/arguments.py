"""Checks of plain arguments at the door: what they are, before anything is done."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from eah_interp.errors import EAHError, InputError, SettingsError, show_value
from eah_interp.indices import check_integer, to_float

Kind = TypeVar("Kind")


def check_kind(
    name: str,
    value: object,
    kind: type[Kind] | tuple[type[Kind], ...],
    *,
    expected: str,
    error: type[EAHError] = InputError,
) -> Kind:
    """Check what an argument is an instance of.

    Args:
        name: Of the argument.
        value: What was given.
        kind: The class, or several.
        expected: What it is in words, with an article.
        error: What is raised.

    Raises:
        EAHError: As `error`, if it is something else.

    Example:
        >>> check_kind("caption", 3, str, expected="a text")
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: caption must be a text, got 3
    """
    if not isinstance(value, kind):
        raise error(f"{name} must be {expected}, got {show_value(value)}")
    return value


def check_text(name: str, value: object, *, error: type[EAHError] = InputError) -> str:
    """Check that an argument is a text, and make it a plain one.

    Raises:
        EAHError: As `error`, if it is something else.
    """
    return str(check_kind(name, value, str, expected="a text", error=error))


def check_unicode(name: str, text: str) -> str:
    """Check that a tokenizer can read a text, and make it a plain one.

    Raises:
        InputError: If it holds half a character, as text of undecodable bytes does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = (
            f"{name} holds half a character (a surrogate) at {error.start}: expected "
            f"text of whole ones, got {show_value(text)}"
        )
        raise InputError(msg) from error
    return str(text)


def check_path(name: str, value: object, *, error: type[EAHError] = InputError) -> Path:
    """Check that an argument is a path.

    Raises:
        EAHError: As `error`, if it is something else, or holds a sign that no path has.

    Example:
        >>> check_path("path", b"a.json")
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: path must be a path, as text or pathlib's, \
got b'a.json'
    """
    given = value
    if isinstance(value, os.PathLike) and not isinstance(value, str):
        given = value.__fspath__()
    if not isinstance(given, str) or "\0" in given:
        msg = f"{name} must be a path, as text or pathlib's, got {show_value(value)}"
        raise error(msg)
    return Path(given)


def check_mapping(
    name: str, value: object, *, error: type[EAHError] = SettingsError
) -> Mapping[str, Any]:
    """Check that an argument is a mapping whose keys are texts.

    Raises:
        EAHError: As `error`, if it is something else.
    """
    expected = "a mapping"
    found: Mapping[Any, Any] = check_kind(
        name,
        value,
        Mapping,
        expected=expected,
        error=error,
    )
    odd = [key for key in found if not isinstance(key, str)]
    if odd:
        raise error(f"{name} must have texts as keys, got {show_value(odd[0])}")
    return found


def check_count(name: str, value: object) -> int:
    """Check that a number of things is an integer of 1 or more, and make it plain.

    Raises:
        SettingsError: If it is not.
    """
    return check_integer(name, value, least=1)


def check_limit(name: str, value: object) -> int | None:
    """Check that a limit is None, or an integer of 0 or more, and make it plain.

    Raises:
        SettingsError: If it is not.
    """
    return None if value is None else check_integer(name, value)


def check_level(value: object) -> float:
    """Check that a confidence level lies between 0 and 1.

    Raises:
        SettingsError: If it does not.
    """
    number = to_float(value)
    if number is None or not 0 < number < 1:
        msg = f"level must be a share between 0 and 1, got {show_value(value)}"
        raise SettingsError(msg)
    return number
