"""What was measured of one picture: the result that pages and tables show."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from eah_interp.attribution import (
    BroadcastScores,
    HeadAttribution,
    HeadPatterns,
    PictureAttribution,
)
from eah_interp.interventions import EAH, SinkMap
from eah_interp.lvlm.spans import ImageSpan
from eah_interp.report.reading import PATCHED, Reading
from eah_interp.report.subject import Question, Subject


@dataclasses.dataclass(frozen=True)
class Asked:
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


@dataclasses.dataclass(frozen=True)
class ObjectLogit:
    """The logit of one object's first token where a caption is about to name one.

    Attributes:
        object: The object.
        token: The token read, the first of its name.
        token_id: Its id.
        present: Whether it is in the picture.
        companion: Whether it is absent but goes with what is present.
        logits: By condition.
    """

    object: str
    token: str
    token_id: int
    present: bool
    companion: bool
    logits: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Caption:
    """What the model says about the picture, and what it was about to name.

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


@dataclasses.dataclass(frozen=True)
class Explained:
    """Which heads write some logits, plain and patched.

    Attributes:
        about: What is explained, and where it was read.
        heads: Direct effects on each target.
        picture: The same by image token; None where image tokens have no known place
            in the picture.
    """

    about: str
    heads: HeadAttribution
    picture: PictureAttribution | None


@dataclasses.dataclass(frozen=True)
class Broadcast:
    """What the broadcast does in the first patched layer.

    Attributes:
        scores: Every head's image columns, plain and patched.
        patterns: Attention of the donor and a recipient; None where no head donated.
    """

    scores: BroadcastScores
    patterns: HeadPatterns | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that was measured of one picture.

    Attributes:
        model: Which model.
        versions: Of the packages.
        made_at: When, in UTC.
        command: The command that makes it again; empty where it was made in Python.
        eah: The settings.
        subject: Picture and questions.
        asked: Answers and logits of each question.
        caption: The caption and object logits; None where neither was asked for.
        sink_map: Densities of the unpatched model on the last question.
        span: The picture in that question's prompt.
        broadcast: The first patched layer on the last question; None where it cannot
            be looked at.
        explained: Which heads write the logits.
        verdict: What it comes to, in sentences.
        remarks: What could not be measured, and why.
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

    @property
    def donors(self) -> dict[int, int]:
        """Donor head of each patched layer, on the last question; -1 for none."""
        patch = self.asked[-1].reading.patches[PATCHED]
        return {layer.layer: int(layer.donors[0]) for layer in patch.layers}
