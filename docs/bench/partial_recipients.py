"""Time two exact ways to broadcast to some heads where heads share keys.

    python docs/bench/partial_recipients.py

One: every head gets a copy of its group's keys and values, then one attention call.
Two: attention is called with the broadcast and without, each head keeps its own result.
"""

import statistics
import time

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HEADS, GROUPS, D_HEAD, REPEATS = 32, 8, 128, 7


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend as transformers does: repeat keys only where there is a mask."""
    causal = mask is None
    if k.shape[1] == HEADS or causal:
        grouped = k.shape[1] != HEADS
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )
    k, v = (t.repeat_interleave(HEADS // GROUPS, 1) for t in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


def main() -> None:
    """Print the medians and their ratio for three prompts."""
    change = torch.zeros(1, HEADS, 1, 1, dtype=torch.bool)
    change[:, :5] = True
    for length, masked in ((624, True), (624, False), (2928, False)):
        q = torch.randn(1, HEADS, length, D_HEAD)
        k, v = (torch.randn(1, GROUPS, length, D_HEAD) for _ in range(2))
        square = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        mask = square if masked else None

        def one(q: Tensor = q, k: Tensor = k, v: Tensor = v, m=mask) -> Tensor:  # noqa: ANN001
            wide_k, wide_v = (t.repeat_interleave(HEADS // GROUPS, 1) for t in (k, v))
            new_q = torch.where(change, q[:, 3:4], q)
            return attend(new_q, torch.where(change, k[:, :1], wide_k), wide_v, m)

        def two(q: Tensor = q, k: Tensor = k, v: Tensor = v, m=mask) -> Tensor:  # noqa: ANN001
            patched = attend(q[:, 3:4].expand_as(q), k[:, :1].expand_as(k), v, m)
            return torch.where(change, patched, attend(q, k, v, m))

        torch.testing.assert_close(one(), two(), rtol=1e-3, atol=1e-4)
        times: dict[str, list[float]] = {"one": [], "two": []}
        for _ in range(REPEATS):
            for name, run in (("one", one), ("two", two)):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        first, second = (statistics.median(times[name]) for name in ("one", "two"))
        print(
            f"{length} tokens, {'mask' if masked else 'causal'}: one call "
            f"{first * 1e3:.0f} ms, two calls {second * 1e3:.0f} ms, "
            f"ratio {second / first:.2f}"
        )


if __name__ == "__main__":
    main()
