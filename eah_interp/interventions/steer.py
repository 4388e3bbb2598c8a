"""Steering: a direction added to what layers, or their MLPs, return."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from eah_interp.arguments import check_flag, check_mapping
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_choice
from eah_interp.interventions.directions import Directions, find_directions
from eah_interp.interventions.intervention import (
    MOST,
    Intervention,
    Layers,
    check_layers,
    check_number,
    slice_layers,
)
from eah_interp.interventions.stream import StreamPoint
from eah_interp.lvlm.anatomy import Anatomy, AttentionSite, StreamSite
from eah_interp.lvlm.prompt import RowMask

Place = Literal["mlp", "stream"]
"""What is steered: what MLPs return, or what layers do."""

Positions = Literal["all", "last", "image", "text"]
"""Which rows are steered."""


@dataclass(frozen=True, kw_only=True)
class Steer(Intervention):
    """Settings of steering: `x` is turned towards, or moved by, a vector `v`.

    With `preserve_norm` it is VISTA's: `x <- normalise(normalise(x) + s v / |v|) |x|`,
    where `s` is `scale`, times `1 + max(0, cos(x, -v))` with `adaptive`: what points
    away from `v` is turned more. Without it, `x <- x + scale v`. Both are computed in
    float32, and go on in the model's dtype. Source: Li et al., "The Hidden Life of
    Tokens", arXiv:2502.03628, and its release, github.com/LzVv123456/VISTA at dc62252.

    Without vectors, `fit` finds one for each item: what its image adds (`per_item` of
    `find_directions`), as VISTA does. Studies call it for every batch.

    Left out: the second half of VISTA, which mixes logits of earlier layers into the
    last ones. That is a rule of decoding and changes no activation.

    Attributes:
        vectors: What `find_directions` found, or `Directions` of your own; in a file
            also the folder that they were saved to. None for each item's own, which
            `fit` finds.
        layers: Indices, or a slice: those of it that have such an output.
        at: `"mlp"`: what MLPs add to the stream; `"stream"`: what layers return.
        scale: How far; negative for away from the vector.
        preserve_norm: Whether lengths stay as they are.
        adaptive: Whether what points away is turned more; only with `preserve_norm`.
        positions: `"all"` rows but padding; the `"last"` of the prompt and each of the
            answer's, which words are read from; those of `"image"` tokens, or of
            `"text"`.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> Steer().at, Steer().scale, Steer.vista(scale=0.17).adaptive
        ('mlp', 0.1, True)
    """

    kind: ClassVar[str] = "steer"
    acts_on_streams: ClassVar[bool] = True

    vectors: Directions | None = None
    layers: Layers = ":"
    at: Place = "mlp"
    scale: float = 0.1
    preserve_norm: bool = True
    adaptive: bool | None = None
    positions: Positions = "all"

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        Intervention.__post_init__(self)
        if not isinstance(self.vectors, Directions | None):
            got = show_value(self.vectors)
            msg = f"vectors must be Directions, or None, got {got}"
            raise SettingsError(msg)
        object.__setattr__(self, "layers", check_layers(self.layers))
        check_choice("at", self.at, Place)
        check_choice("positions", self.positions, Positions)
        scale = check_number("scale", self.scale, least=-MOST)
        object.__setattr__(self, "scale", scale)
        preserve = check_flag("preserve_norm", self.preserve_norm)
        adaptive = preserve if self.adaptive is None else self.adaptive
        adaptive = check_flag("adaptive", adaptive)
        object.__setattr__(self, "preserve_norm", preserve)
        object.__setattr__(self, "adaptive", adaptive)
        if adaptive and not preserve:
            msg = (
                "adaptive=True says how far vectors are turned: expected "
                "preserve_norm=True, got False; leave it out"
            )
            raise SettingsError(msg)

    @classmethod
    def vista(cls, **changes: Any) -> "Steer":
        """Make VISTA's steering: each item's image direction, at every MLP's output.

        The release's default is 0.1; the paper's for LLaVA-1.5 is 0.17.

        Args:
            **changes: Settings that differ.
        """
        return cls(**changes)

    @property
    def reads_images(self) -> bool:  # type: ignore[override]
        """Whether it acts at image tokens."""
        return self.positions == "image"

    @property
    def is_fitted(self) -> bool:  # type: ignore[override]
        """Whether there are vectors."""
        return self.vectors is not None

    def fit(self, model: Any, images: object, prompts: object) -> "Steer":
        """Find each item's direction, where none was given.

        Args:
            model: An LVLM that no edit has patched.
            images: The images, as for `encode`; or a ready-made encoding.
            prompts: The prompts.

        Raises:
            InputError: If images or prompts do not fit, or a row has no image.
            UnsupportedError: If the model is a patched twin.
        """
        if self.vectors is not None:
            return self
        found = find_directions(model, images, prompts, per_item=True)
        return replace(self, vectors=found)

    def find_sites(self, anatomy: Anatomy) -> list[AttentionSite]:
        """Find no attention call: none is changed."""
        del anatomy
        return []

    def find_streams(self, anatomy: Anatomy) -> list[StreamSite]:
        """Find the layers."""
        place: Literal["mlp", "layer"] = "mlp" if self.at == "mlp" else "layer"
        named = self.layers
        if isinstance(named, str):
            named = tuple(
                layer
                for layer in slice_layers(named, anatomy)
                if place == "layer" or anatomy.writers[layer].mlp is not None
            )
        if not named:
            msg = (
                f"layers {show_value(self.layers)} are none of the model's "
                f"{anatomy.n_layers} that can be steered at={self.at!r}; name them, as "
                "in layers=(1,)"
            )
            raise SettingsError(msg)
        sites = [anatomy.stream_site(layer, place) for layer in named]
        known = set(named if self.vectors is None else self.vectors.layers)
        missing = [site.layer for site in sites if site.layer not in known]
        if missing:
            msg = (
                f"there is no vector for layers {', '.join(map(str, missing))}: "
                f"expected one for each that is steered, got {show_value(known)}"
            )
            raise SettingsError(msg)
        return sites

    def check_fits(self, *, n_heads: int, d_model: int) -> None:
        """Check that vectors are as wide as the residual stream."""
        del n_heads
        if self.vectors is not None and self.vectors.values.shape[-1] != d_model:
            got = self.vectors.values.shape[-1]
            msg = f"vectors have {got} numbers: expected {d_model}, the stream's width"
            raise SettingsError(msg)

    def of_item(self, item: int, n_items: int) -> "Steer":
        """Take an item's own vectors."""
        if self.vectors is None or not self.vectors.per_item:
            return self
        _count_copies(n_items, self.vectors)
        return replace(self, vectors=self.vectors.of_item(item))

    def apply_to_stream(self, point: StreamPoint) -> None:
        """Steer what one layer, or its MLP, returns."""
        assert self.vectors is not None
        output = point.output
        vectors = self.vectors._at(point.layer, output.device)
        if self.vectors.per_item:
            copies = _count_copies(len(output), self.vectors)
            vectors = vectors.repeat_interleave(copies, 0)
        new = turn if self.preserve_norm else move
        steered = new(
            output.float(), vectors[:, None], scale=self.scale,
            adaptive=bool(self.adaptive),
        )  # fmt: skip
        point.write(steered, self._rows(point))

    def _rows(self, point: StreamPoint) -> RowMask:
        rows = point.rows_of(self.steps)
        if self.positions == "all":
            return rows
        if self.positions == "last":
            return rows & (point.rows.last | point.rows.answer)
        image = point.rows.image
        return rows & (image if self.positions == "image" else ~image)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Steer":
        """Make settings from a mapping, as JSON gives it back.

        Raises:
            SettingsError: If it is no mapping, or a key or value is unfit.
            InputError: If `vectors` names a folder that holds none.
        """
        values = dict(check_mapping("settings of Steer", values))
        if isinstance(values.get("vectors"), str):
            values["vectors"] = Directions.load(values["vectors"])
        if isinstance(values.get("vectors"), Mapping):
            values["vectors"] = Directions.from_dict(values["vectors"])
        made: Steer = super().from_dict(values)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Write the settings as a mapping that JSON can hold."""
        written = super().to_dict()
        if self.vectors is not None:
            written["vectors"] = self.vectors.to_dict()
        return written


def _count_copies(n_rows: int, vectors: Directions) -> int:
    """Count the rows of a batch that each item has: beams, or one.

    Raises:
        InputError: If the vectors are those of other items.
    """
    n_items = len(vectors.values)
    if n_rows % n_items:
        msg = (
            f"there are vectors of {n_items} items, and the batch has {n_rows} rows: "
            "expected those of these very items; call .fit(model, images, prompts) "
            "with them"
        )
        raise InputError(msg)
    return n_rows // n_items


def turn(stream: Tensor, vectors: Tensor, *, scale: float, adaptive: bool) -> Tensor:
    """Turn a stream towards vectors, and leave its lengths as they are.

    Args:
        stream: `[batch, row, d_model]`, float32.
        vectors: `[batch, 1, d_model]`; a zero turns nothing.
        scale: How far, in lengths of the stream.
        adaptive: Whether what points away is turned more, up to twice as far.
    """
    towards = scale * functional.normalize(vectors, dim=-1)
    if adaptive:
        away = functional.cosine_similarity(stream, -vectors, dim=-1)
        towards = (1 + away.clamp(min=0))[..., None] * towards
    length = stream.norm(dim=-1, keepdim=True)
    turned = functional.normalize(stream, dim=-1) + towards
    result: Tensor = functional.normalize(turned, dim=-1) * length
    return result


def move(stream: Tensor, vectors: Tensor, *, scale: float, adaptive: bool) -> Tensor:
    """Move a stream by vectors.

    Args:
        stream: `[batch, row, d_model]`, float32.
        vectors: `[batch, 1, d_model]`.
        scale: How many times the vector.
        adaptive: No matter here.
    """
    del adaptive
    return stream + scale * vectors
