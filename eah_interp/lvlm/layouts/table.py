"""Which layout rule each family follows."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from eah_interp.lvlm.layouts import (
    canvases,
    crops,
    grids,
    tiles,
)
from eah_interp.lvlm.layouts import (
    crops as single,
)
from eah_interp.lvlm.layouts import (
    grids as rows,
)
from eah_interp.lvlm.layouts import (
    tiles as marked,
)
from eah_interp.lvlm.layouts.grids import Layout, Picture

LAYOUTS: Mapping[str, Callable[[Picture], Layout]] = MappingProxyType(
    {
        "aria": rows.lay_out_aria,
        "aya_vision": marked.lay_out_aya,
        "blip-2": grids.lay_out_queries,
        "chameleon": single.lay_out_chameleon,
        "cohere2_vision": marked.lay_out_cohere2,
        "deepseek_vl": single.lay_out_padded,
        "deepseek_vl_hybrid": single.lay_out_padded,
        "emu3": single.lay_out_emu3,
        "ernie4_5_vl_moe": grids.lay_out_grid_thw,
        "fuyu": canvases.lay_out_fuyu,
        "gemma3": tiles.lay_out_gemma3,
        "gemma4": single.lay_out_gemma4,
        "glm46v": grids.lay_out_grid_thw,
        "glm4v": grids.lay_out_grid_thw,
        "glm4v_moe": grids.lay_out_grid_thw,
        "got_ocr2": single.lay_out_got,
        "hunyuan_vl": rows.lay_out_hunyuan,
        "idefics2": grids.lay_out_perceiver,
        "idefics3": tiles.lay_out_idefics3,
        "inkling2": canvases.lay_out_inkling2,
        "instructblip": grids.lay_out_queries,
        "internvl": tiles.lay_out_internvl,
        "janus": single.lay_out_padded,
        "kimi_k25": canvases.lay_out_kimi,
        "kosmos-2": rows.lay_out_kosmos2,
        "lfm2_vl": canvases.lay_out_lfm2,
        "lighton_ocr": grids.lay_out_pixtral,
        "llama4": canvases.lay_out_llama4,
        "llava": crops.lay_out_llava,
        "llava_next": crops.lay_out_llava_next,
        "llava_next_video": crops.lay_out_llava_next,
        "llava_onevision": crops.lay_out_onevision,
        "minimax_m3_vl": grids.lay_out_grid_thw,
        "mistral3": grids.lay_out_pixtral,
        "molmo2": rows.lay_out_molmo2,
        "muse_glimmer": rows.lay_out_muse,
        "ovis2": marked.lay_out_ovis2,
        "paligemma": crops.lay_out_square,
        "phi4_multimodal": canvases.lay_out_phi4,
        "qwen2_5_vl": grids.lay_out_grid_thw,
        "qwen2_vl": grids.lay_out_grid_thw,
        "qwen3_5": grids.lay_out_grid_thw,
        "qwen3_5_moe": grids.lay_out_grid_thw,
        "qwen3_vl": grids.lay_out_grid_thw,
        "qwen3_vl_moe": grids.lay_out_grid_thw,
        "smolvlm": tiles.lay_out_idefics3,
        "video_llama_3": rows.lay_out_video_llama,
        "vipllava": crops.lay_out_llava,
    }
)
"""The layout rule of each `config.model_type`; others get `grids.lay_out_unknown`."""
