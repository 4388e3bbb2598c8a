"""Answers that a condition changed, to be read and not only counted."""

from dataclasses import dataclass

import pandas as pd

from eah_interp.studies.statistics.pairs import Pair
from eah_interp.studies.statistics.scores import ScoredRows
from eah_interp.studies.study import StudyRun


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item, answered differently under a condition.

    Attributes:
        condition: The condition.
        item: The item's name.
        image: Its picture.
        prompt: What was asked.
        truth: What is true: yes or no, or the objects in the picture.
        before: The answer under the reference.
        after: The answer under the condition.
        change: `"mended"` or `"broken"`: an error less, or more, than before.
    """

    condition: str
    item: str
    image: str
    prompt: str
    truth: str
    before: str
    after: str
    change: str


def find_examples(
    run: StudyRun, rows: ScoredRows, *, reference: str, most: int = 3
) -> tuple[Example, ...]:
    """List the first items that each condition mended, and that it broke.

    Args:
        run: The study.
        rows: Its answers.
        reference: What conditions are compared with.
        most: How many of each, by condition and task.

    Returns:
        The examples: not a sample, and no measure of how many there are.
    """
    answers = run.frame().set_index(["condition", "item"]).sort_index()
    found: list[Example] = []
    for condition in run.conditions:
        if condition == reference:
            continue
        for table in (rows.questions, rows.captions):
            errors = _errors(table)
            first = errors[errors.condition == reference]
            pair = Pair.of(first, errors[errors.condition == condition])
            gap = (pair.after.n_errors - pair.before.n_errors).to_numpy()
            for change, chosen in (("mended", gap < 0), ("broken", gap > 0)):
                for item in list(pair.after["item"][chosen])[:most]:
                    before = answers.loc[(reference, item)]
                    after = answers.loc[(condition, item)]
                    found.append(
                        Example(
                            condition=condition,
                            item=str(item),
                            image=str(after["image"]),
                            prompt=str(after["prompt"]),
                            truth=_truth(after),
                            before=str(before["answer"]),
                            after=str(after["answer"]),
                            change=change,
                        )
                    )
    return tuple(found)


def _errors(table: pd.DataFrame) -> pd.DataFrame:
    keys = table[["item", "condition", "cluster"]]
    if "caption" not in table:
        return keys.assign(n_errors=1 - table.right)
    named = zip(table.mentions, table.truth, strict=True)
    counts = [len(set(mentions) - set(truth)) for mentions, truth in named]
    return keys.assign(n_errors=pd.Series(counts, table.index, dtype=int))


def _truth(row: pd.Series) -> str:
    if row["task"] == "yes_no":
        return "yes" if row["label"] else "no"
    return ", ".join(row["truth"]) or "not stated in the item"
