"""Hugging Face messages: a chat of several turns, with images in it or beside it."""

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from eah_interp.arguments import check_unicode
from eah_interp.errors import InputError, show_value
from eah_interp.lvlm.images import read_image

Messages = Sequence[Mapping[str, Any]]
"""A chat, as `processor.apply_chat_template` takes it: dicts of `role` and `content`,
which is a text, or a list of `{"type": "image"}` and `{"type": "text", ...}`."""

IMAGE_KEYS = ("image", "url", "path", "base64")
"""Under which key a part of type image holds its image; a place for one has none."""

EMPTY = object()
"""A place for an image that stands beside the messages."""


def are_messages(value: object) -> bool:
    """Tell whether a value is one chat: a list of messages with a role.

    Example:
        >>> are_messages([{"role": "user", "content": "?"}]), are_messages(["?"])
        (True, False)
    """
    return isinstance(value, list | tuple) and any(is_message(item) for item in value)


def is_message(value: object) -> bool:
    """Tell whether a value is a single message.

    Example:
        >>> is_message({"role": "user", "content": "What?"}), is_message("What?")
        (True, False)
    """
    return isinstance(value, Mapping) and "role" in value


def hold_messages(value: object) -> bool:
    """Tell whether a value is a chat, or a list of prompts with a chat among them.

    Example:
        >>> chat = [{"role": "user", "content": "What?"}]
        >>> hold_messages(chat), hold_messages([chat, "Who?"]), hold_messages("Who?")
        (True, True, False)
    """
    if are_messages(value):
        return True
    return isinstance(value, list | tuple) and any(are_messages(one) for one in value)


def check_messages(messages: Messages) -> list[dict[str, Any]]:
    """Check that a chat is well formed, and copy it as transformers reads it.

    Keys without a value are dropped, and an `image_url` becomes an image with a url.

    Args:
        messages: The chat.

    Returns:
        The same chat in new dicts; what is given is left as it is.

    Raises:
        InputError: If a message has no role or no content, or holds something else
            than text and images; its place is named.

    Example:
        >>> check_messages([{"role": "user", "content": "What?", "name": None}])
        [{'role': 'user', 'content': 'What?'}]
    """
    checked = []
    for place, message in enumerate(messages):
        if not is_message(message) or not isinstance(message["role"], str):
            msg = (
                f"message {place} has no role: expected {{'role': 'user', 'content': "
                f"...}}, got {show_value(message)}"
            )
            raise InputError(msg)
        known = {key: value for key, value in message.items() if value is not None}
        content = known.get("content")
        if isinstance(content, list | tuple):
            parts = enumerate(content)
            known["content"] = [_check_part(part, place, at) for at, part in parts]
        elif isinstance(content, str):
            check_unicode(f"the content of message {place}", content)
        else:
            msg = (
                f"the content of message {place} ({known['role']}) is "
                f"{show_value(content)}: expected a text, or a list of parts of type "
                "text and image"
            )
            raise InputError(msg)
        checked.append(known)
    return checked


def _check_part(part: object, place: int, at: int) -> dict[str, Any]:
    where = f"part {at} of message {place}"
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        msg = (
            f"{where} has no type: expected {{'type': 'image'}} or {{'type': 'text', "
            f"'text': ...}}, got {show_value(part)}"
        )
        raise InputError(msg)
    known = {key: value for key, value in part.items() if value is not None}
    if known["type"] == "image_url" and "image_url" in known:
        given = known["image_url"]
        url = given.get("url", "") if isinstance(given, Mapping) else given
        known = {"type": "image", "url": url}
    if known["type"] == "text":
        if not isinstance(known.get("text"), str):
            msg = f"{where} is text without a text: expected a string under 'text'"
            raise InputError(msg)
        check_unicode(where, known["text"])
    elif known["type"] == "image":
        keys = [key for key in IMAGE_KEYS if key in known]
        if len(keys) > 1:
            msg = f"{where} has an image under {' and '.join(keys)}: expected one"
            raise InputError(msg)
    else:
        msg = (
            f"{where} is of type {known['type']!r}: expected 'text' or 'image'; models "
            "are worked on with images only"
        )
        raise InputError(msg)
    return known


def list_places(
    messages: Sequence[Mapping[str, Any]], placeholder: str | None
) -> list[object]:
    """List a chat's images in order, with `EMPTY` for each place that has none yet.

    A place is a part of type image, or the placeholder in a text.

    Args:
        messages: What `check_messages` returned.
        placeholder: The text that stands for an image, if there is one.

    Example:
        >>> parts = [{"type": "image", "path": "a.png"}, {"type": "image"}]
        >>> list_places([{"role": "user", "content": parts}], None) == ["a.png", EMPTY]
        True
    """
    places: list[object] = []
    for message in messages:
        for part in parts_of(message):
            if part["type"] == "text":
                count = 0 if placeholder is None else part["text"].count(placeholder)
                places += [EMPTY] * count
            else:
                held = [key for key in IMAGE_KEYS if key in part]
                places.append(_image_of(part, held[0]) if held else EMPTY)
    return places


def _image_of(part: Mapping[str, Any], key: str) -> object:
    return _Encoded(part[key]) if key == "base64" else part[key]


class _Encoded(str):
    """An image file's bytes in base64."""

    __slots__ = ()


def read_place(image: object) -> Image.Image:
    """Read an image of a chat.

    Raises:
        InputError: As `read_image`; URLs are refused.
    """
    if not isinstance(image, _Encoded):
        return read_image(image)
    try:
        data = base64.b64decode(image.rpartition(",")[2], validate=True)
        opened = Image.open(io.BytesIO(data))
    except (binascii.Error, OSError, Image.DecompressionBombError) as error:
        msg = f"the image under 'base64' cannot be decoded: {error}"
        raise InputError(msg) from error
    return read_image(opened)


def place_images_first(
    messages: Sequence[dict[str, Any]], n_images: int
) -> list[dict[str, Any]]:
    """Put places for images before what the user says first.

    Raises:
        InputError: If the user says nothing.

    Example:
        >>> place_images_first([{"role": "user", "content": "What?"}], 1)
        [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': \
'What?'}]}]
    """
    turns = [at for at, one in enumerate(messages) if one["role"] == "user"]
    if not turns:
        msg = (
            "the messages have no turn of the user, so no place for the image: "
            "expected one, or a part {'type': 'image'}"
        )
        raise InputError(msg)
    placed = list(messages)
    first = placed[turns[0]]
    images = [{"type": "image"} for _ in range(n_images)]
    placed[turns[0]] = {**first, "content": [*images, *parts_of(first)]}
    return placed


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List a message's parts; a text is one part."""
    content = message["content"]
    return (
        [{"type": "text", "text": content}]
        if isinstance(content, str)
        else list(content)
    )


def text_of(message: Mapping[str, Any], placeholder: str | None = None) -> str:
    r"""Write a message as one text, with a placeholder for each image.

    Images side by side stand side by side; a line ends between images and text.

    Example:
        >>> parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
        >>> text_of({"role": "user", "content": parts}, "<image>")
        '<image>\nWhat?'
    """
    written, before = "", None
    for part in parts_of(message):
        kind = part["type"]
        new = part["text"] if kind == "text" else placeholder or ""
        if before is not None and before != kind and written and new:
            written += "\n"
        written, before = written + new, kind
    return written
