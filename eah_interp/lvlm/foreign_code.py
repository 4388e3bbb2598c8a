"""Code that comes with a checkpoint: run only where it was asked for; nobody is asked.

A checkpoint's files may name Python code of its own (`auto_map`, `custom_generate`, an
attention kernel on the Hub). transformers runs it where `trust_remote_code` is True and
refuses it where that is False. Where it is None, it asks at the terminal, and takes
whatever stands in the input for an answer; and some of its ways to a tokenizer or an
image processor forget what they were given. So both are done here: False is passed, and
the question is switched off.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import dynamic_module_utils
from transformers.integrations.hub_kernels import is_kernel

from eah_interp.errors import EAHError, ModelError, SettingsError, show_value

TRUST = "trust_remote_code"

_REMEDY = (
    "read it, and if you trust it, load it in Python with trust_remote_code=True; "
    "nothing of it was run"
)


def check_trust(value: Any) -> bool:
    """Return whether a checkpoint's own code may run: only where True was given.

    Raises:
        SettingsError: If it is neither a boolean nor None.

    Example:
        >>> check_trust(None), check_trust(True)
        (False, True)
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    msg = f"{TRUST} must be True or False, got {show_value(value)}"
    raise SettingsError(msg)


@contextlib.contextmanager
def never_asking(name: str = "the model") -> Iterator[None]:
    """Refuse a checkpoint's own code in the block where nobody asked for it.

    Args:
        name: What is loaded, for the message.

    Raises:
        ModelError: If such code would have to be run.
    """
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    # With no time to wait for an answer, transformers does not ask, and refuses.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    except EAHError:
        raise
    except (ValueError, OSError) as error:
        if TRUST not in str(error):
            raise
        msg = f"{name} has code of its own, which was not asked for: {_REMEDY}"
        raise ModelError(msg) from error
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def refuse_kernel(attention: Any, *, trusted: bool) -> None:
    """Refuse an attention backend that is code on the Hub.

    Args:
        attention: An `attn_implementation`: a name, names by part of the model, or
            None.
        trusted: Whether such code was asked for.

    Raises:
        ModelError: If it is one, and was not asked for.

    Example:
        >>> refuse_kernel("sdpa", trusted=False)
        >>> refuse_kernel("someone/kernel", trusted=False)
        Traceback (most recent call last):
            ...
        eah_interp.errors.ModelError: the attention backend 'someone/kernel' is code \
on the Hub, which was not asked for: read it, and if you trust it, load it in Python \
with trust_remote_code=True; nothing of it was run
    """
    named = attention.values() if isinstance(attention, Mapping) else [attention]
    for name in named:
        if not trusted and isinstance(name, str) and is_kernel(name):
            msg = (
                f"the attention backend {name!r} is code on the Hub, which was not "
                f"asked for: {_REMEDY}"
            )
            raise ModelError(msg)


def refuse_kernels_of(config: Any, *, trusted: bool) -> None:
    """Refuse a config that names an attention backend on the Hub, parts included.

    Raises:
        ModelError: If it does, and that was not asked for.
    """
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    for part in (config, *parts):
        refuse_kernel(getattr(part, "_attn_implementation", None), trusted=trusted)


def refuse_custom_generate(given: Mapping[str, Any]) -> None:
    """Refuse a way to generate that is a repository's or a folder's code.

    Args:
        given: Arguments of `generate`.

    Raises:
        ModelError: If `custom_generate` names one, and it was not asked for.
    """
    custom = given.get("custom_generate")
    if isinstance(custom, str) and not check_trust(given.get(TRUST)):
        msg = (
            f"custom_generate={custom!r} is code, which was not asked for: read it, "
            f"and if you trust it, pass {TRUST}=True too; nothing of it was run"
        )
        raise ModelError(msg)
