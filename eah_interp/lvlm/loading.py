"""Loading a checkpoint, or wrapping a model that is already in memory."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig

from eah_interp.errors import InputError
from eah_interp.lvlm.model import LVLM
from eah_interp.lvlm.processors import load_processor
from eah_interp.lvlm.refusals import refuse_config
from eah_interp.lvlm.versions import naming_versions

_TOY = "toy"


def load(
    name_or_path: str | Path | None = None,
    *,
    verify: bool = True,
    image_token_id: int | None = None,
    dispatch: bool = True,
    **from_pretrained: Any,
) -> LVLM:
    """Load a vision-language model for tracing; with no name, the embedded toy.

    The toy needs no network and no GPU. Everything else goes through transformers'
    `from_pretrained`; code from the Hub is run only with `trust_remote_code=True`.

    Args:
        name_or_path: A Hub id, a folder that `save_pretrained` wrote, `"toy:seed-1"`
            and the like for another of the toys (`eah_interp.toy.TOYS`); `"toy"` or
            None for the first.
        verify: Run and check the hook points once (a few tokens, three forwards).
            Switch it off only for a model that was verified before.
        image_token_id: The image token's id, where the config does not name it.
        dispatch: False builds the module tree without weights, which are loaded at
            the first trace; hook points are verified then.
        **from_pretrained: `dtype`, `device_map`, `attn_implementation`, `revision`,
            `quantization_config`, `trust_remote_code`, ... Where the checkpoint's
            processor cannot be loaded, `processor` takes another, or a tokenizer:
            then trace ready-made inputs (`input_ids=..., pixel_values=...`).

    Returns:
        The model, ready to trace.

    Raises:
        ModelError: If the model cannot be worked on; the message says why.
        InputError: If a folder was named that does not exist.
        SettingsError: If a toy was named that does not exist.

    Example:
        >>> model = load()
        >>> model.n_layers >= 4 and model.n_heads >= 8
        True
    """
    kind, _, which = str(name_or_path or _TOY).partition(":")
    if kind == _TOY and not isinstance(name_or_path, Path):
        from eah_interp.toy import TOYS, toy_path

        wanted: Any = which or TOYS[0]
        name_or_path = toy_path(wanted)  # refuses names it does not know
    name = str(name_or_path)
    looks_local = isinstance(name_or_path, Path) or name.startswith((".", "/", "~"))
    if looks_local:
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            msg = (
                f"no model at {folder}: expected a folder with config.json, as "
                "save_pretrained writes it; give a Hub id without a leading / or ."
            )
            raise InputError(msg)
        name = str(folder)
    given = {key: from_pretrained[key] for key in _LOCATE if key in from_pretrained}
    config = from_pretrained.get("config") or AutoConfig.from_pretrained(name, **given)
    kinds = getattr(config, "architectures", None) or [type(config).__name__]
    # By its config, before gigabytes of weights are read.
    refuse_config(config, kinds[0], image_token=image_token_id)
    if from_pretrained.get("processor") is None:
        from_pretrained["processor"] = load_processor(name, **given)
    with naming_versions():
        return LVLM(
            name,
            dispatch=dispatch,
            verify=verify,
            image_token_id=image_token_id,
            **from_pretrained,
        )


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
        model: A decoder-only `...ForConditionalGeneration`.
        processor: Its processor. Without one, trace ready-made inputs
            (`input_ids=..., pixel_values=...`).
        verify: As for `load`.
        image_token_id: The image token's id, where the config does not name it.
        **options: Passed on to `LVLM`, such as `tokenizer`.

    Returns:
        The model, ready to trace; weights are shared, not copied.

    Raises:
        ModelError: If the model cannot be worked on; the message says why.

    Example:
        >>> from eah_interp.testing import tiny_lvlm, tiny_processor
        >>> wrap(tiny_lvlm("llava"), tiny_processor("llava")).verified
        True
    """
    with naming_versions():
        return LVLM(
            model,
            processor=processor,
            verify=verify,
            image_token_id=image_token_id,
            **options,
        )


_LOCATE = ("revision", "trust_remote_code", "token", "cache_dir", "subfolder")
"""The keyword arguments that say where a checkpoint is, for configs and processors."""
