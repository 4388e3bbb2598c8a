"""Run the fuzz and print what came of it: `python -m tests.fuzz --inputs 10000`."""

import argparse
import collections
import contextlib
import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import torch

from tests.fuzz.harness import RIGHT, End, Target, run_input


def list_targets() -> dict[str, Target]:
    """Return every target by its name."""
    from tests.fuzz import (
        attributions,
        command_line,
        kernels,
        models,
        outputs,
        pages,
        readers,
        settings,
        studies,
    )

    files = (
        settings,
        kernels,
        readers,
        models,
        outputs,
        attributions,
        pages,
        studies,
        command_line,
    )
    return {name: one for file in files for name, one in file.TARGETS.items()}


def run_all(
    n_inputs: int, *, seed: int, only: Sequence[str] = (), index: int | None = None
) -> Iterator[End]:
    """Run at least so many inputs, shared among the targets, at least one for each."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    targets = list_targets()
    chosen = {n: t for n, t in targets.items() if not only or n in only}
    total = sum(target.share for target in chosen.values())
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        where = Path.cwd()
        os.chdir(name)  # what a relative path names is made here
        try:
            for target_name, target in chosen.items():
                count = -(-n_inputs * target.share // total)
                wanted = range(count) if index is None else [index]
                for number in wanted:
                    with contextlib.redirect_stderr(io.StringIO()):
                        end = run_input(
                            target_name, target, number, seed=seed, folder=Path(name)
                        )
                    yield end
        finally:
            os.chdir(where)
            logging.disable(logging.NOTSET)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], metavar="TARGET")
    parser.add_argument("--index", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    kinds: collections.Counter[str] = collections.Counter()
    took: dict[str, float] = collections.defaultdict(float)
    start = time.perf_counter()
    ends = run_all(
        options.inputs, seed=options.seed, only=options.only, index=options.index
    )
    for end in ends:
        counts[end.target][end.outcome] += 1
        took[end.target] += time.perf_counter() - start
        start = time.perf_counter()
        if end.outcome not in RIGHT or options.index is not None:
            kinds[f"{end.target}: {end.outcome}: {end.said}"] += 1
            print(f"{end.target} --index {end.index}: {end.outcome}: {end.said}")
            print(f"    {ascii(end.shown)[1:-1][:400]}", flush=True)
    outcomes = sorted({one for counted in counts.values() for one in counted})
    print(
        "".join(
            f"{word:>22}" if at == 0 else f"{word:>12}"
            for at, word in enumerate(["target", "inputs", *outcomes, "seconds"])
        )
    )
    counts["all"] = sum(counts.values(), collections.Counter())
    took["all"] = sum(took.values())
    for name, counted in counts.items():
        numbers = [counted.total(), *(counted[one] for one in outcomes)]
        cells = "".join(f"{number:>12}" for number in numbers)
        print(f"{name:>22}{cells}{took[name]:>12.1f}")
    wrong = sum(n for one, n in counts["all"].items() if one not in RIGHT)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
