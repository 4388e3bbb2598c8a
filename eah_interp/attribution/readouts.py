"""Where a run is read, and for which tokens: what heads are credited for."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp.errors import NumericalError, SettingsError, show_value
from eah_interp.results import Part

MetricName = Literal["logit", "log_prob", "logit_diff", "yes_no"]
"""What is read: a logit; the log-probability of the whole word; the logit of the first
object minus the second's; the logit of yes minus no."""

TargetValues = Float[Tensor, " target"]
"""One number for each target of a readout."""


@dataclass(frozen=True)
class Target:
    """One number that is read off a run.

    Attributes:
        label: What it is called: an object, `boat - fish`, `yes - no`.
        row: The batch item.
        position: The position whose output is read (of the first, if several).
        text: The text that is, or would be, written next.
        present: Whether the object is in the image; None where it is not known.
        item: The item that was asked about, where batch items are copies of it; the
            batch item itself when None.
        images: A key for each image of the item, the same wherever the same image is
            shown; none where they are not known.
    """

    label: str
    row: int
    position: int
    text: str
    present: bool | None = None
    item: int | None = None
    images: tuple[str, ...] = ()

    @property
    def asked_of(self) -> int:
        """The item that was asked about, as it was given."""
        return self.row if self.item is None else self.item


@dataclass(frozen=True, eq=False, repr=False)
class Readout(Part):
    """Targets as weighted sums of logits, or of log-probabilities.

    Target `t` is the sum over its terms of `weight * logit[row, position, token]`.

    Attributes:
        metric: What is read.
        targets: What each number is.
        owner: The target that each term belongs to.
        rows: The batch item of each term.
        positions: The position whose output is read.
        tokens: The token.
        weights: The weight.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    owner: Int[Tensor, " term"]
    rows: Int[Tensor, " term"]
    positions: Int[Tensor, " term"]
    tokens: Int[Tensor, " term"]
    weights: Float[Tensor, " term"]

    @property
    def is_linear(self) -> bool:
        """Whether targets are linear in the logits, as direct attribution needs."""
        return self.metric != "log_prob"

    @property
    def target_rows(self) -> Int[Tensor, " target"]:
        """The batch item of each target."""
        return torch.tensor([target.row for target in self.targets])

    def values(
        self,
        logits: Float[Tensor, "batch place vocab"],
        *,
        places: Tensor | None = None,
    ) -> TargetValues:
        """Read the targets off a run's logits.

        Args:
            logits: At every position, or at some.
            places: The positions that `logits` has, in order; every one when None.

        Returns:
            A number for each target, float32, with gradients.

        Raises:
            NumericalError: If one is NaN or infinite.

        Example:
            >>> readout = read_tokens([("cat", 0, 2, "cat", [(2, 5, 1.0)])])
            >>> readout.values(torch.arange(24.0).view(1, 3, 8)).tolist()
            [21.0]
        """
        device = logits.device
        where = self.positions
        if places is not None:
            where = torch.searchsorted(places.cpu(), where)
        picked = logits[self.rows.to(device), where.to(device)].float()
        if not self.is_linear:
            picked = picked.log_softmax(-1)
        terms = picked.gather(-1, self.tokens.to(device)[:, None])[:, 0]
        terms = terms * self.weights.to(device)
        totals = torch.zeros(len(self.targets), device=device)
        totals = totals.index_add(0, self.owner.to(device), terms)
        lost = (~totals.isfinite()).nonzero().flatten().tolist()
        if lost:
            named = ", ".join(self.targets[index].label for index in lost[:4])
            msg = (
                f"the run's number for {named} is NaN or infinite: expected finite "
                "logits; load the model in another dtype (float16 overflows where "
                "bfloat16 does not), look at what the patch does to it, or ask for a "
                "token that the model can write"
            )
            raise NumericalError(msg)
        return totals

    def pick(self, targets: Sequence[int]) -> "Readout":
        """Keep some of the targets, in the order in which they are named."""
        parts = [(self.owner == target).nonzero().flatten() for target in targets]
        terms = torch.cat(parts)
        sizes = torch.tensor([len(part) for part in parts])
        return Readout(
            self.metric,
            tuple(self.targets[target] for target in targets),
            torch.arange(len(parts)).repeat_interleave(sizes),
            self.rows[terms],
            self.positions[terms],
            self.tokens[terms],
            self.weights[terms],
        )

    def of_copies(self, rows: Sequence[int]) -> "Readout":
        """Read the same targets in copies of their items.

        Args:
            rows: The item that each row of the new batch is a copy of.

        Returns:
            A readout of every target in every copy of its item: copies in order, and
            within a copy its targets in order.
        """
        own = self.target_rows.tolist()
        parts: list[tuple[Target, Tensor, int]] = []
        for copy, item in enumerate(rows):
            for index, target in enumerate(self.targets):
                if own[index] == item:
                    terms = (self.owner == index).nonzero().flatten()
                    moved = replace(target, row=copy)
                    parts.append((moved, terms, copy))
        terms = torch.cat([part[1] for part in parts])
        sizes = torch.tensor([len(part[1]) for part in parts])
        copies = torch.tensor([part[2] for part in parts])
        return Readout(
            self.metric,
            tuple(part[0] for part in parts),
            torch.arange(len(parts)).repeat_interleave(sizes),
            copies.repeat_interleave(sizes),
            self.positions[terms],
            self.tokens[terms],
            self.weights[terms],
        )

    def passes(self) -> list[list[int]]:
        """Split the targets so that within a part no two read the same position.

        Direct paths run along positions, so one backward pass serves a whole part.
        """
        parts: list[tuple[set[tuple[int, int]], list[int]]] = []
        for index in range(len(self.targets)):
            mine = self.owner == index
            places = set(
                zip(
                    self.rows[mine].tolist(), self.positions[mine].tolist(), strict=True
                )
            )
            for used, members in parts:
                if not used & places:
                    used |= places
                    members.append(index)
                    break
            else:
                parts.append((set(places), [index]))
        return [members for _, members in parts]


Term = tuple[int, int, float]
"""Position, token and weight of one term of a target."""


def read_tokens(
    targets: Sequence[tuple[str, int, int, str, Sequence[Term]]],
    *,
    metric: MetricName = "logit",
) -> Readout:
    """Make a readout from tokens and positions.

    Args:
        targets: For each its label, batch item, position, text, and terms.
        metric: What is read of each token.

    Returns:
        The readout.

    Raises:
        SettingsError: If the metric is unknown, or there is nothing to read.

    Example:
        >>> readout = read_tokens(
        ...     [("cat - dog", 0, 4, "cat", [(4, 7, 1.0), (4, 9, -1.0)])]
        ... )
        >>> readout.values(torch.ones(1, 5, 10)).item()
        0.0
    """
    if not isinstance(metric, str) or metric not in get_args(MetricName):
        listed = ", ".join(get_args(MetricName))
        msg = f"metric must be one of {listed}, got {show_value(metric)}"
        raise SettingsError(msg)
    if not targets or not all(target[4] for target in targets):
        msg = "there is nothing to read: expected at least one token for each target"
        raise SettingsError(msg)
    terms = [
        (owner, row, *term)
        for owner, (_, row, _, _, own) in enumerate(targets)
        for term in own
    ]
    owner, rows, positions, tokens, weights = zip(*terms, strict=True)
    return Readout(
        metric,
        tuple(
            Target(label, row, place, text) for label, row, place, text, _ in targets
        ),
        torch.tensor(owner),
        torch.tensor(rows),
        torch.tensor(positions),
        torch.tensor(tokens),
        torch.tensor(weights, dtype=torch.float32),
    )


# ---- The positions that a readout reads, each once.


@dataclass
class Places:
    """The positions that a readout reads, each once.

    Attributes:
        items: The batch item of each place.
        positions: Its position.
        of_targets: For each target, its places.
    """

    items: Tensor
    positions: Tensor
    of_targets: list[list[int]]

    @classmethod
    def of(cls, readout: Readout) -> "Places":
        """List the places of a readout."""
        pairs = list(
            zip(readout.rows.tolist(), readout.positions.tolist(), strict=True)
        )
        places = sorted(set(pairs))
        index = {place: number for number, place in enumerate(places)}
        of_targets: list[list[int]] = [[] for _ in readout.targets]
        for owner, pair in zip(readout.owner.tolist(), pairs, strict=True):
            if index[pair] not in of_targets[owner]:
                of_targets[owner].append(index[pair])
        items, positions = zip(*places, strict=True)
        return cls(torch.tensor(items), torch.tensor(positions), of_targets)

    def take(self, tensor: Tensor) -> Tensor:
        """Pick the places out of a tensor `[batch position ...]`."""
        device = tensor.device
        return tensor[self.items.to(device), self.positions.to(device)]

    def sum(self, per_place: Tensor, targets: Sequence[int]) -> Tensor:
        """Sum `[place ...]` over the places of each of some targets."""
        return torch.stack([per_place[self.of_targets[t]].sum(0) for t in targets])


def keep_logits(model: Any, positions: Tensor) -> tuple[dict[str, Any], Tensor | None]:
    """Ask for logits at some positions only, where a model's forward can.

    Returns:
        Keyword arguments of the forward pass, and the positions it will return; None
        for all of them.
    """
    forward = inspect.signature(type(model._module).forward)
    if "logits_to_keep" not in forward.parameters:
        return {}, None
    places = torch.unique(positions)
    return {"logits_to_keep": places.to(model.device)}, places
