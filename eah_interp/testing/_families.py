"""Every family that can be built, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from eah_interp.testing._codes import CHAMELEON, EMU3
from eah_interp.testing._crops import LLAMA4, MOLMO2
from eah_interp.testing._extras import INKLING2, INTERNVL_GPT_OSS, MINIMAX_M3_VL
from eah_interp.testing._facts import Family
from eah_interp.testing._gemma import GEMMA4, PALIGEMMA2
from eah_interp.testing._latents import BLIP_2, IDEFICS2, INSTRUCTBLIP
from eah_interp.testing._llava import LLAVA, LLAVA_NEXT, LLAVA_ONEVISION, VIPLLAVA
from eah_interp.testing._markers import AYA_VISION, COHERE2_VISION, OVIS2, SMOLVLM
from eah_interp.testing._merged import GLM46V, KIMI, MUSE_GLIMMER, VIDEO_LLAMA_3
from eah_interp.testing._mixed import LFM2_VL, QWEN3_5
from eah_interp.testing._moe import ERNIE, GLM4V_MOE, QWEN3_VL_MOE
from eah_interp.testing._queries import ARIA, KOSMOS2
from eah_interp.testing._qwen import GLM4V, QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from eah_interp.testing._refused import BLIP2_T5, LLAMA, MLLAMA
from eah_interp.testing._rows import FUYU, HUNYUAN_VL, PHI4_MULTIMODAL
from eah_interp.testing._square import GEMMA3, MISTRAL3, PALIGEMMA
from eah_interp.testing._tiled import IDEFICS3, INTERNVL
from eah_interp.testing._variants import (
    LIGHTON_OCR,
    LLAVA_MISTRAL,
    LLAVA_NEXT_VIDEO,
    LLAVA_PIXTRAL,
)
from eah_interp.testing._whole import DEEPSEEK_VL, DEEPSEEK_VL_HYBRID, GOT_OCR2, JANUS

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
