"""One run of a model: who patches what in it, and what it must have done by its end."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from nnsight.intervention.interleaver import (
    EarlyStopException,
    GreenletExit,
    Mediator,
    OutOfOrderError,
)
from torch import Tensor, nn

from eah_interp.errors import NumericalError, UnsupportedError
from eah_interp.kernels.patterns import is_abstract
from eah_interp.lvlm.prompt import INPUTS, Memory

PROMISES = "eah_promises"
"""Attribute of nnsight's interleaver: the memories of this run's patching workers."""

PASSES = "eah_passes"
"""Attribute of nnsight's interleaver: this run's forward passes of the decoder."""

PATTERN = "eah_pattern"
"""Attribute of nnsight's interleaver: the pattern that was written out last."""

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


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass of the decoder.

    Attributes:
        cached: Tokens that stood in the key/value cache before it, as the cache gives
            them; None where the decoder does not say.
        n_rows: Tokens that it reads.
    """

    cached: int | Tensor | None
    n_rows: int

    @property
    def past(self) -> int | None:
        """Tokens that stood in the key/value cache before it; None if not known."""
        return None if self.cached is None else int(self.cached)


def passes_of(model: Any) -> list[ForwardPass]:
    """List the decoder's passes in a model's running (or latest) run, by now."""
    passes: list[ForwardPass] = getattr(model.interleaver, PASSES, [])
    return passes


@contextlib.contextmanager
def _noted_passes(model: Any) -> Iterator[None]:
    """Note what each forward pass reads, at the decoder's door.

    Steps of a generation do not say it: assisted decoding reads several tokens at a
    time, a chunked prefill reads the prompt in parts, a second turn finds the first in
    its cache, and without a cache each pass reads everything.
    """
    passes: list[ForwardPass] = []
    setattr(model.interleaver, PASSES, passes)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        given = [kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args[:1]]
        read = next((tensor for tensor in given if isinstance(tensor, Tensor)), None)
        cache = kwargs.get("past_key_values")
        cached: int | Tensor | None = 0
        if cache is not None:
            length = getattr(cache, "get_seq_length", None)
            cached = None if length is None else length()
        if isinstance(cached, Tensor):
            # A shape-only run (nnsight's scan) has a cache without a length. A static
            # cache counts on its device and in place: copied here, and read by who
            # asks, so that a generation nobody patches waits for no GPU.
            cached = None if is_abstract(cached) else cached.clone()
        passes.append(ForwardPass(cached, 0 if read is None else int(read.shape[1])))

    decoder = model._module.get_submodule(model.anatomy.layers.rpartition(".")[0])
    handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def check_promises(interleaver: Any, passes: list[ForwardPass]) -> None:
    """Check that a run was patched in the forward passes that were asked for.

    Args:
        interleaver: nnsight's interleaver, after the run.
        passes: The decoder's passes in it, whatever the run returned.

    Raises:
        UnsupportedError: If forward passes were left unpatched.
    """
    steps = len(passes)
    for memory in getattr(interleaver, PROMISES, ()):
        for settings, done in memory.steps.items():
            prefill = settings.steps == "prefill"
            if prefill and any(later.past == 0 for later in passes[1:]):
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


def wants_attentions(model: Any) -> bool:
    """Whether the running run was asked to return attention maps, wherever it was."""
    inputs = getattr(model.interleaver, INPUTS, None) or {}
    if inputs.get("output_attentions") is not None:
        return bool(inputs["output_attentions"])
    text = model.config.get_text_config(decoder=True)
    own = getattr(model._module, "generation_config", None)
    places = (inputs.get("generation_config") or own, model.config, text)
    return any(getattr(place, "output_attentions", None) for place in places)


def check_mode(model: Any) -> None:
    """Refuse a model in training mode, where a patch does not do what it says.

    Raises:
        UnsupportedError: If dropout would draw, or layers would be computed a second
            time, outside the patch.
    """
    root: nn.Module = model._module
    if not root.training:
        return
    for name, module in root.named_modules():
        if not module.training:
            continue
        again = getattr(module, "gradient_checkpointing", False)
        drops = float(getattr(module, "attention_dropout", 0.0) or 0.0) > 0
        drops = drops or (isinstance(module, nn.Dropout) and module.p > 0)
        if again or drops:
            what = (
                "gradient checkpointing computes layers a second time, without the "
                "patch; call gradient_checkpointing_disable() or eval()"
                if again
                else "dropout draws anew in every pass; call eval()"
            )
            msg = f"the model is in training mode, and in {name or 'it'} {what} on it"
            raise UnsupportedError(msg)


def note_pattern(interleaver: Any, pattern: Tensor, *, layer: int) -> None:
    """Note a pattern that was written out for a reader, until anything else is read."""
    if not pattern.is_inference():  # these do not count their changes
        setattr(interleaver, PATTERN, (pattern, pattern._version, layer))


def check_pattern_unchanged(interleaver: Any, *, rewritten: int | None = None) -> None:
    """Check that a pattern was not changed in place, which changes nothing in the run.

    Args:
        interleaver: nnsight's interleaver.
        rewritten: The layer whose pattern is written right now.

    Raises:
        UnsupportedError: If it was, and was not written back.
    """
    noted = getattr(interleaver, PATTERN, None)
    setattr(interleaver, PATTERN, None)
    if noted is None:
        return
    pattern, version, layer = noted
    if pattern._version != version and layer != rewritten:
        msg = (
            f"attention_probabilities[{layer}] was changed in place, which changes "
            "nothing in the model: it was written out for you; keep it, change it, "
            f"and assign it, as in model.attention_probabilities[{layer}] = pattern, "
            "or change a clone() of it"
        )
        raise UnsupportedError(msg)


def patches_of_run(model: Any) -> tuple[Memory, ...]:
    """List what this process's patching workers learned in a model's latest run."""
    return tuple(getattr(model.interleaver, PROMISES, ()))


@contextlib.contextmanager
def watched_run(model: Any) -> Iterator[None]:
    """Start a run without a past, and check at its end that promised patches happened.

    Args:
        model: The model that runs.
    """
    setattr(model.interleaver, INPUTS, None)
    setattr(model.interleaver, PROMISES, [])
    setattr(model.interleaver, PATTERN, None)
    with warnings.catch_warnings(), _noted_passes(model):
        if model.loops_openly:
            warnings.filterwarnings("ignore", ".* was never reached: the loop asked")
        yield
    check_promises(model.interleaver, passes_of(model))
    check_pattern_unchanged(model.interleaver)


def refuse_nan(ids: Tensor, scores: Tensor) -> Tensor:
    """Stop a generation whose logits are no numbers: its words would be chance.

    Raises:
        NumericalError: If one is NaN.
    """
    del ids
    if bool(torch.isnan(scores).any()):
        msg = (
            "the model's logits are NaN: expected numbers; load it in another dtype, "
            "or see what the patch does to it"
        )
        raise NumericalError(msg)
    return scores


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
