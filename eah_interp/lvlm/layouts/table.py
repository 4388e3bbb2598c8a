"""The layout rule of each family, by its `config.model_type`, and the file it is in."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from eah_interp.lvlm.layouts import canvases, crops, grids, tiles
from eah_interp.lvlm.layouts.grids import EncodedImage, Layout

LAYOUTS: Mapping[str, Callable[[EncodedImage], Layout]] = MappingProxyType(
    {
        "aria": grids.lay_out_aria,
        "aya_vision": tiles.lay_out_aya,
        "blip-2": grids.lay_out_queries,
        "chameleon": crops.lay_out_chameleon,
        "cohere2_vision": tiles.lay_out_cohere2,
        "deepseek_vl": crops.lay_out_padded,
        "deepseek_vl_hybrid": crops.lay_out_padded,
        "emu3": grids.lay_out_emu3,
        "ernie4_5_vl_moe": grids.lay_out_grid_thw,
        "fuyu": canvases.lay_out_fuyu,
        "gemma3": tiles.lay_out_gemma3,
        "gemma4": grids.lay_out_gemma4,
        "glm46v": grids.lay_out_grid_thw,
        "glm4v": grids.lay_out_grid_thw,
        "glm4v_moe": grids.lay_out_grid_thw,
        "got_ocr2": crops.lay_out_got,
        "hunyuan_vl": grids.lay_out_hunyuan,
        "idefics2": grids.lay_out_perceiver,
        "idefics3": tiles.lay_out_idefics3,
        "inkling2": canvases.lay_out_inkling2,
        "instructblip": grids.lay_out_queries,
        "internvl": tiles.lay_out_internvl,
        "janus": crops.lay_out_padded,
        "kimi_k25": canvases.lay_out_kimi,
        "kosmos-2": grids.lay_out_kosmos2,
        "lfm2_vl": canvases.lay_out_lfm2,
        "lighton_ocr": grids.lay_out_pixtral,
        "llama4": canvases.lay_out_llama4,
        "llava": crops.lay_out_llava,
        "llava_next": crops.lay_out_llava_next,
        "llava_next_video": crops.lay_out_llava_next,
        "llava_onevision": crops.lay_out_onevision,
        "minimax_m3_vl": grids.lay_out_grid_thw,
        "mistral3": grids.lay_out_pixtral,
        "molmo2": crops.lay_out_molmo2,
        "muse_glimmer": grids.lay_out_muse,
        "ovis2": tiles.lay_out_ovis2,
        "paligemma": crops.lay_out_square,
        "phi4_multimodal": canvases.lay_out_phi4,
        "qwen2_5_vl": grids.lay_out_grid_thw,
        "qwen2_vl": grids.lay_out_grid_thw,
        "qwen3_5": grids.lay_out_grid_thw,
        "qwen3_5_moe": grids.lay_out_grid_thw,
        "qwen3_vl": grids.lay_out_grid_thw,
        "qwen3_vl_moe": grids.lay_out_grid_thw,
        "smolvlm": tiles.lay_out_idefics3,
        "video_llama_3": grids.lay_out_video_llama,
        "vipllava": crops.lay_out_llava,
    }
)
"""The layout rule of each `config.model_type`; others get `grids.lay_out_unknown`."""
