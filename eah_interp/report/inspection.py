"""What was measured of one image, and what it comes to: what pages and tables show."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd

from eah_interp.attribution import (
    BroadcastScores,
    HeadAttribution,
    HeadPatterns,
    PictureAttribution,
)
from eah_interp.interventions import EAH, EAHPatch, FoundSinks, SinkMap
from eah_interp.lvlm import ImageSpan
from eah_interp.report.reading import PATCHED, PLAIN, Reading
from eah_interp.report.subjects import Question, Subject
from eah_interp.results import Part, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Asked(Part):
    """A question, its answers in words, and its Yes and No logits by condition.

    Attributes:
        question: The question.
        reading: Logits at the last position of the prompt, by condition.
        answers: In words, `"plain"` and `"EAH"`.
        yes: Logit of "Yes" by condition; empty where there is no such token.
        no: Logit of "No" by condition.
        next_tokens: The likeliest first tokens and their logits, `"plain"` and
            `"EAH"`.
    """

    question: Question
    reading: Reading
    answers: Mapping[str, str]
    yes: Mapping[str, float]
    no: Mapping[str, float]
    next_tokens: Mapping[str, list[dict[str, Any]]]

    @property
    def margins(self) -> dict[str, float]:
        """Yes minus No, in logits, by condition."""
        return {name: self.yes[name] - self.no[name] for name in self.yes}

    @property
    def is_yes_no(self) -> bool:
        """Whether it asks for an object, or Yes or No is what would come first."""
        likely = [
            max(self.yes[name], self.no[name]) >= float(self.reading.logits[name].max())
            for name in self.yes
        ]
        return bool(likely) and (self.question.object is not None or any(likely))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ObjectLogit(Part):
    """The logit of one object's first token where a caption is about to name one.

    Attributes:
        object: The object.
        token: The token read, the first of its name.
        token_id: Its id.
        present: Whether it is in the image.
        companion: Whether it is absent but goes with what is present.
        logits: By condition.
    """

    object: str
    token: str
    token_id: int
    present: bool
    companion: bool
    logits: Mapping[str, float]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Caption(Part):
    """What the model says about the image, and what it was about to name.

    Attributes:
        prompt: What was asked.
        answer_start: Words the answer was made to begin with.
        position: Position whose next-token logits were read.
        answers: The free captions, `"plain"` and `"EAH"`; none where not asked for.
        objects: Object logits; none where no object was named.
    """

    prompt: str
    answer_start: str
    position: int
    answers: Mapping[str, str]
    objects: tuple[ObjectLogit, ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Explained(Part):
    """Which heads write some logits, plain and patched.

    Attributes:
        about: What is explained, and where it was read.
        heads: Direct effects on each target.
        patches: The same by image token; None where image tokens have no known place
            in the image.
    """

    about: str
    heads: HeadAttribution
    patches: PictureAttribution | None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Broadcast(Part):
    """What the broadcast does in the first patched layer.

    Attributes:
        scores: Every head's image columns, plain and patched.
        patterns: Attention of the donor and a recipient; None where no head donated.
    """

    scores: BroadcastScores
    patterns: HeadPatterns | None


COLUMNS = (
    *("what", "prompt", "object", "present", "condition"),
    *("yes", "no", "logit", "answer"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Inspection(Result):
    """Everything that was measured of one image.

    Attributes:
        model: Which model.
        versions: Of the packages.
        made_at: When, in UTC.
        command: The command that makes it again; empty where it was made in Python.
        eah: The settings.
        subject: Image and questions.
        asked: Answers and logits of each question.
        caption: The caption and object logits; None where neither was asked for.
        sink_map: Densities of the unpatched model on the last question.
        span: The image in that question's prompt.
        broadcast: The first patched layer on the last question; None where it cannot
            be looked at.
        explained: Which heads write the logits.
        verdict: What it comes to, in sentences.
        remarks: What could not be measured, and why.
        note: What the model cannot know of this image; empty where there is nothing.
        kinds: Whose sinks the image columns are, on the last question; None where that
            was not told.
    """

    model: Mapping[str, Any]
    versions: Mapping[str, str]
    made_at: str
    command: str
    eah: EAH
    subject: Subject
    asked: tuple[Asked, ...]
    caption: Caption | None
    sink_map: SinkMap
    span: ImageSpan
    broadcast: Broadcast | None
    explained: tuple[Explained, ...]
    verdict: tuple[str, ...]
    remarks: tuple[str, ...]
    note: str = ""
    kinds: FoundSinks | None = None

    def _about(self) -> str:
        name = self.model.get("name", "a model")
        return (
            f"{self.subject.title}, read by {name}: {len(self.asked)} questions, "
            f"{0 if self.caption is None else len(self.caption.objects)} objects"
        )

    def frame(self) -> pd.DataFrame:
        """List every logit that was read, by condition.

        Returns:
            Columns `what prompt object present condition yes no logit answer`. Of a
            `question`, `logit` is Yes minus No; of an `object`, that of its first
            token where a caption is about to name one.
        """
        rows: list[dict[str, Any]] = []
        for one in self.asked:
            asked = one.question
            for condition in one.reading.logits:
                yes = one.yes.get(condition, math.nan)
                no = one.no.get(condition, math.nan)
                rows.append(
                    {
                        "what": "question",
                        "prompt": asked.prompt,
                        "object": asked.object,
                        "present": asked.present,
                        "condition": condition,
                        "yes": yes,
                        "no": no,
                        "logit": yes - no,
                        "answer": one.answers.get(condition),
                    }
                )
        if self.caption is not None:
            rows += [
                {
                    "what": "object",
                    "prompt": self.caption.prompt,
                    "object": named.object,
                    "present": named.present,
                    "condition": condition,
                    "logit": logit,
                }
                for named in self.caption.objects
                for condition, logit in named.logits.items()
            ]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        return table.astype({"present": "boolean"})

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the sink density of every head, the donors framed: `SinkMap.plot`.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        return self.sink_map.plot(donors=self.donors, ax=ax)

    @property
    def donors(self) -> dict[int, int]:
        """Donor head of each patched layer, on the last question; -1 for none."""
        patch = self.asked[-1].reading.patches[PATCHED]
        return {layer.layer: int(layer.donors[0]) for layer in patch.layers}


# ---- What the numbers come to in sentences, controls included.


Logits = Mapping[str, float]
"""A logit, or a difference of two, by condition."""

AS_WELL = 0.9
"""A control that has this share of EAH's effect does as well, or nearly."""

REASONS = {
    "shuffled": "where in the image the donor looks",
    "uniform": "which places of the image are sinks",
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
    """Judge whether EAH helped on this image, and whether controls did as well.

    Args:
        truths: Whether the object asked for is there; None where nobody said.
        margins: Yes minus No of each question.
        present: Caption logits of objects in the image.
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
        "One image is an anecdote, not evidence: the effect of EAH is a difference "
        "of means over many images, against control donors."
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
        "Where a caption names an object, the logits of objects in the image changed "
        f"by {rise:+.2f} on average, of absent ones by {noise:+.2f}: what sets the "
        f"present ones apart {way} by {abs(gap):.2f}."
    )


# ---- Who donated, and which image tokens their sinks are.


def list_donors(patch: EAHPatch) -> list[dict[str, Any]]:
    """List the donor of each patched layer; None where no head donated."""
    donors = []
    for layer in patch.layers:
        head = int(layer.donors[0])
        density = None if layer.density is None else float(layer.density[0, head])
        donors.append(
            {
                "layer": layer.layer,
                "head": head if head >= 0 else None,
                "name": f"L{layer.layer}H{head}" if head >= 0 else None,
                "density": density if head >= 0 else None,
                "patched": bool(layer.patched[0]),
            }
        )
    return donors


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DonorSinks(Part):
    """The vision sinks of one donor head.

    Attributes:
        layer: The patched layer.
        head: The donor.
        columns: Positions of its vision sinks.
        n_judged: How many image columns were judged.
        scores: Score of each position; None where those of the unpatched model stand
            in, which keeps none.
        is_share: Whether scores are multiples of the uniform share, and not the mean
            received attention itself.
    """

    layer: int
    head: int
    columns: tuple[int, ...]
    n_judged: int
    scores: tuple[float, ...] | None
    is_share: bool

    @property
    def title(self) -> str:
        """Name the donor and count its sinks."""
        count = f"{len(self.columns)} of {self.n_judged}"
        return f"sinks of donor L{self.layer}H{self.head}: {count}"


def list_donor_sinks(patch: EAHPatch, sink_map: SinkMap) -> list[DonorSinks]:
    """List the vision sinks of each donor head.

    Where the rule needed no scores, those of the unpatched model stand in, for the
    first patched layer, whose input no patch has changed.
    """
    found = []
    for number, layer in enumerate(patch.layers):
        head, scores = int(layer.donors[0]), None
        if head < 0:
            continue
        if layer.scores is not None:
            sinks = layer.scores.sinks(float(patch.eah.beta or 0))[0, head]
            judged = layer.scores.columns[0]
            of_head = min(head, layer.scores.unit.shape[1] - 1)  # one for all, or each
            unit = layer.scores.unit[0, of_head].clamp(min=1e-12)
            scores = tuple((layer.scores.scores[0, head] / unit).tolist())
        elif number == 0 and layer.layer in sink_map.layers:
            sinks = sink_map.sinks[0, sink_map.layers.index(layer.layer), head]
            judged = sink_map.columns[0]
        else:
            continue
        found.append(
            DonorSinks(
                layer=layer.layer,
                head=head,
                columns=tuple(sinks.nonzero().flatten().tolist()),
                n_judged=int(judged.sum()),
                scores=scores,
                is_share=patch.eah.definition == "visible",
            )
        )
    return found
