"""What a study's answers amount to, item by item: read, counted, nothing lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eah_interp.arguments import by_name
from eah_interp.benchmarks.metrics import count_yes_no
from eah_interp.benchmarks.pope import Rule, is_neither, says_yes
from eah_interp.errors import InputError
from eah_interp.results import Part
from eah_interp.studies.items import TOY, cluster_items
from eah_interp.studies.study import StudyRun
from eah_interp.toy.language import TOY_KNOWS
from eah_interp.toy.model import TOYS


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ScoredRows(Part):
    """A study's answers, ready to be counted.

    Attributes:
        questions: A row for each answered yes/no question and condition: `item`,
            `condition`, `cluster`, `kind`, `answer`, and zeros and ones: `one`,
            `right`, `yes`, `present`, `absent`, `hit`, `false_alarm`, `neither`.
        captions: A row for each caption and condition: `item`, `condition`, `cluster`,
            `caption`, `mentions`, `starts` (where in the text), `truth`, `n_tokens`.
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
    n_choices = int(fine.task.eq("choice").sum())
    if n_choices:
        notes.append(
            f"{n_choices} answers to questions with options: scored by their "
            "benchmark, with list_answers and score_mmvp, not here."
        )
    captions, note = list_mentions(told, annotations, synonyms)
    return ScoredRows(
        questions=_score_questions(fine, rule),
        captions=captions,
        failures=_count_failures(rows, run.conditions, run.manifest.n_items),
        notes=(*notes, *note),
    )


@by_name
def list_captions(
    run: StudyRun,
    *,
    annotations: str | Path | None = None,
    synonyms: str | Path | None = None,
) -> dict[str, pd.DataFrame]:
    """List a study's captions by condition, with what they name: for `plot_frontier`.

    Args:
        run: The study.
        annotations: As for `score_rows`.
        synonyms: As for `score_rows`.

    Returns:
        A table of captions for each condition.

    Raises:
        InputError: If no caption can be scored, or as `score_rows` does.
        ExtraMissingError: If NLTK is needed and not installed.
    """
    rows = score_rows(run, annotations=annotations, synonyms=synonyms)
    if rows.captions.empty:
        msg = f"{run.folder} has no caption that can be scored"
        raise InputError(" ".join([f"{msg}: expected some.", *rows.notes]))
    return {
        name: rows.captions[rows.captions.condition == name]
        for name in run.conditions
        if (rows.captions.condition == name).any()
    }


def _score_questions(fine: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    asked = fine[fine.task.eq("yes_no") & fine.label.notna()]
    answers = asked.answer.fillna("").astype(str)
    yes = pd.Series([says_yes(a, rule=rule) for a in answers], asked.index, dtype=bool)
    neither = pd.Series([is_neither(a) for a in answers], asked.index, dtype=bool)
    counts = count_yes_no(yes, asked.label, neither)
    keys = asked[["item", "condition", "cluster", "kind"]].assign(answer=answers)
    return pd.concat([keys, counts], axis=1).reset_index(drop=True)


def list_mentions(
    told: pd.DataFrame, annotations: str | Path | None, synonyms: str | Path | None
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """List captions with the objects that they name.

    Args:
        told: Rows of captions, as a study's `frame()` has them, with their `cluster`.
        annotations: As for `score_rows`.
        synonyms: As for `score_rows`.

    Returns:
        The captions that can be read, as `ScoredRows.captions` has them; and notes on
        others.
    """
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
    from eah_interp.toy.language import find_mentions_in

    found = [find_mentions_in(text) for text in table.caption]
    columns = {
        "mentions": [[name for name, _ in named] for named in found],
        "starts": [[start for _, start in named] for named in found],
    }
    listed = {
        name: pd.Series(values, index=table.index, dtype=object)
        for name, values in columns.items()
    }
    return table.assign(**listed)


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
        mentions=list(scored.mentions),
        starts=list(scored.starts),
        truth=list(scored.truth),
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
