"""What a patch reports, as tables and figures.

The classes of patches call this file, and it knows none of them: they travel to
servers, and this does not.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from eah_interp.errors import SettingsError, UnsupportedError, show_value
from eah_interp.indices import check_item, to_int
from eah_interp.kernels.sinks import choose_donors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("item", "layer", "head", "name", "density", "donor", "patched")


# ---- Of EAH: who donated, and how dense in sinks each head was.


def list_layers_heads(layers: Sequence[Any]) -> pd.DataFrame:
    """List heads by item and layer; donors alone where nothing was scored."""
    rows: list[tuple[Any, ...]] = []
    for item in range(len(layers[0].donors) if layers else 0):
        for patch in layers:
            donor = int(patch.donors[item])
            if patch.density is None:
                rows.append(_donor_row(patch, item))
                continue
            for head, density in enumerate(patch.density[item].tolist()):
                place = (item, patch.layer, head, f"L{patch.layer}H{head}")
                rows.append((*place, density, head == donor, bool(patch.patched[item])))
    return _make_table(rows)


def list_donors(layers: Sequence[Any], k: int) -> pd.DataFrame:
    """List the donors of the first `k` items and layers."""
    n_items = len(layers[0].donors) if layers else 0
    places = [(patch, item) for item in range(min(n_items, k)) for patch in layers]
    return _make_table([_donor_row(patch, item) for patch, item in places[:k]])


def _donor_row(patch: Any, item: int) -> tuple[Any, ...]:
    donor = int(patch.donors[item])
    has_head = donor >= 0
    density = float("nan")
    if patch.density is not None and has_head:
        density = float(patch.density[item, donor])
    return (
        item,
        patch.layer,
        donor if has_head else None,
        f"L{patch.layer}H{donor}" if has_head else None,
        density,
        has_head,
        bool(patch.patched[item]),
    )


def _make_table(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    kinds = ("int64", "int64", "Int64", "object", "float64", "bool", "bool")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict(zip(COLUMNS, kinds, strict=True)))


def plot_densities(layers: Sequence[Any], item: int, *, ax: "Axes | None") -> "Figure":
    """Draw one item's sink densities by layer and head, donors framed.

    Raises:
        UnsupportedError: If no layer has densities.
        InputError: If there is no such item.
    """
    from eah_interp.viz.sinks import plot_density_map

    densities = {
        patch.layer: patch.density for patch in layers if patch.density is not None
    }
    if not densities:
        msg = (
            "there are no densities to draw: this donor rule needs no scores; "
            "eah_interp.score_sinks(...) has those of every head"
        )
        raise UnsupportedError(msg)
    index = check_item(item, len(layers[0].donors))
    density = torch.stack([one[index].float().cpu() for one in densities.values()])
    return plot_density_map(
        density,
        layers=list(densities),
        densest=choose_donors(density).tolist(),
        donors={patch.layer: int(patch.donors[index]) for patch in layers},
        ax=ax,
    )


# ---- Of other interventions: what was learned from the prompt.


def list_learned(layers: Sequence[int], learned: Mapping[int, Tensor]) -> pd.DataFrame:
    """List what was learned by layer, item and index; see `Patch.frame`."""
    return _join([_list_layer(layer, learned.get(layer)) for layer in layers])


def list_first_learned(
    layers: Sequence[int], learned: Mapping[int, Tensor], k: int
) -> pd.DataFrame:
    """List the first `k` rows of `list_learned`, zeros left out."""
    tables: list[pd.DataFrame] = []
    for layer in layers[:k]:
        value = learned.get(layer)
        table = _list_layer(layer, None if value is None else value[:1])
        kept = table[table["value"] != 0]
        tables.append((table if kept.empty else kept).head(k))
    return _join(tables).head(k)


def _list_layer(layer: int, value: Tensor | None) -> pd.DataFrame:
    if value is None:
        row: dict[str, list[Any]] = {"item": [None], "index": [None], "value": [None]}
        return _type_columns(pd.DataFrame({"layer": [layer]} | row))
    flat = value.detach().cpu().double().flatten(1)
    n_items, n_numbers = flat.shape
    index = pd.MultiIndex.from_product(
        [[layer], range(n_items), range(n_numbers)], names=["layer", "item", "index"]
    )
    table = index.to_frame(index=False)
    return _type_columns(table.assign(value=flat.flatten().numpy()))


def _type_columns(table: pd.DataFrame) -> pd.DataFrame:
    kinds = {"layer": "int64", "item": "Int64", "index": "Int64", "value": "float64"}
    return table.astype(kinds)


def _join(tables: list[pd.DataFrame]) -> pd.DataFrame:
    nothing: dict[str, list[Any]] = {n: [] for n in ("layer", "item", "index", "value")}
    if not tables:
        return _type_columns(pd.DataFrame(nothing))
    return pd.concat(tables, ignore_index=True)


def plot_learned(patch: Any, layer: int | None, *, ax: "Axes | None") -> "Figure":
    """Draw what one layer's patch learned; see `Patch.plot`.

    Raises:
        UnsupportedError: If nothing was learned.
        SettingsError: If that layer has learned nothing.
    """
    from eah_interp.viz.heads import plot_values

    if not patch.learned:
        name = type(patch.settings).__name__
        msg = (
            f"this {name} learned nothing from the prompt: there is nothing to draw; "
            "draw its effects, as in attribute_heads(..., patch=...).plot()"
        )
        raise UnsupportedError(msg)
    known = list(patch.learned)
    chosen = known[0] if layer is None else to_int(layer)
    if chosen not in known:
        named = ", ".join(map(str, known))
        msg = f"layer {show_value(layer)} has learned nothing: expected one of {named}"
        raise SettingsError(msg)
    values = patch.learned[chosen].detach().cpu().float().flatten(1)
    if not values.numel():
        raise UnsupportedError(f"layer {chosen} learned nothing: there are no items")
    title = f"learned in layer {chosen}"
    return plot_values(values, title=title, rows="item", columns="index", ax=ax)
