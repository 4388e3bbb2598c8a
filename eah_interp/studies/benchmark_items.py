"""Questions of published benchmarks as items of a study, and their answers for scoring.

AMBER, MME, HallusionBench and MMVP: `amber_items` and so on read the benchmark's own
files, and `list_answers` gives what a study answered as the table of the benchmark's
score: `score_amber`, `score_mme`, `score_hallusionbench`, `score_mmvp`.
"""

import re
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd

from eah_interp.arguments import (
    by_name,
    check_kind,
    check_limit,
    check_path,
    check_text,
)
from eah_interp.benchmarks.amber import (
    TYPES,
    read_amber_annotations,
    read_amber_queries,
)
from eah_interp.benchmarks.hallusionbench import read_hallusionbench
from eah_interp.benchmarks.mme import read_mme
from eah_interp.benchmarks.mmvp import read_mmvp_questions
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_choice
from eah_interp.studies.items import Item
from eah_interp.studies.study import StudyRun

Benchmark: TypeAlias = Literal["amber", "mme", "hallusionbench", "mmvp"]
"""Whose answers are listed."""


@by_name
def amber_items(
    queries: str | Path,
    annotations: str | Path,
    images: str | Path,
    *,
    suffix: str = "",
    limit: int | None = None,
) -> tuple[Item, ...]:
    """List AMBER's queries: yes/no questions, and images to be described.

    Args:
        queries: `query_all.json` or one of its parts.
        annotations: `annotations.json`.
        images: The folder with the images.
        suffix: Put after every yes/no question. AMBER's script counts exactly `Yes` and
            `No`, so that models are asked to answer so.
        limit: Only so many first queries.

    Returns:
        The items, in the order of the file.

    Raises:
        InputError: If a file cannot be read, or a query has no annotation.
    """
    check_text("suffix", suffix)
    limit, folder = check_limit("limit", limit), check_path("images", images)
    known = read_amber_annotations(annotations).set_index("id")
    found = []
    rows: Any = read_amber_queries(queries).iloc[:limit].itertuples()
    for row in rows:
        if row.id not in known.index:
            msg = f"{row.place}: expected an annotated item, got id {row.id}"
            raise InputError(f"{msg}; are both files of one release?")
        note: Any = known.loc[row.id]
        told = note.type == "generative"
        found.append(
            Item(
                id=f"amber/{row.id}",
                task="caption" if told else "yes_no",
                image=str(folder / str(row.image)),
                prompt=str(row.query) if told else f"{row.query}{suffix}",
                label=None if told else bool(note.label),
                kind="" if told else TYPES[note.type],
                truth=tuple(note.truth),
                cluster=str(row.image),
                columns={"amber_id": int(row.id)},
            )
        )
    return tuple(found)


@by_name
def mme_items(
    questions: str | Path, images: str | Path, *, limit: int | None = None
) -> tuple[Item, ...]:
    """List MME's questions, as its files of answers have them.

    Args:
        questions: A folder of `existence.txt` and so on, with the lines of
            `read_mme`; answers in them are passed over.
        images: A folder with a folder of images for each task, or with all of them.
        limit: Only so many first questions; an even number, since images have two.

    Returns:
        The items, task by task.

    Raises:
        InputError: If a file cannot be read.
        SettingsError: If the limit parts a pair.
    """
    limit, folder = check_limit("limit", limit), check_path("images", images)
    if limit is not None and limit % 2:
        msg = f"limit must be even, since MME scores pairs of questions, got {limit}"
        raise SettingsError(msg)
    found = []
    table = read_mme(questions, with_answers=False).iloc[:limit]
    for number, row in enumerate(table.itertuples(), start=1):
        task, name = str(row.task), str(row.image)
        own = folder / task if (folder / task).is_dir() else folder
        found.append(
            Item(
                id=f"mme/{task}/{number}",
                task="yes_no",
                image=str(own / name),
                prompt=str(row.question),
                label=bool(row.label),
                kind=task,
                cluster=f"{task}/{name}",
                columns={"mme_image": name},
            )
        )
    return tuple(found)


@by_name
def hallusionbench_items(
    questions: str | Path,
    images: str | Path,
    *,
    figures_only: bool = False,
    suffix: str = "",
    limit: int | None = None,
) -> tuple[Item, ...]:
    """List HallusionBench's questions.

    Args:
        questions: `HallusionBench.json`.
        images: The folder that its file names begin at.
        figures_only: Whether questions that are asked without a figure are left out.
            An item has an image, so that they cannot be asked; the score then says how
            many lack (`n_missing`).
        suffix: Put after every question.
        limit: Only so many first questions, of those with a figure.

    Returns:
        The items, in the order of the file.

    Raises:
        InputError: If the file cannot be read, or has questions without a figure and
            `figures_only` is not set.
    """
    check_text("suffix", suffix)
    check_kind(
        "figures_only",
        figures_only,
        bool,
        expected="True or False",
        error=SettingsError,
    )
    limit, folder = check_limit("limit", limit), check_path("images", images)
    table = read_hallusionbench(questions)
    without = table.filename.isna()
    if without.any() and not figures_only:
        msg = (
            f"{table.place[without].iloc[0]}: a question without a figure, as "
            f"{int(without.sum())} of {len(table)} are: an item has an image, so leave "
            "them out with figures_only=True (figures_only: true), which the score says"
        )
        raise InputError(msg)
    found = []
    for row in table[~without].iloc[:limit].to_dict("records"):
        keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
        values = {f"hb_{key}": row[key] for key in (*keys, "visual_input")}
        found.append(
            Item(
                id="hallusionbench/" + "_".join(row[key] for key in keys),
                task="yes_no",
                image=str(folder / re.sub(r"^(\./)+", "", str(row["filename"]))),
                prompt=f"{row['question']}{suffix}",
                label=bool(row["label"]),
                kind=f"{row['category']}/{row['subcategory']}",
                cluster="_".join(row[key] for key in keys[:3]),
                columns=values,
            )
        )
    return tuple(found)


@by_name
def mmvp_items(
    questions: str | Path,
    images: str | Path,
    *,
    suffix: str = "",
    limit: int | None = None,
) -> tuple[Item, ...]:
    """List MMVP's questions, each with its options as its scripts write them.

    Args:
        questions: `Questions.csv`.
        images: The folder with `1.jpg`, `2.jpg` and so on.
        suffix: Put after every question.
        limit: Only so many first questions; an even number, since they are pairs.

    Returns:
        The items; pairs are clusters.

    Raises:
        InputError: If the file cannot be read.
        SettingsError: If the limit parts a pair.
    """
    check_text("suffix", suffix)
    limit, folder = check_limit("limit", limit), check_path("images", images)
    if limit is not None and limit % 2:
        msg = f"limit must be even, since MMVP scores pairs of questions, got {limit}"
        raise SettingsError(msg)
    return tuple(
        Item(
            id=f"mmvp/{row['question_id']}",
            task="choice",
            image=str(folder / f"{row['question_id']}.jpg"),
            prompt=f"{row['question']} {row['options']}{suffix}",
            kind="mmvp",
            cluster=f"pair {row['pair']}",
            columns={"mmvp_id": row["question_id"]},
        )
        for row in read_mmvp_questions(questions).iloc[:limit].to_dict("records")
    )


_COLUMNS: dict[str, dict[str, str]] = {
    "amber": {"amber_id": "id"},
    "mme": {"kind": "task", "mme_image": "image"},
    "hallusionbench": {
        f"hb_{key}": key
        for key in (
            *("category", "subcategory", "set_id", "figure_id", "question_id"),
            "visual_input",
        )
    },
    "mmvp": {"mmvp_id": "question_id"},
}


@by_name
def list_answers(
    run: StudyRun, *, benchmark: Benchmark, condition: str = "baseline"
) -> pd.DataFrame:
    """List what a study answered to a benchmark's items, as that benchmark is scored.

    Args:
        run: The study.
        benchmark: Which.
        condition: Under which condition.

    Returns:
        The table that `score_amber`, `score_mme`, `score_hallusionbench` or
        `score_mmvp` takes. An item that failed has no row.

    Raises:
        SettingsError: If there is no such benchmark or condition.
        InputError: If the study has no answered item of it.
    """
    check_choice("benchmark", benchmark, Benchmark)
    check_kind("run", run, StudyRun, expected="a StudyRun")
    if not isinstance(condition, str) or condition not in run.conditions:
        listed, got = ", ".join(run.conditions), show_value(condition)
        raise SettingsError(f"condition must be one of {listed}, got {got}")
    rows = run.frame()
    own = rows[
        rows["item"].str.startswith(f"{benchmark}/")
        & (rows.condition == condition)
        & rows.error.isna()
    ]
    if own.empty:
        msg = (
            f"{run.folder} has no answered item of {benchmark} under {condition!r}: "
            f"expected some of {benchmark}_items"
        )
        raise InputError(msg)
    columns = _COLUMNS[benchmark]
    kept = own[[*columns, "answer", "label"]].rename(columns=columns)
    kept = kept.assign(answer=kept.answer.astype(str), place=own["item"])
    if "id" in kept or ("question_id" in kept and benchmark == "mmvp"):
        name = "id" if "id" in kept else "question_id"
        kept[name] = kept[name].astype(int)
    return kept.reset_index(drop=True)
