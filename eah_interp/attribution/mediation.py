"""Which later heads and MLPs carry a broadcast's effect to an object's logit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from eah_interp.arguments import by_name, check_flag
from eah_interp.attribution.averages import ObjectResult
from eah_interp.attribution.cases import Ask, as_case, asks
from eah_interp.attribution.chunks import show_items
from eah_interp.attribution.nodes import (
    Node,
    NodeName,
    find_nodes,
    grid_of_heads,
    list_block_nodes,
    list_head_nodes,
    list_nodes,
)
from eah_interp.attribution.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.replay import check_batch_size
from eah_interp.attribution.results import (
    check_finite_result,
    check_target,
    label_cell,
    largest,
    name_targets,
)
from eah_interp.attribution.runs import record
from eah_interp.attribution.sides import check_broadcast, gather, split_items, take_item
from eah_interp.attribution.variants import given_by, measure_variants
from eah_interp.errors import SettingsError
from eah_interp.interventions.eah import EAH
from eah_interp.lvlm.anatomy import name_model
from eah_interp.shown_results import count, list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- What of a broadcast's effect goes through each later node: `trace_mediators`.


LEAST_TOTAL = 1e-4
"""Effects below this share of the target's size (or of 1) are too small to divide."""


@dataclass(frozen=True, eq=False, repr=False)
class Mediation(ObjectResult):
    """Which later nodes carry a broadcast's effect.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        eah: The broadcast.
        nodes: The nodes that were set back: `L3H7`, `L3.mlp`.
        plain: The targets without the broadcast.
        patched: The targets with it.
        restored: The part of the effect that disappears when a node is set back to
            its plain output, in the targets' units.
        unmediated: The effect that is left when all the nodes are set back together.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    eah: EAH
    nodes: tuple[str, ...]
    plain: TargetValues
    patched: TargetValues
    restored: Float[Tensor, "target node"]
    unmediated: TargetValues

    @property
    def total(self) -> TargetValues:
        """What the broadcast does to each target."""
        return self.patched - self.plain

    @property
    def shares(self) -> Float[Tensor, "target node"]:
        """`restored` as a share of the total; NaN where the total is next to nothing.

        A share is undefined where the broadcast moves a target by less than 1e-4 of
        its value (or of 1): parts of an effect that is not there.
        """
        size = self.plain.abs().clamp(min=1.0)
        nothing = self.total.abs() < LEAST_TOTAL * size
        shares = self.restored / self.total[:, None]
        return shares.masked_fill(nothing[:, None], float("nan"))

    def frame(self) -> pd.DataFrame:
        """List every node of every target.

        Returns:
            Columns `object present row position target layer head name kind restored
            share total unmediated`; `kind` is `head` or `block`.
        """
        table = list_nodes(self.targets, self.nodes)
        table["restored"] = self.restored.double().flatten().numpy()
        table["share"] = self.shares.double().flatten().numpy()
        table["total"] = self.total.double().numpy()[table["target"]]
        table["unmediated"] = self.unmediated.double().numpy()[table["target"]]
        return table

    def _compared(self) -> str:
        return "restored"

    def _about(self) -> str:
        return (
            f"{name_targets(self.targets)}, {count(len(self.nodes), 'node')}, metric "
            f"{self.metric}; what carries most first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            return label_cell(self.targets, cell[0]) | {"name": self.nodes[cell[1]]}

        columns = {"restored": self.restored, "share": self.shares}
        columns["total"] = self.total[:, None].expand_as(self.restored)
        return list_largest(columns, by="restored", k=k, label=label)

    def top(self, k: int = 10) -> pd.DataFrame:
        """List each target's `k` nodes that carry most, either sign.

        Raises:
            SettingsError: If `k` is below 1.
        """
        return largest(self.frame(), k, by="restored")

    def plot(self, target: int = 0, *, ax: "Axes | None" = None) -> "Figure":
        """Draw what heads carry, by layer and head; other nodes are in `frame()`.

        Args:
            target: Which target.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
            SettingsError: If there is no such target, or no node is a head.
        """
        from eah_interp.viz.heads import plot_heads

        check_target(self.targets, target)
        layers, grid = grid_of_heads(self.nodes, self.restored[target])
        title = f"effect on {self.targets[target].label}"
        return plot_heads({"carried by": grid}, layers=layers, title=title, ax=ax)


@by_name
@asks
def trace_mediators(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    eah: EAH | None = None,
    nodes: Sequence[NodeName] | Literal["all"] = "all",
    batch_size: int | None = None,
    progress: bool = False,
    **asked: Unpack[Ask],
) -> Mediation:
    """Trace which later heads and MLPs carry a broadcast's effect on an object.

    In the patched run each later node's output is set back to its plain value, at
    every position, and what comes after it runs on. The part of the effect that
    disappears is what goes through the node: by itself or by way of later nodes (an
    indirect effect; Vig et al., 2020). Paths overlap, so parts do not sum to the
    whole. What is left where all nodes are set back at once goes by no node: straight
    from the patched layer, along the residual stream.

    Mediators are the heads after the first patched layer, other patched layers'
    excepted (those are changed by the broadcast itself), and the components that are
    not heads (MLPs, experts, linear attention) from that layer on.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        eah: The broadcast; `EAH()` when None.
        nodes: The nodes that are set back: `(layer, head)`, `"L3H7"`, `"L3.mlp"`.
        batch_size: Most copies in one forward pass; by device and memory when None.
            Halved, with a warning, when memory runs out.
        progress: Whether to show a bar.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        The effect, and what of it each node carries, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, or the caption names no object.
        SettingsError: If a word cannot be spelled, or a layer, head or node does not
            exist, or a node cannot carry the effect.
        ModelError: If a layer has no heads.
        UnsupportedError: If items of a batch are not independent in this model.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = trace_mediators(
        ...     eah.load(), random_image(), objects=["fish"], nodes=["L2H0", "L1.mlp"]
        ... )
        >>> found.restored.shape, found.shares.shape
        (torch.Size([1, 2]), torch.Size([1, 2]))
    """
    eah = EAH() if eah is None else eah
    check_batch_size(batch_size)
    progress = check_flag("progress", progress)
    check_broadcast(model, eah)
    chosen = find_mediators(model, eah, nodes)
    case = as_case(model, images, prompts, **asked)
    variants = [chosen, *((node,) for node in chosen)]
    plain, patched, changes = [], [], []
    for item, indices, (settings,) in show_items(
        split_items(case, eah), progress=progress and case.n_items > 1
    ):
        alone = take_item(case, item)
        before = record(model, alone)
        run = before if settings is None else record(model, alone, settings)
        found = measure_variants(
            model,
            run,
            variants,
            given_by(before),
            batch_size=batch_size,
            progress=progress and case.n_items == 1,
            label="mediators",
        )
        plain.append((indices, before.values))
        patched.append((indices, run.values))
        changes.append((indices, found.T))
    n_targets = len(case.readout.targets)
    change = gather(changes, n_targets)
    values = {"plain": gather(plain, n_targets), "patched": gather(patched, n_targets)}
    return check_finite_result(
        Mediation(
            model=name_model(model),
            metric=case.readout.metric,
            targets=case.readout.targets,
            eah=eah,
            nodes=tuple(node.name for node in chosen),
            **values,
            restored=-change[:, 1:],
            unmediated=values["patched"] - values["plain"] + change[:, 0],
        )
    )


def find_mediators(
    model: Any, eah: EAH, nodes: Sequence[NodeName] | Literal["all"]
) -> tuple[Node, ...]:
    """Find the nodes that may carry a broadcast's effect.

    Raises:
        SettingsError: If one does not exist, cannot carry it, or there is none.
    """
    every = {
        node.name: node
        for node in (*list_head_nodes(model), *list_block_nodes(model))
        if _may_carry(eah, node)
    }
    if isinstance(nodes, str) and nodes == "all":
        if not every:
            msg = f"nothing comes after layer {min(eah.layers)}: patch an earlier one"
            raise SettingsError(msg)
        return tuple(every.values())
    chosen = find_nodes(model, nodes)
    unfit = [node.name for node in chosen if node.name not in every]
    if unfit:
        layers = ", ".join(map(str, eah.layers))
        msg = (
            f"{unfit[0]} cannot carry the effect of patching layers {layers}: expected "
            "heads of later layers that are not patched themselves, or components "
            f"from layer {min(eah.layers)} on"
        )
        raise SettingsError(msg)
    return chosen


def _may_carry(eah: EAH, node: Node) -> bool:
    if node.head is None:
        return node.layer >= min(eah.layers)
    return node.layer > min(eah.layers) and node.layer not in eah.layers
