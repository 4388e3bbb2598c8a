"""What transformers refuses in the middle of a run, in the words of this package."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from eah_interp.errors import (
    EAHError,
    ExtraMissingError,
    InputError,
    NumericalError,
    SettingsError,
    is_out_of_memory,
    show_value,
)
from eah_interp.indices import to_ints, to_list
from eah_interp.kernels.patterns import is_abstract
from eah_interp.lvlm.processors import COUNTING

_MODELS = ("transformers.models.", "transformers_modules.")
"""Modules that check what a model's forward is given."""

_GENERATION = ("transformers.generation.", "transformers.cache_utils")
"""Modules that check, or do, what `generate` is told."""

_ASKED = ("torch.", "transformers.configuration_utils.", "transformers.integrations.")
"""Modules that raise of what others ask of them."""


NAMED = (
    *(ValueError, TypeError, RuntimeError),
    *(LookupError, AttributeError, ArithmeticError, AssertionError, ImportError),
)
"""What Python and torch raise of a value that does not fit, `num_beams=-1` say."""


def name_refusal(error: Exception, processor: Any) -> EAHError | None:
    """Name the cause of an error that a model, or its `generate`, raised.

    Who complains tells of what: a model's own code checks its inputs, and the code of
    generation its settings, by itself or by what torch says of them. That memory ran
    out, or a device failed, is told of neither.

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
    if _has_run_out(error):
        return None
    if isinstance(error, ValueError) and _raised_in(error).startswith(_MODELS):
        remedy = "pass what this model's own processor makes of images and prompts"
        return InputError(f"the model refuses its inputs: {said}; {remedy}")
    asked = isinstance(error, NAMED) and _raised_in(error, behind=_ASKED)
    if not asked or not asked.startswith(_GENERATION):
        return None
    if "probability tensor" in said:  # what torch.multinomial says of NaN
        remedy = "a dtype of more range (bfloat16), or a temperature nearer to 1"
        msg = f"generate cannot draw a token: {said}; expected finite logits: take"
        return NumericalError(f"{msg} {remedy}")
    if isinstance(error, ImportError):
        return ExtraMissingError(f"generate needs a package for its settings: {said}")
    remedy = "see transformers.GenerationConfig for what each setting may be"
    said = said if isinstance(error, ValueError | TypeError) else repr(error)[:_LONGEST]
    return SettingsError(f"generate refuses its settings: {said}; {remedy}")


_LONGEST = 300
"""What torch says of C++ goes on for pages."""


def _has_run_out(error: Exception) -> bool:
    """Return whether an error is of the machine: its memory, or a device that fails."""
    failed = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
    told = isinstance(error, failed) or "CUDA error" in str(error)
    return told or is_out_of_memory(error)


def _raised_in(error: Exception, *, behind: tuple[str, ...] = ()) -> str:
    """Return the name of the module that raised an error; empty if it is not known.

    Args:
        error: It.
        behind: Modules of these beginnings are passed over for who called them.
    """
    trace, found = error.__traceback__, ""
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        name = str(frame.f_globals.get("__name__", ""))
        # A mode (one that counts operations, say) hands on what torch was asked.
        hands_on = trace is not None and frame.f_code.co_name in _MODES
        if not f"{name}.".startswith(behind) and not (behind and hands_on):
            found = name
    return found


_MODES = ("__torch_dispatch__", "__torch_function__")


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


def check_generation(settings: Mapping[str, Any]) -> None:
    """Check those settings of `generate` that fail in the model, where none explains.

    Raises:
        SettingsError: If a token id is no integer, or `logits_processor` is no list
            of functions.

    Example:
        >>> check_generation({"pad_token_id": 0.5})
        Traceback (most recent call last):
            ...
        eah_interp.errors.SettingsError: pad_token_id must be an id or a list of ids, \
got 0.5
    """
    for name, value in settings.items():
        is_id = name.endswith("_token_id") and value is not None
        if is_id and to_list(value) != [] and to_ints(value) is None:
            got = show_value(value)
            raise SettingsError(f"{name} must be an id or a list of ids, got {got}")
    processors = settings.get("logits_processor")
    right = processors is None or isinstance(processors, list | tuple)
    if not right or not all(map(callable, processors or ())):
        got = show_value(processors)
        msg = f"logits_processor must be a list of functions, got {got}"
        raise SettingsError(f"{msg}; see transformers.LogitsProcessorList")


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
