"""Shapley values over few players exactly, over many from random orders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import factorial

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import to_int

Coalition = frozenset[int]

MOST_EXACT = 8
"""Players up to which all coalitions are tried: 2 ** 8 = 256."""

Gains = Float[Tensor, "player target"]


@dataclass(frozen=True)
class Shares:
    """What each player contributes.

    Attributes:
        values: Contributions; summed over players, what all together gain.
        errors: Standard errors; 0 where the values are exact.
    """

    values: Gains
    errors: Gains


def share_gains(
    n_players: int,
    gain: Callable[[Sequence[Coalition]], Float[Tensor, "coalition target"]],
    *,
    n_orders: int,
    seed: int = 0,
) -> Shares:
    r"""Compute the Shapley value of each player.

    $\phi_i = \frac{1}{n!} \sum_\pi [v(\text{before}_\pi(i) \cup i) -
    v(\text{before}_\pi(i))]$ over all orders $\pi$ of the players (Shapley, "A Value
    for n-Person Games", 1953). With up to 8 players exactly, from all coalitions;
    with more from random orders, each beside its reverse, which takes most of the
    noise out (Mitchell et al., arXiv:2104.12199). In every order the gains sum to
    the whole, so the values do too, whatever the orders.

    Args:
        n_players: How many players.
        gain: From coalitions (each is asked for once) to what each is worth.
        n_orders: Random orders, reverses included: even, at least 4.
        seed: Of the orders.

    Returns:
        Values, and standard errors from the spread of the pairs of orders.

    Raises:
        SettingsError: If `n_orders` is odd or below 4.

    Example:
        >>> import torch
        >>> def both(coalitions):
        ...     return torch.tensor([[float(len(c) == 2)] for c in coalitions])
        >>> share_gains(2, both, n_orders=4).values.flatten().tolist()
        [0.5, 0.5]
    """
    check_orders(n_orders)
    if n_players == 0:
        nothing = gain([Coalition()])[:0]
        return Shares(nothing, nothing)
    exact = n_players <= MOST_EXACT
    if exact:
        coalitions = [_members(bits) for bits in range(2**n_players)]
        orders = torch.empty(0, 0)
    else:
        orders = draw_orders(n_players, n_orders, seed=seed)
        asked = {
            Coalition(order[:stop])
            for order in orders.tolist()
            for stop in range(n_players + 1)
        }
        coalitions = sorted(asked, key=lambda members: (len(members), sorted(members)))
    worth = gain(coalitions).double()
    index = {members: i for i, members in enumerate(coalitions)}
    if exact:
        values = torch.stack(
            [_weigh(player, n_players, worth, index) for player in range(n_players)]
        )
        return Shares(values.float(), torch.zeros_like(values).float())
    by_order = torch.stack([_walk(order, worth, index) for order in orders.tolist()])
    pairs = by_order.view(-1, 2, *by_order.shape[1:]).mean(1)
    errors = pairs.std(0) / len(pairs) ** 0.5
    return Shares(pairs.mean(0).float(), errors.float())


def check_orders(n_orders: int) -> None:
    """Refuse a number of orders that leaves no pairs, or no spread.

    Raises:
        SettingsError: If it is odd or below 4.
    """
    wanted = to_int(n_orders)
    if wanted is None or wanted < 4 or wanted % 2:
        msg = (
            "n_permutations counts orders and their reverses: expected an even number "
            f"of at least 4, got {show_value(n_orders)}"
        )
        raise SettingsError(msg)


def draw_orders(n_players: int, n_orders: int, *, seed: int) -> Tensor:
    """Draw orders of the players, `[order player]`, each followed by its reverse."""
    generator = torch.Generator().manual_seed(seed)
    orders = []
    for _ in range(n_orders // 2):
        order = torch.randperm(n_players, generator=generator)
        orders += [order, order.flip(0)]
    return torch.stack(orders)


def _members(bits: int) -> Coalition:
    return Coalition(i for i in range(bits.bit_length()) if bits >> i & 1)


def _weigh(player: int, n: int, worth: Tensor, index: dict[Coalition, int]) -> Tensor:
    """Weigh a player's gains by how often orders put these players before it."""
    total = torch.zeros_like(worth[0])
    for members, i in index.items():
        if player in members:
            size = len(members) - 1
            weight = factorial(size) * factorial(n - size - 1) / factorial(n)
            total += weight * (worth[i] - worth[index[members - {player}]])
    return total


def _walk(order: list[int], worth: Tensor, index: dict[Coalition, int]) -> Tensor:
    """Add players in an order, and note what each adds."""
    added = torch.zeros(len(order), *worth.shape[1:], dtype=worth.dtype)
    for stop, player in enumerate(order):
        before = index[Coalition(order[:stop])]
        added[player] = worth[index[Coalition(order[: stop + 1])]] - worth[before]
    return added
