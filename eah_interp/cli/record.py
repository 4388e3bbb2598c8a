"""What the demo measured, and the files it writes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eah_interp.cli.console import save_figure, write_json
from eah_interp.cli.measure import (
    PATCHED,
    Reading,
    donor_columns,
    list_donors,
    list_versions,
)
from eah_interp.cli.subject import Question, Subject
from eah_interp.errors import UnsupportedError
from eah_interp.files import save_bytes
from eah_interp.interventions import EAH, SinkMap
from eah_interp.lvlm.spans import ImageSpan


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question, its answers in words, and its Yes and No logits by condition.

    Attributes:
        question: The question.
        reading: Logits at the last position of the prompt, by condition.
        answers: In words, `"plain"` and `"EAH"`.
        yes: Logit of "Yes" by condition; empty where there is no such token.
        no: Logit of "No" by condition.
    """

    question: Question
    reading: Reading
    answers: Mapping[str, str]
    yes: Mapping[str, float]
    no: Mapping[str, float]

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
        present: Whether it is in the picture.
        companion: Whether it is absent but goes with what is present.
        logits: By condition.
    """

    object: str
    token: str
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
        answers: The free captions, `"plain"` and `"EAH"`.
        objects: Object logits; none where no object was named.
    """

    prompt: str
    answer_start: str
    position: int
    answers: Mapping[str, str]
    objects: tuple[ObjectLogit, ...]


@dataclasses.dataclass(frozen=True)
class Demo:
    """Everything the demo measured.

    Attributes:
        model: Which model.
        eah: The settings.
        subject: Picture and questions.
        asked: Answers and logits of each question.
        caption: The caption and its object logits.
        sink_map: Densities of the unpatched model on the last question.
        span: The picture in that question's prompt.
        verdict: What it comes to, in sentences.
    """

    model: Mapping[str, Any]
    eah: EAH
    subject: Subject
    asked: tuple[Asked, ...]
    caption: Caption
    sink_map: SinkMap
    span: ImageSpan
    verdict: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Write everything as JSON can hold it."""
        return {
            "command": "demo",
            "versions": list_versions(),
            "model": dict(self.model),
            "settings": self.eah.to_dict(),
            "picture": {
                "title": self.subject.title,
                "present": list(self.subject.present),
                "absent": list(self.subject.absent),
            },
            "questions": [
                {
                    **dataclasses.asdict(one.question),
                    "position": one.reading.position,
                    "answers": dict(one.answers),
                    "yes": dict(one.yes),
                    "no": dict(one.no),
                    "yes_minus_no": one.margins,
                    "donors": {
                        name: list_donors(patch)
                        for name, patch in one.reading.patches.items()
                    },
                }
                for one in self.asked
            ],
            "caption": dataclasses.asdict(self.caption),
            "sinks": {
                "prompt": self.asked[-1].question.prompt,
                "definition": self.sink_map.definition,
                "beta": self.sink_map.beta,
                "n_columns": int(self.sink_map.columns[0].sum()),
                "layers": list(self.sink_map.layers),
                "density": self.sink_map.density[0].tolist(),
            },
            "verdict": list(self.verdict),
        }

    @property
    def donors(self) -> dict[int, int]:
        """Donor head of each patched layer, on the last question; -1 for none."""
        patch = self.asked[-1].reading.patches[PATCHED]
        return {layer.layer: int(layer.donors[0]) for layer in patch.layers}

    def save(self, folder: Path) -> "Saved":
        """Write result.json, sinks.png and picture.png into a folder.

        The picture is left out, with a note, where image tokens have no known place.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
            SettingsError: If the folder cannot be written to.
        """
        from eah_interp.viz import plot_sink_map, plot_sinks

        names = ("result.json", "sinks.png", "picture.png")
        result, sinks, picture = (folder / name for name in names)
        save_bytes((write_json(self.to_dict()) + "\n").encode(), result)
        save_figure(plot_sink_map(self.sink_map, donors=self.donors), sinks)
        patch = self.asked[-1].reading.patches[PATCHED]
        columns = donor_columns(patch, self.sink_map)
        try:
            drawn = plot_sinks(self.subject.image, self.span, columns=columns)
        except UnsupportedError as error:
            picture.unlink(missing_ok=True)
            return Saved((result, sinks), f"{picture.name} is not drawn: {error}")
        save_figure(drawn, picture)
        return Saved((result, sinks, picture), "")


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        files: The files.
        note: Why the picture is not among them; empty where it is.
    """

    files: tuple[Path, ...]
    note: str
