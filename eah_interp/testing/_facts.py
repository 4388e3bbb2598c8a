"""What a tiny model of a family is made of, and the settings that families share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from eah_interp.errors import InputError
from eah_interp.testing._tokenizer import BOS_ID, EOS_ID, PAD_ID

Tokenizer: TypeAlias = PreTrainedTokenizerFast


Pictures = Sequence[Sequence[Image.Image]]


@dataclass(frozen=True)
class Size:
    """Size of a tiny language model; the vision tower's size is fixed by its family."""

    n_layers: int = 3
    n_heads: int = 4
    n_kv_heads: int = 4
    d_head: int = 8

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.n_heads * self.d_head


@dataclass(frozen=True)
class Family:
    """Facts about one family: the classes that are real, and what is missing offline.

    Attributes:
        name: Name of the family here, as `tiny_lvlm` takes it.
        model: Name of the model class in transformers.
        build_config: Makes the family's config for a size and a tokenizer.
        specials: Special tokens, in the order of their ids; the first has id 4.
        named: Attributes under which the processor finds them on the tokenizer.
        add_bos: Whether the tokenizer starts a text with `<s>`.
        placeholder: What stands for one picture in a prompt; empty where none does.
        build_processor: Makes the real processor; None where that needs a package or
            a download that is not here.
        no_processor: Why `build_processor` is None.
        encode: Makes a batch of model inputs where there is no processor.
        refused: Why this package refuses the model; empty for a supported family.
        notes: What is particular about it.
    """

    name: str
    model: str
    build_config: Callable[[Size, Tokenizer], PreTrainedConfig]
    specials: tuple[str, ...] = ("<image>",)
    named: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"image_token": "<image>"})
    )
    add_bos: bool = True
    placeholder: str = "<image>"
    build_processor: Callable[[Tokenizer], ProcessorMixin] | None = None
    no_processor: str = ""
    encode: Callable[[Tokenizer, Pictures, Sequence[str]], BatchFeature] | None = None
    refused: str = ""
    notes: str = ""


def text_settings(size: Size, tokenizer: Tokenizer, **changes: Any) -> dict[str, Any]:
    """Return the settings that nearly every decoder config of transformers shares."""
    return {
        "hidden_size": size.d_model,
        "intermediate_size": 2 * size.d_model,
        "num_hidden_layers": size.n_layers,
        "num_attention_heads": size.n_heads,
        "num_key_value_heads": size.n_kv_heads,
        "head_dim": size.d_head,
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        **changes,
    }


def vision_settings(**changes: Any) -> dict[str, Any]:
    """Return the settings of a two-layer tower that sees 32 x 32 pixels as 4 x 4."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        **changes,
    }


def write_chat_template(
    *,
    user: str,
    assistant: str,
    image: str,
    close: str = "",
    images_first: bool = False,
) -> str:
    """Write a chat template of the usual form.

    Args:
        user: What opens a turn of the user.
        assistant: What opens a turn of the model, the generation prompt included.
        image: What stands for a picture.
        close: What closes a turn.
        images_first: Whether a turn's pictures come before all of its text.
    """
    parts = "{% for part in message['content'] "
    picture = "{% if part['type'] == 'image' %}" + image + "{% endif %}"
    words = "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    if images_first:
        body = parts + "%}" + picture + "{% endfor %}" + parts + "%}" + words
    else:
        body = parts + "%}" + picture + words
    return (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}" + assistant + "{% else %}" + user + ""
        "{% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        + body
        + "{% endfor %}{% endif %}"
        + close
        + "{% endfor %}{% if add_generation_prompt %}"
        + assistant
        + "{% endif %}"
    )


# ---- Ready-made inputs of families whose processors cannot be built offline.


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


# ---- Pictures in the corner of a canvas: what image processors without torchvision do.


def pad_picture(
    picture: Image.Image, *, factor: int, color: int = 0, scale: float = 1.0
) -> Image.Image:
    """Put a picture on a canvas whose sides are multiples of `factor`, top left."""
    width, height = (max(1, int(side * scale)) for side in picture.size)
    sides = (-(-width // factor) * factor, -(-height // factor) * factor)
    canvas = Image.new("RGB", sides, (color,) * 3)
    canvas.paste(picture.convert("RGB").resize((width, height)))
    return canvas


def read_pixels(picture: Image.Image) -> Tensor:
    """Return pixels from -1 to 1, as `[channel, row, column]`."""
    values = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


def cut_tiles(pixels: Tensor, side: int) -> Tensor:
    """Cut `[channel, row, column]` in squares `[square, channel, side, side]`."""
    channels, height, width = pixels.shape
    squares = pixels.reshape(channels, height // side, side, width // side, side)
    return squares.permute(1, 3, 0, 2, 4).reshape(-1, channels, side, side)


def build_row_patcher(*, smallest: int = 1) -> BaseImageProcessor:
    """Build an image processor that gives patches row by row, 8 x 8 pixels each.

    Args:
        smallest: Number of pixels that a picture is enlarged to.
    """
    return hf.HunYuanVLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        size={"shortest_edge": smallest, "longest_edge": 512 * 512},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
