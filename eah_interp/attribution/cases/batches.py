"""Many small jobs, as many at once as memory allows."""

import gc
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from eah_interp.errors import SettingsError

Job = TypeVar("Job")

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What allocators say in a plain RuntimeError."""


def in_batches(
    jobs: Sequence[Job],
    run: Callable[[list[Job]], Tensor],
    *,
    batch_size: int,
    key: Callable[[Job], Any] | None = None,
    progress: bool = False,
    label: str = "",
) -> Tensor:
    """Run jobs in batches; where memory runs out, in smaller ones from then on.

    Args:
        jobs: At least one.
        run: Runs a batch of jobs, and returns a line for each. A batch that does not
            fit is run again in parts, so it may leave nothing half done.
        batch_size: Most jobs in a batch; halved, with a warning, when memory runs out.
        key: Jobs share a batch only where it is the same; smaller ones come first.
        progress: Whether to show a bar.
        label: What the bar counts.

    Returns:
        The lines of all jobs, in the order of the jobs.

    Raises:
        SettingsError: If there is no job, or the batch size is below 1.
        torch.OutOfMemoryError: If one job does not fit.

    Example:
        >>> in_batches([3, 1, 2], torch.tensor, batch_size=2).tolist()
        [3, 1, 2]
    """
    check_batch_size(batch_size)
    if not jobs:
        msg = "there is nothing to run: expected at least one job"
        raise SettingsError(msg)
    keys = [0 if key is None else key(job) for job in jobs]
    order = sorted(range(len(jobs)), key=keys.__getitem__)
    done: list[Tensor] = []
    with tqdm(total=len(jobs), desc=label, disable=not progress) as bar:
        for _, group in itertools.groupby(order, key=keys.__getitem__):
            waiting = list(group)
            while waiting:
                batch = [jobs[i] for i in waiting[:batch_size]]
                lines = _attempt(run, batch)
                if lines is None:
                    batch_size = len(batch) // 2
                    continue
                done.append(lines)
                waiting = waiting[len(batch) :]
                bar.update(len(batch))
    joined = torch.cat(done)
    result = torch.empty_like(joined)
    result[order] = joined
    return result


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch that holds nothing.

    Raises:
        SettingsError: If it is below 1.
    """
    if isinstance(batch_size, bool) or batch_size < 1:
        msg = f"batch_size must be at least 1, got {batch_size}"
        raise SettingsError(msg)


def _attempt(run: Callable[[list[Job]], Tensor], batch: list[Job]) -> Tensor | None:
    """Run a batch; None, with a warning, if it does not fit and a smaller one may."""
    try:
        return run(batch)
    except RuntimeError as error:
        if not _is_out_of_memory(error) or len(batch) == 1:
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
    # Out here the error's traceback no longer holds on to what did not fit.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(batch) // 2
    warnings.warn(
        f"out of memory with {len(batch)} rows in a batch: going on with {half} "
        f"({said}); pass batch_size={half} to begin there",
        stacklevel=3,
    )
    return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)
