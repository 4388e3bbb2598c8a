"""How long a prompt may be: the positions that a model was made for."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import PreTrainedConfig

from eah_interp.errors import InputError
from eah_interp.kernels.patterns import is_abstract
from eah_interp.lvlm.prompt import find_cache


def position_limit(config: PreTrainedConfig) -> int | None:
    """Return how many positions a model has; None where its config names no limit.

    It is `max_position_embeddings`. Rotary embeddings that are scaled reach further:
    by `factor` times the length before scaling (`original_max_position_embeddings`,
    or the limit itself where the scaling is linear). Dynamic scaling has no end.

    Args:
        config: The model's config, or its text model's.

    Example:
        >>> from transformers import LlamaConfig
        >>> position_limit(LlamaConfig(max_position_embeddings=512))
        512
        >>> linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
        >>> config = LlamaConfig(max_position_embeddings=512, rope_parameters=linear)
        >>> position_limit(config)
        2048
    """
    text = config.get_text_config(decoder=True)
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    ropes = getattr(text, "rope_parameters", None) or {}
    # Some decoders have one for each kind of layer.
    several = [rope for rope in ropes.values() if isinstance(rope, Mapping)]
    reached = [limit]
    for rope in several or [ropes]:
        kind = rope.get("rope_type", "default")
        if kind == "dynamic":
            return None
        before = rope.get("original_max_position_embeddings")
        before = limit if before is None and kind == "linear" else before
        if before is not None and rope.get("factor") is not None:
            reached.append(int(before * rope["factor"]))
    return max(reached)


def check_positions(model: Any, inputs: Mapping[str, Any], *, generates: bool) -> None:
    """Check that a run's tokens have positions, image tokens and answer included.

    The last token of an answer is not read, so it needs none.

    Args:
        model: An LVLM.
        inputs: What the model, or its `generate`, is called with.
        generates: Whether it is `generate`.

    Raises:
        InputError: If there are more tokens than positions.
    """
    limit = position_limit(model._module.config)
    given = [inputs.get("input_ids"), inputs.get("inputs_embeds")]
    tokens = next((value for value in given if isinstance(value, Tensor)), None)
    if limit is None or tokens is None or tokens.ndim < 2:
        return
    width, mask = int(tokens.shape[1]), inputs.get("attention_mask")
    past = 0 if generates else _count_cached(find_cache(inputs))
    n_tokens = width + past
    answer = _longest_answer(model, inputs, n_tokens) if generates else 1
    if n_tokens + answer - 1 <= limit:
        return
    if isinstance(mask, Tensor) and mask.ndim == 2 and not is_abstract(mask):
        # Padding needs no position.
        with unset_fake_temporarily():
            n_tokens = int(mask.sum(-1).max())
        if n_tokens + answer - 1 <= limit:
            return
    if n_tokens > limit:
        msg = (
            f"the prompt has {n_tokens} tokens, image tokens included: expected at "
            f"most {limit}, the positions of this model (max_position_embeddings); "
            "shorten it, or show fewer or smaller images"
        )
        raise InputError(msg)
    msg = (
        f"a prompt of {n_tokens} tokens and an answer of up to {answer} need "
        f"{n_tokens + answer - 1} positions: expected at most {limit} "
        "(max_position_embeddings); pass max_new_tokens of at most "
        f"{limit - n_tokens + 1}, or shorten the prompt"
    )
    raise InputError(msg)


def _count_cached(cache: Any) -> int:
    length = getattr(cache, "get_seq_length", None)
    found = 0 if length is None else length()
    return 0 if isinstance(found, Tensor) and is_abstract(found) else int(found)


def _longest_answer(model: Any, inputs: Mapping[str, Any], width: int) -> int:
    """Return how many tokens a generation may write; 1 where it is not said."""
    own = getattr(model._module, "generation_config", None)
    places = [inputs, inputs.get("generation_config"), own]
    for place in places:
        read = place.get if isinstance(place, Mapping) else _reader(place)
        if (new := read("max_new_tokens")) is not None:
            return max(int(new), 1)
        if (longest := read("max_length")) is not None:
            return max(int(longest) - width, 1)
    return 1


def _reader(place: object) -> Any:
    return lambda name: getattr(place, name, None)
