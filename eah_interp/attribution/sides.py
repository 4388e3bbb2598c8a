"""The two sides of a patch: which runs they are, for each item of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from eah_interp._types import Tower
from eah_interp.attribution.cases import Case, as_case, pose
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.interventions.eah import EAH
from eah_interp.interventions.in_tower import check_tower_settings
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import check_model
from eah_interp.lvlm.messages import hold_messages
from eah_interp.lvlm.prompt import find_tokens
from eah_interp.lvlm.spans import image_mask

Side = Intervention | Literal["plain"]
"""A run of the same item: as the model is, or patched."""


def check_side(
    model: Any, side: object, *, name: str, tower: Tower = "language"
) -> None:
    """Check that a run is plain, or patched by settings that fit.

    Raises:
        SettingsError: If it is something else, or a layer or head does not exist.
        ModelError: If a layer has no heads.
        UnsupportedError: If settings have no meaning in the tower that is meant.
    """
    if isinstance(side, Intervention):
        (check_tower_settings if tower == "vision" else type(model).check)(model, side)
    elif not isinstance(side, str) or side != "plain":
        msg = (
            f'{name} must be "plain" or an intervention\'s settings, such as '
            f"eah.EAH(), got {show_value(side)}"
        )
        raise SettingsError(msg)


def check_broadcast(model: Any, eah: object) -> None:
    """Check that settings are EAH's, and fit: other methods broadcast nothing.

    Raises:
        SettingsError: If they are not, or a layer or head does not exist.
        ModelError: If a layer has no heads.
    """
    if not isinstance(eah, EAH):
        msg = (
            f"this is about a broadcast, its donors and the heads that receive it, and "
            f"{show_value(eah)} broadcasts nothing: expected EAH settings; "
            "attribute_heads, patch_heads, logit_lens and studies take any intervention"
        )
        raise SettingsError(msg)
    check_model(model).check(eah)


def split_items(
    case: Case, *sides: Side
) -> list[tuple[int, list[int], list[Intervention | None]]]:
    """List the items that have targets: indices of these, and settings of each run.

    Raises:
        InputError: If there is not one seed for each item.
    """
    rows = case.readout.target_rows.tolist()
    return [
        (
            item,
            [index for index, row in enumerate(rows) if row == item],
            [
                None if side == "plain" else side.of_item(item, case.n_items)
                for side in sides
            ],
        )
        for item in sorted(set(rows))
    ]


def take_item(case: Case, item: int) -> Case:
    """Take one item with its targets out of a case."""
    return case if case.n_items == 1 else case.copies([item])


def pose_pair(
    model: Any,
    images: object,
    prompts: object,
    *,
    source_images: object,
    source_prompts: object,
    **asked: Any,
) -> tuple[Case, Case]:
    """Ask of the target what is asked, and of a source's own images or prompts too.

    Args:
        model: An LVLM.
        images: The target's images, or a ready-made case.
        prompts: The target's prompts.
        source_images: Other images, or a `Case`, whose inputs are taken; the target's
            when None.
        source_prompts: Other prompts; the target's when None.
        **asked: What is asked of both.

    Returns:
        The case, and the other inputs, read where the case is read; the case again
        where nothing differs.

    Raises:
        InputError: If images or prompts do not fit, or the two cases' positions do not
            correspond.
        SettingsError: If images come with a ready-made case, which does not say
            how they are to be encoded.
    """
    case = as_case(model, images, prompts, **asked)
    if source_images is None and source_prompts is None:
        return case, case
    if hold_messages(images):  # the question, which other images are to be shown with
        images, prompts = None, images
    images = images if source_images is None else source_images
    if hold_messages(images):
        images, prompts = None, images
    prompts = prompts if source_prompts is None else source_prompts
    if isinstance(images, Case):
        other = images
    elif not asked:
        msg = (
            "images is a case, so the source is a case too: pose it with the same "
            "objects, and pass it as source_images"
        )
        raise SettingsError(msg)
    else:
        other = pose(model, images, prompts, **asked)
    check_same_places(model, case, other)
    return case, Case(other.encoding, other.prompt_mask, case.readout)


def check_same_places(model: Any, case: Case, other: Case) -> None:
    """Check that two cases' positions correspond: one's activation fits the other.

    Raises:
        InputError: If items, tokens, padding or images are not at the same places.
    """
    ours, theirs = case.encoding, other.encoding
    for what, one, two in (
        ("items", case.n_items, other.n_items),
        ("tokens", *(int(e["input_ids"].shape[1]) for e in (ours, theirs))),
    ):
        if one != two:
            msg = (
                f"the source has {two} {what}, the target {one}: expected the same, "
                "so that positions correspond; use images of one size and prompts "
                "of one length"
            )
            raise InputError(msg)
    for what, one, two in (
        ("padding", _padding(ours), _padding(theirs)),
        ("prompt and answer", _answer(case), _answer(other)),
        ("image tokens", _images(model, ours), _images(model, theirs)),
    ):
        if one is not None and two is not None and not torch.equal(one, two):
            row, place = (one != two).nonzero()[0].tolist()
            msg = (
                f"source and target have their {what} at different places, first at "
                f"position {place} of item {row}: expected the same, so that positions "
                "correspond; use images of one size and prompts of one length"
            )
            raise InputError(msg)


def _padding(encoding: Mapping[str, Any]) -> Tensor:
    return find_tokens(encoding.get("attention_mask"), encoding["input_ids"]).cpu()


def _answer(case: Case) -> Tensor:
    mask = case.prompt_mask
    return torch.ones(case.encoding["input_ids"].shape).bool() if mask is None else mask


def _images(model: Any, encoding: Mapping[str, Any]) -> Tensor | None:
    token = model.anatomy.image_token_id
    return None if token is None else image_mask(encoding["input_ids"], token).cpu()


def name_side(side: Side, *, pictured: bool = False) -> str:
    """Name a run in a sentence.

    Example:
        >>> name_side("plain"), name_side(EAH()), name_side("plain", pictured=True)
        ('plain', 'EAH', 'plain, another image')
    """
    name = type(side).__name__ if isinstance(side, Intervention) else side
    return f"{name}, another image" if pictured else name


def gather(parts: Sequence[tuple[list[int], Tensor]], n_targets: int) -> Tensor:
    """Put items' `[target ...]` tensors together, in the order of the case's targets.

    Example:
        >>> gather([([1], torch.tensor([5.0])), ([0], torch.tensor([4.0]))], 2)
        tensor([4., 5.])
    """
    joined = torch.cat([tensor for _, tensor in parts]).float().cpu()
    order = torch.tensor([index for indices, _ in parts for index in indices])
    result = torch.zeros(n_targets, *joined.shape[1:])
    result[order] = joined
    return result
