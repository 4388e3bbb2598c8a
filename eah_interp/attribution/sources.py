"""What is put into a run instead of its own: another run of each item, or less.

Path and node patching, gradient approximations and circuits take a source of the same
kinds: the items with other images or prompts, the items patched, other items of the
batch, the mean over an item's positions, or nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from eah_interp.attribution.cases import Case, as_case
from eah_interp.attribution.sides import (
    Side,
    check_same_places,
    check_side,
    gather,
    name_side,
    pose_pair,
    split_items,
    take_item,
)
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.inputs import repeat_rows

Stand = Literal["zero", "mean", "resampled"]
"""What a sender writes instead, where it is no run of the same item: nothing; its mean
over the item's positions; what it writes in another item of the batch."""

PathSource = Side | Stand
"""Where what is put in is taken from."""


@dataclass(frozen=True)
class PosedItem:
    """One item with its targets, and the item that its source is a run of.

    Attributes:
        targets: Which of the case's targets are its own.
        case: The item.
        other: The other one; itself where the source is no run of other inputs.
        patch: How the other is patched.
    """

    targets: list[int]
    case: Case
    other: Case
    patch: Intervention | None


@dataclass(frozen=True)
class PosedSource:
    """A case, and what is put into its runs.

    Attributes:
        source: What the user asked for.
        case: The items.
        other: The items that the source is a run of; the case itself where these are
            the same.
    """

    source: PathSource
    case: Case
    other: Case

    @property
    def name(self) -> str:
        """Name where what is put in is taken from: `plain, another image`."""
        if isinstance(self.source, str) and self.source in get_args(Stand):
            return self.source
        pictured = self.other is not self.case
        return name_side(self.source, pictured=pictured)  # type: ignore[arg-type]

    @property
    def patch(self) -> Intervention | None:
        """Settings of the source, where it is a patched run."""
        return self.source if isinstance(self.source, Intervention) else None

    @property
    def is_run(self) -> bool:
        """Whether it is a run of an item's own, whose targets can be told."""
        return self.source not in get_args(Stand)

    @property
    def n_tokens(self) -> int:
        """Positions of the longest item, padding counted."""
        return int(self.case.encoding["input_ids"].shape[1])

    def items(self) -> list[PosedItem]:
        """List the items that have targets."""
        patch = self.patch
        return [
            PosedItem(
                targets, take_item(self.case, item), take_item(self.other, item), own
            )
            for item, targets, (own,) in split_items(
                self.case, "plain" if patch is None else patch
            )
        ]

    def gather(self, parts: list[tuple[list[int], Tensor]]) -> Tensor:
        """Put items' `[target ...]` tensors together, in the order of the targets."""
        return gather(parts, len(self.case.readout.targets))


def check_source(model: Any, source: object) -> None:
    """Check that a source is a run, or says what is written instead.

    Raises:
        SettingsError: If it is something else, or settings do not fit the model.
    """
    if isinstance(source, Intervention):
        check_side(model, source, name="source")
    elif not isinstance(source, str) or source not in ("plain", *get_args(Stand)):
        msg = (
            'source must be "plain" (with source_images or source_prompts), '
            f"{', '.join(repr(one) for one in get_args(Stand))} or an intervention's "
            f"settings, such as eah.EAH(), got {show_value(source)}"
        )
        raise SettingsError(msg)


def pose_both(
    model: Any,
    images: object,
    prompts: object,
    *,
    source: PathSource,
    source_images: object,
    source_prompts: object,
    seed: int,
    **asked: Any,
) -> PosedSource:
    """Ask of items what is asked, and of the source the same.

    Raises:
        InputError: If images or prompts do not fit, or positions do not correspond.
        SettingsError: If a plain run is given nothing else to see, or what is put in
            needs no other inputs.
    """
    others = source_images is not None or source_prompts is not None
    if source in get_args(Stand):
        if others:
            msg = (
                f"source={source!r} takes nothing from other inputs: expected no "
                'source_images and source_prompts, or source="plain"'
            )
            raise SettingsError(msg)
        case = as_case(model, images, prompts, **asked)
        drawn = draw_items(model, case, seed=seed) if source == "resampled" else case
        return PosedSource(source, case, drawn)
    if source == "plain" and not others:
        msg = (
            "the source is the run itself, so nothing would change: expected "
            'source_images or source_prompts, or source="zero", "mean", "resampled" '
            "or settings such as eah.EAH()"
        )
        raise SettingsError(msg)
    case, other = pose_pair(
        model,
        images,
        prompts,
        source_images=source_images,
        source_prompts=source_prompts,
        **asked,
    )
    return PosedSource(source, case, other)


def draw_items(model: Any, case: Case, *, seed: int) -> Case:
    """Ask of every item what is asked of it, and show it another item's inputs.

    Raises:
        InputError: If there is one item only, or positions do not correspond.
    """
    n_items = case.n_items
    if n_items < 2:
        msg = (
            'source="resampled" takes what a sender writes in another item: expected '
            "two items at least, got 1; pass more images, or source_images="
        )
        raise InputError(msg)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n_items, generator=generator).tolist()
    drawn = [0] * n_items
    for place, item in enumerate(order):  # a circle: nobody gets its own
        drawn[item] = order[(place + 1) % n_items]
    mask = case.prompt_mask
    other = Case(
        repeat_rows(case.encoding, drawn),
        None if mask is None else mask[drawn],
        case.readout,
    )
    check_same_places(model, case, other)
    return other


def average_over(tokens: Tensor) -> Callable[[Tensor], Tensor]:
    """Make a function that writes the mean over an item's tokens at every position."""

    def average(output: Tensor) -> Tensor:
        mean = output[:, tokens].float().mean(1, keepdim=True)
        return mean.expand_as(output).to(output.dtype)

    return average
