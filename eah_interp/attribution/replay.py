"""Running a recorded item again from some layer on, many variants to a batch."""

import contextlib
import gc
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from eah_interp._types import HeadMask
from eah_interp.attribution.readouts import keep_logits
from eah_interp.attribution.runs import Recording, cut, share, widen, widen_prompt
from eah_interp.errors import (
    SettingsError,
    UnsupportedError,
    is_out_of_memory,
    show_value,
)
from eah_interp.indices import to_int
from eah_interp.interventions.eah import EAH
from eah_interp.interventions.intervention import Intervention
from eah_interp.interventions.point import PatchPoint
from eah_interp.lvlm.anatomy import (
    attention_operation,
    block_paths,
    envoy_at,
    walk_sites,
)
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.inputs import repeat_rows
from eah_interp.lvlm.prompt import Prompt

AtCall = Callable[[int, Any, AttentionCall], None]
"""What is done at a layer's attention call: `(layer, operation, call)`."""

RowValues = Float[Tensor, "row target"]

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}

_COARSE = 5e-2


@dataclass(frozen=True)
class Replay:
    """How a recorded item can be run again.

    Attributes:
        recording: The item.
        reuses_images: Whether the vision tower is left out: the decoder is called
            with what it was called with.
        skips_layers: Whether layers before the first change are left out.
        cuts_rows: Whether positions are left out: those before the first change, whose
            keys and values are the recorded ones, and in the last layer those before
            the first that is read.
        ways: How variants from a layer on can be run, by layer, where that was found
            not to be the cheapest way.
    """

    recording: Recording
    reuses_images: bool
    skips_layers: bool
    cuts_rows: bool = False
    ways: dict[int, int] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """Positions of the item."""
        return count_tokens(self.recording)

    @property
    def first_read(self) -> int:
        """The first position that a target is read at."""
        return int(self.recording.case.readout.positions.min())

    def run(
        self,
        model: Any,
        n_rows: int,
        *,
        start: int = 0,
        first: int = 0,
        at_calls: dict[int, AtCall] | None = None,
        attended: dict[int, Any] | None = None,
        patching: "Patching | None" = None,
        blocks: dict[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> RowValues:
        """Run copies of the item, with changes from layer `start` on.

        What is given to it and got from it at layers has the positions from `first`
        on only; keys, values and masks of `at_calls` are whole.

        Args:
            model: The LVLM.
            n_rows: How many copies.
            start: No layer before this one is changed.
            first: No position before this one is changed; 0 unless `cuts_rows`.
            at_calls: What is done at the attention calls of layers, by layer, after
                the patch.
            attended: What attention modules return, by layer, instead of being run;
                their layers' patches and `at_calls` are left out with them.
            patching: How rows are patched; as the recorded run was, when None.
            blocks: What becomes of other components' outputs, by path.

        Returns:
            Every target in every row.
        """
        recording = self.recording
        case = recording.case
        readout = case.readout.of_copies([0] * n_rows)
        kept, read_at = _keep_logits(model, readout.positions, first, self.n_tokens)
        start = start if self.skips_layers else 0
        at_calls, attended, blocks = at_calls or {}, attended or {}, blocks or {}
        patching = Patching.of(recording) if patching is None else patching
        rows = self._list_rows(
            model, start, first, {*at_calls, *attended, *patching.learned}, blocks
        )
        last = model.anatomy.n_layers - 1
        with (
            model.alone(),
            _replaced(model, recording, n_rows, first, decoder=self.reuses_images),
            _changed_blocks(model, blocks),
            _cut_modules(model, last, rows.get(last, first) - first),
            model.trace(**self._inputs(n_rows, first), **kept, use_cache=False),
        ):
            assert recording.prompt is not None
            for layer in range(start):
                envoy = envoy_at(model, f"{model.anatomy.layers}.{layer}")
                left = cut(recording.leaving[layer], first, recording.prompt)
                envoy.skip(share(left, n_rows))
            for site in walk_sites(model.anatomy):
                layer = site.layer
                if layer < start:
                    continue
                if layer in attended:
                    envoy_at(model, site.path).skip(attended[layer])
                    continue
                patched = layer in patching.learned
                if not patched and layer not in at_calls and layer not in rows:
                    continue
                operation = attention_operation(model, site)
                call = AttentionCall.parse(operation.inputs)
                if layer in rows:
                    whole = recording.calls[layer]
                    call = call.resume(whole, first, row=rows[layer])
                    operation.inputs = call.inputs
                if patched:
                    patching.apply(operation, call, layer, first=first)
                if layer in at_calls:
                    at_calls[layer](layer, operation, call)
                if rows.get(layer, first) > first:
                    operation.output = _pad(operation.output, rows[layer] - first)
            final = model.output.logits.save()
        values = readout.values(final, places=read_at)
        return values.view(n_rows, -1)

    def _list_rows(
        self, model: Any, start: int, first: int, changed: set[int], blocks: Any
    ) -> dict[int, int]:
        """List the first position that attends in each layer that is cut, by layer."""
        layers = [layer for layer in model.anatomy.sites if layer >= start]
        rows = dict.fromkeys(layers if first else [], first)
        last = model.anatomy.n_layers - 1
        own = f"{model.anatomy.layers}.{last}."
        free = last not in changed and not any(path.startswith(own) for path in blocks)
        wanted = worth_cutting(self.first_read, self.n_tokens)
        if self.cuts_rows and free and wanted > first:
            rows[last] = wanted
        return rows

    def _inputs(self, n_rows: int, first: int) -> dict[str, Any]:
        if not self.reuses_images:
            copies = repeat_rows(self.recording.case.encoding, [0] * n_rows)
            return {k: v for k, v in copies.items() if k != "labels"}
        ids = self.recording.case.encoding["input_ids"]
        return {
            name: widen(value[:, first:], n_rows)
            for name, value in self.recording.case.inputs.items()
            if isinstance(value, Tensor) and value.shape == ids.shape
        }


def count_tokens(recording: Recording) -> int:
    """Count the positions of a recorded item."""
    return int(recording.case.encoding["input_ids"].shape[1])


HeadChanges = tuple[Sequence[int], Float[Tensor, "position _ d_value"]]
"""Heads of a layer, and what each returns more than was recorded: `[position head
d_value]`, of as many heads as are changed."""


def add_to_attended(
    recording: Recording,
    layer: int,
    projection: nn.Linear,
    rows: Sequence[HeadChanges | None],
    *,
    first: int = 0,
) -> Any:
    """Compute what a layer's attention returns where heads return something else.

    It is what was recorded, and the heads' changes through their part of the output
    projection.

    Args:
        recording: The item, with what its attention returned.
        layer: The layer.
        projection: Its output projection.
        rows: What changes in each row; None where nothing does.
        first: The first position that is wanted.
    """
    kept = recording.attended[layer]
    whole = kept[0] if isinstance(kept, tuple) else kept
    found = whole[:, first:].repeat(len(rows), 1, 1)
    n_heads, width = recording.heads[layer].shape[2:]
    weight = projection.weight.reshape(-1, n_heads, width)
    for row, changed in enumerate(rows):
        if changed is not None:
            heads, change = changed
            part = weight[:, list(heads)].flatten(1).float()
            added = change[first:].flatten(1) @ part.T
            found[row] = (found[row].float() + added).to(found)
    return (found, *kept[1:]) if isinstance(kept, tuple) else found


def worth_cutting(first: int, n_tokens: int) -> int:
    """Return the position that a run is best cut at: a first one, or 0.

    Rows that are cut off attend with a mask, which costs what a few rows save.
    """
    return first if 4 * first >= n_tokens else 0


def _pad(output: Any, n_missing: int) -> Any:
    """Put zeros, `[batch query ...]`, where an output's first rows were left out."""
    if isinstance(output, tuple):
        return (_pad(output[0], n_missing), *output[1:])
    blank = output.new_zeros(output.shape[0], n_missing, *output.shape[2:])
    return torch.cat([blank, output], 1)


def _keep_logits(
    model: Any, positions: Tensor, first: int, n_tokens: int
) -> tuple[dict[str, Any], Tensor | None]:
    """Ask for logits at some positions, where a run has those from `first` on."""
    kept, read_at = keep_logits(model, positions)
    if first == 0:
        return kept, read_at
    if read_at is None:
        return {}, torch.arange(first, n_tokens)
    return {name: places - first for name, places in kept.items()}, read_at


@contextlib.contextmanager
def _cut_modules(model: Any, layer: int, n_missing: int) -> Iterator[None]:
    """Leave a layer's first rows out of its output projection and its other components.

    What these would return there is zero: nothing that is read depends on it.
    """
    if not n_missing:
        yield
        return
    site, own = model.anatomy.sites[layer], f"{model.anatomy.layers}.{layer}."
    blocks = block_paths(model._module, model.anatomy)
    paths = [path for path in blocks if path.startswith(own)]
    if site.out_proj is not None:
        paths.append(site.out_proj)
    cut_now: set[str] = set()
    handles = []
    for path in paths:

        def enter(
            module: nn.Module, args: Any, kwargs: Any, path: str = path
        ) -> tuple[Any, Any] | None:
            del module
            # Others are called with more than a stream, as experts with their choice.
            if len(args) != 1 or kwargs or args[0].ndim != 3:
                return None
            cut_now.add(path)
            return (args[0][:, n_missing:],), kwargs

        def leave(module: nn.Module, args: Any, output: Any, path: str = path) -> Any:
            del module, args
            if path not in cut_now:
                return None
            cut_now.discard(path)
            return _pad(output, n_missing)

        module = model._module.get_submodule(path)
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def prepare_replay(
    model: Any, recording: Recording, *, first: int = 0, n_rows: int = 2
) -> Replay:
    """Find the least that has to be run again, by trying it out.

    The vision tower and the layers before a change are left out where copies of the
    item, run so, have the targets that were recorded; positions are left out where
    later layers' keys and values are the recorded ones too.

    Args:
        model: The LVLM.
        recording: What `record` returned, of a plain or patched run.
        first: The first position that will be changed.
        n_rows: Copies that it is tried with; one where none ever share a batch.

    Returns:
        The replay.

    Raises:
        UnsupportedError: If not even a whole run of so many copies gives what was
            recorded: rows of a batch are not independent in this model.
        torch.OutOfMemoryError: If they do not fit on the device.
    """
    # also from the last layer alone: late layers may need what earlier ones computed
    last = model.anatomy.n_layers - 1
    starts = sorted({(last + 1) // 2, last})
    from_here = worth_cutting(first, count_tokens(recording))
    cuttable = _may_cut(model, recording, from_here)
    ways = _WAYS if cuttable else [way for way in _WAYS if not way[2]]
    for images, layers, rows in ways:
        replay = Replay(recording, images, layers, rows)
        begin = from_here if rows else 0
        try:
            for start in starts if layers else [0]:
                _try_out(model, replay, n_rows, start=start, first=begin)
        except BREAKS as error:
            if is_out_of_memory(error):
                raise  # running more would need even more
            continue
        return replay
    # not even whole runs: say what is wrong, or by how much
    values = Replay(recording, reuses_images=False, skips_layers=False).run(
        model, n_rows
    )
    allowed = allow(model, recording)
    who = "two copies of an item in one batch move" if n_rows > 1 else "a copy moves"
    msg = (
        f"{who} its targets by "
        f"{float((values - recording.values).abs().max()):.2g}: expected at most "
        f"{allowed:.2g}; rows of a batch are not independent in this model, so many "
        "patches cannot share a forward pass"
    )
    raise UnsupportedError(msg)


def allow(model: Any, recording: Recording) -> float:
    """Say how far copies of an item may be from its recorded targets."""
    allowed = _TOLERANCE.get(model._module.dtype, _COARSE)
    return allowed * float(recording.values.abs().max().clamp(min=1.0))


class _ApartError(RuntimeError):
    """Copies of an item are not what was recorded."""


def check_copy(model: Any, recording: Recording, values: Tensor) -> None:
    """Check that copies of an item that were left alone have its recorded targets."""
    if not float((values - recording.values).abs().max()) <= allow(model, recording):
        raise _ApartError


def _try_out(
    model: Any, replay: Replay, n_rows: int, *, start: int, first: int
) -> None:
    """Check that copies of an item, run from a layer on, are what was recorded."""
    recording = replay.recording
    allowed = _TOLERANCE.get(model._module.dtype, _COARSE)
    gaps: list[Tensor] = []

    def compare(layer: int, operation: Any, call: AttentionCall) -> None:
        del operation
        own = recording.calls[layer]
        for found, kept in ((call.keys, own.keys), (call.values, own.values)):
            size = kept.abs().max().clamp(min=1.0)
            gaps.append((found - kept).abs().max() / size)

    # Of rows that go on from others, those that read nothing may be wrong unseen.
    last = model.anatomy.n_layers - 1
    later = [layer for layer in model.anatomy.sites if start <= layer < last]
    looks: dict[int, AtCall] = dict.fromkeys(later if first else [], compare)
    values = replay.run(model, n_rows, start=start, first=first, at_calls=looks)
    check_copy(model, recording, values)
    if gaps and not float(torch.stack(gaps).max()) <= allowed:
        raise _ApartError


def _may_cut(model: Any, recording: Recording, first: int) -> bool:
    """Tell whether positions before a first one can be left out.

    They can where positions only see each other at attention calls, whose rows can be
    cut, and none of them looks ahead.
    """
    layers = model._module.get_submodule(model.anatomy.layers)
    if model.anatomy.unfit or any(
        "conv" in type(module).__name__.lower() for module in layers.modules()
    ):
        return False
    return all(
        layer in recording.masked
        and not recording.calls[layer].why_not_resumed()
        and not recording.calls[layer].looks_ahead(first)
        for layer in model.anatomy.sites
    )


_WAYS = (
    (True, True, True),
    (True, True, False),
    (True, False, False),
    (False, True, False),
    (False, False, False),
)
"""Whether images are reused, layers skipped and rows cut, the cheapest way first."""

BREAKS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""How models fail that need what was left out; then more is run again."""


@dataclass(frozen=True)
class Patching:
    """How the rows of a replay are patched.

    Attributes:
        patch: The settings; None for no patch.
        learned: What they learned from the item's prompt, by layer: of EAH, who
            donates.
        recipients: Of EAH, which heads of each row receive, `[row head]`, by layer;
            those of the settings where there is no mask.
        prompt: The item's tokens.
    """

    patch: Intervention | None
    learned: dict[int, Any]
    recipients: dict[int, HeadMask]
    prompt: Prompt | None

    @classmethod
    def of(cls, recording: Recording) -> "Patching":
        """Patch every row as a recorded run was patched."""
        return cls(recording.patch, recording.learned, {}, recording.prompt)

    def apply(
        self, operation: Any, call: AttentionCall, layer: int, *, first: int = 0
    ) -> None:
        """Patch one layer's attention call, whose rows begin at position `first`."""
        assert self.patch is not None
        assert self.prompt is not None
        n_rows = call.queries.shape[0]
        point = PatchPoint.at(
            operation,
            call,
            widen_prompt(self.prompt, n_rows),
            layer=layer,
            first=first,
            kept=self.patch.repeat(self.learned[layer], n_rows),
        )
        if isinstance(self.patch, EAH) and layer in self.recipients:
            self.patch.apply_at(point, recipients=self.recipients[layer])
        else:
            self.patch.apply_at(point)


@contextlib.contextmanager
def _replaced(
    model: Any, recording: Recording, n_rows: int, first: int, *, decoder: bool
) -> Iterator[None]:
    """Call the decoder with what it was called with, once for every row.

    Positions before `first` are left out.
    """
    if not decoder:
        yield
        return
    path = model.anatomy.layers.rpartition(".")[0]
    module = model._module.get_submodule(path)
    counts = "position_ids" in inspect.signature(type(module).forward).parameters

    def enter(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        del module, args, kwargs
        assert recording.prompt is not None
        old_args, old_kwargs = cut(recording.decoder, first, recording.prompt)
        if first and counts and old_kwargs.get("position_ids") is None:
            # Left to itself, it would count from 0.
            width = recording.prompt.image_mask.shape[1]
            places = torch.arange(
                first, width, device=recording.prompt.image_mask.device
            )
            old_kwargs = old_kwargs | {"position_ids": places[None]}
        return widen(old_args, n_rows), widen(old_kwargs, n_rows)

    handle = module.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _changed_blocks(
    model: Any, blocks: dict[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Change the outputs of components that are not attention."""
    handles = []
    for path, change in blocks.items():

        def leave(
            module: nn.Module,
            args: Any,
            output: Any,
            change: Callable[[Tensor], Tensor] = change,
        ) -> Any:
            del module, args
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        module = model._module.get_submodule(path)
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---- Many small jobs, as many at once as memory allows.


Job = TypeVar("Job")


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


def check_batch_size(batch_size: int | None) -> None:
    """Refuse a batch that holds nothing; None leaves its size to the device.

    Raises:
        SettingsError: If it is below 1.
    """
    if batch_size is None:
        return
    wanted = to_int(batch_size)
    if wanted is None or wanted < 1:
        msg = f"batch_size must be at least 1, got {show_value(batch_size)}"
        raise SettingsError(msg)


_ROWS = {"cpu": 1024, "cuda": 65536}
"""Positions that one batch has at most, by type of device: more is no faster there."""


def choose_batch_size(model: Any, n_positions: int) -> int:
    """Choose how many copies of an item share a forward pass: 64 at most.

    On a CPU as many as make one long prompt: more need memory, and are slower. On a
    GPU as many as fit into half of the memory that is free.

    Args:
        model: The LVLM.
        n_positions: Positions that each copy runs.
    """
    device = model.device
    rows = min(64, _ROWS.get(device.type, 8192) // n_positions)
    if device.type == "cuda":
        text = model.config.get_text_config(decoder=True)
        width = int(getattr(text, "intermediate_size", 0) or 4 * text.hidden_size)
        # What a layer holds at once: its stream several times, and the MLP's insides.
        held = n_positions * (16 * text.hidden_size + 4 * width)
        free = torch.cuda.mem_get_info(device)[0] + (
            torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        )
        rows = min(rows, int(free / 2 / (held * model._module.dtype.itemsize)))
    return max(rows, 1)


def _attempt(run: Callable[[list[Job]], Tensor], batch: list[Job]) -> Tensor | None:
    """Run a batch; None, with a warning, if it does not fit and a smaller one may."""
    try:
        return run(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(batch) == 1:
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
