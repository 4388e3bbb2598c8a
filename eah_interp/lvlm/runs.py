"""One run of a model: who patches what in it, and what it must have done by its end."""

import ast
import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from types import FrameType, MethodType
from typing import Any

import torch
from nnsight.intervention.interleaver import (
    EarlyStopException,
    GreenletExit,
    Interleaver,
    Mediator,
    OutOfOrderError,
)
from nnsight.modeling.tp import TPFragments
from nnsight.tracing.backend import Backend
from nnsight.tracing.tracer import Tracer
from torch import Tensor, nn

from eah_interp.errors import NumericalError, UnsupportedError
from eah_interp.kernels.patterns import is_abstract
from eah_interp.lvlm.prompt import INPUTS, Memory, find_cache, find_setting

try:
    from nnsight.intervention.source import Controller
except ImportError:  # another nnsight, which goes its own way in every pass
    Controller = object

PROMISES = "eah_promises"
"""Attribute of nnsight's interleaver: the memories of this run's patching workers."""

PASSES = "eah_passes"
"""Attribute of nnsight's interleaver: this run's forward passes of the decoder."""

PATTERN = "eah_pattern"
"""Attribute of nnsight's interleaver: the pattern that was written out last."""

_PATCHED = "eah_patched"
"""Attribute of the run's batcher: the outputs replaced, as (place, step, rows)."""


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
        here = (self._location, self.step)
        for location, step, rows in self._claims():
            if (location, step) == here and _overlap(rows, self._rows):
                msg = (
                    f"layer {self._layer} is patched twice in one forward pass: "
                    "patches add up only after a broadcast to all heads; patch the "
                    "layer with one EAH, or call clear_edits() on the edited model"
                )
                raise UnsupportedError(msg)

    def _claim(self) -> None:
        self._check_untouched()
        self._claims().append((self._location, self.step, self._rows))

    def _claims(self) -> list[tuple[str, int, list[int] | None]]:
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
    ours = threading.get_ident()
    setattr(model.interleaver, PASSES, passes)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        if threading.get_ident() != ours:  # who calls the bare model meanwhile
            return
        given = [kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args[:1]]
        read = next((tensor for tensor in given if isinstance(tensor, Tensor)), None)
        cache = find_cache(kwargs)
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
        visits = [worker.occurrence(place) for place, worker in memory.once]
        if max(visits, default=0) > 1 or (
            memory.once and any(later.past == 0 for later in passes[1:])
        ):
            msg = (
                "the vision tower ran more than once in this run (images, then videos; "
                "or use_cache=False, which reads the prompt again at each step), and "
                "was patched the first time alone; leave the cache on, and give images "
                "and videos to runs of their own"
            )
            raise UnsupportedError(msg)
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
    asked = find_setting(model, inputs, "output_attentions")
    places = (model.config, text)
    return bool(asked) or any(getattr(p, "output_attentions", None) for p in places)


def check_alone(model: Any) -> None:
    """Refuse a run in which the decoder also reads what is none of the prompt's.

    Raises:
        UnsupportedError: If a second prompt, or the model as its own assistant, goes
            through the layers that are patched.
    """
    inputs = getattr(model.interleaver, INPUTS, None) or {}
    scale = find_setting(model, inputs, "guidance_scale")
    if scale is not None and scale != 1:
        msg = (
            f"guidance_scale={scale} reads a second prompt (negative_prompt_ids) with "
            "the same layers, which would be patched at the places of the first; "
            "leave it out, or run both prompts by themselves and combine their logits"
        )
        raise UnsupportedError(msg)
    assistant = inputs.get("assistant_model")
    assistant = getattr(assistant, "_module", assistant)
    path = model.anatomy.layers.rpartition(".")[0]
    own = set(model._module.get_submodule(path).modules())
    shared = isinstance(assistant, nn.Module) and not own.isdisjoint(
        assistant.modules()
    )
    if shared or find_setting(model, inputs, "assistant_early_exit") is not None:
        msg = (
            "the assistant has layers of the model itself, so that its guesses would "
            "be patched, and counted, as the model's passes: pass a model of its own "
            "weights as assistant_model, and no assistant_early_exit"
        )
        raise UnsupportedError(msg)


def check_mode(model: Any) -> None:
    """Refuse a model in training mode, where a patch does not do what it says.

    Raises:
        UnsupportedError: If dropout would draw, or layers would be computed a second
            time, outside the patch.
    """
    found = name_training(model._module)
    if found:
        msg = (
            f"{found}; call eval() on the model, or gradient_checkpointing_disable() "
            "if it is that"
        )
        raise UnsupportedError(msg)


def name_training(root: nn.Module) -> str:
    """Name what in training mode makes a model's passes differ.

    The model itself may be in evaluation mode: PEFT's new layers begin in training.

    Returns:
        A sentence; empty if there is nothing of the kind.
    """
    for name, module in root.named_modules():
        if not module.training:
            continue
        again = getattr(module, "gradient_checkpointing", False)
        drops = float(getattr(module, "attention_dropout", 0.0) or 0.0) > 0
        drops = drops or (isinstance(module, nn.Dropout) and module.p > 0)
        if again or drops:
            what = (
                "gradient checkpointing computes layers a second time, unpatched"
                if again
                else "dropout draws anew in every pass"
            )
            whose = "the model is" if root.training else "a part of the model is"
            return f"{whose} in training mode, and in {name or 'it'} {what}"
    return ""


def note_pattern(interleaver: Any, pattern: Tensor, *, place: str) -> None:
    """Note a pattern that was written out for a reader, until anything else is read.

    Args:
        interleaver: nnsight's interleaver.
        pattern: What was written out.
        place: What it was read as, such as `attention_probabilities[3]`.
    """
    if not pattern.is_inference():  # these do not count their changes
        setattr(interleaver, PATTERN, (pattern, pattern._version, place))


def check_pattern_unchanged(interleaver: Any, *, rewritten: str | None = None) -> None:
    """Check that a pattern was not changed in place, which changes nothing in the run.

    Args:
        interleaver: nnsight's interleaver.
        rewritten: The pattern that is written right now.

    Raises:
        UnsupportedError: If it was, and was not written back.
    """
    noted = getattr(interleaver, PATTERN, None)
    setattr(interleaver, PATTERN, None)
    if noted is None:
        return
    pattern, version, place = noted
    if pattern._version != version and place != rewritten:
        msg = (
            f"{place} was changed in place, which changes "
            "nothing in the model: it was written out for you; keep it, change it, "
            f"and assign it, as in model.{place} = pattern, "
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
    if not is_abstract(scores) and bool(torch.isnan(scores).any()):
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


def opens_block(node: ast.With | ast.AsyncWith, frame: FrameType) -> bool:
    """Whether the call that a frame is in is what a `with` statement enters.

    nnsight goes by the line: a call in the body of a block that is written on one line
    is none of the statement's own.

    Args:
        node: The statement that stands on the frame's line.
        frame: That of the caller.
    """
    places = list(frame.f_code.co_positions())
    _, line, _, column = places[frame.f_lasti // 2]
    if line is None or column is None:  # Python was told to keep no columns
        return True
    # The statement may have been parsed by itself, without its indentation.
    text = Tracer.source(frame.f_code.co_filename).splitlines()[node.lineno - 1]
    indent = len(text) - len(text.lstrip()) - node.col_offset
    return any(
        (item.context_expr.end_lineno, (item.context_expr.end_col_offset or 0) + indent)
        == (line, column)
        for item in node.items
    )


# ---- Passes in which nobody waits run as transformers runs them.
#
# nnsight stands in every module's forward, and asks there whether somebody waits for
# what goes in or comes out. In a generation's steps after a patched prompt nobody does,
# nor in any pass of a run without a patch: there the modules' own forwards are put
# back, for as long as the pass takes. What is returned is the same, bit for bit.
#
# That nobody waits is read off nnsight's state at the door of each pass: no worker has
# code left to run (an edit of all steps, a loop, a value to be saved), but for one that
# wants the run's result, which no module gives; nothing is cached; and no other wrapper
# traces the same modules. Hooks of modules, ours and the user's, run as ever.

IS_KNOWN = Controller is not object and version("nnsight").startswith("0.8.")
"""Whether this nnsight is one whose handlers are known here."""

_RESULT = "result"
"""What nnsight calls the value of a whole run, which no module hands over."""


class _Door(Controller):
    """nnsight's handler of a module that whole passes go through, and who lets them."""

    def __init__(self, module: nn.Module, handler: Any, run: "_Run") -> None:
        super().__init__(module, handler.state)
        self.run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A compiler reads this method too: it is to find nnsight's, and nothing that
        # changes from pass to pass.
        if (
            torch.compiler.is_compiling()
            or self.run.is_plain
            or not self.run.is_own()  # another thread calls the bare model
            or _somebody_waits(self.state)
        ):
            return super().__call__(*args, **kwargs)
        with self.run.plainly():
            return super().__call__(*args, **kwargs)


class _Run:
    """One run's handlers, and whether they stand aside.

    Attributes:
        is_plain: Whether a pass without them goes on.
    """

    def __init__(self, model: Any) -> None:
        self._interleaver = model.interleaver
        self.is_plain = False
        self._root: nn.Module = model._module
        self._handlers: list[tuple[dict[str, Any], Any, MethodType]] | None = None

    def is_own(self) -> bool:
        """Whether this thread is the one that runs."""
        return bool(self._interleaver.interleaving)

    @contextlib.contextmanager
    def plainly(self) -> Iterator[None]:
        """Put the modules' own forwards back, for one pass."""
        if self._handlers is None:
            self._handlers = list(_list_handlers(self._root))
        busy = self._interleaver.busy
        try:
            self.is_plain = True
            # Handlers that cannot stand aside (accelerate's modules keep theirs) are
            # told that there is nobody to ask.
            self._interleaver.busy = False
            for place, handler, forward in self._handlers:
                # Unless somebody has put a forward of his own there in the meantime.
                if place.get("forward") is handler:
                    place["forward"] = forward
            yield
        finally:
            self._interleaver.busy = busy
            self.restore()

    def restore(self) -> None:
        """Put every handler back that stands aside."""
        for place, handler, forward in self._handlers or ():
            if place.get("forward") is forward:
                place["forward"] = handler
        self.is_plain = False


@contextlib.contextmanager
def unseen_by_workers(model: Any) -> Iterator[None]:
    """Let the bare module be run inside of a run, without its workers.

    Args:
        model: The traced model.
    """
    passes = passes_of(model)
    known = len(passes)
    try:
        with _Run(model).plainly():
            yield
    finally:
        del passes[known:]  # of the decoder, where the tower is a part of it (Phi-4)


def _list_handlers(
    root: nn.Module,
) -> Iterator[tuple[dict[str, Any], Any, MethodType]]:
    """List where handlers stand, the handlers, and the forwards that they call."""
    pending, known = [root], {root}
    while pending:  # modules() takes as long as a pass of a small model
        module = pending.pop()
        below = {child for child in module._modules.values() if child is not None}
        pending += below - known
        known |= below
        place = vars(module)
        handler = place.get("forward")
        # Under accelerate's hooks, nnsight's handler is what moves tensors to devices.
        if isinstance(handler, Controller) and "_hf_hook" not in place:
            # Without operations, also where they are open.
            yield place, handler, MethodType(handler.state.original, module)


def _somebody_waits(state: Any) -> bool:
    """Whether a run that goes through a module has use for handlers now.

    Args:
        state: What nnsight keeps of the module.
    """
    for reference, *_ in state.routes:
        interleaver = reference()
        if interleaver is None or not interleaver.interleaving:
            continue
        workers = interleaver.mediators
        shards = interleaver.fragments
        if interleaver.observers or (shards is not None and shards.enabled):
            return True  # caches, and values that lie on several devices
        if interleaver.busy and not workers:
            return True  # a server's, which drives workers of its own
        if any(worker.alive and not _waits_for_result(worker) for worker in workers):
            return True
    return False


def _waits_for_result(worker: Any) -> bool:
    return worker.pending is not None and worker.pending.provider == _RESULT


@contextlib.contextmanager
def plain_passes(model: Any) -> Iterator[None]:
    """Let passes of a run in which nobody waits go without nnsight's handlers.

    At its end the model is as it was before, however it ends.

    Args:
        model: The LVLM that runs.
    """
    run, doors = _Run(model), list[tuple[dict[str, Any], Any, _Door]]()
    # What generate() calls is the whole model, or in some families a part of it.
    path = model.anatomy.layers.split(".")[:-1]
    try:
        for depth in range(len(path) + 1 if IS_KNOWN else 0):
            module = model._module.get_submodule(".".join(path[:depth]))
            place = vars(module)
            handler = place.get("forward")
            if type(handler) is Controller:
                door = _Door(module, handler, run)
                doors.append((place, handler, door))
                place["forward"] = door
        yield
    finally:
        # Again, for a Ctrl-C that came while a pass was putting them back.
        run.restore()
        for place, handler, door in doors:
            if place.get("forward") is door:
                place["forward"] = handler


# ---- One model in several threads: one run at a time, and each knows its own.


def _own(name: str) -> Any:
    """Make an attribute of which every thread has its own."""

    def read(self: Any) -> Any:
        try:
            return getattr(self.local, name)
        except AttributeError:
            raise AttributeError(name) from None

    def write(self: Any, value: Any) -> None:
        setattr(self.local, name, value)

    return property(read, write)


_locks: "weakref.WeakKeyDictionary[nn.Module, Any]" = weakref.WeakKeyDictionary()
_finding = threading.Lock()


def find_lock(module: nn.Module) -> Any:
    """Find the lock that whoever runs a model holds, for the whole run.

    It is the module's, not a wrapper's: two wrappers of one module, and their twins,
    put their handlers into the same places. The thread that holds it may take it again,
    as where a trace opens a second one.

    Args:
        module: The model that is wrapped.
    """
    with _finding:
        if module not in _locks:
            _locks[module] = threading.RLock()
        return _locks[module]


class OneRunAtATime(Interleaver):
    """nnsight's interleaver, shared by a model's threads and its patched twins.

    Workers, batches and counts of a run are kept on it, so two runs at once would take
    each other's; whoever runs holds the model's lock (`find_lock`). A module that
    another thread calls meanwhile, outside nnsight, belongs to no run.

    Attributes:
        local: What a thread knows of its latest run.
    """

    local: Any

    def __init__(self) -> None:
        """Make it as nnsight does, for models split across devices too."""
        self.local = threading.local()
        super().__init__(fragments=TPFragments())

    eah_inputs = _own("inputs")
    eah_promises = _own("promises")
    eah_passes = _own("passes")

    # Whether some thread runs, and which: no other is interleaving.
    _running = False
    _runner = 0

    @property
    def interleaving(self) -> bool:
        """Whether this thread is inside a run."""
        if not self._running:
            return False
        if torch.compiler.is_compiling():  # which cannot ask for the thread
            return True
        return self._runner == threading.get_ident()

    @interleaving.setter
    def interleaving(self, value: bool) -> None:
        self._running, self._runner = value, threading.get_ident()

    def __getstate__(self) -> dict[str, Any]:
        """Leave here what threads know: a copy has its own."""
        return {k: v for k, v in vars(self).items() if k != "local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copy's state; no thread has run it."""
        self.__dict__.update(state)
        self.local = threading.local()


class LockedBackend(Backend):
    """Runs a captured block here, when no other thread runs the model."""

    def __init__(self, lock: Any) -> None:
        """Take the model's lock."""
        self._lock = lock

    def __call__(self, tracer: Any) -> None:
        """Run the block, alone with the model."""
        with self._lock:
            super().__call__(tracer)
