"""MME: two yes/no questions about each image, in fourteen tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import pandas as pd

from eah_interp.arguments import by_name, check_flag, check_path
from eah_interp.benchmarks.checked import check_table
from eah_interp.benchmarks.pope import percent, read_strictly
from eah_interp.benchmarks.scores import VARIANTS, list_variants, plot_variants
from eah_interp.benchmarks.tabulated import tabulate_rates
from eah_interp.errors import InputError
from eah_interp.foreign_files import read_text
from eah_interp.results import Part, Result
from eah_interp.shown_results import count
from eah_interp.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

URL = (
    "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/"
    "tree/Evaluation"
)
"""Where the evaluation tool, and how to get the data, is."""

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene"),
    *("landmark", "artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation"),
    "code_reasoning",
)
TASKS = (*PERCEPTION, *COGNITION)

Reading: TypeAlias = Literal["yes", "no", "other"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MmeTask(Part):
    """How a task was answered, in percent.

    Attributes:
        n: Questions.
        n_images: Images, with two questions each.
        n_other: Answers that are neither yes nor no; they count as wrong.
        accuracy: Share of the questions answered rightly.
        accuracy_plus: Share of the images with both answered rightly.
        score: Their sum, at most 200.
    """

    n: int
    n_images: int
    n_other: int
    accuracy: float
    accuracy_plus: float
    score: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MmeScore(Result):
    """MME by its official script, and by a reading that its faults do not touch.

    Attributes:
        official: Each task's result.
        corrected: The same by the first word of yes or no, and by image.
        perception: Sum of the scores of ten tasks, at most 2,000.
        cognition: Sum of the scores of four tasks, at most 800.
        perception_corrected: The same, corrected.
        cognition_corrected: The same, corrected.
        missing: Tasks that have no answers: they add nothing to the sums.
    """

    official: Mapping[str, MmeTask]
    corrected: Mapping[str, MmeTask]
    perception: float
    cognition: float
    perception_corrected: float
    cognition_corrected: float
    missing: tuple[str, ...]

    def _about(self) -> str:
        asked = sum(one.n for one in self.official.values())
        return (
            f"{count(asked, 'question')} of {count(len(self.official), 'task')}, "
            f"perception {self.perception:.2f}, cognition {self.cognition:.2f}; "
            f"corrected {self.perception_corrected:.2f}, {self.cognition_corrected:.2f}"
        )

    def _first(self, k: int) -> pd.DataFrame:
        table = self.frame()
        return table[table.metric == "score"].head(k)

    @property
    def tables(self) -> tuple[Table, ...]:
        """The results, in words."""
        columns = {
            "n": "n",
            "accuracy": "accuracy",
            "accuracy_plus": "accuracy+",
            "score": "score",
            "n_other": "other",
        }
        lacking = f" No answers: {', '.join(self.missing)}." if self.missing else ""
        return tuple(
            tabulate_rates(
                caption,
                found,
                columns,
                first="task",
                digits=2,
                notes=f"Perception {perception:.3f}, cognition {cognition:.3f}."
                + lacking,
            )
            for caption, found, perception, cognition in (
                (
                    "By the official script: the first four letters",
                    self.official,
                    self.perception,
                    self.cognition,
                ),
                (
                    "By the first word of yes or no",
                    self.corrected,
                    self.perception_corrected,
                    self.cognition_corrected,
                ),
            )
        )

    def frame(self) -> pd.DataFrame:
        """List every number: columns `variant task metric value`."""
        return list_variants(self, "task")

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the score of each task, at most 200, both variants.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        values = {
            variant: {name: one.score for name, one in getattr(self, variant).items()}
            for variant in VARIANTS
        }
        return plot_variants(values, title="MME", axis="score", ax=ax)


@by_name
def read_mme(folder: Path | str, *, with_answers: bool = True) -> pd.DataFrame:
    """Read MME's files: `existence.txt` and so on, a folder of them.

    A line is `image<TAB>question<TAB>truth<TAB>answer`; two lines that follow each
    other are about one image.

    Args:
        folder: The folder.
        with_answers: Whether lines hold answers; questions alone have three parts.

    Returns:
        One row a question: `task`, `image`, `question`, `label` (True for yes),
        `answer` and `place`, its `file:line`.

    Raises:
        InputError: If there are no files, a line has other parts, a truth is no yes or
            no, or two lines that should be about one image are not.
    """
    folder = check_path("folder", folder)
    with_answers = check_flag("with_answers", with_answers)
    paths = [folder / f"{task}.txt" for task in TASKS]
    there = [path for path in paths if path.is_file()]
    if not there:
        msg = (
            f"expected MME's files in {folder} ({', '.join(p.name for p in paths[:3])}"
            f", ...), got none; see {URL}"
        )
        raise InputError(msg)
    rows = []
    for path in there:
        own = [_read_line(path, *line, with_answers) for line in _list_lines(path)]
        for first, second in zip(own[::2], [*own[1::2], None], strict=False):
            if second is None or first["image"] != second["image"]:
                found = "none" if second is None else repr(second["image"])
                msg = (
                    f"{first['place']}: expected two questions about "
                    f"{first['image']!r}, one line after the other, got {found} after "
                    "it; the official script pairs lines, whatever image they name"
                )
                raise InputError(msg)
        rows += own
    return pd.DataFrame(rows)


def _list_lines(path: Path) -> list[tuple[int, str]]:
    numbered = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line) for number, line in numbered if line.strip()]


def _read_line(
    path: Path,
    number: int,
    line: str,
    with_answers: bool,  # noqa: FBT001
) -> dict[str, object]:
    place, parts = f"{path}:{number}", line.split("\t")
    expected = "image, question, truth" + (", answer" if with_answers else "")
    n_parts = 4 if with_answers else 3
    if len(parts) != n_parts and (with_answers or len(parts) != 4):
        msg = f"{place}: expected {expected}, with tabs between, got {len(parts)} parts"
        raise InputError(msg)
    image, question, truth, *rest = parts
    if truth.lower() not in ("yes", "no"):
        raise InputError(f"{place}: expected the truth Yes or No, got {truth!r}")
    return {
        "task": path.stem,
        "image": image,
        "question": question,
        "label": truth.lower() == "yes",
        "answer": rest[0] if rest and with_answers else None,
        "place": place,
    }


def read_mme_answer(answer: str) -> Reading:
    """Read an answer as MME's script does: by its first four letters.

    Lower-cased, it is yes if "yes" stands within the first four letters, else no if
    "no" does, else neither. So `eyes` is a yes, and `not`, `now` and `know` are noes,
    but `**Yes**` and `Answer: yes` are neither.

    Args:
        answer: What the model said.

    Example:
        >>> [read_mme_answer(text) for text in ("Yes.", " no", "Know", "**Yes**")]
        ['yes', 'no', 'no', 'other']
    """
    head = answer.lower()[:4]
    if "yes" in head:
        return "yes"
    return "no" if "no" in head else "other"


@by_name
def score_mme(answers: pd.DataFrame) -> MmeScore:
    """Score answers as MME does.

    Source: Fu et al., "MME", 2023 (arXiv:2306.13394), and its `calculation.py`. A
    task's score is its accuracy plus its accuracy of images with both questions right,
    in percent each. What the official script does that a reader would not expect:

    - Only the first four letters of an answer are read (`read_mme_answer`).
    - Lines are paired as they follow each other, whatever image they name.
    - A task without a file ends it; here it is named, and adds nothing.

    `corrected` reads the first word of yes or no of the whole answer
    (`read_strictly`), and pairs by image.

    Args:
        answers: `task`, `image`, `label` and `answer`, as `read_mme` returns them.

    Returns:
        The score.

    Raises:
        InputError: If a column is missing, a task unknown, an answer is no text, or an
            image has not two questions.
    """
    check_table(
        "answers", answers, task="text", image="key", label="flag", answer="text"
    )
    unknown = sorted(set(map(str, answers.task)) - set(TASKS))
    if unknown:
        msg = f"expected tasks of {', '.join(TASKS)}, got {unknown[0]!r}"
        raise InputError(msg)
    official, corrected = {}, {}
    for task in TASKS:
        own = answers[answers.task == task]
        if len(own):
            official[task] = _score_task(own, official=True)
            corrected[task] = _score_task(own, official=False)
    sums = {
        (name, tasks): float(sum(found[task].score for task in tasks if task in found))
        for name, found in (("official", official), ("corrected", corrected))
        for tasks in (PERCEPTION, COGNITION)
    }
    return MmeScore(
        official=official,
        corrected=corrected,
        perception=sums["official", PERCEPTION],
        cognition=sums["official", COGNITION],
        perception_corrected=sums["corrected", PERCEPTION],
        cognition_corrected=sums["corrected", COGNITION],
        missing=tuple(task for task in TASKS if task not in official),
    )


def _score_task(own: pd.DataFrame, *, official: bool) -> MmeTask:
    read = [_read(text, official=official) for text in own.answer]
    truth = ["yes" if label else "no" for label in own.label]
    right = [given == there for given, there in zip(read, truth, strict=True)]
    groups: dict[object, list[bool]] = {}
    images = list(own.image)
    for number, (image, is_right) in enumerate(zip(images, right, strict=True)):
        groups.setdefault(number // 2 if official else image, []).append(is_right)
    for key, flags in groups.items():
        # A study may have asked a part; an image's name may stand twice in a task.
        if len(flags) % 2:
            name = images[2 * int(str(key))] if official else key
            msg = (
                f"{own.task.iloc[0]}: expected two questions about each image, one "
                f"after the other, got {len(flags)} about {name!r}; MME scores pairs"
            )
            raise InputError(msg)
    pairs = [
        flags[at : at + 2]
        for flags in groups.values()
        for at in range(0, len(flags), 2)
    ]
    accuracy = percent(sum(right), len(right))
    plus = percent(sum(all(pair) for pair in pairs), len(pairs))
    return MmeTask(
        n=len(right),
        n_images=len(pairs),
        n_other=read.count("other"),
        accuracy=accuracy,
        accuracy_plus=plus,
        score=accuracy + plus,
    )


def _read(answer: str, *, official: bool) -> Reading:
    if official:
        return read_mme_answer(answer)
    strict = read_strictly(answer)
    return "other" if strict is None else "yes" if strict else "no"
