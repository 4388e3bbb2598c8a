"""Attention calls of the vision tower, as nnsight serves them, one for each layer.

A tower that sees images of one size makes one call in a layer, as a decoder does. One
that packs images of any size makes a call for each of them, or for each window; here
these are one call again, of the whole packed sequence, which is what its queries, keys
and values are before they are split.
"""

import inspect
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import InputError, ModelError, UnsupportedError
from eah_interp.kernels.patterns import find_visible, is_abstract
from eah_interp.lvlm.anatomy import (
    AttentionSite,
    attention_operation,
    packed_operations,
)
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.module_hooks import first_output
from eah_interp.lvlm.prompt import inputs_of_run, memory_of_worker
from eah_interp.lvlm.runs import unseen_by_workers
from eah_interp.lvlm.sequences import (
    Packing,
    SequenceMask,
    find_blocks,
    group_chunks,
)


def tower_operation(model: Any, site: AttentionSite) -> Any:
    """Reach the attention call of a layer of the tower, in nnsight.

    Raises:
        ModelError: If nnsight's view of the forward has no such operation.
        UnsupportedError: If a packed tower attends in FlashAttention.
    """
    if not site.is_packed:
        return attention_operation(model, site)
    return PackedOperation(model, site)


def place_of(operation: Any, key: str) -> str:
    """Name the location that nnsight serves an operation's input or output at."""
    places: dict[str, str] | None = getattr(operation, "places", None)
    return f"{operation.path}.{key}" if places is None else places[key]


@dataclass(frozen=True)
class _Packed:
    """Queries, keys and values of a whole packed sequence, and where it is split."""

    tensors: tuple[Tensor, Tensor, Tensor]
    lengths: tuple[int, ...]


class PackedOperation:
    """The calls of one layer for all parts of a packed sequence, as one operation.

    Attributes:
        path: That of the call that is made for each part.
        places: The locations of its input and its output.
    """

    def __init__(self, model: Any, site: AttentionSite) -> None:
        module = model._module.get_submodule(site.path)
        backend = str(getattr(module.config, "_attn_implementation", ""))
        if "flash" in backend:
            msg = (
                f"{type(module).__name__} attends to all images in one call of "
                f"{backend}, whose parts are not read here: load the model with "
                "attn_implementation='sdpa' or 'eager'"
            )
            raise UnsupportedError(msg)
        self._splits, self._call, self._joined = packed_operations(model, site)
        self.path: str = self._call.path
        self.places = {
            "input": f"{self._call.path}.input",
            "output": f"{self._joined.path}.output",
        }

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `[1, head, token, d_head]`, before the calls."""
        return self._read().tensors

    @tensors.setter
    def tensors(self, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
        lengths = self._read().lengths
        bounds = list(pairwise([0, *accumulate(lengths)]))
        parts = [
            tuple(whole[:, :, start:end] for start, end in bounds) for whole in tensors
        ]
        worker = Mediator.current("a packed call")
        if worker.occurrence(f"{self._splits.path}.output") == 0:
            self._splits.output = parts
            memory_of_worker().packed = (self.path, _Packed(tensors, lengths))
            return
        args, options = self._first_call()
        pinned = worker.iteration
        for number, own in enumerate(zip(*parts, strict=True)):
            # Each part's call is one more visit of the same operation.
            worker.iteration = number
            self._call.inputs = ((args[0], *own), {**options, "attention_mask": None})
        worker.iteration = pinned

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the calls are given, as `(args, kwargs)` of one.

        Raises:
            ModelError: If parts have masks of their own.
        """
        packed = self._read()
        args, options = self._first_call()
        mask = None
        if len(packed.lengths) > 1:
            mask = SequenceMask((packed.lengths,), sum(packed.lengths))
        return (args[0], *packed.tensors, mask), options

    @inputs.setter
    def inputs(self, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        queries, keys, values = inputs[0][1:4]
        self.tensors = queries, keys, values

    @property
    def output(self) -> tuple[Tensor]:
        """What the calls return, joined: `[1, token, head, d_value]`."""
        return (self._joined.output,)

    @output.setter
    def output(self, output: tuple[Any, ...]) -> None:
        self._joined.output = output[0]

    def skip(self, output: tuple[Any, ...]) -> None:
        """Replace what the calls return; they are made all the same."""
        self.output = output

    def _first_call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, options = self._call.inputs
        options = dict(options)
        mask = options.pop("attention_mask", None)
        if len(args) != 4 or mask is not None:
            msg = (
                f"{self.path}: the parts of a packed sequence have masks or arguments "
                "of their own, which are not known here"
            )
            raise ModelError(msg)
        return args, options

    def _read(self) -> _Packed:
        """Read what is split; kept for as long as no other layer is read."""
        memory = memory_of_worker()
        if memory.packed is None or memory.packed[0] != self.path:
            memory.packed = (self.path, self._read_splits())
        packed: _Packed = memory.packed[1]
        return packed

    def _read_splits(self) -> _Packed:
        given = self._splits.output
        lengths = tuple(part.shape[2] for part in given[0])
        views = [_view_whole(parts) for parts in given]
        found = [whole for whole in views if whole is not None]
        if len(found) < len(views):
            # Put into the run, so that what is changed or derived is the run's own.
            found = [torch.cat(list(parts), 2) for parts in given]
            bounds = list(pairwise([0, *accumulate(lengths)]))
            self._splits.output = [
                tuple(whole[:, :, start:end] for start, end in bounds)
                for whole in found
            ]
        queries, keys, values = found
        return _Packed((queries, keys, values), lengths)


def _view_whole(parts: tuple[Tensor, ...]) -> Tensor | None:
    """Take the tensor that was split, without a copy; None where that cannot be."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if first.requires_grad or is_abstract(first):
        return None
    start, step = first.storage_offset(), first.stride(2)
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if (
            not same
            or part.stride() != first.stride()
            or part.storage_offset() != start
        ):
            return None
        start += part.shape[2] * step
    n_tokens = sum(part.shape[2] for part in parts)
    shape = (*first.shape[:2], n_tokens, first.shape[3])
    return first.as_strided(shape, first.stride(), first.storage_offset())


# ---- The same call with a batch item for each image.


class ItemsOperation:
    """A call of packed images, patched as one with a batch item for each image."""

    def __init__(self, operation: Any, call: AttentionCall, packing: Packing) -> None:
        self._operation = operation
        self._call = call
        self._packing = packing

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the call is given."""
        return _spread_call(self._call, self._packing).inputs

    @inputs.setter
    def inputs(self, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        queries, keys, values = (
            self._packing.pack(tensor, axis=2) for tensor in inputs[0][1:4]
        )
        changed = replace(self._call, queries=queries, keys=keys, values=values)
        self._operation.inputs = changed.inputs

    @property
    def output(self) -> tuple[Any, ...]:
        """What the call returns."""
        own, *rest = self._operation.output
        return self._packing.spread(own, axis=1), *rest

    @output.setter
    def output(self, output: tuple[Any, ...]) -> None:
        own, *rest = output
        self._operation.output = (self._packing.pack(own, axis=1), *rest)

    def skip(self, output: tuple[Any, ...]) -> None:
        """Replace the call."""
        own, *rest = output
        self._operation.skip((self._packing.pack(own, axis=1), *rest))


def _spread_call(call: AttentionCall, packing: Packing) -> AttentionCall:
    queries, keys, values = (
        packing.spread(tensor, axis=2)
        for tensor in (call.queries, call.keys, call.values)
    )
    return replace(call, queries=queries, keys=keys, values=values, mask=packing.mask)


@dataclass(frozen=True)
class TowerItems:
    """One layer's call with a batch item for each image or tile.

    Attributes:
        operation: Where it is written.
        call: The call.
        token_mask: False at padding.
        shares_mask: Whether the tower's own mask is of all images at once.
    """

    operation: Any
    call: AttentionCall
    token_mask: ColumnMask
    shares_mask: bool = False

    @classmethod
    def of(cls, model: Any, operation: Any, call: AttentionCall) -> "TowerItems":
        """Tell the images of a call apart.

        Args:
            model: The traced model.
            operation: The call in nnsight.
            call: The same, taken apart, as the tower makes it.
        """
        packing = _find_packing(model, call)
        if packing is not None:
            tokens = packing.token_mask(call.queries.device)
            items = _spread_call(call, packing)
            shares = isinstance(call.mask, Tensor)
            return cls(ItemsOperation(operation, call, packing), items, tokens, shares)
        n_batch, n_keys = call.queries.shape[0], call.keys.shape[2]
        device = call.queries.device
        if call.mask is None:
            tokens = torch.ones((n_batch, n_keys), dtype=torch.bool, device=device)
        else:
            mask = call.pattern_inputs()["mask"]
            tokens = find_visible(mask).any(1).any(1).expand(n_batch, -1)
        return cls(operation, call, tokens)


def _find_packing(model: Any, call: AttentionCall) -> Packing | None:
    """Find the images of a packed call; None where each has a row of its own."""
    mask = call.mask
    if isinstance(mask, SequenceMask):
        return Packing(group_chunks(mask.chunks[0], _image_lengths(model)))
    if not isinstance(mask, Tensor) or mask.ndim != 4 or len(call.queries) != 1:
        return None
    if is_abstract(mask) or mask.shape[:2] != (1, 1):
        return None
    lengths = find_blocks(find_visible(mask)[0, 0])
    if lengths is None or len(lengths) == 1:
        return None
    return Packing(tuple((length,) for length in lengths))


def _image_lengths(model: Any) -> tuple[int, ...]:
    """Read how many patches each image, or frame of a video, is cut into."""
    inputs = inputs_of_run(model)
    for name in ("image_grid_thw", "video_grid_thw"):
        grid = inputs.get(name)
        if isinstance(grid, Tensor):
            return tuple(
                height * width
                for frames, height, width in grid.tolist()
                for _ in range(frames)
            )
    return ()


# ---- Which tokens are patches of an image, and which are the tower's own.


class _AtTheLayers(Exception):  # noqa: N818 - ends a run, never seen outside
    """Raised where images have become tokens."""


def check_pixels(model: Any) -> None:
    """Check that the running run has an image to look at.

    Raises:
        InputError: If it has none.
    """
    if not any(map(_are_pixels, inputs_of_run(model).values())):
        msg = (
            "expected an image in the run, got none: its vision tower reads nothing, "
            'so that there is nothing for tower="vision" to act on'
        )
        raise InputError(msg)


def read_changed(model: Any) -> Tensor | None:
    """Find the tokens of the tower that change where the pixels do.

    What enters the tower's first layer is made twice of a run's inputs, the second time
    of other pixels, without the layers and unseen by the run's workers.

    Args:
        model: The traced model.

    Returns:
        True at tokens that change, as the tower shapes them; None in a run without
        numbers.
    """
    inputs = inputs_of_run(model)
    pixels = {name: value for name, value in inputs.items() if _are_pixels(value)}
    if any(map(is_abstract, pixels.values())):
        return None
    generator = torch.Generator().manual_seed(0)
    other = {}
    for name, value in pixels.items():
        noise = torch.randn(value.shape, generator=generator).to(value)
        if value.ndim > 3:  # an image of nothing but zeros stands for none (Idefics3)
            shown = (value.flatten(-3) != 0).any(-1)
            noise = noise * shown[..., None, None, None]
        other[name] = value + noise
    with unseen_by_workers(model), torch.no_grad():
        one = _read_entering(model, inputs)
        two = _read_entering(model, {**inputs, **other})
    return (one != two).any(-1)


def count_edges(changed: Tensor | None, tokens: ColumnMask) -> tuple[int, int]:
    """Count the tokens that stand before and after the patches of an image.

    Class tokens and registers are those that are the same whatever the image shows.

    Args:
        changed: As from `read_changed`.
        tokens: The tokens of each image, False at padding.

    Returns:
        How many before, and how many after.

    Example:
        >>> changed = torch.tensor([[False, True, True, True, False]])
        >>> count_edges(changed, torch.tensor([[True, True, True, True, False]]))
        (1, 0)
    """
    if changed is None:
        return 0, 0
    lengths, found = tokens.sum(-1).tolist(), []
    if changed.numel() == tokens.numel():
        whole = changed.reshape(tokens.shape).to(tokens.device)
        rows = [own[there] for own, there in zip(whole, tokens, strict=True)]
    else:  # packed, one image after the other
        rows = list(torch.split(changed.flatten(), lengths))
    for own in rows:
        place = own.nonzero().flatten().tolist()
        if place:
            found.append((place[0], len(own) - 1 - place[-1]))
    if not found:
        return 0, 0
    # A patch at an image's edge may be the same by chance.
    return min(before for before, _ in found), min(after for _, after in found)


def _are_pixels(value: Any) -> bool:
    """Tell pixels from masks and ids by what they hold."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return is_abstract(value) or bool(((value != 0) & (value != 1)).any())


def _read_entering(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Run the bare module up to the tower's first layer, and take what enters it."""
    seen: list[Tensor] = []

    def stop(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        seen.append(first_output(given))
        raise _AtTheLayers

    module = model._module
    layer = module.get_submodule(f"{model.anatomy.tower.layers}.0")
    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    names = inspect.signature(type(module).forward).parameters
    device = next(module.parameters()).device
    taken = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
        if name in names
    }
    try:
        module(**taken)
    except _AtTheLayers:
        return seen[0]
    finally:
        handle.remove()
    msg = "the vision tower was not run on these inputs: expected an image among them"
    raise InputError(msg)
