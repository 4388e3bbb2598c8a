"""Encodings that go on: copies of rows, and answers written after their prompts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eah_interp.errors import InputError
from eah_interp.lvlm.inputs import Encoding


def append_tokens(
    encoding: Encoding, answers: Sequence[Sequence[int]], *, pad: int
) -> Encoding:
    """Write an answer after each row's prompt, shorter ones padded on the right.

    What a model is told of every token (its kind, whether it is padding) goes along:
    an answer is text.

    Args:
        encoding: Prompts, padded on the left.
        answers: The token ids of each row's answer.
        pad: Token id of the padding.

    Returns:
        The longer encoding.

    Raises:
        InputError: If there is not an answer for each row, or the encoding has
            something of every token that is not known here.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[5, 6], [7, 8]])
        >>> inputs = Encoding({"input_ids": ids, "attention_mask": 0 * ids + 1})
        >>> longer = append_tokens(inputs, [[1], [2, 3]], pad=0)
        >>> longer["input_ids"].tolist(), longer["attention_mask"].tolist()
        ([[5, 6, 1, 0], [7, 8, 2, 3]], [[1, 1, 1, 0], [1, 1, 1, 1]])
    """
    ids = encoding["input_ids"]
    n_rows, width = ids.shape
    if len(answers) != n_rows:
        msg = f"expected an answer for each of {n_rows} rows, got {len(answers)}"
        raise InputError(msg)
    longest = max(len(answer) for answer in answers)
    new = torch.full((n_rows, longest), pad, dtype=ids.dtype, device=ids.device)
    real = torch.zeros_like(new)
    for row, answer in enumerate(answers):
        new[row, : len(answer)] = torch.tensor(answer, dtype=ids.dtype)
        real[row, : len(answer)] = 1
    mask = encoding.get("attention_mask", torch.ones_like(ids))
    longer: dict[str, Any] = dict(encoding)
    for name, value in encoding.items():
        if isinstance(value, Tensor) and value.shape[:2] == (n_rows, width):
            if name not in ("input_ids", "attention_mask") and value.ndim > 2:
                msg = (
                    f"{name} tells something of every token that an answer would lack: "
                    "expected input_ids, masks and token types; pass images and prompts"
                )
                raise InputError(msg)
            longer[name] = torch.cat(
                [value, torch.zeros_like(real, dtype=value.dtype)], 1
            )
    longer["input_ids"] = torch.cat([ids, new], 1)
    longer["attention_mask"] = torch.cat([mask, real.to(mask.dtype)], 1)
    return Encoding(longer, image_sizes=encoding.image_sizes)


def repeat_rows(encoding: Encoding, rows: Sequence[int]) -> Encoding:
    """Make a batch of copies of an encoding's rows.

    Args:
        encoding: A batch. Of more than one row, everything in it must have a line for
            each row (pictures as `[batch, channel, height, width]`, say).
        rows: The row of each copy.

    Returns:
        The batch of copies.

    Raises:
        InputError: If something in a batch of several rows has no line for each.

    Example:
        >>> import torch
        >>> inputs = Encoding({"input_ids": torch.tensor([[5, 6], [7, 8]])})
        >>> repeat_rows(inputs, [1, 1, 0])["input_ids"].tolist()
        [[7, 8], [7, 8], [5, 6]]
    """
    n_rows = encoding["input_ids"].shape[0]
    if list(rows) == list(range(n_rows)):
        return encoding
    copies: dict[str, Any] = {}
    index = torch.tensor(rows)
    for name, value in encoding.items():
        if not isinstance(value, Tensor):
            copies[name] = value
        elif n_rows == 1:
            # patches of one picture may lie along the first axis: copy them all
            copies[name] = value.repeat(len(index), *(1,) * (value.ndim - 1))
        elif value.shape[0] == n_rows:
            copies[name] = value[index.to(value.device)]
        else:
            msg = (
                f"{name} has {value.shape[0]} lines for {n_rows} rows, so the rows "
                "cannot be told apart; pass one image and prompt at a time"
            )
            raise InputError(msg)
    sizes = encoding.image_sizes
    if sizes is not None:
        per_row = len(sizes) // n_rows
        sizes = [s for row in rows for s in sizes[row * per_row : (row + 1) * per_row]]
    return Encoding(copies, image_sizes=sizes)
