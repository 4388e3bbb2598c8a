"""Benchmarks of object hallucination: questions, captions, and how both are scored.

`score_answers` scores yes/no answers (POPE) and `score_captions` captions (CHAIR),
whatever model gave them. The public formats are read by the functions named `read_...`:
questions, answers, captions, COCO's annotations and CHAIR's synonym list, which are the
user's own files. `run_toy_benchmark` puts both benchmarks to a model on the toy world's
scenes, whose ground truth is exact.
"""

from eah_interp.benchmarks.amber import score_amber as score_amber
from eah_interp.benchmarks.chair import score_captions as score_captions
from eah_interp.benchmarks.chair_files import read_captions as read_captions
from eah_interp.benchmarks.chair_files import read_ground_truth as read_ground_truth
from eah_interp.benchmarks.compare import compare_outputs as compare_outputs
from eah_interp.benchmarks.frontier import plot_frontier as plot_frontier
from eah_interp.benchmarks.hallusionbench import (
    read_hallusionbench as read_hallusionbench,
)
from eah_interp.benchmarks.hallusionbench import (
    score_hallusionbench as score_hallusionbench,
)
from eah_interp.benchmarks.lengths import cap_captions as cap_captions
from eah_interp.benchmarks.lengths import contrast_cap as contrast_cap
from eah_interp.benchmarks.lengths import list_caps as list_caps
from eah_interp.benchmarks.mentions import find_mentions as find_mentions
from eah_interp.benchmarks.mentions import make_vocabulary as make_vocabulary
from eah_interp.benchmarks.mentions import read_synonyms as read_synonyms
from eah_interp.benchmarks.mme import read_mme as read_mme
from eah_interp.benchmarks.mme import score_mme as score_mme
from eah_interp.benchmarks.mmvp import score_mmvp as score_mmvp
from eah_interp.benchmarks.pope import build_pope_questions as build_pope_questions
from eah_interp.benchmarks.pope import score_answers as score_answers
from eah_interp.benchmarks.pope_files import match_answers as match_answers
from eah_interp.benchmarks.pope_files import read_pope_answers as read_pope_answers
from eah_interp.benchmarks.pope_files import read_pope_questions as read_pope_questions
from eah_interp.benchmarks.readouts import audit_readouts as audit_readouts
from eah_interp.benchmarks.readouts import read_next_tokens as read_next_tokens
from eah_interp.benchmarks.toy import compare_benchmarks as compare_benchmarks
from eah_interp.benchmarks.toy import run_toy_benchmark as run_toy_benchmark
