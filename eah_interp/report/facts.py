"""What made a result: packages and the model."""

from collections.abc import Iterable
from typing import Any

from eah_interp.lvlm import LVLM

MOST_HASHED = 2_000_000_000
"""Weights of up to this many bytes are hashed: a few seconds."""


def list_versions() -> dict[str, str]:
    """Name what made a result."""
    import platform
    from importlib.metadata import version

    import eah_interp

    names: Iterable[str] = ("torch", "transformers", "nnsight")
    return {
        "eah_interp": eah_interp.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def list_model(model: LVLM, name: str | None) -> dict[str, Any]:
    """Say which model made a result."""
    return {
        "name": name or "toy",
        "class": type(model.config).__name__.removesuffix("Config"),
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "d_head": model.d_head,
        "device": str(next(model.parameters()).device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def describe_model(model: LVLM, name: str | None) -> dict[str, Any]:
    """Say which model made a result, its attention backend and its weights included.

    Weights are hashed up to `MOST_HASHED` bytes; beyond, it is said that they are not.
    """
    from eah_interp.studies.run.manifest import hash_weights

    module = model._module
    size = sum(t.nbytes for t in module.state_dict().values())
    text = module.config.get_text_config()
    hashed = f"not hashed: {size / 1e9:.1f} GB"
    return {
        **list_model(model, name),
        "attention": str(text._attn_implementation),
        "weights": hash_weights(module) if size <= MOST_HASHED else hashed,
    }
