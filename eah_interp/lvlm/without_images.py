"""The same prompts without their images, for what compares runs with and without."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eah_interp.errors import InputError
from eah_interp.lvlm.inputs import Encoding
from eah_interp.lvlm.masks import check_flags
from eah_interp.lvlm.prompt import find_tokens
from eah_interp.lvlm.spans import image_mask

_KOSMOS = "image_embeds_position_mask"


def drop_images(model: Any, encoding: Mapping[str, Any]) -> Encoding:
    """Make the inputs of the same prompts with their images left out.

    What lies between an image's first and last token goes, with the pixels; markers
    around it and the text stay, token by token, and rows are padded anew on the left.

    Args:
        model: An LVLM.
        encoding: Its inputs, as `encode` makes them.

    Returns:
        Inputs of the text alone, with `input_ids` and `attention_mask`.

    Raises:
        InputError: If a row has no image, or where its tokens are is not known.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> encoding = model.encode(random_image(), "what ?")
        >>> text = drop_images(model, encoding)["input_ids"]
        >>> encoding["input_ids"].shape[1] - text.shape[1]
        16
    """
    ids = encoding.get("input_ids")
    token = model.anatomy.image_token_id
    marks = encoding.get(_KOSMOS)
    if not isinstance(ids, Tensor) or (token is None and marks is None):
        msg = (
            "where the image tokens are is not known: expected input_ids and a model "
            "with an image_token_id"
        )
        raise InputError(msg)
    shown = marks.bool() if isinstance(marks, Tensor) else image_mask(ids, token)
    shown = shown.clone()
    for spans in model.spans(encoding):
        for span in spans:
            shown[span.row, span.start : span.stop] = True
    bare = (~shown.any(1)).nonzero().flatten().tolist()
    if bare:
        msg = f"row {bare[0]} has no image to leave out: expected one in every row"
        raise InputError(msg)
    given = encoding.get("attention_mask")
    check_flags(given, why="a prompt without its images would need another")
    real = find_tokens(given, shown)
    kept = real & ~shown
    width = int(kept.sum(1).max())
    text: dict[str, Any] = {"attention_mask": torch.zeros_like(ids[:, :width])}
    for name, value in encoding.items():
        alike = isinstance(value, Tensor) and value.shape == ids.shape
        if alike and name not in (_KOSMOS, "attention_mask", "position_ids", "labels"):
            text[name] = value.new_full((len(ids), width), _padding(model, name))
    for row, which in enumerate(kept):
        own = int(which.sum())
        text["attention_mask"][row, width - own :] = 1
        for name in text.keys() - {"attention_mask"}:
            text[name][row, width - own :] = encoding[name][row, which]
    return Encoding(text | _needed(model, encoding, text["input_ids"]))


def _padding(model: Any, name: str) -> int:
    """Find what pads a row; no model sees it."""
    tokenizer = model.tokenizer
    for token in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, token, None)
        if name == "input_ids" and found is not None:
            return int(found)
    return 0


def _needed(model: Any, encoding: Mapping[str, Any], ids: Tensor) -> dict[str, Any]:
    """Keep what a forward insists on, though no token of the text stands for it."""
    parameters = inspect.signature(type(model._module).forward).parameters
    needed = {
        name: encoding[name]
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and name in encoding
        and name not in ("input_ids", "attention_mask")
    }
    if _KOSMOS in parameters:  # features of no position
        width = model._module.get_input_embeddings().embedding_dim
        needed["image_embeds"] = torch.zeros(len(ids), 0, width)
        needed[_KOSMOS] = torch.zeros_like(ids)
    return needed
