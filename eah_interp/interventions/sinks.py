"""Vision sinks of every head of every layer, in one forward pass."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import nnsight
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask, Definition, SinkColumns, Tower
from eah_interp.arguments import by_name
from eah_interp.errors import (
    InputError,
    SettingsError,
    UnsupportedError,
    show_value,
)
from eah_interp.indices import check_choice, check_item, to_int
from eah_interp.interventions.donation import score_call
from eah_interp.interventions.eah import EAH
from eah_interp.interventions.in_tower import InTower, find_tower, tower_points
from eah_interp.interventions.intervene import attention_calls
from eah_interp.interventions.intervention import Intervention, list_layers, of_tower
from eah_interp.kernels.sinks import choose_donors, dense_heads
from eah_interp.lvlm.anatomy import check_model, name_model
from eah_interp.lvlm.inputs import check_encoding, is_encoding
from eah_interp.lvlm.spans import ImageSpan
from eah_interp.results import ModelResult
from eah_interp.shown_results import count, count_heads, list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class SinkMap(ModelResult):
    """Sink density of every head, and which image columns are its vision sinks.

    Attributes:
        layers: Decoder index of each entry of the layer axis.
        density: Share of the image columns that are vision sinks, in [0, 1].
        sinks: Which columns they are.
        columns: The image columns that were judged.
        donors: Each layer's densest head; -1 where no head has a sink.
        spans: Each item's images, with their patch grids.
        definition: How the score was defined.
        beta: The threshold.
        patches: The interventions that `edit` had put into the model, in their order;
            those of the vision tower as `InTower`.
        counted: Which image columns could be sinks: `"all"`, or those of one kind.
        tower: Whose heads these are. Of the `"vision"` tower items are the images and
            tiles that it sees, in order, columns their patches, and there are no spans.
    """

    layers: tuple[int, ...]
    density: Float[Tensor, "batch layer head"]
    sinks: Bool[Tensor, "batch layer head key"]
    columns: ColumnMask
    donors: Int[Tensor, "batch layer"]
    spans: tuple[tuple[ImageSpan, ...], ...]
    definition: Definition
    beta: float
    patches: tuple[Intervention | InTower, ...] = field(default=(), kw_only=True)
    counted: SinkColumns = field(default="all", kw_only=True)
    tower: Tower = field(default="language", kw_only=True)

    def frame(self) -> pd.DataFrame:
        """List every head: item, layer, head, name (`L1H7`), density, sinks, donor.

        Returns:
            One row for each item, layer and head.
        """
        n_items, _, n_heads = self.density.shape
        index = pd.MultiIndex.from_product(
            [range(n_items), self.layers, range(n_heads)],
            names=["item", "layer", "head"],
        )
        table = index.to_frame(index=False)
        table["name"] = "L" + table.layer.astype(str) + "H" + table["head"].astype(str)
        table["density"] = self.density.flatten().numpy()
        table["n_sinks"] = self.sinks.sum(-1).flatten().numpy()
        donors = self.donors.unsqueeze(-1).expand(-1, -1, n_heads)
        heads = torch.arange(n_heads).expand_as(donors)
        table["donor"] = (donors == heads).flatten().numpy()
        return table

    def _about(self) -> str:
        n_items, n_layers, n_heads = self.density.shape
        counts = self.columns.sum(-1).tolist() or [0]
        columns = " to ".join(map(str, sorted({min(counts), max(counts)})))
        of_kind = "" if self.counted == "all" else f", sinks of the {self.counted} kind"
        heads = count_heads(n_layers, n_heads) + of_tower(self.tower)
        what = f"{count(n_items, 'item')}, {heads}"
        return (
            f"{what}, {columns} image columns an item; definition {self.definition}, "
            f"beta {self.beta:g}{of_kind}; densest first"
        )

    def _settings(self) -> dict[str, Any]:
        """Name what was done to the model."""
        return {
            f"patch {number}" if len(self.patches) > 1 else "patch": one
            for number, one in enumerate(self.patches, 1)
        }

    def _first(self, k: int) -> pd.DataFrame:
        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            item, layer, head = cell
            return {
                "item": item,
                "name": f"L{self.layers[layer]}H{head}",
                "n_sinks": int(self.sinks[cell].sum()),
                "donor": int(self.donors[item, layer]) == head,
            }

        columns = {"density": self.density}
        return list_largest(columns, by="density", k=k, label=label)

    def top(self, k: int = 10) -> pd.DataFrame:
        """List each item's `k` densest heads, densest first.

        Args:
            k: How many heads.

        Returns:
            Rows of `frame()`.

        Raises:
            SettingsError: If `k` is below 1.
        """
        number = to_int(k)
        if number is None or number < 1:
            msg = f"k must be at least 1 head, got {show_value(k)}"
            raise SettingsError(msg)
        ordered = self.frame().sort_values(
            ["item", "density"], ascending=[True, False], kind="stable"
        )
        return ordered.groupby("item", sort=False).head(number).reset_index(drop=True)

    def densest(self, k: int = 10) -> tuple[str, ...]:
        """Name the `k` heads that are densest in the mean over items, densest first.

        Items without an image count for nothing.

        Args:
            k: How many heads.

        Returns:
            Names such as `L1H7`, as `Ablation(heads=...)` and `read_patterns` take.

        Raises:
            SettingsError: If `k` is not between 1 and the number of heads.
            InputError: If no item has an image.

        Example:
            >>> import eah_interp as eah
            >>> from eah_interp.toy import draw_scene
            >>> images = [draw_scene(number).pil() for number in range(3)]
            >>> sinks = score_sinks(eah.load(), images, "Is there a boat in the image?")
            >>> sinks.densest(3)
            ('L1H2', 'L0H2', 'L7H7')
        """
        number, n_heads = to_int(k), self.density[0].numel() if len(self.density) else 0
        seen = self.density[self.columns.any(-1)]
        if not len(seen):
            msg = "the heads of no image have a density: expected an item with an image"
            raise InputError(msg)
        if number is None or not 1 <= number <= n_heads:
            msg = f"k must be 1 to {n_heads} heads, got {show_value(k)}"
            raise SettingsError(msg)
        order = seen.double().mean(0).flatten().argsort(descending=True, stable=True)
        places = [divmod(place, seen.shape[-1]) for place in order[:number].tolist()]
        return tuple(f"L{self.layers[layer]}H{head}" for layer, head in places)

    def dense(self, gamma: float) -> Bool[Tensor, "batch layer head"]:
        """Mark the dense vision-sink heads, `density >= gamma`.

        Args:
            gamma: Least density; the paper looks at 0.15 and 0.20.

        Raises:
            SettingsError: If gamma is outside (0, 1].
        """
        flat = dense_heads(self.density.flatten(0, 1), gamma=gamma)
        return flat.view(self.density.shape)

    def plot(
        self,
        item: int = 0,
        *,
        donors: Mapping[int, int] | None = None,
        ax: "Axes | None" = None,
    ) -> "Figure":
        """Draw one item's sink density by layer and head.

        A dot marks the densest head of each layer; a frame, the donor of a patched
        layer.

        Args:
            item: Which batch item.
            donors: Donor head of each patched layer.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Returns:
            A matplotlib figure, one column wide.

        Raises:
            InputError: If there is no such item.
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.sinks import plot_density_map

        index = check_item(item, len(self.density))
        return plot_density_map(
            self.density[index],
            layers=self.layers,
            densest=self.donors[index].tolist(),
            donors=donors,
            ax=ax,
        )


@by_name
def score_sinks(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    definition: Definition = "visible",
    beta: float | None = None,
    layers: Iterable[int] | None = None,
    columns: SinkColumns = "all",
    tower: Tower = "language",
) -> SinkMap:
    """Score the vision sinks of every head in one forward pass.

    Patterns are streamed, never materialised; memory beyond the forward pass is a
    few blocks of query rows.

    Args:
        model: An LVLM, or its patched twin.
        images: An image or images, or a ready-made encoding.
        prompts: A prompt or prompts; "Describe the image." when None.
        definition: `"visible"`, `"paper"` or `"official"`.
        beta: Threshold of a vision sink; each definition's own by default.
        layers: Decoder layers to score; all that have heads when None.
        columns: Which image columns count as sinks: `"all"`, or those that are sinks of
            the vision `"tower"` or of the `"language"` model, as for `EAH`; densities
            stay shares of all image columns.
        tower: Whose heads: the `"language"` model's, or the `"vision"` tower's, under
            `definition="visible"` alone. Layers are the tower's then, items the images
            and tiles that it sees, and columns their patches, without class tokens.

    Returns:
        Densities, sinks, donors and image spans, on the CPU.

    Raises:
        InputError: If images or prompts do not fit.
        SettingsError: If a layer does not exist.
        ModelError: If a named layer has no heads.
        UnsupportedError: If the tower's sinks have no columns of their own here, or
            what is asked of the vision tower has a meaning in prompts only.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> sinks = score_sinks(model, random_image(), "Is there a cat?")
        >>> sinks.density.shape, len(sinks.top(3))
        (torch.Size([1, 3, 4]), 3)
    """
    check_model(model)
    check_choice("columns", columns, SinkColumns)
    check_choice("tower", tower, Tower)
    settings = EAH(definition=definition, beta=beta, columns=columns)
    beta = float(settings.beta or 0)
    in_tower = tower == "vision"
    anatomy = find_tower(model) if in_tower else model.anatomy
    if in_tower and (why := settings.why_not_in_tower()):
        msg = f'sinks of the vision tower (tower="vision") cannot be scored so: {why}'
        raise UnsupportedError(msg)
    wanted = sorted(anatomy.sites) if layers is None else list_layers(layers)
    sites = [anatomy.site(layer) for layer in wanted or (0,)]
    encoding: Mapping[str, Any]
    encoding = images if is_encoding(images) else model.encode(images, prompts)
    check_encoding(encoding)
    scored: list[Any] = []
    with torch.no_grad(), model.trace(**encoding) as tracer:
        scored = nnsight.save([])
        points = (
            tower_points(model, sites)
            if in_tower
            else attention_calls(model, layers=wanted, kind=columns)
        )
        for point in points:
            found = score_call(point.call, point.prompt, definition=definition)
            if columns != "all":
                found = found.only(point.sinks_of_kind())
            scored.append((found.density(beta), found.sinks(beta)))
            judged = nnsight.save(found.columns)
        tracer.stop()
    density = torch.stack([pair[0].cpu() for pair in scored], 1)
    donors = torch.stack([choose_donors(layer) for layer in density.unbind(1)], 1)
    return SinkMap(
        model=name_model(model),
        patches=tuple(getattr(model, "patches", ())),
        layers=tuple(wanted),
        density=density,
        sinks=torch.stack([pair[1].cpu() for pair in scored], 1),
        columns=judged.cpu(),
        donors=donors,
        spans=() if in_tower else model.spans(encoding),
        definition=definition,
        beta=beta,
        counted=columns,
        tower=tower,
    )
