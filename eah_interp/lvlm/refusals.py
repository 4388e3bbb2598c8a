"""What transformers refuses in the middle of a run, in the words of this package."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from eah_interp.errors import EAHError, InputError, SettingsError
from eah_interp.kernels.patterns import is_abstract
from eah_interp.lvlm.processors import COUNTING

_MODELS = ("transformers.models.", "transformers_modules.")
"""Modules that check what a model's forward is given."""

_GENERATION = "transformers.generation."
"""Modules that check what `generate` is told."""


def name_refusal(error: Exception, processor: Any) -> EAHError | None:
    """Name the cause of an error that a model, or its `generate`, raised.

    Who complains tells of what: a model's own code checks its inputs, and the code of
    generation its settings.

    Args:
        error: What was raised.
        processor: The model's processor.

    Returns:
        The error to raise in its place; None if it is about something else.

    Example:
        >>> error = ValueError("Image features and image tokens do not match")
        >>> isinstance(name_refusal(error, None), InputError)
        True
        >>> name_refusal(ValueError("mine"), None)
    """
    if isinstance(error, EAHError):
        return None
    said = " ".join(str(error).split())
    if "do not match" in said and "tokens" in said and "features" in said:
        return InputError(f"{said}; {_explain_counting(processor)}")
    where = _raised_in(error)
    if where.startswith(_MODELS) and isinstance(error, ValueError):
        remedy = "pass what this model's own processor makes of images and prompts"
        return InputError(f"the model refuses its inputs: {said}; {remedy}")
    if where.startswith(_GENERATION) and isinstance(error, ValueError | TypeError):
        remedy = "see transformers.GenerationConfig for what each setting may be"
        return SettingsError(f"generate refuses its settings: {said}; {remedy}")
    return None


def _raised_in(error: Exception) -> str:
    """Return the name of the module that raised an error; empty if it is not known."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def _explain_counting(processor: Any) -> str:
    settings = [
        f"{name}={getattr(processor, name)!r}"
        for name in COUNTING
        if hasattr(processor, name)
    ]
    if not settings:
        return (
            "pass input_ids and images of one and the same call of this model's "
            "processor"
        )
    return (
        f"the processor counts by {', '.join(settings)}: set them as the vision tower "
        "has them"
    )


def check_vocabulary(model: Any, inputs: Mapping[str, Any]) -> None:
    """Check that each token id has an embedding, or stands for an image or its like.

    Ids on a device are not read: that would wait for all that is queued there.

    Args:
        model: An LVLM.
        inputs: What the model, or its `generate`, is called with.

    Raises:
        InputError: If an id has none.
    """
    ids = inputs.get("input_ids")
    embedding = model._module.get_input_embeddings()
    size = getattr(embedding, "num_embeddings", None)
    if not isinstance(ids, Tensor) or not isinstance(size, int):
        return
    if ids.device.type != "cpu" or is_abstract(ids):
        return
    with unset_fake_temporarily():  # a scan's ids have numbers too
        least, most = int(ids.min()), int(ids.max())
    if least >= 0 and most < size:
        return
    # Some families give images an id that no embedding has, and replace it themselves.
    with unset_fake_temporarily():
        given = set(ids.flatten().tolist())
    places = set(_placeholders(model))
    odd = sorted(one for one in given - places if not 0 <= one < size)
    if odd:
        msg = (
            f"input_ids hold {odd[0]}: expected ids of 0 to {size - 1}, the "
            "tokens that this model has; use its own processor, or resize its "
            "embeddings after adding tokens"
        )
        raise InputError(msg)


def _placeholders(model: Any) -> list[int]:
    """List the ids that a model's config, or its anatomy, gives to images and such."""
    config = model._module.config.to_dict()
    found = [
        value
        for key, value in config.items()
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    ]
    own = model.anatomy.image_token_id
    return [*found, own] if isinstance(own, int) else found
