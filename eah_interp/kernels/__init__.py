"""Pure tensor maths: torch, einops and jaxtyping, nothing else."""

from eah_interp.kernels.broadcast import broadcast_keys as broadcast_keys
from eah_interp.kernels.broadcast import broadcast_pattern as broadcast_pattern
from eah_interp.kernels.broadcast import broadcast_queries as broadcast_queries
from eah_interp.kernels.broadcast import changed_heads as changed_heads
from eah_interp.kernels.patterns import PatternBlock as PatternBlock
from eah_interp.kernels.patterns import find_visible as find_visible
from eah_interp.kernels.patterns import mix_values as mix_values
from eah_interp.kernels.patterns import pattern_blocks as pattern_blocks
from eah_interp.kernels.replacements import boost_scores as boost_scores
from eah_interp.kernels.replacements import hide_columns as hide_columns
from eah_interp.kernels.replacements import mean_pattern as mean_pattern
from eah_interp.kernels.replacements import previous_pattern as previous_pattern
from eah_interp.kernels.replacements import redistribute_pattern as redistribute_pattern
from eah_interp.kernels.replacements import shuffled_pattern as shuffled_pattern
from eah_interp.kernels.replacements import sink_values as sink_values
from eah_interp.kernels.replacements import uniform_pattern as uniform_pattern
from eah_interp.kernels.sinks import DEFAULT_BETA as DEFAULT_BETA
from eah_interp.kernels.sinks import ColumnScores as ColumnScores
from eah_interp.kernels.sinks import HeadZero as HeadZero
from eah_interp.kernels.sinks import choose_donors as choose_donors
from eah_interp.kernels.sinks import dense_heads as dense_heads
from eah_interp.kernels.sinks import score_columns as score_columns
from eah_interp.kernels.sinks import stream_column_scores as stream_column_scores
