"""The same prefill in several ways, each on modules of its own, weights shared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import nnsight
import torch
from released_style import ReleasedPatch, use_released_style
from shaped_models import FIRST_IMAGE_POSITION, twin
from torch import Tensor
from transformers import PreTrainedModel

import eah_interp as eah

Run = Callable[[], Tensor]
"""One prefill; returns the logits."""


@dataclass(frozen=True)
class Variant:
    """One way to run a prefill.

    Attributes:
        label: What the tables call it.
        kind: What grows with its depth: plain layers, traced layers, or eager ones.
        n_patched: How many layers it patches.
        settings: EAH's settings, if it uses ours.
    """

    label: str
    kind: str
    n_patched: int = 0
    settings: eah.EAH | None = None


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "plain": Variant("plain forward", "plain"),
        "trace": Variant("bare trace", "trace"),
        "wrapped": Variant("bare trace of `eah.wrap`, hook points verified", "trace"),
        "eah_1": Variant("EAH, layer 1", "trace", 1, eah.EAH(layers=(1,))),
        "eah_2": Variant("EAH, layers 0 and 1", "trace", 2, eah.EAH(layers=(0, 1))),
        "paper": Variant("EAH.paper(), layer 1", "trace", 1, eah.EAH.paper()),
        "fixed": Variant(
            "fixed donor (no scores), layer 1", "trace", 1, eah.EAH(donor=1)
        ),
        "official": Variant(
            "EAH.official(layers=(1,))", "trace", 1, eah.EAH.official(layers=(1,))
        ),
        "released": Variant("released style, layer 1", "eager", 1),
    }
)
TIMED = ("plain", "trace", "wrapped", "eah_1", "eah_2", "paper", "fixed", "released")
"""What the tables show by default; `official` is there to be checked."""


def make_run(
    name: str,
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    *,
    n_layers: int | None = None,
    attention: str = "sdpa",
) -> Run:
    """Build one variant around a model's weights.

    Args:
        name: A name in `VARIANTS`.
        model: A model that nnsight has not seen; it stays so.
        inputs: What every run reads.
        n_layers: Keep only the first layers; all when None.
        attention: Attention of the decoder; the released style is always eager.

    Returns:
        The prefill, without gradients and without a cache.
    """
    variant = VARIANTS[name]
    own = twin(model, n_layers=n_layers)
    if name == "released":
        images = (inputs["input_ids"][0] == own.config.image_token_id).nonzero()
        patch = ReleasedPatch(FIRST_IMAGE_POSITION + 1, int(images.max()) + 1)
        return _run_plain(use_released_style(own, layer=1, patch=patch), inputs)
    own.set_attn_implementation({"text_config": attention})
    if name == "plain":
        return _run_plain(own, inputs)
    if name == "trace":
        return _run_trace(nnsight.NNsight(own), inputs)
    if variant.settings is None:
        return _run_trace(eah.wrap(own), inputs)
    return _run_patched(eah.wrap(own), inputs, variant.settings)


def _run_plain(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Run:
    @torch.no_grad()
    def run() -> Tensor:
        logits: Tensor = model(**inputs, use_cache=False).logits
        return logits

    return run


def _run_trace(model: nnsight.NNsight, inputs: Mapping[str, Tensor]) -> Run:
    @torch.no_grad()
    def run() -> Tensor:
        with model.trace(**inputs, use_cache=False):
            logits: Tensor = model.output.logits.save()
        return logits

    return run


def _run_patched(
    model: eah.LVLM, inputs: Mapping[str, Tensor], settings: eah.EAH
) -> Run:
    @torch.no_grad()
    def run() -> Tensor:
        with model.trace(**inputs, use_cache=False):
            eah.intervene(model, settings)
            logits: Tensor = model.output.logits.save()
        return logits

    return run
