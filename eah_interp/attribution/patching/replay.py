"""Running a recorded item again from some layer on, many variants to a batch."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eah_interp._types import HeadMask
from eah_interp.attribution.cases.places import keep_logits
from eah_interp.attribution.patching.recording import (
    Recording,
    widen,
    widen_patch,
    widen_prompt,
)
from eah_interp.errors import UnsupportedError
from eah_interp.interventions.donation import apply_patch
from eah_interp.interventions.patches import LayerPatch
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.anatomy import attention_operation, envoy_at, walk_sites
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.teacher import repeat_rows
from eah_interp.lvlm.worker import Prompt

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
        reuses_pictures: Whether the vision tower is left out: the decoder is called
            with what it was called with.
        skips_layers: Whether layers before the first change are left out.
    """

    recording: Recording
    reuses_pictures: bool
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
                EAH.
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
            _replaced(model, recording, n_rows, decoder=self.reuses_pictures),
            _changed_blocks(model, blocks or {}),
            model.trace(**self._inputs(n_rows), **kept, use_cache=False),
        ):
            for layer in range(start):
                envoy = envoy_at(model, f"{model.anatomy.layers}.{layer}")
                envoy.skip(widen(recording.leaving[layer], n_rows))
            for site in walk_sites(model.anatomy):
                layer = site.layer
                patched = layer >= start and layer in patching.patches
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
        if not self.reuses_pictures:
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
    for pictures, layers in _WAYS:
        replay = Replay(recording, reuses_pictures=pictures, skips_layers=layers)
        try:
            found = max(
                float(
                    (replay.run(model, 2, start=start) - recording.values).abs().max()
                )
                for start in (starts if layers else [0])
            )
        except torch.OutOfMemoryError:
            raise  # running more would need even more
        except _BREAKS:
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
"""Whether pictures are reused and layers skipped, the cheapest way first."""

_BREAKS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""How models fail that need what was left out; then more is run again."""


@dataclass(frozen=True)
class Patching:
    """How the rows of a replay are patched by EAH.

    Attributes:
        eah: The settings; None for no patch.
        patches: Who donates to the item, by layer.
        recipients: Which heads of each row receive, `[row head]`, by layer; those of
            the settings where there is no mask.
        prompt: The item's tokens.
    """

    eah: EAH | None
    patches: dict[int, LayerPatch]
    recipients: dict[int, HeadMask]
    prompt: Prompt | None

    @classmethod
    def of(cls, recording: Recording) -> "Patching":
        """Patch every row as a recorded run was patched."""
        return cls(recording.eah, recording.patches, {}, recording.prompt)

    def apply(self, operation: Any, call: AttentionCall, layer: int) -> None:
        """Patch one layer's attention call."""
        assert self.eah is not None
        assert self.prompt is not None
        n_rows = call.queries.shape[0]
        apply_patch(
            self.eah,
            operation,
            call,
            widen_prompt(self.prompt, n_rows),
            widen_patch(self.patches[layer], n_rows),
            recipients=self.recipients.get(layer),
        )


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
