"""The positions that a readout reads, each once."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eah_interp.attribution.cases.readouts import Readout


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
