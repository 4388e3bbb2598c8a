"""Every family that can be built: its name, and the file that holds it."""

from collections.abc import Mapping
from types import MappingProxyType

from eah_interp.testing import (
    _gemma,
    _latents,
    _llava,
    _patches,
    _qwen,
    _refused,
    _rows,
    _single,
    _tiles,
)
from eah_interp.testing._facts import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llava": _llava.LLAVA,
        "llava_next": _llava.LLAVA_NEXT,
        "qwen2_vl": _qwen.QWEN2_VL,
        "qwen2_5_vl": _qwen.QWEN2_5_VL,
        "llava_onevision": _llava.LLAVA_ONEVISION,
        "idefics3": _tiles.IDEFICS3,
        "internvl": _tiles.INTERNVL,
        "gemma3": _gemma.GEMMA3,
        "paligemma": _gemma.PALIGEMMA,
        "mistral3": _llava.MISTRAL3,
        "vipllava": _llava.VIPLLAVA,
        "qwen3_vl": _qwen.QWEN3_VL,
        "glm4v": _qwen.GLM4V,
        "llava_mistral": _llava.LLAVA_MISTRAL,
        "llava_pixtral": _llava.LLAVA_PIXTRAL,
        "llava_next_video": _llava.LLAVA_NEXT_VIDEO,
        "idefics2": _latents.IDEFICS2,
        "smolvlm": _tiles.SMOLVLM,
        "instructblip": _latents.INSTRUCTBLIP,
        "blip_2": _latents.BLIP_2,
        "paligemma2": _gemma.PALIGEMMA2,
        "gemma4": _gemma.GEMMA4,
        "aya_vision": _tiles.AYA_VISION,
        "cohere2_vision": _tiles.COHERE2_VISION,
        "ovis2": _tiles.OVIS2,
        "lighton_ocr": _llava.LIGHTON_OCR,
        "got_ocr2": _single.GOT_OCR2,
        "deepseek_vl": _single.DEEPSEEK_VL,
        "deepseek_vl_hybrid": _single.DEEPSEEK_VL_HYBRID,
        "janus": _single.JANUS,
        "chameleon": _single.CHAMELEON,
        "emu3": _single.EMU3,
        "qwen3_vl_moe": _qwen.QWEN3_VL_MOE,
        "qwen3_5": _qwen.QWEN3_5,
        "lfm2_vl": _patches.LFM2_VL,
        "glm46v": _qwen.GLM46V,
        "glm4v_moe": _qwen.GLM4V_MOE,
        "ernie4_5_vl_moe": _qwen.ERNIE,
        "kimi_k25": _patches.KIMI,
        "video_llama_3": _qwen.VIDEO_LLAMA_3,
        "muse_glimmer": _patches.MUSE_GLIMMER,
        "minimax_m3_vl": _patches.MINIMAX_M3_VL,
        "inkling2": _patches.INKLING2,
        "internvl_gpt_oss": _tiles.INTERNVL_GPT_OSS,
        "llama4": _rows.LLAMA4,
        "molmo2": _rows.MOLMO2,
        "aria": _latents.ARIA,
        "kosmos2": _latents.KOSMOS2,
        "fuyu": _rows.FUYU,
        "hunyuan_vl": _rows.HUNYUAN_VL,
        "phi4_multimodal": _rows.PHI4_MULTIMODAL,
        # refused
        "llama": _refused.LLAMA,
        "blip2_t5": _refused.BLIP2_T5,
        "mllama": _refused.MLLAMA,
    }
)
"""Every family that `tiny_lvlm` builds, by name: supported first, then the refused."""
