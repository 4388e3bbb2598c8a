"""VAR: attention moved from sink tokens to the image, in heads that look there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import nnsight
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.arguments import by_name, check_count
from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import check_choice
from eah_interp.interventions.intervention import (
    Intervention,
    Layers,
    check_indices,
    check_layers,
    check_number,
    find_layers,
)
from eah_interp.interventions.point import PatchPoint, RowIndex
from eah_interp.kernels.patterns import PatternBlock
from eah_interp.kernels.replacements import redistribute_pattern, sink_values
from eah_interp.lvlm.anatomy import (
    Anatomy,
    AttentionSite,
    check_model,
    envoy_at,
    walk_sites,
)
from eah_interp.lvlm.prompt import prompt_of_worker

SINK_DIMS: Mapping[str, tuple[int, ...]] = {
    "llama-2-7b": (1415, 2533),  # LLaVA-1.5-7B: paper and release
    "llama-2-13b": (2100, 4743),  # LLaVA-1.5-13B: release
    "qwen2-vl-7b": (458, 2570),  # paper
    "internvl2-8b": (3584,),  # paper
}
"""Sink dimensions that the paper and its release name, by language model."""

Task = Literal["general", "hallucination", "vision_centric"]

RHO: Mapping[str, float] = {
    "general": 0.8,
    "hallucination": 0.5,
    "vision_centric": 0.9,
}
"""The paper's rho by task."""


@dataclass(frozen=True, kw_only=True)
class VAR(Intervention):
    """Settings of VAR: which tokens are sinks, which heads give, and how much.

    A token is a sink in a layer if what enters the layer there is massively activated,
    `max over d in sink_dims of |x[d]| / rms(x) >= tau`. Sinks are found in the prompt.
    In every row of a text token, in every head that looks at the image enough and at
    its sinks little (`rho`, `min_image`), a share of what sinks get goes to the other
    image columns, in proportion to what they get. Source: Kang et al., "See What You
    Are Told", ICLR 2025, arXiv:2503.03321, sections 4 and 5, and its release,
    github.com/seilk/VisAttnSink at 98e62d6.

    Attributes:
        sink_dims: Dimensions of the residual stream in which sinks are massive: a
            property of the language model, which nothing else here can know. None is
            refused: `find_sink_dims` measures them, `SINK_DIMS` has the paper's.
        tau: Least activation of a sink.
        rho: Least share of a head's image attention that goes to no sink.
        share: How much of a sink's attention is moved; the paper's p.
        min_image: Least attention to the image.
        layers: Indices, or a slice; the paper leaves the last layer alone.
        lone_sinks: Where a layer has no sink in the image: whether text sinks `"give"`
            all the same, or are `"kept"`.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> VAR.paper("llama-2-7b").sink_dims, VAR.paper("llama-2-7b").rho
        ((1415, 2533), 0.5)
    """

    kind: ClassVar[str] = "var"
    reads_images: ClassVar[bool] = True
    needs_prompt: ClassVar[bool] = True
    reads_stream: ClassVar[bool] = True

    sink_dims: tuple[int, ...] | None = None
    tau: float = 20.0
    rho: float = 0.5
    share: float = 0.6
    min_image: float = 0.2
    layers: Layers = ":-1"
    lone_sinks: Literal["give", "kept"] = "give"

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        Intervention.__post_init__(self)
        set_value = object.__setattr__
        if self.sink_dims is None:
            msg = (
                "VAR needs sink_dims, the dimensions in which the language model's "
                "sink tokens are massive: expected those of your model, got none; "
                "eah_interp.interventions.find_sink_dims(model, image) measures them "
                "(the rows whose activation is 20 or more: a model may have none), "
                f"and VAR.paper(name) has the paper's, of {', '.join(SINK_DIMS)}"
            )
            raise SettingsError(msg)
        set_value(self, "sink_dims", check_indices("sink_dims", self.sink_dims))
        set_value(self, "layers", check_layers(self.layers))
        set_value(self, "tau", check_number("tau", self.tau, least=0.0))
        for name in ("rho", "share", "min_image"):
            value = check_number(name, getattr(self, name), least=0.0, most=1.0)
            set_value(self, name, value)
        check_choice("lone_sinks", self.lone_sinks, ("give", "kept"))

    @property
    def dims(self) -> tuple[int, ...]:
        """The sink dimensions, which are there since the settings were made."""
        assert self.sink_dims is not None
        return self.sink_dims

    @classmethod
    def paper(
        cls,
        language_model: str = "llama-2-7b",
        *,
        task: Task = "hallucination",
        **changes: Any,
    ) -> "VAR":
        """Make the paper's settings: tau 20, p 0.6, rho by task, not the last layer.

        Args:
            language_model: A key of `SINK_DIMS`.
            task: `"general"` (rho 0.8), `"hallucination"` (0.5), `"vision_centric"`
                (0.9).
            **changes: Settings that differ.

        Raises:
            SettingsError: If the paper has no settings for it.
        """
        known = isinstance(language_model, str) and language_model in SINK_DIMS
        if not known or not isinstance(task, str) or task not in get_args(Task):
            msg = (
                f"no settings for {show_value(language_model)} and "
                f"{show_value(task)}: expected one of {', '.join(SINK_DIMS)}, and "
                f"{', '.join(get_args(Task))}; for other models, VAR(sink_dims=...) "
                "with what find_sink_dims finds"
            )
            raise SettingsError(msg)
        named = {"sink_dims": SINK_DIMS[language_model], "rho": RHO[task]}
        return cls(**{**named, **changes})

    @classmethod
    def official(cls, language_model: str = "llama-2-7b", **changes: Any) -> "VAR":
        """Make the settings that the release runs with.

        It differs from the paper: sinks keep the share p = 0.6, so 0.4 is moved;
        layers 0 and 1 have no sinks, the last layer has (its exception is never
        reached); and a layer without sinks in the image is left alone.

        Args:
            language_model: A key of `SINK_DIMS`.
            **changes: Settings that differ.
        """
        released = {"share": 0.4, "layers": "2:", "lone_sinks": "kept"}
        return cls.paper(language_model, **{**released, **changes})

    def find_sites(self, anatomy: Anatomy) -> list[AttentionSite]:
        """Find the layers."""
        return find_layers(self.layers, anatomy)

    def check_fits(self, *, n_heads: int, d_model: int) -> None:
        """Check that the sink dimensions exist."""
        del n_heads
        beyond = [dim for dim in self.dims if dim >= d_model]
        if beyond:
            msg = (
                f"sink_dims {beyond} do not exist: the model's stream has dimensions 0 "
                f"to {d_model - 1}; find_sink_dims finds its own"
            )
            raise SettingsError(msg)

    def learn(self, point: PatchPoint, stream: Tensor | None) -> Tensor:
        """Find the prompt's sink tokens."""
        assert stream is not None
        with torch.no_grad():
            values = sink_values(stream, self.dims)
            # Rows past the prompt's are guesses of assisted decoding: no columns of it.
            return ((values >= self.tau) & point.rows.prompt)[:, : point.width]

    def apply_at(self, point: PatchPoint) -> None:
        """Move attention in the text rows of one layer."""
        assert point.kept is not None
        sinks = point.columns(point.kept)
        rows = point.rows_of(self.steps) & ~point.rows.image
        if self.lone_sinks == "kept":
            rows = rows & (sinks & point.image_mask).any(-1, keepdim=True)

        def moved(block: PatternBlock, part: RowIndex) -> Tensor:
            del part
            width = block.weights.shape[-1]
            return redistribute_pattern(
                block.weights,
                image_mask=point.image_mask[:, :width],
                sinks=sinks[:, :width],
                rho=self.rho,
                share=self.share,
                min_image=self.min_image,
            )

        where = rows[:, :, None].expand(-1, -1, point.call.n_heads)
        point.attend(where, change=moved)


# ---- The dimensions in which a language model's sink tokens are massively activated.


MASSIVE = 20.0
"""From here on an activation is massive: the paper's threshold."""


@by_name
def find_sink_dims(
    model: Any, images: object, prompts: object = None, *, k: int = 10
) -> pd.DataFrame:
    """List the dimensions in which the first token is most massively activated.

    Sink dimensions belong to the language model and are the same at its first token
    (BOS) and at the image's sinks (Kang et al., arXiv:2503.03321, section 4). Measured
    is `|x[d]| / rms(x)` at each item's first token, where the residual stream enters
    each layer that attends. A dimension that is a sink's stands far above the rest, in
    all layers but the first and the last: the paper's threshold is 20. A model may
    have none. `eah_interp.finders.score_sink_dims` has intervals, halves and a null.

    Args:
        model: An LVLM.
        images: An image or images.
        prompts: A prompt or prompts; "Describe the image." when None.
        k: How many dimensions to list.

    Returns:
        Columns `dim`, `activation` (median over layers and items) and `layers` (share
        of layers and items in which it is 20 or more), largest first.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> find_sink_dims(eah.load(), random_image(), k=3).columns.tolist()
        ['dim', 'activation', 'layers']
    """
    k = check_count("k", k)
    check_model(model)
    values = read_activations(model, model.encode(images, prompts)).flatten(0, 1)
    table = pd.DataFrame(
        {
            "dim": range(values.shape[1]),
            "activation": values.median(0).values.numpy(),
            "layers": (values >= MASSIVE).float().mean(0).numpy(),
        }
    )
    ordered = table.sort_values("activation", ascending=False, kind="stable")
    return ordered.head(k).reset_index(drop=True)


Tokens = Literal["first", "images"]
"""At the first token, or the largest of the item's image tokens."""


def read_activations(
    model: Any, encoding: Mapping[str, Any], *, at: Tokens = "first"
) -> Float[Tensor, "layer item d_model"]:
    """Read `|x[d]| / rms(x)` where the residual stream enters each layer that attends.

    Args:
        model: An LVLM.
        encoding: What it is asked.
        at: At each item's first token, or the largest of its image tokens; 0 where
            there is none.
    """
    sites = list(walk_sites(model.anatomy))
    inputs = {name: value for name, value in encoding.items() if name != "labels"}
    found: list[Any] = []
    with torch.no_grad(), model.trace(**inputs) as tracer:
        found = nnsight.save([])
        prompt = prompt_of_worker(model)
        first = prompt.token_mask.float().argmax(-1)
        for site in sites:
            x = envoy_at(model, site.layer_path).input.float()
            if at == "first":
                x = x[torch.arange(len(x)), first]
            size = x.abs() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            if at == "images":
                size = (size * prompt.image_mask[..., None]).amax(1)
            found.append(size)
        tracer.stop()
    return torch.stack([x.cpu() for x in found])
