"""Benchmarks of object hallucination: questions, captions, and how both are scored.

`pope` scores yes/no answers and `chair` captions, whatever model gave them; `toy` puts
both to a model on the toy world's scenes, whose ground truth is exact.
"""

from eah_interp.benchmarks.chair import ChairScore as ChairScore
from eah_interp.benchmarks.chair import score_captions as score_captions
from eah_interp.benchmarks.compare import METRICS as METRICS
from eah_interp.benchmarks.compare import compare_benchmarks as compare_benchmarks
from eah_interp.benchmarks.compare import count_by_scene as count_by_scene
from eah_interp.benchmarks.pope import PopeScore as PopeScore
from eah_interp.benchmarks.pope import score_answers as score_answers
from eah_interp.benchmarks.toy import ToyBenchmark as ToyBenchmark
from eah_interp.benchmarks.toy import ask_about_scenes as ask_about_scenes
from eah_interp.benchmarks.toy import describe_scenes as describe_scenes
from eah_interp.benchmarks.toy import run_toy_benchmark as run_toy_benchmark
