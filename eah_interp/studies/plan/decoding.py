"""How answers are decoded, checked before anything is run."""

from collections.abc import Mapping
from typing import Any

from eah_interp.errors import SettingsError

DECODING: dict[str, dict[str, Any]] = {
    "yes_no": {"max_new_tokens": 8, "do_sample": False},
    "caption": {"max_new_tokens": 64, "do_sample": False},
}
"""How answers are decoded unless a study says otherwise: greedily."""

ONE_ANSWER = {"num_return_sequences", "return_dict_in_generate"}


def complete_decoding(
    decoding: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Add a study's settings to the defaults.

    Raises:
        SettingsError: If a task is unknown.

    Example:
        >>> complete_decoding({"caption": {"num_beams": 5}})["caption"]
        {'max_new_tokens': 64, 'do_sample': False, 'num_beams': 5}
    """
    unknown = set(decoding) - set(DECODING)
    if unknown:
        msg = f"decoding is given by task: expected {', '.join(DECODING)}, got "
        raise SettingsError(msg + ", ".join(sorted(unknown)))
    return {
        task: {**defaults, **decoding.get(task, {})}
        for task, defaults in DECODING.items()
    }


def check_decoding(model: Any, decoding: Mapping[str, Mapping[str, Any]]) -> None:
    """See that `generate` takes these settings: a wrong one would fail every item.

    Args:
        model: An LVLM.
        decoding: Arguments of `generate`, by task.

    Raises:
        SettingsError: If one is unknown or impossible.
    """
    config = model._module.generation_config
    known = set(config.to_dict()) | set(vars(config))
    for task, settings in decoding.items():
        unknown = sorted({*settings} - known | {*settings} & ONE_ANSWER)
        if unknown:
            msg = (
                f"decoding of {task}: expected settings of transformers' generate that "
                f"give one answer (max_new_tokens, num_beams, ...), got "
                f"{', '.join(unknown)}"
            )
            raise SettingsError(msg)
        try:
            type(config)(**settings).validate()
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            msg = f"decoding of {task} is impossible: {reason}"
            raise SettingsError(msg) from error
