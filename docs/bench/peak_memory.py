"""How much memory one prefill needs at its peak, beyond what was there before."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment under which glibc gives memory back at once, so that a peak is a peak."""


def measure_peak(run: Callable[[], object], *, device: str) -> int:
    """Measure the peak of one run after a warm-up, in bytes beyond the start.

    On CUDA the allocator's own count. On a CPU the kernel's high-water mark of the
    resident set (what `ru_maxrss` reads), reset before the run: `ru_maxrss` itself
    cannot be reset, and a child starts with its parent's.

    Args:
        run: What to measure.
        device: "cuda" or "cpu".

    Returns:
        Peak minus the memory in use at the start.
    """
    run()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - start
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    start = _read_status("VmRSS")
    run()
    return _read_status("VmHWM") - start


def _read_status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    msg = f"no {field} in /proc/self/status: measuring the CPU's peak needs Linux"
    raise RuntimeError(msg)
