"""The EAH operator: one head's pattern becomes the pattern of others.

On patterns it is a copy. On queries and keys it is the same thing, exactly: the
softmax does not know which head it belongs to, so a head that gets the donor's
query and the donor's key gets the donor's pattern, and keeps its own values. Numbers
are moved as they are: a donor's NaN is its recipients' too.
"""

import torch
from torch import Tensor

from eah_interp._types import Donors, HeadMask, Keys, Pattern, Queries
from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.indices import check_integer
from eah_interp.kernels.patterns import (
    check_place,
    check_sizes,
    check_tensor,
    is_abstract,
)


def broadcast_pattern(
    pattern: Pattern, donors: Donors, *, recipients: HeadMask | None = None
) -> Pattern:
    """Give every recipient the donor's pattern: `A[b, h] <- A[b, donor(b)]`.

    Args:
        pattern: Attention after the softmax.
        donors: Donor head of each item; items with -1 are left as they are.
        recipients: Heads that receive it; all heads when None.

    Returns:
        A new pattern.

    Raises:
        InputError: If the tensors are no tensors, or do not fit each other.
        SettingsError: If a donor is not a head of the pattern.

    Example:
        >>> import torch
        >>> pattern = torch.eye(3).expand(1, 2, 3, 3).clone()
        >>> pattern[0, 1] = 1 / 3
        >>> out = broadcast_pattern(pattern, torch.tensor([1]))
        >>> bool((out == 1 / 3).all())
        True
    """
    _check("pattern", pattern, donors, axes="batch head query key")
    change = changed_heads(donors, pattern.shape[1], recipients)
    donated = _take(pattern, donors)
    return torch.where(change[:, :, None, None], donated, pattern)


def broadcast_queries(
    queries: Queries, donors: Donors, *, recipients: HeadMask | None = None
) -> Queries:
    """Give every recipient the donor's queries.

    Args:
        queries: After RoPE.
        donors: Donor head of each item; items with -1 are left as they are.
        recipients: Heads that receive them; all heads when None.

    Returns:
        New queries.

    Raises:
        InputError: If the tensors are no tensors, or do not fit each other.
        SettingsError: If a donor is not a head of the queries.

    Example:
        >>> import torch
        >>> queries = torch.arange(2.0).view(1, 2, 1, 1)
        >>> broadcast_queries(queries, torch.tensor([1])).flatten().tolist()
        [1.0, 1.0]
    """
    _check("queries", queries, donors, axes="batch head query d_head")
    change = changed_heads(donors, queries.shape[1], recipients)
    return torch.where(change[:, :, None, None], _take(queries, donors), queries)


def broadcast_keys(
    keys: Keys, donors: Donors, *, n_heads: int, recipients: HeadMask | None = None
) -> Keys:
    """Give every recipient's key group the donor's keys.

    Args:
        keys: After RoPE, one per key/value group.
        donors: Donor head (not group) of each item; items with -1 are left alone.
        n_heads: Number of query heads.
        recipients: Heads that receive them; all heads when None.

    Returns:
        New keys.

    Raises:
        InputError: If the tensors are no tensors, or do not fit each other.
        SettingsError: If a donor is not a head, or `n_heads` no multiple of the groups.
        UnsupportedError: If only some heads receive the donor's keys while heads
            share keys in groups: a head outside would change with its group.

    Example:
        >>> import torch
        >>> keys = torch.arange(2.0).view(1, 2, 1, 1)
        >>> broadcast_keys(keys, torch.tensor([3]), n_heads=4).flatten().tolist()
        [1.0, 1.0]
    """
    _check("keys", keys, donors, axes="batch kv_head key d_head")
    n_groups, n_heads = keys.shape[1], check_integer("n_heads", n_heads, least=1)
    if not n_groups or n_heads % n_groups:
        msg = f"n_heads must be a multiple of the {n_groups} key groups, got {n_heads}"
        raise SettingsError(msg)
    if recipients is not None and n_groups != n_heads:
        msg = (
            f"{n_heads} heads share {n_groups} keys, so a partial broadcast cannot be "
            "written into the keys; give each head a copy of its keys first "
            "(eah_interp.interventions does)"
        )
        raise UnsupportedError(msg)
    change = changed_heads(donors, n_heads, recipients)
    if n_groups != n_heads:  # all heads receive, so one flag is as good as another
        change = change[:, :n_groups]
    # rounded down, so that -1 (no donor) stays negative
    donated = _take(keys, donors.div(n_heads // n_groups, rounding_mode="floor"))
    return torch.where(change[:, :, None, None], donated, keys)


def changed_heads(
    donors: Donors, n_heads: int, recipients: HeadMask | None = None
) -> HeadMask:
    """Mark the heads whose pattern a broadcast replaces.

    Args:
        donors: Donor head of each item; -1 for none.
        n_heads: Number of query heads.
        recipients: Heads that receive; all heads when None.

    Returns:
        True where a donor exists and the head is a recipient.

    Raises:
        InputError: If `recipients` does not fit.
        SettingsError: If a donor is not a head.

    Example:
        >>> import torch
        >>> changed_heads(torch.tensor([1, -1]), 2).tolist()
        [[True, True], [False, False]]
    """
    check_tensor("donors", donors, axes="batch", kind="int")
    if recipients is not None:
        check_tensor("recipients", recipients, axes="batch head", kind="bool")
        check_sizes("recipients", recipients, len(donors), n_heads)
        check_place(donors=donors, recipients=recipients)
    if not is_abstract(donors) and bool(((donors >= n_heads) | (donors < -1)).any()):
        msg = (
            f"donors must be heads 0 to {n_heads - 1}, or -1 for none, "
            f"got {donors.tolist()}"
        )
        raise SettingsError(msg)
    given = (donors >= 0).unsqueeze(1).expand(-1, n_heads)
    return given if recipients is None else given & recipients


def _check(name: str, tensor: Tensor, donors: Tensor, *, axes: str) -> None:
    check_tensor(name, tensor, axes=axes)
    check_tensor("donors", donors, axes="batch", kind="int")
    check_sizes("donors", donors, tensor.shape[0])
    check_place(**{name: tensor, "donors": donors})


def _take(tensor: Tensor, index: Tensor) -> Tensor:
    """Pick one head per item, keeping a head axis of one."""
    items = torch.arange(tensor.shape[0], device=tensor.device)
    return tensor[items, index.clamp(min=0).to(tensor.device)].unsqueeze(1)
