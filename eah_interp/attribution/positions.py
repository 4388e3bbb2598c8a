"""Positions by name, such as the question's: where in a prompt something is patched."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.attribution.cases import Case
from eah_interp.attribution.mentions import find_mentions
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import to_ints
from eah_interp.lvlm.prompt import find_tokens
from eah_interp.lvlm.spans import image_mask

PositionName = Literal["last", "image", "text", "question", "object"]
"""The prompt's last token; its image tokens; its other tokens; those of them after the
last image token; those that name the objects that are read, or that a yes-or-no
question is about."""

PositionsWanted = PositionName | Sequence[int] | Tensor
"""Positions by name, by number (padding counted, negative ones from the end), or as a
boolean mask, `[position]` or `[item position]`."""


def find_positions(model: Any, case: Case, wanted: PositionsWanted) -> ColumnMask:
    """Find the positions that are meant, in each item.

    Args:
        model: An LVLM.
        case: Its items.
        wanted: Which positions.

    Returns:
        True at these, `[item position]`, on the CPU.

    Raises:
        SettingsError: If there is no such name or position.
        InputError: If an item that is asked something has none.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import pose
        >>> from eah_interp.testing import random_image
        >>> model = eah.load()
        >>> asked = {"prompts": "Is there a fish?", "objects": ["fish"]}
        >>> case = pose(model, random_image(), **asked)
        >>> [int(find_positions(model, case, name).sum()) for name in ("image", "last")]
        [100, 1]
        >>> place = find_positions(model, case, "object").nonzero()[0, 1]
        >>> model.tokenizer.decode(case.encoding["input_ids"][0, place])
        'fish'
    """
    shape = tuple(case.encoding["input_ids"].shape)
    if isinstance(wanted, str):
        found = _find_named(model, case, wanted)
    elif isinstance(wanted, Tensor) and wanted.dtype == torch.bool:
        if tuple(wanted.shape) not in (shape, shape[1:]):
            msg = (
                f"positions has shape {tuple(wanted.shape)}: expected a flag for each "
                f"position, {shape[1:]}, or for each of every item, {shape}"
            )
            raise SettingsError(msg)
        found = wanted.cpu().expand(shape)
    else:
        found = torch.zeros(shape, dtype=torch.bool)
        found[:, _list_numbers(wanted, shape[1])] = True
    for item in sorted(set(case.readout.target_rows.tolist())):
        if not found[item].any():
            msg = (
                f"positions={show_value(wanted)} are none in item {item}: expected at "
                "least one position; name another part of the prompt, or number them"
            )
            raise InputError(msg)
    return found


def name_positions(wanted: PositionsWanted | None) -> str:
    """Name positions in a result, as they were asked for.

    Example:
        >>> name_positions("last"), name_positions([-2, -1]), name_positions(None)
        ('last', '[-2, -1]', 'all')
    """
    if wanted is None or isinstance(wanted, str):
        return wanted or "all"
    if isinstance(wanted, Tensor) and wanted.dtype == torch.bool:
        return f"a mask of {int(wanted.sum())} positions"
    return str(list(to_ints(wanted) or ()))


def _list_numbers(wanted: object, width: int) -> list[int]:
    listed = to_ints(wanted) or (width,)
    found = [place % width for place in listed if -width <= place < width]
    if len(set(found)) < len(listed):
        names = ", ".join(f'"{name}"' for name in get_args(PositionName))
        msg = (
            f"positions={show_value(wanted)} does not fit {width} tokens: expected one "
            f"of {names}, positions from {-width} to {width - 1}, each once, or a mask"
        )
        raise SettingsError(msg)
    return found


def _find_named(model: Any, case: Case, name: str) -> ColumnMask:
    ids = case.encoding["input_ids"].cpu()
    tokens = find_tokens(case.encoding.get("attention_mask"), ids).cpu()
    if case.prompt_mask is not None:
        tokens = tokens & case.prompt_mask.cpu()
    columns = torch.arange(ids.shape[1])
    if name == "last":
        return columns == (columns * tokens).amax(-1, keepdim=True)
    if name == "object":
        return _find_objects(model, case, tokens)
    if name not in get_args(PositionName):
        _list_numbers(name, ids.shape[1])
    images = torch.zeros_like(tokens)
    if model.anatomy.image_token_id is not None:
        images = image_mask(ids, model.anatomy.image_token_id)
    if name == "image":
        return images & tokens
    if name == "question":
        tokens = tokens & (columns > (columns * images).amax(-1, keepdim=True))
    return tokens & ~images


def _find_objects(model: Any, case: Case, tokens: ColumnMask) -> ColumnMask:
    """Find where prompts name the objects that are read of them, or asked about.

    Raises:
        SettingsError: If a yes-or-no question is not said to be about any, or the
            model has no tokenizer.
    """
    yes_no = case.readout.metric == "yes_no"
    if yes_no and not any(case.about):
        msg = (
            'positions="object" are where the prompt names an object, and '
            'metric="yes_no" reads none: expected what the question is about, as in '
            'objects=["fish"]; or number the positions, as in positions=[-3, -2]'
        )
        raise SettingsError(msg)
    if model.tokenizer is None:
        msg = (
            'positions="object" are where the prompt names what is read: expected a '
            "model with its tokenizer; number the positions, as in positions=[-3, -2]"
        )
        raise SettingsError(msg)
    found = torch.zeros_like(tokens)
    for item, ids in enumerate(case.encoding["input_ids"].tolist()):
        own = [target for target in case.readout.targets if target.row == item]
        # A difference of two objects is called by both.
        words = (
            case.about[item]
            if yes_no
            else [word for target in own for word in target.label.split(" - ")]
        )
        if words:
            for mention in find_mentions(
                model.tokenizer, ids, list(dict.fromkeys(words))
            ):
                found[item, mention.start : mention.stop] = True
    return found & tokens
