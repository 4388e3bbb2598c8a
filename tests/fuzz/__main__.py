"""Run the fuzz and print what came of it: `python -m tests.fuzz --inputs 10000`."""

import argparse
import collections
import contextlib
import io
import logging
import os
import resource
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
from tests.fuzz.values import SWAP, Swap, odd_values

MOST_BYTES = 8 * 2**30
"""How much memory all inputs may have; each needs a hundredth of it."""


def list_targets() -> dict[str, Target]:
    """Return every target by its name."""
    from tests.fuzz import (
        attributions,
        command_line,
        evidence,
        kernels,
        methods,
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
        methods,
        readers,
        models,
        outputs,
        evidence,
        attributions,
        pages,
        studies,
        command_line,
    )
    return {name: one for file in files for name, one in file.TARGETS.items()}


@contextlib.contextmanager
def _in_scratch() -> Iterator[Path]:
    """Work in an empty folder, without bars and logs."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        where = Path.cwd()
        os.chdir(name)  # what a relative path names is made here
        try:
            yield Path(name)
        finally:
            os.chdir(where)
            logging.disable(logging.NOTSET)


def _choose(only: Sequence[str]) -> dict[str, Target]:
    return {n: t for n, t in list_targets().items() if not only or n in only}


def run_all(
    n_inputs: int, *, seed: int, only: Sequence[str] = (), index: int | None = None
) -> Iterator[End]:
    """Run at least so many inputs, shared among the targets, at least one for each."""
    chosen = _choose(only)
    total = sum(target.share for target in chosen.values())
    with _in_scratch() as folder:
        for name, target in chosen.items():
            count = -(-n_inputs * target.share // total)
            for number in range(count) if index is None else [index]:
                with contextlib.redirect_stderr(io.StringIO()):
                    end = run_input(name, target, number, seed=seed, folder=folder)
                yield end


def run_each(*, only: Sequence[str] = (), looks: int = 40) -> Iterator[End]:
    """Run every argument of every call with every odd value, one at a time.

    Args:
        only: The targets; all of them when empty.
        looks: How many inputs of a target are looked at for kinds of calls.
    """
    with _in_scratch() as folder:
        for name, target in _choose(only).items():
            known: set[tuple[str, str]] = set()
            for look in range(looks):
                swap = Swap()
                called = _swap(name, target, look, swap, folder).shown.partition("(")[0]
                for argument in list(swap.seen):
                    if (called, argument) not in known:
                        known.add((called, argument))
                        for place in range(len(odd_values())):
                            one = Swap(argument, place)
                            yield _swap(name, target, look, one, folder)


def _swap(name: str, target: Target, index: int, swap: Swap, folder: Path) -> End:
    token = SWAP.set(swap)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return run_input(name, target, index, seed=0, folder=folder)
    finally:
        SWAP.reset(token)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], metavar="TARGET")
    parser.add_argument("--index", type=int)
    parser.add_argument(
        "--each", action="store_true", help="every argument with every odd value"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    # An input that asks for more fails alone, and takes no other process with it.
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    kinds: collections.Counter[str] = collections.Counter()
    took: dict[str, float] = collections.defaultdict(float)
    start = time.perf_counter()
    ends = (
        run_each(only=options.only)
        if options.each
        else run_all(
            options.inputs, seed=options.seed, only=options.only, index=options.index
        )
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
