"""Attention masks that come from outside: what they may be, and where none comes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eah_interp.errors import InputError, show_value
from eah_interp.indices import to_ints
from eah_interp.kernels.patterns import find_visible, is_abstract
from eah_interp.lvlm.prompt import find_setting

_FAINTEST = -1000.0
"""What is added to a logit below it leaves no weight: exp(-1000) is 0 in float64."""


def check_mask(mask: Any, ids: Tensor) -> None:
    """Check that an attention mask is none, or one of some tokens.

    A mask of two axes has 1 at tokens and 0 at padding, of all that is read and of
    what stands in a cache before it; `check_written_mask` looks at one of four axes.

    Args:
        mask: The mask.
        ids: The tokens.

    Raises:
        InputError: If it is something else. Values on a device are not read: that
            would wait for all that is queued there.

    Example:
        >>> import torch
        >>> check_mask(torch.ones(1, 3), torch.tensor([[7, 8, 9, 10]]))
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: the attention mask has shape (1, 3): expected \
a flag for each token of input_ids, (1, 4)
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        got = show_value(mask)
        raise InputError(f"attention_mask must be a tensor of flags, got {got}")
    n_rows, width = ids.shape
    fits = mask.ndim == 2 and len(mask) == n_rows and mask.shape[1] >= width
    if not (fits or mask.ndim == 4) or mask.is_complex():
        msg = (
            f"the attention mask has shape {tuple(mask.shape)}: expected a flag for "
            f"each token of input_ids, {tuple(ids.shape)}"
        )
        raise InputError(msg)
    if mask.ndim == 4 or mask.device.type != "cpu" or is_abstract(mask):
        return
    odd = mask[(mask != 0) & (mask != 1)]
    if odd.numel():
        msg = (
            f"the attention mask holds {odd[0].item():.6g}: expected 1 at tokens and 0 "
            "at padding; a mask that is added to logits has four axes, [batch, head, "
            "query, key]"
        )
        raise InputError(msg)


def check_written_mask(mask: Any, model: Any) -> None:
    """Check that a mask of four axes hides keys in this model, and says which.

    Args:
        mask: The mask.
        model: An LVLM.

    Raises:
        InputError: If it is of a dtype that the attention adds without hiding
            anything, or refuses; if it hides by numbers that could be biases, holds
            NaN, or has 1 and 0 where 0 and a huge negative number are meant.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 4 or is_abstract(mask):
        return
    own = model._module.dtype
    got, dtype = (str(one).removeprefix("torch.") for one in (mask.dtype, own))
    least = f"torch.finfo(torch.{dtype}).min"
    if mask.dtype not in (torch.bool, own):
        msg = (
            f"an attention mask of four axes must hold booleans or {dtype}, as the "
            f"model computes, got {got}"
        )
        raise InputError(msg)
    if mask.dtype == torch.bool:
        config = model._module.config.get_text_config(decoder=True)
        if config._attn_implementation == "eager":
            msg = (
                "eager attention adds its mask to the logits, so that booleans hide "
                f"nothing: expected {dtype} of 0 where a row may look and {least} "
                "where not, got bool; or load with attn_implementation='sdpa'"
            )
            raise InputError(msg)
        return
    if bool(mask.isnan().any()):
        msg = f"the attention mask holds NaN: expected 0 or {least}"
        raise InputError(msg)
    if bool((mask == 1).any()) and bool(((mask == 0) | (mask == 1)).all()):
        msg = (
            f"the attention mask has 1 and 0 as {dtype}, which would be added to the "
            f"logits and hide nothing: expected 0 where a row may look and {least} "
            "where not, or booleans"
        )
        raise InputError(msg)
    faint = mask[(mask <= _FAINTEST) & find_visible(mask)]
    if faint.numel():
        msg = (
            f"the attention mask hides keys by {faint[0].item():.6g}, so whether they "
            f"are hidden or far from likely is not known: expected {least}, or booleans"
        )
        raise InputError(msg)


def check_flags(mask: Any, *, why: str) -> None:
    """Check that a mask is none, or has a flag for each token.

    Args:
        mask: The attention mask.
        why: What a mask of rows and columns stands in the way of.

    Raises:
        InputError: If it says of each row what it may look at.
    """
    if isinstance(mask, Tensor) and mask.ndim != 2:
        msg = (
            f"the attention mask has shape {tuple(mask.shape)}, and {why}: expected a "
            "flag for each token, [batch, key]; or pass images and prompts"
        )
        raise InputError(msg)


def with_padding_mask(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Write down the padding that `generate` finds by itself, where no mask is given.

    What acts on rows and columns has to know it too. It is found as transformers does:
    at the padding's token, unless an answer may end in that one.

    Args:
        model: An LVLM.
        inputs: What its `generate` is called with.

    Returns:
        The same, with an `attention_mask` if there is padding.
    """
    ids = inputs.get("input_ids")
    if inputs.get("attention_mask") is not None or not isinstance(ids, Tensor):
        return dict(inputs)
    pads, ends = (
        to_ints(find_setting(model, inputs, name)) or ()
        for name in ("pad_token_id", "eos_token_id")
    )
    if ids.ndim != 2 or is_abstract(ids) or len(pads) != 1 or pads[0] in ends:
        return dict(inputs)
    tokens = ids != pads[0]
    return dict(inputs) if tokens.all() else {**inputs, "attention_mask": tokens.long()}
