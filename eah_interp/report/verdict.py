"""What a demo's numbers come to, said plainly, controls included."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from eah_interp.report.reading import PATCHED, PLAIN

Logits = Mapping[str, float]
"""A logit, or a difference of two, by condition."""


AS_WELL = 0.9
"""A control that has this share of EAH's effect is said to do as well."""

REASONS = {
    "shuffled": "where in the picture the donor looks",
    "uniform": "which places of the picture are sinks",
}
"""What a control's success leaves open."""


def judge(
    *,
    truths: Sequence[bool | None],
    margins: Sequence[Logits],
    present: Sequence[Logits],
    absent: Sequence[Logits],
    patched: Sequence[bool],
) -> tuple[str, ...]:
    """Say whether EAH helped on this picture, and whether controls did as well.

    Args:
        truths: Whether the object asked for is there; None where nobody said.
        margins: Yes minus No of each question.
        present: Caption logits of objects in the picture.
        absent: Caption logits of objects that are not.
        patched: Whether EAH found a donor for each question.

    Returns:
        Sentences.

    Example:
        >>> said = judge(
        ...     truths=[False], margins=[{"plain": -1.0, "EAH": 0.5, "random": -1.2}],
        ...     present=[], absent=[], patched=[True],
        ... )
        >>> print(said[0])
        EAH made it worse: 1 of 1 questions right without it, 0 of 1 with it.
    """
    said = []
    if not all(patched):
        n_left = sum(not done for done in patched)
        said.append(
            f"EAH changed nothing on {n_left} of {len(patched)} questions, for want of "
            "a donor: no head has a sink or reaches gamma, or the densest is head 0, "
            "which the official preset never lets donate."
        )
    judged = [
        (truth, margin)
        for truth, margin in zip(truths, margins, strict=True)
        if truth is not None and margin
    ]
    if judged:
        said += _judge_answers(judged)
        said += _judge_margins(judged)
    if present and absent:
        said.append(_judge_objects(present, absent))
    said.append(
        "One picture is an anecdote, not evidence: the effect of EAH is a difference "
        "of means over many pictures, against control donors."
    )
    return tuple(said)


def _judge_answers(judged: Sequence[tuple[bool, Logits]]) -> list[str]:
    right = {
        name: sum((margin[name] > 0) == truth for truth, margin in judged)
        for name in (PLAIN, PATCHED)
    }
    n = len(judged)
    before, after = f"{right[PLAIN]} of {n}", f"{right[PATCHED]} of {n}"
    if right[PATCHED] == right[PLAIN]:
        flipped = any((m[PLAIN] > 0) != (m[PATCHED] > 0) for _, m in judged)
        how = "as many answers right as without it" if flipped else "the same answers"
        return [f"EAH gave {how}: {after} questions right."]
    how = "made it worse" if right[PATCHED] < right[PLAIN] else "helped here"
    return [f"EAH {how}: {before} questions right without it, {after} with it."]


def _judge_margins(judged: Sequence[tuple[bool, Logits]]) -> list[str]:
    moved = {
        name: fmean((m[name] - m[PLAIN]) * (1 if truth else -1) for truth, m in judged)
        for name in judged[0][1]
        if name != PLAIN
    }
    own = moved.pop(PATCHED)
    if own == 0:
        return ["EAH left the logits of Yes and No where they were."]
    way = "towards the truth" if own > 0 else "away from the truth, so for the worse"
    said = f"It moved Yes minus No {abs(own):.2f} logits {way}, on average"
    if moved:
        others = ", ".join(f"{name} {value:+.2f}" for name, value in moved.items())
        said += f"; control donors: {others}"
    said += "."
    best = max(moved, key=lambda name: moved[name], default=None)
    if own > 0 and best is not None and moved[best] >= AS_WELL * own:
        said += (
            f" The {best} control did as well or nearly, so this does not show that it "
            f"matters {REASONS.get(best, 'which head donates')}."
        )
    return [said]


def _judge_objects(present: Sequence[Logits], absent: Sequence[Logits]) -> str:
    rise, noise = (
        fmean(logits[PATCHED] - logits[PLAIN] for logits in group)
        for group in (present, absent)
    )
    gap = rise - noise
    if rise == noise == 0:
        return "The logits of objects, where a caption names one, did not change."
    way = "grew" if gap > 0 else "shrank"
    return (
        "Where a caption names an object, the logits of objects in the picture changed "
        f"by {rise:+.2f} on average, of absent ones by {noise:+.2f}: what sets the "
        f"present ones apart {way} by {abs(gap):.2f}."
    )
