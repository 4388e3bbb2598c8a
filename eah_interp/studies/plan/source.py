"""Where a study's model comes from, so that another process can load the same."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from eah_interp.errors import EAHError, ModelError


@dataclass(frozen=True)
class ModelSource:
    """What `load` is given.

    Attributes:
        name: A Hub name or a folder; `toy`, or `toy:seed-1` and the like.
        dtype: Of the weights; the checkpoint's when None.
        device_map: Where it runs.
        attn_implementation: The attention backend.
        revision: A commit, tag or branch on the Hub.

    Example:
        >>> ModelSource("toy").load().n_layers
        8
    """

    name: str = "toy"
    dtype: str | None = None
    device_map: str | None = None
    attn_implementation: str | None = None
    revision: str | None = None

    def load(self) -> Any:
        """Load the model.

        Raises:
            ModelError: If it cannot be loaded, or not be worked on.
            InputError: If the folder does not exist.
            SettingsError: If there is no such toy.
        """
        from eah_interp.lvlm import load

        values = dataclasses.asdict(self)
        name = values.pop("name")
        chosen = {key: value for key, value in values.items() if value is not None}
        try:
            return load(None if name == "toy" else name, **chosen)
        except EAHError:
            raise
        except (OSError, ValueError) as error:  # what transformers raises
            reason = " ".join(str(error).split())
            msg = f"cannot load {name}: {reason}"
            raise ModelError(msg) from error
