"""What a tiny model of a family is made of, and what families share.

`Family` holds the facts about one. The families themselves stand in the files that
`_families.py` names; they are put together from the settings, chat templates and
encoders here.
"""

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

ImageRows: TypeAlias = Sequence[Sequence[Image.Image]]
"""The images of each prompt of a batch."""


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


BuildConfig: TypeAlias = Callable[[Size, Tokenizer], PreTrainedConfig]

BuildProcessor: TypeAlias = Callable[[Tokenizer], ProcessorMixin]

Encode: TypeAlias = Callable[[Tokenizer, ImageRows, Sequence[str]], BatchFeature]


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
        placeholder: What stands for one image in a prompt; empty where none does.
        build_processor: Makes the real processor; None where that needs a package or
            a download that is not here.
        no_processor: Why `build_processor` is None.
        encode: Makes a batch of model inputs where there is no processor.
        refused: Why this package refuses the model; empty for a supported family.
        notes: What is particular about it.
    """

    name: str
    model: str
    build_config: BuildConfig
    specials: tuple[str, ...] = ("<image>",)
    named: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"image_token": "<image>"})
    )
    add_bos: bool = True
    placeholder: str = "<image>"
    build_processor: BuildProcessor | None = None
    no_processor: str = ""
    encode: Encode | None = None
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


def any_size_settings(**changes: Any) -> dict[str, Any]:
    """Return the settings of such a tower that sees images of any size."""
    settings = vision_settings(**changes)
    del settings["image_size"]
    return settings


def siglip_settings(**changes: Any) -> hf.SiglipVisionConfig:
    """Return such a tower's config as SigLIP, which gives patches and nothing else."""
    return hf.SiglipVisionConfig(**vision_settings(**changes), vision_use_head=False)


def list_kinds(size: Size, *, other: str) -> list[str]:
    """Return the kind of each layer: odd layers attend, and so does an only one."""
    return [
        "full_attention" if i % 2 or size.n_layers == 1 else other
        for i in range(size.n_layers)
    ]


def rope_settings(**changes: Any) -> dict[str, Any]:
    """Return the settings of a plain rotary embedding."""
    return {"rope_type": "default", "rope_theta": 1e4, **changes}


def name_ids(tokenizer: Tokenizer, **tokens: str) -> dict[str, int]:
    """Return ids of special tokens under the names that a config has for them."""
    return {
        name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()
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
        image: What stands for an image.
        close: What closes a turn.
        images_first: Whether a turn's images come before all of its text.
    """
    parts = "{% for part in message['content'] "
    shown = "{% if part['type'] == 'image' %}" + image + "{% endif %}"
    words = "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    if images_first:
        body = parts + "%}" + shown + "{% endfor %}" + parts + "%}" + words
    else:
        body = parts + "%}" + shown + words
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


def write_chatml(image: str) -> str:
    """Write the chat template of Qwen's form, with a text for each image."""
    return write_chat_template(
        user="<|im_start|>user\n",
        assistant="<|im_start|>assistant\n",
        image=image,
        close="<|im_end|>\n",
    )


PIXELS = {"shortest_edge": 16 * 16, "longest_edge": 96 * 96}
"""Least and most pixels of an image where a family takes images of any size."""


# ---- Ready-made inputs of families whose processors cannot be built offline.


def flatten(images: ImageRows) -> list[Image.Image]:
    """Return the images of all rows, in order."""
    return [image for row in images for image in row]


def call_processor(
    processor: ProcessorMixin, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Encode rows of images and text with a real processor, padded, as tensors."""
    return processor(
        images=[list(row) for row in images],
        text=list(prompts),
        padding=True,
        return_tensors="pt",
    )


def encode_as(other: Family) -> Encode:
    """Return an encoder that calls the real processor of another family."""

    def encode(
        tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
    ) -> BatchFeature:
        assert other.build_processor is not None
        return call_processor(other.build_processor(tokenizer), images, prompts)

    return encode


def write_runs(
    tokenizer: Tokenizer,
    images: ImageRows,
    prompts: Sequence[str],
    *,
    placeholder: str,
    runs: Iterable[str],
) -> dict[str, Tensor]:
    """Put each image's tokens in the place of its placeholder, and tokenize.

    Args:
        tokenizer: The family's tokenizer.
        images: The images of each prompt.
        prompts: One text per row.
        placeholder: What stands for one image in a prompt.
        runs: The text of each image's tokens, in the order of the images.

    Returns:
        `input_ids` and `attention_mask`, left-padded.

    Raises:
        InputError: A prompt has more or fewer placeholders than images.
    """
    left = iter(runs)
    texts = []
    for prompt, row in zip(prompts, images, strict=True):
        pieces = prompt.split(placeholder)
        if len(pieces) != len(row) + 1:
            raise InputError(
                f"expected one {placeholder} for each of {len(row)} images, got "
                f"{len(pieces) - 1} in {prompt!r}; change the prompt"
            )
        middle = "".join(next(left) + piece for piece in pieces[1:])
        texts.append(pieces[0] + middle)
    words = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: words[name] for name in ("input_ids", "attention_mask")}


def encode_equal(
    tokenizer: Tokenizer,
    images: ImageRows,
    prompts: Sequence[str],
    *,
    image_processor: BaseImageProcessor,
    placeholder: str,
    run: str,
) -> BatchFeature:
    """Do what processors do that write the same tokens for every image.

    Args:
        tokenizer: The family's tokenizer.
        images: The images of each prompt.
        prompts: One text per row.
        image_processor: What makes pixels of the images.
        placeholder: What stands for one image in a prompt.
        run: The text of an image's tokens.
    """
    flat = flatten(images)
    runs = [run] * len(flat)
    words = write_runs(tokenizer, images, prompts, placeholder=placeholder, runs=runs)
    return BatchFeature({**words, **image_processor(flat, return_tensors="pt")})


def mark_tokens(ids: Tensor, tokenizer: Tokenizer, *tokens: str) -> Tensor:
    """Return 1 where ids are of the given special tokens, and 0 elsewhere."""
    wanted = torch.tensor(tokenizer.convert_tokens_to_ids(list(tokens)))
    return torch.isin(ids, wanted).long()


def encode_merged(
    tokenizer: Tokenizer,
    images: ImageRows,
    prompts: Sequence[str],
    *,
    image_processor: BaseImageProcessor,
    placeholder: str,
    token: str,
    around: tuple[str, str] = ("", ""),
) -> BatchFeature:
    """Do what processors of the Qwen-VL kind do: one token for each merged patch.

    Args:
        tokenizer: The family's tokenizer.
        images: The images of each prompt.
        prompts: One text per row.
        image_processor: It cuts patches, and gives `image_grid_thw`.
        placeholder: What stands for one image in a prompt.
        token: The image token.
        around: What the processor writes before and after an image's tokens.
    """
    flat = flatten(images)
    encoded: Mapping[str, Tensor] = image_processor(flat, return_tensors="pt")
    merged = encoded["image_grid_thw"].prod(-1) // image_processor.merge_size**2
    runs = (around[0] + token * count + around[1] for count in merged.tolist())
    words = write_runs(tokenizer, images, prompts, placeholder=placeholder, runs=runs)
    return BatchFeature({**words, **encoded})


# ---- Images in the corner of a canvas: what image processors without torchvision do.


def pad_image(
    image: Image.Image, *, factor: int, color: int = 0, scale: float = 1.0
) -> Image.Image:
    """Put an image on a canvas whose sides are multiples of `factor`, top left."""
    width, height = (max(1, int(side * scale)) for side in image.size)
    sides = (-(-width // factor) * factor, -(-height // factor) * factor)
    canvas = Image.new("RGB", sides, (color,) * 3)
    canvas.paste(image.convert("RGB").resize((width, height)))
    return canvas


def read_pixels(image: Image.Image) -> Tensor:
    """Return pixels from -1 to 1, as `[channel, row, column]`."""
    values = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


def cut_tiles(pixels: Tensor, side: int) -> Tensor:
    """Cut `[channel, row, column]` in squares `[square, channel, side, side]`."""
    channels, height, width = pixels.shape
    squares = pixels.reshape(channels, height // side, side, width // side, side)
    return squares.permute(1, 3, 0, 2, 4).reshape(-1, channels, side, side)


def build_row_patcher(*, smallest: int = 1) -> BaseImageProcessor:
    """Build an image processor that gives patches row by row, 8 x 8 pixels each.

    Args:
        smallest: Number of pixels that an image is enlarged to.
    """
    return hf.HunYuanVLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        size={"shortest_edge": smallest, "longest_edge": 512 * 512},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
