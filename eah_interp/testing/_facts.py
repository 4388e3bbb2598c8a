"""What a tiny model of a family is made of, and the settings that families share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from PIL import Image
from transformers import (
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

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
