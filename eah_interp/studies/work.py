"""The work of a study: one batch under one condition, and what it says."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from eah_interp._types import Tower
from eah_interp.errors import (
    EAHError,
    ExtraMissingError,
    UnsupportedError,
    is_out_of_memory,
)
from eah_interp.interventions import donors_of_run, score_sinks
from eah_interp.lvlm.inputs import append_to_prompt
from eah_interp.lvlm.runs import refuse_nan
from eah_interp.studies.conditions import Condition
from eah_interp.studies.items import Item, open_image
from eah_interp.studies.sampled import ItemDraws, number_draws


@dataclass(frozen=True)
class Batch:
    """Some items that share a forward pass.

    Attributes:
        number: Its place in the study.
        items: Its items; a batch has one task.
        first: Place of its first item among all items, which seeds what is drawn.
    """

    number: int
    items: tuple[Item, ...]
    first: int

    @property
    def seeds(self) -> list[int]:
        """A number for each item that does not depend on its batch."""
        return list(range(self.first, self.first + len(self.items)))


def split_batches(items: Sequence[Item], size: int) -> tuple[Batch, ...]:
    """Split items into batches, in order, the same for every engine and shard.

    A batch ends where the task changes: questions and captions differ in length.

    Example:
        >>> items = [Item(str(i), "caption", "x.png", "What?") for i in range(3)]
        >>> [[item.id for item in batch.items] for batch in split_batches(items, 2)]
        [['0', '1'], ['2']]
    """
    batches: list[Batch] = []
    current: list[Item] = []
    for place, item in enumerate(items):
        if current and (len(current) == size or current[-1].task != item.task):
            batches.append(Batch(len(batches), tuple(current), place - len(current)))
            current = []
        current.append(item)
    if current:
        start = len(items) - len(current)
        batches.append(Batch(len(batches), tuple(current), start))
    return tuple(batches)


def run_batch(
    model: Any,
    batch: Batch,
    condition: Condition,
    *,
    decoding: Mapping[Any, Any],
    seed: int = 0,
) -> pd.DataFrame:
    """Ask a batch's items under a condition.

    An item whose image cannot be read is recorded with its error, and the others go
    on without it. If the batch fails as a whole, its items run one by one, so that one
    that fails is recorded and no other. What is no item's fault stops the run: memory
    that is too small, a device that fails, a package that is missing.

    Args:
        model: The model as it is.
        batch: The items.
        condition: What is done to it.
        decoding: Arguments of `generate`, by task.
        seed: Of answers that are sampled; each item has draws of its own.

    Returns:
        One row an item.

    Raises:
        UnsupportedError: If the machine fails; the batch and condition are named.
        ExtraMissingError: If a package is missing.
    """
    images, errors = _open_images(batch)
    fine = [place for place in range(len(batch.items)) if place not in errors]
    rows: dict[int, dict[str, Any]] = {
        place: {"error": message} for place, message in errors.items()
    }
    given: dict[str, Any] = {"images": images, "decoding": decoding, "seed": seed}
    rows |= _answer(model, batch, condition, fine, **given) if fine else {}
    blank = {"answer": None, "n_tokens": None, "donors": "", "error": None}
    return pd.DataFrame(
        [
            blank | {"item": item.id, "condition": condition.name} | rows[place]
            for place, item in enumerate(batch.items)
        ]
    )


def _answer(
    model: Any, batch: Batch, condition: Condition, places: list[int], **given: Any
) -> dict[int, dict[str, Any]]:
    """Ask some items together, and one by one if that fails."""
    try:
        return _ask(model, batch, places, condition=condition, **given)
    except (*ITEM_ERRORS, MemoryError) as error:
        refuse_machine(error, f"batch {batch.number} under {condition.name!r}")
        if len(places) == 1:
            return {places[0]: {"error": describe(error)}}
    rows: dict[int, dict[str, Any]] = {}
    for place in places:
        rows |= _answer(model, batch, condition, [place], **given)
    return rows


@contextlib.contextmanager
def _drawing(seed: int, model: Any) -> Iterator[None]:
    """Fix what is sampled, and leave the caller's random numbers as they were."""
    device = torch.device(model.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _ask(
    model: Any,
    batch: Batch,
    places: list[int],
    *,
    condition: Condition,
    images: Mapping[int, Any],
    decoding: Mapping[str, Any],
    seed: int,
) -> dict[int, dict[str, Any]]:
    items = [batch.items[place] for place in places]
    task, numbers = items[0].task, [batch.seeds[place] for place in places]
    shown = [[images[place]] for place in places]
    prompts = [_write_prompt(model, item, condition) for item in items]
    twin = condition.apply(model, seeds=numbers, images=shown, prompts=prompts)
    encoding = twin.encode(shown, prompts)
    settings = {**decoding[task], **condition.decoding.get(task, {})}
    tie = condition.near_tie if task == "yes_no" else None
    if tie is not None:
        settings |= {"return_dict_in_generate": True, "output_logits": True}
    # From the first item's place, so that a batch run in parts has draws of its own.
    with (
        _drawing(1_000_003 * seed + numbers[0], twin),
        ItemDraws(number_draws(seed, numbers))
        if settings.get("do_sample")
        else contextlib.nullcontext(),
    ):
        found = twin.generate(**encoding, logits_processor=[refuse_nan], **settings)
    ids = getattr(found, "sequences", found)
    new = ids[:, encoding["input_ids"].shape[1] :]
    texts = twin.processor.batch_decode(new, skip_special_tokens=True)
    if tie is not None:
        near = tie.find(_first_logits(found, len(places)), twin.tokenizer)
        texts = [
            "Yes" if is_near else t for t, is_near in zip(texts, near, strict=True)
        ]
    ends = _end_tokens(twin)
    donors = _name_donors(twin, len(places), tower=condition.tower)
    return {
        place: {"answer": text.strip(), "n_tokens": _count(line, ends), "donors": heads}
        for place, text, line, heads in zip(
            places, texts, new.tolist(), donors, strict=True
        )
    }


def _write_prompt(model: Any, item: Item, condition: Condition) -> Any:
    """Write what an item asks under a condition."""
    if not condition.ask or item.task != "yes_no":
        return item.prompt
    return append_to_prompt(item.prompt, condition.ask, model.processor)


def _first_logits(found: Any, n_items: int) -> Any:
    """Take the logits of each answer's first token; beams of an item share theirs."""
    first = found.logits[0]
    return first.view(n_items, -1, first.shape[-1])[:, 0]


def _end_tokens(model: Any) -> set[int]:
    """List the tokens that no answer is made of: what ends it, and what pads it.

    `generate` goes by its own config, which may name others than the tokenizer.
    """
    config = getattr(model._module, "generation_config", None)
    given = [
        getattr(place, name, None)
        for place in (model.tokenizer, config)
        for name in ("eos_token_id", "pad_token_id")
    ]
    listed = [one if isinstance(one, list | tuple) else [one] for one in given]
    return {int(token) for tokens in listed for token in tokens if token is not None}


def _name_donors(model: Any, n_items: int, *, tower: Tower) -> list[str]:
    """Name the heads that donated to each item, as in "L1H3 L2H0".

    In the vision tower an image may be many tiles, with donors of their own: there
    heads are named where each item is one image of one tile.
    """
    donors = donors_of_run(model, tower=tower)
    found = [
        (layer, heads.tolist())
        for layer, heads in donors.items()
        if tower == "language" or len(heads) == n_items
    ]
    return [
        " ".join(f"L{layer}H{heads[i]}" for layer, heads in found if heads[i] >= 0)
        for i in range(n_items)
    ]


def _count(tokens: list[int], ends: set[Any]) -> int:
    return sum(token not in ends for token in tokens)


def _open_images(batch: Batch) -> tuple[dict[int, Any], dict[int, str]]:
    images: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for place, item in enumerate(batch.items):
        try:
            images[place] = open_image(item.image)
        except Exception as error:  # decoders fail in many ways
            if is_out_of_memory(error):
                raise
            errors[place] = describe(error)
    return images, errors


def score_batch(model: Any, batch: Batch) -> pd.DataFrame:
    """Score a batch's vision sinks in the model as it is.

    Returns:
        One row for each item, layer and head: `item`, `layer`, `head`, `density`.
        Items whose image cannot be read, or that fail, have none.
    """
    images, _ = _open_images(batch)
    places = list(images)
    columns = ["item", "layer", "head", "density"]
    if not places:
        return pd.DataFrame(columns=columns)
    parts = list(_score(model, batch, places, images=images))
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts, ignore_index=True)[columns]


def _score(
    model: Any, batch: Batch, places: list[int], *, images: Mapping[int, Any]
) -> Iterator[pd.DataFrame]:
    """Score some items together, and one by one if that fails."""
    prompts = [batch.items[place].prompt for place in places]
    try:
        found = score_sinks(model, [[images[place]] for place in places], prompts)
    except (*ITEM_ERRORS, MemoryError) as error:
        refuse_machine(error, f"batch {batch.number}, scoring its sinks")
        for place in places if len(places) > 1 else ():
            yield from _score(model, batch, [place], images=images)
        return
    table = found.frame()
    table["item"] = [batch.items[places[row]].id for row in table["item"]]
    yield table


# ---- What may fail: an item, which is recorded, or the machine, which stops the run.


ITEM_ERRORS = (EAHError, ValueError, IndexError, KeyError, TypeError, RuntimeError)
"""What an item may fail with."""


# Older versions of torch have no class for a device that fails.
_DEVICE_ERRORS = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()


def refuse_machine(error: Exception, where: str) -> None:
    """Stop for what is no item's fault: it would be recorded for all that follow.

    Args:
        error: What was raised.
        where: In which batch, under which condition.

    Raises:
        UnsupportedError: If memory is too small, or the device failed.
        ExtraMissingError: If a package is missing.

    Example:
        >>> refuse_machine(ValueError("no such token"), "batch 3")
        >>> refuse_machine(MemoryError("out of memory"), "batch 3")
        Traceback (most recent call last):
            ...
        eah_interp.errors.UnsupportedError: the machine failed in batch 3: out of \
memory; a smaller batch_size (in a new folder) needs less; what is there stays, and \
the same study goes on from it
    """
    if isinstance(error, ExtraMissingError):
        raise error
    short = is_out_of_memory(error)
    if short or isinstance(error, _DEVICE_ERRORS):
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        remedy = "a smaller batch_size (in a new folder) needs less; " if short else ""
        msg = (
            f"the machine failed in {where}: {cause}; {remedy}what is there stays, "
            "and the same study goes on from it"
        )
        raise UnsupportedError(msg) from error


def describe(error: BaseException) -> str:
    """Write an error into a row.

    Example:
        >>> describe(ValueError("no image"))
        'ValueError: no image'
    """
    return f"{type(error).__name__}: {error}"
