"""What an input is, how it ends, and which ends are right."""

import dataclasses
import math
import shutil
import signal
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eah_interp.errors import EAHError

RESULT, REFUSED = "result", "refused"
RAISED, NOT_FINITE, SLOW, NOT_MADE = "raised", "not finite", "slow", "not made"
KNOWN = "known"
RIGHT = (RESULT, REFUSED, KNOWN)

KNOWN_FAULTS: Mapping[str, tuple[str, ...]] = {}
"""Faults that are found and not mended yet: by target, files that raise them."""

SECONDS = 60.0
"""An input that computes for longer hangs; so does one that waits ten times as long.

A clock on the wall alone would take a busy machine for a hang.
"""


@dataclasses.dataclass(frozen=True)
class Input:
    """One call with odd arguments.

    Attributes:
        call: Makes it; what it returns is searched for NaN and infinity.
        shown: What is called with what.
        may_be_nan: Names of columns and fields that are NaN by definition.
    """

    call: Callable[[], Any]
    shown: str
    may_be_nan: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Target:
    """A door of the package.

    Attributes:
        make: Makes an input from a generator of numbers and an empty folder.
        share: How many of a hundred thousand inputs are its own, in proportion.
    """

    make: Callable[[np.random.Generator, Path], Input]
    share: int


@dataclasses.dataclass(frozen=True)
class End:
    """How one input ended."""

    target: str
    index: int
    outcome: str
    shown: str
    said: str


class TooSlowError(BaseException):
    """The input took longer than `SECONDS`; no `except Exception` may catch it."""


def _stop(number: int, frame: Any) -> None:
    raise TooSlowError


def run_input(name: str, target: Target, index: int, *, seed: int, folder: Path) -> End:
    """Make an input and run it."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
    scratch = folder / f"{zlib.crc32(name.encode())}-{index}"
    scratch.mkdir(parents=True)
    shown = "(not made)"
    clocks = {
        signal.ITIMER_PROF: (signal.SIGPROF, SECONDS),
        signal.ITIMER_REAL: (signal.SIGALRM, 10 * SECONDS),
    }
    before = {sign: signal.signal(sign, _stop) for sign, _ in clocks.values()}
    for clock, (_, seconds) in clocks.items():
        signal.setitimer(clock, seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                given = target.make(rng, scratch)
            except Exception as error:  # a fault of the fuzz itself, shown as one
                outcome, said = NOT_MADE, f"{error!r:.200} {_place(error)}"
            else:
                shown = given.shown
                outcome, said = _run(given)
    except TooSlowError:
        outcome, said = SLOW, f"more than {SECONDS:g} s"
    finally:
        for clock in clocks:
            signal.setitimer(clock, 0)
        for sign, handler in before.items():
            signal.signal(sign, handler)
        shutil.rmtree(scratch, ignore_errors=True)
    known = KNOWN_FAULTS.get(name, ())
    if outcome == RAISED and any(f" at {place}:" in said for place in known):
        outcome = KNOWN
    return End(name, index, outcome, shown, said)


def _run(given: Input) -> tuple[str, str]:
    grad = torch.is_grad_enabled()
    try:
        found = given.call()
    except EAHError as error:
        # A message that cannot be printed helps nobody.
        text = str(error).encode("utf-8", "backslashreplace").decode()
        return (REFUSED, text) if text.strip() else (RAISED, "an empty message")
    except Exception as error:
        text = " ".join(ascii(str(error))[1:160].split())
        return RAISED, f"{type(error).__name__} at {_place(error)}: {text}"
    finally:
        torch.set_grad_enabled(grad)
    bad = next(find_bad(found, "", given.may_be_nan), None)
    return (RESULT, "") if bad is None else (NOT_FINITE, bad)


def _place(error: BaseException) -> str:
    """Name the last line of the package that an error went through."""
    where = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in where if "/eah_interp/" in frame.filename] or where
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def find_bad(
    value: Any, name: str, allowed: frozenset[str], depth: int = 0
) -> Iterator[str]:
    """Yield where a NaN or an infinity stands in what was returned."""
    if depth > 8 or name.rpartition(".")[2] in allowed:
        return
    if isinstance(value, pd.DataFrame):
        for column in value:
            if value[column].dtype.kind == "f" and column not in allowed:
                yield from _of_numbers(value[column].to_numpy(), f"{name}.{column}")
        return
    yield from _of_numbers(value, name)
    for key, inside in _parts(value):
        yield from find_bad(inside, f"{name}{key}", allowed, depth + 1)


def _of_numbers(value: Any, name: str) -> Iterator[str]:
    finite = True
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and not value.is_meta:
            finite = bool(value.isfinite().all())
    elif isinstance(value, float | np.floating):
        finite = math.isfinite(value)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "fc":
        finite = bool(np.isfinite(value).all())
    if not finite:
        yield f"{name or type(value).__name__} holds NaN or infinity"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """List what a value is made of, each with what stands before it in a name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name)
    elif isinstance(value, Mapping):
        yield from ((f".{key}", inside) for key, inside in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (("", inside) for inside in value)
