"""Which recipients of an EAH broadcast its effect is owed to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.arguments import by_name, check_flag
from eah_interp.attribution.averages import ObjectResult
from eah_interp.attribution.cases import Ask, as_case, asks
from eah_interp.attribution.chunks import show_items
from eah_interp.attribution.nodes import grid_of_heads, list_nodes
from eah_interp.attribution.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.replay import (
    Patching,
    Replay,
    check_batch_size,
    choose_batch_size,
    in_batches,
    prepare_replay,
)
from eah_interp.attribution.results import (
    check_finite_result,
    check_target,
    label_cell,
    largest,
    name_head,
    name_targets,
)
from eah_interp.attribution.runs import Recording, record
from eah_interp.attribution.shapley import Coalition, Shares, check_orders, share_gains
from eah_interp.attribution.sides import check_broadcast, gather, split_items, take_item
from eah_interp.indices import check_choice, check_integer
from eah_interp.interventions.eah import EAH
from eah_interp.lvlm.anatomy import name_model
from eah_interp.shown_results import count, list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- What each recipient of a broadcast does: the result of `attribute_recipients`.


Method = Literal["alone", "without", "shapley"]
"""Only it receives; all but it receive; the mean over all orders of joining."""


@dataclass(frozen=True, eq=False, repr=False)
class RecipientAttribution(ObjectResult):
    """How much of a broadcast's effect is owed to each head that receives.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        eah: The broadcast.
        method: How the effect was divided.
        recipients: The heads that receive: `L1H0`.
        donors: Donor head of each patched layer, by batch item; -1 for none.
        plain: The targets without the broadcast.
        patched: The targets with all of it.
        effects: Share of each recipient in the targets' units. Shapley values sum to
            `total`. A donor that receives its own pattern has 0.
        errors: Standard errors of sampled Shapley values; 0 where effects are exact.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    eah: EAH
    method: Method
    recipients: tuple[str, ...]
    donors: dict[int, Tensor]
    plain: TargetValues
    patched: TargetValues
    effects: Float[Tensor, "target recipient"]
    errors: Float[Tensor, "target recipient"]

    @property
    def total(self) -> TargetValues:
        """What the whole broadcast does to each target."""
        return self.patched - self.plain

    def frame(self) -> pd.DataFrame:
        """List every recipient of every target.

        Returns:
            Columns `object present row position target layer head name kind effect
            error total is_donor`.
        """
        table = list_nodes(self.targets, self.recipients)
        table["effect"] = self.effects.double().flatten().numpy()
        table["error"] = self.errors.double().flatten().numpy()
        table["total"] = self.total.double().numpy()[table["target"]]
        rows = [self.targets[target].row for target in table["target"]]
        places = zip(table["layer"], table["head"], rows, strict=True)
        table["is_donor"] = [
            int(self.donors[layer][row]) == head for layer, head, row in places
        ]
        return table

    def _about(self) -> str:
        who = count(len(self.recipients), "recipient")
        return (
            f"{name_targets(self.targets)}, {who} by {self.method}, metric "
            f"{self.metric}; largest effect first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            name = self.recipients[cell[1]]
            return label_cell(self.targets, cell[0]) | {"name": name}

        columns = {"effect": self.effects, "error": self.errors}
        columns["total"] = self.total[:, None].expand_as(self.effects)
        return list_largest(columns, by="effect", k=k, label=label)

    def top(self, k: int = 10) -> pd.DataFrame:
        """List each target's `k` recipients with the largest effects, either sign.

        Raises:
            SettingsError: If `k` is below 1.
        """
        return largest(self.frame(), k, by="effect")

    def plot(self, target: int = 0, *, ax: "Axes | None" = None) -> "Figure":
        """Draw one target's effects by layer and recipient.

        Args:
            target: Which target.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If there is no such target.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_heads

        check_target(self.targets, target)
        layers, grid = grid_of_heads(self.recipients, self.effects[target])
        title = f"effect on {self.targets[target].label}"
        return plot_heads({self.method: grid}, layers=layers, title=title, ax=ax)


# ---- A broadcast as a game: what targets are where only some heads receive.


Player = tuple[int, int]
"""Layer and head of a recipient."""


@dataclass
class BroadcastGame:
    """One item's broadcast, received by any of the heads that it changes.

    Attributes:
        model: The LVLM.
        replay: The patched run.
        players: The heads that the broadcast changes: recipients, but for a donor,
            whose own pattern changes nothing.
        batch_size: Most coalitions in one forward pass.
        progress: Whether to show a bar.
        known: What coalitions are worth, once they were run.
    """

    model: Any
    replay: Replay
    players: list[Player]
    batch_size: int
    progress: bool
    known: dict[Coalition, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Any,
        run: Recording,
        recipients: Sequence[Player],
        *,
        batch_size: int | None,
        progress: bool,
    ) -> "BroadcastGame":
        """Make the game of a recorded broadcast."""
        players = [player for player in recipients if _changes(run, *player)]
        replay = prepare_replay(model, run)
        if batch_size is None:
            batch_size = choose_batch_size(model, replay.n_tokens)
        return cls(model, replay, players, batch_size, progress)

    @property
    def everyone(self) -> Coalition:
        """All players."""
        return Coalition(range(len(self.players)))

    @torch.no_grad()
    def worth(
        self, coalitions: Sequence[Coalition]
    ) -> Float[Tensor, "coalition target"]:
        """Compute each target where exactly these players receive."""
        new = [each for each in dict.fromkeys(coalitions) if each not in self.known]
        if new:
            found = in_batches(
                new,
                self._run,
                batch_size=self.batch_size,
                progress=self.progress,
                label="coalitions",
            )
            self.known.update(zip(new, found.cpu(), strict=True))
        return torch.stack([self.known[each] for each in coalitions])

    def _run(self, coalitions: list[Coalition]) -> Tensor:
        recording = self.replay.recording
        masks = {
            layer: torch.zeros(
                len(coalitions),
                self.model.n_heads,
                dtype=torch.bool,
                device=recording.heads[layer].device,
            )
            for layer in recording.learned
        }
        for row, coalition in enumerate(coalitions):
            for player in coalition:
                layer, head = self.players[player]
                masks[layer][row, head] = True
        patching = Patching(recording.patch, recording.learned, masks, recording.prompt)
        start = min(recording.learned)
        return self.replay.run(
            self.model, len(coalitions), start=start, patching=patching
        )


def _changes(run: Recording, layer: int, head: int) -> bool:
    """Tell whether a broadcast gives a head another pattern than its own."""
    assert isinstance(run.patch, EAH)
    done = run.learned[layer]
    if not bool(done.patched[0]):
        return False
    return run.patch.remakes_pattern or int(done.donors[0]) != head


@by_name
@asks
def attribute_recipients(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    eah: EAH | None = None,
    method: Method = "alone",
    n_permutations: int = 64,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    **asked: Unpack[Ask],
) -> RecipientAttribution:
    """Attribute a broadcast's effect on an object to the heads that receive it.

    `"alone"`: the effect where only this head receives ("leave one in").
    `"without"`: the whole effect minus that where all others receive ("leave one
    out"). Heads interact, so neither sums to the whole; `"shapley"` does: the mean of
    what a head adds over all orders in which they could join. It is exact for up to 8
    heads that change, and sampled beyond, with standard errors.

    Donors are those of the whole broadcast throughout. (Where several layers are
    patched, a later layer could choose another donor if fewer heads received.)

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        eah: The broadcast; `EAH()` when None.
        method: How the effect is divided.
        n_permutations: Orders that are sampled for Shapley values of more than 8
            heads, half of them the others' reverses: even, at least 4.
        seed: Of the orders.
        batch_size: Most copies in one forward pass; by device and memory when None.
            Halved, with a warning, when memory runs out.
        progress: Whether to show a bar.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        Effects by target and recipient, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, or the caption names no object.
        SettingsError: If a word cannot be spelled, or a layer, head or method does
            not exist.
        ModelError: If a layer has no heads.
        UnsupportedError: If items of a batch are not independent in this model.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = attribute_recipients(
        ...     eah.load(), random_image(), objects=["fish"], method="shapley"
        ... )
        >>> bool((found.effects.sum(1) - found.total).abs().max() < 1e-5)
        True
    """
    eah = EAH() if eah is None else eah
    check_choice("method", method, Method)
    check_batch_size(batch_size)
    check_orders(n_permutations)
    seed = check_integer("seed", seed)
    progress = check_flag("progress", progress)
    check_broadcast(model, eah)
    case = as_case(model, images, prompts, **asked)
    heads = range(model.n_heads) if eah.recipients == "all" else eah.recipients
    players = [(layer, head) for layer in eah.layers for head in heads]
    donors = {layer: torch.full((case.n_items,), -1) for layer in eah.layers}
    parts: dict[str, list[tuple[list[int], Tensor]]] = {}
    for item, indices, (settings,) in show_items(
        split_items(case, eah), progress=progress and case.n_items > 1
    ):
        run = record(model, take_item(case, item), settings)
        for layer, patch in run.learned.items():
            donors[layer][item] = patch.donors[0].cpu()
        game = None
        if settings is not None:
            game = BroadcastGame.of(
                model,
                run,
                players,
                batch_size=batch_size,
                progress=progress and case.n_items == 1,
            )
        lines = _divide(run, game, players, method, n_permutations, seed)
        for name, tensor in lines.items():
            parts.setdefault(name, []).append((indices, tensor))
    n_targets = len(case.readout.targets)
    whole = {name: gather(part, n_targets) for name, part in parts.items()}
    return check_finite_result(
        RecipientAttribution(
            model=name_model(model),
            metric=case.readout.metric,
            targets=case.readout.targets,
            eah=eah,
            method=method,
            recipients=tuple(name_head(*player) for player in players),
            donors=donors,
            **whole,
        )
    )


def _divide(
    run: Recording,
    game: BroadcastGame | None,
    players: Sequence[Player],
    method: Method,
    n_orders: int,
    seed: int,
) -> dict[str, Tensor]:
    """Divide one item's effect; a head that nothing is donated to has none."""
    blank = torch.zeros(len(run.values), len(players))
    lines = {"effects": blank, "errors": blank.clone()}
    if game is None or not game.players:
        values = run.values.cpu()
        return lines | {"plain": values, "patched": values}
    shares = _share(game, method, n_orders=n_orders, seed=seed)
    where = [players.index(player) for player in game.players]
    lines["effects"][:, where] = shares.values.T
    lines["errors"][:, where] = shares.errors.T
    plain, patched = game.worth([Coalition(), game.everyone])
    return lines | {"plain": plain, "patched": patched}


def _share(game: BroadcastGame, method: Method, *, n_orders: int, seed: int) -> Shares:
    n_players = len(game.players)
    if method == "shapley":
        return share_gains(n_players, game.worth, n_orders=n_orders, seed=seed)
    each = [Coalition([player]) for player in range(n_players)]
    if method == "without":
        each = [game.everyone - one for one in each]
    nobody, everyone, *found = game.worth([Coalition(), game.everyone, *each])
    changed = torch.stack(found)
    values = changed - nobody if method == "alone" else everyone - changed
    return Shares(values, torch.zeros_like(values))
