"""Images and prompts of any usual kind, turned into one left-padded encoding."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eah_interp.arguments import check_mapping
from eah_interp.errors import InputError, show_value
from eah_interp.kernels.patterns import check_sizes, check_tensor
from eah_interp.lvlm.images import is_images, read_image

DEFAULT_PROMPT = "Describe the image."
"""What a model is asked when an image comes without a prompt."""


class Encoding(dict[str, Any]):
    """Model inputs, which also know how large the images were.

    Attributes:
        image_sizes: Height and width of every image, in the order of the rows; None
            where they are not known.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(values)
        self.image_sizes = image_sizes


@dataclass(frozen=True)
class Row:
    """One item of a batch: a prompt and the images it shows."""

    images: tuple[Image.Image, ...]
    prompt: str


def pair_rows(images: object, prompts: object, *, placeholder: str | None) -> list[Row]:
    """Pair images with prompts, a row of the batch each.

    One image and one prompt make a row. A list of images and one prompt make a row
    an image, unless the prompt itself has a placeholder for each image: then all of
    them are shown in one row. A list of images and as many prompts are pairs; one
    image and a list of prompts asks each of the image. `[[a, b], [c]]` shows two
    images in the first row and one in the second.

    Args:
        images: An image, a list of images, or a list of lists.
        prompts: A prompt, a list of prompts, or None for "Describe the image."
        placeholder: The text that stands for an image in a prompt, if there is one.

    Returns:
        The rows, images read.

    Raises:
        InputError: If their numbers do not match, or an image cannot be read.

    Example:
        >>> red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2))
        >>> [len(r.images) for r in pair_rows([red, blue], "What?", placeholder=None)]
        [1, 1]
        >>> rows = pair_rows([red, blue], "<i> or <i>?", placeholder="<i>")
        >>> [len(r.images) for r in rows]
        [2]
    """
    texts = _as_prompts(prompts)
    groups = _as_groups(images)
    flat = isinstance(images, list | tuple) and not any(
        isinstance(item, list | tuple) for item in images
    )
    if flat and placeholder is not None:
        shown = [text.count(placeholder) for text in texts]
        if max(shown) > 1 and sum(shown) == len(groups):
            pictures = iter([group[0] for group in groups])
            groups = [[next(pictures) for _ in range(count)] for count in shown]
    if len(texts) == 1 and isinstance(prompts, str | None):
        texts = texts * len(groups)
    elif len(groups) == 1:
        groups = groups * len(texts)
    if len(groups) != len(texts):
        msg = (
            f"{len(groups)} images for {len(texts)} prompts: expected one image (or "
            "list of images) for each prompt, one prompt for all images, or one image "
            "for all prompts"
        )
        raise InputError(msg)
    rows = []
    for group, text in zip(groups, texts, strict=True):
        count = 0 if placeholder is None else text.count(placeholder)
        if count not in (0, len(group)):
            msg = (
                f"the prompt has {count} {placeholder} placeholders for {len(group)} "
                "images: write one for each image, or none to have them placed first"
            )
            raise InputError(msg)
        rows.append(Row(tuple(read_image(image) for image in group), text))
    return rows


def write_prompt(row: Row, processor: Any, *, placeholder: str | None) -> str:
    """Write a row's prompt as the model was trained to read it.

    A prompt that holds the placeholder already is left as it is. Otherwise it goes
    through the chat template of the processor, or, as in many fine-tunes, of its
    tokenizer alone; where there is none, the placeholders are put before it, a line of
    their own.

    Args:
        row: The images and the prompt.
        processor: The model's processor.
        placeholder: The text that stands for an image; None where the processor
            places images itself.

    Returns:
        The text to tokenize.

    Raises:
        InputError: If the tokenizer's chat template does not take the prompt.
    """
    if placeholder is not None and placeholder in row.prompt:
        return row.prompt
    template = getattr(processor, "chat_template", None)
    if template:
        return _fill_template(processor, None, _as_parts(row))
    plain = row.prompt
    if placeholder is not None:
        plain = placeholder * len(row.images) + "\n" + row.prompt
    template = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return (
        plain
        if not template
        else _fill_tokenizer_template(processor, template, row, plain)
    )


def _as_parts(row: Row) -> list[dict[str, str]]:
    images = [{"type": "image"} for _ in row.images]
    return [*images, {"type": "text", "text": row.prompt}]


def _fill_template(processor: Any, template: str | None, content: object) -> str:
    turns = [{"role": "user", "content": content}]
    return str(
        processor.apply_chat_template(
            turns, chat_template=template, add_generation_prompt=True
        )
    )


def _fill_tokenizer_template(
    processor: Any, template: str, row: Row, plain: str
) -> str:
    """Write a prompt by a tokenizer's template: one of images and text, or of text.

    A template of text alone fails on parts, writes them as Python does, or leaves the
    images out; it is given the prompt with the placeholders in it.
    """
    parts = _as_parts(row)
    with contextlib.suppress(Exception):  # whatever a template of text does with a list
        text = _fill_template(processor, template, parts)
        shows_images = text != _fill_template(processor, template, parts[-1:])
        if shows_images and str(parts[-1]) not in text:
            return text
    try:
        text = _fill_template(processor, template, plain)
    except Exception as error:  # jinja's errors, and those that templates raise
        msg = (
            f"the tokenizer's chat template does not take this prompt: {error}; set "
            "processor.chat_template to the model's own, or to one of images and text"
        )
        raise InputError(msg) from error
    if row.prompt.strip() not in text:
        msg = (
            "the tokenizer's chat template leaves the prompt out: expected "
            f"{row.prompt!r} in {text!r}; set processor.chat_template to the model's "
            "own"
        )
        raise InputError(msg)
    return text


def encode_rows(
    rows: Sequence[Row],
    processor: Any,
    *,
    placeholder: str | None,
) -> Encoding:
    """Encode rows as one batch, padded on the left.

    Args:
        rows: What to show and ask.
        processor: The model's processor.
        placeholder: The text that stands for an image.

    Returns:
        The model's inputs: `input_ids`, `attention_mask`, `pixel_values`, ..., with
        the sizes of the images.

    Raises:
        InputError: If there is no processor, or a tokenizer in its place.
    """
    if processor is None or isinstance(processor, PreTrainedTokenizerBase):
        given = "no processor" if processor is None else "a tokenizer for a processor"
        msg = (
            f"this model has {given}, so images and prompts cannot be encoded: "
            "pass processor=... to eah_interp.wrap or load, or trace ready-made inputs "
            "(input_ids=..., pixel_values=...)"
        )
        raise InputError(msg)
    texts = [write_prompt(row, processor, placeholder=placeholder) for row in rows]
    start = _start_that_tokenizer_adds(processor)
    texts = [text.removeprefix(start) for text in texts]
    nested = [list(row.images) for row in rows]
    encoding = processor(
        images=nested if any(nested) else None,
        text=texts,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    if hasattr(processor, "num_query_tokens"):
        _move_blip_padding(encoding)
    sizes = [(image.height, image.width) for row in rows for image in row.images]
    return Encoding(encoding, image_sizes=sizes)


def _move_blip_padding(encoding: Any) -> None:
    """Move padding to where the models of BLIP-2 and InstructBLIP expect it.

    Their processors write a row's image tokens before its padding; it belongs before
    both. And they pad the text of the Q-Former like the prompt, on the left; the
    Q-Former counts its positions from there, so it is padded on the right.
    """
    for prefix, on_the_right in (("", False), ("qformer_", True)):
        mask = encoding.get(f"{prefix}attention_mask")
        if mask is None:
            continue
        order = mask.argsort(dim=1, stable=True, descending=on_the_right)
        for name in (f"{prefix}input_ids", f"{prefix}attention_mask"):
            encoding[name] = encoding[name].gather(1, order)


def _start_that_tokenizer_adds(processor: Any) -> str:
    """Find the start token that tokenizing adds; templates that write it double it."""
    tokenizer: Any = getattr(processor, "tokenizer", None)
    start = getattr(tokenizer, "bos_token", None)
    if not start:
        return ""
    added = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return str(start) if added else ""


def image_placeholder(processor: Any) -> str | None:
    """Find the text that stands for one image in a prompt of this processor."""
    for name in ("image_token", "boi_token"):
        token = getattr(processor, name, None)
        if isinstance(token, str):
            return token
    return None


def _as_prompts(prompts: object) -> list[str]:
    if prompts is None:
        return [DEFAULT_PROMPT]
    if isinstance(prompts, str):
        return [check_unicode("a prompt", prompts)]
    if (
        isinstance(prompts, list | tuple)
        and prompts
        and all(isinstance(p, str) for p in prompts)
    ):
        return [check_unicode("a prompt", prompt) for prompt in prompts]
    got = show_value(prompts)
    raise InputError(f"expected a prompt or a non-empty list of prompts, got {got}")


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


def _as_groups(images: object) -> list[list[object]]:
    if images is None or (isinstance(images, list | tuple) and len(images) == 0):
        msg = "no image was given: expected at least 1; pass an image, or a path to one"
        raise InputError(msg)
    if not isinstance(images, list | tuple):
        return [[images]]
    groups = [list(i) if isinstance(i, list | tuple) else [i] for i in images]
    for item, group in enumerate(groups):
        if not group:
            msg = f"row {item} has no image: expected at least 1 in each row"
            raise InputError(msg)
    return groups


def cast_floats(encoding: Encoding, dtype: torch.dtype) -> Encoding:
    """Cast floating-point model inputs to the model's dtype."""
    cast = {
        key: value.to(dtype)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for key, value in encoding.items()
    }
    return Encoding(cast, image_sizes=encoding.image_sizes)


def has_images(inputs: tuple[Any, ...]) -> bool:
    """Tell whether positional arguments are `(images, prompts)` or `(images,)`.

    Raises:
        InputError: If images stand beside something else in a list.
    """
    return len(inputs) == 2 or bool(inputs and is_images(inputs[0]))


def are_prompts(value: object) -> bool:
    """Whether a second positional argument can be prompts.

    Example:
        >>> are_prompts("What?"), are_prompts(["What?"]), are_prompts(3)
        (True, True, False)
    """
    if isinstance(value, list | tuple):
        return all(isinstance(item, str) for item in value)
    return value is None or isinstance(value, str)


# ---- Encodings that go on: copies of rows, and answers written after their prompts.


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
            each row (images as `[batch, channel, height, width]`, say).
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
            # patches of one image may lie along the first axis: copy them all
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


# ---- Encodings that were made elsewhere.


def check_encoding(encoding: Mapping[Any, Any]) -> None:
    """Check that a ready-made encoding has token ids, and masks and images that fit.

    What only some families take is theirs to check.

    Raises:
        InputError: If a key is no text, `input_ids` are no integers of `[batch, key]`,
            the attention mask is no mask of them, or pixels are no finite numbers.

    Example:
        >>> check_encoding({"input_ids": [[1, 2]]})
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: input_ids must be a (dense) tensor of int \
[batch, key], got [[1, 2]]
    """
    encoding = check_mapping("an encoding", encoding, error=InputError)
    ids = encoding.get("input_ids")
    if ids is None:
        embedded = encoding.get("inputs_embeds")
        if embedded is None:
            named = ", ".join(encoding) or "nothing"
            msg = f"an encoding has input_ids: expected token ids, got {named}"
            raise InputError(msg)
        check_tensor("inputs_embeds", embedded, axes="batch key d_model")
        return
    if encoding.get("inputs_embeds") is not None:
        msg = "an encoding has input_ids or inputs_embeds: expected one, got both"
        raise InputError(msg)
    check_tensor("input_ids", ids, axes="batch key", kind="int")
    if not ids.numel() or ids.is_meta:
        raise InputError(f"input_ids hold no tokens: their shape is {tuple(ids.shape)}")
    labels = encoding.get("labels")
    if labels is not None:
        check_tensor("labels", labels, axes="batch key", kind="int")
        check_sizes("labels", labels, *ids.shape)
    _check_mask(encoding.get("attention_mask"), ids)
    _check_pixels(encoding.get("pixel_values"))


def _check_mask(mask: Any, ids: Tensor) -> None:
    """Check that an attention mask is none, one of the ids, or a mapping of some."""
    if mask is None or isinstance(mask, Mapping):
        return
    if not isinstance(mask, Tensor):
        got = show_value(mask)
        raise InputError(f"attention_mask must be a tensor of flags, got {got}")
    fits = mask.ndim == 4 or (mask.ndim == 2 and len(mask) == len(ids))
    if not fits or mask.is_complex() or mask.is_meta:
        msg = (
            f"the attention mask has shape {tuple(mask.shape)}: expected a flag for "
            f"each token of input_ids, {tuple(ids.shape)}"
        )
        raise InputError(msg)


def _check_pixels(pixels: Any) -> None:
    """Check that pixels are finite numbers; some families take a list of tensors."""
    listed = pixels if isinstance(pixels, list | tuple) else [pixels]
    for one in () if pixels is None else listed:
        check_tensor("pixel_values", one)
        if one.is_meta or not bool(one.isfinite().all()):
            raise InputError("pixel_values hold NaN or infinity: expected numbers")
