"""The next-token logits of a prompt, plain and under patches."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from eah_interp._types import DonorRule
from eah_interp.errors import InputError
from eah_interp.interventions import EAH, EAHPatch, edit, intervene
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.inputs import image_placeholder, pair_rows, write_prompt


@runtime_checkable
class Progress(Protocol):
    """Whoever is told how far the work is."""

    def expect(self, steps: int) -> None:
        """Announce steps to come."""

    def step(self, what: str) -> None:
        """Say what begins now."""


PLAIN, PATCHED = "plain", "EAH"
CONTROLS: tuple[DonorRule, ...] = ("densest", "sparsest", "random", "shuffled")
"""Donor rules that a patch is compared with, its own left out."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a model would say next after one prompt, under each condition.

    Attributes:
        text: The whole text the model read, image placeholders unexpanded.
        position: Where the logits were read; the last position of the prompt.
        logits: Next-token logits by condition, `"plain"` and `"EAH"` first.
        patches: What the patch did, by condition; none for `"plain"`.
    """

    text: str
    position: int
    logits: Mapping[str, Float[Tensor, " vocab"]]
    patches: Mapping[str, EAHPatch]


REDRAWS = 8
"""How often a random donor is drawn anew while it is the head that EAH chose."""


def compare_with(eah: EAH, *, controls: bool) -> dict[str, EAH | None]:
    """Name the conditions: plain, EAH, and the control donors.

    Example:
        >>> list(compare_with(EAH(), controls=True))
        ['plain', 'EAH', 'sparsest', 'random', 'shuffled']
    """
    compared: dict[str, EAH | None] = {PLAIN: None, PATCHED: eah}
    for rule in CONTROLS if controls else ():
        if rule != eah.donor:
            compared[rule] = dataclasses.replace(eah, donor=rule)
    return compared


def read_next_token(
    model: LVLM,
    image: Image.Image,
    *,
    prompt: str,
    conditions: Mapping[str, EAH | None],
    answer_start: str = "",
    bar: Progress | None = None,
) -> Reading:
    """Read the logits of the next token after a prompt, a forward pass a condition.

    Args:
        model: The model.
        image: The picture.
        prompt: What is asked.
        conditions: Settings by name; None for no patch.
        answer_start: Words that the answer already begins with.
        bar: Told of each forward pass.

    Returns:
        Logits and patches by condition, on the CPU.
    """
    text = write_text(model, image, prompt=prompt, answer_start=answer_start)
    encoding = model.encode(image, text)
    logits: dict[str, torch.Tensor] = {}
    patches: dict[str, EAHPatch] = {}
    for name, eah in conditions.items():
        if bar is not None:
            bar.step(f"{prompt} {answer_start} [{name}]")
        if eah is None:
            with torch.no_grad(), model.trace(**encoding):
                last = model.output.logits[0, -1].save()
        else:
            patch, last = _patched_pass(model, encoding, eah)
            own = patches.get(PATCHED)
            for seed in range(REDRAWS):
                if name != "random" or own is None or _heads(patch) != _heads(own):
                    break
                # The very head that EAH chose is no control: draw another.
                other = dataclasses.replace(eah, seed=seed)
                patch, last = _patched_pass(model, encoding, other)
            patches[name] = patch
        logits[name] = last.float().cpu()
    position = encoding["input_ids"].shape[1] - 1
    return Reading(text, position, logits, patches)


def _patched_pass(
    model: LVLM, encoding: Mapping[str, Any], eah: EAH
) -> tuple[EAHPatch, torch.Tensor]:
    with torch.no_grad(), model.trace(**encoding):
        patch = intervene(model, eah)
        last = model.output.logits[0, -1].save()
    return patch, last


def _heads(patch: EAHPatch) -> list[int]:
    return [int(layer.donors[0]) for layer in patch.layers]


def write_text(
    model: LVLM, image: Image.Image, *, prompt: str, answer_start: str = ""
) -> str:
    """Write what the model reads: the prompt in its template, and the answer's start.

    Raises:
        InputError: If an answer's start cannot be placed, because the processor does
            not write the image's placeholder into the text.
    """
    placeholder = image_placeholder(model.processor)
    row = pair_rows(image, prompt, placeholder=placeholder)[0]
    text = write_prompt(row, model.processor, placeholder=placeholder)
    if not answer_start:
        return text if placeholder is not None else prompt
    if placeholder is None:
        msg = "this processor has no image placeholder, so an answer cannot be begun"
        raise InputError(msg)
    return text + ("" if text[-1:].isspace() else " ") + answer_start


def describe(
    model: LVLM,
    image: Image.Image,
    *,
    prompt: str,
    eah: EAH | None,
    max_new_tokens: int,
    bar: Progress | None,
) -> str:
    """Answer in words, greedily, plain or patched."""
    if bar is not None:
        bar.step(f"{prompt} [{PLAIN if eah is None else PATCHED}, in words]")
    answers = model if eah is None else edit(model, eah)
    return str(
        answers.describe(image, prompt, max_new_tokens=max_new_tokens, do_sample=False)
    )
