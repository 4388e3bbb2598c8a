"""Names for hook points, the same on every family: what a trace reads and writes.

The names are nnterp's where it has them (Dumas, "nnterp", 2025): `layers_output[3]`
inside `with model.trace(...)` is the residual stream that leaves layer 3, whatever the
layer is called and whatever it returns. Where each of them is, `anatomy.py` has found;
nothing here knows a module's name. docs/hook-points.md has the table.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from nnsight import TransformersModel
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from eah_interp._types import ColumnMask, HeadOutputs, Pattern
from eah_interp.errors import InputError, ModelError, SettingsError, UnsupportedError
from eah_interp.indices import to_int
from eah_interp.lvlm.anatomy import (
    Anatomy,
    AttentionSite,
    attention_operation,
    envoy_at,
)
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.prompt import memory_of_worker, prompt_of_worker
from eah_interp.lvlm.runs import (
    PatchedCall,
    check_mode,
    check_pattern_unchanged,
    note_pattern,
    passes_of,
)
from eah_interp.lvlm.tower_calls import PackedOperation, place_of, tower_operation
from eah_interp.lvlm.verify import verify_tower_call
from eah_interp.lvlm.writers import find_writers


class LayerValues(ABC):
    """One kind of hook point: read with `[layer]`, written with `[layer] = tensor`.

    Layers are counted from 0, or from the end with negative numbers. A tensor that is
    written has the shape of what it replaces, and takes its dtype and device.
    """

    shape = "[batch, token, d_model]"

    def __init__(self, model: Any, name: str) -> None:
        self._model = model
        self._name = name

    def __repr__(self) -> str:
        """Show what it is, which needs no trace."""
        return f"<{self._name} of {len(self)} layers, {self.shape} each>"

    def __len__(self) -> int:
        """Number of layers, those included that have no such value."""
        return self._anatomy.n_layers

    def __iter__(self) -> Iterator[Tensor]:
        """Read layer after layer."""
        return (self[layer] for layer in range(len(self)))

    def __getitem__(self, layer: int) -> Tensor:
        """Read the value of a layer, in a trace.

        Raises:
            SettingsError: If there is no such layer.
            ModelError: If the layer has no such value.
            UnsupportedError: Outside a trace, or after it has passed.
        """
        return self._read(self._begin(layer))

    def __setitem__(self, layer: int, value: Tensor) -> None:
        """Write the value of a layer, in a trace; raises as reading does.

        Raises:
            InputError: If it is no tensor of the shape of what it replaces.
        """
        self._write(self._begin(layer, writes=True), value)

    @abstractmethod
    def _read(self, layer: int) -> Tensor: ...

    @abstractmethod
    def _write(self, layer: int, value: Tensor) -> None: ...

    @property
    def _anatomy(self) -> Anatomy:
        anatomy: Anatomy = self._model.anatomy
        return anatomy

    def _begin(self, layer: int, *, writes: bool = False) -> int:
        """Check, before anything waits for the model, that the layer exists."""
        index, n_layers = to_int(layer), len(self)
        if index is None or not -n_layers <= index < n_layers:
            msg = (
                f"{self._name}[{layer!r}] does not exist: expected one layer, 0 to "
                f"{n_layers - 1}, or -1 for the last"
            )
            raise SettingsError(msg)
        memory_of_worker()  # refused outside a trace
        index %= n_layers
        rewritten = f"{self._name}[{index}]" if writes else None
        check_pattern_unchanged(self._model.interleaver, rewritten=rewritten)
        return index

    def _check_order(self, layer: int, *locations: str) -> None:
        """Check that the model has not passed by.

        nnsight tells it of the first pass of a run; in later ones it would wait, and
        give what the next step of the generation has there.
        """
        worker = Mediator.current(self._name)
        if any(_is_over(self._model, worker, location) for location in locations):
            msg = (
                f"{self._name}[{layer}] has passed: values come in the order of the "
                "forward pass, from the vision tower over the layers to the logits, "
                "and within a layer from its input over queries, keys and values, the "
                "heads, the attention and the MLP to its output; ask for it before "
                "what comes later"
            )
            raise UnsupportedError(msg)

    def _check_rows(self, tensor: Tensor) -> Tensor:
        """Check that one invoke gets its own rows, and not those of the others.

        Raises:
            UnsupportedError: If nnsight cannot tell them apart.
        """
        rows = _rows_of_invoke()
        if rows is not None and tensor.shape[0] != rows:
            msg = (
                f"{self._name}: expected the {rows} rows of one invoke, got "
                f"{tensor.shape[0]}: what beams repeat, or a module packs, cannot be "
                "told apart by invokes; give all images and prompts to one trace or "
                "generation, or read it in an empty tracer.invoke()"
            )
            raise UnsupportedError(msg)
        return tensor

    def _fit(self, layer: int, value: Any, own: Tensor) -> Tensor:
        """Check a written value against what it replaces."""
        return _fit(f"{self._name}[{layer}]", value, own)


def _is_over(model: Any, worker: Any, location: str) -> bool:
    """Tell whether the pass that a worker reads has left a location behind."""
    seen = worker.occurrence(location)
    if worker.iteration is not None:
        return bool(seen > worker.iteration)
    # A later step: nnsight takes the next visit, which may be another pass's.
    passes = len(passes_of(model))
    running = worker.occurrence(f"{model.path}.output") < passes
    return bool(running and seen >= passes)


def _rows_of_invoke() -> int | None:
    """Count the rows of the invoke that asks; None where it sees all rows."""
    worker = Mediator.current("rows")
    batcher = None if worker.interleaver is None else worker.interleaver.batcher
    if batcher is None or not batcher.batching or worker.batch_group is None:
        return None
    return int(worker.batch_group[1])


def _fit(name: str, value: Any, own: Tensor) -> Tensor:
    _check_shape(name, value, tuple(own.shape))
    fitting: Tensor = value.to(own.device, own.dtype)
    return fitting


def _check_shape(name: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        msg = f"{name} = ...: expected a tensor of shape {shape}, got {got}"
        raise InputError(msg)


class ModuleValues(LayerValues):
    """What modules take or return, as `[batch, token, d_model]`, packed or in tuples.

    What is read is the model's own tensor: changed in place, it is changed in the run.
    """

    def __init__(
        self, model: Any, name: str, *, side: Literal["input", "output"]
    ) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        LayerValues.__init__(self, model, name)
        self._side = side

    def _path(self, layer: int) -> str:
        return f"{self._anatomy.layers}.{layer}"

    def _reach(self, layer: int) -> Any:
        envoy = envoy_at(self._model, self._path(layer))
        self._check_order(layer, f"{envoy.path}.{self._side}")
        return envoy

    def _read(self, layer: int) -> Tensor:
        envoy = self._reach(layer)
        whole = getattr(envoy, self._side)
        own = _first(whole, self._name)
        value = self._unpack(own)
        if value is not own and _wants_gradient(value):
            setattr(envoy, self._side, _pack(value, whole))
        return value

    def _write(self, layer: int, value: Tensor) -> None:
        envoy = self._reach(layer)
        whole = getattr(envoy, self._side)
        own = self._unpack(_first(whole, self._name))
        setattr(envoy, self._side, _pack(self._fit(layer, value, own), whole))

    def _unpack(self, own: Tensor) -> Tensor:
        """Give `[batch * token, d_model]` its tokens back."""
        passes = passes_of(self._model)
        if own.ndim == 2 and passes:
            own = own.view(-1, passes[-1].n_rows, own.shape[-1])
        if own.ndim != 3:
            msg = (
                f"{self._name} has shape {tuple(own.shape)}: expected {self.shape}; "
                "read the module itself, through model.model"
            )
            raise ModelError(msg)
        return self._check_rows(own)


def _pack(value: Tensor, whole: Any) -> Any:
    """Put a value where a module's own was: packed, or in a tuple."""
    if isinstance(whole, tuple):
        return value.reshape(whole[0].shape), *whole[1:]
    return value.reshape(whole.shape)


def _wants_gradient(value: Tensor) -> bool:
    """Tell whether a view has to be put into the run, to have a gradient.

    nnsight's `.grad` is of what the model went on from. In one of several invokes rows
    are copied on the way back: there a change in place would be lost, and is not.
    """
    return value.requires_grad and torch.is_grad_enabled() and not _rows_of_invoke()


def _first(whole: Any, name: str) -> Tensor:
    first = whole[0] if isinstance(whole, tuple) else whole
    if not isinstance(first, Tensor):
        msg = f"{name} is no tensor in this model: got {type(first).__name__}"
        raise ModelError(msg)
    return first


class AddedValues(ModuleValues):
    """What a layer's attention or MLP adds to the residual stream."""

    def __init__(
        self, model: Any, name: str, *, of: Literal["attention", "mlp"]
    ) -> None:
        ModuleValues.__init__(self, model, name, side="output")
        self._of = of

    def _path(self, layer: int) -> str:
        if self._of == "attention":
            self._anatomy.site(layer)
        path = ModuleValues._path(self, layer)
        writer: str | None = getattr(self._anatomy.writers[layer], self._of)
        if writer is None:
            msg = (
                f"{self._name}[{layer}] does not exist: no module of {path} returns "
                f"what its {self._of} adds to the residual stream, by the source of "
                "its forward and a run at load; read its modules themselves"
            )
            raise ModelError(msg)
        check_mode(self._model)
        return f"{path}.{writer}"


# ---- At the attention call.


class CallValues(LayerValues):
    """A value at the attention call of a layer."""

    shape = "[batch, head, token, d_head]"

    def _operation(self, site: AttentionSite) -> Any:
        return attention_operation(self._model, site)

    def _reach(self, layer: int, key: str) -> tuple[AttentionSite, Any]:
        site = self._anatomy.site(layer)
        operation = self._operation(site)
        attention = envoy_at(self._model, site.path)
        # nnsight does not count the calls of a module that it had not opened yet
        places = (place_of(operation, key), f"{attention.path}.output")
        self._check_order(layer, *places)
        return site, operation

    def _call(self, site: AttentionSite, operation: Any) -> AttentionCall:
        del site
        call = AttentionCall.parse(operation.inputs)
        self._check_rows(call.queries)
        return call


class CallInputs(CallValues):
    """Queries, keys or values as the attention function gets them."""

    def __init__(
        self, model: Any, name: str, *, which: Literal["queries", "keys", "values"]
    ) -> None:
        CallValues.__init__(self, model, name)
        self._which = which

    def _read(self, layer: int) -> Tensor:
        site, operation = self._reach(layer, "input")
        own: Tensor = getattr(self._call(site, operation), self._which)
        return own

    def _write(self, layer: int, value: Tensor) -> None:
        site, operation = self._reach(layer, "input")
        call = self._call(site, operation)
        fitted = self._fit(layer, value, getattr(call, self._which))
        changes: dict[str, Any] = {self._which: fitted}
        operation.inputs = replace(call, **changes).inputs


class HeadsOutput(CallValues):
    """What every head returns: its pattern times its values."""

    def _own(self, operation: Any) -> tuple[HeadOutputs, tuple[Any, ...]]:
        returned = operation.output
        own: HeadOutputs = self._check_rows(returned[0])
        return own, tuple(returned[1:])

    def _read(self, layer: int) -> Tensor:
        _, operation = self._reach(layer, "output")
        own, rest = self._own(operation)
        heads = own.transpose(1, 2)
        if _wants_gradient(heads):
            operation.output = (heads.transpose(1, 2), *rest)
        return heads

    def _write(self, layer: int, value: Tensor) -> None:
        _, operation = self._reach(layer, "output")
        own, rest = self._own(operation)
        new = self._fit(layer, value, own.transpose(1, 2))
        operation.output = (new.transpose(1, 2).contiguous(), *rest)


class AttentionProbabilities(CallValues):
    """The pattern of every head, written out only where it is asked for.

    What is read is computed for the reader, from the call: changed in place it changes
    nothing, which is refused. Written, it is what the heads mix their values by.
    """

    shape = "[batch, head, query, key]"

    def _read(self, layer: int) -> Pattern:
        check_mode(self._model)
        site, operation = self._reach(layer, "input")
        pattern = self._call(site, operation).pattern()
        place = f"{self._name}[{layer}]"
        note_pattern(self._model.interleaver, pattern, place=place)
        return pattern

    def _write(self, layer: int, value: Tensor) -> None:
        check_mode(self._model)
        site, operation = self._reach(layer, "input")
        patched = PatchedCall(operation, layer=site.layer)
        call = self._call(site, operation)
        n_keys = call.pattern_inputs()["keys"].shape[2]
        _check_shape(f"{self._name}[{layer}]", value, (*call.queries.shape[:3], n_keys))
        value = value.to(call.values.device)
        _, *maps = patched.output
        if maps and maps[0] is not None:  # what the run returns with output_attentions
            maps[0] = value.to(maps[0].dtype)
        patched.output = (call.apply(value), *maps)


# ---- The same in the vision tower.


class InTower(LayerValues):
    """What the vision tower's layers have, in the tower's own shape."""

    shape = "[image or tile, patch, d_vision] or [patch, d_vision]"

    @property
    def _anatomy(self) -> Anatomy:
        tower: Anatomy | None = self._model.anatomy.tower
        if tower is None:
            msg = (
                f"this model has no {self._name}: its config has no vision tower, or "
                "the tower has no list of layers that attend"
            )
            raise ModelError(msg)
        return tower

    def __repr__(self) -> str:
        """Show what it is, also where there is none."""
        if self._model.anatomy.tower is None:
            return f"<no {self._name} in this model>"
        return LayerValues.__repr__(self)

    def _begin(self, layer: int, *, writes: bool = False) -> int:
        index = LayerValues._begin(self, layer, writes=writes)
        if _rows_of_invoke() is not None:
            msg = (
                f"{self._name} cannot be told apart by invokes: the tower sees images, "
                "tiles or patches, not rows; give all images and prompts to one trace, "
                "or read it in an empty tracer.invoke()"
            )
            raise UnsupportedError(msg)
        return index

    def _unpack(self, own: Tensor) -> Tensor:
        return own

    def _operation(self, site: AttentionSite) -> Any:
        return tower_operation(self._model, site)

    def _call(self, site: AttentionSite, operation: Any) -> AttentionCall:
        call = AttentionCall.parse(operation.inputs)
        verify_tower_call(self._model, site, call)
        return call


class VisionValues(InTower, ModuleValues):
    """What the tower's layers take or return."""


class VisionAdded(InTower, AddedValues):
    """What a tower's layer's attention or MLP adds to its stream."""

    def _path(self, layer: int) -> str:
        anatomy = self._anatomy
        if layer not in anatomy.writers:
            # Found when it is asked for, and not while a model is loaded.
            path = f"{anatomy.layers}.{layer}"
            site = anatomy.sites.get(layer)
            own = None if site is None else site.path.removeprefix(f"{path}.")
            whole = self._model._module.get_submodule(path)
            anatomy.writers[layer] = find_writers(whole, attention=own)
        return AddedValues._path(self, layer)


_INPUTS = ("queries", "keys", "values")

_OF_CALL = "[image or tile, head, patch, d_head], or [1, head, patch, d_head]"


class VisionInputs(InTower, CallInputs):
    """Queries, keys or values of the tower, as its attention function gets them."""

    shape = _OF_CALL

    def _read(self, layer: int) -> Tensor:
        _, operation = self._reach(layer, "input")
        if not isinstance(operation, PackedOperation):
            return CallInputs._read(self, layer)
        return operation.tensors[_INPUTS.index(self._which)]

    def _write(self, layer: int, value: Tensor) -> None:
        _, operation = self._reach(layer, "input")
        if not isinstance(operation, PackedOperation):
            CallInputs._write(self, layer, value)
            return
        number, tensors = _INPUTS.index(self._which), operation.tensors
        fitted = self._fit(layer, value, tensors[number])
        queries, keys, values = (
            fitted if place == number else own for place, own in enumerate(tensors)
        )
        operation.tensors = queries, keys, values


class VisionHeads(InTower, HeadsOutput):
    """What every head of the tower returns."""

    shape = _OF_CALL.replace("d_head", "d_value")


class VisionPatterns(InTower, AttentionProbabilities):
    """The pattern of every head of the tower, written out where it is asked for."""

    shape = "[image or tile, head, patch, patch], or [1, head, patch, patch]"


class HookedModel(TransformersModel):
    """nnsight's `TransformersModel`, with names for hook points.

    All of them are read and written inside a trace, in the order of the forward pass.
    Servers get this class with a request, and need not know it.
    """

    anatomy: Anatomy

    @property
    def vision_layers_input(self) -> VisionValues:
        """What enters layers of the vision tower, as the tower shapes it."""
        return VisionValues(self, "vision_layers_input", side="input")

    @property
    def vision_queries(self) -> VisionInputs:
        """Queries of the tower, `[image or tile, head, patch, d_head]`, rotated."""
        return VisionInputs(self, "vision_queries", which="queries")

    @property
    def vision_keys(self) -> VisionInputs:
        """Keys of the tower, `[image or tile, kv_head, patch, d_head]`, rotated."""
        return VisionInputs(self, "vision_keys", which="keys")

    @property
    def vision_values(self) -> VisionInputs:
        """Values of the tower, `[image or tile, kv_head, patch, d_value]`."""
        return VisionInputs(self, "vision_values", which="values")

    @property
    def vision_attention_probabilities(self) -> VisionPatterns:
        """Patterns of the tower, `[image or tile, head, patch, patch]`.

        Where images are packed, `[1, head, patch, patch]`: zero from one to another.
        """
        return VisionPatterns(self, "vision_attention_probabilities")

    @property
    def vision_heads_output(self) -> VisionHeads:
        """What each head of the tower returns, `[image or tile, head, patch, ...]`."""
        return VisionHeads(self, "vision_heads_output")

    @property
    def vision_attentions_output(self) -> VisionAdded:
        """What attention adds to the tower's stream, as the tower shapes it."""
        return VisionAdded(self, "vision_attentions_output", of="attention")

    @property
    def vision_mlps_output(self) -> VisionAdded:
        """What the MLP adds to the tower's stream, as the tower shapes it."""
        return VisionAdded(self, "vision_mlps_output", of="mlp")

    @property
    def vision_layers_output(self) -> VisionValues:
        """What layers of the vision tower return, as the tower shapes it."""
        return VisionValues(self, "vision_layers_output", side="output")

    @property
    def vision_output(self) -> Tensor:
        """The tower's tokens, as the last of its layers that is read returns them.

        It is `vision_layers_output` of that layer: what stands before the tower's
        last norm and the projector or merger, `[image or tile, patch, d_vision]`.

        Raises:
            ModelError: If the model has no vision tower of layers that attend, or
                what is read of it is no layer's output.
        """
        values, layer = self._find_vision_output()
        return values[layer]

    @vision_output.setter
    def vision_output(self, value: Tensor) -> None:
        values, layer = self._find_vision_output()
        values[layer] = value

    def _find_vision_output(self) -> tuple[VisionValues, int]:
        values = VisionValues(self, "vision_output", side="output")
        n_layers, layer = len(values), self.anatomy.vision_output
        if layer is None:
            msg = (
                "this model has no vision_output: its config reads what enters the "
                f"first of the tower's {n_layers} layers, which no layer returns"
            )
            raise ModelError(msg)
        return values, layer

    @property
    def image_features(self) -> Tensor:
        """What stands at the image tokens of the prompt, `[image token, d_model]`.

        The output of the projector or merger as it enters the decoder's first layer,
        in the order of the batch's rows and of the tokens in them.

        Raises:
            UnsupportedError: Outside a trace, or in a step after the prompt.
        """
        stream, mask = self._read_image_columns()
        return stream[mask]

    @image_features.setter
    def image_features(self, value: Tensor) -> None:
        stream, mask = self._read_image_columns()
        new = stream.clone()
        new[mask] = _fit("image_features", value, stream[mask])
        self.layers_input[0] = new

    def _read_image_columns(self) -> tuple[Tensor, ColumnMask]:
        prompt = prompt_of_worker(self)
        stream = self.layers_input[0]
        width = prompt.image_mask.shape[1]
        if stream.shape[1] != width:
            msg = (
                f"image_features stand in the prompt's forward pass, of {width} "
                f"tokens: got a step of {stream.shape[1]}, after it; read them in the "
                "first step"
            )
            raise UnsupportedError(msg)
        n_rows = stream.shape[0]
        fitted = prompt.fit_size(n_rows, width, device=stream.device)
        return stream, fitted.image_mask

    @property
    def layers_input(self) -> ModuleValues:
        """The residual stream that enters each layer, `[batch, token, d_model]`."""
        return ModuleValues(self, "layers_input", side="input")

    @property
    def queries(self) -> CallInputs:
        """Queries, `[batch, head, query, d_head]`, normed and rotated."""
        return CallInputs(self, "queries", which="queries")

    @property
    def keys(self) -> CallInputs:
        """Keys, `[batch, kv_head, key, d_head]`: rotated, cached ones included."""
        return CallInputs(self, "keys", which="keys")

    @property
    def values(self) -> CallInputs:
        """Values, `[batch, kv_head, key, d_value]`, cached ones included."""
        return CallInputs(self, "values", which="values")

    @property
    def attention_probabilities(self) -> AttentionProbabilities:
        """Patterns, `[batch, head, query, key]`, under any attention backend."""
        return AttentionProbabilities(self, "attention_probabilities")

    @property
    def heads_output(self) -> HeadsOutput:
        """What each head returns, `[batch, head, query, d_value]`."""
        return HeadsOutput(self, "heads_output")

    @property
    def attentions_output(self) -> AddedValues:
        """What attention adds to the stream, `[batch, token, d_model]`."""
        return AddedValues(self, "attentions_output", of="attention")

    @property
    def mlps_output(self) -> AddedValues:
        """What the MLP or the experts add to the stream, `[batch, token, d_model]`."""
        return AddedValues(self, "mlps_output", of="mlp")

    @property
    def layers_output(self) -> ModuleValues:
        """The residual stream that leaves each layer, `[batch, token, d_model]`."""
        return ModuleValues(self, "layers_output", side="output")

    @property
    def ln_final(self) -> Any:
        """The norm after the last layer, as nnsight's envoy: `ln_final.output`.

        Raises:
            ModelError: If the model has none.
        """
        if self.anatomy.final_norm is None:
            msg = "this model has no norm after its last layer: no ln_final"
            raise ModelError(msg)
        return envoy_at(self, self.anatomy.final_norm)

    @property
    def logits(self) -> Tensor:
        """The logits, `[batch, token, vocab]`, as the model returns them.

        Raises:
            UnsupportedError: Outside a trace, or where the model returns a tuple.
        """
        return self._read_logits().logits  # type: ignore[no-any-return]

    @logits.setter
    def logits(self, value: Tensor) -> None:
        output = self._read_logits()
        output.logits = _fit("logits", value, output.logits)
        self.output = output

    def _read_logits(self) -> Any:
        memory_of_worker()
        check_pattern_unchanged(self.interleaver)
        output = self.output
        if not isinstance(getattr(output, "logits", None), Tensor):
            msg = (
                f"the model returns a {type(output).__name__} without logits: expected "
                "an output with names; leave return_dict=False out"
            )
            raise UnsupportedError(msg)
        return output

    @property
    def image_mask(self) -> ColumnMask:
        """True at the prompt's image tokens, `[batch, position]`.

        Ask for it before any other hook point. A step of a generation that follows
        the prompt has no image tokens of its own: this stays the prompt's.

        Raises:
            UnsupportedError: Outside a trace.
            InputError: If where the image tokens are is not known.
        """
        return prompt_of_worker(self).image_mask
