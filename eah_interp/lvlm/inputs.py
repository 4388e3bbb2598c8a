"""Images and prompts of any usual kind, turned into one left-padded encoding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eah_interp.arguments import (
    SYNONYMS,
    check_mapping,
    check_unicode,
    rename_keywords,
)
from eah_interp.errors import InputError, show_value
from eah_interp.indices import is_dense
from eah_interp.kernels.patterns import check_sizes, check_tensor
from eah_interp.lvlm.images import ImageLike, is_images, read_image
from eah_interp.lvlm.masks import check_flags, check_mask
from eah_interp.lvlm.messages import (
    EMPTY,
    Messages,
    are_messages,
    check_messages,
    hold_messages,
    is_message,
    list_places,
    parts_of,
    place_images_first,
    read_place,
    text_of,
)
from eah_interp.lvlm.processors import check_counting

ManyImages = (
    list[str]
    | list[Path]
    | list[Image.Image]
    | list[np.ndarray]
    | list[Tensor]
    | list[ImageLike]
    | list[list[str]]
    | list[list[Path]]
    | list[list[Image.Image]]
    | list[list[np.ndarray]]
    | list[list[Tensor]]
    | list[list[ImageLike]]
    | tuple[ImageLike, ...]
)
"""What several may be; lists of each, since a list of one kind is none of another."""

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
    """One item of a batch: a prompt and the images it shows.

    Attributes:
        images: The images, in the order of their places in the prompt.
        prompt: A text, or the messages of a chat.
    """

    images: tuple[Image.Image, ...]
    prompt: str | Messages


def pair_rows(images: object, prompts: object, *, placeholder: str | None) -> list[Row]:
    """Pair images with prompts, a row of the batch each.

    One image and one prompt make a row. A list of images and one prompt make a row
    an image, unless the prompt itself has a placeholder for each image: then all of
    them are shown in one row. A list of images and as many prompts are pairs; one
    image and a list of prompts asks each of the image. `[[a, b], [c]]` shows two
    images in the first row and one in the second.

    A prompt is a text or a list of messages. Messages may hold their images: then
    nothing stands beside them, or what fills the places that are left. Messages may
    also come alone, in place of the images.

    Args:
        images: An image, a list of images, or a list of lists; None where the
            messages hold them.
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
    if is_message(images) or hold_messages(images):
        if prompts is not None:
            msg = (
                "expected (images, messages), or messages alone, got messages first "
                "and something after them"
            )
            raise InputError(msg)
        images, prompts = None, images
    asked = _as_prompts(prompts)
    places = [_list_places(prompt, placeholder) for prompt in asked]
    groups: list[list[object]]
    if images is None and any(_count_held(row) for row in places):
        groups = [[] for _ in asked]
    else:
        groups = _share_out(images, places)
    if len(asked) == 1 and _is_one(prompts):
        asked, places = asked * len(groups), places * len(groups)
    elif len(groups) == 1:
        groups = groups * len(asked)
    if len(groups) != len(asked):
        msg = (
            f"{len(groups)} images for {len(asked)} prompts: expected one image (or "
            "list of images) for each prompt, one prompt for all images, or one image "
            "for all prompts"
        )
        raise InputError(msg)
    return [
        _fill_row(prompt, row, group, placeholder=placeholder)
        for prompt, row, group in zip(asked, places, groups, strict=True)
    ]


def _share_out(images: object, places: Sequence[list[object]]) -> list[list[object]]:
    """Group images by row: a flat list is dealt out where the prompts say how."""
    groups = _as_groups(images)
    flat = isinstance(images, list | tuple) and not any(
        isinstance(item, list | tuple) for item in images
    )
    free = [len(row) - _count_held(row) for row in places]
    dealt = max(free) > 1 or any(_count_held(row) for row in places)
    if flat and dealt and sum(free) == len(groups):
        pictures = iter([group[0] for group in groups])
        return [[next(pictures) for _ in range(count)] for count in free]
    return groups


def _fill_row(
    prompt: str | list[dict[str, Any]],
    places: list[object],
    group: list[object],
    *,
    placeholder: str | None,
) -> Row:
    """Put a row's images into their places, and read them."""
    held = _count_held(places)
    free = len(places) - held
    if not group and not held:
        msg = "a prompt has no image: expected at least 1 in each row"
        raise InputError(msg)
    if free != len(group) and (free or held):
        if isinstance(prompt, str):
            msg = (
                f"the prompt has {free} {placeholder} placeholders for {len(group)} "
                "images: write one for each image, or none to have them placed first"
            )
        else:
            msg = (
                f"the messages have {free} places for {len(group)} images beside them "
                f"(and hold {held}): write {{'type': 'image'}} for each image, or "
                "none at all to have them placed first"
            )
        raise InputError(msg)
    if not places:
        if not isinstance(prompt, str):
            prompt = place_images_first(prompt, len(group))
        return Row(tuple(read_image(image) for image in group), prompt)
    beside = iter(group)
    filled = [next(beside) if place is EMPTY else place for place in places]
    return Row(tuple(read_place(image) for image in filled), prompt)


def _list_places(
    prompt: str | list[dict[str, Any]], placeholder: str | None
) -> list[object]:
    if not isinstance(prompt, str):
        return list_places(prompt, placeholder)
    return [EMPTY] * (0 if placeholder is None else prompt.count(placeholder))


def _count_held(places: Sequence[object]) -> int:
    return sum(place is not EMPTY for place in places)


# ---- A prompt written as the model was trained to read it.


def write_prompt(row: Row, processor: Any, *, placeholder: str | None) -> str:
    """Write a row's prompt as the model was trained to read it.

    A text that holds the placeholder already is left as it is. Otherwise it goes
    through the chat template of the processor, or, as in many fine-tunes, of its
    tokenizer alone; where there is none, the placeholders are put before it, a line of
    their own. Messages go through the template as they are: an answer is asked for,
    but where the last turn is the assistant's, it is continued, as transformers'
    pipelines do.

    Args:
        row: The images and the prompt.
        processor: The model's processor.
        placeholder: The text that stands for an image; None where the processor
            places images itself.

    Returns:
        The text to tokenize.

    Raises:
        InputError: If the chat template does not take the prompt, or leaves it or an
            image out; if messages come to a processor without a template; if a text
            without a placeholder ends as the template ends a prompt.
    """
    chat = not isinstance(row.prompt, str)
    if isinstance(row.prompt, str):
        if placeholder is not None and placeholder in row.prompt:
            return row.prompt
        messages = place_images_first(
            [{"role": "user", "content": row.prompt}], len(row.images)
        )
    else:
        messages = [dict(message) for message in row.prompt]
    owner, template = "processor", None
    if not getattr(processor, "chat_template", None):
        owner = "tokenizer"
        template = getattr(getattr(processor, owner, None), "chat_template", None)
        if isinstance(template, Mapping):
            if template and "default" not in template:
                msg = (
                    "the tokenizer has several chat templates: expected one named "
                    f"'default', got {', '.join(map(repr, template))}; set "
                    "processor.chat_template to the model's own"
                )
                raise InputError(msg)
            template = template.get("default")
        if not template and chat:
            msg = (
                "the processor has no chat template, so messages cannot be written: "
                "give the prompt as a text, or set processor.chat_template"
            )
            raise InputError(msg)
        if not template:
            before = "" if placeholder is None else placeholder * len(row.images) + "\n"
            return before + str(row.prompt)
    written = _fill_template(
        messages,
        lambda chat: _apply_template(processor, template, chat),
        n_images=len(row.images),
        placeholder=placeholder,
        owner=owner,
    )
    if isinstance(row.prompt, str):
        _check_not_written(row.prompt, written, placeholder=placeholder)
    return written


_SHORTEST_END = 2
"""A question may end in the sign or two that a template goes on with."""


def _check_not_written(prompt: str, written: str, *, placeholder: str | None) -> None:
    """Check that a text does not ask for an answer by itself, as the template does.

    Raises:
        InputError: If it does: turns would be written around turns.
    """
    end = written.rpartition(prompt)[2].strip() if prompt.strip() else ""
    if len(end) > _SHORTEST_END and prompt.rstrip().endswith(end):
        place = "the places of images" if placeholder is None else repr(placeholder)
        msg = (
            f"the prompt ends in {end!r}, as the model's chat template ends one, which "
            f"would be written around it again: got {prompt[-60:]!r}; give the "
            f"question alone, or a prompt that is written out, with {place} in it"
        )
        raise InputError(msg)


def _apply_template(processor: Any, template: str | None, messages: Messages) -> str:
    # As transformers' pipelines: an assistant's turn at the end is gone on with.
    continues = messages[-1]["role"] == "assistant"
    return str(
        processor.apply_chat_template(
            list(messages),
            chat_template=template,
            add_generation_prompt=not continues,
            continue_final_message=continues,
        )
    )


def _fill_template(
    messages: list[dict[str, Any]],
    fill: Callable[[Messages], str],
    *,
    n_images: int,
    placeholder: str | None,
    owner: str,
) -> str:
    """Fill a chat template with messages in the form that it takes them in.

    A template of text alone fails on parts, writes them as Python does, or leaves the
    images out; one of parts leaves out a text that is none. So the messages are tried
    as they are, as parts, as one part of text, and as text, images written as
    placeholders; the first form that loses least is taken.
    """
    loose = [{**one, "content": parts_of(one)} for one in messages]
    texts = [{**one, "content": text_of(one, placeholder)} for one in messages]
    joined = [{**one, "content": parts_of(one)} for one in texts]
    failed: Exception | None = None
    found: list[tuple[int, int, str]] = []
    unseen = ""
    for place, form in enumerate((messages, loose, joined, texts)):
        try:
            text = fill(form)
            bare = fill([_without_images(one) for one in form])
        except Exception as error:  # jinja's errors, and those that templates raise
            failed = failed or error
            continue
        if any(_is_written_raw(one, text) for one in form):
            continue
        count = n_images if placeholder is None else text.count(placeholder)
        # A template may write another token for an image than the processor names.
        if count != n_images and (count or text == bare):
            unseen = unseen or text
            continue
        if lost := _list_lost(messages, text):
            left_out = len(messages) - 1 in lost
            found.append((len(messages) * left_out + len(lost), place, text))
            continue
        return text
    last = len(messages) - 1
    _, _, text = min(found, default=(0, 0, unseen))
    if found and last not in _list_lost(messages, text):
        return text
    if text and last in _list_lost(messages, text):
        msg = (
            f"the {owner}'s chat template leaves the prompt out: expected "
            f"{text_of(messages[-1])!r} in {text!r}; set processor.chat_template to "
            "the model's own"
        )
        raise InputError(msg)
    if unseen:
        msg = (
            f"the {owner}'s chat template writes no place for each image: expected "
            f"{n_images} {placeholder} in {unseen!r}; write them into the prompt, or "
            "set processor.chat_template to the model's own"
        )
        raise InputError(msg)
    msg = (
        f"the {owner}'s chat template does not take this prompt: {failed}; set "
        "processor.chat_template to the model's own, or to one of images and text"
    )
    raise InputError(msg) from failed


def _without_images(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if not isinstance(content, str):
        content = [part for part in content if part["type"] != "image"]
    return {**message, "content": content}


def _is_written_raw(message: Mapping[str, Any], text: str) -> bool:
    """Tell whether a template wrote a message's parts as Python does."""
    if isinstance(message["content"], str):
        return False
    marks = [f"'type': {part['type']!r}" for part in message["content"]]
    said = text_of(message)
    return any(mark in text and mark not in said for mark in marks)


def _list_lost(messages: Sequence[Mapping[str, Any]], text: str) -> list[int]:
    """List the messages of which a filled template does not have every text."""
    words = " ".join(text.split())
    return [
        place
        for place, message in enumerate(messages)
        if any(
            " ".join(part["text"].split()) not in words
            for part in parts_of(message)
            if part["type"] == "text"
        )
    ]


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
        InputError: If there is no processor, or a tokenizer in its place, or it
            cannot count image tokens.
    """
    if processor is None or isinstance(processor, PreTrainedTokenizerBase):
        given = "no processor" if processor is None else "a tokenizer for a processor"
        msg = (
            f"this model has {given}, so images and prompts cannot be encoded: "
            "pass processor=... to eah_interp.wrap or load, or trace ready-made inputs "
            "(input_ids=..., pixel_values=...)"
        )
        raise InputError(msg)
    check_counting(processor)
    texts = [write_prompt(row, processor, placeholder=placeholder) for row in rows]
    texts, options = _start_once(texts, processor)
    nested = [list(row.images) for row in rows]
    encoding = processor(
        images=nested if any(nested) else None,
        text=texts,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        **options,
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


def _start_once(texts: list[str], processor: Any) -> tuple[list[str], dict[str, Any]]:
    """Keep tokenizing from doubling a start token that a template writes.

    Returns:
        The texts, and what the processor is called with: as `apply_chat_template`
        does, no special tokens are added to texts that all begin with one.
    """
    tokenizer: Any = getattr(processor, "tokenizer", None)
    start = getattr(tokenizer, "bos_token", None)
    if not start:
        return texts, {}
    if all(text.startswith(start) for text in texts):
        return texts, {"add_special_tokens": False}
    if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return [text.removeprefix(start) for text in texts], {}
    return texts, {}


def image_placeholder(processor: Any) -> str | None:
    """Find the text that stands for one image in a prompt of this processor."""
    for name in ("image_token", "boi_token"):
        token = getattr(processor, name, None)
        if isinstance(token, str):
            return token
    return None


def _is_one(prompts: object) -> bool:
    return prompts is None or isinstance(prompts, str) or are_messages(prompts)


def _as_prompts(prompts: object) -> list[str | list[dict[str, Any]]]:
    if prompts is None:
        return [DEFAULT_PROMPT]
    if isinstance(prompts, str):
        return [check_unicode("a prompt", prompts)]
    if is_message(prompts):
        got = show_value(prompts)
        msg = f"expected a list of messages, got one message: write [{got}]"
        raise InputError(msg)
    if are_messages(prompts):
        return [check_messages(cast("Messages", prompts))]
    if isinstance(prompts, list | tuple) and prompts and are_prompts(prompts):
        return [
            check_unicode("a prompt", one)
            if isinstance(one, str)
            else check_messages(one)
            for one in prompts
        ]
    msg = (
        "expected a prompt or a non-empty list of prompts, each a text or a list of "
        f"messages, got {show_value(prompts)}"
    )
    raise InputError(msg)


def are_many(images: object, prompts: object) -> bool:
    """Whether images or prompts are lists, so that answers are one.

    Example:
        >>> chat = [{"role": "user", "content": "What?"}]
        >>> are_many("a.png", chat), are_many("a.png", [chat]), are_many(chat, None)
        (False, True, False)
    """
    given = (images, prompts)
    return any(isinstance(v, list | tuple) and not are_messages(v) for v in given)


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


def leave_inference(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Copy inputs that were made in inference mode, so that gradients can be computed.

    In that mode itself they are left as they are: nothing is recorded there.
    """
    if torch.is_inference_mode_enabled():
        return dict(inputs)
    return {
        name: value.clone()
        if isinstance(value, Tensor) and value.is_inference()
        else value
        for name, value in inputs.items()
    }


def is_encoding(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Tell ready-made inputs from images and prompts: a message is a mapping too.

    Example:
        >>> is_encoding({"input_ids": []}), is_encoding({"role": "user", "content": ""})
        (True, False)
    """
    return isinstance(value, Mapping) and not is_message(value)


def has_images(inputs: tuple[Any, ...]) -> bool:
    """Tell whether positional arguments are `(images, prompts)` or `(images,)`.

    Messages alone are, where they show an image; chats of text are nnsight's.

    Raises:
        InputError: If images stand beside something else in a list.
    """
    if len(inputs) == 2:
        return True
    if inputs and (is_message(inputs[0]) or hold_messages(inputs[0])):
        asked = _as_prompts(inputs[0])
        return any(_list_places(prompt, None) for prompt in asked)
    return bool(inputs and is_images(inputs[0]))


def join_images(
    inputs: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read images and prompts that came by name as `(images, prompts)`.

    By any name that `SYNONYMS` has for them, `text=` and `images=` of transformers'
    processors among them.

    Raises:
        KeywordError: If images or prompts came twice.

    Example:
        >>> chat = [{"role": "user", "content": "What?"}]
        >>> join_images((chat,), {"images": "a.png"})
        (('a.png', [{'role': 'user', 'content': 'What?'}]), {})
        >>> join_images((), {"image": "a.png", "prompt": "What?", "use_cache": False})
        (('a.png', 'What?'), {'use_cache': False})
    """
    rest = dict(kwargs)
    if not rest.keys() & _IMAGES_OR_PROMPTS:
        return inputs, rest
    own = {name: rest.pop(name) for name in kwargs if name in _IMAGES_OR_PROMPTS}
    taken: tuple[str, ...] = ()
    if len(inputs) == 1:
        first = inputs[0]
        ready = isinstance(first, Mapping | Tensor) and not is_images(first)
        if first is None or ready:
            return inputs, dict(kwargs)  # an encoding, whatever stands beside it
        taken = ("prompts",) if _is_asked(first) else ("images",)
    elif inputs:
        taken = ("images", "prompts")
    found = rename_keywords("a run", own, ("images", "prompts"), taken=taken)
    found |= dict(zip(taken, inputs, strict=False))
    images, prompts = found.get("images"), found.get("prompts")
    if images is None and prompts is not None:
        return (prompts,), rest  # text, or messages that hold their images
    return (images, prompts), rest


_IMAGES_OR_PROMPTS = {
    name for group in SYNONYMS if group & {"images", "prompts"} for name in group
}


def _is_asked(value: object) -> bool:
    """Whether what came alone, without a name, is a prompt beside images by name."""
    return hold_messages(value) or (are_prompts(value) and not is_images(value))


def are_prompts(value: object) -> bool:
    """Whether a second positional argument can be prompts.

    Example:
        >>> are_prompts("What?"), are_prompts(["What?"]), are_prompts(3)
        (True, True, False)
        >>> are_prompts([{"role": "user", "content": "What?"}])
        True
    """
    if are_messages(value) or is_message(value):
        return True
    if isinstance(value, list | tuple):
        return all(isinstance(item, str) or are_messages(item) for item in value)
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
    given = encoding.get("attention_mask")
    check_flags(given, why="an answer after the prompt would have no rows in it")
    mask = torch.ones_like(ids) if given is None else given
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


def check_encoding(encoding: Mapping[Any, Any], *, ids_needed: bool = False) -> None:
    """Check that a ready-made encoding has token ids, and masks and images that fit.

    What only some families take is theirs to check.

    Args:
        encoding: The encoding.
        ids_needed: Whether embeddings in the place of ids will not do: what is read
            at tokens, and by their text, needs the tokens.

    Raises:
        InputError: If a key is no text, a tensor is not dense or holds no numbers,
            `input_ids` are no integers of `[batch, key]`, the attention mask is no
            mask of them, or pixels are no finite numbers.

    Example:
        >>> check_encoding({"input_ids": [[1, 2]]})
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: input_ids must be a (dense) tensor of int \
[batch key], got [[1, 2]]
    """
    encoding = check_mapping("an encoding", encoding, error=InputError)
    for name, value in encoding.items():
        check_layout(name, value)
    ids = encoding.get("input_ids")
    if ids is None:
        embedded = encoding.get("inputs_embeds")
        if embedded is None or ids_needed:
            named = ", ".join(encoding) or "nothing"
            msg = f"an encoding has input_ids: expected token ids, got {named}"
            raise InputError(msg)
        check_tensor("inputs_embeds", embedded, axes="batch key d_model")
        return
    if encoding.get("inputs_embeds") is not None:
        msg = "an encoding has input_ids or inputs_embeds: expected one, got both"
        raise InputError(msg)
    check_tensor("input_ids", ids, axes="batch key", kind="int")
    if ids.dtype not in (torch.int32, torch.int64):
        kind = str(ids.dtype).removeprefix("torch.")
        msg = f"input_ids must be int64 or int32, as embeddings take them, got {kind}"
        raise InputError(msg)
    if not ids.numel():
        raise InputError(f"input_ids hold no tokens: their shape is {tuple(ids.shape)}")
    labels = encoding.get("labels")
    if labels is not None:
        check_tensor("labels", labels, axes="batch key", kind="int")
        check_sizes("labels", labels, *ids.shape)
    check_mask(encoding.get("attention_mask"), ids)
    _check_pixels(encoding.get("pixel_values"))


def check_layout(name: str, value: Any) -> None:
    """Check that tensors, also those in lists and mappings, can be read by any model.

    One rule for whatever a family takes, named or not.

    Raises:
        InputError: If one is sparse, quantised, nested or on the meta device.

    Example:
        >>> check_layout("attention_mask", torch.ones(1, 2).to_sparse())
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: attention_mask is sparse_coo: expected a dense \
tensor of numbers, as the model's processor makes it
    """
    if isinstance(value, Mapping):
        for key, inside in value.items():
            check_layout(f"{name}[{key!r}]", inside)
    elif isinstance(value, list | tuple):
        for inside in value:
            check_layout(name, inside)
    elif isinstance(value, Tensor) and (value.is_meta or not is_dense(value)):
        kinds = {
            "on the meta device": value.is_meta,
            "quantised": value.is_quantized,
            "nested": value.is_nested,
        }
        layout = str(value.layout).removeprefix("torch.")
        got = next((kind for kind, is_so in kinds.items() if is_so), layout)
        msg = (
            f"{name} is {got}: expected a dense tensor of numbers, as the model's "
            "processor makes it"
        )
        raise InputError(msg)


def _check_pixels(pixels: Any) -> None:
    """Check that pixels are finite numbers; some families take a list of tensors."""
    listed = pixels if isinstance(pixels, list | tuple) else [pixels]
    for one in () if pixels is None else listed:
        check_tensor("pixel_values", one)
        if not one.numel():
            msg = f"pixel_values of shape {tuple(one.shape)} hold nothing"
            raise InputError(f"{msg}: expected images, or no pixel_values")
        if not bool(one.isfinite().all()):
            raise InputError("pixel_values hold NaN or infinity: expected numbers")


# ---- One thing more said at the end of what the user says.

_MARK = "eahmark"
"""A word that no chat template writes by itself."""


def append_to_prompt(prompt: object, text: str, processor: Any) -> Any:
    r"""Append a sentence to what the user says last, a space before it.

    A text that is written out already, image placeholders and all, goes on after what
    the user says: as the model's chat template ends a prompt, such as ` ASSISTANT:`.

    Args:
        prompt: A text, or the messages of a chat.
        text: The sentence.
        processor: The model's processor.

    Returns:
        The same kind of prompt.

    Raises:
        InputError: If the user says nothing, or a text is written out and does not end
            as the model's chat template ends a prompt.

    Example:
        >>> import eah_interp as eah
        >>> written = "USER: <image>\nIs there a boat? ASSISTANT:"
        >>> append_to_prompt(written, "Say Yes.", eah.load().processor)
        'USER: <image>\nIs there a boat? Say Yes. ASSISTANT:'
        >>> append_to_prompt("Is there a boat?", "Say Yes.", None)
        'Is there a boat? Say Yes.'
    """
    placeholder = image_placeholder(processor)
    if not isinstance(prompt, str):
        return _append_to_chat(check_messages(cast("Messages", prompt)), text)
    if placeholder is None or placeholder not in prompt:
        return _join(prompt, text)
    marked = Row((Image.new("RGB", (8, 8)),), _MARK)
    written = write_prompt(marked, processor, placeholder=placeholder)
    tail = written.rpartition(_MARK)[2]
    if not prompt.endswith(tail):
        msg = (
            f"a prompt that is written out must end as the model's chat template ends "
            f"one, with {tail!r}, for a sentence to be put before that: got "
            f"{prompt[-60:]!r}; give the question alone, or as messages"
        )
        raise InputError(msg)
    return _join(prompt.removesuffix(tail), text) + tail


def _append_to_chat(chat: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    turns = [at for at, one in enumerate(chat) if one["role"] == "user"]
    if not turns:
        msg = f"the messages have no turn of the user that {text!r} could end"
        raise InputError(msg)
    last = chat[turns[-1]]
    parts = parts_of(last)
    if parts and parts[-1]["type"] == "text":
        parts[-1] = {**parts[-1], "text": _join(parts[-1]["text"], text)}
    else:
        parts.append({"type": "text", "text": text})
    whole = parts[0]["text"] if isinstance(last["content"], str) else parts
    chat[turns[-1]] = {**last, "content": whole}
    return chat


def _join(said: str, text: str) -> str:
    return said + text if not said or said[-1].isspace() else f"{said} {text}"
