"""Ready-made inputs of families whose processors cannot be built offline."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature, ProcessorMixin

from eah_interp.errors import InputError
from eah_interp.testing._facts import Pictures, Tokenizer


def flatten(images: Pictures) -> list[Image.Image]:
    """Return the pictures of all rows, in order."""
    return [picture for row in images for picture in row]


def call_processor(
    processor: ProcessorMixin, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Encode rows of pictures and text with a real processor, padded, as tensors."""
    return processor(
        images=[list(row) for row in images],
        text=list(prompts),
        padding=True,
        return_tensors="pt",
    )


def write_runs(
    tokenizer: Tokenizer,
    images: Pictures,
    prompts: Sequence[str],
    *,
    placeholder: str,
    runs: Iterable[str],
) -> dict[str, Tensor]:
    """Put each picture's tokens in the place of its placeholder, and tokenize.

    Args:
        tokenizer: The family's tokenizer.
        images: The pictures of each prompt.
        prompts: One text per row.
        placeholder: What stands for one picture in a prompt.
        runs: The text of each picture's tokens, in the order of the pictures.

    Returns:
        `input_ids` and `attention_mask`, left-padded.

    Raises:
        InputError: A prompt has more or fewer placeholders than pictures.
    """
    left = iter(runs)
    texts = []
    for prompt, row in zip(prompts, images, strict=True):
        pieces = prompt.split(placeholder)
        if len(pieces) != len(row) + 1:
            raise InputError(
                f"expected one {placeholder} for each of {len(row)} pictures, got "
                f"{len(pieces) - 1} in {prompt!r}; change the prompt"
            )
        middle = "".join(next(left) + piece for piece in pieces[1:])
        texts.append(pieces[0] + middle)
    words = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: words[name] for name in ("input_ids", "attention_mask")}


def mark_tokens(ids: Tensor, tokenizer: Tokenizer, *tokens: str) -> Tensor:
    """Return 1 where ids are of the given special tokens, and 0 elsewhere."""
    wanted = torch.tensor(tokenizer.convert_tokens_to_ids(list(tokens)))
    return torch.isin(ids, wanted).long()


def encode_merged(
    tokenizer: Tokenizer,
    images: Pictures,
    prompts: Sequence[str],
    *,
    pictures: BaseImageProcessor,
    placeholder: str,
    token: str,
    around: tuple[str, str] = ("", ""),
) -> BatchFeature:
    """Do what processors of the Qwen-VL kind do: one token for each merged patch.

    Args:
        tokenizer: The family's tokenizer.
        images: The pictures of each prompt.
        prompts: One text per row.
        pictures: An image processor that cuts patches and gives `image_grid_thw`.
        placeholder: What stands for one picture in a prompt.
        token: The image token.
        around: What the processor writes before and after a picture's tokens.
    """
    flat = flatten(images)
    encoded: Mapping[str, Tensor] = pictures(flat, return_tensors="pt")
    merged = encoded["image_grid_thw"].prod(-1) // pictures.merge_size**2
    runs = (around[0] + token * count + around[1] for count in merged.tolist())
    words = write_runs(tokenizer, images, prompts, placeholder=placeholder, runs=runs)
    return BatchFeature({**words, **encoded})
