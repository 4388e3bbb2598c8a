"""Every family that can be built, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from eah_interp.testing._facts import Family
from eah_interp.testing._gemma import GEMMA3, GEMMA4, MISTRAL3, PALIGEMMA, PALIGEMMA2
from eah_interp.testing._latents import ARIA, BLIP_2, IDEFICS2, INSTRUCTBLIP, KOSMOS2
from eah_interp.testing._llava import (
    LIGHTON_OCR,
    LLAVA,
    LLAVA_MISTRAL,
    LLAVA_NEXT,
    LLAVA_NEXT_VIDEO,
    LLAVA_ONEVISION,
    LLAVA_PIXTRAL,
    VIPLLAVA,
)
from eah_interp.testing._mixed import (
    INKLING2,
    INTERNVL_GPT_OSS,
    LFM2_VL,
    MINIMAX_M3_VL,
    QWEN3_5,
)
from eah_interp.testing._qwen import (
    ERNIE,
    GLM4V,
    GLM4V_MOE,
    GLM46V,
    KIMI,
    MUSE_GLIMMER,
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_VL,
    QWEN3_VL_MOE,
    VIDEO_LLAMA_3,
)
from eah_interp.testing._refused import BLIP2_T5, LLAMA, MLLAMA
from eah_interp.testing._rows import FUYU, HUNYUAN_VL, PHI4_MULTIMODAL
from eah_interp.testing._single import (
    CHAMELEON,
    DEEPSEEK_VL,
    DEEPSEEK_VL_HYBRID,
    EMU3,
    GOT_OCR2,
    JANUS,
)
from eah_interp.testing._tiles import (
    AYA_VISION,
    COHERE2_VISION,
    IDEFICS3,
    INTERNVL,
    LLAMA4,
    MOLMO2,
    OVIS2,
    SMOLVLM,
)

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
    LLAVA_MISTRAL,
    LLAVA_PIXTRAL,
    LLAVA_NEXT_VIDEO,
    IDEFICS2,
    SMOLVLM,
    INSTRUCTBLIP,
    BLIP_2,
    PALIGEMMA2,
    GEMMA4,
    AYA_VISION,
    COHERE2_VISION,
    OVIS2,
    LIGHTON_OCR,
    GOT_OCR2,
    DEEPSEEK_VL,
    DEEPSEEK_VL_HYBRID,
    JANUS,
    CHAMELEON,
    EMU3,
    QWEN3_VL_MOE,
    QWEN3_5,
    LFM2_VL,
    GLM46V,
    GLM4V_MOE,
    ERNIE,
    KIMI,
    VIDEO_LLAMA_3,
    MUSE_GLIMMER,
    MINIMAX_M3_VL,
    INKLING2,
    INTERNVL_GPT_OSS,
    LLAMA4,
    MOLMO2,
    ARIA,
    KOSMOS2,
    FUYU,
    HUNYUAN_VL,
    PHI4_MULTIMODAL,
)
_REFUSED = (LLAMA, BLIP2_T5, MLLAMA)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.name: family for family in (*_SUPPORTED, *_REFUSED)}
)
"""Every family that `tiny_lvlm` builds, by name: supported first, then the refused."""
