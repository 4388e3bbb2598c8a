"""One run of a model: who patches what in it, and what it must have done by its end."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nnsight.intervention.interleaver import (
    EarlyStopException,
    GreenletExit,
    Mediator,
    OutOfOrderError,
)
from torch import Tensor

from eah_interp.errors import UnsupportedError
from eah_interp.lvlm.prompt import INPUTS, Memory

PROMISES = "eah_promises"
"""Attribute of nnsight's interleaver: the memories of this run's patching workers."""

_PATCHED = "eah_patched"
"""Attribute of the run's batcher: the outputs replaced, as (layer, step, rows)."""


class PatchedCall:
    """A layer's attention call in nnsight, for whoever patches it.

    Patches written at its inputs add up in the order in which they are written. One
    written at its output was computed from the inputs as they were, so no other patch
    of the same rows may come after it in the same forward pass.

    Attributes:
        step: Which forward pass of the run this is, counted from 0.
    """

    def __init__(self, operation: Any, *, layer: int) -> None:
        self._operation = operation
        self._layer = layer
        self._worker = Mediator.current("an attention call")
        self._location = f"{operation.path}.input"
        self.step = self._worker.wanted(self._location)

    @property
    def inputs(self) -> Any:
        """What the call is given, as `(args, kwargs)`.

        Raises:
            UnsupportedError: If it was made already.
        """
        msg = (
            f"layer {self._layer} has already run, or is already patched at its "
            "output: intervene before anything is read from this layer or a later "
            "one, and patch it in one call"
        )
        if self._worker.occurrence(self._location) > self.step:
            raise UnsupportedError(msg)
        try:
            return self._operation.inputs
        except OutOfOrderError as error:
            if self.step:  # how nnsight ends a loop over the steps of a run
                raise
            # The first trace of this layer: its calls were not counted before.
            raise UnsupportedError(msg) from error

    @inputs.setter
    def inputs(self, inputs: Any) -> None:
        self._check_untouched()
        self._operation.inputs = inputs

    @property
    def output(self) -> Any:
        """What the call returns."""
        self._claim()
        return self._operation.output

    @output.setter
    def output(self, output: Any) -> None:
        self._operation.output = output

    def skip(self, output: tuple[Any, ...]) -> None:
        """Replace the call; where other invokes still need it, its output only."""
        if self._rows is None:
            self._claim()
            self._operation.skip(output)
        else:
            self.output = (output[0], *self.output[1:])

    def check_rows(self, n_rows: int) -> None:
        """Check that this worker reads the rows of its own invoke, and no others.

        Raises:
            UnsupportedError: If they cannot be told apart.
        """
        if self._rows is not None and n_rows != self._rows[1]:
            msg = (
                f"expected the {self._rows[1]} rows of one invoke, got {n_rows}: a "
                "generation with beams or several returned sequences repeats rows, and "
                "nnsight cannot tell the invokes apart; give all images and prompts "
                "to generate itself, or generate them one after the other"
            )
            raise UnsupportedError(msg)

    @property
    def _rows(self) -> list[int] | None:
        """First row and number of rows of the worker's invoke; None for all rows."""
        batcher = self._worker.interleaver.batcher
        batching = batcher is not None and batcher.batching
        return self._worker.batch_group if batching else None

    def _check_untouched(self) -> None:
        for layer, step, rows in self._claims():
            if (layer, step) == (self._layer, self.step) and _overlap(rows, self._rows):
                msg = (
                    f"layer {self._layer} is patched twice in one forward pass: "
                    "patches add up only after a broadcast to all heads; patch the "
                    "layer with one EAH, or call clear_edits() on the edited model"
                )
                raise UnsupportedError(msg)

    def _claim(self) -> None:
        self._check_untouched()
        self._claims().append((self._layer, self.step, self._rows))

    def _claims(self) -> list[tuple[int, int, list[int] | None]]:
        run = self._worker.interleaver.batcher
        claims: list[Any] = vars(run).setdefault(_PATCHED, [])
        return claims


def _overlap(one: list[int] | None, other: list[int] | None) -> bool:
    if one is None or other is None:
        return True
    return one[0] < sum(other) and other[0] < sum(one)


def promise(interleaver: Any, memory: Memory, settings: Any) -> None:
    """Note that a worker patches this run, so that `check_promises` looks at it."""
    promises: list[Memory] = getattr(interleaver, PROMISES, [])
    if not any(known is memory for known in promises):
        promises.append(memory)
    if Mediator.current("a promise").iteration != 0:
        # Inside `for step in tracer.iter[...]`: which steps, the caller has said.
        memory.chosen.add(settings)


def check_promises(interleaver: Any, result: Any, *, cached: bool) -> None:
    """Check that a generation was patched in the forward passes that were asked for.

    Args:
        interleaver: nnsight's interleaver, after the run.
        result: What the run returned; token ids, if it was a generation.
        cached: Whether a generation reads each token once.

    Raises:
        UnsupportedError: If forward passes were left unpatched.
    """
    ids = (getattr(interleaver, INPUTS, None) or {}).get("input_ids")
    if not isinstance(result, Tensor) or ids is None:
        return
    steps = result.shape[1] - ids.shape[1]
    for memory in getattr(interleaver, PROMISES, ()):
        for settings, done in memory.steps.items():
            if settings.steps == "prefill" and not cached and steps > 1:
                msg = (
                    'steps="prefill" patched the prompt in the first of '
                    f"{steps} forward passes, and use_cache=False makes each of them "
                    'read it again; leave the cache on, or use steps="all"'
                )
                raise UnsupportedError(msg)
            whole = settings.steps == "all" and settings not in memory.chosen
            if whole and 0 < done < steps:
                msg = (
                    f'steps="all" patched {done} of {steps} forward passes: inside '
                    "generate, write `for _ in tracer.iter[:]: intervene(...)`, or "
                    "use eah_interp.edit, which patches every step; for the prompt "
                    'alone, steps="prefill"'
                )
                raise UnsupportedError(msg)


def patches_of_run(model: Any) -> tuple[Memory, ...]:
    """List what this process's patching workers learned in a model's latest run."""
    return tuple(getattr(model.interleaver, PROMISES, ()))


@dataclass
class Run:
    """A run that is watched.

    Attributes:
        result: What it returned.
    """

    result: Any = None


@contextlib.contextmanager
def watched_run(model: Any, settings: dict[str, Any]) -> Iterator[Run]:
    """Start a run without a past, and see at its end that promised patches happened.

    Args:
        model: The model that runs.
        settings: Keyword arguments of the run.
    """
    setattr(model.interleaver, INPUTS, None)
    setattr(model.interleaver, PROMISES, [])
    run = Run()
    with warnings.catch_warnings():
        if model.loops_openly:
            warnings.filterwarnings("ignore", ".* was never reached: the loop asked")
        yield run
    cached = _reads_once(model, settings)
    check_promises(model.interleaver, run.result, cached=cached)


def _reads_once(model: Any, settings: dict[str, Any]) -> bool:
    batcher = settings.get("batcher")
    extra = {} if batcher is None else batcher.extra_kwargs
    given = {**(getattr(model.interleaver, INPUTS, None) or {}), **settings, **extra}
    config = given.get("generation_config") or model._module.generation_config
    return bool(given.get("use_cache", getattr(config, "use_cache", True)) is not False)


def stoppable(model: Any, function: Any) -> Callable[..., Any]:
    """Allow `tracer.stop()` to end a run before the layers of stored edits.

    nnsight takes an edit that still waits for its layer for one that missed it.

    Args:
        model: The model that runs.
        function: What runs: a callable, or the name of a method of the module.
    """
    named = isinstance(function, str)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            live = getattr(model._module, function) if named else function
            return live(*args, **kwargs)
        except EarlyStopException:
            for edit in model._edits:
                if edit.alive:
                    edit.worker.throw(GreenletExit)
            raise

    # nnsight goes by the name of what runs.
    call.__name__ = function if named else getattr(function, "__name__", "call")
    return call
