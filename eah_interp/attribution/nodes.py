"""Nodes of a run by name: heads (`L3H7`) and other components (`L3.mlp`)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from eah_interp._types import Tower
from eah_interp.attribution.readouts import Target
from eah_interp.attribution.results import label_targets, name_head
from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import to_ints, to_list
from eah_interp.interventions.in_tower import find_tower
from eah_interp.lvlm.anatomy import Anatomy, block_paths

NodeName = tuple[int, int] | str
"""How a user names a node: `(3, 7)`, `"L3H7"` or `"L3.mlp"`."""

_HEAD = re.compile(r"L(\d+)H(\d+)")

_BLOCK = re.compile(r"L(\d+)\..+")


@dataclass(frozen=True)
class Node:
    """A head, or another component of a decoder layer.

    Attributes:
        name: `L3H7`, `L3.mlp`.
        layer: Decoder layer, counted from 0.
        head: Query head; None for another component.
        path: Dotted path of another component; None for a head.
    """

    name: str
    layer: int
    head: int | None
    path: str | None = None


def list_head_nodes(model: Any, *, tower: Tower = "language") -> tuple[Node, ...]:
    """List every head of every layer that has heads.

    Args:
        model: An LVLM.
        tower: Whose layers.

    Example:
        >>> import eah_interp as eah
        >>> nodes = list_head_nodes(eah.load())
        >>> len(nodes), nodes[0].name, nodes[-1].name
        (64, 'L0H0', 'L7H7')
    """
    anatomy = anatomy_of(model, tower)
    return tuple(
        Node(name_head(layer, head), layer, head)
        for layer in sorted(anatomy.sites)
        for head in range(anatomy.n_heads)
    )


def anatomy_of(model: Any, tower: Tower) -> Anatomy:
    """Find where a tower of a model keeps its parts.

    Raises:
        ModelError: If the vision tower is meant, and has no layers that attend.
    """
    found: Anatomy = find_tower(model) if tower == "vision" else model.anatomy
    return found


def list_block_nodes(model: Any) -> tuple[Node, ...]:
    """List the components of layers that are not heads: MLPs, linear attention.

    Example:
        >>> import eah_interp as eah
        >>> [node.name for node in list_block_nodes(eah.load())][:2]
        ['L0.mlp', 'L1.mlp']
    """
    nodes = []
    for path in block_paths(model._module, model.anatomy):
        name = "L" + path.removeprefix(f"{model.anatomy.layers}.")
        layer, _ = split_name(name)
        assert layer is not None
        nodes.append(Node(name, layer, None, path))
    return tuple(nodes)


def find_nodes(
    model: Any, wanted: Sequence[NodeName] | None, *, tower: Tower = "language"
) -> tuple[Node, ...]:
    """Find nodes by name; every head when None.

    Args:
        model: An LVLM.
        wanted: Heads as `(layer, head)` or `"L3H7"`, others as `"L3.mlp"`.
        tower: Whose layers; the vision tower has heads alone here.

    Returns:
        The nodes, in the order of their names.

    Raises:
        SettingsError: If there is none, one is named twice, or one does not exist.
        ModelError: If a layer has no heads.

    Example:
        >>> import eah_interp as eah
        >>> [node.name for node in find_nodes(eah.load(), [(3, 7), "L3.mlp"])]
        ['L3H7', 'L3.mlp']
    """
    if wanted is None:
        return list_head_nodes(model, tower=tower)
    listed = [wanted] if isinstance(wanted, str) else to_list(wanted)
    if listed is None:
        msg = 'heads must be a list of (3, 7), "L3H7" or "L3.mlp", got '
        raise SettingsError(msg + show_value(wanted))
    if not listed:
        msg = (
            "the set of heads is empty: expected at least one, such as (3, 7), "
            '"L3H7" or "L3.mlp"; leave it out for every head'
        )
        raise SettingsError(msg)
    anatomy = anatomy_of(model, tower)
    in_tower = tower == "vision"
    blocks = {} if in_tower else {node.name: node for node in list_block_nodes(model)}
    nodes = tuple(_find_node(anatomy, name, blocks) for name in listed)
    names = [node.name for node in nodes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"{', '.join(twice)} is named twice: expected every node once"
        raise SettingsError(msg)
    return nodes


def _find_node(anatomy: Anatomy, name: NodeName, blocks: dict[str, Node]) -> Node:
    if isinstance(name, str):
        if name in blocks:
            return blocks[name]
        found = _HEAD.fullmatch(name)
        if found is None:
            msg = (
                f"{name!r} is no node of this model: expected a head such as (3, 7) or "
                f'"L3H7", or one of {", ".join(blocks) or "no other components"}'
            )
            raise SettingsError(msg)
        name = (int(found[1]), int(found[2]))
    pair = to_ints(name)
    if pair is None or len(pair) != 2:
        msg = (
            f'a head is (layer, head), such as (3, 7) or "L3H7", got {show_value(name)}'
        )
        raise SettingsError(msg)
    layer, head = pair
    anatomy.site(layer)
    if not 0 <= head < anatomy.n_heads:
        msg = (
            f"{name_head(layer, head)} does not exist: the model has heads 0 to "
            f"{anatomy.n_heads - 1}"
        )
        raise SettingsError(msg)
    return Node(name_head(layer, head), layer, head)


def split_name(name: str) -> tuple[int | None, int | None]:
    """Read layer and head off a node's name; None where it has none.

    Example:
        >>> split_name("L3H7"), split_name("L3.mlp"), split_name("L3H7+L4H0")
        ((3, 7), (3, None), (None, None))
    """
    if found := _HEAD.fullmatch(name):
        return int(found[1]), int(found[2])
    if found := _BLOCK.fullmatch(name):
        return int(found[1]), None
    return None, None


def list_nodes(targets: Sequence[Target], names: Sequence[str]) -> pd.DataFrame:
    """List target, object, row, position, layer, head, name and kind of nodes.

    Rows are in the order of a flattened `[target node]`.

    Example:
        >>> table = list_nodes([Target("boat", 0, 7, "boat")], ["L1H0", "L1.mlp"])
        >>> table[["name", "kind"]].values.tolist()
        [['L1H0', 'head'], ['L1.mlp', 'block']]
    """
    index = pd.MultiIndex.from_product(
        [range(len(targets)), range(len(names))], names=["target", "which"]
    )
    table = index.to_frame(index=False)
    which = table.pop("which").to_numpy()
    places = [split_name(name) for name in names]
    table["layer"] = pd.array([places[i][0] for i in which], dtype="Int64")
    table["head"] = pd.array([places[i][1] for i in which], dtype="Int64")
    table["name"] = [names[i] for i in which]
    table["kind"] = [_kind_of(*places[i]) for i in which]
    return label_targets(table, targets)


def _kind_of(layer: int | None, head: int | None) -> str:
    if layer is None:
        return "set"
    return "block" if head is None else "head"


def grid_of_heads(
    names: Sequence[str], effects: Tensor
) -> tuple[tuple[int, ...], Tensor]:
    """Lay heads' numbers out by layer and head; NaN where there is none.

    Args:
        names: Names of nodes; those that are no heads are left out.
        effects: A number for each.

    Returns:
        The layers, and a `[layer head]` tensor.

    Raises:
        SettingsError: If no node is a head.

    Example:
        >>> grid_of_heads(["L1H1", "L1.mlp"], torch.tensor([2.0, 3.0]))
        ((1,), tensor([[nan, 2.]]))
    """
    places = [split_name(name) for name in names]
    heads = [(*place, i) for i, place in enumerate(places) if place[1] is not None]
    if not heads:
        msg = "there is no head to draw: expected nodes such as L3H7; see frame()"
        raise SettingsError(msg)
    layers = tuple(sorted({int(layer or 0) for layer, _, _ in heads}))
    width = 1 + max(int(head or 0) for _, head, _ in heads)
    grid = torch.full((len(layers), width), float("nan"))
    for layer, head, i in heads:
        grid[layers.index(int(layer or 0)), int(head or 0)] = effects[i]
    return layers, grid
