"""Attention patterns a block of query rows at a time, so no pattern is ever whole."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from eah_interp._types import (
    ColumnMask,
    HeadOutputs,
    Keys,
    Pattern,
    Queries,
    Values,
)
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import is_dense, to_float, to_int

BLOCK_BYTES = 64 * 2**20
"""Size aimed at for one float32 block of `[batch, head, rows, key]`, in bytes."""

CPU_ROWS = 64
"""Most query rows of a block on a CPU, where a block that fits in cache is faster."""

_LOWEST = torch.finfo(torch.float32).min

ChangeLogits = Callable[[slice, Float[Tensor, "batch head rows key"]], Tensor]
"""From some query rows and their logits to other logits of the same shape."""


@dataclass(frozen=True)
class PatternBlock:
    """Some consecutive query rows of an attention pattern.

    Attributes:
        rows: Which query rows.
        weights: Their pattern, in float32 (float64 where the queries are). Rows sum
            to one, or to less where a learned sink takes a share. Rows that see
            nothing hold no meaning. Where attention is causal, keys after the
            block's last row are left out.
        visible: Which of these keys each row may attend to; the head axis is 1 where
            all heads see the same keys.
    """

    rows: slice
    weights: Float[Tensor, "batch head rows key"]
    visible: Bool[Tensor, "batch #head rows key"]


def pattern_blocks(
    queries: Queries,
    keys: Keys,
    *,
    mask: Tensor | None = None,
    token_mask: ColumnMask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    change_logits: ChangeLogits | None = None,
    rounded: torch.dtype | None = None,
    block: int | None = None,
) -> Iterator[PatternBlock]:
    r"""Yield the pattern `softmax(cap(scale * q k^T) + mask)`, block by block.

    With `sink_logits` the softmax has one column more, which is then dropped: a row's
    weights are `exp(l_y) / (exp(sink) + sum over y' of exp(l_y'))`, and sum to less
    than one (gpt-oss, arXiv:2508.10925; Inkling 2 computes the logit of every row).

    Grouped-query attention needs no repeated keys: head `h` reads key group
    `h // (n_heads / n_kv_heads)`. Peak memory is a few blocks of
    `[batch, head, rows, key]` in float32, whatever the prompt's length. NaN that goes
    in comes out: the scores refuse it.

    Args:
        queries: After RoPE.
        keys: After RoPE, one per key/value group.
        mask: `[batch or 1, head or 1, query, key]`: True (or, in an additive float
            mask, any value above half the dtype's minimum) where a row may look.
            None means causal.
        token_mask: False at padding. Combined with a causal mask only; an explicit
            `mask` already knows about padding.
        scale: Factor on the logits; `d_head ** -0.5` when None.
        softcap: Gemma-2 style cap, `softcap * tanh(logits / softcap)`.
        sink_logits: `[batch or 1, head, query or 1, 1]`, a learned sink's logits,
            neither scaled nor capped nor masked. None where there is no sink.
        change_logits: Maps rows and their logits, scaled and capped but not masked
            yet, to other logits. None leaves them.
        rounded: Round products, logits and weights to this dtype, as eager attention
            does in a model of half precision. None rounds nothing.
        block: Rows per block; chosen from memory when None.

    Yields:
        Blocks in row order.

    Raises:
        InputError: If the number of heads is no multiple of the key/value groups,
            or a tensor is none, or does not fit.
        SettingsError: If `scale` or `softcap` is no finite number.

    Example:
        >>> import torch
        >>> q, k = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
        >>> blocks = list(pattern_blocks(q, k, block=3))
        >>> [tuple(b.weights.shape) for b in blocks]
        [(1, 4, 3, 3), (1, 4, 2, 5)]
        >>> sums = torch.cat([b.weights.sum(-1) for b in blocks], 2)
        >>> bool(torch.allclose(sums, torch.ones(1, 4, 5)))
        True
    """
    check_attention_shapes(queries, keys, mask, sink_logits)
    n_batch, n_heads, n_rows, d_head = queries.shape
    n_groups, n_keys = keys.shape[1], keys.shape[2]
    if token_mask is not None:
        check_tensor("token_mask", token_mask, axes="batch key", kind="bool")
        check_sizes("token_mask", token_mask, n_batch, n_keys)
        check_place(queries=queries, token_mask=token_mask)
    scale = check_finite("scale", scale)
    softcap = check_finite("softcap", softcap, positive=True)
    scale = d_head**-0.5 if scale is None else scale
    step = rows_per_block(queries, keys, block=block)
    columns = torch.arange(n_keys, device=queries.device)
    dtype = torch.promote_types(queries.dtype, torch.float32)
    keys_t = keys.to(dtype).transpose(2, 3)
    if token_mask is not None and _is_plainly_full(token_mask):
        token_mask = None
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        size = rows.stop - start
        # a causal block sees no key after its last row: leave those out
        width = rows.stop if mask is None else n_keys
        grouped = queries[:, :, rows].to(dtype).reshape(n_batch, n_groups, -1, d_head)
        logits = _multiply(grouped, keys_t[..., :width], scale, rounded)
        logits = logits.view(n_batch, n_heads, size, width)
        if softcap is not None:
            logits = (logits / softcap).tanh() * softcap
        if change_logits is not None:
            logits = change_logits(rows, logits)
        if mask is None:
            causal = columns[:width] <= columns[rows].unsqueeze(1)
            visible = causal.expand(n_batch, 1, size, width)
            # only the block's own columns hold keys that some of its rows cannot see
            logits[..., rows].masked_fill_(~causal[:, rows], _LOWEST)
            if token_mask is not None:
                tokens = token_mask[:, None, None, :width]
                visible = visible & tokens
                logits.masked_fill_(~tokens, _LOWEST)
        else:
            part = mask[:, :, rows].expand(n_batch, -1, size, n_keys)
            visible = find_visible(part)
            if part.dtype != torch.bool:
                # a quarter, so that adding to large negative logits cannot overflow
                logits = logits.add_(part.to(dtype).clamp(min=_LOWEST / 4))
            logits.masked_fill_(~visible, _LOWEST)
        if sink_logits is None:
            weights = logits.softmax(-1)
        else:  # the sink is a column of the softmax, whose weight then goes nowhere
            sink = sink_logits if sink_logits.shape[2] == 1 else sink_logits[:, :, rows]
            sink = sink.to(dtype).expand(n_batch, -1, size, 1)
            weights = torch.cat([logits, sink], -1).softmax(-1)[..., :-1]
        yield PatternBlock(rows, _round(weights, rounded), visible)


def _multiply(
    queries: Tensor, keys_t: Tensor, scale: float, rounded: torch.dtype | None
) -> Tensor:
    """Multiply queries by keys, and scale: before the product, where nothing rounds."""
    if rounded is None:
        return exact_product(queries.mul(scale), keys_t)
    # Eager attention's `matmul(q, k) * scale` rounds twice.
    return _round(_round(exact_product(queries, keys_t), rounded) * scale, rounded)


def _round(tensor: Tensor, to: torch.dtype | None) -> Tensor:
    return tensor if to is None else tensor.to(to).to(tensor.dtype)


def mix_values(
    queries: Queries,
    keys: Keys,
    values: Values,
    *,
    change: Callable[[PatternBlock], Float[Tensor, "batch head rows key"]],
    mask: Tensor | None = None,
    token_mask: ColumnMask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    change_logits: ChangeLogits | None = None,
    block: int | None = None,
) -> HeadOutputs:
    """Attend with a changed pattern: `change(block) @ values`, block by block.

    For patterns that no choice of queries and keys can give (a mean over heads, an
    even spread). The changed weights are cast to the values' dtype before the
    product, as the eager attention of transformers does. As there, NaN that goes in
    comes out.

    Raises:
        InputError: As for `pattern_blocks`, or if the values do not fit.
        SettingsError: As for `pattern_blocks`.

    Args:
        queries: As for `pattern_blocks`.
        keys: As for `pattern_blocks`.
        values: One per key/value group.
        change: Maps a block to its new weights, same shape.
        mask: As for `pattern_blocks`.
        token_mask: As for `pattern_blocks`.
        scale: As for `pattern_blocks`.
        softcap: As for `pattern_blocks`.
        sink_logits: As for `pattern_blocks`.
        change_logits: As for `pattern_blocks`.
        block: As for `pattern_blocks`.

    Returns:
        Each head's mixture of values, in the values' dtype.

    Example:
        >>> import torch
        >>> q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
        >>> ours = mix_values(q, k, v, change=lambda b: b.weights)
        >>> sdpa = torch.nn.functional.scaled_dot_product_attention
        >>> theirs = sdpa(q, k, v, is_causal=True).transpose(1, 2)
        >>> bool(torch.allclose(ours, theirs, atol=1e-5))
        True
    """
    check_attention_shapes(queries, keys, mask, sink_logits)
    check_tensor("values", values, axes="batch kv_head key d_value")
    n_heads, n_groups = queries.shape[1], values.shape[1]
    check_sizes(
        "values", values, queries.shape[0], n_groups, keys.shape[2], values.shape[3]
    )
    check_place(queries=queries, values=values)
    if not n_groups or n_heads % n_groups:
        msg = f"{n_heads} heads do not divide into {n_groups} groups of values"
        raise InputError(msg)
    if not callable(change):
        msg = f"change must be a function of a block, got {show_value(change)}"
        raise InputError(msg)
    mixed = []
    for part in pattern_blocks(
        queries,
        keys,
        mask=mask,
        token_mask=token_mask,
        scale=scale,
        softcap=softcap,
        sink_logits=sink_logits,
        change_logits=change_logits,
        block=block,
    ):
        mixed.append(_multiply_values(change(part), values))
    return torch.cat(mixed, 2).transpose(1, 2).contiguous()


def apply_pattern(pattern: Pattern, values: Values) -> HeadOutputs:
    """Mix values by a whole pattern, as `mix_values` does by blocks.

    Args:
        pattern: Any weights; what they are at keys that a mask hides counts too.
        values: One per key/value group; keys beyond the pattern's are left out.

    Returns:
        Each head's mixture of values, in the values' dtype.

    Example:
        >>> import torch
        >>> values = torch.randn(1, 2, 6, 4)
        >>> first = torch.zeros(1, 2, 5, 6)
        >>> first[..., 0] = 1
        >>> mixed = apply_pattern(first, values)  # [batch query head d_value]
        >>> bool((mixed == values[:, :, :1].transpose(1, 2)).all())
        True
    """
    return _multiply_values(pattern, values).transpose(1, 2).contiguous()


def _multiply_values(weights: Tensor, values: Values) -> Tensor:
    n_batch, n_heads, size, width = weights.shape
    seen = values[:, :, :width]  # a causal block's weights end with its last row
    grouped = weights.to(values.dtype).reshape(n_batch, values.shape[1], -1, width)
    return (grouped @ seen).view(n_batch, n_heads, size, -1)


def rows_per_block(queries: Queries, keys: Keys, *, block: int | None = None) -> int:
    """Choose how many query rows one block holds: at most 64 MiB of float32 weights.

    On a CPU no more than 64 rows either.

    Args:
        queries: Queries of the attention call.
        keys: Keys of the attention call.
        block: The caller's own number of rows; overrides the choice.

    Returns:
        Number of rows, at least 1.

    Raises:
        InputError: If `block` is below 1.

    Example:
        >>> import torch
        >>> rows_per_block(torch.zeros(1, 32, 1000, 4), torch.zeros(1, 8, 1000, 4))
        64
    """
    check_tensor("queries", queries, axes="batch head query d_head")
    check_tensor("keys", keys, axes="batch kv_head key d_head")
    if block is None:
        row = 4 * queries.shape[0] * queries.shape[1] * keys.shape[2]
        most = CPU_ROWS if queries.device.type == "cpu" else queries.shape[2]
        block = max(1, min(queries.shape[2], most, BLOCK_BYTES // max(row, 1)))
    rows_each = to_int(block)
    if rows_each is None or rows_each < 1:
        got = show_value(block)
        msg = f"block must be at least 1 query row, got {got}; leave it out"
        raise InputError(msg)
    return rows_each


# ---- What a mask leaves visible, and whether a call's tensors fit each other.


def find_visible(mask: Tensor) -> Bool[Tensor, "..."]:
    """Return which keys an attention mask, or logits it was added to, leave visible.

    Args:
        mask: Boolean (True is visible), or additive: a key is hidden where the value
            is at most half the dtype's minimum, whatever logits were added to it.

    Returns:
        True where a row may look.

    Example:
        >>> import torch
        >>> find_visible(torch.tensor([0.0, -7.5, torch.finfo().min, -torch.inf]))
        tensor([ True,  True, False, False])
    """
    is_bool = isinstance(mask, Tensor) and mask.dtype == torch.bool
    check_tensor("mask", mask, kind="bool" if is_bool else "float")
    if mask.dtype == torch.bool:
        return mask
    # half, as logits, biases or a second mask may have been added to the minimum
    return mask > torch.finfo(mask.dtype).min / 2


def check_attention_shapes(
    queries: Tensor, keys: Tensor, mask: Tensor | None, sink_logits: Tensor | None
) -> None:
    """Check that the tensors of an attention call fit each other.

    Raises:
        InputError: If they do not.
    """
    check_tensor("queries", queries, axes="batch head query d_head")
    check_tensor("keys", keys, axes="batch kv_head key d_head")
    if mask is not None:
        is_bool = isinstance(mask, Tensor) and mask.dtype == torch.bool
        kind: TensorKind = "bool" if is_bool else "float"
        check_tensor("mask", mask, kind=kind)
    if sink_logits is not None:
        check_tensor("sink_logits", sink_logits)
    check_place(queries=queries, keys=keys, mask=mask, sink_logits=sink_logits)
    n_heads, n_groups = queries.shape[1], keys.shape[1]
    check_sizes(
        "keys", keys, queries.shape[0], n_groups, keys.shape[2], queries.shape[3]
    )
    if not n_groups or n_heads % n_groups:
        msg = (
            f"{n_heads} query heads do not divide into {n_groups} key/value groups; "
            "pass queries [batch head query d_head] and keys "
            "[batch kv_head key d_head] of one attention call"
        )
        raise InputError(msg)
    n_batch, n_rows, n_keys = queries.shape[0], queries.shape[2], keys.shape[2]
    if mask is None and n_rows != n_keys:
        msg = (
            f"a causal pattern needs as many queries as keys, got {n_rows} "
            f"and {n_keys}; pass the attention call's own mask"
        )
        raise InputError(msg)
    wanted = (n_batch, n_heads, n_rows, n_keys)
    if mask is not None and not _fits(mask, wanted, may_be_one=(0, 1)):
        msg = (
            f"the attention mask has shape {tuple(mask.shape)}: expected {wanted}, "
            "with 1 allowed for batch and head"
        )
        raise InputError(msg)
    wanted = (n_batch, n_heads, n_rows, 1)
    if sink_logits is not None and not _fits(sink_logits, wanted, may_be_one=(0, 2)):
        msg = (
            f"the sink logits have shape {tuple(sink_logits.shape)}: expected "
            f"{wanted}, with 1 allowed for batch and query; a model's one logit per "
            "head is logits.view(1, -1, 1, 1)"
        )
        raise InputError(msg)


def _fits(
    given: Tensor, wanted: tuple[int, ...], *, may_be_one: tuple[int, ...]
) -> bool:
    return given.ndim == len(wanted) and all(
        size == whole or (size == 1 and axis in may_be_one)
        for axis, (size, whole) in enumerate(zip(given.shape, wanted, strict=True))
    )


# ---- Plain products, and tensors that carry a shape but no numbers.


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices in their own dtype, also inside a caller's autocast."""
    # scores are float32 by contract; autocast would make them bfloat16
    device = left.device.type
    if left.is_meta or not torch.is_autocast_enabled(device):
        return left @ right
    with torch.autocast(device, enabled=False):
        return left @ right


def is_abstract(tensor: Tensor) -> bool:
    """Return whether a tensor has a shape but no numbers (meta, or nnsight's scan)."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _is_plainly_full(token_mask: Tensor) -> bool:
    """Return whether there is no padding, where that is known without waiting."""
    # reading a mask on a GPU would wait for all that is queued there
    on_cpu = token_mask.device.type == "cpu" and not is_abstract(token_mask)
    return on_cpu and bool(token_mask.all())


# ---- What a kernel takes: tensors of so many axes, of a kind, in one place.


TensorKind = Literal["float", "bool", "int"]
"""What a tensor holds."""


def check_tensor(
    name: str, value: object, *, axes: str | None = None, kind: TensorKind = "float"
) -> Tensor:
    """Check that an argument is a tensor with these axes that holds this kind.

    Args:
        name: Of the argument.
        value: What was given.
        axes: The names of its axes, as in `"batch head query key"`; any when None.
        kind: What it holds: numbers, flags or indices.

    Returns:
        The tensor.

    Raises:
        InputError: If it is something else.

    Example:
        >>> import torch
        >>> check_tensor("donors", torch.zeros(2), axes="batch", kind="int")
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: donors must be a tensor of int [batch], got \
float32 of shape (2,)
    """
    # A list has no shape, an array of NumPy no device.
    expected = f"{kind} [{'...' if axes is None else axes}]"
    if not isinstance(value, Tensor) or not is_dense(value):
        # a nested tensor has no shape, and says so with another error
        is_array = isinstance(value, Tensor) or hasattr(value, "shape")
        what = type(value) if is_array else show_value(value)
        msg = f"{name} must be a (dense) tensor of {expected}, got {what}"
        raise InputError(msg)
    holds = {
        "float": value.is_floating_point(),
        "bool": value.dtype == torch.bool,
        "int": value.dtype != torch.bool
        and not (value.is_floating_point() or value.is_complex()),
    }
    if not holds[kind] or (axes is not None and value.ndim != len(axes.split())):
        msg = (
            f"{name} must be a tensor of {expected}, got "
            f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
        )
        raise InputError(msg)
    return value


def check_sizes(name: str, value: Tensor, *wanted: int | tuple[int, ...]) -> None:
    """Check the size of each axis: one number, or one of several.

    Raises:
        InputError: If one is another.

    Example:
        >>> import torch
        >>> check_sizes("values", torch.zeros(2, 4, 6), 2, (1, 4), 6)
    """
    sizes = [(size,) if isinstance(size, int) else size for size in wanted]
    fit = all(got in size for got, size in zip(value.shape, sizes, strict=True))
    if not fit:
        said = " x ".join(" or ".join(map(str, dict.fromkeys(s))) for s in sizes)
        msg = f"{name} has shape {tuple(value.shape)}: expected {said}"
        raise InputError(msg)


def check_place(**given: Tensor | None) -> None:
    """Check that of some tensors either all or none are on the meta device.

    Raises:
        InputError: If some have numbers and some have not.
    """
    there = {name: one.is_meta for name, one in given.items() if one is not None}
    if len(set(there.values())) > 1:
        empty = ", ".join(name for name, is_meta in there.items() if is_meta)
        msg = f"{empty} is on the meta device, which has no numbers; the others are not"
        raise InputError(msg)


def check_finite(name: str, value: Any, *, positive: bool = False) -> float | None:
    """Check that a number is finite, and above zero where that is asked.

    Returns:
        It as a plain number; None as it is.

    Raises:
        SettingsError: If it is not.
    """
    number = None if value is None else to_float(value)
    if value is not None and (number is None or (positive and number <= 0)):
        kind = "a number above 0" if positive else "a finite number"
        raise SettingsError(f"{name} must be {kind}, got {show_value(value)}")
    return number
