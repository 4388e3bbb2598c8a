"""How many image tokens a processor writes: settings that have to be the model's own.

Processors of LLaVA and its like count an image's tokens by themselves. Checkpoints from
before they did lack the settings, and what writes a config may not write these.
"""

import copy
from typing import Any

from transformers import PreTrainedConfig

from eah_interp.errors import InputError
from eah_interp.lvlm.layouts.crops import NO_CLASS_TOKEN
from eah_interp.lvlm.layouts.grids import pair

STRATEGY = "vision_feature_select_strategy"

COUNTING = ("patch_size", STRATEGY, "num_additional_image_tokens", "num_image_tokens")
"""Settings by which a processor counts image tokens."""

CLASS_TOKEN = ("clip_vision_model",)
"""Vision towers that put a class token before their patches."""


def fit_processor(processor: Any, config: PreTrainedConfig | None) -> Any:
    """Give a processor the settings of its model by which image tokens are counted.

    Args:
        processor: A processor, a tokenizer, or None.
        config: The model's config, if it has one.

    Returns:
        The same object where nothing is to be changed; else a copy, which shares the
        tokenizer and the image processor. What the config does not say stays.

    Example:
        >>> from eah_interp.testing import tiny_lvlm, tiny_processor
        >>> processor = tiny_processor("llava")
        >>> processor.patch_size = None
        >>> fit_processor(processor, tiny_lvlm("llava").config).patch_size
        8
    """
    if config is None or not hasattr(processor, STRATEGY):
        return processor
    wanted = {
        name: value
        for name, value in _read_settings(config).items()
        if hasattr(processor, name) and getattr(processor, name) != value
    }
    if not wanted:
        return processor
    fitted = copy.copy(processor)
    for name, value in wanted.items():
        setattr(fitted, name, value)
    return fitted


def _read_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Read from a config what its processor has to count by."""
    found: dict[str, Any] = {}
    vision = getattr(config, "vision_config", None)
    patch = getattr(vision, "patch_size", None)
    if patch is not None:
        height, width = pair(patch)
        if height == width:
            found["patch_size"] = height
    # ViP-LLaVA has no choice: it leaves the class token out.
    always = "default" if config.model_type == "vipllava" else None
    strategy = getattr(config, STRATEGY, always)
    if strategy is not None:
        found[STRATEGY] = strategy
    tower = getattr(vision, "model_type", None)
    if tower in (*CLASS_TOKEN, *NO_CLASS_TOKEN):
        found["num_additional_image_tokens"] = int(tower in CLASS_TOKEN)
    size = getattr(vision, "image_size", None)
    if tower in NO_CLASS_TOKEN and "patch_size" in found and size is not None:
        rows, columns = (side // found["patch_size"] for side in pair(size))
        found["num_image_tokens"] = rows * columns
    return found


def check_counting(processor: Any) -> None:
    """Check that a processor knows how many tokens an image has.

    Raises:
        InputError: If it lacks a setting that the model's config does not have either.
    """
    if not hasattr(processor, STRATEGY):
        return
    for name in ("patch_size", "num_image_tokens"):
        if getattr(processor, name, 1) is None:
            msg = (
                f"the processor has no {name}, so image tokens cannot be counted, and "
                "neither has config.vision_config: set processor."
                f"{name} to the vision tower's before eah_interp.wrap or load"
            )
            raise InputError(msg)
