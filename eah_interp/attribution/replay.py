"""Running a recorded item again from some layer on, many variants to a batch."""

import contextlib
import gc
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from eah_interp._types import HeadMask
from eah_interp.attribution.nodes import Node
from eah_interp.attribution.readouts import keep_logits
from eah_interp.attribution.runs import Recording, widen, widen_prompt
from eah_interp.errors import (
    ModelError,
    SettingsError,
    UnsupportedError,
    is_out_of_memory,
    show_value,
)
from eah_interp.indices import to_int
from eah_interp.interventions.eah import EAH
from eah_interp.interventions.intervention import Intervention
from eah_interp.interventions.point import PatchPoint
from eah_interp.lvlm.anatomy import attention_operation, envoy_at, walk_sites
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
    """

    recording: Recording
    reuses_images: bool
    skips_layers: bool

    def run(
        self,
        model: Any,
        n_rows: int,
        *,
        start: int = 0,
        at_calls: dict[int, AtCall] | None = None,
        patching: "Patching | None" = None,
        blocks: dict[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> RowValues:
        """Run copies of the item, with changes from layer `start` on.

        Args:
            model: The LVLM.
            n_rows: How many copies.
            start: No layer before this one is changed.
            at_calls: What is done at the attention calls of layers, by layer, after
                the patch.
            patching: How rows are patched; as the recorded run was, when None.
            blocks: What becomes of other components' outputs, by path.

        Returns:
            Every target in every row.
        """
        recording = self.recording
        case = recording.case
        readout = case.readout.of_copies([0] * n_rows)
        kept, read_at = keep_logits(model, readout.positions)
        start = start if self.skips_layers else 0
        at_calls = at_calls or {}
        patching = Patching.of(recording) if patching is None else patching
        with (
            model.alone(),
            _replaced(model, recording, n_rows, decoder=self.reuses_images),
            _changed_blocks(model, blocks or {}),
            model.trace(**self._inputs(n_rows), **kept, use_cache=False),
        ):
            for layer in range(start):
                envoy = envoy_at(model, f"{model.anatomy.layers}.{layer}")
                envoy.skip(widen(recording.leaving[layer], n_rows))
            for site in walk_sites(model.anatomy):
                layer = site.layer
                patched = layer >= start and layer in patching.learned
                if not patched and layer not in at_calls:
                    continue
                operation = attention_operation(model, site)
                call = AttentionCall.parse(operation.inputs)
                if patched:
                    patching.apply(operation, call, layer)
                if layer in at_calls:
                    at_calls[layer](layer, operation, call)
            final = model.output.logits.save()
        values = readout.values(final, places=read_at)
        return values.view(n_rows, -1)

    def _inputs(self, n_rows: int) -> dict[str, Any]:
        if not self.reuses_images:
            copies = repeat_rows(self.recording.case.encoding, [0] * n_rows)
            return {k: v for k, v in copies.items() if k != "labels"}
        ids = self.recording.case.encoding["input_ids"]
        return {
            name: widen(value, n_rows)
            for name, value in self.recording.case.inputs.items()
            if isinstance(value, Tensor) and value.shape == ids.shape
        }


@torch.no_grad()
def prepare_replay(model: Any, recording: Recording) -> Replay:
    """Find the least that has to be run again, by trying it out.

    The vision tower and the layers before a change are left out where two copies of
    the item, run so, have the targets that were recorded.

    Args:
        model: The LVLM.
        recording: What `record` returned, of a plain or patched run.

    Returns:
        The replay.

    Raises:
        UnsupportedError: If not even a whole run of two copies gives what was
            recorded: rows of a batch are not independent in this model.
        torch.OutOfMemoryError: If two copies do not fit on the device.
    """
    # also from the last layer alone: late layers may need what earlier ones computed
    last = model.anatomy.n_layers - 1
    starts = sorted({(last + 1) // 2, last})
    allowed = _TOLERANCE.get(model._module.dtype, _COARSE)
    allowed *= float(recording.values.abs().max().clamp(min=1.0))
    for images, layers in _WAYS:
        replay = Replay(recording, reuses_images=images, skips_layers=layers)
        try:
            found = max(
                float(
                    (replay.run(model, 2, start=start) - recording.values).abs().max()
                )
                for start in (starts if layers else [0])
            )
        except _BREAKS as error:
            if is_out_of_memory(error):
                raise  # running more would need even more
            continue
        if found <= allowed:
            return replay
    # not even whole runs: say what is wrong, or by how much
    values = replay.run(model, 2)
    msg = (
        f"two copies of an item in one batch move its targets by "
        f"{float((values - recording.values).abs().max()):.2g}: expected at most "
        f"{allowed:.2g}; rows of a batch are not independent in this model, so many "
        "patches cannot share a forward pass"
    )
    raise UnsupportedError(msg)


_WAYS = ((True, True), (True, False), (False, True), (False, False))
"""Whether images are reused and layers skipped, the cheapest way first."""

_BREAKS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
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

    def apply(self, operation: Any, call: AttentionCall, layer: int) -> None:
        """Patch one layer's attention call."""
        assert self.patch is not None
        assert self.prompt is not None
        n_rows = call.queries.shape[0]
        point = PatchPoint.at(
            operation,
            call,
            widen_prompt(self.prompt, n_rows),
            layer=layer,
            kept=self.patch.repeat(self.learned[layer], n_rows),
        )
        if isinstance(self.patch, EAH) and layer in self.recipients:
            self.patch.apply_at(point, recipients=self.recipients[layer])
        else:
            self.patch.apply_at(point)


@contextlib.contextmanager
def _replaced(
    model: Any, recording: Recording, n_rows: int, *, decoder: bool
) -> Iterator[None]:
    """Call the decoder with what it was called with, once for every row."""
    if not decoder:
        yield
        return

    def enter(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        del module, args, kwargs
        old_args, old_kwargs = recording.decoder
        return widen(old_args, n_rows), widen(old_kwargs, n_rows)

    path = model.anatomy.layers.rpartition(".")[0]
    module = model._module.get_submodule(path)
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


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch that holds nothing.

    Raises:
        SettingsError: If it is below 1.
    """
    wanted = to_int(batch_size)
    if wanted is None or wanted < 1:
        msg = f"batch_size must be at least 1, got {show_value(batch_size)}"
        raise SettingsError(msg)


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


# ---- Many variants of one run in one batch: in each row other nodes are set.


Variant = Sequence[Node]
"""The nodes that are set in a row; none for the run as it was."""


@dataclass(frozen=True)
class Given:
    """What nodes are set to.

    Attributes:
        heads: From layer and attention call (as the model makes it in that batch) to
            head outputs, `[1 query head d_value]` or what broadcasts to it.
        blocks: Outputs of other components for one item, by path.
    """

    heads: Callable[[int, AttentionCall], Tensor]
    blocks: dict[str, Tensor]


def given_by(run: Recording) -> Given:
    """Set nodes to what they returned in a recorded run."""

    def heads(layer: int, call: AttentionCall) -> Tensor:
        del call
        return run.heads[layer]

    return Given(heads, run.blocks)


def measure_variants(
    model: Any,
    run: Recording,
    variants: Sequence[Variant],
    given: Given,
    *,
    batch_size: int,
    progress: bool = False,
    label: str = "patches",
) -> Tensor:
    """Measure how each variant of a run changes its targets, `[variant target]`.

    Nodes that are given what they return anyway change nothing, and are not run.
    """
    changes = torch.zeros(len(variants), len(run.values), device=run.values.device)
    moved = find_moved(run, {node for nodes in variants for node in nodes}, given)
    chosen = [i for i, nodes in enumerate(variants) if moved & set(nodes)]
    if not chosen:
        return changes
    replay = prepare_replay(model, run)

    def measure(batch: list[Variant]) -> Tensor:
        if len(batch) == 1:
            return run_variants(model, replay, batch, given) - run.values
        # beside a copy that is left alone: what a batch does to rounding cancels out
        values = run_variants(model, replay, [(), *batch], given)
        return values[1:] - values[:1]

    changes[chosen] = in_batches(
        [variants[i] for i in chosen],
        measure,
        batch_size=batch_size,
        key=lambda nodes: min(node.layer for node in nodes),
        progress=progress,
        label=label,
    )
    return changes


@torch.no_grad()
def find_moved(run: Recording, nodes: set[Node], given: Given) -> set[Node]:
    """Find the nodes that are given something else than they returned in a run."""
    moved = {
        node
        for node in nodes
        if node.path and not torch.equal(run.blocks[node.path], given.blocks[node.path])
    }
    for layer in {node.layer for node in nodes if node.head is not None}:
        own = run.heads[layer]
        new = given.heads(layer, run.calls[layer]).to(own).expand_as(own)
        same = (new == own).all(1).all(-1)[0].tolist()
        moved |= {
            node
            for node in nodes
            if node.head is not None and node.layer == layer and not same[node.head]
        }
    return moved


@torch.no_grad()
def run_variants(
    model: Any, replay: Replay, variants: Sequence[Variant], given: Given
) -> RowValues:
    """Run a batch of variants of a recorded run, from the first layer that changes.

    Args:
        model: The LVLM.
        replay: The run.
        variants: The nodes that are set, for each row.
        given: What they are set to.

    Returns:
        Every target in every row.
    """
    n_rows = len(variants)
    heads: dict[int, Tensor] = {}
    rows_of: dict[str, list[int]] = {}
    for row, variant in enumerate(variants):
        for node in variant:
            if node.path is not None:
                rows_of.setdefault(node.path, []).append(row)
                continue
            blank = torch.zeros(n_rows, model.n_heads, dtype=torch.bool)
            heads.setdefault(node.layer, blank)[row, node.head] = True
    layers = [node.layer for variant in variants for node in variant]
    return replay.run(
        model,
        n_rows,
        start=min(layers, default=0),
        at_calls={layer: _set_heads(given, mask) for layer, mask in heads.items()},
        blocks={
            path: _set_rows(path, given.blocks[path], rows, n_rows)
            for path, rows in rows_of.items()
        },
    )


def _set_heads(given: Given, mask: Tensor) -> AtCall:
    """Set the marked heads, `[row head]`, at a layer's attention call."""

    def change(layer: int, operation: Any, call: AttentionCall) -> None:
        output = operation.output
        new = given.heads(layer, call).to(output[0])
        where = mask.to(new.device)[:, None, :, None]
        operation.output = (torch.where(where, new, output[0]), *output[1:])

    return change


def _set_rows(
    path: str, given: Tensor, rows: list[int], n_rows: int
) -> Callable[[Tensor], Tensor]:
    """Set a component's output in some rows, whatever axes it has for positions."""

    def change(output: Tensor) -> Tensor:
        if output.numel() != n_rows * given.numel():
            msg = (
                f"{path} returned {tuple(output.shape)} for {n_rows} rows: expected "
                f"{n_rows} times {tuple(given.shape)}; leave this component out"
            )
            raise ModelError(msg)
        lines = output.reshape(n_rows, -1).clone()
        lines[rows] = given.reshape(1, -1).to(lines)
        return lines.view(output.shape)

    return change
