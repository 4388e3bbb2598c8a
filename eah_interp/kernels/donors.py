"""Which head donates its pattern."""

from collections.abc import Sequence
from typing import Literal

import torch

from eah_interp._types import Densities, Donors
from eah_interp.errors import InputError, SettingsError

HeadZero = Literal["eligible", "never"]
"""Whether head 0 may donate; `"never"` is the released file's accident."""


def choose_donors(
    density: Densities,
    *,
    rule: Literal["densest", "sparsest", "random"] | int = "densest",
    gamma: float | None = None,
    seed: int | Sequence[int] = 0,
    head_0: HeadZero = "eligible",
) -> Donors:
    """Choose each item's donor head from the sink densities of its layer.

    On a tie the lowest index wins. Under `"densest"` an item in which no head has a
    vision sink (or none reaches `gamma`) has no donor, and gets -1: there is no
    densest sink to broadcast, and head 0 would be an accident of the tie rule.

    Args:
        density: Sink density of each head.
        rule: `"densest"` (the method), `"sparsest"` or `"random"` (controls), or
            the index of a head.
        gamma: Least density that a densest donor must have.
        seed: For `"random"`: one seed, under which every item draws the same head
            whatever batch it stands in, or one seed for each item.
        head_0: `"never"`: an item whose donor would be head 0 has no donor, as in
            the released file (`if k > 0`).

    Returns:
        Index of each item's donor; -1 where there is none.

    Raises:
        SettingsError: If the rule is unknown or the head does not exist.
        InputError: If there is not one seed for each item.

    Example:
        >>> import torch
        >>> density = torch.tensor([[0.1, 0.4, 0.4], [0.0, 0.0, 0.0]])
        >>> choose_donors(density).tolist()
        [1, -1]
        >>> choose_donors(density, rule="sparsest").tolist()
        [0, 0]
    """
    n_batch, n_heads = density.shape
    if isinstance(rule, int):
        if not 0 <= rule < n_heads:
            msg = f"donor head {rule} does not exist: expected 0 to {n_heads - 1}"
            raise SettingsError(msg)
        donors = torch.full((n_batch,), rule, device=density.device)
    elif rule == "densest":
        most, donors = _lowest_index(density, largest=True)
        donors = donors.masked_fill(most <= 0, -1)
        if gamma is not None:
            donors = donors.masked_fill(most < gamma, -1)
    elif rule == "sparsest":
        _, donors = _lowest_index(density, largest=False)
    elif rule == "random":
        seeds = _seed_per_item(seed, n_batch)
        drawn = [
            int(torch.randint(n_heads, (), generator=torch.Generator().manual_seed(s)))
            for s in seeds
        ]
        donors = torch.tensor(drawn, device=density.device)
    else:
        msg = (
            "donor must be 'densest', 'sparsest', 'random' or a head index here, "
            f"got {rule!r}"
        )
        raise SettingsError(msg)
    return donors.masked_fill(donors == 0, -1) if head_0 == "never" else donors


def _lowest_index(
    density: torch.Tensor, *, largest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the extreme density and the first head that has it.

    `argmax` may return any of several equal maxima on CUDA; this cannot.
    """
    best = density.amax(-1) if largest else density.amin(-1)
    heads = torch.arange(density.shape[-1], device=density.device)
    tied = density == best.unsqueeze(-1)
    return best, heads.masked_fill(~tied, density.shape[-1]).amin(-1)


def _seed_per_item(seed: int | Sequence[int], n_batch: int) -> Sequence[int]:
    if isinstance(seed, int):
        return [seed] * n_batch
    if len(seed) != n_batch:
        msg = (
            f"expected one seed for each of {n_batch} batch items, got {len(seed)}; "
            "pass a single seed to use it for every item"
        )
        raise InputError(msg)
    return seed
