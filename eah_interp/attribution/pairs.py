"""Minimal pairs: items that differ in one thing, checked to stand place for place."""

from dataclasses import dataclass
from typing import Any, Unpack

from eah_interp.arguments import by_name
from eah_interp.attribution.cases import Ask, Case, asks, pose
from eah_interp.attribution.sides import check_same_places
from eah_interp.errors import InputError
from eah_interp.lvlm.prompt import find_tokens
from eah_interp.results import Part


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(Part):
    """Items and their counterparts, whose tokens correspond.

    Attributes:
        case: The items, with what is asked of them.
        other: Their counterparts, asked the same: `source_images=pairs.other`.
    """

    case: Case
    other: Case

    def __len__(self) -> int:
        """Count the pairs."""
        return self.case.n_items

    def turned(self) -> "Pairs":
        """Swap items and counterparts: what was taken out is put in."""
        return Pairs(self.other, self.case)

    def _about(self) -> str:
        width = self.case.encoding["input_ids"].shape[1]
        return f"{len(self)} pairs of {width} tokens"


@by_name
@asks
def pose_pairs(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    source_images: object = None,
    source_prompts: object = None,
    **asked: Unpack[Ask],
) -> Pairs:
    """Ask of items and of their counterparts the same, and check that they correspond.

    What `patch_paths`, `patch_nodes`, `approximate_paths`, `find_circuits` and
    `patch_heads` take as images and `source_images`. Pairs of one's own come from any
    files; pairs from the toy's world are a scene and the same scene redrawn
    (`without_object`, `with_object_swapped`, `with_object_moved`,
    `with_object_recoloured`, `with_companions_turned`).

    Args:
        model: An LVLM.
        images: An image, or one for each pair.
        prompts: A prompt or prompts; "Describe the image." when None.
        source_images: The counterparts, in the same order; the same images when None.
        source_prompts: Their prompts; the same when None.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        The pairs.

    Raises:
        InputError: If images or prompts do not fit, there are not as many
            counterparts, or a pair's tokens do not correspond; it says which pair.
        SettingsError: If a word cannot be spelled.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.toy import draw_scene, without_object
        >>> scene = draw_scene(0, objects=["boat", "fish"])
        >>> pairs = pose_pairs(
        ...     eah.load(),
        ...     scene.pil(),
        ...     "Is there a boat in the image?",
        ...     source_images=without_object(scene, "boat").pil(),
        ...     metric="yes_no",
        ... )
        >>> len(pairs)
        1
    """
    if source_images is None and source_prompts is None:
        msg = (
            "a pair differs in something: expected source_images or source_prompts, "
            "got neither"
        )
        raise InputError(msg)
    case = pose(model, images, prompts, **asked)
    other = pose(
        model,
        images if source_images is None else source_images,
        prompts if source_prompts is None else source_prompts,
        **asked,
    )
    counts = [_count_tokens(one) for one in (case, other)]
    if len(counts[0]) != len(counts[1]):
        msg = (
            f"expected a counterpart for each of {len(counts[0])} items, got "
            f"{len(counts[1])}"
        )
        raise InputError(msg)
    apart = [
        f"pair {number} has {ours} and {theirs} tokens"
        for number, (ours, theirs) in enumerate(zip(*counts, strict=True))
        if ours != theirs
    ]
    if apart:
        msg = (
            f"{'; '.join(apart[:3])}: expected as many in both, so that positions "
            "correspond; use images of one size, and words of as many tokens"
        )
        raise InputError(msg)
    check_same_places(model, case, other)
    return Pairs(case, Case(other.encoding, other.prompt_mask, case.readout))


def _count_tokens(case: Case) -> list[int]:
    ids = case.encoding["input_ids"]
    mask = find_tokens(case.encoding.get("attention_mask"), ids)
    counts: list[int] = mask.sum(-1).tolist()
    return counts
