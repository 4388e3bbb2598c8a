"""Places of a prompt for several nodes: positions by name, by number, by a box."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from eah_interp.attribution.cases import Case
from eah_interp.attribution.positions import (
    PositionName,
    PositionsWanted,
    find_positions,
)
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import to_float, to_int, to_list
from eah_interp.lvlm.prompt import find_tokens
from eah_interp.lvlm.spans import ImageSpan

Box = tuple[float, float, float, float]

Place = PositionsWanted | str | Box
"""What `patch_heads` takes as positions; `"all"`; or a box: left, top, right and bottom
as four floats, fractions of the image."""

Where = Place | Sequence[str] | Mapping[str, Place]
"""One place, several names, or places by what they are to be called."""


@dataclass(frozen=True)
class Places:
    """Places that were asked for, checked, and what each is called."""

    named: tuple[tuple[str, Any], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What each place is called."""
        return tuple(name for name, _ in self.named)

    def masks(self, model: Any, case: Case) -> tuple[Bool[Tensor, " position"], ...]:
        """Find the positions of each place in one item.

        Raises:
            InputError: If nothing stands there.
            SettingsError: If the prompt has no such position.
        """
        return tuple(_find(model, case, name, place) for name, place in self.named)


def check_places(where: Where) -> Places:
    """Check which places are meant.

    Args:
        where: One of them, several names, or places by what they are to be called.

    Raises:
        SettingsError: If it is no place, or one is named twice.

    Example:
        >>> check_places(["object", "last"]).names
        ('object', 'last')
        >>> check_places({"the boat": (0.0, 0.5, 0.4, 1.0), "dots": [3, 4]}).names
        ('the boat', 'dots')
    """
    named: list[tuple[Any, Any]]
    if isinstance(where, Mapping):
        named = list(where.items())
    elif isinstance(where, str):
        named = [(where, where)]
    else:
        listed = to_list(where) or []
        words = bool(listed) and all(isinstance(one, str) for one in listed)
        named = [(one, one) for one in listed] if words else [("place", where)]
    if not named or not all(isinstance(name, str) for name, _ in named):
        raise _refuse(where)
    names = [str(name) for name, _ in named]
    if len(set(names)) < len(names):
        msg = f"positions: expected every place once, got {show_value(names)}"
        raise SettingsError(msg)
    return Places(
        tuple(
            (name, _check(place)) for name, (_, place) in zip(names, named, strict=True)
        )
    )


def _refuse(place: object) -> SettingsError:
    names = ", ".join(f'"{name}"' for name in ("all", *get_args(PositionName)))
    msg = (
        f"positions must be one of {names}, or several; positions such as [3, -1]; "
        "a mask; a box of four floats from 0.0 to 1.0 (left, top, right, bottom); or a "
        "mapping of names to these"
    )
    return SettingsError(f"{msg}, got {show_value(place)}")


def _check(place: object) -> Any:
    if isinstance(place, str):
        if place not in ("all", *get_args(PositionName)):
            raise _refuse(place)
        return place
    if isinstance(place, Tensor) and place.dtype == torch.bool:
        return place
    listed = to_list(place)
    if not listed:
        raise _refuse(place)
    if all(to_int(one) is not None for one in listed):
        return place
    numbers = [to_float(one) for one in listed]
    box = [one for one in numbers if one is not None and 0 <= one <= 1]
    if len(box) != 4 or len(numbers) != 4 or box[0] >= box[2] or box[1] >= box[3]:
        raise _refuse(place)
    return ("box", *box)


def _find(model: Any, case: Case, name: str, place: Any) -> Tensor:
    ids = case.encoding["input_ids"]
    if isinstance(place, str) and place == "all":
        return find_tokens(case.encoding.get("attention_mask"), ids)[0].cpu()
    if not (isinstance(place, tuple) and place[0] == "box"):
        return find_positions(model, case, place)[0]
    mask = torch.zeros(ids.shape[1], dtype=torch.bool)
    mask[_columns_in(model.spans(case.encoding)[0], place[1:])] = True
    if not mask.any():
        msg = (
            f"{name!r} holds the centre of no patch: expected a larger box, in "
            "fractions of the image"
        )
        raise InputError(msg)
    return mask


def _columns_in(spans: Sequence[ImageSpan], box: Sequence[float]) -> list[int]:
    """List image tokens whose patch has its centre in a box of the first image."""
    left, top, right, bottom = box
    if not spans or not spans[0].spatial:
        msg = (
            "image tokens of this model have no place in the image, so a box has none "
            'of them: expected a name such as "image", or positions'
        )
        raise InputError(msg)
    found = []
    for column in spans[0].columns:
        patch = spans[0].place(column)
        if patch is None:
            continue
        across, down = (patch[0] + patch[2]) / 2, (patch[1] + patch[3]) / 2
        if left <= across < right and top <= down < bottom:
            found.append(column)
    return found
