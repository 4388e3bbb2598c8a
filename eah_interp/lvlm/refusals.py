"""Models that cannot be worked on, told by their config alone."""

from typing import Any

from eah_interp.errors import ModelError

_SIGHT = ("vision_config", "vq_config", "image_token_id", "image_token_index")


def refuse_config(
    config: Any,
    name: str,
    *,
    image_token: int | None = None,
) -> None:
    """Refuse a model by its config alone, before its weights are read.

    Args:
        config: A transformers config.
        name: What to call the model in the message.
        image_token: The image token's id, if the user names one.

    Raises:
        ModelError: If it is an encoder-decoder, sees by cross-attention, or is blind.
    """
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False) or getattr(
        text, "is_encoder_decoder", False
    ):
        msg = (
            f"{name} is an encoder-decoder: its decoder reads the image through "
            "cross-attention, so there are no image columns to score or broadcast; "
            "use a decoder-only LVLM"
        )
        raise ModelError(msg)
    if getattr(text, "cross_attention_layers", None):
        msg = (
            f"{name} reads the image through cross-attention layers: there are no "
            "image columns in its self-attention to score or broadcast; use an LVLM "
            "that puts image tokens into the prompt"
        )
        raise ModelError(msg)
    if image_token is None and not any(
        getattr(config, key, None) is not None for key in _SIGHT
    ):
        msg = (
            f"{name} is a text-only model: its config has no vision part and no image "
            "token; pass a vision-language model, or image_token_id=... if images "
            "enter it some other way"
        )
        raise ModelError(msg)
