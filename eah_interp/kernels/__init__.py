"""Pure tensor maths: torch, einops and jaxtyping, nothing else.

`sinks` scores image columns and chooses donors, `broadcast` is the EAH operator,
`replacements` holds the controls and other methods, `patterns` computes attention a
block of rows at a time. What stands here is what docs/method.md puts together.
"""

from eah_interp.kernels.broadcast import broadcast_keys as broadcast_keys
from eah_interp.kernels.broadcast import broadcast_pattern as broadcast_pattern
from eah_interp.kernels.broadcast import broadcast_queries as broadcast_queries
from eah_interp.kernels.sinks import ColumnScores as ColumnScores
from eah_interp.kernels.sinks import choose_donors as choose_donors
from eah_interp.kernels.sinks import score_columns as score_columns
from eah_interp.kernels.sinks import stream_column_scores as stream_column_scores
