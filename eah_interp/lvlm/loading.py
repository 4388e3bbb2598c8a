"""Loading a checkpoint, or wrapping a model that is already in memory."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import transformers as hf
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase, ProcessorMixin

from eah_interp.arguments import by_name, check_flag, check_path, rename_keywords
from eah_interp.errors import (
    EAHError,
    ExtraMissingError,
    InputError,
    ModelError,
    show_value,
)
from eah_interp.lvlm.adapters import find_adapter, finding_base, has_processor
from eah_interp.lvlm.anatomy import refuse_config
from eah_interp.lvlm.foreign_code import (
    TRUST,
    check_trust,
    never_asking,
    refuse_kernel,
    refuse_kernels_of,
)
from eah_interp.lvlm.keywords import WRAPPING, refuse_unexpected
from eah_interp.lvlm.model import LVLM
from eah_interp.lvlm.processors import fit_processor

# ---- Which nnsight and transformers the hook points were tested with.


TESTED: dict[str, tuple[str, str]] = {
    "nnsight": ("0.8.1", "0.8.1"),
    "transformers": ("5.23.0", "5.23.0"),
}
"""Lowest and highest tested release of what hook points depend on."""


def list_untested() -> str:
    """List which installed libraries are outside the tested range; empty if none is.

    Example:
        >>> list_untested() == "" or "(tested: " in list_untested()
        True
    """
    found = []
    for name, (low, high) in TESTED.items():
        installed = version(name)
        if not _order(low) <= _order(installed) <= _order(high):
            tested = low if low == high else f"{low} to {high}"
            found.append(f"{name} {installed} (tested: {tested})")
    return ", ".join(found)


@contextlib.contextmanager
def naming_versions() -> Iterator[None]:
    """Add to any failure to load whether untested versions may be its cause.

    Raises:
        ModelError: In place of whatever else was raised, where a version is untested.
    """
    try:
        yield
    except Exception as error:
        untested = list_untested()
        if not untested or (
            isinstance(error, EAHError) and not isinstance(error, ModelError)
        ):
            raise
        msg = (
            f"{error}; this may be for the versions installed: {untested}; install "
            "the tested ones, or write an issue with this message"
        )
        raise ModelError(msg) from error


def _order(release: str) -> tuple[int, ...]:
    """Make release numbers comparable; what follows the numbers does not count.

    Example:
        >>> _order("5.10.0.dev1") > _order("5.9")
        True
    """
    numbers = []
    for part in release.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


# ---- Processors of families whose video half needs a package that is not installed.


IMAGES_ONLY = ("image_processor", "tokenizer")


def drop_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Return a subclass of a processor class that takes images and text only.

    The video processors of transformers need torchvision; a processor class that wants
    one cannot be built, or loaded, without it. The subclass keeps the name, so that
    what it saves is loaded by the full class where torchvision is installed.

    Args:
        processor_class: Any processor class, such as `transformers.Qwen2VLProcessor`.
    """
    names = [name for name in processor_class.get_attributes() if name in IMAGES_ONLY]
    body = {
        "get_attributes": classmethod(lambda cls: names),  # noqa: ARG005, is inherited
        "__module__": processor_class.__module__,
        "__doc__": processor_class.__doc__,
    }
    return type(processor_class.__name__, (processor_class,), body)


def load_processor(
    path: str | Path, **kwargs: Any
) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Load a processor, without its video half where that cannot be loaded.

    The real processor with all of its parts is tried first. Where a model type has
    none, as that of a text decoder, transformers gives its tokenizer.

    Args:
        path: Folder or name on the Hub.
        **kwargs: What `from_pretrained` takes.
    """
    try:
        return hf.AutoProcessor.from_pretrained(path, **kwargs)
    except (ImportError, OSError) as error:
        if not re.search("video ?processor", str(error), re.IGNORECASE):
            raise
        settings, _ = ProcessorMixin.get_processor_dict(path, **kwargs)
        config = hf.AutoConfig.from_pretrained(path, **kwargs)
        named = settings.get("processor_class")
        name = named or getattr(config, "processor_class", None)
        if name is None:  # there is no processor here at all
            raise
    return drop_video(getattr(hf, name)).from_pretrained(path, **kwargs)


_TOY = "toy"


@by_name
def load(
    name_or_path: str | Path | None = None,
    *,
    verify: bool = True,
    image_token_id: int | None = None,
    dispatch: bool = True,
    allow_missing: bool = False,
    **from_pretrained: Any,
) -> LVLM:
    """Load a vision-language model for tracing; with no name, the embedded toy.

    The toy needs no network and no GPU. Everything else goes through transformers'
    `from_pretrained`; code of the checkpoint's own, from the Hub or in its folder, is
    run only with `trust_remote_code=True`, and nobody is asked.

    Args:
        name_or_path: A Hub id, a folder that `save_pretrained` wrote, `"toy:seed-1"`
            and the like for another of the toys (`eah_interp.toy.TOYS`); `"toy"` or
            None for the first. A folder that holds an adapter of PEFT is loaded with
            the base model that it names, and with its own processor if it has one.
        verify: Run and check the hook points once (a few tokens, five forwards).
            Switch it off only for a model that was verified before.
        image_token_id: The image token's id, where the config does not name it.
        dispatch: False builds the module tree without weights, which are loaded at
            the first trace; hook points are verified then.
        allow_missing: Load a checkpoint that lacks some of the model's weights, or has
            them in another shape. Those are random, and others at each load. Also load
            one with weights, of layers or biases, that its config leaves out.
        **from_pretrained: `dtype`, `device_map`, `attn_implementation`, `revision`,
            `quantization_config`, `trust_remote_code`, ... Where the checkpoint's
            processor cannot be loaded, `processor` takes another, or a tokenizer:
            then trace ready-made inputs (`input_ids=..., pixel_values=...`). Settings
            by which it counts image tokens are the model's own, as for `wrap`.

    Returns:
        The model, ready to trace.

    Raises:
        ModelError: If there is no such model, it cannot be worked on, the checkpoint
            or adapter lacks weights, or it needs code of its own that was not asked
            for; the message says why.
        ExtraMissingError: If a package that the checkpoint needs is not installed, as
            PEFT for an adapter.
        InputError: If a folder was named that does not exist, or the name is none.
        SettingsError: If a toy was named that does not exist, or `trust_remote_code`
            is no boolean.
        KeywordError: If neither transformers nor the model knows a keyword.

    Example:
        >>> model = load()
        >>> model.n_layers >= 4 and model.n_heads >= 8
        True
    """
    name_or_path = _check_name(name_or_path)
    dispatch = check_flag("dispatch", dispatch)
    kind, _, which = str(name_or_path or _TOY).partition(":")
    knows = ""
    if kind == _TOY and not isinstance(name_or_path, Path):
        from eah_interp.toy.language import TOY_KNOWS
        from eah_interp.toy.model import TOYS, toy_path

        knows = TOY_KNOWS
        wanted: Any = which or TOYS[0]
        name_or_path = toy_path(wanted)  # refuses names it does not know
    name = str(name_or_path)
    adapter = find_adapter(Path(name).expanduser())
    if adapter is not None:
        folder = Path(name).expanduser()
        from_pretrained["peft"] = str(folder)
        if from_pretrained.get("processor") is None and has_processor(folder):
            trusted = check_trust(from_pretrained.get(TRUST))
            with _refusing(str(folder)), never_asking(str(folder)):
                found = load_processor(folder, **{TRUST: trusted})
            from_pretrained["processor"] = found
        name_or_path = name = adapter["base_model_name_or_path"]
    looks_local = isinstance(name_or_path, Path) or name.startswith((".", "/", "~"))
    if looks_local:
        folder = Path(name).expanduser()
        # Not Path.is_file, which raises for a name that is too long.
        if not os.path.isfile(folder / "config.json"):  # noqa: PTH113
            msg = (
                f"no model at {folder}: expected a folder with config.json, as "
                "save_pretrained writes it; give a Hub id without a leading / or ."
            )
            raise InputError(msg)
        name = str(folder)
    trusted = from_pretrained[TRUST] = check_trust(from_pretrained.get(TRUST))
    refuse_kernel(from_pretrained.get("attn_implementation"), trusted=trusted)
    given = {key: from_pretrained[key] for key in _LOCATE if key in from_pretrained}
    # never_asking inside: it knows why code was refused.
    with _refusing(name), never_asking(name):
        config = from_pretrained.get("config")
        if config is None:
            with finding_base(from_pretrained.get("peft"), name):
                config = AutoConfig.from_pretrained(name, **given)
        refuse_kernels_of(config, trusted=trusted)
        kinds = getattr(config, "architectures", None) or [type(config).__name__]
        # By its config, before gigabytes of weights are read.
        refuse_config(config, kinds[0], image_token=image_token_id)
        processor = from_pretrained.get("processor")
        if processor is None:
            processor = load_processor(name, **given)
    from_pretrained["processor"] = fit_processor(processor, config)
    with naming_versions(), _refusing(name, from_pretrained):
        model = LVLM(
            name,
            dispatch=dispatch,
            verify=verify,
            allow_missing=allow_missing,
            image_token_id=image_token_id,
            **from_pretrained,
        )
    model.knows = knows
    return model


@by_name
def wrap(
    model: nn.Module,
    processor: Any = None,
    *,
    verify: bool = True,
    image_token_id: int | None = None,
    **options: Any,
) -> LVLM:
    """Wrap a transformers model that is already in memory.

    Args:
        model: A decoder-only `...ForConditionalGeneration`. Of a `PeftModel` of layers
            (LoRA and its relatives) the model inside is wrapped, its adapter in place.
        processor: Its processor. Without one, trace ready-made inputs
            (`input_ids=..., pixel_values=...`). Where it counts image tokens by other
            settings than the model's (LLaVA and its like: `patch_size`,
            `vision_feature_select_strategy`), a copy with the model's is used.
        verify: As for `load`.
        image_token_id: The image token's id, where the config does not name it.
        **options: Passed on to `LVLM`, such as `tokenizer`.

    Returns:
        The model, ready to trace; weights are shared, not copied.

    Raises:
        ModelError: If the model cannot be worked on; the message says why.
        KeywordError: If there is no such option.

    Example:
        >>> from eah_interp.testing import tiny_lvlm, tiny_processor
        >>> wrap(tiny_lvlm("llava"), tiny_processor("llava")).verified
        True
    """
    if not isinstance(model, nn.Module):
        got = show_value(model)
        msg = f"expected a transformers model to wrap, got {got}; eah.load takes names"
        raise ModelError(msg)
    if processor is not None and not callable(processor):
        got = show_value(processor)
        msg = f"expected the model's processor, or None, got {got}"
        raise ModelError(f"{msg}; AutoProcessor.from_pretrained loads one by name")
    rename_keywords("wrap", options, WRAPPING)
    with naming_versions():
        return LVLM(
            model,
            processor=fit_processor(processor, getattr(model, "config", None)),
            verify=verify,
            image_token_id=image_token_id,
            **options,
        )


def _check_name(value: object) -> str | Path | None:
    if value is None:
        return None
    path = check_path("name_or_path", value)
    if isinstance(value, str) and not value.strip():
        msg = "name_or_path is empty: expected a Hub id, a folder, or None for the toy"
        raise InputError(msg)
    return str(value) if isinstance(value, str) else path


@contextlib.contextmanager
def _refusing(
    name: str, given: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[None]:
    """Raise what transformers says of a checkpoint it cannot load as a ModelError.

    Args:
        name: Of the checkpoint.
        given: What the user wrote by name, which may be misspelt.
    """
    try:
        yield
    except EAHError:
        raise
    except (ImportError, OSError, ValueError, TypeError) as error:
        refuse_unexpected(error, given)
        if isinstance(error, TypeError):
            raise
        reason = " ".join(str(error).split())
        if isinstance(error, ImportError):
            msg = f"loading {name:.200} needs a package: {reason}"
            raise ExtraMissingError(msg) from error
        raise ModelError(f"cannot load {name:.200}: {reason}") from error


_LOCATE = ("revision", "trust_remote_code", "token", "cache_dir", "subfolder")
"""The keyword arguments that say where a checkpoint is, for configs and processors."""
