"""VHR: the heads that change most when the image is taken away, reinforced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import nnsight
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_choice, to_list
from eah_interp.interventions.directions import pair_runs
from eah_interp.interventions.head_lists import Head, HeadList, read_pairs
from eah_interp.interventions.intervene import attention_calls
from eah_interp.interventions.intervention import (
    Layers,
    LayersIntervention,
    check_number,
    find_layers,
)
from eah_interp.interventions.point import PatchPoint
from eah_interp.lvlm.anatomy import Anatomy, AttentionSite

Heads = Sequence[tuple[int, int] | str]
"""`(layer, head)` pairs, or names such as `"L3H7"`."""


@dataclass(frozen=True, kw_only=True)
class VHR(LayersIntervention):
    """Settings of VHR: which heads are reinforced in which item, and by how much.

    A head's VHD is how far what it returns in the prompt's last row moves (Euclidean
    distance) when the image is taken out of the prompt. In each layer, what the heads
    of more than the median VHD return is multiplied by `alpha`, in every row. A VHD
    counts as zero if it and the squared norm of what the head returns without the image
    both exceed the layer's mean by more than a standard deviation: such a head surges
    where it sees nothing. A layer's VHD is measured with the layers before it
    reinforced already. Source: He et al., ACL 2025, arXiv:2412.13949, equations 4, 6
    and 7; no release was at hand.

    Heads belong to an item: `VHR().fit(model, images, prompts)` finds them.

    Attributes:
        heads: Heads for every item, or a `HeadList`; None for each item's own.
        by_item: The heads of each item of a batch, in its order, as `fit` finds them.
        alpha: What their outputs are multiplied by.
        layers: In which layers `fit` chooses: indices, or a slice; the default is as
            deep in any decoder as the paper's, the second and the last 14, in one of
            32.
        outliers: Whether outliers are `"dropped"` from the choice, or `"kept"`.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> found = VHR(by_item=[["L1H2"], ["L1H0", "L2H3"]])
        >>> found.alpha, found.of_item(1, 2).by_item
        (2.0, (((1, 0), (2, 3)),))
    """

    kind: ClassVar[str] = "vhr"

    heads: Heads | HeadList | None = None
    by_item: Sequence[Heads] | None = None
    alpha: float = 2.0
    layers: Layers = "1,56%:"
    outliers: Literal["dropped", "kept"] = "dropped"

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        LayersIntervention.__post_init__(self)
        set_value = object.__setattr__
        set_value(self, "alpha", check_number("alpha", self.alpha, least=0.0))
        check_choice("outliers", self.outliers, ("dropped", "kept"))
        if self.heads is not None and not isinstance(self.heads, HeadList):
            set_value(self, "heads", tuple(sorted(read_pairs(self.heads))))
        if self.by_item is not None:
            items = to_list(self.by_item)
            if not items or self.heads is not None:
                msg = (
                    "by_item must be a list of heads for each item, without heads for "
                    f"all, got {show_value(self.by_item)}"
                )
                raise SettingsError(msg)
            set_value(self, "by_item", tuple(map(_read_item, items)))

    @classmethod
    def paper(cls, **changes: Any) -> "VHR":
        """Make the paper's settings for LLaVA: alpha 2, layer 1 and the last 14 of 32.

        Args:
            **changes: Settings that differ.
        """
        return cls(**{"layers": "1,-14:", **changes})

    @property
    def items(self) -> tuple[tuple[Head, ...], ...]:
        """The heads of each item; in one where they are the same; () before `fit`."""
        if self.heads is not None:
            return (tuple(sorted(read_pairs(self.heads))),)
        return self.by_item or ()  # type: ignore[return-value]

    def fit(self, model: Any, images: object, prompts: object) -> "VHR":
        """Find each item's heads, where none were given.

        Two forward passes more, the second with the layers before reinforced: its
        runs without the image stay as the model makes them.

        Args:
            model: An LVLM that no edit has patched.
            images: The images, as for `encode`; or a ready-made encoding.
            prompts: The prompts.

        Raises:
            InputError: If images or prompts do not fit, or a row has no image.
            UnsupportedError: If the model is a patched twin.
        """
        if self.items:
            return self
        found: list[tuple[Head, ...]] = []
        runs = pair_runs(model, images, prompts, batch_size=8, progress=False)
        for seen, unseen in runs:
            found += self._choose(model, seen, unseen)
        return replace(self, by_item=tuple(found))

    def _choose(
        self, model: Any, seen: Mapping[str, Any], unseen: Mapping[str, Any]
    ) -> list[tuple[Head, ...]]:
        """Choose the heads of each row of a batch."""
        layers = [site.layer for site in find_layers(self.layers, model.anatomy)]
        settings, without, chosen = self, {}, {}
        with torch.no_grad(), model.trace(**_inputs(unseen)) as tracer:
            without = nnsight.save({})
            for point in attention_calls(model, layers=layers):
                without[point.layer] = point.output[point.rows.last].float()
            tracer.stop()
        with torch.no_grad(), model.trace(**_inputs(seen)) as tracer:
            chosen = nnsight.save({})
            for point in attention_calls(model, layers=layers):
                own = point.output[point.rows.last].float()
                heads = choose_heads(
                    own,
                    without[point.layer],
                    drop_outliers=settings.outliers == "dropped",
                )
                chosen[point.layer] = heads
                where = point.rows.prompt[:, :, None] & heads[:, None]
                point.replace(settings.alpha * point.output, where)
            tracer.stop()
        n_rows = len(next(iter(chosen.values())))
        return [
            tuple(
                (layer, head)
                for layer in layers
                for head in chosen[layer][row].nonzero().flatten().tolist()
            )
            for row in range(n_rows)
        ]

    @property
    def is_fitted(self) -> bool:  # type: ignore[override]
        """Whether the heads are known."""
        return bool(self.items)

    def check_fitted(self) -> None:
        """Check that the heads are known.

        Raises:
            SettingsError: If not.
        """
        if not self.items:
            msg = (
                "VHR has no heads: expected those of these very items; call "
                ".fit(model, images, prompts), and use what it returns, or pass heads "
                "for all items"
            )
            raise SettingsError(msg)

    def find_sites(self, anatomy: Anatomy) -> list[AttentionSite]:
        """Find the layers that have a reinforced head, or will choose some."""
        if not self.items:
            return find_layers(self.layers, anatomy)
        layers = {layer for item in self.items for layer, _ in item}
        return [anatomy.site(layer) for layer in sorted(layers)]

    def check_fits(self, *, n_heads: int, d_model: int) -> None:
        """Check that the heads exist."""
        del d_model
        pairs = sorted({pair for item in self.items for pair in item})
        beyond = [f"L{layer}H{head}" for layer, head in pairs if head >= n_heads]
        if beyond:
            msg = (
                f"heads {', '.join(beyond)} do not exist: the model has heads 0 to "
                f"{n_heads - 1} in every layer"
            )
            raise SettingsError(msg)

    def of_item(self, item: int, n_items: int) -> "VHR":
        """Take an item's own heads."""
        if self.by_item is None:
            return self
        copies = self._count_copies(n_items)
        return replace(self, by_item=(self.by_item[item // copies],))

    def _count_copies(self, n_rows: int) -> int:
        """Count the rows of a batch that each item has: beams, or one.

        Raises:
            InputError: If the heads are those of other items.
        """
        n_items = len(self.items)
        if n_rows % n_items:
            msg = (
                f"there are heads of {n_items} items, and the batch has {n_rows} rows: "
                "expected those of these very items; call .fit(model, images, prompts) "
                "with them"
            )
            raise InputError(msg)
        return n_rows // n_items

    def apply_at(self, point: PatchPoint) -> None:
        """Reinforce one layer's heads."""
        n_rows, n_heads = point.call.queries.shape[:2]
        chosen = torch.zeros(len(self.items), n_heads, dtype=torch.bool)
        for item, pairs in enumerate(self.items):
            chosen[item, [head for layer, head in pairs if layer == point.layer]] = True
        copies = self._count_copies(n_rows)
        chosen = chosen.repeat_interleave(copies, 0).to(point.call.queries.device)
        where = point.rows_of(self.steps)[:, :, None] & chosen[:, None]
        point.replace(self.alpha * point.output, where)


def choose_heads(
    seeing: Float[Tensor, "batch head d_value"],
    blind: Float[Tensor, "batch head d_value"],
    *,
    drop_outliers: bool,
) -> Bool[Tensor, "batch head"]:
    """Choose the heads whose outputs an image moves most.

    Args:
        seeing: What heads return with the image.
        blind: What they return without it.
        drop_outliers: Whether heads that surge without the image count for nothing.

    Returns:
        True at the heads of more than the median divergence.

    Example:
        >>> import torch
        >>> seeing = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
        >>> choose_heads(seeing, torch.zeros(1, 4, 1), drop_outliers=False).tolist()
        [[False, False, True, True]]
    """
    divergence = (seeing - blind).norm(dim=-1)
    if drop_outliers:
        surge = blind.pow(2).sum(-1)
        outlier = _is_high(divergence) & _is_high(surge)
        divergence = divergence.masked_fill(outlier, 0.0)
    # The lower of two middle values: half of an even number of heads lie above it.
    chosen: Bool[Tensor, "batch head"] = (
        divergence > divergence.median(-1, keepdim=True).values
    )
    return chosen


def _is_high(values: Tensor) -> Tensor:
    return values > values.mean(-1, keepdim=True) + values.std(-1, keepdim=True)


def _inputs(encoding: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in encoding.items() if name != "labels"}
    return kept | {"use_cache": False}


def _read_item(heads: Any) -> tuple[Head, ...]:
    # An item may have none: every head of its layers may return the same.
    return tuple(sorted(read_pairs(heads))) if to_list(heads) != [] else ()
