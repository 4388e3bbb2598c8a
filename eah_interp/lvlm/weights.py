"""Weights that a checkpoint lacks: refused, where transformers makes random ones."""

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel

from eah_interp.errors import ModelError


@contextlib.contextmanager
def checking_weights(*, allow_missing: bool) -> Iterator[None]:
    """Check that what is loaded in the block has all of its weights from a checkpoint.

    nnsight and the pipelines of transformers load by `from_pretrained` and drop what
    it tells of missing weights, so it is asked there. What the model's class knows to
    be absent from checkpoints (tied weights, say) is not missing.

    Args:
        allow_missing: Let them pass.

    Raises:
        ModelError: If weights are missing, or have another shape.
    """
    plain = PreTrainedModel.__dict__["from_pretrained"]
    infos: list[dict[str, Any]] = []

    def load_and_tell(cls: type, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.pop("output_loading_info", False)
        # Those of another shape too: by itself transformers raises for them, and its
        # pipeline then tries one class after the other.
        kwargs["ignore_mismatched_sizes"] = True
        loaded = plain.__get__(None, cls)(*args, output_loading_info=True, **kwargs)
        infos.append(loaded[1])
        return loaded if asked else loaded[0]

    PreTrainedModel.from_pretrained = classmethod(load_and_tell)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = plain
    # The last is the whole model: a part that it loads for itself comes before.
    if infos and not allow_missing:
        _refuse_missing(infos[-1])


def _refuse_missing(info: dict[str, Any]) -> None:
    found = []
    missing = sorted(info["missing_keys"])
    if missing:
        found.append(f"it lacks {len(missing)} ({_list_some(missing)})")
    shapes = [
        f"{name}: {tuple(held)} in place of {tuple(wanted)}"
        for name, held, wanted in sorted(info["mismatched_keys"])
    ]
    if shapes:
        found.append(f"{len(shapes)} have another shape ({_list_some(shapes)})")
    if found:
        msg = (
            "expected a checkpoint with all of the model's weights: "
            f"{' and '.join(found)}, which would be random; get the whole checkpoint "
            "of this architecture, or pass allow_missing=True"
        )
        raise ModelError(msg)


def _list_some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
