"""Adapters of PEFT: a model that has one, and a folder that holds one.

Adapters that put layers of their own in place of a model's (LoRA and its relatives) are
part of the model's modules, and hook points are found as in any other. Those that wrap
the whole forward pass, as a learned prefix does, are not.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from eah_interp.errors import EAHError, ExtraMissingError, InputError, ModelError
from eah_interp.foreign_files import read_json

CONFIG = "adapter_config.json"

_OUTSIDE = {
    "ADAPTION_PROMPT": "has attention of its own",
    "CPT": "puts learned tokens before the prompt",
    "MULTITASK_PROMPT_TUNING": "puts learned tokens before the prompt",
    "POLY": "is told its task in every call",
    "PREFIX_TUNING": "puts learned keys and values before the prompt's",
    "PROMPT_TUNING": "puts learned tokens before the prompt",
    "P_TUNING": "puts learned tokens before the prompt",
    "XLORA": "runs the model twice in every call",
}
"""Kinds of adapters that act outside a model's modules, and how."""


def take_out(model: Any) -> nn.Module:
    """Return the transformers model inside a `PeftModel`, adapter layers in place.

    Args:
        model: Any model; one that is no `PeftModel` is returned as it is.

    Raises:
        ModelError: If its adapter acts outside that model, which would be without it.
    """
    configs = getattr(model, "peft_config", None)
    if configs is None or not hasattr(model, "get_base_model"):
        whole: nn.Module = model
        return whole
    for name, config in configs.items():
        if name in _list_active(model):
            _refuse_outside(config, f"the adapter {name!r}")
    inner: nn.Module = model.get_base_model()
    return inner


def _list_active(model: Any) -> list[str]:
    active = getattr(model, "active_adapters", None) or model.active_adapter
    return [active] if isinstance(active, str) else list(active)


def _refuse_outside(config: Any, name: str) -> None:
    def read(key: str) -> Any:
        return config.get(key) if isinstance(config, dict) else getattr(config, key, "")

    kind = str(getattr(read("peft_type"), "value", read("peft_type")))
    how = _OUTSIDE.get(kind)
    if read("alora_invocation_tokens"):
        how = "waits for its tokens in every call (aLoRA)"
    if how is not None:
        msg = (
            f"{name} is {kind}, which {how}: expected an adapter that is layers of the "
            "model, such as LoRA, whose heads and columns are the model's own; wrap "
            "the model without the adapter"
        )
        raise ModelError(msg)


def find_adapter(folder: Path) -> dict[str, Any] | None:
    """Read the settings of the adapter that a folder holds.

    Args:
        folder: Any folder.

    Returns:
        What its adapter_config.json says; None if it has none.

    Raises:
        InputError: If they cannot be read, or name no base model.
        ModelError: If the adapter acts outside a model's modules, or the folder holds a
            model too.
        ExtraMissingError: If PEFT is not installed.
    """
    path = folder / CONFIG
    # Not Path.is_file, which raises for a name that is too long.
    if not os.path.isfile(path):  # noqa: PTH113
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not found.get("base_model_name_or_path"):
        msg = (
            f"{path} names no base model: expected base_model_name_or_path, a folder "
            "or a Hub id; write it there"
        )
        raise InputError(msg)
    if os.path.isfile(folder / "config.json"):  # noqa: PTH113
        msg = (
            f"{folder} holds a whole model and an adapter: expected one of them; move "
            f"{CONFIG} and the adapter's weights to a folder of their own, and name "
            "the model's folder there as base_model_name_or_path"
        )
        raise ModelError(msg)
    _refuse_outside(found, f"the adapter in {folder}")
    names = ("adapter_model.safetensors", "adapter_model.bin")
    if not any((folder / name).is_file() for name in names):
        msg = f"{folder} has {CONFIG}, but no weights: expected {' or '.join(names)}"
        raise InputError(msg)
    try:
        import peft  # noqa: F401
    except ImportError as error:
        msg = (
            f"{folder} holds an adapter, which needs peft: it is not installed; pip "
            'install "eah-interp[large]"'
        )
        raise ExtraMissingError(msg) from error
    return found


def has_processor(folder: Path) -> bool:
    """Return whether a folder has a processor, as fine-tunes often save theirs."""
    names = ("processor_config.json", "preprocessor_config.json")
    return any((folder / name).is_file() for name in names)


@contextlib.contextmanager
def finding_base(adapter: str | None, base: str) -> Iterator[None]:
    """Name the adapter where the base model that it names cannot be found.

    Raises:
        InputError: If it cannot.
    """
    try:
        yield
    except OSError as error:
        if adapter is None:
            raise
        msg = (
            f"the adapter in {adapter} names the base model {base!r}, which cannot be "
            f"loaded ({str(error).splitlines()[0]}): expected a folder or a Hub id; "
            f"write where it is as base_model_name_or_path into {CONFIG}"
        )
        raise InputError(msg) from error


@contextlib.contextmanager
def attaching(adapter: str | None) -> Iterator[None]:
    """Name an adapter that does not fit what it is attached to in the block.

    nnsight attaches it, and refuses weights that find no place or are not there.

    Raises:
        ModelError: If it does not fit.
    """
    try:
        yield
    except EAHError:
        raise
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        if adapter is None:
            raise
        # nnsight's reason is about tasks; what it found stands at the end.
        found = " ".join(str(error).rpartition("Weights with no place: ")[2].split())
        msg = (
            f"the adapter in {adapter} does not fit its base model: {found}; expected "
            "the weights of every adapter layer, in this model's names and shapes; "
            f"see base_model_name_or_path in its {CONFIG}"
        )
        raise ModelError(msg) from error


def is_adapted(module: nn.Module) -> bool:
    """Return whether a module stands in the place of one of the model's own.

    Example:
        >>> is_adapted(nn.Linear(2, 2))
        False
    """
    return hasattr(module, "base_layer") or hasattr(module, "original_module")
