"""What a study's answers amount to, item by item: read, counted, nothing lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eah_interp.benchmarks.chair import count_mentions
from eah_interp.benchmarks.pope import Rule, is_neither, says_yes
from eah_interp.errors import InputError
from eah_interp.studies.items import TOY, Task, cluster_items
from eah_interp.studies.study import StudyRun
from eah_interp.toy.language import TOY_KNOWS
from eah_interp.toy.model import TOYS

ALL = "all"
"""The kind of question that stands for every kind."""


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """A study's answers, ready to be counted.

    Attributes:
        questions: A row for each answered yes/no question and condition: `item`,
            `condition`, `cluster`, `kind`, and zeros and ones: `one`, `right`, `yes`,
            `present`, `absent`, `hit`, `false_alarm`, `neither`.
        captions: A row for each caption and condition: `item`, `condition`, `cluster`,
            `caption`, `mentions`, `truth`, `n_tokens`.
        failures: A row a condition: `condition`, `answered`, `failed`, `missing`.
        notes: What was left out, and why.
    """

    questions: pd.DataFrame
    captions: pd.DataFrame
    failures: pd.DataFrame
    notes: tuple[str, ...]


def score_rows(
    run: StudyRun,
    *,
    annotations: str | Path | None = None,
    synonyms: str | Path | None = None,
    rule: Rule = "pope",
) -> ScoredRows:
    """Read a study's answers and count what they say.

    Captions of toy scenes are scored with the toy's own words. Others need CHAIR's
    files: a synonym list, and what is in the images, from COCO's annotations or the
    items' own `truth`; without them they are listed in the notes and not scored.

    Args:
        run: The study.
        annotations: Folder of COCO's annotations, or a file of objects by image.
        synonyms: CHAIR's synonym list.
        rule: Whose reading of a yes/no answer.

    Returns:
        The answers.

    Raises:
        InputError: If a file cannot be read, or an image has no ground truth.
        SettingsError: If there is no such rule.
        ExtraMissingError: If NLTK is needed and not installed.
    """
    rows = run.frame()
    rows["cluster"] = cluster_items(rows)
    fine = rows[rows.error.isna()]
    told = fine[fine.task == "caption"]
    unlabelled = int((fine.task.eq("yes_no") & fine.label.isna()).sum())
    notes = []
    if unlabelled:
        notes.append(f"{unlabelled} answers to questions without a label: not scored.")
    own = run.manifest.model.rpartition("(")[2].rstrip(")")
    if own in TOYS and not fine.image.str.startswith(TOY).all():
        notes.append(f"Items have images of your own. {TOY_KNOWS}")
    captions, note = _score_captions(told, annotations, synonyms)
    return ScoredRows(
        questions=_score_questions(fine, rule),
        captions=captions,
        failures=_count_failures(rows, run.conditions, run.manifest.n_items),
        notes=(*notes, *note),
    )


def _score_questions(fine: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    asked = fine[fine.task.eq("yes_no") & fine.label.notna()]
    answers = asked.answer.fillna("").astype(str)
    yes = pd.Series([says_yes(a, rule=rule) for a in answers], asked.index, dtype=bool)
    present = asked.label.astype(bool)
    counts: dict[str, Any] = {
        "one": True,
        "right": yes == present,
        "yes": yes,
        "present": present,
        "absent": ~present,
        "hit": yes & present,
        "false_alarm": yes & ~present,
        "neither": [is_neither(answer) for answer in answers],
    }
    table = asked[["item", "condition", "cluster", "kind"]].assign(**counts)
    return table.astype(dict.fromkeys(counts, int)).reset_index(drop=True)


def _score_captions(
    told: pd.DataFrame, annotations: str | Path | None, synonyms: str | Path | None
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    columns = ["item", "condition", "cluster", "n_tokens", "truth"]
    table = told[columns].assign(caption=told.answer.fillna("").astype(str))
    is_toy = told.image.str.startswith(TOY)
    parts, notes = [_name_toy_objects(table[is_toy])], []
    others = table[~is_toy].assign(image=told.image[~is_toy])
    if len(others) and synonyms is None:
        notes.append(
            f"{len(others)} captions of images are not scored: CHAIR needs its "
            "synonym list (synonyms=...), and COCO's annotations (annotations=...) or "
            "the objects in each image (truth in the items)."
        )
    elif len(others):
        parts.append(_name_objects(others, annotations, synonyms or ""))
    filled = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(filled, ignore_index=True), tuple(notes)


def _name_toy_objects(table: pd.DataFrame) -> pd.DataFrame:
    from eah_interp.toy.language import mentions_in

    named = [list(mentions_in(text)) for text in table.caption]
    return table.assign(mentions=pd.Series(named, index=table.index, dtype=object))


def _name_objects(
    table: pd.DataFrame, annotations: str | Path | None, synonyms: str | Path
) -> pd.DataFrame:
    from eah_interp.benchmarks.chair_files import read_ground_truth
    from eah_interp.benchmarks.mentions import find_mentions, image_id_of, read_synonyms

    vocabulary = read_synonyms(synonyms)
    names = [Path(image).name for image in table.image]
    ids = [image_id_of(name, place=f"item {name}") for name in names]
    if annotations is None:
        empty = int((table.truth.map(len) == 0).sum())
        if empty:
            msg = (
                f"{empty} captions have no ground truth: expected COCO's annotations "
                "(annotations=...) or the objects in each image (truth in the items)"
            )
            raise InputError(msg)
        found: dict[Any, Any] = {
            image: {vocabulary.objects.get(name, name) for name in truth}
            for image, truth in zip(ids, table.truth, strict=True)
        }
    else:
        found = read_ground_truth(annotations, vocabulary=vocabulary, images=set(ids))
    scored = find_mentions(
        pd.DataFrame({"image_id": ids, "caption": list(table.caption)}),
        truth=found,
        vocabulary=vocabulary,
    )
    return table.drop(columns="image").assign(
        mentions=list(scored.mentions), truth=list(scored.truth)
    )


def _count_failures(
    rows: pd.DataFrame, conditions: Sequence[str], n_items: int
) -> pd.DataFrame:
    failed = rows.error.notna()
    listed = []
    for name in conditions:
        own = rows.condition == name
        listed.append(
            {
                "condition": name,
                "answered": int((own & ~failed).sum()),
                "failed": int((own & failed).sum()),
                "missing": n_items - int(own.sum()),
            }
        )
    return pd.DataFrame(listed)


def count_captions(captions: pd.DataFrame) -> pd.DataFrame:
    """Count what CHAIR and its companions are made of, for each caption.

    Args:
        captions: As in `ScoredRows`.

    Returns:
        The captions with `one`, `hallucinates`, `n_tokens`, and what `count_mentions`
        counts.
    """
    counts = count_mentions(captions)
    counts["one"] = 1
    counts["hallucinates"] = (counts.n_absent > 0).astype(int)
    counts["n_tokens"] = captions.n_tokens.fillna(0).astype(int)
    keys = captions[["item", "condition", "cluster"]]
    return pd.concat([keys, counts], axis=1)


# ---- What is reported of a study: each a count over a total, so that it can be drawn.


MATCHED = ", length-matched"
"""Both captions of an image cut at the same number of different objects."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A rate.

    Attributes:
        name: What it is called.
        task: Of which items.
        count: Column that is summed above the line.
        total: Column that is summed below it.
        percent: Whether it is a percentage; else a mean.
        binary: Whether an item has it or has it not, so that McNemar's test applies.
        matched: Whether captions are cut to one length first; only in comparisons.
    """

    name: str
    task: Task
    count: str
    total: str
    percent: bool = True
    binary: bool = False
    matched: bool = False

    @property
    def scale(self) -> float:
        """What a rate is multiplied with."""
        return 100.0 if self.percent else 1.0


def _answers(name: str, count: str, total: str, **more: object) -> Metric:
    return Metric(name=name, task="yes_no", count=count, total=total, **more)  # type: ignore[arg-type]


def _captions(name: str, count: str, total: str, **more: object) -> Metric:
    return Metric(name=name, task="caption", count=count, total=total, **more)  # type: ignore[arg-type]


METRICS = (
    _answers("accuracy", "right", "one", binary=True),
    # 2 hits / (yes + present) is the harmonic mean, as a count over a total.
    _answers("F1", "two_hits", "yes_and_present"),
    _answers("precision", "hit", "yes"),
    _answers("recall", "hit", "present"),
    _answers("false positives", "false_alarm", "absent", binary=True),
    _answers("yes-ratio", "yes", "one"),
    _answers("neither", "neither", "one"),
    _captions("CHAIR_S", "hallucinates", "one", binary=True),
    _captions(
        f"CHAIR_S{MATCHED}",
        "hallucinates",
        "one",
        binary=True,
        matched=True,
    ),
    _captions("CHAIR_I", "n_absent", "n_mentions"),
    _captions(f"CHAIR_I{MATCHED}", "n_absent", "n_mentions", matched=True),
    _captions("recall", "n_found", "n_truth"),
    _captions("mentions", "n_mentions", "one", percent=False),
    _captions("objects", "n_objects", "one", percent=False),
    _captions("words", "n_words", "one", percent=False),
    _captions("tokens", "n_tokens", "one", percent=False),
    _captions("distinct 4-grams", "n_distinct_4grams", "n_4grams"),
)
"""In the order of the tables."""


def metrics_of(task: Task, *, matched: bool) -> tuple[Metric, ...]:
    """List the metrics of a task, with or without the length-matched ones."""
    return tuple(m for m in METRICS if m.task == task and (matched or not m.matched))
