"""Plain transformers with plain PyTorch hooks at every point that has a name here.

Where a family keeps what is written down here by hand, from its source: what finds it
in the package is not used. The attention call is met where `tests/oracle_forward.py`
meets it, in the modelling module's eager function.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.oracle_forward import decoder_attentions

POST_NORMS = {
    "gemma3": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "paligemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma4": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "muse_glimmer": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4v": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    "glm46v": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    "inkling2": ("post_attention_convolution", "post_mlp_convolution"),
    "blip_2": ("self_attn", "fc2"),
    "lfm2_vl": ("self_attn", "feed_forward"),
    "llama4": ("self_attn", "feed_forward"),
    "kosmos2": ("self_attn", "ffn"),
}
"""Who returns what attention and MLP add, where it is not `self_attn` and `mlp`."""

FINAL_NORMS = {
    "blip_2": "final_layer_norm",
    "kosmos2": "layer_norm",
    "fuyu": "final_layernorm",
    "lfm2_vl": "embedding_norm",
}
"""The norm beside the layers, where it is not `norm`."""

TOWERS = {
    "model.visual.blocks": (
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"),
        *("glm4v", "glm46v", "glm4v_moe"),
    ),
    "model.vision_tower.blocks": ("ernie4_5_vl_moe",),
    "model.vision_tower.encoder.layers": (
        *("llava", "llava_next", "llava_onevision", "vipllava", "llava_mistral"),
        *("llava_next_video", "gemma3", "gemma4", "paligemma", "paligemma2"),
        *("aya_vision", "cohere2_vision", "lfm2_vl", "aria"),
    ),
    "model.vision_tower.encoder.layer": ("internvl", "internvl_gpt_oss"),
    "model.vision_tower.transformer.layers": ("mistral3", "llava_pixtral"),
    "model.vision_encoder.transformer.layers": ("lighton_ocr",),
    "model.vision_tower.transformer.encoder.layers": ("ovis2",),
    "model.vision_tower.layers": (
        *("got_ocr2", "kimi_k25", "muse_glimmer", "minimax_m3_vl", "inkling2"),
        *("molmo2", "hunyuan_vl"),
    ),
    "model.vision_model.encoder.layers": (
        *("idefics2", "idefics3", "smolvlm", "deepseek_vl", "deepseek_vl_hybrid"),
        *("janus", "video_llama_3"),
    ),
    "vision_model.encoder.layers": ("blip_2", "instructblip"),
    "vision_model.model.layers": ("llama4",),
    "vision_model.model.encoder.layers": ("kosmos2",),
    "model.embed_tokens_extend.image_embed.img_processor.encoder.layers": (
        "phi4_multimodal",
    ),
}
"""Where the vision tower's layers are."""

NO_TOWER = ("chameleon", "emu3", "fuyu")

TOWER_OF = {family: path for path, families in TOWERS.items() for family in families}

Point = tuple[str, int]
"""A name and a layer."""


def first(value: Any) -> Tensor:
    """Return the tensor, or the first of a tuple."""
    return value[0] if isinstance(value, tuple) else value


class Hooked:
    """A plain model under hooks: what was seen, and what is added where."""

    def __init__(
        self, family: str, plain: nn.Module, add: Mapping[Point, Tensor] | None = None
    ) -> None:
        self.family, self.plain = family, plain
        self.add = dict(add or {})
        self.seen: dict[Point, list[Tensor]] = {}
        self.entered = torch.empty(0)

    def meet(self, point: Point, value: Tensor) -> Tensor:
        """Note a value, and give it back with what is to be added."""
        self.seen.setdefault(point, []).append(value)
        if point not in self.add:
            return value
        return value + self.add[point].to(value.dtype)

    def run(self, encoding: Mapping[str, Tensor], **settings: Any) -> Any:
        """Run a forward pass, or a generation, under the hooks."""
        function = self.plain.generate if settings else self.plain
        with torch.no_grad(), self.hooked():
            return function(**encoding, **(settings or {"use_cache": False}))

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Hook every point of the model."""
        attentions = decoder_attentions(self.plain)
        names = {id(module): name for name, module in self.plain.named_modules()}
        some = next(iter(attentions.values()))
        path = names[id(some)].rsplit(".", 2)[0]
        writers = POST_NORMS.get(self.family, ("self_attn", "mlp"))
        handles = []
        for layer, whole in enumerate(self.plain.get_submodule(path)):
            handles.append(self.entering(whole, layer))
            if layer in attentions:
                writer = whole.get_submodule(writers[0])
                handles.append(self.returning(writer, "attentions_output", layer))
            writer = whole.get_submodule(writers[1])
            handles.append(self.returning(writer, "mlps_output", layer))
            handles.append(self.returning(whole, "layers_output", layer))
        owner = self.plain.get_submodule(path.rpartition(".")[0])
        norm = getattr(owner, FINAL_NORMS.get(self.family, "norm"))
        handles.append(self.returning(norm, "ln_final", 0))
        if self.family in TOWER_OF:
            tower = self.plain.get_submodule(TOWER_OF[self.family])
            for layer, block in enumerate(tower):
                handles.append(self.returning(block, "vision_layers_output", layer))
        try:
            with self.attending(attentions):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def returning(self, module: nn.Module, name: str, layer: int) -> Any:
        """Hook what a module returns."""

        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            own = first(output)
            added = name in ("attentions_output", "mlps_output")
            wide = own.view_as(self.entered) if added else own
            new = self.meet((name, layer), wide).view_as(own)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        # before transformers' own, which record what readers of CLIP towers take
        return module.register_forward_hook(hook, prepend=True)

    def entering(self, module: nn.Module, layer: int) -> Any:
        """Hook what a layer is given."""

        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            self.entered = given
            new = self.meet(("layers_input", layer), given)
            if args:
                return (new, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": new}

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    @contextlib.contextmanager
    def attending(self, attentions: dict[int, nn.Module]) -> Iterator[None]:
        """Meet queries, keys, values, patterns and what heads return."""
        layer_of = {id(module): layer for layer, module in attentions.items()}
        modelling = sys.modules[type(next(iter(attentions.values()))).__module__]
        eager = modelling.eager_attention_forward

        def attend(module, query, key, value, attention_mask, **settings):
            layer = layer_of.get(id(module))
            if layer is None:  # a vision tower's attention in the same file
                return eager(module, query, key, value, attention_mask, **settings)
            query = self.meet(("queries", layer), query)
            key = self.meet(("keys", layer), key)
            value = self.meet(("values", layer), value)
            _, pattern = eager(module, query, key, value, attention_mask, **settings)
            pattern = self.meet(("attention_probabilities", layer), pattern)
            groups = query.shape[1] // value.shape[1]
            mixed = torch.stack(
                [pattern[:, h] @ value[:, h // groups] for h in range(query.shape[1])],
                dim=1,
            )
            mixed = self.meet(("heads_output", layer), mixed)
            return mixed.transpose(1, 2).contiguous(), pattern

        modelling.eager_attention_forward = attend
        try:
            yield
        finally:
            modelling.eager_attention_forward = eager
