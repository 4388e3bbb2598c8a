"""What an intervention can know about the forward pass it stands in.

nnsight runs each trace body (and each stored edit) in a greenlet of its own. What one
of them has learned about its run is kept on that greenlet, so it ends with the run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from eah_interp._types import ColumnMask, HeadOutputs
from eah_interp.errors import InputError, UnsupportedError
from eah_interp.kernels.patterns import (
    PatternBlock,
    check_place,
    check_tensor,
    find_visible,
    is_abstract,
    mix_values,
)
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.spans import image_mask as find_image_mask

INPUTS = "eah_inputs"
"""Attribute of nnsight's interleaver that holds the assembled inputs of this run."""


def find_cache(inputs: Mapping[str, Any]) -> Any:
    """Find the key/value cache that a forward pass is given; None where there is none.

    transformers calls it `cache` from 5.24 on, and takes the older name too.

    Example:
        >>> find_cache({"past_key_values": "keys"}), find_cache({"cache": "keys"})
        ('keys', 'keys')
    """
    given = [inputs.get(name) for name in ("cache", "past_key_values")]
    return next((cache for cache in given if cache is not None), None)


def find_setting(model: Any, inputs: Mapping[str, Any], name: str) -> Any:
    """Find what `generate` takes for a setting: an argument, or one of its configs.

    Args:
        model: An LVLM.
        inputs: What its `generate` is called with.
        name: Of the setting.

    Returns:
        Its value; None where nobody has set it.
    """
    if name in inputs:
        return inputs[name]
    own = getattr(model._module, "generation_config", None)
    found = getattr(inputs.get("generation_config"), name, None)
    return getattr(own, name, None) if found is None else found


@dataclass(frozen=True)
class Prompt:
    """The tokens of the prompt that is being read.

    Attributes:
        image_mask: True at image tokens.
        token_mask: False at padding.
        prompt_mask: True at the tokens of the prompt, where an answer follows it in
            the same forward pass; None where everything is prompt.
    """

    image_mask: ColumnMask
    token_mask: ColumnMask
    prompt_mask: ColumnMask | None = None

    @property
    def scored_mask(self) -> ColumnMask:
        """True at the tokens whose attention is scored: the prompt's, no padding."""
        if self.prompt_mask is None:
            return self.token_mask
        return self.token_mask & self.prompt_mask

    def limit(self, prompt_mask: ColumnMask | None) -> "Prompt":
        """Mark which tokens are the prompt; the rest was written after it.

        Raises:
            InputError: If there is not a flag for each token.
        """
        if prompt_mask is None:
            return self
        check_tensor("prompt_mask", prompt_mask, axes="batch key", kind="bool")
        if prompt_mask.shape != self.image_mask.shape:
            msg = (
                f"the prompt mask has shape {tuple(prompt_mask.shape)}: expected a "
                f"flag for each token, {tuple(self.image_mask.shape)}"
            )
            raise InputError(msg)
        check_place(prompt_mask=prompt_mask, input_ids=self.image_mask)
        return replace(self, prompt_mask=prompt_mask.to(self.image_mask.device))

    def fit(self, call: AttentionCall, *, generated: int = 0) -> "Prompt":
        """Make the masks as tall and wide as an attention call's rows and keys.

        Args:
            call: The call.
            generated: How many tokens were read since the prompt; no images.

        Raises:
            InputError: If they cannot be.
        """
        queries, keys = call.queries, call.keys
        size = (queries.shape[0], keys.shape[2])
        return self.fit_size(*size, device=queries.device, generated=generated)

    def fit_size(
        self, n_batch: int, n_keys: int, *, device: torch.device, generated: int = 0
    ) -> "Prompt":
        """Make the masks as tall as a batch and as wide as what its rows can see.

        Args:
            n_batch: Rows of the batch, beams counted.
            n_keys: Columns.
            device: Where they are needed.
            generated: How many tokens were read since the prompt; no images.

        Raises:
            InputError: If they cannot be.
        """
        prompt = self.prompt_mask
        size: dict[str, Any] = {"n_batch": n_batch, "n_keys": n_keys, "device": device}
        return Prompt(
            _fit(self.image_mask, new=self.image_mask.new_zeros(generated), **size),
            _fit(self.token_mask, new=self.token_mask.new_ones(generated), **size),
            prompt
            if prompt is None
            else _fit(prompt, new=prompt.new_zeros(generated), **size),
        )


@dataclass
class Memory:
    """What a worker has learned about its run.

    Attributes:
        prompt: The prompt, once it is known.
        learned: What interventions learned from it, by layer and settings.
        steps: At how many forward passes each settings were called.
        chosen: The settings that were called at steps of the caller's choice.
        marks: What was seen of kinds of sinks at the prompt's doors, by kind.
        packed: The vision tower's packed sequences that were read last; see
            `tower_calls.PackedOperation`.
        once: Modules of the tower that were patched, and must not run again: where
            nnsight counts their visits, and the worker that patched them.
        in_tower: What interventions learned in the tower, by its layer and settings.
    """

    prompt: Prompt | None = None
    learned: dict[Any, Any] = field(default_factory=dict)
    steps: dict[Any, int] = field(default_factory=dict)
    chosen: set[Any] = field(default_factory=set)
    marks: dict[str, Any] = field(default_factory=dict)
    packed: Any = None
    once: list[tuple[str, Any]] = field(default_factory=list)
    in_tower: dict[Any, Any] = field(default_factory=dict)


def memory_of_worker() -> Memory:
    """Find the memory of the trace body that is running now.

    Raises:
        UnsupportedError: Outside a trace.
    """
    try:
        worker = Mediator.current("the running trace").worker
    except ValueError as error:
        msg = (
            "this works inside a trace only: write `with model.trace(image, prompt):` "
            "(or generate, or edit) and call it in that block"
        )
        raise UnsupportedError(msg) from error
    memory: Memory | None = getattr(worker, "eah_memory", None)
    if memory is None:
        memory = worker.eah_memory = Memory()
    return memory


def prompt_of_worker(
    model: Any,
    *,
    image_mask: ColumnMask | None = None,
) -> Prompt:
    """Find where the images and the padding of this worker's prompt are.

    Call it before any hook point is read: where the run did not go through `LVLM`
    (on a server), it reads the root module's inputs, which come first.

    Args:
        model: The traced model.
        image_mask: Where the images are, if the caller knows better.

    Returns:
        Masks as wide as the prompt.

    Raises:
        InputError: If the tokens are not known.
    """
    memory = memory_of_worker()
    if memory.prompt is None:
        memory.prompt = _read_prompt(model, image_mask)
    return memory.prompt


def inputs_of_run(model: Any) -> dict[str, Any]:
    """Find what the running run was given, of all rows.

    Where the run did not go through `LVLM`, it is read at the root module's door.
    """
    return _find_inputs(model)[0] or {}


def _find_inputs(model: Any) -> tuple[Any, bool]:
    """Find what a run was given, and whether it went through `LVLM`, with all rows."""
    inputs = getattr(model.interleaver, INPUTS, None)
    if inputs and isinstance(inputs.get("input_ids"), Tensor):
        return inputs, True
    return model.inputs[1], False


def _read_prompt(model: Any, image_mask: ColumnMask | None) -> Prompt:
    inputs, is_whole = _find_inputs(model)
    if is_whole:
        inputs = _rows_of_worker(model, inputs)
    is_given = image_mask is not None
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    image_token = model.anatomy.image_token_id
    if image_mask is None and isinstance(inputs.get(_KOSMOS), Tensor):
        image_mask = inputs[_KOSMOS].bool()
    if image_mask is None:
        if not isinstance(ids, Tensor) or image_token is None:
            msg = (
                "where the image tokens are is not known: expected input_ids and a "
                "model with an image_token_id; pass image_mask=[batch, position]"
            )
            raise InputError(msg)
        image_mask = find_image_mask(ids, image_token)
    if not is_given:
        _check_images_come(inputs, image_mask)
    if isinstance(ids, Tensor):
        _check_widths(ids, image_mask, mask)
    return Prompt(image_mask, find_tokens(mask, image_mask))


def _check_images_come(inputs: Mapping[str, Any], image_mask: Tensor) -> None:
    """Check that images come with their tokens.

    A model that is given none reads the tokens that stand for them as words.
    """
    held = [value for name, value in inputs.items() if "mask" not in name]
    if find_cache(inputs) is not None or any(map(_may_hold_images, held)):
        return
    if not is_abstract(image_mask) and bool(image_mask.any()):
        msg = (
            f"input_ids have {int(image_mask.sum())} image tokens and no images came "
            f"with them, only {', '.join(inputs)}: expected what the model's own "
            "processor makes of images, pixel_values for most; pass images and prompts"
        )
        raise InputError(msg)


def _may_hold_images(value: Any) -> bool:
    """Tell pixels or embeddings, in a tensor or a list of them, from ids and masks."""
    if isinstance(value, list | tuple):
        return any(map(_may_hold_images, value))
    return isinstance(value, Tensor) and value.is_floating_point()


def find_tokens(mask: Any, ids: Tensor) -> ColumnMask:
    """Tell tokens from padding, by a mask of any kind that transformers takes.

    Args:
        mask: The attention mask of a prompt that is read whole; None where there is
            none.
        ids: The tokens, or anything of their shape and on their device.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[0, 7, 8]])
        >>> seen = torch.ones(1, 1, 3, 3).tril().bool()
        >>> seen[..., 0] = False
        >>> find_tokens(seen, ids).tolist(), find_tokens(None, ids).tolist()
        ([[False, True, True]], [[True, True, True]])
    """
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        return mask.bool()
    n_rows, width = ids.shape
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[2] == width:
        # A row that sees nothing is padding: no row of a token is without its own.
        seen = find_visible(mask[..., :width]).any(1).any(-1)
        return seen.expand(n_rows, -1).to(ids.device)
    return torch.ones_like(ids, dtype=torch.bool)


def _check_widths(ids: Tensor, image_mask: Tensor, mask: Any) -> None:
    check_tensor("image_mask", image_mask, axes="batch key", kind="bool")
    if tuple(image_mask.shape) != tuple(ids.shape):
        msg = (
            f"the image mask has shape {tuple(image_mask.shape)}: expected a flag for "
            f"each token of input_ids, {tuple(ids.shape)}"
        )
        raise InputError(msg)
    check_place(image_mask=image_mask, input_ids=ids)
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] > ids.shape[1]:
        msg = (
            f"the attention mask covers {mask.shape[1]} tokens and input_ids "
            f"{ids.shape[1]}: part of the prompt is in a key/value cache, where its "
            "rows cannot be scored; trace the whole prompt in one forward"
        )
        raise InputError(msg)


_KOSMOS = "image_embeds_position_mask"


def _rows_of_worker(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Narrow the batch to the rows of the invoke that this worker stands for."""
    group = Mediator.current("inputs").batch_group
    batcher = model.interleaver.batcher
    narrowed: dict[str, Any] = batcher.narrow(inputs, group) if batcher else inputs
    return narrowed


def _fit(
    mask: Tensor, *, n_batch: int, n_keys: int, device: torch.device, new: Tensor
) -> Tensor:
    """Repeat rows for beams, append what is `new`, and fit the cache's keys.

    A static cache is longer than what was read: the rest is False. A sliding window's
    is shorter: it keeps what was read last. Of a prompt it may not have dropped any.
    """
    rows, width = mask.shape
    if rows == 0 or n_batch % rows or (width > n_keys and not len(new)):
        msg = (
            f"the prompt has {rows} rows of {width} tokens, but attention reads "
            f"{n_batch} rows of {n_keys} keys; trace the whole prompt in one forward, "
            "or pass image_mask for the rows and keys that attention reads"
        )
        raise InputError(msg)
    mask = torch.cat([mask, new.expand(rows, -1)], dim=1).to(device)
    if n_batch != rows:
        mask = mask.repeat_interleave(n_batch // rows, dim=0)
    missing = max(0, n_keys - mask.shape[1])
    return torch.nn.functional.pad(mask, (0, missing))[:, -n_keys:]


# ---- What a forward pass's query rows are: images, words, the prompt, the answer.


RowMask = Bool[Tensor, "batch query"]
"""Which query rows are meant, in each batch item."""


@dataclass(frozen=True)
class QueryRows:
    """The query rows of one attention call, by kind.

    A row that a generation reads after its prompt, or that an answer has in the same
    forward pass as its prompt, is an answer's.

    Attributes:
        image: True at image tokens.
        prompt: True at the prompt's tokens, without padding.
        answer: True at the answer's.
        last: True at each prompt's last token, which the first word is read from.
        own: Key position of each row.
    """

    image: RowMask
    prompt: RowMask
    answer: RowMask
    last: RowMask
    own: Tensor

    @classmethod
    def of(
        cls, prompt: Prompt, call: AttentionCall, *, width: int, first: int
    ) -> "QueryRows":
        """Sort an attention call's query rows by kind.

        Args:
            prompt: The tokens, as wide as the call's keys.
            call: The call.
            width: Tokens of the prompt.
            first: Position of the first row, counted from the prompt's first token.
        """
        size = (call.queries.shape[2], call.keys.shape[2])
        return cls.of_size(prompt, *size, width=width, first=first)

    @classmethod
    def of_size(
        cls, prompt: Prompt, n_rows: int, n_keys: int, *, width: int, first: int
    ) -> "QueryRows":
        """Sort the rows of a forward pass by kind.

        Args:
            prompt: The tokens, as wide as what the rows can see.
            n_rows: Rows of the pass.
            n_keys: Columns that they can see.
            width: Tokens of the prompt.
            first: Position of the first row, counted from the prompt's first token.
        """
        # A sliding window's cache has dropped the first keys; none are dropped else.
        dropped = max(0, first + n_rows - n_keys)
        tokens = prompt.token_mask
        place = torch.arange(first, first + n_rows, device=tokens.device)
        own = place - dropped
        columns = torch.arange(n_keys, device=tokens.device)
        of_prompt = tokens & (columns + dropped < width)
        if prompt.prompt_mask is not None:
            of_prompt = of_prompt & prompt.prompt_mask
        end = ((columns + 1) * of_prompt).amax(-1, keepdim=True)
        asked = of_prompt[:, own]
        written = tokens[:, own] & ~asked
        last = asked & (own + 1 == end)
        return cls(prompt.image_mask[:, own], asked, written, last, own)


def first_row(rows: RowMask) -> int:
    """Find the first row that any item means; their number if there is none."""
    if is_abstract(rows):
        return 0
    found = rows.any(0).nonzero()
    return int(found[0]) if len(found) else rows.shape[1]


def attend_from(
    call: AttentionCall,
    first: int,
    *,
    token_mask: ColumnMask,
    change: Callable[[PatternBlock], Tensor] | None = None,
    change_logits: Callable[[slice, Tensor], Tensor] | None = None,
) -> HeadOutputs:
    """Attend with a changed pattern, from one query row on, block by block.

    Args:
        call: The attention call.
        first: The first row that is wanted; the others cost nothing.
        token_mask: False at padding.
        change: Maps a block of the pattern to its new weights. Its rows are counted
            from `first`.
        change_logits: Maps rows and their logits to other logits; also from `first`.

    Returns:
        What each head returns in these rows.
    """
    parts = call.rows(slice(first, None), token_mask=token_mask)
    queries, keys = parts.pop("queries"), parts.pop("keys")
    values = call.values[:, :, : keys.shape[2]]
    unchanged: Callable[[PatternBlock], Tensor] = lambda block: block.weights  # noqa: E731
    return mix_values(
        queries,
        keys,
        values,
        change=unchanged if change is None else change,
        change_logits=change_logits,
        **parts,
    )
