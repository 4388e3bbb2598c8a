"""How files name pictures: by number, or by a file name that ends in one."""

import re
from typing import Any, TypeAlias

from eah_interp.errors import InputError

ImageId: TypeAlias = int | str
"""A picture: its number where it has one, else its name."""

_NUMBERED = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d+)(?:\.[A-Za-z]+)?")


def image_id_of(value: Any, *, place: str) -> ImageId:
    """Return what identifies a picture, however a file writes it.

    Args:
        value: A number, its digits, or a file name such as COCO's.
        place: Where it stands, for the error.

    Returns:
        The number; a name without one as it is.

    Raises:
        InputError: If it is neither a number nor a name.

    Example:
        >>> image_id_of("COCO_val2014_000000226988.jpg", place="captions.jsonl:1")
        226988
    """
    if isinstance(value, str) and value:
        found = _NUMBERED.fullmatch(value)
        return int(found[1]) if found else value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    msg = f"{place}: expected a picture's number or file name, got {value!r}"
    raise InputError(msg)
