"""POPE: yes/no questions about objects, half of them about absent ones."""

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import pandas as pd

from eah_interp.arguments import (
    by_name,
    check_count,
    check_kind,
    check_mapping,
    check_text,
)
from eah_interp.benchmarks.scores import FlatScore
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_choice, check_integer, to_list
from eah_interp.results import Result

PRESENT, ANSWER, NEITHER = "present", "says_yes", "neither"
"""Columns of an answer table: the truth, what was answered (missing: nothing that can
be counted), and optionally whether a rule had to guess it."""

STRICT = "strictly_yes"
"""Column of what a stricter reading takes the answer for."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PopeScore(FlatScore, Result):
    """How yes/no questions were answered; "yes" is the positive class.

    Rates are percentages, NaN where nothing can be said (no "yes" was given, or no
    object is absent, say). An answer that is missing counts as wrong.

    Attributes:
        n: Questions.
        accuracy: Share answered rightly.
        precision: Share of the "yes" answers that are right.
        recall: Share of the present objects answered with "yes".
        f1: Harmonic mean of precision and recall.
        false_positives: Share of the absent objects answered with "yes".
        yes_ratio: Share answered with "yes".
        n_neither: Answers that are neither yes nor no; those that a parsing rule
            takes for one of them all the same are among the counts below.
        tp: Present objects answered with "yes".
        fp: Absent objects answered with "yes".
        tn: Absent objects answered with "no".
        fn: Present objects answered with "no".
    """

    n: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    false_positives: float
    yes_ratio: float
    n_neither: int
    tp: int
    fp: int
    tn: int
    fn: int

    PERCENTAGES: ClassVar = (
        "accuracy",
        "precision",
        "recall",
        "f1",
        "false_positives",
        "yes_ratio",
    )

    def _about(self) -> str:
        return f"{self.n} questions, {self.n_neither} answered with neither yes nor no"

    def _of(self) -> str:
        return f"{self.n} questions"


@by_name
def score_answers(answers: pd.DataFrame) -> PopeScore:
    """Score yes/no answers as POPE does.

    Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language
    Models", 2023 (arXiv:2305.10355).

    Args:
        answers: One row a question: `present`, whether the object is there, and
            `says_yes`, the answer, missing where it was neither yes nor no.
            `neither`, where there is such a column, marks answers that a rule
            counts though they are neither (`match_answers` makes it).

    Returns:
        The score.

    Raises:
        InputError: If the table is empty or lacks a column.

    Example:
        >>> table = pd.DataFrame({"present": [True, False], "says_yes": [True, True]})
        >>> score = score_answers(table)
        >>> score.accuracy, score.recall, score.false_positives
        (50.0, 100.0, 100.0)
    """
    check_kind("answers", answers, pd.DataFrame, expected="a table of pandas")
    _check_single(answers)
    missing = [name for name in (PRESENT, ANSWER) if name not in answers]
    if missing or answers.empty:
        msg = (
            f"expected at least one answer with columns {PRESENT!r} and {ANSWER!r}, "
            f"got {len(answers)} rows with columns {list(answers.columns)}"
        )
        raise InputError(msg)
    for name in (PRESENT, ANSWER, NEITHER):
        if name in answers:
            _check_flags(answers, name, may_lack=name == ANSWER)
    truth = answers[PRESENT].astype(bool)
    given = answers[ANSWER].astype("boolean")
    yes, no = given.fillna(False).astype(bool), (~given).fillna(False).astype(bool)  # noqa: FBT003 - pandas' own signature
    neither = given.isna()
    if NEITHER in answers:
        neither |= answers[NEITHER].astype(bool)
    tp, fp = int((yes & truth).sum()), int((yes & ~truth).sum())
    tn, fn = int((no & ~truth).sum()), int((no & truth).sum())
    n_yes, n_present = int(yes.sum()), int(truth.sum())
    return PopeScore(
        n=len(answers),
        accuracy=percent(tp + tn, len(answers)),
        precision=percent(tp, n_yes),
        recall=percent(tp, n_present),
        # From the counts: NaN only where nothing is present and no "yes" was given.
        f1=percent(2 * tp, n_yes + n_present),
        false_positives=percent(fp, int((~truth).sum())),
        yes_ratio=percent(n_yes, len(answers)),
        n_neither=int(neither.sum()),
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
    )


def _check_single(table: pd.DataFrame) -> None:
    twice = table.columns[table.columns.duplicated()].tolist()
    if twice:
        raise InputError(f"expected each column once, got {show_value(twice)} twice")


def _check_flags(table: pd.DataFrame, name: str, *, may_lack: bool) -> None:
    """Check that a column holds True and False alone, or nothing where that may be."""
    column = table[name]
    flags = column[column.notna()]
    is_flag = all(isinstance(value, bool | np.bool_) for value in flags)
    if not is_flag or (not may_lack and len(flags) < len(column)):
        odd = [v for v in column if not isinstance(v, bool | np.bool_)]
        got = show_value(odd[0])
        raise InputError(f"column {name!r} must hold True and False, got {got}")


def percent(count: int, total: int) -> float:
    """Return a count as a percentage of a total; NaN of nothing.

    Example:
        >>> percent(1, 8), percent(0, 0)
        (12.5, nan)
    """
    return 100 * count / total if total else float("nan")


# ---- How a free answer becomes a yes or a no: POPE's rule, and OPERA's.


Rule: TypeAlias = Literal["pope", "opera"]
"""Whose reading of an answer."""

_NO = {"pope": {"No", "not", "no"}, "opera": {"No", "not", "no", "NO"}}

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")

_YES = {"yes", "yeah", "yep"}
_PLAIN = {*_YES, "no", "not", "nope", "nah"}


def says_yes(answer: str, *, rule: Rule = "pope") -> bool:
    """Read an answer as a benchmark's own script does: "yes" unless it says no.

    "pope" (Li et al., 2023): of the text before the first full stop, commas deleted
    and split at single spaces, no part is `No`, `not` or `no`. "opera" (Huang et al.,
    "OPERA", 2024): full stops and commas are deleted and all of the answer is read;
    `NO` and anything that ends in `n't` are noes too. Other whitespace and signs are
    not removed by either, so "No!" and "No" before a line break read as yes.

    Args:
        answer: What the model said.
        rule: Whose rule.

    Returns:
        Whether it counts as yes.

    Raises:
        SettingsError: If there is no such rule.

    Example:
        >>> says_yes("Yes. There is no cat.")
        True
        >>> says_yes("Yes. There is no cat.", rule="opera")
        False
    """
    check_choice("rule", rule, Rule)
    check_text("answer", answer)
    text = answer.split(".")[0] if rule == "pope" else answer.replace(".", "")
    parts = text.replace(",", "").split(" ")
    if rule == "opera" and any(part.endswith("n't") for part in parts):
        return False
    return not _NO[rule].intersection(parts)


def is_neither(answer: str) -> bool:
    """Tell whether an answer has no word of yes or no at all.

    Both rules count such an answer as a yes. The words are yes, no, not, anything in
    n't, yeah, yep, nope and nah, whatever their case and the signs around them.

    Args:
        answer: What the model said.

    Returns:
        Whether it is neither.

    Example:
        >>> [is_neither(text) for text in ("No!", "There isn't.", "A dog.", "")]
        [False, False, True, True]
    """
    return read_strictly(answer) is None


def read_strictly(answer: str) -> bool | None:
    """Read an answer by its first word of yes or no, whatever its case and signs.

    The published rules take "NO", "no!" and "**No**" for a yes; this reading does not.

    Args:
        answer: What the model said.

    Returns:
        Whether it says yes; None where it has no such word.

    Example:
        >>> [read_strictly(text) for text in ("**No**", "Yes, not far off", "A dog")]
        [False, True, None]
    """
    check_text("answer", answer)
    for word in _WORD.findall(answer.casefold().replace("\u2019", "'")):
        if word in _PLAIN or word.endswith("n't"):
            return word in _YES
    return None


def read_first_word(answer: str) -> bool | None:
    """Read an answer by its first word alone, whatever its case and signs.

    Args:
        answer: What the model said.

    Returns:
        Whether it says yes; None where the first word is none of yes or no.

    Example:
        >>> [read_first_word(text) for text in ("NO!", "Yes, it is", "There is no cup")]
        [False, True, None]
    """
    check_text("answer", answer)
    first = _WORD.search(answer.replace("\u2019", "'"))
    return None if first is None else read_strictly(first.group())


def count_turned(answers: pd.DataFrame) -> int:
    """Count the answers that a stricter reading takes for the opposite.

    Args:
        answers: As `match_answers` returns them.

    Returns:
        How many; those that are neither yes nor no are not among them.
    """
    strict, given = answers[STRICT].astype("boolean"), answers[ANSWER].astype("boolean")
    return int((strict != given).fillna(False).sum())  # noqa: FBT003 - pandas' own signature


# ---- Building POPE questions from any ground truth, as the official sampler does.


PopeSampling: TypeAlias = Literal["random", "popular", "adversarial"]
"""Which absent objects are asked for."""

Objects: TypeAlias = Mapping[str, Sequence[str]]
"""Objects in each image, in the order of their annotations."""


@by_name
def build_pope_questions(
    objects: Objects,
    *,
    sampling: PopeSampling,
    pairs: int = 3,
    n_images: int | None = 500,
    seed: int = 0,
    template: str = "Is there a {} in the image?",
) -> pd.DataFrame:
    """Build POPE's yes/no questions about images whose objects are known.

    Source: Li et al., 2023 (arXiv:2305.10355), section 5, and the sampler they
    released. Of the images with at least `pairs` objects, `n_images` are drawn, the
    same ones for every sampling. Each is asked about its first `pairs` objects, and
    after each of them about one that is absent and not asked about yet: "random", any
    object of the drawn images; "popular", the one in most of them; "adversarial",
    the one that is most often in an image with the object just asked about, or any
    where none is left. Ties go to the object met first.

    Not their code's: the draws of its random generator, and a slip that makes
    questions with "an" end in "in the imange?".

    Args:
        objects: Image (a file name, say) to its objects; repetitions count once.
        sampling: How absent objects are chosen.
        pairs: Questions with the answer yes, and as many with no, for each image.
        n_images: Images to draw; None takes all that have enough objects, in order.
        seed: Seeds the draws.
        template: The question, with {} for the object; "a {}" becomes "an {}" before
            a, e, i, o, u.

    Returns:
        One row a question: `question_id` from 1, `image`, `text`, `label`, `object`.

    Raises:
        SettingsError: If a setting is impossible.
        InputError: If too few images have enough objects, or an image has so many
            that no absent one is left to ask for.

    Example:
        >>> scenes = {"1.jpg": ["cat", "sofa"], "2.jpg": ["cat", "oven"]}
        >>> table = build_pope_questions(
        ...     scenes, sampling="popular", pairs=1, n_images=None
        ... )
        >>> table.text.tolist()[:2]
        ['Is there a cat in the image?', 'Is there an oven in the image?']
    """
    _check_settings(sampling, template)
    pairs = check_count("pairs", pairs)
    n_images = None if n_images is None else check_count("n_images", n_images)
    seed = check_integer("seed", seed)
    for image, names in check_mapping("objects", objects, error=InputError).items():
        if not all(isinstance(name, str) for name in to_list(names) or [None]):
            got = show_value(names)
            raise InputError(f"objects must be lists of names, got {got} of {image!r}")
    drawn = _draw_images(objects, pairs=pairs, n_images=n_images, seed=seed)
    # A stream of its own, so that every sampling asks about the same images.
    rng = random.Random(f"{sampling} {seed}")
    choose = _Sampler(drawn, sampling, rng).choose
    rows = []
    for image, present in drawn.items():
        taken = set(present)
        for there in present[:pairs]:
            absent = choose(image, there, taken)
            taken.add(absent)
            for name, label in ((there, "yes"), (absent, "no")):
                text = _ask(name, template)
                rows.append(
                    {"image": image, "text": text, "label": label, "object": name}
                )
    table = pd.DataFrame(rows)
    table.insert(0, "question_id", range(1, len(table) + 1))
    return table


class _Sampler:
    """Chooses absent objects; ties in the order in which objects are met."""

    def __init__(
        self, images: Objects, sampling: PopeSampling, rng: random.Random
    ) -> None:
        self._sampling, self._rng = sampling, rng
        self._count = Counter(name for names in images.values() for name in names)
        self._popular = [name for name, _ in self._count.most_common()]
        beside: dict[str, Counter[str]] = {name: Counter() for name in self._count}
        for names in images.values():
            for name in names:
                beside[name].update(other for other in names if other != name)
        self._beside = {
            name: [other for other, _ in counts.most_common()]
            for name, counts in beside.items()
        }

    def choose(self, image: str, there: str, taken: set[str]) -> str:
        """Choose an object that is neither in the image nor asked about."""
        for name in self._ranked(there):
            if name not in taken:
                return name
        free = [name for name in self._count if name not in taken]
        if not free:
            msg = (
                f"{image!r}: expected an object that is absent and not asked about "
                f"yet, got none of the {len(self._count)} of these images; ask "
                "fewer pairs, or of more images"
            )
            raise InputError(msg)
        return self._rng.choice(free)

    def _ranked(self, there: str) -> Iterator[str]:
        if self._sampling == "popular":
            yield from self._popular
        elif self._sampling == "adversarial":
            yield from self._beside[there]


def _draw_images(
    objects: Objects, *, pairs: int, n_images: int | None, seed: int
) -> dict[str, list[str]]:
    each = {image: list(dict.fromkeys(names)) for image, names in objects.items()}
    enough = [image for image, names in each.items() if len(names) >= pairs]
    if not enough or len(enough) < (n_images or 0):
        wanted = "some" if n_images is None else show_value(n_images)
        msg = (
            f"expected {wanted} images with at least {show_value(pairs)} objects, "
            f"got {len(enough)} among {len(each)}; lower n_images or pairs"
        )
        raise InputError(msg)
    if n_images is not None:
        enough = random.Random(seed).sample(enough, n_images)
    return {image: each[image] for image in enough}


def _check_settings(sampling: str, template: str) -> None:
    check_choice("sampling", sampling, PopeSampling)
    if not isinstance(template, str) or template.count("{}") != 1:
        got = show_value(template)
        msg = f"template must have one {{}} for the object, got {got}"
        raise SettingsError(msg)


def _ask(name: str, template: str) -> str:
    if name[:1].lower() in tuple("aeiou"):
        template = re.sub(r"\b([aA]) \{\}", r"\1n {}", template)
    return template.replace("{}", name)
