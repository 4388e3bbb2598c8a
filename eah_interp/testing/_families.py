"""Every family that can be built, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from eah_interp.testing._facts import Family
from eah_interp.testing._llava import LLAVA, LLAVA_NEXT, LLAVA_ONEVISION, VIPLLAVA
from eah_interp.testing._qwen import GLM4V, QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from eah_interp.testing._refused import BLIP2_T5, LLAMA, MLLAMA
from eah_interp.testing._square import GEMMA3, MISTRAL3, PALIGEMMA
from eah_interp.testing._tiled import IDEFICS3, INTERNVL

_SUPPORTED = (
    LLAVA,
    LLAVA_NEXT,
    QWEN2_VL,
    QWEN2_5_VL,
    LLAVA_ONEVISION,
    IDEFICS3,
    INTERNVL,
    GEMMA3,
    PALIGEMMA,
    MISTRAL3,
    VIPLLAVA,
    QWEN3_VL,
    GLM4V,
)
_REFUSED = (LLAMA, BLIP2_T5, MLLAMA)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.name: family for family in (*_SUPPORTED, *_REFUSED)}
)
"""Every family that `tiny_lvlm` builds, by name: supported first, then the refused."""
