"""Mechanistic interpretability of vision sinks in large vision-language models.

    import eah_interp as eah

    model = eah.load()
    with model.trace(image, "Is there a boat in the image?"):
        patch = eah.intervene(model, eah.EAH())
        logits = model.output.logits.save()

A name is imported when it is first used: `eah-interp --help` needs no torch.
"""

import importlib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eah_interp.attribution import approximate_heads as approximate_heads
    from eah_interp.attribution import attribute_heads as attribute_heads
    from eah_interp.attribution import logit_lens as logit_lens
    from eah_interp.attribution import patch_heads as patch_heads
    from eah_interp.attribution import read_patterns as read_patterns
    from eah_interp.errors import EAHError as EAHError
    from eah_interp.interventions import EAH as EAH
    from eah_interp.interventions import PAI as PAI
    from eah_interp.interventions import VAR as VAR
    from eah_interp.interventions import Ablation as Ablation
    from eah_interp.interventions import EAHPatch as EAHPatch
    from eah_interp.interventions import LayerPatch as LayerPatch
    from eah_interp.interventions import SinkMap as SinkMap
    from eah_interp.interventions import Steer as Steer
    from eah_interp.interventions import edit as edit
    from eah_interp.interventions import intervene as intervene
    from eah_interp.interventions import score_sinks as score_sinks
    from eah_interp.lvlm import LVLM as LVLM
    from eah_interp.lvlm import ImagePart as ImagePart
    from eah_interp.lvlm import ImageSpan as ImageSpan
    from eah_interp.lvlm import load as load
    from eah_interp.lvlm import wrap as wrap
    from eah_interp.studies import Condition as Condition
    from eah_interp.studies import Study as Study

_FOLDERS = {
    "attribution": (
        "approximate_heads",
        "attribute_heads",
        "logit_lens",
        "patch_heads",
        "read_patterns",
    ),
    "errors": ("EAHError",),
    "interventions": (
        "EAH",
        "PAI",
        "VAR",
        "Ablation",
        "EAHPatch",
        "LayerPatch",
        "SinkMap",
        "Steer",
        "edit",
        "intervene",
        "score_sinks",
    ),
    "lvlm": ("LVLM", "ImagePart", "ImageSpan", "load", "wrap"),
    "studies": ("Condition", "Study"),
}
_HOME = {name: folder for folder, names in _FOLDERS.items() for name in names}

try:
    __version__ = _version("eah-interp")
except PackageNotFoundError:  # pragma: no cover - a source tree without an install
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name[:1].isupper() and name not in _HOME:
        # Methods of other papers stand in no list: a file each says its name.
        found = importlib.import_module(f"{__name__}.interventions.methods").METHODS
        if name in found:
            globals()[name] = found[name]
            return found[name]
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
