"""Every tensor kind of this package, named once.

Axis names, in this order everywhere: `batch layer head query key pos d_model d_head`.
`kv_head` counts the key/value groups of grouped-query attention.
"""

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

Pattern = Float[Tensor, "batch head query key"]
"""Attention after the softmax; rows (query) sum to one.

Where a learned sink takes a share of every row (gpt-oss, Inkling 2), they sum to less.
"""

Queries = Float[Tensor, "batch head query d_head"]
"""Queries as the attention call gets them, after RoPE."""

Keys = Float[Tensor, "batch kv_head key d_head"]
"""Keys as the attention call gets them, after RoPE, before they are repeated."""

Values = Float[Tensor, "batch kv_head key d_value"]
"""Values as the attention call gets them, before they are repeated."""

HeadOutputs = Float[Tensor, "batch query head d_value"]
"""What the attention call returns: each head's mixture of values."""

ColumnMask = Bool[Tensor, "batch key"]
"""Which key positions are meant, in each batch item."""

HeadColumnScores = Float[Tensor, "batch head key"]
"""Mean received attention of each column under each head."""

HeadColumnMask = Bool[Tensor, "batch head key"]
"""Which columns are vision sinks under each head."""

Densities = Float[Tensor, "batch head"]
"""Sink density of each head, a share in [0, 1]."""

HeadMask = Bool[Tensor, "batch head"]
"""Which heads are meant, in each batch item."""

Donors = Int[Tensor, " batch"]
"""Donor head of each batch item; -1 where there is none and nothing is patched."""

Definition = Literal["paper", "official", "visible"]
"""The three definitions of the sink score; see docs/method.md."""

DonorRule = Literal["densest", "sparsest", "random", "mean", "uniform", "shuffled"]
"""How a donor pattern is made; an integer head index is accepted beside these."""

SinkColumns = Literal["all", "tower", "language"]
"""Which image columns count as sinks: those of one kind, or all; see `find_sinks`."""

Steps = Literal["prefill", "all"]
"""Which forward passes of a generation are patched."""

Tower = Literal["language", "vision"]
"""Which of a model's two towers is meant: the decoder, or what looks at images."""
