"""What sinks of one kind do: cut off, scaled, or replaced; or other columns instead."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from eah_interp._types import ColumnMask, SinkColumns
from eah_interp.errors import SettingsError, UnsupportedError, show_value
from eah_interp.indices import check_choice, check_integer, to_float
from eah_interp.interventions.donation import column_priority
from eah_interp.interventions.intervention import LayersIntervention, slice_layers
from eah_interp.interventions.point import PatchPoint, RowIndex
from eah_interp.interventions.stream import StreamPoint
from eah_interp.kernels.patterns import PatternBlock
from eah_interp.kernels.sinks import stream_received
from eah_interp.lvlm.anatomy import Anatomy, AttentionSite, StreamSite

Act = Literal["drop", "scale", "mean"]

Which = Literal["sinks", "random", "norm", "attention"]

At = Literal["entering", "layers"]


@dataclass(frozen=True, kw_only=True)
class SinkEdit(LayersIntervention):
    """Settings of something done to the image columns that are sinks of one kind.

    `"drop"`: no other token attends to them, in some layers; what a row gave them goes
    to its other columns in proportion. `"scale"`: their residual stream times `factor`.
    `"mean"`: the mean of their image's other columns in its place, as a register that
    says nothing of its own. What changes the stream does so once, where the prompt
    enters the decoder (`at="entering"`, which is what the projector made of them), or
    where layers return it. Which columns are sinks is what `find_sinks` would say by
    then: `"language"` sinks in a layer are those massive in what enters it, or, of what
    a layer returns, in that.

    Attributes:
        columns: The kind: `"tower"` or `"language"`.
        act: What is done.
        factor: Of `"scale"`.
        at: Where the stream is changed; `"drop"` changes attention calls.
        layers: Where it drops, or where layers return the stream.
        instead: The `"sinks"`, or as many of the item's other image columns, as
            controls: at `"random"`, or those nearest to them in the `"norm"` of their
            stream, or in the `"attention"` that they receive in that layer (`"drop"`).
        seed: Of random columns; an item has the same in every batch.

    Raises:
        SettingsError: If values do not go together, when the settings are made.

    Example:
        >>> SinkEdit(columns="tower", act="drop").controls()["like attention"].instead
        'attention'
    """

    kind: ClassVar[str] = "sink_edit"
    reads_images: ClassVar[bool] = True
    needs_prompt: ClassVar[bool] = True

    columns: Literal["tower", "language"] = "tower"
    act: Act = "drop"
    factor: float = 0.0
    at: At = "entering"
    instead: Which = "sinks"
    seed: int = 0

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        LayersIntervention.__post_init__(self)
        check_choice("columns", self.columns, ("tower", "language"))
        check_choice("act", self.act, Act)
        check_choice("at", self.at, At)
        check_choice("instead", self.instead, Which)
        object.__setattr__(self, "seed", check_integer("seed", self.seed))
        factor = to_float(self.factor)
        if factor is None:
            msg = f"factor must be a number, got {show_value(self.factor)}"
            raise SettingsError(msg)
        object.__setattr__(self, "factor", factor)
        if self.act == "drop":
            return
        if self.instead == "attention":
            msg = (
                f'instead="attention" goes with act="drop", which is at attention '
                f'calls: got act={self.act!r}; use instead="norm" or "random"'
            )
            raise SettingsError(msg)
        if self.columns == "language" and self.at == "entering":
            msg = (
                'sinks of the language model are made by its layers, and at="entering" '
                'none has run: use at="layers" and name the layers'
            )
            raise SettingsError(msg)

    @property
    def acts_on_streams(self) -> bool:  # type: ignore[override]
        """Whether it changes the residual stream, and not attention calls."""
        return self.act != "drop"

    @property
    def reads_kind(self) -> SinkColumns:  # type: ignore[override]
        """Which kind of sinks it has to know."""
        return self.columns

    @property
    def reads_stream(self) -> bool:  # type: ignore[override]
        """Whether columns are chosen by their norm where a layer begins."""
        return self.act == "drop" and self.instead == "norm"

    def controls(self) -> Mapping[str, "SinkEdit"]:
        """List the same edit of as many other columns, by what they are chosen for."""
        fit: list[Which] = ["random", "norm"]
        if self.act == "drop":
            fit.append("attention")
        names = {"random": "random columns"}
        return {
            names.get(which, f"like {which}"): dataclasses.replace(self, instead=which)
            for which in fit
            if which != self.instead
        }

    def find_sites(self, anatomy: Anatomy) -> list[AttentionSite]:
        """Find the attention calls where it drops columns."""
        if self.acts_on_streams:
            return []
        return LayersIntervention.find_sites(self, anatomy)

    def find_streams(self, anatomy: Anatomy) -> list[StreamSite]:
        """Find where it changes the stream."""
        if self.at == "entering":
            return [StreamSite(0, "input")]
        layers = self.layers
        if isinstance(layers, str):
            layers = tuple(slice_layers(layers, anatomy))
        return [anatomy.stream_site(layer, "layer") for layer in layers]

    def learn(self, point: PatchPoint, stream: Tensor | None) -> ColumnMask:
        """Choose the columns, while the prompt is read."""
        sinks = point.marks.mask(point.stream)
        image = point.marks.prompt.image_mask.to(sinks.device)
        numbers = None
        if self.instead == "norm":
            assert stream is not None
            numbers = stream.detach().float().norm(dim=-1)
        elif self.instead == "attention":
            numbers = _receive(point)[:, : sinks.shape[1]]
        return self._choose(sinks, image, numbers)[:, : point.width]

    def _choose(
        self, sinks: ColumnMask, image: ColumnMask, numbers: Tensor | None
    ) -> ColumnMask:
        if self.instead == "sinks":
            return sinks
        if numbers is None:
            priority = column_priority(image.cpu(), self.seed).to(sinks.device)
            return choose_random(sinks, image, priority)
        return match_columns(sinks, image, numbers)

    def apply_at(self, point: PatchPoint) -> None:
        """Drop the columns from one layer's attention, but for their own rows."""
        assert point.kept is not None
        dropped = point.columns(point.kept)
        rows = point.rows_of(self.steps) & ~dropped[:, point.rows.own]
        rows = rows & dropped.any(-1, keepdim=True)

        def without(block: PatternBlock, part: RowIndex) -> Tensor:
            del part
            gone = dropped[:, None, None, : block.weights.shape[-1]]
            left = block.weights.masked_fill(gone, 0.0)
            total = block.weights.sum(-1, keepdim=True)
            # A learned sink's share stays what it was, relative to the rest.
            rest = left.sum(-1, keepdim=True) + (1 - total)
            return left / rest.clamp(min=torch.finfo(left.dtype).tiny)

        heads = point.call.n_heads
        point.attend(rows[:, :, None].expand(-1, -1, heads), change=without)

    def apply_to_stream(self, point: StreamPoint) -> None:
        """Scale the columns, or put the mean of the others in their place."""
        if point.first >= point.width:  # what is written after the prompt
            return
        if point.output.shape[1] != point.width:
            msg = (
                f"{point.output.shape[1]} tokens are read in one pass, and the prompt "
                f"has {point.width}: sinks are found in the prompt alone; generate "
                "without assisted decoding and without prefill_chunk_size"
            )
            raise UnsupportedError(msg)
        image = point.image_mask[:, point.rows.own]
        sinks = point.marks.mask(point.output)
        numbers = None
        if self.instead == "norm":
            numbers = point.output.detach().float().norm(dim=-1)
        chosen = self._choose(sinks, image, numbers) & image
        if self.act == "scale":
            point.write(point.output * self.factor, chosen)
            return
        others = (image & ~chosen)[..., None]
        total = (point.output * others).sum(1, keepdim=True)
        mean = total / others.sum(1, keepdim=True).clamp(min=1)
        some = others.any(1)  # an image of sinks alone has no mean
        point.write(mean.expand_as(point.output), chosen & some)


def _receive(point: PatchPoint) -> Tensor:
    """Sum the attention that each column receives, over rows and heads."""
    call = point.call.detach()
    parts = call.pattern_inputs(point.prompt.scored_mask)
    queries, keys = parts.pop("queries"), parts.pop("keys")
    rows = point.prompt.scored_mask[:, None, : queries.shape[2]]
    received = stream_received(queries, keys, groups=rows, **parts)
    return received.mean.mean(1)[:, 0]


def choose_random(sinks: ColumnMask, image: ColumnMask, priority: Tensor) -> ColumnMask:
    """Choose as many image columns that are no sinks, by the highest priority.

    Args:
        sinks: The sinks.
        image: The image columns.
        priority: A number for each column, drawn at random.

    Returns:
        The chosen columns: as many as there are sinks, or all others if fewer.

    Example:
        >>> sinks = torch.tensor([[True, False, False, False]])
        >>> image = torch.tensor([[True, True, True, False]])
        >>> priority = torch.tensor([[0.9, 0.2, 0.4, 0.8]])
        >>> choose_random(sinks, image, priority).tolist()
        [[False, False, True, False]]
    """
    free = image & ~sinks
    order = priority.masked_fill(~free, -torch.inf).argsort(-1, descending=True)
    rank = order.argsort(-1)
    return free & (rank < sinks.sum(-1, keepdim=True))


def match_columns(sinks: ColumnMask, image: ColumnMask, numbers: Tensor) -> ColumnMask:
    """Choose, for each sink, an image column that is none and has a number like it.

    Sinks of the largest numbers choose first, each the nearest that is left.

    Args:
        sinks: The sinks.
        image: The image columns.
        numbers: A number for each column.

    Returns:
        The chosen columns: as many as there are sinks, or all others if fewer.

    Example:
        >>> sinks = torch.tensor([[True, False, False, False]])
        >>> image = torch.tensor([[True, True, True, False]])
        >>> match_columns(sinks, image, torch.tensor([[9.0, 1.0, 5.0, 9.0]])).tolist()
        [[False, False, True, False]]
    """
    free = (image & ~sinks).cpu()
    values = numbers.float().cpu()
    chosen = torch.zeros_like(free)
    for item in range(len(free)):
        own = sinks[item].cpu().nonzero().flatten()
        for place in own[values[item, own].argsort(descending=True)].tolist():
            left = free[item] & ~chosen[item]
            if not bool(left.any()):
                break
            gap = (values[item] - values[item, place]).abs()
            chosen[item, int(gap.masked_fill(~left, torch.inf).argmin())] = True
    return chosen.to(sinks.device)
