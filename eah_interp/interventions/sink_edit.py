"""What sinks of one kind do: cut off, scaled, replaced, moved; or others instead."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask, SinkColumns
from eah_interp.errors import InputError, SettingsError, UnsupportedError, show_value
from eah_interp.indices import (
    check_choice,
    check_integer,
    to_ints,
    to_list,
)
from eah_interp.interventions.donation import column_priority
from eah_interp.interventions.intervention import (
    MOST,
    LayersIntervention,
    check_number,
    slice_layers,
)
from eah_interp.interventions.kind_marks import score_tower
from eah_interp.interventions.point import PatchPoint, RowIndex
from eah_interp.interventions.sink_choice import (
    choose_random,
    match_columns,
    pair_between_items,
    pair_in_item,
    prefer_places,
)
from eah_interp.interventions.stream import StreamPoint, TowerPoint
from eah_interp.interventions.tower_map import TowerMap, map_tower
from eah_interp.kernels.patterns import PatternBlock
from eah_interp.kernels.sink_kinds import SinkRule
from eah_interp.kernels.sinks import stream_received
from eah_interp.lvlm.anatomy import Anatomy, AttentionSite, StreamSite

Act = Literal["drop", "scale", "mean", "move", "swap"]

Which = Literal["sinks", "random", "norm", "attention"]

At = Literal["vision", "entering", "layers"]


@dataclass(frozen=True, kw_only=True)
class SinkEdit(LayersIntervention):
    """Settings of something done to the image columns that are sinks of one kind.

    `"drop"`: no other token attends to them, in some layers; what a row gave them goes
    to its other columns in proportion. `"scale"`: their residual stream times `factor`.
    `"mean"`: the mean of their image's other columns in its place, as a register that
    says nothing of its own. `"move"`: each changes places with an image column of its
    item that is no sink. `"swap"`: each changes places with one of the next item, items
    0 and 1, 2 and 3, and so on: as many as the item with fewer has, in order.

    What changes the stream does so once: where the prompt enters the decoder
    (`at="entering"`, which is what the projector made of them), where layers return it,
    or before the projector, at `vision_output` (`at="vision"`). There places are the
    tower's tokens, and `fit` has to find first which of them belong to which item and
    reach a column. Which places are sinks is what `find_sinks` would say by then:
    `"language"` sinks in a layer are those massive in what enters it, or, of what a
    layer returns, in that; at `"vision"`, tokens of a huge norm.

    Attributes:
        columns: The kind: `"tower"` or `"language"`.
        act: What is done.
        factor: Of `"scale"`.
        to: Where `"move"` puts the first sinks, counted through the item's image
            columns (at `"vision"`, its tokens) in order; the rest, and those whose
            place is a sink itself, go to places drawn at random.
        at: Where the stream is changed; `"drop"` changes attention calls.
        layers: Where it drops, or where layers return the stream.
        instead: The `"sinks"`, or as many of the item's other image columns, as
            controls: at `"random"`, or those nearest to them in the `"norm"` of their
            stream, or in the `"attention"` that they receive in that layer (`"drop"`).
        seed: Of what is drawn; an item has the same in every batch.
        map: Which of the tower's tokens becomes which column of these very items, as
            `fit` finds it for `at="vision"`; not written to files.

    Raises:
        SettingsError: If values do not go together, when the settings are made.

    Example:
        >>> SinkEdit(columns="tower", act="drop").controls()["like attention"].instead
        'attention'
        >>> SinkEdit(act="swap", at="vision").is_fitted
        False
    """

    kind: ClassVar[str] = "sink_edit"
    reads_images: ClassVar[bool] = True
    needs_prompt: ClassVar[bool] = True

    columns: Literal["tower", "language"] = "tower"
    act: Act = "drop"
    factor: float = 0.0
    to: tuple[int, ...] = ()
    at: At = "entering"
    instead: Which = "sinks"
    seed: int = 0
    map: TowerMap | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        LayersIntervention.__post_init__(self)
        check_choice("columns", self.columns, ("tower", "language"))
        check_choice("act", self.act, Act)
        check_choice("at", self.at, At)
        check_choice("instead", self.instead, Which)
        object.__setattr__(self, "seed", check_integer("seed", self.seed))
        factor = check_number("factor", self.factor, least=-MOST)
        object.__setattr__(self, "factor", factor)
        self._check_places()
        if self.act == "drop":
            return
        if self.instead == "attention":
            msg = (
                f'instead="attention" goes with act="drop", which is at attention '
                f'calls: got act={self.act!r}; use instead="norm" or "random"'
            )
            raise SettingsError(msg)
        if self.columns == "language" and self.at != "layers":
            msg = (
                "sinks of the language model are made by its layers, and "
                f'at={self.at!r} none has run: use at="layers" and name the layers'
            )
            raise SettingsError(msg)

    def _check_places(self) -> None:
        places = () if to_list(self.to) == [] else to_ints(self.to)
        fit = places is not None and all(0 <= place < 2**63 for place in places)
        if places is None or not fit or len(set(places)) != len(places):
            got = show_value(self.to)
            msg = f"to must be places of 0 or more, each once, got {got}"
            raise SettingsError(msg)
        object.__setattr__(self, "to", places)
        if self.to and self.act != "move":
            msg = f'to goes with act="move": got act={self.act!r}; leave it out'
            raise SettingsError(msg)
        if self.act == "drop" and self.at == "vision":
            msg = (
                'act="drop" is at attention calls, and at="vision" is behind those of '
                'the tower: leave `at` out to drop sinks in the decoder, or use "scale"'
            )
            raise SettingsError(msg)
        if not isinstance(self.map, TowerMap | None):
            msg = f"map must be a TowerMap, or None, got {show_value(self.map)}"
            raise SettingsError(msg)

    @property
    def acts_on_streams(self) -> bool:  # type: ignore[override]
        """Whether it changes the residual stream, and not attention calls."""
        return self.act != "drop"

    @property
    def reads_kind(self) -> SinkColumns:  # type: ignore[override]
        """Which kind of sinks it has to know before the decoder."""
        return "all" if self.at == "vision" else self.columns

    @property
    def is_fitted(self) -> bool:  # type: ignore[override]
        """Whether the tower's tokens are known, where they are changed."""
        return self.at != "vision" or self.map is not None

    def fit(self, model: Any, images: object, prompts: object) -> "SinkEdit":
        """Find which of the tower's tokens become which columns, `at="vision"`.

        Args:
            model: An LVLM.
            images: The images, as for `encode`; or a ready-made encoding.
            prompts: The prompts.

        Raises:
            InputError: If images or prompts do not fit, or there is no image.
            ModelError: If nothing of what the tower returns reaches the image tokens.
            UnsupportedError: If the model's tokens have no columns of their own.
        """
        if self.is_fitted:
            return self
        found = map_tower(model, images, prompts)
        if found.reason:
            msg = (
                f"sinks of the tower have no columns of their own in this model: "
                f"{found.reason}; expected tokens that become columns for "
                f'at="vision"; columns="language" at="layers" needs none'
            )
            raise UnsupportedError(msg)
        return dataclasses.replace(self, map=found)

    def of_item(self, item: int, n_items: int) -> "SinkEdit":
        """Find the settings that give an item alone the patch it has in its batch.

        Raises:
            UnsupportedError: If it depends on the items beside it.
        """
        if n_items > 1 and (self.act == "swap" or self.at == "vision"):
            why = (
                "its partner is the item beside it"
                if self.act == "swap"
                else "the tower's tokens were mapped for the whole batch"
            )
            msg = (
                f"item {item} of {n_items} is run alone, and the edit cannot be: "
                f"{why}; expected a call that runs the batch, such as a trace or a "
                "study"
            )
            raise UnsupportedError(msg)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Write the settings as a mapping that JSON can hold, without the map."""
        written = LayersIntervention.to_dict(self)
        del written["map"]
        return written

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
        if self.at == "vision":
            return [StreamSite(0, "vision")]
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
        elif self.act == "mean":
            others = (image & ~chosen)[..., None]
            total = (point.output * others).sum(1, keepdim=True)
            mean = total / others.sum(1, keepdim=True).clamp(min=1)
            some = others.any(1)  # an image of sinks alone has no mean
            point.write(mean.expand_as(point.output), chosen & some)
        else:
            n_keys = point.output.shape[1]
            flat = point.output.flatten(0, 1)
            self._check_partners(
                [out[m] for out, m in zip(point.output, image, strict=True)]
            )
            pairs = self._pair(sinks, image, chosen).to(flat.device)
            ends = pairs[..., 0] * n_keys + pairs[..., 1]
            new = exchange(flat, ends).view_as(point.output)
            point.write(new, torch.ones_like(image))

    def apply_to_tower(self, point: TowerPoint) -> None:
        """Do the same to the tower's tokens, before the projector."""
        assert self.map is not None
        point.check_map(self.map)
        tokens, links = point.tokens, self.map.links
        flat = tokens.flatten(0, -2)
        norms = flat.detach().float().norm(dim=-1).cpu()
        columns = self.map.columns
        thresholds, _ = score_tower(norms, links, columns, rule=SinkRule())
        image = torch.zeros(len(columns), len(flat), dtype=torch.bool)
        image[links[:, 1], links[:, 0]] = True
        sinks = image & (norms > thresholds[:, None])
        numbers = norms.expand(len(columns), -1) if self.instead == "norm" else None
        chosen = self._choose(sinks, image, numbers)
        if self.act == "scale":
            every = chosen.any(0).to(flat.device)[:, None]
            new = torch.where(every, flat * self.factor, flat)
        elif self.act == "mean":
            new = flat.clone()
            for own, others in zip(chosen, image & ~chosen, strict=True):
                if bool(others.any()):
                    new[own.to(flat.device)] = flat[others.to(flat.device)].mean(0)
        else:
            self._check_partners([flat[own.to(flat.device)] for own in image])
            pairs = self._pair(sinks, image, chosen)
            new = exchange(flat, pairs[..., 1].to(flat.device))
        point.write(new.view_as(tokens))

    def _pair(
        self, sinks: ColumnMask, image: ColumnMask, chosen: ColumnMask
    ) -> Int[Tensor, "pair 2 2"]:
        """Pair what changes places: item and place of both."""
        if self.act == "swap":
            return pair_between_items(chosen)
        priority = column_priority(image.cpu(), self.seed)
        priority = prefer_places(priority, image.cpu(), self.to)
        free = image & ~sinks & ~chosen
        return pair_in_item(chosen.cpu(), free.cpu(), priority)

    def _check_partners(self, contents: list[Tensor]) -> None:
        """Check that items to be swapped come in pairs of different images."""
        if self.act != "swap":
            return
        if len(contents) % 2:
            msg = (
                f'act="swap" is between items 0 and 1, 2 and 3, and so on: expected an '
                f"even number of items in one batch, got {len(contents)}"
            )
            raise InputError(msg)
        for item in range(0, len(contents), 2):
            one, other = contents[item : item + 2]
            if one.shape == other.shape and _is_same(one, other):
                msg = (
                    f"items {item} and {item + 1} show the same image, so that nothing "
                    "would be swapped: put items of different images next to each "
                    "other, and generate without beams"
                )
                raise InputError(msg)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two contents differ by no more than kernels do."""
    least = max(1e-4, 4 * torch.finfo(one.dtype).eps)
    return bool((one - other).abs().amax() <= least * one.abs().amax())


def _places(image: ColumnMask) -> list[Tensor]:
    """List the image places of each item, counted through the batch."""
    n_keys = image.shape[1]
    return [row.nonzero().flatten() + item * n_keys for item, row in enumerate(image)]


def exchange(
    content: Float[Tensor, "place d"], ends: Int[Tensor, "pair 2"]
) -> Float[Tensor, "place d"]:
    """Let pairs of places change their content.

    Args:
        content: What stands at each place.
        ends: The two places of each pair; no place is in two pairs.

    Example:
        >>> content = torch.tensor([[1.0], [2.0], [3.0]])
        >>> exchange(content, torch.tensor([[0, 2]])).flatten().tolist()
        [3.0, 2.0, 1.0]
    """
    new = content.clone()
    one, other = ends.unbind(-1)
    new[one], new[other] = content[other], content[one]
    return new


def _receive(point: PatchPoint) -> Tensor:
    """Sum the attention that each column receives, over rows and heads."""
    call = point.call.detach()
    parts = call.pattern_inputs(point.prompt.scored_mask)
    queries, keys = parts.pop("queries"), parts.pop("keys")
    rows = point.prompt.scored_mask[:, None, : queries.shape[2]]
    received = stream_received(queries, keys, groups=rows, **parts)
    return received.mean.mean(1)[:, 0]
