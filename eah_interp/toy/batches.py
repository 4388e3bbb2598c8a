"""Training batches: pictures as tensors, conversations as ids with a loss mask."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp.toy.language import (
    CAPTION_PROMPTS,
    CAPTIONS,
    IMAGE_TOKEN,
    QUESTIONS,
    answer_word,
    ask_for,
    caption_of,
)
from eah_interp.toy.render import Scene
from eah_interp.toy.tokenizer import SPLIT_WORDS, build_tokenizer, list_pieces
from eah_interp.toy.world import OBJECTS

PIECE_IDS: dict[str, int] = {p: i for i, (p, _) in enumerate(list_pieces())}

OBJECT_IDS: tuple[int, ...] = tuple(
    PIECE_IDS["▁" + SPLIT_WORDS.get(name, (name,))[0]] for name in OBJECTS
)
"""Id of the first (or only) piece of each object, in the order of `OBJECTS`."""

BLANK_ID = PIECE_IDS["."]
"""What stands for a patch without an object where a picture is spelled in words."""

IGNORED = -100
_SLOT = 4
"""Place of the image token in every conversation: `<s> USER : _ <image>`."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Conversations, padded on the right, and the tokens that the loss is taken on.

    Attributes:
        input_ids: Token ids.
        labels: `input_ids` where the model is to answer, -100 elsewhere.
    """

    input_ids: Int[Tensor, "batch pos"]
    labels: Int[Tensor, "batch pos"]


def pixels_of(scenes: Sequence[Scene]) -> Float[Tensor, "batch 3 height width"]:
    """Stack pictures as the processor would: channels first, from -1 to 1."""
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def labels_of(scenes: Sequence[Scene]) -> Int[Tensor, "batch patch"]:
    """Stack patch labels, row by row, as image tokens are ordered."""
    return torch.from_numpy(np.stack([scene.labels.reshape(-1) for scene in scenes]))


def converse_caption(objects: Sequence[str], *, rng: np.random.Generator) -> str:
    """Write a conversation that describes a picture, objects in random order."""
    prompt = CAPTION_PROMPTS[rng.integers(len(CAPTION_PROMPTS))]
    template = CAPTIONS[rng.integers(len(CAPTIONS))]
    caption = caption_of(
        [objects[i] for i in rng.permutation(len(objects))], template=template
    )
    return f"USER: {IMAGE_TOKEN}\n{prompt} ASSISTANT: {caption}</s>"


def converse_questions(
    objects: Sequence[str], *, rng: np.random.Generator, turns: int = 6
) -> str:
    """Write a conversation of yes/no questions, no object asked for twice.

    Each turn is a fair coin between an object that is there and one that is not; the
    conversation ends early when the coin asks for a present object and none is left,
    so earlier answers say little about later ones.
    """
    present = [objects[i] for i in rng.permutation(len(objects))]
    absent = [name for name in OBJECTS if name not in objects]
    absent = [absent[i] for i in rng.permutation(len(absent))]
    parts: list[str] = []
    for turn in range(turns):
        answer = bool(rng.random() < 0.5)
        if answer and not present:
            if parts:
                break
            answer = False
        name = (present if answer else absent).pop()
        common = rng.random() < 0.5
        template = QUESTIONS[0 if common else rng.integers(len(QUESTIONS))]
        question = ask_for(name, template=template)
        opening = f"USER: {IMAGE_TOKEN}\n" if turn == 0 else "USER: "
        parts.append(f"{opening}{question} ASSISTANT: {answer_word(answer)}</s>")
    return "".join(parts)


def encode(
    conversations: Sequence[str], *, images: Int[np.ndarray, "batch image_tokens"]
) -> Batch:
    """Turn conversations into ids, the image token replaced by the picture's ids.

    Args:
        conversations: Texts that start with `USER: <image>`.
        images: Ids that stand for each picture: image tokens, or words for patches.

    Returns:
        The batch, with labels on the answers and their end tokens only.
    """
    backend = _backend()
    rows = [
        np.array(e.ids)
        for e in backend.encode_batch_fast(list(conversations))  # type: ignore[attr-defined]
    ]
    n_image = images.shape[1]
    longest = max(len(row) for row in rows) + n_image - 1
    input_ids = np.full((len(rows), longest), PIECE_IDS["<pad>"], dtype=np.int64)
    for row, (ids, picture) in enumerate(zip(rows, images, strict=True)):
        full = np.concatenate([ids[:_SLOT], picture, ids[_SLOT + 1 :]])
        input_ids[row, : len(full)] = full
    answers = np.zeros_like(input_ids)
    speaks = input_ids[:, 1:] == PIECE_IDS[":"]
    speaks &= input_ids[:, :-1] == PIECE_IDS["▁ASSISTANT"]
    answers[:, 2:] += speaks[:, :-1]
    answers[:, 1:] -= input_ids[:, :-1] == PIECE_IDS["</s>"]
    inside = answers.cumsum(axis=1) > 0
    labels = np.where(inside, input_ids, IGNORED)
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(labels))


def spell_picture(
    objects: Sequence[str], *, rng: np.random.Generator, length: int
) -> Int[np.ndarray, " length"]:
    """Spell a picture in words: each object in up to four places, the others blank.

    Example:
        >>> ids = spell_picture(["cup"], rng=np.random.default_rng(0), length=9)
        >>> set(ids.tolist()) == {BLANK_ID, OBJECT_IDS[8]}
        True
    """
    ids = np.full(length, BLANK_ID, dtype=np.int64)
    places = rng.permutation(length)
    taken = 0
    for name in objects:
        count = min(int(rng.integers(1, 5)), max(1, length // len(objects)))
        ids[places[taken : taken + count]] = OBJECT_IDS[OBJECTS.index(name)]
        taken += count
    return ids


@functools.cache
def _backend() -> object:
    return build_tokenizer().backend_tokenizer
